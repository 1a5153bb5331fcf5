//! The owner task: holds what is wanted and what is known, and alone changes tables and links.
//!
//! ```text
//! files, API -> wanted --+
//! next hops, health -----+-> plan (pure) -> operations -> tables -> view
//! links, addresses ------+
//! ```
//! Everybody else sends it messages and reads the [`View`] that it publishes. A change is in force when
//! its last store is done; only then is it answered or published. When the kernel refuses a step, what
//! stands is adopted as after a restart, and the rest is tried again.

mod enforce;
mod files;
mod lists;
mod pending;
mod policy;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use abi::table::Control;
use config::model::{DesiredState, Forwarding, Service};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    attach,
    kernel::{self, Kernel, KernelError},
    notify,
    policy::{Policy, PolicyError},
    sources::{self, ApiServices},
    views::{self, HealthMap},
};
use crate::{
    bans::{
        self,
        journal::Journal,
        pending::{Pending, Slot},
    },
    command::Command,
    datapath::ApplyError,
    fetch,
    guard::Guard,
    health::{Change, Checker},
    links::Links,
    nexthop::{NextHop, Resolver},
    plan::{Full, Planner, prefixes::Prefixes},
    policy::documents::{ApiEndpoints, Documents, EndpointStore, Rules},
    store::Store,
    view::{ConfigView, Health, InterfaceView, ServiceView, View},
};

/// Views of more services than this are made together, a little later.
const AT_ONCE: usize = 64;
/// How often connections are counted.
const RECOUNT: Duration = Duration::from_secs(5);
/// How much later.
const GATHER: Duration = Duration::from_millis(100);

/// Why the wanted state is not in force.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Full(#[from] Full),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// What the owner is made of.
pub(super) struct Parts {
    pub(super) config_path: PathBuf,
    pub(super) pins: PathBuf,
    pub(super) kernel: Kernel,
    pub(super) adopted: bool,
    pub(super) files: Arc<DesiredState>,
    pub(super) api: ApiServices,
    pub(super) store: Store,
    pub(super) lists: bans::Shared,
    pub(super) journal: Journal,
    pub(super) fetches: fetch::Shared,
    pub(super) slot: Slot,
    pub(super) pending: Option<Pending>,
    pub(super) guard: Guard,
    pub(super) samples: crate::events::Samples,
    pub(super) early: crate::early::Counts,
    pub(super) documents: Documents,
    pub(super) rules: Rules,
    pub(super) endpoint_store: EndpointStore,
    pub(super) endpoints: ApiEndpoints,
    pub(super) names: crate::policy::names::Shared,
    pub(super) name_readers: mpsc::Sender<crate::policy::kernel::NameSource>,
    pub(super) tc: crate::policy::kernel::Method,
    pub(super) links: Links,
    pub(super) resolver: Resolver,
    pub(super) checker: Checker,
    pub(super) hops: HashMap<IpAddr, NextHop>,
}

impl Parts {
    /// Everything that the API has set.
    fn set<'a>(&'a self, lists: &'a bans::Lists) -> sources::Api<'a> {
        sources::Api { services: &self.api, lists, rules: &self.rules, endpoints: &self.endpoints }
    }
}

/// The channels that it listens to.
pub(super) struct Inbox {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) hops: mpsc::Receiver<BTreeMap<IpAddr, NextHop>>,
    pub(super) health: mpsc::Receiver<Change>,
}

/// See the module.
pub(super) struct Owner {
    parts: Parts,
    wanted: Arc<DesiredState>,
    planner: Planner,
    prefixes: Prefixes,
    health: HealthMap,
    interfaces: Vec<InterfaceView>,
    held: attach::Held,
    policy: Policy,
    /// Whether the resolver was told of every backend; then of those that come and go.
    resolver_knows: bool,
    versions: BTreeMap<String, (Arc<Service>, u64)>,
    next_version: u64,
    /// Files that could not be put in force; tried again when something changes that may matter.
    refused: Option<Arc<DesiredState>>,
    /// Why what is on disk is not in force.
    faults: Vec<String>,
    /// Why what was in force is not any more.
    failure: Option<String>,
    retry: Option<Instant>,
    /// The last pause before a retry; none while all is well.
    pause: Option<Duration>,
    last_success: Option<SystemTime>,
    last_apply: Option<Duration>,
    began: Instant,
    started: SystemTime,
    services: BTreeMap<String, Arc<ServiceView>>,
    dirty: BTreeSet<String>,
    publish_at: Option<Instant>,
    /// When the change of lists that waits for confirmation is taken back.
    roll_back_at: Option<Instant>,
    /// When connections are counted next; `None`: no service asks.
    recount_at: Option<Instant>,
    view: watch::Sender<Arc<View>>,
}

impl Owner {
    /// Puts the first state in force; the view that comes back shows it.
    ///
    /// # Errors
    /// What keeps it from being in force; printable.
    pub(super) fn start(
        mut parts: Parts,
        prefixes: Prefixes,
    ) -> anyhow::Result<(Self, watch::Receiver<Arc<View>>)> {
        let (wanted, faults) = {
            let lists = parts.lists.read();
            sources::merge_what_fits(&parts.files, &parts.set(&lists))
        };
        for fault in &faults {
            tracing::error!("left out: {fault}");
        }
        let counters = Arc::clone(&parts.kernel.counters().policy);
        let (names, readers) = (parts.names.clone(), parts.name_readers.clone());
        let policy = Policy::new(&parts.pins, counters, names, readers, parts.tc);
        sources::warn_skipped(&wanted, &DesiredState::default());
        let hops = std::mem::take(&mut parts.hops);
        let started = SystemTime::now();
        let epoch = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let empty = View {
            node: wanted.node.name.clone(),
            started,
            adopted: parts.adopted,
            config: ConfigView {
                path: parts.config_path.clone(),
                generation: 0,
                last_success: None,
                last_apply: None,
                faults: Vec::new(),
            },
            interfaces: Vec::new(),
            services: Vec::new(),
            lists: Vec::new(),
            limits: Vec::new(),
            prefilter: Arc::default(),
            bans: parts.lists.clone(),
            fetches: parts.fetches.clone(),
            unconfirmed: None,
            samples: parts.samples.clone(),
            early: parts.early.clone(),
            maps: Vec::new(),
            policy: Arc::default(),
            policy_documents: Vec::new(),
            names: parts.names.clone(),
        };
        let (view, published) = watch::channel(Arc::new(empty));
        let mut owner = Self {
            wanted,
            planner: Planner::default(),
            prefixes,
            health: HealthMap::new(),
            interfaces: Vec::new(),
            held: attach::Held::new(),
            policy,
            resolver_knows: false,
            versions: BTreeMap::new(),
            // A tag of an earlier process must not match one of this one.
            next_version: epoch.as_millis() as u64,
            refused: (!faults.is_empty()).then(|| Arc::clone(&parts.files)),
            faults,
            failure: None,
            retry: None,
            pause: None,
            last_success: None,
            last_apply: None,
            began: Instant::now(),
            started,
            services: BTreeMap::new(),
            dirty: BTreeSet::new(),
            publish_at: None,
            roll_back_at: None,
            recount_at: None,
            view,
            parts,
        };
        owner.await_confirmation();
        owner.readopt(hops)?;
        owner.presume_down();
        owner.audit_what_cuts_off();
        owner.enforce(owner.began)?;
        owner.warn_of_what_cuts_off();
        owner.publish();
        Ok((owner, published))
    }

    /// Runs until `cancel`. Tables and links stay.
    pub(super) async fn run(mut self, mut inbox: Inbox, cancel: CancellationToken) {
        let mut links = self.parts.links.subscribe();
        let mut addresses = self.parts.links.subscribe_addresses();
        let mut heart = notify::heartbeat();
        loop {
            let settle = self.planner.next_deadline().map(|at| self.began + at);
            let ends = self.next_end();
            tokio::select! {
                () = cancel.cancelled() => return,
                Some(command) = inbox.commands.recv() => self.command(command),
                Some(hops) = inbox.hops.recv() => self.take_hops(&hops),
                Some(change) = inbox.health.recv() => self.take_health(change),
                Ok(()) = links.changed() => {
                    links.mark_unchanged();
                    self.attach();
                }
                Ok(()) = addresses.changed() => {
                    addresses.mark_unchanged();
                    self.take_addresses();
                }
                () = at(settle) => self.settle(),
                () = at(self.retry) => self.try_again(),
                () = at(ends) => self.end_entries(),
                () = at(self.roll_back_at) => drop(self.roll_back_lists()),
                () = at(self.recount_at) => self.recount(),
                () = at(self.publish_at) => self.publish(),
                () = heart.beat() => {}
            }
            if self.dirty.len() > AT_ONCE {
                self.publish_at.get_or_insert(Instant::now() + GATHER);
            } else if !self.dirty.is_empty() {
                self.publish();
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Files { desired, noticed } => self.take_files(Arc::from(desired), noticed),
            Command::FilesFaulty { faults } => {
                for fault in &faults {
                    tracing::error!("the configuration is not put in force: {fault}");
                }
                self.faults = faults;
                self.refused = None;
                self.publish();
            }
            Command::Compare { files, reply } => {
                let _ = reply.send(Ok(self.offered(*files)));
            }
            Command::PutService { service, if_match, reply } => {
                let done = self.put_service(&service, if_match);
                // Who asked may have given up meanwhile; the change stands.
                let _ = reply.send(done);
            }
            Command::ChangeLists { changes, confirm, reply } => {
                let done = self.change_lists(&changes, confirm);
                let _ = reply.send(done);
            }
            Command::ConfirmLists { keep, reply } => {
                let done = if keep { self.confirm_lists() } else { self.roll_back_lists() };
                let _ = reply.send(done);
            }
            Command::PutPolicies { document, text, rules, force, session, reply } => {
                let careful = (!force).then_some(session);
                let done = self.put_policies(&document, &text, rules, careful);
                let _ = reply.send(done);
            }
            Command::PutEndpoint { endpoint, reply } => {
                let done = self.put_endpoint(&endpoint);
                let _ = reply.send(done);
            }
            Command::DeleteEndpoint { name, reply } => {
                let done = self.delete_endpoint(&name);
                let _ = reply.send(done);
            }
            Command::NamesChanged => {
                self.follow_policy();
                self.publish();
            }
            Command::DeletePolicies { document, force, session, reply } => {
                let careful = (!force).then_some(session);
                let done = self.delete_policies(&document, careful);
                let _ = reply.send(done);
            }
            Command::DeleteService { name, if_match, reply } => {
                let done = self.delete_service(&name, if_match);
                let _ = reply.send(done);
            }
        }
    }

    fn take_hops(&mut self, hops: &BTreeMap<IpAddr, NextHop>) {
        let now = self.now();
        let done = self
            .planner
            .set_hops(hops, self.parts.kernel.tables(), now)
            .map_err(Failure::from)
            .and_then(|ops| Ok(self.parts.kernel.apply(&ops)?));
        let names = hops.keys().flat_map(|&address| self.planner.services_at(address));
        self.dirty.extend(names.map(str::to_owned));
        if let Err(failure) = done {
            self.fail(&failure);
        }
    }

    fn take_health(&mut self, change: Change) {
        let Change { service, backend, health, reason } = change;
        // A decision about what is not wanted any more may still have been on its way.
        let wanted = self.wanted.services.get(&service).is_some_and(|s| {
            s.health_check.is_some() && s.own_backends().any(|b| b.address == backend)
        });
        if !wanted {
            return;
        }
        let down = health == Health::Down;
        let key = (service.clone(), backend);
        let before = self.health.insert(key, (health, reason.clone()));
        if before.is_none_or(|(h, _)| h != health) {
            tracing::info!(service, %backend, ?health, reason, "health");
        }
        self.set_down(&service, backend, down);
        self.dirty.insert(service);
    }

    fn set_down(&mut self, service: &str, backend: IpAddr, down: bool) {
        let now = self.now();
        let tables = self.parts.kernel.tables();
        let ops = self.planner.set_health(service, backend, down, tables, now);
        if let Err(error) = self.parts.kernel.apply(&ops) {
            self.fail(&error.into());
        }
    }

    fn take_addresses(&mut self) {
        self.follow_policy();
        if let Err(failure) = self.put_decap() {
            self.fail(&failure);
        }
    }

    fn settle(&mut self) {
        let now = self.now();
        self.dirty.extend(self.planner.due(now).map(str::to_owned));
        let done = self
            .planner
            .settle(self.parts.kernel.tables(), now)
            .map_err(Failure::from)
            .and_then(|ops| Ok(self.parts.kernel.apply(&ops)?));
        if let Err(failure) = done {
            self.fail(&failure);
        }
        self.tell_resolver();
        self.release();
    }

    /// Tells the resolver whose next hops matter.
    fn tell_resolver(&mut self) {
        let (come, gone) = self.planner.take_address_changes();
        if self.resolver_knows {
            self.parts.resolver.change_targets(&come, &gone);
        } else {
            self.parts.resolver.set_targets(self.planner.addresses().collect());
            self.resolver_knows = true;
        }
    }

    fn attach(&mut self) {
        self.attach_now();
        self.follow_policy();
        self.publish();
    }

    fn attach_now(&mut self) {
        let links = self.parts.links.snapshot();
        let wanted = attach::wanted(&self.wanted, &links);
        let pins = self.parts.pins.join(kernel::LINKS);
        let views = attach::attach_all(self.parts.kernel.bpf(), &pins, &wanted, &mut self.held);
        for view in &views {
            let before = self.interfaces.iter().find(|old| old.name == view.name);
            if let crate::view::Attachment::Failed(why) = &view.attached
                && before.is_none_or(|old| old.attached != view.attached)
            {
                tracing::error!(interface = view.name, "not attached: {why}");
            }
        }
        self.interfaces = views;
        self.note_interfaces();
        let of = wanted.iter().filter_map(|want| want.link.as_ref());
        let ways: Vec<_> = of.filter_map(|l| Some((l.index, l.mtu, l.mac?))).collect();
        let ops = crate::plan::nat::ways(&ways, self.parts.kernel.tables());
        if let Err(error) = self.parts.kernel.apply(&ops) {
            tracing::error!("ways back to clients: {error}");
        }
        // Every link points at the tables in force now.
        self.parts.kernel.remove_others();
    }

    /// Waits for the programs to leave what was given back, so that it can be used again.
    fn release(&mut self) {
        if self.planner.waits() || self.prefixes.waits() {
            tokio::task::block_in_place(crate::datapath::bpf::grace);
            self.planner.release();
            self.prefixes.release();
        }
    }

    /// Counts the connections of services that have an entry for each, aside.
    fn recount(&mut self) {
        let (mut behind_nat, mut others) = (Vec::new(), Vec::new());
        for (name, planned) in self.planner.services() {
            let Some(service) = self.wanted.services.get(&**name) else { continue };
            if !service.counts_connections() {
                continue;
            }
            let nat = service.forwarding == Forwarding::Nat;
            let rows = if nat { &mut behind_nat } else { &mut others };
            rows.extend(planned.members.values().map(|member| member.row));
        }
        let any = !behind_nat.is_empty() || !others.is_empty();
        self.recount_at = any.then(|| Instant::now() + RECOUNT);
        if !any {
            return;
        }
        match self.parts.kernel.bpf().recount() {
            // It ends by itself, in a fraction of a second; nobody waits for it.
            Ok(recount) => drop(tokio::task::spawn_blocking(move || {
                recount.run(&behind_nat, &others);
            })),
            Err(error) => tracing::warn!("connections are not counted: {error}"),
        }
    }

    fn publish(&mut self) {
        self.publish_at = None;
        if self.recount_at.is_none()
            && self.wanted.services.values().any(|service| service.counts_connections())
        {
            self.recount_at = Some(Instant::now());
        }
        let tables = self.parts.kernel.tables();
        for name in std::mem::take(&mut self.dirty) {
            let made = self.versions.get(&name).and_then(|(spec, version)| {
                views::service(spec, *version, &self.planner, tables, &self.health)
            });
            match made {
                Some(made) => self.services.insert(name, Arc::new(made)),
                None => self.services.remove(&name),
            };
        }
        let control: Control = tables.control();
        let documents = self.parts.rules.iter();
        let documents = documents.map(|(name, rules)| (name.clone(), rules.len() as u64)).collect();
        let view = View {
            node: self.wanted.node.name.clone(),
            started: self.started,
            adopted: self.parts.adopted,
            config: ConfigView {
                path: self.parts.config_path.clone(),
                generation: control.generation(),
                last_success: self.last_success,
                last_apply: self.last_apply,
                faults: self.faults.iter().chain(&self.failure).cloned().collect(),
            },
            interfaces: self.interfaces.clone(),
            services: self.services.values().cloned().collect(),
            lists: views::lists(&self.wanted, &self.prefixes),
            limits: views::limits(&self.wanted, &self.prefixes),
            prefilter: Arc::clone(&self.wanted.prefilter),
            bans: self.parts.lists.clone(),
            fetches: self.parts.fetches.clone(),
            unconfirmed: self.parts.pending.as_ref().map(views::unconfirmed),
            samples: self.parts.samples.clone(),
            early: self.parts.early.clone(),
            policy: self.policy.view(),
            policy_documents: documents,
            names: self.parts.names.clone(),
            maps: views::maps(self.parts.kernel.bpf(), &self.planner)
                .into_iter()
                .chain(self.policy.maps())
                .collect(),
        };
        self.view.send_replace(Arc::new(view));
    }
}

/// Every backend's address.
pub(super) fn targets(wanted: &DesiredState) -> BTreeSet<IpAddr> {
    wanted.services.values().flat_map(|s| &s.backends).map(|b| b.address).collect()
}

/// Waits until then; for ever if there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
