//! Services and their backends: read, create, replace, delete.
//!
//! Checks what can be checked against the published view (existence, source, version) and sends the
//! change to the owner task, which checks again and decides. Never touches tables or files itself.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderName, StatusCode, header},
};
use config::model;
use serde::Deserialize;
use serde_json::Value;
use tokio::{sync::oneshot, time::timeout};
use utoipa::IntoParams;

use super::{
    ApiState,
    extract::{JsonBody, PathOf, Preconditions, QueryOf},
    limits,
    model::{Accepted, Backend, BackendPatch, BackendState, List, Service, ServiceSummary, origin},
    problem::{FieldError, Kind, Problem},
    read::list,
};
use crate::{
    command::{Command, Refusal},
    view::{ServiceView, View},
};

/// Largest weight of a backend.
const MAX_WEIGHT: u32 = 65_535;

/// Times that a change without `If-Match` is made again on top of somebody else's.
const PATCH_TRIES: u32 = 4;

type Etag = [(HeaderName, String); 1];

/// Every service by name, without specification and backends.
#[utoipa::path(
    get, path = "/v1/services", tag = "services",
    responses((status = 200, body = List<ServiceSummary>))
)]
pub(super) async fn list_services(
    State(state): State<ApiState>,
) -> Result<Json<List<ServiceSummary>>, Problem> {
    list(&state, |view, counters| {
        view.services.iter().map(|service| ServiceSummary::of(service, counters)).collect()
    })
    .await
}

/// A service with specification and backends. The entity tag is its version.
#[utoipa::path(
    get, path = "/v1/services/{name}", tag = "services",
    params(("name" = String, Path, description = "Name of the service")),
    responses(
        (status = 200, body = Service, headers(("ETag" = String))),
        (status = 404, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn get_service(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
) -> Result<(Etag, Json<Service>), Problem> {
    let found = state
        .read(move |view, counters| {
            let service = find(view, &name)?;
            Ok(Service {
                summary: ServiceSummary::of(service, counters),
                spec: config::service_to_json(&service.spec),
                backends: Backend::all(service, counters).collect(),
            })
        })
        .await?;
    found.map(|service: Service| (etag(service.summary.version), Json(service)))
}

/// Creates a service or replaces it as a whole; flows of backends that stay go on.
#[utoipa::path(
    put, path = "/v1/services/{name}", tag = "services",
    params(
        ("name" = String, Path, description = "Name of the service"),
        ("If-Match" = Option<String>, Header, description = "Only if this is the version in force"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only if there is none yet"),
    ),
    request_body(
        content = Object,
        description = "As in a file under `services`; `lbctl config schema` describes the fields",
    ),
    responses(
        (status = 200, description = "Replaced", body = Accepted, headers(("ETag" = String))),
        (status = 201, description = "Created", body = Accepted, headers(("ETag" = String))),
        (status = 409, description = "Its name or an address and port is taken, or it comes from a \
            file or from Kubernetes", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "Another version is in force", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "Invalid; `errors` names the fields", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn put_service(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
    preconditions: Preconditions,
    JsonBody(body): JsonBody,
) -> Result<(StatusCode, Etag, Json<Accepted>), Problem> {
    let view = state.view();
    let old = find(&view, &name).ok();
    if let Some(old) = old {
        refuse_read_only(old)?;
    }
    let if_match = preconditions.check(old.map(|old| old.version))?;
    let service = parse_service(&name, &body)?;
    let version = state.put(Arc::new(service), if_match).await??;
    let status = if old.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, etag(version), Json(Accepted { name, version })))
}

fn parse_service(name: &str, body: &Value) -> Result<model::Service, Problem> {
    config::parse_service_json(name, body.to_string().as_bytes()).map_err(|faults| {
        let errors = faults.into_iter().map(|f| FieldError::new(f.field, f.message)).collect();
        Problem::with_fields(Kind::Invalid, errors)
    })
}

/// Deletes a service.
#[utoipa::path(
    delete, path = "/v1/services/{name}", tag = "services",
    params(
        ("name" = String, Path, description = "Name of the service"),
        ("If-Match" = Option<String>, Header, description = "Only if this is the version in force"),
    ),
    responses(
        (status = 204, description = "Deleted"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Comes from a file or from Kubernetes", body = Problem,
            content_type = "application/problem+json"),
        (status = 412, description = "Another version is in force", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete_service(
    State(state): State<ApiState>,
    PathOf(name): PathOf<String>,
    preconditions: Preconditions,
) -> Result<StatusCode, Problem> {
    let view = state.view();
    let service = find(&view, &name)?;
    if service.spec.part_of.is_some() {
        refuse_read_only(service)?;
    }
    let if_match = preconditions.check(Some(service.version))?;
    // The owner task knows of one that a file's hides.
    state.command(|reply| Command::DeleteService { name, if_match, reply }).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Which backends are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BackendFilter {
    /// Only those of this service.
    service: Option<String>,
}

/// Backends of every service, or of one.
#[utoipa::path(
    get, path = "/v1/backends", tag = "services", params(BackendFilter),
    responses(
        (status = 200, body = List<Backend>),
        (status = 404, description = "No service of that name", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn list_backends(
    State(state): State<ApiState>,
    QueryOf(filter): QueryOf<BackendFilter>,
) -> Result<Json<List<Backend>>, Problem> {
    if let Some(name) = &filter.service {
        find(&state.view(), name)?;
    }
    list(&state, move |view, counters| {
        let wanted = |service: &&Arc<ServiceView>| {
            filter.service.as_ref().is_none_or(|w| *w == service.spec.name)
        };
        let services = view.services.iter().filter(wanted);
        services.flat_map(|service| Backend::all(service, counters)).collect()
    })
    .await
}

/// Changes weight or state of a backend and leaves the rest of its service as it is.
#[utoipa::path(
    patch, path = "/v1/services/{name}/backends/{backend}", tag = "services",
    params(
        ("name" = String, Path, description = "Name of the service"),
        ("backend" = String, Path, description = "Name of the backend"),
        ("If-Match" = Option<String>, Header,
            description = "Only if this is the service's version in force"),
    ),
    request_body = BackendPatch,
    responses(
        (status = 200, description = "Changed; `name` and `version` are the service's",
            body = Accepted, headers(("ETag" = String))),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Comes from a file or from Kubernetes", body = Problem,
            content_type = "application/problem+json"),
        (status = 412, description = "Another version is in force", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "Invalid; `errors` names the fields", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn patch_backend(
    State(state): State<ApiState>,
    PathOf((name, backend)): PathOf<(String, String)>,
    preconditions: Preconditions,
    JsonBody(body): JsonBody,
) -> Result<(Etag, Json<Accepted>), Problem> {
    let mut tries = 0;
    loop {
        tries += 1;
        let view = state.view();
        let service = find(&view, &name)?;
        refuse_read_only(service)?;
        // Built on this version, so only this version may be replaced.
        let seen = preconditions.check(Some(service.version))?.unwrap_or(service.version);
        let changed = patched(&service.spec, &backend, &parse_patch(&body)?)?;
        match state.put(Arc::new(changed), Some(seen)).await? {
            Ok(version) => return Ok((etag(version), Json(Accepted { name, version }))),
            Err(Refusal::Stale { .. }) if !preconditions.is_guarded() && tries < PATCH_TRIES => {
                state.wait_for_other_version(&name, seen).await;
            }
            Err(refusal) => return Err(refusal.into()),
        }
    }
}

fn find<'v>(view: &'v View, name: &str) -> Result<&'v ServiceView, Problem> {
    view.services
        .iter()
        .find(|service| service.spec.name == name)
        .map(AsRef::as_ref)
        .ok_or_else(|| Problem::not_found("service", name))
}

fn refuse_read_only(service: &ServiceView) -> Result<(), Problem> {
    if let Some(part) = &service.spec.part_of {
        let model::PartOf { service: whole, group } = part;
        let detail = format!(
            "\"{}\" is the group \"{group}\" of the backends of the service \"{whole}\": change it there",
            service.spec.name
        );
        return Err(Problem::new(Kind::Conflict, detail));
    }
    let Some(origin) = origin(&service.spec.source) else { return Ok(()) };
    let origin = format!("{} {origin}", service.spec.source.kind());
    Err(Refusal::ReadOnly { name: service.spec.name.clone(), origin }.into())
}

fn etag(version: u64) -> Etag {
    [(header::ETAG, format!("\"{version}\""))]
}

/// Reads a patch by hand, so that every fault names its field.
fn parse_patch(body: &Value) -> Result<BackendPatch, Problem> {
    let Value::Object(fields) = body else {
        let error = FieldError::new("", "must be an object with weight, state or both");
        return Err(Problem::with_fields(Kind::Invalid, vec![error]));
    };
    let mut patch = BackendPatch::default();
    let mut errors = Vec::new();
    for (field, value) in fields {
        match field.as_str() {
            "weight" => {
                let weight = value.as_u64().and_then(|w| u32::try_from(w).ok());
                patch.weight = weight.filter(|weight| *weight <= MAX_WEIGHT);
                if patch.weight.is_none() {
                    let message = format!("{value}: allowed are whole numbers from 0 to 65535");
                    errors.push(FieldError::new("weight", message));
                }
            }
            "state" => {
                patch.state = BackendState::deserialize(value).ok();
                if patch.state.is_none() {
                    let message = format!("{value}: allowed are active, draining, maintenance");
                    errors.push(FieldError::new("state", message));
                }
            }
            other => errors.push(FieldError::new(
                other,
                "cannot be changed here; weight and state can, the rest by PUT of the service",
            )),
        }
    }
    if fields.is_empty() {
        errors.push(FieldError::new("", "nothing to change; give weight, state or both"));
    }
    if errors.is_empty() { Ok(patch) } else { Err(Problem::with_fields(Kind::Invalid, errors)) }
}

fn patched(
    service: &model::Service,
    backend: &str,
    patch: &BackendPatch,
) -> Result<model::Service, Problem> {
    let mut changed = service.clone();
    let found = changed.backends.iter_mut().find(|candidate| candidate.name == backend);
    let Some(found) = found else { return Err(Problem::not_found("backend", backend)) };
    if let Some(weight) = patch.weight {
        found.weight = weight;
    }
    if let Some(state) = patch.state {
        found.state = match state {
            BackendState::Active => model::BackendState::Active,
            BackendState::Draining => model::BackendState::Draining,
            BackendState::Maintenance => model::BackendState::Maintenance,
        };
    }
    Ok(changed.divided())
}

impl ApiState {
    async fn put(
        &self,
        service: Arc<model::Service>,
        if_match: Option<u64>,
    ) -> Result<Result<u64, Refusal>, Problem> {
        self.command(|reply| Command::PutService { service, if_match, reply }).await
    }

    /// Sends a command to the owner task and waits for its answer.
    pub(super) async fn command<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Command,
    ) -> Result<Result<T, Refusal>, Problem> {
        let gone = || Problem::new(Kind::Unavailable, "the daemon is shutting down");
        let (reply, answer) = oneshot::channel();
        let Ok(slot) = timeout(limits::COMMAND_TIMEOUT, self.commands.reserve()).await else {
            let detail = "the daemon is busy with other changes; nothing has changed, try again";
            return Err(Problem::new(Kind::Unavailable, detail));
        };
        slot.map_err(|_| gone())?.send(make(reply));
        let Ok(answer) = timeout(limits::COMMAND_TIMEOUT, answer).await else {
            let detail = "the change takes long and may still come into force; read it again";
            return Err(Problem::new(Kind::Timeout, detail));
        };
        answer.map_err(|_| gone())
    }

    /// Waits, briefly, until the view shows another version of a service than `seen`.
    async fn wait_for_other_version(&self, name: &str, seen: u64) {
        let mut view = self.view.clone();
        let changed = view.wait_for(|view| {
            !view.services.iter().any(|s| s.spec.name == name && s.version == seen)
        });
        // Whatever comes of it, the caller looks at the view again.
        drop(timeout(std::time::Duration::from_millis(500), changed).await);
    }
}
