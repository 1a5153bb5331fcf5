//! The rows: which packets, of which flows, through which tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use abi::{
    outer::{GENEVE_SHIM, GUE_SHIM},
    reason::Reason,
};
use anyhow::Context as _;

use super::{
    Effort,
    tables::{Kind, Tables, VIP4, VIP6},
};
use crate::{
    frame::{Frame, Run},
    packet::{self, Flow, PORT, Shape},
};

/// Packets of some flows, in the frame that sends them.
pub(super) struct Set {
    pub(super) frame: Frame,
}

/// One row.
pub(super) struct Case {
    pub(super) packet: &'static str,
    pub(super) tables: Kind,
    /// Which of the sets.
    pub(super) set: usize,
    flows: usize,
    /// What every packet is counted for.
    pub(super) reason: Reason,
    /// Every round brings new flows.
    pub(super) renew: bool,
    pub(super) bar: Option<f64>,
    /// Compare with the row of the same packets and these tables, and how many times as much it may cost.
    pub(super) of_one: Option<(Kind, f64)>,
}

impl Case {
    pub(super) const fn flows_as(&self, other: &Self) -> bool {
        self.flows == other.flows
    }

    pub(super) fn expect_forwarded(&self, run: &Run) -> anyhow::Result<()> {
        match self.tables {
            Kind::L2 => packet::expect_routed(&run.out, &run.sent),
            Kind::Nat => packet::expect_translated(&run.out, &run.sent, VIP4.parse()?),
            Kind::Chance => packet::expect_encapsulated(&run.out, &run.sent, GUE_SHIM),
            // Two words more name the other backend.
            Kind::ChanceMoving => packet::expect_encapsulated(&run.out, &run.sent, GUE_SHIM + 8),
            Kind::Gue => packet::expect_encapsulated(&run.out, &run.sent, GUE_SHIM),
            Kind::Geneve => packet::expect_encapsulated(&run.out, &run.sent, GENEVE_SHIM),
            _ => packet::expect_encapsulated(&run.out, &run.sent, 0),
        }
    }
}

impl Case {
    /// Packet and tables.
    pub(super) fn name(&self) -> String {
        format!("{}, {}", self.packet, self.tables.name())
    }
}

/// Collects rows.
struct Rows {
    sets: Vec<Set>,
    cases: Vec<Case>,
}

impl Rows {
    /// Packets for the rows that follow.
    fn set(&mut self, flows: Vec<Flow>, shape: Shape) -> anyhow::Result<()> {
        let count = flows.len();
        let frame = Frame::load(flows, shape).with_context(|| format!("{count} flows"))?;
        self.sets.push(Set { frame });
        Ok(())
    }

    fn row(&mut self, packet: &'static str, tables: Kind, bar: Option<f64>) -> &mut Case {
        let set = self.sets.len() - 1;
        let index = self.cases.len();
        self.cases.push(Case {
            packet,
            tables,
            set,
            flows: self.sets[set].frame.flows(),
            reason: Reason::ForwardedTx,
            renew: false,
            bar,
            of_one: None,
        });
        &mut self.cases[index]
    }
}

const KNOWN: &str = "IPv4 TCP, known flow";
const REPLY: &str = "IPv4 TCP, reply of a known flow";
const KNOWN6: &str = "IPv6 TCP, known flow";
const NEW: &str = "IPv4 TCP SYN, new flow";
const QUIC: &str = "IPv4 QUIC, short header";
const TAGGED: &str = "IPv4 TCP, known flow, two VLAN tags";
const OPTIONS: &str = "IPv4 TCP, known flow, IPv4 options";
const OTHER: &str = "not for a service, passed up";

/// Every row.
pub(super) fn all(effort: Effort, tables: &mut Tables) -> anyhow::Result<(Vec<Set>, Vec<Case>)> {
    let mut random = Random(1);
    let mut rows = Rows { sets: Vec::new(), cases: Vec::new() };
    let vip4: Ipv4Addr = VIP4.parse()?;
    let vip6: Ipv6Addr = VIP6.parse()?;

    let known = [(1, Some(3.0)), (4096, None), (65_536, Some(3.5)), (524_288, Some(4.0))];
    for (flows, bar) in known {
        let known = random.flows4(flows.min(effort.flows), &[vip4]);
        if flows <= 65_536 {
            tables.enter(Kind::Moving, &known)?;
            tables.enter(Kind::ChanceMoving, &known)?;
        }
        rows.set(known, Shape::Segment)?;
        rows.row(KNOWN, Kind::One, bar);
        rows.row(KNOWN, Kind::Many, None).of_one = Some((Kind::One, 1.15));
        rows.row(KNOWN, Kind::Whole, None);
        rows.row(KNOWN, Kind::Listed, None);
        rows.row(KNOWN, Kind::Hundredth, None).of_one = Some((Kind::One, 1.1));
        if flows == 1 || flows == 524_288 {
            rows.row(KNOWN, Kind::Gue, Some(4.0));
            rows.row(KNOWN, Kind::Geneve, Some(4.0));
        }
        if flows <= 65_536 {
            rows.row(KNOWN, Kind::L2, None);
            rows.row(KNOWN, Kind::Moving, Some(8.0));
            rows.row(KNOWN, Kind::Ranges, None);
            rows.row(KNOWN, Kind::Chance, None);
            rows.row(KNOWN, Kind::ChanceMoving, None);
        }
        // As many clients as are let in at once: the rows measure clients that have entries.
        if flows <= 4096 {
            rows.row(KNOWN, Kind::Affinity, None);
        }
    }
    for (flows, bar) in [(1, Some(7.0)), (65_536, None), (524_288, Some(16.0))] {
        let flows = random.flows4(flows.min(effort.flows), &[vip4]);
        let replies = tables.translate(&flows)?;
        rows.set(flows, Shape::Segment)?;
        rows.row(KNOWN, Kind::Nat, bar);
        rows.set(replies, Shape::Segment)?;
        rows.row(REPLY, Kind::Nat, bar);
    }
    for flows in [1, 65_536] {
        rows.set(random.flows4(flows.min(effort.flows), &[vip4]), Shape::QuicShort)?;
        rows.row(QUIC, Kind::Quic, Some(4.0));
    }
    // What the first program leaves to the one for choices.
    rows.set(random.flows4(1, &[vip4]), Shape::Tagged)?;
    rows.row(TAGGED, Kind::One, None);
    rows.set(random.flows4(1, &[vip4]), Shape::Options)?;
    rows.row(OPTIONS, Kind::One, None);
    // More flows than a run has packets: each packet is of a flow that was not seen before.
    rows.set(random.flows4(effort.packets.next_power_of_two() as usize, &[vip4]), Shape::Opening)?;
    rows.row(NEW, Kind::One, Some(4.0)).renew = true;
    rows.row(NEW, Kind::Moving, Some(8.0)).renew = true;

    for flows in [1, 524_288] {
        rows.set(random.flows6(flows.min(effort.flows), vip6), Shape::Segment)?;
        rows.row(KNOWN6, Kind::One, Some(4.5));
    }
    for flows in [1, 65_536] {
        // Between the VIPs of the many services.
        let others: Vec<Ipv4Addr> = tables.vips().iter().map(|vip| next(*vip)).collect();
        let others = if flows == 1 { &others[..1] } else { &others };
        rows.set(random.flows4(flows.min(effort.flows), others), Shape::Segment)?;
        rows.row(OTHER, Kind::One, Some(1.2)).reason = Reason::NotOurs;
        let many = rows.row(OTHER, Kind::Many, None);
        many.reason = Reason::NotOurs;
        many.of_one = Some((Kind::One, 1.15));
    }
    rows.set(random.flows4(524_288.min(effort.flows), tables.vips()), Shape::Segment)?;
    rows.row("IPv4 TCP, known flows of all services", Kind::Many, None);
    Ok((rows.sets, rows.cases))
}

fn next(address: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address) + 1)
}

/// SplitMix64 (Steele, Lea, Flood, 2014): the same flows in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn flows4(&mut self, count: usize, vips: &[Ipv4Addr]) -> Vec<Flow> {
        let mut flow = || {
            let (client, rest) = (self.next(), self.next());
            Flow {
                // Unicast: 16.0.0.0 to 207.255.255.255.
                src: Ipv4Addr::from(0x1000_0000 + (client as u32) % 0xc000_0000).into(),
                dst: vips[rest as usize % vips.len()].into(),
                port: 1024 + (rest >> 48) as u16 % 64_000,
                to: PORT,
            }
        };
        (0..count).map(|_| flow()).collect()
    }

    fn flows6(&mut self, count: usize, vip: Ipv6Addr) -> Vec<Flow> {
        let mut flow = || {
            let net = 0x2001_0db8_0000_0000 | self.next() >> 32;
            let src = Ipv6Addr::from(u128::from(net) << 64 | u128::from(self.next()));
            Flow { src: src.into(), dst: IpAddr::from(vip), port: 40_000, to: PORT }
        };
        (0..count).map(|_| flow()).collect()
    }
}
