//! How the packet reaches its backend: rewrite the MAC addresses, or put an outer header in front;
//! then send it out of the interface it came from, or another.
//!
//! Everything that can refuse is checked before the first byte is written.

use abi::{
    addr::Addr,
    chance::{self, SHIM4, SHIM6},
    checksum,
    outer::{self, GENEVE_SHIM, GUE_SHIM},
    reason::Reason,
    table::{Backend, Egress, Frontend, HopWord, Mode},
    wire::{Ip, Ipv4, ethertype, protocol},
};

use crate::{maps, packet::Packet};

/// Sends the packet; its headers are gone afterwards. A backend that is this machine gets it as it came.
#[inline(always)]
pub(crate) fn run<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    frontend: &Frontend,
    backend: &Backend,
    entropy: u32,
) -> Result<Reason, Reason> {
    match frontend.mode() {
        // Other programs see to these.
        Mode::GueTwice => Err(Reason::SecondChance),
        Mode::Nat => Err(Reason::NatNoEntry),
        mode => by::<L3, V4>(packet, ip, mode, backend, entropy),
    }
}

/// The same, for packets that have one chance alone.
#[inline(always)]
pub(crate) fn once<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    frontend: &Frontend,
    backend: &Backend,
    entropy: u32,
) -> Result<Reason, Reason> {
    let mode = match frontend.mode() {
        Mode::GueTwice => Mode::Gue,
        mode => mode,
    };
    by::<L3, V4>(packet, ip, mode, backend, entropy)
}

/// As GUE, with the address of another backend of the same family.
#[inline(always)]
pub(crate) fn twice<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    backend: &Backend,
    other: Addr,
    entropy: u32,
) -> Result<Reason, Reason> {
    let hop = backend.hop();
    let Some(egress) = hop.egress().and_then(maps::egress) else { return here(hop) };
    if backend.addr().is_v4() {
        encap4::<L3, V4, SHIM4>(packet, ip, backend, hop, egress, entropy)?;
        let at = L3 + 20 + GUE_SHIM;
        let place = packet.bytes_mut::<8>(at).ok_or(Reason::AdjustFailed)?;
        put(&mut place[0..4], chance::one_hop(true));
        put(&mut place[4..8], other.as_v4_raw());
    } else {
        encap6::<L3, V4, SHIM6>(packet, ip, backend, hop, egress, entropy)?;
        let at = L3 + 40 + GUE_SHIM;
        let place = packet.bytes_mut::<20>(at).ok_or(Reason::AdjustFailed)?;
        put(&mut place[0..4], chance::one_hop(false));
        put64(&mut place[4..12], other.hi());
        put64(&mut place[12..20], other.lo());
    }
    Ok(packet.send(egress.ifindex()))
}

/// Without a way out: the backend is this machine, or its next hop is not known.
#[inline(always)]
const fn here(hop: HopWord) -> Result<Reason, Reason> {
    if hop.is_local() { Ok(Reason::DeliveredLocally) } else { Err(Reason::NoNextHop) }
}

#[inline(always)]
fn by<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    mode: Mode,
    backend: &Backend,
    entropy: u32,
) -> Result<Reason, Reason> {
    let hop = backend.hop();
    let Some(egress) = hop.egress().and_then(maps::egress) else { return here(hop) };

    match mode {
        Mode::L2 => {
            fits(ip, 0, egress)?;
            decrement_ttl::<L3, V4>(packet)?;
            let link = packet.bytes_mut::<12>(0).ok_or(Reason::Truncated)?;
            macs(link, hop, egress);
        }
        Mode::Ipip => encap::<L3, V4, 0>(packet, ip, backend, hop, egress, entropy)?,
        Mode::Gue | Mode::GueTwice => {
            encap::<L3, V4, GUE_SHIM>(packet, ip, backend, hop, egress, entropy)?;
        }
        Mode::Geneve => encap::<L3, V4, GENEVE_SHIM>(packet, ip, backend, hop, egress, entropy)?,
        Mode::Nat => return Err(Reason::NatNoEntry),
    }

    Ok(packet.send(egress.ifindex()))
}

/// `SHIM`: bytes between the outer IP header and the inner one, which tell the encapsulation.
#[inline(always)]
fn encap<const L3: usize, const V4: bool, const SHIM: usize>(
    packet: &mut Packet,
    ip: &Ip,
    backend: &Backend,
    hop: HopWord,
    egress: &Egress,
    entropy: u32,
) -> Result<(), Reason> {
    if backend.addr().is_v4() {
        encap4::<L3, V4, SHIM>(packet, ip, backend, hop, egress, entropy)
    } else {
        encap6::<L3, V4, SHIM>(packet, ip, backend, hop, egress, entropy)
    }
}

#[inline(always)]
fn encap4<const L3: usize, const V4: bool, const SHIM: usize>(
    packet: &mut Packet,
    ip: &Ip,
    backend: &Backend,
    hop: HopWord,
    egress: &Egress,
    entropy: u32,
) -> Result<(), Reason> {
    fits(ip, 20 + SHIM as u32, egress)?;
    if !egress.has_source(true) {
        return Err(Reason::NoNextHop);
    }
    let dst = backend.addr().as_v4_raw();
    let len = (ip.total + SHIM as u32) as u16;
    let header =
        outer::ipv4(egress, dst, len, ip.tos, next::<V4, SHIM>(), entropy).ok_or(Reason::TooBig)?;
    decrement_ttl::<L3, V4>(packet)?;
    let tags = packet.tags::<L3>().ok_or(Reason::Truncated)?;

    packet.grow_head(20 + SHIM as i32)?;
    packet
        .put_link::<L3>(hop.to_word(), egress.src_mac_word(), tags, ethertype::IPV4)
        .ok_or(Reason::AdjustFailed)?;
    let place = packet.bytes_mut::<20>(L3).ok_or(Reason::AdjustFailed)?;
    put(&mut place[0..4], header[0]);
    put(&mut place[4..8], header[1]);
    put(&mut place[8..12], header[2]);
    put(&mut place[12..16], header[3]);
    put(&mut place[16..20], header[4]);
    put_shim::<V4, SHIM>(packet, L3 + 20, ip, entropy)
}

#[inline(always)]
fn encap6<const L3: usize, const V4: bool, const SHIM: usize>(
    packet: &mut Packet,
    ip: &Ip,
    backend: &Backend,
    hop: HopWord,
    egress: &Egress,
    entropy: u32,
) -> Result<(), Reason> {
    fits(ip, 40 + SHIM as u32, egress)?;
    if !egress.has_source(false) {
        return Err(Reason::NoNextHop);
    }
    let len = (ip.total + SHIM as u32) as u16;
    let header = outer::ipv6(egress, backend.addr(), len, ip.tos, next::<V4, SHIM>(), entropy);
    decrement_ttl::<L3, V4>(packet)?;
    let tags = packet.tags::<L3>().ok_or(Reason::Truncated)?;

    packet.grow_head(40 + SHIM as i32)?;
    packet
        .put_link::<L3>(hop.to_word(), egress.src_mac_word(), tags, ethertype::IPV6)
        .ok_or(Reason::AdjustFailed)?;
    let place = packet.bytes_mut::<40>(L3).ok_or(Reason::AdjustFailed)?;
    put64(&mut place[0..8], header[0]);
    put64(&mut place[8..16], header[1]);
    put64(&mut place[16..24], header[2]);
    put64(&mut place[24..32], header[3]);
    put64(&mut place[32..40], header[4]);
    put_shim::<V4, SHIM>(packet, L3 + 40, ip, entropy)
}

/// What the outer IP header says that follows.
#[inline(always)]
const fn next<const V4: bool, const SHIM: usize>() -> u8 {
    match (SHIM, V4) {
        (0, true) => outer::PROTO_IPV4,
        (0, false) => outer::PROTO_IPV6,
        _ => protocol::UDP,
    }
}

/// The headers between the outer IP header and the inner one, which begin at `at`. Lengths have been
/// checked.
#[inline(always)]
fn put_shim<const V4: bool, const SHIM: usize>(
    packet: &mut Packet,
    at: usize,
    ip: &Ip,
    entropy: u32,
) -> Result<(), Reason> {
    const { assert!(matches!(SHIM, 0 | GUE_SHIM | GENEVE_SHIM | SHIM4 | SHIM6)) };
    if SHIM == GUE_SHIM || SHIM == SHIM4 || SHIM == SHIM6 {
        let inner = if V4 { outer::PROTO_IPV4 } else { outer::PROTO_IPV6 };
        let private = (SHIM - GUE_SHIM) as u8;
        let words = outer::gue_with(private, ip.total as u16, inner, entropy);
        let place = packet.bytes_mut::<GUE_SHIM>(at).ok_or(Reason::AdjustFailed)?;
        put(&mut place[0..4], words[0]);
        put(&mut place[4..8], words[1]);
        put(&mut place[8..12], words[2]);
    } else if SHIM == GENEVE_SHIM {
        let inner = if V4 { ethertype::IPV4 } else { ethertype::IPV6 };
        let words = outer::geneve(ip.total as u16, inner, entropy);
        let place = packet.bytes_mut::<GENEVE_SHIM>(at).ok_or(Reason::AdjustFailed)?;
        put(&mut place[0..4], words[0]);
        put(&mut place[4..8], words[1]);
        put(&mut place[8..12], words[2]);
        put(&mut place[12..16], words[3]);
    }
    Ok(())
}

#[inline(always)]
fn put(place: &mut [u8], word: u32) {
    place.copy_from_slice(&word.to_ne_bytes());
}

#[inline(always)]
fn put64(place: &mut [u8], word: u64) {
    place.copy_from_slice(&word.to_ne_bytes());
}

#[inline(always)]
fn fits(ip: &Ip, outer: u32, egress: &Egress) -> Result<(), Reason> {
    let whole = ip.total + outer;
    // The length fields of outer headers have 16 bits.
    if whole > egress.mtu() || whole > 0xffff { Err(Reason::TooBig) } else { Ok(()) }
}

/// A MAC address as it stands in a frame: first four bytes, last two.
#[inline(always)]
pub(crate) const fn split(mac: [u8; 6]) -> (u32, u16) {
    (u32::from_ne_bytes([mac[0], mac[1], mac[2], mac[3]]), u16::from_ne_bytes([mac[4], mac[5]]))
}

/// Such a MAC address in the first six bytes of a word.
#[inline(always)]
pub(crate) const fn mac_word((head, tail): (u32, u16)) -> u64 {
    head as u64 | (tail as u64) << 32
}

#[inline(always)]
pub(crate) fn macs(link: &mut [u8; 12], hop: HopWord, egress: &Egress) {
    put_macs(link, (hop.mac_head(), hop.mac_tail()), egress.src_mac());
}

/// Both MAC addresses of a frame; the destination's first four bytes and last two, as they stand there.
#[inline(always)]
pub(crate) fn put_macs(link: &mut [u8; 12], dst: (u32, u16), src: [u8; 6]) {
    link[0..4].copy_from_slice(&dst.0.to_ne_bytes());
    link[4..6].copy_from_slice(&dst.1.to_ne_bytes());
    let src = split(src);
    link[6..10].copy_from_slice(&src.0.to_ne_bytes());
    link[10..12].copy_from_slice(&src.1.to_ne_bytes());
}

/// Takes one off the TTL or hop limit, which is known to be above 1; keeps the IPv4 checksum right.
#[inline(always)]
fn decrement_ttl<const L3: usize, const V4: bool>(packet: &mut Packet) -> Result<(), Reason> {
    if V4 {
        const _: () = assert!(size_of::<Ipv4>() == 20);
        let h = packet.bytes_mut::<20>(L3).ok_or(Reason::Truncated)?;
        h[8] -= 1;
        let check = checksum::after_hop(u16::from_ne_bytes([h[10], h[11]]));
        h[10..12].copy_from_slice(&check.to_ne_bytes());
    } else {
        let h = packet.bytes_mut::<8>(L3).ok_or(Reason::Truncated)?;
        h[7] -= 1;
    }
    Ok(())
}
