//! What follows from what the kernel tells, without a kernel.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use proptest::{collection::vec, prelude::*};
use tokio::time::Instant;

use super::{
    Hop, NextHop,
    fib::{Action, Certainty, Fib, Path, Route, Table, Way},
    state::{Event, Neighbour, Routes, Snapshot, State},
};
use crate::links::{Address, Link};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(index: u32) -> Link {
    Link {
        index,
        name: format!("eth{index}"),
        kind: "ethernet".to_owned(),
        driver: None,
        mac: Some([2, 0, 0, 0, 1, index as u8]),
        mtu: 1500,
        up: true,
        running: true,
        master: None,
        lower: None,
        rx_queues: 1,
        tx_queues: 1,
        xdp: Vec::new(),
    }
}

fn address(index: u32, text: &str, prefix_len: u8) -> Address {
    Address { index, address: ip(text), prefix_len, global: true, avoid: false }
}

fn route(prefix: &str, paths: &[(u32, Option<&str>)]) -> Route {
    let path = |&(ifindex, gateway): &(u32, Option<&str>)| Path {
        ifindex,
        gateway: gateway.map(ip),
        weight: 1,
        dead: false,
    };
    Route {
        table: Table::Main,
        prefix: prefix.parse().unwrap(),
        metric: 0,
        way: Way {
            action: Action::Forward(paths.iter().map(path).collect()),
            mtu: None,
            source: None,
        },
    }
}

fn fib(routes: impl IntoIterator<Item = Route>) -> Routes {
    let mut fib = Fib::default();
    for route in routes {
        fib.load(route);
    }
    Routes::Copied(fib)
}

/// eth1 with 10.0.1.1/24, eth2 with 10.0.2.1/24, both networks on link.
fn snapshot() -> Snapshot {
    let addresses = [address(1, "10.0.1.1", 24), address(2, "10.0.2.1", 24)];
    Snapshot {
        links: [1, 2].map(|index| (index, link(index))).into(),
        addresses: addresses.map(|a| ((a.index, a.address), a)).into(),
        neighbours: HashMap::new(),
        routes: fib([route("10.0.1.0/24", &[(1, None)]), route("10.0.2.0/24", &[(2, None)])]),
    }
}

/// A state with everything that it told.
struct Fixture {
    state: State,
    known: BTreeMap<IpAddr, NextHop>,
    now: Instant,
}

impl Fixture {
    fn new(snapshot: Snapshot, targets: &[&str]) -> Self {
        let now = Instant::now();
        let mut fixture = Self { state: State::default(), known: BTreeMap::new(), now };
        fixture.state.load(snapshot, now);
        fixture.state.set_targets(&targets.iter().map(|target| ip(target)).collect());
        fixture.settle();
        fixture
    }

    /// Works off all and returns what changed.
    fn settle(&mut self) -> BTreeMap<IpAddr, NextHop> {
        let mut changed = BTreeMap::new();
        while self.state.is_dirty() {
            changed.extend(self.state.resolve(2, self.now));
        }
        self.known.extend(changed.clone());
        changed
    }

    fn apply(&mut self, event: Event) -> Certainty {
        let certainty = self.state.apply(event, self.now);
        self.settle();
        certainty
    }

    fn neighbour(&mut self, index: u32, address: &str, neighbour: Option<Neighbour>) {
        assert_eq!(self.apply(Event::Neighbour((index, ip(address)), neighbour)), Certainty::Exact);
    }

    fn hop(&self, target: &str) -> &Hop {
        match &self.known[&ip(target)] {
            NextHop::Resolved(hop) => hop,
            other => panic!("{target} is {other:?}"),
        }
    }

    fn reason(&self, target: &str) -> &str {
        match &self.known[&ip(target)] {
            NextHop::Unresolved(reason) => reason,
            other => panic!("{target} is {other:?}"),
        }
    }

    fn probes(&mut self) -> Vec<(u32, IpAddr)> {
        self.state.take_probes(self.now, 100)
    }
}

#[test]
fn an_unknown_neighbour_is_probed_until_it_answers() {
    let mut fixture = Fixture::new(snapshot(), &["10.0.1.2"]);
    assert_eq!(fixture.reason("10.0.1.2"), "waiting for the MAC address of 10.0.1.2 on eth1");
    assert_eq!(fixture.probes(), [(1, ip("10.0.1.2"))]);
    assert_eq!(fixture.probes(), [], "not at once again");
    fixture.now += Duration::from_millis(100);
    assert_eq!(fixture.probes(), [(1, ip("10.0.1.2"))]);

    fixture.neighbour(1, "10.0.1.2", Some(Neighbour::Known(MAC)));
    let expected = Hop {
        ifindex: 1,
        interface: "eth1".into(),
        dst_mac: MAC,
        src_mac: [2, 0, 0, 0, 1, 1],
        mtu: 1500,
        source: Some(ip("10.0.1.1")),
    };
    assert_eq!(*fixture.hop("10.0.1.2"), expected);
    assert_eq!(fixture.state.next_probe(), None);
}

#[test]
fn a_neighbour_that_fails_is_told_once_and_asked_on() {
    let mut fixture = Fixture::new(snapshot(), &["10.0.1.2"]);
    fixture.neighbour(1, "10.0.1.2", Some(Neighbour::Known(MAC)));
    fixture.neighbour(1, "10.0.1.2", Some(Neighbour::Failed));
    assert_eq!(fixture.reason("10.0.1.2"), "10.0.1.2 does not answer ARP on eth1");
    assert_eq!(fixture.probes(), [(1, ip("10.0.1.2"))]);

    fixture.known.clear();
    fixture.neighbour(1, "10.0.1.2", Some(Neighbour::Incomplete));
    fixture.neighbour(1, "10.0.1.2", Some(Neighbour::Failed));
    fixture.neighbour(1, "10.0.1.2", None);
    assert!(fixture.known.is_empty(), "nothing new");
    assert!(fixture.state.next_probe().is_some());
}

#[test]
fn a_stale_neighbour_serves_and_is_confirmed() {
    let mut fixture = Fixture::new(snapshot(), &["10.0.1.2"]);
    fixture.neighbour(1, "10.0.1.2", Some(Neighbour::Known(MAC)));
    fixture.known.clear();
    fixture.neighbour(1, "10.0.1.2", Some(Neighbour::Stale(MAC)));
    assert!(fixture.known.is_empty(), "nothing changed for packets");
    fixture.now += Duration::from_secs(5);
    assert_eq!(fixture.probes(), [(1, ip("10.0.1.2"))]);
    fixture.now += Duration::from_secs(29);
    assert_eq!(fixture.probes(), []);
    fixture.now += Duration::from_secs(1);
    assert_eq!(fixture.probes(), [(1, ip("10.0.1.2"))]);
}

#[test]
fn nobody_is_probed_for_targets_that_are_gone() {
    let mut fixture = Fixture::new(snapshot(), &["10.0.1.2", "10.0.1.3"]);
    fixture.state.set_targets(&BTreeSet::from([ip("10.0.1.3")]));
    assert_eq!(fixture.probes(), [(1, ip("10.0.1.3"))]);
    fixture.state.set_targets(&BTreeSet::new());
    assert_eq!(fixture.state.next_probe(), None);
}

#[test]
fn a_gateway_is_probed_once_for_all_behind_it() {
    let mut snapshot = snapshot();
    snapshot.routes = fib([route("0.0.0.0/0", &[(1, Some("10.0.1.254"))])]);
    let mut fixture = Fixture::new(snapshot, &["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    assert_eq!(fixture.probes(), [(1, ip("10.0.1.254"))]);
    fixture.known.clear();
    fixture.neighbour(1, "10.0.1.254", Some(Neighbour::Known(MAC)));
    assert_eq!(fixture.known.len(), 3);
}

#[test]
fn mtu_and_source_of_the_route_come_first() {
    let mut snapshot = snapshot();
    let mut special = route("192.0.2.0/24", &[(1, Some("10.0.1.254"))]);
    special.way.mtu = Some(1400);
    special.way.source = Some(ip("10.0.2.1"));
    let mut jumbo = route("198.51.100.0/24", &[(1, Some("10.0.1.254"))]);
    jumbo.way.mtu = Some(9000);
    snapshot.routes = fib([special, jumbo]);
    snapshot.neighbours.insert((1, ip("10.0.1.254")), Neighbour::Known(MAC));
    let fixture = Fixture::new(snapshot, &["192.0.2.1", "198.51.100.1"]);
    let hop = fixture.hop("192.0.2.1");
    assert_eq!((hop.mtu, hop.source), (1400, Some(ip("10.0.2.1"))));
    assert_eq!(fixture.hop("198.51.100.1").mtu, 1500, "more than the link takes does not fit");
}

#[test]
fn the_source_is_chosen_as_the_kernel_would() {
    let known = Some(Neighbour::Known(MAC));
    for (addresses, expected) in [
        // In the next hop's network, though another one is smaller.
        (vec![address(1, "9.0.0.1", 8), address(1, "10.0.1.1", 24)], Some("10.0.1.1")),
        // None is: any of the link; not one to avoid if there is another.
        (
            vec![Address { avoid: true, ..address(1, "9.0.0.1", 8) }, address(1, "9.0.0.2", 8)],
            Some("9.0.0.2"),
        ),
        (vec![Address { avoid: true, ..address(1, "9.0.0.1", 8) }], Some("9.0.0.1")),
        // None on the link: an unnumbered one uses another's.
        (vec![address(2, "10.0.2.1", 24)], Some("10.0.2.1")),
        (vec![address(3, "127.0.0.1", 8), address(1, "2001:db8::1", 64)], None),
        (vec![Address { global: false, ..address(1, "169.254.0.1", 16) }], None),
    ] {
        let mut snapshot = snapshot();
        snapshot.addresses = addresses.iter().map(|&a| ((a.index, a.address), a)).collect();
        let mut fixture = Fixture::new(snapshot, &["10.0.1.2"]);
        fixture.neighbour(1, "10.0.1.2", known);
        assert_eq!(fixture.hop("10.0.1.2").source, expected.map(ip), "{addresses:?}");
    }
}

#[test]
fn what_stands_in_the_way_is_named() {
    let with = |edit: &dyn Fn(&mut Snapshot)| {
        let mut snapshot = snapshot();
        edit(&mut snapshot);
        Fixture::new(snapshot, &["10.0.1.2"]).reason("10.0.1.2").to_owned()
    };
    let edit_link = |edit: fn(&mut Link)| {
        with(&move |snapshot: &mut Snapshot| edit(snapshot.links.get_mut(&1).unwrap()))
    };
    assert_eq!(edit_link(|link| (link.up, link.running) = (false, false)), "eth1 is down");
    assert_eq!(edit_link(|link| link.running = false), "eth1 has no carrier");
    assert_eq!(edit_link(|link| link.mac = None), "eth1 carries no Ethernet frames");
    assert_eq!(with(&|snapshot| drop(snapshot.links.remove(&1))), "interface 1 is gone");
    assert_eq!(with(&|snapshot| snapshot.routes = Routes::default()), "no route to 10.0.1.2");
    let mut refused = route("10.0.0.0/8", &[]);
    refused.way.action = Action::Refuse("a blackhole");
    assert_eq!(
        with(&move |snapshot| snapshot.routes = fib([refused.clone()])),
        "the route of 10.0.0.0/8 is a blackhole"
    );
}

#[test]
fn a_dead_path_moves_only_its_own_targets() {
    let mut snapshot = snapshot();
    let gateways = ["10.0.1.251", "10.0.1.252", "10.0.2.253"];
    let paths = [(1, Some(gateways[0])), (1, Some(gateways[1])), (2, Some(gateways[2]))];
    snapshot.routes = fib([route("192.0.2.0/24", &paths)]);
    for (number, &(index, gateway)) in (1..).zip(&paths) {
        let neighbour = Neighbour::Known([2, 0, 0, 0, 9, number]);
        snapshot.neighbours.insert((index, ip(gateway.unwrap())), neighbour);
    }
    let targets: Vec<_> = (1..255).map(|n| format!("192.0.2.{n}")).collect();
    let targets: Vec<_> = targets.iter().map(String::as_str).collect();
    let mut fixture = Fixture::new(snapshot, &targets);
    let before: Vec<_> = targets.iter().map(|target| fixture.hop(target).clone()).collect();
    for number in 1..=3 {
        let share = before.iter().filter(|hop| hop.dst_mac[5] == number).count();
        assert!((60..110).contains(&share), "path {number} has {share} of 254");
    }

    let _ = fixture.apply(Event::Link(Link { running: false, ..link(2) }));
    for (target, before) in targets.iter().zip(&before) {
        let after = fixture.hop(target);
        assert!(if before.ifindex == 1 { after == before } else { after.ifindex == 1 });
    }
}

#[test]
fn the_kernel_is_asked_where_rules_choose() {
    let mut snapshot = snapshot();
    snapshot.routes = Routes::Asked;
    let mut fixture = Fixture::new(snapshot, &["10.0.1.2", "203.0.113.1"]);
    assert!(fixture.known.is_empty(), "nothing is known before the answer");
    assert_eq!(fixture.state.take_questions(10), [ip("10.0.1.2"), ip("203.0.113.1")]);
    let way = route("10.0.1.2/32", &[(1, None)]).way;
    fixture.known.extend(fixture.state.answer(ip("10.0.1.2"), Ok(way), fixture.now));
    let refusal = Err("no route to 203.0.113.1: unreachable".to_owned());
    fixture.known.extend(fixture.state.answer(ip("203.0.113.1"), refusal, fixture.now));
    assert_eq!(fixture.reason("203.0.113.1"), "no route to 203.0.113.1: unreachable");

    fixture.neighbour(1, "10.0.1.2", Some(Neighbour::Known(MAC)));
    assert_eq!(fixture.hop("10.0.1.2").dst_mac, MAC);
    assert!(!fixture.state.has_questions(), "a neighbour's answer raises no question");

    let _ = fixture.apply(Event::Link(Link { mtu: 1400, ..link(1) }));
    assert_eq!(fixture.state.take_questions(10).len(), 2);
}

#[test]
fn nothing_is_told_twice() {
    let mut fixture = Fixture::new(snapshot(), &["10.0.1.2"]);
    fixture.known.clear();
    fixture.state.load(snapshot(), fixture.now);
    let _ = fixture.apply(Event::Link(link(1)));
    let _ =
        fixture.apply(Event::Route { route: route("10.0.1.0/24", &[(1, None)]), replace: true });
    assert!(fixture.known.is_empty());
}

/// One step of a scenario, in small numbers so that steps meet.
#[derive(Clone, Copy, Debug)]
enum Step {
    Link { index: u32, running: bool, mtu: u32 },
    LinkGone(u32),
    Address { index: u32, host: u8, there: bool },
    Neighbour { index: u32, host: u8, mac: Option<u8> },
    Route { length: u8, index: u32, gateway: Option<u8>, there: bool },
    Target { host: u8, wanted: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let index = || 1u32..4;
    prop_oneof![
        (index(), any::<bool>(), 1400u32..1402).prop_map(|(index, running, mtu)| Step::Link {
            index,
            running,
            mtu
        }),
        index().prop_map(Step::LinkGone),
        (index(), 0u8..4, any::<bool>()).prop_map(|(index, host, there)| Step::Address {
            index,
            host,
            there
        }),
        (index(), 0u8..8, proptest::option::of(0u8..3))
            .prop_map(|(index, host, mac)| Step::Neighbour { index, host, mac }),
        (28u8..=32, index(), proptest::option::of(0u8..8), any::<bool>()).prop_map(
            |(length, index, gateway, there)| Step::Route { length, index, gateway, there }
        ),
        (0u8..8, any::<bool>()).prop_map(|(host, wanted)| Step::Target { host, wanted }),
    ]
}

fn host(number: u8) -> IpAddr {
    IpAddr::V4([10, 0, 0, number].into())
}

proptest! {
    /// Whatever happened, what was told in pieces is what a fresh reading would tell.
    #[test]
    fn following_changes_equals_starting_anew(steps in vec((step(), any::<bool>()), 0..60)) {
        let now = Instant::now();
        let (mut state, mut known) = (State::default(), BTreeMap::new());
        let mut model = Snapshot::default();
        let mut routes = BTreeMap::<IpNet, Route>::new();
        let mut targets = BTreeSet::new();
        for (step, settle) in steps {
            // Whether routes must be read anew does not matter here: the model's never change silently.
            let _ = match step {
                Step::Link { index, running, mtu } => {
                    let link = Link { running, mtu, ..link(index) };
                    model.links.insert(index, link.clone());
                    state.apply(Event::Link(link), now)
                }
                Step::LinkGone(index) => {
                    model.links.remove(&index);
                    model.addresses.retain(|key, _| key.0 != index);
                    state.apply(Event::LinkGone(index), now)
                }
                Step::Address { index, host: number, there } => {
                    let address = Address { address: host(number), ..address(index, "10.0.0.0", 30) };
                    if there {
                        model.addresses.insert((index, address.address), address);
                        state.apply(Event::Address(address), now)
                    } else {
                        model.addresses.remove(&(index, address.address));
                        state.apply(Event::AddressGone(address), now)
                    }
                }
                Step::Neighbour { index, host: number, mac } => {
                    let key = (index, host(number));
                    let neighbour = mac.map(|mac| match mac {
                        0 => Neighbour::Stale([mac; 6]),
                        _ => Neighbour::Known([mac; 6]),
                    });
                    match neighbour {
                        Some(neighbour) => model.neighbours.insert(key, neighbour),
                        None => model.neighbours.remove(&key),
                    };
                    state.apply(Event::Neighbour(key, neighbour), now)
                }
                Step::Route { length, index, gateway, there } => {
                    let prefix = IpNet::new_assert(host(0), length);
                    let gateway = gateway.map(|number| host(number).to_string());
                    let new = route(&prefix.to_string(), &[(index, gateway.as_deref())]);
                    if there {
                        routes.insert(prefix, new.clone());
                        state.apply(Event::Route { route: new, replace: true }, now)
                    } else if let Some(old) = routes.remove(&prefix) {
                        state.apply(Event::RouteGone(old), now)
                    } else {
                        Certainty::Exact
                    }
                }
                Step::Target { host: number, wanted } => {
                    if wanted {
                        targets.insert(host(number));
                    } else {
                        targets.remove(&host(number));
                        known.remove(&host(number));
                    }
                    state.set_targets(&targets);
                    Certainty::Exact
                }
            };
            while settle && state.is_dirty() {
                known.extend(state.resolve(3, now));
            }
        }
        while state.is_dirty() {
            known.extend(state.resolve(3, now));
        }

        model.routes = fib(routes.into_values());
        let mut fresh = State::default();
        fresh.load(model.clone(), now);
        fresh.set_targets(&targets);
        prop_assert_eq!(&known, &fresh.resolve(usize::MAX, now));

        // And reading anew changes nothing.
        state.load(model, now);
        prop_assert_eq!(state.resolve(usize::MAX, now), BTreeMap::new());
    }
}
