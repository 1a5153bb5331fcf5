//! What is sent in place of a packet that cannot be delivered: fragmentation needed or packet too
//! big, port unreachable, or a reset. From the VIP, to where the packet came from, at a bounded rate.

use abi::{
    limits::QUOTED,
    outer,
    reason::Reason,
    reply::{self, Icmp, Segment},
    upper::Upper,
    wire::{self, Eth, Frame, Ip, Ipv4, Tcp, ethertype, protocol},
};

use crate::{
    maps,
    packet::Packet,
    stage::{
        forward::{mac_word, split},
        service,
    },
};

/// Tells the sender how large a packet may be; IPv4 only if it asked to know, or if what makes the packet too large is that
/// it goes on as IPv6: nobody here can take it to pieces, as RFC 7915 (section 4) would have it, and senders that are told
/// do so.
#[inline(always)]
pub(crate) fn too_big<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    upper: &Upper,
) -> Reason {
    const LEAST: u32 = 1280;
    let Some((mtu, unasked)) = mtu(packet, ip, upper) else { return Reason::TooBig };
    let told = if V4 {
        let Some(h) = packet.header::<Ipv4>(L3) else { return Reason::TooBig };
        let [flags, _] = h.fragment();
        if flags & 0x40 == 0 && !unasked {
            return Reason::TooBig;
        }
        Icmp::frag_needed(mtu as u16)
    } else {
        if mtu < LEAST {
            return Reason::TooBig;
        }
        Icmp::too_big6(mtu)
    };
    if !may_answer::<V4>(ip) {
        return Reason::TooBig;
    }
    match quote::<L3, V4, QUOTED>(packet, ip, told) {
        Ok(()) => Reason::TooBigAnswered,
        Err(reason) => reason,
    }
}

/// Bytes of the client's packet that fit on the way to its backend, and whether it is told unasked.
#[inline(always)]
fn mtu(packet: &Packet, ip: &Ip, upper: &Upper) -> Option<(u32, bool)> {
    if let Some(told) = maps::told_mtu() {
        return Some(told);
    }
    if upper.piece.offset != 0 {
        return None;
    }
    let transport = wire::transport(packet, upper.at, upper.protocol)?;
    let flow = Ip { protocol: upper.protocol, ..*ip };
    let (row, frontend) = service::frontend(&flow, &transport).ok()?;
    let picked = service::pick_again(&flow, &transport, row).ok()?;
    let egress = maps::egress(picked.backend.hop().egress()?)?;
    let outer = outer::overhead(frontend.mode(), picked.backend.addr().is_v4());
    Some((egress.mtu().checked_sub(outer)?, false))
}

/// Refuses what no service takes: `None` if that cannot be told.
#[inline(always)]
pub(crate) fn reject<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    upper: &Upper,
) -> Option<Reason> {
    let plain = if V4 { 20 } else { 40 };
    let whole = !upper.piece.is_part() && packet.holds(L3 + ip.total as usize);
    if !whole || upper.at != L3 + plain || (ip.total as usize) < plain + 8 {
        return None;
    }
    match upper.protocol {
        protocol::TCP => reset::<L3, V4>(packet, ip),
        protocol::UDP => {
            if !may_answer::<V4>(ip) {
                return None;
            }
            let told = Icmp::port_unreachable(V4);
            let done = if V4 {
                quote::<L3, V4, 28>(packet, ip, told)
            } else {
                quote::<L3, V4, 48>(packet, ip, told)
            };
            Some(done.map_or_else(|r| r, |()| Reason::UnservedRejected))
        }
        _ => None,
    }
}

#[inline(always)]
fn may_answer<const V4: bool>(ip: &Ip) -> bool {
    reply::may_answer::<V4>(ip.src) && maps::may_answer()
}

/// Puts an ICMP message in front of the first `N` bytes of the packet, and sends that back.
#[inline(always)]
fn quote<const L3: usize, const V4: bool, const N: usize>(
    packet: &mut Packet,
    ip: &Ip,
    told: Icmp,
) -> Result<(), Reason> {
    let (head, icmp) = if V4 { (28, protocol::ICMP) } else { (48, protocol::ICMP6) };
    let len = (8 + N) as u16;
    let quoted = packet.bytes_mut::<N>(L3).ok_or(Reason::Truncated)?;
    let quoted = maps::checksum_of(quoted);
    let sum = if V4 { quoted } else { add(quoted, reply::pseudo::<V4>(ip.dst, ip.src, icmp, len)) };
    let message = told.header(sum);
    let link = packet.header::<Eth>(0).ok_or(Reason::Truncated)?;
    let (dst, src) = (split(link.src()), split(link.dst()));
    let tags = packet.tags::<L3>().ok_or(Reason::Truncated)?;

    packet.cut(L3 + N)?;
    packet.grow_head(head)?;
    let e = if V4 { ethertype::IPV4 } else { ethertype::IPV6 };
    packet.put_link::<L3>(mac_word(dst), mac_word(src), tags, e).ok_or(Reason::AdjustFailed)?;
    put_ip::<L3, V4>(packet, ip, icmp, len).ok_or(Reason::AdjustFailed)?;
    let at = L3 + if V4 { 20 } else { 40 };
    *packet.bytes_mut::<8>(at).ok_or(Reason::AdjustFailed)? = message;
    Ok(())
}

#[inline(always)]
fn reset<const L3: usize, const V4: bool>(packet: &mut Packet, ip: &Ip) -> Option<Reason> {
    let at = L3 + if V4 { 20 } else { 40 };
    let tcp: &Tcp = packet.header(at)?;
    let ([offset], [flags]) = (tcp.offset(), tcp.flags());
    let [s0, s1, s2, s3, a0, a1, a2, a3] = tcp.numbers();
    let headers = at - L3 + (offset as usize >> 4) * 4;
    let segment = Segment {
        ports: u32::from_ne_bytes(tcp.ports()),
        seq: u32::from_be_bytes([s0, s1, s2, s3]),
        ack: u32::from_be_bytes([a0, a1, a2, a3]),
        flags,
        len: (ip.total as usize).checked_sub(headers)? as u16,
    };
    let answer = reply::reset(&segment, reply::pseudo::<V4>(ip.dst, ip.src, protocol::TCP, 20))?;
    if !may_answer::<V4>(ip) {
        return None;
    }
    let link = packet.header::<Eth>(0)?;
    let (dst, src) = (split(link.src()), split(link.dst()));
    let tags = packet.tags::<L3>()?;

    if let Err(reason) = packet.cut(at + 20) {
        return Some(reason);
    }
    let e = if V4 { ethertype::IPV4 } else { ethertype::IPV6 };
    let mut done = || {
        packet.put_link::<L3>(mac_word(dst), mac_word(src), tags, e)?;
        put_ip::<L3, V4>(packet, ip, protocol::TCP, 20)?;
        *packet.bytes_mut::<20>(at)? = answer;
        Some(())
    };
    Some(done().map_or(Reason::AdjustFailed, |()| Reason::UnservedRejected))
}

/// The IP header from the VIP back to the client.
#[inline(always)]
pub(crate) fn put_ip<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    protocol: u8,
    len: u16,
) -> Option<()> {
    if V4 {
        let header = reply::ip4(ip.dst.as_v4_raw(), ip.src.as_v4_raw(), protocol, len);
        *packet.bytes_mut::<20>(L3)? = header;
    } else {
        *packet.bytes_mut::<8>(L3)? = reply::ip6(protocol, len);
        let addresses = packet.bytes_mut::<32>(L3 + 8)?;
        addresses[0..8].copy_from_slice(&ip.dst.hi().to_ne_bytes());
        addresses[8..16].copy_from_slice(&ip.dst.lo().to_ne_bytes());
        addresses[16..24].copy_from_slice(&ip.src.hi().to_ne_bytes());
        addresses[24..32].copy_from_slice(&ip.src.lo().to_ne_bytes());
    }
    Some(())
}

#[inline(always)]
const fn add(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    (sum & 0xffff_ffff) as u32 + (sum >> 32) as u32
}
