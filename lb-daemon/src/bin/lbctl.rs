//! Starts the client.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_daemon::ctl::main()
}
