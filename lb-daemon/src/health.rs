//! Health checks.

use std::net::IpAddr;

use crate::view::Health;

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
