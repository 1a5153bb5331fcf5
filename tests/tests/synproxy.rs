//! The SYN proxy with real clients and a real listener: what a cookie from the interface opens is a connection like
//! any other, and a flood of SYNs reaches nothing behind it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use anyhow::{Context as _, ensure};
use etherparse::PacketBuilder;
use lb_tests::{
    daemon::Daemon,
    edge::PATIENCE,
    eventually,
    lab::{Lab, at},
    netns::{self, Namespace},
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

/// Addresses of the machine that is protected.
const HERE: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];
/// The listener's port.
const PORT: u16 = 9000;
/// Bytes that go there and back: more than the windows that a connection begins with.
const SIZE: usize = 1 << 20;
/// SYNs that have been answered before legitimate clients come.
const UNDER_WAY: f64 = 20_000.0;
/// SYNs of a flood for each family, at most.
const BOUND: u32 = 400_000;

/// A machine whose listener is behind the proxy.
fn machine(lab: &Lab, mode: &str) -> anyhow::Result<Daemon> {
    lab.host("lb")?.sysctl("ipv4/tcp_syncookies", "2")?;
    let daemon = lab.daemon(
        "lb",
        &format!(
            "interfaces:\n  - {{name: eth0, xdp_mode: {mode}, roles: [prefilter]}}\n\
             prefilter:\n  syn_proxy: {{ports: [{PORT}]}}\n"
        ),
    )?;
    let native = 1;
    ensure!((daemon.loaded()?.mode == native) == (mode == "native"), "not in mode {mode}");
    Ok(daemon)
}

/// Sends back what each connection says, for both families, as long as the test runs.
fn listen(host: &Namespace) -> anyhow::Result<()> {
    let listener = host.enter(|| TcpListener::bind(at("::", PORT)))??;
    thread::spawn(move || {
        for connection in listener.incoming() {
            thread::spawn(move || -> std::io::Result<()> {
                let mut connection = connection?;
                let mut said = Vec::new();
                connection.read_to_end(&mut said)?;
                connection.write_all(&said)
            });
        }
    });
    Ok(())
}

/// Says `data` and expects it back.
fn converse(to: SocketAddr, data: &[u8]) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(data)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    ensure!(back == data, "{} bytes of {} came back, or others", back.len(), data.len());
    Ok(())
}

/// A counter of `/proc/net/netstat` that begins with `TcpExt`.
fn tcp_ext(host: &Namespace, name: &str) -> anyhow::Result<u64> {
    let text = host.enter(|| fs::read_to_string("/proc/thread-self/net/netstat"))??;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = lines.next().zip(lines.next()).context("no TcpExt")?;
    let mut both = names.split(' ').zip(values.split(' '));
    let (_, value) = both.find(|(key, _)| *key == name).with_context(|| format!("no {name}"))?;
    Ok(value.parse()?)
}

/// Connections of the listener that wait for the end of their handshake.
fn half_open(host: &Namespace) -> anyhow::Result<String> {
    let mut command = Command::new("ss");
    command.args(["-Htn", "state", "syn-recv"]);
    host.put(&mut command);
    netns::output(&mut command)
}

fn answered(daemon: &Daemon) -> anyhow::Result<f64> {
    daemon.metric("lb_datapath_packets_total{reason=\"syn_answered\"")
}

/// The kernel has seen the ends of `connections` handshakes that began with a cookie, and not one SYN.
fn expect_no_syn(host: &Namespace, connections: u64) -> anyhow::Result<()> {
    ensure!(tcp_ext(host, "SyncookiesSent")? == 0, "SYNs have reached the listener");
    let taken = tcp_ext(host, "SyncookiesRecv")?;
    ensure!(taken == connections, "{taken} of {connections} connections began with a cookie");
    let waiting = half_open(host)?;
    ensure!(waiting.is_empty(), "half open:\n{waiting}");
    Ok(())
}

#[test]
fn clients_are_served_through_the_proxy() -> anyhow::Result<()> {
    for mode in ["native", "generic"] {
        let lab = Lab::start()?;
        let daemon = machine(&lab, mode)?;
        let host = lab.host("lb")?;
        listen(host)?;
        let data: Vec<u8> = (0..SIZE).map(|n| ((n * 31) >> 3) as u8).collect();
        for here in HERE {
            lab.host("client")?
                .enter(|| converse(at(here, PORT), &data))?
                .with_context(|| format!("{mode}, {here}"))?;
        }
        expect_no_syn(host, HERE.len() as u64).context(mode)?;
        ensure!(answered(&daemon)? >= HERE.len() as f64, "SYNs are not counted");
        let shown = daemon.lbctl(&["prefilter", "syn-proxy"])?;
        ensure!(shown.contains(&PORT.to_string()), "{shown}");
        daemon.expect_quiet()?;
    }
    Ok(())
}

/// A SYN as an IP packet, from the source with this number.
fn syn(to: &str, number: u32) -> Vec<u8> {
    let [_, high, middle, low] = number.to_be_bytes();
    let (port, seq) = (1024 + (number % 50_000) as u16, number.wrapping_mul(0x9e37_79b9));
    let mut out = Vec::new();
    let builder = match to.parse::<Ipv4Addr>() {
        Ok(to) => PacketBuilder::ipv4([11, high, middle, low], to.octets(), 64),
        Err(_) => {
            let mut from = [0x20, 1, 0xd, 0xb8, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, high, middle, low];
            from[7] = low;
            let to: Ipv6Addr = to.parse().expect("an address");
            PacketBuilder::ipv6(from, to.octets(), 64)
        }
    };
    builder.tcp(port, PORT, seq, 64_240).syn().write(&mut out, &[]).expect("room");
    out
}

/// Sends SYNs from sources that do not exist until `stop`, and counts them.
fn flood(client: &Namespace, to: &str, stop: &AtomicBool, sent: &AtomicU32) -> anyhow::Result<()> {
    client.enter(|| -> anyhow::Result<()> {
        let family = if to.contains(':') { AddressFamily::Inet6 } else { AddressFamily::Inet };
        // Packets are sent with the header that they have.
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        let target = SockaddrStorage::from(at(to, 0));
        for number in 0..BOUND {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            sendto(raw.as_raw_fd(), &syn(to, number), &target, MsgFlags::empty())?;
            sent.store(number + 1, Ordering::Relaxed);
        }
        Ok(())
    })?
}

/// Tells the flood to end, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_flood_reaches_no_listener() -> anyhow::Result<()> {
    let lab = Lab::start()?;
    let daemon = machine(&lab, "native")?;
    let host = lab.host("lb")?;
    listen(host)?;
    let client = lab.host("client")?;
    let mut connections = 0;
    for here in HERE {
        let (stop, sent) = (AtomicBool::new(false), AtomicU32::new(0));
        let before = answered(&daemon)?;
        thread::scope(|scope| -> anyhow::Result<()> {
            let _stop = Stop(&stop);
            let flooding = scope.spawn(|| flood(client, here, &stop, &sent));
            eventually(PATIENCE, || {
                let answered = answered(&daemon)? - before;
                ensure!(answered > UNDER_WAY, "{answered} SYNs are answered");
                Ok(())
            })?;
            for n in 0..10_u8 {
                client
                    .enter(|| converse(at(here, PORT), &vec![n; 10_000]))?
                    .with_context(|| format!("client {n} of {here}"))?;
                connections += 1;
            }
            expect_no_syn(host, connections)?;
            ensure!(sent.load(Ordering::Relaxed) < BOUND, "the flood has ended before");
            stop.store(true, Ordering::Relaxed);
            flooding.join().expect("does not panic")
        })
        .context(here)?;
    }
    expect_no_syn(host, connections)?;
    daemon.expect_quiet()
}
