//! Packets for the tests, built by `etherparse`, and what is expected of them.

use etherparse::{Ipv4Header, PacketBuilder};
use lb_tests::rig::{CLIENT_MAC, OUR_MAC};

pub(crate) const PASS: u32 = 2;
pub(crate) const DROP: u32 = 1;
pub(crate) const TX: u32 = 3;
pub(crate) const REDIRECT: u32 = 4;

pub(crate) const VIP4: &str = "203.0.113.10";
pub(crate) const VIP6: &str = "2001:db8:1::10";

pub(crate) fn v4(a: &str) -> [u8; 4] {
    a.parse::<std::net::Ipv4Addr>().unwrap().octets()
}

pub(crate) fn v6(a: &str) -> [u8; 16] {
    a.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

#[derive(Clone, Copy)]
pub(crate) enum L4 {
    Syn(u16),
    Ack(u16),
    Udp(u16),
}

pub(crate) fn frame4(src: &str, dst: &str, l4: L4, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let b = PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC).ipv4(v4(src), v4(dst), ttl);
    let mut out = Vec::new();
    match l4 {
        L4::Syn(port) => b.tcp(40000, port, 1, 1000).syn().write(&mut out, payload).unwrap(),
        L4::Ack(port) => b.tcp(40000, port, 1, 1000).ack(7).write(&mut out, payload).unwrap(),
        L4::Udp(port) => b.udp(40000, port).write(&mut out, payload).unwrap(),
    }
    out
}

pub(crate) fn frame6(src: &str, dst: &str, l4: L4, hops: u8, payload: &[u8]) -> Vec<u8> {
    let b = PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC).ipv6(v6(src), v6(dst), hops);
    let mut out = Vec::new();
    match l4 {
        L4::Syn(port) => b.tcp(40000, port, 1, 1000).syn().write(&mut out, payload).unwrap(),
        L4::Ack(port) => b.tcp(40000, port, 1, 1000).ack(7).write(&mut out, payload).unwrap(),
        L4::Udp(port) => b.udp(40000, port).write(&mut out, payload).unwrap(),
    }
    out
}

/// The packet that `frame` carries, with its TTL one lower and its checksum made anew.
pub(crate) fn one_hop_later(l3: &[u8]) -> Vec<u8> {
    let mut out = l3.to_vec();
    if l3[0] >> 4 == 4 {
        let (mut h, _) = Ipv4Header::from_slice(l3).unwrap();
        h.time_to_live -= 1;
        h.header_checksum = h.calc_header_checksum();
        out[..h.header_len()].copy_from_slice(&h.to_bytes());
    } else {
        out[7] -= 1;
    }
    out
}

pub(crate) fn macs(frame: &[u8]) -> ([u8; 6], [u8; 6]) {
    (frame[..6].try_into().unwrap(), frame[6..12].try_into().unwrap())
}
