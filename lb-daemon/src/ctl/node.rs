//! `lbctl interface`, `map`, `reason`, `cleanup`: what belongs to the node as a whole.

use std::path::Path;

use clap::Subcommand;
use serde_json::json;

use super::{
    client::Client,
    output::{Output, bytes, number, table},
};
use crate::{
    api::model::{Interface, List, Map, ReasonCount},
    app,
};

/// Interfaces and what is attached to them.
#[derive(Debug, Subcommand)]
pub(super) enum InterfaceVerb {
    /// Every interface that the configuration names or matches.
    List,
}

/// Tables shared with the kernel.
#[derive(Debug, Subcommand)]
pub(super) enum MapVerb {
    /// Every table, with its entries and memory.
    List,
}

/// Why packets went the way they went.
#[derive(Debug, Subcommand)]
pub(super) enum ReasonVerb {
    /// Every reason, with what it means.
    List {
        /// Also those that were never met.
        #[arg(short, long)]
        all: bool,
    },
}

impl InterfaceVerb {
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        let (value, list) = client.get::<List<Interface>>("/v1/interfaces")?;
        output.show(&value, || interfaces(&list.items))
    }
}

impl MapVerb {
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        let (value, list) = client.get::<List<Map>>("/v1/maps")?;
        output.show(&value, || maps(&list.items))
    }
}

impl ReasonVerb {
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        let Self::List { all } = self;
        let (value, mut list) = client.get::<List<ReasonCount>>("/v1/reasons")?;
        if !all {
            list.items.retain(|reason| reason.packets > 0);
        }
        output.show(&value, || reasons(list.items))
    }
}

pub(super) fn interfaces(items: &[Interface]) -> String {
    table(
        ["INTERFACE", "ATTACHED", "WANTED", "ROLES"],
        items.iter().map(|i| {
            let attached = match &i.reason {
                Some(reason) => format!("none: {reason}"),
                None => i.attached.clone(),
            };
            [
                i.name.clone().into(),
                attached.into(),
                i.wanted.clone().into(),
                i.roles.join(", ").into(),
            ]
        }),
    )
}

pub(super) fn maps(items: &[Map]) -> String {
    table(
        ["TABLE", "#ENTRIES", "#CAPACITY", "#USED", "#MEMORY"],
        items.iter().map(|map| {
            let used = map.entries.map_or_else(String::new, |n| {
                format!("{:.0} %", n as f64 / map.capacity.max(1) as f64 * 100.0)
            });
            [
                map.name.clone().into(),
                map.entries.map_or("".into(), number),
                number(map.capacity),
                used.into(),
                bytes(map.bytes),
            ]
        }),
    )
}

pub(super) fn reasons(items: Vec<ReasonCount>) -> String {
    table(
        ["REASON", "VERDICT", "#PACKETS", "#BYTES", "MEANING"],
        items.into_iter().map(|reason| {
            [
                reason.name.into(),
                reason.verdict.into(),
                number(reason.packets),
                bytes(reason.bytes),
                reason.description.into(),
            ]
        }),
    )
}

/// `lbctl cleanup`: needs no daemon, and refuses while one runs.
pub(super) fn cleanup(bpffs: &Path, output: &Output) -> anyhow::Result<()> {
    let removed = app::cleanup(bpffs)?;
    let app::Removed { links, pins } = removed;
    let sentence = if links + pins == 0 {
        format!("{}: nothing is pinned there", bpffs.display())
    } else {
        format!(
            "{}: {links} links detached, {pins} pins of programs and maps removed",
            bpffs.display()
        )
    };
    output.done(&json!({"bpffs": bpffs, "links": links, "pins": pins}), &sentence)
}
