//! Flat prefix sets: which blocklist an address is in, at the same cost for one prefix and for
//! millions.
//!
//! IPv4: a first level with one entry for each of the 2^24 networks of length 24, sixteen to a
//! cache line, and second-level blocks of 256 bytes for those that hold longer prefixes. A network
//! with a single longer prefix, the usual case of lists of addresses, needs no block: its entry
//! holds that prefix itself. Lists are numbered from 1; 0 is none.

use crate::table::shared;

/// Entries in a line of the first level.
pub const LINE: usize = 16;
/// Lines of the first level.
pub const LINES: u32 = (1 << 24) / LINE as u32;

/// A line of the first level. Live: each entry, stored as one aligned 32-bit word.
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
}

/// A second-level block: the list of each address of a /24. Live: each byte.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    lists: [u8; 256],
}

shared!(Block, 256, { lists @ 0 });

impl Block {
    /// The list of each address.
    #[must_use]
    pub const fn lists(&self) -> &[u8; 256] {
        &self.lists
    }
}

/// An entry of the first level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The whole /24 is of this list; 0: of none.
    List(u8),
    /// One longer prefix of a list, and what the rest of the /24 is of.
    One(One),
    /// Look into this block.
    Block(u32),
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
    const BLOCK: u32 = 1 << 31;
    const ONE: u32 = 1 << 30;

    /// One word.
    #[must_use]
    pub const fn to_word(self) -> u32 {
        match self {
            Self::List(n) => n as u32,
            Self::One(One { base, host_bits, inside, outside }) => {
                Self::ONE | u32::from_be_bytes([host_bits & 7, base, inside, outside])
            }
            Self::Block(n) => n | Self::BLOCK,
        }
    }

    /// From one word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u32) -> Self {
        if word & Self::BLOCK != 0 {
            Self::Block(word & !Self::BLOCK)
        } else if word & Self::ONE != 0 {
            let [bits, base, inside, outside] = word.to_be_bytes();
            Self::One(One { base, host_bits: bits & 7, inside, outside })
        } else {
            Self::List(word as u8)
        }
    }
}

/// What a list does, as its number's row says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListRow {
    /// 1: drop; 0: count only.
    pub drop: u64,
    /// Stable number of the list's name.
    pub id: u64,
}

shared!(ListRow, 16, { drop @ 0, id @ 8 });

/// Read access to the prefix tables.
pub trait Prefixes {
    /// A line of the first level.
    fn line(&self, index: u32) -> Option<&Line>;
    /// A block.
    fn block(&self, index: u32) -> Option<&Block>;
}

/// The list of an IPv4 address, given in host byte order; 0: none.
#[inline(always)]
pub fn list_v4(tables: &impl Prefixes, addr: u32) -> u8 {
    let network = addr >> 8;
    let Some(line) = tables.line(network / LINE as u32) else { return 0 };
    // SAFETY: a reference into the line, in bounds by the mask; volatile because the daemon stores.
    let word =
        unsafe { core::ptr::read_volatile(&raw const line.entries[network as usize & (LINE - 1)]) };
    match Entry::from_word(word) {
        Entry::List(n) => n,
        Entry::One(one) => one.list(addr as u8),
        Entry::Block(n) => match tables.block(n) {
            Some(block) => block.lists[addr as usize & 255],
            None => 0,
        },
    }
}

/// Key of the IPv6 prefix table: a kernel LPM trie's, prefix length first.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixKey6 {
    /// Leading bits that count.
    pub bits: u32,
    /// Network byte order.
    pub addr: [u8; 16],
}

const _: () = assert!(size_of::<PrefixKey6>() == 20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_its_word() {
        let one = One { base: 0x80, host_bits: 6, inside: 3, outside: 4 };
        for (entry, word) in
            [(Entry::List(7), 7), (Entry::One(one), 0x4680_0304), (Entry::Block(9), 0x8000_0009)]
        {
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
}
