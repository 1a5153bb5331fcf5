//! ICMP errors about translated packets: to whoever sent the packet, in that side's own terms (RFC 5508).
//!
//! A program of its own, which finds out where one goes; [`super::other`] writes it. From the client's side an error
//! comes to the VIP, and is about what the client was sent; from the backend's side it comes to a NAT address, and is
//! about what the backend was sent. Either way the packet inside names the entry; what is outside gets the addresses
//! that a packet in that direction has, what is inside the same ones the other way round.

use abi::{
    addr::Addr,
    limits::behind,
    nat::{Entries as _, Entry, To, family::LONGER},
    pick::Tables as _,
    reason::Reason,
    table::{Egress, Way},
    wire::{self, Frame, Ip, Ipv4, Ports, Word, protocol},
};
use aya_ebpf::bindings::xdp_md;

use super::{L3, Onward, back, forth, header, opened, steer};
use crate::{
    behind::{Program, answer},
    maps::{self, Maps},
    packet::Packet,
    stage::service::is_usual,
};

/// The program.
pub(crate) struct NatIcmp;

impl Program for NatIcmp {
    const TRANSLATES: bool = true;

    #[inline(never)]
    fn look<const AT: usize, const V4: bool>(ctx: *mut xdp_md, cpu: u32) -> u32 {
        let (mut packet, ip, tags) = match opened::<AT, V4>(ctx, Reason::NatRefused) {
            Ok(opened) => opened,
            Err(answer) => return answer,
        };
        let reason = run::<V4>(&mut packet, &ip, tags, cpu).unwrap_or_else(|reason| reason);
        answer(reason, tags as i32)
    }

    #[inline(always)]
    fn not_ip() -> Reason {
        Reason::NatRefused
    }

    #[inline(always)]
    fn onward(reason: Reason) -> Option<u32> {
        matches!(reason, Reason::NatNotWritten).then_some(behind::NAT_OTHER)
    }
}

/// Whether a packet may be for this program.
#[inline(always)]
pub(super) fn is_message<const V4: bool>(ip: &Ip) -> bool {
    ip.protocol == if V4 { protocol::ICMP } else { protocol::ICMP6 }
}

/// The packet that an error is about.
#[derive(Clone, Copy)]
pub(super) struct About {
    pub(super) src: Addr,
    pub(super) dst: Addr,
    /// As loaded: source low, destination high.
    pub(super) ports: u32,
    pub(super) udp: bool,
    /// It is the first fragment of a datagram.
    pub(super) fragment: bool,
    /// Bytes between its IP header and its transport header: of IPv6's fragment header.
    pub(super) between: usize,
}

#[inline(always)]
fn run<const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    tags: u32,
    cpu: u32,
) -> Result<Reason, Reason> {
    let about = about::<V4>(packet, ip)?;
    if ip.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    let bytes = packet.len() as u64 + u64::from(tags);
    let reply = about.ports.rotate_left(16);
    if let Some((index, entry, _)) = back::entry(about.dst, about.src, reply, about.udp) {
        let link = entry.link();
        let way = maps::way((link >> 48) as u32).ok_or(Reason::NoNextHop)?;
        let to = To::client(entry);
        fits::<V4>(ip, &about, &to, way.mtu())?;
        let (mac, tags) = (Way::mac_of(link), back::tags(index, link));
        // No more fits on the way back of what the error is about.
        let backend = Maps.backend(entry.backend()).ok_or(Reason::NoNextHop)?;
        let theirs = backend.hop().egress().and_then(maps::egress).map(Egress::mtu);
        let onward = Onward::new(&to, (mac, way.mac_word()), way.ifindex(), tags);
        maps::put_onward(onward.telling(most::<V4>(way.mtu(), theirs)));
    } else {
        if let Reason::NatPassed = back::nobody(ip) {
            return Err(Reason::NatPassed);
        }
        to_backend::<V4>(ip, &about, bytes, cpu)?;
    }
    Ok(Reason::NatNotWritten)
}

/// The largest MTU that an error may tell in the other family, where so many bytes fit on its way, and so many
/// where it came from.
#[inline(always)]
fn most<const V4: bool>(ours: u32, theirs: Option<u32>) -> u32 {
    let theirs = theirs.unwrap_or(0xffff);
    let theirs = if V4 { theirs + LONGER } else { theirs.saturating_sub(LONGER) };
    if ours < theirs { ours } else { theirs }
}

/// Whether the error will fit on its way: it has two IP headers. One about a fragment does not change its family.
#[inline(always)]
fn fits<const V4: bool>(ip: &Ip, about: &About, to: &To, mtu: u32) -> Result<(), Reason> {
    if about.fragment && to.dst.is_v4() != V4 {
        return Err(Reason::NatRefused);
    }
    let whole = match (V4, to.dst.is_v4()) {
        (true, false) => ip.total + 2 * LONGER,
        (false, true) => ip.total.wrapping_sub(2 * LONGER),
        _ => ip.total,
    };
    if whole > mtu { Err(Reason::NatRefused) } else { Ok(()) }
}

/// What an error is about, if it is one, has no options anywhere, and what it is about has ports: of a datagram in
/// fragments the first one.
#[inline(always)]
pub(super) fn about<const V4: bool>(packet: &Packet, ip: &Ip) -> Result<About, Reason> {
    let plain = header::<V4>();
    let (at, inside) = (L3 + plain, L3 + plain + 8);
    if !is_message::<V4>(ip) || ip.fragment || ip.header != plain {
        return Err(Reason::NatRefused);
    }
    let other = refused(ip);
    let message = packet.header::<Word>(at).ok_or(other)?.value();
    // Unreachable, time exceeded, parameter problem; IPv6 also too big.
    let error = if V4 { matches!(message[0], 3 | 11 | 12) } else { matches!(message[0], 1..=4) };
    if !error {
        return Err(other);
    }
    let mtu = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
    let nonsense = match (V4, message[0], message[1]) {
        (true, 3, 4) => matches!(mtu & 0xffff, 1..68),
        (false, 2, _) => mtu < 1280,
        _ => false,
    };
    let inner = if V4 { wire::ipv4(packet, inside) } else { wire::ipv6(packet, inside) };
    let inner = inner.ok_or(other)?;
    let ours = inner.src == ip.dst && inner.header == plain;
    let (above, between) = first_part::<V4>(packet, inside, &inner).ok_or(other)?;
    if !ours || !is_usual(above) {
        return Err(other);
    }
    // By way of memory: else the verifier would go through all that follows twice.
    let parts = maps::forget_word(u64::from(inner.fragment) | between as u64).ok_or(other)?;
    let (fragment, between) = (parts & 1 != 0, if V4 { 0 } else { parts as usize & 8 });
    // RFC 792: eight bytes of what is above are there at least.
    let ports = packet.header::<Ports>(inside + plain + between).ok_or(other)?.both();
    if (ip.total as usize) < 2 * plain + 16 + between || !packet.holds(L3 + ip.total as usize) {
        return Err(Reason::BadLength);
    }
    if nonsense {
        return Err(Reason::BadIcmp);
    }
    Ok(About {
        src: inner.src,
        dst: inner.dst,
        ports: u32::from_ne_bytes(ports),
        udp: above == protocol::UDP,
        fragment,
        between,
    })
}

/// The protocol above the IP header at `l3`, and the bytes between the two. `None`: it is a fragment, and not the first.
#[inline(always)]
fn first_part<const V4: bool>(packet: &Packet, l3: usize, ip: &Ip) -> Option<(u8, usize)> {
    if !ip.fragment {
        return Some((ip.protocol, 0));
    }
    if V4 {
        let field = u16::from_be_bytes(packet.header::<Ipv4>(l3)?.fragment());
        return (field & 0x1fff == 0).then_some((ip.protocol, 0));
    }
    let [above, _, high, low] = packet.header::<Ports>(l3 + 40)?.both();
    (u16::from_be_bytes([high, low]) >> 3 == 0).then_some((above, 8))
}

/// What is not about a translated packet: the host's at a NAT address.
#[inline(always)]
fn refused(ip: &Ip) -> Reason {
    match back::nobody(ip) {
        Reason::NatPassed => Reason::NatPassed,
        _ => Reason::NatRefused,
    }
}

/// To the backend that sent what the client's side complains about.
#[inline(always)]
fn to_backend<const V4: bool>(ip: &Ip, about: &About, bytes: u64, cpu: u32) -> Result<(), Reason> {
    let number = if about.udp { protocol::UDP } else { protocol::TCP };
    let flow = Ip { src: about.dst, dst: about.src, protocol: number, ..*ip };
    let ports = about.ports.rotate_left(16);
    let (row, frontend) = forth::service(&flow, ports, false)?;
    let how = forth::How::new(maps::seconds(), false);
    let route = if frontend.any() == 0 {
        forth::route(&flow, ports, about.udp, false, (row, frontend))?
    } else {
        steer::known(&flow, ports, about.udp, how)?.ok_or(Reason::NatNoEntry)?
    };
    let found = forth::entry(&route, how, 0)?;
    let to = route.to(found);
    fits::<V4>(ip, about, &to, route.egress.mtu())?;
    let link = Maps.entry(found.index()).map_or(0, Entry::link);
    let theirs = maps::way((link >> 48) as u32).map(Way::mtu);
    let onward = Onward::by(route.hop, route.egress, &to);
    maps::put_onward(onward.telling(most::<V4>(route.egress.mtu(), theirs)));
    maps::count_sent(cpu, row, route.row, bytes, false);
    Ok(())
}
