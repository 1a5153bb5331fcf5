//! Segments that may be tried at two backends ([`abi::chance`]): how they leave the balancer, and what a
//! backend does with them.
//!
//! A program of its own, which is handed a packet that nobody has changed yet and looks at it from the
//! beginning.

mod receive;
mod send;

use abi::{
    reason::Reason,
    wire::{self, Eth, Frame, Vlan, ethertype},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use crate::{
    maps::{self, feature},
    packet::Packet,
};

/// The reason that stands in the end.
#[inline(always)]
pub(crate) fn run(packet: &Packet, cpu: u32) -> Reason {
    let Some(eth) = packet.header::<Eth>(0) else { return Reason::Truncated };
    let e = eth.ethertype();
    if !ethertype::is_vlan(e) {
        return network::<14>(packet, e, cpu);
    }
    let Some(outer) = packet.header::<Vlan>(14) else { return Reason::Truncated };
    let e = outer.ethertype();
    if !ethertype::is_vlan(e) {
        return network::<18>(packet, e, cpu);
    }
    let Some(inner) = packet.header::<Vlan>(18) else { return Reason::Truncated };
    network::<22>(packet, inner.ethertype(), cpu)
}

#[inline(always)]
fn network<const L3: usize>(packet: &Packet, e: [u8; 2], cpu: u32) -> Reason {
    let index = match e {
        ethertype::IPV4 => look::<L3, true>(packet.context(), cpu),
        ethertype::IPV6 => look::<L3, false>(packet.context(), cpu),
        _ => return Reason::SecondChance,
    };
    Reason::from_index(index).unwrap_or(Reason::SecondChance)
}

/// Returns the index of a reason.
#[inline(never)]
fn look<const L3: usize, const V4: bool>(ctx: *mut xdp_md, cpu: u32) -> u32 {
    let mut packet = Packet::new(XdpContext::new(ctx));
    let ip = if V4 { wire::ipv4(&packet, L3) } else { wire::ipv6(&packet, L3) };
    let Some(ip) = ip else { return Reason::SecondChance as u32 };
    if maps::has(feature::DECAP) && receive::is_for::<L3, V4>(&packet, &ip) {
        return receive::run::<L3, V4>(&mut packet, &ip).unwrap_or_else(|r| r) as u32;
    }
    if maps::has(feature::BALANCE) {
        return send::run::<L3, V4>(&mut packet, &ip, cpu).unwrap_or_else(|r| r) as u32;
    }
    Reason::SecondChance as u32
}
