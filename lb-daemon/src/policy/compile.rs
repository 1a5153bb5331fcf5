//! Rules to a flat table: a verdict in one or two probes, whatever the number of rules.
//!
//! For each direction, the ports that the rules of an endpoint speak of fall into classes: all ports
//! of a class are treated alike by every clause. The table has an entry for each peer and class that a
//! clause is about. Clauses on everybody stand under the identity 0 and are merged into the entries
//! of each peer that has one of its own, so the first entry found is the verdict: the peer's, or that
//! of 0, or the default.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
};

use config::policy::{
    Clause, Condition, Direction, Enforcement, Entity, Group, Labels, NamedPort, Peer, PortName,
    Ports, RESERVED, Rule, Selector,
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
    /// What has no entry would be, by rules in audit.
    audited: bool,
    /// Disjoint and in order.
    classes: Vec<(Ports, u16)>,
    entries: BTreeMap<(Identity, u16), Verdict>,
    /// Some peers are known by a name in DNS, for as long as they are in use.
    named: bool,
}

/// More port classes than fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rules of one endpoint speak of {0} ranges of ports; allowed: 65535")]
pub struct TooManyClasses(usize);

/// What rules speak of that is not theirs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Who has the addresses of a group.
    pub groups: BTreeMap<Group, BTreeSet<Identity>>,
    /// Ports with names, of the endpoints with an identity.
    pub ports: BTreeMap<Identity, BTreeSet<PortName>>,
}

/// The endpoint that rules are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subject<'s> {
    /// Its labels.
    pub labels: &'s Labels,
    /// Its ports with names.
    pub ports: &'s [PortName],
    /// Its own, or the node's.
    pub enforcement: Enforcement,
    /// It is this machine.
    pub host: bool,
}

/// Compiles the rules that select an endpoint. Indices in verdicts are those of `rules`.
///
/// # Errors
/// When the rules cut the ports into too many parts.
pub fn compile(
    subject: Subject<'_>,
    rules: &[Rule],
    identities: &Identities,
    known: &Known,
) -> Result<Compiled, TooManyClasses> {
    Compiler::new(rules, identities, known).compile(subject)
}

/// A clause as it is for one endpoint: all that it asks for is known.
struct Part<'c> {
    rule: u32,
    audit: bool,
    deny: bool,
    peers: Rc<BTreeSet<Identity>>,
    ports: Option<Cow<'c, [Ports]>>,
    names: bool,
}

/// A label and its value.
type Pair<'c> = (&'c str, &'c str);

/// Compiles for many endpoints: whom a clause is about is found once, and rules and identities are found
/// by the labels that they ask for and have.
pub struct Compiler<'c> {
    rules: &'c [Rule],
    identities: &'c Identities,
    known: &'c Known,
    peers: RefCell<HashMap<*const Clause, Rc<BTreeSet<Identity>>>>,
    /// Rules by a label without which they select nobody.
    by_label: HashMap<Pair<'c>, Vec<u32>>,
    /// All other rules.
    unlabelled: Vec<u32>,
    /// Identities by each of their labels.
    bearers: HashMap<Pair<'c>, Vec<Identity>>,
}

/// The values of a label one of which whoever is selected must have.
fn needs(selector: &Selector) -> Option<(&str, &[String])> {
    selector.conditions.iter().find_map(|condition| match condition {
        Condition::In(key, values) => Some((key.as_str(), values.as_slice())),
        _ => None,
    })
}

impl<'c> Compiler<'c> {
    /// For these rules.
    #[must_use]
    pub fn new(rules: &'c [Rule], identities: &'c Identities, known: &'c Known) -> Self {
        let mut by_label: HashMap<Pair<'c>, Vec<u32>> = HashMap::new();
        let mut unlabelled = Vec::new();
        for (index, rule) in (0..).zip(rules) {
            match needs(&rule.subject) {
                Some((key, values)) => {
                    for value in values {
                        by_label.entry((key, value)).or_default().push(index);
                    }
                }
                None => unlabelled.push(index),
            }
        }
        let mut bearers: HashMap<Pair<'c>, Vec<Identity>> = HashMap::new();
        for (number, labels) in identities.iter() {
            for (key, value) in labels {
                bearers.entry((key, value)).or_default().push(number);
            }
        }
        let peers = RefCell::default();
        Self { rules, identities, known, peers, by_label, unlabelled, bearers }
    }

    /// The rules that select an endpoint, or the host, with these labels, in order.
    pub(super) fn selecting(&self, host: bool, subject: &Labels) -> Vec<(u32, &'c Rule)> {
        let own = subject.iter().filter_map(|(k, v)| self.by_label.get(&(k.as_str(), v.as_str())));
        let candidates: BTreeSet<u32> = own.flatten().chain(&self.unlabelled).copied().collect();
        let rules = candidates.into_iter().map(|index| (index, &self.rules[index as usize]));
        rules.filter(|(_, rule)| rule.selects(host, subject)).collect()
    }

    /// The identities a clause is about; 0 for everybody.
    fn peers(&self, clause: &'c Clause) -> Rc<BTreeSet<Identity>> {
        let mut known = self.peers.borrow_mut();
        let found = || {
            if clause.peers.contains(&Peer::Any) {
                return Rc::new(BTreeSet::from([ANYBODY]));
            }
            Rc::new(clause.peers.iter().flat_map(|peer| self.bearers_of(peer)).collect())
        };
        Rc::clone(known.entry(std::ptr::from_ref(clause)).or_insert_with(found))
    }

    fn bearers_of(&self, peer: &'c Peer) -> BTreeSet<Identity> {
        let with =
            |key: &str, value: &str| self.bearers.get(&(key, value)).cloned().unwrap_or_default();
        let about = |number: &Identity| {
            self.identities.labels(*number).is_some_and(|labels| is_about(peer, labels))
        };
        match peer {
            Peer::Endpoints(selector) if let Some((key, values)) = needs(selector) => {
                values.iter().flat_map(|value| with(key, value)).filter(about).collect()
            }
            Peer::Group(group) => self.known.groups.get(group).cloned().unwrap_or_default(),
            Peer::Prefix { net, .. } => {
                with(&prefix_label(*net), "").into_iter().filter(about).collect()
            }
            _ => self.identities.iter().map(|(number, _)| number).filter(about).collect(),
        }
    }

    /// Those of a clause's peers that rules for the same subject require, if they do.
    fn required(&self, clause: &'c Clause, required: &[&Selector]) -> Rc<BTreeSet<Identity>> {
        let endpoints = |peer: &Peer| matches!(peer, Peer::Endpoints(_));
        if required.is_empty() || !clause.peers.iter().any(endpoints) {
            return self.peers(clause);
        }
        if clause.peers.contains(&Peer::Any) {
            return Rc::new(BTreeSet::from([ANYBODY]));
        }
        let mut all = BTreeSet::new();
        for peer in &clause.peers {
            let meets = |number: &Identity| {
                let labels = self.identities.labels(*number);
                labels.is_some_and(|labels| required.iter().all(|one| one.selects(labels)))
            };
            let bearers = self.bearers_of(peer);
            all.extend(bearers.into_iter().filter(|number| !endpoints(peer) || meets(number)));
        }
        Rc::new(all)
    }

    /// The clauses of these rules in a direction, with everything that they ask for.
    fn parts(
        &self,
        subject: Subject<'_>,
        selected: &[(u32, &'c Rule)],
        direction: Direction,
    ) -> Vec<Part<'c>> {
        let requirements = selected.iter().flat_map(|(_, rule)| &rule.requires);
        let mut required: [Vec<&Selector>; 2] = [Vec::new(), Vec::new()];
        for one in requirements.filter(|one| one.direction == direction) {
            required[usize::from(one.deny)].push(&one.selector);
        }
        let mut parts = Vec::new();
        for &(rule, Rule { audit, clauses, .. }) in selected {
            for clause in clauses.iter().filter(|clause| clause.direction == direction) {
                let peers = self.required(clause, &required[usize::from(clause.deny)]);
                let ports = clause.ports.as_deref().map(Cow::Borrowed);
                let by_name = |peer: &Peer| matches!(peer, Peer::Group(Group::Names(_)));
                let names = clause.peers.iter().any(by_name);
                let part = Part { rule, audit: *audit, deny: clause.deny, peers, ports, names };
                self.resolve(part, &clause.named, subject, direction, &mut parts);
            }
        }
        parts
    }

    /// Adds a clause with the numbers of the ports that it names: the subject's own, or those of each
    /// peer.
    fn resolve(
        &self,
        part: Part<'c>,
        named: &[NamedPort],
        subject: Subject<'_>,
        direction: Direction,
        parts: &mut Vec<Part<'c>>,
    ) {
        if named.is_empty() {
            return parts.push(part);
        }
        let numbers = |known: &mut dyn Iterator<Item = &PortName>| -> BTreeSet<Ports> {
            let asked = |one: &&PortName| {
                named.iter().any(|n| n.name == one.name && n.protocol == one.protocol)
            };
            let one = |&PortName { protocol, port, .. }: &PortName| Ports {
                protocol,
                first: port,
                last: port,
            };
            known.filter(asked).map(one).collect()
        };
        if direction == Direction::Ingress {
            let own = numbers(&mut subject.ports.iter());
            let ports = part.ports.map(|ports| ports.iter().copied().chain(own).collect());
            return parts.push(Part { ports, ..part });
        }
        let everybody = part.peers.contains(&ANYBODY);
        let mut by_ports: BTreeMap<BTreeSet<Ports>, BTreeSet<Identity>> = BTreeMap::new();
        for (peer, ports) in &self.known.ports {
            if everybody || part.peers.contains(peer) {
                by_ports.entry(numbers(&mut ports.iter())).or_default().insert(*peer);
            }
        }
        for (ports, peers) in by_ports {
            let ports = Some(ports.into_iter().collect());
            parts.push(Part { ports, peers: Rc::new(peers), ..part });
        }
        parts.push(part);
    }

    /// Compiles the rules that select an endpoint.
    ///
    /// # Errors
    /// When the rules cut the ports into too many parts.
    pub fn compile(&self, subject: Subject<'_>) -> Result<Compiled, TooManyClasses> {
        if subject.enforcement == Enforcement::Never {
            return Ok(Compiled::default());
        }
        let selected = self.selecting(subject.host, subject.labels);
        let always = subject.enforcement == Enforcement::Always;
        let table = |direction, closes: fn(&Rule) -> bool| {
            let closed =
                |audit| selected.iter().any(|(_, rule)| rule.audit == audit && closes(rule));
            let closed = (always || closed(false), closed(true));
            Table::new(closed, &self.parts(subject, &selected, direction))
        };
        Ok(Compiled {
            ingress: table(Direction::Ingress, |rule| rule.ingress_default_deny)?,
            egress: table(Direction::Egress, |rule| rule.egress_default_deny)?,
        })
    }
}

impl Compiled {
    /// What becomes of a flow from or to `peer`.
    #[must_use]
    pub fn verdict(&self, direction: Direction, peer: Identity, flow: Flow) -> Verdict {
        self.table(direction).verdict(peer, flow)
    }

    /// One direction.
    #[must_use]
    pub fn table(&self, direction: Direction) -> &Table {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// Entries of both directions.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.ingress.entries.len() + self.egress.entries.len()
    }
}

impl Table {
    fn new((closed, audited): (bool, bool), parts: &[Part<'_>]) -> Result<Self, TooManyClasses> {
        let classes = classes(parts)?;
        let mut cells: BTreeMap<(Identity, u16), Cell> = BTreeMap::new();
        for part in parts {
            let own = Cell::of(part.deny, part.audit, part.rule);
            let touched = touched(part, &classes);
            for peer in part.peers.iter() {
                for class in &touched {
                    cells.entry((*peer, *class)).or_default().merge(own);
                }
            }
        }
        let anybody: Vec<(u16, Cell)> =
            cells.range((ANYBODY, 0)..=(ANYBODY, u16::MAX)).map(|(key, c)| (key.1, *c)).collect();
        for ((_, class), cell) in cells.range_mut((ANYBODY + 1, 0)..) {
            if let Ok(at) = anybody.binary_search_by_key(class, |(class, _)| *class) {
                cell.merge(anybody[at].1);
            }
        }
        let entries = cells
            .into_iter()
            .filter_map(|(key, cell)| Some((key, cell.verdict(closed)?)))
            .collect();
        let named = parts.iter().any(|part| part.names);
        Ok(Self { closed, audited: audited && !closed, classes, entries, named })
    }

    /// What has no entry is denied.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// What has no entry would be denied, and passes.
    #[must_use]
    pub fn is_audited(&self) -> bool {
        self.audited
    }

    /// Connections have to say when they were last seen: peers count as long as they are in use.
    #[must_use]
    pub fn has_names(&self) -> bool {
        self.named
    }

    /// Ranges of ports and their classes, disjoint and in order.
    #[must_use]
    pub fn classes(&self) -> &[(Ports, u16)] {
        &self.classes
    }

    /// Verdicts by identity (0: everybody) and class.
    #[must_use]
    pub fn verdicts(&self) -> &BTreeMap<(Identity, u16), Verdict> {
        &self.entries
    }

    fn verdict(&self, peer: Identity, flow: Flow) -> Verdict {
        let class = self.class(flow);
        let probe = |identity| self.entries.get(&(identity, class)).copied();
        let default = match (self.closed, self.audited) {
            (true, _) => Verdict::DeniedByDefault,
            (false, true) => Verdict::WouldDenyByDefault,
            (false, false) => Verdict::Open,
        };
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
fn classes(parts: &[Part<'_>]) -> Result<Vec<(Ports, u16)>, TooManyClasses> {
    let ranges: BTreeSet<Ports> =
        parts.iter().filter_map(|part| part.ports.as_deref()).flatten().copied().collect();
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
        let about: Vec<usize> = (0..parts.len()).filter(|at| speaks(&parts[*at], part)).collect();
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
fn speaks(of: &Part<'_>, part: Ports) -> bool {
    of.ports.as_deref().unwrap_or_default().iter().any(|range| {
        range.protocol == part.protocol && range.first <= part.first && part.last <= range.last
    })
}

/// The classes a clause holds for.
fn touched(of: &Part<'_>, classes: &[(Ports, u16)]) -> BTreeSet<u16> {
    match of.ports {
        None => classes.iter().map(|(_, class)| *class).chain([REST]).collect(),
        Some(_) => {
            classes.iter().filter(|(part, _)| speaks(of, *part)).map(|(_, class)| *class).collect()
        }
    }
}

fn is_about(peer: &Peer, labels: &Labels) -> bool {
    let has = |name: &str| labels.contains_key(&format!("{RESERVED}{name}"));
    match peer {
        Peer::Any => true,
        // Told by their addresses.
        Peer::Group(_) => false,
        Peer::Endpoints(selector) => selects_peer(selector, labels),
        Peer::Prefix { net, except } => {
            labels.contains_key(&prefix_label(*net))
                && !except.iter().any(|part| labels.contains_key(&prefix_label(*part)))
        }
        Peer::Entity(Entity::Cluster) => !has("world"),
        Peer::Entity(entity) => has(entity.as_str()),
    }
}

/// How many endpoints each rule selects, of so many with these labels; `true`: it is the host.
#[must_use]
pub fn selected<'l>(
    rules: &[Rule],
    labels: impl IntoIterator<Item = ((bool, &'l Labels), u64)>,
) -> Vec<u64> {
    let (nobody, nothing) = (Identities::default(), Known::default());
    let compiler = Compiler::new(rules, &nobody, &nothing);
    let mut counts = vec![0; rules.len()];
    for ((host, labels), count) in labels {
        for (index, _) in compiler.selecting(host, labels) {
            counts[index as usize] += count;
        }
    }
    counts
}

/// Rules with a clause about whoever has these labels, everybody left out.
pub(super) fn rules_about(rules: &[Rule], labels: &Labels) -> BTreeSet<u32> {
    let names = |clause: &Clause| {
        clause.peers.iter().any(|peer| *peer != Peer::Any && is_about(peer, labels))
    };
    (0..).zip(rules).filter(|(_, rule)| rule.clauses.iter().any(names)).map(|(n, _)| n).collect()
}

fn selects_peer(selector: &Selector, labels: &Labels) -> bool {
    let endpoint = !labels.keys().any(|key| key.starts_with(RESERVED));
    (endpoint || selector.names_reserved()) && selector.selects(labels)
}

/// The first rules that deny, would deny and allow a peer and class.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    deny: Option<u32>,
    audit: Option<u32>,
    allow: Option<u32>,
}

impl Cell {
    fn of(deny: bool, audit: bool, rule: u32) -> Self {
        match (deny, audit) {
            (true, false) => Self { deny: Some(rule), ..Self::default() },
            (true, true) => Self { audit: Some(rule), ..Self::default() },
            (false, _) => Self { allow: Some(rule), ..Self::default() },
        }
    }

    fn merge(&mut self, other: Self) {
        let first = |a: Option<u32>, b: Option<u32>| a.into_iter().chain(b).min();
        self.deny = first(self.deny, other.deny);
        self.audit = first(self.audit, other.audit);
        self.allow = first(self.allow, other.allow);
    }

    /// Deny wins, of whatever rule. What passes and a rule in audit denies would be denied. `None`:
    /// as if there were no entry.
    fn verdict(self, closed: bool) -> Option<Verdict> {
        match self {
            Self { deny: Some(rule), .. } => Some(Verdict::Denied(rule)),
            Self { audit: Some(_), allow: None, .. } if closed => None,
            Self { audit: Some(rule), .. } => Some(Verdict::WouldDeny(rule)),
            Self { allow, .. } => allow.map(Verdict::Allowed),
        }
    }
}
