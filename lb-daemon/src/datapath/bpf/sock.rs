//! The programs at the socket, over the tables of a [`Bpf`].

use std::{os::fd::AsFd, path::Path};

use abi::constants;
use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, CgroupSockAddr},
};

use super::{
    Bpf, BpfError,
    flat::{self, Table},
    numbers::Numbers,
    pin_of,
};
use crate::refusal::chain;

/// The object file of the programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sock.o"));

/// Tables of the XDP program that these read, and the one of their own.
const MAPS: [&str; 5] = ["BUCKETS", "FRONTENDS", "SLOTS", "BACKENDS", "PEERS"];

/// All programs, in the order in which they are attached: a process that is given a backend is shown
/// the service from the first call on.
const PROGRAMS: [&str; 8] = [
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "sendmsg4",
    "sendmsg6",
    "connect4",
    "connect6",
];

/// Loaded programs; what they are attached to, they leave when this is dropped.
pub struct Sock {
    ebpf: Ebpf,
}

impl Bpf {
    /// Loads the programs that give processes of this machine a backend when they connect to a
    /// service. They read these tables, which must be pinned.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn sock(&self) -> Result<Sock, BpfError> {
        let dir =
            self.pins.as_deref().ok_or_else(|| refused("the tables are not pinned".into()))?;
        Sock::load(dir, self.control.read(0).salt())
    }
}

impl Sock {
    fn load(dir: &Path, salt: u64) -> Result<Self, BpfError> {
        let mut loader = EbpfLoader::new();
        let mut tables = Vec::new();
        for name in MAPS {
            let path = pin_of(dir, name);
            if flat::is(name) {
                tables.push(Table::pinned(name, &path).ok_or(BpfError::Map(name))?);
            } else {
                loader.map_pin_path(name, path);
            }
        }
        let mut numbers = Numbers::of(tables.iter().map(|(table, _)| table));
        numbers.set(constants::SALT, salt);
        let maps = tables.into_iter().map(|(table, map)| (table.name, map)).collect();
        let object = flat::linked(OBJECT, &maps, &numbers).map_err(refused)?;
        let mut sock = Self { ebpf: loader.load(&object).map_err(|e| refused(chain(&e)))? };
        for name in PROGRAMS {
            sock.program(name)?.load().map_err(|e| refused(format!("{name}: {}", chain(&e))))?;
        }
        Ok(sock)
    }

    /// Attaches all of them to a directory of the cgroup file system (version 2): they act on the
    /// processes in it and below it, beside whatever else is attached there.
    ///
    /// # Errors
    /// [`BpfError::Sock`]; those attached before the one that failed are detached by a drop.
    pub fn attach(&mut self, cgroup: impl AsFd) -> Result<(), BpfError> {
        for name in PROGRAMS {
            // With a link, `Single` sets no flag, and the kernel lets several programs share the place.
            self.program(name)?
                .attach(cgroup.as_fd(), CgroupAttachMode::Single)
                .map_err(|e| refused(format!("attaching {name}: {}", chain(&e))))?;
        }
        Ok(())
    }

    fn program(&mut self, name: &'static str) -> Result<&mut CgroupSockAddr, BpfError> {
        let program = self.ebpf.program_mut(name).ok_or(BpfError::Map(name))?;
        program.try_into().map_err(|_| BpfError::Map(name))
    }
}

fn refused(detail: String) -> BpfError {
    BpfError::Sock { detail }
}
