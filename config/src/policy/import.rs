//! Rules written for Cilium, as JSON or YAML, to the model.
//!
//! Takes a list of rules, one rule, or `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`
//! objects, and Kubernetes' `NetworkPolicy`, in one or several YAML documents. What is not there yet is refused by name: a rule is taken as a whole or not at all. Does
//! no I/O.

mod kubernetes;

use std::{path::Path, sync::Arc};

use serde::Deserialize;

use super::{
    CIDR, Clause, Condition, Direction, Entity, Group, NamePattern, NamedPort, Peer, Ports,
    RESERVED, Requirement, Rule, Selector,
};
use crate::{
    fault::{Document, Fault, Loc, Report, show},
    file::{self, Field, List},
    model::Source,
    tree::{self, Node, Value, de::NodeDe},
    validate::{Context, policy_shape},
};

/// The label that holds the namespace of a Kubernetes pod.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";

/// Parts of a rule that would change its meaning if they were left out.
const MISSING: &[(&str, &str)] = &[
    ("serverNames", "matching TLS server names"),
    ("terminatingTLS", "TLS termination"),
    ("originatingTLS", "TLS origination"),
    ("listener", "redirection to a proxy"),
    ("authentication", "mutual authentication"),
    ("k8sServiceSelector", "`k8sServiceSelector`, services by their labels,"),
    ("toGroups", "`toGroups`"),
    ("fromGroups", "`fromGroups`"),
    ("fromNodes", "`fromNodes`"),
    ("toNodes", "`toNodes`"),
    ("cidrGroupRef", "`cidrGroupRef`"),
    ("cidrGroupSelector", "`cidrGroupSelector`"),
];

const REWRITE: &str = "leave the rule out, or rewrite it without this part";

/// What a file of rules holds: a rule by itself, or a Kubernetes object with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// `rule`, or the object's kind.
    pub kind: &'static str,
    /// The rule's name, or the object's, with its namespace if it has one.
    pub name: String,
    /// Its rules, by their indexes in the file.
    pub rules: std::ops::Range<usize>,
}

/// Reads the rules of a file; `path` is what faults and the rules' sources name.
///
/// # Errors
/// Everything that is wrong or not implemented, with its place.
pub fn import(path: &Path, text: &str) -> Result<Vec<Rule>, Vec<Fault>> {
    import_objects(path, text).map(|(rules, _)| rules)
}

/// The same, and what the rules are of.
///
/// # Errors
/// As [`import`].
pub fn import_objects(path: &Path, text: &str) -> Result<(Vec<Rule>, Vec<Object>), Vec<Fault>> {
    let report = Report::new(Document::File(path));
    let context = Context {
        report: &report,
        path: Arc::new(path.to_path_buf()),
        directory: path.parent().unwrap_or(path),
    };
    let mut import = Import { context: &context, rules: Vec::new(), objects: Vec::new() };
    let nodes = tree::yaml::documents(text, &report).unwrap_or_default();
    if nodes.is_empty() && report.len() == 0 {
        report.fault(Loc { line: 1, column: 1 }, "there are no rules", "write a list of rules");
    }
    nodes.into_iter().for_each(|node| import.top(node));
    let Import { rules, objects, .. } = import;
    if report.len() == 0 { Ok((rules, objects)) } else { Err(report.into_faults()) }
}

/// A rule of the configuration, whose shape is good.
pub(crate) fn rule_of(
    policy: &file::Policy,
    name: String,
    source: Source,
    report: &Report<'_>,
) -> Rule {
    let read = Reader { report, namespace: None };
    let (mut ingress, mut egress) = read.default_deny(None, policy);
    if let Some(set) = policy.enable_default_deny.get() {
        ingress = set.ingress.get().copied().unwrap_or(ingress);
        egress = set.egress.get().copied().unwrap_or(egress);
    }
    Rule {
        name,
        source,
        node: policy.endpoint_selector.is_absent(),
        subject: read.subject(policy),
        ingress_default_deny: ingress,
        egress_default_deny: egress,
        audit: policy.audit.get().copied().unwrap_or(false),
        requires: read.requires(policy),
        clauses: read.clauses(policy),
    }
}

/// Whether a port can have this name (RFC 6335 section 5.1).
pub(crate) fn is_port_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 15
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
        && text.bytes().any(|c| c.is_ascii_alphabetic())
}

/// The numbers of a protocol that has ports.
pub(crate) fn protocols(protocol: Option<file::PolicyProtocol>) -> &'static [u8] {
    match protocol {
        None | Some(file::PolicyProtocol::Any) => &[6, 17, 132],
        Some(file::PolicyProtocol::Tcp) => &[6],
        Some(file::PolicyProtocol::Udp) => &[17],
        Some(file::PolicyProtocol::Sctp) => &[132],
        Some(file::PolicyProtocol::Icmp | file::PolicyProtocol::Icmpv6) => &[],
    }
}

/// A label's key without the source in front that rules may name.
pub(crate) fn bare_key(key: &str) -> &str {
    let bare = ["any:", "k8s:", "any.", "k8s."].iter().find_map(|p| key.strip_prefix(p));
    bare.unwrap_or(key)
}

struct Import<'c, 'd> {
    context: &'c Context<'c, 'd>,
    rules: Vec<Rule>,
    objects: Vec<Object>,
}

/// What an object says about all rules in it.
#[derive(Clone, Copy)]
struct Owner<'o> {
    name: &'o str,
    namespace: Option<&'o str>,
}

impl Import<'_, '_> {
    fn top(&mut self, mut node: Node<'_>) {
        match node.value {
            Value::Sequence(elements) => elements.into_iter().for_each(|one| self.top(one)),
            Value::Mapping(_) => match take(&mut node, "kind") {
                Some((_, kind)) => self.object(&kind, node),
                None => {
                    let first = self.rules.len();
                    self.rule(node, None);
                    if let Some(rule) = self.rules.get(first) {
                        let (name, rules) = (rule.name.clone(), first..first + 1);
                        self.objects.push(Object { kind: "rule", name, rules });
                    }
                }
            },
            Value::Scalar { .. } => self.fault(node.at, "not a rule", "write a list of rules"),
        }
    }

    fn fault(&self, at: Loc, message: impl Into<String>, help: &str) {
        self.context.report.fault(at, message, help);
    }

    fn object(&mut self, kind: &Node<'_>, mut object: Node<'_>) {
        let kind = match text(kind) {
            Some(
                "List"
                | "CiliumNetworkPolicyList"
                | "CiliumClusterwideNetworkPolicyList"
                | "NetworkPolicyList",
            ) => {
                return match take(&mut object, "items") {
                    Some((_, items)) => self.top(items),
                    None => self.context.report.missing(object.at, "items", "the objects"),
                };
            }
            Some("CiliumNetworkPolicy") => "CiliumNetworkPolicy",
            Some("CiliumClusterwideNetworkPolicy") => "CiliumClusterwideNetworkPolicy",
            Some("NetworkPolicy") => "NetworkPolicy",
            _ => {
                let message = format!("objects of the kind {} are not read", kind.describe());
                let help =
                    "allowed: CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy, NetworkPolicy";
                return self.fault(kind.at, message, help);
            }
        };
        let Some((_, mut metadata)) = take(&mut object, "metadata") else {
            return self.context.report.missing(object.at, "metadata", "every object has a name");
        };
        let name = take(&mut metadata, "name").and_then(|(_, node)| text(&node).map(str::to_owned));
        let Some(name) = name else {
            return self.context.report.missing(metadata.at, "name", "every object has a name");
        };
        let namespace = take(&mut metadata, "namespace")
            .and_then(|(_, node)| text(&node).map(str::to_owned))
            .unwrap_or_else(|| "default".to_owned());
        let namespaced = kind != "CiliumClusterwideNetworkPolicy";
        let owner = Owner { name: &name, namespace: namespaced.then_some(namespace.as_str()) };
        let first = self.rules.len();
        let mut found = false;
        if let Some((_, spec)) = take(&mut object, "spec") {
            found = true;
            if kind == "NetworkPolicy" {
                self.network_policy(&spec, &name, &namespace);
            } else {
                self.rule(spec, Some(owner));
            }
        }
        if let Some((at, specs)) = take(&mut object, "specs") {
            found = true;
            match specs.value {
                Value::Sequence(specs) => {
                    specs.into_iter().for_each(|spec| self.rule(spec, Some(owner)));
                }
                _ => self.fault(at, "`specs` is not a list", "allowed: a list of rules"),
            }
        }
        if !found {
            self.context.report.missing(object.at, "spec", "an object has a rule, or `specs`");
        }
        let name = if namespaced { format!("{namespace}/{name}") } else { name };
        self.objects.push(Object { kind, name, rules: first..self.rules.len() });
    }

    fn rule(&mut self, mut node: Node<'_>, owner: Option<Owner<'_>>) {
        let report = self.context.report;
        let at = node.at;
        let before = report.len();
        refuse_missing(&mut node, report);
        let labels = take(&mut node, "labels").map(|(_, labels)| labels);
        let default_deny = take(&mut node, "enableDefaultDeny");
        let policy = NodeDe { node: &node, report, field: "" };
        let policy = match file::Policy::deserialize(policy) {
            Ok(policy) => policy,
            Err(error) => return self.fault(at, error.to_string(), "allowed: a rule"),
        };
        policy_shape(&policy, at, self.context);
        if let Some(Owner { namespace: Some(_), .. }) = owner
            && !policy.node_selector.is_absent()
        {
            let message = "a CiliumNetworkPolicy has a namespace, and nodes have none";
            self.fault(policy.node_selector.at, message, "allowed: CiliumClusterwideNetworkPolicy");
        }
        if report.len() > before {
            return;
        }
        let read = Reader { report, namespace: owner.and_then(|owner| owner.namespace) };
        let (ingress, egress) = read.default_deny(default_deny, &policy);
        let name = policy.name.get().cloned().or_else(|| labels.as_ref().and_then(name_label));
        let name = match (name, owner) {
            (Some(name), _) => name,
            (None, Some(owner)) => owner.name.to_owned(),
            (None, None) => format!("rule-{}", self.rules.len() + 1),
        };
        let rule = Rule {
            name,
            source: self.context.source(at),
            node: policy.endpoint_selector.is_absent(),
            subject: read.subject(&policy),
            ingress_default_deny: ingress,
            egress_default_deny: egress,
            audit: policy.audit.get().copied().unwrap_or(false),
            requires: read.requires(&policy),
            clauses: read.clauses(&policy),
        };
        self.rules.push(rule);
    }
}

/// Whoever has the names; `None`: they are not well-formed, which was reported.
fn name_of(one: &file::FqdnSelector) -> Option<Peer> {
    let name = one.match_name.get().map(|text| (text, false));
    let (text, wild) = name.or_else(|| one.match_pattern.get().map(|text| (text, true)))?;
    NamePattern::new(text, wild).ok().map(|names| Peer::Group(Group::Names(names)))
}

/// Takes a field out of a mapping.
fn take<'t>(node: &mut Node<'t>, name: &str) -> Option<(Loc, Node<'t>)> {
    let Value::Mapping(fields) = &mut node.value else { return None };
    let index = fields.iter().position(|(key, _)| key.text == name)?;
    let (key, value) = fields.remove(index);
    Some((key.at, value))
}

fn text<'n>(node: &'n Node<'_>) -> Option<&'n str> {
    match &node.value {
        Value::Scalar { text, .. } if !node.is_null() => Some(text),
        _ => None,
    }
}

/// The value of the label `name` in a list of labels.
fn name_label(labels: &Node<'_>) -> Option<String> {
    let Value::Sequence(labels) = &labels.value else { return None };
    labels.iter().find_map(|label| {
        let Value::Mapping(fields) = &label.value else { return None };
        let get = |name: &str| fields.iter().find(|(key, _)| key.text == name);
        let (_, key) = get("key")?;
        let (_, value) = get("value")?;
        (text(key)? == "name").then(|| text(value).map(str::to_owned))?
    })
}

/// What stands under `rules`, of which nothing is there yet, and what to do about it.
fn layer_7(parts: &Node<'_>) -> (String, &'static str) {
    let Value::Mapping(fields) = &parts.value else {
        return ("`rules`, an L7 part,".to_owned(), REWRITE);
    };
    let kinds: Vec<String> = fields.iter().map(|(key, _)| format!("`{}`", key.text)).collect();
    let remedy = match &kinds[..] {
        [only] if only == "`dns`" => {
            "leave `rules` out: then any name may be asked for, and `toFQDNs` learns from all answers"
        }
        _ => REWRITE,
    };
    (format!("`rules` with {}, an L7 part,", kinds.join(", ")), remedy)
}

/// Reports fields that stand for what is not there yet, and takes them out. Labels are not fields.
fn refuse_missing(node: &mut Node<'_>, report: &Report<'_>) {
    match &mut node.value {
        Value::Scalar { .. } => {}
        Value::Sequence(elements) => {
            elements.iter_mut().for_each(|element| refuse_missing(element, report));
        }
        Value::Mapping(fields) => fields.retain_mut(|(key, value)| {
            let missing = match MISSING.iter().find(|(name, _)| key.text == *name) {
                Some((_, what)) => Some(((*what).to_owned(), REWRITE)),
                None if key.text == "rules" => Some(layer_7(value)),
                None => None,
            };
            if let Some((what, remedy)) = missing {
                let message = format!("{what} cannot be enforced by this version");
                report.fault(key.at, message, remedy);
                return false;
            }
            if !matches!(&*key.text, "matchLabels" | "matchExpressions" | "labels") {
                refuse_missing(value, report);
            }
            true
        }),
    }
}

/// Turns the parts of a well-formed rule into the model.
struct Reader<'r, 'd> {
    report: &'r Report<'d>,
    namespace: Option<&'r str>,
}

/// What ingress and egress have in common.
struct Part<'p> {
    direction: Direction,
    deny: bool,
    endpoints: &'p List<file::Selector>,
    requires: &'p List<file::Selector>,
    cidr: &'p List<file::Cidr>,
    cidr_set: &'p List<file::CidrRule>,
    entities: &'p List<file::Entity>,
    services: Option<&'p List<file::PolicyService>>,
    names: Option<&'p List<file::FqdnSelector>>,
    ports: &'p List<file::PortRule>,
    icmps: &'p List<file::IcmpRule>,
}

impl Reader<'_, '_> {
    fn default_deny(&self, field: Option<(Loc, Node<'_>)>, policy: &file::Policy) -> (bool, bool) {
        let ingress = policy.ingress.elements().chain(policy.ingress_deny.elements());
        let egress = policy.egress.elements().chain(policy.egress_deny.elements());
        let mut deny = (ingress.count() > 0, egress.count() > 0);
        let Some((at, node)) = field else { return deny };
        let Value::Mapping(fields) = &node.value else {
            self.report.fault(
                at,
                "`enableDefaultDeny` is not a mapping",
                "allowed: ingress, egress",
            );
            return deny;
        };
        for (key, value) in fields {
            let on = match text(value) {
                Some("true") => true,
                Some("false") => false,
                _ => {
                    self.report.fault(value.at, "not a truth value", "allowed: true, false");
                    continue;
                }
            };
            match &*key.text {
                "ingress" => deny.0 = on,
                "egress" => deny.1 = on,
                other => {
                    let message = format!("unknown field {}", show(other));
                    self.report.fault(key.at, message, "allowed: ingress, egress");
                }
            }
        }
        deny
    }

    fn clauses(&self, policy: &file::Policy) -> Vec<Clause> {
        Self::parts(policy).filter_map(|part| self.clause(&part)).collect()
    }

    fn requires(&self, policy: &file::Policy) -> Vec<Requirement> {
        let of = |part: Part<'_>| {
            let Part { direction, deny, .. } = part;
            let all = part.requires.elements().map(|(one, _)| Requirement {
                direction,
                deny,
                selector: self.selector(one, false),
            });
            all.collect::<Vec<_>>()
        };
        Self::parts(policy).flat_map(of).collect()
    }

    fn parts(policy: &file::Policy) -> impl Iterator<Item = Part<'_>> {
        let ingress = [(&policy.ingress, false), (&policy.ingress_deny, true)];
        let ingress = ingress.into_iter().flat_map(|(list, deny)| {
            list.elements().map(move |(rule, _)| Part {
                direction: Direction::Ingress,
                deny,
                endpoints: &rule.from_endpoints,
                requires: &rule.from_requires,
                cidr: &rule.from_cidr,
                cidr_set: &rule.from_cidr_set,
                entities: &rule.from_entities,
                services: None,
                names: None,
                ports: &rule.to_ports,
                icmps: &rule.icmps,
            })
        });
        let egress = [(&policy.egress, false), (&policy.egress_deny, true)];
        let egress = egress.into_iter().flat_map(|(list, deny)| {
            list.elements().map(move |(rule, _)| Part {
                direction: Direction::Egress,
                deny,
                endpoints: &rule.to_endpoints,
                requires: &rule.to_requires,
                cidr: &rule.to_cidr,
                cidr_set: &rule.to_cidr_set,
                entities: &rule.to_entities,
                services: Some(&rule.to_services),
                names: Some(&rule.to_fqdns),
                ports: &rule.to_ports,
                icmps: &rule.icmps,
            })
        });
        ingress.chain(egress)
    }

    /// `None`: an empty clause, which allows nothing; it is written for the default deny it brings.
    fn clause(&self, part: &Part<'_>) -> Option<Clause> {
        let mut named = Vec::new();
        let ports = self.ports(part.ports, part.icmps, &mut named);
        let peers = self.peers(part);
        // Nor does an entry grant anything that only requires.
        if peers.is_none()
            && (!part.requires.is_absent() || ports.is_none() && part.ports.elements().count() == 0)
        {
            return None;
        }
        let &Part { direction, deny, .. } = part;
        let peers = peers.unwrap_or_else(|| vec![Peer::Any]);
        Some(Clause { direction, deny, peers, ports, named })
    }

    /// `None`: the rule says nothing of peers.
    fn peers(&self, part: &Part<'_>) -> Option<Vec<Peer>> {
        let silent = part.endpoints.is_absent()
            && part.cidr.is_absent()
            && part.cidr_set.is_absent()
            && part.entities.is_absent()
            && part.services.is_none_or(List::is_absent)
            && part.names.is_none_or(List::is_absent);
        if silent {
            return None;
        }
        let endpoints =
            part.endpoints.elements().map(|(one, _)| Peer::Endpoints(self.selector(one, false)));
        let cidr = part
            .cidr
            .elements()
            .map(|(file::Cidr(net), _)| Peer::Prefix { net: *net, except: Vec::new() });
        let sets = part.cidr_set.elements().filter_map(|(set, at)| {
            let Some(file::Cidr(net)) = set.cidr.get() else {
                self.report.missing(at, "cidr", "allowed: a prefix");
                return None;
            };
            let except = set.except.elements().map(|(file::Cidr(net), _)| *net).collect();
            Some(Peer::Prefix { net: *net, except })
        });
        let entities = part.entities.elements().filter_map(|(one, at)| self.entity(*one, at));
        let services = part.services.into_iter().flat_map(List::elements);
        let services = services.filter_map(|(one, at)| self.service(one, at));
        let names = part.names.into_iter().flat_map(List::elements);
        let names = names.filter_map(|(one, _)| name_of(one));
        let all = endpoints.chain(cidr).chain(sets).chain(entities);
        Some(all.chain(services).chain(names).collect())
    }

    fn service(&self, service: &file::PolicyService, at: Loc) -> Option<Peer> {
        let name = service
            .k8s_service
            .get()
            .and_then(|service| Some((service.service_name.get()?, service.namespace.get())));
        let Some((name, namespace)) = name else {
            self.report.missing(at, "k8sService", "allowed: k8sService with a serviceName");
            return None;
        };
        let namespace = namespace.cloned().or_else(|| self.namespace.map(str::to_owned));
        Some(Peer::Group(Group::Service { namespace, name: name.clone() }))
    }

    fn entity(&self, entity: file::Entity, at: Loc) -> Option<Peer> {
        Some(Peer::Entity(match entity {
            file::Entity::All => return Some(Peer::Any),
            file::Entity::None => return None,
            file::Entity::World => Entity::World,
            file::Entity::WorldIpv4 => Entity::WorldIpv4,
            file::Entity::WorldIpv6 => Entity::WorldIpv6,
            file::Entity::Host => Entity::Host,
            file::Entity::RemoteNode => Entity::RemoteNode,
            file::Entity::Cluster => Entity::Cluster,
            file::Entity::Init => Entity::Init,
            file::Entity::Health => Entity::Health,
            file::Entity::Unmanaged => Entity::Unmanaged,
            file::Entity::KubeApiserver | file::Entity::Ingress => {
                let message = "nobody is known to be this entity in this version";
                self.report.fault(at, message, "name the peers by labels or prefixes");
                return None;
            }
        }))
    }

    /// Whom a rule is about. The namespace is that of endpoints.
    fn subject(&self, policy: &file::Policy) -> Selector {
        match policy.node_selector.get() {
            Some(nodes) => Reader { namespace: None, ..*self }.selector(nodes, true),
            None => self.selector_of(&policy.endpoint_selector, true),
        }
    }

    fn selector_of(&self, field: &Field<file::Selector>, subject: bool) -> Selector {
        field.get().map(|selector| self.selector(selector, subject)).unwrap_or_default()
    }

    fn selector(&self, selector: &file::Selector, subject: bool) -> Selector {
        let file::Selector { match_labels, match_expressions } = selector;
        let mut conditions = Vec::new();
        for (key, value) in match_labels.get().into_iter().flatten() {
            let key = self.key(key, if value.is_absent() { match_labels.at } else { value.at });
            conditions.push(Condition::In(key, vec![value.get().cloned().unwrap_or_default()]));
        }
        for (expression, at) in match_expressions.elements() {
            let Some((key, operator)) = expression.key.get().zip(expression.operator.get()) else {
                continue;
            };
            let key = self.key(key, at);
            let values = || expression.values.elements().map(|(value, _)| value.clone()).collect();
            conditions.push(match operator {
                file::Operator::In => Condition::In(key, values()),
                file::Operator::NotIn => Condition::NotIn(key, values()),
                file::Operator::Exists => Condition::Exists(key),
                file::Operator::DoesNotExist => Condition::DoesNotExist(key),
            });
        }
        let mut selector = Selector { conditions };
        if let Some(namespace) = self.namespace
            && (subject || !selector.names_reserved())
            && (subject || selector.conditions.iter().all(|one| one.key() != NAMESPACE))
        {
            let namespace = vec![namespace.to_owned()];
            selector.conditions.push(Condition::In(NAMESPACE.to_owned(), namespace));
        }
        selector
    }

    /// A label's key without the source it came from; labels here have none.
    fn key(&self, key: &str, at: Loc) -> String {
        let bare = bare_key(key);
        let reserved = bare.starts_with(RESERVED);
        if bare.starts_with(CIDR) || (bare.contains(':') && !reserved) {
            let message = format!("labels do not have the source of {}", show(key));
            self.report.fault(at, message, "allowed: any:, k8s:, reserved: or no source");
        }
        bare.to_owned()
    }

    /// `None`: whatever protocol and port.
    fn ports(
        &self,
        rules: &List<file::PortRule>,
        icmps: &List<file::IcmpRule>,
        named: &mut Vec<NamedPort>,
    ) -> Option<Vec<Ports>> {
        let mut all = Vec::new();
        for (rule, _) in rules.elements() {
            if rule.ports.elements().count() == 0 {
                named.clear();
                return None;
            }
            for (port, _) in rule.ports.elements() {
                self.port(port, &mut all, named);
            }
        }
        for (rule, _) in icmps.elements() {
            for (field, _) in rule.fields.elements() {
                all.extend(self.icmp(field));
            }
        }
        let silent = rules.elements().count() == 0 && icmps.elements().count() == 0;
        (!silent).then_some(all)
    }

    fn port(&self, entry: &file::PolicyPort, all: &mut Vec<Ports>, named: &mut Vec<NamedPort>) {
        let file::PolicyPort { port, end_port, protocol } = entry;
        let Some(text) = port.get() else { return };
        if matches!(protocol.get(), Some(file::PolicyProtocol::Icmp | file::PolicyProtocol::Icmpv6))
        {
            return self.report.fault(protocol.at, "ICMP has no ports", "write `icmps`");
        }
        let protocols = protocols(protocol.get().copied());
        let Ok(first) = text.parse::<u16>() else {
            let one = |&protocol: &u8| NamedPort { name: text.clone(), protocol };
            return named.extend(protocols.iter().map(one));
        };
        // 0 is every port.
        let (first, last) = match (first, end_port.get()) {
            (0, None) => (0, u16::MAX),
            (first, None | Some(0)) => (first, first),
            (first, Some(&last)) => (first, last),
        };
        all.extend(protocols.iter().map(|&protocol| Ports { protocol, first, last }));
    }

    fn icmp(&self, field: &file::IcmpField) -> Option<Ports> {
        let six = field.family.get() == Some(&file::Family::Ipv6);
        let (text, at) = field.kind.placed()?;
        let kind = text.parse::<u8>().ok().or_else(|| icmp_type(text, six));
        let Some(kind) = kind else {
            let message = format!("{} is not a type of ICMP messages", show(text));
            self.report.fault(at, message, "allowed: 0 to 255, EchoRequest, EchoReply, ...");
            return None;
        };
        let kind = u16::from(kind);
        Some(Ports { protocol: if six { 58 } else { 1 }, first: kind, last: kind })
    }
}

/// Types of ICMP messages by name (RFC 792, RFC 4443).
fn icmp_type(name: &str, six: bool) -> Option<u8> {
    Some(match (name, six) {
        ("EchoReply", false) => 0,
        ("DestinationUnreachable", false) => 3,
        ("Redirect", false) => 5,
        ("Echo" | "EchoRequest", false) => 8,
        ("TimeExceeded", false) => 11,
        ("ParameterProblem", false) => 12,
        ("Timestamp", false) => 13,
        ("TimestampReply", false) => 14,
        ("DestinationUnreachable", true) => 1,
        ("PacketTooBig", true) => 2,
        ("TimeExceeded", true) => 3,
        ("ParameterProblem", true) => 4,
        ("EchoRequest", true) => 128,
        ("EchoReply", true) => 129,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
