//! What a Service object says, reduced to what a balancer needs of it.

use std::{net::IpAddr, str::FromStr};

use config::model::Protocol;
use ipnet::IpNet;
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::notice::{Effect, Notice, Notices};

/// Says that another proxy than the node's own carries the service.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// A Service, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// When it was made, in seconds since 1970; `None` if it does not say.
    pub(crate) created: Option<i64>,
    /// Cluster addresses, then external ones, then those of load balancers; no duplicates.
    pub(crate) addresses: Vec<IpAddr>,
    /// Those of load balancers, when only `sources` may use them.
    pub(crate) restricted: Vec<IpAddr>,
    pub(crate) sources: Vec<IpNet>,
    /// In the order of the object. Empty when it makes no service.
    pub(crate) ports: Vec<Port>,
    /// What of it is not carried out.
    pub(crate) notices: Vec<Notice>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// Index in `spec.ports`.
    pub(crate) index: usize,
    /// Ties it to the ports of slices; empty for the only port of a service.
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    /// Where it goes while no slice says so.
    pub(crate) target: u16,
}

impl Port {
    /// Its name, or its number if it has none.
    pub(crate) fn label(&self) -> String {
        label(&self.name, self.port)
    }
}

impl Facts {
    /// Reads an object; `object` names it in notices.
    pub(crate) fn read(service: &Service, object: String) -> Self {
        let mut notices = Notices::of(object);
        let created = service.metadata.creation_timestamp.as_ref().map(|t| t.0.as_second());
        let mut facts = Self { created, ..Self::default() };
        match skipped(service) {
            Some((field, why)) => notices.add(field, Effect::Skipped, why),
            None => {
                let spec = service.spec.clone().unwrap_or_default();
                facts.addresses = addresses(&spec, &mut notices);
                ingress(service, &spec, &mut facts, &mut notices);
                facts.ports = ports(&spec, &mut notices);
                unsupported(&spec, &mut notices);
                if facts.addresses.is_empty() && facts.restricted.is_empty() {
                    notices.add("spec.clusterIP", Effect::Skipped, "it has no address, or not yet");
                }
            }
        }
        facts.notices = notices.into_vec();
        facts
    }
}

/// Why an object as a whole is none of ours.
fn skipped(service: &Service) -> Option<(&'static str, String)> {
    let Some(spec) = &service.spec else { return Some(("spec", "there is none".to_owned())) };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Some((
            "spec.type",
            "ExternalName is a DNS record, no packet comes here".to_owned(),
        ));
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        let why = "a headless service has no address: clients find its endpoints by DNS";
        return Some(("spec.clusterIP", why.to_owned()));
    }
    let proxy = service.metadata.labels.as_ref().and_then(|labels| labels.get(PROXY_NAME));
    proxy.map(|name| {
        ("metadata.labels", format!("the label {PROXY_NAME} gives it to the proxy {name:?}"))
    })
}

fn addresses(spec: &ServiceSpec, notices: &mut Notices) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let cluster: Vec<&String> = match &spec.cluster_ips {
        Some(list) if !list.is_empty() => list.iter().collect(),
        _ => spec.cluster_ip.iter().collect(),
    };
    for (i, text) in cluster.into_iter().filter(|text| !text.is_empty()).enumerate() {
        add_address(text, format!("spec.clusterIPs[{i}]"), &mut found, notices);
    }
    for (i, text) in spec.external_ips.iter().flatten().enumerate() {
        add_address(text, format!("spec.externalIPs[{i}]"), &mut found, notices);
    }
    found
}

/// Addresses of load balancers. Source ranges are for these only.
fn ingress(service: &Service, spec: &ServiceSpec, facts: &mut Facts, notices: &mut Notices) {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = status.and_then(|s| s.ingress.as_deref()).unwrap_or_default();
    if ingress.is_empty() {
        return;
    }
    let ranges = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    match sources(ranges) {
        Ok(sources) => facts.sources = sources,
        Err(why) => {
            let why = format!("{why}, so the load balancer's addresses are not served");
            notices.add("spec.loadBalancerSourceRanges", Effect::LeftOut, why);
            return;
        }
    }
    let mut found = Vec::new();
    for (i, ingress) in ingress.iter().enumerate() {
        let field = |part: &str| format!("status.loadBalancer.ingress[{i}].{part}");
        if ingress.ip_mode.as_deref() == Some("Proxy") {
            let why = "the load balancer wants the packets for itself";
            notices.add(field("ipMode"), Effect::LeftOut, why);
        } else if let Some(text) = &ingress.ip {
            add_address(text, field("ip"), &mut found, notices);
        } else if ingress.hostname.is_some() {
            notices.add(field("hostname"), Effect::LeftOut, "a name is not an address");
        }
    }
    found.retain(|address| !facts.addresses.contains(address));
    let place = if facts.sources.is_empty() { &mut facts.addresses } else { &mut facts.restricted };
    place.append(&mut found);
}

/// Source ranges; none: everybody.
fn sources(ranges: &[String]) -> Result<Vec<IpNet>, String> {
    let parse = |text: &String| {
        let net = IpNet::from_str(text.trim()).map_err(|_| format!("{text:?} is not a prefix"))?;
        Ok(net.trunc())
    };
    let mut sources = ranges.iter().map(parse).collect::<Result<Vec<IpNet>, String>>()?;
    sources.sort_unstable();
    sources.dedup();
    Ok(sources)
}

fn add_address(text: &str, field: String, found: &mut Vec<IpAddr>, notices: &mut Notices) {
    match usable(text) {
        Ok(address) if found.contains(&address) => {}
        Ok(address) => found.push(address),
        Err(why) => notices.add(field, Effect::LeftOut, format!("{text:?} {why}")),
    }
}

/// An address that packets can be sent to.
pub(crate) fn usable(text: &str) -> Result<IpAddr, &'static str> {
    let address = IpAddr::from_str(text).map_err(|_| "is not an IP address")?.to_canonical();
    let broadcast = address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast {
        return Err("is no address of one machine that others can reach");
    }
    Ok(address)
}

fn ports(spec: &ServiceSpec, notices: &mut Notices) -> Vec<Port> {
    let mut found: Vec<Port> = Vec::new();
    for (index, entry) in spec.ports.iter().flatten().enumerate() {
        let ServicePort { app_protocol: _, name, node_port, port, protocol, target_port } = entry;
        let field = |part: &str| format!("spec.ports[{index}].{part}");
        if node_port.is_some_and(|port| port != 0) {
            notices.add(field("nodePort"), Effect::Ignored, "node ports are not served");
        }
        let Some(protocol) = transport(protocol.as_deref()) else {
            let word = protocol.as_deref().unwrap_or_default();
            let why = format!("{word} is not balanced; TCP and UDP are");
            notices.add(field("protocol"), Effect::LeftOut, why);
            continue;
        };
        let Some(port) = port_number(*port) else {
            notices.add(field("port"), Effect::LeftOut, format!("{port} is not a port"));
            continue;
        };
        if found.iter().any(|other| (other.port, other.protocol) == (port, protocol)) {
            let why = format!("{port}/{} stands here twice", protocol.as_str());
            notices.add(field("port"), Effect::LeftOut, why);
            continue;
        }
        let name = name.clone().unwrap_or_default();
        let label = label(&name, port);
        if found.iter().any(|other| other.label() == label) {
            let why = format!("another port of the service is called {label:?} too");
            notices.add(field("name"), Effect::LeftOut, why);
            continue;
        }
        let target = match target_port {
            Some(IntOrString::Int(number)) => port_number(*number).unwrap_or(port),
            // A name: what it means is told by slices.
            Some(IntOrString::String(_)) | None => port,
        };
        found.push(Port { index, name, port, protocol, target });
    }
    found
}

fn label(name: &str, port: u16) -> String {
    if name.is_empty() { port.to_string() } else { name.to_owned() }
}

/// Transport of a port; TCP if it does not say.
pub(crate) fn transport(word: Option<&str>) -> Option<Protocol> {
    match word {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(_) => None,
    }
}

/// A port that packets can have.
pub(crate) fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|&port| port != 0)
}

/// Fields of the whole service that change nothing here.
fn unsupported(spec: &ServiceSpec, notices: &mut Notices) {
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let why = "ClientIP: a client's connections are spread over all endpoints";
        notices.add("spec.sessionAffinity", Effect::Ignored, why);
    }
    for (field, policy) in [
        ("spec.externalTrafficPolicy", &spec.external_traffic_policy),
        ("spec.internalTrafficPolicy", &spec.internal_traffic_policy),
    ] {
        if policy.as_deref() == Some("Local") {
            notices.add(field, Effect::Ignored, "Local: endpoints of every node take packets");
        }
    }
    if let Some(word) = &spec.traffic_distribution {
        let why = format!("{word}: endpoints of every zone and node take packets");
        notices.add("spec.trafficDistribution", Effect::Ignored, why);
    }
    if spec.health_check_node_port.is_some_and(|port| port != 0) {
        notices.add("spec.healthCheckNodePort", Effect::Ignored, "nobody answers there");
    }
}
