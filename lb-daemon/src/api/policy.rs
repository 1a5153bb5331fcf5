//! Identity policy: endpoints, identities, rules, and documents of rules that are set here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{Json, extract::State, http::StatusCode};
use config::policy::{Enforcement, Group, NamePattern};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    ApiState,
    extract::{BulkBody, JsonBody, PathOf, QueryOf},
    lists::Session,
    model::{List, Source, origin},
    problem::{FieldError, Kind, Problem},
    read::list,
};
use crate::{
    command::Command,
    policy::{kernel::Attachment, names::Known, state::Wanted, trace::Trace},
    view::{Counters, EndpointView, RuleView},
};

/// A workload of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Endpoint {
    /// Unique name.
    pub name: String,
    /// Who it came from.
    pub source: Source,
    /// File with line and column, or the Kubernetes object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The number of these labels.
    pub identity: u32,
    /// Its addresses.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// Host side of its interface.
    pub interface: String,
    /// Whether what rules would deny passes.
    pub audit: bool,
    /// Enforcement of its own: `default`, `always`, `never`; `node`: that of `policy_enforcement`.
    pub enforcement: String,
    /// `tcx`, `clsact`, or `none` when policy is not enforced there.
    pub attached: String,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A number that stands for labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Identity {
    /// The number.
    pub id: u32,
    /// The labels.
    pub labels: BTreeMap<String, String>,
}

/// A rule in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// Its name; several rules may have one.
    pub name: String,
    /// Who it came from.
    pub source: Source,
    /// File with line and column, or the Kubernetes object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// What it denies is counted and passes.
    pub audit: bool,
    /// Endpoints of this machine that it selects.
    pub endpoints: u64,
    /// Packets that it decided; replies are not counted.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Rules that were set together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyDocument {
    /// Unique name.
    pub name: String,
    /// Rules in it.
    pub rules: u64,
}

/// A name that DNS was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyName {
    /// In lower case, without a dot at the end.
    pub name: String,
    /// Names and patterns of rules that stand for it.
    pub selected: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<NameAddress>,
}

/// An address of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NameAddress {
    /// The address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// How long it counts, unless it is asked for again.
    pub seconds: u64,
    /// That time is over; it counts because connections use it.
    pub in_use: bool,
}

impl From<&EndpointView> for Endpoint {
    fn from(view: &EndpointView) -> Self {
        let EndpointView { spec, identity, attached } = view;
        let (attached, reason) = match attached {
            Attachment::Tcx => ("tcx", None),
            Attachment::Clsact => ("clsact", None),
            Attachment::Failed(why) => ("none", Some(why.clone())),
        };
        Self {
            name: spec.name.clone(),
            source: Source::from(&spec.source),
            origin: origin(&spec.source),
            labels: spec.labels.clone(),
            identity: *identity,
            addresses: spec.addresses.clone(),
            interface: spec.interface.clone(),
            audit: spec.audit,
            enforcement: spec.enforcement.map_or("node", Enforcement::as_str).to_owned(),
            attached: attached.to_owned(),
            reason,
        }
    }
}

impl Policy {
    fn of(rule: &RuleView, endpoints: u64, counters: &dyn Counters) -> Self {
        let count = counters.rule(rule.row);
        Self {
            name: rule.name.clone(),
            source: Source::from(&rule.source),
            origin: origin(&rule.source),
            audit: rule.audit,
            endpoints,
            packets: count.packets,
            bytes: count.bytes,
        }
    }
}

/// Endpoints of this machine.
#[utoipa::path(
    get, path = "/v1/endpoints", tag = "policy",
    responses((status = 200, body = List<Endpoint>))
)]
pub(super) async fn endpoints(
    State(state): State<ApiState>,
) -> Result<Json<List<Endpoint>>, Problem> {
    list(&state, |view, _| {
        let all = view.policy.endpoints.iter().chain(&view.policy.host);
        all.map(Endpoint::from).collect()
    })
    .await
}

/// An endpoint.
#[utoipa::path(
    get, path = "/v1/endpoints/{name}", tag = "policy",
    params(("name" = String, Path, description = "Name of the endpoint")),
    responses(
        (status = 200, body = Endpoint),
        (status = 404, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn endpoint(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
) -> Result<Json<Endpoint>, Problem> {
    let view = state.view();
    let found = view.policy.endpoints.iter().find(|endpoint| endpoint.spec.name == name);
    let found = found.map(Endpoint::from).or_else(|| host(&view.policy.host, &name));
    found.map(Json).ok_or_else(|| {
        Problem::new(Kind::NotFound, format!("there is no endpoint named \"{name}\""))
    })
}

/// This machine, with all interfaces that its firewall is on; the first on which it is not enforced says why.
fn host(places: &[EndpointView], name: &str) -> Option<Endpoint> {
    let broken = places.iter().find(|place| !place.attached.is_attached());
    let one = broken.or(places.first()).filter(|one| one.spec.name == name)?;
    let interfaces: Vec<&str> = places.iter().map(|place| place.spec.interface.as_str()).collect();
    Some(Endpoint { interface: interfaces.join(","), ..Endpoint::from(one) })
}

/// Creates an endpoint or replaces it as a whole.
#[utoipa::path(
    put, path = "/v1/endpoints/{name}", tag = "policy",
    params(("name" = String, Path, description = "Name of the endpoint")),
    request_body(
        content = Object,
        description = "As in a file under `endpoints`; `lbctl config schema` describes the fields",
    ),
    responses(
        (status = 200, description = "In force and kept", body = Endpoint),
        (status = 409, description = "An address or the interface is another one's, or it comes from \
            a file", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Invalid; `errors` names the fields", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn put_endpoint(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
    JsonBody(body): JsonBody,
) -> Result<Json<Endpoint>, Problem> {
    let parsed = config::parse_endpoint_json(&name, body.to_string().as_bytes());
    let parsed = parsed.map_err(|faults| {
        let errors = faults.into_iter().map(|f| FieldError::new(f.field, f.message)).collect();
        Problem::with_fields(Kind::Invalid, errors)
    })?;
    let new = Arc::new(parsed);
    state.command(|reply| Command::PutEndpoint { endpoint: new, reply }).await??;
    endpoint(State(state), PathOf(name)).await
}

/// Deletes an endpoint: policy is not enforced on its interface any more.
#[utoipa::path(
    delete, path = "/v1/endpoints/{name}", tag = "policy",
    params(("name" = String, Path, description = "Name of the endpoint")),
    responses(
        (status = 204, description = "Deleted"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It comes from a file", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete_endpoint(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
) -> Result<StatusCode, Problem> {
    state.command(|reply| Command::DeleteEndpoint { name, reply }).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Identities: numbers and the labels that they stand for.
#[utoipa::path(
    get, path = "/v1/identities", tag = "policy",
    responses((status = 200, body = List<Identity>))
)]
pub(super) async fn identities(
    State(state): State<ApiState>,
) -> Result<Json<List<Identity>>, Problem> {
    list(&state, |view, _| {
        let all = view.policy.identities.iter();
        all.map(|(id, labels)| Identity { id: *id, labels: labels.clone() }).collect()
    })
    .await
}

/// Rules in force, in the order in which they are named in verdicts.
#[utoipa::path(
    get, path = "/v1/policies", tag = "policy",
    responses((status = 200, body = List<Policy>))
)]
pub(super) async fn policies(State(state): State<ApiState>) -> Result<Json<List<Policy>>, Problem> {
    list(&state, |view, counters| {
        let rules = view.policy.rules.iter().zip(view.policy.selected());
        rules.map(|(rule, endpoints)| Policy::of(rule, endpoints, counters)).collect()
    })
    .await
}

/// Names that endpoints asked for and that rules select, with the addresses that DNS gave them.
#[utoipa::path(
    get, path = "/v1/policy-names", tag = "policy",
    responses((status = 200, body = List<PolicyName>))
)]
pub(super) async fn names(
    State(state): State<ApiState>,
) -> Result<Json<List<PolicyName>>, Problem> {
    list(&state, |view, _| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = now.as_millis() as u64;
        let patterns: BTreeSet<&NamePattern> = Wanted::groups_of(&view.policy.wanted.rules)
            .filter_map(|group| match group {
                Group::Names(pattern) => Some(pattern),
                Group::Service { .. } => None,
            })
            .collect();
        let known = view.names.read();
        let of = |known: Known| {
            let own = patterns.iter().filter(|pattern| pattern.matches(&known.name));
            let address = |(address, until): (IpAddr, u64)| NameAddress {
                address,
                seconds: until.saturating_sub(now) / 1000,
                in_use: until <= now,
            };
            PolicyName {
                selected: own.map(ToString::to_string).collect(),
                addresses: known.addresses.into_iter().map(address).collect(),
                name: known.name,
            }
        };
        known.iter().map(of).collect()
    })
    .await
}

/// Documents of rules that were set here.
#[utoipa::path(
    get, path = "/v1/policy-documents", tag = "policy",
    responses((status = 200, body = List<PolicyDocument>))
)]
pub(super) async fn documents(
    State(state): State<ApiState>,
) -> Result<Json<List<PolicyDocument>>, Problem> {
    list(&state, |view, _| {
        let all = view.policy_documents.iter();
        all.map(|(name, rules)| PolicyDocument { name: name.clone(), rules: *rules }).collect()
    })
    .await
}

/// How careful to be with rules about this machine.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Force {
    /// They may deny what this machine needs: sessions, clients of the API, name servers, health checks.
    force: bool,
}

/// Sets all rules of a document, in the place of those that it had.
#[utoipa::path(
    put, path = "/v1/policy-documents/{name}", tag = "policy",
    params(("name" = String, Path, description = "Name of the document"), Force),
    request_body(content = String, content_type = "text/plain",
        description = "Rules as JSON or YAML, or CiliumNetworkPolicy objects"),
    responses(
        (status = 200, description = "In force and kept", body = PolicyDocument),
        (status = 422, description = "Invalid; `errors` has line and column", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn put_document(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
    QueryOf(Force { force }): QueryOf<Force>,
    session: Session,
    body: BulkBody,
) -> Result<Json<PolicyDocument>, Problem> {
    let session = session.address();
    if !config::is_name(&name) {
        return Err(Problem::invalid("name", "allowed: letters, digits, `.`, `_`, `:` and `-`"));
    }
    let text = String::from_utf8(body.whole().await?)
        .map_err(|error| Problem::invalid("", format!("the body is not UTF-8: {error}")))?;
    let document = name.clone();
    // Ten thousand rules take longer to read than other requests should wait.
    let read = move || (config::policy::import(Path::new(&document), &text), text);
    let (rules, text) = tokio::task::spawn_blocking(read)
        .await
        .map_err(|_| Problem::new(Kind::Unavailable, "the daemon is shutting down"))?;
    let rules = rules.map_err(|faults| {
        let errors = faults.iter().map(|fault| FieldError::new("", fault.to_string())).collect();
        Problem::with_fields(Kind::Invalid, errors)
    })?;
    let count = rules.len() as u64;
    let document = name.clone();
    state
        .command(|reply| Command::PutPolicies { document, text, rules, force, session, reply })
        .await??;
    Ok(Json(PolicyDocument { name, rules: count }))
}

/// Deletes a document with its rules.
#[utoipa::path(
    delete, path = "/v1/policy-documents/{name}", tag = "policy",
    params(("name" = String, Path, description = "Name of the document"), Force),
    responses(
        (status = 204, description = "Deleted"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete_document(
    State(state): State<ApiState>,
    PathOf(document): PathOf<String>,
    QueryOf(Force { force }): QueryOf<Force>,
    session: Session,
) -> Result<StatusCode, Problem> {
    let session = session.address();
    state.command(|reply| Command::DeletePolicies { document, force, session, reply }).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// What a trace is asked about.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Who opens the connection: labels (`id=app2,env=prod`), an address, the name of an endpoint,
    /// or `host`, `remote-node`, `init`, `health`, `unmanaged`.
    from: String,
    /// To whom, as `from`.
    to: String,
    /// Destination port and protocol (`80/tcp`), or ICMP type (`8/icmp`).
    dport: String,
}

/// Why two sides may or may not talk, by what is in force.
#[utoipa::path(
    get, path = "/v1/policy-trace", tag = "policy", params(Asked),
    responses(
        (status = 200, body = Trace),
        (status = 422, description = "Not a question; `errors` names the field", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn trace(
    State(state): State<ApiState>,
    QueryOf(asked): QueryOf<Asked>,
) -> Result<Json<Trace>, Problem> {
    let invalid = |field: &str, message: String| Problem::invalid(field, message);
    let from = asked.from.parse().map_err(|error| invalid("from", error))?;
    let to = asked.to.parse().map_err(|error| invalid("to", error))?;
    let flow = crate::policy::trace::flow(&asked.dport).map_err(|error| invalid("dport", error))?;
    let answer = state
        .read(move |view, _| crate::policy::trace::trace(&view.policy.wanted, &from, &to, flow))
        .await?;
    answer.map(Json).map_err(|error| invalid("", error))
}
