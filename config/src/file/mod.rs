//! The YAML schema, as serde types: everything a user may write, and its documentation.
//!
//! These types say what a file looks like, not what is sensible: that is [`crate::validate`]'s. Every
//! field is a [`Field`], which knows its place and whether it is absent or unreadable, so that one
//! fault does not hide another.

mod policy;
mod prefilter;
mod service;
mod value;

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, SeqAccess, Visitor},
};

pub use self::value::parse_prefix;
pub(crate) use self::{policy::*, prefilter::*, service::*, value::*};
use crate::{fault::Loc, tree::de::FIELD};

/// A field of a mapping or an element of a list: a value and its place, or the lack of one.
#[derive(Clone, Debug)]
pub(crate) struct Field<T> {
    /// Of the value; no place when the field is absent.
    pub(crate) at: Loc,
    value: Option<T>,
}

impl<T> Default for Field<T> {
    fn default() -> Self {
        Self { at: Loc::default(), value: None }
    }
}

impl<T> Field<T> {
    /// The value, if there is one that could be read.
    pub(crate) fn get(&self) -> Option<&T> {
        self.value.as_ref()
    }

    /// The field is not there at all, or has no value. A value that could not be read has been
    /// reported and does not count as absent.
    pub(crate) fn is_absent(&self) -> bool {
        self.at == Loc::default()
    }

    /// The value with its place.
    pub(crate) fn placed(&self) -> Option<(&T, Loc)> {
        self.value.as_ref().map(|value| (value, self.at))
    }
}

impl<T> Field<Vec<Field<T>>> {
    /// The elements that could be read.
    pub(crate) fn elements(&self) -> impl Iterator<Item = (&T, Loc)> {
        self.get().into_iter().flatten().filter_map(Field::placed)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for FieldVisitor<T> {
            type Value = Field<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value of a tree of nodes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Field<T>, A::Error> {
                let (Some(line), Some(column)) = (access.next_element()?, access.next_element()?)
                else {
                    return Err(A::Error::custom("a field has a place"));
                };
                // `None` of the outer option: reported. Of the inner one: nothing was written.
                Ok(match access.next_element::<Option<T>>()? {
                    Some(None) => Field::default(),
                    value => Field { at: Loc { line, column }, value: value.flatten() },
                })
            }
        }

        deserializer.deserialize_tuple_struct(FIELD, 3, FieldVisitor(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Field<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// Shorthand for a list whose elements know their places.
pub(crate) type List<T> = Field<Vec<Field<T>>>;

/// Configuration of lb-daemon. All `*.yaml` files of the directory are merged: lists append, and
/// anything else may be set in one file only.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "lb-daemon configuration")]
pub(crate) struct File {
    /// This machine.
    pub(crate) node: Field<Node>,
    /// Where programs are attached, and what they do there.
    pub(crate) interfaces: List<Interface>,
    /// The receiving end of tunnels, for interfaces with the role `decap`.
    pub(crate) decap: Field<Decap>,
    /// Parameters of the hash rings; the same on every node of a fleet.
    pub(crate) maglev: Field<Maglev>,
    /// Addresses in front, backends behind.
    pub(crate) services: List<Service>,
    /// Which sources are dropped at the interface.
    pub(crate) prefilter: Field<Prefilter>,
    /// Who stands behind which address, for identity policy.
    pub(crate) endpoints: List<Endpoint>,
    /// Identity policies in Cilium's rule shape.
    pub(crate) policies: List<Policy>,
    /// Whether endpoints without a policy are open.
    pub(crate) policy_enforcement: Field<PolicyEnforcement>,
    /// What becomes of established connections that rules no longer allow. Default: `reevaluate`.
    pub(crate) policy_established: Field<PolicyEstablished>,
    /// Bounds of what is learned from DNS for `toFQDNs`.
    pub(crate) policy_fqdn: Field<PolicyFqdn>,
    /// Where policies with a `nodeSelector` are enforced. Without it, nowhere.
    pub(crate) host_firewall: Field<HostFirewall>,
    /// Addresses of other nodes, which policies call `remote-node`.
    pub(crate) remote_nodes: List<Ip>,
    /// Services from a Kubernetes API. Not implemented in this version.
    pub(crate) kubernetes: Field<Kubernetes>,
}

/// This machine.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Node {
    /// Its name in metrics and events. Default: the host's name.
    pub(crate) name: Field<String>,
    /// Outer source of encapsulated packets.
    pub(crate) tunnel_source: Field<TunnelSource>,
    /// What happens to packets for the address of a service at a port or of a protocol that no service
    /// has. Default: `drop`.
    pub(crate) unserved: Field<Unserved>,
    /// How many packets are sampled for `lbctl monitor` and `top`.
    pub(crate) samples: Field<Samples>,
    /// Translation for services with `forwarding: nat`.
    pub(crate) nat: Field<Nat>,
    /// What the `nodeSelector` of policies selects it by.
    pub(crate) labels: Field<BTreeMap<String, Field<String>>>,
}

/// Samples in a second, on all CPUs together.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Samples {
    /// Of packets that are dropped; 0 to 10000. Default: 1000.
    pub(crate) dropped: Field<u64>,
    /// Of packets that the prefilter lets pass; 0 to 10000. Default: 200.
    pub(crate) passed: Field<u64>,
}

/// Translation for services with `forwarding: nat`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Nat {
    /// Addresses that translated packets come from. Default: for each family, the address that the kernel would
    /// use on the way to the backend.
    pub(crate) addresses: List<Ip>,
    /// Their ports, `first-last`. Default: `1024-32767`, which Linux does not use of itself.
    pub(crate) ports: Field<String>,
    /// Connections that there is room for, a power of two from 1024 to 16777216. Default: 262144.
    #[schemars(range(min = 1024, max = 16_777_216))]
    pub(crate) entries: Field<u32>,
}

/// The receiving end of tunnels.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Decap {
    /// Outer source addresses that encapsulated packets are taken from. Without it, from any.
    pub(crate) sources: List<Cidr>,
}

/// What happens to packets for the address of a service that no service takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unserved {
    /// They are dropped.
    Drop,
    /// TCP is answered with a reset and UDP with port unreachable, at a bounded rate; the rest is
    /// dropped.
    Reject,
    /// They are left to the host's stack.
    Pass,
}

/// Outer source of encapsulated packets, per family of the outer header.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TunnelSource {
    /// `auto` (default): the address the kernel would use. A prefix: addresses of it, with the flow's
    /// entropy in the host bits, of which there may be 16. An address: that one.
    pub(crate) ipv4: Field<SourceText>,
    /// As `ipv4`, for an IPv6 outer header.
    pub(crate) ipv6: Field<SourceText>,
}

/// An interface, or all that match a pattern.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["name"]}, {"required": ["match"]}]))]
pub(crate) struct Interface {
    /// Its exact name.
    pub(crate) name: Field<String>,
    /// A pattern with `*` and `?`: all that match, now and later.
    #[serde(rename = "match")]
    pub(crate) pattern: Field<String>,
    /// How XDP is attached. Default: `auto`.
    pub(crate) xdp_mode: Field<XdpMode>,
    /// What the programs do here. Default: prefilter and balance.
    pub(crate) roles: List<Role>,
}

/// How XDP is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum XdpMode {
    /// In the driver; an error where the driver cannot. Never falls back silently.
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's generic hook.
    Generic,
}

/// What the programs on an interface do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Drop blocked sources.
    Prefilter,
    /// Balance packets for service addresses.
    Balance,
    /// Take encapsulated packets addressed to this machine and hand on the inner packet.
    Decap,
    /// Kubernetes node. Not implemented in this version.
    Node,
}

/// Parameters of the hash rings; the same on every node of a fleet.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Maglev {
    /// Slots per ring, a prime from 251 to 1048573. Default: each service's own, from the number of
    /// its backends.
    #[schemars(range(min = 251, max = 1_048_573))]
    pub(crate) table_size: Field<u32>,
    /// Seeds ring and flow hashes. Default: empty.
    pub(crate) seed: Field<String>,
}

/// Services from a Kubernetes API. Not implemented in this version.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Kubernetes {
    /// Whether to watch the API. Default: false, the only value of this version.
    pub(crate) enabled: Field<bool>,
    /// Path of a kubeconfig; null: in-cluster.
    pub(crate) kubeconfig: Field<String>,
    /// Name of this node's object; null: the host's name.
    pub(crate) node_name: Field<String>,
}

/// A port with a name.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name", "port"]))]
pub(crate) struct EndpointPort {
    /// Its name.
    pub(crate) name: Field<String>,
    /// Its number.
    pub(crate) port: Field<u16>,
    /// Default: `TCP`.
    pub(crate) protocol: Field<PolicyProtocol>,
}

/// Policies with a `nodeSelector`, on this machine's own interfaces.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["interfaces"]))]
pub(crate) struct HostFirewall {
    /// Names of interfaces, or patterns with `*` and `?`. Never `lo`, nor interfaces of endpoints.
    pub(crate) interfaces: List<String>,
    /// What rules would deny is counted and passes. Default: false.
    pub(crate) audit: Field<bool>,
    /// Whether this machine is open without a rule; `policy_enforcement` is about endpoints only.
    /// Default: `default`.
    pub(crate) enforcement: Field<PolicyEnforcement>,
    /// It may cut off what this machine needs. Default: false.
    pub(crate) force: Field<bool>,
    /// Ports of this machine by name, for rules that name them.
    pub(crate) ports: List<EndpointPort>,
}

/// A workload on this machine.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name", "addresses", "interface"]))]
pub(crate) struct Endpoint {
    /// Unique name.
    pub(crate) name: Field<String>,
    /// Its labels, which policies select it by.
    pub(crate) labels: Field<BTreeMap<String, Field<String>>>,
    /// Its addresses.
    pub(crate) addresses: List<Ip>,
    /// Host side of its interface.
    pub(crate) interface: Field<String>,
    /// What rules would deny is counted and passes. Default: false.
    pub(crate) audit: Field<bool>,
    /// In the place of `policy_enforcement`, for this endpoint.
    pub(crate) enforcement: Field<PolicyEnforcement>,
    /// Its ports by name, for rules that name them.
    pub(crate) ports: List<EndpointPort>,
}
