//! `make run`: the lab with `config/lab.yaml`, shown to a person.
//!
//! Stays up until Ctrl-C; with `--once` it ends by itself, with status 0 only if every request was
//! answered and the blocked source was not.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail, ensure};
use lb_tests::{
    daemon::{Daemon, binary},
    eventually, http,
    lab::{BLOCKED_V4, BLOCKED_V6, IPIP_V4, IPIP_V6, L2_V4, L2_V6, Lab, WEBS, at},
    web,
};
use nix::sys::signal::{SigSet, Signal};

/// Requests to each address.
const REQUESTS: usize = 60;

fn main() -> ExitCode {
    let result = once().and_then(|once| {
        // Before any thread, so that all of them leave Ctrl-C to the one wait for it.
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().context("cannot block signals")?;
        show(once, &signals)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn once() -> anyhow::Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Ok(false),
        ["--once"] => Ok(true),
        _ => bail!("usage: lab [--once]"),
    }
}

fn show(once: bool, signals: &SigSet) -> anyhow::Result<()> {
    println!(
        "Building the lab: namespaces client, lb, web-1..3 on one switch, nginx in each web-N."
    );
    let lab = Lab::start()?;
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab.yaml").canonicalize()?;
    let mut decap = lab.decap()?;
    let mut lb = lab.daemon_with("lb", &config)?;
    decap.iter_mut().chain([&mut lb]).for_each(Daemon::silence);
    let loaded = lb.loaded()?;
    ensure!(loaded.mode == 1, "XDP is not attached natively on lb's eth0");
    println!(
        "lb-daemon is ready: XDP program {} is attached natively to lb's eth0.",
        loaded.program
    );
    ways_known(&lb)?;

    let answered = requests(&lab);
    let blocked = answered.and_then(|()| blocked(&lab, &lb));
    if let Err(error) = blocked {
        println!("\nThe daemon's log:\n{}", lb.log_text());
        return Err(error);
    }
    println!("\nEvery request was answered, and no blocked source was.");
    if once {
        return Ok(());
    }

    let lbctl = format!("{} --api {}", binary("lbctl")?.display(), lb.api());
    let client = lab.host("client")?.name();
    println!("\nLook further, in another terminal (as root):");
    println!("  {lbctl} status");
    println!("  {lbctl} service list");
    println!("  {lbctl} prefilter list");
    println!("  nsenter --net=/run/netns/{client} curl http://{IPIP_V4}/ 'http://[{IPIP_V6}]/'");
    println!("  nsenter --net=/run/netns/{} bpftool net", lab.host("lb")?.name());
    println!("\nThe lab stays up until Ctrl-C.");
    signals.wait().context("cannot wait for Ctrl-C")?;
    println!("\nRemoving the lab.");
    drop((lb, decap));
    Ok(())
}

/// A fresh lab knows nobody's MAC; waits until the daemon has found the way to every backend.
fn ways_known(lb: &Daemon) -> anyhow::Result<()> {
    eventually(Duration::from_secs(10), || lb.ways_known())
}

/// Prints who answered.
fn requests(lab: &Lab) -> anyhow::Result<()> {
    let client = lab.host("client")?;
    println!("\n{REQUESTS} requests to each address, each on a new connection:\n");
    println!("  {:<34}{:>8}{:>8}{:>8}{:>9}", "", WEBS[0], WEBS[1], WEBS[2], "failed");
    let mut failures = Vec::new();
    let mut silent = Vec::new();
    for (how, vip) in
        [("ipip, IPv4", IPIP_V4), ("ipip, IPv6", IPIP_V6), ("l2, IPv4", L2_V4), ("l2, IPv6", L2_V6)]
    {
        let tally = http::requests(client, at(vip, web::PORT), REQUESTS)?;
        let counts = WEBS.map(|web| tally.answers.get(web).copied().unwrap_or(0));
        let [one, two, three] = counts;
        let failed = tally.failures.len();
        println!("  {how:<12}{vip:<22}{one:>8}{two:>8}{three:>8}{failed:>9}");
        failures.extend(tally.failures);
        silent.extend(
            WEBS.into_iter()
                .zip(counts)
                .filter(|(_, count)| *count == 0)
                .map(|(web, _)| format!("{web} answered nothing at {vip}")),
        );
    }
    ensure!(failures.is_empty(), "not every request was answered:\n{}", failures.join("\n"));
    ensure!(silent.is_empty(), "{}", silent.join("\n"));
    Ok(())
}

/// Shows that nobody answers a blocked source, and who counted its packets.
fn blocked(lab: &Lab, lb: &Daemon) -> anyhow::Result<()> {
    println!("\nThe same requests from addresses on the list \"blocked\":\n");
    for (source, vip) in [(BLOCKED_V4, IPIP_V4), (BLOCKED_V6, IPIP_V6)] {
        let before = lb.list_packets("blocked")?;
        let answer = lab.host("client")?.enter(|| {
            let from = source.parse().expect("an address that is written here");
            http::get_from(from, at(vip, web::PORT), "/", Duration::from_millis(300))
        })?;
        ensure!(answer.is_err(), "{source} is blocked and was answered");
        let dropped = lb.list_packets("blocked")? - before;
        ensure!(dropped > 0, "packets from {source} are not counted as dropped");
        println!("  {source:<20} no answer; {dropped} packets dropped in XDP");
    }
    println!("\n{}", lb.lbctl(&["prefilter", "list"])?.trim_end());
    Ok(())
}
