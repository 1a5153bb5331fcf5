//! Hosts whose frames carry VLAN tags.
//!
//! Not by a VLAN device, which not every kernel has: a host's interface is a TAP device, the switch's port to it another
//! one, and between them go threads that put tags on what the host sends, and take them off what it is sent.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::fd::AsRawFd as _,
    process::Command,
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::Context as _;

use crate::{lab::Lab, netns, netns::Namespace};

/// A host behind tags, with an interface `eth0`. It goes on drop.
#[derive(Debug)]
pub struct Tagged {
    host: Arc<Namespace>,
    fabric: Arc<Namespace>,
    port: String,
    wires: Vec<JoinHandle<()>>,
}

impl Tagged {
    /// Adds it to a lab, with these addresses; `tags`: what stands between the MAC addresses and the last ethertype of
    /// its frames. Others' frames do not reach it.
    ///
    /// # Errors
    ///
    /// The kernel has no TAP devices, or the network cannot be made.
    pub fn start(
        lab: &Lab,
        name: &str,
        addresses: &[&str],
        tags: &'static [u8],
    ) -> anyhow::Result<Self> {
        // `eth0` has the MTU that interfaces have.
        let host = Arc::new(Namespace::create(&lab.name_of(name))?);
        let (fabric, port) = (Arc::clone(lab.fabric()), format!("to-{name}"));
        let inside = host.enter(|| tap("eth0"))??;
        let outside = fabric.enter(|| tap(&port))??;
        fabric.ip(&format!("link set {port} mtu 1600\nlink set {port} master br0 up"))?;
        let mut lines = String::from("link set eth0 up\n");
        for address in addresses {
            let rest = if address.contains(':') { "/64 dev eth0 nodad" } else { "/24 dev eth0" };
            lines += &format!("addr add {address}{rest}\n");
        }
        host.ip(&lines)?;

        let (from_inside, from_outside) = (inside.try_clone()?, outside.try_clone()?);
        let wires = vec![
            thread::spawn(move || {
                carry(&from_inside, &outside, |frame| {
                    let (macs, rest) = frame.split_at_checked(12)?;
                    Some([macs, tags, rest].concat())
                });
            }),
            thread::spawn(move || {
                carry(&from_outside, &inside, |frame| {
                    let (macs, rest) = frame.split_at_checked(12)?;
                    Some([macs, rest.strip_prefix(tags)?].concat())
                });
            }),
        ];
        Ok(Self { host, fabric, port, wires })
    }

    /// Its namespace.
    #[must_use]
    pub fn host(&self) -> &Arc<Namespace> {
        &self.host
    }

    /// The switch's port to it, in the fabric.
    #[must_use]
    pub fn port(&self) -> &str {
        &self.port
    }

    /// The MAC address of `eth0`.
    ///
    /// # Errors
    ///
    /// As [`mac_of`].
    pub fn mac(&self) -> anyhow::Result<String> {
        mac_of(&self.host)
    }
}

impl Drop for Tagged {
    fn drop(&mut self) {
        // Whoever reads from a device that goes is told so. What fails here goes with the namespaces.
        let _ = self.host.ip("link del eth0");
        let _ = self.fabric.ip(&format!("link del {}", self.port));
        for wire in self.wires.drain(..) {
            let _ = wire.join();
        }
    }
}

/// The MAC address of a host's `eth0`.
///
/// # Errors
///
/// It has none.
pub fn mac_of(host: &Namespace) -> anyhow::Result<String> {
    let link = host.ip_json(&["link", "show", "eth0"])?;
    link[0]["address"].as_str().map(str::to_owned).context("no MAC address")
}

/// Has tags stand in the frames that leave the switch by these ports, and not beside them in the kernel's memory, where
/// an XDP program at the other end does not see them.
///
/// # Errors
///
/// There is no such port.
pub fn in_frames(fabric: &Namespace, ports: &[&str]) -> anyhow::Result<()> {
    for port in ports {
        let off = ["txvlan", "off", "tx-vlan-stag-hw-insert", "off"];
        fabric.enter(|| netns::run(Command::new("ethtool").args(["-K", port]).args(off)))??;
    }
    Ok(())
}

/// Carries frames from one device to the other until the first one is gone. What `change` makes nothing of, or the other
/// device does not take, is lost, as on any wire.
fn carry(mut from: &File, mut to: &File, change: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let mut buffer = vec![0; 65536];
    while let Ok(len) = from.read(&mut buffer) {
        if let Some(frame) = change(&buffer[..len]) {
            let _ = to.write(&frame);
        }
    }
}

/// Makes a TAP device in this thread's namespace, which goes with the file.
fn tap(name: &str) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("cannot open /dev/net/tun")?;
    // SAFETY: numbers and arrays of them, for which 0 is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the file is open, and the request is what this call takes, with a name that ends with a zero.
    let failed = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0;
    if failed {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot make {name}"));
    }
    Ok(file)
}
