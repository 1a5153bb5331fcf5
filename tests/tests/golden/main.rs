//! Golden packets: (tables, packet) -> verdict, reason, bytes, counters, by the program in the kernel.
//!
//! Packets are built and checked by `etherparse`, whose checksums are not ours.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use abi::{
    limits::feature,
    reason::{Reason, Verdict},
};
use config::model::{Forwarding, Port, Protocol};
use etherparse::{IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, SlicedPacket, VlanId};
use lb_daemon::{
    datapath::{Capacity, Op},
    nexthop::NextHop,
};
use lb_tests::lab::{BpfDirectory, unique};
use lb_tests::rig::{
    CLIENT_MAC, EVERYTHING, HOP_MAC, INGRESS, OUR_MAC, Rig, capacity, cpus, nat_capacity, pin_to,
    service,
};
use packets::{
    DROP, L4, PASS, REDIRECT, TX, VIP4, VIP6, frame4, frame6, macs, one_hop_later, v4, v6,
};

mod blocklists;
mod chance;
mod choice;
mod events;
mod guard;
mod icmp;
mod moving;
mod nat;
mod nat_damaged;
mod nat_family;
mod nat_icmp;
mod nat_parts;
mod nat_rows;
mod nat_steer;
mod nat_two;
mod nat_vlan;
mod odd;
mod one_dies;
mod packets;
mod ports;
mod routes;
mod sctp;
mod synproxy;
mod tunnels;
mod vlan;

fn web(forwarding: Forwarding, backend: &str) -> config::model::Service {
    service("web", &[VIP4, VIP6], forwarding, &[backend])
}

fn rig(forwarding: Forwarding, backend: &str) -> Rig {
    Rig::with(vec![web(forwarding, backend)], INGRESS, 1500)
}

#[test]
fn loads_with_every_set_of_features() {
    for features in 0..=EVERYTHING {
        let _ = Rig::sized(nat_capacity(), features);
    }
}

/// The verifier gives up at a million: what is new goes behind a tail call or into a global function before
/// these are raised much.
#[test]
fn the_verifier_has_room() {
    let rig = Rig::sized(nat_capacity(), EVERYTHING | feature::SYN_PROXY | feature::STRAY_ACKS);
    let verified = rig.bpf.verified();
    for (name, most) in [
        ("lb", 400_000),
        ("lb_second", 400_000),
        ("lb_chance", 200_000),
        ("lb_choice", 400_000),
        // It has all of its way in one program, and a packet with tags has two ways through it.
        ("lb_nat", 250_000),
        ("lb_nat_steer", 300_000),
        ("lb_nat_tags", 50_000),
        ("lb_nat_parts", 400_000),
        ("lb_nat_icmp", 220_000),
        // Linux 6.1 goes through four times as many of it as later ones.
        ("lb_nat_other", 100_000),
        ("lb_syn", 50_000),
    ] {
        let count = verified.get(name).copied().unwrap_or(0);
        println!("{name}: {count} instructions");
        assert!((1..=most).contains(&count), "{name}: {count} instructions, bound {most}");
    }
}

#[test]
fn the_verifier_takes_the_programs_at_the_socket() {
    let pins = BpfDirectory::create(&unique()).unwrap();
    let tables = pins.path().join("v0-0");
    std::fs::create_dir(&tables).unwrap();
    let rig = Rig::pinned(&tables);
    rig.bpf.sock().expect("the programs load");
}

#[test]
fn ipip_in_every_combination_of_families() {
    for (backend, outer_v4) in [("10.0.1.11", true), ("2001:db8:2::11", false)] {
        let mut rig = rig(Forwarding::Ipip, backend);
        for inner_v4 in [true, false] {
            for l4 in [L4::Syn(80), L4::Ack(80), L4::Udp(443)] {
                let frame = if inner_v4 {
                    frame4("198.51.100.7", VIP4, l4, 64, b"hello")
                } else {
                    frame6("2001:db8:9::7", VIP6, l4, 64, b"hello")
                };
                let got = rig.run(&frame);
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                assert_eq!(macs(&got.frame), (HOP_MAC, OUR_MAC));
                let l3 = &got.frame[14..];
                let inner = if outer_v4 {
                    assert_eq!(got.frame[12..14], [8, 0]);
                    let (h, rest) = Ipv4Header::from_slice(l3).unwrap();
                    assert_eq!(h.header_checksum, h.calc_header_checksum());
                    assert_eq!(h.protocol, if inner_v4 { IpNumber::IPV4 } else { IpNumber::IPV6 });
                    assert_eq!((h.source, h.destination), (v4("10.0.0.1"), v4(backend)));
                    assert_eq!(usize::from(h.total_len), l3.len());
                    assert!(h.dont_fragment && h.time_to_live == 64);
                    rest
                } else {
                    assert_eq!(got.frame[12..14], [0x86, 0xdd]);
                    let (h, rest) = Ipv6Header::from_slice(l3).unwrap();
                    assert_eq!(
                        h.next_header,
                        if inner_v4 { IpNumber::IPV4 } else { IpNumber::IPV6 }
                    );
                    assert_eq!((h.source, h.destination), (v6("2001:db8:f::1"), v6(backend)));
                    assert_eq!(usize::from(h.payload_length), rest.len());
                    assert_eq!(h.hop_limit, 64);
                    rest
                };
                assert_eq!(inner, one_hop_later(&frame[14..]));
            }
        }
        let (front, back) = rig.counts("web");
        assert_eq!((front.packets, front.new_connections), (6, 2));
        assert_eq!(front, back);
    }
}

#[test]
fn dscp_and_ecn_are_copied_outwards() {
    let mut rig = rig(Forwarding::Ipip, "10.0.1.11");
    let mut frame = frame4("198.51.100.7", VIP4, L4::Ack(80), 64, b"");
    frame[15] = 0xb9;
    let mut ip = frame[14..34].to_vec();
    ip[10..12].fill(0);
    let sum = abi::checksum::full(&ip);
    frame[24..26].copy_from_slice(&sum.to_ne_bytes());
    let got = rig.run(&frame);
    assert_eq!(got.reason, Reason::ForwardedTx);
    assert_eq!((got.frame[15], got.frame[35]), (0xb9, 0xb9));
    let (outer, _) = Ipv4Header::from_slice(&got.frame[14..]).unwrap();
    assert_eq!(outer.header_checksum, outer.calc_header_checksum());
}

#[test]
fn l2_rewrites_macs_and_ttl_and_nothing_else() {
    let mut rig = rig(Forwarding::L2, "10.0.1.11");
    for frame in [
        frame4("198.51.100.7", VIP4, L4::Syn(80), 64, b"hello"),
        frame6("2001:db8:9::7", VIP6, L4::Udp(443), 64, b"hello"),
    ] {
        let got = rig.run(&frame);
        assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
        assert_eq!(macs(&got.frame), (HOP_MAC, OUR_MAC));
        assert_eq!(got.frame[14..], one_hop_later(&frame[14..]));
    }
}

#[test]
fn another_interface_is_reached_by_redirection() {
    let web = service("web", &[VIP4], Forwarding::Ipip, &["10.0.1.11"]);
    let mut rig = Rig::with(vec![web], INGRESS + 41, 1500);
    let got = rig.run(&frame4("198.51.100.7", VIP4, L4::Syn(80), 64, b""));
    assert_eq!((got.action, got.reason), (REDIRECT, Reason::ForwardedRedirect));
}

#[test]
fn vlan_tags_are_put_back() {
    let mut rig = rig(Forwarding::Ipip, "10.0.1.11");
    for double in [false, true] {
        let id = |n| VlanId::try_new(n).unwrap();
        let b = PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC);
        let b = if double { b.double_vlan(id(100), id(7)) } else { b.single_vlan(id(7)) };
        let mut frame = Vec::new();
        b.ipv4(v4("198.51.100.7"), v4(VIP4), 64)
            .tcp(40000, 80, 1, 1000)
            .write(&mut frame, b"x")
            .unwrap();
        let l3 = if double { 22 } else { 18 };
        let got = rig.run(&frame);
        assert_eq!(got.reason, Reason::ForwardedTx);
        assert_eq!(got.frame[12..l3], frame[12..l3], "tags and ethertype as they came");
        assert_eq!(got.frame[l3 + 20..], one_hop_later(&frame[l3..]));
        let parsed = SlicedPacket::from_ethernet(&got.frame).unwrap();
        assert!(parsed.net.is_some());
    }
}

#[test]
fn what_is_not_ours_passes_untouched() {
    let mut rig = rig(Forwarding::Ipip, "10.0.1.11");
    let mut arp = vec![0u8; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut bad_version = frame4("198.51.100.7", VIP4, L4::Syn(80), 64, b"");
    bad_version[14] = 0x35;
    let cases = [
        (
            "another address",
            frame4("198.51.100.7", "203.0.113.11", L4::Syn(80), 64, b""),
            Reason::NotOurs,
        ),
        (
            "another IPv6 address",
            frame6("2001:db8:9::7", "2001:db8:1::11", L4::Syn(80), 64, b""),
            Reason::NotOurs,
        ),
        ("not IP", arp, Reason::NotIp),
        ("a lie in the version", bad_version, Reason::NotOurs),
        ("a runt", vec![0; 14], Reason::NotIp),
    ];
    for (what, frame, reason) in cases {
        let got = rig.run(&frame);
        assert_eq!((got.action, got.reason), (PASS, reason), "{what}");
        assert_eq!(got.frame, frame, "{what}");
    }
}

#[test]
fn what_is_ours_and_wrong_is_dropped_for_its_reason() {
    let mut rig = rig(Forwarding::Ipip, "10.0.1.11");
    let good = frame4("198.51.100.7", VIP4, L4::Ack(80), 64, b"hello");
    let with = |at: usize, bytes: &[u8]| {
        let mut f = good.clone();
        f[at..at + bytes.len()].copy_from_slice(bytes);
        f
    };
    let cases = [
        ("cut short", good[..14 + 20 + 10].to_vec(), Reason::Truncated),
        ("total length beyond the frame", with(16, &[5, 220]), Reason::BadLength),
        ("TTL 1", with(22, &[1]), Reason::TtlExpired),
        ("TTL 0", with(22, &[0]), Reason::TtlExpired),
        ("a later fragment", with(20, &[0x00, 0x10]), Reason::FragmentKept),
        (
            "a port without service",
            frame4("198.51.100.7", VIP4, L4::Syn(81), 64, b""),
            Reason::NoService,
        ),
        (
            "the port with another protocol",
            frame4("198.51.100.7", VIP4, L4::Udp(80), 64, b""),
            Reason::NoService,
        ),
    ];
    for (what, frame, reason) in cases {
        let got = rig.run(&frame);
        assert_eq!((got.action, got.reason), (DROP, reason), "{what}");
    }
    let largest = frame4("198.51.100.7", VIP4, L4::Ack(80), 64, &[0; 1440]);
    assert_eq!(rig.run(&largest).reason, Reason::ForwardedTx, "1,500 bytes with the outer header");
}

#[test]
fn options_are_walked_over() {
    let mut rig = rig(Forwarding::Ipip, "10.0.1.11");
    let plain = frame4("198.51.100.7", VIP4, L4::Ack(80), 64, b"hello");
    let mut frame = plain[..34].to_vec();
    frame.extend([1u8, 1, 1, 0]);
    frame.extend(&plain[34..]);
    frame[14] = 0x46;
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[24..26].fill(0);
    let sum = abi::checksum::full(&frame[14..38]);
    frame[24..26].copy_from_slice(&sum.to_ne_bytes());
    let got = rig.run(&frame);
    assert_eq!(got.reason, Reason::ForwardedTx);
    assert_eq!(got.frame[34..], one_hop_later(&frame[14..]));
}

#[test]
fn no_backend_and_no_next_hop() {
    let mut rig = Rig::new(EVERYTHING);
    rig.put(vec![service("web", &[VIP4], Forwarding::Ipip, &[])]);
    let frame = frame4("198.51.100.7", VIP4, L4::Syn(80), 64, b"");
    assert_eq!(rig.run(&frame).reason, Reason::NoBackend);
    // A backend whose next hop nobody knows takes nothing.
    rig.put(vec![service("web", &[VIP4], Forwarding::Ipip, &["10.0.1.11"])]);
    assert_eq!(rig.run(&frame).reason, Reason::NoBackend);
    // The state says up, the word is not there: the moment between two stores.
    let row = rig.planner.services()["web"].members[&"10.0.1.11".parse().unwrap()].row;
    rig.apply(&[Op::State(row, abi::table::State::default())]);
    assert_eq!(rig.run(&frame).reason, Reason::NoNextHop);
}

/// A backend that is this machine gets the packet as it came, whatever the forwarding.
#[test]
fn a_backend_on_this_machine() {
    for forwarding in [Forwarding::L2, Forwarding::Ipip, Forwarding::Gue, Forwarding::Geneve] {
        let mut rig = rig(forwarding, "10.0.1.11");
        let here =
            std::collections::BTreeMap::from([("10.0.1.11".parse().unwrap(), NextHop::Local)]);
        let ops = rig.planner.set_hops(&here, &rig.bpf, std::time::Duration::ZERO).unwrap();
        rig.apply(&ops);
        let frames = [
            frame4("198.51.100.7", VIP4, L4::Syn(80), 64, b"hello"),
            frame6("2001:db8:9::7", VIP6, L4::Udp(443), 64, b"hello"),
        ];
        for frame in &frames {
            let got = rig.run(frame);
            assert_eq!((got.action, got.reason), (PASS, Reason::DeliveredLocally));
            assert_eq!(got.frame, *frame);
        }
        let (front, back) = rig.counts("web");
        assert_eq!((front.packets, front.new_connections), (2, 1));
        assert_eq!(front, back);
        rig.put(vec![service("web", &[VIP4, VIP6], forwarding, &["10.0.1.11"])]);
        assert_eq!(rig.run(&frames[0]).reason, Reason::DeliveredLocally);
    }
}

/// Each CPU has rows of its own, and as many frontends as no power of two says are found there too.
#[test]
fn packets_are_counted_on_every_cpu() {
    let mut rig = Rig::sized(Capacity { frontends: 1500, ..capacity() }, EVERYTHING);
    rig.put(vec![service("web", &[VIP4], Forwarding::Ipip, &["10.0.1.11"])]);
    let here = std::collections::BTreeMap::from([("10.0.1.11".parse().unwrap(), NextHop::Local)]);
    let ops = rig.planner.set_hops(&here, &rig.bpf, std::time::Duration::ZERO).unwrap();
    rig.apply(&ops);
    let frame = frame4("198.51.100.7", VIP4, L4::Ack(80), 64, b"");
    for (packets, cpu) in (1..).zip(cpus()) {
        pin_to(cpu);
        assert_eq!(rig.run(&frame).reason, Reason::DeliveredLocally);
        let (front, back) = rig.counts("web");
        assert_eq!((front.packets, back.packets), (packets, packets));
    }
}

/// A service or backend that gets the row of one that is gone begins at 0, and others go on.
#[test]
fn counters_begin_at_zero() {
    let stays = service("stays", &["203.0.113.99"], Forwarding::L2, &["10.0.1.11"]);
    let old = service("old", &[VIP4], Forwarding::L2, &["10.0.1.12"]);
    let new = service("new", &[VIP4, "203.0.113.98"], Forwarding::L2, &["10.0.1.12"]);
    let mut rig = Rig::with(vec![stays.clone(), old], INGRESS, 1500);
    let to = |rig: &mut Rig, vip| rig.run(&frame4("198.51.100.7", vip, L4::Syn(80), 64, b""));
    for vip in ["203.0.113.99", VIP4, VIP4] {
        assert!(matches!(to(&mut rig, vip).reason, Reason::ForwardedTx));
    }
    assert_eq!((rig.counts("old").0.packets, rig.counts("old").1.packets), (2, 2));
    let rows = |rig: &Rig, name| {
        let planned = &rig.planner.services()[name];
        let backends = planned.members.values().map(|member| member.row);
        (planned.frontends.values().copied().collect::<Vec<_>>(), backends.collect::<Vec<_>>())
    };
    let before = rows(&rig, "old");

    rig.put(vec![stays.clone()]);
    let ops = rig.planner.settle(&rig.bpf, std::time::Duration::from_secs(3000)).unwrap();
    rig.apply(&ops);
    rig.planner.release();
    rig.put(vec![stays, new]);
    let after = rows(&rig, "new");
    assert_eq!(before.1, after.1);
    assert!(before.0.iter().all(|row| after.0.contains(row)), "{before:?} {after:?}");
    for (name, packets) in [("new", 0), ("stays", 1)] {
        let (front, back) = rig.counts(name);
        assert_eq!((front.packets, back.packets), (packets, packets), "{name}");
    }
    assert!(matches!(to(&mut rig, VIP4).reason, Reason::ForwardedTx));
    assert_eq!(rig.counts("new").1.new_connections, 1);
}

#[test]
fn port_zero_takes_what_no_other_port_does() {
    let mut any = service("any", &[VIP4], Forwarding::L2, &["10.0.1.11"]);
    any.ports = vec![Port {
        name: "any".into(),
        port: 0,
        last: 0,
        protocol: Protocol::Tcp,
        target_port: 0,
        quic: false,
    }];
    let mut exact = service("web", &[VIP4], Forwarding::Ipip, &["10.0.1.12"]);
    exact.ports.truncate(1);
    let mut rig = Rig::with(vec![any, exact], INGRESS, 1500);
    rig.run(&frame4("198.51.100.7", VIP4, L4::Syn(8080), 64, b""));
    rig.run(&frame4("198.51.100.7", VIP4, L4::Syn(80), 64, b""));
    assert_eq!((rig.counts("any").0.packets, rig.counts("web").0.packets), (1, 1));
    let got = rig.run(&frame4("198.51.100.7", VIP4, L4::Udp(8080), 64, b""));
    assert_eq!(got.reason, Reason::NoService);
}

#[test]
fn decapsulation_hands_the_inner_packet_to_the_stack() {
    // What one node encapsulates the other takes off again.
    for backend in ["10.0.1.11", "2001:db8:2::11"] {
        let mut sender = rig(Forwarding::Ipip, backend);
        let mut receiver = Rig::new(feature::DECAP);
        receiver.decap_at(backend);
        for frame in [
            frame4("198.51.100.7", VIP4, L4::Syn(80), 64, b"hello"),
            frame6("2001:db8:9::7", VIP6, L4::Ack(80), 64, b"hello"),
        ] {
            let sent = sender.run(&frame).frame;
            let got = receiver.run(&sent);
            assert_eq!((got.action, got.reason), (PASS, Reason::Decapsulated));
            assert_eq!(got.frame[..12], sent[..12]);
            assert_eq!(got.frame[12..14], frame[12..14]);
            assert_eq!(got.frame[14..], one_hop_later(&frame[14..]));

            let mut lie = sent.clone();
            let inner = if backend.contains(':') { 54 } else { 34 };
            lie[inner] = 0x55;
            let got = receiver.run(&lie);
            assert_eq!((got.action, got.reason), (DROP, Reason::BadInner));
            let cut = &sent[..sent.len() - 3];
            assert_eq!(receiver.run(cut).reason, Reason::BadLength);
        }
        let mut other = Rig::new(feature::DECAP);
        other.decap_at("10.9.9.9");
        let sent = sender.run(&frame4("198.51.100.7", VIP4, L4::Syn(80), 64, b"")).frame;
        let got = other.run(&sent);
        assert_eq!((got.action, got.reason, got.frame), (PASS, Reason::NotOurs, sent));
    }
}

#[test]
fn the_kernel_picks_what_the_host_picks() {
    use abi::{hash, hash::Tuple};
    let backends: Vec<String> = (1..=20).map(|n| format!("10.0.1.{n}")).collect();
    let names: Vec<&str> = backends.iter().map(String::as_str).collect();
    let mut rig = Rig::with(vec![service("web", &[VIP4], Forwarding::Ipip, &names)], INGRESS, 1500);
    let members: Vec<_> = {
        let mut m: Vec<std::net::IpAddr> = names.iter().map(|n| n.parse().unwrap()).collect();
        m.sort();
        m
    };
    let seed = lb_daemon::ring::seed("");
    let size = lb_daemon::ring::size_for(members.len());
    let built: Vec<_> = members.iter().map(|&a| lb_daemon::ring::Member::new(seed, a, 1)).collect();
    let ring = lb_daemon::ring::build(&built, size);
    for n in 0..200u8 {
        let src = format!("198.51.100.{n}");
        let got = rig.run(&frame4(&src, VIP4, L4::Ack(80), 64, b""));
        let tuple = Tuple {
            src: src.parse::<std::net::IpAddr>().unwrap().into(),
            dst: VIP4.parse::<std::net::IpAddr>().unwrap().into(),
            ports: u32::from(40000u16.to_be()) | u32::from(80u16.to_be()) << 16,
            protocol: 6,
        };
        let slot = hash::slot(hash::flow(&tuple, lb_tests::rig::SEED), size);
        let want = members[ring[slot as usize] as usize];
        assert_eq!(got.frame[30..34], v4(&want.to_string()), "{src}");
    }
}

/// Every reason appears in one of these tests; one that is added without is found here.
#[test]
fn every_reason_is_tested() {
    let source = concat!(
        include_str!("main.rs"),
        include_str!("blocklists.rs"),
        include_str!("chance.rs"),
        include_str!("guard.rs"),
        include_str!("icmp.rs"),
        include_str!("nat.rs"),
        include_str!("nat_family.rs"),
        include_str!("odd.rs"),
        include_str!("synproxy.rs"),
        include_str!("tunnels.rs"),
        include_str!("../policy.rs"),
    );
    for reason in Reason::ALL {
        let untestable = matches!(
            reason,
            Reason::AdjustFailed
                | Reason::SecondChance
                | Reason::NatNotWritten
                | Reason::NatNotChosen
                | Reason::NatTagged
                | Reason::NatNotPlain
        );
        let named = source.contains(&format!("Reason::{reason:?})"))
            || source.contains(&format!("Reason::{reason:?},"))
            || source.contains(&format!("Reason::{reason:?};"));
        assert!(named || untestable, "{reason:?} is in no test");
        assert!(!untestable || reason.verdict() == Verdict::Drop);
    }
}
