//! Services: ways to backends, room for outer headers.

use std::{collections::BTreeSet, net::IpAddr};

use abi::{outer::overhead, table::Mode};
use config::model::{BackendState, DesiredState, Forwarding, Service, XdpMode};

use super::{Check, Facts, Verdict};
use crate::{
    app::wanted_interfaces,
    links::features::NDO_XMIT,
    nexthop::{Hop, NextHop},
    plan::mode,
};

pub(super) fn checks(facts: &Facts, state: &DesiredState) -> Vec<Check> {
    let interfaces = wanted_interfaces(state, &facts.links);
    let balancing = || interfaces.iter().filter(|w| w.roles.balance);
    let client_mtu = balancing().filter_map(|w| w.link.as_ref()).map(|l| l.mtu).max();
    let mut out = Vec::new();
    for service in state.services.values() {
        let subject = format!("service {}", service.name);
        out.push(backends(facts, &subject, service));
        out.extend(own_addresses(facts, &subject, service));
        out.extend(circle(facts, &subject, service, state));
        out.extend(client_mtu.and_then(|mtu| room(facts, &subject, service, mtu)));
    }
    if !state.services.is_empty() && balancing().next().is_none() {
        out.push(Check::fail(
            "services",
            "interface",
            "no interface has the role balance: no packet reaches a service",
            "add `balance` to the `roles` of the interface that clients' packets come in on",
        ));
    }
    let native = balancing().any(|w| w.mode != XdpMode::Generic);
    let attached: BTreeSet<u32> =
        interfaces.iter().filter_map(|w| w.link.as_ref()).map(|l| l.index).collect();
    if native {
        out.extend(egress(facts, &attached));
    }
    out
}

fn hops(facts: &Facts) -> impl Iterator<Item = &Hop> {
    facts.hops.values().filter_map(|hop| match hop {
        NextHop::Resolved(hop) => Some(hop),
        _ => None,
    })
}

/// Whether every backend that should take flows has a way to it.
fn backends(facts: &Facts, subject: &str, service: &Service) -> Check {
    let active =
        || service.backends.iter().filter(|b| b.state != BackendState::Maintenance && b.weight > 0);
    let missing: Vec<String> = active()
        .filter_map(|b| match facts.hops.get(&b.address) {
            Some(NextHop::Unresolved(why)) => Some(format!("{} ({}): {why}", b.name, b.address)),
            Some(NextHop::Local) if service.forwarding == Forwarding::Nat => {
                Some(format!("{} ({}): NAT does not reach this machine itself", b.name, b.address))
            }
            _ => None,
        })
        .collect();
    let count = active().count();
    if count == 0 {
        return Check::warn(
            subject,
            "backends",
            "none takes new flows",
            "give one a weight, or `lbctl backend resume`",
        );
    }
    if missing.is_empty() {
        return Check::ok(subject, "backends", format!("{count}, each with a way to it"));
    }
    let shown = missing.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
    let found = format!("{} of {count} cannot be reached: {shown}", missing.len());
    let check = Check::fail(
        subject,
        "backends",
        found,
        "`ip route get ADDRESS` and `ip neigh show ADDRESS` on this machine; is it up, and in this network?",
    );
    let verdict = if missing.len() == count { Verdict::Fail } else { Verdict::Warn };
    Check { verdict, ..check }
}

/// A VIP that is also an address of this machine: what XDP does not take, the host answers. With a backend on this machine
/// it has to be one.
fn own_addresses(facts: &Facts, subject: &str, service: &Service) -> Option<Check> {
    let here = service.backends.iter().find(|b| facts.local.contains(&b.address));
    if let Some(here) = here.filter(|_| service.forwarding != Forwarding::Nat) {
        let strange = service.addresses.iter().find(|vip| !facts.local.contains(vip))?;
        let bits = if strange.is_ipv4() { 32 } else { 128 };
        return Some(Check::fail(
            subject,
            "address",
            format!(
                "{strange} is no address of this machine, whose stack gets the packets for {}",
                here.name
            ),
            format!("`ip addr add {strange}/{bits} dev lo`"),
        ));
    }
    let own: Vec<String> = service
        .addresses
        .iter()
        .filter(|vip| facts.local.contains(vip))
        .map(ToString::to_string)
        .collect();
    (!own.is_empty()).then(|| {
        Check::warn(
            subject,
            "address",
            format!("{} is also an address of this machine", own.join(", ")),
            "remove it there, and have routers send it here instead (docs/edge.md)",
        )
    })
}

/// A backend that is an address of a service: what is sent to it comes back.
fn circle(facts: &Facts, subject: &str, service: &Service, state: &DesiredState) -> Option<Check> {
    let elsewhere = service.backends.iter().filter(|b| !facts.local.contains(&b.address));
    let leads = |address| state.services.values().find(|other| other.addresses.contains(address));
    let (backend, other) = elsewhere.filter_map(|b| Some((b, leads(&b.address)?))).next()?;
    Some(Check::fail(
        subject,
        "circle",
        format!(
            "{} ({}) is an address of the service {}: its packets come back here",
            backend.name, backend.address, other.name
        ),
        "write the address that the server has for itself alone",
    ))
}

/// Whether the largest packet of a client fits with its outer header.
fn room(facts: &Facts, subject: &str, service: &Service, client_mtu: u32) -> Option<Check> {
    let mode = mode(service.forwarding);
    if mode == Mode::L2 {
        return None;
    }
    let need = |address: IpAddr| client_mtu + overhead(mode, address.is_ipv4());
    let tight = service
        .backends
        .iter()
        .filter_map(|b| match facts.hops.get(&b.address) {
            Some(NextHop::Resolved(hop)) => Some((b, hop)),
            _ => None,
        })
        .min_by_key(|(b, hop)| i64::from(hop.mtu) - i64::from(need(b.address)))?;
    let (backend, hop) = tight;
    let need = need(backend.address);
    let fits = hop.mtu.saturating_sub(need - client_mtu);
    if hop.mtu >= need {
        return Some(Check::ok(subject, "mtu", format!("{} towards backends", hop.mtu)));
    }
    Some(Check::warn(
        subject,
        "mtu",
        format!(
            "packets of {} to {client_mtu} bytes do not fit with their outer header into {} (MTU {}): clients \
             are told to send smaller ones",
            fits + 1,
            hop.interface,
            hop.mtu
        ),
        format!(
            "`ip link set dev {} mtu {need}` along the whole way to {}, or have the backends announce a \
             smaller segment: `ip route change default ... advmss {}`",
            hop.interface,
            backend.name,
            fits.saturating_sub(if service.addresses.iter().any(IpAddr::is_ipv6) {
                60
            } else {
                40
            })
        ),
    ))
}

/// Frames that leave by another interface than they came in on need its driver's help.
fn egress(facts: &Facts, attached: &BTreeSet<u32>) -> Vec<Check> {
    let ways: BTreeSet<(u32, &str)> = hops(facts).map(|h| (h.ifindex, &*h.interface)).collect();
    ways.into_iter()
        .filter(|(index, _)| !attached.contains(index))
        .filter_map(|(index, name)| {
            let can = facts.xdp.get(&index)?;
            let subject = format!("interface {name}");
            Some(if can & NDO_XMIT == 0 {
                Check::fail(
                    subject,
                    "transmit",
                    "backends are behind it, and its driver sends no frames for XDP",
                    format!(
                        "add it to `interfaces` with the role balance, which makes most drivers ready; for a \
                         veth also `ethtool -K {name} gro on` at its peer"
                    ),
                )
            } else {
                Check::ok(subject, "transmit", "sends frames for XDP")
            })
        })
        .collect()
}
