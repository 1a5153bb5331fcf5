//! The task: sockets, clock and channels around [`State`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt as _;
use netlink_packet_route::{
    RouteNetlinkMessage, address::AddressMessage, link::LinkMessage, neighbour::NeighbourMessage,
    route::RouteMessage, rule::RuleMessage,
};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NLM_F_CREATE, NLM_F_REPLACE},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    NextHop,
    fib::{Certainty, Fib},
    parse::{event_from, neighbour_from, probe, question, route_from, rules_are_default, way_from},
    state::{Routes, Snapshot, State},
};
use crate::{
    links::{address_from, link_from},
    netlink::{Error, Notice, Notices, Requests},
};

/// Targets worked off, and next hops sent, at once.
const CHUNK: usize = 8192;
/// Notices taken before their consequences are worked out.
const NOTICES: usize = 4096;
/// Neighbours probed at once.
const PROBES: usize = 256;
/// Pause between two such lots, so that a large network is not asked in one burst.
const PROBE_PAUSE: Duration = Duration::from_millis(10);
/// Routes asked of the kernel at once.
const QUESTIONS: usize = 256;
/// How long a reading waits for more reasons to read.
const GATHER: Duration = Duration::from_millis(20);
/// Pause after a reading, as a multiple of the time it took.
const READING_SHARE: u32 = 10;
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Pause after a reading that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP`.
const NEXT_HOP_OBJECTS: [u16; 2] = [104, 105];

/// Tells the [`Task`] which addresses are wanted. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Resolver {
    wanted: Arc<Wanted>,
}

impl Resolver {
    /// Opens sockets in the calling thread's network namespace and reads what the kernel knows. The task
    /// sends to `changes` the next hops that changed, at first those of all targets; it never waits for
    /// the receiver with more than the latest next hop of each target in hand.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn open(
        changes: mpsc::Sender<BTreeMap<IpAddr, NextHop>>,
    ) -> Result<(Self, Task), Error> {
        let wanted = Arc::<Wanted>::default();
        let mut task = Task {
            wanted: Arc::clone(&wanted),
            changes,
            notices: Notices::subscribe(&[
                MulticastGroup::Link,
                MulticastGroup::Neigh,
                MulticastGroup::Ipv4Ifaddr,
                MulticastGroup::Ipv4Route,
                MulticastGroup::Ipv4Rule,
                MulticastGroup::Ipv6Ifaddr,
                MulticastGroup::Ipv6Route,
                MulticastGroup::Ipv6Rule,
                MulticastGroup::Nexthop,
            ])?,
            requests: Requests::open()?,
            state: State::default(),
            outbox: BTreeMap::new(),
            reading_due: None,
            reading_not_before: Instant::now(),
            probing_not_before: Instant::now(),
        };
        let snapshot = read(&mut task.requests).await?;
        task.state.load(snapshot, Instant::now());

        Ok((Self { wanted }, task))
    }

    /// Replaces the wanted addresses and returns at once. Of each address that was not wanted before,
    /// the next hop will be sent; of the others, only changes.
    pub fn set_targets(&self, targets: BTreeSet<IpAddr>) {
        {
            let mut change = self.wanted.change.lock().unwrap_or_else(PoisonError::into_inner);
            change.come.clear();
            change.all = Some(targets);
        }
        self.wanted.changed.notify_one();
    }

    /// The same for a few addresses that have come or gone; the others stay wanted. Of each that has
    /// come the next hop will be sent, also when it has just gone.
    pub fn change_targets(&self, come: &[IpAddr], gone: &[IpAddr]) {
        if come.is_empty() && gone.is_empty() {
            return;
        }
        {
            let mut change = self.wanted.change.lock().unwrap_or_else(PoisonError::into_inner);
            for address in gone {
                change.come.remove(address);
                change.gone.insert(*address);
            }
            change.come.extend(come);
        }
        self.wanted.changed.notify_one();
    }
}

#[derive(Debug, Default)]
struct Wanted {
    change: Mutex<Change>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Change {
    /// These go first; some may be wanted again.
    gone: BTreeSet<IpAddr>,
    /// Then these are in place of all before.
    all: Option<BTreeSet<IpAddr>>,
    /// Then these come.
    come: BTreeSet<IpAddr>,
}

/// Keeps next hops fresh.
pub struct Task {
    wanted: Arc<Wanted>,
    changes: mpsc::Sender<BTreeMap<IpAddr, NextHop>>,
    notices: Notices,
    requests: Requests,
    state: State,
    /// Changes not sent yet.
    outbox: BTreeMap<IpAddr, NextHop>,
    /// When all is to be read anew.
    reading_due: Option<Instant>,
    reading_not_before: Instant,
    probing_not_before: Instant,
}

impl Task {
    /// Runs until `cancel`, until nobody receives the changes, or until the kernel cannot be heard.
    ///
    /// # Errors
    /// If the socket of notifications broke.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), Error> {
        let changes = self.changes.clone();
        let wanted = Arc::clone(&self.wanted);
        loop {
            let now = Instant::now();
            self.outbox.extend(self.state.resolve(CHUNK, now));
            self.ask(now).await;
            let busy = self.state.is_dirty() || self.state.has_questions();
            let probing = self.state.next_probe().map(|due| due.max(self.probing_not_before));

            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = wanted.changed.notified() => self.take_targets(),
                permit = changes.reserve(), if !self.outbox.is_empty() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    permit.send(first(&mut self.outbox, CHUNK));
                }
                notice = self.notices.next() => self.follow(notice?)?,
                () = at(self.reading_due) => self.read_anew().await,
                () = at(probing) => self.probe().await,
                () = tokio::task::yield_now(), if busy => {}
            }
        }
    }

    fn take_targets(&mut self) {
        let Change { all, gone, come } = {
            let mut change = self.wanted.change.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *change)
        };
        for target in gone {
            self.state.forget(target);
            self.outbox.remove(&target);
        }
        if let Some(all) = all {
            self.state.set_targets(&all);
            self.outbox.retain(|target, _| all.contains(target));
        }
        for target in come {
            self.state.add(target);
        }
    }

    /// Takes a notice and those that wait behind it.
    fn follow(&mut self, notice: Notice) -> Result<(), Error> {
        let mut next = Some(notice);
        for _ in 0..NOTICES {
            let Some(notice) = next else { break };
            self.take_notice(&notice);
            next = self.notices.next().now_or_never().transpose()?;
        }
        if let Some(notice) = next {
            self.take_notice(&notice);
        }
        Ok(())
    }

    fn take_notice(&mut self, notice: &Notice) {
        match notice {
            Notice::Lost => {
                tracing::warn!("network changes came faster than they were read; reading all anew");
                self.plan_reading();
            }
            Notice::Message {
                message: RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_),
                ..
            } => self.plan_reading(),
            // Rules may choose any table, and ours is the copy of three.
            Notice::Message {
                message: RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_),
                ..
            } if self.state.asks_kernel() => self.plan_reading(),
            Notice::Message { flags, message } => {
                if let Some(event) = event_from(message, *flags)
                    && self.state.apply(event, Instant::now()) == Certainty::Unsure
                {
                    self.plan_reading();
                }
            }
            Notice::Unknown(kind) if NEXT_HOP_OBJECTS.contains(kind) => self.plan_reading(),
            Notice::Unknown(kind) => tracing::debug!(kind, "unknown netlink message"),
        }
    }

    fn plan_reading(&mut self) {
        let soonest = (Instant::now() + GATHER).max(self.reading_not_before);
        self.reading_due.get_or_insert(soonest);
    }

    async fn read_anew(&mut self) {
        self.reading_due = None;
        let began = Instant::now();
        match read(&mut self.requests).await {
            Ok(snapshot) => {
                let now = Instant::now();
                self.state.load(snapshot, now);
                let pause = ((now - began) * READING_SHARE).min(LONGEST_PAUSE);
                self.reading_not_before = now + pause;
            }
            Err(error) => {
                tracing::warn!(%error, "reading routes and neighbours failed; trying again");
                self.reading_due = Some(Instant::now() + AFTER_FAILURE);
            }
        }
    }

    async fn probe(&mut self) {
        let now = Instant::now();
        self.probing_not_before = now + PROBE_PAUSE;
        for key in self.state.take_probes(now, PROBES) {
            let flags = NLM_F_CREATE | NLM_F_REPLACE;
            let probed = self.requests.change("probing a neighbour", probe(key), flags).await;
            if let Err(error) = probed {
                // The interface may just have gone; the plan tries again.
                tracing::debug!(%error, interface = key.0, address = %key.1, "no probe");
            }
        }
    }

    async fn ask(&mut self, now: Instant) {
        for target in self.state.take_questions(QUESTIONS) {
            let answer = match self.requests.get("asking for a route", question(target)).await {
                Ok(RouteNetlinkMessage::NewRoute(message)) => Ok(way_from(&message)),
                Ok(_) => Err(format!("the kernel's answer about {target} is no route")),
                Err(Error::Request { source, .. }) => {
                    Err(format!("no route to {target}: {source}"))
                }
                Err(error) => Err(error.to_string()),
            };
            self.outbox.extend(self.state.answer(target, answer, now));
        }
    }
}

/// Reads all that next hops depend on.
async fn read(requests: &mut Requests) -> Result<Snapshot, Error> {
    let mut new = Snapshot::default();

    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let take = |message| match message {
        None => new.links.clear(),
        Some(RouteNetlinkMessage::NewLink(message)) => {
            new.links.extend(link_from(&message).map(|link| (link.index, link)));
        }
        Some(_) => {}
    };
    requests.dump("reading interfaces", request, take).await?;

    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let take = |message| match message {
        None => new.addresses.clear(),
        Some(RouteNetlinkMessage::NewAddress(message)) => {
            let address = address_from(&message);
            new.addresses
                .extend(address.map(|address| ((address.index, address.address), address)));
        }
        Some(_) => {}
    };
    requests.dump("reading addresses", request, take).await?;

    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let take = |message| match message {
        None => new.neighbours.clear(),
        Some(RouteNetlinkMessage::NewNeighbour(message)) => {
            if let Some((key, Some(neighbour))) = neighbour_from(&message) {
                new.neighbours.insert(key, neighbour);
            }
        }
        Some(_) => {}
    };
    requests.dump("reading neighbours", request, take).await?;

    let mut rules = Vec::new();
    let request = RouteNetlinkMessage::GetRule(RuleMessage::default());
    let take = |message| match message {
        None => rules.clear(),
        Some(RouteNetlinkMessage::NewRule(message)) => rules.push(message),
        Some(_) => {}
    };
    requests.dump("reading rules", request, take).await?;
    if !rules_are_default(&rules) {
        new.routes = Routes::Asked;
        return Ok(new);
    }

    let mut fib = Fib::default();
    let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    let take = |message| match message {
        None => fib = Fib::default(),
        Some(RouteNetlinkMessage::NewRoute(message)) => {
            if let Some(route) = route_from(&message) {
                fib.load(route);
            }
        }
        Some(_) => {}
    };
    requests.dump("reading routes", request, take).await?;
    new.routes = Routes::Copied(fib);
    Ok(new)
}

/// Takes the first `count` entries out of a map.
fn first<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, count: usize) -> BTreeMap<K, V> {
    let Some(split) = map.keys().nth(count).cloned() else { return std::mem::take(map) };
    let rest = map.split_off(&split);
    std::mem::replace(map, rest)
}

/// Waits until then; for ever if there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::testing::Namespace;

    fn target() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    #[test]
    fn what_was_missed_is_read_anew() {
        let (here, there) = (Namespace::new("here"), Namespace::new("there"));
        here.veth("veth0", &there, "peer");
        let here = &here;
        here.run(async {
            let (sender, mut changes) = mpsc::channel(1);
            let (resolver, mut task) = Resolver::open(sender).await.unwrap();
            // Nobody hears of this route.
            here.ip("route add blackhole 192.0.2.0/24");
            task.notices = Notices::subscribe(&[]).unwrap();
            task.take_notice(&Notice::Lost);
            resolver.set_targets(BTreeSet::from([target()]));
            let cancel = CancellationToken::new();
            let task = tokio::spawn(task.run(cancel.clone()));

            let mut told = BTreeMap::new();
            let blackhole = "the route of 192.0.2.0/24 is a blackhole".to_owned();
            while told.get(&target()) != Some(&NextHop::Unresolved(blackhole.as_str().into())) {
                let change = tokio::time::timeout(Duration::from_secs(20), changes.recv()).await;
                told.extend(change.expect("the route is found").unwrap());
            }
            cancel.cancel();
            task.await.unwrap().unwrap();
        });
    }

    #[test]
    fn the_first_entries_of_a_map() {
        let map = || BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'c')]);
        for (count, taken, left) in [(0, 0, 3), (2, 2, 1), (3, 3, 0), (9, 3, 0)] {
            let mut rest = map();
            let head = first(&mut rest, count);
            assert_eq!((head.len(), rest.len()), (taken, left));
            assert!(head.keys().all(|key| rest.keys().all(|other| key < other)));
        }
    }
}
