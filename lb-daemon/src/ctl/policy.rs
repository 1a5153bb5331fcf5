//! `lbctl policy`, `endpoint`, `identity`: identity policy. `trace` with files and `validate` need no
//! daemon.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use hyper::Method;
use serde_json::Value;

use super::{
    client::{Client, Guard, segment},
    output::{Output, bytes, number, table},
};
use crate::{
    api::{
        model::List,
        policy::{Endpoint, Identity, Policy, PolicyDocument},
    },
    policy::cli,
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
    /// Put the rules of files in force: JSON or YAML, as Cilium takes them.
    Import {
        /// Files, or directories of such files (.yaml, .yml, .json). Each is a document with its name.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Delete a document with its rules.
    Delete {
        /// Its name, as of the file.
        document: String,
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
            Self::Import { files } => import(client, output, files),
            Self::Delete { document } => {
                let path = format!("/v1/policy-documents/{}", segment(document));
                client.change(Method::DELETE, &path, None, Guard::default())?;
                output.done(&Value::Null, &format!("the rules of {document} are removed"))
            }
            Self::Files(verb) => of_files(verb, output),
        }
    }
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

/// Every file is read before the first one is sent.
fn import(client: &Client, output: &Output, paths: &[PathBuf]) -> anyhow::Result<()> {
    let mut documents = Vec::new();
    let mut faults = Vec::new();
    for path in cli::files(paths)? {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if let Err(found) = config::policy::import(&path, &text) {
            faults.extend(found.iter().map(ToString::to_string));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        documents.push((name, text));
    }
    if !faults.is_empty() {
        bail!("nothing is imported:\n{}", faults.join("\n"));
    }
    for (name, text) in documents {
        let path = format!("/v1/policy-documents/{}", segment(&name));
        let value = client.replace(&path, text.into_bytes())?;
        let PolicyDocument { name, rules } = serde_json::from_value(value.clone())?;
        let word = if rules == 1 { "rule" } else { "rules" };
        output.done(&value, &format!("{name}: {rules} {word}, in force"))?;
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
