//! Blocklists of the API: bans one by one and by the thousand, what is on a list, what an address meets.
//!
//! Reads the published view and the shared lists; a change is a command to the owner task. Lists of
//! files can be read here and not changed.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use abi::reason::Reason;
use axum::{Json, extract::State, http::StatusCode};
use config::model::{About, ScopeProtocol};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    ApiState,
    extract::{JsonBody, PathOf, QueryOf},
    model::{List, PrefixList, origin, rfc3339},
    problem::{FieldError, Kind, Problem},
    read::list,
};
use crate::{
    bans::{Ban, Change, Done},
    command::Command,
    fetch::NotNow,
    plan::prefixes::{self, Verdict},
    view::{Count, Counters, View},
};

mod body;
pub(super) mod entries;
mod export;
pub(super) mod safety;
mod scope;
#[cfg(test)]
mod tests;

use self::safety::Safety;
pub(in crate::api) use self::safety::Session;
pub use self::{
    entries::Removed,
    safety::{Covered, Plan, SESSION, WouldDrop},
    scope::ListSpec,
};

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
    /// What the list does: `drop` or `audit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Which packets the list is about: direction, protocol, ports, interfaces. Absent: all from its addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The same two, as a list is made with (`PUT`, or the query of adding).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<ListSpec>,
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

/// What a change of a list came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// Entries that are new.
    pub added: u64,
    /// Entries that were there and have another end or reason now.
    pub replaced: u64,
    /// Entries that are gone.
    pub removed: u64,
    /// Entries that are wrong and were left out (`on_error=skip`).
    #[serde(default)]
    pub skipped: u64,
    /// The first of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

impl From<Done> for Changed {
    fn from(Done { added, replaced, removed }: Done) -> Self {
        Self {
            added: added as u64,
            replaced: replaced as u64,
            removed: removed as u64,
            ..Self::default()
        }
    }
}

/// What the blocklists say about an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lookup {
    /// The address asked for.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// `pass`, `audit` or `drop`; `depends`: on what was not said of the packet.
    pub verdict: String,
    /// The allow prefix because of which no list applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub allowed_by: Option<IpNet>,
    /// The list that decides, or may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// The country that it is said to be in, where there is a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    /// The number of the network that announces it, where there is a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asn: Option<u32>,
    /// The name of that network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_name: Option<String>,
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
    /// Which packets it is about: direction, protocol, ports, interfaces. Absent: all from the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
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

/// How careful to be.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Careful {
    /// Also if it cuts off this machine, its gateways, name servers, backends, or your own session.
    #[serde(default)]
    force: bool,
    /// Takes the change back after this time, as `60s`, unless it is confirmed.
    confirm: Option<String>,
}

/// Makes a list of the API, or changes what it does. Which packets it is about stays as it was made.
#[utoipa::path(
    put, path = "/v1/prefilter/lists/{name}", tag = "prefilter",
    params(("name" = String, Path, description = "Name of the list"), Careful),
    request_body = ListSpec,
    responses(
        (status = 200, body = Changed),
        (status = 409, description = "Comes from a file, or is about other packets", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "Invalid; `errors` names the fields", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn put_list(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
    QueryOf(careful): QueryOf<Careful>,
    session: Session,
    JsonBody(body): JsonBody,
) -> Result<Json<Changed>, Problem> {
    let safety = Safety::read(careful.force, careful.confirm.as_deref())?;
    let spec: ListSpec = typed(body)?;
    let ListSpec { action, interfaces, direction, protocol, ports } = spec;
    let audit = scope::audit(&action)?;
    let list = list_name(&name)?;
    let scope = scope::Named { interfaces, direction, protocol, ports }.read()?;
    let mut changes: Vec<Change> = scope::make(&list, scope, None).into_iter().collect();
    changes.push(Change::Set { list, audit });
    let changes = state.careful(changes, &safety, session).await?;
    state.change(changes, safety.confirm).await
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
    let Json(_) = state.change(vec![Change::Delete { list: name.into() }], None).await?;
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

/// Which address.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Address {
    /// IPv4 or IPv6.
    ip: String,
    /// Of the packet asked about: `tcp`, `udp`, `sctp` or `icmp`.
    protocol: Option<String>,
    /// The port that it goes to.
    port: Option<u16>,
    /// The interface that it comes in by.
    interface: Option<String>,
    /// Whether the address is where it goes, not where it is from.
    #[serde(default)]
    destination: bool,
}

impl Address {
    /// The packet asked about; `None`: the question is about all packets from the address.
    fn about(&self) -> Result<Option<About<'_>>, Problem> {
        let Self { protocol, port, interface, destination, .. } = self;
        let protocol = match protocol {
            None => None,
            Some(name) => Some(ScopeProtocol::by_name(name).ok_or_else(|| {
                Problem::invalid(
                    "protocol",
                    format!("\"{name}\" is none of tcp, udp, sctp, icmp, which scopes know"),
                )
            })?),
        };
        if port.is_some() && matches!(protocol, None | Some(ScopeProtocol::Icmp)) {
            let why = "a port needs the protocol that it is of: tcp, udp or sctp".to_owned();
            return Err(Problem::invalid("port", why));
        }
        let about = About {
            interface: interface.as_deref(),
            destination: *destination,
            protocol,
            port: *port,
        };
        Ok((about != About::default()).then_some(about))
    }
}

/// Which lists hold an address, by which prefix, and which of them decides: about all packets from there, or about the
/// one that the other parameters tell of.
#[utoipa::path(
    get, path = "/v1/prefilter/lookup", tag = "prefilter", params(Address),
    responses(
        (status = 200, body = Lookup),
        (status = 422, description = "Not an address, or no such packet", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn lookup(
    State(state): State<ApiState>,
    QueryOf(asked): QueryOf<Address>,
) -> Result<Json<Lookup>, Problem> {
    let Ok(ip) = asked.ip.parse::<IpAddr>() else {
        return Err(Problem::invalid("ip", format!("\"{}\" is not an IP address", asked.ip)));
    };
    let find = move |view: &View, _: &dyn crate::view::Counters| {
        asked.about().map(|about| look_up(view, ip, about))
    };
    state.read(find).await?.map(Json)
}

/// Listeners of this machine whose SYNs are answered in their place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SynProxy {
    /// TCP ports and ranges of them, such as `8000-8999`; none: there is no SYN proxy.
    pub ports: Vec<String>,
    /// `drop` or `pass`: what happens to segments that belong to no connection.
    pub stray_acks: String,
    /// SYNs that were answered.
    pub answered: u64,
    /// Segments of no connection that were dropped.
    pub dropped: u64,
}

/// The SYN proxy, and what it has done.
#[utoipa::path(
    get, path = "/v1/prefilter/syn-proxy", tag = "prefilter",
    responses((status = 200, body = SynProxy))
)]
pub(super) async fn syn_proxy(State(state): State<ApiState>) -> Result<Json<SynProxy>, Problem> {
    state.read(syn_proxy_of).await.map(Json)
}

fn syn_proxy_of(view: &View, counters: &dyn Counters) -> SynProxy {
    let spec = &view.prefilter.syn_proxy;
    let reasons = counters.reasons();
    let packets = |reason| {
        reasons.iter().find(|(known, _)| *known == reason).map_or(0, |(_, count)| count.packets)
    };
    let range = |&(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    SynProxy {
        ports: spec.ports.iter().map(range).collect(),
        stray_acks: if spec.drop_stray_acks { "drop" } else { "pass" }.to_owned(),
        answered: packets(Reason::SynAnswered),
        dropped: packets(Reason::StrayAck),
    }
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
    /// TCP flags that are set, and with `!` not set, if it counts only these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp_flags: Vec<String>,
    /// Packets per second that each source has; absent where it counts bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_per_second: Option<u64>,
    /// Bytes per second that each source has, where it counts these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Packets (or bytes) that may come at once.
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
        tcp_flags: spec.flags(),
        packets_per_second: match spec.rate {
            config::model::Rate::Packets(rate) => Some(rate),
            config::model::Rate::Bytes(_) => None,
        },
        bytes_per_second: match spec.rate {
            config::model::Rate::Packets(_) => None,
            config::model::Rate::Bytes(rate) => Some(rate),
        },
        burst: spec.burst,
        key_v4: spec.key.0,
        key_v6: spec.key.1,
        packets: count.packets,
        bytes: count.bytes,
    }
}

fn look_up(view: &View, ip: IpAddr, about: Option<About<'_>>) -> Lookup {
    let Verdict { allowed, decides, depends, hits } = match about {
        Some(about) => prefixes::lookup_packet(&view.prefilter, ip, &about),
        None => prefixes::lookup(&view.prefilter, ip),
    };
    let deciding = hits.iter().find(|hit| Some(hit.list) == decides);
    let verdict = match deciding {
        Some(_) if depends => "depends",
        Some(hit) => hit.action.as_str(),
        None => "pass",
    };
    let now = SystemTime::now();
    let geo = &view.prefilter.geo;
    let asn = geo.asn(ip);
    Lookup {
        country: geo.country(ip).map(|country| country.to_string()),
        asn: asn.map(|(number, _)| number),
        as_name: asn.and_then(|(_, name)| name).map(ToString::to_string),
        address: ip,
        verdict: verdict.to_owned(),
        allowed_by: allowed,
        list: decides.map(str::to_owned),
        hits: hits
            .iter()
            .map(|hit| LookupHit {
                list: hit.list.to_owned(),
                action: hit.action.as_str().to_owned(),
                scope: (!hit.scope.is_all()).then(|| hit.scope.to_string()),
                entry: with_ban(view, hit.list, hit.prefix, now),
            })
            .collect(),
    }
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

fn list_name(name: &str) -> Result<Arc<str>, Problem> {
    if config::is_name(name) {
        return Ok(name.into());
    }
    let allowed = "1 to 128 letters, digits, `.`, `_`, `:` and `-`";
    Err(Problem::invalid(
        "name",
        format!("\"{name}\" cannot be the name of a list; allowed: {allowed}"),
    ))
}

fn typed<T: serde::de::DeserializeOwned>(body: serde_json::Value) -> Result<T, Problem> {
    serde_json::from_value(body).map_err(|error| Problem::invalid("", error.to_string()))
}

impl ApiState {
    async fn change(
        &self,
        changes: Vec<Change>,
        confirm: Option<Duration>,
    ) -> Result<Json<Changed>, Problem> {
        let done = self.command(|reply| Command::ChangeLists { changes, confirm, reply }).await??;
        Ok(Json(done.into()))
    }
}
