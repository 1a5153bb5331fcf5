//! Every map and load-time constant, and the tables that the packet code reads through them.
//!
//! All arrays are memory-mapped by the daemon, which alone writes them, but for the counters: each CPU
//! writes its own rows. Sizes here are placeholders that the daemon replaces at load.

use abi::{
    addr::Addr,
    event::{Event, RING_BYTES, Sampler},
    limits::{
        REASON_ROWS,
        policy::{CONNECTIONS, FRAGMENTS},
    },
    names,
    policy::{
        AddressRow, Connection, ConnectionKey, Entries, Head, Page, PolicyRow, RuleRow, Tables,
        Top, Which,
        nets::{self, Known, NetBucket, Nets},
    },
    prefix::Filter6,
    reason::Reason,
    table::{Bucket, Counter, ReasonCounter},
};
use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_COMMON_LRU},
    helpers::{bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_ns},
    macros::map,
    maps::{Array, LruHashMap, RingBuf},
};

/// Buckets of the address table, less one; the number is a power of two.
#[unsafe(no_mangle)]
static ADDRESS_MASK: Global<u32> = Global::new(0);
/// Salt of the address table.
#[unsafe(no_mangle)]
static ADDRESS_SALT: Global<u64> = Global::new(0);
/// Rows of the filter of prefixes, less one; the number is a power of two.
#[unsafe(no_mangle)]
static NET_FILTER_MASK: Global<u32> = Global::new(0);
/// Buckets of prefixes, less one; the number is a power of two.
#[unsafe(no_mangle)]
static NET_MASK: Global<u32> = Global::new(0);
/// Nanoseconds between two ticks of the kernel's clock.
#[unsafe(no_mangle)]
static TICK_NS: Global<u64> = Global::new(4_000_000);
/// Rows of the rules' counters for each CPU.
#[unsafe(no_mangle)]
static RULE_ROWS: Global<u32> = Global::new(1);

#[map(name = "P_INTERFACES")]
static INTERFACES: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "P_POLICIES")]
static POLICIES: Array<PolicyRow> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "P_TOPS")]
static TOPS: Array<Top> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "P_PAGES")]
static PAGES: Array<Page> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "P_ENTRIES")]
static ENTRIES: Array<Entries> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "P_BUCKETS")]
static BUCKETS: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "P_ADDRESSES")]
static ADDRESSES: Array<AddressRow> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// [`Known`], and whether rules select names.
#[map(name = "P_FLAGS")]
static FLAGS: Array<u64> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map(name = "P_NET_FILTER")]
static NET_FILTER: Array<Filter6> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "P_NETS")]
static NETS: Array<NetBucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Each CPU has its own share of the places, and makes room among those that it filled: an insertion takes
/// 60 ns less than with one list for all, and no lock that others hold. All CPUs find all entries.
#[map(name = "P_CONNECTIONS")]
static CONNECTION_TABLE: LruHashMap<ConnectionKey, Connection> =
    LruHashMap::with_max_entries(CONNECTIONS, BPF_F_NO_COMMON_LRU);
#[map(name = "P_FRAGMENTS")]
static FRAGMENT_TABLE: LruHashMap<ConnectionKey, u64> = LruHashMap::with_max_entries(FRAGMENTS, 0);

#[map(name = "P_REASON_COUNT")]
static REASON_COUNT: Array<ReasonCounter> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "P_RULE_COUNT")]
static RULE_COUNT: Array<Counter> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Whose each of these rows is; for the daemon alone.
#[map(name = "P_RULES")]
static RULES: Array<RuleRow> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Samples of verdicts; see [`crate::events`]. The XDP programs write to the same.
#[map(name = "EVENTS")]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);
#[map(name = "SAMPLERS")]
static SAMPLERS: Array<Sampler> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Where a sample is put together: a place for each sampler.
#[map(name = "P_EVENT")]
static EVENT: Array<Event> = Array::with_max_entries(1, 0);

/// DNS messages; see [`crate::names`].
#[map(name = "P_NAMES")]
pub(crate) static NAMES: RingBuf = RingBuf::with_byte_size(names::RING_BYTES, 0);
/// Those that found no room there, for each CPU.
#[map(name = "P_NAMES_LOST")]
static NAMES_LOST: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Two places for each CPU; see [`Tables::settled`].
#[map(name = "P_SCRATCH")]
static SCRATCH: Array<[u64; 8]> = Array::with_max_entries(1, 0);

/// The tables, as the packet code reads them.
pub(crate) struct Maps {
    /// The CPU that runs.
    pub(crate) cpu: u32,
}

/// Reads a word that the daemon may store to meanwhile.
#[inline(always)]
fn live(table: &Array<u64>, index: u32) -> u64 {
    let Some(word) = table.get_ptr(index) else { return 0 };
    // SAFETY: the kernel's lookup returned it; aligned; volatile because the daemon stores.
    unsafe { word.read_volatile() }
}

impl Tables for Maps {
    type Place<'p> = &'p mut Head;

    #[inline(always)]
    fn interface(&self, index: u32) -> u64 {
        live(&INTERFACES, index)
    }

    #[inline(always)]
    fn policy(&self, row: u32) -> Option<&PolicyRow> {
        POLICIES.get(row)
    }

    #[inline(always)]
    fn top(&self, row: u32) -> Option<&Top> {
        TOPS.get(row)
    }

    #[inline(always)]
    fn page(&self, row: u32) -> Option<&Page> {
        PAGES.get(row)
    }

    #[inline(always)]
    fn entries(&self, index: u32) -> Option<&Entries> {
        ENTRIES.get(index)
    }

    #[inline(always)]
    fn salt(&self) -> u64 {
        ADDRESS_SALT.load()
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        BUCKETS.get(index & ADDRESS_MASK.load())
    }

    #[inline(always)]
    fn address(&self, row: u32) -> Option<&AddressRow> {
        ADDRESSES.get(row)
    }

    #[inline(always)]
    fn prefix(&self, address: Addr) -> u32 {
        if !self.known().may_have(address.is_v4()) {
            return 0;
        }
        let [hi, lo] = nets::place(address);
        net_of(hi, lo)
    }

    #[inline(always)]
    fn connection(&self, key: &ConnectionKey) -> Option<Connection> {
        // SAFETY: an entry is replaced, never written in place; it is copied out at once.
        unsafe { CONNECTION_TABLE.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &ConnectionKey, connection: &Connection) {
        // A full table evicts; an update that fails all the same denies a reply.
        let _ = CONNECTION_TABLE.insert(key, connection, 0);
    }

    #[inline(always)]
    fn fragment(&self, key: &ConnectionKey) -> Option<u64> {
        // SAFETY: as in `connection`.
        unsafe { FRAGMENT_TABLE.get(key) }.copied()
    }

    #[inline(always)]
    fn remember_fragment(&self, key: &ConnectionKey, ports: u64) {
        // As in `remember`.
        let _ = FRAGMENT_TABLE.insert(key, ports, 0);
    }

    #[inline(always)]
    fn settled(&self, which: Which, head: Head) -> Option<&mut Head> {
        const { assert!(size_of::<Head>() <= 64 && align_of::<Head>() <= 8) };
        let mut place = SCRATCH.get_ptr_mut(self.cpu * 2 + which as u32)?.cast::<Head>();
        // SAFETY: the kernel's lookup returned it, large enough and aligned (asserted); only this CPU uses this
        // row, as in `count_reason`, and of the two that it has, each nesting another one.
        unsafe {
            place.write(head);
            // The compiler knows nothing of what stands there any more. An instruction, though one that does
            // nothing: the kernel refuses two lines of source for the same.
            core::arch::asm!("{0} = {0}", inout(reg) place, options(nostack));
            Some(&mut *place)
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // The verifier puts a load in its place; a clock that is read costs 18 ns.
        // SAFETY: no arguments, no effect.
        unsafe { bpf_jiffies64() }.wrapping_mul(TICK_NS.load())
    }
}

impl Nets for Maps {
    #[inline(always)]
    fn known(&self) -> Known {
        Known(live(&FLAGS, 0))
    }

    #[inline(always)]
    fn filter(&self, row: u32) -> [u64; 2] {
        NET_FILTER.get(row & NET_FILTER_MASK.load()).map_or([0; 2], Filter6::words)
    }

    #[inline(always)]
    fn net_bucket(&self, index: u32) -> Option<&NetBucket> {
        NETS.get(index & NET_MASK.load())
    }
}

/// A global function: the verifier goes through it once, and knows of its answer only that it is a number.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn net_of(hi: u64, lo: u64) -> u32 {
    nets::longest(&Maps { cpu: 0 }, hi, lo)
}

impl Maps {
    /// Whose interface it is.
    #[inline(always)]
    pub(crate) fn word_of(index: u32) -> u64 {
        live(&INTERFACES, index)
    }

    /// Whether rules select names.
    #[inline(always)]
    pub(crate) fn has_names() -> bool {
        live(&FLAGS, 1) != 0
    }
}

/// Counts a DNS message that found no room.
#[inline(always)]
pub(crate) fn lose_name() {
    if let Some(row) = NAMES_LOST.get_ptr_mut(cpu()) {
        // SAFETY: as in `count_reason`.
        unsafe { *row += 1 };
    }
}

/// Only this CPU writes this row, but for the words that are the daemon's.
#[inline(always)]
pub(crate) fn sampler(row: u32) -> Option<*mut Sampler> {
    SAMPLERS.get_ptr_mut(row)
}

/// Only this CPU uses this row.
#[inline(always)]
pub(crate) fn event(row: u32) -> Option<*mut Event> {
    EVENT.get_ptr_mut(row)
}

/// Nanoseconds since boot.
#[inline(always)]
pub(crate) fn time() -> u64 {
    // SAFETY: no arguments, no effect.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
pub(crate) fn cpu() -> u32 {
    // SAFETY: no arguments, no effect.
    unsafe { bpf_get_smp_processor_id() }
}

#[inline(always)]
pub(crate) fn count_reason(cpu: u32, reason: Reason, bytes: u64) {
    if let Some(row) = REASON_COUNT.get_ptr_mut(cpu * REASON_ROWS + reason as u32) {
        // SAFETY: the kernel's lookup returned it; only this CPU writes this row, and both hooks run
        // with bottom halves disabled, so that no program interrupts another one of the same CPU.
        unsafe {
            (*row).packets += 1;
            (*row).bytes += bytes;
        }
    }
}

#[inline(always)]
pub(crate) fn count_rule(cpu: u32, rule: u32, bytes: u64) {
    if let Some(row) = RULE_COUNT.get_ptr_mut(cpu * RULE_ROWS.load() + rule) {
        // SAFETY: as in `count_reason`.
        unsafe {
            (*row).packets += 1;
            (*row).bytes += bytes;
        }
    }
}
