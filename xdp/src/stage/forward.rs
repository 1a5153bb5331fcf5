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
    wire::{Rest, ethertype, protocol},
};

use crate::{
    constant::{stop, unknown},
    maps,
    packet::{Packet, Room},
};

/// Sends the packet; its headers are gone afterwards. A backend that is this machine gets it as it came.
#[inline(always)]
pub(crate) fn run<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    frontend: &Frontend,
    backend: &Backend,
    entropy: u32,
) -> Result<Reason, Reason> {
    match frontend.mode() {
        // Also where the backend is this machine, which is for the other program to say.
        Mode::GueTwice => Err(Reason::SecondChance),
        mode => by::<L3, V4>(packet, mode, backend, entropy),
    }
}

/// The same, for packets that have one chance alone.
#[inline(always)]
pub(crate) fn once<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    frontend: &Frontend,
    backend: &Backend,
    entropy: u32,
) -> Result<Reason, Reason> {
    let mode = match frontend.mode() {
        Mode::GueTwice => Mode::Gue,
        mode => mode,
    };
    by::<L3, V4>(packet, mode, backend, entropy)
}

/// As GUE, with the address of another backend of the same family.
#[inline(always)]
pub(crate) fn twice<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    backend: &Backend,
    other: Addr,
    entropy: u32,
) -> Result<Reason, Reason> {
    let Some((hop, egress)) = way(backend) else { return here(backend.hop()) };
    if hop.is_v4() {
        let mut room = encap4::<L3, V4, SHIM4, 0>(packet, backend, hop, egress, entropy)?;
        let at = L3 + 20 + GUE_SHIM;
        room.put(at, chance::one_hop(true));
        room.put(at + 4, other.as_v4_raw());
    } else {
        let mut room = encap6::<L3, V4, SHIM6, 0>(packet, backend, hop, egress, entropy)?;
        let at = L3 + 40 + GUE_SHIM;
        room.put(at, chance::one_hop(false));
        room.put(at + 4, other.hi());
        room.put(at + 12, other.lo());
    }
    Ok(packet.send(egress.ifindex()))
}

/// Without a way out: the backend is this machine, or its next hop is not known.
#[inline(always)]
pub(crate) const fn here(hop: HopWord) -> Result<Reason, Reason> {
    if hop.is_local() { Ok(Reason::DeliveredLocally) } else { Err(Reason::NoNextHop) }
}

#[inline(always)]
fn by<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    mode: Mode,
    backend: &Backend,
    entropy: u32,
) -> Result<Reason, Reason> {
    match way(backend) {
        Some((hop, egress)) => over::<L3, V4>(packet, mode, backend, hop, egress, entropy),
        None => here(backend.hop()),
    }
}

/// The way out to a backend, if there is one.
#[inline(always)]
pub(crate) fn way(backend: &Backend) -> Option<(HopWord, &'static Egress)> {
    let hop = backend.hop();
    Some((hop, hop.egress().and_then(maps::egress)?))
}

/// Sends the packet by this way.
#[inline(always)]
pub(crate) fn over<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    mode: Mode,
    backend: &Backend,
    hop: HopWord,
    egress: &Egress,
    entropy: u32,
) -> Result<Reason, Reason> {
    match mode {
        Mode::Ipip => tunnelled::<L3, V4, 0>(packet, backend, hop, egress, entropy)?,
        mode => marked::<L3, V4, 0>(packet, mode, backend, hop, egress, entropy)?,
    };
    Ok(packet.send(egress.ifindex()))
}

/// Makes the packet ready to be sent, in other modes than [`Mode::Ipip`]. `SEEN`: how many bytes of the packet as it came, from
/// its IP header on, are known to be there, the last of which is returned, so that whoever sends it need not keep it until
/// then; 0: none, and 0 is returned. Over IPv4 such a packet has no options in its IP header.
#[inline(always)]
pub(crate) fn marked<const L3: usize, const V4: bool, const SEEN: usize>(
    packet: &mut Packet,
    mode: Mode,
    backend: &Backend,
    hop: HopWord,
    egress: &Egress,
    entropy: u32,
) -> Result<u64, Reason> {
    match mode {
        Mode::L2 => {
            fits(&packet.rest::<L3, V4>()?, 0, egress)?;
            decrement_ttl::<L3, V4>(packet)?;
            let link = packet.bytes_mut::<12>(0).ok_or(Reason::Truncated)?;
            macs(link, hop, egress);
            match SEEN {
                0 => Ok(0),
                _ => Ok(packet.bytes_mut::<1>(L3 + SEEN - 1).ok_or(Reason::Truncated)?[0].into()),
            }
        }
        Mode::Gue => encap::<L3, V4, GUE_SHIM, SEEN>(packet, backend, hop, egress, entropy),
        Mode::Geneve => encap::<L3, V4, GENEVE_SHIM, SEEN>(packet, backend, hop, egress, entropy),
        // Other programs see to these.
        Mode::Ipip | Mode::GueTwice => Err(Reason::SecondChance),
        Mode::Nat => Err(Reason::NatNoEntry),
    }
}

/// The same of [`Mode::Ipip`].
#[inline(always)]
pub(crate) fn tunnelled<const L3: usize, const V4: bool, const SEEN: usize>(
    packet: &mut Packet,
    backend: &Backend,
    hop: HopWord,
    egress: &Egress,
    entropy: u32,
) -> Result<u64, Reason> {
    encap::<L3, V4, 0, SEEN>(packet, backend, hop, egress, entropy)
}

/// `SHIM`: bytes between the outer IP header and the inner one, which tell the encapsulation.
#[inline(always)]
fn encap<const L3: usize, const V4: bool, const SHIM: usize, const SEEN: usize>(
    packet: &mut Packet,
    backend: &Backend,
    hop: HopWord,
    egress: &Egress,
    entropy: u32,
) -> Result<u64, Reason> {
    // Each for itself: the byte's place is a constant then.
    if hop.is_v4() {
        let room = encap4::<L3, V4, SHIM, SEEN>(packet, backend, hop, egress, entropy)?;
        Ok(room.seen::<L3, 20, SHIM, SEEN>())
    } else {
        let room = encap6::<L3, V4, SHIM, SEEN>(packet, backend, hop, egress, entropy)?;
        Ok(room.seen::<L3, 40, SHIM, SEEN>())
    }
}

#[inline(always)]
fn encap4<'a, const L3: usize, const V4: bool, const SHIM: usize, const SEEN: usize>(
    packet: &'a mut Packet,
    backend: &Backend,
    hop: HopWord,
    egress: &Egress,
    entropy: u32,
) -> Result<Room<'a>, Reason> {
    let rest = packet.rest::<L3, V4>()?;
    has_room(&rest, SHIM as u32, egress, true)?;
    decrement_ttl::<L3, V4>(packet)?;
    let tags = packet.tags::<L3>().ok_or(Reason::Truncated)?;

    let mut room = packet.grown(20 + SHIM as i32, L3 + 20 + SHIM + SEEN)?;
    // Not earlier: what it is made of would have to be kept over the call.
    let dst = backend.addr().as_v4_raw();
    let longer = 20 + SHIM as u32;
    let first = match (V4, SEEN) {
        (true, 0) => outer::first4(0, longer as u16) + (rest.first & 0x00ff_ffff),
        // Of packets that have no options, so that most of the inner word is the outer one's.
        (true, _) => rest.first + longer,
        (false, _) => outer::first4(rest.tos, (longer + rest.total) as u16),
    };
    let header = outer::ipv4(egress, dst, first, next::<V4, SHIM>(), entropy);
    room.link4::<L3>(hop.to_word(), egress.src_mac_word(), tags);
    let mut word = 0;
    while word < header.len() {
        room.put(L3 + 4 * word, header[word]);
        word += 1;
    }
    put_shim::<V4, SHIM>(&mut room, L3 + 20, &rest, entropy);
    Ok(room)
}

#[inline(always)]
fn encap6<'a, const L3: usize, const V4: bool, const SHIM: usize, const SEEN: usize>(
    packet: &'a mut Packet,
    backend: &Backend,
    hop: HopWord,
    egress: &Egress,
    entropy: u32,
) -> Result<Room<'a>, Reason> {
    let rest = packet.rest::<L3, V4>()?;
    has_room(&rest, SHIM as u32, egress, false)?;
    decrement_ttl::<L3, V4>(packet)?;
    let tags = packet.tags::<L3>().ok_or(Reason::Truncated)?;

    let mut room = packet.grown(40 + SHIM as i32, L3 + 40 + SHIM + SEEN)?;
    let len = (rest.total + SHIM as u32) as u16;
    let header = outer::ipv6(egress, backend.addr(), len, rest.tos, next::<V4, SHIM>(), entropy);
    room.link::<L3>(hop.to_word(), egress.src_mac_word(), tags, ethertype::IPV6);
    let mut word = 0;
    while word < header.len() {
        room.put(L3 + 8 * word, header[word]);
        word += 1;
    }
    put_shim::<V4, SHIM>(&mut room, L3 + 40, &rest, entropy);
    Ok(room)
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
    room: &mut Room<'_>,
    at: usize,
    rest: &Rest,
    entropy: u32,
) {
    const { assert!(matches!(SHIM, 0 | GUE_SHIM | GENEVE_SHIM | SHIM4 | SHIM6)) };
    if SHIM == GUE_SHIM || SHIM == SHIM4 || SHIM == SHIM6 {
        let private = (SHIM - GUE_SHIM) as u8;
        let inner = if V4 { outer::PROTO_IPV4 } else { outer::PROTO_IPV6 };
        let words = outer::gue_with(private, rest.total as u16, inner, entropy);
        room.put(at, words[0]);
        room.put(at + 4, words[1]);
        room.put(at + 8, words[2]);
    } else if SHIM == GENEVE_SHIM {
        let inner = if V4 { ethertype::IPV4 } else { ethertype::IPV6 };
        let words = outer::geneve(rest.total as u16, inner, entropy);
        room.put(at, words[0]);
        room.put(at + 4, words[1]);
        room.put(at + 8, words[2]);
        room.put(at + 12, words[3]);
    }
}

#[inline(always)]
fn fits(rest: &Rest, outer: u32, egress: &Egress) -> Result<(), Reason> {
    // Which is no more than the length fields of outer headers can say.
    if rest.total + outer > egress.mtu() { Err(Reason::TooBig) } else { Ok(()) }
}

/// The same with an outer IP header of this family and a shim.
#[inline(always)]
fn has_room(rest: &Rest, shim: u32, egress: &Egress, v4: bool) -> Result<(), Reason> {
    if rest.total + shim <= egress.room(v4) {
        return Ok(());
    }
    Err(stop(if egress.has_source(v4) { Reason::TooBig } else { Reason::NoNextHop }))
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
        let word = packet.bytes_mut::<4>(L3 + 8).ok_or(Reason::Truncated)?;
        let before = u32::from_ne_bytes(*word);
        let less = checksum::one_hop_less_at_once(before).unwrap_or_else(|| {
            core::hint::cold_path();
            unknown(checksum::one_hop_less(before)) as u32
        });
        *word = less.to_ne_bytes();
    } else {
        let h = packet.bytes_mut::<8>(L3).ok_or(Reason::Truncated)?;
        h[7] -= 1;
    }
    Ok(())
}
