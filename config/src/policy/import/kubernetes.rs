//! Kubernetes' `NetworkPolicy` (networking.k8s.io/v1) to rules of the model.
//!
//! What that format leaves to the reader is said here: whoever a policy selects is closed in the
//! directions that `policyTypes` names; an empty list of peers or ports is everybody and everything;
//! what comes from or goes to the endpoint's own host passes.

use serde::Deserialize;

use super::{Import, NAMESPACE, Reader, protocols};
use crate::{
    file::{self, Field, List},
    policy::{Clause, Condition, Direction, Entity, NamedPort, Peer, Ports, Rule, Selector},
    tree::{Node, de::NodeDe},
    validate::{cidr_rule, expressions, port_range},
};

/// In front of the labels of an endpoint's namespace, among its own.
const NAMESPACE_LABEL: &str = "io.cilium.k8s.namespace.labels.";
/// A label that every namespace has: its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Spec {
    pod_selector: Field<file::Selector>,
    policy_types: List<PolicyType>,
    ingress: List<Ingress>,
    egress: List<Egress>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum PolicyType {
    Ingress,
    Egress,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Ingress {
    from: List<OnePeer>,
    ports: List<file::PolicyPort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Egress {
    to: List<OnePeer>,
    ports: List<file::PolicyPort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct OnePeer {
    pod_selector: Field<file::Selector>,
    namespace_selector: Field<file::Selector>,
    ip_block: Field<file::CidrRule>,
}

impl Import<'_, '_> {
    /// Takes the `spec` of an object.
    pub(super) fn network_policy(&mut self, spec: &Node<'_>, name: &str, namespace: &str) {
        let report = self.context.report;
        let before = report.len();
        let spec = match Spec::deserialize(NodeDe { node: spec, report, field: "" }) {
            Ok(read) => (read, spec.at),
            Err(error) => {
                return self.fault(spec.at, error.to_string(), "allowed: a NetworkPolicy");
            }
        };
        let (spec, at) = spec;
        self.check(&spec);
        let read = Reader { report, namespace: Some(namespace) };
        let names = |kind| spec.policy_types.elements().any(|(one, _)| *one == kind);
        let silent = spec.policy_types.elements().count() == 0;
        let into = silent || names(PolicyType::Ingress);
        let out = names(PolicyType::Egress) || silent && spec.egress.elements().count() > 0;
        let ingress = spec.ingress.elements().filter(|_| into);
        let ingress = ingress.map(|(e, _)| clause(&read, Direction::Ingress, &e.from, &e.ports));
        let egress = spec.egress.elements().filter(|_| out);
        let egress = egress.map(|(e, _)| clause(&read, Direction::Egress, &e.to, &e.ports));
        let mut clauses: Vec<Clause> = ingress.chain(egress).collect();
        let closed = [(into, Direction::Ingress), (out, Direction::Egress)];
        clauses.extend(closed.into_iter().filter(|(on, _)| *on).map(|(_, way)| host(way)));
        if report.len() > before {
            return;
        }
        self.rules.push(Rule {
            name: name.to_owned(),
            source: self.context.source(at),
            node: false,
            subject: read.selector_of(&spec.pod_selector, true),
            ingress_default_deny: into,
            egress_default_deny: out,
            audit: false,
            requires: Vec::new(),
            clauses,
        });
    }

    fn check(&self, spec: &Spec) {
        let context = self.context;
        let selectors = |field: &Field<file::Selector>| {
            if let Some(selector) = field.get() {
                expressions(selector, context);
            }
        };
        selectors(&spec.pod_selector);
        let ingress = spec.ingress.elements().map(|(entry, _)| (&entry.from, &entry.ports));
        let egress = spec.egress.elements().map(|(entry, _)| (&entry.to, &entry.ports));
        for (peers, ports) in ingress.chain(egress) {
            for (OnePeer { pod_selector, namespace_selector, ip_block }, at) in peers.elements() {
                selectors(pod_selector);
                selectors(namespace_selector);
                if let Some(block) = ip_block.get() {
                    cidr_rule(block, context);
                    if block.cidr.is_absent() {
                        context.report.missing(ip_block.at, "cidr", "allowed: a prefix");
                    }
                    if !pod_selector.is_absent() || !namespace_selector.is_absent() {
                        let help = "write them as two peers";
                        self.fault(at, "a peer is a prefix or a selector, not both", help);
                    }
                } else if pod_selector.is_absent() && namespace_selector.is_absent() {
                    let help = "allowed: podSelector, namespaceSelector, ipBlock";
                    self.fault(at, "a peer without anything", help);
                }
            }
            for (port, at) in ports.elements().filter(|(port, _)| !port.port.is_absent()) {
                port_range(port, at, context);
            }
        }
    }
}

/// The endpoint's own host is never denied.
fn host(direction: Direction) -> Clause {
    let peers = vec![Peer::Entity(Entity::Host)];
    Clause { direction, deny: false, peers, ports: None, named: Vec::new() }
}

fn clause(
    read: &Reader<'_, '_>,
    direction: Direction,
    peers: &List<OnePeer>,
    ports: &List<file::PolicyPort>,
) -> Clause {
    let mut named = Vec::new();
    let mut numbers = Vec::new();
    for (entry, _) in ports.elements() {
        port(entry, &mut numbers, &mut named);
    }
    let ports = (ports.elements().count() > 0).then_some(numbers);
    let peers: Vec<Peer> = match peers.elements().count() {
        0 => vec![Peer::Any],
        _ => peers.elements().filter_map(|(one, _)| peer(read, one)).collect(),
    };
    Clause { direction, deny: false, peers, ports, named }
}

fn port(entry: &file::PolicyPort, numbers: &mut Vec<Ports>, named: &mut Vec<NamedPort>) {
    let file::PolicyPort { port, end_port, protocol } = entry;
    let protocol = protocol.get().copied().unwrap_or(file::PolicyProtocol::Tcp);
    for &protocol in protocols(Some(protocol)) {
        let text = port.get().map(String::as_str);
        match text.map(str::parse::<u16>) {
            None => numbers.push(Ports { protocol, first: 0, last: u16::MAX }),
            Some(Ok(first)) => {
                let last = end_port.get().copied().unwrap_or(first);
                numbers.push(Ports { protocol, first, last });
            }
            Some(Err(_)) => {
                let name = text.unwrap_or_default().to_owned();
                named.push(NamedPort { name, protocol });
            }
        }
    }
}

fn peer(read: &Reader<'_, '_>, one: &OnePeer) -> Option<Peer> {
    if let Some(block) = one.ip_block.get() {
        let file::Cidr(net) = block.cidr.get()?;
        let except = block.except.elements().map(|(file::Cidr(net), _)| *net).collect();
        return Some(Peer::Prefix { net: *net, except });
    }
    let Some(namespaces) = one.namespace_selector.get() else {
        return Some(Peer::Endpoints(read.selector_of(&one.pod_selector, true)));
    };
    let anywhere = Reader { report: read.report, namespace: None };
    let mut conditions = anywhere.selector_of(&one.pod_selector, false).conditions;
    let of_namespace = anywhere.selector(namespaces, false).conditions;
    if of_namespace.is_empty() {
        conditions.push(Condition::Exists(NAMESPACE.to_owned()));
    }
    conditions.extend(of_namespace.into_iter().map(|condition| {
        let key = |key: String| match key.as_str() {
            NAMESPACE_NAME => NAMESPACE.to_owned(),
            _ => format!("{NAMESPACE_LABEL}{key}"),
        };
        match condition {
            Condition::In(k, values) => Condition::In(key(k), values),
            Condition::NotIn(k, values) => Condition::NotIn(key(k), values),
            Condition::Exists(k) => Condition::Exists(key(k)),
            Condition::DoesNotExist(k) => Condition::DoesNotExist(key(k)),
        }
    }));
    Some(Peer::Endpoints(Selector { conditions }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::policy::import;

    const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
        - namespaceSelector: {matchLabels: {project: mine}}
        - podSelector: {matchLabels: {role: api}}
      ports: [{protocol: TCP, port: 6379}, {port: metrics}, {protocol: UDP}]
  egress:
    - to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: dns}}}]
      ports: [{protocol: UDP, port: 53, endPort: 54}]
";

    fn is(key: &str, value: &str) -> Condition {
        Condition::In(key.to_owned(), vec![value.to_owned()])
    }

    fn one(text: &str) -> Rule {
        let mut rules = import(Path::new("p.yaml"), text).unwrap_or_else(|f| panic!("{f:?}"));
        assert_eq!(rules.len(), 1);
        rules.remove(0)
    }

    #[test]
    fn the_example_of_the_manual() {
        let rule = one(POLICY);
        assert_eq!(rule.subject.conditions, [is("role", "db"), is(NAMESPACE, "shop")]);
        assert!(rule.ingress_default_deny && rule.egress_default_deny);
        let [into, out, host_in, host_out] = &rule.clauses[..] else { panic!("{rule:?}") };
        let net = |text: &str| text.parse().unwrap();
        let except = vec![net("172.17.1.0/24")];
        assert_eq!(into.peers[0], Peer::Prefix { net: net("172.17.0.0/16"), except });
        let conditions = |peer: &Peer| match peer {
            Peer::Endpoints(selector) => selector.conditions.clone(),
            other => panic!("{other:?}"),
        };
        let project = format!("{NAMESPACE_LABEL}project");
        assert_eq!(conditions(&into.peers[1]), [is(&project, "mine")]);
        assert_eq!(conditions(&into.peers[2]), [is("role", "api"), is(NAMESPACE, "shop")]);
        let ports = |protocol, first, last| Ports { protocol, first, last };
        let wanted = [ports(6, 6379, 6379), ports(17, 0, u16::MAX)];
        assert_eq!(into.ports.as_deref(), Some(&wanted[..]));
        assert_eq!(into.named, [NamedPort { name: "metrics".to_owned(), protocol: 6 }]);
        let anywhere = Condition::Exists(NAMESPACE.to_owned());
        assert_eq!(conditions(&out.peers[0]), [is("app", "dns"), anywhere]);
        assert_eq!(out.ports.as_deref(), Some(&[ports(17, 53, 54)][..]));
        assert_eq!(
            (host_in.direction, host_out.direction),
            (Direction::Ingress, Direction::Egress)
        );
    }

    #[test]
    fn what_is_not_written_is_as_kubernetes_has_it() {
        let of = |spec: &str| {
            one(&format!("{{kind: NetworkPolicy, metadata: {{name: a}}, spec: {spec}}}"))
        };
        let closed = of("{podSelector: {}}");
        assert!(closed.ingress_default_deny && !closed.egress_default_deny);
        assert_eq!(closed.clauses, [host(Direction::Ingress)]);
        assert_eq!(closed.subject.conditions, [is(NAMESPACE, "default")]);
        let open = of("{podSelector: {}, ingress: [{}]}");
        assert_eq!((&open.clauses[0].peers[..], &open.clauses[0].ports), (&[Peer::Any][..], &None));
        let out = of("{podSelector: {}, policyTypes: [Egress]}");
        assert!(!out.ingress_default_deny && out.egress_default_deny);
        let both = of("{podSelector: {}, egress: [{ports: [{port: 53}]}]}");
        assert!(both.ingress_default_deny && both.egress_default_deny);
    }

    #[test]
    fn faults_have_places() {
        let text = POLICY.replace("podSelector: {matchLabels: {role: api}}", "ipBlock: {cidr: a}");
        let faults = import(Path::new("p.yaml"), &text).expect_err("refused");
        assert_eq!((faults[0].line, faults[0].column), (11, 27), "{faults:?}");
    }
}
