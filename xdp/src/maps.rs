//! Every map and load-time constant, and the tables that the packet code reads through them.
//!
//! All tables are memory-mapped by the daemon, which alone writes them and makes them as large as they must be: those
//! of every packet's way are flat ([`crate::flat`]), the others are arrays whose sizes here are placeholders.
//! Exceptions: the counters, which only programs write, each CPU its own rows; and how many connections a backend
//! has, which both write.

mod flows;
mod nat;
mod prefixes;

use abi::{
    choice::Tracking,
    constants::{self, mask, rows, table},
    early,
    event::{RING_BYTES, Sampler},
    flow::{FlowEntry, FlowKey, FragmentEntry, FragmentKey, table, tag::Tag},
    guard::{LIMIT_ROWS, Limit, MAX_LIMITS, RATE_SLOTS},
    limits::{ADMIT_BURST, ADMIT_INTERVAL, FRAGMENTS, REASON_ROWS, behind},
    pick::Tables,
    reason::Reason,
    reply, synproxy,
    table::{
        Backend, Bucket, Control, Counter, Egress, Frontend, HopWord, ReasonCounter, Unserved,
    },
    upper::{Piece, Upper},
};
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, xdp_md},
    helpers::{
        bpf_csum_diff, bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_jiffies64,
        bpf_ktime_get_coarse_ns, bpf_ktime_get_ns,
    },
    macros::map,
    maps::{Array, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    programs::XdpContext,
};

use self::flows::Flows;
pub(crate) use self::{
    flows::{put_entry, remember_put},
    nat::{
        MOST_SUMMED, Out, first_way, fragment_aside, keep_first, keep_tags, kept_first, kept_flow,
        kept_tags, nat_address, nat_ports, next_id, note_tags, onward, out, put_flow, put_ip,
        put_onward, put_out, remember_fragment_aside, set_link, sum_of, tags_of, tell_mtu,
        told_mtu, way,
    },
    prefixes::{Half, list, scope},
};
use crate::{
    constant,
    flat::{Flat, flat},
};

flat! {
    "CONTROL" CONTROL: Control;
    "VIPS" VIPS: u64;
    "BUCKETS" BUCKETS: Bucket;
    "FRONTENDS" FRONTENDS: Frontend;
    "SLOTS" SLOTS: u64;
    "BACKENDS" BACKENDS: Backend;
    "EGRESS" EGRESS: Egress;
    "FRONTEND_COUNT" FRONTEND_COUNT: Counter;
    "BACKEND_COUNT" BACKEND_COUNT: Counter;
    "LIST_COUNT" LIST_COUNT: Counter;
    "REASON_COUNT" REASON_COUNT: ReasonCounter;
}

/// What an instance of the program does.
pub(crate) mod feature {
    pub(crate) const PREFILTER: u32 = abi::limits::feature::PREFILTER;
    pub(crate) const BALANCE: u32 = abi::limits::feature::BALANCE;
    pub(crate) const DECAP: u32 = abi::limits::feature::DECAP;
    pub(crate) const EVENTS: u32 = abi::limits::feature::EVENTS;
    pub(crate) const SYN_PROXY: u32 = abi::limits::feature::SYN_PROXY;
    pub(crate) const STRAY_ACKS: u32 = abi::limits::feature::STRAY_ACKS;
}

#[map(name = "FRAGMENTS")]
static FRAGMENT_TABLE: LruHashMap<FragmentKey, FragmentEntry> =
    LruHashMap::with_max_entries(FRAGMENTS, 0);
/// The programs that a packet goes on to ([`behind`]), and what the first one says to them.
#[map(name = "JUMP")]
static JUMP: ProgramArray = ProgramArray::with_max_entries(behind::PLACES, 0);
#[map(name = "HANDED_ON")]
static HANDED_ON: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// See [`forget`].
#[map(name = "SCRATCH")]
static SCRATCH: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);
/// What [`reply::allow`] keeps; not worth taking over.
#[map(name = "ALLOWANCE")]
static ALLOWANCE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What [`reply::allow_at`] keeps for flows that get entries, and how many got none.
#[map(name = "ADMISSION")]
static ADMISSION: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

#[map(name = "LIMITS")]
static LIMITS: Array<Limit> = Array::with_max_entries(MAX_LIMITS, BPF_F_MMAPABLE);
#[map(name = "RATES")]
static RATES: Array<u64> = Array::with_max_entries(MAX_LIMITS * RATE_SLOTS, 0);
#[map(name = "LIMIT_COUNT")]
static LIMIT_COUNT: Array<Counter> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Ports of the SYN proxy, a bit each.
#[map(name = "SYN_PORTS")]
static SYN_PORTS: Array<u64> = Array::with_max_entries(synproxy::PORT_WORDS, BPF_F_MMAPABLE);

/// Fragments that came before their first one; see [`early`].
#[map(name = "EARLY")]
pub(crate) static EARLY: RingBuf = RingBuf::with_byte_size(early::RING_BYTES, 0);
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
        constant::get::<{ constants::SALT }>()
    }

    #[inline(always)]
    fn vip_bit(&self, hash: u64, folded: u64) -> bool {
        let offset = constant::shifted::<{ constants::VIP_SHIFT }>(hash);
        let word = VIPS.at_offset(constant::masked::<{ constants::VIP_MASK }>(offset));
        // SAFETY: a row of the table; aligned; volatile because the daemon stores.
        let word = unsafe { word.read_volatile() };
        // The bit is the highest one then, which is the quickest to ask for.
        (constant::up(word, folded) as i64) < 0
    }

    #[inline(always)]
    fn bucket(&self, hash: u64) -> &Bucket {
        const SIZE: u32 = size_of::<Bucket>().ilog2();
        let offset = constant::masked::<{ constants::BUCKET_MASK }>(hash >> (32 - SIZE));
        // SAFETY: a row of the table, as in `Flat::at`.
        unsafe { &*BUCKETS.at_offset(offset) }
    }

    #[inline(always)]
    fn frontend(&self, row: u32) -> Option<&Frontend> {
        FRONTENDS.get(row)
    }

    #[inline(always)]
    fn frontend_at(&self, row: u32) -> Option<(u32, &Frontend)> {
        let row = constant::masked::<{ mask(table("FRONTENDS")) }>(row.into());
        // SAFETY: it was a number of 32 bits. Or the compiler would make 32 bits of it once more.
        unsafe { core::hint::assert_unchecked(row >> 32 == 0) };
        Some((row as u32, FRONTENDS.known(row)))
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

    #[inline(always)]
    fn backend_at(&self, row: u32) -> Option<(u32, &Backend)> {
        BACKENDS.find(row)
    }

    #[inline(always)]
    fn backend_of(&self, word: u64) -> Option<(u32, &Backend)> {
        BACKENDS.find_wide(word)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey, hash: u64) -> Option<FlowEntry> {
        table::find(&Flows, key, hash, seconds())
    }

    #[inline(always)]
    fn untagged(&self, key: &FlowKey, hash: u64) -> Option<FlowEntry> {
        table::find_untagged(&Flows, key, hash, seconds())
    }

    #[inline(always)]
    fn tag(&self, hash: u64, n: u32) -> Tag {
        table::tag(&Flows, hash, n)
    }

    #[inline(always)]
    fn seconds(&self) -> u32 {
        seconds()
    }

    #[inline(always)]
    fn remember(&self, key: &FlowKey, hash: u64, entry: &FlowEntry) {
        // Without an entry the ring decides.
        if let Some(row) = flows::claim(key, hash) {
            table::publish(&Flows, row, entry);
        }
    }

    #[inline(always)]
    fn admit(&self) -> bool {
        // No function of its own: Linux 6.1 counts at least 32 bytes of stack for each.
        let Some(kept) = ADMISSION.get_ptr_mut(0) else { return false };
        // SAFETY: the kernel's lookup returned this CPU's own element.
        let kept = unsafe { &mut *kept };
        match reply::allow_at(kept[0], moment(), ADMIT_INTERVAL, ADMIT_BURST) {
            Some(next) => {
                kept[0] = next;
                true
            }
            None => {
                kept[1] += 1;
                false
            }
        }
    }
}

impl Tracking for Maps {
    #[inline(always)]
    fn touch(&self, key: &FlowKey, hash: u64, seen: u64) {
        if let Some(row) = flows::search(key, hash) {
            table::touch(&Flows, row, seen);
        }
    }

    #[inline(always)]
    fn add_active(&self, row: u32, more: i64) {
        if let Some(backend) = BACKENDS.get_ptr(row) {
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

/// Stores `new` if there is still `old`; whether there was.
///
/// # Safety
/// An aligned word inside a table.
#[inline(always)]
unsafe fn exchange(place: *mut u64, old: u64, new: u64) -> bool {
    let mut seen = old;
    // The target of this crate has no compare-and-exchange in `core`; the instruction is of BPF's
    // version 3. Its operand and result are in r0.
    // SAFETY: as the caller says.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({place} + 0, r0, {new})",
            place = in(reg) place,
            new = in(reg) new,
            inout("r0") seen,
        );
    }
    seen == old
}

/// Seconds of a clock that costs next to nothing.
#[inline(always)]
pub(crate) fn seconds() -> u32 {
    (moment() >> 32) as u32
}

/// The same in parts of a second, of which there are 2^32; it goes on by a tick of the kernel's.
#[inline(always)]
fn moment() -> u64 {
    // SAFETY: no arguments, no effect.
    let ticks = unsafe { bpf_jiffies64() };
    ticks.wrapping_mul(constant::get::<{ constants::TICK }>())
}

/// Whether this instance does one of `BITS`; the verifier removes what it does not.
#[inline(always)]
pub(crate) fn has<const BITS: u32>() -> bool {
    constant::has::<BITS>()
}

#[inline(always)]
pub(crate) fn seed() -> u64 {
    constant::get::<{ constants::SEED }>()
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
    Some(EGRESS.at(u64::from(row) + 1))
}

/// What a next hop names, or what is nobody's.
#[inline(always)]
pub(crate) fn egress_of(hop: HopWord) -> &'static Egress {
    EGRESS.at(hop.place())
}

/// Goes on in another program, which reads the reason by [`handed_on`]. Comes back if there is none.
#[inline(always)]
pub(crate) fn hand_on(ctx: *mut xdp_md, place: u32, reason: Reason) {
    hand(ctx, place, reason, 0);
}

/// Goes on in another program, and hands it the reason and what of the word that was handed here is in `kept`.
#[inline(always)]
fn hand(ctx: *mut xdp_md, place: u32, reason: Reason, kept: u32) {
    if let Some(said) = HANDED_ON.get_ptr_mut(0) {
        // SAFETY: the kernel's lookup returned this CPU's own element.
        unsafe { *said = reason as u32 | *said & kept };
        // SAFETY: the program in the map is of the same type, and takes the same context.
        unsafe { JUMP.tail_call(&XdpContext::new(ctx), place) };
    }
}

/// Bits of the word that a program hands on: the reason; above it the bytes of VLAN tags that were taken off.
const REASON: u32 = 0xff;

/// As [`hand_on`], from a program that was itself gone on to: what stands beside the reason stays.
#[inline(always)]
pub(crate) fn hand_further(ctx: *mut xdp_md, place: u32, reason: Reason) {
    hand(ctx, place, reason, !REASON);
}

/// Says that this many bytes of tags were taken off.
#[inline(always)]
pub(crate) fn hand_tags(bytes: u32) {
    if let Some(said) = HANDED_ON.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe { *said = bytes << REASON.count_ones() };
    }
}

/// The reason that the program before came to, and how many bytes of tags were taken off.
#[inline(always)]
pub(crate) fn handed() -> Option<(Reason, u32)> {
    let said = *HANDED_ON.get(0)?;
    Some((Reason::from_index(said & REASON)?, said >> REASON.count_ones()))
}

/// What was found of a packet, by way of memory: the verifier forgets how it came about, and does not go through what
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
    // SAFETY: the kernel's lookup returned this CPU's own element, aligned for its words.
    unsafe { place.write_volatile([word, u64::from(upper.piece.id)]) };
    forgotten()
}

/// What [`forget`] has put into memory, once more: what is not at hand takes no stack over calls.
#[inline(always)]
pub(crate) fn forgotten() -> Option<Upper> {
    const FURTHEST: usize = 0x3fff;
    let place = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: as above; volatile, for the compiler must not know that what is read is what was written.
    let [word, id] = unsafe { place.read_volatile() };
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
    handed().map(|(reason, _)| reason)
}

/// What happens to packets for a VIP that no service takes.
#[inline(always)]
pub(crate) fn unserved() -> Unserved {
    CONTROL.first().unserved()
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
    CONTROL.first().flags()
}

/// The number of this CPU, less than there are places.
#[inline(always)]
fn place_of(cpu: u32) -> u64 {
    constant::masked::<{ constants::CPU_MASK }>(cpu.into())
}

#[inline(always)]
pub(crate) fn count_reason(cpu: u32, reason: Reason, bytes: u64) {
    count_number(cpu, reason as u32, bytes);
}

/// The same for the number of a reason.
#[inline(always)]
pub(crate) fn count_number(cpu: u32, number: u32, bytes: u64) {
    count_at(cpu, constant::below::<REASON_ROWS>(number.into()), bytes);
}

/// The same for a number that is known: its place in the rows of a CPU is then part of each instruction.
#[inline(always)]
pub(crate) fn count_known<const REASON: u32>(cpu: u32, bytes: u64) {
    const { assert!(REASON < REASON_ROWS) };
    let own = REASON_COUNT.place(place_of(cpu) * u64::from(REASON_ROWS));
    // SAFETY: as in `count_at`. Not said to be pure, and of other numbers for another reason: or the compiler would make
    // one way for all reasons, and compute the place.
    unsafe {
        core::arch::asm!(
            "{word} = *(u64 *)({own} + {packets})",
            "{word} += 1",
            "*(u64 *)({own} + {packets}) = {word}",
            "{word} = *(u64 *)({own} + {bytes_at})",
            "{word} += {bytes}",
            "*(u64 *)({own} + {bytes_at}) = {word}",
            own = in(reg) own,
            bytes = in(reg) bytes,
            word = out(reg) _,
            packets = const REASON as usize * size_of::<ReasonCounter>(),
            bytes_at = const REASON as usize * size_of::<ReasonCounter>()
                + core::mem::offset_of!(ReasonCounter, bytes),
            options(nostack, preserves_flags),
        );
    }
}

/// The same for a number that the verifier knows.
#[inline(always)]
fn count_at(cpu: u32, number: u64, bytes: u64) {
    let own = place_of(cpu) * u64::from(REASON_ROWS);
    // Added: of an or with what is no constant the verifier of Linux 6.1 knows nothing.
    let row = REASON_COUNT.place(own + number);
    // SAFETY: a row of the table; only this CPU writes this row, and a program is
    // not interrupted by another one of the same CPU.
    unsafe {
        (*row).packets += 1;
        (*row).bytes += bytes;
    }
}

/// Counts a packet that a frontend's backend gets; rows of both.
#[inline(always)]
pub(crate) fn count_sent(cpu: u32, frontend: u32, backend: u32, bytes: u64, opening: bool) {
    if let (Some((frontend, _)), Some((backend, _))) =
        (FRONTENDS.find(frontend), BACKENDS.find(backend))
    {
        count_found(cpu, frontend, backend, bytes, opening);
    }
}

/// The same for rows as [`Tables::frontend_at`] and [`Tables::backend_at`] give them.
#[inline(always)]
pub(crate) fn count_found(cpu: u32, frontend: u32, backend: u32, bytes: u64, opening: bool) {
    let cpu = place_of(cpu);
    let frontends = constant::times::<{ rows(table("FRONTENDS")) }>(cpu);
    let backends = constant::times::<{ rows(table("BACKENDS")) }>(cpu);
    let frontend = FRONTEND_COUNT.place(frontends + u64::from(frontend));
    let backend = BACKEND_COUNT.place(backends + u64::from(backend));
    // SAFETY: as in `count_number`.
    unsafe {
        (*frontend).packets += 1;
        (*frontend).bytes += bytes;
        (*backend).packets += 1;
        (*backend).bytes += bytes;
        if opening {
            (*frontend).new_connections += 1;
            (*backend).new_connections += 1;
        }
    }
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
    let row = LIST_COUNT.get_ptr(cpu * abi::limits::LIST_ROWS + number);
    count(row, bytes, false);
}

#[inline(always)]
fn count(row: Option<*mut Counter>, bytes: u64, opening: bool) {
    if let Some(row) = row {
        // SAFETY: as in `count_number`.
        unsafe {
            (*row).packets += 1;
            (*row).bytes += bytes;
            if opening {
                (*row).new_connections += 1;
            }
        }
    }
}
