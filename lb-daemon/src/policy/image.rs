//! What stands in the policy tables, and the operations that change it. Pure.
//!
//! Policies, port tables and pages with the same content stand once. What is changed is written anew
//! beside the old; an interface's word, an address's row and a bucket's word are single stores. What was
//! given back is used again only after [`Image::release`].

pub(crate) mod nets;

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
};

use abi::{
    addr::Addr,
    limits::MAX_PROBES,
    policy::{AddressRow, Entries, Entry, Interface, Page, PolicyRow, Side, Top, WAYS},
    table::Bucket,
};
use config::policy::{Direction, Established};
use ipnet::IpNet;

use self::nets::Nets;
use super::{Compiled, Identity, compile::Table};
use crate::plan::{
    Full,
    alloc::{Arena, Rows},
};

/// Protocols whose ports have classes, in the order of a side's tops.
const PROTOCOLS: [u8; 5] = [6, 17, 132, 1, 58];

/// How large each table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Interface indexes.
    pub interfaces: u32,
    /// Policy rows.
    pub policies: u32,
    /// Port tables.
    pub tops: u32,
    /// Pages of them.
    pub pages: u32,
    /// Buckets of entries.
    pub entries: u32,
    /// Rows of addresses.
    pub addresses: u32,
    /// Buckets of addresses; a power of two.
    pub buckets: u32,
    /// Prefixes.
    pub prefixes: u32,
    /// Rules with counters.
    pub rules: u32,
}

/// One step of a change.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Writes a page.
    Page(u32, Box<Page>),
    /// Writes a port table.
    Top(u32, Box<Top>),
    /// Writes buckets of entries from this one on.
    Entries(u32, Vec<Entries>),
    /// Writes a policy row.
    Policy(u32, PolicyRow),
    /// Stores an interface's word; 0: nobody's.
    Interface(u32, u64),
    /// Writes the row of an address, or stores another identity.
    Address(u32, AddressRow),
    /// Stores a word of a bucket of addresses.
    Bucket {
        /// Index of the bucket.
        index: u32,
        /// Word of the bucket.
        way: u8,
        /// As [`Bucket::entry`] makes it.
        word: u64,
    },
    /// Gives a row of counters to the rule of this number; 0: to nobody.
    Rule(u32, u64),
    /// Writes the address of a prefix into a way that is nobody's.
    Net {
        /// Index of the bucket.
        bucket: u32,
        /// Below [`abi::policy::nets::NET_WAYS`].
        way: usize,
        /// The prefix's address.
        words: [u64; 2],
    },
    /// Stores what stands for two ways of a bucket of prefixes.
    NetMeta {
        /// Index of the bucket.
        bucket: u32,
        /// 0 or 1.
        index: usize,
        /// Halves as [`abi::policy::nets::NetBucket::meta`] makes them; 0: nobody's.
        word: u64,
    },
    /// Stores a word of the filter of prefixes.
    NetFilter {
        /// Of the filter.
        row: u32,
        /// 0 or 1.
        word: usize,
        /// Lengths in use.
        bits: u64,
    },
    /// Says which prefixes there are: [`abi::policy::nets::Known`].
    Known(u64),
}

/// First port, last port, class; disjoint and in order.
type Ranges = Vec<(u16, u16, u16)>;

/// What an endpoint's policy is made of, with the rows of rules in place of their order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Content {
    sides: [SideContent; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SideContent {
    flags: u32,
    tops: [Ranges; 5],
    entries: Vec<(Identity, u16, u64)>,
}

impl Content {
    /// Of compiled rules; `rows`: the row of each; `established`: what becomes of connections.
    #[must_use]
    pub fn new(compiled: &Compiled, rows: &[u32], established: Established) -> Self {
        let [into, out] = [Direction::Ingress, Direction::Egress].map(|way| compiled.table(way));
        let open = |table: &Table| {
            !table.is_closed() && !table.is_audited() && table.verdicts().is_empty()
        };
        Self {
            sides: [
                SideContent::new(into, open(out), rows, established),
                SideContent::new(out, open(into), rows, established),
            ],
        }
    }
}

impl SideContent {
    fn new(table: &Table, open_back: bool, rows: &[u32], established: Established) -> Self {
        let hold = established == Established::Keep;
        let mut flags = 0;
        let mut flag = |on: bool, flag: u32| flags |= if on { flag } else { 0 };
        flag(table.is_closed(), Side::CLOSED);
        flag(table.is_audited(), Side::AUDIT);
        flag(!table.verdicts().is_empty(), Side::ENTRIES);
        flag(table.verdicts().range((0, 0)..(1, 0)).next().is_some(), Side::ANYBODY);
        flag(hold, Side::HOLD);
        flag(hold || !open_back || table.has_names(), Side::TRACK);
        flag(hold || table.has_names(), Side::KEEP);
        let tops = PROTOCOLS.map(|protocol| {
            let own = table.classes().iter().filter(|(ports, _)| ports.protocol == protocol);
            own.map(|(ports, class)| (ports.first, ports.last, *class)).collect()
        });
        let entries = table.verdicts().iter().map(|(&(identity, class), verdict)| {
            let rule =
                verdict.rule().and_then(|rule| rows.get(rule as usize)).copied().unwrap_or(0);
            let (deny, audit) = (!verdict.passes(), verdict.is_audited());
            let entry = Entry { identity, class, deny, audit, rule };
            (identity, class, entry.to_word())
        });
        Self { flags, tops, entries: entries.collect() }
    }
}

/// Rows with content that is there once.
struct Pool<T> {
    rows: Rows,
    by_content: HashMap<T, u32>,
    by_row: HashMap<u32, (T, u32)>,
}

impl<T: Clone + Eq + Hash> Pool<T> {
    /// Row 0 holds `first`, always: tables begin as zeroes.
    fn new(capacity: u32, first: T) -> Self {
        let mut rows = Rows::new(capacity);
        let row = rows.take().unwrap_or(0);
        Self {
            rows,
            by_content: HashMap::from([(first.clone(), row)]),
            by_row: HashMap::from([(row, (first, 1))]),
        }
    }

    /// The row of this content, and whether it must be written.
    fn take(&mut self, content: &T) -> Option<(u32, bool)> {
        if let Some(&row) = self.by_content.get(content) {
            self.by_row.entry(row).and_modify(|(_, users)| *users += 1);
            return Some((row, false));
        }
        let row = self.rows.take()?;
        self.by_content.insert(content.clone(), row);
        self.by_row.insert(row, (content.clone(), 1));
        Some((row, true))
    }

    /// One user less; true: it was the last.
    fn give(&mut self, row: u32) -> bool {
        let Some((_, users)) = self.by_row.get_mut(&row) else { return false };
        *users -= 1;
        if *users > 0 {
            return false;
        }
        if let Some((content, _)) = self.by_row.remove(&row) {
            self.by_content.remove(&content);
            self.rows.give(row);
        }
        true
    }
}

/// A policy that stands in the tables.
struct Held {
    row: u32,
    users: u32,
    tops: Vec<u32>,
    regions: Vec<(u32, u32)>,
}

/// See the module.
pub struct Image {
    sizes: Sizes,
    salt: u64,
    rows: Rows,
    policies: HashMap<Arc<Content>, Held>,
    tops: Pool<Ranges>,
    pages_of: HashMap<u32, Vec<u32>>,
    pages: Pool<Vec<u16>>,
    arena: Arena,
    interfaces: BTreeMap<u32, (Arc<Content>, u64)>,
    address_rows: Rows,
    addresses: BTreeMap<IpAddr, (u32, Identity)>,
    buckets: HashMap<u32, [u64; 4]>,
    nets: Nets,
    waits: bool,
}

/// An endpoint's interface.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Its policy.
    pub content: Arc<Content>,
    /// Its identity.
    pub identity: Identity,
    /// What would be denied passes.
    pub audit: bool,
    /// It is this machine's own.
    pub host: bool,
}

impl Image {
    /// Of empty tables of these sizes.
    #[must_use]
    pub fn new(sizes: Sizes, salt: u64) -> Self {
        Self {
            sizes,
            salt,
            rows: Rows::new(sizes.policies),
            policies: HashMap::new(),
            tops: Pool::new(sizes.tops, Vec::new()),
            pages_of: HashMap::new(),
            pages: Pool::new(sizes.pages, vec![0; 256]),
            arena: Arena::new(sizes.entries),
            interfaces: BTreeMap::new(),
            address_rows: Rows::new(sizes.addresses),
            addresses: BTreeMap::new(),
            buckets: HashMap::new(),
            nets: Nets::new(sizes.prefixes),
            waits: false,
        }
    }

    /// Entries in use: policies, buckets of entries, addresses, prefixes.
    #[must_use]
    pub fn used(&self) -> [u32; 4] {
        let addresses = self.addresses.len() as u32;
        [self.rows.used(), self.arena.used(), addresses, self.nets.len() as u32]
    }

    /// The programs have left everything given back so far.
    pub fn release(&mut self) {
        self.rows.release();
        self.tops.rows.release();
        self.pages.rows.release();
        self.arena.release();
        self.address_rows.release();
        self.nets.release();
        self.waits = false;
    }

    /// Whether anything waits to be released.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.waits || self.nets.waits()
    }

    /// Puts policies behind interfaces, and none behind all others.
    ///
    /// # Errors
    /// A table is full; this image is of no use then.
    pub fn set_interfaces(
        &mut self,
        wanted: &BTreeMap<u32, Attached>,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let mut leave = self.put(wanted, ops)?;
        let gone: Vec<u32> =
            self.interfaces.keys().filter(|index| !wanted.contains_key(index)).copied().collect();
        for index in gone {
            ops.push(Op::Interface(index, 0));
            leave.extend(self.interfaces.remove(&index).map(|(content, _)| content));
        }
        for content in leave {
            self.leave(&content);
        }
        Ok(())
    }

    /// Puts policies behind these interfaces and leaves the others as they are.
    ///
    /// # Errors
    /// A table is full; this image is of no use then.
    pub fn put_interfaces(
        &mut self,
        some: &BTreeMap<u32, Attached>,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        for content in self.put(some, ops)? {
            self.leave(&content);
        }
        Ok(())
    }

    /// The identity behind an interface.
    #[must_use]
    pub fn identity_at(&self, index: u32) -> Option<Identity> {
        let (_, word) = self.interfaces.get(&index)?;
        Interface::from_word(*word).map(|interface| interface.identity)
    }

    /// An interface is nobody's any more.
    pub fn remove_interface(&mut self, index: u32, ops: &mut Vec<Op>) {
        if let Some((content, _)) = self.interfaces.remove(&index) {
            ops.push(Op::Interface(index, 0));
            self.leave(&content);
        }
    }

    /// What is behind them no longer comes back, still with its users.
    fn put(
        &mut self,
        some: &BTreeMap<u32, Attached>,
        ops: &mut Vec<Op>,
    ) -> Result<Vec<Arc<Content>>, Full> {
        let mut leave = Vec::new();
        for (&index, Attached { content, identity, audit, host }) in some {
            if index >= self.sizes.interfaces {
                return Err(Full("P_INTERFACES"));
            }
            let same = self.interfaces.get(&index).map(|(old, word)| (old == content, *word));
            let policy = match same {
                Some((true, word)) => word as u32,
                _ => self.hold(content, ops)?,
            };
            let word =
                Interface { policy, identity: *identity, audit: *audit, host: *host }.to_word();
            if same == Some((true, word)) {
                continue;
            }
            ops.push(Op::Interface(index, word));
            if let Some((old, _)) = self.interfaces.insert(index, (Arc::clone(content), word))
                && old != *content
            {
                leave.push(old);
            }
        }
        Ok(leave)
    }

    /// The row of a policy, which has one user more.
    fn hold(&mut self, content: &Arc<Content>, ops: &mut Vec<Op>) -> Result<u32, Full> {
        if let Some(held) = self.policies.get_mut(content) {
            held.users += 1;
            return Ok(held.row);
        }
        let mut held = Held { row: 0, users: 1, tops: Vec::new(), regions: Vec::new() };
        let into = self.side(&content.sides[0], &mut held, ops)?;
        let out = self.side(&content.sides[1], &mut held, ops)?;
        held.row = self.rows.take().ok_or(Full("P_POLICIES"))?;
        ops.push(Op::Policy(held.row, PolicyRow::new(into, out)));
        let row = held.row;
        self.policies.insert(Arc::clone(content), held);
        Ok(row)
    }

    fn side(
        &mut self,
        content: &SideContent,
        held: &mut Held,
        ops: &mut Vec<Op>,
    ) -> Result<Side, Full> {
        let mut tops = [0; 5];
        for (top, ranges) in tops.iter_mut().zip(&content.tops) {
            if !ranges.is_empty() {
                *top = self.top(ranges, ops)?;
                held.tops.push(*top);
            }
        }
        if content.entries.is_empty() {
            return Ok(Side::new(tops, 0, 0, content.flags));
        }
        let buckets = fill(&content.entries).ok_or(Full("P_ENTRIES"))?;
        let len = buckets.len() as u32;
        let offset = self.arena.take(len).ok_or(Full("P_ENTRIES"))?;
        held.regions.push((offset, len));
        ops.push(Op::Entries(offset, buckets));
        Ok(Side::new(tops, offset, len - 1, content.flags))
    }

    fn top(&mut self, ranges: &Ranges, ops: &mut Vec<Op>) -> Result<u32, Full> {
        let (row, new) = self.tops.take(ranges).ok_or(Full("P_TOPS"))?;
        if !new {
            return Ok(row);
        }
        let mut classes = vec![0u16; 1 << 16];
        for &(first, last, class) in ranges {
            classes[usize::from(first)..=usize::from(last)].fill(class);
        }
        let mut pages = Vec::with_capacity(256);
        for page in classes.chunks_exact(256) {
            let (row, new) = self.pages.take(&page.to_vec()).ok_or(Full("P_PAGES"))?;
            if new {
                let classes = std::array::from_fn(|port| page[port]);
                ops.push(Op::Page(row, Box::new(Page::new(classes))));
            }
            pages.push(row);
        }
        ops.push(Op::Top(row, Box::new(Top::new(std::array::from_fn(|high| pages[high])))));
        self.pages_of.insert(row, pages);
        Ok(row)
    }

    fn leave(&mut self, content: &Arc<Content>) {
        let Some(held) = self.policies.get_mut(content) else { return };
        held.users -= 1;
        if held.users > 0 {
            return;
        }
        let Some(Held { row, tops, regions, .. }) = self.policies.remove(content) else { return };
        self.waits = true;
        self.rows.give(row);
        for top in tops {
            if self.tops.give(top)
                && let Some(pages) = self.pages_of.remove(&top)
            {
                for page in pages {
                    self.pages.give(page);
                }
            }
        }
        for (offset, len) in regions {
            self.arena.give(offset, len);
        }
    }

    /// Says whose every address is.
    ///
    /// # Errors
    /// The table is full; this image is of no use then.
    pub fn set_addresses(
        &mut self,
        wanted: &HashMap<IpAddr, Identity>,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let gone: Vec<IpAddr> = self
            .addresses
            .keys()
            .filter(|address| !wanted.contains_key(address))
            .copied()
            .collect();
        for address in gone {
            self.set_address(address, None, ops)?;
        }
        // In the order of addresses: the same wishes make the same tables.
        let mut sorted: Vec<_> = wanted.iter().collect();
        sorted.sort_unstable();
        for (&address, &identity) in sorted {
            self.set_address(address, Some(identity), ops)?;
        }
        Ok(())
    }

    /// Says whose an address is; `None`: nobody's.
    ///
    /// # Errors
    /// The table is full; this image is of no use then.
    pub fn set_address(
        &mut self,
        address: IpAddr,
        identity: Option<Identity>,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let Some(identity) = identity else {
            if let Some((row, _)) = self.addresses.remove(&address) {
                self.remove_address(address, row, ops);
            }
            return Ok(());
        };
        let own = AddressRow::new(address.into(), identity);
        match self.addresses.get(&address) {
            Some(&(_, old)) if old == identity => {}
            Some(&(row, _)) => {
                ops.push(Op::Address(row, own));
                self.addresses.insert(address, (row, identity));
            }
            None => {
                let row = self.address_rows.take().ok_or(Full("P_ADDRESSES"))?;
                ops.push(Op::Address(row, own));
                self.add_address(address, row, ops)?;
                self.addresses.insert(address, (row, identity));
            }
        }
        Ok(())
    }

    fn add_address(&mut self, address: IpAddr, row: u32, ops: &mut Vec<Op>) -> Result<(), Full> {
        let (home, tag) = AddressRow::hash(Addr::from(address), self.salt);
        let mask = self.sizes.buckets - 1;
        let mut place = None;
        for step in 0..MAX_PROBES {
            let words =
                self.buckets.get(&(home.wrapping_add(step) & mask)).copied().unwrap_or_default();
            // A lookup stops at the first word with this tag in a bucket.
            if words.iter().any(|&w| Bucket::decode(w).is_some_and(|(t, _)| t == tag)) {
                return Err(Full("P_BUCKETS"));
            }
            if place.is_none() {
                place =
                    words.iter().position(|&w| Bucket::decode(w).is_none()).map(|way| (step, way));
            }
        }
        let (steps, way) = place.ok_or(Full("P_BUCKETS"))?;
        self.store(home.wrapping_add(steps) & mask, way, Bucket::entry(tag, row), ops);
        for step in (0..steps).rev() {
            let index = home.wrapping_add(step) & mask;
            let last = self.buckets.get(&index).map_or(0, |words| words[3]);
            if !Bucket::has_overflow(last) {
                self.store(index, 3, Bucket::with_overflow(last, true), ops);
            }
        }
        Ok(())
    }

    fn remove_address(&mut self, address: IpAddr, row: u32, ops: &mut Vec<Op>) {
        let (home, tag) = AddressRow::hash(Addr::from(address), self.salt);
        let mask = self.sizes.buckets - 1;
        for step in 0..MAX_PROBES {
            let index = home.wrapping_add(step) & mask;
            let words = self.buckets.get(&index).copied().unwrap_or_default();
            if let Some(way) = words.iter().position(|&w| Bucket::decode(w) == Some((tag, row))) {
                self.store(index, way, 0, ops);
                self.address_rows.give(row);
                self.waits = true;
                return;
            }
        }
    }

    /// Stores a word; the overflow bit of the last one stays or comes, and never goes.
    fn store(&mut self, index: u32, way: usize, word: u64, ops: &mut Vec<Op>) {
        let words = self.buckets.entry(index).or_default();
        let keep = way == 3 && Bucket::has_overflow(words[3]);
        words[way] = if keep { Bucket::with_overflow(word, true) } else { word };
        ops.push(Op::Bucket { index, way: way as u8, word: words[way] });
    }

    /// Adds prefixes, and gives those that are there another identity.
    ///
    /// # Errors
    /// The table is full.
    pub fn add_prefixes(
        &mut self,
        wanted: &BTreeMap<IpNet, Identity>,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        // Wide ones first: an address is never of a wider one than it was.
        let mut sorted: Vec<_> = wanted.iter().collect();
        sorted.sort_unstable_by_key(|(net, _)| (net.prefix_len(), **net));
        for (&net, &identity) in sorted {
            self.nets.put(net, identity, ops)?;
        }
        if self.nets.len() > self.sizes.prefixes as usize {
            return Err(Full("P_NETS"));
        }
        Ok(())
    }

    /// Removes all prefixes but these.
    pub fn retain_prefixes(&mut self, wanted: &BTreeMap<IpNet, Identity>, ops: &mut Vec<Op>) {
        let gone: Vec<IpNet> = self.nets.iter().filter(|net| !wanted.contains_key(net)).collect();
        for net in gone {
            self.nets.remove(net, ops);
        }
    }
}

/// Buckets with all entries, as many as it takes that none runs over. `None`: more than any table has.
fn fill(entries: &[(Identity, u16, u64)]) -> Option<Vec<Entries>> {
    let mut count = (entries.len() / (WAYS / 2)).max(1).next_power_of_two();
    while count <= 1 << 24 {
        let mut words = vec![[0u64; WAYS]; count];
        let mut used = vec![0u8; count];
        let fits = entries.iter().all(|&(identity, class, word)| {
            let at = Entry::hash(identity, class) as usize & (count - 1);
            let way = usize::from(used[at]);
            if way < WAYS {
                words[at][way] = word;
                used[at] += 1;
            }
            way < WAYS
        });
        if fits {
            return Some(words.into_iter().map(Entries::new).collect());
        }
        count *= 2;
    }
    None
}
