//! How many connections each backend has: counted from the entries of the flow table.
//!
//! Programs count as connections begin and end; they do not see one that falls silent, and two of them at
//! once may lose one. So the daemon counts now and then, where a service asks for it.

use std::{collections::HashMap, time::Duration};

use abi::{
    choice,
    flow::{FlowEntry, FlowKey},
    table::Backend,
};
use aya::maps::{Map, MapData};
use nix::time::{ClockId, clock_gettime};

use super::{BpfError, Mapped};

/// The flow table and the backends whose connections are counted.
pub struct Recount {
    flows: aya::maps::HashMap<MapData, FlowKey, FlowEntry>,
    backends: Mapped<Backend>,
}

impl Recount {
    pub(super) fn new(flows: MapData, backends: Mapped<Backend>) -> Result<Self, BpfError> {
        let flows = aya::maps::HashMap::try_from(Map::LruHashMap(flows));
        Ok(Self { flows: flows.map_err(|_| BpfError::Map("FLOWS"))?, backends })
    }

    /// Counts the connections of these rows. Entries that come or go meanwhile may be missed; the next time
    /// gets them.
    pub fn run(&self, rows: &[u32]) {
        // The clock that programs read.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from);
        let now = now.unwrap_or_default().as_nanos() as u64;
        let mut counts: HashMap<u32, u64> = rows.iter().map(|&row| (row, 0)).collect();
        for (key, entry) in self.flows.iter().filter_map(Result::ok) {
            if let Some(count) = counts.get_mut(&entry.backend())
                && choice::is_active(&key, &entry, &self.backends.read(entry.backend()), now)
            {
                *count += 1;
            }
        }
        for (row, count) in counts {
            self.backends.store(row, Backend::ACTIVE, count);
        }
    }
}
