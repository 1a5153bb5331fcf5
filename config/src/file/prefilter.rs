//! `prefilter`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Cidr, Field, List, Protocol, RateKey, ScopePorts, Span, TcpFlag};

/// Which sources are dropped at the interface.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Prefilter {
    /// Sources that no list applies to.
    pub(crate) allow: List<Cidr>,
    /// Lists of sources. The first list that drops an address decides.
    pub(crate) lists: List<PrefixList>,
    /// Which address is in which country and network, for lists with `match` and for lookups.
    pub(crate) tables: Field<Tables>,
    /// Local APIs of CrowdSec whose decisions become bans.
    pub(crate) crowdsec: List<CrowdSec>,
    /// What is dropped whatever its source.
    pub(crate) filters: List<Filter>,
    /// Limits on packets or bytes per second and source; at most 8.
    pub(crate) rate_limits: List<RateLimit>,
    /// Answers SYNs with cookies in the place of listeners of this machine.
    pub(crate) syn_proxy: Field<SynProxy>,
}

/// Answers SYNs with cookies in the place of listeners of this machine.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["ports"]))]
pub(crate) struct SynProxy {
    /// TCP ports of listeners, such as `[443, 8000-8999]`.
    pub(crate) ports: List<ScopePorts>,
    /// What happens to segments to these ports that belong to no connection and carry no cookie. Default: `pass`,
    /// and the machine resets them.
    pub(crate) stray_acks: Field<StrayAcks>,
}

/// What happens to segments that belong to no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StrayAcks {
    /// On to the machine, which resets them.
    Pass,
    /// Dropped; every other segment to these ports costs a look for its socket.
    Drop,
}

/// A named list of prefixes, here or in a file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend(
    "required" = ["name"],
    "oneOf" = [
        {"required": ["cidrs"]}, {"required": ["file"]}, {"required": ["directory"]}, {"required": ["url"]},
        {"required": ["match"]}
    ]
))]
pub(crate) struct PrefixList {
    /// Unique name.
    pub(crate) name: Field<String>,
    /// The prefixes; a bare address is a prefix of full length.
    pub(crate) cidrs: List<Cidr>,
    /// A file of prefixes; its path is relative to the directory of this file.
    pub(crate) file: Field<String>,
    /// A directory of such files: each is a list of its own, named `NAME:FILE` without the file's suffix.
    pub(crate) directory: Field<String>,
    /// Where such a file is fetched from, over HTTP or HTTPS. The last good copy is kept in `--state`.
    pub(crate) url: Field<String>,
    /// Countries and networks whose addresses are in it, by the `tables`.
    #[serde(rename = "match")]
    pub(crate) matches: Field<ListMatch>,
    /// How often it is fetched; 1m to 30d. Default: `1h`.
    pub(crate) refresh: Field<Span>,
    /// How long fetching it may take in all; 1s to 10m. Default: `30s`.
    pub(crate) timeout: Field<Span>,
    /// How large it may be. Default: 67108864 (64 MiB).
    pub(crate) max_bytes: Field<u64>,
    /// Certificates (PEM) of the authorities to trust for this URL, in the place of the system's.
    pub(crate) ca_file: Field<String>,
    /// How the file is written. Default: `auto`.
    pub(crate) format: Field<ListFormat>,
    /// What a line that is no prefix does. Default: `reject`.
    pub(crate) on_error: Field<OnError>,
    /// Default: `drop`.
    pub(crate) action: Field<ListAction>,
    /// Interfaces, by name: it is about packets that come in there; at most 16. Default: all with the role
    /// `prefilter`.
    pub(crate) interfaces: List<String>,
    /// Whether it is about packets from its addresses, or to them. Default: `source`.
    pub(crate) direction: Field<Direction>,
    /// It is about this protocol. Default: all.
    pub(crate) protocol: Field<ScopeProtocol>,
    /// It is about these destination ports, such as `[53, 8000-8999]`; at most 8. Needs `protocol`. Default: all.
    pub(crate) ports: List<ScopePorts>,
    /// It may cover gateways, name servers, backends, addresses of this machine, and whoever is logged in over
    /// SSH. Default: false.
    pub(crate) force: Field<bool>,
}

/// Which addresses a list has.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ListMatch {
    /// Codes of countries (ISO 3166): two letters.
    pub(crate) country: List<String>,
    /// Numbers of networks (ASN).
    pub(crate) asn: List<u32>,
}

/// CSV files, each path relative to the directory of this file; their form is found out from their content.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tables {
    /// GeoLite2 country blocks and locations; `network,country`; `start,end,country`.
    pub(crate) country: List<String>,
    /// GeoLite2 ASN blocks; `network,number,name`; `start,end,number,name`.
    pub(crate) asn: List<String>,
}

/// A local API of CrowdSec.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["url", "api_key_file"]))]
pub(crate) struct CrowdSec {
    /// Of the local API, as http://127.0.0.1:8080.
    pub(crate) url: Field<String>,
    /// A file with the bouncer's key, as `cscli bouncers add` prints it.
    pub(crate) api_key_file: Field<String>,
    /// The list that its bans are on. Default: `crowdsec`.
    pub(crate) list: Field<String>,
    /// How often decisions are pulled; 1s to 1h. Default: `10s`.
    pub(crate) interval: Field<Span>,
    /// How long pulling may take; 1s to 10m. Default: `30s`.
    pub(crate) timeout: Field<Span>,
    /// Certificates (PEM) of the authorities to trust, in the place of the system's.
    pub(crate) ca_file: Field<String>,
}

/// How a list file is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ListFormat {
    /// Found out from the content.
    #[default]
    Auto,
    /// A prefix or an address per line; `#` and `;` begin a comment.
    Plain,
    /// A FireHOL netset: as `plain`, with `#` for comments.
    Netset,
    /// Spamhaus DROP as text: a prefix, `;` and a reference per line.
    SpamhausDrop,
    /// Spamhaus DROP as JSON: an object with `cidr` per line.
    SpamhausDropJson,
}

/// What a line that is no prefix does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnError {
    /// It is a fault of the configuration: the last good state stays in force.
    #[default]
    Reject,
    /// The list loads without it; the line is reported.
    Skip,
}

/// What a list does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ListAction {
    /// Drop and count.
    Drop,
    /// Count, let pass.
    Audit,
}

/// Which address of a packet a list is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// A protocol that a list is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ScopeProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP and ICMPv6.
    Icmp,
}

/// What is dropped whatever its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Filter {
    /// Sources that nobody on the Internet has: a list of the name `bogons`.
    Bogons,
    /// TCP flags that cannot be.
    TcpFlags,
    /// UDP from ports of services that are misused to amplify; DNS and NTP are not among them.
    Amplification,
    /// Fragments, of either family.
    Fragments,
}

/// A limit on packets or bytes per second and source.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend(
    "required" = ["name"],
    "oneOf" = [{"required": ["packets_per_second"]}, {"required": ["bytes_per_second"]}]
))]
pub(crate) struct RateLimit {
    /// Unique name.
    pub(crate) name: Field<String>,
    /// Which packets it counts. Default: all.
    #[serde(rename = "match")]
    pub(crate) matches: Field<RateMatch>,
    /// Packets per second and key.
    pub(crate) packets_per_second: Field<u64>,
    /// Bytes of frames per second and key, in the place of `packets_per_second`.
    pub(crate) bytes_per_second: Field<u64>,
    /// Packets (or bytes) that may come at once. Default: those of a second.
    pub(crate) burst: Field<u64>,
    /// What has a budget of its own: `source/` and a prefix length. Up to 32 it is that of IPv4, and /64 that of
    /// IPv6; beyond, it is that of IPv6, and /32 that of IPv4. Default: `source/32`.
    pub(crate) key: Field<RateKey>,
    /// What happens to packets beyond it. Default: `drop`.
    pub(crate) action: Field<ListAction>,
}

/// Which packets a rate limit counts.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RateMatch {
    /// Transport protocol. Default: all.
    pub(crate) protocol: Field<Protocol>,
    /// Destination port. Default: all.
    pub(crate) port: Field<u16>,
    /// TCP flags that are set, and with `!` those that are not, such as `[syn, "!ack"]`. Default: all.
    pub(crate) tcp_flags: List<TcpFlag>,
}
