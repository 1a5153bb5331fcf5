//! Full NAT: packets for services behind NAT, and their backends' replies to NAT addresses.
//!
//! A program of its own, which is handed a packet that nobody has changed yet. A client's packet: frontend,
//! backend, entry ([`forth`]); a backend's: entry ([`back`]); both are rewritten in the same way.

mod back;
mod forth;
mod icmp;
mod other;
mod parts;
pub(crate) mod quick;
pub(crate) mod rows;
mod steer;
mod tags;
mod write;

pub(crate) use icmp::NatIcmp;
pub(crate) use other::{NatOther, Onward};
pub(crate) use parts::NatParts;
pub(crate) use steer::NatSteer;
pub(crate) use tags::NatTags;

use abi::{
    limits::behind,
    reason::Reason,
    wire::{self, Frame, Ip, Tcp, protocol},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use crate::{
    behind::{Program, answer},
    maps,
    packet::Packet,
    stage::service,
};

/// Where the IP header begins.
const L3: usize = 14;

/// What a transport header says.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    /// As loaded: source low, destination high.
    ports: u32,
    /// TCP's; 0 for UDP.
    flags: u8,
    udp: bool,
}

/// The program.
pub(crate) struct Nat;

impl Program for Nat {
    const TRANSLATES: bool = true;

    #[inline(never)]
    fn look<const AT: usize, const V4: bool>(ctx: *mut xdp_md, cpu: u32) -> u32 {
        let mut packet = Packet::new(XdpContext::new(ctx));
        let Some((first, tags)) = maps::handed() else { return Reason::NotIp as u32 };
        if AT != L3 {
            maps::keep_first(first);
            return Reason::NatTagged as u32;
        }
        let ip = if V4 { wire::ipv4(&packet, L3) } else { wire::ipv6(&packet, L3) };
        let Some(ip) = ip else { return answer(first, tags as i32) };
        // These go on: see `onward`.
        if icmp::is_message::<V4>(&ip) && !ip.fragment {
            return answer(Reason::NatRefused, tags as i32);
        }
        if !is_plain::<V4>(&ip) {
            maps::keep_first(first);
            return answer(Reason::NatNotPlain, tags as i32);
        }
        let Some(segment) = parse::<V4>(&packet, &ip) else {
            return answer(refuse(first), tags as i32);
        };
        let done = if let Reason::NatPassed = first {
            back::run::<V4>(&mut packet, &ip, segment)
        } else {
            forth::run::<V4, false>(&mut packet, &ip, segment, tags, cpu)
        };
        answer(done.unwrap_or_else(|reason| reason), tags as i32)
    }

    #[inline(always)]
    fn not_ip() -> Reason {
        maps::handed_on().unwrap_or(Reason::NotIp)
    }

    #[inline(always)]
    fn onward(reason: Reason) -> Option<u32> {
        match reason {
            Reason::NatRefused => Some(behind::NAT_ICMP),
            Reason::NatNotWritten => Some(behind::NAT_OTHER),
            Reason::NatNotChosen => Some(behind::NAT_STEER),
            Reason::NatTagged => Some(behind::NAT_TAGS),
            Reason::NatNotPlain => Some(behind::NAT_PARTS),
            reason => (reason.is_exceptional() && !reason.is_nat()).then_some(behind::SECOND),
        }
    }
}

/// A packet that [`Nat`] handed on, without tags; its IP header; and how many bytes of tags were taken off.
///
/// # Errors
/// What [`Program::look`] answers at once, for this reason: it is none of these.
#[inline(always)]
fn opened<const AT: usize, const V4: bool>(
    ctx: *mut xdp_md,
    reason: Reason,
) -> Result<(Packet, Ip, u32), u32> {
    let packet = Packet::new(XdpContext::new(ctx));
    let Some((_, tags)) = maps::handed() else { return Err(reason as u32) };
    if AT != L3 {
        return Err(reason as u32);
    }
    match if V4 { wire::ipv4(&packet, L3) } else { wire::ipv6(&packet, L3) } {
        Some(ip) => Ok((packet, ip, tags)),
        None => Err(answer(reason, tags as i32)),
    }
}

/// Who goes on with a packet that one of these programs has decided on: as [`Program::onward`].
#[inline(always)]
const fn decided(reason: Reason) -> Option<u32> {
    match reason {
        Reason::NatNotWritten => Some(behind::NAT_OTHER),
        Reason::TooBig | Reason::FragmentKept => Some(behind::SECOND),
        _ => None,
    }
}

/// What is not translated: nobody's business at a NAT address, dropped at a service.
#[inline(always)]
const fn refuse(first: Reason) -> Reason {
    match first {
        Reason::NatPassed => Reason::NatPassed,
        _ => Reason::NatRefused,
    }
}

/// Whether a packet is whole, has ports, and has them right behind its IP header.
#[inline(always)]
fn is_plain<const V4: bool>(ip: &Ip) -> bool {
    !ip.fragment && ip.header == header::<V4>() && service::is_usual(ip.protocol)
}

/// Bytes of the IP header.
#[inline(always)]
const fn header<const V4: bool>() -> usize {
    if V4 { 20 } else { 40 }
}

#[inline(always)]
fn parse<const V4: bool>(packet: &Packet, ip: &Ip) -> Option<Segment> {
    parse_at(packet, L3 + header::<V4>(), ip.protocol)
}

/// What the transport header at this place says; of TCP all of it is there.
#[inline(always)]
fn parse_at(packet: &Packet, at: usize, number: u8) -> Option<Segment> {
    let udp = number == protocol::UDP;
    let ports = wire::transport(packet, at, number)?.ports;
    Some(Segment { ports, flags: flags(packet, at, udp)?, udp })
}

/// TCP's flags in the header at this place; 0 for UDP.
#[inline(always)]
fn flags(packet: &Packet, at: usize, udp: bool) -> Option<u8> {
    if udp {
        return Some(0);
    }
    Some(packet.header::<Tcp>(at)?.flags()[0])
}
