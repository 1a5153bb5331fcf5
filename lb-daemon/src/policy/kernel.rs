//! The policy tables and programs in the kernel.
//!
//! A set of tables is made for what is wanted, filled, and only then attached; a set that has become too
//! small is left for a larger one in the same way. What is remembered of connections, and the counters,
//! are shared by all sets. Decides nothing.
//!
//! ```text
//! DIR/v1-P_CONNECTIONS, ...    maps that all sets share
//! DIR/v1-policy-0/...          a set of tables
//! DIR/links/tc-3-in, -out      the links of interface 3
//! DIR/links/cls-3-in, -out     or the programs that its filters have, where the kernel has no such links
//! ```

mod attach;
mod counters;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use abi::{
    event::STREAMS,
    limits::{ABI_VERSION, REASON_ROWS},
    names::Message,
    policy::{
        AddressRow, Connection, ConnectionKey, Entries, Page, PolicyRow, RuleRow, Top, Way,
        nets::NetBucket,
    },
    prefix::Filter6,
    table::{Bucket, Counter},
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData, RingBuf},
    programs::SchedClassifier,
};

pub use self::{
    attach::{Attachment, Method, attach, detach_all_but},
    counters::PolicyCounters,
};
use super::image::{Op, Sizes, nets::room};
use crate::{
    datapath::bpf::{BpfError, HoldsRing, Mapped, cpus},
    refusal::chain,
};

/// The TC programs' object file.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tc.o"));

/// Maps that outlive a set of tables.
const SHARED: [&str; 7] = [
    "P_CONNECTIONS",
    "P_FRAGMENTS",
    "P_REASON_COUNT",
    "EVENTS",
    "SAMPLERS",
    "P_NAMES",
    "P_NAMES_LOST",
];
/// Maps of one set of tables.
const OWN: [&str; 12] = [
    "P_INTERFACES",
    "P_POLICIES",
    "P_TOPS",
    "P_PAGES",
    "P_ENTRIES",
    "P_BUCKETS",
    "P_ADDRESSES",
    "P_FLAGS",
    "P_NET_FILTER",
    "P_NETS",
    "P_RULE_COUNT",
    "P_RULES",
];

/// A set of tables, and the programs that read it.
pub struct Kernel {
    ebpf: Ebpf,
    directory: Option<PathBuf>,
    sizes: Sizes,
    interfaces: Mapped<u64>,
    policies: Mapped<PolicyRow>,
    tops: Mapped<Top>,
    pages: Mapped<Page>,
    entries: Mapped<Entries>,
    buckets: Mapped<Bucket>,
    addresses: Mapped<AddressRow>,
    flags: Mapped<u64>,
    rules: Mapped<RuleRow>,
    rule_count: Mapped<Counter>,
    filter: Mapped<Filter6>,
    nets: Mapped<NetBucket>,
}

impl Kernel {
    /// Makes empty tables. `root`: what is pinned is pinned below it, beside the sets of others.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn make(sizes: Sizes, salt: u64, root: Option<&Path>) -> Result<Self, BpfError> {
        let directory = root.map(next_directory).transpose()?;
        let Sizes { interfaces, policies, tops, pages, entries, addresses, buckets, .. } = sizes;
        let [filter, nets] = room(sizes.prefixes);
        let (filter_mask, net_mask) = (filter - 1, nets - 1);
        let cpus = cpus();
        let mask = buckets - 1;
        let tick = tick();
        let mut loader = EbpfLoader::new();
        loader
            .override_global("ADDRESS_MASK", &mask, true)
            .override_global("ADDRESS_SALT", &salt, true)
            .override_global("NET_FILTER_MASK", &filter_mask, true)
            .override_global("NET_MASK", &net_mask, true)
            .override_global("RULE_ROWS", &sizes.rules, true)
            .override_global("TICK_NS", &tick, true)
            .map_max_entries("P_INTERFACES", interfaces)
            .map_max_entries("P_POLICIES", policies)
            .map_max_entries("P_TOPS", tops)
            .map_max_entries("P_PAGES", pages)
            .map_max_entries("P_ENTRIES", entries)
            .map_max_entries("P_BUCKETS", buckets)
            .map_max_entries("P_ADDRESSES", addresses)
            .map_max_entries("P_NET_FILTER", filter)
            .map_max_entries("P_NETS", nets)
            .map_max_entries("P_REASON_COUNT", REASON_ROWS * cpus)
            .map_max_entries("P_RULE_COUNT", sizes.rules * cpus)
            .map_max_entries("P_RULES", sizes.rules)
            .map_max_entries("P_SCRATCH", 2 * cpus)
            .map_max_entries("P_EVENT", STREAMS * cpus)
            .map_max_entries("P_NAMES_LOST", cpus)
            .map_max_entries("SAMPLERS", STREAMS * cpus);
        if let (Some(root), Some(directory)) = (root, &directory) {
            for name in SHARED {
                loader.map_pin_path(name, root.join(format!("v{ABI_VERSION}-{name}")));
            }
            for name in OWN {
                loader.map_pin_path(name, directory.join(name));
            }
        }
        let refused = |detail: String| BpfError::Policy { detail };
        let mut ebpf = loader.load(OBJECT).map_err(|e| refused(chain(&e)))?;
        for way in [Way::In, Way::Out] {
            program(&mut ebpf, way)?.load().map_err(|e| refused(chain(&e)))?;
        }
        Ok(Self {
            sizes,
            interfaces: mapped(&ebpf, "P_INTERFACES")?,
            policies: mapped(&ebpf, "P_POLICIES")?,
            tops: mapped(&ebpf, "P_TOPS")?,
            pages: mapped(&ebpf, "P_PAGES")?,
            entries: mapped(&ebpf, "P_ENTRIES")?,
            buckets: mapped(&ebpf, "P_BUCKETS")?,
            addresses: mapped(&ebpf, "P_ADDRESSES")?,
            flags: mapped(&ebpf, "P_FLAGS")?,
            rules: mapped(&ebpf, "P_RULES")?,
            rule_count: mapped(&ebpf, "P_RULE_COUNT")?,
            filter: mapped(&ebpf, "P_NET_FILTER")?,
            nets: mapped(&ebpf, "P_NETS")?,
            ebpf,
            directory,
        })
    }

    /// How large its tables are.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The program for packets that go this way.
    ///
    /// # Errors
    /// [`BpfError::Map`] when the object has none, which no build leaves out.
    pub fn program(&mut self, way: Way) -> Result<&mut SchedClassifier, BpfError> {
        program(&mut self.ebpf, way)
    }

    /// Has the programs hand over DNS messages, or not.
    pub fn watch_names(&self, on: bool) {
        self.flags.store(1, 0, u64::from(on));
    }

    /// The DNS messages, and what is remembered of connections; the first call has them.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn names(&mut self) -> Result<NameSource, BpfError> {
        let Some(Map::RingBuf(ring)) = self.ebpf.take_map("P_NAMES") else {
            return Err(BpfError::Map("P_NAMES"));
        };
        let Some(Map::LruHashMap(connections)) = self.ebpf.take_map("P_CONNECTIONS") else {
            return Err(BpfError::Map("P_CONNECTIONS"));
        };
        Ok(NameSource {
            ring: RingBuf::try_from(Map::RingBuf(ring)).map_err(|_| BpfError::Map("P_NAMES"))?,
            connections: HashMap::try_from(Map::LruHashMap(connections))
                .map_err(|_| BpfError::Map("P_CONNECTIONS"))?,
            lost: mapped(&self.ebpf, "P_NAMES_LOST")?,
            cpus: cpus(),
        })
    }

    /// Carries out the steps in order: stores to memory, which nothing refuses.
    pub fn apply(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Page(row, page) => self.pages.write(*row, page),
                Op::Top(row, top) => self.tops.write(*row, top),
                Op::Entries(first, buckets) => {
                    for (index, bucket) in (*first..).zip(buckets) {
                        self.entries.write(index, bucket);
                    }
                }
                Op::Policy(row, policy) => self.policies.write(*row, policy),
                Op::Interface(index, word) => self.interfaces.store(*index, 0, *word),
                Op::Address(row, address) => self.addresses.write(*row, address),
                Op::Bucket { index, way, word } => {
                    self.buckets.store(*index, usize::from(*way) * 8, *word);
                }
                Op::Rule(row, id) => self.give_row(*row, *id),
                Op::Net { bucket, way, words: [hi, lo] } => {
                    self.nets.store(*bucket, way * 16, *hi);
                    self.nets.store(*bucket, way * 16 + 8, *lo);
                }
                Op::NetMeta { bucket, index, word } => {
                    self.nets.store(*bucket, (NetBucket::META + index) * 8, *word);
                }
                Op::NetFilter { row, word, bits } => self.filter.store(*row, word * 8, *bits),
                Op::Known(word) => self.flags.store(0, 0, *word),
            }
        }
    }

    /// Removes every set of tables below `root` but this one.
    pub fn remove_others(&self, root: &Path) {
        remove_sets(root, self.directory.as_deref());
    }
}

/// Removes every set of policy tables below `root` but `keep`.
pub fn remove_sets(root: &Path, keep: Option<&Path>) {
    for (path, _) in sets(root) {
        if keep == Some(&path) {
            continue;
        }
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            let _ = fs::remove_file(entry.path());
        }
        if let Err(error) = fs::remove_dir(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove policy tables");
        }
    }
}

/// Nanoseconds between two ticks of the kernel's clock: what its coarse clock tells apart.
fn tick() -> u64 {
    let tick = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE);
    tick.map_or(4_000_000, |tick| std::time::Duration::from(tick).as_nanos() as u64).max(1)
}

/// The directories of sets of this version, with their numbers.
fn sets(root: &Path) -> Vec<(PathBuf, u32)> {
    let prefix = format!("v{ABI_VERSION}-policy-");
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix(&prefix)?.parse().ok();
    entries.filter_map(|entry| Some((entry.path(), number(&entry.path())?))).collect()
}

fn next_directory(root: &Path) -> Result<PathBuf, BpfError> {
    let next = sets(root).into_iter().map(|(_, number)| number + 1).max().unwrap_or(0);
    let path = root.join(format!("v{ABI_VERSION}-policy-{next}"));
    match fs::create_dir(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(BpfError::Pin { path, detail: error.to_string() }),
    }
}

fn program(ebpf: &mut Ebpf, way: Way) -> Result<&mut SchedClassifier, BpfError> {
    let name = match way {
        Way::In => "into",
        Way::Out => "out",
    };
    let program = ebpf.program_mut(name).ok_or(BpfError::Map(name))?;
    program.try_into().map_err(|_| BpfError::Map(name))
}

fn mapped<T: aya::Pod>(ebpf: &Ebpf, name: &'static str) -> Result<Mapped<T>, BpfError> {
    match ebpf.map(name) {
        Some(Map::Array(map)) => Mapped::new(map, name),
        _ => Err(BpfError::Map(name)),
    }
}

/// DNS messages that programs hand over, and the connections that tell which addresses are in use.
pub struct NameSource {
    ring: RingBuf<MapData>,
    connections: HashMap<MapData, ConnectionKey, Connection>,
    lost: Mapped<u64>,
    cpus: u32,
}

impl NameSource {
    /// The next message; what is not one of this version is passed over.
    pub fn take(&mut self) -> Option<Message> {
        while let Some(record) = self.ring.next() {
            if let Some(message) = Message::from_bytes(&record) {
                return Some(message);
            }
        }
        None
    }

    /// Messages that found no room.
    #[must_use]
    pub fn lost(&self) -> u64 {
        (0..self.cpus).map(|cpu| self.lost.read(cpu)).sum()
    }

    /// When the last packet of a connection with each of these addresses was seen, by the programs' clock;
    /// one with none is left out.
    #[must_use]
    pub fn last_seen(&self, of: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, u64> {
        let mut last: BTreeMap<IpAddr, u64> = BTreeMap::new();
        for (key, connection) in self.connections.iter().filter_map(Result::ok) {
            let remote = IpAddr::from(key.remote());
            if of.contains(&remote) {
                let last = last.entry(remote).or_default();
                *last = connection.seen().max(*last);
            }
        }
        last
    }
}

impl AsRawFd for NameSource {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl HoldsRing for NameSource {}
