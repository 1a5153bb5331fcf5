//! VLAN tags of packets that are translated.
//!
//! A program of its own, gone on to in both ways. Tags come off before the others look at a packet, which so know of no
//! tags; they are put back on what is not sent. A client's entry remembers them, and replies leave with them: what has been
//! translated comes here once more.

use abi::{
    limits::behind,
    reason::Reason,
    wire::{Frame as _, Word, ethertype},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use super::L3;
use crate::{
    behind::{Program, answer},
    maps,
    packet::Packet,
};

/// The program.
pub(crate) struct NatTags;

impl Program for NatTags {
    #[inline(never)]
    fn look<const AT: usize, const V4: bool>(ctx: *mut xdp_md, _: u32) -> u32 {
        let mut packet = Packet::new(XdpContext::new(ctx));
        let done = if AT == L3 { on::<V4>(&mut packet) } else { off::<AT, V4>(&mut packet) };
        done.unwrap_or_else(|reason| reason as u32)
    }

    #[inline(always)]
    fn not_ip() -> Reason {
        Reason::NatTagged
    }

    #[inline(always)]
    fn onward(reason: Reason) -> Option<u32> {
        if reason.is_nat() {
            // Without its tags, or with them again.
            return maps::handed().is_some_and(|(_, tags)| tags != 0).then_some(behind::NAT);
        }
        let second = reason.is_exceptional() || matches!(reason, Reason::FragmentKept);
        second.then_some(behind::SECOND)
    }
}

#[inline(always)]
const fn kind<const V4: bool>() -> [u8; 2] {
    if V4 { ethertype::IPV4 } else { ethertype::IPV6 }
}

/// Both MAC addresses, each in the first six bytes of a word.
#[inline(always)]
fn macs(packet: &Packet) -> Option<(u64, u64)> {
    let word = |at| packet.header::<Word>(at).map(|word| u64::from_ne_bytes(word.value()));
    Some((word(0)?, word(6)?))
}

/// Takes the tags off.
#[inline(always)]
fn off<const AT: usize, const V4: bool>(packet: &mut Packet) -> Result<u32, Reason> {
    let tags = packet.tags::<AT>().ok_or(Reason::Truncated)?;
    let (dst, src) = macs(packet).ok_or(Reason::Truncated)?;
    let first = maps::kept_first().ok_or(Reason::NatTagged)?;
    maps::keep_tags(tags);
    maps::hand_tags((AT - L3) as u32);
    packet.grow_head(-((AT - L3) as i32))?;
    packet.put_link::<L3>(dst, src, 0, kind::<V4>()).ok_or(Reason::AdjustFailed)?;
    Ok(answer(first, 0))
}

/// Puts tags on: those that a translated packet leaves with, or that another one came with.
#[inline(always)]
fn on<const V4: bool>(packet: &mut Packet) -> Result<u32, Reason> {
    let (said, came) = maps::handed().ok_or(Reason::NatTagged)?;
    let out = maps::out().ok_or(Reason::NatTagged)?;
    let bytes = packet.len() as i32;
    if let Reason::NatTagged = said {
        put::<V4>(packet, out.tags)?;
        return Ok(answer(packet.send(out.ifindex), out.bytes as i32 + came as i32 - bytes));
    }
    put::<V4>(packet, maps::kept_tags().ok_or(Reason::NatTagged)?)?;
    maps::hand_tags(0);
    Ok(answer(said, came as i32))
}

#[inline(always)]
fn put<const V4: bool>(packet: &mut Packet, tags: u64) -> Result<(), Reason> {
    let (dst, src) = macs(packet).ok_or(Reason::Truncated)?;
    let put = if tags >> 32 == 0 {
        packet.grow_head(4)?;
        packet.put_link::<18>(dst, src, tags, kind::<V4>())
    } else {
        packet.grow_head(8)?;
        packet.put_link::<22>(dst, src, tags, kind::<V4>())
    };
    put.ok_or(Reason::AdjustFailed)
}
