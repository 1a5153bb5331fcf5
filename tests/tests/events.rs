//! Samples of dropped packets, from the kernel to `lbctl monitor`, its capture file and `lbctl top`.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    edge::{self, Edge, PATIENCE},
    eventually, http,
    lab::{CLIENT_V4, L2_V4, at},
    web,
};
use serde_json::Value;

/// Two requests of the client, in turn, until `work` is done.
fn knocking<T: Send>(edge: &Edge, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    let client = edge.client()?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let knocks = scope.spawn(|| {
            client.enter(|| {
                while !done.load(Relaxed) {
                    let limit = Duration::from_millis(50);
                    let source = CLIENT_V4.parse().expect("an address");
                    // Whether it is answered is not the matter here.
                    let _ = http::get_from(source, at(L2_V4, web::PORT), "/", limit);
                }
            })
        });
        let result = work();
        done.store(true, Relaxed);
        knocks.join().expect("no panic")?;
        Ok(result)
    })
}

#[test]
fn dropped_packets_are_told_with_their_list() -> anyhow::Result<()> {
    let edge = Edge::start(edge::L2)?;
    let client = format!("{CLIENT_V4}/32");
    edge.lb.lbctl(&["prefilter", "add", &client, "--list", "trial"])?;
    let pcap = edge.lb.config().with_file_name("dropped.pcap");
    let file = pcap.to_str().context("a path")?;
    let arguments = [
        "-o", "json", "monitor", "--count", "3", "--list", "trial", "--source", CLIENT_V4,
        "--pcap", file,
    ];
    let shown = knocking(&edge, || edge.lb.lbctl(&arguments))??;
    let events: Vec<Value> = shown.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(events.len() == 3, "{shown}");
    for event in &events {
        let told = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        ensure!(told("reason") == "blocked" && told("outcome") == "dropped", "{event}");
        ensure!(told("list") == "trial" && told("source") == CLIENT_V4, "{event}");
        ensure!(told("destination") == L2_V4 && event["destination_port"] == web::PORT, "{event}");
        ensure!(event["protocol"] == 6 && told("interface") == "eth0", "{event}");
    }
    let capture = std::fs::read(&pcap)?;
    let packets = etherparse::SlicedPacket::from_ethernet(&capture[40..]);
    ensure!(packets.is_ok_and(|packet| packet.transport.is_some()), "{capture:02x?}");

    let top = edge.lb.get("/v1/top")?;
    ensure!(
        top["sources"][0]["name"] == CLIENT_V4 && top["sources"][0]["list"] == "trial",
        "{top}"
    );
    ensure!(top["lists"][0]["name"] == "trial" && top["packets"].as_u64() >= Some(3), "{top}");
    ensure!(edge.lb.lbctl(&["top"])?.contains(CLIENT_V4));
    ensure!(edge.lb.metric("lb_events_total")? >= 3.0);
    ensure!(edge.lb.metric("lb_events_lost_total{where=\"buffer\"")? == 0.0);

    // Let pass by an audit, and told all the same.
    edge.lb.lbctl(&["prefilter", "set", "trial", "audit"])?;
    let arguments = ["monitor", "--count", "1", "--list", "trial"];
    let shown = knocking(&edge, || edge.lb.lbctl(&arguments))??;
    ensure!(shown.contains("audited blocked list=trial"), "{shown}");
    edge.lb.expect_quiet()
}

/// A daemon that is gone grants no samples; the next one goes on.
#[test]
fn samples_go_on_after_a_restart() -> anyhow::Result<()> {
    let mut edge = Edge::start(edge::L2)?;
    edge.lb.lbctl(&["prefilter", "add", CLIENT_V4, "--list", "trial"])?;
    let told = |edge: &Edge| {
        eventually(PATIENCE, || {
            let top = edge.lb.get("/v1/top")?;
            ensure!(top["lists"][0]["name"] == "trial", "{top}");
            Ok(())
        })
    };
    knocking(&edge, || told(&edge))??;
    edge.lb.kill9()?;
    edge.lb.resume()?;
    knocking(&edge, || told(&edge))?
}

/// Packets that come all at once, after others, count as what they are.
#[test]
fn a_plan_counts_a_burst() -> anyhow::Result<()> {
    const OTHER: &str = "192.0.2.77";
    let edge = Edge::start(edge::L2)?;
    let client = edge.client()?;
    client.ip(&format!("addr add {OTHER}/24 dev eth0\n"))?;
    // The way is known from now on: nothing waits for it.
    client.enter(|| http::get(at(L2_V4, web::PORT), "/"))??;
    let burst = |source: &str, packets: u32| {
        client.enter(|| -> anyhow::Result<()> {
            let socket = UdpSocket::bind((source, 0))?;
            (0..packets).try_for_each(|_| Ok(socket.send_to(b"x", at(L2_V4, 9)).map(drop)?))
        })?
    };
    burst(CLIENT_V4, 2000)?;
    burst(OTHER, 6000)?;
    eventually(PATIENCE, || {
        let plan = edge.lb.lbctl(&["-o", "json", "prefilter", "plan", OTHER])?;
        let plan: Value = serde_json::from_str(&plan)?;
        let number = |name: &str| plan[name].as_u64().with_context(|| format!("{name}: {plan}"));
        // As many as came: a burst may lose some on its way, which is not what is asked here.
        let came = edge.lb.metric("lb_datapath_packets_total{reason=\"no_service\"")? as u64;
        ensure!(came > 4000, "{came} of 8000 packets came");
        ensure!((came..came + 500).contains(&number("passed_packets")?), "{came}: {plan}");
        // A single packet of one tick and CPU stands for an eighth of what came there at most.
        let packets = number("would_drop_packets")?;
        ensure!((came / 4..=came).contains(&packets), "{came}: {plan}");
        let (least, most) = (number("would_drop_least")?, number("would_drop_most")?);
        ensure!((1..=packets).contains(&least) && (packets..came + 500).contains(&most), "{plan}");
        ensure!(plan["would_drop"][0]["source"] == OTHER, "{plan}");
        Ok(())
    })?;
    edge.lb.expect_quiet()
}

#[test]
fn what_cannot_be_is_refused() -> anyhow::Result<()> {
    let edge = Edge::start(edge::L2)?;
    let refused = edge.lb.lbctl(&["monitor", "--reason", "nope"]);
    let refused = format!("{:#}", refused.err().context("an unknown reason was taken")?);
    ensure!(refused.contains("nope"), "{refused}");
    let refused = edge.lb.lbctl(&["monitor", "--source", "300.0.0.1"]);
    ensure!(refused.is_err());
    Ok(())
}
