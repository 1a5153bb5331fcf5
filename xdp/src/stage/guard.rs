//! May the source send this? TCP flags, source ports, rate.

use abi::{
    guard::{self, Limit, MAX_LIMITS, RATE_SLOTS, UNIT_BITS},
    hash,
    reason::Reason,
    table::Control,
    wire::{Frame, Ip, Tcp, Udp, protocol},
};

use crate::{maps, packet::Packet};

/// Why the packet is dropped; `None`: it is not. Fragments and what follows options or extension headers
/// have no ports here.
#[inline(always)]
pub(crate) fn refuses<const L3: usize, const V4: bool>(
    packet: &Packet,
    ip: &Ip,
    flags: u64,
) -> Option<Reason> {
    let plain = !ip.fragment && (!V4 || ip.header == 20);
    let l4 = if V4 { L3 + 20 } else { L3 + 40 };
    let mut port = 0;
    if plain && ip.protocol == protocol::TCP {
        if let Some(tcp) = packet.header::<Tcp>(l4) {
            let [found] = tcp.flags();
            if flags & Control::FILTER_TCP_FLAGS != 0 && !guard::can_be(found) {
                return Some(Reason::BadTcpFlags);
            }
            port = destination(tcp.ports());
        }
    } else if plain
        && ip.protocol == protocol::UDP
        && let Some(udp) = packet.header::<Udp>(l4)
    {
        let [high, low, ..] = udp.ports();
        let source = u16::from_be_bytes([high, low]);
        if flags & Control::FILTER_AMPLIFICATION != 0 && guard::amplifies(source) {
            return Some(Reason::Amplification);
        }
        port = destination(udp.ports());
    }
    if flags & Control::LIMITS == 0 {
        return None;
    }
    let (hi, lo) = if V4 {
        (u64::from(u32::from_be(ip.src.as_v4_raw())) << 32, 0)
    } else {
        (ip.src.hi().swap_bytes(), ip.src.lo().swap_bytes())
    };
    let what = u64::from(port) | u64::from(ip.protocol) << 16 | u64::from(V4) << 24;
    (limited(hi, lo, what, packet.len() as u64) != 0).then_some(Reason::RateLimited)
}

#[inline(always)]
const fn destination([.., high, low]: [u8; 4]) -> u16 {
    u16::from_be_bytes([high, low])
}

/// Whether a limit drops it. A global function: the verifier goes through its loop once, not once for each
/// kind of packet.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn limited(hi: u64, lo: u64, what: u64, bytes: u64) -> u32 {
    let (port, protocol, v4) = (what as u16, (what >> 16) as u8, what >> 24 != 0);
    let (cpu, now) = (maps::cpu(), maps::now() >> UNIT_BITS);
    let mut drops = 0;
    for row in 0..MAX_LIMITS {
        let Some(limit) = maps::limit(row) else { return drops };
        if limit.interval != 0
            && limit.counts(protocol, port)
            && exceeds(limit, row, hi, lo, v4, now)
        {
            maps::count_limit(cpu, row, bytes);
            drops |= u32::from(limit.audit == 0);
        }
    }
    drops
}

/// Takes a packet from the source's budget; whether there was none left. Another CPU may do the same at
/// the same time: one of the two packets is not counted then.
#[inline(always)]
fn exceeds(limit: &Limit, row: u32, hi: u64, lo: u64, v4: bool, now: u64) -> bool {
    let key = limit.key(hi, lo, v4);
    let hash = hash::prefix6(key.hi ^ maps::seed(), key.lo, u64::from(key.len));
    let (tag, slot) = ((hash >> 48) as u16, hash as u32 & (RATE_SLOTS - 1) & !1);
    let place = row * RATE_SLOTS + slot;
    let (Some(one), Some(other)) = (maps::rate(place), maps::rate(place | 1)) else { return false };
    // SAFETY: the kernel's lookups returned them; aligned; volatile, for other CPUs store to them.
    let words = unsafe { [one.read_volatile(), other.read_volatile()] };
    let mine = guard::is_of(words[0], tag);
    let theirs = guard::is_of(words[1], tag);
    let nearer = guard::ahead(words[1], now, limit) < guard::ahead(words[0], now, limit);
    let second = theirs || (!mine && nearer);
    let (word, place) = if second { (words[1], other) } else { (words[0], one) };
    match guard::take(word, tag, now, limit) {
        Some(next) => {
            // SAFETY: as above.
            unsafe { place.write_volatile(next) };
            false
        }
        None => true,
    }
}
