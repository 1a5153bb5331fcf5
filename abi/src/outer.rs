//! Outer headers of IPIP: RFC 2003 (4in4), RFC 2473 (6in6, 4in6), RFC 4213 (6in4); of GUE
//! (draft-ietf-intarea-gue-09, variant 0); of Geneve (RFC 8926). DSCP and ECN by RFC 6040, normal
//! mode. UDP checksums are zero, over IPv6 too (RFC 6935, RFC 6936).
//!
//! Headers come as machine words ready to be stored, so that the program writes each with a few
//! stores and the host tests see the same bytes.

use crate::{
    addr::Addr,
    checksum,
    limits::OUTER_TTL,
    table::{Egress, Mode},
};

/// IP protocol numbers of an encapsulated packet.
pub const PROTO_IPV4: u8 = 4;
/// IPv6 in an outer header.
pub const PROTO_IPV6: u8 = 41;

/// An outer IPv4 header as the five 32-bit words that stand in the packet.
pub type Outer4 = [u32; 5];
/// An outer IPv6 header as the five 64-bit words that stand in the packet.
pub type Outer6 = [u64; 5];

/// UDP port of GUE.
pub const GUE_PORT: u16 = 6080;
/// UDP port of Geneve.
pub const GENEVE_PORT: u16 = 6081;
/// Bytes between the outer IP header and the inner one, with GUE: UDP's header and GUE's.
pub const GUE_SHIM: usize = 12;
/// As [`GUE_SHIM`], with Geneve.
pub const GENEVE_SHIM: usize = 16;

/// Bytes that a mode puts in front of a packet.
#[must_use]
pub const fn overhead(mode: Mode, outer_v4: bool) -> u32 {
    let shim = match mode {
        Mode::L2 | Mode::Nat => return 0,
        Mode::Ipip => 0,
        Mode::Gue => GUE_SHIM,
        Mode::Geneve => GENEVE_SHIM,
        // Always as much as it may be: a path's MTU should not change while slots move.
        Mode::GueTwice => GUE_SHIM + crate::chance::room(outer_v4),
    };
    shim as u32 + if outer_v4 { 20 } else { 40 }
}

const DF: u16 = 0x4000;

/// The first word of an IPv4 header without options, in host byte order: `tos`, and `len` of the packet.
#[inline(always)]
#[must_use]
pub const fn first4(tos: u8, len: u16) -> u32 {
    0x45 << 24 | (tos as u32) << 16 | len as u32
}

/// The outer IPv4 header: its `first` word ([`first4`]), `protocol` 4, 41 or 17, `entropy` the flow's.
#[inline(always)]
#[must_use]
pub fn ipv4(egress: &Egress, dst: u32, first: u32, protocol: u8, entropy: u32) -> Outer4 {
    let first = first.to_be();
    let second = u32::from(DF.to_be()) << 16;
    let third = u32::from(u16::from_ne_bytes([OUTER_TTL, protocol]));
    let src = egress.source4(entropy);
    // The second and the third have no bits in common.
    let check = checksum::of_words([first, second | third, src, dst]);
    [first, second, third | u32::from(check) << 16, src, dst]
}

/// The outer IPv6 header: `traffic_class` from the inner packet, `inner_len` the bytes that follow,
/// `next` 4, 41 or 17. The flow's entropy also stands in the flow label (RFC 6438).
#[inline(always)]
#[must_use]
pub fn ipv6(
    egress: &Egress,
    dst: Addr,
    inner_len: u16,
    traffic_class: u8,
    next: u8,
    entropy: u32,
) -> Outer6 {
    let first = (0x6000_0000 | u32::from(traffic_class) << 20 | entropy >> 12).to_be();
    let second =
        u32::from(inner_len.to_be()) | u32::from(u16::from_ne_bytes([next, OUTER_TTL])) << 16;
    [
        u64::from(first) | u64::from(second) << 32,
        egress.source6_hi(),
        egress.source6_lo(entropy),
        dst.hi(),
        dst.lo(),
    ]
}

/// UDP's header: the source port carries the 14 highest bits of the flow's entropy, in the dynamic range (RFC
/// 6335).
#[inline(always)]
const fn udp(port: u16, len: u16, entropy: u32) -> [u32; 2] {
    let source = 0xc000 | (entropy >> 18) as u16;
    [source.to_be() as u32 | (port.to_be() as u32) << 16, len.to_be() as u32]
}

/// UDP's and GUE's headers in front of an inner packet of `inner_len` bytes, whose `protocol` is 4 or
/// 41. The sum of lengths must not pass 65,535.
#[inline(always)]
#[must_use]
pub const fn gue(inner_len: u16, protocol: u8, entropy: u32) -> [u32; 3] {
    gue_with(0, inner_len, protocol, entropy)
}

/// The same, with `private` bytes of data behind GUE's header: a multiple of four, at most 124.
#[inline(always)]
#[must_use]
pub const fn gue_with(private: u8, inner_len: u16, protocol: u8, entropy: u32) -> [u32; 3] {
    let len = inner_len.wrapping_add(GUE_SHIM as u16 + private as u16);
    let [ports, len] = udp(GUE_PORT, len, entropy);
    [ports, len, u32::from_ne_bytes([private / 4, protocol, 0, 0])]
}

/// UDP's and Geneve's headers in front of an inner packet of `inner_len` bytes and this ethertype:
/// virtual network 0, no options. The sum of lengths must not pass 65,535.
#[inline(always)]
#[must_use]
pub const fn geneve(inner_len: u16, ethertype: [u8; 2], entropy: u32) -> [u32; 4] {
    let [ports, len] = udp(GENEVE_PORT, inner_len.wrapping_add(GENEVE_SHIM as u16), entropy);
    [ports, len, u32::from_ne_bytes([0, 0, ethertype[0], ethertype[1]]), 0]
}

/// The ECN bits of the inner header after decapsulation (RFC 6040, figure 4); `None`: the packet must
/// be dropped, for the outer header says that it met congestion and the inner one that its sender
/// would not be told.
#[inline(always)]
#[must_use]
pub const fn ecn(inner_tos: u8, outer_tos: u8) -> Option<u8> {
    const ECT1: u8 = 1;
    const ECT0: u8 = 2;
    const CE: u8 = 3;
    match (inner_tos & 3, outer_tos & 3) {
        (0, CE) => None,
        (ECT0, ECT1) => Some(ECT1),
        (ECT0 | ECT1, CE) => Some(CE),
        (inner, _) => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn bytes4(h: Outer4) -> [u8; 20] {
        let mut out = [0; 20];
        for (o, w) in out.chunks_exact_mut(4).zip(h) {
            o.copy_from_slice(&w.to_ne_bytes());
        }
        out
    }

    proptest! {
        #[test]
        fn every_outer_ipv4_header_has_a_right_checksum(src: [u8; 4], bits in 0u8..=16, dst: u32, len: u16, tos: u8, entropy: u32) {
            let e = Egress::new(1, [0; 6], 1500, Some((src, bits)), None);
            let b = bytes4(ipv4(&e, dst, first4(tos, len), PROTO_IPV4, entropy));
            prop_assert_eq!(checksum::fold(checksum::sum(&b)), 0xffff);
            prop_assert_eq!(u16::from_be_bytes([b[2], b[3]]), len);
            prop_assert_eq!((b[0], b[1], b[6], b[8], b[9]), (0x45, tos, 0x40, 64, 4));
            let s = u32::from_be_bytes([b[12], b[13], b[14], b[15]]);
            prop_assert_eq!(s >> bits, u32::from_be_bytes(src) >> bits, "the prefix is kept");
        }
    }

    #[test]
    fn ecn_by_the_table_of_rfc_6040() {
        // Rows: inner Not-ECT, ECT(1), ECT(0), CE; columns: outer likewise.
        let table = [
            [Some(0), Some(0), Some(0), None],
            [Some(1), Some(1), Some(1), Some(3)],
            [Some(2), Some(1), Some(2), Some(3)],
            [Some(3), Some(3), Some(3), Some(3)],
        ];
        for (inner, row) in table.iter().enumerate() {
            for (outer, want) in row.iter().enumerate() {
                assert_eq!(ecn(0xb8 | inner as u8, 0x40 | outer as u8), *want, "{inner} {outer}");
            }
        }
    }

    #[test]
    fn shims() {
        let bytes = |words: &[u32]| -> [u8; 16] {
            let mut out = [0; 16];
            for (o, w) in out.chunks_exact_mut(4).zip(words) {
                o.copy_from_slice(&w.to_ne_bytes());
            }
            out
        };
        let g = bytes(&gue(60, PROTO_IPV6, 0x048c_ffff));
        assert_eq!(g[..12], [0xc1, 0x23, 0x17, 0xc0, 0, 72, 0, 0, 0, 41, 0, 0]);
        let g = bytes(&geneve(60, [0x86, 0xdd], 0x048c_ffff));
        assert_eq!(g, [0xc1, 0x23, 0x17, 0xc1, 0, 76, 0, 0, 0, 0, 0x86, 0xdd, 0, 0, 0, 0]);
    }

    #[test]
    fn an_outer_ipv6_header() {
        let src = "2001:db8::5".parse::<Ipv6Addr>().unwrap();
        let dst: IpAddr = "2001:db8::99".parse().unwrap();
        let e = Egress::new(1, [0; 6], 1500, None, Some((src.octets(), 16)));
        let words = ipv6(&e, dst.into(), 60, 0xb9, PROTO_IPV4, 0xabcd_1234);
        let mut b = [0; 40];
        for (o, w) in b.chunks_exact_mut(8).zip(words) {
            o.copy_from_slice(&w.to_ne_bytes());
        }
        assert_eq!(b[..8], [0x6b, 0x9a, 0xbc, 0xd1, 0, 60, 4, 64]);
        assert_eq!(b[8..22], src.octets()[..14]);
        assert_eq!(b[24..40], "2001:db8::99".parse::<Ipv6Addr>().unwrap().octets());
    }
}
