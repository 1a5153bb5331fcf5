//! The network interfaces of this machine and their addresses, kept fresh by the kernel's notifications.
//!
//! Owns what is known of interfaces: names, drivers, queues, attached XDP programs, addresses. Changes
//! none of it; attaching belongs to the data path, routes and neighbours to [`crate::nexthop`].

pub(crate) mod ethtool;
pub(crate) mod features;
pub(crate) mod hindrance;
mod parse;
mod watch;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

pub(crate) use self::parse::{address_from, link_from};
pub use self::watch::Links;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it; another one each time it is made.
    pub index: u32,
    /// The kernel's name.
    pub name: String,
    /// What it is: `veth`, `bond`, `vlan`, `bridge`...; `loopback`; `ethernet` for a NIC; otherwise
    /// `other`.
    pub kind: String,
    /// Name of its driver as `ethtool -i` has it; `None` where it has none to tell.
    pub driver: Option<String>,
    /// Its MAC; `None` if frames on it have no Ethernet header.
    pub mac: Option<[u8; 6]>,
    /// L3 bytes that fit into a frame.
    pub mtu: u32,
    /// Switched on.
    pub up: bool,
    /// Switched on and with a carrier.
    pub running: bool,
    /// Interface that this one is a port of: a bond, a bridge, a VRF.
    pub master: Option<u32>,
    /// Interface beneath a VLAN or MACVLAN; for a veth its peer, whose index may be another namespace's.
    pub lower: Option<u32>,
    /// Receive queues.
    pub rx_queues: u32,
    /// Transmit queues.
    pub tx_queues: u32,
    /// XDP programs attached to it.
    pub xdp: Vec<AttachedXdp>,
}

#[cfg(test)]
impl Link {
    /// An interface with nothing in the way, for tests.
    pub(crate) fn example(index: u32, name: &str, kind: &str, driver: &str) -> Self {
        Self {
            index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            driver: Some(driver.to_owned()),
            mac: None,
            mtu: 1500,
            up: true,
            running: true,
            master: None,
            lower: None,
            rx_queues: 4,
            tx_queues: 4,
            xdp: Vec::new(),
        }
    }
}

/// An XDP program attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedXdp {
    /// Where.
    pub mode: AttachedMode,
    /// Its id in the kernel.
    pub program: u32,
}

/// Where an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// In the generic hook.
    Generic,
    /// In the NIC.
    Offloaded,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Its interface.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Prefix length of its network.
    pub prefix_len: u8,
    /// Valid beyond this link, so fit to be a source towards everybody.
    pub global: bool,
    /// Not an address to choose for new traffic: secondary, deprecated, or not yet found to be unique.
    pub avoid: bool,
}
