//! `forwarding: nat`: servers that answer the balancer, and see nobody else.

use anyhow::ensure;
use lb_tests::{
    capture::{Capture, Checksums},
    edge::{Edge, NAT, PATIENCE, expect_all_answer, expect_answered, yaml},
    eventually, http,
    http::Kept,
    lab::{CLIENT_V4, CLIENT_V6, SPARE_V4, SPARE_V6, at},
    web,
};

const VIPS: [&str; 2] = [SPARE_V4, SPARE_V6];

fn kept(edge: &Edge) -> anyhow::Result<Vec<Kept>> {
    edge.client()?.enter(|| {
        let of = |vip| (0..20).map(move |_| Kept::connect(at(vip, web::PORT)));
        VIPS.into_iter().flat_map(of).collect::<anyhow::Result<Vec<_>>>()
    })?
}

/// Requests are answered by every server; the servers see the balancer alone, and every checksum is right.
#[test]
fn every_server_answers_the_balancer() -> anyhow::Result<()> {
    const REQUESTS: usize = 60;
    let edge = Edge::start(NAT)?;
    let at_web = edge.lab.directory().join("web.pcap");
    let at_web = Capture::start(edge.lab.fabric(), "to-web-1", "tcp", &at_web)?;
    let at_client = edge.lab.directory().join("client.pcap");
    let at_client = Capture::start(edge.client()?, "eth0", "tcp", &at_client)?;
    for vip in VIPS {
        expect_all_answer(&edge.requests(vip, REQUESTS)?);
    }
    at_client.until(|packets| {
        let right = Checksums::of(packets).right;
        ensure!(right >= REQUESTS * 2 * 8, "{right} packets");
        Ok(())
    })?;
    let seen = at_web.packets()?;
    for packets in [&seen, &at_client.packets()?] {
        assert_eq!(Checksums::of(packets).wrong, Vec::<String>::new());
    }
    assert!(Checksums::of(&seen).right > 20, "{} packets", seen.len());
    for client in [CLIENT_V4, CLIENT_V6] {
        let named = seen.iter().find(|packet| packet.contains(&format!("{client}.")));
        assert_eq!(named, None);
    }
    edge.lb.expect_quiet()
}

/// A megabyte, in either direction.
#[test]
fn large_bodies() -> anyhow::Result<()> {
    let edge = Edge::start(NAT)?;
    for vip in VIPS {
        edge.client()?.enter(|| -> anyhow::Result<()> {
            let mut kept = Kept::connect(at(vip, web::PORT))?;
            assert_eq!(kept.get("/large")?.len(), web::LARGE);
            assert!(kept.post("/", &vec![b'y'; web::LARGE])?.starts_with(b"web-"));
            Ok(())
        })??;
    }
    Ok(())
}

/// Backends come and go, other settings change, the daemon is killed and comes back: no request fails and
/// no connection breaks.
#[test]
fn changes_under_load() -> anyhow::Result<()> {
    let mut services = NAT();
    for service in &mut services {
        service.webs = vec![1, 2];
    }
    let mut edge = Edge::with(&services)?;
    let mut kept = kept(&edge)?;
    let mut expect_kept = || kept.iter_mut().try_for_each(|kept| kept.get("/").map(drop));
    let load = edge.load(&VIPS)?;
    load.wait_requests(200)?;
    for service in &mut services {
        service.webs = vec![1, 2, 3];
    }
    edge.lb.change_config(&yaml(&services))?;
    eventually(PATIENCE, || edge.lb.ways_known())?;
    load.wait_requests(300)?;
    expect_kept()?;
    for service in &mut services {
        service.webs = vec![2, 3];
    }
    edge.lb.change_config(&yaml(&services))?;
    load.wait_requests(300)?;
    expect_kept()?;
    edge.lb.kill9()?;
    load.wait_requests(300)?;
    edge.lb.resume()?;
    load.wait_requests(300)?;
    expect_kept()?;
    expect_all_answer(&load.stop()?);
    Ok(())
}

/// A larger table takes the connections along.
#[test]
fn a_table_of_another_size() -> anyhow::Result<()> {
    let services = NAT();
    let edge = Edge::with(&services)?;
    let mut kept = kept(&edge)?;
    let larger = "node: {name: edge, nat: {entries: 524288}}";
    edge.lb.change_config(&yaml(&services).replace("node: {name: edge}", larger))?;
    eventually(PATIENCE, || edge.lb.ways_known())?;
    for kept in &mut kept {
        kept.get("/")?;
    }
    for vip in VIPS {
        expect_answered(&edge.requests(vip, 20)?);
    }
    edge.lb.expect_quiet()
}

/// The port at the backends is another one, and there are several addresses for translated packets.
#[test]
fn target_port() -> anyhow::Result<()> {
    let services = NAT();
    let edge = Edge::with(&services)?;
    let other =
        yaml(&services).replace("port: 80, protocol", "port: 8080, target_port: 80, protocol");
    edge.lb.change_config(&other)?;
    for vip in VIPS {
        expect_all_answer(&http::requests(edge.client()?, at(vip, 8080), 60)?);
        assert!(!edge.requests(vip, 1)?.failures.is_empty());
    }
    Ok(())
}

/// A backend uses the service that it stands behind, and gets any of them, itself included.
#[test]
fn hairpin() -> anyhow::Result<()> {
    let edge = Edge::start(NAT)?;
    let web = edge.lab.host("web-1")?;
    for (vip, length, balancer) in [(SPARE_V4, 32, "192.0.2.1"), (SPARE_V6, 128, "2001:db8:2::1")] {
        web.ip(&format!(
            "addr del {vip}/{length} dev lo\nroute add {vip}/{length} via {balancer}\n"
        ))?;
        expect_all_answer(&http::requests(web, at(vip, web::PORT), 60)?);
    }
    edge.lb.expect_quiet()
}
