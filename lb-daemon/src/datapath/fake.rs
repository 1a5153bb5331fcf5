//! Tables in vectors, which can be told to fail: for tests of everything above the kernel, and as
//! the tables that the packet code runs on under test.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    io,
};

use super::{ApplyError, Capacity, Datapath, Image, Op, Tables};
use abi::{
    addr::Addr,
    flow::{FlowEntry, FlowKey},
    guard::Limit,
    pick,
    prefix::{self, Block, Bucket6, Entry, Filter6, LINE, ListRow},
    scope::Scope,
    summary,
    table::{Backend, Bucket, Control, Egress, Frontend, FrontendKey, HopWord, State, Way},
};

/// Tables in vectors.
#[derive(Clone, Debug)]
pub struct Fake {
    capacity: Capacity,
    control: Control,
    generation: u64,
    vips: Vec<u64>,
    buckets: Vec<[u64; 4]>,
    frontends: Vec<Frontend>,
    slots: Vec<u64>,
    backends: Vec<Backend>,
    egress: Vec<Egress>,
    nat_addresses: BTreeMap<u32, Addr>,
    ways: BTreeMap<u32, Way>,
    /// Rows of blocklists.
    pub lists: BTreeMap<u32, ListRow>,
    limits: BTreeMap<u32, Limit>,
    syn_ports: BTreeMap<u32, u64>,
    scopes: BTreeMap<u32, Scope>,
    halves: [Option<Box<Image>>; 2],
    /// Entries of the flow table, as [`pick::backend`] leaves them.
    pub flows: RefCell<HashMap<FlowKey, FlowEntry>>,
    /// Operations carried out since the tables were made.
    pub applied: u64,
    /// Refuse the operation after this many.
    pub fail_at: Option<u64>,
}

impl Fake {
    /// Empty tables.
    #[must_use]
    pub fn new(capacity: Capacity, salt: u64, seed: u64) -> Self {
        let frontend = Frontend::vip(abi::addr::Addr::default(), None, None);
        let backend =
            Backend::new(abi::addr::Addr::default(), HopWord::UNRESOLVED, State::default(), 0, 0);
        Self {
            capacity,
            control: Control::new(0, salt, seed, 1),
            generation: 0,
            vips: vec![0; capacity.vip_words() as usize],
            buckets: vec![[0; 4]; capacity.buckets as usize],
            frontends: vec![frontend; capacity.frontends as usize],
            slots: vec![0; capacity.slots as usize],
            backends: vec![backend; capacity.backends as usize],
            egress: vec![Egress::default(); capacity.egress as usize],
            nat_addresses: BTreeMap::new(),
            ways: BTreeMap::new(),
            lists: BTreeMap::new(),
            limits: BTreeMap::new(),
            syn_ports: BTreeMap::new(),
            scopes: BTreeMap::new(),
            halves: [None, None],
            flows: RefCell::default(),
            applied: 0,
            fail_at: None,
        }
    }

    /// The row of a key, found as a packet would.
    #[must_use]
    pub fn find(&self, key: &FrontendKey) -> Option<u32> {
        let view = self.view();
        pick::frontend(&view, key).map(|(row, _)| row)
    }

    /// The tables as the packet code reads them.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View { buckets: self.buckets.iter().map(|&w| Bucket::from_words(w)).collect(), fake: self }
    }

    /// Changes put in force.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// See [`Fake::view`].
pub struct View<'a> {
    fake: &'a Fake,
    buckets: Vec<Bucket>,
}

impl pick::Tables for View<'_> {
    fn salt(&self) -> u64 {
        self.fake.control.salt()
    }

    fn vip_bit(&self, hash: u64, _folded: u64) -> bool {
        let (index, bit) = pick::vip_place(hash, self.fake.capacity.vip_shift());
        self.fake.vips[index as usize] & bit != 0
    }

    fn bucket(&self, hash: u64) -> &Bucket {
        &self.buckets[(hash >> 32 & u64::from(self.fake.capacity.buckets - 1)) as usize]
    }

    fn frontend(&self, row: u32) -> Option<&Frontend> {
        self.fake.frontends.get(row as usize)
    }

    fn slot(&self, index: u32) -> Option<u64> {
        self.fake.slots.get(index as usize).copied()
    }

    fn backend(&self, row: u32) -> Option<&Backend> {
        self.fake.backends.get(row as usize)
    }

    fn flow(&self, key: &FlowKey, _: u64) -> Option<FlowEntry> {
        self.fake.flows.borrow().get(key).copied()
    }

    fn remember(&self, key: &FlowKey, _: u64, entry: &FlowEntry) {
        self.fake.flows.borrow_mut().insert(*key, *entry);
    }

    fn admit(&self) -> bool {
        true
    }
}

impl Tables for Fake {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn control(&self) -> Control {
        self.control
    }

    fn vip_word(&self, index: u32) -> u64 {
        self.vips[index as usize]
    }

    fn bucket(&self, index: u32) -> Bucket {
        Bucket::from_words(self.buckets[index as usize])
    }

    fn frontend(&self, row: u32) -> Frontend {
        self.frontends[row as usize]
    }

    fn slot(&self, index: u32) -> u64 {
        self.slots[index as usize]
    }

    fn backend(&self, row: u32) -> Backend {
        self.backends[row as usize]
    }

    fn egress(&self, row: u32) -> Egress {
        self.egress[row as usize]
    }

    fn nat_address(&self, row: u32) -> Addr {
        self.nat_addresses.get(&row).copied().unwrap_or_default()
    }

    fn way(&self, row: u32) -> Way {
        self.ways.get(&row).copied().unwrap_or_default()
    }

    fn list(&self, row: u32) -> ListRow {
        self.lists.get(&row).copied().unwrap_or_default()
    }

    fn scope(&self, row: u32) -> Scope {
        self.scopes.get(&row).copied().unwrap_or_default()
    }

    fn syn_ports(&self, word: u32) -> u64 {
        self.syn_ports.get(&word).copied().unwrap_or_default()
    }

    fn limit(&self, row: u32) -> Limit {
        self.limits.get(&row).copied().unwrap_or_default()
    }

    fn line(&self, index: u32) -> [u32; LINE] {
        let words = self.half().map(|half| &half.words[index as usize * LINE..][..LINE]);
        words.and_then(|words| words.try_into().ok()).unwrap_or_default()
    }

    fn bitmap(&self, row: u32) -> [u64; 4] {
        let bitmap = self.half().and_then(|half| half.bitmaps.get(row as usize));
        bitmap.copied().unwrap_or_default().words()
    }

    fn block(&self, row: u32) -> Box<[u8; 256]> {
        let block = self.half().and_then(|half| half.blocks.get(row as usize));
        Box::new(block.map_or([0; 256], |block| *block.lists()))
    }

    fn filter6(&self, row: u32) -> [u64; 2] {
        let words = self.half().and_then(|half| half.filter.get(row as usize));
        words.copied().unwrap_or_default().words()
    }

    fn bucket6(&self, row: u32) -> Bucket6 {
        let bucket = self.half().and_then(|half| half.buckets.get(row as usize));
        bucket.copied().unwrap_or_default()
    }
}

impl Fake {
    /// The words of the networks of a group.
    fn group(&self, row: u32) -> &[u32] {
        let at = row as usize * summary::GROUP;
        self.half().and_then(|half| half.words.get(at..at + summary::GROUP)).unwrap_or_default()
    }
}

impl prefix::Prefixes for Fake {
    /// Made when it is asked for: a fake does not keep one.
    fn summary(&self, row: u32) -> u64 {
        let group = |row: u32| {
            let entries = self.group(row);
            let bits = (0..).zip(entries).map(|(n, word)| u32::from(*word != 0) << n);
            summary::group(bits.sum(), row * summary::GROUP as u32)
        };
        let middle = |row: u32| summary::middle4([group(row * 2), group(row * 2 + 1)]);
        match row {
            ..summary::COARSE => {
                summary::coarse4(&std::array::from_fn(|n| middle(row * 8 + n as u32)))
            }
            summary::COARSE..summary::FIRST_GROUP => middle(row - summary::COARSE),
            _ => group(row - summary::FIRST_GROUP),
        }
    }

    fn fine(&self, row: u32) -> u64 {
        let Some(half) = self.half() else { return 0 };
        let words = half.words.get(row as usize * 8..).and_then(|words| words.first_chunk::<8>());
        let bitmap = |row: u32| half.bitmaps[row as usize].words();
        words.map_or(0, |words| Entry::fine(words, bitmap))
    }

    fn entry(&self, place: u32) -> u32 {
        let entries = self.group(place / summary::GROUP as u32);
        let mut there = entries.iter().filter(|word| **word != 0);
        there.nth(place as usize % summary::GROUP).copied().unwrap_or(0)
    }

    fn bitmap(&self, row: u32, low: u8) -> bool {
        self.half().is_some_and(|half| half.bitmaps[row as usize].holds(low))
    }

    fn block(&self, row: u32, low: u8) -> u8 {
        self.half().map_or(0, |half| half.blocks[row as usize].lists()[usize::from(low)])
    }

    fn filter6(&self, row: u32) -> [u64; 2] {
        Tables::filter6(self, row & (self.capacity.filter6 - 1))
    }

    fn bucket6(&self, index: u32) -> Option<&Bucket6> {
        self.half()?.buckets.get((index & (self.capacity.buckets6 - 1)) as usize)
    }
}

impl Datapath for Fake {
    fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        for op in ops {
            if self.fail_at.is_some_and(|n| self.applied >= n) {
                return Err(ApplyError {
                    what: format!("{op:?}"),
                    source: io::Error::from_raw_os_error(libc::ENOMEM),
                });
            }
            self.applied += 1;
            self.carry_out(op);
        }
        Ok(())
    }
}

impl Fake {
    fn carry_out(&mut self, op: &Op) {
        match *op {
            Op::Egress(row, value) => self.egress[row as usize] = value,
            Op::Backend(row, value) => self.backends[row as usize] = value,
            Op::Hop(row, hop) => {
                let b = &mut self.backends[row as usize];
                *b = Backend::new(b.addr(), hop, b.state(), b.id(), b.epoch());
            }
            Op::State(row, state) => {
                let b = &mut self.backends[row as usize];
                *b = Backend::new(b.addr(), b.hop(), state, b.id(), b.epoch());
            }
            Op::Ring { offset, signature, ref slots } => {
                for (i, slot) in slots.iter().enumerate() {
                    self.slots[offset as usize + i] = slot.to_word();
                }
                self.slots[offset as usize - 1] = signature;
            }
            Op::Slot(index, slot) => self.slots[index as usize] = slot.to_word(),
            Op::Signature(index, word) => self.slots[index as usize] = word,
            Op::Frontend(row, value) => self.frontends[row as usize] = value,
            Op::FrontendRing(row, ring) => self.frontends[row as usize].set_ring(ring),
            Op::FrontendOldRing(row, ring) => self.frontends[row as usize].set_old_ring(ring),
            Op::FrontendRanges(row, word) => self.frontends[row as usize].set_ranges(word),
            Op::Words { offset, ref words } => {
                let at = offset as usize;
                self.slots[at..at + words.len()].copy_from_slice(words);
            }
            Op::FrontendAny(row, word) => self.frontends[row as usize].set_any(word),
            Op::VipWord(index, word) => self.vips[index as usize] = word,
            Op::Bucket { index, way, word } => {
                self.buckets[index as usize][usize::from(way)] = word;
            }
            Op::List(row, value) => {
                self.lists.insert(row, value);
            }
            Op::Scope(row, value) => {
                self.scopes.insert(row, value);
            }
            Op::SynPorts(word, ports) => {
                self.syn_ports.insert(word, ports);
            }
            Op::Limit(row, value) => {
                self.limits.insert(row, value);
            }
            Op::Bitmap(row, bitmap) => put(&mut self.half_mut().bitmaps, row, bitmap),
            Op::Block(row, ref lists) => {
                put(&mut self.half_mut().blocks, row, Block::new(**lists));
            }
            Op::Line(network, entry) => {
                self.half_mut().words[network as usize] = entry.to_word();
            }
            Op::Bucket6(row, bucket) => put(&mut self.half_mut().buckets, row, bucket),
            Op::Filter6(row, words) => put(&mut self.half_mut().filter, row, words),
            Op::Settle => {}
            Op::Prefixes(ref image) => {
                let idle = 1 - self.number();
                self.halves[idle] = Some(image.clone());
            }
            Op::NatAddress(row, addr) => drop(self.nat_addresses.insert(row, addr)),
            Op::Way(row, way) => drop(self.ways.insert(row, way)),
            Op::Unserved(what) => self.control.set_unserved(what),
            Op::Flags(flags) => self.control.set_flags(flags),
            Op::Generation(n) => self.generation = n,
        }
    }

    /// The half in force.
    fn number(&self) -> usize {
        usize::from(self.control.flags() & Control::HALF != 0)
    }

    fn half(&self) -> Option<&Image> {
        self.halves[self.number()].as_deref()
    }

    fn half_mut(&mut self) -> &mut Image {
        let number = self.number();
        let Capacity { filter6, buckets6, .. } = self.capacity;
        self.halves[number].get_or_insert_with(|| {
            Box::new(Image {
                words: vec![0; 1 << 24],
                filter: vec![Filter6::default(); filter6 as usize],
                buckets: vec![Bucket6::default(); buckets6 as usize],
                ..Image::default()
            })
        })
    }
}

fn put<T: Clone + Default>(rows: &mut Vec<T>, row: u32, value: T) {
    if rows.len() <= row as usize {
        rows.resize(row as usize + 1, T::default());
    }
    rows[row as usize] = value;
}
