//! `forwarding: nat`: servers that answer the balancer, and see nobody else.

use std::{
    io::ErrorKind,
    net::{TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::ensure;
use lb_tests::{
    capture::{Capture, Checksums},
    edge::{Edge, NAT, NAT_CROSSED, PATIENCE, expect_all_answer, expect_answered, yaml},
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
    for specs in [NAT, NAT_CROSSED] {
        every_server(&Edge::start(specs)?)?;
    }
    Ok(())
}

fn every_server(edge: &Edge) -> anyhow::Result<()> {
    const REQUESTS: usize = 60;
    let at_web = edge.lab.directory().join("web.pcap");
    let at_web = Capture::start(edge.lab.fabric(), "to-web-1", "tcp", &at_web)?;
    let at_client = edge.lab.directory().join("client.pcap");
    let at_client = Capture::start(edge.client()?, "eth0", "tcp", &at_client)?;
    for vip in VIPS {
        expect_all_answer(&edge.requests(vip, REQUESTS)?);
    }
    at_client.until(|packets| {
        let right = Checksums::of(packets).right;
        // SYN and its answer, the request, its acknowledgement and answer, the reset at the end.
        ensure!(right >= REQUESTS * 2 * 6, "{right} packets");
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

/// What stands in the tables, and one connection that is cut off there.
#[test]
fn conntrack() -> anyhow::Result<()> {
    let edge = Edge::start(NAT)?;
    let mut kept = kept(&edge)?;
    for kept in &mut kept {
        kept.get("/")?;
    }
    let list = |query: &str| edge.lb.get(&format!("/v1/conntrack?{query}"));
    let all = list("state=established")?;
    assert_eq!((&all["total"], all["items"].as_array().map(Vec::len)), (&40.into(), Some(40)));
    for (query, total) in [
        ("service=nat-v4", 20),
        ("service=nat-v4&family=ipv6", 0),
        ("family=ipv6", 20),
        ("port=80&table=nat", 40),
        ("table=flows", 0),
    ] {
        assert_eq!(list(query)?["total"], total, "{query}");
    }
    assert!((40.0..60.0).contains(&edge.lb.metric("lb_nat_entries")?));

    let of = |n: usize, key: &str| all["items"][n][key].as_str().unwrap_or_default().to_owned();
    let (client, vip, nat, web) = (of(0, "client"), of(0, "vip"), of(0, "nat"), of(0, "backend"));
    assert!(all["items"][0]["idle_seconds"].as_u64().is_some_and(|idle| idle < 20), "{all}");
    let page = edge.lb.lbctl(&["conntrack", "get", "tcp", &web, &nat])?;
    assert!(page.contains(&client) && page.contains("established"), "{page}");

    let (address, port) = client.rsplit_once(':').unwrap_or_default();
    let address = address.trim_matches(['[', ']']);
    let said = edge.lb.lbctl(&["conntrack", "flush", "--address", address, "--port", port])?;
    assert_eq!(said.trim(), "removed: 1 connection");
    assert!(edge.lb.lbctl(&["conntrack", "get", "tcp", &client, &vip]).is_err());
    for kept in &mut kept {
        if kept.local()?.to_string() == client {
            kept.set_patience(Duration::from_secs(1))?;
            assert!(kept.get("/").is_err());
        } else {
            kept.get("/")?;
        }
    }
    edge.lb.expect_quiet()
}

/// Four ports and one server: what does not fit is said where somebody looks.
#[test]
fn ports_that_run_out_are_seen() -> anyhow::Result<()> {
    let mut services = NAT();
    services[0].webs = vec![1];
    let edge = Edge::with(&services[1..])?;
    let few = "node: {name: edge, nat: {ports: 2000-2003}}";
    let text = yaml(&services).replace("node: {name: edge}", few);
    edge.lb.change_config(&text)?;
    eventually(PATIENCE, || edge.lb.ways_known())?;
    let (vip, mut held) = (at(SPARE_V4, web::PORT), Vec::new());
    edge.client()?.enter(|| {
        for _ in 0..6 {
            held.extend(TcpStream::connect_timeout(&vip, Duration::from_secs(1)));
        }
    })?;
    assert!((1..=4).contains(&held.len()), "{}", held.len());
    edge.lb.wait_line("NAT: connections get no port")?;
    let page = edge.lb.lbctl(&["status"])?;
    assert!(page.contains("\nwarning     NAT: "), "{page}");
    Ok(())
}

/// A megabyte, in either direction.
#[test]
fn large_bodies() -> anyhow::Result<()> {
    for specs in [NAT, NAT_CROSSED] {
        transfer(&Edge::start(specs)?)?;
    }
    Ok(())
}

fn transfer(edge: &Edge) -> anyhow::Result<()> {
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

/// A port that no server listens on: the server's refusal reaches the client, who believes it.
#[test]
fn a_refused_datagram() -> anyhow::Result<()> {
    for specs in [NAT, NAT_CROSSED] {
        let services = specs();
        let edge = Edge::with(&services)?;
        let more = "ports: [{name: dns, port: 53, protocol: udp}, ";
        edge.lb.change_config(&yaml(&services).replace("ports: [", more))?;
        let packets = edge.lab.directory().join("client.pcap");
        let packets = Capture::start(edge.client()?, "eth0", "icmp or icmp6", &packets)?;
        for vip in VIPS {
            let told = edge.client()?.enter(|| -> anyhow::Result<_> {
                let any = if vip.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
                let socket = UdpSocket::bind(any)?;
                socket.connect(at(vip, 53))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.send(b"hello")?;
                Ok(socket.recv(&mut [0; 16]).map_err(|error| error.kind()))
            })??;
            assert_eq!(told, Err(ErrorKind::ConnectionRefused), "{vip}");
        }
        let refusals = |packets: &[String]| {
            VIPS.into_iter().all(|vip| {
                let from = format!("{vip} > ");
                packets.iter().any(|p| p.contains(&from) && p.contains("unreachable"))
            })
        };
        packets.until(|packets| {
            ensure!(refusals(packets), "{packets:?}");
            Ok(())
        })?;
        edge.lb.expect_quiet()?;
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
