//! Care with changes of lists: what one would cut off, refusing it unless it is meant, and changes that are
//! taken back by themselves unless they are confirmed.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{FromRequestParts, State},
    http::{StatusCode, request::Parts},
};
use config::{
    Net4, PrefixSet,
    model::{ListAction, PrefixList as Compact, Source},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{NewEntry, entries, list_name, scope::Asked};
use crate::{
    api::{
        ApiState,
        extract::{BulkBody, PathOf, QueryOf},
        model::origin,
        problem::{FieldError, Kind, Problem},
    },
    bans::Change,
    command::{Command, Refusal},
    events::Share,
    guard::{self, MAX_LISTED},
    view::{Counters, View},
};

/// Header in which a client says where its user is logged in from, if that is over the network.
pub const SESSION: &str = "lb-session";
/// How long a change may wait for its confirmation.
const CONFIRM: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);

/// Where the caller's user is logged in from, as the client says.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::api) struct Session(Option<IpAddr>);

impl Session {
    /// The address.
    pub(in crate::api) const fn address(self) -> Option<IpAddr> {
        self.0
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Session {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(value) = parts.headers.get(SESSION) else { return Ok(Self(None)) };
        let address = value.to_str().ok().and_then(|text| text.parse().ok());
        let wrong = || Problem::new(Kind::Malformed, format!("{SESSION} is not an IP address"));
        Ok(Self(Some(address.ok_or_else(wrong)?)))
    }
}

/// How careful to be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Safety {
    force: bool,
    /// After how long the change is taken back.
    pub(super) confirm: Option<Duration>,
}

impl Safety {
    pub(super) fn read(force: bool, confirm: Option<&str>) -> Result<Self, Problem> {
        let confirm = confirm.map(config::parse_duration).transpose();
        let confirm = confirm.map_err(|message| Problem::invalid("confirm", message))?;
        if confirm.is_some_and(|time| !CONFIRM.contains(&time)) {
            return Err(Problem::invalid("confirm", "allowed: 1s to 1h"));
        }
        Ok(Self { force, confirm })
    }
}

/// What a change of a list would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// The list.
    pub list: String,
    /// What it does: `drop` or `audit`.
    pub action: String,
    /// Which packets it is about: direction, protocol, ports, interfaces. Absent: all from its addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Prefixes that it has not yet.
    pub new: u64,
    /// Prefixes that it has already.
    pub known: u64,
    /// IPv4 addresses in the prefixes, each counted once.
    pub addresses_v4: u64,
    /// What would be cut off and should not be: at most 20.
    pub covered: Vec<Covered>,
    /// How many there are.
    pub covered_total: u64,
    /// Whether the change needs `force`.
    pub needs_force: bool,
    /// What passed in the last minute.
    pub passed_packets: u64,
    /// What of that the list would have dropped with these prefixes, or, with `audit`, counted; estimated from samples.
    pub would_drop_packets: u64,
    /// Between this and the next it is in 19 of 20 cases: equal where each packet was looked at.
    #[serde(default)]
    pub would_drop_least: u64,
    /// See `would_drop_least`.
    #[serde(default)]
    pub would_drop_most: u64,
    /// How many samples say so.
    pub samples: u64,
    /// The sources of that with most packets; at most 20.
    pub would_drop: Vec<WouldDrop>,
}

/// A source that would have been dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WouldDrop {
    /// Who.
    #[schema(value_type = String)]
    pub source: IpAddr,
    /// Packets in the last minute, estimated.
    pub packets: u64,
}

/// An address that would be cut off and should not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Covered {
    /// The address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Why it should not be.
    pub roles: Vec<String>,
    /// The longest prefix that covers it.
    #[schema(value_type = String)]
    pub prefix: IpNet,
}

impl From<&guard::Covered> for Covered {
    fn from(covered: &guard::Covered) -> Self {
        let guard::Covered { address, roles, prefix, list: _ } = covered;
        let roles = roles.iter().map(ToString::to_string).collect();
        Self { address: *address, roles, prefix: *prefix }
    }
}

/// What putting prefixes on a list would do; changes nothing. The body is as for adding, and so is the query, as far
/// as it is about the list.
#[utoipa::path(
    post, path = "/v1/prefilter/lists/{name}/plan", tag = "prefilter",
    params(("name" = String, Path, description = "Name of the list; it need not exist"), Asked),
    request_body = Vec<NewEntry>,
    responses(
        (status = 200, body = Plan),
        (status = 409, description = "The list is about other packets than these, or comes from a file", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "Invalid; `errors` names the fields", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(in crate::api) async fn plan(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
    QueryOf(asked): QueryOf<Asked>,
    session: Session,
    body: BulkBody,
) -> Result<Json<Plan>, Problem> {
    let list = list_name(&name)?;
    let (scope, audit) = asked.read()?;
    let changes = entries::read_all(body, &list).await?;
    let guard = state.guard.clone();
    let read = move |view: &View, _: &dyn Counters| {
        if let Some(there) = view.bans.read().get(&list) {
            there.admits(scope.as_ref(), audit)?;
        }
        let before = view.prefilter.lists.iter().find(|before| *before.name == *list);
        let names_any = scope.is_some() || audit.is_some();
        if let Some(of_file) = before.filter(|before| before.source != Source::Api && names_any) {
            let origin = origin(&of_file.source).unwrap_or_default();
            return Err(Refusal::ReadOnly { name: list.to_string(), origin }.into());
        }
        let there = before.map(|before| (before.action, before.scope.clone()));
        let (action, about) = there.unwrap_or_default();
        let action = match audit {
            None => action,
            Some(true) => ListAction::Audit,
            Some(false) => ListAction::Drop,
        };
        let about = scope.unwrap_or(about);
        let set = added(&changes);
        let is_known = |net: &IpNet| before.is_some_and(|list| list.prefixes.contains(*net));
        let known = set.iter().filter(is_known).count();
        let covered = match action {
            ListAction::Drop => guard.covered_within(view, (&list, &about), &set, session.0),
            ListAction::Audit => Vec::new(),
        };
        let traffic = view.samples.would_match(&set, &about, &view.prefilter.allow);
        let would_drop = |of: &Share<IpAddr>| WouldDrop { source: of.of, packets: of.packets };
        Ok(Plan {
            passed_packets: traffic.passed.packets,
            would_drop_packets: traffic.matched.packets,
            would_drop_least: *traffic.between.start(),
            would_drop_most: *traffic.between.end(),
            samples: traffic.passed.samples,
            would_drop: traffic.sources.iter().map(would_drop).collect(),
            list: list.to_string(),
            action: action.as_str().to_owned(),
            scope: (!about.is_all()).then(|| about.to_string()),
            new: (set.len() - known) as u64,
            known: known as u64,
            addresses_v4: addresses(&set),
            covered: covered.iter().take(MAX_LISTED).map(Covered::from).collect(),
            covered_total: covered.len() as u64,
            needs_force: !covered.is_empty(),
        })
    };
    let planned: Result<Plan, Problem> = state.read(read).await?;
    planned.map(Json)
}

/// Addresses of the IPv4 prefixes, each once: they are in order, and nest or are apart.
fn addresses(set: &PrefixSet) -> u64 {
    let (mut count, mut end) = (0, 0u64);
    for net in set.v4() {
        let (first, last) = (u64::from(Net4::first(*net)), u64::from(Net4::last(*net)) + 1);
        count += last.saturating_sub(first.max(end));
        end = end.max(last);
    }
    count
}

fn added(changes: &[Change]) -> PrefixSet {
    changes.iter().filter_map(Change::added).collect()
}

/// Keeps the change that waits for it.
#[utoipa::path(
    post, path = "/v1/prefilter/confirm", tag = "prefilter",
    responses(
        (status = 204, description = "The change stays"),
        (status = 404, description = "No change waits: it may have been taken back", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(in crate::api) async fn confirm(State(state): State<ApiState>) -> Result<StatusCode, Problem> {
    settle(&state, true).await
}

/// Takes back the change that waits for confirmation, now rather than when its time is over.
#[utoipa::path(
    post, path = "/v1/prefilter/rollback", tag = "prefilter",
    responses(
        (status = 204, description = "The change is taken back"),
        (status = 404, description = "No change waits", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(in crate::api) async fn rollback(State(state): State<ApiState>) -> Result<StatusCode, Problem> {
    settle(&state, false).await
}

async fn settle(state: &ApiState, keep: bool) -> Result<StatusCode, Problem> {
    state.command(|reply| Command::ConfirmLists { keep, reply }).await??;
    Ok(StatusCode::NO_CONTENT)
}

impl ApiState {
    /// Refuses changes that would cut off what should not be, unless that is meant.
    pub(super) async fn careful(
        &self,
        changes: Vec<Change>,
        safety: &Safety,
        session: Session,
    ) -> Result<Vec<Change>, Problem> {
        if safety.force {
            return Ok(changes);
        }
        let guard = self.guard.clone();
        let checked = self.read(move |view, _| {
            let covered = covered(&guard, view, &changes, session);
            if covered.is_empty() { Ok(changes) } else { Err(cuts_off(&covered)) }
        });
        checked.await?
    }
}

fn covered(
    guard: &guard::Guard,
    view: &View,
    changes: &[Change],
    Session(session): Session,
) -> Vec<guard::Covered> {
    let Some(list) = changes.first().map(Change::list) else { return Vec::new() };
    let bans = view.bans.read();
    let before = bans.get(list);
    let set = changes.iter().find_map(|change| match change {
        Change::Set { audit, .. } => Some(*audit),
        Change::Make { audit, .. } => *audit,
        _ => None,
    });
    let made = changes.iter().find_map(|change| match change {
        Change::Make { scope, .. } => scope.as_ref(),
        _ => None,
    });
    let audits = before.is_some_and(|list| list.action() == ListAction::Audit);
    let whole: Option<&Arc<Compact>> = match set {
        Some(false) if audits => view.prefilter.lists.iter().find(|l| *l.name == **list),
        _ => None,
    };
    drop(bans);
    if set.unwrap_or(audits) {
        return Vec::new();
    }
    let added = added(changes);
    let mut covered = match made {
        Some(scope) => guard.covered_within(view, (list, scope), &added, session),
        None => guard.covered(view, list, &added, session),
    };
    if let Some(whole) = whole {
        covered.extend(guard.covered(view, list, &whole.prefixes, session));
    }
    covered
}

fn cuts_off(covered: &[guard::Covered]) -> Problem {
    let mut errors: Vec<FieldError> = covered
        .iter()
        .take(MAX_LISTED)
        .map(|covered| FieldError::new("", format!("it would cut off {covered}")))
        .collect();
    if covered.len() > MAX_LISTED {
        let more = format!("and {} more addresses", covered.len() - MAX_LISTED);
        errors.push(FieldError::new("", more));
    }
    let remedy = "nothing was changed; put them under `allow`, or say that it is meant (force=true, --force)";
    errors.push(FieldError::new("", remedy));
    Problem::with_fields(Kind::CutsOff, errors)
}
