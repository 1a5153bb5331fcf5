//! Sets of source addresses: from prefixes to sorted ranges in the arena.

use std::net::IpAddr;

use abi::ranges::{self, Ranges};
use ipnet::IpNet;

use super::{Full, alloc::Arena};
use crate::datapath::{Op, Tables};

/// The sets of a service or of tunnels: for IPv4 and for IPv6.
pub(super) type Pair = [Ranges; 2];

/// Which of a [`Pair`] is for this address.
pub(super) fn family(v4: bool) -> usize {
    usize::from(!v4)
}

/// The sets that `nets` want, in the arena; no prefix at all means anybody. What stands there and is the
/// same stays; what it replaces is given back.
///
/// # Errors
/// [`Full`].
pub(super) fn put(
    old: Pair,
    nets: &[IpNet],
    arena: &mut Arena,
    tables: &dyn Tables,
    ops: &mut Vec<Op>,
) -> Result<Pair, Full> {
    let mut new = [Ranges::ANYBODY; 2];
    for v4 in [true, false] {
        let place = &mut new[family(v4)];
        let before = old[family(v4)];
        if nets.is_empty() {
            give(before, v4, arena);
            continue;
        }
        let words = words(nets, v4);
        let count = words.len() as u32 / ranges::words(v4);
        let stands = |at: u32| (at..).zip(&words).all(|(i, &word)| tables.slot(i) == word);
        *place = if before.only && before.count == count && stands(before.offset) {
            before
        } else {
            let offset = match words.len() as u32 {
                0 => 0,
                len => arena.take(len).ok_or(Full("SLOTS"))?,
            };
            if !words.is_empty() {
                ops.push(Op::Words { offset, words });
            }
            give(before, v4, arena);
            Ranges { offset, count, only: true }
        };
    }
    Ok(new)
}

/// Gives back the words of a set.
pub(super) fn give(set: Ranges, v4: bool, arena: &mut Arena) {
    if set.count > 0 {
        arena.give(set.offset, set.count * ranges::words(v4));
    }
}

/// Takes note of a set that stands in the arena.
pub(super) fn claim(set: Ranges, v4: bool, arena: &mut Arena) -> bool {
    set.count == 0 || arena.claim(set.offset, set.count * ranges::words(v4))
}

/// Words that the prefixes take at most.
pub fn room(nets: &[IpNet]) -> u64 {
    nets.iter().map(|net| u64::from(ranges::words(net.addr().is_ipv4()))).sum()
}

fn words(nets: &[IpNet], v4: bool) -> Vec<u64> {
    let number = |a: IpAddr| match a {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    };
    let mut all: Vec<(u128, u128)> = nets
        .iter()
        .filter(|net| net.addr().is_ipv4() == v4)
        .map(|net| (number(net.network()), number(net.broadcast())))
        .collect();
    all.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    let address = |n: u128| match v4 {
        true => IpAddr::V4((n as u32).into()),
        false => IpAddr::V6(n.into()),
    };
    let mut words = Vec::with_capacity(merged.len());
    for (first, last) in merged {
        let (range, used) = ranges::encode(address(first).into(), address(last).into());
        words.extend_from_slice(&range[..used]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|t| t.parse().expect("a prefix")).collect()
    }

    #[test]
    fn prefixes_are_joined() {
        let nets =
            nets(&["10.0.1.0/24", "10.0.0.0/24", "10.0.1.128/25", "2001:db8::/32", "192.0.2.1/32"]);
        assert_eq!(words(&nets, true), [0x0a00_0000_0a00_01ff, 0xc000_0201_c000_0201]);
        assert_eq!(
            words(&nets, false),
            [0x2001_0db8_0000_0000, 0, 0x2001_0db8_ffff_ffff, u64::MAX]
        );
        assert_eq!(room(&nets), 8);
    }

    #[test]
    fn everything() {
        assert_eq!(words(&nets(&["0.0.0.0/0", "10.0.0.0/8"]), true), [0xffff_ffff]);
        assert_eq!(words(&nets(&["::/0"]), false), [0, 0, u64::MAX, u64::MAX]);
    }
}
