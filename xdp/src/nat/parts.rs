//! Fragments, and packets with IPv4 options or IPv6 extension headers; both sides', within a family and between them.
//!
//! A program of its own, which decides; [`super::other`] writes. The first fragment of a datagram has the ports: it is
//! translated as any packet, and leaves where it went to in the table of fragments ([`abi::flow::FragmentEntry`]), by
//! which those that follow are.

use abi::{
    addr::Addr,
    checksum::{halves, replace},
    flow::{FragmentEntry, FragmentKey},
    nat::{
        Entries as _, To, address_sum,
        family::{self, Header},
    },
    pick::Tables as _,
    reason::Reason,
    table::Way,
    upper::{self, Upper},
    wire::{self, Frame as _, Ip, Ports, protocol, tcp_flags},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use super::{
    L3, Onward, Segment, back, decided,
    forth::{self, How},
    opened,
    other::{checksum_made, put_ip, put_link, put_v4, put_v6},
    parse_at, refuse, steer, write,
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
        let reason =
            run::<V4>(&packet, ip, &upper, first, tags, cpu).unwrap_or_else(|reason| reason);
        if let Reason::NatPassed = reason
            && upper.piece.more
            && upper.piece.offset == 0
        {
            maps::remember_fragment_aside(key(ip, &upper), FragmentEntry::host(maps::now()));
        }
        answer(reason, tags as i32)
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
    let opening = tcp_flags::opens(flags);
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
    passes::<V4>(packet, ip, backend.addr(), route.egress.mtu())?;
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
    let link = entry.link();
    let way = maps::way((link >> 48) as u32).ok_or(Reason::NoNextHop)?;
    passes::<V4>(packet, ip, entry.client(), way.mtu())?;
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
    let onward = Onward::new(&to, (Way::mac_of(link), way.mac_word()), way.ifindex(), tags);
    maps::put_onward(onward.identified(id));
    Ok(())
}

/// In the place of a frontend's row: the datagram is a reply, of this user of its entry's place.
const REPLY: u32 = 1 << 31;

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
    let time = FragmentEntry::time_with(maps::now(), id);
    maps::remember_fragment_aside(key(ip, upper), FragmentEntry { time, ..entry });
    id
}

/// A later fragment: where its first one went. At a NAT address one whose first has not come may be the host's own.
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
        return Err(if passed { Reason::FragmentKept } else { Reason::Fragment });
    };
    if known.frontend == FragmentEntry::HOST {
        return Err(refuse(first));
    }
    sendable(packet, ip, upper)?;
    let entry = Maps.entry(known.entropy).ok_or(Reason::Fragment)?;
    let (stamp, id) = (entry.stamp(), known.id());
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
        passes::<V4>(packet, ip, entry.client(), way.mtu())?;
        let to = To { src: entry.vip(), dst: entry.client(), ports: 0 };
        let (mac, tags) = (Way::mac_of(link), back::tags(known.entropy, link));
        let onward = Onward::new(&to, (mac, way.mac_word()), way.ifindex(), tags);
        maps::put_onward(onward.identified(id));
        return Ok(());
    }
    let hop = backend.hop();
    let egress = hop.egress().and_then(maps::egress).ok_or(Reason::NoNextHop)?;
    passes::<V4>(packet, ip, backend.addr(), egress.mtu())?;
    let address = maps::nat_address(stamp.address()).ok_or(Reason::NoNextHop)?;
    let bytes = packet.len() as u64 + u64::from(tags);
    maps::count_sent(cpu, known.frontend, known.backend, bytes, false);
    let to = To { src: address, dst: backend.addr(), ports: 0 };
    maps::put_onward(Onward::by(hop, egress, &to).identified(id));
    Ok(())
}

/// Whether a packet can go on to `dst` by a way that takes so many bytes.
#[inline(always)]
fn passes<const V4: bool>(packet: &Packet, ip: &Ip, dst: Addr, mtu: u32) -> Result<(), Reason> {
    if dst.is_v4() == V4 {
        return write::fits::<V4>(ip, dst, mtu);
    }
    match Reason::from_index(nat_crosses(packet.context(), u32::from(V4), mtu)) {
        Some(Reason::NatNotWritten) => Ok(()),
        Some(reason) => Err(reason),
        None => Err(Reason::NatRefused),
    }
}

/// The same for the other family, of a packet of IPv4 or not, and what [`maps::forget`] has put aside of it: why not, or
/// that it is to be written. A global function: the verifier goes through it once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn nat_crosses(ctx: *mut xdp_md, four: u32, mtu: u32) -> u32 {
    let packet = Packet::new(XdpContext::new(ctx));
    let ip = if four == 0 { wire::ipv6(&packet, L3) } else { wire::ipv4(&packet, L3) };
    let (Some(ip), Some(upper)) = (ip, maps::forgotten()) else {
        return Reason::NatRefused as u32;
    };
    crosses(&packet, &ip, &upper, four != 0, mtu).err().unwrap_or(Reason::NatNotWritten) as u32
}

#[inline(always)]
fn crosses(packet: &Packet, ip: &Ip, upper: &Upper, v4: bool, mtu: u32) -> Result<(), Reason> {
    let part = upper.piece.is_part();
    let above = ip.total.wrapping_sub((upper.at - L3) as u32);
    if above.wrapping_add(family::headers(v4, part)) > mtu {
        // Nobody is told about a fragment that is not the first one (RFC 1122 section 3.2.2), unless it asks.
        maps::tell_mtu(family::room(v4, part, mtu), upper.piece.offset == 0);
        return Err(Reason::TooBig);
    }
    if !v4 {
        return Ok(());
    }
    if upper.protocol == protocol::UDP && upper.piece.offset == 0 {
        // To make a checksum takes all of the datagram.
        write::summable(packet, upper.at, if part { 0 } else { above })?;
    }
    let forget = |at| maps::forget_word(at as u64).map_or(0, |at| at as usize & 63);
    if upper::is_source_routed(packet, L3, ip.header, forget) {
        return Err(Reason::NatRefused);
    }
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
    let upper = above::<V4>(packet)?;
    transport(packet, ip, &upper, onward)?;
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

/// The same in the other family (RFC 7915): options and extension headers do not go along, and a fragment stays one.
#[inline(always)]
pub(super) fn cross<const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    onward: &Onward,
) -> Result<(), Reason> {
    let upper = above::<V4>(packet)?;
    let Upper { protocol, at, piece } = upper;
    let (part, headers) = (piece.is_part(), (at - L3) as u32);
    transport(packet, ip, &upper, onward)?;
    if V4 && !part && protocol == protocol::UDP {
        checksum_made(packet, at, onward)?;
    }
    let header = Header {
        src: onward.src,
        dst: onward.dst,
        tos: ip.tos,
        hops: ip.ttl.wrapping_sub(1),
        protocol,
        len: (ip.total as u16).wrapping_sub(headers as u16),
    };
    packet.grow_head(family::headers(V4, part) as i32 - headers as i32)?;
    put_link::<V4>(packet, onward)?;
    if !part {
        return put_ip::<V4>(packet, L3, &header);
    }
    if !V4 {
        return put_v4(packet, L3, header.v4_part(onward.id(), &piece));
    }
    let (words, fragment) = header.v6_part(onward.id(), &piece);
    put_v6(packet, L3, words)?;
    let place = packet.bytes_mut::<8>(L3 + 40).ok_or(Reason::AdjustFailed)?;
    *place = fragment.to_ne_bytes();
    Ok(())
}

#[inline(always)]
fn above<const V4: bool>(packet: &Packet) -> Result<Upper, Reason> {
    let upper = if V4 { upper::v4(packet, L3) } else { upper::v6_translatable(packet, L3) };
    upper.and_then(|upper| maps::forget(&upper)).ok_or(Reason::Truncated)
}

/// Ports and checksum, where they are: the checksum is over all of the datagram, whichever part of it this is, and
/// over the same length and protocol in either family.
#[inline(always)]
fn transport(packet: &mut Packet, ip: &Ip, upper: &Upper, onward: &Onward) -> Result<(), Reason> {
    if upper.piece.offset != 0 {
        return Ok(());
    }
    let ports = packet.header::<Ports>(upper.at).ok_or(Reason::Truncated)?.both();
    let ports = u32::from_ne_bytes(ports);
    let old = address_sum(ip.src) + address_sum(ip.dst) + halves(ports);
    let new = address_sum(onward.src) + address_sum(onward.dst) + halves(onward.ports);
    let udp = upper.protocol == protocol::UDP;
    write::transport(packet, upper.at, udp, onward.ports, old, new)
}
