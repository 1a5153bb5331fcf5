//! Reads the rules as they are written, one after the other: which of them are about a flow, and
//! which one decides.
//!
//! Slow and plain on purpose. It knows nothing of identities, classes and tables: prefixes are
//! compared with the address itself. Answers questions, and checks the compiler.

use std::net::IpAddr;

use config::policy::{Clause, Direction, Enforcement, Entity, Labels, Peer, Rule, Selector};

use super::{Flow, Verdict};

/// The other side of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other<'o> {
    /// An endpoint with these labels.
    Endpoint(&'o Labels),
    /// This host, another node, and such: anything but the world and `Cluster`.
    Reserved(Entity),
    /// An address that is nobody's.
    World(IpAddr),
}

/// Why a flow passes or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What becomes of it.
    pub verdict: Verdict,
    /// Indices of the rules that select the endpoint.
    pub selecting: Vec<u32>,
    /// Those of them with a clause about the flow that allows it.
    pub allowing: Vec<u32>,
    /// Those of them with a clause about the flow that denies it.
    pub denying: Vec<u32>,
    /// Those of them in audit with a clause about the flow that would deny it.
    pub auditing: Vec<u32>,
}

/// Says what becomes of a flow between the endpoint `subject` and the `other` side, and why.
#[must_use]
pub fn explain(
    subject: &Labels,
    rules: &[Rule],
    enforcement: Enforcement,
    direction: Direction,
    other: Other<'_>,
    flow: Flow,
) -> Explanation {
    let mut closed = enforcement == Enforcement::Always;
    let mut audited = false;
    let mut why = Explanation {
        verdict: Verdict::Open,
        selecting: Vec::new(),
        allowing: Vec::new(),
        denying: Vec::new(),
        auditing: Vec::new(),
    };
    for (index, rule) in (0u32..).zip(rules) {
        if !rule.subject.selects(subject) {
            continue;
        }
        why.selecting.push(index);
        let closes = match direction {
            Direction::Ingress => rule.ingress_default_deny,
            Direction::Egress => rule.egress_default_deny,
        };
        closed |= closes && !rule.audit;
        audited |= closes && rule.audit;
        let mut about = rule.clauses.iter().filter(|clause| {
            clause.direction == direction && has_port(clause, flow) && has_peer(clause, other)
        });
        if about.clone().any(|clause| clause.deny) {
            if rule.audit { &mut why.auditing } else { &mut why.denying }.push(index);
        }
        if about.any(|clause| !clause.deny) {
            why.allowing.push(index);
        }
    }
    let enforced = match (why.denying.first(), why.allowing.first()) {
        (Some(rule), _) => Verdict::Denied(*rule),
        (None, Some(rule)) => Verdict::Allowed(*rule),
        (None, None) if closed => Verdict::DeniedByDefault,
        (None, None) if audited => Verdict::WouldDenyByDefault,
        (None, None) => Verdict::Open,
    };
    why.verdict = match why.auditing.first() {
        _ if enforcement == Enforcement::Never => Verdict::Open,
        Some(rule) if enforced.passes() => Verdict::WouldDeny(*rule),
        _ => enforced,
    };
    why
}

fn has_port(clause: &Clause, flow: Flow) -> bool {
    let Some(ports) = &clause.ports else { return true };
    ports.iter().any(|p| p.protocol == flow.protocol && (p.first..=p.last).contains(&flow.port))
}

fn has_peer(clause: &Clause, other: Other<'_>) -> bool {
    clause.peers.iter().any(|peer| match (peer, other) {
        (Peer::Any, _) => true,
        (Peer::Endpoints(selector), Other::Endpoint(labels)) => selector.selects(labels),
        (Peer::Endpoints(selector), Other::Reserved(entity)) => selects(selector, &[entity]),
        (Peer::Endpoints(selector), Other::World(address)) => {
            selects(selector, &[Entity::World, config::policy::world_of(address)])
        }
        (Peer::Prefix { net, except }, Other::World(address)) => {
            net.contains(&address) && !except.iter().any(|part| part.contains(&address))
        }
        (Peer::Prefix { .. }, Other::Endpoint(_) | Other::Reserved(_)) => false,
        (Peer::Entity(entity), Other::World(address)) => match entity {
            Entity::World => true,
            Entity::WorldIpv4 => address.is_ipv4(),
            Entity::WorldIpv6 => address.is_ipv6(),
            _ => false,
        },
        (Peer::Entity(entity), Other::Endpoint(_)) => *entity == Entity::Cluster,
        (Peer::Entity(entity), Other::Reserved(other)) => {
            *entity == other || *entity == Entity::Cluster
        }
    })
}

/// Whether a selector that asks for a reserved identity gets one that has these names.
fn selects(selector: &Selector, names: &[Entity]) -> bool {
    let label = |entity: &Entity| {
        let name = match entity {
            Entity::World => "reserved:world",
            Entity::WorldIpv4 => "reserved:world-ipv4",
            Entity::WorldIpv6 => "reserved:world-ipv6",
            Entity::Host => "reserved:host",
            Entity::RemoteNode => "reserved:remote-node",
            Entity::Cluster => "reserved:cluster",
            Entity::Init => "reserved:init",
            Entity::Health => "reserved:health",
            Entity::Unmanaged => "reserved:unmanaged",
        };
        (name.to_owned(), String::new())
    };
    selector.names_reserved() && selector.selects(&names.iter().map(label).collect())
}
