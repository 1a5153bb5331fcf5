//! What blocklists cost a packet, however many prefixes they have, beside a program with the kernel's
//! own trie.
//!
//! Sources are random, and a million of them, so that nothing of the tables is where the last packet left
//! it. Net cost is that above a program of ours without the prefilter: what asking for the list adds. For
//! the trie it is that above the same program with a trie that holds nothing, for one load from a table that
//! above a load from a table of one word.

pub mod load;
pub(crate) mod sets;

use std::collections::BTreeMap;

use abi::{limits::feature, reason::Reason};
use anyhow::{Context as _, ensure};
use aya::programs::ProgramFd;
use config::{
    PrefixSet,
    model::{Prefilter, PrefixList, Source},
};
use lb_daemon::{
    datapath::Capacity,
    plan::prefixes::{Needs, Prefixes},
};
use lb_tests::rig::{Rig, capacity};
use serde::Serialize;

use self::sets::Random;
use crate::{
    frame::{self, Frame},
    machine::Machine,
    packet::{Flow, Shape},
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
    /// Sources; a power of two.
    pub sources: usize,
    /// Prefixes of the largest IPv4 list; others have a tenth, a thousandth and one.
    pub most: usize,
    /// Prefixes of the largest trie.
    pub trie: usize,
}

impl Effort {
    /// For figures that are kept.
    pub const FULL: Self = Self {
        packets: 1_000_000,
        rounds: 15,
        sources: 1 << 20,
        most: 10_000_000,
        trie: 1_000_000,
    };
    /// For a look.
    pub const QUICK: Self =
        Self { packets: 1_000_000, rounds: 5, sources: 1 << 20, most: 10_000_000, trie: 1_000_000 };
    /// For a test that it works.
    pub const TINY: Self =
        Self { packets: 2_000, rounds: 1, sources: 1024, most: 10_000, trie: 1000 };
}

/// Figures of one row.
#[derive(Debug, Serialize)]
pub struct Cost {
    packet: String,
    program: &'static str,
    prefixes: usize,
    /// Nanoseconds of CPU time above the same program without a list.
    net_ns: Summary,
    bar: Option<f64>,
    /// Multiple of the row with one prefix, and its bar.
    of_one: Option<(Summary, Option<f64>)>,
}

impl Row for Cost {
    const HEADS: &'static [&'static str] =
        &["packet", "program", "prefixes", "net ns (p10-p90)", "bar", "x one prefix"];

    fn cells(&self) -> Vec<String> {
        let of_one = self.of_one.map_or_else(
            || "-".to_owned(),
            |(ratio, bar)| format!("{ratio} {}", against(bar, ratio.median)),
        );
        vec![
            self.packet.clone(),
            self.program.to_owned(),
            self.prefixes.to_string(),
            self.net_ns.to_string(),
            against(self.bar, self.net_ns.median),
            of_one,
        ]
    }
}

/// A program in front of the sources of a set.
struct Case {
    packet: &'static str,
    program: &'static str,
    prefixes: usize,
    set: usize,
    target: Target,
    bar: Option<f64>,
    /// Which case's time is subtracted.
    less: usize,
    /// Which case has one prefix, and the bar of the ratio.
    of_one: Option<(usize, Option<f64>)>,
}

enum Target {
    /// Ours, and what every packet is counted for.
    Rig(Box<Rig>, Reason),
    /// The trie, or one load, and the verdict.
    Trie(ProgramFd, u32),
}

const PASS: u32 = 2;
const DROP: u32 = 1;
const OURS: &str = "flat tables";
const TRIE: &str = "kernel LPM trie";

/// Measures every row.
///
/// # Errors
/// A program is refused, or does not do with a packet what it should.
pub fn measure(effort: Effort) -> anyhow::Result<Report<Cost>> {
    let machine = Machine::this();
    super::packets::pin()?;
    let (mut frames, mut cases) = all(effort)?;
    let mut rounds: Vec<Vec<f64>> = Vec::new();
    // The first one warms up and checks.
    for round in 0..=effort.rounds {
        let mut nanos = Vec::new();
        for case in &mut cases {
            let run = one(case, &mut frames[case.set], effort.packets);
            nanos.push(run.with_context(|| format!("{}, {}", case.packet, case.program))?);
        }
        if round > 0 {
            rounds.push(nanos);
        }
    }
    Ok(Report {
        title: format!(
            "Blocklists: CPU time above the same program without a list; {} random sources, {} \
             packets a run, {} rounds interleaved; 60-byte frames (IPv6: 74)",
            effort.sources, effort.packets, effort.rounds
        ),
        machine,
        rows: summarize(&cases, &rounds),
    })
}

fn one(case: &mut Case, frame: &mut Frame, packets: u32) -> anyhow::Result<f64> {
    let (program, verdict, rig) = match &mut case.target {
        Target::Trie(program, verdict) => (program.try_clone()?, *verdict, None),
        Target::Rig(rig, reason) => {
            let verdict = if *reason == Reason::Blocked { DROP } else { PASS };
            (rig.program().fd()?.try_clone()?, verdict, Some((rig, *reason)))
        }
    };
    let before: BTreeMap<_, _> = rig.as_ref().map(|(rig, _)| rig.reasons()).unwrap_or_default();
    let run = frame.run(&program, packets)?;
    ensure!(run.verdict == verdict, "verdict {}", run.verdict);
    ensure!(run.out == run.sent, "the packet was changed");
    if let Some((rig, reason)) = rig {
        let moved = rig.reasons()[&reason] - before.get(&reason).copied().unwrap_or_default();
        ensure!(moved == u64::from(packets), "{moved} packets were {}", reason.name());
    }
    Ok(run.nanos)
}

fn summarize(cases: &[Case], rounds: &[Vec<f64>]) -> Vec<Cost> {
    let of = |value: &dyn Fn(&Vec<f64>) -> f64| {
        Summary::of(&rounds.iter().map(value).collect::<Vec<f64>>())
    };
    let measured = cases.iter().enumerate().filter(|(_, case)| case.less != NOTHING);
    measured
        .map(|(index, case)| {
            let less = case.less;
            Cost {
                packet: case.packet.to_owned(),
                program: case.program,
                prefixes: case.prefixes,
                net_ns: of(&|r| r[index] - r[less]),
                bar: case.bar,
                of_one: case.of_one.map(|(one, bar)| {
                    (of(&|r| (r[index] - r[less]) / (r[one] - r[cases[one].less])), bar)
                }),
            }
        })
        .collect()
}

/// Every row, and those that they are compared with.
fn all(effort: Effort) -> anyhow::Result<(Vec<Frame>, Vec<Case>)> {
    let mut random = Random(9);
    let mut rows = Rows { frames: Vec::new(), cases: Vec::new() };
    let largest = random.nets4(effort.most);
    let lists = [1, effort.most / 1000, effort.most / 10, effort.most]
        .map(|count| PrefixSet::new(largest[..count].to_vec(), Vec::new()));

    let free = random.sources4(effort.sources, |source| lists[3].longest4(source, 32).is_none());
    let (set, less) = rows.set(free)?;
    for list in &lists {
        let last = list.len() == effort.most;
        let target = ours(list, Reason::NotOurs)?;
        let case = row(set, "IPv4, pass", list, less, target);
        let of_one = (list.len() > 1).then_some((less + 1, last.then_some(1.5)));
        rows.cases.push(Case { bar: Some(20.0), of_one, ..case });
    }
    rows.tries(&lists, effort.trie)?;
    rows.loads()?;

    // Sources that are all on the list of a million.
    let (set, less) = rows.set(random.within4(effort.sources, lists[2].v4()))?;
    let target = ours(&lists[2], Reason::Blocked)?;
    let case = row(set, "IPv4, drop, counted", &lists[2], less, target);
    rows.cases.push(Case { bar: Some(30.0), ..case });

    let nets6 = random.nets6(effort.most / 10);
    let lists6 = [1, nets6.len()].map(|count| PrefixSet::new(Vec::new(), nets6[..count].to_vec()));
    let free = random.sources6(effort.sources, |source| lists6[1].longest(source, 128).is_none());
    let (set, less) = rows.set(free)?;
    for (list, bar) in lists6.iter().zip([30.0, 45.0]) {
        let of_one = (list.len() > 1).then_some((less + 1, None));
        let case = row(set, "IPv6, pass, mixed lengths", list, less, ours(list, Reason::NotOurs)?);
        rows.cases.push(Case { bar: Some(bar), of_one, ..case });
    }
    Ok((rows.frames, rows.cases))
}

struct Rows {
    frames: Vec<Frame>,
    cases: Vec<Case>,
}

impl Rows {
    /// Flows for the rows that follow, and the row that they are compared with.
    fn set(&mut self, flows: Vec<Flow>) -> anyhow::Result<(usize, usize)> {
        self.frames.push(Frame::load(flows, Shape::Segment)?);
        let set = self.frames.len() - 1;
        self.cases.push(plain(set));
        Ok((set, self.cases.len() - 1))
    }

    /// The kernel's trie with each of these lists that has at most so many prefixes.
    fn tries(&mut self, lists: &[PrefixSet], most: usize) -> anyhow::Result<()> {
        let (set, less) = (self.frames.len() - 1, self.cases.len());
        let none = PrefixSet::default();
        let empty = Target::Trie(frame::trie(&none)?, PASS);
        self.cases.push(row(set, "pass", &none, NOTHING, empty));
        for list in lists.iter().filter(|list| list.len() <= most) {
            let target = Target::Trie(frame::trie(list)?, PASS);
            let of_one = (list.len() > 1).then_some((less + 1, None));
            self.cases.push(Case { of_one, ..row(set, "IPv4, pass", list, less, target) });
        }
        Ok(())
    }
}

impl Rows {
    /// What one load at random costs, by the size of the table: no set of prefixes that has to be as large costs less.
    fn loads(&mut self) -> anyhow::Result<()> {
        const MB: u32 = (1 << 20) / 8;
        let (set, less) = (self.frames.len() - 1, self.cases.len());
        let none = PrefixSet::default();
        let one = Target::Trie(frame::one_load(1)?, PASS);
        self.cases.push(row(set, "pass", &none, NOTHING, one));
        for (words, program) in [
            (2 * MB, "one load from 2 MB"),
            (16 * MB, "one load from 16 MB"),
            (64 * MB, "one load from 64 MB"),
        ] {
            let target = Target::Trie(frame::one_load(words)?, PASS);
            self.cases.push(Case { program, ..row(set, "IPv4, pass", &none, less, target) });
        }
        Ok(())
    }
}

fn row(set: usize, packet: &'static str, list: &PrefixSet, less: usize, target: Target) -> Case {
    let program = if matches!(target, Target::Trie(..)) { TRIE } else { OURS };
    Case { packet, program, prefixes: list.len(), set, target, bar: None, less, of_one: None }
}

/// The program without a prefilter: what the others are measured against.
fn plain(set: usize) -> Case {
    let target = Target::Rig(Box::new(Rig::sized(small(), 0)), Reason::NotOurs);
    row(set, "pass", &PrefixSet::default(), NOTHING, target)
}

/// In the place of a case whose time is subtracted: it is one itself.
const NOTHING: usize = usize::MAX;

fn small() -> Capacity {
    Capacity { lines: 0, bitmaps: 0, blocks: 0, ..capacity() }
}

fn ours(list: &PrefixSet, reason: Reason) -> anyhow::Result<Target> {
    let list = PrefixList::new("l", Source::Api, list.clone());
    let wanted = Prefilter { lists: vec![std::sync::Arc::new(list)], ..Prefilter::default() };
    let mut prefixes = Prefixes::default();
    let Needs { lines, bitmaps, blocks, leading6, nets6, .. } = prefixes.needs(&wanted)?;
    let capacity = Capacity {
        lines: lines as u32 + 1024,
        bitmaps: bitmaps as u32 + 4096,
        blocks: blocks as u32 + 1024,
        filter6: (leading6 as u32 * 2).max(1024).next_power_of_two(),
        buckets6: (nets6.div_ceil(2) as u32).max(1024).next_power_of_two(),
        ..capacity()
    };
    let mut rig = Rig::sized(capacity, feature::PREFILTER);
    let ops = prefixes.plan(&wanted, &rig.bpf)?;
    rig.apply(&ops);
    Ok(Target::Rig(Box::new(rig), reason))
}
