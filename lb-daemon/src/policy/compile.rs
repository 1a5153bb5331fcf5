//! Rules to a flat table: a verdict in one or two probes, whatever the number of rules.
//!
//! For each direction, the ports that the rules of an endpoint speak of fall into classes: all ports
//! of a class are treated alike by every clause. The table has an entry for each peer and class that a
//! clause is about. Clauses on everybody stand under the identity 0 and are merged into the entries
//! of each peer that has one of its own, so the first entry found is the verdict: the peer's, or that
//! of 0, or the default.

use std::collections::{BTreeMap, BTreeSet};

use config::policy::{
    Clause, Direction, Enforcement, Entity, Labels, Peer, Ports, RESERVED, Rule, Selector,
};

use super::{
    Flow, Verdict,
    identity::{Identities, Identity, prefix_label},
};

/// Everybody, as the key of an entry.
const ANYBODY: Identity = 0;
/// The class of all that no clause speaks of.
const REST: u16 = 0;

/// What holds for endpoints with certain labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    ingress: Table,
    egress: Table,
}

/// One direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// What has no entry is denied.
    closed: bool,
    /// Disjoint and in order.
    classes: Vec<(Ports, u16)>,
    entries: BTreeMap<(Identity, u16), Verdict>,
}

/// More port classes than fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rules of one endpoint speak of {0} ranges of ports; allowed: 65535")]
pub struct TooManyClasses(usize);

/// Compiles the rules that select an endpoint with these labels. Indices in verdicts are those of
/// `rules`.
///
/// # Errors
/// When the rules cut the ports into too many parts.
pub fn compile(
    subject: &Labels,
    rules: &[Rule],
    identities: &Identities,
    enforcement: Enforcement,
) -> Result<Compiled, TooManyClasses> {
    if enforcement == Enforcement::Never {
        return Ok(Compiled::default());
    }
    let selected: Vec<(u32, &Rule)> =
        (0..).zip(rules).filter(|(_, rule)| rule.subject.selects(subject)).collect();
    let always = enforcement == Enforcement::Always;
    let table = |direction, closed: fn(&Rule) -> bool| {
        let closed = always || selected.iter().any(|(_, rule)| closed(rule));
        let clauses = selected.iter().flat_map(|(index, rule)| {
            rule.clauses
                .iter()
                .filter(move |clause| clause.direction == direction)
                .map(|clause| (*index, clause))
        });
        Table::new(closed, &clauses.collect::<Vec<_>>(), identities)
    };
    Ok(Compiled {
        ingress: table(Direction::Ingress, |rule| rule.ingress_default_deny)?,
        egress: table(Direction::Egress, |rule| rule.egress_default_deny)?,
    })
}

impl Compiled {
    /// What becomes of a flow from or to `peer`.
    #[must_use]
    pub fn verdict(&self, direction: Direction, peer: Identity, flow: Flow) -> Verdict {
        match direction {
            Direction::Ingress => self.ingress.verdict(peer, flow),
            Direction::Egress => self.egress.verdict(peer, flow),
        }
    }

    /// Entries of both directions.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.ingress.entries.len() + self.egress.entries.len()
    }
}

impl Table {
    fn new(
        closed: bool,
        clauses: &[(u32, &Clause)],
        identities: &Identities,
    ) -> Result<Self, TooManyClasses> {
        let classes = classes(clauses)?;
        let mut entries = BTreeMap::new();
        for (rule, clause) in clauses {
            let verdict =
                if clause.deny { Verdict::Denied(*rule) } else { Verdict::Allowed(*rule) };
            let touched = touched(clause, &classes);
            for peer in peers(clause, identities) {
                for class in &touched {
                    merge(&mut entries, (peer, *class), verdict);
                }
            }
        }
        let anybody: Vec<(u16, Verdict)> =
            entries.range((ANYBODY, 0)..=(ANYBODY, u16::MAX)).map(|(key, v)| (key.1, *v)).collect();
        for ((_, class), verdict) in entries.range_mut((ANYBODY + 1, 0)..) {
            if let Ok(at) = anybody.binary_search_by_key(class, |(class, _)| *class) {
                *verdict = stronger(*verdict, anybody[at].1);
            }
        }
        Ok(Self { closed, classes, entries })
    }

    fn verdict(&self, peer: Identity, flow: Flow) -> Verdict {
        let class = self.class(flow);
        let probe = |identity| self.entries.get(&(identity, class)).copied();
        let default = if self.closed { Verdict::DeniedByDefault } else { Verdict::Open };
        probe(peer).or_else(|| probe(ANYBODY)).unwrap_or(default)
    }

    fn class(&self, flow: Flow) -> u16 {
        let after = self.classes.partition_point(|(range, _)| {
            (range.protocol, range.first) <= (flow.protocol, flow.port)
        });
        match after.checked_sub(1).map(|at| self.classes[at]) {
            Some((range, class)) if range.protocol == flow.protocol && flow.port <= range.last => {
                class
            }
            _ => REST,
        }
    }
}

/// Cuts the ports wherever a clause begins or ends; parts that the same clauses speak of are one
/// class.
fn classes(clauses: &[(u32, &Clause)]) -> Result<Vec<(Ports, u16)>, TooManyClasses> {
    let ranges: BTreeSet<Ports> = clauses
        .iter()
        .filter_map(|(_, clause)| clause.ports.as_deref())
        .flatten()
        .copied()
        .collect();
    // Where a part may begin: 65536 is beyond the last port.
    let mut cuts: BTreeSet<(u8, u32)> = BTreeSet::new();
    for Ports { protocol, first, last } in &ranges {
        cuts.insert((*protocol, u32::from(*first)));
        cuts.insert((*protocol, u32::from(*last) + 1));
    }
    let cuts: Vec<(u8, u32)> = cuts.into_iter().collect();
    let mut numbers: BTreeMap<Vec<usize>, u16> = BTreeMap::new();
    let mut classes = Vec::new();
    for pair in cuts.windows(2) {
        let (protocol, first) = pair[0];
        let (Ok(first), Ok(last)) =
            (u16::try_from(first), u16::try_from(pair[1].1.wrapping_sub(1)))
        else {
            continue;
        };
        if pair[1].0 != protocol {
            continue;
        }
        let part = Ports { protocol, first, last };
        let about: Vec<usize> =
            (0..clauses.len()).filter(|at| speaks(clauses[*at].1, part)).collect();
        if about.is_empty() {
            continue;
        }
        let next = numbers.len() + 1;
        let number = u16::try_from(next).map_err(|_| TooManyClasses(next))?;
        classes.push((part, *numbers.entry(about).or_insert(number)));
    }
    Ok(classes)
}

/// Whether a clause lists a part that no clause cuts.
fn speaks(clause: &Clause, part: Ports) -> bool {
    clause.ports.iter().flatten().any(|range| {
        range.protocol == part.protocol && range.first <= part.first && part.last <= range.last
    })
}

/// The classes a clause holds for.
fn touched(clause: &Clause, classes: &[(Ports, u16)]) -> BTreeSet<u16> {
    match clause.ports {
        None => classes.iter().map(|(_, class)| *class).chain([REST]).collect(),
        Some(_) => classes
            .iter()
            .filter(|(part, _)| speaks(clause, *part))
            .map(|(_, class)| *class)
            .collect(),
    }
}

/// The identities a clause is about.
fn peers(clause: &Clause, identities: &Identities) -> BTreeSet<Identity> {
    if clause.peers.contains(&Peer::Any) {
        return BTreeSet::from([ANYBODY]);
    }
    let about = |labels: &Labels| clause.peers.iter().any(|peer| is_about(peer, labels));
    identities.iter().filter(|(_, labels)| about(labels)).map(|(number, _)| number).collect()
}

fn is_about(peer: &Peer, labels: &Labels) -> bool {
    let has = |name: &str| labels.contains_key(&format!("{RESERVED}{name}"));
    match peer {
        Peer::Any => true,
        Peer::Endpoints(selector) => selects_peer(selector, labels),
        Peer::Prefix { net, except } => {
            labels.contains_key(&prefix_label(*net))
                && !except.iter().any(|part| labels.contains_key(&prefix_label(*part)))
        }
        Peer::Entity(Entity::Cluster) => !has("world"),
        Peer::Entity(entity) => has(name(*entity)),
    }
}

fn selects_peer(selector: &Selector, labels: &Labels) -> bool {
    let endpoint = !labels.keys().any(|key| key.starts_with(RESERVED));
    (endpoint || selector.names_reserved()) && selector.selects(labels)
}

fn name(entity: Entity) -> &'static str {
    match entity {
        Entity::World => "world",
        Entity::WorldIpv4 => "world-ipv4",
        Entity::WorldIpv6 => "world-ipv6",
        Entity::Host => "host",
        Entity::RemoteNode => "remote-node",
        Entity::Cluster => "cluster",
        Entity::Init => "init",
        Entity::Health => "health",
        Entity::Unmanaged => "unmanaged",
    }
}

fn merge(entries: &mut BTreeMap<(Identity, u16), Verdict>, key: (Identity, u16), new: Verdict) {
    entries.entry(key).and_modify(|old| *old = stronger(*old, new)).or_insert(new);
}

/// Deny wins; among equals the first rule is the one that is named.
fn stronger(a: Verdict, b: Verdict) -> Verdict {
    match (a.passes(), b.passes()) {
        (true, false) => b,
        (false, true) => a,
        _ => a.min(b),
    }
}
