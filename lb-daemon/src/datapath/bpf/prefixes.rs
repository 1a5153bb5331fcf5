//! Stores to the prefix sets: a whole half that is not in force, or one entry of the half that is. The summary
//! in front of them is derived from what is stored, here and nowhere else.

use std::sync::atomic::{Ordering, fence};

use abi::{
    hash,
    prefix::{Bitmap, Bucket6, Entry, LINE, SHORTEST6, WAYS6},
    scope::Scope,
    summary,
    table::Control,
};

use super::{ApplyError, Bpf, Capacity, Image, Tables as _, bytes_of, grace, runs::Runs};

impl Bpf {
    /// The half of the prefix sets in force.
    pub(super) fn half(&self) -> u32 {
        u32::from(self.control.read(0).flags() & Control::HALF != 0)
    }

    /// Writes the half that no program reads.
    pub(super) fn write_half(&mut self, Image { words, bitmaps, blocks, filter, buckets }: &Image) {
        let idle = 1 - self.half();
        let Capacity { lines, bitmaps: own_bitmaps, blocks: own_blocks, .. } = self.capacity;
        let (front, entries) = summary_of(words, buckets);
        if self.capacity.fine4() > 0 {
            self.fine4.fill(idle * summary::FINE4, bytes_of(&fine_of(words, bitmaps)));
        }
        self.lines.fill(idle * lines, bytes_of(&entries));
        self.summary.fill(idle * summary::WORDS, bytes_of(&front));
        self.runs[idle as usize] = Some(Runs::new(entries.len() as u32, lines * LINE as u32));
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

    /// Stores the entry of a network, after the bits that lead to it. Where it had none, its group moves to another
    /// run.
    pub(super) fn store_entry(&mut self, network: u32, entry: u32) -> Result<(), ApplyError> {
        self.note(network, entry);
        let group = self.summary(summary::row(network));
        if let Some(place) = summary::place(group, network) {
            let (line, at) = self.place(place);
            self.lines.store_half_word(line, at, entry);
            return Ok(());
        }
        if entry == 0 {
            return Ok(());
        }
        let (before, first) = summary::parts(group);
        let bits = before | 1 << (network % summary::GROUP as u32);
        let run = self.take_run(bits.count_ones())?;
        let (mut from, mut to) = (first, run);
        for n in (0..summary::GROUP as u32).filter(|n| bits >> n & 1 != 0) {
            let mut word = entry;
            if before >> n & 1 != 0 {
                word = self.entry(from);
                from += 1;
            }
            let (line, at) = self.place(to);
            self.lines.store_half_word(line, at, word);
            to += 1;
        }
        self.summarize(summary::row(network), summary::group(bits, run));
        if let Some(runs) = &mut self.runs[self.half() as usize] {
            runs.give(first, before.count_ones());
        }
        Ok(())
    }

    /// Sets the bits that lead to an entry.
    fn note(&self, network: u32, entry: u32) {
        if entry == 0 {
            return;
        }
        if self.capacity.fine4() > 0 {
            let first = self.half() * summary::FINE4;
            let eighths = Entry::from_word(entry).eighths(|row| self.bitmap(row));
            let read = |row| self.fine4.read(first + row);
            let store = |row, word| self.fine4.store(first + row, 0, word);
            summary::note_fine4(network, eighths, read, store);
        }
        summary::note4(network, |row| self.summary(row), |row, word| self.summarize(row, word));
    }

    /// A free run of places; waits for programs where all others have just been left.
    fn take_run(&mut self, length: u32) -> Result<u32, ApplyError> {
        let half = self.half() as usize;
        let mut runs = self.runs[half].take().unwrap_or_else(|| {
            // Programs may still be in what the process before this one has left.
            grace();
            self.runs_in_use()
        });
        let mut run = runs.take(length);
        if run.is_none() && runs.waits() {
            grace();
            runs.release();
            run = runs.take(length);
        }
        self.runs[half] = Some(runs);
        run.ok_or_else(|| ApplyError {
            what: "a network's entry".to_owned(),
            source: std::io::Error::from_raw_os_error(libc::ENOSPC),
        })
    }

    fn runs_in_use(&self) -> Runs {
        let groups = (0..summary::GROUPS).map(|n| self.summary(summary::FIRST_GROUP + n));
        let used = groups.map(summary::parts).filter(|(bits, _)| *bits != 0);
        let used = used.map(|(bits, first)| (first, bits.count_ones())).collect();
        Runs::with_used(used, self.capacity.lines * LINE as u32)
    }

    /// Sixteen entries of networks, of which this is the number, as words.
    pub(super) fn entries_of(&self, index: u32) -> [u32; LINE] {
        let first = index * LINE as u32;
        let group = self.summary(summary::row(first));
        if summary::parts(group).0 == 0 {
            return [0; LINE];
        }
        std::array::from_fn(|n| {
            summary::place(group, first + n as u32).map_or(0, |place| self.entry(place))
        })
    }

    fn entry(&self, place: u32) -> u32 {
        let (line, _) = self.place(place);
        self.lines.read(line).word(place)
    }

    /// Row and byte offset of a place in the half in force.
    fn place(&self, place: u32) -> (u32, usize) {
        let line = self.half() * self.capacity.lines + place / LINE as u32;
        (line, place as usize % LINE * 4)
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

/// The summary of a half, and the entries of its networks in the order of their places.
fn summary_of(words: &[u32], buckets: &[Bucket6]) -> (Vec<u64>, Vec<u32>) {
    let mut all = vec![0; summary::WORDS as usize];
    let front = std::cell::RefCell::new(&mut all);
    for leading in buckets.iter().flat_map(leading) {
        summary::note6(
            leading,
            |row| front.borrow()[row as usize],
            |row, word| front.borrow_mut()[row as usize] = word,
        );
    }
    let mut entries = Vec::new();
    let (upper, groups) = all[..summary::V4 as usize].split_at_mut(summary::FIRST_GROUP as usize);
    for (group, words) in groups.iter_mut().zip(words.as_chunks::<{ summary::GROUP }>().0) {
        if words.iter().fold(0, |all, word| all | word) == 0 {
            continue;
        }
        let first = entries.len() as u32;
        let bits = (0..).zip(words).map(|(n, word)| u32::from(*word != 0) << n).sum();
        entries.extend(words.iter().filter(|word| **word != 0));
        *group = summary::group(bits, first);
    }
    let (coarse, middle) = upper.split_at_mut(summary::COARSE as usize);
    for (word, groups) in middle.iter_mut().zip(groups.as_chunks().0) {
        *word = summary::middle4(*groups);
    }
    for (word, middle) in coarse.iter_mut().zip(middle.as_chunks().0) {
        *word = summary::coarse4(middle);
    }
    (all, entries)
}

/// The fine bits of a half.
fn fine_of(words: &[u32], bitmaps: &[Bitmap]) -> Vec<u64> {
    let mut fine = vec![0; summary::FINE4 as usize];
    for (fine, words) in fine.iter_mut().zip(words.as_chunks::<8>().0) {
        if words.iter().fold(0, |all, word| all | word) == 0 {
            continue;
        }
        *fine = Entry::fine(words, |row| bitmaps[row as usize].words());
    }
    fine
}

/// Hashes of the leading 32 bits of a bucket's prefixes that have as many.
fn leading(bucket: &Bucket6) -> impl Iterator<Item = u32> {
    let nets = (0..WAYS6).filter_map(|way| bucket.get(way));
    nets.filter(|(net, _)| net.len >= SHORTEST6).map(|(net, _)| hash::leading6(net.hi))
}
