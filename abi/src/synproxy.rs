//! The SYN proxy: which segments it looks at, and the answer to a SYN.
//!
//! The cookie is the kernel's own, for the listener that the SYN is for, so that the kernel takes the
//! acknowledgement that comes back as its own. The answer has no option but the segment size: window scale,
//! SACK and timestamps are not agreed on, as with a cookie of a kernel whose clients send no timestamps.

use crate::{
    checksum,
    wire::tcp_flags::{ACK, SYN},
};

/// Words of the set of ports, a bit each.
pub const PORT_WORDS: u32 = 1024;
/// Bytes of the answer's TCP header: with one option.
pub const HEADER: u16 = 24;
/// What a client may send before it hears more: ten segments of 1460 bytes (RFC 6928). The kernel tells its
/// own window with its first segment.
const WINDOW: u16 = 14_600;

const FIN: u8 = 1;
const RST: u8 = 4;

/// Where the bit of a port is: word and bit.
#[must_use]
#[inline(always)]
pub const fn place(port: u16) -> (u32, u32) {
    (port as u32 >> 6, port as u32 & 63)
}

/// Whether a segment opens a connection.
#[must_use]
#[inline(always)]
pub const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// Whether a segment belongs to a connection that its sender believes in.
#[must_use]
#[inline(always)]
pub const fn continues(flags: u8) -> bool {
    flags & (SYN | ACK | RST) == ACK
}

/// The TCP header of the answer to a SYN. `ports` as loaded from the SYN: source low, destination high; `seq`: the
/// SYN's, host byte order; `pseudo`: sum over the pseudo header of [`HEADER`] bytes.
#[must_use]
#[inline(always)]
pub const fn answer(ports: u32, seq: u32, cookie: u32, mss: u16, pseudo: u32) -> [u8; 24] {
    const FLAGS: u8 = SYN | ACK;
    const OFFSET: u8 = (HEADER as u8 / 4) << 4;
    let p = ports.rotate_left(16).to_ne_bytes();
    let (s, a) = (cookie.to_be_bytes(), seq.wrapping_add(1).to_be_bytes());
    let ([w0, w1], [m0, m1]) = (WINDOW.to_be_bytes(), mss.to_be_bytes());
    let sum = (pseudo & 0xffff)
        + (pseudo >> 16)
        + checksum::halves(ports)
        + checksum::halves(u32::from_ne_bytes(s))
        + checksum::halves(u32::from_ne_bytes(a))
        + u16::from_ne_bytes([OFFSET, FLAGS]) as u32
        + u16::from_ne_bytes([w0, w1]) as u32
        + u16::from_ne_bytes([2, 4]) as u32
        + u16::from_ne_bytes([m0, m1]) as u32;
    let [c0, c1] = (!checksum::fold(sum)).to_ne_bytes();
    [
        p[0], p[1], p[2], p[3], s[0], s[1], s[2], s[3], a[0], a[1], a[2], a[3], OFFSET, FLAGS, w0,
        w1, c0, c1, 0, 0, 2, 4, m0, m1,
    ]
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::{addr::Addr, reply, wire::protocol};

    #[test]
    fn which_segments() {
        for (flags, opening, continuing) in [
            (0x02, true, false),
            (0xc2, true, false),
            (0x12, false, false),
            (0x06, false, false),
            (0x03, false, false),
            (0x10, false, true),
            (0x18, false, true),
            (0x11, false, true),
            (0x14, false, false),
            (0x04, false, false),
            (0x00, false, false),
        ] {
            assert_eq!((opens(flags), continues(flags)), (opening, continuing), "{flags:#x}");
        }
        assert_eq!((place(0), place(443), place(65535)), ((0, 0), (6, 59), (1023, 63)));
    }

    proptest! {
        #[test]
        fn checksums_are_right(ports: u32, seq: u32, cookie: u32, mss: u16, a: u32, b: u32) {
            let (a, b) = (IpAddr::V4(a.into()), IpAddr::V4(b.into()));
            let pseudo = reply::pseudo::<true>(Addr::from(a), Addr::from(b), protocol::TCP, HEADER);
            let header = answer(ports, seq, cookie, mss, pseudo);
            let total = u64::from(pseudo) + u64::from(checksum::sum(&header));
            let total = (total & 0xffff) + (total >> 16);
            prop_assert_eq!(checksum::fold(total as u32), 0xffff);
            prop_assert_eq!(u32::from_be_bytes([header[8], header[9], header[10], header[11]]), seq.wrapping_add(1));
            prop_assert_eq!(u32::from_be_bytes([header[4], header[5], header[6], header[7]]), cookie);
        }
    }
}
