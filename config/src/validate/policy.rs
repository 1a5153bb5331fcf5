//! Endpoints and the rules of identity policy.

use std::{collections::BTreeMap, sync::Arc};

use super::{Context, Fragment, Kind, policy_shape, required_name, unusable};
use crate::{
    fault::{Loc, Report},
    file::{self, Field, List},
    model,
    policy::{self, Enforcement, Established, Fqdn, Labels, PortName},
};

pub(super) fn endpoints(
    endpoints: &List<file::Endpoint>,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) {
    for (endpoint, at) in endpoints.elements() {
        let name = required_name(&endpoint.name, at, Kind::Endpoint, context, fragment);
        let source = context.source(at);
        if let Some(endpoint) = one(endpoint, at, name, source, context.report) {
            fragment.endpoints.push(Arc::new(endpoint));
        }
    }
}

/// An endpoint of the API; `name` is what it is set as.
pub(crate) fn endpoint(
    endpoint: &file::Endpoint,
    at: Loc,
    name: &str,
    report: &Report<'_>,
) -> Option<model::Endpoint> {
    if let Some((own, at)) = endpoint.name.placed()
        && own != name
    {
        report.fault(at, format!("{own:?} is not the name that it is set as"), "leave it out");
    }
    if !crate::is_name(name) {
        let message = format!("{name:?} cannot be the name of an endpoint");
        report.fault(at, message, "allowed: letters, digits, `.`, `_`, `:` and `-`");
    }
    one(endpoint, at, Some(name.to_owned()), model::Source::Api, report)
}

fn one(
    endpoint: &file::Endpoint,
    at: Loc,
    name: Option<String>,
    source: model::Source,
    report: &Report<'_>,
) -> Option<model::Endpoint> {
    let file::Endpoint { name: _, labels: of, addresses, interface, audit, enforcement, ports } =
        endpoint;
    if addresses.is_absent() {
        report.missing(at, "addresses", "allowed: one address or more");
    }
    if interface.is_absent() {
        report.missing(at, "interface", "allowed: the host side of its interface");
    }
    let mut own = Vec::new();
    for (&file::Ip(address), at) in addresses.elements() {
        if let Some(what) = unusable(address) {
            report.fault(at, format!("{address} is {what}"), "allowed: an endpoint's address");
        }
        own.push(address);
    }
    let (interface, at_interface) = interface.placed()?;
    if interface.is_empty() || interface.len() > 15 || interface.contains(['/', ' ']) {
        let message = format!("{interface:?} cannot be the name of an interface");
        report.fault(at_interface, message, "allowed: 1 to 15 characters, no / and no space");
        return None;
    }
    Some(model::Endpoint {
        name: name?,
        source,
        labels: labels(of, report),
        addresses: own,
        interface: interface.clone(),
        audit: audit.get().copied().unwrap_or(false),
        enforcement: enforcement.get().copied().map(enforcement_of),
        ports: port_names(ports, report),
    })
}

pub(super) fn port_names(ports: &List<file::EndpointPort>, report: &Report<'_>) -> Vec<PortName> {
    let mut own = Vec::new();
    for (file::EndpointPort { name, port, protocol }, at) in ports.elements() {
        if name.is_absent() {
            report.missing(at, "name", "allowed: the name that rules use");
        }
        if port.is_absent() {
            report.missing(at, "port", "allowed: 1 to 65535");
        }
        let (Some((name, at)), Some(port)) = (name.placed(), port.get()) else { continue };
        if !policy::is_port_name(name) {
            let message = format!("{name:?} cannot be the name of a port");
            let help = "allowed: up to 15 letters, digits and `-`, with one letter at least";
            report.fault(at, message, help);
        }
        let protocols = policy::protocols(protocol.get().copied());
        let one = |protocol: &u8| PortName { name: name.clone(), protocol: *protocol, port: *port };
        match protocol.get() {
            None => own.push(one(&6)),
            Some(file::PolicyProtocol::Icmp | file::PolicyProtocol::Icmpv6) => {
                report.fault(protocol.at, "ICMP has no ports", "allowed: TCP, UDP, SCTP, ANY");
            }
            Some(_) => own.extend(protocols.iter().map(one)),
        }
    }
    own
}

/// Reserved identities that an endpoint may be; without labels it is the first.
const OF_ENDPOINTS: [&str; 3] = ["reserved:init", "reserved:health", "reserved:unmanaged"];

/// Labels without the source they may have in front, as rules name them.
fn labels(field: &Field<BTreeMap<String, Field<String>>>, report: &Report<'_>) -> Labels {
    let mut own = Labels::new();
    for (key, value) in field.get().into_iter().flatten() {
        let at = if value.is_absent() { field.at } else { value.at };
        let bare = policy::bare_key(key);
        let reserved = OF_ENDPOINTS.contains(&bare);
        if bare.contains(':') && !reserved {
            let message = format!("{key:?} cannot be a label of an endpoint");
            report.fault(
                at,
                message,
                "allowed: any:, k8s: or no source in front of the key; reserved:init, reserved:health, \
                 reserved:unmanaged alone",
            );
        }
        own.insert(bare.to_owned(), value.get().cloned().unwrap_or_default());
        if reserved && field.get().is_some_and(|all| all.len() > 1) {
            let message = format!("{bare} is an identity of its own");
            report.fault(at, message, "leave the other labels out");
        }
    }
    if own.is_empty() {
        own.insert(OF_ENDPOINTS[0].to_owned(), String::new());
    }
    own
}

pub(super) fn policies(
    policies: &List<file::Policy>,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) {
    for (policy, at) in policies.elements() {
        let before = context.report.len();
        let name = required_name(&policy.name, at, Kind::Policy, context, fragment);
        policy_shape(policy, at, context);
        let Some(name) = name else { continue };
        if context.report.len() > before {
            continue;
        }
        let rule = policy::rule_of(policy, name, context.source(at), context.report);
        fragment.policies.push(rule);
    }
}

pub(super) fn policy_enforcement(field: &Field<file::PolicyEnforcement>, fragment: &mut Fragment) {
    let Some((enforcement, at)) = field.placed() else { return };
    fragment.scalars.push(("policy_enforcement", at));
    fragment.enforcement = Some(enforcement_of(*enforcement));
}

pub(super) fn policy_established(field: &Field<file::PolicyEstablished>, fragment: &mut Fragment) {
    let Some((established, at)) = field.placed() else { return };
    fragment.scalars.push(("policy_established", at));
    fragment.established = Some(match established {
        file::PolicyEstablished::Reevaluate => Established::Reevaluate,
        file::PolicyEstablished::Keep => Established::Keep,
    });
}

pub(super) fn policy_fqdn(
    field: &Field<file::PolicyFqdn>,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) {
    let Some((file::PolicyFqdn { min_ttl, addresses_per_name, names_per_pattern }, at)) =
        field.placed()
    else {
        return;
    };
    fragment.scalars.push(("policy_fqdn", at));
    let mut fqdn = Fqdn::default();
    if let Some((span, at)) = min_ttl.placed() {
        if span.0 > Fqdn::LONGEST {
            context.report.fault(at, "a time that is too long", "allowed: 0 to 24h");
        }
        fqdn.min_ttl = span.0;
    }
    for (field, bound) in [
        (addresses_per_name, &mut fqdn.addresses_per_name),
        (names_per_pattern, &mut fqdn.names_per_pattern),
    ] {
        if let Some((&number, at)) = field.placed() {
            if !(1..=Fqdn::MOST).contains(&number) {
                context.report.fault(at, "a number out of bounds", "allowed: 1 to 4096");
            }
            *bound = number;
        }
    }
    fragment.fqdn = Some(fqdn);
}

pub(super) const fn enforcement_of(enforcement: file::PolicyEnforcement) -> Enforcement {
    match enforcement {
        file::PolicyEnforcement::Default => Enforcement::Default,
        file::PolicyEnforcement::Always => Enforcement::Always,
        file::PolicyEnforcement::Never => Enforcement::Never,
    }
}
