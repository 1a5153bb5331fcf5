//! The packets that are sent through programs, and what must come out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, ensure};
use lb_tests::rig::{CLIENT_MAC, HOP_MAC, OUR_MAC};

/// Port of every service.
pub const PORT: u16 = 80;

const ETH: usize = 14;
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
const TTL: u8 = 64;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A TCP segment of a connection.
    Segment,
    /// A SYN.
    Opening,
    /// UDP with a QUIC short header whose connection id names [`SERVER`]; IPv4 only.
    QuicShort,
    /// A segment behind two VLAN tags; IPv4 only, and of one flow, for the frame writes others' addresses where they are
    /// without tags.
    Tagged,
    /// A segment with four bytes of options in its IP header; likewise.
    Options,
}

/// 802.1ad and 802.1Q.
const TAGS: [u8; 8] = [0x88, 0xa8, 0, 100, 0x81, 0, 0, 7];
/// Three that say nothing, and the end of the list.
const OPTIONS: [u8; 4] = [1, 1, 1, 0];

/// The server that connection ids name, in two bytes.
pub const SERVER: u16 = 1;

/// Where a flow comes from and goes to.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Client.
    pub src: IpAddr,
    /// VIP, of the same family.
    pub dst: IpAddr,
    /// Client's port.
    pub port: u16,
    /// Port that it goes to; of all flows together the same, with IPv6.
    pub to: u16,
}

impl Flow {
    /// A TCP segment without payload, or as many bytes of UDP, in an Ethernet frame of at least 60 bytes.
    ///
    /// # Panics
    /// The addresses are of different families.
    #[must_use]
    pub fn frame(&self, shape: Shape) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend_from_slice(&OUR_MAC);
        frame.extend_from_slice(&CLIENT_MAC);
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4(&mut frame, src, dst, shape),
            (IpAddr::V6(src), IpAddr::V6(dst))
                if matches!(shape, Shape::Segment | Shape::Opening) =>
            {
                ipv6(&mut frame, src, dst);
            }
            _ => panic!("a flow has one family, and this shape is over IPv4"),
        }
        frame.extend_from_slice(&self.port.to_be_bytes());
        frame.extend_from_slice(&self.to.to_be_bytes());
        match shape {
            Shape::QuicShort => {
                // Length, no checksum; first byte, then the connection id: its own first byte and the number.
                frame.extend_from_slice(&[0, 20, 0, 0, 0x40, 0x08]);
                frame.extend_from_slice(&SERVER.to_be_bytes());
                frame.extend_from_slice(&[0; 8]);
            }
            Shape::Segment | Shape::Opening | Shape::Tagged | Shape::Options => {
                let flags = if shape == Shape::Opening { SYN } else { ACK };
                frame.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2]);
                frame.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            }
        }
        frame.resize(frame.len().max(60), 0);
        frame
    }
}

fn ipv4(frame: &mut Vec<u8>, src: Ipv4Addr, dst: Ipv4Addr, shape: Shape) {
    let protocol = if shape == Shape::QuicShort { 17 } else { 6 };
    if shape == Shape::Tagged {
        frame.extend_from_slice(&TAGS);
    }
    frame.extend_from_slice(&[0x08, 0x00]);
    let at = frame.len();
    let options: &[u8] = if shape == Shape::Options { &OPTIONS } else { &[] };
    let (words, len) = (5 + options.len() as u8 / 4, 40 + options.len() as u8);
    frame.extend_from_slice(&[0x40 | words, 0, 0, len, 0, 1, 0x40, 0, TTL, protocol, 0, 0]);
    frame.extend_from_slice(&src.octets());
    frame.extend_from_slice(&dst.octets());
    frame.extend_from_slice(options);
    let check = !sum(&frame[at..]);
    frame[at + 10..at + 12].copy_from_slice(&check.to_be_bytes());
}

fn ipv6(frame: &mut Vec<u8>, src: Ipv6Addr, dst: Ipv6Addr) {
    frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, TTL]);
    frame.extend_from_slice(&src.octets());
    frame.extend_from_slice(&dst.octets());
}

/// The Internet checksum's sum of an even number of bytes (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Bytes of the link header, tags included.
fn link(frame: &[u8]) -> usize {
    if frame[12..14] == TAGS[..2] { ETH + TAGS.len() } else { ETH }
}

/// What stands after the link header when the packet has been routed once.
fn one_hop_later(sent: &[u8]) -> Vec<u8> {
    let mut inner = sent[link(sent)..].to_vec();
    if inner[0] >> 4 == 4 {
        inner[8] -= 1;
        inner[10..12].fill(0);
        let check = !sum(&inner[..usize::from(inner[0] & 15) * 4]);
        inner[10..12].copy_from_slice(&check.to_be_bytes());
    } else {
        inner[7] -= 1;
    }
    inner
}

/// Checks that `out` is `sent` one hop later with the backend's link header.
///
/// # Errors
/// What differs.
pub fn expect_routed(out: &[u8], sent: &[u8]) -> anyhow::Result<()> {
    ensure!(out.len() == sent.len(), "length {}", out.len());
    ensure!(out[..6] == HOP_MAC && out[6..12] == OUR_MAC, "link header");
    ensure!(out[ETH..] == one_hop_later(sent), "packet: {out:02x?}");
    Ok(())
}

/// Checks that `out` is `sent` one hop later inside an outer header of the backend's family, and behind
/// the `shim` bytes of UDP and of what follows it.
///
/// # Errors
/// What differs.
pub fn expect_encapsulated(out: &[u8], sent: &[u8], shim: usize) -> anyhow::Result<()> {
    ensure!(out.len() > ETH + 20 && out[..6] == HOP_MAC && out[6..12] == OUR_MAC, "link header");
    let inner = one_hop_later(sent);
    let (proto, length) = match inner[0] >> 4 {
        4 => (4, u16::from_be_bytes([inner[2], inner[3]])),
        _ => (41, 40 + u16::from_be_bytes([inner[4], inner[5]])),
    };
    let proto = if shim == 0 { proto } else { 17 };
    let length = length + shim as u16;
    let at = link(sent);
    ensure!(link(out) == at && out[12..at - 2] == sent[12..at - 2], "tags");
    let (l3, kind) = (&out[at..], &out[at - 2..at]);
    let rest = if kind == [8, 0] {
        ensure!(l3[0] == 0x45 && l3[9] == proto && sum(&l3[..20]) == 0xffff, "outer IPv4 header");
        let total = u16::from_be_bytes([l3[2], l3[3]]);
        ensure!(total == 20 + length, "outer length {total}");
        ensure!(l3[16] == 10, "outer destination");
        &l3[20..]
    } else {
        ensure!(kind == [0x86, 0xdd] && l3[0] >> 4 == 6 && l3[6] == proto, "outer IPv6");
        let total = u16::from_be_bytes([l3[4], l3[5]]);
        ensure!(total == length, "outer length {total}");
        l3.get(40..).context("the outer header is cut")?
    };
    if shim > 0 {
        let udp = rest.get(4..6).context("the UDP header is cut")?;
        ensure!(udp == (length).to_be_bytes(), "UDP length {udp:?}");
    }
    let rest = rest.get(shim..).context("the shim is cut")?;
    ensure!(rest == inner, "inner packet: {rest:02x?}, not {inner:02x?}");
    Ok(())
}

/// Checks that `out` is `sent`, an IPv4 segment, one hop later with other addresses and ports, and with checksums
/// that are as right as they were; `vip` is what clients use.
///
/// # Errors
/// What differs.
pub fn expect_translated(out: &[u8], sent: &[u8], vip: Ipv4Addr) -> anyhow::Result<()> {
    let forth = sent[ETH + 16..ETH + 20] == vip.octets();
    ensure!(out.len() == sent.len(), "length {}", out.len());
    let mac = if forth { HOP_MAC } else { CLIENT_MAC };
    ensure!(out[..6] == mac && out[6..12] == OUR_MAC, "link header");
    let (new, old) = (&out[ETH..], &sent[ETH..]);
    ensure!(new[8] == old[8] - 1 && sum(&new[..20]) == 0xffff, "IPv4 header");
    ensure!(new[..8] == old[..8] && new[9] == old[9], "the rest of the IPv4 header");
    let (src, dst, ports) = (&new[12..16], &new[16..20], &new[20..24]);
    if forth {
        ensure!(
            src == [10, 0, 0, 1] && dst[0] == 10 && ports[2..] == old[22..24],
            "forth: {new:x?}"
        );
    } else {
        ensure!(src == vip.octets() && ports[..2] == old[20..22], "back: {new:x?}");
    }
    // Addresses and the segment under one sum, which translation leaves as it was.
    ensure!(sum(&new[12..40]) == sum(&old[12..40]), "TCP checksum");
    ensure!(new[24..36] == old[24..36] && new[38..] == old[38..], "the rest of the segment");
    Ok(())
}

/// Checks that a frame of this length was given the floor's header.
///
/// # Errors
/// What differs.
pub fn expect_floor(out: &[u8], sent: &[u8]) -> anyhow::Result<()> {
    ensure!(out.len() == sent.len() + 20, "length {}", out.len());
    ensure!(out[ETH] == 0x45 && sum(&out[ETH..ETH + 20]) == 0xffff, "outer header");
    // The floor moves no link header: what was sent stands behind it as it was.
    ensure!(out[ETH + 20..] == sent[ETH..], "inner packet");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(src: &str, dst: &str) -> Flow {
        Flow { src: src.parse().unwrap(), dst: dst.parse().unwrap(), port: 4000, to: PORT }
    }

    #[test]
    fn frames_are_whole() {
        let v4 = flow("192.0.2.1", "203.0.113.1").frame(Shape::Opening);
        assert_eq!((v4.len(), sum(&v4[14..34])), (60, 0xffff));
        assert_eq!(v4[36..38], [0, 80]);
        assert_eq!(v4[47], SYN);
        let v6 = flow("2001:db8::1", "2001:db8::2").frame(Shape::Segment);
        assert_eq!((v6.len(), v6[67]), (74, ACK));
        let tagged = flow("192.0.2.1", "203.0.113.1").frame(Shape::Tagged);
        assert_eq!((tagged.len(), link(&tagged), sum(&tagged[22..42])), (62, 22, 0xffff));
        let long = flow("192.0.2.1", "203.0.113.1").frame(Shape::Options);
        assert_eq!((long.len(), long[14], sum(&long[14..38])), (60, 0x46, 0xffff));
        assert_eq!(long[40..42], [0, 80]);
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let sent = flow("192.0.2.1", "203.0.113.1").frame(Shape::Segment);
        let mut out = Vec::new();
        out.extend_from_slice(&HOP_MAC);
        out.extend_from_slice(&OUR_MAC);
        let (from, to) = ("10.0.0.1".parse().unwrap(), "10.0.1.1".parse().unwrap());
        ipv4(&mut out, from, to, Shape::Segment);
        out[ETH + 9] = 4;
        out[ETH + 2..ETH + 4].copy_from_slice(&60u16.to_be_bytes());
        out[ETH + 10..ETH + 12].fill(0);
        let check = !sum(&out[ETH..ETH + 20]);
        out[ETH + 10..ETH + 12].copy_from_slice(&check.to_be_bytes());
        out.extend_from_slice(&sent[ETH..]);
        assert!(expect_encapsulated(&out, &sent, 0).is_err(), "the inner TTL is as it was");
        out[ETH + 20 + 8] -= 1;
        out[ETH + 20 + 10] += 1;
        expect_encapsulated(&out, &sent, 0).unwrap();
        out[ETH + 40] ^= 1;
        assert!(expect_encapsulated(&out, &sent, 0).is_err());
    }
}
