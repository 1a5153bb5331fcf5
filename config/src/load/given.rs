//! Documents and files that are handed over rather than read from the disk.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::read::{Seen, Unreadable, read_if_changed};

/// A configuration that is handed over: a loader of it reads nothing else.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The documents, by path.
    pub documents: BTreeMap<PathBuf, Vec<u8>>,
    /// Files that documents name: lists and tables, by path.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
}

/// Where files are read from.
#[derive(Clone, Debug, Default)]
pub(super) enum Files {
    /// The disk.
    #[default]
    Disk,
    /// What was handed over.
    Given(Arc<Given>),
}

impl Files {
    /// As [`read_if_changed`].
    pub(super) fn read_if_changed(
        &self,
        path: &Path,
        seen: Option<&mut Seen>,
        max_bytes: u64,
    ) -> Result<Option<(Vec<u8>, Seen)>, Unreadable> {
        let Self::Given(given) = self else { return read_if_changed(path, seen, max_bytes) };
        let bytes = given.documents.get(path).or_else(|| given.files.get(path));
        match bytes {
            // Loaded once.
            Some(bytes) => Ok(Some((bytes.clone(), Seen::nothing()))),
            None => Err(Unreadable {
                message: format!("{} was not handed over", path.display()),
                help: "hand it over under the path that the document gives it".to_owned(),
            }),
        }
    }

    /// The files that were handed over of one directory; `None`: they are on the disk.
    pub(super) fn given_in(&self, directory: &Path) -> Option<impl Iterator<Item = &Path>> {
        let Self::Given(given) = self else { return None };
        let within = move |path: &&Path| path.parent() == Some(directory);
        Some(given.files.keys().map(PathBuf::as_path).filter(within))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::{Given, Loader};

    #[test]
    fn what_was_used_is_all_that_is_needed() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::create_dir(at("lists")).unwrap();
        fs::write(at("lists/a.txt"), "192.0.2.0/24\n").unwrap();
        fs::write(at("lists/.hidden"), "no list\n").unwrap();
        fs::write(at("b.txt"), "198.51.100.1\n").unwrap();
        let text = "prefilter:\n  lists:\n  - {name: d, directory: lists}\n  - {name: b, file: b.txt}\n  \
                    - {name: far, url: \"https://example.org/l\"}\n";
        fs::write(at("lb.yaml"), text).unwrap();
        fs::write(at("other.yaml"), "node: {name: n}\n").unwrap();
        let mut loader = Loader::new(place.path());
        let loaded = loader.load().unwrap();
        let used = loader.used().unwrap();
        assert_eq!((used.documents.len(), used.files.len()), (2, 2));
        drop(place);
        let again = Loader::of(used.clone()).load().unwrap();
        assert_eq!(again.prefilter.lists, loaded.prefilter.lists);
        assert_eq!(again.node, loaded.node);

        // Nothing is read from the disk: what is not there is a fault.
        let mut less = used;
        less.files.clear();
        less.documents.insert(
            "/x.yaml".into(),
            b"prefilter: {lists: [{name: p, file: /etc/passwd}]}".to_vec(),
        );
        let faults = Loader::of(less).load().unwrap_err();
        assert!(
            faults.iter().any(|fault| fault.message == "/etc/passwd was not handed over"),
            "{faults:?}"
        );
        assert!(Loader::of(Given::default()).load().is_ok());
    }
}
