//! Blocklists: from named lists of prefixes to the flat tables.
//!
//! Where lists overlap, an allow prefix wins, then the first list that drops, then the first that
//! audits, however long or short the prefixes are.
//!
//! The tables have two halves. A new version is compiled whole, written into the half that is not in
//! force, and put in force by one store: whenever the daemon ends, packets meet one version or the
//! other. Bans, and any other change of a single prefix, are stored into the half in force instead:
//! each network or prefix of theirs is one store.
//!
//! Pure: compiles, and compares with what stands.

mod change;
mod layers;
mod lookup;
#[cfg(test)]
mod tests;
mod v4;
mod v6;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use abi::{
    guard::{Limit, MAX_LIMITS},
    limits::MAX_LISTS,
    prefix::{Bucket6, Entry, LINE, LINES, ListRow, Net6, WAYS6},
    scope::Scope,
    synproxy::{self, PORT_WORDS},
    table::Control,
};
use config::model::{ListAction, Prefilter, PrefixList, Protocol, Rate, RateLimit, ScopeProtocol};

pub use self::lookup::{Hit, Verdict, lookup, lookup_packet};
use self::{
    layers::{Combinations, Layers},
    v4::Painted,
};
use super::{Full, alloc::Rows, stable_id};
use crate::datapath::{Capacity, Image, Op, Tables};

/// The blocklists as they stand in the tables.
#[derive(Default)]
pub struct Prefixes {
    numbers: BTreeMap<String, u8>,
    rows: BTreeMap<u8, ListRow>,
    /// Of lists, by their numbers; kept after them.
    scopes: BTreeMap<u8, Scope>,
    /// The interfaces that there are.
    interfaces: BTreeMap<String, u32>,
    /// Rows of the half in force.
    bitmaps: Rows,
    blocks: Rows,
    flags: u64,
    limits: [Limit; MAX_LIMITS as usize],
    /// Words of the set of ports of the SYN proxy that are not zero.
    syn_ports: BTreeMap<u32, u64>,
    /// Programs may still be in the half that is not in force.
    unsettled: bool,
    /// What stands; `None` after adoption.
    planned: Option<Prefilter>,
    /// What was compiled last and found no room.
    compiled: Option<Compiled>,
}

/// Lists as the tables will have them, of any size.
struct Compiled {
    wanted: Prefilter,
    numbers: BTreeMap<String, u8>,
    combinations: Combinations,
    v4: Painted,
    v6: Vec<(Net6, u8)>,
}

/// What tables the lists need, in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Whether there is any prefix.
    pub any: bool,
    /// Lines of entries of IPv4 networks.
    pub lines: u64,
    /// Bitmaps of IPv4 networks.
    pub bitmaps: u64,
    /// Blocks of IPv4 networks.
    pub blocks: u64,
    /// IPv6 prefixes.
    pub nets6: u64,
    /// Different leading 32 bits of these.
    pub leading6: u64,
}

impl Prefixes {
    /// Takes over what stands in the tables, also where a change was cut short; empty ones give an
    /// empty index. `names` are those of the wanted lists: they keep their numbers and so their
    /// counters. The next plan removes what is not wanted.
    pub fn adopt<'a>(tables: &dyn Tables, names: impl Iterator<Item = &'a str>) -> Self {
        let names: HashMap<u64, &str> = names.map(|n| (stable_id(n), n)).collect();
        let mut adopted = Self { unsettled: true, ..Self::default() };
        for number in 1..=MAX_LISTS as u8 {
            let row = tables.list(number.into());
            if row.id == 0 {
                continue;
            }
            adopted.rows.insert(number, row);
            adopted.scopes.insert(number, tables.scope(number.into()));
            if let Some(&name) = names.get(&row.id) {
                adopted.numbers.insert(name.to_owned(), number);
            }
        }
        adopted.limits = std::array::from_fn(|row| tables.limit(row as u32));
        adopted.syn_ports = (0..PORT_WORDS)
            .map(|word| (word, tables.syn_ports(word)))
            .filter(|(_, ports)| *ports != 0)
            .collect();
        adopted.flags = tables.control().flags();
        adopted
    }

    /// Hands what was compiled and found no room to the index of larger tables.
    #[must_use]
    pub fn keep_compiled(mut self, before: Self) -> Self {
        self.compiled = before.compiled;
        self.interfaces = before.interfaces;
        self
    }

    /// Notes which interfaces there are, by name and index; the operations that lists with a scope need.
    pub fn set_interfaces(&mut self, interfaces: BTreeMap<String, u32>) -> Vec<Op> {
        if self.interfaces == interfaces {
            return Vec::new();
        }
        self.interfaces = interfaces;
        let Some(planned) = &self.planned else { return Vec::new() };
        let scopes = self.wanted_scopes(planned, &self.numbers);
        self.change_scopes(scopes)
    }

    /// The scopes of the wanted lists by their numbers.
    fn wanted_scopes(
        &self,
        wanted: &Prefilter,
        numbers: &BTreeMap<String, u8>,
    ) -> BTreeMap<u8, Scope> {
        let scope = |list: &Arc<PrefixList>| scope_of(&list.scope, &self.interfaces);
        wanted.lists.iter().map(|list| (numbers[&list.name], scope(list))).collect()
    }

    fn change_scopes(&mut self, wanted: BTreeMap<u8, Scope>) -> Vec<Op> {
        let mut ops = Vec::new();
        for (number, scope) in wanted {
            if self.scopes.get(&number).copied().unwrap_or_default() != scope {
                ops.push(Op::Scope(number.into(), scope));
            }
            self.scopes.insert(number, scope);
        }
        ops
    }

    /// What tables these lists need.
    ///
    /// # Errors
    /// [`Full`] of more lists or rows than any table has.
    pub fn needs(&mut self, wanted: &Prefilter) -> Result<Needs, Full> {
        let any = !wanted.allow.is_empty() || wanted.lists.iter().any(|l| !l.prefixes.is_empty());
        if !any {
            return Ok(Needs::default());
        }
        let numbers = self.number(wanted)?;
        let compiled = self.compiled(wanted, &numbers)?;
        let mut leading6 = 0;
        let mut last = None;
        for (net, _) in &compiled.v6 {
            let leading = net.hi >> 32;
            leading6 += u64::from(last != Some(leading));
            last = Some(leading);
        }
        let needs = Needs {
            any,
            lines: compiled.v4.lines(),
            bitmaps: compiled.v4.bitmaps.len() as u64,
            blocks: compiled.v4.blocks.len() as u64,
            nets6: compiled.v6.len() as u64,
            leading6,
        };
        self.compiled = Some(compiled);
        Ok(needs)
    }

    /// The operations that make these lists, and no others, stand in the tables.
    ///
    /// # Errors
    /// [`Full`]; nothing has changed then.
    pub fn plan(&mut self, wanted: &Prefilter, tables: &dyn Tables) -> Result<Vec<Op>, Full> {
        if self.planned.as_ref().is_some_and(|planned| is_same(planned, wanted)) {
            return Ok(Vec::new());
        }
        let numbers = self.number(wanted)?;
        let (stores, combinations) = match self.stores(wanted, &numbers, tables)? {
            Some(stores) => stores,
            None => self.half(wanted, &numbers, tables)?,
        };
        let mut rows = BTreeMap::new();
        for list in &wanted.lists {
            let number = numbers[&list.name];
            let members = if list.scope.is_all() { &[][..] } else { &[number] };
            let drop = u64::from(list.action == ListAction::Drop);
            rows.insert(number, ListRow { drop, id: id_of(list), ..ListRow::of(members) });
        }
        for (members, number) in combinations {
            let id = stable_id(&format!("lists {members:?}"));
            rows.insert(number, ListRow { id, ..ListRow::of(&members) });
        }
        let mut ops = self.change_scopes(self.wanted_scopes(wanted, &numbers));
        for (&number, &row) in &rows {
            if self.rows.get(&number) != Some(&row) {
                ops.push(Op::List(u32::from(number), row));
            }
        }
        let limits = self.place_limits(wanted);
        for (row, limit) in (0..).zip(&limits) {
            if self.limits[row as usize] != *limit {
                ops.push(Op::Limit(row, *limit));
            }
        }
        let syn_ports = syn_ports(&wanted.syn_proxy.ports);
        let gone = self.syn_ports.keys().filter(|word| !syn_ports.contains_key(word));
        ops.extend(gone.map(|&word| Op::SynPorts(word, 0)));
        let new = syn_ports.iter().filter(|(word, ports)| self.syn_ports.get(word) != Some(ports));
        ops.extend(new.map(|(&word, &ports)| Op::SynPorts(word, ports)));
        ops.extend(stores);
        // Nothing points at these any more, and an adopting process need not wonder.
        let gone = self.rows.keys().filter(|n| !rows.contains_key(*n));
        ops.extend(gone.map(|&n| Op::List(n.into(), ListRow::default())));
        (self.numbers, self.rows, self.planned) = (numbers, rows, Some(wanted.clone()));
        (self.limits, self.syn_ports) = (limits, syn_ports);
        Ok(ops)
    }

    /// Stores into the half in force; `None` where a new half is right.
    fn stores(
        &mut self,
        wanted: &Prefilter,
        numbers: &BTreeMap<String, u8>,
        tables: &dyn Tables,
    ) -> Result<Option<(Vec<Op>, Combinations)>, Full> {
        if tables.capacity().lines == 0 {
            return Ok(None);
        }
        let Some(planned) = self.planned.take() else { return Ok(None) };
        let layers = self.layers(wanted, numbers);
        let changed = match change::few(&planned, wanted) {
            Some(nets) => self.change(&nets, &planned, &layers, wanted, tables),
            None => Ok(None),
        };
        self.planned = Some(planned);
        let Some(change::Change { mut ops, shorts }) = changed? else { return Ok(None) };
        let Some(new) = layers.combinations() else { return Ok(None) };
        // What the rest of the half has is not known; a new half has what it needs.
        let combinations = self.combinations().into_iter().chain(new).collect();
        let flags = self.flags & !LIVE | live_flags(wanted) | Control::shorts(shorts);
        let any6 = wanted.lists.iter().map(|l| &l.prefixes).chain([&wanted.allow]);
        let any6 = any6.into_iter().any(|set| !set.v6().is_empty());
        let flags = if any6 { flags | Control::PREFIXES_V6 } else { flags & !Control::PREFIXES_V6 };
        if flags != self.flags {
            ops.push(Op::Flags(flags));
            self.flags = flags;
        }
        Ok(Some((ops, combinations)))
    }

    /// A new half, unless the one in force is just that.
    fn half(
        &mut self,
        wanted: &Prefilter,
        numbers: &BTreeMap<String, u8>,
        tables: &dyn Tables,
    ) -> Result<(Vec<Op>, Combinations), Full> {
        let compiled = self.compiled(wanted, numbers)?;
        let capacity = tables.capacity();
        let fits = [
            ("LINES", compiled.v4.lines(), capacity.lines),
            ("BITMAPS", compiled.v4.bitmaps.len() as u64, capacity.bitmaps),
            ("BLOCKS", compiled.v4.blocks.len() as u64, capacity.blocks),
        ];
        if let Some((table, ..)) = fits.iter().find(|(_, wanted, room)| *wanted > u64::from(*room))
        {
            self.compiled = Some(compiled);
            return Err(Full(table));
        }
        let table = v6::table(&compiled.v6, capacity.filter6, capacity.buckets6);
        let (filter, buckets, shorts) = match table {
            Ok(made) => made,
            Err(full) => {
                self.compiled = Some(compiled);
                return Err(full);
            }
        };
        let own = if compiled.v6.is_empty() { 0 } else { Control::PREFIXES_V6 };
        let flags = own | Control::shorts(shorts);
        let guard = live_flags(wanted);
        let Compiled { v4, v6, combinations, .. } = compiled;
        if self.planned.is_none()
            && self.flags & flags == flags
            && let Some((bitmaps, blocks)) = stands(&v4, &v6, &filter, tables)
        {
            self.bitmaps = Rows::with_used(capacity.bitmaps, &bitmaps);
            self.blocks = Rows::with_used(capacity.blocks, &blocks);
            let flags = self.flags & !LIVE | guard;
            let changes = flags != self.flags;
            self.flags = flags;
            let ops = if changes { vec![Op::Flags(flags)] } else { Vec::new() };
            return Ok((ops, combinations));
        }
        let Painted { words, bitmaps, blocks, free_bitmaps, free_blocks } = v4;
        self.bitmaps = Rows::with_first(capacity.bitmaps, bitmaps.len() as u32, free_bitmaps);
        self.blocks = Rows::with_first(capacity.blocks, blocks.len() as u32, free_blocks);
        self.flags = flags | guard | (self.flags ^ Control::HALF) & Control::HALF;
        let mut ops = Vec::new();
        if self.unsettled {
            ops.push(Op::Settle);
        }
        self.unsettled = true;
        let image = Image { words, bitmaps, blocks, filter, buckets };
        ops.extend([Op::Prefixes(Box::new(image)), Op::Flags(self.flags)]);
        Ok((ops, combinations))
    }

    fn compiled(
        &mut self,
        wanted: &Prefilter,
        numbers: &BTreeMap<String, u8>,
    ) -> Result<Compiled, Full> {
        if let Some(compiled) = self.compiled.take()
            && is_same(&compiled.wanted, wanted)
            && compiled.numbers == *numbers
            && compiled.combinations.iter().all(|(members, number)| {
                let known = self.combinations();
                known.get(members) == Some(number) || !self.rows.contains_key(number)
            })
        {
            return Ok(compiled);
        }
        let layers = self.layers(wanted, numbers);
        let (v4, v6) = (v4::compile(&layers)?, v6::compile(&layers));
        let combinations = layers.combinations().ok_or(Full("LISTS"))?;
        let (wanted, numbers) = (wanted.clone(), numbers.clone());
        Ok(Compiled { wanted, numbers, combinations, v4, v6 })
    }

    fn layers<'a>(&self, wanted: &'a Prefilter, numbers: &BTreeMap<String, u8>) -> Layers<'a> {
        Layers::of(wanted, numbers, &self.combinations(), |n| self.rows.contains_key(&n))
    }

    /// The combinations that stand.
    fn combinations(&self) -> Combinations {
        let of = |row: &ListRow| -> Vec<u8> {
            row.members.into_iter().take_while(|member| *member != 0).collect()
        };
        let all = self.rows.iter().map(|(&number, row)| (of(row), number));
        all.filter(|(members, _)| members.len() > 1).collect()
    }

    /// The row of a rate limit, in tables and counters.
    #[must_use]
    pub fn limit_row(&self, name: &str) -> Option<u32> {
        let id = stable_id(name);
        self.limits.iter().position(|limit| limit.id == id).map(|row| row as u32)
    }

    /// The rows of the wanted limits; a limit keeps the one that it has.
    fn place_limits(&self, wanted: &Prefilter) -> [Limit; MAX_LIMITS as usize] {
        let mut rows = [Limit::default(); MAX_LIMITS as usize];
        let mut new = Vec::new();
        for limit in wanted.rate_limits.iter().map(limit_of) {
            match self.limits.iter().position(|before| before.id == limit.id) {
                Some(row) => rows[row] = limit,
                None => new.push(limit),
            }
        }
        let free = rows.iter_mut().filter(|row| row.id == 0);
        free.zip(new).for_each(|(row, limit)| *row = limit);
        rows
    }

    /// The number of a list: its row in tables and counters.
    #[must_use]
    pub fn number_of(&self, list: &str) -> Option<u8> {
        self.numbers.get(list).copied()
    }

    /// The programs have left everything given back so far.
    pub fn release(&mut self) {
        self.bitmaps.release();
        self.blocks.release();
        self.unsettled = false;
    }

    /// Whether anything given back waits for [`Self::release`].
    #[must_use]
    pub fn waits(&self) -> bool {
        self.unsettled || self.bitmaps.waits() || self.blocks.waits()
    }

    /// Rows that wait to be released; a half of its own that does counts as very many.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let halves = if self.unsettled { usize::MAX / 2 } else { 0 };
        halves + self.bitmaps.waiting() + self.blocks.waiting()
    }

    /// Bitmaps and blocks in use.
    #[must_use]
    pub fn used(&self) -> (u32, u32) {
        (self.bitmaps.used(), self.blocks.used())
    }

    /// Numbers for the wanted lists; a list keeps the one that it has.
    fn number(&self, wanted: &Prefilter) -> Result<BTreeMap<String, u8>, Full> {
        let mut numbers: BTreeMap<String, u8> = BTreeMap::new();
        for list in &wanted.lists {
            // One whose scope changes is another one: packets meet it with one of them or the other.
            let id = id_of(list);
            if let Some((&n, _)) = self.rows.iter().find(|(_, row)| row.id == id) {
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
}

fn limit_of(limit: &RateLimit) -> Limit {
    let (interval, tolerance) = match limit.rate {
        Rate::Packets(rate) => Limit::rate(rate, limit.burst),
        Rate::Bytes(rate) => Limit::byte_rate(rate, limit.burst),
    };
    Limit {
        interval,
        tolerance,
        id: stable_id(&limit.name),
        port: limit.port,
        protocol: limit.protocol.map_or(0, Protocol::number),
        bits4: limit.key.0,
        bits6: limit.key.1,
        audit: u8::from(limit.action == ListAction::Audit),
        mask: limit.tcp_flags.0,
        flags: limit.tcp_flags.1,
        bytes: u8::from(matches!(limit.rate, Rate::Bytes(_))),
        reserved: [0; 7],
    }
}

/// A list's number is its own as long as its name and its scope are.
fn id_of(list: &PrefixList) -> u64 {
    if list.scope.is_all() {
        return stable_id(&list.name);
    }
    stable_id(&format!("{}\0{}", list.name, list.scope))
}

fn scope_of(scope: &config::model::Scope, interfaces: &BTreeMap<String, u32>) -> Scope {
    let protocol = match scope.protocol {
        None => 0,
        Some(ScopeProtocol::Tcp) => abi::wire::protocol::TCP,
        Some(ScopeProtocol::Udp) => abi::wire::protocol::UDP,
        Some(ScopeProtocol::Sctp) => abi::scope::SCTP,
        Some(ScopeProtocol::Icmp) => abi::scope::ICMP,
    };
    let mut row = Scope::new(scope.destination, protocol);
    if !scope.interfaces.is_empty() {
        let index = |name: &String| interfaces.get(name).copied().unwrap_or(0);
        row.only_interfaces(scope.interfaces.iter().map(index));
    }
    if !scope.ports.is_empty() {
        row.only_ports(scope.ports.iter().copied());
    }
    row
}

/// Flags that are not of a half.
const LIVE: u64 = Control::GUARD | Control::DESTINATIONS;

fn live_flags(wanted: &Prefilter) -> u64 {
    let destinations = wanted.lists.iter().any(|list| list.scope.destination);
    guard_flags(wanted) | if destinations { Control::DESTINATIONS } else { 0 }
}

fn guard_flags(wanted: &Prefilter) -> u64 {
    let flag = |on, flag| if on { flag } else { 0 };
    flag(wanted.filters.tcp_flags, Control::FILTER_TCP_FLAGS)
        | flag(wanted.filters.amplification, Control::FILTER_AMPLIFICATION)
        | flag(wanted.filters.fragments, Control::FILTER_FRAGMENTS)
        | flag(!wanted.rate_limits.is_empty(), Control::LIMITS)
}

/// Words of the set of ports, but those that are zero.
fn syn_ports(ranges: &[(u16, u16)]) -> BTreeMap<u32, u64> {
    let mut words = BTreeMap::new();
    for port in ranges.iter().flat_map(|&(first, last)| first..=last) {
        let (word, bit) = synproxy::place(port);
        *words.entry(word).or_default() |= 1 << bit;
    }
    words
}

/// Whether the half in force says what was compiled; if so, which of its rows are used.
fn stands(
    v4: &Painted,
    v6: &[(Net6, u8)],
    filter: &[abi::prefix::Filter6],
    tables: &dyn Tables,
) -> Option<(Vec<bool>, Vec<bool>)> {
    let Capacity { lines, bitmaps, blocks, filter6, buckets6, .. } = tables.capacity();
    let (mut bitmaps, mut blocks) = (vec![false; bitmaps as usize], vec![false; blocks as usize]);
    for index in 0..if lines == 0 { 0 } else { LINES } {
        let words = tables.line(index);
        let wanted = &v4.words[index as usize * LINE..][..LINE];
        for (&word, &wanted) in words.iter().zip(wanted) {
            let (there, wanted) = (Entry::from_word(word), Entry::from_word(wanted));
            match there {
                Entry::Bitmap { row, .. } => *bitmaps.get_mut(row as usize)? = true,
                Entry::Block(row) => *blocks.get_mut(row as usize)? = true,
                Entry::List(_) | Entry::One(_) if there == wanted => continue,
                Entry::List(_) | Entry::One(_) => {}
            }
            if v4::lists_in(tables, there) != v4.lists(wanted) {
                return None;
            }
        }
    }
    if lines == 0 && v4.words.iter().any(|word| *word != 0) {
        return None;
    }
    let mut there: Vec<(Net6, u8)> = Vec::with_capacity(v6.len());
    for row in 0..buckets6 {
        let bucket: Bucket6 = tables.bucket6(row);
        there.extend((0..WAYS6).filter_map(|way| bucket.get(way)));
    }
    there.sort_unstable();
    let told = |row: u32| {
        let (has, wants) = (tables.filter6(row), filter[row as usize].words());
        has[0] & wants[0] == wants[0] && has[1] & wants[1] == wants[1]
    };
    (there == v6 && (0..filter6).all(told)).then_some((bitmaps, blocks))
}

/// Whether nothing has changed, told without a look at the prefixes of lists.
fn is_same(one: &Prefilter, other: &Prefilter) -> bool {
    one.allow == other.allow
        && one.filters == other.filters
        && one.rate_limits == other.rate_limits
        && one.syn_proxy == other.syn_proxy
        && one.lists.len() == other.lists.len()
        && one.lists.iter().zip(&other.lists).all(|(a, b)| Arc::ptr_eq(a, b))
}
