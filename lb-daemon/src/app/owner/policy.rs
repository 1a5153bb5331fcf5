//! Identity policy: put in force with everything else, and documents of rules that the API sets.

use std::{net::IpAddr, sync::Arc, time::Instant};

use config::{
    model::{DesiredState, Endpoint},
    policy::Rule,
};

use super::{
    Failure, Owner,
    sources::{self, Api},
};
use crate::{
    command::Refusal,
    guard::{Protected, Role, host},
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

    /// What this machine needs and the rules about it would newly deny, unless that is meant.
    pub(super) fn denied_on_host(
        &self,
        before: &DesiredState,
        after: &DesiredState,
        session: Option<IpAddr>,
    ) -> Vec<host::Need> {
        if after.host_firewall.as_ref().is_none_or(|firewall| firewall.force) {
            return Vec::new();
        }
        let (links, local) = (self.parts.links.snapshot(), self.parts.links.local_addresses());
        let [before, after_wanted] =
            [before, after].map(|state| self.policy.wish(state, &links, &local));
        let mut protected = Protected::clone(&self.parts.guard.around_now());
        if let Some(session) = session {
            protected.add(session, Role::Session);
        }
        host::denied(&before, &after_wanted, host::needs(&protected, after.services.values()))
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
        careful: Option<Option<IpAddr>>,
    ) -> Result<(), Refusal> {
        let mut all = self.parts.rules.clone();
        all.insert(document.to_owned(), Arc::new(of_api(rules)));
        self.change_policies(all, careful, |documents| documents.put(document, text))
    }

    pub(super) fn delete_policies(
        &mut self,
        document: &str,
        careful: Option<Option<IpAddr>>,
    ) -> Result<(), Refusal> {
        let mut all = self.parts.rules.clone();
        if all.remove(document).is_none() {
            return Err(Refusal::NotFound { kind: "policy document", name: document.to_owned() });
        }
        self.change_policies(all, careful, |documents| documents.delete(document))
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
        // Who has an address decides which rules are about it.
        let needs = self.denied_on_host(&self.wanted, &wanted, None);
        if !needs.is_empty() {
            return Err(Refusal::CutsOff(host::listed(&needs)));
        }
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

    /// In force first, then kept: rules that could not be kept are taken back. `careful`: they may not deny what
    /// this machine needs, nor the session from this address.
    fn change_policies(
        &mut self,
        all: Rules,
        careful: Option<Option<IpAddr>>,
        keep: impl FnOnce(&Documents) -> Result<(), StoreError>,
    ) -> Result<(), Refusal> {
        let wanted = {
            let lists = self.parts.lists.read();
            let set = Api { rules: &all, ..self.parts.set(&lists) };
            sources::merge_what_fits(&self.parts.files, &set).0
        };
        if let Some(session) = careful {
            let needs = self.denied_on_host(&self.wanted, &wanted, session);
            if !needs.is_empty() {
                return Err(Refusal::CutsOff(host::listed(&needs)));
            }
        }
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
