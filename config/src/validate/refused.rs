//! Parts of the schema that this version reads and checks, and then refuses: what a user asked for is
//! never silently left undone.

use super::{Context, Fragment};
use crate::{
    fault::{Loc, show},
    file::{self, Field, List},
    policy::{NamePattern, is_port_name},
};

/// Checks all of a rule but its name, which imported rules need not have.
pub(crate) fn policy_shape(policy: &file::Policy, at: Loc, context: &Context<'_, '_>) {
    let file::Policy {
        name: _,
        description: _,
        endpoint_selector,
        node_selector,
        ingress,
        ingress_deny,
        egress,
        egress_deny,
        audit: _,
        enable_default_deny: _,
    } = policy;
    match (endpoint_selector.is_absent(), node_selector.is_absent()) {
        (true, true) => {
            context.report.missing(at, "endpointSelector", "allowed: a selector; {} selects all");
        }
        (false, false) => context.report.fault(
            node_selector.at,
            "a rule is about endpoints or about nodes",
            "allowed: one of `endpointSelector` and `nodeSelector`",
        ),
        _ => {}
    }
    selector(endpoint_selector, context);
    selector(node_selector, context);
    for (rule, _) in ingress.elements().chain(ingress_deny.elements()) {
        for peers in [&rule.from_endpoints, &rule.from_requires] {
            each(peers, |one| expressions(one, context));
        }
        each(&rule.from_cidr_set, |set| cidr_rule(set, context));
        ports(&rule.to_ports, context);
        icmps(&rule.icmps, context);
    }
    for (rule, _) in egress.elements().chain(egress_deny.elements()) {
        for peers in [&rule.to_endpoints, &rule.to_requires] {
            each(peers, |one| expressions(one, context));
        }
        each(&rule.to_cidr_set, |set| cidr_rule(set, context));
        each(&rule.to_fqdns, |one| fqdn(one, context));
        ports(&rule.to_ports, context);
        icmps(&rule.icmps, context);
    }
    for (rule, _) in egress_deny.elements() {
        for (_, at) in rule.to_fqdns.elements() {
            let message = "names cannot be denied: an address is known only once it was asked for";
            context.report.fault(at, message, "deny prefixes, or allow fewer names");
        }
    }
}

fn fqdn(one: &file::FqdnSelector, context: &Context<'_, '_>) {
    let file::FqdnSelector { match_name, match_pattern } = one;
    let (field, wild) = match (match_name.is_absent(), match_pattern.is_absent()) {
        (false, true) => (match_name, false),
        (true, false) => (match_pattern, true),
        _ => {
            let at = if match_name.is_absent() { match_pattern.at } else { match_name.at };
            let message = "neither a name nor a pattern, or both";
            return context.report.fault(at, message, "allowed: matchName or matchPattern");
        }
    };
    let Some((text, at)) = field.placed() else { return };
    if let Err(message) = NamePattern::new(text, wild) {
        context.report.fault(
            at,
            message,
            "allowed: letters, digits, `-`, `_` and `.`, at most 253; `*` in a pattern",
        );
    }
}

pub(super) fn kubernetes(
    field: &Field<file::Kubernetes>,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) {
    let Some(file::Kubernetes { enabled, kubeconfig, node_name }) = field.get() else {
        return;
    };
    if let Some((enabled, at)) = enabled.placed() {
        fragment.scalars.push(("kubernetes.enabled", at));
        if *enabled {
            context.report.fault(
                at,
                "`kubernetes.enabled: true` is not implemented in this version",
                "allowed: false",
            );
        }
    }
    for (name, field) in
        [("kubernetes.kubeconfig", kubeconfig), ("kubernetes.node_name", node_name)]
    {
        if let Some((_, at)) = field.placed() {
            fragment.scalars.push((name, at));
        }
    }
}

fn each<'l, T: 'l>(list: &'l List<T>, check: impl Fn(&'l T)) {
    list.elements().for_each(|(one, _)| check(one));
}

fn selector(field: &Field<file::Selector>, context: &Context<'_, '_>) {
    if let Some(selector) = field.get() {
        expressions(selector, context);
    }
}

pub(crate) fn expressions(selector: &file::Selector, context: &Context<'_, '_>) {
    let report = context.report;
    for (expression, at) in selector.match_expressions.elements() {
        let file::Expression { key, operator, values } = expression;
        if key.is_absent() {
            report.missing(at, "key", "allowed: the name of a label");
        }
        if operator.is_absent() {
            report.missing(at, "operator", "allowed: In, NotIn, Exists, DoesNotExist");
        }
        let Some(operator) = operator.get() else {
            continue;
        };
        let wants_values = matches!(operator, file::Operator::In | file::Operator::NotIn);
        if wants_values && values.is_absent() {
            report.missing(at, "values", "In and NotIn need one value or more");
        }
        if !wants_values && values.get().is_some_and(|values| !values.is_empty()) {
            report.fault(values.at, "Exists and DoesNotExist take no values", "leave them out");
        }
    }
}

pub(crate) fn cidr_rule(rule: &file::CidrRule, context: &Context<'_, '_>) {
    let file::CidrRule { cidr, except } = rule;
    let Some(file::Cidr(whole)) = cidr.get() else {
        return;
    };
    for (file::Cidr(part), at) in except.elements() {
        if !whole.contains(part) {
            let message = format!("{part} is not a part of {whole}");
            context.report.fault(at, message, "allowed: prefixes inside `cidr`");
        }
    }
}

fn ports(rules: &List<file::PortRule>, context: &Context<'_, '_>) {
    for (rule, _) in rules.elements() {
        for (port, at) in rule.ports.elements() {
            port_range(port, at, context);
        }
    }
}

pub(crate) fn port_range(entry: &file::PolicyPort, at: Loc, context: &Context<'_, '_>) {
    let report = context.report;
    let file::PolicyPort { port, end_port, protocol: _ } = entry;
    if port.is_absent() {
        report.missing(at, "port", "allowed: a number or the name of a port");
    }
    let Some((text, at)) = port.placed() else {
        return;
    };
    let number = text.parse::<u16>();
    if number.is_err() && !is_port_name(text) {
        report.fault(
            at,
            format!("{} is not a port", show(text)),
            "allowed: 0 to 65535, or the name of a port",
        );
    }
    if number.is_err() && end_port.get().is_some_and(|last| *last != 0) {
        report.fault(end_port.at, "a port with a name begins no range", "leave `endPort` out");
    }
    if let Some((&last, at)) = end_port.placed()
        && number.is_ok_and(|first| last < first)
    {
        report.fault(
            at,
            format!("the range ends at {last}, before it begins at {text}"),
            format!("allowed: {text} to 65535"),
        );
    }
}

fn icmps(rules: &List<file::IcmpRule>, context: &Context<'_, '_>) {
    for (rule, _) in rules.elements() {
        for (field, at) in rule.fields.elements() {
            if field.kind.is_absent() {
                context.report.missing(at, "type", "allowed: a number or the name of a message");
            }
        }
    }
}
