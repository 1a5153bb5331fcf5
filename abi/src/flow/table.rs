//! The table of connection entries.
//!
//! It is flat: the low bits of a key's hash are the row where its entry stands, nearly always, and so a lookup is one
//! cache line. Else it is in one of the other rows of the same bucket of [`WAYS`]; a lookup goes round, and ends at
//! a row that nobody ever used. An entry is claimed by one compare-and-exchange of its state word and published by
//! another; in a full bucket it takes the place of the one that was used longest ago. Nothing is moved or swept.
//!
//! Beside it is a table of tags ([`super::tag`]), which most lookups end at. Whoever claims or removes an entry takes
//! away its tag afterwards, and whoever leaves one looks afterwards whether the entry is still the same: so one of the
//! two sees the other, and no tag outlasts its entry.

use super::{FlowEntry, FlowKey, tag::Tag};
use crate::table::{live, shared};

/// Rows of a bucket.
pub const WAYS: u32 = 8;
/// Seconds by which the note of when an entry was used may be late: its cache line stays clean meanwhile. A power of two.
pub const UNNOTED: u32 = 16;
/// Seconds by which an entry that was never used again counts as older than it is, so that a flood of flows that
/// do not go on leaves those that do alone.
const UNPROVEN: u32 = 64;

/// The table. Rows are taken modulo its size, which is a power of two and at least [`WAYS`].
pub trait Rows {
    /// An entry.
    fn row(&self, row: u32) -> &Entry;
    /// Replaces the state word of an entry, if it still is `old`; whether it was. What was stored before is seen
    /// before it, and what is stored afterwards, after it.
    fn swap(&self, row: u32, old: Stamp, new: Stamp) -> bool;
    /// Stores the word at a byte offset of an entry.
    fn store(&self, row: u32, offset: usize, word: u64);
    /// The tag of a row.
    fn tag(&self, row: u32) -> Tag;
    /// Replaces the tag of a row, if it still is `old`; in order, as [`Self::swap`].
    fn swap_tag(&self, row: u32, old: Tag, new: Tag);
}

/// The state word of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp(u64);

impl Stamp {
    const PHASE: u64 = 3 << 32;
    const REMOVED: u64 = 1 << 32;
    const CLAIMED: u64 = 2 << 32;
    const STANDS: u64 = 3 << 32;
    const PROVEN: u64 = 1 << 34;
    const TURN: u32 = 48;

    /// From a word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// One word: seconds of the programs' clock in the low half, the turn in the high 16 bits.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// Whether nothing has ever stood there.
    #[inline(always)]
    #[must_use]
    pub const fn is_untouched(self) -> bool {
        self.0 & Self::PHASE == 0
    }

    /// Whether there is an entry.
    #[inline(always)]
    #[must_use]
    pub const fn stands(self) -> bool {
        self.0 & Self::PHASE == Self::STANDS
    }

    /// Whether it is still the same entry.
    #[inline(always)]
    #[must_use]
    pub const fn is_same(self, later: Self) -> bool {
        (self.0 ^ later.0) & !(Self::PROVEN | u32::MAX as u64) == 0
    }

    /// When it was used, in seconds of the programs' clock; late by [`UNNOTED`] at most.
    #[inline(always)]
    #[must_use]
    pub const fn used(self) -> u32 {
        self.0 as u32
    }

    /// After it was removed.
    #[inline(always)]
    #[must_use]
    pub const fn removed(self) -> Self {
        Self(self.0 & !Self::PHASE | Self::REMOVED)
    }

    /// After another one has begun to write in its place.
    #[inline(always)]
    const fn claimed(self, now: u32) -> Self {
        let turn = (self.0 >> Self::TURN).wrapping_add(1) << Self::TURN;
        Self(turn | Self::CLAIMED | now as u64)
    }

    /// After that one is written.
    #[inline(always)]
    const fn published(self) -> Self {
        Self(self.0 | Self::STANDS)
    }

    /// After it was used again.
    #[inline(always)]
    const fn again(self, now: u32) -> Self {
        Self(self.0 & !(u32::MAX as u64) | Self::PROVEN | now as u64)
    }

    /// Seconds since it was used; another CPU's clock may be a little ahead.
    #[inline(always)]
    const fn age(self, now: u32) -> u32 {
        let age = now.wrapping_sub(self.used());
        if (age as i32) < 0 { 0 } else { age }
    }

    /// Whether that it was used again is to be noted.
    #[inline(always)]
    const fn is_late(self, now: u32) -> bool {
        self.0 & Self::PROVEN == 0 || self.age(now) > UNNOTED
    }

    /// Whether a tag may be left of it: not before it was used again.
    #[inline(always)]
    const fn may_have_tag(self) -> bool {
        self.0 & Self::PROVEN != 0
    }

    /// How much rather than others it gives way; 0: it does not.
    #[inline(always)]
    const fn rank(self, now: u32) -> u32 {
        const FREE: u32 = 1 << 31;
        let unproven = if self.0 & Self::PROVEN == 0 { UNPROVEN } else { 0 };
        match self.0 & Self::PHASE {
            Self::CLAIMED => 0,
            Self::STANDS => {
                let age = self.age(now);
                1 + unproven + if age < FREE / 2 { age } else { FREE / 2 }
            }
            _ => FREE,
        }
    }
}

/// A row of the table.
///
/// Live words: all. Those of the key change between a claim and its publication alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    state: u64,
    to: u64,
    seen: u64,
    key: [u64; 5],
}

shared!(Entry, 64, { state @ 0, to @ 8, seen @ 16, key @ 24 });

impl Entry {
    /// Byte offset of `state`.
    pub const STATE: usize = core::mem::offset_of!(Self, state);
    const TO: usize = core::mem::offset_of!(Self, to);
    const SEEN: usize = core::mem::offset_of!(Self, seen);
    const KEY: usize = core::mem::offset_of!(Self, key);

    /// Its state, now.
    #[inline(always)]
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp(live(&self.state))
    }

    /// What it says; of a copy, or after a look at its state that is repeated afterwards.
    #[inline(always)]
    #[must_use]
    pub fn value(&self) -> FlowEntry {
        FlowEntry::from_words([live(&self.to), live(&self.seen)])
    }

    /// Whose it is; likewise.
    #[must_use]
    pub const fn key(&self) -> FlowKey {
        FlowKey::from_words(self.key)
    }

    /// Whether it is this key's, whose words are asked for one by one: a program has few registers.
    #[inline(always)]
    fn is_of(&self, key: impl Fn(usize) -> u64) -> bool {
        let [a, b, c, d, e] = &self.key;
        live(e) == key(4)
            && live(b) == key(1)
            && live(d) == key(3)
            && live(a) == key(0)
            && live(c) == key(2)
    }
}

/// The row of a key with this hash that is looked at as the `n`th.
#[inline(always)]
const fn row(hash: u64, n: u32) -> u32 {
    let first = hash as u32;
    first & !(WAYS - 1) | first.wrapping_add(n) & (WAYS - 1)
}

/// The entry of a key.
#[inline(always)]
pub fn find<T: Rows>(table: &T, key: &FlowKey, hash: u64, now: u32) -> Option<FlowEntry> {
    let (at, stamp) = search(table, key, hash)?;
    let entry = table.row(at);
    let value = entry.value();
    if !entry.stamp().is_same(stamp) {
        return None;
    }
    if stamp.is_late(now) {
        core::hint::cold_path();
        // If another CPU notes it at the same time, that will do.
        table.swap(at, stamp, stamp.again(now));
    }
    Some(value)
}

/// The entry of a key, which gets a tag. For flows that look for tags first: what they find here is an entry that has
/// none, or none that holds any longer.
#[inline(always)]
pub fn find_untagged<T: Rows>(table: &T, key: &FlowKey, hash: u64, now: u32) -> Option<FlowEntry> {
    let (at, stamp) = search(table, key, hash)?;
    let entry = table.row(at);
    let value = entry.value();
    if !entry.stamp().is_same(stamp) {
        return None;
    }
    let tag = Tag::new(hash, value.backend(), value.epoch(), now);
    // A flow may come here with a tag that holds, but not its backend.
    if table.tag(at) != tag && table.swap(at, stamp, stamp.again(now)) {
        leave(table, at, stamp, tag);
    }
    Some(value)
}

/// Leaves the tag of an entry that was just found in its state, and noted to have been used again.
#[inline(always)]
fn leave<T: Rows>(table: &T, at: u32, stamp: Stamp, tag: Tag) {
    table.swap_tag(at, table.tag(at), tag);
    if !table.row(at).stamp().is_same(stamp) {
        core::hint::cold_path();
        table.swap_tag(at, tag, Tag::NONE);
    }
}

/// The tag of the row that is looked at as the `n`th for a flow with this hash: it is the flow's, if it equals the one that
/// [`Tag::new`] makes of what it says.
#[inline(always)]
pub fn tag<T: Rows>(table: &T, hash: u64, n: u32) -> Tag {
    table.tag(row(hash, n))
}

/// The row of a key's entry, and its state.
#[inline(always)]
pub fn search<T: Rows>(table: &T, key: &FlowKey, hash: u64) -> Option<(u32, Stamp)> {
    let key = key.to_words();
    sought(table, |word| key[word], hash)
}

#[inline(always)]
fn sought<T: Rows>(table: &T, key: impl Fn(usize) -> u64, hash: u64) -> Option<(u32, Stamp)> {
    let mut n = 0;
    while n < WAYS {
        let at = row(hash, n);
        let entry = table.row(at);
        let stamp = entry.stamp();
        if stamp.is_untouched() {
            return None;
        }
        if stamp.stands() && entry.is_of(&key) {
            return Some((at, stamp));
        }
        n += 1;
    }
    None
}

/// Claims a row for a key, in words that are read from memory again and again: that of the entry that it has, else a free
/// one, else that of the entry which was used longest ago. To be given what it says by [`publish`], until when no one
/// else has it. `None`: another CPU was faster.
#[inline(always)]
pub fn claim<T: Rows>(table: &T, key: &[u64; 5], hash: u64, now: u32) -> Option<u32> {
    let own = sought(table, |word| live(&key[word]), hash);
    let (at, before) = own.or_else(|| oldest(table, hash, now))?;
    if !table.swap(at, before, before.claimed(now)) {
        return None;
    }
    if before.may_have_tag() {
        core::hint::cold_path();
        table.swap_tag(at, table.tag(at), Tag::NONE);
    }
    let mut word = 0;
    while word < key.len() {
        table.store(at, Entry::KEY + 8 * word, live(&key[word]));
        word += 1;
    }
    Some(at)
}

/// The row that gives way to another entry, and its state.
#[inline(always)]
fn oldest<T: Rows>(table: &T, hash: u64, now: u32) -> Option<(u32, Stamp)> {
    let (mut oldest, mut most) = (None, 0);
    let mut n = 0;
    while n < WAYS {
        let at = row(hash, n);
        let stamp = table.row(at).stamp();
        let rank = stamp.rank(now);
        if rank > most {
            (oldest, most) = (Some((at, stamp)), rank);
        }
        if stamp.is_untouched() {
            break;
        }
        n += 1;
    }
    oldest
}

/// Puts an entry in force in a row that was claimed: by an exchange, though the row is nobody else's. Where a processor
/// reorders stores, a plain one might be seen before what the entry says, and BPF has others from Linux 6.15 on only.
#[inline(always)]
pub fn publish<T: Rows>(table: &T, row: u32, value: &FlowEntry) {
    let [to, seen] = value.to_words();
    table.store(row, Entry::TO, to);
    table.store(row, Entry::SEEN, seen);
    let claimed = table.row(row).stamp();
    table.swap(row, claimed, claimed.published());
}

/// Stores when an entry was seen ([`FlowEntry::seen_word`]). Should another one take the row at this very moment, that
/// one is meant to have been seen.
#[inline(always)]
pub fn touch<T: Rows>(table: &T, row: u32, seen: u64) {
    table.store(row, Entry::SEEN, seen);
}

#[cfg(test)]
mod tests;
