//! What an EndpointSlice object says, reduced to what a balancer needs of it.

use std::net::IpAddr;

use config::model::{BackendState, Protocol};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};

use crate::{
    notice::{Effect, Notice, Notices},
    service::{port_number, transport, usable},
};

/// An EndpointSlice, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// How notices call it.
    pub(crate) object: String,
    pub(crate) ports: Vec<Port>,
    /// Those that take packets, in the order of the object.
    pub(crate) endpoints: Vec<Reachable>,
    /// What of it is not carried out.
    pub(crate) notices: Vec<Notice>,
}

/// A port that every endpoint of the slice has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// That of the Service's port; may be empty.
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) target: u16,
}

/// An endpoint that takes packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reachable {
    pub(crate) address: IpAddr,
    /// Name of the pod behind it.
    pub(crate) pod: Option<String>,
    /// Active or draining.
    pub(crate) state: BackendState,
}

impl Facts {
    /// Reads an object; `object` names it in notices.
    pub(crate) fn read(slice: &EndpointSlice, object: String) -> Self {
        let mut notices = Notices::of(object.clone());
        let mut facts = Self { object, ..Self::default() };
        match slice.address_type.as_str() {
            kind @ ("IPv4" | "IPv6") => {
                facts.ports = ports(slice, &mut notices);
                facts.endpoints = endpoints(slice, kind == "IPv4", &mut notices);
            }
            kind => {
                let why = format!("{kind}: endpoints are addressed by IPv4 or IPv6");
                notices.add("addressType", Effect::Skipped, why);
            }
        }
        facts.notices = notices.into_vec();
        facts
    }
}

fn ports(slice: &EndpointSlice, notices: &mut Notices) -> Vec<Port> {
    let mut found = Vec::new();
    for (i, port) in slice.ports.iter().flatten().enumerate() {
        let Some(protocol) = transport(port.protocol.as_deref()) else {
            let word = port.protocol.as_deref().unwrap_or_default();
            let why = format!("{word} is not balanced; TCP and UDP are");
            notices.add(format!("ports[{i}].protocol"), Effect::LeftOut, why);
            continue;
        };
        let Some(target) = port.port.and_then(port_number) else {
            let why = "without a number there is nowhere to send packets to";
            notices.add(format!("ports[{i}].port"), Effect::LeftOut, why);
            continue;
        };
        found.push(Port { name: port.name.clone().unwrap_or_default(), protocol, target });
    }
    found
}

fn endpoints(slice: &EndpointSlice, v4: bool, notices: &mut Notices) -> Vec<Reachable> {
    let mut found = Vec::new();
    for (i, endpoint) in slice.endpoints.iter().enumerate() {
        let Some(state) = state(endpoint.conditions.as_ref()) else { continue };
        // Further addresses are other ways to the same endpoint.
        let Some(text) = endpoint.addresses.first() else { continue };
        let right = usable(text).and_then(|address| {
            let fits = address.is_ipv4() == v4;
            fits.then_some(address).ok_or("is not of the slice's address type")
        });
        match right {
            Ok(address) => found.push(Reachable { address, pod: pod(endpoint), state }),
            Err(why) => {
                let field = format!("endpoints[{i}].addresses[0]");
                notices.add(field, Effect::LeftOut, format!("{text:?} {why}"));
            }
        }
    }
    found
}

/// What an endpoint takes; `None`: nothing new, and what it has ends with the drain timeout.
fn state(conditions: Option<&EndpointConditions>) -> Option<BackendState> {
    let (ready, serving, terminating) =
        conditions.map_or((None, None, None), |c| (c.ready, c.serving, c.terminating));
    // As the API says what a missing condition means.
    let ready = ready.unwrap_or(true);
    let serving = serving.unwrap_or(ready);
    if ready {
        Some(BackendState::Active)
    } else {
        (serving && terminating == Some(true)).then_some(BackendState::Draining)
    }
}

fn pod(endpoint: &Endpoint) -> Option<String> {
    let target = endpoint.target_ref.as_ref()?;
    // A pod may be called like the address of another one.
    target.name.clone().filter(|name| config::is_name(name) && name.parse::<IpAddr>().is_err())
}
