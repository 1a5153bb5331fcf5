//! Samples of verdicts for the daemon, as `abi::event` has it. A packet that is not sampled costs one load,
//! comparison and store; what is sampled goes out of line.
//!
//! A sample is put together in a place of its own for each CPU, not on the stack: what the verifier allows
//! for both functions together is nearly used up by the decision.

use abi::{
    event::{CAPTURED, Head, Hook, Outcome, Stream},
    policy::{Decision, Interface, Way},
    reason::Reason,
};
use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};

use crate::{
    maps::{self, Maps},
    packet::Packet,
};

/// Samples the packet, if its turn has come. What policy has no say in is left out.
#[inline(always)]
pub(crate) fn note(packet: &Packet, cpu: u32, way: Way, decision: &Decision) {
    let reason = decision.reason;
    let outcome = match reason {
        Reason::NotIp | Reason::NoEndpoint | Reason::PolicyNeighbour | Reason::PolicyNotHost => {
            return;
        }
        Reason::PolicyAudit => Outcome::Audited,
        reason => Outcome::of(reason),
    };
    let stream = match outcome {
        Outcome::Passed => Stream::Passed,
        _ => Stream::Dropped,
    };
    let row = stream.row(cpu);
    let Some(sampler) = maps::sampler(row) else { return };
    // SAFETY: the kernel's lookup returned it; only this CPU writes what programs change there, and XDP
    // and both hooks here run with bottom halves disabled.
    if unsafe { (*sampler).is_due() } {
        let Some(event) = maps::event(row) else { return };
        let (hook, identities) = match way {
            Way::In => (Hook::Ingress, [decision.peer, 0]),
            Way::Out => (Hook::Egress, [0, decision.peer]),
        };
        // SAFETY: as above; only this CPU uses this row.
        unsafe {
            (&raw mut (*event).head).write(Head {
                time: 0,
                number: decision.rule,
                identities,
                ifindex: 0,
                length: 0,
                weight: 0,
                reason: reason as u16,
                captured: 0,
                hook: hook as u8,
                outcome: outcome as u8,
                reserved: [0; 10],
            });
        }
        emit(packet.context(), row);
    }
}

/// Adds what `note` does not know, and hands the sample over. Out of line: it is rare.
#[inline(never)]
fn emit(ctx: *mut __sk_buff, row: u32) -> u32 {
    let Some(event) = maps::event(row) else { return 0 };
    let Some(sampler) = maps::sampler(row) else { return 0 };
    // SAFETY: as in `note`.
    let Some(weight) = (unsafe { (*sampler).take() }) else { return 0 };
    // SAFETY: as in `note`; the context is the one the program was called with.
    let ifindex = unsafe {
        let length = (*ctx).len;
        (*event).head.weight = weight;
        (*event).head.length = length;
        (*event).head.time = maps::time();
        let ifindex = (*ctx).ifindex;
        (*event).head.ifindex = ifindex;
        ifindex
    };
    let own = Interface::from_word(Maps::word_of(ifindex)).map_or(0, |own| own.identity);
    // SAFETY: as above; the helper writes `captured` bytes at most into `bytes`, which has `CAPTURED`.
    unsafe {
        let receives = (*event).head.hook == Hook::Ingress as u8;
        (*event).head.identities[usize::from(receives)] = own;
        let length = (*ctx).len;
        let captured = if length < CAPTURED as u32 { length } else { CAPTURED as u32 };
        (*event).head.captured = captured as u16;
        let bytes = (&raw mut (*event).bytes).cast();
        if captured == 0 || bpf_skb_load_bytes(ctx.cast(), 0, bytes, captured) != 0 {
            return 0;
        }
        if maps::EVENTS.output::<abi::event::Event>(&*event, 0).is_err()
            && let Some(sampler) = maps::sampler(row)
        {
            (*sampler).lose();
        }
    }
    1
}
