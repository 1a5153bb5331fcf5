//! From a backend to the client.

use abi::{
    nat::{self, Reply, Side},
    pick::{self, Tables as _},
    reason::Reason,
    table::{FrontendKey, Kind},
    wire::Ip,
};

use super::{Segment, forth::nat_note, whole, write};
use crate::{
    maps::{self, Maps},
    packet::Packet,
    stage::forward::split,
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
    whole::<V4>(packet, ip)?;
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
    let src = split(way.mac());
    place[0..4].copy_from_slice(&(link as u32).to_ne_bytes());
    place[4..6].copy_from_slice(&((link >> 32) as u16).to_ne_bytes());
    place[6..10].copy_from_slice(&src.0.to_ne_bytes());
    place[10..12].copy_from_slice(&src.1.to_ne_bytes());
    Ok(write::send(packet, way.ifindex()))
}

/// Not of a connection that is translated: the host's, unless the address is also a VIP.
#[inline(always)]
fn nobody(ip: &Ip) -> Reason {
    match pick::frontend(&Maps, &FrontendKey::vip(ip.dst)) {
        Some((_, row)) if row.kind() == Kind::Vip => Reason::NoService,
        _ => Reason::NatPassed,
    }
}
