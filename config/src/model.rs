//! The domain model: what the appliance is asked to do, as plain validated data.
//!
//! Owns the types that every source (YAML files, the API, Kubernetes) produces and that
//! `lb-daemon` compiles into tables. Knows nothing of YAML, of kube objects or of BPF maps, and does
//! no I/O. Whatever stands here is valid: names are unique, prefixes are masked, a service has at
//! least one address and one port.
//!
//! Services are held behind `Arc`, so that a source that did not change hands out the same
//! allocation again and the planner sees that by comparing pointers.

mod service;

pub use self::service::{
    Backend, BackendState, Forwarding, HealthCheck, PartOf, Port, Probe, Protocol, Scheduling,
    Service, SourceRoute, Steering,
};

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    Fault, Geo, PrefixSet,
    policy::{Enforcement, Established, Fqdn, Labels, PortName, Rule},
};

/// Everything that all sources together ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DesiredState {
    /// This machine.
    pub node: Node,
    /// Where programs are attached, in the order of the files.
    pub interfaces: Vec<Interface>,
    /// Parameters of all rings.
    pub maglev: Maglev,
    /// Who may send encapsulated packets to this machine; empty: everybody.
    pub decap_sources: Vec<IpNet>,
    /// Services by name; their parts, once [`Self::with_parts`] has added them.
    pub services: BTreeMap<String, Arc<Service>>,
    /// The blocklists.
    pub prefilter: Arc<Prefilter>,
    /// Who stands behind which address, by name.
    pub endpoints: BTreeMap<String, Arc<Endpoint>>,
    /// Rules of identity policy, in the order of the files.
    pub policies: Arc<Vec<Rule>>,
    /// Whether endpoints without a rule are open.
    pub policy_enforcement: Enforcement,
    /// What becomes of established connections that rules no longer allow.
    pub policy_established: Established,
    /// Bounds of what is learned from DNS.
    pub policy_fqdn: Fqdn,
    /// Where rules with a `nodeSelector` are enforced; `None`: nowhere.
    pub host_firewall: Option<Arc<HostFirewall>>,
    /// Addresses of other nodes.
    pub remote_nodes: BTreeSet<IpAddr>,
}

impl DesiredState {
    /// With the parts of all services beside them.
    #[must_use]
    pub fn with_parts(mut self) -> Self {
        let parts: Vec<Arc<Service>> =
            self.services.values().flat_map(|service| &service.parts).cloned().collect();
        self.services.extend(parts.into_iter().map(|part| (part.name.clone(), part)));
        self
    }
}

/// This machine, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name in metrics and events.
    pub name: String,
    /// Outer source of encapsulated packets.
    pub tunnel_source: TunnelSource,
    /// What happens to packets for the address of a service that no service takes.
    pub unserved: Unserved,
    /// How many packets are sampled.
    pub samples: Samples,
    /// Translation for services with `forwarding: nat`.
    pub nat: Nat,
    /// What a `nodeSelector` selects it by.
    pub labels: Labels,
}

/// Samples that are taken, in a second, on all CPUs together. More packets than that are sampled one in so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Samples {
    /// Of packets that are dropped.
    pub dropped: u64,
    /// Of packets that the prefilter lets pass.
    pub passed: u64,
}

impl Default for Samples {
    fn default() -> Self {
        Self { dropped: 1000, passed: 200 }
    }
}

/// Translation for services with `forwarding: nat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nat {
    /// Addresses that translated packets come from; for a family without one, the address that the kernel
    /// would use on the way to the backend.
    pub addresses: Vec<IpAddr>,
    /// Their ports.
    pub ports: NatPorts,
    /// Connections that there is room for: a power of two.
    pub entries: u32,
}

impl Default for Nat {
    fn default() -> Self {
        Self { addresses: Vec::new(), ports: NatPorts::default(), entries: 1 << 18 }
    }
}

/// A range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatPorts {
    /// The first one.
    pub first: u16,
    /// The last one, not below the first.
    pub last: u16,
}

impl Default for NatPorts {
    /// All that Linux does not use of itself, where nobody has changed that.
    fn default() -> Self {
        Self { first: 1024, last: 32_767 }
    }
}

impl NatPorts {
    /// The first port, and in the high half how many less one.
    #[must_use]
    pub const fn to_word(self) -> u32 {
        self.first as u32 | ((self.last - self.first) as u32) << 16
    }
}

/// What happens to packets for the address of a service that no service takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unserved {
    /// Dropped.
    #[default]
    Drop,
    /// TCP is answered with a reset, UDP with port unreachable; the rest is dropped.
    Reject,
    /// Left to the host's stack.
    Pass,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: "localhost".to_owned(),
            tunnel_source: TunnelSource::default(),
            unserved: Unserved::default(),
            samples: Samples::default(),
            nat: Nat::default(),
            labels: Labels::new(),
        }
    }
}

/// Outer source addresses of encapsulated packets, per family of the outer header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelSource {
    /// Outer IPv4 source.
    pub ipv4: SourceOf<Ipv4Net>,
    /// Outer IPv6 source.
    pub ipv6: SourceOf<Ipv6Net>,
}

/// Where an outer source address comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceOf<N> {
    /// The address that the kernel would use on the way to the backend; no flow entropy.
    #[default]
    Auto,
    /// Addresses of this prefix; the host bits (at most 16 of them) carry flow entropy. A full-length
    /// prefix is one fixed address.
    Prefix(N),
}

/// One entry of `interfaces`: a name or a pattern, and what is attached there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Exact name, or a pattern with `*` and `?`.
    pub select: InterfaceSelect,
    /// How XDP is attached.
    pub xdp_mode: XdpMode,
    /// What the programs on this interface do.
    pub roles: Roles,
}

/// Which interfaces an entry means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InterfaceSelect {
    /// Exactly this one; it is an (operational) fault when it does not exist.
    Name(String),
    /// All that match a shell pattern, now and later.
    Match(String),
}

/// `xdp_mode` of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native where the driver can; otherwise an error that says so. Never falls back silently.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's generic hook, after the socket buffer is made.
    Generic,
}

/// A set of roles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Roles {
    /// Drop blocked sources.
    pub prefilter: bool,
    /// Balance packets for VIPs.
    pub balance: bool,
    /// Take encapsulated packets addressed to this machine, and hand the inner packet to its stack.
    pub decap: bool,
    /// Kubernetes node.
    pub node: bool,
}

/// Parameters of every ring; the same on every node of a fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maglev {
    /// `None`: each service's own, from its backend count. `Some`: a prime, for all.
    pub table_size: Option<u32>,
    /// Seeds ring and flow hashes.
    pub seed: String,
}

/// Who an object came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A file, with the place of the object in it (1-based line and column).
    File {
        /// Path as the daemon opened it.
        path: Arc<PathBuf>,
        /// 1-based.
        line: u32,
        /// 1-based.
        column: u32,
    },
    /// Set through the REST API.
    Api,
    /// An object of the Kubernetes API, `namespace/name`.
    Kubernetes(String),
}

impl Source {
    /// `file`, `api` or `kubernetes`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Api => "api",
            Self::Kubernetes(_) => "kubernetes",
        }
    }
}

/// The blocklists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prefilter {
    /// Wins over every list.
    pub allow: PrefixSet,
    /// In order: where several lists cover an address, the first that drops decides, then the first
    /// that audits.
    pub lists: Vec<Arc<PrefixList>>,
    /// What no list is needed for.
    pub filters: Filters,
    /// By name; at most [`MAX_RATE_LIMITS`].
    pub rate_limits: Vec<RateLimit>,
    /// Listeners of this machine whose SYNs are answered in their place.
    pub syn_proxy: SynProxy,
    /// Countries and networks of addresses.
    pub geo: Arc<Geo>,
    /// Local APIs whose decisions become bans, in the order of the files.
    pub crowdsec: Vec<Arc<CrowdSec>>,
}

/// A local API of CrowdSec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrowdSec {
    /// The list that its bans are on.
    pub list: String,
    /// `http://` or `https://`.
    pub url: String,
    /// Holds the bouncer's key.
    pub api_key_file: PathBuf,
    /// How often decisions are pulled.
    pub interval: Duration,
    /// How long pulling may take.
    pub timeout: Duration,
    /// Authorities to trust, in the place of the system's.
    pub ca_file: Option<PathBuf>,
}

/// Packets that are dropped whatever their source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// TCP flags that cannot be.
    pub tcp_flags: bool,
    /// UDP from ports of services that are misused to amplify.
    pub amplification: bool,
    /// Fragments.
    pub fragments: bool,
}

/// Listeners of this machine whose SYNs are answered in their place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SynProxy {
    /// First and last TCP port of each range; none: there is no SYN proxy.
    pub ports: Vec<(u16, u16)>,
    /// Segments to these ports that belong to no connection are dropped.
    pub drop_stray_acks: bool,
}

/// Rate limits that can be in force.
pub const MAX_RATE_LIMITS: usize = 8;

/// What a rate limit counts, and how much of it is allowed in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rate {
    /// Packets: 1 to 1,000,000.
    Packets(u64),
    /// Bytes of frames: 1,000 to 100,000,000,000.
    Bytes(u64),
}

/// A limit on packets or bytes per second and source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RateLimit {
    /// Unique name.
    pub name: String,
    /// Who it came from.
    pub source: Source,
    /// What happens to packets beyond it.
    pub action: ListAction,
    /// Which packets it counts; `None`: all.
    pub protocol: Option<Protocol>,
    /// Destination port; 0: all.
    pub port: u16,
    /// TCP flags that are looked at, and those of them that are set; none: all packets.
    pub tcp_flags: (u8, u8),
    /// What it allows in a second.
    pub rate: Rate,
    /// Packets or bytes that may come at once, at least 1.
    pub burst: u64,
    /// Lengths of the IPv4 and IPv6 prefixes that have a budget of their own.
    pub key: (u8, u8),
}

impl RateLimit {
    /// TCP flags as in files: those that are set, and with `!` those that are not.
    #[must_use]
    pub fn flags(&self) -> Vec<String> {
        let (looked_at, set) = self.tcp_flags;
        let names = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
        let flag = |(place, name): (usize, &str)| {
            let not = if set >> place & 1 == 0 { "!" } else { "" };
            (looked_at >> place & 1 != 0).then(|| format!("{not}{name}"))
        };
        names.into_iter().enumerate().filter_map(flag).collect()
    }
}

/// A named list of prefixes.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefixList {
    /// Unique name.
    pub name: String,
    /// Who it came from.
    pub source: Source,
    /// What happens to a packet whose source is in it.
    pub action: ListAction,
    /// May overlap.
    pub prefixes: PrefixSet,
    /// Lines of its file that were left out because of `on_error: skip`: the first of them.
    pub skipped: Vec<Fault>,
    /// How many there are.
    pub skipped_lines: u64,
    /// Where it is fetched from, if it is.
    pub remote: Option<Arc<Remote>>,
    /// It may cover addresses that this machine needs.
    pub force: bool,
    /// Which packets it is about.
    pub scope: Scope,
}

impl PrefixList {
    /// A list that drops every packet from these prefixes.
    #[must_use]
    pub fn new(name: impl Into<String>, source: Source, prefixes: PrefixSet) -> Self {
        Self {
            name: name.into(),
            source,
            action: ListAction::Drop,
            prefixes,
            skipped: Vec::new(),
            skipped_lines: 0,
            remote: None,
            force: false,
            scope: Scope::default(),
        }
    }
}

/// Which packets from or to its addresses a list is about; by default all that come from there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scope {
    /// Those that come in by one of these interfaces; empty: by any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    /// Those to its addresses, not those from there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub destination: bool,
    /// Those of this protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<ScopeProtocol>,
    /// Those to these ports, first and last; empty: to any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<(u16, u16)>,
}

impl Scope {
    /// Whether it has everything that comes from its addresses.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it has a packet of which this is known; `None`: that depends on what is not known.
    #[must_use]
    pub fn has(&self, packet: &About<'_>) -> Option<bool> {
        let within = |port| self.ports.iter().any(|&(first, last)| (first..=last).contains(&port));
        let aspects = [
            Some(self.destination == packet.destination),
            match self.interfaces.is_empty() {
                true => Some(true),
                false => packet.interface.map(|own| self.interfaces.iter().any(|i| i == own)),
            },
            match self.protocol {
                None => Some(true),
                wanted => packet.protocol.map(|_| wanted == packet.protocol),
            },
            if self.ports.is_empty() { Some(true) } else { packet.port.map(within) },
        ];
        if aspects.contains(&Some(false)) {
            return Some(false);
        }
        aspects.iter().all(Option::is_some).then_some(true)
    }

    /// Whether it has every packet of its direction.
    #[must_use]
    pub const fn is_whole_direction(&self) -> bool {
        self.interfaces.is_empty() && self.protocol.is_none() && self.ports.is_empty()
    }
}

/// In one line; nothing where it is all that comes from there.
impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { interfaces, destination, protocol, ports } = self;
        let mut parts = Vec::new();
        if *destination {
            parts.push("as destination".to_owned());
        }
        if let Some(protocol) = protocol {
            parts.push(protocol.as_str().to_owned());
        }
        if !ports.is_empty() {
            parts.push(format!("to {}", port_ranges(ports).join(",")));
        }
        if !interfaces.is_empty() {
            parts.push(format!("on {}", interfaces.join(",")));
        }
        f.write_str(&parts.join(" "))
    }
}

/// Ports and ranges of them, each as it is written in a file.
#[must_use]
pub fn port_ranges(ports: &[(u16, u16)]) -> Vec<String> {
    let text = |&(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ports.iter().map(text).collect()
}

/// What is known of a packet from or to an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About<'a> {
    /// The interface that it comes in by.
    pub interface: Option<&'a str>,
    /// The address is its destination.
    pub destination: bool,
    /// Its protocol.
    pub protocol: Option<ScopeProtocol>,
    /// The port that it goes to.
    pub port: Option<u16>,
}

/// A protocol of a list's scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScopeProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP and ICMPv6.
    Icmp,
}

impl ScopeProtocol {
    /// By its name in files.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp].into_iter().find(|p| p.as_str() == name)
    }

    /// As it is written in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        }
    }
}

/// Where a list is fetched from, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// `http://` or `https://`, without user name and fragment.
    pub url: String,
    /// How often.
    pub refresh: Duration,
    /// How long it may take in all.
    pub timeout: Duration,
    /// How large its body may be.
    pub max_bytes: u64,
    /// Authorities to trust, in the place of the system's.
    pub ca_file: Option<PathBuf>,
    /// How it is written.
    pub(crate) format: crate::file::ListFormat,
    /// Whether a wrong line makes it unusable.
    pub(crate) on_error: crate::file::OnError,
}

impl Remote {
    /// A list at this URL, with every default.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            refresh: Duration::from_secs(3600),
            timeout: Duration::from_secs(30),
            max_bytes: 64 << 20,
            ca_file: None,
            format: crate::file::ListFormat::Auto,
            on_error: crate::file::OnError::Reject,
        }
    }

    /// How it is read, as files say it: `format` and `on_error`.
    #[must_use]
    pub const fn reading(&self) -> (&'static str, &'static str) {
        let format = match self.format {
            crate::file::ListFormat::Auto => "auto",
            crate::file::ListFormat::Plain => "plain",
            crate::file::ListFormat::Netset => "netset",
            crate::file::ListFormat::SpamhausDrop => "spamhaus-drop",
            crate::file::ListFormat::SpamhausDropJson => "spamhaus-drop-json",
        };
        let on_error = match self.on_error {
            crate::file::OnError::Reject => "reject",
            crate::file::OnError::Skip => "skip",
        };
        (format, on_error)
    }

    /// The URL without its query, which may hold a token.
    #[must_use]
    pub fn shown_url(&self) -> String {
        match self.url.split_once('?') {
            Some((path, _)) => format!("{path}?..."),
            None => self.url.clone(),
        }
    }

    /// The name of its copy in the directory of copies. Another URL has another one.
    #[must_use]
    pub fn copy_name(&self, list: &str) -> String {
        let mut hasher = siphasher::sip::SipHasher13::new();
        std::hash::Hasher::write(&mut hasher, self.url.as_bytes());
        format!("{list}-{:016x}", std::hash::Hasher::finish(&hasher))
    }
}

/// What a list does with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListAction {
    /// Drop and count.
    #[default]
    Drop,
    /// Count, let pass.
    Audit,
}

impl ListAction {
    /// As it is written in a file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Audit => "audit",
        }
    }
}

/// A workload on this machine, for identity policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Unique name.
    pub name: String,
    /// Who it came from.
    pub source: Source,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Host side of its interface.
    pub interface: String,
    /// What rules would deny is counted and passes.
    pub audit: bool,
    /// In the place of the node's.
    pub enforcement: Option<Enforcement>,
    /// Ports that rules may name.
    pub ports: Vec<PortName>,
}

/// Rules with a `nodeSelector`, enforced on the machine's own interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFirewall {
    /// Who it came from.
    pub source: Source,
    /// Names and patterns of interfaces.
    pub interfaces: Vec<String>,
    /// What rules would deny is counted and passes.
    pub audit: bool,
    /// Whether this machine is open without a rule.
    pub enforcement: Enforcement,
    /// It may cut off what this machine needs.
    pub force: bool,
    /// Ports that rules may name.
    pub ports: Vec<PortName>,
}

impl HostFirewall {
    /// Whether it is enforced on an interface. Never on the loopback interface.
    #[must_use]
    pub fn is_on(&self, interface: &str) -> bool {
        let on = |pattern: &String| crate::glob::matches(pattern, interface, None);
        interface != "lo" && self.interfaces.iter().any(on)
    }
}

/// The default tunnel source prefix length beyond which host bits carry no entropy.
pub const MAX_ENTROPY_BITS: u8 = 16;
