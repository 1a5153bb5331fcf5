//! The tables of the XDP program, read here too, and the table of translated peers.
//!
//! At load the daemon puts its pinned tables in the place of these.

use abi::{
    flow::{FlowEntry, FlowKey},
    limits::PEERS,
    pick::Tables,
    sock::{PeerEntry, PeerKey},
    table::{Backend, Bucket, Frontend},
};
use aya_ebpf::{Global, helpers::bpf_get_prandom_u32, macros::map, maps::LruHashMap};

use crate::flat::{Flat, flat};

/// Buckets of the frontend table, less one; the number is a power of two.
#[unsafe(no_mangle)]
static BUCKET_MASK: Global<u32> = Global::new(0);
/// Salt of the frontend table.
#[unsafe(no_mangle)]
static SALT: Global<u64> = Global::new(0);

flat! {
    ".flat.BUCKETS" BUCKETS: Bucket, BUCKETS_N;
    ".flat.FRONTENDS" FRONTENDS: Frontend, FRONTENDS_N;
    ".flat.SLOTS" SLOTS: u64, SLOTS_N;
    ".flat.BACKENDS" BACKENDS: Backend, BACKENDS_N;
}

#[map(name = "PEERS")]
static TRANSLATED: LruHashMap<PeerKey, PeerEntry> = LruHashMap::with_max_entries(PEERS, 0);

/// The tables, as [`abi::sock`] reads them.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn salt(&self) -> u64 {
        SALT.load()
    }

    /// Not needed, nor the next: a lookup at the socket is once for a connection.
    #[inline(always)]
    fn vip_shift(&self) -> u32 {
        58
    }

    #[inline(always)]
    fn vip_word(&self, _index: u32) -> Option<u64> {
        None
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        BUCKETS.get(index & BUCKET_MASK.load(), &BUCKETS_N)
    }

    #[inline(always)]
    fn frontend(&self, row: u32) -> Option<&Frontend> {
        FRONTENDS.get(row, &FRONTENDS_N)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u64> {
        let word = SLOTS.get_ptr(index, &SLOTS_N)?;
        // SAFETY: a row of the table; aligned; volatile because the daemon stores.
        Some(unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn backend(&self, row: u32) -> Option<&Backend> {
        BACKENDS.get(row, &BACKENDS_N)
    }

    /// Flows of processes have no entries: their connections have their backend already.
    #[inline(always)]
    fn flow(&self, _: &FlowKey) -> Option<FlowEntry> {
        None
    }

    #[inline(always)]
    fn remember(&self, _: &FlowKey, _: &FlowEntry) {}

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
