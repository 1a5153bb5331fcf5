//! Programs of others on the same interfaces, before ours and behind.

use std::fs;

use abi::{policy::Way, reason::Reason};
use anyhow::{Context as _, ensure};
use aya::programs::{
    LinkOrder, TcAttachType,
    tc::{NlOptions, TcAttachOptions, TcHandle},
};
use lb_daemon::policy::{
    image::Sizes,
    kernel::{Kernel, PolicyCounters},
};
use lb_tests::{netns::Namespace, web};

use crate::{ENDPOINTS, IN_FORCE, PUBLISHED, Site};

/// Sizes of tables that hold nothing.
const NOTHING: Sizes = Sizes {
    interfaces: 1024,
    policies: 1,
    tops: 1,
    pages: 1,
    entries: 1,
    addresses: 1,
    buckets: 1,
    prefixes: 1,
    rules: 1,
};

/// A program of somebody else, which counts packets to `app1` and lets them pass.
struct Foreign {
    kernel: Kernel,
    counters: PolicyCounters,
}

impl Foreign {
    fn attach(host: &Namespace, options: TcAttachOptions) -> anyhow::Result<Self> {
        let mut kernel = Kernel::make(NOTHING, 1, None)?;
        let program = kernel.program(Way::In)?;
        host.enter(|| program.attach_with_options("veth-app1", TcAttachType::Egress, options))??;
        let counters = kernel.counters()?;
        Ok(Self { kernel, counters })
    }

    fn seen(&self) -> u64 {
        self.counters.reason(Reason::NoEndpoint).packets
    }

    fn detach(self, host: &Namespace) -> anyhow::Result<()> {
        host.enter(|| drop(self.kernel))
    }
}

/// Programs of others, before and behind ours, run on and stay, whichever way ours are attached, when the
/// daemon starts anew and when ours go.
#[test]
fn programs_of_others_stay() -> anyhow::Result<()> {
    let mut site = Site::start("polt", ENDPOINTS)?;
    let file = site.directory.path().join("l3-rule.json");
    fs::write(&file, PUBLISHED)?;
    site.daemon.lbctl(&["policy", "import", file.to_str().context("a path")?])?;
    for method in ["tcx", "clsact"] {
        let wrapper = format!("exec \"$0\" --tc {method} \"$@\"");
        let wrapper = ["sh", "-c", &wrapper];
        site.daemon.stop()?;
        site.daemon.resume_under(&wrapper)?;
        let attached = site.daemon.get("/v1/endpoints/app1")?["attached"].clone();
        ensure!(attached == method, "{attached}");
        let [before, behind] = match method {
            "tcx" => [LinkOrder::first(), LinkOrder::last()].map(TcAttachOptions::TcxOrder),
            _ => [1, 2].map(|priority| {
                let handle = TcHandle::new(7, 7);
                TcAttachOptions::Netlink(NlOptions { priority, handle, ..NlOptions::default() })
            }),
        };
        let before = Foreign::attach(&site.host, before)?;
        let behind = Foreign::attach(&site.host, behind)?;
        // Both see all that passes; what ours drop only the one in front.
        let moves = |site: &Site, from: usize, reaches: bool, drops: bool| {
            let was = [before.seen(), behind.seen()];
            site.expect(&[(from, "10.15.1.2", web::PORT, reaches)])?;
            let [front, back] = [before.seen() - was[0], behind.seen() - was[1]];
            let right = if drops { front > back } else { front > 0 && back > 0 };
            ensure!(right, "{method}: app{from}: {front} in front, {back} behind");
            anyhow::Ok(())
        };
        for _ in 0..2 {
            moves(&site, 2, true, false)?;
            moves(&site, 3, false, true)?;
            site.expect(IN_FORCE)?;
            site.daemon.kill9()?;
            moves(&site, 3, false, true)?;
            site.daemon.resume_under(&wrapper)?;
        }
        site.daemon.stop()?;
        let bpffs = site.bpffs.path().to_owned();
        site.host.enter(|| lb_daemon::app::cleanup(&bpffs))??;
        moves(&site, 3, true, false)?;
        before.detach(&site.host)?;
        behind.detach(&site.host)?;
        site.daemon.resume()?;
    }
    Ok(())
}
