//! Blocklists of the API: changed by commands, and by the end of entries.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use abi::limits::MAX_LISTS;

use super::{Failure, Owner, sources};
use crate::{
    bans::{Change, Done, MAX_ENTRIES},
    command::Refusal,
    datapath::Op,
    plan::prefixes::Prefixes,
};

/// The clock on the wall may be set meanwhile: an end that is further away is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Rows of the prefix sets that may wait to be used again: waiting for programs to leave them takes
/// longer than a ban should.
const MAX_WAITING: usize = 1024;

impl Owner {
    /// In force first, then kept, then answered: a ban should not wait for the disk. One that is taken back
    /// unless it is confirmed is noted first of all.
    pub(super) fn change_lists(
        &mut self,
        changes: &[Change],
        confirm: Option<Duration>,
    ) -> Result<Done, Refusal> {
        self.admit_lists(changes)?;
        if confirm.is_some()
            && let Some(pending) = &self.parts.pending
        {
            let message = format!(
                "another change waits for confirmation ({}); `lbctl prefilter confirm` or `rollback` first",
                pending.what
            );
            return Err(Refusal::Conflict { field: "confirm".to_owned(), message });
        }
        self.put_lists(changes, confirm)
    }

    pub(super) fn put_lists(
        &mut self,
        changes: &[Change],
        confirm: Option<Duration>,
    ) -> Result<Done, Refusal> {
        let (done, undo) = self.parts.lists.apply(changes);
        if undo.is_empty() {
            return Ok(done);
        }
        let noted = self.note_pending(changes, &undo, confirm);
        let kept = noted.and_then(|()| match self.enforce_lists() {
            Ok(()) => tokio::task::block_in_place(|| self.parts.journal.append(changes))
                .map_err(|error| error.to_string()),
            Err(failure) => {
                self.fail(&failure);
                Err(failure.to_string())
            }
        });
        if let Err(why) = kept {
            self.parts.lists.apply(&undo);
            if let Err(failure) = self.enforce_lists() {
                self.fail(&failure);
            }
            if confirm.is_some() {
                self.forget_pending();
            }
            return Err(Refusal::Apply(why));
        }
        self.tidy();
        self.reconsider();
        self.publish();
        Ok(done)
    }

    fn admit_lists(&self, changes: &[Change]) -> Result<(), Refusal> {
        let lists = self.parts.lists.read();
        let of_files = &self.parts.files.prefilter.lists;
        let mut seen = BTreeSet::new();
        let mut more = 0;
        for change in changes {
            more += usize::from(matches!(change, Change::Add { .. }));
            let name = change.list();
            if let (Change::Make { scope, audit, .. }, Some(there)) = (change, lists.get(name)) {
                there.admits(scope.as_ref(), *audit)?;
            }
            if !seen.insert(name) {
                continue;
            }
            if let Some(list) = of_files.iter().find(|list| *list.name == **name) {
                let origin = sources::origin(&list.source);
                return Err(Refusal::ReadOnly { name: name.to_string(), origin });
            }
            let needs = matches!(change, Change::Remove { .. } | Change::Delete { .. });
            if needs && lists.get(name).is_none() {
                return Err(Refusal::NotFound { kind: "list", name: name.to_string() });
            }
        }
        let all = of_files.len() + lists.iter().count();
        let new = seen.iter().filter(|name| lists.get(name).is_none()).count();
        let conflict = |message| Err(Refusal::Conflict { field: String::new(), message });
        if all + new > MAX_LISTS as usize {
            return conflict(format!("there are {all} lists, and {MAX_LISTS} at most"));
        }
        if more + lists.len() > MAX_ENTRIES {
            let message = format!(
                "lists of the API have {} entries, and {MAX_ENTRIES} at most; put large lists into files",
                lists.len()
            );
            return conflict(message);
        }
        Ok(())
    }

    /// Tells lists that are about some interfaces which of these there are.
    pub(super) fn note_interfaces(&mut self) {
        let links = self.parts.links.snapshot();
        let names = links.values().map(|link| (link.name.clone(), link.index)).collect();
        let ops = self.prefixes.set_interfaces(names);
        if let Err(error) = self.parts.kernel.apply(&ops) {
            // Noticed at the next change of interfaces or files at the latest.
            tracing::error!("lists for some interfaces: {}", crate::refusal::chain(&error));
        }
    }

    /// Puts the lists in force, and only them where nothing else waits to be.
    fn enforce_lists(&mut self) -> Result<(), Failure> {
        let noticed = Instant::now();
        let prefilter = self.parts.lists.read().behind(&self.parts.files.prefilter);
        Arc::make_mut(&mut self.wanted).prefilter = prefilter;
        if self.retry.is_some() || self.parts.kernel.tables().capacity().lines == 0 {
            return self.enforce(noticed);
        }
        match self.put_prefixes() {
            Ok(()) => {}
            Err(Failure::Full(_)) => return self.enforce(noticed),
            Err(failure) => return Err(failure),
        }
        let next = self.parts.kernel.tables().control().generation() + 1;
        self.parts.kernel.apply(&[Op::Generation(next)])?;
        self.last_apply = Some(noticed.elapsed());
        self.last_success = Some(SystemTime::now());
        if self.prefixes.waiting() > MAX_WAITING {
            self.release();
        }
        Ok(())
    }

    /// Stores what makes the wanted lists stand in the tables. Where stores find no place among the gaps that earlier
    /// ones left, a new half has none of these.
    pub(super) fn put_prefixes(&mut self) -> Result<(), Failure> {
        let ops = self.prefixes.plan(&self.wanted.prefilter, self.parts.kernel.tables())?;
        match self.parts.kernel.apply(&ops) {
            Err(error) if error.source.raw_os_error() == Some(libc::ENOSPC) => {}
            done => return Ok(done?),
        }
        let tables = self.parts.kernel.tables();
        let names = self.wanted.prefilter.lists.iter().map(|list| list.name.as_str());
        let before = std::mem::take(&mut self.prefixes);
        self.prefixes = Prefixes::adopt(tables, names).keep_compiled(before);
        let ops = self.prefixes.plan(&self.wanted.prefilter, tables)?;
        Ok(self.parts.kernel.apply(&ops)?)
    }

    /// When an entry ends next, or it is time to look again.
    pub(super) fn next_end(&self) -> Option<Instant> {
        let until = Duration::from_millis(self.parts.lists.read().next_end()?);
        Some(Instant::now() + until.saturating_sub(now()).min(LOOK_AGAIN))
    }

    /// Takes off what has ended. The journal needs no note of it: it has the end.
    pub(super) fn end_entries(&mut self) {
        let ended = self.parts.lists.read().ended(now().as_millis() as u64);
        if ended.is_empty() {
            return;
        }
        tracing::debug!(entries = ended.len(), "entries of lists have ended");
        self.parts.lists.apply(&ended);
        if let Err(failure) = self.enforce_lists() {
            self.fail(&failure);
        }
        self.tidy();
        self.publish();
    }

    fn tidy(&mut self) {
        let lists = self.parts.lists.read();
        let journal = &mut self.parts.journal;
        if let Err(error) = tokio::task::block_in_place(|| journal.renew_if_worth_it(&lists)) {
            // The old one goes on; what is appended is kept.
            tracing::warn!(%error, "cannot write the file of lists anew");
        }
    }
}

pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
