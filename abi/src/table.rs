//! The rows of the compiled tables: the values of memory-mapped arrays that the daemon writes and
//! the programs read.
//!
//! A row is written whole before anything points at it. What changes afterwards is one aligned
//! 64-bit word at a time, listed at each struct; everything else of a live row is immutable.

mod backend;
mod control;
mod way;

pub use self::{
    backend::{Backend, Egress, HopWord, State},
    control::{Control, Unserved},
    way::{NatAddress, Way},
};
use crate::{addr::Addr, limits::BUCKET_WAYS};

/// Reads a word that the daemon may store to meanwhile.
#[inline(always)]
pub(crate) fn live(word: &u64) -> u64 {
    // SAFETY: a reference is valid and aligned; volatile only keeps the compiler from reading twice.
    unsafe { core::ptr::read_volatile(word) }
}

/// Gives each struct its size, alignment and offsets at compile time, and `Pod` to the daemon.
macro_rules! shared {
    ($name:ident, $size:literal, { $($field:ident @ $offset:literal),* $(,)? }) => {
        const _: () = {
            assert!(size_of::<$name>() == $size);
            assert!(align_of::<$name>() == 8);
            $(assert!(core::mem::offset_of!($name, $field) == $offset);)*
        };
        // SAFETY: `repr(C)`, integer fields only, no padding (the offsets and the size above leave
        // none): every bit pattern is valid.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    };
}
pub(crate) use shared;

/// A bucket of the frontend table: four entries of tag and row, each put in force by one store.
///
/// Entry: tag in the high half; row + 1 in bits 0..31; 0 is an empty entry. Bit 31 of the *last*
/// entry says that a frontend of this bucket stands in the next one.
///
/// Live words: all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    words: [u64; BUCKET_WAYS],
}

shared!(Bucket, 32, { words @ 0 });

impl Bucket {
    // The tag is in the low half, which a comparison of 32 bits finds.
    const OVERFLOW: u64 = 1 << 32;
    const ROW_SHIFT: u32 = 33;

    /// A bucket of these words.
    #[must_use]
    pub const fn from_words(words: [u64; BUCKET_WAYS]) -> Self {
        Self { words }
    }

    /// The words as they are now.
    #[must_use]
    pub fn words(&self) -> [u64; BUCKET_WAYS] {
        let mut out = [0; BUCKET_WAYS];
        for (o, w) in out.iter_mut().zip(&self.words) {
            *o = live(w);
        }
        out
    }

    /// An entry; its overflow bit is clear.
    #[must_use]
    pub const fn entry(tag: u32, row: u32) -> u64 {
        tag as u64 | (row as u64 + 1) << Self::ROW_SHIFT
    }

    /// The word with its overflow bit set or cleared. Only the last word of a bucket carries one.
    #[must_use]
    pub const fn with_overflow(word: u64, overflow: bool) -> u64 {
        if overflow { word | Self::OVERFLOW } else { word & !Self::OVERFLOW }
    }

    /// Whether a bucket's last word says that the next bucket must be looked at too.
    #[must_use]
    pub const fn has_overflow(word: u64) -> bool {
        word & Self::OVERFLOW != 0
    }

    /// Tag and row of a word, or `None` for an empty entry.
    #[inline(always)]
    #[must_use]
    pub const fn decode(word: u64) -> Option<(u32, u32)> {
        match word >> Self::ROW_SHIFT {
            0 => None,
            row => Some((word as u32, row as u32 - 1)),
        }
    }

    /// The row under `tag`, if any.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, tag: u32) -> Option<u32> {
        let mut way = 0;
        while way < BUCKET_WAYS {
            match Self::decode(live(&self.words[way])) {
                Some((found, row)) if found == tag => return Some(row),
                _ => way += 1,
            }
        }
        None
    }

    /// Whether the next bucket must be looked at too.
    #[inline(always)]
    #[must_use]
    pub fn overflows(&self) -> bool {
        live(&self.words[BUCKET_WAYS - 1]) & Self::OVERFLOW != 0
    }
}

/// What a packet's destination is matched with: an address, and port and protocol in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// VIP, or an address of this machine for decapsulation.
    pub addr: Addr,
    /// Port as loaded from the header in the low half, protocol in bits 16..24, above them whether the port is
    /// the first of a range, and whether the address is of IPv6; of a group, its number.
    pub port_protocol: u32,
}

impl FrontendKey {
    const RANGE: u32 = 1 << 24;
    const V6: u32 = 1 << 25;
    const GROUP: u32 = 1 << 31;

    /// From a port as loaded from a header (network byte order in memory).
    #[inline(always)]
    #[must_use]
    pub const fn raw(addr: Addr, port: u16, protocol: u8) -> Self {
        let family = if addr.is_v4() { 0 } else { Self::V6 };
        Self { addr, port_protocol: port as u32 | (protocol as u32) << 16 | family }
    }

    /// From a port in host byte order.
    #[must_use]
    pub const fn new(addr: Addr, port: u16, protocol: u8) -> Self {
        Self::raw(addr, port.to_be(), protocol)
    }

    /// A range of ports, by the first one in host byte order. No packet has such a key: the row stands in the
    /// table so that it is found again, and in the list of its VIP ([`crate::spans`]).
    #[inline(always)]
    #[must_use]
    pub const fn range(addr: Addr, first: u16, protocol: u8) -> Self {
        let Self { addr, port_protocol } = Self::new(addr, first, protocol);
        Self { addr, port_protocol: port_protocol | Self::RANGE }
    }

    /// A group of a service's backends, by a number that no other group at the address has; its highest bit does
    /// not count. No packet has such a key: the words that say which sources are the group's have it
    /// ([`crate::routes`]).
    #[inline(always)]
    #[must_use]
    pub const fn group(addr: Addr, number: u32) -> Self {
        Self { addr, port_protocol: number | Self::GROUP }
    }

    /// Whether it is a group's.
    #[inline(always)]
    #[must_use]
    pub const fn is_group(&self) -> bool {
        self.port_protocol & Self::GROUP != 0
    }

    /// The entry of the address as a whole: port 0, protocol 0.
    #[inline(always)]
    #[must_use]
    pub const fn vip(addr: Addr) -> Self {
        Self::raw(addr, 0, 0)
    }

    /// Port as loaded from the header, and protocol.
    #[must_use]
    pub const fn port_and_protocol(&self) -> (u16, u8) {
        (self.port_protocol as u16, (self.port_protocol >> 16) as u8)
    }

    /// The entry of an address at which tunnels of any kind end: protocol 255, which RFC 5237
    /// reserves.
    #[inline(always)]
    #[must_use]
    pub const fn decap(addr: Addr) -> Self {
        Self::raw(addr, 0, 255)
    }

    /// Its hash ([`crate::hash::frontend`]), by that of its address ([`crate::hash::vip`], folded).
    #[inline(always)]
    #[must_use]
    pub const fn hash_of(&self, vip: u64) -> u64 {
        crate::hash::frontend_of(vip, self.port_protocol)
    }

    /// The number of its bucket, before masking; and the tag.
    #[must_use]
    pub const fn place(&self, salt: u64) -> (u32, u32) {
        let hash = crate::hash::frontend(self.addr, self.port_protocol, salt);
        ((hash >> 32) as u32, hash as u32)
    }
}

/// A ring: where its slots begin in the arena, and how many they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// Index of the first slot.
    pub offset: u32,
    /// Number of slots; 0: no ring.
    pub size: u32,
    /// The frontend's `old_ring` is still consulted: the ring's size has just changed.
    pub resizing: bool,
}

impl Ring {
    /// Of a frontend's word: more than a ring decides ([`Frontend::plain_ring`]). The highest bit, which is the quickest
    /// to ask for.
    const OTHER: u64 = 1 << 63;
    const RESIZING: u64 = 1 << 62;

    /// One word.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.offset as u64
            | (self.size as u64) << 32
            | if self.resizing { Self::RESIZING } else { 0 }
    }

    /// From one word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self {
            offset: word as u32,
            size: (word >> 32) as u32 & !(3 << 30),
            resizing: word & Self::RESIZING != 0,
        }
    }
}

/// The word of a ring that alone decides where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainRing(u64);

impl PlainRing {
    /// Index of the slot of a flow with this hash.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self, hash: u64) -> u32 {
        let size = (self.0 >> 32) as u32;
        (self.0 as u32).wrapping_add(crate::hash::slot(hash, size))
    }
}

/// A ring slot: the backend of new flows, and the one that older flows may still be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Row of the current backend.
    pub current: u32,
    /// Row of the previous one; equal when the slot has not moved lately. [`Slot::NONE`]: none, but flows of others
    /// have entries.
    pub previous: u32,
}

impl Slot {
    /// Stands for no backend.
    pub const NONE: u32 = u32::MAX;

    /// A slot without a backend.
    pub const EMPTY: Self = Self { current: Self::NONE, previous: Self::NONE };

    /// One word: the current row, and in the high half in which bits the previous one differs. So a slot that has not
    /// moved is its row, and one comparison says both that and whether there is such a row.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.current as u64 | ((self.current ^ self.previous) as u64) << 32
    }

    /// From one word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        let current = word as u32;
        Self { current, previous: current ^ (word >> 32) as u32 }
    }
}

/// What a frontend row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An address, port and protocol of a service.
    Service,
    /// An address of services, whatever the port.
    Vip,
    /// An address of this machine at which encapsulated packets are taken.
    Decap,
    /// An address that translated packets come from, and no VIP.
    Nat,
}

/// How a packet reaches its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// Only MAC addresses are rewritten.
    L2 = 0,
    /// An outer IP header.
    Ipip = 1,
    /// Outer IP and UDP headers, and GUE's.
    Gue = 2,
    /// Outer IP and UDP headers, and Geneve's.
    Geneve = 3,
    /// Source and destination are translated.
    Nat = 4,
    /// As `Gue`; while its slot is between two backends, a packet names the other one ([`crate::chance`]).
    GueTwice = 5,
}

/// A row of the frontend table.
///
/// Live words: `ring`, `old_ring`, `any`, `ranges`. A bit of `ring` says whether the other two count, and is set before
/// one of them does and cleared after ([`Frontend::ring_word`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    addr: Addr,
    port_protocol: u32,
    flags: u32,
    ring: u64,
    old_ring: u64,
    /// Of a VIP, the rows of its services with port 0; of a service, where its choice and its routes stand.
    any: u64,
    service: u64,
    /// Of a service, the sources that may use it; of a VIP, its ranges of ports.
    ranges: u64,
}

shared!(Frontend, 64, { addr @ 0, port_protocol @ 16, flags @ 20, ring @ 24, old_ring @ 32, any @ 40, service @ 48, ranges @ 56 });

impl Frontend {
    /// Bits of the [`Mode`].
    const MODE: u32 = 7;
    /// The one that modes have whose packets other programs see to, or the first one in a way of its own.
    const OTHER: u32 = 4;
    const VIP: u32 = 1 << 8;
    const DECAP: u32 = 1 << 9;
    const QUIC: u32 = 1 << 10;
    const NAT: u32 = 1 << 11;
    /// The target port stands from here on, in network byte order.
    const TARGET_SHIFT: u32 = 16;

    /// Byte offset of `ring`, for the daemon's store.
    pub const RING: usize = core::mem::offset_of!(Self, ring);
    /// Byte offset of `old_ring`, for the daemon's store.
    pub const OLD_RING: usize = core::mem::offset_of!(Self, old_ring);
    /// Byte offset of `any`, for the daemon's store.
    pub const ANY: usize = core::mem::offset_of!(Self, any);
    /// Byte offset of `ranges`, for the daemon's store.
    pub const RANGES: usize = core::mem::offset_of!(Self, ranges);

    const fn row(key: FrontendKey, flags: u32, service: u64) -> Self {
        Self {
            addr: key.addr,
            port_protocol: key.port_protocol,
            flags,
            ring: Ring::OTHER,
            old_ring: 0,
            any: 0,
            service,
            ranges: 0,
        }
    }

    /// A port of a service; `service` is the stable number of its name.
    #[must_use]
    pub const fn service(key: FrontendKey, mode: Mode, ring: Ring, service: u64) -> Self {
        let mut row = Self::row(key, mode as u32, service);
        row.set_ring(ring);
        row
    }

    /// The same, for backends that listen on another port; `port` in host byte order, 0: on the same.
    /// Translation ([`crate::nat`], [`crate::sock`]) heeds it: other ways leave the port alone.
    #[must_use]
    pub const fn with_target_port(mut self, port: u16) -> Self {
        let port = (port.to_be() as u32) << Self::TARGET_SHIFT;
        self.flags = self.flags & !(u32::MAX << Self::TARGET_SHIFT) | port;
        self
    }

    /// The same, where packets name their server in a QUIC connection id.
    #[must_use]
    pub const fn with_quic(mut self, quic: bool) -> Self {
        self.flags = if quic { self.flags | Self::QUIC } else { self.flags & !Self::QUIC };
        self
    }

    /// Whether packets name their server in a QUIC connection id.
    #[inline(always)]
    #[must_use]
    pub const fn is_quic(&self) -> bool {
        self.flags & Self::QUIC != 0
    }

    /// The word itself: a VIP's services with port 0, or where a service's choice and its routes stand.
    #[inline(always)]
    #[must_use]
    pub fn any(&self) -> u64 {
        live(&self.any)
    }

    /// A word for [`Self::set_any`]: where words of a [`crate::choice::Choice`] and of [`crate::routes`] begin.
    #[must_use]
    pub const fn special_word(choice: Option<u32>, routes: Option<u32>) -> u64 {
        Self::any_word(choice, routes)
    }

    /// Where the words of its [`crate::choice::Choice`] begin in the arena; of services only.
    #[inline(always)]
    #[must_use]
    pub fn choice(&self) -> Option<u32> {
        (live(&self.any) as u32).checked_sub(1)
    }

    /// Where the words of its routes ([`crate::routes`]) begin in the arena; of services only.
    #[inline(always)]
    #[must_use]
    pub fn routes(&self) -> Option<u32> {
        ((live(&self.any) >> 32) as u32).checked_sub(1)
    }

    /// Whether more than the ring decides where a packet goes, or whether it may; of services only.
    #[inline(always)]
    #[must_use]
    pub fn is_special(&self) -> bool {
        live(&self.any) | live(&self.ranges) != 0
    }

    /// Port at the backends as it stands in a header, in network byte order; 0: that of the frontend.
    #[inline(always)]
    #[must_use]
    pub const fn target_port(&self) -> u16 {
        (self.flags >> Self::TARGET_SHIFT) as u16
    }

    /// An address as a whole. `any_tcp` and `any_udp` are the rows of services with port 0.
    #[must_use]
    pub const fn vip(addr: Addr, any_tcp: Option<u32>, any_udp: Option<u32>) -> Self {
        let mut row = Self::row(FrontendKey::vip(addr), Self::VIP, 0);
        row.any = Self::any_word(any_tcp, any_udp);
        row
    }

    /// An address that translated packets come from, and perhaps also a VIP.
    #[must_use]
    pub const fn with_nat(mut self, vip: bool) -> Self {
        self.flags |= Self::NAT;
        if !vip {
            self.flags &= !Self::VIP;
        }
        self
    }

    /// Whether translated packets come from the address.
    #[inline(always)]
    #[must_use]
    pub const fn is_nat(&self) -> bool {
        self.flags & Self::NAT != 0
    }

    /// An address of this machine that takes encapsulated packets.
    #[must_use]
    pub const fn decap(addr: Addr) -> Self {
        Self::row(FrontendKey::decap(addr), Self::DECAP, 0)
    }

    /// The word of a VIP's services with port 0.
    #[must_use]
    pub const fn any_word(tcp: Option<u32>, udp: Option<u32>) -> u64 {
        const fn half(row: Option<u32>) -> u64 {
            match row {
                Some(row) => row as u64 + 1,
                None => 0,
            }
        }
        half(tcp) | half(udp) << 32
    }

    /// The row of the VIP's service with port 0 for a protocol; TCP and UDP can have one.
    #[inline(always)]
    #[must_use]
    pub fn any_port(&self, protocol: u8) -> Option<u32> {
        let word = live(&self.any);
        let half = match protocol {
            6 => word as u32,
            17 => (word >> 32) as u32,
            _ => 0,
        };
        half.checked_sub(1)
    }

    /// Whether the row is of exactly this key.
    #[inline(always)]
    #[must_use]
    pub fn is(&self, key: &FrontendKey) -> bool {
        if key.addr.is_v4() && !key.is_group() {
            // The second word tells the family, too. As 32 bits, or the compiler compares twice as many.
            // SAFETY: the last word of the address, aligned; volatile as in `live`.
            let raw = unsafe { (&raw const self.addr).cast::<u32>().add(3).read_volatile() };
            return raw == key.addr.as_v4_raw() && self.port_protocol == key.port_protocol;
        }
        self.addr.lo() == key.addr.lo()
            && self.port_protocol == key.port_protocol
            && self.addr.hi() == key.addr.hi()
    }

    /// Its key.
    #[inline(always)]
    #[must_use]
    pub const fn key(&self) -> FrontendKey {
        FrontendKey { addr: self.addr, port_protocol: self.port_protocol }
    }

    /// What it stands for.
    #[inline(always)]
    #[must_use]
    pub const fn kind(&self) -> Kind {
        if self.flags & Self::VIP != 0 {
            Kind::Vip
        } else if self.flags & Self::DECAP != 0 {
            Kind::Decap
        } else if self.flags & Self::NAT != 0 {
            Kind::Nat
        } else {
            Kind::Service
        }
    }

    /// How its packets reach a backend.
    #[inline(always)]
    #[must_use]
    pub const fn mode(&self) -> Mode {
        match self.flags & Self::MODE {
            1 => Mode::Ipip,
            2 => Mode::Gue,
            3 => Mode::Geneve,
            4 => Mode::Nat,
            5 => Mode::GueTwice,
            _ => Mode::L2,
        }
    }

    /// Whether its packets leave as they came but for MAC addresses and headers in front.
    #[inline(always)]
    #[must_use]
    pub const fn is_simple(&self) -> bool {
        self.flags & Self::OTHER == 0
    }

    /// Whether it is [`Mode::Ipip`], asked for where it matters: of a list of modes the compiler makes a search.
    #[inline(always)]
    #[must_use]
    pub fn is_ipip(&self) -> bool {
        const { assert!(Self::VIP > 0xff && cfg!(target_endian = "little")) };
        // SAFETY: as in `live`: the first byte, in which no flag stands.
        let mode = unsafe { (&raw const self.flags).cast::<u8>().read_volatile() };
        mode == Mode::Ipip as u8
    }

    /// Its ring, now.
    #[inline(always)]
    #[must_use]
    pub fn ring(&self) -> Ring {
        Ring::from_word(live(&self.ring))
    }

    /// The same, where nothing else has a say in where packets go or whether they may: neither the mode, nor what
    /// [`Self::is_special`] tells of, nor an earlier ring; and there are slots. One bit says all of that.
    #[inline(always)]
    #[must_use]
    pub fn plain_ring(&self) -> Option<PlainRing> {
        let word = live(&self.ring);
        if (word as i64) < 0 { None } else { Some(PlainRing(word)) }
    }

    /// The word of its ring as it has to be with what else the row says, for the daemon's store.
    #[must_use]
    pub const fn ring_word(&self) -> u64 {
        let ring = Ring::from_word(self.ring);
        let plain = ring.size != 0
            && !ring.resizing
            && self.is_simple()
            && self.any == 0
            && self.ranges == 0;
        ring.to_word() | if plain { 0 } else { Ring::OTHER }
    }

    /// The ring before the last change of size.
    #[inline(always)]
    #[must_use]
    pub fn old_ring(&self) -> Ring {
        Ring::from_word(live(&self.old_ring))
    }

    /// The sources that it takes packets from, now; of a VIP, its ranges of ports ([`crate::spans`]): a word of
    /// [`crate::ranges::Ranges`].
    #[inline(always)]
    #[must_use]
    pub fn ranges(&self) -> u64 {
        live(&self.ranges)
    }

    /// Replaces the sources that it takes packets from, or a VIP's ranges of ports.
    pub const fn set_ranges(&mut self, word: u64) {
        self.ranges = word;
        self.ring = self.ring_word();
    }

    /// Replaces the ring.
    pub const fn set_ring(&mut self, ring: Ring) {
        self.ring = ring.to_word();
        self.ring = self.ring_word();
    }

    /// Replaces the ring before the last change of size.
    pub const fn set_old_ring(&mut self, ring: Ring) {
        self.old_ring = ring.to_word();
    }

    /// Replaces the word of services with port 0.
    pub const fn set_any(&mut self, word: u64) {
        self.any = word;
        self.ring = self.ring_word();
    }

    /// Stable number of the service's name.
    #[inline(always)]
    #[must_use]
    pub const fn service_id(&self) -> u64 {
        self.service
    }
}

/// A counter row: one for each CPU and frontend, backend or list.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of the frame as it arrived.
    pub bytes: u64,
    /// TCP segments with SYN and without ACK.
    pub new_connections: u64,
    reserved: u64,
}

impl Counter {
    /// A row with these numbers.
    #[must_use]
    pub const fn of(packets: u64, bytes: u64, new_connections: u64) -> Self {
        Self { packets, bytes, new_connections, reserved: 0 }
    }
}

shared!(Counter, 32, { packets @ 0, bytes @ 8, new_connections @ 16, reserved @ 24 });

/// A counter row of a reason: one for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReasonCounter {
    /// Packets.
    pub packets: u64,
    /// Bytes of the frame as it arrived.
    pub bytes: u64,
}

shared!(ReasonCounter, 16, { packets @ 0, bytes @ 8 });

#[cfg(test)]
mod tests;
