//! Connections of IPv4 behind NAT that stand are known by their rows, without their entries (`abi::nat::quick`): when
//! there are rows, what they are good for, and what takes them away.

use abi::{
    limits::behind as places,
    nat::{
        Entry, Phase, Stamp,
        quick::{PATHS, Row, rows},
    },
    reason::Reason,
    table::Backend,
};
use aya::maps::{Array, Map, MapData, ProgramArray};
use config::model::NatPorts;
use lb_daemon::{
    conntrack::Visit,
    datapath::{Capacity, Op, Tables as _},
    view::Counters as _,
};
use lb_tests::{
    lab::BpfDirectory,
    rig::{CLIENT_MAC, INGRESS, Rig, nat_capacity},
};

use crate::{
    nat::{as_ack, behind, client_frame, from_backend, says},
    packets::{DROP, L4, PASS, TX, VIP4, frame4, macs},
};

const NAT4: &str = "10.0.0.1";
const WEB4: &str = "10.0.1.11";
const CLIENT4: &str = "198.51.100.7";
const OTHER4: &str = "198.51.100.8";
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x55];
/// Entries.
const SIZE: usize = 64;
/// Rows of each table.
const ROWS: usize = rows(SIZE as u32) as usize;

/// A rig whose maps can be reached.
struct Lab {
    rig: Rig,
    // Its last, after the maps in it are no longer needed.
    pins: BpfDirectory,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Tcp,
    Udp,
}

const BOTH: [Over; 2] = [Over::Tcp, Over::Udp];

impl Lab {
    fn new(name: &str, nat_ports: NatPorts) -> Self {
        let pins = BpfDirectory::create(&format!("{name}-{}", std::process::id())).unwrap();
        let tables = pins.path().join("v0-0");
        std::fs::create_dir(&tables).unwrap();
        let nat_ports = nat_ports.to_word();
        let capacity = Capacity { nat: SIZE as u32, nat_ports, ..nat_capacity() };
        let mut rig = Rig::pinned_of(capacity, &tables);
        rig.fill(vec![behind(VIP4, WEB4)], INGRESS, 1500);
        Self { rig, pins }
    }

    fn map(&self, name: &str) -> MapData {
        MapData::from_pin(self.pins.path().join("v0-0").join(name)).unwrap()
    }

    fn array<T: aya::Pod>(&self, name: &str) -> Array<MapData, T> {
        Array::try_from(Map::Array(self.map(name))).unwrap()
    }

    /// From now on the first program is alone.
    fn alone(&self) {
        let jump = Map::ProgramArray(lb_tests::rig::jump(&self.pins.path().join("v0-0")));
        ProgramArray::try_from(jump).unwrap().clear_index(&places::NAT).unwrap();
    }

    /// Rows forth and back that are in use.
    fn rows(&self) -> [usize; 2] {
        ["NAT_FORTH", "NAT_BACK"].map(|name| {
            let rows = self.array::<[u64; ROWS]>(name).get(&0, 0).unwrap();
            rows.into_iter().filter(|&row| row != 0).count()
        })
    }

    /// Changes rows that are in use.
    fn patch_rows(&self, change: impl Fn(u64) -> u64) {
        for name in ["NAT_FORTH", "NAT_BACK"] {
            let mut map = self.array::<[u64; ROWS]>(name);
            let rows = map.get(&0, 0).unwrap();
            map.set(0, rows.map(|row| if row == 0 { 0 } else { change(row) }), 0).unwrap();
        }
    }

    /// The only entry that stands.
    fn entry(&self) -> (u32, [u64; 8]) {
        let map = self.array::<[u64; 8]>("NAT");
        let mut all = (0..SIZE as u32).map(|index| (index, map.get(&index, 0).unwrap()));
        let one = all.find(|(_, words)| Stamp::from_word(words[0]).stands()).unwrap();
        assert!(all.all(|(_, words)| !Stamp::from_word(words[0]).stands()), "one entry");
        one
    }

    fn put_entry(&self, index: u32, words: [u64; 8]) {
        self.array::<[u64; 8]>("NAT").set(index, words, 0).unwrap();
    }

    fn stamp(&self) -> Stamp {
        Stamp::from_word(self.entry().1[Entry::STATE / 8])
    }

    /// Sends a client's packet that must go to the backend; the NAT port.
    fn forth(&mut self, frame: &[u8]) -> u16 {
        let got = self.rig.run(frame);
        assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
        let says = says(&got.frame);
        assert_eq!((&*says.src, &*says.dst), (NAT4, WEB4));
        says.ports.0
    }

    /// Sends a reply that must go to this client's port.
    fn back(&mut self, frame: &[u8], client: &str, mac: [u8; 6]) {
        let got = self.rig.run(frame);
        assert_eq!((got.action, got.reason, macs(&got.frame).0), (TX, Reason::ForwardedTx, mac));
        let says = says(&got.frame);
        assert_eq!((&*says.src, &*says.dst, says.ports.1), (VIP4, client, 40000));
    }

    /// A connection of a client that both sides have spoken in; the NAT port.
    fn establish(&mut self, over: Over) -> u16 {
        let port = self.forth(&opening(over));
        self.rig.run(&from_backend(WEB4, over.target(), NAT4, port, over == Over::Udp, b""));
        assert_eq!(self.rows(), [0, 0], "not yet");
        assert_eq!(self.forth(&segment(over)), port);
        assert_eq!(self.rows(), [1, 1]);
        port
    }
}

impl Over {
    const fn target(self) -> u16 {
        match self {
            Self::Tcp => 8080,
            Self::Udp => 443,
        }
    }
}

fn opening(over: Over) -> Vec<u8> {
    let l4 = if over == Over::Tcp { L4::Syn(80) } else { L4::Udp(443) };
    client_frame(VIP4, l4, b"")
}

/// Of the client's, in the midst of its connection; as long as a TCP header.
fn segment(over: Over) -> Vec<u8> {
    let l4 = if over == Over::Tcp { L4::Ack(80) } else { L4::Udp(443) };
    client_frame(VIP4, l4, b"as long as TCP's")
}

/// Of the backend's.
fn reply(over: Over, port: u16) -> Vec<u8> {
    let udp = over == Over::Udp;
    let mut frame = from_backend(WEB4, over.target(), NAT4, port, udp, b"as long as TCP's");
    if !udp {
        as_ack(&mut frame);
    }
    frame
}

/// TCP's flags of a frame; its checksum is not looked at.
fn with_flags(mut frame: Vec<u8>, flags: u8) -> Vec<u8> {
    frame[47] = flags;
    frame
}

#[test]
fn no_entry_is_needed() {
    for over in BOTH {
        let mut lab = Lab::new("rows-alone", NatPorts::default());
        let port = lab.establish(over);
        let (index, words) = lab.entry();
        // But for its state there is nothing left of it.
        lab.put_entry(index, [words[0], 0, 0, 0, 0, 0, 0, 0]);
        lab.alone();
        assert_eq!(lab.forth(&segment(over)), port);
        lab.back(&reply(over, port), CLIENT4, CLIENT_MAC);
        // Without its rows.
        lab.patch_rows(|_| 0);
        assert_eq!(lab.rig.run(&segment(over)).reason, Reason::NatNoEntry);
        assert_eq!(lab.rig.run(&reply(over, port)).reason, Reason::NatPassed);
        lab.put_entry(index, words);
        lab.back(&reply(over, port), CLIENT4, CLIENT_MAC);
    }
}

/// What differs in one thing is of another connection, or of none.
#[test]
fn rows_are_of_one_connection() {
    let mut lab = Lab::new("rows-one", NatPorts::default());
    let port = lab.establish(Over::Tcp);
    lab.alone();
    let port_of = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    for (at, what) in [(29, "client"), (35, "its port")] {
        let mut frame = segment(Over::Tcp);
        frame[at] ^= 1;
        let got = lab.rig.run(&frame);
        assert_eq!((got.action, got.reason), (DROP, Reason::NatNoEntry), "{what}");
    }
    for (at, what) in [(29, "backend"), (35, "its port"), (37, "NAT port")] {
        let mut frame = reply(Over::Tcp, port);
        assert_eq!((port_of(&frame, 34), port_of(&frame, 36)), (8080, port));
        frame[at] ^= 1;
        let got = lab.rig.run(&frame);
        assert_eq!((got.action, got.reason), (PASS, Reason::NatPassed), "{what}");
    }
    // All of it still stands.
    assert_eq!(lab.forth(&segment(Over::Tcp)), port);
    lab.back(&reply(Over::Tcp, port), CLIENT4, CLIENT_MAC);
    // Another path.
    lab.patch_rows(|row| row ^ 1 << 54);
    let (index, words) = lab.entry();
    lab.put_entry(index, [words[0], 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(lab.rig.run(&segment(Over::Tcp)).reason, Reason::NatNoEntry);
    assert_eq!(lab.rig.run(&reply(Over::Tcp, port)).reason, Reason::NatPassed);
}

#[test]
fn what_ends_a_connection_takes_its_rows() {
    const FIN: u8 = 0x11;
    const RST: u8 = 0x04;
    for flags in [FIN, RST] {
        for backend in [false, true] {
            let mut lab = Lab::new("rows-end", NatPorts::default());
            let port = lab.establish(Over::Tcp);
            let frame = if backend { reply(Over::Tcp, port) } else { segment(Over::Tcp) };
            let got = lab.rig.run(&with_flags(frame, flags));
            assert_eq!(got.reason, Reason::ForwardedTx);
            assert_eq!(lab.rows(), [0, 0]);
            let phase = if flags == FIN { Phase::Closing } else { Phase::Reset };
            assert_eq!(lab.stamp().phase(), phase);
            // A FIN ends one side alone: what follows goes by the entry.
            if flags == FIN {
                assert_eq!(lab.forth(&segment(Over::Tcp)), port);
                lab.back(&reply(Over::Tcp, port), CLIENT4, CLIENT_MAC);
                assert_eq!(lab.rows(), [0, 0]);
            }
        }
    }
}

/// One port: the next connection has the place of the one before, which is long silent.
#[test]
fn another_connection_takes_the_place() {
    let mut lab = Lab::new("rows-claim", NatPorts { first: 2000, last: 2000 });
    let port = lab.establish(Over::Tcp);
    let (index, mut words) = lab.entry();
    words[0] -= u64::from(lab.stamp().lifetime());
    lab.put_entry(index, words);
    assert_eq!(lab.forth(&segment(Over::Tcp)), port, "nobody has claimed it");

    let other = |l4| frame4(OTHER4, VIP4, l4, 64, b"as long as TCP's");
    assert_eq!(lab.forth(&other(L4::Syn(80))), port);
    assert_eq!(lab.rows(), [0, 0]);
    assert_eq!(lab.rig.run(&segment(Over::Tcp)).reason, Reason::NatNoEntry);
    lab.rig.run(&from_backend(WEB4, 8080, NAT4, port, false, b""));
    assert_eq!(lab.forth(&other(L4::Ack(80))), port);
    assert_eq!(lab.rows(), [1, 1]);
    lab.back(&reply(Over::Tcp, port), OTHER4, CLIENT_MAC);
    assert_eq!(lab.rig.run(&segment(Over::Tcp)).reason, Reason::NatNoEntry);
}

#[test]
fn another_use_of_the_backends_row() {
    let mut lab = Lab::new("rows-epoch", NatPorts::default());
    let port = lab.establish(Over::Tcp);
    let planned = &lab.rig.planner.services()["web"];
    let row = planned.members[&WEB4.parse().unwrap()].row;
    let backend = lab.rig.bpf.backend(row);
    let with = |epoch| {
        let (hop, state) = (backend.hop(), backend.state());
        Op::Backend(row, Backend::new(backend.addr(), hop, state, backend.id(), epoch))
    };
    lab.rig.apply(&[with(backend.epoch() + 1)]);
    assert_eq!(lab.rig.run(&segment(Over::Tcp)).reason, Reason::NatNoEntry);
    assert_eq!(lab.rig.run(&reply(Over::Tcp, port)).reason, Reason::NatPassed);
    lab.rig.apply(&[with(backend.epoch())]);
    assert_eq!(lab.forth(&segment(Over::Tcp)), port);
    lab.back(&reply(Over::Tcp, port), CLIENT4, CLIENT_MAC);
}

#[test]
fn replies_follow_the_client_to_another_router() {
    for over in BOTH {
        let mut lab = Lab::new("rows-router", NatPorts::default());
        let port = lab.establish(over);
        lab.back(&reply(over, port), CLIENT4, CLIENT_MAC);
        let mut frame = segment(over);
        frame[6..12].copy_from_slice(&OTHER_MAC);
        assert_eq!(lab.forth(&frame), port);
        assert_eq!(lab.rows(), [1, 1]);
        lab.alone();
        lab.back(&reply(over, port), CLIENT4, OTHER_MAC);
        assert_eq!(lab.forth(&frame), port);
    }
}

/// Where no number is left for a path, the first program goes by the entry.
#[test]
fn paths_without_a_number() {
    for over in BOTH {
        let mut lab = Lab::new("rows-links", NatPorts::default());
        const WORDS: usize = 8 * PATHS as usize;
        lab.array::<[u64; WORDS]>("NAT_PATHS").set(0, [u64::MAX; WORDS], 0).unwrap();
        let port = lab.establish(over);
        lab.alone();
        assert_eq!(lab.forth(&segment(over)), port);
        lab.back(&reply(over, port), CLIENT4, CLIENT_MAC);
        let (index, words) = lab.entry();
        lab.put_entry(index, [words[0], 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(lab.rig.run(&segment(over)).reason, Reason::NatNoEntry);
    }
}

/// Numbers of paths that no connection has any longer are given to others; those in use stay.
#[test]
fn paths_of_nobody_are_freed() {
    let mut lab = Lab::new("rows-freed", NatPorts::default());
    const WORDS: usize = 8 * PATHS as usize;
    let mut map = lab.array::<[u64; WORDS]>("NAT_PATHS");
    let port = lab.establish(Over::Tcp);
    // All others are of ways back that nobody comes by.
    let mut paths = map.get(&0, 0).unwrap();
    paths.chunks_exact_mut(8).filter(|path| path[0] == 0).for_each(|path| path.fill(!1));
    map.set(0, paths, 0).unwrap();
    let other = |l4| frame4(OTHER4, VIP4, l4, 64, b"as long as TCP's");
    let mut frames = [other(L4::Syn(80)), other(L4::Ack(80))];
    frames.iter_mut().for_each(|frame| frame[6..12].copy_from_slice(&OTHER_MAC));
    let [syn, segment_of_other] = frames;
    let theirs = lab.forth(&syn);
    lab.rig.run(&from_backend(WEB4, 8080, NAT4, theirs, false, b""));
    assert_eq!(lab.forth(&segment_of_other), theirs);
    let numbers = |lab: &Lab| {
        let rows = lab.array::<[u64; ROWS]>("NAT_BACK").get(&0, 0).unwrap();
        let mut numbers: Vec<u32> = rows
            .into_iter()
            .filter(|&row| row != 0)
            .map(|row| Row::from_word(row).path())
            .collect();
        numbers.sort_unstable();
        numbers
    };
    assert_eq!((numbers(&lab)[0], numbers(&lab).len()), (0, 2), "the other has no number");

    let counters = lab.rig.bpf.counters().unwrap();
    // The first one, which is none, and that of the connection stay.
    assert_eq!(counters.free_nat_paths(), PATHS - 2);
    assert_eq!(counters.free_nat_paths(), 0);
    // As when its use is next noted.
    lab.patch_rows(|row| if Row::from_word(row).path() == 0 { 0 } else { row });
    assert_eq!(lab.forth(&segment_of_other), theirs);
    let numbers = numbers(&lab);
    assert!(numbers[0] != 0 && numbers[0] != numbers[1], "{numbers:?}");
    lab.alone();
    let (all, none) = (lab.array::<[u64; 8]>("NAT"), [0; 8]);
    for index in 0..SIZE as u32 {
        let state = all.get(&index, 0).unwrap()[0];
        lab.put_entry(index, if state == 0 { none } else { [state, 0, 0, 0, 0, 0, 0, 0] });
    }
    assert_eq!((lab.forth(&segment(Over::Tcp)), lab.forth(&segment_of_other)), (port, theirs));
    lab.back(&reply(Over::Tcp, port), CLIENT4, CLIENT_MAC);
    lab.back(&reply(Over::Tcp, theirs), OTHER4, OTHER_MAC);
}

#[test]
fn the_use_of_a_connection_is_noted() {
    for (over, back) in
        [(Over::Tcp, false), (Over::Tcp, true), (Over::Udp, false), (Over::Udp, true)]
    {
        let mut lab = Lab::new("rows-time", NatPorts::default());
        let port = lab.establish(over);
        let now = lab.stamp().seen();
        let (index, mut words) = lab.entry();
        // Seen earlier, but not for its rows.
        words[0] -= 2;
        lab.put_entry(index, words);
        let send = |lab: &mut Lab| {
            if back {
                lab.back(&reply(over, port), CLIENT4, CLIENT_MAC);
            } else {
                assert_eq!(lab.forth(&segment(over)), port);
            }
        };
        send(&mut lab);
        assert_eq!(lab.entry(), (index, words), "not noted");
        // Nor is what its rows say of now, half of all units later; nor what its entry says.
        lab.patch_rows(|row| row ^ 8 << 48);
        words[0] -= 598;
        lab.put_entry(index, words);
        send(&mut lab);
        assert!(lab.stamp().seen() >= now, "noted");
        lab.alone();
        lab.put_entry(index, [lab.entry().1[0], 0, 0, 0, 0, 0, 0, 0]);
        send(&mut lab);
    }
}

#[test]
fn what_is_removed_has_no_rows() {
    for over in BOTH {
        let mut lab = Lab::new("rows-removed", NatPorts::default());
        let port = lab.establish(over);
        let mut removed = 0;
        lab.rig.bpf.counters().unwrap().connections(&mut |_| {
            removed += 1;
            Visit::Remove
        });
        assert_eq!((removed, lab.rows()), (1, [0, 0]));
        assert_eq!(lab.rig.run(&reply(over, port)).reason, Reason::NatPassed);
        if over == Over::Tcp {
            assert_eq!(lab.rig.run(&segment(over)).reason, Reason::NatNoEntry);
        }
    }
}

/// A service of all ports of its address: its row does not tell which one replies come from.
#[test]
fn a_service_of_all_ports_goes_by_entries() {
    let mut lab = Lab::new("rows-ports", NatPorts::default());
    let mut all = behind(VIP4, WEB4);
    all.ports.truncate(1);
    (all.ports[0].port, all.ports[0].last, all.ports[0].target_port) = (0, 0, 0);
    lab.rig.put(vec![all]);
    let port = lab.forth(&client_frame(VIP4, L4::Syn(99), b""));
    lab.rig.run(&from_backend(WEB4, 99, NAT4, port, false, b""));
    let frame = client_frame(VIP4, L4::Ack(99), b"x");
    assert_eq!(lab.forth(&frame), port);
    assert_eq!(lab.rows(), [0, 0]);
    lab.alone();
    assert_eq!(lab.forth(&frame), port);
    let mut reply = from_backend(WEB4, 99, NAT4, port, false, b"x");
    as_ack(&mut reply);
    lab.back(&reply, CLIENT4, CLIENT_MAC);
}

/// Rows of a later start of the programs are those from before.
#[test]
fn rows_outlive_the_daemon() {
    let mut lab = Lab::new("rows-again", NatPorts::default());
    let port = lab.establish(Over::Tcp);
    let (index, words) = lab.entry();
    lab.put_entry(index, [words[0], 0, 0, 0, 0, 0, 0, 0]);
    let tables = lab.pins.path().join("v0-0");
    lab.rig = Rig::pinned_of(Capacity { nat: SIZE as u32, ..nat_capacity() }, &tables);
    lab.alone();
    assert_eq!(lab.forth(&segment(Over::Tcp)), port);
    lab.back(&reply(Over::Tcp, port), CLIENT4, CLIENT_MAC);
    let rows = lab.array::<[u64; ROWS]>("NAT_BACK").get(&0, 0).unwrap();
    let row = rows.into_iter().find(|&row| row != 0).map(Row::from_word).unwrap();
    assert_ne!(row.path(), 0);
}
