//! Everything the resolver knows, and what follows from it. No I/O, no clock.
//!
//! Fed with what the kernel tells ([`State::load`], [`State::apply`]) and with the targets that are wanted;
//! gives the next hops that changed ([`State::resolve`]), the neighbours to probe
//! ([`State::take_probes`]) and the targets whose route only the kernel can tell
//! ([`State::take_questions`]). A change costs in proportion to the targets it may concern.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    ops::Bound,
    sync::Arc,
};

use ipnet::IpNet;
use tokio::time::Instant;

use super::{
    Hop, NextHop,
    fib::{Action, Certainty, Fib, Path, Route, Way},
    probes::{Need, Probes},
};
use crate::links::{Address, Link};

/// A neighbour: its interface and its address.
pub(crate) type Key = (u32, IpAddr);

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Neighbour {
    /// Its MAC, confirmed or about to be.
    Known([u8; 6]),
    /// Its MAC, long unconfirmed.
    Stale([u8; 6]),
    /// Asked for, no answer yet.
    Incomplete,
    /// Does not answer.
    Failed,
}

/// Something the kernel told.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Link(Link),
    LinkGone(u32),
    Address(Address),
    AddressGone(Address),
    /// `None`: the kernel has forgotten it.
    Neighbour(Key, Option<Neighbour>),
    Route {
        route: Route,
        replace: bool,
    },
    RouteGone(Route),
}

/// All that the kernel knows, as of one reading.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) links: BTreeMap<u32, Link>,
    pub(crate) addresses: BTreeMap<Key, Address>,
    pub(crate) neighbours: HashMap<Key, Neighbour>,
    pub(crate) routes: Routes,
}

/// How the route of a target is found.
#[derive(Clone, Debug)]
pub(crate) enum Routes {
    /// In a copy of the kernel's tables.
    Copied(Fib),
    /// By asking the kernel for each target: somebody's rules choose among tables.
    Asked,
}

impl Default for Routes {
    fn default() -> Self {
        Self::Copied(Fib::default())
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct State {
    kernel: Snapshot,
    targets: BTreeMap<IpAddr, Target>,
    /// Which targets depend on a neighbour.
    dependants: BTreeMap<Key, BTreeSet<IpAddr>>,
    probes: Probes,
    dirty: BTreeMap<IpAddr, Cause>,
    /// All targets behind this bound are dirty too.
    sweep: Option<Bound<IpAddr>>,
    questions: BTreeSet<IpAddr>,
    /// One copy of each next hop: a million backends behind one gateway share it.
    told: HashSet<Arc<NextHop>>,
}

/// Why a target is dirty; the greater one includes the lesser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// Its neighbour changed.
    Neighbour,
    /// Its route may have.
    Route,
}

#[derive(Debug, Default)]
struct Target {
    neighbour: Option<Key>,
    /// The kernel's own answer, if it was asked.
    answer: Option<Arc<Way>>,
    told: Option<Arc<NextHop>>,
}

impl State {
    /// Replaces the wanted targets. The next hops of new ones come out of [`Self::resolve`]; those of
    /// targets that remain are not told again.
    pub(crate) fn set_targets(&mut self, wanted: &BTreeSet<IpAddr>) {
        let gone: Vec<_> = self.targets.keys().filter(|ip| !wanted.contains(ip)).copied().collect();
        for target in gone {
            self.forget(target);
        }
        for &target in wanted {
            self.add(target);
        }
    }

    /// One more target.
    pub(crate) fn add(&mut self, target: IpAddr) {
        self.targets.entry(target).or_insert_with(|| {
            self.dirty.insert(target, Cause::Route);
            Target::default()
        });
    }

    /// Forgets a target and what was told of it.
    pub(crate) fn forget(&mut self, target: IpAddr) {
        if let Some(Target { neighbour, .. }) = self.targets.remove(&target) {
            self.depend(target, neighbour, None);
        }
        self.dirty.remove(&target);
        self.questions.remove(&target);
    }

    /// Takes a whole new reading.
    pub(crate) fn load(&mut self, new: Snapshot, now: Instant) {
        let old = std::mem::replace(&mut self.kernel, new);
        match (&old.routes, &self.kernel.routes) {
            (Routes::Copied(old), Routes::Copied(new)) => {
                let changed = old.difference(new);
                self.routes_changed(&changed);
            }
            _ => self.everything_changed(),
        }
        if old.links != self.kernel.links || old.addresses != self.kernel.addresses {
            self.everything_changed();
        }
        let keys: Vec<_> = self.dependants.keys().copied().collect();
        for key in keys {
            let new = self.kernel.neighbours.get(&key).copied();
            self.neighbour_changed(key, old.neighbours.get(&key).copied(), new, now);
        }
    }

    /// Takes one change. [`Certainty::Unsure`] if routes may have changed that nobody tells of.
    pub(crate) fn apply(&mut self, event: Event, now: Instant) -> Certainty {
        match event {
            Event::Link(link) => {
                let old = self.kernel.links.insert(link.index, link.clone());
                let concerns =
                    |link: &Link| (link.name.clone(), link.mac, link.mtu, link.up, link.running);
                if old.as_ref().map(concerns) == Some(concerns(&link)) {
                    return Certainty::Exact;
                }
                self.everything_changed();
                // The kernel drops the IPv4 routes of an interface that goes down without a word.
                Certainty::Unsure
            }
            Event::LinkGone(index) => {
                self.kernel.links.remove(&index);
                self.kernel.addresses.retain(|&(of, _), _| of != index);
                self.everything_changed();
                Certainty::Unsure
            }
            Event::Address(address) => {
                let key = (address.index, address.address);
                if self.kernel.addresses.insert(key, address) != Some(address) {
                    self.everything_changed();
                }
                Certainty::Exact
            }
            Event::AddressGone(address) => {
                self.kernel.addresses.remove(&(address.index, address.address));
                self.everything_changed();
                // Routes with this source went with it, untold.
                Certainty::Unsure
            }
            Event::Neighbour(key, new) => {
                let old = self.kernel.neighbours.get(&key).copied();
                let watched = self.dependants.contains_key(&key);
                // One that failed is asked ever again; until it answers, that it failed is the news.
                let new = match (old, new) {
                    (Some(Neighbour::Failed), None | Some(Neighbour::Incomplete)) if watched => old,
                    _ => new,
                };
                match new {
                    Some(new) => self.kernel.neighbours.insert(key, new),
                    None => self.kernel.neighbours.remove(&key),
                };
                if watched {
                    self.neighbour_changed(key, old, new, now);
                }
                Certainty::Exact
            }
            Event::Route { route, replace } => {
                let prefix = route.prefix;
                let Routes::Copied(fib) = &mut self.kernel.routes else { return Certainty::Unsure };
                let certainty = fib.insert(route, replace);
                self.routes_changed(&[prefix]);
                certainty
            }
            Event::RouteGone(route) => {
                let Routes::Copied(fib) = &mut self.kernel.routes else { return Certainty::Unsure };
                let certainty = fib.remove(&route);
                self.routes_changed(&[route.prefix]);
                certainty
            }
        }
    }

    /// Works off at most `budget` dirty targets and returns the next hops that changed. The caller goes
    /// on while [`Self::is_dirty`].
    pub(crate) fn resolve(&mut self, budget: usize, now: Instant) -> BTreeMap<IpAddr, NextHop> {
        let mut changed = BTreeMap::new();
        for _ in 0..budget {
            let Some((target, cause)) = self.next_dirty() else { break };
            if cause == Cause::Neighbour
                && let Some(way) =
                    self.targets.get(&target).and_then(|target| target.answer.clone())
            {
                let result = self.next_hop(target, Some((None, &way)));
                self.tell(target, Some(way), result, now, &mut changed);
                continue;
            }
            let way = match &self.kernel.routes {
                Routes::Copied(fib) => {
                    fib.lookup(target).map(|(prefix, way)| (prefix, Arc::clone(way)))
                }
                Routes::Asked => None,
            };
            match way {
                Some((_, way)) if way.action == Action::AskKernel => {
                    self.questions.insert(target);
                }
                None if matches!(self.kernel.routes, Routes::Asked) => {
                    self.questions.insert(target);
                }
                way => {
                    self.questions.remove(&target);
                    let way = way.as_ref().map(|(prefix, way)| (Some(*prefix), &**way));
                    let result = self.next_hop(target, way);
                    self.tell(target, None, result, now, &mut changed);
                }
            }
        }
        changed
    }

    /// True while [`Self::resolve`] has something to do.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || self.sweep.is_some()
    }

    /// Targets whose route the kernel must be asked for, at most `limit`; each wants an
    /// [`Self::answer`].
    pub(crate) fn take_questions(&mut self, limit: usize) -> Vec<IpAddr> {
        let taken: Vec<_> = self.questions.iter().take(limit).copied().collect();
        for target in &taken {
            self.questions.remove(target);
        }
        taken
    }

    /// The kernel's answer to a question: its way, or why there is none.
    pub(crate) fn answer(
        &mut self,
        target: IpAddr,
        answer: Result<Way, String>,
        now: Instant,
    ) -> BTreeMap<IpAddr, NextHop> {
        let mut changed = BTreeMap::new();
        match answer {
            Ok(way) => {
                let way = Arc::new(way);
                let result = self.next_hop(target, Some((None, &way)));
                self.tell(target, Some(way), result, now, &mut changed);
            }
            Err(reason) => {
                let result = (NextHop::Unresolved(reason.into()), None);
                self.tell(target, None, result, now, &mut changed);
            }
        }
        changed
    }

    /// True if each target's route is asked of the kernel.
    pub(crate) fn asks_kernel(&self) -> bool {
        matches!(self.kernel.routes, Routes::Asked)
    }

    /// True while [`Self::take_questions`] has some.
    pub(crate) fn has_questions(&self) -> bool {
        !self.questions.is_empty()
    }

    /// When the next probe is due.
    pub(crate) fn next_probe(&self) -> Option<Instant> {
        self.probes.next()
    }

    /// Neighbours that the kernel shall be made to resolve or confirm now, at most `limit`.
    pub(crate) fn take_probes(&mut self, now: Instant, limit: usize) -> Vec<Key> {
        self.probes.take(now, limit)
    }

    fn next_dirty(&mut self) -> Option<(IpAddr, Cause)> {
        if let Some(dirty) = self.dirty.pop_first() {
            return Some(dirty);
        }
        let from = self.sweep?;
        match self.targets.range((from, Bound::Unbounded)).next() {
            Some((&target, _)) => {
                self.sweep = Some(Bound::Excluded(target));
                Some((target, Cause::Route))
            }
            None => {
                self.sweep = None;
                None
            }
        }
    }

    fn everything_changed(&mut self) {
        self.dirty.clear();
        self.sweep = Some(Bound::Unbounded);
    }

    fn routes_changed(&mut self, prefixes: &[IpNet]) {
        for prefix in prefixes {
            let range = self.targets.range(prefix.network()..=prefix.broadcast());
            self.dirty.extend(range.map(|(&target, _)| (target, Cause::Route)));
        }
    }

    fn neighbour_changed(
        &mut self,
        key: Key,
        old: Option<Neighbour>,
        new: Option<Neighbour>,
        now: Instant,
    ) {
        if old == new {
            return;
        }
        self.probes.want(key, need(new), now);
        if mac(old) == mac(new) && (mac(new).is_some() || failed(old) == failed(new)) {
            return;
        }
        if let Some(dependants) = self.dependants.get(&key) {
            for &target in dependants {
                self.dirty.entry(target).or_insert(Cause::Neighbour);
            }
        }
    }

    /// Records what a target's next hop is now, and adds it to `changed` if it was another one.
    fn tell(
        &mut self,
        target: IpAddr,
        answer: Option<Arc<Way>>,
        (next_hop, neighbour): (NextHop, Option<Key>),
        now: Instant,
        changed: &mut BTreeMap<IpAddr, NextHop>,
    ) {
        let Some(entry) = self.targets.get_mut(&target) else { return };
        entry.answer = answer;
        let old = std::mem::replace(&mut entry.neighbour, neighbour);
        if entry.told.as_deref() != Some(&next_hop) {
            changed.insert(target, next_hop.clone());
            entry.told = Some(intern(&mut self.told, next_hop));
        }
        if old != neighbour {
            self.depend(target, old, neighbour);
            if let Some(key) = neighbour {
                self.probes.want(key, need(self.kernel.neighbours.get(&key).copied()), now);
            }
        }
    }

    fn depend(&mut self, target: IpAddr, old: Option<Key>, new: Option<Key>) {
        if let Some(old) = old
            && let Some(dependants) = self.dependants.get_mut(&old)
        {
            dependants.remove(&target);
            if dependants.is_empty() {
                self.dependants.remove(&old);
                self.probes.forget(old);
            }
        }
        if let Some(new) = new {
            self.dependants.entry(new).or_default().insert(target);
        }
    }

    /// The next hop of a target by this way, and the neighbour on which that depends.
    fn next_hop(
        &self,
        target: IpAddr,
        way: Option<(Option<IpNet>, &Way)>,
    ) -> (NextHop, Option<Key>) {
        let unresolved = |reason: String| (NextHop::Unresolved(reason.into()), None);
        let Some((prefix, Way { action, mtu, source })) = way else {
            return unresolved(format!("no route to {target}"));
        };
        let paths = match action {
            Action::Local => return (NextHop::Local, None),
            Action::Refuse(what) => {
                return unresolved(match prefix {
                    Some(prefix) => format!("the route of {prefix} is {what}"),
                    None => format!("the route is {what}"),
                });
            }
            Action::Throw | Action::AskKernel => {
                return unresolved(format!("no route to {target}"));
            }
            Action::Forward(paths) => paths,
        };
        let (path, link) = match self.choose(target, paths) {
            Ok(chosen) => chosen,
            Err(reason) => return unresolved(reason),
        };
        let name = &link.name;
        let Some(src_mac) = link.mac else {
            return unresolved(format!("{name} carries no Ethernet frames"));
        };

        let address = path.gateway.unwrap_or(target);
        let key = (path.ifindex, address);
        let next_hop = match self.kernel.neighbours.get(&key) {
            Some(&(Neighbour::Known(dst_mac) | Neighbour::Stale(dst_mac))) => {
                NextHop::Resolved(Hop {
                    ifindex: path.ifindex,
                    interface: name.as_str().into(),
                    dst_mac,
                    src_mac,
                    mtu: mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
                    source: source.or_else(|| self.source(path.ifindex, target, address)),
                })
            }
            Some(Neighbour::Failed) => {
                let how = if address.is_ipv4() { "ARP" } else { "neighbour discovery" };
                NextHop::Unresolved(format!("{address} does not answer {how} on {name}").into())
            }
            Some(Neighbour::Incomplete) | None => NextHop::Unresolved(
                format!("waiting for the MAC address of {address} on {name}").into(),
            ),
        };
        (next_hop, Some(key))
    }

    /// The path of a target: by hash among those that can be used, so that each target keeps its path
    /// while others come and go.
    fn choose<'a>(
        &'a self,
        target: IpAddr,
        paths: &'a [Path],
    ) -> Result<(&'a Path, &'a Link), String> {
        let mut best: Option<(f64, &Path, &Link)> = None;
        let mut obstacle = None;
        for path in paths {
            let Some(link) = self.kernel.links.get(&path.ifindex) else {
                obstacle.get_or_insert_with(|| format!("interface {} is gone", path.ifindex));
                continue;
            };
            if !link.running {
                let what = if link.up { "has no carrier" } else { "is down" };
                obstacle.get_or_insert_with(|| format!("{} {what}", link.name));
                continue;
            }
            if path.dead {
                obstacle.get_or_insert_with(|| format!("the path over {} is dead", link.name));
                continue;
            }
            let score = score(target, path);
            if best.is_none_or(|(best, ..)| score > best) {
                best = Some((score, path, link));
            }
        }
        match best {
            Some((_, path, link)) => Ok((path, link)),
            None => Err(obstacle.unwrap_or_else(|| format!("no route to {target}"))),
        }
    }

    /// The source towards a target, as the kernel would choose it: of the egress interface, best one
    /// in the next hop's network; else of any interface.
    fn source(&self, ifindex: u32, target: IpAddr, via: IpAddr) -> Option<IpAddr> {
        let lowest = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        let usable = |address: &&Address| {
            address.address.is_ipv4() == target.is_ipv4()
                && (address.global || link_local(target))
                && !address.address.is_loopback()
        };
        let on_link = || {
            let addresses = self.kernel.addresses.range((ifindex, lowest)..);
            addresses
                .map_while(move |(key, address)| (key.0 == ifindex).then_some(address))
                .filter(usable)
        };
        let near = |address: &&Address| {
            IpNet::new(address.address, address.prefix_len).is_ok_and(|net| net.contains(&via))
        };

        on_link()
            .filter(|address| !address.avoid)
            .find(near)
            .or_else(|| on_link().find(|address| !address.avoid))
            .or_else(|| on_link().next())
            .or_else(|| {
                self.kernel.addresses.values().filter(usable).find(|address| !address.avoid)
            })
            .map(|address| address.address)
    }
}

fn need(neighbour: Option<Neighbour>) -> Need {
    match neighbour {
        Some(Neighbour::Known(_)) => Need::Nothing,
        Some(Neighbour::Stale(_)) => Need::Confirm,
        Some(Neighbour::Incomplete | Neighbour::Failed) | None => Need::Resolve,
    }
}

fn mac(neighbour: Option<Neighbour>) -> Option<[u8; 6]> {
    match neighbour? {
        Neighbour::Known(mac) | Neighbour::Stale(mac) => Some(mac),
        Neighbour::Incomplete | Neighbour::Failed => None,
    }
}

fn failed(neighbour: Option<Neighbour>) -> bool {
    neighbour == Some(Neighbour::Failed)
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Weighted rendezvous: the path with the highest score is the target's, in proportion to the weights.
fn score(target: IpAddr, path: &Path) -> f64 {
    use std::hash::{Hash as _, Hasher as _};

    let mut hasher = siphasher::sip::SipHasher13::new();
    (target, path.ifindex, path.gateway).hash(&mut hasher);
    // 53 bits fill a double's mantissa; half a unit more keeps the logarithm finite.
    let unit = ((hasher.finish() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(path.weight.max(1)) / unit.ln()
}

fn intern(known: &mut HashSet<Arc<NextHop>>, next_hop: NextHop) -> Arc<NextHop> {
    if let Some(known) = known.get(&next_hop) {
        return Arc::clone(known);
    }
    // Those that no target has any more are dropped whenever the set would have to grow.
    if known.len() == known.capacity() {
        known.retain(|next_hop| Arc::strong_count(next_hop) > 1);
    }
    let next_hop = Arc::new(next_hop);
    known.insert(Arc::clone(&next_hop));
    next_hop
}
