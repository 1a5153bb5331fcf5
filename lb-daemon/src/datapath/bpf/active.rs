//! How many connections each backend has: counted from the entries of the flow table, and of NAT's.
//!
//! Programs count as connections begin and end; they do not see one that falls silent, and two of them at
//! once may lose one. So the daemon counts now and then, where a service asks for it.

use std::{collections::HashMap, time::Duration};

use abi::{choice, flow::table as flows, nat::Entry, table::Backend};
use nix::time::{ClockId, clock_gettime};

use super::{Mapped, conntrack};

/// The tables of connections, and the backends whose connections are counted.
pub struct Recount {
    flows: Mapped<flows::Entry>,
    nat: Mapped<Entry>,
    backends: Mapped<Backend>,
}

impl Recount {
    pub(super) const fn new(
        flows: Mapped<flows::Entry>,
        nat: Mapped<Entry>,
        backends: Mapped<Backend>,
    ) -> Self {
        Self { flows, nat, backends }
    }

    /// Counts the connections of these rows: of services behind NAT, and of others. Entries that come or go meanwhile
    /// may be missed; the next time gets them.
    pub fn run(&self, behind_nat: &[u32], others: &[u32]) {
        if !others.is_empty() {
            self.count_flows(others);
        }
        if !behind_nat.is_empty() {
            self.count_translated(behind_nat);
        }
    }

    fn count_translated(&self, rows: &[u32]) {
        let now = conntrack::seconds();
        let mut counts: HashMap<u32, u64> = rows.iter().map(|&row| (row, 0)).collect();
        for row in 0..self.nat.len {
            let entry = self.nat.read(row);
            let stamp = entry.stamp();
            if stamp.stands()
                && !stamp.is_over()
                && !stamp.is_free(now)
                && let Some(count) = counts.get_mut(&entry.backend())
                && self.backends.read(entry.backend()).epoch() == entry.epoch()
            {
                *count += 1;
            }
        }
        self.store(counts);
    }

    fn count_flows(&self, rows: &[u32]) {
        // The clock that programs read.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from);
        let now = now.unwrap_or_default().as_nanos() as u64;
        let mut counts: HashMap<u32, u64> = rows.iter().map(|&row| (row, 0)).collect();
        for (key, entry) in
            conntrack::flows(&self.flows).map(|(_, entry)| (entry.key(), entry.value()))
        {
            if let Some(count) = counts.get_mut(&entry.backend())
                && choice::is_active(&key, &entry, &self.backends.read(entry.backend()), now)
            {
                *count += 1;
            }
        }
        self.store(counts);
    }

    fn store(&self, counts: HashMap<u32, u64>) {
        for (row, count) in counts {
            self.backends.store(row, Backend::ACTIVE, count);
        }
    }
}
