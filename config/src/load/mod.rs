//! Loads a directory of configuration files, or one file.
//!
//! A [`Loader`] remembers what it read: the next load parses only what changed, and hands out the same
//! `Arc` for a service or a list that did not. All file access of the crate is here and in
//! [`crate::Watcher`].

mod directory;
mod geo;
mod given;
mod index;
mod prefilter;
mod read;
mod remote;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;

pub use self::given::Given;
use self::{
    geo::GeoCache,
    given::Files,
    index::Index,
    prefilter::{list_file, of_place, prefilter, same_prefilter},
    read::{Seen, Unreadable, unreadable},
};
use crate::{
    fault::{Document, Fault, Loc, Report},
    file::{Field, File, ListFormat, OnError},
    model, tree,
    validate::{self, Context, Fragment, ListBody},
};

const MAX_FILE_BYTES: u64 = 64 << 20;
const MAX_LIST_BYTES: u64 = 1 << 30;
const MAX_FILES: usize = 10_000;

/// Loads a configuration, again and again.
#[derive(Debug)]
pub struct Loader {
    path: PathBuf,
    from: Files,
    host_name: String,
    files: BTreeMap<PathBuf, CachedFile>,
    index: Index,
    lists: ListCache,
    copies: Option<PathBuf>,
    geo: GeoCache,
    prefilter: Arc<model::Prefilter>,
}

/// A document that was read.
#[derive(Debug)]
struct CachedFile {
    /// As objects name it.
    path: Arc<PathBuf>,
    seen: Seen,
    fragment: Fragment,
    faults: Vec<Fault>,
    /// What was handed out before the document had faults.
    spare: Vec<Arc<model::Service>>,
}

/// List files that were read, and how.
type ListCache = HashMap<(PathBuf, ListFormat, OnError), CachedList>;

impl CachedList {
    /// Whether a document names the file, rather than where it is fetched from.
    fn is_named(&self) -> bool {
        self.built.iter().all(|list| list.remote.is_none())
    }
}

/// A list file that was read.
#[derive(Debug)]
struct CachedList {
    seen: Seen,
    /// One for each entry that names the file. Not empty, unless there are faults.
    built: Vec<Arc<model::PrefixList>>,
    faults: Vec<Fault>,
    /// The load that used it last.
    used: bool,
}

impl Loader {
    /// A loader of the directory or file at `path`. Reads nothing yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            from: Files::Disk,
            host_name: host_name(),
            files: BTreeMap::new(),
            index: Index::default(),
            lists: HashMap::new(),
            copies: None,
            geo: GeoCache::default(),
            prefilter: Arc::default(),
        }
    }

    /// A loader of what is handed over. Lists that are fetched are empty.
    #[must_use]
    pub fn of(given: Given) -> Self {
        Self { from: Files::Given(Arc::new(given)), ..Self::new("") }
    }

    /// The documents, and the files that they name, which the last load read from the disk, each by its path: all
    /// that another [`Loader::of`] needs.
    ///
    /// # Errors
    /// A file is not there any more.
    pub fn used(&self) -> std::io::Result<Given> {
        let read = |path: &PathBuf| fs::read(path).map(|bytes| (path.clone(), bytes));
        // What was fetched is not a file that a document names.
        let lists = self.lists.iter().filter(|(_, list)| list.is_named());
        let files = lists.map(|((path, ..), _)| path).chain(self.geo.paths()).map(read);
        Ok(Given {
            documents: self.files.keys().map(read).collect::<Result<_, _>>()?,
            files: files.collect::<Result<_, _>>()?,
        })
    }

    /// Where copies of fetched lists are, by [`model::Remote::copy_name`]. A list without one is empty.
    #[must_use]
    pub fn with_copies(self, directory: impl Into<PathBuf>) -> Self {
        Self { copies: Some(directory.into()), ..self }
    }

    /// What is loaded.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what changed since the last load, and validates all of it.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of files, lines and columns.
    pub fn load(&mut self) -> Result<model::DesiredState, Vec<Fault>> {
        let paths = self.paths().map_err(|fault| vec![fault])?;
        let mut faults = Vec::new();
        self.forget_all_but(&paths);
        for path in &paths {
            if let Err(fault) = self.refresh_file(path) {
                faults.push(fault);
            }
        }

        let cached = || self.files.values();
        faults.extend(cached().flat_map(|file| file.faults.iter().cloned()));
        self.index.faults(&mut faults);
        let mut state = model::DesiredState::default();
        state.node.name.clone_from(&self.host_name);
        let parts = cached().map(|file| (&file.path, &file.fragment));
        index::scalars(parts, &mut state, &mut faults);
        let prefilter = prefilter(
            cached,
            (&self.from, self.copies.as_deref()),
            (&mut self.lists, &mut self.geo),
            &mut faults,
        );

        if !faults.is_empty() {
            faults.sort();
            faults.dedup();
            return Err(faults);
        }
        if !same_prefilter(&self.prefilter, &prefilter) {
            self.prefilter = Arc::new(prefilter);
        }
        state.prefilter = self.prefilter.clone();
        state.services = self.index.services(self.files.values().map(|file| &file.fragment));
        Ok(state)
    }

    /// Directories whose files the last load used, or missed, beside the configured one: those of list files and of
    /// what symbolic links point to. To be watched. That of a single configured file is among them if lists are in it.
    #[must_use]
    pub fn watch_dirs(&self) -> Vec<PathBuf> {
        let lists = self.files.values().flat_map(|file| &file.fragment.lists);
        let list_files = lists.filter_map(|entry| match &entry.body {
            ListBody::File(file) => Some(&file.path),
            _ => None,
        });
        let own = if self.path.is_dir() { &self.path } else { parent(&self.path) };
        let mut directories = BTreeSet::new();
        // Who writes copies says so.
        let is_copy = |path: &Path| self.copies.as_deref() == Some(parent(path));
        let in_directories = self.lists.keys().map(|(path, ..)| path).filter(|path| !is_copy(path));
        let tables = self.geo.paths();
        let named: Vec<_> = list_files.chain(in_directories).chain(tables).collect();
        // Of the directory of a single file that file alone is watched, unless something else in it matters.
        let mut own_matters = named.iter().any(|path| parent(path) == own);
        for path in self.files.keys().chain(named) {
            directories.insert(parent(path).to_path_buf());
            let is_link = fs::symlink_metadata(path).is_ok_and(|link| link.is_symlink());
            if is_link && let Ok(target) = fs::canonicalize(path) {
                directories.insert(parent(&target).to_path_buf());
            }
        }
        for entry in self.files.values().flat_map(|file| &file.fragment.lists) {
            if let ListBody::Directory(directory) = &entry.body {
                own_matters |= directory.path == *own;
                directories.insert(directory.path.clone());
            }
        }
        if self.path.is_dir() || !own_matters {
            directories.remove(own);
        }
        directories.into_iter().collect()
    }

    /// The documents, sorted.
    fn paths(&self) -> Result<Vec<PathBuf>, Fault> {
        if let Files::Given(given) = &self.from {
            return Ok(given.documents.keys().cloned().collect());
        }
        let of_io = |error: &std::io::Error| {
            let why = unreadable(&self.path, error);
            Fault::of_file(&self.path, why.message, why.help)
        };
        let metadata = fs::metadata(&self.path).map_err(|error| of_io(&error))?;
        if !metadata.is_dir() {
            return Ok(vec![self.path.clone()]);
        }
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|error| of_io(&error))? {
            let name = entry.map_err(|error| of_io(&error))?.file_name();
            let bytes = name.as_encoded_bytes();
            if bytes.ends_with(b".yaml") && !bytes.starts_with(b".") {
                paths.push(self.path.join(name));
            }
        }
        if paths.is_empty() {
            return Err(Fault::of_file(
                &self.path,
                "the directory has no *.yaml file",
                "create one; an empty file is a valid configuration",
            ));
        }
        if paths.len() > MAX_FILES {
            let message = format!("the directory has {} *.yaml files", paths.len());
            return Err(Fault::of_file(
                &self.path,
                message,
                format!("allowed: at most {MAX_FILES}"),
            ));
        }
        paths.sort();
        Ok(paths)
    }

    /// Forgets documents that are no longer there.
    fn forget_all_but(&mut self, paths: &[PathBuf]) {
        let gone: Vec<PathBuf> =
            self.files.keys().filter(|path| paths.binary_search(path).is_err()).cloned().collect();
        for path in gone {
            self.forget(&path);
        }
    }

    fn forget(&mut self, path: &Path) -> Option<CachedFile> {
        let old = self.files.remove(path)?;
        self.index.remove(&old.path, &old.fragment);
        Some(old)
    }

    /// Parses a document unless it is as it was.
    fn refresh_file(&mut self, path: &Path) -> Result<(), Fault> {
        let cached = self.files.get_mut(path);
        let seen = cached.map(|cached| &mut cached.seen);
        let (bytes, seen) = match self.from.read_if_changed(path, seen, MAX_FILE_BYTES) {
            Ok(None) => return Ok(()),
            Ok(Some(changed)) => changed,
            Err(why) => {
                self.forget(path);
                return Err(Fault::of_file(path, why.message, why.help));
            }
        };
        let shared = Arc::new(path.to_path_buf());
        let (mut fragment, faults) = parse(&shared, &bytes);
        let mut spare = Vec::new();
        if let Some(old) = self.forget(path) {
            keep_unchanged(&mut fragment, &old);
            if !faults.is_empty() {
                spare = old.spare;
                spare.extend(old.fragment.services.into_iter().map(|(service, _)| service));
            }
        }
        self.index.add(&shared, &fragment);
        let cached = CachedFile { path: shared, seen, fragment, faults, spare };
        self.files.insert(path.to_path_buf(), cached);
        Ok(())
    }
}

/// Parses and validates one document.
fn parse(path: &Arc<PathBuf>, bytes: &[u8]) -> (Fragment, Vec<Fault>) {
    let report = Report::new(Document::File(path));
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let line = before.split('\n').count();
            let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
            let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let at = Loc { line: clamp(line), column: clamp(column) };
            report.fault(at, "the file is not UTF-8 from here on", "allowed: UTF-8 text");
            return (Fragment::default(), report.into_faults());
        }
    };
    let file = tree::yaml::from_yaml(text, &report)
        .map(|node| {
            let de = tree::de::NodeDe { node: &node, report: &report, field: "" };
            Field::<File>::deserialize(de).unwrap_or_default()
        })
        .unwrap_or_default();
    let context =
        Context { report: &report, path: Arc::new(path.to_path_buf()), directory: parent(path) };
    let fragment = match file.get() {
        Some(file) => validate::fragment(file, &context),
        None => Fragment::default(),
    };
    (fragment, report.into_faults())
}

/// Puts the old `Arc`s of what is still the same in the place of the new ones.
fn keep_unchanged(fragment: &mut Fragment, old: &CachedFile) {
    let fresh = old.fragment.services.iter().map(|(service, _)| service);
    let by_name: HashMap<&str, &Arc<model::Service>> =
        old.spare.iter().chain(fresh).map(|service| (service.name.as_str(), service)).collect();
    for (service, _) in &mut fragment.services {
        if let Some(same) = by_name.get(service.name.as_str()).filter(|old| **old == service) {
            *service = Arc::clone(same);
        }
    }
    for entry in &mut fragment.lists {
        let ListBody::Inline(list) = &mut entry.body else {
            continue;
        };
        let same = old.fragment.lists.iter().find_map(|old| match &old.body {
            ListBody::Inline(old) if is_same_list(old, list) => Some(old),
            _ => None,
        });
        if let Some(same) = same {
            *list = Arc::clone(same);
        }
    }
}

/// Whether two lists are the same but for their line. Lists may be large: one that only moved within
/// its document is not worth being compiled again, so it keeps the line where it stood first.
fn is_same_list(one: &model::PrefixList, other: &model::PrefixList) -> bool {
    one.name == other.name
        && one.action == other.action
        && one.scope == other.scope
        && one.force == other.force
        && same_file(&one.source, &other.source)
        && one.prefixes == other.prefixes
}

fn same_file(one: &model::Source, other: &model::Source) -> bool {
    match (one, other) {
        (model::Source::File { path: one, .. }, model::Source::File { path: other, .. }) => {
            one == other
        }
        _ => one == other,
    }
}

/// The directory a path stands in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| model::Node::default().name)
}
