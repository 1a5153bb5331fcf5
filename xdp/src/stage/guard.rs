//! May the source send this? TCP flags, source ports, rate.

use abi::{
    event::{Outcome, Stream},
    guard::{self, Limit, MAX_LIMITS, RATE_SLOTS, UNIT_BITS},
    hash,
    reason::Reason,
    table::Control,
    wire::{Frame, Ip, Tcp, Udp, protocol},
};

use crate::{
    events::{self, What},
    maps,
    packet::Packet,
};

/// Why the packet is dropped; `None`: it is not. Fragments and what follows options or extension headers
/// have no ports here.
#[inline(always)]
pub(crate) fn refuses<const L3: usize, const V4: bool>(
    packet: &Packet,
    ip: &Ip,
    flags: u64,
    cpu: u32,
) -> Option<Reason> {
    if flags & Control::FILTER_FRAGMENTS != 0 && ip.fragment {
        return Some(Reason::FragmentRefused);
    }
    let plain = !ip.fragment && (!V4 || ip.header == 20);
    let l4 = if V4 { L3 + 20 } else { L3 + 40 };
    let (mut port, mut tcp_flags) = (0, 0);
    if plain && ip.protocol == protocol::TCP {
        if let Some(tcp) = packet.header::<Tcp>(l4) {
            [tcp_flags] = tcp.flags();
            if flags & Control::FILTER_TCP_FLAGS != 0 && !guard::can_be(tcp_flags) {
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
    let what = u64::from(port)
        | u64::from(ip.protocol) << 16
        | u64::from(tcp_flags) << 24
        | u64::from(V4) << 32;
    let found = limited(hi, lo, what, packet.len() as u64);
    let reason = Reason::RateLimited;
    let (drops, audits) = (found & 0xff, found >> 8);
    if audits != 0 {
        let what = What { reason, outcome: Outcome::Audited, number: audits };
        events::note(packet, cpu, Stream::Dropped, what);
    }
    if drops == 0 {
        return None;
    }
    let what = What { reason, outcome: Outcome::Dropped, number: drops };
    events::note(packet, cpu, Stream::Dropped, what);
    Some(reason)
}

#[inline(always)]
const fn destination([.., high, low]: [u8; 4]) -> u16 {
    u16::from_be_bytes([high, low])
}

/// What limits do with it. Low byte: row, from 1 on, of the first one that drops it, or 0; next byte: of the first
/// one that would if it were not for its audit. A global function: the verifier goes through
/// its loop once, not once for each kind of packet.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn limited(hi: u64, lo: u64, what: u64, bytes: u64) -> u32 {
    let (port, protocol, flags) = (what as u16, (what >> 16) as u8, (what >> 24) as u8);
    let v4 = what >> 32 != 0;
    let (cpu, now) = (maps::cpu(), maps::now() >> UNIT_BITS);
    let mut found = 0;
    // The last first, and each in place of what was found: a comparison with that would have the verifier go
    // through the loop once for each limit that may be found.
    for row in (0..MAX_LIMITS).rev() {
        let Some(limit) = maps::limit(row) else { return found };
        if limit.interval != 0
            && limit.counts(protocol, port, flags)
            && exceeds(limit, row, [hi, lo], v4, now, bytes)
        {
            maps::count_limit(cpu, row, bytes);
            let byte = if limit.audit == 0 { 0 } else { 8 };
            found = found & !(0xff << byte) | (row + 1) << byte;
        }
    }
    found
}

/// Takes a packet from the source's budget; whether there was none left. Another CPU may do the same at
/// the same time: one of the two packets is not counted then.
#[inline(always)]
fn exceeds(limit: &Limit, row: u32, [hi, lo]: [u64; 2], v4: bool, now: u64, bytes: u64) -> bool {
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
    match guard::take(word, tag, now, limit, bytes) {
        Some(next) => {
            // SAFETY: as above.
            unsafe { place.write_volatile(next) };
            false
        }
        None => true,
    }
}
