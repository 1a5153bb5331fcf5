//! Which frontend a packet is for, and which backend its flow belongs to.
//!
//! Pure over [`Tables`]: the XDP program implements it on BPF maps, the tests and `bench/` on
//! vectors. State is kept in proportion to churn: a flow has an entry only while the ring alone
//! could send it elsewhere than where it is connected.

use crate::{
    addr::Addr,
    flow::{FlowEntry, FlowKey, table::WAYS, tag::Tag},
    hash::{self, Tuple},
    limits::{ALTERNATES, MAX_PROBES},
    reason::Reason,
    spans,
    table::{Backend, Bucket, Frontend, FrontendKey, PlainRing, Ring, Slot},
};

/// Read access to the compiled tables, and the flow table.
pub trait Tables {
    /// Salt of the frontend table.
    fn salt(&self) -> u64;
    /// Whether the filter of VIPs has the bit of this hash ([`vip_place`]), which comes folded, too ([`hash::folded`]).
    fn vip_bit(&self, hash: u64, folded: u64) -> bool;
    /// The bucket that the high half of a hash names, modulo the table's size ([`hash::frontend`]).
    fn bucket(&self, hash: u64) -> &Bucket;
    /// A frontend row.
    fn frontend(&self, row: u32) -> Option<&Frontend>;
    /// The same with its number, as a verifier knows it to be within bounds.
    #[inline(always)]
    fn frontend_at(&self, row: u32) -> Option<(u32, &Frontend)> {
        self.frontend(row).map(|frontend| (row, frontend))
    }
    /// A word of the ring arena.
    fn slot(&self, index: u32) -> Option<u64>;
    /// A backend row.
    fn backend(&self, row: u32) -> Option<&Backend>;
    /// The same with its number, as [`Self::frontend_at`].
    #[inline(always)]
    fn backend_at(&self, row: u32) -> Option<(u32, &Backend)> {
        self.backend(row).map(|backend| (row, backend))
    }
    /// The backend row of a slot that has not moved, by the slot's word ([`Slot::to_word`]), if there is such a row.
    #[inline(always)]
    fn backend_of(&self, word: u64) -> Option<(u32, &Backend)> {
        if word >> 32 == 0 { self.backend_at(word as u32) } else { None }
    }
    /// The entry of a flow; `hash`: of its key ([`FlowKey::hash`]), or any other that is the same each time.
    fn flow(&self, key: &FlowKey, hash: u64) -> Option<FlowEntry>;
    /// The same for a flow that has looked for its tag before ([`tagged`]), and is left one.
    #[inline(always)]
    fn untagged(&self, key: &FlowKey, hash: u64) -> Option<FlowEntry> {
        self.flow(key, hash)
    }
    /// The tag of the row that is looked at as the `n`th for a flow's entry, if there are tags.
    #[inline(always)]
    fn tag(&self, hash: u64, n: u32) -> Tag {
        let _ = (hash, n);
        Tag::NONE
    }
    /// Seconds of the clock that tags are made by.
    #[inline(always)]
    fn seconds(&self) -> u32 {
        0
    }
    /// Makes or replaces the entry of a flow; it may be lost, and older ones for it.
    fn remember(&self, key: &FlowKey, hash: u64, entry: &FlowEntry);
    /// Whether one more flow may have an entry now: bounded, so that a flood of new flows neither takes all
    /// of the table nor all of the time.
    fn admit(&self) -> bool;
}

/// What a packet says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// TCP with SYN and without ACK: a connection begins.
    Opening = 0,
    /// Any other TCP segment: of a connection that began earlier.
    Established = 1,
    /// UDP: nothing.
    Unknown = 2,
}

/// The hash of an address, folded, if it can be a VIP, by the tables' salt: `None` is certain. One load, where a lookup takes
/// two or more, and of far less memory: most packets that are not for a service need no more than this.
#[inline(always)]
pub fn may_be_vip<T: Tables>(tables: &T, addr: Addr, salt: u64) -> Option<u64> {
    let hash = hash::vip(addr, salt);
    let folded = hash::folded(hash);
    tables.vip_bit(hash, folded).then_some(folded)
}

/// Word of an address in the filter of VIPs, and bit, counted from the highest, by its [`hash::vip`]: of this the word, and of
/// what it is when folded the bit. `shift` is 64 less the binary logarithm of the filter's words.
#[inline(always)]
#[must_use]
pub const fn vip_place(hash: u64, shift: u32) -> (u32, u64) {
    // Of one word: as two shifts, or a shift by 64 would be none.
    let word = hash >> 1 >> (shift - 1);
    (word as u32, 1 << (63 - (hash::folded(hash) & 63)))
}

/// Finds the row of exactly this key.
#[inline(always)]
pub fn frontend<'a, T: Tables>(tables: &'a T, key: &FrontendKey) -> Option<(u32, &'a Frontend)> {
    frontend_of(tables, key, hash::folded(hash::vip(key.addr, tables.salt())))
}

/// The same for those who know the hash of the address, folded ([`may_be_vip`]).
#[inline(always)]
pub fn frontend_of<'a, T: Tables>(
    tables: &'a T,
    key: &FrontendKey,
    vip: u64,
) -> Option<(u32, &'a Frontend)> {
    let hash = key.hash_of(vip);
    let mut probes = 0;
    while probes < MAX_PROBES {
        let bucket = tables.bucket(hash.wrapping_add(u64::from(probes) << 32));
        if let Some(row) = bucket.find(hash as u32) {
            let (row, frontend) = tables.frontend_at(row)?;
            if frontend.is(key) {
                return Some((row, frontend));
            }
        }
        if !bucket.overflows() {
            return None;
        }
        probes += 1;
    }
    None
}

/// Row of the frontend of a port that has no row of its own: by a range of ports, else by port 0. `port` as
/// loaded.
#[inline(always)]
pub fn other_port<T: Tables>(tables: &T, vip: &Frontend, port: u16, protocol: u8) -> Option<u32> {
    if vip.ranges() != 0
        && let Some(row) = spans::row(tables, vip, u16::from_be(port), protocol)
    {
        return Some(row);
    }
    vip.any_port(protocol)
}

/// The backend row of a flow, for a ring that has just been read. `unsettled` is asked where an entry may decide, and
/// answers as [`unsettled`]: most packets need no more than the ring.
///
/// # Errors
/// [`Reason::NoBackend`] when the ring is empty or none of its backends takes packets.
#[inline(always)]
pub fn backend<'a, T: Tables>(
    tables: &'a T,
    frontend: &Frontend,
    hash: u64,
    unsettled: impl FnOnce() -> u32,
) -> Result<(u32, &'a Backend), Reason> {
    if let Some(found) = settled(tables, frontend.ring(), hash) {
        return Ok(found);
    }
    core::hint::cold_path();
    tables.backend_at(unsettled()).ok_or(Reason::NoBackend)
}

/// The backend of all flows of a slot, where no entry can decide otherwise.
#[inline(always)]
pub fn settled<T: Tables>(tables: &T, ring: Ring, hash: u64) -> Option<(u32, &Backend)> {
    // In this order: what the first test leaves needs no mask.
    if ring.resizing {
        return None;
    }
    settled_at(tables, own_word(tables, ring, hash)?)
}

/// Word of the slot of a flow in a ring that alone decides.
#[inline(always)]
pub fn plain_slot<T: Tables>(tables: &T, ring: PlainRing, hash: u64) -> Option<u64> {
    tables.slot(ring.slot(hash))
}

/// [`settled`], of a slot's word.
#[inline(always)]
pub fn settled_at<T: Tables>(tables: &T, word: u64) -> Option<(u32, &Backend)> {
    tables.backend_of(word).filter(|(_, backend)| backend.is_plain())
}

/// The backend of a flow that begins in such a slot, if it is up: no other one is looked for. The flow is to have an entry
/// ([`keep`]).
#[inline(always)]
pub fn begins<T: Tables>(tables: &T, slot: Slot) -> Option<(u32, &Backend)> {
    tables.backend_at(slot.current).filter(|(_, backend)| !backend.state().down)
}

/// Row of the backend that a flow's tag says, as [`known`] finds it by the entry, or [`Slot::NONE`]; `began`: of a
/// connection that began earlier.
#[inline(always)]
pub fn tagged<T: Tables>(tables: &T, hash: u64, began: bool) -> u32 {
    let now = tables.seconds();
    let own = Tag::new(hash, 0, 0, now);
    let mut n = 0;
    while n < WAYS {
        let tag = tables.tag(hash, n);
        if tag.is_like(own)
            && let Some((row, backend)) = tables.backend_at(tag.backend())
            && is_tag(tag, hash, row, backend, now, began)
        {
            return row;
        }
        n += 1;
    }
    Slot::NONE
}

/// Whether a tag is that of a flow with this hash, and means the backend of this row, and that takes packets: what
/// [`known`] finds by the entry. `now`: seconds of the programs' clock; `began`: of a connection that began earlier.
#[inline(always)]
#[must_use]
pub fn is_tag(tag: Tag, hash: u64, row: u32, backend: &Backend, now: u32, began: bool) -> bool {
    tag == Tag::new(hash, row, backend.epoch(), now) && backend.state().takes(began)
}

/// The row of that backend, or [`Slot::NONE`].
#[inline(always)]
pub fn settled_row<T: Tables>(tables: &T, frontend: &Frontend, hash: u64) -> u32 {
    settled(tables, frontend.ring(), hash).map_or(Slot::NONE, |(row, _)| row)
}

/// The slow way: the slot is between two backends, or its backend is down or has just come back.
/// Returns a backend row, or [`Slot::NONE`]. Of [`known`], [`fresh`] and [`keep`], which a program may call apart, and before
/// them [`tagged`].
#[inline(always)]
pub fn unsettled<T: Tables>(
    tables: &T,
    frontend: &Frontend,
    tuple: &Tuple,
    hash: u64,
    phase: Phase,
) -> u32 {
    let key = FlowKey::new(tuple);
    let row = known(tables, &key, hash, phase);
    if row != Slot::NONE {
        return row;
    }
    let (row, remember) = fresh(tables, frontend, hash, phase);
    if remember {
        keep(tables, &key, hash, row);
    }
    row
}

/// Where the entry of a flow says that it goes, or [`Slot::NONE`].
#[inline(always)]
pub fn known<T: Tables>(tables: &T, key: &FlowKey, hash: u64, phase: Phase) -> u32 {
    if phase != Phase::Opening
        && let Some(entry) = tables.untagged(key, hash)
        && counts(tables, &entry, phase == Phase::Established)
    {
        return entry.backend();
    }
    Slot::NONE
}

/// Where a flow without an entry goes, or [`Slot::NONE`], and whether it is to have one.
#[inline(always)]
pub fn fresh<T: Tables>(tables: &T, frontend: &Frontend, hash: u64, phase: Phase) -> (u32, bool) {
    let ring = frontend.ring();
    let Some(slot) = own_slot(tables, ring, hash) else { return (Slot::NONE, false) };
    let previous = previous(tables, frontend, ring, slot, hash);
    let began = phase == Phase::Established;
    if began && previous != slot.current && serves(tables, previous) {
        (previous, true)
    } else if began && serves(tables, slot.current) {
        (slot.current, false)
    } else {
        (up_or_other(tables, ring, slot.current, hash), !began)
    }
}

/// Makes an entry for a flow that goes to the backend of this row, unless there are too many at once.
#[inline(always)]
pub fn keep<T: Tables>(tables: &T, key: &FlowKey, hash: u64, row: u32) {
    if tables.admit()
        && let Some(backend) = tables.backend(row)
    {
        tables.remember(key, hash, &FlowEntry::new(row, backend.epoch()));
    }
}

/// Whether an entry still means its backend, and that takes packets; `began`: of a connection that began
/// earlier.
#[inline(always)]
pub fn counts<T: Tables>(tables: &T, entry: &FlowEntry, began: bool) -> bool {
    tables
        .backend(entry.backend())
        .is_some_and(|backend| backend.epoch() == entry.epoch() && backend.state().takes(began))
}

/// The backend that the slot had before.
#[inline(always)]
pub(crate) fn previous<T: Tables>(
    tables: &T,
    frontend: &Frontend,
    ring: Ring,
    slot: Slot,
    hash: u64,
) -> u32 {
    if ring.resizing {
        // That slot may have been between two itself: flows without an entry are then those of the one before.
        own_slot(tables, frontend.old_ring(), hash).map_or(Slot::NONE, |old| {
            if old.previous == Slot::NONE { old.current } else { old.previous }
        })
    } else {
        slot.previous
    }
}

/// Row of the backend of a flow that has no entry, by the ring alone; `began`: earlier, perhaps before the
/// slot moved.
#[inline(always)]
pub(crate) fn by_ring<T: Tables>(
    tables: &T,
    frontend: &Frontend,
    ring: Ring,
    hash: u64,
    began: bool,
) -> u32 {
    let Some(slot) = own_slot(tables, ring, hash) else { return Slot::NONE };
    let before = if began { previous(tables, frontend, ring, slot, hash) } else { Slot::NONE };
    if serves(tables, before) {
        before
    } else if began && serves(tables, slot.current) {
        slot.current
    } else {
        up_or_other(tables, ring, slot.current, hash)
    }
}

/// `row` if it is up, else the backend of another slot, else the heir.
#[inline(always)]
pub(crate) fn up_or_other<T: Tables>(tables: &T, ring: Ring, row: u32, hash: u64) -> u32 {
    if is_up(tables, row) {
        return row;
    }
    let mut other = hash;
    let mut tries = 0;
    while tries < ALTERNATES {
        other = hash::again(other);
        if let Some(slot) = own_slot(tables, ring, other)
            && is_up(tables, slot.current)
        {
            return slot.current;
        }
        tries += 1;
    }
    match tables.backend(row).and_then(|b| b.state().heir) {
        Some(heir) if is_up(tables, heir) => heir,
        _ => Slot::NONE,
    }
}

#[inline(always)]
pub(crate) fn is_up<T: Tables>(tables: &T, row: u32) -> bool {
    tables.backend(row).is_some_and(|b| !b.state().down)
}

/// Whether a connection that it has goes on there.
#[inline(always)]
fn serves<T: Tables>(tables: &T, row: u32) -> bool {
    tables.backend(row).is_some_and(|b| b.state().takes(true))
}

#[inline(always)]
pub(crate) fn own_slot<T: Tables>(tables: &T, ring: Ring, hash: u64) -> Option<Slot> {
    own_word(tables, ring, hash).map(Slot::from_word)
}

#[inline(always)]
fn own_word<T: Tables>(tables: &T, ring: Ring, hash: u64) -> Option<u64> {
    if ring.size == 0 {
        return None;
    }
    tables.slot(ring.offset.wrapping_add(hash::slot(hash, ring.size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// VIPs and other addresses of the same networks: one in 16 bits set lets about one in 16 through.
    #[test]
    fn the_filter_keeps_neighbours_out() {
        let shift = 64 - 10;
        // 4,096 VIPs of a /16, each 16th address; then as many in steps over the whole of 10.0.0.0/8.
        for step in [16u32, 4099] {
            let at = |n: u32| Addr::v4((0x0a01_0000 + n * step).to_be());
            let mut words = [0u64; 1 << 10];
            for n in 0..4096 {
                let (index, bit) = vip_place(hash::vip(at(n), 7), shift);
                words[index as usize] |= bit;
            }
            let passes = (0..4096u32).filter(|n| {
                let other = Addr::v4((0x0a01_0000 + n * step + 1).to_be());
                let (index, bit) = vip_place(hash::vip(other, 7), shift);
                words[index as usize] & bit != 0
            });
            let passes = passes.count();
            assert!(passes < 2 * 4096 / 16, "{passes} of 4096, step {step}");
        }
    }
}
