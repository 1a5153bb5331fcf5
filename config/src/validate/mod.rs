//! File types to domain model, one document at a time.
//!
//! A document becomes a [`Fragment`]: all of it that is valid on its own, with the places that are
//! needed to say which two documents contradict each other. Does no I/O: list files and the merging of
//! fragments are [`crate::load`]'s.

mod general;
mod host;
mod policy;
mod ports;
mod prefilter;
mod refused;
mod routes;
mod service;
mod steering;

use std::{net::IpAddr, path::Path, sync::Arc};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub(crate) use self::{
    policy::endpoint,
    prefilter::{ListBody, ListEntry, ListMatch, ListPath, TableFile, list_scope},
    refused::{cidr_rule, expressions, policy_shape, port_range},
    service::{Places, service},
};
use crate::{
    fault::{Loc, Report, show},
    file, model,
};

/// What one document contributes.
#[derive(Debug, Default)]
pub(crate) struct Fragment {
    pub(crate) node_name: Option<String>,
    pub(crate) tunnel_ipv4: Option<model::SourceOf<Ipv4Net>>,
    pub(crate) tunnel_ipv6: Option<model::SourceOf<Ipv6Net>>,
    pub(crate) unserved: Option<model::Unserved>,
    pub(crate) samples_dropped: Option<u64>,
    pub(crate) samples_passed: Option<u64>,
    pub(crate) nat_addresses: Vec<(IpAddr, Loc)>,
    pub(crate) nat_ports: Option<model::NatPorts>,
    pub(crate) nat_entries: Option<u32>,
    pub(crate) decap_sources: Vec<IpNet>,
    pub(crate) table_size: Option<u32>,
    pub(crate) seed: Option<String>,
    pub(crate) interfaces: Vec<model::Interface>,
    pub(crate) services: Vec<(Arc<model::Service>, Places)>,
    pub(crate) allow: Vec<IpNet>,
    pub(crate) lists: Vec<ListEntry>,
    pub(crate) tables: Vec<TableFile>,
    pub(crate) crowdsec: Vec<Arc<model::CrowdSec>>,
    pub(crate) filters: model::Filters,
    pub(crate) rate_limits: Vec<model::RateLimit>,
    pub(crate) syn_proxy: model::SynProxy,
    pub(crate) endpoints: Vec<Arc<model::Endpoint>>,
    pub(crate) policies: Vec<crate::policy::Rule>,
    pub(crate) enforcement: Option<crate::policy::Enforcement>,
    pub(crate) established: Option<crate::policy::Established>,
    pub(crate) fqdn: Option<crate::policy::Fqdn>,
    pub(crate) node_labels: crate::policy::Labels,
    pub(crate) host_firewall: Option<Arc<model::HostFirewall>>,
    pub(crate) remote_nodes: Vec<IpAddr>,
    /// What may be set once in all documents, by its path.
    pub(crate) scalars: Vec<(&'static str, Loc)>,
    /// What must be unique in all documents. Holds the names of faulty objects too.
    pub(crate) names: Vec<(Kind, String, Loc)>,
}

/// Kinds of objects that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Interface,
    InterfacePattern,
    Service,
    PrefixList,
    RateLimit,
    Endpoint,
    Policy,
}

impl Kind {
    /// As it is named in messages.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Interface => "interface",
            Self::InterfacePattern => "interface pattern",
            Self::Service => "service",
            Self::PrefixList => "list",
            Self::RateLimit => "rate limit",
            Self::Endpoint => "endpoint",
            Self::Policy => "policy",
        }
    }
}

/// What the validation of a document needs to know about it.
pub(crate) struct Context<'c, 'd> {
    pub(crate) report: &'c Report<'d>,
    /// As objects name it.
    pub(crate) path: Arc<std::path::PathBuf>,
    /// What relative paths are relative to.
    pub(crate) directory: &'c Path,
}

impl Context<'_, '_> {
    pub(crate) fn source(&self, at: Loc) -> model::Source {
        model::Source::File { path: self.path.clone(), line: at.line, column: at.column }
    }
}

/// Validates a document. The report has what is wrong; the fragment is what is left.
pub(crate) fn fragment(file: &file::File, context: &Context<'_, '_>) -> Fragment {
    let file::File {
        node,
        interfaces,
        decap,
        maglev,
        services,
        prefilter,
        endpoints,
        policies,
        policy_enforcement,
        policy_established,
        policy_fqdn,
        host_firewall,
        remote_nodes,
        kubernetes,
    } = file;
    let mut fragment = Fragment::default();
    general::node(node, context, &mut fragment);
    general::interfaces(interfaces, context, &mut fragment);
    general::decap(decap, context, &mut fragment);
    general::maglev(maglev, context, &mut fragment);
    for (one, at) in services.elements() {
        if let Some((name, name_at)) = one.name.placed() {
            fragment.names.push((Kind::Service, name.clone(), name_at));
        }
        if let Some((service, places)) = service(one, at, None, context.source(at), context.report)
        {
            fragment.services.push((Arc::new(service), places));
        }
    }
    prefilter::prefilter(prefilter, context, &mut fragment);
    policy::endpoints(endpoints, context, &mut fragment);
    policy::policies(policies, context, &mut fragment);
    policy::policy_enforcement(policy_enforcement, &mut fragment);
    policy::policy_established(policy_established, &mut fragment);
    policy::policy_fqdn(policy_fqdn, context, &mut fragment);
    host::host_firewall(host_firewall, context, &mut fragment);
    host::remote_nodes(remote_nodes, context, &mut fragment);
    refused::kubernetes(kubernetes, context, &mut fragment);
    fragment
}

const MAX_NAME: usize = 128;
const NAME_ALLOWED: &str = "allowed: 1 to 128 letters, digits, `.`, `_`, `:` and `-`";

/// Checks the name of an object: it stands in paths of the API and in labels of metrics.
pub(crate) fn name(text: &str, at: Loc, report: &Report<'_>) -> bool {
    let fits = is_name(text);
    if !fits {
        report.fault(at, format!("{} cannot be a name", show(text)), NAME_ALLOWED);
    }
    fits
}

/// Whether an object can have this name: it stands in paths of the API and in labels of metrics.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b':' | b'-');
    let fits = !text.is_empty() && text.len() <= MAX_NAME && text.bytes().all(good);
    // A path segment of dots alone would be taken for a directory.
    fits && !text.bytes().all(|c| c == b'.')
}

/// Prefixes that packets are taken from; an empty list is a fault, for it looks like a lock and would be
/// none.
pub(crate) fn sources(list: &file::List<file::Cidr>, report: &Report<'_>) -> Vec<IpNet> {
    const MOST: usize = 65_536;
    match list.get().map(Vec::len) {
        Some(0) => report.fault(
            list.at,
            "the list of sources is empty",
            "allowed: one prefix or more; leave it out to allow everybody",
        ),
        Some(count) if count > MOST => {
            report.fault(list.at, format!("{count} prefixes"), format!("allowed: at most {MOST}"));
        }
        _ => {}
    }
    list.elements().map(|(&file::Cidr(net), _)| net).collect()
}

/// The name of an object that must have one.
fn required_name(
    field: &file::Field<String>,
    at: Loc,
    kind: Kind,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) -> Option<String> {
    if field.is_absent() {
        context.report.missing(at, "name", "every entry needs a unique name");
    }
    let (text, at) = field.placed()?;
    if !name(text, at, context.report) {
        return None;
    }
    fragment.names.push((kind, text.clone(), at));
    Some(text.clone())
}

/// Whether packets can be sent to an address beyond a link, or from one: what it is, and what is allowed.
fn unroutable(address: IpAddr) -> Option<(&'static str, &'static str)> {
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some((
            "a link-local address",
            "allowed: a unicast address that says which network it is in, such as 2001:db8::1 or fd00::1",
        )),
        _ => unusable(address).map(|what| (what, "allowed: a unicast address")),
    }
}

/// Whether packets can be sent to an address, or from one.
fn unusable(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST) {
        Some("the broadcast address")
    } else {
        None
    }
}
