//! Copies of fetched lists on disk: the body as it came, and beside it where it came from and how
//! fetching went. Whole or not there: both are written beside and renamed, the body first.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// What is known of a list beside its body. Times are seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Record {
    /// When the body came.
    pub(crate) fetched: Option<u64>,
    /// When the server last confirmed it, or sent it.
    pub(crate) success: Option<u64>,
    /// When it was last asked.
    pub(crate) attempt: Option<u64>,
    /// Failures since the last success.
    pub(crate) failures: u32,
    /// How long the server asked to be left alone, in seconds.
    pub(crate) retry_after: Option<u64>,
    /// The last failure, if it is not mended.
    pub(crate) error: Option<String>,
    /// Header of the answer that the body came in.
    pub(crate) etag: Option<String>,
    /// Likewise.
    pub(crate) last_modified: Option<String>,
    /// Size of the body.
    pub(crate) bytes: u64,
    /// Comments of the publisher.
    pub(crate) attribution: Vec<String>,
}

/// The directory of copies.
#[derive(Clone, Debug)]
pub(crate) struct Copies(PathBuf);

impl Copies {
    /// Uses this directory, and makes it if need be.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self(directory.to_path_buf()))
    }

    /// What is known of a copy. One whose body is not as long as it was has no validators: it will be
    /// fetched whole.
    pub(crate) fn record(&self, copy: &str) -> Record {
        let text = fs::read(self.about(copy)).unwrap_or_default();
        let mut record: Record = serde_json::from_slice(&text).unwrap_or_default();
        let there = fs::metadata(self.0.join(copy)).is_ok_and(|m| m.len() == record.bytes);
        if !there {
            (record.etag, record.last_modified) = (None, None);
        }
        record
    }

    /// Puts a body in the place of the one before.
    pub(crate) fn write_body(&self, copy: &str, body: &[u8]) -> io::Result<()> {
        self.write(&self.0.join(copy), body)
    }

    /// Keeps what is known of a copy.
    pub(crate) fn write_record(&self, copy: &str, record: &Record) -> io::Result<()> {
        self.write(&self.about(copy), &serde_json::to_vec_pretty(record)?)
    }

    fn about(&self, copy: &str) -> PathBuf {
        self.0.join(format!("{copy}.json"))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let beside = path.with_added_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(&self.0)?.sync_all()
    }

    /// Removes the copies of all other lists.
    pub(crate) fn retain(&self, wanted: &BTreeSet<String>) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            let copy = name.trim_end_matches(".new").trim_end_matches(".json");
            if !wanted.contains(copy) {
                fs::remove_file(self.0.join(&*name))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_is_damaged_has_no_validators() {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(&dir.path().join("lists")).unwrap();
        let record = Record { etag: Some("\"1\"".into()), bytes: 3, ..Record::default() };
        copies.write_body("a-1", b"abc").unwrap();
        copies.write_record("a-1", &record).unwrap();
        assert_eq!(copies.record("a-1"), record);
        copies.write_body("a-1", b"ab").unwrap();
        assert_eq!(copies.record("a-1"), Record { etag: None, ..record });

        copies.write_body("b-1", b"").unwrap();
        copies.retain(&BTreeSet::from(["a-1".to_owned()])).unwrap();
        let left = fs::read_dir(dir.path().join("lists")).unwrap().count();
        assert_eq!(left, 2, "body and record of a-1");
    }
}
