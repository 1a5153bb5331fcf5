//! `lbctl prefilter`: blocklists, and bans on lists of the API.

mod change;
mod exported;
mod pieces;
mod scope;

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use hyper::Method;
use serde_json::{Value, json};

use super::{
    client::{Client, Guard, asking, segment},
    output::{Output, bytes, count, number, table},
};
use crate::api::{
    lists::{DEFAULT_LIST, Entries, Entry, Lookup, RateLimit, SynProxy},
    model::{List, PrefixList},
};

/// Blocklists.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Every list with its size and hits, or the prefixes of one.
    List {
        /// Show what is on this list.
        name: Option<String>,
    },
    /// One list: size, hits, and how fetching it goes.
    Get {
        /// The list.
        name: String,
    },
    /// Fetch a list now rather than when it is due.
    Refresh {
        /// The list.
        name: String,
    },
    /// What putting prefixes on a list would do, and whether it would cut something off; changes nothing.
    Plan {
        /// Prefixes without host bits, or addresses.
        #[arg(required_unless_present = "file", value_name = "CIDR")]
        cidrs: Vec<String>,
        /// A list file in their place; `-` is standard input.
        #[arg(long, conflicts_with = "cidrs", value_name = "FILE")]
        file: Option<PathBuf>,
        /// The list.
        #[arg(long, value_name = "NAME", default_value = DEFAULT_LIST)]
        list: String,
        #[command(flatten)]
        scope: scope::ScopeOptions,
    },
    /// Keep the change that waits for it.
    Confirm,
    /// Take back the change that waits for confirmation.
    Rollback,
    /// Put prefixes on a list of the API.
    Add {
        /// Prefixes without host bits, or addresses.
        #[arg(required = true, value_name = "CIDR")]
        cidrs: Vec<String>,
        #[command(flatten)]
        entry: EntryOptions,
        #[command(flatten)]
        scope: scope::ScopeOptions,
        #[command(flatten)]
        safety: SafetyOptions,
    },
    /// Take prefixes off a list of the API, or remove the list.
    Delete {
        /// Prefixes or addresses.
        #[arg(required_unless_present = "all", value_name = "CIDR")]
        cidrs: Vec<String>,
        /// The list.
        #[arg(long, value_name = "NAME", default_value = DEFAULT_LIST)]
        list: String,
        /// The whole list.
        #[arg(long, conflicts_with = "cidrs")]
        all: bool,
    },
    /// Put the prefixes of a list file on a list of the API, all at once.
    Import {
        /// Plain, FireHOL netset, Spamhaus DROP, or an export as JSON; `-` is standard input.
        file: PathBuf,
        #[command(flatten)]
        entry: EntryOptions,
        #[command(flatten)]
        scope: scope::ScopeOptions,
        #[command(flatten)]
        safety: SafetyOptions,
        /// Leave out what is wrong and report it, rather than refusing the whole.
        #[arg(long)]
        skip_errors: bool,
    },
    /// Which lists hold an address, by which prefix, and what becomes of its packets.
    ///
    /// Without options: of all packets from there. With any of them: of one packet, as far as it is told.
    Lookup {
        /// IPv4 or IPv6.
        ip: IpAddr,
        #[command(flatten)]
        packet: Packet,
    },
    /// Print a list for other programs.
    Export {
        /// The list.
        name: String,
        /// How.
        #[arg(long, value_enum, default_value_t = Export::Plain)]
        format: Export,
    },
    /// Rate limits, and the packets beyond them.
    Limits,
    /// Ports whose SYNs are answered in the place of listeners, and how many were.
    SynProxy,
    /// What packets of a list of the API meet; makes the list if there is none.
    Set {
        /// The list.
        name: String,
        /// drop, or audit: count and let pass.
        #[arg(value_parser = ["drop", "audit"])]
        action: String,
        #[command(flatten)]
        safety: SafetyOptions,
    },
}

/// What entries have beside their prefix.
#[derive(Debug, Args)]
pub(super) struct EntryOptions {
    /// The list; made if there is none. Without it `bans`, or that of an export.
    #[arg(long, value_name = "NAME")]
    list: Option<String>,
    /// After how long they go by themselves, as 90s, 1h or 7d.
    #[arg(long, value_name = "DURATION")]
    ttl: Option<String>,
    /// Why, for people.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl EntryOptions {
    fn list(&self) -> &str {
        self.list.as_deref().unwrap_or(DEFAULT_LIST)
    }
}

/// How careful to be.
#[derive(Debug, Args)]
pub(super) struct SafetyOptions {
    /// Also if it cuts off this machine, its gateways, name servers, backends, or your own session.
    #[arg(long)]
    force: bool,
    /// Take the change back after this time, as 60s, unless Enter is pressed or `lbctl prefilter confirm` run.
    #[arg(long, value_name = "DURATION")]
    confirm: Option<String>,
}

/// Forms of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Export {
    /// A prefix per line.
    Plain,
    /// With all that the list is about, and reason and end of each prefix.
    Json,
    /// Sets for `nft -f`, and a chain to jump to that drops or counts what the list does.
    Nft,
}

impl Verb {
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        match self {
            Self::List { name: None } => lists(client, output),
            Self::List { name: Some(name) } => entries(client, output, name),
            Self::Get { name } => get(client, output, name),
            Self::Refresh { name } => {
                let path = format!("{}/refresh", path(name));
                let value = client.change(Method::POST, &path, None, Guard::default())?;
                let sentence = format!("asked for; `lbctl prefilter get {name}` says what came");
                output.done(&value, &sentence)
            }
            Self::Plan { cidrs, file, list, scope } => {
                change::plan(client, output, (cidrs, file.as_deref()), list, scope)
            }
            Self::Confirm => {
                client.change(Method::POST, change::CONFIRM, None, Guard::default())?;
                output.done(&Value::Null, "confirmed: the change stays")
            }
            Self::Rollback => {
                let path = "/v1/prefilter/rollback";
                client.change(Method::POST, path, None, Guard::default())?;
                output.done(&Value::Null, "the change is taken back")
            }
            Self::Add { cidrs, entry, scope, safety } => {
                change::add(client, output, cidrs, entry, (scope, safety))
            }
            Self::Delete { cidrs: _, list, all: true } => {
                client.change(Method::DELETE, &path(list), None, Guard::default())?;
                output.done(&Value::Null, &format!("the list {list} is removed"))
            }
            Self::Delete { cidrs, list, all: false } => change::delete(client, output, cidrs, list),
            Self::Import { file, entry, scope, safety, skip_errors } => {
                change::import(client, output, file, entry, (scope, safety), *skip_errors)
            }
            Self::Limits => limits(client, output),
            Self::SynProxy => syn_proxy(client, output),
            Self::Lookup { ip, packet } => lookup(client, output, *ip, packet),
            Self::Export { name, format } => export(client, output, name, *format),
            Self::Set { name, action, safety } => change::set(client, output, name, action, safety),
        }
    }
}

/// What is told of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(super) struct Packet {
    /// Its protocol: tcp, udp, sctp or icmp.
    #[arg(long)]
    protocol: Option<String>,
    /// The port that it goes to.
    #[arg(long, requires = "protocol")]
    port: Option<u16>,
    /// The interface that it comes in by.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// It goes to the address, and does not come from there.
    #[arg(long)]
    destination: bool,
}

impl Packet {
    /// The question about it and an address, as a query of the API.
    fn query(&self, ip: IpAddr) -> Vec<(&'static str, String)> {
        let Self { protocol, port, interface, destination } = self;
        [
            ("ip", Some(ip.to_string())),
            ("protocol", protocol.clone()),
            ("port", port.map(|port| port.to_string())),
            ("interface", interface.clone()),
            ("destination", destination.then(|| true.to_string())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

fn path(list: &str) -> String {
    format!("/v1/prefilter/lists/{}", segment(list))
}

fn lists(client: &Client, output: &Output) -> anyhow::Result<()> {
    let (value, lists) = client.get::<List<PrefixList>>("/v1/prefilter/lists")?;
    output.show(&value, || {
        table(
            ["LIST", "ACTION", "PACKETS", "#IPV4", "#IPV6", "#HITS", "#BYTES", "SOURCE"],
            lists.items.into_iter().map(|list| {
                let source = list.origin.unwrap_or_else(|| list.source.as_str().to_owned());
                [
                    list.name.into(),
                    list.action.into(),
                    list.scope.unwrap_or_default().into(),
                    number(list.prefixes_v4),
                    number(list.prefixes_v6),
                    number(list.hits),
                    bytes(list.hit_bytes),
                    source.into(),
                ]
            }),
        )
    })
}

fn get(client: &Client, output: &Output, name: &str) -> anyhow::Result<()> {
    let (value, list) = client.get::<PrefixList>(&path(name))?;
    output.show(&value, || {
        let mut page = String::new();
        let mut line = |title: &str, text: String| {
            if !text.is_empty() {
                page.push_str(&format!("{title:<14}{text}\n"));
            }
        };
        line("list", list.name);
        line("action", list.action);
        line("packets", list.scope.unwrap_or_default());
        line("source", list.origin.unwrap_or_else(|| list.source.as_str().to_owned()));
        line(
            "prefixes",
            format!("{} IPv4, {} IPv6", number(list.prefixes_v4), number(list.prefixes_v6)),
        );
        line("hits", format!("{}, {}", count(list.hits, "packet"), bytes(list.hit_bytes)));
        if list.skipped_lines > 0 {
            line("left out", count(list.skipped_lines, "line"));
        }
        if let Some(fetch) = list.fetch {
            line("url", fetch.url);
            line("fetching", fetch.state);
            line("  error", fetch.error.unwrap_or_default());
            line("  fetched", fetch.fetched.unwrap_or_default());
            line("  confirmed", fetch.last_success.unwrap_or_default());
            line("  asked", fetch.last_attempt.unwrap_or_default());
            line("  next", fetch.next_attempt.unwrap_or_default());
            for text in fetch.attribution {
                line("  publisher", text);
            }
        }
        page
    })
}

fn entries(client: &Client, output: &Output, name: &str) -> anyhow::Result<()> {
    let mut after = String::new();
    let mut all: Vec<Entry> = Vec::new();
    let mut packets;
    loop {
        let path = format!("{}/entries?limit=10000{after}", path(name));
        let (_, page) = client.get::<Entries>(&path)?;
        all.extend(page.items);
        packets = page.scope;
        match page.next {
            Some(next) => after = format!("&after={}", segment(&next)),
            None => break,
        }
    }
    let mut value = json!({ "items": all });
    if let Some(scope) = &packets {
        value["scope"] = json!(scope);
    }
    output.show(&value, || {
        let about = packets.as_ref().map(|scope| format!("only packets {scope}\n"));
        about.unwrap_or_default()
            + &table(
                ["PREFIX", "ADDED", "EXPIRES IN", "REASON"],
                all.iter().map(|entry| {
                    let left = entry.expires_in_seconds.map(std::time::Duration::from_secs);
                    [
                        entry.cidr.to_string().into(),
                        entry.added.clone().unwrap_or_default().into(),
                        left.map(config::format_duration).unwrap_or_default().into(),
                        entry.reason.clone().unwrap_or_default().into(),
                    ]
                }),
            )
    })
}

fn lookup(client: &Client, output: &Output, ip: IpAddr, packet: &Packet) -> anyhow::Result<()> {
    let path = asking("/v1/prefilter/lookup", &packet.query(ip));
    let (value, found) = client.get::<Lookup>(&path)?;
    output.show(&value, || {
        let Lookup { address, verdict, allowed_by, list, country, asn, as_name, hits } = found;
        let place = country.map(|country| format!("country {country}"));
        let network = asn.map(|asn| format!("AS{asn} {}", as_name.unwrap_or_default()));
        let place: Vec<String> =
            place.into_iter().chain(network).map(|text| text.trim_end().to_owned()).collect();
        let place = match place.as_slice() {
            [] => String::new(),
            place => format!("{}\n", place.join(", ")),
        };
        let why = match (allowed_by, list) {
            (Some(prefix), _) => format!("{prefix} is allowed, whatever lists say"),
            (None, Some(list)) if verdict == "depends" => {
                format!("whether the list {list} decides, what was not said would tell")
            }
            (None, Some(list))
                if *packet == Packet::default() && hits.iter().any(|hit| hit.scope.is_some()) =>
            {
                format!("the list {list} decides about what no list for some packets only is about")
            }
            (None, Some(list)) => format!("the list {list} decides"),
            (None, None) if *packet != Packet::default() && !hits.is_empty() => {
                "no list is about such a packet".to_owned()
            }
            (None, None) if hits.iter().any(|hit| hit.scope.is_some()) => {
                "only what a list below is about is dropped or counted".to_owned()
            }
            (None, None) => "it is on no list".to_owned(),
        };
        let hits = table(
            ["LIST", "ACTION", "PACKETS", "PREFIX", "EXPIRES IN", "REASON"],
            hits.into_iter().map(|hit| {
                let left = hit.entry.expires_in_seconds.map(std::time::Duration::from_secs);
                [
                    hit.list.into(),
                    hit.action.into(),
                    hit.scope.unwrap_or_default().into(),
                    hit.entry.cidr.to_string().into(),
                    left.map(config::format_duration).unwrap_or_default().into(),
                    hit.entry.reason.unwrap_or_default().into(),
                ]
            }),
        );
        format!("{address}: {verdict}: {why}\n{place}\n{hits}")
    })
}

fn syn_proxy(client: &Client, output: &Output) -> anyhow::Result<()> {
    let (value, proxy) = client.get::<SynProxy>("/v1/prefilter/syn-proxy")?;
    output.show(&value, || {
        let ports = match proxy.ports.is_empty() {
            true => "none: there is no SYN proxy (prefilter.syn_proxy)".to_owned(),
            false => proxy.ports.join(", "),
        };
        format!(
            "ports: {ports}\nSYNs answered: {}\nstray segments: {}, {} dropped\n",
            proxy.answered, proxy.stray_acks, proxy.dropped
        )
    })
}

fn limits(client: &Client, output: &Output) -> anyhow::Result<()> {
    let (value, limits) = client.get::<List<RateLimit>>("/v1/prefilter/rate-limits")?;
    output.show(&value, || {
        table(
            ["LIMIT", "ACTION", "COUNTS", "SOURCE", "#PER SECOND", "#BURST", "#BEYOND"],
            limits.items.into_iter().map(|limit| {
                let port = limit.port.map(|port| format!(" {port}")).unwrap_or_default();
                let flags: String = limit.tcp_flags.iter().map(|flag| format!(" {flag}")).collect();
                let what = limit.protocol.unwrap_or_else(|| "all".to_owned()) + &port + &flags;
                let rate = match (limit.packets_per_second, limit.bytes_per_second) {
                    (_, Some(rate)) => format!("{} B", number(rate)).into(),
                    (rate, None) => number(rate.unwrap_or_default()),
                };
                [
                    limit.name.into(),
                    limit.action.into(),
                    what.into(),
                    format!("/{}, /{}", limit.key_v4, limit.key_v6).into(),
                    rate,
                    number(limit.burst),
                    number(limit.packets),
                ]
            }),
        )
    })
}

fn export(client: &Client, output: &Output, name: &str, format: Export) -> anyhow::Result<()> {
    match format {
        Export::Plain => {
            output.text(&client.text(&format!("{}/entries?format=plain", path(name)))?)
        }
        Export::Nft => output.text(&client.text(&format!("{}/entries?format=nft", path(name)))?),
        Export::Json => {
            let path = format!("{}/entries?limit={}", path(name), u32::MAX);
            let (value, _) = client.get::<Entries>(&path)?;
            let all = json!({ "list": name, "spec": value["spec"], "items": value["items"] });
            output.text(&serde_json::to_string_pretty(&all)?)
        }
    }
}
