//! The backend's side: is there a socket for the segment? If not, it goes on to the next backend that it
//! names; what is handed on keeps the balancer's source address.

use abi::{
    chance::{self, Chances},
    checksum,
    outer::{PROTO_IPV4, PROTO_IPV6},
    pick,
    reason::Reason,
    table::{FrontendKey, Kind},
    wire::{self, Frame, Ip, Ipv4, Ipv6, Ports, Tcp, Udp, Wire, Word, protocol},
};
use aya_ebpf::{
    bindings::{bpf_fib_lookup as Fib, bpf_sock_tuple},
    helpers::generated::{
        bpf_fib_lookup, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
    },
};

use crate::{
    maps::Maps,
    packet::Packet,
    stage::decap::{self, Tunnel},
};

/// Bytes of the outer IP header; a sender of ours writes no options.
const fn outer<const V4: bool>() -> usize {
    if V4 { 20 } else { 40 }
}

/// Whether it is GUE for this machine.
#[inline(always)]
pub(crate) fn is_for<const L3: usize, const V4: bool>(packet: &Packet, ip: &Ip) -> bool {
    decap::tunnel::<L3>(packet, ip) == Tunnel::Gue
        && pick::frontend(&Maps, &FrontendKey::decap(ip.dst))
            .is_some_and(|(_, frontend)| frontend.kind() == Kind::Decap)
}

/// Its sender has been found to be one that may send it.
#[inline(always)]
pub(crate) fn run<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
) -> Result<Reason, Reason> {
    if ip.header != outer::<V4>() || !packet.holds(L3 + ip.total as usize) {
        return Err(Reason::BadInner);
    }
    let at = L3 + outer::<V4>() + size_of::<Udp>();
    let [first, inner, flags @ ..] = packet.header::<Ports>(at).ok_or(Reason::BadInner)?.both();
    let word = packet.header::<Ports>(at + 4).ok_or(Reason::BadInner)?.both();
    let chances = chance::read(first, word, V4).ok_or(Reason::BadInner)?;
    if flags != [0, 0] {
        return Err(Reason::BadInner);
    }
    let inside = at + chances.skip;
    let elsewhere = chances.taken < chances.hops
        && match inner {
            PROTO_IPV4 => is_strange4(packet, inside),
            PROTO_IPV6 => is_strange6(packet, inside),
            _ => return Err(Reason::BadInner),
        };
    if elsewhere {
        return hand_on::<L3, V4>(packet, ip, &chances);
    }
    decap::strip_at::<L3>(packet, ip, Tunnel::Gue, inside - L3)?;
    Ok(Reason::Decapsulated)
}

/// Whether it is a segment of a connection that this machine does not have. What is not plain TCP is
/// nobody else's.
#[inline(always)]
fn is_strange4(packet: &Packet, inside: usize) -> bool {
    let Some(ip) = wire::ipv4(packet, inside) else { return false };
    if ip.header != 20 || ip.fragment || ip.protocol != protocol::TCP {
        return false;
    }
    let Some(ports) = segment(packet, inside + 20) else { return false };
    // SAFETY: a union of plain integers, for all of which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    // SAFETY: the IPv4 half of it, which the size below says.
    let four = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
    four.saddr = ip.src.as_v4_raw();
    four.daddr = ip.dst.as_v4_raw();
    four.sport = ports as u16;
    four.dport = (ports >> 16) as u16;
    !has_socket::<Ipv4>(packet, &mut tuple, 12, inside, inside + 20)
}

#[inline(always)]
fn is_strange6(packet: &Packet, inside: usize) -> bool {
    let Some(ip) = wire::ipv6(packet, inside) else { return false };
    if ip.protocol != protocol::TCP {
        return false;
    }
    let Some(ports) = segment(packet, inside + 40) else { return false };
    // SAFETY: as above.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    // SAFETY: the IPv6 half of it, which the size below says.
    let six = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
    six.saddr = words(ip.src.hi(), ip.src.lo());
    six.daddr = words(ip.dst.hi(), ip.dst.lo());
    six.sport = ports as u16;
    six.dport = (ports >> 16) as u16;
    !has_socket::<Ipv6>(packet, &mut tuple, 36, inside, inside + 40)
}

const fn words(hi: u64, lo: u64) -> [u32; 4] {
    [hi as u32, (hi >> 32) as u32, lo as u32, (lo >> 32) as u32]
}

/// The ports of a segment that does not open a connection, as they stand in the header.
#[inline(always)]
fn segment(packet: &Packet, at: usize) -> Option<u32> {
    let found = wire::transport(packet, at, protocol::TCP)?;
    (!found.opening).then_some(found.ports)
}

/// Whether the machine has a socket for it: a connection's, or a listener that finds its own cookie in the
/// segment.
#[inline(always)]
fn has_socket<T: Wire>(
    packet: &Packet,
    tuple: &mut bpf_sock_tuple,
    size: u32,
    ip: usize,
    tcp: usize,
) -> bool {
    const LISTEN: u32 = 10;
    // The network namespace of the interface.
    const HERE: u64 = u64::MAX;
    // SAFETY: the context is the program's; the tuple has at least `size` bytes.
    let socket = unsafe { bpf_skc_lookup_tcp(packet.context().cast(), tuple, size, HERE, 0) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: it is not null, and referenced until it is released below.
    let state = unsafe { (&raw const (*socket).state).read_volatile() };
    let mut found = state != LISTEN;
    if !found
        && let Some(ip) = packet.header::<T>(ip)
        && let Some(tcp) = packet.header::<Tcp>(tcp)
    {
        // SAFETY: both headers lie within the frame, with the sizes given; the helper only reads them.
        found = unsafe {
            bpf_tcp_check_syncookie(
                socket.cast(),
                core::ptr::from_ref(ip).cast_mut().cast(),
                T::LEN as u32,
                core::ptr::from_ref(tcp).cast_mut().cast(),
                Tcp::LEN as u32,
            )
        } == 0;
    }
    // SAFETY: it was referenced by the lookup, and is not used afterwards.
    unsafe { bpf_sk_release(socket.cast()) };
    found
}

/// Sends the packet to the next backend that it names.
#[inline(always)]
fn hand_on<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    chances: &Chances,
) -> Result<Reason, Reason> {
    const FOUND: i64 = 0;
    const NO_NEIGHBOUR: i64 = 7;
    const TOO_BIG: i64 = 8;
    if ip.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    let hops = L3 + outer::<V4>() + size_of::<Udp>() + 8;
    // SAFETY: plain integers, for all of which zero is a value.
    let mut way: Fib = unsafe { core::mem::zeroed() };
    way.family = if V4 { 2 } else { 10 };
    way.l4_protocol = protocol::UDP;
    way.ifindex = packet.ingress();
    way.__bindgen_anon_1.tot_len = ip.total as u16;
    let (hi, lo);
    if V4 {
        let hop = packet.header::<Ports>(hops + chances.taken * 4).ok_or(Reason::BadInner)?.both();
        (hi, lo) = (0, u64::from(u32::from_ne_bytes(hop)));
        way.__bindgen_anon_3.ipv4_src = ip.src.as_v4_raw();
        way.__bindgen_anon_4.ipv4_dst = lo as u32;
    } else {
        let at = hops + chances.taken * 16;
        hi = u64::from_ne_bytes(packet.header::<Word>(at).ok_or(Reason::BadInner)?.value());
        lo = u64::from_ne_bytes(packet.header::<Word>(at + 8).ok_or(Reason::BadInner)?.value());
        way.__bindgen_anon_3.ipv6_src = words(ip.src.hi(), ip.src.lo());
        way.__bindgen_anon_4.ipv6_dst = words(hi, lo);
    }
    // SAFETY: the context is the program's; the structure has the size given.
    let answer = unsafe {
        bpf_fib_lookup(packet.context().cast(), &raw mut way, size_of::<Fib>() as i32, 0)
    };
    let found = match answer {
        FOUND => true,
        NO_NEIGHBOUR => false,
        TOO_BIG => return Err(Reason::TooBig),
        _ => return Err(Reason::NoNextHop),
    };

    readdress::<L3, V4>(packet, hi, lo, found).ok_or(Reason::BadInner)?;
    if !found {
        // The stack forwards it, and finds the neighbour for those that come after it.
        return Ok(Reason::HandedOnByHost);
    }
    let tags = packet.tags::<L3>().ok_or(Reason::Truncated)?;
    let e = if V4 { wire::ethertype::IPV4 } else { wire::ethertype::IPV6 };
    let (dst, src) = (mac(&way.dmac), mac(&way.smac));
    packet.put_link::<L3>(dst, src, tags, e).ok_or(Reason::AdjustFailed)?;
    packet.redirect(way.ifindex);
    Ok(Reason::HandedOn)
}

/// A MAC address of the structure on the stack, where the verifier wants aligned loads, and the compiler
/// would load four bytes.
#[inline(always)]
fn mac(from: &[u8; 6]) -> (u32, u16) {
    let halves = from.as_ptr().cast::<u16>();
    // SAFETY: six bytes are there, at an even offset of a structure that is aligned for words.
    unsafe {
        let [a, b, c] = [0, 1, 2].map(|n| halves.add(n).read_volatile());
        (u32::from(a) | u32::from(b) << 16, c)
    }
}

/// Writes the new destination, and that one more hop is taken. `hop`: also one less to live; else the stack
/// sees to that.
#[inline(always)]
fn readdress<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    hi: u64,
    lo: u64,
    hop: bool,
) -> Option<()> {
    // One check for all that is written: none of it may fail once something has been.
    const TAKEN: usize = 6;
    if V4 {
        let h = packet.bytes_mut::<{ 20 + 8 + 8 }>(L3)?;
        let dst = lo as u32;
        let old = u32::from_ne_bytes([h[16], h[17], h[18], h[19]]);
        let mut check = u16::from_ne_bytes([h[10], h[11]]);
        check = checksum::replace(check, old as u16, dst as u16);
        check = checksum::replace(check, (old >> 16) as u16, (dst >> 16) as u16);
        if hop {
            let was = u16::from_ne_bytes([h[8], h[9]]);
            h[8] -= 1;
            check = checksum::replace(check, was, u16::from_ne_bytes([h[8], h[9]]));
        }
        h[10..12].copy_from_slice(&check.to_ne_bytes());
        h[16..20].copy_from_slice(&dst.to_ne_bytes());
        h[26..28].fill(0);
        h[28 + TAKEN] += 1;
    } else {
        let h = packet.bytes_mut::<{ 40 + 8 + 8 }>(L3)?;
        if hop {
            h[7] -= 1;
        }
        h[24..32].copy_from_slice(&hi.to_ne_bytes());
        h[32..40].copy_from_slice(&lo.to_ne_bytes());
        h[46..48].fill(0);
        h[48 + TAKEN] += 1;
    }
    Some(())
}
