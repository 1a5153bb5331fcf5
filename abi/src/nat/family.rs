//! From one family to the other: headers and ICMP errors (RFC 7915).

use crate::{addr::Addr, checksum as sums};

/// An IPv6 header is longer than one of IPv4 by this many bytes.
pub const LONGER: u32 = 20;

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
        let (id, fragment) = if total <= 1260 { (id, 0) } else { (0, 0x4000u16) };
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
}

/// An ICMP error in the other family: type, code, and the MTU, 0 if it tells none. `mtu` is that which it tells,
/// `way` the bytes of the other family's packets that fit where the answer goes. `None`: it has no counterpart.
/// RFC 7915 sections 4.2 and 5.2.
#[inline(always)]
#[must_use]
pub const fn icmp<const V4: bool>(kind: u8, code: u8, mtu: u32) -> Option<(u8, u8, u32)> {
    /// What any IPv6 way takes (RFC 8200).
    const LEAST: u32 = 1280;
    if V4 {
        Some(match (kind, code) {
            (3, 0 | 1 | 5..=8 | 11 | 12) => (1, 0, 0),
            (3, 2) => (4, 1, 6),
            (3, 3) => (1, 4, 0),
            (3, 4) => {
                let mtu = (mtu & 0xffff) + LONGER;
                (2, 0, if mtu < LEAST { LEAST } else { mtu })
            }
            (3, 9 | 10 | 13 | 15) => (1, 1, 0),
            (11, code) => (3, code, 0),
            _ => return None,
        })
    } else {
        Some(match (kind, code) {
            (1, 0 | 2 | 3) => (3, 1, 0),
            (1, 1) => (3, 10, 0),
            (1, 4) => (3, 3, 0),
            (2, _) => {
                let mtu = mtu.saturating_sub(LONGER);
                (3, 4, if mtu > 0xffff { 0xffff } else { mtu })
            }
            (3, code) => (11, code, 0),
            (4, 1) => (3, 2, 0),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use proptest::prelude::*;

    use super::*;
    use crate::wire;

    fn header(src: Addr, dst: Addr, len: u16) -> Header {
        Header { src, dst, tos: 0xb9, hops: 61, protocol: 6, len }
    }

    proptest! {
        #[test]
        fn headers(a: u32, b: u32, hi: u64, len in 0u16..65_000, id: u16) {
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

    #[test]
    fn errors() {
        for (v4, v6) in [
            ((3, 1, 0), (1, 0, 0)),
            ((3, 3, 0), (1, 4, 0)),
            ((3, 4, 1400), (2, 0, 1420)),
            ((11, 0, 0), (3, 0, 0)),
            ((3, 10, 0), (1, 1, 0)),
        ] {
            assert_eq!(icmp::<true>(v4.0, v4.1, v4.2), Some(v6));
            assert_eq!(icmp::<false>(v6.0, v6.1, v6.2), Some(v4));
        }
        assert_eq!(icmp::<true>(3, 4, 0), Some((2, 0, 1280)), "a router older than RFC 1191");
        assert_eq!(icmp::<true>(3, 4, 576), Some((2, 0, 1280)));
        assert_eq!(icmp::<false>(2, 0, 100_000), Some((3, 4, 0xffff)));
        assert_eq!(
            (icmp::<true>(12, 0, 0), icmp::<false>(4, 0, 0), icmp::<true>(5, 0, 0)),
            (None, None, None)
        );
    }
}
