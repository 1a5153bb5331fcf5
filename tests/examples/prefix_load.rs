//! How long a list of random IPv4 addresses takes from the model into the kernel's tables, how long
//! one more beside it takes, and what memory both need. Run as root, on a machine with nothing else
//! to do:
//!
//! ```text
//! cargo run --release -p lb-tests --example prefix_load -- 1000000
//! ```
//!
//! Reading the list's text is not part of it; `config/examples/load_time.rs` measures that.

use std::{str::FromStr as _, sync::Arc, time::Instant};

use abi::limits::feature;
use anyhow::Context;
use config::model::{ListAction, Prefilter, PrefixList, Source};
use lb_daemon::{
    datapath::{Capacity, Datapath, bpf::Bpf},
    plan::prefixes::Prefixes,
};

fn main() -> anyhow::Result<()> {
    let count = std::env::args().nth(1).map_or(Ok(1_000_000), |a| a.parse::<u32>())?;
    // Blocks are for those /24s that hold two or more of the addresses: Poisson, and some more.
    let networks = f64::from(1 << 24);
    let each = f64::from(count) / networks;
    let blocks = networks * (1.0 - (-each).exp() * (1.0 + each));
    let capacity = Capacity {
        lines: abi::prefix::LINES,
        blocks: (blocks * 1.02) as u32 + 1024,
        ..lb_tests::rig::capacity()
    };
    let mut bpf = Bpf::load(capacity, 3, 11, feature::PREFILTER, None)?;
    let mut prefixes = Prefixes::default();
    println!("{count} prefixes; tables {} MB", bpf.bytes() / 1_000_000);
    report("before")?;

    // Numbers that look random, the same in every run.
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::net::Ipv4Addr::from((state >> 32) as u32)
    };
    let nets = (0..count).map(|_| std::net::IpAddr::V4(next()).into()).collect();
    let list = |prefixes| {
        Arc::new(PrefixList {
            name: "l".to_owned(),
            source: Source::Api,
            action: ListAction::Drop,
            prefixes,
            skipped: vec![],
            skipped_lines: 0,
        })
    };
    let mut wanted = Prefilter { allow: config::PrefixSet::default(), lists: vec![list(nets)] };
    report("list in memory")?;

    let mut put = |wanted: &Prefilter, what: &str| -> anyhow::Result<()> {
        let start = Instant::now();
        let ops = prefixes.plan(wanted, capacity.blocks)?;
        let planned = start.elapsed();
        bpf.apply(&ops)?;
        let (all, n) = (start.elapsed(), ops.len());
        println!("{what}: {n} operations, planned in {planned:.1?}, in force in {all:.1?}");
        drop(ops);
        prefixes.release();
        report(what)
    };
    put(&wanted, "first load")?;
    wanted.lists.push(Arc::new(PrefixList {
        name: "ban".to_owned(),
        ..(*list([ipnet::IpNet::from_str("192.0.2.1/32")?].into_iter().collect())).clone()
    }));
    put(&wanted, "one more")
}

fn report(what: &str) -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).context("a field")?;
        let kb = line.trim().trim_end_matches(" kB").parse::<u64>()?;
        anyhow::Ok(kb / 1000)
    };
    println!("  {what}: resident {} MB, peak {} MB", field("VmRSS:")?, field("VmHWM:")?);
    Ok(())
}
