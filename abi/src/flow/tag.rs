//! Tags: what a packet needs of its flow's connection entry, in one word.
//!
//! A table of them stands beside that of entries, with as many rows: the tag of a row is of the entry there, if that
//! was used again. An entry is a cache line, and the tags of a whole bucket are one: so a packet that finds its tag costs
//! less of the caches, and no comparison of keys.
//!
//! A tag is believed for its fingerprint: 44 bits of the flow's hash, which is keyed, of the use of the backend's row
//! and of the time. So it ends by itself when the row is put to another use, and every [`UNNOTED`] seconds: the next
//! packet then goes by the entry, notes that this was used, and leaves the tag anew. That is why a tag has no time in
//! it, which would wrap around. A flow without an entry may take another one's tag for its own: one in 2^41 does (two
//! million million), of those that look at a bucket full of tags. It then goes where that flow does, for [`UNNOTED`]
//! seconds at most, and its connection, unless its backend is that one anyway, is likely to be reset: as after the loss
//! of its entry.
//!
//! [`UNNOTED`]: super::table::UNNOTED

use super::table::UNNOTED;
use crate::limits::MAX_BACKENDS;

/// Of a row of the table of entries: the fingerprint in the high 44 bits, and the row of the backend. 0: there is none,
/// or one whose flow has a fingerprint of 0, at the backend of row 0, which is as likely as any other that is met by
/// chance.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag(u64);

impl Tag {
    /// No tag.
    pub const NONE: Self = Self(0);
    const ROW: u64 = MAX_BACKENDS as u64 - 1;
    /// An odd number whose small multiples differ in their high bits (2^64 divided by the golden ratio).
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

    /// The tag at a time in seconds of the programs' clock; `hash`: of the flow, whose low bits are the row where it
    /// stands. `backend`: a row; `epoch`: the use of it that is meant.
    #[inline(always)]
    #[must_use]
    pub const fn new(hash: u64, backend: u32, epoch: u32, now: u32) -> Self {
        const { assert!(UNNOTED.is_power_of_two()) };
        // The turns of flows do not begin all at the same time.
        let turn = (now as u64 + (hash & (UNNOTED as u64 - 1))) / UNNOTED as u64;
        let print = hash ^ (epoch as u64) << 32 ^ turn.wrapping_mul(Self::SPREAD);
        Self(print & !Self::ROW | backend as u64 & Self::ROW)
    }

    /// From a word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// As stored.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// Whether the two may be of the same flow at the same time, at whatever backends: 12 bits of the fingerprint.
    #[inline(always)]
    #[must_use]
    pub const fn is_like(self, other: Self) -> bool {
        (self.0 ^ other.0) as u32 & !(Self::ROW as u32) == 0
    }

    /// Row of the backend, if it is the tag of the flow that looks at it.
    #[inline(always)]
    #[must_use]
    pub const fn backend(self) -> u32 {
        (self.0 & Self::ROW) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frozen() {
        assert_eq!(Tag::new(0x0123_4567_89ab_cdef, 3, 0, 0).to_word(), 0x0123_4567_89a0_0003);
        assert_eq!(Tag::new(0x0123_4567_89ab_cdef, 3, 0, 1).to_word(), 0x9f14_3cde_f6e0_0003);
    }

    proptest! {
        /// No two flows of a row, uses of a backend's row or turns have the same tag, where they differ in that alone.
        #[test]
        fn what_differs_has_another_tag(
            hash: u64,
            other: u64,
            backend in 0..MAX_BACKENDS,
            epoch: u32,
            other_epoch: u32,
            now: u32,
            later in 1..u32::MAX,
        ) {
            let tag = Tag::new(hash, backend, epoch, now);
            prop_assert_eq!(tag.backend(), backend);
            prop_assert!(tag.is_like(Tag::new(hash, 0, other_epoch, now)));
            prop_assert!(!tag.is_like(Tag::new(hash ^ 1 << 31, backend, epoch, now)));
            if hash >> 20 != other >> 20 {
                // In the same row, and at the same turn.
                let other = other & !0xf_ffff | hash & 0xf_ffff;
                prop_assert_ne!(tag, Tag::new(other, backend, epoch, now));
            }
            if epoch != other_epoch {
                prop_assert_ne!(tag, Tag::new(hash, backend, other_epoch, now));
            }
            let then = Tag::new(hash, backend, epoch, now.wrapping_add(later));
            if later >= UNNOTED && now.checked_add(later).is_some() {
                prop_assert_ne!(tag, then);
            }
        }

        /// A tag holds for as long as its turn lasts.
        #[test]
        fn a_turn_is_as_long_as_uses_may_go_unnoted(hash: u64, start in 0..u32::MAX - 4 * UNNOTED) {
            let tag = |after| Tag::new(hash, 7, 1, start + after);
            let changes = (1..=3 * UNNOTED).filter(|&after| tag(after) != tag(after - 1));
            prop_assert_eq!(changes.count(), 3);
            let begins = (1..=UNNOTED).find(|&after| tag(after) != tag(after - 1)).unwrap();
            prop_assert!((0..UNNOTED).all(|after| tag(begins + after) == tag(begins)));
        }
    }
}
