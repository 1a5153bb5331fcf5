//! Services and endpoints as JSON: the same shape as in the files, read by the same code.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    duration::format_duration,
    fault::{Document, FieldFault, Loc, Report},
    file, model, tree, validate,
};

/// Reads the service `name` from a JSON body.
///
/// # Errors
/// Everything that is wrong, each with the field it concerns.
pub fn parse_service_json(name: &str, body: &[u8]) -> Result<model::Service, Vec<FieldFault>> {
    parse(body, |service: &file::Service, at, report| {
        let valid = validate::service(service, at, Some(name), model::Source::Api, report);
        valid.map(|(service, _)| service)
    })
}

/// Reads the endpoint `name` from a JSON body.
///
/// # Errors
/// Everything that is wrong, each with the field it concerns.
pub fn parse_endpoint_json(name: &str, body: &[u8]) -> Result<model::Endpoint, Vec<FieldFault>> {
    parse(body, |endpoint: &file::Endpoint, at, report| {
        validate::endpoint(endpoint, at, name, report)
    })
}

/// Reads which packets a list is about from a JSON body, with `interfaces`, `direction`, `protocol` and `ports` as a
/// list of a file has them. Interfaces and ports are put in order.
///
/// # Errors
/// Everything that is wrong, each with the field it concerns.
pub fn parse_scope_json(body: &[u8]) -> Result<model::Scope, Vec<FieldFault>> {
    let read =
        parse(body, |list: &file::PrefixList, _, report| Some(validate::list_scope(list, report)));
    read.map(|mut scope| {
        scope.interfaces.sort_unstable();
        scope.interfaces.dedup();
        scope.ports.sort_unstable();
        scope.ports.dedup();
        scope
    })
}

/// An object of a JSON body, which `validate` makes of what a file would hold.
fn parse<F: DeserializeOwned, M>(
    body: &[u8],
    validate: impl FnOnce(&F, Loc, &Report<'_>) -> Option<M>,
) -> Result<M, Vec<FieldFault>> {
    let json: Value = serde_json::from_slice(body).map_err(|error| {
        vec![FieldFault { field: String::new(), message: format!("the body is not JSON: {error}") }]
    })?;
    let (node, paths) = tree::json::from_json(&json);
    let report = Report::new(Document::Json(&paths));
    let de = tree::de::NodeDe { node: &node, report: &report, field: "" };
    let read = F::deserialize(de).map_err(|error| report.fault(node.at, error.to_string(), ""));
    match read.ok().and_then(|read| validate(&read, node.at, &report)) {
        Some(valid) if report.len() == 0 => Ok(valid),
        _ => Err(report.into_field_faults()),
    }
}

/// Writes an endpoint in the shape that [`parse_endpoint_json`] and the files have.
#[must_use]
pub fn endpoint_to_json(endpoint: &model::Endpoint) -> Value {
    let model::Endpoint {
        name,
        source: _,
        labels,
        addresses,
        interface,
        audit,
        enforcement,
        ports,
    } = endpoint;
    let mut json = json!({
        "name": name,
        "labels": labels,
        "addresses": addresses,
        "interface": interface,
        "audit": audit,
    });
    if let Some(enforcement) = enforcement {
        json["enforcement"] = json!(enforcement.as_str());
    }
    let protocol = |number| match number {
        6 => "TCP",
        17 => "UDP",
        _ => "SCTP",
    };
    if !ports.is_empty() {
        let one = |port: &crate::policy::PortName| json!({"name": port.name, "port": port.port, "protocol": protocol(port.protocol)});
        json["ports"] = ports.iter().map(one).collect();
    }
    json
}

/// Writes a service in the shape that [`parse_service_json`] and the files have.
#[must_use]
pub fn service_to_json(service: &model::Service) -> Value {
    let model::Service {
        name,
        source: _,
        addresses,
        ports,
        forwarding,
        steering,
        backends,
        source_ranges,
        source_routes,
        parts: _,
        part_of: _,
        drain_timeout,
        health_check,
    } = service;
    let mut json = json!({
        "name": name,
        "addresses": addresses,
        "ports": ports.iter().map(port).collect::<Vec<_>>(),
        "forwarding": forwarding.as_str(),
        "scheduling": steering.scheduling.as_str(),
        "backends": backends.iter().map(backend).collect::<Vec<_>>(),
        "drain_timeout": format_duration(*drain_timeout),
    });
    if *forwarding == model::Forwarding::GueTwice {
        json["second_chance"] = json!(true);
    }
    put_steering(&mut json, steering);
    if !source_ranges.is_empty() {
        json["source_ranges"] = json!(source_ranges);
    }
    if !source_routes.is_empty() {
        let one =
            |route: &model::SourceRoute| json!({"prefixes": route.prefixes, "group": route.group});
        json["source_routes"] = source_routes.iter().map(one).collect();
    }
    if let Some(check) = health_check {
        json["health_check"] = self::health_check(check);
    }
    json
}

/// What differs from nothing beyond the ring; the scheduling stands already.
fn put_steering(json: &mut Value, steering: &model::Steering) {
    let model::Steering { scheduling: _, track, affinity, tcp_option, udp_header, quic_len } =
        *steering;
    if track {
        json["connection_tracking"] = json!("always");
    }
    if let Some(time) = affinity {
        json["affinity"] = json!({"client_ip": format_duration(time)});
    }
    let places = [(tcp_option, "tcp-option"), (udp_header, "udp-header")];
    let places: Vec<&str> = places.into_iter().filter(|p| p.0).map(|p| p.1).collect();
    if !places.is_empty() {
        json["server_ids"] = json!(places);
    }
    if quic_len > 0 {
        json["quic"] = json!({"server_id_length": quic_len});
    }
}

fn port(port: &model::Port) -> Value {
    let model::Port { name, port: number, last: _, protocol, target_port, quic } = port;
    let mut json = json!({"name": name, "port": number, "protocol": protocol.as_str()});
    if port.is_range() {
        json["port"] = json!(port.numbers());
    } else if target_port != number {
        json["target_port"] = json!(target_port);
    }
    if *quic {
        json["quic"] = json!(true);
    }
    json
}

fn backend(backend: &model::Backend) -> Value {
    let model::Backend { name, address, weight, state, group, server_id } = backend;
    let mut json =
        json!({"name": name, "address": address, "weight": weight, "state": state.as_str()});
    if let Some(group) = group {
        json["group"] = json!(group);
    }
    if let Some(id) = server_id {
        json["server_id"] = json!(id);
    }
    json
}

fn health_check(check: &model::HealthCheck) -> Value {
    let model::HealthCheck { probe, interval, timeout, rise, fall } = check;
    let mut json = json!({
        "interval": format_duration(*interval),
        "timeout": format_duration(*timeout),
        "rise": rise,
        "fall": fall,
    });
    match probe {
        model::Probe::Tcp { port } => json["tcp"] = json!({"port": port}),
        model::Probe::Http { port, path, host, expect } => {
            json["http"] = json!({"port": port, "path": path, "expect": expect});
            if let Some(host) = host {
                json["http"]["host"] = json!(host);
            }
        }
    }
    json
}
