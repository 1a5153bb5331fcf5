//! Identity policy: put in force with everything else, and documents of rules that the API sets.

use std::{sync::Arc, time::Instant};

use config::{model::DesiredState, policy::Rule};

use super::{Failure, Owner};
use crate::{
    command::Refusal,
    policy::documents::{Rules, of_api},
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
        self.change_policies(all)?;
        if let Err(error) = self.parts.documents.put(document, text) {
            self.undo_policies();
            return Err(Refusal::Apply(error.to_string()));
        }
        self.keep_policies();
        Ok(())
    }

    pub(super) fn delete_policies(&mut self, document: &str) -> Result<(), Refusal> {
        let mut all = self.parts.rules.clone();
        if all.remove(document).is_none() {
            return Err(Refusal::NotFound { kind: "policy document", name: document.to_owned() });
        }
        self.change_policies(all)?;
        if let Err(error) = self.parts.documents.delete(document) {
            self.undo_policies();
            return Err(Refusal::Apply(error.to_string()));
        }
        self.keep_policies();
        Ok(())
    }

    /// Puts these rules in force; those before stay known until they are kept.
    fn change_policies(&mut self, all: Rules) -> Result<(), Refusal> {
        put(&mut self.wanted, merged(&self.parts.files, &all));
        self.next_rules = Some(all);
        if let Err(failure) = self.enforce(Instant::now()) {
            self.undo_policies();
            return Err(Refusal::Apply(failure.to_string()));
        }
        Ok(())
    }

    fn undo_policies(&mut self) {
        self.next_rules = None;
        put(&mut self.wanted, merged(&self.parts.files, &self.parts.rules));
        if let Err(failure) = self.enforce(Instant::now()) {
            self.fail(&failure);
        }
    }

    fn keep_policies(&mut self) {
        if let Some(all) = self.next_rules.take() {
            self.parts.rules = all;
        }
        self.publish();
    }
}

/// Gives a state these rules.
pub(in super::super) fn put(state: &mut Arc<DesiredState>, rules: Arc<Vec<Rule>>) {
    if !Arc::ptr_eq(&state.policies, &rules) {
        Arc::make_mut(state).policies = rules;
    }
}

/// Rules of files, then those of documents in the order of their names.
pub(in super::super) fn merged(files: &DesiredState, api: &Rules) -> Arc<Vec<Rule>> {
    if api.is_empty() {
        return Arc::clone(&files.policies);
    }
    let all = files.policies.iter().chain(api.values().flat_map(|rules| rules.iter()));
    Arc::new(all.cloned().collect())
}
