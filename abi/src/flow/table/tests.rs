extern crate std;

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    vec::Vec,
};

use proptest::prelude::*;

use super::*;
use crate::{addr::Addr, flow::Stage, hash::Tuple, limits::MAX_BACKENDS};

/// Words of entries and tags in memory, as a program has them.
struct Memory {
    entries: Vec<Cell<Entry>>,
    tags: Vec<Cell<Tag>>,
    /// What another CPU does when a tag is about to be replaced, or just was.
    meanwhile: [Cell<fn(&Self)>; 2],
}

impl Memory {
    fn new(rows: usize) -> Self {
        Self {
            entries: (0..rows).map(|_| Cell::default()).collect(),
            tags: (0..rows).map(|_| Cell::default()).collect(),
            meanwhile: [const { Cell::new(|_| ()) }; 2],
        }
    }

    fn other_cpu(&self, when: usize) {
        self.meanwhile[when].replace(|_| ())(self);
    }

    fn at(&self, row: u32) -> &Cell<Entry> {
        &self.entries[row as usize & (self.entries.len() - 1)]
    }

    fn get(&self, key: &FlowKey, hash: u64, now: u32) -> Option<FlowEntry> {
        find(self, key, hash, now)
    }

    /// Row of the backend that the flow's tag says.
    fn tagged(&self, hash: u64, now: u32) -> Option<u32> {
        let mut tags = (0..WAYS).map(|n| tag(self, hash, n));
        let own = |tag: &Tag| *tag == Tag::new(hash, tag.backend(), epoch(tag.backend()), now);
        tags.find(own).map(Tag::backend)
    }

    /// Row of the backend of a packet: by its tag, else by its entry.
    fn packet(&self, key: &FlowKey, hash: u64, now: u32) -> Option<u32> {
        let by_entry = || find_untagged(self, key, hash, now).map(|entry| entry.backend());
        self.tagged(hash, now).or_else(by_entry)
    }

    fn remember(&self, key: &FlowKey, hash: u64, now: u32, value: FlowEntry) -> bool {
        let Some(row) = claim(self, &key.to_words(), hash, now) else { return false };
        assert!(search(self, key, hash).is_none(), "nobody sees it while it is written");
        publish(self, row, &value);
        true
    }

    /// As the daemon does.
    fn remove(&self, key: &FlowKey, hash: u64) {
        if let Some((row, stamp)) = search(self, key, hash) {
            assert!(self.swap(row, stamp, stamp.removed()));
            self.swap_tag(row, self.tag(row), Tag::NONE);
        }
    }

    fn standing(&self) -> impl Iterator<Item = Entry> + '_ {
        self.entries.iter().map(Cell::get).filter(|entry| entry.stamp().stands())
    }
}

impl Rows for Memory {
    fn row(&self, row: u32) -> &Entry {
        // SAFETY: one thread, and what is referred to is read as words, as in a program.
        unsafe { &*self.at(row).as_ptr() }
    }

    fn swap(&self, row: u32, old: Stamp, new: Stamp) -> bool {
        let mut entry = self.at(row).get();
        let same = entry.state == old.to_word();
        if same {
            entry.state = new.to_word();
            self.at(row).set(entry);
        }
        same
    }

    fn store(&self, row: u32, offset: usize, word: u64) {
        let mut entry = self.at(row).get();
        match offset {
            Entry::TO => entry.to = word,
            Entry::SEEN => entry.seen = word,
            _ => entry.key[(offset - Entry::KEY) / 8] = word,
        }
        self.at(row).set(entry);
    }

    fn tag(&self, row: u32) -> Tag {
        self.tags[row as usize & (self.tags.len() - 1)].get()
    }

    fn swap_tag(&self, row: u32, old: Tag, new: Tag) {
        self.other_cpu(0);
        if self.tag(row) == old {
            self.tags[row as usize & (self.tags.len() - 1)].set(new);
        }
        self.other_cpu(1);
    }
}

fn key(n: u32) -> FlowKey {
    let (src, dst) = (Addr::v4(n), Addr::v4(0x0a00_0001));
    FlowKey::new(&Tuple { src, dst, ports: n.rotate_left(7), protocol: 6 })
}

fn value(n: u32) -> FlowEntry {
    FlowEntry::seen_at(n, epoch(n), u64::from(n) << 20, Stage::Open)
}

/// The use that a backend's row is put to.
fn epoch(row: u32) -> u32 {
    row / 2
}

#[test]
fn frozen_image() {
    let memory = Memory::new(8);
    let key = FlowKey::new(&Tuple {
        src: Addr::v4(0x0403_0201),
        dst: Addr::v4(0x0807_0605),
        ports: 0x0d0c_0b0a,
        protocol: 17,
    });
    assert!(memory.remember(&key, 5, 0x0102_0304, FlowEntry::seen_at(3, 4, 0x104, Stage::Open)));
    // SAFETY: equal sizes, and no padding (`shared!`).
    let b: [u8; 64] = unsafe { core::mem::transmute(memory.at(5).get()) };
    assert_eq!(b[..24], [4, 3, 2, 1, 3, 0, 1, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 1, 0, 0, 0, 0, 0, 0]);
    // What the key alone is in memory.
    // SAFETY: as above.
    let alone: [u8; 40] = unsafe { core::mem::transmute(key) };
    assert_eq!(b[24..], alone);
    assert_eq!(memory.at(5).get().key(), key);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Remember(u32, u32),
    Get(u32),
    Packet(u32),
    Touch(u32, u32),
    Remove(u32),
    Pass(u32),
}

fn step(keys: u32) -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..keys, 0..MAX_BACKENDS).prop_map(|(n, to)| Step::Remember(n, to)),
        3 => (0..keys).prop_map(Step::Get),
        6 => (0..keys).prop_map(Step::Packet),
        1 => (0..keys, any::<u32>()).prop_map(|(n, seen)| Step::Touch(n, seen)),
        1 => (0..keys).prop_map(Step::Remove),
        1 => (1..50u32).prop_map(Step::Pass),
    ]
}

/// The same in a map, and when each was made or used.
#[derive(Default)]
struct Model(BTreeMap<FlowKey, (FlowEntry, u32, bool)>);

proptest! {
    /// As long as no bucket is full, the table is a map; where one is, what it has is what the map has, and the one that
    /// went was not younger than any that stayed.
    #[test]
    fn a_map_but_for_what_gives_way(
        steps in proptest::collection::vec(step(40), 1..400),
        start: u32,
        seed: u64,
        narrow: bool,
    ) {
        // 40 keys in 16 rows, or in 8; or spread so that none gives way.
        let memory = Memory::new(if narrow { 16 } else { 1 << 10 });
        let place = |n: u32| if narrow { key(n).hash(seed) } else { u64::from(n) << 4 | u64::from(n) << 30 | 6 };
        let bucket = |hash: u64| hash as usize & (memory.entries.len() - 1) & !7;
        let mut model = Model::default();
        let mut now = start;
        for step in steps {
            match step {
                Step::Pass(seconds) => now = now.wrapping_add(seconds),
                Step::Remember(n, to) => {
                    let before: Vec<FlowKey> = memory.standing().map(|entry| entry.key()).collect();
                    prop_assert!(memory.remember(&key(n), place(n), now, value(to)));
                    model.0.insert(key(n), (value(to), now, false));
                    let after: Vec<FlowKey> = memory.standing().map(|entry| entry.key()).collect();
                    for gone in before.iter().filter(|key| !after.contains(key)) {
                        let (_, used, again) = model.0.remove(gone).unwrap();
                        let age = |used: u32, again: bool| {
                            now.wrapping_sub(used) + if again { 0 } else { UNPROVEN }
                        };
                        for (other, (_, other_used, other_again)) in &model.0 {
                            let beside = bucket(other.hash(seed)) == bucket(gone.hash(seed));
                            if narrow && beside && *other != key(n) {
                                // Notes may be late.
                                let (gone, stays) = (age(used, again), age(*other_used, *other_again));
                                prop_assert!(gone + UNNOTED >= stays, "{gone} {stays}");
                            }
                        }
                    }
                }
                Step::Get(n) => {
                    let found = memory.get(&key(n), place(n), now);
                    prop_assert_eq!(found, model.0.get(&key(n)).map(|(value, ..)| *value));
                    if let Some((_, used, again)) = model.0.get_mut(&key(n)) {
                        (*used, *again) = (now, true);
                    }
                }
                Step::Packet(n) => {
                    let found = memory.packet(&key(n), place(n), now);
                    prop_assert_eq!(found, model.0.get(&key(n)).map(|(value, ..)| value.backend()));
                    if let Some((_, used, again)) = model.0.get_mut(&key(n)) {
                        (*used, *again) = (now, true);
                    }
                }
                Step::Touch(n, seen) => {
                    let seen = u64::from(seen);
                    if let Some((row, _)) = search(&memory, &key(n), place(n)) {
                        touch(&memory, row, seen);
                    }
                    if let Some((value, ..)) = model.0.get_mut(&key(n)) {
                        *value = FlowEntry::from_words([value.to_words()[0], seen]);
                    }
                }
                Step::Remove(n) => {
                    memory.remove(&key(n), place(n));
                    model.0.remove(&key(n));
                }
            }
            let keys: Vec<FlowKey> = memory.standing().map(|entry| entry.key()).collect();
            prop_assert_eq!(keys.len(), model.0.len(), "each once");
            prop_assert!(keys.iter().all(|key| model.0.contains_key(key)));
            for (row, tag) in memory.tags.iter().enumerate() {
                let entry = memory.entries[row].get();
                let same = entry.stamp().stands() && entry.value().backend() == tag.get().backend();
                prop_assert!(same || tag.get() == Tag::NONE, "a tag without its entry");
            }
        }
    }
}

#[test]
fn a_lookup_that_is_overtaken_finds_nothing() {
    let memory = Memory::new(8);
    assert!(memory.remember(&key(1), 3, 0, value(1)));
    let (row, stamp) = search(&memory, &key(1), 3).unwrap();
    // Another CPU removes it and gives the row to another key, then to the same one.
    memory.remove(&key(1), 3);
    assert!(memory.remember(&key(2), 3, 0, value(2)));
    memory.remove(&key(2), 3);
    assert!(memory.remember(&key(1), 3, 0, value(3)));
    let later = memory.row(row).stamp();
    assert!(later.stands() && !later.is_same(stamp));
    assert!(!memory.swap(row, stamp, stamp.removed()), "nor does a late removal reach it");
    // That it was used again makes it no other one.
    assert_eq!(memory.get(&key(1), 3, 5), Some(value(3)));
    assert!(memory.row(row).stamp().is_same(later));
}

#[test]
fn what_is_claimed_belongs_to_one() {
    let memory = Memory::new(8);
    let claimed: Vec<u32> =
        (0..8).map(|n| claim(&memory, &key(n).to_words(), 0, n).unwrap()).collect();
    assert_eq!(claimed, Vec::from_iter(0..8));
    assert!(claim(&memory, &key(9).to_words(), 0, u32::MAX / 2).is_none(), "all are being written");
    publish(&memory, 4, &value(4));
    assert_eq!(claim(&memory, &key(9).to_words(), 0, 100), Some(4));
}

/// Connections that go on keep their entries beside a flood of flows that do not.
#[test]
fn a_flood_takes_nothing_from_flows_that_go_on() {
    let memory = Memory::new(1 << 10);
    let own = |n: u32| (key(n), key(n).hash(7));
    let mut now = 1000;
    for n in 0..200 {
        let (key, hash) = own(n);
        assert!(memory.remember(&key, hash, now, value(n)));
        assert_eq!(memory.get(&key, hash, now), Some(value(n)));
    }
    for second in 0..120u32 {
        now += 1;
        for n in 0..500 {
            let (key, hash) = own(1000 + second * 500 + n);
            memory.remember(&key, hash, now, value(0));
        }
        // Each sends something every 20 seconds.
        for n in (0..200).filter(|n| n % 20 == second % 20) {
            let (key, hash) = own(n);
            assert_eq!(memory.get(&key, hash, now), Some(value(n)), "{n} after {second} s");
        }
    }
}

/// Nearly all entries are where they are looked for first.
#[test]
fn a_third_full_most_are_in_their_own_row() {
    let memory = Memory::new(1 << 12);
    let count = (1 << 12) / 3;
    for n in 0..count {
        assert!(memory.remember(&key(n), key(n).hash(3), 0, value(n)));
        assert!(memory.get(&key(n), key(n).hash(3), 0).is_some());
    }
    let first = (0..count).filter(|n| {
        let hash = key(*n).hash(3);
        search(&memory, &key(*n), hash).unwrap().0 == row(hash, 0)
    });
    let first = first.count();
    assert!(first * 10 > count as usize * 8, "{first} of {count}");
    // And all have tags, once they have gone on.
    for n in 0..count {
        assert_eq!(memory.packet(&key(n), key(n).hash(3), 0), Some(n));
        assert_eq!(memory.tagged(key(n).hash(3), 0), Some(n));
    }
    assert_eq!(memory.standing().count(), count as usize, "and none had to give way");
}

/// A tag is left at the second packet, holds for as long as its turn, and goes with its entry.
#[test]
fn a_tag_answers_until_its_turn_ends() {
    let memory = Memory::new(8);
    let now = 1000 * UNNOTED;
    // Of this hash turns begin at multiples of [`UNNOTED`].
    let hash = 3 << 40;
    assert!(memory.remember(&key(1), hash, now, value(6)));
    assert_eq!(memory.tagged(hash, now), None, "one that never goes on has none");
    assert_eq!(memory.packet(&key(1), hash, now), Some(6));
    let noted = memory.row(0).stamp();
    for after in 0..UNNOTED {
        assert_eq!(memory.tagged(hash, now + after), Some(6));
        assert_eq!(memory.packet(&key(1), hash, now + after), Some(6));
    }
    assert_eq!(memory.row(0).stamp(), noted, "its cache line stays clean");
    assert_eq!(memory.tagged(hash, now + UNNOTED), None);
    assert_eq!(memory.packet(&key(1), hash, now + UNNOTED), Some(6));
    assert_eq!(memory.row(0).stamp().used(), now + UNNOTED, "noted");
    assert_eq!(memory.tagged(hash, now + UNNOTED), Some(6));
    // Nobody else's: another flow of the same row, and of the same slot of a ring.
    assert_eq!(memory.tagged(hash | 1 << 20, now + UNNOTED), None);
    memory.remove(&key(1), hash);
    assert_eq!(memory.packet(&key(1), hash, now + UNNOTED), None);
}

/// Whatever another CPU does between the look at an entry and the tag that is left of it, no tag is left of an entry that
/// is there no longer.
#[test]
fn a_tag_never_outlasts_its_entry() {
    const HASH: u64 = 3 << 40;
    // The flow begins anew elsewhere; its row goes to another flow; the daemon removes it.
    let reopened: fn(&Memory) = |m| assert!(m.remember(&key(1), HASH, 0, value(8)));
    let taken: fn(&Memory) = |m| {
        m.remove(&key(1), HASH);
        assert!(m.remember(&key(2), HASH | 1 << 50, 0, value(8)));
    };
    let removed: fn(&Memory) = |m| m.remove(&key(1), HASH);
    for what in [reopened, taken, removed] {
        for when in [0, 1] {
            let memory = Memory::new(8);
            assert!(memory.remember(&key(1), HASH, 0, value(6)));
            memory.meanwhile[when].set(what);
            assert_eq!(memory.packet(&key(1), HASH, 0), Some(6), "it was the earlier of the two");
            assert_eq!(memory.tagged(HASH, 0), None);
            assert_eq!(memory.tag(0), Tag::NONE);
        }
    }
    // The tag is left between a claim's look at the tag and its taking away.
    let memory = Memory::new(8);
    assert!(memory.remember(&key(1), HASH, 0, value(6)));
    assert_eq!(memory.packet(&key(1), HASH, 0), Some(6));
    let (row, stamp) = search(&memory, &key(1), HASH).unwrap();
    memory.swap_tag(row, memory.tag(row), Tag::NONE);
    memory.meanwhile[0].set(|m| {
        let tag = Tag::new(HASH, 6, epoch(6), 0);
        m.swap_tag(0, Tag::NONE, tag);
        assert_eq!(m.tag(0), tag);
    });
    assert!(memory.remember(&key(1), HASH, 0, value(8)));
    assert!(
        !memory.row(row).stamp().is_same(stamp),
        "which whoever left it sees, and takes it back"
    );
    memory.swap_tag(row, Tag::new(HASH, 6, epoch(6), 0), Tag::NONE);
    assert_eq!(memory.packet(&key(1), HASH, 0), Some(8));
}

/// The same in memory that threads share; tags stand behind their entries.
struct Shared(Vec<[AtomicU64; 9]>);

impl Shared {
    fn word(&self, row: u32, offset: usize) -> &AtomicU64 {
        &self.0[row as usize & (self.0.len() - 1)][offset / 8]
    }
}

impl Rows for Shared {
    fn row(&self, row: u32) -> &Entry {
        // SAFETY: as long and as aligned, and read word by word, each as a volatile load: as a program reads.
        unsafe { &*core::ptr::from_ref(self.word(row, 0)).cast() }
    }

    fn swap(&self, row: u32, old: Stamp, new: Stamp) -> bool {
        let word = self.word(row, Entry::STATE);
        word.compare_exchange(old.to_word(), new.to_word(), SeqCst, SeqCst).is_ok()
    }

    fn store(&self, row: u32, offset: usize, word: u64) {
        self.word(row, offset).store(word, SeqCst);
    }

    fn tag(&self, row: u32) -> Tag {
        Tag::from_word(self.word(row, size_of::<Entry>()).load(SeqCst))
    }

    fn swap_tag(&self, row: u32, old: Tag, new: Tag) {
        let word = self.word(row, size_of::<Entry>());
        let _ = word.compare_exchange(old.to_word(), new.to_word(), SeqCst, SeqCst);
    }
}

/// Whatever other CPUs do meanwhile, an entry that is found says what was remembered of its own key, and so does a tag.
#[test]
fn no_key_finds_what_was_remembered_of_another() {
    let table = Shared((0..8).map(|_| Default::default()).collect());
    let threads = 4;
    // Hashes differ in the row, and in what is in tags.
    let place = |n: u32| u64::from(n) | u64::from(n) << 30;
    let found: u32 = std::thread::scope(|scope| {
        let run = |thread: u64| {
            let (mut found, mut random) = (0, thread);
            for step in 0..150_000 {
                random = crate::hash::again(random.wrapping_add(step));
                let n = (random >> 3) as u32 % 24;
                let (key, place, now) = (key(n), place(n), step as u32 / 1000);
                let tag = tag(&table, place, (random >> 60) as u32 & (WAYS - 1));
                match random >> 46 & 3 {
                    0 => {
                        if let Some(row) = claim(&table, &key.to_words(), place, now) {
                            publish(&table, row, &FlowEntry::new(n, !n));
                        }
                    }
                    1 => {
                        let entry = find(&table, &key, place, now);
                        assert!(entry.is_none_or(|e| (e.backend(), e.epoch()) == (n, !n)));
                    }
                    _ if tag == Tag::new(place, tag.backend(), !tag.backend(), now) => {
                        assert_eq!(tag.backend(), n);
                        found += 1;
                    }
                    _ => {
                        if let Some(entry) = find_untagged(&table, &key, place, now) {
                            assert_eq!((entry.backend(), entry.epoch()), (n, !n));
                            found += 1;
                        }
                    }
                }
            }
            found
        };
        let started = Vec::from_iter((0..threads).map(|n| scope.spawn(move || run(n + 1))));
        started.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(found > 10_000, "{found}");
    for row in 0..8 {
        let (tag, entry) = (table.tag(row), table.row(row));
        let same = entry.stamp().stands() && entry.value().backend() == tag.backend();
        assert!(same || tag == Tag::NONE, "row {row}: a tag without its entry");
    }
}
