//! Identity policy as plain data: who may talk to whom, by labels and not by address.
//!
//! The types here are what the policy compiler reads and what [`import()`] makes of rules written for
//! Cilium. Whatever stands here is valid. Nothing here enforces anything.

mod import;
mod names;

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

pub use self::import::{Object, import, import_objects};
pub(crate) use self::import::{bare_key, is_port_name, protocols, rule_of};
pub use self::names::{Fqdn, NamePattern};
use crate::model::Source;

/// Labels of an endpoint, or of another identity.
pub type Labels = BTreeMap<String, String>;

/// Prefix of the labels of reserved identities, such as `reserved:host`.
pub const RESERVED: &str = "reserved:";
/// Prefix of the labels of identities of prefixes, such as `cidr:192.0.2.0/24`.
pub const CIDR: &str = "cidr:";

/// What holds for endpoints that a selector picks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Name in verdicts and reports.
    pub name: String,
    /// Who it came from.
    pub source: Source,
    /// It applies to nodes (`nodeSelector`), else to endpoints.
    pub node: bool,
    /// Endpoints or nodes it applies to.
    pub subject: Selector,
    /// What else comes in is denied, unless another rule allows it.
    pub ingress_default_deny: bool,
    /// As `ingress_default_deny`, for what goes out.
    pub egress_default_deny: bool,
    /// What it denies is counted and passes; what it allows is allowed.
    pub audit: bool,
    /// What peers also have to be, whichever rule names them.
    pub requires: Vec<Requirement>,
    /// What is allowed and denied.
    pub clauses: Vec<Clause>,
}

impl Rule {
    /// Whether it applies to an endpoint, or to a node, with these labels.
    #[must_use]
    pub fn selects(&self, node: bool, labels: &Labels) -> bool {
        self.node == node && self.subject.selects(labels)
    }
}

/// What the endpoints that any rule for the same subject names also have to be (`fromRequires`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Of the clauses that it restricts.
    pub direction: Direction,
    /// Restricts what is denied, else what is allowed.
    pub deny: bool,
    /// It grants nothing by itself.
    pub selector: Selector,
}

/// Peers and ports that are allowed, or denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// Which way the connection is opened, as seen from the endpoint.
    pub direction: Direction,
    /// Denied; wins over whatever is allowed.
    pub deny: bool,
    /// Any of these.
    pub peers: Vec<Peer>,
    /// Any of these; `None`: whatever protocol and port.
    pub ports: Option<Vec<Ports>>,
    /// Or any port of the receiving endpoint with one of these names; none where `ports` is `None`.
    pub named: Vec<NamedPort>,
}

/// A port by its name: what it is, the receiving endpoint says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
}

/// A port of an endpoint that rules may name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName {
    /// The name.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Host byte order.
    pub port: u16,
}

/// Which way a connection is opened, as seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

/// Whom a clause is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Everybody.
    Any,
    /// Endpoints with these labels. Never a prefix; a reserved identity only if a condition names it.
    Endpoints(Selector),
    /// Addresses of a prefix that are no endpoint's and not of this host, less exceptions.
    Prefix {
        /// Masked.
        net: IpNet,
        /// Parts of `net`.
        except: Vec<IpNet>,
    },
    /// A group with a name of its own.
    Entity(Entity),
    /// Whoever has an address of a group that something else knows.
    Group(Group),
}

/// Addresses that stand for something with a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// A service: its addresses and those of its backends.
    Service {
        /// Of a Kubernetes service.
        namespace: Option<String>,
        /// Its name.
        name: String,
    },
    /// Names in DNS: their addresses, as far as they are nobody's here.
    Names(NamePattern),
}

/// A group of peers with a name of its own. `all` is [`Peer::Any`], `none` is no peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entity {
    /// Everybody who is no endpoint, host or node.
    World,
    /// The IPv4 part of `World`.
    WorldIpv4,
    /// The IPv6 part of `World`.
    WorldIpv6,
    /// This machine.
    Host,
    /// Other nodes.
    RemoteNode,
    /// All endpoints, this machine and other nodes.
    Cluster,
    /// Endpoints that have no labels yet.
    Init,
    /// The health checker.
    Health,
    /// Endpoints that nobody manages.
    Unmanaged,
}

impl Entity {
    /// Its name in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::World => "world",
            Self::WorldIpv4 => "world-ipv4",
            Self::WorldIpv6 => "world-ipv6",
            Self::Host => "host",
            Self::RemoteNode => "remote-node",
            Self::Cluster => "cluster",
            Self::Init => "init",
            Self::Health => "health",
            Self::Unmanaged => "unmanaged",
        }
    }
}

/// Destination ports of a protocol, or types of ICMP messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// IP protocol number.
    pub protocol: u8,
    /// First port, or ICMP type. Host byte order.
    pub first: u16,
    /// Last one, not before `first`.
    pub last: u16,
}

/// Conditions on labels, all of which must hold; without any, every endpoint is selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// The conditions.
    pub conditions: Vec<Condition>,
}

/// A condition on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Has one of the values.
    In(String, Vec<String>),
    /// Has none of the values; also when the label is not there.
    NotIn(String, Vec<String>),
    /// Is there.
    Exists(String),
    /// Is not there.
    DoesNotExist(String),
}

impl Condition {
    /// The label it is about.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::In(key, _)
            | Self::NotIn(key, _)
            | Self::Exists(key)
            | Self::DoesNotExist(key) => key,
        }
    }

    /// Whether it holds for these labels.
    #[must_use]
    pub fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

impl Selector {
    /// Whether all conditions hold for these labels.
    #[must_use]
    pub fn selects(&self, labels: &Labels) -> bool {
        self.conditions.iter().all(|condition| condition.holds(labels))
    }

    /// Whether a condition asks for a reserved identity.
    #[must_use]
    pub fn names_reserved(&self) -> bool {
        self.conditions.iter().any(|condition| {
            matches!(condition, Condition::In(key, _) | Condition::Exists(key)
                if key.starts_with(RESERVED))
        })
    }
}

/// What becomes of established connections that rules no longer allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Established {
    /// They end with the next packet.
    #[default]
    Reevaluate,
    /// They go on until they end by themselves or are idle for too long.
    Keep,
}

/// Whether endpoints without a rule are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Enforcement {
    /// Open, until a rule with default deny selects them.
    #[default]
    Default,
    /// Closed.
    Always,
    /// Open, whatever the rules say.
    Never,
}

impl Enforcement {
    /// As it is written in a file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// Whether packets of this family are of the world's IPv4 or IPv6 part.
#[must_use]
pub const fn world_of(address: IpAddr) -> Entity {
    match address {
        IpAddr::V4(_) => Entity::WorldIpv4,
        IpAddr::V6(_) => Entity::WorldIpv6,
    }
}
