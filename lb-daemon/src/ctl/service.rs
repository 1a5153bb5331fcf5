//! `lbctl service`.

use std::{
    fmt::Write as _,
    io::Read as _,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use super::{
    backend,
    client::{Client, Guard, segment},
    output::{Output, bytes, number, table},
};
use crate::api::model::{Accepted, Frontend, List, Service, ServiceSummary};

/// Services: the addresses that are balanced.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Every service, with its traffic.
    List {
        /// Watches for that many seconds and shows rates instead of sums.
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1")]
        rate: Option<f64>,
    },
    /// One service, with its backends; with -o yaml what `set --file` takes.
    Get {
        /// Its name.
        name: String,
    },
    /// Creates a service, or replaces it as a whole.
    Set(Set),
    /// Deletes services.
    Delete {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Creates a service, or replaces it as a whole.
#[derive(Debug, Args)]
pub(super) struct Set {
    /// Its name.
    name: String,
    /// The service as YAML or JSON, as in a configuration file or as `get` prints it; - for standard
    /// input.
    #[arg(short, long, conflicts_with_all = ["address", "port", "forwarding", "backend"])]
    file: Option<PathBuf>,
    /// VIP; may be given more than once.
    #[arg(long, value_name = "IP", required_unless_present = "file")]
    address: Vec<IpAddr>,
    /// PORT/PROTOCOL as 443/tcp or 8000-8999/udp; 0: every port; may be given more than once.
    #[arg(long, value_name = "PORT/PROTOCOL", required_unless_present = "file")]
    port: Vec<PortArgument>,
    /// How packets reach a backend: l2, ipip, gue or geneve.
    #[arg(long, value_name = "MODE", default_value = "ipip")]
    forwarding: String,
    /// NAME=ADDRESS or NAME=ADDRESS,WEIGHT; may be given more than once.
    #[arg(long, value_name = "NAME=ADDRESS[,WEIGHT]")]
    backend: Vec<BackendArgument>,
    /// Only if there is no service of that name.
    #[arg(long, conflicts_with = "if_version")]
    create: bool,
    /// Only if this is the version in force.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

#[derive(Clone, Debug)]
struct PortArgument {
    port: Value,
    protocol: String,
}

impl FromStr for PortArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let number = |text: &str| text.parse::<u16>().ok();
        let port = match port.split_once('-') {
            Some((first, last)) => number(first).zip(number(last)).map(|_| json!(port)),
            None => number(port).map(Value::from),
        };
        let port =
            port.ok_or("a port is a number from 0 to 65535, or a range such as 8000-8999")?;
        Ok(Self { port, protocol: protocol.to_ascii_lowercase() })
    }
}

#[derive(Clone, Debug)]
struct BackendArgument {
    name: String,
    address: IpAddr,
    weight: Option<u32>,
}

impl FromStr for BackendArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('=').ok_or("NAME=ADDRESS is wanted")?;
        let (address, weight) = match rest.split_once(',') {
            Some((address, weight)) => {
                (address, Some(weight.parse().map_err(|_| "a weight is a number")?))
            }
            None => (rest, None),
        };
        let address = address.parse().map_err(|_| format!("{address} is no IP address"))?;
        Ok(Self { name: name.to_owned(), address, weight })
    }
}

impl Verb {
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        match self {
            Self::List { rate: None } => {
                let (value, list) = client.get::<List<ServiceSummary>>("/v1/services")?;
                output.show(&value, || sums(&list.items))
            }
            Self::List { rate: Some(seconds) } => rates(*seconds, client, output),
            Self::Get { name } => {
                let (value, service) = client.get::<Service>(&path(name))?;
                output.show(&value, || page(&service))
            }
            Self::Set(set) => set.run(client, output),
            Self::Delete { names } => {
                for name in names {
                    client.change(Method::DELETE, &path(name), None, Guard::default())?;
                    output.done(&json!({"name": name}), &format!("{name} is deleted"))?;
                }
                Ok(())
            }
        }
    }
}

fn path(name: &str) -> String {
    format!("/v1/services/{}", segment(name))
}

impl Set {
    fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        let body = match &self.file {
            Some(file) => read(file)?,
            None => self.body(),
        };
        let guard = Guard { version: self.if_version, new: self.create };
        let answer = client.change(Method::PUT, &path(&self.name), Some(&body), guard)?;
        let Accepted { name, version } = serde_json::from_value(answer.clone())?;
        output.done(&answer, &format!("{name} is in force, version {version}"))
    }

    fn body(&self) -> Value {
        let ports = self
            .port
            .iter()
            .map(|PortArgument { port, protocol }| json!({"port": port, "protocol": protocol}));
        let backends = self.backend.iter().map(|BackendArgument { name, address, weight }| {
            let mut backend = json!({"name": name, "address": address});
            if let Some(weight) = weight {
                backend["weight"] = json!(weight);
            }
            backend
        });
        json!({
            "addresses": self.address,
            "ports": ports.collect::<Vec<_>>(),
            "forwarding": self.forwarding,
            "backends": backends.collect::<Vec<_>>(),
        })
    }
}

/// A service from a file, also as `get` prints it.
fn read(file: &Path) -> anyhow::Result<Value> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        text
    } else {
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
    };
    let mut value: Value = serde_saphyr::from_str(&text)
        .with_context(|| format!("{} is neither YAML nor JSON", file.display()))?;
    if !value.is_object() {
        bail!("{} must hold one service, with address, ports and backends", file.display());
    }
    Ok(match value.get_mut("spec") {
        Some(spec) => spec.take(),
        None => value,
    })
}

fn addresses(service: &ServiceSummary) -> String {
    service.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn ports(service: &ServiceSummary) -> String {
    let mut ports: Vec<String> = service
        .frontends
        .iter()
        .map(|f| match f.port {
            0 => format!("any/{}", f.protocol),
            _ => numbers(f),
        })
        .collect();
    ports.dedup();
    ports.sort();
    ports.dedup();
    ports.join("\n")
}

/// `443/tcp`, or `8000-8999/udp`.
fn numbers(frontend: &Frontend) -> String {
    let Frontend { port, end_port, protocol, .. } = frontend;
    match end_port {
        Some(last) => format!("{port}-{last}/{protocol}"),
        None => format!("{port}/{protocol}"),
    }
}

fn serving(service: &ServiceSummary) -> String {
    format!("{}/{}", service.backend_counts.serving, service.backend_counts.total)
}

fn sums(items: &[ServiceSummary]) -> String {
    table(
        [
            "SERVICE",
            "ADDRESS",
            "PORT",
            "FORWARDING",
            "#SERVING",
            "#PACKETS",
            "#BYTES",
            "#CONNECTIONS",
            "SOURCE",
        ],
        items.iter().map(|s| {
            [
                s.name.clone().into(),
                addresses(s).into(),
                ports(s).into(),
                s.forwarding.clone().into(),
                serving(s).into(),
                number(s.traffic.packets),
                bytes(s.traffic.bytes),
                number(s.traffic.new_connections),
                s.source.as_str().into(),
            ]
        }),
    )
}

/// Reads the counters twice.
fn rates(seconds: f64, client: &Client, output: &Output) -> anyhow::Result<()> {
    let pause = Duration::try_from_secs_f64(seconds).context("--rate")?;
    let began = Instant::now();
    let (_, before) = client.get::<List<ServiceSummary>>("/v1/services")?;
    std::thread::sleep(pause);
    let elapsed = began.elapsed().as_secs_f64();
    let (_, after) = client.get::<List<ServiceSummary>>("/v1/services")?;
    let per_second =
        |now: u64, then: u64| (now.saturating_sub(then) as f64 / elapsed).round() as u64;
    let rates: Vec<_> = after
        .items
        .iter()
        .filter_map(|now| {
            let then = before.items.iter().find(|then| then.name == now.name)?;
            let packets = per_second(now.traffic.packets, then.traffic.packets);
            let bits = per_second(now.traffic.bytes * 8, then.traffic.bytes * 8);
            let new = per_second(now.traffic.new_connections, then.traffic.new_connections);
            Some((now.name.clone(), serving(now), packets, bits, new))
        })
        .collect();
    let items: Vec<_> = rates
        .iter()
        .map(|(name, _, packets, bits, new)| {
            json!({
                "name": name,
                "packets_per_second": packets,
                "bits_per_second": bits,
                "new_connections_per_second": new,
            })
        })
        .collect();
    output.show(&json!({"items": items}), || {
        table(
            ["SERVICE", "#SERVING", "#PACKETS/S", "#BITS/S", "#CONNECTIONS/S"],
            rates.into_iter().map(|(name, serving, packets, bits, new)| {
                [name.into(), serving.into(), number(packets), number(bits), number(new)]
            }),
        )
    })
}

fn page(service: &Service) -> String {
    let s = &service.summary;
    let mut page = String::new();
    let mut line = |title: &str, text: String| {
        let _ = writeln!(page, "{title:<15}{text}");
    };
    let source = s.origin.clone().unwrap_or_else(|| "the API".to_owned());
    line("name", s.name.clone());
    line("source", format!("{source}, version {}", s.version));
    if let Some(whole) = &s.part_of {
        line("part of", format!("{whole}, whose source_routes lead here"));
    }
    line("forwarding", s.forwarding.clone());
    line(
        "ring",
        format!(
            "{}, {} slots, {} of them moving",
            s.scheduling,
            number(s.ring_size.into()),
            s.moving_slots
        ),
    );
    line("drain_timeout", plain(&service.spec["drain_timeout"]));
    if let Some(check) = service.spec.get("health_check") {
        line("health_check", plain(check));
    }
    for route in service.spec["source_routes"].as_array().into_iter().flatten() {
        line(
            "source_route",
            format!("{} to {}/{}", prefixes(route), s.name, plain(&route["group"])),
        );
    }
    let frontends = table(
        ["ADDRESS", "PORT", "NAME", "#PACKETS", "#BYTES", "#CONNECTIONS"],
        s.frontends.iter().map(|f| {
            [
                f.address.to_string().into(),
                numbers(f).into(),
                f.name.clone().into(),
                number(f.traffic.packets),
                bytes(f.traffic.bytes),
                number(f.traffic.new_connections),
            ]
        }),
    );
    let _ = write!(page, "\n{frontends}\n\n{}", backend::backends(&service.backends));
    page
}

/// The prefixes of a route; of many, the first.
fn prefixes(route: &Value) -> String {
    const SHOWN: usize = 8;
    let all: Vec<&str> =
        route["prefixes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let first = all[..all.len().min(SHOWN)].join(", ");
    match all.len().saturating_sub(SHOWN) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// A part of a specification in a line: `http (expect 200, path /healthz), interval 1s`.
fn plain(value: &Value) -> String {
    let Value::Object(fields) = value else {
        return value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    };
    let field = |(name, value): (&String, &Value)| match value {
        Value::Object(_) => format!("{name} ({})", plain(value)),
        _ => format!("{name} {}", plain(value)),
    };
    fields.iter().map(field).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let port: PortArgument = "443/TCP".parse().unwrap();
        assert_eq!((port.port, port.protocol.as_str()), (json!(443), "tcp"));
        let range: PortArgument = "8000-8999/udp".parse().unwrap();
        assert_eq!((range.port, range.protocol.as_str()), (json!("8000-8999"), "udp"));
        assert!("8000-x/udp".parse::<PortArgument>().is_err());
        assert!("x/tcp".parse::<PortArgument>().is_err());
        let backend: BackendArgument = "a=2001:db8::1,7".parse().unwrap();
        assert_eq!((backend.name.as_str(), backend.weight), ("a", Some(7)));
        assert_eq!("a=10.0.0.1".parse::<BackendArgument>().unwrap().weight, None);
        for bad in ["a", "a=b", "a=10.0.0.1,x"] {
            assert!(bad.parse::<BackendArgument>().is_err(), "{bad}");
        }
    }

    #[test]
    fn routes() {
        let of = |count: u8| -> Value {
            json!({"prefixes": (0..count).map(|n| format!("10.0.{n}.0/24")).collect::<Vec<_>>()})
        };
        assert_eq!(prefixes(&of(2)), "10.0.0.0/24, 10.0.1.0/24");
        assert!(prefixes(&of(9)).ends_with("10.0.7.0/24 and 1 more"));
    }

    #[test]
    fn files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.yaml");
        for (text, address) in [
            ("address: 203.0.113.1", "203.0.113.1"),
            ("{\"version\": 7, \"spec\": {\"address\": \"203.0.113.2\"}}", "203.0.113.2"),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path).unwrap()["address"], address);
        }
        std::fs::write(&path, "- a").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("one service"));
    }
}
