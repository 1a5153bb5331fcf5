//! `node`, `interfaces` and `maglev`.

use ipnet::IpNet;

use super::{Context, Fragment, Kind, unroutable};
use crate::{
    fault::{Loc, show},
    file::{self, Field, List, SourceText},
    model,
};

/// Samples of a kind in a second.
const SAMPLES: std::ops::RangeInclusive<u64> = 0..=10_000;

fn samples(samples: &file::Samples, context: &Context<'_, '_>, fragment: &mut Fragment) {
    let file::Samples { dropped, passed } = samples;
    let mut set = |field: &Field<u64>, name, place: fn(&mut Fragment) -> &mut Option<u64>| {
        let Some((&rate, at)) = field.placed() else { return };
        fragment.scalars.push((name, at));
        if !SAMPLES.contains(&rate) {
            let message = format!("`{name}` is {rate}");
            context.report.fault(at, message, "allowed: 0 to 10000 in a second");
        }
        *place(fragment) = Some(rate);
    };
    set(dropped, "node.samples.dropped", |fragment| &mut fragment.samples_dropped);
    set(passed, "node.samples.passed", |fragment| &mut fragment.samples_passed);
}

pub(super) fn node(node: &Field<file::Node>, context: &Context<'_, '_>, fragment: &mut Fragment) {
    let Some(file::Node { name, tunnel_source, unserved, samples, nat, labels }) = node.get()
    else {
        return;
    };
    if let Some((text, at)) = name.placed() {
        fragment.scalars.push(("node.name", at));
        if super::name(text, at, context.report) {
            fragment.node_name = Some(text.clone());
        }
    }
    if let Some((unserved, at)) = unserved.placed() {
        fragment.scalars.push(("node.unserved", at));
        fragment.unserved = Some(match unserved {
            file::Unserved::Drop => model::Unserved::Drop,
            file::Unserved::Reject => model::Unserved::Reject,
            file::Unserved::Pass => model::Unserved::Pass,
        });
    }
    if let Some(samples) = samples.get() {
        self::samples(samples, context, fragment);
    }
    self::nat(nat, context, fragment);
    super::host::labels(labels, context, fragment);
    let Some(file::TunnelSource { ipv4, ipv6 }) = tunnel_source.get() else {
        return;
    };
    if let Some((text, at)) = ipv4.placed() {
        fragment.scalars.push(("node.tunnel_source.ipv4", at));
        fragment.tunnel_ipv4 = match text {
            SourceText::Auto => Some(model::SourceOf::Auto),
            SourceText::Prefix(IpNet::V4(net)) => {
                entropy(IpNet::V4(*net), at, context);
                Some(model::SourceOf::Prefix(*net))
            }
            SourceText::Prefix(net) => {
                wrong_family(*net, "IPv4", at, context);
                None
            }
        };
    }
    if let Some((text, at)) = ipv6.placed() {
        fragment.scalars.push(("node.tunnel_source.ipv6", at));
        fragment.tunnel_ipv6 = match text {
            SourceText::Auto => Some(model::SourceOf::Auto),
            SourceText::Prefix(IpNet::V6(net)) => {
                entropy(IpNet::V6(*net), at, context);
                Some(model::SourceOf::Prefix(*net))
            }
            SourceText::Prefix(net) => {
                wrong_family(*net, "IPv6", at, context);
                None
            }
        };
    }
}

/// Rows of addresses: there are 256 in all, and a change of the list wants new ones.
const MAX_NAT_ADDRESSES: usize = 64;

fn nat(nat: &Field<file::Nat>, context: &Context<'_, '_>, fragment: &mut Fragment) {
    let Some(file::Nat { addresses, ports, entries }) = nat.get() else {
        return;
    };
    let report = context.report;
    super::service::check_count(addresses, MAX_NAT_ADDRESSES, "addresses", report);
    for (&file::Ip(address), at) in addresses.elements() {
        if let Some((what, _)) = unroutable(address) {
            let message = format!("{address} is {what} and cannot be a NAT address");
            report.fault(at, message, "allowed: a unicast address that is routed to this machine");
        } else if fragment.nat_addresses.iter().any(|(other, _)| *other == address) {
            report.fault(at, format!("{address} stands twice in the list"), "allowed: once");
        } else {
            fragment.nat_addresses.push((address, at));
        }
    }
    if let Some((text, at)) = ports.placed() {
        fragment.scalars.push(("node.nat.ports", at));
        let range = text.split_once('-');
        let range = range.and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
        match range {
            Some((first, last)) if first >= 1024 && first <= last => {
                fragment.nat_ports = Some(model::NatPorts { first, last });
            }
            _ => report.fault(
                at,
                format!("{} is no range of NAT ports", show(text)),
                "allowed: two ports from 1024 to 65535, the smaller one first, such as 1024-32767",
            ),
        }
    }
    if let Some((&count, at)) = entries.placed() {
        fragment.scalars.push(("node.nat.entries", at));
        if count.is_power_of_two() && (1 << 10..=1 << 24).contains(&count) {
            fragment.nat_entries = Some(count);
        } else {
            let near = count.clamp(1 << 10, 1 << 24).next_power_of_two();
            report.fault(
                at,
                format!("room for {count} connections is not possible"),
                format!("allowed: a power of two from 1024 to 16777216, such as {near}"),
            );
        }
    }
}

fn wrong_family(net: IpNet, wanted: &str, at: Loc, context: &Context<'_, '_>) {
    context.report.fault(
        at,
        format!("{net} is not an {wanted} prefix"),
        format!("allowed: an {wanted} prefix or address, or auto"),
    );
}

fn entropy(net: IpNet, at: Loc, context: &Context<'_, '_>) {
    if let Some((what, _)) = unroutable(net.addr()) {
        context.report.fault(
            at,
            format!("{net} is {what}"),
            "allowed: addresses that packets can be sent from, or auto",
        );
    }
    let host_bits = net.max_prefix_len() - net.prefix_len();
    if host_bits > model::MAX_ENTROPY_BITS {
        let shortest = net.max_prefix_len() - model::MAX_ENTROPY_BITS;
        context.report.fault(
            at,
            format!("{net} has {host_bits} host bits"),
            format!(
                "allowed: at most {} of them, which is a prefix length from {shortest} to {}",
                model::MAX_ENTROPY_BITS,
                net.max_prefix_len()
            ),
        );
    }
}

pub(super) fn interfaces(
    interfaces: &List<file::Interface>,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) {
    for (interface, at) in interfaces.elements() {
        let file::Interface { name, pattern, xdp_mode, roles } = interface;
        let select = select(name, pattern, at, context, fragment);
        let xdp_mode = match xdp_mode.get() {
            None | Some(file::XdpMode::Auto) => model::XdpMode::Auto,
            Some(file::XdpMode::Native) => model::XdpMode::Native,
            Some(file::XdpMode::Generic) => model::XdpMode::Generic,
        };
        let roles = self::roles(roles, context);
        if let Some(select) = select {
            fragment.interfaces.push(model::Interface { select, xdp_mode, roles });
        }
    }
}

fn select(
    name: &Field<String>,
    pattern: &Field<String>,
    at: Loc,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) -> Option<model::InterfaceSelect> {
    let report = context.report;
    if name.is_absent() && pattern.is_absent() {
        report.missing(at, "name", "allowed: name: eth0, or match: \"eth*\"");
        return None;
    }
    if !name.is_absent() && !pattern.is_absent() {
        report.fault(
            pattern.at,
            "an interface has both `name` and `match`",
            "allowed: one of them; write an entry for each",
        );
        return None;
    }
    let (kind, text, at) = match (name.placed(), pattern.placed()) {
        (Some((text, at)), _) => (Kind::Interface, text, at),
        (_, Some((text, at))) => (Kind::InterfacePattern, text, at),
        (None, None) => return None,
    };
    let is_pattern = kind == Kind::InterfacePattern;
    if !is_pattern && text.contains(['*', '?']) {
        report.fault(
            at,
            format!("{} is a pattern, not a name", show(text)),
            format!("write match: \"{text}\""),
        );
        return None;
    }
    let fits = (1..=MAX_INTERFACE_NAME).contains(&text.len())
        && text.bytes().all(|c| c.is_ascii_graphic() && c != b'/')
        && !matches!(text.as_str(), "." | "..");
    if !fits {
        report.fault(
            at,
            format!("{} cannot be the name of an interface", show(text)),
            "allowed: 1 to 15 printable characters without spaces and `/`",
        );
        return None;
    }
    fragment.names.push((kind, text.clone(), at));
    Some(if is_pattern {
        model::InterfaceSelect::Match(text.clone())
    } else {
        model::InterfaceSelect::Name(text.clone())
    })
}

/// The kernel's IFNAMSIZ, less the closing zero.
pub(super) const MAX_INTERFACE_NAME: usize = 15;

fn roles(list: &List<file::Role>, context: &Context<'_, '_>) -> model::Roles {
    let mut roles = model::Roles::default();
    if list.is_absent() {
        return model::Roles { prefilter: true, balance: true, ..roles };
    }
    if list.get().is_some_and(Vec::is_empty) {
        context.report.fault(
            list.at,
            "an interface has no role",
            "allowed: one or more of prefilter, balance, decap",
        );
    }
    for (role, at) in list.elements() {
        let slot = match role {
            file::Role::Prefilter => &mut roles.prefilter,
            file::Role::Balance => &mut roles.balance,
            file::Role::Decap => &mut roles.decap,
            file::Role::Node => {
                context.report.fault(
                    at,
                    "the role `node` is not implemented in this version",
                    "allowed: prefilter, balance, decap",
                );
                continue;
            }
        };
        if std::mem::replace(slot, true) {
            context.report.fault(at, "a role stands twice in the list", "allowed: once");
        }
    }
    roles
}

pub(super) fn decap(
    decap: &Field<file::Decap>,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) {
    if let Some(file::Decap { sources }) = decap.get() {
        fragment.decap_sources = super::sources(sources, context.report);
    }
}

pub(super) fn maglev(
    maglev: &Field<file::Maglev>,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) {
    let Some(file::Maglev { table_size, seed }) = maglev.get() else {
        return;
    };
    if let Some((&size, at)) = table_size.placed() {
        fragment.scalars.push(("maglev.table_size", at));
        check_table_size(size, at, context);
        fragment.table_size = Some(size);
    }
    if let Some((text, at)) = seed.placed() {
        fragment.scalars.push(("maglev.seed", at));
        if text.len() > MAX_SEED {
            let message = format!("the seed has {} bytes", text.len());
            context.report.fault(at, message, format!("allowed: at most {MAX_SEED}"));
        }
        fragment.seed = Some(text.clone());
    }
}

const MAX_SEED: usize = 256;
const TABLE_SIZES: std::ops::RangeInclusive<u32> = 251..=1_048_573;

fn check_table_size(size: u32, at: Loc, context: &Context<'_, '_>) {
    let (min, max) = (*TABLE_SIZES.start(), *TABLE_SIZES.end());
    if !TABLE_SIZES.contains(&size) {
        context.report.fault(
            at,
            format!("a table_size of {size} is out of range"),
            format!("allowed: a prime from {min} to {max}, such as 65521"),
        );
    } else if !is_prime(size) {
        // Both ends of the range are primes, so there is one on either side.
        let below = (min..size).rev().find(|n| is_prime(*n)).unwrap_or(min);
        let above = (size..=max).find(|n| is_prime(*n)).unwrap_or(max);
        context.report.fault(
            at,
            format!("a table_size of {size} is not a prime"),
            format!("the nearest primes are {below} and {above}"),
        );
    }
}

fn is_prime(n: u32) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes() {
        let primes: Vec<u32> = (0..30).filter(|n| is_prime(*n)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(*TABLE_SIZES.start()) && is_prime(*TABLE_SIZES.end()));
    }
}
