//! The name of an interface's driver, from ethtool's ioctl: sysfs shows the namespace it was mounted in,
//! a socket belongs to the namespace it was made in.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const ETHTOOL_GDRVINFO: u32 = 3;
const ETHTOOL_GFLAGS: u32 = 0x25;
/// Received packets of a connection are joined.
const FLAG_LRO: u32 = 1 << 15;

/// Asks for drivers and their settings, in the namespace of the thread that opened it.
pub(crate) struct Ethtool(OwnedFd);

/// `struct ethtool_drvinfo` of the kernel.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    eeprom_version: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// `struct ethtool_value` of the kernel.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

impl Ethtool {
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// `None` if the interface has gone or its driver tells nothing.
    pub(super) fn driver(&self, interface: &str) -> Option<String> {
        let mut info = DriverInfo {
            command: ETHTOOL_GDRVINFO,
            driver: [0; 32],
            version: [0; 32],
            firmware: [0; 32],
            bus: [0; 32],
            eeprom_version: [0; 32],
            reserved: [0; 12],
            counts: [0; 5],
        };
        let mut request = libc::ifreq {
            ifr_name: named(interface)?,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut info).cast() },
        };

        // SAFETY: `request` is an ifreq whose data pointer is `info`, of the layout that the kernel
        // writes for this command; both live until the call returns.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if result < 0 {
            return None;
        }
        let end = info.driver.iter().position(|&byte| byte == 0).unwrap_or(info.driver.len());
        let driver = String::from_utf8_lossy(&info.driver[..end]).into_owned();
        (!driver.is_empty()).then_some(driver)
    }

    /// Whether the interface joins packets that it receives; one that cannot be asked does not.
    pub(crate) fn lro(&self, interface: &str) -> bool {
        let mut value = Value { command: ETHTOOL_GFLAGS, data: 0 };
        let Some(name) = named(interface) else { return false };
        let mut request = libc::ifreq {
            ifr_name: name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() },
        };

        // SAFETY: `request` is an ifreq whose data pointer is `value`, of the layout that the kernel
        // writes for this command; both live until the call returns.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        result >= 0 && value.data & FLAG_LRO != 0
    }
}

/// `None`: longer than a name can be.
fn named(interface: &str) -> Option<[libc::c_char; libc::IFNAMSIZ]> {
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return None;
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    Some(name)
}
