//! The one page about everything, and whether the appliance does its work.

use std::time::SystemTime;

use abi::reason::Verdict;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    BackendCounts, Interface, Map, PrefilterStatus, ReasonCount, Traffic, rfc3339, serves,
};
use crate::{
    conntrack::{NatUse, REMEDY},
    guard::Guard,
    view::{self, Counters, View},
};

/// State of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConfigStatus {
    /// What is watched.
    pub path: String,
    /// Changes put in force since the tables were made.
    pub generation: u64,
    /// When the last change came into force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<String>,
    /// From the notice of that change to its last store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_apply_seconds: Option<f64>,
    /// Why what is on disk is not in force; empty when it is.
    pub faults: Vec<String>,
}

/// One page about everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Name of this node.
    pub node: String,
    /// Version of the daemon.
    pub version: String,
    /// When the daemon started.
    pub started: String,
    /// Seconds since then.
    pub uptime_seconds: u64,
    /// Whether it took over the tables of an earlier process.
    pub adopted: bool,
    /// Whether the appliance does its work.
    pub ready: bool,
    /// Why not.
    pub not_ready: Vec<String>,
    /// State of the configuration.
    pub config: ConfigStatus,
    /// What is attached where.
    pub interfaces: Vec<Interface>,
    /// Services, counted.
    pub services: ServicesStatus,
    /// Blocklists, counted.
    pub prefilter: PrefilterStatus,
    /// What does not keep the appliance from its work, and wants to be seen to.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Reasons with at least one packet that was dropped.
    pub drops: Vec<ReasonCount>,
    /// Tables.
    pub maps: Vec<Map>,
}

/// Services, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServicesStatus {
    /// Services.
    pub total: u32,
    /// Of these, how many have no backend that gets flows.
    pub without_backend: u32,
    /// Backends of all services.
    pub backends: BackendCounts,
    /// Traffic of all services.
    pub traffic: Traffic,
}

impl Status {
    /// The state of everything as of `now`.
    #[must_use]
    pub fn of(view: &View, counters: &dyn Counters, guard: &Guard, now: SystemTime) -> Self {
        let mut services = ServicesStatus::default();
        for service in &view.services {
            services.total += 1;
            services.without_backend += u32::from(!service.backends().any(|(s, b)| serves(s, b)));
            for (spec, backend) in service.backends() {
                services.backends.count(spec, backend);
            }
            for frontend in &service.frontends {
                services.traffic.add(counters.frontend(frontend.row).into());
            }
        }
        let not_ready: Vec<_> = not_ready(view).into_iter().map(|(_, reason)| reason).collect();
        Self {
            node: view.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: rfc3339(view.started),
            uptime_seconds: now.duration_since(view.started).unwrap_or_default().as_secs(),
            adopted: view.adopted,
            ready: not_ready.is_empty(),
            not_ready,
            config: ConfigStatus::from(&view.config),
            interfaces: view.interfaces.iter().map(Interface::from).collect(),
            services,
            prefilter: PrefilterStatus::of(view, counters),
            warnings: warnings(view, counters, guard),
            drops: counters
                .reasons()
                .into_iter()
                .filter(|(reason, count)| reason.verdict() == Verdict::Drop && count.packets > 0)
                .map(|(reason, count)| ReasonCount::of(reason, count))
                .collect(),
            maps: view.maps.iter().map(Map::from).collect(),
        }
    }
}

/// What does not keep the appliance from its work, and wants to be seen to.
fn warnings(view: &View, counters: &dyn Counters, guard: &Guard) -> Vec<String> {
    let NatUse { used, capacity, refused } = counters.nat();
    let exhausted = (refused > 0).then(|| {
        format!(
            "NAT: {refused} packets that open a connection got no port in the last minute, with {used} of {capacity} \
             entries in use; {REMEDY}"
        )
    });
    exhausted.into_iter().chain(guard.warnings(view)).collect()
}

impl From<&view::ConfigView> for ConfigStatus {
    fn from(config: &view::ConfigView) -> Self {
        Self {
            path: config.path.display().to_string(),
            generation: config.generation,
            last_success: config.last_success.map(rfc3339),
            last_apply_seconds: config.last_apply.map(|d| d.as_secs_f64()),
            faults: config.faults.clone(),
        }
    }
}

/// Why the appliance does not do its work, as `(part, reason)`; empty when it does.
///
/// Tables taken over from an earlier process count as a configuration in force: they forward.
#[must_use]
pub fn not_ready(view: &View) -> Vec<(String, String)> {
    let mut reasons = Vec::new();
    let in_force =
        view.config.last_success.is_some() || (view.adopted && view.config.generation > 0);
    if !in_force {
        let reason = if view.config.faults.is_empty() {
            "no configuration has been put in force yet".to_owned()
        } else {
            format!("no configuration is in force: {}", view.config.faults.join("; "))
        };
        reasons.push(("config".to_owned(), reason));
    }
    for interface in &view.interfaces {
        if let view::Attachment::Failed(reason) = &interface.attached {
            let name = &interface.name;
            reasons
                .push((format!("interfaces.{name}"), format!("{name} is not attached: {reason}")));
        }
    }
    reasons
}
