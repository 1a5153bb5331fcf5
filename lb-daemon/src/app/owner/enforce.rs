//! From what is wanted to what stands in the kernel, and what happens when the kernel refuses.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use abi::{
    limits::{MAX_BACKENDS, MAX_FRONTENDS, MAX_SLOTS},
    table::State,
};
use config::model::{BackendState, DesiredState, HealthCheck};

use super::{Failure, Owner};
use crate::{
    app::kernel,
    datapath::Op,
    nexthop::NextHop,
    plan::{Full, Planner, prefixes::Prefixes},
    sorted::{Difference, difference},
    view::Health,
};

/// First and longest pause before what the kernel refused is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Nothing needs more rounds of larger tables than there are tables.
const MAX_GROWTH: usize = 8;

impl Owner {
    /// Puts a state in force in the place of the one that is, or leaves that.
    ///
    /// # Errors
    /// What keeps it from being in force.
    pub(super) fn enforce_or_restore(
        &mut self,
        wanted: Arc<DesiredState>,
        noticed: Instant,
    ) -> Result<(), Failure> {
        let before = std::mem::replace(&mut self.wanted, wanted);
        let done = self.enforce(noticed);
        if let Err(failure) = &done {
            self.wanted = before;
            self.fail(failure);
            match self.enforce(Instant::now()) {
                // What has failed is tried once more later.
                Ok(()) => self.retry = self.pause.map(|pause| Instant::now() + pause),
                Err(failure) => self.fail(&failure),
            }
        }
        done
    }

    pub(super) fn try_again(&mut self) {
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
    pub(super) fn fail(&mut self, failure: &Failure) {
        let text = failure.to_string();
        if self.pause.is_none() || self.failure.as_ref().is_some_and(|before| *before != text) {
            tracing::error!("not in force, trying again: {text}");
        }
        self.failure = Some(text);
        let pause = self.pause.map_or(RETRY.0, |pause| (pause * 2).min(RETRY.1));
        self.pause = Some(pause);
        let hops = self.planner.take_hops();
        if let Err(failure) = self.readopt(hops) {
            tracing::error!("adopting the tables: {failure}");
        }
        self.retry = Some(Instant::now() + pause);
        self.publish_at.get_or_insert(Instant::now());
    }

    /// Makes the index of what stands anew from the tables; these next hops are known.
    pub(super) fn readopt(&mut self, hops: HashMap<IpAddr, NextHop>) -> Result<(), Failure> {
        let services = &self.wanted.services;
        let drain = services.values().map(|s| s.drain_timeout).max().unwrap_or_default();
        let now = self.now();
        let tables = self.parts.kernel.tables();
        let names = services.keys().map(String::as_str);
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
    pub(super) fn presume_down(&mut self) {
        let tables = self.parts.kernel.tables();
        let mut down = Vec::new();
        for (name, planned) in self.planner.services() {
            let Some(spec) = self.wanted.services.get(&**name) else { continue };
            if spec.health_check.is_none() {
                continue;
            }
            for backend in spec.own_backends() {
                let Some(member) = planned.members.get(&backend.address) else { continue };
                let State { down: was_down, .. } = tables.backend(member.row).state();
                let reachable =
                    self.planner.hop(backend.address).is_some_and(NextHop::is_reachable);
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
    pub(super) fn enforce(&mut self, noticed: Instant) -> Result<(), Failure> {
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
        let nat = &self.wanted.node.nat;
        let capacity = self.parts.kernel.tables().capacity();
        let other_nat = kernel::has_nat(&self.wanted)
            && (capacity.nat, control.nat_ports()) != (nat.entries, nat.ports.to_word());
        let more_flows = kernel::flows_for(&self.wanted) > capacity.flows;
        if other_nat || more_flows || control.seed() != crate::ring::seed(&self.wanted.maglev.seed)
        {
            self.grow(None)?;
        }
        let ops = self.planner.plan(&self.wanted, self.parts.kernel.tables(), now)?;
        self.parts.kernel.apply(&ops)?;
        self.parts.samples.set_rates(self.wanted.node.samples);
        self.note_interfaces();
        self.put_prefixes()?;
        self.put_decap()?;
        self.enforce_policy()
    }

    pub(super) fn put_decap(&mut self) -> Result<(), Failure> {
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
        needs.frontends = needs.frontends.min(kernel::counted(MAX_FRONTENDS));
        needs.slots = needs.slots.min(MAX_SLOTS);
        needs.backends = needs.backends.min(kernel::counted(MAX_BACKENDS));
        twice(&mut needs.egress, now.egress, "EGRESS");
        twice(&mut needs.lines, now.lines, "LINES");
        needs.lines = needs.lines.min(abi::prefix::LINES);
        twice(&mut needs.bitmaps, now.bitmaps, "BITMAPS");
        twice(&mut needs.blocks, now.blocks, "BLOCKS");
        twice(&mut needs.filter6, now.filter6, "FILTER6");
        twice(&mut needs.buckets6, now.buckets6, "BUCKETS6");
        needs.flows = needs.flows.max(now.flows);
        if needs.nat == 1 {
            needs.nat = now.nat;
        }
        tracing::info!(full = table, "making larger tables");
        self.parts.kernel.grow(needs, crate::ring::seed(&self.wanted.maglev.seed))?;
        let hops = self.planner.take_hops();
        self.readopt(hops)
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
    /// checked.
    fn note_versions(&mut self) -> bool {
        let known = self.versions.iter().map(|(name, (service, _))| (name.as_str(), service));
        let wanted = self.wanted.services.iter().map(|(name, service)| (name.as_str(), service));
        let Difference { gone, changed } =
            difference(known, wanted, |old, new| Arc::ptr_eq(old, new));
        let before = gone.iter().copied().chain(changed.iter().filter_map(|(old, _)| *old));
        let now = changed.iter().map(|(_, new)| *new);
        let checked = before.chain(now).any(|service| service.health_check.is_some());
        let gone: Vec<String> = gone.into_iter().map(|service| service.name.clone()).collect();
        let changed: Vec<_> = changed.into_iter().map(|(_, new)| Arc::clone(new)).collect();
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
}

/// What is checked, by service and backend.
type Checks = BTreeMap<(String, IpAddr), Arc<HealthCheck>>;

fn checks(wanted: &DesiredState) -> Checks {
    let mut checks = BTreeMap::new();
    for service in wanted.services.values() {
        let Some(check) = &service.health_check else { continue };
        let check = Arc::new(check.clone());
        for backend in service.own_backends() {
            checks.insert((service.name.clone(), backend.address), Arc::clone(&check));
        }
    }
    checks
}
