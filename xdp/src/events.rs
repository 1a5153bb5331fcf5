//! Samples of packets for the daemon.
//!
//! A packet that is not sampled costs one load, comparison and store; what is sampled goes out of line.
//! A program without [`feature::EVENTS`] has none of it.

use abi::{
    event::{CAPTURED, Event, Head, Hook, Outcome, Stream},
    reason::{Reason, Verdict},
};
use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
};

use crate::{
    maps::{self, feature},
    packet::Packet,
};

/// What a sample says of a packet.
#[derive(Clone, Copy)]
pub(crate) struct What {
    pub(crate) reason: Reason,
    pub(crate) outcome: Outcome,
    /// Number of its list, row of its limit plus one, or 0.
    pub(crate) number: u32,
}

/// A packet at its end: sampled if it is dropped. Those that lists and limits drop were, with
/// their names; a fragment that is kept comes again.
#[inline(always)]
pub(crate) fn dropped(packet: &Packet, cpu: u32, reason: Reason) {
    let other = reason.verdict() == Verdict::Drop
        && !matches!(reason, Reason::Blocked | Reason::RateLimited | Reason::FragmentKept);
    if maps::has::<{ feature::EVENTS }>() && other {
        note(packet, cpu, Stream::Dropped, What { reason, outcome: Outcome::Dropped, number: 0 });
    }
}

/// A packet that the prefilter lets pass, whatever becomes of it.
#[inline(always)]
pub(crate) fn passed(packet: &Packet, cpu: u32) {
    let what = What { reason: Reason::NotOurs, outcome: Outcome::Passed, number: 0 };
    note(packet, cpu, Stream::Passed, what);
}

/// Samples the packet, if its turn has come.
#[inline(always)]
pub(crate) fn note(packet: &Packet, cpu: u32, stream: Stream, what: What) {
    if !maps::has::<{ feature::EVENTS }>() {
        return;
    }
    let row = stream.row(cpu);
    let Some(sampler) = maps::sampler(row) else { return };
    // SAFETY: the kernel's lookup returned it; only this CPU writes what the program changes there.
    if unsafe { (*sampler).is_due() } {
        let word = what.reason as u64 | (what.outcome as u64) << 16 | u64::from(what.number) << 32;
        emit(packet.context(), u64::from(row), word);
    }
}

/// Out of line, for it is rare; a global function, so that the verifier goes through it once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn emit(ctx: *mut xdp_md, row: u64, word: u64) -> u32 {
    let Some(sampler) = maps::sampler(row as u32) else { return 0 };
    // SAFETY: as in `note`.
    let Some(weight) = (unsafe { (*sampler).take() }) else { return 0 };
    let Some(mut record) = maps::EVENTS.reserve::<Event>(0) else {
        // SAFETY: as in `note`.
        unsafe { (*sampler).lose() };
        return 0;
    };
    // SAFETY: the context is the one the program was called with.
    let (length, ifindex) = unsafe { (bpf_xdp_get_buff_len(ctx), (*ctx).ingress_ifindex) };
    let captured = length.min(CAPTURED as u64) as u32;
    let length_of = bounded::<{ CAPTURED as u32 - 1 }>(captured);
    let event: *mut Event = record.as_mut_ptr();
    // SAFETY: the record is as large as an event, and aligned to 8; the helper writes `captured` bytes at
    // most into `bytes`, which has `CAPTURED`.
    let failed = unsafe {
        (&raw mut (*event).head).write(Head {
            time: maps::now(),
            number: (word >> 32) as u32,
            identities: [0; 2],
            ifindex,
            length: length as u32,
            weight,
            reason: word as u16,
            captured: captured as u16,
            hook: Hook::Xdp as u8,
            outcome: (word >> 16) as u8,
            reserved: [0; 10],
        });
        captured == 0
            || bpf_xdp_load_bytes(ctx, 0, (&raw mut (*event).bytes).cast(), length_of) != 0
    };
    if failed {
        record.discard(0);
    } else {
        record.submit(0);
    }
    1
}

/// The same for 1 to `MASK` + 1, so that the verifier of Linux 6.1 knows it too: it learns nothing from a
/// comparison with 0, and the compiler would leave out what it knows to change nothing.
#[inline(always)]
pub(crate) fn bounded<const MASK: u32>(captured: u32) -> u32 {
    const { assert!((MASK + 1).is_power_of_two()) };
    let mut less = u64::from(captured.wrapping_sub(1));
    // SAFETY: arithmetic.
    unsafe {
        core::arch::asm!(
            "{less} &= {mask}",
            less = inout(reg) less,
            mask = const MASK,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    less as u32 + 1
}
