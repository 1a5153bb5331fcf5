//! Identity policy between real workloads: a daemon on a host that routes for three of them, and
//! connections that are made or not.
//!
//! ```text
//!   app1 --veth-app1-- host --veth-app2-- app2
//!                        +----veth-app3-- app3
//! ```

mod foreign;
mod host;
mod names;
mod replaced;

use std::{
    fs,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    daemon::Daemon,
    eventually, http,
    lab::BpfDirectory,
    netns::Namespace,
    rig::need_root,
    web::{self, Web},
};

/// How long a connection may take that is to be made.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one is tried that is not: the first SYN and one more.
const REFUSED: Duration = Duration::from_millis(1300);

/// The example that is published with the rules' format, as it stands.
const PUBLISHED: &str = r#"[{
    "labels": [{"key": "name", "value": "l3-rule"}],
    "endpointSelector": {"matchLabels": {"id": "app1"}},
    "ingress": [{
        "fromEndpoints": [{"matchLabels": {"id": "app2"}}],
        "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]
    }]
}]
"#;

const ENDPOINTS: &str = "\
endpoints:
  - {name: app1, labels: {id: app1}, addresses: [10.15.1.2, \"fd15:1::2\"], interface: veth-app1}
  - {name: app2, labels: {id: app2}, addresses: [10.15.2.2, \"fd15:2::2\"], interface: veth-app2}
  - {name: app3, labels: {id: app3}, addresses: [10.15.3.2, \"fd15:3::2\"], interface: veth-app3}
";

/// The workloads and their host. Fields end in this order.
struct Site {
    daemon: Daemon,
    _webs: Vec<Web>,
    apps: Vec<Arc<Namespace>>,
    host: Arc<Namespace>,
    bpffs: BpfDirectory,
    directory: tempfile::TempDir,
}

impl Site {
    fn start(name: &str, config: &str) -> anyhow::Result<Self> {
        need_root();
        let directory = tempfile::tempdir()?;
        let unique = format!("{name}-{}", std::process::id());
        let host = Arc::new(Namespace::create(&format!("{unique}-host"))?);
        host.sysctl("ipv4/ip_forward", "1")?;
        host.sysctl("ipv6/conf/all/forwarding", "1")?;
        let mut apps = Vec::new();
        let mut webs = Vec::new();
        for n in 1..=3 {
            let app = Arc::new(Namespace::create(&format!("{unique}-app{n}"))?);
            host.ip(&format!(
                "link add veth-app{n} type veth peer name eth0 netns {}\n\
                 addr add 10.15.{n}.1/24 dev veth-app{n}\n\
                 addr add fd15:{n}::1/64 dev veth-app{n} nodad\n\
                 link set veth-app{n} up",
                app.name()
            ))?;
            app.ip(&format!(
                "addr add 10.15.{n}.2/24 dev eth0\n\
                 addr add fd15:{n}::2/64 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add default via 10.15.{n}.1\n\
                 route add ::/0 via fd15:{n}::1"
            ))?;
            webs.push(Web::start(
                &app,
                &directory.path().join(format!("web{n}")),
                &format!("app{n}"),
            )?);
            apps.push(app);
        }
        let file = directory.path().join("lb.yaml");
        fs::write(&file, config)?;
        let bpffs = BpfDirectory::create(&unique)?;
        let daemon = Daemon::start(&host, &directory.path().join("daemon"), bpffs.path(), &file)?;
        Ok(Self { daemon, _webs: webs, apps, host, bpffs, directory })
    }

    /// Whether one workload gets an answer of another one.
    fn reaches(&self, from: usize, to: &str, port: u16) -> anyhow::Result<bool> {
        let to: IpAddr = to.parse()?;
        let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
        let source: IpAddr = any.parse()?;
        self.apps[from - 1]
            .enter(|| http::get_from(source, (to, port).into(), "/healthz", REFUSED).is_ok())
    }

    fn expect(&self, pairs: &[(usize, &str, u16, bool)]) -> anyhow::Result<()> {
        for &(from, to, port, wanted) in pairs {
            let reaches = self.reaches(from, to, port)?;
            ensure!(reaches == wanted, "app{from} to {to} port {port}: {reaches}");
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.daemon.stop();
        // Whatever a failed test left; the daemon has ended, so nobody uses it.
        let _ = lb_daemon::app::cleanup(self.bpffs.path());
    }
}

/// `app2` reaches port 80 of `app1`; nobody reaches anything else of it, and it reaches everybody.
const IN_FORCE: &[(usize, &str, u16, bool)] = &[
    (2, "10.15.1.2", web::PORT, true),
    (2, "fd15:1::2", web::PORT, true),
    (2, "10.15.1.2", web::HEALTH_PORT, false),
    (3, "10.15.1.2", web::PORT, false),
    (3, "fd15:1::2", web::PORT, false),
    (1, "10.15.3.2", web::PORT, true),
    (1, "fd15:2::2", web::PORT, true),
    (3, "10.15.2.2", web::PORT, true),
];

#[test]
fn the_published_example_imported_as_it_stands() -> anyhow::Result<()> {
    let site = Site::start("pol", ENDPOINTS)?;
    let open: Vec<_> = IN_FORCE.iter().map(|&(from, to, port, _)| (from, to, port, true)).collect();
    site.expect(&open)?;

    let file = site.directory.path().join("l3-rule.json");
    fs::write(&file, PUBLISHED)?;
    let file = file.to_str().context("a path")?;
    let said = site.daemon.lbctl(&["policy", "import", file])?;
    ensure!(said.contains("1 rule"), "{said}");
    site.expect(IN_FORCE)?;
    let listed = site.daemon.lbctl(&["policy", "list"])?;
    ensure!(listed.contains("l3-rule"), "{listed}");
    let denied = site.daemon.metric("lb_datapath_packets_total{reason=\"policy_default_deny\"")?;
    ensure!(denied >= 3.0, "{denied}");
    let allowed = site.daemon.metric("lb_policy_rule_packets_total{rule=\"l3-rule\"")?;
    ensure!(allowed >= 4.0, "{allowed}");
    let endpoint = site.daemon.get("/v1/endpoints/app1")?;
    ensure!(endpoint["attached"] == "tcx" && endpoint["labels"]["id"] == "app1", "{endpoint}");

    let said = site.daemon.lbctl(&["policy", "delete", "l3-rule.json"])?;
    ensure!(said.contains("l3-rule.json"), "{said}");
    site.expect(&open)?;
    site.daemon.expect_quiet()
}

#[test]
fn rules_of_a_file_hold_while_the_daemon_is_gone_and_when_it_comes_back() -> anyhow::Result<()> {
    let rules = "policies:\n  - name: l3-rule\n    endpointSelector: {matchLabels: {id: app1}}\n    \
                 ingress:\n      - fromEndpoints: [{matchLabels: {id: app2}}]\n        \
                 toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]\n";
    let config = format!("{ENDPOINTS}{rules}");
    let mut site = Site::start("polf", &config)?;
    site.expect(IN_FORCE)?;
    let counted = |site: &Site| site.daemon.metric("lb_policy_rule_packets_total{rule=\"l3-rule\"");
    let before = counted(&site)?;
    site.daemon.kill9()?;
    site.expect(IN_FORCE)?;
    site.daemon.resume()?;
    // What was counted meanwhile is there, too.
    let after = counted(&site)?;
    ensure!(before > 0.0 && after > before, "{before} before, {after} after");
    site.expect(IN_FORCE)?;
    ensure!(counted(&site)? > after, "{after} after");

    // An interface that comes later, under the name that the configuration has.
    site.host.ip("link del veth-app3")?;
    let app3 = &site.apps[2];
    site.host.ip(&format!(
        "link add veth-app3 type veth peer name eth0 netns {}\n\
         addr add 10.15.3.1/24 dev veth-app3\n\
         link set veth-app3 up",
        app3.name()
    ))?;
    app3.ip("addr add 10.15.3.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.15.3.1")?;
    let app3_rules = rules.replace("app1", "app3").replace("l3-rule", "other");
    let more = app3_rules.trim_start_matches("policies:\n");
    site.daemon.change_config(&format!("{config}{more}"))?;
    eventually(PATIENCE, || {
        let endpoint = site.daemon.get("/v1/endpoints/app3")?;
        ensure!(endpoint["attached"] == "tcx", "{endpoint}");
        Ok(())
    })?;
    site.expect(&[
        (2, "10.15.3.2", web::PORT, true),
        (1, "10.15.3.2", web::PORT, false),
        (3, "10.15.2.2", web::PORT, true),
    ])
}

/// A connection ends with the rule that allowed it, and goes on when the rule comes back.
#[test]
fn an_established_connection_follows_the_rules() -> anyhow::Result<()> {
    let site = Site::start("pole", ENDPOINTS)?;
    let file = site.directory.path().join("rule.json");
    fs::write(&file, PUBLISHED)?;
    let file = file.to_str().context("a path")?;
    site.daemon.lbctl(&["policy", "import", file])?;
    let mut kept = site.apps[1]
        .enter(|| http::Kept::connect(("10.15.1.2".parse::<IpAddr>()?, 80).into()))??;
    kept.get("/")?;
    // The same rule for somebody else, and then again for app2.
    fs::write(file, PUBLISHED.replace("app2", "app3"))?;
    site.daemon.lbctl(&["policy", "import", file])?;
    ensure!(!site.reaches(2, "10.15.1.2", 80)?, "a new connection");
    let before = site.daemon.metric("lb_datapath_packets_total{reason=\"policy_default_deny\"")?;
    let (result, _) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| kept.get("/"));
        let dropped = eventually(PATIENCE, || {
            let now =
                site.daemon.metric("lb_datapath_packets_total{reason=\"policy_default_deny\"")?;
            ensure!(now > before, "nothing of it is dropped");
            Ok(())
        });
        fs::write(file, PUBLISHED).map_err(anyhow::Error::from)?;
        site.daemon.lbctl(&["policy", "import", file])?;
        let result = waiting.join().map_err(|_| anyhow::anyhow!("the request panicked"))?;
        dropped?;
        anyhow::Ok((result, ()))
    })?;
    result.context("TCP sends again what was dropped")?;
    Ok(())
}

/// Denied and allowed connections are told with both sides' labels, and the rule.
#[test]
fn verdicts_are_told_with_labels_and_rule() -> anyhow::Result<()> {
    let site = Site::start("polv", ENDPOINTS)?;
    let file = site.directory.path().join("l3-rule.json");
    fs::write(&file, PUBLISHED)?;
    site.daemon.lbctl(&["policy", "import", file.to_str().context("a path")?])?;
    let ask =
        |from: usize, arguments: &[&str], wanted: bool| -> anyhow::Result<serde_json::Value> {
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let listening = scope.spawn(|| {
                    let said = site.daemon.lbctl(arguments);
                    done.store(true, Relaxed);
                    said
                });
                while !done.load(Relaxed) {
                    ensure!(site.reaches(from, "10.15.1.2", web::PORT)? == wanted, "app{from}");
                }
                let said = listening.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
                Ok(serde_json::from_str(said.lines().next().context("an event")?)?)
            })
        };
    let monitor = ["-o", "json", "monitor", "--count", "1", "--type", "policy", "--reason"];
    let event = ask(3, &[&monitor[..], &["policy_default_deny"]].concat(), false)?;
    ensure!(event["hook"] == "ingress" && event["outcome"] == "dropped", "{event}");
    ensure!(event["labels"][0]["id"] == "app3" && event["labels"][1]["id"] == "app1", "{event}");
    let event = ask(2, &[&monitor[..], &["policy_allowed", "--passed"]].concat(), true)?;
    ensure!(event["rule"] == "l3-rule" && event["origin"] == "api", "{event}");
    ensure!(event["labels"][0]["id"] == "app2" && event["labels"][1]["id"] == "app1", "{event}");
    fs::write(&file, PUBLISHED.replacen("[{\n", "[{\"audit\": true,\n", 1))?;
    site.daemon.lbctl(&["policy", "import", file.to_str().context("a path")?])?;
    let event = ask(3, &[&monitor[..], &["policy_audit"]].concat(), true)?;
    ensure!(event["outcome"] == "audited" && event["hook"] == "ingress", "{event}");
    ensure!(event["labels"][0]["id"] == "app3" && event["labels"][1]["id"] == "app1", "{event}");
    site.daemon.expect_quiet()
}

/// Endpoints and rules of the API alone; after a restart they are there, and the daemon says why.
#[test]
fn endpoints_of_the_api_and_what_a_trace_says() -> anyhow::Result<()> {
    let mut site = Site::start("pola", "policy_enforcement: default\n")?;
    for n in 1..=3 {
        let label = format!("id=app{n}");
        let (name, address) = (format!("app{n}"), format!("10.15.{n}.2"));
        let (six, interface) = (format!("fd15:{n}::2"), format!("veth-app{n}"));
        site.daemon.lbctl(&[
            "endpoint",
            "set",
            &name,
            "--label",
            &label,
            "--address",
            &address,
            "--address",
            &six,
            "--interface",
            &interface,
            "--port",
            "http=80/tcp",
        ])?;
    }
    let file = site.directory.path().join("l3-rule.json");
    fs::write(&file, PUBLISHED.replace("\"80\"", "\"http\""))?;
    site.daemon.lbctl(&["policy", "import", file.to_str().context("a path")?])?;
    site.expect(IN_FORCE)?;
    site.daemon.stop()?;
    site.daemon.resume()?;
    site.expect(IN_FORCE)?;

    let ask = |from: &str, to: &str| {
        site.daemon.get(&format!("/v1/policy-trace?from={from}&to={to}&dport=80/tcp"))
    };
    let said = ask("10.15.2.2", "app1")?;
    ensure!(said["allowed"] == true && said["ends"][1]["rule"]["name"] == "l3-rule", "{said}");
    let said = ask("id%3Dapp3", "10.15.1.2")?;
    ensure!(said["allowed"] == false, "{said}");
    ensure!(said["ends"][1]["verdict"] == "denied_by_default", "{said}");
    let change = said["ends"][1]["change"].as_str().unwrap_or_default().to_owned();
    ensure!(change.contains("fromEndpoints: [{matchLabels: {id: app3}}]"), "{change}");
    let said = ask("192.0.2.1", "app1")?;
    ensure!(said["allowed"] == false, "{said}");

    // An endpoint in audit lets through what it counts.
    site.daemon.lbctl(&[
        "endpoint",
        "set",
        "app1",
        "--label",
        "id=app1",
        "--address",
        "10.15.1.2",
        "--address",
        "fd15:1::2",
        "--interface",
        "veth-app1",
        "--port",
        "http=80/tcp",
        "--audit",
    ])?;
    site.expect(&[(3, "10.15.1.2", web::PORT, true)])?;
    let audited = site.daemon.metric("lb_datapath_packets_total{reason=\"policy_audit\"")?;
    ensure!(audited >= 1.0, "{audited}");

    let taken = ["endpoint", "set", "other", "--address", "10.15.1.2", "--interface", "veth-x"];
    let refused = site.daemon.lbctl(&taken).expect_err("the address is app1's").to_string();
    ensure!(refused.contains("10.15.1.2 is an address of the endpoint app1"), "{refused}");
    site.daemon.lbctl(&["endpoint", "delete", "app1"])?;
    site.expect(&[(3, "10.15.1.2", web::HEALTH_PORT, true)])?;
    site.daemon.expect_quiet()
}
