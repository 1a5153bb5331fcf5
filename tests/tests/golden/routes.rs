//! `source_routes`: clients that go to a group of a service's backends.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use abi::reason::Reason;
use config::model::{
    Backend, BackendState, Forwarding, Scheduling, Service, SourceRoute, Steering,
};
use lb_tests::rig::{INGRESS, Rig, service};

use crate::{
    icmp::error,
    odd::fragments,
    packets::{DROP, L4, TX, VIP4, VIP6, frame4, frame6},
};

const OWN: [&str; 3] = ["10.0.1.1", "10.0.1.2", "10.0.1.3"];
const CANARY: [&str; 3] = ["10.0.9.1", "10.0.9.2", "10.0.9.3"];
const INSIDE: &str = "10.0.8.1";

/// Clients of the group `canary`, but for some of them, who are of the group `inside`.
fn web(forwarding: Forwarding) -> Service {
    let mut web = service("web", &[VIP4, VIP6], forwarding, &OWN);
    let route = |prefixes: &[&str], group: &str| SourceRoute {
        prefixes: prefixes.iter().map(|net| net.parse().unwrap()).collect(),
        group: group.to_owned(),
    };
    web.source_routes = vec![
        route(&["198.51.100.0/24", "2001:db8:9::/48"], "canary"),
        route(&["198.51.100.128/25", "2001:db8:9:1::/64"], "inside"),
    ];
    let of = |group: &'static str| {
        let sample = web.backends[0].clone();
        move |address: &&str| Backend {
            name: (*address).to_owned(),
            address: address.parse().unwrap(),
            group: Some(group.to_owned()),
            ..sample.clone()
        }
    };
    let groups: Vec<Backend> =
        CANARY.iter().map(of("canary")).chain([INSIDE].iter().map(of("inside"))).collect();
    web.backends.extend(groups);
    web
}

/// The backend that gets a packet; `None`: it is dropped for want of one.
fn owner(rig: &mut Rig, frame: &[u8]) -> Option<IpAddr> {
    let before = rig.packets_of_backends();
    let got = rig.run(frame);
    if got.reason == Reason::NoBackend {
        assert_eq!(got.action, DROP);
        return None;
    }
    assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
    let after = rig.packets_of_backends();
    let moved: Vec<IpAddr> = after.keys().filter(|a| before[a] != after[a]).copied().collect();
    assert_eq!(moved.len(), 1, "one backend has got it");
    Some(moved[0])
}

fn is_of(owner: Option<IpAddr>, group: &[&str]) -> bool {
    owner.is_some_and(|owner| group.iter().any(|a| *a == owner.to_string()))
}

/// Addresses of both families: of nobody's, of `canary` and of `inside`.
fn clients(n: u8) -> [([String; 2], &'static [&'static str]); 3] {
    [
        ([format!("192.0.2.{n}"), format!("2001:db8:8::{n:x}")], &OWN),
        ([format!("198.51.100.{}", n & 127), format!("2001:db8:9:2::{n:x}")], &CANARY),
        ([format!("198.51.100.{}", n | 128), format!("2001:db8:9:1::{n:x}")], &[INSIDE]),
    ]
}

fn frame(client: &str, l4: L4, payload: &[u8]) -> Vec<u8> {
    match client.contains(':') {
        false => frame4(client, VIP4, l4, 64, payload),
        true => frame6(client, VIP6, l4, 64, payload),
    }
}

#[test]
fn a_client_goes_to_the_group_of_its_longest_prefix() {
    for forwarding in [Forwarding::Ipip, Forwarding::Gue, Forwarding::Geneve, Forwarding::GueTwice]
    {
        let mut rig = Rig::with(vec![web(forwarding)], INGRESS, 1500);
        let mut seen = BTreeSet::new();
        for n in 1..=40 {
            for (clients, group) in clients(n) {
                for client in clients {
                    let first = owner(&mut rig, &frame(&client, L4::Syn(80), b""));
                    assert!(is_of(first, group), "{client}: {first:?}");
                    let next = owner(&mut rig, &frame(&client, L4::Ack(80), b"hello"));
                    assert_eq!(next, first);
                    assert!(is_of(owner(&mut rig, &frame(&client, L4::Udp(443), b"")), group));
                    seen.extend(first);
                }
            }
        }
        assert_eq!(seen.len(), 7, "all backends are used");
        let (front, back) = rig.counts("web");
        assert_eq!(front.packets, 40 * 3 * 2 * 3, "at the service's address and port");
        assert_eq!(back.packets, 40 * 2 * 3);
        let (front, back) = rig.counts("web/canary");
        assert_eq!((front.packets, back.packets), (0, 40 * 2 * 3));
    }
}

#[test]
fn frames_that_keep_their_header() {
    let mut web = web(Forwarding::L2);
    web.addresses.truncate(1);
    let mut rig = Rig::with(vec![web], INGRESS, 1500);
    for n in 1..=20 {
        for ([client, _], group) in clients(n) {
            assert!(is_of(owner(&mut rig, &frame(&client, L4::Syn(80), b"")), group), "{client}");
        }
    }
}

/// Whatever its shape, what is of a flow or about it goes to its backend.
#[test]
fn fragments_and_errors_follow() {
    for forwarding in [Forwarding::Ipip, Forwarding::GueTwice] {
        let mut rig = Rig::with(vec![web(forwarding)], INGRESS, 1500);
        for n in 1..=20 {
            for client in clients(n).into_iter().flat_map(|(clients, _)| clients) {
                let v4 = !client.contains(':');
                let udp = owner(&mut rig, &frame(&client, L4::Udp(443), b""));
                for part in fragments(&frame(&client, L4::Udp(443), &[5; 2000]), u16::from(n), 800)
                {
                    assert_eq!(owner(&mut rig, &part), udp, "{client}");
                }
                let ack = frame(&client, L4::Ack(80), b"");
                let tcp = owner(&mut rig, &ack);
                let (kind, code) = if v4 { (3, 4) } else { (2, 0) };
                let about = error(&ack, kind, code, 1400, 8);
                assert_eq!(owner(&mut rig, &about), tcp, "{client}");
                if !v4 {
                    // Behind destination options.
                    let mut options = ack[..54].to_vec();
                    options[20] = 60;
                    let len = (ack.len() - 54 + 8) as u16;
                    options[18..20].copy_from_slice(&len.to_be_bytes());
                    options.extend([6, 0, 1, 4, 0, 0, 0, 0]);
                    options.extend(&ack[54..]);
                    assert_eq!(owner(&mut rig, &options), tcp, "{client}");
                }
            }
        }
    }
}

/// One that may not use the service at all is refused, whatever its route.
#[test]
fn who_may_use_it_is_asked_first() {
    let mut web = web(Forwarding::Ipip);
    web.source_ranges = vec!["198.51.100.0/25".parse().unwrap()];
    let mut rig = Rig::with(vec![web], INGRESS, 1500);
    let of = |client: &str| frame(client, L4::Syn(80), b"");
    assert!(is_of(owner(&mut rig, &of("198.51.100.7")), &CANARY));
    for client in ["198.51.100.200", "192.0.2.1"] {
        assert_eq!(rig.run(&of(client)).reason, Reason::SourceRefused);
    }
}

fn set_down(rig: &mut Rig, down: bool) {
    for address in CANARY {
        let address = address.parse().unwrap();
        let now = Duration::from_secs(1);
        let ops = rig.planner.set_health("web/canary", address, down, &rig.bpf, now);
        rig.apply(&ops);
    }
}

/// A group that takes nothing leaves its clients to the service; a connection stays where it began, and its
/// fragments and errors with it, also when the group is back.
#[test]
fn a_group_that_is_down() {
    let plain = Steering::default();
    let steerings = [
        plain,
        Steering { track: true, ..plain },
        Steering { affinity: Some(Duration::from_secs(60)), ..plain },
        Steering { scheduling: Scheduling::LeastConnections, ..plain },
    ];
    for steering in steerings {
        let mut web = web(Forwarding::Ipip);
        web.steering = steering;
        let mut rig = Rig::with(vec![web.clone()], INGRESS, 1500);
        let port = |mut frame: Vec<u8>, port: u16| {
            frame[34..36].copy_from_slice(&port.to_be_bytes());
            frame
        };
        let of = |n: u8| format!("198.51.100.{n}");
        let send = |rig: &mut Rig, n: u8, l4: L4, from: u16| {
            owner(rig, &port(frame(&of(n), l4, b""), from))
        };
        let before: Vec<_> = (1..60).map(|n| send(&mut rig, n, L4::Syn(80), 1000)).collect();
        assert!(before.iter().all(|&b| is_of(b, &CANARY)));
        set_down(&mut rig, true);
        for (n, &server) in (1..60).zip(&before) {
            assert_eq!(send(&mut rig, n, L4::Ack(80), 1000), server, "{steering:?}");
        }
        // Other clients, so that affinity has nothing to say.
        let during: Vec<_> = (60..120).map(|n| send(&mut rig, n, L4::Syn(80), 2000)).collect();
        assert!(during.iter().all(|&b| is_of(b, &OWN)), "{steering:?}");
        assert!(during.iter().collect::<BTreeSet<_>>().len() > 1);
        for down in [true, false] {
            set_down(&mut rig, down);
            for (n, &server) in (60..120).zip(&during) {
                let ack = port(frame(&of(n), L4::Ack(80), b""), 2000);
                assert_eq!(owner(&mut rig, &ack), server, "{steering:?}, down: {down}");
                let about = error(&ack, 3, 4, 1400, 8);
                assert_eq!(owner(&mut rig, &about), server, "{steering:?}, down: {down}");
            }
        }
        let next = (120..128).map(|n| send(&mut rig, n, L4::Syn(80), 3000)).collect::<Vec<_>>();
        assert!(next.iter().all(|&b| is_of(b, &CANARY)), "{steering:?}: {next:?}");

        // Drained, and without weight, new ones go to the service, too.
        for weight in [false, true] {
            for backend in &mut web.backends {
                let canary = backend.group.as_deref() == Some("canary");
                backend.state = BackendState::Active;
                backend.weight = 1;
                match (canary, weight) {
                    (true, true) => backend.weight = 0,
                    (true, false) => backend.state = BackendState::Draining,
                    _ => {}
                }
            }
            rig.fill(vec![web.clone()], INGRESS, 1500);
            let client = if weight { 5 } else { 6 };
            let new = port(frame4("198.51.100.0", VIP4, L4::Syn(80), 64, b""), 5000 + client);
            assert!(is_of(owner(&mut rig, &new), &OWN), "{steering:?}");
        }
    }
}

/// A route that comes takes its clients at once; where every connection has an entry, those that are open stay.
#[test]
fn routes_that_come_and_go() {
    for track in [false, true] {
        let mut with = web(Forwarding::Ipip);
        with.steering.track = track;
        let mut without = with.clone();
        without.source_routes.clear();
        without.backends.retain(|backend| backend.group.is_none());
        let mut rig = Rig::with(vec![without.clone()], INGRESS, 1500);
        let all = |rig: &mut Rig, net: &str, l4: fn(u16) -> L4| -> Vec<_> {
            let client = |n: u8| format!("{net}.{n}");
            (1..60).map(|n| owner(rig, &frame(&client(n), l4(80), b""))).collect()
        };
        let routed = all(&mut rig, "198.51.100", L4::Syn);
        let others = all(&mut rig, "192.0.2", L4::Syn);
        rig.fill(vec![with], INGRESS, 1500);
        let after = all(&mut rig, "198.51.100", L4::Ack);
        if track {
            assert_eq!(after, routed);
        } else {
            assert!(after.iter().all(|&b| is_of(b, &CANARY)));
        }
        assert_eq!(all(&mut rig, "192.0.2", L4::Ack), others);
        assert!(all(&mut rig, "198.51.100", L4::Syn).iter().all(|&b| is_of(b, &CANARY)));
        let canary = all(&mut rig, "198.51.100", L4::Ack);
        assert!(canary.iter().all(|&b| is_of(b, &CANARY)));
        rig.fill(vec![without], INGRESS, 1500);
        assert_eq!(all(&mut rig, "198.51.100", L4::Ack), canary, "it drains");
        for n in 60..120 {
            let client = format!("198.51.100.{n}");
            let began = owner(&mut rig, &frame(&client, L4::Syn(80), b""));
            assert!(is_of(began, &OWN));
            assert_eq!(owner(&mut rig, &frame(&client, L4::Ack(80), b"")), began);
        }
        assert_eq!(all(&mut rig, "192.0.2", L4::Ack), others);
    }
}

/// Nobody is left: neither the group nor the service.
#[test]
fn with_every_backend_down() {
    let mut web = web(Forwarding::Ipip);
    web.backends.retain(|backend| backend.group.is_some());
    let mut rig = Rig::with(vec![web], INGRESS, 1500);
    let routed = frame("198.51.100.7", L4::Syn(80), b"");
    assert!(is_of(owner(&mut rig, &routed), &CANARY));
    assert_eq!(owner(&mut rig, &frame("192.0.2.7", L4::Syn(80), b"")), None);
    set_down(&mut rig, true);
    assert_eq!(owner(&mut rig, &routed), None);
}

/// A packet that names its server goes there, whatever its client: it may have changed its address.
#[test]
fn a_server_that_is_named_comes_first() {
    let mut web = web(Forwarding::Ipip);
    web.steering.udp_header = true;
    for (id, backend) in (1..).zip(&mut web.backends) {
        backend.server_id = Some(id);
    }
    let servers: Vec<IpAddr> = web.backends.iter().map(|backend| backend.address).collect();
    let mut rig = Rig::with(vec![web], INGRESS, 1500);
    for (clients, group) in clients(7) {
        for client in clients {
            for (id, server) in (1..).zip(&servers) {
                let named = frame(&client, L4::Udp(443), &[0x4c, 0x42, 1, 0, 0, 0, 0, id, 5]);
                assert_eq!(owner(&mut rig, &named), Some(*server), "{client}");
            }
            let nobody = frame(&client, L4::Udp(443), &[0x4c, 0x42, 1, 0, 0, 0, 0, 99, 5]);
            assert!(is_of(owner(&mut rig, &nobody), group), "{client}");
        }
    }
}

/// While the slots of a group move, a segment names the group's other backend.
#[test]
fn a_second_chance_is_of_the_group() {
    let mut before = web(Forwarding::GueTwice);
    let all = before.clone();
    before.backends.retain(|backend| backend.name != CANARY[2]);
    let mut rig = Rig::with(vec![before], INGRESS, 1500);
    let ack = |n: u8| frame(&format!("198.51.100.{n}"), L4::Ack(80), b"x");
    let owners: Vec<_> = (1..120).map(|n| owner(&mut rig, &ack(n))).collect();
    rig.fill(vec![all], INGRESS, 1500);
    let mut named = 0;
    for (n, &server) in (1..120).zip(&owners) {
        assert_eq!(owner(&mut rig, &ack(n)), server);
        let got = rig.run(&ack(n));
        let gue = 14 + 20 + 8;
        if got.frame[gue] != 0 {
            named += 1;
            let other: [u8; 4] = got.frame[gue + 8..gue + 12].try_into().unwrap();
            let other = Some(IpAddr::from(other));
            assert!(is_of(other, &CANARY) && other != server, "{other:?}, not {server:?}");
        }
    }
    assert!(named > 10, "{named} of 119");
}
