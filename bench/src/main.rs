//! `make bench`: measures, prints, and keeps the figures.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use lb_bench::{
    packets::{self, Effort},
    prefilter, ring, scale,
};

/// Measures the data path and what compiles its tables. Needs root.
#[derive(Debug, Parser)]
struct Options {
    /// Fewer packets and rounds, smaller tables: a minute or two
    #[arg(long)]
    quick: bool,
    /// What to measure; all of it if not given
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<What>,
    /// Directory of the JSON files; the quick ones get names of their own
    #[arg(long, default_value = "bench/results")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Cost of a packet
    Packets,
    /// What blocklists cost a packet
    Prefilter,
    /// Construction of rings
    Ring,
    /// Changes and memory of a daemon with 10,000 services
    Scale,
}

fn main() -> anyhow::Result<()> {
    let Options { quick, only, out } = Options::parse();
    let wanted = |what: What| only.is_empty() || only.contains(&what);
    let name = |name: &str| if quick { format!("{name}-quick") } else { name.to_owned() };
    if wanted(What::Ring) {
        let rounds = if quick { 15 } else { 51 };
        ring::measure(rounds)?.publish(Some(&out), &name("ring"))?;
    }
    if wanted(What::Packets) {
        let effort = if quick { Effort::QUICK } else { Effort::FULL };
        packets::measure(effort)?.publish(Some(&out), &name("packets"))?;
    }
    if wanted(What::Prefilter) {
        let effort = if quick { prefilter::Effort::QUICK } else { prefilter::Effort::FULL };
        prefilter::measure(effort)?.publish(Some(&out), &name("prefilter"))?;
    }
    if wanted(What::Scale) {
        let effort = if quick { scale::Effort::QUICK } else { scale::Effort::FULL };
        scale::measure(effort)?.publish(Some(&out), &name("scale"))?;
    }
    Ok(())
}
