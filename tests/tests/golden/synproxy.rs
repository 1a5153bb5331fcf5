//! The SYN proxy: SYNs for listeners of this machine are answered, byte by byte; everything else goes on as it came.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    time::Duration,
};

use abi::{limits::feature, reason::Reason, synproxy};
use config::model::{Forwarding, Prefilter, SynProxy};
use etherparse::{PacketBuilder, PacketHeaders, TcpHeader, TcpOptionElement, TransportHeader};
use lb_daemon::{datapath::Op, nexthop::NextHop, plan::prefixes::Prefixes};
use lb_tests::{
    lab::unique,
    netns::Namespace,
    rig::{CLIENT_MAC, INGRESS, OUR_MAC, Rig, service},
};

use crate::packets::{DROP, PASS, TX, v4, v6};

/// A port of a listener that is proxied; `OPEN` has a listener and is not.
const PORT: u16 = 8443;
const OPEN: u16 = 8444;
const CLIENT4: &str = "198.51.100.7";
const CLIENT6: &str = "2001:db8:9::7";
const HERE4: &str = "10.0.1.11";
const HERE6: &str = "2001:db8:2::11";

/// This machine; it forwards to others.
fn machine(cookies: &str) -> Namespace {
    let ns = Namespace::create(&unique()).unwrap();
    ns.ip("link add eth0 type veth peer name peer\nlink set peer up\nlink set eth0 up\n\
           addr add 10.0.1.11/24 dev eth0\naddr add 2001:db8:2::11/64 dev eth0 nodad\n\
           route add default via 10.0.1.1\nroute add default via 2001:db8:2::1")
        .unwrap();
    for family in ["ipv4", "ipv6"] {
        ns.sysctl(&format!("{family}/conf/all/forwarding"), "1").unwrap();
    }
    ns.sysctl("ipv4/tcp_syncookies", cookies).unwrap();
    ns
}

fn rig(strays: u32) -> Rig {
    let mut rig = Rig::new(feature::PREFILTER | feature::SYN_PROXY | strays);
    let (word, bit) = synproxy::place(PORT);
    rig.apply(&[Op::SynPorts(word, 1 << bit)]);
    rig
}

/// A segment of a client to an address; `change` sets its flags and options.
fn segment(to: &str, port: u16, payload: &[u8], change: impl Fn(&mut TcpHeader)) -> Vec<u8> {
    let mut tcp = TcpHeader::new(40000, port, 0x0102_0304, 1024);
    change(&mut tcp);
    let b = PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC);
    let b = if to.contains(':') {
        b.ipv6(v6(CLIENT6), v6(to), 60)
    } else {
        b.ipv4(v4(CLIENT4), v4(to), 60)
    };
    let mut out = Vec::new();
    b.tcp_header(tcp).write(&mut out, payload).unwrap();
    out
}

fn syn(to: &str, port: u16) -> Vec<u8> {
    segment(to, port, b"", with_options)
}

/// As Linux writes it.
fn with_options(tcp: &mut TcpHeader) {
    tcp.syn = true;
    tcp.set_options(&[
        TcpOptionElement::MaximumSegmentSize(1460),
        TcpOptionElement::SelectiveAcknowledgementPermitted,
        TcpOptionElement::Timestamp(7, 0),
        TcpOptionElement::Noop,
        TcpOptionElement::WindowScale(7),
    ])
    .unwrap();
}

/// Checks everything of an answer; its cookie and segment size.
fn read(frame: &[u8], to: &str) -> (u32, u16) {
    let is_v4 = !to.contains(':');
    assert_eq!((&frame[..6], &frame[6..12]), (&CLIENT_MAC[..], &OUR_MAC[..]));
    assert_eq!(frame.len(), if is_v4 { 14 + 20 + 24 } else { 14 + 40 + 24 });
    let h = PacketHeaders::from_ethernet_slice(frame).unwrap();
    assert!(h.payload.slice().is_empty());
    let Some(TransportHeader::Tcp(tcp)) = h.transport else { panic!("no TCP") };
    match h.net.unwrap() {
        etherparse::NetHeaders::Ipv4(ip, _) => {
            assert_eq!((ip.source, ip.destination), (v4(to), v4(CLIENT4)));
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!((ip.total_len, ip.time_to_live, ip.dont_fragment), (44, 64, true));
            assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, b"").unwrap());
        }
        etherparse::NetHeaders::Ipv6(ip, _) => {
            assert_eq!((ip.source, ip.destination), (v6(to), v6(CLIENT6)));
            assert_eq!((ip.payload_length, ip.hop_limit), (24, 64));
            assert_eq!(tcp.checksum, tcp.calc_checksum_ipv6(&ip, b"").unwrap());
        }
        _ => panic!("another protocol"),
    }
    assert_eq!((tcp.source_port, tcp.destination_port), (PORT, 40000));
    assert_eq!((tcp.syn, tcp.ack, tcp.rst, tcp.fin, tcp.ece), (true, true, false, false, false));
    assert_eq!(tcp.acknowledgment_number, 0x0102_0305);
    let options: Vec<_> = tcp.options_iterator().map(Result::unwrap).collect();
    let [TcpOptionElement::MaximumSegmentSize(mss)] = options[..] else {
        panic!("options {options:?}")
    };
    (tcp.sequence_number, mss)
}

fn listeners() -> Vec<TcpListener> {
    let mut all = Vec::new();
    for port in [PORT, OPEN] {
        // The one for IPv6 takes both families.
        all.push(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
    }
    all
}

/// Also when the program behind the first one finds out that a service is delivered here.
#[test]
fn a_syn_for_a_service_that_is_delivered_here_is_answered() {
    machine("2")
        .enter(|| {
            let _listeners = listeners();
            let features = feature::PREFILTER | feature::BALANCE | feature::SYN_PROXY;
            let mut rig = Rig::new(features);
            for ranges in [vec![], vec!["198.51.100.0/24".parse().unwrap()]] {
                let mut web = service("web", &[HERE4], Forwarding::L2, &["10.0.1.12"]);
                (web.ports[0].port, web.ports[0].last) = (PORT, PORT);
                web.source_ranges = ranges;
                rig.fill(vec![web], INGRESS, 1500);
                let here = BTreeMap::from([("10.0.1.12".parse().unwrap(), NextHop::Local)]);
                let ops = rig.planner.set_hops(&here, &rig.bpf, Duration::ZERO).unwrap();
                rig.apply(&ops);
                let (word, bit) = synproxy::place(PORT);
                rig.apply(&[Op::SynPorts(word, 1 << bit)]);

                let plain = syn(HERE4, PORT);
                for tags in crate::vlan::TAGS.into_iter().chain([&[][..]]) {
                    let mut frame = plain.clone();
                    frame.splice(12..12, tags.iter().copied());
                    let got = rig.run(&frame);
                    assert_eq!((got.action, got.reason), (TX, Reason::SynAnswered), "{tags:?}");
                }
                let other = segment(HERE4, PORT, b"x", |tcp| tcp.ack = true);
                assert_eq!(rig.run(&other).reason, Reason::DeliveredLocally);
                rig.apply(&[Op::SynPorts(word, 0)]);
                assert_eq!(rig.run(&plain).reason, Reason::DeliveredLocally);
            }
        })
        .unwrap();
}

#[test]
fn a_syn_for_a_listener_is_answered() {
    machine("2")
        .enter(|| {
            let _listeners = listeners();
            let mut rig = rig(0);
            for (to, largest) in [(HERE4, 1460), (HERE6, 1440)] {
                let long = segment(to, PORT, &[7; 900], |tcp| {
                    with_options(tcp);
                    tcp.ece = true;
                    tcp.cwr = true;
                });
                // Shorter than its answer: the frame grows.
                let bare = segment(to, PORT, b"", |tcp| tcp.syn = true);
                for frame in [syn(to, PORT), long, bare.clone()] {
                    let got = rig.run(&frame);
                    let bytes = frame.len();
                    assert_eq!(
                        (got.action, got.reason),
                        (TX, Reason::SynAnswered),
                        "{to}, {bytes} bytes"
                    );
                    let (cookie, mss) = read(&got.frame, to);
                    assert!(mss <= largest && mss >= 536, "{mss}");
                    // What comes back is known by its cookie, and nothing else is. Near numbers may say another
                    // segment size.
                    let back = |ack: u32| {
                        segment(to, PORT, b"x", |tcp| {
                            (tcp.sequence_number, tcp.ack) = (0x0102_0305, true);
                            tcp.acknowledgment_number = ack;
                        })
                    };
                    let mut strict = self::rig(feature::STRAY_ACKS);
                    let known = strict.run(&back(cookie.wrapping_add(1)));
                    assert_eq!((known.action, known.reason), (PASS, Reason::NotOurs), "{to}");
                    let guessed = strict.run(&back(cookie.wrapping_add(101)));
                    assert_eq!((guessed.action, guessed.reason), (DROP, Reason::StrayAck), "{to}");
                    let passed = rig.run(&back(cookie.wrapping_add(101)));
                    assert_eq!((passed.action, passed.reason), (PASS, Reason::NotOurs), "{to}");
                }
            }
        })
        .unwrap();
}

#[test]
fn what_is_not_for_a_listener_is_left_alone() {
    machine("2")
        .enter(|| {
            let listeners = listeners();
            let mut rig = rig(feature::STRAY_ACKS);
            let untouched = |rig: &mut Rig, what: &str, frame: &[u8]| {
                let got = rig.run(frame);
                assert_eq!((got.action, got.reason), (PASS, Reason::NotOurs), "{what}");
                assert_eq!(got.frame, frame, "{what}");
            };
            let ack = |to: &str, port| segment(to, port, b"x", |tcp| tcp.ack = true);
            for (to, other) in [(HERE4, "203.0.113.9"), (HERE6, "2001:db8:77::9")] {
                untouched(&mut rig, "a port that is not proxied", &syn(to, OPEN));
                untouched(&mut rig, "forwarded by this machine", &syn(other, PORT));
                untouched(&mut rig, "a segment that is forwarded", &ack(other, PORT));
                untouched(&mut rig, "another port's segment", &ack(to, OPEN));
                let reset = segment(to, PORT, b"", |tcp| (tcp.ack, tcp.rst) = (true, true));
                untouched(&mut rig, "a reset", &reset);
                let answer = segment(to, PORT, b"", |tcp| (tcp.ack, tcp.syn) = (true, true));
                untouched(&mut rig, "an answer", &answer);
                let mut group = syn(to, PORT);
                group[0] |= 1;
                untouched(&mut rig, "sent to a group", &group);
                let mut short = syn(to, PORT);
                short[if to == HERE4 { 14 + 20 + 12 } else { 14 + 40 + 12 }] = 0x40;
                untouched(&mut rig, "a header that cannot be", &short);
            }
            // Segments of a connection have a socket.
            let here = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).unwrap();
            let from = here.local_addr().unwrap();
            let mut frame = Vec::new();
            let b = PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC);
            let b = b.ipv4(v4("127.0.0.1"), v4("127.0.0.1"), 60);
            b.tcp(from.port(), PORT, 1, 9).ack(3).write(&mut frame, b"x").unwrap();
            untouched(&mut rig, "of a connection", &frame);
            drop(listeners);
            for to in [HERE4, HERE6] {
                untouched(&mut rig, "nobody listens", &syn(to, PORT));
                untouched(&mut rig, "nobody listens", &ack(to, PORT));
            }
        })
        .unwrap();
}

#[test]
fn the_kernel_decides_when_cookies_are_given() {
    // 0: never; 1: only while a listener's queue is full.
    for cookies in ["0", "1"] {
        machine(cookies)
            .enter(|| {
                let _listeners = listeners();
                let mut rig = rig(feature::STRAY_ACKS);
                for to in [HERE4, HERE6] {
                    let frame = syn(to, PORT);
                    let got = rig.run(&frame);
                    assert_eq!((got.action, got.reason), (PASS, Reason::NotOurs), "{to}");
                    assert_eq!(got.frame, frame);
                }
            })
            .unwrap();
    }
}

#[test]
fn the_planner_keeps_the_set_of_ports() {
    let mut rig = Rig::new(feature::PREFILTER);
    let mut prefixes = Prefixes::default();
    let mut of = |rig: &mut Rig, ports: &[(u16, u16)]| {
        let syn_proxy = SynProxy { ports: ports.to_vec(), drop_stray_acks: false };
        let wanted = Prefilter { syn_proxy, ..Prefilter::default() };
        let ops = prefixes.plan(&wanted, &rig.bpf).unwrap();
        rig.apply(&ops);
        // An index of what stands finds nothing to do, but for what it cannot know of the lists.
        let ops = Prefixes::adopt(&rig.bpf, [].into_iter()).plan(&wanted, &rig.bpf).unwrap();
        assert!(!ops.iter().any(|op| matches!(op, Op::SynPorts(..))), "{ops:?}");
    };
    use lb_daemon::datapath::Tables as _;
    let set = |rig: &Rig| {
        let word = |word| (0..64u32).map(move |bit| (word, bit));
        let has = |&(word, bit): &(u32, u32)| rig.bpf.syn_ports(word) >> bit & 1 != 0;
        let all = (0..synproxy::PORT_WORDS).flat_map(word).filter(has);
        all.map(|(word, bit)| word * 64 + bit).collect::<Vec<_>>()
    };
    of(&mut rig, &[(443, 443), (62, 66), (65535, 65535)]);
    assert_eq!(set(&rig), [62, 63, 64, 65, 66, 443, 65535]);
    of(&mut rig, &[(64, 64), (80, 80)]);
    assert_eq!(set(&rig), [64, 80]);
    of(&mut rig, &[]);
    assert!(set(&rig).is_empty());
}
