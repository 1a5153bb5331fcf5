//! From one family to the other: headers, fragments and ICMP errors (RFC 7915).

use crate::{addr::Addr, checksum as sums, upper::Piece, wire::protocol::FRAGMENT6};

/// An IPv6 header is longer than one of IPv4 by this many bytes.
pub const LONGER: u32 = 20;

/// Bytes of IPv6's fragment header.
const FRAGMENT: u32 = 8;

/// Bytes of the headers that a packet of `V4` gets in the other family, one of a fragment included.
#[inline(always)]
#[must_use]
pub const fn headers(v4: bool, part: bool) -> u32 {
    match (v4, part) {
        (true, false) => 40,
        (true, true) => 40 + FRAGMENT,
        (false, _) => 20,
    }
}

/// The largest packet that fits where `mtu` bytes of the other family do, if it has neither options nor extension
/// headers.
#[inline(always)]
#[must_use]
pub const fn room(v4: bool, part: bool, mtu: u32) -> u32 {
    match (v4, part) {
        (true, false) => mtu.wrapping_sub(LONGER),
        (true, true) => mtu.wrapping_sub(LONGER + FRAGMENT),
        (false, _) => mtu + LONGER,
    }
}

/// What both families' headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit.
    pub hops: u8,
    /// What follows.
    pub protocol: u8,
    /// Bytes that follow.
    pub len: u16,
}

impl Header {
    /// An IPv6 header, without a flow label: as words of memory.
    #[inline(always)]
    #[must_use]
    pub const fn v6(&self) -> [u64; 5] {
        let first = (0x6000_0000 | (self.tos as u32) << 20).to_be();
        let second =
            self.len.to_be() as u32 | (u16::from_ne_bytes([self.protocol, self.hops]) as u32) << 16;
        [
            first as u64 | (second as u64) << 32,
            self.src.hi(),
            self.src.lo(),
            self.dst.hi(),
            self.dst.lo(),
        ]
    }

    /// An IPv4 header, as words of memory. A packet of up to 1,260 bytes may be fragmented on its way, and so has
    /// an identification; a larger one may not (RFC 7915 section 5.1).
    #[inline(always)]
    #[must_use]
    pub const fn v4(&self, id: u16) -> [u32; 5] {
        let total = self.len.wrapping_add(20);
        if total <= 1260 { self.v4_with(id, 0) } else { self.v4_with(0, 0x4000) }
    }

    /// The same of a packet that is a part of its datagram.
    #[inline(always)]
    #[must_use]
    pub const fn v4_part(&self, id: u16, piece: &Piece) -> [u32; 5] {
        self.v4_with(id, piece.offset | (piece.more as u16) << 13)
    }

    /// `fragment`: flags, and where it begins.
    #[inline(always)]
    const fn v4_with(&self, id: u16, fragment: u16) -> [u32; 5] {
        let total = self.len.wrapping_add(20);
        let words = [
            u16::from_ne_bytes([0x45, self.tos]) as u32 | (total.to_be() as u32) << 16,
            id as u32 | (fragment.to_be() as u32) << 16,
            u16::from_ne_bytes([self.hops, self.protocol]) as u32,
            self.src.as_v4_raw(),
            self.dst.as_v4_raw(),
        ];
        let sum = sums::halves(words[0])
            + sums::halves(words[1])
            + words[2]
            + sums::halves(words[3])
            + sums::halves(words[4]);
        [words[0], words[1], words[2] | (!sums::fold(sum) as u32) << 16, words[3], words[4]]
    }

    /// The same packet's IPv6 header and fragment header: the words of the one, and of the other. The identification
    /// is 16 bits of the 32.
    #[inline(always)]
    #[must_use]
    pub const fn v6_part(&self, id: u16, piece: &Piece) -> ([u64; 5], u64) {
        let outer =
            Self { protocol: FRAGMENT6, len: self.len.wrapping_add(FRAGMENT as u16), ..*self };
        let [f0, f1] = (piece.offset << 3 | piece.more as u16).to_be_bytes();
        let [i0, i1] = id.to_ne_bytes();
        (outer.v6(), u64::from_ne_bytes([self.protocol, 0, f0, f1, 0, 0, i0, i1]))
    }
}

/// What any IPv6 way takes (RFC 8200).
pub const LEAST: u32 = 1280;

/// An ICMP error in the other family: type, code, and the rest of its header, which has an MTU or a pointer, or is 0.
/// `rest`: that which it came with; `most`: the largest MTU to be told, in the other family's bytes. `None`: it has no
/// counterpart. RFC 7915 sections 4.2 and 5.2.
#[inline(always)]
#[must_use]
pub const fn icmp<const V4: bool>(
    kind: u8,
    code: u8,
    rest: u32,
    most: u32,
) -> Option<(u8, u8, u32)> {
    if V4 {
        Some(match (kind, code) {
            (3, 0 | 1 | 5..=8 | 11 | 12) => (1, 0, 0),
            (3, 2) => (4, 1, 6),
            (3, 3) => (1, 4, 0),
            (3, 4) => {
                let mtu = least((rest & 0xffff) + LONGER, most);
                (2, 0, if mtu < LEAST { LEAST } else { mtu })
            }
            (3, 9 | 10 | 13 | 15) => (1, 1, 0),
            (11, code) => (3, code, 0),
            // The pointer, or a wrong length.
            (12, 0 | 2) => match pointer::<V4>(rest >> 24) {
                Some(pointer) => (4, 0, pointer),
                None => return None,
            },
            _ => return None,
        })
    } else {
        Some(match (kind, code) {
            (1, 0 | 2 | 3) => (3, 1, 0),
            (1, 1) => (3, 10, 0),
            (1, 4) => (3, 3, 0),
            (2, _) => {
                let mtu = least(rest.saturating_sub(LONGER), most);
                (3, 4, if mtu > 0xffff { 0xffff } else { mtu })
            }
            (3, code) => (11, code, 0),
            (4, 0) => match pointer::<V4>(rest) {
                Some(pointer) => (12, 0, pointer << 24),
                None => return None,
            },
            (4, 1) => (3, 2, 0),
            _ => return None,
        })
    }
}

const fn least(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

/// The field of the other family's header that has what this one has at `at`: RFC 7915, figures 3 and 6.
#[inline(always)]
const fn pointer<const V4: bool>(at: u32) -> Option<u32> {
    if V4 {
        Some(match at {
            0 | 1 => at,
            2 | 3 => 4,
            8 => 7,
            9 => 6,
            12..=15 => 8,
            16..=19 => 24,
            _ => return None,
        })
    } else {
        Some(match at {
            0 | 1 => at,
            4 | 5 => 2,
            6 => 9,
            7 => 8,
            8..=23 => 12,
            24..=39 => 16,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use proptest::prelude::*;

    use super::*;
    use crate::{upper, wire};

    /// Whatever fits.
    const ANY: u32 = u32::MAX;

    fn header(src: Addr, dst: Addr, len: u16) -> Header {
        Header { src, dst, tos: 0xb9, hops: 61, protocol: 6, len }
    }

    proptest! {
        #[test]
        fn whole_packets(a: u32, b: u32, hi: u64, len in 0u16..65_000, id: u16) {
            let (src, dst) = (Addr::v4(a), Addr::v4(b));
            let bytes: std::vec::Vec<u8> =
                header(src, dst, len).v4(id).into_iter().flat_map(u32::to_ne_bytes).collect();
            prop_assert_eq!(sums::fold(sums::sum(&bytes)), 0xffff);
            let ip = wire::ipv4(&bytes[..], 0).unwrap();
            prop_assert_eq!((ip.src, ip.dst, ip.total), (src, dst, u32::from(len) + 20));
            prop_assert_eq!((ip.tos, ip.ttl, ip.protocol, ip.header), (0xb9, 61, 6, 20));
            prop_assert!(!ip.fragment);
            let large = ip.total > 1260;
            let ident = if large { 0 } else { id };
            prop_assert_eq!((bytes[6] & 0x40 != 0, &bytes[4..6]), (large, &ident.to_ne_bytes()[..]));

            let (src, dst) = (Addr::from_halves(hi, 1 << 60), Addr::from_halves(!hi, 7));
            let bytes: std::vec::Vec<u8> =
                header(src, dst, len).v6().into_iter().flat_map(u64::to_ne_bytes).collect();
            let ip = wire::ipv6(&bytes[..], 0).unwrap();
            prop_assert_eq!((ip.src, ip.dst, ip.total), (src, dst, u32::from(len) + 40));
            prop_assert_eq!((ip.tos, ip.ttl, ip.protocol), (0xb9, 61, 6));
        }
    }

    proptest! {
        /// What either family's headers say of a fragment is what was to be said.
        #[test]
        fn fragments(id: u16, offset in 0u16..0x2000, more: bool, len in 0u16..65_000) {
            let piece = Piece { id: 9, offset, more };
            let (a, b) = (Addr::v4(7), Addr::v4(8));
            let bytes: std::vec::Vec<u8> =
                header(a, b, len).v4_part(id, &piece).into_iter().flat_map(u32::to_ne_bytes).collect();
            prop_assert_eq!(sums::fold(sums::sum(&bytes)), 0xffff);
            let found = upper::v4(&bytes[..], 0).unwrap();
            prop_assert_eq!((found.protocol, found.at), (6, 20));
            prop_assert_eq!(found.piece, Piece { id: id.into(), ..piece });
            prop_assert_eq!(wire::ipv4(&bytes[..], 0).unwrap().total, u32::from(len) + 20);
            prop_assert_eq!(bytes[6] & 0xc0, 0, "it may be fragmented further");

            let (head, part) = header(Addr::from_halves(1, 2), b, len).v6_part(id, &piece);
            let mut bytes: std::vec::Vec<u8> = head.into_iter().flat_map(u64::to_ne_bytes).collect();
            bytes.extend(part.to_ne_bytes());
            prop_assert_eq!(bytes.len() as u32, headers(true, true));
            let ip = wire::ipv6(&bytes[..], 0).unwrap();
            prop_assert_eq!((ip.total, ip.fragment), (u32::from(len) + 48, true));
            let found = upper::v6_translatable(&bytes[..], 0).unwrap();
            prop_assert_eq!((found.protocol, found.at), (6, 48));
            let [i0, i1] = id.to_ne_bytes();
            let id = u32::from_ne_bytes([0, 0, i0, i1]);
            prop_assert_eq!(found.piece, Piece { id, ..piece });
        }
    }

    #[test]
    fn sizes() {
        for (v4, part, own) in
            [(true, false, 20), (true, true, 20), (false, false, 40), (false, true, 48)]
        {
            // What has the room that is told, less its own headers, has it with the other ones.
            let room = room(v4, part, 1500);
            assert!(room - own + headers(v4, part) <= 1500);
            let tight = own < 48;
            assert_eq!(room + 1 - own + headers(v4, part) > 1500, tight);
        }
    }

    #[test]
    fn errors() {
        for (v4, v6) in [
            ((3, 1, 0), (1, 0, 0)),
            ((3, 3, 0), (1, 4, 0)),
            ((3, 4, 1400), (2, 0, 1420)),
            ((11, 0, 0), (3, 0, 0)),
            ((3, 10, 0), (1, 1, 0)),
        ] {
            assert_eq!(icmp::<true>(v4.0, v4.1, v4.2, ANY), Some(v6));
            assert_eq!(icmp::<false>(v6.0, v6.1, v6.2, ANY), Some(v4));
        }
        assert_eq!(icmp::<true>(3, 4, 0, ANY), Some((2, 0, 1280)), "a router older than RFC 1191");
        assert_eq!(icmp::<true>(3, 4, 576, ANY), Some((2, 0, 1280)));
        assert_eq!(icmp::<false>(2, 0, 100_000, ANY), Some((3, 4, 0xffff)));
        // What is told is no more than what goes through here.
        assert_eq!(icmp::<true>(3, 4, 9000, 1500), Some((2, 0, 1500)));
        assert_eq!(icmp::<true>(3, 4, 9000, 1000), Some((2, 0, 1280)));
        assert_eq!(icmp::<false>(2, 0, 9000, 1480), Some((3, 4, 1480)));
        assert_eq!(icmp::<true>(5, 0, 0, ANY), None);
    }

    #[test]
    fn pointers() {
        let to6: std::vec::Vec<_> =
            (0..21).map(|at| icmp::<true>(12, 0, at << 24, 0).map(|to| to.2)).collect();
        let (none, v) = (None, Some);
        let source = [v(8); 4];
        let before = [v(0), v(1), v(4), v(4), none, none, none, none, v(7), v(6), none, none];
        assert_eq!(to6[..12], before);
        assert_eq!((&to6[12..16], &to6[16..20], to6[20]), (&source[..], &[v(24); 4][..], none));
        assert_eq!(icmp::<true>(12, 2, 2 << 24, 0), Some((4, 0, 4)), "a bad length");
        assert_eq!(icmp::<true>(12, 1, 0, 0), None, "an option is missing");

        let to4 = |at| icmp::<false>(4, 0, at, 0).map(|to| (to.0, to.1, to.2 >> 24));
        for (at, to) in
            [(0, 0), (1, 1), (4, 2), (5, 2), (6, 9), (7, 8), (8, 12), (23, 12), (24, 16), (39, 16)]
        {
            assert_eq!(to4(at), Some((12, 0, to)), "{at}");
        }
        assert_eq!([to4(2), to4(3), to4(40), to4(u32::MAX)], [None; 4]);
        assert_eq!(icmp::<false>(4, 2, 0, 0), None, "an option that is not known");
    }
}
