//! Packets for a service that wants more than its ring says ([`abi::choice`]), that not everybody may use, or that
//! routes clients to groups of its backends ([`abi::routes`]). Whatever their service wants: packets of SCTP, at whose
//! ports the first program does not look; those with two tags; and, without a tag, those with IPv4 options or with fewer
//! bytes than a TCP header has.
//!
//! Whole packets of TCP, UDP and SCTP only: others go to [`crate::exception`].

use abi::{
    choice::{Choice, NO_ID},
    limits::behind,
    reason::Reason,
    server,
    table::{Frontend, Mode},
    wire::{self, Ip, Transport, protocol},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use crate::{
    behind::Program,
    maps::{self, Maps, feature},
    packet::Packet,
    place,
    stage::service,
};

/// The program.
pub(crate) struct Chosen;

impl Program for Chosen {
    #[inline(never)]
    fn look<const L3: usize, const V4: bool>(ctx: *mut xdp_md, cpu: u32) -> u32 {
        let mut packet = Packet::new(XdpContext::new(ctx));
        let ip = if V4 { wire::ipv4(&packet, L3) } else { wire::ipv6(&packet, L3) };
        let Some(ip) = ip else { return Reason::Truncated as u32 };
        chosen::<L3, V4>(&mut packet, &ip, cpu).unwrap_or_else(|r| r) as u32
    }

    #[inline(always)]
    fn not_ip() -> Reason {
        Reason::NotIp
    }

    /// A source that is refused here has had its second look. What goes to this machine is seen by the SYN proxy, where
    /// there is one.
    #[inline(always)]
    fn onward(reason: Reason) -> Option<u32> {
        if reason == Reason::DeliveredLocally && maps::has::<{ feature::SYN_PROXY }>() {
            return Some(behind::SYN);
        }
        (reason.is_exceptional() && reason != Reason::SourceRefused).then(|| place(reason))
    }
}

#[inline(always)]
fn chosen<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    cpu: u32,
) -> Result<Reason, Reason> {
    let l4 = L3 + ip.header;
    let transport = wire::transport(packet, l4, ip.protocol).ok_or(Reason::Truncated)?;
    let closing = wire::closing(packet, l4, ip.protocol);
    // What the flags say matters little to what follows, which the verifier need not go through for each.
    let word = u64::from(ip.protocol) | u64::from(transport.opening) << 8 | u64::from(closing) << 9;
    let word = maps::forget_word(word).ok_or(Reason::Truncated)?;
    let transport = Transport { opening: word >> 8 & 1 != 0, ..transport };
    let (ip, closing) = (&Ip { protocol: word as u8, ..*ip }, word >> 9 != 0);
    let (row, frontend) = service::frontend(ip, &transport)?;
    service::permit(frontend, ip.src)?;
    service::sendable::<L3, V4>(packet, ip.protocol, ip.header)?;
    if frontend.mode() == Mode::Nat {
        // By a range of ports; the choice is made there.
        return Err(Reason::NatNoEntry);
    }
    let choice = Choice::read(&Maps, frontend).unwrap_or_default();
    let id = named(packet, ip, l4, &transport, frontend, &choice);
    let picked = service::choose(ip, &transport, row, closing, id)?;
    service::sent::<L3, V4>(packet, &transport, row, frontend, &picked, cpu)
}

/// The server that the packet names.
#[inline(always)]
fn named(
    packet: &Packet,
    ip: &Ip,
    l4: usize,
    transport: &Transport,
    frontend: &Frontend,
    choice: &Choice,
) -> u64 {
    if ip.protocol == protocol::UDP {
        if frontend.is_quic() {
            return named_by_connection_id(packet.context(), l4 as u32, choice.quic_len.into());
        }
        if choice.udp_header {
            return server::udp(packet, l4);
        }
    } else if ip.protocol == protocol::TCP && choice.tcp_option && !transport.opening {
        return named_by_option(packet.context(), l4 as u32);
    }
    NO_ID
}

/// No offset of a transport header is near this; the verifier wants to know.
const FURTHEST: u32 = 0xfff;

/// A global function, as the next: the verifier goes through it once, and not for each way that leads to it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn named_by_option(ctx: *mut xdp_md, l4: u32) -> u64 {
    if l4 > FURTHEST {
        return NO_ID;
    }
    server::tcp(&Packet::new(XdpContext::new(ctx)), l4 as usize)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn named_by_connection_id(ctx: *mut xdp_md, l4: u32, len: u32) -> u64 {
    if l4 > FURTHEST {
        return NO_ID;
    }
    server::quic(&Packet::new(XdpContext::new(ctx)), l4 as usize, len as u8)
}
