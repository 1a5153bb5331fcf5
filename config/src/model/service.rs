//! Services: what they listen on, how new flows are spread, and the backends behind them.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;

use super::Source;

/// A service: addresses and ports in front, backends behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique name.
    pub name: String,
    /// Who it came from.
    pub source: Source,
    /// VIPs, at least one, no duplicates, in the order written.
    pub addresses: Vec<IpAddr>,
    /// At least one.
    pub ports: Vec<Port>,
    /// How packets reach a backend.
    pub forwarding: Forwarding,
    /// What it wants beyond its ring.
    pub steering: Steering,
    /// In the order written. Names and addresses are unique within the service.
    pub backends: Vec<Backend>,
    /// Clients that may use the service; empty: everybody.
    pub source_ranges: Vec<IpNet>,
    /// Clients that go to a group of the backends; no prefix stands twice.
    pub source_routes: Vec<SourceRoute>,
    /// For each group a service of its own, made by [`Self::divided`].
    pub parts: Vec<Arc<Self>>,
    /// It is such a part itself; `None`: somebody has written it.
    pub part_of: Option<PartOf>,
    /// How long connections of a draining or removed backend are kept.
    pub drain_timeout: Duration,
    /// `None`: backends count as healthy.
    pub health_check: Option<HealthCheck>,
}

/// Client prefixes, and the group of backends that they go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRoute {
    /// At least one.
    pub prefixes: Vec<IpNet>,
    /// That of at least one backend.
    pub group: String,
}

/// Whose part a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartOf {
    /// Name of the service.
    pub service: String,
    /// The group of its backends.
    pub group: String,
}

impl Service {
    /// Backends of no group, in the order written.
    pub fn own_backends(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().filter(|backend| backend.group.is_none())
    }

    /// Whether every connection has an entry of its own, so that those of a backend can be counted.
    #[must_use]
    pub const fn counts_connections(&self) -> bool {
        let fewest = matches!(self.steering.scheduling, Scheduling::LeastConnections);
        self.steering.tracks() || (fewest && matches!(self.forwarding, Forwarding::Nat))
    }

    /// The name of the part for a group. No name that somebody gives has a slash.
    #[must_use]
    pub fn part_name(&self, group: &str) -> String {
        format!("{}/{group}", self.name)
    }

    /// With a part for each group: the same settings and addresses, and the group's backends. Which clients may use
    /// the service, and which server a packet names, is the whole one's business.
    #[must_use]
    pub fn divided(mut self) -> Self {
        let mut groups: Vec<&str> =
            self.backends.iter().filter_map(|backend| backend.group.as_deref()).collect();
        groups.sort_unstable();
        groups.dedup();
        let part = |group: &str| {
            let own = self.backends.iter().filter(|b| b.group.as_deref() == Some(group));
            let own = own.map(|b| Backend { group: None, server_id: None, ..b.clone() });
            let part_of = PartOf { service: self.name.clone(), group: group.to_owned() };
            let addresses = self.addresses.clone();
            Arc::new(self.part(self.part_name(group), part_of, addresses, own.collect()))
        };
        self.parts = groups.into_iter().map(part).collect();
        self
    }

    /// A part with these backends.
    #[must_use]
    pub fn part(
        &self,
        name: String,
        part_of: PartOf,
        addresses: Vec<IpAddr>,
        backends: Vec<Backend>,
    ) -> Self {
        let steering =
            Steering { tcp_option: false, udp_header: false, quic_len: 0, ..self.steering };
        Self {
            name,
            source: self.source.clone(),
            addresses,
            ports: self.ports.clone(),
            forwarding: self.forwarding,
            steering,
            backends,
            source_ranges: Vec::new(),
            source_routes: Vec::new(),
            parts: Vec::new(),
            part_of: Some(part_of),
            drain_timeout: self.drain_timeout,
            health_check: self.health_check.clone(),
        }
    }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Unique within the service.
    pub name: String,
    /// Host byte order; 0: every port of the address that has no entry of its own. The first one of a range.
    pub port: u16,
    /// The last one of a range; the same as `port` if it is no range.
    pub last: u16,
    /// Transport.
    pub protocol: Protocol,
    /// Port at the backend; equal to `port` for all forwarding but `nat`.
    pub target_port: u16,
    /// Packets name their server in a QUIC connection id.
    pub quic: bool,
}

impl Port {
    /// Whether it is more than one port.
    #[must_use]
    pub const fn is_range(&self) -> bool {
        self.port != self.last
    }

    /// Whether both have a port in common. Port 0 stands for those that nobody else has, so it has none in
    /// common with any but itself.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.protocol.number() == other.protocol.number()
            && self.port <= other.last
            && other.port <= self.last
    }

    /// As it is written in a file: `443`, or `8000-8999`.
    #[must_use]
    pub fn numbers(&self) -> String {
        if self.is_range() { format!("{}-{}", self.port, self.last) } else { self.port.to_string() }
    }
}

/// Transport protocols that services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// `tcp`, `udp` or `sctp`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// How packets reach a backend. All but `nat` are direct server return: the backend answers the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// The destination MAC is rewritten; the backend is on the same link and holds the VIP.
    L2,
    /// An outer IP header in front (RFC 2003, RFC 2473); any inner and outer family.
    Ipip,
    /// Outer IP and UDP headers and GUE's (draft-ietf-intarea-gue); any inner and outer family.
    Gue,
    /// Outer IP and UDP headers and Geneve's (RFC 8926); any inner and outer family.
    Geneve,
    /// As `Gue`, with `second_chance`: while a packet may belong to either of two backends, it names the
    /// other one as well.
    GueTwice,
    /// Source and destination are translated, and back again in the replies.
    Nat,
}

impl Forwarding {
    /// As it is written in a file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::Ipip => "ipip",
            Self::Gue | Self::GueTwice => "gue",
            Self::Geneve => "geneve",
            Self::Nat => "nat",
        }
    }
}

/// How new flows are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduling {
    /// Weighted Maglev.
    #[default]
    Maglev,
    /// At random, by weight.
    Random,
    /// To the backend with the fewest connections for its weight, of some that are drawn.
    LeastConnections,
}

impl Scheduling {
    /// As it is written in a file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Maglev => "maglev",
            Self::Random => "random",
            Self::LeastConnections => "least-connections",
        }
    }
}

/// What a service wants beyond its ring; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steering {
    /// How new flows are spread.
    pub scheduling: Scheduling,
    /// Every connection has an entry, whatever the scheduling.
    pub track: bool,
    /// How long a client stays with its backend after its last packet; `None`: each flow goes its own way.
    pub affinity: Option<Duration>,
    /// Servers are named in a TCP option.
    pub tcp_option: bool,
    /// Servers are named in a header of UDP's payload.
    pub udp_header: bool,
    /// Bytes of a server id in QUIC connection ids; 0: no port is for QUIC.
    pub quic_len: u8,
}

impl Steering {
    /// Whether packets name their server.
    #[must_use]
    pub const fn names_servers(&self) -> bool {
        self.tcp_option || self.udp_header || self.quic_len > 0
    }

    /// Whether every connection has an entry of its own, so that they can be counted.
    #[must_use]
    pub const fn tracks(&self) -> bool {
        self.keeps() && self.affinity.is_none()
    }

    /// Whether flows or clients have entries.
    #[must_use]
    pub const fn keeps(&self) -> bool {
        self.track || self.affinity.is_some() || !matches!(self.scheduling, Scheduling::Maglev)
    }
}

/// A real server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Unique within the service; the address as text when the file gave none.
    pub name: String,
    /// Where it is reached.
    pub address: IpAddr,
    /// Share of the ring relative to the others; 0: no new flows. At most 65,535.
    pub weight: u32,
    /// What the operator wants of it.
    pub state: BackendState,
    /// It is for the clients that are routed to this group only.
    pub group: Option<String>,
    /// The number by which packets name it; there wherever they do.
    pub server_id: Option<u16>,
}

/// What the operator wants of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendState {
    /// Takes flows.
    #[default]
    Active,
    /// No new flows; established ones stay until the service's drain timeout.
    Draining,
    /// Takes nothing, at once.
    Maintenance,
}

impl BackendState {
    /// As it is written in a file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Maintenance => "maintenance",
        }
    }
}

/// Health check of every backend of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// From the start of one probe to the start of the next.
    pub interval: Duration,
    /// At most `interval`.
    pub timeout: Duration,
    /// Successes in a row that make a backend healthy.
    pub rise: u32,
    /// Failures in a row that make it unhealthy.
    pub fall: u32,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The TCP handshake succeeds.
    Tcp {
        /// Port at the backend.
        port: u16,
    },
    /// `GET path` answers with the expected status.
    Http {
        /// Port at the backend.
        port: u16,
        /// Begins with `/`.
        path: String,
        /// Value of the `Host` header; `None`: the backend's address.
        host: Option<String>,
        /// Status code wanted.
        expect: u16,
    },
}
