//! The programs that a packet goes on to from the first one by a tail call ([`abi::limits::behind`]).
//!
//! Each is handed a packet that nobody has changed yet and looks at it from the beginning, so that it costs
//! the fast path neither registers nor stack, and has a verifier's budget of its own.

use abi::{
    limits::behind as places,
    reason::{Reason, Verdict},
    wire::{Eth, Frame, Vlan, ethertype},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use crate::{end, maps, packet::Packet};

/// Such a program.
pub(crate) trait Program {
    /// Whether tags may have been taken off its packets, which [`crate::nat::NatTags`] then puts back on those that
    /// are not sent.
    const TRANSLATES: bool = false;

    /// What it does with an IP packet; made once for each place where the IP header can begin. Returns the
    /// index of a reason; in the upper half by how many bytes the packet was longer when it came ([`answer`]).
    fn look<const L3: usize, const V4: bool>(ctx: *mut xdp_md, cpu: u32) -> u32;

    /// The reason of a packet without an IP header, which the first program would not have handed on.
    fn not_ip() -> Reason;

    /// The program that goes on with a packet for this reason.
    fn onward(reason: Reason) -> Option<u32>;
}

/// Runs it.
#[inline(always)]
pub(crate) fn run<P: Program>(ctx: XdpContext) -> u32 {
    let packet = Packet::new(ctx);
    let bytes = packet.arrived();
    let cpu = maps::cpu();
    let found = link::<P>(&packet, cpu);
    let reason = found.and_then(|found| Reason::from_index(found & 0xffff));
    let reason = reason.unwrap_or_else(P::not_ip);
    let longer = found.map_or(0, |found| found as i32 >> 16);
    let place = match P::onward(reason) {
        None | Some(places::SECOND)
            if P::TRANSLATES && longer != 0 && reason.verdict() != Verdict::Forward =>
        {
            Some(places::NAT_TAGS)
        }
        place => place,
    };
    if let Some(place) = place {
        maps::hand_further(packet.context(), place, reason);
    }
    end(&packet, cpu, reason, bytes.wrapping_add_signed(longer.into()))
}

/// What [`Program::look`] answers.
#[inline(always)]
pub(crate) const fn answer(reason: Reason, longer: i32) -> u32 {
    reason as u32 | (longer as u32) << 16
}

/// Over the link header and its VLAN tags, two at most.
#[inline(always)]
fn link<P: Program>(packet: &Packet, cpu: u32) -> Option<u32> {
    let e = packet.header::<Eth>(0)?.ethertype();
    if !ethertype::is_vlan(e) {
        return network::<P, 14>(packet, e, cpu);
    }
    let e = packet.header::<Vlan>(14)?.ethertype();
    if !ethertype::is_vlan(e) {
        return network::<P, 18>(packet, e, cpu);
    }
    let e = packet.header::<Vlan>(18)?.ethertype();
    network::<P, 22>(packet, e, cpu)
}

#[inline(always)]
fn network<P: Program, const L3: usize>(packet: &Packet, e: [u8; 2], cpu: u32) -> Option<u32> {
    match e {
        ethertype::IPV4 => Some(P::look::<L3, true>(packet.context(), cpu)),
        ethertype::IPV6 => Some(P::look::<L3, false>(packet.context(), cpu)),
        _ => None,
    }
}
