//! Objects that were set through the API, kept on disk.
//!
//! A [`Folder`] holds a file for each object. It is written beside its place, synchronised, renamed over
//! it, and the directory is synchronised: after a power cut the old or the new object is there, whole.
//! Whatever is unreadable is an error and stays where it is: nothing that was accepted is dropped
//! silently. [`Store`] keeps services so, [`crate::policy::documents`] rules; `bans::journal` appends.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use config::model::Service;

/// Suffix of a file that is not whole yet.
const UNFINISHED: &str = "new";

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refuses.
    #[error("cannot {what} {}: {error}{}", path.display(), remedy(error))]
    Io {
        /// `read`, `write`...
        what: &'static str,
        /// What was touched.
        path: PathBuf,
        /// As told.
        error: io::Error,
    },
    /// A file holds something else than what was written.
    #[error("{}: {fault}; mend it, or move it away to start without this object", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; the daemon needs to own its --state directory",
        io::ErrorKind::StorageFull => "; make room on its file system",
        io::ErrorKind::ReadOnlyFilesystem => "; choose another --state directory",
        _ => "",
    }
}

/// An error of the operating system, for `map_err`.
pub(crate) fn io_error<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |error| StoreError::Io { what, path: path.to_owned(), error }
}

/// A directory with a file for each object. One process at a time may use it.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    suffix: &'static str,
}

impl Folder {
    /// Makes it in a state directory if it is missing, and removes what an earlier process left
    /// unfinished. `suffix`: of the files' names, after the objects' and a dot.
    ///
    /// # Errors
    ///
    /// It cannot be made or read.
    pub(crate) fn open(state: &Path, name: &str, suffix: &'static str) -> Result<Self, StoreError> {
        let path = state.join(name);
        fs::create_dir_all(&path).map_err(io_error("make", &path))?;
        for file in files(&path)? {
            if file.extension().is_some_and(|extension| extension == UNFINISHED) {
                fs::remove_file(&file).map_err(io_error("remove", &file))?;
            }
        }
        sync(state)?;
        Ok(Self { path, suffix })
    }

    /// Every object by name, as `parse` makes it of its name and text.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or `parse` says what is wrong with it.
    pub(crate) fn load<T>(
        &self,
        parse: impl Fn(&str, &[u8]) -> Result<T, String>,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let mut paths = files(&self.path)?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == self.suffix));
        paths.sort();
        let load = |path: PathBuf| {
            let text = fs::read(&path).map_err(io_error("read", &path))?;
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            match parse(name, &text) {
                Ok(object) => Ok((name.to_owned(), object)),
                Err(fault) => Err(StoreError::Corrupt { path, fault }),
            }
        };
        paths.into_iter().map(load).collect()
    }

    /// Keeps an object, in the place of one of the same name.
    ///
    /// # Errors
    ///
    /// It may not be kept.
    pub(crate) fn put(&self, name: &str, text: &[u8]) -> Result<(), StoreError> {
        let to = self.file(name, self.suffix);
        let unfinished = self.file(name, UNFINISHED);
        let written = write(&unfinished, text)
            .map_err(io_error("write", &unfinished))
            .and_then(|()| fs::rename(&unfinished, &to).map_err(io_error("write", &to)));
        if written.is_err() {
            // The error to tell is the first one; `open` removes what stays.
            let _ = fs::remove_file(&unfinished);
            return written;
        }
        sync(&self.path)
    }

    /// Forgets an object.
    ///
    /// # Errors
    ///
    /// It may not be forgotten, or was not there.
    pub(crate) fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.file(name, self.suffix);
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
        sync(&self.path)
    }

    /// Names are of letters, digits, `.`, `_`, `:` and `-` (`config` checks them).
    fn file(&self, name: &str, suffix: &str) -> PathBuf {
        self.path.join(format!("{name}.{suffix}"))
    }
}

fn write(path: &Path, body: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(body)?;
    file.sync_all()
}

/// A name that is new or changed is there after a power cut only once its directory is written.
pub(crate) fn sync(directory: &Path) -> Result<(), StoreError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(io_error("synchronise", directory))
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(io_error("read", directory))?;
    Ok(entries.into_iter().map(|entry| entry.path()).collect())
}

/// Services: `STATE/services/NAME.json`, as `GET` shows their specification.
#[derive(Debug)]
pub struct Store(Folder);

impl Store {
    /// As [`Folder::open`].
    ///
    /// # Errors
    ///
    /// The directory cannot be made or read.
    pub fn open(state: &Path) -> Result<Self, StoreError> {
        Folder::open(state, "services", "json").map(Self)
    }

    /// Every service, by name.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or is not a service of that name.
    pub fn load(&self) -> Result<Vec<Service>, StoreError> {
        let all = self.0.load(|name, body| {
            config::parse_service_json(name, body).map_err(|faults| {
                let print = |fault: &config::FieldFault| match fault.field.as_str() {
                    "" => fault.message.clone(),
                    field => format!("{field}: {}", fault.message),
                };
                faults.iter().map(print).collect::<Vec<_>>().join("; ")
            })
        })?;
        Ok(all.into_iter().map(|(_, service)| service).collect())
    }

    /// Keeps a service, in the place of one of the same name.
    ///
    /// # Errors
    ///
    /// It may not be kept.
    pub fn put_service(&self, service: &Service) -> Result<(), StoreError> {
        let mut body = config::service_to_json(service).to_string();
        body.push('\n');
        self.0.put(&service.name, body.as_bytes())
    }

    /// Forgets a service.
    ///
    /// # Errors
    ///
    /// It may not be forgotten, or was not there.
    pub fn delete_service(&self, name: &str) -> Result<(), StoreError> {
        self.0.delete(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, weight: u32) -> Service {
        let body = format!(
            r#"{{"address": "203.0.113.10", "ports": [{{"name": "a", "port": 80, "protocol": "tcp"}}],
                "forwarding": "l2",
                "backends": [{{"name": "b", "address": "10.0.0.1", "weight": {weight}}}]}}"#
        );
        config::parse_service_json(name, body.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_put_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(store.load().unwrap().is_empty());
        for (name, weight) in [("b", 1), ("a", 2), ("b", 3)] {
            store.put_service(&service(name, weight)).unwrap();
        }
        let again = Store::open(directory.path()).unwrap();
        assert_eq!(again.load().unwrap(), [service("a", 2), service("b", 3)]);
        again.delete_service("a").unwrap();
        assert_eq!(store.load().unwrap(), [service("b", 3)]);
    }

    #[test]
    fn an_unfinished_write_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.put_service(&service("a", 1)).unwrap();
        let unfinished = directory.path().join("services/a.new");
        fs::write(&unfinished, "{").unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(!unfinished.exists());
        assert_eq!(store.load().unwrap(), [service("a", 1)]);
    }

    #[test]
    fn a_damaged_file_is_named_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let path = directory.path().join("services/web.json");
        fs::write(&path, "{\"adress\": 1}").unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains("services/web.json") && error.contains("adress"), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn a_write_that_fails_leaves_what_was() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.put_service(&service("a", 1)).unwrap();
        // A directory where the new file would be written.
        fs::create_dir(directory.path().join("services/a.new")).unwrap();
        let error = store.put_service(&service("a", 2)).unwrap_err().to_string();
        assert!(error.starts_with("cannot write "), "{error}");
        assert_eq!(store.load().unwrap(), [service("a", 1)]);
    }
}
