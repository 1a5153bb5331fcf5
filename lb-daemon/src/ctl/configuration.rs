//! `lbctl config`: files. Checking them needs no daemon.

mod diff;

use std::{path::PathBuf, process::ExitCode};

use clap::Subcommand;

use super::{client::Client, output::Output};
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
    /// What files would change in the daemon that runs; changes nothing.
    ///
    /// Status 0: nothing, 1: something, 2: the files are wrong or would be refused, or no daemon answers.
    Diff {
        /// Directory with *.yaml files, or one file.
        #[arg(value_name = "DIR|FILE", default_value = "/etc/lb")]
        path: PathBuf,
    },
    /// A JSON Schema for editors.
    Schema,
}

impl Verb {
    pub(super) fn run(&self, client: &Client, output: &Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check { path } => output.text(&app::check(path)?)?,
            Self::Schema => output.text(&serde_json::to_string_pretty(&config::schema())?)?,
            Self::Diff { path } => return diff::run(client, output, path),
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The status after an error.
    pub(super) const fn failure(&self) -> u8 {
        match self {
            Self::Diff { .. } => diff::TROUBLE,
            Self::Check { .. } | Self::Schema => 1,
        }
    }
}
