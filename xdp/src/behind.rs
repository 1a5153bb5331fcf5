//! The programs that a packet goes on to from the first one by a tail call ([`abi::limits::behind`]).
//!
//! Each is handed a packet that nobody has changed yet and looks at it from the beginning, so that it costs
//! the fast path neither registers nor stack, and has a verifier's budget of its own.

use abi::{
    reason::Reason,
    wire::{Eth, Frame, Vlan, ethertype},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use crate::{end, maps, packet::Packet};

/// Such a program.
pub(crate) trait Program {
    /// What it does with an IP packet; made once for each place where the IP header can begin. Returns the
    /// index of a reason.
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
    let index = link::<P>(&packet, cpu);
    let reason = index.and_then(Reason::from_index).unwrap_or_else(P::not_ip);
    if let Some(place) = P::onward(reason) {
        maps::hand_on(packet.context(), place, reason);
    }
    end(&packet, cpu, reason, bytes)
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
