//! Names of maps.

/// Maps that are pinned, and shared by every instance of the program, beside the flat tables
/// ([`abi::constants::TABLES`]).
pub(super) const MAPS: [&str; 17] = [
    "NAT",
    "NAT_CLIENTS",
    "NAT_VLANS",
    "FRAGMENTS",
    "ADMISSION",
    "BITMAPS",
    "BLOCKS",
    "FILTER6",
    "BUCKETS6",
    "SCOPES",
    "LIMITS",
    "RATES",
    "LIMIT_COUNT",
    "SYN_PORTS",
    "EVENTS",
    "EARLY",
    "SAMPLERS",
];

/// Maps that outlive a set of tables: what they hold means the same in the next one.
pub(super) const SHARED: [&str; 9] = [
    "FRAGMENTS",
    "PEERS",
    "RATES",
    "LIMIT_COUNT",
    "LIST_COUNT",
    "REASON_COUNT",
    "EVENTS",
    "EARLY",
    "SAMPLERS",
];
