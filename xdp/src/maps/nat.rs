//! The tables of NAT: connections, addresses, ways back, and what one program puts aside for the next.

use abi::{
    addr::Addr,
    choice::Tracking,
    limits::{MAX_NAT_ADDRESSES, WAY_PROBES, WAYS},
    nat::{
        Entries, Entry, Flow, Ports, Stamp,
        clients::{self, Clients},
    },
    table::{NatAddress, Way},
};
use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, PerCpuArray},
};

use super::Maps;
use crate::nat::Onward;

/// Entries of the NAT table, less one; the number is a power of two.
#[unsafe(no_mangle)]
static NAT_MASK: Global<u32> = Global::new(0);
/// The range of NAT ports, in one word.
#[unsafe(no_mangle)]
static NAT_PORTS: Global<u32> = Global::new(0);

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
#[map(name = "NAT_ADDRESSES")]
static NAT_ADDRESSES: Array<NatAddress> =
    Array::with_max_entries(MAX_NAT_ADDRESSES, BPF_F_MMAPABLE);
#[map(name = "WAYS")]
static WAY_TABLE: Array<Way> = Array::with_max_entries(WAYS, BPF_F_MMAPABLE);

impl Entries for Maps {
    #[inline(always)]
    fn entry(&self, index: u32) -> Option<&Entry> {
        NAT_TABLE.get(index & NAT_MASK.load())
    }

    #[inline(always)]
    fn swap(&self, index: u32, old: Stamp, new: Stamp) -> bool {
        let Some(entry) = NAT_TABLE.get_ptr_mut(index & NAT_MASK.load()) else { return false };
        const { assert!(Entry::STATE == 0) };
        // SAFETY: the kernel's lookup returned the entry, whose first word is the state; aligned.
        unsafe { exchange(entry.cast(), old.to_word(), new.to_word()) }
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

    #[inline(always)]
    fn count(&self, backend: u32, more: i64) {
        self.add_active(backend, more);
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
    let bucket = CLIENT_TABLE.get_ptr_mut(bucket & NAT_MASK.load() / clients::ENTRIES)?;
    // SAFETY: the kernel's lookup returned the bucket, and the mask keeps the word inside of it.
    Some(unsafe { bucket.cast::<u64>().add((way & (clients::WAYS - 1)) as usize) })
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
