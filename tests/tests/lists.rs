//! Care with blocklists, and lists that are fetched, with real packets.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    edge::{self, Edge, PATIENCE},
    eventually,
    fail2ban::Fail2ban,
    http,
    lab::{CLIENT_V4, L2_V4, at, web_v4},
    web,
};

/// An address of the client that no list of the lab's own names.
const OTHER: &str = "192.0.2.77";

fn edge() -> anyhow::Result<Edge> {
    let edge = Edge::start(edge::L2)?;
    edge.client()?.ip(&format!("addr add {OTHER}/24 dev eth0\n"))?;
    Ok(edge)
}

fn answered(edge: &Edge, limit: Duration) -> anyhow::Result<bool> {
    let source = OTHER.parse().context("an address")?;
    edge.client()?.enter(|| http::get_from(source, at(L2_V4, web::PORT), "/", limit).is_ok())
}

fn expect_blocked(edge: &Edge) -> anyhow::Result<()> {
    ensure!(!answered(edge, Duration::from_millis(300))?, "{OTHER} is answered");
    Ok(())
}

fn expect_free(edge: &Edge) -> anyhow::Result<()> {
    ensure!(answered(edge, Duration::from_secs(5))?, "{OTHER} is not answered");
    Ok(())
}

#[test]
fn a_change_is_taken_back_unless_it_is_confirmed() -> anyhow::Result<()> {
    let mut edge = edge()?;
    let add = |edge: &Edge, confirm: &str| {
        edge.lb.lbctl(&["prefilter", "add", OTHER, "--confirm", confirm])
    };
    add(&edge, "3s")?;
    expect_blocked(&edge)?;
    let waits = edge.lb.lbctl(&["status"])?;
    ensure!(waits.contains("unless confirmed"), "{waits}");
    ensure!(add(&edge, "3s").is_err(), "two changes wait");
    eventually(PATIENCE, || expect_free(&edge)).context("it is not taken back")?;

    add(&edge, "10m")?;
    edge.lb.lbctl(&["prefilter", "rollback"])?;
    expect_free(&edge)?;
    ensure!(edge.lb.lbctl(&["prefilter", "confirm"]).is_err(), "nothing waits");

    // Also when the daemon dies meanwhile, and comes up after the time is over.
    add(&edge, "2s")?;
    edge.lb.kill9()?;
    expect_blocked(&edge)?;
    edge.lb.resume()?;
    eventually(PATIENCE, || expect_free(&edge)).context("not taken back after a restart")?;

    add(&edge, "3s")?;
    edge.lb.lbctl(&["prefilter", "confirm"])?;
    edge.lb.kill9()?;
    edge.lb.resume()?;
    thread::sleep(Duration::from_secs(3));
    expect_blocked(&edge)
}

#[test]
fn what_the_machine_needs_is_not_cut_off_by_mistake() -> anyhow::Result<()> {
    let mut edge = edge()?;
    // The machine's own network, with its own address in it.
    let wide = ["prefilter", "add", "192.0.2.0/24"];
    let plan = edge.lb.lbctl(&["prefilter", "plan", "192.0.2.0/24"])?;
    ensure!(plan.contains("CUTS OFF 192.0.2.1 (an address of this machine)"), "{plan}");
    let refused = edge.lb.lbctl(&wide).err().context("it was put on the list")?;
    ensure!(format!("{refused:#}").contains("192.0.2.1"), "{refused:#}");
    expect_free(&edge)?;

    let yaml = edge::yaml(&edge::L2());
    let with = |more: &str| {
        yaml.replace("  lists:\n", &format!("  lists:\n    - {{name: wide, {more}}}\n"))
    };
    let backend = web_v4(1);
    edge.lb.write_config(&with(&format!("cidrs: [{OTHER}, {backend}]")))?;
    eventually(PATIENCE, || {
        let status = edge.lb.lbctl(&["status"])?;
        ensure!(status.contains(&format!("{backend} (a backend of l2-v4)")), "{status}");
        Ok(())
    })?;
    expect_free(&edge).context("the last good state does not stay")?;
    edge.lb.change_config(&with(&format!("cidrs: [{OTHER}, {backend}], force: true")))?;
    expect_blocked(&edge)?;
    edge.lb.change_config(&yaml)?;
    expect_free(&edge)?;

    edge.lb.lbctl(&["prefilter", "add", "192.0.2.0/24", "--force"])?;
    expect_blocked(&edge)?;
    let status = edge.lb.lbctl(&["status"])?;
    let own =
        "192.0.2.1 (an address of this machine), which is in 192.0.2.0/24 of the list \"bans\"";
    ensure!(status.contains(own) && status.contains("PREFIX --list bans"), "{status}");
    let client: std::net::IpAddr = CLIENT_V4.parse()?;
    ensure!(client.is_ipv4());
    edge.lb.lbctl(&["prefilter", "delete", "192.0.2.0/24"])?;
    let gone = edge.lb.lbctl(&["prefilter", "delete", "192.0.2.0/24"]);
    ensure!(format!("{:#}", gone.err().context("it was there")?).contains("192.0.2.0/24 not on"));
    expect_free(&edge)?;
    ensure!(!edge.lb.lbctl(&["status"])?.contains(own));

    // At a start there is no state that could stay: the list is in force, and said to be as long as it is.
    edge.lb.stop()?;
    edge.lb.write_config(&with(&format!("cidrs: [{OTHER}, {backend}]")))?;
    edge.lb.resume()?;
    expect_blocked(&edge)?;
    let warning = "lists cut off what this machine needs: ";
    let status = edge.lb.lbctl(&["status"])?;
    ensure!(
        status.contains(warning) && status.contains(&format!("{backend} (a backend of l2-v4)")),
        "{status}"
    );
    ensure!(edge.lb.log_text().contains(warning), "{}", edge.lb.log_text());
    edge.lb.change_config(&with(&format!("cidrs: [{OTHER}]")))?;
    let status = edge.lb.lbctl(&["status"])?;
    ensure!(!status.contains(warning), "{status}");
    expect_blocked(&edge)
}

/// A server in the balancer's namespace that answers every request with what it holds, or not at all.
fn serve(edge: &Edge) -> anyhow::Result<(u16, Arc<Mutex<Option<String>>>)> {
    let listener = edge.lab.host("lb")?.enter(|| TcpListener::bind("192.0.2.1:0"))??;
    let port = listener.local_addr()?.port();
    let body: Arc<Mutex<Option<String>>> = Arc::default();
    let held = Arc::clone(&body);
    // Ends with the process: it holds nothing of the lab.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let body = held.lock().map(|body| body.clone()).unwrap_or_default();
            let answer = match body {
                Some(body) => format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: \"1\"\r\n\r\n{body}",
                    body.len()
                ),
                None => "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_owned(),
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    Ok((port, body))
}

#[test]
fn a_fetched_list_outlives_its_server() -> anyhow::Result<()> {
    let mut edge = edge()?;
    let (port, body) = serve(&edge)?;
    let set = |text: Option<&str>| -> anyhow::Result<()> {
        *body.lock().map_err(|_| anyhow::anyhow!("poisoned"))? = text.map(str::to_owned);
        Ok(())
    };
    set(Some(&format!("# by us\n{OTHER}\n")))?;
    let list =
        format!("  lists:\n    - {{name: feed, url: \"http://192.0.2.1:{port}/feed.txt\"}}\n");
    edge.lb.change_config(&edge::yaml(&edge::L2()).replace("  lists:\n", &list))?;
    eventually(PATIENCE, || expect_blocked(&edge)).context("it is not fetched")?;
    let shown = edge.lb.lbctl(&["prefilter", "get", "feed"])?;
    ensure!(shown.contains("by us") && shown.contains("fetching      ok"), "{shown}");

    // What would cut off the machine is not taken; nor is what a broken server sends.
    set(Some("192.0.2.0/24\n"))?;
    let failing = |edge: &Edge, why: &str| {
        eventually(Duration::from_secs(30), || {
            // At most once in ten seconds.
            let _ = edge.lb.lbctl(&["prefilter", "refresh", "feed"]);
            let status = edge.lb.lbctl(&["status"])?;
            ensure!(status.contains("list feed: ") && status.contains(why), "{status}");
            Ok(())
        })
    };
    failing(&edge, "it would cut off")?;
    expect_blocked(&edge)?;
    set(None)?;
    failing(&edge, "the server answers 500")?;

    edge.lb.kill9()?;
    edge.lb.resume()?;
    expect_blocked(&edge)?;
    let shown = edge.lb.lbctl(&["prefilter", "get", "feed"])?;
    ensure!(shown.contains("1 IPv4") && shown.contains("failing"), "{shown}");
    edge.lb.change_config(&edge::yaml(&edge::L2()))?;
    expect_free(&edge)
}

#[test]
fn lists_by_country_and_decisions_of_a_local_api() -> anyhow::Result<()> {
    let edge = edge()?;
    let (port, body) = serve(&edge)?;
    let set = |text: Option<&str>| -> anyhow::Result<()> {
        *body.lock().map_err(|_| anyhow::anyhow!("poisoned"))? = text.map(str::to_owned);
        Ok(())
    };
    let directory = edge.lb.config().parent().context("a directory")?.to_path_buf();
    fs::write(directory.join("geo.csv"), format!("{OTHER},{OTHER},XX\n"))?;
    fs::write(directory.join("asn.csv"), "network,asn,as_name\n192.0.2.0/24,64496,\"Us, Inc\"\n")?;
    let yaml = edge::yaml(&edge::L2());
    let geo = "prefilter:\n  tables: {country: [geo.csv], asn: [asn.csv]}\n  lists:\n    \
               - {name: xx, match: {country: [\"XX\"]}}\n";
    edge.lb.change_config(&yaml.replace("prefilter:\n  lists:\n", geo))?;
    expect_blocked(&edge)?;
    let found = edge.lb.lbctl(&["prefilter", "lookup", OTHER])?;
    ensure!(found.contains("the list xx decides"), "{found}");
    ensure!(found.contains("country XX, AS64496 Us, Inc"), "{found}");
    edge.lb.change_config(&yaml)?;
    expect_free(&edge)?;

    // Decisions: one is new; the server fails; everything anew, without it.
    set(Some(&format!(
        "{{\"new\":[{{\"duration\":\"1h\",\"id\":1,\"origin\":\"cscli\",\"scenario\":\"manual\",\
         \"scope\":\"Ip\",\"type\":\"ban\",\"value\":\"{OTHER}\"}}],\"deleted\":null}}"
    )))?;
    fs::write(directory.join("key"), "k\n")?;
    let crowdsec = format!(
        "prefilter:\n  crowdsec: [{{url: \"http://192.0.2.1:{port}\", api_key_file: key, interval: 1s}}]\n  lists:\n"
    );
    edge.lb.change_config(&yaml.replace("prefilter:\n  lists:\n", &crowdsec))?;
    eventually(PATIENCE, || expect_blocked(&edge)).context("no ban")?;
    let shown = edge.lb.lbctl(&["prefilter", "list", "crowdsec"])?;
    ensure!(shown.contains("cscli: manual"), "{shown}");
    set(None)?;
    eventually(PATIENCE, || {
        let status = edge.lb.lbctl(&["status"])?;
        ensure!(status.contains("list crowdsec: the server answers 500"), "{status}");
        Ok(())
    })?;
    expect_blocked(&edge)?;
    set(Some("{\"new\":null,\"deleted\":null}"))?;
    eventually(PATIENCE, || expect_free(&edge)).context("the ban stays")
}

/// The action file that we ship, under a real fail2ban.
#[test]
fn fail2ban_bans_and_lifts() -> anyhow::Result<()> {
    let mut edge = edge()?;
    let directory = edge.lab.directory().join("fail2ban");
    let (ssh, web) = ("fail2ban-ssh", "fail2ban-web");
    let longer = "bantime.increment = true\nbantime.overalljails = true";
    let jails = [("ssh", ""), ("web", longer)];
    let mut fail2ban = Fail2ban::start(edge.lab.host("lb")?, &directory, &edge.lb, &jails)?;
    expect_free(&edge)?;

    fail2ban.fail("ssh", OTHER)?;
    eventually(PATIENCE, || expect_blocked(&edge)).context("it does not ban")?;
    let left = |edge: &Edge, list: &str| -> anyhow::Result<u64> {
        let entries = edge.lb.get(&format!("/v1/prefilter/lists/{list}/entries"))?;
        let items = entries["items"].as_array().context("no items")?;
        let [ban] = &items[..] else { anyhow::bail!("{entries}") };
        let reason = ban["reason"].as_str().unwrap_or_default();
        ensure!(ban["cidr"] == format!("{OTHER}/32") && reason.contains(", 3 failures"), "{ban}");
        ban["expires_in_seconds"].as_u64().context("no end")
    };
    let hour = left(&edge, ssh)?;
    ensure!((3500..=3600).contains(&hour), "{hour}");

    // What one jail lifts, another may still ban.
    fail2ban.fail("web", OTHER)?;
    eventually(PATIENCE, || left(&edge, web))?;
    fail2ban.client(&["set", "ssh", "unbanip", OTHER])?;
    eventually(PATIENCE, || {
        ensure!(left(&edge, ssh).is_err(), "it is not lifted");
        Ok(())
    })?;
    expect_blocked(&edge)?;

    // A ban of a moment at which there is no daemon is in force when there is one.
    edge.lb.kill9()?;
    fail2ban.fail("ssh", OTHER)?;
    eventually(PATIENCE, || {
        let calls = fail2ban.calls()?;
        ensure!(calls.ends_with("prefilter list\n"), "it does not wait: {calls}");
        Ok(())
    })?;
    edge.lb.resume()?;
    eventually(PATIENCE, || left(&edge, ssh)).context("a ban is lost")?;

    // Who was banned before is banned for longer, which fail2ban says ten seconds after the ban.
    eventually(PATIENCE, || {
        let hours = left(&edge, web)?;
        ensure!((7100..=7200).contains(&hours), "for {hours} s");
        Ok(())
    })?;
    fail2ban.client(&["set", "web", "unbanip", OTHER])?;
    eventually(PATIENCE, || {
        ensure!(left(&edge, web).is_err(), "it is not lifted");
        Ok(())
    })?;
    expect_blocked(&edge)?;

    // When it stops it lifts all bans, when it starts they are there again.
    fail2ban.stop()?;
    expect_free(&edge)?;
    fail2ban.resume()?;
    eventually(PATIENCE, || expect_blocked(&edge)).context("it does not ban again")?;
    fail2ban.client(&["unban", "--all"])?;
    eventually(PATIENCE, || expect_free(&edge)).context("it is not lifted")?;
    edge.lb.expect_quiet()
}
