//! Real servers, and the interfaces that packets leave by on the way to them.

use super::{live, shared};
use crate::{addr::Addr, wire::ethertype};

/// What a backend may take; one live word together with its heir.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Takes no packet: unhealthy, in maintenance, or its next hop is unknown.
    pub down: bool,
    /// Takes no new flows, and goes on with those that it has: down, but only by its health check.
    pub keeps: bool,
    /// Was down a short while ago: flows that went elsewhere meanwhile have entries and keep them.
    pub recovering: bool,
    /// Its share of new flows, relative to the others.
    pub weight: u16,
    /// The backend that takes its flows while it is down and other slots' backends are too.
    pub heir: Option<u32>,
}

impl State {
    /// Whether it takes a packet; `began`: of a connection that began earlier.
    #[inline(always)]
    #[must_use]
    pub const fn takes(self, began: bool) -> bool {
        !self.down || (began && self.keeps)
    }

    /// Down or recovering. The highest bit, which is the quickest to ask for.
    const OTHER: u64 = 1 << 63;
    const DOWN: u64 = 1;
    const RECOVERING: u64 = 2;
    const KEEPS: u64 = 4;
    const WEIGHT_SHIFT: u32 = 16;

    /// One word.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        let heir = match self.heir {
            Some(row) => row as u64 + 1,
            None => 0,
        };
        heir << 32
            | (self.weight as u64) << Self::WEIGHT_SHIFT
            | if self.down { Self::DOWN } else { 0 }
            | if self.keeps { Self::KEEPS } else { 0 }
            | if self.recovering { Self::RECOVERING } else { 0 }
            | if self.down || self.recovering { Self::OTHER } else { 0 }
    }

    /// From one word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self {
            down: word & Self::DOWN != 0,
            keeps: word & Self::KEEPS != 0,
            recovering: word & Self::RECOVERING != 0,
            weight: (word >> Self::WEIGHT_SHIFT) as u16,
            heir: ((word >> 32) as u32 & !(1 << 31)).checked_sub(1),
        }
    }
}

/// The way to a next hop: MAC, row of the egress table, and the family of the backend's address, in one word; 0 is
/// unresolved, 1 is this machine.
///
/// Bits 48..57 are the row's place in the table, whose first one is nobody's and of zeros: no packet fits there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HopWord(u64);

impl HopWord {
    /// Not known.
    pub const UNRESOLVED: Self = Self(0);
    /// The address is one of this machine's own. It names no row of the egress table, so that only packets
    /// that find none there look at it.
    pub const LOCAL: Self = Self(1);

    /// The backend's address is of IPv6. The highest bit, which is the quickest to ask for.
    const V6: u64 = 1 << 63;

    /// From a MAC address and a row of the egress table, to a backend of IPv4 or IPv6.
    #[must_use]
    pub const fn new(mac: [u8; 6], egress: u8, v4: bool) -> Self {
        let m = u64::from_ne_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0]);
        Self(m | (egress as u64 + 1) << 48 | if v4 { 0 } else { Self::V6 })
    }

    /// Whether a known way leads to a backend of IPv4.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(self) -> bool {
        self.0 & Self::V6 == 0
    }

    /// As stored.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// As stored.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Row of the egress table.
    #[inline(always)]
    #[must_use]
    pub const fn egress(self) -> Option<u32> {
        ((self.0 >> 48 & 0x1ff) as u32).checked_sub(1)
    }

    /// Where that row stands, to be taken modulo the table's size; at 0 is nobody's.
    #[inline(always)]
    #[must_use]
    pub const fn place(self) -> u64 {
        self.0 >> 48
    }

    /// Whether packets stay on this machine.
    #[inline(always)]
    #[must_use]
    pub const fn is_local(self) -> bool {
        self.0 == Self::LOCAL.0
    }

    /// First four bytes of the MAC, as they stand in a header.
    #[inline(always)]
    #[must_use]
    pub const fn mac_head(self) -> u32 {
        self.0 as u32
    }

    /// Last two bytes of the MAC, as they stand in a header.
    #[inline(always)]
    #[must_use]
    pub const fn mac_tail(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// The MAC.
    #[must_use]
    pub const fn mac(self) -> [u8; 6] {
        let b = self.0.to_ne_bytes();
        [b[0], b[1], b[2], b[3], b[4], b[5]]
    }
}

/// A row of the backend table: a real server of one service.
///
/// Live words: `hop`, `state`, and `active`, which programs change too.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    addr: Addr,
    hop: u64,
    state: u64,
    id: u64,
    epoch: u32,
    reserved: u32,
    active: u64,
    reserved2: u64,
}

shared!(Backend, 64, { addr @ 0, hop @ 16, state @ 24, id @ 32, epoch @ 40, reserved @ 44, active @ 48, reserved2 @ 56 });

impl Backend {
    /// Byte offset of `hop`, for the daemon's store.
    pub const HOP: usize = core::mem::offset_of!(Self, hop);
    /// Byte offset of `state`, for the daemon's store.
    pub const STATE: usize = core::mem::offset_of!(Self, state);
    /// Byte offset of `active`, for whoever counts connections.
    pub const ACTIVE: usize = core::mem::offset_of!(Self, active);

    /// A row. `id` is the stable number of the service's name, 0 in a row that is free; `epoch` differs from that of
    /// whatever stood in this row before, so that flow entries of that one do not count.
    #[must_use]
    pub const fn new(addr: Addr, hop: HopWord, state: State, id: u64, epoch: u32) -> Self {
        Self {
            addr,
            hop: hop.to_word(),
            state: state.to_word(),
            id,
            epoch,
            reserved: 0,
            active: 0,
            reserved2: 0,
        }
    }

    /// Where it is reached.
    #[inline(always)]
    #[must_use]
    pub const fn addr(&self) -> Addr {
        self.addr
    }

    /// The way there, now.
    #[inline(always)]
    #[must_use]
    pub fn hop(&self) -> HopWord {
        HopWord::from_word(live(&self.hop))
    }

    /// What it may take, now.
    #[inline(always)]
    #[must_use]
    pub fn state(&self) -> State {
        State::from_word(live(&self.state))
    }

    /// Whether it takes packets and none of its flows are elsewhere: the fast path.
    #[inline(always)]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        live(&self.state) as i64 >= 0
    }

    /// Connections, of a service that counts them: as the programs have it, which the daemon puts right now
    /// and then.
    #[inline(always)]
    #[must_use]
    pub fn active(&self) -> u32 {
        let count = live(&self.active);
        // Less than none: a connection was not seen to begin.
        if count >> 32 == 0 { count as u32 } else { 0 }
    }

    /// Stable number of the service's name; 0: the row is free.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Of this use of the row.
    #[inline(always)]
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }
}

/// A row of the egress table: an interface, and what outer headers say when they leave there.
/// Immutable while anything points at it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    src6: Addr,
    ifindex: u32,
    mtu: u32,
    src4: u32,
    entropy4: u32,
    entropy6: u32,
    room4: u32,
    /// Our MAC as it stands in a frame, and the ethertype of IPv4 behind it.
    src_mac: u64,
    nat: u32,
    room6: u32,
    reserved: u64,
}

shared!(Egress, 64, { src6 @ 0, ifindex @ 16, mtu @ 20, src4 @ 24, entropy4 @ 28, entropy6 @ 32, room4 @ 36, src_mac @ 40, nat @ 48, room6 @ 52, reserved @ 56 });

impl Egress {
    /// `mtu` in bytes of L3, of which headers can say 65,535. The last `bits` (0..=16) of the sources carry flow entropy; `None`: there
    /// is no source of that family, and no encapsulation.
    #[must_use]
    pub fn new(
        ifindex: u32,
        src_mac: [u8; 6],
        mtu: u32,
        src4: Option<([u8; 4], u8)>,
        src6: Option<([u8; 16], u8)>,
    ) -> Self {
        let mask = |bits: u8| ((1u64 << bits) - 1) as u32;
        let (a4, bits4) = src4.unwrap_or_default();
        let (a6, bits6) = src6.unwrap_or_default();
        let base4 = u32::from_be_bytes(a4) & !mask(bits4);
        let base4 = u32::from_ne_bytes(base4.to_be_bytes());
        let (m, [e, f]) = (src_mac, ethertype::IPV4);
        let mtu = mtu.min(0xffff);
        let low6 = u128::from_be_bytes(a6) & !u128::from(mask(bits6));
        Self {
            src6: Addr::from_bytes(low6.to_be_bytes()),
            ifindex,
            mtu,
            src4: base4,
            entropy4: mask(bits4).to_be(),
            entropy6: mask(bits6).to_be(),
            room4: if src4.is_some() { mtu.saturating_sub(20) } else { 0 },
            src_mac: u64::from_ne_bytes([m[0], m[1], m[2], m[3], m[4], m[5], e, f]),
            nat: 0,
            room6: if src6.is_some() { mtu.saturating_sub(40) } else { 0 },
            reserved: 0,
        }
    }

    /// The same with rows of the table of NAT addresses for IPv4 and IPv6: the first one, and how many.
    #[must_use]
    pub const fn with_nat(mut self, v4: (u8, u8), v6: (u8, u8)) -> Self {
        self.nat = u32::from_le_bytes([v4.0, v4.1, v6.0, v6.1]);
        self
    }

    /// The row of the NAT address for a flow's hash; `None`: there is none of that family.
    #[inline(always)]
    #[must_use]
    pub const fn nat(&self, v4: bool, hash: u64) -> Option<u8> {
        let half = if v4 { self.nat } else { self.nat >> 16 };
        let (first, count) = (half & 0xff, half >> 8 & 0xff);
        // Bits that neither the slot nor the first candidate depends on.
        let n = ((hash >> 8 & 0xff) * count as u64) >> 8;
        if count == 0 { None } else { Some((first + n as u32) as u8) }
    }

    /// Interface index.
    #[inline(always)]
    #[must_use]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Bytes of L3 that fit.
    #[inline(always)]
    #[must_use]
    pub const fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The same of packets with an outer header of that family; 0: none can be made.
    #[inline(always)]
    #[must_use]
    pub const fn room(&self, v4: bool) -> u32 {
        if v4 { self.room4 } else { self.room6 }
    }

    /// Our MAC in the first six bytes of a word, as they stand in a frame, and the ethertype of IPv4 in the last two.
    #[inline(always)]
    #[must_use]
    pub const fn src_mac_word(&self) -> u64 {
        self.src_mac
    }

    /// Our MAC.
    #[inline(always)]
    #[must_use]
    pub const fn src_mac(&self) -> [u8; 6] {
        let [mac @ .., _, _] = self.src_mac.to_ne_bytes();
        mac
    }

    /// Whether an outer header of that family can be made.
    #[inline(always)]
    #[must_use]
    pub const fn has_source(&self, v4: bool) -> bool {
        // No source is 0.0.0.0 or ::.
        if v4 { self.src4 != 0 } else { self.src6.hi() | self.src6.lo() != 0 }
    }

    /// Outer IPv4 source for a flow's entropy, as it stands in a header.
    #[inline(always)]
    #[must_use]
    pub const fn source4(&self, entropy: u32) -> u32 {
        self.src4 | (entropy & self.entropy4)
    }

    /// First half of the outer IPv6 source.
    #[inline(always)]
    #[must_use]
    pub const fn source6_hi(&self) -> u64 {
        self.src6.hi()
    }

    /// Second half of the outer IPv6 source for a flow's entropy.
    #[inline(always)]
    #[must_use]
    pub const fn source6_lo(&self, entropy: u32) -> u64 {
        self.src6.lo() | ((entropy & self.entropy6) as u64) << 32
    }
}
