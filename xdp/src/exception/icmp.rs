//! ICMP for a VIP: an echo request is answered; an error goes to the backend whose reply it brings
//! back, which every balancer finds by itself.

use abi::{
    checksum,
    reason::Reason,
    upper::{self, Upper},
    wire::{self, Frame, Ip, Word},
};

use crate::{
    maps,
    packet::Packet,
    stage::{forward, service},
};

/// What a message is, by its type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Echo,
    Error,
    Neighbour,
    Other,
}

#[inline(always)]
const fn kind<const V4: bool>(number: u8) -> Kind {
    match (V4, number) {
        (true, 8) | (false, 128) => Kind::Echo,
        // Unreachable, time exceeded, parameter problem.
        (true, 3 | 11 | 12) | (false, 1..=4) => Kind::Error,
        (false, 133..=137) => Kind::Neighbour,
        _ => Kind::Other,
    }
}

#[inline(always)]
pub(crate) fn run<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    upper: &Upper,
    cpu: u32,
) -> Result<Reason, Reason> {
    let message = packet.header::<Word>(upper.at).ok_or(Reason::Truncated)?.value();
    if !packet.holds(L3 + ip.total as usize) || upper.at + 8 > L3 + ip.total as usize {
        return Err(Reason::BadLength);
    }
    match kind::<V4>(message[0]) {
        Kind::Echo => echo::<L3, V4>(packet, ip, upper),
        Kind::Error => error::<L3, V4>(packet, ip, upper, message, cpu),
        Kind::Neighbour => Ok(Reason::NeighbourDiscovery),
        Kind::Other => Err(Reason::VipOtherProtocol),
    }
}

/// The request goes back as the reply: addresses change places, which no checksum notices.
#[inline(always)]
fn echo<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    upper: &Upper,
) -> Result<Reason, Reason> {
    // Options may hold a route, which would have to be turned round.
    if upper.at != L3 + if V4 { 20 } else { 40 } || !abi::reply::may_answer::<V4>(ip.src) {
        return Err(Reason::VipOtherProtocol);
    }
    let at = L3 + if V4 { 20 } else { 40 };
    packet.bound();
    let message = packet.bytes_mut::<4>(at).ok_or(Reason::Truncated)?;
    let old = u16::from_ne_bytes([message[0], message[1]]);
    message[0] = if V4 { 0 } else { 129 };
    let new = u16::from_ne_bytes([message[0], message[1]]);
    let check = checksum::replace(u16::from_ne_bytes([message[2], message[3]]), old, new);
    message[2..4].copy_from_slice(&check.to_ne_bytes());
    packet.turn_round::<L3, V4>(ip).ok_or(Reason::Truncated)?;
    Ok(Reason::EchoAnswered)
}

#[inline(always)]
fn error<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    upper: &Upper,
    message: [u8; 8],
    cpu: u32,
) -> Result<Reason, Reason> {
    // An MTU that no link has: RFC 791, and RFC 8201 section 4. 0 comes from routers older than RFC 1191.
    let mtu = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
    let nonsense = match (V4, message[0], message[1]) {
        (true, 3, 4) => matches!(mtu & 0xffff, 1..68),
        (false, 2, _) => mtu < 1280,
        _ => false,
    };
    if nonsense {
        return Err(Reason::BadIcmp);
    }
    let inside = upper.at + 8;
    let inner = if V4 { wire::ipv4(packet, inside) } else { wire::ipv6(packet, inside) };
    let inner = inner.ok_or(Reason::BadIcmp)?;
    let above = if V4 { upper::v4(packet, inside) } else { upper::v6(packet, inside) };
    let above = above.and_then(|a| maps::forget(&a)).ok_or(Reason::BadIcmp)?;
    let tuple = upper::embedded(packet, ip, &inner, &above).ok_or(Reason::VipOtherProtocol)?;
    if ip.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }

    let transport = wire::Transport { ports: tuple.ports, opening: false };
    // The flow's, not the error's: that comes from anybody.
    let flow = Ip { src: tuple.src, protocol: tuple.protocol, ..*ip };
    let (row, frontend) = service::frontend(&flow, &transport)?;
    service::permit(frontend, tuple.src)?;
    let picked = service::pick_again(&flow, &transport, row)?;
    let bytes = packet.len() as u64;
    let reason = forward::once::<L3, V4>(packet, frontend, picked.backend, picked.entropy)?;
    maps::count_sent(cpu, row, picked.row, bytes, false);
    Ok(reason)
}
