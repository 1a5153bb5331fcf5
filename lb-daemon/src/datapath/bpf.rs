//! The kernel's tables: BPF arrays mapped into this process, written at memory speed.
//!
//! Owns the loaded programs and their maps. Every store that a running program may see half done is
//! one aligned 64-bit word; a row is written whole before a word that points at it is stored with
//! release ordering. Decides nothing.

mod grow;

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
};

use abi::{
    limits::{ABI_VERSION, LIST_ROWS, MAX_LISTS, REASON_ROWS, feature},
    prefix::{Block, Line, ListRow},
    reason::Reason,
    table::{Backend, Bucket, Control, Counter, Egress, Frontend, ReasonCounter},
};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{LpmTrie, Map, MapData, ProgramArray, lpm_trie::Key},
    programs::Xdp,
};
use aya_obj::programs::XdpAttachType;
use ipnet::Ipv6Net;
use memmap2::{MmapOptions, MmapRaw};
use siphasher::sip::SipHasher13;

use super::{ApplyError, Capacity, Datapath, Op, Tables};
use crate::view::{Count, Counters};

/// The XDP program's object file.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xdp.o"));

/// Maps that are pinned, and shared by every instance of the program.
const MAPS: [&str; 17] = [
    "CONTROL",
    "BUCKETS",
    "FRONTENDS",
    "SLOTS",
    "BACKENDS",
    "EGRESS",
    "FLOWS",
    "FRAGMENTS",
    "JUMP",
    "LINES",
    "BLOCKS",
    "PREFIXES6",
    "LISTS",
    "FRONTEND_COUNT",
    "BACKEND_COUNT",
    "LIST_COUNT",
    "REASON_COUNT",
];

/// Maps that outlive a set of tables: what they hold means the same in the next one.
const SHARED: [&str; 4] = ["FLOWS", "FRAGMENTS", "LIST_COUNT", "REASON_COUNT"];

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

/// A loaded program.
enum Instance {
    /// Loaded by this process, with its maps.
    Object(Box<Ebpf>),
    /// Loaded by an earlier process from the same object file, and pinned.
    Pinned(Box<Xdp>),
}

impl Instance {
    fn program(&mut self) -> Result<&mut Xdp, BpfError> {
        match self {
            Self::Object(ebpf) => {
                let program = ebpf.program_mut("lb").ok_or(BpfError::Map("lb"))?;
                program.try_into().map_err(|_| BpfError::Map("lb"))
            }
            Self::Pinned(program) => Ok(program),
        }
    }
}

/// A BPF array in this process's memory.
struct Mapped<T> {
    memory: MmapRaw,
    len: u32,
    _rows: std::marker::PhantomData<T>,
}

impl<T: Pod> Mapped<T> {
    const WORDS: usize = size_of::<T>() / 8;

    fn new(map: &MapData, name: &'static str) -> Result<Self, BpfError> {
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8) };
        let fail = |source| BpfError::Mmap { name, source };
        let info = map.info().map_err(|e| fail(io::Error::other(e)))?;
        let len = info.max_entries();
        let bytes = len as usize * size_of::<T>();
        let memory = MmapOptions::new().len(bytes).map_raw(&map.fd().as_fd()).map_err(fail)?;
        Ok(Self { memory, len, _rows: std::marker::PhantomData })
    }

    /// The word at a byte offset of a row.
    fn word(&self, row: u32, offset: usize) -> &AtomicU64 {
        assert!(row < self.len && offset + 8 <= size_of::<T>() && offset.is_multiple_of(8));
        let at = row as usize * size_of::<T>() + offset;
        // SAFETY: inside the mapping by the check above and `len`; aligned, as the mapping begins on
        // a page and all terms are multiples of 8; the kernel's programs access it as whole words.
        unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().add(at).cast()) }
    }

    fn read(&self, row: u32) -> T {
        let mut value = std::mem::MaybeUninit::<T>::uninit();
        for i in 0..Self::WORDS {
            let word = self.word(row, i * 8).load(Ordering::Relaxed);
            // SAFETY: word `i` lies inside `T`, whose size is a multiple of 8.
            unsafe { value.as_mut_ptr().cast::<u64>().add(i).write_unaligned(word) };
        }
        // SAFETY: every word is written, and `T: Pod` takes any bit pattern.
        unsafe { value.assume_init() }
    }

    fn write(&self, row: u32, value: &T) {
        for i in 0..Self::WORDS {
            // SAFETY: word `i` lies inside `T`, whose size is a multiple of 8.
            let word = unsafe { std::ptr::from_ref(value).cast::<u64>().add(i).read_unaligned() };
            self.word(row, i * 8).store(word, Ordering::Relaxed);
        }
        // What is stored after this must not be seen before it.
        fence(Ordering::Release);
    }

    fn store(&self, row: u32, offset: usize, word: u64) {
        self.word(row, offset).store(word, Ordering::Release);
    }

    fn bytes(&self) -> u64 {
        u64::from(self.len) * size_of::<T>() as u64
    }
}

/// The loaded programs and their tables.
pub struct Bpf {
    capacity: Capacity,
    instances: BTreeMap<u32, Instance>,
    pins: Option<PathBuf>,
    control: Mapped<Control>,
    buckets: Mapped<Bucket>,
    frontends: Mapped<Frontend>,
    slots: Mapped<u64>,
    backends: Mapped<Backend>,
    egress: Mapped<Egress>,
    lines: Mapped<Line>,
    blocks: Mapped<Block>,
    lists: Mapped<ListRow>,
    prefixes6: LpmTrie<MapData, [u8; 16], u32>,
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
        let mut control = Control::new(0, salt, seed, cpus);
        if let Some(dir) = pins
            && let Ok(map) = MapData::from_pin(dir.join("CONTROL"))
        {
            control = Mapped::<Control>::new(&map, "CONTROL")?.read(0);
            if !control.is_current() {
                return Err(BpfError::Foreign(dir.to_owned()));
            }
            capacity = pinned_capacity(dir)?;
        }
        let first = instance(capacity, &control, features, pins)?;
        let source = Source { pins, instance: &first };
        let trie = source.open("PREFIXES6")?;
        let bpf = Self {
            capacity,
            control: source.mapped("CONTROL")?,
            buckets: source.mapped("BUCKETS")?,
            frontends: source.mapped("FRONTENDS")?,
            slots: source.mapped("SLOTS")?,
            backends: source.mapped("BACKENDS")?,
            egress: source.mapped("EGRESS")?,
            lines: source.mapped("LINES")?,
            blocks: source.mapped("BLOCKS")?,
            lists: source.mapped("LISTS")?,
            prefixes6: LpmTrie::try_from(Map::LpmTrie(trie))
                .map_err(|_| BpfError::Map("PREFIXES6"))?,
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

    /// Live counters, on mappings of their own.
    ///
    /// # Errors
    /// [`BpfError::Mmap`].
    pub fn counters(&self) -> Result<MappedCounters, BpfError> {
        let instance = self.instances.values().next().ok_or(BpfError::Map("REASON_COUNT"))?;
        let source = Source { pins: self.pins.as_deref(), instance };
        Ok(MappedCounters {
            cpus: self.control.read(0).cpus(),
            capacity: self.capacity,
            frontends: source.mapped("FRONTEND_COUNT")?,
            backends: source.mapped("BACKEND_COUNT")?,
            lists: source.mapped("LIST_COUNT")?,
            reasons: source.mapped("REASON_COUNT")?,
        })
    }

    /// Name, entries and bytes of every table, as the kernel made it.
    #[must_use]
    pub fn sizes(&self) -> Vec<(&'static str, u64, u64)> {
        let Some(instance) = self.instances.values().next() else { return Vec::new() };
        let source = Source { pins: self.pins.as_deref(), instance };
        let size = |name: &'static str| {
            let info = source.open(name).ok()?.info().ok()?;
            let entries = u64::from(info.max_entries());
            let entry = u64::from(info.value_size()).next_multiple_of(8);
            // Keys of arrays are not stored; those of hashes and tries are, with a header each.
            let key = match name {
                "FLOWS" | "FRAGMENTS" | "PREFIXES6" => {
                    u64::from(info.key_size()).next_multiple_of(8) + 48
                }
                _ => 0,
            };
            Some((name, entries, entries * (entry + key)))
        };
        MAPS.into_iter().filter_map(size).collect()
    }

    /// Bytes of all tables that are mapped, without counters.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.buckets.bytes()
            + self.frontends.bytes()
            + self.slots.bytes()
            + self.backends.bytes()
            + self.egress.bytes()
            + self.lines.bytes()
            + self.blocks.bytes()
    }
}

/// CPUs that a program may run on.
fn cpus() -> u32 {
    aya::util::nr_cpus().map_or(1, |n| n as u32)
}

fn pinned_capacity(dir: &Path) -> Result<Capacity, BpfError> {
    let entries = |name: &'static str| {
        let map = MapData::from_pin(dir.join(name)).map_err(|_| BpfError::Map(name))?;
        Ok(map.info().map_err(|_| BpfError::Map(name))?.max_entries())
    };
    let lines = entries("LINES")?;
    Ok(Capacity {
        buckets: entries("BUCKETS")?,
        frontends: entries("FRONTENDS")?,
        slots: entries("SLOTS")?,
        backends: entries("BACKENDS")?,
        egress: entries("EGRESS")?,
        lines: if lines == abi::prefix::LINES { lines } else { 0 },
        blocks: entries("BLOCKS")?,
        prefixes6: entries("PREFIXES6")?,
    })
}

fn instance(
    capacity: Capacity,
    control: &Control,
    features: u32,
    pins: Option<&Path>,
) -> Result<Instance, BpfError> {
    if let Some(dir) = pins
        && let Ok(program) = Xdp::from_pin(program_pin(dir, features), XdpAttachType::Interface)
    {
        return Ok(Instance::Pinned(Box::new(program)));
    }
    let Capacity { buckets, frontends, slots, backends, egress, lines, blocks, prefixes6 } =
        capacity;
    let cpus = control.cpus();
    let mask = buckets - 1;
    let (salt, seed) = (control.salt(), control.seed());
    let mut loader = EbpfLoader::new();
    loader
        .override_global("FEATURES", &features, true)
        .override_global("BUCKET_MASK", &mask, true)
        .override_global("SALT", &salt, true)
        .override_global("SEED", &seed, true)
        .override_global("FRONTEND_ROWS", &frontends, true)
        .override_global("BACKEND_ROWS", &backends, true)
        .map_max_entries("BUCKETS", buckets)
        .map_max_entries("FRONTENDS", frontends)
        .map_max_entries("SLOTS", slots)
        .map_max_entries("BACKENDS", backends)
        .map_max_entries("EGRESS", egress)
        .map_max_entries("LINES", lines.max(1))
        .map_max_entries("BLOCKS", blocks.max(1))
        .map_max_entries("PREFIXES6", prefixes6.max(1))
        .map_max_entries("LISTS", MAX_LISTS + 1)
        .map_max_entries("FRONTEND_COUNT", frontends * cpus)
        .map_max_entries("BACKEND_COUNT", backends * cpus)
        .map_max_entries("LIST_COUNT", LIST_ROWS * cpus)
        .map_max_entries("REASON_COUNT", REASON_ROWS * cpus);
    if let Some(dir) = pins {
        for name in MAPS {
            loader.map_pin_path(name, pin_of(dir, name));
        }
    }
    let refused = |detail: String| BpfError::Load { features, detail };
    let mut ebpf = loader.load(OBJECT).map_err(|e| refused(chain(&e)))?;
    let program: &mut Xdp = ebpf
        .program_mut("lb")
        .ok_or(BpfError::Map("lb"))?
        .try_into()
        .map_err(|e| refused(chain(&e)))?;
    program.load().map_err(|e| refused(chain(&e)))?;
    if features & feature::BALANCE != 0 {
        second(&mut ebpf, pins).map_err(refused)?;
    }
    let program: &mut Xdp = ebpf
        .program_mut("lb")
        .ok_or(BpfError::Map("lb"))?
        .try_into()
        .map_err(|e| refused(chain(&e)))?;
    if let Some(path) = pins.map(|dir| program_pin(dir, features)) {
        program.pin(&path).map_err(|e| BpfError::Pin { path, detail: chain(&e) })?;
    }
    Ok(Instance::Object(Box::new(ebpf)))
}

/// Loads the program that takes a second look, and puts it where the first one finds it. The map is what
/// keeps it.
fn second(ebpf: &mut Ebpf, pins: Option<&Path>) -> Result<(), String> {
    let program: &mut Xdp = ebpf
        .program_mut("lb_second")
        .ok_or_else(|| "lb_second is missing".to_owned())?
        .try_into()
        .map_err(|e| chain(&e))?;
    program.load().map_err(|e| chain(&e))?;
    let fd = program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(|e| chain(&e))?;
    let map = match pins {
        Some(dir) => {
            let data = MapData::from_pin(pin_of(dir, "JUMP")).map_err(|e| chain(&e))?;
            ProgramArray::try_from(Map::ProgramArray(data)).map_err(|e| chain(&e))?.set(0, &fd, 0)
        }
        None => {
            let map = ebpf.map_mut("JUMP").ok_or_else(|| "JUMP is missing".to_owned())?;
            ProgramArray::try_from(map).map_err(|e| chain(&e))?.set(0, &fd, 0)
        }
    };
    map.map_err(|e| chain(&e))
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

/// Where the program with these features is pinned: the name tells the object file, so that a program
/// of another build is never taken for this one's.
fn program_pin(dir: &Path, features: u32) -> PathBuf {
    let object = SipHasher13::new().hash(OBJECT);
    dir.join(format!("lb-{features:x}-{object:016x}"))
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
        let Instance::Object(ebpf) = self.instance else { return Err(BpfError::Map(name)) };
        match ebpf.map(name) {
            Some(
                Map::Array(map) | Map::LpmTrie(map) | Map::LruHashMap(map) | Map::ProgramArray(map),
            ) => {
                let fd = map.fd().as_fd().try_clone_to_owned();
                fd.map_err(|source| BpfError::Mmap { name, source })
                    .and_then(|fd| MapData::from_fd(fd).map_err(|_| BpfError::Map(name)))
            }
            _ => Err(BpfError::Map(name)),
        }
    }

    fn mapped<T: Pod>(&self, name: &'static str) -> Result<Mapped<T>, BpfError> {
        Mapped::new(&self.open(name)?, name)
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}

impl Tables for Bpf {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn control(&self) -> Control {
        self.control.read(0)
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
        self.egress.read(row)
    }

    fn list(&self, row: u32) -> ListRow {
        self.lists.read(row)
    }

    fn line(&self, index: u32) -> [u32; abi::prefix::LINE] {
        self.lines.read(index).words()
    }

    fn block(&self, row: u32) -> Box<[u8; 256]> {
        Box::new(*self.blocks.read(row).lists())
    }

    fn prefixes6(&self) -> Result<BTreeMap<Ipv6Net, u32>, ApplyError> {
        let failed = |source| ApplyError {
            what: "reading the IPv6 prefixes".to_owned(),
            source: io::Error::other(source),
        };
        let mut all = BTreeMap::new();
        for item in &self.prefixes6 {
            let (key, list) = item.map_err(failed)?;
            // The kernel keeps no longer prefix than the key has bits.
            if let Ok(net) = Ipv6Net::new(key.data().into(), key.prefix_len() as u8) {
                all.insert(net, list);
            }
        }
        Ok(all)
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
    fn carry_out(&mut self, op: &Op) -> Result<(), ApplyError> {
        match *op {
            Op::Egress(row, ref value) => self.egress.write(row, value),
            Op::Backend(row, ref value) => self.backends.write(row, value),
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
            Op::Frontend(row, ref value) => self.frontends.write(row, value),
            Op::FrontendRing(row, ring) => {
                self.frontends.store(row, Frontend::RING, ring.to_word());
            }
            Op::FrontendOldRing(row, ring) => {
                self.frontends.store(row, Frontend::OLD_RING, ring.to_word());
            }
            Op::FrontendAny(row, word) => self.frontends.store(row, Frontend::ANY, word),
            Op::Bucket { index, way, word } => {
                self.buckets.store(index, usize::from(way) * 8, word);
            }
            Op::List(row, ref value) => self.lists.write(row, value),
            Op::Block(index, ref lists) => self.write_block(index, lists),
            Op::Line(network, entry) => self.store_entry(network, entry.to_word()),
            Op::Lines(ref networks, entry) => {
                for network in networks.clone() {
                    self.store_entry(network, entry.to_word());
                }
            }
            Op::Prefix6(net, list) => {
                let key = Key::new(u32::from(net.prefix_len()), net.network().octets());
                self.prefixes6.insert(&key, list, 0).map_err(|e| refused(op, e))?;
            }
            Op::RemovePrefix6(net) => {
                let key = Key::new(u32::from(net.prefix_len()), net.network().octets());
                self.prefixes6.remove(&key).map_err(|e| refused(op, e))?;
            }
            Op::Flags(flags) => self.control.store(0, Control::FLAGS, flags),
            Op::Unserved(what) => self.control.store(0, Control::UNSERVED, what as u64),
            Op::Generation(n) => self.control.store(0, Control::GENERATION, n),
        }
        Ok(())
    }

    fn write_block(&self, index: u32, lists: &[u8; 256]) {
        for (i, &list) in lists.iter().enumerate() {
            let word = self.blocks.word(index, i / 8 * 8).as_ptr().cast::<u8>();
            // SAFETY: byte `i % 8` of a word inside the mapping.
            unsafe { AtomicU8::from_ptr(word.add(i % 8)) }.store(list, Ordering::Relaxed);
        }
        fence(Ordering::Release);
    }

    fn store_entry(&self, network: u32, entry: u32) {
        let line = network / abi::prefix::LINE as u32;
        let at = network as usize % abi::prefix::LINE;
        let word = self.lines.word(line, at / 2 * 8).as_ptr().cast::<u32>();
        // SAFETY: one half of a word inside the mapping, aligned to 4.
        unsafe { AtomicU32::from_ptr(word.add(at % 2)) }.store(entry, Ordering::Release);
    }
}

fn refused(op: &Op, error: aya::maps::MapError) -> ApplyError {
    ApplyError { what: format!("{op:?}"), source: io::Error::other(error) }
}

/// Counters in shared memory: reading them asks nobody.
pub struct MappedCounters {
    cpus: u32,
    capacity: Capacity,
    frontends: Mapped<Counter>,
    backends: Mapped<Counter>,
    lists: Mapped<Counter>,
    reasons: Mapped<ReasonCounter>,
}

impl MappedCounters {
    fn sum(&self, table: &Mapped<Counter>, rows: u32, row: u32) -> Count {
        let mut total = Count::default();
        if row >= rows {
            return total;
        }
        for cpu in 0..self.cpus {
            let c = table.read(cpu * rows + row);
            total.packets += c.packets;
            total.bytes += c.bytes;
            total.new_connections += c.new_connections;
        }
        total
    }
}

impl Counters for MappedCounters {
    fn frontend(&self, row: u32) -> Count {
        self.sum(&self.frontends, self.capacity.frontends, row)
    }

    fn backend(&self, row: u32) -> Count {
        self.sum(&self.backends, self.capacity.backends, row)
    }

    fn list(&self, row: u32) -> Count {
        self.sum(&self.lists, LIST_ROWS, row)
    }

    fn reasons(&self) -> Vec<(Reason, Count)> {
        let sum = |reason: &Reason| {
            let mut total = Count::default();
            for cpu in 0..self.cpus {
                let c = self.reasons.read(cpu * REASON_ROWS + *reason as u32);
                total.packets += c.packets;
                total.bytes += c.bytes;
            }
            (*reason, total)
        };
        Reason::ALL.iter().map(sum).collect()
    }
}
