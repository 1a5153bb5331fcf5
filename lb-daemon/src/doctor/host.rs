//! Asks this machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use config::model::DesiredState;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::Facts;
use crate::{
    app,
    links::{Links, ethtool::Ethtool, features, hindrance},
    nexthop::{NextHop, Resolver},
};

/// How long neighbours may take to answer: the kernel asks three times, a second apart.
const NEIGHBOURS: Duration = Duration::from_secs(4);

/// Everything that [`super::examine`] judges, in the calling thread's network namespace.
///
/// # Errors
/// If the kernel cannot be asked about its network.
pub(crate) async fn facts(bpffs: &Path, state: &DesiredState) -> anyhow::Result<Facts> {
    let (links, _watcher) = Links::open().await.context("reading interfaces")?;
    let snapshot = (*links.snapshot()).clone();
    let ethtool = Ethtool::open().context("opening a socket")?;
    let mut features = features::Features::open();
    let attached = snapshot.values().flat_map(|link| &link.xdp).map(|x| x.program);
    let mut facts = Facts {
        release: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        may_load: app::may_load(),
        jit: number("net/core/bpf_jit_enable"),
        clocksource: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        bpffs: (bpffs.display().to_string(), on_bpffs(bpffs)),
        local: links.local_addresses(),
        lro: snapshot.values().filter(|l| ethtool.lro(&l.name)).map(|l| l.index).collect(),
        neighbours: ["ipv4", "ipv6"].map(|f| number(&format!("net/{f}/neigh/default/gc_thresh3"))),
        programs: attached.filter_map(|id| Some((id, hindrance::program_name(id)?))).collect(),
        ..Facts::default()
    };
    for link in snapshot.values() {
        if let Some(can) = features.as_mut().ok().and_then(|f| f.of(link.index).ok()) {
            facts.xdp.insert(link.index, can);
        }
        let conf = |name: &str| number(&format!("net/ipv4/conf/{name}/rp_filter"));
        if let Some(filter) = conf("all").max(conf(&link.name)) {
            facts.rp_filter.insert(link.name.clone(), filter);
        }
    }
    facts.links = snapshot;
    let backends = state.services.values().flat_map(|s| &s.backends).map(|b| b.address);
    facts.hops = hops(backends.collect()).await?;
    Ok(facts)
}

/// Ways to these addresses, once all are known or neighbours have had their time.
async fn hops(targets: BTreeSet<IpAddr>) -> anyhow::Result<BTreeMap<IpAddr, NextHop>> {
    let mut known = BTreeMap::new();
    if targets.is_empty() {
        return Ok(known);
    }
    let (sender, mut changes) = mpsc::channel(16);
    let (resolver, task) = Resolver::open(sender).await.context("reading routes")?;
    let cancel = CancellationToken::new();
    resolver.set_targets(targets.clone());
    let learn = async {
        while let Some(news) = changes.recv().await {
            known.extend(news);
            if targets.iter().all(|t| known.get(t).is_some_and(NextHop::is_reachable)) {
                break;
            }
        }
    };
    tokio::select! {
        ended = task.run(cancel.clone()) => ended.context("reading routes")?,
        _ = timeout(NEIGHBOURS, learn) => {}
    }
    Ok(known)
}

/// Whether what is pinned at `path`, or where it will be made, is on a BPF file system.
fn on_bpffs(path: &Path) -> bool {
    path.ancestors().find(|p| p.exists()).is_some_and(app::is_bpffs)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// A sysctl, of this thread's network namespace.
fn number(key: &str) -> Option<u32> {
    read(&format!("/proc/sys/{key}"))?.parse().ok()
}
