//! How blocklists look in the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Source, origin, rfc3339};
use crate::{
    fetch::Progress,
    view::{self, Counters, View},
};

/// A blocklist in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrefixList {
    /// Unique name.
    pub name: String,
    /// Who it came from.
    pub source: Source,
    /// File with line and column, or the Kubernetes object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// `drop`, or `audit`: count and let pass.
    pub action: String,
    /// Which packets it is about: direction, protocol, ports, interfaces. Absent: all from its addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// IPv4 prefixes.
    pub prefixes_v4: u64,
    /// IPv6 prefixes.
    pub prefixes_v6: u64,
    /// Lines of its file that were left out because they are no prefixes.
    pub skipped_lines: u64,
    /// Packets whose source is in it.
    pub hits: u64,
    /// Their bytes.
    pub hit_bytes: u64,
    /// How fetching it goes, if it is fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch: Option<Fetch>,
}

/// How fetching a list goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fetch {
    /// Where it is fetched from, without the query, which may hold a token.
    pub url: String,
    /// `ok`, `failing` (the last good copy is in force) or `pending` (there is no copy yet).
    pub state: String,
    /// When what is in force was fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<String>,
    /// When the server last sent or confirmed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<String>,
    /// When it was last asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_attempt: Option<String>,
    /// When it will be asked next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<String>,
    /// Failures since the last success.
    pub failures: u32,
    /// The last failure, if it is not mended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Size of the copy.
    pub bytes: u64,
    /// The server's tag of the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// What the publisher says in comments at the top: source, date, licence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attribution: Vec<String>,
}

/// Blocklists, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrefilterStatus {
    /// Lists.
    pub lists: u32,
    /// IPv4 prefixes of all lists.
    pub prefixes_v4: u64,
    /// IPv6 prefixes of all lists.
    pub prefixes_v6: u64,
    /// Hits of all lists.
    pub hits: u64,
    /// Lists that cannot be fetched at the moment, each with the reason. What was fetched before stays in
    /// force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<String>,
    /// A change that is taken back unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed: Option<Unconfirmed>,
}

/// A change that is taken back unless it is confirmed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unconfirmed {
    /// What was changed.
    pub what: String,
    /// When it is taken back.
    pub until: String,
}

impl PrefixList {
    /// A list as of now.
    #[must_use]
    pub fn of(list: &view::ListView, view: &View, counters: &dyn Counters) -> Self {
        let hits = counters.list(list.row);
        let fetch = source_url(list, view).map(|url| {
            let progress = view.fetches.get(&list.name).unwrap_or_default();
            Fetch::of(url, progress)
        });
        Self {
            name: list.name.clone(),
            source: Source::from(&list.source),
            origin: origin(&list.source),
            action: list.action.as_str().to_owned(),
            scope: Some(list.scope.clone()).filter(|scope| !scope.is_empty()),
            prefixes_v4: list.prefixes_v4,
            prefixes_v6: list.prefixes_v6,
            skipped_lines: list.skipped_lines,
            hits: hits.packets,
            hit_bytes: hits.bytes,
            fetch,
        }
    }
}

/// Where a list, or what is on it, is fetched from.
fn source_url(list: &view::ListView, view: &View) -> Option<String> {
    let of_bouncer = || view.prefilter.crowdsec.iter().find(|c| c.list == list.name);
    let remote = list.remote.as_ref().map(|remote| remote.shown_url());
    remote.or_else(|| of_bouncer().map(|bouncer| bouncer.url.clone()))
}

impl Fetch {
    fn of(url: String, progress: Progress) -> Self {
        let Progress {
            fetched,
            success,
            attempt,
            next,
            failures,
            error,
            bytes,
            etag,
            attribution,
            ..
        } = progress;
        let state = match (failures, fetched) {
            (1.., _) => "failing",
            (0, Some(_)) => "ok",
            (0, None) => "pending",
        };
        Self {
            url,
            state: state.to_owned(),
            fetched: fetched.map(rfc3339),
            last_success: success.map(rfc3339),
            last_attempt: attempt.map(rfc3339),
            next_attempt: next.map(rfc3339),
            failures,
            error,
            bytes,
            etag,
            attribution,
        }
    }
}

impl PrefilterStatus {
    /// All lists together, as of now.
    #[must_use]
    pub fn of(view: &View, counters: &dyn Counters) -> Self {
        let waits = view.unconfirmed.as_ref();
        let waits = waits.map(|w| Unconfirmed { what: w.what.clone(), until: rfc3339(w.until) });
        let mut status = Self { unconfirmed: waits, ..Self::default() };
        for list in &view.lists {
            status.lists += 1;
            status.prefixes_v4 += list.prefixes_v4;
            status.prefixes_v6 += list.prefixes_v6;
            status.hits += counters.list(list.row).packets;
        }
        let remote = view.lists.iter().filter(|list| list.remote.is_some()).map(|l| &l.name);
        let pulled = view.prefilter.crowdsec.iter().map(|bouncer| &bouncer.list);
        for list in remote.chain(pulled) {
            let progress = view.fetches.get(list);
            let Some(Progress { error: Some(error), success, .. }) = progress else { continue };
            let since = match success {
                Some(at) => format!("what came at {} is in force", rfc3339(at)),
                None => "nothing was ever fetched".to_owned(),
            };
            status.failing.push(format!("list {list}: {error}; {since}"));
        }
        status
    }
}
