//! The tables of the XDP program, read here too, and the table of translated peers.
//!
//! At load the daemon puts its pinned tables in the place of these.

use abi::{
    constants,
    flow::{FlowEntry, FlowKey},
    limits::PEERS,
    pick::Tables,
    sock::{PeerEntry, PeerKey},
    table::{Backend, Bucket, Frontend},
};
use aya_ebpf::{helpers::bpf_get_prandom_u32, macros::map, maps::LruHashMap};

use crate::{
    constant,
    flat::{Flat, flat},
};

flat! {
    "BUCKETS" BUCKETS: Bucket;
    "FRONTENDS" FRONTENDS: Frontend;
    "SLOTS" SLOTS: u64;
    "BACKENDS" BACKENDS: Backend;
}

#[map(name = "PEERS")]
static TRANSLATED: LruHashMap<PeerKey, PeerEntry> = LruHashMap::with_max_entries(PEERS, 0);

/// The tables, as [`abi::sock`] reads them.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn salt(&self) -> u64 {
        constant::get::<{ constants::SALT }>()
    }

    /// Not needed: a lookup at the socket is once for a connection.
    #[inline(always)]
    fn vip_bit(&self, _hash: u64, _folded: u64) -> bool {
        true
    }

    #[inline(always)]
    fn bucket(&self, hash: u64) -> &Bucket {
        BUCKETS.at(hash >> 32)
    }

    #[inline(always)]
    fn frontend(&self, row: u32) -> Option<&Frontend> {
        FRONTENDS.get(row)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u64> {
        let word = SLOTS.get_ptr(index)?;
        // SAFETY: a row of the table; aligned; volatile because the daemon stores.
        Some(unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn backend(&self, row: u32) -> Option<&Backend> {
        BACKENDS.get(row)
    }

    /// Flows of processes have no entries: their connections have their backend already.
    #[inline(always)]
    fn flow(&self, _: &FlowKey, _: u64) -> Option<FlowEntry> {
        None
    }

    #[inline(always)]
    fn remember(&self, _: &FlowKey, _: u64, _: &FlowEntry) {}

    #[inline(always)]
    fn admit(&self) -> bool {
        false
    }
}

#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: no arguments, no effect that matters.
    unsafe { bpf_get_prandom_u32() }
}

#[inline(always)]
pub(crate) fn remember(key: &PeerKey, entry: &PeerEntry) {
    // A full table evicts. An update that fails all the same shows the process a backend's address.
    let _ = TRANSLATED.insert(key, entry, 0);
}

#[inline(always)]
pub(crate) fn recall(key: &PeerKey) -> Option<PeerEntry> {
    // SAFETY: an entry is replaced, never written in place; it is copied out at once.
    unsafe { TRANSLATED.get(key) }.copied()
}
