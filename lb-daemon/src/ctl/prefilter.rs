//! `lbctl prefilter`.

use clap::Subcommand;

use super::{
    client::Client,
    output::{Output, bytes, number, table},
};
use crate::api::model::{List, PrefixList};

/// Blocklists.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Every list, with its size and hits.
    List,
}

impl Verb {
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<()> {
        let Self::List = self;
        let (value, lists) = client.get::<List<PrefixList>>("/v1/prefilter/lists")?;
        output.show(&value, || {
            table(
                ["LIST", "ACTION", "#IPV4", "#IPV6", "#HITS", "#BYTES", "SOURCE"],
                lists.items.into_iter().map(|list| {
                    let source = list.origin.unwrap_or_else(|| list.source.as_str().to_owned());
                    [
                        list.name.into(),
                        list.action.into(),
                        number(list.prefixes_v4),
                        number(list.prefixes_v6),
                        number(list.hits),
                        bytes(list.hit_bytes),
                        source.into(),
                    ]
                }),
            )
        })
    }
}
