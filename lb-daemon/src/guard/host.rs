//! What rules about this machine (`nodeSelector`) should not deny: whoever is logged in, the API's clients, name
//! servers, health checks. Pure.
//!
//! Gateways need no entry: ARP and neighbour discovery are not subject to policy, and what is forwarded is not this
//! machine's.

use std::{fmt, net::IpAddr, sync::Arc};

use abi::limits::policy::HOST;
use config::{
    model::{Probe, Service},
    policy::{Direction, Entity},
};

use super::{MAX_LISTED, Protected, Role, SSH};
use crate::policy::{
    Flow,
    state::Wanted,
    trace::{Side, trace},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS: u16 = 53;

/// A connection that this machine has to be able to make or take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The other end.
    pub peer: IpAddr,
    /// Why.
    pub role: Role,
    /// `Ingress`: the other end opens it.
    pub direction: Direction,
    /// Protocol and port.
    pub flow: Flow,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, role, direction, flow } = self;
        let word = if *direction == Direction::Ingress { "from" } else { "to" };
        write!(f, "{flow} {word} {peer} ({role})")
    }
}

/// What these addresses, and the health checks of these services, are needed for.
pub fn needs<'s>(
    protected: &Protected,
    services: impl Iterator<Item = &'s Arc<Service>>,
) -> Vec<Need> {
    let mut all = Vec::new();
    for (&peer, roles) in &protected.0 {
        for role in roles {
            let (direction, protocol, port) = match role {
                Role::Session | Role::Ssh => (Direction::Ingress, TCP, SSH),
                Role::Client(port) => (Direction::Ingress, TCP, *port),
                Role::NameServer => (Direction::Egress, UDP, DNS),
                // See the module; what a backend is needed for, its health check says.
                Role::Gateway | Role::Local | Role::Backend(_) => continue,
            };
            let flow = Flow { protocol, port };
            all.push(Need { peer, role: role.clone(), direction, flow });
        }
    }
    for service in services {
        let Some(check) = &service.health_check else { continue };
        let port = match check.probe {
            Probe::Tcp { port } | Probe::Http { port, .. } => port,
        };
        all.extend(service.own_backends().map(|backend| Need {
            peer: backend.address,
            role: Role::Backend(service.name.clone()),
            direction: Direction::Egress,
            flow: Flow { protocol: TCP, port },
        }));
    }
    all
}

/// What `after` denies and `before` did not.
#[must_use]
pub fn denied(before: &Wanted, after: &Wanted, needs: Vec<Need>) -> Vec<Need> {
    let mut needs = needs;
    // What is for this machine itself goes over its loopback interface.
    needs.retain(|need| {
        after.nodes.get(&need.peer) != Some(&HOST) && !passes(after, need) && passes(before, need)
    });
    needs
}

/// Whether the host's rules let it pass; those of an endpoint at the other end are none of its.
fn passes(facts: &Wanted, need: &Need) -> bool {
    let (host, peer) = (Side::Reserved(Entity::Host), Side::Address(need.peer));
    let (from, to) = match need.direction {
        Direction::Ingress => (&peer, &host),
        Direction::Egress => (&host, &peer),
    };
    // Nobody to ask: its firewall is off.
    let Ok(trace) = trace(facts, from, to, need.flow) else { return true };
    trace.ends.iter().filter(|end| end.host).all(|end| !end.verdict.starts_with("denied"))
}

/// In one text: the first of them, and how many more there are.
#[must_use]
pub fn listed(needs: &[Need]) -> String {
    let first: Vec<String> = needs.iter().take(MAX_LISTED).map(ToString::to_string).collect();
    let mut text = first.join("; ");
    if needs.len() > MAX_LISTED {
        text.push_str(&format!("; and {} more", needs.len() - MAX_LISTED));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use config::model::{Endpoint, Source};

    use super::*;

    fn wanted(rules: &str) -> Wanted {
        let host = Endpoint {
            name: "host".to_owned(),
            source: Source::Api,
            labels: [("role".to_owned(), "edge".to_owned())].into(),
            addresses: Vec::new(),
            interface: "eth0".to_owned(),
            audit: false,
            enforcement: None,
            ports: Vec::new(),
        };
        Wanted {
            host: Some((host.into(), [2].into())),
            nodes: [("192.0.2.1".parse().unwrap(), HOST)].into(),
            rules: config::policy::import(Path::new("rules"), rules).unwrap().into(),
            ..Wanted::default()
        }
    }

    fn texts(before: &Wanted, after: &Wanted) -> Vec<String> {
        let mut protected = Protected::default();
        for (address, role) in [
            ("198.51.100.7", Role::Ssh),
            ("198.51.100.8", Role::Client(9870)),
            ("198.51.100.53", Role::NameServer),
            ("198.51.100.1", Role::Gateway),
            // Its own, over loopback.
            ("192.0.2.1", Role::Ssh),
        ] {
            protected.add(address.parse().unwrap(), role);
        }
        let needs = needs(&protected, std::iter::empty());
        denied(before, after, needs).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_newly_denied_is_named() {
        let off =
            Wanted { host: None, ..wanted("[{nodeSelector: {}, ingress: [{}], egress: [{}]}]") };
        let open = wanted("[{nodeSelector: {matchLabels: {role: other}}, ingress: [{}]}]");
        let closed = wanted("[{nodeSelector: {}, ingress: [{}], egress: [{}]}]");
        let ssh = "22/tcp from 198.51.100.7 (somebody logged in over SSH)";
        let client = "9870/tcp from 198.51.100.8 (a client of the API)";
        let dns = "53/udp to 198.51.100.53 (a name server)";
        // In the order of the addresses.
        assert_eq!(texts(&off, &closed), [ssh, client, dns]);
        assert_eq!(texts(&off, &open), Vec::<String>::new());
        assert_eq!(texts(&closed, &closed), Vec::<String>::new(), "nothing gets worse");
        assert_eq!(texts(&closed, &off), Vec::<String>::new());
        let audited = wanted("[{nodeSelector: {}, audit: true, ingress: [{}]}]");
        assert_eq!(texts(&open, &audited), Vec::<String>::new());
        let but_ssh = wanted(
            "[{nodeSelector: {}, ingress: [{fromCIDR: [198.51.100.0/24], \
             toPorts: [{ports: [{port: \"22\", protocol: TCP}]}]}]}]",
        );
        assert_eq!(texts(&open, &but_ssh), [client]);
    }
}
