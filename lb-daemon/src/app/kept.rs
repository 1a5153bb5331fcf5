//! What the state directory holds: all that the API has set.

use std::{
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;

use super::sources::{self, ApiServices};
use crate::{
    bans::{
        self,
        journal::Journal,
        pending::{Pending, Slot},
    },
    policy::{
        documents::{ApiEndpoints, Documents, EndpointStore, Rules},
        names::{self, Names},
    },
    store::Store,
};

/// Read at the start; each part beside the place where it is kept.
pub(super) struct Kept {
    pub(super) store: Store,
    pub(super) api: ApiServices,
    pub(super) journal: Journal,
    pub(super) lists: bans::Lists,
    pub(super) slot: Slot,
    pub(super) pending: Option<Pending>,
    pub(super) documents: Documents,
    pub(super) rules: Rules,
    pub(super) endpoint_store: EndpointStore,
    pub(super) endpoints: ApiEndpoints,
    pub(super) names_kept: names::Kept,
    pub(super) names: Names,
}

impl Kept {
    /// Reads it; `directory` is there, and nobody else's.
    ///
    /// # Errors
    /// What cannot be read.
    pub(super) fn open(directory: &Path) -> anyhow::Result<Self> {
        let state = "the state directory";
        let store = Store::open(directory).context(state)?;
        let api = store.load().context(state)?;
        let api = api.into_iter().map(|s| (s.name.clone(), Arc::new(s))).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (journal, lists) = Journal::open(directory, now.as_millis() as u64)?;
        let (slot, pending) = Slot::open(directory).context(state)?;
        let (documents, rules) = Documents::open(directory).context(state)?;
        let (endpoint_store, endpoints) = EndpointStore::open(directory).context(state)?;
        let (names_kept, names) = names::Kept::open(directory).context(state)?;
        let kept = Self {
            store,
            api,
            journal,
            lists,
            slot,
            pending,
            documents,
            rules,
            endpoint_store,
            endpoints,
            names_kept,
            names,
        };
        Ok(kept)
    }

    /// As a source of what is wanted.
    pub(super) fn set(&self) -> sources::Api<'_> {
        let Self { api, lists, rules, endpoints, .. } = self;
        sources::Api { services: api, lists, rules, endpoints }
    }
}
