//! The task that reads DNS messages, learns from them, and has policy follow.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use config::policy::{Group, Labels, NamePattern};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Known, Names, Result, Shared, asked::Asked, dns};
use crate::{
    command::Command,
    datapath::bpf::awaited,
    policy::{
        kernel::NameSource,
        state::{Place, Wanted},
    },
    store::{Folder, StoreError},
    view::View,
};

/// Messages that are taken in before policy follows.
const BATCH: usize = 256;
/// How long what was learned may be unwritten.
const WRITE: Duration = Duration::from_secs(1);
/// How often connections are looked at for addresses that are kept only because of them.
const LOOK: Duration = Duration::from_secs(10);
/// The file's name, without its suffix.
const FILE: &str = "learned";

/// `STATE/names/learned.json`
#[derive(Debug)]
pub struct Kept(Folder);

impl Kept {
    /// Makes the directory if it is missing, and reads what was learned.
    ///
    /// # Errors
    /// It cannot be made or read, or holds something else.
    pub fn open(state: &Path) -> std::result::Result<(Self, Names), StoreError> {
        let folder = Folder::open(state, "names", "json")?;
        let parse = |_: &str, text: &[u8]| {
            serde_json::from_slice::<Vec<Known>>(text).map_err(|error| error.to_string())
        };
        let all = folder.load(parse)?.into_iter().flat_map(|(_, known)| known).collect();
        Ok((Self(folder), Names::of(all)))
    }

    /// Writes what is known in the place of what was.
    ///
    /// # Errors
    /// It may not be kept.
    pub fn put(&self, names: &Names) -> std::result::Result<(), StoreError> {
        let all: Vec<Known> = names.iter().collect();
        let text = serde_json::to_vec(&all).unwrap_or_default();
        self.0.put(FILE, &text)
    }
}

/// Runs until `cancel`; reads from the last of `sources`.
pub async fn run(
    mut sources: mpsc::Receiver<NameSource>,
    shared: Shared,
    kept: Kept,
    view: watch::Receiver<Arc<View>>,
    commands: mpsc::Sender<Command>,
    cancel: CancellationToken,
) {
    let Some(source) = first(&mut sources, &cancel).await else { return };
    let source = match awaited(source) {
        Ok(source) => source,
        Err(error) => {
            tracing::error!(%error, "names are not learned from DNS");
            return cancel.cancelled().await;
        }
    };
    let mut task = Task {
        source,
        shared,
        kept,
        view,
        asked: Asked::default(),
        rules: Rules::default(),
        write_at: None,
    };
    let mut look_at = Instant::now();
    loop {
        let changed = tokio::select! {
            () = cancel.cancelled() => break,
            ready = task.source.readable() => match ready {
                Ok(mut ready) => {
                    ready.clear_ready();
                    task.read().await
                }
                Err(_) => break,
            },
            () = tokio::time::sleep_until(look_at) => {
                let (changed, next) = task.expire();
                look_at = next;
                changed
            }
            () = tokio::time::sleep_until(task.write_at.unwrap_or(look_at)),
                if task.write_at.is_some() => {
                task.write();
                false
            }
        };
        if changed {
            task.write_at.get_or_insert(Instant::now() + WRITE);
            look_at = look_at.min(task.next_look());
            if commands.send(Command::NamesChanged).await.is_err() {
                break;
            }
        }
    }
    if task.write_at.is_some() {
        task.write();
    }
    cancel.cancelled().await;
}

async fn first(
    sources: &mut mpsc::Receiver<NameSource>,
    cancel: &CancellationToken,
) -> Option<NameSource> {
    tokio::select! {
        () = cancel.cancelled() => None,
        Some(source) = sources.recv() => Some(source),
    }
}

struct Task {
    source: AsyncFd<NameSource>,
    shared: Shared,
    kept: Kept,
    view: watch::Receiver<Arc<View>>,
    asked: Asked,
    rules: Rules,
    write_at: Option<Instant>,
}

impl Task {
    /// Takes in what was handed over. Whether any address is new.
    async fn read(&mut self) -> bool {
        let wanted = Arc::clone(&self.view.borrow().policy.wanted);
        self.rules.follow(&wanted);
        let mut new = false;
        let mut in_batch = 0;
        while let Some(message) = self.source.get_mut().take() {
            let is_answer = message.is_answer();
            let read = dns::read(message.frame(), is_answer).filter(|_| message.is_whole());
            let (index, now) = (message.ifindex(), now());
            match read {
                Some(question) if !is_answer => self.asked.ask(index, &question, now),
                read => new |= self.answer(index, read.as_ref(), &wanted, now),
            }
            in_batch += 1;
            if in_batch % BATCH == 0 {
                tokio::task::yield_now().await;
            }
        }
        self.shared.set_lost(self.source.get_ref().lost());
        new
    }

    fn answer(
        &mut self,
        index: u32,
        answer: Option<&dns::Message>,
        wanted: &Wanted,
        now: u64,
    ) -> bool {
        let Some(answer) = answer else {
            self.shared.note(Result::Unreadable);
            return false;
        };
        if !self.asked.answers(index, answer, now) {
            self.shared.note(Result::Unasked);
            return false;
        }
        let patterns = self.rules.patterns(index);
        let named = patterns.iter().any(|pattern| pattern.matches(&answer.name));
        let result =
            if named && !answer.addresses.is_empty() { Result::Learned } else { Result::Unwanted };
        self.shared.note(result);
        let dns::Message { name, addresses, .. } = answer;
        self.shared.read().learn(name, addresses, &patterns, wanted.fqdn, now)
    }

    /// Forgets what is over and not in use. Whether there was any, and when to look again.
    fn expire(&mut self) -> (bool, Instant) {
        let now = now();
        let overdue = self.shared.read().overdue(now);
        let changed = !overdue.is_empty() && {
            // A call for each connection that is remembered.
            let seen = tokio::task::block_in_place(|| self.source.get_ref().last_seen(&overdue));
            self.shared.read().expire(now, &seen)
        };
        (changed, self.next_look())
    }

    fn next_look(&self) -> Instant {
        let names = self.shared.read();
        let end = names.next_end().map(|end| Duration::from_millis(end.saturating_sub(now())));
        let longest = if names.holds_any() { LOOK } else { Duration::from_secs(3600) };
        let after = end.unwrap_or(longest).clamp(Duration::from_millis(100), longest);
        Instant::now() + after
    }

    fn write(&mut self) {
        self.write_at = None;
        let names = self.shared.read().clone();
        if let Err(error) = tokio::task::block_in_place(|| self.kept.put(&names)) {
            tracing::warn!(%error, "what DNS says is not kept");
            self.write_at = Some(Instant::now() + LOOK);
        }
    }
}

/// The patterns that each endpoint's rules select, as of the rules in force.
#[derive(Default)]
struct Rules {
    of: Arc<Wanted>,
    /// Labels of endpoints, or of the host, by the index of their interface.
    labels: BTreeMap<u32, (bool, Labels)>,
    /// Rules with names: their index, and these.
    named: Vec<(usize, BTreeSet<NamePattern>)>,
}

impl Rules {
    fn follow(&mut self, wanted: &Arc<Wanted>) {
        if Arc::ptr_eq(&self.of, wanted) {
            return;
        }
        self.of = Arc::clone(wanted);
        let own =
            |Place { endpoint, index, host }: Place<'_>| (index, (host, endpoint.labels.clone()));
        self.labels = wanted.places().map(own).collect();
        self.named.clear();
        for (index, rule) in wanted.rules.iter().enumerate() {
            let names: BTreeSet<NamePattern> = Wanted::groups_of(std::slice::from_ref(rule))
                .filter_map(|group| match group {
                    Group::Names(names) => Some(names.clone()),
                    Group::Service { .. } => None,
                })
                .collect();
            if !names.is_empty() {
                self.named.push((index, names));
            }
        }
    }

    /// Those of the rules for the endpoint behind an interface.
    fn patterns(&self, index: u32) -> Vec<&NamePattern> {
        let Some((host, labels)) = self.labels.get(&index) else { return Vec::new() };
        let own = self.named.iter().filter(|(rule, _)| {
            self.of.rules.get(*rule).is_some_and(|rule| rule.selects(*host, labels))
        });
        own.flat_map(|(_, names)| names).collect()
    }
}

/// Milliseconds since 1970: what is kept has to be over after a restart of the machine, too.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
