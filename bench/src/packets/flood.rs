//! What a flood of SYNs, each of a flow that was never seen, costs the packets of established flows between them.
//!
//! A thousand SYNs, a thousand segments of established flows, and so on; only the latter are measured. In
//! the same round the same again with as many passes through the empty program in place of the SYNs: its
//! frame writes packets as well, so what differs is what the program leaves in caches, and in tables.

use abi::reason::Reason;
use anyhow::ensure;
use aya::programs::ProgramFd;
use serde::Serialize;

use super::{
    Effort, TX,
    cases::Random,
    pin,
    tables::{Kind, Tables, VIP4},
};
use crate::{
    frame::Frame,
    machine::Machine,
    packet::Shape,
    report::{Report, Row, against},
    stats::Summary,
};

/// Packets of each kind before the other kind's turn.
const TURN: u32 = 1024;
/// Established flows.
const FLOWS: usize = 4096;
/// How many times as much established flows may cost beside the flood.
const BAR: f64 = 1.1;

/// Figures of one row.
#[derive(Debug, Serialize)]
pub struct Beside {
    tables: &'static str,
    flows: usize,
    /// Packets of established flows in a round, and as many SYNs.
    packets: u32,
    /// Nanoseconds of CPU time without the flood, the frame's own subtracted.
    alone_ns: Summary,
    /// And beside it.
    beside_ns: Summary,
    /// Of the same round.
    ratio: Summary,
    bar: f64,
}

impl Row for Beside {
    const HEADS: &'static [&'static str] =
        &["tables", "flows", "packets", "alone, net ns", "beside SYNs", "x alone (p10-p90)", "bar"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.tables.to_owned(),
            self.flows.to_string(),
            self.packets.to_string(),
            format!("{:.1}", self.alone_ns.median),
            format!("{:.1}", self.beside_ns.median),
            self.ratio.to_string(),
            against(Some(self.bar), self.ratio.median),
        ]
    }
}

/// Measures a service that keeps nothing of settled flows, and one that has an entry for each.
///
/// # Errors
/// A program is refused, or does not do with a packet what it should.
pub fn measure(effort: Effort) -> anyhow::Result<Report<Beside>> {
    let machine = Machine::this();
    pin()?;
    let mut tables = Tables::build(1);
    let mut random = Random(2);
    let vip = VIP4.parse()?;
    // Of each turn a part of its own: no SYN is of a flow that another one of the round has begun.
    let turns = (effort.packets / TURN).max(1);
    let mut known = Frame::load(random.flows4(FLOWS, &[vip]), Shape::Segment)?;
    let mut floods = Vec::new();
    for _ in 0..turns.min(64) {
        floods.push(Frame::load(random.flows4(TURN as usize, &[vip]), Shape::Opening)?);
    }
    let mut rows = Vec::new();
    for kind in [Kind::One, Kind::Tracked] {
        let (mut alone, mut beside, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=effort.rounds {
            let mut one = |flooded| {
                let salt = (round as u16) << 4;
                self::round(kind, &mut tables, &mut known, &mut floods, turns, salt, flooded)
            };
            // By turns, so that neither is always the first.
            let (a, b) = if round % 2 == 0 {
                let a = one(false)?;
                (a, one(true)?)
            } else {
                let b = one(true)?;
                (one(false)?, b)
            };
            // The first one makes entries.
            if round > 0 {
                alone.push(a);
                beside.push(b);
                ratio.push(b / a);
            }
        }
        rows.push(Beside {
            tables: kind.name(),
            flows: FLOWS,
            packets: turns * TURN,
            alone_ns: Summary::of(&alone),
            beside_ns: Summary::of(&beside),
            ratio: Summary::of(&ratio),
            bar: BAR,
        });
    }
    Ok(Report {
        title: format!(
            "Established flows beside a SYN flood: CPU time above an empty program of the segments alone, \
             {TURN} of them and {TURN} SYNs by turns; {} rounds; one service, 100 backends",
            effort.rounds
        ),
        machine,
        rows,
    })
}

/// Nanoseconds of a segment, less those of the frame.
fn round(
    kind: Kind,
    tables: &mut Tables,
    known: &mut Frame,
    floods: &mut [Frame],
    turns: u32,
    salt: u16,
    flooded: bool,
) -> anyhow::Result<f64> {
    let rig = tables.rig(kind);
    let program: ProgramFd = rig.program().fd()?.try_clone()?;
    let before = rig.reasons().get(&Reason::ForwardedTx).copied().unwrap_or_default();
    let (empty, count) = (known.own("empty")?, floods.len());
    let (mut spent, mut frame) = (0.0, 0.0);
    for turn in 0..turns {
        let flood = &mut floods[turn as usize % count];
        flood.renew(salt + (turn as usize / count) as u16 + 1);
        let idle = flood.own("empty")?;
        let verdict = flood.run(if flooded { &program } else { &idle }, TURN)?.verdict;
        ensure!(!flooded || verdict == TX, "SYN: verdict {verdict}");
        let run = known.run(&program, TURN)?;
        ensure!(run.verdict == TX, "segment: verdict {}", run.verdict);
        spent += run.nanos;
        frame += known.run(&empty, TURN)?.nanos;
    }
    let after = rig.reasons().get(&Reason::ForwardedTx).copied().unwrap_or_default();
    let sent = u64::from(turns * TURN) * if flooded { 2 } else { 1 };
    ensure!(after - before == sent, "{} of {sent} packets were forwarded", after - before);
    Ok((spent - frame) / f64::from(turns))
}
