//! A bouncer of CrowdSec: pulls decisions from a local API (`/v1/decisions/stream`) into a list of the API.
//!
//! The first pull, and each one after a failure, asks for everything: what was lost on the way is then
//! found. The others ask for what is new and what is gone. Several decisions may be about one address; it
//! stays banned until the last of them ends. Bans have the end of their decision, so they go by
//! themselves when nobody pulls any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use config::{PrefixSet, model::CrowdSec};
use hyper::header::{HeaderName, HeaderValue};
use ipnet::IpNet;
use serde::Deserialize;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    Progress, Shared,
    client::{self, Answer, Get},
};
use crate::{
    bans::{Change, MAX_REASON},
    command::Command,
    guard::Guard,
    view::View,
};

/// Of an answer: a million decisions are some 200 bytes each.
const MAX_BYTES: u64 = 256 << 20;
/// The longest pause after failures.
const LONGEST: Duration = Duration::from_secs(300);

/// What a local API answers.
#[derive(Debug, Default, Deserialize)]
struct Stream {
    #[serde(default)]
    new: Option<Vec<Decision>>,
    #[serde(default)]
    deleted: Option<Vec<Decision>>,
}

/// A decision, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Decision {
    #[serde(default)]
    id: u64,
    #[serde(default)]
    duration: String,
    #[serde(default)]
    origin: String,
    #[serde(default)]
    scenario: String,
    scope: String,
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

/// A decision that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Active {
    until: u64,
    reason: Arc<str>,
}

/// What is known of one local API.
#[derive(Debug, Default)]
struct Known {
    /// By prefix, and by the number of the decision.
    active: BTreeMap<IpNet, BTreeMap<u64, Active>>,
    /// Decisions that are no bans of addresses, or cannot be read.
    ignored: u64,
}

impl Known {
    /// Takes an answer over; gives the prefixes that it is about. `all`: it is everything there is.
    fn take(&mut self, stream: Stream, all: bool, now: u64) -> BTreeSet<IpNet> {
        let mut touched = BTreeSet::new();
        if all {
            touched.extend(std::mem::take(&mut self.active).into_keys());
        }
        for decision in stream.deleted.into_iter().flatten() {
            let Some(net) = ban(&decision) else { continue };
            if let Some(active) = self.active.get_mut(&net) {
                active.remove(&decision.id);
                touched.insert(net);
            }
        }
        for decision in stream.new.into_iter().flatten() {
            let Some((net, left)) = ban(&decision).zip(go_duration(&decision.duration)) else {
                self.ignored += 1;
                continue;
            };
            let mut reason = format!("{}: {}", decision.origin, decision.scenario);
            while reason.len() > MAX_REASON {
                reason.pop();
            }
            let until = now + left.as_millis() as u64;
            let active = Active { until, reason: reason.into() };
            self.active.entry(net).or_default().insert(decision.id, active);
            touched.insert(net);
        }
        for active in self.active.values_mut() {
            active.retain(|_, active| active.until > now);
        }
        self.active.retain(|_, active| !active.is_empty());
        touched
    }

    /// The changes that bring a list, of which `there` is known, up to what is known of these prefixes.
    fn changes(
        &self,
        list: &Arc<str>,
        touched: BTreeSet<IpNet>,
        there: impl Fn(&IpNet) -> bool,
        now: u64,
    ) -> Vec<Change> {
        let change = |cidr: IpNet| {
            let list = Arc::clone(list);
            let last = self.active.get(&cidr).and_then(|all| all.values().max_by_key(|a| a.until));
            match last {
                Some(Active { until, reason }) => Some(Change::Add {
                    list,
                    cidr,
                    added: now,
                    until: Some(*until),
                    reason: Some(Arc::clone(reason)),
                }),
                None => there(&cidr).then_some(Change::Remove { list, cidr }),
            }
        };
        touched.into_iter().filter_map(change).collect()
    }
}

/// The prefix that a decision bans.
fn ban(decision: &Decision) -> Option<IpNet> {
    let about_addresses =
        ["ip", "range"].iter().any(|scope| decision.scope.eq_ignore_ascii_case(scope));
    if !about_addresses || !decision.kind.eq_ignore_ascii_case("ban") {
        return None;
    }
    let value = decision.value.trim();
    let net =
        value.parse::<IpNet>().ok().or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from))?;
    Some(net.trunc())
}

/// A duration as Go writes it, such as `3h59m57.5s` or `500ms`; none below zero.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut all = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        all += value * seconds;
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(all).ok().filter(|d| !d.is_zero())
}

/// What the pulling tasks share.
#[derive(Clone, Debug)]
pub struct Bouncers {
    /// How it goes.
    pub shared: Shared,
    /// Which there are.
    pub view: watch::Receiver<Arc<View>>,
    /// The owner task.
    pub commands: mpsc::Sender<Command>,
    /// What must not be covered.
    pub guard: Guard,
}

impl Bouncers {
    /// Pulls for the bouncers that the view has, until `cancel`.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut wanted: Vec<Arc<CrowdSec>> = Vec::new();
        let mut running: JoinSet<()> = JoinSet::new();
        self.view.mark_changed();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = self.view.changed() => {
                    if changed.is_err() {
                        return cancel.cancelled().await;
                    }
                    let now = self.view.borrow_and_update().prefilter.crowdsec.clone();
                    if now == wanted {
                        continue;
                    }
                    wanted = now;
                    // They begin anew, with everything there is.
                    running.shutdown().await;
                    self.shared.bouncers().retain(|list, _| wanted.iter().any(|b| b.list == *list));
                    for spec in &wanted {
                        running.spawn(self.clone().follow(Arc::clone(spec)));
                    }
                }
                Some(ended) = running.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a bouncer ended unexpectedly");
                    }
                }
            }
        }
    }

    async fn follow(self, spec: Arc<CrowdSec>) {
        let mut known = Known::default();
        let (mut all, mut failures) = (true, 0u32);
        loop {
            let done = self.pull(&spec, &mut known, all).await;
            all = done.is_err();
            failures = if all { failures.saturating_add(1) } else { 0 };
            let doubled = spec.interval.saturating_mul(1 << failures.saturating_sub(1).min(10));
            let pause = if all { doubled.min(LONGEST).max(spec.interval) } else { spec.interval };
            self.note(&spec, done, pause);
            sleep(pause).await;
        }
    }

    fn note(&self, spec: &CrowdSec, done: Result<u64, String>, pause: Duration) {
        let now = SystemTime::now();
        let mut bouncers = self.shared.bouncers();
        let progress = bouncers.entry(spec.list.clone()).or_default();
        progress.attempt = Some(now);
        progress.next = Some(now + pause);
        match done {
            Ok(bytes) => {
                *progress = Progress {
                    fetched: Some(now),
                    success: Some(now),
                    failures: 0,
                    error: None,
                    bytes,
                    successes_total: progress.successes_total + 1,
                    ..progress.clone()
                };
            }
            Err(why) => {
                if progress.error.as_ref() != Some(&why) {
                    tracing::warn!(list = spec.list, "pulling decisions failed, bans stay: {why}");
                }
                progress.failures = progress.failures.saturating_add(1);
                progress.failures_total += 1;
                progress.error = Some(why);
            }
        }
    }

    /// One pull, to in force; the size of the answer.
    async fn pull(&self, spec: &CrowdSec, known: &mut Known, all: bool) -> Result<u64, String> {
        let answer = client::get(&request(spec, all)?).await.map_err(|error| error.to_string())?;
        let Answer::Body { bytes, .. } = answer else {
            return Err("the server answers 304, which was not asked for".to_owned());
        };
        let stream: Stream = serde_json::from_slice(&bytes)
            .map_err(|error| format!("the answer is no stream of decisions: {error}"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = now.as_millis() as u64;
        let mut touched = known.take(stream, all, now);
        let list: Arc<str> = spec.list.as_str().into();
        let view = Arc::clone(&self.view.borrow());
        let changes = {
            let bans = view.bans.read();
            let there = bans.get(&list);
            if all {
                touched.extend(there.into_iter().flat_map(|list| list.entries().keys()));
            }
            let is_there = |net: &IpNet| there.is_some_and(|l| l.entries().contains_key(net));
            known.changes(&list, touched, is_there, now)
        };
        let changes = self.without_covering(&view, &list, changes);
        if changes.is_empty() {
            return Ok(bytes.len() as u64);
        }
        let (reply, done) = tokio::sync::oneshot::channel();
        let command = Command::ChangeLists { changes, confirm: None, reply };
        let stopping = || "the daemon is stopping".to_owned();
        self.commands.send(command).await.map_err(|_| stopping())?;
        done.await.map_err(|_| stopping())?.map_err(|refusal| refusal.to_string())?;
        Ok(bytes.len() as u64)
    }

    /// A decision about what this machine needs is left out, and named.
    fn without_covering(&self, view: &View, list: &str, mut changes: Vec<Change>) -> Vec<Change> {
        let set: PrefixSet = changes
            .iter()
            .filter_map(|change| match change {
                Change::Add { cidr, .. } => Some(*cidr),
                _ => None,
            })
            .collect();
        let covered = self.guard.covered(view, list, &set, None);
        for covered in &covered {
            tracing::warn!("a decision is left out, it would cut off {covered}");
        }
        changes.retain(|change| match change {
            Change::Add { cidr, .. } => !covered.iter().any(|c| cidr.contains(&c.address)),
            _ => true,
        });
        changes
    }
}

fn request(spec: &CrowdSec, all: bool) -> Result<Get, String> {
    let path = &spec.api_key_file;
    let key = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut key = HeaderValue::from_str(key.trim())
        .map_err(|_| format!("{} holds no API key", path.display()))?;
    key.set_sensitive(true);
    let url = spec.url.trim_end_matches('/');
    Ok(Get {
        url: format!("{url}/v1/decisions/stream?startup={all}"),
        headers: vec![(HeaderName::from_static("x-api-key"), key)],
        timeout: spec.timeout,
        max_bytes: MAX_BYTES,
        ca_file: spec.ca_file.clone(),
        // The key is for this server alone.
        follow: false,
    })
}

#[cfg(test)]
mod tests;
