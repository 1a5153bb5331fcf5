//! Names: what endpoints learn from DNS is what rules let them reach.

use std::net::IpAddr;

use anyhow::ensure;
use lb_tests::{
    dns::{self, Dns},
    eventually, http, web,
};

use crate::{PATIENCE, Site};

/// `app1` may ask `app2`, which is no endpoint here, for names, and reach what `*.example.org` and `one.net` are.
const BY_NAME: &str = "\
endpoints:
  - {name: app1, labels: {id: app1}, addresses: [10.15.1.2], interface: veth-app1}
policy_fqdn: {min_ttl: 1s}
policies:
  - name: by-name
    endpointSelector: {matchLabels: {id: app1}}
    egress:
      - toCIDR: [10.15.2.2/32]
        toPorts: [{ports: [{port: \"53\", protocol: UDP}]}]
      - toFQDNs: [{matchPattern: \"*.example.org\"}, {matchName: one.net}]
        toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]
";

/// Addresses count once DNS says so to an endpoint whose rules select the name, for as long as it says or
/// somebody uses them, and over a restart.
#[test]
fn names_are_learned_from_dns() -> anyhow::Result<()> {
    let mut site = Site::start("poln", BY_NAME)?;
    let (server, web): (IpAddr, IpAddr) = ("10.15.2.2".parse()?, "10.15.3.2".parse()?);
    let dns = Dns::start(&site.apps[1], server)?;
    for (name, ttl) in [("www.example.org", 300), ("bank.example.com", 300), ("one.net", 1)] {
        dns.set(name, &[web], ttl);
    }
    let ask = |site: &Site, name: &str| dns::ask(&site.apps[0], server, name);
    let learned = |site: &Site| {
        let known = site.daemon.get("/v1/policy-names")?;
        anyhow::Ok(known["items"].as_array().map_or(0, Vec::len))
    };
    let closed = (1, "10.15.3.2", web::PORT, false);
    let open = (1, "10.15.3.2", web::PORT, true);
    site.expect(&[closed])?;
    ensure!(ask(&site, "bank.example.com")? == Some(1), "an answer");
    let unwanted = "lb_policy_fqdn_answers_total{result=\"unwanted\"";
    eventually(PATIENCE, || {
        ensure!(site.daemon.metric(unwanted)? >= 1.0, "not looked at");
        Ok(())
    })?;
    site.expect(&[closed])?;

    // What only DNS says to somebody else, and what nobody asked for, does not count.
    ensure!(dns::ask(&site.apps[2], server, "www.example.org")? == Some(1), "an answer");
    site.expect(&[closed])?;

    ensure!(ask(&site, "www.example.org")? == Some(1), "an answer");
    eventually(PATIENCE, || {
        ensure!(learned(&site)? == 1, "not learned");
        Ok(())
    })?;
    site.expect(&[open, (1, "10.15.3.2", web::HEALTH_PORT, false)])?;
    let said = site.daemon.lbctl(&["policy", "fqdn"])?;
    ensure!(said.contains("www.example.org") && said.contains("*.example.org"), "{said}");
    let said = site.daemon.lbctl(&[
        "policy",
        "trace",
        "--from",
        "app1",
        "--to",
        "10.15.3.2",
        "--dport",
        "80/tcp",
    ])?;
    ensure!(said.contains("by-name"), "{said}");

    // What was learned is kept, and in force while the daemon is gone.
    site.daemon.stop()?;
    site.expect(&[open])?;
    site.daemon.resume()?;
    site.expect(&[open])?;

    // A name whose time is over is forgotten, but not while a connection uses its address.
    site.daemon.change_config(&BY_NAME.replace("*.example.org", "*.example.net"))?;
    eventually(PATIENCE, || site.expect(&[closed]))?;
    ensure!(ask(&site, "one.net")? == Some(1), "an answer");
    let mut kept = site.apps[0]
        .enter(|| eventually(PATIENCE, || http::Kept::connect((web, web::PORT).into())))??;
    kept.get("/")?;
    eventually(PATIENCE, || {
        let said = site.daemon.lbctl(&["policy", "fqdn"])?;
        ensure!(said.lines().any(|l| l.contains("one.net") && l.contains("in use")), "{said}");
        Ok(())
    })?;
    kept.get("/")?;
    site.daemon.expect_quiet()
}
