//! Directories of the cgroup file system, version 2: made, entered by processes, removed.

use std::{
    fs::{self, File},
    io::Write as _,
    os::{fd::AsFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::Context as _;

use crate::eventually;

/// A directory, removed on drop together with the processes in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    handle: File,
    procs: Arc<File>,
}

impl Cgroup {
    /// Makes it at the root of the hierarchy.
    ///
    /// # Errors
    ///
    /// Not root, or no hierarchy of version 2 is mounted.
    pub fn create(name: &str) -> anyhow::Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let root = fields
            .filter(|fields| fields.get(2) == Some(&"cgroup2"))
            .find_map(|fields| fields.get(1).map(PathBuf::from))
            .context("no cgroup hierarchy of version 2 is mounted")?;
        let path = root.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let open = || -> std::io::Result<(File, File)> {
            let procs = File::options().write(true).open(path.join("cgroup.procs"))?;
            Ok((File::open(&path)?, procs))
        };
        match open() {
            Ok((handle, procs)) => Ok(Self { path, handle, procs: Arc::new(procs) }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error).with_context(|| format!("cannot open {}", path.display()))
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets `command` run in it from the start.
    pub fn put(&self, command: &mut Command) {
        let procs = Arc::clone(&self.procs);
        // SAFETY: between fork and exec the closure makes one system call on a descriptor that it
        // keeps open; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(move || (&*procs).write_all(b"0")) };
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whoever is still in it is ended: the kernel keeps a directory with processes.
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        let limit = std::time::Duration::from_secs(5);
        // Nobody is left to be told.
        let _ = eventually(limit, || Ok(fs::remove_dir(&self.path)?));
    }
}
