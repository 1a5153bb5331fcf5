//! The balancer's side: the packet names the other backend of its slot.

use abi::{
    chance,
    pick::Tables as _,
    reason::Reason,
    table::Slot,
    upper,
    wire::{self, Frame as _, Ip, protocol},
};

use crate::{
    maps::{self, Maps},
    packet::Packet,
    stage::{forward, service},
};

/// The packet has been found to be whole and for a service that its client may use.
#[inline(always)]
pub(crate) fn run<const L3: usize, const V4: bool>(
    packet: &mut Packet,
    ip: &Ip,
    cpu: u32,
) -> Result<Reason, Reason> {
    let above = if V4 { upper::v4(packet, L3) } else { upper::v6(packet, L3) };
    let above = above.and_then(|u| maps::forget(&u)).ok_or(Reason::Truncated)?;
    let ip = &Ip { protocol: above.protocol, ..*ip };
    let transport = wire::transport(packet, above.at, ip.protocol).ok_or(Reason::Truncated)?;
    let (row, frontend) = service::frontend(ip, &transport)?;
    let picked = service::pick_again(ip, &transport, row)?;

    let mut other = Slot::NONE;
    if ip.protocol == protocol::TCP && !transport.opening {
        let (_, hash) = service::flow(ip, &transport);
        let by =
            maps::frontend(service::source_row(row, ip.src.hi(), ip.src.lo())).unwrap_or(frontend);
        other = chance::other(&Maps, by, hash, picked.row);
    }
    let bytes = packet.len() as u64;
    let reason = match Maps.backend(other) {
        Some(other) if other.addr().is_v4() == picked.backend.addr().is_v4() => {
            forward::twice::<L3, V4>(packet, picked.backend, other.addr(), picked.entropy)?
        }
        _ => forward::once::<L3, V4>(packet, frontend, picked.backend, picked.entropy)?,
    };
    maps::count_sent(cpu, row, picked.row, bytes, transport.opening);
    Ok(reason)
}
