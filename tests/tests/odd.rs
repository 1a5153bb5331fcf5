//! Packets that are not plain TCP at a service's port, as clients see them: echo, ports that nobody
//! serves, clients that may not, ways that are too narrow, fragments, VLAN tags.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use etherparse::PacketBuilder;
use lb_tests::{
    capture::{Capture, Checksums},
    daemon::Daemon,
    edge::{
        Edge, IPIP, L2, NAT, NAT_CROSSED, PATIENCE, Spec, Specs, expect_all_answer,
        expect_answered, spec, yaml,
    },
    eventually, http,
    lab::{
        CLIENT_V4, CLIENT_V6, IPIP_V4, IPIP_V6, L2_V4, L2_V6, Lab, SPARE_V4, SPARE_V6, WEBS, at,
        web_v4, web_v6,
    },
    netns::{Entrance, Namespace},
    vlan::{self, Tagged},
    web,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

/// Time in which an answer that is sent arrives.
const SOON: Duration = Duration::from_secs(5);
/// Time after which none is expected any more.
const NEVER: Duration = Duration::from_millis(300);

/// How many packets came to a reason.
fn count(edge: &Edge, reason: &str) -> anyhow::Result<f64> {
    edge.lb.metric(&format!("lb_datapath_packets_total{{reason=\"{reason}\""))
}

fn udp(source: &str, patience: Duration) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(at(source, 0))?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

#[test]
fn echo_to_a_vip_is_answered() -> anyhow::Result<()> {
    let edge = Edge::start(L2)?;
    let client = edge.client()?;
    client.sysctl("ipv4/ping_group_range", "0 0")?;
    for (vip, family, protocol, request, reply) in [
        (L2_V4, AddressFamily::Inet, SockProtocol::Icmp, 8u8, 0u8),
        (L2_V6, AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    ] {
        let answer = client.enter(|| -> anyhow::Result<Vec<u8>> {
            let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
            let socket = UdpSocket::from(fd);
            socket.set_read_timeout(Some(SOON))?;
            let mut message = vec![request, 0, 0, 0, 0, 0, 0, 1];
            message.extend(b"are you there?");
            socket.send_to(&message, at(vip, 0))?;
            let mut buffer = [0; 64];
            let (len, from) = socket.recv_from(&mut buffer).context("no answer")?;
            ensure!(from.ip() == vip.parse::<IpAddr>()?, "{from} answers");
            Ok(buffer[..len].to_vec())
        })??;
        assert_eq!((answer[0], &answer[8..]), (reply, &b"are you there?"[..]));
    }
    assert!(count(&edge, "echo_answered")? >= 2.0);
    edge.lb.expect_quiet()
}

/// What came of a TCP connection and of a datagram to a port that no service has.
fn unserved(client: &Namespace, source: &str, vip: &str) -> anyhow::Result<[String; 2]> {
    client.enter(|| {
        let from: IpAddr = source.parse()?;
        let tcp = match http::get_from(from, at(vip, 81), "/", NEVER) {
            Ok(_) => "answered".to_owned(),
            Err(error) if format!("{error:#}").contains("refused") => "refused".to_owned(),
            Err(_) => "silence".to_owned(),
        };
        let socket = udp(source, NEVER)?;
        socket.connect(at(vip, 82))?;
        socket.send(b"anybody?")?;
        let udp = match socket.recv(&mut [0; 16]) {
            Ok(_) => "answered",
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => "refused",
            Err(_) => "silence",
        };
        Ok([tcp, udp.to_owned()])
    })?
}

/// `node.unserved`: silence, a refusal, or whatever the host itself says.
#[test]
fn ports_that_nobody_serves() -> anyhow::Result<()> {
    let edge = Edge::start(L2)?;
    let client = edge.client()?;
    // For the last mode the host has the VIPs as well, and no listener at these ports.
    let vips = format!("addr add {L2_V4}/32 dev lo\naddr add {L2_V6}/128 dev lo nodad");
    edge.lab.host("lb")?.ip(&vips)?;
    for (mode, seen, reason) in [
        ("drop", "silence", "no_service"),
        ("reject", "refused", "unserved_rejected"),
        ("pass", "refused", "unserved_passed"),
    ] {
        let text = yaml(&L2()).replace("name: edge}", &format!("name: edge, unserved: {mode}}}"));
        edge.lb.change_config(&text)?;
        for (source, vip) in [(CLIENT_V4, L2_V4), (CLIENT_V6, L2_V6)] {
            let before = count(&edge, reason)?;
            assert_eq!(unserved(client, source, vip)?, [seen, seen], "{mode} {vip}");
            assert!(count(&edge, reason)? >= before + 2.0, "{mode} {vip}: {reason}");
            expect_answered(&edge.requests(vip, 5)?);
        }
    }
    edge.lb.expect_quiet()
}

/// `source_ranges`: others wait in vain.
#[test]
fn clients_that_may_and_others() -> anyhow::Result<()> {
    let mut specs = IPIP();
    for (spec, range) in specs.iter_mut().zip(["192.0.2.100/31", "2001:db8:2::100/127"]) {
        spec.more = format!("    source_ranges: [\"{range}\"]\n");
    }
    let edge = Edge::with(&specs)?;
    let client = edge.client()?;
    let more = "addr add 192.0.2.101/24 dev eth0\naddr add 192.0.2.102/24 dev eth0\n\
                addr add 2001:db8:2::101/64 dev eth0 nodad\naddr add 2001:db8:2::102/64 dev eth0 nodad";
    client.ip(more)?;
    for (source, vip, may) in [
        (CLIENT_V4, IPIP_V4, true),
        ("192.0.2.101", IPIP_V4, true),
        ("192.0.2.102", IPIP_V4, false),
        (CLIENT_V6, IPIP_V6, true),
        ("2001:db8:2::101", IPIP_V6, true),
        ("2001:db8:2::102", IPIP_V6, false),
    ] {
        let before = count(&edge, "source_refused")?;
        let patience = if may { SOON } else { NEVER };
        let answer = client.enter(|| -> anyhow::Result<_> {
            Ok(http::get_from(source.parse()?, at(vip, web::PORT), "/", patience))
        })??;
        assert_eq!(answer.is_ok(), may, "{source}: {answer:?}");
        assert_eq!(count(&edge, "source_refused")? > before, !may, "{source}");
    }
    Ok(())
}

/// The MTU that the client's kernel has learnt for an address.
fn learnt(client: &Namespace, vip: &str) -> anyhow::Result<u64> {
    let route = client.ip_json(&["route", "get", vip])?;
    route[0]["metrics"][0]["mtu"].as_u64().with_context(|| format!("no MTU in {route}"))
}

/// The way to the servers takes less than clients send: they are told, send less, and the upload arrives.
#[test]
fn narrow_ways_are_told_to_clients() -> anyhow::Result<()> {
    let lab = Lab::start()?;
    let decap = lab.decap()?;
    lab.host("lb")?.ip(
        "route change 192.0.2.0/24 dev eth0 proto kernel scope link src 192.0.2.1 mtu 1400\n\
         route change 2001:db8:2::/64 dev eth0 proto kernel metric 256 mtu 1400",
    )?;
    let lb = lab.daemon("lb", &yaml(&IPIP()))?;
    eventually(PATIENCE, || lb.ways_known())?;
    let edge = Edge { lb, decap, lab };
    let client = edge.client()?;
    for (vip, mtu) in [(IPIP_V4, 1400 - 20), (IPIP_V6, 1400 - 40)] {
        assert!(learnt(client, vip).is_err(), "nothing is known before");
        let before = count(&edge, "too_big_answered")?;
        client.enter(|| -> anyhow::Result<()> {
            let mut kept = http::Kept::connect(at(vip, web::PORT))?;
            assert!(kept.post("/", &vec![b'y'; 4 * web::LARGE])?.starts_with(b"web-"));
            Ok(())
        })??;
        assert_eq!(learnt(client, vip)?, mtu);
        assert!(count(&edge, "too_big_answered")? > before);
    }
    Ok(())
}

/// A server that sends datagrams back, in a thread of a namespace.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Echo {
    fn start(entrance: Entrance, address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            entrance.enter()?;
            let socket = UdpSocket::bind(address)?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let mut buffer = vec![0; 65536];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(&buffer[..len], from)?;
                }
            }
            Ok(())
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // What it says on failure, the client sees as silence.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Where translated packets come from.
const BALANCER: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];

/// Datagrams in fragments arrive whole: as the client's kernel sends them, and in every
/// other order.
#[test]
fn datagrams_in_fragments() -> anyhow::Result<()> {
    in_fragments(IPIP, [IPIP_V4, IPIP_V6])
}

/// The same there and back through NAT, which has ports in the first fragment alone.
#[test]
fn datagrams_in_fragments_behind_nat() -> anyhow::Result<()> {
    in_fragments(NAT, [SPARE_V4, SPARE_V6])
}

/// And where the servers are of the other family.
#[test]
fn datagrams_in_fragments_between_families() -> anyhow::Result<()> {
    in_fragments(NAT_CROSSED, [SPARE_V4, SPARE_V6])
}

/// Of the services with fragments.
const PORT: u16 = 9000;

/// A daemon for such services, with the rights that the unit gives it: nothing that fragments need takes more.
fn daemon(lab: &Lab, specs: &[Spec]) -> anyhow::Result<Daemon> {
    let udp = format!("port: {PORT}, protocol: udp");
    let mut lb = lab.daemon("lb", &yaml(specs).replace("port: 80, protocol: tcp", &udp))?;
    lb.stop()?;
    lb.clean_up()?;
    lb.resume_with_rights_of_unit()?;
    eventually(PATIENCE, || lb.ways_known())?;
    Ok(lb)
}

fn in_fragments(specs: Specs, vips: [&str; 2]) -> anyhow::Result<()> {
    let specs = specs();
    let nat = specs[0].forwarding == "nat";
    // A fragment grows by 28 bytes on its way from IPv4 to IPv6.
    let narrow = if specs[0].v6 { 1500 - 28 } else { 1500 };
    let lab = Lab::start()?;
    let decap = if nat { Vec::new() } else { lab.decap()? };
    let lb = daemon(&lab, &specs)?;
    let mut echoes = Vec::new();
    for (n, name) in (1..).zip(WEBS) {
        // A reply is cut for the way back, which is narrower than this host's interface.
        let [four, six] = if nat { BALANCER } else { [CLIENT_V4, CLIENT_V6] };
        lab.host(name)?.ip(&format!(
            "route add {four}/32 dev eth0 mtu {narrow}\nroute add {six}/128 dev eth0 mtu 1500"
        ))?;
        let own = [web_v4(n), web_v6(n)];
        for listens in if nat { [&*own[0], &*own[1]] } else { vips } {
            echoes.push(Echo::start(lab.host(name)?.entrance(), at(listens, PORT)));
        }
    }
    let edge = Edge { lb, decap, lab };
    let payload: Vec<u8> = (0..4000u32).map(|n| n as u8).collect();
    for (source, vip) in [(CLIENT_V4, vips[0]), (CLIENT_V6, vips[1])] {
        for _ in 0..10 {
            // Servers may not listen yet.
            eventually(PATIENCE, || {
                edge.client()?.enter(|| -> anyhow::Result<()> {
                    let socket = udp(source, NEVER)?;
                    socket.send_to(&payload, at(vip, PORT))?;
                    expect_back(&socket, &payload)
                })?
            })?;
        }
    }
    edge.client()?.enter(|| -> anyhow::Result<()> {
        let raw =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        for id in 1..=30u16 {
            let socket = udp(CLIENT_V4, SOON)?;
            let source = socket.local_addr()?.port();
            let parts = fragments((CLIENT_V4, source), (vips[0], PORT), id, &payload);
            send(&raw, vips[0], &parts, ORDERS[usize::from(id) % 6])?;
            expect_back(&socket, &payload)?;
        }
        Ok(())
    })??;
    drop(echoes);
    eventually(PATIENCE, || {
        let followed = edge.lb.metric("lb_fragments_early_total{outcome=\"followed\"")?;
        ensure!(followed == 30.0, "of 30 that came before their first one, {followed} followed it");
        Ok(())
    })?;
    edge.lb.expect_quiet()
}

/// Fragments that overtake the first one of their datagram, from the backend's side: of a reply, which follow it, and of
/// what is for the balancer itself, which gets them whether their first one comes or not.
#[test]
fn fragments_of_replies_in_any_order() -> anyhow::Result<()> {
    const OWN: (&str, u16) = (BALANCER[0], 40_000);
    let mut specs = NAT();
    specs.truncate(1);
    specs[0].webs = vec![1];
    let lab = Lab::start()?;
    let lb = daemon(&lab, &specs)?;
    let (client, web, host) = (lab.host("client")?, lab.host("web-1")?, lab.host("lb")?);
    let outcome = |name: &str| lb.metric(&format!("lb_fragments_early_total{{outcome=\"{name}\""));
    // A socket stays where it was made.
    let own = web_v4(1);
    let server = web.enter(|| -> anyhow::Result<UdpSocket> {
        let socket = UdpSocket::bind(at(&own, PORT))?;
        socket.set_read_timeout(Some(SOON))?;
        Ok(socket)
    })??;
    let raw = web.enter(|| {
        socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
    })??;
    let payload: Vec<u8> = (0..4000u32).map(|n| n as u8).collect();
    for id in 1..=30u16 {
        let asks = client.enter(|| udp(CLIENT_V4, SOON))??;
        asks.send_to(b"?", at(SPARE_V4, PORT))?;
        let (_, from) = server.recv_from(&mut [0; 16]).context("no request")?;
        assert_eq!(from.ip(), BALANCER[0].parse::<IpAddr>()?);
        let parts = fragments((&own, PORT), (BALANCER[0], from.port()), id, &payload);
        send(&raw, BALANCER[0], &parts, ORDERS[usize::from(id) % 6])?;
        expect_back(&asks, &payload).with_context(|| format!("order {}", id % 6))?;
    }
    // Counted after they have gone.
    let counted = |name, wanted| {
        eventually(PATIENCE, || {
            let found = outcome(name)?;
            ensure!(found == wanted, "{found} of {wanted} {name}");
            Ok(())
        })
    };
    counted("followed", 30.0)?;

    let listens = host.enter(|| -> anyhow::Result<UdpSocket> {
        let socket = UdpSocket::bind(at(OWN.0, OWN.1))?;
        socket.set_read_timeout(Some(SOON))?;
        Ok(socket)
    })??;
    for id in 101..=112u16 {
        let parts = fragments((&own, PORT), OWN, id, &payload);
        send(&raw, OWN.0, &parts, ORDERS[usize::from(id) % 6])?;
        expect_back(&listens, &payload).with_context(|| format!("order {}", id % 6))?;
    }
    counted("followed", 42.0)?;
    assert_eq!(outcome("passed")?, 0.0);
    // The first one comes when nobody waits for it any more.
    let parts = fragments((&own, PORT), OWN, 200, &payload);
    send(&raw, OWN.0, &parts[1..], [0, 1])?;
    eventually(PATIENCE, || {
        // Where one went, the other may follow.
        let (passed, followed) = (outcome("passed")?, outcome("followed")?);
        ensure!(passed >= 1.0 && passed + followed == 44.0, "{passed} passed, {followed} followed");
        Ok(())
    })?;
    send(&raw, OWN.0, &parts[..1], [0])?;
    expect_back(&listens, &payload)?;
    assert_eq!((outcome("expired")?, outcome("failed")?), (0.0, 0.0));
    lb.expect_quiet()
}

/// Every order of three.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]];

/// Sends packets in this order.
fn send<const N: usize>(
    raw: &OwnedFd,
    to: &str,
    packets: &[Vec<u8>],
    order: [usize; N],
) -> anyhow::Result<()> {
    let to = SockaddrStorage::from(at(to, 0));
    for n in order {
        sendto(raw.as_raw_fd(), &packets[n], &to, MsgFlags::empty())?;
    }
    Ok(())
}

fn expect_back(socket: &UdpSocket, payload: &[u8]) -> anyhow::Result<()> {
    let mut buffer = vec![0; 65536];
    let (len, _) = socket.recv_from(&mut buffer).context("no answer")?;
    ensure!(buffer[..len] == *payload, "another answer");
    Ok(())
}

/// A datagram in three IPv4 fragments.
fn fragments(from: (&str, u16), to: (&str, u16), id: u16, payload: &[u8]) -> Vec<Vec<u8>> {
    let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().expect("IPv4").octets();
    let mut whole = Vec::new();
    PacketBuilder::ipv4(octets(from.0), octets(to.0), 64)
        .udp(from.1, to.1)
        .write(&mut whole, payload)
        .expect("room");
    let body = whole.split_off(20);
    body.chunks(1400)
        .enumerate()
        .map(|(n, part)| {
            let more = if (n + 1) * 1400 < body.len() { 0x2000 } else { 0 };
            let mut out = whole.clone();
            out[2..4].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
            out[4..6].copy_from_slice(&id.to_be_bytes());
            out[6..8].copy_from_slice(&(more | (n * 1400 / 8) as u16).to_be_bytes());
            // The kernel writes the header's checksum.
            out.extend(part);
            out
        })
        .collect()
}

/// The client's addresses in its VLAN.
const TAGGED: [&str; 2] = ["192.0.2.110", "2001:db8:2::110"];

/// Clients behind a VLAN tag, and behind two: what is forwarded keeps them, what is translated loses them on the way to
/// its server, and replies have them again.
#[test]
fn clients_behind_tags() -> anyhow::Result<()> {
    behind_tags(&[0x81, 0, 0x60, 7], "vlan 7, p 3, ethertype IPv")?;
    behind_tags(
        &[0x88, 0xa8, 0xe0, 100, 0x81, 0, 0x20, 8],
        "vlan 100, p 7, ethertype 802.1Q (0x8100), vlan 8, p 1, ethertype IPv",
    )
}

/// A client and a server in a VLAN of their own.
struct Vlan {
    _server: web::Web,
    client: Tagged,
    near: Tagged,
    lab: Lab,
}

/// The client knows the way to these VIPs, of one family each, and the server has them.
fn vlan_lab(tags: &'static [u8], vips: [&[&str]; 2]) -> anyhow::Result<Vlan> {
    let lab = Lab::start()?;
    let client = Tagged::start(&lab, "vlan-client", &TAGGED, tags)?;
    // A server is reached by the tags that a packet came with: this one is in the client's VLAN.
    let (own4, own6) = (web_v4(4), web_v6(4));
    let near = Tagged::start(&lab, "vlan-web", &[&own4, &own6], tags)?;
    vlan::in_frames(lab.fabric(), &["to-lb"])?;

    // The balancer has no interface in the VLAN: nobody there answers for it, and it asks for nobody there.
    let (balancer, mac) = (vlan::mac_of(lab.host("lb")?)?, near.mac()?);
    lab.host("lb")?.ip(&format!(
        "neigh replace {own4} lladdr {mac} dev eth0 nud permanent\n\
         neigh replace {own6} lladdr {mac} dev eth0 nud permanent"
    ))?;
    near.host().sysctl("ipv4/conf/all/arp_ignore", "1")?;
    near.host().sysctl("ipv4/conf/all/arp_announce", "2")?;
    for (via, vips) in BALANCER.iter().zip(vips) {
        let neighbour = format!("neigh replace {via} lladdr {balancer} dev eth0 nud permanent");
        client.host().ip(&neighbour)?;
        for vip in vips {
            client.host().ip(&format!("route add {vip} via {via}"))?;
            let rest = if vip.contains(':') { "/128 dev lo nodad" } else { "/32 dev lo" };
            near.host().ip(&format!("addr add {vip}{rest}"))?;
        }
    }
    let directory = lab.directory().join("vlan-web");
    let _server = web::Web::start(near.host(), &directory, "vlan-web")?;
    Ok(Vlan { _server, client, near, lab })
}

/// `seen`: how a capture says these tags.
fn behind_tags(tags: &'static [u8], seen: &str) -> anyhow::Result<()> {
    const REQUESTS: usize = 40;
    let vips: [&[&str]; 2] = [&[L2_V4, SPARE_V4], &[L2_V6, SPARE_V6]];
    let Vlan { _server, client, near, lab } = vlan_lab(tags, vips)?;
    let mut specs = L2();
    for spec in &mut specs {
        spec.webs = vec![4];
    }
    specs.extend(NAT());
    let lb = lab.daemon("lb", &yaml(&specs))?;
    eventually(PATIENCE, || lb.ways_known())?;

    let capture = |port: &str| {
        let file = lab.directory().join(format!("{port}.pcap"));
        Capture::start(lab.fabric(), port, "", &file)
    };
    let (at_client, at_near) = (capture(client.port())?, capture(near.port())?);
    let at_web = capture("to-web-1")?;
    for vip in [L2_V4, L2_V6] {
        let tally = http::requests(client.host(), at(vip, web::PORT), REQUESTS)?;
        expect_answered(&tally);
        assert_eq!(tally.answers.get("vlan-web"), Some(&(REQUESTS as u64)), "{vip}");
    }
    for vip in [SPARE_V4, SPARE_V6] {
        expect_all_answer(&http::requests(client.host(), at(vip, web::PORT), REQUESTS)?);
    }

    let segments = |packets: Vec<String>| -> Vec<String> {
        assert_eq!(Checksums::of(&packets).wrong, Vec::<String>::new());
        packets.into_iter().filter(|packet| packet.contains("Flags [")).collect()
    };
    let to = |vip: &str| format!(" > {vip}.80: ");
    let from = |vip: &str| format!(" {vip}.80 > ");
    let count =
        |packets: &[String], what: &str| packets.iter().filter(|p| p.contains(what)).count();
    at_client.until(|packets| {
        for vip in [L2_V4, L2_V6, SPARE_V4, SPARE_V6] {
            // SYN and its answer, request and answer.
            let [there, back] = [count(packets, &to(vip)), count(packets, &from(vip))];
            ensure!(there >= 2 * REQUESTS && back >= 2 * REQUESTS, "{vip}: {there}, {back}");
        }
        Ok(())
    })?;
    let (at_client, at_near) = (segments(at_client.packets()?), segments(at_near.packets()?));
    let at_web = segments(at_web.packets()?);
    assert!(count(&at_near, &to(L2_V4)) >= 2 * REQUESTS);
    assert!(count(&at_near, &to(L2_V6)) >= 2 * REQUESTS);
    for packet in at_client.iter().chain(&at_near) {
        assert!(packet.contains(seen), "{packet}");
    }
    for balancer in BALANCER {
        assert!(count(&at_web, &format!(" {balancer}.")) > 0, "{balancer}");
    }
    assert_eq!(count(&at_web, "vlan"), 0, "{at_web:?}");
    lb.expect_quiet()
}

/// Tunnels to a server in the client's VLAN: the tags stand in front of the outer header as they came.
#[test]
fn tunnels_behind_tags() -> anyhow::Result<()> {
    for (tags, seen) in [
        (&[0x81, 0, 0x60, 7][..], "vlan 7, p 3, ethertype IPv"),
        (
            &[0x88, 0xa8, 0xe0, 100, 0x81, 0, 0x20, 8],
            "vlan 100, p 7, ethertype 802.1Q (0x8100), vlan 8, p 1, ethertype IPv",
        ),
    ] {
        tunnels_behind(tags, seen)?;
    }
    Ok(())
}

fn tunnels_behind(tags: &'static [u8], seen: &str) -> anyhow::Result<()> {
    const REQUESTS: usize = 20;
    let vips: [&[&str]; 2] = [&[IPIP_V4, SPARE_V4], &[IPIP_V6, SPARE_V6]];
    let Vlan { _server, client, near, lab } = vlan_lab(tags, vips)?;
    let yaml_of = |forwarding| {
        let mut all = Vec::new();
        // IPv4 and IPv6 in either.
        for (name, vip, v6) in [
            ("4-in-4", IPIP_V4, false),
            ("6-in-6", IPIP_V6, true),
            ("4-in-6", SPARE_V4, true),
            ("6-in-4", SPARE_V6, false),
        ] {
            let mut spec = spec(name, vip, forwarding, v6);
            spec.webs = vec![4];
            all.push(spec);
        }
        yaml(&all)
    };
    let roles = "interfaces:\n  - {name: eth0, xdp_mode: generic, roles: [decap]}\n";
    let decap = lab.daemon_at(near.host(), "vlan-web", roles)?;
    let lb = lab.daemon("lb", &yaml_of("ipip"))?;
    for (forwarding, signs) in [
        ("ipip", ["proto IPIP", "next-header IPIP", "proto IPv6 (41)", "next-header IPv6"]),
        ("gue", [".6080: "; 4]),
        ("geneve", ["Geneve"; 4]),
    ] {
        if forwarding != "ipip" {
            lb.change_config(&yaml_of(forwarding))?;
        }
        eventually(PATIENCE, || lb.ways_known())?;
        let file = lab.directory().join(format!("{forwarding}.pcap"));
        let capture = Capture::start(lab.fabric(), near.port(), "", &file)?;
        for vip in vips.into_iter().flatten() {
            let tally = http::requests(client.host(), at(vip, web::PORT), REQUESTS)?;
            expect_answered(&tally);
            assert_eq!(tally.answers.get("vlan-web"), Some(&(REQUESTS as u64)), "{vip}");
        }
        // tcpdump looks into all of them but GUE.
        let is_to = |packet: &str, vip: &str| {
            forwarding == "gue" || packet.contains(&format!(" > {vip}.80: "))
        };
        let tunnelled = |packet: &&String| signs.iter().any(|sign| packet.contains(sign));
        // SYN, request and end of each, at least; and answers.
        capture.until(|packets| {
            for vip in vips.into_iter().flatten() {
                let there = packets.iter().filter(tunnelled).filter(|p| is_to(p, vip)).count();
                let least = if forwarding == "gue" { 4 * 3 * REQUESTS } else { 3 * REQUESTS };
                ensure!(there >= least, "{forwarding} {vip}: {there} of {}", packets.len());
                let back = packets.iter().filter(|p| p.contains(&format!(" {vip}.80 > "))).count();
                ensure!(back >= 2 * REQUESTS, "{forwarding} {vip}: {back} back");
            }
            Ok(())
        })?;
        let packets = capture.packets()?;
        let sums = Checksums::of(&packets);
        assert_eq!(sums.wrong, Vec::<String>::new());
        assert!(sums.right >= 4 * 2 * REQUESTS, "{} of {}", sums.right, packets.len());
        for packet in packets.iter().filter(tunnelled) {
            assert!(packet.contains(seen), "{packet}");
        }
    }
    decap.expect_quiet()?;
    lb.expect_quiet()
}

/// Frames larger than a page, in several buffers: they are forwarded as any other.
#[test]
fn jumbo_frames() -> anyhow::Result<()> {
    let lab = Lab::start()?;
    let ports: String = ["client", "lb"]
        .iter()
        .chain(&WEBS)
        .map(|host| format!("link set to-{host} mtu 9100\n"))
        .collect();
    lab.fabric().ip(&format!("{ports}link set br0 mtu 9100"))?;
    for host in ["lb"].iter().chain(&WEBS) {
        lab.host(host)?.ip("link set eth0 mtu 9100")?;
    }
    lab.host("client")?.ip("link set eth0 mtu 9000")?;
    let decap = lab.decap()?;
    let lb = lab.daemon("lb", &yaml(&IPIP()))?;
    eventually(PATIENCE, || lb.ways_known())?;
    let edge = Edge { lb, decap, lab };
    let file = edge.lab.directory().join("lb.pcap");
    let capture = Capture::start(edge.lab.fabric(), "to-lb", "greater 8000", &file)?;
    for vip in [IPIP_V4, IPIP_V6] {
        edge.client()?.enter(|| -> anyhow::Result<()> {
            let mut kept = http::Kept::connect(at(vip, web::PORT))?;
            assert!(kept.post("/", &vec![b'y'; 4 * web::LARGE])?.starts_with(b"web-"));
            assert_eq!(kept.get("/large")?.len(), web::LARGE);
            Ok(())
        })??;
    }
    // In and out again, each four megabytes in frames of nine kilobytes.
    capture.until(|packets| {
        ensure!(packets.len() > 1500, "{} large frames", packets.len());
        Ok(())
    })?;
    edge.lb.expect_quiet()
}
