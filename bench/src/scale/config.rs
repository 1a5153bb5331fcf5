//! The configuration: a directory of files, and changes of one backend.

use std::{
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use lb_tests::{daemon, netns::Namespace};

/// Backends of each service.
pub(super) const BACKENDS: u32 = 10;

const GATEWAY: &str = "192.0.2.250";
const GATEWAY_MAC: &str = "02:00:00:00:00:fa";

/// Gives the balancer a way to all backends.
pub(super) fn add_gateway(namespace: &Namespace) -> anyhow::Result<()> {
    namespace.ip(&format!(
        "neigh add {GATEWAY} lladdr {GATEWAY_MAC} dev eth0 nud permanent\n\
         route add 10.128.0.0/9 via {GATEWAY}"
    ))
}

/// How many services, and how many of them stand in one file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) services: u32,
    pub(super) per_file: u32,
}

/// The directory, and which backend each service has instead of its first.
pub(super) struct Config {
    directory: tempfile::TempDir,
    layout: Layout,
    /// Of each service, the number of its first backend.
    first: Vec<u32>,
    next: u32,
}

/// A file that is to be written.
pub(super) struct Edit {
    path: PathBuf,
    text: String,
    /// The new backend's.
    pub(super) address: Ipv4Addr,
}

impl Edit {
    pub(super) fn write(&self) -> anyhow::Result<()> {
        daemon::write_config(&self.path, &self.text)
    }
}

impl Config {
    pub(super) fn create(layout: Layout) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("lb-bench-").tempdir()?;
        let first = (0..layout.services).map(|service| service * BACKENDS).collect();
        let config = Self { directory, layout, first, next: layout.services * BACKENDS };
        for file in 0..layout.services.div_ceil(layout.per_file) {
            fs::write(config.file(file), config.text(file))?;
        }
        Ok(config)
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn file_bytes(&self) -> anyhow::Result<u64> {
        Ok(fs::metadata(self.file(0))?.len())
    }

    /// Gives the service another first backend.
    pub(super) fn replace_backend(&mut self, service: u32) -> Edit {
        let number = self.next;
        self.next += 1;
        self.first[service as usize] = number;
        let file = service / self.layout.per_file;
        Edit { path: self.file(file), text: self.text(file), address: backend(number) }
    }

    fn file(&self, file: u32) -> PathBuf {
        self.directory.path().join(format!("{file:05}.yaml"))
    }

    fn text(&self, file: u32) -> String {
        let mut text = String::new();
        if file == 0 {
            text += "interfaces:\n  - {name: eth0, xdp_mode: native, roles: [balance]}\n\
                     maglev: {seed: bench}\n";
        }
        text += "services:\n";
        let services = self.first.iter().zip(0u32..);
        let from = file * self.layout.per_file;
        for (first, number) in services.skip(from as usize).take(self.layout.per_file as usize) {
            let vip = Ipv4Addr::from(0x6440_0000 + number);
            // A String takes any text.
            let _ = write!(
                text,
                "  - name: service-{number}\n    address: {vip}\n    forwarding: ipip\n    \
                 ports: [{{name: http, port: 80, protocol: tcp}}]\n    backends:\n"
            );
            let others = number * BACKENDS + 1..(number + 1) * BACKENDS;
            for (index, address) in std::iter::once(*first).chain(others).map(backend).enumerate() {
                let _ = writeln!(text, "      - {{name: b{index}, address: {address}}}");
            }
        }
        text
    }
}

fn backend(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a80_0001 + number)
}
