//! The configurations that packets meet.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use abi::{
    limits::{FLOWS, feature},
    prefix::{Entry, LINES, ListRow},
};
use anyhow::Context as _;
use config::model::{
    Backend, BackendState, Forwarding, NatPorts, Port, Protocol, Service, Steering,
};
use lb_daemon::{
    conntrack::Visit,
    datapath::{Capacity, Op},
    view::Counters as _,
};
use lb_tests::rig::{EVERYTHING, INGRESS, Rig, service};

use crate::{
    frame::Frame,
    packet::{Flow, PORT, SERVER, Shape},
};

/// VIPs of the first service.
pub(super) const VIP4: &str = "203.0.113.10";
pub(super) const VIP6: &str = "2001:db8:113::10";

/// Backends of a single service.
const BACKENDS: u32 = 100;
/// Backends of each of many.
const BACKENDS_EACH: u32 = 2;

/// Names of the configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One service, balancing alone.
    One,
    /// The same with every feature.
    Whole,
    /// The same with a blocklist that no packet is on.
    Listed,
    /// One service that forwards on layer 2.
    L2,
    /// One service that encapsulates with GUE.
    Gue,
    /// One service that encapsulates with Geneve.
    Geneve,
    /// One service behind NAT.
    Nat,
    /// One service of whose hundred backends one has just been replaced.
    Hundredth,
    /// One service whose backends have all just been replaced.
    Moving,
    /// One service with a range of ports.
    Ranges,
    /// One service whose clients stay with their backend.
    Affinity,
    /// One service that tracks its connections.
    Tracked,
    /// One service whose packets name their server.
    Quic,
    /// One service with a second chance.
    Chance,
    /// The same, whose backends have all just been replaced.
    ChanceMoving,
    /// Many services.
    Many,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::One => "one service",
            Self::Whole => "one, prefilter and decap on",
            Self::Listed => "one, and a blocklist",
            Self::L2 => "one, l2",
            Self::Gue => "one, gue",
            Self::Geneve => "one, geneve",
            Self::Nat => "one, nat",
            Self::Hundredth => "one, 1 % of its slots moving",
            Self::Moving => "one, every slot moving",
            Self::Ranges => "one, a range of ports",
            Self::Affinity => "one, client-IP affinity",
            Self::Tracked => "one, connection_tracking: always",
            Self::Quic => "one, quic",
            Self::Chance => "one, second chance",
            Self::ChanceMoving => "one, second chance, every slot moving",
            Self::Many => "many services",
        }
    }
}

/// One [`Rig`] for each kind.
pub(super) struct Tables {
    one: Rig,
    whole: Rig,
    listed: Rig,
    l2: Rig,
    gue: Rig,
    geneve: Rig,
    nat: Rig,
    hundredth: Rig,
    moving: Rig,
    ranges: Rig,
    affinity: Rig,
    tracked: Rig,
    quic: Rig,
    chance: Rig,
    chance_moving: Rig,
    many: Rig,
    vips: Vec<Ipv4Addr>,
}

impl Tables {
    pub(super) fn build(services: u32) -> Self {
        let single = |forwarding, first| vec![edge(forwarding, first)];
        let mut moving = rig(feature::BALANCE, single(Forwarding::Ipip, 0), 1);
        moving.fill(single(Forwarding::Ipip, BACKENDS), INGRESS, 1500);
        let mut hundredth = rig(feature::BALANCE, single(Forwarding::Ipip, 0), 1);
        hundredth.fill(single(Forwarding::Ipip, 1), INGRESS, 1500);
        let mut chance_moving = rig(feature::BALANCE, single(Forwarding::GueTwice, 0), 1);
        chance_moving.fill(single(Forwarding::GueTwice, BACKENDS), INGRESS, 1500);
        let with = |change: &dyn Fn(&mut Service)| {
            let mut one = single(Forwarding::Ipip, 0);
            change(&mut one[0]);
            rig(feature::BALANCE, one, 1)
        };
        let vips: Vec<Ipv4Addr> = (0..services).map(vip).collect();
        let many = vips.iter().zip(0..).map(|(vip, i)| small(*vip, i)).collect();
        let one = |features| rig(features, single(Forwarding::Ipip, 0), 1);
        Self {
            one: one(feature::BALANCE),
            whole: one(EVERYTHING),
            listed: listed(one(EVERYTHING | LISTED)),
            l2: rig(feature::BALANCE, single(Forwarding::L2, 0), 1),
            gue: rig(feature::BALANCE, single(Forwarding::Gue, 0), 1),
            geneve: rig(feature::BALANCE, single(Forwarding::Geneve, 0), 1),
            nat: rig(feature::BALANCE, vec![translated()], 1),
            hundredth,
            moving,
            ranges: with(&|s| (s.ports[0].port, s.ports[0].last) = (1, 999)),
            affinity: with(&|s| s.steering.affinity = Some(Duration::from_secs(3600))),
            tracked: with(&|s| s.steering.track = true),
            quic: with(&quic),
            chance: rig(feature::BALANCE, single(Forwarding::GueTwice, 0), 1),
            chance_moving,
            many: rig(feature::BALANCE, many, services),
            vips,
        }
    }

    pub(super) fn rig(&mut self, kind: Kind) -> &mut Rig {
        match kind {
            Kind::One => &mut self.one,
            Kind::Whole => &mut self.whole,
            Kind::Listed => &mut self.listed,
            Kind::L2 => &mut self.l2,
            Kind::Gue => &mut self.gue,
            Kind::Geneve => &mut self.geneve,
            Kind::Nat => &mut self.nat,
            Kind::Hundredth => &mut self.hundredth,
            Kind::Moving => &mut self.moving,
            Kind::Ranges => &mut self.ranges,
            Kind::Affinity => &mut self.affinity,
            Kind::Tracked => &mut self.tracked,
            Kind::Quic => &mut self.quic,
            Kind::Chance => &mut self.chance,
            Kind::ChanceMoving => &mut self.chance_moving,
            Kind::Many => &mut self.many,
        }
    }

    /// Opens these flows through NAT, and has both sides establish them; gives their replies.
    ///
    /// # Errors
    /// One of them is not translated.
    pub(super) fn translate(&mut self, flows: &[Flow]) -> anyhow::Result<Vec<Flow>> {
        send(&mut self.nat, flows, Shape::Opening)?;
        let mut replies = HashMap::new();
        self.nat.bpf.counters()?.connections(&mut |connection| {
            if let Some(nat) = connection.nat {
                let reply = Flow {
                    src: connection.backend.ip(),
                    dst: nat.ip(),
                    port: connection.backend.port(),
                    to: nat.port(),
                };
                replies.insert(connection.client, reply);
            }
            Visit::Keep
        });
        let reply = |flow: &Flow| replies.get(&SocketAddr::new(flow.src, flow.port)).copied();
        let replies: Option<Vec<Flow>> = flows.iter().map(reply).collect();
        let replies = replies.context("a flow got no entry")?;
        send(&mut self.nat, &replies, Shape::Opening)?;
        send(&mut self.nat, flows, Shape::Segment)?;
        Ok(replies)
    }

    /// Has flows leave entries, where every slot moves: only so many are let in at once.
    ///
    /// # Errors
    /// They get none.
    pub(super) fn enter(&mut self, kind: Kind, flows: &[Flow]) -> anyhow::Result<()> {
        let clients: HashSet<_> = flows.iter().map(|f| SocketAddr::new(f.src, f.port)).collect();
        let rig = self.rig(kind);
        for _ in 0..100 {
            send(rig, flows, Shape::Segment)?;
            let mut entered = 0;
            rig.bpf.counters()?.connections(&mut |connection| {
                entered += usize::from(clients.contains(&connection.client));
                Visit::Keep
            });
            // Where too many are of one bucket, some give way.
            if entered * 100 >= clients.len() * 99 {
                return Ok(());
            }
        }
        anyhow::bail!("flows get no entries")
    }

    /// VIPs of the many services; the first is [`VIP4`].
    pub(super) fn vips(&self) -> &[Ipv4Addr] {
        &self.vips
    }
}

/// Room for all flows of all rows, a third of it in use.
const NAT_ENTRIES: u32 = 1 << 21;

/// Beside the features: with room for a blocklist.
const LISTED: u32 = 1 << 31;

fn rig(features: u32, services: Vec<Service>, count: u32) -> Rig {
    let lines = if features & LISTED == 0 { 0 } else { LINES };
    let features = features & !LISTED;
    let translates = services.iter().any(|service| service.forwarding == Forwarding::Nat);
    let capacity = Capacity {
        buckets: count.next_power_of_two().max(1024),
        frontends: count * 3 + 1024,
        slots: count * 252 + 200_000,
        backends: count * BACKENDS_EACH + 1024,
        egress: 16,
        flows: FLOWS,
        lines,
        bitmaps: 16,
        blocks: 16,
        filter6: 64,
        buckets6: 64,
        nat: if translates { NAT_ENTRIES } else { 1 },
        nat_ports: NatPorts::default().to_word(),
    };
    let mut rig = Rig::sized(capacity, features);
    rig.fill(services, INGRESS, 1500);
    rig
}

/// Sends one packet of each flow.
fn send(rig: &mut Rig, flows: &[Flow], shape: Shape) -> anyhow::Result<()> {
    let count = u32::try_from(flows.len())?;
    let program = rig.program().fd()?.try_clone()?;
    Frame::load(flows.to_vec(), shape)?.run(&program, count).map(drop)
}

/// A service with a hundred backends.
fn edge(forwarding: Forwarding, first: u32) -> Service {
    let mut edge = service("edge", &[VIP4, VIP6], forwarding, &[]);
    edge.ports = ports();
    edge.backends = (first..first + BACKENDS).map(backend).collect();
    edge
}

/// The same behind NAT.
fn translated() -> Service {
    let mut edge = edge(Forwarding::Nat, 0);
    edge.addresses.truncate(1);
    edge
}

/// Its packets name their server in a connection id.
fn quic(service: &mut Service) {
    service.ports[0].protocol = Protocol::Udp;
    service.ports[0].quic = true;
    service.steering = Steering { quic_len: 2, ..Steering::default() };
    for (backend, id) in service.backends.iter_mut().zip(SERVER..) {
        backend.server_id = Some(id);
    }
}

fn small(vip: Ipv4Addr, index: u32) -> Service {
    let mut small = service(&format!("s{index}"), &[], Forwarding::Ipip, &[]);
    small.addresses = [IpAddr::from(vip)].into();
    small.ports = ports();
    let first = 1000 + index * BACKENDS_EACH;
    small.backends = (first..first + BACKENDS_EACH).map(backend).collect();
    small
}

fn ports() -> Vec<Port> {
    vec![Port {
        name: "http".to_owned(),
        port: PORT,
        last: PORT,
        protocol: Protocol::Tcp,
        target_port: PORT,
        quic: false,
    }]
}

fn backend(index: u32) -> Backend {
    let address = Ipv4Addr::from(0x0a80_0000 + index);
    Backend {
        name: address.to_string(),
        address: address.into(),
        weight: 1,
        state: BackendState::Active,
        group: None,
        server_id: None,
    }
}

/// Every other address, so that those between are nobody's.
fn vip(index: u32) -> Ipv4Addr {
    let first: Ipv4Addr = VIP4.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
    Ipv4Addr::from(u32::from(first) + index * 2)
}

/// Puts a list in force that none of the packets is on: clients come from below 208.0.0.0.
fn listed(mut rig: Rig) -> Rig {
    let list = ListRow { drop: 1, id: 1, ..ListRow::default() };
    let networks = (0xe0_0000..=0xe0_ffff).map(|network| Op::Line(network, Entry::List(1)));
    rig.apply(&[Op::List(1, list)]);
    rig.apply(&networks.collect::<Vec<_>>());
    rig
}
