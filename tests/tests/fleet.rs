//! A fleet: three balancers that the client's router reaches by equal ways, none of which knows the
//! others.

use anyhow::ensure;
use lb_tests::{
    crowd::{self, Crowd},
    daemon::Daemon,
    edge::{IPIP, PATIENCE, yaml},
    eventually,
    lab::{CLIENT_V4, CLIENT_V6, IPIP_V4, IPIP_V6, Lab},
};

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

/// One of three nodes is lost while a backend is added: no connection breaks, though the flows of the lost
/// node, and by the router's hash others as well, come to nodes that have never seen them.
#[test]
fn a_node_is_lost_while_a_backend_is_added() -> anyhow::Result<()> {
    crowd::raise_limit()?;
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

    let crowd = Crowd::start(client, &[IPIP_V4, IPIP_V6], 10_000);
    crowd.wait_rounds(2)?;
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
    crowd.wait_rounds(3)?;
    let before = forwarded(&nodes[0])?;
    crowd.wait_rounds(1)?;
    ensure!(forwarded(&nodes[0])? > before, "the first node is not used any more");

    crowd.expect_whole()?;
    // New connections reach the new backend.
    let moving = nodes[0].get("/v1/services/ipip-v4")?;
    ensure!(moving["backends"].as_array().is_some_and(|b| b.len() == 3), "{moving}");
    for node in &mut nodes {
        node.silence();
    }
    Ok(())
}
