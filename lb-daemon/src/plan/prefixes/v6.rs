//! IPv6: a hash table in which each prefix has the strongest list of all that cover it.

use abi::prefix::{Bucket6, Filter6, Net6, Place6, WAYS6};
use config::PrefixSet;
use ipnet::Ipv6Net;

use super::{
    Full, Layers,
    layers::{Bits, layer},
};

/// Prefixes that move for the sake of one: at two thirds of the room, hardly ever more than a few.
const MAX_MOVES: usize = 500;

pub(super) fn net6(net: Ipv6Net) -> Net6 {
    let bits = u128::from(net.network());
    Net6 { hi: (bits >> 64) as u64, lo: bits as u64, len: net.prefix_len() }
}

/// Every prefix of the sets with the number of the lists that decide about it, in the order of prefixes.
pub(super) fn compile(layers: &Layers<'_>) -> Vec<(Net6, u8)> {
    let mut all: Vec<(Net6, u16)> = Vec::new();
    for (strength, (set, _)) in layers.weakest_first().enumerate() {
        all.extend(set.v6().iter().map(|&net| (net6(net), strength as u16)));
    }
    // Of equal prefixes the strongest last.
    if !all.is_sorted() {
        all.sort_unstable();
    }
    let mut out: Vec<(Net6, u8)> = Vec::with_capacity(all.len());
    // Those that cover the one at hand, each with all layers up to it: a prefix comes after those
    // that cover it.
    let mut covering: Vec<(Net6, Bits)> = Vec::new();
    for (net, own) in all {
        while covering.last().is_some_and(|(c, _)| Net6::new(net.hi, net.lo, c.len) != *c) {
            covering.pop();
        }
        let own = layer(usize::from(own));
        let all = covering.last().map_or(own, |&(_, above)| or(above, own));
        if covering.last().is_some_and(|(c, _)| *c == net) {
            covering.pop();
            out.pop();
        }
        covering.push((net, all));
        out.push((net, layers.number(all)));
    }
    out
}

/// The number of the lists that decide about a prefix of the sets; `None`: none of them has it.
pub(super) fn decides(layers: &Layers<'_>, net: Ipv6Net) -> Option<u8> {
    let here = |set: &PrefixSet| set.contains(net.into());
    if !layers.weakest_first().any(|(set, _)| here(set)) {
        return None;
    }
    let covers = |set: &PrefixSet| set.longest(net.network().into(), net.prefix_len()).is_some();
    let sets = layers.weakest_first().enumerate().filter(|(_, (set, _))| covers(set));
    Some(layers.number(sets.fold([0; 4], |all, (at, _)| or(all, layer(at)))))
}

fn or(a: Bits, b: Bits) -> Bits {
    std::array::from_fn(|i| a[i] | b[i])
}

/// The table of these prefixes, and the bits of their short lengths. Numbers of rows are powers of two.
///
/// # Errors
/// Too many prefixes near one bucket.
pub(super) fn table(
    nets: &[(Net6, u8)],
    filter_rows: u32,
    bucket_rows: u32,
) -> Result<(Vec<Filter6>, Vec<Bucket6>, u32), Full> {
    let mut filter = vec![Filter6::default(); filter_rows as usize];
    let mut buckets = vec![Bucket6::default(); bucket_rows as usize];
    let mut shorts = 0;
    for &(net, list) in nets {
        match net.place() {
            Place6::Short(bit) => shorts |= bit,
            Place6::Filter { row, word, bit } => {
                let row = &mut filter[(row & (filter_rows - 1)) as usize];
                let mut words = row.words();
                words[word] |= bit;
                *row = Filter6::new(words);
            }
        }
        if !put(&mut buckets, bucket_rows - 1, net, list) {
            return Err(Full("BUCKETS6"));
        }
    }
    Ok((filter, buckets, shorts))
}

/// Puts a prefix into one of its buckets; where both are full, another one moves to its other bucket, and
/// so on (cuckoo hashing: Pagh and Rodler, 2001).
fn put(buckets: &mut [Bucket6], mask: u32, net: Net6, list: u8) -> bool {
    let mut homeless = (net, list);
    let mut avoid = None;
    for step in 0..MAX_MOVES {
        let rows = homeless.0.buckets().map(|row| row & mask);
        let free =
            rows.into_iter().find_map(|row| free_way(&buckets[row as usize]).map(|w| (row, w)));
        if let Some((row, way)) = free {
            buckets[row as usize].set(way, Some(homeless));
            return true;
        }
        // Not back to where it was driven out of.
        let row = if avoid == Some(rows[0]) { rows[1] } else { rows[0] };
        let way = step % WAYS6;
        let Some(out) = buckets[row as usize].get(way) else { return false };
        buckets[row as usize].set(way, Some(homeless));
        (homeless, avoid) = (out, Some(row));
    }
    false
}

/// A way that holds nothing.
pub(super) fn free_way(bucket: &Bucket6) -> Option<usize> {
    (0..WAYS6).find(|&way| bucket.get(way).is_none())
}
