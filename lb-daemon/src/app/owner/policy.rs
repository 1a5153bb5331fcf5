//! Identity policy: put in force with everything else, and documents of rules that the API sets.

use std::{sync::Arc, time::Instant};

use config::{model::Endpoint, policy::Rule};

use super::{
    Failure, Owner,
    sources::{self, Api},
};
use crate::{
    command::Refusal,
    policy::documents::{ApiEndpoints, Documents, EndpointStore, Rules, of_api},
    store::StoreError,
};

impl Owner {
    /// Puts policy in force on the interfaces that there are now.
    pub(super) fn enforce_policy(&mut self) -> Result<(), Failure> {
        let links = self.parts.links.snapshot();
        let local = self.parts.links.local_addresses();
        Ok(self.policy.enforce(&self.wanted, &links, &local)?)
    }

    /// After a change of interfaces or addresses.
    pub(super) fn follow_policy(&mut self) {
        if let Err(failure) = self.enforce_policy() {
            self.fail(&failure);
        }
    }

    pub(super) fn put_policies(
        &mut self,
        document: &str,
        text: &str,
        rules: Vec<Rule>,
    ) -> Result<(), Refusal> {
        let mut all = self.parts.rules.clone();
        all.insert(document.to_owned(), Arc::new(of_api(rules)));
        self.change_policies(all, |documents| documents.put(document, text))
    }

    pub(super) fn delete_policies(&mut self, document: &str) -> Result<(), Refusal> {
        let mut all = self.parts.rules.clone();
        if all.remove(document).is_none() {
            return Err(Refusal::NotFound { kind: "policy document", name: document.to_owned() });
        }
        self.change_policies(all, |documents| documents.delete(document))
    }

    pub(super) fn put_endpoint(&mut self, endpoint: &Arc<Endpoint>) -> Result<(), Refusal> {
        sources::admit_endpoint(endpoint, &self.parts.files, &self.parts.endpoints)?;
        let mut all = self.parts.endpoints.clone();
        all.insert(endpoint.name.clone(), Arc::clone(endpoint));
        self.change_endpoints(all, |store| store.put(endpoint))
    }

    pub(super) fn delete_endpoint(&mut self, name: &str) -> Result<(), Refusal> {
        let mut all = self.parts.endpoints.clone();
        if all.remove(name).is_none() {
            return Err(match self.parts.files.endpoints.get(name) {
                Some(of_file) => Refusal::ReadOnly {
                    name: name.to_owned(),
                    origin: sources::origin(&of_file.source),
                },
                None => Refusal::NotFound { kind: "endpoint", name: name.to_owned() },
            });
        }
        self.change_endpoints(all, |store| store.delete(name))
    }

    /// As [`Self::change_policies`].
    fn change_endpoints(
        &mut self,
        all: ApiEndpoints,
        keep: impl FnOnce(&EndpointStore) -> Result<(), StoreError>,
    ) -> Result<(), Refusal> {
        let wanted = {
            let lists = self.parts.lists.read();
            let set = Api { endpoints: &all, ..self.parts.set(&lists) };
            sources::merge_what_fits(&self.parts.files, &set).0
        };
        let before = Arc::clone(&self.wanted);
        let refused = |failure: Failure| Refusal::Apply(failure.to_string());
        self.enforce_or_restore(wanted, Instant::now()).map_err(refused)?;
        if let Err(error) = keep(&self.parts.endpoint_store) {
            self.enforce_or_restore(before, Instant::now()).map_err(refused)?;
            return Err(Refusal::Apply(error.to_string()));
        }
        self.parts.endpoints = all;
        self.reconsider();
        self.publish();
        Ok(())
    }

    /// In force first, then kept: rules that could not be kept are taken back.
    fn change_policies(
        &mut self,
        all: Rules,
        keep: impl FnOnce(&Documents) -> Result<(), StoreError>,
    ) -> Result<(), Refusal> {
        let wanted = {
            let lists = self.parts.lists.read();
            let set = Api { rules: &all, ..self.parts.set(&lists) };
            sources::merge_what_fits(&self.parts.files, &set).0
        };
        let before = Arc::clone(&self.wanted);
        let refused = |failure: Failure| Refusal::Apply(failure.to_string());
        self.enforce_or_restore(wanted, Instant::now()).map_err(refused)?;
        if let Err(error) = keep(&self.parts.documents) {
            self.enforce_or_restore(before, Instant::now()).map_err(refused)?;
            return Err(Refusal::Apply(error.to_string()));
        }
        self.parts.rules = all;
        self.publish();
        Ok(())
    }
}
