//! The translated packet. Everything that can refuse has been checked before.

use abi::{
    addr::Addr,
    checksum::halves,
    nat::{address_sum, checksum, header4},
    reason::Reason,
    wire::Ip,
};

use super::{L3, Segment, header};
use crate::packet::Packet;

/// What the packet says afterwards.
#[derive(Clone, Copy)]
pub(crate) struct To {
    pub(crate) src: Addr,
    pub(crate) dst: Addr,
    /// As loaded: source low, destination high.
    pub(crate) ports: u32,
}

/// Other addresses and ports, one hop later, with right checksums.
#[inline(always)]
pub(super) fn translate<const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    segment: &Segment,
    to: &To,
) -> Result<(), Reason> {
    let old = address_sum(ip.src) + address_sum(ip.dst) + halves(segment.ports);
    let new = address_sum(to.src) + address_sum(to.dst) + halves(to.ports);
    transport::<V4>(packet, segment.udp, to.ports, old, new)?;
    if V4 {
        let h = packet.bytes_mut::<20>(L3).ok_or(Reason::Truncated)?;
        header4(h, to.src.as_v4_raw(), to.dst.as_v4_raw());
    } else {
        let h = packet.bytes_mut::<40>(L3).ok_or(Reason::Truncated)?;
        h[7] = h[7].wrapping_sub(1);
        h[8..16].copy_from_slice(&to.src.hi().to_ne_bytes());
        h[16..24].copy_from_slice(&to.src.lo().to_ne_bytes());
        h[24..32].copy_from_slice(&to.dst.hi().to_ne_bytes());
        h[32..40].copy_from_slice(&to.dst.lo().to_ne_bytes());
    }
    Ok(())
}

/// Ports and checksum; `old` and `new`: sums of what changes under it.
#[inline(always)]
fn transport<const V4: bool>(
    packet: &mut Packet,
    udp: bool,
    ports: u32,
    old: u32,
    new: u32,
) -> Result<(), Reason> {
    let at = L3 + header::<V4>();
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
