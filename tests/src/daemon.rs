//! Daemons under test: started as shipped, waited for by their own notifications.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    eventually, http,
    netns::{self, Namespace},
    process::{Log, Process},
};

/// How long anything of a daemon may take on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a daemon tells systemd when it does its work.
const READY: &str = "READY=1";
/// Stands in the log before what systemd would have been told.
const NOTIFIED: &str = "[notify] ";

/// A daemon in a namespace, with a directory of its own for everything that it writes.
#[derive(Debug)]
pub struct Daemon {
    namespace: Arc<Namespace>,
    directory: PathBuf,
    config: PathBuf,
    bpffs: PathBuf,
    interface: String,
    process: Option<Process>,
    log: Log,
    quiet: bool,
}

/// What is in the kernel for an interface: when these are the same, so is the data path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// 1: native, 2: generic.
    pub mode: u64,
    /// The program's id.
    pub program: u64,
    /// The ids of its maps.
    pub maps: BTreeSet<u64>,
}

impl Daemon {
    /// Starts a daemon for the interface `eth0`; it is ready when this returns. `directory` holds
    /// socket and state, `bpffs` what it pins.
    ///
    /// # Errors
    ///
    /// It ends or does not become ready; its log is part of the error.
    pub fn start(
        namespace: &Arc<Namespace>,
        directory: &Path,
        bpffs: &Path,
        config: &Path,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut daemon = Self {
            namespace: Arc::clone(namespace),
            directory: directory.to_path_buf(),
            config: config.to_path_buf(),
            bpffs: bpffs.to_path_buf(),
            interface: "eth0".to_owned(),
            process: None,
            log: Log::default(),
            quiet: false,
        };
        daemon.resume()?;
        Ok(daemon)
    }

    /// Starts it again after [`Daemon::kill9`] or [`Daemon::stop`].
    ///
    /// # Errors
    ///
    /// As [`Daemon::start`].
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.resume_under(&[])
    }

    /// The same, started by a command that becomes it, such as `setpriv OPTIONS`.
    ///
    /// # Errors
    ///
    /// As [`Daemon::start`].
    pub fn resume_under(&mut self, wrapper: &[&str]) -> anyhow::Result<()> {
        let config = self.config.clone();
        self.start_process(wrapper, &config, Path::new("/"))
    }

    /// As [`Daemon::resume`], with the capabilities of the systemd unit and no others.
    ///
    /// # Errors
    ///
    /// As [`Daemon::resume`]; the unit does not bound them.
    pub fn resume_with_rights_of_unit(&mut self) -> anyhow::Result<()> {
        let unit = include_str!("../../config/systemd/lb-daemon.service");
        let set = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=CAP_"));
        let set = set.context("the unit does not bound the capabilities")?;
        let set = set.to_lowercase().replace(" cap_", ",+");
        let bounds = format!("--bounding-set=-all,+{set}");
        self.resume_under(&["setpriv", &bounds, "--inh-caps=-all", "--no-new-privs"])
    }

    /// The same, with its configuration named relative to the directory that it stands in.
    ///
    /// # Errors
    ///
    /// As [`Daemon::start`].
    pub fn resume_relative(&mut self) -> anyhow::Result<()> {
        let config = self.config.clone();
        let name = config.file_name().map(PathBuf::from).context("no file name")?;
        let directory = config.parent().context("no directory")?;
        self.start_process(&[], &name, directory)
    }

    fn start_process(
        &mut self,
        wrapper: &[&str],
        config: &Path,
        directory: &Path,
    ) -> anyhow::Result<()> {
        let notify = self.directory.join("notify.sock");
        listen(&notify, &self.log)?;
        let from = self.log.lines().len();
        let program = binary("lb-daemon")?;
        let mut words = wrapper.iter().map(OsStr::new).chain([program.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or(program.as_os_str()));
        command.args(words).arg("--config").arg(config).current_dir(directory);
        command.arg("--state").arg(self.directory.join("state"));
        command.arg("--bpffs").arg(&self.bpffs);
        command.arg("--api").arg(self.api());
        command.args(["--log", "text"]);
        command.env("NOTIFY_SOCKET", &notify).env_remove("WATCHDOG_USEC");
        let process = Process::spawn(&self.namespace, command, &self.log)?;
        self.log.wait_line(&format!("{NOTIFIED}{READY}"), from, PATIENCE)?;
        self.process = Some(process);
        Ok(())
    }

    /// CPU time that its threads have taken so far.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let id = self.process.as_ref().context("not running")?.id();
        let mut nanos = 0;
        for task in fs::read_dir(format!("/proc/{id}/task"))?.flatten() {
            // One may have ended meanwhile.
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            nanos += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Kills it as the kernel would when memory is short.
    ///
    /// # Errors
    ///
    /// It is not running.
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        self.process.take().context("not running")?.end(Signal::SIGKILL).map(drop)
    }

    /// Stops it as systemd does.
    ///
    /// # Errors
    ///
    /// It does not end, or not with status 0.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let status = self.process.take().context("not running")?.end(Signal::SIGTERM)?;
        ensure!(status.success(), "{status}\n{}", self.log_text());
        Ok(())
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// The value of `--api` for it.
    #[must_use]
    pub fn api(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// The directory below which it pins everything.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// File or directory of its configuration.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Replaces the configuration file as an editor does: written beside it, renamed over it.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write_config(&self, yaml: &str) -> anyhow::Result<()> {
        write_config(&self.config, yaml)
    }

    /// The same, and waits until it is in force.
    ///
    /// # Errors
    ///
    /// It is refused, or not in force after a while.
    pub fn change_config(&self, yaml: &str) -> anyhow::Result<()> {
        let before = generation(&self.status()?)?;
        self.write_config(yaml)?;
        eventually(PATIENCE, || {
            let status = self.status()?;
            ensure!(generation(&status)? > before, "not in force: {}\n{}", status, self.log_text());
            Ok(())
        })
    }

    /// `GET` of the API.
    ///
    /// # Errors
    ///
    /// A status other than 200, or not JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let (status, body) = http::unix(&self.socket(), "GET", path, None)?;
        let body = String::from_utf8_lossy(&body);
        ensure!(status == 200, "{path}: {status}: {body}");
        serde_json::from_str(&body).with_context(|| format!("{path}: {body}"))
    }

    /// `GET /metrics`: the values of all series whose line begins with `prefix`, summed.
    ///
    /// # Errors
    ///
    /// There is no such series.
    pub fn metric(&self, prefix: &str) -> anyhow::Result<f64> {
        let (status, body) = http::unix(&self.socket(), "GET", "/metrics", None)?;
        ensure!(status == 200, "/metrics: {status}");
        let text = String::from_utf8_lossy(&body);
        let values: Vec<f64> = text
            .lines()
            .filter(|line| line.starts_with(prefix))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        ensure!(!values.is_empty(), "no series {prefix} in\n{text}");
        Ok(values.iter().sum())
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    ///
    /// As [`Daemon::get`].
    pub fn status(&self) -> anyhow::Result<Value> {
        self.get("/v1/status")
    }

    /// Succeeds when the way to every backend is known.
    ///
    /// # Errors
    ///
    /// What the status says of those that are not, or [`Daemon::status`]'s.
    pub fn ways_known(&self) -> anyhow::Result<()> {
        let backends = &self.status()?["services"]["backends"];
        ensure!(backends["unresolved"] == 0, "unresolved backends: {backends}");
        Ok(())
    }

    /// Packets from sources on a blocklist.
    ///
    /// # Errors
    ///
    /// There is no such list.
    pub fn list_packets(&self, list: &str) -> anyhow::Result<u64> {
        let lists = self.get("/v1/prefilter/lists")?;
        let items = lists["items"].as_array().into_iter().flatten();
        let found = items.into_iter().find(|item| item["name"] == list);
        let hits = found.and_then(|item| item["hits"].as_u64());
        hits.with_context(|| format!("no list {list} in {lists}"))
    }

    /// A service's backends as the API shows them, by name.
    ///
    /// # Errors
    ///
    /// There is no such service.
    pub fn backends(&self, service: &str) -> anyhow::Result<BTreeMap<String, Value>> {
        let service = self.get(&format!("/v1/services/{service}"))?;
        let backends = service["backends"].as_array().with_context(|| format!("{service}"))?;
        let named = backends.iter().map(|backend| {
            (backend["name"].as_str().unwrap_or_default().to_owned(), backend.clone())
        });
        Ok(named.collect())
    }

    /// What `lbctl ARGUMENTS` prints, asked of this daemon.
    ///
    /// # Errors
    ///
    /// It fails; its error output is part of the error.
    pub fn lbctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        netns::output(Command::new(binary("lbctl")?).arg("--api").arg(self.api()).args(arguments))
    }

    /// Removes everything that it has pinned; it is not running.
    ///
    /// # Errors
    ///
    /// `lbctl cleanup` fails.
    pub fn clean_up(&self) -> anyhow::Result<()> {
        self.lbctl(&["cleanup", "--bpffs", &self.bpffs.to_string_lossy()]).map(drop)
    }

    /// Program and maps on its interface.
    ///
    /// # Errors
    ///
    /// None is attached.
    pub fn loaded(&self) -> anyhow::Result<Loaded> {
        let link = self.namespace.ip_json(&["link", "show", "dev", &self.interface])?;
        let xdp = &link[0]["xdp"];
        let program = xdp["prog"]["id"].as_u64();
        let program = program.with_context(|| format!("no XDP program: {link}"))?;
        let mode = xdp["mode"].as_u64().with_context(|| format!("no mode: {link}"))?;
        let id = program.to_string();
        let shown = netns::output(Command::new("bpftool").args(["-j", "prog", "show", "id", &id]))?;
        let shown: Value = serde_json::from_str(&shown)?;
        let maps = shown["map_ids"].as_array().into_iter().flatten();
        Ok(Loaded { mode, program, maps: maps.filter_map(Value::as_u64).collect() })
    }

    /// Keeps its log from being printed when it is dropped.
    pub fn silence(&mut self) {
        self.quiet = true;
    }

    /// Everything that its processes printed.
    #[must_use]
    pub fn log_text(&self) -> String {
        self.log.lines().join("\n")
    }

    /// Fails when anything was logged as a warning or an error.
    ///
    /// # Errors
    ///
    /// The lines.
    pub fn expect_quiet(&self) -> anyhow::Result<()> {
        let loud = |line: &String| line.contains(" WARN ") || line.contains(" ERROR ");
        let lines: Vec<String> = self.log.lines().into_iter().filter(loud).collect();
        if lines.is_empty() { Ok(()) } else { bail!("logged:\n{}", lines.join("\n")) }
    }

    /// Waits until it has logged a line that contains `text`.
    ///
    /// # Errors
    ///
    /// It has not after a while.
    pub fn wait_line(&self, text: &str) -> anyhow::Result<String> {
        self.log.wait_line(text, 0, PATIENCE)
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("api.sock")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.process = None;
        // The test harness shows it when the test fails.
        if !self.quiet {
            println!("--- log of lb-daemon in {}\n{}", self.namespace.name(), self.log_text());
        }
    }
}

/// Replaces `file` in one step.
///
/// # Errors
///
/// The file cannot be written.
pub fn write_config(file: &Path, yaml: &str) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, yaml)?;
    fs::rename(&new, file).with_context(|| format!("cannot write {}", file.display()))
}

/// Path of a binary of the project: in `LB_BIN_DIR`, else beside the running test.
///
/// # Errors
///
/// It is not built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let directories = if let Some(directory) = std::env::var_os("LB_BIN_DIR") {
        vec![PathBuf::from(directory)]
    } else {
        let own = std::env::current_exe()?;
        own.ancestors().skip(1).take(2).map(Path::to_path_buf).collect()
    };
    let found =
        directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        format!("{name} is not in {directories:?}: `cargo build -p lb-daemon`, or use `make test`")
    })
}

fn generation(status: &Value) -> anyhow::Result<u64> {
    let generation = status["config"]["generation"].as_u64();
    generation.with_context(|| format!("no config.generation in {status}"))
}

/// Listens where systemd would, and notes what it would be told in the log.
fn listen(path: &Path, log: &Log) -> anyhow::Result<()> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    let socket = UnixDatagram::bind(path).with_context(|| format!("{}", path.display()))?;
    let log = log.clone();
    thread::spawn(move || {
        let mut buffer = [0_u8; 4096];
        while let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            for line in text.lines() {
                log.note(&format!("{NOTIFIED}{line}"));
                if line == READY {
                    return;
                }
            }
        }
    });
    Ok(())
}
