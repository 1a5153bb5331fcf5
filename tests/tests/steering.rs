//! Services that want something else than their ring: real connections, and servers that packets name.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, UdpSocket},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use lb_tests::{
    cgroup::Cgroup,
    edge::{Edge, PATIENCE, expect_all_answer, expect_answered, spec, yaml},
    eventually,
    http::{self, Kept},
    lab::{CLIENT_V4, IPIP_V4, L2_V4, L2_V6, Lab, SPARE_V4, WEBS, at, unique, web_v4, web_v6},
    process::{Log, Process},
    web,
};

/// Open connections with the name of the server at the other end.
type Open = Vec<(String, Kept)>;

fn open(edge: &Edge, vip: &str, count: usize) -> anyhow::Result<Open> {
    edge.client()?.enter(|| {
        (0..count)
            .map(|_| -> anyhow::Result<(String, Kept)> {
                let mut kept = Kept::connect(at(vip, web::PORT))?;
                Ok((String::from_utf8_lossy(&kept.get("/")?).trim().to_owned(), kept))
            })
            .collect()
    })?
}

fn of<'a>(open: &'a Open, web: &'a str) -> impl Iterator<Item = &'a (String, Kept)> {
    open.iter().filter(move |(name, _)| name == web)
}

/// What the daemon has counted, by server.
fn counted(edge: &Edge, service: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let backends = edge.lb.backends(service)?;
    Ok(backends
        .into_iter()
        .map(|(name, b)| (name, b["active_connections"].as_u64().unwrap_or_default()))
        .collect())
}

#[test]
fn affinity_random_and_least_connections() -> anyhow::Result<()> {
    each_of_them("l2")
}

#[test]
fn the_same_behind_nat() -> anyhow::Result<()> {
    each_of_them("nat")
}

fn each_of_them(forwarding: &'static str) -> anyhow::Result<()> {
    let mut specs = vec![
        spec("affine", SPARE_V4, forwarding, false),
        spec("random", L2_V6, forwarding, true),
        spec("least", L2_V4, forwarding, false),
    ];
    for (spec, more) in specs.iter_mut().zip([
        "affinity: {client_ip: 1h}",
        "scheduling: random",
        "scheduling: least-connections",
    ]) {
        spec.more = format!("    {more}\n");
    }
    let edge = Edge::with(&specs)?;
    affinity(&edge)?;
    random(&edge)?;
    least_connections(&edge)?;
    edge.lb.expect_quiet()
}

/// Every client has one server for all of its connections, and not all clients the same.
fn affinity(edge: &Edge) -> anyhow::Result<()> {
    let mut all = BTreeSet::new();
    for n in 0..12 {
        let source = format!("192.0.2.{}", 100 + n);
        edge.client()?.ip(&format!("addr add {source}/32 dev eth0"))?;
        for web in WEBS {
            let back = format!("route replace {source}/32 dev eth0");
            edge.lab.host(web)?.ip(&back)?;
        }
        let source: IpAddr = source.parse()?;
        let servers = edge.client()?.enter(|| -> anyhow::Result<BTreeSet<Vec<u8>>> {
            let request =
                || http::get_from(source, at(SPARE_V4, web::PORT), "/", Duration::from_secs(5));
            (0..6).map(|_| request()).collect()
        })??;
        assert_eq!(servers.len(), 1, "client {source} was answered by {servers:?}");
        all.extend(servers);
    }
    assert!(all.len() > 1, "all clients have one server: {all:?}");
    Ok(())
}

/// Connections go everywhere, each stays, and the daemon counts them.
fn random(edge: &Edge) -> anyhow::Result<()> {
    expect_all_answer(&edge.requests(L2_V6, 60)?);
    let mut open = open(edge, L2_V6, 30)?;
    for (name, kept) in &mut open {
        assert_eq!(String::from_utf8_lossy(&kept.get("/")?).trim(), name);
    }
    eventually(PATIENCE, || {
        for (web, count) in counted(edge, "random")? {
            let wanted = of(&open, &web).count() as u64;
            ensure!(count == wanted, "{web}: {count} of {wanted} open connections");
        }
        Ok(())
    })
}

/// New connections go where the fewest are: also after the others have ended.
fn least_connections(edge: &Edge) -> anyhow::Result<()> {
    let mut kept = open(edge, L2_V4, 60)?;
    let spread: Vec<usize> = WEBS.iter().map(|web| of(&kept, web).count()).collect();
    assert!(spread.iter().all(|n| (17..=23).contains(n)), "{spread:?}");
    // All but those of one server end.
    kept.retain(|(name, _)| name == WEBS[2]);
    let busy = kept.len();
    eventually(PATIENCE, || {
        let counted = counted(edge, "least")?;
        ensure!(counted[WEBS[0]] + counted[WEBS[1]] == 0, "{counted:?}");
        ensure!(counted[WEBS[2]] == busy as u64, "{counted:?}");
        Ok(())
    })?;
    let more = open(edge, L2_V4, 30)?;
    let spread: Vec<usize> = WEBS.iter().map(|web| of(&more, web).count()).collect();
    assert!(spread[2] <= 1, "{busy} at {} before, and now {spread:?}", WEBS[2]);
    Ok(())
}

/// Clients of a route: also an address that is nobody's.
const ROUTED: &str = "192.0.2.150";
/// The prefixes that have it, and an IPv6 one.
const ROUTES: &str = "192.0.2.128/25, \"2001:db8:5555::/48\"";

/// Clients in a route have a server to themselves from the moment that the route is in force, and connections of
/// others notice nothing. When it fails, they are answered by the others, until it is back.
#[test]
fn clients_of_a_route_have_servers_of_their_own() -> anyhow::Result<()> {
    routed("ipip", "l2")
}

#[test]
fn clients_of_a_route_behind_nat() -> anyhow::Result<()> {
    routed("nat", "nat")
}

fn routed(four: &'static str, six: &'static str) -> anyhow::Result<()> {
    let specs = |routed: bool| -> String {
        let mut all = [spec("web", IPIP_V4, four, false), spec("six", L2_V6, six, true)];
        let check = "    health_check: {http: {port: 8080, path: /healthz, expect: 200}, \
                     interval: 200ms, timeout: 150ms, rise: 2, fall: 2}\n";
        for spec in &mut all {
            spec.more = check.to_owned();
        }
        if !routed {
            all.iter_mut().for_each(|spec| spec.webs.truncate(2));
            return yaml(&all);
        }
        for spec in &mut all {
            let routes = format!("source_routes: [{{prefixes: [{ROUTES}], group: canary}}]");
            spec.more.push_str(&format!("    {routes}\n"));
        }
        let grouped = |text: String, address: String| {
            let plain = format!("{{name: web-3, address: \"{address}\"}}");
            let with = format!("{{name: web-3, address: \"{address}\", group: canary}}");
            assert!(text.contains(&plain));
            text.replace(&plain, &with)
        };
        grouped(grouped(yaml(&all), web_v4(3)), web_v6(3))
    };
    let lab = Lab::start()?;
    let decap = lab.decap()?;
    let lb = lab.daemon("lb", &specs(false))?;
    eventually(PATIENCE, || lb.ways_known())?;
    let mut edge = Edge { lb, decap, lab };
    edge.client()?.ip(&format!("addr add {ROUTED}/32 dev eth0"))?;
    for web in WEBS {
        edge.lab.host(web)?.ip(&format!("route replace {ROUTED}/32 dev eth0"))?;
    }
    let answers = |edge: &Edge, source: &str| -> anyhow::Result<BTreeSet<String>> {
        let source: IpAddr = source.parse()?;
        let request =
            || http::get_from(source, at(IPIP_V4, web::PORT), "/", Duration::from_secs(5));
        edge.client()?.enter(|| -> anyhow::Result<BTreeSet<String>> {
            (0..20).map(|_| Ok(String::from_utf8_lossy(&request()?).trim().to_owned())).collect()
        })?
    };
    let names = |all: &[&str]| -> BTreeSet<String> { all.iter().map(|&n| n.to_owned()).collect() };
    let [one, two, three] = WEBS;
    assert_eq!(answers(&edge, ROUTED)?, names(&[one, two]), "before the route");
    let mut kept = open(&edge, IPIP_V4, 30)?;
    kept.extend(open(&edge, L2_V6, 30)?);
    let load = edge.load(&[IPIP_V4, L2_V6])?;
    load.wait_requests(50)?;

    edge.lb.change_config(&specs(true))?;
    // The way to the server that is new, and its health.
    let wait = |edge: &Edge, health: &str| {
        eventually(PATIENCE, || {
            edge.lb.ways_known()?;
            for service in ["web/canary", "six/canary"] {
                let part = edge.lb.get(&format!("/v1/services/{}", service.replace('/', "%2F")))?;
                ensure!(part["backends"][0]["health"] == health, "{part}");
            }
            Ok(())
        })
    };
    wait(&edge, "up")?;
    assert_eq!(answers(&edge, ROUTED)?, names(&[three]));
    assert_eq!(answers(&edge, CLIENT_V4)?, names(&[one, two]));
    for (name, kept) in &mut kept {
        assert_eq!(String::from_utf8_lossy(&kept.get("/")?).trim(), name);
    }
    load.wait_requests(200)?;
    let tally = load.stop()?;
    expect_answered(&tally);
    assert!(!tally.answers.contains_key(three), "{:?}", tally.answers);

    let page = edge.lb.lbctl(&["service", "get", "web"])?;
    assert!(page.contains("2001:db8:5555::/48 to web/canary"), "{page}");
    let page = edge.lb.lbctl(&["service", "get", "web/canary"])?;
    assert!(page.contains("part of        web") && page.contains("web-3"), "{page}");
    let list = edge.lb.lbctl(&["service", "list"])?;
    assert!(list.contains("six/canary"), "{list}");
    match edge.lb.lbctl(&["backend", "drain", "web/canary", "web-3"]) {
        Ok(page) => bail!("draining a group's backend should be refused: {page}"),
        Err(refused) => assert!(refused.to_string().contains("change it there"), "{refused:#}"),
    }
    let packets = "lb_backend_packets_total{service=\"web/canary\",backend=\"web-3\"";
    assert!(edge.lb.metric(packets)? > 0.5);

    // Another daemon takes over what stands.
    edge.lb.kill9()?;
    assert_eq!(answers(&edge, ROUTED)?, names(&[three]));
    edge.lb.resume()?;
    wait(&edge, "up")?;
    assert_eq!(answers(&edge, ROUTED)?, names(&[three]));
    for (name, kept) in &mut kept {
        assert_eq!(String::from_utf8_lossy(&kept.get("/")?).trim(), name);
    }

    edge.lab.web(three)?.kill()?;
    wait(&edge, "down")?;
    assert_eq!(answers(&edge, ROUTED)?, names(&[one, two]));
    edge.lab.web(three)?.resume()?;
    wait(&edge, "up")?;
    assert_eq!(answers(&edge, ROUTED)?, names(&[three]));
    edge.lb.expect_quiet()
}

/// Where the example of docs/steering.md listens.
const HEADER_PORT: u16 = 4000;
const QUIC_PORT: u16 = 4433;

/// The example's servers answer what names them, from wherever it comes.
#[test]
fn packets_find_the_server_that_they_name() -> anyhow::Result<()> {
    let lab = Lab::start()?;
    let backends: String = (1..=3)
        .map(|n| {
            format!("      - {{name: web-{n}, address: {}, server_id: {}}}\n", web_v4(n), 10 + n)
        })
        .collect();
    let lb = lab.daemon(
        "lb",
        &format!(
            "interfaces:\n  - {{name: eth0, roles: [balance]}}\nservices:\n  - name: named\n    \
             address: {L2_V4}\n    forwarding: l2\n    ports:\n      - {{name: own, port: {HEADER_PORT}, \
             protocol: udp}}\n      - {{name: h3, port: {QUIC_PORT}, protocol: udp, quic: true}}\n    \
             server_ids: [udp-header]\n    backends:\n{backends}"
        ),
    )?;
    eventually(PATIENCE, || lb.ways_known())?;
    let mut servers = Vec::new();
    for n in 1..=3 {
        for (port, form) in [(HEADER_PORT, "header"), (QUIC_PORT, "quic")] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_server-id"));
            command.args([&at(L2_V4, port).to_string(), &(10 + n).to_string(), form]);
            let log = Log::default();
            servers.push(Process::spawn(lab.host(WEBS[n - 1])?, command, &log)?);
            log.wait_line("listening", 0, PATIENCE)?;
        }
    }
    lab.host("client")?.enter(|| {
        by_header()?;
        by_connection_id()
    })?
}

/// Sends from a socket of its own, so from another port than before.
fn ask(port: u16, packet: &[u8]) -> anyhow::Result<Vec<u8>> {
    let socket = UdpSocket::bind(at("0.0.0.0", 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(at(L2_V4, port))?;
    socket.send(packet)?;
    let mut answer = vec![0; 2048];
    let length = socket.recv(&mut answer).context("no server answers")?;
    answer.truncate(length);
    Ok(answer)
}

fn by_header() -> anyhow::Result<()> {
    let mut met = BTreeSet::new();
    for _ in 0..12 {
        let first = ask(HEADER_PORT, b"hello")?;
        let (header, words) = first.split_at(8);
        for _ in 0..8 {
            let again = ask(HEADER_PORT, &[header, b"hello"].concat())?;
            assert_eq!(String::from_utf8_lossy(&again[8..]), String::from_utf8_lossy(words));
        }
        met.insert(first);
    }
    assert!(met.len() > 1, "one server answers all");
    Ok(())
}

fn by_connection_id() -> anyhow::Result<()> {
    let initial = {
        // Version 1, eight bytes that the client made up, an empty id of its own.
        let mut packet = vec![0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0];
        packet.resize(1200, 0);
        packet
    };
    let mut met = BTreeSet::new();
    for _ in 0..12 {
        let first = ask(QUIC_PORT, &initial)?;
        // Flags, version, our empty id, then the length of theirs.
        let id = &first[7..7 + usize::from(first[6])];
        let words = String::from_utf8_lossy(&first[7 + id.len()..]).into_owned();
        for _ in 0..8 {
            let again = ask(QUIC_PORT, &[&[0x40][..], id, &[0; 24]].concat())?;
            assert_eq!(String::from_utf8_lossy(&again[1..]), words);
        }
        met.insert(words);
    }
    assert!(met.len() > 1, "one server answers all");
    Ok(())
}

/// Where the other example listens.
const OPTION_PORT: u16 = 4001;
const CONNECTIONS: usize = 30;

/// Connections go on through another balancer, whose ring is another one and which knows of none of them.
#[test]
fn tcp_options_lead_past_the_loss_of_the_balancer() -> anyhow::Result<()> {
    let mut lab = Lab::start()?;
    lab.add_balancer("lb-2", &["192.0.2.2"])?;
    let backends: String = (1..=3)
        .map(|n| {
            format!("      - {{name: web-{n}, address: {}, server_id: {}}}\n", web_v4(n), 10 + n)
        })
        .collect();
    let mut balancers = Vec::new();
    for host in ["lb", "lb-2"] {
        let lb = lab.daemon(
            host,
            &format!(
                "interfaces:\n  - {{name: eth0, roles: [balance]}}\nmaglev: {{seed: {host}}}\n\
                 services:\n  - name: named\n    address: {L2_V4}\n    forwarding: l2\n    ports:\n      \
                 - {{port: {OPTION_PORT}, protocol: tcp}}\n    server_ids: [tcp-option]\n    \
                 backends:\n{backends}"
            ),
        )?;
        eventually(PATIENCE, || lb.ways_known())?;
        balancers.push(lb);
    }
    let address = at(L2_V4, OPTION_PORT).to_string();
    let example = |cgroup: &Cgroup, role: &str, number: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_server-id-tcp"));
        command.arg(cgroup.path()).args([role, &address, &number.to_string()]);
        command
    };
    let cgroup = |name: &str| Cgroup::create(&format!("{}-{name}", unique()));
    let mut servers = Vec::new();
    for n in 1..=3 {
        let cgroup = cgroup(WEBS[n - 1])?;
        let log = Log::default();
        let command = example(&cgroup, "serve", 10 + n);
        servers.push((Process::spawn(lab.host(WEBS[n - 1])?, command, &log)?, cgroup));
        log.wait_line("listening", 0, PATIENCE)?;
    }

    let mine = cgroup("client")?;
    let mut command = example(&mine, "ask", CONNECTIONS);
    lab.host("client")?.put(&mut command);
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = client.stdin.take().context("stdin was asked for")?;
    let mut output = BufReader::new(client.stdout.take().context("stdout was asked for")?).lines();
    let mut answers = || -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        loop {
            match output.next().context("the client has ended")?? {
                end if end == "all answered" => return Ok(all),
                answer => all.push(answer),
            }
        }
    };
    let before = answers()?;
    assert_eq!(before.len(), CONNECTIONS);
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 3, "{before:?}");
    let way = format!("route replace {L2_V4}/32 via 192.0.2.2 src {CLIENT_V4}");
    lab.host("client")?.ip(&way)?;
    writeln!(input, "again")?;
    let after = answers();
    drop(input);
    client.wait()?;
    assert_eq!(after?, before);
    let forwarded = "lb_datapath_packets_total{reason=\"forwarded_tx\"";
    let there = balancers[1].metric(forwarded)?;
    ensure!(there >= CONNECTIONS as f64, "{there} packets by the other balancer");
    Ok(())
}
