//! `source_routes` of a service, and the groups that its backends are in.

use std::collections::{BTreeMap, HashMap};

use super::{name, service::once_with};
use crate::{
    fault::{Loc, Report, show},
    file::{self, List},
    model,
};

/// Prefixes of all routes of a service: within one another, they make two ranges of each, of which a set has 65,536.
const MOST: usize = 32_768;

/// Validates them, and that routes and backends name the same groups.
pub(super) fn routes(
    routes: &List<file::SourceRoute>,
    backends: &List<file::Backend>,
    report: &Report<'_>,
) -> Vec<model::SourceRoute> {
    let mut valid = Vec::new();
    let mut seen = HashMap::new();
    let mut routed: BTreeMap<&str, Loc> = BTreeMap::new();
    for (file::SourceRoute { prefixes, group }, at) in routes.elements() {
        if prefixes.is_absent() {
            report.missing(at, "prefixes", "allowed: client addresses, such as [192.0.2.0/24]");
        } else if prefixes.get().is_some_and(Vec::is_empty) {
            report.fault(
                prefixes.at,
                "a route of no prefix leads nobody to its group",
                "allowed: one prefix or more; 0.0.0.0/0 and ::/0 are all clients",
            );
        }
        if group.is_absent() {
            report.missing(at, "group", "allowed: the `group` of one backend or more");
        }
        let mut nets = Vec::new();
        for (&file::Cidr(net), at) in prefixes.elements() {
            if once_with(&mut seen, net, at, || format!("the prefix {net} of a route"), report) {
                nets.push(net);
            }
        }
        let Some((group, at)) = group.placed() else { continue };
        if name(group, at, report) {
            routed.entry(group).or_insert(at);
            valid.push(model::SourceRoute { prefixes: nets, group: group.clone() });
        }
    }
    if seen.len() > MOST {
        let what = format!("{} prefixes in the routes of a service", seen.len());
        report.fault(routes.at, what, format!("allowed: at most {MOST}"));
    }
    groups(&routed, backends, report);
    valid
}

fn groups(routed: &BTreeMap<&str, Loc>, backends: &List<file::Backend>, report: &Report<'_>) {
    let mut has: BTreeMap<&str, Loc> = BTreeMap::new();
    for (backend, _) in backends.elements() {
        if let Some((group, at)) = backend.group.placed() {
            has.entry(group).or_insert(at);
        }
    }
    for (group, &at) in routed {
        if !has.contains_key(group) {
            report.fault(
                at,
                format!("a route leads to the group {}, and no backend is in it", show(group)),
                format!("write `group: {group}` at a backend, or remove the route"),
            );
        }
    }
    for (group, &at) in &has {
        if !routed.contains_key(group) && name(group, at, report) {
            report.fault(
                at,
                format!(
                    "no route leads to the group {}: its backends would get nothing",
                    show(group)
                ),
                format!(
                    "write `source_routes: [{{prefixes: [...], group: {group}}}]` in the service, or leave the group \
                     out"
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        api::{parse_service_json, service_to_json},
        model::Service,
    };

    fn read(more: Value) -> Result<Service, Vec<(String, String)>> {
        let mut service = json!({
            "address": "203.0.113.10",
            "ports": [{"port": 443}],
            "forwarding": "ipip",
            "backends": [
                {"address": "10.0.0.1"},
                {"address": "10.0.9.1", "group": "canary", "weight": 7},
                {"address": "10.0.9.2", "group": "canary"},
            ],
            "source_routes": [{"prefixes": ["192.0.2.0/24", "2001:db8:9::/48"], "group": "canary"}],
            "affinity": {"client_ip": "1h"},
            "source_ranges": ["192.0.0.0/16"],
        });
        let Value::Object(more) = more else { panic!("an object") };
        for (key, value) in more {
            service[key] = value;
        }
        let read = parse_service_json("web", service.to_string().as_bytes());
        let read = read.map_err(|faults| {
            faults.into_iter().map(|f| (f.field, f.message)).collect::<Vec<_>>()
        })?;
        let again = service_to_json(&read).to_string();
        assert_eq!(parse_service_json("web", again.as_bytes()).unwrap(), read);
        Ok(read)
    }

    #[test]
    fn a_group_is_a_service_of_its_own() {
        assert!(read(json!({"forwarding": "nat"})).is_ok());
        let service = read(json!({})).unwrap();
        let own: Vec<&str> = service.own_backends().map(|b| b.name.as_str()).collect();
        assert_eq!(own, ["10.0.0.1"]);
        let [part] = &service.parts[..] else { panic!("{:?}", service.parts) };
        assert_eq!(part.name, "web/canary");
        let part_of = part.part_of.as_ref().unwrap();
        assert_eq!((&*part_of.service, &*part_of.group), ("web", "canary"));
        let own: Vec<_> = part.own_backends().map(|b| (b.name.as_str(), b.weight)).collect();
        assert_eq!(own, [("10.0.9.1", 7), ("10.0.9.2", 100)]);
        assert_eq!(part.steering, service.steering);
        assert_eq!((&part.addresses, &part.ports), (&service.addresses, &service.ports));
        assert!(part.source_ranges.is_empty() && part.source_routes.is_empty());
    }

    #[test]
    fn what_is_refused_with_its_place_and_its_remedy() {
        let route = |prefixes: Value, group: &str| json!({"prefixes": prefixes, "group": group});
        let backends = json!([{"address": "10.0.0.1"}]);
        for (more, field, message) in [
            (json!({"backends": backends}), "source_routes[0].group", "group: canary"),
            (json!({"source_routes": []}), "backends[1].group", "source_routes: [{prefixes"),
            (
                json!({"source_routes": [route(json!([]), "canary")]}),
                "source_routes[0].prefixes",
                "0.0.0.0/0",
            ),
            (
                json!({"source_routes": [{"group": "canary"}]}),
                "source_routes[0].prefixes",
                "missing",
            ),
            (
                json!({"source_routes": [{"prefixes": ["192.0.2.0/24"]}], "backends": backends}),
                "source_routes[0].group",
                "missing",
            ),
            (
                json!({"source_routes": [
                    route(json!(["192.0.2.0/24"]), "canary"),
                    route(json!(["192.0.3.0/24", "192.0.2.0/24"]), "canary"),
                ]}),
                "source_routes[1].prefixes[1]",
                "first at `source_routes[0].prefixes[0]`",
            ),
            (
                json!({"source_routes": [route(json!(["192.0.2.1/24"]), "canary")]}),
                "source_routes[0].prefixes[0]",
                "192.0.2.0/24",
            ),
            (
                json!({"backends": [
                    {"address": "10.0.0.1"},
                    {"address": "10.0.0.1", "name": "again", "group": "canary"},
                ]}),
                "backends[1].address",
                "first at `backends[0].address`",
            ),
            (
                json!({
                    "source_routes": [route(json!(["192.0.2.0/24"]), "a/b")],
                    "backends": [{"address": "10.0.0.1", "group": "a/b"}],
                }),
                "source_routes[0].group",
                "letters, digits",
            ),
        ] {
            let faults = read(more.clone()).unwrap_err();
            assert!(
                faults.iter().any(|(at, what)| at == field && what.contains(message)),
                "{more}: {field}: {message}: {faults:#?}"
            );
        }
    }
}
