//! The topology: who stands where, with which addresses, and everything that runs in it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::statfs,
    unistd::Uid,
};

use crate::{
    daemon::{self, Daemon},
    netns::{self, Namespace},
    pass::Pass,
    web::Web,
};

/// The servers' names; `web-N` has the addresses of [`web_v4`] and [`web_v6`].
pub const WEBS: [&str; 3] = ["web-1", "web-2", "web-3"];

/// Addresses of services whose packets are encapsulated.
pub const IPIP_V4: &str = "203.0.113.10";
/// See [`IPIP_V4`].
pub const IPIP_V6: &str = "2001:db8:113::10";
/// Addresses of services whose packets get another destination MAC only.
pub const L2_V4: &str = "203.0.113.20";
/// See [`L2_V4`].
pub const L2_V6: &str = "2001:db8:113::20";
/// Addresses of services that tests change.
pub const SPARE_V4: &str = "203.0.113.30";
/// See [`SPARE_V4`].
pub const SPARE_V6: &str = "2001:db8:113::30";

/// Address of the client that requests come from.
pub const CLIENT_V4: &str = "192.0.2.100";
/// See [`CLIENT_V4`].
pub const CLIENT_V6: &str = "2001:db8:2::100";

/// Addresses of the client that the blocklists of the lab name.
pub const BLOCKED_V4: &str = "192.0.2.66";
/// See [`BLOCKED_V4`].
pub const BLOCKED_V6: &str = "2001:db8:2::66";

/// Begins the names of all namespaces and directories of labs.
const PREFIX: &str = "lblab";
const BPF_FS: &str = "/sys/fs/bpf";
/// Room for the outer header of a full-sized packet.
const FABRIC_MTU: u32 = 1600;

/// A running lab. Whatever it made is removed on drop.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: what runs, where it runs, where it wrote.
    webs: BTreeMap<&'static str, Web>,
    hosts: BTreeMap<&'static str, Arc<Namespace>>,
    fabric: Arc<Namespace>,
    pass: Pass,
    directory: tempfile::TempDir,
    bpffs: BpfDirectory,
    id: String,
}

/// IPv4 address of `web-N`, N from 1.
#[must_use]
pub fn web_v4(n: usize) -> String {
    format!("192.0.2.{}", 10 + n)
}

/// IPv6 address of `web-N`, N from 1.
#[must_use]
pub fn web_v6(n: usize) -> String {
    format!("2001:db8:2::{:x}", 0x10 + n)
}

/// An address and port of a service.
///
/// # Panics
///
/// `address` is not one.
#[must_use]
pub fn at(address: &str, port: u16) -> SocketAddr {
    let address: IpAddr = address.parse().expect("an address that is written here");
    SocketAddr::new(address, port)
}

/// A name that no other lab has; whatever bears it is found by the next run if this one is killed.
#[must_use]
pub fn unique() -> String {
    static LABS: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}-{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed))
}

impl Lab {
    /// Builds the network and starts the servers.
    ///
    /// # Errors
    ///
    /// Not root, or a tool of `make setup` is missing.
    pub fn start() -> anyhow::Result<Self> {
        ensure!(
            Uid::effective().is_root(),
            "network namespaces and BPF programs need root: use `make test` or `make run`, which ask \
             for it with sudo"
        );
        remove_stale()?;

        let id = unique();
        let directory = tempfile::Builder::new().prefix(&format!("{id}-")).tempdir()?;
        let bpffs = BpfDirectory::create(&id)?;
        let fabric = Arc::new(fabric(&id)?);
        let pass = Pass::load()?;
        let (webs, hosts) = (BTreeMap::new(), BTreeMap::new());
        let mut lab = Self { webs, hosts, fabric, pass, directory, bpffs, id };

        lab.add_balancer("lb", &["192.0.2.1", "2001:db8:2::1"])?;
        let client = [CLIENT_V4, CLIENT_V6, BLOCKED_V4, BLOCKED_V6];
        lab.add_host("client", &client, 1500)?;
        let mut routes = String::new();
        for vip in [IPIP_V4, L2_V4, SPARE_V4] {
            routes += &format!("route add {vip}/32 via 192.0.2.1 src {CLIENT_V4}\n");
        }
        for vip in [IPIP_V6, L2_V6, SPARE_V6] {
            routes += &format!("route add {vip}/128 via 2001:db8:2::1 src {CLIENT_V6}\n");
        }
        let client = lab.host("client")?;
        client.ip(&routes)?;
        client.sysctl("ipv4/ip_local_port_range", "1024 65535")?;

        for (n, name) in (1..).zip(WEBS) {
            lab.add_host(name, &[&web_v4(n), &web_v6(n)], FABRIC_MTU)?;
            let web = Arc::clone(lab.host(name)?);
            // The VIPs are for local delivery; nobody else may learn that they are here.
            web.sysctl("ipv4/conf/all/arp_ignore", "1")?;
            web.sysctl("ipv4/conf/all/arp_announce", "2")?;
            let vips: String = [IPIP_V4, L2_V4, SPARE_V4]
                .map(|vip| format!("addr add {vip}/32 dev lo\n"))
                .into_iter()
                .chain(
                    [IPIP_V6, L2_V6, SPARE_V6]
                        .map(|vip| format!("addr add {vip}/128 dev lo nodad\n")),
                )
                .collect();
            web.ip(&vips)?;
            let web = Web::start(&web, &lab.directory.path().join(name).join("nginx"), name)?;
            lab.webs.insert(name, web);
        }
        Ok(lab)
    }

    /// The namespace of a host: `client`, `lb`, `web-1`...
    ///
    /// # Errors
    ///
    /// There is no such host.
    pub fn host(&self, name: &str) -> anyhow::Result<&Arc<Namespace>> {
        self.hosts.get(name).with_context(|| format!("the lab has no host {name}"))
    }

    /// The namespace of the switch; the port to a host is named `to-HOST`.
    #[must_use]
    pub fn fabric(&self) -> &Arc<Namespace> {
        &self.fabric
    }

    /// A name for the namespace of another host.
    #[must_use]
    pub fn name_of(&self, host: &str) -> String {
        format!("{}-{host}", self.id)
    }

    /// A server.
    ///
    /// # Errors
    ///
    /// There is no such server.
    pub fn web(&mut self, name: &str) -> anyhow::Result<&mut Web> {
        self.webs.get_mut(name).with_context(|| format!("the lab has no server {name}"))
    }

    /// A directory for whatever the caller writes; it goes with the lab.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a daemon on a host with this configuration, in a file of its own.
    ///
    /// # Errors
    ///
    /// It does not become ready.
    pub fn daemon(&self, host: &str, yaml: &str) -> anyhow::Result<Daemon> {
        self.daemon_at(self.host(host)?, host, yaml)
    }

    /// Starts a daemon on a host with a configuration that is there already.
    ///
    /// # Errors
    ///
    /// It does not become ready.
    pub fn daemon_with(&self, host: &str, config: &Path) -> anyhow::Result<Daemon> {
        let directory = self.directory.path().join(host).join("daemon");
        let bpffs = self.bpffs.path.join(host);
        Daemon::start(self.host(host)?, &directory, &bpffs, config)
    }

    /// Starts a daemon on a host that is not the lab's own, for which nothing else is called `name`.
    ///
    /// # Errors
    ///
    /// It does not become ready.
    pub fn daemon_at(
        &self,
        host: &Arc<Namespace>,
        name: &str,
        yaml: &str,
    ) -> anyhow::Result<Daemon> {
        let directory = self.directory.path().join(name).join("daemon");
        fs::create_dir_all(&directory)?;
        let config = directory.join("lb.yaml");
        daemon::write_config(&config, yaml)?;
        Daemon::start(host, &directory, &self.bpffs.path.join(name), &config)
    }

    /// Starts daemons on all servers that take encapsulated packets.
    ///
    /// # Errors
    ///
    /// One does not become ready.
    pub fn decap(&self) -> anyhow::Result<Vec<Daemon>> {
        let yaml = "interfaces:\n  - {name: eth0, xdp_mode: native, roles: [decap]}\n";
        WEBS.iter().map(|web| self.daemon(web, yaml)).collect()
    }

    /// Adds a host like `lb`, with these addresses.
    ///
    /// # Errors
    ///
    /// The network cannot be made.
    pub fn add_balancer(&mut self, name: &'static str, addresses: &[&str]) -> anyhow::Result<()> {
        self.add_host(name, addresses, FABRIC_MTU)
    }

    fn add_host(&mut self, name: &'static str, addresses: &[&str], mtu: u32) -> anyhow::Result<()> {
        let host = Namespace::create(&self.name_of(name))?;
        let port = format!("to-{name}");
        self.fabric.ip(&format!(
            "link add {port} mtu {FABRIC_MTU} type veth peer name eth0 mtu {mtu} netns {}\n\
             link set {port} master br0 up",
            host.name()
        ))?;
        let mut lines = String::from("link set eth0 up\n");
        for address in addresses {
            if address.contains(':') {
                lines += &format!("addr add {address}/64 dev eth0 nodad\n");
            } else {
                lines += &format!("addr add {address}/24 dev eth0\n");
            }
        }
        host.ip(&lines)?;
        // A socket's packets over veth carry half a checksum, which XDP would forward as it is.
        host.enter(|| netns::run(Command::new("ethtool").args(["-K", "eth0", "tx", "off"])))??;
        self.pass.attach(&self.fabric, &port, &self.bpffs.path)?;
        self.hosts.insert(name, Arc::new(host));
        Ok(())
    }
}

/// A switch.
fn fabric(id: &str) -> anyhow::Result<Namespace> {
    let fabric = Namespace::create(&format!("{id}-fabric"))?;
    // It has no addresses, and its own chatter would only disturb captures.
    fabric.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
    fabric.ip(&format!(
        "link add br0 mtu {FABRIC_MTU} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
         link set br0 up"
    ))?;
    Ok(fabric)
}

/// A directory in the BPF file system. Removing it takes every pin in it away, and with them links,
/// programs and maps.
#[derive(Debug)]
pub struct BpfDirectory {
    path: PathBuf,
}

impl BpfDirectory {
    /// Makes it at the root of the BPF file system.
    ///
    /// # Errors
    ///
    /// Not root, or there is one of this name.
    pub fn create(id: &str) -> anyhow::Result<Self> {
        let path = bpf_file_system()?.join(id);
        fs::create_dir(&path).with_context(|| {
            format!(
                "cannot make {}: is a BPF file system there? `mount -t bpf bpf {BPF_FS}` makes one; in a network \
                 namespace, enter it with `nsenter --net=/run/netns/NAME`, for `ip netns exec` hides it",
                path.display()
            )
        })?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BpfDirectory {
    fn drop(&mut self) {
        // Nobody is left to be told; the next run removes what is left behind.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The root of the BPF file system, which is mounted if it is not.
///
/// # Errors
///
/// Not root.
fn bpf_file_system() -> anyhow::Result<&'static Path> {
    let root = Path::new(BPF_FS);
    // Tests that find none at the same moment would each mount one, and hide what is in the others.
    let parent = File::open("/sys/fs").context("cannot open /sys/fs")?;
    let _one = Flock::lock(parent, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("cannot lock /sys/fs")?;
    let kind = statfs::statfs(root).with_context(|| format!("no {BPF_FS}"))?;
    if kind.filesystem_type() != statfs::BPF_FS_MAGIC {
        netns::run(Command::new("mount").args(["-t", "bpf", "bpf", BPF_FS]))?;
    }
    Ok(root)
}

/// Removes what labs of processes that are gone have left behind.
fn remove_stale() -> anyhow::Result<()> {
    for (directory, remove) in [
        (Path::new("/run/netns"), None),
        (Path::new(BPF_FS), Some(())),
        (&std::env::temp_dir(), Some(())),
    ] {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
            let Some(owner) = owner.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
            if Path::new("/proc").join(owner.to_string()).exists() {
                continue;
            }
            // Another test may be doing the same at this moment.
            let _ = match remove {
                Some(()) => fs::remove_dir_all(entry.path()).map_err(anyhow::Error::from),
                None => netns::run(Command::new("ip").args(["netns", "del", &name])),
            };
        }
    }
    Ok(())
}
