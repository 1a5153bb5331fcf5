//! What a packet costs, as a multiple of the least that encapsulation can cost (the encap floor).
//!
//! Rounds are interleaved: each has one run of every row, and of the empty program and the floor for
//! every set of flows, so that what the machine does meanwhile falls on all alike. A row's net cost is
//! its own less that of the empty program in the same frame; the ratio is to the floor's net cost in
//! the same round. Verdict, length and bytes of the last pass are checked, and that all passes were
//! counted for the reason that the row is about.

mod cases;
pub mod flood;
mod tables;

use abi::reason::Verdict;
use anyhow::{Context as _, ensure};
use aya::programs::ProgramFd;
use serde::Serialize;

use self::{
    cases::{Case, Set},
    tables::Tables,
};
use crate::{
    frame::{Frame, Run},
    machine::Machine,
    packet,
    report::{Report, Row, against},
    stats::Summary,
};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Packets of each run.
    pub packets: u32,
    /// Rounds.
    pub rounds: usize,
    /// Services of the large tables.
    pub services: u32,
    /// Most flows.
    pub flows: usize,
}

impl Effort {
    /// For figures that are kept.
    pub const FULL: Self =
        Self { packets: 1_000_000, rounds: 15, services: 100_000, flows: 524_288 };
    /// For a look.
    pub const QUICK: Self = Self { packets: 200_000, rounds: 7, services: 20_000, flows: 524_288 };
    /// For a test that it works.
    pub const TINY: Self = Self { packets: 2_000, rounds: 1, services: 50, flows: 1024 };
}

/// Figures of one row.
#[derive(Debug, Serialize)]
pub struct Cost {
    packet: &'static str,
    tables: &'static str,
    flows: usize,
    bytes: usize,
    /// Name of the reason that every packet was counted for.
    reason: Option<&'static str>,
    /// Nanoseconds of CPU time, the frame's own subtracted.
    net_ns: Summary,
    /// Multiple of the floor.
    ratio: Summary,
    bar: Option<f64>,
    /// Multiple of the row with one service, and its bar.
    of_one: Option<(Summary, f64)>,
}

impl Row for Cost {
    const HEADS: &'static [&'static str] = &[
        "packet",
        "tables",
        "flows",
        "bytes",
        "net ns",
        "x floor (p10-p90)",
        "bar",
        "x one service",
    ];

    fn cells(&self) -> Vec<String> {
        let of_one =
            self.of_one.map(|(ratio, bar)| format!("{ratio} {}", against(Some(bar), ratio.median)));
        vec![
            self.packet.to_owned(),
            self.tables.to_owned(),
            self.flows.to_string(),
            self.bytes.to_string(),
            format!("{:.1}", self.net_ns.median),
            self.ratio.to_string(),
            against(self.bar, self.ratio.median),
            of_one.unwrap_or_else(|| "-".to_owned()),
        ]
    }
}

/// Measures every row, or those whose packet and tables have these words in them.
///
/// # Errors
/// A program is refused, or does not do with a packet what it should; no row has the words.
pub fn measure(effort: Effort, words: Option<&str>) -> anyhow::Result<Report<Cost>> {
    let machine = Machine::this();
    pin()?;
    let mut tables = Tables::build(effort.services);
    let (mut sets, mut cases) = cases::all(effort, &mut tables)?;
    if let Some(words) = words {
        cases.retain(|case| case.name().contains(words));
        ensure!(!cases.is_empty(), "no row has `{words}` in its packet and tables");
    }
    let mut rounds = Vec::new();
    // The first one warms caches and makes entries; it is checked, and not counted.
    for round in 0..=effort.rounds {
        let figures = self::round(round as u16, effort.packets, &mut sets, &cases, &mut tables)?;
        if round > 0 {
            rounds.push(figures);
        }
    }
    Ok(Report {
        title: format!(
            "Packets: CPU time above an empty program; {} packets a run, {} rounds interleaved; one \
             service has 100 backends, {} services have 2 each",
            effort.packets, effort.rounds, effort.services
        ),
        machine,
        rows: summarize(&sets, &cases, &rounds),
    })
}

/// Net nanoseconds of one round.
struct Figures {
    floor: f64,
    cases: Vec<f64>,
}

fn round(
    round: u16,
    packets: u32,
    sets: &mut [Set],
    cases: &[Case],
    tables: &mut Tables,
) -> anyhow::Result<Figures> {
    let mut figures = Figures { floor: 0.0, cases: vec![0.0; cases.len()] };
    for (index, Set { frame, .. }) in sets.iter_mut().enumerate() {
        let empty = frame.own("empty")?;
        let empty = frame.run(&empty, packets)?.nanos;
        if index == 0 {
            let floor = frame.own("floor")?;
            let run = frame.run(&floor, packets)?;
            ensure!(run.verdict == TX, "floor: verdict {}", run.verdict);
            packet::expect_floor(&run.out, &run.sent).context("floor")?;
            figures.floor = run.nanos - empty;
        }
        for (case, net) in cases.iter().zip(&mut figures.cases).filter(|(c, _)| c.set == index) {
            if case.renew {
                frame.renew(round + 1);
            }
            let run = one(case, frame, packets, tables).with_context(|| case.name())?;
            *net = run.nanos - empty;
        }
    }
    Ok(figures)
}

const PASS: u32 = 2;
const TX: u32 = 3;

/// One run, checked.
fn one(case: &Case, frame: &mut Frame, packets: u32, tables: &mut Tables) -> anyhow::Result<Run> {
    let rig = tables.rig(case.tables);
    let program: ProgramFd = rig.program().fd()?.try_clone()?;
    let before = rig.reasons();
    // Flows that are known: one packet of each first, which notes in its entry, if it has one, that it goes on. That is
    // done once in some seconds, and a run takes a small part of one.
    let first = u32::try_from(frame.flows())?.min(packets);
    let first = if case.renew { 0 } else { first };
    if first > 0 {
        frame.run(&program, first)?;
    }
    let run = frame.run(&program, packets)?;
    for (reason, now) in rig.reasons() {
        let moved = now - before.get(&reason).copied().unwrap_or_default();
        let wanted = if reason == case.reason { u64::from(first) + u64::from(packets) } else { 0 };
        ensure!(moved == wanted, "{moved} packets, not {wanted}, were {}", reason.name());
    }
    match case.reason.verdict() {
        Verdict::Forward => {
            ensure!(run.verdict == TX, "verdict {}", run.verdict);
            case.expect_forwarded(&run)?;
        }
        _ => {
            ensure!(run.verdict == PASS, "verdict {}", run.verdict);
            ensure!(run.out == run.sent, "the packet was changed");
        }
    }
    Ok(run)
}

fn summarize(sets: &[Set], cases: &[Case], rounds: &[Figures]) -> Vec<Cost> {
    let of = |value: &dyn Fn(&Figures) -> f64| {
        Summary::of(&rounds.iter().map(value).collect::<Vec<f64>>())
    };
    let floor = Cost {
        packet: "encap floor",
        tables: "none",
        flows: sets[0].frame.flows(),
        bytes: sets[0].frame.bytes(),
        reason: None,
        net_ns: of(&|figures| figures.floor),
        ratio: Summary { median: 1.0, p10: 1.0, p90: 1.0 },
        bar: None,
        of_one: None,
    };
    let row = |(index, case): (usize, &Case)| {
        let frame = &sets[case.set].frame;
        let one = case.of_one.and_then(|(tables, bar)| {
            let same = |other: &&Case| other.packet == case.packet && other.flows_as(case);
            let one = cases.iter().filter(|other| other.tables == tables).find(same)?;
            Some((cases.iter().position(|other| std::ptr::eq(other, one))?, bar))
        });
        Cost {
            packet: case.packet,
            tables: case.tables.name(),
            flows: frame.flows(),
            bytes: frame.bytes(),
            reason: Some(case.reason.name()),
            net_ns: of(&|figures| figures.cases[index]),
            ratio: of(&|figures| figures.cases[index] / figures.floor),
            bar: case.bar,
            of_one: one.map(|(one, bar)| (of(&|f| f.cases[index] / f.cases[one]), bar)),
        }
    };
    std::iter::once(floor).chain(cases.iter().enumerate().map(row)).collect()
}

/// Keeps this thread on the CPU that it runs on: another one has cold caches.
pub(crate) fn pin() -> anyhow::Result<()> {
    use nix::{sched, unistd::Pid};
    let mut set = sched::CpuSet::new();
    set.set(sched::sched_getcpu()?)?;
    Ok(sched::sched_setaffinity(Pid::from_raw(0), &set)?)
}
