//! An encapsulated packet for this machine: take the outer header off, and let the stack have the
//! rest.

use abi::{
    outer::{PROTO_IPV4, PROTO_IPV6},
    pick,
    reason::Reason,
    table::{FrontendKey, Kind},
    wire::{Byte, Eth, Frame, Ip, ethertype},
};

use crate::{maps::Maps, packet::Packet, stage::forward::split};

/// Whether an IP protocol is one that we take off.
#[inline(always)]
pub(crate) const fn is_tunnel(protocol: u8) -> bool {
    protocol == PROTO_IPV4 || protocol == PROTO_IPV6
}

/// `None`: not for an address of this machine at which tunnels end. The packet is then untouched.
#[inline(always)]
pub(crate) fn run<const L3: usize>(packet: &mut Packet, ip: &Ip) -> Option<Reason> {
    let key = FrontendKey::raw(ip.dst, 0, ip.protocol);
    let (_, frontend) = pick::frontend(&Maps, &key)?;
    if frontend.kind() != Kind::Decap {
        return None;
    }
    if ip.fragment {
        return None;
    }
    Some(match strip::<L3>(packet, ip) {
        Ok(()) => Reason::Decapsulated,
        Err(reason) => reason,
    })
}

#[inline(always)]
fn strip<const L3: usize>(packet: &mut Packet, ip: &Ip) -> Result<(), Reason> {
    if !packet.holds(L3 + ip.total as usize) {
        return Err(Reason::BadLength);
    }
    let inner = L3 + ip.header;
    let first = packet.header::<Byte>(inner).ok_or(Reason::BadInner)?.value()[0];
    let (e, shortest) = match (ip.protocol, first >> 4) {
        (PROTO_IPV4, 4) => (ethertype::IPV4, 20),
        (PROTO_IPV6, 6) => (ethertype::IPV6, 40),
        _ => return Err(Reason::BadInner),
    };
    if (ip.total as usize) < ip.header + shortest {
        return Err(Reason::BadInner);
    }

    let link = packet.header::<Eth>(0).ok_or(Reason::Truncated)?;
    let (dst, src) = (split(link.dst()), split(link.src()));
    let tags = packet.tags::<L3>().ok_or(Reason::Truncated)?;
    packet.grow_head(-(ip.header as i32))?;
    packet.put_link::<L3>(dst, src, tags, e).ok_or(Reason::AdjustFailed)
}
