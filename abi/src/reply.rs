//! Packets that a program answers with, in place of the one that it cannot deliver: ICMP errors (RFC
//! 792, RFC 1191, RFC 4443) and TCP resets (RFC 9293 section 3.5.2). Headers only, from the VIP to the
//! client.

use crate::{
    addr::Addr,
    checksum,
    limits::{ANSWER_BURST, ANSWER_INTERVAL_NS, OUTER_TTL},
    wire::tcp_flags,
};

/// An ICMP error or message: type and code, and what stands in its last four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    kind: u8,
    code: u8,
    rest: [u8; 4],
}

impl Icmp {
    /// IPv4: fragmentation needed, and the MTU.
    #[must_use]
    #[inline(always)]
    pub const fn frag_needed(mtu: u16) -> Self {
        let [high, low] = mtu.to_be_bytes();
        Self { kind: 3, code: 4, rest: [0, 0, high, low] }
    }

    /// IPv6: packet too big, and the MTU.
    #[must_use]
    #[inline(always)]
    pub const fn too_big6(mtu: u32) -> Self {
        Self { kind: 2, code: 0, rest: mtu.to_be_bytes() }
    }

    /// Port unreachable.
    #[must_use]
    #[inline(always)]
    pub const fn port_unreachable(v4: bool) -> Self {
        let (kind, code) = if v4 { (3, 3) } else { (1, 4) };
        Self { kind, code, rest: [0; 4] }
    }

    /// The message's header: `sum` is that of everything else under its checksum, in memory order.
    #[must_use]
    #[inline(always)]
    pub const fn header(&self, sum: u32) -> [u8; 8] {
        let [a, b, c, d] = self.rest;
        let own = u16::from_ne_bytes([self.kind, self.code]) as u32
            + u16::from_ne_bytes([a, b]) as u32
            + u16::from_ne_bytes([c, d]) as u32;
        let sum = (sum & 0xffff) + (sum >> 16) + own;
        let [x, y] = (!checksum::fold(sum)).to_ne_bytes();
        [self.kind, self.code, x, y, a, b, c, d]
    }
}

/// An IPv4 header in front of `len` bytes. Addresses as they stand in a header.
#[must_use]
#[inline(always)]
pub const fn ip4(src: u32, dst: u32, protocol: u8, len: u16) -> [u8; 20] {
    let [l0, l1] = (len + 20).to_be_bytes();
    let sum = u16::from_ne_bytes([0x45, 0]) as u32
        + u16::from_ne_bytes([l0, l1]) as u32
        + u16::from_ne_bytes([0x40, 0]) as u32
        + u16::from_ne_bytes([OUTER_TTL, protocol]) as u32
        + checksum::halves(src)
        + checksum::halves(dst);
    let [c0, c1] = (!checksum::fold(sum)).to_ne_bytes();
    let (s, d) = (src.to_ne_bytes(), dst.to_ne_bytes());
    [
        0x45, 0, l0, l1, 0, 0, 0x40, 0, OUTER_TTL, protocol, c0, c1, s[0], s[1], s[2], s[3], d[0],
        d[1], d[2], d[3],
    ]
}

/// The first eight bytes of an IPv6 header in front of `len` bytes; the addresses follow.
#[must_use]
#[inline(always)]
pub const fn ip6(next: u8, len: u16) -> [u8; 8] {
    let [l0, l1] = len.to_be_bytes();
    [0x60, 0, 0, 0, l0, l1, next, OUTER_TTL]
}

/// Sum over the pseudo header of either family; for ICMP over IPv4, which has none, use 0.
#[must_use]
#[inline(always)]
pub const fn pseudo<const V4: bool>(a: Addr, b: Addr, protocol: u8, len: u16) -> u32 {
    const fn half(word: u64) -> u32 {
        let sum = checksum::halves(word as u32) + checksum::halves((word >> 32) as u32);
        (sum & 0xffff) + (sum >> 16)
    }
    let addresses = if V4 {
        checksum::halves(a.as_v4_raw()) + checksum::halves(b.as_v4_raw())
    } else {
        half(a.hi()) + half(a.lo()) + half(b.hi()) + half(b.lo())
    };
    addresses + u16::from_ne_bytes([0, protocol]) as u32 + len.to_be() as u32
}

/// What a TCP segment says, for its reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// As loaded: source low, destination high.
    pub ports: u32,
    /// Sequence number, host byte order.
    pub seq: u32,
    /// Acknowledgement number, host byte order.
    pub ack: u32,
    /// Its flags.
    pub flags: u8,
    /// Bytes of payload.
    pub len: u16,
}

/// The reset that answers a segment; `pseudo`: sum over the pseudo header. `None`: a reset is not
/// answered.
#[must_use]
#[inline(always)]
pub const fn reset(segment: &Segment, pseudo: u32) -> Option<[u8; 20]> {
    const FIN: u8 = 1;
    const RST: u8 = 4;
    if segment.flags & RST != 0 {
        return None;
    }
    let (seq, ack, flags) = if segment.flags & tcp_flags::ACK != 0 {
        (segment.ack, 0, RST)
    } else {
        let syn = (segment.flags & tcp_flags::SYN != 0) as u32;
        let fin = (segment.flags & FIN != 0) as u32;
        let ack = segment.seq.wrapping_add(segment.len as u32).wrapping_add(syn + fin);
        (0, ack, RST | tcp_flags::ACK)
    };
    let p = segment.ports.rotate_left(16).to_ne_bytes();
    let (s, a) = (seq.to_be_bytes(), ack.to_be_bytes());
    let sum = (pseudo & 0xffff)
        + (pseudo >> 16)
        + checksum::halves(segment.ports)
        + checksum::halves(u32::from_ne_bytes(s))
        + checksum::halves(u32::from_ne_bytes(a))
        + u16::from_ne_bytes([0x50, flags]) as u32;
    let [c0, c1] = (!checksum::fold(sum)).to_ne_bytes();
    Some([
        p[0], p[1], p[2], p[3], s[0], s[1], s[2], s[3], a[0], a[1], a[2], a[3], 0x50, flags, 0, 0,
        c0, c1, 0, 0,
    ])
}

/// Whether anything may be sent to this address: RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e).
#[must_use]
#[inline(always)]
pub const fn may_answer<const V4: bool>(client: Addr) -> bool {
    let [first, ..] =
        if V4 { client.as_v4_raw().to_ne_bytes() } else { (client.hi() as u32).to_ne_bytes() };
    if V4 {
        first != 0 && first != 127 && first < 224
    } else {
        // Neither multicast, nor unspecified, loopback or IPv4-mapped.
        first != 0xff && client.hi() != 0
    }
}

/// Whether one more answer may be sent at `now` (nanoseconds): returns what to keep for the next
/// decision. The kept number is the time at which all allowance is used up until then (a virtual
/// schedule, ITU-T I.371).
#[must_use]
#[inline(always)]
pub const fn allow(kept: u64, now: u64) -> Option<u64> {
    allow_at(kept, now, ANSWER_INTERVAL_NS, ANSWER_BURST)
}

/// The same for one in `interval`, of whatever unit of time `now` is in, and `burst` at once.
#[must_use]
#[inline(always)]
pub const fn allow_at(kept: u64, now: u64, interval: u64, burst: u64) -> Option<u64> {
    let due = if kept > now { kept } else { now };
    if due - now > burst * interval {
        return None;
    }
    Some(due + interval)
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn ones(sum: u32) -> bool {
        checksum::fold((sum & 0xffff) + (sum >> 16)) == 0xffff
    }

    proptest! {
        #[test]
        fn headers_have_right_checksums(src: u32, dst: u32, len in 0u16..1500, sum: u32, mtu: u16) {
            prop_assert!(ones(checksum::sum(&ip4(src, dst, 1, len))));
            let icmp = Icmp::frag_needed(mtu).header(sum);
            let total = u64::from(checksum::sum(&icmp)) + u64::from(sum);
            let total = (total & 0xffff_ffff) + (total >> 32);
            prop_assert!(ones(((total & 0xffff) + (total >> 16)) as u32));
        }

        #[test]
        fn resets_have_right_checksums(src: [u8; 16], dst: [u8; 16], ports: u32, seq: u32, ack: u32, flags: u8, len in 0u16..1500) {
            let (a, b) = (Addr::from_bytes(src), Addr::from_bytes(dst));
            let segment = Segment { ports, seq, ack, flags, len };
            for (sum, v4) in [(pseudo::<true>(a, b, 6, 20), true), (pseudo::<false>(a, b, 6, 20), false)] {
                let Some(tcp) = reset(&segment, sum) else {
                    prop_assert!(flags & 4 != 0);
                    continue;
                };
                let mut whole = [0u8; 60];
                if v4 {
                    whole[..4].copy_from_slice(&src[12..]);
                    whole[4..8].copy_from_slice(&dst[12..]);
                } else {
                    whole[..16].copy_from_slice(&src);
                    whole[16..32].copy_from_slice(&dst);
                }
                (whole[33], whole[35]) = (6, 20);
                whole[40..].copy_from_slice(&tcp);
                prop_assert!(ones(checksum::sum(&whole)));
            }
        }
    }

    #[test]
    fn numbers_of_a_reset() {
        let syn = Segment { ports: 0x5000_409c, seq: 7, ack: 0, flags: 2, len: 0 };
        let tcp = reset(&syn, 0).unwrap();
        assert_eq!(tcp[..4], 0x409c_5000u32.to_ne_bytes());
        assert_eq!(tcp[4..12], [0, 0, 0, 0, 0, 0, 0, 8]);
        assert_eq!(tcp[13], 0x14);
        let ack = Segment { flags: 0x10, ack: 9, len: 100, ..syn };
        let tcp = reset(&ack, 0).unwrap();
        assert_eq!((&tcp[4..12], tcp[13]), (&[0, 0, 0, 9, 0, 0, 0, 0][..], 4));
    }

    #[test]
    fn who_is_answered() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        for (text, may) in [("0.0.0.1", false), ("127.0.0.1", false), ("224.0.0.1", false)] {
            assert_eq!(may_answer::<true>(addr(text)), may, "{text}");
        }
        assert!(may_answer::<true>(addr("198.51.100.7")));
        for (text, may) in [("::", false), ("::1", false), ("ff02::1", false), ("fe80::1", true)] {
            assert_eq!(may_answer::<false>(addr(text)), may, "{text}");
        }
    }

    #[test]
    fn a_burst_then_the_rate() {
        let (mut kept, mut sent) = (0, 0);
        let start = 1_000_000_000_000;
        while let Some(next) = allow(kept, start) {
            kept = next;
            sent += 1;
        }
        assert_eq!(sent, ANSWER_BURST + 1);
        assert_eq!(allow(kept, start + ANSWER_INTERVAL_NS / 2), None);
        assert!(allow(kept, start + ANSWER_INTERVAL_NS).is_some());
    }
}
