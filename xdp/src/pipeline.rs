//! The order of the stages.
//!
//! Ethernet -> (VLAN tags) -> IP -> prefilter -> decapsulation -> service (-> SYN proxy). The pipeline is made once
//! for each place where an IP header can begin, so that every offset in it is a constant.

use abi::{
    limits::behind,
    reason::Reason,
    table::Control,
    wire::{self, Eth, Frame, Ip, Vlan, ethertype},
};

use crate::{
    events,
    maps::{self, feature},
    packet::Packet,
    stage::{
        decap::{self, Tunnel},
        guard, prefilter, service,
    },
    synproxy,
};

/// Runs the packet through every stage that this instance has.
#[inline(always)]
pub(crate) fn run(packet: &mut Packet, cpu: u32) -> Reason {
    let Some(eth) = packet.header::<Eth>(0) else { return Reason::NotIp };
    match eth.ethertype() {
        e if ethertype::is_vlan(e) => tagged(packet, cpu),
        e => network::<14>(packet, e, cpu),
    }
}

/// One or two VLAN tags; they are put back as they came.
#[inline(always)]
fn tagged(packet: &mut Packet, cpu: u32) -> Reason {
    let Some(outer) = packet.header::<Vlan>(14) else { return Reason::NotIp };
    let e = outer.ethertype();
    if !ethertype::is_vlan(e) {
        return network::<18>(packet, e, cpu);
    }
    let Some(inner) = packet.header::<Vlan>(18) else { return Reason::NotIp };
    let e = inner.ethertype();
    network::<22>(packet, e, cpu)
}

#[inline(always)]
fn network<const L3: usize>(packet: &mut Packet, e: [u8; 2], cpu: u32) -> Reason {
    match e {
        ethertype::IPV4 => match wire::ipv4(packet, L3) {
            Some(ip) => all::<L3, true>(packet, &ip, cpu),
            None => Reason::NotOurs,
        },
        ethertype::IPV6 => match wire::ipv6(packet, L3) {
            Some(ip) => all::<L3, false>(packet, &ip, cpu),
            None => Reason::NotOurs,
        },
        _ => Reason::NotIp,
    }
}

/// The stages; what would then go to the host's stack is seen by the SYN proxy, where there is one.
#[inline(always)]
fn all<const L3: usize, const V4: bool>(packet: &mut Packet, ip: &Ip, cpu: u32) -> Reason {
    let reason = ip_stages::<L3, V4>(packet, ip, cpu);
    if maps::has(feature::SYN_PROXY)
        && matches!(reason, Reason::NotOurs | Reason::DeliveredLocally)
        && synproxy::is_for::<L3, V4>(packet, ip)
    {
        maps::hand_on(packet.context(), behind::SYN, reason);
    }
    reason
}

#[inline(always)]
fn ip_stages<const L3: usize, const V4: bool>(packet: &mut Packet, ip: &Ip, cpu: u32) -> Reason {
    if maps::has(feature::PREFILTER) {
        let flags = maps::flags();
        if prefilter::blocks::<L3, V4>(packet, ip, flags, cpu) {
            return Reason::Blocked;
        }
        if flags & Control::GUARD != 0
            && let Some(reason) = guard::refuses::<L3, V4>(packet, ip, flags, cpu)
        {
            return reason;
        }
        events::passed(packet, cpu);
    }
    if maps::has(feature::DECAP) {
        let tunnel = decap::tunnel::<L3>(packet, ip);
        if tunnel != Tunnel::None
            && let Some(reason) = decap::run::<L3>(packet, ip, tunnel)
        {
            return reason;
        }
    }
    if maps::has(feature::BALANCE) {
        return service::run::<L3, V4>(packet, ip, cpu);
    }
    Reason::NotOurs
}
