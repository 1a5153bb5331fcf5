//! A desired state as objects with fields, named as in files.

use std::collections::BTreeMap;

use config::{
    PrefixSet, endpoint_to_json, format_duration,
    model::{
        CrowdSec, DesiredState, HostFirewall, Interface, InterfaceSelect, PrefixList, RateLimit,
        SourceOf, Unserved, XdpMode,
    },
    service_to_json,
};
use serde_json::{Value, json};

use super::{Kind, policy};

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    /// Of a backend.
    pub(super) service: String,
    pub(super) name: String,
}

/// What it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Object<'s> {
    pub(super) fields: BTreeMap<String, Value>,
    pub(super) prefixes: Option<&'s PrefixSet>,
}

/// The objects of a state.
#[derive(Debug, Default)]
struct Made<'s>(BTreeMap<Key, Object<'s>>);

/// Every object of a state.
pub(super) fn objects(state: &DesiredState) -> BTreeMap<Key, Object<'_>> {
    let mut made = Made::default();
    made.put(Kind::Settings, "", settings(state), None);
    for interface in &state.interfaces {
        let (name, fields) = self::interface(interface);
        made.put_another(Kind::Interface, &name, fields);
    }
    // Parts are told as groups of the service that they are of.
    for service in state.services.values().filter(|service| service.part_of.is_none()) {
        made.put_service(&service_to_json(service));
    }
    let prefilter = &state.prefilter;
    made.put(Kind::Filters, "", filters(state), None);
    made.put(Kind::Allow, "", json!({}), Some(&prefilter.allow));
    for list in &prefilter.lists {
        made.put(Kind::List, &list.name, self::list(list), Some(&list.prefixes));
    }
    for limit in &prefilter.rate_limits {
        made.put(Kind::RateLimit, &limit.name, rate_limit(limit), None);
    }
    let ports: Vec<String> = prefilter.syn_proxy.ports.iter().copied().map(range).collect();
    let strays = if prefilter.syn_proxy.drop_stray_acks { "drop" } else { "pass" };
    made.put(Kind::SynProxy, "", json!({"ports": ports, "stray_acks": strays}), None);
    for source in &prefilter.crowdsec {
        made.put_another(Kind::Crowdsec, &source.list, crowdsec(source));
    }
    let mut rules: Vec<(&str, Value)> =
        state.policies.iter().map(|rule| (rule.name.as_str(), policy::rule(rule))).collect();
    // Several may have one name: their order says nothing.
    rules.iter_mut().for_each(|(_, rule)| sort(rule));
    rules.sort_by_cached_key(|(name, rule)| (name.to_owned(), rule.to_string()));
    for (name, rule) in rules {
        made.put_another(Kind::Policy, name, rule);
    }
    for endpoint in state.endpoints.values() {
        made.put(Kind::Endpoint, &endpoint.name, endpoint_to_json(endpoint), None);
    }
    if let Some(firewall) = &state.host_firewall {
        made.put(Kind::HostFirewall, "", host_firewall(firewall), None);
    }
    made.0
}

impl<'s> Made<'s> {
    fn put(&mut self, kind: Kind, name: &str, json: Value, prefixes: Option<&'s PrefixSet>) {
        let key = Key { kind, service: String::new(), name: name.to_owned() };
        self.0.insert(key, Object { fields: fields(json), prefixes });
    }

    /// Puts one of a kind whose names are not unique: the second one has a number behind its name.
    fn put_another(&mut self, kind: Kind, name: &str, json: Value) {
        let is_free = |name: &String| {
            let key = Key { kind, service: String::new(), name: name.clone() };
            !self.0.contains_key(&key)
        };
        let numbered = (2..).map(|n: u32| format!("{name} #{n}"));
        let name = std::iter::once(name.to_owned()).chain(numbered).find(is_free);
        self.put(kind, &name.unwrap_or_default(), json, None);
    }

    fn put_service(&mut self, json: &Value) {
        let mut own = json.clone();
        let backends = own.as_object_mut().and_then(|own| own.remove("backends"));
        let service = json["name"].as_str().unwrap_or_default();
        for backend in backends.as_ref().and_then(Value::as_array).into_iter().flatten() {
            let name = backend["name"].as_str().unwrap_or_default().to_owned();
            let key = Key { kind: Kind::Backend, service: service.to_owned(), name };
            self.0.insert(key, Object { fields: fields(backend.clone()), prefixes: None });
        }
        self.put(Kind::Service, service, own, None);
    }
}

/// The fields of an object, without its name, which is its key. What is in an object in it has its name behind a
/// dot.
fn fields(json: Value) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    flatten("", json, &mut out);
    out.remove("name");
    out
}

fn flatten(at: &str, json: Value, out: &mut BTreeMap<String, Value>) {
    match json {
        Value::Null => {}
        Value::Object(inner) => {
            let dot = if at.is_empty() { "" } else { "." };
            for (name, value) in inner {
                flatten(&format!("{at}{dot}{name}"), value, out);
            }
        }
        mut value => {
            sort(&mut value);
            out.insert(at.to_owned(), value);
        }
    }
}

/// Puts arrays in an order that depends on nothing but what is in them.
fn sort(value: &mut Value) {
    match value {
        Value::Array(values) => {
            values.iter_mut().for_each(sort);
            values.sort_by_cached_key(Value::to_string);
        }
        Value::Object(inner) => inner.values_mut().for_each(sort),
        _ => {}
    }
}

fn range((first, last): (u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn settings(state: &DesiredState) -> Value {
    let node = &state.node;
    let tunnel = |prefix: Option<String>| prefix.unwrap_or_else(|| "auto".to_owned());
    let v4 = match node.tunnel_source.ipv4 {
        SourceOf::Auto => None,
        SourceOf::Prefix(net) => Some(net.to_string()),
    };
    let v6 = match node.tunnel_source.ipv6 {
        SourceOf::Auto => None,
        SourceOf::Prefix(net) => Some(net.to_string()),
    };
    let unserved = match node.unserved {
        Unserved::Drop => "drop",
        Unserved::Reject => "reject",
        Unserved::Pass => "pass",
    };
    let size = state.maglev.table_size;
    let fqdn = &state.policy_fqdn;
    let established = match state.policy_established {
        config::policy::Established::Reevaluate => "reevaluate",
        config::policy::Established::Keep => "keep",
    };
    json!({
        "node": {
            "name": node.name,
            "tunnel_source": {"ipv4": tunnel(v4), "ipv6": tunnel(v6)},
            "unserved": unserved,
            "samples": {"dropped": node.samples.dropped, "passed": node.samples.passed},
            "nat": {
                "addresses": node.nat.addresses,
                "ports": range((node.nat.ports.first, node.nat.ports.last)),
                "entries": node.nat.entries,
            },
            "labels": node.labels,
        },
        "maglev": {
            "table_size": size.map_or(json!("auto"), |size| json!(size)),
            "seed": state.maglev.seed,
        },
        "decap": {"sources": state.decap_sources},
        "policy_enforcement": state.policy_enforcement.as_str(),
        "policy_established": established,
        "policy_fqdn": {
            "min_ttl": format_duration(fqdn.min_ttl),
            "addresses_per_name": fqdn.addresses_per_name,
            "names_per_pattern": fqdn.names_per_pattern,
        },
        "remote_nodes": state.remote_nodes,
    })
}

fn filters(state: &DesiredState) -> Value {
    let filters = state.prefilter.filters;
    json!({
        "tcp-flags": filters.tcp_flags,
        "amplification": filters.amplification,
        "fragments": filters.fragments,
    })
}

fn interface(interface: &Interface) -> (String, Value) {
    let Interface { select, xdp_mode, roles } = interface;
    let name = match select {
        InterfaceSelect::Name(name) | InterfaceSelect::Match(name) => name.clone(),
    };
    let mode = match xdp_mode {
        XdpMode::Auto => "auto",
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
    };
    let all = [
        (roles.prefilter, "prefilter"),
        (roles.balance, "balance"),
        (roles.decap, "decap"),
        (roles.node, "node"),
    ];
    let roles: Vec<&str> = all.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect();
    (name, json!({"xdp_mode": mode, "roles": roles}))
}

fn list(list: &PrefixList) -> Value {
    let PrefixList {
        name: _,
        source: _,
        action,
        prefixes: _,
        skipped: _,
        skipped_lines: _,
        remote,
        force,
        scope,
    } = list;
    let direction = if scope.destination { "destination" } else { "source" };
    let mut json = json!({
        "action": action.as_str(),
        "force": force,
        "direction": direction,
    });
    // Without them: all.
    if !scope.interfaces.is_empty() {
        json["interfaces"] = json!(scope.interfaces);
    }
    if let Some(protocol) = scope.protocol {
        json["protocol"] = json!(protocol.as_str());
    }
    if !scope.ports.is_empty() {
        json["ports"] = scope.ports.iter().copied().map(range).collect();
    }
    if let Some(remote) = remote {
        json["url"] = json!(remote.url);
        json["refresh"] = json!(format_duration(remote.refresh));
        json["timeout"] = json!(format_duration(remote.timeout));
        json["max_bytes"] = json!(remote.max_bytes);
        json["ca_file"] = json!(remote.ca_file);
        let (format, on_error) = remote.reading();
        json["format"] = json!(format);
        json["on_error"] = json!(on_error);
    }
    json
}

fn rate_limit(limit: &RateLimit) -> Value {
    let RateLimit { name: _, source: _, action, protocol, port, tcp_flags, rate, burst, key } =
        limit;
    let mut json = json!({
        "action": action.as_str(),
        "burst": burst,
        "key": {"ipv4": key.0, "ipv6": key.1},
    });
    match rate {
        config::model::Rate::Packets(rate) => json["packets_per_second"] = json!(rate),
        config::model::Rate::Bytes(rate) => json["bytes_per_second"] = json!(rate),
    }
    if let Some(protocol) = protocol {
        json["match"]["protocol"] = json!(protocol.as_str());
    }
    if *port != 0 {
        json["match"]["port"] = json!(port);
    }
    if tcp_flags.0 != 0 {
        json["match"]["tcp_flags"] = json!(limit.flags());
    }
    json
}

fn crowdsec(source: &CrowdSec) -> Value {
    let CrowdSec { list: _, url, api_key_file, interval, timeout, ca_file } = source;
    json!({
        "url": url,
        "api_key_file": api_key_file,
        "interval": format_duration(*interval),
        "timeout": format_duration(*timeout),
        "ca_file": ca_file,
    })
}

fn host_firewall(firewall: &HostFirewall) -> Value {
    let HostFirewall { source: _, interfaces, audit, enforcement, force, ports } = firewall;
    let port = |port: &config::policy::PortName| {
        format!("{} {}/{}", port.name, port.port, policy::protocol(port.protocol))
    };
    json!({
        "interfaces": interfaces,
        "audit": audit,
        "enforcement": enforcement.as_str(),
        "force": force,
        "ports": ports.iter().map(port).collect::<Vec<_>>(),
    })
}
