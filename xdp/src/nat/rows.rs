//! Rows that connections that stand are found by ([`abi::nat::quick`]): written here, read in [`super::quick`].
//!
//! Global functions: the verifier goes through each once.

use abi::{
    nat::{Entries as _, Found, Stamp, quick},
    table::{Frontend, FrontendKey},
    wire::{protocol, tcp_flags},
};

use super::forth::Route;
use crate::maps::{self, Maps};

/// Flags of segments that begin or end something.
const TURNS: u8 = tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST;

/// Whether a packet with these flags leaves its connection as it is, if that stands.
#[inline(always)]
pub(super) const fn goes_on(udp: bool, flags: u8) -> bool {
    udp || flags & TURNS == 0
}

/// Writes the rows of a connection whose packet has just been noted, so that its next one finds them. `link`: the way back
/// to who sent it.
#[inline(always)]
pub(super) fn keep(route: &Route, found: Found, frontend: u32, link: u64) {
    if route.backend.addr().is_v4() {
        nat_keep(found.to_word(), frontend, link);
    }
}

/// [`quick::keep`], of the flow that was put aside.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn nat_keep(found: u64, frontend: u32, link: u64) -> u32 {
    let (Some(flow), Some(row)) = (maps::kept_flow(), maps::frontend(frontend)) else { return 0 };
    let udp = Stamp::from_word(flow.identity).is_udp();
    if flow.client.is_v4() && names(row, (flow.ports >> 16) as u16, udp) {
        quick::keep(&Maps, flow, Found::from_word(found), maps::nat_ports(), frontend, link);
    }
    0
}

/// Whether a frontend is of this port alone: replies come from the port that it names.
#[inline(always)]
pub(super) fn names(frontend: &Frontend, port: u16, udp: bool) -> bool {
    let number = if udp { protocol::UDP } else { protocol::TCP };
    frontend.key().port_protocol
        == FrontendKey::raw(frontend.key().addr, port, number).port_protocol
}

/// [`quick::forget`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nat_forget(index: u32, udp: u32) -> u32 {
    if let Some(entry) = Maps.entry(index) {
        quick::forget(&Maps, index, entry, udp != 0, maps::seed());
    }
    0
}

/// Notes in the row of backends' packets that the use of this entry has been noted.
#[inline(always)]
pub(super) fn refresh(index: u32) {
    if let Some(entry) = Maps.entry(index) {
        quick::refresh(&Maps, index, entry);
    }
}
