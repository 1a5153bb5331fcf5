//! The daemon's pinned tables, read through mappings of our own, and its memory.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use abi::table::{Backend, Control, State};
use anyhow::Context as _;
use aya::maps::MapData;
use lb_tests::daemon::Daemon;
use memmap2::{Mmap, MmapOptions};
use serde::Serialize;

/// Words of a ring of ten backends, with the one before it.
pub(super) const RING: u32 = 1022;

/// Some tables of the set in force.
pub(super) struct Tables {
    control: Mmap,
    slots: Mmap,
    backends: Mmap,
    noted: Vec<u64>,
}

impl Tables {
    pub(super) fn open(bpffs: &Path) -> anyhow::Result<Self> {
        let set = sets(bpffs)?.into_iter().next().context("no tables are pinned")?;
        Ok(Self {
            control: mapped(&set.join("CONTROL"))?,
            slots: mapped(&set.join("SLOTS"))?,
            backends: mapped(&set.join("BACKENDS"))?,
            noted: Vec::new(),
        })
    }

    /// Changes in force.
    pub(super) fn generation(&self) -> u64 {
        word(&self.control, Control::GENERATION)
    }

    /// Remembers all rings as they are.
    pub(super) fn note_rings(&mut self) {
        self.noted = self.rings().collect();
    }

    /// Indexes of words of the ring arena that are not as noted.
    pub(super) fn moved(&self) -> Vec<usize> {
        let pairs = self.rings().zip(&self.noted).enumerate();
        pairs.filter(|(_, (now, before))| now != *before).map(|(index, _)| index).collect()
    }

    fn rings(&self) -> impl Iterator<Item = u64> {
        (0..self.slots.len() / 8).map(|index| word(&self.slots, index * 8))
    }

    /// Row of the backend with this address.
    pub(super) fn row_of(&self, address: Ipv4Addr) -> Option<usize> {
        let wanted = abi::addr::Addr::from(IpAddr::from(address));
        let size = size_of::<Backend>();
        (0..self.backends.len() / size).find(|row| {
            let at = row * size;
            word(&self.backends, at) == wanted.hi() && word(&self.backends, at + 8) == wanted.lo()
        })
    }

    /// Whether a backend takes packets.
    pub(super) fn is_up(&self, row: usize) -> bool {
        let state = word(&self.backends, row * size_of::<Backend>() + Backend::STATE);
        !State::from_word(state).down
    }
}

fn word(map: &Mmap, at: usize) -> u64 {
    assert!(at.is_multiple_of(8) && at + 8 <= map.len());
    // SAFETY: inside the mapping and aligned, as it begins on a page; volatile, as the daemon stores.
    unsafe { map.as_ptr().add(at).cast::<u64>().read_volatile() }
}

fn mapped(path: &Path) -> anyhow::Result<Mmap> {
    let map = MapData::from_pin(path)?;
    let info = map.info()?;
    let bytes = info.max_entries() as usize * (info.value_size() as usize).next_multiple_of(8);
    // SAFETY: a BPF array does not shrink; its words are read as volatile only.
    let mapping = unsafe { MmapOptions::new().len(bytes).map(&map.fd().as_fd()) };
    mapping.with_context(|| format!("cannot map {}", path.display()))
}

/// Directories of sets of tables.
fn sets(bpffs: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(bpffs)? {
        let path = entry?.path();
        if path.join("CONTROL").exists() {
            found.push(path);
        }
    }
    Ok(found)
}

/// What a daemon takes, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Memory {
    /// Resident, without the tables that it maps.
    pub(super) process: u64,
    /// All of its tables in the kernel.
    pub(super) tables: u64,
}

pub(super) fn memory_of(daemon: &Daemon) -> anyhow::Result<Memory> {
    let id = daemon.id().context("the daemon does not run")?;
    let smaps = fs::read_to_string(format!("/proc/{id}/smaps"))?;
    let mut process = 0;
    let mut is_table = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Rss:") if !is_table => {
                let kilobytes: u64 = words.next().context("a number")?.parse()?;
                process += kilobytes * 1024;
            }
            // Head of a mapping: address, permissions, offset, device, inode, name.
            Some(range) if !range.ends_with(':') => is_table = line.contains("bpf-map"),
            _ => {}
        }
    }
    let mut tables = 0;
    let mut directories = sets(daemon.bpffs())?;
    directories.push(daemon.bpffs().to_path_buf());
    for directory in directories {
        for entry in fs::read_dir(&directory)? {
            // Programs, links and directories are pinned there too.
            if let Ok(map) = MapData::from_pin(entry?.path()) {
                tables += locked(&map)?;
            }
        }
    }
    Ok(Memory { process, tables })
}

/// Bytes that the kernel counts for a map.
fn locked(map: &MapData) -> anyhow::Result<u64> {
    let fd = map.fd().as_fd().as_raw_fd();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(line.context("no memlock")?.trim().parse()?)
}
