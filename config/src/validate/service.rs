//! `services`: the same for files and for the API.

use std::{collections::HashMap, hash::Hash, net::IpAddr, time::Duration};

use super::{name, unroutable};
use super::{ports, routes, steering};
use crate::{
    fault::{Loc, Report, show},
    file::{self, Field, List},
    model,
};

/// Where the parts of a service stand that another service may contradict.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Places {
    /// The port's place for each port and address: ports in the order of the service, and within one
    /// the addresses.
    pub(crate) fronts: Vec<Loc>,
}

/// Defaults, as the documentation has them.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);
pub(crate) const WEIGHT: u16 = 100;
const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_millis(500);
const RISE: u32 = 2;
const FALL: u32 = 3;

/// Bounds.
const MIN_INTERVAL: Duration = Duration::from_millis(10);
const MAX_INTERVAL: Duration = Duration::from_secs(3600);
const MAX_IN_A_ROW: u32 = 1000;
const MAX_ADDRESSES: usize = 256;
const MAX_BACKENDS: usize = 65_536;

/// Validates the service at `at`. `named`: its name, when it does not come from the service itself.
/// `None`: the report says why.
pub(crate) fn service(
    service: &file::Service,
    at: Loc,
    named: Option<&str>,
    source: model::Source,
    report: &Report<'_>,
) -> Option<(model::Service, Places)> {
    let faults_before = report.len();
    let file::Service {
        name,
        address,
        addresses,
        ports,
        forwarding,
        scheduling,
        connection_tracking,
        affinity,
        server_ids,
        quic,
        source_ranges,
        source_routes,
        backends,
        drain_timeout,
        health_check,
        second_chance,
    } = service;
    let steered = steering::Fields {
        scheduling,
        connection_tracking,
        affinity,
        server_ids,
        quic,
        ports,
        backends,
    };
    let steering = steering::steering(&steered, report);

    let name = service_name(name, at, named, report);
    let addresses = self::addresses(address, addresses, at, report);
    let (ports, places) = ports::ports(ports, forwarding, at, report);
    let forwarding = twice(self::forwarding(forwarding, at, report), second_chance, report);
    if forwarding == Some(model::Forwarding::GueTwice) && steering != model::Steering::default() {
        report.fault(
            second_chance.at,
            "`second_chance` goes with a service whose ring decides, and this one wants more than its ring",
            "allowed: without scheduling, affinity, connection_tracking, server_ids and quic",
        );
    }
    if forwarding == Some(model::Forwarding::Nat) {
        steering::behind_nat(&steered, report);
    }
    let source_routes = routes::routes(source_routes, backends, report);
    let backends = self::backends(backends, &addresses, forwarding, report);
    let source_ranges = super::sources(source_ranges, report);
    let drain_timeout = drain_timeout.get().map_or(DRAIN_TIMEOUT, |span| span.0);
    let health_check =
        health_check.placed().and_then(|(check, at)| self::health_check(check, at, &ports, report));

    if report.len() > faults_before {
        return None;
    }
    let service = model::Service {
        name: name?,
        source,
        addresses,
        ports,
        forwarding: forwarding?,
        steering,
        backends,
        source_ranges,
        source_routes,
        parts: Vec::new(),
        part_of: None,
        drain_timeout,
        health_check,
    };
    let service = service.divided();
    let fronts = places
        .into_iter()
        .flat_map(|at| std::iter::repeat_n(at, service.addresses.len()))
        .collect();
    Some((service, Places { fronts }))
}

fn service_name(
    field: &Field<String>,
    at: Loc,
    named: Option<&str>,
    report: &Report<'_>,
) -> Option<String> {
    match (field.placed(), named) {
        (Some((text, at)), Some(named)) if text != named => {
            report.fault(
                at,
                format!("the service is named {} here and {} by its path", show(text), show(named)),
                "leave the name out, or write the same",
            );
            None
        }
        (Some((text, at)), _) => name(text, at, report).then(|| text.clone()),
        (None, Some(named)) => name(named, at, report).then(|| named.to_owned()),
        (None, None) => {
            if field.is_absent() {
                report.missing(at, "name", "every service needs a unique name");
            }
            None
        }
    }
}

fn addresses(
    address: &Field<file::Ip>,
    addresses: &List<file::Ip>,
    at: Loc,
    report: &Report<'_>,
) -> Vec<IpAddr> {
    if address.is_absent() && addresses.is_absent() {
        report.missing(at, "address", "allowed: address: 203.0.113.10, or addresses: [...]");
    }
    if !address.is_absent() && !addresses.is_absent() {
        report.fault(
            addresses.at,
            format!(
                "both `address` and `addresses` are set, the first at {}",
                report.place(address.at)
            ),
            "allowed: one of them",
        );
    }
    if addresses.get().is_some_and(Vec::is_empty) {
        report.fault(addresses.at, "`addresses` is empty", "allowed: one address or more");
    }
    check_count(addresses, MAX_ADDRESSES, "addresses", report);

    let mut seen = HashMap::new();
    let mut valid = Vec::new();
    for (&file::Ip(address), at) in address.placed().into_iter().chain(addresses.elements()) {
        if let Some((what, allowed)) = unroutable(address) {
            report.fault(
                at,
                format!("{address} is {what} and cannot be the address of a service"),
                allowed,
            );
        } else if once(&mut seen, address, at, &format!("the address {address}"), report) {
            valid.push(address);
        }
    }
    valid
}

fn forwarding(
    field: &Field<file::Forwarding>,
    at: Loc,
    report: &Report<'_>,
) -> Option<model::Forwarding> {
    if field.is_absent() {
        report.missing(at, "forwarding", "allowed: l2, ipip, gue, geneve, nat");
    }
    Some(match field.get()? {
        file::Forwarding::L2 => model::Forwarding::L2,
        file::Forwarding::Ipip => model::Forwarding::Ipip,
        file::Forwarding::Gue => model::Forwarding::Gue,
        file::Forwarding::Geneve => model::Forwarding::Geneve,
        file::Forwarding::Nat => model::Forwarding::Nat,
    })
}

/// `forwarding` with what `second_chance` says.
fn twice(
    forwarding: Option<model::Forwarding>,
    second_chance: &Field<bool>,
    report: &Report<'_>,
) -> Option<model::Forwarding> {
    let Some((true, at)) = second_chance.placed().map(|(wanted, at)| (*wanted, at)) else {
        return forwarding;
    };
    match forwarding? {
        model::Forwarding::Gue => Some(model::Forwarding::GueTwice),
        other => {
            report.fault(
                at,
                format!(
                    "`second_chance` needs the header of GUE, and `forwarding` is {}",
                    other.as_str()
                ),
                "write `forwarding: gue`, or leave `second_chance` out",
            );
            None
        }
    }
}

fn backends(
    list: &List<file::Backend>,
    addresses: &[IpAddr],
    forwarding: Option<model::Forwarding>,
    report: &Report<'_>,
) -> Vec<model::Backend> {
    check_count(list, MAX_BACKENDS, "backends", report);
    let (mut names, mut seen) = (HashMap::new(), HashMap::new());
    let mut valid = Vec::with_capacity(list.get().map_or(0, Vec::len));
    for (entry, at) in list.elements() {
        let file::Backend { name: given, address, weight, state, group, server_id } = entry;
        if address.is_absent() {
            report.missing(at, "address", "every backend needs the address it is reached at");
        }
        let text = match given.placed() {
            Some((text, at)) if !name(text, at, report) => None,
            Some((text, _)) => Some(text.clone()),
            None if given.is_absent() => address.get().map(|ip| ip.0.to_string()),
            None => None,
        };
        let unique_name = text.as_ref().is_some_and(|text| {
            let name_at = if given.is_absent() { at } else { given.at };
            once_with(
                &mut names,
                text.clone(),
                name_at,
                || format!("the backend name {}", show(text)),
                report,
            )
        });
        let Some((&file::Ip(address), address_at)) = address.placed() else {
            continue;
        };
        if let Some((what, allowed)) = unroutable(address) {
            report.fault(
                address_at,
                format!("{address} is {what} and cannot be the address of a backend"),
                allowed,
            );
            continue;
        }
        check_family(address, address_at, addresses, forwarding, report);
        let unique = once_with(
            &mut seen,
            address,
            address_at,
            || format!("the backend address {address}"),
            report,
        );
        let state = match state.get() {
            None | Some(file::BackendState::Active) => model::BackendState::Active,
            Some(file::BackendState::Draining) => model::BackendState::Draining,
            Some(file::BackendState::Maintenance) => model::BackendState::Maintenance,
        };
        let weight = weight.get().copied().unwrap_or(WEIGHT).into();
        if let (Some(name), true, true) = (text, unique, unique_name) {
            let server_id = server_id.get().copied();
            let group = group.get().cloned();
            valid.push(model::Backend { name, address, weight, state, group, server_id });
        }
    }
    valid
}

/// A rewritten frame keeps its IP header, so the backend has to speak the family of an address.
fn check_family(
    backend: IpAddr,
    at: Loc,
    addresses: &[IpAddr],
    forwarding: Option<model::Forwarding>,
    report: &Report<'_>,
) {
    let fits = addresses.iter().any(|address| address.is_ipv4() == backend.is_ipv4());
    if forwarding == Some(model::Forwarding::L2) && !addresses.is_empty() && !fits {
        let (own, other) = if backend.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
        report.fault(
            at,
            format!(
                "the backend {backend} is an {own} address, and all addresses of the service \
                     are {other}, which `forwarding: l2` cannot bridge"
            ),
            format!("allowed: an {other} address, or forwarding: ipip"),
        );
    }
}

fn health_check(
    check: &file::HealthCheck,
    at: Loc,
    ports: &[model::Port],
    report: &Report<'_>,
) -> Option<model::HealthCheck> {
    let file::HealthCheck { tcp, http, https, grpc, udp, icmp, interval, timeout, rise, fall } =
        check;
    let kinds = [
        ("tcp", tcp.at),
        ("http", http.at),
        ("https", https.at),
        ("grpc", grpc.at),
        ("udp", udp.at),
        ("icmp", icmp.at),
    ];
    let set: Vec<_> = kinds.into_iter().filter(|(_, at)| *at != Loc::default()).collect();
    match set.as_slice() {
        [] => report.fault(
            at,
            "a health check does not say what to ask",
            "allowed: one of tcp and http, such as tcp: {port: 80}",
        ),
        [(first, _), (second, second_at), ..] => report.fault(
            *second_at,
            format!("a health check asks both `{first}` and `{second}`"),
            "allowed: one of them",
        ),
        [_] => {}
    }
    for (kind, at) in &set {
        if !matches!(*kind, "tcp" | "http") {
            report.fault(
                *at,
                format!("the health check `{kind}` is not implemented in this version"),
                "allowed: tcp, http",
            );
        }
    }
    if let Some(probe) = https.get() {
        http_probe(probe, https.at, ports, report);
    }
    let probe = match (tcp.placed(), http.placed()) {
        (Some((file::TcpProbe { port }, at)), _) => {
            probe_port(port, at, ports, report).map(|port| model::Probe::Tcp { port })
        }
        (_, Some((probe, at))) => http_probe(probe, at, ports, report),
        (None, None) => None,
    };

    let interval_at = interval.at;
    let interval = interval.get().map_or(INTERVAL, |span| span.0);
    if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&interval) {
        report.fault(interval_at, "`interval` is out of range", "allowed: 10ms to 1h");
    }
    let timeout_at = timeout.at;
    let own_timeout = timeout.get().map(|span| span.0);
    let timeout = own_timeout.unwrap_or(TIMEOUT.min(interval));
    if own_timeout.is_some_and(|timeout| timeout.is_zero()) {
        report.fault(timeout_at, "a `timeout` of 0 lets no probe succeed", "allowed: 1ms or more");
    } else if timeout > interval {
        let [timeout, interval] = [timeout, interval].map(crate::format_duration);
        report.fault(
            timeout_at,
            format!("the timeout of {timeout} is longer than the interval of {interval}"),
            format!("allowed: at most {interval}"),
        );
    }
    Some(model::HealthCheck {
        probe: probe?,
        interval,
        timeout,
        rise: in_a_row(rise, RISE, "rise", report),
        fall: in_a_row(fall, FALL, "fall", report),
    })
}

fn http_probe(
    probe: &file::HttpProbe,
    at: Loc,
    ports: &[model::Port],
    report: &Report<'_>,
) -> Option<model::Probe> {
    let file::HttpProbe { port, path, host, expect } = probe;
    let port = probe_port(port, at, ports, report);
    if let Some((path, at)) = path.placed()
        && !(path.starts_with('/') && path.bytes().all(|c| c.is_ascii_graphic()))
    {
        report.fault(
            at,
            format!("{} is not the path of a request", show(path)),
            "allowed: `/` and printable ASCII characters without spaces",
        );
    }
    if let Some((host, at)) = host.placed()
        && (host.is_empty() || !host.bytes().all(|c| c.is_ascii_graphic()))
    {
        report.fault(
            at,
            format!("{} is not the name of a host", show(host)),
            "allowed: printable ASCII characters without spaces",
        );
    }
    if let Some((&status, at)) = expect.placed()
        && !(100..=599).contains(&status)
    {
        report.fault(at, format!("{status} is not an HTTP status"), "allowed: 100 to 599");
    }
    Some(model::Probe::Http {
        port: port?,
        path: path.get().map_or("/", String::as_str).to_owned(),
        host: host.get().cloned(),
        expect: expect.get().copied().unwrap_or(200),
    })
}

fn probe_port(
    field: &Field<u16>,
    at: Loc,
    ports: &[model::Port],
    report: &Report<'_>,
) -> Option<u16> {
    if let Some((&port, at)) = field.placed() {
        if port == 0 {
            report.fault(at, "port 0 cannot be asked", "allowed: 1 to 65535");
        }
        return Some(port);
    }
    if !field.is_absent() {
        return None;
    }
    // Where the backend listens, which behind NAT may be another port than the service's.
    let mut tcp =
        ports.iter().filter(|port| port.protocol == model::Protocol::Tcp && port.target_port != 0);
    match (tcp.next(), tcp.next()) {
        (Some(port), None) if !port.is_range() => Some(port.target_port),
        _ => {
            report.missing(
                at,
                "port",
                "allowed: 1 to 65535; only a service with exactly one TCP port has a default",
            );
            None
        }
    }
}

fn in_a_row(field: &Field<u32>, default: u32, name: &str, report: &Report<'_>) -> u32 {
    let Some((&number, at)) = field.placed() else {
        return default;
    };
    if !(1..=MAX_IN_A_ROW).contains(&number) {
        report.fault(at, format!("`{name}` is {number}"), format!("allowed: 1 to {MAX_IN_A_ROW}"));
    }
    number
}

pub(super) fn check_count<T>(list: &List<T>, max: usize, what: &str, report: &Report<'_>) {
    let count = list.get().map_or(0, Vec::len);
    if count > max {
        report.fault(list.at, format!("{count} {what}"), format!("allowed: at most {max}"));
    }
}

/// Notes that `key` stands at `at`; whether it is the first. Otherwise the report names both places.
pub(super) fn once<K: Eq + Hash>(
    seen: &mut HashMap<K, Loc>,
    key: K,
    at: Loc,
    what: &str,
    report: &Report<'_>,
) -> bool {
    once_with(seen, key, at, || what.to_owned(), report)
}

pub(super) fn once_with<K: Eq + Hash>(
    seen: &mut HashMap<K, Loc>,
    key: K,
    at: Loc,
    what: impl FnOnce() -> String,
    report: &Report<'_>,
) -> bool {
    match seen.entry(key) {
        std::collections::hash_map::Entry::Vacant(entry) => {
            entry.insert(at);
            true
        }
        std::collections::hash_map::Entry::Occupied(first) => {
            report.fault(
                at,
                format!(
                    "{} stands twice in the service, first at {}",
                    what(),
                    report.place(*first.get())
                ),
                "allowed: once",
            );
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        api::parse_service_json,
        model::{Probe, Service},
    };

    fn service(changes: &Value) -> Result<Service, String> {
        let mut body = json!({
            "address": "203.0.113.10",
            "ports": [{"port": 443}],
            "forwarding": "nat",
            "backends": [{"address": "10.0.1.11"}],
        });
        let (body_fields, changes) = (body.as_object_mut().unwrap(), changes.as_object().unwrap());
        body_fields.extend(changes.clone());
        parse_service_json("any", body.to_string().as_bytes())
            .map_err(|faults| faults.iter().map(|f| format!("{f:?}\n")).collect())
    }

    #[test]
    fn the_port_that_backends_listen_on_is_asked() {
        for (port, asked) in [
            (json!({"port": 443}), 443),
            (json!({"port": 443, "target_port": 8443}), 8443),
            (json!({"port": 0, "target_port": 80}), 80),
        ] {
            let found = service(&json!({"ports": [port], "health_check": {"tcp": {}}})).unwrap();
            assert_eq!(found.health_check.unwrap().probe, Probe::Tcp { port: asked });
        }
        for port in [json!({"port": 0}), json!({"port": "80-90"})] {
            let told = service(&json!({"ports": [port], "health_check": {"tcp": {}}})).unwrap_err();
            assert!(told.contains("`port` is missing"), "{told}");
        }
    }

    #[test]
    fn addresses_that_lead_nowhere() {
        for (changes, word) in [
            (
                json!({"address": "fe80::1"}),
                "link-local address and cannot be the address of a service",
            ),
            (json!({"address": "::1"}), "loopback address and cannot be the address of a service"),
            (
                json!({"backends": [{"address": "fe80::1"}]}),
                "link-local address and cannot be the address of a backend",
            ),
            (
                json!({"backends": [{"address": "224.0.0.1"}]}),
                "multicast address and cannot be the address of a backend",
            ),
        ] {
            let told = service(&changes).unwrap_err();
            assert!(told.contains(word), "{told}");
        }
    }
}
