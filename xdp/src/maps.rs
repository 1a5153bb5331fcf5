//! Every map and load-time constant, and the tables that the packet code reads through them.
//!
//! All arrays are memory-mapped by the daemon, which alone writes them; the sizes here are
//! placeholders that it replaces at load. The one exception is the counters, which only programs
//! write, each CPU its own rows.

use abi::{
    flow::{FlowEntry, FlowKey},
    limits::{FLOWS, REASON_ROWS},
    pick::Tables,
    prefix::{Block, Line, ListRow, Prefixes},
    reason::Reason,
    table::{Backend, Bucket, Control, Counter, Egress, Frontend, ReasonCounter},
};
use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    helpers::bpf_get_smp_processor_id,
    macros::map,
    maps::{Array, LpmTrie, LruHashMap},
};

/// What this instance of the program does.
#[unsafe(no_mangle)]
static FEATURES: Global<u32> = Global::new(0);
/// Buckets of the frontend table, less one; the number is a power of two.
#[unsafe(no_mangle)]
static BUCKET_MASK: Global<u32> = Global::new(0);
/// Salt of the frontend table.
#[unsafe(no_mangle)]
static SALT: Global<u64> = Global::new(0);
/// Seed of the flow hash.
#[unsafe(no_mangle)]
static SEED: Global<u64> = Global::new(0);
/// Rows of the frontend counters for each CPU.
#[unsafe(no_mangle)]
static FRONTEND_ROWS: Global<u32> = Global::new(1);
/// Rows of the backend counters for each CPU.
#[unsafe(no_mangle)]
static BACKEND_ROWS: Global<u32> = Global::new(1);

/// Bits of [`FEATURES`].
pub(crate) mod feature {
    pub(crate) const PREFILTER: u32 = abi::limits::feature::PREFILTER;
    pub(crate) const BALANCE: u32 = abi::limits::feature::BALANCE;
    pub(crate) const DECAP: u32 = abi::limits::feature::DECAP;
}

#[map(name = "CONTROL")]
static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "BUCKETS")]
static BUCKETS: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "FRONTENDS")]
static FRONTENDS: Array<Frontend> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "SLOTS")]
static SLOTS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "BACKENDS")]
static BACKENDS: Array<Backend> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "EGRESS")]
static EGRESS: Array<Egress> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "FLOWS")]
static FLOW_TABLE: LruHashMap<FlowKey, FlowEntry> = LruHashMap::with_max_entries(FLOWS, 0);

#[map(name = "LINES")]
static LINES: Array<Line> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "BLOCKS")]
static BLOCKS: Array<Block> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "PREFIXES6")]
static PREFIXES6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(1, 0);
#[map(name = "LISTS")]
static LISTS: Array<ListRow> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map(name = "FRONTEND_COUNT")]
static FRONTEND_COUNT: Array<Counter> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "BACKEND_COUNT")]
static BACKEND_COUNT: Array<Counter> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "LIST_COUNT")]
static LIST_COUNT: Array<Counter> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "REASON_COUNT")]
static REASON_COUNT: Array<ReasonCounter> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The tables, as the packet code reads them.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn salt(&self) -> u64 {
        SALT.load()
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        BUCKETS.get(index & BUCKET_MASK.load())
    }

    #[inline(always)]
    fn frontend(&self, row: u32) -> Option<&Frontend> {
        FRONTENDS.get(row)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u64> {
        let word = SLOTS.get_ptr(index)?;
        // SAFETY: the kernel's lookup returned it; aligned; volatile because the daemon stores.
        Some(unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn backend(&self, row: u32) -> Option<&Backend> {
        BACKENDS.get(row)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<FlowEntry> {
        // SAFETY: an entry is replaced, never written in place; it is copied out at once.
        unsafe { FLOW_TABLE.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &FlowKey, entry: &FlowEntry) {
        // A full table evicts; an update that fails all the same leaves the ring to decide.
        let _ = FLOW_TABLE.insert(key, entry, 0);
    }
}

impl Prefixes for Maps {
    #[inline(always)]
    fn line(&self, index: u32) -> Option<&Line> {
        LINES.get(index)
    }

    #[inline(always)]
    fn block(&self, index: u32) -> Option<&Block> {
        BLOCKS.get(index)
    }
}

/// Whether this instance does `bit`; the verifier removes what it does not.
#[inline(always)]
pub(crate) fn has(bit: u32) -> bool {
    FEATURES.load() & bit != 0
}

#[inline(always)]
pub(crate) fn seed() -> u64 {
    SEED.load()
}

#[inline(always)]
pub(crate) fn cpu() -> u32 {
    // SAFETY: no arguments, no effect.
    unsafe { bpf_get_smp_processor_id() }
}

#[inline(always)]
pub(crate) fn frontend(row: u32) -> Option<&'static Frontend> {
    FRONTENDS.get(row)
}

#[inline(always)]
pub(crate) fn egress(row: u32) -> Option<&'static Egress> {
    EGRESS.get(row)
}

/// Whether the daemon has put anything into the IPv6 prefix table.
#[inline(always)]
pub(crate) fn has_prefixes6() -> bool {
    CONTROL.get(0).is_some_and(|c| c.flags() & Control::PREFIXES_V6 != 0)
}

/// The list of an IPv6 address; 0: none.
#[inline(always)]
pub(crate) fn list_v6(addr: [u8; 16]) -> u32 {
    PREFIXES6.get(aya_ebpf::maps::lpm_trie::Key::new(128, addr)).copied().unwrap_or(0)
}

#[inline(always)]
pub(crate) fn list(number: u32) -> Option<&'static ListRow> {
    LISTS.get(number)
}

#[inline(always)]
pub(crate) fn count_reason(cpu: u32, reason: Reason, bytes: u64) {
    if let Some(row) = REASON_COUNT.get_ptr_mut(cpu * REASON_ROWS + reason as u32) {
        // SAFETY: the kernel's lookup returned it; only this CPU writes this row, and a program is
        // not interrupted by another one of the same CPU.
        unsafe {
            (*row).packets += 1;
            (*row).bytes += bytes;
        }
    }
}

#[inline(always)]
pub(crate) fn count_frontend(cpu: u32, row: u32, bytes: u64, opening: bool) {
    count(&FRONTEND_COUNT, cpu * FRONTEND_ROWS.load() + row, bytes, opening);
}

#[inline(always)]
pub(crate) fn count_backend(cpu: u32, row: u32, bytes: u64, opening: bool) {
    count(&BACKEND_COUNT, cpu * BACKEND_ROWS.load() + row, bytes, opening);
}

#[inline(always)]
pub(crate) fn count_list(cpu: u32, number: u32, bytes: u64) {
    count(&LIST_COUNT, cpu * abi::limits::LIST_ROWS + number, bytes, false);
}

#[inline(always)]
fn count(table: &Array<Counter>, index: u32, bytes: u64, opening: bool) {
    if let Some(row) = table.get_ptr_mut(index) {
        // SAFETY: as in `count_reason`.
        unsafe {
            (*row).packets += 1;
            (*row).bytes += bytes;
            (*row).new_connections += u64::from(opening);
        }
    }
}
