//! A small node for tests: a view, counters with recognisable numbers, and an owner task that keeps
//! services like the real one but writes no tables.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use abi::reason::Reason;
use config::model::{
    Backend, BackendState, Forwarding, HealthCheck, ListAction, Port, Probe, Protocol, RateLimit,
    Remote, Roles, Service, Source, Steering, XdpMode,
};
use tokio::sync::{mpsc, watch};

use super::ApiState;
use crate::{
    command::{Command, Refusal},
    conntrack::{Connection, NatUse, Table, Visit},
    guard::Guard,
    view::{
        Attachment, BackendView, ConfigView, Count, Counters, EndpointView, FrontendView, Health,
        InterfaceView, LimitView, ListView, MapView, NextHopView, PolicyView, RuleView,
        ServiceView, View,
    },
};

pub(crate) const START: SystemTime = UNIX_EPOCH;

/// Counters that tell their row: `kind * 1_000_000 + row` packets.
pub(crate) struct FakeCounters;

impl FakeCounters {
    fn of(kind: u64, row: u32) -> Count {
        let packets = kind * 1_000_000 + u64::from(row);
        Count { packets, bytes: packets * 100, new_connections: packets / 10 }
    }
}

impl Counters for FakeCounters {
    fn frontend(&self, row: u32) -> Count {
        Self::of(1, row)
    }

    fn backend(&self, row: u32) -> Count {
        Self::of(2, row)
    }

    fn list(&self, row: u32) -> Count {
        Count { new_connections: 0, ..Self::of(3, row) }
    }

    fn limit(&self, row: u32) -> Count {
        Count { new_connections: 0, ..Self::of(4, row) }
    }

    fn connections(&self, visit: &mut dyn FnMut(&Connection) -> Visit) {
        let end = |text: &str| text.parse().unwrap();
        let translated = Connection {
            table: Table::Nat,
            protocol: Some(Protocol::Tcp),
            client: end("[2001:db8:9::7]:40000"),
            vip: Some(end("[2001:db8::10]:443")),
            nat: Some(end("[2001:db8:f::1]:2000")),
            backend: end("[2001:db8::12]:8443"),
            row: 11,
            state: "established",
            idle: Some(3),
            expires: Some(7997),
        };
        let moved = Connection {
            table: Table::Flows,
            protocol: Some(Protocol::Udp),
            client: end("198.51.100.7:50000"),
            vip: Some(end("203.0.113.20:443")),
            nat: None,
            backend: end("10.0.1.11:443"),
            row: 0,
            state: "moved",
            idle: None,
            expires: None,
        };
        visit(&translated);
        visit(&moved);
    }

    fn nat(&self) -> NatUse {
        NatUse { used: 4, capacity: 8, refused: 2 }
    }

    fn reasons(&self) -> Vec<(Reason, Count)> {
        let count = |reason: Reason| match reason {
            Reason::NotOurs => 5_000_000,
            Reason::Blocked => 1234,
            Reason::NoBackend => 7,
            _ => 0,
        };
        let with =
            |r: Reason| (r, Count { packets: count(r), bytes: count(r) * 60, ..Count::default() });
        Reason::ALL.iter().copied().map(with).collect()
    }
}

/// An endpoint, and a rule that selects it.
fn policy() -> PolicyView {
    let spec = config::model::Endpoint {
        name: "app1".to_owned(),
        source: Source::Api,
        labels: [("id".to_owned(), "app1".to_owned())].into(),
        addresses: vec!["10.15.0.2".parse().unwrap()],
        interface: "veth-app1".to_owned(),
        audit: false,
        enforcement: None,
        ports: Vec::new(),
    };
    let attached = crate::policy::kernel::Attachment::Tcx;
    let endpoint = EndpointView { spec: Arc::new(spec), identity: 256, attached };
    let rule = RuleView { name: "r".to_owned(), source: Source::Api, audit: false, row: 0 };
    PolicyView { endpoints: vec![endpoint], rules: vec![rule], ..PolicyView::default() }
}

pub(crate) fn service(name: &str, source: Source, vip: &str) -> Service {
    let backend = |name: &str, address: &str, weight, state| Backend {
        name: name.to_owned(),
        address: address.parse().unwrap(),
        weight,
        state,
        group: None,
        server_id: None,
    };
    Service {
        name: name.to_owned(),
        source,
        addresses: vec![vip.parse().unwrap()],
        ports: vec![Port {
            name: "https".to_owned(),
            port: 443,
            last: 443,
            protocol: Protocol::Tcp,
            target_port: 443,
            quic: false,
        }],
        forwarding: Forwarding::Ipip,
        steering: Steering { track: true, ..Steering::default() },
        backends: vec![
            backend("web-1", "10.0.1.11", 100, BackendState::Active),
            backend("web-2", "2001:db8::12", 50, BackendState::Draining),
        ],
        source_ranges: Vec::new(),
        source_routes: Vec::new(),
        parts: Vec::new(),
        part_of: None,
        drain_timeout: Duration::from_secs(300),
        health_check: Some(HealthCheck {
            probe: Probe::Tcp { port: 443 },
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 3,
        }),
    }
}

fn file() -> Source {
    Source::File { path: Arc::new("/etc/lb/edge.yaml".into()), line: 12, column: 5 }
}

fn service_view(spec: Service, version: u64, first_row: u32) -> ServiceView {
    let ports = spec.ports.iter();
    let frontends = ports.zip(first_row..).flat_map(|(port, row)| {
        spec.addresses.iter().map(move |address| FrontendView {
            address: *address,
            port: port.clone(),
            row,
        })
    });
    let backends = (0..).zip(&spec.backends).zip(first_row..).map(|((i, _), row)| BackendView {
        index: i,
        health: if i == 0 { Health::Up } else { Health::Down },
        health_reason: (i > 0).then(|| "connection refused".into()),
        next_hop: if i == 0 {
            let mac = [0x02, 0, 0, 0, 0, 0x11];
            NextHopView::Resolved { interface: "eth0".into(), mac, mtu: 1500 }
        } else {
            NextHopView::Unresolved("no neighbour answers for 2001:db8::12".into())
        },
        slots: if i == 0 { 65_521 } else { 0 },
        row,
    });
    ServiceView {
        version,
        ring_size: 65_521,
        moving_slots: 12,
        frontends: frontends.collect(),
        backends: backends.collect(),
        spec: Arc::new(spec),
    }
}

/// Service `web` of a file and `api` of the API, two lists, one interface that is not attached.
pub(crate) fn view() -> View {
    let interface = |name: &str, ifindex, attached| InterfaceView {
        name: name.to_owned(),
        ifindex,
        wanted: XdpMode::Auto,
        roles: Roles { prefilter: true, balance: true, ..Roles::default() },
        attached,
    };
    let list = |name: &str, action, v4, v6, row| ListView {
        name: name.to_owned(),
        source: file(),
        action,
        prefixes_v4: v4,
        prefixes_v6: v6,
        skipped_lines: 0,
        scope: String::new(),
        remote: (name == "watch").then(|| Arc::new(Remote::new("https://example.org/watch.txt"))),
        row,
    };
    let map = |name: &str, entries, capacity, bytes| MapView {
        name: name.to_owned(),
        entries,
        capacity,
        bytes,
    };
    View {
        node: "edge-1".to_owned(),
        started: START,
        adopted: false,
        config: ConfigView {
            path: "/etc/lb".into(),
            generation: 42,
            last_success: Some(START + Duration::from_secs(3600)),
            last_apply: Some(Duration::from_micros(1234)),
            faults: Vec::new(),
        },
        interfaces: vec![
            interface("eth0", Some(2), Attachment::Native),
            interface(
                "eth1",
                Some(3),
                Attachment::Failed("the driver has no XDP; set xdp_mode: generic".to_owned()),
            ),
        ],
        services: vec![
            Arc::new(service_view(service("api", Source::Api, "203.0.113.20"), 7, 0)),
            Arc::new(service_view(service("web", file(), "2001:db8::10"), 3, 10)),
        ],
        lists: vec![
            list("manual", ListAction::Drop, 2, 1, 0),
            list("watch", ListAction::Audit, 1_500_000, 0, 1),
        ],
        limits: vec![LimitView {
            spec: RateLimit {
                name: "per-source".to_owned(),
                source: file(),
                action: ListAction::Drop,
                protocol: Some(Protocol::Udp),
                port: 53,
                rate: config::model::Rate::Packets(1000),
                tcp_flags: (0, 0),
                burst: 2000,
                key: (32, 64),
            },
            row: 2,
        }],
        prefilter: Arc::default(),
        bans: crate::bans::Shared::default(),
        fetches: crate::fetch::Shared::default(),
        unconfirmed: None,
        samples: crate::events::Samples::default(),
        early: crate::early::Counts::default(),
        policy: Arc::new(policy()),
        policy_documents: Vec::new(),
        names: crate::policy::names::Shared::default(),
        maps: vec![
            map("BACKENDS", Some(4), 65_536, 4 << 20),
            map("PREFIX_BLOCKS", Some(950), 1000, 256 << 20),
            map("CONNECTIONS", None, 1 << 20, 64 << 20),
        ],
    }
}

/// A state over `view` whose owner task is gone: for reading.
pub(crate) fn read_only(view: View) -> ApiState {
    let (commands, _) = mpsc::channel(1);
    let (_, view) = watch::channel(Arc::new(view));
    ApiState { view, commands, counters: Arc::new(FakeCounters), guard: Guard::default() }
}

/// A state over `view` with an owner task that carries out changes of services.
pub(crate) fn live(view: View) -> ApiState {
    let (commands, mut inbox) = mpsc::channel(8);
    let (publish, published) = watch::channel(Arc::new(view.clone()));
    tokio::spawn(async move {
        let mut view = view;
        let mut versions = 100;
        while let Some(command) = inbox.recv().await {
            versions += 1;
            match command {
                Command::PutService { service, if_match, reply } => {
                    let done = put(&mut view, &service, if_match, versions);
                    publish.send_replace(Arc::new(view.clone()));
                    let _ = reply.send(done);
                }
                Command::DeleteService { name, if_match, reply } => {
                    let found = view.services.iter().find(|s| s.spec.name == name);
                    let done = match found.map(|s| &s.spec.source) {
                        Some(Source::File { .. }) => {
                            let origin = "file /etc/lb/edge.yaml:12:5".to_owned();
                            Err(Refusal::ReadOnly { name: name.clone(), origin })
                        }
                        _ => guard(&view, &name, if_match),
                    };
                    if done.is_ok() {
                        view.services.retain(|service| service.spec.name != name);
                    }
                    publish.send_replace(Arc::new(view.clone()));
                    let _ = reply.send(done);
                }
                Command::PutPolicies { reply, .. } | Command::DeletePolicies { reply, .. } => {
                    let _ = reply.send(Ok(()));
                }
                Command::ChangeLists { changes, reply, .. } => {
                    let (done, _) = view.bans.apply(&changes);
                    view.prefilter = view.bans.read().behind(&Arc::default());
                    publish.send_replace(Arc::new(view.clone()));
                    let _ = reply.send(Ok(done));
                }
                other => panic!("the API never sends {other:?}"),
            }
        }
    });
    ApiState {
        view: published,
        commands,
        counters: Arc::new(FakeCounters),
        guard: Guard::default(),
    }
}

fn guard(view: &View, name: &str, if_match: Option<u64>) -> Result<(), Refusal> {
    let in_force = view.services.iter().find(|s| s.spec.name == name).map(|s| s.version);
    match (if_match, in_force) {
        (Some(expected), Some(actual)) if expected != actual => {
            Err(Refusal::Stale { expected, actual })
        }
        _ => Ok(()),
    }
}

fn put(
    view: &mut View,
    service: &Service,
    if_match: Option<u64>,
    version: u64,
) -> Result<u64, Refusal> {
    guard(view, &service.name, if_match)?;
    let vips: BTreeMap<_, _> = view
        .services
        .iter()
        .filter(|other| other.spec.name != service.name)
        .flat_map(|other| other.spec.addresses.iter().map(move |a| (*a, other.spec.name.clone())))
        .collect();
    for (i, address) in service.addresses.iter().enumerate() {
        if let Some(other) = vips.get(address) {
            return Err(Refusal::Conflict {
                field: format!("addresses[{i}]"),
                message: format!("{address} is an address of the service \"{other}\""),
            });
        }
    }
    view.services.retain(|other| other.spec.name != service.name);
    view.services.push(Arc::new(service_view(service.clone(), version, 20)));
    view.services.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    Ok(version)
}
