//! Is the source in a blocklist?

use abi::{
    event::{Outcome, Stream},
    hash,
    prefix::{self, Prefixes as _},
    reason::Reason,
    summary,
    table::Control,
    wire::{Frame as _, Ip},
};

use crate::{
    events::{self, What},
    maps::{self, Half},
    packet::Packet,
};

/// Whether the packet is dropped; `flags` are the control table's. A hit is counted for its list either way.
#[inline(always)]
pub(crate) fn blocks<const V4: bool>(packet: &Packet, ip: &Ip, flags: u64, cpu: u32) -> bool {
    let half = Half::of(flags);
    let number = if V4 {
        list_v4(half, u32::from_be(ip.src.as_v4_raw()), flags)
    } else if flags & Control::PREFIXES_V6 != 0 {
        list_v6(half, ip.src.hi().swap_bytes(), ip.src.lo().swap_bytes(), flags)
    } else {
        0
    };
    if number == 0 {
        return false;
    }
    maps::count_list(cpu, number, packet.len() as u64);
    let drops = maps::list(number).is_some_and(|list| list.drop != 0);
    let outcome = if drops { Outcome::Dropped } else { Outcome::Audited };
    events::note(packet, cpu, Stream::Dropped, What { reason: Reason::Blocked, outcome, number });
    drops
}

/// The list of an IPv4 source: mostly the summary alone says that there is none.
#[inline(always)]
fn list_v4(half: Half, addr: u32, flags: u64) -> u32 {
    if summary::may_have(|row| half.summary(row), addr >> 8) { search4(addr, flags) } else { 0 }
}

/// A global function: the verifier goes through it once and knows of its answer only that it is a number;
/// else it would follow each kind of entry through all that comes after.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn search4(addr: u32, flags: u64) -> u32 {
    u32::from(prefix::entry_v4(&Half::of(flags), addr))
}

/// The list of an IPv6 source: mostly the summary alone says that there is none, else the filter.
#[inline(always)]
fn list_v6(half: Half, hi: u64, lo: u64, flags: u64) -> u32 {
    let (leading, short) = (hash::leading6(hi), flags >> 32);
    if short == 0 && !summary::may_have6(|row| half.summary(row), leading) {
        return 0;
    }
    let [long, middle] = half.filter6(leading);
    if long | middle | short == 0 {
        return 0;
    }
    search6(hi, lo, long, middle, flags)
}

/// A global function, as [`search4`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn search6(hi: u64, lo: u64, long: u64, middle: u64, flags: u64) -> u32 {
    let half = Half::of(flags);
    u32::from(prefix::list_v6(&half, [hi, lo], [long, middle], (flags >> 32) as u32))
}
