//! Header views, and the parser of everything the programs look at.
//!
//! A view is a struct of byte arrays laid over packet memory: alignment 1, every bit pattern valid.
//! The parser runs on anything that is a [`Frame`]: packet memory in the kernel, a byte slice in
//! tests and under fuzzing. It reads, and decides nothing.

use crate::addr::Addr;

/// Read access to one frame.
pub trait Frame {
    /// The header at `offset`, or `None` when any of it lies beyond the linear part of the frame.
    fn header<T: Wire>(&self, offset: usize) -> Option<&T>;
    /// Bytes of the linear part.
    fn len(&self) -> usize;
    /// Whether there is nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A header view.
///
/// # Safety
/// The type has alignment 1, no padding, and every bit pattern is valid.
pub unsafe trait Wire: Sized {
    /// Its length in bytes.
    const LEN: usize = size_of::<Self>();
}

macro_rules! wire {
    ($(#[doc = $doc:literal])+ $name:ident, $len:literal, { $($(#[doc = $fdoc:literal])+ $field:ident: $n:literal,)* }) => {
        $(#[doc = $doc])+
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $name { $($field: [u8; $n],)* }
        const _: () = assert!(size_of::<$name>() == $len && align_of::<$name>() == 1);
        // SAFETY: `repr(C)` of byte arrays only.
        unsafe impl Wire for $name {}
        impl $name {
            $($(#[doc = $fdoc])+
            #[inline(always)]
            #[must_use]
            pub const fn $field(&self) -> [u8; $n] { self.$field })*
        }
    };
}

wire! {
    /// Ethernet II.
    Eth, 14, {
        /// Destination MAC.
        dst: 6,
        /// Source MAC.
        src: 6,
        /// Network byte order.
        ethertype: 2,
    }
}

wire! {
    /// An 802.1Q tag after the first ethertype: tag control information and the next ethertype.
    Vlan, 4, {
        /// Priority and VLAN identifier.
        tci: 2,
        /// Network byte order.
        ethertype: 2,
    }
}

wire! {
    /// IPv4 without options (RFC 791).
    Ipv4, 20, {
        /// Version and header length in words.
        version_ihl: 1,
        /// DSCP and ECN.
        tos: 1,
        /// Whole datagram.
        total_length: 2,
        /// Identification.
        id: 2,
        /// Flags and fragment offset.
        fragment: 2,
        /// Time to live, and protocol.
        ttl_protocol: 2,
        /// Header checksum.
        checksum: 2,
        /// Source.
        src: 4,
        /// Destination.
        dst: 4,
    }
}

wire! {
    /// IPv6 (RFC 8200).
    Ipv6, 40, {
        /// Version, traffic class, flow label.
        first: 4,
        /// Bytes after this header.
        payload_length: 2,
        /// Next header.
        next: 1,
        /// Hop limit.
        hop_limit: 1,
        /// Source.
        src: 16,
        /// Destination.
        dst: 16,
    }
}

wire! {
    /// The first bytes of TCP, UDP and SCTP.
    Ports, 4, {
        /// Source and destination, network byte order.
        both: 4,
    }
}

wire! {
    /// UDP (RFC 768).
    Udp, 8, {
        /// Source and destination, network byte order.
        ports: 4,
        /// Header and payload.
        length: 2,
        /// Checksum.
        checksum: 2,
    }
}

wire! {
    /// TCP without options (RFC 9293).
    Tcp, 20, {
        /// Source and destination, network byte order.
        ports: 4,
        /// Sequence and acknowledgement numbers.
        numbers: 8,
        /// Data offset.
        offset: 1,
        /// CWR ECE URG ACK PSH RST SYN FIN.
        flags: 1,
        /// Window, checksum, urgent pointer.
        rest: 6,
    }
}

wire! {
    /// SCTP's common header and the head of its first chunk (RFC 9260 section 3).
    Sctp, 16, {
        /// Source and destination, network byte order.
        ports: 4,
        /// Verification tag.
        tag: 4,
        /// CRC32c of the whole packet, of which no address is a part.
        checksum: 4,
        /// Type of the first chunk.
        chunk: 1,
        /// Flags and length of the first chunk.
        rest: 3,
    }
}

wire! {
    /// One byte.
    Byte, 1, {
        /// It.
        value: 1,
    }
}

wire! {
    /// What begins a QUIC connection id that says where it is routed to.
    ConnectionId, 9, {
        /// Three bits that tell the configuration, five of length or of nothing.
        first: 1,
        /// The server, and what follows it.
        server: 8,
    }
}

wire! {
    /// What follows the first byte of a long QUIC header.
    LongHeader, 5, {
        /// Version.
        version: 4,
        /// Bytes of the destination's connection id.
        length: 1,
    }
}

wire! {
    /// Two bytes.
    Pair, 2, {
        /// They.
        value: 2,
    }
}

wire! {
    /// Eight bytes.
    Word, 8, {
        /// They.
        value: 8,
    }
}

/// Ethertypes as they stand in a frame.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: [u8; 2] = [0x08, 0x00];
    /// IPv6.
    pub const IPV6: [u8; 2] = [0x86, 0xdd];
    /// 802.1Q.
    pub const VLAN: [u8; 2] = [0x81, 0x00];
    /// 802.1ad.
    pub const QINQ: [u8; 2] = [0x88, 0xa8];

    /// Whether they are the same: one comparison, where that of arrays is one for each byte.
    #[inline(always)]
    #[must_use]
    pub const fn is(e: [u8; 2], other: [u8; 2]) -> bool {
        u16::from_ne_bytes(e) == u16::from_ne_bytes(other)
    }

    /// Whether a tag follows.
    #[inline(always)]
    #[must_use]
    pub const fn is_vlan(e: [u8; 2]) -> bool {
        is(e, VLAN) || is(e, QINQ)
    }
}

/// IP protocol numbers.
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// IPv6 fragment header.
    pub const FRAGMENT6: u8 = 44;
    /// ICMPv6.
    pub const ICMP6: u8 = 58;
}

/// What an IP header says, either family. Lengths in bytes, host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// Transport protocol, or the first IPv6 extension header.
    pub protocol: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Whether it is any fragment but a whole datagram.
    pub fragment: bool,
    /// The whole datagram, this header included; more than 65,535 for a jumbo payload's lie.
    pub total: u32,
    /// Length of this header, options included.
    pub header: usize,
}

/// What an IP header says that matters only once it is known where the packet goes. Read then, it keeps no register
/// until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// As [`Ip::tos`].
    pub tos: u8,
    /// As [`Ip::ttl`].
    pub ttl: u8,
    /// As [`Ip::total`].
    pub total: u32,
    /// The first word of the header, in host byte order: of IPv4 all of the above but the TTL.
    pub first: u32,
}

impl Rest {
    #[inline(always)]
    const fn of4(h: &Ipv4, first: [u8; 4]) -> Self {
        let (first, [ttl, _]) = (u32::from_be_bytes(first), h.ttl_protocol());
        Self { tos: (first >> 16) as u8, ttl, total: first & 0xffff, first }
    }

    #[inline(always)]
    const fn of6(h: &Ipv6) -> Self {
        let (first, [ttl]) = (u32::from_be_bytes(h.first()), h.hop_limit());
        let total = u16::from_be_bytes(h.payload_length()) as u32 + 40;
        Self { tos: (first >> 20) as u8, ttl, total, first }
    }
}

/// That of an IPv4 header at `l3`. `None`: it is cut short.
#[inline(always)]
pub fn rest4(frame: &(impl Frame + ?Sized), l3: usize) -> Option<Rest> {
    Some(Rest::of4(frame.header(l3)?, frame.header::<Ports>(l3)?.both()))
}

/// That of an IPv6 header at `l3`. `None`: it is cut short.
#[inline(always)]
pub fn rest6(frame: &(impl Frame + ?Sized), l3: usize) -> Option<Rest> {
    frame.header(l3).map(Rest::of6)
}

/// TCP or UDP, where the frame is of IPv4 by the ethertype before `l3`, and its packet one of these, no fragment, and without
/// options in its IP header, as nearly all are; of others 0.
#[inline(always)]
#[must_use]
pub fn plain4(frame: &(impl Frame + ?Sized), l3: usize) -> u8 {
    // As they are loaded. Ethertype, version, header length; flags and offset of a fragment, protocol.
    const KIND_BITS: u32 = 0xffff_ff00u32.to_be();
    const KIND: u32 = 0x0800_4500u32.to_be();
    const PIECE_BITS: u32 = 0x3fff_00ffu32.to_be();
    const TCP: u32 = (protocol::TCP as u32).to_be();
    const UDP: u32 = (protocol::UDP as u32).to_be();

    let word = |at| frame.header::<Ports>(at).map(|word| u32::from_ne_bytes(word.both()));
    let (Some(kind), Some(piece)) = (word(l3 - 2), word(l3 + 6)) else { return 0 };
    if kind & KIND_BITS != KIND {
        return 0;
    }
    match piece & PIECE_BITS {
        TCP => protocol::TCP,
        UDP => protocol::UDP,
        _ => 0,
    }
}

/// More fragments, or an offset.
#[inline(always)]
const fn is_fragment(h: &Ipv4) -> bool {
    u16::from_be_bytes(h.fragment()) & 0x3fff != 0
}

/// Parses an IPv4 header at `l3`. `None`: it is cut short, or no IPv4 header.
#[inline(always)]
pub fn ipv4(frame: &(impl Frame + ?Sized), l3: usize) -> Option<Ip> {
    let h: &Ipv4 = frame.header(l3)?;
    let [version_ihl] = h.version_ihl();
    if version_ihl >> 4 != 4 || version_ihl & 15 < 5 {
        return None;
    }
    let [_, protocol] = h.ttl_protocol();
    let (fragment, header) = (is_fragment(h), (version_ihl as usize & 15) * 4);
    Some(Ip { fragment, header, ..known4(frame, l3, protocol)? })
}

/// The same of a header that [`plain4`] knows, with the protocol that it says. `None`: it is cut short.
#[inline(always)]
pub fn known4(frame: &(impl Frame + ?Sized), l3: usize, protocol: u8) -> Option<Ip> {
    let h: &Ipv4 = frame.header(l3)?;
    let Rest { tos, ttl, total, .. } = Rest::of4(h, frame.header::<Ports>(l3)?.both());
    Some(Ip {
        src: Addr::v4(u32::from_ne_bytes(h.src())),
        dst: Addr::v4(u32::from_ne_bytes(h.dst())),
        protocol,
        tos,
        ttl,
        fragment: false,
        total,
        header: 20,
    })
}

/// Parses an IPv6 header at `l3`. `None`: it is cut short, or no IPv6 header.
#[inline(always)]
pub fn ipv6(frame: &(impl Frame + ?Sized), l3: usize) -> Option<Ip> {
    let h: &Ipv6 = frame.header(l3)?;
    if u32::from_be_bytes(h.first()) >> 28 != 6 {
        return None;
    }
    let Rest { tos, ttl, total, .. } = Rest::of6(h);
    let [protocol] = h.next();
    Some(Ip {
        src: Addr::from_bytes(h.src()),
        dst: Addr::from_bytes(h.dst()),
        protocol,
        tos,
        ttl,
        fragment: protocol == protocol::FRAGMENT6,
        total,
        header: 40,
    })
}

/// TCP flag bits.
pub mod tcp_flags {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// ACK.
    pub const ACK: u8 = 0x10;

    /// Whether a segment with these flags opens a connection: SYN without ACK.
    #[inline(always)]
    #[must_use]
    pub const fn opens(flags: u8) -> bool {
        flags & (SYN | ACK) == SYN
    }
}

/// SCTP chunk types (RFC 9260 section 3.2).
pub mod chunk {
    /// INIT: begins an association, and stands alone in its packet.
    pub const INIT: u8 = 1;
    /// ABORT.
    pub const ABORT: u8 = 6;
    /// SHUTDOWN.
    pub const SHUTDOWN: u8 = 7;
    /// SHUTDOWN ACK.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// SHUTDOWN COMPLETE.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// What a transport header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Source port in the low half, destination port in the high half, as loaded.
    pub ports: u32,
    /// TCP: SYN without ACK; SCTP: INIT.
    pub opening: bool,
}

impl Transport {
    /// Destination port as loaded.
    #[inline(always)]
    #[must_use]
    pub const fn dst_port(&self) -> u16 {
        (self.ports >> 16) as u16
    }
}

/// Bytes that a transport header has at least.
#[inline(always)]
#[must_use]
pub const fn transport_len(protocol: u8) -> usize {
    match protocol {
        protocol::TCP => size_of::<Tcp>(),
        protocol::SCTP => size_of::<Sctp>(),
        _ => size_of::<Udp>(),
    }
}

/// Parses TCP, SCTP or UDP at `l4`; `None`: it is cut short.
#[inline(always)]
pub fn transport(frame: &(impl Frame + ?Sized), l4: usize, protocol: u8) -> Option<Transport> {
    if protocol == protocol::TCP {
        let h: &Tcp = frame.header(l4)?;
        let [flags] = h.flags();
        let opening = tcp_flags::opens(flags);
        Some(Transport { ports: u32::from_ne_bytes(h.ports()), opening })
    } else if protocol == protocol::SCTP {
        let h: &Sctp = frame.header(l4)?;
        let opening = h.chunk()[0] == chunk::INIT;
        Some(Transport { ports: u32::from_ne_bytes(h.ports()), opening })
    } else {
        let h: &Udp = frame.header(l4)?;
        Some(Transport { ports: u32::from_ne_bytes(h.ports()), opening: false })
    }
}

/// Whether a packet says that its sender is done with the connection: FIN or RST; of SCTP, a chunk that ends an
/// association in front.
#[inline(always)]
pub fn closing(frame: &(impl Frame + ?Sized), l4: usize, protocol: u8) -> bool {
    match protocol {
        protocol::TCP => frame
            .header::<Tcp>(l4)
            .is_some_and(|h| h.flags()[0] & (tcp_flags::FIN | tcp_flags::RST) != 0),
        protocol::SCTP => frame.header::<Sctp>(l4).is_some_and(|h| {
            let [kind] = h.chunk();
            (chunk::ABORT..=chunk::SHUTDOWN_ACK).contains(&kind) || kind == chunk::SHUTDOWN_COMPLETE
        }),
        _ => false,
    }
}

impl Frame for [u8] {
    fn header<T: Wire>(&self, offset: usize) -> Option<&T> {
        let bytes = self.get(offset..offset.checked_add(T::LEN)?)?;
        // SAFETY: `bytes` is `T::LEN` long; `T: Wire` has alignment 1 and no invalid bit patterns;
        // the borrow of the slice lives as long as the header's.
        Some(unsafe { &*bytes.as_ptr().cast::<T>() })
    }

    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_ipv4_header() {
        let mut b = [0u8; 40];
        b[0] = 0x46;
        b[1] = 0xb8;
        b[2..4].copy_from_slice(&44u16.to_be_bytes());
        b[8] = 63;
        b[9] = 6;
        b[12..16].copy_from_slice(&[192, 0, 2, 1]);
        b[16..20].copy_from_slice(&[203, 0, 113, 10]);
        let ip = ipv4(&b[..], 0).unwrap();
        assert_eq!((ip.header, ip.total, ip.ttl, ip.protocol, ip.tos), (24, 44, 63, 6, 0xb8));
        assert!(!ip.fragment);
        b[6] = 0x20;
        assert!(ipv4(&b[..], 0).unwrap().fragment, "more fragments");
        b[6] = 0x40;
        assert!(!ipv4(&b[..], 0).unwrap().fragment, "don't fragment is no fragment");
        b[7] = 1;
        assert!(ipv4(&b[..], 0).unwrap().fragment, "an offset");
        b[0] = 0x44;
        assert_eq!(ipv4(&b[..], 0), None, "a header of 16 bytes");
        assert_eq!(ipv4(&b[..19], 0), None);
    }

    #[test]
    fn syn_without_ack_opens() {
        let mut b = [0u8; 20];
        b[3] = 80;
        for (flags, opens) in
            [(0x02, true), (0x12, false), (0x10, false), (0xc2, true), (0x04, false)]
        {
            b[13] = flags;
            assert_eq!(transport(&b[..], 0, 6).unwrap().opening, opens, "flags {flags:#x}");
        }
        assert_eq!(transport(&b[..], 0, 6).unwrap().dst_port(), 80u16.to_be());
        assert_eq!(transport(&b[..19], 0, 6), None);
        assert!(transport(&b[..8], 0, 17).is_some());
    }

    #[test]
    fn sctp_begins_with_init() {
        let mut b = [0u8; 16];
        b[3] = 80;
        for (kind, opens, closes) in [
            (1, true, false),
            (0, false, false),
            (10, false, false),
            (6, false, true),
            (7, false, true),
            (8, false, true),
            (14, false, true),
            (9, false, false),
        ] {
            b[12] = kind;
            let found = transport(&b[..], 0, 132).unwrap();
            assert_eq!((found.opening, found.dst_port()), (opens, 80u16.to_be()), "chunk {kind}");
            assert_eq!(closing(&b[..], 0, 132), closes, "chunk {kind}");
        }
        assert_eq!(transport(&b[..15], 0, 132), None);
        assert_eq!(transport_len(132), 16);
    }

    proptest! {
        #[test]
        fn parsers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), at in 0usize..90) {
            let _ = ipv4(&bytes[..], at);
            let _ = ipv6(&bytes[..], at);
            let _ = transport(&bytes[..], at, 6);
            let _ = transport(&bytes[..], at, 17);
            let _ = transport(&bytes[..], at, 132);
            let _ = closing(&bytes[..], at, 132);
            let _ = bytes.as_slice().header::<Eth>(usize::MAX);
        }
    }
}
