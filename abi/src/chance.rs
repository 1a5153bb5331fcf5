//! The second chance of a TCP segment: GUE's private data name another backend, to which the receiver hands
//! on what it has no socket for.
//!
//! In the manner of GitHub's GLB director, whose format for IPv4 this is. It follows GUE's header of 4 bytes,
//! whose length field covers it:
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------------------------------+---------------+---------------+
//! |  kind: 0 IPv4, 1 IPv6         |  next hop     |  hops         |
//! +-------------------------------+---------------+---------------+
//! |  address of each hop: 4 or 16 bytes                           |
//! ```
//!
//! `next hop` counts the hops that were taken. When it reaches `hops` there is no other chance.

use crate::{
    limits::MAX_CHANCES,
    outer::GUE_SHIM,
    pick::{self, Tables},
    table::{Frontend, Slot},
};

/// Bytes between the outer IPv4 header and the inner one: UDP's header, GUE's, and one hop.
pub const SHIM4: usize = GUE_SHIM + 4 + 4;
/// As [`SHIM4`], with an outer IPv6 header.
pub const SHIM6: usize = GUE_SHIM + 4 + 16;

/// Bytes that the data take behind GUE's header, with an outer header of this family.
#[must_use]
pub const fn room(outer_v4: bool) -> usize {
    if outer_v4 { SHIM4 - GUE_SHIM } else { SHIM6 - GUE_SHIM }
}

/// The first word of the data for one hop that nobody has taken, in memory order.
#[must_use]
pub const fn one_hop(outer_v4: bool) -> u32 {
    u32::from_ne_bytes([0, !outer_v4 as u8, 0, 1])
}

/// What the data say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chances {
    /// Hops that were taken.
    pub taken: usize,
    /// Hops in all.
    pub hops: usize,
    /// Bytes from GUE's header to the inner packet.
    pub skip: usize,
}

/// Reads GUE's first byte and the first word of its private data. `None`: not of this format, or for the other
/// family of outer header.
#[inline(always)]
#[must_use]
pub const fn read(gue: u8, word: [u8; 4], outer_v4: bool) -> Option<Chances> {
    let [high, kind, taken, hops] = word;
    let width = if outer_v4 { 1 } else { 4 };
    if gue & 0xe0 != 0 || high != 0 || kind != !outer_v4 as u8 {
        return None;
    }
    if hops == 0 || hops > MAX_CHANCES || taken > hops || (gue & 0x1f) != 1 + hops * width {
        return None;
    }
    Some(Chances {
        taken: taken as usize,
        hops: hops as usize,
        skip: 4 + (gue & 0x1f) as usize * 4,
    })
}

/// The other backend that a flow may be connected to while its slot is between two; [`Slot::NONE`]: there is
/// none, or it takes nothing. `row` is the one that was picked.
#[inline(always)]
pub fn other<T: Tables>(tables: &T, frontend: &Frontend, hash: u64, row: u32) -> u32 {
    let ring = frontend.ring();
    let Some(slot) = pick::own_slot(tables, ring, hash) else { return Slot::NONE };
    let previous = pick::previous(tables, frontend, ring, slot, hash);
    let other = if slot.current == row { previous } else { slot.current };
    if other != row && pick::is_up(tables, other) { other } else { Slot::NONE }
}

const _: () = {
    assert!(MAX_CHANCES * 4 < 31, "the length field has five bits, and counts words");
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for v4 in [true, false] {
            let gue = (room(v4) / 4) as u8;
            let found = read(gue, one_hop(v4).to_ne_bytes(), v4).unwrap();
            assert_eq!(found, Chances { taken: 0, hops: 1, skip: 4 + room(v4) });
            assert_eq!(read(gue, one_hop(v4).to_ne_bytes(), !v4), None);
        }
        // GLB's: two hops, one taken.
        let found = read(3, [0, 0, 1, 2], true).unwrap();
        assert_eq!(found, Chances { taken: 1, hops: 2, skip: 16 });
    }

    #[test]
    fn nonsense_is_refused() {
        for (gue, word) in [
            (2, [0, 0, 0, 0]),
            (2, [0, 0, 2, 1]),
            (2, [0, 1, 0, 1]),
            (2, [1, 0, 0, 1]),
            (3, [0, 0, 0, 1]),
            (0x22, [0, 0, 0, 1]),
            (6, [0, 0, 0, 5]),
        ] {
            assert_eq!(read(gue, word, true), None, "{gue} {word:?}");
        }
    }
}
