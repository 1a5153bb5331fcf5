//! Services behind NAT that want more than their ring: clients that stay, backends that are drawn, groups, ranges of
//! ports. An entry says where its connection goes, whatever becomes of the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use abi::reason::Reason;
use config::model::{
    Backend, BackendState, Forwarding, Port, Protocol, Scheduling, Service, SourceRoute, Steering,
};
use lb_daemon::datapath::Tables as _;
use lb_tests::rig::{CLIENT_MAC, HOP_MAC, INGRESS, Rig, service};

use crate::{
    nat::{from_backend, says},
    nat_icmp,
    packets::{DROP, L4, TX, VIP4, VIP6, frame4, frame6, macs},
};

const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// As many backends of each family.
fn web(backends: u8, steering: Steering) -> Service {
    let four = (1..=backends).map(|n| format!("10.0.1.{n}"));
    let names: Vec<String> = four.collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut web = service("web", &[VIP4, VIP6], Forwarding::Nat, &names);
    web.steering = steering;
    web
}

fn spread(scheduling: Scheduling) -> Steering {
    Steering { scheduling, ..Steering::default() }
}

fn sticky() -> Steering {
    Steering { affinity: Some(Duration::from_secs(3600)), ..Steering::default() }
}

fn tcp(client: u8, port: u16, flags: u8) -> Vec<u8> {
    let l4 = if flags == SYN { L4::Syn(80) } else { L4::Ack(80) };
    let mut frame = frame4(&format!("198.51.100.{client}"), VIP4, l4, 64, b"hello");
    patch(&mut frame, port, flags);
    frame
}

fn udp(client: u8, port: u16) -> Vec<u8> {
    let mut frame = frame4(&format!("198.51.100.{client}"), VIP4, L4::Udp(443), 64, b"hello");
    let old = u16::from_be_bytes([frame[34], frame[35]]);
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    mend(&mut frame, 40, old, port);
    frame
}

/// Another source port and other flags, with the right checksum.
fn patch(frame: &mut [u8], port: u16, flags: u8) {
    let old = u16::from_be_bytes([frame[34], frame[35]]);
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    mend(frame, 50, old, port);
    let old = u16::from_be_bytes([frame[46], frame[47]]);
    frame[47] = flags;
    let new = u16::from_be_bytes([frame[46], frame[47]]);
    mend(frame, 50, old, new);
}

fn mend(frame: &mut [u8], at: usize, old: u16, new: u16) {
    let sum = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let sum = abi::checksum::replace(sum, old, new);
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Where a client's packet went: the last byte of the backend's address, and the NAT port.
fn sent(rig: &mut Rig, frame: &[u8]) -> (u8, u16) {
    let got = rig.run(frame);
    assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
    assert_eq!(macs(&got.frame).0, HOP_MAC);
    let says = says(&got.frame);
    assert_eq!(says.src, "10.0.0.1");
    (says.dst.rsplit('.').next().unwrap().parse().unwrap(), says.ports.0)
}

fn owner(rig: &mut Rig, frame: &[u8]) -> u8 {
    sent(rig, frame).0
}

/// A reply reaches the client's port.
fn answers(rig: &mut Rig, (backend, nat): (u8, u16), client: u8, port: u16) {
    let reply = from_backend(&format!("10.0.1.{backend}"), 80, "10.0.0.1", nat, false, b"hi");
    let got = rig.run(&reply);
    assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
    assert_eq!(macs(&got.frame).0, CLIENT_MAC);
    let says = says(&got.frame);
    assert_eq!((&*says.src, &*says.dst), (VIP4, &*format!("198.51.100.{client}")));
    assert_eq!(says.ports, (80, port));
}

fn settle(rig: &mut Rig) {
    let ops = rig.planner.settle(&rig.bpf, Duration::from_secs(3000)).expect("room");
    rig.apply(&ops);
}

#[test]
fn clients_stay() {
    let mut rig = Rig::with(vec![web(3, sticky())], INGRESS, 1500);
    let first: Vec<_> = (1..=60).map(|c| sent(&mut rig, &tcp(c, 1000, SYN))).collect();
    let backends = |all: &[(u8, u16)]| all.iter().map(|sent| sent.0).collect::<Vec<_>>();
    assert_eq!(backends(&first).iter().collect::<BTreeSet<_>>().len(), 3, "clients are spread");
    for (client, &sent) in (1..=60).zip(&first) {
        answers(&mut rig, sent, client, 1000);
    }
    // Ten times as many backends, and long after the slots have settled.
    rig.fill(vec![web(30, sticky())], INGRESS, 1500);
    settle(&mut rig);
    let go_on: Vec<_> = (1..=60).map(|c| sent(&mut rig, &tcp(c, 1000, ACK))).collect();
    assert_eq!(go_on, first, "connections, with their ports");
    let again: Vec<_> = (1..=60).map(|c| sent(&mut rig, &tcp(c, 2000, SYN))).collect();
    assert_eq!(backends(&again), backends(&first), "other connections of theirs");
    let datagrams: Vec<_> = (1..=60).map(|c| sent(&mut rig, &udp(c, 2000))).collect();
    assert_eq!(backends(&datagrams), backends(&first));
    let others: BTreeSet<u8> = (61..=200).map(|c| owner(&mut rig, &tcp(c, 1000, SYN))).collect();
    assert!(others.len() > 20, "new clients go to all: {others:?}");
}

/// A client's backend takes no new connections: it stays with another one, and connections that it has go on.
#[test]
fn a_connection_outlives_what_its_client_was_told() {
    let mut rig = Rig::with(vec![web(2, sticky())], INGRESS, 1500);
    let first = sent(&mut rig, &tcp(7, 1000, SYN));
    answers(&mut rig, first, 7, 1000);
    let without = |name: u8| {
        let mut web = web(2, sticky());
        web.backends[usize::from(name) - 1].state = BackendState::Draining;
        web
    };
    rig.fill(vec![without(first.0)], INGRESS, 1500);
    let mut gone = web(2, sticky());
    gone.backends.retain(|b| b.name != format!("10.0.1.{}", first.0));
    rig.fill(vec![gone], INGRESS, 1500);
    assert_eq!(sent(&mut rig, &tcp(7, 1000, ACK)), first);
    answers(&mut rig, first, 7, 1000);
}

#[test]
fn at_random() {
    let mut rig = Rig::with(vec![web(4, spread(Scheduling::Random))], INGRESS, 1500);
    let first: Vec<_> = (1..=200).map(|p| sent(&mut rig, &tcp(7, p, SYN))).collect();
    let mut shares = BTreeMap::new();
    for (backend, _) in &first {
        *shares.entry(*backend).or_insert(0) += 1;
    }
    assert_eq!(shares.len(), 4);
    assert!(shares.values().all(|&n| (20..90).contains(&n)), "{shares:?}");
    for (port, &first) in (1..=200).zip(&first) {
        assert_eq!(sent(&mut rig, &tcp(7, port, SYN)), first, "the SYN again");
        answers(&mut rig, first, 7, port);
        assert_eq!(sent(&mut rig, &tcp(7, port, ACK)), first);
    }
    // Connections that are over: their ports are used again, for others.
    for port in 1..=200 {
        owner(&mut rig, &tcp(7, port, RST));
    }
    let next: Vec<_> = (1..=200).map(|p| sent(&mut rig, &tcp(7, p, SYN))).collect();
    assert_ne!(next, first);
    for (port, &next) in (1..=200).zip(&next) {
        answers(&mut rig, next, 7, port);
        assert_eq!(sent(&mut rig, &tcp(7, port, ACK)), next, "the later one");
    }
    // Datagrams have no beginning: one that is known goes on.
    let first: Vec<_> = (1..=100).map(|p| sent(&mut rig, &udp(7, p))).collect();
    let again: Vec<_> = (1..=100).map(|p| sent(&mut rig, &udp(7, p))).collect();
    assert_eq!(first, again);
    assert_eq!(first.iter().map(|s| s.0).collect::<BTreeSet<_>>().len(), 4);
    let stray = rig.run(&tcp(9, 1, ACK));
    assert_eq!((stray.action, stray.reason), (DROP, Reason::NatNoEntry));
}

#[test]
fn to_where_there_are_fewest() {
    let fewest = || web(2, spread(Scheduling::LeastConnections));
    let mut rig = Rig::with(vec![fewest()], INGRESS, 1500);
    let first: Vec<_> = (1..=100).map(|p| sent(&mut rig, &tcp(7, p, SYN))).collect();
    let of = |all: &[(u8, u16)], backend| all.iter().filter(|s| s.0 == backend).count();
    assert!((45..=55).contains(&of(&first, 1)), "{first:?}");
    for (port, &first) in (1..=100).zip(&first) {
        answers(&mut rig, first, 7, port);
        assert_eq!(sent(&mut rig, &tcp(7, port, ACK)), first);
        if first.0 == 1 {
            owner(&mut rig, &tcp(7, port, RST));
            // Again: it is counted once.
            owner(&mut rig, &tcp(7, port, RST));
        }
    }
    let active = |rig: &Rig| -> Vec<u32> {
        let members = rig.planner.services()["web"].members.values();
        members.map(|m| rig.bpf.backend(m.row).active()).collect()
    };
    let counted = active(&rig);
    assert_eq!(counted, [0, of(&first, 2) as u32]);
    let next: Vec<_> = (201..=230).map(|p| sent(&mut rig, &tcp(7, p, SYN))).collect();
    assert!(of(&next, 1) >= 29, "all of the first backend's are over: {next:?}");

    // By their entries, the same.
    let counted = active(&rig);
    let rows: Vec<u32> = rig.planner.services()["web"].members.values().map(|m| m.row).collect();
    for &row in &rows {
        let b = rig.bpf.backend(row);
        let anew = abi::table::Backend::new(b.addr(), b.hop(), b.state(), b.id(), b.epoch());
        rig.apply(&[lb_daemon::datapath::Op::Backend(row, anew)]);
    }
    assert_eq!(active(&rig), [0, 0]);
    rig.bpf.recount().expect("tables").run(&rows, &[]);
    assert_eq!(active(&rig), counted);

    // With affinity connections are counted, not clients.
    let both = Steering { affinity: Some(Duration::from_secs(60)), ..fewest().steering };
    let mut rig = Rig::with(vec![web(2, both)], INGRESS, 1500);
    for port in 1..=10 {
        owner(&mut rig, &tcp(7, port, SYN));
    }
    assert_eq!(active(&rig).iter().sum::<u32>(), 10);
    // The next clients go to the other one, unless the draw is all of the first, once in 256 times.
    let first = owner(&mut rig, &tcp(7, 1, SYN));
    let others = (8..=11).filter(|&c| owner(&mut rig, &tcp(c, 1, SYN)) != first).count();
    assert!(others >= 2, "{others} of 4");
}

/// A range keeps its ports; another service has one of the same address to itself.
#[test]
fn ranges_of_ports() {
    let port = |port, last, protocol, target_port| Port {
        name: format!("p{port}"),
        port,
        last,
        protocol,
        target_port,
        quic: false,
    };
    let mut media = web(3, Steering::default());
    media.name = "media".to_owned();
    media.ports =
        vec![port(8000, 8999, Protocol::Tcp, 8000), port(8000, 8999, Protocol::Udp, 8000)];
    let mut one = service("one", &[VIP4], Forwarding::Nat, &["10.0.1.9"]);
    one.ports = vec![port(8500, 8500, Protocol::Tcp, 80)];
    for steering in [Steering::default(), spread(Scheduling::Random), sticky()] {
        media.steering = steering;
        let mut rig = Rig::with(vec![media.clone(), one.clone()], INGRESS, 1500);
        for (number, ports) in [(7999, None), (8000, Some(8000)), (8999, Some(8999)), (9000, None)]
        {
            for l4 in [L4::Syn(number), L4::Udp(number)] {
                let got = rig.run(&frame4("198.51.100.7", VIP4, l4, 64, b"x"));
                let Some(port) = ports else {
                    assert_eq!((got.action, got.reason), (DROP, Reason::NoService));
                    continue;
                };
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                let forth = says(&got.frame);
                assert_eq!(forth.ports.1, port);
                let udp = matches!(l4, L4::Udp(_));
                let reply =
                    from_backend(&forth.dst, port, "10.0.0.1", forth.ports.0, udp, b"reply");
                let back = says(&rig.run(&reply).frame);
                assert_eq!((&*back.src, back.ports), (VIP4, (port, 40000)));
            }
        }
        let got = rig.run(&frame4("198.51.100.7", VIP4, L4::Syn(8500), 64, b"x"));
        assert_eq!((&*says(&got.frame).dst, says(&got.frame).ports.1), ("10.0.1.9", 80));
        // The other family has the range too; its backends are of this one.
        let got = rig.run(&frame6("2001:db8:9::7", VIP6, L4::Syn(8001), 64, b"x"));
        assert_eq!((got.reason, says(&got.frame).ports.1), (Reason::ForwardedTx, 8001));
    }
}

fn routed(steering: Steering) -> Service {
    let mut web = web(3, steering);
    let canary = |name: &str| Backend {
        name: name.to_owned(),
        address: name.parse().unwrap(),
        group: Some("canary".to_owned()),
        ..web.backends[0].clone()
    };
    let more = ["10.0.1.101", "10.0.1.102"].map(canary);
    web.backends.extend(more);
    let prefixes = vec!["198.51.100.128/25".parse().unwrap()];
    web.source_routes = vec![SourceRoute { prefixes, group: "canary".to_owned() }];
    web
}

#[test]
fn clients_are_routed_to_groups() {
    for steering in [Steering::default(), spread(Scheduling::Random), sticky()] {
        let mut rig = Rig::with(vec![routed(steering)], INGRESS, 1500);
        let mut seen = BTreeSet::new();
        let mut canaries = Vec::new();
        for client in 60..=200 {
            let found = sent(&mut rig, &tcp(client, 1000, SYN));
            assert_eq!(found.0 > 100, client >= 128, "{client} went to {}", found.0);
            assert_eq!(sent(&mut rig, &tcp(client, 1000, ACK)), found);
            answers(&mut rig, found, client, 1000);
            seen.insert(found.0);
            canaries.extend((found.0 > 100).then_some((client, found)));
        }
        assert_eq!(seen.len(), 5);
        if steering.affinity.is_some() {
            // Its clients stay while it drains.
            continue;
        }
        // The group takes no new connections: they fall back, and those that it has go on.
        let mut fewer = routed(steering);
        for backend in &mut fewer.backends {
            if backend.group.is_some() {
                backend.state = BackendState::Draining;
            }
        }
        rig.fill(vec![fewer], INGRESS, 1500);
        for &(client, found) in &canaries {
            assert_eq!(sent(&mut rig, &tcp(client, 1000, ACK)), found);
        }
        let new: Vec<_> = (128..=200).map(|c| (c, sent(&mut rig, &tcp(c, 3000, SYN)))).collect();
        assert!(new.iter().all(|(_, found)| found.0 < 100), "{new:?}");
        // It takes some again: what fell back stays.
        rig.fill(vec![routed(steering)], INGRESS, 1500);
        settle(&mut rig);
        for &(client, found) in &new {
            assert_eq!(sent(&mut rig, &tcp(client, 3000, ACK)), found);
        }
    }
}

/// A service begins to want more than its ring while it has connections.
#[test]
fn connections_from_before() {
    let mut rig = Rig::with(vec![web(3, Steering::default())], INGRESS, 1500);
    let first: Vec<_> = (1..=50).map(|p| sent(&mut rig, &tcp(7, p, SYN))).collect();
    for steering in [spread(Scheduling::Random), sticky(), spread(Scheduling::LeastConnections)] {
        rig.fill(vec![web(3, steering)], INGRESS, 1500);
        for (port, &first) in (1..=50).zip(&first) {
            assert_eq!(sent(&mut rig, &tcp(7, port, ACK)), first);
            answers(&mut rig, first, 7, port);
        }
    }
}

/// An ICMP error from the client's side goes to the backend of the connection that it is about.
#[test]
fn errors_follow_the_entry() {
    let mut rig = Rig::with(vec![web(9, spread(Scheduling::Random))], INGRESS, 1500);
    for port in 1..=50 {
        let found = sent(&mut rig, &tcp(7, port, SYN));
        let reply = nat_icmp::sent(VIP4, "198.51.100.7", (80, port), false);
        let error = nat_icmp::error("198.51.100.7", &reply, 3, 1, 0, 20);
        let got = rig.run(&error);
        assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
        let says = nat_icmp::says(&got.frame);
        assert_eq!(says.dst, format!("10.0.1.{}", found.0));
        // What its backend had sent: to this port.
        assert_eq!(says.about[22..24], found.1.to_be_bytes());
    }
}
