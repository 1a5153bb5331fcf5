//! `lbctl conntrack`.

use std::net::{IpAddr, SocketAddr};

use clap::{Args, Subcommand};
use hyper::Method;
use serde::Deserialize as _;

use super::{
    client::{Client, Guard, asking},
    output::{Output, count, duration, table},
};
use crate::api::conntrack::{Connection, Connections, Removed};

/// Connections that have entries.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Those that are translated, or that the ring alone would send elsewhere.
    List {
        #[command(flatten)]
        which: Which,
        /// At most so many, up to 100,000.
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
    /// The connection that a packet belongs to, seen on either side and in either direction.
    Get {
        /// Protocol.
        protocol: Transport,
        /// ADDRESS:PORT that it comes from; an IPv6 address stands in square brackets.
        source: SocketAddr,
        /// ADDRESS:PORT that it goes to.
        destination: SocketAddr,
    },
    /// Removes entries: translated TCP connections end with that, other flows go where the ring says.
    Flush {
        #[command(flatten)]
        which: Which,
        /// Every entry, with no condition.
        #[arg(long)]
        all: bool,
    },
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Transport {
    Tcp,
    Udp,
    Sctp,
}

impl Transport {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A table.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Table {
    Nat,
    Flows,
}

/// Which connections.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// Of this service.
    #[arg(long)]
    service: Option<String>,
    /// With this address on any side.
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// With this port on any side.
    #[arg(long)]
    port: Option<u16>,
    /// Of this protocol.
    #[arg(long)]
    protocol: Option<Transport>,
    /// Whose clients use IPv4.
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Whose clients use IPv6.
    #[arg(short = '6', long)]
    ipv6: bool,
    /// In this state, as it is shown.
    #[arg(long)]
    state: Option<String>,
    /// In this table only.
    #[arg(long)]
    table: Option<Table>,
}

impl Which {
    /// As a query of the API.
    fn query(&self) -> Vec<(&'static str, String)> {
        let Self { service, address, port, protocol, ipv4, ipv6, state, table } = self;
        let family = [(*ipv4, "ipv4"), (*ipv6, "ipv6")].into_iter().find(|(asked, _)| *asked);
        let table = table.map(|table| match table {
            Table::Nat => "nat",
            Table::Flows => "flows",
        });
        [
            ("service", service.clone()),
            ("address", address.map(|address| address.to_string())),
            ("port", port.map(|port| port.to_string())),
            ("protocol", protocol.map(|protocol| protocol.name().to_owned())),
            ("family", family.map(|(_, name)| name.to_owned())),
            ("state", state.clone()),
            ("table", table.map(str::to_owned)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

impl Verb {
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        match self {
            Self::List { which, limit } => {
                let mut query = which.query();
                query.push(("limit", limit.to_string()));
                let (value, found) = client.get::<Connections>(&asking("/v1/conntrack", &query))?;
                output.show(&value, || page(&found))
            }
            Self::Get { protocol, source, destination } => {
                let query = [
                    ("protocol", protocol.name().to_owned()),
                    ("source", source.to_string()),
                    ("destination", destination.to_string()),
                ];
                let path = asking("/v1/conntrack/entry", &query);
                let (value, found) = client.get::<Connection>(&path)?;
                output.show(&value, || connections(&[found]))
            }
            Self::Flush { which, all } => {
                let mut query = which.query();
                if *all {
                    query.push(("all", "true".to_owned()));
                }
                let path = asking("/v1/conntrack", &query);
                let value = client.change(Method::DELETE, &path, None, Guard::default())?;
                let Removed { removed } = Removed::deserialize(&value)?;
                output.done(&value, &format!("removed: {}", count(removed, "connection")))
            }
        }
    }
}

fn page(found: &Connections) -> String {
    let mut page = connections(&found.items);
    let shown = found.items.len() as u64;
    if shown < found.total {
        page += &format!("\n{} more; --limit shows them", count(found.total - shown, "connection"));
    }
    page
}

fn connections(items: &[Connection]) -> String {
    let end = |end: Option<SocketAddr>| end.map_or_else(|| "-".to_owned(), |end| end.to_string());
    let time = |seconds: Option<u32>| match seconds {
        Some(seconds) => duration(seconds.into()),
        None => "-".to_owned(),
    };
    table(
        ["SERVICE", "PROTO", "CLIENT", "VIP", "NAT", "BACKEND", "STATE", "#IDLE", "#EXPIRES"],
        items.iter().map(|c| {
            [
                c.service.clone().unwrap_or_else(|| "-".to_owned()).into(),
                c.protocol.clone().unwrap_or_else(|| "-".to_owned()).into(),
                c.client.to_string().into(),
                end(c.vip).into(),
                end(c.nat).into(),
                c.backend.to_string().into(),
                c.state.clone().into(),
                time(c.idle_seconds).into(),
                time(c.expires_seconds).into(),
            ]
        }),
    )
}
