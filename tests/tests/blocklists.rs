//! Blocklists with real packets: bans by the client and by the end of their time, across a restart; list
//! files that change under traffic.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    edge::{self, Edge, PATIENCE, expect_answered},
    eventually, http,
    lab::{CLIENT_V4, CLIENT_V6, L2_V4, L2_V6, Lab, at},
    web,
};

/// An address of the client that no list of the lab's own names.
const OTHER_V4: &str = "192.0.2.77";
const OTHER_V6: &str = "2001:db8:2::77";
/// Addresses that are on a list in turn.
const EVEN: &str = "192.0.2.78";
const ODD: &str = "192.0.2.79";

/// An edge balancer whose client has two more addresses.
fn edge() -> anyhow::Result<Edge> {
    let edge = Edge::start(edge::L2)?;
    more_addresses(&edge)?;
    Ok(edge)
}

fn more_addresses(edge: &Edge) -> anyhow::Result<()> {
    let client = edge.client()?;
    client.ip(&format!("addr add {OTHER_V4}/24 dev eth0\naddr add {OTHER_V6}/64 dev eth0 nodad\n"))
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

/// A ban on some packets of a source holds for these alone, and is the same after a crash.
#[test]
fn a_ban_may_be_about_one_port() -> anyhow::Result<()> {
    let mut edge = edge()?;
    let lbctl =
        |edge: &Edge, line: &str| edge.lb.lbctl(&line.split_whitespace().collect::<Vec<_>>());
    // The client asks for port 80: one source is blocked there, the other on another port and protocol.
    lbctl(&edge, &format!("prefilter add {OTHER_V4} --list web --protocol tcp --port 80"))?;
    lbctl(&edge, &format!("prefilter add {OTHER_V6} --list other --protocol tcp --port 8080"))?;
    lbctl(&edge, &format!("prefilter add {OTHER_V6} --list dgrams --protocol udp --port 80"))?;
    lbctl(
        &edge,
        &format!("prefilter add {OTHER_V6} --list far --interface eth7 --direction source"),
    )?;
    lbctl(&edge, &format!("prefilter add {OTHER_V6} --list seen --protocol tcp --action audit"))?;
    // One that names no scope is put on the list as it is; one that names another is refused.
    lbctl(&edge, &format!("prefilter add {EVEN} --list web"))?;
    let refused =
        lbctl(&edge, &format!("prefilter add {ODD} --list web --protocol tcp --port 8080"));
    let refused = format!("{:#}", refused.err().context("a list got another scope")?);
    ensure!(
        refused.contains("tcp to 80") && refused.contains("delete --list web --all"),
        "{refused}"
    );
    for round in 0..2 {
        expect_blocked(&edge, OTHER_V4)?;
        expect_free(&edge, OTHER_V6)?;
        let lists = lbctl(&edge, "prefilter list")?;
        for words in ["tcp to 80", "tcp to 8080", "udp to 80", "on eth7"] {
            ensure!(lists.contains(words), "round {round}: no {words} in {lists}");
        }
        let asked = |port: u16| format!("prefilter lookup {OTHER_V4} --protocol tcp --port {port}");
        ensure!(lbctl(&edge, &asked(80))?.contains("drop: "));
        ensure!(lbctl(&edge, &asked(8080))?.contains("pass: "));
        ensure!(lbctl(&edge, "prefilter export web")?.starts_with("# only packets tcp to 80\n"));
        let export: serde_json::Value =
            serde_json::from_str(&lbctl(&edge, "prefilter export web --format json")?)?;
        ensure!(export["list"] == "web" && export["spec"]["protocol"] == "tcp", "{export}");
        ensure!(export["spec"]["ports"] == serde_json::json!(["80"]), "{export}");
        ensure!(export["items"].as_array().is_some_and(|items| items.len() == 2), "{export}");
        let nft = lbctl(&edge, "prefilter export web --format nft")?;
        ensure!(nft.contains(" ip saddr @web_ipv4 tcp dport { 80 } counter drop\n"), "{nft}");
        ensure!(edge.lb.list_packets("seen")? > 0, "what is audited is not counted");
        ensure!(edge.lb.list_packets("other")? + edge.lb.list_packets("dgrams")? == 0);
        if round == 0 {
            edge.lb.kill9()?;
            expect_blocked(&edge, OTHER_V4)?;
            edge.lb.resume()?;
        }
    }
    // A plan is about the same packets: what passed went to port 80.
    let plan = |port: u16| {
        let line = format!("prefilter plan {OTHER_V6} --list new --protocol tcp --port {port}");
        lbctl(&edge, &line)
    };
    eventually(PATIENCE, || {
        expect_free(&edge, OTHER_V6)?;
        let there = plan(80)?;
        ensure!(there.contains("only packets tcp to 80)"), "{there}");
        ensure!(!there.contains("would have dropped 0 "), "{there}");
        Ok(())
    })?;
    let there = plan(8080)?;
    ensure!(there.contains("would have dropped 0 "), "{there}");
    ensure!(lbctl(&edge, &format!("prefilter plan {OTHER_V6} --list web --protocol udp")).is_err());
    // What was exported comes back, with all that it is about.
    let exported = edge.lab.directory().join("web.json");
    std::fs::write(&exported, lbctl(&edge, "prefilter export web --format json")?)?;
    lbctl(&edge, "prefilter delete --list web --all")?;
    expect_free(&edge, OTHER_V4)?;
    lbctl(&edge, &format!("prefilter import {}", exported.display()))?;
    expect_blocked(&edge, OTHER_V4)?;
    ensure!(lbctl(&edge, "prefilter list web")?.starts_with("only packets tcp to 80\n"));
    // Without anything on it the list is what it was; it goes when it is removed.
    lbctl(&edge, &format!("prefilter delete {OTHER_V4} {EVEN} --list web"))?;
    expect_free(&edge, OTHER_V4)?;
    lbctl(&edge, &format!("prefilter add {OTHER_V4} --list web"))?;
    ensure!(lbctl(&edge, "prefilter list web")?.starts_with("only packets tcp to 80\n"));
    lbctl(&edge, "prefilter delete --list web --all")?;
    lbctl(&edge, &format!("prefilter add {OTHER_V4} --list web --protocol tcp --port 8080"))?;
    expect_free(&edge, OTHER_V4)?;
    edge.lb.expect_quiet()
}

/// Entries of an export that are broken are named; without them the others can be put in.
#[test]
fn what_is_broken_in_an_export_is_named() -> anyhow::Result<()> {
    let edge = edge()?;
    let exported = edge.lab.directory().join("bad.json");
    let text = format!(
        r#"{{"list": "bad", "items": [{{"cidr": "{OTHER_V4}/32", "reason": "ssh"}}, {{"cidr": "nobody"}},
            {{"cidr": "{EVEN}", "until": "later"}}, {{"cidr": "{OTHER_V6}/128"}}]}}"#
    );
    fs::write(&exported, text)?;
    let import = |more: &[&str]| {
        let file = exported.to_string_lossy();
        edge.lb.lbctl(&[&["prefilter", "import", &file], more].concat())
    };
    let refused = format!("{:#}", import(&[]).err().context("it is taken")?);
    for words in ["nothing is put on the list", "items[1].cidr: ", "items[2].until: "] {
        ensure!(refused.contains(words), "{words}: {refused}");
    }
    expect_free(&edge, OTHER_V4)?;
    let done = import(&["--skip-errors"])?;
    ensure!(done.starts_with("2 on the list bad, in force; 2 are wrong and left out:\n"), "{done}");
    ensure!(done.contains("items[1].cidr: ") && done.contains("items[2].until: "), "{done}");
    for source in [OTHER_V4, OTHER_V6] {
        expect_blocked(&edge, source)?;
    }
    ensure!(edge.lb.lbctl(&["prefilter", "list", "bad"])?.contains("ssh"));
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

/// Requests go to port 80 of the VIPs over TCP.
#[test]
fn lists_with_scopes_have_what_they_are_about() -> anyhow::Result<()> {
    let edge = edge()?;
    let base = edge::yaml(&edge::L2());
    let with = |scope: &str| -> anyhow::Result<()> {
        let list =
            format!("    - {{name: scoped, cidrs: [{OTHER_V4}, \"{OTHER_V6}\"], {scope}}}\n");
        edge.lb.change_config(&base.replace("  lists:\n", &format!("  lists:\n{list}")))
    };
    for scope in ["protocol: tcp, ports: [1-79, 80]", "protocol: tcp", "interfaces: [eth0]"] {
        with(scope)?;
        eventually(PATIENCE, || expect_blocked(&edge, OTHER_V4)).context(scope.to_owned())?;
        expect_blocked(&edge, OTHER_V6).context(scope.to_owned())?;
    }
    for scope in [
        "protocol: tcp, ports: [81-89]",
        "protocol: udp",
        "interfaces: [another0]",
        "direction: destination",
    ] {
        with(scope)?;
        eventually(PATIENCE, || expect_free(&edge, OTHER_V4)).context(scope.to_owned())?;
        expect_free(&edge, OTHER_V6).context(scope.to_owned())?;
    }
    // The VIPs as destinations.
    let list =
        format!("    - {{name: scoped, cidrs: [{L2_V4}], direction: destination, force: true}}\n");
    edge.lb.change_config(&base.replace("  lists:\n", &format!("  lists:\n{list}")))?;
    eventually(PATIENCE, || expect_blocked(&edge, OTHER_V4))?;
    expect_free(&edge, OTHER_V6)?;
    let found = edge.lb.lbctl(&["prefilter", "lookup", L2_V4])?;
    ensure!(found.contains("as destination"), "{found}");
    Ok(())
}

/// Killed at any moment of the replacement of a large list, the daemon leaves one version or the other: what both block
/// stays blocked, and of two addresses that only one version each has exactly one is. The next daemon takes that over.
#[test]
fn a_daemon_killed_during_an_update_leaves_one_version() -> anyhow::Result<()> {
    let mut edge = edge()?;
    let list = edge.lb.config().parent().context("a directory")?.join("feed.txt");
    // Spread widely, so that an update takes its time.
    let many: String = (0..1_000_000u32)
        .map(|n| format!("{}\n", std::net::Ipv4Addr::from(0x0b00_0000 + n * 1021)))
        .collect();
    let replace = |n: u32| -> anyhow::Result<()> {
        let own = if n.is_multiple_of(2) { EVEN } else { ODD };
        let beside = list.with_extension("new");
        fs::write(&beside, format!("{many}{OTHER_V4}\n{own}\n{OTHER_V6}\n"))?;
        Ok(fs::rename(&beside, &list)?)
    };
    replace(0)?;
    let yaml = edge::yaml(&edge::L2())
        .replace("  lists:\n", "  lists:\n    - {name: feed, file: feed.txt}\n");
    edge.lb.change_config(&yaml)?;
    edge.client()?.ip(&format!("addr add {EVEN}/24 dev eth0\naddr add {ODD}/24 dev eth0\n"))?;
    expect_blocked(&edge, EVEN)?;
    expect_free(&edge, ODD)?;
    // How much work it is when nobody interferes.
    let begun = edge.lb.cpu_time()?;
    replace(1)?;
    eventually(PATIENCE, || expect_free(&edge, EVEN)).context("it is not noticed")?;
    let whole = edge.lb.cpu_time()?.saturating_sub(begun);
    expect_blocked(&edge, ODD)?;

    let mut left_old = 0;
    for (round, percent) in (2..).zip([15, 50, 75, 90, 100]) {
        let begun = edge.lb.cpu_time()?;
        replace(round)?;
        // A part of the way, as far as can be told from outside: by the work that it has done.
        let enough = begun + whole * percent / 100;
        let limit = Instant::now() + PATIENCE;
        while edge.lb.cpu_time()? < enough && Instant::now() < limit {
            std::thread::yield_now();
        }
        edge.lb.kill9()?;
        for source in [OTHER_V4, OTHER_V6] {
            expect_blocked(&edge, source)?;
        }
        let limit = Duration::from_millis(500);
        let (even, odd) = (answered(&edge, EVEN, limit)?, answered(&edge, ODD, limit)?);
        ensure!(even != odd, "at {percent} % of {whole:?}: of both versions: {even} {odd}");
        left_old += u32::from(odd != round.is_multiple_of(2));
        edge.lb.resume()?;
        let (own, other) = if round.is_multiple_of(2) { (EVEN, ODD) } else { (ODD, EVEN) };
        expect_blocked(&edge, own)?;
        expect_free(&edge, other)?;
    }
    let adopted = edge.lb.log_text().matches(" ready adopted=true").count();
    ensure!(adopted == 5, "{adopted} of 5 adopted");
    // Else all came too late.
    ensure!(left_old > 0, "the version before was never left, though an update takes {whole:?}");
    println!("{left_old} of 5 left the version before; an update takes {whole:?}");
    Ok(())
}

/// In the kernel's generic hook; the first ban where there was no list; filters and a rate limit.
#[test]
fn generic_mode_and_what_sources_may_not_send() -> anyhow::Result<()> {
    let lab = Lab::start()?;
    let yaml = edge::yaml(&edge::L2()).replace("xdp_mode: native", "xdp_mode: generic");
    let lists = yaml.find("  lists:\n").context("lists")?;
    let services = yaml.find("services:\n").context("services")?;
    let guard = "  filters: [tcp-flags, amplification]\n  rate_limits:\n    \
         - {name: web, match: {protocol: tcp, port: 80}, packets_per_second: 1, burst: 40}\n";
    let yaml = format!("{}{guard}{}", &yaml[..lists], &yaml[services..]);
    let lb = lab.daemon("lb", &yaml)?;
    eventually(PATIENCE, || lb.ways_known())?;
    let edge = Edge { lb, decap: Vec::new(), lab };
    more_addresses(&edge)?;
    ensure!(edge.lb.lbctl(&["interface", "list"])?.contains("generic"));

    expect_free(&edge, OTHER_V6)?;
    edge.lb.lbctl(&["prefilter", "add", OTHER_V6])?;
    expect_blocked(&edge, OTHER_V6)?;
    // A request takes about six packets.
    expect_free(&edge, OTHER_V4)?;
    eventually(PATIENCE, || {
        let free = answered(&edge, OTHER_V4, Duration::from_millis(300))?;
        ensure!(!free, "{}", edge.lb.lbctl(&["prefilter", "limits"])?);
        Ok(())
    })?;
    expect_free(&edge, CLIENT_V4)?;
    let limits = edge.lb.get("/v1/prefilter/rate-limits")?;
    ensure!(limits["items"][0]["packets"].as_u64() > Some(0), "{limits}");
    let dropped = edge.lb.metric("lb_datapath_packets_total{reason=\"rate_limited\"")?;
    ensure!(dropped > 0.0, "{dropped}");
    Ok(())
}
