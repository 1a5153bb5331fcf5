//! Changes of lists that are taken back unless they are confirmed.

use std::time::{Duration, Instant};

use super::{Owner, lists::now};
use crate::{
    bans::{Change, pending::Pending},
    command::Refusal,
};

/// The pause before taking back is tried again, when the kernel or the disk has refused it.
const AGAIN: Duration = Duration::from_secs(5);

impl Owner {
    /// After a start: what still waits goes on to.
    pub(super) fn await_confirmation(&mut self) {
        let Some(pending) = &self.parts.pending else { return };
        let left = pending.left(now().as_millis() as u64);
        tracing::warn!("taken back in {left:?} unless it is confirmed: {}", pending.what);
        self.roll_back_at = Some(Instant::now() + left);
    }

    /// Notes what takes a change back, or, of one that is for good, that it wins over what waits.
    pub(super) fn note_pending(
        &mut self,
        changes: &[Change],
        undo: &[Change],
        confirm: Option<Duration>,
    ) -> Result<(), String> {
        let mut pending = self.parts.pending.clone();
        match confirm {
            Some(patience) => {
                let patience_ms = patience.as_millis() as u64;
                pending = Some(Pending {
                    until: now().as_millis() as u64 + patience_ms,
                    patience: patience_ms,
                    what: what(changes),
                    undo: undo.to_vec(),
                });
                self.roll_back_at = Some(Instant::now() + patience);
            }
            None => {
                if !pending.as_mut().is_some_and(|pending| pending.overtaken(changes)) {
                    return Ok(());
                }
            }
        }
        let kept = tokio::task::block_in_place(|| self.parts.slot.keep(pending.as_ref()));
        kept.map_err(|error| error.to_string())?;
        self.parts.pending = pending;
        Ok(())
    }

    /// Nothing waits any more.
    pub(super) fn forget_pending(&mut self) {
        self.parts.pending = None;
        self.roll_back_at = None;
        if let Err(error) = tokio::task::block_in_place(|| self.parts.slot.keep(None)) {
            tracing::error!(%error, "a change that was confirmed may be taken back after a restart");
        }
    }

    /// Keeps the change that waits.
    pub(super) fn confirm_lists(&mut self) -> Result<(), Refusal> {
        let Some(pending) = &self.parts.pending else { return Err(Refusal::NothingWaits) };
        tracing::info!("confirmed: {}", pending.what);
        // On disk first: an answer that it stays must be true after a restart too.
        let kept = tokio::task::block_in_place(|| self.parts.slot.keep(None));
        kept.map_err(|error| Refusal::Apply(error.to_string()))?;
        (self.parts.pending, self.roll_back_at) = (None, None);
        self.publish();
        Ok(())
    }

    /// Takes the change back that waits.
    pub(super) fn roll_back_lists(&mut self) -> Result<(), Refusal> {
        self.roll_back_at = None;
        let Some(pending) = self.parts.pending.take() else { return Err(Refusal::NothingWaits) };
        if let Err(refusal) = self.put_lists(&pending.undo, None) {
            tracing::error!("cannot be taken back, trying again: {refusal}");
            self.parts.pending = Some(pending);
            self.roll_back_at = Some(Instant::now() + AGAIN);
            return Err(refusal);
        }
        tracing::warn!("taken back, as nobody confirmed it: {}", pending.what);
        self.forget_pending();
        self.publish();
        Ok(())
    }
}

fn what(changes: &[Change]) -> String {
    let list = changes.first().map(|change| change.list().to_string()).unwrap_or_default();
    match changes {
        [Change::Make { .. }, rest @ ..] if !rest.is_empty() => what(rest),
        [Change::Add { cidr, .. }] => format!("{cidr} on the list {list}"),
        [Change::Set { audit, .. }] => {
            format!("the list {list} set to {}", if *audit { "audit" } else { "drop" })
        }
        _ => format!("{} changes of the list {list}", changes.len()),
    }
}
