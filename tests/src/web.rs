//! The servers: nginx, answering with its name.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use nix::sys::signal::Signal;

use crate::{
    netns::Namespace,
    process::{Log, Process},
};

/// Port of the service.
pub const PORT: u16 = 80;
/// Port of `/healthz`.
pub const HEALTH_PORT: u16 = 8080;
/// Bytes of the body that `/large` answers with.
pub const LARGE: usize = 1 << 20;

/// An nginx: answers every path with its name, `/large` with [`LARGE`] bytes, and on
/// [`HEALTH_PORT`] `/healthz` with 200, or 503 when told so.
#[derive(Debug)]
pub struct Web {
    name: String,
    namespace: Arc<Namespace>,
    directory: PathBuf,
    process: Option<Process>,
}

impl Web {
    /// Writes the configuration and starts it; it listens when this returns.
    ///
    /// # Errors
    ///
    /// nginx is missing or refuses.
    pub fn start(namespace: &Arc<Namespace>, directory: &Path, name: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(directory)?;
        fs::write(directory.join("large"), vec![b'x'; LARGE])?;
        fs::write(directory.join("nginx.conf"), configuration(name, directory))?;
        let directory = directory.to_path_buf();
        let namespace = Arc::clone(namespace);
        let mut web = Self { name: name.to_owned(), namespace, directory, process: None };
        web.resume()?;
        Ok(web)
    }

    /// What it answers with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts it again after [`Web::kill`].
    ///
    /// # Errors
    ///
    /// nginx refuses.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&self.directory).arg("-c").arg(self.directory.join("nginx.conf"));
        command.args(["-e", "stderr"]);
        let log = Log::default();
        let process = Process::spawn(&self.namespace, command, &log)?;
        // nginx says this after it has opened its sockets.
        log.wait_line("getrlimit", 0, Duration::from_secs(10))
            .with_context(|| format!("{} does not start", self.name))?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it, with all its connections.
    ///
    /// # Errors
    ///
    /// It has ended already.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut process = self.process.take().with_context(|| format!("{} is down", self.name))?;
        process.end(Signal::SIGKILL).map(drop)
    }

    /// From now on `/healthz` answers 200 or 503.
    ///
    /// # Errors
    ///
    /// Its directory is gone.
    pub fn set_healthy(&self, healthy: bool) -> anyhow::Result<()> {
        let switch = self.directory.join("unhealthy");
        if !healthy {
            fs::write(&switch, "")?;
        } else if switch.exists() {
            fs::remove_file(&switch)?;
        }
        Ok(())
    }
}

fn configuration(name: &str, directory: &Path) -> String {
    let directory = directory.display();
    format!(
        r#"
daemon off;
master_process off;
error_log stderr notice;
pid {directory}/nginx.pid;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    default_type text/plain;
    keepalive_timeout 1h;
    keepalive_requests 1000000;
    client_max_body_size 16m;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 0.0.0.0:{PORT} backlog=4096;
        listen [::]:{PORT} ipv6only=on backlog=4096;
        location / {{ return 200 "{name}\n"; }}
        location = /large {{ root {directory}; }}
    }}
    server {{
        listen 0.0.0.0:{HEALTH_PORT};
        listen [::]:{HEALTH_PORT} ipv6only=on;
        location = /healthz {{
            if (-f {directory}/unhealthy) {{ return 503 "failing\n"; }}
            return 200 "ok\n";
        }}
    }}
}}
"#
    )
}
