//! SCTP: by address and port, in every forwarding mode; what follows the ports is not touched, so that the
//! CRC32c stays right.

use std::{collections::BTreeSet, time::Duration};

use abi::{limits::feature, reason::Reason, table::Unserved};
use config::model::{Forwarding, Port, Protocol, Service, Steering};
use etherparse::{IpNumber, PacketBuilder};
use lb_daemon::datapath::Op;
use lb_tests::rig::{CLIENT_MAC, INGRESS, OUR_MAC, Rig, service};

use crate::packets::{DROP, PASS, TX, VIP4, VIP6, one_hop_later, v4, v6};

const INIT: u8 = 1;
const DATA: u8 = 0;
const SHUTDOWN: u8 = 7;
const PORT: u16 = 3868;

/// RFC 9260 appendix A, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 };
    !bytes.iter().fold(u32::MAX, |crc, &b| (0..8).fold(crc ^ u32::from(b), |crc, _| step(crc)))
}

/// Common header and one chunk of 20 bytes.
fn sctp(source: u16, port: u16, chunk: u8) -> Vec<u8> {
    let mut p = [source.to_be_bytes(), port.to_be_bytes()].concat();
    p.extend([0, 0, 0, if chunk == INIT { 0 } else { 9 }, 0, 0, 0, 0]);
    p.extend([chunk, 3, 0, 20]);
    p.extend(b"0123456789abcdef");
    let sum = crc32c(&p);
    p[8..12].copy_from_slice(&sum.to_le_bytes());
    p
}

fn over4(client: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC)
        .ipv4(v4(client), v4(VIP4), 64)
        .write(&mut out, IpNumber::SCTP, payload)
        .unwrap();
    out
}

fn over6(client: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC)
        .ipv6(v6(client), v6(VIP6), 64)
        .write(&mut out, IpNumber::SCTP, payload)
        .unwrap();
    out
}

fn diameter(forwarding: Forwarding, backends: &[&str]) -> Service {
    let mut service = service("diameter", &[VIP4, VIP6], forwarding, backends);
    service.ports.push(Port {
        name: "diameter".into(),
        port: PORT,
        last: PORT,
        protocol: Protocol::Sctp,
        target_port: PORT,
        quic: false,
    });
    service
}

#[test]
fn in_every_mode() {
    let mut rig = Rig::with(Vec::new(), INGRESS, 1500);
    let mut receiver = Rig::new(feature::DECAP);
    for (forwarding, backend) in [
        (Forwarding::L2, "10.0.1.11"),
        (Forwarding::Ipip, "10.0.1.11"),
        (Forwarding::Ipip, "2001:db8:2::11"),
        (Forwarding::Gue, "10.0.1.11"),
        (Forwarding::GueTwice, "10.0.1.11"),
        (Forwarding::Gue, "2001:db8:2::11"),
        (Forwarding::Geneve, "10.0.1.11"),
        (Forwarding::Geneve, "2001:db8:2::11"),
    ] {
        rig.put(Vec::new());
        rig.fill(vec![diameter(forwarding, &[backend])], INGRESS, 1500);
        receiver.decap_at(backend);
        for chunk in [INIT, DATA] {
            let payload = sctp(40000, PORT, chunk);
            for frame in [over4("198.51.100.7", &payload), over6("2001:db8:9::7", &payload)] {
                let got = rig.run(&frame);
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx), "{forwarding:?}");
                let inner = if forwarding == Forwarding::L2 {
                    got.frame
                } else {
                    let opened = receiver.run(&got.frame);
                    assert_eq!((opened.action, opened.reason), (PASS, Reason::Decapsulated));
                    opened.frame
                };
                assert_eq!(inner[12..14], frame[12..14]);
                assert_eq!(inner[14..], one_hop_later(&frame[14..]), "{forwarding:?}");
                let mut arrived = inner[inner.len() - payload.len()..].to_vec();
                let sum = arrived[8..12].to_vec();
                arrived[8..12].fill(0);
                assert_eq!(sum, crc32c(&arrived).to_le_bytes());
            }
        }
        let (front, back) = rig.counts("diameter");
        assert_eq!((front.packets, front.new_connections), (4, 2), "{forwarding:?}");
        assert_eq!(front, back);
    }
}

#[test]
fn what_is_wrong_with_it() {
    let mut rig = Rig::with(vec![diameter(Forwarding::Ipip, &["10.0.1.11"])], INGRESS, 1500);
    let good = sctp(40000, PORT, DATA);
    let other_port = over4("198.51.100.7", &sctp(40000, PORT + 1, INIT));
    let cases = [
        ("a port without service", other_port.clone(), Reason::NoService),
        ("the port of TCP", over4("198.51.100.7", &sctp(40000, 80, INIT)), Reason::NoService),
        ("without a chunk", over4("198.51.100.7", &good[..12]), Reason::Truncated),
        ("IPv6, without a chunk", over6("2001:db8:9::7", &good[..15]), Reason::Truncated),
    ];
    for (what, frame, reason) in &cases {
        let got = rig.run(frame);
        assert_eq!((got.action, got.reason), (DROP, *reason), "{what}");
    }
    let mut lie = over4("198.51.100.7", &good);
    lie[17] = 20 + 15;
    assert_eq!(rig.run(&lie).reason, Reason::BadLength);
    let mut old = over4("198.51.100.7", &good);
    old[22] = 1;
    assert_eq!(rig.run(&old).reason, Reason::TtlExpired);
    // Nothing answers in SCTP's name; passed up it may be.
    rig.apply(&[Op::Unserved(Unserved::Reject)]);
    assert_eq!(rig.run(&other_port).reason, Reason::NoService);
    rig.apply(&[Op::Unserved(Unserved::Pass)]);
    let got = rig.run(&other_port);
    assert_eq!((got.action, got.reason, got.frame), (PASS, Reason::UnservedPassed, other_port));
}

#[test]
fn associations_are_spread_and_stay() {
    let backends: Vec<String> = (1..=4).map(|n| format!("10.0.1.{n}")).collect();
    let names: Vec<&str> = backends.iter().map(String::as_str).collect();
    let owner = |rig: &mut Rig, client: u8, source: u16, chunk: u8| {
        let frame = over4(&format!("198.51.100.{client}"), &sctp(source, PORT, chunk));
        let got = rig.run(&frame);
        assert_eq!(got.reason, Reason::ForwardedTx);
        got.frame[33]
    };
    for tracked in [false, true] {
        let mut service = diameter(Forwarding::Ipip, &names);
        service.steering = Steering { track: tracked, ..Steering::default() };
        let mut rig = Rig::with(vec![service], INGRESS, 1500);
        let first: Vec<u8> = (1..=80).map(|c| owner(&mut rig, c, 5000, INIT)).collect();
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 4);
        let more: Vec<String> = (1..=30).map(|n| format!("10.0.1.{n}")).collect();
        let names: Vec<&str> = more.iter().map(String::as_str).collect();
        let mut service = diameter(Forwarding::Ipip, &names);
        service.steering = Steering { track: tracked, ..Steering::default() };
        rig.fill(vec![service], INGRESS, 1500);
        let now: Vec<u8> = (1..=80).map(|c| owner(&mut rig, c, 5000, DATA)).collect();
        assert_eq!(now, first, "while slots move, and ever after");
        let new: Vec<u8> = (1..=80).map(|c| owner(&mut rig, c, 6000, INIT)).collect();
        assert!(new.iter().any(|&b| b > 4), "new ones go to all: {new:?}");
        let ops = rig.planner.settle(&rig.bpf, Duration::from_secs(3000)).unwrap();
        rig.apply(&ops);
        if tracked {
            let now: Vec<u8> = (1..=80).map(|c| owner(&mut rig, c, 5000, SHUTDOWN)).collect();
            assert_eq!(now, first);
        }
    }
}

#[test]
fn its_fragments_and_its_errors() {
    let mut rig =
        Rig::with(vec![diameter(Forwarding::Ipip, &["10.0.1.11", "10.0.1.12"])], INGRESS, 1500);
    for client in 1..=20 {
        let client = format!("198.51.100.{client}");
        let whole = over4(&client, &sctp(5000, PORT, DATA));
        let owner = rig.run(&whole).frame[33];
        for (field, from, to) in [([0x20, 0], 0, 24), ([0, 3], 24, 32)] {
            let mut part = over4(&client, &sctp(5000, PORT, DATA)[from..to]);
            part[18..20].copy_from_slice(&[1, 2]);
            part[20..22].copy_from_slice(&field);
            let got = rig.run(&part);
            assert_eq!((got.reason, got.frame[33]), (Reason::ForwardedTx, owner));
        }
        // What a router says of the reply.
        let mut reply = [PORT.to_be_bytes(), 5000u16.to_be_bytes()].concat();
        reply.extend([0, 0, 0, 9]);
        let mut quoted = Vec::new();
        PacketBuilder::ipv4(v4(VIP4), v4(&client), 60)
            .write(&mut quoted, IpNumber::SCTP, &reply)
            .unwrap();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC)
            .ipv4(v4("192.0.2.1"), v4(VIP4), 60)
            .icmpv4_raw(3, 1, [0; 4])
            .write(&mut frame, &quoted)
            .unwrap();
        let got = rig.run(&frame);
        assert_eq!((got.reason, got.frame[33]), (Reason::ForwardedTx, owner));
    }
}
