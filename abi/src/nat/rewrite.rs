//! Headers and checksums of translated packets.

use super::Entry;
use crate::{addr::Addr, checksum as sums, wire::ethertype};

/// What a packet says once it is translated.
#[derive(Clone, Copy, Debug)]
pub struct To {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// As loaded: source low, destination high.
    pub ports: u32,
}

impl To {
    /// Of what a backend sends to the client of this entry.
    #[inline(always)]
    #[must_use]
    pub const fn client(entry: &Entry) -> Self {
        let ports = (entry.ports() as u32).rotate_left(16);
        Self { src: entry.vip(), dst: entry.client(), ports }
    }
}

/// Other addresses and ports in a frame whose IP header stands at 14 and has neither options nor extension headers, one
/// hop later; its hop count must be above 0. The frame ends with its transport header, of TCP or `UDP`, or later. `macs`:
/// those of destination and source, as they stand in a frame, in the first six bytes of a word, of which the last two do
/// not matter.
#[inline(always)]
pub fn frame<const N: usize, const V4: bool, const UDP: bool>(
    frame: &mut [u8; N],
    to: &To,
    macs: (u64, u64),
) {
    const L3: usize = 14;
    let l4 = const { L3 + if V4 { 20 } else { 40 } };
    const { assert!(N >= L3 + if V4 { 20 } else { 40 } + if UDP { 8 } else { 20 }) };

    // What the addresses add to a checksum: that of the IPv4 header, and that of the pseudo header.
    let addresses = if V4 {
        let (src, dst) = (to.src.as_v4_raw(), to.dst.as_v4_raw());
        let changed = u64::from(!word(frame, L3 + 12))
            + u64::from(!word(frame, L3 + 16))
            + u64::from(src)
            + u64::from(dst);
        // The hop count is the lowest byte, the checksum the high half, in which one less is 0xfffe more.
        let third = word(frame, L3 + 8);
        let check = !sums::fold_words(u64::from(!third >> 16) + changed + 0xfffe);
        put(frame, L3 + 8, ((third - 1) & 0xffff | u32::from(check) << 16).to_ne_bytes());
        put(frame, L3 + 12, src.to_ne_bytes());
        put(frame, L3 + 16, dst.to_ne_bytes());
        changed
    } else {
        frame[L3 + 7] = frame[L3 + 7].wrapping_sub(1);
        let mut changed = 0;
        let words = [to.src.hi(), to.src.lo(), to.dst.hi(), to.dst.lo()];
        let mut n = 0;
        while n < words.len() {
            let at = L3 + 8 + 8 * n;
            changed += u64::from(!word(frame, at)) + u64::from(!word(frame, at + 4));
            changed += (words[n] & 0xffff_ffff) + (words[n] >> 32);
            put(frame, at, words[n].to_ne_bytes());
            n += 1;
        }
        changed
    };

    let changed = addresses + u64::from(!word(frame, l4)) + u64::from(to.ports);
    put(frame, l4, to.ports.to_ne_bytes());
    let at = l4 + if UDP { 6 } else { 16 };
    let before = u16::from_ne_bytes([frame[at], frame[at + 1]]);
    // A checksum of 0 says that there is none (RFC 768).
    if !UDP || before != 0 {
        let after = match !sums::fold_words(u64::from(!before) + changed) {
            0 if UDP => 0xffff,
            after => after,
        };
        put(frame, at, after.to_ne_bytes());
    }

    // What one store writes too much, the next one puts right.
    put(frame, 0, macs.0.to_ne_bytes());
    put(frame, 6, macs.1.to_ne_bytes());
    put(frame, L3 - 2, if V4 { ethertype::IPV4 } else { ethertype::IPV6 });
}

#[inline(always)]
const fn word<const N: usize>(frame: &[u8; N], at: usize) -> u32 {
    // At once, or the compiler may take the bytes one by one.
    match frame.split_at(at).1.first_chunk() {
        Some(word) => u32::from_ne_bytes(*word),
        None => 0,
    }
}

#[inline(always)]
fn put<const N: usize, const BYTES: usize>(frame: &mut [u8; N], at: usize, bytes: [u8; BYTES]) {
    frame[at..at + BYTES].copy_from_slice(&bytes);
}

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

    /// Of a frame of random bytes with right checksums, translated: the frame, and what it should be.
    fn translated<const N: usize, const V4: bool, const UDP: bool>(
        mut before: [u8; N],
        after: [[u8; 16]; 2],
        ports: [u8; 4],
        no_check: bool,
    ) -> ([u8; N], [u8; N]) {
        let (l4, len) = if V4 { (34, 4) } else { (54, 16) };
        let (at, check) = (l4 - 2 * len, l4 + if UDP { 6 } else { 16 });
        // Makes both checksums right.
        let whole = |frame: &mut [u8; N]| {
            if V4 {
                frame[24..26].fill(0);
                let sum = sums::full(&frame[14..34]);
                frame[24..26].copy_from_slice(&sum.to_ne_bytes());
            }
            frame[check..check + 2].fill(0);
            if !no_check {
                let l4 = &frame[l4..];
                let sum = match naive(&frame[at..at + len], &frame[at + len..at + 2 * len], l4) {
                    0 if UDP => 0xffff,
                    sum => sum,
                };
                frame[check..check + 2].copy_from_slice(&sum.to_ne_bytes());
            }
        };
        let hops = if V4 { 22 } else { 21 };
        before[hops] = before[hops].max(1);
        whole(&mut before);
        let mut want = before;
        want[hops] -= 1;
        want[at..at + len].copy_from_slice(&after[0][..len]);
        want[at + len..at + 2 * len].copy_from_slice(&after[1][..len]);
        want[l4..l4 + 4].copy_from_slice(&ports);
        whole(&mut want);

        let addr = |bytes: [u8; 16]| match bytes {
            [a, b, c, d, ..] if V4 => Addr::v4(u32::from_ne_bytes([a, b, c, d])),
            bytes => Addr::from_bytes(bytes),
        };
        let [src, dst] = after.map(addr);
        let to = To { src, dst, ports: u32::from_ne_bytes(ports) };
        want[..6].copy_from_slice(&ports.repeat(2)[..6]);
        want[6..12].copy_from_slice(&after[0][..6]);
        want[12..14].copy_from_slice(if V4 { &[8, 0] } else { &[0x86, 0xdd] });
        let mac = |bytes: &[u8]| u64::from_ne_bytes(bytes[..8].try_into().unwrap());
        frame::<N, V4, UDP>(&mut before, &to, (mac(&ports.repeat(2)), mac(&after[0])));
        // The two zeros of a checksum are one, but to UDP.
        for at in [24, check] {
            if (at == check && !UDP || at == 24 && V4)
                && same(
                    u16::from_ne_bytes([before[at], before[at + 1]]),
                    u16::from_ne_bytes([want[at], want[at + 1]]),
                )
            {
                want[at..at + 2].copy_from_slice(&[before[at], before[at + 1]]);
            }
        }
        (before, want)
    }

    proptest! {
        #[test]
        fn frames(
            bytes: [[u8; 32]; 3], after: [[u8; 16]; 2], ports: [u8; 4], no_check: bool,
        ) {
            let bytes: Vec<u8> = bytes.concat();
            let (got, want) = translated::<70, true, false>(bytes[..70].try_into().unwrap(), after, ports, false);
            prop_assert_eq!(&got[..], &want[..]);
            let (got, want) = translated::<42, true, true>(bytes[..42].try_into().unwrap(), after, ports, no_check);
            prop_assert_eq!(&got[..], &want[..]);
            let (got, want) = translated::<90, false, false>(bytes[..90].try_into().unwrap(), after, ports, false);
            prop_assert_eq!(&got[..], &want[..]);
            let (got, want) = translated::<62, false, true>(bytes[..62].try_into().unwrap(), after, ports, no_check);
            prop_assert_eq!(&got[..], &want[..]);
        }

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
