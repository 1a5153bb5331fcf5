//! Counters of policy in shared memory, and what a rule has counted in earlier sets of tables.
//!
//! A row belongs to the rule whose number stands in it. A new set of tables counts on from what all
//! programs together have counted for a rule in the sets before it.

use std::{collections::HashMap, path::Path};

use abi::{
    limits::{REASON_ROWS, policy::MAX_RULES},
    policy::RuleRow,
    reason::Reason,
    table::{Counter, ReasonCounter},
};
use aya::maps::{Map, MapData};

use super::{Kernel, mapped, sets};
use crate::{
    datapath::bpf::{BpfError, Mapped, cpus},
    view::Count,
};

/// Counters of policy in shared memory.
pub struct PolicyCounters {
    cpus: u32,
    rules: u32,
    rule: Mapped<Counter>,
    rows: Mapped<RuleRow>,
    reasons: Mapped<ReasonCounter>,
}

impl PolicyCounters {
    /// Packets that a rule decided.
    #[must_use]
    pub fn rule(&self, row: u32) -> Count {
        if row >= self.rules.min(MAX_RULES) {
            return Count::default();
        }
        let [packets, bytes] = total(&self.rule, &self.rows, self.rules, row);
        Count { packets, bytes, ..Count::default() }
    }

    /// Packets of a reason.
    #[must_use]
    pub fn reason(&self, reason: Reason) -> Count {
        let mut total = Count::default();
        for cpu in 0..self.cpus {
            let own = self.reasons.read(cpu * REASON_ROWS + reason as u32);
            total.packets += own.packets;
            total.bytes += own.bytes;
        }
        total
    }
}

/// What programs have counted in a row of one set of tables: packets, bytes.
fn counted(counters: &Mapped<Counter>, rules: u32, row: u32) -> [u64; 2] {
    let own = |cpu| counters.read(cpu * rules + row);
    let all = (0..counters.len() / rules.max(1)).map(own);
    all.fold([0; 2], |[packets, bytes], own| {
        [packets.wrapping_add(own.packets), bytes.wrapping_add(own.bytes)]
    })
}

/// The same, from where the row's rule began.
fn total(counters: &Mapped<Counter>, rows: &Mapped<RuleRow>, rules: u32, row: u32) -> [u64; 2] {
    let before = rows.read(row).before();
    let own = counted(counters, rules, row);
    [own[0].wrapping_add(before[0]), own[1].wrapping_add(before[1])]
}

impl Kernel {
    /// Live counters, on mappings of their own.
    ///
    /// # Errors
    /// [`BpfError::Mmap`].
    pub fn counters(&self) -> Result<PolicyCounters, BpfError> {
        Ok(PolicyCounters {
            cpus: cpus(),
            rules: self.sizes.rules,
            rule: mapped(&self.ebpf, "P_RULE_COUNT")?,
            rows: mapped(&self.ebpf, "P_RULES")?,
            reasons: mapped(&self.ebpf, "P_REASON_COUNT")?,
        })
    }

    /// Gives a row to a rule, for which it begins at 0; `id` 0: to nobody.
    pub(super) fn give_row(&self, row: u32, id: u64) {
        let mut before = self.rules.read(row).before();
        if id != 0 {
            // The rule that had it counts no more: its row was given back before.
            let [packets, bytes] = counted(&self.rule_count, self.sizes.rules, row);
            before = [packets.wrapping_neg(), bytes.wrapping_neg()];
        }
        self.rules.write(row, &RuleRow::new(id, before));
    }

    /// Counts on from what all other sets of tables below `root` have counted for the rules of this one.
    pub fn count_on(&self, root: &Path) {
        let mut known: HashMap<u64, [u64; 2]> = HashMap::new();
        for (directory, _) in sets(root) {
            if self.directory.as_ref() == Some(&directory) {
                continue;
            }
            if let Err(error) = read_set(&directory, &mut known) {
                tracing::warn!(path = %directory.display(), %error, "counters of rules begin anew");
            }
        }
        for row in (0..self.sizes.rules).filter(|_| !known.is_empty()) {
            let id = self.rules.read(row).id();
            if let Some(before) = known.get(&id) {
                self.rules.write(row, &RuleRow::new(id, *before));
            }
        }
    }
}

/// Adds what a set has counted, by the numbers of rules; of several, the one that counted most.
fn read_set(directory: &Path, known: &mut HashMap<u64, [u64; 2]>) -> Result<(), BpfError> {
    let counters: Mapped<Counter> = open(directory, "P_RULE_COUNT")?;
    let rows: Mapped<RuleRow> = open(directory, "P_RULES")?;
    for row in 0..rows.len() {
        let id = rows.read(row).id();
        if id != 0 {
            let own = total(&counters, &rows, rows.len(), row);
            let known = known.entry(id).or_default();
            *known = own.max(*known);
        }
    }
    Ok(())
}

fn open<T: aya::Pod>(directory: &Path, name: &'static str) -> Result<Mapped<T>, BpfError> {
    let data = MapData::from_pin(directory.join(name)).map_err(|_| BpfError::Map(name))?;
    let Ok(Map::Array(data)) = Map::from_map_data(data) else { return Err(BpfError::Map(name)) };
    Mapped::new(&data, name)
}
