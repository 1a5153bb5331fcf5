//! The XDP program in the kernel, with tables that the planner filled, run on single packets by
//! `BPF_PROG_TEST_RUN`. Nothing is attached or pinned.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use abi::{limits::feature, reason::Reason};
use aya::{
    maps::MapData,
    programs::{TestRun, TestRunOptions, Xdp},
};
use config::model::{
    Backend, BackendState, DesiredState, Forwarding, NatPorts, Port, Protocol, Service, Source,
    Steering,
};
use lb_daemon::{
    datapath::{Capacity, Datapath, Op, bpf::Bpf},
    nexthop::{Hop, NextHop},
    plan::Planner,
    policy::image::Sizes,
    view::{Count, Counters},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// MAC of the next hop, of every backend.
pub const HOP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
/// Our own MAC.
pub const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x01];
/// A client's MAC.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
/// Seed of the flow hash.
pub const SEED: u64 = 11;
/// The interface that a test run claims to receive from is the loopback of the namespace.
pub const INGRESS: u32 = 1;
/// Bytes of a frame that a test run puts into the first buffer; the program counts no others.
const FIRST_BUFFER: usize = 4096 - 256 - 320;

/// All of what the program does.
pub const EVERYTHING: u32 =
    feature::PREFILTER | feature::BALANCE | feature::DECAP | feature::EVENTS;

/// Fails with a clear message when the tests may not load programs.
pub fn need_root() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:")?.split_whitespace().nth(1));
    assert_eq!(uid, Some("0"), "this test loads BPF programs and needs root: use `make test`");
}

/// The CPUs that this thread may run on.
#[must_use]
pub fn cpus() -> Vec<usize> {
    let all = sched_getaffinity(Pid::from_raw(0)).expect("the kernel knows");
    (0..CpuSet::count()).filter(|&cpu| all.is_set(cpu) == Ok(true)).collect()
}

/// Keeps this thread on one of its CPUs.
pub fn pin_to(cpu: usize) {
    let mut one = CpuSet::new();
    one.set(cpu).expect("a number of a CPU");
    sched_setaffinity(Pid::from_raw(0), &one).expect("it may run there");
}

/// Table sizes for tests; without NAT, whose programs are half of what there is to load.
#[must_use]
pub fn capacity() -> Capacity {
    Capacity {
        buckets: 1024,
        frontends: 1024,
        slots: 200_000,
        backends: 1024,
        egress: 16,
        flows: 1 << 17,
        lines: abi::prefix::LINES,
        bitmaps: 64,
        blocks: 64,
        filter6: 64,
        buckets6: 64,
        nat: 1,
        nat_ports: NatPorts::default().to_word(),
    }
}

/// The same with NAT.
#[must_use]
pub fn nat_capacity() -> Capacity {
    Capacity { nat: 1 << 14, ..capacity() }
}

/// Room for a thousand endpoints and ten thousand rules of policy.
pub const POLICY_SIZES: Sizes = Sizes {
    interfaces: 2048,
    policies: 2048,
    tops: 512,
    pages: 2048,
    entries: 1 << 16,
    addresses: 1 << 14,
    buckets: 1 << 13,
    prefixes: 256,
    rules: 1 << 14,
};

/// A service with one TCP port, and whatever the test changes.
#[must_use]
pub fn service(name: &str, vips: &[&str], forwarding: Forwarding, backends: &[&str]) -> Service {
    let address = |a: &&str| a.parse::<IpAddr>().expect("an address");
    Service {
        name: name.to_owned(),
        source: Source::Api,
        addresses: vips.iter().map(address).collect(),
        ports: [(80, Protocol::Tcp), (443, Protocol::Udp)]
            .map(|(port, protocol)| Port {
                name: format!("p{port}"),
                port,
                last: port,
                protocol,
                target_port: port,
                quic: false,
            })
            .into(),
        forwarding,
        steering: Steering::default(),
        backends: backends
            .iter()
            .map(|a| Backend {
                name: (*a).to_owned(),
                address: address(a),
                weight: 1,
                state: BackendState::Active,
                group: None,
                server_id: None,
            })
            .collect(),
        source_ranges: Vec::new(),
        source_routes: Vec::new(),
        parts: Vec::new(),
        part_of: None,
        drain_timeout: Duration::from_secs(60),
        health_check: None,
    }
}

/// What came of one packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `XDP_PASS` and so on.
    pub action: u32,
    /// The one reason whose counter moved.
    pub reason: Reason,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

/// The program, its tables and the planner that fills them.
pub struct Rig {
    /// The kernel's tables.
    pub bpf: Bpf,
    /// The planner.
    pub planner: Planner,
    counters: Box<dyn Counters>,
    features: u32,
}

impl Rig {
    /// Loads the program; nothing is configured.
    #[must_use]
    pub fn new(features: u32) -> Self {
        Self::sized(capacity(), features)
    }

    /// The same, with tables of this capacity.
    #[must_use]
    pub fn sized(capacity: Capacity, features: u32) -> Self {
        Self::make(capacity, features, None)
    }

    /// The same, with its tables pinned in a directory of the BPF file system.
    #[must_use]
    pub fn pinned(directory: &Path) -> Self {
        Self::pinned_of(capacity(), directory)
    }

    /// The same, with tables of this capacity.
    #[must_use]
    pub fn pinned_of(capacity: Capacity, directory: &Path) -> Self {
        Self::make(capacity, EVERYTHING, Some(directory))
    }

    fn make(capacity: Capacity, features: u32, pins: Option<&Path>) -> Self {
        need_root();
        let bpf = Bpf::load(capacity, 3, SEED, features, pins).expect("the program loads");
        let counters = Box::new(bpf.counters().expect("counters"));
        let planner = Planner::adopt(&bpf, std::iter::empty(), Duration::ZERO);
        Self { bpf, planner, counters, features }
    }

    /// Loads the program and puts services in force, with every backend behind [`HOP_MAC`] on
    /// interface `ifindex`.
    #[must_use]
    pub fn with(services: Vec<Service>, ifindex: u32, mtu: u32) -> Self {
        let translates = services.iter().any(|service| service.forwarding == Forwarding::Nat);
        let capacity = if translates { nat_capacity() } else { capacity() };
        let mut rig = Self::sized(capacity, EVERYTHING);
        rig.fill(services, ifindex, mtu);
        rig
    }

    /// Puts services in force, with every backend behind [`HOP_MAC`] on interface `ifindex`.
    pub fn fill(&mut self, services: Vec<Service>, ifindex: u32, mtu: u32) {
        let ways = lb_daemon::plan::nat::ways(&[(INGRESS, mtu, OUR_MAC)], &self.bpf);
        self.apply(&ways);
        let mut hops = BTreeMap::new();
        for backend in services.iter().flat_map(|s| &s.backends) {
            let source = if backend.address.is_ipv4() { "10.0.0.1" } else { "2001:db8:f::1" };
            let hop = Hop {
                ifindex,
                interface: "eth0".into(),
                dst_mac: HOP_MAC,
                src_mac: OUR_MAC,
                mtu,
                source: source.parse().ok(),
            };
            hops.insert(backend.address, NextHop::Resolved(hop));
        }
        let ops = self.planner.set_hops(&hops, &self.bpf, Duration::ZERO).expect("room");
        self.apply(&ops);
        self.put(services);
    }

    /// Packets of each reason so far.
    #[must_use]
    pub fn reasons(&self) -> BTreeMap<Reason, u64> {
        self.counters.reasons().into_iter().map(|(reason, count)| (reason, count.packets)).collect()
    }

    /// Puts services in force.
    pub fn put(&mut self, services: Vec<Service>) {
        let services = services.into_iter().map(Service::divided);
        let wanted = DesiredState {
            services: services.map(|s| (s.name.clone(), Arc::new(s))).collect(),
            ..DesiredState::default()
        };
        let wanted = wanted.with_parts();
        let ops = self.planner.plan(&wanted, &self.bpf, Duration::ZERO).expect("room");
        self.apply(&ops);
    }

    /// Tunnels end at this address.
    pub fn decap_at(&mut self, address: &str) {
        self.decap_from(address, &[]);
    }

    /// Tunnels from these prefixes end at this address.
    pub fn decap_from(&mut self, address: &str, sources: &[&str]) {
        let address = BTreeSet::from([address.parse().expect("an address")]);
        let sources: Vec<_> = sources.iter().map(|s| s.parse().expect("a prefix")).collect();
        let ops = self.planner.set_decap(&address, &sources, &self.bpf).expect("room");
        self.apply(&ops);
    }

    /// Carries out operations.
    pub fn apply(&mut self, ops: &[Op]) {
        self.bpf.apply(ops).expect("the kernel takes it");
    }

    /// The program.
    pub fn program(&mut self) -> &mut Xdp {
        self.bpf.program(self.features).expect("loaded")
    }

    /// Runs the program on one frame.
    pub fn run(&mut self, frame: &[u8]) -> Outcome {
        let before = self.counters.reasons();
        let mut out = vec![0; frame.len() + 256];
        let program = self.program();
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).expect("the kernel runs it");
        out.truncate(result.data_size_out as usize);
        let after = self.counters.reasons();
        let mut moved = before.iter().zip(&after).filter(|(b, a)| b.1.packets != a.1.packets);
        let (b, a) = moved.next().expect("a reason is counted");
        assert_eq!(a.1.packets - b.1.packets, 1, "once");
        assert_eq!(a.1.bytes - b.1.bytes, frame.len().min(FIRST_BUFFER) as u64);
        assert!(moved.next().is_none(), "only one reason is counted");
        Outcome { action: result.return_value, reason: a.0, frame: out }
    }

    /// Runs a frame that the program leaves as it is so many times, on one CPU.
    ///
    /// # Panics
    /// When the kernel does not run it.
    pub fn repeat(&mut self, frame: &[u8], times: u32) {
        let options =
            TestRunOptions { data_in: Some(frame), repeat: times, ..TestRunOptions::default() };
        self.program().test_run(options).expect("the kernel runs it");
    }

    /// Counters of a service's first frontend, and the sum over its backends.
    #[must_use]
    pub fn counts(&self, service: &str) -> (Count, Count) {
        let planned = &self.planner.services()[service];
        let mut front = Count::default();
        for &row in planned.frontends.values() {
            add(&mut front, self.counters.frontend(row));
        }
        let mut back = Count::default();
        for member in planned.members.values() {
            add(&mut back, self.counters.backend(member.row));
        }
        (front, back)
    }

    /// Packets of each backend of all services, by its address.
    #[must_use]
    pub fn packets_of_backends(&self) -> BTreeMap<IpAddr, u64> {
        let services = self.planner.services().values();
        let members = services.flat_map(|planned| &planned.members);
        members.map(|(&a, member)| (a, self.counters.backend(member.row).packets)).collect()
    }

    /// Hits of a blocklist.
    #[must_use]
    pub fn list_hits(&self, number: u32) -> u64 {
        self.counters.list(number).packets
    }
}

/// The programs that packets go on to from the only first one in a set of tables.
///
/// # Panics
/// When there is none, or more than one.
#[must_use]
pub fn jump(tables: &Path) -> MapData {
    let pins = std::fs::read_dir(tables).expect("pins").map(|pin| pin.expect("a pin"));
    let jumps = pins.filter(|pin| pin.file_name().to_string_lossy().starts_with("JUMP"));
    let [jump] = &jumps.collect::<Vec<_>>()[..] else { panic!("not one program") };
    MapData::from_pin(jump.path()).expect("a map")
}

fn add(total: &mut Count, c: Count) {
    total.packets += c.packets;
    total.bytes += c.bytes;
    total.new_connections += c.new_connections;
}
