//! Fragments for a VIP: the first one has the ports and decides; the others follow it.

use abi::{
    flow::{FragmentEntry, FragmentKey},
    limits::FRAGMENT_TIME_NS,
    reason::Reason,
    upper::Upper,
    wire::{self, Frame, Ip},
};

use crate::{
    maps::{self, Maps},
    packet::Packet,
    stage::{forward, service},
};
use abi::pick::Tables;

#[inline(always)]
pub(crate) fn run<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    upper: &Upper,
    cpu: u32,
) -> Result<Reason, Reason> {
    if !packet.holds(L3 + ip.total as usize) {
        return Err(Reason::BadLength);
    }
    if ip.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    if !service::balances(upper.protocol) {
        return Err(Reason::VipOtherProtocol);
    }
    let key = FragmentKey::new(ip.src, ip.dst, upper.piece.id, upper.protocol);
    if upper.piece.offset == 0 {
        first::<L3, V4>(packet, ip, upper, &key, cpu)
    } else {
        later::<L3, V4>(packet, ip, &key, cpu)
    }
}

#[inline(always)]
fn first<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    upper: &Upper,
    key: &FragmentKey,
    cpu: u32,
) -> Result<Reason, Reason> {
    let transport = wire::transport(packet, upper.at, upper.protocol).ok_or(Reason::Truncated)?;
    let flow = Ip { protocol: upper.protocol, ..*ip };
    let (row, frontend) = service::frontend(&flow, &transport)?;
    service::permit(frontend, ip.src)?;
    let picked = service::pick_again(&flow, &transport, row)?;
    let bytes = packet.len() as u64;
    let entry = FragmentEntry {
        frontend: row,
        backend: picked.row,
        epoch: picked.backend.epoch(),
        entropy: picked.entropy,
        time: maps::now(),
    };
    let reason = forward::once::<L3, V4>(packet, ip, frontend, picked.backend, picked.entropy)?;
    maps::remember_fragment(key, &entry);
    maps::count_frontend(cpu, row, bytes, transport.opening);
    maps::count_backend(cpu, picked.row, bytes, transport.opening);
    Ok(reason)
}

#[inline(always)]
fn later<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    key: &FragmentKey,
    cpu: u32,
) -> Result<Reason, Reason> {
    let entry = maps::fragment(key).ok_or(Reason::Fragment)?;
    let frontend = maps::frontend(entry.frontend).ok_or(Reason::Fragment)?;
    let backend = Maps.backend(entry.backend).ok_or(Reason::Fragment)?;
    let fresh = maps::now().wrapping_sub(entry.time) < FRAGMENT_TIME_NS;
    if !fresh || backend.epoch() != entry.epoch {
        return Err(Reason::Fragment);
    }
    let bytes = packet.len() as u64;
    let reason = forward::once::<L3, V4>(packet, ip, frontend, backend, entry.entropy)?;
    maps::count_frontend(cpu, entry.frontend, bytes, false);
    maps::count_backend(cpu, entry.backend, bytes, false);
    Ok(reason)
}
