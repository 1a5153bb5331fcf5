//! The REST API: a router over the published [`View`], live [`Counters`] and the owner task's
//! [`Command`]s.
//!
//! Owns paths, representations, error bodies and the bounds on what a client may ask. Holds no state
//! of its own and writes no table: reading never waits for the owner task, and a change is a command
//! that the owner task accepts or refuses. The description at `/v1/openapi.json` is made from the
//! same declarations as the routes, so neither can exist without the other.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    http::{Method, Uri},
    middleware,
    routing::get,
};
use tokio::sync::{mpsc, watch};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    command::Command,
    guard::Guard,
    view::{Counters, View},
};

pub mod conntrack;
pub mod difference;
pub mod events;
mod extract;
pub mod limits;
pub mod listen;
pub mod lists;
pub mod model;
pub mod policy;
pub mod problem;
mod read;
mod services;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use listen::{ApiAddr, serve};

use problem::{Kind, Problem};

/// What handlers read and whom they ask.
#[derive(Clone)]
pub struct ApiState {
    /// The daemon's state.
    pub view: watch::Receiver<Arc<View>>,
    /// The owner task.
    pub commands: mpsc::Sender<Command>,
    /// Live counters.
    pub counters: Arc<dyn Counters>,
    /// What lists should not cover.
    pub guard: Guard,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Load balancer appliance",
        description = "Services, backends, blocklists and the state of one node. \
            Every error is a problem document (RFC 9457).",
    ),
    components(schemas(Problem)),
    tags(
        (name = "services", description = "Services and their backends"),
        (name = "prefilter", description = "Blocklists"),
        (name = "policy", description = "Identity policy"),
        (name = "node", description = "What this node does"),
        (name = "health", description = "For probes and monitoring"),
    )
)]
struct Description;

/// Every path of the API.
pub fn router(state: ApiState) -> Router {
    let (router, description) = declared().split_for_parts();
    router
        .route("/v1/openapi.json", get(move || std::future::ready(Json(description.clone()))))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(limits::BODY_BYTES))
        .layer(middleware::map_response(problem::everything))
        .with_state(state)
}

/// The OpenAPI description of the API.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    declared().split_for_parts().1
}

fn declared() -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(read::healthz))
        .routes(routes!(read::readyz))
        .routes(routes!(read::metrics))
        .routes(routes!(read::status))
        .routes(routes!(services::list_services))
        .routes(routes!(services::get_service, services::put_service, services::delete_service))
        .routes(routes!(services::list_backends))
        .routes(routes!(services::patch_backend))
        .routes(routes!(read::prefilter_lists))
        .routes(routes!(lists::get_list, lists::put_list, lists::delete_list))
        .routes(routes!(
            lists::entries::list_entries,
            lists::entries::add_entries,
            lists::entries::delete_entry
        ))
        .routes(routes!(lists::entries::remove_entries))
        .routes(routes!(lists::safety::plan))
        .routes(routes!(lists::safety::confirm))
        .routes(routes!(lists::safety::rollback))
        .routes(routes!(lists::refresh_list))
        .routes(routes!(lists::lookup))
        .routes(routes!(lists::rate_limits))
        .routes(routes!(lists::syn_proxy))
        .routes(routes!(policy::endpoints))
        .routes(routes!(policy::endpoint, policy::put_endpoint, policy::delete_endpoint))
        .routes(routes!(policy::identities))
        .routes(routes!(policy::policies))
        .routes(routes!(policy::trace))
        .routes(routes!(policy::names))
        .routes(routes!(policy::documents))
        .routes(routes!(policy::put_document, policy::delete_document))
        .routes(routes!(conntrack::connections, conntrack::remove_connections))
        .routes(routes!(conntrack::connection))
        .routes(routes!(read::reasons))
        .routes(routes!(events::events))
        .routes(routes!(events::top))
        .routes(routes!(difference::diff))
        .routes(routes!(read::maps))
        .routes(routes!(read::interfaces))
}

async fn unknown_path(uri: Uri) -> Problem {
    let detail = format!("there is nothing at {}; /v1/openapi.json lists all paths", uri.path());
    Problem::new(Kind::NotFound, detail)
}

async fn unknown_method(method: Method, uri: Uri) -> Problem {
    let detail =
        format!("{} does not know {method}; the header Allow lists what it does", uri.path());
    Problem::new(Kind::MethodNotAllowed, detail)
}
