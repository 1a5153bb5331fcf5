//! The representations of the API: what `GET` answers with, as types with a schema.
//!
//! Owns names and units of every field. Made from a [`View`](view::View) and live counters alone, so they hold
//! no state; the client reads the same types back to draw its tables. Fields are only ever added.

mod prefilter;
mod status;
mod time;

use std::net::IpAddr;

use abi::reason::{Reason, Verdict};
use config::model;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::{
    prefilter::{Fetch, PrefilterStatus, PrefixList, Unconfirmed},
    status::{ConfigStatus, ServicesStatus, Status, not_ready},
    time::{from_rfc3339, rfc3339, rfc3339_millis},
};
use crate::view::{self, Count, Counters};

/// A list of objects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    /// The objects, in a stable order.
    pub items: Vec<T>,
}

/// Who an object came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A configuration file.
    File,
    /// This API.
    Api,
    /// The Kubernetes API.
    Kubernetes,
}

/// Packets and bytes since the tables were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes on the wire as received, Ethernet header included.
    pub bytes: u64,
    /// Of the packets, TCP segments that open a connection.
    pub new_connections: u64,
}

/// A service in force, without its specification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceSummary {
    /// Unique name.
    pub name: String,
    /// Who it came from; only services of the API can be changed here.
    pub source: Source,
    /// File with line and column, or the Kubernetes object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The service whose group of backends it is: clients that `source_routes` send there. It changes with that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<String>,
    /// Changes with the specification; the entity tag.
    pub version: u64,
    /// VIPs.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// How packets reach a backend: `l2`, `ipip`, `gue`, `geneve`.
    pub forwarding: String,
    /// How new flows are spread: `maglev`.
    pub scheduling: String,
    /// Slots of the ring.
    pub ring_size: u32,
    /// Slots between two backends because of a recent change.
    pub moving_slots: u32,
    /// Backends by what they do.
    pub backend_counts: BackendCounts,
    /// Sum over the frontends; of a part, over its backends.
    pub traffic: Traffic,
    /// One for each address and port; none of a part, which shares those of the whole service.
    pub frontends: Vec<Frontend>,
}

/// Backends of one or more services, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackendCounts {
    /// All.
    pub total: u32,
    /// Get new flows: own slots of the ring, are not down, and their next hop is known.
    pub serving: u32,
    /// Active by the operator's will and unhealthy.
    pub down: u32,
    /// Draining.
    pub draining: u32,
    /// In maintenance.
    pub maintenance: u32,
    /// Without a known next hop.
    pub unresolved: u32,
}

/// An address and port of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Frontend {
    /// VIP.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Name of the port.
    pub name: String,
    /// 0: every port that has no entry of its own. The first one of a range.
    pub port: u16,
    /// The last one of a range; not there without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<u16>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// What came for it.
    pub traffic: Traffic,
}

/// A service in force: what was asked for and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// Everything that lists show too.
    #[serde(flatten)]
    pub summary: ServiceSummary,
    /// What was asked for, complete with defaults; a PUT takes it as its body.
    #[schema(value_type = Object)]
    pub spec: serde_json::Value,
    /// In the order of the specification.
    pub backends: Vec<Backend>,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Backend {
    /// Its service.
    pub service: String,
    /// Unique within the service.
    pub name: String,
    /// Who its service came from.
    pub source: Source,
    /// Where it is reached.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Share relative to the others; 0: no new flows.
    pub weight: u32,
    /// Connections, of a service that has an entry for each.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub active_connections: Option<u64>,
    /// What the operator wants of it.
    pub state: BackendState,
    /// What the health check found.
    pub health: Health,
    /// Why it counts as down, or the last probe's failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_reason: Option<String>,
    /// Slots of the ring that it owns.
    pub slots: u32,
    /// Of the ring, between 0 and 1.
    pub share: f64,
    /// The way there.
    pub next_hop: NextHop,
    /// What was sent to it.
    pub traffic: Traffic,
}

/// What the operator wants of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Takes flows.
    Active,
    /// No new flows.
    Draining,
    /// Takes nothing.
    Maintenance,
}

/// Health of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No check is configured: counts as healthy.
    Unchecked,
    /// Not decided yet: counts as healthy.
    Unknown,
    /// Healthy.
    Up,
    /// Unhealthy.
    Down,
}

/// How packets leave for a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NextHop {
    /// Whether route and neighbour are known.
    pub resolved: bool,
    /// The backend is the balancer's own machine: its packets go to the stack.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    /// Egress interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// MAC address of the next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Bytes of L3 that fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Why it is not resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Why packets went the way they went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReasonCount {
    /// Stable name.
    pub name: String,
    /// `pass`, `drop` or `forward`.
    pub verdict: String,
    /// What it means.
    pub description: String,
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A table shared with the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Map {
    /// As in the object file.
    pub name: String,
    /// In use; absent where only the kernel knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Entries it was made for.
    pub capacity: u64,
    /// Memory it takes.
    pub bytes: u64,
}

/// An interface that the configuration names or matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Interface {
    /// Kernel's name.
    pub name: String,
    /// Absent while the interface does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ifindex: Option<u32>,
    /// `auto`, `native` or `generic`.
    pub wanted: String,
    /// `prefilter`, `balance`, `decap`, `node`.
    pub roles: Vec<String>,
    /// `native`, `generic` or `none`.
    pub attached: String,
    /// Why it is not attached, and what mends that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A change that came into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Accepted {
    /// The object.
    pub name: String,
    /// Its version now.
    pub version: u64,
}

/// A change of a backend; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendPatch {
    /// 0 to 65,535; 0: no new flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 65535)]
    pub weight: Option<u32>,
    /// What the operator wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<BackendState>,
}

impl Traffic {
    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.new_connections += other.new_connections;
    }
}

impl From<Count> for Traffic {
    fn from(Count { packets, bytes, new_connections }: Count) -> Self {
        Self { packets, bytes, new_connections }
    }
}

impl From<&model::Source> for Source {
    fn from(source: &model::Source) -> Self {
        match source {
            model::Source::File { .. } => Self::File,
            model::Source::Api => Self::Api,
            model::Source::Kubernetes(_) => Self::Kubernetes,
        }
    }
}

impl Source {
    /// As in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Api => "api",
            Self::Kubernetes => "kubernetes",
        }
    }
}

/// Where exactly an object came from; `None` for the API.
#[must_use]
pub fn origin(source: &model::Source) -> Option<String> {
    match source {
        model::Source::File { path, line, column } => {
            Some(format!("{}:{line}:{column}", path.display()))
        }
        model::Source::Api => None,
        model::Source::Kubernetes(object) => Some(object.clone()),
    }
}

/// Whether a backend gets new flows at this moment.
#[must_use]
pub fn serves(spec: &model::Backend, backend: &view::BackendView) -> bool {
    spec.state == model::BackendState::Active
        && backend.slots > 0
        && backend.health != view::Health::Down
        && !matches!(backend.next_hop, view::NextHopView::Unresolved(_))
}

impl BackendCounts {
    fn count(&mut self, spec: &model::Backend, backend: &view::BackendView) {
        self.total += 1;
        self.serving += u32::from(serves(spec, backend));
        match spec.state {
            model::BackendState::Active => {
                self.down += u32::from(backend.health == view::Health::Down);
            }
            model::BackendState::Draining => self.draining += 1,
            model::BackendState::Maintenance => self.maintenance += 1,
        }
        self.unresolved += u32::from(matches!(backend.next_hop, view::NextHopView::Unresolved(_)));
    }
}

impl ServiceSummary {
    /// A service as of now.
    #[must_use]
    pub fn of(service: &view::ServiceView, counters: &dyn Counters) -> Self {
        let mut backend_counts = BackendCounts::default();
        for (spec, backend) in service.backends() {
            backend_counts.count(spec, backend);
        }
        let frontends: Vec<_> =
            service.frontends.iter().map(|frontend| Frontend::of(frontend, counters)).collect();
        let mut traffic = Traffic::default();
        for frontend in &frontends {
            traffic.add(frontend.traffic);
        }
        if service.spec.part_of.is_some() {
            for (_, backend) in service.backends() {
                traffic.add(counters.backend(backend.row).into());
            }
        }
        Self {
            name: service.spec.name.clone(),
            source: Source::from(&service.spec.source),
            origin: origin(&service.spec.source),
            part_of: service.spec.part_of.as_ref().map(|part| part.service.clone()),
            version: service.version,
            addresses: service.spec.addresses.clone(),
            forwarding: service.spec.forwarding.as_str().to_owned(),
            scheduling: service.spec.steering.scheduling.as_str().to_owned(),
            ring_size: service.ring_size,
            moving_slots: service.moving_slots,
            backend_counts,
            traffic,
            frontends,
        }
    }
}

impl Frontend {
    fn of(frontend: &view::FrontendView, counters: &dyn Counters) -> Self {
        Self {
            address: frontend.address,
            name: frontend.port.name.clone(),
            port: frontend.port.port,
            end_port: frontend.port.is_range().then_some(frontend.port.last),
            protocol: frontend.port.protocol.as_str().to_owned(),
            traffic: counters.frontend(frontend.row).into(),
        }
    }
}

impl Backend {
    /// Every backend of a service as of now.
    pub fn all(service: &view::ServiceView, counters: &dyn Counters) -> impl Iterator<Item = Self> {
        service.backends().map(move |(spec, backend)| Self {
            service: service.spec.name.clone(),
            name: spec.name.clone(),
            source: Source::from(&service.spec.source),
            address: spec.address,
            weight: spec.weight,
            active_connections: service
                .spec
                .counts_connections()
                .then(|| counters.active(backend.row)),
            state: spec.state.into(),
            health: backend.health.into(),
            health_reason: backend.health_reason.as_deref().map(str::to_owned),
            slots: backend.slots,
            share: f64::from(backend.slots) / f64::from(service.ring_size.max(1)),
            next_hop: NextHop::from(&backend.next_hop),
            traffic: counters.backend(backend.row).into(),
        })
    }
}

impl From<model::BackendState> for BackendState {
    fn from(state: model::BackendState) -> Self {
        match state {
            model::BackendState::Active => Self::Active,
            model::BackendState::Draining => Self::Draining,
            model::BackendState::Maintenance => Self::Maintenance,
        }
    }
}

impl BackendState {
    /// As in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Maintenance => "maintenance",
        }
    }
}

impl From<view::Health> for Health {
    fn from(health: view::Health) -> Self {
        match health {
            view::Health::Unchecked => Self::Unchecked,
            view::Health::Unknown => Self::Unknown,
            view::Health::Up => Self::Up,
            view::Health::Down => Self::Down,
        }
    }
}

impl Health {
    /// As in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl From<&view::NextHopView> for NextHop {
    fn from(next_hop: &view::NextHopView) -> Self {
        match next_hop {
            view::NextHopView::Resolved { interface, mac, mtu } => {
                let mac = mac.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
                Self {
                    resolved: true,
                    local: false,
                    interface: Some(interface.to_string()),
                    mac: Some(mac),
                    mtu: Some(*mtu),
                    reason: None,
                }
            }
            view::NextHopView::Local => Self {
                resolved: true,
                local: true,
                interface: None,
                mac: None,
                mtu: None,
                reason: None,
            },
            view::NextHopView::Unresolved(reason) => Self {
                resolved: false,
                local: false,
                interface: None,
                mac: None,
                mtu: None,
                reason: Some(reason.to_string()),
            },
        }
    }
}

/// Name of a verdict in the API and in metrics.
#[must_use]
pub fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Drop => "drop",
        Verdict::Forward => "forward",
    }
}

impl ReasonCount {
    /// A reason and how often it was met.
    #[must_use]
    pub fn of(reason: Reason, count: Count) -> Self {
        Self {
            name: reason.name().to_owned(),
            verdict: verdict_name(reason.verdict()).to_owned(),
            description: reason.describe().to_owned(),
            packets: count.packets,
            bytes: count.bytes,
        }
    }
}

impl From<&view::MapView> for Map {
    fn from(map: &view::MapView) -> Self {
        let view::MapView { name, entries, capacity, bytes } = map;
        Self { name: name.clone(), entries: *entries, capacity: *capacity, bytes: *bytes }
    }
}

/// Name of a wanted mode in files, the API and metrics.
fn mode_name(mode: model::XdpMode) -> &'static str {
    match mode {
        model::XdpMode::Auto => "auto",
        model::XdpMode::Native => "native",
        model::XdpMode::Generic => "generic",
    }
}

impl From<&view::InterfaceView> for Interface {
    fn from(interface: &view::InterfaceView) -> Self {
        let model::Roles { prefilter, balance, decap, node } = interface.roles;
        let roles =
            [(prefilter, "prefilter"), (balance, "balance"), (decap, "decap"), (node, "node")];
        let (attached, reason) = match &interface.attached {
            view::Attachment::Native => ("native", None),
            view::Attachment::Generic => ("generic", None),
            view::Attachment::Failed(reason) => ("none", Some(reason.clone())),
        };
        Self {
            name: interface.name.clone(),
            ifindex: interface.ifindex,
            wanted: mode_name(interface.wanted).to_owned(),
            roles: roles.iter().filter(|(on, _)| *on).map(|(_, role)| (*role).to_owned()).collect(),
            attached: attached.to_owned(),
            reason,
        }
    }
}
