//! From a backend to the client.

use abi::{
    nat::{self, Reply, Side},
    pick::{self, Tables as _},
    reason::Reason,
    table::{FrontendKey, Kind},
    wire::Ip,
};

use super::{L3, Segment, forth::nat_note, header, write};
use crate::{
    maps::{self, Maps},
    packet::Packet,
    stage::{forward::put_macs, service},
};

#[inline(always)]
pub(super) fn run<const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    segment: Segment,
) -> Result<Reason, Reason> {
    let Segment { ports, flags, udp } = segment;
    let port = u16::from_be((ports >> 16) as u16);
    if !maps::nat_ports().has(port) {
        return Err(nobody(ip));
    }
    let pair = nat::pair(ip.src, ports as u16, ip.dst, udp, maps::seed());
    let asked = Reply { index: nat::place(pair, port), ports, udp };
    let Some((entry, stamp)) = nat::reply(&Maps, &asked) else { return Err(nobody(ip)) };
    let backend = Maps.backend(entry.backend()).ok_or(Reason::NatPassed)?;
    let address = maps::nat_address(stamp.address()).ok_or(Reason::NatPassed)?;
    let own = backend.epoch() == entry.epoch() && backend.addr() == ip.src && address == ip.dst;
    if !own {
        return Err(nobody(ip));
    }
    service::sendable::<L3>(packet, ip, header::<V4>())?;
    let link = entry.link();
    let way = maps::way((link >> 48) as u32).ok_or(Reason::NoNextHop)?;
    if ip.total > way.mtu() {
        return Err(Reason::TooBig);
    }
    let to = write::To {
        src: entry.vip(),
        dst: entry.client(),
        ports: (entry.ports() as u32).rotate_left(16),
    };
    if to.dst.is_v4() != V4 {
        return Err(Reason::NatRefused);
    }
    // Another connection may have taken the place meanwhile.
    if entry.stamp().turn() != stamp.turn() {
        return Err(nobody(ip));
    }
    let now = maps::seconds();
    if nat::changes(entry, Side::Backend, flags, now) {
        let what = u64::from(flags) | (Side::Backend as u64) << 8;
        nat_note(u64::from(asked.index), what, u64::from(now));
    }

    write::translate::<V4>(packet, ip, &segment, &to)?;
    let place = packet.bytes_mut::<12>(0).ok_or(Reason::AdjustFailed)?;
    put_macs(place, (link as u32, (link >> 32) as u16), way.mac());
    Ok(packet.send(way.ifindex()))
}

/// Not of a connection that is translated: the host's, unless the address is also a VIP.
#[inline(always)]
fn nobody(ip: &Ip) -> Reason {
    match pick::frontend(&Maps, &FrontendKey::vip(ip.dst)) {
        Some((_, row)) if row.kind() == Kind::Vip => Reason::NoService,
        _ => Reason::NatPassed,
    }
}
