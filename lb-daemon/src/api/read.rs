//! What can be read of the node itself: health, status, metrics, reasons, tables, interfaces and
//! blocklists.
//!
//! Reads the published view and the counters; asks the owner task nothing, so a busy owner does not
//! delay monitoring.

use std::{sync::Arc, time::SystemTime};

use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    ApiState,
    model::{Interface, List, Map, PrefixList, ReasonCount, Status, not_ready},
    problem::{FieldError, Kind, Problem},
};
use crate::{
    metrics,
    view::{Counters, View},
};

/// The process answers.
#[utoipa::path(
    get, path = "/healthz", tag = "health",
    responses((status = 200, description = "The process is alive", body = String))
)]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// The appliance does its work: a configuration is in force and every interface is attached.
#[utoipa::path(
    get, path = "/readyz", tag = "health",
    responses(
        (status = 200, description = "Ready", body = String),
        (status = 503, description = "Not ready; `errors` says why", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn readyz(State(state): State<ApiState>) -> Result<&'static str, Problem> {
    let reasons = not_ready(&state.view());
    if reasons.is_empty() {
        return Ok("ready\n");
    }
    let errors = reasons.into_iter().map(|(part, why)| FieldError::new(part, why)).collect();
    Err(Problem::with_fields(Kind::NotReady, errors))
}

/// Every metric in the text format of Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "health",
    responses((status = 200, description = "Metrics", body = String,
        content_type = "text/plain; version=0.0.4"))
)]
pub(super) async fn metrics(State(state): State<ApiState>) -> Result<Response, Problem> {
    let text =
        state.read(|view, counters| metrics::render(view, counters, SystemTime::now())).await?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// One page about everything.
#[utoipa::path(get, path = "/v1/status", tag = "node", responses((status = 200, body = Status)))]
pub(super) async fn status(State(state): State<ApiState>) -> Result<Json<Status>, Problem> {
    let (now, guard) = (SystemTime::now(), state.guard.clone());
    state.read(move |view, counters| Status::of(view, counters, &guard, now)).await.map(Json)
}

/// Blocklists in the order in which they apply.
#[utoipa::path(
    get, path = "/v1/prefilter/lists", tag = "prefilter",
    responses((status = 200, body = List<PrefixList>))
)]
pub(super) async fn prefilter_lists(
    State(state): State<ApiState>,
) -> Result<Json<List<PrefixList>>, Problem> {
    list(&state, |view, counters| {
        view.lists.iter().map(|list| PrefixList::of(list, view, counters)).collect()
    })
    .await
}

/// Every reason for which a packet was passed, dropped or sent.
#[utoipa::path(
    get, path = "/v1/reasons", tag = "node",
    responses((status = 200, body = List<ReasonCount>))
)]
pub(super) async fn reasons(
    State(state): State<ApiState>,
) -> Result<Json<List<ReasonCount>>, Problem> {
    list(&state, |_, counters| {
        counters
            .reasons()
            .into_iter()
            .map(|(reason, count)| ReasonCount::of(reason, count))
            .collect()
    })
    .await
}

/// Tables shared with the kernel.
#[utoipa::path(get, path = "/v1/maps", tag = "node", responses((status = 200, body = List<Map>)))]
pub(super) async fn maps(State(state): State<ApiState>) -> Result<Json<List<Map>>, Problem> {
    list(&state, |view, _| view.maps.iter().map(Map::from).collect()).await
}

/// Interfaces and what is attached there.
#[utoipa::path(
    get, path = "/v1/interfaces", tag = "node",
    responses((status = 200, body = List<Interface>))
)]
pub(super) async fn interfaces(
    State(state): State<ApiState>,
) -> Result<Json<List<Interface>>, Problem> {
    list(&state, |view, _| view.interfaces.iter().map(Interface::from).collect()).await
}

/// Answers with a list made off the runtime's threads.
pub(super) async fn list<T: Serialize + Send + 'static>(
    state: &ApiState,
    make: impl FnOnce(&View, &dyn Counters) -> Vec<T> + Send + 'static,
) -> Result<Json<List<T>>, Problem> {
    state.read(|view, counters| List { items: make(view, counters) }).await.map(Json)
}

impl ApiState {
    /// The view in force.
    pub(super) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Reads view and counters on a thread for blocking work: summing the counters of 100,000 rows
    /// over all CPUs takes milliseconds.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&View, &dyn Counters) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let view = self.view();
        let counters = Arc::clone(&self.counters);
        tokio::task::spawn_blocking(move || read(&view, &*counters))
            .await
            .map_err(|_| Problem::new(Kind::Unavailable, "the daemon is shutting down"))
    }
}
