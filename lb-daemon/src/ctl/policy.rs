//! `lbctl policy`: what rules say. `trace` and `validate` need no daemon.

use anyhow::bail;

use super::output::Output;
use crate::policy::cli::{self, Command};

/// Answers; a trace that ends in a denial, and faulty rules, are failures.
pub(super) fn run(verb: &Command, output: &Output) -> anyhow::Result<()> {
    let mut text = Vec::new();
    let good = cli::run(verb, &mut text)?;
    output.text(&String::from_utf8_lossy(&text))?;
    match verb {
        _ if good => Ok(()),
        Command::Validate { .. } => bail!("there are faults in the rules"),
        Command::Trace(_) => bail!("the rules deny it"),
    }
}
