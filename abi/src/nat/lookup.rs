//! Where a connection's entry is, and what is done when there is none.

use super::{
    entry::{Entry, Phase, Side, Stamp},
    quick,
};
use crate::addr::Addr;

/// NAT ports that a connection may have.
pub const CANDIDATES: u32 = 16;

const P1: u64 = 0x9e37_79b1_85eb_ca87;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const P3: u64 = 0x1656_67b1_9e37_79f9;

/// The table. Indexes are taken modulo its size.
pub trait Entries {
    /// An entry.
    fn entry(&self, index: u32) -> Option<&Entry>;
    /// Replaces the state word of an entry, if it still is `old`; whether it was.
    fn swap(&self, index: u32, old: Stamp, new: Stamp) -> bool;
    /// Writes all of a claimed entry, and its state word last.
    fn write(&self, index: u32, entry: &Entry);
    /// Adds to the connections that are counted of a backend.
    fn count(&self, _backend: u32, _more: i64) {}
    /// Takes away what else stands anywhere of the connection that an entry still says, although its state word has changed:
    /// [`quick::forget`]. `udp`: what it is.
    fn forget(&self, _index: u32, _udp: bool) {}
}

/// The range of NAT ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The first one, host byte order.
    pub first: u16,
    /// How many: with the first one, at most 65,536.
    pub count: u32,
}

impl Ports {
    /// One word: the first port, and in the high half how many less one.
    #[must_use]
    pub const fn to_word(self) -> u32 {
        self.first as u32 | (self.count - 1) << 16
    }

    /// From one word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u32) -> Self {
        Self { first: word as u16, count: (word >> 16) + 1 }
    }

    /// Whether it has this port, host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, port: u16) -> bool {
        (port.wrapping_sub(self.first) as u32) < self.count
    }

    /// The `n`th candidate of a connection, host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn candidate(self, hash: u64, n: u32) -> u16 {
        let h = (hash ^ (n as u64).wrapping_mul(P1)).wrapping_mul(P2);
        let h = (h ^ h >> 32) as u32;
        self.first.wrapping_add((((h as u64) * self.count as u64) >> 32) as u16)
    }
}

/// A connection as its client's packets show it, and the backend that it goes to. Words, so that a program can
/// put it aside while it searches.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Client.
    pub client: Addr,
    /// VIP.
    pub vip: Addr,
    /// Ports of client and VIP, as loaded from a header, 0, and the backend's as it stands in one.
    pub ports: u64,
    /// Row of the backend; in the high half the use of that row that is meant.
    pub backend: u64,
    /// Of [`Flow::identity`], and whether its backend's connections are counted.
    pub identity: u64,
    /// Of [`crate::hash::flow`].
    pub hash: u64,
    /// Of [`pair`].
    pub pair: u64,
}

const _: () = assert!(size_of::<Flow>() == 9 * 8);

impl Flow {
    /// Protocol, and row of the NAT address.
    #[inline(always)]
    #[must_use]
    pub const fn identity(udp: bool, address: u8) -> u64 {
        Stamp::from_word(0).renew(Phase::Never, udp, address, 0).identity()
    }

    /// The same of a service that counts the connections of its backends.
    #[inline(always)]
    #[must_use]
    pub const fn counted(identity: u64, counted: bool) -> u64 {
        Stamp::from_word(identity).with_counted(counted).to_word()
    }

    /// Whether an entry, with this state, is of the same client, service and ports, whatever its backend.
    #[inline(always)]
    pub(super) fn is_client_of(&self, entry: &Entry, stamp: Stamp) -> bool {
        stamp.stands()
            && entry.ports() as u32 == self.ports as u32
            && entry.client().lo() == self.client.lo()
            && entry.client().hi() == self.client.hi()
            && entry.vip().lo() == self.vip.lo()
            && entry.vip().hi() == self.vip.hi()
            && stamp.is_udp() == Stamp::from_word(self.identity).is_udp()
    }

    /// The backend's port as it stands in a header.
    #[inline(always)]
    #[must_use]
    pub const fn target(&self) -> u16 {
        (self.ports >> 48) as u16
    }

    #[inline(always)]
    const fn all_ports(&self, nat: u16) -> u64 {
        self.ports | (nat.to_be() as u64) << 32
    }

    /// Whether this entry, with this state, is the connection's.
    #[inline(always)]
    pub(super) fn owns(&self, entry: &Entry, stamp: Stamp, nat: u16) -> bool {
        stamp.stands()
            && entry.ports() == self.all_ports(nat)
            && entry.client().lo() == self.client.lo()
            && entry.client().hi() == self.client.hi()
            && entry.vip().lo() == self.vip.lo()
            && entry.vip().hi() == self.vip.hi()
            && stamp.identity() == Stamp::from_word(self.identity).identity()
            && entry.backend() == self.backend as u32
            && entry.epoch() == (self.backend >> 32) as u32
    }
}

/// Hash of the translated side without the NAT port: backend, its port as it stands in a header, NAT address.
#[inline(always)]
#[must_use]
pub const fn pair(backend: Addr, port: u16, address: Addr, udp: bool, seed: u64) -> u64 {
    let mut h = (backend.lo() ^ seed).wrapping_mul(P1);
    h ^= h >> 32;
    h = (h ^ address.lo()).wrapping_mul(P2);
    h ^= h >> 29;
    if !(backend.hi() == 0 && address.hi() == 0) {
        h = (h ^ backend.hi()).wrapping_mul(P1);
        h ^= h >> 32;
        h = (h ^ address.hi()).wrapping_mul(P2);
        h ^= h >> 29;
    }
    (h ^ port as u64 ^ (udp as u64) << 16).wrapping_mul(P3)
}

/// Place of the entry of a pair and a NAT port in host byte order; to be taken modulo the table's size.
#[inline(always)]
#[must_use]
pub const fn place(pair: u64, port: u16) -> u32 {
    let h = (pair ^ (pair >> 31) ^ (port as u64).wrapping_mul(P2)).wrapping_mul(P1);
    (h >> 32) as u32
}

/// What came of a lookup, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found(u64);

impl Found {
    /// There is no entry, and the packet does not open a connection.
    pub const NOTHING: Self = Self(0);
    /// All candidates are taken.
    pub const EXHAUSTED: Self = Self(1);
    const ENTRY: u64 = 1 << 63;

    /// An entry at this place, with this NAT port in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn entry(index: u32, port: u16) -> Self {
        Self(Self::ENTRY | index as u64 | (port as u64) << 32)
    }

    /// Whether there is an entry.
    #[inline(always)]
    #[must_use]
    pub const fn is_entry(self) -> bool {
        self.0 & Self::ENTRY != 0
    }

    /// Where it is.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0 as u32
    }

    /// The NAT port, host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn port(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// For a call that returns a number.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// Back from it.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }
}

/// The entry of a client's packet, if it is at the first candidate, as it nearly always is; else
/// [`Found::NOTHING`], and [`search`] tells more.
#[inline(always)]
pub fn first<T: Entries>(table: &T, flow: &Flow, ports: Ports) -> Found {
    let port = ports.candidate(flow.hash, 0);
    let index = place(flow.pair, port);
    match table.entry(index) {
        Some(entry) if flow.owns(entry, entry.stamp(), port) => Found::entry(index, port),
        _ => Found::NOTHING,
    }
}

/// The entry of a client's packet at any candidate, or a new one at a free one if the packet `opens` a
/// connection; `link` is the way back.
#[inline(always)]
pub fn search<T: Entries>(
    table: &T,
    flow: &Flow,
    ports: Ports,
    opens: bool,
    link: u64,
    now: u32,
) -> Found {
    let mut n = 0;
    while n < CANDIDATES {
        let port = ports.candidate(flow.hash, n);
        let index = place(flow.pair, port);
        let Some(entry) = table.entry(index) else { return Found::NOTHING };
        let stamp = entry.stamp();
        if stamp.is_untouched() {
            break;
        }
        if flow.owns(entry, stamp, port) {
            return Found::entry(index, port);
        }
        n += 1;
    }
    if !opens {
        return Found::NOTHING;
    }
    // Free ones first, then those that are over.
    let mut tries = 0;
    while tries < 2 * CANDIDATES {
        let port = ports.candidate(flow.hash, tries & (CANDIDATES - 1));
        let index = place(flow.pair, port);
        let Some(entry) = table.entry(index) else { return Found::NOTHING };
        let stamp = entry.stamp();
        let free = stamp.is_free(now) || (tries >= CANDIDATES && stamp.is_over());
        if free && claim(table, flow, index, port, stamp, link, now) {
            return Found::entry(index, port);
        }
        // Another CPU may just have made this very connection's: a second one would have another port.
        let after = written(entry);
        if flow.owns(entry, after, port) {
            return Found::entry(index, port);
        }
        // It may be about to: the packet that comes next will know.
        if after.is_claimed() {
            return Found::NOTHING;
        }
        tries += 1;
    }
    Found::EXHAUSTED
}

/// The state of an entry, once whoever is writing it is done, if that is soon.
#[inline(always)]
fn written(entry: &Entry) -> Stamp {
    /// Looks until then: the writer has eight words to write, and may be interrupted.
    const LOOKS: u32 = 16;
    let mut stamp = entry.stamp();
    let mut looks = 0;
    while stamp.is_claimed() && looks < LOOKS {
        stamp = entry.stamp();
        looks += 1;
    }
    stamp
}

#[inline(always)]
fn claim<T: Entries>(
    table: &T,
    flow: &Flow,
    index: u32,
    port: u16,
    before: Stamp,
    link: u64,
    now: u32,
) -> bool {
    let mine = Stamp::from_word(flow.identity);
    let claimed = before
        .renew(Phase::Claimed, mine.is_udp(), mine.address(), now)
        .with_counted(mine.is_counted());
    if !table.swap(index, before, claimed) {
        return false;
    }
    if !before.is_untouched() {
        table.forget(index, before.is_udp());
    }
    // What fell silent was not seen to end.
    if before.is_counted()
        && before.stands()
        && !before.is_over()
        && let Some(silent) = table.entry(index)
    {
        table.count(silent.backend(), -1);
    }
    if mine.is_counted() {
        table.count(flow.backend as u32, 1);
    }
    let ends = [flow.client, flow.vip];
    let open = claimed.with_phase(Phase::Opening);
    table.write(
        index,
        &Entry::new(
            open,
            link,
            ends,
            flow.all_ports(port),
            flow.backend as u32,
            (flow.backend >> 32) as u32,
        ),
    );
    true
}

/// Whether a packet changes an entry's state, or its use is to be noted, and [`note`] has to be called.
#[inline(always)]
#[must_use]
pub fn changes(entry: &Entry, side: Side, flags: u8, now: u32) -> bool {
    let stamp = entry.stamp();
    !stamp.stays(side, flags, now) || quick::is_due(entry, stamp, now)
}

/// Notes a packet in an entry's state.
#[inline(always)]
pub fn note<T: Entries>(table: &T, index: u32, side: Side, flags: u8, now: u32) {
    let mut tries = 0;
    // Another CPU may do the same for the other direction.
    while tries < 2 {
        let Some(entry) = table.entry(index) else { return };
        let before = entry.stamp();
        let after = before.after(side, flags, now);
        if !before.stands() || before == after {
            return;
        }
        if table.swap(index, before, after) {
            if before.is_steady() && !after.is_steady() {
                table.forget(index, before.is_udp());
            }
            let more = before.more(after);
            if more != 0 {
                table.count(entry.backend(), more);
            }
            return;
        }
        tries += 1;
    }
}

/// A backend's packet: what it is of.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// Place of the entry.
    pub index: u32,
    /// Ports of backend and NAT address, as loaded from a header.
    pub ports: u32,
    /// Whether it is UDP.
    pub udp: bool,
}

/// The entry of a backend's packet, if it may be its: the caller compares NAT address and backend with the rows
/// that the entry names.
#[inline(always)]
pub fn reply<'t, T: Entries>(table: &'t T, reply: &Reply) -> Option<(&'t Entry, Stamp)> {
    let entry = table.entry(reply.index)?;
    let stamp = entry.stamp();
    let own = stamp.stands()
        && (entry.ports() >> 32) as u32 == reply.ports.rotate_left(16)
        && stamp.is_udp() == reply.udp;
    own.then_some((entry, stamp))
}

#[cfg(test)]
pub(super) mod tests;
