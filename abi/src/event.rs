//! Samples of packets, from the programs to the daemon: why a packet was dropped, with its first bytes.
//!
//! What costs anything is decided ahead: for each CPU and stream a [`Sampler`] says how many packets are
//! passed over until the next one is looked at. The daemon grants so many samples at a time and widens the
//! gaps when more packets come than it granted, so that no program asks for the time to know whether it
//! may. When more come than it could know of, the program widens them itself, with each sample of a reserve: so the
//! samples of a burst are from all of it, and not from its beginning. Without a daemon nothing is granted, and nothing
//! sampled.

use crate::{
    reason::{Reason, Verdict},
    table::{live, shared},
};

/// Bytes of the ring buffer, a power of two.
pub const RING_BYTES: u32 = 1 << 19;
/// First bytes of a packet that a sample has at most.
pub const CAPTURED: usize = 128;
/// Samples beyond the granted ones that a CPU may take of packets that come all at once: as many as stand for 50,000
/// after a quiet time.
pub const RESERVE: u64 = 64;
/// Samplers of each CPU.
pub const STREAMS: u32 = 2;

/// What is sampled apart from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Packets that are dropped, or would be if it were not for an audit.
    Dropped = 0,
    /// Packets that the prefilter lets pass, and verdicts of policy that allow.
    Passed = 1,
}

impl Stream {
    /// The row of a CPU's sampler.
    #[inline(always)]
    #[must_use]
    pub const fn row(self, cpu: u32) -> u32 {
        cpu * STREAMS + self as u32
    }
}

/// When a CPU takes its next sample of a stream. `granted` and `window` are the daemon's, live; the rest
/// the program's, which also widens the window until the daemon sets it again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampler {
    granted: u64,
    window: u64,
    used: u64,
    skip: u64,
    seen: u64,
    lost: u64,
    random: u64,
    reserved: u64,
}

shared!(Sampler, 64, { granted @ 0, window @ 8, used @ 16, skip @ 24, seen @ 32, lost @ 40, random @ 48, reserved @ 56 });

impl Sampler {
    /// Byte offset of the number of samples granted since ever, for the daemon's store.
    pub const GRANTED: usize = core::mem::offset_of!(Self, granted);
    /// Byte offset of the window, for the daemon's store: each gap is shorter than that, at random.
    pub const WINDOW: usize = core::mem::offset_of!(Self, window);
    /// The widest window.
    pub const WIDEST: u64 = 1 << 31;

    /// Whether this packet is one to look at: a load, a comparison and a store when it is not.
    #[inline(always)]
    pub fn is_due(&mut self) -> bool {
        let left = self.skip.wrapping_sub(1);
        // Also due when the window has become narrower than what is left of a gap.
        if left < live(&self.window) {
            self.skip = left;
            return false;
        }
        true
    }

    /// Begins the next gap, after a packet that was due. The packets that its sample stands for, if it
    /// is granted one.
    #[inline(always)]
    pub fn take(&mut self) -> Option<u32> {
        let window = live(&self.window) & (Self::WIDEST - 1);
        let left = live(&self.granted).wrapping_sub(self.used) as i64;
        // A gap that was cut short has packets left that were counted when it began.
        self.seen = self.seen.wrapping_sub(self.skip);
        // Numerical Recipes' generator (Knuth, MMIX); its high bits are the random ones.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.skip = ((self.random >> 32) * window) >> 32;
        self.seen = self.seen.wrapping_add(self.skip + 1);
        if left <= 0 {
            return None;
        }
        self.used = self.used.wrapping_add(1);
        if left <= RESERVE as i64 {
            // By an eighth; it stays odd, so that half of it is a whole number of packets.
            self.window = (window + 2 * (window / 16) + 2).min(Self::WIDEST - 1);
        }
        Some((window.div_ceil(2)).max(1) as u32)
    }

    /// Notes that a sample found no room.
    #[inline(always)]
    pub const fn lose(&mut self) {
        self.lost = self.lost.wrapping_add(1);
    }

    /// Samples granted, ever.
    #[must_use]
    pub const fn granted(&self) -> u64 {
        self.granted
    }

    /// Samples taken of them.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// Packets that there were, ever.
    #[must_use]
    pub const fn packets(&self) -> u64 {
        // The gap that has begun was counted as a whole.
        self.seen.wrapping_sub(self.skip)
    }

    /// What lets a CPU take `more` samples, and have its reserve back by as many as it has not taken of those before.
    #[must_use]
    pub const fn granting(&self, more: u64) -> u64 {
        let left = self.granted.wrapping_sub(self.used);
        let left = if (left as i64) < 0 || more == 0 { 0 } else { left };
        let most = more + RESERVE;
        self.used.wrapping_add(if left + more < most { left + more } else { most })
    }

    /// Samples that found no room in the ring buffer.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// The window for gaps of `stride` packets on average.
    #[must_use]
    pub const fn window_of(stride: u64) -> u64 {
        let window = stride.saturating_mul(2).saturating_sub(1);
        if window >= Self::WIDEST { Self::WIDEST - 1 } else { window }
    }
}

/// Which program a sample is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hook {
    /// XDP.
    Xdp = 0,
    /// Policy, on what an endpoint receives.
    Ingress = 1,
    /// Policy, on what an endpoint sends.
    Egress = 2,
}

/// What became of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// Went on.
    Passed = 0,
    /// Dropped.
    Dropped = 1,
    /// Sent by the program.
    Forwarded = 2,
    /// Went on, and would be dropped if it were not for an audit.
    Audited = 3,
}

impl Outcome {
    /// Of a reason.
    #[inline(always)]
    #[must_use]
    pub const fn of(reason: Reason) -> Self {
        match reason.verdict() {
            Verdict::Pass => Self::Passed,
            Verdict::Drop => Self::Dropped,
            Verdict::Forward => Self::Forwarded,
        }
    }
}

/// What a sample says beside the packet's bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Nanoseconds since boot, as of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// XDP: number of the list, or row of the rate limit plus one, by the reason; or 0. Policy: row of the rule's counters, or 0.
    pub number: u32,
    /// Identities of source and destination; 0: unknown, or XDP.
    pub identities: [u32; 2],
    /// The interface that it came in by, or at which policy looked at it.
    pub ifindex: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// Packets that the sample stands for.
    pub weight: u32,
    /// Index of the [`Reason`].
    pub reason: u16,
    /// Bytes of it that follow.
    pub captured: u16,
    /// [`Hook`]
    pub hook: u8,
    /// [`Outcome`]
    pub outcome: u8,
    /// 0
    pub reserved: [u8; 10],
}

shared!(Head, 48, { time @ 0, number @ 8, identities @ 12, ifindex @ 20, length @ 24, weight @ 28, reason @ 32, captured @ 34, hook @ 36, outcome @ 37, reserved @ 38 });

/// A record of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// About it.
    pub head: Head,
    /// Its first bytes, from the Ethernet header on; what is beyond `captured` means nothing.
    pub bytes: [u8; CAPTURED],
}

shared!(Event, 176, { head @ 0, bytes @ 48 });

impl Event {
    /// From a record's bytes. `None`: it is of another length, or says that it has more than it can.
    #[must_use]
    pub fn from_bytes(record: &[u8]) -> Option<Self> {
        let record: &[u8; size_of::<Self>()] = record.try_into().ok()?;
        // SAFETY: integers only, without padding (`shared!`): any bytes are one; the read is unaligned.
        let event = unsafe { record.as_ptr().cast::<Self>().read_unaligned() };
        (usize::from(event.head.captured) <= CAPTURED).then_some(event)
    }

    /// The packet's first bytes.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        &self.bytes[..usize::from(self.head.captured).min(CAPTURED)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(sampler: &mut Sampler, packets: u64) -> (u64, u64) {
        let (mut taken, mut weight) = (0, 0);
        for _ in 0..packets {
            if sampler.is_due()
                && let Some(each) = sampler.take()
            {
                taken += 1;
                weight += u64::from(each);
            }
        }
        (taken, weight)
    }

    #[test]
    fn nothing_without_a_grant() {
        let mut sampler = Sampler::default();
        assert_eq!(run(&mut sampler, 1000), (0, 0));
        assert_eq!(sampler.packets(), 1000, "and yet all are counted");
    }

    #[test]
    fn each_packet_and_then_ever_fewer() {
        let window = Sampler::window_of(1);
        let granted = 5 + RESERVE;
        let mut sampler = Sampler { granted, window, ..Default::default() };
        assert_eq!(run(&mut sampler, 5), (5, 5), "what is granted");
        let (taken, weight) = run(&mut sampler, 1000);
        assert!((20..40).contains(&taken), "{taken}");
        assert!((600..1700).contains(&weight), "{weight}");
        run(&mut sampler, 1_000_000);
        assert_eq!(sampler.used(), granted, "and no more");
        assert_eq!(sampler.packets(), 1_001_005);
    }

    #[test]
    fn a_reserve_comes_back_by_what_is_not_used() {
        let mut sampler = Sampler::default();
        sampler.granted = sampler.granting(10);
        assert_eq!(sampler.granted, 10, "after a start there is none");
        for _ in 0..100 {
            sampler.granted = sampler.granting(10);
        }
        assert_eq!(sampler.granted, 10 + RESERVE);
        sampler.used = sampler.granted;
        sampler.granted = sampler.granting(10);
        assert_eq!(sampler.granted - sampler.used, 10);
        assert_eq!(sampler.granting(0), sampler.used, "nothing is to be sampled");
        // A table that another daemon has left.
        sampler.used = sampler.granted + 7;
        assert_eq!(sampler.granting(3), sampler.used + 3);
    }

    /// Whatever comes first, all of a burst is sampled alike.
    #[test]
    fn samples_of_a_burst_are_from_all_of_it() {
        let (packets, rounds) = (40_000, 200);
        let (mut first, mut second) = (0, 0);
        for random in 0..rounds {
            let window = Sampler::window_of(1);
            let granted = 10 + RESERVE;
            let mut sampler = Sampler { granted, window, random, ..Default::default() };
            first += run(&mut sampler, packets / 2).1;
            second += run(&mut sampler, packets / 2).1;
        }
        // What the last sample of each stands for may be beyond its end.
        let half = packets / 2 * rounds;
        assert!((half * 9 / 10..half * 11 / 10).contains(&first), "{first} of {half}");
        assert!((half * 9 / 10..half * 12 / 10).contains(&second), "{second} of {half}");
    }

    #[test]
    fn a_wide_window_ends_when_it_becomes_narrow() {
        let mut sampler =
            Sampler { granted: 99, window: Sampler::window_of(1 << 29), ..Default::default() };
        assert!(sampler.is_due() && sampler.take().is_some());
        assert!(sampler.skip > 1, "{sampler:?}");
        sampler.window = Sampler::window_of(1);
        assert!(sampler.is_due() && sampler.take().is_some());
        assert_eq!(sampler.packets(), 2);
    }

    proptest! {
        #[test]
        fn samples_stand_for_all(stride in 1u64..500, random: u64) {
            let mut sampler =
                Sampler { granted: u64::MAX >> 1, window: Sampler::window_of(stride), random, ..Default::default() };
            let packets = stride * 2000;
            let (taken, weight) = run(&mut sampler, packets);
            prop_assert!(weight.abs_diff(packets) < packets / 8, "{taken} {weight} {packets}");
            prop_assert_eq!(sampler.packets(), packets);
        }
    }

    #[test]
    fn bytes_of_an_event() {
        let head = Head {
            time: 1,
            number: 2,
            identities: [3, 4],
            ifindex: 5,
            length: 6,
            weight: 7,
            reason: 8,
            captured: 128,
            hook: Hook::Egress as u8,
            outcome: Outcome::Audited as u8,
            reserved: [0; 10],
        };
        let event = Event { head, bytes: [9; CAPTURED] };
        // SAFETY: equal sizes; no padding (`shared!`).
        let bytes: [u8; 176] = unsafe { core::mem::transmute(event) };
        assert_eq!(
            bytes[8..40],
            [
                2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0, 8, 0, 128,
                0, 2, 3, 0, 0
            ]
        );
        assert_eq!(Event::from_bytes(&bytes), Some(event));
        assert_eq!(Event::from_bytes(&bytes[1..]), None);
        let liar = Event { head: Head { captured: 129, ..head }, ..event };
        // SAFETY: as above.
        let bytes: [u8; 176] = unsafe { core::mem::transmute(liar) };
        assert_eq!(Event::from_bytes(&bytes), None);
    }
}
