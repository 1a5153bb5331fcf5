//! `lbctl config`: needs no daemon.

use std::path::PathBuf;

use clap::Subcommand;

use super::output::Output;
use crate::app;

/// The configuration's files.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Checks files as the daemon would: status 0 if they are good, else 1 and every fault.
    Check {
        /// Directory with *.yaml files, or one file.
        #[arg(value_name = "DIR|FILE", default_value = "/etc/lb")]
        path: PathBuf,
    },
    /// A JSON Schema for editors.
    Schema,
}

impl Verb {
    pub(super) fn run(&self, output: &Output) -> anyhow::Result<()> {
        match self {
            Self::Check { path } => output.text(&app::check(path)?),
            Self::Schema => output.text(&serde_json::to_string_pretty(&config::schema())?),
        }
    }
}
