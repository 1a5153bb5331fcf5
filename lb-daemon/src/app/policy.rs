//! Identity policy in force: the set of tables in the kernel, and the programs on endpoints' interfaces.
//!
//! A process never takes over the tables of an earlier one: it fills a set of its own and then puts its
//! programs in the place of the earlier ones, link by link. What is remembered of connections is shared.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use abi::{
    limits::policy::{CONNECTIONS, HOST, REMOTE_NODE},
    policy::{
        AddressRow, Connection, ConnectionKey, Entries, Page, PolicyRow, RuleRow, Top,
        nets::{NET_WAYS, NetBucket},
    },
    prefix::Filter6,
    reason::Reason,
    table::{Bucket, Counter},
};
use arc_swap::ArcSwapOption;
use config::{
    model::{DesiredState, Endpoint, HostFirewall, Service},
    policy::Group,
};

use tokio::sync::mpsc;

use super::kernel::LINKS;
use crate::{
    datapath::{
        ApplyError,
        bpf::{BpfError, cpus, grace},
    },
    links::Link,
    plan::Full,
    policy::{
        image::{Sizes, nets::room},
        kernel::{self, Attachment, Kernel, NameSource, PolicyCounters},
        names,
        state::{Failure, State, Wanted},
    },
    view::{Count, EndpointView, MapView, PolicyView, RuleView},
};

/// Nothing needs more rounds of larger tables than there are doublings of one.
const MAX_GROWTH: usize = 32;

/// Counters of whichever set of tables is in force.
#[derive(Default)]
pub(super) struct LiveCounters(ArcSwapOption<PolicyCounters>);

impl LiveCounters {
    pub(super) fn rule(&self, row: u32) -> Count {
        self.0.load().as_ref().map_or_else(Count::default, |counters| counters.rule(row))
    }

    pub(super) fn reason(&self, reason: Reason) -> Count {
        self.0.load().as_ref().map_or_else(Count::default, |counters| counters.reason(reason))
    }
}

/// Why policy is not in force.
#[derive(Debug, thiserror::Error)]
pub(super) enum PolicyError {
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("identity policy: {0}")]
    Plan(#[from] Failure),
}

/// Index of an interface, and whether it is the host's own.
type Spot = (u32, bool);

/// See the module.
pub(super) struct Policy {
    root: PathBuf,
    live: Option<(Kernel, State)>,
    counters: Arc<LiveCounters>,
    view: Arc<PolicyView>,
    /// Interfaces with the programs of `live`, and what came of attaching.
    attached: BTreeMap<String, (Spot, Attachment)>,
    /// What was last put in force, and on which interfaces.
    done: Option<(Wanted, BTreeMap<String, Spot>)>,
    /// What DNS says, and who reads the messages that programs hand over.
    names: names::Shared,
    readers: mpsc::Sender<NameSource>,
    read: bool,
    method: kernel::Method,
}

impl Policy {
    /// Nothing is in force that this process knows of. `root`: where everything is pinned.
    pub(super) fn new(
        root: &Path,
        counters: Arc<LiveCounters>,
        names: names::Shared,
        readers: mpsc::Sender<NameSource>,
        method: kernel::Method,
    ) -> Self {
        let root = root.to_owned();
        Self {
            root,
            live: None,
            counters,
            view: Arc::default(),
            attached: BTreeMap::new(),
            done: None,
            names,
            readers,
            method,
            read: false,
        }
    }

    /// What is in force.
    pub(super) fn view(&self) -> Arc<PolicyView> {
        Arc::clone(&self.view)
    }

    /// The tables in the kernel.
    pub(super) fn maps(&self) -> Vec<MapView> {
        let Some((kernel, state)) = &self.live else { return Vec::new() };
        let Sizes {
            interfaces,
            policies,
            tops,
            pages,
            entries,
            addresses,
            buckets,
            prefixes,
            rules,
        } = kernel.sizes();
        let [in_policies, in_entries, in_addresses, in_prefixes] = state.image().used().map(Some);
        let own = self.attached.len() as u32;
        let named = state.wanted().rules.len() as u32;
        let [net_filter, nets] = room(prefixes);
        let connection = size_of::<ConnectionKey>() + size_of::<Connection>() + 48;
        let tables: [(&str, u32, usize, Option<u32>); 12] = [
            ("P_INTERFACES", interfaces, size_of::<u64>(), Some(own)),
            ("P_POLICIES", policies, size_of::<PolicyRow>(), in_policies),
            ("P_TOPS", tops, size_of::<Top>(), None),
            ("P_PAGES", pages, size_of::<Page>(), None),
            ("P_ENTRIES", entries, size_of::<Entries>(), in_entries),
            ("P_BUCKETS", buckets, size_of::<Bucket>(), None),
            ("P_ADDRESSES", addresses, size_of::<AddressRow>(), in_addresses),
            ("P_NET_FILTER", net_filter, size_of::<Filter6>(), None),
            ("P_NETS", nets * NET_WAYS as u32, size_of::<NetBucket>() / NET_WAYS, in_prefixes),
            ("P_CONNECTIONS", CONNECTIONS, connection, None),
            ("P_RULE_COUNT", rules, size_of::<Counter>() * cpus() as usize, Some(named)),
            ("P_RULES", rules, size_of::<RuleRow>(), Some(named)),
        ];
        let view = |(name, capacity, each, used): (&str, u32, usize, Option<u32>)| MapView {
            name: name.to_owned(),
            entries: used.map(u64::from),
            capacity: capacity.into(),
            bytes: u64::from(capacity) * each as u64,
        };
        tables.into_iter().map(view).collect()
    }

    /// What is to be in force on the interfaces that there are.
    pub(super) fn wish(
        &self,
        desired: &DesiredState,
        links: &BTreeMap<u32, Link>,
        local: &BTreeSet<IpAddr>,
    ) -> Wanted {
        let indexes = links.values().map(|link| (link.name.clone(), link.index)).collect();
        wanted(desired, &indexes, local, &self.names)
    }

    /// Puts policy in force on the interfaces that there are.
    ///
    /// # Errors
    /// [`PolicyError`]; what was in force before stays until another try.
    pub(super) fn enforce(
        &mut self,
        desired: &DesiredState,
        links: &BTreeMap<u32, Link>,
        local: &BTreeSet<IpAddr>,
    ) -> Result<(), PolicyError> {
        let wanted = self.wish(desired, links, local);
        let spots: BTreeMap<u32, bool> =
            wanted.places().map(|place| (place.index, place.host)).collect();
        let spot = |link: &Link| Some((link.name.clone(), (link.index, *spots.get(&link.index)?)));
        let interfaces: BTreeMap<String, Spot> = links.values().filter_map(spot).collect();
        let now = (wanted, interfaces);
        if self.done.as_ref() == Some(&now) {
            return Ok(());
        }
        let (wanted, interfaces) = now;
        self.done = None;
        let links = self.root.join(LINKS);
        if wanted.endpoints.is_empty() && wanted.host.is_none() {
            kernel::detach_all_but(&links, &[]);
            kernel::remove_sets(&self.root, None);
            self.live = None;
            self.attached.clear();
            self.counters.0.store(None);
        } else {
            self.fill(&wanted)?;
        }
        if let Some((kernel, _)) = &self.live {
            kernel.watch_names(wanted.groups.keys().any(|g| matches!(g, Group::Names(_))));
        }
        self.attach(&links, &interfaces);
        self.release();
        self.view = Arc::new(self.look(&wanted));
        self.done = Some((wanted, interfaces));
        Ok(())
    }

    /// Changes the tables, or makes larger ones.
    fn fill(&mut self, wanted: &Wanted) -> Result<(), PolicyError> {
        let mut sizes = sizes_for(wanted);
        if let Some((mut kernel, mut state)) = self.live.take() {
            match state.plan(wanted.clone()) {
                Ok(ops) => {
                    // A set that a step of which the kernel refused is left for a new one.
                    kernel.apply(&ops);
                    self.live = Some((kernel, state));
                    return Ok(());
                }
                Err(Failure::Full(Full(table))) => sizes = larger(sizes, kernel.sizes(), table),
                Err(failure) => return Err(failure.into()),
            }
        }
        for _ in 0..MAX_GROWTH {
            // Nobody who chooses addresses may know the buckets that they come into.
            let salt = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
            let mut state = State::new(sizes, salt);
            match state.plan(wanted.clone()) {
                Ok(ops) => {
                    let mut kernel = Kernel::make(sizes, salt, Some(&self.root))?;
                    self.attached.clear();
                    kernel.apply(&ops);
                    kernel.count_on(&self.root);
                    self.counters.0.store(Some(Arc::new(kernel.counters()?)));
                    // All sets share these maps: whoever reads those of the first one reads on.
                    if !self.read {
                        self.read = self.readers.try_send(kernel.names()?).is_ok();
                    }
                    self.live = Some((kernel, state));
                    return Ok(());
                }
                Err(Failure::Full(Full(table))) => {
                    tracing::debug!(table, "larger policy tables");
                    sizes = larger(sizes, sizes, table);
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        Err(Failure::Full(Full("P_ENTRIES")).into())
    }

    /// Attaches to these interfaces and detaches from all others. Those that have the programs keep them.
    fn attach(&mut self, links: &Path, interfaces: &BTreeMap<String, Spot>) {
        let Some((kernel, _)) = &mut self.live else { return };
        let first = self.attached.is_empty();
        let mut before = std::mem::take(&mut self.attached);
        for (name, &spot) in interfaces {
            let (index, host) = spot;
            if let Some(known) = before.remove(name)
                && known.0 == spot
                && known.1.is_attached()
            {
                self.attached.insert(name.clone(), known);
                continue;
            }
            let done = kernel::attach(kernel, links, name, index, host, self.method);
            if let Attachment::Failed(why) = &done {
                tracing::error!(interface = name, "policy is not enforced: {why}");
            }
            self.attached.insert(name.clone(), (spot, done));
        }
        if !first && before.is_empty() {
            return;
        }
        let keep: Vec<u32> = interfaces.values().map(|(index, _)| *index).collect();
        kernel::detach_all_but(links, &keep);
        // Every link points at this set now; what others counted since it was made is not lost.
        if first {
            tokio::task::block_in_place(grace);
            kernel.count_on(&self.root);
        }
        kernel.remove_others(&self.root);
    }

    fn release(&mut self) {
        if let Some((_, state)) = &mut self.live
            && state.image().waits()
        {
            tokio::task::block_in_place(grace);
            state.release();
        }
    }

    fn look(&self, wanted: &Wanted) -> PolicyView {
        let Some((_, state)) = &self.live else { return PolicyView::default() };
        let endpoints = wanted.endpoints.iter().map(|(spec, _)| EndpointView {
            spec: Arc::clone(spec),
            identity: state.identities().of_endpoint(&spec.labels).unwrap_or(0),
            attached: self
                .attached
                .get(&spec.interface)
                .map(|(_, how)| how.clone())
                .unwrap_or_else(|| {
                    let name = &spec.interface;
                    Attachment::Failed(format!(
                        "there is no interface {name}; it is attached when it comes"
                    ))
                }),
        });
        let host = wanted.host.iter().flat_map(|(spec, _)| {
            let own = self.attached.iter().filter(|(_, ((_, host), _))| *host);
            own.map(|(interface, (_, attached))| EndpointView {
                spec: Arc::new(Endpoint { interface: interface.clone(), ..Endpoint::clone(spec) }),
                identity: HOST,
                attached: attached.clone(),
            })
        });
        let rows = state.rule_rows();
        let rules = wanted.rules.iter().zip(rows).map(|(rule, row)| RuleView {
            name: rule.name.clone(),
            source: rule.source.clone(),
            audit: rule.audit,
            row,
        });
        PolicyView {
            endpoints: endpoints.collect(),
            host: host.collect(),
            rules: rules.collect(),
            identities: state.identities().iter().map(|(n, labels)| (n, labels.clone())).collect(),
            enforcement: wanted.enforcement,
            wanted: Arc::new(wanted.clone()),
        }
    }
}

fn wanted(
    desired: &DesiredState,
    indexes: &BTreeMap<String, u32>,
    local: &BTreeSet<IpAddr>,
    names: &names::Shared,
) -> Wanted {
    let endpoints = desired
        .endpoints
        .values()
        .map(|endpoint| (Arc::clone(endpoint), indexes.get(&endpoint.interface).copied()));
    let others = desired.remote_nodes.iter().map(|&address| (address, REMOTE_NODE));
    Wanted {
        endpoints: endpoints.collect(),
        host: desired.host_firewall.as_ref().map(|firewall| host(desired, firewall, indexes)),
        // A list of all nodes of a fleet names this one too.
        nodes: others.chain(local.iter().map(|&address| (address, HOST))).collect(),
        rules: Arc::clone(&desired.policies),
        enforcement: desired.policy_enforcement,
        established: desired.policy_established,
        groups: Wanted::groups_of(&desired.policies)
            .map(|group| (group.clone(), members(group, desired, names)))
            .collect(),
        fqdn: desired.policy_fqdn,
    }
}

/// This machine as an endpoint, and the interfaces that its firewall is on.
fn host(
    desired: &DesiredState,
    firewall: &HostFirewall,
    indexes: &BTreeMap<String, u32>,
) -> (Arc<Endpoint>, BTreeSet<u32>) {
    let of_endpoints: BTreeSet<&str> =
        desired.endpoints.values().map(|endpoint| endpoint.interface.as_str()).collect();
    let own = |name: &&String| firewall.is_on(name) && !of_endpoints.contains(name.as_str());
    let HostFirewall { source, interfaces, audit, enforcement, force: _, ports } = firewall;
    let endpoint = Endpoint {
        name: "host".to_owned(),
        source: source.clone(),
        labels: desired.node.labels.clone(),
        addresses: Vec::new(),
        interface: interfaces.join(","),
        audit: *audit,
        enforcement: Some(*enforcement),
        ports: ports.clone(),
    };
    let indexes = indexes.iter().filter(|(name, _)| own(name)).map(|(_, index)| *index);
    (Arc::new(endpoint), indexes.collect())
}

/// The addresses of a group.
fn members(group: &Group, desired: &DesiredState, names: &names::Shared) -> BTreeSet<IpAddr> {
    let (namespace, name) = match group {
        Group::Service { namespace, name } => (namespace, name),
        Group::Names(pattern) => return names.addresses(pattern),
    };
    // As services of Kubernetes are named, of which each port is one.
    let prefix = namespace.as_ref().map(|namespace| format!("{namespace}.{name}."));
    let own = |service: &&Arc<Service>| {
        service.name == *name || prefix.as_ref().is_some_and(|own| service.name.starts_with(own))
    };
    let of = |service: &Arc<Service>| {
        let backends = service.backends.iter().map(|backend| backend.address);
        service.addresses.iter().copied().chain(backends).collect::<Vec<_>>()
    };
    desired.services.values().filter(own).flat_map(of).collect()
}

/// Room for what is wanted, and as much again.
fn sizes_for(wanted: &Wanted) -> Sizes {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX / 4);
    let room = |n: usize, least: u32| count(n).saturating_mul(2).max(least);
    let endpoints = wanted.endpoints.len();
    let addresses: usize = wanted.endpoints.iter().map(|(e, _)| e.addresses.len()).sum();
    let addresses = room(addresses + wanted.nodes.len(), 1024);
    let last = wanted.places().map(|place| place.index).max().unwrap_or(0);
    Sizes {
        interfaces: (last + 1).next_power_of_two().max(1024),
        policies: room(endpoints, 256),
        tops: 256,
        pages: 1024,
        entries: 1 << 12,
        addresses,
        buckets: (addresses / 2).next_power_of_two(),
        prefixes: 1024,
        rules: room(wanted.rules.len(), 1024),
    }
}

/// At least as large as `wanted` and as `now`, and twice that where `table` is full.
fn larger(wanted: Sizes, now: Sizes, table: &str) -> Sizes {
    let more = |wanted: u32, now: u32, name: &str| {
        let now = if table == name { now.saturating_mul(2) } else { now };
        wanted.max(now)
    };
    Sizes {
        interfaces: more(wanted.interfaces, now.interfaces, "P_INTERFACES"),
        policies: more(wanted.policies, now.policies, "P_POLICIES"),
        tops: more(wanted.tops, now.tops, "P_TOPS"),
        pages: more(wanted.pages, now.pages, "P_PAGES"),
        entries: more(wanted.entries, now.entries, "P_ENTRIES"),
        addresses: more(wanted.addresses, now.addresses, "P_ADDRESSES"),
        buckets: more(wanted.buckets, now.buckets, "P_BUCKETS"),
        prefixes: more(wanted.prefixes, now.prefixes, "P_NETS"),
        rules: more(wanted.rules, now.rules, "P_RULE_COUNT"),
    }
}
