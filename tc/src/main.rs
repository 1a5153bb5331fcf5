//! The TC programs of the appliance: identity policy on the host side of endpoints' interfaces.
//!
//! What the host sends through such an interface comes in to the endpoint, and what it receives goes
//! out of it. A packet's way: [`packet`] -> [`abi::policy::decide`] -> one [`abi::reason::Reason`], which
//! is counted and turned into an action. A packet that may pass goes on to the programs of others.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(missing_docs, reason = "the classifier macro makes an item that cannot carry any")]
#![expect(unreachable_pub, reason = "the kernel is who reaches it")]

mod events;
mod maps;
mod names;
mod packet;

use abi::{
    policy::{self, Decision, Head, Way},
    reason::{Reason, Verdict},
    wire::{Eth, Frame, ethertype},
};
use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};

use crate::{maps::Maps, packet::Packet};

/// Where an Ethernet frame's IP header begins. The kernel has taken off a VLAN tag before.
const L3: usize = 14;

/// For what comes in to the endpoint: attached to egress of the host's side.
#[classifier]
#[inline(always)]
pub fn into(ctx: TcContext) -> i32 {
    run(Packet::new(ctx), Way::In)
}

/// For what goes out of the endpoint: attached to ingress of the host's side.
#[classifier]
#[inline(always)]
pub fn out(ctx: TcContext) -> i32 {
    run(Packet::new(ctx), Way::Out)
}

#[inline(always)]
fn run(mut packet: Packet, way: Way) -> i32 {
    let cpu = maps::cpu();
    let bytes = packet.all();
    let mut head = parse(&packet);
    if matches!(head, Err(Reason::PolicyMalformed)) && packet.pull() {
        // The headers may lie beyond the buffer's linear part.
        head = parse(&packet);
    }
    let dns = head.as_ref().is_ok_and(|head| names::is_one(head, way));
    let decision = match head {
        Ok(head) => policy::decide(&Maps { cpu }, packet.interface(), way, head, &packet),
        Err(reason) => Decision { reason, rule: 0, peer: 0 },
    };
    maps::count_reason(cpu, decision.reason, bytes);
    if decision.rule != 0 {
        maps::count_rule(cpu, decision.rule - 1, bytes);
    }
    events::note(&packet, cpu, way, &decision);
    match decision.reason.verdict() {
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Pass | Verdict::Forward => {
            if dns {
                names::note(&packet, way);
            }
            // The next program decides; without one the packet passes.
            TC_ACT_UNSPEC
        }
    }
}

#[inline(always)]
fn parse(packet: &Packet) -> Result<Head, Reason> {
    let eth = packet.header::<Eth>(0).ok_or(Reason::PolicyMalformed)?;
    let v4 = match eth.ethertype() {
        ethertype::IPV4 => true,
        ethertype::IPV6 => false,
        _ => return Err(Reason::NotIp),
    };
    policy::head(packet, L3, v4).ok_or(Reason::PolicyMalformed)
}

/// The licence under which the kernel takes the programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
