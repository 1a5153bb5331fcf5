//! Packets for a service that wants more than its ring says ([`abi::choice`]), or that not everybody may use.
//!
//! A program of its own, which is handed a packet that nobody has changed yet and looks at it from the
//! beginning, so that it costs other services nothing. Whole packets of TCP and UDP only: others go to
//! [`crate::exception`].

use abi::{
    choice::{Choice, NO_ID},
    reason::Reason,
    server,
    table::Frontend,
    wire::{self, Eth, Frame, Ip, Tcp, Transport, Vlan, ethertype, protocol, tcp_flags},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use crate::{maps::Maps, packet::Packet, stage::service};

/// The reason that stands in the end.
#[inline(always)]
pub(crate) fn run(packet: &Packet, cpu: u32) -> Reason {
    let Some(eth) = packet.header::<Eth>(0) else { return Reason::NotIp };
    let e = eth.ethertype();
    if !ethertype::is_vlan(e) {
        return network::<14>(packet, e, cpu);
    }
    let Some(outer) = packet.header::<Vlan>(14) else { return Reason::NotIp };
    let e = outer.ethertype();
    if !ethertype::is_vlan(e) {
        return network::<18>(packet, e, cpu);
    }
    let Some(inner) = packet.header::<Vlan>(18) else { return Reason::NotIp };
    network::<22>(packet, inner.ethertype(), cpu)
}

#[inline(always)]
fn network<const L3: usize>(packet: &Packet, e: [u8; 2], cpu: u32) -> Reason {
    let index = match e {
        ethertype::IPV4 => send::<L3, true>(packet.context(), cpu),
        ethertype::IPV6 => send::<L3, false>(packet.context(), cpu),
        _ => return Reason::NotIp,
    };
    Reason::from_index(index).unwrap_or(Reason::NoBackend)
}

/// What is returned: the index of a reason.
#[inline(never)]
fn send<const L3: usize, const V4: bool>(ctx: *mut xdp_md, cpu: u32) -> u32 {
    let mut packet = Packet::new(XdpContext::new(ctx));
    let ip = if V4 { wire::ipv4(&packet, L3) } else { wire::ipv6(&packet, L3) };
    let Some(ip) = ip else { return Reason::Truncated as u32 };
    chosen::<L3, V4>(&mut packet, &ip, cpu).unwrap_or_else(|r| r) as u32
}

#[inline(always)]
fn chosen<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    cpu: u32,
) -> Result<Reason, Reason> {
    let l4 = L3 + ip.header;
    let transport = wire::transport(packet, l4, ip.protocol).ok_or(Reason::Truncated)?;
    let (row, frontend) = service::frontend(ip, &transport)?;
    service::permit(frontend, ip.src)?;
    service::sendable::<L3>(packet, ip, ip.header)?;
    let Some(choice) = Choice::read(&Maps, frontend) else {
        let picked = service::pick(ip, &transport, frontend)?;
        return service::sent::<L3, V4>(packet, ip, &transport, row, frontend, &picked, cpu);
    };
    let id = named(packet, ip, l4, &transport, frontend, &choice);
    let closing = ip.protocol == protocol::TCP
        && packet
            .header::<Tcp>(l4)
            .is_some_and(|h| h.flags()[0] & (tcp_flags::FIN | tcp_flags::RST) != 0);
    let picked = service::choose(ip, &transport, frontend, &choice, closing, id)?;
    service::sent::<L3, V4>(packet, ip, &transport, row, frontend, &picked, cpu)
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
    } else if choice.tcp_option && !transport.opening {
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
