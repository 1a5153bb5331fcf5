//! Health checks.
//!
//! A [`Checker`] is told what is wanted and sends the decisions. [`Machine`] decides from results,
//! `plan` when to probe; neither does I/O. `probe` asks a backend, over ordinary sockets, at the
//! backend's own address. What follows for the flows is the owner task's matter.

mod machine;
mod plan;
mod probe;
mod run;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use crate::view::Health;

pub use self::{
    machine::Machine,
    run::{Checker, MAX_IN_FLIGHT, Task},
};

/// A decision of a health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Name of the service.
    pub service: String,
    /// Address of the backend.
    pub backend: IpAddr,
    /// What it is now.
    pub health: Health,
    /// The last probe's failure, for people; `None` after a success.
    pub reason: Option<String>,
}
