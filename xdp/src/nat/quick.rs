//! Segments and datagrams of connections that stand, in the first program: nearly all that are translated.
//!
//! Taken here is what changes nothing but the packet itself: no tags, options or extension headers; one family; a ring
//! slot that is settled; a connection whose use need not be noted. Of IPv4 it is known by its row
//! ([`abi::nat::quick`]); where it can have none, or that has no path, and of IPv6, by an entry that is where it nearly
//! always is. All else goes on to the programs behind, which begin anew, and write rows.

use abi::{
    addr::Addr,
    nat::{
        self, Entries as _, To,
        quick::{self, Path, Paths as _, Row, Search},
    },
    pick::{self, Tables as _},
    table::{Backend, Egress, Frontend, Way},
    wire::{Ip, Transport, protocol},
};

use super::{L3, back, flags, forth, header, rows, write};
use crate::{
    maps::{self, Maps},
    packet::Packet,
    pipeline::End,
    stage::service,
};

/// Sends a client's packet, which is what its headers say and may go on, to its backend, and counts it. `None`: nothing
/// has been done.
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
    let (udp, bytes) = (ip.protocol == protocol::UDP, packet.arrived());
    // Not wanted before all else is known; but that is what most packets wait for.
    let first = if V4 { quick::first(&Maps, hash) } else { Row::NONE };
    let (backend_row, backend) = pick::settled(&Maps, frontend.ring(), hash)?;
    let hop = backend.hop();
    // Where there is no way out, no packet fits.
    let egress = maps::egress_of(hop);
    if hop.is_v4() != V4 || packet.rest::<L3, V4>().ok()?.total > egress.mtu() {
        return None;
    }
    let flags = flags(packet, L3 + header::<V4>(), udp)?;
    if !rows::goes_on(udp, flags) {
        return None;
    }
    let link = forth::link(packet, 0).ok()?;
    let way = (backend_row, backend, egress);
    let mut by_row = None;
    if V4 {
        let of = quick::client(ip.src.as_v4_raw(), transport.ports as u16);
        match quick::find(&Maps, hash, of, first, maps::seconds) {
            Search::Row(found) if found.path() != 0 => {
                by_row = Some(row_forth(
                    ip,
                    transport.ports,
                    udp,
                    (hash, link),
                    (row, frontend),
                    way,
                    found,
                )?);
            }
            Search::Room if rows::names(frontend, transport.dst_port(), udp) => return None,
            Search::Row(_) | Search::Room | Search::Full => {}
        }
    }
    let to = match by_row {
        Some(to) => to,
        None => {
            let (flow, address) = forth::sought(ip, transport.ports, udp, hash, frontend, way)?;
            let found = nat::first(&Maps, &flow, maps::nat_ports());
            if !found.is_entry() {
                return None;
            }
            let entry = Maps.entry(found.index())?;
            if entry.link() != link || !entry.stamp().goes_on(udp, flags, maps::seconds()) {
                return None;
            }
            forth::to(address, backend, flow.target(), found)
        }
    };
    write::translate::<V4>(packet, udp, &to, (hop.to_word(), egress.src_mac_word()))?;
    let cpu = maps::cpu();
    maps::count_found(cpu, row, backend_row, bytes, false);
    Some(service::send(packet, egress.ifindex(), cpu, bytes))
}

/// What a client's packet says at its backend by the row of its connection. `None`: it is of another one, or the use of the
/// connection is to be noted.
#[inline(always)]
fn row_forth(
    ip: &Ip,
    ports: u32,
    udp: bool,
    (hash, link): (u64, u64),
    (row, frontend): (u32, &Frontend),
    (backend_row, backend, egress): (u32, &Backend, &Egress),
    found: Row,
) -> Option<To> {
    let address_row = egress.nat(true, hash)?;
    let target = forth::target(frontend, ports);
    let own = Path::new(
        link,
        (backend_row, backend.epoch()),
        (row, address_row, target),
        quick::client(ip.dst.as_v4_raw(), (ports >> 16) as u16),
        udp,
        0,
    );
    if !Maps.path(found.path()).is(&own) || !found.is_current(udp, maps::seconds()) {
        return None;
    }
    let src = maps::nat_address(address_row)?;
    let port = maps::nat_ports().candidate(hash, found.candidate());
    let ports = u32::from(port.to_be()) | u32::from(target) << 16;
    Some(To { src, dst: backend.addr(), ports })
}

/// Sends a backend's packet to the client, and counts it. `None`: nothing has been done.
#[inline(always)]
pub(crate) fn to_client<const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    transport: &Transport,
) -> Option<End> {
    let (udp, bytes) = (ip.protocol == protocol::UDP, packet.arrived());
    let asked = back::asked(ip.src, ip.dst, transport.ports, udp)?;
    service::sendable::<L3, V4>(packet, ip.protocol, header::<V4>()).ok()?;
    let flags = flags(packet, L3 + header::<V4>(), udp)?;
    if !rows::goes_on(udp, flags) {
        return None;
    }
    let by_row = if V4 { row_back(ip.src, &asked) } else { None };
    let (link, to) = match by_row {
        Some(found) => found,
        None => {
            let (entry, stamp) = back::found(ip.src, ip.dst, &asked.reply)?;
            let (link, to) = (entry.link(), To::client(entry));
            if entry.client().is_v4() != V4
                || link & Way::TAGGED != 0
                || !stamp.goes_on(udp, flags, maps::seconds())
            {
                return None;
            }
            // Another connection may have taken the place meanwhile.
            if entry.stamp().turn() != stamp.turn() {
                return None;
            }
            (link, to)
        }
    };
    let way = maps::first_way((link >> 48) as u32)?;
    if packet.rest::<L3, V4>().ok()?.total > way.mtu() {
        return None;
    }
    write::translate::<V4>(packet, udp, &to, (Way::mac_of(link), way.mac_word()))?;
    Some(service::send(packet, way.ifindex(), maps::cpu(), bytes))
}

/// What a backend's packet says at its client, and the way there, by the row of its connection; `src`: who sent it.
#[inline(always)]
fn row_back(src: Addr, asked: &back::Asked) -> Option<(u64, To)> {
    let (place, udp) = ((asked.pair, asked.reply.index), asked.reply.udp);
    let ports = (maps::nat_ports(), asked.port);
    let (row, path, link) = quick::reply(&Maps, place, ports, udp, maps::seed())?;
    let backend = Maps.backend(path.backend())?;
    let own = backend.epoch() == path.epoch() && backend.addr() == src;
    if !own || !row.is_current(udp, maps::seconds()) {
        return None;
    }
    let ports = u32::from(path.port()) | u32::from(row.port()) << 16;
    let to = To { src: Addr::v4(path.address()), dst: Addr::v4(row.address()), ports };
    Some((link, to))
}
