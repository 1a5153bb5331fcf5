//! Makes the published [`View`](crate::view::View) of what the owner holds. Decides nothing.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use config::model::{DesiredState, Service};

use crate::{
    bans::pending::Pending,
    datapath::{Tables, bpf::Bpf},
    nexthop::NextHop,
    plan::{Planned, Planner, prefixes::Prefixes, service_keys},
    view::{
        BackendView, FrontendView, Health, LimitView, ListView, MapView, NextHopView, ServiceView,
        UnconfirmedView,
    },
};

/// What the health checks found, by service and backend.
pub(super) type HealthMap = BTreeMap<(String, IpAddr), (Health, Option<String>)>;

/// A service as it stands in the tables.
pub(super) fn service(
    spec: &Arc<Service>,
    version: u64,
    planner: &Planner,
    tables: &dyn Tables,
    health: &HealthMap,
) -> Option<ServiceView> {
    let planned: &Planned = planner.services().get(spec.name.as_str())?;
    let (moving_slots, slots) = planner.slots_of(planned, tables);
    let frontends = spec
        .addresses
        .iter()
        .flat_map(|&address| spec.ports.iter().map(move |port| (address, port)))
        .zip(service_keys(spec))
        .filter_map(|((address, port), key)| {
            let row = *planned.frontends.get(&key)?;
            Some(FrontendView { address, port: port.clone(), row })
        })
        .collect();
    let backends = spec
        .backends
        .iter()
        .zip(0..)
        .filter(|(backend, _)| backend.group.is_none())
        .filter_map(|(backend, index)| {
            let row = planned.members.get(&backend.address)?.row;
            let found = health.get(&(spec.name.clone(), backend.address));
            let checked = spec.health_check.is_some();
            let health = match found {
                Some((health, _)) => *health,
                None if checked => Health::Unknown,
                None => Health::Unchecked,
            };
            Some(BackendView {
                index,
                health,
                health_reason: found.and_then(|(_, reason)| reason.as_deref().map(Into::into)),
                next_hop: next_hop(planner.hop(backend.address)),
                slots: slots.get(&row).copied().unwrap_or(0),
                row,
            })
        })
        .collect();
    Some(ServiceView {
        spec: Arc::clone(spec),
        version,
        ring_size: planned.ring.size,
        moving_slots,
        frontends,
        backends,
    })
}

fn next_hop(hop: Option<&NextHop>) -> NextHopView {
    match hop {
        Some(NextHop::Resolved(hop)) => NextHopView::Resolved {
            interface: Arc::clone(&hop.interface),
            mac: hop.dst_mac,
            mtu: hop.mtu,
        },
        Some(NextHop::Unresolved(why)) => NextHopView::Unresolved(why.clone()),
        Some(NextHop::Local) => NextHopView::Local,
        None => NextHopView::Unresolved("not looked up yet".into()),
    }
}

/// The blocklists in force.
pub(super) fn lists(wanted: &DesiredState, prefixes: &Prefixes) -> Vec<ListView> {
    wanted
        .prefilter
        .lists
        .iter()
        .map(|list| ListView {
            name: list.name.clone(),
            source: list.source.clone(),
            action: list.action,
            prefixes_v4: list.prefixes.v4().len() as u64,
            prefixes_v6: list.prefixes.v6().len() as u64,
            skipped_lines: list.skipped_lines,
            scope: list.scope.to_string(),
            remote: list.remote.clone(),
            row: prefixes.number_of(&list.name).unwrap_or(0).into(),
        })
        .collect()
}

/// The change that waits for confirmation.
pub(super) fn unconfirmed(pending: &Pending) -> UnconfirmedView {
    let until = UNIX_EPOCH + Duration::from_millis(pending.until);
    UnconfirmedView { what: pending.what.clone(), until }
}

/// The rate limits in force.
pub(super) fn limits(wanted: &DesiredState, prefixes: &Prefixes) -> Vec<LimitView> {
    let limits = wanted.prefilter.rate_limits.iter();
    limits
        .filter_map(|spec| {
            Some(LimitView { spec: spec.clone(), row: prefixes.limit_row(&spec.name)? })
        })
        .collect()
}

/// The tables shared with the kernel.
pub(super) fn maps(bpf: &Bpf, planner: &Planner) -> Vec<MapView> {
    let (frontends, backends, slots) = planner.used();
    bpf.sizes()
        .into_iter()
        .map(|(name, capacity, bytes)| MapView {
            name: name.to_owned(),
            entries: match name {
                "FRONTENDS" => Some(frontends.into()),
                "BACKENDS" => Some(backends.into()),
                "SLOTS" => Some(slots.into()),
                _ => None,
            },
            capacity,
            bytes,
        })
        .collect()
}
