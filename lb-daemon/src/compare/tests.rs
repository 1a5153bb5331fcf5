use std::collections::{BTreeMap, BTreeSet};

use config::{Given, Loader};
use proptest::prelude::*;

use super::*;

/// The state of one document.
fn state(text: &str) -> DesiredState {
    let given = Given { documents: [("lb.yaml".into(), text.into())].into(), ..Given::default() };
    Loader::of(given).load().unwrap_or_else(|faults| panic!("{text}: {faults:?}"))
}

const ALL: &str = r#"
node: {name: edge, unserved: drop, samples: {dropped: 10}, labels: {rack: a}}
maglev: {table_size: 1021, seed: s}
decap: {sources: [192.0.2.0/24]}
interfaces:
- {name: eth0, roles: [balance]}
services:
- name: web
  address: 203.0.113.10
  ports: [{port: 80}, {port: 443}]
  forwarding: ipip
  drain_timeout: 5m
  backends:
  - {name: a, address: 192.0.2.1, weight: 10}
  - {name: b, address: 192.0.2.2, weight: 10, state: draining}
  health_check: {interval: 2s, tcp: {port: 80}}
prefilter:
  allow: [198.51.100.0/24]
  filters: [fragments]
  lists:
  - {name: l, cidrs: [10.1.0.0/16, 10.2.0.0/16], protocol: tcp, ports: [80]}
  - {name: far, url: "https://example.org/l", refresh: 2h}
  rate_limits:
  - {name: r, packets_per_second: 100, match: {protocol: tcp, port: 22, tcp_flags: [syn]}}
  syn_proxy: {ports: [22]}
  crowdsec: [{url: "http://127.0.0.1:8080", api_key_file: /k, list: c}]
endpoints:
- {name: e, labels: {app: x}, addresses: [10.15.0.2], interface: veth0}
policies:
- name: p
  endpointSelector: {matchLabels: {app: x}}
  ingress: [{fromEndpoints: [{matchLabels: {app: y}}], toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]
policy_enforcement: default
host_firewall: {interfaces: [eth0]}
"#;

/// What one edit of [`ALL`] changes: kind, name, and the fields or what else differs.
fn edited(from: &str, to: &str) -> Vec<String> {
    let edited = ALL.replacen(from, to, 1);
    assert_ne!(edited, ALL, "{from}");
    let told = |change: Change| {
        let Change { change, kind, name, service, fields, prefixes, prefixes_unknown, ring } =
            change;
        let fields: Vec<String> =
            fields.iter().map(|f| format!("{} {}>{}", f.field, f.before, f.after)).collect();
        let what = format!("{change:?} {kind:?} {name}").to_lowercase();
        let fields = if change == What::Changed { fields.join(" ") } else { String::new() };
        let prefixes = prefixes.map(|p| format!("+{}-{}", p.added, p.removed)).unwrap_or_default();
        let prefixes = if prefixes_unknown { format!("{prefixes}unknown") } else { prefixes };
        let ring = ring.map(|ring| format!("ring {}/{}", ring.moved, ring.slots));
        let parts = [what, service.unwrap_or_default(), fields, prefixes, ring.unwrap_or_default()];
        let parts = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join(" ")
    };
    compare(&state(ALL), &state(&edited)).into_iter().map(told).collect()
}

#[test]
fn every_edit_is_told() {
    for (from, to, want) in [
        ("# nothing", "", &[][..]),
        ("name: edge", "name: other", &[r#"changed settings node.name "edge">"other""#]),
        (
            "unserved: drop",
            "unserved: reject",
            &[r#"changed settings node.unserved "drop">"reject""#],
        ),
        ("dropped: 10", "dropped: 20", &["changed settings node.samples.dropped 10>20"]),
        ("{rack: a}", "{rack: b}", &[r#"changed settings node.labels.rack "a">"b""#]),
        (
            "192.0.2.0/24",
            "192.0.2.0/25",
            &[r#"changed settings decap.sources ["192.0.2.0/24"]>["192.0.2.0/25"]"#],
        ),
        (
            "roles: [balance]",
            "roles: [prefilter]",
            &[r#"changed interface eth0 roles ["balance"]>["prefilter"]"#],
        ),
        (
            "203.0.113.10",
            "203.0.113.11",
            &[r#"changed service web addresses ["203.0.113.10"]>["203.0.113.11"]"#],
        ),
        (
            "drain_timeout: 5m",
            "drain_timeout: 1m",
            &[r#"changed service web drain_timeout "5m">"1m""#],
        ),
        (
            "interval: 2s",
            "interval: 3s",
            &[r#"changed service web health_check.interval "2s">"3s""#],
        ),
        // A single backend keeps every slot.
        (
            "address: 192.0.2.1, weight: 10",
            "address: 192.0.2.1, weight: 20",
            &["changed service web ring 0/1021", "changed backend a web weight 10>20"],
        ),
        (
            "state: draining",
            "state: active",
            &[
                "changed service web ring 510/1021",
                r#"changed backend b web state "draining">"active""#,
            ],
        ),
        (
            "  - {name: b, address: 192.0.2.2, weight: 10, state: draining}\n",
            "",
            &["removed backend b web"],
        ),
        (
            "name: web\n",
            "name: other\n",
            &[
                "added service other",
                "removed service web",
                "added backend a other",
                "added backend b other",
                "removed backend a web",
                "removed backend b web",
            ],
        ),
        ("198.51.100.0/24", "198.51.100.0/25", &["changed allow +1-1"]),
        (
            "[fragments]",
            "[amplification]",
            &["changed filters amplification false>true fragments true>false"],
        ),
        ("10.2.0.0/16]", "10.2.0.0/16, 10.3.0.0/16]", &["changed list l +1-0"]),
        (
            "ports: [80]}",
            "ports: [80-90], action: audit}",
            &[r#"changed list l action "drop">"audit" ports ["80"]>["80-90"]"#],
        ),
        (
            "protocol: tcp, ports: [80]",
            "interfaces: [eth1], direction: destination",
            &[
                r#"changed list l direction "source">"destination" interfaces null>["eth1"] ports ["80"]>null protocol "tcp">null"#,
            ],
        ),
        (
            "/l\", refresh: 2h",
            "/m\", refresh: 2h",
            &[r#"changed list far url "https://example.org/l">"https://example.org/m" unknown"#],
        ),
        (
            "rate_limits:",
            "- {name: new, url: \"https://example.org/n\"}\n  rate_limits:",
            &["added list new unknown"],
        ),
        (
            "- {name: l, cidrs: [10.1.0.0/16, 10.2.0.0/16], protocol: tcp, ports: [80]}\n  - {name: far, url: \"https://example.org/l\", refresh: 2h}",
            "- {name: far, url: \"https://example.org/l\", refresh: 2h}\n  - {name: l, cidrs: [10.1.0.0/16, 10.2.0.0/16], protocol: tcp, ports: [80]}",
            &[r#"changed list l order "first">"after far""#],
        ),
        ("refresh: 2h", "refresh: 3h", &[r#"changed list far refresh "2h">"3h""#]),
        (
            "packets_per_second: 100",
            "packets_per_second: 200",
            &["changed ratelimit r burst 100>200 packets_per_second 100>200"],
        ),
        ("[syn]", "[fin]", &[r#"changed ratelimit r match.tcp_flags ["syn"]>["fin"]"#]),
        ("ports: [22]", "ports: [22, 25]", &[r#"changed synproxy ports ["22"]>["22","25"]"#]),
        (
            "127.0.0.1:8080",
            "127.0.0.1:8081",
            &[r#"changed crowdsec c url "http://127.0.0.1:8080">"http://127.0.0.1:8081""#],
        ),
        (
            "labels: {app: x}, addresses",
            "labels: {app: z}, addresses",
            &[r#"changed endpoint e labels.app "x">"z""#],
        ),
        (
            "policy_enforcement: default",
            "policy_enforcement: always",
            &[r#"changed settings policy_enforcement "default">"always""#],
        ),
        (
            "interfaces: [eth0]",
            "interfaces: [eth1]",
            &[r#"changed hostfirewall interfaces ["eth0"]>["eth1"]"#],
        ),
    ] {
        if from == "# nothing" {
            assert_eq!(compare(&state(ALL), &state(&format!("# a comment\n{ALL}"))), []);
            continue;
        }
        assert_eq!(edited(from, to), want, "{from} -> {to}");
    }
    let rule = edited("port: \"80\"", "port: \"81\"");
    assert!(rule.len() == 1 && rule[0].starts_with("changed policy p"), "{rule:?}");
    assert!(rule[0].contains("80/TCP") && rule[0].contains("81/TCP"), "{rule:?}");
}

/// A configuration that can be written in two orders.
#[derive(Clone, Debug, PartialEq)]
struct Spec {
    /// Timeout, weights of backends.
    services: BTreeMap<u8, (u8, BTreeMap<u8, u8>)>,
    /// Whether it audits, prefixes.
    lists: BTreeMap<u8, (bool, BTreeSet<u8>)>,
    limits: BTreeMap<u8, u8>,
    fragments: bool,
    dropped: u8,
}

fn spec() -> impl Strategy<Value = Spec> {
    use prop::collection::{btree_map, btree_set};
    (
        btree_map(0..4u8, (1..3u8, btree_map(0..4u8, 0..3u8, 0..4)), 0..4),
        btree_map(0..4u8, (any::<bool>(), btree_set(0..9u8, 0..9)), 0..4),
        btree_map(0..4u8, 1..3u8, 0..4),
        any::<bool>(),
        1..3u8,
    )
        .prop_map(|(services, lists, limits, fragments, dropped)| Spec {
            services,
            lists,
            limits,
            fragments,
            dropped,
        })
}

impl Spec {
    fn state(&self, backwards: bool) -> DesiredState {
        let ordered = |mut parts: Vec<String>| {
            if backwards {
                parts.reverse();
            }
            parts
        };
        let services = self.services.iter().map(|(n, (time, backends))| {
            let backend =
                |(b, weight): (&u8, &u8)| format!("{{address: 192.0.2.{b}, weight: {weight}}}");
            let backends = ordered(backends.iter().map(backend).collect()).join(", ");
            let ports = ordered(vec!["{port: 80}".to_owned(), "{port: 81}".to_owned()]).join(", ");
            format!(
                "{{name: s{n}, address: 203.0.113.{n}, ports: [{ports}], forwarding: ipip, \
                 drain_timeout: {time}m, backends: [{backends}]}}"
            )
        });
        let lists = self.lists.iter().map(|(n, (audit, prefixes))| {
            let action = if *audit { "audit" } else { "drop" };
            let prefixes = prefixes.iter().map(|p| format!("198.51.100.{p}")).collect();
            let prefixes = ordered(prefixes).join(", ");
            format!("{{name: l{n}, action: {action}, cidrs: [{prefixes}]}}")
        });
        let limits = self.limits.iter();
        let limits = limits.map(|(n, rate)| format!("{{name: r{n}, packets_per_second: {rate}}}"));
        let lines = |parts: Vec<String>| {
            ordered(parts).iter().map(|part| format!("  - {part}\n")).collect::<String>()
        };
        let sections = vec![
            format!("node: {{name: n, samples: {{dropped: {}}}}}\n", self.dropped),
            format!("services:\n{}", lines(services.collect())),
            format!(
                "prefilter:\n  filters: [{}]\n  lists:\n{}  rate_limits:\n{}",
                if self.fragments { "fragments" } else { "" },
                // In one order: which one decides is no matter of taste.
                lists.map(|part| format!("  - {part}\n")).collect::<String>(),
                lines(limits.collect()),
            ),
        ];
        state(&ordered(sections).concat())
    }
}

/// Carries changes out on objects.
fn apply(
    objects: BTreeMap<Key, Object<'_>>,
    changes: &[Change],
) -> BTreeMap<Key, (BTreeMap<String, Value>, BTreeSet<IpNet>)> {
    let plain = |object: Object<'_>| {
        let nets: BTreeSet<IpNet> =
            object.prefixes.map(|set| set.iter().collect()).unwrap_or_default();
        (object.fields, nets)
    };
    let mut all: BTreeMap<_, _> =
        objects.into_iter().map(|(key, object)| (key, plain(object))).collect();
    for change in changes {
        let (kind, name) = (change.kind, change.name.clone());
        let key = Key { kind, service: change.service.clone().unwrap_or_default(), name };
        assert_eq!(all.contains_key(&key), change.change != What::Added, "{change:?}");
        if change.change == What::Removed {
            all.remove(&key);
            continue;
        }
        let (fields, nets) = all.entry(key).or_default();
        for FieldChange { field, before, after } in &change.fields {
            assert_eq!(fields.get(field).unwrap_or(&Value::Null), before, "{field}");
            match after {
                Value::Null => drop(fields.remove(field)),
                after => drop(fields.insert(field.clone(), after.clone())),
            }
        }
        if let Some(prefixes) = &change.prefixes {
            assert!(prefixes.first_removed.iter().all(|net| nets.remove(net)));
            assert!(prefixes.first_added.iter().all(|net| nets.insert(*net)));
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn order_is_no_difference(spec in spec()) {
        prop_assert_eq!(compare(&spec.state(false), &spec.state(true)), []);
    }

    #[test]
    fn what_differs_makes_one_of_the_other(a in spec(), b in spec()) {
        let (before, after) = (a.state(false), b.state(true));
        let changes = compare(&before, &after);
        prop_assert_eq!(changes.is_empty(), a == b);
        prop_assert_eq!(apply(objects(&before), &changes), apply(objects(&after), &[]));
    }
}
