//! The sets of tables in the kernel: which one is in force, when a larger one is needed, and when
//! what was given back may be used again.
//!
//! ```text
//! DIR/vN-RATES, vN-LIST_COUNT, ...   N: version of the layout; maps that all sets share
//! DIR/vN-0/CONTROL, BUCKETS, ...     a set of tables, and the programs that read it (lb-...)
//! DIR/vN-0/ready/                    it is whole; one without is the rest of a crash, and removed
//! DIR/links/xdp-3                    the link of interface 3
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use abi::{
    limits::{
        ABI_VERSION, FLAT_BYTES, FLOWS, MAX_BACKENDS, MAX_BITMAPS, MAX_BLOCKS, MAX_BUCKETS,
        MAX_BUCKETS6, MAX_EGRESS, MAX_FILTER6, MAX_FRONTENDS, MAX_SLOTS, cpu_places,
    },
    reason::Reason,
    table::Counter,
};
use arc_swap::ArcSwap;
use config::model::{DesiredState, Forwarding};

use super::policy;
use crate::{
    conntrack::{Connection, Growth, NatUse, Visit},
    datapath::{
        ApplyError, Capacity, Datapath, Op, Tables,
        bpf::{Bpf, BpfError, Early, Events, MappedCounters, cpus},
    },
    plan::prefixes::Needs,
    refusal::RIGHTS,
    view::{Count, Counters},
};

/// Its presence says that a set of tables is whole.
pub(super) const READY: &str = "ready";
/// Directory of the links' pins.
pub(super) const LINKS: &str = "links";

/// Counters of whichever set of tables is in force.
pub(super) struct LiveCounters {
    own: ArcSwap<MappedCounters>,
    /// Connections that got no NAT port.
    pub(super) nat_refused: Mutex<Growth>,
    /// Those of identity policy.
    pub(super) policy: Arc<policy::LiveCounters>,
}

impl LiveCounters {
    /// [`MappedCounters::free_nat_paths`]; it waits for running programs.
    pub(super) fn free_nat_paths(&self) -> u32 {
        self.own.load_full().free_nat_paths()
    }
}

impl Counters for LiveCounters {
    fn frontend(&self, row: u32) -> Count {
        self.own.load().frontend(row)
    }

    fn backend(&self, row: u32) -> Count {
        self.own.load().backend(row)
    }

    fn active(&self, row: u32) -> u64 {
        self.own.load().active(row)
    }

    fn not_admitted(&self) -> u64 {
        self.own.load().not_admitted()
    }

    fn connections(&self, visit: &mut dyn FnMut(&Connection) -> Visit) {
        // Not guarded: that would hold up a table's replacement for as long.
        self.own.load_full().connections(visit);
    }

    fn nat(&self) -> NatUse {
        let refused = self.nat_refused.lock().unwrap_or_else(PoisonError::into_inner).lately();
        NatUse { refused, ..self.own.load_full().nat() }
    }

    fn list(&self, row: u32) -> Count {
        self.own.load().list(row)
    }

    fn rule(&self, row: u32) -> Count {
        self.policy.rule(row)
    }

    fn limit(&self, row: u32) -> Count {
        self.own.load().limit(row)
    }

    fn reasons(&self) -> Vec<(Reason, Count)> {
        let mut all = self.own.load().reasons();
        for (reason, count) in &mut all {
            let more = self.policy.reason(*reason);
            count.packets += more.packets;
            count.bytes += more.bytes;
        }
        all
    }
}

/// Why the kernel's side could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum KernelError {
    /// A directory of pins.
    #[error("{path}: {source}")]
    Directory {
        /// It.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is not on a BPF file system.
    #[error(
        "{0} is not on a BPF file system; `mount -t bpf bpf /sys/fs/bpf` makes one. In a network namespace, enter it \
         with `nsenter --net=/run/netns/NAME`: `ip netns exec` mounts a /sys of its own, in which there is none"
    )]
    NotBpffs(PathBuf),
    /// Tables or programs.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Loading, without the right to do it.
    #[error("{0}: {RIGHTS}")]
    Privileges(BpfError),
    /// Filling larger tables.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// More than any table holds.
    #[error("{table}: {wanted} entries are wanted, and at most {most} are possible")]
    Limit {
        /// Name of the table.
        table: &'static str,
        /// Entries wanted.
        wanted: u64,
        /// The bound.
        most: u32,
    },
}

/// The set of tables in force.
pub(super) struct Kernel {
    root: PathBuf,
    number: u32,
    features: u32,
    bpf: Bpf,
    counters: Arc<LiveCounters>,
}

impl Kernel {
    /// Takes over the newest whole set of tables below `root`, or makes one with room for `needs`.
    /// Also says which it was: true for taken over.
    ///
    /// # Errors
    /// [`KernelError`].
    pub(super) fn open(
        root: &Path,
        needs: Capacity,
        seed: u64,
        features: u32,
    ) -> Result<(Self, bool), KernelError> {
        make_root(root)?;
        fs::create_dir_all(root.join(LINKS)).map_err(|source| directory(root, source))?;
        let mut newest = None;
        for (path, number) in sets(root).map_err(|source| directory(root, source))? {
            if path.join(READY).is_dir() {
                newest = newest.max(Some(number));
            } else {
                remove_set(&path);
            }
        }
        let number = newest.unwrap_or(0);
        let dir = set(root, number);
        let bpf = match newest {
            Some(_) => Bpf::load(needs, 0, seed, features, Some(&dir))?,
            None => make(&dir, needs, seed, features)?,
        };
        let counters = Arc::new(LiveCounters {
            own: ArcSwap::from_pointee(bpf.counters()?),
            nat_refused: Mutex::default(),
            policy: Arc::default(),
        });
        let kernel = Self { root: root.to_owned(), number, features, bpf, counters };
        if newest.is_none() {
            kernel.mark_ready()?;
        }
        Ok((kernel, newest.is_some()))
    }

    /// Puts a set of tables with room for `needs` beside the one in force and fills it with the same
    /// rows. Interfaces go on with the old one until they are attached anew; then
    /// [`Self::remove_others`] removes it. Prefixes are not copied.
    ///
    /// # Errors
    /// [`KernelError`]; the set in force stays.
    pub(super) fn grow(&mut self, mut needs: Capacity, seed: u64) -> Result<(), KernelError> {
        loop {
            let number = self.number + 1;
            let dir = set(&self.root, number);
            remove_set(&dir);
            self.bpf.share_connections(&dir, &needs)?;
            let mut bpf = make(&dir, needs, seed, self.features)?;
            match bpf.copy_rows(&self.bpf) {
                Ok(()) => {}
                Err(full) if needs.buckets >= MAX_BUCKETS => return Err(full.into()),
                Err(_) => {
                    needs.buckets *= 2;
                    continue;
                }
            }
            bpf.copy_counters(&self.bpf);
            self.counters.own.store(Arc::new(bpf.counters()?));
            self.bpf = bpf;
            self.number = number;
            return self.mark_ready();
        }
    }

    fn mark_ready(&self) -> Result<(), KernelError> {
        let path = set(&self.root, self.number).join(READY);
        fs::create_dir(&path).map_err(|source| directory(&path, source))
    }

    /// Removes every set of tables but the one in force, what other versions shared, and programs of other builds.
    pub(super) fn remove_others(&self) {
        self.bpf.remove_other_builds();
        let Ok(all) = sets(&self.root) else { return };
        for (path, number) in all {
            if number != self.number || path != set(&self.root, number) {
                remove_set(&path);
            }
        }
        let own = format!("v{ABI_VERSION}-");
        for path in pinned(&self.root).unwrap_or_default() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with(&own) {
                // A directory of another version, or a map that its sets shared.
                if fs::remove_file(&path).is_err() {
                    remove_set(&path);
                }
            }
        }
    }

    /// The tables and programs in force.
    pub(super) fn bpf(&mut self) -> &mut Bpf {
        &mut self.bpf
    }

    /// Fragments that came before their first one, of whichever set of tables is in force.
    ///
    /// # Errors
    /// [`BpfError`].
    pub(super) fn early(&self) -> Result<Early, BpfError> {
        self.bpf.early()
    }

    /// Samples of packets, likewise.
    ///
    /// # Errors
    /// [`BpfError`].
    pub(super) fn events(&self) -> Result<Events, BpfError> {
        self.bpf.events()
    }

    /// The tables in force, to be read.
    #[must_use]
    pub(super) fn tables(&self) -> &dyn Tables {
        &self.bpf
    }

    /// Live counters of whatever is in force.
    #[must_use]
    pub(super) fn counters(&self) -> Arc<LiveCounters> {
        Arc::clone(&self.counters)
    }

    /// Carries out operations.
    ///
    /// # Errors
    /// At the first that the kernel refuses.
    pub(super) fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        self.bpf.apply(ops)
    }
}

fn directory(path: &Path, source: io::Error) -> KernelError {
    KernelError::Directory { path: path.to_owned(), source }
}

fn set(root: &Path, number: u32) -> PathBuf {
    root.join(format!("v{ABI_VERSION}-{number}"))
}

/// The directories of sets of this version, with their numbers.
fn sets(root: &Path) -> io::Result<Vec<(PathBuf, u32)>> {
    let prefix = format!("v{ABI_VERSION}-");
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix(&prefix)?.parse().ok());
        if let Some(number) = number
            && entry.file_type()?.is_dir()
        {
            found.push((entry.path(), number));
        }
    }
    Ok(found)
}

/// Everything of any version in `root` but the links: sets of tables, and maps that they share.
pub(super) fn pinned(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let version =
            name.to_str().and_then(|n| n.strip_prefix('v')?.split_once('-')?.0.parse().ok());
        if version.is_some_and(|_: u32| true) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes a set of tables, its mark first, as far as it is there.
fn remove_set(path: &Path) {
    let _ = fs::remove_dir(path.join(READY));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
    if let Err(error) = fs::remove_dir(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove tables that nobody uses");
    }
}

fn make(dir: &Path, needs: Capacity, seed: u64, features: u32) -> Result<Bpf, KernelError> {
    fs::create_dir_all(dir).map_err(|source| directory(dir, source))?;
    // Nobody who chooses addresses and ports of services may know the buckets that they come into.
    let salt = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), dir);
    Bpf::load(needs, salt, seed, features, Some(dir)).map_err(|error| {
        remove_set(dir);
        if may_load() { error.into() } else { KernelError::Privileges(error) }
    })
}

/// Whether this process has the capabilities that loading needs; unknown counts as yes.
pub(crate) fn may_load() -> bool {
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(set) = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()) else {
        return true;
    };
    let has = |capability: u32| set >> capability & 1 == 1;
    has(NET_ADMIN) && (has(SYS_ADMIN) || (has(BPF) && has(PERFMON)))
}

/// Makes the directory that everything is pinned in.
///
/// # Errors
/// It would not be on a BPF file system, or the kernel refuses.
pub(super) fn make_root(root: &Path) -> Result<(), KernelError> {
    // Asked before anything is made: a directory of another file system would be left behind.
    let nearest = root.ancestors().find(|path| path.exists());
    if !nearest.is_some_and(is_bpffs) {
        return Err(KernelError::NotBpffs(root.to_owned()));
    }
    fs::create_dir_all(root).map_err(|source| directory(root, source))
}

pub(crate) fn is_bpffs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

/// Whether any service is behind NAT.
pub(super) fn has_nat(wanted: &DesiredState) -> bool {
    wanted.services.values().any(|service| service.forwarding == Forwarding::Nat)
}

/// Connection entries that are wanted: where nothing is balanced there are none, and the smallest table will do.
pub(super) fn flows_for(wanted: &DesiredState) -> u32 {
    let balances = wanted.interfaces.iter().any(|interface| interface.roles.balance);
    if balances { FLOWS } else { abi::flow::table::WAYS }
}

/// At most as many rows as can be counted, for each CPU has counters of its own.
pub(super) fn counted(most: u32) -> u32 {
    most.min(countable(cpus()))
}

/// Rows that a table of counters can have with so many CPUs.
fn countable(cpus: u32) -> u32 {
    let places = u64::from(cpu_places(cpus));
    (FLAT_BYTES / size_of::<Counter>() as u64 / places) as u32
}

/// Room for what is wanted, and as much again as is likely to come.
///
/// # Errors
/// [`KernelError::Limit`].
pub(super) fn capacity_for(wanted: &DesiredState, lists: Needs) -> Result<Capacity, KernelError> {
    let mut frontends = 0u64;
    let mut vips = std::collections::BTreeSet::new();
    let mut backends = 0u64;
    let mut slots = 1u64;
    for service in wanted.services.values() {
        let ports = if service.part_of.is_some() { 1 } else { service.ports.len() };
        frontends += (service.addresses.len() * ports) as u64;
        vips.extend(service.addresses.iter().copied());
        backends += service.own_backends().count() as u64;
        let size = crate::plan::ring_size(service, wanted.maglev.table_size);
        slots += u64::from(size) + 1 + crate::plan::ranges::room(&service.source_ranges);
        slots += crate::plan::choice::room(service) + crate::plan::vips::room(service);
        slots += crate::plan::routes::room(service);
    }
    slots += crate::plan::ranges::room(&wanted.decap_sources);
    frontends += vips.len() as u64;
    let room = |table, used: u64, least: u64, most: u32| {
        if used > u64::from(most) {
            return Err(KernelError::Limit { table, wanted: used, most });
        }
        Ok((used + used / 4).max(least).min(u64::from(most)) as u32)
    };
    let frontends = room("FRONTENDS", frontends, 1024, counted(MAX_FRONTENDS))?;
    Ok(Capacity {
        // Half full at most: a bucket holds four.
        buckets: (frontends / 2).next_power_of_two().min(MAX_BUCKETS),
        frontends,
        slots: room("SLOTS", slots, 1 << 16, MAX_SLOTS)?,
        backends: room("BACKENDS", backends, 1024, counted(MAX_BACKENDS))?,
        egress: MAX_EGRESS,
        flows: flows_for(wanted),
        lines: room("LINES", lists.lines, 1 << 12, abi::prefix::LINES)? * u32::from(lists.any),
        bitmaps: room("BITMAPS", lists.bitmaps, 4096, MAX_BITMAPS)? * u32::from(lists.any),
        blocks: room("BLOCKS", lists.blocks, 1024, MAX_BLOCKS)? * u32::from(lists.any),
        // Half full at most.
        filter6: room("FILTER6", lists.leading6 * 2, 1024, MAX_FILTER6)?.next_power_of_two(),
        // A bucket holds three, and is to hold two at most.
        buckets6: room("BUCKETS6", lists.nets6.div_ceil(2), 1024, MAX_BUCKETS6)?
            .next_power_of_two(),
        nat: if has_nat(wanted) { wanted.node.nat.entries } else { 1 },
        nat_ports: wanted.node.nat.ports.to_word(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_room_where_packets_are_balanced_and_nowhere_else() {
        use config::model::{Interface, InterfaceSelect, Roles, XdpMode};
        let mut wanted = DesiredState::default();
        for (prefilter, balance, rows) in
            [(false, false, abi::flow::table::WAYS), (true, false, 8), (false, true, FLOWS)]
        {
            let roles = Roles { prefilter, balance, ..Roles::default() };
            let select = InterfaceSelect::Name("eth0".to_owned());
            wanted.interfaces.push(Interface { select, xdp_mode: XdpMode::default(), roles });
            assert_eq!(flows_for(&wanted), rows);
            assert_eq!(capacity_for(&wanted, Needs::default()).unwrap().flows, rows);
        }
    }

    #[test]
    fn counters_of_all_places_for_cpus_fit() {
        for cpus in [1, 2, 3, 6, 64, 96, 128] {
            let bytes = |rows: u32| u64::from(rows) * u64::from(cpu_places(cpus)) * 32;
            assert!(bytes(countable(cpus)) <= FLAT_BYTES, "{cpus} CPUs");
            assert!(bytes(countable(cpus) + 1) > FLAT_BYTES, "{cpus} CPUs");
        }
    }

    #[test]
    fn where_nothing_can_be_pinned_nothing_is_made_and_the_remedy_is_named() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("deep/lb");
        let text = make_root(&root).unwrap_err().to_string();
        assert!(text.starts_with(&format!("{} is not on a BPF", root.display())), "{text}");
        assert!(text.contains("`mount -t bpf bpf /sys/fs/bpf`"), "{text}");
        assert!(text.contains("`nsenter --net=/run/netns/NAME`"), "{text}");
        assert!(!place.path().join("deep").exists());
    }
}
