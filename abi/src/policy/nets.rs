//! The identity of the longest prefix that holds an address: a flat table for both families.
//!
//! It works as that of IPv6 blocklists ([`crate::prefix`]) does, and shares its code: a hash table of prefixes,
//! probed once for each length that prefixes near the address have, longest first. Rows of a filter say which
//! lengths these are: of long prefixes by a longer part of the address, so that a random one of a million
//! prefixes is in the way of few addresses.
//!
//! An IPv4 prefix stands behind 16 bits that no unicast address of IPv6 begins with.

use core::net::IpAddr;

use crate::{
    addr::Addr,
    hash,
    limits::policy::FIRST_CIDR,
    prefix::{Lengths, Net6},
    table::{live, shared},
};

/// Prefixes in a bucket.
pub const NET_WAYS: usize = 3;

/// What an IPv4 address stands behind.
const V4: u64 = 0xffff;

/// Where an address stands: the words of [`Net6`]. One of IPv6 where those of IPv4 stand, which is no address
/// that anybody has, is taken for the first one of the 16 bits before.
#[inline(always)]
#[must_use]
pub const fn place(address: Addr) -> [u64; 2] {
    if address.is_v4() {
        return [V4 << 48 | (address.as_v4_raw().swap_bytes() as u64) << 16, 0];
    }
    let hi = address.hi().swap_bytes();
    if is_v4(hi) { [(V4 - 1) << 48, 0] } else { [hi, address.lo().swap_bytes()] }
}

/// The key of a prefix: its first address, and its length in its own family. `None`: one of IPv6 where those
/// of IPv4 stand.
#[must_use]
pub fn key(first: IpAddr, len: u8) -> Option<Net6> {
    let address = Addr::from(first);
    if !address.is_v4() && is_v4(address.hi().swap_bytes()) {
        return None;
    }
    let [hi, lo] = place(address);
    Some(Net6::new(hi, lo, if address.is_v4() { len + 16 } else { len }))
}

const fn is_v4(hi: u64) -> bool {
    hi >> 48 == V4
}

/// Up to this length, prefixes are told by the row for the leading 32 bits; longer ones by the row for as many
/// leading bits as this.
#[inline(always)]
const fn split(hi: u64) -> u64 {
    if is_v4(hi) { 40 } else { 48 }
}

/// Lengths of 64 and less up to the split, as bits of a row's second word: bit `64 - n` for the length `n`.
#[inline(always)]
const fn coarse(hi: u64) -> u64 {
    u64::MAX << (64 - split(hi))
}

/// The two rows of the filter, to be masked.
#[inline(always)]
#[must_use]
pub const fn rows(hi: u64) -> [u32; 2] {
    [hash::leading6(hi), hash::leading(hi >> (64 - split(hi)))]
}

/// Where the length of a prefix is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Row (to be masked), word and bit of the filter.
    Row(u32, usize, u64),
    /// Bit of [`Known`]'s word.
    Short(u64),
}

/// Where the length of a prefix with this key is told.
#[must_use]
pub const fn told(net: Net6) -> Told {
    let len = net.len as u64;
    if len < 32 {
        return Told::Short(1 << (31 - len + if is_v4(net.hi) { 32 } else { 0 }));
    }
    let [coarse, fine] = rows(net.hi);
    let n = 128 - len;
    Told::Row(if len <= split(net.hi) { coarse } else { fine }, n as usize / 64, 1 << (n % 64))
}

/// Which prefixes there are at all, in one word: lengths below 32 of IPv6 keys in bits 0..32, of IPv4 keys in
/// 32..48, as bit `31 - n`; whether there are any of IPv4 in 62, of IPv6 in 63.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known(pub u64);

impl Known {
    const ANY_V4: u64 = 1 << 62;
    const ANY_V6: u64 = 1 << 63;

    /// That there are prefixes of the family of this key.
    #[must_use]
    pub const fn any(net: Net6) -> u64 {
        if is_v4(net.hi) { Self::ANY_V4 } else { Self::ANY_V6 }
    }

    /// Whether there are any of an address's family.
    #[inline(always)]
    #[must_use]
    pub const fn may_have(self, v4: bool) -> bool {
        self.0 & if v4 { Self::ANY_V4 } else { Self::ANY_V6 } != 0
    }

    #[inline(always)]
    const fn shorts(self, hi: u64) -> u64 {
        if is_v4(hi) { self.0 >> 32 & 0xffff } else { self.0 & 0xffff_ffff }
    }
}

/// A bucket: the addresses of its prefixes, and for each a half of a word, see [`NetBucket::meta`].
/// Live: each word; an address is written while its half is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetBucket {
    addrs: [[u64; 2]; NET_WAYS],
    metas: [u64; 2],
}

shared!(NetBucket, 64, { addrs @ 0, metas @ 48 });

impl NetBucket {
    /// Index of the first word of halves.
    pub const META: usize = 2 * NET_WAYS;

    /// Length and identity of a prefix: the identity, less [`FIRST_CIDR`], in bits 0..24, the key's length plus
    /// one in 24..32. Never 0.
    #[inline(always)]
    #[must_use]
    pub const fn meta(len: u8, identity: u32) -> u32 {
        Self::tag(len) | identity.wrapping_sub(FIRST_CIDR) & 0x00ff_ffff
    }

    #[inline(always)]
    const fn tag(len: u8) -> u32 {
        (len as u32 + 1) << 24
    }

    /// Of these words: addresses, then the halves.
    #[must_use]
    pub const fn from_words(w: [u64; 8]) -> Self {
        Self { addrs: [[w[0], w[1]], [w[2], w[3]], [w[4], w[5]]], metas: [w[6], w[7]] }
    }

    /// The identity of exactly this prefix.
    #[inline(always)]
    fn find(&self, net: Net6) -> Option<u32> {
        let metas = [live(&self.metas[0]), live(&self.metas[1])];
        let metas = [metas[0] as u32, (metas[0] >> 32) as u32, metas[1] as u32];
        let mut way = 0;
        while way < NET_WAYS {
            let [hi, lo] = &self.addrs[way];
            // One comparison, for the verifier follows each branch.
            let differs = u64::from(metas[way] & 0xff00_0000 ^ Self::tag(net.len))
                | live(hi) ^ net.hi
                | live(lo) ^ net.lo;
            if differs == 0 {
                return Some((metas[way] & 0x00ff_ffff) + FIRST_CIDR);
            }
            way += 1;
        }
        None
    }
}

/// Read access to the table. What is not there is 0 or `None`.
pub trait Nets {
    /// [`Known`].
    fn known(&self) -> Known;
    /// A row of the filter; its number is to be masked.
    fn filter(&self, row: u32) -> [u64; 2];
    /// A bucket; its number is to be masked.
    fn net_bucket(&self, index: u32) -> Option<&NetBucket>;
}

/// The identity of the longest prefix that holds an address; 0: none does.
#[inline(always)]
pub fn identity(nets: &impl Nets, address: Addr) -> u32 {
    if !nets.known().may_have(address.is_v4()) {
        return 0;
    }
    let [hi, lo] = place(address);
    longest(nets, hi, lo)
}

/// The same for the address at this [`place`].
#[inline(always)]
pub fn longest(nets: &impl Nets, hi: u64, lo: u64) -> u32 {
    let [near, far] = rows(hi).map(|row| nets.filter(row));
    let coarse = coarse(hi);
    let mut lengths = Lengths {
        long: far[0],
        middle: near[1] & coarse | far[1] & !coarse,
        short: nets.known().shorts(hi),
    };
    for _ in 0..129u32 {
        let Some(len) = lengths.next() else { return 0 };
        let net = Net6::new(hi, lo, len);
        let [one, other] = net.buckets();
        // As in `prefix::list_v6`.
        let (Some(one), Some(other)) = (nets.net_bucket(one), nets.net_bucket(other)) else {
            return 0;
        };
        if let Some(identity) = one.find(net).or_else(|| other.find(net)) {
            return identity;
        }
    }
    0
}
