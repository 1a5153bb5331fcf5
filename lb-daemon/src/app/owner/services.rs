//! Services of the API: changed by commands, kept on disk.

use std::{sync::Arc, time::Instant};

use config::model::Service;

use super::{
    Owner,
    sources::{self, Api, ApiServices},
};
use crate::{
    command::Refusal,
    store::{Store, StoreError},
};

impl Owner {
    fn check_version(&self, name: &str, if_match: Option<u64>) -> Result<(), Refusal> {
        let actual = self.versions.get(name).map_or(0, |&(_, version)| version);
        match if_match {
            Some(expected) if expected != actual => Err(Refusal::Stale { expected, actual }),
            _ => Ok(()),
        }
    }

    pub(super) fn put_service(
        &mut self,
        service: &Arc<Service>,
        if_match: Option<u64>,
    ) -> Result<u64, Refusal> {
        self.check_version(&service.name, if_match)?;
        sources::admit(service, &self.parts.files, &self.parts.api)?;
        let name = service.name.clone();
        let mut api = self.parts.api.clone();
        api.insert(name.clone(), Arc::clone(service));
        self.change_api(api, |store| store.put_service(service))?;
        Ok(self.versions.get(&name).map_or(0, |&(_, version)| version))
    }

    pub(super) fn delete_service(
        &mut self,
        name: &str,
        if_match: Option<u64>,
    ) -> Result<(), Refusal> {
        // One of the API first: at a start a file's may have taken its place, and this is the way out.
        if !self.parts.api.contains_key(name) {
            return Err(match self.parts.files.services.get(name) {
                Some(of_file) => sources::read_only(of_file),
                None => Refusal::NotFound { kind: "service", name: name.to_owned() },
            });
        }
        self.check_version(name, if_match)?;
        let mut api = self.parts.api.clone();
        api.remove(name);
        self.change_api(api, |store| store.delete_service(name))
    }

    /// Stores first, so that nothing that was answered is lost; a change that cannot be put in force
    /// is taken back.
    fn change_api(
        &mut self,
        api: ApiServices,
        keep: impl FnOnce(&Store) -> Result<(), StoreError>,
    ) -> Result<(), Refusal> {
        // What contradicts the files since the start stays out; the change itself was admitted.
        let wanted = {
            let lists = self.parts.lists.read();
            let set = Api { services: &api, ..self.parts.set(&lists) };
            sources::merge_what_fits(&self.parts.files, &set).0
        };
        if let Err(error) = keep(&self.parts.store) {
            // It may stand there all the same, if only the last step failed.
            self.take_back(&api);
            return Err(Refusal::Apply(error.to_string()));
        }
        if let Err(failure) = self.enforce_or_restore(wanted, Instant::now()) {
            self.take_back(&api);
            return Err(Refusal::Apply(failure.to_string()));
        }
        self.parts.api = api;
        self.reconsider();
        self.publish();
        Ok(())
    }

    /// Stores the objects of the API as they are, after these were tried.
    fn take_back(&self, tried: &ApiServices) {
        let api = &self.parts.api;
        let gone = tried.keys().filter(|name| !api.contains_key(*name));
        let results = gone.map(|name| self.parts.store.delete_service(name)).chain(
            api.iter()
                .filter(|(name, service)| tried.get(*name) != Some(*service))
                .map(|(_, service)| self.parts.store.put_service(service)),
        );
        for error in results.filter_map(Result::err) {
            tracing::error!(%error, "the state directory holds a change that is not in force");
        }
    }
}
