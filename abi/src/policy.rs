//! Identity policy: the tables that say who may talk to whom, and the decision over them.
//!
//! ```text
//! interface -> policy row, one side per direction
//! address of the other end -> identity          (AddressRow, else a prefix: nets, else the world)
//! protocol and port -> class                    (Top, Page)
//! identity and class -> verdict                 (Entries: one probe, two where a rule is about all)
//! ```
//! Whatever the number of rules, a packet costs the same loads. [`decide()`] is pure over [`Tables`]; what is
//! kept of connections is behind the same trait. Rows are written before anything points at them and are
//! immutable afterwards; an interface's word and the words of buckets are stored live.

mod connection;
mod decide;
pub mod nets;
mod packet;

use core::ops::DerefMut;

use crate::{
    addr::Addr,
    table::{Bucket, shared},
};

pub use self::{
    connection::{Connection, ConnectionKey},
    decide::{Decision, decide, identity, is_audited, passes, verdict},
    packet::{Head, Part, embedded, head},
};

/// Which way a packet goes, as seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Way {
    /// To the endpoint.
    In = 0,
    /// From the endpoint.
    Out = 1,
}

impl Way {
    /// The other one.
    #[inline(always)]
    #[must_use]
    pub const fn back(self) -> Self {
        match self {
            Self::In => Self::Out,
            Self::Out => Self::In,
        }
    }
}

/// One direction of a policy.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Side {
    tops: [u32; 5],
    offset: u32,
    mask: u32,
    flags: u32,
}

shared!(Side, 32, { tops @ 0, offset @ 20, mask @ 24, flags @ 28 });

impl Side {
    /// What has no entry is denied.
    pub const CLOSED: u32 = 1;
    /// There are entries.
    pub const ENTRIES: u32 = 2;
    /// There are entries about everybody.
    pub const ANYBODY: u32 = 4;
    /// The other direction is not open: connections opened this way are remembered, for their replies.
    pub const TRACK: u32 = 8;
    /// What has no entry would be denied: it is counted and passes.
    pub const AUDIT: u32 = 16;

    /// Connections that are remembered say when their last packet was seen, also where the way back is open.
    pub const KEEP: u32 = 32;

    /// A connection that was opened and answered goes on when rules no longer allow it.
    pub const HOLD: u32 = 64;

    /// `tops`: row of the port table of TCP, UDP, SCTP, ICMP and ICMPv6, 0 for none; `offset`: first
    /// bucket of the entries; `mask`: their number less one.
    #[must_use]
    pub const fn new(tops: [u32; 5], offset: u32, mask: u32, flags: u32) -> Self {
        Self { tops, offset, mask, flags }
    }

    /// Rows of the port tables.
    #[must_use]
    pub const fn tops(&self) -> [u32; 5] {
        self.tops
    }

    /// First bucket, and the number of buckets less one.
    #[must_use]
    pub const fn region(&self) -> (u32, u32) {
        (self.offset, self.mask)
    }

    #[inline(always)]
    const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Nothing is ever denied.
    #[inline(always)]
    const fn is_open(&self) -> bool {
        !self.has(Self::CLOSED | Self::ENTRIES | Self::AUDIT)
    }
}

/// What holds for an endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyRow {
    sides: [Side; 2],
}

shared!(PolicyRow, 64, { sides @ 0 });

impl PolicyRow {
    /// A policy of these sides.
    #[must_use]
    pub const fn new(into: Side, out: Side) -> Self {
        Self { sides: [into, out] }
    }

    /// One direction.
    #[inline(always)]
    #[must_use]
    pub const fn side(&self, way: Way) -> &Side {
        match way {
            Way::In => &self.sides[0],
            Way::Out => &self.sides[1],
        }
    }
}

/// The classes of 256 ports with the same high byte.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    classes: [u16; 256],
}

shared!(Page, 512, { classes @ 0 });

impl Page {
    /// A page of these classes.
    #[must_use]
    pub const fn new(classes: [u16; 256]) -> Self {
        Self { classes }
    }
}

/// The pages of a protocol's ports, by their high byte.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Top {
    pages: [u32; 256],
}

shared!(Top, 1024, { pages @ 0 });

impl Top {
    /// A port table of these pages.
    #[must_use]
    pub const fn new(pages: [u32; 256]) -> Self {
        Self { pages }
    }
}

/// A verdict, and whom and what it is about, in one word: identity in bits 0..25, class in 25..41, deny
/// in 41, audit in 42, row of the rule plus one in 43..64. 0 is no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// 0: everybody.
    pub identity: u32,
    /// 0: all ports that no rule speaks of.
    pub class: u16,
    /// Denied, else allowed.
    pub deny: bool,
    /// It would be denied, and passes.
    pub audit: bool,
    /// Row of the rule that decides.
    pub rule: u32,
}

impl Entry {
    const KEY: u64 = (1 << 41) - 1;
    const DENY: u64 = 1 << 41;
    const AUDIT: u64 = 1 << 42;
    const RULE: u32 = 43;

    #[inline(always)]
    const fn key(identity: u32, class: u16) -> u64 {
        identity as u64 | (class as u64) << 25
    }

    /// One word.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        let deny = if self.deny { Self::DENY } else { 0 };
        let audit = if self.audit { Self::AUDIT } else { 0 };
        Self::key(self.identity, self.class) | deny | audit | (self.rule as u64 + 1) << Self::RULE
    }

    /// Row plus one of the rule that decides; 0 without an entry.
    #[inline(always)]
    #[must_use]
    pub const fn rule_of(word: u64) -> u32 {
        (word >> Self::RULE) as u32
    }

    /// The bucket of a key, before masking.
    #[inline(always)]
    #[must_use]
    pub const fn hash(identity: u32, class: u16) -> u32 {
        let h = Self::key(identity, class).wrapping_mul(0x9e37_79b1_85eb_ca87);
        (h >> 32) as u32 ^ (h >> 52) as u32
    }
}

/// Entries in a bucket: a cache line.
pub const WAYS: usize = 8;

/// A bucket of entries.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    words: [u64; WAYS],
}

shared!(Entries, 64, { words @ 0 });

impl Entries {
    /// A bucket of these words.
    #[must_use]
    pub const fn new(words: [u64; WAYS]) -> Self {
        Self { words }
    }

    /// The word of a key; 0: none.
    #[inline(always)]
    fn find(&self, key: u64) -> u64 {
        let mut found = 0;
        let mut i = 0;
        while i < WAYS {
            let word = self.words[i];
            if word & Entry::KEY == key && word != 0 {
                found = word;
            }
            i += 1;
        }
        found
    }
}

/// Whose interface it is, in one word: policy row in bits 0..32, identity in 32..57, host in 61, audit in 62.
/// 0: nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Row of the policy.
    pub policy: u32,
    /// Of the endpoint.
    pub identity: u32,
    /// What would be denied is counted and passes.
    pub audit: bool,
    /// It is one of this machine's own: policy is about what is from or for its addresses, and connections
    /// are those of all such interfaces.
    pub host: bool,
}

impl Interface {
    const PRESENT: u64 = 1 << 63;
    const AUDIT: u64 = 1 << 62;
    const HOST: u64 = 1 << 61;
    /// The index under which connections of all interfaces of the host are remembered; no interface has it.
    const ANY: u32 = 0;

    /// One word.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        let host = if self.host { Self::HOST } else { 0 };
        let audit = if self.audit { Self::AUDIT } else { 0 };
        self.policy as u64 | (self.identity as u64) << 32 | Self::PRESENT | audit | host
    }

    /// From one word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Option<Self> {
        if word & Self::PRESENT == 0 {
            return None;
        }
        let identity = (word >> 32) as u32 & 0x01ff_ffff;
        let (audit, host) = (word & Self::AUDIT != 0, word & Self::HOST != 0);
        Some(Self { policy: word as u32, identity, audit, host })
    }
}

/// The identity of an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressRow {
    address: Addr,
    identity: u64,
}

shared!(AddressRow, 24, { address @ 0, identity @ 16 });

impl AddressRow {
    /// A row.
    #[must_use]
    pub const fn new(address: Addr, identity: u32) -> Self {
        Self { address, identity: identity as u64 }
    }

    /// Bucket (before masking) and tag of an address.
    #[inline(always)]
    #[must_use]
    pub const fn hash(address: Addr, salt: u64) -> (u32, u32) {
        let h = crate::hash::frontend(address, 0, salt);
        (h as u32, (h >> 32) as u32)
    }
}

/// Whose a row of rules' counters is. Only the daemon reads it and writes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleRow {
    id: u64,
    before: [u64; 2],
}

shared!(RuleRow, 24, { id @ 0, before @ 8 });

impl RuleRow {
    /// `id`: number of the rule, 0: nobody's. `before`: packets and bytes to be added to what programs
    /// have counted there, modulo 2^64.
    #[must_use]
    pub const fn new(id: u64, before: [u64; 2]) -> Self {
        Self { id, before }
    }

    /// The rule's number.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Packets and bytes that are added.
    #[must_use]
    pub const fn before(&self) -> [u64; 2] {
        self.before
    }
}

/// Which packet is spoken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Which {
    /// The one that came.
    Outer = 0,
    /// The one that an ICMP error in it is about.
    Inner = 1,
}

/// Read access to the tables; connections are written too.
pub trait Tables {
    /// See [`Tables::settled`].
    type Place<'p>: DerefMut<Target = Head>
    where
        Self: 'p;
    /// Whose interface it is.
    fn interface(&self, index: u32) -> u64;
    /// A policy.
    fn policy(&self, row: u32) -> Option<&PolicyRow>;
    /// A port table.
    fn top(&self, row: u32) -> Option<&Top>;
    /// A page of classes.
    fn page(&self, row: u32) -> Option<&Page>;
    /// A bucket of entries.
    fn entries(&self, index: u32) -> Option<&Entries>;
    /// Salt of the address table.
    fn salt(&self) -> u64;
    /// A bucket of addresses; the index is taken modulo the table's size.
    fn bucket(&self, index: u32) -> Option<&Bucket>;
    /// A row of the address table.
    fn address(&self, row: u32) -> Option<&AddressRow>;
    /// The identity of the longest prefix that holds an address; 0: none does.
    fn prefix(&self, address: Addr) -> u32;
    /// A connection.
    fn connection(&self, key: &ConnectionKey) -> Option<Connection>;
    /// Makes or replaces a connection; it may be lost.
    fn remember(&self, key: &ConnectionKey, connection: &Connection);
    /// Ports of a datagram in fragments, and ICMP type in bits 32..40, if its first one was seen.
    fn fragment(&self, key: &ConnectionKey) -> Option<u64>;
    /// Remembers them; they may be lost.
    fn remember_fragment(&self, key: &ConnectionKey, ports: u64);
    /// Nanoseconds of a monotonic clock.
    fn now(&self) -> u64;
    /// Puts what is known of a packet into memory of its own, one place for each nesting: the kernel's verifier
    /// takes each field for any value there, and does not follow every way in which it can have been found; and
    /// the stack has no copy. `None`: there is no such memory.
    fn settled(&self, which: Which, head: Head) -> Option<Self::Place<'_>>;
}

#[cfg(test)]
mod tests;
