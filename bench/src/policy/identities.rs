//! What finding out whose an address is costs, among many addresses and prefixes, and how long it takes to
//! put them in force.
//!
//! One endpoint that everybody may reach; sources are random among those that the row names, and a million of
//! them where there are so many, so that nothing of the tables is where the last packet left it. Net cost is
//! that above a program that does nothing behind the same sources. Beside the prefixes of ours stands the kernel's
//! trie, in which they were before, asked for the same sources and nothing else.

use std::{collections::BTreeSet, net::IpAddr, path::Path, sync::Arc, time::Instant};

use abi::policy::Way;
use anyhow::Context as _;
use config::{
    model::{Endpoint, Source},
    policy::{Clause, Labels, Peer, Rule, import},
};
use ipnet::{IpNet, Ipv4Net};
use lb_daemon::policy::{
    image::{Op, Sizes},
    kernel::Kernel,
    state::{State, Wanted},
};
use serde::Serialize;

use super::{Effort, INTERFACE, UNSPEC};
use crate::{
    frame::TcFrame,
    machine::Machine,
    prefilter::sets::Random,
    report::{Report, Row},
    stats::Summary,
};

const SALT: u64 = 5;
/// The endpoint that packets are for.
const LOCAL: [u8; 4] = [172, 31, 0, 1];

/// Figures of one row.
#[derive(Debug, Serialize)]
pub struct Cost {
    sources: &'static str,
    table: String,
    /// Nanoseconds of CPU time above a program that does nothing.
    net_ns: Summary,
    /// From the wish to the last store; `None`: not of this row.
    in_force_ms: Option<f64>,
}

impl Row for Cost {
    const HEADS: &'static [&'static str] = &["sources", "table", "net ns (p10-p90)", "in force ms"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.sources.to_owned(),
            self.table.clone(),
            self.net_ns.to_string(),
            self.in_force_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}")),
        ]
    }
}

struct Case {
    sources: &'static str,
    table: String,
    frame: TcFrame,
    in_force_ms: Option<f64>,
}

/// Measures every row.
///
/// # Errors
/// The kernel refuses something, or a packet does not pass.
pub fn measure(effort: Effort) -> anyhow::Result<Report<Cost>> {
    let mut cases = cases(effort)?;
    let mut rounds: Vec<Vec<f64>> = Vec::new();
    for round in 0..=effort.rounds {
        let mut nanos = Vec::new();
        for case in &mut cases {
            let empty = case.frame.run(false, effort.packets, UNSPEC)?;
            let own = case.frame.run(true, effort.packets, UNSPEC);
            nanos.push(own.with_context(|| case.table.clone())? - empty);
        }
        // The first one warms up.
        if round > 0 {
            rounds.push(nanos);
        }
    }
    let rows = cases.into_iter().enumerate().map(|(n, case)| Cost {
        sources: case.sources,
        table: case.table,
        net_ns: Summary::of(&rounds.iter().map(|round| round[n]).collect::<Vec<f64>>()),
        in_force_ms: case.in_force_ms,
    });
    Ok(Report {
        title: format!(
            "Identity of an address: CPU time of the TC program above one that does nothing; random sources, {} \
             packets a run, {} rounds interleaved; 54-byte frames",
            effort.packets, effort.rounds
        ),
        machine: Machine::this(),
        rows: rows.collect(),
    })
}

fn cases(effort: Effort) -> anyhow::Result<Vec<Case>> {
    let most = effort.addresses;
    let mut cases = Vec::new();
    let mut random = Random(7);
    for count in [1, 1000.min(most), most] {
        let members: Vec<IpAddr> = (0..count as u32).map(own).collect();
        let sources: Vec<[u8; 4]> = (0..most.next_power_of_two())
            .map(|_| own_bytes((random.next() % count as u64) as u32))
            .collect();
        let (program, ms) = tables(&members, Vec::new())?;
        cases.push(Case {
            sources: "of endpoints",
            table: format!("{count} addresses"),
            frame: TcFrame::load(&sources, LOCAL, program)?,
            in_force_ms: Some(ms),
        });
    }
    let nets = random.nets4(effort.prefixes);
    for count in [0, 1, nets.len() / 100, nets.len()] {
        let own: Vec<IpNet> = nets[..count]
            .iter()
            .map(|net| Ipv4Net::new_assert(net.first().into(), net.bits()).into())
            .collect();
        let sources: Vec<[u8; 4]> =
            (0..most.next_power_of_two()).map(|_| (random.next() as u32).to_be_bytes()).collect();
        let (program, ms) = tables(&[], own)?;
        cases.push(Case {
            sources: "of the world",
            table: format!("{count} prefixes"),
            frame: TcFrame::load(&sources, LOCAL, program)?,
            in_force_ms: Some(ms),
        });
        if count > 0 {
            cases.push(Case {
                sources: "of the world",
                table: format!("{count} prefixes in a trie, asked alone"),
                frame: TcFrame::trie(&sources, LOCAL, &nets[..count])?,
                in_force_ms: None,
            });
        }
    }
    Ok(cases)
}

/// Addresses of endpoints: 10.0.0.0/8.
fn own(n: u32) -> IpAddr {
    own_bytes(n).into()
}

const fn own_bytes(n: u32) -> [u8; 4] {
    let [_, b, c, d] = n.to_be_bytes();
    [10, b, c, d]
}

/// A kernel with the program for an endpoint that everybody may reach on port 80 by one rule, and that says
/// something about each of these prefixes by another one.
fn tables(members: &[IpAddr], nets: Vec<IpNet>) -> anyhow::Result<(Kernel, f64)> {
    let text = "- {name: open, endpointSelector: {matchLabels: {id: own}}, ingress: [{toPorts: [{ports: \
                [{port: '80', protocol: TCP}]}]}]}\n\
                - {name: nets, endpointSelector: {matchLabels: {id: own}}, ingress: [{fromCIDR: [192.0.2.1/32], \
                toPorts: [{ports: [{port: '443', protocol: TCP}]}]}]}\n";
    let mut rules: Vec<Rule> = import(Path::new("rules"), text)
        .map_err(|faults| anyhow::anyhow!("{:?}", faults.first()))?;
    let count = u32::try_from(nets.len())?;
    let clause: &mut Clause = &mut rules[1].clauses[0];
    if !nets.is_empty() {
        clause.peers =
            nets.into_iter().map(|net| Peer::Prefix { net, except: Vec::new() }).collect();
    }
    let addresses = (members.len() as u32 * 2).max(1024);
    let sizes = Sizes {
        interfaces: 16,
        policies: 16,
        tops: 16,
        pages: 64,
        entries: (count * 4).next_power_of_two().max(1024),
        addresses,
        buckets: (addresses / 2).next_power_of_two(),
        prefixes: (count * 2).max(1024),
        rules: 16,
    };
    let own = endpoint("own", vec![IpAddr::from(LOCAL)]);
    let others = members.chunks(1000).enumerate();
    let others = others.map(|(n, at)| (endpoint(&format!("app{n}"), at.to_vec()), None));
    let wanted = Wanted {
        endpoints: [(own, Some(INTERFACE))].into_iter().chain(others).collect(),
        rules: Arc::new(rules),
        ..Wanted::default()
    };
    let (mut kernel, mut state) = (Kernel::make(sizes, SALT, None)?, State::new(sizes, SALT));
    let began = Instant::now();
    let ops: Vec<Op> = state.plan(wanted)?;
    kernel.apply(&ops);
    let took = began.elapsed().as_secs_f64() * 1e3;
    kernel.program(Way::In)?;
    Ok((kernel, took))
}

fn endpoint(id: &str, addresses: Vec<IpAddr>) -> Arc<Endpoint> {
    let all: BTreeSet<IpAddr> = addresses.into_iter().collect();
    Arc::new(Endpoint {
        name: id.to_owned(),
        source: Source::Api,
        labels: Labels::from([("id".to_owned(), id.to_owned())]),
        addresses: all.into_iter().collect(),
        interface: format!("veth-{id}"),
        audit: false,
        enforcement: None,
        ports: Vec::new(),
    })
}
