//! Fragments for a VIP: the first one has the ports and decides; the others follow it.

use abi::{
    early::{self, Early},
    flow::{FragmentEntry, FragmentKey},
    reason::Reason,
    table::Mode,
    upper::Upper,
    wire::{self, Frame, Ip},
};

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, xdp_md},
    helpers::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
};

use crate::{
    events::bounded,
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
        later::<L3, V4>(packet, &key, cpu)
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
    if frontend.mode() == Mode::Nat {
        return Err(Reason::NatNoEntry);
    }
    let picked = service::pick_again(&flow, &transport, row)?;
    let bytes = packet.len() as u64;
    let entry = FragmentEntry {
        frontend: row,
        backend: picked.row,
        epoch: picked.backend.epoch(),
        entropy: picked.entropy,
        time: maps::now(),
    };
    let reason = forward::once::<L3, V4>(packet, frontend, picked.backend, picked.entropy)?;
    maps::remember_fragment(key, &entry);
    maps::count_sent(cpu, row, picked.row, bytes, transport.opening);
    Ok(reason)
}

#[inline(always)]
fn later<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    key: &FragmentKey,
    cpu: u32,
) -> Result<Reason, Reason> {
    let entry = maps::fragment(key).filter(|entry| entry.is_fresh(maps::now()));
    let Some(entry) = entry else { return Err(early(packet)) };
    let frontend = maps::frontend(entry.frontend).ok_or(Reason::Fragment)?;
    let backend = Maps.backend(entry.backend).ok_or(Reason::Fragment)?;
    if backend.epoch() != entry.epoch {
        return Err(Reason::Fragment);
    }
    let bytes = packet.len() as u64;
    let reason = forward::once::<L3, V4>(packet, frontend, backend, entry.entropy)?;
    maps::count_sent(cpu, entry.frontend, entry.backend, bytes, false);
    Ok(reason)
}

#[inline(always)]
fn early(packet: &Packet) -> Reason {
    Reason::from_index(keep(packet.context(), 0)).unwrap_or(Reason::Fragment)
}

/// What becomes of a later fragment for an address that translated packets come from, of which nobody knows whether it
/// is this machine's own.
#[inline(always)]
pub(super) fn perhaps_own(packet: &Packet) -> Reason {
    match Reason::from_index(keep(packet.context(), early::HOST)) {
        Some(Reason::FragmentKept) => Reason::FragmentKept,
        _ => Reason::NatPassed,
    }
}

/// What becomes of a later fragment of which it is not known where the first one went; `host`: [`early::HOST`], or 0. A
/// global function: the verifier goes through it once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn keep(ctx: *mut xdp_md, host: u32) -> u32 {
    // SAFETY: the context is the one the program was called with.
    let (length, ifindex) = unsafe { (bpf_xdp_get_buff_len(ctx), (*ctx).ingress_ifindex) };
    let unread = if host == 0 { 0 } else { maps::EARLY.query(BPF_RB_AVAIL_DATA.into()) };
    if length > early::FRAME as u64 || unread > early::HOST_BYTES {
        return Reason::Fragment as u32;
    }
    let Some(mut record) = maps::EARLY.reserve::<Early>(0) else { return Reason::Fragment as u32 };
    let record_of: *mut Early = record.as_mut_ptr();
    // SAFETY: the record is as large as an `Early`, and aligned to 8; the helper writes `early::FRAME` bytes at most.
    let failed = unsafe {
        (&raw mut (*record_of).ifindex).write(ifindex);
        (&raw mut (*record_of).length).write(length as u32 | host);
        let bytes = (&raw mut (*record_of).bytes).cast();
        bpf_xdp_load_bytes(ctx, 0, bytes, bounded::<{ early::FRAME as u32 - 1 }>(length as u32))
            != 0
    };
    if failed {
        record.discard(0);
        return Reason::Fragment as u32;
    }
    record.submit(0);
    Reason::FragmentKept as u32
}
