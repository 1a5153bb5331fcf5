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

/// Key of the table of fragmented datagrams.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    src: Addr,
    dst: Addr,
    id: u32,
    protocol: u32,
}

shared!(FragmentKey, 40, { src @ 0, dst @ 16, id @ 32, protocol @ 36 });

impl FragmentKey {
    /// The datagram that a fragment with this identification belongs to.
    #[inline(always)]
    #[must_use]
    pub const fn new(src: Addr, dst: Addr, id: u32, protocol: u8) -> Self {
        Self { src, dst, id, protocol: protocol as u32 }
    }
}

/// Where the first fragment of a datagram went, and when.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentEntry {
    /// Row of the frontend.
    pub frontend: u32,
    /// Row of the backend.
    pub backend: u32,
    /// The use of that row that is meant.
    pub epoch: u32,
    /// Entropy for outer headers.
    pub entropy: u32,
    /// Nanoseconds since boot.
    pub time: u64,
}

shared!(FragmentEntry, 24, { frontend @ 0, backend @ 4, epoch @ 8, entropy @ 12, time @ 16 });

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

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<T: Copy, const N: usize>(value: T) -> [u8; N] {
        assert_eq!(size_of::<T>(), N);
        // SAFETY: equal sizes (asserted), and the structs here have no padding (`shared!`).
        unsafe { core::mem::transmute_copy(&value) }
    }

    /// One byte image of each struct: what a pinned table of this version holds.
    #[test]
    fn frozen_images() {
        let (src, dst) = (Addr::v4(0x0403_0201), Addr::v4(0x0807_0605));
        let tuple = Tuple { src, dst, ports: 0x0d0c_0b0a, protocol: 17 };
        let flow: [u8; 40] = bytes(FlowKey::new(&tuple));
        let fragment: [u8; 40] = bytes(FragmentKey::new(src, dst, 0x0d0c_0b0a, 17));
        for image in [flow, fragment] {
            assert_eq!(image[8..16], [0, 0, 0xff, 0xff, 1, 2, 3, 4]);
            assert_eq!(image[28..], [5, 6, 7, 8, 10, 11, 12, 13, 17, 0, 0, 0]);
        }
        let entry: [u8; 16] = bytes(FlowEntry::new(3, 4));
        assert_eq!(entry, [3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let entry = FragmentEntry { frontend: 1, backend: 2, epoch: 3, entropy: 4, time: 5 };
        let entry: [u8; 24] = bytes(entry);
        assert_eq!([entry[0], entry[4], entry[8], entry[12], entry[16]], [1, 2, 3, 4, 5]);
    }
}
