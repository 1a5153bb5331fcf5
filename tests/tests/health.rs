//! Servers that fail leave their services and come back.

use anyhow::ensure;
use lb_tests::{
    edge::{self, Edge, PATIENCE, Specs, expect_all_answer, expect_answered},
    eventually,
    lab::{IPIP_V4, L2_V4, L2_V6},
};

fn checked(specs: Specs, probe: &str) -> Vec<edge::Spec> {
    let check = format!(
        "    health_check: {{{probe}, interval: 200ms, timeout: 150ms, rise: 2, fall: 2}}\n"
    );
    let mut services = specs();
    for service in &mut services {
        service.more.clone_from(&check);
    }
    services
}

fn wait_health(edge: &Edge, service: &str, web: &str, health: &str) -> anyhow::Result<()> {
    eventually(PATIENCE, || {
        let backends = edge.lb.backends(service)?;
        ensure!(backends.get(web).is_some_and(|one| one["health"] == health), "{backends:?}");
        Ok(())
    })
}

/// A server that is gone is found by its health check; from then on no request fails.
#[test]
fn a_dead_server_leaves_and_comes_back() -> anyhow::Result<()> {
    let probe = "http: {port: 8080, path: /healthz, expect: 200}";
    let mut edge = Edge::with(&checked(edge::L2, probe))?;
    for service in ["l2-v4", "l2-v6"] {
        for web in ["web-1", "web-2", "web-3"] {
            wait_health(&edge, service, web, "up")?;
        }
    }
    edge.lab.web("web-2")?.kill()?;
    for service in ["l2-v4", "l2-v6"] {
        wait_health(&edge, service, "web-2", "down")?;
        assert!(edge.lb.backends(service)?["web-2"]["health_reason"].is_string());
    }
    for vip in [L2_V4, L2_V6] {
        let tally = edge.requests(vip, 60)?;
        expect_answered(&tally);
        assert_eq!(tally.answers.len(), 2, "{:?}", tally.answers);
    }

    assert_eq!(edge.lb.status()?["services"]["backends"]["serving"], 4);
    for web in ["web-1", "web-3"] {
        edge.lab.web(web)?.kill()?;
        wait_health(&edge, "l2-v4", web, "down")?;
    }
    let serving = edge.lb.metric("lb_service_serving_backends{service=\"l2-v4\"}")?;
    assert!(serving < 0.5, "{serving} backends serve");
    assert!(edge.lb.status()?["services"]["without_backend"].as_u64() >= Some(1));
    for web in ["web-1", "web-3"] {
        edge.lab.web(web)?.resume()?;
        wait_health(&edge, "l2-v4", web, "up")?;
    }

    edge.lab.web("web-2")?.resume()?;
    for (service, vip) in [("l2-v4", L2_V4), ("l2-v6", L2_V6)] {
        wait_health(&edge, service, "web-2", "up")?;
        expect_all_answer(&edge.requests(vip, 60)?);
    }
    Ok(())
}

/// A server that says so itself leaves without one failed request: it still answers those that come
/// before it is found out.
#[test]
fn a_failing_check_costs_no_request() -> anyhow::Result<()> {
    let probe = "http: {port: 8080, path: /healthz, expect: 200}";
    let mut edge = Edge::with(&checked(edge::IPIP, probe))?;
    wait_health(&edge, "ipip-v4", "web-1", "up")?;
    let load = edge.load(&[IPIP_V4])?;
    edge.lab.web("web-1")?.set_healthy(false)?;
    wait_health(&edge, "ipip-v4", "web-1", "down")?;
    load.wait_requests(200)?;
    edge.lab.web("web-1")?.set_healthy(true)?;
    wait_health(&edge, "ipip-v4", "web-1", "up")?;
    load.wait_requests(200)?;
    expect_all_answer(&load.stop()?);
    Ok(())
}

/// The TCP check finds a closed port.
#[test]
fn tcp_checks() -> anyhow::Result<()> {
    let mut edge = Edge::with(&checked(edge::L2, "tcp: {port: 80}"))?;
    wait_health(&edge, "l2-v4", "web-3", "up")?;
    edge.lab.web("web-3")?.kill()?;
    wait_health(&edge, "l2-v4", "web-3", "down")?;
    let tally = edge.requests(L2_V4, 40)?;
    expect_answered(&tally);
    assert!(!tally.answers.contains_key("web-3"), "{:?}", tally.answers);
    Ok(())
}
