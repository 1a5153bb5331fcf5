//! `lbctl policy validate` and `trace`: answers from files of rules alone, without a daemon.
//!
//! Reads files and writes text; decides nothing itself.

use std::{
    fs,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use config::{
    model::Source,
    policy::{Direction, Enforcement, Entity, Labels, Rule, import},
};

use super::{Flow, Verdict, explain, explain::Other, review::review};

/// What can be asked about rules.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read rules and say what is wrong with them.
    Validate {
        /// Files of rules, or directories of such files (.yaml, .yml, .json).
        #[arg(required = true)]
        rules: Vec<PathBuf>,
    },
    /// Say whether two sides may talk, and which rule decides. Exit code 1: they may not.
    Trace(Trace),
}

/// What `trace` is about.
#[derive(Debug, Args)]
pub struct Trace {
    /// Files of rules, or directories of such files.
    #[arg(long, required = true)]
    rules: Vec<PathBuf>,
    /// Who opens the connection: labels (id=app2,env=prod), an address that is nobody's, or host,
    /// remote-node, init, health, unmanaged.
    #[arg(long, value_parser = side)]
    from: Side,
    /// To whom, as `--from`.
    #[arg(long, value_parser = side)]
    to: Side,
    /// Destination port and protocol: 80/tcp, 53/udp, 9/sctp; ICMP type: 8/icmp, 128/icmpv6.
    #[arg(long, value_parser = flow)]
    dport: Flow,
    /// Whether endpoints without a rule are open.
    #[arg(long, value_enum, default_value = "default")]
    enforcement: Mode,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Default,
    Always,
    Never,
}

/// One side of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Side {
    Endpoint(Labels),
    Reserved(Entity),
    World(IpAddr),
}

/// Answers; `false`: the answer is no.
///
/// # Errors
/// When files cannot be read or `out` not be written; for `trace` also when rules are faulty.
pub fn run(command: &Command, out: &mut impl Write) -> Result<bool> {
    match command {
        Command::Validate { rules } => validate(rules, out),
        Command::Trace(query) => trace(query, out),
    }
}

fn validate(paths: &[PathBuf], out: &mut impl Write) -> Result<bool> {
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
    for finding in review(&all) {
        let rule = &all[finding.rule];
        writeln!(out, "{}: rule {}: {}", place(rule), rule.name, finding.message(&all))?;
    }
    Ok(good)
}

fn trace(query: &Trace, out: &mut impl Write) -> Result<bool> {
    let mut rules = Vec::new();
    for path in files(&query.rules)? {
        rules.extend(read(&path)?.map_err(|faults| {
            let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
            anyhow!("{}", lines.join("\n"))
        })?);
    }
    both_ways(query, &rules, out)
}

fn both_ways(query: &Trace, rules: &[Rule], out: &mut impl Write) -> Result<bool> {
    if !matches!((&query.from, &query.to), (Side::Endpoint(_), _) | (_, Side::Endpoint(_))) {
        bail!("neither side is an endpoint, so no rule is about them; give labels with = for one");
    }
    let egress = (Direction::Egress, &query.from, &query.to);
    let ingress = (Direction::Ingress, &query.to, &query.from);
    let mut passes = true;
    for (direction, subject, other) in [egress, ingress] {
        if let Side::Endpoint(labels) = subject {
            passes &= one_way(query, rules, direction, labels, other, out)?;
        }
    }
    writeln!(out, "{}", if passes { "allowed" } else { "denied" })?;
    Ok(passes)
}

/// Whether the rules of this text let two sides talk, as `trace` has it.
#[cfg(test)]
pub(super) fn allows(rules: &str, from: &str, to: &str, dport: &str) -> Result<bool> {
    let read = import(Path::new("rules"), rules);
    let rules = read.map_err(|faults| anyhow!("{faults:?}"))?;
    let query = Trace {
        rules: Vec::new(),
        from: side(from).map_err(|error| anyhow!(error))?,
        to: side(to).map_err(|error| anyhow!(error))?,
        dport: flow(dport).map_err(|error| anyhow!(error))?,
        enforcement: Mode::Default,
    };
    both_ways(&query, &rules, &mut io::sink())
}

fn one_way(
    query: &Trace,
    rules: &[Rule],
    direction: Direction,
    labels: &Labels,
    other: &Side,
    out: &mut impl Write,
) -> io::Result<bool> {
    let enforcement = match query.enforcement {
        Mode::Default => Enforcement::Default,
        Mode::Always => Enforcement::Always,
        Mode::Never => Enforcement::Never,
    };
    let other = match other {
        Side::Endpoint(labels) => Other::Endpoint(labels),
        Side::Reserved(entity) => Other::Reserved(*entity),
        Side::World(address) => Other::World(*address),
    };
    let why = explain(labels, rules, enforcement, direction, other, query.dport);
    let way = match direction {
        Direction::Ingress => "ingress of",
        Direction::Egress => "egress of",
    };
    let shown: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let rule = |index: u32| {
        let rule = &rules[index as usize];
        format!("rule {} ({})", rule.name, place(rule))
    };
    let decision = match why.verdict {
        Verdict::Open => "open: no rule denies it, and nothing closes this direction".to_owned(),
        Verdict::Allowed(by) => format!("allowed by {}", rule(by)),
        Verdict::Denied(by) => format!("denied by {}", rule(by)),
        Verdict::DeniedByDefault => "denied: no rule allows it".to_owned(),
        Verdict::WouldDeny(by) => {
            format!("passes, would be denied by {}, which is in audit", rule(by))
        }
        Verdict::WouldDenyByDefault => {
            "passes, would be denied: no rule allows it, and rules in audit close this direction"
                .to_owned()
        }
    };
    writeln!(out, "{way} {}: {decision}", shown.join(","))?;
    for (what, which) in [
        ("selected by", &why.selecting),
        ("would be allowed by", &why.allowing),
        ("would be denied by", &why.denying),
        ("would be denied in audit by", &why.auditing),
    ] {
        for index in which.iter().filter(|index| why.verdict.rule() != Some(**index)) {
            writeln!(out, "  {what} {}", rule(*index))?;
        }
    }
    Ok(why.verdict.passes())
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

fn place(rule: &Rule) -> String {
    match &rule.source {
        Source::File { path, line, column } => format!("{}:{line}:{column}", path.display()),
        Source::Api => "api".to_owned(),
        Source::Kubernetes(object) => object.clone(),
    }
}

fn side(text: &str) -> Result<Side, String> {
    if let Ok(address) = text.parse() {
        return Ok(Side::World(address));
    }
    if text.contains('=') {
        let pairs = text.split(',').map(|pair| {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair} has no ="))?;
            if key.is_empty() {
                return Err(format!("{pair} has no key"));
            }
            Ok((key.to_owned(), value.to_owned()))
        });
        return pairs.collect::<Result<Labels, String>>().map(Side::Endpoint);
    }
    Ok(Side::Reserved(match text.strip_prefix("reserved:").unwrap_or(text) {
        "host" => Entity::Host,
        "remote-node" => Entity::RemoteNode,
        "init" => Entity::Init,
        "health" => Entity::Health,
        "unmanaged" => Entity::Unmanaged,
        _ => {
            let allowed = "KEY=VALUE,..., an address, host, remote-node, init, health, unmanaged";
            return Err(format!("allowed: {allowed}"));
        }
    }))
}

fn flow(text: &str) -> Result<Flow, String> {
    let allowed = "allowed: NUMBER/PROTOCOL with tcp, udp, sctp, icmp or icmpv6, such as 80/tcp";
    let (port, protocol) = text.split_once('/').ok_or(allowed)?;
    let port: u16 = port.parse().map_err(|_| allowed)?;
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" if port < 256 => 1,
        "icmpv6" if port < 256 => 58,
        _ => return Err(allowed.to_owned()),
    };
    Ok(Flow { protocol, port })
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
";
        let good = write("good.yaml", shadowed);
        let (valid, text) = ask(&["validate", &good]);
        assert!(valid);
        let wanted = format!(
            "{good}: 3 rules\n\
             {good}:2:3: rule b: an ingress entry never counts: rule a denies all of it\n\
             {good}:3:3: rule c: an egress entry is about nobody\n"
        );
        assert_eq!(text, wanted);
        let bad = write("bad.yaml", "- {name: a}");
        let (valid, text) = ask(&["validate", &bad]);
        assert!(!valid && text.starts_with(&format!("{bad}:1:3: `endpointSelector`")), "{text}");
    }
}
