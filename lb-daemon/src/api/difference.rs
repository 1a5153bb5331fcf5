//! What a configuration that is sent would change.

use std::{collections::BTreeMap, path::PathBuf};

use axum::{Json, extract::State};
use config::{Given, Loader, model::DesiredState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    ApiState,
    extract::{BulkBody, BulkKind},
    problem::{FieldError, Kind, Problem},
};
use crate::{
    command::{Command, Offered},
    compare::{Difference, compare},
};

/// A configuration with all that it names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// Its documents, as the `*.yaml` files of a directory.
    pub documents: Vec<Text>,
    /// Files that they name, such as lists.
    #[serde(default)]
    pub files: Vec<Text>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// Where it stands: documents name files by it, and faults do. Nothing is read there.
    pub path: String,
    /// What is in it.
    pub text: String,
}

/// Compares a configuration with what is in force, API's own objects included; changes nothing.
///
/// Fetched lists stand for what was fetched already, if their URL is the same.
#[utoipa::path(
    post, path = "/v1/config/diff", tag = "node",
    request_body = Configuration,
    responses(
        (status = 200, body = Difference),
        (status = 413, description = "More than 64 MiB", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "Invalid; `errors` has every fault with file, line and column",
            body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn diff(
    State(state): State<ApiState>,
    body: BulkBody,
) -> Result<Json<Difference>, Problem> {
    if body.kind != BulkKind::Json {
        let detail = "allowed is application/json";
        return Err(Problem::new(Kind::UnsupportedMediaType, detail));
    }
    let body = body.whole().await?;
    let files = off_the_runtime(move || read(&body)).await??;
    let files = Box::new(files);
    let offered = state.command(|reply| Command::Compare { files, reply }).await??;
    let difference = off_the_runtime(move || {
        let Offered { before, after, refused } = offered;
        let changes = compare(&before, &after);
        Difference { differs: !changes.is_empty(), changes, refused }
    });
    difference.await.map(Json)
}

async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Problem::new(Kind::Unavailable, "the daemon is shutting down"))
}

/// What was sent, as a state.
fn read(body: &[u8]) -> Result<DesiredState, Problem> {
    let Configuration { documents, files } = serde_json::from_slice(body)
        .map_err(|error| Problem::invalid("", format!("not a configuration: {error}")))?;
    let given = Given { documents: by_path(documents)?, files: by_path(files)? };
    Loader::of(given).load().map_err(|faults| {
        let errors = faults.iter().map(|fault| FieldError::new("", fault.to_string())).collect();
        Problem::with_fields(Kind::Invalid, errors)
    })
}

fn by_path(texts: Vec<Text>) -> Result<BTreeMap<PathBuf, Vec<u8>>, Problem> {
    let mut files = BTreeMap::new();
    for Text { path, text } in texts {
        if files.insert(PathBuf::from(&path), text.into_bytes()).is_some() {
            return Err(Problem::invalid("path", format!("{path} is there twice")));
        }
    }
    Ok(files)
}
