//! Rows beside a table on a vector.

extern crate std;
use std::{
    cell::{RefCell, UnsafeCell},
    collections::BTreeMap,
    vec::Vec,
};

use proptest::prelude::*;

use super::*;
use crate::{
    addr::Addr,
    nat::{
        Phase, Side, changes,
        lookup::tests::{PORTS, Table, flow},
        note, place,
    },
    wire::tcp_flags::{ACK, FIN, RST, SYN},
};

const SEED: u64 = 1;
const LINK: u64 = 0x0001_0203_0405_0602;

/// Entries, and what stands beside them.
struct Tables {
    entries: Table,
    size: u32,
    rows: RefCell<BTreeMap<(Direction, u32), Row>>,
    paths: Vec<UnsafeCell<Path>>,
}

impl Tables {
    fn new(size: u32) -> Self {
        let paths = (0..PATHS).map(|_| UnsafeCell::default()).collect();
        Self { entries: Table::new(size as usize), size, rows: RefCell::default(), paths }
    }

    /// The row of a client's packet.
    fn forth_row(&self, flow: &Flow, now: u32) -> Option<Row> {
        match find(self, flow.hash, client_of(flow), first(self, flow.hash), || now) {
            Search::Row(row) => Some(row),
            _ => None,
        }
    }

    /// Row and path of a reply to this NAT port.
    fn back_row(&self, flow: &Flow, port: u16) -> Option<(Row, &Path)> {
        let at = (flow.pair, place(flow.pair, port));
        let (row, path, link) = reply(self, at, (PORTS, port), false, SEED)?;
        assert_eq!(link, path.link());
        Some((row, path))
    }

    /// What the slow way of a client's packet does.
    fn forth(&self, flow: &Flow, flags: u8, now: u32, link: u64) -> Option<Found> {
        let opens = flags & (SYN | ACK) == SYN;
        let found = crate::nat::search(self, flow, PORTS, opens, link, now);
        if !found.is_entry() {
            return None;
        }
        let entry = *self.entry(found.index()).unwrap();
        if entry.link() != link {
            let entry = Entry::new(
                entry.stamp(),
                link,
                [entry.client(), entry.vip()],
                entry.ports(),
                entry.backend(),
                entry.epoch(),
            );
            self.write(found.index(), &entry);
        }
        if changes(&entry, Side::Client, flags, now) {
            note(self, found.index(), Side::Client, flags, now);
        }
        if flags & (SYN | FIN | RST) == 0 {
            keep(self, flow, found, PORTS, FRONTEND, link);
        }
        Some(found)
    }

    /// The same of a backend's.
    fn back(&self, found: Found, flags: u8, now: u32) {
        let entry = *self.entry(found.index()).unwrap();
        if changes(&entry, Side::Backend, flags, now) {
            note(self, found.index(), Side::Backend, flags, now);
            refresh(self, found.index(), self.entry(found.index()).unwrap());
        }
    }

    fn establish(&self, flow: &Flow, now: u32) -> Found {
        let found = self.forth(flow, SYN, now, LINK).unwrap();
        self.back(found, SYN | ACK, now);
        self.forth(flow, ACK, now, LINK).unwrap()
    }

    /// Whether there is a row forth that is this flow's, with this NAT port.
    fn is_forth(&self, flow: &Flow, port: u16) -> bool {
        self.forth_row(flow, 0).is_some_and(|row| {
            self.path(row.path()).is(&path_of(flow))
                && PORTS.candidate(flow.hash, row.candidate()) == port
        })
    }

    /// The same of one back.
    fn is_back(&self, flow: &Flow, port: u16) -> bool {
        self.back_row(flow, port)
            .is_some_and(|(row, path)| row.is_of(client_of(flow)) && path.is(&path_of(flow)))
    }

    /// Rows forth and back.
    fn rows(&self) -> [usize; 2] {
        [Direction::Forth, Direction::Back].map(|to| {
            let rows = self.rows.borrow();
            rows.iter().filter(|((at, _), row)| *at == to && **row != Row::NONE).count()
        })
    }
}

const FRONTEND: u32 = 0xf_1234;

fn client_of(flow: &Flow) -> u64 {
    client(flow.client.as_v4_raw(), flow.ports as u16)
}

fn path_of(flow: &Flow) -> Path {
    let own = (FRONTEND, Stamp::from_word(flow.identity).address(), flow.target());
    let vip = client(flow.vip.as_v4_raw(), (flow.ports >> 16) as u16);
    let backend = (flow.backend as u32, (flow.backend >> 32) as u32);
    Path::new(LINK, backend, own, vip, false, flow.pair)
}

impl Entries for Tables {
    fn entry(&self, index: u32) -> Option<&Entry> {
        self.entries.entry(index)
    }

    fn swap(&self, index: u32, old: Stamp, new: Stamp) -> bool {
        self.entries.swap(index, old, new)
    }

    fn write(&self, index: u32, entry: &Entry) {
        self.entries.write(index, entry);
    }

    fn forget(&self, index: u32, udp: bool) {
        super::forget(self, index, self.entry(index).unwrap(), udp, SEED);
    }
}

impl Rows for Tables {
    fn row(&self, to: Direction, row: u32) -> Row {
        let row = (to, row & (rows(self.size) - 1));
        self.rows.borrow().get(&row).copied().unwrap_or(Row::NONE)
    }

    fn swap_row(&self, to: Direction, row: u32, old: Row, new: Row) -> bool {
        let same = self.row(to, row) == old;
        if same {
            self.rows.borrow_mut().insert((to, row & (rows(self.size) - 1)), new);
        }
        same
    }
}

impl Links for Tables {
    fn path_link(&self, number: u32) -> u64 {
        self.path(number).link()
    }

    fn swap_path(&self, number: u32, old: u64, new: u64) -> bool {
        // SAFETY: as above; the first word.
        let word = unsafe { &mut *self.paths[number as usize].get().cast::<u64>() };
        let same = *word == old;
        if same {
            *word = new;
        }
        same
    }
}

impl Paths for Tables {
    fn path(&self, number: u32) -> &Path {
        // SAFETY: one thread, and nobody keeps a reference to a path while it is written.
        unsafe { &*self.paths[number as usize].get() }
    }

    fn write_path(&self, number: u32, path: &Path) {
        // SAFETY: as above.
        unsafe { *self.paths[number as usize].get() = *path };
    }
}

#[test]
fn frozen_images() {
    let of = client(u32::from_ne_bytes([192, 0, 2, 1]), 443u16.to_be());
    let row = Row::new(of, 3, 0x3fe, false, 3 << 9);
    assert_eq!(row.to_word().to_ne_bytes(), [192, 0, 2, 1, 1, 0xbb, 3 | 3 << 4 | 2 << 6, 0xff]);
    let path = Path::new(1, (2, 3), (4, 5, 6), 7, true, 8);
    // SAFETY: equal sizes, and no padding (`shared!`).
    let words: [u64; 8] = unsafe { core::mem::transmute(path) };
    assert_eq!(words, [1, 2 | 3 << 32, 4 | 5 << 32 | 6 << 48, 7 | 1 << 48, 8, 0, 0, 0]);
}

proptest! {
    #[test]
    fn packing(address: u32, port: u16, n in 0..CANDIDATES, path in 0..PATHS, udp: bool, seen: [u32; 2], other: u64) {
        let of = client(address, port);
        let row = Row::from_word(Row::new(of, n, path, udp, seen[0]).to_word());
        prop_assert_eq!((row.address(), row.port(), row.candidate(), row.path()), (address, port, n, path));
        prop_assert!(row.is_of(of) && row.is_current(udp, seen[0]) && !row.is_of(of ^ 1 << 47));
        prop_assert_eq!(row.is_of(other & ((1 << 48) - 1)), other << 16 == of << 16);
        prop_assert_eq!(row.seen(udp, seen[1]), Row::new(of, n, path, udp, seen[1]));
    }

    #[test]
    fn paths(words: [u64; 3], numbers: [u32; 3], address: u8, target: u16, udp: bool, change in 0..9) {
        let [link, vip, pair] = [words[0] & !1, words[1] >> 16, words[2]];
        let [backend, epoch, frontend] = numbers;
        let one = Path::new(link, (backend, epoch), (frontend, address, target), vip, udp, pair);
        prop_assert_eq!((one.link(), one.backend(), one.epoch(), one.pair()), (link, backend, epoch, pair));
        prop_assert_eq!(client(one.address(), one.port()), vip);
        let other = match change {
            0 => Path::new(link ^ 2, (backend, epoch), (frontend, address, target), vip, udp, pair),
            1 => Path::new(link, (backend ^ 1, epoch), (frontend, address, target), vip, udp, pair),
            2 => Path::new(link, (backend, epoch ^ 1 << 31), (frontend, address, target), vip, udp, pair),
            3 => Path::new(link, (backend, epoch), (frontend ^ 1 << 31, address, target), vip, udp, pair),
            4 => Path::new(link, (backend, epoch), (frontend, address ^ 128, target), vip, udp, pair),
            5 => Path::new(link, (backend, epoch), (frontend, address, target ^ 1), vip, udp, pair),
            6 => Path::new(link, (backend, epoch), (frontend, address, target), vip ^ 1 << 47, udp, pair),
            7 => Path::new(link, (backend, epoch), (frontend, address, target), vip, !udp, pair),
            _ => one,
        };
        prop_assert_eq!(one.is(&other), change == 8);
    }

    /// What is taken for noted has been noted in this unit, or was silent for longer than it may ask to be remembered
    /// (RFC 5382, RFC 4787).
    #[test]
    fn what_is_noted(port: u16, udp: bool, seen: u32, silent in 0u32..20_000) {
        let row = Row::new(client(1, port), 0, 1, udp, seen);
        let (unit, asked) = if udp { (8, 120) } else { (512, 7440) };
        if row.is_current(udp, seen.wrapping_add(silent)) {
            prop_assert!(silent < unit || silent >= asked, "{silent}");
        }
        let phase = if udp { Phase::Answered } else { Phase::Established };
        let stamp = Stamp::default().renew(phase, udp, 0, seen);
        prop_assert!(stamp.lifetime() - unit >= asked);
        let entry = Entry::new(stamp, 0, [Addr::v4(1); 2], port.into(), 0, 0);
        let now = seen.wrapping_add(silent);
        prop_assert_eq!(is_due(&entry, stamp, now), !row.is_current(udp, now));
    }
}

#[test]
fn from_the_first_packet_to_the_last() {
    for end in [FIN | ACK, RST] {
        for backend in [false, true] {
            let (tables, flow) = (Tables::new(64), flow(7, 3));
            let found = tables.forth(&flow, SYN, 100, LINK).unwrap();
            tables.forth(&flow, ACK, 100, LINK);
            tables.back(found, SYN | ACK, 100);
            assert_eq!(tables.rows(), [0, 0]);
            tables.forth(&flow, ACK, 100, LINK);
            assert!(tables.is_forth(&flow, found.port()) && tables.is_back(&flow, found.port()));
            assert_eq!(tables.rows(), [1, 1]);
            if backend {
                tables.back(found, end, 101);
            } else {
                tables.forth(&flow, end, 101, LINK);
            }
            assert_eq!(tables.rows(), [0, 0]);
        }
    }
}

#[test]
fn its_use_is_noted_for_both_sides() {
    let (tables, flow) = (Tables::new(64), flow(7, 3));
    let found = tables.establish(&flow, 1024);
    let current = |now| {
        let (back, _) = tables.back_row(&flow, found.port()).unwrap();
        (tables.forth_row(&flow, now).unwrap().is_current(false, now), back.is_current(false, now))
    };
    assert_eq!((current(1024), current(1536)), ((true, true), (false, false)));
    tables.back(found, ACK, 1536);
    assert_eq!(current(1536), (false, true));
    assert_eq!(tables.entry(found.index()).unwrap().stamp().seen(), 1536);
    tables.forth(&flow, ACK, 1536, LINK);
    assert_eq!(current(1536), (true, true));
}

#[test]
fn another_connection_takes_the_place() {
    // One place for all.
    let (tables, [old, new]) = (Tables::new(1), [flow(7, 3), flow(8, 3)]);
    let found = tables.establish(&old, 100);
    assert!(tables.is_forth(&old, found.port()) && tables.is_back(&old, found.port()));
    let next = tables.establish(&new, 100 + 8_000);
    assert!(!tables.is_forth(&old, found.port()) && !tables.is_back(&old, found.port()));
    assert!(tables.is_forth(&new, next.port()) && tables.is_back(&new, next.port()));
    assert_eq!(tables.rows(), [1, 1]);
}

#[test]
fn what_has_no_rows() {
    let tables = Tables::new(64);
    let own = flow(7, 3);
    let found = tables.establish(&own, 100);
    // Of another use of the backend's row, or with tags, or by another way than the entry's, or at another port.
    tables.rows.borrow_mut().clear();
    let other = Flow { backend: own.backend + (1 << 32), ..own };
    keep(&tables, &other, found, PORTS, FRONTEND, LINK);
    keep(&tables, &own, found, PORTS, FRONTEND, LINK | Way::TAGGED);
    keep(&tables, &own, found, PORTS, FRONTEND, LINK + 2);
    keep(&tables, &own, Found::entry(found.index(), found.port() ^ 1), PORTS, FRONTEND, LINK);
    assert_eq!(tables.rows(), [0, 0]);
    keep(&tables, &own, found, PORTS, FRONTEND, LINK);
    assert!(tables.is_forth(&own, found.port()) && tables.is_back(&own, found.port()));
    assert!(!tables.is_forth(&other, found.port()) && !tables.is_back(&other, found.port()));
}

/// A reply from elsewhere, or to another port.
#[test]
fn what_is_of_no_row() {
    let (tables, own) = (Tables::new(8), flow(7, 3));
    let found = tables.establish(&own, 100);
    assert!(tables.back_row(&own, found.port()).is_some());
    // All rows are of one line: any place leads to it.
    for port in PORTS.first..PORTS.first + 1000 {
        assert_eq!(tables.back_row(&own, port).is_some(), port == found.port());
    }
    assert!(tables.back_row(&Flow { pair: own.pair ^ 1 << 40, ..own }, found.port()).is_none());
}

/// A client that comes by another way: its path changes on both sides.
#[test]
fn another_way_back() {
    let (tables, flow) = (Tables::new(64), flow(7, 3));
    let found = tables.establish(&flow, 100);
    tables.forth(&flow, ACK, 100, LINK + 4);
    let forth = tables.path(tables.forth_row(&flow, 100).unwrap().path());
    let (_, back) = tables.back_row(&flow, found.port()).unwrap();
    assert_eq!((forth.link(), back.link(), tables.rows()), (LINK + 4, LINK + 4, [1, 1]));
}

fn path(link: u64) -> Path {
    Path::new(link, (1, 1), (1, 1, 1), 1, false, 1)
}

#[test]
fn paths_get_numbers() {
    let tables = Tables::new(1);
    let path = |link: u32| path(u64::from(link) << 8);
    let numbers: Vec<u32> = (1..=PATHS).map(|link| number(&tables, &path(link))).collect();
    for (&given, link) in numbers.iter().zip(1..) {
        if given != 0 {
            assert!(tables.path(given).is(&path(link)));
            assert_eq!(number(&tables, &path(link)), given);
        }
    }
    // Nearly full: some have none.
    let none = numbers.iter().filter(|&&number| number == 0).count();
    assert!((1..PATHS as usize / 5).contains(&none), "{none}");
    assert_eq!(*tables.path(0), Path::default());
}

#[test]
fn paths_of_no_row_are_freed() {
    let tables = Tables::new(64);
    let number_of = |link: u32| number(&tables, &path(u64::from(link) << 8));
    let free = |now| free_paths(&tables, rows(64), now, || ());
    let held: Vec<u32> = (1..=PATHS).map(number_of).filter(|&number| number != 0).collect();
    // One that no longer fits.
    let refused = (1..=PATHS).find(|&link| number_of(link) == 0).unwrap();
    assert_eq!(paths_used(&tables) as usize, held.len());
    // Another connection's is used; as is one that a program that still runs has found.
    let flow = flow(7, 3);
    let found = tables.establish(&flow, 100);
    let kept = |port| tables.is_forth(&flow, port) && tables.is_back(&flow, port);
    let late = held[0];
    let row = Row::new(client(1, 1), 0, late, false, 100);
    let begun = || {
        tables.swap_row(Direction::Back, 9, Row::NONE, row);
    };
    let own = u32::from(kept(found.port()));
    assert_eq!(free_paths(&tables, rows(64), 100, begun) as usize, held.len() - 1);
    assert_eq!((paths_used(&tables), u32::from(kept(found.port()))), (1 + own, own));
    assert_eq!((number_of(1), tables.path(late).link() != Path::LEAVING), (late, true));
    assert_ne!(number_of(refused), 0);
    // Whoever is writing one.
    let writing = number_of(PATHS + 1);
    tables.swap_path(writing, tables.path(writing).link(), Path::CLAIMED);
    let written = path(u64::from(PATHS + 1) << 8);
    free_paths(&tables, rows(64), 100, || tables.write_path(writing, &written));
    assert_eq!(number_of(PATHS + 1), writing);
    // All are silent.
    tables.establish(&flow, 1000);
    let before = paths_used(&tables);
    assert!(before > 1 && tables.rows() != [0, 0]);
    assert_eq!(free(1000 + 3 * 512 + 8), before);
    assert_eq!((tables.rows(), paths_used(&tables)), ([0, 0], 0));
}

/// The sweep may begin in the unit before the one in which a use is noted.
#[test]
fn what_is_noted_meanwhile_stays() {
    let flow = flow(7, 3);
    let at = |seen| Row::new(client_of(&flow), 0, 1, false, seen);
    let next = (1000..).find(|&now| at(now).is_free(now - 1)).unwrap();
    let tables = Tables::new(64);
    tables.establish(&flow, next);
    free_paths(&tables, rows(64), next - 1, || ());
    assert_eq!(tables.rows(), [1, 1]);
}

/// Who has found a path may go on with it while it leaves, but nobody finds it any longer.
#[test]
fn a_path_that_leaves_is_not_found() {
    let (tables, flow) = (Tables::new(64), flow(7, 3));
    let found = tables.establish(&flow, 100);
    let (row, path) = tables.back_row(&flow, found.port()).unwrap();
    assert!(tables.swap_path(row.path(), path.link(), Path::LEAVING));
    assert!(tables.back_row(&flow, found.port()).is_none());
    assert!(!tables.is_forth(&flow, found.port()));
}

/// Tables in which another CPU notes a row's use as it is taken away.
struct Busy<'t> {
    tables: &'t Tables,
    noted: RefCell<Vec<(Direction, u32)>>,
}

impl Rows for Busy<'_> {
    fn row(&self, to: Direction, row: u32) -> Row {
        self.tables.row(to, row)
    }

    fn swap_row(&self, to: Direction, row: u32, old: Row, new: Row) -> bool {
        let mut noted = self.noted.borrow_mut();
        if !noted.contains(&(to, row)) {
            noted.push((to, row));
            self.tables.swap_row(to, row, old, old.seen(false, 1024));
        }
        self.tables.swap_row(to, row, old, new)
    }
}

#[test]
fn rows_go_although_their_use_is_noted() {
    let (tables, flow) = (Tables::new(64), flow(7, 3));
    let found = tables.establish(&flow, 100);
    let busy = Busy { tables: &tables, noted: RefCell::default() };
    forget(&busy, found.index(), tables.entry(found.index()).unwrap(), false, SEED);
    assert_eq!((busy.noted.borrow().len(), tables.rows()), (2, [0, 0]));
}

/// Without a number there is no path, but the first program is told that it need not ask for one.
#[test]
fn without_a_path() {
    let (tables, flow) = (Tables::new(64), flow(7, 3));
    for number in 1..PATHS {
        tables.write_path(number, &Path::new(2, (1, 1), (1, 1, 1), 1, false, 1));
    }
    let found = tables.establish(&flow, 100);
    assert_eq!(tables.forth_row(&flow, 100).unwrap().path(), 0);
    assert!(tables.back_row(&flow, found.port()).is_none());
}

/// Eight of one line have rows; another one gets that of one that is silent, if there is one.
#[test]
fn a_line_is_shared() {
    let tables = Tables::new(1 << 12);
    let of_line: Vec<Flow> =
        (1..).map(|n| flow(n, 3)).filter(|flow| flow.hash as u32 & 0x7f8 == 0x40).take(9).collect();
    for flow in &of_line[..8] {
        tables.establish(flow, 100);
    }
    let known = || {
        let found = |flow: &&Flow| tables.forth_row(flow, 100).is_some();
        of_line.iter().filter(found).map(|flow| flow.client).collect::<Vec<_>>()
    };
    let clients = |flows: &[Flow]| flows.iter().map(|flow| flow.client).collect::<Vec<_>>();
    assert_eq!(known(), clients(&of_line[..8]));
    let search = |now| {
        let Flow { hash, .. } = of_line[8];
        find(&tables, hash, client_of(&of_line[8]), first(&tables, hash), || now)
    };
    assert_eq!(search(100), Search::Full);
    tables.establish(&of_line[8], 100);
    assert_eq!(known(), clients(&of_line[..8]));
    for flow in &of_line[1..8] {
        tables.forth(flow, ACK, 2000, LINK);
    }
    assert_eq!(search(2000), Search::Room);
    tables.forth(&of_line[8], ACK, 2000, LINK);
    assert_eq!(known(), clients(&of_line[1..]));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Forth(u32, u8),
    Back(u32, u8),
    Later(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let flags = || prop_oneof![Just(ACK), Just(SYN), Just(SYN | ACK), Just(FIN | ACK), Just(RST)];
    prop_oneof![
        6 => (1..25u32, flags()).prop_map(|(n, flags)| Step::Forth(n, flags)),
        4 => (1..25u32, flags()).prop_map(|(n, flags)| Step::Back(n, flags)),
        1 => (0..4_000u32).prop_map(Step::Later),
    ]
}

proptest! {
    /// Whatever comes, rows are of connections that stand, and say what their entries say.
    #[test]
    fn rows_are_of_entries(steps in prop::collection::vec(step(), 0..200)) {
        let tables = Tables::new(8);
        let (mut now, mut last) = (100, BTreeMap::new());
        for step in steps {
            match step {
                Step::Forth(n, flags) => {
                    if let Some(found) = tables.forth(&flow(n, n % 3), flags, now, LINK) {
                        last.insert(n, found);
                    }
                }
                Step::Back(n, flags) => {
                    if let Some(&found) = last.get(&n)
                        && flow(n, n % 3).owns(
                            tables.entry(found.index()).unwrap(),
                            tables.entry(found.index()).unwrap().stamp(),
                            found.port(),
                        )
                    {
                        tables.back(found, flags, now);
                    }
                }
                Step::Later(seconds) => now += seconds,
            }
            for n in 1..25 {
                let own = flow(n, n % 3);
                let Some(row) = tables.forth_row(&own, now) else { continue };
                let port = PORTS.candidate(own.hash, row.candidate());
                let entry = tables.entry(place(own.pair, port)).unwrap();
                let stamp = entry.stamp();
                prop_assert!(row.path() == 0 || tables.path(row.path()).is(&path_of(&own)));
                prop_assert!(row.path() == 0 || (stamp.is_steady() && own.owns(entry, stamp, port)));
            }
            for n in 1..25 {
                let own = flow(n, n % 3);
                for candidate in 0..CANDIDATES {
                    let port = PORTS.candidate(own.hash, candidate);
                    let Some((row, path)) = tables.back_row(&own, port) else { continue };
                    let entry = tables.entry(place(own.pair, port)).unwrap();
                    let stamp = entry.stamp();
                    prop_assert!(stamp.is_steady() && path.is(&path_of(&own)));
                    prop_assert_eq!(row.address(), entry.client().as_v4_raw());
                    prop_assert_eq!(port.to_be(), (entry.ports() >> 32) as u16);
                }
            }
        }
    }
}
