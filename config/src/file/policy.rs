//! `policies`: Cilium's rule shape.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Cidr, Field, List, Span};

/// Whether endpoints without a policy are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PolicyEnforcement {
    /// Open until a policy selects them.
    Default,
    /// Closed.
    Always,
    /// Open, whatever the policies say.
    Never,
}

/// What becomes of established connections that rules no longer allow.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PolicyEstablished {
    /// They end.
    Reevaluate,
    /// They go on.
    Keep,
}

/// A rule: which endpoints it selects, and who may talk to them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("required" = ["name"]))]
pub(crate) struct Policy {
    /// Unique name.
    pub(crate) name: Field<String>,
    /// What it is for.
    pub(crate) description: Field<String>,
    /// Endpoints it applies to.
    pub(crate) endpoint_selector: Field<Selector>,
    /// Nodes it applies to, by `node.labels`, in the place of endpoints: see `host_firewall`.
    pub(crate) node_selector: Field<Selector>,
    /// Who may send to them.
    pub(crate) ingress: List<Ingress>,
    /// Who may not.
    pub(crate) ingress_deny: List<Ingress>,
    /// Whom they may send to.
    pub(crate) egress: List<Egress>,
    /// Whom they may not.
    pub(crate) egress_deny: List<Egress>,
    /// What it denies is counted and passes; what it allows is allowed. Default: false.
    pub(crate) audit: Field<bool>,
    /// Whether what no rule allows is denied; default: in each direction that the rule speaks of.
    pub(crate) enable_default_deny: Field<DefaultDeny>,
}

/// Whether what no rule allows is denied.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DefaultDeny {
    /// To the endpoints.
    pub(crate) ingress: Field<bool>,
    /// From the endpoints.
    pub(crate) egress: Field<bool>,
}

/// Selects endpoints by their labels; an empty one selects all.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Selector {
    /// Labels with their values.
    pub(crate) match_labels: Field<BTreeMap<String, Field<String>>>,
    /// Conditions on labels.
    pub(crate) match_expressions: List<Expression>,
}

/// A condition on a label.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["key", "operator"]))]
pub(crate) struct Expression {
    /// The label.
    pub(crate) key: Field<String>,
    /// The condition.
    pub(crate) operator: Field<Operator>,
    /// Values, for `In` and `NotIn`.
    pub(crate) values: List<String>,
}

/// A condition on a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum Operator {
    /// Has one of the values.
    In,
    /// Has none of the values.
    NotIn,
    /// Is there.
    Exists,
    /// Is not there.
    DoesNotExist,
}

/// One way in.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Ingress {
    /// Endpoints that may send.
    pub(crate) from_endpoints: List<Selector>,
    /// Endpoints that the others also have to be.
    pub(crate) from_requires: List<Selector>,
    /// Prefixes that may send.
    #[serde(rename = "fromCIDR")]
    pub(crate) from_cidr: List<Cidr>,
    /// Prefixes that may send, less exceptions.
    #[serde(rename = "fromCIDRSet")]
    pub(crate) from_cidr_set: List<CidrRule>,
    /// Entities that may send.
    pub(crate) from_entities: List<Entity>,
    /// Ports it holds for.
    pub(crate) to_ports: List<PortRule>,
    /// ICMP messages it holds for.
    pub(crate) icmps: List<IcmpRule>,
}

/// One way out.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Egress {
    /// Endpoints that may be sent to.
    pub(crate) to_endpoints: List<Selector>,
    /// Endpoints that the others also have to be.
    pub(crate) to_requires: List<Selector>,
    /// Prefixes that may be sent to.
    #[serde(rename = "toCIDR")]
    pub(crate) to_cidr: List<Cidr>,
    /// Prefixes that may be sent to, less exceptions.
    #[serde(rename = "toCIDRSet")]
    pub(crate) to_cidr_set: List<CidrRule>,
    /// Entities that may be sent to.
    pub(crate) to_entities: List<Entity>,
    /// Names in DNS whose addresses may be sent to.
    #[serde(rename = "toFQDNs")]
    pub(crate) to_fqdns: List<FqdnSelector>,
    /// Services that may be sent to: their addresses and their backends.
    pub(crate) to_services: List<PolicyService>,
    /// Ports it holds for.
    pub(crate) to_ports: List<PortRule>,
    /// ICMP messages it holds for.
    pub(crate) icmps: List<IcmpRule>,
}

/// Names in DNS; one of the two.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct FqdnSelector {
    /// A name.
    pub(crate) match_name: Field<String>,
    /// Names with `*` for any characters of one label; `*` alone is every name, `**.` in front any
    /// number of labels.
    pub(crate) match_pattern: Field<String>,
}

/// Bounds of what is learned from DNS.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PolicyFqdn {
    /// An address counts at least so long, whatever its TTL. Default: `60s`.
    pub(crate) min_ttl: Field<Span>,
    /// Addresses of one name; those that end first make room. Default: 64.
    pub(crate) addresses_per_name: Field<u16>,
    /// Names that one pattern stands for; those that end first make room. Default: 1024.
    pub(crate) names_per_pattern: Field<u16>,
}

/// A service, as rules name it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PolicyService {
    /// A service by its name.
    pub(crate) k8s_service: Field<ServiceName>,
}

/// The name of a service.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("required" = ["serviceName"]))]
pub(crate) struct ServiceName {
    /// Of a service of this configuration, or of Kubernetes.
    pub(crate) service_name: Field<String>,
    /// Of a service of Kubernetes.
    pub(crate) namespace: Field<String>,
}

/// A prefix less exceptions.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["cidr"]))]
pub(crate) struct CidrRule {
    /// The prefix.
    pub(crate) cidr: Field<Cidr>,
    /// Parts of it that do not count.
    pub(crate) except: List<Cidr>,
}

/// A group of peers that has a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Entity {
    /// Everybody.
    All,
    /// Everybody who is no endpoint, host or node.
    World,
    /// The IPv4 part of `world`.
    WorldIpv4,
    /// The IPv6 part of `world`.
    WorldIpv6,
    /// This machine.
    Host,
    /// Other nodes.
    RemoteNode,
    /// All endpoints and nodes.
    Cluster,
    /// Endpoints that have no identity yet.
    Init,
    /// The health checker.
    Health,
    /// Endpoints that nobody manages.
    Unmanaged,
    /// Nobody.
    None,
    /// The servers of the Kubernetes API.
    KubeApiserver,
    /// The ingress proxy.
    Ingress,
}

/// Ports a rule holds for.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PortRule {
    /// The ports.
    pub(crate) ports: List<PolicyPort>,
}

/// A port, or a range of them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("required" = ["port"]))]
pub(crate) struct PolicyPort {
    /// A number or the name of a port.
    pub(crate) port: Field<String>,
    /// The last port of a range.
    pub(crate) end_port: Field<u16>,
    /// Default: `ANY`.
    pub(crate) protocol: Field<PolicyProtocol>,
}

/// A protocol, in the spelling of such rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum PolicyProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP.
    Icmp,
    /// ICMPv6.
    Icmpv6,
    /// Any of them.
    Any,
}

/// ICMP messages a rule holds for.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct IcmpRule {
    /// The messages.
    pub(crate) fields: List<IcmpField>,
}

/// An ICMP message.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["type"]))]
pub(crate) struct IcmpField {
    /// Default: `IPv4`.
    pub(crate) family: Field<Family>,
    /// Its type, as a number or a name.
    #[serde(rename = "type")]
    pub(crate) kind: Field<String>,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    Ipv4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    Ipv6,
}
