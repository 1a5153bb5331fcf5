//! Next hops: which interface and MAC addresses lead to an address.
//!
//! A [`Resolver`] is told which addresses are wanted and sends the next hops that change. It makes the
//! kernel find neighbours, and changes neither routes nor interfaces. What follows from what the kernel
//! knows is decided in `state`, which does no I/O; `run` has the sockets and the clock.

mod fib;
mod parse;
mod probes;
mod run;
mod state;

#[cfg(test)]
mod namespace_tests;
#[cfg(test)]
mod state_tests;

pub use self::run::{Resolver, Task};

/// The way to one address, as the kernel's routes and neighbours have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NextHop {
    /// Complete.
    Resolved(Hop),
    /// Not usable yet, and why; the resolver keeps trying.
    Unresolved(std::sync::Arc<str>),
    /// The address is one of this machine's own.
    Local,
}

impl NextHop {
    /// Whether packets get there.
    #[must_use]
    pub const fn is_reachable(&self) -> bool {
        match self {
            Self::Resolved(_) | Self::Local => true,
            Self::Unresolved(_) => false,
        }
    }
}

/// A resolved way out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hop {
    /// Egress interface.
    pub ifindex: u32,
    /// Its name.
    pub interface: std::sync::Arc<str>,
    /// MAC of the gateway or of the target itself.
    pub dst_mac: [u8; 6],
    /// MAC of the egress interface.
    pub src_mac: [u8; 6],
    /// L3 bytes that fit: the route's MTU, else the link's.
    pub mtu: u32,
    /// Address of this machine that the kernel would use as source on this way; the outer source of
    /// encapsulated packets when `tunnel_source` is `auto`.
    pub source: Option<std::net::IpAddr>,
}
