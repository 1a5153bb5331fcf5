//! From what is wanted to operations, in an order in which every packet meets either the old or the new
//! policy. Pure.
//!
//! A number that an address gets must be known to every policy before, and one that it loses until after:
//! 1. the old rules, compiled with the old and the new identities;
//! 2. addresses and prefixes get their new identities; prefixes that are no longer named stay;
//! 3. the new rules, compiled with the old and the new identities;
//! 4. prefixes that are no longer named go.

mod change;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use abi::limits::policy::HOST;
use config::{
    model::Endpoint,
    policy::{Enforcement, Established, Fqdn, Group, Peer, Rule},
};

use ipnet::IpNet;

use super::{
    Identities, Identity,
    compile::{Compiler, Known, Subject, TooManyClasses, rules_about},
    identity::{Exhausted, FIRST_CIDR, prefixes_of},
    image::{Attached, Content, Image, Op, Sizes},
};
use crate::plan::{Full, alloc::Rows, stable_id};

/// What is to be in force.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Endpoints of this machine, with the index of their interface where it exists.
    pub endpoints: Vec<(Arc<Endpoint>, Option<u32>)>,
    /// This machine, and the indexes of the interfaces on which rules about it are enforced.
    pub host: Option<(Arc<Endpoint>, BTreeSet<u32>)>,
    /// Addresses of this machine and of other nodes, with their reserved identity.
    pub nodes: BTreeMap<IpAddr, Identity>,
    /// The rules, in order.
    pub rules: Arc<Vec<Rule>>,
    /// Whether endpoints without a rule are open.
    pub enforcement: Enforcement,
    /// What becomes of established connections that rules no longer allow.
    pub established: Established,
    /// Addresses of the groups that rules name.
    pub groups: BTreeMap<Group, BTreeSet<IpAddr>>,
    /// Bounds of what is learned from DNS.
    pub fqdn: Fqdn,
}

/// An interface on which policy is enforced, and whose it is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'w> {
    /// Whose.
    pub endpoint: &'w Arc<Endpoint>,
    /// Of the interface.
    pub index: u32,
    /// It is this machine's own.
    pub host: bool,
}

impl Wanted {
    /// Every interface that there is. An endpoint's is not the host's.
    pub fn places(&self) -> impl Iterator<Item = Place<'_>> {
        let own = self.endpoints.iter().filter_map(|(endpoint, index)| {
            Some(Place { endpoint, index: (*index)?, host: false })
        });
        let host = self.host.iter().flat_map(|(endpoint, indexes)| {
            indexes.iter().map(move |&index| Place { endpoint, index, host: true })
        });
        host.chain(own)
    }

    /// Groups that rules name.
    pub fn groups_of(rules: &[Rule]) -> impl Iterator<Item = &Group> {
        let peers = rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.peers);
        peers.filter_map(|peer| match peer {
            Peer::Group(group) => Some(group),
            _ => None,
        })
    }

    /// Who is who once this is in force, and what rules then know.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn numbered(&self) -> Result<(Identities, Known), Exhausted> {
        let mut identities = Identities::default();
        let nodes = self.nodes.iter().map(|(address, identity)| (*address, *identity));
        let members = self.endpoints.iter().map(|(e, _)| (&e.labels, &e.addresses[..]));
        identities.set_with(members, nodes, &self.prefixes())?;
        let known = self.known(&[&identities], &Self::default());
        Ok((identities, known))
    }

    /// An endpoint, as rules are compiled for it.
    #[must_use]
    pub fn subject<'e>(&self, endpoint: &'e Endpoint) -> Subject<'e> {
        Subject {
            host: false,
            labels: &endpoint.labels,
            ports: &endpoint.ports,
            enforcement: endpoint.enforcement.unwrap_or(self.enforcement),
        }
    }

    /// The endpoint or the host behind an interface, as rules are compiled for it.
    #[must_use]
    pub fn subject_at<'w>(&self, place: Place<'w>) -> Subject<'w> {
        Subject { host: place.host, ..self.subject(place.endpoint) }
    }

    /// Prefixes that get a number: those that rules name, and addresses of groups.
    fn prefixes(&self) -> BTreeSet<IpNet> {
        let mut all = prefixes_of(&self.rules);
        all.extend(self.groups.values().flatten().map(|&address| IpNet::from(address)));
        all
    }

    /// What the rules cannot know, by each of these views of who is who.
    fn known(&self, views: &[&Identities], more: &Self) -> Known {
        let mut known = Known::default();
        for (group, addresses) in &self.groups {
            let pairs =
                addresses.iter().flat_map(|address| views.iter().map(move |v| (v, *address)));
            let who = pairs.map(|(view, address)| view.of_address(address));
            // A name may say anything: whoever is known here by more than an address is not meant.
            let world_only = matches!(group, Group::Names(_));
            let who = who.filter(|identity| !world_only || *identity >= FIRST_CIDR).collect();
            known.groups.insert(group.clone(), who);
        }
        for (endpoint, _) in self.endpoints.iter().chain(&more.endpoints) {
            for view in views.iter().filter(|_| !endpoint.ports.is_empty()) {
                if let Some(identity) = view.of_endpoint(&endpoint.labels) {
                    let ports = endpoint.ports.iter().cloned();
                    known.ports.entry(identity).or_default().extend(ports);
                }
            }
        }
        known
    }
}

/// Why a wish cannot be put in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A table is too small.
    #[error(transparent)]
    Full(#[from] Full),
    /// Too many ranges of ports.
    #[error(transparent)]
    Classes(#[from] TooManyClasses),
    /// Too many identities.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

/// What is in force, and how it got there.
pub struct State {
    image: Image,
    wanted: Wanted,
    identities: Identities,
    rules: RuleRows,
    /// Endpoints' labels that may be nobody's any more and keep their number.
    retired: usize,
}

/// Rows of rules' counters: a rule keeps its row while there is one of its name.
struct RuleRows {
    rows: Rows,
    by_name: BTreeMap<(String, u32), u32>,
}

impl RuleRows {
    /// The row of each rule.
    fn assign(&mut self, rules: &[Rule], ops: &mut Vec<Op>) -> Result<Vec<u32>, Full> {
        let mut seen: HashMap<&str, u32> = HashMap::new();
        let mut kept = BTreeMap::new();
        let mut keys = Vec::with_capacity(rules.len());
        for rule in rules {
            let nth = seen.entry(&rule.name).or_default();
            let key = (rule.name.clone(), *nth);
            *nth += 1;
            if let Some(row) = self.by_name.remove(&key) {
                kept.insert(key.clone(), row);
            }
            keys.push(key);
        }
        for row in std::mem::take(&mut self.by_name).into_values() {
            self.rows.give(row);
            ops.push(Op::Rule(row, 0));
        }
        self.by_name = kept;
        keys.into_iter()
            .map(|key| {
                if let Some(&row) = self.by_name.get(&key) {
                    return Ok(row);
                }
                let row = self.rows.take().ok_or(Full("P_RULE_COUNT"))?;
                ops.push(Op::Rule(row, stable_id(&format!("{}\0{}", key.0, key.1))));
                self.by_name.insert(key, row);
                Ok(row)
            })
            .collect()
    }
}

impl State {
    /// Nothing is in force, in tables of these sizes.
    #[must_use]
    pub fn new(sizes: Sizes, salt: u64) -> Self {
        Self {
            image: Image::new(sizes, salt),
            wanted: Wanted::default(),
            identities: Identities::default(),
            rules: RuleRows { rows: Rows::new(sizes.rules), by_name: BTreeMap::new() },
            retired: 0,
        }
    }

    /// Identities in force.
    #[must_use]
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// What is in force.
    #[must_use]
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Row of the counters of each rule in force, in their order.
    #[must_use]
    pub fn rule_rows(&self) -> Vec<u32> {
        let mut seen: HashMap<&str, u32> = HashMap::new();
        let row = |rule: &'_ Rule, nth: u32| self.rules.by_name.get(&(rule.name.clone(), nth));
        let rows = self.wanted.rules.iter().map(|rule| {
            let nth = seen.entry(&rule.name).or_default();
            *nth += 1;
            row(rule, *nth - 1).copied().unwrap_or(0)
        });
        rows.collect()
    }

    /// The image that the operations make.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The programs have left what was given back.
    pub fn release(&mut self) {
        self.image.release();
        self.rules.rows.release();
    }

    /// Operations that put `wanted` in force.
    ///
    /// # Errors
    /// [`Failure`]; this state is of no use then.
    pub fn plan(&mut self, wanted: Wanted) -> Result<Vec<Op>, Failure> {
        if let Some(ops) = self.change_endpoints(&wanted)? {
            self.wanted = wanted;
            return Ok(ops);
        }
        let mut ops = Vec::new();
        let own = wanted.prefixes();
        let both = own.iter().copied().chain(self.identities.prefixes().keys().copied()).collect();
        let members = wanted.endpoints.iter().map(|(e, _)| (&e.labels, &e.addresses[..]));
        let before = self.wanted.endpoints.iter().map(|(e, _)| (&e.labels, &[][..]));
        let mut identities = self.identities.clone();
        let nodes = wanted.nodes.iter().map(|(address, identity)| (*address, *identity));
        identities.set_with(members.chain(before), nodes, &both)?;

        let known = |identity| self.identities.labels(identity).is_some();
        let moves = |address: &IpAddr| {
            self.identities.of_address(*address) != identities.of_address(*address)
        };
        if !identities.iter().all(|(identity, _)| known(identity))
            || self.wanted.groups.values().flatten().any(moves)
        {
            let rows = self.rules.assign(&self.wanted.rules, &mut ops)?;
            let old = self.wanted.clone();
            let known = old.known(&[&self.identities, &identities], &wanted);
            self.put(&old, &identities, &known, &rows, &mut ops)?;
        }
        self.image.set_addresses(identities.addresses(), &mut ops)?;
        self.image.add_prefixes(identities.prefixes(), &mut ops)?;
        let rows = self.rules.assign(&wanted.rules, &mut ops)?;
        let known = wanted.known(&[&identities], &Wanted::default());
        self.put(&wanted, &identities, &known, &rows, &mut ops)?;

        let nodes = wanted.nodes.iter().map(|(address, identity)| (*address, *identity));
        let members = wanted.endpoints.iter().map(|(e, _)| (&e.labels, &e.addresses[..]));
        identities.set_with(members, nodes, &own)?;
        self.image.retain_prefixes(identities.prefixes(), &mut ops);
        self.identities = identities;
        self.wanted = wanted;
        self.retired = 0;
        Ok(ops)
    }

    /// Puts the rules of `wanted` behind its interfaces.
    fn put(
        &mut self,
        wanted: &Wanted,
        identities: &Identities,
        known: &Known,
        rows: &[u32],
        ops: &mut Vec<Op>,
    ) -> Result<(), Failure> {
        let compiler = Compiler::new(&wanted.rules, identities, known);
        let mut made: HashMap<Subject<'_>, Arc<Content>> = HashMap::new();
        let mut interfaces = BTreeMap::new();
        for place in wanted.places() {
            let Place { endpoint, index, host } = place;
            let subject = wanted.subject_at(place);
            let content = match made.get(&subject) {
                Some(content) => Arc::clone(content),
                None => {
                    let compiled = compiler.compile(subject)?;
                    let content = Arc::new(Content::new(&compiled, rows, wanted.established));
                    made.insert(subject, Arc::clone(&content));
                    content
                }
            };
            let identity = match host {
                true => HOST,
                false => identities.of_endpoint(&endpoint.labels).unwrap_or(0),
            };
            interfaces.insert(index, Attached { content, identity, audit: endpoint.audit, host });
        }
        Ok(self.image.set_interfaces(&interfaces, ops)?)
    }
}
