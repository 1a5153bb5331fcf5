//! Segments and datagrams of connections that stand, in the first program: nearly all that are translated.
//!
//! Taken here is what changes nothing but the packet itself: no tags, options or extension headers; one family; a ring
//! slot that is settled; an entry that is where it nearly always is, and need not be written. All else goes on to the
//! programs behind, which begin anew.

use abi::{
    nat::{self, Entries as _, To},
    pick,
    table::{Frontend, Way},
    wire::{Ip, Transport, protocol},
};

use super::{L3, back, flags, forth, header, write};
use crate::{
    maps::{self, Maps},
    packet::Packet,
    pipeline::End,
    stage::{forward, service},
};

/// Sends a client's packet to its backend, and counts it. `None`: nothing has been done.
#[inline(always)]
pub(crate) fn to_backend<const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    transport: &Transport,
    hash: u64,
    (row, frontend): (u32, &Frontend),
) -> Option<End> {
    if frontend.is_special() {
        return None;
    }
    service::sendable::<L3, V4>(packet, ip.protocol, header::<V4>()).ok()?;
    let (udp, bytes) = (ip.protocol == protocol::UDP, packet.arrived());
    let (backend_row, backend) = pick::settled(&Maps, frontend.ring(), hash)?;
    let (hop, egress) = forward::way(backend)?;
    if hop.is_v4() != V4 || packet.rest::<L3, V4>().ok()?.total > egress.mtu() {
        return None;
    }
    let way = (backend_row, backend, egress);
    let (flow, address) = forth::sought(ip, transport.ports, udp, hash, frontend, way)?;
    let found = nat::first(&Maps, &flow, maps::nat_ports());
    if !found.is_entry() {
        return None;
    }
    let entry = Maps.entry(found.index())?;
    let flags = flags(packet, L3 + header::<V4>(), udp)?;
    if entry.link() != forth::link(packet, 0).ok()?
        || !entry.stamp().goes_on(udp, flags, maps::seconds())
    {
        return None;
    }
    let to = forth::to(address, backend, flow.target(), found);
    let macs = ((hop.mac_head(), hop.mac_tail()), egress.src_mac());
    write::translate::<V4>(packet, udp, &to, macs)?;
    let reason = packet.send(egress.ifindex());
    let cpu = maps::cpu();
    maps::count_found(cpu, row, backend_row, bytes, false);
    Some(service::sent_for(cpu, reason, bytes))
}

/// Sends a backend's packet to the client, and counts it. `None`: nothing has been done.
#[inline(always)]
pub(crate) fn to_client<const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    transport: &Transport,
) -> Option<End> {
    let (udp, bytes) = (ip.protocol == protocol::UDP, packet.arrived());
    let (_, entry, stamp) = back::entry(ip.src, ip.dst, transport.ports, udp)?;
    service::sendable::<L3, V4>(packet, ip.protocol, header::<V4>()).ok()?;
    let link = entry.link();
    let way = maps::first_way((link >> 48) as u32)?;
    let flags = flags(packet, L3 + header::<V4>(), udp)?;
    if link & Way::TAGGED != 0
        || entry.client().is_v4() != V4
        || packet.rest::<L3, V4>().ok()?.total > way.mtu()
        || !stamp.goes_on(udp, flags, maps::seconds())
    {
        return None;
    }
    let to = To::client(entry);
    // Another connection may have taken the place meanwhile.
    if entry.stamp().turn() != stamp.turn() {
        return None;
    }
    write::translate::<V4>(packet, udp, &to, (Way::mac_of(link), way.mac()))?;
    Some(service::sent_for(maps::cpu(), packet.send(way.ifindex()), bytes))
}
