//! Services: their backends, ring and frontends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use abi::{
    addr::Addr,
    table::{Backend, Frontend, FrontendKey, HopWord, Mode, Ring, Slot, State},
};
use config::model::{BackendState, Forwarding, Port, Service};
use siphasher::sip::SipHasher24;

use super::{Full, Member, Planned, Planner, buckets::Buckets, ranges, stable_id};
use crate::{
    datapath::{Op, Tables},
    nexthop::NextHop,
    ring,
};

impl Planner {
    /// `ends`: of a part that is not wanted any more.
    pub(super) fn put_service(
        &mut self,
        spec: &Arc<Service>,
        ends: Option<Duration>,
        tables: &dyn Tables,
        now: Duration,
        buckets: &mut Buckets,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let standing = self.services.remove_entry(spec.name.as_str());
        let (name, mut service) = standing.unwrap_or_else(|| {
            let mut new = Planned::new(stable_id(&spec.name), now);
            new.settle_at = None;
            (spec.name.as_str().into(), new)
        });
        let before = service.spec.replace(Arc::clone(spec));
        service.ends = ends;
        let ranges = |spec: &Service| -> Vec<Port> {
            spec.ports.iter().filter(|port| port.is_range()).cloned().collect()
        };
        self.ranges_changed |= before.map_or_else(Vec::new, |spec| ranges(&spec)) != ranges(spec);

        let result = self
            .put_backends(&name, &mut service, spec, tables, now, ops)
            .and_then(|()| self.put_ring(&mut service, spec, tables, now, ops))
            .and_then(|()| {
                let sources = &spec.source_ranges;
                service.ranges =
                    ranges::put(service.ranges, sources, &mut self.arena, tables, ops)?;
                Ok(())
            })
            .and_then(|()| self.put_choice(&mut service, spec, tables, ops))
            .and_then(|()| self.put_routes(&mut service, spec, tables, ops))
            .and_then(|()| self.put_frontends(&mut service, spec, tables, buckets, ops));
        self.services.insert(Arc::clone(&name), service);
        self.restate(&name, tables, now, ops);
        result
    }

    fn put_backends(
        &mut self,
        name: &Arc<str>,
        service: &mut Planned,
        spec: &Service,
        tables: &dyn Tables,
        now: Duration,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        for backend in spec.own_backends() {
            let address = backend.address;
            if let Some(member) = service.members.get_mut(&address) {
                member.leaving = None;
                continue;
            }
            let row = self.backends.take().ok_or(Full("BACKENDS"))?;
            let hop = self.hop_word(address, ops)?;
            let reachable = self.hops.get(&address).is_some_and(NextHop::is_reachable);
            let down = !reachable || backend.state == BackendState::Maintenance;
            let epoch = tables.backend(row).epoch().wrapping_add(1);
            let state = State { down, weight: weight(backend), ..State::default() };
            ops.push(Op::Backend(row, Backend::new(address.into(), hop, state, service.id, epoch)));
            service.members.insert(address, Member { row, leaving: None, recovering: None });
            let names = self.by_address.entry(address).or_insert_with(|| {
                self.address_changes.insert(address);
                Vec::with_capacity(1)
            });
            names.push(Arc::clone(name));
        }
        let wanted: BTreeSet<IpAddr> = spec.own_backends().map(|b| b.address).collect();
        for (address, member) in &mut service.members {
            if !wanted.contains(address) && member.leaving.is_none() {
                member.leaving = Some(now + spec.drain_timeout);
            }
        }
        Ok(())
    }

    /// Slots of a service's ring; of one that goes, as they are.
    fn size_of(&self, service: &Planned, spec: &Service) -> u32 {
        match service.ends {
            Some(_) if service.ring.size > 0 => service.ring.size,
            _ => ring_size(spec, self.table_size),
        }
    }

    fn put_ring(
        &mut self,
        service: &mut Planned,
        spec: &Service,
        tables: &dyn Tables,
        now: Duration,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        // Flows of the ring before have no entries until they are forgotten. A ring that took its place stays as
        // large as it is until then, and its slots move: a third one would make it the ring before.
        let size = match service.ring.resizing {
            true => service.ring.size,
            false => self.size_of(service, spec),
        };
        let members = takers(spec);
        let signature = signature(self.seed, size, &members);
        if service.ring.size == size && service.signature == signature {
            return Ok(());
        }
        let built: Vec<ring::Member> =
            members.iter().map(|&(a, w)| ring::Member::new(self.seed, a, w)).collect();
        let indexes = ring::build(&built, size);
        let rows: Vec<u32> = members.iter().map(|(a, _)| service.members[a].row).collect();
        let current =
            |slot: u32| indexes.get(slot as usize).map_or(Slot::NONE, |&i| rows[i as usize]);

        if service.ring.size == size {
            self.patch_ring(service, spec, tables, signature, &current, ops);
            service.settle_at = Some(now + spec.drain_timeout);
        } else {
            let region = self.arena.take(size + 1).ok_or(Full("SLOTS"))?;
            let slots =
                (0..size).map(|i| Slot { current: current(i), previous: current(i) }).collect();
            ops.push(Op::Ring { offset: region + 1, signature, slots });
            self.replace_ring(service, Ring { offset: region + 1, size, resizing: false }, ops);
            service.settle_at = service.ring.resizing.then(|| now + spec.drain_timeout);
        }
        service.signature = signature;
        Ok(())
    }

    /// Stores only the slots that move. The signature is invalid meanwhile, so that a process that
    /// adopts a ring half changed builds it again.
    fn patch_ring(
        &self,
        service: &Planned,
        spec: &Service,
        tables: &dyn Tables,
        signature: u64,
        current: &dyn Fn(u32) -> u32,
        ops: &mut Vec<Op>,
    ) {
        let offset = service.ring.offset;
        let keeps = |row: u32| {
            service.members.iter().any(|(address, m)| {
                m.row == row
                    && spec
                        .own_backends()
                        .find(|b| b.address == *address)
                        .is_none_or(|b| b.state != BackendState::Maintenance)
            })
        };
        let keeping: BTreeSet<u32> =
            service.members.values().map(|m| m.row).filter(|&r| keeps(r)).collect();
        ops.push(Op::Signature(offset - 1, 0));
        for i in 0..service.ring.size {
            let old = Slot::from_word(tables.slot(offset + i));
            let new = current(i);
            let moving = old.previous != old.current;
            let silent = if old.current == new || moving && keeping.contains(&old.previous) {
                // Moves again: flows of the backend between have entries, older ones need not.
                old.previous
            } else {
                old.current
            };
            let previous = match (silent != new && keeping.contains(&silent), moving) {
                (true, _) => silent,
                // Nobody is to be looked for without an entry, and flows of a backend between have them: a slot
                // that names one backend twice would not be asked for entries.
                (false, true) => Slot::NONE,
                // Nobody took what came: flows of a part's clients went elsewhere, and have entries.
                (false, false) if old.current == Slot::NONE => Slot::NONE,
                (false, false) => new,
            };
            let slot = Slot { current: new, previous };
            if slot != old {
                ops.push(Op::Slot(offset + i, slot));
            }
        }
        ops.push(Op::Signature(offset - 1, signature));
    }

    /// Puts another region in force for every frontend. The ring before is consulted for
    /// established flows until the service settles.
    fn replace_ring(&mut self, service: &mut Planned, mut new: Ring, ops: &mut Vec<Op>) {
        let before = service.ring;
        if service.old_ring.size > 0 {
            self.arena.give(service.old_ring.offset - 1, service.old_ring.size + 1);
            service.old_ring = Ring::default();
        }
        if before.size > 0 {
            new.resizing = true;
            service.old_ring = Ring { resizing: false, ..before };
        }
        for &row in service.frontends.values() {
            // While the old ring changes, no packet may consult it together with the ring before.
            if before.resizing {
                ops.push(Op::FrontendRing(row, Ring { resizing: false, ..before }));
            }
            ops.push(Op::FrontendOldRing(row, service.old_ring));
            ops.push(Op::FrontendRing(row, new));
        }
        service.ring = new;
    }

    fn put_frontends(
        &mut self,
        service: &mut Planned,
        spec: &Service,
        tables: &dyn Tables,
        buckets: &mut Buckets,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let mode = mode(spec.forwarding);
        let wanted: BTreeMap<FrontendKey, Target> = match &spec.part_of {
            None => targets(spec).collect(),
            Some(_) => {
                let number = self.part_number(&spec.name, service);
                let key = |&a: &IpAddr| FrontendKey::group(a.into(), number);
                spec.addresses.iter().map(|a| (key(a), Target { port: 0, quic: false })).collect()
            }
        };
        let gone: Vec<FrontendKey> =
            service.frontends.keys().filter(|k| !wanted.contains_key(k)).copied().collect();
        for key in gone {
            if let Some(row) = service.frontends.remove(&key) {
                buckets.replace(tables, &key, row, None, ops);
                self.frontends.give(row);
            }
        }
        for (key, target) in wanted {
            let old = service.frontends.get(&key).copied();
            let family = ranges::family(key.addr.is_v4());
            let sources = service.ranges[family].to_word();
            let special = Frontend::special_word(service.choice.at(), service.routes[family].at());
            if let Some(row) = old {
                let stands = tables.frontend(row);
                if stands.mode() == mode
                    && stands.target_port() == target.port.to_be()
                    && stands.is_quic() == target.quic
                {
                    if stands.ranges() != sources {
                        ops.push(Op::FrontendRanges(row, sources));
                    }
                    if stands.any() != special {
                        ops.push(Op::FrontendAny(row, special));
                    }
                    // After adoption of a change that was cut short.
                    if stands.ring() != service.ring
                        && !ops.contains(&Op::FrontendRing(row, service.ring))
                    {
                        ops.push(Op::FrontendOldRing(row, service.old_ring));
                        ops.push(Op::FrontendRing(row, service.ring));
                    }
                    continue;
                }
            }
            let row = self.frontends.take().ok_or(Full("FRONTENDS"))?;
            let mut value = Frontend::service(key, mode, service.ring, service.id)
                .with_target_port(target.port)
                .with_quic(target.quic);
            value.set_any(special);
            value.set_old_ring(service.old_ring);
            value.set_ranges(sources);
            ops.push(Op::Frontend(row, value));
            match old {
                Some(old) => {
                    buckets.replace(tables, &key, old, Some(row), ops);
                    self.frontends.give(old);
                }
                None => {
                    buckets.insert(tables, &key, row, ops).map_err(|_| Full("BUCKETS"))?;
                }
            }
            service.frontends.insert(key, row);
        }
        Ok(())
    }

    pub(super) fn remove_service(
        &mut self,
        name: &str,
        tables: &dyn Tables,
        buckets: &mut Buckets,
        ops: &mut Vec<Op>,
    ) {
        let Some(service) = self.services.remove(name) else { return };
        self.pending.remove(name);
        for (key, &row) in &service.frontends {
            buckets.replace(tables, key, row, None, ops);
            self.frontends.give(row);
        }
        for v4 in [true, false] {
            ranges::give(service.ranges[ranges::family(v4)], v4, &mut self.arena);
        }
        service.choice.give(&mut self.arena);
        for place in service.routes {
            place.give(&mut self.arena);
        }
        for ring in [service.ring, service.old_ring] {
            if ring.size > 0 {
                self.arena.give(ring.offset - 1, ring.size + 1);
            }
        }
        for (&address, member) in &service.members {
            self.drop_member(name, address, member.row, tables, ops);
        }
    }

    fn drop_member(
        &mut self,
        name: &str,
        address: IpAddr,
        row: u32,
        tables: &dyn Tables,
        ops: &mut Vec<Op>,
    ) {
        // The epoch moves on at once: entries of flows to it do not count any more.
        let epoch = tables.backend(row).epoch().wrapping_add(1);
        let state = State { down: true, ..State::default() };
        ops.push(Op::Backend(
            row,
            Backend::new(Addr::default(), HopWord::UNRESOLVED, state, 0, epoch),
        ));
        self.backends.give(row);
        self.unhealthy.remove(&(name.to_owned(), address));
        if let Some(names) = self.by_address.get_mut(&address) {
            names.retain(|other| **other != *name);
            if names.is_empty() {
                self.by_address.remove(&address);
                self.address_changes.insert(address);
            }
        }
    }

    pub(super) fn settle_service(
        &mut self,
        name: &str,
        tables: &dyn Tables,
        now: Duration,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let Some((name, mut service)) = self.services.remove_entry(name) else { return Ok(()) };
        let mut done = Ok(());
        if service.settle_at.is_some_and(|t| t <= now) {
            service.settle_at = None;
            for i in service.ring.offset..service.ring.offset + service.ring.size {
                let slot = Slot::from_word(tables.slot(i));
                if slot.previous != slot.current {
                    ops.push(Op::Slot(i, Slot { previous: slot.current, ..slot }));
                }
            }
            if service.ring.resizing {
                service.ring.resizing = false;
                for &row in service.frontends.values() {
                    ops.push(Op::FrontendRing(row, service.ring));
                }
            }
            if service.old_ring.size > 0 {
                self.arena.give(service.old_ring.offset - 1, service.old_ring.size + 1);
                service.old_ring = Ring::default();
            }
            if let Some(spec) = service.spec.clone()
                && service.ring.size != self.size_of(&service, &spec)
            {
                done = self.put_ring(&mut service, &spec, tables, now, ops);
            }
        }
        let left: Vec<(IpAddr, u32)> = service
            .members
            .iter()
            // While slots move, one of them may still name the row.
            .filter(|(_, m)| service.settle_at.is_none() && m.leaving.is_some_and(|t| t <= now))
            .map(|(&a, m)| (a, m.row))
            .collect();
        let own = service.spec.as_ref().map(|spec| spec.name.as_str());
        let whole = service.whole().or(own).map(str::to_owned);
        let some_left = !left.is_empty();
        for (address, row) in left {
            service.members.remove(&address);
            self.drop_member(&name, address, row, tables, ops);
        }
        for member in service.members.values_mut() {
            if member.recovering.is_some_and(|t| t <= now) {
                member.recovering = None;
            }
        }
        let ended = service.settle_at.is_none() && service.ends.is_some_and(|t| t <= now);
        self.services.insert(Arc::clone(&name), service);
        self.restate(&name, tables, now, ops);
        if ended {
            done = done.and(self.end_part(&name, tables, ops));
        }
        match whole.filter(|_| some_left) {
            Some(whole) => done.and(self.renumber(&whole, tables, ops)),
            None => done,
        }
    }
}

pub(crate) const fn mode(forwarding: Forwarding) -> Mode {
    match forwarding {
        Forwarding::L2 => Mode::L2,
        Forwarding::Ipip => Mode::Ipip,
        Forwarding::Gue => Mode::Gue,
        Forwarding::GueTwice => Mode::GueTwice,
        Forwarding::Geneve => Mode::Geneve,
        Forwarding::Nat => Mode::Nat,
    }
}

/// The backends that take new flows, with weights, by address.
pub(super) fn takers(spec: &Service) -> Vec<(IpAddr, u32)> {
    let mut takers: Vec<(IpAddr, u32)> = spec
        .own_backends()
        .filter(|b| b.state == BackendState::Active && b.weight > 0)
        .map(|b| (b.address, b.weight))
        .collect();
    takers.sort_unstable_by_key(|&(a, _)| Addr::from(a).to_bytes());
    takers
}

/// Slots of a service's ring, where they are set for all or not.
pub(crate) fn ring_size(spec: &Service, set: Option<u32>) -> u32 {
    set.unwrap_or_else(|| ring::size_for(spec.own_backends().count()))
}

/// What a ring is built from, as a number; never 0.
fn signature(seed: u64, size: u32, members: &[(IpAddr, u32)]) -> u64 {
    let mut bytes = Vec::with_capacity(members.len() * 20 + 4);
    bytes.extend_from_slice(&size.to_le_bytes());
    for &(address, weight) in members {
        bytes.extend_from_slice(&Addr::from(address).to_bytes());
        bytes.extend_from_slice(&weight.to_le_bytes());
    }
    SipHasher24::new_with_keys(seed, 3).hash(&bytes) | 1
}

/// Every address, port and protocol of a service that is no part.
pub fn keys(spec: &Service) -> impl Iterator<Item = FrontendKey> {
    targets(spec).map(|(key, _)| key)
}

/// The key of a port's row, or of a range's.
pub(super) fn key(address: IpAddr, port: &Port) -> FrontendKey {
    let make = if port.is_range() { FrontendKey::range } else { FrontendKey::new };
    make(address.into(), port.port, port.protocol.number())
}

/// What a frontend row says beside its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    /// At the backends; 0: the same as in front.
    port: u16,
    quic: bool,
}

/// The same, each with what its row says.
fn targets(spec: &Service) -> impl Iterator<Item = (FrontendKey, Target)> {
    spec.addresses.iter().flat_map(|&a| {
        spec.ports.iter().map(move |p| {
            let port = if p.target_port == p.port { 0 } else { p.target_port };
            (key(a, p), Target { port, quic: p.quic })
        })
    })
}

/// As it stands in a backend's row; a file's weight has 16 bits.
pub(super) fn weight(backend: &config::model::Backend) -> u16 {
    u16::try_from(backend.weight).unwrap_or(u16::MAX)
}
