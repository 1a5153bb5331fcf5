//! Endpoints that join, leave and change, while rules and all else stay: only what is about them is
//! compiled and written.
//!
//! The order is that of the parent module. Labels that nobody has any more keep their number, and the
//! entries about it, until the next change of rules: whoever gets an address has a number of its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use config::{model::Endpoint, policy::Labels};

use super::{
    Attached, Compiler, Content, Failure, HOST, Identity, Op, Place, State, Subject, Wanted,
    rules_about,
};

/// More endpoints at once are planned as a whole.
const MAX_CHANGED: usize = 256;
/// So many labels that nobody has any more keep their numbers.
const MAX_RETIRED: usize = 4096;

/// Endpoints that are not what they were, before and after.
struct Changed<'w> {
    old: Vec<&'w (Arc<Endpoint>, Option<u32>)>,
    new: Vec<&'w (Arc<Endpoint>, Option<u32>)>,
}

impl<'w> Changed<'w> {
    fn between(old: &'w Wanted, new: &'w Wanted) -> Self {
        let mut before: HashMap<&str, &(Arc<Endpoint>, Option<u32>)> =
            old.endpoints.iter().map(|own| (own.0.name.as_str(), own)).collect();
        let mut changed = Self { old: Vec::new(), new: Vec::new() };
        for own in &new.endpoints {
            match before.remove(own.0.name.as_str()) {
                Some(known) if known == own => {}
                known => {
                    changed.old.extend(known);
                    changed.new.push(own);
                }
            }
        }
        changed.old.extend(before.into_values());
        changed
    }

    /// Whether nothing else depends on what these were and are.
    fn is_local(&self, wanted: &Wanted) -> bool {
        let grouped: BTreeSet<_> = wanted.groups.values().flatten().collect();
        let local = |(endpoint, _): &&(Arc<Endpoint>, Option<u32>)| {
            endpoint.ports.is_empty()
                && !endpoint.addresses.iter().any(|address| grouped.contains(address))
        };
        self.old.len() + self.new.len() <= MAX_CHANGED
            && self.old.iter().all(local)
            && self.new.iter().all(local)
    }
}

impl State {
    /// Operations, if it is only endpoints that differ, and few.
    ///
    /// # Errors
    /// As [`State::plan`].
    pub(super) fn change_endpoints(&mut self, wanted: &Wanted) -> Result<Option<Vec<Op>>, Failure> {
        let old = &self.wanted;
        let same = (Arc::ptr_eq(&old.rules, &wanted.rules) || old.rules == wanted.rules)
            && old.enforcement == wanted.enforcement
            && old.established == wanted.established
            && old.nodes == wanted.nodes
            && old.host == wanted.host
            && old.groups == wanted.groups;
        if !same || self.retired > MAX_RETIRED {
            return Ok(None);
        }
        let old = self.wanted.clone();
        let changed = Changed::between(&old, wanted);
        if !changed.is_local(wanted) {
            return Ok(None);
        }
        self.retired += changed.old.len();
        let mut new = Vec::new();
        for (endpoint, _) in &changed.new {
            if self.identities.add(&endpoint.labels)?.1 {
                new.push(&endpoint.labels);
            }
        }
        let mut ops = Vec::new();
        let identities = std::mem::take(&mut self.identities);
        let known = wanted.known(&[&identities], &Wanted::default());
        let compiler = Compiler::new(&wanted.rules, &identities, &known);
        let rows = self.rule_rows();
        let mut work = Work { compiler: &compiler, rows: &rows, made: HashMap::new() };
        let about = self.about(&mut work, &old, &new)?;
        self.image.put_interfaces(&about, &mut ops)?;
        let mut addresses = BTreeMap::new();
        for (endpoint, _) in &changed.old {
            let free = |address| (address, wanted.nodes.get(&address).copied());
            addresses.extend(endpoint.addresses.iter().copied().map(free));
        }
        for (endpoint, _) in &changed.new {
            let number = identities.of_endpoint(&endpoint.labels);
            addresses.extend(endpoint.addresses.iter().map(|address| (*address, number)));
        }
        for (&address, &identity) in &addresses {
            self.image.set_address(address, identity, &mut ops)?;
        }
        let mut own = BTreeMap::new();
        for (endpoint, index) in &changed.new {
            let Some(index) = *index else { continue };
            let identity = identities.of_endpoint(&endpoint.labels).unwrap_or(0);
            let place = Place { endpoint, index, host: false };
            own.insert(index, work.attached(wanted, place, identity)?);
        }
        self.image.put_interfaces(&own, &mut ops)?;
        // Where an interface is the host's again, all is planned anew: `host` has changed then.
        for index in changed.old.iter().filter_map(|(_, index)| *index) {
            if !own.contains_key(&index) {
                self.image.remove_interface(index, &mut ops);
            }
        }
        self.identities = identities;
        for (address, identity) in addresses {
            self.identities.set_address(address, identity);
        }
        Ok(Some(ops))
    }

    /// Policies behind interfaces as they were, of whomever rules say something to about new labels.
    fn about<'c>(
        &self,
        work: &mut Work<'c>,
        old: &'c Wanted,
        new: &[&Labels],
    ) -> Result<BTreeMap<u32, Attached>, Failure> {
        let rules: BTreeSet<u32> =
            new.iter().flat_map(|labels| rules_about(&old.rules, labels)).collect();
        let mut about = BTreeMap::new();
        let mut known: HashMap<(bool, &Labels), bool> = HashMap::new();
        for place in old.places().filter(|_| !rules.is_empty()) {
            let Place { endpoint, index, host } = place;
            let concerned = || {
                let selecting = work.compiler.selecting(host, &endpoint.labels);
                selecting.iter().any(|(index, _)| rules.contains(index))
            };
            if *known.entry((host, &endpoint.labels)).or_insert_with(concerned) {
                let identity = match host {
                    true => HOST,
                    false => self.image.identity_at(index).unwrap_or(0),
                };
                about.insert(index, work.attached(old, place, identity)?);
            }
        }
        Ok(about)
    }
}

/// Compiles each subject once.
struct Work<'c> {
    compiler: &'c Compiler<'c>,
    rows: &'c [u32],
    made: HashMap<Subject<'c>, Arc<Content>>,
}

impl<'c> Work<'c> {
    fn attached(
        &mut self,
        wanted: &Wanted,
        place: Place<'c>,
        identity: Identity,
    ) -> Result<Attached, Failure> {
        let subject = wanted.subject_at(place);
        let content = match self.made.get(&subject) {
            Some(content) => Arc::clone(content),
            None => {
                let compiled = self.compiler.compile(subject)?;
                let content = Content::new(&compiled, self.rows, wanted.established);
                let content = Arc::new(content);
                self.made.insert(subject, Arc::clone(&content));
                content
            }
        };
        let Place { endpoint, host, .. } = place;
        Ok(Attached { content, identity, audit: endpoint.audit, host })
    }
}
