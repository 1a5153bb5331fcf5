//! All documents at once: the services of all of them, and what they contradict each other in.
//!
//! Kept from load to load, so that a changed document costs as much as it contains and not as much as
//! there is.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use crate::{
    fault::{Fault, Loc},
    model,
    validate::{Fragment, Kind},
};

type Front = (IpAddr, u16, model::Protocol);

/// A range of ports of an address, or a port of it.
#[derive(Debug)]
struct Range {
    first: u16,
    last: u16,
    owner: Owner<Arc<model::Service>>,
}

/// Names, addresses with ports, and services of all documents.
#[derive(Debug, Default)]
pub(super) struct Index {
    names: BTreeMap<Kind, Unique<String, ()>>,
    fronts: Unique<Front, Arc<model::Service>>,
    /// Ranges of ports, which are not among `fronts`.
    ranges: BTreeMap<(IpAddr, model::Protocol), Vec<Range>>,
    /// Addresses that translated packets come from.
    nat_addresses: BTreeMap<IpAddr, Vec<Owner<()>>>,
    services: BTreeMap<String, Arc<model::Service>>,
    /// Two services had the same name since `services` was right.
    stale: bool,
}

/// Keys that should have one owner each.
#[derive(Debug)]
struct Unique<K, T> {
    owners: HashMap<K, Vec<Owner<T>>>,
    contested: BTreeSet<K>,
}

#[derive(Clone, Debug)]
struct Owner<T> {
    document: Arc<PathBuf>,
    at: Loc,
    what: T,
}

impl Index {
    /// Adds what a document has.
    pub(super) fn add(&mut self, document: &Arc<PathBuf>, fragment: &Fragment) {
        let owner = |at| Owner { document: document.clone(), at, what: () };
        for (kind, name, at) in &fragment.names {
            let names = self.names.entry(*kind).or_default();
            if names.add(name.clone(), owner(*at)) && *kind == Kind::Service {
                self.stale = true;
            }
        }
        for &(address, at) in &fragment.nat_addresses {
            self.nat_addresses.entry(address).or_default().push(owner(at));
        }
        for (service, places) in &fragment.services {
            for ((address, port), at) in fronts(service).zip(&places.fronts) {
                let owner = Owner { document: document.clone(), at: *at, what: service.clone() };
                if port.is_range() {
                    let (first, last) = (port.port, port.last);
                    let ranges = self.ranges.entry((address, port.protocol)).or_default();
                    ranges.push(Range { first, last, owner });
                } else {
                    // Port 0 stands for the ports that nobody else listens on, so it collides with port 0
                    // only.
                    self.fronts.add((address, port.port, port.protocol), owner);
                }
            }
            self.services.insert(service.name.clone(), service.clone());
        }
    }

    /// Removes what [`Self::add`] added.
    pub(super) fn remove(&mut self, document: &Arc<PathBuf>, fragment: &Fragment) {
        for (kind, name, _) in &fragment.names {
            if let Some(names) = self.names.get_mut(kind) {
                names.remove(name.as_str(), document);
            }
        }
        for (address, _) in &fragment.nat_addresses {
            if let Some(owners) = self.nat_addresses.get_mut(address) {
                owners.retain(|owner| owner.document != *document);
                if owners.is_empty() {
                    self.nat_addresses.remove(address);
                }
            }
        }
        for (service, _) in &fragment.services {
            for (address, port) in fronts(service) {
                if port.is_range() {
                    if let Some(ranges) = self.ranges.get_mut(&(address, port.protocol)) {
                        ranges.retain(|range| range.owner.document != *document);
                        if ranges.is_empty() {
                            self.ranges.remove(&(address, port.protocol));
                        }
                    }
                } else {
                    self.fronts.remove(&(address, port.port, port.protocol), document);
                }
            }
            self.services.remove(&service.name);
        }
    }

    /// What the documents contradict each other in.
    pub(super) fn faults(&self, faults: &mut Vec<Fault>) {
        for (kind, names) in &self.names {
            names.contested(|name, first, other| {
                let message = format!(
                    "the {} `{name}` is defined twice, first at {}",
                    kind.as_str(),
                    place(first)
                );
                faults.push(fault(other, message, "allowed: once; rename or remove one of them"));
            });
        }
        self.fronts.contested(|(address, port, protocol), first, other| {
            let port = match port {
                0 => "every other port".to_owned(),
                number => format!("port {number}"),
            };
            let message = format!(
                "{address} {port}/{} is taken by the service `{}` at {}",
                protocol.as_str(),
                first.what.name,
                place(first)
            );
            faults.push(fault(
                other,
                message,
                "allowed: one service per address, port and protocol",
            ));
        });
        self.overlaps(faults);
        self.swallowed(faults);
    }

    /// NAT addresses of whose ports a service takes more than single ones: replies to translated packets would be
    /// its.
    fn swallowed(&self, faults: &mut Vec<Fault>) {
        use model::Protocol::{Tcp, Udp};
        for (&address, owners) in &self.nat_addresses {
            for protocol in [Tcp, Udp] {
                let any = self.fronts.owners.get(&(address, 0, protocol)).into_iter().flatten();
                let ranges = self.ranges.get(&(address, protocol)).into_iter().flatten();
                for service in any.chain(ranges.map(|range| &range.owner)) {
                    for owner in owners {
                        let message = format!(
                            "{address} is a NAT address, at {}, and the service `{}` takes a range of its ports, or \
                             all of them: what backends answer would be the service's",
                            place(owner),
                            service.what.name,
                        );
                        faults.push(fault(
                            service,
                            message,
                            "allowed: single ports there, or another address under node.nat.addresses",
                        ));
                    }
                }
            }
        }
    }

    /// Ranges that have a port in common with another range, or with a port of an entry of its own.
    fn overlaps(&self, faults: &mut Vec<Fault>) {
        if self.ranges.is_empty() {
            return;
        }
        let mut all: BTreeMap<_, Vec<(u16, u16, &Owner<_>)>> = self
            .ranges
            .iter()
            .map(|(key, ranges)| {
                (*key, ranges.iter().map(|r| (r.first, r.last, &r.owner)).collect())
            })
            .collect();
        for (&(address, port, protocol), owners) in &self.fronts.owners {
            if port != 0
                && let Some(all) = all.get_mut(&(address, protocol))
            {
                all.extend(owners.iter().map(|owner| (port, port, owner)));
            }
        }
        for ((address, protocol), mut all) in all {
            all.sort_by(|a, b| {
                (a.0, a.1, &a.2.document, a.2.at).cmp(&(b.0, b.1, &b.2.document, b.2.at))
            });
            let Some(mut before) = all.first().copied() else { continue };
            for &range in &all[1..] {
                // Two that are no ranges have been told already.
                if range.0 <= before.1 && (range.0 != range.1 || before.0 != before.1) {
                    faults.push(overlap(address, protocol, before, range));
                }
                if range.1 > before.1 {
                    before = range;
                }
            }
        }
    }

    /// The services of all documents, of which there must be no fault.
    pub(super) fn services<'f>(
        &mut self,
        fragments: impl Iterator<Item = &'f Fragment>,
    ) -> BTreeMap<String, Arc<model::Service>> {
        if self.stale {
            self.stale = false;
            self.services = fragments
                .flat_map(|fragment| &fragment.services)
                .map(|(service, _)| (service.name.clone(), service.clone()))
                .collect();
        }
        self.services.clone()
    }
}

/// What a service listens on, in the order of [`Places`](crate::validate::Places).
fn fronts(service: &model::Service) -> impl Iterator<Item = (IpAddr, &model::Port)> {
    service
        .ports
        .iter()
        .flat_map(|port| service.addresses.iter().map(move |address| (*address, port)))
}

/// The fault of the one that stands later.
fn overlap(
    address: IpAddr,
    protocol: model::Protocol,
    one: (u16, u16, &Owner<Arc<model::Service>>),
    other: (u16, u16, &Owner<Arc<model::Service>>),
) -> Fault {
    let place_of = |o: &Owner<_>| (o.document.clone(), o.at);
    let (first, later) =
        if place_of(one.2) <= place_of(other.2) { (one, other) } else { (other, one) };
    let text = |(first, last, _): (u16, u16, _)| {
        if first == last { format!("port {first}") } else { format!("ports {first}-{last}") }
    };
    let message = format!(
        "{address} {}/{protocol} overlap {}/{protocol} of the service `{}` at {}",
        text(later),
        text(first),
        first.2.what.name,
        place(first.2),
        protocol = protocol.as_str(),
    );
    fault(later.2, message, "allowed: one service per address, port and protocol; divide the range")
}

impl<K, T> Default for Unique<K, T> {
    fn default() -> Self {
        Self { owners: HashMap::new(), contested: BTreeSet::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord, T> Unique<K, T> {
    /// Adds an owner; whether the key has another one.
    fn add(&mut self, key: K, owner: Owner<T>) -> bool {
        if let Some(owners) = self.owners.get_mut(&key) {
            owners.push(owner);
            owners.sort_by(|one, other| (&one.document, one.at).cmp(&(&other.document, other.at)));
            self.contested.insert(key);
            return true;
        }
        self.owners.insert(key, vec![owner]);
        false
    }

    /// Removes all owners of the document.
    fn remove<Q: Eq + Hash + Ord + ?Sized>(&mut self, key: &Q, document: &Arc<PathBuf>)
    where
        K: Borrow<Q>,
    {
        let Some(owners) = self.owners.get_mut(key) else {
            return;
        };
        owners.retain(|owner| owner.document != *document);
        let left = owners.len();
        if left <= 1 {
            self.contested.remove(key);
        }
        if left == 0 {
            self.owners.remove(key);
        }
    }

    /// Calls `tell` with the first and each other owner of a contested key.
    fn contested(&self, mut tell: impl FnMut(&K, &Owner<T>, &Owner<T>)) {
        for key in &self.contested {
            if let Some([first, others @ ..]) = self.owners.get(key).map(Vec::as_slice) {
                others.iter().for_each(|other| tell(key, first, other));
            }
        }
    }
}

/// What stands in one document only, and is not worth an index: there is little of it.
pub(super) fn scalars<'f>(
    parts: impl Iterator<Item = (&'f Arc<PathBuf>, &'f Fragment)>,
    state: &mut model::DesiredState,
    faults: &mut Vec<Fault>,
) {
    let mut seen: HashMap<&str, Owner<()>> = HashMap::new();
    let mut held = Held::default();
    for (document, fragment) in parts {
        for (name, at) in &fragment.scalars {
            let owner = Owner { document: document.clone(), at: *at, what: () };
            if let Some(first) = seen.get(name) {
                let message = format!("`{name}` is set twice, first at {}", place(first));
                faults.push(fault(&owner, message, "allowed: in one file"));
            } else {
                seen.insert(name, owner);
            }
        }
        let Fragment {
            node_name,
            tunnel_ipv4,
            tunnel_ipv6,
            unserved,
            samples_dropped,
            samples_passed,
            nat_addresses,
            nat_ports,
            nat_entries,
            decap_sources,
            table_size,
            seed,
            interfaces,
            services: _,
            allow: _,
            lists: _,
            tables: _,
            crowdsec: _,
            filters: _,
            rate_limits: _,
            syn_proxy: _,
            endpoints,
            policies,
            enforcement,
            established,
            fqdn,
            node_labels,
            host_firewall,
            remote_nodes,
            scalars: _,
            names: _,
        } = fragment;
        if let Some(name) = node_name {
            state.node.name.clone_from(name);
        }
        if let Some(source) = tunnel_ipv4 {
            state.node.tunnel_source.ipv4 = *source;
        }
        if let Some(source) = tunnel_ipv6 {
            state.node.tunnel_source.ipv6 = *source;
        }
        if let Some(unserved) = unserved {
            state.node.unserved = *unserved;
        }
        if let Some(rate) = samples_dropped {
            state.node.samples.dropped = *rate;
        }
        if let Some(rate) = samples_passed {
            state.node.samples.passed = *rate;
        }
        state.node.nat.addresses.extend(nat_addresses.iter().map(|(address, _)| address));
        if let Some(ports) = nat_ports {
            state.node.nat.ports = *ports;
        }
        if let Some(entries) = nat_entries {
            state.node.nat.entries = *entries;
        }
        state.decap_sources.extend(decap_sources);
        if table_size.is_some() {
            state.maglev.table_size = *table_size;
        }
        if let Some(seed) = seed {
            state.maglev.seed.clone_from(seed);
        }
        state.interfaces.extend(interfaces.iter().cloned());
        for endpoint in endpoints {
            faults.extend(held.clash(endpoint));
            state.endpoints.insert(endpoint.name.clone(), Arc::clone(endpoint));
        }
        if !policies.is_empty() {
            Arc::make_mut(&mut state.policies).extend(policies.iter().cloned());
        }
        if !node_labels.is_empty() {
            state.node.labels.clone_from(node_labels);
        }
        if host_firewall.is_some() {
            state.host_firewall.clone_from(host_firewall);
        }
        state.remote_nodes.extend(remote_nodes);
        if let Some(fqdn) = fqdn {
            state.policy_fqdn = *fqdn;
        }
        if let Some(enforcement) = enforcement {
            state.policy_enforcement = *enforcement;
        }
        if let Some(established) = established {
            state.policy_established = *established;
        }
    }
}

/// Who has which interface and which address: each is one endpoint's.
#[derive(Default)]
struct Held<'e> {
    interfaces: HashMap<&'e str, &'e str>,
    addresses: HashMap<IpAddr, &'e str>,
}

impl<'e> Held<'e> {
    /// Adds an endpoint; what another one has already is a fault.
    fn clash(&mut self, endpoint: &'e model::Endpoint) -> Option<Fault> {
        let name = endpoint.name.as_str();
        let mut taken = None;
        for &address in &endpoint.addresses {
            let holder = *self.addresses.entry(address).or_insert(name);
            if holder != name {
                taken = Some((holder, format!("the address {address}")));
            }
        }
        let holder = *self.interfaces.entry(&endpoint.interface).or_insert(name);
        if holder != name {
            taken = Some((holder, format!("the interface {}", endpoint.interface)));
        }
        let (holder, what) = taken?;
        let model::Source::File { path, line, column } = &endpoint.source else { return None };
        Some(Fault {
            path: path.to_path_buf(),
            line: *line,
            column: *column,
            message: format!("{holder} and {name} have {what}"),
            help: "give each one its own".to_owned(),
        })
    }
}

fn place<T>(Owner { document, at, .. }: &Owner<T>) -> String {
    format!("{}:{}:{}", document.display(), at.line, at.column)
}

fn fault<T>(Owner { document, at, .. }: &Owner<T>, message: String, help: &str) -> Fault {
    Fault {
        path: document.to_path_buf(),
        line: at.line,
        column: at.column,
        message,
        help: help.to_owned(),
    }
}
