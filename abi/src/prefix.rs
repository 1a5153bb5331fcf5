//! Flat prefix sets: which blocklist an address is in, at the same cost for one prefix and for
//! millions.
//!
//! IPv4: one entry for each network of length 24 that has any, sixteen to a cache line; those of 32 neighbours
//! stand together. A network with a single longer prefix, the usual case of lists of addresses, is told
//! by its entry alone; one with several of the same list by a bitmap of 32 bytes; any other by a
//! block with the list of each of its addresses.
//!
//! Before them stands a summary that says which entries are there at all, and where ([`summary`]).
//!
//! IPv6: a hash table of prefixes, each with the strongest list of all that cover it, so that the
//! longest match is right; it is probed once for each length that prefixes with the address's
//! leading 32 bits have, as a filter says. Most addresses have none: then that is all. A prefix is in
//! one of two buckets.
//!
//! There are two of everything, halves, one in force while the other one is written; a bit of
//! [`crate::table::Control`]'s flags says which. Lists are numbered from 1; 0 is none.

use crate::{
    hash,
    scope::MEMBERS,
    summary,
    table::{live, shared},
};

/// Entries in a line.
pub const LINE: usize = 16;
/// Lines that hold an entry of every network: more are not needed in a half.
pub const LINES: u32 = (1 << 24) / LINE as u32;
/// Prefixes in a bucket of the IPv6 table.
pub const WAYS6: usize = 3;
/// The filter of the IPv6 table tells lengths from here on; shorter ones are told once for all.
pub const SHORTEST6: u8 = 32;

/// Entries of networks. Live: each, stored as one aligned 32-bit word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    entries: [u32; LINE],
}

shared!(Line, 64, { entries @ 0 });

impl Line {
    /// The words of its entries.
    #[must_use]
    pub const fn words(&self) -> [u32; LINE] {
        self.entries
    }

    /// The word of the entry at a place, of which this line is a part.
    #[inline(always)]
    #[must_use]
    pub fn word(&self, place: u32) -> u32 {
        // SAFETY: a reference into the line, in bounds by the mask; volatile because the daemon stores.
        unsafe { core::ptr::read_volatile(&raw const self.entries[place as usize & (LINE - 1)]) }
    }
}

/// Addresses of a /24: bit `n % 64` of word `n / 64` is that of the address that ends in `n`. Written
/// before anything points at it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bitmap {
    words: [u64; 4],
}

shared!(Bitmap, 32, { words @ 0 });

impl Bitmap {
    /// Of these words.
    #[must_use]
    pub const fn new(words: [u64; 4]) -> Self {
        Self { words }
    }

    /// Its words.
    #[must_use]
    pub const fn words(&self) -> [u64; 4] {
        self.words
    }

    /// Whether the address that ends in `low` is in it.
    #[inline(always)]
    #[must_use]
    pub const fn holds(&self, low: u8) -> bool {
        self.words[(low >> 6) as usize & 3] >> (low & 63) & 1 != 0
    }
}

/// The list of each address of a /24. Written before anything points at it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    lists: [u8; 256],
}

shared!(Block, 256, { lists @ 0 });

impl Block {
    /// Of these lists.
    #[must_use]
    pub const fn new(lists: [u8; 256]) -> Self {
        Self { lists }
    }

    /// The list of each address.
    #[must_use]
    pub const fn lists(&self) -> &[u8; 256] {
        &self.lists
    }
}

impl Default for Block {
    fn default() -> Self {
        Self { lists: [0; 256] }
    }
}

/// What the entry of a network says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The whole /24 is of this list; 0: of none.
    List(u8),
    /// One longer prefix of a list, and what the rest of the /24 is of.
    One(One),
    /// Look into this block.
    Block(u32),
    /// Those of this bitmap are of this list, the others of none.
    Bitmap {
        /// Row, below 2^22.
        row: u32,
        /// Number of the list.
        list: u8,
    },
}

/// A /24 with a single longer prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct One {
    /// Last byte of the prefix's first address.
    pub base: u8,
    /// Host bits of the prefix: 0 to 7.
    pub host_bits: u8,
    /// List of the prefix.
    pub inside: u8,
    /// List of the other addresses of the /24.
    pub outside: u8,
}

impl One {
    /// The list of the address whose last byte this is.
    #[inline(always)]
    #[must_use]
    pub const fn list(self, low: u8) -> u8 {
        if (low ^ self.base) >> (self.host_bits & 7) == 0 { self.inside } else { self.outside }
    }
}

impl Entry {
    const ONE: u32 = 1 << 30;
    const BLOCK: u32 = 2 << 30;
    const BITMAP: u32 = 3 << 30;

    /// A bit for each 32 addresses of the network of which one may have a list, for the fine bits of [`summary`].
    /// `bitmap` gives the words of a bitmap.
    #[must_use]
    pub fn eighths(self, bitmap: impl FnOnce(u32) -> [u64; 4]) -> u8 {
        match self {
            Self::List(0) => 0,
            Self::One(One { base, host_bits, inside, outside: 0 }) if inside != 0 => {
                let count = 1u16 << host_bits.saturating_sub(5);
                (((1u16 << count) - 1) as u8) << (base >> 5)
            }
            Self::List(_) | Self::One(_) | Self::Block(_) => u8::MAX,
            Self::Bitmap { row, .. } => {
                let has = |word: u64| u8::from(word as u32 != 0) | u8::from(word >> 32 != 0) << 1;
                (0..).zip(bitmap(row)).fold(0, |all, (n, word)| all | has(word) << (n * 2))
            }
        }
    }

    /// The word of the fine bits for eight neighbouring networks, whose entries these words are.
    #[must_use]
    pub fn fine(words: &[u32; 8], bitmap: impl Fn(u32) -> [u64; 4]) -> u64 {
        u64::from_le_bytes(words.map(|word| Self::from_word(word).eighths(&bitmap)))
    }

    /// One word.
    #[must_use]
    pub const fn to_word(self) -> u32 {
        match self {
            Self::List(n) => n as u32,
            Self::One(One { base, host_bits, inside, outside }) => {
                Self::ONE | u32::from_be_bytes([host_bits & 7, base, inside, outside])
            }
            Self::Block(n) => n | Self::BLOCK,
            Self::Bitmap { row, list } => Self::BITMAP | row << 8 | list as u32,
        }
    }

    /// From one word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u32) -> Self {
        match word & Self::BITMAP {
            0 => Self::List(word as u8),
            Self::ONE => {
                let [bits, base, inside, outside] = word.to_be_bytes();
                Self::One(One { base, host_bits: bits & 7, inside, outside })
            }
            Self::BLOCK => Self::Block(word & !Self::BLOCK),
            _ => Self::Bitmap { row: (word & !Self::BITMAP) >> 8, list: word as u8 },
        }
    }
}

/// What a list does, as its number's row says; or which lists a combination has ([`crate::scope`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListRow {
    /// 1: drop; 0: count only.
    pub drop: u64,
    /// Stable number of the list's name, or of the combination.
    pub id: u64,
    /// Lists that may decide, strongest first, 0 for none; all 0: this list decides about every packet from
    /// its addresses.
    pub members: [u8; MEMBERS],
}

shared!(ListRow, 32, { drop @ 0, id @ 8, members @ 16 });

impl ListRow {
    /// A row of these lists; what is beyond [`MEMBERS`] is left out.
    #[must_use]
    pub fn of(members: &[u8]) -> Self {
        let mut row = Self::default();
        row.members.iter_mut().zip(members).for_each(|(place, member)| *place = *member);
        row
    }

    /// Whether its list decides about every packet from its addresses.
    #[inline(always)]
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.members[0] == 0
    }
}

/// An IPv6 prefix: its address as two words of host byte order, without host bits, and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Net6 {
    /// The first 64 bits.
    pub hi: u64,
    /// The other 64 bits.
    pub lo: u64,
    /// 0 to 128.
    pub len: u8,
}

impl Net6 {
    /// The prefix of this length, at most 128, that holds an address. Without branches, for the search
    /// for a prefix would have the verifier follow each of them.
    #[inline(always)]
    #[must_use]
    pub const fn new(hi: u64, lo: u64, len: u8) -> Self {
        let bits = len as u64;
        let partial = !(u64::MAX >> (bits & 63));
        let (all, second) = (bits >> 7, (bits >> 6 & 1) | bits >> 7);
        let hi = hi & (partial | second.wrapping_neg());
        let lo = lo & ((partial & second.wrapping_neg()) | all.wrapping_neg());
        Self { hi, lo, len }
    }

    /// The two buckets (numbers to be masked) of which it is in one.
    #[inline(always)]
    #[must_use]
    pub const fn buckets(self) -> [u32; 2] {
        let hash = hash::prefix6(self.hi, self.lo, self.len as u64);
        [hash as u32, (hash >> 32) as u32]
    }
}

/// A bucket of the IPv6 table. Live: each half of an address, and each `meta`; an address is written
/// while its `meta` is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket6 {
    addrs: [[u64; 2]; WAYS6],
    meta: [u32; WAYS6],
    reserved: u32,
}

shared!(Bucket6, 64, { addrs @ 0, meta @ 48, reserved @ 60 });

impl Bucket6 {
    const USED: u32 = 1 << 31;
    /// Byte offset of `meta`, for the daemon's stores.
    pub const META: usize = core::mem::offset_of!(Self, meta);

    /// The prefix and its list.
    #[must_use]
    pub const fn get(&self, way: usize) -> Option<(Net6, u8)> {
        let meta = self.meta[way];
        if meta & Self::USED == 0 {
            return None;
        }
        let [hi, lo] = self.addrs[way];
        Some((Net6 { hi, lo, len: (meta >> 8) as u8 }, meta as u8))
    }

    /// Puts a prefix and its list there, or nothing.
    pub const fn set(&mut self, way: usize, entry: Option<(Net6, u8)>) {
        match entry {
            Some((Net6 { hi, lo, len }, list)) => {
                self.addrs[way] = [hi, lo];
                self.meta[way] = Self::USED | (len as u32) << 8 | list as u32;
            }
            None => self.meta[way] = 0,
        }
    }

    /// The list of exactly this prefix.
    #[inline(always)]
    fn find(&self, net: Net6) -> Option<u8> {
        let wanted = Self::USED | u32::from(net.len) << 8;
        for way in 0..WAYS6 {
            // SAFETY: a reference into the bucket; volatile because the daemon stores.
            let meta = unsafe { core::ptr::read_volatile(&raw const self.meta[way]) };
            let [hi, lo] = &self.addrs[way];
            // One comparison, for the verifier follows each branch.
            let differs = u64::from(meta & !0xff ^ wanted) | live(hi) ^ net.hi | live(lo) ^ net.lo;
            if differs == 0 {
                return Some(meta as u8);
            }
        }
        None
    }

    /// Its words: addresses, then `meta` in pairs.
    #[must_use]
    pub const fn words(&self) -> [u64; 8] {
        let [[a, b], [c, d], [e, f]] = self.addrs;
        let [x, y, z] = self.meta;
        [a, b, c, d, e, f, x as u64 | (y as u64) << 32, z as u64]
    }
}

/// A row of the filter: lengths of prefixes whose leading 32 bits have this row. Live: each word.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter6 {
    words: [u64; 2],
}

shared!(Filter6, 16, { words @ 0 });

impl Filter6 {
    /// Of these words.
    #[must_use]
    pub const fn new(words: [u64; 2]) -> Self {
        Self { words }
    }

    /// Its words: bit `n % 64` of word `n / 64` is for the length `128 - n`.
    #[inline(always)]
    #[must_use]
    pub fn words(&self) -> [u64; 2] {
        [live(&self.words[0]), live(&self.words[1])]
    }
}

/// Where the filter, or the word of shorter lengths, has a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place6 {
    /// Row (to be masked), word and bit of the filter.
    Filter {
        /// Hash of the leading 32 bits.
        row: u32,
        /// Word of the row.
        word: usize,
        /// Bit of the word.
        bit: u64,
    },
    /// Bit of the lengths that are told once for all.
    Short(u32),
}

impl Net6 {
    /// Where its length is told.
    #[must_use]
    pub const fn place(self) -> Place6 {
        if self.len < SHORTEST6 {
            return Place6::Short(1 << (31 - self.len));
        }
        let n = 128 - self.len as usize;
        Place6::Filter { row: hash::leading6(self.hi), word: n / 64, bit: 1 << (n % 64) }
    }
}

/// Read access to the half in force. What is not there is 0 or `None`.
pub trait Prefixes {
    /// A word of the summary of both families: [`summary`].
    fn summary(&self, row: u32) -> u64;
    /// A word of the fine bits of IPv4, or all ones where there are none.
    fn fine(&self, row: u32) -> u64;
    /// The word of the entry at a place that the summary has given.
    fn entry(&self, place: u32) -> u32;
    /// Whether a bitmap holds the address that ends in `low`.
    fn bitmap(&self, row: u32, low: u8) -> bool;
    /// The list of the address that ends in `low`.
    fn block(&self, row: u32, low: u8) -> u8;
    /// A row of the filter; its number is to be masked.
    fn filter6(&self, row: u32) -> [u64; 2];
    /// A bucket of the IPv6 table; its number is to be masked.
    fn bucket6(&self, index: u32) -> Option<&Bucket6>;
}

/// The list of an IPv4 address, given in host byte order; 0: none.
#[inline(always)]
pub fn list_v4(tables: &impl Prefixes, addr: u32) -> u8 {
    let may = summary::may_have(|row| tables.summary(row), |row| tables.fine(row), addr);
    if may { entry_v4(tables, addr) } else { 0 }
}

/// The same, when the summary has said that there may be one.
#[inline(always)]
pub fn entry_v4(tables: &impl Prefixes, addr: u32) -> u8 {
    let network = addr >> 8;
    let Some(place) = summary::place(tables.summary(summary::row(network)), network) else {
        return 0;
    };
    match Entry::from_word(tables.entry(place)) {
        Entry::List(n) => n,
        Entry::One(one) => one.list(addr as u8),
        Entry::Block(row) => tables.block(row, addr as u8),
        Entry::Bitmap { row, list } => {
            if tables.bitmap(row, addr as u8) {
                list
            } else {
                0
            }
        }
    }
}

/// The list of an IPv6 address; 0: none. `filter` is the row for its leading 32 bits, `shorts` the
/// lengths below [`SHORTEST6`] that are in use: bit `n` for the length `31 - n`.
#[inline(always)]
pub fn list_v6(tables: &impl Prefixes, [hi, lo]: [u64; 2], filter: [u64; 2], shorts: u32) -> u8 {
    let mut lengths = Lengths { long: filter[0], middle: filter[1], short: u64::from(shorts) };
    // One for each length; longest first, and the longest match is right.
    for _ in 0..129u32 {
        let Some(len) = lengths.next() else { return 0 };
        let net = Net6::new(hi, lo, len);
        let [one, other] = net.buckets();
        // Whatever ends a round ends the search, or the verifier would follow each of its ways on.
        let (Some(one), Some(other)) = (tables.bucket6(one), tables.bucket6(other)) else {
            return 0;
        };
        if let Some(list) = one.find(net).or_else(|| other.find(net)) {
            return list;
        }
    }
    0
}

/// Lengths of prefixes that an address may have, as bits: of length 128 and less, of 64 and less, of 31 and
/// less, lowest bit first.
pub(crate) struct Lengths {
    pub(crate) long: u64,
    pub(crate) middle: u64,
    pub(crate) short: u64,
}

impl Lengths {
    /// Takes the longest away. In a loop, the verifier follows what branches and comes together again in
    /// each round anew, so there is none of that here.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<u8> {
        let is_long = is_not_zero(self.long);
        let is_middle = is_not_zero(self.middle) & !is_long;
        let is_short = !(is_long | is_middle);
        let word = self.long & is_long | self.middle & is_middle | self.short & is_short;
        let lowest = word & word.wrapping_neg();
        self.long ^= lowest & is_long;
        self.middle ^= lowest & is_middle;
        self.short ^= lowest & is_short;
        let most = 128 & is_long | 64 & is_middle | 31 & is_short;
        if word == 0 {
            return None;
        }
        let number = u64::from(lowest.wrapping_sub(1).count_ones());
        Some((most - number) as u8)
    }
}

/// All bits, or none for 0.
#[inline(always)]
fn is_not_zero(word: u64) -> u64 {
    let sign = word | word.wrapping_neg();
    // SAFETY: a reference to a local; volatile because the compiler would see the comparison in this, and
    // make a branch of it.
    let sign = unsafe { core::ptr::read_volatile(&raw const sign) };
    (sign >> 63).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_its_word() {
        let one = One { base: 0x80, host_bits: 6, inside: 3, outside: 4 };
        for (entry, word) in [
            (Entry::List(7), 7),
            (Entry::One(one), 0x4680_0304),
            (Entry::Block(9), 0x8000_0009),
            (Entry::Bitmap { row: (1 << 22) - 1, list: 5 }, 0xffff_ff05),
        ] {
            assert_eq!(entry.to_word(), word);
            assert_eq!(Entry::from_word(word), entry);
        }
    }

    #[test]
    fn one_prefix_covers_its_addresses_and_no_others() {
        for host_bits in 0..8u8 {
            for base in (0..=255u8).filter(|b| b.trailing_zeros() >= u32::from(host_bits)) {
                let one = One { base, host_bits, inside: 1, outside: 2 };
                for low in 0..=255u8 {
                    let covered = u32::from(low) >= u32::from(base)
                        && u32::from(low) < u32::from(base) + (1 << host_bits);
                    assert_eq!(one.list(low), if covered { 1 } else { 2 }, "{one:?} {low}");
                }
            }
        }
    }

    #[test]
    fn eighths_are_those_with_an_address() {
        let bitmap = Bitmap::new([1 << 31, 0, 1 << 32, 3]);
        let both = Entry::Bitmap { row: 7, list: 1 };
        assert_eq!(both.eighths(|row| if row == 7 { bitmap.words() } else { [0; 4] }), 0b0110_0001);
        for host_bits in 0..8u8 {
            for base in (0..=255u8).filter(|b| b.trailing_zeros() >= u32::from(host_bits)) {
                let one = One { base, host_bits, inside: 1, outside: 0 };
                let held = (0..=255u8).filter(|&low| one.list(low) != 0);
                let want = held.fold(0, |bits, low| bits | 1u8 << (low / 32));
                assert_eq!(Entry::One(one).eighths(|_| [0; 4]), want, "{one:?}");
                let hole = One { inside: 0, outside: 1, ..one };
                assert_eq!(Entry::One(hole).eighths(|_| [0; 4]), 0xff);
            }
        }
        assert_eq!(Entry::List(0).eighths(|_| [1; 4]), 0);
        assert_eq!(Entry::List(1).eighths(|_| [0; 4]), 0xff);
        assert_eq!(Entry::Block(0).eighths(|_| [0; 4]), 0xff);
    }

    #[test]
    fn a_bitmap_has_a_bit_for_each_address() {
        let bitmap = Bitmap::new([1, 0, 0, 1 << 63]);
        let held: [bool; 256] = core::array::from_fn(|low| bitmap.holds(low as u8));
        assert!(held[0] && held[255] && held[1..255].iter().all(|held| !held));
    }

    #[test]
    fn bytes_of_a_bucket() {
        let mut bucket = Bucket6::default();
        let net = Net6::new(0x2001_0db8_0bad_0001, 5, 48);
        assert_eq!((net.hi, net.lo), (0x2001_0db8_0bad_0000, 0));
        bucket.set(1, Some((net, 7)));
        let words = bucket.words();
        assert_eq!(words, [0, 0, 0x2001_0db8_0bad_0000, 0, 0, 0, 0x8000_3007 << 32, 0]);
        assert_eq!((bucket.get(0), bucket.get(1)), (None, Some((net, 7))));
    }

    #[test]
    fn masks() {
        let all = |len| {
            let net = Net6::new(u64::MAX, u64::MAX, len);
            (net.hi, net.lo)
        };
        assert_eq!(all(0), (0, 0));
        assert_eq!(all(33), (0xffff_ffff_8000_0000, 0));
        assert_eq!(all(64), (u64::MAX, 0));
        assert_eq!(all(65), (u64::MAX, 1 << 63));
        assert_eq!(all(128), (u64::MAX, u64::MAX));
    }

    #[test]
    fn lengths_come_longest_first() {
        let mut lengths =
            Lengths { long: 1 << 63 | 1 << 5 | 1, middle: 1 << 16 | 1, short: 1 << 31 | 1 };
        let all: [_; 8] = core::array::from_fn(|_| lengths.next());
        let want = [128, 123, 65, 64, 48, 31, 0].map(Some);
        assert_eq!((&all[..7], all[7]), (&want[..], None));
    }
}
