//! `lbctl`: reads and changes what a daemon does, through its API.
//!
//! ```text
//! arguments (clap) -> a verb -> client (HTTP) -> API types -> table, JSON or YAML
//! ```
//! Each verb is a file. Exit status 0: done; 1: refused or failed; 2: wrong usage (clap's). `config diff` has those
//! of diff(1).

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::api::ApiAddr;

mod backend;
mod client;
mod configuration;
mod conntrack;
mod doctor;
mod events;
mod generate;
mod node;
mod output;
mod policy;
mod prefilter;
mod service;
mod status;

use client::Client;
use output::{Format, Output};

/// Looks at and changes what an lb-daemon does.
#[derive(Debug, Parser)]
#[command(name = "lbctl", version, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    shared: Shared,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct Shared {
    /// The daemon's API: unix:/PATH or IP:PORT.
    #[arg(
        long,
        global = true,
        value_name = "ADDR",
        env = "LB_API",
        default_value = "unix:/run/lb/api.sock"
    )]
    api: ApiAddr,
    /// How results are printed.
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The state of the whole node.
    Status(status::Status),
    /// Services: the addresses that are balanced.
    #[command(subcommand)]
    Service(service::Verb),
    /// Backends: who stands behind a service.
    #[command(subcommand)]
    Backend(backend::Verb),
    /// Blocklists.
    #[command(subcommand)]
    Prefilter(prefilter::Verb),
    /// Packets that are dropped, as they are sampled.
    Monitor(events::Monitor),
    /// Who was dropped most in the last minute.
    Top(events::Watch),
    /// Identity policy: who may talk to whom.
    #[command(subcommand)]
    Policy(policy::Verb),
    /// Workloads of this machine.
    #[command(subcommand)]
    Endpoint(policy::EndpointVerb),
    /// Numbers that stand for labels.
    #[command(subcommand)]
    Identity(policy::IdentityVerb),
    /// Connections that have entries: translated ones, and those that the ring would send elsewhere.
    #[command(subcommand)]
    Conntrack(conntrack::Verb),
    /// Interfaces and what is attached to them.
    #[command(subcommand)]
    Interface(node::InterfaceVerb),
    /// Tables shared with the kernel.
    #[command(subcommand)]
    Map(node::MapVerb),
    /// Why packets went the way they went, counted.
    #[command(subcommand)]
    Reason(node::ReasonVerb),
    /// Prometheus metrics, as they are scraped.
    Metrics,
    /// What stands in the way of a good data path, and what mends it.
    Doctor(doctor::Doctor),
    /// The configuration's files.
    #[command(subcommand)]
    Config(configuration::Verb),
    /// Removes every program, link, map and pin of a daemon that does not run any more.
    Cleanup {
        /// The daemon's --bpffs.
        #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/lb")]
        bpffs: PathBuf,
    },
    /// Versions of this client and of the daemon.
    Version,
    /// Prints a shell's completion script.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Writes manual pages.
    Man {
        /// Directory to write them to.
        directory: PathBuf,
    },
}

/// Runs the client with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let Arguments { shared, verb } = Arguments::parse();
    let client = Client::new(shared.api);
    let output = Output::new(shared.output);
    let failure = match &verb {
        Verb::Config(verb) => verb.failure(),
        _ => 1,
    };
    match run(verb, &client, &output) {
        Ok(status) => status,
        Err(error) => {
            // What was printed may be half of a pipe that has gone; the status says it all then.
            let _ = writeln!(std::io::stderr(), "lbctl: {error:#}");
            ExitCode::from(failure)
        }
    }
}

fn run(verb: Verb, client: &Client, output: &Output) -> anyhow::Result<ExitCode> {
    let done = match verb {
        Verb::Status(verb) => verb.run(client, output),
        Verb::Service(verb) => verb.run(client, output),
        Verb::Backend(verb) => verb.run(client, output),
        Verb::Prefilter(verb) => verb.run(client, output),
        Verb::Monitor(verb) => verb.run(client, output),
        Verb::Top(verb) => verb.run(client, output),
        Verb::Policy(verb) => verb.run(client, output),
        Verb::Endpoint(verb) => verb.run(client, output),
        Verb::Identity(verb) => verb.run(client, output),
        Verb::Conntrack(verb) => verb.run(client, output),
        Verb::Interface(verb) => verb.run(client, output),
        Verb::Map(verb) => verb.run(client, output),
        Verb::Reason(verb) => verb.run(client, output),
        Verb::Metrics => output.text(&client.text("/metrics")?),
        Verb::Doctor(verb) => verb.run(client, output),
        Verb::Config(verb) => return verb.run(client, output),
        Verb::Cleanup { bpffs } => node::cleanup(&bpffs, output),
        Verb::Version => generate::version(client, output),
        Verb::Completion { shell } => generate::completion(Arguments::command(), shell, output),
        Verb::Man { directory } => generate::man(Arguments::command(), &directory, output),
    };
    done.map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_status_2() {
        for wrong in [&["lbctl"][..], &["lbctl", "nope"], &["lbctl", "status", "-o", "xml"]] {
            let error = Arguments::try_parse_from(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong:?}");
        }
    }
}
