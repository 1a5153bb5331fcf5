//! The backend's side: is there a socket for the segment? If not, it goes on to the next backend that it
//! names; what is handed on keeps the balancer's source address.

use abi::{
    chance::{self, Chances},
    checksum,
    outer::{PROTO_IPV4, PROTO_IPV6},
    pick,
    reason::Reason,
    table::{FrontendKey, Kind},
    wire::{self, Frame, Ip, Ports, Udp, Word, protocol},
};

use crate::{
    host::{self, Socket},
    maps::Maps,
    packet::Packet,
    stage::{
        decap::{self, Tunnel},
        forward::mac_word,
    },
};

/// Bytes of the outer IP header; a sender of ours writes no options.
const fn outer<const V4: bool>() -> usize {
    if V4 { 20 } else { 40 }
}

/// Whether it is GUE for this machine.
#[inline(always)]
pub(crate) fn is_for<const L3: usize, const V4: bool>(packet: &Packet, ip: &Ip) -> bool {
    decap::tunnel::<L3>(packet, ip) == Tunnel::Gue
        && pick::frontend(&Maps, &FrontendKey::decap(ip.dst))
            .is_some_and(|(_, frontend)| frontend.kind() == Kind::Decap)
}

/// Its sender has been found to be one that may send it.
#[inline(always)]
pub(crate) fn run<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
) -> Result<Reason, Reason> {
    if ip.header != outer::<V4>() || !packet.holds(L3 + ip.total as usize) {
        return Err(Reason::BadInner);
    }
    let at = L3 + outer::<V4>() + size_of::<Udp>();
    let [first, inner, flags @ ..] = packet.header::<Ports>(at).ok_or(Reason::BadInner)?.both();
    let word = packet.header::<Ports>(at + 4).ok_or(Reason::BadInner)?.both();
    let chances = chance::read(first, word, V4).ok_or(Reason::BadInner)?;
    if flags != [0, 0] {
        return Err(Reason::BadInner);
    }
    let inside = at + chances.skip;
    let elsewhere = chances.taken < chances.hops
        && match inner {
            PROTO_IPV4 => is_strange4(packet, inside),
            PROTO_IPV6 => is_strange6(packet, inside),
            _ => return Err(Reason::BadInner),
        };
    if elsewhere {
        return hand_on::<L3, V4>(packet, ip, &chances);
    }
    decap::strip_at::<L3>(packet, ip, Tunnel::Gue, inside - L3)?;
    Ok(Reason::Decapsulated)
}

/// Whether it is a segment of a connection that this machine does not have. What is not plain TCP is
/// nobody else's.
#[inline(always)]
fn is_strange4(packet: &Packet, inside: usize) -> bool {
    let Some(ip) = wire::ipv4(packet, inside) else { return false };
    if ip.header != 20 || ip.fragment || ip.protocol != protocol::TCP {
        return false;
    }
    let Some(ports) = segment(packet, inside + 20) else { return false };
    host::socket4(packet, &ip, ports, inside) != Socket::Connection
}

#[inline(always)]
fn is_strange6(packet: &Packet, inside: usize) -> bool {
    let Some(ip) = wire::ipv6(packet, inside) else { return false };
    if ip.protocol != protocol::TCP {
        return false;
    }
    let Some(ports) = segment(packet, inside + 40) else { return false };
    host::socket6(packet, &ip, ports, inside) != Socket::Connection
}

/// The ports of a segment that does not open a connection, as they stand in the header.
#[inline(always)]
fn segment(packet: &Packet, at: usize) -> Option<u32> {
    let found = wire::transport(packet, at, protocol::TCP)?;
    (!found.opening).then_some(found.ports)
}

/// Sends the packet to the next backend that it names.
#[inline(always)]
fn hand_on<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    chances: &Chances,
) -> Result<Reason, Reason> {
    if ip.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    let hops = L3 + outer::<V4>() + size_of::<Udp>() + 8;
    let (hi, lo);
    if V4 {
        let hop = packet.header::<Ports>(hops + chances.taken * 4).ok_or(Reason::BadInner)?.both();
        (hi, lo) = (0, u64::from(u32::from_ne_bytes(hop)));
    } else {
        let at = hops + chances.taken * 16;
        hi = u64::from_ne_bytes(packet.header::<Word>(at).ok_or(Reason::BadInner)?.value());
        lo = u64::from_ne_bytes(packet.header::<Word>(at + 8).ok_or(Reason::BadInner)?.value());
    }
    let way = host::way::<V4>(packet, ip, hi, lo)?;

    readdress::<L3, V4>(packet, hi, lo, way.neighbour).ok_or(Reason::BadInner)?;
    if !way.neighbour {
        // The stack forwards it, and finds the neighbour for those that come after it.
        return Ok(Reason::HandedOnByHost);
    }
    let tags = packet.tags::<L3>().ok_or(Reason::Truncated)?;
    let e = if V4 { wire::ethertype::IPV4 } else { wire::ethertype::IPV6 };
    packet
        .put_link::<L3>(mac_word(way.dst), mac_word(way.src), tags, e)
        .ok_or(Reason::AdjustFailed)?;
    packet.redirect(way.ifindex);
    Ok(Reason::HandedOn)
}

/// Writes the new destination, and that one more hop is taken. `hop`: also one less to live; else the stack
/// sees to that.
#[inline(always)]
fn readdress<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    hi: u64,
    lo: u64,
    hop: bool,
) -> Option<()> {
    // One check for all that is written: none of it may fail once something has been.
    const TAKEN: usize = 6;
    if V4 {
        let h = packet.bytes_mut::<{ 20 + 8 + 8 }>(L3)?;
        let dst = lo as u32;
        let old = u32::from_ne_bytes([h[16], h[17], h[18], h[19]]);
        let mut check = u16::from_ne_bytes([h[10], h[11]]);
        check = checksum::replace(check, old as u16, dst as u16);
        check = checksum::replace(check, (old >> 16) as u16, (dst >> 16) as u16);
        if hop {
            let was = u16::from_ne_bytes([h[8], h[9]]);
            h[8] -= 1;
            check = checksum::replace(check, was, u16::from_ne_bytes([h[8], h[9]]));
        }
        h[10..12].copy_from_slice(&check.to_ne_bytes());
        h[16..20].copy_from_slice(&dst.to_ne_bytes());
        h[26..28].fill(0);
        h[28 + TAKEN] += 1;
    } else {
        let h = packet.bytes_mut::<{ 40 + 8 + 8 }>(L3)?;
        if hop {
            h[7] -= 1;
        }
        h[24..32].copy_from_slice(&hi.to_ne_bytes());
        h[32..40].copy_from_slice(&lo.to_ne_bytes());
        h[46..48].fill(0);
        h[48 + TAKEN] += 1;
    }
    Some(())
}
