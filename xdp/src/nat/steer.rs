//! Packets for services that want more than their ring: clients that stay, backends that are drawn, groups of backends
//! that clients are routed to.
//!
//! A program of its own. A connection's entry says where it goes, and is found without its backend
//! ([`abi::nat::clients`]); what a service wants decides for new ones.

use abi::{
    choice::{self, Choice, Spread},
    hash::{self, Tuple},
    nat::{Entries as _, Entry, Flow, Found, Stamp, clients},
    pick::{self, Phase, Tables as _},
    reason::Reason,
    table::{Frontend, Slot},
    wire::{Ip, protocol},
};
use aya_ebpf::bindings::xdp_md;

use super::{
    decided,
    forth::{self, How, Route},
    is_plain, opened, parse,
};
use crate::{
    behind::{Program, answer},
    maps::{self, Maps},
    stage::{moving, service},
};

/// The program.
pub(crate) struct NatSteer;

impl Program for NatSteer {
    const TRANSLATES: bool = true;

    #[inline(never)]
    fn look<const AT: usize, const V4: bool>(ctx: *mut xdp_md, cpu: u32) -> u32 {
        let (mut packet, ip, tags) = match opened::<AT, V4>(ctx, Reason::NatRefused) {
            Ok(opened) => opened,
            Err(answer) => return answer,
        };
        let segment = if is_plain::<V4>(&ip) { parse::<V4>(&packet, &ip) } else { None };
        let Some(segment) = segment else { return answer(Reason::NatRefused, tags as i32) };
        let done = forth::run::<V4, true>(&mut packet, &ip, segment, tags, cpu);
        answer(done.unwrap_or_else(|reason| reason), tags as i32)
    }

    #[inline(always)]
    fn not_ip() -> Reason {
        Reason::NatRefused
    }

    #[inline(always)]
    fn onward(reason: Reason) -> Option<u32> {
        decided(reason)
    }
}

/// The backend of a client's packet, and the way there.
#[inline(always)]
pub(super) fn route(
    ip: &Ip,
    ports: u32,
    udp: bool,
    how: How,
    (service_row, frontend): (u32, &Frontend),
) -> Result<Route, Reason> {
    let own = service::source_row(service_row, ip.src.hi(), ip.src.lo());
    if let Some(route) = known(ip, ports, udp, how)? {
        // Not further down: a call within a call takes stack.
        nat_stays(own, u64::from(route.row) | u64::from(route.backend.epoch()) << 32);
        return Ok(route);
    }
    let tuple = Tuple { src: ip.src, dst: ip.dst, ports, protocol: ip.protocol };
    let hash = hash::flow(&tuple, maps::seed());
    if !how.opens() {
        // Of a connection from before the service wanted all this, or of none.
        let group = maps::frontend(own).ok_or(Reason::NatNoEntry)?;
        let slow = || moving::unsettled(own, &tuple, hash, Phase::Established);
        let at = pick::backend(&Maps, group, hash, slow)?;
        return forth::fresh(ip, ports, udp, hash, frontend, at, false);
    }
    let mut found = nat_opened(own, own);
    if own != service_row && found as u32 == Slot::NONE {
        // The group takes no new connections.
        found = nat_opened(service_row, own);
    }
    let (row, counted) = (found as u32, found >> 32 != 0);
    let backend = Maps.backend(row).ok_or(Reason::NoBackend)?;
    forth::fresh(ip, ports, udp, hash, frontend, (row, backend), counted)
}

/// The same for a packet of a connection that has an entry. Puts its flow aside.
#[inline(always)]
pub(super) fn known(ip: &Ip, ports: u32, udp: bool, how: How) -> Result<Option<Route>, Reason> {
    let tuple = Tuple { src: ip.src, dst: ip.dst, ports, protocol: ip.protocol };
    let flow = maps::put_flow(Flow {
        client: ip.src,
        vip: ip.dst,
        ports: u64::from(ports),
        backend: 0,
        identity: Flow::identity(udp, 0),
        hash: hash::flow(&tuple, maps::seed()),
        pair: 0,
    })
    .ok_or(Reason::NatNoEntry)?;
    let word = nat_known(how.to_word());
    if word == 0 {
        return Ok(None);
    }
    let entry = Maps.entry(word as u32).ok_or(Reason::NatNoEntry)?;
    let row = entry.backend();
    let backend = Maps.backend(row).ok_or(Reason::NoBackend)?;
    let hop = backend.hop();
    let egress = hop.egress().and_then(maps::egress).ok_or(Reason::NoNextHop)?;
    let address = maps::nat_address(entry.stamp().address()).ok_or(Reason::NoNextHop)?;
    let (port, target) = ((entry.ports() >> 32) as u16, (entry.ports() >> 48) as u16);
    let known = Found::entry(word as u32, u16::from_be(port));
    Ok(Some(Route { row, backend, hop, egress, address, target, flow, known }))
}

/// Notes the entry of the flow that was put aside, so that its next packet finds it.
#[inline(always)]
pub(super) fn enlist(found: Found, how: How) -> Result<(), Reason> {
    if nat_enlist(found.index(), how.to_word()) == 0 { Err(Reason::NatExhausted) } else { Ok(()) }
}

/// A global function, as all that follow: the verifier goes through it once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn nat_enlist(index: u32, how: u64) -> u32 {
    let Some(flow) = maps::kept_flow() else { return 0 };
    let now = How::from_word(how).now();
    u32::from(clients::enlist(&Maps, flow, index, maps::seed(), now))
}

/// Place of the entry of the flow that was put aside, with a bit above it; 0: it has none that counts.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn nat_known(how: u64) -> u64 {
    let Some(flow) = maps::kept_flow() else { return 0 };
    let Some((index, entry, stamp)) = clients::find(&Maps, flow) else { return 0 };
    if goes_on(entry, stamp, How::from_word(how)) { u64::from(index) | 1 << 32 } else { 0 }
}

/// Whether a packet is of the connection that an entry stands for, and goes to its backend.
#[inline(always)]
fn goes_on(entry: &Entry, stamp: Stamp, how: How) -> bool {
    let Some(backend) = Maps.backend(entry.backend()) else { return false };
    // A SYN, and datagrams after a long silence, begin another one.
    let began = !how.opens();
    let ended = how.opens() && (stamp.is_free(how.now()) || stamp.is_over());
    backend.epoch() == entry.epoch() && backend.state().takes(began) && !ended
}

/// The client of the flow that was put aside has been seen, and stays; `row`: of the frontend for which, `at`: row of
/// the backend, and the use of it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn nat_stays(row: u32, at: u64) -> u32 {
    let Some(flow) = maps::kept_flow() else { return 0 };
    let Some(keeper) = maps::frontend(row) else { return 0 };
    let choice = Choice::read(&Maps, keeper).unwrap_or_default();
    let at = (at as u32, (at >> 32) as u32);
    choice::stays(&Maps, keeper.service_id(), &choice, flow.client, at);
    0
}

/// Row of the backend of a connection that begins, for the flow that was put aside, and above it whether its
/// connections are counted: by the ring of `row`, or what else it wants; a client that stays does so for the service
/// of `keeper`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn nat_opened(row: u32, keeper: u32) -> u64 {
    const NOBODY: u64 = Slot::NONE as u64;
    let Some(flow) = maps::kept_flow() else { return NOBODY };
    let Some(frontend) = maps::frontend(row) else { return NOBODY };
    let Some(keeper) = maps::frontend(keeper) else { return NOBODY };
    let choice = Choice::read(&Maps, frontend).unwrap_or_default();
    let udp = Stamp::from_word(flow.identity).is_udp();
    let protocol = if udp { protocol::UDP } else { protocol::TCP };
    let tuple = Tuple { src: flow.client, dst: flow.vip, ports: flow.ports as u32, protocol };
    let found = choice::opened(&Maps, keeper.service_id(), frontend, &choice, &tuple, flow.hash);
    u64::from(found) | u64::from(choice.spread == Spread::Fewest) << 32
}
