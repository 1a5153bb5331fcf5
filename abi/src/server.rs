//! Packets that name their server: in a QUIC connection id, in a TCP option, in a header of UDP's payload.
//!
//! A server puts its number there when it answers, the client brings it back, and the balancer sends the
//! packet where it says, whatever has become of the ring and of the client's address meanwhile.
//!
//! | where | layout |
//! |---|---|
//! | QUIC | connection id of draft-ietf-quic-load-balancers, unencrypted: one byte, the first three bits of it not all set; the number, big endian; the server's own bytes |
//! | TCP | option 253 (RFC 6994), 8 bytes: `fd 08 4c 42`, number in 4 bytes, big endian |
//! | UDP | first 8 bytes of the payload: `4c 42 01 00`, number in 4 bytes, big endian |

use crate::{
    choice::NO_ID,
    wire::{Byte, ConnectionId, Frame, LongHeader, Pair, Tcp, Word},
};

/// Kind and length of the TCP option, and the experiment's number.
pub const TCP_OPTION: [u8; 4] = [253, 8, 0x4c, 0x42];
/// What begins the header in UDP's payload: the same number, version 1, nothing.
pub const UDP_HEADER: [u8; 4] = [0x4c, 0x42, 1, 0];
/// Options of a TCP header that are walked over.
const MAX_OPTIONS: u32 = 20;
/// Bytes of a UDP header.
const UDP: usize = 8;

/// The number in the QUIC packet whose UDP header is at `l4`, of `len` bytes (1 to 8); [`NO_ID`] if there is
/// none: the packet is an Initial or 0-RTT, whose connection id the client has made up (RFC 9000 section
/// 17.2), or its connection id says that it cannot be routed, or is too short.
#[inline(always)]
pub fn quic(frame: &(impl Frame + ?Sized), l4: usize, len: u8) -> u64 {
    const V2: [u8; 4] = 0x6b33_43cf_u32.to_be_bytes();
    let Some(first) = frame.header::<Byte>(l4 + UDP) else { return NO_ID };
    let [first] = first.value();
    let mut at = l4 + UDP + 1;
    if first & LONG != 0 {
        let Some(long) = frame.header::<LongHeader>(at) else { return NO_ID };
        // Version 2 numbers its types one further on (RFC 9369 section 3.2).
        let version = long.version();
        let kind = (first >> 4).wrapping_sub(u8::from(version == V2)) & 3;
        // A packet of no version asks for another one, and is the client's answer to nothing.
        if kind < 2 || version == [0; 4] || long.length()[0] <= len {
            return NO_ID;
        }
        at += size_of::<LongHeader>();
    }
    connection_id(frame, at, len)
}

/// A QUIC packet with a long header.
const LONG: u8 = 0x80;

/// As [`quic`] of packets with a short header, which nearly all are; of others [`NO_ID`].
#[inline(always)]
pub fn quic_short(frame: &(impl Frame + ?Sized), l4: usize, len: u8) -> u64 {
    match frame.header::<Byte>(l4 + UDP) {
        Some(first) if first.value()[0] & LONG == 0 => connection_id(frame, l4 + UDP + 1, len),
        _ => NO_ID,
    }
}

/// The number in the connection id at `at`.
#[inline(always)]
fn connection_id(frame: &(impl Frame + ?Sized), at: usize, len: u8) -> u64 {
    let Some(id) = frame.header::<ConnectionId>(at) else { return NO_ID };
    // 0b111: cannot be routed (section 3.1 of the draft).
    if id.first()[0] >> 5 == 7 || len == 0 || len > 8 {
        return NO_ID;
    }
    u64::from_be_bytes(id.server()) >> (64 - u32::from(len) * 8)
}

/// The number in an option of the TCP header at `l4`, or [`NO_ID`].
#[inline(always)]
pub fn tcp(frame: &(impl Frame + ?Sized), l4: usize) -> u64 {
    let Some(head) = frame.header::<Tcp>(l4) else { return NO_ID };
    let options = l4 + size_of::<Tcp>();
    let room = (head.offset()[0] as usize >> 4) * 4;
    let mut at = 0;
    let mut walked = 0;
    while walked < MAX_OPTIONS {
        // Two bytes, also of an option that has one: ours does not fit behind it where they do not. The
        // verifier does not take a check of one byte alone.
        let Some(head) = frame.header::<Pair>(options + at) else { return NO_ID };
        let [kind, length] = head.value();
        if size_of::<Tcp>() + at >= room || kind == 0 {
            return NO_ID;
        }
        let step = if kind == 1 { 1 } else { usize::from(length) };
        if step == 0 {
            return NO_ID;
        }
        if kind == TCP_OPTION[0] && size_of::<Tcp>() + at + 8 <= room {
            let id = number(frame, options + at, TCP_OPTION);
            if id != NO_ID {
                return id;
            }
        }
        // The mask makes each round look the same to the verifier. A length that leads out of the header
        // may lead back into it: then the packet says what it could have said without.
        at = (at + step) & 127;
        walked += 1;
    }
    NO_ID
}

/// The number in the header at the beginning of the payload of the UDP datagram at `l4`, or [`NO_ID`].
#[inline(always)]
pub fn udp(frame: &(impl Frame + ?Sized), l4: usize) -> u64 {
    number(frame, l4 + UDP, UDP_HEADER)
}

/// The number behind `mark`, both at `at`.
#[inline(always)]
fn number(frame: &(impl Frame + ?Sized), at: usize, mark: [u8; 4]) -> u64 {
    let Some(word) = frame.header::<Word>(at) else { return NO_ID };
    let word = u64::from_be_bytes(word.value());
    if (word >> 32) as u32 == u32::from_be_bytes(mark) { word & 0xffff_ffff } else { NO_ID }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    fn datagram(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xee; 14 + UDP];
        frame.extend(payload);
        frame
    }

    #[test]
    fn connection_ids() {
        let id = |payload: &[u8], len| quic(&datagram(payload)[..], 14, len);
        let short = [0x40, 0x00, 0x12, 0x34, 0x56, 1, 2, 3, 4, 5, 6, 7];
        assert_eq!((id(&short, 1), id(&short, 2), id(&short, 3)), (0x12, 0x1234, 0x12_3456));
        assert_eq!(id(&short, 8), 0x1234_5601_0203_0405);
        assert_eq!(id(&short[..9], 2), NO_ID, "cut short");
        let mut cannot = short;
        cannot[1] = 0xe0;
        assert_eq!(id(&cannot, 2), NO_ID);
        let at_once = |payload: &[u8]| quic_short(&datagram(payload)[..], 14, 2);
        assert_eq!((at_once(&short), at_once(&cannot)), (0x1234, NO_ID));
        assert_eq!(at_once(&[&[0xe0], &short[1..]].concat()), NO_ID, "a long header");

        let long = |first, version: u32, cid: u8| {
            let mut payload = vec![first];
            payload.extend(version.to_be_bytes());
            payload.extend([cid, 0x20, 0x00, 0x07, 9, 9, 9, 9, 9, 9, 0, 0]);
            id(&payload, 2)
        };
        assert_eq!(long(0xe0, 1, 8), 7, "Handshake");
        assert_eq!(long(0xc0, 1, 8), NO_ID, "Initial: the client's own");
        assert_eq!(long(0xd0, 1, 8), NO_ID, "0-RTT");
        assert_eq!(long(0xe0, 1, 2), NO_ID, "a connection id that is too short");
        assert_eq!(long(0xf0, 0x6b33_43cf, 8), 7, "Handshake of version 2");
        assert_eq!(long(0xd0, 0x6b33_43cf, 8), NO_ID, "Initial of version 2");
        assert_eq!(long(0xe0, 0, 8), NO_ID, "version negotiation");
    }

    fn segment(options: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xee; 14 + 20];
        frame[14 + 12] = (((20 + options.len()) / 4) << 4) as u8;
        frame.extend(options);
        frame
    }

    #[test]
    fn tcp_options() {
        let id = |options: &[u8]| tcp(&segment(options)[..], 14);
        let mut ours = TCP_OPTION.to_vec();
        ours.extend([0, 0, 1, 2]);
        assert_eq!(id(&ours), 0x102);
        let mut behind = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        behind.extend(&ours);
        assert_eq!(id(&behind), 0x102, "behind NOP, NOP, timestamps");
        assert_eq!(id(&[253, 8, 0, 1, 0, 0, 1, 2]), NO_ID, "another experiment");
        assert_eq!(id(&[0, 0, 0, 0]), NO_ID);
        assert_eq!(id(&[8, 0, 1, 1]), NO_ID, "a length that leads nowhere");
        let mut past = segment(&ours);
        past[14 + 12] = 5 << 4;
        assert_eq!(tcp(&past[..], 14), NO_ID, "in the payload, not in the header");
    }

    #[test]
    fn headers_in_datagrams() {
        let id = |payload: &[u8]| udp(&datagram(payload)[..], 14);
        assert_eq!(id(&[0x4c, 0x42, 1, 0, 0, 1, 0, 0, 5]), 0x1_0000);
        assert_eq!(id(&[0x4c, 0x42, 2, 0, 0, 1, 0, 0, 5]), NO_ID);
        assert_eq!(id(&[0x4c, 0x42, 1, 0, 0, 1, 0]), NO_ID);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..90), len: u8) {
            let _ = quic(&bytes[..], 14, len);
            let _ = tcp(&bytes[..], 14);
            let _ = udp(&bytes[..], 14);
        }
    }
}
