//! Which service is the packet for, and which of its backends takes it?

use abi::{
    addr::Addr,
    choice::{self, Choice, Segment},
    constants,
    hash::{self, Tuple},
    pick::{self, Phase, Tables as _},
    ranges,
    reason::Reason,
    routes, server,
    table::{Backend, Frontend, FrontendKey, Mode, Slot},
    wire::{self, Frame, Ip, Transport, protocol, tcp_flags},
};

use crate::{
    action,
    constant::{self, computed, stop},
    maps::{self, Maps},
    nat::quick,
    packet::Packet,
    pipeline::End,
    stage::{
        forward,
        moving::{FELL_BACK, entered_or_fresh, moving, of_word, word},
    },
};

/// Finds the service, picks the backend and sends the packet there. `PLAIN`: the protocol whose header is known to
/// follow at once, or 0.
#[inline(always)]
pub(crate) fn run<const L3: usize, const V4: bool, const PLAIN: u8>(
    packet: &mut Packet,
    ip: &Ip,
) -> End {
    sought::<L3, V4, PLAIN>(packet, ip).unwrap_or_else(|end| end)
}

#[inline(always)]
fn sought<const L3: usize, const V4: bool, const PLAIN: u8>(
    packet: &mut Packet,
    ip: &Ip,
) -> Result<End, End> {
    let (row, frontend, mixed) = find::<L3, V4, PLAIN>(packet, ip)?;
    if is_rare::<L3, PLAIN>() {
        return Err(if frontend.is_simple() {
            End::Of(stop(Reason::SourceRefused))
        } else {
            let transport = again::<L3, V4>(packet, ip)?;
            let hash = hash::finished(mixed);
            otherwise::<L3, V4, PLAIN>(packet, ip, &transport, hash, (row, frontend))
        });
    }
    sendable::<L3, V4>(packet, ip.protocol, ip.header)
        .map_err(|reason| End::Of(unsendable(frontend, reason)))?;
    let settled = match frontend.plain_ring().and_then(|ring| pick::plain_slot(&Maps, ring, mixed))
    {
        Some(word) => pick::settled_at(&Maps, word).ok_or(word),
        None => Err(computed(Slot::EMPTY.to_word())),
    };
    let (backend_row, backend) = match settled {
        Ok(found) => found,
        Err(word) => {
            core::hint::cold_path();
            let ip = &late::<L3, V4>(packet, ip);
            let transport = again::<L3, V4>(packet, ip)?;
            let hash = hash::finished(computed(mixed));
            other::<L3, V4, PLAIN>(packet, ip, &transport, hash, (row, frontend), word)?
        }
    };
    let (entropy, from, to) = (mixed as u32, (row, frontend), (backend_row, backend));
    match (PLAIN, V4) {
        (protocol::TCP, true) => forwarded::<L3, V4, TCP4_FLAGS>(packet, ip, entropy, from, to),
        (protocol::TCP, false) => forwarded::<L3, V4, TCP6_FLAGS>(packet, ip, entropy, from, to),
        _ => forwarded::<L3, V4, 0>(packet, ip, entropy, from, to),
    }
}

/// Bytes from a plain IP header to the flags of a TCP header, these included ([`forward::marked`]).
const TCP4_FLAGS: usize = 20 + 13 + 1;
const TCP6_FLAGS: usize = 40 + 13 + 1;

/// What the transport header says, once more: most packets need no more of it than the ports.
#[inline(always)]
fn again<const L3: usize, const V4: bool>(packet: &Packet, ip: &Ip) -> Result<Transport, End> {
    parse::<L3, V4>(packet, ip).ok_or(End::Of(Reason::Truncated))
}

/// Two tags; or none, and options in the IP header or fewer bytes than a TCP header has: rare enough for the program
/// behind to do all that follows, which would be made four times more.
#[inline(always)]
const fn is_rare<const L3: usize, const PLAIN: u8>() -> bool {
    L3 == 22 || L3 == 14 && PLAIN == 0
}

/// Why a packet that is not what its headers say, or may not go on, stays: where it has yet to be asked who may use the
/// service, that is for the programs to say that ask it, or strangers would be answered.
#[inline(always)]
fn unsendable(frontend: &Frontend, reason: Reason) -> Reason {
    core::hint::cold_path();
    if frontend.mode() == Mode::Nat {
        Reason::NatNoEntry
    } else if frontend.is_special() {
        Reason::SourceRefused
    } else {
        reason
    }
}

/// The backend of a packet that more than a ring decides on.
#[inline(always)]
fn other<const L3: usize, const V4: bool, const PLAIN: u8>(
    packet: &mut Packet,
    ip: &Ip,
    transport: &Transport,
    hash: u64,
    (row, frontend): (u32, &'static Frontend),
    word: u64,
) -> Result<(u32, &'static Backend), End> {
    if !frontend.is_simple() {
        return Err(otherwise::<L3, V4, PLAIN>(packet, ip, transport, hash, (row, frontend)));
    }
    if frontend.is_special() {
        // Who may use it, and where its packets go, is the business of another program.
        return named_at_once::<L3, V4, PLAIN>(packet, frontend)
            .ok_or_else(|| End::Of(stop(Reason::SourceRefused)));
    }
    moving(row, Slot::from_word(word), &tuple(ip, transport), hash, phase(ip, transport))
        .ok_or_else(|| End::Of(stop(Reason::NoBackend)))
}

/// Behind NAT, or with a second chance.
#[inline(always)]
fn otherwise<const L3: usize, const V4: bool, const PLAIN: u8>(
    packet: &mut Packet,
    ip: &Ip,
    transport: &Transport,
    hash: u64,
    (row, frontend): (u32, &'static Frontend),
) -> End {
    if frontend.mode() == Mode::Nat {
        let sent = translatable::<L3, PLAIN>()
            .then(|| quick::to_backend::<V4>(packet, ip, transport, hash, (row, frontend)));
        return sent.flatten().unwrap_or(End::Of(Reason::NatNoEntry));
    }
    if frontend.is_special() {
        return End::Of(Reason::SourceRefused);
    }
    if !is_rare::<L3, PLAIN>() {
        // That it is sendable has been asked.
        return End::Of(Reason::SecondChance);
    }
    match sendable::<L3, V4>(packet, ip.protocol, ip.header) {
        Ok(()) => End::Of(Reason::SecondChance),
        Err(reason) => End::Of(reason),
    }
}

/// Whether the first program may translate such packets.
#[inline(always)]
fn translatable<const L3: usize, const PLAIN: u8>() -> bool {
    // Where there is room for one connection alone, nothing is translated.
    L3 == 14 && PLAIN != 0 && constant::get::<{ constants::NAT_MASK }>() != 0
}

/// Sends the packet to this backend, and counts it. `FLAGS`: where its TCP flags are, if that is known.
#[inline(always)]
fn forwarded<const L3: usize, const V4: bool, const FLAGS: usize>(
    packet: &mut Packet,
    ip: &Ip,
    entropy: u32,
    (row, frontend): (u32, &'static Frontend),
    (backend_row, backend): (u32, &'static Backend),
) -> Result<End, End> {
    let bytes = packet.arrived();
    let opening =
        FLAGS == 0 && ip.protocol == protocol::TCP && again::<L3, V4>(packet, ip)?.opening;
    let hop = backend.hop();
    let egress = maps::egress_of(hop);
    let made = if frontend.is_ipip() {
        forward::tunnelled::<L3, V4, FLAGS>(packet, backend, hop, egress, entropy)
    } else {
        let mode = frontend.mode();
        forward::marked::<L3, V4, FLAGS>(packet, mode, backend, hop, egress, entropy)
    };
    let seen = match made {
        Ok(seen) => seen,
        // Where there is no way out, no packet fits.
        Err(Reason::TooBig | Reason::NoNextHop) if backend.hop().egress().is_none() => {
            core::hint::cold_path();
            let reason = forward::here(backend.hop()).map_err(End::Of)?;
            let opening = again::<L3, V4>(packet, ip)?.opening;
            maps::count_sent(maps::cpu(), row, backend_row, bytes, opening);
            return Err(End::Of(reason));
        }
        Err(reason) => return Err(End::Of(reason)),
    };
    let opening = if FLAGS == 0 { opening } else { tcp_flags::opens(seen as u8) };
    let cpu = maps::cpu();
    maps::count_found(cpu, row, backend_row, bytes, opening);
    Ok(send(packet, egress.ifindex(), cpu, bytes))
}

/// The server that the connection id of a QUIC packet with a short header names, for a service that everybody may use:
/// nearly all packets of connections that have been answered. All others are the business of another program.
#[inline(always)]
fn named_at_once<const L3: usize, const V4: bool, const PLAIN: u8>(
    packet: &Packet,
    frontend: &Frontend,
) -> Option<(u32, &'static Backend)> {
    if L3 != 14 || PLAIN != protocol::UDP || !frontend.is_quic() || frontend.ranges() != 0 {
        return None;
    }
    let choice = Choice::read(&Maps, frontend)?;
    let id = server::quic_short(packet, L3 + if V4 { 20 } else { 40 }, choice.quic_len);
    Maps.backend_at(choice::named(&Maps, frontend, &choice, id))
}

/// Has a packet sent out of this interface, and counts it.
#[inline(always)]
pub(crate) fn send(packet: &Packet, ifindex: u32, cpu: u32, bytes: u64) -> End {
    if packet.came_by(ifindex) {
        maps::count_known::<{ Reason::ForwardedTx as u32 }>(cpu, bytes);
        End::Sent(const { action(Reason::ForwardedTx) })
    } else {
        packet.redirect(ifindex);
        maps::count_known::<{ Reason::ForwardedRedirect as u32 }>(cpu, bytes);
        End::Sent(const { action(Reason::ForwardedRedirect) })
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

/// Row and frontend of a packet, and its flow's hash but for the last step ([`hash::mixed`]).
type Found = (u32, &'static Frontend, u64);

#[inline(always)]
fn find<const L3: usize, const V4: bool, const PLAIN: u8>(
    packet: &mut Packet,
    ip: &Ip,
) -> Result<Found, End> {
    let Some(vip) = pick::may_be_vip(&Maps, ip.dst, Maps.salt()) else {
        return Err(End::Of(stop(Reason::NotOurs)));
    };
    if ip.fragment || !is_usual(ip.protocol) {
        return Err(End::Of(refusal(&late::<L3, V4>(packet, ip))));
    }
    let Some(transport) = parse::<L3, V4>(packet, ip) else {
        return Err(End::Of(match refusal(&late::<L3, V4>(packet, ip)) {
            // A VIP's, of a protocol that has ports.
            Reason::VipOtherProtocol => Reason::Truncated,
            other => other,
        }));
    };
    // Not wanted before the frontend is known; but all else waits for it then.
    let mixed = hash::mixed(&tuple(ip, &transport), maps::seed());
    let mixed = computed(mixed);
    let key = FrontendKey::raw(ip.dst, transport.dst_port(), ip.protocol);
    if let Some((row, frontend)) = pick::frontend_of(&Maps, &key, vip) {
        return Ok((row, frontend, mixed));
    }
    let ip = &late::<L3, V4>(packet, ip);
    if translatable::<L3, PLAIN>() {
        let ports = packet.ports_again::<L3, V4>().unwrap_or(transport.ports);
        if let Some(sent) = quick::to_client::<V4>(packet, ip, &Transport { ports, ..transport }) {
            return Err(sent);
        }
    }
    let (row, frontend) = any_port(ip).map_err(End::Of)?;
    Ok((row, frontend, mixed))
}

/// The same header, whose addresses are made of what was loaded here and not before: most packets need no more of them
/// than that.
#[inline(always)]
fn late<const L3: usize, const V4: bool>(packet: &Packet, ip: &Ip) -> Ip {
    if !V4 {
        return *ip;
    }
    packet.reloaded::<L3, V4>(ip).unwrap_or_else(|| {
        let again = |addr: Addr| Addr::v4(constant::unknown(addr.as_v4_raw()) as u32);
        Ip { src: again(ip.src), dst: again(ip.dst), ..*ip }
    })
}

/// The service of a VIP's ports that have none of their own.
#[inline(always)]
fn any_port(ip: &Ip) -> Result<(u32, &'static Frontend), Reason> {
    let vip = maps::frontend(vip(ip.dst.hi(), ip.dst.lo())).ok_or(Reason::NotOurs)?;
    if vip.is_nat() {
        return Err(Reason::NatPassed);
    }
    if vip.ranges() != 0 {
        // Ranges of ports are searched by the next program.
        return Err(Reason::SourceRefused);
    }
    let row = vip.any_port(ip.protocol).ok_or(Reason::NoService)?;
    Maps.frontend_at(row).ok_or(Reason::NoService)
}

/// What becomes of a packet whose ports are not looked at here.
#[inline(always)]
fn refusal(ip: &Ip) -> Reason {
    match maps::frontend(vip(ip.dst.hi(), ip.dst.lo())) {
        None => Reason::NotOurs,
        Some(vip) if vip.is_nat() => Reason::NatPassed,
        Some(_) if ip.fragment => Reason::Fragment,
        // Rare enough not to cost the others anything: the next program sees to it.
        Some(_) if ip.protocol == protocol::SCTP => Reason::SourceRefused,
        Some(_) => Reason::VipOtherProtocol,
    }
}

/// The row of a VIP or of a NAT address. A global function: the verifier goes through the search once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn vip(hi: u64, lo: u64) -> u32 {
    let key = FrontendKey::vip(Addr::from_halves(hi, lo));
    pick::frontend(&Maps, &key).map_or(Slot::NONE, |(row, _)| row)
}

/// The frontend of a packet for a VIP, for those who know its ports from elsewhere.
#[inline(always)]
pub(crate) fn frontend(ip: &Ip, transport: &Transport) -> Result<(u32, &'static Frontend), Reason> {
    let key = FrontendKey::raw(ip.dst, transport.dst_port(), ip.protocol);
    if let Some((row, frontend)) = pick::frontend(&Maps, &key) {
        return Ok((row, frontend));
    }
    let vip = vip(ip.dst.hi(), ip.dst.lo());
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

/// The transport header of TCP or UDP; the usual place first, so that its offset is a constant.
#[inline(always)]
fn parse<const L3: usize, const V4: bool>(packet: &Packet, ip: &Ip) -> Option<Transport> {
    if ip.protocol == protocol::TCP {
        of::<L3, V4>(packet, ip, protocol::TCP)
    } else {
        of::<L3, V4>(packet, ip, protocol::UDP)
    }
}

#[inline(always)]
fn of<const L3: usize, const V4: bool>(
    packet: &Packet,
    ip: &Ip,
    protocol: u8,
) -> Option<Transport> {
    if !V4 {
        wire::transport(packet, L3 + 40, protocol)
    } else if ip.header == 20 {
        wire::transport(packet, L3 + 20, protocol)
    } else {
        wire::transport(packet, L3 + ip.header, protocol)
    }
}

/// The backend of a packet.
pub(crate) struct Picked {
    pub(crate) row: u32,
    pub(crate) backend: &'static Backend,
    pub(crate) entropy: u32,
}

/// The same for a packet that the fast path does not take: by the entry of its flow, if the service keeps them, else
/// by the ring of the group that its client is routed to, or of the service.
#[inline(always)]
pub(crate) fn pick_again(ip: &Ip, transport: &Transport, row: u32) -> Result<Picked, Reason> {
    let tuple = tuple(ip, transport);
    let hash = hash_of(&tuple);
    let flow = word(&tuple, phase(ip, transport), false);
    let row = flow_again(row, ip.src.hi(), ip.src.lo(), flow);
    let backend = Maps.backend(row).ok_or(Reason::NoBackend)?;
    Ok(Picked { row, backend, entropy: hash::entropy(hash) })
}

/// [`hash::flow`] for callers that have no stack to spare for its steps: what a call takes is less.
#[inline(always)]
pub(crate) fn hash_of(tuple: &Tuple) -> u64 {
    let Tuple { src, dst, ports, protocol } = *tuple;
    let ports = u64::from(ports) | u64::from(protocol) << 32;
    flow_hash(src.hi(), src.lo(), dst.hi(), dst.lo(), ports)
}

/// `ports`: the protocol above them. A global function, as the one above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_hash(src_hi: u64, src_lo: u64, dst_hi: u64, dst_lo: u64, ports: u64) -> u64 {
    let (src, dst) = (Addr::from_halves(src_hi, src_lo), Addr::from_halves(dst_hi, dst_lo));
    let tuple = Tuple { src, dst, ports: ports as u32, protocol: (ports >> 32) as u8 };
    hash::flow(&tuple, maps::seed())
}

/// A global function, as the one above.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn flow_again(row: u32, src_hi: u64, src_lo: u64, flow: u64) -> u32 {
    let group = source_group(row, src_hi, src_lo);
    let owner = flow_owner(if group == Slot::NONE { row } else { group }, src_hi, src_lo, flow);
    if owner != Slot::NONE {
        return owner;
    }
    if group == Slot::NONE {
        return flow_ring(row, src_hi, src_lo, flow);
    }
    let found = flow_ring(group, src_hi, src_lo, flow);
    if found != Slot::NONE {
        return found;
    }
    flow_ring(row, src_hi, src_lo, flow | FELL_BACK)
}

/// A global function, as the one above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_owner(row: u32, src_hi: u64, src_lo: u64, flow: u64) -> u32 {
    let Some(frontend) = maps::frontend(row) else { return Slot::NONE };
    let (tuple, ..) = of_word(flow, frontend, Addr::from_halves(src_hi, src_lo));
    choice::owner(&Maps, frontend, &tuple)
}

/// By the ring of `row`. A global function, as the one above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_ring(row: u32, src_hi: u64, src_lo: u64, flow: u64) -> u32 {
    let Some(frontend) = maps::frontend(row) else { return Slot::NONE };
    let (tuple, ..) = of_word(flow, frontend, Addr::from_halves(src_hi, src_lo));
    let hash = hash::flow(&tuple, maps::seed());
    if flow & FELL_BACK == 0 {
        let settled = pick::settled_row(&Maps, frontend, hash);
        if settled != Slot::NONE {
            return settled;
        }
    }
    entered_or_fresh(row, src_hi, src_lo, flow, hash)
}

/// Row of the group that a client is routed to. A global function, as the one above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn source_group(row: u32, src_hi: u64, src_lo: u64) -> u32 {
    let Some(frontend) = maps::frontend(row) else { return Slot::NONE };
    routes::group(&Maps, frontend, src_hi, src_lo)
}

/// Row of the frontend whose ring a client's packets go by: its group's, or that of `row` itself.
#[inline(always)]
pub(crate) fn source_row(row: u32, client_hi: u64, client_lo: u64) -> u32 {
    let group = source_group(row, client_hi, client_lo);
    if group == Slot::NONE { row } else { group }
}

/// The same for a service with a choice of its own, or with routes.
#[inline(always)]
pub(crate) fn choose(
    ip: &Ip,
    transport: &Transport,
    row: u32,
    closing: bool,
    id: u64,
) -> Result<Picked, Reason> {
    let (tuple, hash) = flow(ip, transport);
    let flow = word(&tuple, phase(ip, transport), closing);
    let row = flow_backend(row, ip.src.hi(), ip.src.lo(), flow, id);
    let backend = Maps.backend(row).ok_or(Reason::NoBackend)?;
    Ok(Picked { row, backend, entropy: hash::entropy(hash) })
}

/// By the server that the packet names, else by the group that its client is routed to, else by the service's own
/// backends. A global function, as the one above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_backend(row: u32, src_hi: u64, src_lo: u64, flow: u64, id: u64) -> u32 {
    if id != choice::NO_ID {
        let named = server(row, id);
        if named != Slot::NONE {
            return named;
        }
    }
    let group = source_group(row, src_hi, src_lo);
    if group == Slot::NONE {
        return flow_choice(row, src_hi, src_lo, flow, row);
    }
    let found = flow_choice(group, src_hi, src_lo, flow, group);
    if found != Slot::NONE {
        return found;
    }
    flow_choice(row, src_hi, src_lo, flow | FELL_BACK, group)
}

/// A global function, as the one above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn server(row: u32, id: u64) -> u32 {
    let Some(frontend) = maps::frontend(row) else { return Slot::NONE };
    let Some(choice) = Choice::read(&Maps, frontend) else { return Slot::NONE };
    choice::named(&Maps, frontend, &choice, id)
}

/// By the ring of `row`, or what else it wants; a client that stays with its backend does so for the service of
/// `keeper`. A global function, as the one above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flow_choice(row: u32, src_hi: u64, src_lo: u64, flow: u64, keeper: u32) -> u32 {
    let Some(frontend) = maps::frontend(row) else { return Slot::NONE };
    let Some(keeper) = maps::frontend(keeper) else { return Slot::NONE };
    let choice = Choice::read(&Maps, frontend).unwrap_or_default();
    if !choice.keeps() {
        return flow_ring(row, src_hi, src_lo, flow);
    }
    let (tuple, phase, closing) = of_word(flow, frontend, Addr::from_halves(src_hi, src_lo));
    let hash = hash::flow(&tuple, maps::seed());
    let segment = Segment { phase, closing };
    choice::backend(&Maps, keeper.service_id(), frontend, &choice, &tuple, hash, segment)
}

/// The packet's flow, and its hash.
#[inline(always)]
pub(crate) fn flow(ip: &Ip, transport: &Transport) -> (Tuple, u64) {
    let tuple = tuple(ip, transport);
    (tuple, hash::flow(&tuple, maps::seed()))
}

#[inline(always)]
const fn tuple(ip: &Ip, transport: &Transport) -> Tuple {
    Tuple { src: ip.src, dst: ip.dst, ports: transport.ports, protocol: ip.protocol }
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

/// Whether the packet is what its headers say, and may go on. `upper`: bytes from the IP header to the transport
/// header.
#[inline(always)]
pub(crate) fn sendable<const L3: usize, const V4: bool>(
    packet: &Packet,
    protocol: u8,
    upper: usize,
) -> Result<(), Reason> {
    let total = packet.rest::<L3, V4>()?.total as usize;
    if !packet.holds(L3 + total) || total < upper + wire::transport_len(protocol) {
        return Err(stop(Reason::BadLength));
    }
    if packet.rest::<L3, V4>()?.ttl <= 1 {
        return Err(stop(Reason::TtlExpired));
    }
    Ok(())
}

/// Sends it to this backend, and counts it.
#[inline(always)]
pub(crate) fn sent<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    transport: &Transport,
    row: u32,
    frontend: &Frontend,
    picked: &Picked,
    cpu: u32,
) -> Result<Reason, Reason> {
    let bytes = packet.len() as u64;
    let reason = forward::run::<L3, V4>(packet, frontend, picked.backend, picked.entropy)?;

    maps::count_sent(cpu, row, picked.row, bytes, transport.opening);
    Ok(reason)
}
