//! Every bound of the tables and loops that the programs and the daemon share.
//!
//! Capacities here are the largest that a table may be made for; the daemon makes each as large as
//! the configuration needs, with room to grow.

/// Version of the layout of everything pinned. A change of any shared struct, of a hash or of a
/// reason's index bumps it; tables of another version are never reinterpreted.
pub const ABI_VERSION: u32 = 26;

/// First word of the control table: `lb-xdp` and a check byte.
pub const MAGIC: u64 = 0x6c62_2d78_6470_00a7;

/// Frontends: address+port+protocol of services, and one more for each VIP.
pub const MAX_FRONTENDS: u32 = 1 << 20;
/// Backend rows: one for each service and backend.
pub const MAX_BACKENDS: u32 = 1 << 20;
/// Words of the ring arena: as many as a flat table has.
pub const MAX_SLOTS: u32 = (FLAT_BYTES / 8) as u32;
/// Bytes of a flat table, at most: the verifier takes no offset of as many (`BPF_MAX_VAR_OFF`).
pub const FLAT_BYTES: u64 = 1 << 29;
/// Buckets of the frontend table.
pub const MAX_BUCKETS: u32 = 1 << 20;
/// Ways out: interface, source addresses, MTU.
pub const MAX_EGRESS: u32 = 256;
/// Blocklists: a list's number must fit a byte of a second-level block, 0 meaning none.
pub const MAX_LISTS: u32 = 250;
/// Second-level blocks of the IPv4 prefix set, in each half.
pub const MAX_BLOCKS: u32 = 1 << 22;
/// Second-level bitmaps of the IPv4 prefix set, in each half: an entry has 22 bits for one.
pub const MAX_BITMAPS: u32 = 1 << 22;
/// Rows of the IPv6 filter, in each half.
pub const MAX_FILTER6: u32 = 1 << 22;
/// Buckets of the IPv6 prefix table, in each half.
pub const MAX_BUCKETS6: u32 = 1 << 23;
/// Entries of the flow table, where packets are balanced: 32 MiB, and 4 MiB of their tags. A power of two.
pub const FLOWS: u32 = 1 << 19;
/// Entries of the table of peers that were translated for processes of this machine.
pub const PEERS: u32 = 1 << 16;

/// Entries of one bucket.
pub const BUCKET_WAYS: usize = 4;
/// Buckets that one lookup visits at most.
pub const MAX_PROBES: u32 = 4;
/// Other slots that are tried when the backend of a flow's own slot is down.
pub const ALTERNATES: u32 = 2;
/// Smallest and largest ring, in slots.
pub const RING_SLOTS: core::ops::RangeInclusive<u32> = 251..=1_048_573;

/// NAT addresses: an entry has 8 bits for one.
pub const MAX_NAT_ADDRESSES: u32 = 256;
/// Entries of the NAT table: 1 GiB.
pub const MAX_NAT: u32 = 1 << 24;
/// Interfaces that packets come from, and where in the table one may be.
pub const WAYS: u32 = 1024;
/// Places of an interface in that table.
pub const WAY_PROBES: u32 = 8;

/// VLAN tags that are parsed: 802.1Q, or QinQ.
pub const MAX_VLAN_TAGS: usize = 2;

/// IPv6 extension headers that are walked over.
pub const MAX_EXTENSIONS: u32 = 4;
/// Datagrams in fragments that are followed at the same time; the oldest give way.
pub const FRAGMENTS: u32 = 1 << 14;
/// How long the fragments of a datagram may take, in nanoseconds: RFC 8200 section 4.5.
pub const FRAGMENT_TIME_NS: u64 = 60_000_000_000;
/// Answers that a CPU sends of itself in place of packets that it drops: one in this time ...
pub const ANSWER_INTERVAL_NS: u64 = 1_000_000;
/// ... and this many at once.
pub const ANSWER_BURST: u64 = 100;
/// Flows that a CPU makes entries for: one in this time, 10 microseconds in parts of a second of which there are 2^32 ...
pub const ADMIT_INTERVAL: u64 = (1 << 32) / 100_000;
/// ... and this many at once. Others are sent by the ring alone.
pub const ADMIT_BURST: u64 = 10_000;
/// Bytes of a packet that is too big that its answer brings back.
pub const QUOTED: usize = 512;

/// Prefixes of one set of sources, of either family.
pub const MAX_RANGES: u32 = 1 << 16;
/// Steps that halve the largest set to nothing.
pub const RANGE_STEPS: u32 = 17;

/// Counter rows of reasons for each CPU; a power of two, not less than the number of reasons.
pub const REASON_ROWS: u32 = 64;

/// Backends that a packet may name one after the other ([`crate::chance`]).
pub const MAX_CHANCES: u8 = 4;

/// Outer TTL and hop limit.
pub const OUTER_TTL: u8 = 64;

const _: () = {
    assert!(crate::reason::REASONS <= REASON_ROWS as usize);
    assert!(MAX_FRONTENDS < 1 << 30, "a row and the overflow flag share 31 bits of a bucket entry");
    assert!(MAX_LISTS < 255);
    assert!(1 << (RANGE_STEPS - 1) >= MAX_RANGES);
};

/// Places for CPUs in the tables that each CPU has rows of its own in: a power of two, so that a mask bounds a CPU's
/// number.
#[must_use]
pub const fn cpu_places(cpus: u32) -> u32 {
    cpus.next_power_of_two()
}

/// Counter rows of blocklists for each CPU.
pub const LIST_ROWS: u32 = 256;

/// What an instance of the XDP program does: bits of its load-time constant `FEATURES`.
pub mod feature {
    /// Drop blocked sources.
    pub const PREFILTER: u32 = 1;
    /// Balance packets for VIPs.
    pub const BALANCE: u32 = 2;
    /// Take encapsulated packets addressed to this machine.
    pub const DECAP: u32 = 4;
    /// Sample packets for the daemon.
    pub const EVENTS: u32 = 8;
    /// Answer SYNs in the place of this machine's listeners ([`crate::synproxy`]).
    pub const SYN_PROXY: u32 = 32;
    /// Drop segments that belong to no connection of those listeners.
    pub const STRAY_ACKS: u32 = 64;
}

/// Places of the programs that a packet goes on to from the first one by a tail call.
pub mod behind {
    /// What is rare: ICMP, fragments, extension headers, what is too big or not served.
    pub const SECOND: u32 = 0;
    /// Services whose backend is not simply the ring's, and packets that the first program does not forward.
    pub const CHOICE: u32 = 1;
    /// Translation of addresses and ports.
    pub const NAT: u32 = 2;
    /// Segments that may be tried at two backends, on both sides.
    pub const SECOND_CHANCE: u32 = 3;
    /// Segments that open a connection to this machine, or belong to none.
    pub const SYN: u32 = 4;
    /// ICMP errors about translated packets.
    pub const NAT_ICMP: u32 = 5;
    /// Translated packets that are written anew.
    pub const NAT_OTHER: u32 = 6;
    /// Translation for services that want more than their ring.
    pub const NAT_STEER: u32 = 7;
    /// Packets to be translated that have VLAN tags.
    pub const NAT_TAGS: u32 = 8;
    /// The same for fragments, and for what has options or extension headers.
    pub const NAT_PARTS: u32 = 9;
    /// How many.
    pub const PLACES: u32 = 16;
}

/// Bounds of identity policy.
pub mod policy {
    /// The identity of this machine's addresses.
    pub const HOST: u32 = 1;
    /// The identity of other nodes' addresses.
    pub const REMOTE_NODE: u32 = 6;
    /// The identity of IPv4 addresses that are nobody's.
    pub const WORLD_V4: u32 = 9;
    /// The identity of IPv6 addresses that are nobody's.
    pub const WORLD_V6: u32 = 10;
    /// Identities of prefixes are from here on, up to twice this.
    pub const FIRST_CIDR: u32 = 1 << 24;
    /// Identities fit 25 bits of an entry.
    pub const MAX_IDENTITY: u32 = (1 << 25) - 1;
    /// Rules with counters of their own; rows, less the one that an entry's 0 takes.
    pub const MAX_RULES: u32 = (1 << 21) - 2;
    /// Connections that are remembered; the least recently seen make room.
    pub const CONNECTIONS: u32 = 1 << 18;
    /// Datagrams in fragments whose ports are remembered.
    pub const FRAGMENTS: u32 = 1 << 13;
    /// IPv6 extension headers that are walked over.
    pub const MAX_EXTENSIONS: u32 = 4;
    /// A TCP connection that was answered is forgotten after this long without a reply: RFC 5382 asks
    /// for 2 hours and 4 minutes at least.
    pub const IDLE_TCP_NS: u64 = 8_000 * 1_000_000_000;
    /// As long all else is remembered. RFC 4787 asks for 2 minutes at least for UDP.
    pub const IDLE_NS: u64 = 120 * 1_000_000_000;
    /// How old the note of when a connection was seen may become.
    pub const REFRESH_NS: u64 = 1_000_000_000;
}
