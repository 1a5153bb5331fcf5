//! Known flows of slots that move: by their tag, which goes with their entry.

use std::{
    net::IpAddr,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::Duration,
};

use abi::reason::Reason;
use aya::maps::MapData;
use config::model::{Forwarding, Service};
use lb_daemon::{conntrack::Visit, datapath::Tables as _, view::Counters as _};
use lb_tests::{
    lab::BpfDirectory,
    rig::{INGRESS, Rig, service},
};
use memmap2::{MmapOptions, MmapRaw};

use crate::packets::{L4, TX, VIP4, VIP6, frame4, frame6};

/// Words of a table.
struct Words(MmapRaw);

impl Words {
    fn pinned(path: &std::path::Path) -> Self {
        let map = MapData::from_pin(path).unwrap();
        let len = map.info().unwrap().value_size() as usize;
        Self(MmapOptions::new().len(len).map_raw(&map.fd().as_fd()).unwrap())
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.0.len() / 8);
        // SAFETY: inside the mapping, and aligned as it begins on a page.
        unsafe { AtomicU64::from_ptr(self.0.as_mut_ptr().cast::<u64>().add(index)) }
    }

    /// Those of every so many that are not 0: which, and what they are.
    fn set(&self, step: usize) -> Vec<(usize, u64)> {
        let all = (0..self.0.len() / 8 / step).map(|n| (n, self.word(n * step).load(SeqCst)));
        all.filter(|(_, word)| *word != 0).collect()
    }
}

/// Words of an entry, and in it the one that says where its flow goes.
const ENTRY: usize = 8;
const TO: usize = 1;
/// Words of a backend's row, and in it the one that says which use of it this is.
const BACKEND: usize = 8;
const EPOCH: usize = 5;

/// All slots of a service move from its backends 1 to 4 to 11 to 14.
struct Moving {
    rig: Rig,
    entries: Words,
    tags: Words,
    backends: Words,
    _pins: BpfDirectory,
}

impl Moving {
    /// With a packet of a flow from before, and the last byte of its backend's address.
    fn new(name: &str, frame: &[u8]) -> (Self, u8) {
        let pins = BpfDirectory::create(&format!("{name}-{}", std::process::id())).unwrap();
        let tables = pins.path().join("v0-0");
        std::fs::create_dir(&tables).unwrap();
        let mut rig = Rig::pinned(&tables);
        rig.fill(web(1), INGRESS, 1500);
        let [entries, tags, backends] =
            ["FLOWS", "FLOW_TAGS", "BACKENDS"].map(|name| Words::pinned(&tables.join(name)));
        let mut moving = Self { rig, entries, tags, backends, _pins: pins };
        let old = moving.owner(frame);
        moving.rig.fill(web(11), INGRESS, 1500);
        assert_eq!((moving.entries.set(ENTRY), moving.tags.set(1)), (vec![], vec![]));
        (moving, old)
    }

    /// The last byte of the address of the backend that a packet goes to.
    fn owner(&mut self, frame: &[u8]) -> u8 {
        let got = self.rig.run(frame);
        assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
        got.frame[33]
    }

    /// The same for one that goes by its tag: it does not go where its entry says, which is made to say something else
    /// meanwhile.
    fn by_tag(&mut self, frame: &[u8]) -> u8 {
        // Tags end every 16 seconds, but not twice at once.
        for _ in 0..2 {
            self.owner(frame);
            let [(row, tag)] = self.tags.set(1)[..] else { panic!("one flow has a tag") };
            let said = self.divert(row);
            let owner = self.owner(frame);
            self.entries.word(row * ENTRY + TO).store(said, SeqCst);
            if self.tags.word(row).load(SeqCst) == tag {
                return owner;
            }
            self.tags.word(row).store(0, SeqCst);
        }
        panic!("it goes by its entry");
    }

    /// Has the entry of a row say another backend; what it said.
    fn divert(&self, row: usize) -> u64 {
        let to = self.entries.word(row * ENTRY + TO);
        let said = to.load(SeqCst);
        let members = &self.rig.planner.services()["web"].members;
        let mut rows = members.values().map(|member| member.row);
        let other = rows.find(|&row| row != said as u32).unwrap();
        to.store(u64::from(other) | u64::from(self.rig.bpf.backend(other).epoch()) << 32, SeqCst);
        said
    }

    fn row_of(&self, last: u8) -> u32 {
        let address: IpAddr = format!("10.0.1.{last}").parse().unwrap();
        self.rig.planner.services()["web"].members[&address].row
    }
}

fn web(first: u8) -> Vec<Service> {
    let names: Vec<String> = (first..first + 4).map(|n| format!("10.0.1.{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    vec![service("web", &[VIP4, VIP6], Forwarding::Ipip, &names)]
}

/// More bytes than make a datagram one for the first program.
const PAYLOAD: &[u8] = &[0; 20];

fn both(l4: L4) -> [Vec<u8>; 2] {
    both_with(l4, PAYLOAD)
}

fn both_with(l4: L4, payload: &[u8]) -> [Vec<u8>; 2] {
    [frame4("198.51.100.7", VIP4, l4, 64, payload), frame6("2001:db8:9::7", VIP6, l4, 64, payload)]
}

#[test]
fn a_known_flow_goes_by_its_tag() {
    for (ack, udp) in both(L4::Ack(80)).iter().zip(both(L4::Udp(443))) {
        let (mut moving, old) = Moving::new("tag", ack);
        assert_eq!(moving.owner(ack), old);
        assert_eq!((moving.entries.set(ENTRY).len(), moving.tags.set(1).len()), (1, 0), "a first");
        assert_eq!(moving.owner(ack), old);
        let [(row, _)] = moving.tags.set(1)[..] else { panic!("a second packet leaves a tag") };
        assert_eq!(moving.entries.set(ENTRY)[0].0, row);
        assert_eq!(moving.by_tag(ack), old);
        // Without it by the entry.
        moving.divert(row);
        moving.tags.word(row).store(0, SeqCst);
        assert_ne!(moving.owner(ack), old);

        let (mut moving, _) = Moving::new("tag-udp", &udp);
        let new = moving.owner(&udp);
        assert!(new > 10, "datagrams say nothing of when their flow began");
        assert_eq!(moving.by_tag(&udp), new);
    }
    // Datagrams that are forwarded by a program behind the first one.
    for udp in both_with(L4::Udp(443), b"x") {
        let (mut moving, _) = Moving::new("tag-short", &udp);
        let new = moving.owner(&udp);
        assert_eq!(moving.by_tag(&udp), new);
    }
}

/// An entry may stand in any row of its bucket.
#[test]
fn a_tag_is_found_in_every_row_of_a_bucket() {
    let [ack, _] = both(L4::Ack(80));
    let (mut moving, old) = Moving::new("tag-row", &ack);
    assert_eq!((moving.owner(&ack), moving.owner(&ack)), (old, old));
    for n in 1..8 {
        // As in `by_tag`.
        let found = (0..2).any(|_| {
            assert_eq!(moving.owner(&ack), old);
            let [(row, tag)] = moving.tags.set(1)[..] else { panic!("one flow has a tag") };
            let (said, other) = (moving.divert(row), row & !7 | (row + n) & 7);
            moving.tags.word(row).store(0, SeqCst);
            moving.tags.word(other).store(tag, SeqCst);
            let owner = moving.owner(&ack);
            moving.entries.word(row * ENTRY + TO).store(said, SeqCst);
            for row in [row, other] {
                moving.tags.word(row).store(0, SeqCst);
            }
            owner == old
        });
        assert!(found, "{n} rows further");
    }
}

/// Nobody finds a tag whose entry is another one's by now, or is gone.
#[test]
fn a_tag_goes_with_its_entry() {
    for (ack, syn) in both(L4::Ack(80)).iter().zip(both(L4::Syn(80))) {
        let (mut moving, old) = Moving::new("tag-gone", ack);
        assert_eq!((moving.owner(ack), moving.by_tag(ack)), (old, old));
        // The flow begins anew, and its entry is replaced.
        let new = moving.owner(&syn);
        assert!(new > 10);
        assert_eq!(moving.tags.set(1), []);
        assert_eq!((moving.owner(ack), moving.by_tag(ack)), (new, new));
        // It is removed: the flow is one from before again.
        let mut removed = 0;
        let mut remove = |_: &_| {
            removed += 1;
            Visit::Remove
        };
        moving.rig.bpf.counters().unwrap().connections(&mut remove);
        assert_eq!((removed, moving.tags.set(1)), (1, vec![]));
        assert_eq!(moving.owner(ack), old);
    }
}

/// A tag is of one use of a backend's row.
#[test]
fn a_tag_ends_with_the_use_of_the_row() {
    for (ack, syn) in both(L4::Ack(80)).iter().zip(both(L4::Syn(80))) {
        let (mut moving, old) = Moving::new("tag-epoch", ack);
        let new = moving.owner(&syn);
        assert_eq!((moving.owner(ack), moving.by_tag(ack)), (new, new));
        let row = moving.row_of(new) as usize;
        moving.backends.word(row * BACKEND + EPOCH).fetch_add(1, SeqCst);
        assert_eq!(moving.owner(ack), old, "by the ring");
    }
}

/// What a backend takes is asked at each packet.
#[test]
fn a_tag_counts_as_its_entry_does() {
    for (ack, udp) in both(L4::Ack(80)).iter().zip(both(L4::Udp(443))) {
        let syn = if ack[12] == 8 { &both(L4::Syn(80))[0] } else { &both(L4::Syn(80))[1] };
        let (mut moving, _) = Moving::new("tag-down", ack);
        let new = moving.owner(syn);
        assert_eq!(moving.by_tag(ack), new);
        let health = |moving: &mut Moving, last: u8, down: bool| {
            let address = format!("10.0.1.{last}").parse().unwrap();
            let rig = &mut moving.rig;
            let ops = rig.planner.set_health("web", address, down, &rig.bpf, Duration::ZERO);
            rig.apply(&ops);
        };
        health(&mut moving, new, true);
        assert_eq!(moving.by_tag(ack), new, "connections that it has go on");

        let (mut moving, _) = Moving::new("tag-down-udp", &udp);
        let new = moving.owner(&udp);
        assert_eq!(moving.by_tag(&udp), new);
        health(&mut moving, new, true);
        assert_ne!(moving.owner(&udp), new, "other flows do not");
    }
}
