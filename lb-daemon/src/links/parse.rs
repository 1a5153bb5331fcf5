//! From the kernel's messages to [`Link`] and [`Address`].

use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached},
};

use super::{Address, AttachedMode, AttachedXdp, Link};

/// The interface of a message; the driver is not in it. `None` if the message lacks a name, as those do
/// that tell of something else than an interface.
pub(crate) fn link_from(message: &LinkMessage) -> Option<Link> {
    // Bridges tell of their ports under the family of bridges.
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let flags = message.header.flags;
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: match message.header.link_layer_type {
            _ if flags.contains(LinkFlags::Loopback) => "loopback",
            LinkLayerType::Ether => "ethernet",
            _ => "other",
        }
        .to_owned(),
        driver: None,
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
        master: None,
        lower: None,
        rx_queues: 1,
        tx_queues: 1,
        xdp: Vec::new(),
    };

    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) if ethernet => {
                link.mac = <[u8; 6]>::try_from(mac.as_slice()).ok();
            }
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::Link(lower) if *lower != 0 => link.lower = Some(*lower),
            LinkAttribute::NumRxQueues(count) => link.rx_queues = *count,
            LinkAttribute::NumTxQueues(count) => link.tx_queues = *count,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            LinkAttribute::Xdp(attributes) => link.xdp = attached(attributes),
            // An event of a radio, with nothing of the interface but its name.
            LinkAttribute::Wireless(_) => return None,
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn attached(attributes: &[LinkXdp]) -> Vec<AttachedXdp> {
    let mut found = Vec::new();
    let mut add = |mode, program| {
        let program = AttachedXdp { mode, program };
        if program.program != 0 && !found.contains(&program) {
            found.push(program);
        }
    };

    // With programs in several places the kernel names each; else also the one, and where it is.
    let mut only = (None, 0);
    for attribute in attributes {
        match attribute {
            LinkXdp::DrvProgId(id) => add(AttachedMode::Native, *id),
            LinkXdp::SkbProgId(id) => add(AttachedMode::Generic, *id),
            LinkXdp::HwProgId(id) => add(AttachedMode::Offloaded, *id),
            LinkXdp::Attached(XdpAttached::Driver) => only.0 = Some(AttachedMode::Native),
            LinkXdp::Attached(XdpAttached::SocketBuffer) => only.0 = Some(AttachedMode::Generic),
            LinkXdp::Attached(XdpAttached::Hardware) => only.0 = Some(AttachedMode::Offloaded),
            LinkXdp::ProgId(id) => only.1 = *id,
            _ => {}
        }
    }
    if let (Some(mode), program) = only {
        add(mode, program);
    }
    found
}

/// The address of a message.
pub(crate) fn address_from(message: &AddressMessage) -> Option<Address> {
    // On a point-to-point link `Address` is the peer's and `Local` is ours; else they are the same, or
    // only one is there.
    let mut local = None;
    let mut address = None;
    let mut avoid = [AddressHeaderFlags::Secondary, AddressHeaderFlags::Deprecated]
        .iter()
        .chain(&[AddressHeaderFlags::Tentative, AddressHeaderFlags::Dadfailed])
        .any(|&flag| message.header.flags.contains(flag));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(flags) => {
                avoid |= flags.intersects(
                    AddressFlags::Secondary
                        | AddressFlags::Deprecated
                        | AddressFlags::Tentative
                        | AddressFlags::Dadfailed,
                );
            }
            _ => {}
        }
    }

    Some(Address {
        index: message.header.index,
        address: local.or(address)?,
        prefix_len: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
        avoid,
    })
}
