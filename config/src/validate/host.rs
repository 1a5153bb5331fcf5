//! This machine and others as policy sees them: labels of the node, `host_firewall`, `remote_nodes`.

use std::{collections::BTreeMap, sync::Arc};

use super::{Context, Fragment, general::MAX_INTERFACE_NAME, policy, unusable};
use crate::{
    fault::show,
    file::{self, Field, List},
    model,
    policy::{Enforcement, bare_key},
};

/// Labels of this node, without the source that rules may have in front.
pub(super) fn labels(
    field: &Field<BTreeMap<String, Field<String>>>,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) {
    let Some((labels, at)) = field.placed() else { return };
    fragment.scalars.push(("node.labels", at));
    for (key, value) in labels {
        let bare = bare_key(key);
        if bare.is_empty() || bare.contains(':') {
            let at = if value.is_absent() { at } else { value.at };
            let message = format!("{} cannot be a label of a node", show(key));
            context.report.fault(
                at,
                message,
                "allowed: any:, k8s: or no source in front of the key",
            );
        }
        fragment.node_labels.insert(bare.to_owned(), value.get().cloned().unwrap_or_default());
    }
}

pub(super) fn host_firewall(
    field: &Field<file::HostFirewall>,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) {
    let Some((firewall, at)) = field.placed() else { return };
    let file::HostFirewall { interfaces, audit, enforcement, force, ports } = firewall;
    fragment.scalars.push(("host_firewall", at));
    if interfaces.get().is_none_or(Vec::is_empty) {
        let help = "allowed: names and patterns, such as [eth0, \"uplink*\"]";
        context.report.missing(at, "interfaces", help);
    }
    for (name, at) in interfaces.elements() {
        let fits = (1..=MAX_INTERFACE_NAME).contains(&name.len())
            && name.bytes().all(|c| c.is_ascii_graphic() && c != b'/')
            && name != "lo";
        if !fits {
            let message = format!("{} cannot be an interface of the host firewall", show(name));
            let help = "allowed: a name or a pattern, 1 to 15 characters; never lo";
            context.report.fault(at, message, help);
        }
    }
    fragment.host_firewall = Some(Arc::new(model::HostFirewall {
        source: context.source(at),
        interfaces: interfaces.elements().map(|(name, _)| name.clone()).collect(),
        audit: audit.get().copied().unwrap_or(false),
        enforcement: enforcement
            .get()
            .map_or(Enforcement::Default, |own| policy::enforcement_of(*own)),
        force: force.get().copied().unwrap_or(false),
        ports: policy::port_names(ports, context.report),
    }));
}

pub(super) fn remote_nodes(
    nodes: &List<file::Ip>,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) {
    for (&file::Ip(address), at) in nodes.elements() {
        if let Some(what) = unusable(address) {
            let message = format!("{address} is {what}");
            context.report.fault(at, message, "allowed: the address of another node");
        }
        fragment.remote_nodes.push(address.to_canonical());
    }
}
