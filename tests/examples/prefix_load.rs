//! How long a list of random IPv4 addresses takes from its text to the kernel's tables, how long one ban
//! beside it takes, and what memory all of it needs. Run as root, on a machine with nothing else to do:
//!
//! ```text
//! cargo run --release -p lb-tests --example prefix_load -- 1000000
//! ```

use std::{fmt::Write as _, path::Path, sync::Arc, time::Instant};

use abi::limits::feature;
use anyhow::{Context, anyhow};
use config::{
    PrefixSet,
    model::{ListAction, Prefilter, PrefixList, Source},
};
use lb_daemon::{
    datapath::{Capacity, Datapath, bpf::Bpf},
    plan::prefixes::{Needs, Prefixes},
};

/// Bans whose times are measured.
const BANS: u32 = 100;

fn main() -> anyhow::Result<()> {
    let count = std::env::args().nth(1).map_or(Ok(1_000_000), |a| a.parse::<u32>())?;
    let (mut text, mut other) = (random(count, 7), random(count, 8));
    let mut prefixes = Prefixes::default();
    let mut wanted = of(read(&text)?);
    let Needs { bitmaps, .. } = prefixes.needs(&wanted)?;
    let capacity = Capacity {
        lines: abi::prefix::LINES,
        bitmaps: bitmaps as u32 + bitmaps as u32 / 4 + 4096,
        ..lb_tests::rig::capacity()
    };
    (prefixes, wanted) = (Prefixes::default(), Prefilter::default());
    let mut bpf = Bpf::load(capacity, 3, 11, feature::PREFILTER, None)?;
    println!("{count} prefixes; tables {} MB", bpf.bytes() / 1_000_000);
    report("before")?;

    for (what, text) in [("first load", &mut text), ("another list", &mut other)] {
        let start = Instant::now();
        let set = read(text)?;
        let read = start.elapsed();
        *text = String::new();
        let before = std::mem::replace(&mut wanted, of(set));
        put(&mut prefixes, &mut bpf, &wanted)?;
        println!("{what}: read in {read:.1?}, in force in {:.1?}", start.elapsed());
        drop(before);
        lb_daemon::datapath::bpf::grace();
        prefixes.release();
        report(what)?;
    }

    let mut times = Vec::new();
    wanted
        .lists
        .push(Arc::new(PrefixList { name: "bans".to_owned(), ..(*wanted.lists[0]).clone() }));
    Arc::make_mut(&mut wanted.lists[1]).prefixes = PrefixSet::default();
    put(&mut prefixes, &mut bpf, &wanted)?;
    for n in 0..BANS {
        let net = std::net::IpAddr::from((0x0101_0101 + n * 0x20_0301).to_be_bytes());
        let start = Instant::now();
        Arc::make_mut(&mut wanted.lists[1]).prefixes.insert(net.into());
        put(&mut prefixes, &mut bpf, &wanted)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("one ban: median {median:.1?}, worst of {BANS} {worst:.1?}");
    report("bans")
}

/// Random addresses, one per line; the same for the same seed.
fn random(count: u32, seed: u64) -> String {
    let mut state = seed;
    let mut text = String::with_capacity(count as usize * 16);
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let _ = writeln!(text, "{}", std::net::Ipv4Addr::from((state >> 32) as u32));
    }
    text
}

fn read(text: &str) -> anyhow::Result<PrefixSet> {
    let parsed = config::parse_list(Path::new("random"), text.as_bytes());
    parsed.map_err(|faults| anyhow!("{} faults", faults.len()))
}

fn of(prefixes: PrefixSet) -> Prefilter {
    let list = PrefixList {
        name: "l".to_owned(),
        source: Source::Api,
        action: ListAction::Drop,
        prefixes,
        skipped: Vec::new(),
        skipped_lines: 0,
        remote: None,
        force: false,
        scope: config::model::Scope::default(),
    };
    Prefilter { lists: vec![Arc::new(list)], ..Prefilter::default() }
}

fn put(prefixes: &mut Prefixes, bpf: &mut Bpf, wanted: &Prefilter) -> anyhow::Result<()> {
    let ops = prefixes.plan(wanted, bpf)?;
    Ok(bpf.apply(&ops)?)
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
