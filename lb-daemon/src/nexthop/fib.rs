//! Routes: a copy of the kernel's tables and the longest prefix match in them.
//!
//! Owns what a route is and which one an address takes. Knows no links and no neighbours, so it cannot
//! say whether the way is usable.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

/// Where a route leads. Many routes share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Way {
    pub(crate) action: Action,
    /// The route's own MTU.
    pub(crate) mtu: Option<u32>,
    /// The route's own source address.
    pub(crate) source: Option<IpAddr>,
}

/// What a route does with a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Sends it on one of these paths.
    Forward(Vec<Path>),
    /// It is for this machine.
    Local,
    /// Refuses it: what such routes are called.
    Refuse(&'static str),
    /// Goes on with the next table.
    Throw,
    /// Only the kernel can tell: the route refers to something that is not in its message.
    AskKernel,
}

/// One path of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Path {
    pub(crate) ifindex: u32,
    /// `None`: the target itself is the neighbour. May be of the other family.
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) weight: u32,
    /// The kernel does not use it at present.
    pub(crate) dead: bool,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) table: Table,
    pub(crate) prefix: IpNet,
    pub(crate) metric: u32,
    pub(crate) way: Way,
}

/// The tables that are asked when nobody has made rules, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    Local,
    Main,
    Default,
}

/// Whether a notification told all that there is to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Certainty {
    /// The copy is as the kernel's table.
    Exact,
    /// It may not be; read the table anew.
    Unsure,
}

/// The routes of this machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fib {
    lengths: BTreeMap<Length, HashMap<u128, Vec<Entry>>>,
    ways: HashSet<Arc<Way>>,
}

/// Table, family (true: IPv6) and descending length, so that a walk meets the longest first.
type Length = (Table, bool, std::cmp::Reverse<u8>);

/// Sorted by metric; of equal metric, the first is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    metric: u32,
    way: Arc<Way>,
}

impl Fib {
    /// Adds a route as it comes in a dump, where the kernel's order among equals is kept.
    pub(crate) fn load(&mut self, route: Route) {
        let way = self.intern(route.way);
        let entries = self.entries(route.table, route.prefix);
        let at = entries.partition_point(|entry| entry.metric <= route.metric);
        entries.insert(at, Entry { metric: route.metric, way });
    }

    /// Follows the notification of a new route; `replace` if it says that it took another's place.
    pub(crate) fn insert(&mut self, route: Route, replace: bool) -> Certainty {
        let way = self.intern(route.way);
        let v6 = matches!(route.prefix, IpNet::V6(_));
        let metric = route.metric;
        let entries = self.entries(route.table, route.prefix);
        let rivals = entries.iter().filter(|entry| entry.metric == metric).count();

        if entries.iter().any(|entry| entry.metric == metric && same_route(&entry.way, &way)) {
            if rivals > 1 && replace {
                return Certainty::Unsure;
            }
            for entry in entries.iter_mut().filter(|entry| entry.metric == metric) {
                if same_route(&entry.way, &way) {
                    entry.way = Arc::clone(&way);
                }
            }
            return Certainty::Exact;
        }
        // IPv6 keeps a prefix once for each interface, and they do not compete by order.
        let independent = v6 && entries.iter().all(|entry| !overlapping(&entry.way, &way));
        match (rivals, replace) {
            (0, _) => {}
            (1, true) => entries.retain(|entry| entry.metric != metric),
            _ if independent && !replace => {}
            _ => return Certainty::Unsure,
        }
        let at = entries.partition_point(|entry| entry.metric <= metric);
        entries.insert(at, Entry { metric, way });
        Certainty::Exact
    }

    /// Follows the notification of a removed route.
    pub(crate) fn remove(&mut self, route: &Route) -> Certainty {
        let key = (route.table, matches!(route.prefix, IpNet::V6(_)), length(route.prefix));
        let bits = bits(route.prefix.network());
        let Some(entries) = self.lengths.get_mut(&key).and_then(|map| map.get_mut(&bits)) else {
            return Certainty::Exact;
        };
        let same =
            |entry: &Entry| entry.metric == route.metric && same_route(&entry.way, &route.way);
        let Some(at) = entries.iter().position(same) else { return Certainty::Unsure };

        entries.remove(at);
        if entries.is_empty() {
            self.forget(key, bits);
        }
        Certainty::Exact
    }

    /// The route that packets to `target` take.
    pub(crate) fn lookup(&self, target: IpAddr) -> Option<(IpNet, &Arc<Way>)> {
        let v6 = target.is_ipv6();
        let target_bits = bits(target);
        let mut thrown = None;
        for (&(table, family, std::cmp::Reverse(length)), prefixes) in &self.lengths {
            if family != v6 || thrown == Some(table) {
                continue;
            }
            let Some(entries) = prefixes.get(&mask(target_bits, length, v6)) else { continue };
            let usable = entries.iter().find(|entry| match &entry.way.action {
                Action::Forward(paths) => paths.iter().any(|path| !path.dead),
                _ => true,
            });
            match usable {
                None => {}
                Some(entry) if entry.way.action == Action::Throw => thrown = Some(table),
                Some(entry) => {
                    let prefix = IpNet::new_assert(target, length).trunc();
                    return Some((prefix, &entry.way));
                }
            }
        }
        None
    }

    /// Prefixes for which the two copies differ.
    pub(crate) fn difference(&self, other: &Self) -> Vec<IpNet> {
        let mut changed = Vec::new();
        let none = HashMap::new();
        let mut compare = |one: &Self, two: &Self, both_ways: bool| {
            for (key, prefixes) in &one.lengths {
                let there = two.lengths.get(key).unwrap_or(&none);
                for (&bits, entries) in prefixes {
                    match there.get(&bits) {
                        Some(others) if !both_ways || others == entries => {}
                        _ => changed.push(prefix(bits, key.1, key.2.0)),
                    }
                }
            }
        };
        compare(self, other, true);
        compare(other, self, false);
        changed
    }

    fn entries(&mut self, table: Table, prefix: IpNet) -> &mut Vec<Entry> {
        let key = (table, matches!(prefix, IpNet::V6(_)), length(prefix));
        self.lengths.entry(key).or_default().entry(bits(prefix.network())).or_default()
    }

    fn forget(&mut self, key: Length, bits: u128) {
        if let Some(map) = self.lengths.get_mut(&key) {
            map.remove(&bits);
            if map.is_empty() {
                self.lengths.remove(&key);
            }
        }
    }

    fn intern(&mut self, way: Way) -> Arc<Way> {
        if let Some(known) = self.ways.get(&way) {
            return Arc::clone(known);
        }
        // Ways that no route uses any more are dropped whenever the set would have to grow.
        if self.ways.len() == self.ways.capacity() {
            self.ways.retain(|way| Arc::strong_count(way) > 1);
        }
        let way = Arc::new(way);
        self.ways.insert(Arc::clone(&way));
        way
    }
}

/// Whether two ways are one route in the kernel's eyes: flags of paths come and go.
fn same_route(one: &Way, two: &Way) -> bool {
    match (&one.action, &two.action) {
        (Action::Forward(one), Action::Forward(two)) => {
            one.len() == two.len()
                && one.iter().zip(two).all(|(one, two)| {
                    (one.ifindex, one.gateway, one.weight) == (two.ifindex, two.gateway, two.weight)
                })
        }
        (one, two) => one == two,
    }
}

/// Whether an IPv6 route might join the other: only if both have gateways, or a path in common.
fn overlapping(one: &Way, two: &Way) -> bool {
    let (Action::Forward(one), Action::Forward(two)) = (&one.action, &two.action) else {
        return one.action == two.action;
    };
    one.iter().any(|one| {
        two.iter().any(|two| {
            (one.gateway.is_some() && two.gateway.is_some())
                || (one.ifindex, one.gateway) == (two.ifindex, two.gateway)
        })
    })
}

fn length(prefix: IpNet) -> std::cmp::Reverse<u8> {
    std::cmp::Reverse(prefix.prefix_len())
}

/// The address in the low bits.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn mask(bits: u128, length: u8, v6: bool) -> u128 {
    let host = if v6 { 128 } else { 32 } - u32::from(length);
    if host == 128 { 0 } else { bits >> host << host }
}

fn prefix(bits: u128, v6: bool, length: u8) -> IpNet {
    let address = if v6 {
        IpAddr::V6(bits.into())
    } else {
        // IPv4 bits come from 32 of them.
        IpAddr::V4((bits as u32).into())
    };
    IpNet::new_assert(address, length)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn way(ifindex: u32) -> Way {
        let path = Path { ifindex, gateway: None, weight: 1, dead: false };
        Way { action: Action::Forward(vec![path]), mtu: None, source: None }
    }

    fn route(prefix: &str, metric: u32, ifindex: u32) -> Route {
        let prefix = prefix.parse().unwrap();
        Route { table: Table::Main, prefix, metric, way: way(ifindex) }
    }

    fn found(fib: &Fib, target: &str) -> Option<Action> {
        fib.lookup(target.parse().unwrap()).map(|(_, way)| way.action.clone())
    }

    fn action(ifindex: u32) -> Option<Action> {
        Some(way(ifindex).action)
    }

    #[test]
    fn longest_prefix_then_lowest_metric() {
        let mut fib = Fib::default();
        fib.load(route("0.0.0.0/0", 100, 1));
        fib.load(route("10.0.0.0/8", 50, 2));
        fib.load(route("10.0.0.0/8", 10, 3));
        fib.load(route("10.1.0.0/16", 900, 4));

        assert_eq!(found(&fib, "192.0.2.1"), action(1));
        assert_eq!(found(&fib, "10.9.0.1"), action(3));
        assert_eq!(found(&fib, "10.1.0.1"), action(4));
        assert_eq!(found(&fib, "2001:db8::1"), None);
    }

    #[test]
    fn dead_paths_make_way_for_the_next_best() {
        let mut fib = Fib::default();
        let mut dead = route("10.0.0.0/8", 1, 2);
        let Action::Forward(paths) = &mut dead.way.action else { unreachable!() };
        paths[0].dead = true;
        fib.load(dead);
        fib.load(route("0.0.0.0/0", 1, 1));
        assert_eq!(found(&fib, "10.0.0.1"), action(1));
    }

    #[test]
    fn throw_goes_on_with_the_next_table() {
        let mut fib = Fib::default();
        let mut throw = route("10.0.0.0/8", 0, 0);
        throw.way.action = Action::Throw;
        fib.load(throw);
        fib.load(route("0.0.0.0/0", 0, 1));
        let mut last = route("0.0.0.0/0", 0, 7);
        last.table = Table::Default;
        fib.load(last);
        assert_eq!(found(&fib, "10.0.0.1"), action(7));
        assert_eq!(found(&fib, "11.0.0.1"), action(1));
    }

    #[test]
    fn the_local_table_comes_first() {
        let mut fib = Fib::default();
        fib.load(route("10.0.0.1/32", 0, 1));
        let mut local = route("10.0.0.0/8", 0, 0);
        local.table = Table::Local;
        local.way.action = Action::Local;
        fib.load(local);
        assert_eq!(found(&fib, "10.0.0.1"), Some(Action::Local));
    }

    #[test]
    fn notifications_are_followed_where_they_tell_all() {
        let mut fib = Fib::default();
        assert_eq!(fib.insert(route("10.0.0.0/8", 0, 1), false), Certainty::Exact);
        assert_eq!(fib.insert(route("10.0.0.0/8", 0, 1), false), Certainty::Exact, "told twice");
        assert_eq!(fib.insert(route("10.0.0.0/8", 0, 2), true), Certainty::Exact, "replaced");
        assert_eq!(found(&fib, "10.0.0.1"), action(2));
        assert_eq!(fib.insert(route("10.0.0.0/8", 0, 3), false), Certainty::Unsure, "which first?");
        assert_eq!(fib.insert(route("10.0.0.0/8", 5, 3), false), Certainty::Exact, "other metric");
        assert_eq!(fib.remove(&route("10.0.0.0/8", 0, 9)), Certainty::Unsure, "part of a route?");
        assert_eq!(fib.remove(&route("10.0.0.0/8", 0, 2)), Certainty::Exact);
        assert_eq!(found(&fib, "10.0.0.1"), action(3));
        assert_eq!(fib.remove(&route("11.0.0.0/8", 0, 2)), Certainty::Exact, "never had");
    }

    #[test]
    fn ipv6_keeps_a_prefix_for_each_interface() {
        let mut fib = Fib::default();
        for ifindex in 1..4 {
            let route = route("2001:db8::/64", 256, ifindex);
            assert_eq!(fib.insert(route, false), Certainty::Exact);
        }
        assert_eq!(found(&fib, "2001:db8::1"), action(1));
        assert_eq!(fib.remove(&route("2001:db8::/64", 256, 1)), Certainty::Exact);
        assert_eq!(found(&fib, "2001:db8::1"), action(2));
    }

    fn any_prefix() -> impl Strategy<Value = IpNet> {
        // Few address bits vary, so that prefixes nest and targets hit.
        prop_oneof![
            (0u32..16, 0u8..=32).prop_map(|(low, length)| {
                IpNet::new_assert(IpAddr::V4((0x0a00_0000 | low << 14 | low).into()), length)
                    .trunc()
            }),
            (0u128..16, 0u8..=128).prop_map(|(low, length)| {
                let address = (0x2001_0db8 << 96) | low << 60 | low;
                IpNet::new_assert(IpAddr::V6(address.into()), length).trunc()
            }),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_looking_at_every_route(
            prefixes in vec((any_prefix(), 0u32..3), 0..60),
            targets in vec(any_prefix(), 1..60),
        ) {
            let mut fib = Fib::default();
            let mut all = Vec::new();
            for (number, (prefix, metric)) in (1..).zip(prefixes) {
                let route = Route { table: Table::Main, prefix, metric, way: way(number) };
                fib.load(route.clone());
                all.push(route);
            }
            for target in targets.iter().map(IpNet::addr) {
                let expected = all
                    .iter()
                    .filter(|route| route.prefix.contains(&target))
                    .min_by_key(|route| (std::cmp::Reverse(route.prefix.prefix_len()), route.metric));
                let found = fib.lookup(target);
                prop_assert_eq!(found.map(|(prefix, _)| prefix), expected.map(|route| route.prefix));
                prop_assert_eq!(found.map(|(_, way)| &**way), expected.map(|route| &route.way));
            }
        }

        #[test]
        fn difference_names_what_changed(
            before in vec(any_prefix(), 0..30),
            after in vec(any_prefix(), 0..30),
        ) {
            let load = |prefixes: &[IpNet]| {
                let mut fib = Fib::default();
                for &prefix in prefixes {
                    let _ = fib.insert(Route { table: Table::Main, prefix, metric: 0, way: way(1) }, true);
                }
                fib
            };
            use std::collections::BTreeSet;
            let (one, two): (BTreeSet<_>, BTreeSet<_>) =
                (before.iter().copied().collect(), after.iter().copied().collect());
            let expected: BTreeSet<_> = one.symmetric_difference(&two).copied().collect();
            let found: BTreeSet<_> = load(&before).difference(&load(&after)).into_iter().collect();
            prop_assert_eq!(found, expected);
        }
    }
}
