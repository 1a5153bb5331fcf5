//! What the tests with a daemon share: an edge balancer in the lab, and configurations for it.

use std::{fmt::Write as _, time::Duration};

use crate::{
    daemon::Daemon,
    eventually, http,
    http::Tally,
    lab::{
        BLOCKED_V4, BLOCKED_V6, IPIP_V4, IPIP_V6, L2_V4, L2_V6, Lab, SPARE_V4, SPARE_V6, WEBS, at,
        web_v4, web_v6,
    },
    netns::Namespace,
    web,
};

/// How long a change may take to be seen on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A service of a test's configuration.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Unique name.
    pub name: &'static str,
    /// Its only address.
    pub vip: &'static str,
    /// As in the file.
    pub forwarding: &'static str,
    /// Backends are reached by IPv6.
    pub v6: bool,
    /// Numbers of the servers behind it.
    pub webs: Vec<usize>,
    /// Further lines of YAML, indented by four.
    pub more: String,
}

/// Makes the services of a configuration.
pub type Specs = fn() -> Vec<Spec>;

/// Encapsulated, backends of the same family.
pub const IPIP: Specs =
    || vec![spec("ipip-v4", IPIP_V4, "ipip", false), spec("ipip-v6", IPIP_V6, "ipip", true)];
/// Encapsulated, backends of the other family.
pub const IPIP_CROSSED: Specs =
    || vec![spec("4-in-6", SPARE_V4, "ipip", true), spec("6-in-4", SPARE_V6, "ipip", false)];
/// GUE, every combination of families.
pub const GUE: Specs = || every_combination("gue");
/// Geneve, every combination of families.
pub const GENEVE: Specs = || every_combination("geneve");
/// Another destination MAC only.
pub const L2: Specs = || vec![spec("l2-v4", L2_V4, "l2", false), spec("l2-v6", L2_V6, "l2", true)];

/// Source and destination translated, backends of the same family.
pub const NAT: Specs =
    || vec![spec("nat-v4", SPARE_V4, "nat", false), spec("nat-v6", SPARE_V6, "nat", true)];

/// The same, backends of the other family.
pub const NAT_CROSSED: Specs =
    || vec![spec("4-to-6", SPARE_V4, "nat", true), spec("6-to-4", SPARE_V6, "nat", false)];

fn every_combination(forwarding: &'static str) -> Vec<Spec> {
    vec![
        spec("4-in-4", IPIP_V4, forwarding, false),
        spec("6-in-6", IPIP_V6, forwarding, true),
        spec("4-in-6", SPARE_V4, forwarding, true),
        spec("6-in-4", SPARE_V6, forwarding, false),
    ]
}

/// A service with all servers behind it.
#[must_use]
pub fn spec(name: &'static str, vip: &'static str, forwarding: &'static str, v6: bool) -> Spec {
    Spec { name, vip, forwarding, v6, webs: vec![1, 2, 3], more: String::new() }
}

/// The configuration of a balancer with these services.
#[must_use]
pub fn yaml(specs: &[Spec]) -> String {
    let mut text = format!(
        "node: {{name: edge}}\n\
         interfaces:\n  - {{name: eth0, xdp_mode: native, roles: [prefilter, balance]}}\n\
         maglev: {{seed: tests}}\n\
         prefilter:\n  lists:\n    - {{name: blocked, cidrs: [{BLOCKED_V4}/32, \"{BLOCKED_V6}/128\"]}}\n\
         services:\n"
    );
    for Spec { name, vip, forwarding, v6, webs, more } in specs {
        let _ = write!(
            text,
            "  - name: {name}\n    address: \"{vip}\"\n    forwarding: {forwarding}\n    \
             ports: [{{name: http, port: 80, protocol: tcp}}]\n{more}    backends:\n"
        );
        for &n in webs {
            let address = if *v6 { web_v6(n) } else { web_v4(n) };
            let _ = writeln!(text, "      - {{name: web-{n}, address: \"{address}\"}}");
        }
    }
    text
}

/// A lab with a balancer that is ready and knows the way to its backends.
#[derive(Debug)]
pub struct Edge {
    // The daemons end before the lab does.
    /// The balancer.
    pub lb: Daemon,
    /// Those that take encapsulated packets, on the servers.
    pub decap: Vec<Daemon>,
    /// The network and the servers.
    pub lab: Lab,
}

impl Edge {
    /// Starts it with these services.
    ///
    /// # Errors
    ///
    /// The lab or a daemon does not start, or a backend is not found.
    pub fn start(specs: Specs) -> anyhow::Result<Self> {
        Self::with(&specs())
    }

    /// As [`Edge::start`].
    ///
    /// # Errors
    ///
    /// As [`Edge::start`].
    pub fn with(specs: &[Spec]) -> anyhow::Result<Self> {
        let lab = Lab::start()?;
        let tunnels = specs.iter().any(|spec| !["l2", "nat"].contains(&spec.forwarding));
        let decap = if tunnels { lab.decap()? } else { Vec::new() };
        let lb = lab.daemon("lb", &yaml(specs))?;
        eventually(PATIENCE, || lb.ways_known())?;
        Ok(Self { lb, decap, lab })
    }

    /// Where requests come from.
    ///
    /// # Errors
    ///
    /// None, in a lab that is complete.
    pub fn client(&self) -> anyhow::Result<&Namespace> {
        Ok(self.lab.host("client")?)
    }

    /// Requests to a service, each on a new connection.
    ///
    /// # Errors
    ///
    /// As [`http::requests`].
    pub fn requests(&self, vip: &str, count: usize) -> anyhow::Result<Tally> {
        http::requests(self.client()?, at(vip, web::PORT), count)
    }

    /// Requests to services without pause, until the load is stopped.
    ///
    /// # Errors
    ///
    /// None, in a lab that is complete.
    pub fn load(&self, vips: &[&str]) -> anyhow::Result<http::Load> {
        let addresses: Vec<_> = vips.iter().map(|vip| at(vip, web::PORT)).collect();
        Ok(http::Load::start(self.client()?, &addresses))
    }
}

/// Every request was answered.
///
/// # Panics
///
/// One was not; says which.
#[track_caller]
pub fn expect_answered(tally: &Tally) {
    let failures = &tally.failures;
    assert!(
        failures.is_empty(),
        "{} of {} requests failed:\n{}",
        failures.len(),
        failures.len() as u64 + tally.answered(),
        failures.join("\n")
    );
    assert!(tally.answered() > 0);
}

/// Every request was answered, and by every server some.
///
/// # Panics
///
/// Otherwise.
#[track_caller]
pub fn expect_all_answer(tally: &Tally) {
    expect_answered(tally);
    for web in WEBS {
        assert!(tally.answers.contains_key(web), "{web} answered nothing: {:?}", tally.answers);
    }
}
