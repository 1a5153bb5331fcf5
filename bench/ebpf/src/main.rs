//! The measuring frame, and the two programs that figures are compared with.
//!
//! A test run that repeats a program never resets the packet. [`frame`] therefore runs in its place:
//! it takes off what the last pass put in front, writes the headers anew, of the next flow of a
//! table, and tail-calls what is measured. [`empty`] in that place gives the cost of the frame itself,
//! [`floor`] that of the least that encapsulation can do.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the xdp macro makes an item that cannot carry any")]
#![expect(unreachable_pub, reason = "the kernel is who reaches it")]
#![expect(clippy::needless_pass_by_value, reason = "the xdp macro passes the context so")]

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, xdp_action, xdp_md},
    helpers::bpf_xdp_adjust_head,
    macros::{classifier, map, xdp},
    maps::{
        Array, ProgramArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{TcContext, XdpContext},
};

/// Bytes of the packet before each pass.
#[unsafe(no_mangle)]
static LENGTH: Global<u32> = Global::new(60);
/// Whether the headers are longer than [`SHORT`] words: IPv6.
#[unsafe(no_mangle)]
static LONG: Global<u32> = Global::new(0);
/// Flows of the table, less one; their number is a power of two.
#[unsafe(no_mangle)]
static FLOW_MASK: Global<u32> = Global::new(0);

/// Bytes of Ethernet.
const ETH: usize = 14;
/// 64-bit words after the Ethernet header that IPv4 and TCP take up.
const SHORT: usize = 5;
/// And IPv6 and TCP, but for TCP's last four bytes, which no balancer touches.
const ALL: usize = 7;

/// What the frame writes and where it stands.
#[repr(C)]
struct State {
    /// The next pass is of this flow.
    next: u64,
    /// Passes so far.
    passes: u64,
    /// Is mixed into the second word of each flow: another value makes all flows new ones.
    salt: u64,
    /// The Ethernet header, and two bytes of nothing.
    link: [u64; 2],
    /// What follows it.
    words: [u64; ALL],
}

#[map(name = "STATE")]
static STATE: Array<State> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// For each flow the second and third word after the Ethernet header: TTL to the ports of IPv4, the
/// source of IPv6.
#[map(name = "FLOWS")]
static FLOWS: Array<[u64; 2]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "TRIE")]
static TRIE: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(1, 0);
/// What [`load`] reads one word of.
#[map(name = "WORDS")]
static WORDS: Array<u64> = Array::with_max_entries(1, 0);
/// Words of it, less one; the number is a power of two.
#[unsafe(no_mangle)]
static WORD_MASK: Global<u32> = Global::new(0);
#[map(name = "TARGET")]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// An array of programs takes one kind.
#[map(name = "TC_TARGET")]
static TC_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Runs the measured program on the next packet.
#[xdp(frags)]
#[inline(always)]
pub fn frame(ctx: XdpContext) -> u32 {
    if reset(&ctx).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the context is the one the program was called with.
    unsafe { TARGET.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn reset(ctx: &XdpContext) -> Option<()> {
    let (data, end) = bounds(ctx.ctx);
    // Also when there is nothing to take off, so that its cost is the frame's in every case.
    let more = length(data, end) as i32 - LENGTH.load() as i32;
    // SAFETY: the context is the one the program was called with.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, more) } != 0 {
        return None;
    }
    let (data, end) = bounds(ctx.ctx);
    let state = STATE.get_ptr_mut(0)?;
    // SAFETY: the kernel's lookup returned it, and nothing else writes it while a test runs.
    let state = unsafe { &mut *state };
    let next = state.next;
    state.next = next.wrapping_add(1);
    state.passes += 1;
    let flow = FLOWS.get(next as u32 & FLOW_MASK.load())?;
    let at = |word: usize| (data + ETH + word * 8) as *mut u64;
    if data + ETH + SHORT * 8 > end {
        return None;
    }
    // SAFETY: inside the packet by the check above. The words are those that programs load from, so
    // that no load spans two stores, which a frame from a network card would not make it do either.
    unsafe {
        (data as *mut u64).write_unaligned(state.link[0]);
        ((data + 8) as *mut u32).write_unaligned(state.link[1] as u32);
        ((data + 12) as *mut u16).write_unaligned((state.link[1] >> 32) as u16);
        at(0).write_unaligned(state.words[0]);
        at(1).write_unaligned(flow[0]);
        at(2).write_unaligned(flow[1] ^ state.salt);
        at(3).write_unaligned(state.words[3]);
        at(4).write_unaligned(state.words[4]);
    }
    if LONG.load() != 0 {
        if data + ETH + ALL * 8 > end {
            return None;
        }
        // SAFETY: as above.
        unsafe {
            at(5).write_unaligned(state.words[5]);
            at(6).write_unaligned(state.words[6]);
        }
    }
    Some(())
}

/// The bytes between two packet pointers. Through memory, or the compiler subtracts in 32 bits, which
/// the verifier does not allow of pointers.
#[inline(always)]
fn length(data: usize, end: usize) -> usize {
    let mut length = 0;
    // SAFETY: a variable of our own.
    unsafe {
        (&raw mut length).write_volatile(end - data);
        (&raw const length).read_volatile()
    }
}

/// The bounds of the packet, read now.
#[inline(always)]
fn bounds(ctx: *mut xdp_md) -> (usize, usize) {
    // SAFETY: the context of a running program; volatile, as the head moves between two reads.
    unsafe {
        (
            (&raw const (*ctx).data).read_volatile() as usize,
            (&raw const (*ctx).data_end).read_volatile() as usize,
        )
    }
}

/// Nothing: what the frame costs.
#[xdp(frags)]
#[inline(always)]
pub fn empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// The kernel's trie of prefixes: drops sources that are in it.
#[xdp(frags)]
#[inline(always)]
pub fn trie(ctx: XdpContext) -> u32 {
    let Some(source) = sender(&ctx) else { return xdp_action::XDP_PASS };
    if TRIE.get(Key::new(32, source)).is_some() {
        return xdp_action::XDP_DROP;
    }
    xdp_action::XDP_PASS
}

/// The source of an IPv4 packet.
#[inline(always)]
fn sender(ctx: &XdpContext) -> Option<[u8; 4]> {
    let (data, end) = bounds(ctx.ctx);
    if data + ETH + 20 > end {
        return None;
    }
    // SAFETY: inside the packet by the check above.
    let (kind, source) = unsafe {
        (((data + 12) as *const u16).read_unaligned(), ((data + ETH + 12) as *const [u8; 4]).read())
    };
    (kind == 0x0800u16.to_be()).then_some(source)
}

/// One load from a table, at a place that the source's hash names, and a branch on what is there.
#[xdp(frags)]
#[inline(always)]
pub fn load(ctx: XdpContext) -> u32 {
    let Some(source) = sender(&ctx) else { return xdp_action::XDP_PASS };
    let source = u32::from_ne_bytes(source);
    let place = (u64::from(source).wrapping_mul(0x9e37_79b1) >> 6) as u32 & WORD_MASK.load();
    match WORDS.get(place) {
        Some(0) => xdp_action::XDP_PASS,
        _ => xdp_action::XDP_DROP,
    }
}

/// The encap floor: room for an outer IPv4 header, the header with its checksum, and out. No lookup,
/// no look at the packet, no link header.
#[xdp(frags)]
#[inline(always)]
pub fn floor(ctx: XdpContext) -> u32 {
    // SAFETY: the context is the one the program was called with.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -20) } != 0 {
        return xdp_action::XDP_ABORTED;
    }
    let (data, end) = bounds(ctx.ctx);
    if data + ETH + 20 > end {
        return xdp_action::XDP_ABORTED;
    }
    let total = u32::from(((length(data, end) - ETH) as u16).to_be());
    // 10.0.0.1 to 10.0.1.11, DF, TTL 64, IPIP: the sum of all words but the length.
    let (src, dst) = (u32::from_ne_bytes([10, 0, 0, 1]), u32::from_ne_bytes([10, 0, 1, 11]));
    let first = u32::from_ne_bytes([0x45, 0, 0, 0]);
    let second = u32::from_ne_bytes([0, 0, 0x40, 0]);
    let third = u32::from_ne_bytes([64, 4, 0, 0]);
    let halves = |word: u32| (word & 0xffff) + (word >> 16);
    let mut sum =
        halves(first) + halves(second) + halves(third) + halves(src) + halves(dst) + total;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let at = |word: usize| (data + ETH + word * 4) as *mut u32;
    // SAFETY: inside the packet by the check above.
    unsafe {
        at(0).write_unaligned(first | total << 16);
        at(1).write_unaligned(second);
        at(2).write_unaligned(third | (!sum & 0xffff) << 16);
        at(3).write_unaligned(src);
        at(4).write_unaligned(dst);
    }
    xdp_action::XDP_TX
}

/// The licence under which the kernel takes the programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// What TC programs are compared with.
#[classifier]
pub fn nothing(_: TcContext) -> i32 {
    -1
}

/// As [`frame`], for TC programs: gives an IPv4 packet the next source of the table.
#[classifier]
#[inline(always)]
pub fn tc_frame(ctx: TcContext) -> i32 {
    let Some(state) = STATE.get_ptr_mut(0) else { return 2 };
    // SAFETY: the kernel's lookup returned it, and nothing else writes it while a test runs.
    let state = unsafe { &mut *state };
    let next = state.next;
    state.next = next.wrapping_add(1);
    let Some(flow) = FLOWS.get(next as u32 & FLOW_MASK.load()) else { return 2 };
    let Some(source) = source(&ctx) else { return 2 };
    // SAFETY: inside the packet, as `source` checked.
    unsafe { source.write_unaligned((flow[0] as u32).to_ne_bytes()) };
    // SAFETY: the context is the one the program was called with.
    unsafe { TC_TARGET.tail_call(&ctx, 0) };
    2
}

/// As [`trie`], for TC; everybody passes.
#[classifier]
#[inline(always)]
pub fn tc_trie(ctx: TcContext) -> i32 {
    let Some(source) = source(&ctx) else { return 2 };
    // SAFETY: inside the packet, as `source` checked.
    let found = TRIE.get(Key::new(32, unsafe { source.read() })).is_some();
    // Something that depends on the answer, or it would not be asked for.
    if let (true, Some(state)) = (found, STATE.get_ptr_mut(0)) {
        // SAFETY: as in `tc_frame`.
        unsafe { (*state).passes += 1 };
    }
    -1
}

/// Where the source of an IPv4 packet stands.
#[inline(always)]
fn source(ctx: &TcContext) -> Option<*mut [u8; 4]> {
    let skb = ctx.skb.skb;
    // SAFETY: the context of a running program; volatile, as in `bounds`.
    let (data, end) = unsafe {
        (
            (&raw const (*skb).data).read_volatile() as usize,
            (&raw const (*skb).data_end).read_volatile() as usize,
        )
    };
    (data + ETH + 20 <= end).then_some((data + ETH + 12) as *mut [u8; 4])
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
