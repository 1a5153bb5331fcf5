//! What the tests that need root share: `rig` runs packets through loaded programs; the rest is the
//! namespace lab, a small network of network namespaces with real servers, in which the daemon
//! and its programs are run as they are shipped.
//!
//! ```text
//!   client          lb            web-1   web-2   web-3
//!     |             |               |       |       |
//!     +------+------+-------+-------+---+---+-------+
//!            |   bridge in the namespace "fabric"   |
//!            +--------------------------------------+
//! ```
//!
//! `lb` is one-armed. Clients route the VIPs to it; servers hold the VIPs on `lo` and answer clients
//! directly. Everything that is made here is removed by the guards' `Drop`, also when a test panics;
//! what a killed run left behind, the next one removes. Nothing here touches an interface of the host.

pub mod capture;
pub mod cgroup;
pub mod crowd;
pub mod daemon;
pub mod dns;
pub mod edge;
pub mod fail2ban;
pub mod http;
pub mod lab;
pub mod mutated;
pub mod netns;
pub mod pass;
pub mod process;
pub mod rig;
pub mod vlan;
pub mod web;

use std::{
    thread,
    time::{Duration, Instant},
};

/// Asks until `check` gives a value: for state that nothing announces. The error after `limit` is the
/// last one that `check` gave.
///
/// # Errors
///
/// `check` gave no value within `limit`.
pub fn eventually<T>(
    limit: Duration,
    mut check: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("still so after {limit:?}")));
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
