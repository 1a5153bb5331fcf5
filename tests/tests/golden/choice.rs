//! Services that want more than their ring: affinity, random, fewest connections, tracking, servers that
//! packets name.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use abi::{limits::behind as places, reason::Reason, table::Backend};
use aya::maps::{Map, ProgramArray};
use config::model::{BackendState, Forwarding, Protocol, Scheduling, Service, Steering};
use lb_daemon::datapath::{Op, Tables as _};
use lb_tests::{
    lab::BpfDirectory,
    rig::{INGRESS, Rig, service},
};

use crate::packets::{DROP, L4, TX, VIP4, VIP6, frame4, frame6};

const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
const FIN_ACK: u8 = 0x11;

fn web(backends: u8, steering: Steering) -> Service {
    let backends: Vec<String> = (1..=backends).map(|n| format!("10.0.1.{n}")).collect();
    let names: Vec<&str> = backends.iter().map(String::as_str).collect();
    let mut web = service("web", &[VIP4, VIP6], Forwarding::Ipip, &names);
    web.steering = steering;
    for (n, backend) in (1..).zip(&mut web.backends) {
        backend.server_id = Some(n);
    }
    web
}

/// The last byte of the address of the backend that a frame was sent to.
fn owner(rig: &mut Rig, frame: &[u8]) -> u8 {
    let got = rig.run(frame);
    assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
    got.frame[33]
}

fn tcp(client: u8, port: u16, flags: u8) -> Vec<u8> {
    let mut frame = frame4(&format!("198.51.100.{client}"), VIP4, L4::Syn(80), 64, b"hello");
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame[47] = flags;
    frame
}

#[test]
fn clients_stay() {
    let sticky = |backends| {
        web(backends, Steering { affinity: Some(Duration::from_secs(3600)), ..Steering::default() })
    };
    let mut rig = Rig::with(vec![sticky(3)], INGRESS, 1500);
    let first: Vec<u8> = (1..=60).map(|c| owner(&mut rig, &tcp(c, 1000, SYN))).collect();
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3, "clients are spread");
    let again = |rig: &mut Rig, port| -> Vec<u8> {
        (1..=60).map(|c| owner(rig, &tcp(c, port, SYN))).collect()
    };
    assert_eq!(again(&mut rig, 2000), first, "another connection");
    // Ten times as many backends, and long after the slots have settled.
    rig.fill(vec![sticky(30)], INGRESS, 1500);
    let later = Duration::from_secs(3000);
    let ops = rig.planner.settle(&rig.bpf, later).expect("room");
    rig.apply(&ops);
    assert_eq!(again(&mut rig, 3000), first);
    let others: BTreeSet<u8> = (61..=200).map(|c| owner(&mut rig, &tcp(c, 1000, SYN))).collect();
    assert!(others.len() > 20, "new clients go to all: {others:?}");
    // The other family: a client is an address.
    let six = |port: u16| {
        let mut frame = frame6("2001:db8:9::7", VIP6, L4::Syn(80), 64, b"");
        frame[54..56].copy_from_slice(&port.to_be_bytes());
        frame
    };
    let owners: BTreeSet<u8> = (1..20).map(|p| owner(&mut rig, &six(p))).collect();
    assert_eq!(owners.len(), 1);
}

#[test]
fn at_random() {
    let mut rig = Rig::with(
        vec![web(4, Steering { scheduling: Scheduling::Random, ..Steering::default() })],
        INGRESS,
        1500,
    );
    let owners: Vec<u8> = (1..=200).map(|p| owner(&mut rig, &tcp(7, p, SYN))).collect();
    let mut shares = BTreeMap::new();
    for owner in &owners {
        *shares.entry(*owner).or_insert(0) += 1;
    }
    assert_eq!(shares.len(), 4);
    assert!(shares.values().all(|&n| (20..90).contains(&n)), "{shares:?}");
    for (port, &first) in (1..=200).zip(&owners) {
        assert_eq!(owner(&mut rig, &tcp(7, port, SYN)), first, "the SYN again");
        assert_eq!(owner(&mut rig, &tcp(7, port, ACK)), first);
    }
    // Connections that are over: their ports are used again, for others.
    for port in 1..=200 {
        owner(&mut rig, &tcp(7, port, FIN_ACK));
    }
    let next: Vec<u8> = (1..=200).map(|p| owner(&mut rig, &tcp(7, p, SYN))).collect();
    assert_ne!(next, owners);
}

#[test]
fn to_where_there_are_fewest() {
    let fewest =
        || web(2, Steering { scheduling: Scheduling::LeastConnections, ..Steering::default() });
    let mut rig = Rig::with(vec![fewest()], INGRESS, 1500);
    let owners: Vec<u8> = (1..=100).map(|p| owner(&mut rig, &tcp(7, p, SYN))).collect();
    let of = |owners: &[u8], backend| owners.iter().filter(|&&o| o == backend).count();
    assert!((45..=55).contains(&of(&owners, 1)), "{owners:?}");
    for (port, &first) in (1..=100).zip(&owners) {
        assert_eq!(owner(&mut rig, &tcp(7, port, ACK)), first);
        if first == 1 {
            owner(&mut rig, &tcp(7, port, FIN_ACK));
            // Again: it is counted once.
            owner(&mut rig, &tcp(7, port, FIN_ACK));
        }
    }
    let next: Vec<u8> = (201..=230).map(|p| owner(&mut rig, &tcp(7, p, SYN))).collect();
    assert!(of(&next, 1) >= 29, "all of the first backend's are over: {next:?}");

    // Weights: three times as many for the second.
    let mut weighted = fewest();
    weighted.name = "weighted".into();
    weighted.backends[1].weight = 3;
    let mut rig = Rig::with(vec![weighted], INGRESS, 1500);
    let owners: Vec<u8> = (1..=200).map(|p| owner(&mut rig, &tcp(7, p, SYN))).collect();
    assert!((40..=60).contains(&of(&owners, 1)), "{owners:?}");
}

#[test]
fn tracked_always() {
    let tracked = |backends, track| web(backends, Steering { track, ..Steering::default() });
    for track in [false, true] {
        let mut rig = Rig::with(vec![tracked(2, track)], INGRESS, 1500);
        let owners: Vec<u8> = (1..=100).map(|p| owner(&mut rig, &tcp(7, p, SYN))).collect();
        rig.fill(vec![tracked(20, track)], INGRESS, 1500);
        // Nobody has sent anything until the slots have forgotten.
        let ops = rig.planner.settle(&rig.bpf, Duration::from_secs(3000)).expect("room");
        rig.apply(&ops);
        let now: Vec<u8> = (1..=100).map(|p| owner(&mut rig, &tcp(7, p, ACK))).collect();
        assert_eq!(now == owners, track);
    }
}

fn quic(client: u8, payload: &[u8]) -> Vec<u8> {
    frame4(&format!("198.51.100.{client}"), VIP4, L4::Udp(443), 64, payload)
}

#[test]
fn packets_name_their_server() {
    let mut named = web(
        20,
        Steering { tcp_option: true, udp_header: true, quic_len: 2, ..Steering::default() },
    );
    let mut dns = named.ports[1].clone();
    dns.port = 53;
    dns.target_port = 53;
    dns.name = "dns".into();
    named.ports.push(dns);
    named.ports[1].quic = true;
    assert_eq!(named.ports[1].protocol, Protocol::Udp);
    let mut rig = Rig::with(vec![named.clone()], INGRESS, 1500);

    let short = |id: u8| [0x40, 0x07, 0, id, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
    for client in 1..=30 {
        assert_eq!(owner(&mut rig, &quic(client, &short(13))), 13, "whatever the client's address");
    }
    let by_ring = |rig: &mut Rig, payload: &[u8]| -> BTreeSet<u8> {
        (1..=60).map(|client| owner(rig, &quic(client, payload))).collect()
    };
    assert!(by_ring(&mut rig, &short(99)).len() > 5, "a server that nobody knows");
    let mut initial = [0xc0, 0, 0, 0, 1, 8, 0x07, 0, 13, 9, 9, 9, 9, 9, 9, 9];
    assert!(by_ring(&mut rig, &initial).len() > 5, "the client's own connection id");
    initial[0] = 0xe0;
    assert_eq!(by_ring(&mut rig, &initial), BTreeSet::from([13]), "a Handshake packet");

    let udp = |payload: &[u8]| frame4("198.51.100.7", VIP4, L4::Udp(53), 64, payload);
    assert_eq!(owner(&mut rig, &udp(&[0x4c, 0x42, 1, 0, 0, 0, 0, 11, 5])), 11);
    assert_eq!(owner(&mut rig, &udp(&[0x4c, 0x42, 1, 0, 0, 0, 0, 12, 5])), 12);

    // Option 253 behind two NOPs and timestamps.
    let option = |flags, id: u8| {
        let mut frame = tcp(7, 1000, flags);
        let options = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 253, 8, 0x4c, 0x42, 0, 0, 0, id];
        frame[46] = 10 << 4;
        frame.splice(54..54, options);
        let total = u16::from_be_bytes([frame[16], frame[17]]) + 20;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame
    };
    for id in 1..=20 {
        assert_eq!(owner(&mut rig, &option(ACK, id)), id);
    }
    let ring = owner(&mut rig, &tcp(7, 1000, SYN));
    assert_eq!(owner(&mut rig, &option(SYN, ring % 20 + 1)), ring, "a SYN names nobody");

    // Gone from the configuration, and its connections still name it; in maintenance it takes none.
    let mut fewer = named.clone();
    fewer.backends.retain(|b| b.server_id != Some(13));
    rig.fill(vec![fewer], INGRESS, 1500);
    assert_eq!(owner(&mut rig, &quic(1, &short(13))), 13);
    named.backends[12].state = BackendState::Maintenance;
    rig.fill(vec![named], INGRESS, 1500);
    assert!(!by_ring(&mut rig, &short(13)).contains(&13));
    assert_eq!(owner(&mut rig, &quic(1, &short(14))), 14);
}

/// Without the program behind it, the first one sends QUIC packets with a short header where they say, and no others.
#[test]
fn connection_ids_need_the_first_program_alone() {
    let pins = BpfDirectory::create(&format!("named-{}", std::process::id())).unwrap();
    let tables = pins.path().join("v0-0");
    std::fs::create_dir(&tables).unwrap();
    let mut rig = Rig::pinned(&tables);
    let mut named = web(20, Steering { quic_len: 2, ..Steering::default() });
    named.ports[1].quic = true;
    rig.fill(vec![named.clone()], INGRESS, 1500);
    let jump = lb_tests::rig::jump(&tables);
    let mut jump = ProgramArray::try_from(Map::ProgramArray(jump)).unwrap();
    jump.clear_index(&places::CHOICE).unwrap();

    let short = [0x40, 0x07, 0, 13, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
    let handshake = [0xe0, 0, 0, 0, 1, 8, 0x07, 0, 13, 9, 9, 9, 9, 9, 9, 9];
    let six = |payload: &[u8]| frame6("2001:db8:9::7", VIP6, L4::Udp(443), 64, payload);
    assert_eq!(owner(&mut rig, &quic(7, &short)), 13);
    assert_eq!(owner(&mut rig, &six(&short)), 13);
    for frame in [quic(7, &handshake), six(&handshake), tcp(7, 1000, ACK)] {
        let got = rig.run(&frame);
        assert_eq!((got.action, got.reason), (DROP, Reason::SourceRefused));
    }
    named.source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
    rig.fill(vec![named], INGRESS, 1500);
    let got = rig.run(&quic(7, &short));
    assert_eq!((got.action, got.reason), (DROP, Reason::SourceRefused), "who may use it is asked");
}

/// An ICMP error about a reply of a service to `client`, port 40000.
fn error_about(client: &str) -> Vec<u8> {
    let reply = etherparse::PacketBuilder::ipv4(
        VIP4.parse::<std::net::Ipv4Addr>().unwrap().octets(),
        client.parse::<std::net::Ipv4Addr>().unwrap().octets(),
        60,
    )
    .tcp(80, 40000, 1, 1000);
    let mut quoted = Vec::new();
    reply.write(&mut quoted, b"hello").unwrap();
    let mut out = Vec::new();
    etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([192, 0, 2, 1], VIP4.parse::<std::net::Ipv4Addr>().unwrap().octets(), 60)
        .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::Host,
        ))
        .write(&mut out, &quoted)
        .unwrap();
    out
}

#[test]
fn errors_follow_the_entry() {
    for steering in [
        Steering { scheduling: Scheduling::Random, ..Steering::default() },
        Steering {
            affinity: Some(Duration::from_secs(60)),
            scheduling: Scheduling::Random,
            ..Steering::default()
        },
    ] {
        let mut rig = Rig::with(vec![web(20, steering)], INGRESS, 1500);
        for client in 1..=30 {
            let first = owner(&mut rig, &tcp(client, 40000, SYN));
            let error = error_about(&format!("198.51.100.{client}"));
            assert_eq!(owner(&mut rig, &error), first, "{steering:?}");
        }
    }
}

#[test]
fn connections_are_counted_from_their_entries() {
    let fewest = Steering { scheduling: Scheduling::LeastConnections, ..Steering::default() };
    let mut rig = Rig::with(vec![web(3, fewest)], INGRESS, 1500);
    for port in 1..=10 {
        owner(&mut rig, &tcp(7, port, SYN));
        owner(&mut rig, &tcp(7, port, ACK));
    }
    for port in 1..=3 {
        owner(&mut rig, &tcp(7, port, FIN_ACK));
    }
    for port in 101..=105 {
        owner(&mut rig, &tcp(7, port, SYN));
    }
    // The end of a connection that nobody has seen.
    owner(&mut rig, &tcp(7, 201, FIN_ACK));

    let rows: Vec<u32> = rig.planner.services()["web"].members.values().map(|m| m.row).collect();
    let counted = |rig: &Rig| -> u32 { rows.iter().map(|&r| rig.bpf.backend(r).active()).sum() };
    assert_eq!(counted(&rig), 12, "by the programs");
    // A row that is written anew counts from nothing, until entries are counted.
    for &row in &rows {
        let backend = rig.bpf.backend(row);
        rig.apply(&[Op::Backend(
            row,
            Backend::new(
                backend.addr(),
                backend.hop(),
                backend.state(),
                backend.id(),
                backend.epoch(),
            ),
        )]);
    }
    assert_eq!(counted(&rig), 0);
    rig.bpf.recount().expect("tables").run(&[], &rows);
    assert_eq!(counted(&rig), 12, "by their entries");
}
