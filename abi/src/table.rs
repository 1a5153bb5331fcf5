//! The rows of the compiled tables: the values of memory-mapped arrays that the daemon writes and
//! the programs read.
//!
//! A row is written whole before anything points at it. What changes afterwards is one aligned
//! 64-bit word at a time, listed at each struct; everything else of a live row is immutable.

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

/// The only row of the `CONTROL` table.
///
/// Live words: `generation`, `flags`, `unserved`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    magic: u64,
    generation: u64,
    flags: u64,
    abi: u32,
    instance: u32,
    salt: u64,
    seed: u64,
    cpus: u32,
    reserved: u32,
    unserved: u64,
}

shared!(Control, 64, { magic @ 0, generation @ 8, flags @ 16, abi @ 24, instance @ 28, salt @ 32, seed @ 40, cpus @ 48, reserved @ 52, unserved @ 56 });

/// What happens to packets for a VIP that no service of it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum Unserved {
    /// Dropped.
    #[default]
    Drop = 0,
    /// Answered: TCP with a reset, UDP with port unreachable; the rest is dropped.
    Reject = 1,
    /// Left to the host's stack.
    Pass = 2,
}

impl Control {
    /// Set in `flags` while the IPv6 prefix table holds anything.
    pub const PREFIXES_V6: u64 = 1;
    /// Half of the prefix sets that is in force.
    pub const HALF: u64 = 2;
    /// Byte offset of `generation`, for the daemon's store.
    pub const GENERATION: usize = core::mem::offset_of!(Self, generation);
    /// Byte offset of `flags`, for the daemon's store.
    pub const FLAGS: usize = core::mem::offset_of!(Self, flags);
    /// Byte offset of `unserved`, for the daemon's store.
    pub const UNSERVED: usize = core::mem::offset_of!(Self, unserved);

    /// A control row of this version.
    #[must_use]
    pub const fn new(instance: u32, salt: u64, seed: u64, cpus: u32) -> Self {
        Self {
            magic: crate::limits::MAGIC,
            generation: 0,
            flags: 0,
            abi: crate::limits::ABI_VERSION,
            instance,
            salt,
            seed,
            cpus,
            reserved: 0,
            unserved: Unserved::Drop as u64,
        }
    }

    /// Whether it is ours and of this version.
    #[must_use]
    pub const fn is_current(&self) -> bool {
        self.magic == crate::limits::MAGIC && self.abi == crate::limits::ABI_VERSION
    }

    /// Which set of tables of this machine it is.
    #[must_use]
    pub const fn instance(&self) -> u32 {
        self.instance
    }

    /// Salt of the frontend table.
    #[must_use]
    pub const fn salt(&self) -> u64 {
        self.salt
    }

    /// Seed of the flow hash.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// CPUs that counters are laid out for.
    #[must_use]
    pub const fn cpus(&self) -> u32 {
        self.cpus
    }

    /// Changes put in force.
    #[must_use]
    pub fn generation(&self) -> u64 {
        live(&self.generation)
    }

    /// Segments with TCP flags that cannot be are dropped.
    pub const FILTER_TCP_FLAGS: u64 = 4;
    /// UDP from ports of services that are misused to amplify is dropped.
    pub const FILTER_AMPLIFICATION: u64 = 8;
    /// There are limits.
    pub const LIMITS: u64 = 16;
    /// Fragments are dropped.
    pub const FILTER_FRAGMENTS: u64 = 32;
    /// Any of these four.
    pub const GUARD: u64 =
        Self::FILTER_TCP_FLAGS | Self::FILTER_AMPLIFICATION | Self::FILTER_FRAGMENTS | Self::LIMITS;

    /// The flags for lengths of IPv6 prefixes below [`crate::prefix::SHORTEST6`] that are in use.
    #[must_use]
    pub const fn shorts(bits: u32) -> u64 {
        (bits as u64) << 32
    }

    /// Sets the flags of a row that no program reads.
    pub const fn set_flags(&mut self, flags: u64) {
        self.flags = flags;
    }

    /// Sets what happens to unserved packets, in a row that no program reads.
    pub const fn set_unserved(&mut self, unserved: Unserved) {
        self.unserved = unserved as u64;
    }

    /// What happens to unserved packets, now.
    #[inline(always)]
    #[must_use]
    pub fn unserved(&self) -> Unserved {
        match live(&self.unserved) {
            1 => Unserved::Reject,
            2 => Unserved::Pass,
            _ => Unserved::Drop,
        }
    }

    /// Live flags.
    #[inline(always)]
    #[must_use]
    pub fn flags(&self) -> u64 {
        live(&self.flags)
    }
}

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
    const OVERFLOW: u64 = 1 << 31;
    const ROW: u64 = Self::OVERFLOW - 1;

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
        (tag as u64) << 32 | (row as u64 + 1)
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
        match word & Self::ROW {
            0 => None,
            row => Some(((word >> 32) as u32, row as u32 - 1)),
        }
    }

    /// The row under `tag`, if any.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, tag: u32) -> Option<u32> {
        let mut i = 0;
        while i < BUCKET_WAYS {
            let word = live(&self.words[i]);
            if (word >> 32) as u32 == tag
                && let Some((_, row)) = Self::decode(word)
            {
                return Some(row);
            }
            i += 1;
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
    /// Port as loaded from the header in the low half, protocol in bits 16..24.
    pub port_protocol: u32,
}

impl FrontendKey {
    /// From a port as loaded from a header (network byte order in memory).
    #[inline(always)]
    #[must_use]
    pub const fn raw(addr: Addr, port: u16, protocol: u8) -> Self {
        Self { addr, port_protocol: port as u32 | (protocol as u32) << 16 }
    }

    /// From a port in host byte order.
    #[must_use]
    pub const fn new(addr: Addr, port: u16, protocol: u8) -> Self {
        Self::raw(addr, port.to_be(), protocol)
    }

    /// The entry of the address as a whole: port 0, protocol 0.
    #[inline(always)]
    #[must_use]
    pub const fn vip(addr: Addr) -> Self {
        Self { addr, port_protocol: 0 }
    }

    /// The entry of an address at which tunnels of any kind end: protocol 255, which RFC 5237
    /// reserves.
    #[inline(always)]
    #[must_use]
    pub const fn decap(addr: Addr) -> Self {
        Self::raw(addr, 0, 255)
    }

    /// Bucket (before masking) and tag.
    #[inline(always)]
    #[must_use]
    pub const fn hash(&self, salt: u64) -> (u32, u32) {
        let h = crate::hash::frontend(self.addr, self.port_protocol, salt);
        (h as u32, (h >> 32) as u32)
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
    const RESIZING: u64 = 1 << 63;

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
            size: ((word & !Self::RESIZING) >> 32) as u32,
            resizing: word & Self::RESIZING != 0,
        }
    }
}

/// A ring slot: the backend of new flows, and the one that older flows may still be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Row of the current backend.
    pub current: u32,
    /// Row of the previous one; equal when the slot has not moved lately.
    pub previous: u32,
}

impl Slot {
    /// Stands for no backend.
    pub const NONE: u32 = u32::MAX;

    /// One word.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.current as u64 | (self.previous as u64) << 32
    }

    /// From one word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self { current: word as u32, previous: (word >> 32) as u32 }
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
}

/// A row of the frontend table.
///
/// Live words: `ring`, `old_ring`, `any`, `ranges`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    addr: Addr,
    port_protocol: u32,
    flags: u32,
    ring: u64,
    old_ring: u64,
    any: u64,
    service: u64,
    ranges: u64,
}

shared!(Frontend, 64, { addr @ 0, port_protocol @ 16, flags @ 20, ring @ 24, old_ring @ 32, any @ 40, service @ 48, ranges @ 56 });

impl Frontend {
    /// Bits of the [`Mode`].
    const MODE: u32 = 7;
    const VIP: u32 = 1 << 8;
    const DECAP: u32 = 1 << 9;
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
            ring: 0,
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
        row.ring = ring.to_word();
        row
    }

    /// The same, for backends that listen on another port; `port` in host byte order, 0: on the same.
    /// Only translation at the socket ([`crate::sock`]) heeds it: other ways leave the port alone.
    #[must_use]
    pub const fn with_target_port(mut self, port: u16) -> Self {
        let port = (port.to_be() as u32) << Self::TARGET_SHIFT;
        self.flags = self.flags & !(u32::MAX << Self::TARGET_SHIFT) | port;
        self
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

    /// The row of the VIP's service with port 0 for a protocol (6 or 17).
    #[inline(always)]
    #[must_use]
    pub fn any_port(&self, protocol: u8) -> Option<u32> {
        let word = live(&self.any);
        let half = if protocol == 6 { word as u32 } else { (word >> 32) as u32 };
        half.checked_sub(1)
    }

    /// Whether the row is of exactly this key.
    #[inline(always)]
    #[must_use]
    pub fn is(&self, key: &FrontendKey) -> bool {
        self.addr.lo() == key.addr.lo()
            && self.port_protocol == key.port_protocol
            && self.addr.hi() == key.addr.hi()
    }

    /// Its key.
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
            _ => Mode::L2,
        }
    }

    /// Its ring, now.
    #[inline(always)]
    #[must_use]
    pub fn ring(&self) -> Ring {
        Ring::from_word(live(&self.ring))
    }

    /// The ring before the last change of size.
    #[inline(always)]
    #[must_use]
    pub fn old_ring(&self) -> Ring {
        Ring::from_word(live(&self.old_ring))
    }

    /// The sources that it takes packets from, now: a word of [`crate::ranges::Ranges`].
    #[inline(always)]
    #[must_use]
    pub fn ranges(&self) -> u64 {
        live(&self.ranges)
    }

    /// Replaces the sources that it takes packets from.
    pub const fn set_ranges(&mut self, word: u64) {
        self.ranges = word;
    }

    /// Replaces the ring.
    pub const fn set_ring(&mut self, ring: Ring) {
        self.ring = ring.to_word();
    }

    /// Replaces the ring before the last change of size.
    pub const fn set_old_ring(&mut self, ring: Ring) {
        self.old_ring = ring.to_word();
    }

    /// Replaces the word of services with port 0.
    pub const fn set_any(&mut self, word: u64) {
        self.any = word;
    }

    /// Stable number of the service's name.
    #[must_use]
    pub const fn service_id(&self) -> u64 {
        self.service
    }
}

/// What a backend may take; one live word together with its heir.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Takes no packet: unhealthy, in maintenance, or its next hop is unknown.
    pub down: bool,
    /// Was down a short while ago: flows that went elsewhere meanwhile have entries and keep them.
    pub recovering: bool,
    /// The backend that takes its flows while it is down and other slots' backends are too.
    pub heir: Option<u32>,
}

impl State {
    const DOWN: u64 = 1;
    const RECOVERING: u64 = 2;

    /// One word.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        let heir = match self.heir {
            Some(row) => row as u64 + 1,
            None => 0,
        };
        heir << 32
            | if self.down { Self::DOWN } else { 0 }
            | if self.recovering { Self::RECOVERING } else { 0 }
    }

    /// From one word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self {
            down: word & Self::DOWN != 0,
            recovering: word & Self::RECOVERING != 0,
            heir: ((word >> 32) as u32).checked_sub(1),
        }
    }
}

/// The way to a next hop: MAC and row of the egress table, in one word; 0 is unresolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HopWord(u64);

impl HopWord {
    /// Not known.
    pub const UNRESOLVED: Self = Self(0);

    /// From a MAC address and a row of the egress table.
    #[must_use]
    pub const fn new(mac: [u8; 6], egress: u8) -> Self {
        let m = u64::from_ne_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0]);
        Self(m | (egress as u64 + 1) << 48)
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
        ((self.0 >> 48) as u32).checked_sub(1)
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
/// Live words: `hop`, `state`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    addr: Addr,
    hop: u64,
    state: u64,
    id: u64,
    epoch: u32,
    reserved: [u32; 5],
}

shared!(Backend, 64, { addr @ 0, hop @ 16, state @ 24, id @ 32, epoch @ 40, reserved @ 44 });

impl Backend {
    /// Byte offset of `hop`, for the daemon's store.
    pub const HOP: usize = core::mem::offset_of!(Self, hop);
    /// Byte offset of `state`, for the daemon's store.
    pub const STATE: usize = core::mem::offset_of!(Self, state);

    /// A row. `id` is the stable number of the service's name, 0 in a row that is free; `epoch` differs from that of
    /// whatever stood in this row before, so that flow entries of that one do not count.
    #[must_use]
    pub const fn new(addr: Addr, hop: HopWord, state: State, id: u64, epoch: u32) -> Self {
        Self { addr, hop: hop.to_word(), state: state.to_word(), id, epoch, reserved: [0; 5] }
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
        live(&self.state) & (State::DOWN | State::RECOVERING) == 0
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
    sum4: u32,
    src_mac: [u8; 6],
    flags: u16,
    reserved: u64,
    reserved2: u64,
}

shared!(Egress, 64, { src6 @ 0, ifindex @ 16, mtu @ 20, src4 @ 24, entropy4 @ 28, entropy6 @ 32, sum4 @ 36, src_mac @ 40, flags @ 46, reserved @ 48, reserved2 @ 56 });

impl Egress {
    const HAS_V4: u16 = 1;
    const HAS_V6: u16 = 2;

    /// `mtu` in bytes of L3. The last `bits` (0..=16) of the sources carry flow entropy; `None`: there
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
        let low6 = u128::from_be_bytes(a6) & !u128::from(mask(bits6));
        Self {
            src6: Addr::from_bytes(low6.to_be_bytes()),
            ifindex,
            mtu,
            src4: base4,
            entropy4: mask(bits4).to_be(),
            entropy6: mask(bits6).to_be(),
            sum4: crate::outer::constant_sum4(base4),
            src_mac,
            flags: if src4.is_some() { Self::HAS_V4 } else { 0 }
                | if src6.is_some() { Self::HAS_V6 } else { 0 },
            reserved: 0,
            reserved2: 0,
        }
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

    /// Our MAC.
    #[inline(always)]
    #[must_use]
    pub const fn src_mac(&self) -> [u8; 6] {
        self.src_mac
    }

    /// Whether an outer header of that family can be made.
    #[inline(always)]
    #[must_use]
    pub const fn has_source(&self, v4: bool) -> bool {
        self.flags & (if v4 { Self::HAS_V4 } else { Self::HAS_V6 }) != 0
    }

    /// Outer IPv4 source for a flow's entropy, as it stands in a header.
    #[inline(always)]
    #[must_use]
    pub const fn source4(&self, entropy: u32) -> u32 {
        self.src4 | (entropy & self.entropy4)
    }

    /// The entropy part of [`Self::source4`].
    #[inline(always)]
    #[must_use]
    pub const fn entropy4(&self, entropy: u32) -> u32 {
        entropy & self.entropy4
    }

    /// Sum over the constant words of an outer IPv4 header.
    #[inline(always)]
    #[must_use]
    pub const fn sum4(&self) -> u32 {
        self.sum4
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
mod tests {
    use super::*;

    fn bytes<T: Copy, const N: usize>(value: T) -> [u8; N] {
        assert_eq!(size_of::<T>(), N);
        // SAFETY: equal sizes (asserted), and the structs here have no padding (`shared!`).
        unsafe { core::mem::transmute_copy(&value) }
    }

    #[test]
    fn words_round_trip() {
        for resizing in [false, true] {
            let ring = Ring { offset: 0xfff_ffff, size: 1_048_573, resizing };
            assert_eq!(Ring::from_word(ring.to_word()), ring);
        }
        let slot = Slot { current: 7, previous: Slot::NONE };
        assert_eq!(Slot::from_word(slot.to_word()), slot);
        for heir in [None, Some(0), Some(u32::MAX - 1)] {
            let state = State { down: true, recovering: false, heir };
            assert_eq!(State::from_word(state.to_word()), state);
        }
        let hop = HopWord::new([2, 0, 0, 1, 2, 3], 255);
        assert_eq!(hop.egress(), Some(255));
        assert_eq!(hop.mac(), [2, 0, 0, 1, 2, 3]);
        assert_eq!(HopWord::UNRESOLVED.egress(), None);
        assert_eq!(HopWord::new([0; 6], 0).egress(), Some(0));
    }

    #[test]
    fn a_bucket_finds_its_entries_and_only_those() {
        let last = Bucket::with_overflow(Bucket::entry(9, 0), true);
        let b = Bucket::from_words([Bucket::entry(5, 41), 0, Bucket::entry(0, 3), last]);
        assert_eq!(b.find(5), Some(41));
        assert_eq!(b.find(0), Some(3), "an empty entry is not the tag 0");
        assert_eq!(b.find(9), Some(0));
        assert_eq!(b.find(1), None);
        assert!(b.overflows());
        assert!(!Bucket::default().overflows());
    }

    /// One byte image of each struct: what a pinned table of this version holds.
    #[test]
    fn frozen_images() {
        let key = FrontendKey::new(Addr::v4(u32::from_ne_bytes([203, 0, 113, 10])), 443, 6);
        let ring = Ring { offset: 0x0102_0304, size: 0x3fd, resizing: false };
        let f: [u8; 64] = bytes(Frontend::service(key, Mode::Ipip, ring, 0x1122_3344_5566_7788));
        assert_eq!(f[..16], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 10]);
        assert_eq!(f[16..24], [0x01, 0xbb, 6, 0, 1, 0, 0, 0]);
        assert_eq!(f[24..32], [4, 3, 2, 1, 0xfd, 3, 0, 0]);
        let target = Frontend::service(key, Mode::Ipip, ring, 1).with_target_port(8443);
        assert_eq!(bytes::<_, 64>(target)[20..24], [1, 0, 0x20, 0xfb]);
        assert_eq!((target.target_port(), target.mode()), (8443u16.to_be(), Mode::Ipip));
        assert_eq!(f[48..56], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);

        let hop = HopWord::new([2, 0, 0, 0, 0, 9], 1);
        let state = State { down: true, recovering: false, heir: Some(4) };
        let b: [u8; 64] = bytes(Backend::new(key.addr, hop, state, 0x99, 0x0a0b_0c0d));
        assert_eq!(b[16..24], [2, 0, 0, 0, 0, 9, 2, 0]);
        assert_eq!(b[24..32], [1, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(b[32..44], [0x99, 0, 0, 0, 0, 0, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a]);

        let e: [u8; 64] =
            bytes(Egress::new(3, [2, 0, 0, 0, 0, 1], 1500, Some(([10, 0, 0, 1], 8)), None));
        assert_eq!(e[16..24], [3, 0, 0, 0, 0xdc, 5, 0, 0]);
        assert_eq!(
            e[24..32],
            [10, 0, 0, 0, 0, 0, 0, 255],
            "entropy bits are cleared from the base"
        );
        assert_eq!(e[40..48], [2, 0, 0, 0, 0, 1, 1, 0]);

        let c: [u8; 64] = bytes(Control::new(3, 4, 5, 6));
        assert_eq!(c[..8], [0xa7, 0, 0x70, 0x64, 0x78, 0x2d, 0x62, 0x6c]);
        assert_eq!(
            c[24..56],
            [
                10, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0,
                0, 0, 0, 0, 0
            ]
        );
        let k: [u8; 32] = bytes(Bucket::from_words([Bucket::entry(1, 2), 0, 0, 0]));
        assert_eq!(k[..8], [3, 0, 0, 0, 1, 0, 0, 0]);
        let n: [u8; 32] = bytes(Counter { packets: 1, bytes: 2, new_connections: 3, reserved: 0 });
        assert_eq!((n[0], n[8], n[16]), (1, 2, 3));
        let r: [u8; 16] = bytes(ReasonCounter { packets: 1, bytes: 2 });
        assert_eq!((r[0], r[8]), (1, 2));
    }
}
