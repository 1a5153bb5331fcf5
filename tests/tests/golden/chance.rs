//! A second chance: the balancer names the other backend of a slot that moves, and a backend without a socket
//! hands the segment on to it.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

use abi::{limits::feature, reason::Reason};
use config::model::Forwarding;
use etherparse::{Ipv4Header, Ipv6Header, PacketBuilder, UdpHeader};
use lb_tests::{
    lab::unique,
    netns::Namespace,
    rig::{CLIENT_MAC, HOP_MAC, INGRESS, OUR_MAC, Rig, service},
};

use crate::packets::{
    DROP, L4, PASS, REDIRECT, TX, VIP4, VIP6, frame4, frame6, macs, one_hop_later, v4, v6,
};

/// Bytes from the frame's beginning to GUE's header.
const GUE4: usize = 14 + 20 + 8;
const GUE6: usize = 14 + 40 + 8;

/// The backend that a frame goes to, and the other one that it names, by the last byte.
fn backends(frame: &[u8], outer_v4: bool) -> (u8, Option<u8>) {
    let (gue, width) = if outer_v4 { (GUE4, 4) } else { (GUE6, 16) };
    let to = frame[gue - 9];
    assert_eq!(frame[gue + 2..gue + 4], [0, 0], "flags");
    if frame[gue] == 0 {
        return (to, None);
    }
    assert_eq!(usize::from(frame[gue]), 1 + width / 4);
    assert_eq!(frame[gue + 4..gue + 8], [0, u8::from(!outer_v4), 0, 1]);
    (to, Some(frame[gue + 8 + width - 1]))
}

fn inner(frame: &[u8], outer_v4: bool) -> &[u8] {
    let gue = if outer_v4 { GUE4 } else { GUE6 };
    let l3 = &frame[14..];
    let udp = if outer_v4 {
        let (h, rest) = Ipv4Header::from_slice(l3).unwrap();
        assert_eq!(h.header_checksum, h.calc_header_checksum());
        assert_eq!(usize::from(h.total_len), l3.len());
        rest
    } else {
        let (h, rest) = Ipv6Header::from_slice(l3).unwrap();
        assert_eq!(usize::from(h.payload_length), rest.len());
        rest
    };
    assert_eq!(usize::from(UdpHeader::from_slice(udp).unwrap().0.length), udp.len());
    &frame[gue + 4 + usize::from(frame[gue]) * 4..]
}

#[test]
fn a_segment_of_a_moving_slot_names_the_other_backend() {
    for (net, outer_v4) in [("10.0.1.", true), ("2001:db8:2::", false)] {
        let names: Vec<String> = (1..=4).map(|n| format!("{net}{n}")).collect();
        let with = |count: usize, ranges: &[&str]| {
            let names: Vec<&str> = names[..count].iter().map(String::as_str).collect();
            let mut web = service("web", &[VIP4, VIP6], Forwarding::GueTwice, &names);
            web.source_ranges = ranges.iter().map(|net| net.parse().unwrap()).collect();
            vec![web]
        };
        for ranges in [&[][..], &["198.51.100.0/24", "2001:db8:9::/64"]] {
            let mut rig = Rig::with(with(3, ranges), INGRESS, 1500);
            let tcp = |n: u8, l4: L4| {
                [
                    frame4(&format!("198.51.100.{n}"), VIP4, l4, 64, b"x"),
                    frame6(&format!("2001:db8:9::{n:x}"), VIP6, l4, 64, b"x"),
                ]
            };
            let see = |rig: &mut Rig, frame: &[u8]| {
                let got = rig.run(frame);
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                assert_eq!(*inner(&got.frame, outer_v4), one_hop_later(&frame[14..]));
                backends(&got.frame, outer_v4)
            };
            let mut before = Vec::new();
            for n in 1..=100 {
                for frame in tcp(n, L4::Ack(80)) {
                    let (owner, other) = see(&mut rig, &frame);
                    assert_eq!(other, None, "nothing moves");
                    before.push(owner);
                }
            }
            rig.fill(with(4, ranges), INGRESS, 1500);
            let (mut before, mut moved) = (before.into_iter(), 0);
            for n in 1..=100 {
                for (ack, syn) in tcp(n, L4::Ack(80)).iter().zip(tcp(n, L4::Syn(80))) {
                    let old = before.next().unwrap();
                    let segment = see(&mut rig, ack);
                    let (new, none) = see(&mut rig, &syn);
                    assert_eq!(none, None, "a connection begins where it belongs");
                    if new == old {
                        assert_eq!(segment, (old, None));
                        continue;
                    }
                    moved += 1;
                    assert_eq!(segment, (old, Some(new)));
                    assert_eq!(see(&mut rig, ack), (new, Some(old)), "by its entry");
                }
            }
            assert!(moved > 20, "{moved}");
            assert_eq!(rig.counts("web").0, rig.counts("web").1);
            // UDP has no sockets to ask for.
            for n in 1..=100 {
                for frame in tcp(n, L4::Udp(443)) {
                    assert_eq!(see(&mut rig, &frame).1, None);
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_with_it_is_answered() {
    let web = service("web", &[VIP4], Forwarding::GueTwice, &["10.0.1.11"]);
    let mut rig = Rig::with(vec![web], INGRESS, 1500);
    let got =
        rig.run(&frame4("198.51.100.7", VIP4, L4::Ack(80), 64, &[0; 1500 - 20 - 32 - 40 + 21]));
    assert_eq!((got.action, got.reason), (TX, Reason::TooBigAnswered));
    // Room for the hop that packets of a moving slot carry.
    let mtu = u16::from_be_bytes([got.frame[40], got.frame[41]]);
    assert_eq!(mtu, 1500 - 20 - 12 - 8);
}

/// A packet for this machine with a tunnel header that names other backends.
fn tunnelled(inner: &[u8], hops: &[&str], taken: u8) -> Vec<u8> {
    let four = !hops[0].contains(':');
    let width = if four { 1 } else { 4 };
    let mut payload =
        vec![1 + hops.len() as u8 * width, if inner[0] >> 4 == 4 { 4 } else { 41 }, 0, 0];
    payload.extend([0, u8::from(!four), taken, hops.len() as u8]);
    for hop in hops {
        match hop.parse().unwrap() {
            std::net::IpAddr::V4(v4) => payload.extend(v4.octets()),
            std::net::IpAddr::V6(v6) => payload.extend(v6.octets()),
        }
    }
    payload.extend(inner);
    let mut frame = Vec::new();
    let b = PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC);
    if four {
        b.ipv4(v4("10.0.0.9"), v4("10.0.1.11"), 64).udp(50000, 6080).write(&mut frame, &payload)
    } else {
        b.ipv6(v6("2001:db8:f::9"), v6("2001:db8:2::11"), 64)
            .udp(50000, 6080)
            .write(&mut frame, &payload)
    }
    .unwrap();
    let udp = if four { 14 + 20 + 6 } else { 14 + 40 + 6 };
    frame[udp..udp + 2].fill(0);
    frame
}

/// A segment or datagram between addresses of this machine, without Ethernet header.
fn between(from: std::net::SocketAddr, to: std::net::SocketAddr, syn: bool, udp: bool) -> Vec<u8> {
    use std::net::SocketAddr::{V4, V6};
    let mut out = Vec::new();
    let b = match (from, to) {
        (V4(from), V4(to)) => PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64),
        (V6(from), V6(to)) => PacketBuilder::ipv6(from.ip().octets(), to.ip().octets(), 64),
        _ => unreachable!(),
    };
    match (udp, syn) {
        (true, _) => b.udp(from.port(), to.port()).write(&mut out, b"x"),
        (_, true) => b.tcp(from.port(), to.port(), 1, 9).syn().write(&mut out, b"x"),
        _ => b.tcp(from.port(), to.port(), 1, 9).ack(3).write(&mut out, b"x"),
    }
    .unwrap();
    out
}

/// A machine with a way to other backends, one of which it knows by its MAC address.
fn backend() -> Namespace {
    let ns = Namespace::create(&unique()).unwrap();
    ns.ip("link add eth0 type veth peer name peer\nlink set peer up\nlink set eth0 up\n\
           addr add 10.0.1.11/24 dev eth0\naddr add 2001:db8:2::11/64 dev eth0 nodad\n\
           neigh add 10.0.1.12 lladdr 02:00:00:00:00:99 dev eth0 nud permanent\n\
           neigh add 2001:db8:2::12 lladdr 02:00:00:00:00:99 dev eth0 nud permanent")
        .unwrap();
    for family in ["ipv4", "ipv6"] {
        ns.sysctl(&format!("{family}/conf/all/forwarding"), "1").unwrap();
    }
    ns
}

#[test]
fn a_segment_without_a_socket_is_handed_on() {
    let ns = backend();
    ns.enter(|| {
        let mut rig = Rig::new(feature::DECAP);
        rig.decap_at("10.0.1.11");
        let both = ["10.0.1.11", "2001:db8:2::11"].map(|a| a.parse().unwrap()).into();
        let ops = rig.planner.set_decap(&both, &[], &rig.bpf).unwrap();
        rig.apply(&ops);
        for listen in [
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
            TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap(),
        ] {
            let here = listen.local_addr().unwrap();
            let client = TcpStream::connect(here).unwrap();
            let there = client.local_addr().unwrap();
            let mut stranger = there;
            stranger.set_port(1);
            for (known, unknown, nowhere) in [
                ("10.0.1.12", "10.0.1.13", "198.18.0.1"),
                ("2001:db8:2::12", "2001:db8:2::13", "2001:db8:99::1"),
            ] {
                let mine = between(there, here, false, false);
                let strange = between(stranger, here, false, false);
                let local = [
                    ("of a connection", &mine, 0),
                    ("all hops taken", &strange, 1),
                    ("opens one", &between(stranger, here, true, false), 0),
                    ("UDP", &between(stranger, here, false, true), 0),
                ];
                for (what, packet, taken) in local {
                    let got = rig.run(&tunnelled(packet, &[known], taken));
                    assert_eq!((got.action, got.reason), (PASS, Reason::Decapsulated), "{what}");
                    assert_eq!(got.frame[14..], **packet, "{what}");
                }
                handed_on(&mut rig, &strange, known, unknown, nowhere);
            }
        }
        senders_are_looked_at(&mut rig);
    })
    .unwrap();
}

/// The listener there does not count.
fn handed_on(rig: &mut Rig, strange: &[u8], known: &str, unknown: &str, nowhere: &str) {
    let four = !known.contains(':');
    for (hops, taken) in [(vec![known], 0u8), (vec![nowhere, known, unknown], 1)] {
        let frame = tunnelled(strange, &hops, taken);
        let got = rig.run(&frame);
        assert_eq!((got.action, got.reason), (REDIRECT, Reason::HandedOn));
        assert_eq!(macs(&got.frame).0, HOP_MAC);
        assert_eq!(*inner(&got.frame, four), *strange);
        let mut want = one_hop_later(&frame[14..]);
        readdress(&mut want, known, taken + 1);
        assert_eq!(got.frame[14..], want);
    }
    let frame = tunnelled(strange, &[unknown], 0);
    let got = rig.run(&frame);
    assert_eq!((got.action, got.reason), (PASS, Reason::HandedOnByHost));
    let mut want = frame[14..].to_vec();
    readdress(&mut want, unknown, 1);
    assert_eq!((&got.frame[..14], &got.frame[14..]), (&frame[..14], &want[..]));

    let got = rig.run(&tunnelled(strange, &[nowhere], 0));
    assert_eq!((got.action, got.reason), (DROP, Reason::NoNextHop));
    let mut last = tunnelled(strange, &[known], 0);
    last[if four { 22 } else { 21 }] = 1;
    assert_eq!(rig.run(&last).reason, Reason::TtlExpired);
    let gue = if four { GUE4 } else { GUE6 };
    for at in [gue + 4, gue + 5, gue + 7] {
        let mut bad = tunnelled(strange, &[known], 0);
        bad[at] ^= 4;
        let got = rig.run(&bad);
        assert_eq!((got.action, got.reason), (DROP, Reason::BadInner), "{at}");
    }
}

fn readdress(l3: &mut [u8], to: &str, taken: u8) {
    if l3[0] >> 4 == 4 {
        l3[16..20].copy_from_slice(&v4(to));
        let (h, _) = Ipv4Header::from_slice(l3).unwrap();
        l3[10..12].copy_from_slice(&h.calc_header_checksum().to_be_bytes());
        l3[GUE4 - 14 + 6] = taken;
    } else {
        l3[24..40].copy_from_slice(&v6(to));
        l3[GUE6 - 14 + 6] = taken;
    }
}

fn senders_are_looked_at(rig: &mut Rig) {
    let from = "127.0.0.1:1".parse().unwrap();
    let frame = tunnelled(&between(from, from, false, false), &["10.0.1.12"], 0);
    rig.decap_from("10.0.1.11", &["10.0.0.9/32"]);
    assert_eq!(rig.run(&frame).reason, Reason::HandedOn);
    rig.decap_from("10.0.1.11", &["10.0.0.8/32"]);
    assert_eq!(rig.run(&frame).reason, Reason::TunnelSourceRefused);
}
