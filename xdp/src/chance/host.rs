//! What the host knows of a packet: whether it has a socket for a segment, and the way to an address.
//!
//! The only place with the helpers that tell.

use abi::{
    reason::Reason,
    wire::{Frame as _, Ip, Ipv4, Ipv6, Tcp, Wire, protocol},
};
use aya_ebpf::{
    bindings::{bpf_fib_lookup as Fib, bpf_sock_tuple},
    helpers::generated::{
        bpf_fib_lookup, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
    },
};

use crate::packet::Packet;

/// Whether the machine has a socket for a segment whose IPv4 header is at `at`, and has no options: that of its
/// connection, or a listener that finds its own cookie in it. `ports` as they stand in the header.
#[inline(always)]
pub(super) fn has_socket4(packet: &Packet, ip: &Ip, ports: u32, at: usize) -> bool {
    // SAFETY: a union of plain integers, for all of which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    // SAFETY: the IPv4 half of it, which the size below says.
    let four = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
    four.saddr = ip.src.as_v4_raw();
    four.daddr = ip.dst.as_v4_raw();
    four.sport = ports as u16;
    four.dport = (ports >> 16) as u16;
    has_socket::<Ipv4>(packet, &mut tuple, 12, at, at + 20)
}

/// The same for IPv6.
#[inline(always)]
pub(super) fn has_socket6(packet: &Packet, ip: &Ip, ports: u32, at: usize) -> bool {
    // SAFETY: as above.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    // SAFETY: the IPv6 half of it, which the size below says.
    let six = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
    six.saddr = words(ip.src.hi(), ip.src.lo());
    six.daddr = words(ip.dst.hi(), ip.dst.lo());
    six.sport = ports as u16;
    six.dport = (ports >> 16) as u16;
    has_socket::<Ipv6>(packet, &mut tuple, 36, at, at + 40)
}

const fn words(hi: u64, lo: u64) -> [u32; 4] {
    [hi as u32, (hi >> 32) as u32, lo as u32, (lo >> 32) as u32]
}

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

/// The way to an address.
pub(super) struct Way {
    /// Its MAC address is known, and the next two are; else the host's stack has to find it.
    pub(super) neighbour: bool,
    /// MAC addresses as they stand in a frame: first four bytes, last two.
    pub(super) dst: (u32, u16),
    pub(super) src: (u32, u16),
    /// The interface.
    pub(super) ifindex: u32,
}

/// The way of a packet to another address than its own destination.
///
/// # Errors
/// [`Reason::TooBig`] for that way; [`Reason::NoNextHop`]: there is none.
#[inline(always)]
pub(super) fn way<const V4: bool>(
    packet: &Packet,
    ip: &Ip,
    hi: u64,
    lo: u64,
) -> Result<Way, Reason> {
    const FOUND: i64 = 0;
    const NO_NEIGHBOUR: i64 = 7;
    const TOO_BIG: i64 = 8;
    // SAFETY: plain integers, for all of which zero is a value.
    let mut way: Fib = unsafe { core::mem::zeroed() };
    way.family = if V4 { 2 } else { 10 };
    way.l4_protocol = protocol::UDP;
    way.ifindex = packet.ingress();
    way.__bindgen_anon_1.tot_len = ip.total as u16;
    if V4 {
        way.__bindgen_anon_3.ipv4_src = ip.src.as_v4_raw();
        way.__bindgen_anon_4.ipv4_dst = lo as u32;
    } else {
        way.__bindgen_anon_3.ipv6_src = words(ip.src.hi(), ip.src.lo());
        way.__bindgen_anon_4.ipv6_dst = words(hi, lo);
    }
    // SAFETY: the context is the program's; the structure has the size given.
    let answer = unsafe {
        bpf_fib_lookup(packet.context().cast(), &raw mut way, size_of::<Fib>() as i32, 0)
    };
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
