//! How long one change of an endpoint's labels takes to be in force among 10,000 endpoints and 1,000 rules,
//! in tables of the kernel. Run as root, on a machine with nothing else to do:
//!
//! ```text
//! cargo run --release -p lb-tests --example policy_change
//! ```

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

const ENDPOINTS: u32 = 10_000;
const RULES: u32 = 1_000;
const CHANGES: u32 = 101;
const SALT: u64 = 5;

fn main() -> anyhow::Result<()> {
    let sizes = Sizes {
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
    let mut kernel = Kernel::make(sizes, SALT, None)?;
    let mut state = State::new(sizes, SALT);
    let mut wanted = Wanted {
        fqdn: Default::default(),
        endpoints: (0..ENDPOINTS).map(|n| (endpoint(n, n % 500), Some(n + 1))).collect(),
        rules: Arc::new(rules()?),
        ..Wanted::default()
    };
    let began = Instant::now();
    kernel.apply(&state.plan(wanted.clone())?)?;
    println!("{ENDPOINTS} endpoints, {RULES} rules: in force in {:.0?}", began.elapsed());
    let (mut times, mut written) = (Vec::new(), Vec::new());
    for n in 0..CHANGES {
        let index = (n * 97) % ENDPOINTS;
        // Labels that somebody has, and labels that nobody had before, in turn.
        let group = if n % 2 == 0 { (n * 31) % 500 } else { 500 + n };
        wanted.endpoints[index as usize].0 = endpoint(index, group);
        let began = Instant::now();
        let ops = state.plan(wanted.clone())?;
        kernel.apply(&ops)?;
        lb_daemon::datapath::bpf::grace();
        state.release();
        times.push(began.elapsed());
        written.push(ops.len());
    }
    times.sort_unstable();
    written.sort_unstable();
    let at = |part: usize| times[times.len() * part / 100];
    println!(
        "one label change to in force: median {:.2?}, p90 {:.2?}, slowest {:.2?}; {} operations (median)",
        at(50),
        at(90),
        times[times.len() - 1],
        written[written.len() / 2],
    );
    Ok(())
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
            n % 500,
            (n * 7 + 1) % 500,
            8000 + n % 10,
        )
    };
    let text: String = (0..RULES).map(one).collect();
    import(Path::new("rules"), &text).map_err(|faults| anyhow::anyhow!("{faults:?}"))
}
