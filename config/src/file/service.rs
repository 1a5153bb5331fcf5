//! `services`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Cidr, Field, Ip, List, ServicePorts, Span};

/// A service: addresses and ports in front, backends behind.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend(
    "required" = ["name", "ports", "forwarding"],
    "oneOf" = [{"required": ["address"]}, {"required": ["addresses"]}]
))]
pub(crate) struct Service {
    /// Unique name.
    pub(crate) name: Field<String>,
    /// Its address, when there is one.
    pub(crate) address: Field<Ip>,
    /// Its addresses, when there are several; IPv4 and IPv6 may stand together.
    pub(crate) addresses: List<Ip>,
    /// What it listens on.
    pub(crate) ports: List<Port>,
    /// How packets reach a backend.
    pub(crate) forwarding: Field<Forwarding>,
    /// How new flows are spread. Default: `maglev`.
    pub(crate) scheduling: Field<Scheduling>,
    /// Which connections have an entry of their own. Default: `auto`.
    pub(crate) connection_tracking: Field<ConnectionTracking>,
    /// Keeps clients on their backend.
    pub(crate) affinity: Field<Affinity>,
    /// Where packets name their server, beside connection ids of QUIC.
    pub(crate) server_ids: List<ServerIdPlace>,
    /// How the connection ids of ports with `quic: true` look.
    pub(crate) quic: Field<Quic>,
    /// Clients that may use the service; everybody else is dropped. Without it, everybody may.
    pub(crate) source_ranges: List<Cidr>,
    /// Sources whose packets go to a group of the backends. The longest prefix counts; a client in none, and one
    /// whose group takes no new connections, has the backends without a group.
    pub(crate) source_routes: List<SourceRoute>,
    /// Where the packets go. Without any, all packets for the service are dropped.
    pub(crate) backends: List<Backend>,
    /// How long connections of a draining or removed backend are kept. Default: 5m.
    pub(crate) drain_timeout: Field<Span>,
    /// How backends are checked. Without it they count as healthy.
    pub(crate) health_check: Field<HealthCheck>,
    /// While a packet may belong to either of two backends, it names the other one as well, and the backend's
    /// `decap` hands on what it has no socket for. Needs `forwarding: gue`. Default: false.
    pub(crate) second_chance: Field<bool>,
}

/// Sources, and the group of backends that their packets go to.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["prefixes", "group"]))]
pub(crate) struct SourceRoute {
    /// Client addresses.
    pub(crate) prefixes: List<Cidr>,
    /// The `group` of some of the backends.
    pub(crate) group: Field<String>,
}

/// A port of a service.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["port"]))]
pub(crate) struct Port {
    /// Unique within the service. Default: protocol and port, such as `tcp-443`.
    pub(crate) name: Field<String>,
    /// A port, or a range such as 8000-8999; 0: every port of the address that has no entry of its own.
    pub(crate) port: Field<ServicePorts>,
    /// Default: `tcp`.
    pub(crate) protocol: Field<Protocol>,
    /// Port at the backend. Without `forwarding: nat`, only `port` itself is possible; a range keeps its ports.
    pub(crate) target_port: Field<u16>,
    /// Route by QUIC connection id: `server_id` of the backends, in clear as in
    /// draft-ietf-quic-load-balancers.
    pub(crate) quic: Field<bool>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// How packets reach a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Forwarding {
    /// A new destination MAC address; the backend is on the same link and holds the address of the
    /// service.
    L2,
    /// An outer IP header; the backend decapsulates.
    Ipip,
    /// Outer IP and UDP headers and GUE's, to UDP port 6080; the backend decapsulates.
    Gue,
    /// Outer IP and UDP headers and Geneve's, to UDP port 6081; the backend decapsulates.
    Geneve,
    /// Source and destination are translated: the backend answers the balancer, which translates back.
    Nat,
}

/// How new flows are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scheduling {
    /// Weighted consistent hashing.
    Maglev,
    /// At random, by weight; every flow has an entry.
    Random,
    /// To the backend with the fewest connections for its weight, of eight that are drawn by weight; every
    /// flow has an entry.
    LeastConnections,
}

/// Which connections have an entry of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ConnectionTracking {
    /// Those that the ring alone would send elsewhere.
    Auto,
    /// All.
    Always,
}

/// Where packets name their server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ServerIdPlace {
    /// In TCP option 253: `fd 08 4c 42` and four bytes, big endian.
    TcpOption,
    /// In the first bytes of a UDP payload: `4c 42 01 00` and four bytes, big endian.
    UdpHeader,
}

/// How connection ids look.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Quic {
    /// Bytes of the server id behind the first byte. Default: 2.
    #[schemars(range(min = 1, max = 8))]
    pub(crate) server_id_length: Field<u8>,
}

/// Keeps clients on their backend.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["client_ip"]))]
pub(crate) struct Affinity {
    /// For how long after its last packet a client address stays with its backend.
    pub(crate) client_ip: Field<Span>,
}

/// A real server.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["address"]))]
pub(crate) struct Backend {
    /// Unique within the service. Default: the address.
    pub(crate) name: Field<String>,
    /// Where it is reached.
    pub(crate) address: Field<Ip>,
    /// Share of new flows, relative to the other backends; 0: none. Default: 100.
    pub(crate) weight: Field<u16>,
    /// Default: `active`.
    pub(crate) state: Field<BackendState>,
    /// It is for clients in `source_routes` of this group, and for no others.
    pub(crate) group: Field<String>,
    /// The number by which packets name it, where they do (`server_ids`, `quic`).
    pub(crate) server_id: Field<u16>,
}

/// What the operator wants of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BackendState {
    /// Takes flows.
    Active,
    /// No new flows; established ones stay until the drain timeout.
    Draining,
    /// Takes nothing, at once.
    Maintenance,
}

/// How the backends of a service are checked: exactly one of the probes, and its rhythm.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    {"required": ["tcp"]}, {"required": ["http"]}, {"required": ["https"]},
    {"required": ["grpc"]}, {"required": ["udp"]}, {"required": ["icmp"]}
]))]
pub(crate) struct HealthCheck {
    /// The TCP handshake succeeds.
    pub(crate) tcp: Field<TcpProbe>,
    /// `GET` answers with the expected status.
    pub(crate) http: Field<HttpProbe>,
    /// As `http`, over TLS. Not implemented in this version.
    pub(crate) https: Field<HttpProbe>,
    /// The gRPC health protocol says SERVING. Not implemented in this version.
    pub(crate) grpc: Field<GrpcProbe>,
    /// A datagram is answered. Not implemented in this version.
    pub(crate) udp: Field<UdpProbe>,
    /// An echo request is answered. Not implemented in this version.
    pub(crate) icmp: Field<IcmpProbe>,
    /// From the start of one probe to the start of the next. Default: 1s.
    pub(crate) interval: Field<Span>,
    /// At most `interval`. Default: 500ms, or `interval` when that is shorter.
    pub(crate) timeout: Field<Span>,
    /// Successes in a row that make a backend healthy. Default: 2.
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) rise: Field<u32>,
    /// Failures in a row that make it unhealthy. Default: 3.
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) fall: Field<u32>,
}

/// The TCP handshake succeeds.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TcpProbe {
    /// Port at the backend. Default: the TCP port of the service, if it has exactly one.
    pub(crate) port: Field<u16>,
}

/// `GET` answers with the expected status.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HttpProbe {
    /// Port at the backend. Default: the TCP port of the service, if it has exactly one.
    pub(crate) port: Field<u16>,
    /// Begins with `/`. Default: `/`.
    pub(crate) path: Field<String>,
    /// Value of the `Host` header. Default: the backend's address.
    pub(crate) host: Field<String>,
    /// Status code wanted. Default: 200.
    pub(crate) expect: Field<u16>,
}

/// The gRPC health protocol says SERVING. Not implemented in this version.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GrpcProbe {
    /// Port at the backend.
    pub(crate) port: Field<u16>,
    /// Name of the gRPC service to ask for.
    pub(crate) service: Field<String>,
}

/// A datagram is answered. Not implemented in this version.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct UdpProbe {
    /// Port at the backend.
    pub(crate) port: Field<u16>,
    /// What is sent.
    pub(crate) send: Field<String>,
    /// What the answer begins with.
    pub(crate) expect: Field<String>,
}

/// An echo request is answered. Not implemented in this version.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct IcmpProbe {}
