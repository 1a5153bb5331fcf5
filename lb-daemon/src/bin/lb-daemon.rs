//! Starts the daemon.
//!
//! Its parts are there (rings, plan, tables, next hops, API); the task that owns them is not, so this
//! says so instead of pretending.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!(
        "lb-daemon: this version has the data path and its planner, but not yet the daemon that runs \
         them; nothing was changed"
    );
    ExitCode::FAILURE
}
