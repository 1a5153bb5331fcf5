//! Connections that the policy programs remember.

use super::{Head, Way, packet};
use crate::{addr::Addr, limits::policy as limits, table::shared};

/// A connection as its endpoint sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionKey {
    pub(super) local: Addr,
    pub(super) remote: Addr,
    pub(super) ports: u32,
    pub(super) protocol_interface: u32,
}

shared!(ConnectionKey, 40, { local @ 0, remote @ 16, ports @ 32, protocol_interface @ 36 });

impl ConnectionKey {
    /// Of a packet that goes this way through the interface with this index.
    #[inline(always)]
    #[must_use]
    pub const fn new(head: &Head, way: Way, interface: u32) -> Self {
        Self::keyed(head, head.ports, way, interface)
    }

    /// Of the datagram that a fragment is of: its identification stands for the ports.
    #[inline(always)]
    #[must_use]
    pub const fn fragment(head: &Head, way: Way, interface: u32) -> Self {
        let key = Self::keyed(head, 0, way, interface);
        Self { ports: head.id, ..key }
    }

    /// The end that is not the endpoint.
    #[must_use]
    pub const fn remote(&self) -> Addr {
        self.remote
    }

    #[inline(always)]
    const fn keyed(head: &Head, ports: u32, way: Way, interface: u32) -> Self {
        let protocol_interface = head.protocol as u32 | interface << 8;
        match way {
            Way::Out => Self { local: head.src, remote: head.dst, ports, protocol_interface },
            Way::In => {
                let ports = ports.rotate_left(16);
                Self { local: head.dst, remote: head.src, ports, protocol_interface }
            }
        }
    }
}

/// What is remembered of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    seen: u64,
    pub(super) flags: u64,
}

shared!(Connection, 16, { seen @ 0, flags @ 8 });

impl Connection {
    const OUT: u64 = 1;
    const ANSWERED: u64 = 2;

    /// Opened now, this way. Nanoseconds of a monotonic clock.
    #[inline(always)]
    #[must_use]
    pub const fn new(way: Way, now: u64) -> Self {
        Self { seen: now, flags: way as u64 & Self::OUT }
    }

    /// Which way it was opened.
    #[inline(always)]
    #[must_use]
    pub const fn opened(&self) -> Way {
        if self.flags & Self::OUT != 0 { Way::Out } else { Way::In }
    }

    /// Whether the other end has answered.
    #[inline(always)]
    pub(super) const fn is_answered(&self) -> bool {
        self.flags & Self::ANSWERED != 0
    }

    /// When its last packet was seen, a little behind. Nanoseconds of the programs' clock.
    #[must_use]
    pub const fn seen(&self) -> u64 {
        self.seen
    }

    #[inline(always)]
    pub(super) const fn is_alive(&self, protocol: u8, now: u64) -> bool {
        let limit = if protocol == packet::TCP && self.flags & Self::ANSWERED != 0 {
            limits::IDLE_TCP_NS
        } else {
            limits::IDLE_NS
        };
        now.wrapping_sub(self.seen) < limit
    }

    /// The same, seen now; `None`: it says so already.
    #[inline(always)]
    pub(super) const fn refreshed(&self, answered: bool, now: u64) -> Option<Self> {
        let flags = if answered { self.flags | Self::ANSWERED } else { self.flags };
        if flags == self.flags && now.wrapping_sub(self.seen) < limits::REFRESH_NS {
            return None;
        }
        Some(Self { seen: now, flags })
    }
}
