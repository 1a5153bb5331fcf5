//! Lists that are fetched over HTTP: asked for on a schedule, checked, kept in `--state`, and put in force
//! like any list file.
//!
//! A copy that was checked takes the place of the one before on disk, and the configuration is read again;
//! whatever goes wrong, the last good copy stays. The owner task knows nothing of it.

mod client;
mod copies;
pub mod crowdsec;
mod schedule;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, RandomState},
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use config::{
    Checked,
    model::{ListAction, PrefixList, Remote},
};
use hyper::header::{self, HeaderValue};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use self::{
    client::{Answer, Get, GetError},
    copies::{Copies, Record},
    schedule::{LEAST, Past},
};
use crate::{
    guard::{self, Guard},
    view::View,
};

/// Lists that are fetched at the same time.
const AT_ONCE: usize = 4;
/// The clock on the wall may be set meanwhile: what is due later is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// How fetching a list goes. Times are in Unix time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// When what is in force came.
    pub fetched: Option<SystemTime>,
    /// When the server last sent or confirmed it.
    pub success: Option<SystemTime>,
    /// When it was last asked.
    pub attempt: Option<SystemTime>,
    /// When it will be asked next.
    pub next: Option<SystemTime>,
    /// Failures since the last success.
    pub failures: u32,
    /// The last failure, if it is not mended.
    pub error: Option<String>,
    /// Size of the copy.
    pub bytes: u64,
    /// The server's tag of the copy.
    pub etag: Option<String>,
    /// What the publisher says in comments: source, licence.
    pub attribution: Vec<String>,
    /// Attempts of this process that succeeded.
    pub successes_total: u64,
    /// Attempts of this process that failed.
    pub failures_total: u64,
}

/// Progress of all lists, written by the fetcher alone and read by everybody; and the way to ask it.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Board>);

#[derive(Debug, Default)]
struct Board {
    lists: Mutex<BTreeMap<String, Progress>>,
    bouncers: Mutex<BTreeMap<String, Progress>>,
    asked: Mutex<BTreeSet<String>>,
    wake: Notify,
}

/// Why a list is not fetched now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// It is not one that is fetched.
    #[error("the list \"{0}\" is not fetched from anywhere")]
    NotFetched(String),
    /// It was asked for a moment ago.
    #[error("the server was asked {0} s ago; wait for at least {least} s", least = LEAST.as_secs())]
    TooSoon(u64),
}

impl Shared {
    /// How fetching a list goes; `None`: it is not fetched.
    #[must_use]
    pub fn get(&self, list: &str) -> Option<Progress> {
        let of_list = self.lists().get(list).cloned();
        of_list.or_else(|| self.bouncers().get(list).cloned())
    }

    /// Has a list fetched now rather than when it is due.
    ///
    /// # Errors
    /// Why not.
    pub fn refresh(&self, list: &str) -> Result<(), NotNow> {
        let progress =
            self.lists().get(list).cloned().ok_or_else(|| NotNow::NotFetched(list.to_owned()))?;
        let since = progress.attempt.and_then(|at| SystemTime::now().duration_since(at).ok());
        if let Some(since) = since.filter(|since| *since < LEAST) {
            return Err(NotNow::TooSoon(since.as_secs()));
        }
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(list.to_owned());
        self.0.wake.notify_one();
        Ok(())
    }

    fn take_asked(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.0.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Those of bouncers, by list.
    fn bouncers(&self) -> MutexGuard<'_, BTreeMap<String, Progress>> {
        self.0.bouncers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lists(&self) -> MutexGuard<'_, BTreeMap<String, Progress>> {
        self.0.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A list that is fetched.
#[derive(Debug)]
struct Job {
    remote: Arc<Remote>,
    guarded: bool,
    copy: String,
    record: Record,
    next: u64,
    busy: bool,
}

/// A list that is to be fetched: from where, and whether it must not cover what this machine needs.
type Wanted = (Arc<Remote>, bool);

/// What came of an attempt.
struct Outcome {
    list: String,
    remote: Arc<Remote>,
    came: Result<Came, Failed>,
}

/// A success.
enum Came {
    /// The copy is as it was.
    Same,
    /// There is a new copy.
    New {
        etag: Option<String>,
        last_modified: Option<String>,
        bytes: u64,
        attribution: Vec<String>,
    },
}

struct Failed {
    why: String,
    retry_after: Option<Duration>,
}

impl From<GetError> for Failed {
    fn from(error: GetError) -> Self {
        Self { why: error.to_string(), retry_after: error.retry_after() }
    }
}

/// The task that fetches.
#[derive(Debug)]
pub struct Fetcher {
    copies: Copies,
    shared: Shared,
    jobs: BTreeMap<String, Job>,
    chance: RandomState,
    reload: mpsc::Sender<()>,
    guard: Guard,
}

impl Fetcher {
    /// A fetcher that keeps its copies in `directory` and tells `reload` when there is a new one.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(
        directory: &Path,
        shared: Shared,
        reload: mpsc::Sender<()>,
        guard: Guard,
    ) -> io::Result<Self> {
        let copies = Copies::open(directory)?;
        let (jobs, chance) = (BTreeMap::new(), RandomState::new());
        Ok(Self { copies, shared, jobs, chance, reload, guard })
    }

    /// Fetches the lists that the view has, until `cancel`.
    pub async fn run(mut self, mut view: watch::Receiver<Arc<View>>, cancel: CancellationToken) {
        let mut running: JoinSet<Outcome> = JoinSet::new();
        view.mark_changed();
        loop {
            self.start_due(&mut running, &view);
            let wait = self.wait(running.len());
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = view.changed() => {
                    if changed.is_err() {
                        return cancel.cancelled().await;
                    }
                    let wanted = wanted(&view.borrow_and_update());
                    self.follow(wanted);
                }
                Some(done) = running.join_next() => match done {
                    Ok(outcome) => self.take(outcome),
                    Err(error) => tracing::error!(%error, "fetching a list ended unexpectedly"),
                },
                () = self.shared.0.wake.notified() => self.hurry(),
                () = sleep(wait) => {}
            }
        }
    }

    /// Takes over which lists there are.
    fn follow(&mut self, wanted: BTreeMap<String, Wanted>) {
        let same = self.jobs.len() == wanted.len()
            && wanted.iter().all(|(name, (remote, guarded))| {
                let job = self.jobs.get(name);
                job.is_some_and(|job| job.remote == *remote && job.guarded == *guarded)
            });
        if same {
            return;
        }
        let now = unix_now();
        let mut before = std::mem::take(&mut self.jobs);
        for (list, (remote, guarded)) in wanted {
            let copy = remote.copy_name(&list);
            let job = match before.remove(&list).filter(|job| job.copy == copy) {
                Some(job) => Job { remote, guarded, ..job },
                None => {
                    let record = tokio::task::block_in_place(|| self.copies.record(&copy));
                    Job { remote, guarded, copy, record, next: now, busy: false }
                }
            };
            self.jobs.insert(list.clone(), job);
            self.plan(&list, now);
        }
        let copies: BTreeSet<String> = self.jobs.values().map(|job| job.copy.clone()).collect();
        if let Err(error) = tokio::task::block_in_place(|| self.copies.retain(&copies)) {
            tracing::warn!(%error, "cannot remove copies of lists that are not fetched any more");
        }
        self.shared.lists().retain(|list, _| self.jobs.contains_key(list));
    }

    /// Sets when a list is due, and shows how it goes.
    fn plan(&mut self, list: &str, now: u64) {
        let Some(job) = self.jobs.get_mut(list) else { return };
        let Record { attempt, failures, retry_after, .. } = job.record;
        let chance = self.chance.hash_one((list, attempt)) as f64 / u64::MAX as f64;
        let past = Past { attempt, failures, retry_after };
        job.next = schedule::next(past, job.remote.refresh, now, chance);
        let mut lists = self.shared.lists();
        let progress = lists.entry(list.to_owned()).or_default();
        let time = |seconds: Option<u64>| seconds.map(|s| UNIX_EPOCH + Duration::from_secs(s));
        let record = job.record.clone();
        *progress = Progress {
            fetched: time(record.fetched),
            success: time(record.success),
            attempt: time(record.attempt),
            next: time(Some(job.next)),
            failures: record.failures,
            error: record.error,
            bytes: record.bytes,
            etag: record.etag,
            attribution: record.attribution,
            successes_total: progress.successes_total,
            failures_total: progress.failures_total,
        };
    }

    fn start_due(&mut self, running: &mut JoinSet<Outcome>, view: &watch::Receiver<Arc<View>>) {
        let now = unix_now();
        for (list, job) in &mut self.jobs {
            if running.len() >= AT_ONCE {
                return;
            }
            if job.busy || job.next > now {
                continue;
            }
            job.busy = true;
            let get = request(&job.remote, &job.record);
            let (copies, copy) = (self.copies.clone(), job.copy.clone());
            let (list, remote) = (list.clone(), Arc::clone(&job.remote));
            let guard = job.guarded.then(|| (self.guard.clone(), view.clone()));
            running.spawn(async move {
                let check = Check { list: list.clone(), remote: Arc::clone(&remote), guard };
                let came = fetch(&get, check, &copies, &copy).await;
                Outcome { list, remote, came }
            });
        }
    }

    fn wait(&self, running: usize) -> Duration {
        // With all hands full, the next thing to happen is that one of them is free.
        let idle = self.jobs.values().filter(|job| !job.busy);
        let next = idle.map(|job| job.next).min().filter(|_| running < AT_ONCE);
        let wait = next.map_or(LOOK_AGAIN, |at| Duration::from_secs(at.saturating_sub(unix_now())));
        wait.min(LOOK_AGAIN)
    }

    fn hurry(&mut self) {
        for list in self.shared.take_asked() {
            if let Some(job) = self.jobs.get_mut(&list) {
                job.next = 0;
            }
        }
    }

    fn take(&mut self, Outcome { list, remote, came }: Outcome) {
        let Some(job) = self.jobs.get_mut(&list) else { return };
        job.busy = false;
        if remote.url != job.remote.url {
            // It was for another URL; this one is due already.
            return;
        }
        let now = unix_now();
        let (failed, new) = (came.is_err(), matches!(came, Ok(Came::New { .. })));
        note(&mut job.record, came, now, &list);
        let (copies, record) = (&self.copies, &job.record);
        if let Err(error) = tokio::task::block_in_place(|| copies.write_record(&job.copy, record)) {
            tracing::warn!(list, %error, "cannot keep what is known of a fetched list");
        }
        {
            let mut lists = self.shared.lists();
            let progress = lists.entry(list.clone()).or_default();
            progress.failures_total += u64::from(failed);
            progress.successes_total += u64::from(!failed);
        }
        self.plan(&list, now);
        if new {
            // Full: it will be read again anyway.
            let _ = self.reload.try_send(());
        }
    }
}

/// The lists of a view that are fetched.
fn wanted(view: &View) -> BTreeMap<String, Wanted> {
    let of = |list: &Arc<PrefixList>| {
        let guarded = list.action == ListAction::Drop && !list.force;
        Some((list.name.clone(), (Arc::clone(list.remote.as_ref()?), guarded)))
    };
    view.prefilter.lists.iter().filter_map(of).collect()
}

/// Whether what came can be used.
struct Check {
    list: String,
    remote: Arc<Remote>,
    guard: Option<(Guard, watch::Receiver<Arc<View>>)>,
}

impl Check {
    fn check(&self, body: &[u8]) -> Result<Checked, String> {
        let checked = self.remote.check(body)?;
        if let Some((guard, view)) = &self.guard {
            let view = Arc::clone(&view.borrow());
            let covered = guard.covered(&view, &self.list, &checked.prefixes, None);
            if !covered.is_empty() {
                let covered = guard::listed(&covered);
                return Err(format!("it would cut off what this machine needs: {covered}"));
            }
        }
        Ok(checked)
    }
}

fn request(remote: &Remote, record: &Record) -> Get {
    let conditions =
        [(header::IF_NONE_MATCH, &record.etag), (header::IF_MODIFIED_SINCE, &record.last_modified)];
    let headers = conditions
        .into_iter()
        .filter_map(|(name, value)| Some((name, HeaderValue::from_str(value.as_deref()?).ok()?)));
    Get {
        url: remote.url.clone(),
        headers: headers.collect(),
        timeout: remote.timeout,
        max_bytes: remote.max_bytes,
        ca_file: remote.ca_file.clone(),
        follow: true,
    }
}

async fn fetch(get: &Get, check: Check, copies: &Copies, copy: &str) -> Result<Came, Failed> {
    let failed = |why: String| Failed { why, retry_after: None };
    let (bytes, etag, last_modified) = match client::get(get).await? {
        Answer::NotModified if get.headers.is_empty() => {
            return Err(failed(
                "the server answers 304 to a request without conditions".to_owned(),
            ));
        }
        Answer::NotModified => return Ok(Came::Same),
        Answer::Body { bytes, etag, last_modified } => (bytes, etag, last_modified),
    };
    let (copies, copy) = (copies.clone(), copy.to_owned());
    let keep = tokio::task::spawn_blocking(move || {
        let checked = check.check(&bytes)?;
        copies
            .write_body(&copy, &bytes)
            .map_err(|error| format!("cannot keep the copy: {error}"))?;
        let (bytes, attribution) = (bytes.len() as u64, checked.attribution);
        Ok(Came::New { etag, last_modified, bytes, attribution })
    });
    keep.await.unwrap_or_else(|_| Err("stopping".to_owned())).map_err(failed)
}

/// Enters an outcome into what is known of a list.
fn note(record: &mut Record, came: Result<Came, Failed>, now: u64, list: &str) {
    record.attempt = Some(now);
    match came {
        Err(Failed { why, retry_after }) => {
            record.failures = record.failures.saturating_add(1);
            record.retry_after = retry_after.map(|after| after.as_secs());
            if record.error.as_ref() != Some(&why) {
                tracing::warn!(list, "fetching failed, the last good copy stays: {why}");
            }
            record.error = Some(why);
            return;
        }
        Ok(Came::Same) => {}
        Ok(Came::New { etag, last_modified, bytes, attribution }) => {
            tracing::info!(list, bytes, "a new copy was fetched");
            record.fetched = Some(now);
            (record.etag, record.last_modified) = (etag, last_modified);
            (record.bytes, record.attribution) = (bytes, attribution);
        }
    }
    record.success = Some(now);
    (record.failures, record.retry_after, record.error) = (0, None, None);
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
