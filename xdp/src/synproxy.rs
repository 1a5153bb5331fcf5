//! The SYN proxy ([`abi::synproxy`]): answers SYNs in the place of this machine's listeners, which so have nothing
//! that a flood could fill, and drops segments that belong to no connection of theirs.
//!
//! The kernel says who listens and makes the cookie. Whatever it does not want answered here goes on to it as it came.

use abi::{
    reason::Reason,
    reply, synproxy,
    wire::{self, Eth, Frame, Ip, Tcp, protocol},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use crate::{
    behind::Program,
    exception::answer::put_ip,
    host::{self, Socket},
    maps::{self, feature},
    packet::Packet,
};

/// The program.
pub(crate) struct Proxy;

impl Program for Proxy {
    #[inline(never)]
    fn look<const L3: usize, const V4: bool>(ctx: *mut xdp_md, _cpu: u32) -> u32 {
        let mut packet = Packet::new(XdpContext::new(ctx));
        let ip = if V4 { wire::ipv4(&packet, L3) } else { wire::ipv6(&packet, L3) };
        // Asked for once more: not only the first program hands packets on.
        let ip = ip.filter(|ip| is_for::<L3, V4>(&packet, ip));
        let answered = ip.and_then(|ip| run::<L3, V4>(&mut packet, &ip));
        answered.or_else(maps::handed_on).unwrap_or(Reason::NotOurs) as u32
    }

    #[inline(always)]
    fn not_ip() -> Reason {
        Reason::NotOurs
    }

    #[inline(always)]
    fn onward(_reason: Reason) -> Option<u32> {
        None
    }
}

/// Whether a packet that would go to the host's stack is for this program.
#[inline(always)]
pub(crate) fn is_for<const L3: usize, const V4: bool>(packet: &Packet, ip: &Ip) -> bool {
    if ip.protocol != protocol::TCP || ip.fragment || (V4 && ip.header != 20) {
        return false;
    }
    let Some(tcp) = packet.header::<Tcp>(transport::<L3, V4>()) else { return false };
    let [flags] = tcp.flags();
    let strays = maps::has::<{ feature::STRAY_ACKS }>() && synproxy::continues(flags);
    if !synproxy::opens(flags) && !strays {
        return false;
    }
    let [.., high, low] = tcp.ports();
    maps::is_proxied(u16::from_be_bytes([high, low]))
}

#[inline(always)]
const fn transport<const L3: usize, const V4: bool>() -> usize {
    L3 + if V4 { 20 } else { 40 }
}

/// `None`: the host's stack sees to it.
#[inline(always)]
fn run<const L3: usize, const V4: bool>(packet: &mut Packet, ip: &Ip) -> Option<Reason> {
    let tcp: &Tcp = packet.header(transport::<L3, V4>())?;
    let [flags] = tcp.flags();
    let ports = u32::from_ne_bytes(tcp.ports());
    if synproxy::opens(flags) {
        return answer::<L3, V4>(packet, ip, ports);
    }
    let socket = if V4 {
        host::socket4(packet, ip, ports, L3)
    } else {
        host::socket6(packet, ip, ports, L3)
    };
    // A listener at any address has what goes on to others too.
    (socket == Socket::Stranger && host::is_here::<V4>(packet, ip)).then_some(Reason::StrayAck)
}

/// Turns a SYN into its answer.
#[inline(always)]
fn answer<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    ports: u32,
) -> Option<Reason> {
    let l4 = transport::<L3, V4>();
    let tcp: &Tcp = packet.header(l4)?;
    let [offset] = tcp.offset();
    let [s0, s1, s2, s3, ..] = tcp.numbers();
    let seq = u32::from_be_bytes([s0, s1, s2, s3]);
    let len = u32::from(offset >> 2 & 0x3c);
    let [group, ..] = packet.header::<Eth>(0)?.dst();
    let fits = ip.total as usize >= l4 - L3 + len as usize && packet.holds(L3 + ip.total as usize);
    if len < 20 || !fits || group & 1 != 0 || !reply::may_answer::<V4>(ip.src) {
        return None;
    }
    if !host::is_here::<V4>(packet, ip) {
        return None;
    }
    let cookie = host::cookie::<V4>(packet, ip, ports, L3, l4, len);
    if cookie < 0 {
        return None;
    }
    // A frame that cannot be made as long as its answer is still what it was.
    packet.cut(l4 + usize::from(synproxy::HEADER)).ok()?;
    put::<L3, V4>(packet, ip, ports, seq, cookie);
    Some(Reason::SynAnswered)
}

/// Writes the answer over the SYN; bounds that do not hold were checked before.
#[inline(always)]
fn put<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    ports: u32,
    seq: u32,
    cookie: i64,
) -> Option<()> {
    let pseudo = reply::pseudo::<V4>(ip.dst, ip.src, protocol::TCP, synproxy::HEADER);
    let header = synproxy::answer(ports, seq, cookie as u32, (cookie >> 32) as u16, pseudo);
    *packet.bytes_mut::<24>(transport::<L3, V4>())? = header;
    put_ip::<L3, V4>(packet, ip, protocol::TCP, synproxy::HEADER)?;
    packet.swap_macs()
}
