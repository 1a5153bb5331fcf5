//! Headers and checksums of translated packets.

use crate::{addr::Addr, checksum as sums};

/// Sum over the words of an address, not folded. That of an IPv4 address is the same number in ones'
/// complement as the sum over its four bytes: its mapped form has one word more, 0xffff, which is a zero.
#[inline(always)]
#[must_use]
pub const fn address_sum(a: Addr) -> u32 {
    const fn half(word: u64) -> u32 {
        let sum = (word & 0xffff_ffff) + (word >> 32);
        (sum & 0xffff) as u32 + ((sum >> 16) & 0xffff) as u32 + (sum >> 32) as u32
    }
    half(a.hi()) + half(a.lo())
}

/// The checksum after what summed up to `old` under it has become what sums up to `new`: RFC 1624,
/// equation 3, for any number of words.
#[inline(always)]
#[must_use]
pub const fn checksum(checksum: u16, old: u32, new: u32) -> u16 {
    !sums::fold(!checksum as u32 + !sums::fold(old) as u32 + sums::fold(new) as u32)
}

/// An IPv4 header with other addresses, one hop later; its TTL must be above 0.
#[inline(always)]
pub fn header4(h: &mut [u8; 20], src: u32, dst: u32) {
    let before = u16::from_ne_bytes([h[8], h[9]]);
    h[8] = h[8].wrapping_sub(1);
    let after = u16::from_ne_bytes([h[8], h[9]]);
    changed4(h, src, dst, before, after);
}

/// An IPv4 header with other addresses.
#[inline(always)]
pub fn addresses4(h: &mut [u8; 20], src: u32, dst: u32) {
    changed4(h, src, dst, 0, 0);
}

/// Other addresses, and a word that was `before` and is `after`.
#[inline(always)]
fn changed4(h: &mut [u8; 20], src: u32, dst: u32, before: u16, after: u16) {
    let word =
        |h: &[u8; 20], at: usize| u32::from_ne_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
    let old = sums::halves(word(h, 12)) + sums::halves(word(h, 16)) + u32::from(before);
    h[12..16].copy_from_slice(&src.to_ne_bytes());
    h[16..20].copy_from_slice(&dst.to_ne_bytes());
    let new = sums::halves(src) + sums::halves(dst) + u32::from(after);
    let check = checksum(u16::from_ne_bytes([h[10], h[11]]), old, new);
    h[10..12].copy_from_slice(&check.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
    }

    /// The checksum of a segment behind its pseudo header, computed as a receiver would.
    fn naive(src: &[u8], dst: &[u8], l4: &[u8]) -> u16 {
        let mut all: Vec<u8> = [src, dst, &[0, 6], &(l4.len() as u16).to_be_bytes()].concat();
        all.extend(l4);
        sums::full(&all)
    }

    proptest! {
        #[test]
        fn segments(
            before: [[u8; 16]; 2], after: [[u8; 16]; 2], v4: [bool; 2],
            ports: [u32; 2], payload in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let addr = |bytes: [u8; 16], v4: bool| -> (Addr, Vec<u8>) {
                if v4 {
                    let raw = [bytes[0], bytes[1], bytes[2], bytes[3]];
                    (Addr::v4(u32::from_ne_bytes(raw)), raw.to_vec())
                } else {
                    (Addr::from_bytes(bytes), bytes.to_vec())
                }
            };
            let [(s0, sb0), (d0, db0)] = before.map(|a| addr(a, v4[0]));
            let [(s1, sb1), (d1, db1)] = after.map(|a| addr(a, v4[1]));
            let mut l4 = ports[0].to_ne_bytes().to_vec();
            l4.extend([0; 2]);
            l4.extend(&payload);
            let check = naive(&sb0, &db0, &l4);
            l4[..4].copy_from_slice(&ports[1].to_ne_bytes());
            let got = checksum(
                check,
                address_sum(s0) + address_sum(d0) + sums::halves(ports[0]),
                address_sum(s1) + address_sum(d1) + sums::halves(ports[1]),
            );
            prop_assert!(same(got, naive(&sb1, &db1, &l4)));
        }

        #[test]
        fn headers(mut h: [u8; 20], src: u32, dst: u32) {
            h[8] = h[8].max(1);
            h[10..12].fill(0);
            let check = sums::full(&h);
            h[10..12].copy_from_slice(&check.to_ne_bytes());
            let ttl = h[8];
            header4(&mut h, src, dst);
            prop_assert_eq!((h[8], &h[12..16], &h[16..]), (ttl - 1, &src.to_ne_bytes()[..], &dst.to_ne_bytes()[..]));
            prop_assert_eq!(sums::fold(sums::sum(&h)), 0xffff);
            addresses4(&mut h, dst, src);
            prop_assert_eq!((h[8], &h[12..16], &h[16..]), (ttl - 1, &dst.to_ne_bytes()[..], &src.to_ne_bytes()[..]));
            prop_assert_eq!(sums::fold(sums::sum(&h)), 0xffff);
        }
    }
}
