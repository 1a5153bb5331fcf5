//! Numbers that stand in the code of the XDP programs, where the daemon writes them before it loads them.
//!
//! A constant that is read from a map is two instructions and a load wherever it is used; here it is an
//! immediate operand. The object file has a placeholder in its place, which names the constant by its number.

/// Placeholder of a 64-bit immediate (RFC 9669 section 5.4): its high half; the low half is the constant's number.
pub const WIDE: u64 = 0x6c62_636e_0000_0000;
/// Placeholder of a 32-bit immediate: its high half; the low half is the constant's number.
pub const NARROW: u32 = 0x6c62_0000;

/// Salt of the frontend table.
pub const SALT: u32 = 0;
/// Seed of the flow hash.
pub const SEED: u32 = 1;
/// By how much the hash of an address is shifted for the offset in bytes of its word in the filter of VIPs
/// ([`crate::pick::vip_place`]) ...
pub const VIP_SHIFT: u32 = 2;
/// 2^32 divided by the ticks of the kernel's clock in a second.
pub const TICK: u32 = 3;
/// Entries of the NAT table, less one; the number is a power of two.
pub const NAT_MASK: u32 = 4;
/// The range of NAT ports, in one word ([`crate::nat::Ports`]).
pub const NAT_PORTS: u32 = 5;
/// Lines of the IPv4 prefix set in each half.
pub const LINE_ROWS: u32 = 6;
/// Bitmaps of the IPv4 prefix set in each half.
pub const BITMAP_ROWS: u32 = 7;
/// Blocks of the IPv4 prefix set in each half.
pub const BLOCK_ROWS: u32 = 8;
/// Rows of the IPv6 filter in each half; a power of two.
pub const FILTER6_ROWS: u32 = 9;
/// Buckets of the IPv6 prefix table in each half; a power of two.
pub const BUCKET6_ROWS: u32 = 10;

/// Places for CPUs in the tables that each CPU has rows of its own in ([`crate::limits::cpu_places`]), less one.
pub const CPU_MASK: u32 = 11;
/// ... and which bits of what comes of it count.
pub const VIP_MASK: u32 = 12;
/// Which bits of a number count as the offset in bytes of a bucket of the frontend table.
pub const BUCKET_MASK: u32 = 13;

/// From here on: how many rows a flat table has, and less one, where that is a mask; two for each of [`TABLES`].
pub const ROWS: u32 = 0x40;
/// From here on, with bits of [`crate::limits::feature`] added: 1 if the program has one of them, else 0.
pub const FEATURES: u32 = 0x100;

/// The flat tables.
pub const TABLES: [&str; 22] = [
    "CONTROL",
    "VIPS",
    "BUCKETS",
    "FRONTENDS",
    "SLOTS",
    "BACKENDS",
    "EGRESS",
    "FLOWS",
    "FLOW_TAGS",
    "NAT_FORTH",
    "NAT_BACK",
    "NAT_PATHS",
    "NAT_ADDRESSES",
    "WAYS",
    "SUMMARY",
    "FINE4",
    "LINES",
    "LISTS",
    "FRONTEND_COUNT",
    "BACKEND_COUNT",
    "LIST_COUNT",
    "REASON_COUNT",
];

/// The constant that says how many rows this one of [`TABLES`] has.
#[must_use]
pub const fn rows(table: usize) -> u32 {
    ROWS + 2 * table as u32
}

/// The constant that is one less, for tables of as many rows as a power of two says.
#[must_use]
pub const fn mask(table: usize) -> u32 {
    rows(table) + 1
}

/// Place of a table in [`TABLES`].
///
/// # Panics
/// If there is none of this name: when the programs are compiled.
#[must_use]
pub const fn table(name: &str) -> usize {
    let mut at = 0;
    while at < TABLES.len() {
        if is_same(TABLES[at], name) {
            return at;
        }
        at += 1;
    }
    panic!("no such table")
}

const fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

const _: () = assert!(mask(TABLES.len() - 1) < FEATURES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_has_numbers_of_its_own() {
        for (at, name) in TABLES.iter().enumerate() {
            assert_eq!(table(name), at);
            assert!(rows(at) > BUCKET_MASK && mask(at) < FEATURES);
        }
    }
}
