//! Where entries of networks stand: runs of 1 to 32 of them, one for each group of networks that has any.
//!
//! A run is never changed in length: a group that gets an entry gets another run, and the old one may be used again
//! once all running programs have left it.

use abi::summary::GROUP;

/// Places of a half, and which of them are free.
#[derive(Debug)]
pub(super) struct Runs {
    /// Nothing stands from here on.
    next: u32,
    end: u32,
    /// First places of free runs, by length.
    free: [Vec<u32>; GROUP + 1],
    /// Given back, and perhaps still read: first place and length.
    left: Vec<(u32, u32)>,
}

impl Runs {
    /// The first `used` of `end` places are taken.
    pub(super) fn new(used: u32, end: u32) -> Self {
        Self { next: used, end, free: std::array::from_fn(|_| Vec::new()), left: Vec::new() }
    }

    /// These runs, given by first place and length, are taken.
    pub(super) fn with_used(mut used: Vec<(u32, u32)>, end: u32) -> Self {
        used.sort_unstable();
        let mut runs = Self::new(0, end);
        for (first, length) in used {
            while runs.next < first {
                let gap = (first - runs.next).min(GROUP as u32);
                runs.free[gap as usize].push(runs.next);
                runs.next += gap;
            }
            runs.next = runs.next.max(first + length);
        }
        runs
    }

    /// The first place of a run of this length, at most [`GROUP`].
    pub(super) fn take(&mut self, length: u32) -> Option<u32> {
        if let Some(first) = self.free[length as usize].pop() {
            return Some(first);
        }
        if self.end - self.next >= length {
            self.next += length;
            return Some(self.next - length);
        }
        let longer = (length as usize + 1..=GROUP).find(|&n| !self.free[n].is_empty())?;
        let first = self.free[longer].pop()?;
        self.free[longer - length as usize].push(first + length);
        Some(first)
    }

    /// Gives a run back.
    pub(super) fn give(&mut self, first: u32, length: u32) {
        if length > 0 {
            self.left.push((first, length));
        }
    }

    /// Whether runs that were given back wait.
    pub(super) fn waits(&self) -> bool {
        !self.left.is_empty()
    }

    /// All programs have left what was given back.
    pub(super) fn release(&mut self) {
        for (first, length) in self.left.drain(..) {
            self.free[length as usize].push(first);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_place_is_in_two_runs(
            steps in prop::collection::vec((1..=32u32, any::<bool>(), any::<bool>()), 1..200),
        ) {
            let mut runs = Runs::new(10, 1000);
            let mut taken: Vec<(u32, u32)> = vec![(0, 10)];
            for (length, give, release) in steps {
                if give && taken.len() > 1 {
                    let (first, length) = taken.swap_remove(1);
                    runs.give(first, length);
                } else if let Some(first) = runs.take(length) {
                    prop_assert!(first + length <= 1000);
                    taken.push((first, length));
                }
                if release {
                    runs.release();
                    prop_assert!(!runs.waits());
                }
                let waiting = runs.left.iter().copied();
                let places = taken.iter().copied().chain(waiting).flat_map(|(f, n)| f..f + n);
                let count = places.clone().count();
                prop_assert_eq!(places.collect::<BTreeSet<_>>().len(), count);
            }
            // After a restart, what is not taken is free, and nothing else is.
            let mut again = Runs::with_used(taken.clone(), 1000);
            while let Some(first) = again.take(1) {
                taken.push((first, 1));
            }
            let all: BTreeSet<u32> = taken.iter().flat_map(|&(f, n)| f..f + n).collect();
            prop_assert_eq!(all.len(), 1000);
            prop_assert_eq!(taken.iter().map(|(_, n)| n).sum::<u32>(), 1000);
        }
    }
}
