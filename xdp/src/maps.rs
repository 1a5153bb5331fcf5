//! Every map and load-time constant, and the tables that the packet code reads through them.
//!
//! All tables are memory-mapped by the daemon, which alone writes them and makes them as large as they must be: those
//! of every packet's way are flat ([`crate::flat`]), the others are arrays whose sizes here are placeholders. Exceptions: the counters, which only programs write, each CPU its own
//! rows; and how many connections a backend has, which both write.

use abi::{
    addr::Addr,
    choice::Tracking,
    event::{RING_BYTES, Sampler},
    flow::{FlowEntry, FlowKey, FragmentEntry, FragmentKey},
    guard::{LIMIT_ROWS, Limit, MAX_LIMITS, RATE_SLOTS},
    limits::{
        ADMIT_BURST, ADMIT_INTERVAL_NS, FLOWS, FRAGMENTS, MAX_NAT_ADDRESSES, REASON_ROWS,
        WAY_PROBES, WAYS, behind,
    },
    nat::{Entries, Entry, Flow, Ports, Stamp},
    pick::Tables,
    prefix::{self, Bitmap, Block, Bucket6, Filter6, Line, ListRow, Prefixes},
    reason::Reason,
    reply,
    scope::Scope,
    summary, synproxy,
    table::{
        Backend, Bucket, Control, Counter, Egress, Frontend, NatAddress, ReasonCounter, Unserved,
        Way,
    },
    upper::{Piece, Upper},
};
use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, xdp_md},
    helpers::{
        bpf_csum_diff, bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_jiffies64,
        bpf_ktime_get_coarse_ns, bpf_ktime_get_ns,
    },
    macros::map,
    maps::{Array, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    programs::XdpContext,
};

use crate::{
    flat::{Flat, flat},
    nat::Onward,
};

/// Entries of the NAT table, less one; the number is a power of two.
#[unsafe(no_mangle)]
static NAT_MASK: Global<u32> = Global::new(0);
/// The range of NAT ports, in one word.
#[unsafe(no_mangle)]
static NAT_PORTS: Global<u32> = Global::new(0);
/// 2^32 divided by the ticks of the kernel's clock in a second.
#[unsafe(no_mangle)]
static TICK: Global<u64> = Global::new(0);

/// What this instance of the program does.
#[unsafe(no_mangle)]
static FEATURES: Global<u32> = Global::new(0);
/// Buckets of the frontend table, less one; the number is a power of two.
#[unsafe(no_mangle)]
static BUCKET_MASK: Global<u32> = Global::new(0);
/// 64 less the binary logarithm of the bits of the filter of VIPs.
#[unsafe(no_mangle)]
static VIP_SHIFT: Global<u32> = Global::new(58);
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

/// Rows of [`LINES`] in each half.
#[unsafe(no_mangle)]
static LINE_ROWS: Global<u32> = Global::new(0);
/// Rows of [`FINE4`] in each half: [`summary::FINE4`] or none.
#[unsafe(no_mangle)]
static FINE4_ROWS: Global<u32> = Global::new(0);
/// Rows of [`BITMAPS`] in each half.
#[unsafe(no_mangle)]
static BITMAP_ROWS: Global<u32> = Global::new(1);
/// Rows of [`BLOCKS`] in each half.
#[unsafe(no_mangle)]
static BLOCK_ROWS: Global<u32> = Global::new(1);
/// Rows of [`FILTER6`] in each half; a power of two.
#[unsafe(no_mangle)]
static FILTER6_ROWS: Global<u32> = Global::new(1);
/// Rows of [`BUCKETS6`] in each half; a power of two.
#[unsafe(no_mangle)]
static BUCKET6_ROWS: Global<u32> = Global::new(1);

flat! {
    ".flat.CONTROL" CONTROL: Control, CONTROL_N;
    ".flat.VIPS" VIPS: u64, VIPS_N;
    ".flat.BUCKETS" BUCKETS: Bucket, BUCKETS_N;
    ".flat.FRONTENDS" FRONTENDS: Frontend, FRONTENDS_N;
    ".flat.SLOTS" SLOTS: u64, SLOTS_N;
    ".flat.BACKENDS" BACKENDS: Backend, BACKENDS_N;
    ".flat.EGRESS" EGRESS: Egress, EGRESS_N;
    ".flat.SUMMARY" SUMMARY: u64, SUMMARY_N;
    /// See [`summary`]; one row where there are no fine bits.
    ".flat.FINE4" FINE4: u64, FINE4_N;
    ".flat.LINES" LINES: Line, LINES_N;
    ".flat.LISTS" LISTS: ListRow, LISTS_N;
    ".flat.FRONTEND_COUNT" FRONTEND_COUNT: Counter, FRONTEND_COUNT_N;
    ".flat.BACKEND_COUNT" BACKEND_COUNT: Counter, BACKEND_COUNT_N;
    ".flat.LIST_COUNT" LIST_COUNT: Counter, LIST_COUNT_N;
    ".flat.REASON_COUNT" REASON_COUNT: ReasonCounter, REASON_COUNT_N;
}

/// Bits of [`FEATURES`].
pub(crate) mod feature {
    pub(crate) const PREFILTER: u32 = abi::limits::feature::PREFILTER;
    pub(crate) const BALANCE: u32 = abi::limits::feature::BALANCE;
    pub(crate) const DECAP: u32 = abi::limits::feature::DECAP;
    pub(crate) const EVENTS: u32 = abi::limits::feature::EVENTS;
    pub(crate) const SYN_PROXY: u32 = abi::limits::feature::SYN_PROXY;
    pub(crate) const STRAY_ACKS: u32 = abi::limits::feature::STRAY_ACKS;
}

#[map(name = "FLOWS")]
static FLOW_TABLE: LruHashMap<FlowKey, FlowEntry> = LruHashMap::with_max_entries(FLOWS, 0);
#[map(name = "FRAGMENTS")]
static FRAGMENT_TABLE: LruHashMap<FragmentKey, FragmentEntry> =
    LruHashMap::with_max_entries(FRAGMENTS, 0);
/// The programs that a packet goes on to ([`behind`]), and what the first one says to them.
#[map(name = "JUMP")]
static JUMP: ProgramArray = ProgramArray::with_max_entries(behind::PLACES, 0);
#[map(name = "HANDED_ON")]
static HANDED_ON: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// Connections behind NAT.
#[map(name = "NAT")]
static NAT_TABLE: Array<Entry> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// How large a packet may be that does not fit where its translation goes; 0: nobody asks.
#[map(name = "NAT_MTU")]
static NAT_MTU: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// Where a translated packet goes, for the program that writes it.
#[map(name = "NAT_ONWARD")]
static NAT_ONWARD: PerCpuArray<Onward> = PerCpuArray::with_max_entries(1, 0);
/// A flow that is put aside while its entry is searched for.
#[map(name = "NAT_FLOW")]
static NAT_FLOW: PerCpuArray<Flow> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "NAT_ADDRESSES")]
static NAT_ADDRESSES: Array<NatAddress> =
    Array::with_max_entries(MAX_NAT_ADDRESSES, BPF_F_MMAPABLE);
#[map(name = "WAYS")]
static WAY_TABLE: Array<Way> = Array::with_max_entries(WAYS, BPF_F_MMAPABLE);
/// See [`forget`].
#[map(name = "SCRATCH")]
static SCRATCH: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);
/// What [`reply::allow`] keeps; not worth taking over.
#[map(name = "ALLOWANCE")]
static ALLOWANCE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What [`reply::allow_at`] keeps for flows that get entries, and how many got none.
#[map(name = "ADMISSION")]
static ADMISSION: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

#[map(name = "BITMAPS")]
static BITMAPS: Array<Bitmap> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "BLOCKS")]
static BLOCKS: Array<Block> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "FILTER6")]
static FILTER6: Array<Filter6> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "BUCKETS6")]
static BUCKETS6: Array<Bucket6> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map(name = "SCOPES")]
static SCOPES: Array<Scope> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map(name = "LIMITS")]
static LIMITS: Array<Limit> = Array::with_max_entries(MAX_LIMITS, BPF_F_MMAPABLE);
#[map(name = "RATES")]
static RATES: Array<u64> = Array::with_max_entries(MAX_LIMITS * RATE_SLOTS, 0);
#[map(name = "LIMIT_COUNT")]
static LIMIT_COUNT: Array<Counter> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Ports of the SYN proxy, a bit each.
#[map(name = "SYN_PORTS")]
static SYN_PORTS: Array<u64> = Array::with_max_entries(synproxy::PORT_WORDS, BPF_F_MMAPABLE);

/// Samples of packets; see [`crate::events`].
#[map(name = "EVENTS")]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);
#[map(name = "SAMPLERS")]
static SAMPLERS: Array<Sampler> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The tables, as the packet code reads them.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn salt(&self) -> u64 {
        SALT.load()
    }

    #[inline(always)]
    fn vip_shift(&self) -> u32 {
        VIP_SHIFT.load()
    }

    #[inline(always)]
    fn vip_word(&self, index: u32) -> Option<u64> {
        let word = VIPS.get_ptr(index, &VIPS_N)?;
        // SAFETY: a row of the table; aligned; volatile because the daemon stores.
        Some(unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        let bucket = BUCKETS.place(u64::from(index & BUCKET_MASK.load()));
        // SAFETY: the mask is one less than the rows; as in `Flat::get`.
        Some(unsafe { &*bucket })
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

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<FlowEntry> {
        // SAFETY: an entry is replaced, and of it only an aligned word written in place; it is copied out at once.
        unsafe { FLOW_TABLE.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &FlowKey, entry: &FlowEntry) {
        // A full table evicts; an update that fails all the same leaves the ring to decide.
        let _ = FLOW_TABLE.insert(key, entry, 0);
    }

    #[inline(always)]
    fn admit(&self) -> bool {
        admitted(self.now()) != 0
    }
}

/// A global function: the verifier goes through it once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn admitted(now: u64) -> u32 {
    let Some(kept) = ADMISSION.get_ptr_mut(0) else { return 0 };
    // SAFETY: the kernel's lookup returned this CPU's own element.
    let kept = unsafe { &mut *kept };
    match reply::allow_at(kept[0], now, ADMIT_INTERVAL_NS, ADMIT_BURST) {
        Some(next) => {
            kept[0] = next;
            1
        }
        None => {
            kept[1] += 1;
            0
        }
    }
}

impl Tracking for Maps {
    #[inline(always)]
    fn touch(&self, key: &FlowKey, seen: u64) {
        if let Some(entry) = FLOW_TABLE.get_ptr_mut(key) {
            // SAFETY: the kernel's lookup returned it; one aligned word, which alone changes in place.
            unsafe {
                entry.cast::<u8>().add(FlowEntry::SEEN).cast::<u64>().write_volatile(seen);
            }
        }
    }

    #[inline(always)]
    fn add_active(&self, row: u32, more: i64) {
        if let Some(backend) = BACKENDS.get_ptr(row, &BACKENDS_N) {
            // SAFETY: a row of the table; an aligned word inside the row. Two CPUs at once can
            // lose one of their additions (this target has no atomic ones in the library); whoever counts
            // entries now and then puts that right.
            unsafe {
                let active = backend.cast::<u8>().add(Backend::ACTIVE).cast::<i64>();
                active.write_volatile(active.read_volatile().wrapping_add(more));
            }
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no arguments, no effect.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn random(&self) -> u64 {
        // SAFETY: no arguments, no effect that matters.
        unsafe { u64::from(bpf_get_prandom_u32()) << 32 | u64::from(bpf_get_prandom_u32()) }
    }

    #[inline(always)]
    fn seed(&self) -> u64 {
        seed()
    }
}

impl Entries for Maps {
    #[inline(always)]
    fn entry(&self, index: u32) -> Option<&Entry> {
        NAT_TABLE.get(index & NAT_MASK.load())
    }

    #[inline(always)]
    fn swap(&self, index: u32, old: Stamp, new: Stamp) -> bool {
        let Some(entry) = NAT_TABLE.get_ptr_mut(index & NAT_MASK.load()) else { return false };
        let (old, mut seen) = (old.to_word(), old.to_word());
        // The target of this crate has no compare-and-exchange in `core`; the instruction is of BPF's
        // version 3. Its operand and result are in r0.
        // SAFETY: the kernel's lookup returned the entry, whose first word is the state; aligned.
        unsafe {
            const { assert!(Entry::STATE == 0) };
            core::arch::asm!(
                "r0 = cmpxchg_64({place} + 0, r0, {new})",
                place = in(reg) entry,
                new = in(reg) new.to_word(),
                inout("r0") seen,
            );
        }
        seen == old
    }

    #[inline(always)]
    fn write(&self, index: u32, entry: &Entry) {
        let Some(place) = NAT_TABLE.get_ptr_mut(index & NAT_MASK.load()) else { return };
        let (from, to) = (core::ptr::from_ref(entry).cast::<u64>(), place.cast::<u64>());
        // SAFETY: the kernel's lookup returned the place; both are aligned and of this many words. Volatile
        // keeps the order, in which the state comes last.
        unsafe {
            let mut word = size_of::<Entry>() / 8;
            while word > 0 {
                word -= 1;
                to.add(word).write_volatile(*from.add(word));
            }
        }
    }
}

/// Puts a flow aside: what it takes is not on the stack.
#[inline(always)]
pub(crate) fn put_flow(flow: Flow) -> Option<&'static Flow> {
    let place = NAT_FLOW.get_ptr_mut(0)?;
    // SAFETY: the kernel's lookup returned this CPU's own element, which no other packet gets before this one
    // has left.
    unsafe {
        place.write(flow);
        Some(&*place)
    }
}

/// The flow that was put aside.
#[inline(always)]
pub(crate) fn kept_flow() -> Option<&'static Flow> {
    NAT_FLOW.get(0)
}

/// Puts aside where a translated packet goes.
#[inline(always)]
pub(crate) fn put_onward(onward: Onward) {
    if let Some(place) = NAT_ONWARD.get_ptr_mut(0) {
        // SAFETY: the kernel's lookup returned this CPU's own element.
        unsafe { place.write(onward) };
    }
}

/// What was put aside.
#[inline(always)]
pub(crate) fn onward() -> Option<&'static Onward> {
    NAT_ONWARD.get(0)
}

/// Puts aside how large a packet of its sender's family may be, for the one who tells it.
#[inline(always)]
pub(crate) fn tell_mtu(mtu: u32) {
    if let Some(place) = NAT_MTU.get_ptr_mut(0) {
        // SAFETY: the kernel's lookup returned this CPU's own element.
        unsafe { place.write(mtu) };
    }
}

/// Takes what was put aside, if this packet's program did.
#[inline(always)]
pub(crate) fn told_mtu() -> Option<u32> {
    let place = NAT_MTU.get_ptr_mut(0)?;
    // SAFETY: as above.
    let mtu = unsafe { place.replace(0) };
    (mtu != 0).then_some(mtu)
}

/// Stores the way back to a client.
#[inline(always)]
pub(crate) fn set_link(index: u32, link: u64) {
    let Some(place) = NAT_TABLE.get_ptr_mut(index & NAT_MASK.load()) else { return };
    // SAFETY: the kernel's lookup returned it; an aligned word inside of it.
    unsafe { place.cast::<u64>().add(Entry::LINK / 8).write_volatile(link) };
}

/// The range of NAT ports.
#[inline(always)]
pub(crate) fn nat_ports() -> Ports {
    Ports::from_word(NAT_PORTS.load())
}

/// A NAT address.
#[inline(always)]
pub(crate) fn nat_address(row: u8) -> Option<Addr> {
    NAT_ADDRESSES.get(u32::from(row)).map(|row| row.addr)
}

/// The interface of this number.
#[inline(always)]
pub(crate) fn way(ifindex: u32) -> Option<&'static Way> {
    let mut n = 0;
    while n < WAY_PROBES {
        let way = WAY_TABLE.get(Way::place(ifindex, n))?;
        if way.ifindex() == ifindex {
            return Some(way);
        }
        n += 1;
    }
    None
}

/// Seconds of a clock that costs next to nothing.
#[inline(always)]
pub(crate) fn seconds() -> u32 {
    // SAFETY: no arguments, no effect.
    let ticks = unsafe { bpf_jiffies64() };
    (ticks.wrapping_mul(TICK.load()) >> 32) as u32
}

/// A half of the prefix sets: 0 or 1.
#[derive(Clone, Copy)]
pub(crate) struct Half(u32);

impl Half {
    /// The one in force, as the control table's flags say. Computed: a branch would double the paths.
    #[inline(always)]
    pub(crate) const fn of(flags: u64) -> Self {
        const { assert!(Control::HALF == 2) };
        Self((flags >> 1) as u32 & 1)
    }
}

impl Prefixes for Half {
    #[inline(always)]
    fn summary(&self, row: u32) -> u64 {
        let Some(word) = SUMMARY.get_ptr(self.0 * summary::WORDS + row, &SUMMARY_N) else {
            return 0;
        };
        // SAFETY: a row of the table; aligned; volatile because the daemon stores.
        unsafe { word.read_volatile() }
    }

    #[inline(always)]
    fn fine(&self, row: u32) -> u64 {
        if FINE4_ROWS.load() == 0 {
            return u64::MAX;
        }
        let Some(word) = FINE4.get_ptr(self.0 * summary::FINE4 + row, &FINE4_N) else { return 0 };
        // SAFETY: a row of the table; aligned; volatile because the daemon stores.
        unsafe { word.read_volatile() }
    }

    #[inline(always)]
    fn entry(&self, place: u32) -> u32 {
        let line = self.0 * LINE_ROWS.load() + place / prefix::LINE as u32;
        let line = LINES.get(line, &LINES_N);
        line.map_or(0, |line| line.word(place))
    }

    #[inline(always)]
    fn bitmap(&self, row: u32, low: u8) -> bool {
        BITMAPS.get(self.0 * BITMAP_ROWS.load() + row).is_some_and(|bitmap| bitmap.holds(low))
    }

    #[inline(always)]
    fn block(&self, row: u32, low: u8) -> u8 {
        let block = BLOCKS.get(self.0 * BLOCK_ROWS.load() + row);
        block.map_or(0, |block| block.lists()[usize::from(low)])
    }

    #[inline(always)]
    fn filter6(&self, row: u32) -> [u64; 2] {
        let rows = FILTER6_ROWS.load();
        FILTER6.get(self.0 * rows + (row & (rows - 1))).map_or([0; 2], Filter6::words)
    }

    #[inline(always)]
    fn bucket6(&self, index: u32) -> Option<&Bucket6> {
        let rows = BUCKET6_ROWS.load();
        BUCKETS6.get(self.0 * rows + (index & (rows - 1)))
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
    FRONTENDS.get(row, &FRONTENDS_N)
}

#[inline(always)]
pub(crate) fn egress(row: u32) -> Option<&'static Egress> {
    EGRESS.get(row, &EGRESS_N)
}

/// Goes on in another program, which reads the reason by [`handed_on`]. Comes back if there is none.
#[inline(always)]
pub(crate) fn hand_on(ctx: *mut xdp_md, place: u32, reason: Reason) {
    if let Some(said) = HANDED_ON.get_ptr_mut(0) {
        // SAFETY: the kernel's lookup returned this CPU's own element.
        unsafe { *said = reason as u32 };
        // SAFETY: the program in the map is of the same type, and takes the same context.
        unsafe { JUMP.tail_call(&XdpContext::new(ctx), place) };
    }
}

/// The same, by way of memory: the verifier forgets how it came about, and does not go through what
/// follows once for each way that leads here. Offsets are bounded anew.
#[inline(always)]
pub(crate) fn forget(upper: &Upper) -> Option<Upper> {
    const FURTHEST: usize = 0x3fff;
    if upper.at > FURTHEST {
        return None;
    }
    let place = SCRATCH.get_ptr_mut(0)?;
    let word = upper.at as u64
        | u64::from(upper.protocol) << 16
        | u64::from(upper.piece.offset) << 32
        | u64::from(upper.piece.more) << 48;
    // SAFETY: the kernel's lookup returned this CPU's own element, aligned for its words; volatile, for
    // the compiler must not know that what is read is what was written.
    let [word, id] = unsafe {
        place.write_volatile([word, u64::from(upper.piece.id)]);
        place.read_volatile()
    };
    // A mask, which every verifier follows through the stack.
    let at = word as usize & FURTHEST;
    let piece = Piece { id: id as u32, offset: (word >> 32) as u16, more: word >> 48 != 0 };
    Some(Upper { protocol: (word >> 16) as u8, at, piece })
}

/// The same for a word that needs no bounds.
#[inline(always)]
pub(crate) fn forget_word(word: u64) -> Option<u64> {
    let place = SCRATCH.get_ptr_mut(0)?.cast::<u64>();
    // SAFETY: as above; the first word of the element.
    unsafe {
        place.write_volatile(word);
        Some(place.read_volatile())
    }
}

/// The reason that the first program came to.
#[inline(always)]
pub(crate) fn handed_on() -> Option<Reason> {
    Reason::from_index(*HANDED_ON.get(0)?)
}

/// What happens to packets for a VIP that no service takes.
#[inline(always)]
pub(crate) fn unserved() -> Unserved {
    CONTROL.get(0, &CONTROL_N).map_or(Unserved::Drop, Control::unserved)
}

/// Where the first fragment of a datagram went.
#[inline(always)]
pub(crate) fn fragment(key: &FragmentKey) -> Option<FragmentEntry> {
    // SAFETY: an entry is replaced, never written in place; it is copied out at once.
    unsafe { FRAGMENT_TABLE.get(key) }.copied()
}

#[inline(always)]
pub(crate) fn remember_fragment(key: &FragmentKey, entry: &FragmentEntry) {
    // Without it the other fragments are dropped, and counted.
    let _ = FRAGMENT_TABLE.insert(key, entry, 0);
}

/// Nanoseconds since boot.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments, no effect.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether this CPU may send one more answer now.
#[inline(always)]
pub(crate) fn may_answer() -> bool {
    let Some(kept) = ALLOWANCE.get_ptr_mut(0) else { return false };
    // SAFETY: the kernel's lookup returned this CPU's own element.
    unsafe {
        match reply::allow(*kept, now()) {
            Some(next) => {
                *kept = next;
                true
            }
            None => false,
        }
    }
}

/// Sum of bytes in memory order, not folded.
#[inline(always)]
pub(crate) fn checksum_of<const N: usize>(bytes: &mut [u8; N]) -> u32 {
    const { assert!(N.is_multiple_of(4) && N <= 512) };
    // SAFETY: `N` bytes are there; the helper only reads them. It fails for lengths alone that are
    // excluded above.
    unsafe {
        bpf_csum_diff(core::ptr::null_mut(), 0, bytes.as_mut_ptr().cast(), N as u32, 0) as u32
    }
}

/// The control table's live flags.
#[inline(always)]
pub(crate) fn flags() -> u64 {
    CONTROL.get(0, &CONTROL_N).map_or(0, Control::flags)
}

#[inline(always)]
pub(crate) fn list(number: u32) -> Option<&'static ListRow> {
    LISTS.get(number, &LISTS_N)
}

/// Which packets a list is about.
#[inline(always)]
pub(crate) fn scope(number: u32) -> Option<&'static Scope> {
    SCOPES.get(number)
}

#[inline(always)]
pub(crate) fn count_reason(cpu: u32, reason: Reason, bytes: u64) {
    if let Some(row) = REASON_COUNT.get_ptr(cpu * REASON_ROWS + reason as u32, &REASON_COUNT_N) {
        // SAFETY: a row of the table; only this CPU writes this row, and a program is
        // not interrupted by another one of the same CPU.
        unsafe {
            (*row).packets += 1;
            (*row).bytes += bytes;
        }
    }
}

#[inline(always)]
pub(crate) fn count_frontend(cpu: u32, row: u32, bytes: u64, opening: bool) {
    let row = FRONTEND_COUNT.get_ptr(cpu * FRONTEND_ROWS.load() + row, &FRONTEND_COUNT_N);
    count(row, bytes, opening);
}

#[inline(always)]
pub(crate) fn count_backend(cpu: u32, row: u32, bytes: u64, opening: bool) {
    let row = BACKEND_COUNT.get_ptr(cpu * BACKEND_ROWS.load() + row, &BACKEND_COUNT_N);
    count(row, bytes, opening);
}

/// Only this CPU writes this row, but for the words that are the daemon's.
#[inline(always)]
pub(crate) fn sampler(row: u32) -> Option<*mut Sampler> {
    SAMPLERS.get_ptr_mut(row)
}

#[inline(always)]
pub(crate) fn limit(row: u32) -> Option<&'static Limit> {
    LIMITS.get(row)
}

/// Whether the SYN proxy answers for listeners at this port.
#[inline(always)]
pub(crate) fn is_proxied(port: u16) -> bool {
    let (word, bit) = synproxy::place(port);
    let Some(word) = SYN_PORTS.get_ptr(word) else { return false };
    // SAFETY: the kernel's lookup returned it; aligned; volatile because the daemon stores.
    unsafe { word.read_volatile() >> bit & 1 != 0 }
}

/// A word of a limit.
#[inline(always)]
pub(crate) fn rate(index: u32) -> Option<*mut u64> {
    RATES.get_ptr_mut(index)
}

#[inline(always)]
pub(crate) fn count_limit(cpu: u32, row: u32, bytes: u64) {
    count(LIMIT_COUNT.get_ptr_mut(cpu * LIMIT_ROWS + row), bytes, false);
}

#[inline(always)]
pub(crate) fn count_list(cpu: u32, number: u32, bytes: u64) {
    let row = LIST_COUNT.get_ptr(cpu * abi::limits::LIST_ROWS + number, &LIST_COUNT_N);
    count(row, bytes, false);
}

#[inline(always)]
fn count(row: Option<*mut Counter>, bytes: u64, opening: bool) {
    if let Some(row) = row {
        // SAFETY: as in `count_reason`.
        unsafe {
            (*row).packets += 1;
            (*row).bytes += bytes;
            if opening {
                (*row).new_connections += 1;
            }
        }
    }
}
