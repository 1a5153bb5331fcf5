//! Flows of slots that move: where does their entry, or its tag, say that they go?

use abi::{
    addr::Addr,
    flow::{FlowEntry, FlowKey},
    hash::Tuple,
    pick::{self, Phase, Tables as _},
    table::{Backend, Frontend, Slot},
};

use crate::{
    constant,
    maps::{self, Maps},
};

/// As [`unsettled`], with its backend. A flow that goes on nearly always has a tag, and needs no call; one that begins needs
/// a single one.
#[inline(always)]
pub(super) fn moving(
    row: u32,
    slot: Slot,
    tuple: &Tuple,
    hash: u64,
    phase: Phase,
) -> Option<(u32, &'static Backend)> {
    if phase != Phase::Opening {
        if let Some(found) = first_tagged(slot, hash, phase == Phase::Established) {
            return Some(found);
        }
    } else if let Some((to, backend)) = pick::begins(&Maps, slot) {
        let rows = u64::from(row) | u64::from(to) << 32;
        flow_keeps(rows, tuple.src.hi(), tuple.src.lo(), word(tuple, phase, false), hash);
        return Some((to, backend));
    }
    Maps.backend_at(unsettled(row, tuple, hash, phase))
}

/// The backend that a flow's tag says, if that is where it nearly always is.
#[inline(always)]
fn first_tagged(slot: Slot, hash: u64, began: bool) -> Option<(u32, &'static Backend)> {
    let tag = Maps.tag(hash, 0);
    let mut row = tag.backend();
    // It is one of the slot's two, nearly always. That is guessed by the processor, which goes on with the number that
    // it has at hand, while the tag may still be on its way from memory.
    let Slot { current, previous } = slot;
    let (by_current, by_previous) = (constant::unknown(current), constant::unknown(previous));
    if row == previous {
        row = by_previous as u32;
    } else if row == current {
        row = by_current as u32;
    }
    let (row, backend) = Maps.backend_at(row)?;
    pick::is_tag(tag, hash, row, backend, Maps.seconds(), began).then_some((row, backend))
}

/// What [`pick::unsettled`] says of a flow for the frontend of this row.
#[inline(always)]
pub(crate) fn unsettled(row: u32, tuple: &Tuple, hash: u64, phase: Phase) -> u32 {
    let flow = word(tuple, phase, false);
    flow_unsettled(row, tuple.src.hi(), tuple.src.lo(), flow, hash)
}

/// All of a flow in one word but its addresses: ports, protocol, phase, and whether it is closing.
#[inline(always)]
pub(super) fn word(tuple: &Tuple, phase: Phase, closing: bool) -> u64 {
    u64::from(tuple.ports)
        | u64::from(tuple.protocol) << 32
        | (phase as u64) << 40
        | u64::from(closing) << 48
}

/// In such a word: the group that its client is routed to takes no new flow, so it is remembered where it goes.
pub(super) const FELL_BACK: u64 = 1 << 49;

/// From it, with the address of the frontend that it is for.
#[inline(always)]
pub(super) fn of_word(word: u64, frontend: &Frontend, src: Addr) -> (Tuple, Phase, bool) {
    let dst = frontend.key().addr;
    let tuple = Tuple { src, dst, ports: word as u32, protocol: (word >> 32) as u8 };
    (tuple, phase_of(word), word >> 48 & 1 != 0)
}

#[inline(always)]
const fn phase_of(word: u64) -> Phase {
    match word >> 40 & 3 {
        0 => Phase::Opening,
        1 => Phase::Established,
        _ => Phase::Unknown,
    }
}

/// A global function: the verifier goes through it once, and its stack is its own. `flow`: [`word`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_unsettled(row: u32, src_hi: u64, src_lo: u64, flow: u64, hash: u64) -> u32 {
    entered_or_fresh(row, src_hi, src_lo, flow, hash)
}

/// [`pick::unsettled`] of global functions, none of which calls another: each has as much stack as all of it would.
#[inline(always)]
pub(super) fn entered_or_fresh(row: u32, src_hi: u64, src_lo: u64, flow: u64, hash: u64) -> u32 {
    if phase_of(flow) != Phase::Opening {
        let found = flow_tagged(flow, hash);
        if found != Slot::NONE {
            return found;
        }
        let found = flow_known(row, src_hi, src_lo, flow, hash);
        if found != Slot::NONE {
            return found;
        }
    }
    let found = flow_fresh(row, flow, hash);
    if found & REMEMBER != 0 {
        flow_keeps(u64::from(row) | found << 32, src_hi, src_lo, flow, hash);
    }
    found as u32
}

/// Beside a row: the flow is to have an entry.
const REMEMBER: u64 = 1 << 32;

/// [`pick::tagged`]. A global function, as the one above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_tagged(flow: u64, hash: u64) -> u32 {
    pick::tagged(&Maps, hash, phase_of(flow) == Phase::Established)
}

/// [`pick::known`]. A global function, as the one above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_known(row: u32, src_hi: u64, src_lo: u64, flow: u64, hash: u64) -> u32 {
    let Some(frontend) = maps::frontend(row) else { return Slot::NONE };
    let (tuple, phase, _) = of_word(flow, frontend, Addr::from_halves(src_hi, src_lo));
    pick::known(&Maps, &FlowKey::new(&tuple), hash, phase)
}

/// [`pick::fresh`]. A global function, as the one above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_fresh(row: u32, flow: u64, hash: u64) -> u64 {
    const NOBODY: u64 = Slot::NONE as u64;
    let Some(frontend) = maps::frontend(row) else { return NOBODY };
    let (row, remember) = pick::fresh(&Maps, frontend, hash, phase_of(flow));
    u64::from(row) | if remember { REMEMBER } else { 0 }
}

/// [`pick::keep`]; `rows`: of the frontend, and above it of the backend. A global function, as the one above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_keeps(rows: u64, src_hi: u64, src_lo: u64, flow: u64, hash: u64) -> u32 {
    let Some(frontend) = maps::frontend(rows as u32) else { return 0 };
    if !Maps.admit() {
        return 0;
    }
    let to = (rows >> 32) as u32;
    let Some(backend) = Maps.backend(to) else { return 0 };
    let (tuple, ..) = of_word(flow, frontend, Addr::from_halves(src_hi, src_lo));
    maps::put_entry(&FlowKey::new(&tuple), &FlowEntry::new(to, backend.epoch()));
    maps::remember_put(hash);
    0
}
