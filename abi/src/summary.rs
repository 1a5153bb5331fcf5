//! A small front of the prefix sets: which IPv4 networks of length 24 have an entry, and where, and which leading
//! 32 bits IPv6 prefixes have. Its few MB stay in a core's own caches, where larger tables do not; most packets
//! need no more.
//!
//! IPv4: a *group* of 32 networks is one word: a bit for each of them that has an entry, and the place of the
//! first one's. Entries of a group stand together, in order, so that a network's place is found by counting the
//! bits before its own ([`place`]). A group changes by one store. IPv6: a *fine* bit for each value of 24 bits of a
//! hash.
//!
//! Coarse: a bit for each eight networks, set when any of them has a bit. A bit that is set wrongly only costs a
//! look at the tables; those of prefixes that were taken off stay until the next half.

/// Words of the coarse bits of a family; they stand first.
pub const COARSE: u32 = 1 << 15;
/// Words of the IPv4 groups.
pub const GROUPS: u32 = 1 << 19;
/// Networks of a group.
pub const GROUP: usize = 32;
/// Words of the fine bits of IPv6.
pub const FINE: u32 = 1 << 18;
/// Words of IPv4, which stand before those of IPv6.
pub const V4: u32 = COARSE + GROUPS;
/// Words of each half.
pub const WORDS: u32 = V4 + COARSE + FINE;

/// Whether a network (an address without its last 8 bits) may have an entry.
#[inline(always)]
pub fn may_have(word: impl Fn(u32) -> u64, network: u32) -> bool {
    let coarse = network >> 3;
    let bit = word(coarse >> 6) >> (coarse & 63) & 1;
    // Where it is 0, the first word, which is in the cache: a branch here would have the verifier follow what
    // comes after it once more.
    let row = row(network) * bit as u32;
    bit & (word(row) >> (network & 31)) != 0
}

/// The row of a network's group.
#[inline(always)]
#[must_use]
pub const fn row(network: u32) -> u32 {
    COARSE + (network >> 5)
}

/// A group: the bits of its networks, and the place of the first entry.
#[must_use]
pub const fn group(bits: u32, first: u32) -> u64 {
    bits as u64 | (first as u64) << 32
}

/// The bits of a group's networks, and the place of the first entry.
#[must_use]
pub const fn parts(group: u64) -> (u32, u32) {
    (group as u32, (group >> 32) as u32)
}

/// The place of a network's entry, if its group has one.
#[inline(always)]
#[must_use]
pub const fn place(group: u64, network: u32) -> Option<u32> {
    let (bit, bits) = (1u32 << (network & 31), group as u32);
    if bits & bit == 0 {
        return None;
    }
    Some(((group >> 32) as u32).wrapping_add((bits & (bit - 1)).count_ones()))
}

/// Stores a group that has got a bit: from then on the entry of `network` is found. For one writer, who may end at
/// any moment; entries stand before.
pub fn note4(network: u32, group: u64, read: impl Fn(u32) -> u64, store: impl Fn(u32, u64)) {
    let coarse = network >> 3;
    let (at, bit) = (coarse >> 6, 1 << (coarse & 63));
    let word = read(at);
    if word & bit == 0 {
        store(at, word | bit);
    }
    store(row(network), group);
}

/// The coarse word of sixteen groups.
#[must_use]
pub fn coarse4(groups: &[u64; 16]) -> u64 {
    let mut word = 0;
    let mut n = 0;
    while n < 64 {
        word |= u64::from(groups[n / 4] as u32 >> (n % 4 * 8) & 0xff != 0) << n;
        n += 1;
    }
    word
}

/// Whether there may be an IPv6 prefix of at least 32 bits with the leading 32 bits of this hash
/// ([`crate::hash::leading6`]).
#[inline(always)]
pub fn may_have6(word: impl Fn(u32) -> u64, leading: u32) -> bool {
    let network = leading >> 8;
    let coarse = network >> 3;
    let bit = word(V4 + (coarse >> 6)) >> (coarse & 63) & 1;
    let row = (V4 + COARSE + (network >> 6)) * bit as u32;
    bit & (word(row) >> (network & 63)) != 0
}

/// Notes that there is one.
pub fn note6(leading: u32, read: impl Fn(u32) -> u64, mut store: impl FnMut(u32, u64)) {
    let network = leading >> 8;
    let coarse = network >> 3;
    for (row, bit) in [(coarse >> 6, coarse & 63), (COARSE + (network >> 6), network & 63)] {
        let (row, bit) = (V4 + row, 1 << bit);
        let word = read(row);
        if word & bit == 0 {
            store(row, word | bit);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{cell::RefCell, collections::BTreeMap, vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_noted_is_found_and_nothing_else(
            networks in prop::collection::btree_set(0u32..1024, 0..200),
        ) {
            let words = RefCell::new(vec![0u64; WORDS as usize]);
            let read = |row: u32| words.borrow()[row as usize];
            for &network in &networks {
                let (bits, _) = parts(read(row(network)));
                let all = group(bits | 1 << (network & 31), network >> 5 << 5);
                note4(network, all, read, |row, word| words.borrow_mut()[row as usize] = word);
            }
            let groups: Vec<u64> = (0..32).map(|n| read(COARSE + n)).collect();
            for at in [0, 16] {
                let coarse = coarse4(groups[at..][..16].try_into().unwrap());
                prop_assert_eq!(coarse, read(at as u32 / 16));
            }
            for network in 0..1024 {
                prop_assert_eq!(may_have(read, network), networks.contains(&network));
                let before = networks.range(network & !31..network).count() as u32;
                let place = networks.contains(&network).then_some((network & !31) + before);
                prop_assert_eq!(super::place(read(row(network)), network), place);
            }
        }
    }

    #[test]
    fn the_last_network() {
        let words = RefCell::new(BTreeMap::new());
        let read = |row: u32| words.borrow().get(&row).copied().unwrap_or(0);
        let store = |row: u32, word: u64| {
            words.borrow_mut().insert(row, word);
        };
        let last = (1 << 24) - 1;
        note4(last, group(1 << 31, 7), read, store);
        let stored = [(COARSE - 1, 1 << 63), (V4 - 1, 7 << 32 | 1 << 31)];
        assert_eq!(*words.borrow(), stored.into());
        assert!(may_have(read, last) && !may_have(read, last - 1) && !may_have(read, 0));
        assert_eq!(place(read(row(last)), last), Some(7));
        note6(u32::MAX, read, store);
        assert_eq!(words.borrow().last_key_value(), Some((&(WORDS - 1), &(1 << 63))));
        assert!(may_have6(read, u32::MAX) && !may_have6(read, 0x7fff_ffff));
    }
}
