//! From the client to a backend.

use abi::{
    addr::Addr,
    hash::Tuple,
    nat::{self, Entries as _, Flow, Found, Side, To},
    pick::{self, Phase},
    reason::Reason,
    table::{Backend, Egress, Frontend, HopWord, Mode, Way},
    wire::{Frame, Ip, Transport, Word, tcp_flags},
};

use super::{L3, Segment, header, rows, steer, write};
use crate::{
    maps::{self, Maps},
    packet::Packet,
    stage::{
        moving::unsettled,
        service::{frontend, hash_of, permit, sendable},
    },
};

/// Where a client's packets go, and the entry that is sought for them.
pub(super) struct Route {
    pub(super) row: u32,
    pub(super) backend: &'static Backend,
    pub(super) hop: HopWord,
    pub(super) egress: &'static Egress,
    /// What stands in the client's place.
    pub(super) address: Addr,
    /// As it stands in a header.
    pub(super) target: u16,
    /// Put aside.
    pub(super) flow: &'static Flow,
    /// The entry, if it is known already.
    pub(super) known: Found,
}

impl Route {
    /// What a packet of the connection with this entry says afterwards.
    #[inline(always)]
    pub(super) fn to(&self, found: Found) -> To {
        to(self.address, self.backend, self.target, found)
    }
}

/// What a packet of the connection with this entry says afterwards: `address` in its client's place, `target` as its
/// port, as it stands in a header.
#[inline(always)]
pub(super) const fn to(address: Addr, backend: &Backend, target: u16, found: Found) -> To {
    let ports = found.port().to_be() as u32 | (target as u32) << 16;
    To { src: address, dst: backend.addr(), ports }
}

/// What a packet does to its connection, in one word, for calls of global functions.
#[derive(Clone, Copy)]
pub(super) struct How(u64);

impl How {
    /// `opens`: it may be the first one.
    #[inline(always)]
    pub(super) const fn new(now: u32, opens: bool) -> Self {
        Self((now as u64) << 1 | opens as u64)
    }

    #[inline(always)]
    pub(super) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    #[inline(always)]
    pub(super) const fn to_word(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub(super) const fn now(self) -> u32 {
        (self.0 >> 1) as u32
    }

    #[inline(always)]
    pub(super) const fn opens(self) -> bool {
        self.0 & 1 != 0
    }
}

/// The service of a client's packet, if that may use it.
#[inline(always)]
pub(super) fn service(
    ip: &Ip,
    ports: u32,
    opening: bool,
) -> Result<(u32, &'static Frontend), Reason> {
    let (row, frontend) = frontend(ip, &Transport { ports, opening })?;
    if frontend.mode() != Mode::Nat {
        return Err(Reason::NatRefused);
    }
    permit(frontend, ip.src)?;
    Ok((row, frontend))
}

/// The backend of a client's packet by the ring of this frontend, and the way there; `opening`: it is a SYN.
#[inline(always)]
pub(super) fn route(
    ip: &Ip,
    ports: u32,
    udp: bool,
    opening: bool,
    (service_row, frontend): (u32, &Frontend),
) -> Result<Route, Reason> {
    let tuple = Tuple { src: ip.src, dst: ip.dst, ports, protocol: ip.protocol };
    let hash = hash_of(&tuple);
    let phase = match (udp, opening) {
        (true, _) => Phase::Unknown,
        (_, true) => Phase::Opening,
        _ => Phase::Established,
    };
    let slow = || unsettled(service_row, &tuple, hash, phase);
    let at = pick::backend(&Maps, frontend, hash, slow)?;
    fresh(ip, ports, udp, hash, frontend, at, false)
}

/// The way to a backend for a connection whose entry is not known; `counted`: its service counts connections.
#[inline(always)]
pub(super) fn fresh(
    ip: &Ip,
    ports: u32,
    udp: bool,
    hash: u64,
    frontend: &Frontend,
    (row, backend): (u32, &'static Backend),
    counted: bool,
) -> Result<Route, Reason> {
    let hop = backend.hop();
    let egress = hop.egress().and_then(maps::egress).ok_or(Reason::NoNextHop)?;
    let (mut flow, address) =
        sought(ip, ports, udp, hash, frontend, (row, backend, egress)).ok_or(Reason::NoNextHop)?;
    flow.identity = Flow::counted(flow.identity, counted);
    let target = flow.target();
    let flow = maps::put_flow(flow).ok_or(Reason::NatNoEntry)?;
    Ok(Route { row, backend, hop, egress, address, target, flow, known: Found::NOTHING })
}

/// A connection to this backend whose packets leave by `egress`, and what stands in its client's place.
#[inline(always)]
pub(super) fn sought(
    ip: &Ip,
    ports: u32,
    udp: bool,
    hash: u64,
    frontend: &Frontend,
    (row, backend, egress): (u32, &Backend, &Egress),
) -> Option<(Flow, Addr)> {
    let address_row = egress.nat(backend.addr().is_v4(), hash)?;
    let address = maps::nat_address(address_row)?;
    let target = target(frontend, ports);
    let flow = Flow {
        client: ip.src,
        vip: ip.dst,
        ports: u64::from(ports) | u64::from(target) << 48,
        backend: u64::from(row) | u64::from(backend.epoch()) << 32,
        identity: Flow::identity(udp, address_row),
        hash,
        pair: nat::pair(backend.addr(), target, address, udp, maps::seed()),
    };
    Some((flow, address))
}

/// The port at the backends of a packet with these ports, as it stands in a header.
#[inline(always)]
pub(super) fn target(frontend: &Frontend, ports: u32) -> u16 {
    match frontend.target_port() {
        0 => (ports >> 16) as u16,
        target => target,
    }
}

/// The entry of a route, which has a new one if the packet may open a connection.
#[inline(always)]
pub(super) fn entry(route: &Route, how: How, link: u64) -> Result<Found, Reason> {
    if route.known.is_entry() {
        return Ok(route.known);
    }
    let mut found = nat::first(&Maps, route.flow, maps::nat_ports());
    if !found.is_entry() {
        found = Found::from_word(nat_search(how.to_word(), link));
    }
    match found {
        found if found.is_entry() => Ok(found),
        Found::EXHAUSTED => Err(Reason::NatExhausted),
        _ => Err(Reason::NatNoEntry),
    }
}

/// `STEERED`: in the program for services that want more than their ring.
#[inline(always)]
pub(super) fn run<const V4: bool, const STEERED: bool>(
    packet: &mut Packet,
    ip: &Ip,
    segment: Segment,
    tags: u32,
    cpu: u32,
) -> Result<Reason, Reason> {
    let Segment { ports, flags, udp } = segment;
    let opening = tcp_flags::opens(flags);
    let (row, frontend) = service(ip, ports, opening)?;
    sendable::<L3, V4>(packet, ip.protocol, header::<V4>())?;
    let how = How::new(maps::seconds(), udp || opening);
    let route = if STEERED {
        steer::route(ip, ports, udp, how, (row, frontend))?
    } else if frontend.any() != 0 {
        return Err(Reason::NatNotChosen);
    } else {
        route(ip, ports, udp, opening, (row, frontend))?
    };
    let (backend, hop, egress) = (route.backend, route.hop, route.egress);
    write::fits::<V4>(ip, backend.addr(), egress.mtu())?;
    write::crosses::<V4>(packet, ip, udp, backend.addr())?;
    let found = connected(packet, &route, STEERED, how, flags, tags)?;

    if V4 && !STEERED && tags == 0 && rows::goes_on(udp, flags) {
        rows::keep(&route, found, row, link(packet, 0)?);
    }

    let bytes = packet.len() as u64 + u64::from(tags);
    let to = route.to(found);
    maps::count_sent(cpu, row, route.row, bytes, opening);
    let macs = (hop.to_word(), egress.src_mac_word());
    write::send::<V4>(packet, udp, &to, macs, egress.ifindex(), 0)
}

/// The entry of a packet's connection, its state noted; a connection may begin with it. `steered`: an entry that is new
/// must be found without its backend.
#[inline(always)]
pub(super) fn connected(
    packet: &Packet,
    route: &Route,
    steered: bool,
    how: How,
    flags: u8,
    tags: u32,
) -> Result<Found, Reason> {
    let link = link(packet, tags)?;
    let found = entry(route, how, link)?;
    if steered && !route.known.is_entry() {
        steer::enlist(found, how)?;
    }
    settle(found.index(), flags, how.now(), link);
    Ok(found)
}

/// The way back to who sent a packet, of which so many bytes of tags were taken off.
#[inline(always)]
pub(super) fn link(packet: &Packet, tags: u32) -> Result<u64, Reason> {
    let [a, b, c, d, e, f, ..] = packet.header::<Word>(6).ok_or(Reason::Truncated)?.value();
    let link = Way::link([a, b, c, d, e, f], packet.ingress()).ok_or(Reason::NatRefused)?;
    // 4 or 8 bytes. No branch: the verifier would go through all that follows twice.
    const { assert!(Way::TAGGED == 1) };
    Ok(link | u64::from((tags >> 2 | tags >> 3) & 1))
}

/// The connection's state; and replies go to whoever sent the client's last packet.
#[inline(always)]
fn settle(index: u32, flags: u8, now: u32, link: u64) {
    let Some(entry) = Maps.entry(index) else { return };
    if link & Way::TAGGED != 0 {
        maps::note_tags(index);
    }
    if entry.link() != link {
        maps::set_link(index, link);
    }
    if nat::changes(entry, Side::Client, flags, now) {
        nat_note(u64::from(index), u64::from(flags), u64::from(now));
    }
}

/// The other candidates, for the flow that was put aside; `how`: of [`How`].
/// A global function: the verifier goes through its loops once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn nat_search(how: u64, link: u64) -> u64 {
    let Some(flow) = maps::kept_flow() else { return Found::NOTHING.to_word() };
    let how = How::from_word(how);
    nat::search(&Maps, flow, maps::nat_ports(), how.opens(), link, how.now()).to_word()
}

/// Notes a packet in an entry's state; `what`: TCP's flags, and the side above them. A global function, as
/// [`nat_search`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn nat_note(index: u64, what: u64, now: u64) -> u32 {
    let side = if what >> 8 == 0 { Side::Client } else { Side::Backend };
    nat::note(&Maps, index as u32, side, what as u8, now as u32);
    if let Side::Backend = side {
        rows::refresh(index as u32);
    }
    0
}
