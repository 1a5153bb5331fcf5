//! The XDP program of the appliance.
//!
//! Owns nothing but the order of things: run the pipeline, count its reason, turn the reason into an
//! action. A packet's way: [`pipeline`] -> [`stage`]s -> one [`abi::reason::Reason`]. What is for a VIP
//! and cannot be forwarded as it stands goes on to a second program, [`exception`]; what is for a service that
//! wants more than its ring says, to [`choice`].
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the xdp macro makes an item that cannot carry any")]
#![expect(unreachable_pub, reason = "the kernel is who reaches it")]

mod chance;
mod choice;
mod events;
mod exception;
mod maps;
mod packet;
mod pipeline;
mod stage;

use abi::{
    limits::behind,
    reason::{Reason, Verdict},
};
use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

use crate::{maps::feature, packet::Packet};

/// Entry point on every interface; what it does there is set in [`maps::FEATURES`] at load.
#[xdp(frags)]
#[inline(always)]
pub fn lb(ctx: XdpContext) -> u32 {
    let mut packet = Packet::new(ctx);
    let bytes = packet.arrived();
    let cpu = maps::cpu();
    let reason = pipeline::run(&mut packet, cpu);
    if reason.is_exceptional() && maps::has(feature::BALANCE | feature::DECAP) {
        // Does not come back, unless there is no second program.
        maps::hand_on(packet.context(), place(reason), reason);
    }
    maps::count_reason(cpu, reason, bytes);
    events::dropped(&packet, cpu, reason);
    action(reason)
}

/// The second look at packets that are rare and cost more; called by [`lb`] alone.
#[xdp(frags)]
#[inline(always)]
pub fn lb_second(ctx: XdpContext) -> u32 {
    let packet = Packet::new(ctx);
    let bytes = packet.arrived();
    let cpu = maps::cpu();
    let reason = exception::run(&packet, cpu);
    if reason == Reason::SecondChance {
        maps::hand_on(packet.context(), behind::SECOND_CHANCE, reason);
    }
    maps::count_reason(cpu, reason, bytes);
    events::dropped(&packet, cpu, reason);
    action(reason)
}

/// Segments that may be tried at two backends; called by the other two.
#[xdp(frags)]
#[inline(always)]
pub fn lb_chance(ctx: XdpContext) -> u32 {
    let packet = Packet::new(ctx);
    let bytes = packet.arrived();
    let cpu = maps::cpu();
    let reason = chance::run(&packet, cpu);
    if reason == Reason::TooBig {
        maps::hand_on(packet.context(), behind::SECOND, reason);
    }
    maps::count_reason(cpu, reason, bytes);
    events::dropped(&packet, cpu, reason);
    action(reason)
}

/// Packets for a service whose backend is not simply the ring's, or that not everybody may use; called by
/// [`lb`] alone.
#[xdp(frags)]
#[inline(always)]
pub fn lb_choice(ctx: XdpContext) -> u32 {
    let packet = Packet::new(ctx);
    let bytes = packet.arrived();
    let cpu = maps::cpu();
    let reason = choice::run(&packet, cpu);
    if reason.is_exceptional() && reason != Reason::SourceRefused {
        maps::hand_on(packet.context(), place(reason), reason);
    }
    maps::count_reason(cpu, reason, bytes);
    events::dropped(&packet, cpu, reason);
    action(reason)
}

/// The program that goes on with a packet of an exceptional reason.
#[inline(always)]
const fn place(reason: Reason) -> u32 {
    match reason {
        Reason::SecondChance => behind::SECOND_CHANCE,
        Reason::SourceRefused => behind::CHOICE,
        _ => behind::SECOND,
    }
}

#[inline(always)]
const fn action(reason: Reason) -> u32 {
    match reason.verdict() {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Forward => match reason {
            Reason::ForwardedRedirect | Reason::HandedOn => xdp_action::XDP_REDIRECT,
            _ => xdp_action::XDP_TX,
        },
    }
}

/// The licence under which the kernel takes the program.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
