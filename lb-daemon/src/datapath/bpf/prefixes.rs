//! Stores to the prefix sets: a whole half that is not in force, or one entry of the half that is. The summary
//! in front of them is derived from what is stored, here and nowhere else.

use std::sync::atomic::{Ordering, fence};

use abi::{
    hash,
    prefix::{Bucket6, LINE, LINES, SHORTEST6, WAYS6},
    scope::Scope,
    summary,
    table::Control,
};

use super::{Bpf, Capacity, Image, bytes_of};

impl Bpf {
    /// The half of the prefix sets in force.
    pub(super) fn half(&self) -> u32 {
        u32::from(self.control.read(0).flags() & Control::HALF != 0)
    }

    /// Writes the half that no program reads.
    pub(super) fn write_half(&self, Image { words, bitmaps, blocks, filter, buckets }: &Image) {
        let idle = 1 - self.half();
        let Capacity { lines, bitmaps: own_bitmaps, blocks: own_blocks, .. } = self.capacity;
        if lines > 0 {
            self.lines.fill(idle * LINES, bytes_of(words));
        }
        self.summary.fill(idle * summary::WORDS, bytes_of(&summary_of(words, buckets)));
        self.bitmaps.fill(idle * own_bitmaps, bytes_of(bitmaps));
        self.blocks.fill(idle * own_blocks, bytes_of(blocks));
        self.filter6.fill(idle * self.capacity.filter6, bytes_of(filter));
        self.buckets6.fill(idle * self.capacity.buckets6, bytes_of(buckets));
        fence(Ordering::Release);
    }

    /// Where only interfaces differ, the row is in use, and only they are stored.
    pub(super) fn write_scope(&self, row: u32, scope: &Scope) {
        let before = self.scopes.read(row);
        if before.with_interfaces_of(scope) != *scope {
            self.scopes.write(row, scope);
            return;
        }
        for (place, ifindex) in scope.interfaces().into_iter().enumerate() {
            self.scopes.store(row, Scope::interface_at(place), ifindex);
        }
    }

    pub(super) fn store_entry(&self, network: u32, entry: u32) {
        let (line, place) = (self.half() * LINES + network / LINE as u32, network as usize % LINE);
        let note = |has| {
            summary::note(
                network,
                has,
                |row| self.summary(row),
                |row, word| self.summarize(row, word),
            );
        };
        if entry != 0 {
            note(true);
        }
        self.lines.store_half_word(line, place * 4, entry);
        if entry == 0 {
            note(false);
        }
    }

    /// A word of the summary of the half in force.
    fn summary(&self, row: u32) -> u64 {
        self.summary.read(self.half() * summary::WORDS + row)
    }

    fn summarize(&self, row: u32, word: u64) {
        self.summary.store(self.half() * summary::WORDS + row, 0, word);
    }

    /// An address is written while nothing says that there is one.
    pub(super) fn store_bucket6(&self, row: u32, bucket: &Bucket6) {
        let row = self.half() * self.capacity.buckets6 + row;
        for leading in leading(bucket) {
            summary::note6(leading, |row| self.summary(row), |row, word| self.summarize(row, word));
        }
        let before = self.buckets6.read(row);
        let words = bucket.words();
        for way in (0..WAYS6).filter(|&way| before.get(way) != bucket.get(way)) {
            let meta = Bucket6::META + way * 4;
            self.buckets6.store_half_word(row, meta, 0);
            self.buckets6.store(row, way * 16, words[way * 2]);
            self.buckets6.store(row, way * 16 + 8, words[way * 2 + 1]);
            let word = words[meta / 8] >> (meta % 8 * 8);
            self.buckets6.store_half_word(row, meta, word as u32);
        }
    }
}

/// The summary of a half.
fn summary_of(words: &[u32], buckets: &[Bucket6]) -> Vec<u64> {
    let mut all = vec![0; summary::WORDS as usize];
    let (v4, v6) = all.split_at_mut(summary::FAMILY as usize);
    let v6 = std::cell::RefCell::new(v6);
    let first = summary::FAMILY;
    for leading in buckets.iter().flat_map(leading) {
        summary::note6(
            leading,
            |row| v6.borrow()[(row - first) as usize],
            |row, word| v6.borrow_mut()[(row - first) as usize] = word,
        );
    }
    let (coarse, fine) = v4.split_at_mut(summary::COARSE as usize);
    for (word, entries) in fine.iter_mut().zip(words.as_chunks().0) {
        *word = summary::fine(entries);
    }
    for (word, fine) in coarse.iter_mut().zip(fine.as_chunks().0) {
        *word = summary::coarse(fine);
    }
    all
}

/// Hashes of the leading 32 bits of a bucket's prefixes that have as many.
fn leading(bucket: &Bucket6) -> impl Iterator<Item = u32> {
    let nets = (0..WAYS6).filter_map(|way| bucket.get(way));
    nets.filter(|(net, _)| net.len >= SHORTEST6).map(|(net, _)| hash::leading6(net.hi))
}
