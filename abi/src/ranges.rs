//! Sets of addresses that a service or a tunnel may be used from: sorted ranges in the arena that
//! rings stand in too, searched by halving. One word of a row says where they are.

use crate::{addr::Addr, limits::RANGE_STEPS, pick::Tables};

/// Where a set is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Index of the first word.
    pub offset: u32,
    /// Number of ranges. IPv4: a word each, first address in the high half, last in the low half.
    /// IPv6: four words each, first and last address, the high half of either first.
    pub count: u32,
    /// Only these; else anybody.
    pub only: bool,
}

impl Ranges {
    /// Anybody.
    pub const ANYBODY: Self = Self { offset: 0, count: 0, only: false };
    const ONLY: u64 = 1 << 63;

    /// One word; 0 for anybody.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        if self.only { self.offset as u64 | (self.count as u64) << 32 | Self::ONLY } else { 0 }
    }

    /// From one word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self {
            offset: word as u32,
            count: ((word & !Self::ONLY) >> 32) as u32,
            only: word & Self::ONLY != 0,
        }
    }
}

/// Words of a range.
#[must_use]
pub const fn words(v4: bool) -> u32 {
    if v4 { 1 } else { 4 }
}

/// Whether the set at `word` has an address, given in two halves as [`Addr`] has it.
#[inline(always)]
pub fn contains<T: Tables>(tables: &T, word: u64, hi: u64, lo: u64) -> bool {
    find::<T, 0>(tables, Ranges::from_word(word), hi, lo).is_some()
}

/// First word of the range that has the address. Each range is followed by `MORE` words of another kind.
#[inline(always)]
pub(crate) fn find<T: Tables, const MORE: u32>(
    tables: &T,
    ranges: Ranges,
    hi: u64,
    lo: u64,
) -> Option<u32> {
    let v4 = hi == 0 && lo as u32 == 0xffff_0000;
    if v4 {
        return find4::<T, MORE>(tables, ranges, u32::from_be((lo >> 32) as u32));
    }
    find6::<T, MORE>(tables, ranges, u64::from_be(hi), u64::from_be(lo))
}

#[inline(always)]
fn find4<T: Tables, const MORE: u32>(tables: &T, ranges: Ranges, addr: u32) -> Option<u32> {
    let (mut low, mut high, mut steps) = (0, ranges.count, 0);
    while steps < RANGE_STEPS && low < high {
        let middle = (low + high) / 2;
        let at = ranges.offset.wrapping_add(middle * (1 + MORE));
        let word = tables.slot(at)?;
        if ((word >> 32) as u32) > addr {
            high = middle;
        } else if (word as u32) < addr {
            low = middle + 1;
        } else {
            return Some(at);
        }
        steps += 1;
    }
    None
}

#[inline(always)]
fn find6<T: Tables, const MORE: u32>(tables: &T, ranges: Ranges, hi: u64, lo: u64) -> Option<u32> {
    let (mut low, mut high, mut steps) = (0, ranges.count, 0);
    while steps < RANGE_STEPS && low < high {
        let middle = (low + high) / 2;
        let at = ranges.offset.wrapping_add(middle * (4 + MORE));
        let (first_hi, first_lo) = (tables.slot(at)?, tables.slot(at + 1)?);
        let (last_hi, last_lo) = (tables.slot(at + 2)?, tables.slot(at + 3)?);
        if first_hi > hi || (first_hi == hi && first_lo > lo) {
            high = middle;
        } else if last_hi < hi || (last_hi == hi && last_lo < lo) {
            low = middle + 1;
        } else {
            return Some(at);
        }
        steps += 1;
    }
    None
}

/// The words of a set, from ranges of addresses that are sorted and do not touch.
pub fn encode(first: Addr, last: Addr) -> ([u64; 4], usize) {
    if first.is_v4() {
        let half = |a: Addr| u64::from(u32::from_be(a.as_v4_raw()));
        return ([half(first) << 32 | half(last), 0, 0, 0], 1);
    }
    let be = u64::from_be;
    ([be(first.hi()), be(first.lo()), be(last.hi()), be(last.lo())], 4)
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        flow::{FlowEntry, FlowKey},
        table::{Backend, Bucket, Frontend},
    };

    pub(crate) struct Words(pub(crate) Vec<u64>);

    impl Tables for Words {
        fn vip_bit(&self, _hash: u64, _folded: u64) -> bool {
            true
        }

        fn salt(&self) -> u64 {
            0
        }
        fn bucket(&self, _: u64) -> &Bucket {
            const { &Bucket::from_words([0; 4]) }
        }
        fn frontend(&self, _: u32) -> Option<&Frontend> {
            None
        }
        fn slot(&self, index: u32) -> Option<u64> {
            self.0.get(index as usize).copied()
        }
        fn backend(&self, _: u32) -> Option<&Backend> {
            None
        }
        fn flow(&self, _: &FlowKey, _: u64) -> Option<FlowEntry> {
            None
        }
        fn remember(&self, _: &FlowKey, _: u64, _: &FlowEntry) {}
        fn admit(&self) -> bool {
            false
        }
    }

    fn check(bounds: &[u128], probe: u128, addr: impl Fn(u128) -> IpAddr) {
        let mut words = std::vec![7; 3];
        let mut count = 0;
        for pair in bounds.chunks_exact(2) {
            let (w, n) = encode(addr(pair[0]).into(), addr(pair[1]).into());
            words.extend(&w[..n]);
            count += 1;
        }
        let tables = Words(words);
        let ranges = Ranges { offset: 3, count, only: true };
        assert_eq!(Ranges::from_word(ranges.to_word()), ranges);
        let within = bounds.chunks_exact(2).any(|p| (p[0]..=p[1]).contains(&probe));
        let a = Addr::from(addr(probe));
        assert_eq!(contains(&tables, ranges.to_word(), a.hi(), a.lo()), within);
    }

    proptest! {
        #[test]
        fn the_same_as_one_by_one(bounds in prop::collection::btree_set(any::<u128>(), 0..40), probe: u128, near in any::<prop::sample::Index>()) {
            let bounds: Vec<u128> = bounds.into_iter().map(|b| b | 1 << 127).collect();
            let mut sorted = bounds.clone();
            sorted.sort_unstable();
            sorted.dedup();
            let v6 = |n: u128| IpAddr::V6(Ipv6Addr::from(n));
            check(&sorted, probe | 1 << 127, v6);
            let mut small: Vec<u128> = sorted.iter().map(|b| b >> 96 & 0xffff_ffff).collect();
            small.sort_unstable();
            small.dedup();
            let v4 = |n: u128| IpAddr::V4(Ipv4Addr::from(n as u32));
            check(&small, probe & 0xffff_ffff, v4);
            if !sorted.is_empty() {
                let at = near.index(sorted.len());
                check(&sorted, sorted[at], v6);
                check(&sorted, sorted[at].saturating_sub(1) | 1 << 127, v6);
                let at = near.index(small.len());
                check(&small, small[at], v4);
                check(&small, (small[at] + 1) & 0xffff_ffff, v4);
            }
        }
    }
}
