//! What handlers take out of a request, with every rejection a [`Problem`].
//!
//! Owns the bounds on bodies and the reading of preconditions. Refuses bodies that are not declared
//! as JSON, queries with unknown keys and entity tags that this API never gave out.

use axum::body::{Body, Bytes};
use axum::{
    extract::{FromRequest, FromRequestParts, Request, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    limits,
    problem::{Kind, Problem},
};

/// The version of what does not exist.
const NOBODY: u64 = 0;

/// A body of JSON, at most [`limits::BODY_BYTES`] long.
#[derive(Debug)]
pub(super) struct JsonBody(pub(super) Value);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        expect_json(request.headers())?;
        let read = tokio::time::timeout(limits::BODY_TIMEOUT, Bytes::from_request(request, state));
        let Ok(bytes) = read.await else {
            return Err(Problem::new(Kind::Slow, "the body did not arrive in time"));
        };
        let bytes = bytes.map_err(|rejection| body_problem(&rejection))?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|error| Problem::new(Kind::Malformed, format!("body is not JSON: {error}")))?;
        Ok(Self(value))
    }
}

fn expect_json(headers: &HeaderMap) -> Result<(), Problem> {
    let declared = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let essence = declared.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if matches!(essence.as_str(), "application/json" | "application/merge-patch+json") {
        return Ok(());
    }
    let found = if declared.is_empty() { "no Content-Type" } else { declared };
    Err(Problem::new(
        Kind::UnsupportedMediaType,
        format!("the request has {found}; allowed is application/json"),
    ))
}

fn body_problem(rejection: &BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let detail = format!("the body is larger than {} bytes", limits::BODY_BYTES);
        return Problem::new(Kind::TooLarge, detail);
    }
    Problem::new(Kind::Malformed, format!("the body could not be read: {rejection}"))
}

/// A body of many prefixes, to be read as it arrives; at most [`limits::BULK_BYTES`] long.
#[derive(Debug)]
pub(super) struct BulkBody {
    /// How it is written.
    pub(super) kind: BulkKind,
    /// Nothing of it is read yet.
    pub(super) body: Body,
    /// Lets the next one in when it is dropped.
    pub(super) _room: SemaphorePermit<'static>,
}

/// How a body of many prefixes is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BulkKind {
    /// `application/json`.
    Json,
    /// `application/x-ndjson`: an object per line.
    Ndjson,
    /// `text/plain`: a list file.
    Text,
}

/// Bodies that may be read at a time.
static BULK_ROOM: Semaphore = Semaphore::const_new(limits::BULK_BODIES);

impl<S: Send + Sync> FromRequest<S> for BulkBody {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let declared = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let essence = declared.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let kind = match essence.to_ascii_lowercase().as_str() {
            "text/plain" => BulkKind::Text,
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => BulkKind::Ndjson,
            _ => {
                expect_json(request.headers())?;
                BulkKind::Json
            }
        };
        let busy = || Problem::new(Kind::TooManyRequests, "other lists are being read; try again");
        let room = tokio::time::timeout(limits::BODY_TIMEOUT, BULK_ROOM.acquire());
        let room = room.await.map_err(|_| busy())?.map_err(|_| busy())?;
        Ok(Self { kind, body: request.into_body(), _room: room })
    }
}

impl BulkBody {
    /// Reads it piece by piece.
    pub(super) async fn each_frame(
        self,
        mut take: impl FnMut(&[u8]) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let Self { kind: _, mut body, _room } = self;
        let slow = |_| Problem::new(Kind::Slow, "the body did not arrive in time");
        let all = async {
            let mut bytes = 0;
            loop {
                let next = tokio::time::timeout(limits::BODY_TIMEOUT, body.frame()).await;
                let Some(frame) = next.map_err(slow)? else { return Ok(()) };
                let frame = frame.map_err(|error| {
                    Problem::new(Kind::Malformed, format!("the body breaks off: {error}"))
                })?;
                let Some(data) = frame.data_ref() else { continue };
                bytes += data.len();
                if bytes > limits::BULK_BYTES {
                    let detail = format!("the body has more than {} bytes", limits::BULK_BYTES);
                    return Err(Problem::new(Kind::TooLarge, detail));
                }
                take(data)?;
            }
        };
        tokio::time::timeout(limits::BULK_TIMEOUT, all).await.map_err(slow)?
    }

    /// Reads it as a whole.
    pub(super) async fn whole(self) -> Result<Vec<u8>, Problem> {
        let mut bytes = Vec::new();
        self.each_frame(|frame| {
            bytes.extend_from_slice(frame);
            Ok(())
        })
        .await?;
        Ok(bytes)
    }
}

/// Path parameters.
#[derive(Debug)]
pub(super) struct PathOf<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for PathOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::new(Kind::Malformed, rejection.body_text())),
        }
    }
}

/// The query string; `T` denies unknown fields.
#[derive(Debug)]
pub(super) struct QueryOf<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for QueryOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::new(Kind::Malformed, rejection.body_text())),
        }
    }
}

/// `If-Match` and `If-None-Match` of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Preconditions {
    if_match: Option<Tags>,
    /// `If-None-Match: *`: only when there is no such object.
    only_new: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Tags {
    Any,
    Versions(Vec<u64>),
}

impl<S: Send + Sync> FromRequestParts<S> for Preconditions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::of(&parts.headers)
    }
}

impl Preconditions {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let if_match = match text(headers, &header::IF_MATCH)? {
            None => None,
            Some(text) if text.trim() == "*" => Some(Tags::Any),
            Some(text) => Some(Tags::Versions(versions(&text)?)),
        };
        let only_new = match text(headers, &header::IF_NONE_MATCH)? {
            None => false,
            Some(text) if text.trim() == "*" => true,
            Some(text) => {
                let detail = format!("If-None-Match: {text}: only * is allowed on a change");
                return Err(Problem::new(Kind::Malformed, detail));
            }
        };
        Ok(Self { if_match, only_new })
    }

    /// Whether the caller named the version it has seen.
    #[must_use]
    pub(super) fn is_guarded(&self) -> bool {
        self.if_match.is_some()
    }

    /// Holds the preconditions against the version in force and returns the one that the owner task
    /// shall insist on.
    pub(super) fn check(&self, in_force: Option<u64>) -> Result<Option<u64>, Problem> {
        if self.only_new
            && let Some(version) = in_force
        {
            let detail = format!("it exists already, at version {version}");
            return Err(Problem::new(Kind::Stale, detail));
        }
        let Some(tags) = &self.if_match else {
            return Ok(self.only_new.then_some(NOBODY));
        };
        let Some(version) = in_force else {
            return Err(Problem::new(Kind::Stale, "it does not exist, so no version can match"));
        };
        match tags {
            Tags::Any => Ok(Some(version)),
            Tags::Versions(seen) if seen.contains(&version) => Ok(Some(version)),
            Tags::Versions(seen) => {
                let seen = seen.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
                let detail = format!(
                    "version is {version}, not {seen}: somebody changed it meanwhile; read it again"
                );
                Err(Problem::new(Kind::Stale, detail))
            }
        }
    }
}

fn text(headers: &HeaderMap, name: &header::HeaderName) -> Result<Option<String>, Problem> {
    let mut all = Vec::new();
    for value in headers.get_all(name) {
        let Ok(value) = value.to_str() else {
            return Err(Problem::new(Kind::Malformed, format!("{name} is not plain ASCII")));
        };
        all.push(value);
    }
    Ok((!all.is_empty()).then(|| all.join(",")))
}

/// Strong comparison: a weak tag matches nothing, a tag in a shape we never give out neither.
fn versions(text: &str) -> Result<Vec<u64>, Problem> {
    text.split(',')
        .map(str::trim)
        .map(|tag| {
            let inner = tag.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
            inner.and_then(|t| t.parse().ok()).ok_or_else(|| {
                let detail = format!(
                    "If-Match: {tag}: not an entity tag of this API, which are numbers in double \
                     quotes, as \"7\""
                );
                Problem::new(Kind::Malformed, detail)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn of(name: HeaderName, value: &str) -> Result<Preconditions, Problem> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        Preconditions::of(&headers)
    }

    #[test]
    fn if_match() {
        let tags = of(header::IF_MATCH, "\"3\", \"4\"").unwrap();
        assert_eq!(tags.check(Some(4)), Ok(Some(4)));
        assert_eq!(tags.check(Some(5)).unwrap_err().status, 412);
        assert_eq!(tags.check(None).unwrap_err().status, 412);
        let any = of(header::IF_MATCH, "*").unwrap();
        assert_eq!(any.check(Some(9)), Ok(Some(9)));
        assert_eq!(any.check(None).unwrap_err().status, 412);
        for bad in ["3", "W/\"3\"", "\"x\"", "\"3\",", ""] {
            assert_eq!(of(header::IF_MATCH, bad).unwrap_err().status, 400, "{bad}");
        }
    }

    #[test]
    fn if_none_match() {
        let new = of(header::IF_NONE_MATCH, "*").unwrap();
        assert_eq!(new.check(None), Ok(Some(NOBODY)));
        assert_eq!(new.check(Some(1)).unwrap_err().status, 412);
        assert_eq!(of(header::IF_NONE_MATCH, "\"1\"").unwrap_err().status, 400);
    }
}
