//! `lbctl doctor`: needs no daemon, and asks one that runs.

use std::path::PathBuf;

use clap::Args;
use config::{Loader, model::DesiredState};
use serde_json::json;

use super::{
    client::Client,
    output::{Output, table},
};
use crate::{
    api::model,
    doctor::{self, Check, Verdict, host},
};

/// What stands in the way of a good data path, and what mends it.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The daemon's --config.
    #[arg(long, value_name = "DIR|FILE", default_value = "/etc/lb")]
    config: PathBuf,
    /// The daemon's --bpffs.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/lb")]
    bpffs: PathBuf,
    /// Only what is not as it should be.
    #[arg(short, long)]
    quiet: bool,
}

impl Doctor {
    /// # Errors
    /// A check failed, or the kernel cannot be asked.
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        let (state, mut checks) = match Loader::new(&self.config).load() {
            Ok(state) => {
                let found = self.config.display().to_string();
                (state, vec![Check::ok("configuration", "files", found)])
            }
            Err(faults) => (
                DesiredState::default(),
                faults
                    .iter()
                    .map(|fault| {
                        let remedy = "correct it; `lbctl config check` shows all faults";
                        Check::fail("configuration", "files", fault.to_string(), remedy)
                    })
                    .collect(),
            ),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let facts = runtime.block_on(host::facts(&self.bpffs, &state))?;
        drop(runtime);
        checks.extend(doctor::examine(&facts, &state));
        checks.extend(daemon(client));

        let count = |verdict| checks.iter().filter(|c| c.verdict == verdict).count();
        let (ok, warnings) = (count(Verdict::Ok), count(Verdict::Warn));
        let failures = count(Verdict::Fail);
        checks.retain(|c| !self.quiet || c.verdict != Verdict::Ok);
        let value = json!({"checks": checks, "ok": ok, "warnings": warnings, "failures": failures});
        output.show(&value, || {
            format!("{}\n\n{ok} ok, {warnings} to look at, {failures} failed", page(&checks))
        })?;
        anyhow::ensure!(failures == 0, "{failures} of {} checks failed", ok + warnings + failures);
        Ok(())
    }
}

fn page(checks: &[Check]) -> String {
    table(
        ["SUBJECT", "CHECK", "STATE", "FOUND"],
        checks.iter().map(|c| {
            let found = match &c.remedy {
                Some(remedy) => format!("{}\n-> {remedy}", c.found),
                None => c.found.clone(),
            };
            [c.subject.clone().into(), c.check.into(), c.verdict.as_str().into(), found.into()]
        }),
    )
}

/// What a running daemon says of itself.
fn daemon(client: &Client) -> Vec<Check> {
    let status = match client.get::<model::Status>("/v1/status") {
        Ok((_, status)) => status,
        Err(error) => {
            return vec![Check::warn(
                "daemon",
                "answers",
                format!("{error:#}"),
                "start it (`systemctl start lb-daemon`), or name its address with --api",
            )];
        }
    };
    let mut out = vec![if status.ready {
        Check::ok("daemon", "ready", format!("{}, lb-daemon {}", status.node, status.version))
    } else {
        Check::fail(
            "daemon",
            "ready",
            status.not_ready.join("; "),
            "`lbctl status` and the daemon's log say more",
        )
    }];
    for fault in &status.config.faults {
        let remedy = "correct it: the last good state is in force";
        out.push(Check::fail("daemon", "configuration", fault.clone(), remedy));
    }
    for interface in &status.interfaces {
        if let Some(reason) = &interface.reason {
            let found = format!("{}: not attached", interface.name);
            out.push(Check::fail("daemon", "xdp", found, reason.clone()));
        }
    }
    if status.services.backends.down > 0 {
        out.push(Check::warn(
            "daemon",
            "health",
            format!("{} backends are down", status.services.backends.down),
            "`lbctl backend list` says which and why",
        ));
    }
    for map in &status.maps {
        let used = map.entries.unwrap_or(0) as f64 / map.capacity.max(1) as f64;
        if used > 0.9 {
            let found = format!("{} is {:.0} % used", map.name, used * 100.0);
            let remedy = "the daemon makes it larger when it is full; look for what fills it";
            out.push(Check::warn("daemon", "tables", found, remedy));
        }
    }
    out
}
