//! `lbctl doctor`: finds nothing where nothing is wrong, with a daemon and without, and names faults that are
//! made on purpose.

use std::process::Command;

use anyhow::Context as _;
use lb_tests::{
    daemon::binary,
    edge::{Edge, IPIP},
    pass::Pass,
};
use serde_json::Value;

/// Whether it found nothing that does not work, and its report.
fn doctor(edge: &Edge) -> anyhow::Result<(bool, Value)> {
    let mut command = Command::new(binary("lbctl")?);
    command.args(["--api", &edge.lb.api(), "-o", "json", "doctor", "--config"]);
    command.arg(edge.lb.config()).arg("--bpffs").arg(edge.lb.bpffs());
    edge.lab.host("lb")?.put(&mut command);
    let output = command.output()?;
    let report = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((output.status.success(), report))
}

/// The verdict on a property, and what was said.
fn check(report: &Value, subject: &str, check: &str) -> (String, String) {
    let all = report["checks"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|c| c["subject"] == subject && c["check"] == check);
    let found = found.unwrap_or_else(|| panic!("no {check} of {subject} in {report:#}"));
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("verdict"), format!("{} -> {}", text("found"), text("remedy")))
}

#[track_caller]
fn expect(report: &Value, subject: &str, name: &str, verdict: &str, words: &[&str]) {
    let (found, text) = check(report, subject, name);
    assert_eq!(found, verdict, "{subject}, {name}: {text}");
    for word in words {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
}

#[test]
fn faults_are_found_with_and_without_a_daemon() -> anyhow::Result<()> {
    let mut edge = Edge::start(IPIP)?;
    let (good, report) = doctor(&edge)?;
    assert!(good, "{report:#}");
    expect(&report, "interface eth0", "xdp", "ok", &["attached, native"]);
    expect(&report, "service ipip-v4", "backends", "ok", &["3, each"]);
    expect(&report, "daemon", "ready", "ok", &[]);

    // Before there is a daemon.
    edge.lb.stop()?;
    let bpffs = edge.lb.bpffs().to_path_buf();
    edge.lb.clean_up()?;
    let (good, report) = doctor(&edge)?;
    assert!(good, "{report:#}");
    expect(&report, "interface eth0", "xdp", "ok", &["will attach natively", "several buffers"]);
    expect(&report, "daemon", "answers", "warn", &["--api"]);

    // Somebody else's program, and a backend that has gone.
    std::fs::create_dir_all(&bpffs)?;
    let host = std::sync::Arc::clone(edge.lab.host("lb")?);
    Pass::load()?.attach(&host, "eth0", &bpffs)?;
    edge.lab.fabric().ip("link set to-web-2 down")?;
    host.ip("neigh flush all")?;
    let (good, report) = doctor(&edge)?;
    assert!(!good, "{report:#}");
    expect(&report, "interface eth0", "xdp", "fail", &["another program", "xdp off"]);
    expect(&report, "service ipip-v4", "backends", "warn", &["1 of 3", "web-2", "ip neigh"]);

    host.ip("link set eth0 down")?;
    let (good, report) = doctor(&edge)?;
    assert!(!good, "{report:#}");
    expect(&report, "interface eth0", "state", "fail", &["ip link set dev eth0 up"]);
    expect(&report, "service ipip-v4", "backends", "fail", &["3 of 3"]);
    edge.lb.silence();
    Ok(())
}
