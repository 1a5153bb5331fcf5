//! Rules as people write them.

use std::path::Path;

use super::*;

fn faults(text: &str) -> Vec<String> {
    let faults = import(Path::new("p.yaml"), text).expect_err("refused");
    faults.iter().map(ToString::to_string).collect()
}

fn rules(text: &str) -> Vec<Rule> {
    import(Path::new("p.yaml"), text).unwrap_or_else(|faults| panic!("{faults:?}"))
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let l7 = "\
- endpointSelector: {matchLabels: {id: app1}}
  ingress:
    - toPorts:
        - ports: [{port: '80', protocol: TCP}]
          rules: {http: [{method: GET}]}
  egress:
    - toGroups: [{aws: {}}]
    - toEntities: [kube-apiserver]
    - toPorts: [{ports: [{port: dns}]}]
";
    let help = "leave the rule out, or rewrite it without this part";
    assert_eq!(
        faults(l7),
        [
            format!(
                "p.yaml:5:11: `rules` with `http`, an L7 part, cannot be enforced by this version; {help}"
            ),
            format!("p.yaml:7:7: `toGroups` cannot be enforced by this version; {help}"),
        ]
    );
    let kind = faults("{kind: Service, metadata: {name: a}, spec: {}}");
    assert!(kind[0].starts_with("p.yaml:1:8: objects of the kind `Service`"), "{kind:?}");
    assert_eq!(faults("")[0], "p.yaml:1:1: there are no rules; write a list of rules");
}

/// As published examples have it: names are learned behind a `dns` part. The whole file is refused.
#[test]
fn names_with_a_dns_part_are_refused() {
    let text = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: fqdn}
spec:
  endpointSelector: {matchLabels: {app: test-app}}
  egress:
    - toEndpoints: [{matchLabels: {'k8s:k8s-app': kube-dns}}]
      toPorts:
        - ports: [{port: '53', protocol: ANY}]
          rules:
            dns: [{matchPattern: '*'}]
    - toFQDNs: [{matchName: my-remote-service.com}]
";
    let dns = "p.yaml:10:11: `rules` with `dns`, an L7 part, cannot be enforced by this version; leave \
               `rules` out: then any name may be asked for, and `toFQDNs` learns from all answers";
    assert_eq!(faults(text), [dns]);
    let without = text.replace("          rules:\n            dns: [{matchPattern: '*'}]\n", "");
    assert_eq!(rules(&without)[0].clauses.len(), 2);
    let others = faults(&text.replace("dns: [{matchPattern: '*'}]", "{kafka: [], l7proto: r2d2}"));
    assert!(others[0].contains("`rules` with `kafka`, `l7proto`, an L7 part,"), "{others:?}");
}

#[test]
fn a_label_may_have_the_name_of_what_is_not_there() {
    let read = rules("{endpointSelector: {matchLabels: {rules: a}}, ingress: [{}]}");
    let wanted = Condition::In("rules".to_owned(), vec!["a".to_owned()]);
    assert_eq!(read[0].subject.conditions, [wanted]);
}

#[test]
fn an_empty_rule_closes_and_allows_nothing() {
    let read = rules("{endpointSelector: {}, ingress: [{}]}");
    assert!(read[0].ingress_default_deny && !read[0].egress_default_deny);
    assert!(read[0].clauses.is_empty());
    let open = rules("{endpointSelector: {}, ingress: [{}], enableDefaultDeny: {ingress: false}}");
    assert!(!open[0].ingress_default_deny);
}

#[test]
fn an_empty_list_of_peers_is_nobody() {
    let read = rules("{endpointSelector: {}, ingress: [{fromEndpoints: []}]}");
    assert!(read[0].clauses[0].peers.is_empty());
}

#[test]
fn ports_and_messages() {
    let read = rules(
        "\
endpointSelector: {}
egressDeny:
  - toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
    toPorts: [{ports: [{port: '8000', endPort: 8080, protocol: UDP}, {port: '53'}]}]
    icmps: [{fields: [{type: 8}, {type: EchoRequest, family: IPv6}]}]
",
    );
    let clause = &read[0].clauses[0];
    let ports = |protocol, first, last| Ports { protocol, first, last };
    assert!(clause.deny && clause.direction == Direction::Egress);
    assert_eq!(
        clause.ports.as_deref(),
        Some(
            &[
                ports(17, 8000, 8080),
                ports(6, 53, 53),
                ports(17, 53, 53),
                ports(132, 53, 53),
                ports(1, 8, 8),
                ports(58, 128, 128),
            ][..]
        )
    );
    let net = |text: &str| text.parse().expect("a prefix");
    let except = vec![net("10.1.0.0/16")];
    assert_eq!(clause.peers, [Peer::Prefix { net: net("10.0.0.0/8"), except }]);
}

#[test]
fn objects_stay_within_their_namespace() {
    let text = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {'k8s:app': web}}
  ingress:
    - fromEndpoints:
        - {}
        - matchLabels: {'k8s:io.kubernetes.pod.namespace': ops}
        - matchLabels: {'reserved:host': ''}
";
    let read = rules(text);
    assert_eq!(read[0].name, "web");
    let is = |key: &str, value: &str| Condition::In(key.to_owned(), vec![value.to_owned()]);
    assert_eq!(read[0].subject.conditions, [is("app", "web"), is(NAMESPACE, "shop")]);
    let peers: Vec<_> = read[0].clauses[0]
        .peers
        .iter()
        .map(|peer| match peer {
            Peer::Endpoints(selector) => selector.conditions.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        peers,
        [vec![is(NAMESPACE, "shop")], vec![is(NAMESPACE, "ops")], vec![is("reserved:host", "")]]
    );
    let cluster = text.replace("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy");
    assert_eq!(rules(&cluster)[0].subject.conditions, [is("app", "web")]);
}

#[test]
fn named_ports_requirements_and_services() {
    let read = rules(
        "\
endpointSelector: {}
ingress:
  - fromRequires: [{matchLabels: {env: prod}}]
  - fromEndpoints: [{}]
    toPorts: [{ports: [{port: http, protocol: TCP}, {port: '9'}]}]
egress:
  - toServices: [{k8sService: {serviceName: web, namespace: shop}}, {k8sService: {serviceName: db}}]
",
    );
    let [into, out] = &read[0].clauses[..] else { panic!("{read:?}") };
    assert_eq!(into.named, [NamedPort { name: "http".to_owned(), protocol: 6 }]);
    assert_eq!(into.ports.as_ref().map(Vec::len), Some(3));
    let [required] = &read[0].requires[..] else { panic!("{read:?}") };
    assert_eq!((required.direction, required.deny), (Direction::Ingress, false));
    let group = |namespace: Option<&str>, name: &str| {
        let namespace = namespace.map(str::to_owned);
        Peer::Group(Group::Service { namespace, name: name.to_owned() })
    };
    assert_eq!(out.peers, [group(Some("shop"), "web"), group(None, "db")]);
    let range =
        faults("endpointSelector: {}\negress: [{toPorts: [{ports: [{port: a, endPort: 9}]}]}]");
    assert!(range[0].contains("a port with a name begins no range"), "{range:?}");
}

#[test]
fn a_file_of_several_documents() {
    let text = "\
---
kind: CiliumNetworkPolicy
metadata: {name: a, namespace: shop}
specs: [{endpointSelector: {}, ingress: [{}]}, {endpointSelector: {}, egress: [{}]}]
---
---
kind: NetworkPolicy
metadata: {name: b}
spec: {podSelector: {}}
---
- {name: c, endpointSelector: {}, ingress: [{}]}
";
    let (rules, objects) = import_objects(Path::new("p.yaml"), text).expect("good");
    let object = |kind, name: &str, rules| Object { kind, name: name.to_owned(), rules };
    let wanted = [
        object("CiliumNetworkPolicy", "shop/a", 0..2),
        object("NetworkPolicy", "default/b", 2..3),
        object("rule", "c", 3..4),
    ];
    assert_eq!((objects, rules.len()), (wanted.to_vec(), 4));
}

#[test]
fn names_in_dns() {
    let read = rules(
        "{endpointSelector: {}, egress: [{toFQDNs: [{matchName: Example.org.}, \
         {matchPattern: '*.example.org'}], toPorts: [{ports: [{port: '443', protocol: TCP}]}]}]}",
    );
    let names =
        |text, wild| Peer::Group(Group::Names(super::super::NamePattern::new(text, wild).unwrap()));
    let wanted = [names("example.org", false), names("*.example.org", true)];
    assert_eq!(read[0].clauses[0].peers, wanted);
    assert!(read[0].egress_default_deny);
    let bad = faults(
        "{endpointSelector: {}, egressDeny: [{toFQDNs: [{matchName: a.org}]}], \
         egress: [{toFQDNs: [{matchName: '*.org'}, {}, {matchName: a, matchPattern: b}]}]}",
    );
    assert_eq!(bad.len(), 4, "{bad:?}");
}
