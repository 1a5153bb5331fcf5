//! Fragments of all documents to one desired state.
//!
//! Runs in full at every load, on what the caches hold: it only moves pointers and looks names up.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use crate::{
    fault::{Fault, Loc},
    model,
    validate::{Fragment, Kind},
};

/// A document and what it contributes.
pub(super) type Part<'f> = (&'f Path, &'f Fragment);

/// Merges the parts; lists of prefixes are left to the caller.
pub(super) fn merge(
    parts: &[Part<'_>],
    host_name: &str,
    faults: &mut Vec<Fault>,
) -> model::DesiredState {
    check_scalars(parts, faults);
    check_names(parts, faults);
    check_fronts(parts, faults);

    let mut state = model::DesiredState::default();
    state.node.name = host_name.to_owned();
    let mut services = Vec::with_capacity(parts.iter().map(|(_, one)| one.services.len()).sum());
    for (_, fragment) in parts {
        let Fragment {
            node_name,
            tunnel_ipv4,
            tunnel_ipv6,
            table_size,
            seed,
            interfaces,
            services: more,
            allow: _,
            lists: _,
            scalars: _,
            names: _,
        } = fragment;
        if let Some(name) = node_name {
            state.node.name.clone_from(name);
        }
        if let Some(source) = tunnel_ipv4 {
            state.node.tunnel_source.ipv4 = *source;
        }
        if let Some(source) = tunnel_ipv6 {
            state.node.tunnel_source.ipv6 = *source;
        }
        if table_size.is_some() {
            state.maglev.table_size = *table_size;
        }
        if let Some(seed) = seed {
            state.maglev.seed.clone_from(seed);
        }
        state.interfaces.extend(interfaces.iter().cloned());
        services.extend(more.iter().map(|(service, _)| (service.name.clone(), service.clone())));
    }
    state.services = BTreeMap::from_iter(services);
    state
}

fn check_scalars(parts: &[Part<'_>], faults: &mut Vec<Fault>) {
    let mut first = HashMap::new();
    for (path, fragment) in parts {
        for (name, at) in &fragment.scalars {
            if let Some((other, other_at)) = first.insert(*name, (*path, *at)) {
                faults.push(fault(
                    path,
                    *at,
                    format!("`{name}` is set twice, first at {}", place(other, other_at)),
                    "allowed: in one file",
                ));
                first.insert(*name, (other, other_at));
            }
        }
    }
}

fn check_names(parts: &[Part<'_>], faults: &mut Vec<Fault>) {
    let count = parts.iter().map(|(_, one)| one.names.len()).sum();
    let mut first: HashMap<(Kind, &str), (&Path, Loc)> = HashMap::with_capacity(count);
    for (path, fragment) in parts {
        for (kind, name, at) in &fragment.names {
            match first.entry((*kind, name)) {
                Entry::Vacant(entry) => {
                    entry.insert((path, *at));
                }
                Entry::Occupied(entry) => {
                    let (other, other_at) = *entry.get();
                    faults.push(fault(
                        path,
                        *at,
                        format!(
                            "the {} `{name}` is defined twice, first at {}",
                            kind.as_str(),
                            place(other, other_at)
                        ),
                        "allowed: once; rename or remove one of them",
                    ));
                }
            }
        }
    }
}

/// Two services must not listen on the same address, port and protocol. Port 0 stands for the ports
/// that nobody else listens on, so it collides with port 0 only.
fn check_fronts(parts: &[Part<'_>], faults: &mut Vec<Fault>) {
    type Front = (IpAddr, u16, model::Protocol);
    let count = parts.iter().map(|(_, one)| one.services.len()).sum();
    let mut first: HashMap<Front, (&Path, &Arc<model::Service>, Loc)> =
        HashMap::with_capacity(count);
    for (path, fragment) in parts {
        for (service, places) in &fragment.services {
            for (port, at) in service.ports.iter().zip(&places.ports) {
                for address in &service.addresses {
                    match first.entry((*address, port.port, port.protocol)) {
                        Entry::Vacant(entry) => {
                            entry.insert((path, service, *at));
                        }
                        Entry::Occupied(entry) => {
                            let (other, taken, other_at) = *entry.get();
                            let port_text = match port.port {
                                0 => "every other port".to_owned(),
                                number => format!("port {number}"),
                            };
                            faults.push(fault(
                                path,
                                *at,
                                format!(
                                    "{address} {port_text}/{} is taken by the service `{}` at {}",
                                    port.protocol.as_str(),
                                    taken.name,
                                    place(other, other_at)
                                ),
                                "allowed: one service per address, port and protocol",
                            ));
                        }
                    }
                }
            }
        }
    }
}

fn place(path: &Path, at: Loc) -> String {
    format!("{}:{}:{}", path.display(), at.line, at.column)
}

/// A fault at a place of a document.
pub(super) fn fault(
    path: &Path,
    at: Loc,
    message: impl Into<String>,
    help: impl Into<String>,
) -> Fault {
    Fault {
        path: path.to_path_buf(),
        line: at.line.max(1),
        column: at.column.max(1),
        message: message.into(),
        help: help.into(),
    }
}
