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

mod lists;
mod policy;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use abi::table::{Control, State};
use config::model::{BackendState, DesiredState, HealthCheck, Service};
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
    bans::{self, journal::Journal},
    command::{Command, Refusal},
    datapath::{ApplyError, Op},
    health::{Change, Checker},
    links::Links,
    nexthop::{NextHop, Resolver},
    plan::{Full, Planner, prefixes::Prefixes},
    policy::documents::{Documents, Rules},
    store::Store,
    view::{ConfigView, Health, InterfaceView, ServiceView, View},
};

/// Views of more services than this are made together, a little later.
const AT_ONCE: usize = 64;
/// How much later.
const GATHER: Duration = Duration::from_millis(100);
/// First and longest pause before what the kernel refused is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Nothing needs more rounds of larger tables than there are tables.
const MAX_GROWTH: usize = 8;

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
    pub(super) documents: Documents,
    pub(super) rules: Rules,
    pub(super) links: Links,
    pub(super) resolver: Resolver,
    pub(super) checker: Checker,
    pub(super) hops: HashMap<IpAddr, NextHop>,
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
    next_rules: Option<Rules>,
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
        let (mut wanted, faults) =
            sources::merge_at_start(&parts.files, &parts.api, &parts.lists.read());
        for fault in &faults {
            tracing::error!("left out: {fault}");
        }
        policy::put(&mut wanted, policy::merged(&parts.files, &parts.rules));
        let counters = Arc::clone(&parts.kernel.counters().policy);
        let policy = Policy::new(&parts.pins, counters);
        sources::warn_skipped(&wanted, &DesiredState::default());
        let mut planner = Planner::adopt(parts.kernel.tables(), std::iter::empty(), Duration::ZERO);
        planner.know_hops(std::mem::take(&mut parts.hops));
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
            maps: Vec::new(),
            policy: Arc::default(),
            policy_documents: Vec::new(),
        };
        let (view, published) = watch::channel(Arc::new(empty));
        let mut owner = Self {
            wanted,
            planner,
            prefixes,
            health: HealthMap::new(),
            interfaces: Vec::new(),
            held: attach::Held::new(),
            policy,
            next_rules: None,
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
            view,
            parts,
        };
        owner.readopt()?;
        owner.presume_down();
        owner.enforce(owner.began)?;
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
                    self.attach().await;
                }
                Ok(()) = addresses.changed() => {
                    addresses.mark_unchanged();
                    self.take_addresses();
                }
                () = at(settle) => self.settle(),
                () = at(self.retry) => self.try_again(),
                () = at(ends) => self.end_entries(),
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
            Command::PutService { service, if_match, reply } => {
                let done = self.put_service(&service, if_match);
                // Who asked may have given up meanwhile; the change stands.
                let _ = reply.send(done);
            }
            Command::ChangeLists { changes, reply } => {
                let done = self.change_lists(&changes);
                let _ = reply.send(done);
            }
            Command::PutPolicies { document, text, rules, reply } => {
                let done = self.put_policies(&document, &text, rules);
                let _ = reply.send(done);
            }
            Command::DeletePolicies { document, reply } => {
                let done = self.delete_policies(&document);
                let _ = reply.send(done);
            }
            Command::DeleteService { name, if_match, reply } => {
                let done = self.delete_service(&name, if_match);
                let _ = reply.send(done);
            }
        }
    }

    fn take_files(&mut self, files: Arc<DesiredState>, noticed: Instant) {
        notify::reloading();
        self.pause = None;
        self.offer(files, noticed);
        self.publish();
        notify::ready();
    }

    /// Puts files in force as a whole, or leaves what is in force and notes why.
    fn offer(&mut self, files: Arc<DesiredState>, noticed: Instant) {
        let merged = sources::merge(&files, &self.parts.api, &self.parts.lists.read());
        let faults = match merged {
            Ok(mut wanted) => {
                policy::put(&mut wanted, policy::merged(&files, &self.parts.rules));
                sources::warn_skipped(&wanted, &self.wanted);
                let before = std::mem::replace(&mut self.wanted, wanted);
                match self.enforce(noticed) {
                    Ok(()) => {
                        self.parts.files = files;
                        self.refused = None;
                        self.faults.clear();
                        self.pause = None;
                        return;
                    }
                    Err(failure) => {
                        self.wanted = before;
                        self.restore(&failure);
                        vec![format!("could not be put in force: {failure}")]
                    }
                }
            }
            Err(faults) => faults,
        };
        for fault in faults.iter().filter(|fault| !self.faults.contains(*fault)) {
            tracing::error!("the configuration is not put in force: {fault}");
        }
        self.faults = faults;
        self.refused = Some(files);
    }

    /// After a change that was not to be: what was in force before is again, and the change is tried
    /// once more later.
    fn restore(&mut self, failure: &Failure) {
        self.fail(failure);
        match self.enforce(Instant::now()) {
            Ok(()) => self.retry = self.pause.map(|pause| Instant::now() + pause),
            Err(failure) => self.fail(&failure),
        }
    }

    /// Refused files may contradict less than they did.
    fn reconsider(&mut self) {
        if self.refused.is_some() {
            self.retry = Some(Instant::now());
        }
    }

    fn check_version(&self, name: &str, if_match: Option<u64>) -> Result<(), Refusal> {
        let actual = self.versions.get(name).map_or(0, |&(_, version)| version);
        match if_match {
            Some(expected) if expected != actual => Err(Refusal::Stale { expected, actual }),
            _ => Ok(()),
        }
    }

    fn put_service(
        &mut self,
        service: &Arc<Service>,
        if_match: Option<u64>,
    ) -> Result<u64, Refusal> {
        self.check_version(&service.name, if_match)?;
        sources::admit(service, &self.parts.files, &self.parts.api)?;
        let name = service.name.clone();
        let mut api = self.parts.api.clone();
        api.insert(name.clone(), Arc::clone(service));
        self.change_api(api, |store| store.put_service(service))?;
        Ok(self.versions.get(&name).map_or(0, |&(_, version)| version))
    }

    fn delete_service(&mut self, name: &str, if_match: Option<u64>) -> Result<(), Refusal> {
        if let Some(of_file) = self.parts.files.services.get(name) {
            return Err(sources::read_only(of_file));
        }
        if !self.parts.api.contains_key(name) {
            return Err(Refusal::NotFound { kind: "service", name: name.to_owned() });
        }
        self.check_version(name, if_match)?;
        let mut api = self.parts.api.clone();
        api.remove(name);
        self.change_api(api, |store| store.delete_service(name))
    }

    /// Stores first, so that nothing that was answered is lost; a change that cannot be put in force
    /// is taken back.
    fn change_api(
        &mut self,
        api: ApiServices,
        keep: impl FnOnce(&Store) -> Result<(), crate::store::StoreError>,
    ) -> Result<(), Refusal> {
        // What contradicts the files since the start stays out; the change itself was admitted.
        let (mut wanted, _) =
            sources::merge_at_start(&self.parts.files, &api, &self.parts.lists.read());
        policy::put(&mut wanted, Arc::clone(&self.wanted.policies));
        if let Err(error) = keep(&self.parts.store) {
            // It may stand there all the same, if only the last step failed.
            self.take_back(&api);
            return Err(Refusal::Apply(error.to_string()));
        }
        let before = std::mem::replace(&mut self.wanted, wanted);
        if let Err(failure) = self.enforce(Instant::now()) {
            self.take_back(&api);
            self.wanted = before;
            self.restore(&failure);
            return Err(Refusal::Apply(failure.to_string()));
        }
        self.parts.api = api;
        self.reconsider();
        self.publish();
        Ok(())
    }

    /// Stores the objects of the API as they are, after these were tried.
    fn take_back(&self, tried: &ApiServices) {
        let api = &self.parts.api;
        let gone = tried.keys().filter(|name| !api.contains_key(*name));
        let results = gone.map(|name| self.parts.store.delete_service(name)).chain(
            api.iter()
                .filter(|(name, service)| tried.get(*name) != Some(*service))
                .map(|(_, service)| self.parts.store.put_service(service)),
        );
        for error in results.filter_map(Result::err) {
            tracing::error!(%error, "the state directory holds a change that is not in force");
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
            s.health_check.is_some() && s.backends.iter().any(|b| b.address == backend)
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

    fn try_again(&mut self) {
        match self.enforce(Instant::now()) {
            Err(failure) => self.fail(&failure),
            Ok(()) => match self.refused.take() {
                Some(files) => self.offer(files, Instant::now()),
                None => self.pause = None,
            },
        }
        self.publish();
    }

    /// Notes why the wanted state is not in force, takes over what stands, and plans another try.
    fn fail(&mut self, failure: &Failure) {
        let text = failure.to_string();
        if self.pause.is_none() || self.failure.as_ref().is_some_and(|before| *before != text) {
            tracing::error!("not in force, trying again: {text}");
        }
        self.failure = Some(text);
        let pause = self.pause.map_or(RETRY.0, |pause| (pause * 2).min(RETRY.1));
        self.pause = Some(pause);
        if let Err(failure) = self.readopt() {
            tracing::error!("adopting the tables: {failure}");
        }
        self.retry = Some(Instant::now() + pause);
        self.publish_at.get_or_insert(Instant::now());
    }

    /// Makes the index of what stands anew from the tables.
    fn readopt(&mut self) -> Result<(), Failure> {
        let services = &self.wanted.services;
        let drain = services.values().map(|s| s.drain_timeout).max().unwrap_or_default();
        let now = self.now();
        let tables = self.parts.kernel.tables();
        let names = services.keys().map(String::as_str);
        let hops = self.planner.take_hops();
        self.planner = Planner::adopt(tables, names, now + drain);
        self.resolver_knows = false;
        let ops = self.planner.inherit_hops(hops, tables, now)?;
        let lists = self.wanted.prefilter.lists.iter().map(|list| list.name.as_str());
        let before = std::mem::take(&mut self.prefixes);
        self.prefixes = Prefixes::adopt(tables, lists).keep_compiled(before);
        self.parts.kernel.apply(&ops)?;
        let down: Vec<(String, IpAddr)> = self
            .health
            .iter()
            .filter(|(_, (health, _))| *health == Health::Down)
            .map(|(key, _)| key.clone())
            .collect();
        for (service, backend) in down {
            let tables = self.parts.kernel.tables();
            let ops = self.planner.set_health(&service, backend, true, tables, now);
            self.parts.kernel.apply(&ops)?;
        }
        Ok(())
    }

    /// After a restart: a backend that was down stays so until its health check has decided anew.
    fn presume_down(&mut self) {
        let tables = self.parts.kernel.tables();
        let mut down = Vec::new();
        for (name, planned) in self.planner.services() {
            let Some(spec) = self.wanted.services.get(&**name) else { continue };
            if spec.health_check.is_none() {
                continue;
            }
            for backend in &spec.backends {
                let Some(member) = planned.members.get(&backend.address) else { continue };
                let State { down: was_down, .. } = tables.backend(member.row).state();
                let reachable =
                    matches!(self.planner.hop(backend.address), Some(NextHop::Resolved(_)));
                if was_down && reachable && backend.state != BackendState::Maintenance {
                    down.push((name.to_string(), backend.address));
                }
            }
        }
        for (service, backend) in down {
            self.set_down(&service, backend, true);
            let reason = "down before the daemon started; not checked again yet".to_owned();
            self.health.insert((service, backend), (Health::Down, Some(reason)));
        }
    }

    /// Puts the wanted state in force, in larger tables where it does not fit.
    fn enforce(&mut self, noticed: Instant) -> Result<(), Failure> {
        self.retry = None;
        let mut rounds = 0;
        loop {
            match self.try_enforce() {
                Ok(()) => break,
                Err(Failure::Full(Full(table))) if rounds < MAX_GROWTH => {
                    rounds += 1;
                    self.grow(Some(table))?;
                }
                Err(failure) => return Err(failure),
            }
        }
        self.failure = None;
        let next = self.parts.kernel.tables().control().generation() + 1;
        self.parts.kernel.apply(&[Op::Generation(next)])?;
        self.last_apply = Some(noticed.elapsed());
        self.last_success = Some(SystemTime::now());
        tracing::debug!(generation = next, elapsed = ?self.last_apply, "in force");

        if self.note_versions() {
            let checks = checks(&self.wanted);
            self.forget_health(&checks);
            self.parts.checker.set_wanted(checks);
        }
        self.tell_resolver();
        self.attach_now();
        self.release();
        Ok(())
    }

    fn try_enforce(&mut self) -> Result<(), Failure> {
        let now = self.now();
        let control = self.parts.kernel.tables().control();
        if control.seed() != crate::ring::seed(&self.wanted.maglev.seed) {
            self.grow(None)?;
        }
        let ops = self.planner.plan(&self.wanted, self.parts.kernel.tables(), now)?;
        self.parts.kernel.apply(&ops)?;
        let ops = self.prefixes.plan(&self.wanted.prefilter, self.parts.kernel.tables())?;
        self.parts.kernel.apply(&ops)?;
        self.put_decap()?;
        self.enforce_policy()
    }

    fn put_decap(&mut self) -> Result<(), Failure> {
        let takes = self.wanted.interfaces.iter().any(|interface| interface.roles.decap);
        let addresses =
            if takes { self.parts.links.local_addresses() } else { BTreeSet::default() };
        let ops = self.planner.set_decap(
            &addresses,
            &self.wanted.decap_sources,
            self.parts.kernel.tables(),
        )?;
        self.parts.kernel.apply(&ops)?;
        Ok(())
    }

    /// Larger tables: at least twice as large where `table` is full.
    fn grow(&mut self, table: Option<&str>) -> Result<(), Failure> {
        let lists = self.prefixes.needs(&self.wanted.prefilter)?;
        let mut needs = kernel::capacity_for(&self.wanted, lists)?;
        let now = self.parts.kernel.tables().capacity();
        let twice = |own: &mut u32, now: u32, name: &str| {
            *own = (*own).max(if table == Some(name) { now.saturating_mul(2) } else { now });
        };
        twice(&mut needs.buckets, now.buckets, "BUCKETS");
        twice(&mut needs.frontends, now.frontends, "FRONTENDS");
        twice(&mut needs.slots, now.slots, "SLOTS");
        twice(&mut needs.backends, now.backends, "BACKENDS");
        twice(&mut needs.egress, now.egress, "EGRESS");
        twice(&mut needs.bitmaps, now.bitmaps, "BITMAPS");
        twice(&mut needs.blocks, now.blocks, "BLOCKS");
        twice(&mut needs.filter6, now.filter6, "FILTER6");
        twice(&mut needs.buckets6, now.buckets6, "BUCKETS6");
        needs.lines = needs.lines.max(now.lines);
        tracing::info!(full = table, "making larger tables");
        self.parts.kernel.grow(needs, crate::ring::seed(&self.wanted.maglev.seed))?;
        self.readopt()
    }

    /// What is not checked any more is not down any more.
    fn forget_health(&mut self, wanted: &Checks) {
        let gone: Vec<(String, IpAddr)> =
            self.health.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        for key in gone {
            self.health.remove(&key);
            self.set_down(&key.0, key.1, false);
            self.dirty.insert(key.0);
        }
    }

    /// Gives a new version to every service that is not what it was; true if that changes what is
    /// checked. Both sides are sorted by name, so they are walked side by side.
    fn note_versions(&mut self) -> bool {
        let mut gone = Vec::new();
        let mut changed = Vec::new();
        let mut known = self.versions.iter().peekable();
        let mut checked = false;
        let mut look = |service: &Service| checked |= service.health_check.is_some();
        for (name, service) in &self.wanted.services {
            while let Some((other, (old, _))) = known.next_if(|(other, _)| *other < name) {
                look(old);
                gone.push(other.clone());
            }
            let old = known.next_if(|(other, _)| *other == name).map(|(_, (old, _))| old);
            if old.is_none_or(|old| !Arc::ptr_eq(old, service)) {
                old.into_iter().chain([service]).for_each(|service| look(service));
                changed.push(Arc::clone(service));
            }
        }
        for (other, (old, _)) in known {
            look(old);
            gone.push(other.clone());
        }
        for name in gone {
            self.versions.remove(&name);
            self.dirty.insert(name);
        }
        for service in changed {
            self.next_version += 1;
            self.dirty.insert(service.name.clone());
            self.versions.insert(service.name.clone(), (service, self.next_version));
        }
        checked
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

    async fn attach(&mut self) {
        self.attach_now();
        self.follow_policy();
        self.publish();
    }

    fn attach_now(&mut self) {
        let links = self.parts.links.snapshot();
        let wanted = attach::wanted(&self.wanted.interfaces, &links);
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

    fn publish(&mut self) {
        self.publish_at = None;
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
            policy: self.policy.view(),
            policy_documents: documents,
            maps: views::maps(self.parts.kernel.bpf(), &self.planner),
        };
        self.view.send_replace(Arc::new(view));
    }
}

/// Every backend's address.
pub(super) fn targets(wanted: &DesiredState) -> BTreeSet<IpAddr> {
    wanted.services.values().flat_map(|s| &s.backends).map(|b| b.address).collect()
}

/// What is checked, by service and backend.
type Checks = BTreeMap<(String, IpAddr), Arc<HealthCheck>>;

fn checks(wanted: &DesiredState) -> Checks {
    let mut checks = BTreeMap::new();
    for service in wanted.services.values() {
        let Some(check) = &service.health_check else { continue };
        let check = Arc::new(check.clone());
        for backend in &service.backends {
            checks.insert((service.name.clone(), backend.address), Arc::clone(&check));
        }
    }
    checks
}

/// Waits until then; for ever if there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
