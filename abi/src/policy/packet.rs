//! What policy needs to know of a packet. Reads, and decides nothing.

use crate::{
    addr::Addr,
    limits::policy::MAX_EXTENSIONS,
    wire::{self, Frame, Ipv4, Ports, Tcp, Word, tcp_flags},
};

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP6: u8 = 58;
pub(super) const SCTP: u8 = 132;

const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
const ECHO6: u8 = 128;
const ECHO_REPLY6: u8 = 129;

/// Addresses, protocol and ports of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// Source port in the low half, destination port in the high half, as loaded; for an ICMP echo its
    /// identifier in both; else 0.
    pub ports: u32,
    /// IP protocol, behind extension headers.
    pub protocol: u8,
    /// ICMP type.
    pub kind: u8,
    /// TCP with SYN and without ACK.
    pub opening: bool,
    /// What of its datagram it is.
    pub part: Part,
    /// Identification, as it stands in the header; of fragments.
    pub id: u32,
    /// Where the header above IP begins in the frame.
    pub at: u32,
}

/// What of its datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// All of it.
    Whole = 0,
    /// Its beginning, with ports; others follow.
    First = 1,
    /// A later part: ports are unknown.
    Later = 2,
}

impl Head {
    /// The port that rules speak of: destination port or ICMP type. Host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn port(&self) -> u16 {
        match self.protocol {
            ICMP | ICMP6 => self.kind as u16,
            _ => u16::from_be((self.ports >> 16) as u16),
        }
    }

    /// The port of what this packet replies to: its own source port, or the type of an echo request.
    #[inline(always)]
    #[must_use]
    pub const fn port_back(&self) -> u16 {
        match self.protocol {
            ICMP => ECHO as u16,
            ICMP6 => ECHO6 as u16,
            _ => u16::from_be(self.ports as u16),
        }
    }

    /// Neighbour and router discovery, and multicast listeners (RFC 4861, 2710, 3810): without them no
    /// packet finds its way.
    #[inline(always)]
    #[must_use]
    pub const fn is_neighbour_discovery(&self) -> bool {
        self.protocol == ICMP6 && matches!(self.kind, 130..=137 | 143)
    }

    /// An ICMP message about another packet (RFC 792, RFC 4443).
    #[inline(always)]
    #[must_use]
    pub const fn is_error(&self) -> bool {
        match self.protocol {
            ICMP => matches!(self.kind, 3 | 11 | 12),
            ICMP6 => self.kind != 0 && self.kind < 5,
            _ => false,
        }
    }

    /// Whether its connection is remembered. TCP says what opens one; of all else the first packet
    /// does, so it is remembered which end sent that, also where only the other direction is closed.
    #[inline(always)]
    pub(super) const fn is_tracked(&self, closed_back: bool) -> bool {
        match self.protocol {
            TCP => self.opening && closed_back,
            ICMP => self.kind == ECHO,
            ICMP6 => self.kind == ECHO6,
            _ => true,
        }
    }

    #[inline(always)]
    pub(super) const fn may_be_reply(&self) -> bool {
        match self.protocol {
            TCP => !self.opening,
            ICMP => self.kind == ECHO_REPLY,
            ICMP6 => self.kind == ECHO_REPLY6,
            _ => true,
        }
    }
}

/// No header above IP's begins further into the frame; one less than a power of two.
const MAX_AT: u32 = 0x7ff;

/// Reads the packet whose IP header, of the family that is said, begins at `l3`. `None`: it is cut short
/// or no such packet.
#[inline(always)]
pub fn head(frame: &(impl Frame + ?Sized), l3: usize, v4: bool) -> Option<Head> {
    let mut head = if v4 { network4(frame, l3)? } else { network6(frame, l3)? };
    if head.part as u8 == Part::Later as u8 {
        return Some(head);
    }
    if head.at > MAX_AT {
        return None;
    }
    let at = head.at as usize;
    match head.protocol {
        TCP => {
            let tcp: &Tcp = frame.header(at)?;
            let [flags] = tcp.flags();
            head.ports = u32::from_ne_bytes(tcp.ports());
            head.opening = tcp_flags::opens(flags);
        }
        _ => transport(frame, at, &mut head)?,
    }
    Some(head)
}

/// Reads the packet that an ICMP error is about, of which 8 bytes behind the IP header are there at
/// least. `None`: it is no error, or what it is about is not there.
#[inline(always)]
pub fn embedded(frame: &(impl Frame + ?Sized), error: &Head) -> Option<Head> {
    if !error.is_error() {
        return None;
    }
    let l3 = (error.at & MAX_AT) as usize + 8;
    let mut head = if error.protocol == ICMP { network4(frame, l3)? } else { network6(frame, l3)? };
    if head.part as u8 == Part::Later as u8 {
        return None;
    }
    let at = head.at as usize;
    transport(frame, at, &mut head)?;
    Some(head)
}

/// Ports and ICMP types: all that lies in the first eight bytes.
#[inline(always)]
fn transport(frame: &(impl Frame + ?Sized), at: usize, head: &mut Head) -> Option<()> {
    match head.protocol {
        TCP | UDP | SCTP => {
            head.ports = u32::from_ne_bytes(frame.header::<Ports>(at)?.both());
        }
        ICMP | ICMP6 => {
            let [kind, _, _, _, id @ .., _, _] = frame.header::<Word>(at)?.value();
            head.kind = kind;
            if matches!((head.protocol, kind), (ICMP, ECHO | ECHO_REPLY))
                || matches!((head.protocol, kind), (ICMP6, ECHO6 | ECHO_REPLY6))
            {
                let id = u32::from(u16::from_ne_bytes(id));
                head.ports = id | id << 16;
            }
        }
        _ => {}
    }
    Some(())
}

#[inline(always)]
fn network4(frame: &(impl Frame + ?Sized), l3: usize) -> Option<Head> {
    let ip = wire::ipv4(frame, l3)?;
    let h: &Ipv4 = frame.header(l3)?;
    let field = u16::from_be_bytes(h.fragment());
    Some(Head {
        src: ip.src,
        dst: ip.dst,
        ports: 0,
        protocol: ip.protocol,
        kind: 0,
        opening: false,
        part: part(field & 0x1fff != 0, field & 0x2000 != 0),
        id: u32::from(u16::from_ne_bytes(h.id())),
        at: (l3 + ip.header) as u32,
    })
}

/// Walks over extension headers (RFC 8200 section 4, RFC 4302).
#[inline(always)]
fn network6(frame: &(impl Frame + ?Sized), l3: usize) -> Option<Head> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let ip = wire::ipv6(frame, l3)?;
    let mut head = Head {
        src: ip.src,
        dst: ip.dst,
        ports: 0,
        protocol: ip.protocol,
        kind: 0,
        opening: false,
        part: Part::Whole,
        id: 0,
        at: (l3 + 40) as u32,
    };
    let mut walked = 0;
    while walked <= MAX_EXTENSIONS {
        let protocol = head.protocol;
        if !matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION) {
            return Some(head);
        }
        let [next, len, b, c, id @ ..] = frame.header::<Word>(head.at as usize)?.value();
        if protocol == FRAGMENT {
            let field = u16::from_be_bytes([b, c]);
            head.part = part(field >> 3 != 0, field & 1 != 0);
            head.id = u32::from_ne_bytes(id);
            head.at += 8;
        } else {
            let unit = if protocol == AUTHENTICATION { 4 } else { 8 };
            head.at += 8 + u32::from(len) * unit;
        }
        head.protocol = next;
        if head.part as u8 == Part::Later as u8 {
            return Some(head);
        }
        walked += 1;
    }
    None
}

#[inline(always)]
const fn part(later: bool, more: bool) -> Part {
    if later {
        Part::Later
    } else if more {
        Part::First
    } else {
        Part::Whole
    }
}
