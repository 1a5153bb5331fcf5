//! How long a ring takes to build, with the `maglev` crate beside it.

use std::{hint::black_box, net::IpAddr};

use lb_daemon::ring::{self, Member};
use maglev::Maglev;
use serde::Serialize;

use crate::{
    frame::thread_time,
    machine::Machine,
    report::{Report, Row, against},
    stats::Summary,
};

/// Figures of one way to build a ring.
#[derive(Debug, Serialize)]
pub struct Built {
    what: String,
    backends: u32,
    slots: u32,
    millis: Summary,
    bar: Option<f64>,
}

impl Row for Built {
    const HEADS: &'static [&'static str] = &["ring", "backends", "slots", "ms (p10-p90)", "bar"];

    fn cells(&self) -> Vec<String> {
        let Self { what, backends, slots, millis, bar } = self;
        let verdict = against(*bar, millis.median);
        vec![what.clone(), backends.to_string(), slots.to_string(), millis.to_string(), verdict]
    }
}

/// Backends and slots of the bar.
const BACKENDS: u32 = 1000;
const SLOTS: u32 = 65_521;

fn address(i: u32) -> IpAddr {
    IpAddr::from((0x0a80_0000 + i).to_be_bytes())
}

fn weighted() -> Vec<u32> {
    let members: Vec<Member> =
        (0..BACKENDS).map(|i| Member::new(7, address(i), 1 + i % 10 * 10)).collect();
    ring::build(&members, SLOTS)
}

fn equal() -> Vec<u32> {
    let members: Vec<Member> = (0..BACKENDS).map(|i| Member::new(7, address(i), 1)).collect();
    ring::build(&members, SLOTS)
}

/// Measures.
///
/// # Errors
/// The kernel has no clock of threads.
pub fn measure(rounds: usize) -> anyhow::Result<Report<Built>> {
    type Build = (&'static str, Option<f64>, Box<dyn Fn()>);
    let ways: [Build; 3] = [
        ("ours, weights 1 to 91", Some(5.0), Box::new(|| drop(black_box(weighted())))),
        ("ours, equal weights", None, Box::new(|| drop(black_box(equal())))),
        (
            "maglev crate 0.2, which has no weights",
            None,
            Box::new(|| {
                drop(black_box(Maglev::with_capacity((0..BACKENDS).map(address), SLOTS as usize)));
            }),
        ),
    ];
    let mut times = vec![Vec::new(); ways.len()];
    for _ in 0..rounds {
        for ((_, _, build), times) in ways.iter().zip(&mut times) {
            let before = thread_time()?;
            build();
            times.push((thread_time()? - before).as_secs_f64() * 1e3);
        }
    }
    let rows = ways.iter().zip(&times).map(|((what, bar, _), times)| Built {
        what: (*what).to_owned(),
        backends: BACKENDS,
        slots: SLOTS,
        millis: Summary::of(times),
        bar: *bar,
    });
    Ok(Report {
        title: format!(
            "Rings: CPU time to build one, hashes included, {rounds} rounds interleaved"
        ),
        machine: Machine::this(),
        rows: rows.collect(),
    })
}
