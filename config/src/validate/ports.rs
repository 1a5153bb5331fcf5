//! Ports of a service.

use std::collections::HashMap;

use super::{
    name,
    service::{check_count, once},
};
use crate::{
    fault::{Loc, Report, show},
    file::{self, Field, List},
    model,
};

const MAX_PORTS: usize = 4096;

/// The ports, and where each stands.
pub(super) fn ports(
    list: &List<file::Port>,
    forwarding: &Field<file::Forwarding>,
    at: Loc,
    report: &Report<'_>,
) -> (Vec<model::Port>, Vec<Loc>) {
    if list.is_absent() {
        report.missing(
            at,
            "ports",
            "allowed: one port or more, such as {port: 443, protocol: tcp}",
        );
    } else if list.get().is_some_and(Vec::is_empty) {
        report.fault(list.at, "a service has no port", "allowed: one port or more");
    }
    check_count(list, MAX_PORTS, "ports", report);

    let (mut names, mut seen) = (HashMap::new(), HashMap::new());
    let (mut valid, mut places) = (Vec::new(), Vec::new());
    for (entry, at) in list.elements() {
        let file::Port { name: given, port, protocol, target_port, quic } = entry;
        let protocol = match protocol.get() {
            None | Some(file::Protocol::Tcp) => model::Protocol::Tcp,
            Some(file::Protocol::Udp) => model::Protocol::Udp,
            Some(file::Protocol::Sctp) => model::Protocol::Sctp,
        };
        let quic = quic.get() == Some(&true);
        if port.is_absent() {
            report.missing(at, "port", "allowed: 1 to 65535, a range such as 8000-8999, or 0 for every port of the address");
        }
        let Some((&file::ServicePorts(number, last), number_at)) = port.placed() else {
            continue;
        };
        let numbers = if number == last { number.to_string() } else { format!("{number}-{last}") };
        if protocol == model::Protocol::Sctp {
            sctp(number, number_at, forwarding, report);
        }
        if number != last && !target_port.is_absent() {
            report.fault(
                target_port.at,
                "a target_port beside a range: each port stays what it is",
                "leave target_port out",
            );
        } else if let Some((&0, at)) = target_port.placed()
            && number != 0
        {
            report.fault(
                at,
                "a target_port of 0: no backend listens there",
                "allowed: 1 to 65535; leave target_port out where the port stays what it is",
            );
        } else if let Some((&target, at)) = target_port.placed()
            && target != number
            && forwarding.get() != Some(&file::Forwarding::Nat)
        {
            report.fault(
                at,
                format!(
                    "a target_port of {target} differs from port {number}, which only NAT can do"
                ),
                format!("allowed: {number}, or forwarding: nat"),
            );
        }
        let text = match given.placed() {
            Some((text, at)) if !name(text, at, report) => continue,
            Some((text, _)) => text.clone(),
            None if number == 0 => format!("{}-any", protocol.as_str()),
            None => format!("{}-{numbers}", protocol.as_str()),
        };
        let name_at = if given.is_absent() { at } else { given.at };
        let what = format!("the port name {}", show(&text));
        let unique_name = once(&mut names, text.clone(), name_at, &what, report);
        let what = format!("port {numbers}/{}", protocol.as_str());
        if once(&mut seen, (number, last, protocol), number_at, &what, report) && unique_name {
            let target_port = target_port.get().copied().unwrap_or(number);
            valid.push(model::Port { name: text, port: number, last, protocol, target_port, quic });
            places.push(number_at);
        }
    }
    overlaps(&valid, &places, report);
    (valid, places)
}

/// A port has one entry: in a range or alone.
fn overlaps(ports: &[model::Port], places: &[Loc], report: &Report<'_>) {
    let mut sorted: Vec<(&model::Port, Loc)> = ports.iter().zip(places.iter().copied()).collect();
    sorted.sort_by_key(|(port, at)| (port.protocol, port.port, port.last, *at));
    for pair in sorted.windows(2) {
        let [(one, one_at), (other, other_at)] = pair else { continue };
        if !one.overlaps(other) {
            continue;
        }
        let (later, at, first, first_at) = if one_at > other_at {
            (one, *one_at, other, *other_at)
        } else {
            (other, *other_at, one, *one_at)
        };
        let (mine, theirs, protocol) = (later.numbers(), first.numbers(), one.protocol.as_str());
        report.fault(
            at,
            format!(
                "port {mine}/{protocol} overlaps port {theirs}/{protocol} of the service, at {}",
                report.place(first_at)
            ),
            "allowed: each port once; divide the range",
        );
    }
}

/// What a port of SCTP cannot be.
fn sctp(number: u16, at: Loc, forwarding: &Field<file::Forwarding>, report: &Report<'_>) {
    if number == 0 {
        let help = "allowed: 1 to 65535, or the range 1-65535";
        report.fault(at, "port 0 of SCTP stands for no other port", help);
    }
    if forwarding.get() == Some(&file::Forwarding::Nat) {
        report.fault(
            at,
            "SCTP names addresses within its chunks and covers ports with its CRC32c: it cannot go \
             through NAT",
            "allowed: forwarding: l2, ipip, gue or geneve",
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{
        api::{parse_service_json, service_to_json},
        model::{Protocol, Service},
    };

    fn service(ports: &serde_json::Value, forwarding: &str) -> Result<Service, String> {
        let body = json!({
            "address": "203.0.113.10",
            "ports": ports,
            "forwarding": forwarding,
            "backends": [{"address": "10.0.1.11"}],
            "health_check": {"tcp": {"port": 7}},
        });
        parse_service_json("any", body.to_string().as_bytes())
            .map_err(|faults| faults.iter().map(|f| format!("{f:?}\n")).collect())
    }

    #[test]
    fn sctp() {
        let found = service(&json!([{"port": 3868, "protocol": "sctp"}]), "gue").unwrap();
        let port = &found.ports[0];
        assert_eq!((port.name.as_str(), port.protocol), ("sctp-3868", Protocol::Sctp));
        let again = service_to_json(&found);
        assert_eq!(again["ports"][0]["protocol"], "sctp");
        for (ports, forwarding, word) in [
            (json!([{"port": 0, "protocol": "sctp"}]), "l2", "1 to 65535"),
            (json!([{"port": 3868, "protocol": "sctp"}]), "nat", "CRC32c"),
            (json!([{"port": 3868, "protocol": "sctp", "quic": true}]), "l2", "not UDP"),
        ] {
            let told = service(&ports, forwarding).unwrap_err();
            assert!(told.contains(word), "{told}");
        }
    }

    #[test]
    fn ranges() {
        let ports = json!([
            {"port": "8000-8999", "protocol": "udp"},
            {"port": "8000-8000"},
            {"port": "1-65535", "protocol": "sctp", "name": "all"},
            {"port": 9000, "protocol": "udp"},
            {"port": 0, "protocol": "udp"},
        ]);
        let found = service(&ports, "gue").unwrap();
        let seen: Vec<_> = found.ports.iter().map(|p| (p.name.as_str(), p.port, p.last)).collect();
        assert_eq!(
            seen,
            [
                ("udp-8000-8999", 8000, 8999),
                ("tcp-8000", 8000, 8000),
                ("all", 1, 65535),
                ("udp-9000", 9000, 9000),
                ("udp-any", 0, 0),
            ]
        );
        let again = service_to_json(&found);
        assert_eq!(again["ports"][0]["port"], "8000-8999");
        assert_eq!(again["ports"][1]["port"], 8000);
        assert_eq!(service(&again["ports"], "gue").unwrap().ports, found.ports);
        for (ports, word) in [
            (json!([{"port": "8999-8000"}]), "neither a port nor a range"),
            (json!([{"port": "0-80"}]), "neither a port nor a range"),
            (json!([{"port": "80-65536"}]), "neither a port nor a range"),
            (json!([{"port": "80-"}]), "neither a port nor a range"),
            (json!([{"port": "80-90"}, {"port": 85}]), "port 85/tcp overlaps port 80-90/tcp"),
            (json!([{"port": 85}, {"port": "80-90"}]), "port 80-90/tcp overlaps port 85/tcp"),
            (json!([{"port": "80-90"}, {"port": "90-99"}]), "port 90-99/tcp overlaps"),
            (json!([{"port": "80-90", "target_port": 80}]), "beside a range"),
            (json!([{"port": 80, "target_port": 0}]), "no backend listens there"),
        ] {
            let told = service(&ports, "l2").unwrap_err();
            assert!(told.contains(word), "{told}");
        }
    }
}
