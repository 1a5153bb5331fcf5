//! Which service is the packet for, and which of its backends takes it?

use abi::{
    addr::Addr,
    choice::{self, Choice, Segment},
    hash::{self, Tuple},
    pick::{self, Phase, Tables as _},
    ranges,
    reason::Reason,
    table::{Backend, Frontend, FrontendKey, Mode, Slot},
    wire::{self, Frame, Ip, Transport, protocol},
};

use crate::{
    maps::{self, Maps},
    packet::Packet,
    stage::forward,
};

/// Finds the service, picks the backend and sends the packet there.
#[inline(always)]
pub(crate) fn run<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    cpu: u32,
) -> Reason {
    match find::<L3, V4>(packet, ip) {
        Ok((_, frontend, _)) if frontend.mode() == Mode::Nat => Reason::NatNoEntry,
        // Who may use it, and where its packets go, is the business of another program.
        Ok((_, frontend, _)) if frontend.is_special() => Reason::SourceRefused,
        Ok((row, frontend, transport)) => {
            send::<L3, V4>(packet, ip, ip.header, &transport, row, frontend, cpu)
                .unwrap_or_else(|r| r)
        }
        Err(reason) => reason,
    }
}

/// Whether services may have this protocol.
#[inline(always)]
pub(crate) const fn balances(number: u8) -> bool {
    is_usual(number) || number == protocol::SCTP
}

/// Whether the first program looks at its ports.
#[inline(always)]
pub(crate) const fn is_usual(number: u8) -> bool {
    number == protocol::TCP || number == protocol::UDP
}

type Found = (u32, &'static Frontend, Transport);

#[inline(always)]
fn find<const L3: usize, const V4: bool>(packet: &Packet, ip: &Ip) -> Result<Found, Reason> {
    if !pick::may_be_vip(&Maps, ip.dst) {
        return Err(Reason::NotOurs);
    }
    let balanced = is_usual(ip.protocol);
    // Not an `Option`: the compiler leaves the inside of `None` unset and still moves it between
    // registers, which the verifier refuses.
    let mut transport = Transport { ports: 0, opening: false };
    let mut whole = false;
    if balanced
        && !ip.fragment
        && let Some(parsed) = parse::<L3, V4>(packet, ip)
    {
        transport = parsed;
        whole = true;
        let key = FrontendKey::raw(ip.dst, transport.dst_port(), ip.protocol);
        if let Some((row, frontend)) = pick::frontend(&Maps, &key) {
            return Ok((row, frontend, transport));
        }
    }

    let Some((_, vip)) = pick::frontend(&Maps, &FrontendKey::vip(ip.dst)) else {
        return Err(Reason::NotOurs);
    };
    if vip.is_nat() {
        return Err(Reason::NatPassed);
    }
    if ip.fragment {
        return Err(Reason::Fragment);
    }
    if !balanced {
        // Rare enough not to cost the others anything: the next program sees to it.
        let sctp = ip.protocol == protocol::SCTP;
        return Err(if sctp { Reason::SourceRefused } else { Reason::VipOtherProtocol });
    }
    if !whole {
        return Err(Reason::Truncated);
    }
    if vip.ranges() != 0 {
        // Ranges of ports are searched by the next program.
        return Err(Reason::SourceRefused);
    }
    let row = vip.any_port(ip.protocol).ok_or(Reason::NoService)?;
    let frontend = maps::frontend(row).ok_or(Reason::NoService)?;
    Ok((row, frontend, transport))
}

/// The frontend of a packet for a VIP, for those who know its ports from elsewhere.
#[inline(always)]
pub(crate) fn frontend(ip: &Ip, transport: &Transport) -> Result<(u32, &'static Frontend), Reason> {
    let key = FrontendKey::raw(ip.dst, transport.dst_port(), ip.protocol);
    if let Some((row, frontend)) = pick::frontend(&Maps, &key) {
        return Ok((row, frontend));
    }
    let (vip, _) = pick::frontend(&Maps, &FrontendKey::vip(ip.dst)).ok_or(Reason::NoService)?;
    let row = other_port(vip, u32::from(transport.dst_port()) | u32::from(ip.protocol) << 16);
    Ok((row, maps::frontend(row).ok_or(Reason::NoService)?))
}

/// A global function: the verifier goes through the search once. `port`: as loaded, and the protocol above it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn other_port(vip: u32, port: u32) -> u32 {
    let Some(vip) = maps::frontend(vip) else { return Slot::NONE };
    pick::other_port(&Maps, vip, port as u16, (port >> 16) as u8).unwrap_or(Slot::NONE)
}

/// Whether this client may use it.
#[inline(always)]
pub(crate) fn permit(frontend: &Frontend, client: Addr) -> Result<(), Reason> {
    let sources = frontend.ranges();
    if sources != 0 && !is_among(sources, client) {
        return Err(Reason::SourceRefused);
    }
    Ok(())
}

/// Whether an address is in a set of prefixes.
#[inline(always)]
pub(crate) fn is_among(sources: u64, address: Addr) -> bool {
    in_ranges(sources, address.hi(), address.lo()) != 0
}

/// A global function: the verifier goes through the search once, not once for each way that leads to it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn in_ranges(sources: u64, hi: u64, lo: u64) -> u32 {
    u32::from(ranges::contains(&Maps, sources, hi, lo))
}

/// The transport header; the usual place first, so that its offset is a constant.
#[inline(always)]
fn parse<const L3: usize, const V4: bool>(packet: &Packet, ip: &Ip) -> Option<Transport> {
    if !V4 {
        wire::transport(packet, L3 + 40, ip.protocol)
    } else if ip.header == 20 {
        wire::transport(packet, L3 + 20, ip.protocol)
    } else {
        wire::transport(packet, L3 + ip.header, ip.protocol)
    }
}

/// The backend of a packet.
pub(crate) struct Picked {
    pub(crate) row: u32,
    pub(crate) backend: &'static Backend,
    pub(crate) entropy: u32,
}

#[inline(always)]
pub(crate) fn pick(ip: &Ip, transport: &Transport, frontend: &Frontend) -> Result<Picked, Reason> {
    let (tuple, hash) = flow(ip, transport);
    let phase = phase(ip, transport);
    let (row, backend) = pick::backend(&Maps, frontend, &tuple, hash, phase)?;
    Ok(Picked { row, backend, entropy: hash as u32 })
}

/// The same for a packet that the fast path does not take: first by the entry of its flow, if the service
/// keeps them.
#[inline(always)]
pub(crate) fn pick_again(
    ip: &Ip,
    transport: &Transport,
    row: u32,
    frontend: &Frontend,
) -> Result<Picked, Reason> {
    if frontend.choice().is_some() {
        let flow = u64::from(transport.ports) | u64::from(ip.protocol) << 32;
        let owner = flow_owner(row, ip.src.hi(), ip.src.lo(), flow);
        if let Some(backend) = Maps.backend(owner) {
            let (_, hash) = self::flow(ip, transport);
            return Ok(Picked { row: owner, backend, entropy: hash as u32 });
        }
    }
    pick(ip, transport, frontend)
}

/// A global function: the verifier goes through it once, and its stack is its own. `flow`: ports, and the
/// protocol above them.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_owner(row: u32, src_hi: u64, src_lo: u64, flow: u64) -> u32 {
    let Some(frontend) = maps::frontend(row) else { return Slot::NONE };
    let tuple = Tuple {
        src: Addr::from_halves(src_hi, src_lo),
        dst: frontend.key().addr,
        ports: flow as u32,
        protocol: (flow >> 32) as u8,
    };
    choice::owner(&Maps, frontend, &tuple)
}

/// The same for a service with a choice of its own.
#[inline(always)]
pub(crate) fn choose(
    ip: &Ip,
    transport: &Transport,
    frontend: &Frontend,
    choice: &Choice,
    closing: bool,
    id: u64,
) -> Result<Picked, Reason> {
    let (tuple, hash) = flow(ip, transport);
    let segment = Segment { phase: phase(ip, transport), closing, id };
    let row = choice::backend(&Maps, frontend, choice, &tuple, hash, segment);
    let backend = Maps.backend(row).ok_or(Reason::NoBackend)?;
    Ok(Picked { row, backend, entropy: hash as u32 })
}

/// The packet's flow, and its hash.
#[inline(always)]
pub(crate) fn flow(ip: &Ip, transport: &Transport) -> (Tuple, u64) {
    let tuple = Tuple { src: ip.src, dst: ip.dst, ports: transport.ports, protocol: ip.protocol };
    (tuple, hash::flow(&tuple, maps::seed()))
}

#[inline(always)]
fn phase(ip: &Ip, transport: &Transport) -> Phase {
    if ip.protocol == protocol::UDP {
        Phase::Unknown
    } else if transport.opening {
        Phase::Opening
    } else {
        Phase::Established
    }
}

/// `upper`: bytes from the IP header to the transport header.
#[inline(always)]
pub(crate) fn send<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    upper: usize,
    transport: &Transport,
    row: u32,
    frontend: &Frontend,
    cpu: u32,
) -> Result<Reason, Reason> {
    sendable::<L3>(packet, ip, upper)?;
    let picked = pick(ip, transport, frontend)?;
    sent::<L3, V4>(packet, ip, transport, row, frontend, &picked, cpu)
}

/// Whether the packet is what its headers say, and may go on.
#[inline(always)]
pub(crate) fn sendable<const L3: usize>(
    packet: &Packet,
    ip: &Ip,
    upper: usize,
) -> Result<(), Reason> {
    if !packet.holds(L3 + ip.total as usize) {
        return Err(Reason::BadLength);
    }
    if (ip.total as usize) < upper + wire::transport_len(ip.protocol) {
        return Err(Reason::BadLength);
    }
    if ip.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    Ok(())
}

/// Sends it to this backend, and counts it.
#[inline(always)]
pub(crate) fn sent<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    transport: &Transport,
    row: u32,
    frontend: &Frontend,
    picked: &Picked,
    cpu: u32,
) -> Result<Reason, Reason> {
    let bytes = packet.len() as u64;
    let reason = forward::run::<L3, V4>(packet, ip, frontend, picked.backend, picked.entropy)?;

    maps::count_frontend(cpu, row, bytes, transport.opening);
    maps::count_backend(cpu, picked.row, bytes, transport.opening);
    Ok(reason)
}
