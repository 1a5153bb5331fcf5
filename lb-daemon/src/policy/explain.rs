//! Reads the rules as they are written, one after the other: which of them are about a flow, and
//! which one decides.
//!
//! Slow and plain on purpose. It knows nothing of identities, classes and tables: prefixes are
//! compared with the address itself. Answers questions, and checks the compiler.

use std::net::IpAddr;

use config::policy::{
    Clause, Direction, Enforcement, Entity, Group, Labels, NamedPort, Peer, Selector,
};

use super::{Flow, Verdict, compile::Subject, identity::reserved, state::Wanted};

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

/// Says what becomes of a flow between the endpoint `subject` and the `other` side, and why. Of `facts`,
/// the rules are read, and the endpoints, nodes and groups that they may be about.
#[must_use]
pub fn explain(
    facts: &Wanted,
    subject: Subject<'_>,
    direction: Direction,
    other: Other<'_>,
    flow: Flow,
) -> Explanation {
    let enforcement = subject.enforcement;
    let selecting = |rule: &&config::policy::Rule| rule.selects(subject.host, subject.labels);
    let required: Vec<_> =
        facts.rules.iter().filter(selecting).flat_map(|rule| &rule.requires).collect();
    let mut closed = enforcement == Enforcement::Always;
    let mut audited = false;
    let mut why = Explanation {
        verdict: Verdict::Open,
        selecting: Vec::new(),
        allowing: Vec::new(),
        denying: Vec::new(),
        auditing: Vec::new(),
    };
    for (index, rule) in (0u32..).zip(facts.rules.iter()) {
        if !rule.selects(subject.host, subject.labels) {
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
            let required = required
                .iter()
                .filter(|one| one.direction == direction && one.deny == clause.deny)
                .map(|one| &one.selector);
            clause.direction == direction
                && has_port(facts, clause, subject, other, flow)
                && has_peer(facts, clause, other, &required.collect::<Vec<_>>())
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

fn has_port(
    facts: &Wanted,
    clause: &Clause,
    subject: Subject<'_>,
    other: Other<'_>,
    flow: Flow,
) -> bool {
    let Some(ports) = &clause.ports else { return true };
    let number = |p: &config::policy::Ports| {
        p.protocol == flow.protocol && (p.first..=p.last).contains(&flow.port)
    };
    ports.iter().any(number)
        || clause.named.iter().any(|named| match (clause.direction, other) {
            (Direction::Ingress, _) => is_called(subject.ports, named, flow),
            (Direction::Egress, Other::Endpoint(labels)) => facts
                .endpoints
                .iter()
                .filter(|(endpoint, _)| endpoint.labels == *labels)
                .any(|(endpoint, _)| is_called(&endpoint.ports, named, flow)),
            (Direction::Egress, _) => false,
        })
}

/// Whether the port of a flow has this name among these.
fn is_called(ports: &[config::policy::PortName], named: &NamedPort, flow: Flow) -> bool {
    ports.iter().any(|own| {
        own.name == named.name
            && own.port == flow.port
            && own.protocol == flow.protocol
            && named.protocol == flow.protocol
    })
}

fn has_peer(facts: &Wanted, clause: &Clause, other: Other<'_>, required: &[&Selector]) -> bool {
    clause.peers.iter().any(|peer| match peer {
        Peer::Any => true,
        Peer::Endpoints(selector) => {
            let labels = match other {
                Other::Endpoint(labels) => labels.clone(),
                Other::Reserved(entity) => names(&[entity]),
                Other::World(address) => names(&[Entity::World, config::policy::world_of(address)]),
            };
            let meets = |one: &&Selector| one.selects(&labels);
            is_selected(selector, &labels) && required.iter().all(meets)
        }
        Peer::Prefix { net, except } => match other {
            Other::World(address) => {
                net.contains(&address) && !except.iter().any(|part| part.contains(&address))
            }
            Other::Endpoint(_) | Other::Reserved(_) => false,
        },
        Peer::Entity(entity) => is_of(*entity, other),
        Peer::Group(group) => is_in(facts, group, other),
    })
}

fn is_of(entity: Entity, other: Other<'_>) -> bool {
    match other {
        Other::World(address) => match entity {
            Entity::World => true,
            Entity::WorldIpv4 => address.is_ipv4(),
            Entity::WorldIpv6 => address.is_ipv6(),
            _ => false,
        },
        Other::Endpoint(labels) => {
            let own = names(&[entity]);
            entity == Entity::Cluster || own.keys().any(|name| labels.contains_key(name))
        }
        Other::Reserved(other) => entity == other || entity == Entity::Cluster,
    }
}

/// Whether an address of a group is the other side's, or of one whom rules cannot tell from it.
fn is_in(facts: &Wanted, group: &Group, other: Other<'_>) -> bool {
    let Some(addresses) = facts.groups.get(group) else { return false };
    let of = |address: &IpAddr| {
        facts.endpoints.iter().find(|(endpoint, _)| endpoint.addresses.contains(address))
    };
    // A name may say anything: whoever is known here by more than an address is not meant.
    let world_only = matches!(group, Group::Names(_));
    addresses.iter().any(|address| match (of(address), other) {
        (Some((endpoint, _)), Other::Endpoint(labels)) => !world_only && endpoint.labels == *labels,
        (Some(_), _) => false,
        (None, Other::Reserved(_)) if world_only => false,
        (None, Other::Reserved(entity)) => {
            reserved(entity).is_some_and(|own| facts.nodes.get(address) == Some(&own))
        }
        (None, Other::World(world)) => *address == world,
        (None, Other::Endpoint(_)) => false,
    })
}

/// Whether a selector picks these labels; a reserved identity only if it asks for one.
fn is_selected(selector: &Selector, labels: &Labels) -> bool {
    let reserved = labels.keys().any(|key| key.starts_with("reserved:"));
    (!reserved || selector.names_reserved()) && selector.selects(labels)
}

/// The labels of a reserved identity.
fn names(names: &[Entity]) -> Labels {
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
    names.iter().map(label).collect()
}
