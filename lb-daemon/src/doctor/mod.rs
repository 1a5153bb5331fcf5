//! What stands in the way of a good data path, and what mends it: `lbctl doctor`.
//!
//! [`host`] asks this machine; every judgement is a pure function of those [`Facts`]. Changes nothing. Asking for
//! next hops makes the kernel look for neighbours, as the daemon does.

pub(crate) mod host;
mod interface;
mod machine;
mod service;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use config::model::DesiredState;
use serde::Serialize;

use crate::{links::Link, nexthop::NextHop};

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or not for everybody.
    Warn,
    /// It does not work.
    Fail,
}

impl Verdict {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What was looked at: `kernel`, `interface eth0`, `service web`.
    pub(crate) subject: String,
    /// Which property of it.
    pub(crate) check: &'static str,
    pub(crate) verdict: Verdict,
    /// What was found.
    pub(crate) found: String,
    /// What mends it, with the command where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

impl Check {
    pub(crate) fn ok(
        subject: impl Into<String>,
        check: &'static str,
        found: impl Into<String>,
    ) -> Self {
        let (subject, found) = (subject.into(), found.into());
        Self { subject, check, verdict: Verdict::Ok, found, remedy: None }
    }

    pub(crate) fn warn(
        subject: impl Into<String>,
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::ok(subject, check, found).but(Verdict::Warn, remedy.into())
    }

    pub(crate) fn fail(
        subject: impl Into<String>,
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::ok(subject, check, found).but(Verdict::Fail, remedy.into())
    }

    fn but(self, verdict: Verdict, remedy: String) -> Self {
        Self { verdict, remedy: Some(remedy), ..self }
    }
}

/// All that the judgements need. What could not be asked is `None`, and then not judged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Kernel release, as `uname -r` has it.
    pub(crate) release: String,
    /// The kernel tells its types (`/sys/kernel/btf/vmlinux`).
    pub(crate) btf: bool,
    /// This process may load and attach.
    pub(crate) may_load: bool,
    /// `net.core.bpf_jit_enable`.
    pub(crate) jit: Option<u32>,
    /// The clock that the kernel reads.
    pub(crate) clocksource: Option<String>,
    /// Where the daemon pins, and whether that is on a BPF file system.
    pub(crate) bpffs: (String, bool),
    pub(crate) links: BTreeMap<u32, Link>,
    /// Addresses of this machine.
    pub(crate) local: BTreeSet<IpAddr>,
    /// What drivers can do with XDP, by interface (`abi` of the kernel's netdev family).
    pub(crate) xdp: BTreeMap<u32, u64>,
    /// Interfaces that join what they receive.
    pub(crate) lro: BTreeSet<u32>,
    /// `rp_filter` in force by interface name: the greater of its own and `all`.
    pub(crate) rp_filter: BTreeMap<String, u32>,
    /// `gc_thresh3` of the neighbour tables, IPv4 and IPv6.
    pub(crate) neighbours: [Option<u32>; 2],
    /// Ways to backends.
    pub(crate) hops: BTreeMap<IpAddr, NextHop>,
    /// Names of attached programs by id.
    pub(crate) programs: BTreeMap<u32, String>,
}

/// Looks at this machine for this configuration.
pub(crate) fn examine(facts: &Facts, state: &DesiredState) -> Vec<Check> {
    let mut checks = machine::checks(facts, state);
    checks.extend(interface::checks(facts, state));
    checks.extend(service::checks(facts, state));
    checks
}
