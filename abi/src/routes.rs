//! Sources of a service that have a group of its backends to themselves: disjoint sorted ranges in the arena that
//! rings stand in too, each with the group that its addresses go to.
//!
//! The first word is the number of ranges. Behind it stand the ranges, as [`crate::ranges`] has them, each with one
//! more word: port and protocol of the group's [`FrontendKey`]. So a group is found as any frontend is, and a packet
//! for one that is not there goes by the service's own ring.

use crate::{
    addr::Addr,
    pick::{self, Tables},
    ranges::{self, Ranges},
    table::{Frontend, FrontendKey, Slot},
};

/// Words in front of the ranges.
pub const HEAD: u32 = 1;

/// Words of a range, with its group.
#[must_use]
pub const fn words(v4: bool) -> u32 {
    ranges::words(v4) + 1
}

/// The words of a range and its group.
#[must_use]
pub fn encode(first: Addr, last: Addr, group: FrontendKey) -> ([u64; 5], usize) {
    let (range, used) = ranges::encode(first, last);
    let mut all = [0; 5];
    all[..used].copy_from_slice(&range[..used]);
    all[used] = u64::from(group.port_protocol);
    (all, used + 1)
}

/// Row of the frontend of the group that a client, given in two halves as [`Addr`] has it, is routed to;
/// [`Slot::NONE`]: to none.
#[inline(always)]
pub fn group<T: Tables>(tables: &T, frontend: &Frontend, hi: u64, lo: u64) -> u32 {
    let Some(port_protocol) = key(tables, frontend, hi, lo) else { return Slot::NONE };
    let key = FrontendKey { addr: frontend.key().addr, port_protocol };
    pick::frontend(tables, &key).map_or(Slot::NONE, |(row, _)| row)
}

#[inline(always)]
fn key<T: Tables>(tables: &T, frontend: &Frontend, hi: u64, lo: u64) -> Option<u32> {
    let at = frontend.routes()?;
    let count = tables.slot(at)? as u32;
    let all = Ranges { offset: at + HEAD, count, only: true };
    let range = ranges::find::<T, 1>(tables, all, hi, lo)?;
    let v4 = frontend.key().addr.is_v4();
    Some(tables.slot(range.wrapping_add(ranges::words(v4)))? as u32)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        ranges::tests::Words,
        table::{Mode, Ring},
    };

    /// What is found at `probe` in ranges that begin at every second bound; the group of each is its number.
    fn found(bounds: &[u128], probe: u128, addr: impl Fn(u128) -> IpAddr) -> Option<u32> {
        let vip = Addr::from(addr(0xcb00_7101 | 1 << 127));
        let mut words = std::vec![7; 3];
        words.push(bounds.len() as u64 / 2);
        for (number, pair) in (0..).zip(bounds.chunks_exact(2)) {
            let group = FrontendKey::group(vip, number);
            let (range, used) = encode(addr(pair[0]).into(), addr(pair[1]).into(), group);
            assert_eq!(used as u32, self::words(vip.is_v4()));
            words.extend(&range[..used]);
        }
        let mut frontend =
            Frontend::service(FrontendKey::new(vip, 80, 6), Mode::L2, Ring::default(), 1);
        frontend.set_any(Frontend::special_word(Some(9), Some(3)));
        assert_eq!((frontend.choice(), frontend.routes()), (Some(9), Some(3)));
        let client = Addr::from(addr(probe));
        key(&Words(words), &frontend, client.hi(), client.lo())
    }

    fn check(bounds: &[u128], probe: u128, addr: impl Fn(u128) -> IpAddr) {
        let within = bounds.chunks_exact(2).position(|p| (p[0]..=p[1]).contains(&probe));
        let vip = Addr::default();
        let wanted = within.map(|number| FrontendKey::group(vip, number as u32).port_protocol);
        assert_eq!(found(bounds, probe, addr), wanted);
    }

    proptest! {
        #[test]
        fn each_range_has_its_group(
            bounds in prop::collection::btree_set(any::<u128>(), 0..40),
            probe: u128,
            near in any::<prop::sample::Index>(),
        ) {
            let v6 = |n: u128| IpAddr::V6(Ipv6Addr::from(n));
            let v4 = |n: u128| IpAddr::V4(Ipv4Addr::from(n as u32));
            let mut large: Vec<u128> = bounds.iter().map(|b| b | 1 << 127).collect();
            let mut small: Vec<u128> = bounds.iter().map(|b| b >> 96).collect();
            for all in [&mut large, &mut small] {
                all.sort_unstable();
                all.dedup();
            }
            check(&large, probe | 1 << 127, v6);
            check(&small, probe & 0xffff_ffff, v4);
            if !large.is_empty() {
                let bound = large[near.index(large.len())];
                check(&large, bound, v6);
                check(&large, bound.saturating_sub(1) | 1 << 127, v6);
                let bound = small[near.index(small.len())];
                check(&small, bound, v4);
                check(&small, (bound + 1) & 0xffff_ffff, v4);
            }
        }
    }
}
