//! The translated packet. Everything that can refuse has been checked before.

use abi::{
    addr::Addr,
    nat::{To, checksum, family, frame, header4},
    reason::Reason,
    wire::{Frame as _, Ip, Word},
};

use super::{L3, Onward, header};
use crate::{maps, packet::Packet};

/// Whether the packet fits on its way to `dst`, in whose family it will be longer or shorter; the sender is told.
#[inline(always)]
pub(super) fn fits<const V4: bool>(ip: &Ip, dst: Addr, mtu: u32) -> Result<(), Reason> {
    let room = if dst.is_v4() == V4 { mtu } else { family::room(V4, false, mtu) };
    if ip.total > room {
        maps::tell_mtu(room, dst.is_v4() != V4);
        return Err(Reason::TooBig);
    }
    Ok(())
}

/// Whether a packet for `dst` can change family, if it has to: UDP over IPv6 has a checksum, and to make one the
/// whole datagram has to be read (RFC 7915 section 4.5).
#[inline(always)]
pub(super) fn crosses<const V4: bool>(
    packet: &Packet,
    ip: &Ip,
    udp: bool,
    dst: Addr,
) -> Result<(), Reason> {
    if !V4 || !udp || dst.is_v4() {
        return Ok(());
    }
    summable(packet, L3 + header::<V4>(), ip.total - 20)
}

/// Whether the datagram that begins at `at` has a checksum, or can get one; there are so many bytes from there on.
#[inline(always)]
pub(super) fn summable(packet: &Packet, at: usize, bytes: u32) -> Result<(), Reason> {
    let [_, _, _, _, l0, l1, check @ ..] =
        packet.header::<Word>(at).ok_or(Reason::Truncated)?.value();
    let len = u32::from(u16::from_be_bytes([l0, l1]));
    if check == [0, 0] && (len < 8 || len > bytes || len > maps::MOST_SUMMED) {
        return Err(Reason::NatNoChecksum);
    }
    Ok(())
}

/// Translates a packet and sends it, or leaves that to the program for the other family; `macs`: of [`translate`]; `tags`:
/// those that it leaves with.
#[inline(always)]
pub(super) fn send<const V4: bool>(
    packet: &mut Packet,
    udp: bool,
    to: &To,
    macs: (u64, u64),
    ifindex: u32,
    tags: u64,
) -> Result<Reason, Reason> {
    if to.dst.is_v4() != V4 {
        maps::put_onward(Onward::new(to, macs, ifindex, tags));
        return Ok(Reason::NatNotWritten);
    }
    let bytes = packet.len() as u32;
    translate::<V4>(packet, udp, to, macs).ok_or(Reason::Truncated)?;
    Ok(leave(packet, ifindex, tags, bytes))
}

/// Sends a packet that has been written, and came with so many bytes; with tags that is another program's business.
#[inline(always)]
pub(super) fn leave(packet: &Packet, ifindex: u32, tags: u64, bytes: u32) -> Reason {
    if tags == 0 {
        return packet.send(ifindex);
    }
    maps::put_out(maps::Out { tags, ifindex, bytes });
    Reason::NatTagged
}

/// Other addresses, of all layers, and ports, one hop later; `macs`: of destination and source, as they stand in a frame,
/// in the first six bytes of a word, of which the last two do not matter. `None`, and nothing done: the headers are not
/// there.
#[inline(always)]
pub(super) fn translate<const V4: bool>(
    packet: &mut Packet,
    udp: bool,
    to: &To,
    macs: (u64, u64),
) -> Option<()> {
    const _: () = assert!(L3 == 14);
    match (V4, udp) {
        (true, false) => frame::<54, true, false>(packet.bytes_mut(0)?, to, macs),
        (true, true) => frame::<42, true, true>(packet.bytes_mut(0)?, to, macs),
        (false, false) => frame::<74, false, false>(packet.bytes_mut(0)?, to, macs),
        (false, true) => frame::<62, false, true>(packet.bytes_mut(0)?, to, macs),
    }
    Some(())
}

/// Other addresses, one hop later.
#[inline(always)]
pub(super) fn outer<const V4: bool>(
    packet: &mut Packet,
    src: Addr,
    dst: Addr,
) -> Result<(), Reason> {
    if V4 {
        let h = packet.bytes_mut::<20>(L3).ok_or(Reason::Truncated)?;
        header4(h, src.as_v4_raw(), dst.as_v4_raw());
    } else {
        let h = packet.bytes_mut::<40>(L3).ok_or(Reason::Truncated)?;
        h[7] = h[7].wrapping_sub(1);
        addresses6(h, src, dst);
    }
    Ok(())
}

/// The addresses of an IPv6 header.
#[inline(always)]
pub(super) fn addresses6(h: &mut [u8; 40], src: Addr, dst: Addr) {
    h[8..16].copy_from_slice(&src.hi().to_ne_bytes());
    h[16..24].copy_from_slice(&src.lo().to_ne_bytes());
    h[24..32].copy_from_slice(&dst.hi().to_ne_bytes());
    h[32..40].copy_from_slice(&dst.lo().to_ne_bytes());
}

/// Ports and checksum of a transport header that begins at `at`; `old` and `new`: sums of what changes
/// under it.
#[inline(always)]
pub(super) fn transport(
    packet: &mut Packet,
    at: usize,
    udp: bool,
    ports: u32,
    old: u32,
    new: u32,
) -> Result<(), Reason> {
    if udp {
        let h = packet.bytes_mut::<8>(at).ok_or(Reason::Truncated)?;
        h[0..4].copy_from_slice(&ports.to_ne_bytes());
        let before = u16::from_ne_bytes([h[6], h[7]]);
        if before != 0 {
            // A checksum of 0 says that there is none (RFC 768).
            let after = match checksum(before, old, new) {
                0 => 0xffff,
                other => other,
            };
            h[6..8].copy_from_slice(&after.to_ne_bytes());
        }
    } else {
        let h = packet.bytes_mut::<20>(at).ok_or(Reason::Truncated)?;
        h[0..4].copy_from_slice(&ports.to_ne_bytes());
        let after = checksum(u16::from_ne_bytes([h[16], h[17]]), old, new);
        h[16..18].copy_from_slice(&after.to_ne_bytes());
    }
    Ok(())
}
