//! The tables, as the planner reads them and as its operations change them.
//!
//! [`Tables`] is what stands in memory now; [`Op`] is one step of a change. [`bpf`] is the kernel's,
//! [`fake`] keeps vectors and can be told to fail. Neither decides anything.

use std::collections::BTreeMap;

use abi::{
    prefix::{Entry, LINE, ListRow},
    table::{Backend, Bucket, Control, Egress, Frontend, HopWord, Ring, Slot, State, Unserved},
};
use ipnet::Ipv6Net;

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
    /// Lines of the IPv4 prefix set's first level; 0 or [`abi::prefix::LINES`].
    pub lines: u32,
    /// Second-level blocks of the IPv4 prefix set.
    pub blocks: u32,
    /// Entries of the IPv6 prefix table.
    pub prefixes6: u32,
}

/// Read access to the tables in force.
pub trait Tables {
    /// Sizes.
    fn capacity(&self) -> Capacity;
    /// The control row.
    fn control(&self) -> Control;
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
    /// The row of a blocklist.
    fn list(&self, row: u32) -> ListRow;
    /// The words of a line of the IPv4 prefix set's first level.
    fn line(&self, index: u32) -> [u32; LINE];
    /// A second-level block of it.
    fn block(&self, row: u32) -> Box<[u8; 256]>;
    /// The IPv6 prefixes and their lists.
    ///
    /// # Errors
    /// The kernel's, which alone keeps that table.
    fn prefixes6(&self) -> Result<BTreeMap<Ipv6Net, u32>, ApplyError>;
}

/// One step of a change. Steps are carried out in order, and each leaves tables that a packet may
/// meet: rows are written before anything points at them.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Writes a whole egress row.
    Egress(u32, Egress),
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
    /// Writes a second-level block.
    Block(u32, Box<[u8; 256]>),
    /// Stores an entry of the first level: network number (address / 256), entry.
    Line(u32, Entry),
    /// Stores the same entry for all of these networks, one by one.
    Lines(std::ops::RangeInclusive<u32>, Entry),
    /// Adds or replaces an IPv6 prefix.
    Prefix6(Ipv6Net, u32),
    /// Removes an IPv6 prefix.
    RemovePrefix6(Ipv6Net),
    /// Stores the control flags.
    Flags(u64),
    /// Stores what happens to packets for a VIP that no service takes.
    Unserved(Unserved),
    /// Counts a change as in force.
    Generation(u64),
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
