//! A fleet: three balancers that the client's router reaches by equal ways, none of which knows the
//! others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    daemon::Daemon,
    edge::{IPIP, PATIENCE, yaml},
    eventually,
    http::Kept,
    lab::{CLIENT_V4, CLIENT_V6, IPIP_V4, IPIP_V6, Lab, at},
    web,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Connections that are alive while a node is lost and a backend added.
const CONNECTIONS: usize = 10_000;
const THREADS: usize = 8;

/// Nodes and their addresses.
const NODES: [(&str, &str, &str); 3] = [
    ("lb", "192.0.2.1", "2001:db8:2::1"),
    ("lb-2", "192.0.2.2", "2001:db8:2::2"),
    ("lb-3", "192.0.2.3", "2001:db8:2::3"),
];

/// Has the client reach the VIPs by these nodes.
fn route(lab: &Lab, nodes: &[usize]) -> anyhow::Result<()> {
    let ways = |v6: bool| -> String {
        let way = |&n: &usize| format!(" nexthop via {}", if v6 { NODES[n].2 } else { NODES[n].1 });
        nodes.iter().map(way).collect()
    };
    lab.host("client")?.ip(&format!(
        "route replace {IPIP_V4}/32 src {CLIENT_V4}{}\nroute replace {IPIP_V6}/128 src {CLIENT_V6}{}",
        ways(false),
        ways(true)
    ))
}

fn forwarded(node: &Daemon) -> anyhow::Result<f64> {
    node.metric("lb_datapath_packets_total{reason=\"forwarded_tx\"")
}

/// What the threads of the client share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    rounds: AtomicU64,
}

/// Opens connections, and asks all of them again and again: all requests are sent before the first answer
/// is read. Counts connections that broke or changed their server.
fn converse(count: usize, shared: &Shared) -> anyhow::Result<(usize, Vec<String>)> {
    let mut open = Vec::with_capacity(count);
    for n in 0..count {
        let vip = if n % 2 == 0 { IPIP_V4 } else { IPIP_V6 };
        let mut kept = Kept::connect(at(vip, web::PORT))?;
        kept.set_patience(Duration::from_secs(20))?;
        let name = kept.get("/")?;
        open.push(Some((kept, name)));
    }
    let mut broken = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        for slot in &mut open {
            if let Some((kept, _)) = slot
                && let Err(error) = kept.ask("/")
            {
                broken.push(format!("{error:#}"));
                *slot = None;
            }
        }
        for slot in &mut open {
            let Some((kept, name)) = slot else { continue };
            match kept.answer() {
                Ok(now) if now == *name => {}
                Ok(now) => broken.push(format!(
                    "answered by {} and then by {}",
                    String::from_utf8_lossy(name),
                    String::from_utf8_lossy(&now)
                )),
                Err(error) => {
                    broken.push(format!("{error:#}"));
                    *slot = None;
                }
            }
        }
        shared.rounds.fetch_add(1, Ordering::Relaxed);
    }
    Ok((open.len(), broken))
}

/// One of three nodes is lost while a backend is added: no connection breaks, though the flows of the lost
/// node, and by the router's hash others as well, come to nodes that have never seen them.
#[test]
fn a_node_is_lost_while_a_backend_is_added() -> anyhow::Result<()> {
    // One descriptor for each connection, here and in the servers, which inherit the bound.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut lab = Lab::start()?;
    for (name, v4, v6) in &NODES[1..] {
        lab.add_balancer(name, &[v4, v6])?;
    }
    let client = lab.host("client")?;
    client.sysctl("ipv4/fib_multipath_hash_policy", "1")?;
    client.sysctl("ipv6/fib_multipath_hash_policy", "1")?;
    let _decap = lab.decap()?;
    let mut specs = IPIP();
    for spec in &mut specs {
        spec.webs = vec![1, 2];
    }
    let mut nodes = NODES
        .iter()
        .map(|(name, ..)| lab.daemon(name, &yaml(&specs)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for node in &nodes {
        eventually(PATIENCE, || node.ways_known())?;
    }
    route(&lab, &[0, 1, 2])?;

    let shared = Arc::new(Shared::default());
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (entrance, shared) = (client.entrance(), Arc::clone(&shared));
            thread::spawn(move || {
                entrance.enter()?;
                converse(CONNECTIONS / THREADS, &shared)
            })
        })
        .collect();
    let wait_rounds = |more: u64| {
        let wanted = shared.rounds.load(Ordering::Relaxed) + more * THREADS as u64;
        eventually(Duration::from_secs(120), || {
            ensure!(threads.iter().all(|t| !t.is_finished()), "a thread of the client has ended");
            let rounds = shared.rounds.load(Ordering::Relaxed);
            ensure!(rounds >= wanted, "{rounds} of {wanted} rounds");
            Ok(())
        })
    };
    wait_rounds(2)?;
    for (node, (name, ..)) in nodes.iter().zip(NODES) {
        ensure!(forwarded(node)? > 500.0, "{name} is not used");
    }

    // The last one is lost before it hears of the change, the first hears of it after the loss.
    for spec in &mut specs {
        spec.webs = vec![1, 2, 3];
    }
    nodes[1].change_config(&yaml(&specs))?;
    lab.fabric().ip("link set to-lb-3 down")?;
    route(&lab, &[0, 1])?;
    nodes[0].change_config(&yaml(&specs))?;
    wait_rounds(3)?;
    let before = forwarded(&nodes[0])?;
    wait_rounds(1)?;
    ensure!(forwarded(&nodes[0])? > before, "the first node is not used any more");

    shared.stop.store(true, Ordering::Relaxed);
    let (mut all, mut broken) = (0, Vec::new());
    for thread in threads {
        let (count, bad) = thread.join().ok().context("a thread of the client panicked")??;
        all += count;
        broken.extend(bad);
    }
    assert_eq!(all, CONNECTIONS);
    assert!(broken.is_empty(), "{} of {all}: {:#?}", broken.len(), &broken[..broken.len().min(10)]);
    // New connections reach the new backend.
    let moving = nodes[0].get("/v1/services/ipip-v4")?;
    ensure!(moving["backends"].as_array().is_some_and(|b| b.len() == 3), "{moving}");
    for node in &mut nodes {
        node.silence();
    }
    Ok(())
}
