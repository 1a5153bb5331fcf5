//! Where a connection's entry is, and what is done when there is none.

use super::entry::{Entry, Phase, Side, Stamp};
use crate::addr::Addr;

/// NAT ports that a connection may have.
pub const CANDIDATES: u32 = 16;

const P1: u64 = 0x9e37_79b1_85eb_ca87;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const P3: u64 = 0x1656_67b1_9e37_79f9;

/// The table. Indexes are taken modulo its size.
pub trait Entries {
    /// An entry.
    fn entry(&self, index: u32) -> Option<&Entry>;
    /// Replaces the state word of an entry, if it still is `old`; whether it was.
    fn swap(&self, index: u32, old: Stamp, new: Stamp) -> bool;
    /// Writes all of a claimed entry, and its state word last.
    fn write(&self, index: u32, entry: &Entry);
}

/// The range of NAT ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The first one, host byte order.
    pub first: u16,
    /// How many: with the first one, at most 65,536.
    pub count: u32,
}

impl Ports {
    /// One word: the first port, and in the high half how many less one.
    #[must_use]
    pub const fn to_word(self) -> u32 {
        self.first as u32 | (self.count - 1) << 16
    }

    /// From one word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u32) -> Self {
        Self { first: word as u16, count: (word >> 16) + 1 }
    }

    /// Whether it has this port, host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, port: u16) -> bool {
        (port.wrapping_sub(self.first) as u32) < self.count
    }

    /// The `n`th candidate of a connection, host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn candidate(self, hash: u64, n: u32) -> u16 {
        let h = (hash ^ (n as u64).wrapping_mul(P1)).wrapping_mul(P2);
        let h = (h ^ h >> 32) as u32;
        self.first.wrapping_add((((h as u64) * self.count as u64) >> 32) as u16)
    }
}

/// A connection as its client's packets show it, and the backend that it goes to. Words, so that a program can
/// put it aside while it searches.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Client.
    pub client: Addr,
    /// VIP.
    pub vip: Addr,
    /// Ports of client and VIP, as loaded from a header, 0, and the backend's as it stands in one.
    pub ports: u64,
    /// Row of the backend; in the high half the use of that row that is meant.
    pub backend: u64,
    /// Of [`Flow::identity`].
    pub identity: u64,
    /// Of [`crate::hash::flow`].
    pub hash: u64,
    /// Of [`pair`].
    pub pair: u64,
}

const _: () = assert!(size_of::<Flow>() == 9 * 8);

impl Flow {
    /// Protocol, and row of the NAT address.
    #[inline(always)]
    #[must_use]
    pub const fn identity(udp: bool, address: u8) -> u64 {
        Stamp::from_word(0).renew(Phase::Never, udp, address, 0).identity()
    }

    #[inline(always)]
    const fn all_ports(&self, nat: u16) -> u64 {
        self.ports | (nat.to_be() as u64) << 32
    }

    /// Whether this entry, with this state, is the connection's.
    #[inline(always)]
    fn owns(&self, entry: &Entry, stamp: Stamp, nat: u16) -> bool {
        stamp.stands()
            && entry.ports() == self.all_ports(nat)
            && entry.client().lo() == self.client.lo()
            && entry.client().hi() == self.client.hi()
            && entry.vip().lo() == self.vip.lo()
            && entry.vip().hi() == self.vip.hi()
            && stamp.identity() == self.identity
            && entry.backend() == self.backend as u32
            && entry.epoch() == (self.backend >> 32) as u32
    }
}

/// Hash of the translated side without the NAT port: backend, its port as it stands in a header, NAT address.
#[inline(always)]
#[must_use]
pub const fn pair(backend: Addr, port: u16, address: Addr, udp: bool, seed: u64) -> u64 {
    let mut h = (backend.lo() ^ seed).wrapping_mul(P1);
    h ^= h >> 32;
    h = (h ^ address.lo()).wrapping_mul(P2);
    h ^= h >> 29;
    if !(backend.hi() == 0 && address.hi() == 0) {
        h = (h ^ backend.hi()).wrapping_mul(P1);
        h ^= h >> 32;
        h = (h ^ address.hi()).wrapping_mul(P2);
        h ^= h >> 29;
    }
    (h ^ port as u64 ^ (udp as u64) << 16).wrapping_mul(P3)
}

/// Place of the entry of a pair and a NAT port in host byte order; to be taken modulo the table's size.
#[inline(always)]
#[must_use]
pub const fn place(pair: u64, port: u16) -> u32 {
    let h = (pair ^ (pair >> 31) ^ (port as u64).wrapping_mul(P2)).wrapping_mul(P1);
    (h >> 32) as u32
}

/// What came of a lookup, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found(u64);

impl Found {
    /// There is no entry, and the packet does not open a connection.
    pub const NOTHING: Self = Self(0);
    /// All candidates are taken.
    pub const EXHAUSTED: Self = Self(1);
    const ENTRY: u64 = 1 << 63;

    #[inline(always)]
    const fn entry(index: u32, port: u16) -> Self {
        Self(Self::ENTRY | index as u64 | (port as u64) << 32)
    }

    /// Whether there is an entry.
    #[inline(always)]
    #[must_use]
    pub const fn is_entry(self) -> bool {
        self.0 & Self::ENTRY != 0
    }

    /// Where it is.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0 as u32
    }

    /// The NAT port, host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn port(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// For a call that returns a number.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// Back from it.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }
}

/// The entry of a client's packet, if it is at the first candidate, as it nearly always is; else
/// [`Found::NOTHING`], and [`search`] tells more.
#[inline(always)]
pub fn first<T: Entries>(table: &T, flow: &Flow, ports: Ports) -> Found {
    let port = ports.candidate(flow.hash, 0);
    let index = place(flow.pair, port);
    match table.entry(index) {
        Some(entry) if flow.owns(entry, entry.stamp(), port) => Found::entry(index, port),
        _ => Found::NOTHING,
    }
}

/// The entry of a client's packet at any candidate, or a new one at a free one if the packet `opens` a
/// connection; `link` is the way back.
#[inline(always)]
pub fn search<T: Entries>(
    table: &T,
    flow: &Flow,
    ports: Ports,
    opens: bool,
    link: u64,
    now: u32,
) -> Found {
    let mut n = 0;
    while n < CANDIDATES {
        let port = ports.candidate(flow.hash, n);
        let index = place(flow.pair, port);
        let Some(entry) = table.entry(index) else { return Found::NOTHING };
        let stamp = entry.stamp();
        if stamp.is_untouched() {
            break;
        }
        if flow.owns(entry, stamp, port) {
            return Found::entry(index, port);
        }
        n += 1;
    }
    if !opens {
        return Found::NOTHING;
    }
    // Free ones first, then those that are over.
    let mut tries = 0;
    while tries < 2 * CANDIDATES {
        let port = ports.candidate(flow.hash, tries & (CANDIDATES - 1));
        let index = place(flow.pair, port);
        let Some(entry) = table.entry(index) else { return Found::NOTHING };
        let stamp = entry.stamp();
        let free = stamp.is_free(now) || (tries >= CANDIDATES && stamp.is_over());
        if free && claim(table, flow, index, port, stamp, link, now) {
            return Found::entry(index, port);
        }
        tries += 1;
    }
    Found::EXHAUSTED
}

#[inline(always)]
fn claim<T: Entries>(
    table: &T,
    flow: &Flow,
    index: u32,
    port: u16,
    before: Stamp,
    link: u64,
    now: u32,
) -> bool {
    let mine = Stamp::from_word(flow.identity);
    let claimed = before.renew(Phase::Claimed, mine.is_udp(), mine.address(), now);
    if !table.swap(index, before, claimed) {
        return false;
    }
    let ends = [flow.client, flow.vip];
    let open = claimed.with_phase(Phase::Opening);
    table.write(
        index,
        &Entry::new(
            open,
            link,
            ends,
            flow.all_ports(port),
            flow.backend as u32,
            (flow.backend >> 32) as u32,
        ),
    );
    true
}

/// Whether a packet changes an entry's state, and [`note`] has to be called.
#[inline(always)]
#[must_use]
pub fn changes(entry: &Entry, side: Side, flags: u8, now: u32) -> bool {
    let before = entry.stamp();
    before.after(side, flags, now) != before
}

/// Notes a packet in an entry's state.
#[inline(always)]
pub fn note<T: Entries>(table: &T, index: u32, side: Side, flags: u8, now: u32) {
    let mut tries = 0;
    // Another CPU may do the same for the other direction.
    while tries < 2 {
        let Some(entry) = table.entry(index) else { return };
        let before = entry.stamp();
        let after = before.after(side, flags, now);
        if !before.stands() || before == after || table.swap(index, before, after) {
            return;
        }
        tries += 1;
    }
}

/// A backend's packet: what it is of.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// Place of the entry.
    pub index: u32,
    /// Ports of backend and NAT address, as loaded from a header.
    pub ports: u32,
    /// Whether it is UDP.
    pub udp: bool,
}

/// The entry of a backend's packet, if it may be its: the caller compares NAT address and backend with the rows
/// that the entry names.
#[inline(always)]
pub fn reply<'t, T: Entries>(table: &'t T, reply: &Reply) -> Option<(&'t Entry, Stamp)> {
    let entry = table.entry(reply.index)?;
    let stamp = entry.stamp();
    let own = stamp.stands()
        && (entry.ports() >> 32) as u32 == reply.ports.rotate_left(16)
        && stamp.is_udp() == reply.udp;
    own.then_some((entry, stamp))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{cell::UnsafeCell, collections::BTreeSet, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        hash::{self, Tuple},
        wire::tcp_flags::{ACK, RST, SYN},
    };

    struct Table(Vec<UnsafeCell<Entry>>);

    impl Table {
        fn new(entries: usize) -> Self {
            Self((0..entries).map(|_| UnsafeCell::new(Entry::default())).collect())
        }

        fn cell(&self, index: u32) -> &UnsafeCell<Entry> {
            &self.0[index as usize & (self.0.len() - 1)]
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
    }

    const PORTS: Ports = Ports { first: 1024, count: 31_744 };
    const NAT: Addr = Addr::v4(0x0100_000a);

    fn flow(n: u32, backend: u32) -> Flow {
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
    fn forward(
        table: &Table,
        flow: &Flow,
        ports: Ports,
        opens: bool,
        link: u64,
        now: u32,
    ) -> Found {
        match first(table, flow, ports) {
            Found::NOTHING => search(table, flow, ports, opens, link, now),
            found => found,
        }
    }

    fn open(table: &Table, flow: &Flow, now: u32) -> Found {
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

    proptest! {
        #[test]
        fn candidates_stay_inside(hash: u64, first: u16, count in 1u32..=65_536, n in 0..CANDIDATES) {
            let count = count.min(65_536 - u32::from(first));
            let ports = Ports { first, count };
            prop_assert!(ports.has(ports.candidate(hash, n)));
            prop_assert_eq!(ports.has(first.wrapping_sub(1)), count == 65_536);
        }
    }
}
