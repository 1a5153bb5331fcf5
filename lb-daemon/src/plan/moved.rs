//! What a change of a service would do to its ring.

use std::net::IpAddr;

use config::model::{Maglev, Service};

use super::services::{ring_size, takers};
use crate::ring;

/// Slots of the ring of `after`, and how many of them have another backend than where their flows went before;
/// `None`: both rings are the same. As if every backend were healthy.
#[must_use]
pub fn slots_moved(before: (&Service, &Maglev), after: (&Service, &Maglev)) -> Option<(u32, u32)> {
    let [old, new] = [before, after].map(|(spec, maglev)| {
        (ring::seed(&maglev.seed), ring_size(spec, maglev.table_size), takers(spec))
    });
    if old == new {
        return None;
    }
    let (old, new) = (owners(old), owners(new));
    let slots = new.len().max(1) as u64;
    // A flow's slot is its hash in proportion to the size: where sizes differ, in the middle of the new slot.
    let old_at = |slot: usize| (slot as u64 * 2 + 1) * old.len() as u64 / (slots * 2);
    let moved =
        new.iter().enumerate().filter(|(slot, owner)| old[old_at(*slot) as usize] != **owner);
    Some((new.len() as u32, moved.count() as u32))
}

/// Who has each slot; at least one slot.
fn owners((seed, size, takers): (u64, u32, Vec<(IpAddr, u32)>)) -> Vec<Option<IpAddr>> {
    if takers.is_empty() {
        return vec![None; size.max(1) as usize];
    }
    let members: Vec<ring::Member> =
        takers.iter().map(|&(address, weight)| ring::Member::new(seed, address, weight)).collect();
    let slots = ring::build(&members, size).into_iter();
    slots.map(|index| takers.get(index as usize).map(|(address, _)| *address)).collect()
}
