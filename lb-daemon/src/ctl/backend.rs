//! `lbctl backend`.

use clap::Subcommand;
use hyper::Method;
use serde_json::{Value, json};

use super::{
    client::{Client, Guard, segment},
    output::{Output, bytes, number, table},
};
use crate::api::model::{Backend, BackendState, List};

/// Backends: who stands behind a service.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Every backend, or those of one service.
    List {
        /// Name of the service.
        service: Option<String>,
    },
    /// Changes the share of new flows.
    SetWeight {
        #[command(flatten)]
        which: Which,
        /// 0 to 65535, relative to the others; 0: no new flows.
        weight: u32,
    },
    /// No new flows; those that there are go on until the service's drain_timeout.
    Drain(Which),
    /// Takes flows again.
    Resume(Which),
    /// Takes nothing, at once.
    Maintenance(Which),
}

/// A backend.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Name of the service.
    service: String,
    /// Name of the backend.
    backend: String,
}

impl Verb {
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        match self {
            Self::List { service } => list(service.as_deref(), client, output),
            Self::SetWeight { which, weight } => which.change(
                &json!({"weight": weight}),
                &format!("has weight {weight}"),
                client,
                output,
            ),
            Self::Drain(which) => which.set_state(BackendState::Draining, client, output),
            Self::Resume(which) => which.set_state(BackendState::Active, client, output),
            Self::Maintenance(which) => which.set_state(BackendState::Maintenance, client, output),
        }
    }
}

impl Which {
    fn set_state(
        &self,
        state: BackendState,
        client: &Client,
        output: &Output,
    ) -> anyhow::Result<()> {
        let now = format!("is {}", state.as_str());
        self.change(&json!({"state": state}), &now, client, output)
    }

    fn change(
        &self,
        patch: &Value,
        now: &str,
        client: &Client,
        output: &Output,
    ) -> anyhow::Result<()> {
        let Self { service, backend } = self;
        let path = format!("/v1/services/{}/backends/{}", segment(service), segment(backend));
        let answer = client.change(Method::PATCH, &path, Some(patch), Guard::default())?;
        output.done(&answer, &format!("{service}: {backend} {now}"))
    }
}

fn list(service: Option<&str>, client: &Client, output: &Output) -> anyhow::Result<()> {
    let path = match service {
        Some(service) => format!("/v1/backends?service={}", segment(service)),
        None => "/v1/backends".to_owned(),
    };
    let (value, list) = client.get::<List<Backend>>(&path)?;
    output.show(&value, || backends(&list.items))
}

pub(super) fn backends(items: &[Backend]) -> String {
    table(
        [
            "SERVICE",
            "BACKEND",
            "ADDRESS",
            "STATE",
            "HEALTH",
            "#WEIGHT",
            "#SHARE",
            "#PACKETS",
            "#BYTES",
            "#CONNECTIONS",
            "#OPEN",
            "NEXT HOP",
        ],
        items.iter().map(|b| {
            let hop = match (&b.next_hop.mac, &b.next_hop.interface) {
                _ if b.next_hop.local => "this machine".to_owned(),
                (Some(mac), Some(interface)) => format!("{mac} {interface}"),
                _ => format!("none: {}", b.next_hop.reason.as_deref().unwrap_or("not resolved")),
            };
            [
                b.service.clone().into(),
                b.name.clone().into(),
                b.address.to_string().into(),
                b.state.as_str().into(),
                b.health.as_str().into(),
                b.weight.to_string().into(),
                format!("{:.1} %", b.share * 100.0).into(),
                number(b.traffic.packets),
                bytes(b.traffic.bytes),
                number(b.traffic.new_connections),
                // Only of services that have an entry for each.
                b.active_connections.map_or_else(|| "-".into(), number),
                hop.into(),
            ]
        }),
    )
}
