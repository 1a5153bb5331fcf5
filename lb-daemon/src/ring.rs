//! Maglev rings: which backend has which slot.
//!
//! Section 3.4 of the Maglev paper (Eisenbud et al., NSDI 2016): each backend walks its own
//! permutation of the slots and takes the first free one, in turns. Weights give turns in
//! proportion, by integer credits, so that equal weights give exactly the unweighted table. The
//! result depends on the backends' hashes, weights and order of addresses alone: the same on every
//! node, machine and version.
//!
//! Pure. Knows nothing of rows or of memory.

use std::net::IpAddr;

use abi::limits::RING_SLOTS;
use siphasher::sip::SipHasher24;

/// One backend of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where its permutation begins, before reduction.
    pub offset: u64,
    /// Its step, before reduction.
    pub skip: u64,
    /// More than 0; turns in proportion.
    pub weight: u32,
}

impl Member {
    /// The member for an address: two SipHash-2-4 of its 16 bytes (IPv4 as IPv4-mapped), keyed by
    /// the fleet's seed.
    #[must_use]
    pub fn new(seed: u64, address: IpAddr, weight: u32) -> Self {
        let bytes = abi::addr::Addr::from(address).to_bytes();
        let hash = |n: u64| SipHasher24::new_with_keys(seed, n).hash(&bytes);
        Self { offset: hash(0xdead_babe), skip: hash(0xdead_beef), weight }
    }
}

/// The fleet's seed as a number: SipHash-2-4 of its text.
#[must_use]
pub fn seed(text: &str) -> u64 {
    SipHasher24::new_with_keys(0x6c62, 0x7365_6564).hash(text.as_bytes())
}

/// Sizes that `table_size: auto` chooses from: primes just below powers of two.
const SIZES: [u32; 7] = [251, 1021, 4093, 16_381, 65_521, 262_139, 1_048_573];

/// The size for a number of backends: at least a hundred slots for each (the paper's bound for an
/// imbalance of 1 %), as far as sizes go. Depends on nothing else, so that all nodes agree.
#[must_use]
pub fn size_for(backends: usize) -> u32 {
    let wanted = backends.saturating_mul(100);
    SIZES.into_iter().find(|&s| s as usize >= wanted).unwrap_or(*RING_SLOTS.end())
}

/// Fills a ring of `size` slots (a prime) and returns the index of a member for each slot; empty
/// without members.
///
/// # Panics
/// When `size` is 0 or 1, or a weight is 0.
#[must_use]
pub fn build(members: &[Member], size: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    assert!(size > 1, "a ring has slots");
    if members.is_empty() {
        return Vec::new();
    }
    struct Walk {
        next: u32,
        skip: u32,
        weight: u64,
        credit: u64,
    }
    let most = members.iter().map(|m| u64::from(m.weight)).max().unwrap_or(1);
    let mut walks: Vec<Walk> = members
        .iter()
        .map(|m| {
            assert!(m.weight > 0, "a member without weight is no member");
            Walk {
                next: (m.offset % u64::from(size)) as u32,
                skip: (m.skip % u64::from(size - 1)) as u32 + 1,
                weight: u64::from(m.weight),
                credit: 0,
            }
        })
        .collect();
    // One bit for each slot stays in the first-level cache where the ring itself does not.
    let mut taken = vec![0u64; size.div_ceil(64) as usize];
    let mut ring = vec![FREE; size as usize];
    let mut filled = 0;
    loop {
        for (index, walk) in walks.iter_mut().enumerate() {
            walk.credit += walk.weight;
            if walk.credit < most {
                continue;
            }
            walk.credit -= most;
            let mut slot = walk.next;
            while taken[(slot / 64) as usize] >> (slot % 64) & 1 != 0 {
                slot += walk.skip;
                if slot >= size {
                    slot -= size;
                }
            }
            taken[(slot / 64) as usize] |= 1 << (slot % 64);
            ring[slot as usize] = index as u32;
            walk.next = slot;
            filled += 1;
            if filled == size {
                return ring;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, Hasher};

    use maglev::{ConsistentHasher, Maglev};
    use proptest::prelude::*;

    use super::*;

    fn members(n: u32, weight: impl Fn(u32) -> u32) -> Vec<Member> {
        (0..n)
            .map(|i| Member::new(7, IpAddr::from((0x0a00_0000 + i).to_be_bytes()), weight(i)))
            .collect()
    }

    fn counts(ring: &[u32], n: usize) -> Vec<u32> {
        let mut c = vec![0; n];
        for &m in ring {
            c[m as usize] += 1;
        }
        c
    }

    /// Gives the `maglev` crate our hashes: it writes its own seed, then the node.
    #[derive(Clone)]
    struct OurHashes;
    struct OurHasher(u32, Vec<u8>);
    impl BuildHasher for OurHashes {
        type Hasher = OurHasher;
        fn build_hasher(&self) -> OurHasher {
            OurHasher(0, Vec::new())
        }
    }
    impl Hasher for OurHasher {
        fn write(&mut self, bytes: &[u8]) {
            self.1.extend_from_slice(bytes);
        }
        fn write_u32(&mut self, n: u32) {
            if self.0 == 0 { self.0 = n } else { self.1.extend_from_slice(&n.to_ne_bytes()) }
        }
        fn finish(&self) -> u64 {
            let node = u32::from_ne_bytes(self.1[..4].try_into().unwrap());
            if node >= 1 << 31 {
                // A probe key: its hash is the slot itself.
                return u64::from(node - (1 << 31));
            }
            let address = IpAddr::from((0x0a00_0000 + node).to_be_bytes());
            let m = Member::new(7, address, 1);
            if self.0 == 0xdead_babe { m.offset } else { m.skip }
        }
    }

    #[test]
    fn equal_weights_give_the_crates_table_slot_for_slot() {
        for (n, size) in [(1u32, 251u32), (3, 251), (10, 1021), (40, 4093), (100, 16_381)] {
            let ring = build(&members(n, |_| 5), size);
            let oracle = Maglev::with_capacity_and_hasher(0..n, size as usize, OurHashes);
            assert_eq!(oracle.capacity(), size as usize);
            for (slot, &member) in ring.iter().enumerate() {
                assert_eq!(oracle[&(slot as u32 + (1 << 31))], member, "slot {slot} of {size}");
            }
        }
    }

    #[test]
    fn frozen() {
        let ring = build(&members(5, |i| i + 1), 251);
        let sum = ring.iter().fold(0u64, |h, &m| h.wrapping_mul(31).wrapping_add(u64::from(m)));
        assert_eq!((&ring[..8], sum), (&[3, 1, 3, 4, 4, 3, 2, 3][..], 16_596_491_516_251_674_012));
    }

    #[test]
    fn slots_follow_weights_within_one_per_cent_of_a_ring() {
        let ring = build(&members(20, |i| 1 + i * 10), 65_521);
        let total: u32 = (0..20).map(|i| 1 + i * 10).sum();
        for (i, &c) in counts(&ring, 20).iter().enumerate() {
            let want = f64::from(65_521 * (1 + i as u32 * 10)) / f64::from(total);
            assert!((f64::from(c) - want).abs() <= 20.0 + want * 0.01, "{i}: {c}, not {want}");
        }
    }

    #[test]
    fn sizes_follow_the_number_of_backends() {
        assert_eq!(
            [0, 2, 3, 10, 11, 655, 656, 5000, 100_000].map(size_for),
            [251, 251, 1021, 1021, 4093, 65_521, 262_139, 1_048_573, 1_048_573]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn removing_one_moves_little_else(n in 3u32..60, gone in any::<prop::sample::Index>()) {
            let size = 16_381;
            let before = members(n, |_| 1);
            let gone = gone.index(n as usize);
            let mut after = before.clone();
            after.remove(gone);
            let a = build(&before, size);
            let b = build(&after, size);
            let moved = a.iter().zip(&b).filter(|&(&x, &y)| {
                let y = if y as usize >= gone { y + 1 } else { y };
                x as usize != gone && x != y
            }).count();
            // The paper measures about 1 % at a hundred slots for each backend, more for fewer.
            prop_assert!(moved as f64 / f64::from(size) <= 0.04, "{moved} of {size}");
        }

        #[test]
        fn equal_weights_differ_by_at_most_one(n in 1u32..200, weight in 1u32..1000) {
            let c = counts(&build(&members(n, |_| weight), 4093), n as usize);
            prop_assert!(c.iter().max().unwrap() - c.iter().min().unwrap() <= 1);
        }
    }
}
