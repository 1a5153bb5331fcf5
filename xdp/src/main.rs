//! The XDP program of the appliance.
//!
//! Owns nothing but the order of things: run the pipeline, count its reason, turn the reason into an
//! action. A packet's way: [`pipeline`] -> [`stage`]s -> one [`abi::reason::Reason`]. Some go on to another
//! program ([`behind`]): what is for a VIP and cannot be forwarded as it stands to [`exception`], what is for a
//! service that wants more than its ring says, and the rarest of packets, to [`choice`], what is translated to [`nat`], segments with a second
//! chance to [`chance`], those that open a connection to this machine to [`synproxy`].
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, asm_goto_with_outputs)]
#![expect(missing_docs, reason = "the xdp macro makes an item that cannot carry any")]
#![expect(unreachable_pub, reason = "the kernel is who reaches it")]

mod behind;
mod chance;
mod choice;
mod constant;
mod events;
mod exception;
mod flat;
mod host;
mod maps;
mod nat;
mod packet;
mod pipeline;
mod stage;
mod synproxy;

use abi::{
    limits::behind as places,
    reason::{Reason, Verdict},
};
use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

use crate::{maps::feature, packet::Packet, pipeline::End};

/// Entry point on every interface; what it does there is set in [`maps::feature`] at load.
#[xdp(frags)]
#[inline(always)]
pub fn lb(ctx: XdpContext) -> u32 {
    let mut packet = Packet::new(ctx);
    let bytes = packet.arrived();
    let reason = match pipeline::run(&mut packet) {
        End::Sent(action) => return action,
        End::Of(reason) => reason,
    };
    let cpu = maps::cpu();
    // What most other packets come to needs none of what follows.
    let last = match reason {
        Reason::NotOurs => Some(xdp_action::XDP_PASS),
        Reason::Blocked => Some(xdp_action::XDP_DROP),
        _ => None,
    };
    if let Some(action) = last {
        maps::count_reason(cpu, reason, bytes);
        return action;
    }
    if reason.is_exceptional() && maps::has::<{ feature::BALANCE | feature::DECAP }>() {
        // Does not come back, unless there is no such program.
        maps::hand_on(packet.context(), place(reason), reason);
    }
    end(&packet, cpu, reason, bytes)
}

/// The second look at packets that are rare and cost more.
#[xdp(frags)]
#[inline(always)]
pub fn lb_second(ctx: XdpContext) -> u32 {
    behind::run::<exception::Second>(ctx)
}

/// Segments that may be tried at two backends.
#[xdp(frags)]
#[inline(always)]
pub fn lb_chance(ctx: XdpContext) -> u32 {
    behind::run::<chance::Chance>(ctx)
}

/// Packets for a service that wants more than its ring says, or that not everybody may use; and the rarest of all others.
#[xdp(frags)]
#[inline(always)]
pub fn lb_choice(ctx: XdpContext) -> u32 {
    behind::run::<choice::Chosen>(ctx)
}

/// Translation: packets for services behind NAT, and replies to NAT addresses.
#[xdp(frags)]
#[inline(always)]
pub fn lb_nat(ctx: XdpContext) -> u32 {
    behind::run::<nat::Nat>(ctx)
}

/// Translation: packets for services that want more than their ring.
#[xdp(frags)]
#[inline(always)]
pub fn lb_nat_steer(ctx: XdpContext) -> u32 {
    behind::run::<nat::NatSteer>(ctx)
}

/// VLAN tags of packets that are translated.
#[xdp(frags)]
#[inline(always)]
pub fn lb_nat_tags(ctx: XdpContext) -> u32 {
    behind::run::<nat::NatTags>(ctx)
}

/// Translation: fragments, IPv4 options, IPv6 extension headers.
#[xdp(frags)]
#[inline(always)]
pub fn lb_nat_parts(ctx: XdpContext) -> u32 {
    behind::run::<nat::NatParts>(ctx)
}

/// ICMP errors about packets that were translated.
#[xdp(frags)]
#[inline(always)]
pub fn lb_nat_icmp(ctx: XdpContext) -> u32 {
    behind::run::<nat::NatIcmp>(ctx)
}

/// What translation has to write anew: ICMP errors, and packets that change family.
#[xdp(frags)]
#[inline(always)]
pub fn lb_nat_other(ctx: XdpContext) -> u32 {
    behind::run::<nat::NatOther>(ctx)
}

/// Segments for listeners of this machine that open a connection, or belong to none.
#[xdp(frags)]
#[inline(always)]
pub fn lb_syn(ctx: XdpContext) -> u32 {
    behind::run::<synproxy::Proxy>(ctx)
}

/// The program that goes on with a packet of an exceptional reason.
#[inline(always)]
const fn place(reason: Reason) -> u32 {
    match reason {
        Reason::SecondChance => places::SECOND_CHANCE,
        Reason::SourceRefused => places::CHOICE,
        reason if reason.is_nat() => places::NAT,
        _ => places::SECOND,
    }
}

/// Counts and samples a packet at its end; what becomes of it.
#[inline(always)]
fn end(packet: &Packet, cpu: u32, reason: Reason, bytes: u64) -> u32 {
    maps::count_reason(cpu, reason, bytes);
    events::dropped(packet, cpu, reason);
    action(reason)
}

#[inline(always)]
pub(crate) const fn action(reason: Reason) -> u32 {
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
