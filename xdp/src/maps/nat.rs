//! The tables of NAT: connections, addresses, ways back, and what one program puts aside for the next.

use abi::{
    addr::Addr,
    choice::Tracking,
    constants,
    flow::{FragmentEntry, FragmentKey},
    limits::WAY_PROBES,
    nat::{
        Entries, Entry, Flow, Ports, Stamp,
        clients::{self, Clients},
        quick::{Direction, Links, Path, Paths, Row, Rows},
    },
    reason::Reason,
    table::{NatAddress, Way},
    wire::Ip,
};
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, xdp_md},
    helpers::{bpf_csum_diff, bpf_xdp_load_bytes},
    macros::map,
    maps::{Array, PerCpuArray},
};

use super::{Maps, exchange};
use crate::{
    constant,
    events::bounded,
    flat::{Flat, flat},
    nat::{Onward, rows},
};

flat! {
    "NAT_FORTH" FORTH: u64;
    "NAT_BACK" BACK: u64;
    "NAT_PATHS" PATHS: Path;
    "NAT_ADDRESSES" NAT_ADDRESSES: NatAddress;
    "WAYS" WAY_TABLE: Way;
}

/// Connections behind NAT.
#[map(name = "NAT")]
static NAT_TABLE: Array<Entry> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Where the entries of clients stand whose backend is not the ring's: [`clients`].
#[map(name = "NAT_CLIENTS")]
static CLIENT_TABLE: Array<clients::Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// How large a packet may be that does not fit where its translation goes; 0: nobody asks.
#[map(name = "NAT_MTU")]
static NAT_MTU: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// Where a translated packet goes, for the program that writes it.
#[map(name = "NAT_ONWARD")]
static NAT_ONWARD: PerCpuArray<Onward> = PerCpuArray::with_max_entries(1, 0);
/// A flow that is put aside while its entry is searched for.
#[map(name = "NAT_FLOW")]
static NAT_FLOW: PerCpuArray<Flow> = PerCpuArray::with_max_entries(1, 0);
/// VLAN tags of an entry's client, if its link says that there are any: bytes between the MAC addresses and the last
/// ethertype, as loaded.
#[map(name = "NAT_VLANS")]
static VLANS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Bytes of a packet that are summed up, and zeros behind them.
#[map(name = "NAT_SUMMED")]
static SUMMED: PerCpuArray<[u8; MOST_SUMMED as usize + 8]> = PerCpuArray::with_max_entries(1, 0);
/// What the programs say to each other of a packet's tags.
#[map(name = "NAT_TAGGED")]
static TAGGED: PerCpuArray<Tagged> = PerCpuArray::with_max_entries(1, 0);
/// Key and value of a lookup in the table of fragments.
#[map(name = "NAT_FRAGMENT")]
static FRAGMENT: PerCpuArray<Aside> = PerCpuArray::with_max_entries(1, 0);
/// An IP header that is put aside.
#[map(name = "NAT_HEADER")]
static HEADER: PerCpuArray<Ip> = PerCpuArray::with_max_entries(1, 0);

/// Entries of the NAT table, less one; the number is a power of two.
#[inline(always)]
fn mask() -> u32 {
    constant::get::<{ constants::NAT_MASK }>() as u32
}

impl Entries for Maps {
    #[inline(always)]
    fn entry(&self, index: u32) -> Option<&Entry> {
        NAT_TABLE.get(index & mask())
    }

    #[inline(always)]
    fn swap(&self, index: u32, old: Stamp, new: Stamp) -> bool {
        let Some(entry) = NAT_TABLE.get_ptr_mut(index & mask()) else { return false };
        const { assert!(Entry::STATE == 0) };
        // SAFETY: the kernel's lookup returned the entry, whose first word is the state; aligned.
        unsafe { exchange(entry.cast(), old.to_word(), new.to_word()) }
    }

    #[inline(always)]
    fn write(&self, index: u32, entry: &Entry) {
        let Some(place) = NAT_TABLE.get_ptr_mut(index & mask()) else { return };
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

    #[inline(always)]
    fn count(&self, backend: u32, more: i64) {
        self.add_active(backend, more);
    }

    #[inline(always)]
    fn forget(&self, index: u32, udp: bool) {
        rows::nat_forget(index, u32::from(udp));
    }
}

/// A row of one of the two tables.
#[inline(always)]
fn row(to: Direction, row: u32) -> *mut u64 {
    match to {
        Direction::Forth => FORTH.at_ptr(row.into()),
        Direction::Back => BACK.at_ptr(row.into()),
    }
}

impl Rows for Maps {
    #[inline(always)]
    fn row(&self, to: Direction, number: u32) -> Row {
        // SAFETY: a row of the table; aligned; volatile because other CPUs store.
        Row::from_word(unsafe { row(to, number).read_volatile() })
    }

    #[inline(always)]
    fn swap_row(&self, to: Direction, number: u32, old: Row, new: Row) -> bool {
        // SAFETY: a row of the table; aligned.
        unsafe { exchange(row(to, number), old.to_word(), new.to_word()) }
    }
}

impl Links for Maps {
    #[inline(always)]
    fn path_link(&self, number: u32) -> u64 {
        self.path(number).link()
    }

    #[inline(always)]
    fn swap_path(&self, number: u32, old: u64, new: u64) -> bool {
        // SAFETY: the first word of a row of the table; aligned.
        unsafe { exchange(PATHS.at_ptr(number.into()).cast(), old, new) }
    }
}

impl Paths for Maps {
    #[inline(always)]
    fn path(&self, number: u32) -> &Path {
        PATHS.at(number.into())
    }

    #[inline(always)]
    fn write_path(&self, number: u32, path: &Path) {
        let (from, to) = (core::ptr::from_ref(path).cast::<u64>(), PATHS.at_ptr(number.into()));
        // SAFETY: a row of the table; both are aligned and of this many words. Volatile keeps the order, in which the
        // first word comes last.
        unsafe {
            let mut word = size_of::<Path>() / 8;
            while word > 0 {
                word -= 1;
                to.cast::<u64>().add(word).write_volatile(*from.add(word));
            }
        }
    }
}

impl Clients for Maps {
    #[inline(always)]
    fn word(&self, bucket: u32, way: u32) -> u64 {
        // SAFETY: a word of the table; aligned; volatile because other CPUs store.
        client_word(bucket, way).map_or(0, |word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn swap_word(&self, bucket: u32, way: u32, old: u64, new: u64) -> bool {
        // SAFETY: a word of the table; aligned.
        client_word(bucket, way).is_some_and(|word| unsafe { exchange(word, old, new) })
    }
}

#[inline(always)]
fn client_word(bucket: u32, way: u32) -> Option<*mut u64> {
    let bucket = CLIENT_TABLE.get_ptr_mut(bucket & (mask() / clients::ENTRIES))?;
    // SAFETY: the kernel's lookup returned the bucket, and the mask keeps the word inside of it.
    Some(unsafe { bucket.cast::<u64>().add((way & (clients::WAYS - 1)) as usize) })
}

/// Puts a flow aside: what it takes is not on the stack.
#[inline(always)]
pub(crate) fn put_flow(flow: Flow) -> Option<&'static Flow> {
    let place = NAT_FLOW.get_ptr_mut(0)?;
    let Flow { client, vip, ports, backend, identity, hash, pair } = flow;
    // SAFETY: the kernel's lookup returned this CPU's own element, which no other packet gets before this one
    // has left. Field by field: as a whole it would be made on the stack first.
    unsafe {
        (&raw mut (*place).client).write(client);
        (&raw mut (*place).vip).write(vip);
        (&raw mut (*place).ports).write(ports);
        (&raw mut (*place).backend).write(backend);
        (&raw mut (*place).identity).write(identity);
        (&raw mut (*place).hash).write(hash);
        (&raw mut (*place).pair).write(pair);
        Some(&*place)
    }
}

/// The flow that was put aside.
#[inline(always)]
pub(crate) fn kept_flow() -> Option<&'static Flow> {
    NAT_FLOW.get(0)
}

/// What would take too much stack.
#[repr(C)]
struct Aside {
    key: FragmentKey,
    entry: FragmentEntry,
}

/// Where the first fragment of a datagram went; the key stands aside.
#[inline(always)]
pub(crate) fn fragment_aside(key: FragmentKey) -> Option<FragmentEntry> {
    let place = FRAGMENT.get_ptr_mut(0)?;
    // SAFETY: the kernel's lookup returned this CPU's own element.
    let key = unsafe {
        (&raw mut (*place).key).write(key);
        &(*place).key
    };
    super::fragment(key)
}

/// Notes it; key and entry stand aside.
#[inline(always)]
pub(crate) fn remember_fragment_aside(key: FragmentKey, entry: FragmentEntry) {
    let Some(place) = FRAGMENT.get_ptr_mut(0) else { return };
    // SAFETY: as above.
    let Aside { key, entry } = unsafe {
        (&raw mut (*place).key).write(key);
        (&raw mut (*place).entry).write(entry);
        &*place
    };
    super::remember_fragment(key, entry);
}

/// Puts aside what an IP header says.
#[inline(always)]
pub(crate) fn put_ip(ip: Ip) -> Option<&'static Ip> {
    let place = HEADER.get_ptr_mut(0)?;
    let Ip { src, dst, protocol, tos, ttl, fragment, total, header } = ip;
    // SAFETY: the kernel's lookup returned this CPU's own element, which nobody writes while this packet is looked at.
    // Field by field, as above.
    unsafe {
        (&raw mut (*place).src).write(src);
        (&raw mut (*place).dst).write(dst);
        (&raw mut (*place).protocol).write(protocol);
        (&raw mut (*place).tos).write(tos);
        (&raw mut (*place).ttl).write(ttl);
        (&raw mut (*place).fragment).write(fragment);
        (&raw mut (*place).total).write(total);
        (&raw mut (*place).header).write(header);
        Some(&*place)
    }
}

/// Puts aside where a translated packet goes.
#[inline(always)]
pub(crate) fn put_onward(onward: Onward) {
    if let Some(place) = NAT_ONWARD.get_ptr_mut(0) {
        let Onward { src, dst, ports, ifindex, mac, own, tags } = onward;
        // SAFETY: the kernel's lookup returned this CPU's own element. Field by field, as above.
        unsafe {
            (&raw mut (*place).src).write(src);
            (&raw mut (*place).dst).write(dst);
            (&raw mut (*place).ports).write(ports);
            (&raw mut (*place).ifindex).write(ifindex);
            (&raw mut (*place).mac).write(mac);
            (&raw mut (*place).own).write(own);
            (&raw mut (*place).tags).write(tags);
        }
    }
}

/// What was put aside.
#[inline(always)]
pub(crate) fn onward() -> Option<&'static Onward> {
    NAT_ONWARD.get(0)
}

/// Beside an MTU: the sender is told even if it did not ask to know.
const UNASKED: u32 = 1 << 31;

/// Puts aside how large a packet of its sender's family may be, for the one who tells it; `unasked`: also if it did not ask
/// to know.
#[inline(always)]
pub(crate) fn tell_mtu(mtu: u32, unasked: bool) {
    if let Some(place) = NAT_MTU.get_ptr_mut(0) {
        // SAFETY: the kernel's lookup returned this CPU's own element.
        unsafe { place.write(mtu | u32::from(unasked) << UNASKED.trailing_zeros()) };
    }
}

/// Takes what was put aside, if this packet's program did.
#[inline(always)]
pub(crate) fn told_mtu() -> Option<(u32, bool)> {
    let place = NAT_MTU.get_ptr_mut(0)?;
    // SAFETY: as above.
    let told = unsafe { place.replace(0) };
    (told != 0).then_some((told & !UNASKED, told & UNASKED != 0))
}

/// Bytes that [`sum_of`] sums up at most.
pub(crate) const MOST_SUMMED: u32 = 2048;

/// Sum of bytes of the packet in memory order, not folded.
#[inline(always)]
pub(crate) fn sum_of(ctx: *mut xdp_md, at: u32, len: u32) -> Option<u32> {
    // Longest buffer that the helper takes at once (`MAX_BPF_STACK`).
    const CHUNK: u32 = 512;
    if len > MOST_SUMMED {
        return None;
    }
    let place = SUMMED.get_ptr_mut(0)?.cast::<u8>();
    let len = bounded::<{ MOST_SUMMED - 1 }>(len);
    // SAFETY: the element has room for `MOST_SUMMED` bytes, which `len` is at most, and for a word behind them, which
    // makes the last one whole.
    unsafe {
        if bpf_xdp_load_bytes(ctx, at, place.cast(), len) != 0 {
            return None;
        }
        place.add(len as usize).cast::<u32>().write_unaligned(0);
    }
    let whole = (len + 3) & !3;
    let (mut sum, mut from) = (0, 0);
    while from < MOST_SUMMED {
        let left = whole.saturating_sub(from);
        let size = if left < CHUNK { left } else { CHUNK };
        // SAFETY: inside of the element, a multiple of four; the helper only reads.
        unsafe {
            let chunk = place.add(from as usize).cast();
            sum = bpf_csum_diff(core::ptr::null_mut(), 0, chunk, size, sum) as u32;
        }
        from += CHUNK;
    }
    Some(sum)
}

/// Of a packet with tags.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tagged {
    /// Those that it came with.
    tags: u64,
    /// What the first program said of it.
    first: u32,
    /// Identifications that were given to fragmented datagrams.
    ids: u32,
    out: Out,
}

/// How a packet that has been translated leaves.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Out {
    /// Tags that are to be put on.
    pub(crate) tags: u64,
    pub(crate) ifindex: u32,
    /// Bytes that came.
    pub(crate) bytes: u32,
}

#[inline(always)]
fn tagged() -> Option<*mut Tagged> {
    TAGGED.get_ptr_mut(0)
}

/// Puts aside what the first program said.
#[inline(always)]
pub(crate) fn keep_first(first: Reason) {
    if let Some(place) = tagged() {
        // SAFETY: the kernel's lookup returned this CPU's own element.
        unsafe { (*place).first = first as u32 };
    }
}

/// What was put aside.
#[inline(always)]
pub(crate) fn kept_first() -> Option<Reason> {
    // SAFETY: as above.
    Reason::from_index(unsafe { (*tagged()?).first })
}

/// Puts aside the tags that a packet came with.
#[inline(always)]
pub(crate) fn keep_tags(tags: u64) {
    if let Some(place) = tagged() {
        // SAFETY: as above.
        unsafe { (*place).tags = tags };
    }
}

/// The tags that a packet came with.
#[inline(always)]
pub(crate) fn kept_tags() -> Option<u64> {
    // SAFETY: as above.
    Some(unsafe { (*tagged()?).tags })
}

/// The next identification for a fragmented datagram; CPUs begin apart from each other.
#[inline(always)]
pub(crate) fn next_id(cpu: u32) -> u16 {
    const APART: u32 = 12_059;
    let Some(place) = tagged() else { return 0 };
    // SAFETY: as above.
    let id = unsafe {
        (*place).ids = (*place).ids.wrapping_add(1);
        (*place).ids
    };
    id.wrapping_add(cpu.wrapping_mul(APART)) as u16
}

/// Puts aside how a translated packet leaves.
#[inline(always)]
pub(crate) fn put_out(out: Out) {
    if let Some(place) = tagged() {
        // SAFETY: as above.
        unsafe { (*place).out = out };
    }
}

/// What was put aside.
#[inline(always)]
pub(crate) fn out() -> Option<Out> {
    // SAFETY: as above.
    Some(unsafe { (*tagged()?).out })
}

/// Tags of replies of the entry at this place: of those whose link says so.
#[inline(always)]
pub(crate) fn tags_of(index: u32) -> u64 {
    let Some(place) = VLANS.get_ptr(index & mask()) else { return 0 };
    // SAFETY: the kernel's lookup returned it; aligned; volatile because other CPUs store.
    unsafe { place.read_volatile() }
}

/// Notes the tags that a client's packet came with, for replies.
#[inline(always)]
pub(crate) fn note_tags(index: u32) {
    let Some(tags) = kept_tags() else { return };
    let Some(place) = VLANS.get_ptr_mut(index & mask()) else { return };
    // SAFETY: as above.
    unsafe {
        if place.read_volatile() != tags {
            place.write_volatile(tags);
        }
    }
}

/// Stores the way back to a client.
#[inline(always)]
pub(crate) fn set_link(index: u32, link: u64) {
    let Some(place) = NAT_TABLE.get_ptr_mut(index & mask()) else { return };
    // SAFETY: the kernel's lookup returned it; an aligned word inside of it.
    unsafe { place.cast::<u64>().add(Entry::LINK / 8).write_volatile(link) };
}

/// The range of NAT ports.
#[inline(always)]
pub(crate) fn nat_ports() -> Ports {
    Ports::from_word(constant::get::<{ constants::NAT_PORTS }>() as u32)
}

/// A NAT address.
#[inline(always)]
pub(crate) fn nat_address(row: u8) -> Option<Addr> {
    Some(NAT_ADDRESSES.at(row.into()).addr)
}

/// The interface of this number, if it is where it nearly always is.
#[inline(always)]
pub(crate) fn first_way(ifindex: u32) -> Option<&'static Way> {
    Some(WAY_TABLE.at(ifindex.into())).filter(|way| way.ifindex() == ifindex)
}

/// The interface of this number.
#[inline(always)]
pub(crate) fn way(ifindex: u32) -> Option<&'static Way> {
    let mut n = 0;
    while n < WAY_PROBES {
        let way = WAY_TABLE.at(Way::place(ifindex, n).into());
        if way.ifindex() == ifindex {
            return Some(way);
        }
        n += 1;
    }
    None
}
