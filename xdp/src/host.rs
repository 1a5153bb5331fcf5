//! What the host knows of a packet: whether it has a socket for a segment, the cookie of a listener, and the way
//! to an address.
//!
//! The only place with the helpers that tell.

use abi::{
    reason::Reason,
    wire::{Frame as _, Ip, Ipv4, Ipv6, Tcp, Wire, protocol},
};
use aya_ebpf::{
    bindings::{bpf_fib_lookup as Fib, bpf_sock, bpf_sock_tuple},
    helpers::{
        bpf_xdp_load_bytes,
        generated::{
            bpf_fib_lookup, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
            bpf_tcp_gen_syncookie,
        },
    },
};

use crate::{maps, packet::Packet};

/// What the machine has for a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Socket {
    /// None.
    None,
    /// That of its connection, or a listener that finds its own cookie in it.
    Connection,
    /// A listener that finds no cookie of its own in it.
    Stranger,
    /// A listener, in a kernel that does not say.
    Listener,
}

/// What the machine has for a segment whose IPv4 header is at `at`, and has no options. `ports` as they stand in the
/// header.
#[inline(always)]
pub(crate) fn socket4(packet: &Packet, ip: &Ip, ports: u32, at: usize) -> Socket {
    socket::<Ipv4>(packet, &mut tuple::<true>(ip, ports), at, at + 20)
}

/// The same for IPv6.
#[inline(always)]
pub(crate) fn socket6(packet: &Packet, ip: &Ip, ports: u32, at: usize) -> Socket {
    socket::<Ipv6>(packet, &mut tuple::<false>(ip, ports), at, at + 40)
}

#[inline(always)]
fn tuple<const V4: bool>(ip: &Ip, ports: u32) -> bpf_sock_tuple {
    // SAFETY: a union of plain integers, for all of which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    if V4 {
        // SAFETY: the IPv4 half of it, which the size that goes with it says.
        let four = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        four.saddr = ip.src.as_v4_raw();
        four.daddr = ip.dst.as_v4_raw();
        four.sport = ports as u16;
        four.dport = (ports >> 16) as u16;
    } else {
        // SAFETY: the IPv6 half, likewise.
        let six = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        six.saddr = words(ip.src.hi(), ip.src.lo());
        six.daddr = words(ip.dst.hi(), ip.dst.lo());
        six.sport = ports as u16;
        six.dport = (ports >> 16) as u16;
    }
    tuple
}

const fn words(hi: u64, lo: u64) -> [u32; 4] {
    [hi as u32, (hi >> 32) as u32, lo as u32, (lo >> 32) as u32]
}

/// State of a socket that listens.
const LISTEN: u32 = 10;

/// The socket of a tuple of the family of `T`; one that is not null has to be released.
#[inline(always)]
fn find<T: Wire>(packet: &Packet, tuple: &mut bpf_sock_tuple) -> *mut bpf_sock {
    // The network namespace of the interface.
    const HERE: u64 = u64::MAX;
    let size = if T::LEN == Ipv4::LEN { 12 } else { 36 };
    // SAFETY: the context is the program's; the tuple has at least `size` bytes.
    unsafe { bpf_skc_lookup_tcp(packet.context().cast(), tuple, size, HERE, 0) }
}

#[inline(always)]
fn socket<T: Wire>(packet: &Packet, tuple: &mut bpf_sock_tuple, ip: usize, tcp: usize) -> Socket {
    const ENOENT: i64 = -2;
    let socket = find::<T>(packet, tuple);
    if socket.is_null() {
        return Socket::None;
    }
    // SAFETY: it is not null, and referenced until it is released below.
    let state = unsafe { (&raw const (*socket).state).read_volatile() };
    let mut found = Socket::Connection;
    if state == LISTEN {
        found = Socket::Listener;
        if let Some(ip) = packet.header::<T>(ip)
            && let Some(tcp) = packet.header::<Tcp>(tcp)
        {
            // SAFETY: both headers lie within the frame, with the sizes given; the helper only reads them.
            let answer = unsafe {
                bpf_tcp_check_syncookie(
                    socket.cast(),
                    core::ptr::from_ref(ip).cast_mut().cast(),
                    T::LEN as u32,
                    core::ptr::from_ref(tcp).cast_mut().cast(),
                    Tcp::LEN as u32,
                )
            };
            found = match answer {
                0 => Socket::Connection,
                ENOENT => Socket::Stranger,
                _ => Socket::Listener,
            };
        }
    }
    // SAFETY: it was referenced by the lookup, and is not used afterwards.
    unsafe { bpf_sk_release(socket.cast()) };
    found
}

/// The cookie that the listener of a SYN gives it: segment size in bits 32 to 47, sequence number below. Negative:
/// there is no listener, or it wants none: cookies are off, or for full queues only. The IP header, without options, is
/// at `ip`, and the TCP header, of `len` bytes, at `tcp`.
#[inline(always)]
pub(crate) fn cookie<const V4: bool>(
    packet: &Packet,
    addresses: &Ip,
    ports: u32,
    ip: usize,
    tcp: usize,
    len: u32,
) -> i64 {
    if V4 {
        made::<Ipv4>(packet, &mut tuple::<true>(addresses, ports), ip, tcp, len)
    } else {
        made::<Ipv6>(packet, &mut tuple::<false>(addresses, ports), ip, tcp, len)
    }
}

#[inline(always)]
fn made<T: Wire>(
    packet: &Packet,
    tuple: &mut bpf_sock_tuple,
    ip: usize,
    tcp: usize,
    len: u32,
) -> i64 {
    const NONE: i64 = -1;
    // The helper wants the options too, whose number is not known to the verifier: in a copy it has no need to.
    let mut header = [0u64; 8];
    // By way of memory: the compiler would take the bound from the caller's check, which the verifier does not.
    let len = match maps::forget_word(len.into()) {
        Some(len) => len as u32 & 0x3c,
        None => return NONE,
    };
    if len < Tcp::LEN as u32 {
        return NONE;
    }
    // SAFETY: the context is the program's, and `header` has room for `len`.
    let failed = unsafe {
        bpf_xdp_load_bytes(packet.context(), tcp as u32, header.as_mut_ptr().cast(), len)
    } != 0;
    if failed {
        return NONE;
    }
    let socket = find::<T>(packet, tuple);
    if socket.is_null() {
        return NONE;
    }
    let mut cookie = NONE;
    // SAFETY: it is not null, and referenced until it is released below.
    let state = unsafe { (&raw const (*socket).state).read_volatile() };
    if state == LISTEN
        && let Some(ip) = packet.header::<T>(ip)
    {
        // SAFETY: the IP header lies within the frame, the other one in `header`; both are only read.
        cookie = unsafe {
            bpf_tcp_gen_syncookie(
                socket.cast(),
                core::ptr::from_ref(ip).cast_mut().cast(),
                T::LEN as u32,
                header.as_mut_ptr().cast(),
                len,
            )
        };
    }
    // SAFETY: it was referenced by the lookup, and is not used afterwards.
    unsafe { bpf_sk_release(socket.cast()) };
    cookie
}

/// Whether the machine itself is where a packet goes to: it is not one that the machine forwards.
#[inline(always)]
pub(crate) fn is_here<const V4: bool>(packet: &Packet, ip: &Ip) -> bool {
    const NOT_FORWARDED: i64 = 4;
    const FORWARDS_NOTHING: i64 = 5;
    let lo = if V4 { ip.dst.as_v4_raw().into() } else { ip.dst.lo() };
    matches!(
        ask::<V4>(packet, ip, 0, ip.dst.hi(), lo, &mut nowhere()),
        NOT_FORWARDED | FORWARDS_NOTHING
    )
}

#[inline(always)]
fn nowhere() -> Fib {
    // SAFETY: plain integers, for all of which zero is a value.
    unsafe { core::mem::zeroed() }
}

/// Asks for the way of a packet to another address, of which `lo` alone counts for IPv4: as it stands in a header.
/// Bytes 0: of any size.
#[inline(always)]
fn ask<const V4: bool>(
    packet: &Packet,
    ip: &Ip,
    bytes: u16,
    hi: u64,
    lo: u64,
    way: &mut Fib,
) -> i64 {
    way.family = if V4 { 2 } else { 10 };
    way.l4_protocol = protocol::UDP;
    way.ifindex = packet.ingress();
    way.__bindgen_anon_1.tot_len = bytes;
    if V4 {
        way.__bindgen_anon_3.ipv4_src = ip.src.as_v4_raw();
        way.__bindgen_anon_4.ipv4_dst = lo as u32;
    } else {
        way.__bindgen_anon_3.ipv6_src = words(ip.src.hi(), ip.src.lo());
        way.__bindgen_anon_4.ipv6_dst = words(hi, lo);
    }
    // SAFETY: the context is the program's; the structure has the size given.
    unsafe { bpf_fib_lookup(packet.context().cast(), way, size_of::<Fib>() as i32, 0) }
}

/// The way to an address.
pub(crate) struct Way {
    /// Its MAC address is known, and the next two are; else the host's stack has to find it.
    pub(crate) neighbour: bool,
    /// MAC addresses as they stand in a frame: first four bytes, last two.
    pub(crate) dst: (u32, u16),
    pub(crate) src: (u32, u16),
    /// The interface.
    pub(crate) ifindex: u32,
}

/// The way of a packet to another address than its own destination.
///
/// # Errors
/// [`Reason::TooBig`] for that way; [`Reason::NoNextHop`]: there is none.
#[inline(always)]
pub(crate) fn way<const V4: bool>(
    packet: &Packet,
    ip: &Ip,
    hi: u64,
    lo: u64,
) -> Result<Way, Reason> {
    const FOUND: i64 = 0;
    const NO_NEIGHBOUR: i64 = 7;
    const TOO_BIG: i64 = 8;
    let mut way = nowhere();
    let answer = ask::<V4>(packet, ip, ip.total as u16, hi, lo, &mut way);
    let neighbour = match answer {
        FOUND => true,
        NO_NEIGHBOUR => false,
        TOO_BIG => return Err(Reason::TooBig),
        _ => return Err(Reason::NoNextHop),
    };
    Ok(Way { neighbour, dst: mac(&way.dmac), src: mac(&way.smac), ifindex: way.ifindex })
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
