//! `lbctl policy validate` and `trace`: answers from files of rules alone, without a daemon.
//!
//! Reads files and writes text; decides nothing itself.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use config::{
    Loader,
    policy::{Enforcement, Labels, Rule, import},
};

use super::{
    Flow,
    review::review,
    state::Wanted,
    trace::{self, RuleName, Side},
};

/// What can be asked about rules.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read rules and say what is wrong with them, or probably not meant.
    Validate {
        /// Files of rules, or directories of such files (.yaml, .yml, .json).
        #[arg(required = true)]
        rules: Vec<PathBuf>,
        /// Configuration whose endpoints the rules are for: says which rules select none.
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
    },
    /// Say whether two sides may talk, which rule decides, and what would change it. Exit code 1: they
    /// may not.
    Trace(Trace),
}

/// What `trace` is about.
#[derive(Debug, Args)]
pub struct Trace {
    /// Files of rules, or directories of such files. Without any the daemon answers, by what is in
    /// force there.
    #[arg(long)]
    pub rules: Vec<PathBuf>,
    /// Who opens the connection: labels (id=app2,env=prod), an address, the name of an endpoint, or
    /// host, remote-node, init, health, unmanaged.
    #[arg(long)]
    pub from: Side,
    /// To whom, as `--from`.
    #[arg(long)]
    pub to: Side,
    /// Destination port and protocol: 80/tcp, 53/udp, 9/sctp; ICMP type: 8/icmp, 128/icmpv6.
    #[arg(long, value_parser = trace::flow)]
    pub dport: Flow,
    /// Whether endpoints without a rule are open; of a daemon, what it has.
    #[arg(long, value_enum, default_value = "default", requires = "rules")]
    enforcement: Mode,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Default,
    Always,
    Never,
}

/// Answers; `false`: the answer is no.
///
/// # Errors
/// When files cannot be read or `out` not be written; for `trace` also when rules are faulty.
pub fn run(command: &Command, out: &mut impl Write) -> Result<bool> {
    match command {
        Command::Validate { rules, config } => validate(rules, config.as_deref(), out),
        Command::Trace(query) => answer(query, out),
    }
}

fn validate(paths: &[PathBuf], config: Option<&Path>, out: &mut impl Write) -> Result<bool> {
    let mut all = Vec::new();
    let mut good = true;
    for path in files(paths)? {
        match read(&path)? {
            Ok(rules) => {
                let word = if rules.len() == 1 { "rule" } else { "rules" };
                writeln!(out, "{}: {} {word}", path.display(), rules.len())?;
                all.extend(rules);
            }
            Err(faults) => {
                good = false;
                for fault in faults {
                    writeln!(out, "{fault}")?;
                }
            }
        }
    }
    let endpoints = config.map(endpoints).transpose()?;
    for finding in review(&all, endpoints.as_deref()) {
        let rule = &all[finding.rule];
        let origin = RuleName::from(rule).origin;
        writeln!(out, "{origin}: rule {}: {}", rule.name, finding.message(&all))?;
    }
    Ok(good)
}

/// Labels of the endpoints of a configuration, and of the node where its firewall is on.
fn endpoints(path: &Path) -> Result<Vec<(bool, Labels)>> {
    let state = Loader::new(path).load().map_err(|faults| said(&faults))?;
    let host = state.host_firewall.iter().map(|_| (true, state.node.labels.clone()));
    let own = state.endpoints.values().map(|endpoint| (false, endpoint.labels.clone()));
    Ok(own.chain(host).collect())
}

fn said(faults: &[config::Fault]) -> anyhow::Error {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    anyhow!("{}", lines.join("\n"))
}

fn answer(query: &Trace, out: &mut impl Write) -> Result<bool> {
    let mut rules = Vec::new();
    for path in files(&query.rules)? {
        rules.extend(read(&path)?.map_err(|faults| said(&faults))?);
    }
    let enforcement = match query.enforcement {
        Mode::Default => Enforcement::Default,
        Mode::Always => Enforcement::Always,
        Mode::Never => Enforcement::Never,
    };
    let facts = Wanted { rules: Arc::new(rules), enforcement, ..Wanted::default() };
    let trace = trace::trace(&facts, &query.from, &query.to, query.dport);
    let trace = trace.map_err(|error| anyhow!(error))?;
    write!(out, "{trace}")?;
    Ok(trace.allowed)
}

/// Whether the rules of this text let two sides talk, as `trace` has it.
#[cfg(test)]
pub(super) fn allows(rules: &str, from: &str, to: &str, dport: &str) -> Result<bool> {
    let read = import(Path::new("rules"), rules);
    let rules = read.map_err(|faults| anyhow!("{faults:?}"))?;
    let side = |text: &str| text.parse::<Side>().map_err(|error| anyhow!(error));
    let flow = trace::flow(dport).map_err(|error| anyhow!(error))?;
    let facts = Wanted { rules: Arc::new(rules), ..Wanted::default() };
    let trace = trace::trace(&facts, &side(from)?, &side(to)?, flow);
    trace.map(|trace| trace.allowed).map_err(|error| anyhow!(error))
}

/// Files as they are named, and those of directories in the order of their names.
pub(crate) fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let entries = fs::read_dir(path)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let mut inside: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
        inside.retain(|path| {
            path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json")
        });
        inside.sort();
        all.extend(inside);
    }
    Ok(all)
}

fn read(path: &Path) -> Result<Result<Vec<Rule>, Vec<config::Fault>>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(import(path, &text))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    fn ask(arguments: &[&str]) -> (bool, String) {
        let cli = Cli::parse_from([&["policy"], arguments].concat());
        let mut out = Vec::new();
        let answer = run(&cli.command, &mut out).expect("an answer");
        (answer, String::from_utf8(out).expect("text"))
    }

    #[test]
    fn trace_names_the_rule_that_decides() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("l3.json");
        fs::write(&path, super::super::tests::PUBLISHED).expect("written");
        let rules = directory.path().to_str().expect("text");
        let query = ["trace", "--rules", rules, "--to", "id=app1", "--dport", "80/tcp", "--from"];

        let (may, text) = ask(&[&query[..], &["id=app2"]].concat());
        let by = format!("ingress of id=app1: allowed by rule l3-rule ({}:1:2)", path.display());
        assert!(may && text.contains(&by), "{text}");
        assert!(text.contains("egress of id=app2: open"), "{text}");

        for other in ["id=app3", "host", "192.0.2.1"] {
            let (may, text) = ask(&[&query[..], &[other]].concat());
            assert!(!may && text.contains("ingress of id=app1: denied: no rule"), "{text}");
            assert!(text.contains("  selected by rule l3-rule"), "{text}");
            assert!(text.contains("would change it: a rule that allows it: {endpointSelector:"));
        }
    }

    #[test]
    fn validate_lists_faults_and_findings() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).expect("written");
            path.display().to_string()
        };
        let shadowed = "\
- {name: a, endpointSelector: {}, ingressDeny: [{fromEntities: [all]}]}
- {name: b, endpointSelector: {}, ingress: [{fromEntities: [host]}]}
- {name: c, endpointSelector: {}, egress: [{toEndpoints: []}]}
- {name: d, endpointSelector: {}, egress: [{toCIDR: [10.0.0.0/8]}]}
- {name: e, endpointSelector: {matchLabels: {id: app9}}, egress: [{toCIDR: [10.1.0.0/16]}]}
- name: f
  endpointSelector:
    matchLabels: {id: app1}
    matchExpressions: [{key: id, operator: NotIn, values: [app1]}]
  ingress: [{}]
";
        let config = write(
            "config.yaml",
            "endpoints: [{name: a, labels: {id: app1}, addresses: [10.0.0.1], interface: v}]",
        );
        let good = write("good.yaml", shadowed);
        let (valid, text) = ask(&["validate", &good, "--config", &config]);
        assert!(valid);
        let wanted = format!(
            "{good}: 6 rules\n\
             {good}:2:3: rule b: an ingress entry never counts: rule a denies all of it\n\
             {good}:3:3: rule c: an egress entry is about nobody\n\
             {good}:5:3: rule e: it selects none of the endpoints\n\
             {good}:5:3: rule e: an egress entry is shadowed: rule d says all of it\n\
             {good}:6:3: rule f: it selects nothing: its conditions contradict each other\n"
        );
        assert_eq!(text, wanted);
        let bad = write("bad.yaml", "- {name: a}");
        let (valid, text) = ask(&["validate", &bad]);
        assert!(!valid && text.starts_with(&format!("{bad}:1:3: `endpointSelector`")), "{text}");
    }
}
