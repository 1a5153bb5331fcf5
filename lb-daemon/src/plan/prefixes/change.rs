//! A few prefixes more or less: stores into the half in force, instead of a new half.

use std::collections::{BTreeMap, BTreeSet};

use abi::prefix::{Bucket6, Entry, Filter6, LINE, Net6, Place6, WAYS6};
use config::{
    Net4,
    model::{Prefilter, Source},
};
use ipnet::{IpNet, Ipv6Net};

use super::{
    Full, Layers, Prefixes,
    v4::{Form, lists_in, lists_of},
    v6::{decides, free_way, net6},
};
use crate::datapath::{Op, Tables};

/// Prefixes that may differ.
const MAX_NETS: usize = 1024;
/// Entries of the tables that may change, of each family.
const MAX_ENTRIES: usize = 4096;

/// The prefixes in which two versions differ, if they are few and nothing else differs. `None` also
/// where several prefixes of files differ: those are one change, which is in force as a whole.
pub(super) fn few(old: &Prefilter, new: &Prefilter) -> Option<Vec<IpNet>> {
    let mut nets = old.allow.difference(&new.allow, 1)?;
    let mut of_files = nets.len();
    let named = |p: &Prefilter, name: &str| p.lists.iter().position(|list| list.name == name);
    let mut last = None;
    for list in &new.lists {
        let before = named(old, &list.name).map(|at| (at, &old.lists[at]));
        let differ = match before {
            None => config::PrefixSet::default().difference(&list.prefixes, MAX_NETS)?,
            Some((at, before)) => {
                if before.action != list.action
                    || before.scope != list.scope
                    || last.is_some_and(|last| at < last)
                {
                    return None;
                }
                last = Some(at);
                if std::sync::Arc::ptr_eq(before, list) {
                    continue;
                }
                before.prefixes.difference(&list.prefixes, MAX_NETS)?
            }
        };
        of_files += if list.source == Source::Api { 0 } else { differ.len() };
        nets.extend(differ);
    }
    for list in old.lists.iter().filter(|list| named(new, &list.name).is_none()) {
        let differ = list.prefixes.difference(&config::PrefixSet::default(), MAX_NETS)?;
        of_files += if list.source == Source::Api { 0 } else { differ.len() };
        nets.extend(differ);
    }
    let alone = of_files == 0 || nets.len() == 1;
    (alone && nets.len() <= MAX_NETS).then_some(nets)
}

/// Whether the change is small enough, and the operations; `flags` are those after it.
pub(super) struct Change {
    pub(super) ops: Vec<Op>,
    pub(super) shorts: u32,
}

impl Prefixes {
    /// The operations for prefixes that differ; `None` where they are too many after all.
    ///
    /// # Errors
    /// [`Full`]; nothing has changed then.
    pub(super) fn change(
        &mut self,
        nets: &[IpNet],
        old: &Prefilter,
        layers: &Layers<'_>,
        new: &Prefilter,
        tables: &dyn Tables,
    ) -> Result<Option<Change>, Full> {
        let mut networks = BTreeSet::new();
        let mut nets6 = BTreeSet::new();
        for net in nets {
            match net {
                IpNet::V4(net) => {
                    let net = Net4::from(*net);
                    let range = net.first() >> 8..=net.last() >> 8;
                    if range.clone().count() > MAX_ENTRIES {
                        return Ok(None);
                    }
                    networks.extend(range);
                }
                IpNet::V6(net) => {
                    nets6.insert(net.trunc());
                    for set in sets(old).chain(sets(new)) {
                        let inside = set.within6(*net);
                        if inside.len() > MAX_ENTRIES {
                            return Ok(None);
                        }
                        nets6.extend(inside);
                    }
                }
            }
        }
        if networks.len().max(nets6.len()) > MAX_ENTRIES {
            return Ok(None);
        }
        let Some((mut ops, shorts)) = change6(&nets6, layers, tables)? else { return Ok(None) };
        self.change4(&networks, layers, tables, &mut ops)?;
        Ok(Some(Change { ops, shorts }))
    }

    fn change4(
        &mut self,
        networks: &BTreeSet<u32>,
        layers: &Layers<'_>,
        tables: &dyn Tables,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let mut changed = Vec::new();
        for &network in networks {
            let word = tables.line(network / LINE as u32)[network as usize % LINE];
            let (before, lists) = (Entry::from_word(word), lists_of(layers, network));
            if lists_in(tables, before) != lists {
                changed.push((network, before, Form::of(&lists)));
            }
        }
        let count = |is: fn(&Form) -> bool| changed.iter().filter(|(.., form)| is(form)).count();
        if count(|form| matches!(form, Form::Bitmap(..))) > self.bitmaps.available() as usize {
            return Err(Full("BITMAPS"));
        }
        if count(|form| matches!(form, Form::Block(_))) > self.blocks.available() as usize {
            return Err(Full("BLOCKS"));
        }
        for (network, before, form) in changed {
            // Rows that change are written elsewhere, so that no packet meets half of one.
            let entry = match form {
                Form::Entry(entry) => entry,
                Form::Bitmap(bitmap, list) => {
                    let row = self.bitmaps.take().ok_or(Full("BITMAPS"))?;
                    ops.push(Op::Bitmap(row, bitmap));
                    Entry::Bitmap { row, list }
                }
                Form::Block(lists) => {
                    let row = self.blocks.take().ok_or(Full("BLOCKS"))?;
                    ops.push(Op::Block(row, lists));
                    Entry::Block(row)
                }
            };
            ops.push(Op::Line(network, entry));
            match before {
                Entry::Bitmap { row, .. } => self.bitmaps.give(row),
                Entry::Block(row) => self.blocks.give(row),
                Entry::List(_) | Entry::One(_) => {}
            }
        }
        Ok(())
    }
}

fn sets(prefilter: &Prefilter) -> impl Iterator<Item = &config::PrefixSet> {
    prefilter.lists.iter().map(|list| &list.prefixes).chain([&prefilter.allow])
}

/// Operations and bits of short lengths; `None`: a prefix finds no place, so the table is made anew.
fn change6(
    nets: &BTreeSet<Ipv6Net>,
    layers: &Layers<'_>,
    tables: &dyn Tables,
) -> Result<Option<(Vec<Op>, u32)>, Full> {
    let capacity = tables.capacity();
    let mut rows =
        Overlay { tables, buckets: BTreeMap::new(), filter: BTreeMap::new(), ops: vec![] };
    let mut shorts = 0;
    for &net in nets {
        let wanted = decides(layers, net);
        let net = net6(net);
        let Some(list) = wanted else {
            rows.remove(net, capacity.buckets6 - 1);
            continue;
        };
        if !rows.put(net, list, capacity.buckets6 - 1) {
            return Ok(None);
        }
        match net.place() {
            Place6::Short(bit) => shorts |= bit,
            Place6::Filter { row, word, bit } => {
                rows.tell(row & (capacity.filter6 - 1), word, bit);
            }
        }
    }
    let Overlay { mut ops, filter, .. } = rows;
    // The filter last: it makes the prefixes reachable.
    ops.extend(filter.into_iter().map(|(row, words)| Op::Filter6(row, Filter6::new(words))));
    Ok(Some((ops, shorts)))
}

/// Rows of the IPv6 table as they will be, and the operations that make them so, in order.
struct Overlay<'a> {
    tables: &'a dyn Tables,
    buckets: BTreeMap<u32, Bucket6>,
    filter: BTreeMap<u32, [u64; 2]>,
    ops: Vec<Op>,
}

impl Overlay<'_> {
    fn bucket(&self, row: u32) -> Bucket6 {
        self.buckets.get(&row).copied().unwrap_or_else(|| self.tables.bucket6(row))
    }

    fn set(&mut self, row: u32, way: usize, entry: Option<(Net6, u8)>) {
        let mut bucket = self.bucket(row);
        bucket.set(way, entry);
        self.buckets.insert(row, bucket);
        self.ops.push(Op::Bucket6(row, bucket));
    }

    fn tell(&mut self, row: u32, word: usize, bit: u64) {
        let before = self.tables.filter6(row);
        let mut words = self.filter.get(&row).copied().unwrap_or(before);
        if words[word] & bit == 0 {
            words[word] |= bit;
            self.filter.insert(row, words);
        }
    }

    fn find(&self, net: Net6, mask: u32) -> Option<(u32, usize, u8)> {
        net.buckets().into_iter().map(|row| row & mask).find_map(|row| {
            let bucket = self.bucket(row);
            (0..WAYS6).find_map(|way| match bucket.get(way) {
                Some((other, list)) if other == net => Some((row, way, list)),
                _ => None,
            })
        })
    }

    fn remove(&mut self, net: Net6, mask: u32) {
        if let Some((row, way, _)) = self.find(net, mask) {
            self.set(row, way, None);
        }
    }

    /// Whether there is a place for it, perhaps after another one has moved.
    fn put(&mut self, net: Net6, list: u8, mask: u32) -> bool {
        if let Some((row, way, before)) = self.find(net, mask) {
            if before != list {
                self.set(row, way, Some((net, list)));
            }
            return true;
        }
        let rows = net.buckets().map(|row| row & mask);
        for row in rows {
            if let Some(way) = free_way(&self.bucket(row)) {
                self.set(row, way, Some((net, list)));
                return true;
            }
        }
        for row in rows {
            for way in 0..WAYS6 {
                let Some(entry) = self.bucket(row).get(way) else { continue };
                let mut others = entry.0.buckets().map(|row| row & mask).into_iter();
                let Some(other) = others.find(|&other| other != row) else { continue };
                if let Some(free) = free_way(&self.bucket(other)) {
                    // In both for a moment, so that it is never in none.
                    self.set(other, free, Some(entry));
                    self.set(row, way, Some((net, list)));
                    return true;
                }
            }
        }
        false
    }
}
