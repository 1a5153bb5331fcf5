//! The daemon comes and goes, the data path stays: killed, stopped, started again, cleaned up.

use lb_tests::{
    edge::{self, Edge, IPIP, L2, PATIENCE, expect_all_answer, expect_answered},
    eventually,
    http::Kept,
    lab::{IPIP_V4, IPIP_V6, L2_V4, L2_V6, at},
    netns,
    pass::Pass,
    web,
};

/// Killed under load, started again under load: no request fails, no connection breaks, and program
/// and maps are the same ones.
#[test]
fn a_killed_daemon_is_adopted() -> anyhow::Result<()> {
    let mut edge = Edge::start(IPIP)?;
    let before = edge.lb.loaded()?;
    let mut kept = edge.client()?.enter(|| {
        (0..20).map(|_| Kept::connect(at(IPIP_V4, web::PORT))).collect::<anyhow::Result<Vec<_>>>()
    })??;

    let load = edge.load(&[IPIP_V4, IPIP_V6])?;
    load.wait_requests(200)?;
    edge.lb.kill9()?;
    load.wait_requests(500)?;
    edge.lb.resume()?;
    load.wait_requests(500)?;
    let tally = load.stop()?;

    expect_all_answer(&tally);
    for connection in &mut kept {
        connection.get("/")?;
    }
    assert_eq!(edge.lb.loaded()?, before);
    assert_eq!(edge.lb.status()?["adopted"], true);
    Ok(())
}

/// Stopped as systemd does, it leaves the data path; whoever starts it again finds it.
#[test]
fn a_stopped_daemon_leaves_the_data_path() -> anyhow::Result<()> {
    let mut edge = Edge::start(L2)?;
    let before = edge.lb.loaded()?;
    edge.lb.stop()?;
    assert_eq!(edge.lb.loaded()?, before);
    for vip in [L2_V4, L2_V6] {
        expect_all_answer(&edge.requests(vip, 60)?);
    }
    edge.lb.resume()?;
    assert_eq!(edge.lb.loaded()?, before);
    for vip in [L2_V4, L2_V6] {
        expect_answered(&edge.requests(vip, 20)?);
    }
    edge.lb.expect_quiet()
}

/// A change that was made while it was down is in force after the start.
#[test]
fn changes_while_down_are_seen() -> anyhow::Result<()> {
    let mut edge = Edge::start(L2)?;
    edge.lb.stop()?;
    let mut specs = L2();
    specs[0].webs = vec![2];
    edge.lb.write_config(&edge::yaml(&specs))?;
    edge.lb.resume()?;
    eventually(PATIENCE, || {
        let backends = edge.lb.backends("l2-v4")?;
        anyhow::ensure!(backends.len() == 1, "{backends:?}");
        Ok(())
    })?;
    let tally = edge.requests(L2_V4, 40)?;
    expect_answered(&tally);
    assert_eq!(tally.answers.len(), 1, "{:?}", tally.answers);
    assert!(tally.answers.contains_key("web-2"), "{:?}", tally.answers);
    Ok(())
}

/// `lbctl cleanup` needs no daemon and leaves nothing: no program, no pin.
#[test]
fn cleanup_removes_everything() -> anyhow::Result<()> {
    let mut edge = Edge::start(L2)?;
    edge.lb.stop()?;
    let program = edge.lb.loaded()?.program;
    edge.lb.clean_up()?;
    assert!(edge.lb.loaded().is_err(), "a program is still attached");
    let left = std::fs::read_dir(edge.lb.bpffs()).map(Iterator::count).unwrap_or(0);
    assert_eq!(left, 0, "pins are left in {}", edge.lb.bpffs().display());
    // The kernel frees a program when its last user is gone, shortly afterwards.
    eventually(PATIENCE, || {
        let shown = netns::run(std::process::Command::new("bpftool").args([
            "prog",
            "show",
            "id",
            &program.to_string(),
        ]));
        anyhow::ensure!(shown.is_err(), "program {program} is still loaded");
        Ok(())
    })?;
    Ok(())
}

/// The capabilities of the systemd unit are enough, from nothing to a data path.
#[test]
fn the_units_capabilities_are_enough() -> anyhow::Result<()> {
    let mut edge = Edge::start(L2)?;
    edge.lb.stop()?;
    edge.lb.clean_up()?;
    edge.lb.resume_with_rights_of_unit()?;
    eventually(PATIENCE, || edge.lb.ways_known())?;
    for vip in [L2_V4, L2_V6] {
        expect_all_answer(&edge.requests(vip, 60)?);
    }
    edge.lb.expect_quiet()
}

/// Somebody else's XDP program is left alone and named; when it goes, ours takes the place.
#[test]
fn an_interface_that_is_taken_says_so() -> anyhow::Result<()> {
    let mut edge = Edge::start(L2)?;
    edge.lb.stop()?;
    let bpffs = edge.lb.bpffs().to_path_buf();
    edge.lb.clean_up()?;
    std::fs::create_dir(&bpffs)?;
    let host = std::sync::Arc::clone(edge.lab.host("lb")?);
    Pass::load()?.attach(&host, "eth0", &bpffs)?;
    let theirs = edge.lb.loaded()?;

    edge.lb.resume()?;
    let status = edge.lb.status()?;
    assert_eq!(status["ready"], false);
    let why = status["interfaces"][0]["reason"].to_string();
    let title = format!("id {}, name ", theirs.program);
    for word in ["another XDP program", &title, "ip link set dev eth0 xdp off"] {
        assert!(why.contains(word), "{word} is not in {why}");
    }
    assert_eq!(edge.lb.loaded()?, theirs);

    host.ip("link set dev eth0 xdp off")?;
    eventually(PATIENCE, || {
        let status = edge.lb.status()?;
        anyhow::ensure!(status["ready"] == true, "{status}");
        Ok(())
    })?;
    assert_eq!(edge.lb.status()?["interfaces"][0]["attached"], "native");
    eventually(PATIENCE, || edge.lb.ways_known())?;
    expect_answered(&edge.requests(L2_V4, 20)?);
    Ok(())
}

/// An interface without native XDP says so, and what to do; in the generic hook the same one works.
#[test]
fn an_interface_without_native_xdp_says_so() -> anyhow::Result<()> {
    let edge = Edge::start(L2)?;
    edge.lab
        .host("lb")?
        .ip("link add link eth0 name side0 type macvlan mode bridge\nlink set side0 up")?;
    let with = |mode: &str| {
        edge::yaml(&L2()).replace(
            "maglev:",
            &format!("  - {{name: side0, xdp_mode: {mode}, roles: [prefilter]}}\nmaglev:"),
        )
    };
    let side = |key: &str| -> anyhow::Result<String> {
        let status = edge.lb.status()?;
        let found =
            status["interfaces"].as_array().into_iter().flatten().find(|i| i["name"] == "side0");
        Ok(found.map(|i| i[key].to_string()).unwrap_or_default())
    };
    edge.lb.change_config(&with("native"))?;
    eventually(PATIENCE, || {
        let why = side("reason")?;
        for word in ["a macvlan", "no native XDP", "interface below it"] {
            anyhow::ensure!(why.contains(word), "{word} is not in {why}");
        }
        Ok(())
    })?;
    edge.lb.change_config(&with("generic"))?;
    eventually(PATIENCE, || {
        anyhow::ensure!(side("attached")? == "\"generic\"", "{}", edge.lb.status()?);
        Ok(())
    })?;
    for vip in [L2_V4, L2_V6] {
        expect_answered(&edge.requests(vip, 20)?);
    }
    Ok(())
}

/// A change that cannot be put in force touches nothing: not the services, not the interfaces, not
/// when the network changes meanwhile, and it is not tried without pause.
#[test]
fn a_change_that_does_not_fit_leaves_the_interfaces() -> anyhow::Result<()> {
    let edge = Edge::start(L2)?;
    let before = edge.lb.loaded()?;
    let mut text = String::from(
        "interfaces:\n  - {name: eth9, xdp_mode: native, roles: [balance]}\n\
         maglev: {seed: tests, table_size: 1048573}\nservices:\n",
    );
    for n in 0..260 {
        text += &format!(
            "  - {{name: s{n}, address: 203.0.{}.{}, forwarding: l2, ports: [{{name: a, port: 80, \
             protocol: tcp}}], backends: [{{name: b, address: 192.0.2.11}}]}}\n",
            114 + n / 256,
            n % 256
        );
    }
    edge.lb.write_config(&text)?;
    eventually(PATIENCE, || {
        let faults = edge.lb.status()?["config"]["faults"].to_string();
        anyhow::ensure!(faults.contains("SLOTS"), "{faults}");
        Ok(())
    })?;
    edge.lab.host("lb")?.ip("link add v8 type veth peer name v9")?;
    edge.lab.host("lb")?.ip("link set v8 up")?;
    expect_all_answer(&edge.requests(L2_V4, 60)?);
    assert_eq!(edge.lb.loaded()?, before);
    let status = edge.lb.status()?;
    assert_eq!(status["interfaces"][0]["name"], "eth0");
    assert_eq!(status["services"]["total"], 2);

    edge.lb.change_config(&edge::yaml(&L2()))?;
    // What has changed in the network may have made the generation that was waited for.
    eventually(PATIENCE, || {
        let faults = edge.lb.status()?["config"]["faults"].to_string();
        anyhow::ensure!(faults == "[]", "{faults}");
        Ok(())
    })?;
    let errors = edge.lb.log_text().matches("SLOTS").count();
    assert!(errors <= 4, "{errors} times in the log");
    Ok(())
}

/// A relative path is watched too.
#[test]
fn a_relative_path_is_watched() -> anyhow::Result<()> {
    let mut edge = Edge::start(L2)?;
    edge.lb.stop()?;
    edge.lb.resume_relative()?;
    let mut specs = L2();
    specs[0].webs = vec![2];
    edge.lb.change_config(&edge::yaml(&specs))?;
    assert_eq!(edge.lb.backends("l2-v4")?.len(), 1);
    Ok(())
}
