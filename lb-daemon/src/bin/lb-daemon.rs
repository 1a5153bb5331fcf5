//! Starts the daemon.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use lb_daemon::{
    api::ApiAddr,
    app::{self, Options},
    policy::kernel::Method,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// An XDP load balancer and packet filter.
///
/// Reads the configuration, compiles it into the tables of its XDP programs and keeps them up to date.
/// When it stops, the data path goes on with the last state; `lbctl cleanup` takes it away.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Directory with *.yaml files, or one file.
    #[arg(long, value_name = "DIR|FILE", default_value = "/etc/lb")]
    config: PathBuf,
    /// Where the API listens: unix:/PATH or a loopback IP:PORT; may be given more than once.
    #[arg(long, value_name = "ADDR", default_values = ["unix:/run/lb/api.sock", "127.0.0.1:9870"])]
    api: Vec<ApiAddr>,
    /// Where what is set through the API is kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lb")]
    state: PathBuf,
    /// Where programs, maps and links are pinned; a directory on a BPF file system.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/lb")]
    bpffs: PathBuf,
    /// How programs of identity policy are attached: by TCX where the kernel has it, else by clsact.
    #[arg(long, value_name = "METHOD", default_value = "auto")]
    tc: Tc,
    /// Checks the configuration and ends: status 0 if it is good, else 1.
    #[arg(long)]
    check: bool,
    /// How the log is written to standard error; RUST_LOG sets what.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log: Log,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Log {
    /// A JSON object a line.
    Json,
    /// For people.
    Text,
}

/// How programs of identity policy are attached.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Tc {
    /// By TCX where the kernel has it, else by clsact.
    Auto,
    /// By TCX or not at all.
    Tcx,
    /// As filters of a clsact queueing discipline.
    Clsact,
}

impl From<Tc> for Method {
    fn from(tc: Tc) -> Self {
        match tc {
            Tc::Auto => Self::Auto,
            Tc::Tcx => Self::Tcx,
            Tc::Clsact => Self::Clsact,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.check {
        return match app::check(&arguments.config) {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(faults) => {
                eprintln!("{faults:#}");
                ExitCode::FAILURE
            }
        };
    }
    start_log(arguments.log);
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(format: Log) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        Log::Json => registry.with(layer.json()).init(),
        Log::Text => registry
            .with(layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())))
            .init(),
    }
}

#[tokio::main]
async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { config, api, state, bpffs, tc, check: _, log: _ } = arguments;
    let shutdown = CancellationToken::new();
    let (ask, reload) = mpsc::channel(1);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let token = shutdown.clone();
    // Ends with the runtime: nothing waits for it.
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                // One that waits already is enough.
                _ = hangup.recv() => drop(ask.try_send(())),
            }
        }
        token.cancel();
    });
    app::run(Options { config, api, state, bpffs, tc: tc.into() }, reload, shutdown).await
}
