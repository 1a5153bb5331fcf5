//! `lbctl status`.

use std::fmt::Write as _;

use clap::Args;

use super::{
    client::Client,
    node,
    output::{self, Output, bytes, count},
};
use crate::api::model::{self, List, Map, ReasonCount};

/// The state of the whole node.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Also every table and every reason.
    #[arg(short, long)]
    verbose: bool,
}

impl Status {
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        let (value, status) = client.get::<model::Status>("/v1/status")?;
        let reasons = if self.verbose {
            client.get::<List<ReasonCount>>("/v1/reasons")?.1.items
        } else {
            status.drops.clone()
        };
        output.show(&value, || self.page(&status, reasons))
    }

    fn page(&self, status: &model::Status, reasons: Vec<ReasonCount>) -> String {
        let mut page = String::new();
        let mut line = |title: &str, text: String| {
            let _ = writeln!(page, "{title:<12}{text}");
        };
        let ready = if status.ready { "ready" } else { "NOT READY" };
        let up = output::duration(status.uptime_seconds);
        let model::Status { node, version, .. } = status;
        line("node", format!("{node}, lb-daemon {version}, up {up}, {ready}"));
        for reason in &status.not_ready {
            line("", reason.clone());
        }
        for warning in &status.warnings {
            line("warning", warning.clone());
        }
        line("config", config(&status.config));
        for fault in &status.config.faults {
            line("  fault", fault.clone());
        }
        line("services", services(&status.services));
        line("backends", backends(&status.services.backends));
        let traffic = status.services.traffic;
        line(
            "balanced",
            format!(
                "{}, {}, {}",
                count(traffic.packets, "packet"),
                bytes(traffic.bytes),
                count(traffic.new_connections, "new connection")
            ),
        );
        let lists = &status.prefilter;
        line(
            "prefilter",
            format!(
                "{}, {}, {}",
                count(lists.lists.into(), "list"),
                count(lists.prefixes_v4 + lists.prefixes_v6, "prefix"),
                count(lists.hits, "hit")
            ),
        );
        if let Some(model::Unconfirmed { what, until }) = &lists.unconfirmed {
            line("  waits", format!("{what}: taken back at {until} unless confirmed"));
        }
        for failing in &lists.failing {
            line("  fault", failing.clone());
        }
        if let Some(fullest) = fullest(&status.maps)
            && !self.verbose
        {
            line("tables", fullest);
        }
        let _ = write!(page, "\n{}\n", node::interfaces(&status.interfaces));
        if !reasons.is_empty() {
            let _ = write!(page, "\n{}\n", node::reasons(reasons));
        }
        if self.verbose {
            let _ = write!(page, "\n{}\n", node::maps(&status.maps));
        }
        page
    }
}

fn config(config: &model::ConfigStatus) -> String {
    let mut text = format!("{}, generation {}", config.path, config.generation);
    if let Some(at) = &config.last_success {
        let _ = write!(text, ", in force since {at}");
    }
    if let Some(seconds) = config.last_apply_seconds {
        let _ = write!(text, ", the last change took {:.1} ms", seconds * 1e3);
    }
    text
}

fn services(services: &model::ServicesStatus) -> String {
    match services.without_backend {
        0 => format!("{}", services.total),
        n => format!("{}, {n} of them WITHOUT A BACKEND", services.total),
    }
}

fn backends(counts: &model::BackendCounts) -> String {
    let model::BackendCounts { total, serving, down, draining, maintenance, unresolved } = counts;
    let mut text = format!("{total}, {serving} serving");
    for (count, what) in [
        (down, "down"),
        (draining, "draining"),
        (maintenance, "in maintenance"),
        (unresolved, "without a next hop"),
    ] {
        if *count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    text
}

/// The table that is nearest to full, and the memory of all.
fn fullest(maps: &[Map]) -> Option<String> {
    let used = |map: &Map| map.entries.map(|entries| entries as f64 / map.capacity.max(1) as f64);
    let most = maps
        .iter()
        .filter(|map| used(map).is_some())
        .max_by(|a, b| used(a).unwrap_or_default().total_cmp(&used(b).unwrap_or_default()))?;
    let total = maps.iter().map(|map| map.bytes).sum();
    Some(format!(
        "{} in all; the fullest is {}, {:.0} % used",
        bytes(total),
        most.name,
        used(most)? * 100.0
    ))
}
