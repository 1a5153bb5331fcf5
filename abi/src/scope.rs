//! Which packets a blocklist is about, beside the address: interface, direction, protocol and ports.
//!
//! The flat sets hold one number for each address. It is that of a list, or, where lists with scopes
//! overlap, that of a combination: a row that names its lists, strongest first. The first of them whose
//! scope has the packet decides.

use crate::{
    prefix::ListRow,
    table::{live, shared},
};

/// Interfaces of a scope.
pub const MAX_INTERFACES: usize = 16;
/// Ranges of ports of a scope.
pub const MAX_PORTS: usize = 8;
/// Lists of a combination.
pub const MEMBERS: usize = 16;

/// The protocol of a scope for ICMP, which is another one in each family.
pub const ICMP: u8 = 255;
/// IP protocol number (RFC 9260).
pub const SCTP: u8 = crate::wire::protocol::SCTP;

/// What of an interface a list is about. A row of zeros has no bounds: packets from its addresses.
///
/// Live: each interface. The rest is written before anything points at it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    interfaces: [u64; MAX_INTERFACES],
    ports: [[u16; 2]; MAX_PORTS],
    by_interface: u8,
    by_port: u8,
    protocol: u8,
    destination: u8,
    reserved: [u8; 4],
}

shared!(Scope, 168, { interfaces @ 0, ports @ 128, by_interface @ 160, by_port @ 161, protocol @ 162, destination @ 163, reserved @ 164 });

/// What a scope looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The interface that it came in by.
    pub ifindex: u32,
    /// IP protocol, behind extension headers.
    pub protocol: u8,
    /// Destination port, host byte order; `None`: it has none, or it is not in this fragment.
    pub port: Option<u16>,
    /// Whether its destination is on the list, and not its source.
    pub destination: bool,
}

impl Seen {
    /// All but the interface, in one word.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(&self) -> u64 {
        let (port, known) = match self.port {
            Some(port) => (port, 1),
            None => (0, 0),
        };
        port as u64 | (self.protocol as u64) << 16 | known << 24 | (self.destination as u64) << 25
    }

    /// From that word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64, ifindex: u32) -> Self {
        let port = if (word >> 24) & 1 != 0 { Some(word as u16) } else { None };
        Self { ifindex, protocol: (word >> 16) as u8, port, destination: (word >> 25) & 1 != 0 }
    }
}

impl Scope {
    /// Packets to its addresses, or else from them; of this IP protocol ([`ICMP`]: of either family; 0: every one).
    #[must_use]
    pub const fn new(destination: bool, protocol: u8) -> Self {
        Self {
            interfaces: [0; MAX_INTERFACES],
            ports: [[0; 2]; MAX_PORTS],
            by_interface: 0,
            by_port: 0,
            protocol,
            destination: destination as u8,
            reserved: [0; 4],
        }
    }

    /// Only packets that come in by these interfaces; 0: one that is not there. What is beyond
    /// [`MAX_INTERFACES`] is left out.
    pub fn only_interfaces(&mut self, interfaces: impl IntoIterator<Item = u32>) {
        self.by_interface = 1;
        self.interfaces = [0; MAX_INTERFACES];
        for (place, ifindex) in self.interfaces.iter_mut().zip(interfaces) {
            *place = u64::from(ifindex);
        }
    }

    /// Only packets to these ports, first and last. What is beyond [`MAX_PORTS`] is left out.
    pub fn only_ports(&mut self, ports: impl IntoIterator<Item = (u16, u16)>) {
        self.by_port = 1;
        // First beyond last: none.
        self.ports = [[1, 0]; MAX_PORTS];
        for (place, (first, last)) in self.ports.iter_mut().zip(ports) {
            *place = [first, last];
        }
    }

    /// The interfaces that it is about, if only some.
    #[must_use]
    pub const fn interfaces(&self) -> [u64; MAX_INTERFACES] {
        self.interfaces
    }

    /// The same with the interfaces of another one.
    #[must_use]
    pub const fn with_interfaces_of(self, other: &Self) -> Self {
        Self { interfaces: other.interfaces, ..self }
    }

    /// Byte offset of the interface at this place, for the daemon's store.
    #[must_use]
    pub const fn interface_at(place: usize) -> usize {
        core::mem::offset_of!(Self, interfaces) + place * 8
    }

    /// Whether it is about this packet.
    #[inline(always)]
    #[must_use]
    pub fn has(&self, seen: &Seen) -> bool {
        if (self.destination != 0) != seen.destination {
            return false;
        }
        let protocol = match seen.protocol {
            1 | 58 if self.protocol == ICMP => ICMP,
            other => other,
        };
        if self.protocol != 0 && self.protocol != protocol {
            return false;
        }
        let here = self.by_interface == 0 || self.has_interface(u64::from(seen.ifindex));
        let Some(port) = seen.port else { return here && self.by_port == 0 };
        here && (self.by_port == 0 || self.has_port(port))
    }

    // Searches that end where they find: the verifier follows each comparison that goes on.
    #[inline(always)]
    fn has_interface(&self, ifindex: u64) -> bool {
        for place in &self.interfaces {
            if live(place) == ifindex {
                return true;
            }
        }
        false
    }

    #[inline(always)]
    fn has_port(&self, port: u16) -> bool {
        for [first, last] in &self.ports {
            if port.wrapping_sub(*first) <= last.wrapping_sub(*first) && first <= last {
                return true;
            }
        }
        false
    }
}

/// The list that decides about a packet, of those that an address is on by its row; 0: none. `has`: whether the
/// list of a number is about the packet.
#[inline(always)]
pub fn decides(row: &ListRow, has: impl Fn(u32) -> bool) -> u32 {
    for member in row.members {
        if member == 0 {
            return 0;
        }
        if has(u32::from(member)) {
            return u32::from(member);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Seen = Seen { ifindex: 3, protocol: 6, port: Some(80), destination: false };

    #[test]
    fn without_bounds_it_has_what_comes_from_there() {
        let scope = Scope::default();
        assert!(scope.has(&FROM) && scope.has(&Seen { port: None, ..FROM }));
        assert!(!scope.has(&Seen { destination: true, ..FROM }));
        assert_eq!(scope, Scope::new(false, 0));
    }

    #[test]
    fn each_bound_alone() {
        let mut scope = Scope::default();
        scope.only_interfaces([2, 0, 3]);
        assert!(scope.has(&FROM) && !scope.has(&Seen { ifindex: 4, ..FROM }));
        let mut scope = Scope::default();
        scope.only_ports([(53, 53), (80, 90)]);
        for (port, want) in
            [(52, false), (53, true), (54, false), (80, true), (90, true), (91, false)]
        {
            assert_eq!(scope.has(&Seen { port: Some(port), ..FROM }), want, "{port}");
        }
        assert!(!scope.has(&Seen { port: None, ..FROM }));
        assert!(
            !scope.has(&Seen { port: Some(0), ..FROM })
                && !scope.has(&Seen { port: Some(1), ..FROM })
        );
        assert!(!Scope::new(false, 17).has(&FROM) && Scope::new(false, 6).has(&FROM));
        for (protocol, want) in [(1, true), (58, true), (6, false)] {
            assert_eq!(Scope::new(false, ICMP).has(&Seen { protocol, ..FROM }), want);
        }
        assert!(Scope::new(true, 0).has(&Seen { destination: true, ..FROM }));
    }

    #[test]
    fn the_first_that_has_it_decides() {
        let scopes =
            [Scope::default(), Scope::new(false, 17), Scope::new(false, 6), Scope::default()];
        let row = ListRow::of(&[1, 2, 3]);
        let decided = |seen: &Seen| decides(&row, |n| scopes[n as usize].has(seen));
        assert_eq!(decided(&FROM), 2);
        assert_eq!(decided(&Seen { protocol: 17, ..FROM }), 1);
        assert_eq!(decided(&Seen { protocol: 1, ..FROM }), 3);
        assert_eq!(decided(&Seen { destination: true, ..FROM }), 0);
    }

    #[test]
    fn what_is_seen_is_a_word() {
        for port in [None, Some(0), Some(65535)] {
            for destination in [false, true] {
                let seen = Seen { ifindex: 7, protocol: 255, port, destination };
                assert_eq!(Seen::from_word(seen.to_word(), 7), seen);
            }
        }
    }

    #[test]
    fn bytes_of_a_scope() {
        let mut scope = Scope::new(true, 6);
        scope.only_interfaces([7]);
        scope.only_ports([(0x102, 0x304)]);
        // SAFETY: equal sizes; no padding (`shared!`).
        let bytes: [u8; 168] = unsafe { core::mem::transmute(scope) };
        assert_eq!(bytes[..16], [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[128..136], [2, 1, 4, 3, 1, 0, 0, 0]);
        assert_eq!(bytes[160..], [1, 1, 6, 1, 0, 0, 0, 0]);
    }
}
