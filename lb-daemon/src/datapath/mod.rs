//! The tables, as the planner reads them and as its operations change them.
//!
//! [`Tables`] is what stands in memory now; [`Op`] is one step of a change. [`bpf`] is the kernel's,
//! [`fake`] keeps vectors and can be told to fail. Neither decides anything.

use std::fmt;

use abi::{
    addr::Addr,
    guard::Limit,
    prefix::{Bitmap, Block, Bucket6, Entry, Filter6, LINE, ListRow},
    scope::Scope,
    table::{
        Backend, Bucket, Control, Egress, Frontend, HopWord, Ring, Slot, State, Unserved, Way,
    },
};
pub mod bpf;
pub mod fake;

/// How large each table is, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Buckets of the frontend table; a power of two.
    pub buckets: u32,
    /// Frontend rows.
    pub frontends: u32,
    /// Words of the ring arena.
    pub slots: u32,
    /// Backend rows.
    pub backends: u32,
    /// Egress rows.
    pub egress: u32,
    /// Connection entries; a power of two, and at least [`abi::flow::table::WAYS`].
    pub flows: u32,
    /// Lines of entries of the IPv4 prefix set, in each half; at most [`abi::prefix::LINES`].
    pub lines: u32,
    /// Second-level bitmaps of the IPv4 prefix set, in each half.
    pub bitmaps: u32,
    /// Second-level blocks of the IPv4 prefix set, in each half.
    pub blocks: u32,
    /// Rows of the IPv6 filter, in each half; a power of two.
    pub filter6: u32,
    /// Buckets of the IPv6 prefix table, in each half; a power of two.
    pub buckets6: u32,
    /// Entries of the NAT table; a power of two.
    pub nat: u32,
    /// The range of NAT ports: [`abi::nat::Ports`] in one word.
    pub nat_ports: u32,
}

impl Capacity {
    /// Words of the filter of VIPs, a power of two: 16 bits for each place of a bucket, which leaves about one
    /// address in twenty to the buckets when half of them are taken.
    #[must_use]
    pub const fn vip_words(&self) -> u32 {
        if self.buckets > 4 { self.buckets / 4 } else { 1 }
    }

    /// Words of the fine bits of the IPv4 prefix set, in each half ([`abi::summary`]): all or none.
    #[must_use]
    pub const fn fine4(&self) -> u32 {
        let entries = self.lines as u64 * abi::prefix::LINE as u64;
        if entries >= abi::summary::FINE4_FROM { abi::summary::FINE4 } else { 0 }
    }

    /// As [`abi::pick::vip_place`] takes it.
    #[must_use]
    pub const fn vip_shift(&self) -> u32 {
        64 - self.vip_words().ilog2()
    }
}

/// Read access to the tables in force.
pub trait Tables {
    /// Sizes.
    fn capacity(&self) -> Capacity;
    /// The control row.
    fn control(&self) -> Control;
    /// A word of the filter of VIPs.
    fn vip_word(&self, index: u32) -> u64;
    /// A bucket.
    fn bucket(&self, index: u32) -> Bucket;
    /// A frontend row.
    fn frontend(&self, row: u32) -> Frontend;
    /// A word of the ring arena.
    fn slot(&self, index: u32) -> u64;
    /// A backend row.
    fn backend(&self, row: u32) -> Backend;
    /// An egress row.
    fn egress(&self, row: u32) -> Egress;
    /// A NAT address; all zeros: none.
    fn nat_address(&self, row: u32) -> Addr;
    /// An interface that clients' packets come from.
    fn way(&self, row: u32) -> Way;
    /// The row of a blocklist.
    fn list(&self, row: u32) -> ListRow;
    /// The scope of a blocklist.
    fn scope(&self, row: u32) -> Scope;
    /// The row of a rate limit.
    fn limit(&self, row: u32) -> Limit;
    /// A word of the set of ports of the SYN proxy.
    fn syn_ports(&self, word: u32) -> u64;
    /// The entries of sixteen networks, of which this is the number, as words; of the half in force, as all that
    /// follow.
    fn line(&self, index: u32) -> [u32; LINE];
    /// The words of a second-level bitmap.
    fn bitmap(&self, row: u32) -> [u64; 4];
    /// A second-level block.
    fn block(&self, row: u32) -> Box<[u8; 256]>;
    /// The words of a row of the IPv6 filter.
    fn filter6(&self, row: u32) -> [u64; 2];
    /// A bucket of the IPv6 prefix table.
    fn bucket6(&self, row: u32) -> Bucket6;
}

/// One step of a change. Steps are carried out in order, and each leaves tables that a packet may
/// meet: rows are written before anything points at them.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Writes a whole egress row.
    Egress(u32, Egress),
    /// Writes a NAT address.
    NatAddress(u32, Addr),
    /// Writes an interface that clients' packets come from.
    Way(u32, Way),
    /// Writes a whole backend row.
    Backend(u32, Backend),
    /// Stores a backend's next hop.
    Hop(u32, HopWord),
    /// Stores a backend's state.
    State(u32, State),
    /// Writes a new ring, whose first slot is at this index, and its signature before it.
    Ring {
        /// Index of the first slot.
        offset: u32,
        /// What it was built from; see [`crate::plan`].
        signature: u64,
        /// One for each slot.
        slots: Vec<Slot>,
    },
    /// Stores a slot.
    Slot(u32, Slot),
    /// Stores a ring's signature.
    Signature(u32, u64),
    /// Writes a whole frontend row.
    Frontend(u32, Frontend),
    /// Stores a frontend's ring.
    FrontendRing(u32, Ring),
    /// Stores a frontend's earlier ring.
    FrontendOldRing(u32, Ring),
    /// Stores a VIP's rows of services with port 0.
    FrontendAny(u32, u64),
    /// Stores the sources that a frontend takes packets from.
    FrontendRanges(u32, u64),
    /// Writes words of the arena that nothing points at yet.
    Words {
        /// Index of the first.
        offset: u32,
        /// They.
        words: Vec<u64>,
    },
    /// Stores a word of the filter of VIPs.
    VipWord(u32, u64),
    /// Stores an entry of a bucket.
    Bucket {
        /// Index of the bucket.
        index: u32,
        /// Entry of the bucket.
        way: u8,
        /// As [`Bucket::entry`] makes it.
        word: u64,
    },
    /// Writes the row of a blocklist.
    List(u32, ListRow),
    /// Writes the scope of a blocklist whose number nothing has yet, or other interfaces into one that is in use.
    Scope(u32, Scope),
    /// Writes the row of a rate limit.
    Limit(u32, Limit),
    /// Stores a word of the set of ports of the SYN proxy.
    SynPorts(u32, u64),
    /// Writes a second-level bitmap of the half in force.
    Bitmap(u32, Bitmap),
    /// Writes a second-level block of the half in force.
    Block(u32, Box<[u8; 256]>),
    /// Stores an entry of the first level of the half in force: network number (address / 256), entry.
    Line(u32, Entry),
    /// Stores what differs in a bucket of the IPv6 prefix table, in the half in force.
    Bucket6(u32, Bucket6),
    /// Stores a row of the IPv6 filter, in the half in force.
    Filter6(u32, Filter6),
    /// Waits until every program that runs now has ended.
    Settle,
    /// Writes the half of the prefix sets that is not in force.
    Prefixes(Box<Image>),
    /// Stores the control flags: also which half is in force.
    Flags(u64),
    /// Stores what happens to packets for a VIP that no service takes.
    Unserved(Unserved),
    /// Counts a change as in force.
    Generation(u64),
}

/// A half of the prefix sets.
#[derive(Clone, Default, PartialEq)]
pub struct Image {
    /// Word of each network of length 24.
    pub words: Vec<u32>,
    /// Second-level bitmaps, as far as there are.
    pub bitmaps: Vec<Bitmap>,
    /// Second-level blocks, as far as there are.
    pub blocks: Vec<Block>,
    /// All rows of the IPv6 filter.
    pub filter: Vec<Filter6>,
    /// All buckets of the IPv6 prefix table.
    pub buckets: Vec<Bucket6>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { words, bitmaps, blocks, filter, buckets } = self;
        f.debug_struct("Image")
            .field("words", &words.len())
            .field("bitmaps", &bitmaps.len())
            .field("blocks", &blocks.len())
            .field("filter", &filter.len())
            .field("buckets", &buckets.len())
            .finish()
    }
}

/// An operation that the kernel refused. What came before it is done.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct ApplyError {
    /// The operation, for people.
    pub what: String,
    /// The kernel's answer.
    pub source: std::io::Error,
}

/// Tables that can be changed.
pub trait Datapath: Tables {
    /// Carries out the steps in order.
    ///
    /// # Errors
    /// At the first that the kernel refuses; those before it are done.
    fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError>;
}
