//! How long lists take from their text to the kernel's tables, how long one ban beside them takes, and what memory
//! all of it needs. What the owner of a daemon does, in one thread, without files and the API in front.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use abi::{limits::feature, reason::Reason};
use anyhow::{Context as _, anyhow, ensure};
use config::{
    PrefixSet,
    model::{Prefilter, PrefixList, Source},
};
use lb_daemon::{
    datapath::{Capacity, Datapath as _, bpf::grace},
    plan::prefixes::{Needs, Prefixes},
};
use lb_tests::rig::{self, Rig};
use serde::Serialize;

use super::{OURS, TRIE};
use crate::{
    frame::{self, Frame},
    machine::Machine,
    packet::{Flow, PORT, Shape},
    report::{Report, Row, against},
    stats::Summary,
};

/// Bans whose times are measured.
const BANS: u32 = 200;
const MB: f64 = 1e6;
/// Sources that every list has, from the first address on; as many in the next /24 are on none.
const SENDERS: u32 = 256;
const COMMON: u32 = 0xc612_0000;
/// Packets of a run of the traffic.
const RUN: u32 = 1 << 13;

/// Figures of one row.
#[derive(Debug, Serialize)]
pub struct Load {
    what: &'static str,
    program: &'static str,
    prefixes: usize,
    unit: &'static str,
    figure: Summary,
    bar: Option<f64>,
}

impl Row for Load {
    const HEADS: &'static [&'static str] =
        &["what", "program", "prefixes", "median (p10-p90)", "unit", "bar"];

    fn cells(&self) -> Vec<String> {
        let Self { what, program, prefixes, unit, figure, bar } = self;
        let verdict = against(*bar, figure.median);
        let [what, program, unit] = [what, program, unit].map(|text| (*text).to_owned());
        vec![what, program, prefixes.to_string(), figure.to_string(), unit, verdict]
    }
}

/// What a number of prefixes may take: milliseconds to load, to replace, megabytes.
#[derive(Clone, Copy)]
struct Bars {
    load: f64,
    replace: Option<f64>,
    memory: f64,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Prefixes of the larger list; the other one has a tenth.
    pub most: usize,
    /// Rounds.
    pub rounds: u64,
}

impl Effort {
    /// For figures that are kept.
    pub const FULL: Self = Self { most: 10_000_000, rounds: 7 };
    /// For a look.
    pub const QUICK: Self = Self { most: 10_000_000, rounds: 2 };
    /// For a test that it works.
    pub const TINY: Self = Self { most: 10_000, rounds: 1 };

    /// The bars of a list, if it is one of those that they are about.
    fn bars(self, count: usize) -> Option<Bars> {
        match count {
            1_000_000 => Some(Bars { load: 400.0, replace: Some(500.0), memory: 150.0 }),
            10_000_000 => Some(Bars { load: 4000.0, replace: None, memory: 600.0 }),
            _ => None,
        }
    }
}

/// Measures both lists.
///
/// # Errors
/// The kernel refuses the tables, a list does not fit them, or a packet is not treated as both versions of a
/// list say.
pub fn measure(effort: Effort) -> anyhow::Result<Report<Load>> {
    let machine = Machine::this();
    let mut rows = Vec::new();
    for count in [effort.most / 10, effort.most] {
        rows.extend(size(count, effort.rounds, effort.bars(count))?);
    }
    rows.push(trie(effort.most / 10)?);
    Ok(Report {
        title: format!(
            "Lists of random IPv4 addresses, from a file's text to in force, {} rounds; replaced while packets \
             run, half of them from {SENDERS} sources that both versions block; memory: all tables of the kernel, \
             and what this process holds",
            effort.rounds
        ),
        machine,
        rows,
    })
}

fn size(count: usize, rounds: u64, bars: Option<Bars>) -> anyhow::Result<Vec<Load>> {
    let before = anonymous()?;
    let mut tables = Tables {
        rig: Rig::sized(capacity(&random(count, 1))?, feature::PREFILTER),
        prefixes: Prefixes::default(),
        file: tempfile::NamedTempFile::new()?,
    };
    let mut wanted = Prefilter::default();
    let (mut loads, mut replaced) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        tables.put(&Prefilter::default())?;
        tables.settle();
        drop(wanted);
        std::fs::write(tables.file.path(), random(count, 2 + round * 2))?;
        let (first, time) = tables.load()?;
        loads.push(time);
        std::fs::write(tables.file.path(), random(count, 3 + round * 2))?;
        let (next, time) = tables.replace()?;
        drop(first);
        replaced.push(time);
        wanted = next;
        tables.settle();
    }
    let held = (anonymous()? - before).max(0.0) + tables.rig.bpf.bytes() as f64 / MB;
    let bans = tables.bans(wanted)?;
    let row = |what, unit, figures: &[f64], bar| Load {
        what,
        program: OURS,
        prefixes: count,
        unit,
        figure: Summary::of(figures),
        bar,
    };
    Ok(vec![
        row("load", "ms", &loads, bars.map(|bars| bars.load)),
        row("replace all, under traffic", "ms", &replaced, bars.and_then(|bars| bars.replace)),
        row("one ban beside them", "ms", &bans, bars.map(|_| 1.0)),
        row("memory", "MB", &[held], bars.map(|bars| bars.memory)),
    ])
}

/// Loads the kernel's trie from the same text, once.
fn trie(count: usize) -> anyhow::Result<Load> {
    let text = random(count, 2);
    let start = Instant::now();
    let program = frame::trie(&read(text.as_bytes())?)?;
    let time = start.elapsed().as_secs_f64() * 1e3;
    drop(program);
    let figure = Summary::of(&[time]);
    Ok(Load { what: "load", program: TRIE, prefixes: count, unit: "ms", figure, bar: None })
}

/// Tables in the kernel, the index over them, and the file that lists come from.
struct Tables {
    rig: Rig,
    prefixes: Prefixes,
    file: tempfile::NamedTempFile,
}

impl Tables {
    fn put(&mut self, wanted: &Prefilter) -> anyhow::Result<()> {
        let ops = self.prefixes.plan(wanted, &self.rig.bpf)?;
        Ok(self.rig.bpf.apply(&ops)?)
    }

    /// Waits until what was given back may be used.
    fn settle(&mut self) {
        grace();
        self.prefixes.release();
    }

    /// Puts the file's list in force; milliseconds that this took.
    fn load(&mut self) -> anyhow::Result<(Prefilter, f64)> {
        let start = Instant::now();
        let wanted = of(read(&std::fs::read(self.file.path())?)?);
        self.put(&wanted)?;
        Ok((wanted, start.elapsed().as_secs_f64() * 1e3))
    }

    /// The same, while packets run; each must be treated as both versions say.
    fn replace(&mut self) -> anyhow::Result<(Prefilter, f64)> {
        let flow = |n: u32| {
            let src = Ipv4Addr::from(COMMON + n % 2 * 256 + n / 2).into();
            Flow { src, dst: Ipv4Addr::new(203, 0, 113, 10).into(), port: 40_000, to: PORT }
        };
        let mut frame = Frame::load((0..SENDERS * 2).map(flow).collect(), Shape::Segment)?;
        let program = self.rig.program().fd()?.try_clone()?;
        let before = self.rig.reasons();
        let stop = AtomicBool::new(false);
        let (done, sent) = std::thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    frame.run(&program, RUN)?;
                    sent += u64::from(RUN);
                }
                anyhow::Ok(sent)
            });
            let done = self.load();
            stop.store(true, Ordering::Relaxed);
            (done, traffic.join())
        });
        let sent = sent.map_err(|_| anyhow!("the traffic ended"))??;
        let after = self.rig.reasons();
        let moved = |reason| after[&reason] - before.get(&reason).copied().unwrap_or(0);
        let (blocked, passed) = (moved(Reason::Blocked), moved(Reason::NotOurs));
        ensure!(
            sent > 0 && blocked == sent / 2 && passed == sent / 2,
            "{blocked} and {passed} of {sent}"
        );
        done
    }

    /// Milliseconds that each of some bans took.
    fn bans(&mut self, mut wanted: Prefilter) -> anyhow::Result<Vec<f64>> {
        wanted.lists.push(Arc::new(PrefixList { name: "bans".to_owned(), ..empty() }));
        self.put(&wanted)?;
        let mut times = Vec::new();
        for n in 0..BANS {
            let address = std::net::IpAddr::from(Ipv4Addr::from(0x0101_0101 + n * 0x10_0301));
            let start = Instant::now();
            Arc::make_mut(&mut wanted.lists[1]).prefixes.insert(address.into());
            self.put(&wanted)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    }
}

/// Tables that have room for such a list, with some to spare.
fn capacity(text: &str) -> anyhow::Result<Capacity> {
    let Needs { lines, bitmaps, .. } = Prefixes::default().needs(&of(read(text.as_bytes())?))?;
    let bitmaps = bitmaps as u32 + bitmaps as u32 / 8 + 4096;
    let lines = lines as u32 + lines as u32 / 8 + 4096;
    Ok(Capacity { lines, bitmaps, blocks: 1024, ..rig::capacity() })
}

fn empty() -> PrefixList {
    PrefixList::new("l", Source::Api, PrefixSet::default())
}

fn of(prefixes: PrefixSet) -> Prefilter {
    let list = PrefixList { prefixes, ..empty() };
    Prefilter { lists: vec![Arc::new(list)], ..Prefilter::default() }
}

/// Random addresses, one per line; the same for the same seed. And some that every list has.
fn random(count: usize, seed: u64) -> String {
    let mut state = seed;
    let mut text = String::with_capacity(count * 16);
    for n in 0..SENDERS {
        let _ = writeln!(text, "{}", Ipv4Addr::from(COMMON + n));
    }
    for _ in SENDERS as usize..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // None of the senders that no list has.
        let free = |address: u32| address & !0xff == COMMON + 256;
        let address = Some((state >> 32) as u32).filter(|&a| !free(a)).unwrap_or(COMMON);
        let _ = writeln!(text, "{}", Ipv4Addr::from(address));
    }
    text
}

fn read(text: &[u8]) -> anyhow::Result<PrefixSet> {
    let parsed = config::parse_list(Path::new("random"), text);
    parsed.map_err(|faults| anyhow!("{} faults", faults.len()))
}

/// Megabytes of this process that no file and no table is behind.
fn anonymous() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
    let kib = line.trim().trim_end_matches(" kB").parse::<f64>()?;
    Ok(kib * 1024.0 / MB)
}
