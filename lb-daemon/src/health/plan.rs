//! Who is probed when, and who is told of it. No I/O, no clock.
//!
//! Probes run on a grid: each has a phase of its own within its interval, made from what it asks, so that
//! thousands of them never start together, not even after a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash as _, Hasher as _},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use config::model::{HealthCheck, Probe};
use tokio::time::Instant;

use super::{Change, Machine, run::Wanted};
use crate::view::Health;

/// A new check's first probe starts within this time, if its interval is not shorter.
const FIRST_WITHIN: Duration = Duration::from_secs(1);
/// Keeps a nonsensical interval from spinning.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// Service and backend.
pub(super) type Pair = (String, IpAddr);

/// A probe: the same for all services that check an address alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    address: IpAddr,
    kind: Kind,
    interval: Duration,
    timeout: Duration,
    rise: u32,
    fall: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Tcp { port: u16 },
    Http { port: u16, path: String, host: Option<String>, expect: u16 },
}

/// A probe to be made now.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) key: Arc<Key>,
    pub(super) address: IpAddr,
    pub(super) check: Arc<HealthCheck>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Plan {
    /// Where all grids begin.
    epoch: Instant,
    checks: BTreeMap<Arc<Key>, Check>,
    pairs: BTreeMap<Pair, Told>,
    queue: BTreeSet<(Instant, Arc<Key>)>,
}

#[derive(Debug)]
struct Check {
    check: Arc<HealthCheck>,
    machine: Machine,
    pairs: BTreeSet<Pair>,
    /// When it is probed next; `None` while it is being probed.
    due: Option<Instant>,
}

/// What was last told of a pair.
#[derive(Debug)]
struct Told {
    key: Arc<Key>,
    health: Health,
    reason: Option<String>,
}

impl Plan {
    pub(super) fn new(now: Instant) -> Self {
        Self { epoch: now, checks: BTreeMap::new(), pairs: BTreeMap::new(), queue: BTreeSet::new() }
    }

    /// Replaces what is wanted. What stays keeps its state and its time; a pair whose check changed
    /// keeps its state. Returns what new pairs are to be told that share a check which has decided.
    pub(super) fn set_wanted(&mut self, wanted: &Wanted, now: Instant) -> Vec<Change> {
        let gone: Vec<_> =
            self.pairs.keys().filter(|pair| !wanted.contains_key(*pair)).cloned().collect();
        for pair in &gone {
            self.forget(pair);
        }

        let mut changes = Vec::new();
        for (pair, check) in wanted {
            let key = Key::new(pair.1, check);
            if self.pairs.get(pair).is_some_and(|told| *told.key == key) {
                continue;
            }
            let key = Arc::new(key);
            let told = match self.pairs.remove(pair) {
                Some(told) => {
                    let earlier = self.checks.get(&told.key).map(|check| check.machine.clone());
                    self.join(&key, check, pair, earlier.as_ref(), now);
                    self.leave(&told.key, pair);
                    Told { key: Arc::clone(&key), ..told }
                }
                None => {
                    self.join(&key, check, pair, None, now);
                    Told { key: Arc::clone(&key), health: Health::Unknown, reason: None }
                }
            };
            self.pairs.insert(pair.clone(), told);
            changes.extend(self.tell(pair));
        }
        changes
    }

    /// Forgets a pair and what it was told.
    pub(super) fn forget(&mut self, pair: &Pair) {
        if let Some(told) = self.pairs.remove(pair) {
            self.leave(&told.key, pair);
        }
    }

    /// When the next probe is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|&(due, _)| due)
    }

    /// Takes the probes that are due, at most `limit`. Each must be given back to [`Self::finish`].
    pub(super) fn take(&mut self, now: Instant, limit: usize) -> Vec<Job> {
        let mut jobs = Vec::new();
        while jobs.len() < limit
            && let Some((due, key)) = self.queue.pop_first()
        {
            if due > now {
                self.queue.insert((due, key));
                break;
            }
            if let Some(entry) = self.checks.get_mut(&key) {
                entry.due = None;
                let check = Arc::clone(&entry.check);
                jobs.push(Job { address: key.address, check, key });
            }
        }
        jobs
    }

    /// Takes a result of a probe that was started at `started`. `None`: this machine could not ask,
    /// which says nothing of the backend.
    pub(super) fn finish(
        &mut self,
        key: &Arc<Key>,
        started: Instant,
        now: Instant,
        result: Option<Result<(), String>>,
    ) -> Vec<Change> {
        // It may not be wanted any more; or it was given up and then wanted anew, and has its own time.
        let Some(check) = self.checks.get_mut(key) else { return Vec::new() };
        if check.due.is_some() {
            return Vec::new();
        }
        let due = next_on_grid(key, self.epoch, started + key.interval() / 2).max(now);
        check.due = Some(due);
        self.queue.insert((due, Arc::clone(key)));

        let Some(result) = result else { return Vec::new() };
        if !check.machine.feed(now, result) {
            return Vec::new();
        }
        let pairs = check.pairs.clone();
        pairs.iter().filter_map(|pair| self.tell(pair)).collect()
    }

    fn join(
        &mut self,
        key: &Arc<Key>,
        check: &Arc<HealthCheck>,
        pair: &Pair,
        earlier: Option<&Machine>,
        now: Instant,
    ) {
        let entry = self.checks.entry(Arc::clone(key)).or_insert_with(|| {
            let due = now + spread(key, key.interval().min(FIRST_WITHIN));
            self.queue.insert((due, Arc::clone(key)));
            let machine = Machine::new(check.rise, check.fall);
            Check {
                check: Arc::clone(check),
                machine: earlier.map_or(machine.clone(), |earlier| machine.resume(earlier)),
                pairs: BTreeSet::new(),
                due: Some(due),
            }
        });
        entry.pairs.insert(pair.clone());
    }

    fn leave(&mut self, key: &Arc<Key>, pair: &Pair) {
        let Some(check) = self.checks.get_mut(key) else { return };
        check.pairs.remove(pair);
        if check.pairs.is_empty() {
            if let Some(due) = check.due {
                self.queue.remove(&(due, Arc::clone(key)));
            }
            self.checks.remove(key);
        }
    }

    fn tell(&mut self, pair: &Pair) -> Option<Change> {
        let told = self.pairs.get_mut(pair)?;
        let machine = &self.checks.get(&told.key)?.machine;
        let reason = machine.reason().map(str::to_owned);
        if (told.health, &told.reason) == (machine.health(), &reason) {
            return None;
        }
        told.health = machine.health();
        told.reason.clone_from(&reason);
        let (service, backend) = pair.clone();
        Some(Change { service, backend, health: told.health, reason })
    }
}

impl Key {
    fn new(address: IpAddr, check: &HealthCheck) -> Self {
        let HealthCheck { probe, interval, timeout, rise, fall } = check;
        let kind = match probe {
            Probe::Tcp { port } => Kind::Tcp { port: *port },
            Probe::Http { port, path, host, expect } => {
                Kind::Http { port: *port, path: path.clone(), host: host.clone(), expect: *expect }
            }
        };
        let (interval, timeout, rise, fall) = (*interval, *timeout, *rise, *fall);
        Self { address, kind, interval, timeout, rise, fall }
    }

    fn interval(&self) -> Duration {
        self.interval.max(SHORTEST_INTERVAL)
    }
}

/// A time within `limit` that is always the same for the same probe.
fn spread(key: &Key, limit: Duration) -> Duration {
    let mut hasher = siphasher::sip::SipHasher13::new();
    key.hash(&mut hasher);
    let share = (hasher.finish() >> 32) as u32;
    limit.mul_f64(f64::from(share) / (f64::from(u32::MAX) + 1.0))
}

/// The first of the probe's times that is not before `earliest`.
fn next_on_grid(key: &Key, epoch: Instant, earliest: Instant) -> Instant {
    let interval = key.interval();
    let first = epoch + spread(key, interval);
    let behind = earliest.saturating_duration_since(first);
    let steps = behind.as_nanos().div_ceil(interval.as_nanos());
    // A count of intervals since the start: u32 lasts for a year of the shortest ones.
    first + interval * u32::try_from(steps).unwrap_or(u32::MAX)
}
