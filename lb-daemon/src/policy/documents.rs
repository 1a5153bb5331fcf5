//! Documents of rules and endpoints that were set through the API, kept on disk.
//! Documents stay as they came.
//!
//! `STATE/policies/NAME.rules` holds a document. It is read again by the importer, so that a later
//! version reads what it then understands.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use config::{
    model::{Endpoint, Source},
    policy::{Rule, import},
};

use crate::store::{Folder, StoreError};

/// Rules of the API by the name of their document.
pub type Rules = BTreeMap<String, Arc<Vec<Rule>>>;

/// The directory.
#[derive(Debug)]
pub struct Documents(Folder);

impl Documents {
    /// Makes the directory if it is missing, and reads every document.
    ///
    /// # Errors
    /// It cannot be made or read, or holds something that is no document of rules.
    pub fn open(state: &Path) -> Result<(Self, Rules), StoreError> {
        let folder = Folder::open(state, "policies", "rules")?;
        let all = folder.load(|name, text| {
            let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
            let rules = import(Path::new(name), text).map_err(|faults| {
                faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            })?;
            Ok(Arc::new(of_api(rules)))
        })?;
        Ok((Self(folder), all.into_iter().collect()))
    }

    /// Keeps a document, in the place of one of the same name.
    ///
    /// # Errors
    /// It may not be kept.
    pub fn put(&self, name: &str, text: &str) -> Result<(), StoreError> {
        self.0.put(name, text.as_bytes())
    }

    /// Forgets a document.
    ///
    /// # Errors
    /// It may not be forgotten, or was not there.
    pub fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.0.delete(name)
    }
}

/// Endpoints of the API, by name.
pub type ApiEndpoints = BTreeMap<String, Arc<Endpoint>>;

/// `STATE/endpoints/NAME.json`: an endpoint that was set through the API.
#[derive(Debug)]
pub struct EndpointStore(Folder);

impl EndpointStore {
    /// Makes the directory if it is missing, and reads every endpoint.
    ///
    /// # Errors
    /// It cannot be made or read, or holds something that is no endpoint.
    pub fn open(state: &Path) -> Result<(Self, ApiEndpoints), StoreError> {
        let folder = Folder::open(state, "endpoints", "json")?;
        let all = folder.load(|name, text| {
            let read = config::parse_endpoint_json(name, text);
            read.map(Arc::new).map_err(|faults| {
                let print = |f: &config::FieldFault| format!("{}: {}", f.field, f.message);
                faults.iter().map(print).collect::<Vec<_>>().join("; ")
            })
        })?;
        Ok((Self(folder), all.into_iter().collect()))
    }

    /// Keeps an endpoint, in the place of one of the same name.
    ///
    /// # Errors
    /// It may not be kept.
    pub fn put(&self, endpoint: &Endpoint) -> Result<(), StoreError> {
        let mut text = config::endpoint_to_json(endpoint).to_string();
        text.push('\n');
        self.0.put(&endpoint.name, text.as_bytes())
    }

    /// Forgets an endpoint.
    ///
    /// # Errors
    /// It may not be forgotten, or was not there.
    pub fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.0.delete(name)
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
    use std::fs;

    use super::*;

    #[test]
    fn endpoints_are_there_after_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let body = br#"{"labels": {"id": "a"}, "addresses": ["10.0.0.1"], "interface": "veth-a",
            "audit": true, "enforcement": "always", "ports": [{"name": "http", "port": 80}]}"#;
        let endpoint = config::parse_endpoint_json("a", body).unwrap();
        let (store, none) = EndpointStore::open(state.path()).unwrap();
        assert!(none.is_empty());
        store.put(&endpoint).unwrap();
        let (store, all) = EndpointStore::open(state.path()).unwrap();
        assert_eq!(*all["a"], endpoint);
        store.delete("a").unwrap();
        assert!(EndpointStore::open(state.path()).unwrap().1.is_empty());
        let faults = config::parse_endpoint_json("a", br#"{"interface": 1, "adresses": []}"#);
        let fields: Vec<String> = faults.unwrap_err().into_iter().map(|f| f.field).collect();
        assert!(fields.contains(&"adresses".to_owned()), "{fields:?}");
    }

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
