//! `second_chance`: connections live on when their balancer knows nothing of them and takes their slot for
//! another backend's.

use anyhow::{Context as _, ensure};
use lb_tests::{
    daemon::Daemon,
    edge::{Edge, PATIENCE, Spec, spec, yaml},
    eventually,
    http::Kept,
    lab::{IPIP_V4, IPIP_V6, WEBS, at},
    web,
};

const CONNECTIONS: usize = 40;

fn specs(webs: &[usize], second: bool) -> Vec<Spec> {
    let mut both = vec![spec("v4", IPIP_V4, "gue", false), spec("v6", IPIP_V6, "gue", true)];
    for spec in &mut both {
        spec.webs = webs.to_vec();
        spec.more = format!("    second_chance: {second}\n");
    }
    both
}

fn count(daemon: &Daemon, reason: &str) -> f64 {
    daemon
        .metric(&format!("lb_datapath_packets_total{{reason=\"{reason}\""))
        .expect("every reason has a series")
}

/// The balancer loses its tables and starts with one backend alone; then the second one comes back, to which
/// half of the connections belong. For the balancer their slots move at this moment, and segments are for the
/// previous backend. Gives the number of connections that still live.
fn survivors(second: bool) -> anyhow::Result<(usize, Edge)> {
    let mut edge = Edge::with(&specs(&[1, 2], second))?;
    for name in WEBS {
        for family in ["ipv4", "ipv6"] {
            edge.lab.host(name)?.sysctl(&format!("{family}/conf/all/forwarding"), "1")?;
        }
    }
    let mut kept = Vec::new();
    for vip in [IPIP_V4, IPIP_V6] {
        let open = edge.client()?.enter(|| {
            (0..CONNECTIONS / 2)
                .map(|_| {
                    let mut kept = Kept::connect(at(vip, web::PORT))?;
                    let name = kept.get("/")?;
                    Ok((kept, name))
                })
                .collect::<anyhow::Result<Vec<_>>>()
        })??;
        for web in ["web-1\n", "web-2\n"] {
            ensure!(open.iter().any(|(_, name)| name == web.as_bytes()), "{web} has none");
        }
        kept.extend(open);
    }

    edge.lb.stop()?;
    edge.lb.clean_up()?;
    edge.lb.write_config(&yaml(&specs(&[1], second)))?;
    edge.lb.resume()?;
    eventually(PATIENCE, || edge.lb.ways_known())?;
    edge.lb.change_config(&yaml(&specs(&[1, 2], second)))?;
    eventually(PATIENCE, || {
        edge.lb.ways_known()?;
        let service = edge.lb.get("/v1/services/v4")?;
        ensure!(service["backends"].as_array().is_some_and(|b| b.len() == 2), "{service}");
        Ok(())
    })?;
    let mut alive = 0;
    for (connection, name) in &mut kept {
        match connection.get("/") {
            Ok(now) => {
                ensure!(now == *name, "another server answers");
                alive += 1;
            }
            Err(error) if second => return Err(error.context("a connection broke")),
            Err(_) => {}
        }
    }
    Ok((alive, edge))
}

#[test]
fn connections_that_the_balancer_has_forgotten() -> anyhow::Result<()> {
    let (alive, edge) = survivors(true)?;
    assert_eq!(alive, CONNECTIONS);
    let first = edge.decap.first().context("web-1 has a daemon")?;
    let handed = count(first, "handed_on") + count(first, "handed_on_by_host");
    assert!(handed > 10.0, "{handed}");
    edge.lb.expect_quiet()?;
    first.expect_quiet()
}

/// What it is for: without it they break.
#[test]
fn without_a_second_chance() -> anyhow::Result<()> {
    let (alive, _edge) = survivors(false)?;
    assert!(alive < CONNECTIONS, "all of {alive} live: this test shows nothing");
    Ok(())
}
