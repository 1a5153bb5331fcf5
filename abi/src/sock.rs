//! Translation of a socket's peer: from an address and port of a service to a backend's.
//!
//! For processes on this machine, whose packets to a service no XDP program sees. It reads the same
//! tables as the packet path, once for each connection: the packets then go to the backend as if the
//! process had asked for it. Pure over [`Tables`], like [`crate::pick`].

use crate::{
    addr::Addr,
    hash,
    pick::{self, Tables},
    ranges, routes,
    table::{Frontend, FrontendKey, Kind, Ring, Slot, shared},
    wire::protocol,
};

/// Slots that are tried before a connection is left alone, so that one of several backends that are
/// down, or of the other family, does not keep it from the rest.
pub const TRIES: u32 = 16;

/// An address and port, as a socket knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// IPv4 addresses in their mapped form.
    pub addr: Addr,
    /// As it stands in a header, in network byte order.
    pub port: u16,
}

/// Where a new connection, or a datagram, of a process goes instead. `hash` spreads: a random number,
/// or one that stays the same for what shall go to the same backend.
///
/// `client` is the address that the socket is bound to, of either family; the unspecified one if it is bound to
/// none: the kernel gives it one later, on the way to the backend, so that nobody knows it yet. Such a socket
/// is everybody's: it may use a service, or is routed to a group of its backends, only where all clients are.
///
/// `None`: nothing is to be changed. That is so for whatever is not for a service, for a service none
/// of whose backends is up and of the family of the address (a socket of one family cannot send to
/// the other), and for one that this client may not use.
#[inline(always)]
pub fn translate<T: Tables>(
    tables: &T,
    client: Addr,
    peer: Peer,
    protocol: u8,
    hash: u64,
) -> Option<Peer> {
    let frontend = service(tables, peer, protocol)?;
    let v4 = peer.addr.is_v4();
    // One of the other family is none: `::` of a socket that reaches IPv4 addresses in their mapped form.
    let unknown = if v4 { Addr::v4(0) } else { Addr::default() };
    let client = if client.is_v4() == v4 { client } else { unknown };
    let (hi, lo) = (client.hi(), client.lo());
    let sources = frontend.ranges();
    if sources != 0 && !ranges::contains(tables, sources, hi, lo) {
        return None;
    }
    let group = routes::group(tables, frontend, hi, lo);
    let group = tables.frontend(group).map_or(Ring::default(), Frontend::ring);
    let addr =
        backend(tables, group, hash, v4).or_else(|| backend(tables, frontend.ring(), hash, v4))?;
    let port = match frontend.target_port() {
        0 => peer.port,
        target => target,
    };
    Some(Peer { addr, port })
}

/// The service of an address and port: one of this port, else of a range that it is in, else of every port.
#[inline(always)]
fn service<T: Tables>(tables: &T, peer: Peer, protocol: u8) -> Option<&Frontend> {
    if !(protocol == protocol::TCP || protocol == protocol::UDP) || peer.port == 0 {
        return None;
    }
    let key = FrontendKey::raw(peer.addr, peer.port, protocol);
    if let Some((_, frontend)) = pick::frontend(tables, &key) {
        return Some(frontend);
    }
    let (_, vip) = pick::frontend(tables, &FrontendKey::vip(peer.addr))?;
    let frontend = tables.frontend(pick::other_port(tables, vip, peer.port, protocol)?)?;
    (frontend.kind() == Kind::Service).then_some(frontend)
}

/// A backend for what begins now: the current one of the slot, or of another slot.
#[inline(always)]
fn backend<T: Tables>(tables: &T, ring: Ring, hash: u64, v4: bool) -> Option<Addr> {
    if ring.size == 0 {
        return None;
    }
    let mut hash = hash;
    let mut tries = 0;
    while tries < TRIES {
        let index = ring.offset.wrapping_add(hash::slot(hash, ring.size));
        let row = Slot::from_word(tables.slot(index)?).current;
        if let Some(backend) = tables.backend(row)
            && !backend.state().down
            && backend.addr().is_v4() == v4
        {
            return Some(backend.addr());
        }
        hash = hash::again(hash);
        tries += 1;
    }
    None
}

/// Key of the table of translated peers: a socket, and the backend that it talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerKey {
    cookie: u64,
    addr: Addr,
    port: u64,
}

shared!(PeerKey, 32, { cookie @ 0, addr @ 8, port @ 24 });

impl PeerKey {
    /// `cookie` is the kernel's number of the socket, which is never used again.
    #[inline(always)]
    #[must_use]
    pub const fn new(cookie: u64, backend: Peer) -> Self {
        Self { cookie, addr: backend.addr, port: backend.port as u64 }
    }
}

/// Value of the table of translated peers: the service that the process asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerEntry {
    addr: Addr,
    port: u64,
}

shared!(PeerEntry, 24, { addr @ 0, port @ 16 });

impl PeerEntry {
    /// An entry.
    #[inline(always)]
    #[must_use]
    pub const fn new(service: Peer) -> Self {
        Self { addr: service.addr, port: service.port as u64 }
    }

    /// Whom the process talks to, as it knows it.
    #[inline(always)]
    #[must_use]
    pub const fn service(&self) -> Peer {
        Peer { addr: self.addr, port: self.port as u16 }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::IpAddr;
    use std::{collections::BTreeSet, vec, vec::Vec};

    use super::*;
    use crate::{
        flow::{FlowEntry, FlowKey},
        ranges::Ranges,
        table::{Backend, Bucket, HopWord, Mode, State},
    };

    /// Tables with one bucket.
    struct Vectors {
        bucket: Bucket,
        frontends: Vec<Frontend>,
        slots: Vec<u64>,
        backends: Vec<Backend>,
    }

    impl Tables for Vectors {
        fn vip_bit(&self, _hash: u64, _folded: u64) -> bool {
            true
        }

        fn salt(&self) -> u64 {
            5
        }
        fn bucket(&self, _: u64) -> &Bucket {
            &self.bucket
        }
        fn frontend(&self, row: u32) -> Option<&Frontend> {
            self.frontends.get(row as usize)
        }
        fn slot(&self, index: u32) -> Option<u64> {
            self.slots.get(index as usize).copied()
        }
        fn backend(&self, row: u32) -> Option<&Backend> {
            self.backends.get(row as usize)
        }
        fn flow(&self, _: &FlowKey, _: u64) -> Option<FlowEntry> {
            unreachable!("connections have no entries here")
        }
        fn remember(&self, _: &FlowKey, _: u64, _: &FlowEntry) {
            unreachable!("connections have no entries here")
        }
        fn admit(&self) -> bool {
            unreachable!("connections have no entries here")
        }
    }

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn peer(text: &str, port: u16) -> Peer {
        Peer { addr: addr(text), port: port.to_be() }
    }

    const VIP: &str = "203.0.113.10";
    const UNBOUND: Addr = Addr::v4(0);

    /// `VIP` with port 80 to port 8080, and port 0 for UDP; two slots for each backend.
    fn tables(backends: &[(&str, bool)]) -> Vectors {
        let size = backends.len() as u32 * 2;
        let ring = Ring { offset: 3, size, resizing: false };
        let web = FrontendKey::new(addr(VIP), 80, 6);
        let any = FrontendKey::new(addr(VIP), 0, 17);
        let frontends = vec![
            Frontend::service(web, Mode::Ipip, ring, 1).with_target_port(8080),
            Frontend::service(any, Mode::Ipip, ring, 2),
            Frontend::vip(addr(VIP), None, Some(1)),
        ];
        let mut words = [0; 4];
        for (row, frontend) in frontends.iter().enumerate() {
            words[row] = Bucket::entry(frontend.key().place(5).1, row as u32);
        }
        let row = |&(text, down): &(&str, bool)| {
            let state = State { down, ..State::default() };
            Backend::new(addr(text), HopWord::UNRESOLVED, state, 1, 1)
        };
        let slot = |i: u32| Slot { current: i / 2, previous: Slot::NONE }.to_word();
        Vectors {
            bucket: Bucket::from_words(words),
            frontends,
            slots: [u64::MAX; 3].into_iter().chain((0..size).map(slot)).collect(),
            backends: backends.iter().map(row).collect(),
        }
    }

    fn hashes() -> impl Iterator<Item = u64> {
        (0..64u64).map(|i| crate::hash::again(i << 32 | i))
    }

    #[test]
    fn connections_spread_over_backends_at_their_port() {
        let tables = tables(&[("10.0.0.1", false), ("10.0.0.2", false), ("10.0.0.3", false)]);
        let seen: BTreeSet<Addr> = hashes()
            .map(|hash| {
                let to = translate(&tables, UNBOUND, peer(VIP, 80), 6, hash).unwrap();
                assert_eq!(to.port, 8080u16.to_be());
                to.addr
            })
            .collect();
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn the_same_hash_goes_to_the_same_backend() {
        let tables = tables(&[("10.0.0.1", false), ("10.0.0.2", false)]);
        for hash in hashes() {
            let to = |port| translate(&tables, UNBOUND, peer(VIP, port), 17, hash).unwrap();
            assert_eq!((to(53).addr, to(53).port), (to(99).addr, 53u16.to_be()));
        }
    }

    #[test]
    fn backends_that_are_down_or_of_the_other_family_get_nothing() {
        let up = ("10.0.0.3", false);
        let tables = tables(&[("10.0.0.1", true), ("2001:db8::2", false), up]);
        for hash in hashes() {
            let to = translate(&tables, UNBOUND, peer(VIP, 80), 6, hash);
            assert!(to.is_none_or(|to| to.addr == addr("10.0.0.3")), "{to:?}");
        }
        let found =
            hashes().filter(|&h| translate(&tables, UNBOUND, peer(VIP, 80), 6, h).is_some());
        assert!(found.count() >= 60, "of 64, with {TRIES} tries and one backend in three");
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        let up = tables(&[("10.0.0.1", false)]);
        let down = tables(&[("10.0.0.1", true)]);
        let none = tables(&[]);
        let mut ranges = tables(&[("10.0.0.1", false)]);
        ranges.frontends[0].set_ranges(Ranges { offset: 0, count: 0, only: true }.to_word());
        for (what, tables, to, protocol) in [
            ("another address", &up, peer("203.0.113.11", 80), 6),
            ("another port", &up, peer(VIP, 81), 6),
            ("port 0", &up, peer(VIP, 0), 17),
            ("ICMP", &up, peer(VIP, 80), 1),
            ("no protocol", &up, peer(VIP, 80), 0),
            ("no backend up", &down, peer(VIP, 80), 6),
            ("only for some sources", &ranges, peer(VIP, 80), 6),
            ("no backend", &none, peer(VIP, 80), 6),
            ("a backend", &up, peer("10.0.0.1", 8080), 6),
        ] {
            assert_eq!(translate(tables, UNBOUND, to, protocol, 7), None, "{what}");
        }
    }

    /// A bound socket is the client that it says; one that is not is in no prefix but that of all clients. So it is with
    /// `::` for a socket that reaches IPv4 by IPv6.
    #[test]
    fn clients_that_are_bound_go_by_their_prefixes() {
        let group = FrontendKey::group(addr(VIP), 9);
        // Who may use it, who is routed to the group, and whether the group is up.
        let set = |sources: Option<(&str, &str)>, routed: (&str, &str), down: bool| {
            let mut tables = tables(&[("10.0.0.1", false), ("10.0.9.1", down)]);
            let ring = |slot: u32| Ring { offset: 3 + 2 * slot, size: 2, resizing: false };
            tables.frontends[0].set_ring(ring(0));
            let at = tables.slots.len() as u32;
            let (range, used) = routes::encode(addr(routed.0), addr(routed.1), group);
            tables.slots.push(1);
            tables.slots.extend(&range[..used]);
            tables.frontends[0].set_any(Frontend::special_word(None, Some(at)));
            if let Some((first, last)) = sources {
                let offset = tables.slots.len() as u32;
                tables.slots.push(ranges::encode(addr(first), addr(last)).0[0]);
                let only = Ranges { offset, count: 1, only: true };
                tables.frontends[0].set_ranges(only.to_word());
            }
            let row = tables.frontends.len() as u32;
            tables.frontends.push(Frontend::service(group, Mode::Ipip, ring(1), 3));
            let mut words = tables.bucket.words();
            words[row as usize] = Bucket::entry(group.place(5).1, row);
            tables.bucket = Bucket::from_words(words);
            tables
        };
        let office = ("192.0.2.0", "192.0.2.255");
        let all = ("0.0.0.0", "255.255.255.255");
        let (own, theirs) = (Some("10.0.0.1"), Some("10.0.9.1"));
        for (sources, routed, down, client, wanted) in [
            (None, office, false, "192.0.2.7", theirs),
            (None, office, false, "192.0.3.7", own),
            (None, office, false, "0.0.0.0", own),
            (None, office, false, "::", own),
            (None, office, false, "2001:db8::1", own),
            (None, office, true, "192.0.2.7", own),
            (None, all, false, "0.0.0.0", theirs),
            (None, all, false, "::", theirs),
            (Some(office), all, false, "192.0.2.7", theirs),
            (Some(office), all, false, "192.0.3.7", None),
            (Some(office), all, false, "0.0.0.0", None),
            (Some(all), office, false, "0.0.0.0", own),
        ] {
            let tables = set(sources, routed, down);
            for hash in hashes() {
                let to = translate(&tables, addr(client), peer(VIP, 80), 6, hash);
                let to = to.map(|to| to.addr);
                assert_eq!(to, wanted.map(addr), "{client}, {sources:?}, {routed:?}, {down}");
            }
        }
    }

    #[test]
    fn frozen_images() {
        let to = peer("10.0.0.1", 8080);
        // SAFETY: `repr(C)` of integers without padding, of this size.
        let key: [u8; 32] = unsafe { core::mem::transmute(PeerKey::new(7, to)) };
        assert_eq!(key[..8], [7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(key[18..], [0xff, 0xff, 10, 0, 0, 1, 0x1f, 0x90, 0, 0, 0, 0, 0, 0]);
        // SAFETY: as above.
        let entry: [u8; 24] = unsafe { core::mem::transmute(PeerEntry::new(to)) };
        assert_eq!(entry[10..], [0xff, 0xff, 10, 0, 0, 1, 0x1f, 0x90, 0, 0, 0, 0, 0, 0]);
        assert_eq!(PeerEntry::new(to).service(), to);
    }
}
