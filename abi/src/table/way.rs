//! What translated packets need besides: NAT addresses, and the way back to clients.

use super::shared;
use crate::{
    addr::Addr,
    limits::{WAY_PROBES, WAYS},
};

/// A row of the table of NAT addresses. Immutable once it is used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatAddress {
    /// It; all zeros: none.
    pub addr: Addr,
}

shared!(NatAddress, 16, { addr @ 0 });

/// An interface that clients' packets come from, and by which replies go back to the sender of the last one.
/// The interface's number stands in each entry, so that a reply needs no route.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    ifindex: u32,
    mtu: u32,
    mac: [u8; 6],
    reserved: u16,
}

shared!(Way, 16, { ifindex @ 0, mtu @ 4, mac @ 8, reserved @ 14 });

impl Way {
    /// `mtu` in bytes of L3; `ifindex` 0 stands for none.
    #[must_use]
    pub const fn new(ifindex: u32, mtu: u32, mac: [u8; 6]) -> Self {
        Self { ifindex, mtu, mac, reserved: 0 }
    }

    /// The `n`th place of an interface in the table.
    #[inline(always)]
    #[must_use]
    pub const fn place(ifindex: u32, n: u32) -> u32 {
        const { assert!(WAYS.is_power_of_two() && WAY_PROBES <= WAYS) };
        ifindex.wrapping_add(n) & (WAYS - 1)
    }

    /// Number of the interface.
    #[inline(always)]
    #[must_use]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Bytes of L3 that fit.
    #[inline(always)]
    #[must_use]
    pub const fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Our MAC.
    #[inline(always)]
    #[must_use]
    pub const fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The same as it stands in a frame, in the first six bytes of a word; the last two are something else.
    #[inline(always)]
    #[must_use]
    pub const fn mac_word(&self) -> u64 {
        let [a, b, c, d, e, f] = self.mac;
        let [g, h] = self.reserved.to_ne_bytes();
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }

    /// In the word of an entry: replies carry VLAN tags, which stand in a table of their own. It is the bit of a group
    /// address, which nobody sends from.
    pub const TAGGED: u64 = 1;

    /// The word of an entry that leads back: the sender's MAC, and the interface, whose number must be below
    /// 65,536.
    #[inline(always)]
    #[must_use]
    pub const fn link(mac: [u8; 6], ifindex: u32) -> Option<u64> {
        let [a, b, c, d, e, f] = mac;
        if ifindex > 0xffff {
            return None;
        }
        let mac = u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]) & !Self::TAGGED;
        Some(mac | (ifindex as u64) << 48)
    }

    /// The MAC of such a word, as it stands in a frame, in the first six bytes of a word; the last two are something else.
    #[inline(always)]
    #[must_use]
    pub const fn mac_of(link: u64) -> u64 {
        link & !Self::TAGGED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frozen_images() {
        // SAFETY: equal sizes, and no padding (`shared!`).
        let b: [u8; 16] = unsafe { core::mem::transmute(Way::new(3, 1500, [1, 2, 3, 4, 5, 6])) };
        assert_eq!(b, [3, 0, 0, 0, 0xdc, 5, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0]);
        let link = Way::link([3, 2, 3, 4, 5, 6], 0x0807).unwrap();
        assert_eq!(link.to_ne_bytes(), [2, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Way::mac_of(link | Way::TAGGED).to_ne_bytes()[..6], [2, 2, 3, 4, 5, 6]);
        let mac = Way::new(3, 1500, [1, 2, 3, 4, 5, 6]).mac_word();
        assert_eq!(mac.to_ne_bytes()[..6], [1, 2, 3, 4, 5, 6]);
        assert_eq!(Way::link([0; 6], 65_536), None);
        assert_eq!((Way::place(1030, 0), Way::place(1023, 2)), (6, 1));
    }
}
