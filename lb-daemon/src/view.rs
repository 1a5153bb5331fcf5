//! What the owner task publishes for everybody else to read: one immutable [`View`] per change, and
//! live counters behind [`Counters`].
//!
//! The API, the metrics and the CLI read only this. Nothing here can change anything; changes are
//! [`Command`](crate::command::Command)s.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use config::{
    model::{
        Backend, Endpoint, Forwarding, ListAction, Port, Prefilter, RateLimit, Remote, Roles,
        Service, Source, XdpMode,
    },
    policy::{Enforcement, Labels},
};

use crate::conntrack;

/// The daemon's state as of one moment. Cheap to clone behind `Arc`.
#[derive(Clone, Debug)]
pub struct View {
    /// Name of this node.
    pub node: String,
    /// When this process started.
    pub started: SystemTime,
    /// True when the tables and links of an earlier process were taken over.
    pub adopted: bool,
    /// State of the configuration.
    pub config: ConfigView,
    /// What is attached where, by interface name.
    pub interfaces: Vec<InterfaceView>,
    /// Services by name.
    pub services: Vec<Arc<ServiceView>>,
    /// Blocklists in the order in which they apply.
    pub lists: Vec<ListView>,
    /// Rate limits in force.
    pub limits: Vec<LimitView>,
    /// The prefixes of these lists, and of what is allowed.
    pub prefilter: Arc<Prefilter>,
    /// Entries of the API's lists, with reason and end. Live: may be newer than the rest.
    pub bans: crate::bans::Shared,
    /// How fetching lists goes. Live.
    pub fetches: crate::fetch::Shared,
    /// A change of lists that waits for confirmation.
    pub unconfirmed: Option<UnconfirmedView>,
    /// Sampled packets. Live, as `bans`.
    pub samples: crate::events::Samples,
    /// Fragments that came before their first one.
    pub early: crate::early::Counts,
    /// Tables shared with the kernel.
    pub maps: Vec<MapView>,
    /// Identity policy in force.
    pub policy: Arc<PolicyView>,
    /// Documents of rules that the API has set, with the number of their rules.
    pub policy_documents: Vec<(String, u64)>,
    /// What DNS says of names that rules select.
    pub names: crate::policy::names::Shared,
}

/// State of the configuration.
#[derive(Clone, Debug)]
pub struct ConfigView {
    /// Directory or file that is watched.
    pub path: PathBuf,
    /// Counts changes put in force since the tables were first made; survives restarts.
    pub generation: u64,
    /// When the last change was put in force.
    pub last_success: Option<SystemTime>,
    /// From the first notice of the change to all its stores done.
    pub last_apply: Option<Duration>,
    /// Why what is on disk is not in force; empty when it is. Each is one printable paragraph with
    /// file, line and column.
    pub faults: Vec<String>,
}

/// An interface that the configuration names or matches.
#[derive(Clone, Debug)]
pub struct InterfaceView {
    /// Kernel's name.
    pub name: String,
    /// `None` while it does not exist.
    pub ifindex: Option<u32>,
    /// What the configuration wants.
    pub wanted: XdpMode,
    /// What the programs do there.
    pub roles: Roles,
    /// What came of it.
    pub attached: Attachment,
}

/// Outcome of attaching to one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// In the driver.
    Native,
    /// In the generic hook.
    Generic,
    /// Not attached: why, and the command that mends it.
    Failed(String),
}

/// A service in force.
#[derive(Clone, Debug)]
pub struct ServiceView {
    /// As it was asked for.
    pub spec: Arc<Service>,
    /// Changes whenever `spec` does; the entity tag of the API.
    pub version: u64,
    /// Slots of its ring.
    pub ring_size: u32,
    /// Slots that are between two backends because of a recent change.
    pub moving_slots: u32,
    /// One for each address and port; none of a part, which no packet is for.
    pub frontends: Vec<FrontendView>,
    /// Its own, in the order of `spec.backends`; those of groups are its parts'.
    pub backends: Vec<BackendView>,
}

/// An address and port of a service.
#[derive(Clone, Debug)]
pub struct FrontendView {
    /// VIP.
    pub address: IpAddr,
    /// Port and its name.
    pub port: Port,
    /// Row of its counters.
    pub row: u32,
}

/// A backend of a service.
#[derive(Clone, Debug)]
pub struct BackendView {
    /// Its place in `spec.backends`.
    pub index: u32,
    /// What the health check found.
    pub health: Health,
    /// Why it counts as down, or the last probe's failure.
    pub health_reason: Option<Box<str>>,
    /// Route and neighbour are known.
    pub next_hop: NextHopView,
    /// Slots of the ring whose current backend it is.
    pub slots: u32,
    /// Row of its counters.
    pub row: u32,
}

/// Health of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// No check is configured: counts as healthy.
    Unchecked,
    /// A check is configured and has not decided yet: counts as healthy.
    Unknown,
    /// Healthy.
    Up,
    /// Unhealthy: takes no flows.
    Down,
}

/// How packets leave for a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHopView {
    /// Interface name, MAC and MTU of the way.
    Resolved {
        /// Egress interface.
        interface: Arc<str>,
        /// Next hop's MAC.
        mac: [u8; 6],
        /// Path MTU known to the route or link, in bytes of L3.
        mtu: u32,
    },
    /// They do not: the backend is this machine.
    Local,
    /// Why not.
    Unresolved(Arc<str>),
}

/// A blocklist in force.
#[derive(Clone, Debug)]
pub struct ListView {
    /// Unique name.
    pub name: String,
    /// Who it came from.
    pub source: Source,
    /// What it does.
    pub action: ListAction,
    /// IPv4 prefixes.
    pub prefixes_v4: u64,
    /// IPv6 prefixes.
    pub prefixes_v6: u64,
    /// Lines of its file that were left out.
    pub skipped_lines: u64,
    /// Which packets it is about, in one line; empty: all from its addresses.
    pub scope: String,
    /// Where it is fetched from, if it is.
    pub remote: Option<Arc<Remote>>,
    /// Row of its counters.
    pub row: u32,
}

/// A change of lists that is taken back unless it is confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnconfirmedView {
    /// What was changed.
    pub what: String,
    /// When it is taken back.
    pub until: SystemTime,
}

/// A rate limit in force.
#[derive(Clone, Debug)]
pub struct LimitView {
    /// As it was asked for.
    pub spec: RateLimit,
    /// Row of its counters.
    pub row: u32,
}

/// Identity policy in force.
#[derive(Clone, Debug, Default)]
pub struct PolicyView {
    /// Endpoints of this machine.
    pub endpoints: Vec<EndpointView>,
    /// This machine on each of its own interfaces, where its firewall is on.
    pub host: Vec<EndpointView>,
    /// Rules, in order.
    pub rules: Vec<RuleView>,
    /// Numbers, and the labels that they stand for.
    pub identities: Vec<(u32, Labels)>,
    /// Whether endpoints without a rule are open.
    pub enforcement: Enforcement,
    /// All that was asked for.
    pub wanted: Arc<crate::policy::state::Wanted>,
}

/// A workload of this machine.
#[derive(Clone, Debug)]
pub struct EndpointView {
    /// As it was asked for.
    pub spec: Arc<Endpoint>,
    /// The number of its labels.
    pub identity: u32,
    /// Whether policy is enforced there.
    pub attached: crate::policy::kernel::Attachment,
}

/// A rule in force.
#[derive(Clone, Debug)]
pub struct RuleView {
    /// Name in verdicts and reports.
    pub name: String,
    /// Who it came from.
    pub source: Source,
    /// What it denies is counted and passes.
    pub audit: bool,
    /// Row of its counters.
    pub row: u32,
}

impl PolicyView {
    /// How many endpoints of this machine each rule selects.
    #[must_use]
    pub fn selected(&self) -> Vec<u64> {
        let mut labels: std::collections::BTreeMap<(bool, &Labels), u64> =
            std::collections::BTreeMap::new();
        for endpoint in &self.endpoints {
            *labels.entry((false, &endpoint.spec.labels)).or_default() += 1;
        }
        for host in &self.host {
            labels.insert((true, &host.spec.labels), 1);
        }
        crate::policy::compile::selected(&self.wanted.rules, labels)
    }
}

/// A table shared with the kernel.
#[derive(Clone, Debug)]
pub struct MapView {
    /// Name as in the object file.
    pub name: String,
    /// Entries in use; `None` where only the kernel knows.
    pub entries: Option<u64>,
    /// Entries it was made for.
    pub capacity: u64,
    /// Memory it takes.
    pub bytes: u64,
}

/// Packets and bytes since the tables were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes on the wire, Ethernet header included, before encapsulation.
    pub bytes: u64,
    /// Of these packets, TCP segments with SYN and without ACK.
    pub new_connections: u64,
}

/// Live counters, read straight from shared memory; each call sums over CPUs.
pub trait Counters: Send + Sync {
    /// Counters of a frontend row.
    fn frontend(&self, row: u32) -> Count;
    /// Counters of a backend row.
    fn backend(&self, row: u32) -> Count;
    /// Connections of a backend row, where its service counts them.
    fn active(&self, _row: u32) -> u64 {
        0
    }
    /// Flows that should have got an entry and did not, as there were too many at once.
    fn not_admitted(&self) -> u64 {
        0
    }
    /// Shows every entry of a connection, and removes those that the caller has no use for.
    fn connections(&self, _visit: &mut dyn FnMut(&conntrack::Connection) -> conntrack::Visit) {}
    /// The room that NAT has.
    fn nat(&self) -> conntrack::NatUse {
        conntrack::NatUse::default()
    }
    /// Counters of a blocklist row; `new_connections` is 0.
    fn list(&self, row: u32) -> Count;
    /// Packets beyond a rate limit, by its row.
    fn limit(&self, row: u32) -> Count;
    /// Packets that a rule of policy decided; `new_connections` is 0.
    fn rule(&self, _row: u32) -> Count {
        Count::default()
    }
    /// Every reason with its packets and bytes, in the order of [`abi::reason::Reason`].
    fn reasons(&self) -> Vec<(abi::reason::Reason, Count)>;
}

impl ServiceView {
    /// Backends as they were asked for, and what became of each.
    pub fn backends(&self) -> impl Iterator<Item = (&Backend, &BackendView)> {
        let spec = |view: &BackendView| self.spec.backends.get(view.index as usize);
        self.backends.iter().filter_map(move |view| Some((spec(view)?, view)))
    }

    /// `l2`, `ipip`, `gue` or `geneve`.
    #[must_use]
    pub fn forwarding(&self) -> Forwarding {
        self.spec.forwarding
    }
}
