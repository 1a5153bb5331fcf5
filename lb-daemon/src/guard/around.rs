//! Reads what there is around this machine: text files of the kernel and of the resolver. A file that cannot be
//! read protects nobody, and is no error: not every machine has each.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Protected, Role, SSH};

/// A route over a gateway, in the kernel's tables (`RTF_GATEWAY`).
const RTF_GATEWAY: u32 = 2;
/// State of a connection that is open, in the kernel's tables (`TCP_ESTABLISHED`).
const ESTABLISHED: &str = "01";
/// State of a socket that accepts connections (`TCP_LISTEN`).
const LISTEN: &str = "0A";

/// Everything around this machine, whose addresses these are.
pub(super) fn read(local: &BTreeSet<IpAddr>, api: &[u16]) -> Protected {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut all = Protected::default();
    local.iter().for_each(|ip| all.add(*ip, Role::Local));
    gateways4(&text("/proc/self/net/route")).for_each(|ip| all.add(ip, Role::Gateway));
    gateways6(&text("/proc/self/net/ipv6_route")).for_each(|ip| all.add(ip, Role::Gateway));
    name_servers(&text("/etc/resolv.conf")).for_each(|ip| all.add(ip, Role::NameServer));
    for text in sockets() {
        peers(&text, SSH).for_each(|ip| all.add(ip, Role::Ssh));
        for &port in api {
            peers(&text, port).for_each(|ip| all.add(ip, Role::Client(port)));
        }
    }
    all
}

/// The kernel's tables of TCP sockets.
pub(super) fn sockets() -> [String; 2] {
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .map(|path| fs::read_to_string(path).unwrap_or_default())
}

/// `Iface Destination Gateway Flags ...`: an address is a number of this machine's byte order.
fn gateways4(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(2);
        let (gateway, flags) = (fields.next()?, fields.next()?);
        let flags = u32::from_str_radix(flags, 16).ok()?;
        (flags & RTF_GATEWAY != 0).then(|| address(gateway))?
    })
}

/// `destination length source length next-hop metric references uses flags interface`.
fn gateways6(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
        let next_hop = u128::from_str_radix(fields.get(4)?, 16).ok()?;
        (flags & RTF_GATEWAY != 0).then(|| Ipv6Addr::from_bits(next_hop).into())
    })
}

/// Lines of `nameserver ADDRESS`; a link-local one has its interface behind `%`.
fn name_servers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        words.next()?.split('%').next()?.parse().ok()
    })
}

/// The other ends of connections to a port of this machine.
fn peers(text: &str, port: u16) -> impl Iterator<Item = IpAddr> {
    each(text, ESTABLISHED)
        .filter(move |(own, _)| *own == port)
        .filter_map(|(_, remote)| address(remote.split_once(':')?.0))
}

/// Ports of sockets that listen.
pub(super) fn listening(text: &str) -> impl Iterator<Item = u16> {
    each(text, LISTEN).map(|(own, _)| own)
}

/// Own port and other end of sockets in a state: `sl local remote state ...`.
fn each<'t>(text: &'t str, wanted: &'static str) -> impl Iterator<Item = (u16, &'t str)> {
    text.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        let own = u16::from_str_radix(local.split_once(':')?.1, 16).ok()?;
        (state == wanted).then_some((own, remote))
    })
}

/// Words of 32 bits in this machine's byte order, in hexadecimal: one, or four.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok();
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?.to_ne_bytes()).into()),
        32 => {
            let mut octets = [0; 16];
            for (n, four) in octets.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(n * 8)?.to_ne_bytes());
            }
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    fn texts(all: impl Iterator<Item = IpAddr>) -> Vec<String> {
        all.map(|ip| ip.to_string()).collect()
    }

    #[test]
    fn tables_of_the_kernel() {
        let route = "Iface\tDestination\tGateway\tFlags\tRefCnt\n\
             eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
             eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(texts(gateways4(route)), ["192.0.2.1"]);
        let route6 = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
             fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
             20010db8000000000000000000000000 40 00000000000000000000000000000000 00 \
             00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n";
        assert_eq!(texts(gateways6(route6)), ["fe80::1"]);
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 0A0200C0:0016 076433C6:D431 01 00000000:00000000 02:0 0\n\
             1: 0A0200C0:0016 086433C6:D431 06 00000000:00000000 02:0 0\n\
             2: 0A0200C0:0050 096433C6:D431 01 00000000:00000000 02:0 0\n";
        assert_eq!(texts(peers(tcp, SSH)), ["198.51.100.7"]);
        let tcp6 = "  sl  local_address remote_address st\n\
             0: B80D0120000000000000000001000000:0016 B80D0120000000000000000007000000:D431 01 0\n";
        assert_eq!(texts(peers(tcp6, SSH)), ["2001:db8::7"]);
    }

    #[test]
    fn the_resolver() {
        let text =
            "# by hand\nsearch example.org\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n";
        assert_eq!(texts(name_servers(text)), ["192.0.2.53", "fe80::1"]);
    }

    #[test]
    fn what_is_no_table_protects_nobody() {
        for text in ["", "x", "\n\n1\n", "a b c d e f g h i j\nzz zz zz zz zz zz zz zz zz zz"] {
            assert_eq!(gateways4(text).count() + gateways6(text).count(), 0);
            assert_eq!(name_servers(text).count() + peers(text, SSH).count(), 0);
        }
    }
}
