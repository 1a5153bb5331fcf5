//! How long a change of one endpoint's labels takes to be in force among many endpoints and a thousand rules.

use std::{net::IpAddr, path::Path, sync::Arc, time::Instant};

use config::{
    model::{Endpoint, Source},
    policy::{Labels, Rule, import},
};
use lb_daemon::policy::{
    image::Sizes,
    kernel::Kernel,
    state::{State, Wanted},
};
use serde::Serialize;

use super::Effort;
use crate::{
    machine::Machine,
    report::{Report, Row, against},
    stats::Summary,
};

const RULES: u32 = 1_000;
const GROUPS: u32 = 500;
const BAR: f64 = 50.0;
const SALT: u64 = 5;
const SIZES: Sizes = Sizes {
    interfaces: 1 << 14,
    policies: 1 << 15,
    tops: 1 << 12,
    pages: 1 << 14,
    entries: 1 << 20,
    addresses: 1 << 15,
    buckets: 1 << 14,
    prefixes: 1024,
    rules: 1 << 12,
};

/// Figures of the one row.
#[derive(Debug, Serialize)]
pub struct Times {
    endpoints: u32,
    rules: u32,
    /// From nothing.
    first_ms: f64,
    /// From the change to the last store, and until what was there before can be used again.
    in_force_ms: Summary,
    operations: Summary,
    bar: f64,
}

impl Row for Times {
    const HEADS: &'static [&'static str] =
        &["endpoints x rules", "first ms", "in force ms (p10-p90)", "bar", "operations"];

    fn cells(&self) -> Vec<String> {
        vec![
            format!("{} x {}", self.endpoints, self.rules),
            format!("{:.0}", self.first_ms),
            self.in_force_ms.to_string(),
            against(Some(self.bar), self.in_force_ms.median),
            self.operations.to_string(),
        ]
    }
}

/// Measures it, in tables of the kernel.
///
/// # Errors
/// The kernel refuses something.
pub fn measure(effort: Effort) -> anyhow::Result<Report<Times>> {
    let mut kernel = Kernel::make(SIZES, SALT, None)?;
    let mut state = State::new(SIZES, SALT);
    let mut wanted = Wanted {
        endpoints: (0..effort.endpoints).map(|n| (endpoint(n, n % GROUPS), Some(n + 1))).collect(),
        rules: Arc::new(rules()?),
        ..Wanted::default()
    };
    let began = Instant::now();
    kernel.apply(&state.plan(wanted.clone())?);
    let first_ms = began.elapsed().as_secs_f64() * 1e3;
    let (mut times, mut written) = (Vec::new(), Vec::new());
    for n in 0..effort.changes {
        let index = (n * 97) % effort.endpoints;
        // Labels that somebody has, and labels that nobody had before, in turn.
        let group = if n % 2 == 0 { (n * 31) % GROUPS } else { GROUPS + n };
        wanted.endpoints[index as usize].0 = endpoint(index, group);
        let began = Instant::now();
        let ops = state.plan(wanted.clone())?;
        kernel.apply(&ops);
        lb_daemon::datapath::bpf::grace();
        state.release();
        times.push(began.elapsed().as_secs_f64() * 1e3);
        written.push(ops.len() as f64);
    }
    Ok(Report {
        title: format!("Identity policy: one label change to in force, {} changes", effort.changes),
        machine: Machine::this(),
        rows: vec![Times {
            endpoints: effort.endpoints,
            rules: RULES,
            first_ms,
            in_force_ms: Summary::of(&times),
            operations: Summary::of(&written),
            bar: BAR,
        }],
    })
}

/// An endpoint of one of many groups; each has labels of its own besides.
fn endpoint(n: u32, group: u32) -> Arc<Endpoint> {
    let [_, _, high, low] = n.to_be_bytes();
    let labels =
        [("app", format!("app{group}")), ("name", format!("pod-{n}")), ("env", "prod".into())];
    let labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value));
    Arc::new(Endpoint {
        name: format!("pod-{n}"),
        source: Source::Api,
        labels: labels.collect::<Labels>(),
        addresses: vec![IpAddr::from([10, 0, high, low])],
        interface: format!("veth{n}"),
        audit: false,
        enforcement: None,
        ports: Vec::new(),
    })
}

/// Two rules for each group, about another group and a port of its own.
fn rules() -> anyhow::Result<Vec<Rule>> {
    let one = |n: u32| {
        format!(
            "- {{name: rule-{n}, endpointSelector: {{matchLabels: {{app: app{}}}}}, ingress: [{{fromEndpoints: \
             [{{matchLabels: {{app: app{}}}}}], toPorts: [{{ports: [{{port: '{}', protocol: TCP}}]}}]}}]}}\n",
            n % GROUPS,
            (n * 7 + 1) % GROUPS,
            8000 + n % 10,
        )
    };
    let text: String = (0..RULES).map(one).collect();
    import(Path::new("rules"), &text).map_err(|faults| anyhow::anyhow!("{:?}", faults.first()))
}
