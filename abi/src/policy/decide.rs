//! The decision over the tables: pure, and the same on both sides.

use super::{
    AddressRow, Connection, ConnectionKey, Entry, Head, Interface, Part, PolicyRow, Side, Tables,
    Way, Which, embedded, packet,
};
use crate::{
    addr::Addr,
    limits::{MAX_PROBES, policy as limits},
    reason::Reason,
    wire::Frame,
};

/// Why a packet goes the way it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Of the packet.
    pub reason: Reason,
    /// Row plus one of the rule that decided; 0: none did.
    pub rule: u32,
    /// Whose the other end is; 0: nobody looked.
    pub peer: u32,
}

impl Decision {
    #[inline(always)]
    const fn of(reason: Reason) -> Self {
        Self { reason, rule: 0, peer: 0 }
    }
}

/// Whose address it is.
#[inline(always)]
pub fn identity(tables: &impl Tables, address: Addr) -> u32 {
    let (mut index, tag) = AddressRow::hash(address, tables.salt());
    let mut probes = 0;
    while probes < MAX_PROBES {
        let Some(bucket) = tables.bucket(index) else { break };
        if let Some(row) = bucket.find(tag)
            && let Some(row) = tables.address(row)
            && row.address.lo() == address.lo()
            && row.address.hi() == address.hi()
        {
            return row.identity as u32;
        }
        if !bucket.overflows() {
            break;
        }
        index = index.wrapping_add(1);
        probes += 1;
    }
    match tables.prefix(address) {
        0 if address.is_v4() => limits::WORLD_V4,
        0 => limits::WORLD_V6,
        identity => identity,
    }
}

/// The word of the entry that decides, by the tables alone; 0: none, which is the side's default.
#[inline(always)]
pub fn verdict(tables: &impl Tables, side: &Side, peer: u32, protocol: u8, port: u16) -> u64 {
    if !side.has(Side::ENTRIES) {
        return 0;
    }
    let class = class(tables, side, protocol, port);
    let probe = |identity: u32| {
        let index = side.offset.wrapping_add(Entry::hash(identity, class) & side.mask);
        tables.entries(index).map_or(0, |bucket| bucket.find(Entry::key(identity, class)))
    };
    let own = probe(peer);
    if own != 0 || !side.has(Side::ANYBODY) {
        return own;
    }
    probe(0)
}

#[inline(always)]
fn class(tables: &impl Tables, side: &Side, protocol: u8, port: u16) -> u16 {
    let top = match protocol {
        packet::TCP => side.tops[0],
        packet::UDP => side.tops[1],
        packet::SCTP => side.tops[2],
        packet::ICMP => side.tops[3],
        packet::ICMP6 => side.tops[4],
        _ => 0,
    };
    if top == 0 {
        return 0;
    }
    let Some(top) = tables.top(top) else { return 0 };
    let Some(page) = tables.page(top.pages[(port >> 8) as usize & 255]) else { return 0 };
    page.classes[port as usize & 255]
}

/// Whether a packet with this word passes.
#[inline(always)]
#[must_use]
pub const fn passes(side: &Side, word: u64) -> bool {
    if word == 0 { !side.has(Side::CLOSED) } else { word & Entry::DENY == 0 }
}

/// Whether a packet with this word, which passes, would be denied if all rules were in force.
#[inline(always)]
#[must_use]
pub const fn is_audited(side: &Side, word: u64) -> bool {
    if word == 0 { side.has(Side::AUDIT) } else { word & Entry::AUDIT != 0 }
}

/// What becomes of a packet that goes this way, as seen from the endpoint, through an endpoint's interface or the
/// host's. `frame` is where `head`
/// was read from.
#[inline(always)]
pub fn decide(
    tables: &impl Tables,
    index: u32,
    way: Way,
    head: Head,
    frame: &(impl Frame + ?Sized),
) -> Decision {
    let Some(mut place) = tables.settled(Which::Outer, head) else {
        return Decision::of(Reason::PolicyMalformed);
    };
    let head = &mut *place;
    let Some(interface) = Interface::from_word(tables.interface(index)) else {
        return Decision::of(Reason::NoEndpoint);
    };
    if head.is_neighbour_discovery() {
        return Decision::of(Reason::PolicyNeighbour);
    }
    let Some(row) = tables.policy(interface.policy) else {
        return Decision::of(Reason::NoEndpoint);
    };
    let (side, back) = (row.side(way), row.side(way.back()));
    if side.is_open() && back.is_open() {
        return Decision::of(Reason::PolicyOpen);
    }
    let index = if interface.host {
        let local = match way {
            Way::In => head.dst,
            Way::Out => head.src,
        };
        if identity(tables, local) != limits::HOST {
            return Decision::of(Reason::PolicyNotHost);
        }
        Interface::ANY
    } else {
        index
    };
    if !assemble(tables, index, way, head) {
        return Decision::of(Reason::PolicyFragment);
    }
    let head = &*head;
    let remote = match way {
        Way::In => head.src,
        Way::Out => head.dst,
    };
    let peer = identity(tables, remote);
    let word = verdict(tables, side, peer, head.protocol, head.port());
    let rule = Entry::rule_of(word);
    let (passes, audited) = (passes(side, word), is_audited(side, word));
    if passes && !audited {
        let tracked = head.is_tracked(side.has(Side::TRACK));
        if tracked || side.has(Side::KEEP) {
            remember(tables, index, way, head, tracked);
        }
        let reason = if word == 0 { Reason::PolicyOpen } else { Reason::PolicyAllowed };
        return Decision { reason, rule, peer };
    }
    if !passes && side.has(Side::HOLD) && is_held(tables, index, way, head) {
        return Decision { reason: Reason::PolicyHeld, rule, peer };
    }
    if head.may_be_reply() && is_reply(tables, index, way, head, back, peer) {
        return Decision { reason: Reason::PolicyReply, rule: 0, peer };
    }
    if head.is_error()
        && let Some(inner) = embedded(frame, head)
        && let Some(inner) = tables.settled(Which::Inner, inner)
        && is_related(tables, index, way, head, &inner, row)
    {
        return Decision { reason: Reason::PolicyRelated, rule: 0, peer };
    }
    if passes && head.is_tracked(side.has(Side::TRACK)) {
        remember(tables, index, way, head, true);
    }
    let reason = match (passes || interface.audit, word) {
        (true, _) => Reason::PolicyAudit,
        (false, 0) => Reason::PolicyDefaultDeny,
        (false, _) => Reason::PolicyDenied,
    };
    Decision { reason, rule, peer }
}

/// Gives it the ports of the first fragment. `false`: that was not seen.
#[inline(always)]
fn assemble(tables: &impl Tables, index: u32, way: Way, head: &mut Head) -> bool {
    if head.part as u8 == Part::Whole as u8 {
        return true;
    }
    let key = ConnectionKey::fragment(head, way, index);
    if head.part as u8 == Part::First as u8 {
        tables.remember_fragment(&key, u64::from(head.ports) | u64::from(head.kind) << 32);
        return true;
    }
    let Some(known) = tables.fragment(&key) else { return false };
    head.ports = known as u32;
    head.kind = (known >> 32) as u8;
    true
}

/// Notes that the connection was seen; `make`: one that is not known is made.
#[inline(always)]
fn remember(tables: &impl Tables, index: u32, way: Way, head: &Head, make: bool) {
    let key = ConnectionKey::new(head, way, index);
    let now = tables.now();
    // A TCP SYN begins anew, whatever was before.
    if !head.opening
        && let Some(known) = tables.connection(&key)
        && known.is_alive(head.protocol, now)
    {
        let answered = known.opened() as u32 != way as u32;
        if let Some(fresh) = known.refreshed(answered, now) {
            tables.remember(&key, &fresh);
        }
        return;
    }
    if make {
        tables.remember(&key, &Connection::new(way, now));
    }
}

/// Whether it belongs to a connection that was opened, by either end, and answered.
#[inline(always)]
fn is_held(tables: &impl Tables, index: u32, way: Way, head: &Head) -> bool {
    let key = ConnectionKey::new(head, way, index);
    let Some(known) = tables.connection(&key) else { return false };
    let now = tables.now();
    if head.opening || !known.is_answered() || !known.is_alive(head.protocol, now) {
        return false;
    }
    if let Some(fresh) = known.refreshed(true, now) {
        tables.remember(&key, &fresh);
    }
    true
}

/// Whether it belongs to a connection that was opened the other way, and still may be. A reply comes
/// from the port that the connection went to.
#[inline(always)]
fn is_reply(
    tables: &impl Tables,
    index: u32,
    way: Way,
    head: &Head,
    back: &Side,
    peer: u32,
) -> bool {
    let key = ConnectionKey::new(head, way, index);
    let Some(known) = tables.connection(&key) else { return false };
    let now = tables.now();
    if known.opened() as u32 == way as u32 || !known.is_alive(head.protocol, now) {
        return false;
    }
    let word = verdict(tables, back, peer, head.protocol, head.port_back());
    if !passes(back, word) {
        return false;
    }
    if let Some(fresh) = known.refreshed(true, now) {
        tables.remember(&key, &fresh);
    }
    true
}

/// Whether an ICMP error is about a packet that may pass: errors go to who sent it, so it went the
/// other way.
#[inline(always)]
fn is_related(
    tables: &impl Tables,
    index: u32,
    way: Way,
    error: &Head,
    inner: &Head,
    row: &PolicyRow,
) -> bool {
    if inner.src.lo() != error.dst.lo() || inner.src.hi() != error.dst.hi() {
        return false;
    }
    let remote = match way {
        Way::In => inner.dst,
        Way::Out => inner.src,
    };
    let peer = identity(tables, remote);
    let (side, back) = (row.side(way), row.side(way.back()));
    if passes(back, verdict(tables, back, peer, inner.protocol, inner.port())) {
        return true;
    }
    let key = ConnectionKey::new(inner, way.back(), index);
    tables.connection(&key).is_some_and(|known| {
        known.opened() as u32 == way as u32
            && known.is_alive(inner.protocol, tables.now())
            && passes(side, verdict(tables, side, peer, inner.protocol, inner.port_back()))
    })
}
