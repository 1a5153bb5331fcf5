//! Takes everything away that a daemon has pinned.

use std::{fs, io, path::Path};

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};

use super::kernel;

/// What [`cleanup`] has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Links: programs that are detached now.
    pub links: usize,
    /// Pins of programs and maps.
    pub pins: usize,
}

/// Removes every link, program and map that is pinned in `root`, and `root` itself.
///
/// # Errors
/// It is not on a BPF file system, a daemon uses it, or it holds what is not ours.
pub fn cleanup(root: &Path) -> anyhow::Result<Removed> {
    let mut removed = Removed::default();
    match fs::metadata(root) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", root.display())),
    }
    if !kernel::is_bpffs(root) {
        bail!("{} is not on a BPF file system: it is no daemon's --bpffs", root.display());
    }
    let _lock = lock(root)?;
    let links = root.join(kernel::LINKS);
    let before = fs::read_dir(&links).map_or(0, Iterator::count);
    // Links first: from then on no packet is decided by tables that are half gone.
    crate::policy::kernel::detach_all_but(&links, &[]);
    removed.links = before;
    remove_files(&links)?;
    remove_dir(&links)?;
    for path in kernel::pinned(root).with_context(|| format!("cannot read {}", root.display()))? {
        if path.is_dir() {
            remove_dir(&path.join(kernel::READY))?;
            removed.pins += remove_files(&path)?;
            remove_dir(&path)?;
        } else {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            removed.pins += 1;
        }
    }
    match fs::remove_dir(root) {
        // The root of the file system itself.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
        done => done.with_context(|| format!("cannot remove {}", root.display()))?,
    }
    Ok(removed)
}

/// Who holds it may change what is pinned in `root`; it goes with the process.
///
/// # Errors
/// Another process holds it.
pub(super) fn lock(root: &Path) -> anyhow::Result<Flock<fs::File>> {
    let directory =
        fs::File::open(root).with_context(|| format!("cannot open {}", root.display()))?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!(
            "a daemon uses {} ({error}); stop it first (`systemctl stop lb-daemon`), or give each \
             daemon a --bpffs of its own",
            root.display()
        )
    })
}

fn remove_files(directory: &Path) -> anyhow::Result<usize> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.with_context(|| format!("cannot read {}", directory.display()))?,
    };
    let mut count = 0;
    for entry in entries {
        let path = entry?.path();
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        count += 1;
    }
    Ok(count)
}

fn remove_dir(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.with_context(|| format!("cannot remove {}", directory.display())),
    }
}
