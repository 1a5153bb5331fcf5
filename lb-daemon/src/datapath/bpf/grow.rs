//! From one set of tables to a larger one: rows keep their numbers, so that entries of flows stay
//! right; only the buckets, whose places depend on the table's size, are filled anew.

use abi::table::{Bucket, Frontend, Kind};

use super::{ApplyError, Bpf, Counter, Datapath, Mapped, Pod, Tables};
use crate::{
    plan::{buckets::Buckets, vips},
    view::Count,
};

impl Bpf {
    /// Copies everything but prefixes from `old` into these tables, which are empty and not smaller.
    /// Nobody else may change `old` meanwhile; packets may go on using it.
    ///
    /// # Errors
    /// [`ApplyError`] when the buckets do not take all frontends: more of them do.
    pub fn copy_rows(&mut self, old: &Self) -> Result<(), ApplyError> {
        copy(&old.egress, &self.egress);
        copy(&old.nat_addresses, &self.nat_addresses);
        copy(&old.ways, &self.ways);
        copy(&old.backends, &self.backends);
        copy(&old.slots, &self.slots);
        copy(&old.frontends, &self.frontends);
        // Lists keep their numbers, and so their counters; their prefixes are written anew.
        copy(&old.lists, &self.lists);
        let unserved = old.control().unserved() as u64;
        self.control.store(0, abi::table::Control::UNSERVED, unserved);
        self.control.store(0, abi::table::Control::GENERATION, old.control().generation());

        let mut ops = Vec::new();
        let (mut buckets, mut vips) = (Buckets::default(), Vec::new());
        for index in 0..old.capacity.buckets {
            for word in old.bucket(index).words() {
                let Some((_, row)) = Bucket::decode(word) else { continue };
                let frontend: Frontend = old.frontend(row);
                if matches!(frontend.kind(), Kind::Vip | Kind::Nat) {
                    vips.push(frontend.key().addr);
                }
                buckets.insert(self, &frontend.key(), row, &mut ops).map_err(|_| ApplyError {
                    what: "a larger frontend table".to_owned(),
                    source: std::io::Error::from_raw_os_error(libc::ENOSPC),
                })?;
            }
        }
        vips::plan_filter(vips.into_iter(), self, &mut ops);
        self.apply(&ops)?;
        self.copy_nat(old);
        Ok(())
    }

    /// Copies what `old` has counted, so that counters never go back.
    pub fn copy_counters(&self, old: &Self) {
        let (from, to) = (&old.counts, &self.counts);
        let whole = |count: Count| Counter::of(count.packets, count.bytes, count.new_connections);
        for row in 0..old.capacity.frontends.min(self.capacity.frontends) {
            to.frontends.write(row, &whole(from.frontend(row)));
        }
        for row in 0..old.capacity.backends.min(self.capacity.backends) {
            to.backends.write(row, &whole(from.backend(row)));
        }
    }
}

fn copy<T: Pod>(from: &Mapped<T>, to: &Mapped<T>) {
    for row in 0..from.len.min(to.len) {
        to.write(row, &from.read(row));
    }
}
