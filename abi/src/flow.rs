//! Connection entries: only flows that the ring would now send elsewhere have one.

pub mod table;
pub mod tag;

use crate::{addr::Addr, hash::Tuple, limits::FRAGMENT_TIME_NS, table::shared};

/// Key of the flow table: the flow's tuple, nothing folded.
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

    /// The key of all that a client has with a service, in place of a flow's.
    #[inline(always)]
    #[must_use]
    pub const fn client(src: Addr, service: u64) -> Self {
        Self { src, dst: Addr::from_halves(service, 0), ports: 0, protocol: 0 }
    }

    /// The same as a tuple, for its hash.
    #[inline(always)]
    #[must_use]
    pub const fn tuple(&self) -> Tuple {
        let Self { src, dst, ports, protocol } = *self;
        Tuple { src, dst, ports, protocol: protocol as u8 }
    }

    /// Hash of the key: [`crate::hash::flow`] of its tuple.
    #[inline(always)]
    #[must_use]
    pub const fn hash(&self, seed: u64) -> u64 {
        crate::hash::flow(&self.tuple(), seed)
    }

    /// In words: source, destination, the high half of each first; ports, and the protocol above them.
    #[inline(always)]
    #[must_use]
    pub const fn to_words(&self) -> [u64; 5] {
        let Self { src, dst, ports, protocol } = *self;
        let last = ports as u64 | (protocol as u64) << 32;
        [src.hi(), src.lo(), dst.hi(), dst.lo(), last]
    }

    /// From them.
    #[inline(always)]
    #[must_use]
    pub const fn from_words([src_hi, src_lo, dst_hi, dst_lo, last]: [u64; 5]) -> Self {
        let (src, dst) = (Addr::from_halves(src_hi, src_lo), Addr::from_halves(dst_hi, dst_lo));
        Self { src, dst, ports: last as u32, protocol: (last >> 32) as u32 }
    }

    /// IP protocol; 0 in a client's.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(&self) -> u32 {
        self.protocol
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

impl FragmentEntry {
    /// In the place of a frontend's row: the datagram is this machine's own, and not translated.
    pub const HOST: u32 = u32::MAX;
    const ID: u64 = 0xffff;

    /// The entry of a datagram of this machine's own.
    #[inline(always)]
    #[must_use]
    pub const fn host(now: u64) -> Self {
        Self { frontend: Self::HOST, backend: 0, epoch: 0, entropy: 0, time: now }
    }

    /// A time, not later than `now` and hardly earlier, that also has the identification which the datagram gets.
    #[inline(always)]
    #[must_use]
    pub const fn time_with(now: u64, id: u16) -> u64 {
        (now & !Self::ID | id as u64).wrapping_sub(Self::ID + 1)
    }

    /// The identification in the time.
    #[inline(always)]
    #[must_use]
    pub const fn id(&self) -> u16 {
        (self.time & Self::ID) as u16
    }

    /// Whether other fragments of the datagram still follow, at this time in nanoseconds since boot.
    #[inline(always)]
    #[must_use]
    pub const fn is_fresh(&self, now: u64) -> bool {
        now.wrapping_sub(self.time) < FRAGMENT_TIME_NS
    }
}

shared!(FragmentEntry, 24, { frontend @ 0, backend @ 4, epoch @ 8, entropy @ 12, time @ 16 });

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing but a SYN was seen.
    Opening,
    /// It goes on, or it is none that has a beginning.
    Open,
    /// A FIN or RST was seen.
    Closed,
}

/// Value of the flow table: the backend row, the use of that row that is meant, and when the flow was seen.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    backend: u32,
    epoch: u32,
    seen: u64,
}

shared!(FlowEntry, 16, { backend @ 0, epoch @ 4, seen @ 8 });

impl FlowEntry {
    const STAGE: u64 = 3;

    /// In words: the backend's row, its use in the high half; and when the flow was seen.
    #[inline(always)]
    #[must_use]
    pub const fn to_words(&self) -> [u64; 2] {
        [self.backend as u64 | (self.epoch as u64) << 32, self.seen]
    }

    /// From them.
    #[inline(always)]
    #[must_use]
    pub const fn from_words([to, seen]: [u64; 2]) -> Self {
        Self { backend: to as u32, epoch: (to >> 32) as u32, seen }
    }

    /// An entry of a flow whose slot has moved: nobody asks when it was seen.
    #[inline(always)]
    #[must_use]
    pub const fn new(backend: u32, epoch: u32) -> Self {
        Self { backend, epoch, seen: 1 }
    }

    /// An entry of a flow that was seen at this time, in nanoseconds since boot.
    #[inline(always)]
    #[must_use]
    pub const fn seen_at(backend: u32, epoch: u32, seen: u64, stage: Stage) -> Self {
        Self { backend, epoch, seen: Self::seen_word(seen, stage) }
    }

    /// The word that says when, to four nanoseconds, and how far.
    #[inline(always)]
    #[must_use]
    pub const fn seen_word(seen: u64, stage: Stage) -> u64 {
        seen & !Self::STAGE | stage as u64
    }

    /// When the flow was seen; now and then brought up to date. Nanoseconds since boot.
    #[inline(always)]
    #[must_use]
    pub const fn seen(&self) -> u64 {
        self.seen & !Self::STAGE
    }

    /// How far its connection has come.
    #[inline(always)]
    #[must_use]
    pub const fn stage(&self) -> Stage {
        match self.seen & Self::STAGE {
            0 => Stage::Opening,
            1 => Stage::Open,
            _ => Stage::Closed,
        }
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
        assert_eq!(entry, [3, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let entry = FlowEntry::seen_at(3, 4, 0x107, Stage::Closed);
        assert_eq!((entry.seen(), entry.stage()), (0x104, Stage::Closed));
        let entry: [u8; 16] = bytes(entry);
        assert_eq!(entry[8..], [6, 1, 0, 0, 0, 0, 0, 0]);
        let client: [u8; 40] = bytes(FlowKey::client(src, 0x1122));
        assert_eq!(client[16..24], [0x22, 0x11, 0, 0, 0, 0, 0, 0]);
        assert_eq!(client[24..], [0; 16]);
        let entry = FragmentEntry { frontend: 1, backend: 2, epoch: 3, entropy: 4, time: 5 };
        assert!(entry.is_fresh(4 + FRAGMENT_TIME_NS) && !entry.is_fresh(5 + FRAGMENT_TIME_NS));
        assert!(FragmentEntry::host(5).is_fresh(5));
        for (now, id) in [(1 << 40, 0), (1 << 40, u16::MAX), ((1 << 40) + 0xffff, 0), (9 << 30, 7)]
        {
            let time = FragmentEntry::time_with(now, id);
            let entry = FragmentEntry { time, ..entry };
            assert_eq!(entry.id(), id);
            assert!(entry.is_fresh(now), "{now:#x} {id}: a fragment may follow at once");
            assert!(entry.is_fresh(now + FRAGMENT_TIME_NS - (1 << 17)));
        }
        let entry: [u8; 24] = bytes(entry);
        assert_eq!([entry[0], entry[4], entry[8], entry[12], entry[16]], [1, 2, 3, 4, 5]);
    }
}
