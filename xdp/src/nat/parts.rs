//! Fragments, and packets with IPv4 options or IPv6 extension headers; both sides' within a family.
//!
//! A program of its own, which decides; [`super::other`] writes. The first fragment of a datagram has the ports: it is
//! translated as any packet, and leaves where it went to in the table of fragments ([`abi::flow::FragmentEntry`]), by
//! which those that follow are.

use abi::{
    checksum::{halves, replace},
    flow::{FragmentEntry, FragmentKey},
    nat::{Entries as _, To, address_sum},
    pick::Tables as _,
    reason::Reason,
    table::Way,
    upper::{self, Upper},
    wire::{self, Frame as _, Ip, Ports, protocol, tcp_flags},
};
use aya_ebpf::bindings::xdp_md;

use super::{
    L3, Onward, Segment, back, decided,
    forth::{self, How},
    opened, parse_at, refuse, steer, write,
};
use crate::{
    behind::{Program, answer},
    maps::{self, Maps},
    packet::Packet,
    stage::{forward::put_macs, service},
};

/// The program.
pub(crate) struct NatParts;

impl Program for NatParts {
    const TRANSLATES: bool = true;

    #[inline(never)]
    fn look<const AT: usize, const V4: bool>(ctx: *mut xdp_md, cpu: u32) -> u32 {
        let Some(first) = maps::kept_first() else { return Reason::NatNotPlain as u32 };
        let (packet, ip, tags) = match opened::<AT, V4>(ctx, refuse(first)) {
            Ok(opened) => opened,
            Err(answer) => return answer,
        };
        let upper = if V4 { upper::v4(&packet, L3) } else { upper::v6_translatable(&packet, L3) };
        let usual = upper.filter(|upper| service::is_usual(upper.protocol));
        let Some(upper) = usual.and_then(|upper| maps::forget(&upper)) else {
            return answer(refuse(first), tags as i32);
        };
        // With what is above all headers; aside, for there is little stack.
        let Some(ip) = maps::put_ip(Ip { protocol: upper.protocol, ..ip }) else {
            return answer(refuse(first), tags as i32);
        };
        let done = run::<V4>(&packet, ip, &upper, first, tags, cpu);
        answer(done.unwrap_or_else(|reason| reason), tags as i32)
    }

    #[inline(always)]
    fn not_ip() -> Reason {
        Reason::NatNotPlain
    }

    #[inline(always)]
    fn onward(reason: Reason) -> Option<u32> {
        decided(reason)
    }
}

#[inline(always)]
fn run<const V4: bool>(
    packet: &Packet,
    ip: &Ip,
    upper: &Upper,
    first: Reason,
    tags: u32,
    cpu: u32,
) -> Result<Reason, Reason> {
    if upper.piece.offset != 0 {
        later::<V4>(packet, ip, upper, first, tags, cpu)?;
    } else if let Reason::NatPassed = first {
        reply::<V4>(packet, ip, upper, cpu)?;
    } else {
        request::<V4>(packet, ip, upper, tags, cpu)?;
    }
    Ok(Reason::NatNotWritten)
}

/// Whether a packet is as long as it says, has its transport header if it begins with one, and may go on.
#[inline(always)]
fn sendable(packet: &Packet, ip: &Ip, upper: &Upper) -> Result<(), Reason> {
    let head = if upper.piece.offset == 0 { wire::transport_len(upper.protocol) } else { 0 };
    let short = (ip.total as usize) < upper.at - L3 + head;
    if short || !packet.holds(L3 + ip.total as usize) {
        return Err(Reason::BadLength);
    }
    if ip.ttl <= 1 { Err(Reason::TtlExpired) } else { Ok(()) }
}

/// From the client: as [`forth::run`].
#[inline(always)]
fn request<const V4: bool>(
    packet: &Packet,
    ip: &Ip,
    upper: &Upper,
    tags: u32,
    cpu: u32,
) -> Result<(), Reason> {
    let segment = parse_at(packet, upper.at, upper.protocol).ok_or(Reason::NatRefused)?;
    let Segment { ports, flags, udp } = segment;
    let opening = flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN;
    let (row, frontend) = forth::service(ip, ports, opening)?;
    sendable(packet, ip, upper)?;
    let how = How::new(maps::seconds(), udp || opening);
    let steered = frontend.any() != 0;
    let route = if steered {
        steer::route(ip, ports, udp, how, (row, frontend))?
    } else {
        forth::route(ip, ports, udp, opening, (row, frontend))?
    };
    let backend = route.backend;
    if backend.addr().is_v4() != V4 {
        return Err(Reason::NatRefused);
    }
    write::fits::<V4>(ip, backend.addr(), route.egress.mtu())?;
    let found = forth::connected(packet, &route, steered, how, flags, tags)?;
    let entry = FragmentEntry {
        frontend: row,
        backend: route.row,
        epoch: backend.epoch(),
        entropy: found.index(),
        time: 0,
    };
    let bytes = packet.len() as u64 + u64::from(tags);
    maps::count_sent(cpu, row, route.row, bytes, opening);
    let id = remember(ip, upper, entry, cpu);
    let onward = Onward::by(route.hop, route.egress, &route.to(found));
    maps::put_onward(onward.identified(id));
    Ok(())
}

/// From the backend: as [`back::run`].
#[inline(always)]
fn reply<const V4: bool>(packet: &Packet, ip: &Ip, upper: &Upper, cpu: u32) -> Result<(), Reason> {
    let segment = parse_at(packet, upper.at, upper.protocol).ok_or(Reason::NatPassed)?;
    let Segment { ports, flags, udp } = segment;
    let Some((index, entry, stamp)) = back::entry(ip.src, ip.dst, ports, udp) else {
        return Err(back::nobody(ip));
    };
    sendable(packet, ip, upper)?;
    if entry.client().is_v4() != V4 {
        return Err(Reason::NatRefused);
    }
    let link = entry.link();
    let way = maps::way((link >> 48) as u32).ok_or(Reason::NoNextHop)?;
    write::fits::<V4>(ip, entry.client(), way.mtu())?;
    let to = To::client(entry);
    let tags = back::tags(index, link);
    back::settle(ip, (index, entry, stamp), flags)?;
    let remembered = FragmentEntry {
        frontend: REPLY | u32::from(stamp.turn()),
        backend: entry.backend(),
        epoch: entry.epoch(),
        entropy: index,
        time: 0,
    };
    let id = remember(ip, upper, remembered, cpu);
    let onward = Onward::new(&to, Way::mac_of(link), way.mac(), way.ifindex(), tags);
    maps::put_onward(onward.identified(id));
    Ok(())
}

/// In the place of a frontend's row: the datagram is a reply, of this user of its entry's place.
const REPLY: u32 = 1 << 31;
/// Bits of an entry's time that its datagram's new identification stands in.
const ID: u64 = 0xffff;

#[inline(always)]
fn key(ip: &Ip, upper: &Upper) -> FragmentKey {
    FragmentKey::new(ip.src, ip.dst, upper.piece.id, upper.protocol)
}

/// Notes where the first fragment of a datagram goes; the identification that the datagram gets: the packets of many
/// senders leave with one address, and their own numbers may be the same.
#[inline(always)]
fn remember(ip: &Ip, upper: &Upper, entry: FragmentEntry, cpu: u32) -> u16 {
    if !upper.piece.more {
        return 0;
    }
    let id = maps::next_id(cpu);
    let time = maps::now() & !ID | u64::from(id);
    maps::remember_fragment_aside(key(ip, upper), FragmentEntry { time, ..entry });
    id
}

/// A later fragment: where its first one went.
#[inline(always)]
fn later<const V4: bool>(
    packet: &Packet,
    ip: &Ip,
    upper: &Upper,
    first: Reason,
    tags: u32,
    cpu: u32,
) -> Result<(), Reason> {
    let passed = matches!(first, Reason::NatPassed);
    let known = maps::fragment_aside(key(ip, upper)).filter(|known| known.is_fresh(maps::now()));
    let Some(known) = known else {
        return Err(if passed { first } else { Reason::Fragment });
    };
    sendable(packet, ip, upper)?;
    let entry = Maps.entry(known.entropy).ok_or(Reason::Fragment)?;
    let (stamp, id) = (entry.stamp(), (known.time & ID) as u16);
    let backend = Maps.backend(known.backend).ok_or(Reason::Fragment)?;
    let same = (entry.backend(), entry.epoch()) == (known.backend, known.epoch)
        && backend.epoch() == known.epoch
        && stamp.stands();
    let own = if passed {
        known.frontend == REPLY | u32::from(stamp.turn())
    } else {
        entry.client() == ip.src && entry.vip() == ip.dst
    };
    if !same || !own {
        return Err(Reason::Fragment);
    }
    if passed {
        let link = entry.link();
        let way = maps::way((link >> 48) as u32).ok_or(Reason::NoNextHop)?;
        write::fits::<V4>(ip, entry.client(), way.mtu())?;
        let to = To { src: entry.vip(), dst: entry.client(), ports: 0 };
        let (mac, tags) = (Way::mac_of(link), back::tags(known.entropy, link));
        let onward = Onward::new(&to, mac, way.mac(), way.ifindex(), tags);
        maps::put_onward(onward.identified(id));
        return Ok(());
    }
    let hop = backend.hop();
    let egress = hop.egress().and_then(maps::egress).ok_or(Reason::NoNextHop)?;
    write::fits::<V4>(ip, backend.addr(), egress.mtu())?;
    let address = maps::nat_address(stamp.address()).ok_or(Reason::NoNextHop)?;
    let bytes = packet.len() as u64 + u64::from(tags);
    maps::count_sent(cpu, known.frontend, known.backend, bytes, false);
    let to = To { src: address, dst: backend.addr(), ports: 0 };
    maps::put_onward(Onward::by(hop, egress, &to).identified(id));
    Ok(())
}

/// Writes what has been decided here, in the program for that: other addresses, and ports where there are any, one hop
/// later.
#[inline(always)]
pub(super) fn write<const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    onward: &Onward,
) -> Result<(), Reason> {
    let upper = if V4 { upper::v4(packet, L3) } else { upper::v6_translatable(packet, L3) };
    let upper = upper.and_then(|upper| maps::forget(&upper)).ok_or(Reason::Truncated)?;
    if upper.piece.offset == 0 {
        let ports = packet.header::<Ports>(upper.at).ok_or(Reason::Truncated)?.both();
        let ports = u32::from_ne_bytes(ports);
        let old = address_sum(ip.src) + address_sum(ip.dst) + halves(ports);
        let new = address_sum(onward.src) + address_sum(onward.dst) + halves(onward.ports);
        let udp = upper.protocol == protocol::UDP;
        write::transport_at(packet, upper.at, udp, onward.ports, old, new)?;
    }
    write::outer::<V4>(packet, onward.src, onward.dst)?;
    if V4 && upper.piece.is_part() {
        let h = packet.bytes_mut::<20>(L3).ok_or(Reason::Truncated)?;
        let (old, sum) = (u16::from_ne_bytes([h[4], h[5]]), u16::from_ne_bytes([h[10], h[11]]));
        let id = onward.id();
        h[4..6].copy_from_slice(&id.to_ne_bytes());
        h[10..12].copy_from_slice(&replace(sum, old, id).to_ne_bytes());
    }
    let place = packet.bytes_mut::<12>(0).ok_or(Reason::AdjustFailed)?;
    let (mac, own) = onward.macs();
    put_macs(place, mac, own);
    Ok(())
}
