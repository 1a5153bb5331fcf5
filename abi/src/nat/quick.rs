//! Rows that tell the packets of connections that stand all they need to know, in an eighth of a cache line.
//!
//! An [`Entry`] is a cache line, and where many connections are alive each packet waits for the one of its own. Beside the
//! table of entries stand two of rows, each a word, half as many as there are entries: *forth*, where a client's packets
//! look, by the hash of their flow, which they have at hand before they know their backend; and *back*, where a backend's
//! look, by the place of the entry. A row says who the client is, which of the candidates the NAT port is, and the number
//! of a [`Path`]: all else, which many connections have in common. Nothing is left to chance: a packet forth has the client
//! of its row, and all of its path; one back has the pair of its path, and the NAT port that follows from the
//! client.
//!
//! A row is of a connection between addresses of IPv4, without VLAN tags, of a service that wants no more than its ring,
//! that both sides have spoken in and none has begun to end. Others have none, nor need it: what finds no row goes by the
//! entry.
//!
//! A row says what its entry says: it is written by those who have just read the entry and who look once more
//! afterwards ([`keep`]), and taken away by those who claim the entry, or note that its connection ends ([`forget`]), once
//! they have done so. One side or the other sees what the other did: both do an atomic exchange between the two.

use super::{
    entry::{Entry, Stamp},
    lookup::{Entries, Flow, Found, Ports},
};
use crate::{
    addr::Addr,
    hash::{self, Tuple},
    table::{Way, live, shared},
    wire::protocol,
};

/// Rows where a connection's may be: those of one cache line.
pub const WAYS: u32 = 8;
/// Paths; a power of two. The first one is none.
pub const PATHS: u32 = 1 << 10;
/// Places of one of them.
const PROBES: u32 = 8;
/// Seconds that [`free_paths`] may take.
const SWEEP: u32 = 4;
/// Candidates that a row can name: nearly all connections have one of these.
const CANDIDATES: u32 = 4;

/// Rows of each table beside one of so many entries, a power of two.
#[must_use]
pub const fn rows(entries: u32) -> u32 {
    if entries / 2 <= WAYS { WAYS } else { entries / 2 }
}

/// The client's address and port, as they stand in a header, in the lowest 48 bits of a word.
#[inline(always)]
#[must_use]
pub const fn client(address: u32, port: u16) -> u64 {
    address as u64 | (port as u64) << 32
}

/// A row: the client, when its use was last noted, which candidate the NAT port is, and the number of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row(u64);

impl Row {
    /// No row.
    pub const NONE: Self = Self(0);

    const TIME: u32 = 48;
    const TIMES: u64 = 15;
    const CANDIDATE: u32 = 52;
    const PATH: u32 = 54;

    /// `of`: [`client`]; `seen`: in seconds of the programs' clock; `path`: 0 where all else stands in the entry alone.
    #[inline(always)]
    #[must_use]
    pub const fn new(of: u64, candidate: u32, path: u32, udp: bool, seen: u32) -> Self {
        Self(
            of | time(of, udp, seen) << Self::TIME
                | (candidate as u64) << Self::CANDIDATE
                | (path as u64) << Self::PATH,
        )
    }

    /// From a word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// One word.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// Whether it is of this [`client`].
    #[inline(always)]
    #[must_use]
    pub const fn is_of(self, client: u64) -> bool {
        (self.0 ^ client) << (64 - Self::TIME) == 0
    }

    /// The client's address, as it stands in a header.
    #[inline(always)]
    #[must_use]
    pub const fn address(self) -> u32 {
        self.0 as u32
    }

    /// The client's port, as it stands in a header.
    #[inline(always)]
    #[must_use]
    pub const fn port(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Number of its path.
    #[inline(always)]
    #[must_use]
    pub const fn path(self) -> u32 {
        (self.0 >> Self::PATH) as u32
    }

    /// Which candidate the NAT port is.
    #[inline(always)]
    #[must_use]
    pub const fn candidate(self) -> u32 {
        (self.0 >> Self::CANDIDATE) as u32 & (CANDIDATES - 1)
    }

    /// Whether its use need not be noted.
    #[inline(always)]
    #[must_use]
    pub const fn is_current(self, udp: bool, now: u32) -> bool {
        self.0 >> Self::TIME & Self::TIMES == time(self.0, udp, now)
    }

    /// Whether another connection may have it: it is none, or of one that is no more, or silent, as far as it alone can
    /// tell.
    #[inline(always)]
    const fn is_free(self, now: u32) -> bool {
        self.0 == 0 || !(self.is_current(false, now) || self.is_current(true, now))
    }

    const fn seen(self, udp: bool, seen: u32) -> Self {
        Self(self.0 & !(Self::TIMES << Self::TIME) | time(self.0, udp, seen) << Self::TIME)
    }
}

/// Units of time since the clock began, as far as four bits can tell: 512 seconds of TCP's, 8 of UDP's. A use is noted in
/// the entry when it is the first one of its unit, so an entry lives as long as it must after one that was not
/// ([`Stamp::lifetime`], less a unit). What is silent for 15 units may be taken for current again: by then it has been
/// silent for longer than it may ask to be remembered. Units of connections begin at times of their own, by the
/// client's port, or all of them would be noted at once.
#[inline(always)]
const fn time(client: u64, udp: bool, now: u32) -> u64 {
    let own = ((client >> 40) as u8 as u32) << 1;
    (now.wrapping_add(own) >> if udp { 3 } else { 9 }) as u64 & Row::TIMES
}

/// Whether the use of an entry is to be noted for the sake of its rows.
#[inline(always)]
pub(super) fn is_due(entry: &Entry, stamp: Stamp, now: u32) -> bool {
    let (of, udp) = (client(0, entry.ports() as u16), stamp.is_udp());
    stamp.is_steady() && time(of, udp, stamp.seen()) != time(of, udp, now)
}

/// What many connections have in common: service, backend, NAT address, and the way back to the clients.
///
/// Live words: `link`, stored last; the rest is written between a claim and that, and no more.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    link: u64,
    backend: u64,
    frontend: u64,
    vip: u64,
    pair: u64,
    reserved: [u64; 3],
}

shared!(Path, 64, { link @ 0, backend @ 8, frontend @ 16, vip @ 24, pair @ 32, reserved @ 40 });

impl Path {
    /// Somebody is writing it: no way back has this bit.
    const CLAIMED: u64 = Way::TAGGED;
    /// Nobody may have it any longer, but for those who have found it before: [`free_paths`].
    const LEAVING: u64 = Way::TAGGED | 2;
    const UDP: u64 = 1 << 48;

    /// `link`: of [`Way::link`], without tags; row of the backend, and the use of it that is meant; row of the frontend, row
    /// of the NAT address, and the backend's port as it stands in a header; address and port of the service as of
    /// [`client`].
    #[inline(always)]
    #[must_use]
    pub const fn new(
        link: u64,
        (backend, epoch): (u32, u32),
        (frontend, address, target): (u32, u8, u16),
        vip: u64,
        udp: bool,
        pair: u64,
    ) -> Self {
        Self {
            link,
            backend: backend as u64 | (epoch as u64) << 32,
            frontend: frontend as u64 | (address as u64) << 32 | (target as u64) << 48,
            vip: vip | if udp { Self::UDP } else { 0 },
            pair,
            reserved: [0; 3],
        }
    }

    /// The way back, now.
    #[inline(always)]
    #[must_use]
    pub fn link(&self) -> u64 {
        live(&self.link)
    }

    /// Of [`super::pair`].
    #[inline(always)]
    #[must_use]
    pub const fn pair(&self) -> u64 {
        self.pair
    }

    /// Row of the backend.
    #[inline(always)]
    #[must_use]
    pub const fn backend(&self) -> u32 {
        self.backend as u32
    }

    /// The use of that row that is meant.
    #[inline(always)]
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        (self.backend >> 32) as u32
    }

    /// The service's address, as it stands in a header.
    #[inline(always)]
    #[must_use]
    pub const fn address(&self) -> u32 {
        self.vip as u32
    }

    /// The service's port, as it stands in a header.
    #[inline(always)]
    #[must_use]
    pub const fn port(&self) -> u16 {
        (self.vip >> 32) as u16
    }

    /// Whether it is this one, but for its pair, which follows from the rest.
    #[inline(always)]
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.link() == other.link
            && self.backend == other.backend
            && self.frontend == other.frontend
            && self.vip == other.vip
    }

    const fn hash(&self) -> u32 {
        let h = (self.link ^ self.pair).wrapping_mul(0x9e37_79b1_85eb_ca87);
        let h = (h ^ h >> 32 ^ self.frontend).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        (h >> 40) as u32
    }
}

/// Whose packets look there: which of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Those of clients, by the hash of their flow.
    Forth,
    /// Those of backends, by the place of the entry.
    Back,
}

/// The two tables. Numbers of rows are taken modulo their size.
pub trait Rows {
    /// A row, now.
    fn row(&self, to: Direction, row: u32) -> Row;
    /// Replaces a row, if it still is `old`; whether it was. Nothing that follows is done before it.
    fn swap_row(&self, to: Direction, row: u32, old: Row, new: Row) -> bool;
}

/// First words of paths; their numbers are taken modulo [`PATHS`].
pub trait Links {
    /// That of a path, now: the way back.
    fn path_link(&self, number: u32) -> u64;
    /// Replaces it, if it still is `old`; whether it was.
    fn swap_path(&self, number: u32, old: u64, new: u64) -> bool;
}

/// Paths; their numbers are taken modulo [`PATHS`].
pub trait Paths: Links {
    /// A path.
    fn path(&self, number: u32) -> &Path;
    /// Writes all of a claimed one, and its first word last.
    fn write_path(&self, number: u32, path: &Path);
}

/// What a search for a client's row came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Its row.
    Row(Row),
    /// There is none, but room for one.
    Room,
    /// There is none, nor can there be one now.
    Full,
}

/// Where a client's row is in most cases, whoever's row stands there.
#[inline(always)]
pub fn first<T: Rows>(rows: &T, hash: u64) -> Row {
    rows.row(Direction::Forth, hash as u32)
}

/// The row of a client's packet; `first`: of [`first`]; `now`: seconds of the programs' clock.
#[inline(always)]
pub fn find<T: Rows>(
    rows: &T,
    hash: u64,
    client: u64,
    first: Row,
    now: impl FnOnce() -> u32,
) -> Search {
    if first.is_of(client) {
        return Search::Row(first);
    }
    let mut way = 1;
    while way < WAYS {
        let row = rows.row(Direction::Forth, hash as u32 ^ way);
        if row.is_of(client) {
            return Search::Row(row);
        }
        way += 1;
    }
    match room(rows, Direction::Forth, hash as u32, client, now()) {
        Some(_) => Search::Room,
        None => Search::Full,
    }
}

/// The row of a backend's packet, its path, and the way back to the client: of this pair, its NAT port, in host byte order,
/// and the place of its entry. That the path's backend still counts is for the caller to say.
#[inline(always)]
pub fn reply<T: Rows + Paths>(
    table: &T,
    (pair, place): (u64, u32),
    (ports, port): (Ports, u16),
    udp: bool,
    seed: u64,
) -> Option<(Row, &Path, u64)> {
    let mut way = 0;
    while way < WAYS {
        let row = table.row(Direction::Back, place ^ way);
        way += 1;
        let path = table.path(row.path());
        // First: who finds that the path counts has ended before it is another's ([`free_paths`]).
        let link = path.link();
        if live(&path.pair) != pair || link & Way::TAGGED != 0 || row.path() == 0 {
            continue;
        }
        let tuple = Tuple {
            src: Addr::v4(row.address()),
            dst: Addr::v4(path.address()),
            ports: u32::from(row.port()) | u32::from(path.port()) << 16,
            protocol: if udp { protocol::UDP } else { protocol::TCP },
        };
        if ports.candidate(hash::flow(&tuple, seed), row.candidate()) == port {
            return Some((row, path, link));
        }
    }
    None
}

/// Number of a path; 0: there is none, and no room for one more.
#[inline(always)]
fn number<T: Paths>(paths: &T, path: &Path) -> u32 {
    // All places first: those before its own may have become free.
    let mut probes = 0;
    while probes < 2 * PROBES {
        let number = path.hash().wrapping_add(probes & (PROBES - 1)) & (PATHS - 1);
        let known = probes < PROBES;
        probes += 1;
        if number == 0 {
            continue;
        }
        let place = paths.path(number);
        if known {
            if place.is(path) && place.pair == path.pair {
                return number;
            }
        } else if place.link() == 0 && paths.swap_path(number, 0, Path::CLAIMED) {
            paths.write_path(number, path);
            return number;
        }
    }
    0
}

/// Numbers of paths.
struct Numbers([u64; PATHS as usize / 64]);

impl Numbers {
    const fn add(&mut self, number: u32) {
        self.0[number as usize / 64] |= 1 << (number % 64);
    }

    const fn has(&self, number: u32) -> bool {
        self.0[number as usize / 64] >> (number % 64) & 1 != 0
    }

    /// Of all rows; `rows`: words of each table. Rows that nobody uses are taken away.
    fn of_rows<T: Rows>(table: &T, rows: u32, now: u32) -> Self {
        let mut used = Self([0; PATHS as usize / 64]);
        for to in [Direction::Forth, Direction::Back] {
            for number in 0..rows {
                let row = table.row(to, number);
                // Its use may be noted while this goes on.
                let free = row.is_free(now) && row.is_free(now.wrapping_add(SWEEP));
                let gone = free && table.swap_row(to, number, row, Row::NONE);
                if !gone {
                    used.add(row.path());
                }
            }
        }
        used
    }
}

/// How many paths have been given a number.
pub fn paths_used<T: Links>(paths: &T) -> u32 {
    (1..PATHS).filter(|&number| paths.path_link(number) != 0).count() as u32
}

/// Frees the paths that no row has, and rows that nobody uses; how many paths. `rows`: words of each table; `wait` ends when
/// all programs have that ran when it began.
///
/// A path that is to go first stops being given to rows; then, as all have ended that may have got it before, it is looked
/// for once more.
pub fn free_paths<T: Rows + Links>(table: &T, rows: u32, now: u32, wait: impl FnOnce()) -> u32 {
    let used = Numbers::of_rows(table, rows, now);
    let mut links = [0; PATHS as usize];
    for number in (1..PATHS).filter(|&number| !used.has(number)) {
        let link = table.path_link(number);
        if link != 0 && table.swap_path(number, link, Path::LEAVING) {
            links[number as usize] = link;
        }
    }
    if links.iter().all(|&link| link == 0) {
        return 0;
    }
    wait();
    let used = Numbers::of_rows(table, rows, now);
    let mut freed = 0;
    for (number, link) in (0..PATHS).zip(links).filter(|&(_, link)| link != 0) {
        let after = if used.has(number) { link } else { 0 };
        let done = table.swap_path(number, Path::LEAVING, after);
        freed += u32::from(done && after == 0);
    }
    freed
}

/// Writes the rows of the connection whose entry this is, if it is one that has rows: `frontend`: row of its service,
/// which wants no more than its ring, and which the packet named; `link`: the way back to who sent it. Client, VIP and
/// backend are of IPv4.
#[inline(always)]
pub fn keep<T: Rows + Paths + Entries>(
    table: &T,
    flow: &Flow,
    found: Found,
    ports: Ports,
    frontend: u32,
    link: u64,
) {
    let Some(entry) = table.entry(found.index()) else { return };
    let stamp = entry.stamp();
    let own = stamp.is_steady() && flow.owns(entry, stamp, found.port());
    if !own || entry.link() != link || link & Way::TAGGED != 0 {
        return;
    }
    let (udp, seen) = (stamp.is_udp(), stamp.seen());
    let of = client(flow.client.as_v4_raw(), flow.ports as u16);
    let path = Path::new(
        link,
        (flow.backend as u32, (flow.backend >> 32) as u32),
        (frontend, stamp.address(), flow.target()),
        client(flow.vip.as_v4_raw(), (flow.ports >> 16) as u16),
        udp,
        flow.pair,
    );
    let candidate = candidate(ports, flow.hash, found.port());
    let number = if candidate < CANDIDATES { number(table, &path) } else { 0 };
    let row = Row::new(of, candidate & (CANDIDATES - 1), number, udp, seen);
    let mut side = 0;
    while side < 2 {
        let (to, first) = match side {
            0 => (Direction::Forth, flow.hash as u32),
            _ => (Direction::Back, found.index()),
        };
        side += 1;
        let Some(place) = room(table, to, first, of, seen) else { continue };
        let own = table.swap_row(to, place, table.row(to, place), row);
        if own && !(entry.stamp().is_same(stamp) && entry.link() == link) {
            clear_row(table, to, place, of);
        }
    }
}

/// Which candidate of a flow's this port is, or [`CANDIDATES`]: none of those that rows can name.
#[inline(always)]
fn candidate(ports: Ports, hash: u64, port: u16) -> u32 {
    let mut n = 0;
    while n < CANDIDATES && ports.candidate(hash, n) != port {
        n += 1;
    }
    n
}

/// The row that a client gets: its own, or one that is nobody's or that nobody uses.
#[inline(always)]
fn room<T: Rows>(rows: &T, to: Direction, first: u32, client: u64, now: u32) -> Option<u32> {
    let mut free = None;
    // From the last one: of those that are free the first one is taken.
    let mut way = WAYS;
    while way > 0 {
        way -= 1;
        let row = rows.row(to, first ^ way);
        if row.is_of(client) {
            return Some(first ^ way);
        }
        if row.is_free(now) {
            free = Some(first ^ way);
        }
    }
    free
}

/// Takes away the rows of the connection that this entry, at this place, is or was of. Between the change of its state
/// and this there is an atomic exchange.
#[inline(always)]
pub fn forget<T: Rows>(rows: &T, index: u32, entry: &Entry, udp: bool, seed: u64) {
    if !entry.client().is_v4() || !entry.vip().is_v4() {
        return;
    }
    let ports = entry.ports() as u32;
    let protocol = if udp { protocol::UDP } else { protocol::TCP };
    let tuple = Tuple { src: entry.client(), dst: entry.vip(), ports, protocol };
    let of = client(entry.client().as_v4_raw(), ports as u16);
    clear(rows, Direction::Forth, hash::flow(&tuple, seed) as u32, of);
    clear(rows, Direction::Back, index, of);
}

#[inline(always)]
fn clear<T: Rows>(rows: &T, to: Direction, first: u32, client: u64) {
    let mut way = 0;
    while way < WAYS {
        clear_row(rows, to, first ^ way, client);
        way += 1;
    }
}

/// Takes a row away, if it is this client's, also if another CPU is just noting its use, as it may once more if it has seen
/// the entry before.
#[inline(always)]
fn clear_row<T: Rows>(rows: &T, to: Direction, place: u32, client: u64) {
    const TRIES: u32 = 4;
    let mut tries = 0;
    while tries < TRIES {
        let row = rows.row(to, place);
        if !row.is_of(client) || rows.swap_row(to, place, row, Row::NONE) {
            return;
        }
        tries += 1;
    }
}

/// Notes in the row back that the use of its entry has been noted.
#[inline(always)]
pub fn refresh<T: Rows>(rows: &T, index: u32, entry: &Entry) {
    let stamp = entry.stamp();
    let of = client(entry.client().as_v4_raw(), entry.ports() as u16);
    let mut way = 0;
    while way < WAYS {
        let row = rows.row(Direction::Back, index ^ way);
        if stamp.is_steady() && entry.client().is_v4() && row.is_of(of) {
            let now = row.seen(stamp.is_udp(), stamp.seen());
            rows.swap_row(Direction::Back, index ^ way, row, now);
            return;
        }
        way += 1;
    }
}

#[cfg(test)]
mod tests;
