//! Says when a configuration should be loaded again.
//!
//! Owns the watches on the configured directory or file, on the symbolic links that lead there, and on
//! the directories of files it refers to. Whatever happens within a few milliseconds is one change, and
//! a file that is still open for writing is waited for. Reads no file itself: a notice that turns out
//! to be about nothing costs its receiver one look at the time stamps.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    sync::mpsc::{self as sync_mpsc, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::sync::mpsc;

use crate::load::parent;

/// A change is over when nothing more happens for so long.
const QUIET: Duration = Duration::from_millis(5);
/// A change that does not end is reported after so long.
const LONGEST: Duration = Duration::from_millis(50);
/// A file that was truncated and is still open for writing is waited for so long: half a file may be a
/// valid configuration.
const LONGEST_WRITE: Duration = Duration::from_millis(500);
/// The link that a Kubernetes volume swaps to change all of its files at once.
const VOLUME_LINK: &str = "..data";

/// Why a configuration cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel's notification is not to be had.
    #[error("cannot set up inotify")]
    Setup(#[source] notify::Error),
    /// One directory cannot be watched.
    #[error("cannot watch {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: notify::Error,
    },
    /// No thread could be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// The thread of the watcher has ended.
    #[error("the watcher has stopped")]
    Stopped,
}

/// Watches a configuration until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    messages: sync_mpsc::Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

enum Message {
    Event(Instant, notify::Result<Event>),
    ExtraDirs(Vec<PathBuf>, sync_mpsc::Sender<Result<(), WatchError>>),
    Stop,
}

impl Watcher {
    /// Watches the directory or file at `path`, and `extra_dirs`, which need not exist.
    ///
    /// The receiver gets the instant of the first notice of each change. A change during a load is a
    /// notice of its own; changes that pile up while nobody receives are one.
    ///
    /// # Errors
    /// The directories cannot be watched.
    pub fn new(
        path: &Path,
        extra_dirs: Vec<PathBuf>,
    ) -> Result<(Self, mpsc::Receiver<Instant>), WatchError> {
        let (messages, inbox) = sync_mpsc::channel();
        let events = messages.clone();
        let handler = move |event| {
            // The other end is gone only when the watcher is.
            let _ = events.send(Message::Event(Instant::now(), event));
        };
        // The kernel's events have absolute paths.
        let path = absolute(path.to_path_buf());
        let extra_dirs = extra_dirs.into_iter().map(absolute).collect();
        let inotify = notify::recommended_watcher(handler).map_err(WatchError::Setup)?;
        // One notice is all that can be outstanding.
        let (notices, receiver) = mpsc::channel(1);
        let mut owner = Owner { path, extra_dirs, inotify, watches: BTreeMap::new(), notices };
        owner.rearm(&BTreeSet::new())?;
        let thread = thread::Builder::new()
            .name("config-watch".to_owned())
            .spawn(move || owner.run(&inbox))
            .map_err(WatchError::Thread)?;
        Ok((Self { messages, thread: Some(thread) }, receiver))
    }

    /// Replaces the directories that are watched beside the configuration. A directory that was not
    /// watched before counts as a change, because nobody knows what happened in it meanwhile.
    ///
    /// # Errors
    /// One of them cannot be watched. The others are.
    pub fn set_extra_dirs(&self, extra_dirs: Vec<PathBuf>) -> Result<(), WatchError> {
        let extra_dirs = extra_dirs.into_iter().map(absolute).collect();
        let (reply, answer) = sync_mpsc::channel();
        self.messages
            .send(Message::ExtraDirs(extra_dirs, reply))
            .map_err(|_| WatchError::Stopped)?;
        answer.recv().map_err(|_| WatchError::Stopped)?
    }
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Fails only if the thread has ended already, and it has nothing to say when it does.
        let _ = self.messages.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's state.
struct Owner {
    path: PathBuf,
    extra_dirs: Vec<PathBuf>,
    inotify: RecommendedWatcher,
    watches: BTreeMap<PathBuf, Watch>,
    notices: mpsc::Sender<Instant>,
}

/// A directory that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Watch {
    /// Device and inode: the path may mean another directory later.
    id: (u64, u64),
    names: Names,
}

/// Which entries of a directory matter.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    All,
    Only(BTreeSet<OsString>),
}

/// What has happened since the last notice.
struct Change {
    first: Instant,
    last: Instant,
    /// Written to, and not closed.
    open: HashSet<PathBuf>,
    /// Watched directories that something happened to: their watches may be gone.
    touched: BTreeSet<PathBuf>,
}

impl Owner {
    fn run(mut self, inbox: &sync_mpsc::Receiver<Message>) {
        let mut change: Option<Change> = None;
        loop {
            let message = match &change {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(change) => {
                    inbox.recv_timeout(change.due().saturating_duration_since(Instant::now()))
                }
            };
            match message {
                Ok(Message::Event(at, event)) => self.note(at, event, &mut change),
                Ok(Message::ExtraDirs(extra_dirs, reply)) => {
                    self.extra_dirs = extra_dirs;
                    let before = self.watches.clone();
                    let result = self.rearm(&BTreeSet::new());
                    if self.watches.iter().any(|(path, watch)| before.get(path) != Some(watch)) {
                        Change::note(&mut change, Instant::now());
                    }
                    // Whoever asked may have given up waiting.
                    let _ = reply.send(result);
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(over) = change.take_if(|change| change.due() <= Instant::now()) {
                // What cannot be watched now is tried again at the next change.
                let _ = self.rearm(&over.touched);
                // A full channel holds a notice that nobody has acted on yet.
                let _ = self.notices.try_send(over.first);
            }
        }
    }

    /// Adds an event to the change at hand, if it matters.
    fn note(&self, at: Instant, event: notify::Result<Event>, change: &mut Option<Change>) {
        let event = match event {
            Ok(event) if event.need_rescan() => return Change::note(change, at),
            Ok(event) => event,
            // Something was lost.
            Err(_) => return Change::note(change, at),
        };
        let closed = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
            EventKind::Access(_) => return,
            _ => false,
        };
        for path in &event.paths {
            if !self.matters(path) {
                continue;
            }
            Change::note(change, at);
            let Some(change) = change.as_mut() else {
                continue;
            };
            if matches!(event.kind, EventKind::Modify(ModifyKind::Data(_))) {
                change.open.insert(path.clone());
            } else if closed || !matches!(event.kind, EventKind::Modify(ModifyKind::Metadata(_))) {
                change.open.remove(path);
            }
            if self.watches.contains_key(path) {
                change.touched.insert(path.clone());
            }
        }
    }

    fn matters(&self, path: &Path) -> bool {
        if self.watches.contains_key(path) {
            return true;
        }
        match self.watches.get(parent(path)).map(|watch| &watch.names) {
            None => false,
            Some(Names::All) => true,
            Some(Names::Only(names)) => path.file_name().is_some_and(|name| names.contains(name)),
        }
    }

    /// Makes the watches what they should be, those of `touched` directories anew.
    fn rearm(&mut self, touched: &BTreeSet<PathBuf>) -> Result<(), WatchError> {
        let wanted = wanted(&self.path, &self.extra_dirs);
        let stale = |path: &PathBuf, watch: &Watch| {
            touched.contains(path) || wanted.get(path).is_none_or(|new| new.id != watch.id)
        };
        let gone: Vec<PathBuf> = self
            .watches
            .iter()
            .filter(|(path, watch)| stale(path, watch))
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.watches.remove(&path);
            // The kernel may have removed it already.
            let _ = self.inotify.unwatch(&path);
        }
        let mut result = Ok(());
        for (path, watch) in wanted {
            if !self.watches.contains_key(&path)
                && let Err(source) = self.inotify.watch(&path, RecursiveMode::NonRecursive)
            {
                result = Err(WatchError::Directory { path, source });
                continue;
            }
            self.watches.insert(path, watch);
        }
        result
    }
}

impl Change {
    fn note(change: &mut Option<Self>, at: Instant) {
        let change = change.get_or_insert_with(|| Self {
            first: at,
            last: at,
            open: HashSet::new(),
            touched: BTreeSet::new(),
        });
        change.last = change.last.max(at);
    }

    /// When it is to be reported.
    fn due(&self) -> Instant {
        if self.open.is_empty() {
            (self.last + QUIET).min(self.first + LONGEST)
        } else {
            self.first + LONGEST_WRITE
        }
    }
}

/// The directories to watch, as the file system is now.
fn wanted(path: &Path, extra_dirs: &[PathBuf]) -> BTreeMap<PathBuf, Watch> {
    let mut wanted = Wanted::default();
    wanted.links(path);
    if path.is_dir() {
        wanted.all(path);
    } else if path.file_name().is_some() {
        wanted.add(parent(path), Some(OsString::from(VOLUME_LINK)));
    }
    for directory in extra_dirs {
        wanted.links(directory);
        wanted.all(directory);
    }
    wanted.watches
}

#[derive(Default)]
struct Wanted {
    watches: BTreeMap<PathBuf, Watch>,
    /// A directory is watched by one path only: the kernel has one watch per directory, and it would
    /// end with the first path that is given up.
    by_id: BTreeMap<(u64, u64), PathBuf>,
}

impl Wanted {
    fn all(&mut self, directory: &Path) {
        self.add(directory, None);
    }

    /// What leads to `path`: its own entry, and every symbolic link on the way.
    fn links(&mut self, path: &Path) {
        let own = match path.components().next_back() {
            Some(Component::Normal(_)) => path.to_path_buf(),
            // `.` and the like have no entry by their name.
            _ => fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf()),
        };
        for (n, ancestor) in own.ancestors().enumerate() {
            let is_link = || fs::symlink_metadata(ancestor).is_ok_and(|entry| entry.is_symlink());
            if let Some(name) = ancestor.file_name()
                && (n == 0 || is_link())
            {
                self.add(parent(ancestor), Some(name.to_os_string()));
            }
        }
    }

    /// Watches a directory, or its nearest ancestor until it exists.
    fn add(&mut self, directory: &Path, name: Option<OsString>) {
        let (mut directory, mut name) = (directory, name);
        let metadata = loop {
            match fs::metadata(directory) {
                Ok(metadata) if metadata.is_dir() => break metadata,
                _ => {
                    let Some(missing) = directory.file_name() else {
                        return;
                    };
                    name = Some(missing.to_os_string());
                    directory = parent(directory);
                }
            }
        };
        let id = (metadata.dev(), metadata.ino());
        let path = self.by_id.entry(id).or_insert_with(|| directory.to_path_buf()).clone();
        let watch =
            self.watches.entry(path).or_insert(Watch { id, names: Names::Only(BTreeSet::new()) });
        match (name, &mut watch.names) {
            (None, names) => *names = Names::All,
            (Some(name), Names::Only(names)) => {
                names.insert(name);
            }
            (Some(_), Names::All) => {}
        }
    }
}

#[cfg(test)]
mod tests;
