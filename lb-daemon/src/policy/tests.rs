//! The compiler against the rules as they are read one by one, and what identities promise.

mod page;
mod random;
mod tables;

use std::{net::IpAddr, path::Path};

use config::policy::{Clause, Direction, Enforcement, Entity, Labels, Peer, Rule, import};

use self::random::Random;
use super::{
    Flow, Identities, Verdict,
    compile::{Known, Subject, compile},
    explain,
    explain::Other,
    identity,
    state::Wanted,
};

#[test]
fn the_tables_say_what_the_rules_say() {
    let mut random = Random(5);
    let mut seen = [0usize; 6];
    for set in 0..100 {
        let rules: Vec<Rule> = (0..1 + random.below(12)).map(|_| random.rule()).collect();
        let enforcement = match set % 10 {
            0 => Enforcement::Never,
            1 => Enforcement::Always,
            _ => Enforcement::Default,
        };
        let wanted = random_site(&mut random, rules, enforcement);
        let endpoints: Vec<Labels> =
            wanted.endpoints.iter().map(|(endpoint, _)| endpoint.labels.clone()).collect();
        let (identities, known) = wanted.numbered().expect("fits");
        let tables: Vec<_> = wanted
            .endpoints
            .iter()
            .map(|(endpoint, _)| {
                let subject = wanted.subject(endpoint);
                (subject, compile(subject, &wanted.rules, &identities, &known).expect("fits"))
            })
            .collect();
        for _ in 0..1000 {
            let (subject, compiled) = &tables[random.below(tables.len())];
            let labels = random.one(&endpoints);
            let other = match random.below(6) {
                0 => Other::Reserved(random.one(&[Entity::Host, Entity::RemoteNode])),
                1 | 2 => Other::World(random.address()),
                _ => Other::Endpoint(&labels),
            };
            let peer = match other {
                Other::Endpoint(labels) => identities.of_endpoint(labels).expect("numbered"),
                Other::Reserved(entity) => identity::reserved(entity).expect("one identity"),
                Other::World(address) => identities.of_address(address),
            };
            let flow =
                Flow { protocol: random.one(&[1, 6, 6, 17, 47, 58, 132]), port: random.port() };
            let direction = random.one(&[Direction::Ingress, Direction::Egress]);
            let why = explain(&wanted, *subject, direction, other, flow);
            let got = compiled.verdict(direction, peer, flow);
            assert_eq!(got, why.verdict, "set {set}: {direction:?} {flow:?} {other:?} {wanted:#?}");
            seen[match got {
                Verdict::Open => 0,
                Verdict::Allowed(_) => 1,
                Verdict::DeniedByDefault => 2,
                Verdict::Denied(_) => 3,
                Verdict::WouldDeny(_) => 4,
                Verdict::WouldDenyByDefault => 5,
            }] += 1;
        }
    }
    assert!(seen.iter().all(|n| *n > 100), "every verdict is exercised: {seen:?}");
}

/// The number of the host among endpoints.
const HOST_AT: u32 = 12;

/// A dozen endpoints that meet often, and groups that some of them are in. Endpoint n has 172.16.0.n and interface
/// n+1, the host 172.31.0.1 and interface 13.
fn random_site(random: &mut Random, rules: Vec<Rule>, enforcement: Enforcement) -> Wanted {
    let endpoint = |random: &mut Random, n: u32| config::model::Endpoint {
        name: n.to_string(),
        source: config::model::Source::Api,
        labels: random.labels(),
        addresses: vec![IpAddr::from([172, 16, 0, n as u8])],
        interface: format!("veth-{n}"),
        audit: false,
        enforcement: None,
        ports: random.port_names(),
    };
    Wanted {
        established: Default::default(),
        fqdn: Default::default(),
        endpoints: (0..12).map(|n| (endpoint(random, n).into(), Some(n + 1))).collect(),
        host: Some((endpoint(random, HOST_AT).into(), [HOST_AT + 1].into())),
        nodes: [(IpAddr::from([172, 31, 0, 1]), 1)].into(),
        rules: rules.into(),
        enforcement,
        groups: random.groups(),
    }
}

pub(super) const PUBLISHED: &str = r#"[{
    "labels": [{"key": "name", "value": "l3-rule"}],
    "endpointSelector": {"matchLabels": {"id": "app1"}},
    "ingress": [{
        "fromEndpoints": [{"matchLabels": {"id": "app2"}}],
        "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]
    }]
}]"#;

fn id(name: &str) -> Labels {
    Labels::from([("id".to_owned(), name.to_owned())])
}

#[test]
fn the_published_example() {
    let rules = import(Path::new("l3.json"), PUBLISHED).expect("taken as it stands");
    assert_eq!(rules[0].name, "l3-rule");
    let (app1, app2, app3) = (id("app1"), id("app2"), id("app3"));
    let mut identities = Identities::default();
    let all = [&app1, &app2, &app3].map(|labels| (labels, &[][..]));
    identities.set(all, [], &rules).expect("fits");
    let known = Known::default();
    let verdict = |labels: &Labels, direction, peer: &Labels, protocol, port| {
        let of = Subject { labels, ports: &[], enforcement: Enforcement::Default, host: false };
        let compiled = compile(of, &rules, &identities, &known).expect("fits");
        let peer = identities.of_endpoint(peer).expect("numbered");
        compiled.verdict(direction, peer, Flow { protocol, port })
    };
    let into = Direction::Ingress;
    assert_eq!(verdict(&app1, into, &app2, 6, 80), Verdict::Allowed(0));
    assert_eq!(verdict(&app1, into, &app3, 6, 80), Verdict::DeniedByDefault);
    assert_eq!(verdict(&app1, into, &app2, 6, 81), Verdict::DeniedByDefault);
    assert_eq!(verdict(&app1, into, &app2, 17, 80), Verdict::DeniedByDefault);
    assert_eq!(verdict(&app1, Direction::Egress, &app3, 6, 80), Verdict::Open);
    assert_eq!(verdict(&app2, into, &app3, 6, 80), Verdict::Open);
}

#[test]
fn identities_keep_their_numbers() {
    let (app1, app2, app3) = (id("app1"), id("app2"), id("app3"));
    let mut first = Identities::default();
    first.set([(&app1, &[][..]), (&app2, &[][..])], [], &[]).expect("fits");
    let number = first.of_endpoint(&app2).expect("numbered");
    let mut restarted = Identities::default();
    restarted.set([(&app3, &[][..]), (&app2, &[][..])], [], &[]).expect("fits");
    assert_eq!(restarted.of_endpoint(&app2), Some(number), "after a restart, with other company");
    first.set([(&app2, &[][..]), (&app3, &[][..])], [], &[]).expect("fits");
    assert_eq!(first.of_endpoint(&app2), Some(number), "when others leave and join");
    assert_eq!(first.of_endpoint(&app1), None);
    // Frozen: a change of the hash would renumber a fleet.
    assert_eq!(number, FROZEN_APP2);
}

const FROZEN_APP2: u32 = 3_626_279;

#[test]
fn an_address_is_of_the_narrowest_that_knows_it() {
    let peer = |net: &str, except: &[&str]| Peer::Prefix {
        net: net.parse().expect("a prefix"),
        except: except.iter().map(|net| net.parse().expect("a prefix")).collect(),
    };
    let mut rule = Random(1).rule();
    rule.clauses = vec![Clause {
        direction: Direction::Egress,
        deny: false,
        peers: vec![peer("10.0.0.0/8", &["10.1.0.0/16"]), peer("10.1.2.0/24", &[])],
        ports: None,
        named: Vec::new(),
    }];
    let app1 = id("app1");
    let at = ["10.1.2.3".parse().expect("an address")];
    let node = ("10.1.2.4".parse().expect("an address"), 1);
    let mut identities = Identities::default();
    identities.set([(&app1, &at[..])], [node], &[rule]).expect("fits");
    let labels = |address: &str| {
        let number = identities.of_address(address.parse().expect("an address"));
        let labels = identities.labels(number).expect("known").keys().cloned();
        labels.filter(|label| !label.starts_with("reserved:world")).collect::<Vec<_>>()
    };
    assert_eq!(labels("10.1.2.3"), ["id"]);
    assert_eq!(labels("10.1.2.4"), ["reserved:host"]);
    assert_eq!(labels("10.1.2.5"), ["cidr:10.0.0.0/8", "cidr:10.1.0.0/16", "cidr:10.1.2.0/24"]);
    assert_eq!(labels("10.1.3.5"), ["cidr:10.0.0.0/8", "cidr:10.1.0.0/16"]);
    assert_eq!(labels("10.2.0.0"), ["cidr:10.0.0.0/8"]);
    assert!(labels("192.0.2.1").is_empty());
    assert!(labels("2001:db8::1").is_empty());
}
