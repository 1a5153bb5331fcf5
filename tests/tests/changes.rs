//! Changes of the configuration under load: not one failed request, not one broken connection.

use anyhow::ensure;
use lb_tests::{
    crowd::{self, Crowd},
    edge::{self, Edge, IPIP, L2, NAT, PATIENCE, expect_all_answer, expect_answered, spec, yaml},
    eventually,
    http::Kept,
    lab::{IPIP_V4, IPIP_V6, L2_V4, L2_V6, SPARE_V4, SPARE_V6, at},
    web,
};

/// Established connections with the name of who answers them.
fn connections(edge: &Edge, vip: &str, count: usize) -> anyhow::Result<Vec<(Kept, Vec<u8>)>> {
    edge.client()?.enter(|| {
        (0..count)
            .map(|_| {
                let mut kept = Kept::connect(at(vip, web::PORT))?;
                let name = kept.get("/")?;
                Ok((kept, name))
            })
            .collect()
    })?
}

/// All of them still live, and with the same server.
fn expect_kept(connections: &mut [(Kept, Vec<u8>)]) -> anyhow::Result<()> {
    for (connection, name) in connections {
        let now = connection.get("/")?;
        assert_eq!(String::from_utf8_lossy(&now), String::from_utf8_lossy(name));
    }
    Ok(())
}

/// A backend comes and another one goes; connections to either stay with the server they have.
fn backends_come_and_go(specs: edge::Specs, vips: [&str; 2]) -> anyhow::Result<()> {
    let mut services = specs();
    for service in &mut services {
        service.webs = vec![1, 2];
    }
    let edge = Edge::with(&services)?;
    let mut kept = connections(&edge, vips[0], 30)?;
    kept.extend(connections(&edge, vips[1], 30)?);

    let load = edge.load(&vips)?;
    load.wait_requests(200)?;
    for service in &mut services {
        service.webs = vec![1, 2, 3];
    }
    edge.lb.change_config(&yaml(&services))?;
    eventually(PATIENCE, || edge.lb.ways_known())?;
    load.wait_requests(400)?;
    expect_kept(&mut kept)?;

    for service in &mut services {
        service.webs = vec![2, 3];
    }
    edge.lb.change_config(&yaml(&services))?;
    load.wait_requests(400)?;
    expect_kept(&mut kept)?;
    expect_all_answer(&load.stop()?);

    // The one that was removed takes no new connection.
    let tally = edge.requests(vips[0], 60)?;
    expect_answered(&tally);
    assert!(!tally.answers.contains_key("web-1"), "{:?}", tally.answers);
    Ok(())
}

#[test]
fn backends_come_and_go_with_ipip() -> anyhow::Result<()> {
    backends_come_and_go(IPIP, [IPIP_V4, IPIP_V6])
}

#[test]
fn backends_come_and_go_with_l2() -> anyhow::Result<()> {
    backends_come_and_go(L2, [L2_V4, L2_V6])
}

/// Other services may come, change and go.
#[test]
fn another_service_changes() -> anyhow::Result<()> {
    let mut services = L2();
    let edge = Edge::with(&services)?;
    let mut kept = connections(&edge, L2_V4, 30)?;
    let load = edge.load(&[L2_V4, L2_V6])?;

    services.push(spec("other", SPARE_V4, "l2", false));
    edge.lb.change_config(&yaml(&services))?;
    eventually(PATIENCE, || edge.lb.ways_known())?;
    expect_all_answer(&edge.requests(SPARE_V4, 60)?);
    services[2].webs = vec![3];
    edge.lb.change_config(&yaml(&services))?;
    load.wait_requests(200)?;
    services.pop();
    edge.lb.change_config(&yaml(&services))?;
    load.wait_requests(200)?;

    expect_all_answer(&load.stop()?);
    expect_kept(&mut kept)?;
    edge.lb.expect_quiet()
}

/// One change after the other among ten thousand connections with requests under way: a backend is added, one
/// drains, another service comes and goes, the daemon is killed and started again, and stopped and started again.
/// Not one connection breaks or changes its server.
#[test]
fn ten_thousand_connections_live_through_every_change() -> anyhow::Result<()> {
    crowd::raise_limit()?;
    let mut services = IPIP();
    for service in &mut services {
        service.webs = vec![1, 2];
    }
    let mut edge = Edge::with(&services)?;
    let crowd = Crowd::start(edge.client()?, &[IPIP_V4, IPIP_V6], 10_000);
    crowd.wait_rounds(1)?;

    for service in &mut services {
        service.webs = vec![1, 2, 3];
    }
    edge.lb.change_config(&yaml(&services))?;
    eventually(PATIENCE, || edge.lb.ways_known())?;
    crowd.wait_rounds(1)?;
    expect_all_answer(&edge.requests(IPIP_V4, 60)?);

    let draining = |services: &[edge::Spec]| {
        yaml(services).replace("{name: web-1,", "{name: web-1, state: draining,")
    };
    edge.lb.change_config(&draining(&services))?;
    crowd.wait_rounds(1)?;
    let tally = edge.requests(IPIP_V4, 60)?;
    expect_answered(&tally);
    assert!(!tally.answers.contains_key("web-1"), "{:?}", tally.answers);

    services.push(spec("other", SPARE_V4, "ipip", false));
    edge.lb.change_config(&draining(&services))?;
    eventually(PATIENCE, || edge.lb.ways_known())?;
    expect_answered(&edge.requests(SPARE_V4, 60)?);
    services.pop();
    edge.lb.change_config(&draining(&services))?;
    crowd.wait_rounds(1)?;

    edge.lb.kill9()?;
    crowd.wait_rounds(1)?;
    edge.lb.resume()?;
    crowd.wait_rounds(1)?;

    edge.lb.stop()?;
    crowd.wait_rounds(1)?;
    edge.lb.resume()?;
    crowd.wait_rounds(1)?;
    crowd.expect_whole()?;
    edge.lb.silence();
    Ok(())
}

/// A group of servers that has all clients is taken out of the configuration, and its server becomes one of the others:
/// connections with requests under way stay with it, over a restart as well. New ones go to all.
fn a_group_goes(specs: edge::Specs, vips: [&str; 2]) -> anyhow::Result<()> {
    crowd::raise_limit()?;
    let mut services = specs();
    for service in &mut services {
        "    source_routes: [{prefixes: [0.0.0.0/0, \"::/0\"], group: old}]\n"
            .clone_into(&mut service.more);
    }
    let grouped = yaml(&services)
        .lines()
        .map(|line| match line.contains("name: web-3,") {
            true => line.replace('}', ", group: old}\n"),
            false => format!("{line}\n"),
        })
        .collect::<String>();
    let plain = yaml(&specs());
    let mut edge = Edge::with(&specs())?;
    edge.lb.change_config(&grouped)?;
    eventually(PATIENCE, || edge.lb.ways_known())?;
    for vip in vips {
        let tally = edge.requests(vip, 20)?;
        expect_answered(&tally);
        assert!(tally.answers.keys().eq(["web-3"]), "{:?}", tally.answers);
    }
    let crowd = Crowd::start(edge.client()?, &vips, 2_000);
    crowd.wait_rounds(1)?;

    edge.lb.change_config(&plain)?;
    crowd.wait_rounds(1)?;
    for vip in vips {
        expect_all_answer(&edge.requests(vip, 60)?);
    }
    edge.lb.kill9()?;
    edge.lb.resume()?;
    crowd.wait_rounds(1)?;
    edge.lb.change_config(&plain.replace("name: web-1,", "name: web-1, weight: 50,"))?;
    crowd.wait_rounds(1)?;
    crowd.expect_whole()?;
    edge.lb.silence();
    Ok(())
}

#[test]
fn a_group_goes_and_its_connections_stay() -> anyhow::Result<()> {
    a_group_goes(IPIP, [IPIP_V4, IPIP_V6])
}

#[test]
fn a_group_goes_and_its_connections_stay_behind_nat() -> anyhow::Result<()> {
    a_group_goes(NAT, [SPARE_V4, SPARE_V6])
}

/// A file with a fault changes nothing, is named in the status with its place, and is forgotten when
/// it is mended.
#[test]
fn a_bad_file_changes_nothing() -> anyhow::Result<()> {
    let services = L2();
    let edge = Edge::with(&services)?;
    let good = yaml(&services);
    let generation = edge.lb.status()?["config"]["generation"].clone();
    for (bad, named) in [
        (good.replace("forwarding: l2", "forwarding: l3"), "l2"),
        (good.replace("backends:", "backend:"), "backends"),
        ("services: [".to_owned(), "not YAML"),
    ] {
        edge.lb.write_config(&bad)?;
        eventually(PATIENCE, || {
            let status = edge.lb.status()?;
            let faults = status["config"]["faults"].to_string();
            ensure!(faults.contains("lb.yaml:"), "no place: {faults}");
            ensure!(faults.contains(named), "not {named}: {faults}");
            Ok(())
        })?;
        assert_eq!(edge.lb.status()?["config"]["generation"], generation);
        expect_answered(&edge.requests(L2_V4, 10)?);
    }
    edge.lb.write_config(&good)?;
    eventually(PATIENCE, || {
        let status = edge.lb.status()?;
        ensure!(status["config"]["faults"].as_array().is_some_and(Vec::is_empty), "{status}");
        Ok(())
    })?;
    expect_all_answer(&edge.requests(L2_V4, 60)?);
    Ok(())
}
