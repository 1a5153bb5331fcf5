//! What an interface's driver can do with XDP, as the kernel tells since 6.3 (generic netlink, family
//! `netdev`; Documentation/netlink/specs/netdev.yaml).

use std::io;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// Runs programs.
pub(crate) const BASIC: u64 = 1;
/// Sends frames that programs of other interfaces redirect to it.
pub(crate) const NDO_XMIT: u64 = 4;
/// Runs programs on frames in several buffers.
pub(crate) const RX_SG: u64 = 32;

const REQUEST: u16 = 1;
const ERROR: u16 = 2;
/// The family that knows families, its command to get one, and the attributes of that.
const CONTROL: (u16, u8) = (16, 3);
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const DEV_GET: u8 = 1;
const DEV_INDEX: u16 = 1;
const DEV_FEATURES: u16 = 3;
/// Lengths of the headers: netlink's and generic netlink's.
const HEADER: usize = 20;

/// Asks, in the namespace of the thread that opened it.
pub(crate) struct Features {
    socket: Socket,
    family: u16,
}

impl Features {
    /// # Errors
    /// The kernel has no such family.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        let answer = exchange(&socket, &request(CONTROL, FAMILY_NAME, b"netdev\0"))?;
        let family = attribute(&answer, FAMILY_ID).and_then(|value| value.try_into().ok());
        let family = family.map(u16::from_ne_bytes).ok_or_else(unknown)?;
        Ok(Self { socket, family })
    }

    /// The bits of an interface.
    ///
    /// # Errors
    /// It has gone.
    pub(crate) fn of(&mut self, index: u32) -> io::Result<u64> {
        let asked = request((self.family, DEV_GET), DEV_INDEX, &index.to_ne_bytes());
        let answer = exchange(&self.socket, &asked)?;
        let bits = attribute(&answer, DEV_FEATURES).and_then(|value| value.try_into().ok());
        bits.map(u64::from_ne_bytes).ok_or_else(unknown)
    }
}

fn unknown() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer of another form")
}

/// A message with one attribute.
fn request((family, command): (u16, u8), kind: u16, value: &[u8]) -> Vec<u8> {
    let length = HEADER + 4 + value.len().next_multiple_of(4);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    // Number and port: one answer to one request, and the kernel fills in the port.
    bytes.extend([0; 8]);
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length, 0);
    bytes
}

fn exchange(socket: &Socket, request: &[u8]) -> io::Result<Vec<u8>> {
    socket.send_to(request, &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    if kind == Some(ERROR) {
        let code = answer.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
        return Err(io::Error::from_raw_os_error(code.map_or(libc::EPROTO, i32::wrapping_neg)));
    }
    Ok(answer)
}

/// The value of the first attribute of this kind in an answer.
fn attribute(answer: &[u8], kind: u16) -> Option<&[u8]> {
    let mut rest = answer.get(HEADER..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let found = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        if found & 0x3fff == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::testing::Namespace;

    #[test]
    fn the_kernel_tells() {
        let (here, there) = (Namespace::new("here"), Namespace::new("there"));
        here.veth("eth0", &there, "eth0");
        here.ip("link add link eth0 name side0 type macvlan mode bridge");
        here.run(async {
            let (links, _watcher) = crate::links::Links::open().await.unwrap();
            let mut features = Features::open().unwrap();
            let of = |name: &str| links.by_name(name).unwrap().index;
            let veth = features.of(of("eth0")).unwrap();
            assert_eq!(veth & (BASIC | RX_SG), BASIC | RX_SG, "{veth:#x}");
            assert_eq!(features.of(of("side0")).unwrap() & BASIC, 0);
            assert_eq!(features.of(9999).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        });
    }

    #[test]
    fn answers_that_are_cut_short_are_no_answers() {
        let whole = request((20, 1), DEV_INDEX, &[1, 2, 3, 4]);
        assert_eq!(attribute(&whole, DEV_INDEX), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attribute(&whole, DEV_FEATURES), None);
        for end in 0..whole.len() {
            assert_eq!(attribute(&whole[..end], DEV_INDEX), None, "{end}");
        }
    }
}
