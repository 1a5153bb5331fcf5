//! A large configuration in a running daemon: how soon a change of one backend is in force, and how
//! much memory it takes.
//!
//! The daemon runs as it is shipped, in a namespace of the lab, behind a gateway through which all
//! backends are reached. Time runs from just before the file is written until the tables' generation
//! word has moved, which is read through a mapping of its own, as a program would read it.

mod config;
mod tables;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lb_tests::{daemon::Daemon, eventually, lab::Lab};
use serde::Serialize;

use self::{
    config::{Config, Layout},
    tables::{Memory, Tables},
};
use crate::{
    machine::Machine,
    report::{Report, Row, against},
    stats::Summary,
};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Services; each has ten backends.
    pub services: u32,
    /// Changes.
    pub changes: usize,
}

impl Effort {
    /// For figures that are kept.
    pub const FULL: Self = Self { services: 10_000, changes: 31 };
    /// For a look.
    pub const QUICK: Self = Self { services: 10_000, changes: 9 };
    /// For a test that it works.
    pub const TINY: Self = Self { services: 20, changes: 2 };
}

/// Figures of one layout of the configuration.
#[derive(Debug, Serialize)]
pub struct Scale {
    services: u32,
    backends: u32,
    files: u32,
    file_bytes: u64,
    /// From the start of the process to readiness.
    start_ms: f64,
    /// From the write of the file to the store of the generation word.
    in_force_ms: Summary,
    /// Of that, since the daemon heard of the change, as its status says.
    own_ms: Summary,
    /// CPU time of the daemon between the two: what the first would be on a machine that has nothing
    /// else to do, but for the 5 ms for which a file must stay as it is.
    cpu_ms: Summary,
    /// From the write of the file until the new backend takes packets.
    takes_packets_ms: Summary,
    /// Words of the ring arena that a change stored to, all of one ring.
    ring_words: Summary,
    memory: Memory,
}

impl Row for Scale {
    const HEADS: &'static [&'static str] = &[
        "services x backends",
        "files x bytes",
        "start s",
        "in force ms",
        "bar",
        "since noticed ms",
        "CPU ms",
        "new backend up ms",
        "slots stored",
        "process MB",
        "tables MB",
        "bar",
    ];

    fn cells(&self) -> Vec<String> {
        let mb = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
        let total = self.memory.process + self.memory.tables;
        vec![
            format!("{} x {}", self.services, self.backends),
            format!("{} x {}", self.files, self.file_bytes),
            format!("{:.1}", self.start_ms / 1e3),
            self.in_force_ms.to_string(),
            against(Some(20.0), self.in_force_ms.median),
            self.own_ms.to_string(),
            self.cpu_ms.to_string(),
            self.takes_packets_ms.to_string(),
            self.ring_words.to_string(),
            mb(self.memory.process),
            mb(self.memory.tables),
            against(Some(300.0), (total as f64 / 1e6).round()),
        ]
    }
}

/// Measures.
///
/// # Errors
/// The lab or the daemon does not start, or a change does not come into force as it should.
pub fn measure(effort: Effort) -> anyhow::Result<Report<Scale>> {
    let mut rows = Vec::new();
    for per_file in [10, effort.services] {
        rows.push(layout(effort, per_file)?);
    }
    Ok(Report {
        title: format!(
            "A large configuration: one backend of one service replaced, {} changes",
            effort.changes
        ),
        machine: Machine::this(),
        rows,
    })
}

fn layout(effort: Effort, per_file: u32) -> anyhow::Result<Scale> {
    let lab = Lab::start()?;
    config::add_gateway(lab.host("lb")?)?;
    let mut config = Config::create(Layout { services: effort.services, per_file })?;
    let began = Instant::now();
    let daemon = lab.daemon_with("lb", config.path())?;
    let start_ms = began.elapsed().as_secs_f64() * 1e3;
    eventually(Duration::from_secs(60), || daemon.ways_known())?;
    let mut tables = Tables::open(daemon.bpffs())?;
    let memory = tables::memory_of(&daemon)?;

    let mut changes = Vec::new();
    for number in 0..effort.changes {
        // The daemon's own afterwork, such as publishing, is over.
        thread::sleep(Duration::from_millis(300));
        let service = (number as u32 * 7919) % effort.services;
        changes.push(change(&daemon, &mut config, &mut tables, service)?);
    }
    let of =
        |value: fn(&Change) -> f64| Summary::of(&changes.iter().map(value).collect::<Vec<_>>());
    Ok(Scale {
        services: effort.services,
        backends: config::BACKENDS,
        files: effort.services.div_ceil(per_file),
        file_bytes: config.file_bytes()?,
        start_ms,
        in_force_ms: of(|c| c.in_force.as_secs_f64() * 1e3),
        own_ms: of(|c| c.own_ms),
        cpu_ms: of(|c| c.cpu.as_secs_f64() * 1e3),
        takes_packets_ms: of(|c| c.takes_packets.as_secs_f64() * 1e3),
        ring_words: of(|c| c.ring_words as f64),
        memory,
    })
}

struct Change {
    in_force: Duration,
    own_ms: f64,
    cpu: Duration,
    takes_packets: Duration,
    ring_words: usize,
}

fn change(
    daemon: &Daemon,
    config: &mut Config,
    tables: &mut Tables,
    service: u32,
) -> anyhow::Result<Change> {
    let edit = config.replace_backend(service);
    let mut seen = tables.generation();
    tables.note_rings();
    let id = daemon.id().context("the daemon does not run")?;
    let (began, cpu_before) = (Instant::now(), cpu_time(id)?);
    edit.write()?;
    let (in_force, cpu, row) = loop {
        wait("the change is not in force", || tables.generation() > seen)?;
        let passed = (began.elapsed(), cpu_time(id)? - cpu_before);
        seen = tables.generation();
        // An earlier notice may have led to a look at files that had not changed yet.
        if let Some(row) = tables.row_of(edit.address) {
            break (passed.0, passed.1, row);
        }
    };
    wait("the new backend stays down", || tables.is_up(row))?;
    let takes_packets = began.elapsed();
    let status = daemon.status()?;
    let own = status["config"]["last_apply_seconds"].as_f64();
    let moved = tables.moved();
    let (Some(first), Some(last)) = (moved.first(), moved.last()) else {
        anyhow::bail!("no slot has moved");
    };
    ensure!(last - first <= tables::RING as usize, "slots {first} to {last}: of other rings too");
    Ok(Change {
        in_force,
        cpu,
        own_ms: own.with_context(|| format!("no duration in {status}"))? * 1e3,
        takes_packets,
        ring_words: moved.len(),
    })
}

fn wait(what: &'static str, mut done: impl FnMut() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        ensure!(Instant::now() < deadline, "{what}");
        // The daemon needs the CPU.
        thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// CPU time of all threads of a process.
fn cpu_time(id: u32) -> anyhow::Result<Duration> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{id}/task"))? {
        // A thread may end at any time.
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        total += text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}
