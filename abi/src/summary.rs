//! A small front of the prefix sets: where IPv4 prefixes are, and which leading 32 bits IPv6 prefixes have. Most
//! packets need no more, and of it only what stays in a core's own caches.
//!
//! IPv4: a pyramid of bitmaps, each with a bit for an eighth of what a bit of the one above stands for: *coarse* for
//! networks of length 21 (256 KB), *middle* for those of 24 (2 MB), and, in a table of its own where sets are so large
//! that it pays, *fine* for those of 27 (16 MB). The next one is asked only where a bit is set, without a branch that
//! could be predicted wrongly. With ten million addresses at random, 45 of 100 others share their /24 with one, and 8
//! their /27: so many go on to the tables, and there a branch is predicted wrongly.
//!
//! Behind it, a *group* of 32 networks of length 24 is one word: a bit for each of them that has an entry, and the
//! place of the first one's. Entries of a group stand together, in order, so that a network's place is found by
//! counting the bits before its own ([`place`]). A group changes by one store.
//!
//! IPv6: a coarse bit for each eight values of 24 bits of a hash, and a fine one for each.
//!
//! A bit that is set wrongly only costs a look at the tables; those of prefixes that were taken off stay until the
//! next half.

/// Words of the coarse bits of a family; they stand first.
pub const COARSE: u32 = 1 << 15;
/// Words of the middle bits of IPv4.
pub const MIDDLE: u32 = 1 << 18;
/// Words of the IPv4 groups.
pub const GROUPS: u32 = 1 << 19;
/// The first group's row.
pub const FIRST_GROUP: u32 = COARSE + MIDDLE;
/// Networks of a group.
pub const GROUP: usize = 32;
/// Words of the fine bits of IPv6: as those of the middle bits of IPv4.
pub const FINE: u32 = MIDDLE;
/// Words of IPv4, which stand before those of IPv6.
pub const V4: u32 = FIRST_GROUP + GROUPS;
/// Words of each half.
pub const WORDS: u32 = V4 + COARSE + FINE;
/// Words of the fine bits of IPv4, in a table of their own, in each half.
pub const FINE4: u32 = 1 << 21;
/// From so many entries of networks on there are fine bits of IPv4: below, a network in eight has one, and what
/// fine bits save is less than their own misses of the cache cost those that are on a list.
pub const FINE4_FROM: u64 = 1 << 21;

/// Whether an IPv4 address, in host byte order, may have a list. `fine` gives words of the fine bits, all ones where
/// there are none.
#[inline(always)]
pub fn may_have(word: impl Fn(u32) -> u64, fine: impl Fn(u32) -> u64, addr: u32) -> bool {
    let middle = upper(word, 0, addr >> 8);
    middle & bit(fine((addr >> 11) * middle as u32), addr >> 5) != 0
}

/// The second of the two bits above a number of 24 bits, 0 where the first one is: those of a family stand from `first`
/// on.
#[inline(always)]
fn upper(word: impl Fn(u32) -> u64, first: u32, number: u32) -> u64 {
    // Where a bit is 0, the next word asked for is the first one, which is in the cache: a branch here would have
    // the verifier follow what comes after it once more.
    let coarse = bit(word(first + (number >> 9)), number >> 3);
    coarse & bit(word((first + COARSE + (number >> 6)) * coarse as u32), number)
}

/// Sets both.
fn set_upper(first: u32, number: u32, read: impl Fn(u32) -> u64, store: impl Fn(u32, u64)) {
    for (row, n) in [(number >> 9, number >> 3), (COARSE + (number >> 6), number)] {
        let (row, bit) = (first + row, 1 << (n & 63));
        let word = read(row);
        if word & bit == 0 {
            store(row, word | bit);
        }
    }
}

#[inline(always)]
const fn bit(word: u64, number: u32) -> u64 {
    word >> (number & 63) & 1
}

/// The row of the group of a network (an address without its last 8 bits).
#[inline(always)]
#[must_use]
pub const fn row(network: u32) -> u32 {
    FIRST_GROUP + (network >> 5)
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

/// Sets the bits of a network above its group. They stand before the group has the entry: for one writer,
/// who may end at any moment.
pub fn note4(network: u32, read: impl Fn(u32) -> u64, store: impl Fn(u32, u64)) {
    set_upper(0, network, read, store);
}

/// The same for the fine bits: `eighths` has a bit for each 32 addresses of the network.
pub fn note_fine4(
    network: u32,
    eighths: u8,
    read: impl Fn(u32) -> u64,
    store: impl FnOnce(u32, u64),
) {
    let (row, before) = (network >> 3, read(network >> 3));
    let word = before | u64::from(eighths) << (network % 8 * 8);
    if word != before {
        store(row, word);
    }
}

/// The middle word of two groups.
#[must_use]
pub const fn middle4(groups: [u64; 2]) -> u64 {
    groups[0] as u32 as u64 | groups[1] << 32
}

/// The coarse word of eight middle ones.
#[must_use]
pub fn coarse4(middle: &[u64; 8]) -> u64 {
    let mut word = 0;
    let mut n = 0;
    while n < 64 {
        word |= u64::from(middle[n / 8] >> (n % 8 * 8) & 0xff != 0) << n;
        n += 1;
    }
    word
}

/// Whether there may be an IPv6 prefix of at least 32 bits with the leading 32 bits of this hash
/// ([`crate::hash::leading6`]).
#[inline(always)]
pub fn may_have6(word: impl Fn(u32) -> u64, leading: u32) -> bool {
    upper(word, V4, leading >> 8) != 0
}

/// Notes that there is one.
pub fn note6(leading: u32, read: impl Fn(u32) -> u64, store: impl Fn(u32, u64)) {
    set_upper(V4, leading >> 8, read, store);
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
            networks in prop::collection::btree_map(0u32..1024, 1u8.., 0..200),
        ) {
            let words = RefCell::new(vec![0u64; WORDS as usize]);
            let fine = RefCell::new(vec![0u64; 128]);
            let read = |row: u32| words.borrow()[row as usize];
            let store = |row: u32, word| words.borrow_mut()[row as usize] = word;
            for (&network, &eighths) in &networks {
                note_fine4(
                    network,
                    eighths,
                    |row| fine.borrow()[row as usize],
                    |row, word| fine.borrow_mut()[row as usize] = word,
                );
                note4(network, read, store);
                let (bits, _) = parts(read(row(network)));
                store(row(network), group(bits | 1 << (network & 31), network >> 5 << 5));
            }
            let groups: Vec<u64> = (0..32).map(|n| read(FIRST_GROUP + n)).collect();
            let middle: Vec<u64> = groups.as_chunks().0.iter().copied().map(middle4).collect();
            prop_assert_eq!(&middle[..], &words.borrow()[COARSE as usize..][..16]);
            for at in [0, 8] {
                let coarse = coarse4(middle[at..][..8].try_into().unwrap());
                prop_assert_eq!(coarse, read(at as u32 / 8));
            }
            for eighth in 0..1024 * 8 {
                let (network, addr) = (eighth >> 3, eighth << 5 | 7);
                let own = networks.get(&network).copied();
                prop_assert_eq!(may_have(read, |_| u64::MAX, addr), own.is_some());
                let fine = |row: u32| fine.borrow()[row as usize];
                let has = own.is_some_and(|eighths| eighths >> (eighth & 7) & 1 != 0);
                prop_assert_eq!(may_have(read, fine, addr), has);
                let before = networks.range(network & !31..network).count() as u32;
                let place = own.map(|_| (network & !31) + before);
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
        note4(last, read, store);
        let stored = [(COARSE - 1, 1 << 63), (FIRST_GROUP - 1, 1 << 63)];
        assert_eq!(*words.borrow(), stored.into());
        assert_eq!(row(last), V4 - 1);
        note_fine4(last, 0x80, |_| 0, |row, word| assert_eq!((row, word), (FINE4 - 1, 1 << 63)));
        let fine = |row| if row == FINE4 - 1 { 1 << 63 } else { 0 };
        assert!(may_have(read, fine, u32::MAX) && !may_have(read, fine, u32::MAX - 32));
        assert!(may_have(read, |_| u64::MAX, u32::MAX - 255) && !may_have(read, fine, 0));
        assert!(!may_have(read, |_| u64::MAX, u32::MAX - 256));
        assert_eq!(place(group(1 << 31, 7), last), Some(7));
        note6(u32::MAX, read, store);
        assert_eq!(words.borrow().last_key_value(), Some((&(WORDS - 1), &(1 << 63))));
        assert!(may_have6(read, u32::MAX) && !may_have6(read, 0x7fff_ffff));
    }
}
