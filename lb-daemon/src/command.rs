//! What others may ask of the owner task. Each command carries its own way to answer.

use std::sync::Arc;

use config::{
    model::{DesiredState, Endpoint, Service},
    policy::Rule,
};
use tokio::sync::oneshot;

use crate::bans;

/// A message to the owner task.
#[derive(Debug)]
pub enum Command {
    /// What the files say, complete and valid.
    Files {
        /// The whole of it.
        desired: Box<DesiredState>,
        /// When the change was first noticed.
        noticed: std::time::Instant,
    },
    /// What is on disk is not valid; the last good state stays in force.
    FilesFaulty {
        /// One printable paragraph each, with file, line and column.
        faults: Vec<String>,
    },
    /// Holds what files could say against what is in force; changes nothing.
    Compare {
        /// The whole of it.
        files: Box<DesiredState>,
        /// What there is to compare.
        reply: oneshot::Sender<Result<Offered, Refusal>>,
    },
    /// Creates or replaces a service of the API.
    PutService {
        /// Its `source` is [`config::model::Source::Api`].
        service: Arc<Service>,
        /// `If-Match`: the version that the caller has seen.
        if_match: Option<u64>,
        /// The version in force now.
        reply: oneshot::Sender<Result<u64, Refusal>>,
    },
    /// Deletes a service of the API.
    DeleteService {
        /// Its name.
        name: String,
        /// `If-Match`: the version that the caller has seen.
        if_match: Option<u64>,
        /// Done.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// Sets the rules of a document, in the place of those that it had.
    PutPolicies {
        /// Its name.
        document: String,
        /// What it says, to be kept.
        text: String,
        /// The same, read.
        rules: Vec<Rule>,
        /// It may cut off what this machine needs.
        force: bool,
        /// Where the caller is logged in from.
        session: Option<std::net::IpAddr>,
        /// Done.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// Creates or replaces an endpoint of the API.
    PutEndpoint {
        /// Its `source` is [`config::model::Source::Api`].
        endpoint: Arc<Endpoint>,
        /// Done.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// Deletes an endpoint of the API.
    DeleteEndpoint {
        /// Its name.
        name: String,
        /// Done.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// Deletes a document of rules.
    DeletePolicies {
        /// Its name.
        document: String,
        /// It may cut off what this machine needs.
        force: bool,
        /// Where the caller is logged in from.
        session: Option<std::net::IpAddr>,
        /// Done.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// Addresses of names that rules select have come or gone.
    NamesChanged,
    /// Changes blocklists of the API: all of it or nothing.
    ChangeLists {
        /// In order.
        changes: Vec<bans::Change>,
        /// Taken back after this time, unless it is confirmed.
        confirm: Option<std::time::Duration>,
        /// What it came to.
        reply: oneshot::Sender<Result<bans::Done, Refusal>>,
    },
    /// Keeps the change of lists that waits for it, or takes it back.
    ConfirmLists {
        /// Which.
        keep: bool,
        /// Done.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
}

/// A state that could be in force.
#[derive(Clone, Debug)]
pub struct Offered {
    /// What is in force.
    pub before: Arc<DesiredState>,
    /// What would be, with what the API has set.
    pub after: Arc<DesiredState>,
    /// Why it would be refused; empty: it would not.
    pub refused: Vec<String>,
}

/// Why a command was not carried out; nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such object.
    #[error("there is no {kind} named \"{name}\"")]
    NotFound {
        /// `service`, `backend`.
        kind: &'static str,
        /// As asked.
        name: String,
    },
    /// The object belongs to another source.
    #[error("\"{name}\" comes from {origin} and is read-only here; change it there")]
    ReadOnly {
        /// As asked.
        name: String,
        /// `file /etc/lb/edge.yaml:12:5`, `kubernetes default/web`.
        origin: String,
    },
    /// `If-Match` did not match.
    #[error("version is {actual}, not {expected}: somebody changed it meanwhile; read it again")]
    Stale {
        /// As asked.
        expected: u64,
        /// In force.
        actual: u64,
    },
    /// It contradicts something in force.
    #[error("{field}: {message}")]
    Conflict {
        /// Path of the field, as `addresses[0]`.
        field: String,
        /// What it contradicts and what is allowed.
        message: String,
    },
    /// The host firewall would deny what this machine needs.
    #[error("the host firewall would deny {0}")]
    CutsOff(String),
    /// There is nothing to be confirmed.
    #[error("no change waits for confirmation; it may have been taken back already")]
    NothingWaits,
    /// The tables could not be written; the state before is in force.
    #[error("could not be put in force: {0}")]
    Apply(String),
}
