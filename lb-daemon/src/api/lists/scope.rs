//! Which packets a list of the API is about, as requests say it.

use std::sync::Arc;

use config::model::{PrefixList as Compact, Scope, port_ranges};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use crate::{
    api::problem::{FieldError, Kind, Problem},
    bans::Change,
};

/// What a list does, and which packets it is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ListSpec {
    /// `drop` or `audit`.
    pub action: String,
    /// Only packets that come in by these interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interfaces: Option<Vec<String>>,
    /// `source` (the default): packets from its addresses; `destination`: packets to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// Only packets of this protocol: `tcp`, `udp`, `sctp` or `icmp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Only packets to these ports and ranges, as `80` or `8000-8999`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<String>>,
}

impl ListSpec {
    /// Of a list, with what it is about in full; what is left out is any.
    pub(super) fn of(list: &Compact) -> Self {
        let Scope { interfaces, destination, protocol, ports } = &list.scope;
        Self {
            action: list.action.as_str().to_owned(),
            interfaces: (!interfaces.is_empty()).then(|| interfaces.clone()),
            direction: Some(if *destination { "destination" } else { "source" }.to_owned()),
            protocol: protocol.map(|protocol| protocol.as_str().to_owned()),
            ports: (!ports.is_empty()).then(|| port_ranges(ports)),
        }
    }
}

/// Which packets a list is about and what it does, as a query names it.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct Asked {
    /// As for adding: packets of this protocol only, `tcp`, `udp`, `sctp` or `icmp`. A list that is there must have
    /// the same of this and the next four, or none is said.
    pub(super) protocol: Option<String>,
    /// To these ports only: ports and ranges with commas between them, as `80,8000-8999`.
    pub(super) ports: Option<String>,
    /// That come in by these interfaces only, with commas between them.
    pub(super) interfaces: Option<String>,
    /// `source` (the default): packets from its addresses; `destination`: packets to them.
    pub(super) direction: Option<String>,
    /// What the list does: `drop` or `audit`.
    pub(super) action: Option<String>,
}

impl Asked {
    /// The scope, and whether the list only counts; `None` of what is not said.
    pub(super) fn read(self) -> Result<(Option<Scope>, Option<bool>), Problem> {
        let Self { protocol, ports, interfaces, direction, action } = self;
        let (ports, interfaces) = (parts(ports), parts(interfaces));
        let scope = Named { interfaces, direction, protocol, ports }.read()?;
        Ok((scope, action.as_deref().map(audit).transpose()?))
    }
}

/// A scope as requests name it; all `None`: they do not.
#[derive(Debug, Default)]
pub(super) struct Named {
    pub(super) interfaces: Option<Vec<String>>,
    pub(super) direction: Option<String>,
    pub(super) protocol: Option<String>,
    pub(super) ports: Option<Vec<String>>,
}

impl Named {
    /// The scope, if there is one.
    pub(super) fn read(self) -> Result<Option<Scope>, Problem> {
        let Self { interfaces, direction, protocol, ports } = self;
        // A port alone is a number in files.
        let port = |text: String| match text.parse::<u16>() {
            Ok(port) => json!(port),
            Err(_) => json!(text),
        };
        let fields = [
            ("interfaces", interfaces.map(|names| json!(names))),
            ("direction", direction.map(Value::String)),
            ("protocol", protocol.map(Value::String)),
            ("ports", ports.map(|ports| ports.into_iter().map(port).collect())),
        ];
        let fields: serde_json::Map<String, Value> = fields
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect();
        if fields.is_empty() {
            return Ok(None);
        }
        let read = config::parse_scope_json(Value::Object(fields).to_string().as_bytes());
        read.map(Some).map_err(|faults| {
            let error = |fault: config::FieldFault| FieldError::new(fault.field, fault.message);
            Problem::with_fields(Kind::Invalid, faults.into_iter().map(error).collect())
        })
    }
}

/// Whether an action only counts.
pub(super) fn audit(action: &str) -> Result<bool, Problem> {
    match action {
        "drop" => Ok(false),
        "audit" => Ok(true),
        other => {
            Err(Problem::invalid("action", format!("\"{other}\": allowed are drop and audit")))
        }
    }
}

/// The parts of a list in a query, between commas.
fn parts(text: Option<String>) -> Option<Vec<String>> {
    text.map(|text| text.split(',').map(|part| part.trim().to_owned()).collect())
}

/// What makes a list of this scope and action, if either is named. One that is there must be so.
pub(super) fn make(list: &Arc<str>, scope: Option<Scope>, audit: Option<bool>) -> Option<Change> {
    let named = scope.is_some() || audit.is_some();
    named.then(|| Change::Make { list: Arc::clone(list), scope, audit })
}
