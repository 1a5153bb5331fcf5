//! The policy programs in the kernel, run on single packets; nothing is attached or pinned.

#[path = "../../lb-daemon/src/policy/tests/random.rs"]
mod random;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use abi::{policy::Way, reason::Reason};
use anyhow::Context as _;
use aya::programs::{TestRun as _, TestRunOptions};
use config::{
    model::{Endpoint, Source},
    policy::{Direction, Enforcement, Entity, Established, Labels, Rule, import},
};
use etherparse::PacketBuilder;
use lb_daemon::policy::{
    Flow, Verdict, explain,
    explain::Other,
    image::Op,
    kernel::{Kernel, PolicyCounters},
    state::{State, Wanted},
};
use lb_tests::rig::{POLICY_SIZES, need_root};
use random::Random;

const SALT: u64 = 5;
/// The interface that a test run claims: the namespace's loopback.
const INTERFACE: u32 = 1;
const SHOT: u32 = 2;
const UNSPEC: u32 = u32::MAX;

/// The programs and their tables.
struct Rig {
    kernel: Kernel,
    state: State,
    counters: PolicyCounters,
    /// Words of the interfaces, as the state wants them.
    words: HashMap<u32, u64>,
    wanted: Wanted,
}

impl Rig {
    fn new(wanted: Wanted) -> anyhow::Result<Self> {
        need_root();
        let kernel = Kernel::make(POLICY_SIZES, SALT, None)?;
        let counters = kernel.counters()?;
        let state = State::new(POLICY_SIZES, SALT);
        let words = HashMap::new();
        let mut rig = Self { kernel, state, counters, words, wanted: Wanted::default() };
        rig.put(wanted)?;
        Ok(rig)
    }

    fn put(&mut self, wanted: Wanted) -> anyhow::Result<()> {
        let ops = self.state.plan(wanted.clone())?;
        self.kernel.apply(&ops);
        self.words.extend(ops.iter().filter_map(|op| match op {
            Op::Interface(index, word) => Some((*index, *word)),
            _ => None,
        }));
        self.wanted = wanted;
        Ok(())
    }

    /// Runs a packet through the interface of the endpoint with this place in the list.
    fn run(&mut self, subject: usize, way: Way, frame: &[u8]) -> anyhow::Result<(Reason, u32)> {
        let word = self.words[&(subject as u32 + 2)];
        self.kernel.apply(&[Op::Interface(INTERFACE, word)]);
        let all = |counters: &PolicyCounters| -> Vec<u64> {
            Reason::ALL.iter().map(|reason| counters.reason(*reason).packets).collect()
        };
        let before = all(&self.counters);
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
        let done = self.kernel.program(way)?.test_run(options)?;
        let after = all(&self.counters);
        let moved: Vec<Reason> = Reason::ALL
            .iter()
            .copied()
            .filter(|r| before[*r as usize] != after[*r as usize])
            .collect();
        let [reason] = moved[..] else { anyhow::bail!("not one reason is counted: {moved:?}") };
        Ok((reason, done.return_value))
    }

    /// Nanoseconds for one of many runs.
    fn time(&mut self, subject: usize, way: Way, frame: &[u8]) -> anyhow::Result<f64> {
        self.run(subject, way, frame)?;
        let mut best = f64::MAX;
        for _ in 0..5 {
            let options = TestRunOptions {
                data_in: Some(frame),
                repeat: 200_000,
                ..TestRunOptions::default()
            };
            let done = self.kernel.program(way)?.test_run(options)?;
            best = best.min(done.duration.as_nanos() as f64);
        }
        Ok(best)
    }
}

const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 31, 0, 1));

fn address_of(n: usize) -> IpAddr {
    IpAddr::from([172, 16, (n >> 8) as u8, n as u8])
}

/// Endpoint n has the address 172.16.n and interface n + 2; the host has 172.31.0.1, and the interface behind
/// those of endpoints.
fn wanted(labels: &[Labels], rules: Vec<Rule>, enforcement: Enforcement) -> Wanted {
    let endpoints = labels.iter().enumerate().map(|(n, labels)| {
        let endpoint = Endpoint {
            name: n.to_string(),
            source: Source::Api,
            labels: labels.clone(),
            addresses: vec![address_of(n)],
            interface: format!("veth-{n}"),
            audit: false,
            enforcement: None,
            ports: Vec::new(),
        };
        (Arc::new(endpoint), Some(n as u32 + 2))
    });
    let host = Endpoint {
        name: "host".to_owned(),
        source: Source::Api,
        labels: id("node"),
        addresses: Vec::new(),
        interface: "eth0".to_owned(),
        audit: false,
        enforcement: None,
        ports: Vec::new(),
    };
    Wanted {
        established: Default::default(),
        fqdn: Default::default(),
        endpoints: endpoints.collect(),
        host: Some((Arc::new(host), [labels.len() as u32 + 2].into())),
        nodes: [(HOST, 1)].into(),
        rules: Arc::new(rules),
        enforcement,
        groups: BTreeMap::new(),
    }
}

/// A packet; addresses of two families are mapped into one, which no packet has: `None`.
fn frame(src: IpAddr, dst: IpAddr, flow: Flow, from: u16, syn: bool) -> Option<Vec<u8>> {
    let builder = PacketBuilder::ethernet2([2; 6], [3; 6]);
    let builder = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => builder.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => builder.ipv6(src.octets(), dst.octets(), 64),
        _ => return None,
    };
    let mut out = Vec::new();
    match flow.protocol {
        6 => {
            let tcp = builder.tcp(from, flow.port, 1, 1000);
            let tcp = if syn { tcp.syn() } else { tcp.ack(1) };
            tcp.write(&mut out, &[]).ok()?;
        }
        17 => builder.udp(from, flow.port).write(&mut out, &[0; 8]).ok()?,
        1 | 58 => {
            let kind = u8::try_from(flow.port).ok()?;
            let mut body = [0u8; 16];
            body[0] = kind;
            builder.write(&mut out, flow.protocol.into(), &body).ok()?;
        }
        other => {
            let mut body = [0u8; 16];
            body[0..2].copy_from_slice(&from.to_be_bytes());
            body[2..4].copy_from_slice(&flow.port.to_be_bytes());
            builder.write(&mut out, other.into(), &body).ok()?;
        }
    }
    Some(out)
}

/// 100 random sets of rules, 1,000 random flows each: what the kernel does is what the rules say as they
/// are read one by one.
#[test]
fn the_programs_do_what_the_rules_say() -> anyhow::Result<()> {
    let mut random = Random(9);
    let (mut passed, mut dropped, mut audited) = (0, 0, 0);
    let mut rig: Option<Rig> = None;
    for set in 0..100u16 {
        let rules: Vec<Rule> = (0..1 + random.below(12)).map(|_| random.named()).collect();
        let labels: Vec<Labels> = (0..12).map(|_| random.labels()).collect();
        let enforcement = match set % 10 {
            0 => Enforcement::Never,
            1 => Enforcement::Always,
            _ => Enforcement::Default,
        };
        // Connections are remembered: each flow of a rig has a source port of its own.
        if set % 5 == 0 {
            rig = None;
        }
        let mut wanted = wanted(&labels, rules, enforcement);
        if let Some((host, _)) = &mut wanted.host {
            Arc::make_mut(host).labels = random.labels();
            Arc::make_mut(host).ports = random.port_names();
        }
        for (endpoint, _) in &mut wanted.endpoints {
            Arc::make_mut(endpoint).ports = random.port_names();
        }
        wanted.groups = random.groups();
        let facts = wanted.clone();
        let rig = match &mut rig {
            Some(rig) => {
                rig.put(wanted)?;
                rig
            }
            None => rig.insert(Rig::new(wanted)?),
        };
        let mut asked = 0u16;
        while asked < 1000 {
            // The last one is the host.
            let subject = random.below(labels.len() + 1);
            let own = if subject == labels.len() { HOST } else { address_of(subject) };
            let peer = match random.below(6) {
                0 => HOST,
                1 | 2 => random.address(),
                _ => address_of(random.below(labels.len())),
            };
            let other = match labels.iter().enumerate().find(|(n, _)| address_of(*n) == peer) {
                Some((_, labels)) => Other::Endpoint(labels),
                None if peer == HOST => Other::Reserved(Entity::Host),
                None => Other::World(peer),
            };
            let protocol = random.one(&[1, 6, 6, 6, 17, 17, 47, 58, 132]);
            // Echo requests; of IPv6, types that are not neighbour discovery.
            let port =
                if matches!(protocol, 1 | 58) { random.one(&[8, 79]) } else { random.port() };
            let flow = Flow { protocol, port };
            // Without ports a packet back is always a reply: they go one way only.
            let back = protocol != 47 && random.chance(50);
            let way = if back { Way::In } else { Way::Out };
            let direction = if way == Way::In { Direction::Ingress } else { Direction::Egress };
            let (src, dst) = if way == Way::In { (peer, own) } else { (own, peer) };
            let from = 10_000 + set % 5 * 10_000 + asked;
            let Some(frame) = frame(src, dst, flow, from, true) else { continue };
            asked += 1;
            let place = facts.places().find(|place| place.index == subject as u32 + 2);
            let of = facts.subject_at(place.context("an interface")?);
            let why = explain(&facts, of, direction, other, flow);
            let (reason, action) = rig.run(subject, way, &frame)?;
            let context = || format!("set {set}: {direction:?} {flow:?} {other:?} {reason:?}");
            match (why.verdict, reason) {
                (Verdict::Open, Reason::PolicyOpen)
                | (Verdict::Allowed(_), Reason::PolicyAllowed) => {
                    assert_eq!(action, UNSPEC, "{}", context());
                    passed += 1;
                }
                (Verdict::WouldDeny(_) | Verdict::WouldDenyByDefault, Reason::PolicyAudit) => {
                    assert_eq!(action, UNSPEC, "{}", context());
                    audited += 1;
                }
                (Verdict::DeniedByDefault, Reason::PolicyDefaultDeny)
                | (Verdict::Denied(_), Reason::PolicyDenied) => {
                    assert_eq!(action, SHOT, "{}", context());
                    dropped += 1;
                }
                (verdict, _) => panic!("{verdict:?}: {}", context()),
            }
        }
    }
    assert!(passed > 10_000 && dropped > 10_000, "both happen: {passed} {dropped}");
    assert!(audited > 2_000, "{audited}");
    Ok(())
}

const PUBLISHED: &str = r#"[{
    "labels": [{"key": "name", "value": "l3-rule"}],
    "endpointSelector": {"matchLabels": {"id": "app1"}},
    "ingress": [{
        "fromEndpoints": [{"matchLabels": {"id": "app2"}}],
        "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]
    }]
}]"#;

fn rules(text: &str) -> Vec<Rule> {
    import(Path::new("rules.json"), text).expect("good rules")
}

fn id(name: &str) -> Labels {
    Labels::from([("id".to_owned(), name.to_owned())])
}

/// A row of counters that another rule has had counts for the new one from 0 on.
#[test]
fn a_rule_counts_from_its_own_first_packet() -> anyhow::Result<()> {
    let labels = ["app1", "app2"].map(id);
    let with = |name: &str| {
        wanted(&labels, rules(&PUBLISHED.replace("l3-rule", name)), Enforcement::Default)
    };
    let mut rig = Rig::new(with("one"))?;
    let flow = Flow { protocol: 6, port: 80 };
    let syn = frame(address_of(1), address_of(0), flow, 4000, true).expect("one family");
    let mut rows = BTreeSet::new();
    for name in ["one", "two", "three"] {
        rig.put(with(name))?;
        rig.state.release();
        let row = rig.state.rule_rows()[0];
        rows.insert(row);
        assert_eq!(rig.counters.rule(row).packets, 0, "{name}");
        rig.run(0, Way::In, &syn)?;
        assert_eq!(rig.counters.rule(row).packets, 1, "{name}");
    }
    assert_eq!(rows.len(), 2, "rows are used again");
    Ok(())
}

/// The verifier gives up at a million: what is new goes into a global function before this is raised much.
#[test]
fn the_verifier_has_room() -> anyhow::Result<()> {
    let mut kernel = Kernel::make(POLICY_SIZES, SALT, None)?;
    for way in [Way::In, Way::Out] {
        let count = kernel.program(way)?.info()?.verified_instruction_count().unwrap_or(0);
        println!("{way:?}: {count} instructions");
        assert!((1..=400_000).contains(&count), "{way:?}: {count} instructions");
    }
    Ok(())
}

/// `policy_established: keep`.
#[test]
fn what_was_established_is_held() -> anyhow::Result<()> {
    let labels = ["app1", "app2"].map(id);
    let of = |text: &str| {
        let own = wanted(&labels, rules(text), Enforcement::Default);
        Wanted { established: Established::Keep, ..own }
    };
    let mut rig = Rig::new(of(PUBLISHED))?;
    let [app1, app2] = [0, 1].map(address_of);
    let tcp = |src, dst, from, to, syn| {
        frame(src, dst, Flow { protocol: 6, port: to }, from, syn).expect("one family")
    };
    let (syn, more) = (tcp(app2, app1, 4000, 80, true), tcp(app2, app1, 4000, 80, false));
    let answer = tcp(app1, app2, 80, 4000, false);
    assert_eq!(rig.run(0, Way::In, &syn)?.0, Reason::PolicyAllowed);
    assert_eq!(rig.run(0, Way::Out, &answer)?.0, Reason::PolicyOpen);
    rig.put(of(&PUBLISHED.replace("app2", "app9")))?;
    assert_eq!(rig.run(0, Way::In, &more)?, (Reason::PolicyHeld, UNSPEC));
    assert_eq!(rig.run(0, Way::In, &syn)?, (Reason::PolicyDefaultDeny, SHOT));
    Ok(())
}

/// Each reason of policy, by a packet that meets it.
#[test]
fn every_reason() -> anyhow::Result<()> {
    let text = PUBLISHED.replace(
        "\"ingress\":",
        "\"ingressDeny\": [{\"fromEndpoints\": [{\"matchLabels\": {\"id\": \"app4\"}}]}], \"ingress\":",
    );
    let labels = ["app1", "app2", "app3", "app4"].map(id);
    let mut rig = Rig::new(wanted(&labels, rules(&text), Enforcement::Default))?;
    let [app1, app2, app3, app4] = [0, 1, 2, 3].map(address_of);
    let tcp = |src, dst, from, to, syn| {
        frame(src, dst, Flow { protocol: 6, port: to }, from, syn).expect("one family")
    };
    let mut expect = |way, frame: &[u8], reason: Reason| -> anyhow::Result<()> {
        let (got, action) = rig.run(0, way, frame)?;
        assert_eq!(got, reason);
        let drops = reason.verdict() == abi::reason::Verdict::Drop;
        assert_eq!(action, if drops { SHOT } else { UNSPEC }, "{reason:?}");
        Ok(())
    };
    expect(Way::In, &tcp(app2, app1, 4000, 80, true), Reason::PolicyAllowed)?;
    expect(Way::Out, &tcp(app1, app2, 80, 4000, false), Reason::PolicyOpen)?;
    expect(Way::In, &tcp(app3, app1, 4000, 80, true), Reason::PolicyDefaultDeny)?;
    expect(Way::In, &tcp(app4, app1, 4000, 80, true), Reason::PolicyDenied)?;
    expect(Way::In, &tcp(app3, app1, 443, 5000, false), Reason::PolicyDefaultDeny)?;
    expect(Way::Out, &tcp(app1, app3, 5000, 443, true), Reason::PolicyOpen)?;
    expect(Way::In, &tcp(app3, app1, 443, 5000, false), Reason::PolicyReply)?;
    expect(Way::In, &tcp(app2, app1, 4000, 80, true)[..40], Reason::PolicyMalformed)?;
    let mut arp = vec![0u8; 42];
    arp[12..14].copy_from_slice(&[8, 6]);
    expect(Way::In, &arp, Reason::NotIp)?;

    // A router in the world says that what app1 sent to app3 cannot get there.
    let mut error = vec![0u8; 8];
    error[0] = 3;
    error.extend_from_slice(&tcp(app1, app3, 5000, 443, true)[14..42]);
    let router: [u8; 4] = [198, 51, 100, 1];
    let IpAddr::V4(own) = app1 else { unreachable!() };
    let builder = PacketBuilder::ethernet2([2; 6], [3; 6]).ipv4(router, own.octets(), 64);
    let mut packet = Vec::new();
    builder.write(&mut packet, 1.into(), &error)?;
    expect(Way::In, &packet, Reason::PolicyRelated)?;
    // The same about a packet that app1 never sent.
    packet[14 + 20 + 8 + 15] ^= 1;
    expect(Way::In, &packet, Reason::PolicyDefaultDeny)?;

    let mut part = frame(app3, app1, Flow { protocol: 17, port: 9 }, 9, false).expect("one family");
    part[14 + 7] = 1;
    expect(Way::In, &part, Reason::PolicyFragment)?;
    let (a, b) = ("2001:db8::1".parse()?, "2001:db8::2".parse()?);
    let solicitation = frame(a, b, Flow { protocol: 58, port: 135 }, 0, false).expect("one family");
    expect(Way::In, &solicitation, Reason::PolicyNeighbour)?;

    let word = rig.words[&2];
    let audit = abi::policy::Interface::from_word(word)
        .map(|i| abi::policy::Interface { audit: true, ..i });
    rig.words.insert(2, audit.expect("an endpoint").to_word());
    let denied = tcp(app4, app1, 4000, 80, true);
    assert_eq!(rig.run(0, Way::In, &denied)?, (Reason::PolicyAudit, UNSPEC));
    rig.words.insert(2, 0);
    assert_eq!(rig.run(0, Way::In, &denied)?, (Reason::NoEndpoint, UNSPEC));
    Ok(())
}

/// What is neither from nor for the host is not its firewall's, and a reply may come through another interface.
#[test]
fn the_host_and_what_it_forwards() -> anyhow::Result<()> {
    let rule = "{\"name\": \"ssh\", \"nodeSelector\": {\"matchLabels\": {\"id\": \"node\"}}, \"ingress\": \
                [{\"fromEntities\": [\"world\"], \"toPorts\": [{\"ports\": [{\"port\": \"22\"}]}]}]}";
    let mut wanted = wanted(&[id("app1")], rules(rule), Enforcement::Default);
    if let Some((_, indexes)) = &mut wanted.host {
        indexes.insert(4);
    }
    let mut rig = Rig::new(wanted)?;
    let [world, other]: [IpAddr; 2] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
    let tcp = |src, dst, from, to, syn| {
        frame(src, dst, Flow { protocol: 6, port: to }, from, syn).expect("one family")
    };
    // Subjects 1 and 2 have the host's interfaces, 3 and 4.
    let mut expect = |subject, way, frame: &[u8], reason| -> anyhow::Result<()> {
        assert_eq!(rig.run(subject, way, frame)?.0, reason);
        Ok(())
    };
    expect(1, Way::In, &tcp(world, HOST, 4000, 22, true), Reason::PolicyAllowed)?;
    expect(1, Way::In, &tcp(world, HOST, 4000, 80, true), Reason::PolicyDefaultDeny)?;
    expect(1, Way::In, &tcp(world, other, 4000, 80, true), Reason::PolicyNotHost)?;
    expect(1, Way::Out, &tcp(other, world, 4000, 80, true), Reason::PolicyNotHost)?;
    expect(1, Way::In, &tcp(world, address_of(0), 4000, 80, true), Reason::PolicyNotHost)?;
    expect(1, Way::Out, &tcp(HOST, world, 5000, 443, true), Reason::PolicyOpen)?;
    expect(2, Way::In, &tcp(world, HOST, 443, 5000, false), Reason::PolicyReply)?;
    // The rule is not about endpoints, whose interfaces have connections of their own.
    expect(0, Way::In, &tcp(world, address_of(0), 4000, 80, true), Reason::PolicyOpen)?;
    Ok(())
}

/// Prints what a packet costs; fails only when the number of rules shows. `--nocapture` shows it.
#[test]
fn the_number_of_rules_does_not_show() -> anyhow::Result<()> {
    let mut of = Vec::new();
    for count in [10, 10_000] {
        // A thousand endpoints; each rule lets one in to another one, on a port of its own.
        let labels: Vec<Labels> = (0..1000).map(|n| id(&format!("app{n}"))).collect();
        let many = (0..count).map(|n| {
            let one = PUBLISHED.replace("app1", &format!("app{}", n % 1000));
            let one = one.replace("app2", &format!("app{}", (n * 7 + n / 1000 + 1) % 1000));
            let one = one.replace("\"80\"", &format!("\"{}\"", 80 + n / 1000));
            rules(&one.replace("l3-rule", &format!("rule-{n}"))).remove(0)
        });
        let began = std::time::Instant::now();
        let mut rig = Rig::new(wanted(&labels, many.collect(), Enforcement::Default))?;
        let took = began.elapsed();
        let (app0, app1, app2) = (address_of(0), address_of(1), address_of(2));
        let packet = |src, dst, from, to, syn| {
            frame(src, dst, Flow { protocol: 6, port: to }, from, syn).expect("one family")
        };
        let allowed = packet(app1, app0, 4000, 80, false);
        assert_eq!(rig.run(0, Way::In, &allowed)?.0, Reason::PolicyAllowed);
        let denied = packet(app2, app0, 4000, 80, true);
        assert_eq!(rig.run(0, Way::In, &denied)?.0, Reason::PolicyDefaultDeny);
        let opened = packet(app0, app2, 5000, 443, true);
        assert_eq!(rig.run(0, Way::Out, &opened)?.0, Reason::PolicyOpen);
        let reply = packet(app2, app0, 443, 5000, false);
        assert_eq!(rig.run(0, Way::In, &reply)?.0, Reason::PolicyReply);
        let mut arp = vec![0u8; 42];
        arp[12..14].copy_from_slice(&[8, 6]);
        let floor = rig.time(0, Way::In, &arp)?;
        let mut net =
            |way, frame: &[u8]| -> anyhow::Result<f64> { Ok(rig.time(0, way, frame)? - floor) };
        let established = net(Way::In, &allowed)?;
        println!(
            "{count} rules, compiled and written in {took:?}: floor {floor} ns; net: established {established} \
             ns, denied {} ns, opened and remembered {} ns, reply {} ns",
            net(Way::In, &denied)?,
            net(Way::Out, &opened)?,
            net(Way::In, &reply)?,
        );
        of.push(established);
    }
    // Times on a machine that others use too are rough.
    assert!(of[1] < of[0] * 1.5 + 10.0, "{of:?}");
    Ok(())
}
