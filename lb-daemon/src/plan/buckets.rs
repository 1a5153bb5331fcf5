//! The frontend table: puts keys into buckets and takes them out, one store each.
//!
//! A key stands in its own bucket or, when that is full, in one of the next; each bucket on the way
//! then says so in its overflow bit. No two keys with one tag stand in the buckets of one probe
//! sequence, so that a lookup may stop at the first tag that matches.

use std::collections::HashMap;

use abi::{
    limits::{BUCKET_WAYS, MAX_PROBES},
    table::{Bucket, FrontendKey},
};

use crate::datapath::{Op, Tables};

/// The table's words as they will be after the operations planned so far.
#[derive(Default)]
pub struct Buckets {
    changed: HashMap<u32, [u64; BUCKET_WAYS]>,
}

/// No place: the table is too full, or two tags collide. Larger tables with another salt help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Buckets {
    fn words(&self, tables: &dyn Tables, index: u32) -> [u64; BUCKET_WAYS] {
        self.changed.get(&index).copied().unwrap_or_else(|| tables.bucket(index).words())
    }

    fn store(
        &mut self,
        tables: &dyn Tables,
        index: u32,
        way: usize,
        entry: u64,
        ops: &mut Vec<Op>,
    ) {
        let mut words = self.words(tables, index);
        words[way] = entry;
        self.changed.insert(index, words);
        ops.push(Op::Bucket { index, way: way as u8, word: words[way] });
    }

    /// Puts `row` under `key`.
    ///
    /// # Errors
    /// [`Full`]; nothing is planned then.
    pub fn insert(
        &mut self,
        tables: &dyn Tables,
        key: &FrontendKey,
        row: u32,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let mask = tables.capacity().buckets - 1;
        let (home, tag) = key.place(tables.control().salt());
        let mut place = None;
        for step in 0..MAX_PROBES {
            let index = home.wrapping_add(step) & mask;
            let words = self.words(tables, index);
            if words.iter().any(|&w| Bucket::decode(w).is_some_and(|(t, _)| t == tag)) {
                return Err(Full);
            }
            let free = words.iter().position(|&w| Bucket::decode(w).is_none());
            if place.is_none() {
                place = free.map(|way| (step, index, way, words[way]));
            }
        }
        let (steps, index, way, old) = place.ok_or(Full)?;
        let last = way == BUCKET_WAYS - 1;
        let overflow = last && old != 0;
        let word = Bucket::with_overflow(Bucket::entry(tag, row), overflow);
        self.store(tables, index, way, word, ops);
        // Nearest first: the key is found as soon as the last of these stands.
        for step in (0..steps).rev() {
            let index = home.wrapping_add(step) & mask;
            let word = self.words(tables, index)[BUCKET_WAYS - 1];
            let with = Bucket::with_overflow(word, true);
            if word != with {
                self.store(tables, index, BUCKET_WAYS - 1, with, ops);
            }
        }
        Ok(())
    }

    /// Points `key`, which is there, at another row, or takes it out.
    pub fn replace(
        &mut self,
        tables: &dyn Tables,
        key: &FrontendKey,
        old: u32,
        new: Option<u32>,
        ops: &mut Vec<Op>,
    ) {
        let mask = tables.capacity().buckets - 1;
        let (home, tag) = key.place(tables.control().salt());
        for step in 0..MAX_PROBES {
            let index = home.wrapping_add(step) & mask;
            let words = self.words(tables, index);
            for (way, &word) in words.iter().enumerate() {
                if Bucket::decode(word) == Some((tag, old)) {
                    // The overflow bit stays: taking it away would need every key of the chain.
                    let overflow = way == BUCKET_WAYS - 1 && Bucket::has_overflow(word);
                    let entry = new.map_or(0, |row| Bucket::entry(tag, row));
                    let entry = Bucket::with_overflow(entry, overflow);
                    self.store(tables, index, way, entry, ops);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use abi::{
        addr::Addr,
        table::{Frontend, Ring},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::datapath::{Capacity, Datapath, fake::Fake};

    fn tables(buckets: u32) -> Fake {
        let capacity = Capacity {
            buckets,
            frontends: 4096,
            slots: 1,
            backends: 1,
            egress: 1,
            flows: 8,
            lines: 0,
            blocks: 0,
            bitmaps: 0,
            filter6: 1,
            buckets6: 1,
            nat: 1,
            nat_ports: 0,
        };
        Fake::new(capacity, 99, 0)
    }

    fn key(n: u32) -> FrontendKey {
        FrontendKey::new(Addr::v4(n.to_be()), 80, 6)
    }

    proptest! {
        #[test]
        fn every_key_is_found_and_no_other(steps in prop::collection::vec((0u32..300, any::<bool>()), 1..400)) {
            // 64 buckets for up to 300 keys: full enough to overflow often.
            let mut fake = tables(64);
            let mut held: BTreeMap<u32, u32> = BTreeMap::new();
            let mut next = 0;
            for (n, add) in steps {
                let mut ops = Vec::new();
                let mut buckets = Buckets::default();
                match (held.get(&n).copied(), add) {
                    (None, true)
                        if buckets.insert(&fake, &key(n), next, &mut ops).is_ok() =>
                    {
                        let row = Frontend::service(key(n), abi::table::Mode::Ipip, Ring::default(), 0);
                        ops.insert(0, Op::Frontend(next, row));
                        held.insert(n, next);
                        next += 1;
                    }
                    (Some(row), false) => {
                        buckets.replace(&fake, &key(n), row, None, &mut ops);
                        held.remove(&n);
                    }
                    _ => {}
                }
                fake.apply(&ops).unwrap();
            }
            for n in 0..300 {
                prop_assert_eq!(fake.find(&key(n)), held.get(&n).copied(), "key {}", n);
            }
        }
    }
}
