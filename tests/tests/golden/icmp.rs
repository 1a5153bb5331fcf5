//! ICMP for a VIP, and ICMP that we send ourselves.

use abi::{limits::feature, reason::Reason};
use config::model::Forwarding;
use etherparse::{
    Ethernet2Header, Icmpv4Slice, Icmpv6Slice, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder,
    PacketBuilderStep, VlanId,
};
use lb_tests::{
    lab::{BpfDirectory, unique},
    rig::{CLIENT_MAC, HOP_MAC, INGRESS, OUR_MAC, Rig, service},
};

use crate::{
    packets::{DROP, L4, PASS, TX, VIP4, VIP6, frame4, frame6, macs, v4, v6},
    rig,
};

const CLIENT4: &str = "198.51.100.7";
const CLIENT6: &str = "2001:db8:9::7";

fn ethernet() -> PacketBuilderStep<Ethernet2Header> {
    PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC)
}

/// The ICMP message of an IPv4 packet whose headers are right.
fn icmp4(l3: &[u8]) -> (Ipv4Header, Icmpv4Slice<'_>) {
    let (ip, rest) = Ipv4Header::from_slice(l3).unwrap();
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    assert_eq!(ip.protocol, IpNumber::ICMP);
    assert_eq!(usize::from(ip.total_len), l3.len());
    let icmp = Icmpv4Slice::from_slice(rest).unwrap();
    assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()));
    (ip, icmp)
}

fn icmp6(l3: &[u8]) -> (Ipv6Header, Icmpv6Slice<'_>) {
    let (ip, rest) = Ipv6Header::from_slice(l3).unwrap();
    assert_eq!(ip.next_header, IpNumber::IPV6_ICMP);
    assert_eq!(usize::from(ip.payload_length), rest.len());
    let icmp = Icmpv6Slice::from_slice(rest).unwrap();
    assert!(icmp.is_checksum_valid(ip.source, ip.destination));
    (ip, icmp)
}

/// Interfaces with other roles have programs of their own, behind the first one too.
#[test]
fn programs_behind_are_those_of_the_first_one() {
    let pins = BpfDirectory::create(&unique()).unwrap();
    let tables = pins.path().join("v0-0");
    std::fs::create_dir(&tables).unwrap();
    let mut rig = Rig::pinned(&tables);
    rig.fill(vec![service("web", &[VIP4], Forwarding::Ipip, &["10.0.1.11"])], INGRESS, 1500);
    let mut echo = Vec::new();
    let b = ethernet().ipv4(v4(CLIENT4), v4(VIP4), 7).icmpv4_echo_request(1, 1);
    b.write(&mut echo, b"").unwrap();
    assert_eq!(rig.run(&echo).reason, Reason::EchoAnswered);
    rig.bpf.program(feature::DECAP).unwrap();
    rig.bpf.program(feature::PREFILTER).unwrap();
    assert_eq!(rig.run(&echo).reason, Reason::EchoAnswered);
    // One that comes later finds all of them.
    drop(rig);
    let mut rig = Rig::pinned(&tables);
    assert_eq!(rig.run(&echo).reason, Reason::EchoAnswered);
}

#[test]
fn echo_is_answered_for_vips_alone() {
    let mut rig = rig(Forwarding::Ipip, "10.0.1.11");
    let request4 = |dst: &str| {
        let mut out = Vec::new();
        let b = ethernet().ipv4(v4(CLIENT4), v4(dst), 7).icmpv4_echo_request(0x1234, 9);
        b.write(&mut out, b"some bytes!").unwrap();
        out
    };
    let got = rig.run(&request4(VIP4));
    assert_eq!((got.action, got.reason), (TX, Reason::EchoAnswered));
    assert_eq!(macs(&got.frame), (CLIENT_MAC, OUR_MAC));
    let (ip, icmp) = icmp4(&got.frame[14..]);
    assert_eq!((ip.source, ip.destination, ip.time_to_live), (v4(VIP4), v4(CLIENT4), 64));
    assert_eq!(icmp.slice()[..2], [0, 0]);
    assert_eq!(
        icmp.slice()[4..],
        [0x12, 0x34, 0, 9, 115, 111, 109, 101, 32, 98, 121, 116, 101, 115, 33]
    );

    let mut out = Vec::new();
    let b = ethernet().ipv6(v6(CLIENT6), v6(VIP6), 7).icmpv6_echo_request(0x1234, 9);
    b.write(&mut out, b"some bytes!").unwrap();
    let got = rig.run(&out);
    assert_eq!((got.action, got.reason), (TX, Reason::EchoAnswered));
    let (ip, icmp) = icmp6(&got.frame[14..]);
    assert_eq!((ip.source, ip.destination, ip.hop_limit), (v6(VIP6), v6(CLIENT6), 64));
    assert_eq!(icmp.slice()[0], 129);
    assert_eq!(icmp.payload(), b"some bytes!");

    let other = request4("203.0.113.11");
    let got = rig.run(&other);
    assert_eq!((got.action, got.reason, got.frame), (PASS, Reason::NotOurs, other));

    let mut tagged = Vec::new();
    let b = ethernet().single_vlan(VlanId::try_new(7).unwrap());
    let b = b.ipv4(v4(CLIENT4), v4(VIP4), 7).icmpv4_echo_request(1, 1);
    b.write(&mut tagged, b"").unwrap();
    let got = rig.run(&tagged);
    assert_eq!(got.reason, Reason::EchoAnswered);
    assert_eq!(got.frame[12..18], tagged[12..18]);
    icmp4(&got.frame[18..]);

    // Nobody may be made to answer a group.
    let mut spoofed = Vec::new();
    let b = ethernet().ipv4(v4("224.0.0.1"), v4(VIP4), 7).icmpv4_echo_request(1, 1);
    b.write(&mut spoofed, b"").unwrap();
    let got = rig.run(&spoofed);
    assert_eq!((got.action, got.reason), (DROP, Reason::VipOtherProtocol));
}

/// An ICMP error from a router, about the reply to `flow` (a frame from client to VIP), of which
/// `bytes` of the transport header come back.
pub(crate) fn error(flow: &[u8], kind: u8, code: u8, mtu: u16, bytes: usize) -> Vec<u8> {
    let l3 = &flow[14..];
    let mut out = Vec::new();
    if l3[0] >> 4 == 4 {
        let (ip, rest) = Ipv4Header::from_slice(l3).unwrap();
        let mut inner = Ipv4Header::new(1400, 50, ip.protocol, ip.destination, ip.source).unwrap();
        inner.header_checksum = inner.calc_header_checksum();
        let mut quoted = inner.to_bytes().to_vec();
        quoted.extend([rest[2], rest[3], rest[0], rest[1]]);
        quoted.resize(20 + bytes, 0);
        let [high, low] = mtu.to_be_bytes();
        let b = ethernet().ipv4(v4("192.0.2.254"), ip.destination, 60);
        b.icmpv4_raw(kind, code, [0, 0, high, low]).write(&mut out, &quoted).unwrap();
    } else {
        let (ip, rest) = Ipv6Header::from_slice(l3).unwrap();
        let inner = Ipv6Header {
            source: ip.destination,
            destination: ip.source,
            payload_length: 1360,
            ..ip
        };
        let mut quoted = inner.to_bytes().to_vec();
        quoted.extend([rest[2], rest[3], rest[0], rest[1]]);
        quoted.resize(40 + bytes, 0);
        let [high, low] = mtu.to_be_bytes();
        let b = ethernet().ipv6(v6("2001:db8:aaaa::1"), ip.destination, 60);
        b.icmpv6_raw(kind, code, [0, 0, high, low]).write(&mut out, &quoted).unwrap();
    }
    out
}

#[test]
fn errors_go_to_the_owner_of_the_flow() {
    let backends: Vec<String> = (1..=20).map(|n| format!("10.0.1.{n}")).collect();
    let names: Vec<&str> = backends.iter().map(String::as_str).collect();
    for (forwarding, destination) in
        [(Forwarding::Ipip, 30..34), (Forwarding::Gue, 30..34), (Forwarding::Geneve, 30..34)]
    {
        let web = service("web", &[VIP4, VIP6], forwarding, &names);
        let mut rig = Rig::with(vec![web], INGRESS, 1500);
        let mut owners = std::collections::BTreeSet::new();
        for n in 1..=40 {
            for (flow, kind, code) in [
                (frame4(&format!("198.51.100.{n}"), VIP4, L4::Ack(80), 64, b""), 3, 4),
                (frame4(&format!("198.51.100.{n}"), VIP4, L4::Udp(443), 64, b""), 3, 3),
                (frame4(&format!("198.51.100.{n}"), VIP4, L4::Ack(80), 64, b""), 11, 0),
                (frame6(&format!("2001:db8:9::{n}"), VIP6, L4::Ack(80), 64, b""), 2, 0),
                (frame6(&format!("2001:db8:9::{n}"), VIP6, L4::Udp(443), 64, b""), 1, 4),
            ] {
                let owner = rig.run(&flow).frame[destination.clone()].to_vec();
                let message = error(&flow, kind, code, 1400, 8);
                let got = rig.run(&message);
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx), "{kind} {code}");
                assert_eq!(got.frame[destination.clone()], owner);
                let inner = &got.frame[got.frame.len() - (message.len() - 14)..];
                assert_eq!(inner, crate::packets::one_hop_later(&message[14..]));
                owners.insert(owner);
            }
        }
        assert!(owners.len() > 15, "{} owners", owners.len());
    }
    // Without encapsulation: the error itself, at the backend's MAC.
    let mut rig = rig(Forwarding::L2, "10.0.1.11");
    let message = error(&frame4(CLIENT4, VIP4, L4::Ack(80), 64, b""), 3, 4, 1400, 8);
    let got = rig.run(&message);
    assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
    assert_eq!(macs(&got.frame), (HOP_MAC, OUR_MAC));
    icmp4(&got.frame[14..]);
}

#[test]
fn nonsense_is_not_forwarded() {
    let mut rig = rig(Forwarding::Ipip, "10.0.1.11");
    let flow4 = frame4(CLIENT4, VIP4, L4::Ack(80), 64, b"");
    let flow6 = frame6(CLIENT6, VIP6, L4::Ack(80), 64, b"");
    let elsewhere = frame4(CLIENT4, VIP4, L4::Ack(81), 64, b"");
    let mut not_ours = error(&flow4, 3, 4, 1400, 8);
    not_ours[14 + 20 + 8 + 12] ^= 1;
    let mut expired = error(&flow4, 3, 4, 1400, 8);
    expired[22] = 1;
    let mut cut = error(&flow4, 3, 4, 1400, 8);
    cut.truncate(14 + 20 + 8 + 10);
    cut[16..18].copy_from_slice(&38u16.to_be_bytes());
    for (what, frame, reason) in [
        ("an MTU of 60", error(&flow4, 3, 4, 60, 8), Reason::BadIcmp),
        ("an IPv6 MTU of 1,200", error(&flow6, 2, 0, 1200, 8), Reason::BadIcmp),
        ("an inner header cut short", cut, Reason::BadIcmp),
        ("the embedded packet is another's", not_ours, Reason::VipOtherProtocol),
        ("a port without service", error(&elsewhere, 3, 4, 1400, 8), Reason::NoService),
        ("no hops left", expired, Reason::TtlExpired),
        ("a redirect", error(&flow4, 5, 0, 0, 8), Reason::VipOtherProtocol),
        (
            "a router's advertisement, to a VIP",
            error(&flow6, 200, 0, 0, 8),
            Reason::VipOtherProtocol,
        ),
    ] {
        let got = rig.run(&frame);
        assert_eq!((got.action, got.reason), (DROP, reason), "{what}");
    }
    let old_router = error(&flow4, 3, 4, 0, 8);
    assert_eq!(rig.run(&old_router).reason, Reason::ForwardedTx);
    let solicitation = error(&flow6, 135, 0, 0, 8);
    let got = rig.run(&solicitation);
    assert_eq!((got.action, got.reason), (PASS, Reason::NeighbourDiscovery));
    assert_eq!(got.frame, solicitation);
}

#[test]
fn who_sends_too_much_at_once_is_told() {
    for (forwarding, backend, outer) in [
        (Forwarding::L2, "10.0.1.11", 0),
        (Forwarding::Ipip, "10.0.1.11", 20),
        (Forwarding::Gue, "2001:db8:2::11", 52),
        (Forwarding::Geneve, "10.0.1.11", 36),
    ] {
        let mut rig = rig(forwarding, backend);
        let frame = frame4(CLIENT4, VIP4, L4::Ack(80), 64, &[7; 1500]);
        let got = rig.run(&frame);
        assert_eq!((got.action, got.reason), (TX, Reason::TooBigAnswered));
        assert_eq!(macs(&got.frame), (CLIENT_MAC, OUR_MAC));
        let (ip, icmp) = icmp4(&got.frame[14..]);
        assert_eq!((ip.source, ip.destination), (v4(VIP4), v4(CLIENT4)));
        assert_eq!(icmp.slice()[..2], [3, 4]);
        assert_eq!(icmp.slice()[6..8], (1500u16 - outer).to_be_bytes());
        assert_eq!(icmp.slice()[8..], frame[14..14 + 512]);

        let mut may_be_cut = frame.clone();
        may_be_cut[20] = 0;
        let mut header = Ipv4Header::from_slice(&may_be_cut[14..]).unwrap().0;
        header.header_checksum = header.calc_header_checksum();
        may_be_cut[14..34].copy_from_slice(&header.to_bytes());
        assert_eq!(rig.run(&may_be_cut).reason, Reason::TooBig, "without DF nobody asked");
    }
    for (forwarding, backend, outer) in
        [(Forwarding::Ipip, "2001:db8:2::11", 40), (Forwarding::Gue, "10.0.1.11", 32)]
    {
        let mut rig = rig(forwarding, backend);
        let frame = frame6(CLIENT6, VIP6, L4::Udp(443), 64, &[7; 1500]);
        let got = rig.run(&frame);
        assert_eq!((got.action, got.reason), (TX, Reason::TooBigAnswered));
        let (ip, icmp) = icmp6(&got.frame[14..]);
        assert_eq!((ip.source, ip.destination), (v6(VIP6), v6(CLIENT6)));
        assert_eq!(icmp.slice()[..2], [2, 0]);
        assert_eq!(icmp.slice()[4..8], (1500u32 - outer).to_be_bytes());
        assert_eq!(icmp.slice()[8..], frame[14..14 + 512]);
    }
    // IPv6 may always count on 1,280 bytes: what is less cannot be told.
    let web = service("web", &[VIP6], Forwarding::Ipip, &["10.0.1.11"]);
    let mut rig = Rig::with(vec![web], INGRESS, 1290);
    let got = rig.run(&frame6(CLIENT6, VIP6, L4::Udp(443), 64, &[7; 1300]));
    assert_eq!((got.action, got.reason), (DROP, Reason::TooBig));
}

#[test]
fn answers_are_limited() {
    let mut rig = rig(Forwarding::L2, "10.0.1.11");
    let frame = frame4(CLIENT4, VIP4, L4::Ack(80), 64, &[7; 1500]);
    let told = (0..5000).position(|_| rig.run(&frame).reason == Reason::TooBig);
    assert!(told.is_some_and(|n| n as u64 >= abi::limits::ANSWER_BURST), "{told:?}");
}
