//! Sources that go to groups of a service's backends: from prefixes to sorted ranges in the arena, each with the
//! group of the longest prefix that has it. A group is a service of its own (`Service::parts`), whose frontends no
//! packet finds but by these ranges.

use std::net::IpAddr;

use abi::{addr::Addr, routes, table::FrontendKey};
use config::model::Service;
use ipnet::IpNet;

use super::{Planned, Planner, stable_id, words::Place};
use crate::datapath::Tables;

/// For IPv4 and for IPv6, as [`super::ranges::family`] counts.
pub(super) type Pair = [Place; 2];

/// How many words of this family are said to stand at `at`. `None`: that is not in the arena.
pub(super) fn length(at: u32, v4: bool, tables: &dyn Tables) -> Option<u32> {
    let ranges = (at < tables.capacity().slots).then(|| tables.slot(at))?;
    let words = ranges.saturating_mul(routes::words(v4).into());
    words.saturating_add(routes::HEAD.into()).try_into().ok()
}

/// A prefix, and its group as a frontend's key has it.
pub(super) type Route = (IpNet, FrontendKey);

/// Words that a service's routes take at most.
pub(crate) fn room(spec: &Service) -> u64 {
    let nets = spec.source_routes.iter().flat_map(|route| &route.prefixes);
    let words: u64 = nets.map(|net| 2 * u64::from(routes::words(net.addr().is_ipv4()))).sum();
    if words == 0 { 0 } else { words + 2 * u64::from(routes::HEAD) }
}

/// First and last address, and port and protocol of the group's key.
pub(super) type Range = (u128, u128, u32);

/// The words of ranges of one family.
pub(super) fn words(flat: &[Range], v4: bool) -> Vec<u64> {
    if flat.is_empty() {
        return Vec::new();
    }
    let address = |n: u128| match v4 {
        true => Addr::from(IpAddr::V4((n as u32).into())),
        false => Addr::from(IpAddr::V6(n.into())),
    };
    let mut words = vec![flat.len() as u64];
    for &(first, last, port_protocol) in flat {
        let group = FrontendKey { addr: Addr::default(), port_protocol };
        let (range, used) = routes::encode(address(first), address(last), group);
        words.extend_from_slice(&range[..used]);
    }
    words
}

/// The ranges that stand at a place.
pub(super) fn standing(place: Place, v4: bool, tables: &dyn Tables) -> Vec<Range> {
    let Some(at) = place.at() else { return Vec::new() };
    let word = |i: u32| tables.slot(at + i);
    let long = |i: u32| u128::from(word(i)) << 64 | u128::from(word(i + 1));
    let starts = (routes::HEAD..place.len()).step_by(routes::words(v4) as usize);
    let range = |i: u32| {
        let group = word(i + routes::words(v4) - 1) as u32;
        match v4 {
            true => ((word(i) >> 32).into(), (word(i) as u32).into(), group),
            false => (long(i), long(i + 2), group),
        }
    };
    starts.map(range).collect()
}

/// Both, each of them sorted and disjoint; where both have an address, the first one counts.
pub(super) fn behind(first: &[Range], second: &[Range]) -> Vec<Range> {
    let mut all = first.to_vec();
    for &(from, last, group) in second {
        let mut next = Some(from);
        let near = first.partition_point(|range| range.1 < from);
        for range in first[near..].iter().take_while(|range| range.0 <= last) {
            if let Some(free) = next.filter(|&free| free < range.0) {
                all.push((free, range.0 - 1, group));
            }
            next = range.1.checked_add(1);
        }
        all.extend(next.filter(|&free| free <= last).map(|free| (free, last, group)));
    }
    all.sort_unstable();
    all
}

/// Disjoint ranges, sorted, of one family: each with the group of the longest prefix that has it. Neighbours with the
/// same group are one.
pub(super) fn flatten(nets: &[Route], v4: bool) -> Vec<Range> {
    let number = |a: IpAddr| match a {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    };
    let mut all: Vec<_> = nets
        .iter()
        .filter(|(net, _)| net.addr().is_ipv4() == v4)
        .map(|&(net, group)| {
            let group = group.port_protocol;
            (number(net.network()), net.prefix_len(), number(net.broadcast()), group)
        })
        .collect();
    all.sort_unstable_by_key(|&(first, len, ..)| (first, len));

    let mut flat = Flat::default();
    // Prefixes that have the next address, the longest one last.
    let mut open: Vec<(u128, u32)> = Vec::new();
    for (first, _, last, group) in all {
        while let Some(&(end, of)) = open.last().filter(|&&(end, _)| end < first) {
            flat.up_to(end, of);
            open.pop();
        }
        match open.last() {
            Some(&(_, of)) if first > 0 => flat.up_to(first - 1, of),
            _ => {}
        }
        flat.next = Some(first);
        open.push((last, group));
    }
    while let Some((end, of)) = open.pop() {
        flat.up_to(end, of);
    }
    flat.ranges
}

#[derive(Default)]
struct Flat {
    ranges: Vec<Range>,
    /// The first address that is not in a range yet; `None`: there is none.
    next: Option<u128>,
}

impl Flat {
    /// All from the next one to this one are the group's.
    fn up_to(&mut self, last: u128, group: u32) {
        let Some(first) = self.next.filter(|&next| next <= last) else { return };
        match self.ranges.last_mut() {
            Some(before) if before.2 == group && before.1.checked_add(1) == Some(first) => {
                before.1 = last;
            }
            _ => self.ranges.push((first, last, group)),
        }
        self.next = last.checked_add(1);
    }
}

impl Planner {
    /// The number of a part in the keys of its frontends: made of its name, and one that no other part has. It keeps
    /// the one that it has.
    pub(super) fn part_number(&self, name: &str, service: &Planned) -> u32 {
        let number = |key: &FrontendKey| key.port_protocol;
        if let Some(key) = service.frontends.keys().next() {
            return number(key);
        }
        let taken = |wanted: u32| {
            let key = FrontendKey::group(Addr::default(), wanted);
            self.services
                .values()
                .any(|other| other.frontends.keys().any(|k| number(k) == number(&key)))
        };
        let mut wanted = stable_id(name) as u32;
        while taken(wanted) {
            wanted = wanted.wrapping_add(1);
        }
        wanted
    }

    /// What leads to the parts of a service, which stand already.
    pub(super) fn routes_of(&self, spec: &Service) -> Vec<Route> {
        let mut all = Vec::new();
        for route in &spec.source_routes {
            let part = self.services.get(spec.part_name(&route.group).as_str());
            let Some(&key) = part.and_then(|part| part.frontends.keys().next()) else { continue };
            all.extend(route.prefixes.iter().map(|&net| (net, key)));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn group(number: u32) -> FrontendKey {
        FrontendKey::group(Addr::default(), number)
    }

    fn net() -> impl Strategy<Value = IpNet> {
        // Few bits, so that prefixes lie within one another and end with the space.
        (any::<bool>(), prop::sample::select(vec![0u8, 1, 2, 4, 7, 8]), any::<u8>()).prop_map(
            |(v4, len, n)| {
                let address = match v4 {
                    true => IpAddr::from([n, 0, 0, 0]),
                    false => IpAddr::from([u16::from(n) << 8, 0, 0, 0, 0, 0, 0, 0]),
                };
                IpNet::new(address, len).expect("a length").trunc()
            },
        )
    }

    proptest! {
        /// Against a look at every prefix.
        #[test]
        fn the_longest_prefix_wins(
            nets in prop::collection::btree_map(net(), 0..3u32, 0..12),
            probe: u128,
        ) {
            let routes: Vec<Route> = nets.iter().map(|(&net, &n)| (net, group(n))).collect();
            for v4 in [true, false] {
                let flat = flatten(&routes, v4);
                for pair in flat.windows(2) {
                    prop_assert!(pair[0].1 < pair[1].0, "{flat:x?}");
                    prop_assert!(pair[0].1 + 1 < pair[1].0 || pair[0].2 != pair[1].2, "{flat:x?}");
                }
                for lead in 0..=255u8 {
                    for rest in [0, u128::MAX >> 8, probe >> 8] {
                        let bits = u128::from(lead) << 120 | rest;
                        let (address, number) = match v4 {
                            true => (IpAddr::from(((bits >> 96) as u32).to_be_bytes()), bits >> 96),
                            false => (IpAddr::from(bits.to_be_bytes()), bits),
                        };
                        let longest = nets
                            .iter()
                            .filter(|(net, _)| net.contains(&address))
                            .max_by_key(|(net, _)| net.prefix_len())
                            .map(|(_, &n)| group(n).port_protocol);
                        let found = flat.iter().find(|r| (r.0..=r.1).contains(&number)).map(|r| r.2);
                        prop_assert_eq!(found, longest, "{}", address);
                    }
                }
                let room = nets.keys().filter(|net| net.addr().is_ipv4() == v4).count() * 2;
                prop_assert!(flat.len() <= room);
            }
        }

        /// Against a look at both, address by address.
        #[test]
        fn a_range_behind_has_what_no_other_has(
            nets in prop::collection::btree_map(net(), 0..3u32, 0..12),
            others in prop::collection::btree_map(net(), 3..6u32, 0..12),
        ) {
            let routes = |nets: &BTreeMap<IpNet, u32>| -> Vec<Route> {
                nets.iter().map(|(&net, &n)| (net, group(n))).collect()
            };
            for v4 in [true, false] {
                let [first, second] = [&nets, &others].map(|nets| flatten(&routes(nets), v4));
                let both = behind(&first, &second);
                prop_assert!(both.windows(2).all(|pair| pair[0].1 < pair[1].0), "{both:x?}");
                for lead in 0..=255u128 {
                    for rest in [0, u128::MAX >> 8] {
                        let bits = lead << 120 | rest;
                        let number = if v4 { bits >> 96 } else { bits };
                        let at = |ranges: &[Range]| {
                            ranges.iter().find(|r| (r.0..=r.1).contains(&number)).map(|r| r.2)
                        };
                        prop_assert_eq!(at(&both), at(&first).or(at(&second)), "{:x}", number);
                    }
                }
            }
        }
    }
}
