//! Random and damaged packets through the program in the kernel, each of them judged, on all cores.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use anyhow::anyhow;
use lb_tests::mutated;
use serde::Serialize;

use crate::{
    machine::Machine,
    report::{Report, Row},
};

/// Packets of one seed.
const MILLION: u64 = 1_000_000;

/// How many packets came to a reason.
#[derive(Debug, Serialize)]
pub struct Reached {
    /// Name of the reason.
    pub reason: String,
    /// Packets.
    pub packets: u64,
}

impl Row for Reached {
    const HEADS: &'static [&'static str] = &["reason", "packets"];

    fn cells(&self) -> Vec<String> {
        vec![self.reason.clone(), self.packets.to_string()]
    }
}

/// Sends that many million packets, a seed for each million.
///
/// # Errors
///
/// The first packet that was not treated as it should be, with its seed.
pub fn measure(first: u64, millions: u64) -> anyhow::Result<Report<Reached>> {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let worker = || -> Result<BTreeMap<&'static str, u64>, String> {
        let mut sum = BTreeMap::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= millions {
                return Ok(sum);
            }
            match mutated::run(first + n, MILLION) {
                Ok(seen) => {
                    for (name, packets) in seen {
                        *sum.entry(name).or_insert(0) += packets;
                    }
                }
                Err(what) => {
                    // Nobody begins another one.
                    next.store(millions, Ordering::Relaxed);
                    return Err(what);
                }
            }
            eprintln!("{} of {millions} million packets", (n + 1).min(millions));
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let parts: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().map(|thread| thread.join().expect("the judge does not panic")).collect()
    });
    let mut sum: BTreeMap<&str, u64> = BTreeMap::new();
    for part in parts {
        for (name, n) in part.map_err(|what| anyhow!("{what}"))? {
            *sum.entry(name).or_default() += n;
        }
    }
    let all: u64 = sum.values().sum();
    anyhow::ensure!(all == millions * MILLION, "{all} packets have a reason");
    let title = format!(
        "Random and damaged packets (seeds {first} to {}): {all} sent, as many counted, none passed \
         half rewritten, none left with a checksum that it had broken; {:.0} s",
        first + millions.max(1) - 1,
        began.elapsed().as_secs_f64()
    );
    let rows = sum
        .into_iter()
        .map(|(reason, packets)| Reached { reason: reason.to_owned(), packets })
        .collect();
    Ok(Report { title, machine: Machine::this(), rows })
}
