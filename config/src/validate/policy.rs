//! Endpoints and the rules of identity policy.

use std::{collections::BTreeMap, sync::Arc};

use super::{Context, Fragment, Kind, policy_shape, required_name, unusable};
use crate::{
    file::{self, Field, List},
    model,
    policy::{self, Enforcement, Labels},
};

pub(super) fn endpoints(
    endpoints: &List<file::Endpoint>,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) {
    let report = context.report;
    for (endpoint, at) in endpoints.elements() {
        let file::Endpoint { name, labels: of, addresses, interface, audit, enforcement } =
            endpoint;
        let name = required_name(name, at, Kind::Endpoint, context, fragment);
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
        let Some((interface, at_interface)) = interface.placed() else { continue };
        if interface.is_empty() || interface.len() > 15 || interface.contains(['/', ' ']) {
            let message = format!("{interface:?} cannot be the name of an interface");
            report.fault(at_interface, message, "allowed: 1 to 15 characters, no / and no space");
            continue;
        }
        let Some(name) = name else { continue };
        let endpoint = model::Endpoint {
            name,
            source: context.source(at),
            labels: labels(of, context),
            addresses: own,
            interface: interface.clone(),
            audit: audit.get().copied().unwrap_or(false),
            enforcement: enforcement.get().copied().map(enforcement_of),
        };
        fragment.endpoints.push(Arc::new(endpoint));
    }
}

/// Labels without the source they may have in front, as rules name them.
fn labels(field: &Field<BTreeMap<String, Field<String>>>, context: &Context<'_, '_>) -> Labels {
    let mut own = Labels::new();
    for (key, value) in field.get().into_iter().flatten() {
        let at = if value.is_absent() { field.at } else { value.at };
        let bare = policy::bare_key(key);
        if bare.contains(':') {
            let message = format!("{key:?} cannot be a label of an endpoint");
            context.report.fault(
                at,
                message,
                "allowed: any:, k8s: or no source in front of the key",
            );
        }
        own.insert(bare.to_owned(), value.get().cloned().unwrap_or_default());
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

const fn enforcement_of(enforcement: file::PolicyEnforcement) -> Enforcement {
    match enforcement {
        file::PolicyEnforcement::Default => Enforcement::Default,
        file::PolicyEnforcement::Always => Enforcement::Always,
        file::PolicyEnforcement::Never => Enforcement::Never,
    }
}
