//! Services whose backend is not simply the ring's: clients that stay with their backend, flows that are
//! spread at random or to where there are fewest, packets that name their server.
//!
//! Pure over [`Tables`], as [`crate::pick`], which is the fast path and knows nothing of all this. What a
//! service wants stands in a few words of the arena that rings stand in too; a frontend row says where.

use crate::{
    addr::Addr,
    flow::{FlowEntry, FlowKey, Stage},
    hash::{self, Tuple},
    pick::{self, Phase, Tables},
    table::{Backend, Frontend, Ring, Slot},
};

/// What choosing takes beside the tables.
pub trait Tracking: Tables {
    /// Stores when a flow was seen ([`FlowEntry::seen_word`]) in its entry, if it has one; `hash`: of its key.
    fn touch(&self, key: &FlowKey, hash: u64, seen: u64);
    /// Adds to the connections of a backend.
    fn add_active(&self, row: u32, more: i64);
    /// Nanoseconds since boot, to a few milliseconds.
    fn now(&self) -> u64;
    /// Any number.
    fn random(&self) -> u64;
    /// Seed of the flow hash.
    fn seed(&self) -> u64;
}

/// A flow that has begun and not gone on is forgotten after this long.
pub const OPENING_NS: u64 = 10_000_000_000;
/// Datagrams from one address and port are of one conversation if they are no further apart (RFC 4787 asks
/// for 2 minutes at least).
pub const DATAGRAMS_NS: u64 = 120_000_000_000;
/// A connection without a packet for this long counts for nothing any more (RFC 5382: 2 hours and 4 minutes).
pub const IDLE_NS: u64 = 7_440_000_000_000;
/// How old the note of when a flow was seen may become.
const REFRESH_NS: u64 = 1_000_000_000;
/// Slots of the ring that are drawn to find the backend with the fewest connections.
pub const DRAWS: u32 = 8;
/// Stands for no server id.
pub const NO_ID: u64 = u64::MAX;

/// How new flows are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    /// By the hash of the flow.
    #[default]
    Hash,
    /// At random, by weight.
    Random,
    /// To the backend with the fewest connections of [`DRAWS`] that are drawn by weight.
    Fewest,
}

/// What a service wants beyond its ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// How new flows are spread.
    pub spread: Spread,
    /// Every flow has an entry.
    pub track: bool,
    /// Every flow has an entry elsewhere: [`crate::nat`].
    pub nat: bool,
    /// For how long after its last packet a client stays with its backend, in nanoseconds; 0: it does not.
    pub stay_ns: u64,
    /// Servers are named in a TCP option.
    pub tcp_option: bool,
    /// Servers are named in a header of UDP's payload.
    pub udp_header: bool,
    /// Bytes of a server id in a QUIC connection id, 1 to 8; 0: no port is for QUIC.
    pub quic_len: u8,
    /// Server ids: `0..ids` stand in the table.
    pub ids: u32,
}

impl Choice {
    /// Words before the table of server ids: flags, stay, number of ids.
    pub const WORDS: u32 = 3;
    const RANDOM: u64 = 1;
    const FEWEST: u64 = 2;
    const TRACK: u64 = 4;
    const TCP_OPTION: u64 = 8;
    const UDP_HEADER: u64 = 16;
    const NAT: u64 = 32;
    const QUIC_SHIFT: u32 = 8;

    /// Its words.
    #[must_use]
    pub const fn to_words(self) -> [u64; Self::WORDS as usize] {
        const fn bit(set: bool, bit: u64) -> u64 {
            if set { bit } else { 0 }
        }
        let spread = match self.spread {
            Spread::Hash => 0,
            Spread::Random => Self::RANDOM,
            Spread::Fewest => Self::FEWEST,
        };
        let flags = spread
            | bit(self.track, Self::TRACK)
            | bit(self.nat, Self::NAT)
            | bit(self.tcp_option, Self::TCP_OPTION)
            | bit(self.udp_header, Self::UDP_HEADER)
            | (self.quic_len as u64) << Self::QUIC_SHIFT;
        [flags, self.stay_ns, self.ids as u64]
    }

    /// From its words.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u64; Self::WORDS as usize]) -> Self {
        let [flags, stay_ns, ids] = words;
        Self {
            spread: if flags & Self::RANDOM != 0 {
                Spread::Random
            } else if flags & Self::FEWEST != 0 {
                Spread::Fewest
            } else {
                Spread::Hash
            },
            track: flags & Self::TRACK != 0,
            nat: flags & Self::NAT != 0,
            stay_ns,
            tcp_option: flags & Self::TCP_OPTION != 0,
            udp_header: flags & Self::UDP_HEADER != 0,
            quic_len: (flags >> Self::QUIC_SHIFT) as u8,
            ids: ids as u32,
        }
    }

    /// What the frontend's word says; `None`: the ring decides.
    #[inline(always)]
    pub fn read<T: Tables>(tables: &T, frontend: &Frontend) -> Option<Self> {
        let at = frontend.choice()?;
        Some(Self::from_words([tables.slot(at)?, tables.slot(at + 1)?, tables.slot(at + 2)?]))
    }

    /// Whether flows or clients have entries.
    #[inline(always)]
    #[must_use]
    pub const fn keeps(&self) -> bool {
        self.track || self.stay_ns != 0
    }
}

/// A word of the table of server ids.
#[must_use]
pub const fn id_word(row: u32) -> u64 {
    row as u64 + 1
}

/// What a packet says of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Of its connection.
    pub phase: Phase,
    /// FIN or RST: this side is done.
    pub closing: bool,
}

/// Row of the server that a packet names, or [`Slot::NONE`].
#[inline(always)]
pub fn named<T: Tables>(tables: &T, frontend: &Frontend, choice: &Choice, id: u64) -> u32 {
    if id < u64::from(choice.ids)
        && let Some(at) = frontend.choice()
        && let Some(word) = tables.slot(at + Choice::WORDS + id as u32)
        && word != 0
        && pick::is_up(tables, word as u32 - 1)
    {
        return word as u32 - 1;
    }
    Slot::NONE
}

/// Row of the backend of a flow that names none, or [`Slot::NONE`], where flows or clients have entries
/// ([`Choice::keeps`]); else the ring decides. `service`: the number of the service that a client stays with its
/// backend for.
#[inline(always)]
pub fn backend<T: Tracking>(
    tables: &T,
    service: u64,
    frontend: &Frontend,
    choice: &Choice,
    tuple: &Tuple,
    hash: u64,
    segment: Segment,
) -> u32 {
    let key = key(choice, service, tuple);
    // A client's own hash: without an entry it matters only whether the ring has changed since.
    let hash = if choice.stay_ns != 0 { key.hash(tables.seed()) } else { hash };
    let now = tables.now();
    if let Some(row) = entered(tables, choice, &key, hash, segment, now) {
        return row;
    }
    begin(tables, frontend, choice, &key, hash, segment, now)
}

/// The key of a flow's entry: the flow itself, or all that the client has with the service.
#[inline(always)]
fn key(choice: &Choice, service: u64, tuple: &Tuple) -> FlowKey {
    if choice.stay_ns != 0 { FlowKey::client(tuple.src, service) } else { FlowKey::new(tuple) }
}

/// Where the flow's entry says, if it has one that counts.
#[inline(always)]
fn entered<T: Tracking>(
    tables: &T,
    choice: &Choice,
    key: &FlowKey,
    hash: u64,
    segment: Segment,
    now: u64,
) -> Option<u32> {
    let entry = tables.flow(key, hash)?;
    let row = entry.backend();
    if !pick::counts(tables, &entry, segment.phase == Phase::Established) {
        return None;
    }
    let age = now.saturating_sub(entry.seen());
    let stage = entry.stage();
    let (counts, next) = if choice.stay_ns != 0 {
        (segment.phase == Phase::Established || age < choice.stay_ns, stage)
    } else {
        match segment.phase {
            // The same SYN again, or a new connection from a port that was used before.
            Phase::Opening => (stage == Stage::Opening && age < OPENING_NS, stage),
            Phase::Unknown => (age < DATAGRAMS_NS, Stage::Open),
            Phase::Established if segment.closing => (true, Stage::Closed),
            Phase::Established if stage == Stage::Closed => (true, stage),
            Phase::Established => (true, Stage::Open),
        }
    };
    if !counts {
        return None;
    }
    if next != stage || age > REFRESH_NS {
        tables.touch(key, hash, FlowEntry::seen_word(now, next));
        if next == Stage::Closed && stage != Stage::Closed && choice.spread == Spread::Fewest {
            tables.add_active(row, -1);
        }
    }
    Some(row)
}

/// Where the entry of a flow, or of its client, says that it goes; [`Slot::NONE`] if it has none that counts.
/// For packets that are about a flow without being of it, and for its fragments.
#[inline(always)]
pub fn owner<T: Tracking>(tables: &T, frontend: &Frontend, tuple: &Tuple) -> u32 {
    let Some(choice) = Choice::read(tables, frontend) else { return Slot::NONE };
    let key = key(&choice, frontend.service_id(), tuple);
    let Some(entry) = tables.flow(&key, key.hash(tables.seed())) else { return Slot::NONE };
    if pick::counts(tables, &entry, true) { entry.backend() } else { Slot::NONE }
}

/// A flow without an entry, which gets one.
#[inline(always)]
fn begin<T: Tracking>(
    tables: &T,
    frontend: &Frontend,
    choice: &Choice,
    key: &FlowKey,
    hash: u64,
    segment: Segment,
    now: u64,
) -> u32 {
    let ring = frontend.ring();
    let admitted = tables.admit();
    let began = segment.phase == Phase::Established;
    let row = if began || !admitted {
        pick::by_ring(tables, frontend, ring, hash, began)
    } else {
        drawn(tables, frontend, choice, hash)
    };
    if admitted && let Some(backend) = tables.backend(row) {
        let stage = match segment.phase {
            Phase::Opening => Stage::Opening,
            _ if segment.closing => Stage::Closed,
            _ => Stage::Open,
        };
        tables.remember(key, hash, &FlowEntry::seen_at(row, backend.epoch(), now, stage));
        if choice.spread == Spread::Fewest && !segment.closing && !choice.nat {
            tables.add_active(row, 1);
        }
    }
    row
}

/// A backend for a flow that begins, or [`Slot::NONE`].
#[inline(always)]
fn drawn<T: Tracking>(tables: &T, frontend: &Frontend, choice: &Choice, hash: u64) -> u32 {
    let ring = frontend.ring();
    match choice.spread {
        Spread::Hash => pick::by_ring(tables, frontend, ring, hash, false),
        Spread::Random => {
            let drawn = pick::own_slot(tables, ring, tables.random());
            drawn.map_or(Slot::NONE, |s| pick::up_or_other(tables, ring, s.current, hash))
        }
        Spread::Fewest => fewest(tables, ring, hash),
    }
}

/// Row of the backend of a flow that begins and gets its entry elsewhere ([`Choice::nat`]), or [`Slot::NONE`]. Its
/// client gets one here, if it is to stay; `service`: as of [`backend`].
#[inline(always)]
pub fn opened<T: Tracking>(
    tables: &T,
    service: u64,
    frontend: &Frontend,
    choice: &Choice,
    tuple: &Tuple,
    hash: u64,
) -> u32 {
    if choice.stay_ns == 0 {
        return drawn(tables, frontend, choice, hash);
    }
    let segment = Segment { phase: Phase::Opening, closing: false };
    backend(tables, service, frontend, choice, tuple, hash, segment)
}

/// A flow with an entry elsewhere goes on, at the backend of this row and use of it: its client has been seen, and
/// stays there if it is known to stay nowhere.
#[inline(always)]
pub fn stays<T: Tracking>(
    tables: &T,
    service: u64,
    choice: &Choice,
    client: Addr,
    (row, epoch): (u32, u32),
) {
    if choice.stay_ns == 0 {
        return;
    }
    let (key, now) = (FlowKey::client(client, service), tables.now());
    let hash = key.hash(tables.seed());
    match tables.flow(&key, hash) {
        Some(entry) if now.saturating_sub(entry.seen()) > REFRESH_NS => {
            tables.touch(&key, hash, FlowEntry::seen_word(now, entry.stage()));
        }
        Some(_) => {}
        None if tables.admit() => {
            tables.remember(&key, hash, &FlowEntry::seen_at(row, epoch, now, Stage::Open));
        }
        None => {}
    }
}

/// Of the backends that are drawn, the one with the fewest connections for its weight. Drawn from the ring,
/// so that a backend that takes no new flows is not among them.
#[inline(always)]
fn fewest<T: Tracking>(tables: &T, ring: Ring, hash: u64) -> u32 {
    let mut drawn = tables.random();
    let mut best = Slot::NONE;
    let (mut least, mut least_weight) = (0, 1);
    let mut tries = 0;
    while tries < DRAWS {
        drawn = hash::again(drawn.wrapping_add(u64::from(tries)));
        if let Some(slot) = pick::own_slot(tables, ring, drawn)
            && let Some(backend) = tables.backend(slot.current)
        {
            let state = backend.state();
            let active = u64::from(backend.active()) + 1;
            let weight = u64::from(state.weight).max(1);
            // active / weight < least / least_weight
            if !state.down && (best == Slot::NONE || active * least_weight < least * weight) {
                (best, least, least_weight) = (slot.current, active, weight);
            }
        }
        tries += 1;
    }
    if best == Slot::NONE { pick::up_or_other(tables, ring, Slot::NONE, hash) } else { best }
}

/// Whether an entry stands for a connection that its backend still serves.
#[must_use]
pub fn is_active(key: &FlowKey, entry: &FlowEntry, backend: &Backend, now: u64) -> bool {
    let age = now.saturating_sub(entry.seen());
    let longest = match (entry.stage(), key.protocol()) {
        (Stage::Closed, _) => 0,
        (Stage::Opening, _) => OPENING_NS,
        (Stage::Open, 6 | 132) => IDLE_NS,
        (Stage::Open, _) => DATAGRAMS_NS,
    };
    age < longest && backend.epoch() == entry.epoch()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{HopWord, State};

    #[test]
    fn words_of_a_choice() {
        for choice in [
            Choice::default(),
            Choice { spread: Spread::Random, track: true, ..Choice::default() },
            Choice { spread: Spread::Fewest, stay_ns: 1 << 50, ..Choice::default() },
            Choice { spread: Spread::Fewest, nat: true, ..Choice::default() },
            Choice { tcp_option: true, quic_len: 8, ids: 65_536, ..Choice::default() },
            Choice { udp_header: true, quic_len: 1, ids: 1, ..Choice::default() },
        ] {
            assert_eq!(Choice::from_words(choice.to_words()), choice);
        }
    }

    #[test]
    fn how_long_a_connection_counts() {
        let addr = Addr::v4(1);
        let key = |protocol| FlowKey::new(&Tuple { src: addr, dst: addr, ports: 1, protocol });
        let backend = Backend::new(addr, HopWord::UNRESOLVED, State::default(), 1, 7);
        for (protocol, stage, longest) in [
            (6, Stage::Opening, OPENING_NS),
            (6, Stage::Open, IDLE_NS),
            (132, Stage::Open, IDLE_NS),
            (17, Stage::Open, DATAGRAMS_NS),
            (6, Stage::Closed, 0),
        ] {
            let seen = 1 << 40;
            let entry = FlowEntry::seen_at(3, 7, seen, stage);
            let at = |now| is_active(&key(protocol), &entry, &backend, now);
            assert_eq!(at(seen), longest > 0, "{protocol} {stage:?}");
            assert_eq!(at(seen + longest.saturating_sub(8)), longest > 0, "{protocol} {stage:?}");
            assert!(!at(seen + longest), "{protocol} {stage:?}");
        }
        let before = FlowEntry::seen_at(3, 6, 1 << 40, Stage::Open);
        assert!(!is_active(&key(6), &before, &backend, 1 << 40), "of another use of the row");
    }
}
