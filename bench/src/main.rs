//! `make bench`: measures, prints, and keeps the figures.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use lb_bench::{
    fuzz,
    packets::{self, Effort},
    policy, prefilter, ring, scale,
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
    /// Of `packets` only rows with these words, such as "known flow, one service"; nothing is kept
    #[arg(long, value_name = "WORDS")]
    rows: Option<String>,
    /// Directory of the JSON files; the quick ones get names of their own
    #[arg(long, default_value = "bench/results")]
    out: PathBuf,
    /// Packets of `fuzz`, in millions
    #[arg(long, default_value_t = 100)]
    millions: u64,
    /// First seed of `fuzz`: each million has one of its own
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Cost of a packet
    Packets,
    /// Blocklists: time from text to in force, of a replacement and of a ban, and memory
    Lists,
    /// What blocklists cost a packet
    Prefilter,
    /// What identity policy costs a packet, and a change of it
    Policy,
    /// Construction of rings
    Ring,
    /// Changes and memory of a daemon with 10,000 services
    Scale,
    /// Random and damaged packets, each judged; only if it is named
    Fuzz,
}

fn main() -> anyhow::Result<()> {
    let Options { quick, only, rows, out, millions, seed } = Options::parse();
    let wanted = |what: What| only.is_empty() || only.contains(&what);
    let name = |name: &str| if quick { format!("{name}-quick") } else { name.to_owned() };
    if wanted(What::Ring) {
        let rounds = if quick { 15 } else { 51 };
        ring::measure(rounds)?.publish(Some(&out), &name("ring"))?;
    }
    // Before those that bind this process to one CPU.
    if wanted(What::Lists) {
        let effort =
            if quick { prefilter::load::Effort::QUICK } else { prefilter::load::Effort::FULL };
        prefilter::load::measure(effort)?.publish(Some(&out), &name("lists"))?;
    }
    if wanted(What::Packets) {
        let effort = if quick { Effort::QUICK } else { Effort::FULL };
        let report = packets::measure(effort, rows.as_deref())?;
        if rows.is_some() {
            report.publish(None, "")?;
        } else {
            report.publish(Some(&out), &name("packets"))?;
            packets::flood::measure(effort)?.publish(Some(&out), &name("flood"))?;
        }
    }
    if wanted(What::Prefilter) {
        let effort = if quick { prefilter::Effort::QUICK } else { prefilter::Effort::FULL };
        prefilter::measure(effort)?.publish(Some(&out), &name("prefilter"))?;
    }
    if wanted(What::Policy) {
        let effort = if quick { policy::Effort::QUICK } else { policy::Effort::FULL };
        policy::measure(effort)?.publish(Some(&out), &name("policy"))?;
        policy::change::measure(effort)?.publish(Some(&out), &name("policy-change"))?;
        policy::identities::measure(effort)?.publish(Some(&out), &name("policy-identities"))?;
    }
    if wanted(What::Scale) {
        let effort = if quick { scale::Effort::QUICK } else { scale::Effort::FULL };
        scale::measure(effort)?.publish(Some(&out), &name("scale"))?;
    }
    if only.contains(&What::Fuzz) {
        let millions = if quick { millions.min(1) } else { millions };
        fuzz::measure(seed, millions)?.publish(Some(&out), &name("fuzz"))?;
    }
    Ok(())
}
