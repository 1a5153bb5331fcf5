//! Full NAT: both directions, for each family; what is not translated; ports that run out.

use abi::{limits::behind as places, reason::Reason};
use aya::maps::{Map, ProgramArray};
use config::model::{Forwarding, NatPorts, Port, Protocol, Service};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use lb_tests::lab::BpfDirectory;
use lb_tests::rig::{
    CLIENT_MAC, EVERYTHING, HOP_MAC, INGRESS, OUR_MAC, Rig, nat_capacity, service,
};

use crate::packets::{DROP, L4, PASS, REDIRECT, TX, VIP4, VIP6, frame4, frame6, macs, v4, v6};

/// Where translated packets come from: the rig's source of each family.
const NAT4: &str = "10.0.0.1";
const NAT6: &str = "2001:db8:f::1";
const WEB4: &str = "10.0.1.11";
const WEB6: &str = "2001:db8:2::11";
const CLIENT4: &str = "198.51.100.7";
const CLIENT6: &str = "2001:db8:9::7";

pub(crate) fn behind(vip: &str, backend: &str) -> Service {
    let mut web = service("web", &[vip], Forwarding::Nat, &[backend]);
    web.ports = [(80, Protocol::Tcp, 8080), (443, Protocol::Udp, 443)]
        .map(|(port, protocol, target_port)| Port {
            name: format!("p{port}"),
            port,
            last: port,
            protocol,
            target_port,
            quic: false,
        })
        .into();
    web
}

fn rig(vip: &str, backend: &str) -> Rig {
    Rig::with(vec![behind(vip, backend)], INGRESS, 1500)
}

/// What a frame says, all of its checksums being right.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Says {
    pub(crate) src: String,
    pub(crate) dst: String,
    pub(crate) ports: (u16, u16),
    pub(crate) ttl: u8,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn says(frame: &[u8]) -> Says {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let net = packet.net.unwrap();
    let (src, dst, ttl): (std::net::IpAddr, std::net::IpAddr, u8) = match &net {
        NetSlice::Ipv4(ip) => {
            let h = ip.header().to_header();
            assert_eq!(h.header_checksum, h.calc_header_checksum());
            (h.source.into(), h.destination.into(), h.time_to_live)
        }
        NetSlice::Ipv6(ip) => {
            let h = ip.header().to_header();
            (h.source.into(), h.destination.into(), h.hop_limit)
        }
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let (ports, sum, right, payload) = match packet.transport.unwrap() {
        TransportSlice::Tcp(tcp) => {
            let h = tcp.to_header();
            let right = match &net {
                NetSlice::Ipv4(ip) => {
                    h.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload()).unwrap()
                }
                NetSlice::Ipv6(ip) => {
                    h.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload()).unwrap()
                }
                NetSlice::Arp(_) => panic!("ARP"),
            };
            ((h.source_port, h.destination_port), h.checksum, right, tcp.payload().to_vec())
        }
        TransportSlice::Udp(udp) => {
            let h = udp.to_header();
            let right = match &net {
                NetSlice::Ipv4(ip) => {
                    h.calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).unwrap()
                }
                NetSlice::Ipv6(ip) => {
                    h.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()).unwrap()
                }
                NetSlice::Arp(_) => panic!("ARP"),
            };
            ((h.source_port, h.destination_port), h.checksum, right, udp.payload().to_vec())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(sum, right, "the transport's checksum");
    Says { src: src.to_string(), dst: dst.to_string(), ports, ttl, payload }
}

/// A segment or datagram of a backend.
pub(crate) fn from_backend(
    src: &str,
    sport: u16,
    dst: &str,
    dport: u16,
    udp: bool,
    payload: &[u8],
) -> Vec<u8> {
    let b = PacketBuilder::ethernet2(HOP_MAC, OUR_MAC);
    let b =
        if src.contains(':') { b.ipv6(v6(src), v6(dst), 60) } else { b.ipv4(v4(src), v4(dst), 60) };
    let mut out = Vec::new();
    if udp {
        b.udp(sport, dport).write(&mut out, payload).unwrap();
    } else {
        b.tcp(sport, dport, 9, 1000).syn().ack(2).write(&mut out, payload).unwrap();
    }
    out
}

pub(crate) fn client_frame(vip: &str, l4: L4, payload: &[u8]) -> Vec<u8> {
    if vip.contains(':') {
        frame6(CLIENT6, vip, l4, 64, payload)
    } else {
        frame4(CLIENT4, vip, l4, 64, payload)
    }
}

const SAME_FAMILY: [(&str, &str, &str, &str); 2] =
    [(VIP4, WEB4, NAT4, CLIENT4), (VIP6, WEB6, NAT6, CLIENT6)];

#[test]
fn there_and_back() {
    for (vip, web, nat, client) in SAME_FAMILY {
        let mut rig = rig(vip, web);
        for (l4, port, target, udp) in
            [(L4::Syn(80), 80, 8080, false), (L4::Udp(443), 443, 443, true)]
        {
            for payload in [&b""[..], b"hello", b"even"] {
                let got = rig.run(&client_frame(vip, l4, payload));
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                assert_eq!(macs(&got.frame), (HOP_MAC, OUR_MAC));
                let forth = says(&got.frame);
                assert_eq!((&*forth.src, &*forth.dst, forth.ttl), (nat, web, 63));
                assert_eq!((forth.ports.1, &*forth.payload), (target, payload));
                let port_of_nat = forth.ports.0;
                assert!((1024..=32767).contains(&port_of_nat));

                let reply = from_backend(web, target, nat, port_of_nat, udp, payload);
                let got = rig.run(&reply);
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                assert_eq!(macs(&got.frame), (CLIENT_MAC, OUR_MAC));
                let back = says(&got.frame);
                assert_eq!((&*back.src, &*back.dst, back.ttl), (vip, client, 59));
                assert_eq!((back.ports, &*back.payload), ((port, 40000), payload));
            }
        }
        // A segment of the same connection keeps its port.
        let first = says(&rig.run(&client_frame(vip, L4::Ack(80), b"x")).frame).ports;
        assert_eq!(says(&rig.run(&client_frame(vip, L4::Ack(80), b"y")).frame).ports, first);
        let (front, back) = rig.counts("web");
        assert_eq!((front, front.packets, front.new_connections), (back, 8, 3));
    }
}

/// Without the programs behind it, the first one translates what belongs to connections that stand, and nothing else.
#[test]
fn connections_that_stand_need_the_first_program_alone() {
    for (n, (vip, web, nat, _)) in SAME_FAMILY.into_iter().enumerate() {
        let pins = BpfDirectory::create(&format!("alone{n}-{}", std::process::id())).unwrap();
        let tables = pins.path().join("v0-0");
        std::fs::create_dir(&tables).unwrap();
        let mut rig = Rig::pinned_of(nat_capacity(), &tables);
        rig.fill(vec![behind(vip, web)], INGRESS, 1500);
        let tcp = |rig: &mut Rig, l4| says(&rig.run(&client_frame(vip, l4, b"x")).frame).ports.0;
        let (port, udp_port) = (tcp(&mut rig, L4::Syn(80)), tcp(&mut rig, L4::Udp(443)));
        rig.run(&from_backend(web, 8080, nat, port, false, b""));
        assert_eq!(tcp(&mut rig, L4::Ack(80)), port);
        let jump = lb_tests::rig::jump(&tables);
        let mut jump = ProgramArray::try_from(Map::ProgramArray(jump)).unwrap();
        // The last one, and the first one to go on: what UDP's entries note holds for seconds.
        rig.run(&from_backend(web, 443, nat, udp_port, true, b""));
        assert_eq!(tcp(&mut rig, L4::Udp(443)), udp_port);
        jump.clear_index(&places::NAT).unwrap();
        let mut reply = from_backend(web, 8080, nat, port, false, b"reply");
        as_ack(&mut reply);
        for frame in [
            client_frame(vip, L4::Udp(443), b"as long as TCP"),
            from_backend(web, 443, nat, udp_port, true, b"as long as TCP"),
            client_frame(vip, L4::Ack(80), b"more"),
            reply,
        ] {
            let got = rig.run(&frame);
            assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx), "{:?}", says(&frame));
            assert_eq!(
                (says(&got.frame).ttl, got.frame.len()),
                (says(&frame).ttl - 1, frame.len())
            );
        }
        let syn = rig.run(&client_frame(vip, L4::Syn(80), b""));
        assert_eq!((syn.action, syn.reason), (DROP, Reason::NatNoEntry));
        let other = rig.run(&from_backend(web, 8080, nat, port ^ 1, false, b""));
        assert_eq!((other.action, other.reason), (PASS, Reason::NatPassed));
    }
}

/// A SYN with ACK, without SYN.
pub(crate) fn as_ack(frame: &mut [u8]) {
    let tcp = if frame[14] >> 4 == 4 { 34 } else { 54 };
    frame[tcp + 13] &= !2;
    let sum = u32::from(u16::from_be_bytes([frame[tcp + 16], frame[tcp + 17]])) + 2;
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[tcp + 16..tcp + 18].copy_from_slice(&(sum as u16).to_be_bytes());
}

#[test]
fn replies_follow_the_client_to_another_router() {
    let mut rig = rig(VIP4, WEB4);
    let syn = client_frame(VIP4, L4::Syn(80), b"");
    let port = says(&rig.run(&syn).frame).ports.0;
    let mut ack = client_frame(VIP4, L4::Ack(80), b"");
    ack[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x55]);
    rig.run(&ack);
    let got = rig.run(&from_backend(WEB4, 8080, NAT4, port, false, b""));
    assert_eq!(macs(&got.frame), ([2, 0, 0, 0, 0, 0x55], OUR_MAC));
}

#[test]
fn a_backend_on_another_interface() {
    let mut rig = Rig::with(vec![behind(VIP4, WEB4)], INGRESS + 41, 1500);
    let got = rig.run(&client_frame(VIP4, L4::Syn(80), b""));
    assert_eq!((got.action, got.reason), (REDIRECT, Reason::ForwardedRedirect));
}

/// A backend that uses its own service.
#[test]
fn hairpin() {
    let mut rig = rig(VIP4, WEB4);
    let call = frame4(WEB4, VIP4, L4::Syn(80), 64, b"");
    let forth = says(&rig.run(&call).frame);
    assert_eq!((&*forth.src, &*forth.dst), (NAT4, WEB4));
    let back = says(&rig.run(&from_backend(WEB4, 8080, NAT4, forth.ports.0, false, b"")).frame);
    assert_eq!((&*back.src, &*back.dst, back.ports), (VIP4, WEB4, (80, 40000)));
}

#[test]
fn a_datagram_without_a_checksum_keeps_none() {
    let mut rig = rig(VIP4, WEB4);
    let mut frame = client_frame(VIP4, L4::Udp(443), b"hello");
    frame[40..42].fill(0);
    let got = rig.run(&frame);
    assert_eq!((got.reason, &got.frame[40..42]), (Reason::ForwardedTx, &[0, 0][..]));
}

/// What is for the host at the address that translated packets come from.
#[test]
fn the_host_keeps_what_is_its_own() {
    for (vip, web, nat, client) in SAME_FAMILY {
        let mut rig = rig(vip, web);
        let port = says(&rig.run(&client_frame(vip, L4::Syn(80), b"")).frame).ports.0;
        let reply = |src, sport, dport, udp| from_backend(src, sport, nat, dport, udp, b"x");
        for frame in [
            reply(client, 50000, 22, false),
            reply(client, 50000, port, false),
            reply(web, 8080, port ^ 1, false),
            reply(web, 8081, port, false),
            reply(web, 8080, port, true),
            reply(web, 8080, 40000, false),
            reply(web, 0, 0, true),
        ] {
            let got = rig.run(&frame);
            assert_eq!((got.action, got.reason), (PASS, Reason::NatPassed));
            assert_eq!(got.frame, frame);
        }
        let mut ping = reply(web, 8080, port, false);
        if web.contains(':') {
            ping[20] = 58;
        } else {
            ping[23] = 1;
        }
        let got = rig.run(&ping);
        assert_eq!((got.action, got.reason, got.frame), (PASS, Reason::NatPassed, ping));
    }
}

#[test]
fn a_segment_of_no_connection() {
    for (vip, web, ..) in SAME_FAMILY {
        let mut rig = rig(vip, web);
        let got = rig.run(&client_frame(vip, L4::Ack(80), b""));
        assert_eq!((got.action, got.reason), (DROP, Reason::NatNoEntry));
        assert_eq!(rig.run(&client_frame(vip, L4::Syn(81), b"")).reason, Reason::NoService);
    }
}

#[test]
fn what_cannot_be_translated() {
    let mut rig = rig(VIP4, WEB4);
    rig.run(&client_frame(VIP4, L4::Syn(80), b""));
    let syn = client_frame(VIP4, L4::Syn(80), b"hello");
    let mut late = syn.clone();
    late[22] = 1;
    assert_eq!(rig.run(&late).reason, Reason::TtlExpired);
    let mut lie = syn;
    lie[17] += 40;
    assert_eq!(rig.run(&lie).reason, Reason::BadLength);
}

/// Four ports for one backend: the fifth client gets none, until one of the others is done.
#[test]
fn ports_run_out() {
    let nat_ports = NatPorts { first: 2000, last: 2003 }.to_word();
    let mut rig =
        Rig::sized(lb_daemon::datapath::Capacity { nat_ports, ..nat_capacity() }, EVERYTHING);
    rig.fill(vec![behind(VIP4, WEB4)], INGRESS, 1500);
    let syn = |n: u8| frame4(&format!("198.51.100.{n}"), VIP4, L4::Syn(80), 64, b"");
    let mut served = Vec::new();
    let mut refused = Vec::new();
    for n in 1..60 {
        let got = rig.run(&syn(n));
        if got.reason == Reason::ForwardedTx {
            served.push(says(&got.frame).ports.0);
        } else {
            assert_eq!((got.action, got.reason), (DROP, Reason::NatExhausted));
            refused.push(n);
        }
    }
    served.sort_unstable();
    assert_eq!(served, [2000, 2001, 2002, 2003]);
    let mut reset = from_backend(WEB4, 8080, NAT4, 2001, false, b"");
    // RST in the place of SYN and ACK; the checksum is not looked at.
    reset[47] = 0x04;
    assert_eq!(rig.run(&reset).reason, Reason::ForwardedTx);
    let freed: Vec<u8> =
        refused.into_iter().filter(|&n| rig.run(&syn(n)).reason == Reason::ForwardedTx).collect();
    assert_eq!(freed.len(), 1);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut rig = rig(VIP4, WEB4);
    rig.run(&client_frame(VIP4, L4::Syn(80), b""));
    let fits = client_frame(VIP4, L4::Ack(80), &[0; 1460]);
    assert_eq!(rig.run(&fits).reason, Reason::ForwardedTx);
    let got = rig.run(&client_frame(VIP4, L4::Ack(80), &[0; 1461]));
    assert_eq!(got.reason, Reason::TooBigAnswered);
}
