//! What lies above an IP header when it does not follow at once: behind IPv6 extension headers, in a
//! fragment, or inside an ICMP error. For rare packets; the usual ones never come here.

use crate::{
    hash::Tuple,
    limits::MAX_EXTENSIONS,
    wire::{self, Byte, Eth, Frame, Ip, Ipv4, Ports, Vlan, Word, ethertype, protocol},
};

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Identification, as it stands in the header.
    pub id: u32,
    /// Where it begins in the datagram, in units of 8 bytes.
    pub offset: u16,
    /// Others follow.
    pub more: bool,
}

impl Piece {
    /// All of it.
    pub const WHOLE: Self = Self { id: 0, offset: 0, more: false };

    /// Whether it is only a part.
    #[inline(always)]
    #[must_use]
    pub const fn is_part(&self) -> bool {
        self.more || self.offset != 0
    }

    /// From the field of an IPv4 header: flags and offset.
    #[inline(always)]
    #[must_use]
    pub const fn v4(id: [u8; 2], field: [u8; 2]) -> Self {
        let field = u16::from_be_bytes(field);
        Self {
            id: u16::from_ne_bytes(id) as u32,
            offset: field & 0x1fff,
            more: field & 0x2000 != 0,
        }
    }
}

/// The header above IP's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    /// Its protocol.
    pub protocol: u8,
    /// Where it begins in the frame. In a later fragment: where its bytes go on.
    pub at: usize,
    /// Which part of the datagram the packet is.
    pub piece: Piece,
}

/// The IP header of a frame, behind at most two VLAN tags, and what is above it, as far as that is there. `None`: it
/// is no IP packet, or cut short.
pub fn of_frame(frame: &[u8]) -> Option<(Ip, Option<Upper>)> {
    let (mut l3, mut kind) = (14, frame.header::<Eth>(0)?.ethertype());
    while ethertype::is_vlan(kind) && l3 < 22 {
        kind = frame.header::<Vlan>(l3)?.ethertype();
        l3 += 4;
    }
    match kind {
        ethertype::IPV4 => Some((wire::ipv4(frame, l3)?, v4(frame, l3))),
        ethertype::IPV6 => Some((wire::ipv6(frame, l3)?, v6(frame, l3))),
        _ => None,
    }
}

/// Above the IPv4 header at `l3`. `None`: it is cut short.
#[inline(always)]
pub fn v4(frame: &(impl Frame + ?Sized), l3: usize) -> Option<Upper> {
    let h: &Ipv4 = frame.header(l3)?;
    let [version_ihl] = h.version_ihl();
    if version_ihl >> 4 != 4 || version_ihl & 15 < 5 {
        return None;
    }
    Some(Upper {
        protocol: h.ttl_protocol()[1],
        at: l3 + (version_ihl as usize & 15) * 4,
        piece: Piece::v4(h.id(), h.fragment()),
    })
}

/// Above the IPv6 header at `l3`, behind at most [`MAX_EXTENSIONS`] extension headers (RFC 8200
/// section 4, RFC 4302). `None`: it is cut short, or there are more.
#[inline(always)]
pub fn v6(frame: &(impl Frame + ?Sized), l3: usize) -> Option<Upper> {
    walk::<false>(frame, l3)
}

/// The same of a packet whose addresses may change: `None` also when one is covered by a header on the way
/// (authentication), or is not the last one (routing). A fragment's headers end with the one that says so: what is
/// behind it is a part of what was cut.
#[inline(always)]
pub fn v6_translatable(frame: &(impl Frame + ?Sized), l3: usize) -> Option<Upper> {
    walk::<true>(frame, l3)
}

#[inline(always)]
fn walk<const STRICT: bool>(frame: &(impl Frame + ?Sized), l3: usize) -> Option<Upper> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let ip = wire::ipv6(frame, l3)?;
    let mut upper = Upper { protocol: ip.protocol, at: l3 + 40, piece: Piece::WHOLE };
    let mut walked = 0;
    while walked <= MAX_EXTENSIONS {
        // Binary logarithm of the units that its length is in: the verifier of Linux 6.1 bounds no products.
        let units = match upper.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => 3u32,
            AUTHENTICATION => 2,
            protocol::FRAGMENT6 => 0,
            _ => return Some(upper),
        };
        let head = frame.header::<Ports>(upper.at)?.both();
        let fixed = upper.protocol == AUTHENTICATION || (upper.protocol == ROUTING && head[3] != 0);
        if STRICT && fixed {
            return None;
        }
        if units == 0 {
            let [_, _, _, _, id @ ..] = frame.header::<Word>(upper.at)?.value();
            let field = u16::from_be_bytes([head[2], head[3]]);
            upper.piece =
                Piece { id: u32::from_ne_bytes(id), offset: field >> 3, more: field & 1 != 0 };
            upper.at += 8;
        } else {
            // Length in units less 8 bytes, for either unit.
            upper.at += 8 + ((head[1] as usize) << (units & 3));
        }
        upper.protocol = head[0];
        if upper.piece.offset != 0 || (STRICT && upper.piece.more) {
            return Some(upper);
        }
        walked += 1;
    }
    None
}

/// Whether the IPv4 header at `l3`, of so many bytes, has a source route with something left to go (RFC 791 section
/// 3.1). `forget` gives back what it is given: by way of memory, where a verifier would follow every number.
#[inline(always)]
pub fn is_source_routed(
    frame: &(impl Frame + ?Sized),
    l3: usize,
    header: usize,
    forget: impl Fn(usize) -> usize,
) -> bool {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;

    let (mut at, mut looked) = (20, 0);
    while looked < 40 {
        let here = forget(at);
        let byte = |n: usize| frame.header::<Byte>(l3 + here + n).map(|byte| byte.value()[0]);
        if here >= header {
            return false;
        }
        let (kind, len) = match (byte(0), byte(1)) {
            (None | Some(END), _) => return false,
            (Some(NOTHING), _) => (NOTHING, 1),
            (Some(kind), len) => (kind, len.unwrap_or(0)),
        };
        if kind == LOOSE || kind == STRICT {
            return byte(2).is_none_or(|pointer| pointer <= len);
        }
        let next = here + len as usize;
        if len == 0 || next > header {
            return false;
        }
        at = next;
        looked += 1;
    }
    false
}

/// The flow, from client to VIP, whose reply the ICMP error `error` brings back: `inner` and `upper`
/// are what that reply says. `None`: no TCP, UDP or SCTP of `error`'s destination, or its ports are not there.
#[inline(always)]
pub fn embedded(
    frame: &(impl Frame + ?Sized),
    error: &Ip,
    inner: &Ip,
    upper: &Upper,
) -> Option<Tuple> {
    let ours = inner.src.lo() == error.dst.lo() && inner.src.hi() == error.dst.hi();
    let flow = matches!(upper.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
    if !ours || !flow || upper.piece.offset != 0 {
        return None;
    }
    // RFC 792: eight bytes of the transport header are there at least; ports are the first four.
    let ports = u32::from_ne_bytes(frame.header::<Ports>(upper.at)?.both());
    Some(Tuple {
        src: inner.dst,
        dst: inner.src,
        ports: ports.rotate_left(16),
        protocol: upper.protocol,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet6(chain: &[u8]) -> [u8; 160] {
        let mut b = [0u8; 160];
        b[0] = 0x60;
        b[6] = chain[0];
        b[40..40 + chain.len() - 1].copy_from_slice(&chain[1..]);
        b
    }

    #[test]
    fn extension_headers_are_walked_over() {
        // Hop-by-hop of 8 bytes, destination options of 16, TCP.
        let mut chain = [0u8; 25];
        chain[0] = 0;
        (chain[1], chain[2]) = (60, 0);
        (chain[9], chain[10]) = (6, 1);
        let upper = v6(&packet6(&chain)[..], 0).unwrap();
        assert_eq!((upper.protocol, upper.at, upper.piece), (6, 64, Piece::WHOLE));
    }

    #[test]
    fn addresses_that_may_not_change() {
        for (header, left, may) in [(0, 1, true), (43, 0, true), (43, 1, false), (51, 1, false)] {
            // A header of 8 bytes (authentication: 12), and TCP.
            let b = packet6(&[header, 6, 0, 0, left]);
            let at = v6(&b[..], 0).unwrap().at;
            assert_eq!(at, 48);
            assert_eq!(v6_translatable(&b[..], 0).is_some(), may, "{header} {left}");
        }
    }

    #[test]
    fn a_part_has_no_further_headers() {
        // Destination options in the first fragment, and in a fragment that is all of its datagram.
        for (field, translatable) in [(1, (60, 48)), (0, (6, 56))] {
            let mut chain = [0u8; 17];
            chain[0] = 44;
            (chain[1], chain[4], chain[9]) = (60, field, 6);
            let b = packet6(&chain);
            let of = |upper: Option<Upper>| upper.map(|upper| (upper.protocol, upper.at));
            assert_eq!(of(v6(&b[..], 0)), Some((6, 56)));
            assert_eq!(of(v6_translatable(&b[..], 0)), Some(translatable));
        }
    }

    #[test]
    fn source_routes() {
        let routed = |options: &[u8]| {
            let mut b = [0u8; 60];
            b[20..20 + options.len()].copy_from_slice(options);
            // As the program bounds it.
            is_source_routed(&b[..], 0, 20 + options.len().next_multiple_of(4), |at| at & 63)
        };
        for kind in [131, 137] {
            assert!(routed(&[kind, 7, 4, 10, 0, 0, 1]));
            assert!(routed(&[1, kind, 7, 7, 10, 0, 0, 1]), "the last address");
            assert!(routed(&[148, 4, 0, 0, kind, 7, 4, 10, 0, 0, 1]), "behind a router alert");
            assert!(!routed(&[kind, 7, 8, 10, 0, 0, 1, 0]), "nothing is left");
            assert!(!routed(&[0, kind, 7, 4]), "behind the end");
            assert!(!routed(&[148, 0, kind, 4]), "a length of nothing");
        }
        assert!(
            !routed(&[148, 66, 131, 7, 4, 0, 0, 0]),
            "a length beyond the header, and round to 131"
        );
        for other in [&[][..], &[1, 1, 1, 0], &[7, 7, 4, 10, 0, 0, 1], &[1; 40], &[148, 200, 0, 0]]
        {
            assert!(!routed(other), "{other:?}");
        }
        assert!(is_source_routed(&[131, 3][..], 0, 22, |at| at - 20), "cut short");
    }

    #[test]
    fn pieces() {
        // The second fragment of UDP: nothing behind it is a header.
        let b = packet6(&[44, 17, 0, 0x05, 0xa9, 1, 2, 3, 4, 60, 60, 60]);
        let upper = v6(&b[..], 0).unwrap();
        let id = u32::from_ne_bytes([1, 2, 3, 4]);
        assert_eq!(upper.piece, Piece { id, offset: 0x5a8 / 8, more: true });
        assert_eq!((upper.protocol, upper.at), (17, 48));
        assert!(!Piece::v4([0, 9], [0x40, 0]).is_part(), "don't fragment");
        assert!(Piece::v4([0, 9], [0x20, 0]).is_part());
        assert!(Piece::v4([0, 9], [0, 1]).is_part());
    }

    #[test]
    fn too_many_extension_headers() {
        let mut chain = [0u8; 100];
        for n in 0..12 {
            chain[1 + n * 8] = 0;
        }
        assert_eq!(v6(&packet6(&chain)[..], 0), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..120), at in 0usize..130) {
            let _ = v4(&bytes[..], at);
            let _ = is_source_routed(&bytes[..], at, 60, |at| at);
            if let Some(upper) = v6(&bytes[..], at) {
                prop_assert!(upper.at >= at + 40);
            }
        }
    }
}
