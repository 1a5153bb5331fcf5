//! Ranges of ports that services have: for each VIP a sorted list in the arena that rings stand in too, searched
//! by halving when no service has the very port. One word of the VIP's row says where it is.
//!
//! So a range is one frontend row, whatever its width, and a port that has a row of its own costs what it does
//! without ranges.

use crate::{
    limits::RANGE_STEPS,
    pick::Tables,
    ranges::Ranges,
    table::{Frontend, FrontendKey},
    wire::protocol,
};

/// A range of ports of a protocol, in one word. Words are in the order of protocols and ports.
///
/// From the highest bit on: protocol (2), first port (16), last port (16), frontend row (30).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u64);

impl Span {
    const ROW: u64 = (1 << 30) - 1;

    /// `row`: of its frontend. `None`: the protocol has no ports that services have.
    #[must_use]
    pub const fn new(number: u8, first: u16, last: u16, row: u32) -> Option<Self> {
        let Some(class) = class(number) else { return None };
        Some(Self(
            class << 62 | (first as u64) << 46 | (last as u64) << 30 | (row as u64 & Self::ROW),
        ))
    }

    /// Its word.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// Row of its frontend.
    #[inline(always)]
    #[must_use]
    pub const fn row(self) -> u32 {
        (self.0 & Self::ROW) as u32
    }

    /// First port.
    #[inline(always)]
    #[must_use]
    pub const fn first(self) -> u16 {
        (self.0 >> 46) as u16
    }

    /// Protocol and first port, as one number.
    #[inline(always)]
    const fn low(self) -> u32 {
        (self.0 >> 46) as u32
    }

    /// Protocol and last port, as one number.
    #[inline(always)]
    const fn high(self) -> u32 {
        (self.0 >> 62 << 16) as u32 | (self.0 >> 30) as u16 as u32
    }
}

#[inline(always)]
const fn class(number: u8) -> Option<u64> {
    match number {
        protocol::TCP => Some(0),
        protocol::UDP => Some(1),
        protocol::SCTP => Some(2),
        _ => None,
    }
}

/// Row of the frontend that has a port in its range, of a VIP's row; `port` in host byte order.
///
/// A row that is not of that range is not given: between two stores of a change a list may name one that has
/// become another's.
#[inline(always)]
pub fn row<T: Tables>(tables: &T, vip: &Frontend, port: u16, number: u8) -> Option<u32> {
    let span = find(tables, vip.ranges(), port, number)?;
    let key = FrontendKey::range(vip.key().addr, span.first(), number);
    tables.frontend(span.row())?.is(&key).then_some(span.row())
}

#[inline(always)]
fn find<T: Tables>(tables: &T, word: u64, port: u16, number: u8) -> Option<Span> {
    let list = Ranges::from_word(word);
    let wanted = (class(number)? << 16) as u32 | u32::from(port);
    let (mut low, mut high, mut steps) = (0, list.count, 0);
    while steps < RANGE_STEPS && low < high {
        let middle = (low + high) / 2;
        let span = Span(tables.slot(list.offset.wrapping_add(middle))?);
        if span.low() > wanted {
            high = middle;
        } else if span.high() < wanted {
            low = middle + 1;
        } else {
            return Some(span);
        }
        steps += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::ranges::tests::Words;

    #[test]
    fn a_word() {
        let span = Span::new(132, 8000, 8999, 0x2000_0007).unwrap();
        assert_eq!(span.to_word(), 2 << 62 | 8000 << 46 | 8999 << 30 | 0x2000_0007);
        assert_eq!((span.row(), span.first()), (0x2000_0007, 8000));
        assert_eq!((span.low(), span.high()), (2 << 16 | 8000, 2 << 16 | 8999));
        assert_eq!(Span::new(1, 1, 2, 3), None);
    }

    proptest! {
        #[test]
        fn the_same_as_one_by_one(
            bounds in prop::collection::btree_set((0u8..3, 1u16..=u16::MAX), 0..60),
            probe in (0u8..4, any::<u16>()),
            near in any::<prop::sample::Index>(),
            step in -1i32..=1,
        ) {
            let numbers = [6, 17, 132, 47];
            let mut spans: Vec<(u8, u16, u16)> = Vec::new();
            for class in 0..3 {
                let ports: Vec<u16> = bounds.iter().filter(|b| b.0 == class).map(|b| b.1).collect();
                spans.extend(ports.chunks_exact(2).map(|p| (class, p[0], p[1])));
            }
            let word = |(row, &(class, first, last)): (u32, &(u8, u16, u16))| {
                Span::new(numbers[class as usize], first, last, row).unwrap().to_word()
            };
            let mut words = std::vec![7; 3];
            words.extend((0..).zip(&spans).map(word));
            prop_assert!(words[3..].is_sorted());
            let list = Ranges { offset: 3, count: spans.len() as u32, only: true }.to_word();
            let tables = Words(words);
            let check = |(class, port): (u8, u16)| {
                let place = spans.iter().position(|s| s.0 == class && (s.1..=s.2).contains(&port));
                let found = find(&tables, list, port, numbers[class as usize]).map(Span::row);
                assert_eq!(found, place.map(|p| p as u32), "{class} {port} in {spans:?}");
            };
            check(probe);
            if !spans.is_empty() {
                let (class, first, last) = spans[near.index(spans.len())];
                for port in [first, last] {
                    check((class, (i32::from(port) + step).clamp(0, 65535) as u16));
                }
            }
        }
    }
}
