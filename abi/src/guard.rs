//! What a source may not send, whatever list it is on: TCP flags that cannot be, answers of services that
//! are misused to amplify, fragments, and more packets or bytes than a limit allows.
//!
//! A limit is a generic cell rate algorithm (ITU-T I.371): for each source one word with the time at which
//! its budget is whole again. The words are in sets of two, found by hash: a source that finds both taken
//! by others takes over the one that is nearer to a whole budget, and begins with a whole one itself. So
//! memory is fixed, and no source pays for another one's packets.

use crate::{prefix::Net6, table::shared};

/// Limits that can be in force.
pub const MAX_LIMITS: u32 = 8;
/// Words of each limit; a power of two.
pub const RATE_SLOTS: u32 = 1 << 16;
/// Counter rows of limits for each CPU.
pub const LIMIT_ROWS: u32 = MAX_LIMITS;
/// Nanoseconds in the unit of times here, as a power of two.
pub const UNIT_BITS: u32 = 4;

const TIME_BITS: u32 = 48;
const TIME: u64 = (1 << TIME_BITS) - 1;

/// A limit, as its row has it. Rewritten with `interval` 0 in between.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Time from one packet to the next, or that 1024 bytes take, in units; 0: there is no limit in this row.
    pub interval: u64,
    /// How far a source may be ahead of that.
    pub tolerance: u64,
    /// Stable number of its name.
    pub id: u64,
    /// Destination port, host byte order; 0: every one.
    pub port: u16,
    /// IP protocol; 0: every one.
    pub protocol: u8,
    /// Length of the IPv4 prefix that has a budget of its own.
    pub bits4: u8,
    /// Of the IPv6 prefix.
    pub bits6: u8,
    /// 1: count only.
    pub audit: u8,
    /// TCP flags that are looked at; 0: none, and not only TCP.
    pub mask: u8,
    /// Those of them that must be set.
    pub flags: u8,
    /// 1: counts bytes; 0: packets.
    pub bytes: u8,
    /// 0
    pub reserved: [u8; 7],
}

shared!(Limit, 40, { interval @ 0, tolerance @ 8, id @ 16, port @ 24, protocol @ 26, bits4 @ 27, bits6 @ 28, audit @ 29, mask @ 30, flags @ 31, bytes @ 32, reserved @ 33 });

impl Limit {
    /// Interval and tolerance of so many packets in a second, `burst` of them at once. Both at least 1.
    #[must_use]
    pub const fn rate(packets_per_second: u64, burst: u64) -> (u64, u64) {
        let interval = (1_000_000_000 >> UNIT_BITS) / packets_per_second;
        let interval = if interval == 0 { 1 } else { interval };
        let tolerance = (burst - 1).saturating_mul(interval);
        // Far below the time at which the clock of the words comes round.
        (interval, if tolerance > TIME >> 2 { TIME >> 2 } else { tolerance })
    }

    /// Interval and tolerance of so many bytes in a second, `burst` of them at once. Both at least 1.
    #[must_use]
    pub const fn byte_rate(bytes_per_second: u64, burst: u64) -> (u64, u64) {
        const KIB_SECOND: u64 = (1_000_000_000 >> UNIT_BITS) << 10;
        let interval = (KIB_SECOND + bytes_per_second / 2) / bytes_per_second;
        let interval = if interval == 0 { 1 } else { interval };
        let tolerance = (burst - 1).saturating_mul(interval) >> 10;
        (interval, if tolerance > TIME >> 2 { TIME >> 2 } else { tolerance })
    }

    /// What a packet of so many bytes takes from a budget, in units.
    #[inline(always)]
    #[must_use]
    pub const fn cost(&self, bytes: u64) -> u64 {
        if self.bytes == 0 { self.interval } else { (self.interval * (bytes & 0xf_ffff)) >> 10 }
    }

    /// The furthest that a source gets ahead: of a rate of bytes, by a packet of 1 MiB at most.
    #[inline(always)]
    const fn reach(&self) -> u64 {
        self.tolerance + (self.interval << if self.bytes == 0 { 0 } else { 10 })
    }

    /// Whether it counts packets of this protocol, to this port (host byte order), with these TCP flags; of
    /// what is not TCP these are 0.
    #[inline(always)]
    #[must_use]
    pub const fn counts(&self, protocol: u8, port: u16, flags: u8) -> bool {
        (self.protocol == 0 || self.protocol == protocol)
            && (self.port == 0 || self.port == port)
            && flags & self.mask == self.flags
    }

    /// What has a budget, of this source.
    #[inline(always)]
    #[must_use]
    pub const fn key(&self, hi: u64, lo: u64, v4: bool) -> Net6 {
        Net6::new(hi, lo, if v4 { self.bits4 } else { self.bits6 })
    }
}

/// Whether a source of this tag may send a packet of so many bytes now (in units), and its word after that. `None`: it may
/// not, and the word stays.
#[inline(always)]
#[must_use]
pub const fn take(word: u64, tag: u16, now: u64, limit: &Limit, bytes: u64) -> Option<u64> {
    let ahead = if word >> TIME_BITS == tag as u64 { ahead(word, now, limit) } else { 0 };
    if ahead > limit.tolerance {
        return None;
    }
    Some((tag as u64) << TIME_BITS | (now + ahead + limit.cost(bytes)) & TIME)
}

/// How far the owner of a word is ahead of its rate.
#[inline(always)]
#[must_use]
pub const fn ahead(word: u64, now: u64, limit: &Limit) -> u64 {
    let ahead = word.wrapping_sub(now) & TIME;
    // Further ahead than anything gets: it is in the past, and the clock has come round.
    if ahead > limit.reach() { 0 } else { ahead }
}

/// Whether a word is of this source.
#[inline(always)]
#[must_use]
pub const fn is_of(word: u64, tag: u16) -> bool {
    word >> TIME_BITS == tag as u64
}

/// Whether a segment can have these flags (RFC 9293, section 3.10: all but the first has ACK, unless it
/// is a reset; SYN, FIN and RST exclude each other).
#[inline(always)]
#[must_use]
pub const fn can_be(flags: u8) -> bool {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    const URG: u8 = 32;
    // One bit for each combination of FIN, SYN and RST that may be, with ACK and without.
    const WITH: u8 = 1 << 0 | 1 << FIN | 1 << SYN | 1 << RST;
    const WITHOUT: u8 = 1 << SYN | 1 << RST;
    if flags & ACK != 0 {
        WITH >> (flags & 7) & 1 != 0
    } else {
        WITHOUT >> (flags & 7) & 1 != 0 && flags & URG == 0
    }
}

/// Whether UDP from this port (host byte order) is what services send that are misused to amplify: qotd,
/// chargen, portmap, NetBIOS, SNMP, CLDAP, RIP, SSDP, ARD, WS-Discovery, mDNS, CoAP, memcached. DNS and
/// NTP are not among them: nearly every machine asks those.
#[inline(always)]
#[must_use]
pub const fn amplifies(port: u16) -> bool {
    matches!(port, 17 | 19 | 111 | 137 | 161 | 389 | 520 | 1900 | 3283 | 3702 | 5353 | 5683 | 11211)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: u16 = 7;

    fn limit(packets_per_second: u64, burst: u64) -> Limit {
        let (interval, tolerance) = Limit::rate(packets_per_second, burst);
        Limit { interval, tolerance, ..Limit::default() }
    }

    /// Packets that pass of those sent in a second, evenly.
    fn passed(limit: &Limit, sent: u64, from: u64) -> u64 {
        let second = 1_000_000_000 >> UNIT_BITS;
        let mut word = 0;
        let mut passed = 0;
        for n in 0..sent {
            if let Some(next) = take(word, TAG, from + n * second / sent, limit, 60) {
                word = next;
                passed += 1;
            }
        }
        passed
    }

    #[test]
    fn as_many_pass_as_are_allowed() {
        for from in [0, 12345, TIME - 1000, u64::MAX >> UNIT_BITS >> 1] {
            let limit = limit(1000, 100);
            assert_eq!(passed(&limit, 900, from), 900, "{from}");
            let many = passed(&limit, 100_000, from);
            assert!((1090..=1110).contains(&many), "{from}: {many}");
        }
        let fast = passed(&limit(1_000_000, 1), 4_000_000, 5);
        assert!((990_000..=1_010_000).contains(&fast), "{fast}");
    }

    /// Bytes that pass of twice the rate, sent in a second in packets of this size.
    fn bytes_passed(rate: u64, burst: u64, size: u64) -> u64 {
        let (interval, tolerance) = Limit::byte_rate(rate, burst);
        let limit = Limit { interval, tolerance, bytes: 1, ..Limit::default() };
        let second = 1_000_000_000 >> UNIT_BITS;
        let (mut word, mut passed, sent) = (0, 0, 2 * rate / size);
        for n in 0..sent {
            if let Some(next) = take(word, TAG, TIME - 5 + n * second / sent, &limit, size) {
                word = next;
                passed += size;
            }
        }
        passed
    }

    #[test]
    fn as_many_bytes_pass_as_are_allowed() {
        for (rate, burst, size) in [
            (1_000_000, 100_000, 60),
            (1_000_000, 100_000, 1514),
            (125_000_000, 1_000_000, 1514),
            (125_000_000, 1_000_000, 65_000),
            (1_250_000_000, 10_000_000, 9000),
        ] {
            let passed = bytes_passed(rate, burst, size);
            let want = rate + burst;
            assert!(passed.abs_diff(want) <= want / 50 + size, "{rate} {size}: {passed}");
        }
    }

    #[test]
    fn another_source_begins_anew() {
        let limit = limit(1, 1);
        let word = take(0, TAG, 1000, &limit, 60).unwrap();
        assert_eq!(take(word, TAG, 1001, &limit, 60), None);
        assert!(take(word, TAG + 1, 1001, &limit, 60).is_some());
        assert!(take(word, TAG, 1000 + limit.interval, &limit, 60).is_some());
        assert!(take(word, TAG, 1000 + (TIME >> 1), &limit, 60).is_some(), "a very long time ago");
    }

    #[test]
    fn flags() {
        let good = [0x02, 0x12, 0x10, 0x18, 0x11, 0x19, 0x04, 0x14, 0x30, 0xc2, 0x52, 0x0a];
        let bad = [0x00, 0x01, 0x03, 0x06, 0x07, 0x13, 0x05, 0x29, 0x3f, 0x08, 0x20, 0x22, 0x16];
        assert!(good.into_iter().all(can_be));
        assert!(!bad.into_iter().any(can_be));
    }

    #[test]
    fn bytes_of_a_limit() {
        let limit = Limit {
            interval: 1,
            tolerance: 2,
            id: 3,
            port: 53,
            protocol: 17,
            bits4: 32,
            bits6: 64,
            audit: 1,
            mask: 0x12,
            flags: 2,
            bytes: 1,
            reserved: [0; 7],
        };
        // SAFETY: 40 bytes without padding.
        let bytes: [u8; 40] = unsafe { core::mem::transmute(limit) };
        assert_eq!(bytes[24..], [53, 0, 17, 32, 64, 1, 0x12, 2, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert!(limit.counts(17, 53, 2) && !limit.counts(6, 53, 2) && !limit.counts(17, 54, 2));
        assert!(!limit.counts(17, 53, 0x12) && limit.counts(17, 53, 0x0a));
        assert_eq!(limit.key(u64::MAX, u64::MAX, true).hi, 0xffff_ffff << 32);
    }
}
