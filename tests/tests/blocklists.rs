//! Blocklists with real packets: bans by the client and by the end of their time, across a restart; list
//! files that change under traffic.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use lb_tests::{
    edge::{self, Edge, PATIENCE, expect_answered},
    eventually, http,
    lab::{CLIENT_V4, CLIENT_V6, L2_V4, L2_V6, at},
    web,
};

/// An address of the client that no list of the lab's own names.
const OTHER_V4: &str = "192.0.2.77";
const OTHER_V6: &str = "2001:db8:2::77";

/// An edge balancer whose client has two more addresses.
fn edge() -> anyhow::Result<Edge> {
    let edge = Edge::start(edge::L2)?;
    edge.client()?
        .ip(&format!("addr add {OTHER_V4}/24 dev eth0\naddr add {OTHER_V6}/64 dev eth0 nodad\n"))?;
    Ok(edge)
}

/// Whether a request from `source` is answered, within `limit`.
fn answered(edge: &Edge, source: &str, limit: Duration) -> anyhow::Result<bool> {
    let vip = if source.contains(':') { L2_V6 } else { L2_V4 };
    let source = source.parse().context("an address")?;
    edge.client()?.enter(|| http::get_from(source, at(vip, web::PORT), "/", limit).is_ok())
}

fn expect_blocked(edge: &Edge, source: &str) -> anyhow::Result<()> {
    ensure!(!answered(edge, source, Duration::from_millis(300))?, "{source} is answered");
    Ok(())
}

fn expect_free(edge: &Edge, source: &str) -> anyhow::Result<()> {
    ensure!(answered(edge, source, Duration::from_secs(5))?, "{source} is not answered");
    Ok(())
}

#[test]
fn bans_hold_across_a_restart_and_end_by_themselves() -> anyhow::Result<()> {
    let mut edge = edge()?;
    for source in [OTHER_V4, OTHER_V6] {
        expect_free(&edge, source)?;
    }
    edge.lb.lbctl(&["prefilter", "add", OTHER_V4, "--list", "f2b", "--reason", "ssh"])?;
    edge.lb.lbctl(&["prefilter", "add", "2001:db8:2::70/124", "--ttl", "4s"])?;
    for source in [OTHER_V4, OTHER_V6] {
        expect_blocked(&edge, source)?;
    }
    for source in [CLIENT_V4, CLIENT_V6] {
        expect_free(&edge, source)?;
    }
    let found = edge.lb.lbctl(&["prefilter", "lookup", OTHER_V4])?;
    ensure!(found.contains("drop: the list f2b decides") && found.contains("ssh"), "{found}");
    ensure!(edge.lb.list_packets("f2b")? > 0, "no hits are counted");

    edge.lb.kill9()?;
    expect_blocked(&edge, OTHER_V4)?;
    edge.lb.resume()?;
    expect_blocked(&edge, OTHER_V4)?;
    eventually(PATIENCE, || expect_free(&edge, OTHER_V6)).context("the ban does not end")?;
    expect_blocked(&edge, OTHER_V4)?;

    edge.lb.lbctl(&["prefilter", "delete", OTHER_V4, "--list", "f2b"])?;
    expect_free(&edge, OTHER_V4)?;
    edge.lb.expect_quiet()
}

#[test]
fn a_list_of_a_file_is_not_changed_by_the_api() -> anyhow::Result<()> {
    let edge = edge()?;
    let refused = edge.lb.lbctl(&["prefilter", "add", OTHER_V4, "--list", "blocked"]);
    let refused = format!("{:#}", refused.err().context("a list of a file was changed")?);
    ensure!(refused.contains("lb.yaml") && refused.contains("read-only"), "{refused}");
    let refused = edge.lb.lbctl(&["prefilter", "delete", OTHER_V4, "--list", "nobody"]);
    ensure!(refused.is_err());
    expect_free(&edge, OTHER_V4)
}

#[test]
fn list_files_change_under_traffic() -> anyhow::Result<()> {
    let edge = edge()?;
    let lists = edge.lb.config().parent().context("a directory")?.join("lists");
    fs::create_dir(&lists)?;
    let write = |name: &str, text: &str| -> anyhow::Result<()> {
        let beside = lists.join(".new");
        fs::write(&beside, text)?;
        Ok(fs::rename(&beside, lists.join(name))?)
    };
    // Others of the lists are many, so that an update takes its time.
    let many: String = (0..200_000u32)
        .map(|n| format!("{}\n", std::net::Ipv4Addr::from(0x2c00_0000 + n * 37)))
        .collect();
    write("feed.netset", &format!("# a feed\n{many}{OTHER_V4}\n"))?;
    let yaml = edge::yaml(&edge::L2())
        .replace("  lists:\n", "  lists:\n    - {name: feeds, directory: lists}\n");
    edge.lb.change_config(&yaml)?;
    expect_blocked(&edge, OTHER_V4)?;
    expect_free(&edge, OTHER_V6)?;

    let load = edge.load(&[L2_V4, L2_V6])?;
    load.wait_requests(50)?;
    // The one goes, the other comes; what both versions block must not get through meanwhile.
    for round in 0..4 {
        let (gone, there) =
            if round % 2 == 0 { (OTHER_V4, OTHER_V6) } else { (OTHER_V6, OTHER_V4) };
        write("feed.netset", &format!("{many}{there}\n"))?;
        eventually(PATIENCE, || expect_free(&edge, gone))?;
        expect_blocked(&edge, there)?;
    }
    // A broken line leaves the last good state in force, and is named.
    write("feed.netset", &format!("{OTHER_V6}\nno prefix\n"))?;
    eventually(PATIENCE, || {
        let status = edge.lb.status()?.to_string();
        ensure!(status.contains("feed.netset:2:1"), "{status}");
        Ok(())
    })?;
    expect_blocked(&edge, OTHER_V4)?;
    fs::remove_file(lists.join("feed.netset"))?;
    eventually(PATIENCE, || expect_free(&edge, OTHER_V4))?;
    expect_answered(&load.stop()?);
    Ok(())
}
