//! What identity policy costs a packet, with ten rules and with ten thousand, and how long a change of one
//! endpoint takes.
//!
//! Packets go through the program on an endpoint's interface as a test run; the program writes nothing, so
//! that each pass sees the same packet. One flow: tables that it reads stay in the cache. Net cost is that
//! above a program that does nothing.

pub mod change;
pub mod identities;

use std::{net::IpAddr, path::Path, sync::Arc};

use abi::policy::Way;
use anyhow::{Context as _, ensure};
use aya::{
    Ebpf,
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use config::{
    model::{Endpoint, Source},
    policy::{Labels, Rule, import},
};
use lb_daemon::policy::{
    image::Op,
    kernel::Kernel,
    state::{State, Wanted},
};
use lb_tests::rig::POLICY_SIZES;
use serde::Serialize;

use crate::{
    frame::{OBJECT, thread_time},
    machine::Machine,
    report::{Report, Row, against},
    stats::Summary,
};

const ENDPOINTS: usize = 1000;
const RULES: [usize; 2] = [10, 10_000];
/// The interface that a test run claims: the namespace's loopback.
const INTERFACE: u32 = 1;
const SHOT: u32 = 2;
const UNSPEC: u32 = u32::MAX;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Packets of each run.
    pub packets: u32,
    /// Rounds.
    pub rounds: usize,
    /// Changes of an endpoint.
    pub changes: u32,
    /// Endpoints that it is one of.
    pub endpoints: u32,
    /// Addresses of endpoints, at most.
    pub addresses: usize,
    /// Prefixes that rules name, at most.
    pub prefixes: usize,
}

impl Effort {
    /// For figures that are kept.
    pub const FULL: Self = Self {
        packets: 1_000_000,
        rounds: 15,
        changes: 101,
        endpoints: 10_000,
        addresses: 1_000_000,
        prefixes: 1_000_000,
    };
    /// For a look.
    pub const QUICK: Self = Self { rounds: 5, changes: 31, ..Self::FULL };
    /// For a test that it works.
    pub const TINY: Self = Self {
        packets: 100_000,
        rounds: 3,
        changes: 3,
        endpoints: 600,
        addresses: 10_000,
        prefixes: 1000,
    };
}

/// Figures of one row.
#[derive(Debug, Serialize)]
pub struct Cost {
    packet: &'static str,
    rules: usize,
    /// Nanoseconds of CPU time above a program that does nothing.
    net_ns: Summary,
    bar: f64,
    /// Multiple of the row with ten rules, and its bar.
    of_ten: Option<(Summary, Option<f64>)>,
}

impl Row for Cost {
    const HEADS: &'static [&'static str] =
        &["packet", "rules", "net ns (p10-p90)", "bar", "x ten rules"];

    fn cells(&self) -> Vec<String> {
        let of_ten = self.of_ten.map_or_else(
            || "-".to_owned(),
            |(ratio, bar)| format!("{ratio} {}", against(bar, ratio.median)),
        );
        vec![
            self.packet.to_owned(),
            self.rules.to_string(),
            self.net_ns.to_string(),
            against(Some(self.bar), self.net_ns.median),
            of_ten,
        ]
    }
}

struct Case {
    packet: &'static str,
    way: Way,
    frame: Vec<u8>,
    action: u32,
    bar: f64,
}

/// Measures every row.
///
/// # Errors
/// A program is refused, or does not do with a packet what it should.
pub fn measure(effort: Effort) -> anyhow::Result<Report<Cost>> {
    let machine = Machine::this();
    crate::packets::pin()?;
    let mut empty = Ebpf::load(OBJECT)?;
    let empty: &mut SchedClassifier =
        empty.program_mut("nothing").context("no program nothing")?.try_into()?;
    empty.load()?;
    let mut kernels = RULES.map(tables).into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let cases = cases();
    let mut rounds: Vec<Vec<f64>> = Vec::new();
    // The first one warms up and checks.
    for round in 0..=effort.rounds {
        let mut nanos = Vec::new();
        for case in &cases {
            let floor = one(empty, &case.frame, UNSPEC, effort.packets)?;
            for kernel in &mut kernels {
                let program = kernel.program(case.way)?;
                let run = one(program, &case.frame, case.action, effort.packets);
                nanos.push(run.with_context(|| case.packet)? - floor);
            }
        }
        if round > 0 {
            rounds.push(nanos);
        }
    }
    Ok(Report {
        title: format!(
            "Identity policy: CPU time of the TC program above one that does nothing; {ENDPOINTS} \
             endpoints, one flow, {} packets a run, {} rounds interleaved; 54-byte frames",
            effort.packets, effort.rounds
        ),
        machine,
        rows: summarize(&cases, &rounds),
    })
}

pub(crate) fn one(
    program: &SchedClassifier,
    frame: &[u8],
    action: u32,
    packets: u32,
) -> anyhow::Result<f64> {
    let options =
        TestRunOptions { data_in: Some(frame), repeat: packets, ..TestRunOptions::default() };
    let before = thread_time()?;
    let done = program.test_run(options)?;
    let took = thread_time()? - before;
    ensure!(done.return_value == action, "verdict {}", done.return_value as i32);
    Ok(took.as_nanos() as f64 / f64::from(packets))
}

fn summarize(cases: &[Case], rounds: &[Vec<f64>]) -> Vec<Cost> {
    let of = |value: &dyn Fn(&Vec<f64>) -> f64| {
        Summary::of(&rounds.iter().map(value).collect::<Vec<f64>>())
    };
    let mut rows = Vec::new();
    for (n, case) in cases.iter().enumerate() {
        for (m, rules) in RULES.into_iter().enumerate() {
            let (own, ten) = (n * RULES.len() + m, n * RULES.len());
            let ratio = || (of(&|r| r[own] / r[ten]), (n == 0).then_some(1.15));
            rows.push(Cost {
                packet: case.packet,
                rules,
                net_ns: of(&|r| r[own]),
                bar: case.bar,
                of_ten: (m > 0).then(ratio),
            });
        }
    }
    rows
}

/// A thousand endpoints; each rule lets one in to another one, on a port of its own. Endpoint 0 stands
/// behind the interface of test runs.
fn tables(count: usize) -> anyhow::Result<Kernel> {
    let mut text = String::new();
    for n in 0..count {
        text.push_str(&format!(
            "- {{name: rule-{n}, endpointSelector: {{matchLabels: {{id: app{}}}}}, ingress: [{{fromEndpoints: \
             [{{matchLabels: {{id: app{}}}}}], toPorts: [{{ports: [{{port: '{}', protocol: TCP}}]}}]}}]}}\n",
            n % ENDPOINTS,
            (n * 7 + n / ENDPOINTS + 1) % ENDPOINTS,
            80 + n / ENDPOINTS,
        ));
    }
    let rules: Vec<Rule> = import(Path::new("rules"), &text)
        .map_err(|faults| anyhow::anyhow!("{:?}", faults.first()))?;
    let wanted = Wanted {
        endpoints: (0..ENDPOINTS).map(|n| (endpoint(n), Some(n as u32 + 2))).collect(),
        rules: Arc::new(rules),
        ..Wanted::default()
    };
    let (mut kernel, mut state) =
        (Kernel::make(POLICY_SIZES, 5, None)?, State::new(POLICY_SIZES, 5));
    let ops = state.plan(wanted)?;
    kernel.apply(&ops);
    let own = ops.iter().find_map(|op| match op {
        Op::Interface(2, word) => Some(*word),
        _ => None,
    });
    kernel.apply(&[Op::Interface(INTERFACE, own.context("endpoint 0 has an interface")?)]);
    Ok(kernel)
}

fn endpoint(n: usize) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        name: n.to_string(),
        source: Source::Api,
        labels: Labels::from([("id".to_owned(), format!("app{n}"))]),
        addresses: vec![IpAddr::from(address(n))],
        interface: format!("veth-{n}"),
        audit: false,
        enforcement: None,
        ports: Vec::new(),
    })
}

const fn address(n: usize) -> [u8; 4] {
    [172, 16, (n >> 8) as u8, n as u8]
}

/// The order matters: what opens a connection stands before the reply to it.
fn cases() -> Vec<Case> {
    let (a0, a1, a2) = (address(0), address(1), address(2));
    let case = |packet, way, frame, action, bar| Case { packet, way, frame, action, bar };
    vec![
        case("established", Way::In, tcp(a1, a0, 4000, 80, ACK), UNSPEC, 60.0),
        case("new, allowed", Way::In, tcp(a1, a0, 4000, 80, SYN), UNSPEC, 150.0),
        case("new, denied", Way::In, tcp(a2, a0, 4000, 80, SYN), SHOT, 150.0),
        case("new, allowed, remembered", Way::Out, tcp(a0, a2, 5000, 443, SYN), UNSPEC, 150.0),
        case("reply of a remembered one", Way::In, tcp(a2, a0, 443, 5000, ACK), UNSPEC, 60.0),
    ]
}

const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;

/// An Ethernet frame with an IPv4 TCP segment; policy looks at no checksum.
pub(crate) fn tcp(src: [u8; 4], dst: [u8; 4], from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut frame = vec![2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(src);
    frame.extend(dst);
    frame.extend(from.to_be_bytes());
    frame.extend(to.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    frame
}
