//! Connections that the data path has an entry for: what they are, and which of them somebody asks about.
//!
//! Pure. [`crate::datapath::bpf`] reads them from the tables, the API shows and removes them.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use config::model::Protocol;

/// The table that an entry stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Translated connections.
    Nat,
    /// Flows that the ring alone would not send where they go.
    Flows,
}

impl Table {
    /// Name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Flows => "flows",
        }
    }
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Where it stands.
    pub table: Table,
    /// `None` for all that a client has with a service: client-IP affinity.
    pub protocol: Option<Protocol>,
    /// Client; the port is 0 where the entry has none.
    pub client: SocketAddr,
    /// Address and port of the service that the client uses; `None` for affinity.
    pub vip: Option<SocketAddr>,
    /// What stands in the client's place at the backend, of translated ones.
    pub nat: Option<SocketAddr>,
    /// Backend; the port is that of the service where it is not translated.
    pub backend: SocketAddr,
    /// Row of the backend.
    pub row: u32,
    /// Of translated ones those of [`abi::nat::Phase`]; else `opening`, `open`, `closed`, `moved`: it stays with
    /// its backend although its slot has another one, or `affinity`.
    pub state: &'static str,
    /// Seconds since the last packet that was noted; `None` where nobody notes them.
    pub idle: Option<u32>,
    /// Seconds until it makes room, if no packet comes.
    pub expires: Option<u32>,
}

/// What becomes of an entry that was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit {
    /// It stays.
    Keep,
    /// It is removed, unless a packet changes it meanwhile.
    Remove,
}

/// The states that an entry can have, in either table.
pub const STATES: [&str; 10] = [
    "opening",
    "answered",
    "established",
    "closing",
    "closed",
    "reset",
    "open",
    "moved",
    "affinity",
    "none",
];

/// The room that NAT has, and whether it was enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatUse {
    /// Entries of connections that have not expired.
    pub used: u64,
    /// Entries in all; 0 without services behind NAT.
    pub capacity: u64,
    /// Packets that opened a connection and got no port, in the last minute.
    pub refused: u64,
}

/// What helps when connections get no port.
pub const REMEDY: &str = "more of node.nat: addresses, ports or entries mend it";

/// How long a connection that got no port is worth a warning.
pub const LATELY: Duration = Duration::from_secs(60);

/// How far a counter has grown lately.
#[derive(Debug, Default)]
pub struct Growth(VecDeque<(Duration, u64)>);

impl Growth {
    /// Notes what it counts `now`; says how far it grew since the time before.
    pub fn note(&mut self, now: Duration, count: u64) -> u64 {
        let before = self.0.back().map_or(count, |&(_, before)| before);
        // One that is as old as can be stays: growth is counted from there.
        while self.0.get(1).is_some_and(|&(at, _)| at + LATELY <= now) {
            self.0.pop_front();
        }
        self.0.push_back((now, count));
        count.saturating_sub(before)
    }

    /// How far it grew in the time up to the last note.
    #[must_use]
    pub fn lately(&self) -> u64 {
        let of = |end: Option<&(Duration, u64)>| end.map_or(0, |&(_, count)| count);
        of(self.0.back()).saturating_sub(of(self.0.front()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_forgotten_after_a_minute() {
        let at = Duration::from_secs;
        let mut growth = Growth::default();
        // What was counted by an earlier process is old.
        assert_eq!((growth.note(at(5), 7), growth.lately()), (0, 0));
        assert_eq!((growth.note(at(10), 9), growth.lately()), (2, 2));
        assert_eq!((growth.note(at(15), 9), growth.lately()), (0, 2));
        assert_eq!((growth.note(at(69), 10), growth.lately()), (1, 3));
        assert_eq!((growth.note(at(70), 10), growth.lately()), (0, 1));
        assert_eq!((growth.note(at(75), 10), growth.lately()), (0, 1));
        assert_eq!((growth.note(at(130), 10), growth.lately()), (0, 0));
    }
}
