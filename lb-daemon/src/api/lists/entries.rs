//! Entries of a list: shown in pages or as text, put on it and taken off, one or a hundred thousand.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use config::model::{PrefixList as Compact, Scope};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Changed, Entries, Entry, ListSpec, NewEntry, body, export, list_name,
    safety::{Safety, Session},
    scope, with_ban,
};
use crate::{
    api::{
        ApiState,
        extract::{BulkBody, PathOf, QueryOf},
        problem::{FieldError, Kind, Problem},
    },
    bans::{Change, MAX_REASON},
    view::View,
};

/// Entries that a page of a list shows if nothing else is asked for.
const PAGE: usize = 1000;

/// Which entries are shown, and how.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct Page {
    /// At most so many entries; 1000 if it is not given. Without bound for `plain` and `nft`.
    limit: Option<usize>,
    /// Only those behind this prefix: `next` of the page before.
    #[param(value_type = Option<String>)]
    after: Option<IpNet>,
    /// `json`, `plain` (a prefix per line) or `nft` (sets, and a chain that does what the list does, for `nft -f`).
    format: Option<String>,
}

/// The entries of a list, in pages; or all of it as text.
#[utoipa::path(
    get, path = "/v1/prefilter/lists/{name}/entries", tag = "prefilter",
    params(("name" = String, Path, description = "Name of the list"), Page),
    responses(
        (status = 200, body = Entries),
        (status = 404, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(in crate::api) async fn list_entries(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
    QueryOf(page): QueryOf<Page>,
) -> Result<Response, Problem> {
    let Page { limit, after, format } = page;
    match format.as_deref() {
        None | Some("json") => {
            let read = move |view: &View, _: &dyn crate::view::Counters| {
                let list = compact(view, &name)?;
                Ok(entries(view, list, after, limit.unwrap_or(PAGE)))
            };
            let entries: Result<Entries, Problem> = state.read(read).await?;
            entries.map(|entries| Json(entries).into_response())
        }
        Some(format @ ("plain" | "nft")) => {
            let nft = format == "nft";
            let read = move |view: &View, _: &dyn crate::view::Counters| {
                let list = compact(view, &name)?;
                Ok(if nft { export::nft(list) } else { export::plain(list) })
            };
            let text: Result<String, Problem> = state.read(read).await?;
            let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
            text.map(|text| (kind, text).into_response())
        }
        Some(other) => {
            let message = format!("\"{other}\": allowed are json, plain and nft");
            Err(Problem::invalid("format", message))
        }
    }
}

/// What holds for every entry of a body that does not say otherwise, and how careful to be.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct Options {
    /// After how long they go by themselves, as `1h`.
    ttl: Option<String>,
    /// Why, for people.
    reason: Option<String>,
    /// What an entry that is wrong does: `reject` (the default) refuses the whole, `skip` leaves it out and
    /// reports it.
    on_error: Option<String>,
    /// Also if it cuts off this machine, its gateways, name servers, backends, or your own session.
    #[serde(default)]
    force: bool,
    /// Takes the change back after this time, as `60s`, unless it is confirmed.
    confirm: Option<String>,
    /// The list drops or audits packets of this protocol only: `tcp`, `udp`, `sctp` or `icmp`. This and the next
    /// three are of the list, and said when it is made; a list that is there must have the same, or none is said.
    protocol: Option<String>,
    /// To these ports only: ports and ranges with commas between them, as `80,8000-8999`.
    ports: Option<String>,
    /// That come in by these interfaces only, with commas between them.
    interfaces: Option<String>,
    /// `source` (the default): packets from its addresses; `destination`: packets to them.
    direction: Option<String>,
    /// What the list does, likewise: `drop` or `audit`.
    action: Option<String>,
}

/// [`Options`], read.
#[derive(Debug, Default)]
pub(super) struct Common {
    ttl: Option<Duration>,
    pub(super) reason: Option<Arc<str>>,
    skip: bool,
    /// Which packets the list is about.
    scope: Option<Scope>,
    /// Whether it only counts.
    audit: Option<bool>,
}

impl Options {
    fn read(self) -> Result<(Common, Safety), Problem> {
        let Self {
            ttl,
            reason,
            on_error,
            force,
            confirm,
            protocol,
            ports,
            interfaces,
            direction,
            action,
        } = self;
        let asked = scope::Asked { protocol, ports, interfaces, direction, action };
        let (scope, audit) = asked.read()?;
        let ttl = ttl.as_deref().map(config::parse_duration).transpose();
        if reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON) {
            return Err(Problem::invalid("reason", format!("longer than {MAX_REASON} bytes")));
        }
        let skip = match on_error.as_deref() {
            None | Some("reject") => false,
            Some("skip") => true,
            Some(other) => {
                let message = format!("\"{other}\": allowed are reject and skip");
                return Err(Problem::invalid("on_error", message));
            }
        };
        let common = Common {
            ttl: ttl.map_err(|message| Problem::invalid("ttl", message))?,
            reason: reason.map(Arc::from),
            skip,
            scope,
            audit,
        };
        Ok((common, Safety::read(force, confirm.as_deref())?))
    }
}

impl Common {
    /// When an entry of now was added and when it ends.
    pub(super) fn times(&self, now: SystemTime) -> (u64, Option<u64>) {
        times(now, self.ttl)
    }
}

fn times(now: SystemTime, ttl: Option<Duration>) -> (u64, Option<u64>) {
    let added = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    (added.as_millis() as u64, ttl.map(|ttl| (added + ttl).as_millis() as u64))
}

/// Puts prefixes on a list of the API, which is made if there is none. All or none, unless `on_error` is `skip`.
///
/// The body is an entry or an array of entries (`application/json`), an entry per line
/// (`application/x-ndjson`), or a list file in any of its forms (`text/plain`).
#[utoipa::path(
    post, path = "/v1/prefilter/lists/{name}/entries", tag = "prefilter",
    params(("name" = String, Path, description = "Name of the list"), Options),
    request_body = Vec<NewEntry>,
    responses(
        (status = 200, description = "In force and kept", body = Changed),
        (status = 409, description = "Comes from a file, is about other packets than these, or cuts \
            something off", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "Invalid; `errors` names the fields", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(in crate::api) async fn add_entries(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
    QueryOf(options): QueryOf<Options>,
    session: Session,
    body: BulkBody,
) -> Result<Json<Changed>, Problem> {
    let list = list_name(&name)?;
    let (common, safety) = options.read()?;
    let read = body::read(body, &list, &common, SystemTime::now()).await?;
    if read.wrong > 0 && !common.skip {
        return Err(refused(read));
    }
    let body::Read { mut changes, errors, wrong } = read;
    // A list with nothing on it would be a surprise.
    if !changes.is_empty()
        && let Some(make) = scope::make(&list, common.scope, common.audit)
    {
        changes.insert(0, make);
    }
    let changes = state.careful(changes, &safety, session).await?;
    let Json(done) = state.change(changes, safety.confirm).await?;
    Ok(Json(Changed { skipped: wrong, errors, ..done }))
}

/// Reads a body of which every entry must be right.
pub(super) async fn read_all(body: BulkBody, list: &Arc<str>) -> Result<Vec<Change>, Problem> {
    let read = body::read(body, list, &Common::default(), SystemTime::now()).await?;
    if read.wrong > 0 { Err(refused(read)) } else { Ok(read.changes) }
}

/// The refusal of a body in which something is wrong.
fn refused(body::Read { mut errors, wrong, .. }: body::Read) -> Problem {
    let unlisted = wrong - errors.len() as u64;
    if unlisted > 0 {
        errors.push(FieldError::new("", format!("{unlisted} more are wrong")));
    }
    Problem::with_fields(Kind::Invalid, errors)
}

/// Which entry.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct Which {
    /// The prefix, or an address.
    cidr: String,
}

/// Takes a prefix off a list of the API.
#[utoipa::path(
    delete, path = "/v1/prefilter/lists/{name}/entries", tag = "prefilter",
    params(("name" = String, Path, description = "Name of the list"), Which),
    responses(
        (status = 204, description = "Gone"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Comes from a file", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(in crate::api) async fn delete_entry(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
    QueryOf(which): QueryOf<Which>,
) -> Result<StatusCode, Problem> {
    let cidr =
        config::parse_prefix(&which.cidr).map_err(|message| Problem::invalid("cidr", message))?;
    let list: Arc<str> = name.into();
    let change = Change::Remove { list: Arc::clone(&list), cidr };
    let Json(done) = state.change(vec![change], None).await?;
    match done.removed {
        0 => {
            let detail = format!("{cidr} is not on the list \"{list}\"");
            Err(Problem::new(Kind::NotFound, detail))
        }
        _ => Ok(StatusCode::NO_CONTENT),
    }
}

/// What came of taking prefixes off a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// Those that are gone.
    #[schema(value_type = Vec<String>)]
    pub removed: Vec<IpNet>,
    /// Those that were not there.
    #[schema(value_type = Vec<String>)]
    pub missing: Vec<IpNet>,
}

/// Takes many prefixes off a list of the API at once, and says which were there. The body is as for adding.
#[utoipa::path(
    post, path = "/v1/prefilter/lists/{name}/remove", tag = "prefilter",
    params(("name" = String, Path, description = "Name of the list")),
    request_body = Vec<NewEntry>,
    responses(
        (status = 200, body = Removed),
        (status = 404, description = "No such list", body = Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "Comes from a file", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "Invalid; `errors` names the fields", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(in crate::api) async fn remove_entries(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
    body: BulkBody,
) -> Result<Json<Removed>, Problem> {
    let list = list_name(&name)?;
    let changes = read_all(body, &list).await?;
    let mut done = Removed::default();
    {
        let view = state.view();
        let bans = view.bans.read();
        let there = bans.get(&list);
        for cidr in changes.iter().filter_map(Change::added) {
            let is_there = there.is_some_and(|list| list.entries().contains_key(&cidr));
            if is_there { done.removed.push(cidr) } else { done.missing.push(cidr) }
        }
    }
    // Those that are missing too: the owner task says so if there is no such list, or it is a file's.
    let all = done.removed.iter().chain(&done.missing);
    let changes = all.map(|&cidr| Change::Remove { list: Arc::clone(&list), cidr }).collect();
    let Json(_) = state.change(changes, None).await?;
    Ok(Json(done))
}

fn entries(view: &View, list: &Compact, after: Option<IpNet>, limit: usize) -> Entries {
    let now = SystemTime::now();
    let all = &list.prefixes;
    let (v4, v6) = match after {
        None => (0, 0),
        Some(IpNet::V4(net)) => (all.v4().partition_point(|n| *n <= net.into()), 0),
        Some(IpNet::V6(net)) => (all.v4().len(), all.v6().partition_point(|n| *n <= net)),
    };
    let v4 = all.v4()[v4..].iter().map(|&net| IpNet::V4(net.into()));
    let v6 = all.v6()[v6..].iter().map(|&net| IpNet::V6(net));
    let mut nets = v4.chain(v6);
    let items: Vec<Entry> =
        nets.by_ref().take(limit).map(|net| with_ban(view, &list.name, net, now)).collect();
    let more = nets.next().is_some();
    let next = items.last().filter(|_| more).map(|entry| entry.cidr.to_string());
    Entries {
        items,
        total: all.len() as u64,
        next,
        action: Some(list.action.as_str().to_owned()),
        scope: scope_of(list),
        spec: Some(ListSpec::of(list)),
    }
}

/// Which packets a list is about, if not all.
pub(super) fn scope_of(list: &Compact) -> Option<String> {
    (!list.scope.is_all()).then(|| list.scope.to_string())
}

pub(super) fn new_entry(
    list: &Arc<str>,
    entry: NewEntry,
    common: &Common,
    now: SystemTime,
) -> Result<Change, (&'static str, String)> {
    let NewEntry { cidr, ttl, reason } = entry;
    let cidr = config::parse_prefix(&cidr).map_err(|message| ("cidr", message))?;
    let ttl = ttl.as_deref().map(config::parse_duration).transpose();
    let ttl = ttl.map_err(|message| ("ttl", message))?.or(common.ttl);
    if reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON) {
        return Err(("reason", format!("longer than {MAX_REASON} bytes")));
    }
    let (added, until) = times(now, ttl);
    let reason = reason.map(Arc::from).or_else(|| common.reason.clone());
    Ok(Change::Add { list: Arc::clone(list), cidr, added, until, reason })
}

fn compact<'v>(view: &'v View, name: &str) -> Result<&'v Compact, Problem> {
    let list = view.prefilter.lists.iter().find(|list| list.name == name);
    list.map(AsRef::as_ref).ok_or_else(|| Problem::not_found("list", name))
}
