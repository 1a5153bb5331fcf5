//! The two hashes of the packet path. Both are part of the ABI: every node of a fleet, and every
//! version with the same [`crate::limits::ABI_VERSION`], computes the same.
//!
//! A BPF program has no 128-bit product, so these are rounds of multiply and shift on 64-bit words.
//! Constants: the 64-bit primes of xxHash, which are facts of that published algorithm.

use crate::addr::Addr;

const P1: u64 = 0x9e37_79b1_85eb_ca87;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const P3: u64 = 0x1656_67b1_9e37_79f9;

/// What identifies a flow: addresses and ports as they stand in the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source.
    pub src: Addr,
    /// Destination: the VIP.
    pub dst: Addr,
    /// Source port in the low half, destination port in the high half, as loaded from the header.
    pub ports: u32,
    /// IP protocol.
    pub protocol: u8,
}

/// Hash of a flow. The high half picks the ring slot, the low half the row of an entry; [`entropy`] is for outer headers.
#[inline(always)]
#[must_use]
pub const fn flow(t: &Tuple, seed: u64) -> u64 {
    finished(mixed(t, seed))
}

/// [`flow`] but for its last step, which changes nothing in the high half: most packets need no more than that and the
/// entropy.
#[inline(always)]
#[must_use]
pub const fn mixed(t: &Tuple, seed: u64) -> u64 {
    // Which costs nothing where the protocol is known: the product is by another constant.
    let first = P2 ^ (t.protocol as u64 ^ TCP) << 1;
    let ports = (t.ports as u64) << 32;
    let mut h;
    if t.src.is_v4() && t.dst.is_v4() {
        // Destination and ports, as they follow each other in a packet.
        h = (t.src.as_v4_raw() as u64 ^ seed).wrapping_mul(first);
        h ^= h >> 32;
        h ^= t.dst.as_v4_raw() as u64 | ports;
    } else {
        h = (t.src.lo() ^ seed).wrapping_mul(first);
        h ^= h >> 32;
        h = (h ^ t.src.hi()).wrapping_mul(P1);
        h ^= h >> 32;
        h = (h ^ t.dst.hi()).wrapping_mul(P2);
        h ^= h >> 32;
        h ^= t.dst.lo() ^ ports;
    }
    h = h.wrapping_mul(P1);
    h ^= h >> 32;
    h.wrapping_mul(P3)
}

/// [`flow`], of what is [`mixed`].
#[inline(always)]
#[must_use]
pub const fn finished(mixed: u64) -> u64 {
    mixed ^ mixed >> 32
}

/// Entropy of a flow for outer headers, by its hash: the low half of what was [`mixed`], whose high bits depend on all of
/// the tuple and the lower ones on less of it.
#[inline(always)]
#[must_use]
pub const fn entropy(hash: u64) -> u32 {
    finished(hash) as u32
}

/// IP protocol of most flows.
const TCP: u64 = 6;

/// Hash of a frontend: the high half picks the bucket, the low half is the tag, which no two ports of one address have.
#[inline(always)]
#[must_use]
pub const fn frontend(addr: Addr, port_protocol: u32, salt: u64) -> u64 {
    frontend_of(folded(vip(addr, salt)), port_protocol)
}

/// [`frontend`], by the address's [`vip`] that has been [`folded`].
#[inline(always)]
#[must_use]
pub const fn frontend_of(vip: u64, port_protocol: u32) -> u64 {
    (vip ^ port_protocol as u64).wrapping_mul(P1)
}

/// Hash of an address for the filter of VIPs. Each of its highest bits depends on every bit of the address, and addresses of
/// one /16, or one /112, differ in the 16 highest. It is also the first step of [`frontend`], so that a packet for a VIP
/// pays for it once. Of IPv4 the address as it is loaded: products by the other primes tell neighbours apart less well.
#[inline(always)]
#[must_use]
pub const fn vip(addr: Addr, salt: u64) -> u64 {
    let low = if addr.is_v4() { addr.as_v4_raw() as u64 } else { addr.lo() };
    (low ^ salt).wrapping_mul(P2) ^ addr.hi().wrapping_mul(P3)
}

/// A product whose lower bits depend on all of its factor, too.
#[inline(always)]
#[must_use]
pub const fn folded(product: u64) -> u64 {
    product ^ product >> 32
}

/// Hash of an IPv6 prefix: its address without host bits, and its length. Each half picks a bucket.
#[inline(always)]
#[must_use]
pub const fn prefix6(hi: u64, lo: u64, len: u64) -> u64 {
    let mut h = (hi ^ len.wrapping_mul(P3)).wrapping_mul(P1);
    h ^= h >> 32;
    h = (h ^ lo).wrapping_mul(P2);
    h ^= h >> 29;
    h = h.wrapping_mul(P3);
    h ^ (h >> 32)
}

/// Hash of the leading 32 bits of an IPv6 address.
#[inline(always)]
#[must_use]
pub const fn leading6(hi: u64) -> u32 {
    leading(hi >> 32)
}

/// Hash of some leading bits of an address, which are the lowest of this word.
#[inline(always)]
#[must_use]
pub const fn leading(bits: u64) -> u32 {
    (bits.wrapping_mul(P1) >> 32) as u32
}

/// Scales the high half of a flow's hash to `0..size`, without a division.
#[inline(always)]
#[must_use]
pub const fn slot(hash: u64, size: u32) -> u32 {
    (((hash >> 32) * size as u64) >> 32) as u32
}

/// The hash for the next alternative slot of the same flow.
#[inline(always)]
#[must_use]
pub const fn again(hash: u64) -> u64 {
    let h = (hash ^ P2).wrapping_mul(P3);
    h ^ (h >> 32) ^ (h << 32)
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn tuple(src: &str, dst: &str, sport: u16, dport: u16) -> Tuple {
        Tuple {
            src: src.parse::<IpAddr>().unwrap().into(),
            dst: dst.parse::<IpAddr>().unwrap().into(),
            ports: u32::from(sport.to_be()) | u32::from(dport.to_be()) << 16,
            protocol: 6,
        }
    }

    /// The values come from a second implementation. A change here breaks every connection of a fleet that upgrades node by node.
    #[test]
    fn frozen() {
        assert_eq!(flow(&tuple("192.0.2.1", "203.0.113.10", 40000, 443), 7), 0xa085_37da_102d_fff7);
        assert_eq!(
            flow(&tuple("2001:db8::1", "2001:db8::10", 40000, 443), 7),
            0x009f_29a3_51b0_fcbc
        );
        assert_eq!(
            frontend("203.0.113.10".parse::<IpAddr>().unwrap().into(), 0x0006_bb01, 7),
            0x0627_8887_aab8_224b
        );
    }

    #[test]
    fn flows_spread_evenly_over_slots() {
        // 2^16 ports of one client over 251 slots: chi-squared with 250 degrees of freedom stays
        // below 350 (p < 0.0001) for a good hash.
        let mut seen = [0u32; 251];
        for port in 0..=u16::MAX {
            let h = flow(&tuple("198.51.100.7", "203.0.113.10", port, 80), 1);
            seen[slot(h, 251) as usize] += 1;
        }
        let expected = 65536.0 / 251.0;
        let chi: f64 = seen.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
        assert!(chi < 350.0, "chi-squared {chi}");
    }

    proptest! {
        #[test]
        fn one_bit_of_the_tuple_changes_about_half_of_the_hash(src: u64, dst: u64, ports: u32, bit in 0u32..32) {
            let t = Tuple { src: Addr::v4(src as u32), dst: Addr::v4(dst as u32), ports, protocol: 6 };
            let mut u = t;
            u.ports ^= 1 << bit;
            let changed = (flow(&t, 3) ^ flow(&u, 3)).count_ones();
            prop_assert!((8..=56).contains(&changed), "{changed} bits");
        }

        #[test]
        fn slots_stay_inside(hash: u64, size in 1u32..=1_048_573) {
            prop_assert!(slot(hash, size) < size);
        }
    }
}
