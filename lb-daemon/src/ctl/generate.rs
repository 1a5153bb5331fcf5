//! `lbctl version`, `completion`, `man`.

use std::{fs, path::Path};

use anyhow::Context as _;
use clap_complete::Shell;
use serde_json::json;

use super::{client::Client, output::Output};
use crate::api::model;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Both versions; a daemon that does not answer is not an error here.
pub(super) fn version(client: &Client, output: &Output) -> anyhow::Result<()> {
    let daemon = client.get::<model::Status>("/v1/status").map(|(_, status)| status.version);
    let told = match &daemon {
        Ok(version) => version.clone(),
        Err(error) => format!("unknown ({error:#})"),
    };
    let value = json!({"client": VERSION, "daemon": daemon.ok()});
    output.show(&value, || format!("lbctl      {VERSION}\nlb-daemon  {told}"))
}

pub(super) fn completion(
    mut command: clap::Command,
    shell: Shell,
    output: &Output,
) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "lbctl", &mut script);
    output.text(&String::from_utf8(script).context("the script")?)
}

pub(super) fn man(command: clap::Command, directory: &Path, output: &Output) -> anyhow::Result<()> {
    fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command, directory))
        .with_context(|| format!("cannot write to {}", directory.display()))?;
    output.text(&format!("manual pages are in {}", directory.display()))
}
