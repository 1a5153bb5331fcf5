//! Blocklists: from named lists of prefixes to the flat tables.
//!
//! Where lists overlap, an allow prefix wins, then the first list that drops, then the first that
//! audits, however long or short the prefixes are. IPv4 is painted, weakest first, onto the 2^24
//! networks of length 24; IPv6 goes into a longest-prefix table in which each prefix carries the
//! strongest list of all that cover it, so that the longest match is the strongest too.
//!
//! Pure: compiles, and compares with what stands.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use abi::{
    limits::MAX_LISTS,
    prefix::{Entry, LINE, ListRow, One},
    table::Control,
};
use config::{
    PrefixSet,
    model::{ListAction, Prefilter},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Full, alloc::Rows, stable_id};
use crate::datapath::{ApplyError, Op, Tables};

/// Networks of length 24.
const NETWORKS: usize = 1 << 24;

/// The blocklists as they stand in the tables.
#[derive(Default)]
pub struct Prefixes {
    numbers: BTreeMap<String, u8>,
    rows: BTreeMap<u8, ListRow>,
    v4: Painted,
    blocks_at: HashMap<u32, u32>,
    blocks: Option<Rows>,
    v6: BTreeMap<Ipv6Net, u8>,
    flags: u64,
    /// What was planned last; `None` after adoption.
    planned: Option<Prefilter>,
}

/// The list of each IPv4 address; 0: none.
#[derive(Default)]
struct Painted {
    /// One for each network; empty: all 0.
    networks: Vec<u8>,
    /// Those networks that are of more than one list.
    blocks: HashMap<u32, Mixed>,
}

/// A network of more than one list.
#[derive(Clone, Debug, PartialEq)]
enum Mixed {
    One(One),
    Block(Box<[u8; 256]>),
}

impl Mixed {
    fn lists(&self) -> Box<[u8; 256]> {
        match self {
            Self::One(one) => Box::new(std::array::from_fn(|low| one.list(low as u8))),
            Self::Block(lists) => lists.clone(),
        }
    }

    /// The smallest form of these lists, which are not all the same.
    fn of(lists: Box<[u8; 256]>) -> Self {
        for outside in [lists[0], lists[255]] {
            let first = lists.iter().position(|&l| l != outside).unwrap_or(0);
            let last = lists.iter().rposition(|&l| l != outside).unwrap_or(0);
            let size = last - first + 1;
            let inside = lists[first];
            if size.is_power_of_two()
                && size < 256
                && first % size == 0
                && lists[first..=last].iter().all(|&l| l == inside)
            {
                let host_bits = size.trailing_zeros() as u8;
                return Self::One(One { base: first as u8, host_bits, inside, outside });
            }
        }
        Self::Block(lists)
    }
}

impl Painted {
    fn paint(&mut self, net: Ipv4Net, list: u8) {
        if self.networks.is_empty() {
            self.networks = vec![0; NETWORKS];
        }
        let first = u32::from(net.network());
        let last = u32::from(net.broadcast());
        if net.prefix_len() <= 24 {
            let range = first >> 8..=last >> 8;
            if self.blocks.len() > range.clone().count() {
                for n in range.clone() {
                    self.blocks.remove(&n);
                }
            } else {
                self.blocks.retain(|n, _| !range.contains(n));
            }
            self.networks[(first >> 8) as usize..=(last >> 8) as usize].fill(list);
            return;
        }
        let network = first >> 8;
        let whole = self.networks[network as usize];
        let mut lists = match self.blocks.get(&network) {
            None if whole == list => return,
            None => {
                let host_bits = 32 - net.prefix_len();
                let one = One { base: first as u8, host_bits, inside: list, outside: whole };
                self.blocks.insert(network, Mixed::One(one));
                return;
            }
            Some(mixed) => mixed.lists(),
        };
        lists[(first & 255) as usize..=(last & 255) as usize].fill(list);
        if lists.iter().all(|&l| l == lists[0]) {
            self.networks[network as usize] = lists[0];
            self.blocks.remove(&network);
        } else {
            self.blocks.insert(network, Mixed::of(lists));
        }
    }

    fn network(&self, network: u32) -> u8 {
        self.networks.get(network as usize).copied().unwrap_or(0)
    }
}

impl Prefixes {
    /// Takes over what stands in the tables, also where a change was cut short; empty ones give an
    /// empty index. `names` are those of the wanted lists: they keep their numbers and so their
    /// counters. The next plan removes what is not wanted.
    ///
    /// # Errors
    /// The kernel's, when the IPv6 prefixes cannot be read.
    pub fn adopt<'a>(
        tables: &dyn Tables,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<Self, ApplyError> {
        let names: HashMap<u64, &str> = names.map(|n| (stable_id(n), n)).collect();
        let mut adopted = Self::default();
        for number in 1..=MAX_LISTS as u8 {
            let row = tables.list(number.into());
            if row.id == 0 {
                continue;
            }
            adopted.rows.insert(number, row);
            if let Some(&name) = names.get(&row.id) {
                adopted.numbers.insert(name.to_owned(), number);
            }
        }
        adopted.adopt_v4(tables);
        let v6 = tables.prefixes6()?;
        adopted.v6 = v6.into_iter().map(|(net, list)| (net, list as u8)).collect();
        adopted.flags = tables.control().flags() & Control::PREFIXES_V6;
        Ok(adopted)
    }

    fn adopt_v4(&mut self, tables: &dyn Tables) {
        let capacity = tables.capacity();
        let mut used = vec![false; capacity.blocks as usize];
        for index in 0..capacity.lines {
            let words = tables.line(index);
            if words == [0; LINE] {
                continue;
            }
            if self.v4.networks.is_empty() {
                self.v4.networks = vec![0; NETWORKS];
            }
            for (network, word) in (index * LINE as u32..).zip(words) {
                match Entry::from_word(word) {
                    Entry::List(list) => self.v4.networks[network as usize] = list,
                    Entry::One(one) => {
                        self.v4.blocks.insert(network, Mixed::One(one));
                    }
                    Entry::Block(row) => {
                        // No block there: the program finds none either, which is no list.
                        let Some(used) = used.get_mut(row as usize) else { continue };
                        *used = true;
                        self.blocks_at.insert(network, row);
                        self.v4.blocks.insert(network, Mixed::Block(tables.block(row)));
                    }
                }
            }
        }
        self.blocks = Some(Rows::with_used(capacity.blocks, &used));
    }

    /// The operations that make these lists, and no others, stand in the tables. `blocks` is the
    /// number of second-level blocks that there are.
    ///
    /// # Errors
    /// [`Full`]; nothing has changed then.
    pub fn plan(&mut self, wanted: &Prefilter, blocks: u32) -> Result<Vec<Op>, Full> {
        if self.planned.as_ref().is_some_and(|planned| is_same(planned, wanted)) {
            return Ok(Vec::new());
        }
        let numbers = self.number(wanted)?;
        let mut rows = BTreeMap::new();
        for list in &wanted.lists {
            let drop = u64::from(list.action == ListAction::Drop);
            rows.insert(numbers[&list.name], ListRow { drop, id: stable_id(&list.name) });
        }
        let (v4, v6) = compile(wanted, &numbers);
        let mut ops = Vec::new();
        for (&number, &row) in &rows {
            if self.rows.get(&number) != Some(&row) {
                ops.push(Op::List(u32::from(number), row));
            }
        }
        self.diff_v4(&v4, blocks, &mut ops)?;
        for (&net, &number) in &v6 {
            if self.v6.get(&net) != Some(&number) {
                ops.push(Op::Prefix6(net, u32::from(number)));
            }
        }
        let gone = self.v6.keys().filter(|n| !v6.contains_key(*n));
        ops.extend(gone.map(|&n| Op::RemovePrefix6(n)));
        let flags = if v6.is_empty() { 0 } else { Control::PREFIXES_V6 };
        if flags != self.flags {
            ops.push(Op::Flags(flags));
        }
        // Nothing points at these any more, and an adopting process need not wonder.
        let gone = self.rows.keys().filter(|n| !rows.contains_key(*n));
        ops.extend(gone.map(|&n| Op::List(n.into(), ListRow::default())));
        (self.numbers, self.rows, self.v4, self.v6, self.flags) = (numbers, rows, v4, v6, flags);
        self.planned = Some(wanted.clone());
        Ok(ops)
    }

    /// The number of a list: its row in tables and counters.
    #[must_use]
    pub fn number_of(&self, list: &str) -> Option<u8> {
        self.numbers.get(list).copied()
    }

    /// The programs have left every block given back so far.
    pub fn release(&mut self) {
        if let Some(rows) = &mut self.blocks {
            rows.release();
        }
    }

    /// Whether anything given back waits for [`Self::release`].
    #[must_use]
    pub fn waits(&self) -> bool {
        self.blocks.as_ref().is_some_and(Rows::waits)
    }

    /// Numbers for the wanted lists; a list keeps the one that it has.
    fn number(&self, wanted: &Prefilter) -> Result<BTreeMap<String, u8>, Full> {
        let mut numbers: BTreeMap<String, u8> = BTreeMap::new();
        for list in &wanted.lists {
            if let Some(&n) = self.numbers.get(&list.name) {
                numbers.insert(list.name.clone(), n);
            }
        }
        for list in &wanted.lists {
            if numbers.contains_key(&list.name) {
                continue;
            }
            // Nor one that a list has which goes now: packets may still meet it.
            let free = (1..=MAX_LISTS as u8)
                .find(|n| !numbers.values().any(|m| m == n) && !self.rows.contains_key(n))
                .ok_or(Full("LISTS"))?;
            numbers.insert(list.name.clone(), free);
        }
        Ok(numbers)
    }

    fn diff_v4(&mut self, new: &Painted, capacity: u32, ops: &mut Vec<Op>) -> Result<(), Full> {
        let rows = self.blocks.get_or_insert_with(|| Rows::new(capacity));
        let old = &self.v4;
        let mut changed: Vec<(u32, &Mixed)> = new
            .blocks
            .iter()
            .filter(|(network, mixed)| old.blocks.get(network) != Some(mixed))
            .map(|(&network, mixed)| (network, mixed))
            .collect();
        let wanted = changed.iter().filter(|(_, m)| matches!(m, Mixed::Block(_))).count();
        if wanted > rows.available() as usize {
            return Err(Full("BLOCKS"));
        }
        changed.sort_unstable_by_key(|&(network, _)| network);
        for (network, mixed) in changed {
            let before = self.blocks_at.remove(&network);
            match mixed {
                Mixed::One(one) => ops.push(Op::Line(network, Entry::One(*one))),
                Mixed::Block(lists) => {
                    // A block that changes is written elsewhere, so that no packet meets half of it.
                    let row = rows.take().ok_or(Full("BLOCKS"))?;
                    ops.push(Op::Block(row, lists.clone()));
                    ops.push(Op::Line(network, Entry::Block(row)));
                    self.blocks_at.insert(network, row);
                }
            }
            if let Some(row) = before {
                rows.give(row);
            }
        }
        let plain = plain_changes(old, new);
        for run in plain.chunk_by(|&a, &b| b == a + 1 && new.network(a) == new.network(b)) {
            let (Some(&first), Some(&last)) = (run.first(), run.last()) else { continue };
            let entry = Entry::List(new.network(first));
            ops.push(match first == last {
                true => Op::Line(first, entry),
                false => Op::Lines(first..=last, entry),
            });
            for network in run {
                if let Some(row) = self.blocks_at.remove(network) {
                    rows.give(row);
                }
            }
        }
        Ok(())
    }
}

/// The networks without a block whose entry changes, in order. Compared a page at a time: nearly all
/// pages of two versions are equal.
fn plain_changes(old: &Painted, new: &Painted) -> Vec<u32> {
    const PAGE: usize = 4096;
    let mut changed: Vec<u32> =
        old.blocks.keys().filter(|n| !new.blocks.contains_key(n)).copied().collect();
    let none = [0; PAGE];
    let page = |p: &'_ Painted, at: usize| -> [u8; PAGE] {
        p.networks.get(at..at + PAGE).map_or(none, |s| s.try_into().unwrap_or(none))
    };
    if !(old.networks.is_empty() && new.networks.is_empty()) {
        for at in (0..NETWORKS).step_by(PAGE) {
            let (before, after) = (page(old, at), page(new, at));
            if before == after {
                continue;
            }
            let differ = (0..PAGE).filter(|&i| before[i] != after[i]).map(|i| (at + i) as u32);
            changed.extend(
                differ.filter(|n| !new.blocks.contains_key(n) && !old.blocks.contains_key(n)),
            );
        }
    }
    changed.sort_unstable();
    changed
}

/// Whether nothing has changed, told without a look at the prefixes of lists.
fn is_same(one: &Prefilter, other: &Prefilter) -> bool {
    one.allow == other.allow
        && one.lists.len() == other.lists.len()
        && one.lists.iter().zip(&other.lists).all(|(a, b)| Arc::ptr_eq(a, b))
}

/// What the blocklists say about one address.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict<'a> {
    /// The longest prefix that allows it: then no list applies.
    pub allowed: Option<IpNet>,
    /// The list that decides; `None` when the address is allowed or in no list.
    pub decides: Option<&'a str>,
    /// Every list that holds it, in the order of the configuration.
    pub hits: Vec<Hit<'a>>,
}

/// A list that holds an address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit<'a> {
    /// Its name.
    pub list: &'a str,
    /// What it does.
    pub action: ListAction,
    /// The longest of its prefixes that cover the address.
    pub prefix: IpNet,
}

/// Looks an address up in the lists themselves, not in the tables. An IPv4-mapped IPv6 address is
/// taken as IPv4.
#[must_use]
pub fn lookup(lists: &Prefilter, ip: IpAddr) -> Verdict<'_> {
    let ip = ip.to_canonical();
    let longest = |prefixes: &PrefixSet| prefixes.longest(ip, 128);
    let allowed = longest(&lists.allow);
    let hit = |list: &'_ Arc<config::model::PrefixList>| longest(&list.prefixes);
    let hits: Vec<Hit<'_>> = lists
        .lists
        .iter()
        .filter_map(|l| hit(l).map(|prefix| Hit { list: &l.name, action: l.action, prefix }))
        .collect();
    let first = |action| hits.iter().find(|h| h.action == action);
    let decides = match allowed {
        Some(_) => None,
        None => first(ListAction::Drop).or_else(|| first(ListAction::Audit)).map(|h| h.list),
    };
    Verdict { allowed, decides, hits }
}

/// Lists from the weakest to the strongest.
fn by_strength(wanted: &Prefilter) -> impl Iterator<Item = &config::model::PrefixList> {
    let of = |action| wanted.lists.iter().rev().filter(move |l| l.action == action);
    of(ListAction::Audit).chain(of(ListAction::Drop)).map(AsRef::as_ref)
}

fn compile(wanted: &Prefilter, numbers: &BTreeMap<String, u8>) -> (Painted, BTreeMap<Ipv6Net, u8>) {
    let mut v4 = Painted::default();
    // Strength 0 is none; allow is the strongest.
    let mut strengths: BTreeMap<Ipv6Net, (usize, u8)> = BTreeMap::new();
    let mut put = |net: IpNet, strength: usize, number: u8| match net {
        IpNet::V4(net) => v4.paint(net.trunc(), number),
        IpNet::V6(net) => {
            let at = strengths.entry(net.trunc()).or_default();
            *at = (*at).max((strength, number));
        }
    };
    for (index, list) in by_strength(wanted).enumerate() {
        for net in list.prefixes.iter() {
            put(net, index + 1, numbers[&list.name]);
        }
    }
    for net in wanted.allow.iter() {
        put(net, usize::MAX, 0);
    }
    (v4, strongest(&strengths))
}

/// Gives each prefix the strongest of those that cover it; leaves out what then says nothing.
fn strongest(strengths: &BTreeMap<Ipv6Net, (usize, u8)>) -> BTreeMap<Ipv6Net, u8> {
    let mut out = BTreeMap::new();
    // In the order of addresses, and of lengths for one address: a prefix comes after those that
    // cover it.
    let mut covering: Vec<(Ipv6Net, (usize, u8))> = Vec::new();
    for (&net, &own) in strengths {
        while covering.last().is_some_and(|(c, _)| !c.contains(&net)) {
            covering.pop();
        }
        let above = covering.last().map(|&(_, s)| s);
        let best = above.map_or(own, |a| a.max(own));
        covering.push((net, best));
        let says = match above {
            Some(a) => a.1 != best.1,
            None => best.1 != 0,
        };
        if says {
            out.insert(net, best.1);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use config::model::{PrefixList, Source};
    use proptest::prelude::*;

    use super::*;
    use crate::datapath::{Capacity, Datapath, fake::Fake};

    const BLOCKS: u32 = 100;

    fn tables() -> Fake {
        let lines = abi::prefix::LINES;
        let capacity = Capacity {
            buckets: 1,
            frontends: 1,
            slots: 1,
            backends: 1,
            egress: 1,
            lines,
            blocks: BLOCKS,
            prefixes6: 64,
        };
        Fake::new(capacity, 0, 0)
    }

    /// The list of an address, found in the tables as the program does.
    fn found(tables: &Fake, ip: IpAddr) -> u8 {
        match ip {
            IpAddr::V4(ip) => {
                let network = u32::from(ip) >> 8;
                let word = tables.line(network / LINE as u32)[network as usize % LINE];
                match Entry::from_word(word) {
                    Entry::List(n) => n,
                    Entry::One(one) => one.list(ip.octets()[3]),
                    Entry::Block(b) => tables.block(b)[usize::from(ip.octets()[3])],
                }
            }
            IpAddr::V6(_) if tables.control().flags() == 0 => 0,
            IpAddr::V6(ip) => {
                let covers = tables.prefixes6.iter().filter(|(n, _)| n.contains(&ip));
                covers.max_by_key(|(n, _)| n.prefix_len()).map_or(0, |(_, &l)| l as u8)
            }
        }
    }

    fn list(name: &str, action: ListAction, prefixes: Vec<IpNet>) -> Arc<PrefixList> {
        let (name, prefixes) = (name.to_owned(), prefixes.into_iter().collect());
        let (skipped, skipped_lines) = (Vec::new(), 0);
        Arc::new(PrefixList { name, source: Source::Api, action, prefixes, skipped, skipped_lines })
    }

    /// What the documentation promises, by trying every prefix.
    fn oracle(p: &Prefilter, ip: IpAddr) -> Option<&str> {
        if p.allow.iter().any(|n| n.contains(&ip)) {
            return None;
        }
        let first = |action| {
            p.lists
                .iter()
                .filter(|l| l.action == action)
                .find(|l| l.prefixes.iter().any(|n| n.contains(&ip)))
        };
        first(ListAction::Drop).or_else(|| first(ListAction::Audit)).map(|l| l.name.as_str())
    }

    /// Prefixes near each other, so that they overlap.
    fn prefix() -> impl Strategy<Value = IpNet> {
        let v4 = (0u32..2048, 20u8..=32).prop_map(|(low, len)| {
            IpNet::V4(Ipv4Net::new(Ipv4Addr::from(0xcb00_7000 + low), len).unwrap())
        });
        let v6 = (any::<u16>(), 100u8..=128).prop_map(|(low, len)| {
            let ip = Ipv6Addr::from(0x2001_0db8u128 << 96 | u128::from(low));
            IpNet::V6(Ipv6Net::new(ip, len).unwrap())
        });
        // Of the short IPv4 ones only a /16: each network is an operation of the test's.
        let small = prop::sample::select(vec!["203.0.0.0/16", "::/0", "203.0.112.0/20"])
            .prop_map(|t| t.parse().unwrap());
        prop_oneof![12 => v4, 12 => v6, 1 => small]
    }

    fn prefilter() -> impl Strategy<Value = Prefilter> {
        let lists =
            prop::collection::vec((any::<bool>(), prop::collection::vec(prefix(), 0..8)), 0..4);
        (lists, prop::collection::vec(prefix(), 0..3)).prop_map(|(lists, allow)| Prefilter {
            allow: allow.into_iter().collect(),
            lists: lists
                .into_iter()
                .enumerate()
                .map(|(i, (drop, prefixes))| {
                    let action = if drop { ListAction::Drop } else { ListAction::Audit };
                    list(&format!("l{i}"), action, prefixes)
                })
                .collect(),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(6))]

        #[test]
        fn every_address_is_of_the_list_that_the_oracle_says(first in prefilter(), second in prefilter()) {
            let mut prefixes = Prefixes::default();
            let mut tables = tables();
            for p in [&first, &second] {
                tables.apply(&prefixes.plan(p, BLOCKS).unwrap()).unwrap();
                prefixes.release();
                says_what_the_oracle_says(&tables, &prefixes, p)?;
            }
            prop_assert_eq!(prefixes.plan(&second, BLOCKS).unwrap(), vec![]);
            let lists = second.lists.iter().map(|l| Arc::new((**l).clone())).collect();
            let equal = Prefilter { allow: second.allow.clone(), lists };
            prop_assert_eq!(prefixes.plan(&equal, BLOCKS).unwrap(), vec![]);
        }

        #[test]
        fn a_change_cut_short_anywhere_is_taken_over(
            first in prefilter(), second in prefilter(), cut in 0.0..1.0f64,
        ) {
            let mut prefixes = Prefixes::default();
            let mut tables = tables();
            tables.apply(&prefixes.plan(&first, BLOCKS).unwrap()).unwrap();
            prefixes.release();
            let ops = prefixes.plan(&second, BLOCKS).unwrap();
            tables.apply(&ops[..(ops.len() as f64 * cut) as usize]).unwrap();

            let names = second.lists.iter().map(|l| l.name.as_str());
            let mut adopted = Prefixes::adopt(&tables, names).unwrap();
            tables.apply(&adopted.plan(&second, BLOCKS).unwrap()).unwrap();
            says_what_the_oracle_says(&tables, &adopted, &second)?;
            let names = second.lists.iter().map(|l| l.name.as_str());
            let mut again = Prefixes::adopt(&tables, names).unwrap();
            prop_assert_eq!(again.plan(&second, BLOCKS).unwrap(), vec![]);
        }
    }

    fn says_what_the_oracle_says(
        tables: &Fake,
        prefixes: &Prefixes,
        p: &Prefilter,
    ) -> Result<(), TestCaseError> {
        let v4 = (0..2100u32).map(|low| IpAddr::from(Ipv4Addr::from(0xcb00_7000 + low)));
        let v6 = (0..300u128)
            .map(|low| IpAddr::from(Ipv6Addr::from(0x2001_0db8u128 << 96 | (low * 217))));
        let far = ["8.8.8.8", "2001:4860::1", "203.0.1.1"].map(|t| t.parse().unwrap());
        for ip in v4.chain(v6).chain(far) {
            let want = oracle(p, ip).map_or(0, |n| prefixes.number_of(n).unwrap());
            prop_assert_eq!(found(tables, ip), want, "{}", ip);
            prop_assert_eq!(lookup(p, ip).decides, oracle(p, ip));
        }
        Ok(())
    }

    fn dropping(nets: &[&str]) -> Prefilter {
        let nets = nets.iter().map(|n| n.parse().unwrap()).collect();
        Prefilter { allow: PrefixSet::default(), lists: vec![list("l", ListAction::Drop, nets)] }
    }

    #[test]
    fn one_more_prefix_is_one_store() {
        let mut prefixes = Prefixes::default();
        prefixes.plan(&dropping(&["192.0.2.0/24"]), 4).unwrap();
        let ops = prefixes.plan(&dropping(&["192.0.2.0/24", "198.51.100.7/32"]), 4).unwrap();
        let one = One { base: 7, host_bits: 0, inside: 1, outside: 0 };
        assert_eq!(ops, [Op::Line(0xc6_3364, Entry::One(one))]);
    }

    #[test]
    fn a_block_comes_with_the_second_prefix_and_goes_with_it() {
        let mut prefixes = Prefixes::default();
        prefixes.plan(&dropping(&["192.0.2.1/32"]), 1).unwrap();
        let ops = prefixes.plan(&dropping(&["192.0.2.1/32", "192.0.2.3/32"]), 1).unwrap();
        assert!(
            matches!(ops[..], [Op::Block(0, _), Op::Line(0xc0_0002, Entry::Block(0))]),
            "{ops:?}"
        );
        let ops = prefixes.plan(&dropping(&["192.0.2.128/25"]), 1).unwrap();
        assert!(matches!(ops[..], [Op::Line(0xc0_0002, Entry::One(_))]), "{ops:?}");
        prefixes.release();
        let both = ["192.0.2.1/32", "192.0.2.3/32"];
        assert_eq!(prefixes.plan(&dropping(&both), 1).unwrap().len(), 2, "the block is free again");
    }

    #[test]
    fn the_whole_of_ipv4_is_few_operations() {
        let mut prefixes = Prefixes::default();
        let ops = prefixes.plan(&dropping(&["0.0.0.0/0", "192.0.2.1/32"]), 1).unwrap();
        let ops = &ops[1..];
        assert_eq!(ops, [Op::Lines(0..=0xff_ffff, Entry::List(1))]);
    }

    #[test]
    fn too_many_blocks_change_nothing() {
        let mut prefixes = Prefixes::default();
        let nets = (0..5).flat_map(|i| [1, 3].map(|low| format!("192.0.{i}.{low}/32")));
        let nets: Vec<String> = nets.collect();
        let p = dropping(&nets.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(prefixes.plan(&p, 4), Err(Full("BLOCKS")));
        assert_eq!(prefixes.number_of("l"), None);
        assert!(prefixes.plan(&dropping(&[]), 4).unwrap().len() == 1, "the list's row only");
    }

    #[test]
    fn lookup_names_lists_and_prefixes() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let mut p = dropping(&["192.0.2.0/24", "192.0.2.64/26"]);
        p.lists.insert(0, list("watch", ListAction::Audit, vec![net("192.0.0.0/16")]));
        let hits = vec![
            Hit { list: "watch", action: ListAction::Audit, prefix: net("192.0.0.0/16") },
            Hit { list: "l", action: ListAction::Drop, prefix: net("192.0.2.64/26") },
        ];
        let seen = lookup(&p, "::ffff:192.0.2.65".parse().unwrap());
        assert_eq!(seen, Verdict { allowed: None, decides: Some("l"), hits: hits.clone() });
        p.allow = [net("0.0.0.0/0")].into_iter().collect();
        let seen = lookup(&p, "192.0.2.65".parse().unwrap());
        assert_eq!(seen, Verdict { allowed: Some(net("0.0.0.0/0")), decides: None, hits });
        assert_eq!(lookup(&p, "2001:db8::1".parse().unwrap()), Verdict::default());
    }
}
