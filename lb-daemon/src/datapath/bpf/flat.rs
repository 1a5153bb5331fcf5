//! Flat tables: maps of one element, which has all the rows, so that its address is a constant of the programs (see
//! `flat.rs` of theirs). The loader knows no such maps, so they are made here, and their addresses put into the object
//! file before it is loaded.

use std::{
    collections::BTreeMap,
    mem::offset_of,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use abi::{
    constants,
    flow::table::Entry,
    limits::{LIST_ROWS, MAX_LISTS, MAX_NAT_ADDRESSES, REASON_ROWS, WAYS, cpu_places},
    nat::quick::{self, PATHS},
    prefix::{Line, ListRow},
    summary,
    table::{Backend, Bucket, Control, Counter, Egress, Frontend, NatAddress, ReasonCounter, Way},
};
use aya::maps::{MapData, MapInfo};
use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_type};
use object::{
    Endianness, SectionIndex, SymbolIndex, elf,
    pod::bytes_of,
    read::elf::{FileHeader as _, SectionHeader as _, Sym as _},
};

use super::{super::Capacity, numbers::Numbers};
use crate::refusal::chain;

/// A kind of table: its name, and the bytes of a row.
struct Kind {
    name: &'static str,
    row: usize,
}

/// What the names of sections begin with that stand for tables in the programs' object files.
const SECTION: &str = ".flat.";

macro_rules! kinds {
    ($($name:literal: $row:ty),* $(,)?) => {
        [$(Kind {
            // Checked when this is compiled.
            name: constants::TABLES[constants::table($name)],
            row: size_of::<$row>(),
        }),*]
    };
}

const KINDS: [Kind; constants::TABLES.len()] = kinds![
    "CONTROL": Control,
    "VIPS": u64,
    "BUCKETS": Bucket,
    "FRONTENDS": Frontend,
    "SLOTS": u64,
    "BACKENDS": Backend,
    "EGRESS": Egress,
    "FLOWS": Entry,
    "FLOW_TAGS": u64,
    "NAT_FORTH": u64,
    "NAT_BACK": u64,
    "NAT_PATHS": quick::Path,
    "NAT_ADDRESSES": NatAddress,
    "WAYS": Way,
    "SUMMARY": u64,
    "FINE4": u64,
    "LINES": Line,
    "LISTS": ListRow,
    "FRONTEND_COUNT": Counter,
    "BACKEND_COUNT": Counter,
    "LIST_COUNT": Counter,
    "REASON_COUNT": ReasonCounter,
];

/// A flat table.
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) rows: u32,
    row: usize,
}

/// All of them.
pub(super) fn all(capacity: &Capacity, cpus: u32) -> Vec<Table> {
    let Capacity { buckets, frontends, slots, backends, egress, lines, .. } = *capacity;
    let rows = |name: &str| match name {
        "VIPS" => capacity.vip_words(),
        "BUCKETS" => buckets,
        "FRONTENDS" => frontends.next_power_of_two(),
        "SLOTS" => slots,
        "BACKENDS" => backends,
        // One more than may be used, as the first one is nobody's, and a power of two.
        "EGRESS" => egress * 2,
        "FLOWS" | "FLOW_TAGS" => capacity.flows,
        "NAT_FORTH" | "NAT_BACK" => quick::rows(capacity.nat),
        "NAT_PATHS" => PATHS,
        "NAT_ADDRESSES" => MAX_NAT_ADDRESSES,
        "WAYS" => WAYS,
        // Two halves each. The first one whether or not there are entries: IPv6 prefixes have none.
        "SUMMARY" => summary::WORDS * 2,
        "FINE4" => (capacity.fine4() * 2).max(1),
        "LINES" => (lines * 2).max(1),
        "LISTS" => MAX_LISTS + 1,
        "FRONTEND_COUNT" => frontends.next_power_of_two() * cpu_places(cpus),
        "BACKEND_COUNT" => backends * cpu_places(cpus),
        "LIST_COUNT" => LIST_ROWS * cpu_places(cpus),
        "REASON_COUNT" => REASON_ROWS * cpu_places(cpus),
        // CONTROL.
        _ => 1,
    };
    KINDS.iter().map(|kind| kind.table(rows(kind.name))).collect()
}

/// Whether it is a flat table.
pub(super) fn is(name: &str) -> bool {
    KINDS.iter().any(|kind| kind.name == name)
}

/// Rows of a map, and the bytes of each.
pub(super) fn rows(name: &str, info: &MapInfo) -> (u32, u32) {
    let size = info.value_size().next_multiple_of(8);
    match KINDS.iter().find(|kind| kind.name == name) {
        Some(kind) => (size / kind.row as u32, kind.row as u32),
        None => (info.max_entries(), size),
    }
}

impl Kind {
    const fn table(&self, rows: u32) -> Table {
        let Self { name, row } = *self;
        Table { name, rows, row }
    }
}

impl Table {
    /// Makes it, and pins it there, if it is not there already.
    pub(super) fn open(&self, pin: Option<&Path>) -> Result<MapData, String> {
        if let Some(path) = pin
            && let Ok(map) = MapData::from_pin(path)
        {
            return Ok(map);
        }
        let bytes = u32::try_from(self.rows as usize * self.row).map_err(|e| e.to_string())?;
        let array = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
        let map = aya_obj::Map::new_from_params(array, 4, bytes, 1, BPF_F_MMAPABLE);
        let map = MapData::create(map, self.name, None).map_err(|e| chain(&e))?;
        if let Some(path) = pin {
            map.pin(path).map_err(|e| chain(&e))?;
        }
        Ok(map)
    }

    /// The same table, as other programs have it.
    pub(super) fn pinned(name: &str, path: &Path) -> Option<(Self, MapData)> {
        let kind = KINDS.iter().find(|kind| kind.name == name)?;
        let map = MapData::from_pin(path).ok()?;
        let (rows, _) = rows(name, &map.info().ok()?);
        Some((kind.table(rows), map))
    }
}

/// The object file with these numbers in the places of constants, and the addresses of these maps where it names
/// sections of tables, which no loader knows.
///
/// Each such place is a load of a 64-bit constant (RFC 9669 section 5.4): the source register says that it is an
/// address in a map, the first immediate which map, the second where in it. What is relocated here is taken out of
/// the file's relocations.
pub(super) fn linked(
    object: &[u8],
    maps: &BTreeMap<&str, MapData>,
    numbers: &Numbers,
) -> Result<Vec<u8>, String> {
    const ADDRESS: u8 = 2 << 4;
    let mut linked = object.to_vec();
    let header = elf::FileHeader64::<Endianness>::parse(object).map_err(|e| e.to_string())?;
    let endian = header.endian().map_err(|e| e.to_string())?;
    let sections = header.sections(endian, object).map_err(|e| e.to_string())?;
    let symbols = sections.symbols(endian, object, elf::SHT_SYMTAB).map_err(|e| e.to_string())?;
    let name = |index| {
        let section = sections.section(index).ok()?;
        std::str::from_utf8(sections.section_name(endian, section).ok()?).ok()
    };
    let mut fds = BTreeMap::new();
    for (index, _) in sections.enumerate() {
        let Some(table) = name(index).and_then(|name| name.strip_prefix(SECTION)) else { continue };
        let map = maps.get(table).ok_or_else(|| format!("there is no table {table}"))?;
        fds.insert(index.0, map.fd().as_fd().as_raw_fd());
    }
    for (_, section) in sections.enumerate() {
        if section.sh_flags(endian) & u64::from(elf::SHF_EXECINSTR) == 0 {
            continue;
        }
        let (at, len) = (section.sh_offset(endian) as usize, section.sh_size(endian) as usize);
        numbers.write(linked.get_mut(at..at + len).ok_or("a section beyond the file")?)?;
    }
    for (index, section) in sections.enumerate() {
        let Some((relocations, _)) = section.rel(endian, object).map_err(|e| e.to_string())? else {
            continue;
        };
        let target = SectionIndex(section.sh_info(endian) as usize);
        let code = sections.section(target).map_err(|e| e.to_string())?;
        if code.sh_flags(endian) & u64::from(elf::SHF_EXECINSTR) == 0 {
            continue;
        }
        let mut kept = Vec::new();
        for relocation in relocations {
            let symbol = SymbolIndex(relocation.r_sym(endian) as usize);
            let symbol = symbols.symbol(symbol).map_err(|e| e.to_string())?;
            let Some(fd) = fds.get(&usize::from(symbol.st_shndx(endian))) else {
                kept.extend_from_slice(bytes_of(relocation));
                continue;
            };
            let at = (code.sh_offset(endian) + relocation.r_offset.get(endian)) as usize;
            let instruction = linked.get_mut(at..at + 16).ok_or("a relocation beyond the file")?;
            instruction[1] = instruction[1] & 0xf | ADDRESS;
            instruction[4..8].copy_from_slice(&fd.to_ne_bytes());
            instruction[12..16].copy_from_slice(&(symbol.st_value(endian) as u32).to_ne_bytes());
        }
        let at = section.sh_offset(endian) as usize;
        linked[at..at + kept.len()].copy_from_slice(&kept);
        let size = header.e_shoff(endian) as usize
            + index.0 * size_of::<elf::SectionHeader64<Endianness>>()
            + offset_of!(elf::SectionHeader64<Endianness>, sh_size);
        linked[size..size + 8].copy_from_slice(&(kept.len() as u64).to_ne_bytes());
    }
    Ok(linked)
}
