//! Network namespaces: made, entered by single threads and processes, removed.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::{prctl, signal::Signal},
};

/// A named network namespace, removed on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: Arc<File>,
}

impl Namespace {
    /// Makes it, with `lo` up and IPv6 usable at once.
    ///
    /// # Errors
    ///
    /// Not root, or `ip` is missing.
    pub fn create(name: &str) -> anyhow::Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        let path = Path::new("/run/netns").join(name);
        let handle =
            File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let namespace = Self { name: name.to_owned(), handle: Arc::new(handle) };

        namespace.sysctl("ipv6/conf/default/accept_dad", "0")?;
        namespace.sysctl("ipv6/conf/default/accept_ra", "0")?;
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Name under `/run/netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs lines of `ip` commands (without the word `ip`) in the namespace.
    ///
    /// # Errors
    ///
    /// The first line that fails, as `ip` words it.
    pub fn ip(&self, lines: &str) -> anyhow::Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run ip")?;
        let mut input = child.stdin.take().context("stdin was asked for")?;
        input.write_all(lines.as_bytes())?;
        input.write_all(b"\n")?;
        drop(input);
        let done = child.wait_with_output()?;
        if !done.status.success() {
            bail!(
                "in {}: ip: {}\n{lines}",
                self.name,
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        Ok(())
    }

    /// The JSON that `ip -j -d ARGUMENTS` prints.
    ///
    /// # Errors
    ///
    /// `ip` fails or prints something else.
    pub fn ip_json(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let text = output(Command::new("ip").args(["-n", &self.name, "-j", "-d"]).args(arguments))?;
        serde_json::from_str(&text).with_context(|| format!("ip {arguments:?} printed {text:?}"))
    }

    /// Sets a value below `/proc/sys/net`.
    ///
    /// # Errors
    ///
    /// There is no such value, or it refuses this one.
    pub fn sysctl(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let path = PathBuf::from("/proc/sys/net").join(key);
        self.enter(|| {
            fs::write(&path, value).with_context(|| format!("cannot set {}", path.display()))
        })?
    }

    /// Runs `work` in a thread of its own inside the namespace.
    ///
    /// # Errors
    ///
    /// The thread cannot enter the namespace.
    ///
    /// # Panics
    ///
    /// With `work`.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| -> anyhow::Result<T> {
                setns(&*self.handle, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter {}", self.name))?;
                Ok(work())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A handle with which other threads enter the namespace, for good.
    #[must_use]
    pub fn entrance(&self) -> Entrance {
        Entrance { name: self.name.clone(), handle: Arc::clone(&self.handle) }
    }

    /// Lets `command` run inside the namespace, and die with the calling thread. The mount namespace
    /// stays the host's, so that the BPF file system is where it is.
    pub fn put(&self, command: &mut Command) {
        let handle = Arc::clone(&self.handle);
        let enter = move || {
            setns(&*handle, CloneFlags::CLONE_NEWNET)?;
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: between fork and exec `enter` makes two system calls on a descriptor that the
        // closure keeps open; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(enter) };
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nobody is left to be told; the next run removes what is left behind.
        let _ = run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

/// Lets a thread enter a namespace. Unlike [`Namespace`] it may outlive the borrow of the lab.
#[derive(Clone, Debug)]
pub struct Entrance {
    name: String,
    handle: Arc<File>,
}

impl Entrance {
    /// Moves the calling thread into the namespace; there is no way back.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn enter(&self) -> anyhow::Result<()> {
        setns(&*self.handle, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter {}", self.name))
    }
}

/// Runs a command to its end; its error output is part of the error.
///
/// # Errors
///
/// It cannot be started or fails.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    output(command).map(drop)
}

/// Runs a command to its end and gives what it printed.
///
/// # Errors
///
/// It cannot be started or fails.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}; `make setup` installs it"))?;
    if !done.status.success() {
        bail!("{command:?}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
