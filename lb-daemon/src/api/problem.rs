//! The one shape of every error: `application/problem+json` (RFC 9457).
//!
//! Owns the list of problem types, their status codes and how a refusal of the owner task maps to
//! them. Refuses to let any other error body out: [`everything`] rewrites what the framework made.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::command::Refusal;

/// Media type of every error.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Why a request was not carried out. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Identifies the kind of problem; stable, for programs.
    #[serde(rename = "type")]
    #[schema(example = "urn:lb:problem:stale")]
    pub kind: Box<str>,
    /// The kind of problem, for people.
    pub title: Box<str>,
    /// HTTP status.
    pub status: u16,
    /// What went wrong this time and what to do about it.
    pub detail: String,
    /// The field at fault; the first one when there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Every field at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// One fault of a request, with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// Path of the field, as `ports[0].protocol`; empty for the whole body.
    pub field: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// Kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No such object or path.
    NotFound,
    /// The path exists and does not know the method.
    MethodNotAllowed,
    /// Not JSON, or a header or query that cannot be read.
    Malformed,
    /// A body that is not declared to be JSON.
    UnsupportedMediaType,
    /// The body is larger than is allowed.
    TooLarge,
    /// JSON that says something invalid.
    Invalid,
    /// The object belongs to a file or to Kubernetes.
    ReadOnly,
    /// Contradicts something in force.
    Conflict,
    /// It would cut off this machine or what it needs, and does not say that this is meant.
    CutsOff,
    /// `If-Match` or `If-None-Match` does not hold.
    Stale,
    /// Not to be had on this listener.
    Forbidden,
    /// Sent to a host name that is not this machine's loopback.
    Misdirected,
    /// More requests than the listener answers.
    TooManyRequests,
    /// The request's body did not arrive in time.
    Slow,
    /// The tables could not be written.
    ApplyFailed,
    /// The appliance does not do its work yet, or not all of it.
    NotReady,
    /// The daemon is shutting down or its queue is full.
    Unavailable,
    /// The daemon did not answer in time; the change may still come into force.
    Timeout,
    /// Anything else of the given status.
    Other(StatusCode),
}

impl Kind {
    fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "Not found"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed")
            }
            Self::Malformed => (StatusCode::BAD_REQUEST, "malformed", "Malformed request"),
            Self::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "Unsupported media type")
            }
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Body too large"),
            Self::Invalid => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "Invalid object"),
            Self::ReadOnly => (StatusCode::CONFLICT, "read-only", "Read-only object"),
            Self::Conflict => (StatusCode::CONFLICT, "conflict", "Conflict"),
            Self::CutsOff => (StatusCode::CONFLICT, "cuts-off", "Would cut something off"),
            Self::Stale => (StatusCode::PRECONDITION_FAILED, "stale", "Version does not match"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "Forbidden here"),
            Self::Misdirected => {
                (StatusCode::MISDIRECTED_REQUEST, "misdirected", "Misdirected request")
            }
            Self::TooManyRequests => {
                (StatusCode::TOO_MANY_REQUESTS, "too-many-requests", "Too many requests")
            }
            Self::Slow => (StatusCode::REQUEST_TIMEOUT, "slow-body", "Request too slow"),
            Self::ApplyFailed => {
                (StatusCode::INTERNAL_SERVER_ERROR, "apply-failed", "Could not be put in force")
            }
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "not-ready", "Not ready"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Unavailable"),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout", "No answer in time"),
            Self::Other(status) => {
                (status, "http", status.canonical_reason().unwrap_or("Request failed"))
            }
        }
    }

    fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::BAD_REQUEST => Self::Malformed,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::UnsupportedMediaType,
            StatusCode::PAYLOAD_TOO_LARGE => Self::TooLarge,
            StatusCode::UNPROCESSABLE_ENTITY => Self::Invalid,
            other => Self::Other(other),
        }
    }
}

impl Problem {
    /// A problem without fields.
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let (status, slug, title) = kind.parts();
        Self {
            kind: format!("urn:lb:problem:{slug}").into(),
            title: title.into(),
            status: status.as_u16(),
            detail: detail.into(),
            field: None,
            errors: Vec::new(),
        }
    }

    /// A problem that names the fields at fault, each as `(path, message)`.
    #[must_use]
    pub fn with_fields(kind: Kind, errors: Vec<FieldError>) -> Self {
        let detail = errors
            .iter()
            .map(|FieldError { field, message }| match field.as_str() {
                "" => message.clone(),
                field => format!("{field}: {message}"),
            })
            .collect::<Vec<_>>()
            .join("; ");
        let field = errors.first().map(|e| e.field.clone()).filter(|f| !f.is_empty());
        Self { field, errors, ..Self::new(kind, detail) }
    }

    /// An object or a question with one fault, at `field`.
    #[must_use]
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::with_fields(Kind::Invalid, vec![FieldError::new(field, message)])
    }

    /// There is no `kind` (`service`, `backend`) of that name.
    #[must_use]
    pub fn not_found(kind: &'static str, name: &str) -> Self {
        Refusal::NotFound { kind, name: name.to_owned() }.into()
    }
}

impl FieldError {
    /// A fault at `field`.
    #[must_use]
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            Refusal::NotFound { .. } | Refusal::NothingWaits => Self::new(Kind::NotFound, detail),
            Refusal::ReadOnly { .. } => Self::new(Kind::ReadOnly, detail),
            Refusal::Stale { .. } => Self::new(Kind::Stale, detail),
            Refusal::Conflict { field, message } => {
                Self::with_fields(Kind::Conflict, vec![FieldError { field, message }])
            }
            Refusal::CutsOff(_) => {
                let remedy =
                    "nothing was changed; allow it, or say that it is meant (force=true, --force)";
                let errors = [detail.as_str(), remedy].map(|text| FieldError::new("", text));
                Self::with_fields(Kind::CutsOff, errors.to_vec())
            }
            Refusal::Apply(_) => Self::new(Kind::ApplyFailed, detail),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).expect("a problem has only strings and numbers");
        (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response()
    }
}

/// Turns every error that is not a problem yet into one; other headers stay.
pub async fn everything(response: Response) -> Response {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) || is_problem(&response) {
        return response;
    }
    let (mut parts, _) = response.into_parts();
    let detail = status.canonical_reason().unwrap_or("the request failed").to_lowercase();
    let (problem, body) = Problem::new(Kind::of(status), detail).into_response().into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    for (name, value) in &problem.headers {
        parts.headers.insert(name, value.clone());
    }
    Response::from_parts(parts, Body::new(body))
}

fn is_problem(response: &Response) -> bool {
    response.headers().get(header::CONTENT_TYPE) == Some(&HeaderValue::from_static(MEDIA_TYPE))
}
