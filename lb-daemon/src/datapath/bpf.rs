//! The kernel's tables: BPF arrays mapped into this process, written at memory speed.
//!
//! Owns the loaded programs and their maps. Every store that a running program may see half done is
//! one aligned 64-bit word; a row is written whole before a word that points at it is stored with
//! release ordering. Decides nothing.

mod active;
mod awaited;
mod conntrack;
mod counters;
mod early;
mod events;
mod flat;
mod grow;
mod load;
mod mapped;
mod names;
mod nat;
mod numbers;
mod prefixes;
mod runs;
mod sock;

pub use active::Recount;
pub use awaited::{HoldsRing, awaited};
use conntrack::Connections;
use counters::Counts;
pub use counters::MappedCounters;
pub use early::{Early, Frame as EarlyFrame, Programs};
pub use events::Events;
use load::{Instance, instance, pinned_capacity};
pub(crate) use mapped::Mapped;
use mapped::bytes_of;
use nat::Rows;
use runs::Runs;
pub use sock::Sock;

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::atomic::{Ordering, fence},
};

use abi::{
    addr::Addr,
    constants::TABLES,
    guard::Limit,
    limits::ABI_VERSION,
    nat::{Entry, clients},
    prefix::{Bitmap, Block, Bucket6, Filter6, LINE, Line, ListRow},
    scope::Scope,
    table::{Backend, Bucket, Control, Counter, Egress, Frontend, NatAddress, Way},
};
use aya::{
    Pod,
    maps::{Map, MapData, PerCpuArray},
    programs::Xdp,
};

use self::names::{MAPS, SHARED};
use super::{ApplyError, Capacity, Datapath, Image, Op, Tables};

/// What keeps the kernel's tables from being used.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// Loading the object or a program was refused.
    #[error("loading the XDP program (features {features:#x}): {detail}")]
    Load {
        /// Bits of [`abi::limits::feature`].
        features: u32,
        /// The loader's or verifier's answer.
        detail: String,
    },
    /// Loading or attaching the programs at the socket was refused.
    #[error("programs at the socket: {detail}")]
    Sock {
        /// The loader's, verifier's or kernel's answer.
        detail: String,
    },
    /// Loading the policy programs was refused.
    #[error("loading the policy programs: {detail}")]
    Policy {
        /// The loader's or verifier's answer.
        detail: String,
    },
    /// A map is missing from the object or of another kind.
    #[error("map {0}: not in the object file, or of another kind")]
    Map(&'static str),
    /// A map cannot be mapped.
    #[error("map {name}: {source}")]
    Mmap {
        /// Its name.
        name: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Pinned tables of another version.
    #[error("{0}: pinned tables of another version; `lbctl cleanup` removes them")]
    Foreign(PathBuf),
    /// Something could not be pinned.
    #[error("pinning {path}: {detail}")]
    Pin {
        /// Below the directory of pins.
        path: PathBuf,
        /// The kernel's answer.
        detail: String,
    },
}

/// The loaded programs and their tables.
pub struct Bpf {
    capacity: Capacity,
    instances: BTreeMap<u32, Instance>,
    pins: Option<PathBuf>,
    control: Mapped<Control>,
    vips: Mapped<u64>,
    buckets: Mapped<Bucket>,
    frontends: Mapped<Frontend>,
    slots: Mapped<u64>,
    backends: Mapped<Backend>,
    egress: Mapped<Egress>,
    nat: Mapped<Entry>,
    nat_clients: Mapped<clients::Bucket>,
    nat_vlans: Mapped<u64>,
    nat_forth: Mapped<u64>,
    nat_back: Mapped<u64>,
    nat_addresses: Mapped<NatAddress>,
    ways: Mapped<Way>,
    summary: Mapped<u64>,
    fine4: Mapped<u64>,
    lines: Mapped<Line>,
    bitmaps: Mapped<Bitmap>,
    blocks: Mapped<Block>,
    filter6: Mapped<Filter6>,
    buckets6: Mapped<Bucket6>,
    lists: Mapped<ListRow>,
    scopes: Mapped<Scope>,
    limits: Mapped<Limit>,
    syn_ports: Mapped<u64>,
    counts: Counts,
    /// Of each half; `None` until an entry needs a place in what another process has written.
    runs: [Option<Runs>; 2],
}

impl Bpf {
    /// Makes tables of this capacity, or takes over those pinned in `pins`, and loads the program
    /// with `features` (bits of [`abi::limits::feature`]). A program that is pinned there and comes
    /// from the same object file is taken over as it is.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn load(
        mut capacity: Capacity,
        salt: u64,
        seed: u64,
        features: u32,
        pins: Option<&Path>,
    ) -> Result<Self, BpfError> {
        let cpus = cpus();
        let mut control = Control::new(0, salt, seed, cpus).with_nat_ports(capacity.nat_ports);
        if let Some(dir) = pins
            && let Ok(map) = MapData::from_pin(dir.join("CONTROL"))
        {
            control = Mapped::<Control>::new(&map, "CONTROL")?.read(0);
            if !control.is_current() {
                return Err(BpfError::Foreign(dir.to_owned()));
            }
            capacity = pinned_capacity(dir)?;
            capacity.nat_ports = control.nat_ports();
        }
        // As many as there will be: rows of counters are found by it.
        capacity.frontends = capacity.frontends.next_power_of_two();
        let first = instance(capacity, &control, features, pins)?;
        let source = Source { pins, instance: &first };
        let bpf = Self {
            capacity,
            control: source.mapped("CONTROL")?,
            vips: source.mapped("VIPS")?,
            buckets: source.mapped("BUCKETS")?,
            frontends: source.mapped("FRONTENDS")?,
            slots: source.mapped("SLOTS")?,
            backends: source.mapped("BACKENDS")?,
            egress: source.mapped("EGRESS")?,
            nat: source.mapped("NAT")?,
            nat_clients: source.mapped("NAT_CLIENTS")?,
            nat_vlans: source.mapped("NAT_VLANS")?,
            nat_forth: source.mapped("NAT_FORTH")?,
            nat_back: source.mapped("NAT_BACK")?,
            nat_addresses: source.mapped("NAT_ADDRESSES")?,
            ways: source.mapped("WAYS")?,
            summary: source.mapped("SUMMARY")?,
            fine4: source.mapped("FINE4")?,
            lines: source.mapped("LINES")?,
            bitmaps: source.mapped("BITMAPS")?,
            blocks: source.mapped("BLOCKS")?,
            filter6: source.mapped("FILTER6")?,
            buckets6: source.mapped("BUCKETS6")?,
            lists: source.mapped("LISTS")?,
            scopes: source.mapped("SCOPES")?,
            limits: source.mapped("LIMITS")?,
            syn_ports: source.mapped("SYN_PORTS")?,
            counts: source.counts(control.cpus(), capacity)?,
            runs: [None, None],
            instances: BTreeMap::from([(features, first)]),
            pins: pins.map(Path::to_owned),
        };
        if !bpf.control.read(0).is_current() {
            bpf.control.write(0, &control);
        }
        Ok(bpf)
    }

    /// The program with these features; loads it when it is not there yet.
    ///
    /// # Errors
    /// [`BpfError::Load`]; also when a second set of features is wanted of tables that are not
    /// pinned, as only pinned ones can be shared.
    pub fn program(&mut self, features: u32) -> Result<&mut Xdp, BpfError> {
        if !self.instances.contains_key(&features) {
            let Some(pins) = &self.pins else {
                let detail = "tables are not pinned".to_owned();
                return Err(BpfError::Load { features, detail });
            };
            let more = instance(self.capacity, &self.control.read(0), features, Some(pins))?;
            self.instances.insert(features, more);
        }
        self.instances.get_mut(&features).ok_or(BpfError::Map("lb"))?.program()
    }

    /// Removes what other builds have pinned of their programs beside these tables; nothing may be attached to them.
    pub fn remove_other_builds(&self) {
        if let Some(dir) = &self.pins {
            load::remove_other_builds(dir);
        }
    }

    /// How many instructions the verifier followed for each program that this process loaded; it gives up
    /// at a million. Empty on kernels that do not tell (before 5.16).
    #[must_use]
    pub fn verified(&self) -> BTreeMap<String, u32> {
        let mut found = BTreeMap::new();
        for instance in self.instances.values() {
            let Instance::Object(loaded) = instance else { continue };
            for (name, program) in loaded.ebpf.programs() {
                let info = program.info().ok();
                if let Some(count) = info.and_then(|info| info.verified_instruction_count()) {
                    found.insert(name.to_owned(), count);
                }
            }
        }
        found
    }

    /// Live counters, on mappings of their own.
    ///
    /// # Errors
    /// [`BpfError::Mmap`].
    pub fn counters(&self) -> Result<MappedCounters, BpfError> {
        let instance = self.instances.values().next().ok_or(BpfError::Map("REASON_COUNT"))?;
        let source = Source { pins: self.pins.as_deref(), instance };
        Ok(MappedCounters {
            counts: source.counts(self.control.read(0).cpus(), self.capacity)?,
            limits: source.mapped("LIMIT_COUNT")?,
            reasons: source.mapped("REASON_COUNT")?,
            rows: source.mapped("BACKENDS")?,
            admission: PerCpuArray::try_from(Map::PerCpuArray(source.open("ADMISSION")?))
                .map_err(|_| BpfError::Map("ADMISSION"))?,
            connections: Connections {
                nat: source.mapped("NAT")?,
                rows: Rows {
                    forth: source.mapped("NAT_FORTH")?,
                    back: source.mapped("NAT_BACK")?,
                    paths: source.mapped("NAT_PATHS")?,
                },
                seed: self.control.read(0).seed(),
                addresses: source.mapped("NAT_ADDRESSES")?,
                backends: source.mapped("BACKENDS")?,
                flows: source.mapped("FLOWS")?,
                tags: source.mapped("FLOW_TAGS")?,
            },
        })
    }

    /// What counts connections, on mappings of its own.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn recount(&self) -> Result<Recount, BpfError> {
        let instance = self.instances.values().next().ok_or(BpfError::Map("FLOWS"))?;
        let source = Source { pins: self.pins.as_deref(), instance };
        Ok(Recount::new(source.mapped("FLOWS")?, source.mapped("NAT")?, source.mapped("BACKENDS")?))
    }

    /// Samples of packets. Their reader must be the only one of these tables.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn events(&self) -> Result<Events, BpfError> {
        let instance = self.instances.values().next().ok_or(BpfError::Map("EVENTS"))?;
        let source = Source { pins: self.pins.as_deref(), instance };
        Events::new(source.open("EVENTS")?, source.mapped("SAMPLERS")?, self.control.read(0).cpus())
    }

    /// Fragments that came before their first one.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn early(&self) -> Result<Early, BpfError> {
        let instance = self.instances.values().next().ok_or(BpfError::Map("EARLY"))?;
        let source = Source { pins: self.pins.as_deref(), instance };
        Early::new(source.open("EARLY")?, source.open("FRAGMENTS")?)
    }

    /// Name, entries and bytes of every table, as the kernel made it.
    #[must_use]
    pub fn sizes(&self) -> Vec<(&'static str, u64, u64)> {
        let Some(instance) = self.instances.values().next() else { return Vec::new() };
        let source = Source { pins: self.pins.as_deref(), instance };
        let size = |name: &'static str| {
            let info = source.open(name).ok()?.info().ok()?;
            let (entries, entry) = flat::rows(name, &info);
            let (entries, entry) = (u64::from(entries), u64::from(entry));
            if ["EVENTS", "EARLY"].contains(&name) {
                return Some((name, entries, entries));
            }
            // Keys of arrays are not stored; those of hashes are, with a header each.
            let key = match name {
                "FRAGMENTS" => u64::from(info.key_size()).next_multiple_of(8) + 48,
                _ => 0,
            };
            Some((name, entries, entries * (entry + key)))
        };
        TABLES.into_iter().chain(MAPS).filter_map(size).collect()
    }

    /// Bytes of all tables that are mapped, without counters.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.vips.bytes()
            + self.buckets.bytes()
            + self.frontends.bytes()
            + self.slots.bytes()
            + self.backends.bytes()
            + self.egress.bytes()
            + self.nat.bytes()
            + self.nat_clients.bytes()
            + self.nat_vlans.bytes()
            + self.nat_forth.bytes()
            + self.nat_back.bytes()
            + self.summary.bytes()
            + self.fine4.bytes()
            + self.lines.bytes()
            + self.bitmaps.bytes()
            + self.blocks.bytes()
            + self.filter6.bytes()
            + self.buckets6.bytes()
    }
}

/// CPUs that a program may run on.
pub(crate) fn cpus() -> u32 {
    aya::util::nr_cpus().map_or(1, |n| n as u32)
}

/// Where a map is pinned for the set of tables in `dir`.
fn pin_of(dir: &Path, name: &str) -> PathBuf {
    if SHARED.contains(&name) {
        // Beside the sets of tables of this version.
        dir.with_file_name(format!("v{ABI_VERSION}-{name}"))
    } else {
        dir.join(name)
    }
}

/// Where maps come from.
struct Source<'a> {
    pins: Option<&'a Path>,
    instance: &'a Instance,
}

impl Source<'_> {
    fn open(&self, name: &'static str) -> Result<MapData, BpfError> {
        if let Some(dir) = self.pins {
            return MapData::from_pin(pin_of(dir, name)).map_err(|_| BpfError::Map(name));
        }
        let Instance::Object(loaded) = self.instance else { return Err(BpfError::Map(name)) };
        let copy = |map: &MapData| {
            let fd = map.fd().as_fd().try_clone_to_owned();
            fd.map_err(|source| BpfError::Mmap { name, source })
                .and_then(|fd| MapData::from_fd(fd).map_err(|_| BpfError::Map(name)))
        };
        if let Some(map) = loaded.flat.get(name) {
            return copy(map);
        }
        match loaded.ebpf.map(name) {
            Some(
                Map::Array(map)
                | Map::LruHashMap(map)
                | Map::PerCpuArray(map)
                | Map::ProgramArray(map)
                | Map::RingBuf(map),
            ) => copy(map),
            _ => Err(BpfError::Map(name)),
        }
    }

    fn mapped<T: Pod>(&self, name: &'static str) -> Result<Mapped<T>, BpfError> {
        Mapped::new(&self.open(name)?, name)
    }

    fn counts(&self, cpus: u32, capacity: Capacity) -> Result<Counts, BpfError> {
        Ok(Counts {
            cpus,
            capacity,
            frontends: self.mapped("FRONTEND_COUNT")?,
            backends: self.mapped("BACKEND_COUNT")?,
            lists: self.mapped("LIST_COUNT")?,
        })
    }
}

impl Tables for Bpf {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn control(&self) -> Control {
        self.control.read(0)
    }

    fn vip_word(&self, index: u32) -> u64 {
        self.vips.word(index, 0).load(Ordering::Relaxed)
    }

    fn bucket(&self, index: u32) -> Bucket {
        self.buckets.read(index)
    }

    fn frontend(&self, row: u32) -> Frontend {
        self.frontends.read(row)
    }

    fn slot(&self, index: u32) -> u64 {
        self.slots.word(index, 0).load(Ordering::Relaxed)
    }

    fn backend(&self, row: u32) -> Backend {
        self.backends.read(row)
    }

    fn egress(&self, row: u32) -> Egress {
        self.egress.read(row + 1)
    }

    fn nat_address(&self, row: u32) -> Addr {
        self.nat_addresses.read(row).addr
    }

    fn way(&self, row: u32) -> Way {
        self.ways.read(row)
    }

    fn list(&self, row: u32) -> ListRow {
        self.lists.read(row)
    }

    fn scope(&self, row: u32) -> Scope {
        self.scopes.read(row)
    }

    fn limit(&self, row: u32) -> Limit {
        self.limits.read(row)
    }

    fn syn_ports(&self, word: u32) -> u64 {
        self.syn_ports.read(word)
    }

    fn line(&self, index: u32) -> [u32; LINE] {
        self.entries_of(index)
    }

    fn bitmap(&self, row: u32) -> [u64; 4] {
        self.bitmaps.read(self.half() * self.capacity.bitmaps + row).words()
    }

    fn block(&self, row: u32) -> Box<[u8; 256]> {
        Box::new(*self.blocks.read(self.half() * self.capacity.blocks + row).lists())
    }

    fn filter6(&self, row: u32) -> [u64; 2] {
        self.filter6.read(self.half() * self.capacity.filter6 + row).words()
    }

    fn bucket6(&self, row: u32) -> Bucket6 {
        self.buckets6.read(self.half() * self.capacity.buckets6 + row)
    }
}

impl Datapath for Bpf {
    fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        for op in ops {
            self.carry_out(op)?;
        }
        Ok(())
    }
}

impl Bpf {
    /// Stores a word of a frontend that the bit of its ring's word tells of.
    fn store_special(&self, row: u32, offset: usize, word: u64, after: &Frontend) {
        for (offset, word) in special_stores(offset, word, after) {
            self.frontends.store(row, offset, word);
        }
    }

    fn carry_out(&mut self, op: &Op) -> Result<(), ApplyError> {
        match *op {
            Op::Egress(row, ref value) => self.egress.write(row + 1, value),
            Op::NatAddress(row, addr) => self.nat_addresses.write(row, &NatAddress { addr }),
            Op::Way(row, ref way) => self.write_way(row, way),
            Op::Backend(row, ref value) => {
                self.counts.begin_backend(row, value);
                self.backends.write(row, value);
            }
            Op::Hop(row, hop) => self.backends.store(row, Backend::HOP, hop.to_word()),
            Op::State(row, state) => self.backends.store(row, Backend::STATE, state.to_word()),
            Op::Ring { offset, signature, ref slots } => {
                self.slots.store(offset - 1, 0, 0);
                for (i, slot) in (offset..).zip(slots) {
                    self.slots.word(i, 0).store(slot.to_word(), Ordering::Relaxed);
                }
                self.slots.store(offset - 1, 0, signature);
            }
            Op::Slot(index, slot) => self.slots.store(index, 0, slot.to_word()),
            Op::Signature(index, word) => self.slots.store(index, 0, word),
            Op::Frontend(row, ref value) => {
                self.counts.begin_frontend(row);
                self.frontends.write(row, value);
            }
            Op::FrontendRing(row, ring) => {
                let mut after = self.frontends.read(row);
                after.set_ring(ring);
                self.frontends.store(row, Frontend::RING, after.ring_word());
            }
            Op::FrontendOldRing(row, ring) => {
                self.frontends.store(row, Frontend::OLD_RING, ring.to_word());
            }
            Op::FrontendRanges(row, word) => {
                let mut after = self.frontends.read(row);
                after.set_ranges(word);
                self.store_special(row, Frontend::RANGES, word, &after);
            }
            Op::Words { offset, ref words } => {
                for (i, &word) in (offset..).zip(words) {
                    self.slots.word(i, 0).store(word, Ordering::Relaxed);
                }
                fence(Ordering::Release);
            }
            Op::FrontendAny(row, word) => {
                let mut after = self.frontends.read(row);
                after.set_any(word);
                self.store_special(row, Frontend::ANY, word, &after);
            }
            Op::VipWord(index, word) => self.vips.store(index, 0, word),
            Op::Bucket { index, way, word } => {
                self.buckets.store(index, usize::from(way) * 8, word);
            }
            Op::List(row, ref value) => {
                self.counts.begin_list(row, &self.lists.read(row), value);
                self.lists.write(row, value);
            }
            Op::Scope(row, ref value) => self.write_scope(row, value),
            Op::Limit(row, ref value) => {
                // Not in force while it is half of one and half of another.
                self.limits.store(row, 0, 0);
                self.limits.write(row, &Limit { interval: 0, ..*value });
                self.limits.store(row, 0, value.interval);
            }
            Op::SynPorts(word, ports) => self.syn_ports.store(word, 0, ports),
            Op::Bitmap(row, ref bitmap) => {
                self.bitmaps.write(self.half() * self.capacity.bitmaps + row, bitmap);
            }
            Op::Block(row, ref lists) => {
                let row = self.half() * self.capacity.blocks + row;
                self.blocks.write(row, &Block::new(**lists));
            }
            Op::Line(network, entry) => self.store_entry(network, entry.to_word())?,
            Op::Bucket6(row, ref bucket) => self.store_bucket6(row, bucket),
            Op::Filter6(row, filter) => {
                let row = self.half() * self.capacity.filter6 + row;
                for (i, word) in filter.words().into_iter().enumerate() {
                    self.filter6.store(row, i * 8, word);
                }
            }
            Op::Settle => grace(),
            Op::Prefixes(ref image) => self.write_half(image),
            Op::Flags(flags) => self.control.store(0, Control::FLAGS, flags),
            Op::Unserved(what) => self.control.store(0, Control::UNSERVED, what as u64),
            Op::Generation(n) => self.control.store(0, Control::GENERATION, n),
        }
        Ok(())
    }
}

/// The stores that put a word of a frontend in force, in their order: of a packet that comes between two of them, more is
/// asked than is needed, never less.
fn special_stores(offset: usize, word: u64, after: &Frontend) -> [(usize, u64); 2] {
    let ring = (Frontend::RING, after.ring_word());
    match after.plain_ring() {
        None => [ring, (offset, word)],
        Some(_) => [(offset, word), ring],
    }
}

/// Waits until every program that runs now has ended: programs run in read-side critical sections, and
/// this command is the kernel's `synchronize_rcu` (membarrier(2), `MEMBARRIER_CMD_GLOBAL`).
pub fn grace() {
    const GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers only.
    let failed = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } != 0;
    if failed {
        // With nohz_full CPUs the kernel refuses. A program runs for microseconds.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use abi::table::{FrontendKey, Mode, Ring};

    use super::*;

    /// A packet that comes between two stores: its ring alone decides only where no other word says anything.
    #[test]
    fn a_ring_is_plain_only_while_nothing_else_counts() {
        let ring = Ring { offset: 7, size: 251, resizing: false };
        let of = |any: u64, ranges: u64| {
            let key = FrontendKey::new(Addr::v4(1), 80, 6);
            let mut frontend = Frontend::service(key, Mode::Ipip, ring, 1);
            frontend.set_any(any);
            frontend.set_ranges(ranges);
            frontend
        };
        let plain = |word: u64| (word as i64) >= 0;
        assert!(plain(of(0, 0).ring_word()), "the bit that is asked for");
        for (any, ranges, offset, word) in [0, 5]
            .into_iter()
            .flat_map(|any| [0, 9].map(|ranges| (any, ranges)))
            .flat_map(|(any, ranges)| {
                [
                    (Frontend::ANY, 0),
                    (Frontend::ANY, 6),
                    (Frontend::RANGES, 0),
                    (Frontend::RANGES, 8),
                ]
                .map(|(offset, word)| (any, ranges, offset, word))
            })
        {
            let mut stands = BTreeMap::from([
                (Frontend::RING, of(any, ranges).ring_word()),
                (Frontend::ANY, any),
                (Frontend::RANGES, ranges),
            ]);
            let after = match offset {
                Frontend::ANY => of(word, ranges),
                _ => of(any, word),
            };
            for (at, value) in special_stores(offset, word, &after) {
                stands.insert(at, value);
                let other = stands[&Frontend::ANY] != 0 || stands[&Frontend::RANGES] != 0;
                let ring = stands[&Frontend::RING];
                assert!(!(plain(ring) && other), "{any} {ranges}: {offset} <- {word}: {stands:x?}");
            }
            assert_eq!(stands[&offset], word);
            assert_eq!(stands[&Frontend::RING], after.ring_word());
        }
    }
}
