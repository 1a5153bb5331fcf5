//! Counters in shared memory.

use abi::{
    guard::LIMIT_ROWS,
    limits::{LIST_ROWS, REASON_ROWS},
    prefix::ListRow,
    reason::Reason,
    table::{Backend, Counter, ReasonCounter},
};
use aya::maps::{MapData, PerCpuArray};

use super::{
    super::Capacity,
    Mapped,
    conntrack::{Connections, seconds},
};
use crate::{
    conntrack::{Connection, NatUse, Visit},
    view::{Count, Counters},
};

/// Counters in shared memory: reading them asks nobody.
pub struct MappedCounters {
    pub(super) counts: Counts,
    pub(super) limits: Mapped<Counter>,
    pub(super) reasons: Mapped<ReasonCounter>,
    pub(super) rows: Mapped<Backend>,
    pub(super) admission: PerCpuArray<MapData, [u64; 2]>,
    pub(super) connections: Connections,
}

/// Counters of services, backends and lists, by their rows.
pub(super) struct Counts {
    pub(super) cpus: u32,
    pub(super) capacity: Capacity,
    pub(super) frontends: Mapped<Counter>,
    pub(super) backends: Mapped<Counter>,
    pub(super) lists: Mapped<Counter>,
}

impl Counts {
    /// Has a frontend begin at 0, before its row is written, which nothing leads to.
    pub(super) fn begin_frontend(&self, row: u32) {
        self.begin(&self.frontends, self.capacity.frontends, row);
    }

    /// The same of a backend, if it is not that the row becomes free.
    pub(super) fn begin_backend(&self, row: u32, backend: &Backend) {
        if backend.id() != 0 {
            self.begin(&self.backends, self.capacity.backends, row);
        }
    }

    /// The same of a list, if it is another one that has the row.
    pub(super) fn begin_list(&self, row: u32, before: &ListRow, list: &ListRow) {
        if ![0, before.id].contains(&list.id) {
            self.begin(&self.lists, LIST_ROWS, row);
        }
    }

    fn begin(&self, table: &Mapped<Counter>, rows: u32, row: u32) {
        for cpu in 0..self.cpus {
            table.write(cpu * rows + row, &Counter::default());
        }
    }

    /// What has been counted for a frontend's row.
    pub(super) fn frontend(&self, row: u32) -> Count {
        self.sum(&self.frontends, self.capacity.frontends, row)
    }

    /// The same of a backend.
    pub(super) fn backend(&self, row: u32) -> Count {
        self.sum(&self.backends, self.capacity.backends, row)
    }

    fn sum(&self, table: &Mapped<Counter>, rows: u32, row: u32) -> Count {
        let mut total = Count::default();
        if row >= rows {
            return total;
        }
        for cpu in 0..self.cpus {
            let c = table.read(cpu * rows + row);
            total.packets += c.packets;
            total.bytes += c.bytes;
            total.new_connections += c.new_connections;
        }
        total
    }
}

impl MappedCounters {
    /// Frees what connections behind NAT have in common and none has any longer, where that is becoming scarce; how many.
    pub fn free_nat_paths(&self) -> u32 {
        self.connections.rows.free_paths(seconds())
    }
}

impl Counters for MappedCounters {
    fn frontend(&self, row: u32) -> Count {
        self.counts.frontend(row)
    }

    fn backend(&self, row: u32) -> Count {
        self.counts.backend(row)
    }

    fn active(&self, row: u32) -> u64 {
        if row < self.counts.capacity.backends { self.rows.read(row).active().into() } else { 0 }
    }

    fn not_admitted(&self) -> u64 {
        let cpus = self.admission.get(&0, 0);
        cpus.map_or(0, |cpus| cpus.iter().map(|[_, refused]| refused).sum())
    }

    fn connections(&self, visit: &mut dyn FnMut(&Connection) -> Visit) {
        self.connections.visit(visit);
    }

    fn nat(&self) -> NatUse {
        let (used, capacity) = self.connections.nat_use();
        NatUse { used, capacity, refused: 0 }
    }

    fn list(&self, row: u32) -> Count {
        self.counts.sum(&self.counts.lists, LIST_ROWS, row)
    }

    fn limit(&self, row: u32) -> Count {
        self.counts.sum(&self.limits, LIMIT_ROWS, row)
    }

    fn reasons(&self) -> Vec<(Reason, Count)> {
        let sum = |reason: &Reason| {
            let mut total = Count::default();
            for cpu in 0..self.counts.cpus {
                let c = self.reasons.read(cpu * REASON_ROWS + *reason as u32);
                total.packets += c.packets;
                total.bytes += c.bytes;
            }
            (*reason, total)
        };
        Reason::ALL.iter().map(sum).collect()
    }
}
