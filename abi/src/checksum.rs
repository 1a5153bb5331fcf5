//! Internet checksums: RFC 1071, and incremental updates after RFC 1624 equation 3.
//!
//! All 16-bit words are taken as they stand in memory; the ones' complement sum does not depend on
//! byte order (RFC 1071 section 2 (B)), so a result is stored back as it is.

/// Folds a 32-bit sum to 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Sum of the two halves of a word as it stands in memory.
#[inline(always)]
#[must_use]
pub const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// The checksum after the word `old` of what it covers has become `new`: `~(~c + ~old + new)`.
#[inline(always)]
#[must_use]
pub const fn replace(checksum: u16, old: u16, new: u16) -> u16 {
    !fold((!checksum as u32) + (!old as u32) + new as u32)
}

/// The third word of an IPv4 header, as it stands in memory, when its TTL, which is not 0, has become one less: the
/// checksum as by [`replace`], where what the two words come to is a constant.
#[inline(always)]
#[must_use]
pub const fn one_hop_less(word: u32) -> u32 {
    // The TTL is the lowest byte, the checksum the high half, to which one is added, and once more if that overflows or
    // comes to its other zero.
    match one_hop_less_at_once(word) {
        Some(word) => word,
        None => word.wrapping_add(0x1_ffff),
    }
}

/// The same where nothing has to go round: all but two of 65,536.
#[inline(always)]
#[must_use]
pub const fn one_hop_less_at_once(word: u32) -> Option<u32> {
    if word < 0xfffe_0000 { Some(word + 0xffff) } else { None }
}

/// The complement of the ones' complement sum of words as they stand in memory.
#[inline(always)]
#[must_use]
pub const fn of_words(words: [u32; 4]) -> u16 {
    let [a, b, c, d] = words;
    !fold_words(a as u64 + b as u64 + c as u64 + d as u64)
}

/// Folds a sum of up to 2^16 words of 32 bits to 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold_words(sum: u64) -> u16 {
    // Of its three halves, h0 to h2, s = h0 + h1 + h2 stands in the product's highest 16 bits, and again in the 16 below:
    // what is carried from there is what has to go round. It is s >> 16 but for s = 0x1ffff, which comes to 0x10000 when
    // it has gone round, and once more; then h0 + h1, in the 16 bits further down, is carried too, and makes it 2.
    (sum.wrapping_mul(0x0001_0001_0001_0001) >> 48) as u16
}

/// Sum of `bytes` in memory order, not folded; an odd last byte counts as if a zero followed.
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    let mut total: u64 = 0;
    let mut chunks = bytes.chunks_exact(2);
    for c in &mut chunks {
        total += u64::from(u16::from_ne_bytes([c[0], c[1]]));
    }
    if let [last] = chunks.remainder() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    while total > u64::from(u32::MAX) {
        total = (total & 0xffff_ffff) + (total >> 32);
    }
    total as u32
}

/// The checksum of `bytes`, whose own checksum field is zero.
#[must_use]
pub fn full(bytes: &[u8]) -> u16 {
    let s = sum(bytes);
    !fold((s & 0xffff) + (s >> 16))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Ones' complement arithmetic has two zeros.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!((!full(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: the case where equation 2 of RFC 1141 gives 0xffff instead of 0x0000.
        assert_eq!(replace(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn one_hop_less_is_that_word_replaced() {
        for checksum in 0..=u16::MAX {
            for [ttl, protocol] in [[1, 0], [64, 6], [255, 255], [2, 17], [128, 0]] {
                let word = |ttl| u16::from_ne_bytes([ttl, protocol]);
                let all = |ttl, checksum| u32::from(word(ttl)) | u32::from(checksum) << 16;
                let want = all(ttl - 1, replace(checksum, word(ttl), word(ttl - 1)));
                let found = one_hop_less(all(ttl, checksum));
                assert_eq!(found, want, "{checksum:#x} {ttl} {protocol}");
            }
        }
    }

    #[test]
    fn halves_are_folded_in_one_product() {
        let edges = [0u64, 1, 2, 0x7fff, 0x8000, 0xfffd, 0xfffe, 0xffff];
        for n in 0..edges.len().pow(3) {
            let [h0, h1, h2] = [n & 7, n >> 3 & 7, n >> 6].map(|at| edges[at]);
            let want = fold((h0 + h1 + h2) as u32);
            assert_eq!(fold_words(h0 | h1 << 16 | h2 << 32), want, "{h0:#x} {h1:#x} {h2:#x}");
        }
    }

    proptest! {
        #[test]
        fn a_sum_of_words_is_folded_as_halves_are(sum in 0u64..1 << 48) {
            let halves = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
            prop_assert_eq!(fold_words(sum), fold(halves as u32));
        }

        #[test]
        fn words_are_their_bytes(words in any::<[u32; 4]>(), ones in any::<[bool; 4]>()) {
            let words = std::array::from_fn(|n| if ones[n] { u32::MAX } else { words[n] });
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            prop_assert_eq!(of_words(words), full(&bytes));
        }

        #[test]
        fn incremental_equals_full(mut bytes in prop::collection::vec(any::<u8>(), 2..80), at in any::<prop::sample::Index>(), new in any::<u16>()) {
            if bytes.len() % 2 == 1 { bytes.push(0); }
            let word = at.index(bytes.len() / 2) * 2;
            let before = full(&bytes);
            let old = u16::from_ne_bytes([bytes[word], bytes[word + 1]]);
            bytes[word..word + 2].copy_from_slice(&new.to_ne_bytes());
            prop_assert!(same(replace(before, old, new), full(&bytes)));
        }

        #[test]
        fn a_packet_with_its_checksum_sums_to_ones(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut whole: Vec<u8> = full(&bytes).to_ne_bytes().to_vec();
            whole.extend(&bytes);
            prop_assert!(same(full(&whole), 0));
        }
    }
}
