//! From a backend to the client.

use abi::{
    addr::Addr,
    nat::{self, Entry, Reply, Side, Stamp, To},
    pick::{self, Tables as _},
    reason::Reason,
    table::{FrontendKey, Kind, Way},
    wire::Ip,
};

use super::{L3, Segment, forth::nat_note, header, write};
use crate::{
    maps::{self, Maps},
    packet::Packet,
    stage::service,
};

/// What a backend sends, as the tables know it.
pub(super) struct Asked {
    /// Of [`nat::pair`].
    pub(super) pair: u64,
    /// The NAT port, host byte order.
    pub(super) port: u16,
    pub(super) reply: Reply,
}

/// What to ask for, of what a backend sends: `ports` are those of backend and NAT address, as loaded. `None`: to no NAT
/// port.
#[inline(always)]
pub(super) fn asked(src: Addr, dst: Addr, ports: u32, udp: bool) -> Option<Asked> {
    let port = u16::from_be((ports >> 16) as u16);
    if !maps::nat_ports().has(port) {
        return None;
    }
    let pair = nat::pair(src, ports as u16, dst, udp, maps::seed());
    let reply = Reply { index: nat::place(pair, port), ports, udp };
    Some(Asked { pair, port, reply })
}

/// The entry of what a backend sends, if it has one.
#[inline(always)]
pub(super) fn found(src: Addr, dst: Addr, asked: &Reply) -> Option<(&'static Entry, Stamp)> {
    let (entry, stamp) = nat::reply(&Maps, asked)?;
    let backend = Maps.backend(entry.backend())?;
    let address = maps::nat_address(stamp.address())?;
    let own = backend.epoch() == entry.epoch() && backend.addr() == src && address == dst;
    own.then_some((entry, stamp))
}

/// The same, and its place: `ports` are those of backend and NAT address, as loaded.
#[inline(always)]
pub(super) fn entry(
    src: Addr,
    dst: Addr,
    ports: u32,
    udp: bool,
) -> Option<(u32, &'static Entry, Stamp)> {
    let asked = asked(src, dst, ports, udp)?;
    let (entry, stamp) = found(src, dst, &asked.reply)?;
    Some((asked.reply.index, entry, stamp))
}

#[inline(always)]
pub(super) fn run<const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    segment: Segment,
) -> Result<Reason, Reason> {
    let Segment { ports, flags, udp } = segment;
    let Some((index, entry, stamp)) = entry(ip.src, ip.dst, ports, udp) else {
        return Err(nobody(ip));
    };
    service::sendable::<L3, V4>(packet, ip.protocol, header::<V4>())?;
    let link = entry.link();
    let way = maps::way((link >> 48) as u32).ok_or(Reason::NoNextHop)?;
    let tags = tags(index, link);
    write::fits::<V4>(ip, entry.client(), way.mtu())?;
    write::crosses::<V4>(packet, ip, udp, entry.client())?;
    let to = To::client(entry);
    settle(ip, (index, entry, stamp), flags)?;

    let macs = (Way::mac_of(link), way.mac_word());
    write::send::<V4>(packet, udp, &to, macs, way.ifindex(), tags)
}

/// The connection's state, once all that is needed of its entry has been read.
///
/// # Errors
/// As of [`nobody`]: another connection has taken the place meanwhile.
#[inline(always)]
pub(super) fn settle(
    ip: &Ip,
    (index, entry, stamp): (u32, &Entry, Stamp),
    flags: u8,
) -> Result<(), Reason> {
    if entry.stamp().turn() != stamp.turn() {
        return Err(nobody(ip));
    }
    let now = maps::seconds();
    if nat::changes(entry, Side::Backend, flags, now) {
        let what = u64::from(flags) | (Side::Backend as u64) << 8;
        nat_note(u64::from(index), what, u64::from(now));
    }
    Ok(())
}

/// The tags that replies carry; 0: none.
#[inline(always)]
pub(super) fn tags(index: u32, link: u64) -> u64 {
    if link & Way::TAGGED == 0 { 0 } else { maps::tags_of(index) }
}

/// Not of a connection that is translated: the host's, unless the address is also a VIP.
#[inline(always)]
pub(super) fn nobody(ip: &Ip) -> Reason {
    match pick::frontend(&Maps, &FrontendKey::vip(ip.dst)) {
        Some((_, row)) if row.kind() == Kind::Vip => Reason::NoService,
        _ => Reason::NatPassed,
    }
}
