//! The lists of the API on disk: `STATE/lists.jsonl`, a change per line.
//!
//! A change is appended and synchronised before it is answered. A line without its end was cut short by
//! a crash, so nobody was told that it is kept: it is cut off. Anything else that cannot be read is an
//! error, and stays. When most lines are history, the file is written anew beside its place and renamed
//! over it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Change, Lists, about, again};
use crate::store::{StoreError, io_error, sync};
use config::model::ListAction;

const NAME: &str = "lists.jsonl";
/// Suffix of a file that is not whole yet.
const UNFINISHED: &str = "lists.new";
/// Lines beyond twice the entries that make a new file worth it.
const HISTORY: usize = 50_000;

/// The file, open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    lines: usize,
    /// Length of what is kept: where a line that could not be written is cut off.
    kept: u64,
}

impl Journal {
    /// Reads the lists of a state directory, which exists. Entries that ended before `now` are left out.
    ///
    /// # Errors
    ///
    /// The file cannot be read or written, or holds something else.
    pub fn open(state: &Path, now: u64) -> Result<(Self, Lists), StoreError> {
        let path = state.join(NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let mut lists = Lists::default();
        let whole = bytes.iter().rposition(|c| *c == b'\n').map_or(0, |end| end + 1);
        let mut changes = Vec::new();
        for (n, line) in bytes[..whole].split_inclusive(|c| *c == b'\n').enumerate() {
            let change: Change = serde_json::from_slice(line).map_err(|error| {
                let fault = format!("line {}: {error}", n + 1);
                StoreError::Corrupt { path: path.clone(), fault }
            })?;
            changes.push(change);
        }
        let lines = changes.len();
        lists.apply(&changes);
        lists.apply(&lists.ended(now));
        let open = OpenOptions::new().append(true).create(true).open(&path);
        let file = open.map_err(io_error("open", &path))?;
        sync(state)?;
        if whole < bytes.len() {
            tracing::warn!(path = %path.display(), "a change was cut short by a crash; it is not kept");
            file.set_len(whole as u64).map_err(io_error("write", &path))?;
        }
        let mut journal = Self { path, file, lines, kept: whole as u64 };
        journal.renew_if_worth_it(&lists)?;
        Ok((journal, lists))
    }

    /// Keeps changes.
    ///
    /// # Errors
    ///
    /// None of them is kept.
    pub fn append(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let mut text = Vec::new();
        for change in changes {
            line(&mut text, change);
        }
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // What half a line there may be must not come before the next one.
            let cut = self.file.set_len(self.kept);
            return Err(io_error("write", &self.path)(cut.err().unwrap_or(error)));
        }
        self.kept += text.len() as u64;
        self.lines += changes.len();
        Ok(())
    }

    /// Writes the file anew when most of it is history; `lists` is what it says.
    ///
    /// # Errors
    ///
    /// The file before stays.
    pub fn renew_if_worth_it(&mut self, lists: &Lists) -> Result<(), StoreError> {
        if self.lines > 2 * lists.len() + HISTORY { self.renew(lists) } else { Ok(()) }
    }

    fn renew(&mut self, lists: &Lists) -> Result<(), StoreError> {
        let mut text = Vec::new();
        let mut lines = 0;
        for (name, list) in lists.iter() {
            if !list.scope().is_all() {
                line(&mut text, &about(name, list.scope().clone()));
                lines += 1;
            }
            let audit = list.action() == ListAction::Audit;
            line(&mut text, &Change::Set { list: Arc::clone(name), audit });
            for (&cidr, ban) in list.entries() {
                line(&mut text, &again(name, cidr, ban.clone()));
            }
            lines += 1 + list.entries().len();
        }
        let beside = self.path.with_file_name(UNFINISHED);
        let write = || {
            let mut file = OpenOptions::new().create(true).append(true).open(&beside)?;
            file.set_len(0)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&beside, &self.path)?;
            Ok(file)
        };
        // From the rename on the new file is the one to append to, whatever comes of the rest.
        self.file = write().map_err(io_error("write", &self.path))?;
        (self.lines, self.kept) = (lines, text.len() as u64);
        self.path.parent().map_or(Ok(()), sync)
    }
}

fn line(text: &mut Vec<u8>, change: &Change) {
    serde_json::to_writer(&mut *text, change).expect("names, numbers and prefixes are JSON");
    text.push(b'\n');
}

#[cfg(test)]
mod tests {
    use config::model::Scope;

    use super::*;

    fn add(cidr: &str, until: Option<u64>) -> Change {
        let (list, reason) = ("f".into(), Some("ssh".into()));
        Change::Add { list, cidr: cidr.parse().unwrap(), added: 1, until, reason }
    }

    fn nets(lists: &Lists) -> Vec<String> {
        lists.iter().flat_map(|(_, l)| l.entries().keys().map(ToString::to_string)).collect()
    }

    #[test]
    fn changes_are_there_after_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let (mut journal, lists) = Journal::open(state.path(), 0).unwrap();
        assert!(lists.is_empty());
        journal.append(&[add("192.0.2.1/32", None), add("192.0.2.2/32", Some(9))]).unwrap();
        journal.append(&[add("2001:db8::/48", Some(20))]).unwrap();
        drop(journal);
        let (_, lists) = Journal::open(state.path(), 10).unwrap();
        assert_eq!(nets(&lists), ["192.0.2.1/32", "2001:db8::/48"], "the one that ended is gone");
        let ban = &lists.get("f").unwrap().entries()[&"2001:db8::/48".parse().unwrap()];
        assert_eq!((ban.until, ban.reason.as_deref()), (Some(20), Some("ssh")));
    }

    #[test]
    fn scopes_are_there_after_a_restart_and_in_a_new_file() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(NAME);
        // As it was written before lists had scopes.
        let old = "{\"op\":\"add\",\"list\":\"old\",\"cidr\":\"192.0.2.1/32\",\"added\":1}\n\
                   {\"op\":\"set\",\"list\":\"old\",\"audit\":true}\n";
        fs::write(&path, old).unwrap();
        let (mut journal, lists) = Journal::open(state.path(), 0).unwrap();
        let list = lists.get("old").unwrap();
        assert!(list.scope().is_all() && list.action() == ListAction::Audit);

        let scope = Scope {
            interfaces: vec!["eth0".to_owned()],
            destination: true,
            protocol: Some(config::model::ScopeProtocol::Udp),
            ports: vec![(53, 53), (5000, 5010)],
        };
        let make = Change::Make { list: "f".into(), scope: Some(scope.clone()), audit: Some(true) };
        journal.append(&[make, add("192.0.2.1/32", None)]).unwrap();
        for _ in 0..2 {
            let (mut journal, lists) = Journal::open(state.path(), 0).unwrap();
            let list = lists.get("f").unwrap();
            assert_eq!((list.scope(), list.action()), (&scope, ListAction::Audit));
            assert_eq!(nets(&lists), ["192.0.2.1/32", "192.0.2.1/32"]);
            journal.renew(&lists).unwrap();
        }
        assert!(fs::read_to_string(&path).unwrap().starts_with("{\"op\":\"make\",\"list\":\"f\""));
    }

    #[test]
    fn half_a_line_is_cut_off_and_anything_else_is_an_error() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(NAME);
        let (mut journal, _) = Journal::open(state.path(), 0).unwrap();
        journal.append(&[add("192.0.2.1/32", None)]).unwrap();
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"op\":\"add\",\"list\":\"f\",\"ci");
        fs::write(&path, &text).unwrap();
        let (mut journal, _) = Journal::open(state.path(), 0).unwrap();
        journal.append(&[add("192.0.2.2/32", None)]).unwrap();
        let (_, lists) = Journal::open(state.path(), 0).unwrap();
        assert_eq!(nets(&lists), ["192.0.2.1/32", "192.0.2.2/32"]);

        fs::write(&path, "{\"op\":\"add\",\"list\":\"f\",\"cidr\":\"no\",\"added\":1}\n").unwrap();
        let error = Journal::open(state.path(), 0).unwrap_err().to_string();
        assert!(error.contains("lists.jsonl: line 1: "), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn history_is_dropped() {
        let state = tempfile::tempdir().unwrap();
        let (mut journal, mut lists) = Journal::open(state.path(), 0).unwrap();
        let changes: Vec<Change> =
            (0..HISTORY as u64 + 10).map(|n| add("192.0.2.1/32", Some(n))).collect();
        lists.apply(&changes);
        journal.append(&changes).unwrap();
        journal.renew_if_worth_it(&lists).unwrap();
        journal.append(&[add("192.0.2.2/32", None)]).unwrap();
        let text = fs::read_to_string(state.path().join(NAME)).unwrap();
        assert_eq!(text.lines().count(), 3);
        let (_, lists) = Journal::open(state.path(), 0).unwrap();
        assert_eq!(nets(&lists), ["192.0.2.1/32", "192.0.2.2/32"]);
    }
}
