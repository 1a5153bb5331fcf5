//! Loading the programs, or taking over those that are pinned.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use abi::{
    constants,
    event::STREAMS,
    guard::LIMIT_ROWS,
    limits::{MAX_LISTS, behind, cpu_places, feature},
    nat::clients::buckets as buckets_of_clients,
    table::Control,
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, ProgramArray},
    programs::Xdp,
};
use aya_obj::programs::XdpAttachType;
use siphasher::sip::SipHasher13;

use super::{
    super::Capacity,
    BpfError, MAPS,
    flat::{self, Table},
    numbers::Numbers,
    pin_of,
};
use crate::refusal::chain;

/// The XDP program's object file.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xdp.o"));

/// Programs that a packet goes on to from the first one, and their places in `JUMP`.
const BEHIND: [(&str, u32); 3] = [
    ("lb_second", behind::SECOND),
    ("lb_choice", behind::CHOICE),
    ("lb_chance", behind::SECOND_CHANCE),
];

/// Those that translate, which are needed where there is a NAT table: half of what the verifier goes through.
const BEHIND_NAT: [(&str, u32); 6] = [
    ("lb_nat", behind::NAT),
    ("lb_nat_steer", behind::NAT_STEER),
    ("lb_nat_tags", behind::NAT_TAGS),
    ("lb_nat_parts", behind::NAT_PARTS),
    ("lb_nat_icmp", behind::NAT_ICMP),
    ("lb_nat_other", behind::NAT_OTHER),
];

/// The same for packets to this machine.
const BEHIND_HOST: [(&str, u32); 1] = [("lb_syn", behind::SYN)];

/// A loaded program.
pub(super) enum Instance {
    /// Loaded by this process, with its maps.
    Object(Box<Loaded>),
    /// Loaded by an earlier process from the same object file, and pinned.
    Pinned(Box<Xdp>),
}

/// Programs and their maps.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    /// Flat tables, by name.
    pub(super) flat: BTreeMap<&'static str, MapData>,
}

impl Instance {
    pub(super) fn program(&mut self) -> Result<&mut Xdp, BpfError> {
        match self {
            Self::Object(loaded) => {
                let program = loaded.ebpf.program_mut("lb").ok_or(BpfError::Map("lb"))?;
                program.try_into().map_err(|_| BpfError::Map("lb"))
            }
            Self::Pinned(program) => Ok(program),
        }
    }
}

/// How large the pinned tables are.
pub(super) fn pinned_capacity(dir: &Path) -> Result<Capacity, BpfError> {
    let entries = |name: &'static str| {
        let map = MapData::from_pin(dir.join(name)).map_err(|_| BpfError::Map(name))?;
        let info = map.info().map_err(|_| BpfError::Map(name))?;
        Ok(flat::rows(name, &info).0)
    };
    Ok(Capacity {
        buckets: entries("BUCKETS")?,
        frontends: entries("FRONTENDS")?,
        slots: entries("SLOTS")?,
        backends: entries("BACKENDS")?,
        egress: entries("EGRESS")? / 2,
        flows: entries("FLOWS")?,
        lines: entries("LINES")? / 2,
        bitmaps: entries("BITMAPS")? / 2,
        blocks: entries("BLOCKS")? / 2,
        filter6: entries("FILTER6")? / 2,
        buckets6: entries("BUCKETS6")? / 2,
        nat: entries("NAT")?,
        nat_ports: 0,
    })
}

/// Bytes of a bucket of the frontend table.
const BUCKET: u64 = size_of::<abi::table::Bucket>() as u64;

/// 2^32 divided by the ticks of the kernel's clock in a second.
pub(super) fn tick() -> u64 {
    // The resolution of the coarse clock is a tick.
    let resolution = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE);
    let nanos = resolution.map_or(4_000_000, |r| r.tv_nsec().max(1)) as u64;
    (nanos << 32) / 1_000_000_000
}

/// What stands in the code of a program with these features.
fn numbers(capacity: &Capacity, control: &Control, features: u32, tables: &[Table]) -> Numbers {
    let mut numbers = Numbers::of(tables);
    for (number, value) in [
        (constants::SALT, control.salt()),
        (constants::SEED, control.seed()),
        // A word is of 8 bytes.
        (constants::VIP_SHIFT, u64::from(capacity.vip_shift()) - 3),
        (constants::VIP_MASK, u64::from(capacity.vip_words() - 1) * 8),
        (constants::BUCKET_MASK, u64::from(capacity.buckets - 1) * BUCKET),
        (constants::TICK, tick()),
        (constants::NAT_MASK, (capacity.nat - 1).into()),
        (constants::NAT_PORTS, control.nat_ports().into()),
        (constants::LINE_ROWS, capacity.lines.into()),
        (constants::BITMAP_ROWS, capacity.bitmaps.into()),
        (constants::BLOCK_ROWS, capacity.blocks.into()),
        (constants::FILTER6_ROWS, capacity.filter6.into()),
        (constants::BUCKET6_ROWS, capacity.buckets6.into()),
        (constants::CPU_MASK, (cpu_places(control.cpus()) - 1).into()),
    ] {
        numbers.set(number, value);
    }
    for bits in 0..constants::FEATURES {
        numbers.set(constants::FEATURES | bits, u64::from(features & bits != 0));
    }
    numbers
}

/// The program with these features: the pinned one, if it is of the same object file, or a new one.
pub(super) fn instance(
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
    let Capacity { bitmaps, blocks, filter6, buckets6, .. } = capacity;
    let cpus = control.cpus();
    let tables = flat::all(&capacity, cpus);
    let numbers = numbers(&capacity, control, features, &tables);
    let mut loader = EbpfLoader::new();
    loader
        .map_max_entries("NAT", capacity.nat)
        .map_max_entries("NAT_VLANS", capacity.nat)
        .map_max_entries("NAT_CLIENTS", buckets_of_clients(capacity.nat))
        // Two halves each.
        .map_max_entries("BITMAPS", (bitmaps * 2).max(1))
        .map_max_entries("BLOCKS", (blocks * 2).max(1))
        .map_max_entries("FILTER6", filter6 * 2)
        .map_max_entries("BUCKETS6", buckets6 * 2)
        .map_max_entries("SCOPES", MAX_LISTS + 1)
        .map_max_entries("LIMIT_COUNT", LIMIT_ROWS * cpus)
        .map_max_entries("SAMPLERS", STREAMS * cpus);
    let refused = |detail: String| BpfError::Load { features, detail };
    let mut flat = BTreeMap::new();
    for table in &tables {
        let pin = pins.map(|dir| pin_of(dir, table.name));
        let map = table.open(pin.as_deref());
        flat.insert(table.name, map.map_err(|e| refused(format!("{}: {e}", table.name)))?);
    }
    if let Some(dir) = pins {
        for name in MAPS {
            loader.map_pin_path(name, pin_of(dir, name));
        }
        // Not shared: programs that a packet goes on to have the features of the first one, and know by maps of their own
        // what it has found.
        loader.map_pin_path(JUMP, jump_pin(dir, features));
    }
    let object = flat::linked(OBJECT, &flat, &numbers).map_err(refused)?;
    let mut ebpf = loader.load(&object).map_err(|e| refused(chain(&e)))?;
    let program: &mut Xdp = ebpf
        .program_mut("lb")
        .ok_or(BpfError::Map("lb"))?
        .try_into()
        .map_err(|e| refused(chain(&e)))?;
    program.load().map_err(|e| refused(chain(&e)))?;
    if features & (feature::BALANCE | feature::DECAP) != 0 {
        load_behind(&mut ebpf, &BEHIND).map_err(refused)?;
        if capacity.nat > 1 {
            load_behind(&mut ebpf, &BEHIND_NAT).map_err(refused)?;
        }
    }
    if features & feature::SYN_PROXY != 0 {
        load_behind(&mut ebpf, &BEHIND_HOST).map_err(refused)?;
    }
    let program: &mut Xdp = ebpf
        .program_mut("lb")
        .ok_or(BpfError::Map("lb"))?
        .try_into()
        .map_err(|e| refused(chain(&e)))?;
    if let Some(path) = pins.map(|dir| program_pin(dir, features)) {
        program.pin(&path).map_err(|e| BpfError::Pin { path, detail: chain(&e) })?;
    }
    Ok(Instance::Object(Box::new(Loaded { ebpf, flat })))
}

/// Loads the programs that a packet goes on to, and puts them where the first one finds them. The map is
/// what keeps them.
fn load_behind(ebpf: &mut Ebpf, programs: &[(&str, u32)]) -> Result<(), String> {
    for &(name, place) in programs {
        let program: &mut Xdp = ebpf
            .program_mut(name)
            .ok_or_else(|| format!("{name} is missing"))?
            .try_into()
            .map_err(|e| format!("{name}: {}", chain(&e)))?;
        program.load().map_err(|e| format!("{name}: {}", chain(&e)))?;
        let fd = program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(|e| chain(&e))?;
        let map = ebpf.map_mut(JUMP).ok_or_else(|| format!("{JUMP} is missing"))?;
        let mut jump = ProgramArray::try_from(map).map_err(|e| chain(&e))?;
        jump.set(place, &fd, 0).map_err(|e| chain(&e))?;
    }
    Ok(())
}

/// Where the program with these features is pinned: the name tells the object file, so that a program
/// of another build is never taken for this one's.
fn program_pin(dir: &Path, features: u32) -> PathBuf {
    dir.join(format!("{PROGRAM}{features:x}-{}", *BUILD))
}

/// Where the programs that it goes on to are pinned.
fn jump_pin(dir: &Path, features: u32) -> PathBuf {
    dir.join(format!("{JUMP}-{features:x}-{}", *BUILD))
}

/// Tells the object file: it is large enough to be read once.
static BUILD: LazyLock<String> =
    LazyLock::new(|| format!("{:016x}", SipHasher13::new().hash(OBJECT)));

/// Removes programs of other builds, and what they go on to, which nothing is attached to any longer.
pub(super) fn remove_other_builds(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if (name.starts_with(PROGRAM) || name.starts_with(JUMP))
            && !name.ends_with(&*BUILD)
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::warn!("{}: {error}", entry.path().display());
        }
    }
}

/// The map of programs that a packet goes on to.
const JUMP: &str = "JUMP";

/// What the names of pinned programs begin with.
const PROGRAM: &str = "lb-";

/// The program with this number, of those pinned in the sets of tables below `root`. To ask the kernel itself for one by
/// its number takes `CAP_SYS_ADMIN`.
pub(super) fn pinned_program(root: &Path, id: u32) -> Option<Xdp> {
    let sets = fs::read_dir(root).ok()?.flatten();
    let pins = sets.filter_map(|set| fs::read_dir(set.path()).ok()).flatten().flatten();
    pins.filter(|pin| pin.file_name().to_string_lossy().starts_with(PROGRAM))
        .filter_map(|pin| Xdp::from_pin(pin.path(), XdpAttachType::Interface).ok())
        .find(|program| program.info().is_ok_and(|info| info.id() == id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_nobody_made_is_named() {
        let none = Numbers::of([]);
        let error = flat::linked(OBJECT, &BTreeMap::new(), &none).unwrap_err();
        let name = error.strip_prefix("there is no table ").unwrap_or_default();
        assert!(flat::is(name), "{error}");
        assert!(flat::linked(&OBJECT[..1000], &BTreeMap::new(), &none).is_err());
    }
}
