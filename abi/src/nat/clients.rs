//! Which entry is a client's, for services whose backend is not a matter of the packet alone.
//!
//! An entry stands where the backend's packets find it; a client's packet finds it by the backend that the ring
//! names. Where something else has chosen the backend, at random or by the client's address, a second table has the
//! places of entries by the hash of the client's side. What a word says is believed only after a look at the entry
//! that it names, so that nobody takes words out: one whose entry has become another connection's is free.

use super::{
    entry::{Entry, Stamp},
    lookup::{Entries, Flow},
};
use crate::{
    hash::{self, Tuple},
    wire::protocol,
};

/// Words of a bucket.
pub const WAYS: u32 = 16;
/// Entries of the table of connections for each bucket of this one: twice as many words as entries.
pub const ENTRIES: u32 = 8;

/// A bucket: words of connections whose hash is of it, 0 for none.
pub type Bucket = [u64; WAYS as usize];

/// Number of buckets beside a table of so many entries, a power of two.
#[must_use]
pub const fn buckets(entries: u32) -> u32 {
    if entries <= ENTRIES { 1 } else { entries / ENTRIES }
}

/// The second table. Buckets are taken modulo their number.
pub trait Clients: Entries {
    /// A word of a bucket.
    fn word(&self, bucket: u32, way: u32) -> u64;
    /// Replaces a word, if it still is `old`; whether it was.
    fn swap_word(&self, bucket: u32, way: u32, old: u64, new: u64) -> bool;
}

const FULL: u64 = 1 << 31;

#[inline(always)]
const fn tag(hash: u64) -> u64 {
    hash & (FULL - 1) | FULL
}

/// The bucket of a client's hash, to be taken modulo their number.
#[inline(always)]
#[must_use]
pub const fn bucket(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The word that says where the entry of a client with this hash is.
#[inline(always)]
#[must_use]
pub const fn word(hash: u64, index: u32) -> u64 {
    tag(hash) << 32 | index as u64
}

/// The entry of a client's packet, whatever its backend, and its state.
#[inline(always)]
pub fn find<'t, T: Clients>(table: &'t T, flow: &Flow) -> Option<(u32, &'t Entry, Stamp)> {
    let mut way = 0;
    while way < WAYS {
        let word = table.word(bucket(flow.hash), way);
        if word >> 32 == tag(flow.hash) {
            let entry = table.entry(word as u32)?;
            let stamp = entry.stamp();
            if flow.is_client_of(entry, stamp) {
                return Some((word as u32, entry, stamp));
            }
        }
        way += 1;
    }
    None
}

/// Notes that the entry of a flow stands at `index`; `false`: there is no room for one more of its bucket.
#[inline(always)]
pub fn enlist<T: Clients>(table: &T, flow: &Flow, index: u32, seed: u64, now: u32) -> bool {
    let new = word(flow.hash, index);
    // In the place of an earlier connection of the same ports, so that there is one word at most; else in a free
    // place; else in that of a connection that is over.
    let mut tries = 0;
    while tries < 3 * WAYS {
        let (pass, way) = (tries / WAYS, tries & (WAYS - 1));
        let old = table.word(bucket(flow.hash), way);
        if old == new {
            return true;
        }
        if gives_way(table, flow, old, pass, seed, now)
            && table.swap_word(bucket(flow.hash), way, old, new)
        {
            return true;
        }
        tries += 1;
    }
    false
}

/// Whether a word may be replaced in this pass.
#[inline(always)]
fn gives_way<T: Clients>(
    table: &T,
    flow: &Flow,
    word: u64,
    pass: u32,
    seed: u64,
    now: u32,
) -> bool {
    if word == 0 {
        return pass == 1;
    }
    let Some(entry) = table.entry(word as u32) else { return false };
    let stamp = entry.stamp();
    match pass {
        0 => flow.is_client_of(entry, stamp),
        1 => stamp.is_free(now) || tag(hash_of(entry, stamp, seed)) != word >> 32,
        _ => stamp.is_over(),
    }
}

/// Of the client's side of an entry: [`Flow::hash`].
#[inline(always)]
#[must_use]
pub fn hash_of(entry: &Entry, stamp: Stamp, seed: u64) -> u64 {
    let protocol = if stamp.is_udp() { protocol::UDP } else { protocol::TCP };
    let tuple =
        Tuple { src: entry.client(), dst: entry.vip(), ports: entry.ports() as u32, protocol };
    hash::flow(&tuple, seed)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::nat::lookup::{
        note,
        tests::{PORTS, Table, flow, open},
    };
    use crate::{
        nat::{Phase, Side},
        wire::tcp_flags::{ACK, RST, SYN},
    };

    const SEED: u64 = 1;

    #[test]
    fn an_entry_is_found_without_its_backend() {
        let table = Table::new(1 << 12);
        for n in 0..1500 {
            let made = flow(n, n % 5);
            let found = open(&table, &made, 9);
            assert!(find(&table, &made).is_none());
            assert!(enlist(&table, &made, found.index(), SEED, 9));
            assert!(enlist(&table, &made, found.index(), SEED, 9), "again");
        }
        for n in 0..1500 {
            // As the client's packet shows it: whatever its backend.
            let (asked, made) = (flow(n, 77), flow(n, n % 5));
            let (index, entry, _) = find(&table, &asked).unwrap();
            assert_eq!((entry.backend(), index), (n % 5, open(&table, &made, 9).index()));
            assert_eq!(hash_of(entry, entry.stamp(), SEED), asked.hash);
        }
        let udp = Flow { identity: Flow::identity(true, 2), ..flow(3, 3) };
        assert!(find(&table, &udp).is_none());
        assert!(find(&table, &flow(1500, 0)).is_none());
        assert!(PORTS.has(1024));
    }

    #[test]
    fn the_next_connection_of_the_same_ports() {
        let table = Table::new(1 << 10);
        let (first, next) = (flow(7, 0), flow(7, 1));
        let old = open(&table, &first, 9);
        assert!(enlist(&table, &first, old.index(), SEED, 9));
        note(&table, old.index(), Side::Backend, RST, 10);
        let new = open(&table, &next, 10);
        assert!(enlist(&table, &next, new.index(), SEED, 10));
        assert_eq!(find(&table, &first).unwrap().0, new.index(), "one word for both");
    }

    #[test]
    fn a_full_bucket() {
        let table = Table::new(8);
        // All of one bucket, and places of their own: so many entries do not stand in so small a table, and each
        // word names the one that its flow has.
        let large = Table::new(1 << 12);
        let flows = std::vec::Vec::from_iter((0..).map(|n| flow(n, n % 64)).take(17));
        for (n, flow) in flows.iter().enumerate() {
            let found = open(&large, flow, 9);
            let same = Flow { hash: flow.hash & 0xffff_ffff, ..*flow };
            assert_eq!(enlist(&large, &same, found.index(), SEED, 9), n < 16, "{n}");
            if n == 16 {
                // One that is over gives way.
                let (index, ..) =
                    find(&large, &Flow { hash: flows[4].hash & 0xffff_ffff, ..flows[4] }).unwrap();
                note(&large, index, Side::Backend, SYN | ACK, 9);
                note(&large, index, Side::Backend, RST, 9);
                assert!(enlist(&large, &same, found.index(), SEED, 9));
                assert!(find(&large, &same).is_some());
                // What nobody answered is free after a while.
                let other = open(&large, &self::flow(99, 3), 30);
                let late = Flow { hash: self::flow(99, 3).hash & 0xffff_ffff, ..self::flow(99, 3) };
                assert!(enlist(&large, &late, other.index(), SEED, 30));
            }
        }
        assert_eq!(table.entry(0).unwrap().stamp().phase(), Phase::Never);
        assert_eq!((buckets(1), buckets(8), buckets(1 << 18)), (1, 1, 1 << 15));
    }
}
