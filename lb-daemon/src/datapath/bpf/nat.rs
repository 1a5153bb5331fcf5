//! The NAT table: rows that the daemon writes beside it, and what becomes of its entries when it is replaced.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use abi::{
    nat::{
        Entry, clients, place,
        quick::{self, Direction, Row},
    },
    table::Way,
};

use aya::maps::MapData;

use super::{super::Capacity, Bpf, BpfError, Mapped, Tables, grace};
use crate::refusal::chain;

/// The rows that packets of connections that stand go by, and their paths.
pub(super) struct Rows {
    pub(super) forth: Mapped<u64>,
    pub(super) back: Mapped<u64>,
    pub(super) paths: Mapped<quick::Path>,
}

impl Rows {
    /// Frees the paths that no connection uses, if more than half of them have a number; how many.
    pub(super) fn free_paths(&self, now: u32) -> u32 {
        if quick::paths_used(self) <= quick::PATHS / 2 {
            return 0;
        }
        quick::free_paths(self, self.forth.len, now, grace)
    }

    fn word(&self, to: Direction, row: u32) -> &AtomicU64 {
        let table = match to {
            Direction::Forth => &self.forth,
            Direction::Back => &self.back,
        };
        table.word(row & (table.len - 1), 0)
    }
}

impl quick::Rows for Rows {
    fn row(&self, to: Direction, row: u32) -> Row {
        Row::from_word(self.word(to, row).load(Ordering::Acquire))
    }

    fn swap_row(&self, to: Direction, row: u32, old: Row, new: Row) -> bool {
        let (word, order) = (self.word(to, row), Ordering::SeqCst);
        word.compare_exchange(old.to_word(), new.to_word(), order, order).is_ok()
    }
}

impl quick::Links for Rows {
    fn path_link(&self, number: u32) -> u64 {
        self.paths.word(number, 0).load(Ordering::Acquire)
    }

    fn swap_path(&self, number: u32, old: u64, new: u64) -> bool {
        let (word, order) = (self.paths.word(number, 0), Ordering::SeqCst);
        word.compare_exchange(old, new, order, order).is_ok()
    }
}

impl Bpf {
    /// Pins the tables of connections in the directory of another set, which then has no others, if it wants them of the
    /// same sizes.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn share_connections(&self, directory: &Path, needs: &Capacity) -> Result<(), BpfError> {
        let Some(own) = &self.pins else { return Ok(()) };
        let nat = ["NAT", "NAT_CLIENTS", "NAT_VLANS", "NAT_FORTH", "NAT_BACK", "NAT_PATHS"];
        let nat = nat.into_iter().filter(|_| needs.nat == self.capacity.nat);
        let flows =
            ["FLOWS", "FLOW_TAGS"].into_iter().filter(|_| needs.flows == self.capacity.flows);
        for name in nat.chain(flows) {
            let path = directory.join(name);
            let refused = |detail: String| BpfError::Pin { path: path.clone(), detail };
            std::fs::create_dir_all(directory).map_err(|e| refused(e.to_string()))?;
            let map = MapData::from_pin(own.join(name)).map_err(|_| BpfError::Map(name))?;
            map.pin(&path).map_err(|e| refused(chain(&e)))?;
        }
        Ok(())
    }

    /// An interface that clients' packets come from; its number is stored last.
    pub(super) fn write_way(&self, row: u32, way: &Way) {
        self.ways.store(row, 0, 0);
        self.ways.write(row, way);
    }

    /// Copies connections into a table of another size; a table of the same size is shared. What opens
    /// meanwhile is not in the new one. The rows beside it are written by the packets that come next.
    pub(super) fn copy_nat(&self, old: &Self) {
        if self.capacity.nat == old.capacity.nat {
            return;
        }
        for row in 0..old.nat.len {
            let entry = old.nat.read(row);
            if entry.stamp().stands() {
                self.put_connection(old, &entry, old.nat_vlans.read(row));
            }
        }
    }

    fn put_connection(&self, old: &Self, entry: &Entry, tags: u64) {
        let (backend, stamp) = (old.backend(entry.backend()).addr(), entry.stamp());
        let port = u16::from_be((entry.ports() >> 32) as u16);
        let address = old.nat_address(stamp.address().into());
        let seed = self.control().seed();
        let (theirs, udp) = ((entry.ports() >> 48) as u16, stamp.is_udp());
        let index = place(abi::nat::pair(backend, theirs, address, udp, seed), port);
        // What came later wins: its connection is the one that is alive.
        let stands = self.nat.read(index & (self.capacity.nat - 1)).stamp();
        if !stands.stands() || stands.seen() <= stamp.seen() {
            self.nat_vlans.write(index & (self.capacity.nat - 1), &tags);
            self.nat.write(index & (self.capacity.nat - 1), entry);
            self.put_client(entry, index);
        }
    }

    /// Notes where a client's entry is: services may want more than their ring, now or later.
    fn put_client(&self, entry: &Entry, index: u32) {
        let hash = clients::hash_of(entry, entry.stamp(), self.control().seed());
        let row = clients::bucket(hash) & (self.nat_clients.len - 1);
        let mut places = (0..clients::WAYS as usize).map(|way| way * 8);
        let free = places.find(|&at| self.nat_clients.word(row, at).load(Ordering::Relaxed) == 0);
        // Without a place it goes by the ring.
        if let Some(at) = free {
            self.nat_clients.store(row, at, clients::word(hash, index));
        }
    }
}
