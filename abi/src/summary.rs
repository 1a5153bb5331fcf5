//! A small front of the prefix sets: which IPv4 networks of length 24 have an entry at all, and which leading
//! 32 bits IPv6 prefixes have. Its 2 MB for each family and the 256 KB before them stay in a core's own
//! caches, where the tables do not; most packets need no more.
//!
//! Fine: a bit for each /24. Coarse: a bit for each /21, set when any of its eight /24s has one, that is
//! when a byte of the fine bits is not 0. IPv6 has the same of 24 bits of a hash. A bit that is set wrongly only
//! costs a look at the tables; those of IPv6 prefixes that were taken off stay until the next half.

/// Words of the coarse bits; they stand first.
pub const COARSE: u32 = 1 << 15;
/// Words of the fine bits.
pub const FINE: u32 = 1 << 18;
/// Words of a family.
pub const FAMILY: u32 = COARSE + FINE;
/// Words of each half: IPv4, then IPv6.
pub const WORDS: u32 = FAMILY * 2;

/// Whether a network (an address without its last 8 bits) may have an entry.
#[inline(always)]
pub fn may_have(word: impl Fn(u32) -> u64, network: u32) -> bool {
    let coarse = network >> 3;
    let bit = word(coarse >> 6) >> (coarse & 63) & 1;
    // Where it is 0, the first word, which is in the cache: a branch here would have the verifier follow what
    // comes after it once more.
    let row = (COARSE + (network >> 6)) * bit as u32;
    bit & (word(row) >> (network & 63)) != 0
}

/// Whether there may be an IPv6 prefix of at least 32 bits with the leading 32 bits of this hash
/// ([`crate::hash::leading6`]).
#[inline(always)]
pub fn may_have6(word: impl Fn(u32) -> u64, leading: u32) -> bool {
    may_have(|row| word(FAMILY + row), leading >> 8)
}

/// Notes that there is one.
pub fn note6(leading: u32, read: impl Fn(u32) -> u64, mut store: impl FnMut(u32, u64)) {
    note(leading >> 8, true, |row| read(FAMILY + row), |row, word| store(FAMILY + row, word));
}

/// Notes that a network has an entry now, or none: `read` and `store` are of words. For one writer, who may
/// end at any moment: before an entry is stored, and after one is taken away. Then no bit is ever missing.
pub fn note(network: u32, has: bool, read: impl Fn(u32) -> u64, mut store: impl FnMut(u32, u64)) {
    let with = |word: u64, bit: u64, on: bool| if on { word | bit } else { word & !bit };
    let row = COARSE + (network >> 6);
    let fine = (row, with(read(row), 1 << (network & 63), has));
    let any = fine.1 >> (network & 56) & 0xff != 0;
    let number = network >> 3;
    let row = number >> 6;
    let coarse = (row, with(read(row), 1 << (number & 63), any));
    for (row, word) in if has { [coarse, fine] } else { [fine, coarse] } {
        if read(row) != word {
            store(row, word);
        }
    }
}

/// The fine word of 64 networks, of their entries.
#[must_use]
pub fn fine(entries: &[u32; 64]) -> u64 {
    let mut word = 0;
    let mut n = 0;
    while n < 64 {
        word |= u64::from(entries[n] != 0) << n;
        n += 1;
    }
    word
}

/// The coarse word of eight fine ones.
#[must_use]
pub fn coarse(fine: &[u64; 8]) -> u64 {
    let mut word = 0;
    let mut n = 0;
    while n < 64 {
        word |= u64::from(fine[n / 8] >> (n % 8 * 8) & 0xff != 0) << n;
        n += 1;
    }
    word
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{cell::RefCell, collections::BTreeMap, vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    /// A front of the networks below 512, made at once.
    fn made(entries: &[u32]) -> Vec<u64> {
        let mut words = vec![0; WORDS as usize];
        let fine: Vec<u64> = entries.chunks(64).map(|c| fine(c.try_into().unwrap())).collect();
        words[COARSE as usize..][..8].copy_from_slice(&fine);
        words[0] = coarse(fine[..8].try_into().unwrap());
        words
    }

    proptest! {
        #[test]
        fn what_is_noted_one_by_one_is_what_is_made_at_once(
            changes in prop::collection::vec((0u32..512, any::<bool>()), 0..600),
        ) {
            let words = RefCell::new(vec![0u64; WORDS as usize]);
            let mut entries = vec![0u32; 512];
            for (network, has) in changes {
                entries[network as usize] = u32::from(has);
                note(
                    network,
                    has,
                    |row| words.borrow()[row as usize],
                    |row, word| words.borrow_mut()[row as usize] = word,
                );
            }
            prop_assert_eq!(&*words.borrow(), &made(&entries));
            for network in 0..512 {
                let held = may_have(|row| words.borrow()[row as usize], network);
                prop_assert_eq!(held, entries[network as usize] != 0);
            }
        }
    }

    #[test]
    fn the_last_network() {
        let words = RefCell::new(BTreeMap::new());
        let read = |row: u32| words.borrow().get(&row).copied().unwrap_or(0);
        let last = (1 << 24) - 1;
        note(last, true, read, |row, word| {
            words.borrow_mut().insert(row, word);
        });
        assert_eq!(*words.borrow(), [(COARSE - 1, 1 << 63), (FAMILY - 1, 1 << 63)].into());
        assert!(may_have(read, last) && !may_have(read, last - 1) && !may_have(read, 0));
        note6(u32::MAX, read, |row, word| {
            words.borrow_mut().insert(row, word);
        });
        assert_eq!(words.borrow().last_key_value(), Some((&(WORDS - 1), &(1 << 63))));
        assert!(may_have6(read, u32::MAX) && !may_have6(read, 0x7fff_ffff));
    }
}
