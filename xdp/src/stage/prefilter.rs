//! Is the source in a blocklist?

use abi::{prefix, wire::Ip};

use crate::maps::{self, Maps};

/// Whether the packet is dropped. A hit is counted for its list either way.
#[inline(always)]
pub(crate) fn blocks<const V4: bool>(ip: &Ip, bytes: u64, cpu: u32) -> bool {
    let number = if V4 {
        u32::from(prefix::list_v4(&Maps, u32::from_be(ip.src.as_v4_raw())))
    } else if maps::has_prefixes6() {
        maps::list_v6(ip.src.to_bytes())
    } else {
        0
    };
    if number == 0 {
        return false;
    }
    maps::count_list(cpu, number, bytes);
    maps::list(number).is_some_and(|list| list.drop != 0)
}
