//! The NAT table: rows that the daemon writes beside it, and what becomes of its entries when it is replaced.

use std::path::Path;

use abi::{
    nat::{Entry, place},
    table::Way,
};

use aya::maps::MapData;

use super::{Bpf, BpfError, Tables};
use crate::refusal::chain;

impl Bpf {
    /// Pins this table in the directory of another set, which then has no other.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn share_nat(&self, directory: &Path) -> Result<(), BpfError> {
        let Some(own) = &self.pins else { return Ok(()) };
        let path = directory.join("NAT");
        let refused = |detail: String| BpfError::Pin { path: path.clone(), detail };
        std::fs::create_dir_all(directory).map_err(|e| refused(e.to_string()))?;
        let map = MapData::from_pin(own.join("NAT")).map_err(|_| BpfError::Map("NAT"))?;
        map.pin(&path).map_err(|e| refused(chain(&e)))
    }

    /// An interface that clients' packets come from; its number is stored last.
    pub(super) fn write_way(&self, row: u32, way: &Way) {
        self.ways.store(row, 0, 0);
        self.ways.write(row, way);
    }

    /// Copies connections into a table of another size; a table of the same size is shared. What opens
    /// meanwhile is not in the new one.
    pub(super) fn copy_nat(&self, old: &Self) {
        if self.capacity.nat == old.capacity.nat {
            return;
        }
        for row in 0..old.nat.len {
            let entry = old.nat.read(row);
            if entry.stamp().stands() {
                self.put_connection(old, &entry);
            }
        }
    }

    fn put_connection(&self, old: &Self, entry: &Entry) {
        let (backend, stamp) = (old.backend(entry.backend()).addr(), entry.stamp());
        let port = u16::from_be((entry.ports() >> 32) as u16);
        let address = old.nat_address(stamp.address().into());
        let seed = self.control().seed();
        let (theirs, udp) = ((entry.ports() >> 48) as u16, stamp.is_udp());
        let index = place(abi::nat::pair(backend, theirs, address, udp, seed), port);
        let index = index & (self.capacity.nat - 1);
        // What came later wins: its connection is the one that is alive.
        let stands = self.nat.read(index).stamp();
        if !stands.stands() || stands.seen() <= stamp.seen() {
            self.nat.write(index, entry);
        }
    }
}
