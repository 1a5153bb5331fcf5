//! The host's own firewall: the workloads stand for other machines, and none of them is an endpoint.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    eventually, http,
    web::{self, Web},
};

use crate::{PATIENCE, REFUSED, Site};

const FIREWALL: &str = "\
node: {labels: {role: edge}}
host_firewall: {interfaces: [\"veth-app*\"]}
remote_nodes: [10.15.3.2, \"fd15:3::2\"]
";

const RULES: &str = "\
- name: nodes
  nodeSelector: {matchLabels: {role: edge}}
  ingress:
    - fromEntities: [remote-node]
      toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]
  egressDeny:
    - toCIDR: [10.15.2.2/32]
      toPorts: [{ports: [{port: \"8080\", protocol: TCP}]}]
  enableDefaultDeny: {egress: false}
";

const SSH: &str = "    - fromCIDR: [10.15.1.0/24]
      toPorts: [{ports: [{port: \"22\", protocol: TCP}]}]
  egressDeny:
";

/// Other nodes reach port 80 of the host; what it forwards is not its own.
const IN_FORCE: &[(usize, &str, u16, bool)] = &[
    (3, "10.15.3.1", web::PORT, true),
    (3, "fd15:3::1", web::PORT, true),
    (3, "10.15.3.1", web::HEALTH_PORT, false),
    (2, "10.15.2.1", web::PORT, false),
    (2, "fd15:2::1", web::PORT, false),
    (2, "10.15.1.2", web::PORT, true),
    (1, "fd15:2::2", web::PORT, true),
];

/// A connection that stays: somebody who is logged in.
struct Session {
    near: TcpStream,
    far: TcpStream,
}

impl Session {
    fn open(site: &Site) -> anyhow::Result<Self> {
        let at: SocketAddr = "10.15.1.1:22".parse()?;
        let listener = site.host.enter(|| TcpListener::bind(at))??;
        let near = site.apps[0].enter(|| TcpStream::connect_timeout(&at, PATIENCE))??;
        let (far, _) = listener.accept()?;
        for end in [&near, &far] {
            end.set_read_timeout(Some(Duration::from_millis(900)))?;
        }
        Ok(Self { near, far })
    }

    fn lives(&mut self) -> bool {
        let mut byte = [0];
        let there = self.near.write_all(b"x").is_ok() && self.far.read_exact(&mut byte).is_ok();
        there && self.far.write_all(b"y").is_ok() && self.near.read_exact(&mut byte).is_ok()
    }
}

fn from_host(site: &Site, to: &str, port: u16) -> anyhow::Result<bool> {
    let to: SocketAddr = (to.parse::<std::net::IpAddr>()?, port).into();
    let any = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse()?;
    site.host.enter(|| http::get_from(any, to, "/healthz", REFUSED).is_ok())
}

fn import(site: &Site, path: &Path, text: &str, more: &[&str]) -> anyhow::Result<String> {
    fs::write(path, text)?;
    let path = path.to_str().context("a path")?;
    site.daemon.lbctl(&[&["policy", "import", path], more].concat())
}

#[test]
fn the_host_takes_what_its_rules_allow_and_nobody_is_locked_out() -> anyhow::Result<()> {
    let mut site = Site::start("polh", FIREWALL)?;
    let _web = Web::start(&site.host, &site.directory.path().join("web-host"), "host")?;
    let mut session = Session::open(&site)?;
    let open: Vec<_> = IN_FORCE.iter().map(|&(from, to, port, _)| (from, to, port, true)).collect();
    site.expect(&open)?;

    // Without force, whoever is logged in is not cut off; nothing has changed then.
    let file = site.directory.path().join("nodes.yaml");
    let refused = import(&site, &file, RULES, &[]).err().context("it is refused")?.to_string();
    ensure!(refused.contains("22/tcp from 10.15.1.2"), "{refused}");
    site.expect(&open)?;
    ensure!(session.lives(), "before");

    let good = RULES.replace("  egressDeny:\n", SSH);
    import(&site, &file, &good, &[])?;
    site.expect(IN_FORCE)?;
    ensure!(session.lives(), "a rule allows it");
    ensure!(from_host(&site, "10.15.1.2", web::PORT)?, "replies to the host pass");
    ensure!(from_host(&site, "fd15:2::2", web::PORT)?, "replies to the host pass");
    ensure!(!from_host(&site, "10.15.2.2", web::HEALTH_PORT)?, "egress is denied");
    ensure!(from_host(&site, "10.15.2.1", web::PORT)?, "its own addresses");
    let host = site.daemon.get("/v1/endpoints/host")?;
    ensure!(host["attached"] == "tcx" && host["labels"]["role"] == "edge", "{host}");
    let said = site.daemon.lbctl(&["endpoint", "get", "host"])?;
    ensure!(said.contains("veth-app1") && said.contains("veth-app3"), "{said}");
    let forwarded = site.daemon.metric("lb_datapath_packets_total{reason=\"policy_not_host\"")?;
    ensure!(forwarded > 0.0, "{forwarded}");
    let trace = ["policy", "trace", "--to", "host", "--dport", "80/tcp", "--from"];
    let said = site.daemon.lbctl(&[&trace[..], &["remote-node"]].concat())?;
    ensure!(said.contains("ingress of the host role=edge: allowed by rule nodes"), "{said}");
    let said = site.daemon.lbctl(&[&trace[..], &["10.15.2.2"]].concat());
    ensure!(said.is_err(), "the world does not reach it");

    // A restart keeps all of it in force.
    site.daemon.kill9()?;
    site.expect(&IN_FORCE[2..4])?;
    site.daemon.resume()?;
    site.expect(&IN_FORCE[..4])?;
    ensure!(session.lives(), "after a restart");
    site.daemon.expect_quiet()?;

    // Files are guarded as well, and at a start, with nobody to ask, what cuts off is in audit.
    site.daemon.lbctl(&["policy", "delete", "nodes.yaml"])?;
    let bad = format!("{FIREWALL}policies:\n{RULES}");
    site.daemon.write_config(&bad)?;
    eventually(PATIENCE, || {
        let status = site.daemon.status()?.to_string();
        ensure!(status.contains("the host firewall would deny 22/tcp from 10.15.1.2"), "{status}");
        Ok(())
    })?;
    site.expect(&open)?;
    site.daemon.kill9()?;
    site.daemon.resume()?;
    let status = site.daemon.status()?.to_string();
    ensure!(status.contains("the host firewall is in audit"), "{status}");
    site.expect(&open)?;
    ensure!(session.lives(), "in audit");
    let audited = site.daemon.metric("lb_datapath_packets_total{reason=\"policy_audit\"")?;
    ensure!(audited > 0.0, "{audited}");

    // Who means it gets it.
    let meant = bad.replace("[\"veth-app*\"]", "[\"veth-app*\"], force: true");
    site.daemon.change_config(&meant)?;
    site.expect(&IN_FORCE[2..4])?;
    ensure!(!session.lives(), "it was meant");
    site.daemon.silence();
    Ok(())
}
