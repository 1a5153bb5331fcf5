//! Tables in vectors, which can be told to fail: for tests of everything above the kernel, and as
//! the tables that the packet code runs on under test.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    io,
};

use abi::{
    flow::{FlowEntry, FlowKey},
    pick,
    prefix::{Entry, LINE, ListRow},
    table::{Backend, Bucket, Control, Egress, Frontend, FrontendKey, HopWord, State},
};
use ipnet::Ipv6Net;

use super::{ApplyError, Capacity, Datapath, Op, Tables};

/// Tables in vectors.
#[derive(Clone, Debug)]
pub struct Fake {
    capacity: Capacity,
    control: Control,
    generation: u64,
    buckets: Vec<[u64; 4]>,
    frontends: Vec<Frontend>,
    slots: Vec<u64>,
    backends: Vec<Backend>,
    egress: Vec<Egress>,
    /// Rows of blocklists.
    pub lists: BTreeMap<u32, ListRow>,
    lines: BTreeMap<u32, [u32; LINE]>,
    blocks: BTreeMap<u32, Box<[u8; 256]>>,
    /// IPv6 prefixes.
    pub prefixes6: BTreeMap<Ipv6Net, u32>,
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
            buckets: vec![[0; 4]; capacity.buckets as usize],
            frontends: vec![frontend; capacity.frontends as usize],
            slots: vec![0; capacity.slots as usize],
            backends: vec![backend; capacity.backends as usize],
            egress: vec![Egress::default(); capacity.egress as usize],
            lists: BTreeMap::new(),
            lines: BTreeMap::new(),
            blocks: BTreeMap::new(),
            prefixes6: BTreeMap::new(),
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

    fn bucket(&self, index: u32) -> Option<&Bucket> {
        self.buckets.get((index & (self.fake.capacity.buckets - 1)) as usize)
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

    fn flow(&self, key: &FlowKey) -> Option<FlowEntry> {
        self.fake.flows.borrow().get(key).copied()
    }

    fn remember(&self, key: &FlowKey, entry: &FlowEntry) {
        self.fake.flows.borrow_mut().insert(*key, *entry);
    }
}

impl Tables for Fake {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn control(&self) -> Control {
        self.control
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

    fn list(&self, row: u32) -> ListRow {
        self.lists.get(&row).copied().unwrap_or_default()
    }

    fn line(&self, index: u32) -> [u32; LINE] {
        self.lines.get(&index).copied().unwrap_or_default()
    }

    fn block(&self, row: u32) -> Box<[u8; 256]> {
        self.blocks.get(&row).cloned().unwrap_or_else(|| Box::new([0; 256]))
    }

    fn prefixes6(&self) -> Result<BTreeMap<Ipv6Net, u32>, ApplyError> {
        Ok(self.prefixes6.clone())
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
            Op::FrontendAny(row, word) => self.frontends[row as usize].set_any(word),
            Op::Bucket { index, way, word } => {
                self.buckets[index as usize][usize::from(way)] = word;
            }
            Op::List(row, value) => {
                self.lists.insert(row, value);
            }
            Op::Block(row, ref lists) => {
                self.blocks.insert(row, lists.clone());
            }
            Op::Line(network, entry) => self.store_entry(network, entry),
            Op::Lines(ref networks, entry) => {
                networks.clone().for_each(|network| self.store_entry(network, entry));
            }
            Op::Unserved(what) => self.control.set_unserved(what),
            Op::Flags(flags) => self.control.set_flags(flags),
            Op::Prefix6(net, list) => {
                self.prefixes6.insert(net, list);
            }
            Op::RemovePrefix6(net) => {
                self.prefixes6.remove(&net);
            }
            Op::Generation(n) => self.generation = n,
        }
    }

    fn store_entry(&mut self, network: u32, entry: Entry) {
        let line = self.lines.entry(network / LINE as u32).or_default();
        line[network as usize % LINE] = entry.to_word();
    }
}
