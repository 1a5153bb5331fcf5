//! Connection entries: only flows that the ring would now send elsewhere have one.

use crate::{addr::Addr, hash::Tuple, table::shared};

/// Key of the flow table: the flow's tuple, nothing folded or hashed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    src: Addr,
    dst: Addr,
    ports: u32,
    protocol: u32,
}

shared!(FlowKey, 40, { src @ 0, dst @ 16, ports @ 32, protocol @ 36 });

impl FlowKey {
    /// The key of a flow.
    #[inline(always)]
    #[must_use]
    pub const fn new(t: &Tuple) -> Self {
        Self { src: t.src, dst: t.dst, ports: t.ports, protocol: t.protocol as u32 }
    }
}

/// Value of the flow table: the backend row, and the use of that row that is meant.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    backend: u32,
    epoch: u32,
    reserved: u64,
}

shared!(FlowEntry, 16, { backend @ 0, epoch @ 4, reserved @ 8 });

impl FlowEntry {
    /// An entry.
    #[inline(always)]
    #[must_use]
    pub const fn new(backend: u32, epoch: u32) -> Self {
        Self { backend, epoch, reserved: 0 }
    }

    /// Row of the backend.
    #[inline(always)]
    #[must_use]
    pub const fn backend(&self) -> u32 {
        self.backend
    }

    /// The use of that row that is meant; another one's entry does not count.
    #[inline(always)]
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }
}
