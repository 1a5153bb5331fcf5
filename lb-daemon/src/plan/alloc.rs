//! Rows of a table and regions of the ring arena: which are free, which are used, and which may not
//! be used again before the programs have left them.

use std::collections::BTreeMap;

/// Numbers `0..capacity`, lowest first.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    capacity: u32,
    next: u32,
    free: Vec<u32>,
    limbo: Vec<u32>,
}

impl Rows {
    /// All free.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        Self { capacity, next: 0, free: Vec::new(), limbo: Vec::new() }
    }

    /// The first `used` are taken but for those in `free`, which are among them; the others are free.
    #[must_use]
    pub fn with_first(capacity: u32, used: u32, free: Vec<u32>) -> Self {
        Self { capacity, next: used, free, limbo: Vec::new() }
    }

    /// Those in `used` are taken, the others free.
    #[must_use]
    pub fn with_used(capacity: u32, used: &[bool]) -> Self {
        let next = used.iter().rposition(|&u| u).map_or(0, |i| i as u32 + 1);
        let free = (0..next).rev().filter(|&i| !used[i as usize]).collect();
        Self { capacity, next, free, limbo: Vec::new() }
    }

    /// Takes one.
    pub fn take(&mut self) -> Option<u32> {
        if let Some(row) = self.free.pop() {
            return Some(row);
        }
        (self.next < self.capacity).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Gives one back; it is used again only after [`Self::release`].
    pub fn give(&mut self, row: u32) {
        self.limbo.push(row);
    }

    /// The programs have left everything given back so far.
    pub fn release(&mut self) {
        self.free.append(&mut self.limbo);
    }

    /// In use, counting what waits to be released.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.next - self.free.len() as u32
    }

    /// How many [`Self::take`] can give now.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.capacity - self.used()
    }

    /// Whether anything waits to be released.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.limbo.is_empty()
    }

    /// How many wait to be released.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.limbo.len()
    }
}

/// Regions of the ring arena, first fit, joined again when freed.
#[derive(Default, Clone, Debug)]
pub struct Arena {
    free: BTreeMap<u32, u32>,
    limbo: Vec<(u32, u32)>,
    used: u32,
}

impl Arena {
    /// All free.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        Self { free: BTreeMap::from([(0, capacity)]), limbo: Vec::new(), used: 0 }
    }

    /// Marks a region as taken; false when it is not free.
    #[must_use]
    pub fn claim(&mut self, start: u32, len: u32) -> bool {
        let Some((&at, &size)) = self.free.range(..=start).next_back() else { return false };
        let Some(end) = start.checked_add(len) else { return false };
        if end > at + size {
            return false;
        }
        self.free.remove(&at);
        if start > at {
            self.free.insert(at, start - at);
        }
        if at + size > end {
            self.free.insert(end, at + size - end);
        }
        self.used += len;
        true
    }

    /// Takes a region.
    pub fn take(&mut self, len: u32) -> Option<u32> {
        let (&at, _) = self.free.iter().find(|&(_, &size)| size >= len)?;
        self.claim(at, len).then_some(at)
    }

    /// Gives one back; it is used again only after [`Self::release`].
    pub fn give(&mut self, start: u32, len: u32) {
        self.limbo.push((start, len));
    }

    /// The programs have left everything given back so far.
    pub fn release(&mut self) {
        for (mut start, mut len) in std::mem::take(&mut self.limbo) {
            self.used -= len;
            if let Some((&before, &size)) = self.free.range(..start).next_back()
                && before + size == start
            {
                self.free.remove(&before);
                start = before;
                len += size;
            }
            if let Some(size) = self.free.remove(&(start + len)) {
                len += size;
            }
            self.free.insert(start, len);
        }
    }

    /// Words in use, counting what waits to be released.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Whether anything waits to be released.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.limbo.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_row_given_back_waits() {
        let mut rows = Rows::new(2);
        assert_eq!((rows.take(), rows.take(), rows.take()), (Some(0), Some(1), None));
        rows.give(0);
        assert_eq!(rows.take(), None, "programs may still read it");
        rows.release();
        assert_eq!(rows.take(), Some(0));
    }

    #[test]
    fn rows_found_in_use_are_not_handed_out() {
        let mut rows = Rows::with_used(5, &[true, false, true, false, false]);
        assert_eq!(
            (rows.used(), rows.take(), rows.take(), rows.take(), rows.take()),
            (2, Some(1), Some(3), Some(4), None)
        );
    }

    proptest! {
        #[test]
        fn regions_never_overlap_and_all_come_back(sizes in prop::collection::vec(1u32..50, 1..40)) {
            let mut arena = Arena::new(1000);
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (i, &len) in sizes.iter().enumerate() {
                if let Some(start) = arena.take(len) {
                    prop_assert!(start + len <= 1000);
                    prop_assert!(held.iter().all(|&(s, l)| start + len <= s || s + l <= start));
                    held.push((start, len));
                }
                if i % 3 == 2 && let Some((s, l)) = held.pop() {
                    arena.give(s, l);
                    arena.release();
                }
            }
            for (s, l) in held {
                arena.give(s, l);
            }
            arena.release();
            prop_assert_eq!(arena.take(1000), Some(0));
        }
    }
}
