//! The planner against tables in vectors, with packets picked by the code the kernel runs.

mod one_dies;
mod routes;

use abi::{
    choice::Choice,
    hash::{self, Tuple},
    pick::{self, Phase},
    reason::Reason,
};
use config::model::{Backend, Forwarding, Port, Protocol, Scheduling, Source, Steering};
use proptest::prelude::*;

use super::*;
use crate::{
    datapath::{Capacity, Datapath, fake::Fake},
    nexthop::Hop,
};

const SEED: u64 = 5;
const DRAIN: Duration = Duration::from_secs(60);

fn fake(slots: u32) -> Fake {
    let capacity = Capacity {
        buckets: 256,
        frontends: 256,
        slots,
        backends: 256,
        egress: 8,
        flows: 8,
        lines: 0,
        blocks: 0,
        bitmaps: 0,
        filter6: 1,
        buckets6: 1,
        nat: 1,
        nat_ports: 0,
    };
    Fake::new(capacity, 1, SEED)
}

fn ip(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn vip(n: u8) -> IpAddr {
    IpAddr::from([203, 0, 113, n])
}

fn backend(n: u8, weight: u32, state: BackendStateOf) -> Backend {
    Backend { name: ip(n).to_string(), address: ip(n), weight, state, group: None, server_id: None }
}
use config::model::BackendState as BackendStateOf;

fn service(name: &str, front: u8, ports: &[u16], backends: &[u8]) -> Service {
    Service {
        name: name.to_owned(),
        source: Source::Api,
        addresses: vec![vip(front)],
        ports: ports
            .iter()
            .map(|&port| Port {
                name: port.to_string(),
                port,
                last: port,
                protocol: Protocol::Tcp,
                target_port: port,
                quic: false,
            })
            .collect(),
        forwarding: Forwarding::Ipip,
        steering: Steering::default(),
        backends: backends.iter().map(|&n| backend(n, 1, BackendStateOf::Active)).collect(),
        source_ranges: Vec::new(),
        source_routes: Vec::new(),
        parts: Vec::new(),
        part_of: None,
        drain_timeout: DRAIN,
        health_check: None,
    }
}

fn wanted(services: impl IntoIterator<Item = Service>) -> DesiredState {
    DesiredState {
        services: services.into_iter().map(|s| (s.name.clone(), Arc::new(s.divided()))).collect(),
        ..DesiredState::default()
    }
    .with_parts()
}

fn hops(all: impl IntoIterator<Item = u8>) -> BTreeMap<IpAddr, NextHop> {
    let hop = Hop {
        ifindex: 3,
        interface: "eth0".into(),
        dst_mac: [2, 0, 0, 0, 0, 1],
        src_mac: [2, 0, 0, 0, 0, 2],
        mtu: 1500,
        source: Some(ip(250)),
    };
    all.into_iter().map(|n| (ip(n), NextHop::Resolved(hop.clone()))).collect()
}

/// A planner and its tables.
struct Rig {
    fake: Fake,
    planner: Planner,
}

impl Rig {
    fn new() -> Self {
        Self::with_slots(40_000)
    }

    fn with_slots(slots: u32) -> Self {
        let fake = fake(slots);
        let planner = Planner::adopt(&fake, std::iter::empty(), Duration::ZERO);
        let mut rig = Self { fake, planner };
        rig.know_hops(Duration::ZERO);
        rig
    }

    fn know_hops(&mut self, now: Duration) {
        let ops = self.planner.set_hops(&hops(1..=200), &self.fake, now).unwrap();
        self.fake.apply(&ops).unwrap();
    }

    /// Another planner takes over the tables, as a daemon that starts anew; what drains does so until `drain`.
    fn adopt(&mut self, names: &[&str], now: Duration, drain: Duration) {
        self.planner = Planner::adopt(&self.fake, names.iter().copied(), drain);
        self.know_hops(now);
    }

    fn plan(&mut self, state: &DesiredState, at: u64) -> Vec<Op> {
        let ops = self.planner.plan(state, &self.fake, Duration::from_secs(at)).unwrap();
        self.fake.apply(&ops).unwrap();
        ops
    }

    fn settle(&mut self, at: u64) {
        let ops = self.planner.settle(&self.fake, Duration::from_secs(at)).unwrap();
        self.fake.apply(&ops).unwrap();
        self.planner.release();
    }

    /// The backend that a packet reaches.
    fn send(&self, front: u8, client: u16, phase: Phase) -> Result<IpAddr, Reason> {
        self.send_from(ip(99), front, client, phase)
    }

    /// As the program does it for services without a choice of their own.
    fn send_from(
        &self,
        src: IpAddr,
        front: u8,
        client: u16,
        phase: Phase,
    ) -> Result<IpAddr, Reason> {
        let view = self.fake.view();
        let tuple = Tuple {
            src: src.into(),
            dst: vip(front).into(),
            ports: u32::from(client.to_be()) | u32::from(80u16.to_be()) << 16,
            protocol: 6,
        };
        let key = FrontendKey::new(vip(front).into(), 80, 6);
        let (_, frontend) = pick::frontend(&view, &key).ok_or(Reason::NotOurs)?;
        let hash = hash::flow(&tuple, SEED);
        let unsettled = |of| pick::unsettled(&view, of, &tuple, hash, phase);
        let group = abi::routes::group(&view, frontend, tuple.src.hi(), tuple.src.lo());
        let found = match pick::Tables::frontend(&view, group) {
            None => pick::backend(&view, frontend, hash, || unsettled(frontend)),
            Some(group) => pick::backend(&view, group, hash, || unsettled(group)).or_else(|_| {
                let row = unsettled(frontend);
                Ok((row, pick::Tables::backend(&view, row).ok_or(Reason::NoBackend)?))
            }),
        };
        found.map(|(_, b)| b.addr().into())
    }

    fn open(&self, n: u16) -> Vec<IpAddr> {
        (0..n).map(|c| self.send(1, c, Phase::Opening).unwrap()).collect()
    }

    fn go_on(&self, n: u16) -> Vec<IpAddr> {
        (0..n).map(|c| self.send(1, c, Phase::Established).unwrap()).collect()
    }
}

#[test]
fn a_service_is_reached_and_another_address_is_not() {
    let mut rig = Rig::new();
    rig.plan(&wanted([service("web", 1, &[80], &[1, 2, 3])]), 0);
    let seen: BTreeSet<IpAddr> = rig.open(100).into_iter().collect();
    assert_eq!(seen, [ip(1), ip(2), ip(3)].into());
    assert_eq!(rig.send(2, 1, Phase::Opening), Err(Reason::NotOurs));
}

#[test]
fn the_same_state_again_changes_nothing() {
    let mut rig = Rig::new();
    rig.plan(&wanted([service("web", 1, &[80], &[1, 2])]), 0);
    assert_eq!(rig.plan(&wanted([service("web", 1, &[80], &[1, 2])]), 1), []);
}

#[test]
fn a_target_port_stands_in_the_frontend_and_moves_nothing_when_it_changes() {
    let mut rig = Rig::new();
    let with_target = |target_port| {
        let mut web = service("web", 1, &[80], &[1, 2, 3]);
        web.ports[0].target_port = target_port;
        wanted([web])
    };
    let key = FrontendKey::new(vip(1).into(), 80, 6);
    let mut before = None;
    for (target, port) in [(80, 0), (8080, 8080u16), (8081, 8081), (80, 0)] {
        rig.plan(&with_target(target), 0);
        rig.settle(0);
        let (_, frontend) = pick::frontend(&rig.fake.view(), &key).map(|(r, f)| (r, *f)).unwrap();
        assert_eq!(frontend.target_port(), port.to_be(), "{target}");
        let flows = rig.open(50);
        assert_eq!(*before.get_or_insert(flows.clone()), flows);
        assert_eq!(rig.plan(&with_target(target), 0), [], "{target} stands");
    }
}

#[test]
fn nothing_is_reachable_before_all_of_it_stands() {
    // Whatever the number of operations done, a packet finds a live backend or no service at all.
    let state = wanted([service("web", 1, &[80, 443], &[1, 2, 3])]);
    let total = Rig::new().plan(&state, 0).len() as u64;
    for done in 0..total {
        let mut rig = Rig::new();
        rig.fake.fail_at = Some(rig.fake.applied + done);
        let ops = rig.planner.plan(&state, &rig.fake, Duration::ZERO).unwrap();
        assert!(rig.fake.apply(&ops).is_err());
        for client in 0..50 {
            let got = rig.send(1, client, Phase::Opening);
            assert!(got.is_ok() || got == Err(Reason::NotOurs), "after {done}: {got:?}");
        }
    }
}

#[test]
fn a_new_backend_takes_new_flows_and_old_ones_stay() {
    let mut rig = Rig::new();
    rig.plan(&wanted([service("web", 1, &[80], &[1, 2, 3])]), 0);
    let before = rig.open(500);
    rig.plan(&wanted([service("web", 1, &[80], &[1, 2, 3, 4])]), 10);
    assert_eq!(rig.go_on(500), before, "established flows stay");
    assert!(rig.open(500).contains(&ip(4)));
    // Those that reopened have entries now; those that are new keep theirs.
    let after = rig.go_on(500);
    rig.settle(10 + 60);
    assert_eq!(rig.go_on(500), after);
    let service = &rig.planner.services()["web"];
    assert_eq!(rig.planner.slots_of(service, &rig.fake).0, 0, "settled");
}

#[test]
fn a_ring_that_grows_keeps_established_flows() {
    let mut rig = Rig::new();
    rig.plan(&wanted([service("web", 1, &[80], &[1, 2])]), 0);
    let before = rig.open(500);
    let size = rig.planner.services()["web"].ring.size;
    rig.plan(&wanted([service("web", 1, &[80], &[1, 2, 3])]), 10);
    assert!(rig.planner.services()["web"].ring.size > size);
    assert_eq!(rig.go_on(500), before);
    rig.settle(100);
    assert!(!rig.planner.services()["web"].ring.resizing);
}

#[test]
fn a_removed_backend_keeps_its_flows_until_the_drain_ends() {
    let mut rig = Rig::new();
    rig.plan(&wanted([service("web", 1, &[80], &[1, 2, 3])]), 0);
    let before = rig.open(300);
    rig.plan(
        &wanted([service("web", 1, &[80], &[1, 2, 3].map(|n| if n == 2 { 4 } else { n }))]),
        10,
    );
    assert_eq!(rig.go_on(300), before);
    assert!(!rig.open(300).contains(&ip(2)));
    rig.settle(70);
    assert!(!rig.go_on(300).contains(&ip(2)));
    assert!(!rig.planner.services()["web"].members.contains_key(&ip(2)));
}

#[test]
fn a_backend_that_is_down_moves_only_its_own_flows_with_one_store_each() {
    let mut rig = Rig::new();
    rig.plan(&wanted([service("web", 1, &[80], &[1, 2, 3, 4])]), 0);
    let before = rig.open(400);
    let ops = rig.planner.set_health("web", ip(2), true, &rig.fake, Duration::from_secs(1));
    assert!(matches!(ops[..], [Op::State(..)]), "{ops:?}");
    rig.fake.apply(&ops).unwrap();
    let during = rig.open(400);
    for (b, d) in before.iter().zip(&during) {
        if *b == ip(2) { assert_ne!(*d, ip(2)) } else { assert_eq!(b, d) }
    }
    // Back again: what went elsewhere meanwhile stays there, new flows come home.
    let ops = rig.planner.set_health("web", ip(2), false, &rig.fake, Duration::from_secs(2));
    rig.fake.apply(&ops).unwrap();
    assert_eq!(rig.go_on(400), during);
    assert_eq!(rig.open(400), before);
}

#[test]
fn who_is_connected_to_a_backend_whose_check_fails_stays_until_it_is_gone() {
    let mut rig = Rig::new();
    rig.plan(&wanted([service("web", 1, &[80], &[1, 2, 3, 4])]), 0);
    let before = rig.open(400);
    let ops = rig.planner.set_health("web", ip(2), true, &rig.fake, Duration::from_secs(1));
    rig.fake.apply(&ops).unwrap();
    assert_eq!(rig.go_on(400), before);
    assert!(rig.fake.flows.borrow().is_empty(), "and none needs an entry");
    let gone = BTreeMap::from([(ip(2), NextHop::Unresolved("no neighbour".into()))]);
    let ops = rig.planner.set_hops(&gone, &rig.fake, Duration::from_secs(2)).unwrap();
    rig.fake.apply(&ops).unwrap();
    for (b, n) in before.iter().zip(rig.go_on(400)) {
        if *b == ip(2) { assert_ne!(n, ip(2)) } else { assert_eq!(*b, n) }
    }
}

#[test]
fn with_every_backend_down_packets_are_dropped_for_that_reason() {
    let mut rig = Rig::new();
    rig.plan(&wanted([service("web", 1, &[80], &[1, 2])]), 0);
    for n in [1, 2] {
        let ops = rig.planner.set_health("web", ip(n), true, &rig.fake, Duration::ZERO);
        rig.fake.apply(&ops).unwrap();
    }
    assert_eq!(rig.send(1, 1, Phase::Opening), Err(Reason::NoBackend));
    rig.plan(&wanted([service("web", 1, &[80], &[])]), 1);
    assert_eq!(rig.send(1, 1, Phase::Opening), Err(Reason::NoBackend));
}

#[test]
fn removing_everything_leaves_empty_tables() {
    let mut rig = Rig::new();
    rig.plan(&wanted([service("web", 1, &[80, 0], &[1, 2]), service("api", 2, &[80], &[3])]), 0);
    rig.plan(&wanted([]), 1);
    rig.planner.release();
    assert_eq!(rig.planner.used(), (0, 0, 0));
    assert!((0..64).all(|i| rig.fake.vip_word(i) == 0));
    for i in 0..256 {
        assert!(
            rig.fake.bucket(i).words().iter().all(|&w| abi::table::Bucket::decode(w).is_none())
        );
    }
}

#[test]
fn a_table_that_is_full_says_which() {
    let mut rig = Rig::new();
    let ports: Vec<u16> = (1..=300).collect();
    let state = wanted([service("web", 1, &ports, &[1])]);
    assert_eq!(rig.planner.plan(&state, &rig.fake, Duration::ZERO), Err(Full("FRONTENDS")));
}

/// What a service wants beyond its ring is known to the next daemon as it stands, and given back with the service; words
/// that make no sense are left alone and written anew.
#[test]
fn the_words_of_a_choice_are_adopted() {
    let state = {
        let mut web = service("web", 1, &[80, 443], &[1, 2, 3]);
        web.steering.tcp_option = true;
        web.steering.track = true;
        for (id, backend) in (7..).zip(&mut web.backends) {
            backend.server_id = Some(id);
        }
        wanted([web])
    };
    let choice_of = |rig: &Rig| {
        let key = FrontendKey::new(vip(1).into(), 80, 6);
        let frontend = rig.fake.frontend(rig.fake.find(&key).unwrap());
        (frontend.choice().unwrap(), Choice::read(&rig.fake.view(), &frontend).unwrap())
    };
    let adopt = |rig: &mut Rig| rig.adopt(&["web"], Duration::ZERO, Duration::ZERO);
    let mut rig = Rig::new();
    rig.plan(&state, 0);
    let (before, used) = (choice_of(&rig), rig.planner.used());
    assert_eq!(before.1.ids, 10);
    adopt(&mut rig);
    assert_eq!(rig.planner.used(), used, "claimed once, though two rows name it");
    assert_eq!(rig.plan(&state, 1), []);
    assert_eq!(choice_of(&rig), before);

    // As many ids as there are not words in the arena.
    let at = before.0 + Choice::WORDS - 1;
    rig.fake.apply(&[Op::Words { offset: at, words: vec![u64::from(u32::MAX)] }]).unwrap();
    adopt(&mut rig);
    rig.plan(&state, 2);
    assert_eq!(choice_of(&rig).1, before.1);
    rig.plan(&wanted([]), 3);
    rig.planner.release();
    assert_eq!(rig.planner.used(), (0, 0, 0));
}

fn arbitrary_state() -> impl Strategy<Value = DesiredState> {
    let one = (
        prop::sample::subsequence(vec![80u16, 443, 0], 1..=3),
        prop::collection::btree_set(1u8..20, 0..6),
        prop::sample::select(vec![
            Forwarding::L2,
            Forwarding::Ipip,
            Forwarding::Gue,
            Forwarding::Geneve,
            Forwarding::Nat,
        ]),
        prop::sample::subsequence(
            vec!["192.0.2.0/24", "192.0.2.7/32", "198.51.100.0/24", "2001:db8::/32"],
            0..=4,
        ),
        prop::sample::select(vec![
            Steering::default(),
            Steering { affinity: Some(Duration::from_secs(60)), ..Steering::default() },
            Steering { scheduling: Scheduling::LeastConnections, ..Steering::default() },
            Steering { tcp_option: true, ..Steering::default() },
            Steering { quic_len: 3, track: true, ..Steering::default() },
        ]),
        prop::sample::subsequence(
            vec![(100u16, 200u16), (201, 201), (300, 400), (350, 360)],
            0..=4,
        ),
        routes::arbitrary(),
    );
    prop::collection::btree_map(1u8..6, one, 0..5).prop_map(|services| {
        wanted(services.into_iter().map(
            |(n, (ports, backends, forwarding, sources, steering, ranges, routed))| {
                let backends: Vec<u8> = backends.into_iter().collect();
                let mut s = service(&format!("s{n}"), n, &ports, &backends);
                s.forwarding = forwarding;
                s.steering = steering;
                routes::put(&mut s, &routed);
                if steering.names_servers() {
                    for (id, backend) in (5..).zip(&mut s.backends) {
                        backend.server_id = Some(id);
                    }
                }
                for (first, last) in ranges {
                    let udp = Protocol::Udp;
                    // The last one lies within the one before, and is of another protocol.
                    let protocol = if first == 350 { udp } else { Protocol::Tcp };
                    let name = format!("r{first}");
                    s.ports.push(Port { name, port: first, last, protocol, ..s.ports[0].clone() });
                }
                s.source_ranges = sources.iter().map(|net| net.parse().unwrap()).collect();
                s
            },
        ))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Backends come, drain and go, a change upon the other, and the daemon starts anew; some connections speak in between and others do not.
    /// All of them stay where they are until drain timeouts are over.
    #[test]
    fn connections_outlive_any_row_of_changes(
        steps in prop::collection::vec(
            (prop::collection::vec(0..3u8, 6), any::<u64>(), any::<bool>()),
            2..7,
        ),
    ) {
        let mut rig = Rig::new();
        let mut opened: Vec<IpAddr> = Vec::new();
        for (second, (states, speak, restart)) in steps.into_iter().enumerate() {
            let now = Duration::from_secs(second as u64);
            let mut own = service("a", 1, &[80], &[1]);
            own.backends.extend((2..).zip(states).filter_map(|(n, state)| match state {
                0 => None,
                1 => Some(backend(n, 1, BackendStateOf::Draining)),
                _ => Some(backend(n, 1, BackendStateOf::Active)),
            }));
            if restart {
                rig.adopt(&["a"], now, now);
            }
            rig.plan(&wanted([own]), second as u64);
            for (client, &server) in (0u16..).zip(&opened) {
                if speak >> (client % 64) & 1 != 0 {
                    prop_assert_eq!(rig.send(1, client, Phase::Established), Ok(server));
                }
            }
            let next = opened.len() as u16;
            opened.extend((next..next + 60).map(|c| rig.send(1, c, Phase::Opening).unwrap()));
        }
        for (client, &server) in (0u16..).zip(&opened) {
            prop_assert_eq!(rig.send(1, client, Phase::Established), Ok(server));
        }
    }
}

/// A ring gets the size that the number of backends asks for, as on every other node, but not while flows of the
/// ring before would lose their backend.
#[test]
fn a_ring_that_is_young_waits_for_another_size() {
    let of = |backends: &[u8]| wanted([service("a", 1, &[80], backends)]);
    let many: Vec<u8> = (1..=12).collect();
    let mut rig = Rig::new();
    let size = |rig: &Rig| rig.planner.services()["a"].ring.size;
    rig.plan(&of(&[1, 2]), 0);
    let servers = rig.open(200);
    assert_eq!(size(&rig), 251);
    rig.plan(&of(&[1, 2, 3]), 1);
    rig.plan(&of(&many), 2);
    assert_eq!(size(&rig), 1021, "the ring of three");
    assert_eq!(rig.go_on(200), servers);
    rig.settle(2 + DRAIN.as_secs());
    assert_eq!(size(&rig), 4093);
    let mut other = Rig::new();
    other.plan(&of(&many), 0);
    let slots = |rig: &Rig| {
        let ring = rig.planner.services()["a"].ring;
        let slots = (ring.offset..ring.offset + ring.size)
            .map(|i| Slot::from_word(rig.fake.slot(i)).current);
        slots.map(|row| IpAddr::from(rig.fake.backend(row).addr())).collect::<Vec<_>>()
    };
    assert_eq!(slots(&rig), slots(&other));
    rig.settle(3 + 2 * DRAIN.as_secs());
    assert_eq!((size(&rig), rig.planner.services()["a"].ring.resizing), (4093, false));
}

/// A change cut short after any of its steps: no address's word for port 0 ever leads to another service's row.
#[test]
fn a_row_that_an_address_still_names_is_nobody_elses() {
    let first = wanted([service("a", 1, &[0, 80], &[1]), service("b", 1, &[443], &[2])]);
    let second = wanted([service("b", 1, &[443], &[2])]);
    let third = wanted([
        service("b", 1, &[443, 444, 445, 446], &[2]),
        service("c", 2, &[80, 81, 82], &[3]),
    ]);
    let steps = {
        let mut rig = Rig::new();
        rig.plan(&first, 0);
        rig.planner.plan(&second, &rig.fake, Duration::from_secs(1)).unwrap().len()
    };
    for cut in 0..=steps {
        let mut rig = Rig::new();
        rig.plan(&first, 0);
        let ops = rig.planner.plan(&second, &rig.fake, Duration::from_secs(1)).unwrap();
        rig.fake.apply(&ops[..cut]).unwrap();
        rig.planner = Planner::adopt(&rig.fake, ["b"].into_iter(), Duration::from_secs(2));
        let ops = rig.planner.plan(&third, &rig.fake, Duration::from_secs(2)).unwrap();
        for op in ops {
            rig.fake.apply(&[op]).unwrap();
            let Some(row) = rig.fake.find(&FrontendKey::vip(vip(1).into())) else { continue };
            if let Some(any) = rig.fake.frontend(row).any_port(6) {
                let key = rig.fake.frontend(any).key();
                assert_eq!(key, FrontendKey::new(vip(1).into(), 0, 6), "cut after {cut}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// From any state, cut short anywhere and adopted by another process, the wanted one results.
    #[test]
    fn any_actual_state_becomes_the_wanted_one(
        first in arbitrary_state(),
        second in arbitrary_state(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut rig = Rig::new();
        rig.plan(&first, 0);
        let ops = rig.planner.plan(&second, &rig.fake, Duration::from_secs(1)).unwrap();
        let done = if ops.is_empty() { 0 } else { cut.index(ops.len() + 1) };
        rig.fake.apply(&ops[..done]).unwrap();

        let names: Vec<&str> = second.services.keys().map(String::as_str).collect();
        rig.adopt(&names, Duration::from_secs(2), Duration::from_secs(2));
        rig.plan(&second, 2);
        rig.settle(1000);
        rig.settle(2000);

        routes::check(&rig, &second)?;
        let whole = || second.services.iter().filter(|(_, spec)| spec.part_of.is_none());
        for (name, spec) in whole() {
            let front = name[1..].parse::<u8>().unwrap();
            let has80 = spec.ports.iter().any(|p| p.port == 80);
            let got = rig.send(front, 7, Phase::Opening);
            match (has80, spec.own_backends().count() == 0) {
                (false, _) => prop_assert_eq!(got, Err(Reason::NotOurs)),
                (true, _) if !spec.source_routes.is_empty() => {}
                (true, true) => prop_assert_eq!(got, Err(Reason::NoBackend)),
                (true, false) => prop_assert!(got.is_ok(), "{}: {:?}", name, got),
            }
            for key in super::services::keys(spec) {
                let row = rig.fake.find(&key);
                prop_assert!(row.is_some(), "{} {:?}", name, key);
                prop_assert_eq!(rig.fake.frontend(row.unwrap()).mode(), super::services::mode(spec.forwarding));
                let frontend = rig.fake.frontend(row.unwrap());
                let view = rig.fake.view();
                let choice = Choice::read(&view, &frontend);
                let nat = spec.forwarding == Forwarding::Nat;
                let wants = match nat {
                    true => Steering { track: false, ..spec.steering },
                    false => spec.steering,
                };
                prop_assert_eq!(choice.is_some(), wants != Steering::default());
                if let Some(choice) = choice {
                    prop_assert_eq!(choice.nat, nat);
                    prop_assert_eq!(choice.keeps(), wants.affinity.is_some() || wants.keeps() && !nat);
                    prop_assert_eq!(choice.quic_len, spec.steering.quic_len);
                    let at = frontend.choice().unwrap() + Choice::WORDS;
                    for backend in &spec.backends {
                        let Some(id) = backend.server_id else { continue };
                        prop_assert!(u32::from(id) < choice.ids);
                        let row = rig.fake.slot(at + u32::from(id)) as u32 - 1;
                        prop_assert_eq!(IpAddr::from(rig.fake.backend(row).addr()), backend.address);
                    }
                }
                for (number, protocol) in [(6, Protocol::Tcp), (17, Protocol::Udp)] {
                    for port in [99, 100, 200, 201, 202, 300, 349, 350, 360, 361, 400, 401] {
                        let one = |p: &Port| p.protocol == protocol && (p.port..=p.last).contains(&port);
                        let any = |p: &Port| p.protocol == protocol && p.port == 0;
                        let own = spec.ports.iter().find(|p| one(p) && p.is_range());
                        let own = own.or_else(|| spec.ports.iter().find(|p| any(p)));
                        let vip = rig.fake.find(&FrontendKey::vip(key.addr)).unwrap();
                        let vip = rig.fake.frontend(vip);
                        let row = pick::other_port(&view, &vip, u16::to_be(port), number);
                        let row = row.map(|row| rig.fake.frontend(row).key());
                        prop_assert_eq!(row, own.map(|p| super::services::key(key.addr.into(), p)), "{}", port);
                    }
                }
                let word = frontend.ranges();
                prop_assert_eq!(word != 0, !spec.source_ranges.is_empty());
                for client in ["192.0.2.7", "192.0.3.7", "198.51.100.255", "0.0.0.0"] {
                    let client: IpAddr = client.parse().unwrap();
                    let a = abi::addr::Addr::from(client);
                    let may = word == 0
                        || abi::ranges::contains(&rig.fake.view(), word, a.hi(), a.lo());
                    let listed = spec.source_ranges.iter().any(|net| net.contains(&client));
                    prop_assert_eq!(may, listed || spec.source_ranges.is_empty());
                }
            }
            let rows: BTreeSet<IpAddr> = rig.planner.services()[name.as_str()].members.keys().copied().collect();
            let want: BTreeSet<IpAddr> = spec.own_backends().map(|b| b.address).collect();
            prop_assert_eq!(rows, want);
        }
        let vips: BTreeSet<IpAddr> = whole().map(|(name, _)| vip(name[1..].parse().unwrap())).collect();
        let mut filter = Vec::new();
        let announced: Vec<IpAddr> = rig.planner.nat_addresses().collect();
        let known = vips.iter().chain(&announced).map(|&a| a.into());
        super::vips::plan_filter(known, &rig.fake, &mut filter);
        prop_assert_eq!(filter, vec![], "a bit for each VIP and NAT address and no other");
        for address in announced {
            let row = rig.fake.find(&FrontendKey::vip(address.into()));
            prop_assert!(row.is_some_and(|row| rig.fake.frontend(row).is_nat()));
        }
        for vip in vips {
            let view = rig.fake.view();
            prop_assert!(abi::pick::may_be_vip(&view, vip.into(), pick::Tables::salt(&view)).is_some());
        }
        for n in 1..6u8 {
            if !second.services.contains_key(&format!("s{n}")) {
                prop_assert_eq!(rig.fake.find(&FrontendKey::vip(vip(n).into())), None);
            }
        }
        prop_assert_eq!(rig.plan(&second, 3000), vec![]);
    }
}
