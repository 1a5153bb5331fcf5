//! The order of the stages.
//!
//! Ethernet -> (VLAN tags) -> IP -> prefilter -> decapsulation -> service (-> SYN proxy). The pipeline is made once
//! for each place where an IP header can begin, so that every offset in it is a constant.

use abi::{
    limits::behind,
    reason::Reason,
    table::Control,
    wire::{self, Eth, Frame, Ip, Vlan, ethertype, protocol},
};

use crate::{
    constant::stop,
    events,
    maps::{self, feature},
    packet::Packet,
    stage::{
        decap::{self, Tunnel},
        guard, prefilter, service,
    },
    synproxy,
};

/// How a packet's way through the first program ends.
#[derive(Clone, Copy)]
pub(crate) enum End {
    /// Sent, and its reason counted: what the program returns.
    Sent(u32),
    /// For this reason, which is not counted yet.
    Of(Reason),
}

/// Runs the packet through every stage that this instance has.
#[inline(always)]
pub(crate) fn run(packet: &mut Packet) -> End {
    if packet.check::<TCP4>() {
        let end = plain4(packet);
        packet.unchecked();
        if let Some(end) = end {
            return end;
        }
    }
    let Some(eth) = packet.header::<Eth>(0) else { return End::Of(Reason::NotIp) };
    let e = eth.ethertype();
    if ethertype::is(e, ethertype::IPV4) {
        return network::<14>(packet, ethertype::IPV4);
    }
    if ethertype::is_vlan(e) {
        return tagged(packet);
    }
    network::<14>(packet, e)
}

/// Bytes of a frame up to the end of TCP's header, without tags, options or extension headers.
const TCP4: usize = 14 + 20 + 20;
const TCP6: usize = 14 + 40 + 20;

/// Nearly all packets of IPv4, for which three fields of the header are constants.
#[inline(always)]
fn plain4(packet: &mut Packet) -> Option<End> {
    match wire::plain4(packet, 14) {
        protocol::TCP => Some(v4::<14, { protocol::TCP }>(packet)),
        protocol::UDP => Some(v4::<14, { protocol::UDP }>(packet)),
        _ => None,
    }
}

/// The same of IPv6.
#[inline(always)]
fn plain6(packet: &mut Packet) -> Option<End> {
    let ip = wire::ipv6(packet, 14)?;
    match ip.protocol {
        protocol::TCP => {
            let ip = Ip { protocol: protocol::TCP, fragment: false, ..ip };
            Some(all::<14, false, { protocol::TCP }>(packet, &ip))
        }
        protocol::UDP => {
            let ip = Ip { protocol: protocol::UDP, fragment: false, ..ip };
            Some(all::<14, false, { protocol::UDP }>(packet, &ip))
        }
        _ => None,
    }
}

/// One or two VLAN tags; they are put back as they came.
#[inline(always)]
fn tagged(packet: &mut Packet) -> End {
    let Some(outer) = packet.header::<Vlan>(14) else { return End::Of(Reason::NotIp) };
    let e = outer.ethertype();
    if !ethertype::is_vlan(e) {
        return network::<18>(packet, e);
    }
    let Some(inner) = packet.header::<Vlan>(18) else { return End::Of(Reason::NotIp) };
    let e = inner.ethertype();
    network::<22>(packet, e)
}

#[inline(always)]
fn network<const L3: usize>(packet: &mut Packet, e: [u8; 2]) -> End {
    if ethertype::is(e, ethertype::IPV4) {
        return v4::<L3, 0>(packet);
    }
    if !ethertype::is(e, ethertype::IPV6) {
        return End::Of(Reason::NotIp);
    }
    if L3 == 14 && packet.check::<TCP6>() {
        let end = plain6(packet);
        packet.unchecked();
        if let Some(end) = end {
            return end;
        }
    }
    match wire::ipv6(packet, L3) {
        Some(ip) => all::<L3, false, 0>(packet, &ip),
        None => End::Of(Reason::NotOurs),
    }
}

/// `PLAIN`: the protocol whose header is known to follow at once, or 0.
#[inline(always)]
fn v4<const L3: usize, const PLAIN: u8>(packet: &mut Packet) -> End {
    let ip = match PLAIN {
        0 => wire::ipv4(packet, L3),
        _ => wire::known4(packet, L3, PLAIN),
    };
    let Some(ip) = ip else { return End::Of(Reason::NotOurs) };
    all::<L3, true, PLAIN>(packet, &ip)
}

/// The stages; what would then go to the host's stack is seen by the SYN proxy, where there is one.
#[inline(always)]
fn all<const L3: usize, const V4: bool, const PLAIN: u8>(packet: &mut Packet, ip: &Ip) -> End {
    let end = ip_stages::<L3, V4, PLAIN>(packet, ip);
    let End::Of(reason) = end else { return end };
    if maps::has::<{ feature::SYN_PROXY }>()
        && matches!(reason, Reason::NotOurs | Reason::DeliveredLocally)
        && synproxy::is_for::<L3, V4>(packet, ip)
    {
        maps::hand_on(packet.context(), behind::SYN, reason);
    }
    end
}

#[inline(always)]
fn ip_stages<const L3: usize, const V4: bool, const PLAIN: u8>(
    packet: &mut Packet,
    ip: &Ip,
) -> End {
    if maps::has::<{ feature::PREFILTER }>() {
        let ip = &addressed::<L3, V4>(packet, ip);
        let (flags, cpu) = (maps::flags(), maps::cpu());
        if prefilter::blocks::<L3, V4>(packet, ip, flags, cpu) {
            return End::Of(Reason::Blocked);
        }
        if flags & Control::GUARD != 0
            && let Some(reason) = guard::refuses::<L3, V4>(packet, ip, flags, cpu)
        {
            return End::Of(reason);
        }
        events::passed(packet, cpu);
    }
    if maps::has::<{ feature::DECAP }>() {
        let ip = &addressed::<L3, V4>(packet, ip);
        let tunnel = decap::tunnel::<L3>(packet, ip);
        if tunnel != Tunnel::None
            && let Some(reason) = decap::run::<L3>(packet, ip, tunnel)
        {
            return End::Of(reason);
        }
    }
    if maps::has::<{ feature::BALANCE }>() {
        let ip = &addressed::<L3, V4>(packet, ip);
        return service::run::<L3, V4, PLAIN>(packet, ip);
    }
    End::Of(stop(Reason::NotOurs))
}

/// The same header, its addresses loaded once more if they can be: each stage loads its own. A stage that this instance does
/// not have is taken out by the verifier, which still leaves what the compiler kept for it.
#[inline(always)]
fn addressed<const L3: usize, const V4: bool>(packet: &Packet, ip: &Ip) -> Ip {
    packet.reloaded::<L3, V4>(ip).unwrap_or(*ip)
}
