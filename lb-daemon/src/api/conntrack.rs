//! Connections that the data path has entries for: listed, looked up, removed.
//!
//! Reads the tables themselves, on a thread of its own; asks the owner task nothing.

use std::net::{IpAddr, SocketAddr};

use axum::{Json, extract::State};
use config::model::Protocol;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    ApiState,
    extract::QueryOf,
    limits,
    problem::{Kind, Problem},
};
use crate::{
    conntrack::{self, STATES, Visit},
    view::{Counters, View},
};

/// Entries that are shown if nothing else is asked for.
const SHOWN: usize = 1000;

/// A connection that has an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// `nat`: translated; `flows`: its slot of the ring alone would not send it where it goes.
    pub table: String,
    /// `tcp`, `udp` or `sctp`; absent for all that a client has with a service (client-IP affinity).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Client; port 0 where the entry has none.
    #[schema(value_type = String)]
    pub client: SocketAddr,
    /// Address and port that the client uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub vip: Option<SocketAddr>,
    /// What the backend sees in the place of the client, of translated ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub nat: Option<SocketAddr>,
    /// The backend.
    #[schema(value_type = String)]
    pub backend: SocketAddr,
    /// Name of the service; absent if it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Name of the backend; absent if it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_name: Option<String>,
    /// Of translated ones `opening`, `answered`, `established`, `closing`, `closed` or `reset`; else `opening`,
    /// `open`, `closed`, `moved` (it stays although its slot has another backend now) or `affinity`.
    pub state: String,
    /// Seconds since the last packet that was noted; absent where nobody notes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u32>,
    /// Seconds until it makes room, if no packet comes; of translated ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_seconds: Option<u32>,
}

/// Connections that match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Connections {
    /// At most as many as were asked for.
    pub items: Vec<Connection>,
    /// How many match.
    pub total: u64,
}

/// How many entries were removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// Entries.
    pub removed: u64,
}

/// Which connections are meant: those that match everything that is given.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// `nat` or `flows`.
    table: Option<String>,
    /// Name of a service.
    service: Option<String>,
    /// An address on any side: of client, service, translation or backend.
    #[param(value_type = Option<String>)]
    address: Option<IpAddr>,
    /// A port on any side.
    port: Option<u16>,
    /// `tcp`, `udp` or `sctp`.
    protocol: Option<String>,
    /// `ipv4` or `ipv6`: the client's.
    family: Option<String>,
    /// As it is shown.
    state: Option<String>,
    /// At most so many are shown; 1000 if it is not given. All that match are counted.
    limit: Option<usize>,
    /// When removing: every entry, with no condition.
    #[serde(default)]
    all: bool,
}

/// The same, checked.
struct Filter {
    table: Option<String>,
    service: Option<String>,
    address: Option<IpAddr>,
    port: Option<u16>,
    protocol: Option<Protocol>,
    v4: Option<bool>,
    state: Option<String>,
}

impl Filter {
    fn of(wanted: Wanted, view: &View) -> Result<Self, Problem> {
        let one_of = |field: &str, value: &Option<String>, known: &[&str]| match value {
            Some(value) if !known.contains(&&**value) => {
                let detail = format!("\"{value}\": known are {}", known.join(", "));
                Err(Problem::invalid(field, detail))
            }
            _ => Ok(()),
        };
        let Wanted { table, service, address, port, protocol, family, state, limit: _, all: _ } =
            wanted;
        one_of("table", &table, &["nat", "flows"])?;
        one_of("protocol", &protocol, &["tcp", "udp", "sctp"])?;
        one_of("family", &family, &["ipv4", "ipv6"])?;
        one_of("state", &state, &STATES)?;
        if let Some(name) = &service
            && !view.services.iter().any(|service| service.spec.name == *name)
        {
            return Err(Problem::new(Kind::NotFound, format!("there is no service \"{name}\"")));
        }
        let protocol = protocol.as_deref().map(|name| match name {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => Protocol::Sctp,
        });
        let v4 = family.map(|family| family == "ipv4");
        Ok(Self { table, service, address, port, protocol, v4, state })
    }

    /// Whether it says nothing.
    fn is_empty(&self) -> bool {
        let Self { table, service, address, port, protocol, v4, state } = self;
        table.is_none()
            && service.is_none()
            && address.is_none()
            && port.is_none()
            && protocol.is_none()
            && v4.is_none()
            && state.is_none()
    }

    fn takes(&self, of: &conntrack::Connection, service: Option<&str>) -> bool {
        let ends = [Some(of.client), of.vip, of.nat, Some(of.backend)];
        let any = |is: &dyn Fn(SocketAddr) -> bool| ends.into_iter().flatten().any(is);
        self.table.as_deref().is_none_or(|table| table == of.table.name())
            && self.service.as_deref().is_none_or(|name| service == Some(name))
            && self.address.is_none_or(|address| any(&|end| end.ip() == address))
            && self.port.is_none_or(|port| any(&|end| end.port() == port))
            && self.protocol.is_none_or(|protocol| of.protocol == Some(protocol))
            && self.v4.is_none_or(|v4| of.client.is_ipv4() == v4)
            && self.state.as_deref().is_none_or(|state| state == of.state)
    }
}

/// Names of services and backends by row of the backend.
struct Names<'v>(std::collections::HashMap<u32, (&'v str, &'v str)>);

impl<'v> Names<'v> {
    fn of(view: &'v View) -> Self {
        let services = view.services.iter();
        let rows = services.flat_map(|service| {
            let name = &*service.spec.name;
            service.backends().map(move |(spec, view)| (view.row, (name, &*spec.name)))
        });
        Self(rows.collect())
    }

    fn service(&self, row: u32) -> Option<&'v str> {
        self.0.get(&row).map(|&(service, _)| service)
    }
}

impl Connection {
    fn of(found: &conntrack::Connection, names: &Names<'_>) -> Self {
        let conntrack::Connection { table, client, vip, nat, backend, state, .. } = found;
        Self {
            table: table.name().to_owned(),
            protocol: found.protocol.map(|protocol| protocol.as_str().to_owned()),
            client: *client,
            vip: *vip,
            nat: *nat,
            backend: *backend,
            service: names.service(found.row).map(str::to_owned),
            backend_name: names.0.get(&found.row).map(|&(_, backend)| backend.to_owned()),
            state: (*state).to_owned(),
            idle_seconds: found.idle,
            expires_seconds: found.expires,
        }
    }
}

/// Connections that have entries: those that are translated, and those that the ring alone would send
/// elsewhere. Most connections of other modes have none.
#[utoipa::path(
    get, path = "/v1/conntrack", tag = "node", params(Wanted),
    responses(
        (status = 200, body = Connections),
        (status = 404, description = "No such service", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "A filter that cannot be", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn connections(
    State(state): State<ApiState>,
    QueryOf(wanted): QueryOf<Wanted>,
) -> Result<Json<Connections>, Problem> {
    let most = wanted.limit.unwrap_or(SHOWN);
    if most > limits::CONNECTIONS_SHOWN {
        let detail = format!("at most {} are shown", limits::CONNECTIONS_SHOWN);
        return Err(Problem::invalid("limit", detail));
    }
    let filter = Filter::of(wanted, &state.view())?;
    let read = move |view: &View, counters: &dyn Counters| {
        let names = Names::of(view);
        let mut found = Connections { items: Vec::new(), total: 0 };
        counters.connections(&mut |connection| {
            if filter.takes(connection, names.service(connection.row)) {
                found.total += 1;
                if found.items.len() < most {
                    found.items.push(Connection::of(connection, &names));
                }
            }
            Visit::Keep
        });
        found
    };
    state.read(read).await.map(Json)
}

/// The two ends of a packet.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Tuple {
    /// `tcp`, `udp` or `sctp`.
    protocol: String,
    /// ADDRESS:PORT that it comes from.
    #[param(value_type = String)]
    source: SocketAddr,
    /// ADDRESS:PORT that it goes to.
    #[param(value_type = String)]
    destination: SocketAddr,
}

impl Tuple {
    /// A packet of any direction, on either side of a translation.
    fn is_of(&self, found: &conntrack::Connection) -> bool {
        let ends = (self.source, self.destination);
        let either = |a, b| ends == (a, b) || ends == (b, a);
        found.vip.is_some_and(|vip| either(found.client, vip))
            || found.nat.is_some_and(|nat| either(nat, found.backend))
    }
}

/// The connection that a packet belongs to, seen at either side of this machine and in either direction.
#[utoipa::path(
    get, path = "/v1/conntrack/entry", tag = "node", params(Tuple),
    responses(
        (status = 200, body = Connection),
        (status = 404, description = "It has no entry", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn connection(
    State(state): State<ApiState>,
    QueryOf(tuple): QueryOf<Tuple>,
) -> Result<Json<Connection>, Problem> {
    let wanted = Wanted { protocol: Some(tuple.protocol.clone()), ..Wanted::default() };
    let filter = Filter::of(wanted, &state.view())?;
    let detail =
        format!("no entry for {} from {} to {}", tuple.protocol, tuple.source, tuple.destination);
    let read = move |view: &View, counters: &dyn Counters| {
        let names = Names::of(view);
        let mut found = None;
        counters.connections(&mut |connection| {
            if filter.takes(connection, None) && tuple.is_of(connection) {
                found = Some(Connection::of(connection, &names));
            }
            Visit::Keep
        });
        found
    };
    state.read(read).await?.map(Json).ok_or_else(|| Problem::new(Kind::NotFound, detail))
}

/// Removes entries. A translated TCP connection ends with that; another flow goes where its slot of the ring
/// says.
#[utoipa::path(
    delete, path = "/v1/conntrack", tag = "node", params(Wanted),
    responses(
        (status = 200, body = Removed),
        (status = 404, description = "No such service", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "No condition, or one that cannot be", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn remove_connections(
    State(state): State<ApiState>,
    QueryOf(wanted): QueryOf<Wanted>,
) -> Result<Json<Removed>, Problem> {
    if wanted.limit.is_some() {
        return Err(Problem::invalid("limit", "all that match are removed, or none"));
    }
    let all = wanted.all;
    let filter = Filter::of(wanted, &state.view())?;
    if filter.is_empty() != all {
        let detail = "a condition, or all=true: one of them";
        return Err(Problem::invalid("all", detail));
    }
    let remove = move |view: &View, counters: &dyn Counters| {
        let names = Names::of(view);
        let mut removed = 0;
        counters.connections(&mut |connection| {
            if !filter.takes(connection, names.service(connection.row)) {
                return Visit::Keep;
            }
            removed += 1;
            Visit::Remove
        });
        removed
    };
    let removed = state.read(remove).await?;
    tracing::info!(removed, "entries of connections removed through the API");
    Ok(Json(Removed { removed }))
}
