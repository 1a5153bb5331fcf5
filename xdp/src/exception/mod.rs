//! The second look at packets for a VIP that the fast path does not forward: ICMP, fragments, IPv6
//! extension headers, packets that are too big, and ports that no service has.
//!
//! A program of its own, which is handed a packet that nobody has changed yet and looks at it from the
//! beginning, so that it costs the fast path neither registers nor stack.

mod answer;
mod fragment;
mod icmp;

use abi::{
    reason::Reason,
    table::Unserved,
    upper::{self, Upper},
    wire::{self, Eth, Frame, Ip, Vlan, ethertype, protocol},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use crate::{
    maps,
    packet::Packet,
    stage::{decap, service},
};

/// The reason that stands in the end.
#[inline(always)]
pub(crate) fn run(packet: &Packet, cpu: u32) -> Reason {
    let Some(first) = maps::handed_on() else { return Reason::NotIp };
    let Some(eth) = packet.header::<Eth>(0) else { return first };
    let e = eth.ethertype();
    if !ethertype::is_vlan(e) {
        return network::<14>(packet, e, first, cpu);
    }
    let Some(outer) = packet.header::<Vlan>(14) else { return first };
    let e = outer.ethertype();
    if !ethertype::is_vlan(e) {
        return network::<18>(packet, e, first, cpu);
    }
    let Some(inner) = packet.header::<Vlan>(18) else { return first };
    network::<22>(packet, inner.ethertype(), first, cpu)
}

#[inline(always)]
fn network<const L3: usize>(packet: &Packet, e: [u8; 2], first: Reason, cpu: u32) -> Reason {
    let index = match e {
        ethertype::IPV4 => look::<L3, true>(packet.context(), first as u32, cpu),
        ethertype::IPV6 => look::<L3, false>(packet.context(), first as u32, cpu),
        _ => return first,
    };
    Reason::from_index(index).unwrap_or(first)
}

/// `first`, and what is returned: indexes of reasons.
#[inline(never)]
fn look<const L3: usize, const V4: bool>(ctx: *mut xdp_md, first: u32, cpu: u32) -> u32 {
    let mut packet = Packet::new(XdpContext::new(ctx));
    let Some(first) = Reason::from_index(first) else { return first };
    let ip = if V4 { wire::ipv4(&packet, L3) } else { wire::ipv6(&packet, L3) };
    let Some(ip) = ip else { return first as u32 };
    let upper = if V4 { upper::v4(&packet, L3) } else { upper::v6(&packet, L3) };
    let Some(upper) = upper.and_then(|u| maps::forget(&u)) else { return Reason::Truncated as u32 };

    let reason = match first {
        Reason::TunnelSourceRefused => {
            let tunnel = decap::tunnel::<L3>(&packet, &ip);
            return decap::restricted::<L3>(&mut packet, &ip, tunnel) as u32;
        }
        Reason::Fragment | Reason::VipOtherProtocol | Reason::SourceRefused => {
            route::<L3, V4>(&mut packet, &ip, &upper, cpu)
        }
        other => other,
    };
    let reason = match reason {
        Reason::TooBig => answer::too_big::<L3, V4>(&mut packet, &ip, &upper),
        Reason::NoService | Reason::VipOtherProtocol => {
            unserved::<L3, V4>(&mut packet, &ip, &upper, reason)
        }
        other => other,
    };
    reason as u32
}

#[inline(always)]
fn route<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    upper: &Upper,
    cpu: u32,
) -> Reason {
    if upper.piece.is_part() {
        return fragment::run::<L3, V4>(packet, ip, upper, cpu).unwrap_or_else(|r| r);
    }
    let icmp = if V4 { protocol::ICMP } else { protocol::ICMP6 };
    if upper.protocol == icmp {
        return icmp::run::<L3, V4>(packet, ip, upper, cpu).unwrap_or_else(|r| r);
    }
    if !service::balances(upper.protocol) {
        return Reason::VipOtherProtocol;
    }
    // Behind extension headers, or of a service that not everybody may use.
    let Some(transport) = wire::transport(packet, upper.at, upper.protocol) else {
        return Reason::Truncated;
    };
    let inner = Ip { protocol: upper.protocol, ..*ip };
    match service::frontend(&inner, &transport) {
        Ok((row, frontend)) => {
            if let Err(reason) = service::permit(frontend, ip.src) {
                return reason;
            }
            if let Err(reason) = service::sendable::<L3>(packet, &inner, upper.at - L3) {
                return reason;
            }
            service::pick_again(&inner, &transport, row, frontend)
                .and_then(|picked| {
                    service::sent::<L3, V4>(packet, &inner, &transport, row, frontend, &picked, cpu)
                })
                .unwrap_or_else(|r| r)
        }
        Err(reason) => reason,
    }
}

#[inline(always)]
fn unserved<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    upper: &Upper,
    reason: Reason,
) -> Reason {
    match maps::unserved() {
        Unserved::Drop => reason,
        Unserved::Pass => Reason::UnservedPassed,
        Unserved::Reject => answer::reject::<L3, V4>(packet, ip, upper).unwrap_or(reason),
    }
}
