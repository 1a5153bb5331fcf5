//! From the kernel's messages to [`Event`] and what it is made of, and the requests that ask for them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteLwEnCapType, RouteMessage, RouteMetric,
        RouteNextHop, RouteNextHopFlags, RouteType, RouteVia,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use rtnetlink::packet_core::NLM_F_REPLACE;

use super::{
    fib::{Action, Path, Route, Table, Way},
    state::{Event, Key, Neighbour},
};
use crate::links::{address_from, link_from};

/// The event of a notification; `None` if it concerns nothing that next hops depend on.
pub(super) fn event_from(message: &RouteNetlinkMessage, flags: u16) -> Option<Event> {
    Some(match message {
        RouteNetlinkMessage::NewLink(link) => Event::Link(link_from(link)?),
        RouteNetlinkMessage::DelLink(link) => Event::LinkGone(link_from(link)?.index),
        RouteNetlinkMessage::NewAddress(address) => Event::Address(address_from(address)?),
        RouteNetlinkMessage::DelAddress(address) => Event::AddressGone(address_from(address)?),
        RouteNetlinkMessage::NewNeighbour(neighbour) => {
            let (key, neighbour) = neighbour_from(neighbour)?;
            Event::Neighbour(key, neighbour)
        }
        RouteNetlinkMessage::DelNeighbour(neighbour) => {
            Event::Neighbour(neighbour_from(neighbour)?.0, None)
        }
        RouteNetlinkMessage::NewRoute(route) => {
            Event::Route { route: route_from(route)?, replace: flags & NLM_F_REPLACE != 0 }
        }
        RouteNetlinkMessage::DelRoute(route) => Event::RouteGone(route_from(route)?),
        _ => return None,
    })
}

/// A neighbour; no state if the kernel has none to tell.
pub(super) fn neighbour_from(message: &NeighbourMessage) -> Option<(Key, Option<Neighbour>)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok();
            }
            _ => {}
        }
    }
    let neighbour = match message.header.state {
        NeighbourState::Reachable
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Permanent
        | NeighbourState::Noarp => mac.map(Neighbour::Known),
        NeighbourState::Stale => mac.map(Neighbour::Stale),
        NeighbourState::Failed => Some(Neighbour::Failed),
        NeighbourState::Incomplete => Some(Neighbour::Incomplete),
        _ => None,
    };
    Some(((message.header.ifindex, address?), neighbour))
}

/// A route of one of the three tables that can match ordinary traffic.
pub(super) fn route_from(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    if header.flags.contains(RouteFlags::Cloned)
        || header.tos != 0
        || header.source_prefix_length != 0
    {
        return None;
    }
    let mut table = u32::from(header.table);
    let mut destination = any;
    let mut metric = 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    Some(Route {
        table: match table {
            255 => Table::Local,
            254 => Table::Main,
            253 => Table::Default,
            _ => return None,
        },
        prefix: IpNet::new(destination, header.destination_prefix_length).ok()?.trunc(),
        metric,
        way: way_from(message),
    })
}

/// Where a route leads, also one that the kernel gave as an answer.
pub(super) fn way_from(message: &RouteMessage) -> Way {
    let mut way = Way { action: Action::AskKernel, mtu: None, source: None };
    let mut ifindex = None;
    let mut gateway = None;
    let mut paths = Vec::new();
    let mut encapsulates = false;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => gateway = gateway_of(attribute),
            RouteAttribute::MultiPath(next_hops) => {
                paths.extend(next_hops.iter().map(path_from));
                encapsulates |=
                    next_hops.iter().any(|hop| hop.attributes.iter().any(is_encapsulation));
            }
            RouteAttribute::PrefSource(address) => way.source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                way.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu != 0 => Some(*mtu),
                    _ => None,
                });
            }
            attribute => encapsulates |= is_encapsulation(attribute),
        }
    }
    if let Some(ifindex) = ifindex
        && paths.is_empty()
    {
        let dead = message.header.flags.contains(RouteFlags::Dead);
        paths.push(Path { ifindex, gateway, weight: 1, dead });
    }

    way.action = match message.header.kind {
        RouteType::Unicast if encapsulates => Action::Refuse("one that encapsulates"),
        // A next hop object stands for the paths, and is not in the message.
        RouteType::Unicast if paths.is_empty() => Action::AskKernel,
        RouteType::Unicast => Action::Forward(paths),
        RouteType::Local => Action::Local,
        RouteType::Throw => Action::Throw,
        RouteType::BlackHole => Action::Refuse("a blackhole"),
        RouteType::Unreachable => Action::Refuse("unreachable"),
        RouteType::Prohibit => Action::Refuse("prohibited"),
        RouteType::Broadcast => Action::Refuse("broadcast"),
        RouteType::Multicast => Action::Refuse("multicast"),
        RouteType::Anycast => Action::Refuse("anycast"),
        _ => Action::Refuse("of an unknown type"),
    };
    way
}

fn path_from(hop: &RouteNextHop) -> Path {
    Path {
        ifindex: hop.interface_index,
        gateway: hop.attributes.iter().find_map(gateway_of),
        weight: u32::from(hop.hops) + 1,
        dead: hop.flags.contains(RouteNextHopFlags::Dead),
    }
}

fn gateway_of(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn is_encapsulation(attribute: &RouteAttribute) -> bool {
    matches!(attribute, RouteAttribute::EncapType(kind) if *kind != RouteLwEnCapType::None)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// Whether these are the rules that every namespace begins with: then the tables are asked in the order
/// of [`Table`] and nothing else decides.
pub(super) fn rules_are_default(rules: &[RuleMessage]) -> bool {
    [(AddressFamily::Inet, &DEFAULT_RULES[..]), (AddressFamily::Inet6, &DEFAULT_RULES[..2])]
        .into_iter()
        .all(|(family, expected)| {
            let mut found: Vec<_> = rules
                .iter()
                .filter(|rule| rule.header.family == family)
                // Rules of VRFs apply only to what is bound to one.
                .filter(|rule| !rule.attributes.contains(&RuleAttribute::L3MDev(true)))
                .map(plain_rule)
                .collect();
            found.sort_unstable();
            // None at all: the family is switched off.
            found.is_empty() || found.into_iter().eq(expected.iter().copied().map(Some))
        })
}

/// Priority and table.
const DEFAULT_RULES: [(u32, u32); 3] = [(0, 255), (32766, 254), (32767, 253)];

/// Priority and table of a rule that applies to every packet; `None` if it is any other.
fn plain_rule(rule: &RuleMessage) -> Option<(u32, u32)> {
    let header = &rule.header;
    if header.action != RuleAction::ToTable
        || (header.src_len, header.dst_len, header.tos) != (0, 0, 0)
    {
        return None;
    }
    let mut priority = 0;
    let mut table = u32::from(header.table);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Table(value) => table = *value,
            // The kernel writes -1 for "not set"; who made the rule does not matter.
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Protocol(_) => {}
            _ => return None,
        }
    }
    Some((priority, table))
}

/// Asks for the route of one target.
pub(super) fn question(target: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    (message.header.address_family, message.header.destination_prefix_length) = family(target);
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(target)));
    RouteNetlinkMessage::GetRoute(message)
}

/// Makes the kernel resolve or confirm a neighbour.
pub(super) fn probe((ifindex, address): Key) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address).0;
    message.header.ifindex = ifindex;
    message.header.flags = NeighbourFlags::Use;
    message.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }));
    RouteNetlinkMessage::NewNeighbour(message)
}

/// Family of an address, and its length in bits.
fn family(address: IpAddr) -> (AddressFamily, u8) {
    match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    }
}
