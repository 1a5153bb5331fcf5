//! The second look at packets for a VIP that the fast path does not forward: ICMP, fragments, IPv6
//! extension headers, packets that are too big, and ports that no service has.

pub(crate) mod answer;
mod fragment;
mod icmp;

use abi::{
    limits::behind,
    reason::Reason,
    table::{Mode, Unserved},
    upper::{self, Upper},
    wire::{self, Ip, protocol},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use crate::{
    behind::Program,
    maps,
    packet::Packet,
    stage::{decap, service},
};

/// The program.
pub(crate) struct Second;

impl Program for Second {
    #[inline(never)]
    fn look<const L3: usize, const V4: bool>(ctx: *mut xdp_md, cpu: u32) -> u32 {
        let mut packet = Packet::new(XdpContext::new(ctx));
        let Some(first) = maps::handed_on() else { return Reason::NotIp as u32 };
        let ip = if V4 { wire::ipv4(&packet, L3) } else { wire::ipv6(&packet, L3) };
        let Some(ip) = ip else { return first as u32 };
        let upper = if V4 { upper::v4(&packet, L3) } else { upper::v6(&packet, L3) };
        let Some(upper) = upper.and_then(|u| maps::forget(&u)) else {
            return Reason::Truncated as u32;
        };

        let reason = match first {
            Reason::FragmentKept => return fragment::perhaps_own(&packet) as u32,
            Reason::TunnelSourceRefused => {
                let tunnel = decap::tunnel::<L3>(&packet, &ip);
                return decap::restricted::<L3>(&mut packet, &ip, tunnel) as u32;
            }
            Reason::Fragment | Reason::VipOtherProtocol => {
                route::<L3, V4>(&mut packet, &ip, &upper, cpu).unwrap_or_else(|r| r)
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
    fn not_ip() -> Reason {
        maps::handed_on().unwrap_or(Reason::NotIp)
    }

    #[inline(always)]
    fn onward(reason: Reason) -> Option<u32> {
        match reason {
            Reason::SecondChance => Some(behind::SECOND_CHANCE),
            // Not back to where it has come from.
            _ if matches!(maps::handed_on(), Some(Reason::FragmentKept)) => None,
            reason if reason.is_nat() => Some(behind::NAT),
            _ => None,
        }
    }
}

#[inline(always)]
fn route<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    upper: &Upper,
    cpu: u32,
) -> Result<Reason, Reason> {
    if upper.piece.is_part() {
        return fragment::run::<L3, V4>(packet, ip, upper, cpu);
    }
    let icmp = if V4 { protocol::ICMP } else { protocol::ICMP6 };
    if upper.protocol == icmp {
        return icmp::run::<L3, V4>(packet, ip, upper, cpu);
    }
    if !service::balances(upper.protocol) {
        return Err(Reason::VipOtherProtocol);
    }
    // Behind extension headers.
    let transport = wire::transport(packet, upper.at, upper.protocol).ok_or(Reason::Truncated)?;
    let inner = Ip { protocol: upper.protocol, ..*ip };
    let (row, frontend) = service::frontend(&inner, &transport)?;
    service::permit(frontend, ip.src)?;
    service::sendable::<L3, V4>(packet, upper.protocol, upper.at - L3)?;
    if frontend.mode() == Mode::Nat {
        return Err(Reason::NatNoEntry);
    }
    let picked = service::pick_again(&inner, &transport, row)?;
    service::sent::<L3, V4>(packet, &transport, row, frontend, &picked, cpu)
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
