//! Segments that may be tried at two backends ([`abi::chance`]): how they leave the balancer, and what a
//! backend does with them.

mod receive;
mod send;

use abi::{limits::behind, reason::Reason, wire};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use crate::{
    behind::Program,
    maps::{self, feature},
    packet::Packet,
};

/// The program.
pub(crate) struct Chance;

impl Program for Chance {
    #[inline(never)]
    fn look<const L3: usize, const V4: bool>(ctx: *mut xdp_md, cpu: u32) -> u32 {
        let mut packet = Packet::new(XdpContext::new(ctx));
        let ip = if V4 { wire::ipv4(&packet, L3) } else { wire::ipv6(&packet, L3) };
        let Some(ip) = ip else { return Reason::SecondChance as u32 };
        if maps::has::<{ feature::DECAP }>() && receive::is_for::<L3, V4>(&packet, &ip) {
            return receive::run::<L3, V4>(&mut packet, &ip).unwrap_or_else(|r| r) as u32;
        }
        if maps::has::<{ feature::BALANCE }>() {
            return send::run::<L3, V4>(&mut packet, &ip, cpu).unwrap_or_else(|r| r) as u32;
        }
        Reason::SecondChance as u32
    }

    #[inline(always)]
    fn not_ip() -> Reason {
        Reason::SecondChance
    }

    /// What is too big with the other address is answered.
    #[inline(always)]
    fn onward(reason: Reason) -> Option<u32> {
        (reason == Reason::TooBig).then_some(behind::SECOND)
    }
}
