//! What takes more than other addresses and ports: ICMP errors, and packets that come in one family and go on in
//! the other (RFC 7915), fragments, and what has options or extension headers.
//!
//! A program of its own: others have decided where the packet goes, and put that aside ([`Onward`]).

use abi::{
    addr::Addr,
    checksum::{fold, halves},
    choice::Tracking as _,
    limits::behind,
    nat::{
        To, address_sum, addresses4, checksum,
        family::{Header, icmp as other},
    },
    reason::Reason,
    reply,
    table::{Egress, HopWord},
    wire::{self, Frame, Ip, Word, ethertype, protocol},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use super::{
    L3, header,
    icmp::{About, about, is_message},
    parts, write,
};
use crate::{
    behind::{Program, answer},
    maps,
    packet::Packet,
    stage::forward::put_macs,
};

/// Where a packet goes, and what it says there. Words, as it is put aside.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Onward {
    pub(crate) src: Addr,
    pub(crate) dst: Addr,
    /// As loaded: source low, destination high.
    pub(crate) ports: u32,
    pub(crate) ifindex: u32,
    /// Where it goes: the first four bytes, and the last two; above them a fragment's identification.
    pub(crate) mac: u64,
    /// Ours, and in the last two bytes the largest MTU that an error may tell.
    pub(crate) own: [u8; 8],
    /// Tags that it leaves with; 0: none.
    pub(crate) tags: u64,
}

const _: () = assert!(size_of::<Onward>() == 64);

impl Onward {
    /// `macs`: of destination and source, as they stand in a frame, in the first six bytes of a word.
    #[inline(always)]
    pub(super) const fn new(to: &To, macs: (u64, u64), ifindex: u32, tags: u64) -> Self {
        /// Of such a word, where it stands alone.
        const MAC: u64 = (1 << 48) - 1;
        Self {
            src: to.src,
            dst: to.dst,
            ports: to.ports,
            ifindex,
            mac: macs.0 & MAC,
            own: (macs.1 & MAC).to_ne_bytes(),
            tags,
        }
    }

    /// To a backend, by this way.
    #[inline(always)]
    pub(super) const fn by(hop: HopWord, egress: &Egress, to: &To) -> Self {
        Self::new(to, (hop.to_word(), egress.src_mac_word()), egress.ifindex(), 0)
    }

    /// The same of an error, with the largest MTU that it may tell.
    #[inline(always)]
    pub(super) const fn telling(mut self, most: u32) -> Self {
        let [low, high] = (if most > 0xffff { 0xffff } else { most as u16 }).to_ne_bytes();
        self.own[6] = low;
        self.own[7] = high;
        self
    }

    /// The same of a fragment, with the identification that its datagram gets.
    #[inline(always)]
    pub(super) const fn identified(mut self, id: u16) -> Self {
        self.mac |= (id as u64) << 48;
        self
    }

    #[inline(always)]
    pub(super) const fn id(&self) -> u16 {
        (self.mac >> 48) as u16
    }

    #[inline(always)]
    const fn most(&self) -> u32 {
        u16::from_ne_bytes([self.own[6], self.own[7]]) as u32
    }

    #[inline(always)]
    pub(super) const fn macs(&self) -> ((u32, u16), [u8; 6]) {
        let [a, b, c, d, e, f, ..] = self.own;
        ((self.mac as u32, (self.mac >> 32) as u16), [a, b, c, d, e, f])
    }
}

/// The program.
pub(crate) struct NatOther;

impl Program for NatOther {
    const TRANSLATES: bool = true;

    #[inline(never)]
    fn look<const AT: usize, const V4: bool>(ctx: *mut xdp_md, _: u32) -> u32 {
        let mut packet = Packet::new(XdpContext::new(ctx));
        let Some((_, tags)) = maps::handed() else { return Reason::NatNotWritten as u32 };
        if AT != L3 {
            return Reason::NatNotWritten as u32;
        }
        let bytes = packet.len() as u32;
        let Some(onward) = maps::onward() else { return Reason::NatNotWritten as u32 };
        let ip = if V4 { wire::ipv4(&packet, L3) } else { wire::ipv6(&packet, L3) };
        let Some(ip) = ip else { return Reason::NatNotWritten as u32 };
        let same = onward.dst.is_v4() == V4;
        let done = match (is_message::<V4>(&ip), same) {
            (false, true) => parts::write::<V4>(&mut packet, &ip, onward),
            (true, true) => message::<V4>(&mut packet, &ip, onward),
            (true, false) => crossing_message::<V4>(&mut packet, &ip, onward),
            (false, false) => parts::cross::<V4>(&mut packet, &ip, onward),
        };
        let leave = |()| write::leave(&packet, onward.ifindex, onward.tags, bytes);
        answer(done.map_or_else(|reason| reason, leave), tags as i32)
    }

    #[inline(always)]
    fn not_ip() -> Reason {
        Reason::NatNotWritten
    }

    #[inline(always)]
    fn onward(reason: Reason) -> Option<u32> {
        matches!(reason, Reason::NatTagged).then_some(behind::NAT_TAGS)
    }
}

/// Makes the checksum of a datagram over IPv4, which begins at `at`, if it has none: over IPv6 there has to be one.
#[inline(always)]
pub(super) fn checksum_made(packet: &mut Packet, at: usize, onward: &Onward) -> Result<(), Reason> {
    let [_, _, _, _, l0, l1, c0, c1] = packet.header::<Word>(at).ok_or(Reason::Truncated)?.value();
    if [c0, c1] != [0, 0] {
        return Ok(());
    }
    let len = u16::from_be_bytes([l0, l1]);
    let sum = nat_sum(packet.context(), at as u32, len.into());
    // The packet has not moved; the compiler must not take what was read before for what stands there.
    packet.bound();
    if sum > u64::from(u32::MAX) {
        return Err(Reason::NatNoChecksum);
    }
    let pseudo = reply::pseudo::<false>(onward.src, onward.dst, protocol::UDP, len);
    let made = match !fold(u32::from(fold(sum as u32)) + u32::from(fold(pseudo))) {
        0 => 0xffff,
        made => made,
    };
    let h = packet.bytes_mut::<8>(at).ok_or(Reason::Truncated)?;
    h[6..8].copy_from_slice(&made.to_ne_bytes());
    Ok(())
}

/// Sum over bytes of the packet, 2,048 at most; more than 32 bits: it cannot be had. A global function: the verifier
/// goes through it once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn nat_sum(ctx: *mut xdp_md, at: u32, len: u32) -> u64 {
    if at > 0xff || len == 0 {
        return u64::MAX;
    }
    maps::sum_of(ctx, at, len).map_or(u64::MAX, u64::from)
}

/// The link header of a packet that came with `V4` and goes on with the other.
#[inline(always)]
pub(super) fn put_link<const V4: bool>(packet: &mut Packet, onward: &Onward) -> Result<(), Reason> {
    let (mac, own) = onward.macs();
    let place = packet.bytes_mut::<14>(0).ok_or(Reason::AdjustFailed)?;
    let e = if V4 { ethertype::IPV6 } else { ethertype::IPV4 };
    place[12..14].copy_from_slice(&e);
    let place = packet.bytes_mut::<12>(0).ok_or(Reason::AdjustFailed)?;
    put_macs(place, mac, own);
    Ok(())
}

/// The IP header of a packet that came with `V4`, in the other family.
#[inline(always)]
pub(super) fn put_ip<const V4: bool>(
    packet: &mut Packet,
    at: usize,
    header: &Header,
) -> Result<(), Reason> {
    if V4 {
        put_v6(packet, at, header.v6())
    } else {
        put_v4(packet, at, header.v4(maps::Maps.random() as u16))
    }
}

#[inline(always)]
pub(super) fn put_v6(packet: &mut Packet, at: usize, words: [u64; 5]) -> Result<(), Reason> {
    let place = packet.bytes_mut::<40>(at).ok_or(Reason::AdjustFailed)?;
    place[0..8].copy_from_slice(&words[0].to_ne_bytes());
    place[8..16].copy_from_slice(&words[1].to_ne_bytes());
    place[16..24].copy_from_slice(&words[2].to_ne_bytes());
    place[24..32].copy_from_slice(&words[3].to_ne_bytes());
    place[32..40].copy_from_slice(&words[4].to_ne_bytes());
    Ok(())
}

#[inline(always)]
pub(super) fn put_v4(packet: &mut Packet, at: usize, words: [u32; 5]) -> Result<(), Reason> {
    let place = packet.bytes_mut::<20>(at).ok_or(Reason::AdjustFailed)?;
    place[0..4].copy_from_slice(&words[0].to_ne_bytes());
    place[4..8].copy_from_slice(&words[1].to_ne_bytes());
    place[8..12].copy_from_slice(&words[2].to_ne_bytes());
    place[12..16].copy_from_slice(&words[3].to_ne_bytes());
    place[16..20].copy_from_slice(&words[4].to_ne_bytes());
    Ok(())
}

/// An error about a translated packet, in its own family: other addresses and ports outside and inside, one hop
/// later, with right checksums.
#[inline(always)]
fn message<const V4: bool>(packet: &mut Packet, ip: &Ip, onward: &Onward) -> Result<(), Reason> {
    let plain = header::<V4>();
    let (at, inside) = (L3 + plain, L3 + plain + 8);
    let about = about::<V4>(packet, ip)?;
    // Inside, an IPv4 header's checksum makes up for its addresses.
    let (mut old, mut new) = quoted::<V4>(packet, ip, &about, onward)?;
    if V4 {
        let h = packet.bytes_mut::<20>(inside).ok_or(Reason::Truncated)?;
        addresses4(h, onward.dst.as_v4_raw(), onward.src.as_v4_raw());
    } else {
        let h = packet.bytes_mut::<40>(inside).ok_or(Reason::Truncated)?;
        write::addresses6(h, onward.dst, onward.src);
        // Inside, and in the pseudo header.
        old += address_sum(about.src) + address_sum(about.dst);
        old += address_sum(ip.src) + address_sum(ip.dst);
        new += 2 * (address_sum(onward.src) + address_sum(onward.dst));
    }
    let message = packet.bytes_mut::<8>(at).ok_or(Reason::Truncated)?;
    let made = checksum(u16::from_ne_bytes([message[2], message[3]]), old, new);
    message[2..4].copy_from_slice(&made.to_ne_bytes());
    let (mac, own) = onward.macs();
    write::outer::<V4>(packet, onward.src, onward.dst)?;
    let place = packet.bytes_mut::<12>(0).ok_or(Reason::AdjustFailed)?;
    put_macs(place, mac, own);
    Ok(())
}

/// Ports and checksum of the packet inside; gives what was, and what is, under the message's own checksum.
#[inline(always)]
fn quoted<const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    about: &About,
    onward: &Onward,
) -> Result<(u32, u32), Reason> {
    let plain = header::<V4>();
    let at = L3 + plain + 8 + plain + about.between;
    let ports = onward.ports.rotate_left(16);
    let (mut old, mut new) = (halves(about.ports), halves(ports));
    let before = address_sum(about.src) + address_sum(about.dst) + old;
    let after = address_sum(onward.src) + address_sum(onward.dst) + new;
    let l4 = packet.bytes_mut::<8>(at).ok_or(Reason::Truncated)?;
    l4[0..4].copy_from_slice(&ports.to_ne_bytes());
    if about.udp {
        let sum = u16::from_ne_bytes([l4[6], l4[7]]);
        if sum != 0 {
            let made = match checksum(sum, before, after) {
                0 => 0xffff,
                made => made,
            };
            l4[6..8].copy_from_slice(&made.to_ne_bytes());
            old += u32::from(sum);
            new += u32::from(made);
        }
    } else if ip.total as usize >= 2 * plain + 8 + 20 + about.between
        && let Some(l4) = packet.bytes_mut::<20>(at)
    {
        let sum = u16::from_ne_bytes([l4[16], l4[17]]);
        let made = checksum(sum, before, after);
        l4[16..18].copy_from_slice(&made.to_ne_bytes());
        old += u32::from(sum);
        new += u32::from(made);
    }
    Ok((old, new))
}

/// An error in the other family, inside and outside.
#[inline(always)]
fn crossing_message<const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    onward: &Onward,
) -> Result<(), Reason> {
    let plain = header::<V4>();
    let (at, inside) = (L3 + plain, L3 + plain + 8);
    let about = about::<V4>(packet, ip)?;
    let [kind, code, c0, c1, rest @ ..] =
        packet.header::<Word>(at).ok_or(Reason::Truncated)?.value();
    let (to_kind, to_code, to_rest) =
        other::<V4>(kind, code, u32::from_be_bytes(rest), onward.most())
            .ok_or(Reason::NatRefused)?;
    let quoted_ip = if V4 { wire::ipv4(packet, inside) } else { wire::ipv6(packet, inside) };
    let quoted_ip = quoted_ip.ok_or(Reason::Truncated)?;
    let within = Header {
        src: onward.dst,
        dst: onward.src,
        tos: quoted_ip.tos,
        hops: quoted_ip.ttl,
        protocol: quoted_ip.protocol,
        len: (quoted_ip.total as u16).wrapping_sub(plain as u16),
    };
    let length = (ip.total as u16).wrapping_sub(plain as u16);
    let (mut old, mut new) = quoted::<V4>(packet, ip, &about, onward)?;
    old += u32::from(u16::from_ne_bytes([kind, code])) + halves(u32::from_ne_bytes(rest));
    new += u32::from(u16::from_ne_bytes([to_kind, to_code])) + halves(to_rest.to_be());
    let length = if V4 {
        let h = packet.bytes_mut::<20>(inside).ok_or(Reason::Truncated)?;
        let sum = maps::checksum_of(h);
        old += u32::from(fold(sum));
        let length = length.wrapping_add(20);
        let [first, ..] = within.v6();
        new += halves(first as u32) + halves((first >> 32) as u32);
        new += address_sum(onward.src) + address_sum(onward.dst);
        new += reply::pseudo::<false>(onward.src, onward.dst, protocol::ICMP6, length);
        length
    } else {
        let h = packet.bytes_mut::<40>(inside).ok_or(Reason::Truncated)?;
        let sum = maps::checksum_of(h);
        // The header that comes in its place sums up to nothing.
        old += u32::from(fold(sum));
        old += reply::pseudo::<false>(ip.src, ip.dst, protocol::ICMP6, length);
        length.wrapping_sub(20)
    };
    let [k0, k1] = checksum(u16::from_ne_bytes([c0, c1]), old, new).to_ne_bytes();
    let outside = Header {
        src: onward.src,
        dst: onward.dst,
        tos: ip.tos,
        hops: ip.ttl.wrapping_sub(1),
        protocol: if V4 { protocol::ICMP6 } else { protocol::ICMP },
        len: length,
    };
    packet.grow_head(if V4 { 40 } else { -40 })?;
    put_link::<V4>(packet, onward)?;
    put_ip::<V4>(packet, L3, &outside)?;
    let at = L3 + if V4 { 40 } else { 20 };
    let [r0, r1, r2, r3] = to_rest.to_be_bytes();
    let place = packet.bytes_mut::<8>(at).ok_or(Reason::AdjustFailed)?;
    *place = [to_kind, to_code, k0, k1, r0, r1, r2, r3];
    put_ip::<V4>(packet, at + 8, &within)
}
