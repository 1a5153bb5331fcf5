//! A change that is taken back by itself unless somebody confirms it: `STATE/unconfirmed.json`.
//!
//! Kept on disk before the change is in force, so that it is taken back also when the daemon, or the
//! machine, restarts meanwhile. Later changes win: what they touch is not taken back.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Change;
use crate::store::{StoreError, io_error, sync};

const NAME: &str = "unconfirmed.json";
const UNFINISHED: &str = "unconfirmed.new";

/// A change that waits for confirmation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// When it is taken back; milliseconds since 1970.
    pub until: u64,
    /// How long it waits in all, in milliseconds: never longer than that from a restart, whatever the
    /// clock says.
    pub patience: u64,
    /// What was changed, for people.
    pub what: String,
    /// What takes it back, in order.
    pub undo: Vec<Change>,
}

impl Pending {
    /// How long it still waits, `now` milliseconds after 1970.
    #[must_use]
    pub fn left(&self, now: u64) -> Duration {
        Duration::from_millis(self.until.saturating_sub(now).min(self.patience))
    }

    /// Leaves out what later changes have touched; whether there was any of it.
    pub fn overtaken(&mut self, changes: &[Change]) -> bool {
        let mut entries: HashSet<(&str, IpNet)> = HashSet::new();
        let (mut set, mut deleted, mut used) = (HashSet::new(), HashSet::new(), HashSet::new());
        for change in changes {
            let list: &str = change.list();
            match change {
                Change::Add { cidr, .. } => {
                    entries.insert((list, *cidr));
                    used.insert(list);
                }
                Change::Remove { cidr, .. } => drop(entries.insert((list, *cidr))),
                Change::Make { .. } | Change::Set { .. } => {
                    set.insert(list);
                    used.insert(list);
                }
                Change::Delete { .. } => drop(deleted.insert(list)),
            }
        }
        let before = self.undo.len();
        self.undo.retain(|undo| {
            let list: &str = undo.list();
            let touched = match undo {
                Change::Add { cidr, .. } | Change::Remove { cidr, .. } => {
                    entries.contains(&(list, *cidr))
                }
                Change::Make { .. } | Change::Set { .. } => set.contains(list),
                Change::Delete { .. } => used.contains(list),
            };
            !touched && !deleted.contains(list)
        });
        self.undo.len() != before
    }
}

/// Where it is kept.
#[derive(Debug)]
pub struct Slot(PathBuf);

impl Slot {
    /// Reads what waits in a state directory, which exists.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn open(state: &Path) -> Result<(Self, Option<Pending>), StoreError> {
        let path = state.join(NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Self(path), None)),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let pending = serde_json::from_slice(&bytes).map_err(|error| StoreError::Corrupt {
            path: path.clone(),
            fault: error.to_string(),
        })?;
        Ok((Self(path), Some(pending)))
    }

    /// Keeps it, or that there is none.
    ///
    /// # Errors
    /// What was kept before still is.
    pub fn keep(&self, pending: Option<&Pending>) -> Result<(), StoreError> {
        let Self(path) = self;
        let write = || {
            let Some(pending) = pending else {
                return match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                };
            };
            let beside = path.with_file_name(UNFINISHED);
            let mut file = File::create(&beside)?;
            file.write_all(&serde_json::to_vec(pending)?)?;
            file.sync_all()?;
            fs::rename(&beside, path)
        };
        write().map_err(io_error("write", path))?;
        path.parent().map_or(Ok(()), sync)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Lists, *};

    fn add(list: &str, cidr: &str) -> Change {
        let cidr = cidr.parse().unwrap();
        Change::Add { list: list.into(), cidr, added: 1, until: None, reason: None }
    }

    fn pending(undo: Vec<Change>) -> Pending {
        Pending { until: 70_000, patience: 60_000, what: "test".to_owned(), undo }
    }

    fn left(lists: &Lists) -> Vec<String> {
        lists.iter().flat_map(|(_, list)| list.entries().keys().map(ToString::to_string)).collect()
    }

    #[test]
    fn what_later_changes_touch_is_not_taken_back() {
        let mut lists = Lists::default();
        let (_, undo) = lists.apply(&[add("l", "192.0.2.1/32"), add("l", "192.0.2.2/32")]);
        let mut waits = pending(undo);
        let later = [add("l", "192.0.2.2/32"), add("l", "192.0.2.3/32")];
        lists.apply(&later);
        assert!(waits.overtaken(&later));
        assert!(!waits.overtaken(&later), "nothing of it is left");
        lists.apply(&waits.undo);
        assert_eq!(left(&lists), ["192.0.2.2/32", "192.0.2.3/32"]);

        let mut waits = pending(vec![add("l", "192.0.2.1/32"), add("m", "192.0.2.1/32")]);
        assert!(waits.overtaken(&[Change::Delete { list: "l".into() }]));
        assert_eq!(waits.undo, [add("m", "192.0.2.1/32")]);
    }

    #[test]
    fn it_is_kept_over_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let (slot, none) = Slot::open(state.path()).unwrap();
        assert_eq!(none, None);
        let waits = pending(vec![add("l", "192.0.2.1/32")]);
        slot.keep(Some(&waits)).unwrap();
        let (slot, kept) = Slot::open(state.path()).unwrap();
        assert_eq!(kept.as_ref(), Some(&waits));
        slot.keep(None).unwrap();
        slot.keep(None).unwrap();
        assert_eq!(Slot::open(state.path()).unwrap().1, None);

        assert_eq!(waits.left(20_000), Duration::from_secs(50));
        assert_eq!(waits.left(90_000), Duration::ZERO);
        assert_eq!(waits.left(0), Duration::from_secs(60), "the clock was set back");
    }
}
