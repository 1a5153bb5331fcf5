//! Identity policy: from labels and rules to numbers and flat tables.
//!
//! [`identity`] numbers whoever has a say in policy, [`compile()`] turns the rules that select an
//! endpoint into a table with one or two probes per flow, and [`explain()`] reads the rules as they
//! are written, to say why. The two share no code beyond the rules themselves, and tests hold them
//! against each other. [`image`] is what stands in the kernel's tables, [`state`] gets from one wish to the
//! next without a moment in between at which anything is decided by halves. [`review`] finds what is
//! probably not meant, [`trace`] says why two sides may talk. [`names`] holds what DNS says of names that rules
//! select. Only [`cli`], [`kernel`] and the task of [`names`] do I/O.

pub mod cli;
pub mod compile;
pub mod documents;
pub mod explain;
pub mod identity;
pub mod image;
pub mod kernel;
pub mod names;
pub mod review;
pub mod state;
pub mod trace;

#[cfg(test)]
mod tests;

pub use self::{
    compile::{Compiled, Known, Subject, compile},
    explain::{Explanation, explain},
    identity::{Identities, Identity},
};

/// A flow as policy sees it: what opens a connection, or the first packet of what has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, or ICMP type; 0 for protocols that have neither. Host byte order.
    pub port: u16,
}

/// What becomes of a flow, and which rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// No rule is about it, and the endpoint is open in this direction.
    Open,
    /// Allowed by the rule of this index.
    Allowed(u32),
    /// No rule allows it, and the endpoint is closed in this direction.
    DeniedByDefault,
    /// Denied by the rule of this index.
    Denied(u32),
    /// Passes, and the rule of this index, which is in audit, would deny it.
    WouldDeny(u32),
    /// Passes; rules in audit would close this direction, and no rule allows it.
    WouldDenyByDefault,
}

impl Verdict {
    /// Whether the flow passes.
    #[must_use]
    pub const fn passes(self) -> bool {
        !matches!(self, Self::Denied(_) | Self::DeniedByDefault)
    }

    /// Whether it passes only because of audit.
    #[must_use]
    pub const fn is_audited(self) -> bool {
        matches!(self, Self::WouldDeny(_) | Self::WouldDenyByDefault)
    }

    /// The rule that decided.
    #[must_use]
    pub const fn rule(self) -> Option<u32> {
        match self {
            Self::Allowed(rule) | Self::Denied(rule) | Self::WouldDeny(rule) => Some(rule),
            Self::Open | Self::DeniedByDefault | Self::WouldDenyByDefault => None,
        }
    }
}
