//! Values that are written as text: addresses, prefixes, durations.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de::Error};

use crate::{duration, fault::show, tree::de::HELP};

/// An IP address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ip(pub(crate) IpAddr);

/// A prefix without host bits, or an address, which is a prefix of full length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cidr(pub(crate) IpNet);

/// A duration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span(pub(crate) Duration);

/// `auto`, a prefix or an address.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SourceText {
    Auto,
    Prefix(IpNet),
}

/// `source/` and a prefix length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateKey(pub(crate) u8);

/// A TCP flag that is set, or with `!` is not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpFlag {
    /// Its bit.
    pub(crate) bit: u8,
    pub(crate) set: bool,
}

/// A port, or the first and the last of a range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScopePorts(pub(crate) u16, pub(crate) u16);

/// First and last port of a service's, which are the same for a port alone; 0 for every port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServicePorts(pub(crate) u16, pub(crate) u16);

/// What is wrong with a text, and what is allowed.
type Wrong = (String, String);

/// Reads an address that stands for one host in IPv4 or IPv6.
pub(crate) fn parse_ip(text: &str) -> Result<IpAddr, Wrong> {
    const ALLOWED: &str = "allowed: an IPv4 or IPv6 address, such as 192.0.2.1 or 2001:db8::1";
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => match v6.to_ipv4_mapped() {
            Some(v4) => Err(mapped(text, v4)),
            None => Ok(IpAddr::V6(v6)),
        },
        Ok(v4) => Ok(v4),
        Err(_) => Err(match text.parse::<IpNet>() {
            Ok(net) => (
                format!("{} is a prefix, not an address", show(text)),
                format!("write the address alone: {}", net.addr()),
            ),
            Err(_) => (format!("{} is not an IP address", show(text)), ALLOWED.to_owned()),
        }),
    }
}

/// Reads a prefix or an address. Host bits are left as they are.
pub(crate) fn parse_net(text: &str) -> Result<IpNet, Wrong> {
    const ALLOWED: &str = "allowed: a prefix such as 192.0.2.0/24 or 2001:db8::/32, or an address";
    let net = match text.split_once('/') {
        None => text.parse::<IpAddr>().ok().map(IpNet::from),
        Some((address, length)) => match (address.parse::<IpAddr>(), length.parse::<u8>()) {
            (Ok(address), Ok(length)) if !length_has_sign(text) => {
                let max = if address.is_ipv4() { 32 } else { 128 };
                match IpNet::new(address, length) {
                    Ok(net) => Some(net),
                    Err(_) => {
                        return Err((
                            format!("the prefix length of {} is too large", show(text)),
                            format!("allowed: 0 to {max}"),
                        ));
                    }
                }
            }
            _ => None,
        },
    };
    let Some(net) = net else {
        return Err((format!("{} is not a prefix", show(text)), ALLOWED.to_owned()));
    };
    if let IpNet::V6(v6) = net
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && v6.prefix_len() >= 96
    {
        let form = Ipv4Net::new(v4, v6.prefix_len() - 96).map_or(v4.to_string(), |net| {
            if net.prefix_len() == 32 { v4.to_string() } else { net.trunc().to_string() }
        });
        return Err((
            format!("{} is an IPv4 prefix mapped into IPv6", show(text)),
            format!("write {form}"),
        ));
    }
    Ok(net)
}

fn length_has_sign(text: &str) -> bool {
    text.contains('+')
}

/// Reads a prefix without host bits, or an address.
pub(crate) fn parse_cidr(text: &str) -> Result<IpNet, Wrong> {
    let net = parse_net(text)?;
    if net.addr() == net.network() {
        return Ok(net);
    }
    Err((
        format!("host bits are set in {}", show(text)),
        format!("write {} for the prefix or {} for the address", net.trunc(), net.addr()),
    ))
}

/// Reads a prefix without host bits, or an address, which is a prefix of full length.
///
/// # Errors
/// What is wrong with it, and what is allowed.
pub fn parse_prefix(text: &str) -> Result<IpNet, String> {
    parse_cidr(text).map_err(|(message, help)| format!("{message}; {help}"))
}

fn mapped(text: &str, v4: Ipv4Addr) -> Wrong {
    (format!("{} is an IPv4 address mapped into IPv6", show(text)), format!("write {v4}"))
}

/// Reads `text` with `parse`, for a serde implementation.
fn read<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Result<T, Wrong>,
) -> Result<T, D::Error> {
    let text = Cow::<'de, str>::deserialize(deserializer)?;
    parse(&text).map_err(|(message, help)| D::Error::custom(format!("{message}{HELP}{help}")))
}

impl<'de> Deserialize<'de> for Ip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, parse_ip).map(Self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, parse_cidr).map(Self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, |text| {
            duration::parse(text).map_err(|message| (message, duration::ALLOWED.to_owned()))
        })
        .map(Self)
    }
}

impl<'de> Deserialize<'de> for SourceText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, |text| match text {
            "auto" => Ok(Self::Auto),
            _ => parse_cidr(text)
                .map(Self::Prefix)
                .map_err(|(message, help)| (message, format!("{help}, or auto"))),
        })
    }
}

impl<'de> Deserialize<'de> for RateKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, |text| {
            let length = text.strip_prefix("source/").and_then(|length| length.parse::<u8>().ok());
            if let Some(length) = length.filter(|length| *length <= 128) {
                return Ok(Self(length));
            }
            Err((
                format!("{} is not a key of a rate limit", show(text)),
                "allowed: source/ and a prefix length, such as source/32".to_owned(),
            ))
        })
    }
}

impl<'de> Deserialize<'de> for TcpFlag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // In the order of their bits (RFC 9293, section 3.1).
        const NAMES: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
        read(deserializer, |text| {
            let (name, set) = text.strip_prefix('!').map_or((text, true), |name| (name, false));
            if let Some(place) = NAMES.iter().position(|known| *known == name) {
                return Ok(Self { bit: 1 << place, set });
            }
            Err((
                format!("{} is not a TCP flag", show(text)),
                format!("allowed: {}, each also with ! for not set", NAMES.join(", ")),
            ))
        })
    }
}

impl<'de> Deserialize<'de> for ScopePorts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, |text| {
            port_range(text).map(|(first, last)| Self(first, last)).ok_or_else(|| {
                (
                    format!("{} is neither a port nor a range of ports", show(text)),
                    "allowed: 1 to 65535, or a range such as 8000-8999".to_owned(),
                )
            })
        })
    }
}

impl<'de> Deserialize<'de> for ServicePorts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, |text| {
            let range = if text == "0" { Some((0, 0)) } else { port_range(text) };
            range.map(|(first, last)| Self(first, last)).ok_or_else(|| {
                (
                    format!("{} is neither a port nor a range of ports", show(text)),
                    "allowed: 1 to 65535, a range such as 8000-8999, or 0 for every port of the address"
                        .to_owned(),
                )
            })
        })
    }
}

/// First and last port of `443` or `8000-8999`.
fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| digits && *port != 0)
    };
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some((first, last))
}

impl JsonSchema for ServicePorts {
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("ServicePorts")
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A port, a range of ports such as 8000-8999, or 0 for every port that has no entry of its own.",
            "oneOf": [
                {"type": "integer", "minimum": 0, "maximum": 65535},
                {"type": "string", "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$"},
            ],
        })
    }
}

impl JsonSchema for ScopePorts {
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Ports")
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A port, or a range of ports such as 8000-8999.",
            "oneOf": [
                {"type": "integer", "minimum": 1, "maximum": 65535},
                {"type": "string", "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$"},
            ],
        })
    }
}

/// A JSON schema for a value that is written as text.
macro_rules! text_schema {
    ($type:ty, $name:literal, $description:literal, $pattern:literal) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "description": $description,
                    "pattern": $pattern,
                })
            }
        }
    };
}

text_schema!(Ip, "Address", "An IPv4 or IPv6 address.", r"^[0-9A-Fa-f:.]+$");
text_schema!(
    Cidr,
    "Prefix",
    "A prefix without host bits, or an address.",
    r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$"
);
text_schema!(
    Span,
    "Duration",
    "Whole numbers with units: 500ms, 1s, 5m, 1h30m.",
    r"^(0|([0-9]+(us|ms|s|m|h|d))+)$"
);
text_schema!(
    SourceText,
    "TunnelSourceAddress",
    "`auto`, a prefix or an address.",
    r"^(auto|[0-9A-Fa-f:.]+(/[0-9]{1,3})?)$"
);
text_schema!(
    TcpFlag,
    "TcpFlag",
    "A TCP flag that is set, or with ! is not.",
    r"^!?(fin|syn|rst|psh|ack|urg|ece|cwr)$"
);
text_schema!(
    RateKey,
    "RateLimitKey",
    "What has a budget of its own, such as source/32.",
    r"^source/[0-9]{1,3}$"
);
