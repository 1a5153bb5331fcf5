//! Starts the client.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!("lbctl: this version has no client yet; nothing was changed");
    ExitCode::FAILURE
}
