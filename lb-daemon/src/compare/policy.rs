//! Rules of policy as fields.

use config::policy::{
    Clause, Condition, Direction, Group, Peer, Ports, Requirement, Rule, Selector,
};
use serde_json::{Value, json};

/// A rule; its arrays may stand in any order.
pub(super) fn rule(rule: &Rule) -> Value {
    let Rule {
        name: _,
        source: _,
        node,
        subject,
        ingress_default_deny,
        egress_default_deny,
        audit,
        requires,
        clauses,
    } = rule;
    let selector = if *node { "node_selector" } else { "endpoint_selector" };
    let of = |wanted: Direction| -> Vec<String> {
        let clauses = clauses.iter().filter(|clause| clause.direction == wanted).map(clause);
        let requires = requires.iter().filter(|own| own.direction == wanted).map(requirement);
        clauses.chain(requires).collect()
    };
    let mut json = json!({
        "audit": audit,
        "default_deny": {"ingress": ingress_default_deny, "egress": egress_default_deny},
        "ingress": of(Direction::Ingress),
        "egress": of(Direction::Egress),
    });
    json[selector] = json!(self::selector(subject));
    json
}

fn verb(deny: bool) -> &'static str {
    if deny { "deny" } else { "allow" }
}

fn clause(clause: &Clause) -> String {
    let Clause { direction: _, deny, peers, ports, named } = clause;
    let peers = all(peers.iter().map(peer));
    let mut to: Vec<String> = ports.iter().flatten().map(self::ports).collect();
    to.extend(named.iter().map(|port| format!("{}/{}", port.name, protocol(port.protocol))));
    let to = match (ports, named.is_empty()) {
        (None, true) => "any port".to_owned(),
        _ => format!("ports {}", all(to.into_iter())),
    };
    format!("{} {peers}, {to}", verb(*deny))
}

fn requirement(requirement: &Requirement) -> String {
    let Requirement { direction: _, deny, selector } = requirement;
    format!("{} only {}", verb(*deny), self::selector(selector))
}

/// In an order that depends on nothing but what it is.
fn all(parts: impl Iterator<Item = String>) -> String {
    let mut parts: Vec<String> = parts.collect();
    parts.sort_unstable();
    if parts.is_empty() { "none".to_owned() } else { parts.join(" | ") }
}

fn selector(selector: &Selector) -> String {
    let mut parts: Vec<String> = selector.conditions.iter().map(condition).collect();
    parts.sort_unstable();
    if parts.is_empty() { "{}".to_owned() } else { format!("{{{}}}", parts.join("; ")) }
}

fn condition(condition: &Condition) -> String {
    let values = |values: &[String]| {
        let mut values = values.to_vec();
        values.sort_unstable();
        values.join(", ")
    };
    match condition {
        Condition::In(key, of) => format!("{key} in ({})", values(of)),
        Condition::NotIn(key, of) => format!("{key} not in ({})", values(of)),
        Condition::Exists(key) => format!("{key} exists"),
        Condition::DoesNotExist(key) => format!("{key} does not exist"),
    }
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Any => "anybody".to_owned(),
        Peer::Endpoints(of) => selector(of),
        Peer::Prefix { net, except } if except.is_empty() => net.to_string(),
        Peer::Prefix { net, except } => {
            format!("{net} without {}", all(except.iter().map(ToString::to_string)))
        }
        Peer::Entity(of) => of.as_str().to_owned(),
        Peer::Group(Group::Service { namespace, name }) => {
            format!("service {}/{name}", namespace.as_deref().unwrap_or("*"))
        }
        Peer::Group(Group::Names(pattern)) => format!("name {pattern}"),
    }
}

fn ports(ports: &Ports) -> String {
    let Ports { protocol, first, last } = *ports;
    let protocol = self::protocol(protocol);
    if first == last { format!("{first}/{protocol}") } else { format!("{first}-{last}/{protocol}") }
}

/// The name of an IP protocol, or its number.
pub(super) fn protocol(number: u8) -> String {
    match number {
        0 => "any".to_owned(),
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        number => number.to_string(),
    }
}
