//! An encapsulated packet for this machine: take the outer headers off, and let the stack have the
//! rest. IP in IP, GUE and Geneve end at the same addresses.

use abi::{
    checksum,
    outer::{self, GENEVE_PORT, GUE_PORT, PROTO_IPV4, PROTO_IPV6},
    pick,
    reason::Reason,
    table::{FrontendKey, Kind},
    wire::{Eth, Frame, Ip, Ports, Udp, Word, ethertype, protocol},
};

use crate::{
    maps::Maps,
    packet::Packet,
    stage::{
        forward::{mac_word, split},
        service::is_among,
    },
};

/// What stands behind the outer IP header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tunnel {
    Ip,
    Gue,
    Geneve,
    None,
}

/// Which encapsulation it is, if any, by the protocol and the UDP port.
#[inline(always)]
pub(crate) fn tunnel<const L3: usize>(packet: &Packet, ip: &Ip) -> Tunnel {
    match ip.protocol {
        PROTO_IPV4 | PROTO_IPV6 => Tunnel::Ip,
        protocol::UDP if !ip.fragment => match packet.header::<Ports>(L3 + ip.header) {
            Some(ports) => {
                let [_, _, high, low] = ports.both();
                match u16::from_be_bytes([high, low]) {
                    GUE_PORT => Tunnel::Gue,
                    GENEVE_PORT => Tunnel::Geneve,
                    _ => Tunnel::None,
                }
            }
            None => Tunnel::None,
        },
        _ => Tunnel::None,
    }
}

/// `None`: not for an address of this machine at which tunnels end. The packet is then untouched.
#[inline(always)]
pub(crate) fn run<const L3: usize>(packet: &mut Packet, ip: &Ip, tunnel: Tunnel) -> Option<Reason> {
    let (_, frontend) = pick::frontend(&Maps, &FrontendKey::decap(ip.dst))?;
    if frontend.kind() != Kind::Decap || ip.fragment {
        return None;
    }
    if frontend.ranges() != 0 {
        // Whose packets are taken is looked up by the second program.
        return Some(Reason::TunnelSourceRefused);
    }
    Some(match strip::<L3>(packet, ip, tunnel) {
        Ok(()) => Reason::Decapsulated,
        Err(reason) => reason,
    })
}

/// The same where packets are taken from some senders alone, and for such a packet.
#[inline(always)]
pub(crate) fn restricted<const L3: usize>(packet: &mut Packet, ip: &Ip, tunnel: Tunnel) -> Reason {
    let Some((_, frontend)) = pick::frontend(&Maps, &FrontendKey::decap(ip.dst)) else {
        return Reason::TunnelSourceRefused;
    };
    let sources = frontend.ranges();
    if sources != 0 && !is_among(sources, ip.src) {
        return Reason::TunnelSourceRefused;
    }
    match strip::<L3>(packet, ip, tunnel) {
        Ok(()) => Reason::Decapsulated,
        Err(reason) => reason,
    }
}

/// Bytes between the outer IP header and the inner one.
///
/// # Errors
/// [`Reason::BadInner`] for anything that a receiver must not ignore and that we do not know.
#[inline(always)]
fn shim<const L3: usize>(packet: &Packet, ip: &Ip, tunnel: Tunnel) -> Result<usize, Reason> {
    const UDP: usize = size_of::<Udp>();
    let at = L3 + ip.header + UDP;
    match tunnel {
        Tunnel::Gue => {
            let [first, _, flags @ ..] = packet.header::<Ports>(at).ok_or(Reason::BadInner)?.both();
            match (first >> 6, first, flags) {
                // Variant 1: an IP header follows at once.
                (1, _, _) => Ok(UDP),
                (_, 0, [0, 0]) => Ok(UDP + 4),
                // Private data, perhaps of the kind that another program knows.
                (_, 1..=31, [0, 0]) => Err(Reason::SecondChance),
                _ => Err(Reason::BadInner),
            }
        }
        Tunnel::Geneve => {
            // Version, length of options; control packet, critical options.
            let [first, second, ..] = packet.header::<Word>(at).ok_or(Reason::BadInner)?.value();
            if first >> 6 != 0 || second & 0xc0 != 0 {
                return Err(Reason::BadInner);
            }
            Ok(UDP + 8 + (first as usize & 0x3f) * 4)
        }
        _ => Ok(0),
    }
}

/// What the header before the inner one says about it: the ethertype.
#[inline(always)]
fn announced<const L3: usize>(packet: &Packet, ip: &Ip, tunnel: Tunnel) -> Option<[u8; 2]> {
    let at = L3 + ip.header + size_of::<Udp>();
    let protocol = match tunnel {
        Tunnel::Geneve => {
            let [_, _, high, low, ..] = packet.header::<Word>(at)?.value();
            return Some([high, low]);
        }
        Tunnel::Gue => {
            let [first, protocol, ..] = packet.header::<Ports>(at)?.both();
            match first >> 4 {
                4 => PROTO_IPV4,
                6 => PROTO_IPV6,
                _ => protocol,
            }
        }
        _ => ip.protocol,
    };
    match protocol {
        PROTO_IPV4 => Some(ethertype::IPV4),
        PROTO_IPV6 => Some(ethertype::IPV6),
        _ => None,
    }
}

#[inline(always)]
fn strip<const L3: usize>(packet: &mut Packet, ip: &Ip, tunnel: Tunnel) -> Result<(), Reason> {
    let outer = ip.header + shim::<L3>(packet, ip, tunnel)?;
    strip_at::<L3>(packet, ip, tunnel, outer)
}

/// The same, when `outer` bytes stand in front of the inner header.
#[inline(always)]
pub(crate) fn strip_at<const L3: usize>(
    packet: &mut Packet,
    ip: &Ip,
    tunnel: Tunnel,
    outer: usize,
) -> Result<(), Reason> {
    if !packet.holds(L3 + ip.total as usize) {
        return Err(Reason::BadLength);
    }
    let e = announced::<L3>(packet, ip, tunnel).ok_or(Reason::BadInner)?;
    let inner = L3 + outer;
    // Its first eight bytes; the shortest header has more.
    let head = packet.header::<Word>(inner).ok_or(Reason::BadInner)?.value();
    let words = usize::from(head[0] & 15);
    let (least, len, tos) = match (e, head[0] >> 4) {
        (ethertype::IPV4, 4) if words >= 5 => {
            (words * 4, usize::from(u16::from_be_bytes([head[2], head[3]])), head[1])
        }
        (ethertype::IPV6, 6) => {
            (40, 40 + usize::from(u16::from_be_bytes([head[4], head[5]])), head[1] >> 4)
        }
        _ => return Err(Reason::BadInner),
    };
    if len < least || (ip.total as usize) < outer + len {
        return Err(Reason::BadInner);
    }
    let ecn = outer::ecn(tos, ip.tos).ok_or(Reason::CongestedInner)?;

    let link = packet.header::<Eth>(0).ok_or(Reason::Truncated)?;
    let (dst, src) = (split(link.dst()), split(link.src()));
    let tags = packet.tags::<L3>().ok_or(Reason::Truncated)?;
    packet.grow_head(-(outer as i32))?;
    packet.put_link::<L3>(mac_word(dst), mac_word(src), tags, e).ok_or(Reason::AdjustFailed)?;
    if ecn != tos & 3 {
        mark::<L3>(packet, e, ecn).ok_or(Reason::AdjustFailed)?;
    }
    Ok(())
}

/// Sets the ECN bits of the IP header.
#[inline(always)]
fn mark<const L3: usize>(packet: &mut Packet, e: [u8; 2], ecn: u8) -> Option<()> {
    if e != ethertype::IPV4 {
        let h = packet.bytes_mut::<2>(L3)?;
        h[1] = h[1] & !0x30 | ecn << 4;
        return Some(());
    }
    let h = packet.bytes_mut::<12>(L3)?;
    let old = u16::from_ne_bytes([h[0], h[1]]);
    h[1] = h[1] & !3 | ecn;
    let new = u16::from_ne_bytes([h[0], h[1]]);
    let check = checksum::replace(u16::from_ne_bytes([h[10], h[11]]), old, new).to_ne_bytes();
    h[10] = check[0];
    h[11] = check[1];
    Some(())
}
