//! Entries of connections, read and removed while programs use them: on mappings of their own, so that nobody
//! waits for the owner, nor the owner for a table of millions.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{Ordering, fence},
    time::Duration,
};

use abi::{
    choice,
    flow::{FlowEntry, FlowKey, Stage, table as flows, tag::Tag},
    nat::{Entry, Phase, Stamp, quick},
    table::{Backend, NatAddress},
    wire::protocol,
};
use config::model::Protocol;
use nix::time::{ClockId, clock_gettime};

use super::{Mapped, load, nat::Rows};
use crate::conntrack::{Connection, Table, Visit};

/// The tables of connections, and what their entries name.
pub(super) struct Connections {
    pub(super) nat: Mapped<Entry>,
    pub(super) rows: Rows,
    /// Of the hash of flows.
    pub(super) seed: u64,
    pub(super) addresses: Mapped<NatAddress>,
    pub(super) backends: Mapped<Backend>,
    pub(super) flows: Mapped<flows::Entry>,
    pub(super) tags: Mapped<u64>,
}

impl Connections {
    /// Shows every entry. Those that come or go meanwhile may be missed.
    pub(super) fn visit(&self, visit: &mut dyn FnMut(&Connection) -> Visit) {
        self.visit_nat(visit);
        self.visit_flows(visit);
    }

    /// Entries of the NAT table that are in use, and all.
    pub(super) fn nat_use(&self) -> (u64, u64) {
        if self.nat.len <= 1 {
            return (0, 0);
        }
        let now = seconds();
        let stamps = (0..self.nat.len).map(|row| self.stamp(row));
        (stamps.filter(|stamp| !stamp.is_free(now)).count() as u64, self.nat.len.into())
    }

    fn stamp(&self, row: u32) -> Stamp {
        Stamp::from_word(self.nat.word(row, Entry::STATE).load(Ordering::Acquire))
    }

    fn visit_nat(&self, visit: &mut dyn FnMut(&Connection) -> Visit) {
        let now = seconds();
        for row in 0..self.nat.len {
            let stamp = self.stamp(row);
            if !stamp.stands() || stamp.is_free(now) {
                continue;
            }
            let entry = self.nat.read(row);
            // Another connection may have taken the place while it was read.
            if self.stamp(row).turn() != stamp.turn() {
                continue;
            }
            let Some(connection) = self.translated(&entry, stamp, now) else { continue };
            if visit(&connection) == Visit::Remove {
                self.remove(row, stamp.turn());
            }
        }
    }

    /// Removes what stands in a row, if it still is the same connection.
    fn remove(&self, row: u32, turn: u16) {
        let word = self.nat.word(row, Entry::STATE);
        let removed = |word: u64| {
            let stamp = Stamp::from_word(word);
            let same = stamp.stands() && stamp.turn() == turn;
            same.then(|| stamp.with_phase(Phase::Removed).to_word())
        };
        // Else somebody else's removal, or the next connection: either way it is gone.
        if let Ok(before) = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, removed) {
            fence(Ordering::SeqCst);
            let (entry, udp) = (self.nat.read(row), Stamp::from_word(before).is_udp());
            quick::forget(&self.rows, row, &entry, udp, self.seed);
        }
    }

    fn translated(&self, entry: &Entry, stamp: Stamp, now: u32) -> Option<Connection> {
        let row = entry.backend();
        let backend = self.backend(row, entry.epoch())?;
        let port = |n: u32| u16::from_be((entry.ports() >> (16 * n)) as u16);
        let nat: IpAddr = self.addresses.read(stamp.address().into()).addr.into();
        let idle = now.saturating_sub(stamp.seen());
        Some(Connection {
            table: Table::Nat,
            protocol: Some(if stamp.is_udp() { Protocol::Udp } else { Protocol::Tcp }),
            client: SocketAddr::new(entry.client().into(), port(0)),
            vip: Some(SocketAddr::new(entry.vip().into(), port(1))),
            nat: Some(SocketAddr::new(nat, port(2))),
            backend: SocketAddr::new(backend, port(3)),
            row,
            state: stamp.phase().name(),
            idle: Some(idle),
            expires: Some(stamp.lifetime().saturating_sub(idle)),
        })
    }

    /// The address in this use of a row.
    fn backend(&self, row: u32, epoch: u32) -> Option<IpAddr> {
        let backend = (row < self.backends.len).then(|| self.backends.read(row))?;
        (backend.epoch() == epoch).then(|| backend.addr().into())
    }

    fn visit_flows(&self, visit: &mut dyn FnMut(&Connection) -> Visit) {
        let now = monotonic().as_nanos() as u64;
        for (row, entry) in flows(&self.flows) {
            let Some(connection) = self.flow(&entry.key(), &entry.value(), now) else { continue };
            if visit(&connection) == Visit::Remove {
                let removed = |word: u64| {
                    let stamp = flows::Stamp::from_word(word);
                    stamp.is_same(entry.stamp()).then(|| stamp.removed().to_word())
                };
                let word = self.flows.word(row, flows::Entry::STATE);
                // Another one's removal, or the next entry: either way it is gone.
                if word.fetch_update(Ordering::AcqRel, Ordering::Acquire, removed).is_ok() {
                    // Afterwards, as whoever leaves a tag looks afterwards whether the entry stands.
                    self.tags.store(row, 0, Tag::NONE.to_word());
                }
            }
        }
    }

    fn flow(&self, key: &FlowKey, entry: &FlowEntry, now: u64) -> Option<Connection> {
        let backend = self.backend(entry.backend(), entry.epoch())?;
        let tuple = key.tuple();
        let port = |n: u32| u16::from_be((tuple.ports >> (16 * n)) as u16);
        let moved = entry.seen() == 0;
        let affinity = key.protocol() == 0;
        let backends = self.backends.read(entry.backend());
        if !moved && !affinity && !choice::is_active(key, entry, &backends, now) {
            return None;
        }
        let idle = now.saturating_sub(entry.seen()) / 1_000_000_000;
        Some(Connection {
            table: Table::Flows,
            protocol: match tuple.protocol {
                protocol::TCP => Some(Protocol::Tcp),
                protocol::UDP => Some(Protocol::Udp),
                protocol::SCTP => Some(Protocol::Sctp),
                _ => None,
            },
            client: SocketAddr::new(tuple.src.into(), port(0)),
            vip: (!affinity).then(|| SocketAddr::new(tuple.dst.into(), port(1))),
            nat: None,
            backend: SocketAddr::new(backend, port(1)),
            row: entry.backend(),
            state: match entry.stage() {
                _ if affinity => "affinity",
                _ if moved => "moved",
                Stage::Opening => "opening",
                Stage::Open => "open",
                Stage::Closed => "closed",
            },
            idle: (!moved).then_some(idle.min(u32::MAX.into()) as u32),
            expires: None,
        })
    }
}

/// Connection entries, and their rows.
pub(super) fn flows(
    table: &Mapped<flows::Entry>,
) -> impl Iterator<Item = (u32, flows::Entry)> + use<'_> {
    (0..table.len).filter_map(|row| {
        let word = table.word(row, flows::Entry::STATE);
        let stamp = || flows::Stamp::from_word(word.load(Ordering::Acquire));
        let before = stamp();
        if !before.stands() {
            return None;
        }
        let entry = table.read(row);
        fence(Ordering::Acquire);
        // Another one may have taken the row while it was read.
        (entry.stamp().is_same(before) && stamp().is_same(before)).then_some((row, entry))
    })
}

fn monotonic() -> Duration {
    // The clock that programs read.
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from).unwrap_or_default()
}

/// What [`abi::nat`]'s entries count in, to a second: the kernel's ticks begin five minutes before they, as 32
/// bits, wrap around (`INITIAL_JIFFIES` of include/linux/jiffies.h).
pub(super) fn seconds() -> u32 {
    let tick = load::tick();
    let hz = (1 << 32) / tick.max(1);
    let since_boot = monotonic().as_nanos() * u128::from(hz) / 1_000_000_000;
    let ticks = (1u64 << 32) - 300 * hz + since_boot as u64;
    (ticks.wrapping_mul(tick) >> 32) as u32
}
