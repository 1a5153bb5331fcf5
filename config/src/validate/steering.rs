//! What a service wants beyond its ring: affinity, tracking, how flows are spread, servers that packets name.

use std::{collections::HashMap, time::Duration};

use crate::{
    fault::{Loc, Report},
    file::{self, Field, List},
    model,
};

const MIN_AFFINITY: Duration = Duration::from_secs(1);
const MAX_AFFINITY: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of a server id in a QUIC connection id, by default.
const QUIC_LEN: u8 = 2;

/// The fields of the file that it is about.
pub(super) struct Fields<'a> {
    pub(super) scheduling: &'a Field<file::Scheduling>,
    pub(super) connection_tracking: &'a Field<file::ConnectionTracking>,
    pub(super) affinity: &'a Field<file::Affinity>,
    pub(super) server_ids: &'a List<file::ServerIdPlace>,
    pub(super) quic: &'a Field<file::Quic>,
    pub(super) ports: &'a List<file::Port>,
    pub(super) backends: &'a List<file::Backend>,
}

/// Validates them.
pub(super) fn steering(fields: &Fields<'_>, report: &Report<'_>) -> model::Steering {
    let quic_len = quic_len(fields, report);
    let named = |place| fields.server_ids.elements().any(|(&p, _)| p == place);
    let steering = model::Steering {
        scheduling: match fields.scheduling.get() {
            None | Some(file::Scheduling::Maglev) => model::Scheduling::Maglev,
            Some(file::Scheduling::Random) => model::Scheduling::Random,
            Some(file::Scheduling::LeastConnections) => model::Scheduling::LeastConnections,
        },
        track: fields.connection_tracking.get() == Some(&file::ConnectionTracking::Always),
        affinity: affinity(fields.affinity, report),
        tcp_option: named(file::ServerIdPlace::TcpOption),
        udp_header: named(file::ServerIdPlace::UdpHeader),
        quic_len,
    };
    server_ids(fields, &steering, report);
    steering
}

/// What a service behind NAT cannot want: an entry of its own says where a connection goes, not its packets.
pub(super) fn behind_nat(fields: &Fields<'_>, report: &Report<'_>) {
    let refuse = |at: Loc, what: &str| {
        report.fault(
            at,
            format!(
                "{what} in a service with `forwarding: nat`, whose backends see no packet as its client sent it"
            ),
            "allowed: scheduling, affinity and source_routes; or another forwarding",
        );
    };
    if fields.server_ids.elements().next().is_some() {
        refuse(fields.server_ids.at, "`server_ids`");
    }
    for (port, _) in fields.ports.elements() {
        if let Some((true, at)) = port.quic.placed().map(|(&quic, at)| (quic, at)) {
            refuse(at, "`quic: true`");
        }
    }
}

fn affinity(field: &Field<file::Affinity>, report: &Report<'_>) -> Option<Duration> {
    let (file::Affinity { client_ip }, at) = field.placed()?;
    if client_ip.is_absent() {
        report.missing(at, "client_ip", "allowed: a duration, such as 3h");
    }
    let (span, at) = client_ip.placed()?;
    if !(MIN_AFFINITY..=MAX_AFFINITY).contains(&span.0) {
        report.fault(at, "`client_ip` is out of range", "allowed: 1s to 168h");
    }
    Some(span.0)
}

/// Bytes of a server id in connection ids; 0: no port is for QUIC.
fn quic_len(fields: &Fields<'_>, report: &Report<'_>) -> u8 {
    let mut wanted = false;
    for (port, _) in fields.ports.elements() {
        let Some((true, at)) = port.quic.placed().map(|(&quic, at)| (quic, at)) else { continue };
        wanted = true;
        if port.protocol.get() != Some(&file::Protocol::Udp) {
            report.fault(at, "`quic: true` at a port that is not UDP", "allowed: protocol: udp");
        }
    }
    let Some((file::Quic { server_id_length }, at)) = fields.quic.placed() else {
        return if wanted { QUIC_LEN } else { 0 };
    };
    if !wanted {
        report.fault(
            at,
            "`quic` says how connection ids look, and no port is for QUIC",
            "allowed: with a port such as {port: 443, protocol: udp, quic: true}",
        );
        return 0;
    }
    match server_id_length.placed() {
        Some((&length, _)) if (1..=8).contains(&length) => length,
        Some((length, at)) => {
            report.fault(at, format!("a server id of {length} bytes"), "allowed: 1 to 8");
            QUIC_LEN
        }
        None => QUIC_LEN,
    }
}

/// Each id once, and one for each backend where packets name their server.
fn server_ids(fields: &Fields<'_>, steering: &model::Steering, report: &Report<'_>) {
    let wanted = steering.names_servers();
    let mut seen: HashMap<u16, Loc> = HashMap::new();
    for (backend, at) in fields.backends.elements() {
        let Some((&id, id_at)) = backend.server_id.placed() else {
            if wanted && backend.server_id.is_absent() {
                report.missing(
                    at,
                    "server_id",
                    "packets of this service name their server: every backend needs a number, 0 to 65535",
                );
            }
            continue;
        };
        if !wanted {
            report.fault(
                id_at,
                "a server_id, and packets of this service do not name their server",
                "allowed: with server_ids: [tcp-option], server_ids: [udp-header], or a port with quic: true",
            );
        }
        if steering.quic_len == 1 && id > 255 {
            report.fault(
                id_at,
                format!("the server_id {id} does not fit one byte of a connection id"),
                "allowed: 0 to 255, or quic: {server_id_length: 2}",
            );
        }
        if let Some(first) = seen.insert(id, id_at) {
            report.fault(
                id_at,
                format!(
                    "the server_id {id} stands twice in the service, first at {}",
                    report.place(first)
                ),
                "allowed: once",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        api::{parse_service_json, service_to_json},
        model::{Scheduling, Steering},
    };

    /// A service with a TCP and a UDP port, and what `more` adds or replaces.
    fn service(more: Value) -> Value {
        let mut service = json!({
            "address": "203.0.113.10",
            "ports": [{"port": 443, "protocol": "tcp"}, {"port": 443, "protocol": "udp"}],
            "forwarding": "ipip",
            "backends": [{"address": "10.0.1.11"}, {"address": "10.0.1.12"}],
        });
        let Value::Object(more) = more else { panic!("an object") };
        for (key, value) in more {
            service[key] = value;
        }
        service
    }

    fn read(more: Value) -> Result<Steering, Vec<(String, String)>> {
        let service = parse_service_json("web", service(more).to_string().as_bytes());
        let service = service.map_err(|faults| {
            faults.into_iter().map(|f| (f.field, f.message)).collect::<Vec<_>>()
        })?;
        let again = service_to_json(&service);
        let again = parse_service_json("web", again.to_string().as_bytes()).unwrap();
        assert_eq!(again, service, "what is written is read");
        Ok(service.steering)
    }

    fn fault(more: Value) -> (String, String) {
        let faults = read(more).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:#?}");
        faults[0].clone()
    }

    #[test]
    fn what_is_wanted() {
        assert_eq!(read(json!({})).unwrap(), Steering::default());
        let random = read(json!({"scheduling": "random"})).unwrap();
        assert_eq!(random.scheduling, Scheduling::Random);
        assert!(random.tracks() && random.keeps());
        let sticky = json!({"affinity": {"client_ip": "3h"}, "scheduling": "least-connections"});
        let sticky = read(sticky).unwrap();
        assert_eq!(sticky.affinity.map(|time| time.as_secs()), Some(10_800));
        assert!(sticky.keeps() && !sticky.tracks(), "entries are for clients");
        assert!(read(json!({"connection_tracking": "always"})).unwrap().tracks());
        let named = read(json!({
            "server_ids": ["tcp-option", "udp-header"],
            "backends": [
                {"address": "10.0.1.11", "server_id": 0},
                {"address": "10.0.1.12", "server_id": 65535},
            ],
        }));
        let named = named.unwrap();
        assert!(named.tcp_option && named.udp_header && named.names_servers() && !named.keeps());
        let quic = |more: Value| {
            let mut all = json!({
                "ports": [{"port": 443, "protocol": "udp", "quic": true}],
                "backends": [{"address": "10.0.1.11", "server_id": 1}],
            });
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            read(all).unwrap().quic_len
        };
        assert_eq!(quic(json!({})), 2);
        assert_eq!(quic(json!({"quic": {"server_id_length": 8}})), 8);
    }

    #[test]
    fn behind_nat() {
        let nat = |mut more: Value| {
            more["forwarding"] = json!("nat");
            more
        };
        for more in [
            json!({"scheduling": "random"}),
            json!({"scheduling": "least-connections", "affinity": {"client_ip": "1h"}}),
            json!({"connection_tracking": "always"}),
            json!({"connection_tracking": "auto"}),
        ] {
            assert_eq!(read(nat(more.clone())).unwrap(), read(more).unwrap());
        }
        let (at, what) = fault(nat(json!({
            "server_ids": ["tcp-option"],
            "backends": [{"address": "10.0.1.11", "server_id": 7}],
        })));
        assert!(at == "server_ids" && what.contains("another forwarding"), "{at}: {what}");
        let (at, what) = fault(nat(json!({
            "ports": [{"port": 443, "protocol": "udp", "quic": true}],
            "backends": [{"address": "10.0.1.11", "server_id": 7}],
        })));
        assert!(at.contains("quic") && what.contains("another forwarding"), "{at}: {what}");
    }

    #[test]
    fn what_is_refused() {
        for (more, field, message) in [
            (json!({"affinity": {"client_ip": "0s"}}), "affinity.client_ip", "out of range"),
            (json!({"affinity": {"client_ip": "200h"}}), "affinity.client_ip", "out of range"),
            (json!({"affinity": {}}), "affinity", "client_ip"),
            (json!({"ports": [{"port": 443, "quic": true}], "backends": []}), "quic", "not UDP"),
            (json!({"quic": {"server_id_length": 4}}), "quic", "no port is for QUIC"),
            (
                json!({
                    "ports": [{"port": 443, "protocol": "udp", "quic": true}],
                    "quic": {"server_id_length": 9},
                    "backends": [],
                }),
                "quic.server_id_length",
                "9 bytes",
            ),
            (
                json!({"backends": [{"address": "10.0.1.11", "server_id": 1}]}),
                "server_id",
                "do not name their server",
            ),
            (
                json!({"server_ids": ["tcp-option"], "backends": [{"address": "10.0.1.11"}]}),
                "backends",
                "server_id",
            ),
            (
                json!({"server_ids": ["tcp-option"], "backends": [
                    {"address": "10.0.1.11", "server_id": 7},
                    {"address": "10.0.1.12", "server_id": 7},
                ]}),
                "server_id",
                "stands twice",
            ),
            (
                json!({
                    "ports": [{"port": 443, "protocol": "udp", "quic": true}],
                    "quic": {"server_id_length": 1},
                    "backends": [{"address": "10.0.1.11", "server_id": 256}],
                }),
                "server_id",
                "does not fit",
            ),
            (
                json!({"forwarding": "gue", "second_chance": true, "scheduling": "random"}),
                "second_chance",
                "more than its ring",
            ),
        ] {
            let (at, what) = fault(more.clone());
            assert!(at.contains(field), "{more}: {at}: {what}");
            assert!(what.contains(message), "{more}: {at}: {what}");
        }
    }
}
