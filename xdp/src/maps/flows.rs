//! The table of connection entries.

use abi::flow::{
    FlowEntry, FlowKey,
    table::{self, Entry, Rows, Stamp},
    tag::Tag,
};

use aya_ebpf::{macros::map, maps::PerCpuArray};

use super::{exchange, seconds};
use crate::flat::{Flat, flat};

flat! {
    "FLOWS" FLOWS: Entry;
    "FLOW_TAGS" FLOW_TAGS: u64;
}

/// The table, for [`abi::flow::table`].
pub(super) struct Flows;

impl Rows for Flows {
    #[inline(always)]
    fn row(&self, row: u32) -> &Entry {
        FLOWS.at(row.into())
    }

    #[inline(always)]
    fn swap(&self, row: u32, old: Stamp, new: Stamp) -> bool {
        const { assert!(Entry::STATE == 0) };
        // SAFETY: a row of the table, whose first word is the state; aligned.
        unsafe { exchange(FLOWS.at_ptr(row.into()).cast(), old.to_word(), new.to_word()) }
    }

    #[inline(always)]
    fn store(&self, row: u32, offset: usize, word: u64) {
        // SAFETY: an aligned word inside a row of the table.
        unsafe {
            FLOWS.at_ptr(row.into()).cast::<u8>().add(offset).cast::<u64>().write_volatile(word);
        }
    }

    #[inline(always)]
    fn tag(&self, row: u32) -> Tag {
        // SAFETY: a row of the table; aligned; volatile because others store.
        Tag::from_word(unsafe { FLOW_TAGS.at_ptr(row.into()).read_volatile() })
    }

    #[inline(always)]
    fn swap_tag(&self, row: u32, old: Tag, new: Tag) {
        // SAFETY: a row of the table; aligned.
        unsafe { exchange(FLOW_TAGS.at_ptr(row.into()), old.to_word(), new.to_word()) };
    }
}

/// A key that is put aside while a row is looked for, and what its entry is to say.
#[map(name = "FLOW_ASIDE")]
static ASIDE: PerCpuArray<[u64; 7]> = PerCpuArray::with_max_entries(1, 0);

/// Puts a key aside.
#[inline(always)]
fn put(key: &FlowKey) {
    let Some(place) = ASIDE.get_ptr_mut(0) else { return };
    // SAFETY: the kernel's lookup returned this CPU's own element, which begins with five words.
    unsafe { place.cast::<[u64; 5]>().write(key.to_words()) };
}

/// Puts a key aside, and what its entry is to say.
#[inline(always)]
pub(crate) fn put_entry(key: &FlowKey, entry: &FlowEntry) {
    let Some(place) = ASIDE.get_ptr_mut(0) else { return };
    let ([a, b, c, d, e], [to, seen]) = (key.to_words(), entry.to_words());
    // SAFETY: the kernel's lookup returned this CPU's own element.
    unsafe { place.write([a, b, c, d, e, to, seen]) };
}

#[inline(always)]
fn kept() -> Option<&'static [u64; 5]> {
    let place = ASIDE.get_ptr_mut(0)?;
    // SAFETY: as above; nobody writes it before it is read.
    Some(unsafe { &*place.cast() })
}

/// Where a key's entry is.
#[inline(always)]
pub(super) fn search(key: &FlowKey, hash: u64) -> Option<u32> {
    put(key);
    found(flow_search(hash))
}

/// Claims a row for a key.
#[inline(always)]
pub(super) fn claim(key: &FlowKey, hash: u64) -> Option<u32> {
    put(key);
    found(flow_claim(hash))
}

/// Makes or replaces the entry that was put aside.
#[inline(always)]
pub(crate) fn remember_put(hash: u64) {
    if let Some(key) = kept()
        && let Some(row) = table::claim(&Flows, key, hash, seconds())
        && let Some(place) = ASIDE.get_ptr_mut(0)
    {
        // SAFETY: as above; volatile, so that it is read now and takes no stack until then.
        let [.., to, seen] = unsafe { place.read_volatile() };
        table::publish(&Flows, row, &FlowEntry::from_words([to, seen]));
    }
}

/// A row is a number with this bit; else there is none.
const FOUND: u64 = 1 << 32;

#[inline(always)]
fn found(row: u64) -> Option<u32> {
    (row & FOUND != 0).then_some(row as u32)
}

#[inline(always)]
fn word(row: Option<u32>) -> u64 {
    row.map_or(0, |row| u64::from(row) | FOUND)
}

/// A global function: the verifier goes through the search once. Of the key that was put aside.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_search(hash: u64) -> u64 {
    let Some(key) = kept() else { return 0 };
    word(table::search(&Flows, &FlowKey::from_words(*key), hash).map(|(row, _)| row))
}

/// A global function, as the one above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_claim(hash: u64) -> u64 {
    let Some(key) = kept() else { return 0 };
    word(table::claim(&Flows, key, hash, seconds()))
}
