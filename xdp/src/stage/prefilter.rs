//! Is the source, or the destination, on a blocklist?

use abi::{
    addr::Addr,
    event::{Outcome, Stream},
    hash,
    prefix::{self, Prefixes as _},
    reason::Reason,
    scope::{self, Seen},
    summary,
    table::Control,
    upper,
    wire::{Frame as _, Ip, Ports, protocol},
};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};

use crate::{
    events::{self, What},
    maps::{self, Half},
    packet::Packet,
};

/// Whether the packet is dropped; `flags` are the control table's. A hit is counted for its list either way.
#[inline(always)]
pub(crate) fn blocks<const L3: usize, const V4: bool>(
    packet: &Packet,
    ip: &Ip,
    flags: u64,
    cpu: u32,
) -> bool {
    let number = number_of::<V4>(ip.src, flags);
    if number != 0 && drops::<L3, V4>(packet, number, false, cpu) {
        return true;
    }
    if flags & Control::DESTINATIONS == 0 {
        return false;
    }
    let number = number_of::<V4>(ip.dst, flags);
    number != 0 && drops::<L3, V4>(packet, number, true, cpu)
}

/// The number of an address in the set in force: of a list, or of a combination of lists; 0: it is on none.
#[inline(always)]
fn number_of<const V4: bool>(address: Addr, flags: u64) -> u32 {
    let half = Half::of(flags);
    if V4 {
        list_v4(half, u32::from_be(address.as_v4_raw()), flags)
    } else if flags & Control::PREFIXES_V6 != 0 {
        list_v6(half, address.hi().swap_bytes(), address.lo().swap_bytes(), flags)
    } else {
        0
    }
}

/// Whether the packet is dropped for its source, or for its destination, which has this number.
#[inline(always)]
fn drops<const L3: usize, const V4: bool>(
    packet: &Packet,
    number: u32,
    destination: bool,
    cpu: u32,
) -> bool {
    let Some(row) = maps::list(number) else { return false };
    let (mut number, mut drops) = (number, row.drop != 0);
    if !row.is_plain() {
        let place = L3 as u64 | u64::from(V4) << 8 | u64::from(destination) << 9;
        number = in_scope(packet.context(), place, number);
        let Some(row) = maps::list(number) else { return false };
        if number == 0 {
            return false;
        }
        drops = row.drop != 0;
    } else if destination {
        return false;
    }
    maps::count_list(cpu, number, packet.len() as u64);
    let outcome = if drops { Outcome::Dropped } else { Outcome::Audited };
    events::note(packet, cpu, Stream::Dropped, What { reason: Reason::Blocked, outcome, number });
    drops
}

/// The list that decides about the packet, of those that the number stands for; 0: it is in the scope of none.
/// `place`: where its IP header begins; bit 8: IPv4; bit 9: its destination has the number. A global function,
/// as [`search4`]. It reads the packet anew, also behind options and extension headers.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn in_scope(ctx: *mut xdp_md, place: u64, number: u32) -> u32 {
    let packet = Packet::new(XdpContext::new(ctx));
    let Some(row) = maps::list(number) else { return 0 };
    let l3 = place as usize & 31;
    let upper = if place & (1 << 8) != 0 { upper::v4(&packet, l3) } else { upper::v6(&packet, l3) };
    let Some(upper) = upper.and_then(|upper| maps::forget(&upper)) else { return 0 };
    let has_ports = matches!(upper.protocol, protocol::TCP | protocol::UDP | scope::SCTP);
    let mut port = None;
    if has_ports
        && upper.piece.offset == 0
        && let Some(ports) = packet.header::<Ports>(upper.at)
    {
        let [_, _, high, low] = ports.both();
        port = Some(u16::from_be_bytes([high, low]));
    }
    let seen = Seen {
        ifindex: packet.ingress(),
        protocol: upper.protocol,
        port,
        destination: place & (1 << 9) != 0,
    };
    let (word, ifindex) = (seen.to_word(), seen.ifindex);
    scope::decides(row, |number| scope_has(number, ifindex, word) != 0)
}

/// Whether the list of a number is about a packet: [`Seen`] as a word, and its interface. A global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn scope_has(number: u32, ifindex: u32, word: u64) -> u32 {
    let seen = Seen::from_word(word, ifindex);
    maps::scope(number).map_or(0, |scope| u32::from(scope.has(&seen)))
}

/// The list of an IPv4 source: mostly the summary alone says that there is none.
#[inline(always)]
fn list_v4(half: Half, addr: u32, flags: u64) -> u32 {
    let may = summary::may_have(|row| half.summary(row), |row| half.fine(row), addr);
    if may { search4(addr, flags) } else { 0 }
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
