//! What the tests of this crate share.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::allow_attributes, dead_code, reason = "not every test uses all of it")]

use std::{fmt::Write as _, time::Duration};

use config::model::{Forwarding, Service as Wanted, Source};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use lb_k8s_sync::{Changes, Index, Key, Settings};
use serde_json::Value;

/// An object of either kind.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
}

impl Object {
    pub(crate) fn parse(json: &Value) -> Self {
        match json["kind"].as_str() {
            Some("Service") => Self::Service(serde_json::from_value(json.clone()).unwrap()),
            Some("EndpointSlice") => Self::Slice(serde_json::from_value(json.clone()).unwrap()),
            kind => panic!("{kind:?} is not recorded"),
        }
    }

    pub(crate) fn key(&self) -> Key {
        let meta = match self {
            Self::Service(service) => &service.metadata,
            Self::Slice(slice) => &slice.metadata,
        };
        Key::new(meta.namespace.clone().unwrap(), meta.name.clone().unwrap())
    }
}

pub(crate) fn index() -> Index {
    Index::new(Settings { forwarding: Forwarding::Ipip, drain_timeout: Duration::from_secs(300) })
}

pub(crate) fn apply(index: &mut Index, object: &Object) -> Changes {
    match object {
        Object::Service(service) => index.apply_service(service).unwrap(),
        Object::Slice(slice) => index.apply_slice(slice).unwrap(),
    }
}

pub(crate) fn delete(index: &mut Index, object: &Object) -> Changes {
    match object {
        Object::Service(_) => index.delete_service(&object.key()),
        Object::Slice(_) => index.delete_slice(&object.key()),
    }
}

/// Services and notices, as text.
pub(crate) fn render(index: &Index) -> String {
    let mut text = String::new();
    for service in index.services() {
        render_service(service, &mut text);
    }
    for notice in index.notices() {
        writeln!(text, "! {notice}").unwrap();
    }
    text
}

fn render_service(service: &Wanted, text: &mut String) {
    let Source::Kubernetes(object) = &service.source else { panic!("of another source") };
    assert!(config::is_name(&service.name), "{}", service.name);
    writeln!(text, "{} ({object})", service.name).unwrap();
    for address in &service.addresses {
        for port in &service.ports {
            let (number, protocol) = (port.port, port.protocol.as_str());
            writeln!(text, "  {address} {number}/{protocol} {}", port.name).unwrap();
        }
    }
    if !service.source_ranges.is_empty() {
        writeln!(text, "  from {:?}", service.source_ranges).unwrap();
    }
    for backend in &service.backends {
        let (address, target) = (backend.address, service.ports[0].target_port);
        let state = backend.state.as_str();
        writeln!(text, "    -> {address} {target} {} {state}", backend.name).unwrap();
    }
    if service.backends.is_empty() {
        writeln!(text, "    -> none, {}", service.ports[0].target_port).unwrap();
    }
}
