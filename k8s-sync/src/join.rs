//! A Service and its EndpointSlices together: the services of the model.
//!
//! One for each port and family, and one more for addresses that have source ranges. Ports of a Service may have different endpoints and different
//! target ports, which one model service cannot have, and addresses of a family are served by
//! endpoints of that family.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use config::model::{self, Backend, BackendState, Source};
use siphasher::sip::SipHasher24;

use crate::{
    index::{Key, Settings},
    notice::{Effect, Notice, Notices},
    service::{self, Port},
    slice::{self, Reachable},
};

/// Weight of every endpoint: that of a backend whose file gives none.
const WEIGHT: u32 = 100;
/// Longer names are cut: what [`config::is_name`] takes.
const MAX_NAME: usize = 128;

/// Model services by name, and what the two kinds of object together cannot have.
pub(crate) type Joined = (BTreeMap<String, Arc<model::Service>>, Vec<Notice>);

/// Joins a Service with its slices. `owns` says whether an address and port are this Service's, or
/// names the one that has them.
pub(crate) fn join(
    key: &Key,
    facts: &service::Facts,
    slices: &BTreeMap<String, slice::Facts>,
    settings: &Settings,
    owner: &dyn Fn(IpAddr, &Port) -> Option<Key>,
) -> Joined {
    let mut notices = Notices::of(format!("Service {key}"));
    let mut services = BTreeMap::new();
    let groups = [("", &facts.addresses, &[][..]), (".lb", &facts.restricted, &facts.sources)];
    for port in &facts.ports {
        let field = format!("spec.ports[{}]", port.index);
        for v4 in [true, false] {
            let of_family = |address: &&IpAddr| address.is_ipv4() == v4;
            let mut behind = None;
            for (suffix, addresses, sources) in groups {
                let own: Vec<IpAddr> = addresses
                    .iter()
                    .filter(of_family)
                    .filter(|&&address| match owner(address, port) {
                        Some(other) if other != *key => {
                            taken(&field, address, port, &other, &mut notices);
                            false
                        }
                        _ => true,
                    })
                    .copied()
                    .collect();
                if own.is_empty() {
                    continue;
                }
                let (target, backends) = behind
                    .get_or_insert_with(|| self::behind(port, v4, slices, &field, &mut notices));
                let name = name(key, port, v4, suffix);
                let service = model::Service {
                    name: name.clone(),
                    source: Source::Kubernetes(key.to_string()),
                    addresses: own,
                    ports: vec![model_port(port, *target)],
                    forwarding: settings.forwarding,
                    steering: model::Steering::default(),
                    backends: backends.clone(),
                    source_ranges: sources.to_vec(),
                    source_routes: Vec::new(),
                    parts: Vec::new(),
                    part_of: None,
                    drain_timeout: settings.drain_timeout,
                    health_check: None,
                };
                services.insert(name, Arc::new(service));
            }
        }
    }
    (services, notices.into_vec())
}

fn taken(field: &str, address: IpAddr, port: &Port, by: &Key, notices: &mut Notices) {
    let (number, protocol) = (port.port, port.protocol.as_str());
    let why = format!("{address} port {number}/{protocol} belongs to the older Service {by}");
    notices.add(field, Effect::LeftOut, why);
}

fn model_port(port: &Port, target_port: u16) -> model::Port {
    model::Port {
        name: port.label(),
        port: port.port,
        last: port.port,
        protocol: port.protocol,
        target_port,
        quic: false,
    }
}

/// `namespace.name.port.family`, with `.lb` for addresses that have source ranges: none of the first
/// three can hold a dot. A name that would be too long ends in a hash of the whole.
fn name(key: &Key, port: &Port, v4: bool, suffix: &str) -> String {
    let family = if v4 { "ipv4" } else { "ipv6" };
    let Key { namespace, name } = key;
    let mut cut = format!("{namespace}.{name}.{}.{family}{suffix}", port.label());
    if cut.len() <= MAX_NAME {
        return cut;
    }
    let hash = SipHasher24::new_with_keys(1, 3).hash(cut.as_bytes());
    // Names of these objects are ASCII; anything else is not cut within a character.
    cut.truncate(cut.floor_char_boundary(MAX_NAME - 17));
    format!("{cut}.{hash:016x}")
}

/// Target port and backends of a port in one family.
fn behind(
    port: &Port,
    v4: bool,
    slices: &BTreeMap<String, slice::Facts>,
    field: &str,
    notices: &mut Notices,
) -> (u16, Vec<Backend>) {
    let offers = offers(port, v4, slices);
    // A frontend has one target port: the one that most active endpoints have; the lowest of several.
    let active = |of: &BTreeMap<IpAddr, &Reachable>| {
        of.values().filter(|e| e.state == BackendState::Active).count()
    };
    let best = offers.iter().max_by_key(|(target, offer)| {
        (active(&offer.endpoints), offer.endpoints.len(), std::cmp::Reverse(**target))
    });
    let Some((&target, chosen)) = best else { return (port.target, Vec::new()) };
    for (other, offer) in &offers {
        let lost = offer.endpoints.keys().filter(|a| !chosen.endpoints.contains_key(a)).count();
        if lost > 0 {
            let why = format!(
                "most endpoints take it at {target}; {lost} that take it at {other} get nothing \
                 ({})",
                offer.slices.iter().copied().collect::<Vec<_>>().join(", ")
            );
            notices.add(format!("{field}.targetPort"), Effect::LeftOut, why);
        }
    }
    (target, backends(&chosen.endpoints))
}

/// The endpoints that take a port of the Service at one port of theirs.
#[derive(Default)]
struct Offer<'a> {
    endpoints: BTreeMap<IpAddr, &'a Reachable>,
    slices: BTreeSet<&'a str>,
}

/// By target port.
fn offers<'a>(
    port: &Port,
    v4: bool,
    slices: &'a BTreeMap<String, slice::Facts>,
) -> BTreeMap<u16, Offer<'a>> {
    let mut offers: BTreeMap<u16, Offer<'a>> = BTreeMap::new();
    for slice in slices.values() {
        for target in slice
            .ports
            .iter()
            .filter(|p| p.name == port.name && p.protocol == port.protocol)
            .map(|p| p.target)
        {
            for endpoint in slice.endpoints.iter().filter(|e| e.address.is_ipv4() == v4) {
                let offer = offers.entry(target).or_default();
                offer.slices.insert(&slice.object);
                // While it moves from one slice to another it stands in both: what is more wins.
                let standing = offer.endpoints.entry(endpoint.address).or_insert(endpoint);
                if endpoint.state == BackendState::Active && standing.state != BackendState::Active
                {
                    *standing = endpoint;
                }
            }
        }
    }
    offers
}

/// In the order of their addresses. When all that are left are terminating, new connections go to
/// them all the same: somebody still answers there.
fn backends(endpoints: &BTreeMap<IpAddr, &Reachable>) -> Vec<Backend> {
    let some_active = endpoints.values().any(|e| e.state == BackendState::Active);
    let mut names = BTreeSet::new();
    endpoints
        .values()
        .map(|endpoint| {
            let pod = endpoint.pod.clone().filter(|pod| !names.contains(pod));
            let name = pod.unwrap_or_else(|| endpoint.address.to_string());
            names.insert(name.clone());
            let state = if some_active { endpoint.state } else { BackendState::Active };
            Backend {
                name,
                address: endpoint.address,
                weight: WEIGHT,
                state,
                group: None,
                server_id: None,
            }
        })
        .collect()
}
