//! What the files say: put in force as a whole, or refused and tried again.

use std::{sync::Arc, time::Instant};

use config::model::DesiredState;

use super::{Owner, sources};
use crate::{
    app::{notify, synproxy},
    command::Offered,
    guard::{self, Protected, host, standing},
};

impl Owner {
    pub(super) fn take_files(&mut self, files: Arc<DesiredState>, noticed: Instant) {
        notify::reloading();
        self.pause = None;
        self.offer(files, noticed);
        self.publish();
        notify::ready();
    }

    /// Puts files in force as a whole, or leaves what is in force and notes why.
    pub(super) fn offer(&mut self, files: Arc<DesiredState>, noticed: Instant) {
        let merged = {
            let lists = self.parts.lists.read();
            sources::merge(&files, &self.parts.set(&lists))
        };
        let done = merged.and_then(|wanted| {
            self.refuse(&files, &wanted)?;
            sources::warn_skipped(&wanted, &self.wanted);
            let done = self.enforce_or_restore(wanted, noticed);
            done.map_err(|failure| vec![format!("could not be put in force: {failure}")])
        });
        let Err(faults) = done else {
            self.parts.files = files;
            self.refused = None;
            self.faults.clear();
            self.pause = None;
            self.warn_of_what_cuts_off();
            return;
        };
        for fault in faults.iter().filter(|fault| !self.faults.contains(*fault)) {
            tracing::error!("the configuration is not put in force: {fault}");
        }
        self.faults = faults;
        self.refused = Some(files);
    }

    /// Whether a state of these files may be put in force.
    fn refuse(&self, files: &Arc<DesiredState>, wanted: &DesiredState) -> Result<(), Vec<String>> {
        self.refuse_to_cut_off(files, wanted)?;
        if wanted.prefilter.syn_proxy != self.wanted.prefilter.syn_proxy {
            synproxy::check(&wanted.prefilter.syn_proxy).map_err(|no| vec![no.to_string()])?;
        }
        self.refuse_to_lock_out(wanted)
    }

    /// What these files would put in force, and what is; changes nothing.
    pub(super) fn offered(&self, mut files: DesiredState) -> Offered {
        keep_fetched(&mut files, &self.wanted);
        let files = Arc::new(files);
        let (after, mut refused) = {
            let lists = self.parts.lists.read();
            sources::merge_what_fits(&files, &self.parts.set(&lists))
        };
        if let Err(faults) = self.refuse(&files, &after) {
            refused.extend(faults);
        }
        Offered { before: Arc::clone(&self.wanted), after, refused }
    }

    /// Lists of files that would newly drop packets from what this machine needs, or from itself.
    fn refuse_to_cut_off(
        &self,
        files: &Arc<DesiredState>,
        wanted: &DesiredState,
    ) -> Result<(), Vec<String>> {
        if Arc::ptr_eq(&files.prefilter, &self.parts.files.prefilter) {
            return Ok(());
        }
        let mut protected = Protected::clone(&self.parts.guard.around());
        protected.add_backends(wanted.services.values());
        let covered = protected.cut_off(&self.wanted.prefilter, &wanted.prefilter);
        if covered.is_empty() {
            return Ok(());
        }
        Err(vec![format!(
            "lists would cut off what this machine needs: {}; put it under `allow`, or, if it is meant, set \
             `force: true` in the list",
            guard::listed(&covered)
        )])
    }

    /// Lists that are in force and cut off what this machine needs: at a start there is no state that could stay, and
    /// what was dropped before is not refused. `lbctl status` looks for itself.
    pub(super) fn warn_of_what_cuts_off(&self) {
        let mut protected = Protected::clone(&self.parts.guard.around());
        protected.add_backends(self.wanted.services.values());
        for warning in standing::cutting_off(&protected, &self.wanted.prefilter) {
            tracing::warn!("{warning}");
        }
    }

    /// Rules about this machine that would newly deny what it needs.
    fn refuse_to_lock_out(&self, wanted: &DesiredState) -> Result<(), Vec<String>> {
        let needs = self.denied_on_host(&self.wanted, wanted, None);
        if needs.is_empty() {
            return Ok(());
        }
        Err(vec![format!(
            "the host firewall would deny {}; allow it, or, if it is meant, set `force: true` under `host_firewall`",
            host::listed(&needs)
        )])
    }

    /// At a start there may be nobody to ask: rules about this machine that deny what it needs are in audit, and
    /// the files are said to be refused, until they are mended.
    pub(super) fn audit_what_cuts_off(&mut self) {
        let open = DesiredState { host_firewall: None, ..DesiredState::clone(&self.wanted) };
        let needs = self.denied_on_host(&open, &self.wanted, None);
        if needs.is_empty() {
            return;
        }
        let fault = format!(
            "the host firewall is in audit, as it would deny {}; allow it, or, if it is meant, set `force: true` \
             under `host_firewall`",
            host::listed(&needs)
        );
        tracing::error!("{fault}");
        self.faults.push(fault);
        self.refused = Some(Arc::clone(&self.parts.files));
        for state in [&mut self.parts.files, &mut self.wanted] {
            if let Some(firewall) = &mut Arc::make_mut(state).host_firewall {
                Arc::make_mut(firewall).audit = true;
            }
        }
    }

    /// Refused files may contradict less than they did.
    pub(super) fn reconsider(&mut self) {
        if self.refused.is_some() {
            self.retry = Some(Instant::now());
        }
    }
}

/// Gives lists that are fetched what they have now, where they are fetched from the same place.
fn keep_fetched(files: &mut DesiredState, in_force: &DesiredState) {
    for list in &mut Arc::make_mut(&mut files.prefilter).lists {
        let Some(remote) = &list.remote else { continue };
        let same = in_force.prefilter.lists.iter().find(|old| {
            old.name == list.name && old.remote.as_ref().is_some_and(|old| old.url == remote.url)
        });
        if let Some(same) = same {
            Arc::make_mut(list).prefixes = same.prefixes.clone();
        }
    }
}
