//! The task: probes in flight, clock and channels around [`Plan`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use config::model::HealthCheck;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Change,
    plan::{Key, Pair, Plan},
    probe::{Failure, probe},
};

/// Probes that run at once unless [`Checker::new`] is told another number.
pub const MAX_IN_FLIGHT: usize = 1024;

/// The log says at most this often that probes cannot be made.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What is to be checked: by service and backend.
pub(super) type Wanted = BTreeMap<(String, IpAddr), Arc<HealthCheck>>;

/// Tells the [`Task`] what is to be checked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Checker {
    shared: Arc<Shared>,
}

impl Checker {
    /// Makes a checker and its task, which sends its decisions to `changes` and makes at most
    /// `in_flight` probes at once. It goes on probing while the receiver is slow, and then sends the
    /// latest decision of each backend.
    #[must_use]
    pub fn new(changes: mpsc::Sender<Change>, in_flight: usize) -> (Self, Task) {
        let shared = Arc::<Shared>::default();
        let task = Task {
            shared: Arc::clone(&shared),
            changes,
            in_flight: in_flight.max(1),
            plan: Plan::new(Instant::now()),
            probes: JoinSet::new(),
            outbox: BTreeMap::new(),
            complained: None,
        };
        (Self { shared }, task)
    }

    /// Replaces what is checked, by service and backend address, and returns at once. Checks that stay
    /// keep their state and their schedule. What is new counts as [`crate::view::Health::Unknown`] until
    /// a change says otherwise, also if it was checked earlier.
    pub fn set_wanted(&self, wanted: BTreeMap<(String, IpAddr), Arc<HealthCheck>>) {
        {
            let mut request = self.shared.request.lock().unwrap_or_else(PoisonError::into_inner);
            let old = Arc::clone(&request.wanted);
            request.dropped.extend(old.keys().filter(|pair| !wanted.contains_key(*pair)).cloned());
            request.wanted = Arc::new(wanted);
        }
        self.shared.changed.notify_one();
    }
}

#[derive(Debug, Default)]
struct Shared {
    request: Mutex<Request>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Request {
    wanted: Arc<Wanted>,
    /// Those dropped since the task last looked; some may be wanted again.
    dropped: BTreeSet<Pair>,
}

/// Makes the probes.
pub struct Task {
    shared: Arc<Shared>,
    changes: mpsc::Sender<Change>,
    in_flight: usize,
    plan: Plan,
    probes: JoinSet<Finished>,
    /// Decisions not sent yet.
    outbox: BTreeMap<Pair, Change>,
    complained: Option<Instant>,
}

struct Finished {
    key: Arc<Key>,
    started: Instant,
    result: Result<(), Failure>,
}

impl Task {
    /// Runs until `cancel`, or until nobody receives the decisions.
    pub async fn run(mut self, cancel: CancellationToken) {
        let changes = self.changes.clone();
        let shared = Arc::clone(&self.shared);
        loop {
            let room = self.in_flight.saturating_sub(self.probes.len());
            let due = self.plan.next().filter(|_| room > 0);

            tokio::select! {
                () = cancel.cancelled() => return,
                () = shared.changed.notified() => self.take_wanted(),
                permit = changes.reserve(), if !self.outbox.is_empty() => {
                    let Ok(permit) = permit else { return };
                    if let Some((_, change)) = self.outbox.pop_first() {
                        permit.send(change);
                    }
                }
                Some(finished) = self.probes.join_next() => match finished {
                    Ok(finished) => self.finish(finished),
                    Err(error) => {
                        tracing::error!(%error, "a health probe ended unexpectedly");
                        return;
                    }
                },
                () = at(due) => self.start(room),
            }
        }
    }

    fn take_wanted(&mut self) {
        let (wanted, dropped) = {
            let mut request = self.shared.request.lock().unwrap_or_else(PoisonError::into_inner);
            (Arc::clone(&request.wanted), std::mem::take(&mut request.dropped))
        };
        for pair in dropped {
            self.plan.forget(&pair);
            self.outbox.remove(&pair);
        }
        let changes = self.plan.set_wanted(&wanted, Instant::now());
        self.send(changes);
    }

    fn start(&mut self, room: usize) {
        let started = Instant::now();
        for job in self.plan.take(started, room) {
            self.probes.spawn(async move {
                let result = probe(job.address, &job.check).await;
                Finished { key: job.key, started, result }
            });
        }
    }

    fn finish(&mut self, Finished { key, started, result }: Finished) {
        let now = Instant::now();
        let result = match result {
            Ok(()) => Some(Ok(())),
            Err(Failure::Backend(reason)) => Some(Err(reason)),
            Err(Failure::Here(reason)) => {
                if self.complained.is_none_or(|last| now - last >= COMPLAIN_EVERY) {
                    self.complained = Some(now);
                    tracing::warn!(%reason, "this machine cannot make health probes; health stays as it is");
                }
                None
            }
        };
        let changes = self.plan.finish(&key, started, now, result);
        self.send(changes);
    }

    fn send(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.outbox.insert((change.service.clone(), change.backend), change);
        }
    }
}

/// Waits until then; for ever if there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
