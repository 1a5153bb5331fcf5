//! Rules replaced under traffic: nothing that both versions allow is dropped, nothing else gets through.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use anyhow::{Context as _, ensure};

use crate::{ENDPOINTS, PATIENCE, Site};

/// Connections that are alive while rules are replaced, and those that serve and use them together.
const CONNECTIONS: usize = 1000;
const WORKERS: usize = 8;
/// How often the rules are replaced.
const REPLACEMENTS: usize = 20;

/// Lets `app2` in on TCP 7000 and UDP 7001 and nobody else, and closes what `app1` sends: each answer
/// passes because its connection is remembered and still allowed.
fn one_way_to_say_it() -> String {
    r#"[{
        "name": "one", "endpointSelector": {"matchLabels": {"id": "app1"}},
        "ingress": [{"fromEndpoints": [{"matchLabels": {"id": "app2"}}], "toPorts": [{"ports": [
            {"port": "7000", "protocol": "TCP"}, {"port": "7001", "protocol": "UDP"}]}]}],
        "egress": [{}]
    }]"#
    .to_owned()
}

/// The same for these packets, in other words and among many rules.
fn another_way_to_say_it(n: usize) -> String {
    let more: Vec<String> = (0..100)
        .map(|rule| {
            format!(
                r#"{{"name": "more-{rule}", "endpointSelector": {{"matchLabels": {{"id": "app1"}}}},
                "ingress": [{{"fromCIDR": ["192.0.{rule}.{n}/32"], "toPorts": [{{"ports": [
                {{"port": "{}", "protocol": "TCP"}}]}}]}}]}}"#,
                6950 + rule
            )
        })
        .collect();
    format!(
        r#"[{{"name": "other", "endpointSelector": {{"matchLabels": {{"id": "app1"}}}},
        "ingress": [{{"fromEndpoints": [{{"matchExpressions": [
            {{"key": "id", "operator": "In", "values": ["app2", "app{}"]}}]}}],
            "toPorts": [{{"ports": [{{"port": "7000", "endPort": 7001}}]}}]}}],
        "ingressDeny": [{{"fromEndpoints": [{{"matchLabels": {{"id": "app3"}}}}]}}],
        "egress": [{{}}]}}, {}]"#,
        n + 10,
        more.join(",")
    )
}

/// Echoes of one worker's connections, in their order, until they end.
fn serve(mut streams: Vec<TcpStream>) -> anyhow::Result<()> {
    let mut byte = [0; 8];
    loop {
        for stream in &mut streams {
            if stream.read(&mut byte)? == 0 {
                return Ok(());
            }
            stream.write_all(&byte)?;
        }
    }
}

/// Sends over each connection and reads all echoes, until told to stop; the echoes that it got.
fn use_all(mut streams: Vec<TcpStream>, stop: &AtomicBool) -> anyhow::Result<usize> {
    let mut echoes = 0;
    while !stop.load(Relaxed) {
        for stream in &mut streams {
            stream.write_all(b"8 bytes.")?;
        }
        for stream in &mut streams {
            let mut echo = [0; 8];
            stream.read_exact(&mut echo)?;
            echoes += 1;
        }
    }
    Ok(echoes)
}

#[test]
fn rules_replaced_under_traffic_drop_and_let_through_nothing_else() -> anyhow::Result<()> {
    let site = Site::start("polr", ENDPOINTS)?;
    let file = site.directory.path().join("rules.json");
    let put = |text: String| -> anyhow::Result<()> {
        fs::write(&file, text)?;
        site.daemon.lbctl(&["policy", "import", file.to_str().context("a path")?]).map(drop)
    };
    put(one_way_to_say_it())?;
    let [app1, app2, app3] = [0, 1, 2].map(|n| &site.apps[n]);
    let listener = app1.enter(|| TcpListener::bind("10.15.1.2:7000"))??;
    let closed = app1.enter(|| UdpSocket::bind("10.15.1.2:7001"))??;
    let (friend, other) = (
        app2.enter(|| UdpSocket::bind("10.15.2.2:0"))??,
        app3.enter(|| UdpSocket::bind("10.15.3.2:0"))??,
    );
    for socket in [&closed, &friend] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let address = "10.15.1.2:7000".parse()?;
        let client = app2.enter(|| TcpStream::connect_timeout(&address, PATIENCE))??;
        let (server, _) = listener.accept()?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        clients.push(client);
        servers.push(server);
    }
    let denied = || -> anyhow::Result<f64> {
        let of = |reason: &str| {
            site.daemon.metric(&format!("lb_datapath_packets_total{{reason=\"{reason}\""))
        };
        Ok(of("policy_default_deny")? + of("policy_denied")?)
    };
    let before = denied()?;
    let stop = AtomicBool::new(false);
    let (echoes, (sent, answered)) = std::thread::scope(|scope| {
        let servers: Vec<_> = chunks(servers).map(|own| scope.spawn(|| serve(own))).collect();
        let stop = &stop;
        let clients: Vec<_> =
            chunks(clients).map(|own| scope.spawn(|| use_all(own, stop))).collect();
        // Datagrams, because nobody sends those again: each one counts.
        let datagrams = scope.spawn(|| -> anyhow::Result<(u64, u64)> {
            let (mut sent, mut answered) = (0, 0);
            let mut room = [0; 16];
            while !stop.load(Relaxed) {
                other.send_to(b"denied", "10.15.1.2:7001")?;
                sent += 1;
                friend.send_to(b"allowed", "10.15.1.2:7001")?;
                let (length, from) = closed.recv_from(&mut room).context("an allowed datagram")?;
                ensure!(&room[..length] == b"allowed", "a denied datagram came through");
                closed.send_to(b"answer", from)?;
                friend.recv(&mut room).context("the answer to an allowed datagram")?;
                answered += 1;
            }
            Ok((sent, answered))
        });
        let replaced = (0..REPLACEMENTS).try_for_each(|n| match n % 2 {
            0 => put(another_way_to_say_it(n)),
            _ => put(one_way_to_say_it()),
        });
        stop.store(true, Relaxed);
        let datagrams = datagrams.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        let mut echoes = 0;
        for client in clients {
            echoes += client.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        for server in servers {
            server.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        replaced?;
        anyhow::Ok((echoes, datagrams))
    })?;
    let dropped = denied()? - before;
    println!(
        "{REPLACEMENTS} replacements, {CONNECTIONS} connections: {echoes} echoes, {answered} datagrams \
         answered, {sent} denied, {dropped} dropped"
    );
    ensure!(echoes > 10 * CONNECTIONS && sent > 100, "hardly any traffic: {echoes}, {sent}");
    ensure!(dropped == sent as f64, "{dropped} packets dropped, {sent} denied ones sent");
    site.daemon.expect_quiet()
}

/// One part for each worker.
fn chunks(mut streams: Vec<TcpStream>) -> impl Iterator<Item = Vec<TcpStream>> {
    let each = streams.len().div_ceil(WORKERS);
    std::iter::from_fn(move || {
        let rest = streams.split_off(each.min(streams.len()));
        let own = std::mem::replace(&mut streams, rest);
        (!own.is_empty()).then_some(own)
    })
}
