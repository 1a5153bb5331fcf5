//! Later fragments that come before their first one, which alone has ports: the program hands them to the daemon whole,
//! which gives them to the program again once it knows where the first one went. One for an address that translated
//! packets come from may also be this machine's own, and is not lost: its stack gets it in the end.

use crate::{flow::FragmentKey, table::shared, upper};

/// Bytes of a frame at most; larger ones are dropped.
pub const FRAME: usize = 2048;
/// Bytes of the ring buffer: a few more than 240 fragments. What finds no room is dropped.
pub const RING_BYTES: u32 = 1 << 19;

/// In a record's length: the fragment may be this machine's own.
pub const HOST: u32 = 1 << 31;
/// Bytes of the ring buffer that may wait for the daemon when a fragment that may be this machine's own joins them:
/// 16 records. With more, nobody reads them, and it goes on to the stack at once.
pub const HOST_BYTES: u64 = 16 * (size_of::<Early>() as u64 + 8);

/// A record of the ring buffer.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Early {
    /// The interface that it came in by.
    pub ifindex: u32,
    /// Bytes of the frame; perhaps with [`HOST`].
    pub length: u32,
    /// The frame; what is beyond its length means nothing.
    pub bytes: [u8; FRAME],
}

shared!(Early, 2056, { ifindex @ 0, length @ 4, bytes @ 8 });

/// Interface and frame of a record, and whether it may be this machine's own. `None`: it is of another length, or says
/// that it has more than it can.
#[must_use]
pub fn from_record(record: &[u8]) -> Option<(u32, &[u8], bool)> {
    if record.len() != size_of::<Early>() {
        return None;
    }
    let (ifindex, rest) = record.split_first_chunk()?;
    let (length, bytes) = rest.split_first_chunk()?;
    let length = u32::from_ne_bytes(*length);
    let frame = bytes.get(..(length & !HOST) as usize)?;
    Some((u32::from_ne_bytes(*ifindex), frame, length & HOST != 0))
}

/// The datagram of which a frame has a later fragment. `None`: it has none.
#[must_use]
pub fn datagram(frame: &[u8]) -> Option<FragmentKey> {
    let (ip, upper) = upper::of_frame(frame)?;
    let upper = upper?;
    (upper.piece.is_part() && upper.piece.offset != 0)
        .then(|| FragmentKey::new(ip.src, ip.dst, upper.piece.id, upper.protocol))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{vec, vec::Vec};

    use super::*;
    use crate::{addr::Addr, wire::ethertype};

    fn ipv4(offset: u16) -> Vec<u8> {
        let mut frame = vec![0; 14];
        frame[12..].copy_from_slice(&ethertype::IPV4);
        let [high, low] = offset.to_be_bytes();
        frame
            .extend([0x45, 0, 0, 28, 0, 7, high, low, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2]);
        frame.extend([9; 8]);
        frame
    }

    #[test]
    fn the_datagram_of_a_later_fragment() {
        let [src, dst] =
            [[192, 0, 2, 1], [198, 51, 100, 2]].map(|a| Addr::v4(u32::from_ne_bytes(a)));
        let id = upper::v4(&ipv4(100)[..], 14).unwrap().piece.id;
        let found = datagram(&ipv4(100)).unwrap();
        assert_eq!(found, FragmentKey::new(src, dst, id, 17));
        assert_eq!(datagram(&ipv4(0x2064)), Some(found));
        assert_eq!(datagram(&ipv4(0x2000)), None, "the first one");
        assert_eq!(datagram(&ipv4(0)), None, "no fragment");
        let mut tagged = ipv4(100);
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        assert_eq!(datagram(&tagged), Some(found));
        tagged.splice(12..12, [0x88, 0xa8, 0, 6]);
        assert_eq!(datagram(&tagged), Some(found));
        assert_eq!(datagram(&tagged[..30]), None);
        assert_eq!(datagram(&[]), None);
    }

    #[test]
    fn records() {
        let mut record = vec![0; size_of::<Early>()];
        record[..8].copy_from_slice(&[3u32.to_ne_bytes(), 2u32.to_ne_bytes()].concat());
        record[8..10].copy_from_slice(b"ab");
        assert_eq!(from_record(&record), Some((3, &b"ab"[..], false)));
        record[4..8].copy_from_slice(&(2 | HOST).to_ne_bytes());
        assert_eq!(from_record(&record), Some((3, &b"ab"[..], true)));
        assert_eq!(from_record(&record[1..]), None);
        record[4..8].copy_from_slice(&(FRAME as u32 + 1).to_ne_bytes());
        assert_eq!(from_record(&record), None);
    }
}
