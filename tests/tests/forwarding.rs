//! Packets' way: requests are answered by all backends on both families and for every forwarding,
//! blocked sources are not, and every checksum on the way is right.

use std::time::Duration;

use anyhow::ensure;
use lb_tests::{
    capture::{Capture, Checksums},
    edge::{self, Edge, PATIENCE, expect_all_answer, expect_answered},
    eventually, http,
    lab::{
        BLOCKED_V4, BLOCKED_V6, CLIENT_V4, CLIENT_V6, IPIP_V4, IPIP_V6, L2_V4, L2_V6, Lab,
        SPARE_V4, SPARE_V6, at,
    },
    web::{self, Web},
};

/// Service and backends of the same family, encapsulated.
#[test]
fn ipip_in_the_same_family() -> anyhow::Result<()> {
    let edge = Edge::start(edge::IPIP)?;
    for vip in [IPIP_V4, IPIP_V6] {
        expect_all_answer(&edge.requests(vip, 90)?);
    }
    edge.lb.expect_quiet()
}

/// IPv4 services with IPv6 backends, and the other way round.
#[test]
fn ipip_in_the_other_family() -> anyhow::Result<()> {
    let edge = Edge::start(edge::IPIP_CROSSED)?;
    for vip in [SPARE_V4, SPARE_V6] {
        expect_all_answer(&edge.requests(vip, 90)?);
    }
    edge.lb.expect_quiet()
}

/// GUE and Geneve, IPv4 and IPv6 in either.
#[test]
fn udp_tunnels_in_every_combination_of_families() -> anyhow::Result<()> {
    for specs in [edge::GUE, edge::GENEVE] {
        let edge = Edge::start(specs)?;
        for vip in [IPIP_V4, IPIP_V6, SPARE_V4, SPARE_V6] {
            expect_all_answer(&edge.requests(vip, 60)?);
        }
        edge.lb.expect_quiet()?;
    }
    Ok(())
}

/// One of the backends is the balancer itself: it answers what falls to it, and forwards the rest.
#[test]
fn a_backend_on_the_balancer_itself() -> anyhow::Result<()> {
    let lab = Lab::start()?;
    let host = lab.host("lb")?;
    host.ip(&format!("addr add {IPIP_V4}/32 dev lo\naddr add {IPIP_V6}/128 dev lo nodad"))?;
    let _here = Web::start(host, &lab.directory().join("lb").join("nginx"), "lb")?;
    let decap = lab.decap()?;
    let mut text = edge::yaml(&edge::IPIP());
    for (there, here) in [("192.0.2.11", "192.0.2.1"), ("2001:db8:2::11", "2001:db8:2::1")] {
        let line = format!("{{name: web-1, address: \"{there}\"}}");
        assert!(text.contains(&line));
        text = text.replace(&line, &format!("{{name: here, address: \"{here}\"}}"));
    }
    let lb = lab.daemon("lb", &text)?;
    eventually(PATIENCE, || lb.ways_known())?;
    let edge = Edge { lb, decap, lab };
    for vip in [IPIP_V4, IPIP_V6] {
        let tally = edge.requests(vip, 90)?;
        expect_answered(&tally);
        let who: Vec<&str> = tally.answers.keys().map(String::as_str).collect();
        assert_eq!(who, ["lb", "web-2", "web-3"]);
    }
    assert!(edge.lb.metric("lb_datapath_packets_total{reason=\"delivered_locally\"")? > 90.0);
    assert_eq!(edge.lb.backends("ipip-v4")?["here"]["next_hop"]["local"], true);
    assert!(edge.lb.lbctl(&["backend", "list"])?.contains("this machine"));
    edge.lb.expect_quiet()
}

/// Only the MAC is rewritten.
#[test]
fn l2() -> anyhow::Result<()> {
    let edge = Edge::start(edge::L2)?;
    for vip in [L2_V4, L2_V6] {
        expect_all_answer(&edge.requests(vip, 90)?);
    }
    edge.lb.expect_quiet()
}

/// The programs are in the driver, as asked.
#[test]
fn attached_natively() -> anyhow::Result<()> {
    let edge = Edge::start(edge::L2)?;
    assert_eq!(edge.lb.loaded()?.mode, 1);
    assert_eq!(edge.lb.status()?["interfaces"][0]["attached"], "native");
    Ok(())
}

/// A blocked source gets no answer, is counted on its list, and everybody else is served.
#[test]
fn blocked_sources_are_dropped_and_counted() -> anyhow::Result<()> {
    let edge = Edge::start(edge::L2)?;
    for (source, vip) in [(BLOCKED_V4, L2_V4), (BLOCKED_V6, L2_V6)] {
        let before = edge.lb.list_packets("blocked")?;
        let answer = edge.client()?.enter(|| {
            let source = source.parse().expect("an address");
            http::get_from(source, at(vip, web::PORT), "/", Duration::from_millis(300))
        })?;
        assert!(answer.is_err(), "{source} was answered");
        assert!(edge.lb.list_packets("blocked")? > before, "{source} was not counted");
    }
    for vip in [L2_V4, L2_V6] {
        expect_answered(&edge.requests(vip, 10)?);
    }
    Ok(())
}

/// What is not for the appliance passes untouched: the host itself answers.
#[test]
fn other_packets_pass() -> anyhow::Result<()> {
    let edge = Edge::start(edge::L2)?;
    let client = edge.client()?;
    // The source is named: the kernel would choose the blocked address, which is nearer.
    for (source, address) in [(CLIENT_V4, "192.0.2.1"), (CLIENT_V6, "2001:db8:2::1")] {
        client.enter(|| {
            let source = source.parse().expect("an address");
            let patience = Duration::from_secs(5);
            let refused =
                http::get_from(source, at(address, web::PORT), "/", patience).unwrap_err();
            // A reset from the host's stack: nobody listens there.
            assert!(format!("{refused:#}").contains("refused"), "{refused:#}");
        })?;
    }
    Ok(())
}

/// Packets with an outer header.
fn encapsulated(packets: &[String]) -> usize {
    const SIGNS: [&str; 6] = [
        "proto IPIP",
        "proto IPv6 (41)",
        "next-header IPIP",
        "next-header IPv6",
        "Geneve",
        ".6080: ",
    ];
    packets.iter().filter(|packet| SIGNS.iter().any(|sign| packet.contains(sign))).count()
}

/// Every packet that leaves the balancer and every answer has right checksums, and the capture holds
/// what it should: outer headers towards the servers.
#[test]
fn every_checksum_is_right() -> anyhow::Result<()> {
    const REQUESTS: usize = 30;
    // Of each connection at least: SYN, the request, the reset at the end.
    const LEAST: usize = 2 * REQUESTS * 3;
    for (config, vips, outer) in [
        (edge::IPIP, [IPIP_V4, IPIP_V6], true),
        (edge::IPIP_CROSSED, [SPARE_V4, SPARE_V6], true),
        (edge::GUE, [IPIP_V4, SPARE_V6], true),
        (edge::GENEVE, [SPARE_V4, IPIP_V6], true),
        (edge::L2, [L2_V4, L2_V6], false),
    ] {
        let edge = Edge::start(config)?;
        let file = edge.lab.directory().join("balancer.pcap");
        let balancer = Capture::start(edge.lab.fabric(), "to-lb", "ip or ip6", &file)?;
        let file = edge.lab.directory().join("client.pcap");
        let client = Capture::start(edge.client()?, "eth0", "tcp", &file)?;
        for vip in vips {
            expect_answered(&edge.requests(vip, REQUESTS)?);
        }
        let expected = |packets: &[String]| {
            let sums = Checksums::of(packets);
            ensure!(sums.right >= LEAST, "{} of {} packets", sums.right, packets.len());
            Ok(())
        };
        client.until(expected)?;
        balancer.until(|packets| {
            let outers = encapsulated(packets);
            ensure!(!outer || outers >= LEAST, "{outers} of {} packets", packets.len());
            expected(packets)
        })?;
        let forwarded = balancer.packets()?;
        for packets in [&forwarded, &client.packets()?] {
            let sums = Checksums::of(packets);
            assert_eq!(sums.wrong, Vec::<String>::new());
            assert!(sums.right >= LEAST, "{} of {} packets", sums.right, packets.len());
        }
        let outers = encapsulated(&forwarded);
        assert_eq!(outers >= LEAST, outer, "{outers}\n{}", forwarded.join("\n"));
    }
    Ok(())
}

/// A body of a megabyte arrives, in either direction.
#[test]
fn large_bodies() -> anyhow::Result<()> {
    let edge = Edge::start(edge::L2)?;
    for vip in [L2_V4, L2_V6] {
        edge.client()?.enter(|| -> anyhow::Result<()> {
            let mut kept = http::Kept::connect(at(vip, web::PORT))?;
            assert_eq!(kept.get("/large")?.len(), web::LARGE);
            assert!(kept.post("/", &vec![b'y'; web::LARGE])?.starts_with(b"web-"));
            Ok(())
        })??;
    }
    let edge = Edge::start(edge::IPIP)?;
    for vip in [IPIP_V4, IPIP_V6] {
        edge.client()?.enter(|| -> anyhow::Result<()> {
            let mut kept = http::Kept::connect(at(vip, web::PORT))?;
            assert_eq!(kept.get("/large")?.len(), web::LARGE);
            assert!(kept.post("/", &vec![b'y'; web::LARGE])?.starts_with(b"web-"));
            Ok(())
        })??;
    }
    Ok(())
}
