//! Blocklists of the API: bans one by one and by the thousand, what is on a list, what an address meets.
//!
//! Reads the published view and the shared lists; a change is a command to the owner task. Lists of
//! files can be read here and not changed.

use std::{
    fmt::Write as _,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use config::model::PrefixList as Compact;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    ApiState,
    extract::{BulkBody, JsonBody, PathOf, QueryOf},
    model::{List, PrefixList, origin, rfc3339},
    problem::{FieldError, Kind, Problem},
    read::list,
};
use crate::{
    bans::{Ban, Change, Done, MAX_REASON},
    command::Command,
    fetch::NotNow,
    plan::prefixes::{self, Verdict},
    view::{Count, View},
};

#[cfg(test)]
mod tests;

/// Entries that a page of a list shows if nothing else is asked for.
const PAGE: usize = 1000;
/// What a list is called that nobody gave a name.
pub const DEFAULT_LIST: &str = "bans";

/// A prefix on a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// The prefix.
    #[schema(value_type = String, example = "192.0.2.7/32")]
    pub cidr: IpNet,
    /// When it was put there; not known of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added: Option<String>,
    /// When it goes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Seconds until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
    /// Why it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Some entries of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Entries {
    /// In the order of prefixes.
    pub items: Vec<Entry>,
    /// Entries of the whole list.
    pub total: u64,
    /// `after` of the next page, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A prefix to be put on a list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewEntry {
    /// A prefix without host bits, or an address.
    pub cidr: String,
    /// After how long it goes by itself, as `1h`; for good if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a list does.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ListSpec {
    /// `drop` or `audit`.
    pub action: String,
}

/// What a change of a list came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// Entries that are new.
    pub added: u64,
    /// Entries that were there and have another end or reason now.
    pub replaced: u64,
    /// Entries that are gone.
    pub removed: u64,
}

impl From<Done> for Changed {
    fn from(Done { added, replaced, removed }: Done) -> Self {
        Self { added: added as u64, replaced: replaced as u64, removed: removed as u64 }
    }
}

/// What the blocklists say about an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lookup {
    /// The address asked for.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// `pass`, `audit` or `drop`.
    pub verdict: String,
    /// The allow prefix because of which no list applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub allowed_by: Option<IpNet>,
    /// The list that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// Every list that holds the address.
    pub hits: Vec<LookupHit>,
}

/// A list that holds an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LookupHit {
    /// Its name.
    pub list: String,
    /// `drop` or `audit`.
    pub action: String,
    /// The longest of its prefixes that cover the address, as its entry.
    #[serde(flatten)]
    pub entry: Entry,
}

/// A list with its hits.
#[utoipa::path(
    get, path = "/v1/prefilter/lists/{name}", tag = "prefilter",
    params(("name" = String, Path, description = "Name of the list")),
    responses(
        (status = 200, body = PrefixList),
        (status = 404, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn get_list(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
) -> Result<Json<PrefixList>, Problem> {
    let find = move |view: &View, counters: &dyn crate::view::Counters| {
        let list = view.lists.iter().find(|list| list.name == name);
        list.map(|list| PrefixList::of(list, view, counters))
            .ok_or_else(|| Problem::not_found("list", &name))
    };
    state.read(find).await?.map(Json)
}

/// Makes a list of the API, or changes what it does.
#[utoipa::path(
    put, path = "/v1/prefilter/lists/{name}", tag = "prefilter",
    params(("name" = String, Path, description = "Name of the list")),
    request_body = ListSpec,
    responses(
        (status = 200, body = Changed),
        (status = 409, description = "Comes from a file", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "Invalid; `errors` names the fields", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn put_list(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
    JsonBody(body): JsonBody,
) -> Result<Json<Changed>, Problem> {
    let spec: ListSpec = typed(body)?;
    let audit = match spec.action.as_str() {
        "drop" => false,
        "audit" => true,
        other => {
            return Err(invalid("action", format!("\"{other}\": allowed are drop and audit")));
        }
    };
    state.change(vec![Change::Set { list: list_name(&name)?, audit }]).await
}

/// Deletes a list of the API with all its entries.
#[utoipa::path(
    delete, path = "/v1/prefilter/lists/{name}", tag = "prefilter",
    params(("name" = String, Path, description = "Name of the list")),
    responses(
        (status = 204, description = "Deleted"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Comes from a file", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete_list(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
) -> Result<StatusCode, Problem> {
    let Json(_) = state.change(vec![Change::Delete { list: name.into() }]).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has a list fetched now rather than when it is due.
#[utoipa::path(
    post, path = "/v1/prefilter/lists/{name}/refresh", tag = "prefilter",
    params(("name" = String, Path, description = "Name of the list")),
    responses(
        (status = 202, description = "Asked for; `fetch` of the list says what came of it"),
        (status = 404, description = "Not a list that is fetched", body = Problem,
            content_type = "application/problem+json"),
        (status = 429, description = "The server was asked a moment ago", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn refresh_list(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
) -> Result<StatusCode, Problem> {
    let asked = state.view().fetches.refresh(&name);
    asked.map(|()| StatusCode::ACCEPTED).map_err(|why| match &why {
        NotNow::NotFetched(_) => Problem::new(Kind::NotFound, why.to_string()),
        NotNow::TooSoon(_) => Problem::new(Kind::TooManyRequests, why.to_string()),
    })
}

/// Which entries are shown, and how.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// At most so many entries; 1000 if it is not given. Without bound for `plain` and `nft`.
    limit: Option<usize>,
    /// Only those behind this prefix: `next` of the page before.
    #[param(value_type = Option<String>)]
    after: Option<IpNet>,
    /// `json`, `plain` (a prefix per line) or `nft` (two sets for `nft -f`).
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
pub(super) async fn list_entries(
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
                Ok(if nft { as_nft(list) } else { as_plain(list) })
            };
            let text: Result<String, Problem> = state.read(read).await?;
            let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
            text.map(|text| (kind, text).into_response())
        }
        Some(other) => {
            let message = format!("\"{other}\": allowed are json, plain and nft");
            Err(invalid("format", message))
        }
    }
}

/// What holds for every entry of a body that does not say otherwise.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Defaults {
    /// After how long they go by themselves, as `1h`.
    ttl: Option<String>,
    /// Why, for people.
    reason: Option<String>,
}

/// Puts prefixes on a list of the API, which is made if there is none. All or none.
///
/// The body is an entry, an array of entries, or (as text/plain) a list file in any of its forms.
#[utoipa::path(
    post, path = "/v1/prefilter/lists/{name}/entries", tag = "prefilter",
    params(("name" = String, Path, description = "Name of the list"), Defaults),
    request_body = Vec<NewEntry>,
    responses(
        (status = 200, description = "In force and kept", body = Changed),
        (status = 409, description = "Comes from a file", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "Invalid; `errors` names the fields", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn add_entries(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
    QueryOf(defaults): QueryOf<Defaults>,
    body: BulkBody,
) -> Result<Json<Changed>, Problem> {
    let list = list_name(&name)?;
    let now = SystemTime::now();
    let parse = move || {
        if body.is_text {
            of_text(&list, &body.bytes, &defaults, now)
        } else {
            of_json(&list, &body.bytes, &defaults, now)
        }
    };
    // A hundred thousand entries take longer to read than other requests should wait.
    let changes = tokio::task::spawn_blocking(parse)
        .await
        .map_err(|_| Problem::new(Kind::Unavailable, "the daemon is shutting down"))??;
    state.change(changes).await
}

/// Which entry.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
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
pub(super) async fn delete_entry(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
    QueryOf(which): QueryOf<Which>,
) -> Result<StatusCode, Problem> {
    let cidr = config::parse_prefix(&which.cidr).map_err(|message| invalid("cidr", message))?;
    let list: Arc<str> = name.into();
    let Json(done) = state.change(vec![Change::Remove { list: Arc::clone(&list), cidr }]).await?;
    match done.removed {
        0 => {
            let detail = format!("{cidr} is not on the list \"{list}\"");
            Err(Problem::new(Kind::NotFound, detail))
        }
        _ => Ok(StatusCode::NO_CONTENT),
    }
}

/// Which address.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Address {
    /// IPv4 or IPv6.
    ip: String,
}

/// Which lists hold an address, by which prefix, and which of them decides.
#[utoipa::path(
    get, path = "/v1/prefilter/lookup", tag = "prefilter", params(Address),
    responses(
        (status = 200, body = Lookup),
        (status = 422, description = "Not an address", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn lookup(
    State(state): State<ApiState>,
    QueryOf(asked): QueryOf<Address>,
) -> Result<Json<Lookup>, Problem> {
    let Ok(ip) = asked.ip.parse::<IpAddr>() else {
        return Err(invalid("ip", format!("\"{}\" is not an IP address", asked.ip)));
    };
    state.read(move |view, _| look_up(view, ip)).await.map(Json)
}

/// A limit on packets of each source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RateLimit {
    /// Unique name.
    pub name: String,
    /// File with line and column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// `drop`, or `audit`: count and let pass.
    pub action: String,
    /// `tcp` or `udp`, if it counts only these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Destination port, if it counts only that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Packets per second that each source has.
    pub packets_per_second: u64,
    /// Packets that may come at once.
    pub burst: u64,
    /// Length of the IPv4 prefix that is one source.
    pub key_v4: u8,
    /// Length of the IPv6 prefix that is one source.
    pub key_v6: u8,
    /// Packets beyond it.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Rate limits, with the packets that were beyond them.
#[utoipa::path(
    get, path = "/v1/prefilter/rate-limits", tag = "prefilter",
    responses((status = 200, body = List<RateLimit>))
)]
pub(super) async fn rate_limits(
    State(state): State<ApiState>,
) -> Result<Json<List<RateLimit>>, Problem> {
    list(&state, |view, counters| {
        let limits = view.limits.iter();
        limits.map(|limit| rate_limit(&limit.spec, counters.limit(limit.row))).collect()
    })
    .await
}

fn rate_limit(spec: &config::model::RateLimit, count: Count) -> RateLimit {
    RateLimit {
        name: spec.name.clone(),
        origin: origin(&spec.source),
        action: spec.action.as_str().to_owned(),
        protocol: spec.protocol.map(|protocol| protocol.as_str().to_owned()),
        port: Some(spec.port).filter(|port| *port != 0),
        packets_per_second: spec.packets_per_second,
        burst: spec.burst,
        key_v4: spec.key.0,
        key_v6: spec.key.1,
        packets: count.packets,
        bytes: count.bytes,
    }
}

fn look_up(view: &View, ip: IpAddr) -> Lookup {
    let Verdict { allowed, decides, hits } = prefixes::lookup(&view.prefilter, ip);
    let deciding = hits.iter().find(|hit| Some(hit.list) == decides);
    let now = SystemTime::now();
    Lookup {
        address: ip,
        verdict: deciding.map_or("pass", |hit| hit.action.as_str()).to_owned(),
        allowed_by: allowed,
        list: decides.map(str::to_owned),
        hits: hits
            .iter()
            .map(|hit| LookupHit {
                list: hit.list.to_owned(),
                action: hit.action.as_str().to_owned(),
                entry: with_ban(view, hit.list, hit.prefix, now),
            })
            .collect(),
    }
}

fn compact<'v>(view: &'v View, name: &str) -> Result<&'v Compact, Problem> {
    let list = view.prefilter.lists.iter().find(|list| list.name == name);
    list.map(AsRef::as_ref).ok_or_else(|| Problem::not_found("list", name))
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
    Entries { items, total: all.len() as u64, next }
}

fn with_ban(view: &View, list: &str, cidr: IpNet, now: SystemTime) -> Entry {
    let bans = view.bans.read();
    let ban = bans.get(list).and_then(|list| list.entries().get(&cidr));
    let Some(Ban { added, until, reason }) = ban else {
        return Entry { cidr, added: None, until: None, expires_in_seconds: None, reason: None };
    };
    let time = |ms: u64| UNIX_EPOCH + Duration::from_millis(ms);
    let left = |ms| time(ms).duration_since(now).unwrap_or_default().as_secs();
    Entry {
        cidr,
        added: Some(rfc3339(time(*added))),
        until: until.map(|until| rfc3339(time(until))),
        expires_in_seconds: until.map(left),
        reason: reason.as_deref().map(str::to_owned),
    }
}

fn as_plain(list: &Compact) -> String {
    let mut text = String::with_capacity(list.prefixes.len() * 18);
    for net in list.prefixes.iter() {
        let _ = writeln!(text, "{net}");
    }
    text
}

/// A table with a set for each family that is not empty.
fn as_nft(list: &Compact) -> String {
    let name: String =
        list.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let mut text = String::from("table inet lb {\n");
    let mut set = |family: &str, nets: &mut dyn Iterator<Item = String>| {
        let mut nets = nets.peekable();
        if nets.peek().is_none() {
            return;
        }
        let _ = writeln!(
            text,
            "  set {name}_{family} {{\n    type {family}_addr\n    flags interval\n    auto-merge\n    elements = {{"
        );
        for net in nets {
            let _ = writeln!(text, "      {net},");
        }
        text.push_str("    }\n  }\n");
    };
    set("ipv4", &mut list.prefixes.v4().iter().map(|&n| ipnet::Ipv4Net::from(n).to_string()));
    set("ipv6", &mut list.prefixes.v6().iter().map(ToString::to_string));
    text.push_str("}\n");
    text
}

fn of_json(
    list: &Arc<str>,
    bytes: &Bytes,
    defaults: &Defaults,
    now: SystemTime,
) -> Result<Vec<Change>, Problem> {
    let parsed = if bytes.trim_ascii_start().starts_with(b"[") {
        serde_json::from_slice(bytes)
    } else {
        serde_json::from_slice(bytes).map(|one| vec![one])
    };
    let entries: Vec<NewEntry> = parsed
        .map_err(|error| invalid("", format!("not an entry or an array of entries: {error}")))?;
    let mut errors = Vec::new();
    let mut changes = Vec::with_capacity(entries.len());
    let single = entries.len() == 1;
    for (n, entry) in entries.into_iter().enumerate() {
        let place = |field: &str| if single { field.to_owned() } else { format!("[{n}].{field}") };
        match new_entry(list, entry, defaults, now) {
            Ok(change) => changes.push(change),
            Err((field, message)) if errors.len() < MAX_ERRORS => {
                errors.push(FieldError::new(place(field), message));
            }
            Err(_) => {}
        }
    }
    if errors.is_empty() { Ok(changes) } else { Err(Problem::with_fields(Kind::Invalid, errors)) }
}

/// Faults that an answer lists.
const MAX_ERRORS: usize = 20;

fn of_text(
    list: &Arc<str>,
    bytes: &Bytes,
    defaults: &Defaults,
    now: SystemTime,
) -> Result<Vec<Change>, Problem> {
    let prefixes = config::parse_list(Path::new("body"), bytes).map_err(|faults| {
        let faults = faults.into_iter().take(MAX_ERRORS);
        let errors = faults.map(|f| FieldError::new("", f.to_string())).collect();
        Problem::with_fields(Kind::Invalid, errors)
    })?;
    let shared = NewEntry::default();
    let Change::Add { added, until, reason, .. } =
        new_entry(list, NewEntry { cidr: "0.0.0.0/0".to_owned(), ..shared }, defaults, now)
            .map_err(|(field, message)| invalid(field, message))?
    else {
        return Ok(Vec::new());
    };
    let change = |cidr| {
        let (list, reason) = (Arc::clone(list), reason.clone());
        Change::Add { list, cidr, added, until, reason }
    };
    Ok(prefixes.iter().map(change).collect())
}

fn new_entry(
    list: &Arc<str>,
    entry: NewEntry,
    defaults: &Defaults,
    now: SystemTime,
) -> Result<Change, (&'static str, String)> {
    let NewEntry { cidr, ttl, reason } = entry;
    let cidr = config::parse_prefix(&cidr).map_err(|message| ("cidr", message))?;
    let added = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let ttl = ttl.as_deref().or(defaults.ttl.as_deref());
    let ttl = ttl.map(config::parse_duration).transpose().map_err(|message| ("ttl", message))?;
    let until = ttl.map(|ttl| (added + ttl).as_millis() as u64);
    let reason = reason.or_else(|| defaults.reason.clone());
    if reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON) {
        return Err(("reason", format!("longer than {MAX_REASON} bytes")));
    }
    let (list, reason) = (Arc::clone(list), reason.map(Arc::from));
    Ok(Change::Add { list, cidr, added: added.as_millis() as u64, until, reason })
}

fn list_name(name: &str) -> Result<Arc<str>, Problem> {
    if config::is_name(name) {
        return Ok(name.into());
    }
    let allowed = "1 to 128 letters, digits, `.`, `_`, `:` and `-`";
    Err(invalid("name", format!("\"{name}\" cannot be the name of a list; allowed: {allowed}")))
}

fn typed<T: serde::de::DeserializeOwned>(body: serde_json::Value) -> Result<T, Problem> {
    serde_json::from_value(body).map_err(|error| invalid("", error.to_string()))
}

fn invalid(field: &str, message: impl Into<String>) -> Problem {
    Problem::with_fields(Kind::Invalid, vec![FieldError::new(field, message)])
}

impl ApiState {
    async fn change(&self, changes: Vec<Change>) -> Result<Json<Changed>, Problem> {
        let done = self.command(|reply| Command::ChangeLists { changes, reply }).await??;
        Ok(Json(done.into()))
    }
}
