//! The table on a vector.

extern crate std;
use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use proptest::prelude::*;

use super::*;
use crate::{
    hash::{self, Tuple},
    nat::clients::{Bucket, Clients, buckets},
    wire::tcp_flags::{ACK, RST, SYN},
};

/// Entries, the words of their clients, and what was counted.
pub(crate) struct Table {
    entries: Vec<UnsafeCell<Entry>>,
    clients: Vec<Cell<Bucket>>,
    pub(crate) counts: RefCell<BTreeMap<u32, i64>>,
}

impl Table {
    pub(crate) fn new(entries: usize) -> Self {
        Self {
            entries: (0..entries).map(|_| UnsafeCell::new(Entry::default())).collect(),
            clients: (0..buckets(entries as u32)).map(|_| Cell::default()).collect(),
            counts: RefCell::default(),
        }
    }

    fn cell(&self, index: u32) -> &UnsafeCell<Entry> {
        &self.entries[index as usize & (self.entries.len() - 1)]
    }
}

impl Entries for Table {
    fn entry(&self, index: u32) -> Option<&Entry> {
        // SAFETY: one thread; nobody holds a reference across a change.
        Some(unsafe { &*self.cell(index).get() })
    }

    fn swap(&self, index: u32, old: Stamp, new: Stamp) -> bool {
        // SAFETY: as above; the state word is the first.
        let word = unsafe { &mut *self.cell(index).get().cast::<u64>() };
        let same = *word == old.to_word();
        if same {
            *word = new.to_word();
        }
        same
    }

    fn write(&self, index: u32, entry: &Entry) {
        // SAFETY: as above.
        unsafe { *self.cell(index).get() = *entry };
    }

    fn count(&self, backend: u32, more: i64) {
        *self.counts.borrow_mut().entry(backend).or_default() += more;
    }
}

impl Clients for Table {
    fn word(&self, bucket: u32, way: u32) -> u64 {
        self.clients[bucket as usize & (self.clients.len() - 1)].get()[way as usize]
    }

    fn swap_word(&self, bucket: u32, way: u32, old: u64, new: u64) -> bool {
        let cell = &self.clients[bucket as usize & (self.clients.len() - 1)];
        let mut words = cell.get();
        let same = words[way as usize] == old;
        if same {
            words[way as usize] = new;
            cell.set(words);
        }
        same
    }
}

pub(crate) const PORTS: Ports = Ports { first: 1024, count: 31_744 };
const NAT: Addr = Addr::v4(0x0100_000a);

pub(crate) fn flow(n: u32, backend: u32) -> Flow {
    let (client, vip) = (Addr::v4(n.wrapping_mul(0x9e37_79b1)), Addr::v4(0x0a71_00cb));
    let ports = (n & 0xffff) | u32::from(80u16.to_be()) << 16;
    let hash = hash::flow(&Tuple { src: client, dst: vip, ports, protocol: 6 }, 1);
    let port = 8080u16.to_be();
    let server = Addr::v4(0x0b01_000a + backend);
    let pair = pair(server, port, NAT, false, 3);
    let ports = u64::from(ports) | u64::from(port) << 48;
    let (backend, identity) = (u64::from(backend) | 1 << 32, Flow::identity(false, 2));
    Flow { client, vip, ports, backend, identity, hash, pair }
}

/// As the program goes about it.
fn forward(table: &Table, flow: &Flow, ports: Ports, opens: bool, link: u64, now: u32) -> Found {
    match first(table, flow, ports) {
        Found::NOTHING => search(table, flow, ports, opens, link, now),
        found => found,
    }
}

pub(crate) fn open(table: &Table, flow: &Flow, now: u32) -> Found {
    forward(table, flow, PORTS, true, 0, now)
}

fn back(table: &Table, flow: &Flow, found: Found) -> bool {
    let ports = (flow.ports >> 48) as u32 | u32::from(found.port().to_be()) << 16;
    let asked = Reply { index: place(flow.pair, found.port()), ports, udp: false };
    reply(table, &asked).is_some_and(|(entry, _)| {
        entry.client() == flow.client && entry.ports() as u32 == flow.ports as u32
    })
}

#[test]
fn there_and_back() {
    let table = Table::new(1 << 12);
    let mut seen = BTreeSet::new();
    for n in 0..1000 {
        let flow = flow(n, n % 3);
        assert_eq!(forward(&table, &flow, PORTS, false, 0, 9), Found::NOTHING);
        let found = open(&table, &flow, 9);
        assert!(found.is_entry() && PORTS.has(found.port()));
        assert_eq!(
            forward(&table, &flow, PORTS, false, 0, 10_000),
            found,
            "expired, and still its own"
        );
        assert!(back(&table, &flow, found));
        assert!(seen.insert((n % 3, found.port())), "a translated tuple twice");
    }
}

/// Half of the table, and four fifths of it.
#[test]
fn hardly_anything_is_refused() {
    for (share, most) in [(0.5, 0), (0.8, 200)] {
        let table = Table::new(1 << 16);
        let count = (65_536.0 * share) as u32;
        let refused = (0..count).filter(|&n| !open(&table, &flow(n, n % 64), 9).is_entry());
        let refused = refused.count();
        assert!(refused <= most, "{refused} at {share}");
    }
}

#[test]
fn exhaustion_expiry_and_what_is_over() {
    let table = Table::new(1 << 10);
    let few = Ports { first: 1024, count: 4 };
    let take = |n, now| forward(&table, &flow(n, 0), few, true, 0, now);
    let first: Vec<u32> = (0..200).filter(|&n| take(n, 9).is_entry()).collect();
    assert!(first.len() <= 4 && !first.is_empty());
    assert_eq!(take(1000, 9), Found::EXHAUSTED);
    assert!(take(1000, 19).is_entry(), "nobody answered the others");

    let index = take(1000, 19).index();
    note(&table, index, Side::Backend, SYN | ACK, 19);
    note(&table, index, Side::Client, ACK, 19);
    assert_eq!(table.entry(index).unwrap().stamp().phase(), Phase::Established);
    note(&table, index, Side::Backend, RST, 20);
    assert!(!table.entry(index).unwrap().stamp().is_free(20));
    // In the place of one that is over, when no other is left.
    let others: Vec<u32> = (2000..2400).filter(|&n| take(n, 20).is_entry()).collect();
    assert!(others.iter().any(|&n| take(n, 20).index() == index));
    assert_eq!(forward(&table, &flow(1000, 0), few, false, 0, 20), Found::NOTHING);
}

#[test]
fn an_entry_of_something_else() {
    let table = Table::new(1 << 10);
    let flow = flow(7, 0);
    let found = open(&table, &flow, 9);
    let other = |change: fn(&mut Flow)| {
        let mut other = flow;
        change(&mut other);
        forward(&table, &other, PORTS, false, 0, 9)
    };
    for change in [
        (|f| f.client = NAT) as fn(&mut Flow),
        |f| f.vip = NAT,
        |f| f.ports ^= 1,
        |f| f.ports ^= 1 << 48,
        |f| f.identity = Flow::identity(true, 2),
        |f| f.identity = Flow::identity(false, 1),
        |f| f.backend ^= 1,
        |f| f.backend ^= 1 << 32,
    ] {
        assert_eq!(other(change), Found::NOTHING);
    }
    assert_eq!(other(|_| ()), found);
    assert!(!back(&table, &Flow { ports: flow.ports ^ 1 << 48, ..flow }, found));
    let stamp = table.entry(found.index()).unwrap().stamp();
    assert!(table.swap(found.index(), stamp, stamp.with_phase(Phase::Removed)));
    assert_eq!(other(|_| ()), Found::NOTHING);
    assert!(!back(&table, &flow, found));
}

#[test]
fn connections_of_a_backend_are_counted() {
    let table = Table::new(1 << 10);
    let counted = |n, backend| {
        let flow = flow(n, backend);
        Flow { identity: Flow::counted(flow.identity, true), ..flow }
    };
    let found: Vec<Found> = (0..9).map(|n| open(&table, &counted(n, n % 3), 9)).collect();
    open(&table, &flow(9, 1), 9);
    let counts = || table.counts.borrow().values().copied().collect::<Vec<_>>();
    assert_eq!(counts(), [3, 3, 3], "and not those of others");
    assert_eq!(open(&table, &flow(0, 0), 9), found[0], "whether its service counts now or not");
    note(&table, found[0].index(), Side::Backend, RST, 10);
    note(&table, found[0].index(), Side::Backend, RST, 11);
    assert_eq!(counts(), [2, 3, 3]);
    note(&table, found[0].index(), Side::Client, SYN, 11);
    assert_eq!(counts(), [3, 3, 3], "the next one of the same ports");
    // Others take places of those that fell silent.
    for n in 10..2000 {
        open(&table, &flow(n, n % 3), 3000);
    }
    assert!(counts().iter().all(|count| (0..=1).contains(count)), "{:?}", counts());
}

proptest! {
    #[test]
    fn candidates_stay_inside(hash: u64, first: u16, count in 1u32..=65_536, n in 0..CANDIDATES) {
        let count = count.min(65_536 - u32::from(first));
        let ports = Ports { first, count };
        prop_assert!(ports.has(ports.candidate(hash, n)));
        prop_assert_eq!(ports.has(first.wrapping_sub(1)), count == 65_536);
    }
}
