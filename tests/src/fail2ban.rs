//! A real fail2ban beside a daemon, with the action file that we ship: all of its files in a directory of its own.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use nix::sys::signal::Signal;

use crate::{
    daemon::{Daemon, binary},
    netns::{self, Namespace},
    process::{Log, Process},
};

const PROGRAM: &str = "fail2ban-server";
const PATIENCE: Duration = Duration::from_secs(30);
/// Failures that are one too many.
const RETRIES: usize = 3;

/// A running fail2ban.
#[derive(Debug)]
pub struct Fail2ban {
    namespace: Arc<Namespace>,
    directory: PathBuf,
    path: String,
    api: String,
    process: Option<Process>,
    log: Log,
}

impl Fail2ban {
    /// Starts it with these jails, a name and more options of each, which look for failed logins in files of their own
    /// and ban on `daemon`. It is ready when this returns.
    ///
    /// # Errors
    ///
    /// fail2ban is not installed, or refuses its files.
    pub fn start(
        namespace: &Arc<Namespace>,
        directory: &Path,
        daemon: &Daemon,
        jails: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let before = std::env::var("PATH").unwrap_or_default();
        let fail2ban = Self {
            namespace: Arc::clone(namespace),
            directory: directory.to_path_buf(),
            path: format!("{}:{before}", directory.join("bin").display()),
            api: daemon.api(),
            process: None,
            log: Log::default(),
        };
        fail2ban.write_files(jails)?;
        let mut fail2ban = fail2ban;
        fail2ban.resume()?;
        Ok(fail2ban)
    }

    fn write_files(&self, jails: &[(&str, &str)]) -> anyhow::Result<()> {
        let at = |name: &str| self.directory.join(name);
        for directory in ["filter.d", "action.d", "bin"] {
            fs::create_dir_all(at(directory))?;
        }
        // What the action calls goes through here, so that it can be seen.
        let (calls, lbctl) = (self.calls_file(), binary("lbctl")?);
        let script = format!(
            "#!/bin/sh\necho \"$*\" >>{}\nexec {} \"$@\"\n",
            calls.display(),
            lbctl.display()
        );
        fs::write(calls, "")?;
        fs::write(at("bin/lbctl"), script)?;
        fs::set_permissions(at("bin/lbctl"), Permissions::from_mode(0o755))?;
        let shipped = include_str!("../../config/fail2ban/lb-daemon.conf");
        fs::write(at("action.d/lb-daemon.conf"), shipped)?;
        let filter = "[Definition]\nfailregex = ^ failed login from <HOST>$\n\
                      datepattern = ^%%Y-%%m-%%d %%H:%%M:%%S\n";
        fs::write(at("filter.d/logins.conf"), filter)?;
        let socket = at("socket");
        let server = format!(
            "[Definition]\nloglevel = DEBUG\nlogtarget = STDOUT\nsyslogsocket = auto\nallowipv6 = auto\n\
             socket = {}\npidfile = {}\ndbfile = {}\ndbpurgeage = 1d\n",
            socket.display(),
            at("pid").display(),
            at("bans.sqlite3").display()
        );
        fs::write(at("fail2ban.conf"), server)?;
        let mut text = format!(
            "[DEFAULT]\nbanaction = lb-daemon\naction = %(banaction)s\nfilter = logins\nenabled = true\n\
             backend = polling\nusedns = no\nmaxretry = {RETRIES}\nfindtime = 10m\nbantime = 1h\n"
        );
        for (jail, more) in jails {
            let logins = self.logins(jail);
            fs::write(&logins, "")?;
            text.push_str(&format!("[{jail}]\n{more}\nlogpath = {}\n", logins.display()));
        }
        Ok(fs::write(at("jail.conf"), text)?)
    }

    fn calls_file(&self) -> PathBuf {
        self.directory.join("calls")
    }

    /// The arguments of every `lbctl` that the action has called, one call per line.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub fn calls(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.calls_file())?)
    }

    fn logins(&self, jail: &str) -> PathBuf {
        self.directory.join(format!("{jail}.log"))
    }

    /// Starts it again after [`Fail2ban::stop`].
    ///
    /// # Errors
    ///
    /// As [`Fail2ban::start`].
    pub fn resume(&mut self) -> anyhow::Result<()> {
        let from = self.log.lines().len();
        let mut command = self.command(PROGRAM);
        command.args(["-f", "start"]);
        let process = Process::spawn(&self.namespace, command, &self.log);
        self.process = Some(process.context("`make setup` installs it")?);
        self.log.wait_line("Server ready", from, PATIENCE).map(drop)
    }

    /// Stops it as systemd does.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.process.take().context("not running")?.end(Signal::SIGTERM).map(drop)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", &self.path).env("LB_API", &self.api);
        command.arg("-c").arg(&self.directory).arg("-s").arg(self.directory.join("socket"));
        command.arg("-p").arg(self.directory.join("pid"));
        command
    }

    /// What `fail2ban-client ARGUMENTS` prints.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn client(&self, arguments: &[&str]) -> anyhow::Result<String> {
        netns::output(self.command("fail2ban-client").args(arguments))
    }

    /// Has `source` fail to log in, so often that a jail bans it.
    ///
    /// # Errors
    ///
    /// The log cannot be written.
    pub fn fail(&self, jail: &str, source: &str) -> anyhow::Result<()> {
        let now = netns::output(Command::new("date").arg("+%F %T"))?;
        let mut log = OpenOptions::new().append(true).open(self.logins(jail))?;
        let line = format!("{} failed login from {source}\n", now.trim());
        Ok(log.write_all(line.repeat(RETRIES).as_bytes())?)
    }
}

impl Drop for Fail2ban {
    fn drop(&mut self) {
        self.process = None;
        println!("--- log of fail2ban\n{}", self.log.lines().join("\n"));
    }
}
