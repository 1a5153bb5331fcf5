//! Documents of rules that were set through the API, kept on disk as they came.
//!
//! `STATE/policies/NAME.rules` holds a document. It is written as [`crate::store`] writes, and read again
//! by the importer, so that a later version reads what it then understands.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use config::{
    model::Source,
    policy::{Rule, import},
};

use crate::store::{StoreError, files, io_error, sync, write};

const SUFFIX: &str = "rules";
const UNFINISHED: &str = "new";

/// Rules of the API by the name of their document.
pub type Rules = BTreeMap<String, Arc<Vec<Rule>>>;

/// The directory.
#[derive(Debug)]
pub struct Documents {
    directory: PathBuf,
}

impl Documents {
    /// Makes the directory if it is missing, and reads every document.
    ///
    /// # Errors
    /// It cannot be made or read, or holds something that is no document of rules.
    pub fn open(state: &Path) -> Result<(Self, Rules), StoreError> {
        let directory = state.join("policies");
        fs::create_dir_all(&directory).map_err(io_error("make", &directory))?;
        let mut all = Rules::new();
        for path in files(&directory)? {
            let name =
                path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(UNFINISHED) => fs::remove_file(&path).map_err(io_error("remove", &path))?,
                Some(SUFFIX) => {
                    let text = fs::read_to_string(&path).map_err(io_error("read", &path))?;
                    let rules = import(Path::new(&name), &text).map_err(|faults| {
                        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                        StoreError::Corrupt { path: path.clone(), fault: faults.join("; ") }
                    })?;
                    all.insert(name, Arc::new(of_api(rules)));
                }
                _ => {}
            }
        }
        sync(state)?;
        Ok((Self { directory }, all))
    }

    /// Keeps a document, in the place of one of the same name.
    ///
    /// # Errors
    /// It is not kept; the one before is.
    pub fn put(&self, name: &str, text: &str) -> Result<(), StoreError> {
        let to = self.path(name, SUFFIX);
        let unfinished = self.path(name, UNFINISHED);
        write(&unfinished, text.as_bytes()).map_err(io_error("write", &unfinished))?;
        fs::rename(&unfinished, &to).map_err(io_error("write", &to))?;
        sync(&self.directory)
    }

    /// Forgets a document.
    ///
    /// # Errors
    /// It is not forgotten, or was not there.
    pub fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name, SUFFIX);
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
        sync(&self.directory)
    }

    fn path(&self, name: &str, suffix: &str) -> PathBuf {
        self.directory.join(format!("{name}.{suffix}"))
    }
}

/// The rules of a document, as the API's own.
#[must_use]
pub fn of_api(mut rules: Vec<Rule>) -> Vec<Rule> {
    for rule in &mut rules {
        rule.source = Source::Api;
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "[{\"endpointSelector\": {}, \"ingress\": [{}]}]";

    #[test]
    fn what_is_put_is_there_after_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let (documents, none) = Documents::open(state.path()).unwrap();
        assert!(none.is_empty());
        documents.put("b.json", RULES).unwrap();
        documents.put("a", RULES).unwrap();
        documents.put("a", &RULES.replace("ingress", "egress")).unwrap();
        fs::write(state.path().join("policies/c.new"), "{").unwrap();
        let (again, all) = Documents::open(state.path()).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b.json"]);
        assert!(all["a"][0].egress_default_deny && all["b.json"][0].ingress_default_deny);
        again.delete("a").unwrap();
        assert!(again.delete("a").is_err());
        assert_eq!(Documents::open(state.path()).unwrap().1.len(), 1);
    }

    #[test]
    fn a_damaged_document_is_named_and_stays() {
        let state = tempfile::tempdir().unwrap();
        let (documents, _) = Documents::open(state.path()).unwrap();
        documents.put("a", "[{}]").unwrap();
        let error = Documents::open(state.path()).unwrap_err().to_string();
        assert!(
            error.contains("policies/a.rules") && error.contains("endpointSelector"),
            "{error}"
        );
        assert!(state.path().join("policies/a.rules").exists());
    }
}
