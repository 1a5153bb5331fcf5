//! Wanted against actual: which operations lead from the tables in force to the wanted ones.
//!
//! Pure: no I/O, no clock; `now` comes in as a duration since any fixed moment, and what is actual
//! is read through [`Tables`]. The planner keeps an index of what stands where; when an operation
//! fails the index is made again from the tables, by the same code that adopts those of an earlier
//! process, and the rest is planned anew.
//!
//! Order is part of correctness: backends, then rings, then the frontend, then the bucket entry that
//! makes it reachable; removal goes the other way. Nothing given back is used again before
//! [`Planner::release`].

pub mod alloc;
pub mod buckets;
pub(crate) mod choice;
mod hops;
mod moved;
pub mod nat;
mod parts;
pub mod prefixes;
pub mod ranges;
pub(crate) mod routes;
mod services;
pub(crate) mod vips;
mod words;
pub use moved::slots_moved;
pub use services::keys as service_keys;
pub(crate) use services::{mode, ring_size};
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use abi::{
    addr::Addr,
    ranges::Ranges,
    table::{Egress, FrontendKey, Kind, Ring, Slot, Unserved},
};
use config::model::{DesiredState, Forwarding, Service, TunnelSource};
use ipnet::IpNet;
use siphasher::sip::SipHasher24;

use self::{
    alloc::{Arena, Rows},
    buckets::Buckets,
};
use crate::{
    datapath::{Op, Tables},
    nexthop::NextHop,
    sorted::{Difference, difference},
};

/// What there is no room for. Larger tables are the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the table {0} is full")]
pub struct Full(pub &'static str);

/// The index of what stands where; by default of nothing, nowhere.
#[derive(Default)]
pub struct Planner {
    seed: u64,
    table_size: Option<u32>,
    tunnel_source: TunnelSource,
    services: BTreeMap<Arc<str>, Planned>,
    /// Those that wait for a time.
    pending: BTreeSet<Arc<str>>,
    vips: BTreeMap<Addr, Vip>,
    /// Ranges of ports have, since the rows of VIPs were right.
    ranges_changed: bool,
    decap: BTreeMap<FrontendKey, u32>,
    decap_ranges: ranges::Pair,
    by_address: HashMap<IpAddr, Vec<Arc<str>>>,
    /// Addresses that have come or gone since somebody asked.
    address_changes: BTreeSet<IpAddr>,
    hops: HashMap<IpAddr, NextHop>,
    unhealthy: BTreeSet<(String, IpAddr)>,
    egress: Vec<Option<Egress>>,
    nat: nat::Nat,
    frontends: Rows,
    backends: Rows,
    arena: Arena,
    adopted: bool,
}

/// A service as it stands in the tables.
#[derive(Clone, Debug)]
pub struct Planned {
    /// As it was asked for; `None` after adoption, until the first plan.
    pub spec: Option<Arc<Service>>,
    /// Stable number of its name.
    pub id: u64,
    /// Row of each address and port.
    pub frontends: BTreeMap<FrontendKey, u32>,
    /// Backends, those that are leaving included.
    pub members: BTreeMap<IpAddr, Member>,
    /// Ring in force.
    pub ring: Ring,
    old_ring: Ring,
    signature: u64,
    ranges: ranges::Pair,
    choice: words::Place,
    routes: routes::Pair,
    settle_at: Option<Duration>,
    /// It is a part that nobody wants any more, and goes at this time.
    ends: Option<Duration>,
}

/// A backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its row.
    pub row: u32,
    /// Not wanted any more: its row goes at this time.
    leaving: Option<Duration>,
    /// Was down: flows that went elsewhere keep their entries until this time.
    recovering: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Vip {
    row: u32,
    any: u64,
    /// A VIP, and an address that translated packets come from: one of the two at least.
    is: (bool, bool),
    /// Where its ranges of ports stand.
    spans: Ranges,
}

/// A number for a name that does not change between versions.
#[must_use]
pub fn stable_id(name: &str) -> u64 {
    SipHasher24::new_with_keys(1, 2).hash(name.as_bytes()) | 1
}

impl Planner {
    /// Takes over what stands in the tables; empty ones give an empty index. `names` are those of
    /// the wanted services: rows of any other are removed by the next plan.
    #[must_use]
    pub fn adopt<'a>(
        tables: &dyn Tables,
        names: impl Iterator<Item = &'a str>,
        drain: Duration,
    ) -> Self {
        let names: HashMap<u64, &str> = names.map(|n| (stable_id(n), n)).collect();
        let name_of = |id: u64| -> Arc<str> {
            names.get(&id).map_or_else(|| format!("#{id:016x}").into(), |&n| n.into())
        };
        // Slot 0 of the arena is never a ring's: a ring has a word before it.
        let arena = Arena::new(tables.capacity().slots);
        let mut planner = Self { arena, adopted: true, ..Self::default() };
        planner.adopt_frontends(tables, &name_of, drain);
        planner.adopt_backends(tables, &name_of, drain);
        planner.pending = planner.services.keys().cloned().collect();
        planner
    }

    /// What the buckets lead to: frontends, and in the arena what their rows name.
    fn adopt_frontends(
        &mut self,
        tables: &dyn Tables,
        name_of: &dyn Fn(u64) -> Arc<str>,
        drain: Duration,
    ) {
        let capacity = tables.capacity();
        let mut used = vec![false; capacity.frontends as usize];
        let mut named = Vec::new();
        for index in 0..capacity.buckets {
            for word in tables.bucket(index).words() {
                let Some((_, row)) = abi::table::Bucket::decode(word) else { continue };
                let f = tables.frontend(row);
                used[row as usize] = true;
                match f.kind() {
                    Kind::Vip | Kind::Nat => {
                        let any = [6, 17].map(|p| f.any_port(p));
                        named.extend(any.into_iter().flatten());
                        let any = abi::table::Frontend::any_word(any[0], any[1]);
                        let is = (f.kind() == Kind::Vip, f.is_nat());
                        let mut spans = Ranges::from_word(f.ranges());
                        if spans.only && !self.arena.claim(spans.offset, spans.count) {
                            spans = Ranges::ANYBODY;
                        }
                        self.vips.insert(f.key().addr, Vip { row, any, is, spans });
                    }
                    Kind::Decap => {
                        adopt_ranges(&mut self.decap_ranges, &f, &mut self.arena);
                        self.decap.insert(f.key(), row);
                    }
                    Kind::Service => {
                        let service = self
                            .services
                            .entry(name_of(f.service_id()))
                            .or_insert_with(|| Planned::new(f.service_id(), drain));
                        service.adopt_frontend(&f, row, tables, &mut self.arena);
                    }
                }
            }
        }
        // A change that was cut short may have taken a row from the buckets and not from its address's word:
        // it is nobody's, and must not become another service's before that word has been stored.
        named.retain(|&row| !std::mem::replace(&mut used[row as usize], true));
        self.frontends = Rows::with_used(capacity.frontends, &used);
        for row in named {
            self.frontends.give(row);
        }
    }

    /// Backends, and the ways out that they use.
    fn adopt_backends(
        &mut self,
        tables: &dyn Tables,
        name_of: &dyn Fn(u64) -> Arc<str>,
        drain: Duration,
    ) {
        let capacity = tables.capacity();
        let mut used = vec![false; capacity.backends as usize];
        self.egress = vec![None; capacity.egress as usize];
        for row in 0..capacity.backends {
            let b = tables.backend(row);
            if b.id() == 0 {
                continue;
            }
            used[row as usize] = true;
            if let Some(e) = b.hop().egress() {
                self.egress[e as usize] = Some(tables.egress(e));
            }
            let name = name_of(b.id());
            let service = self
                .services
                .entry(Arc::clone(&name))
                .or_insert_with(|| Planned::new(b.id(), drain));
            let address = IpAddr::from(b.addr());
            let recovering = b.state().recovering.then_some(drain);
            service.members.insert(address, Member { row, leaving: None, recovering });
            self.by_address.entry(address).or_default().push(name);
        }
        self.backends = Rows::with_used(capacity.backends, &used);
        self.nat = nat::Nat::adopt(tables);
    }

    /// The operations that make the services wanted, and nothing else, stand in the tables.
    ///
    /// # Errors
    /// [`Full`]: the index is then not what the tables are; adopt again, into larger tables.
    pub fn plan(
        &mut self,
        wanted: &DesiredState,
        tables: &dyn Tables,
        now: Duration,
    ) -> Result<Vec<Op>, Full> {
        let mut ops = Vec::new();
        let mut buckets = Buckets::default();
        self.seed = crate::ring::seed(&wanted.maglev.seed);
        let resized = self.table_size != wanted.maglev.table_size;
        self.table_size = wanted.maglev.table_size;
        let node = &wanted.node;
        if self.tunnel_source != node.tunnel_source || self.nat.configured != node.nat.addresses {
            self.tunnel_source = node.tunnel_source.clone();
            self.nat.configured.clone_from(&node.nat.addresses);
            let all: Vec<IpAddr> = self.by_address.keys().copied().collect();
            self.rehop(&all, tables, &mut ops)?;
        }
        let nat = wanted.services.values().any(|s| s.forwarding == Forwarding::Nat);
        let switched = std::mem::replace(&mut self.nat.on, nat) != nat;

        let unserved = match wanted.node.unserved {
            config::model::Unserved::Drop => Unserved::Drop,
            config::model::Unserved::Reject => Unserved::Reject,
            config::model::Unserved::Pass => Unserved::Pass,
        };
        if tables.control().unserved() != unserved {
            ops.push(Op::Unserved(unserved));
        }

        let standing = self.services.iter().map(|(name, planned)| (&**name, (name, planned)));
        let specs = wanted.services.iter().map(|(name, spec)| (name.as_str(), spec));
        let Difference { gone, changed } = difference(standing, specs, |(_, planned), spec| {
            !resized && planned.spec.as_ref().is_some_and(|standing| Arc::ptr_eq(standing, spec))
        });
        let gone: Vec<Arc<str>> = gone.into_iter().map(|(name, _)| Arc::clone(name)).collect();
        let mut changed: Vec<&Arc<Service>> = changed.into_iter().map(|(_, spec)| spec).collect();
        // What leads to the part of a service leads to something that stands.
        changed.sort_by_key(|spec| spec.part_of.is_none());
        for name in gone {
            let Some((spec, ends)) = self.outlives(&name, wanted, tables, now) else {
                self.remove_service(&name, tables, &mut buckets, &mut ops);
                continue;
            };
            self.put_service(&spec, Some(ends), tables, now, &mut buckets, &mut ops)?;
        }
        for spec in changed {
            self.put_service(spec, None, tables, now, &mut buckets, &mut ops)?;
        }
        let buckets_change = ops.iter().any(|op| matches!(op, Op::Bucket { .. }));
        let ranges = std::mem::take(&mut self.ranges_changed);
        if std::mem::take(&mut self.adopted) || switched || ranges || buckets_change {
            self.plan_vips(tables, &mut buckets, &mut ops)?;
        }
        self.announce_nat(tables, &mut ops)?;
        Ok(ops)
    }

    /// Tunnels end at these addresses of this machine, and no others; packets are taken from `sources`,
    /// or from anybody if there are none.
    ///
    /// # Errors
    /// [`Full`].
    pub fn set_decap(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        sources: &[IpNet],
        tables: &dyn Tables,
    ) -> Result<Vec<Op>, Full> {
        let mut ops = Vec::new();
        self.decap_ranges =
            ranges::put(self.decap_ranges, sources, &mut self.arena, tables, &mut ops)?;
        let mut buckets = Buckets::default();
        let wanted: BTreeSet<FrontendKey> =
            addresses.iter().map(|&a| FrontendKey::decap(a.into())).collect();
        let gone: Vec<FrontendKey> =
            self.decap.keys().filter(|k| !wanted.contains(k)).copied().collect();
        for key in gone {
            if let Some(row) = self.decap.remove(&key) {
                buckets.replace(tables, &key, row, None, &mut ops);
                self.frontends.give(row);
            }
        }
        for key in wanted {
            let word = self.decap_ranges[ranges::family(key.addr.is_v4())].to_word();
            if let Some(&row) = self.decap.get(&key) {
                if tables.frontend(row).ranges() != word {
                    ops.push(Op::FrontendRanges(row, word));
                }
                continue;
            }
            let row = self.frontends.take().ok_or(Full("FRONTENDS"))?;
            let mut value = abi::table::Frontend::decap(key.addr);
            value.set_ranges(word);
            ops.push(Op::Frontend(row, value));
            buckets.insert(tables, &key, row, &mut ops).map_err(|_| Full("BUCKETS"))?;
            self.decap.insert(key, row);
        }
        Ok(ops)
    }

    /// What has waited long enough: slots forget their previous backend, rows of backends that left
    /// are given back.
    ///
    /// # Errors
    /// [`Full`]: as for [`Self::plan`].
    pub fn settle(&mut self, tables: &dyn Tables, now: Duration) -> Result<Vec<Op>, Full> {
        let mut ops = Vec::new();
        let due: Vec<Arc<str>> =
            self.waiting().filter(|&(_, at)| at <= now).map(|(name, _)| Arc::clone(name)).collect();
        for name in due {
            self.settle_service(&name, tables, now, &mut ops)?;
        }
        Ok(ops)
    }

    /// Services for which [`Self::settle`] has something to do.
    pub fn due(&self, now: Duration) -> impl Iterator<Item = &str> {
        self.waiting().filter(move |&(_, at)| at <= now).map(|(name, _)| &**name)
    }

    /// Services with a backend at this address.
    pub fn services_at(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.by_address.get(&address).into_iter().flatten().map(AsRef::as_ref)
    }

    /// When [`Self::settle`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.waiting().map(|(_, at)| at).min()
    }

    /// Services that wait for a time, and for which.
    fn waiting(&self) -> impl Iterator<Item = (&Arc<str>, Duration)> {
        self.pending
            .iter()
            .filter_map(|name| Some((name, self.services.get(name)?.next_deadline()?)))
    }

    /// Notes whether a service waits for a time.
    fn note_deadline(&mut self, name: &str) {
        let Some((name, service)) = self.services.get_key_value(name) else {
            self.pending.remove(name);
            return;
        };
        if service.next_deadline().is_some() {
            self.pending.insert(Arc::clone(name));
        } else {
            self.pending.remove(name);
        }
    }

    /// Addresses of backends that have come and that have gone since the last call; the next hops of
    /// those that have gone are forgotten.
    pub fn take_address_changes(&mut self) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let mut come = Vec::new();
        let mut gone = Vec::new();
        for address in std::mem::take(&mut self.address_changes) {
            if self.by_address.contains_key(&address) {
                come.push(address);
            } else {
                self.hops.remove(&address);
                gone.push(address);
            }
        }
        (come, gone)
    }

    /// Addresses of every backend, those that are leaving included.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.by_address.keys().copied()
    }

    /// The programs have left everything given back so far.
    pub fn release(&mut self) {
        self.frontends.release();
        self.backends.release();
        self.arena.release();
    }

    /// Whether anything given back waits for [`Self::release`].
    #[must_use]
    pub fn waits(&self) -> bool {
        self.frontends.waits() || self.backends.waits() || self.arena.waits()
    }

    /// Services as they stand.
    #[must_use]
    pub fn services(&self) -> &BTreeMap<Arc<str>, Planned> {
        &self.services
    }

    /// Frontend rows, backend rows and arena words in use.
    #[must_use]
    pub fn used(&self) -> (u32, u32, u32) {
        (self.frontends.used(), self.backends.used(), self.arena.used())
    }

    /// Slots of a service's ring: how many are moving, and how many each row has.
    #[must_use]
    pub fn slots_of(&self, service: &Planned, tables: &dyn Tables) -> (u32, HashMap<u32, u32>) {
        let mut moving = if service.ring.resizing { service.ring.size } else { 0 };
        let mut count = HashMap::new();
        for i in 0..service.ring.size {
            let slot = Slot::from_word(tables.slot(service.ring.offset + i));
            *count.entry(slot.current).or_insert(0) += 1;
            moving += u32::from(!service.ring.resizing && slot.current != slot.previous);
        }
        (moving, count)
    }
}

/// Takes note of the sources that a row names.
fn adopt_ranges(pair: &mut ranges::Pair, f: &abi::table::Frontend, arena: &mut Arena) {
    let v4 = f.key().addr.is_v4();
    let stands = abi::ranges::Ranges::from_word(f.ranges());
    let place = &mut pair[ranges::family(v4)];
    if stands.only && !place.only && ranges::claim(stands, v4, arena) {
        *place = stands;
    }
}

impl Planned {
    /// Takes note of a frontend that stands, and of what its row names in the arena.
    fn adopt_frontend(
        &mut self,
        f: &abi::table::Frontend,
        row: u32,
        tables: &dyn Tables,
        arena: &mut Arena,
    ) {
        self.frontends.insert(f.key(), row);
        adopt_ranges(&mut self.ranges, f, arena);
        self.choice.adopt(f.choice(), |at| choice::length(at, tables), arena);
        let v4 = f.key().addr.is_v4();
        let routes = &mut self.routes[ranges::family(v4)];
        routes.adopt(f.routes(), |at| routes::length(at, v4, tables), arena);
        let ring = f.ring();
        if self.ring.size == 0 && ring.size > 0 {
            self.ring = ring;
            if arena.claim(ring.offset - 1, ring.size + 1) {
                self.signature = tables.slot(ring.offset - 1);
            }
            let old = f.old_ring();
            if ring.resizing && arena.claim(old.offset - 1, old.size + 1) {
                self.old_ring = old;
            }
        }
    }

    fn new(id: u64, settle_at: Duration) -> Self {
        Self {
            spec: None,
            id,
            frontends: BTreeMap::new(),
            members: BTreeMap::new(),
            ring: Ring::default(),
            old_ring: Ring::default(),
            signature: 0,
            ranges: ranges::Pair::default(),
            choice: words::Place::default(),
            routes: routes::Pair::default(),
            // After adoption: slots may be moving, and nobody remembers since when.
            settle_at: Some(settle_at),
            ends: None,
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let leaving = self.members.values().filter_map(|m| m.leaving).chain(self.ends);
        let leaving = leaving.map(|t| self.settle_at.map_or(t, |s| s.max(t)));
        let recovering = self.members.values().filter_map(|m| m.recovering);
        leaving.chain(recovering).chain(self.settle_at).min()
    }
}
