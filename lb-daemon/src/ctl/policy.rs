//! `lbctl policy`, `endpoint`, `identity`: identity policy. `trace` with files and `validate` need no
//! daemon.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use config::policy::Object;
use hyper::Method;
use serde_json::{Value, json};

use super::{
    client::{Client, Guard, segment},
    output::{Output, bytes, number, table},
};
use crate::{
    api::{
        model::List,
        policy::{Endpoint, Identity, Policy, PolicyDocument, PolicyName},
    },
    policy::{cli, trace::Trace},
};

/// Rules of identity policy.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Rules in force, with what they decided.
    List,
    /// A rule in force.
    Get {
        /// Its name.
        name: String,
    },
    /// Documents of rules that were imported.
    Documents,
    /// Names that rules select, with the addresses that DNS gave them.
    Fqdn,
    /// Put the rules of files in force: JSON or YAML, as Cilium takes them, and objects of the kinds
    /// CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and NetworkPolicy.
    Import {
        /// Files, or directories of such files (.yaml, .yml, .json). Each is a document with its name.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Import the files without faults, and say what is wrong with the others.
        #[arg(long)]
        skip_faulty: bool,
        /// Also where rules about this machine deny what it needs, such as your own session.
        #[arg(long)]
        force: bool,
    },
    /// Delete a document with its rules.
    Delete {
        /// Its name, as of the file.
        document: String,
        /// Also where what is left about this machine denies what it needs.
        #[arg(long)]
        force: bool,
    },
    #[command(flatten)]
    Files(cli::Command),
}

/// Workloads of this machine.
#[derive(Debug, Subcommand)]
pub(super) enum EndpointVerb {
    /// Every endpoint, with its identity.
    List,
    /// One endpoint.
    Get {
        /// Its name.
        name: String,
    },
    /// Creates an endpoint or replaces it as a whole. It is kept over restarts.
    Set(SetEndpoint),
    /// Deletes endpoints that were set here.
    Delete {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// What an endpoint is.
#[derive(Debug, Args)]
pub(super) struct SetEndpoint {
    /// Its name.
    name: String,
    /// KEY=VALUE; may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// May be given more than once.
    #[arg(long, required = true, value_name = "IP")]
    address: Vec<std::net::IpAddr>,
    /// Host side of its interface.
    #[arg(long)]
    interface: String,
    /// NAME=PORT/PROTOCOL, for rules that name ports: http=80/tcp; may be given more than once.
    #[arg(long, value_name = "NAME=PORT/PROTOCOL", value_parser = pair)]
    port: Vec<(String, String)>,
    /// What rules deny is counted and passes.
    #[arg(long)]
    audit: bool,
    /// default, always or never, in the place of the node's.
    #[arg(long)]
    enforcement: Option<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a `=` is missing")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl SetEndpoint {
    fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        let Self { name, label, address, interface, port, audit, enforcement } = self;
        let mut ports = Vec::new();
        for (name, text) in port {
            let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let number: u16 = number.parse().with_context(|| format!("--port {name}={text}"))?;
            let protocol = protocol.to_ascii_uppercase();
            ports.push(json!({"name": name, "port": number, "protocol": protocol}));
        }
        let labels: std::collections::BTreeMap<_, _> = label.iter().cloned().collect();
        let mut body = json!({
            "labels": labels,
            "addresses": address,
            "interface": interface,
            "audit": audit,
            "ports": ports,
        });
        if let Some(enforcement) = enforcement {
            body["enforcement"] = json!(enforcement);
        }
        let path = format!("/v1/endpoints/{}", segment(name));
        let value = client.change(Method::PUT, &path, Some(&body), Guard::default())?;
        output.done(&value, &format!("{name} is set"))
    }
}

/// Numbers that stand for labels.
#[derive(Debug, Subcommand)]
pub(super) enum IdentityVerb {
    /// Every identity.
    List,
    /// The labels of one.
    Get {
        /// Its number.
        id: u32,
    },
}

impl Verb {
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        match self {
            Self::List => {
                let (value, list) = client.get::<List<Policy>>("/v1/policies")?;
                output.show(&value, || policies(list.items))
            }
            Self::Get { name } => {
                let (value, list) = client.get::<List<Policy>>("/v1/policies")?;
                let own = |item: &&Value| item["name"] == name.as_str();
                let found: Vec<Value> =
                    value["items"].as_array().into_iter().flatten().filter(own).cloned().collect();
                if found.is_empty() {
                    bail!("there is no rule named \"{name}\"; `lbctl policy list` lists all");
                }
                let rules = list.items.into_iter().filter(|rule| rule.name == *name).collect();
                output.show(&Value::Array(found), || policies(rules))
            }
            Self::Documents => {
                let (value, list) = client.get::<List<PolicyDocument>>("/v1/policy-documents")?;
                output.show(&value, || {
                    table(
                        ["DOCUMENT", "#RULES"],
                        list.items.into_iter().map(|one| [one.name.into(), number(one.rules)]),
                    )
                })
            }
            Self::Fqdn => {
                let (value, list) = client.get::<List<PolicyName>>("/v1/policy-names")?;
                output.show(&value, || names(list.items))
            }
            Self::Import { files, skip_faulty, force } => {
                import(client, output, files, *skip_faulty, *force)
            }
            Self::Delete { document, force } => {
                let path = document_path(document, *force);
                client.change(Method::DELETE, &path, None, Guard::default())?;
                output.done(&Value::Null, &format!("the rules of {document} are removed"))
            }
            Self::Files(cli::Command::Trace(query)) if query.rules.is_empty() => {
                by_daemon(client, output, query)
            }
            Self::Files(verb) => of_files(verb, output),
        }
    }
}

/// What the daemon says by what is in force.
/// An address in a row.
fn names(all: Vec<PolicyName>) -> String {
    let rows = all.into_iter().flat_map(|one| {
        let PolicyName { name, selected, addresses } = one;
        addresses.into_iter().map(move |own| {
            let left = match own.in_use {
                true => "in use".into(),
                false => format!("{}s", own.seconds).into(),
            };
            [name.clone().into(), own.address.to_string().into(), left, selected.join(" ").into()]
        })
    });
    table(["NAME", "ADDRESS", "COUNTS FOR", "SELECTED BY"], rows)
}

fn by_daemon(client: &Client, output: &Output, query: &cli::Trace) -> anyhow::Result<()> {
    let cli::Trace { from, to, dport, .. } = query;
    let part = |text: &str| segment(text);
    let path = format!(
        "/v1/policy-trace?from={}&to={}&dport={}",
        part(&from.to_string()),
        part(&to.to_string()),
        part(&dport.to_string()),
    );
    let (value, trace) = client.get::<Trace>(&path)?;
    output.show(&value, || trace.to_string())?;
    if trace.allowed { Ok(()) } else { bail!("the rules deny it") }
}

/// Answers; a trace that ends in a denial, and faulty rules, are failures.
fn of_files(verb: &cli::Command, output: &Output) -> anyhow::Result<()> {
    let mut text = Vec::new();
    let good = cli::run(verb, &mut text)?;
    output.text(&String::from_utf8_lossy(&text))?;
    match verb {
        _ if good => Ok(()),
        cli::Command::Validate { .. } => bail!("there are faults in the rules"),
        cli::Command::Trace(_) => bail!("the rules deny it"),
    }
}

fn document_path(name: &str, force: bool) -> String {
    let force = if force { "?force=true" } else { "" };
    format!("/v1/policy-documents/{}{force}", segment(name))
}

/// Every file is read before the first one is sent.
fn import(
    client: &Client,
    output: &Output,
    paths: &[PathBuf],
    skip_faulty: bool,
    force: bool,
) -> anyhow::Result<()> {
    let mut documents = Vec::new();
    let mut faults = Vec::new();
    for path in cli::files(paths)? {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match config::policy::import_objects(&path, &text) {
            Ok((_, objects)) => documents.push((name, text, objects)),
            Err(found) if skip_faulty => {
                for fault in found {
                    output.text(&format!("left out: {fault}\n"))?;
                }
            }
            Err(found) => faults.extend(found.iter().map(ToString::to_string)),
        }
    }
    if !faults.is_empty() {
        bail!("nothing is imported:\n{}", faults.join("\n"));
    }
    for (name, text, objects) in documents {
        let path = document_path(&name, force);
        let value = client.replace(&path, text.into_bytes())?;
        let PolicyDocument { name, rules } = serde_json::from_value(value.clone())?;
        let word = if rules == 1 { "rule" } else { "rules" };
        let each = objects.iter().map(|Object { kind, name, rules }| {
            let word = if rules.len() == 1 { "rule" } else { "rules" };
            format!("\n  {kind} {name}: {} {word}", rules.len())
        });
        let each: String = each.collect();
        output.done(&value, &format!("{name}: {rules} {word}, in force{each}"))?;
    }
    Ok(())
}

fn policies(rules: Vec<Policy>) -> String {
    table(
        ["RULE", "MODE", "#ENDPOINTS", "#PACKETS", "#BYTES", "SOURCE"],
        rules.into_iter().map(|rule| {
            let source = rule.origin.unwrap_or_else(|| rule.source.as_str().to_owned());
            [
                rule.name.into(),
                if rule.audit { "audit" } else { "enforce" }.into(),
                number(rule.endpoints),
                number(rule.packets),
                bytes(rule.bytes),
                source.into(),
            ]
        }),
    )
}

impl EndpointVerb {
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        match self {
            Self::List => {
                let (value, list) = client.get::<List<Endpoint>>("/v1/endpoints")?;
                output.show(&value, || endpoints(list.items))
            }
            Self::Get { name } => {
                let path = format!("/v1/endpoints/{}", segment(name));
                let (value, one) = client.get::<Endpoint>(&path)?;
                output.show(&value, || endpoints(vec![one]))
            }
            Self::Set(set) => set.run(client, output),
            Self::Delete { names } => {
                for name in names {
                    let path = format!("/v1/endpoints/{}", segment(name));
                    client.change(Method::DELETE, &path, None, Guard::default())?;
                    output.done(&json!({"name": name}), &format!("{name} is deleted"))?;
                }
                Ok(())
            }
        }
    }
}

fn endpoints(all: Vec<Endpoint>) -> String {
    table(
        ["ENDPOINT", "#IDENTITY", "LABELS", "ADDRESSES", "INTERFACE", "MODE", "ATTACHED"],
        all.into_iter().map(|one| {
            let addresses: Vec<String> = one.addresses.iter().map(ToString::to_string).collect();
            let mode = match (one.audit, one.enforcement) {
                (true, mode) => format!("{mode}, audit"),
                (false, mode) => mode,
            };
            let attached = match one.reason {
                Some(why) => format!("{}: {why}", one.attached),
                None => one.attached,
            };
            [
                one.name.into(),
                one.identity.to_string().into(),
                labels(&one.labels).into(),
                addresses.join(" ").into(),
                one.interface.into(),
                mode.into(),
                attached.into(),
            ]
        }),
    )
}

impl IdentityVerb {
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        let (value, list) = client.get::<List<Identity>>("/v1/identities")?;
        let show = |all: Vec<Identity>| {
            let rows =
                all.into_iter().map(|one| [one.id.to_string().into(), labels(&one.labels).into()]);
            table(["#IDENTITY", "LABELS"], rows)
        };
        match self {
            Self::List => output.show(&value, || show(list.items)),
            Self::Get { id } => {
                let Some(one) = list.items.into_iter().find(|one| one.id == *id) else {
                    bail!("there is no identity {id}; `lbctl identity list` lists all");
                };
                output.show(&serde_json::to_value(&one)?, || show(vec![one.clone()]))
            }
        }
    }
}

fn labels(all: &std::collections::BTreeMap<String, String>) -> String {
    let one = |(key, value): (&String, &String)| match value.as_str() {
        "" => key.clone(),
        value => format!("{key}={value}"),
    };
    all.iter().map(one).collect::<Vec<_>>().join(" ")
}
