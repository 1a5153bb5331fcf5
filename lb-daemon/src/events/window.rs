//! The samples of the last minute, in bounded memory: who was dropped most, and what a list would have
//! dropped. Pure: the time is given.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use abi::{
    event::{Hook, Outcome},
    reason::Reason,
    wire::protocol,
};
use config::{
    PrefixSet,
    model::{About, Scope, ScopeProtocol},
};

use super::{Flow, Sample};

/// How long samples are kept.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Samples of each kind that are kept at most: 8 MB each, and the names of their interfaces.
const MOST: usize = 1 << 16;
/// Sources that [`WouldMatch`] names.
const NAMED: usize = 20;

/// Part of a sample that is kept.
#[derive(Debug)]
struct Kept {
    at: Duration,
    flow: Option<Flow>,
    interface: Arc<str>,
    reason: Reason,
    weight: u32,
    length: u32,
    list: Option<Arc<str>>,
}

impl Kept {
    fn source(&self) -> Option<IpAddr> {
        self.flow.map(|flow| flow.source)
    }

    /// The packet as a list sees it that is about its address on one end, and that address.
    fn seen(&self, destination: bool) -> Option<(IpAddr, About<'_>)> {
        let flow = self.flow?;
        let address = if destination { flow.destination } else { flow.source };
        let protocol = match flow.protocol {
            protocol::TCP => Some(ScopeProtocol::Tcp),
            protocol::UDP => Some(ScopeProtocol::Udp),
            protocol::ICMP | protocol::ICMP6 => Some(ScopeProtocol::Icmp),
            abi::scope::SCTP => Some(ScopeProtocol::Sctp),
            _ => None,
        };
        let port = flow.ports.map(|(_, port)| port);
        let interface = Some(&*self.interface);
        Some((address, About { interface, destination, protocol, port }))
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Window {
    dropped: VecDeque<Kept>,
    passed: VecDeque<Kept>,
}

/// Packets of somebody, as far as samples tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share<T> {
    /// Who.
    pub of: T,
    /// Packets in the last minute, estimated.
    pub packets: u64,
    /// Their bytes, estimated.
    pub bytes: u64,
    /// Samples that say so.
    pub samples: u64,
}

/// Who was dropped most, each in order of packets. What an audit would have dropped counts too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Top {
    /// All of it.
    pub total: Share<()>,
    /// Sources.
    pub sources: Vec<Share<IpAddr>>,
    /// Lists that they were on.
    pub lists: Vec<Share<Arc<str>>>,
    /// Reasons.
    pub reasons: Vec<Share<Reason>>,
}

/// What a list would have dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WouldMatch {
    /// All that passed.
    pub passed: Share<()>,
    /// What of it would have been dropped.
    pub matched: Share<()>,
    /// The sources of that, those with most packets, at most twenty.
    pub sources: Vec<Share<IpAddr>>,
}

impl<T> Share<T> {
    fn add(&mut self, kept: &Kept) {
        self.packets += u64::from(kept.weight);
        self.bytes += u64::from(kept.weight) * u64::from(kept.length);
        self.samples += 1;
    }
}

impl Window {
    pub(super) fn add(&mut self, sample: &Sample, now: Duration) {
        let kept = Kept {
            at: now,
            flow: sample.flow,
            interface: Arc::clone(&sample.interface),
            reason: sample.reason,
            weight: sample.weight,
            length: sample.length,
            list: sample.list.clone(),
        };
        let queue = match sample.outcome {
            Outcome::Dropped | Outcome::Audited => &mut self.dropped,
            // What policy lets pass is not what comes in by a NIC.
            Outcome::Passed if sample.hook == Hook::Xdp => &mut self.passed,
            Outcome::Passed | Outcome::Forwarded => return,
        };
        if queue.len() >= MOST {
            queue.pop_front();
        }
        queue.push_back(kept);
    }

    pub(super) fn expire(&mut self, now: Duration) {
        for queue in [&mut self.dropped, &mut self.passed] {
            while queue.front().is_some_and(|kept| kept.at + WINDOW < now) {
                queue.pop_front();
            }
        }
    }

    pub(super) fn top(&self, most: usize) -> Top {
        let mut total = Share::default();
        let mut sources = BTreeMap::new();
        let mut lists = BTreeMap::new();
        let mut reasons = BTreeMap::new();
        for kept in &self.dropped {
            total.add(kept);
            add(&mut reasons, kept.reason, kept);
            if let Some(source) = kept.source() {
                add(&mut sources, source, kept);
            }
            if let Some(list) = &kept.list {
                add(&mut lists, Arc::clone(list), kept);
            }
        }
        let (sources, lists) = (largest(sources, most), largest(lists, most));
        Top { total, sources, lists, reasons: largest(reasons, most) }
    }

    pub(super) fn would_match(
        &self,
        prefixes: &PrefixSet,
        scope: &Scope,
        allowed: &PrefixSet,
    ) -> WouldMatch {
        let (mut passed, mut matched) = (Share::default(), Share::default());
        let mut sources = BTreeMap::new();
        for kept in &self.passed {
            passed.add(kept);
            let Some((address, about)) = kept.seen(scope.destination) else { continue };
            let holds = |set: &PrefixSet| set.longest(address, 128).is_some();
            // What is not known of a packet, such as the port of a later fragment, the program does not know either.
            if scope.has(&about) == Some(true) && holds(prefixes) && !holds(allowed) {
                matched.add(kept);
                kept.source().into_iter().for_each(|source| add(&mut sources, source, kept));
            }
        }
        WouldMatch { passed, matched, sources: largest(sources, NAMED) }
    }
}

fn add<T: Ord>(all: &mut BTreeMap<T, Share<()>>, of: T, kept: &Kept) {
    all.entry(of).or_default().add(kept);
}

/// Those with most packets first; equal ones in their own order.
fn largest<T: Ord>(all: BTreeMap<T, Share<()>>, most: usize) -> Vec<Share<T>> {
    let share = |(of, Share { packets, bytes, samples, .. })| Share { of, packets, bytes, samples };
    let mut shares: Vec<Share<T>> = all.into_iter().map(share).collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.packets));
    shares.truncate(most);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn sample(source: &str, outcome: Outcome, weight: u32, list: Option<&str>) -> Sample {
        let reason = if list.is_some() { Reason::Blocked } else { Reason::NotOurs };
        let list = list.map(Into::into);
        Sample { outcome, reason, list, weight, ..Sample::passed_from(source) }
    }

    #[test]
    fn top_is_by_packets_of_the_last_minute() {
        let mut window = Window::default();
        window.add(&sample("192.0.2.1", Outcome::Dropped, 1000, Some("old")), S);
        window.add(&sample("192.0.2.2", Outcome::Dropped, 3, Some("a")), 30 * S);
        window.add(&sample("192.0.2.3", Outcome::Audited, 4, Some("b")), 30 * S);
        window.add(&sample("192.0.2.2", Outcome::Dropped, 2, Some("a")), 31 * S);
        window.add(&sample("192.0.2.9", Outcome::Passed, 99, None), 31 * S);
        window.expire(62 * S);
        let top = window.top(1);
        assert_eq!(top.total, Share { of: (), packets: 9, bytes: 540, samples: 3 });
        let first = &top.sources[..];
        let want = Share { of: "192.0.2.2".parse().unwrap(), packets: 5, bytes: 300, samples: 2 };
        assert_eq!(first, [want]);
        assert_eq!((&*top.lists[0].of, top.lists[0].packets), ("a", 5));
        assert_eq!((top.reasons[0].of, top.reasons[0].packets), (Reason::Blocked, 9));
    }

    #[test]
    fn memory_is_bounded() {
        let mut window = Window::default();
        for _ in 0..MOST + 10 {
            window.add(&sample("192.0.2.1", Outcome::Dropped, 1, None), S);
        }
        assert_eq!(window.top(1).total.samples, MOST as u64);
    }

    #[test]
    fn what_a_list_would_have_dropped() {
        let mut window = Window::default();
        for (source, weight) in [("192.0.2.1", 5), ("192.0.2.2", 7), ("198.51.100.1", 11)] {
            window.add(&sample(source, Outcome::Passed, weight, None), S);
        }
        window.add(&sample("192.0.2.3", Outcome::Dropped, 100, Some("a")), S);
        let set = |text: &str| {
            let mut set = PrefixSet::default();
            set.insert(text.parse().unwrap());
            set
        };
        let all = Scope::default();
        let found = window.would_match(&set("192.0.2.0/24"), &all, &set("192.0.2.2/32"));
        assert_eq!((found.passed.packets, found.matched.packets), (23, 5));
        assert_eq!(found.sources.len(), 1);
        let found = window.would_match(&set("0.0.0.0/0"), &all, &PrefixSet::default());
        assert_eq!(found.matched.packets, 23);
        assert_eq!(found.sources[0].of, "198.51.100.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_list_of_some_packets_would_have_dropped_these() {
        let mut window = Window::default();
        // Each is of another power of two.
        let packets = [
            ("192.0.2.1", "203.0.113.1", 6, Some((1000, 80)), "eth0"),
            ("192.0.2.1", "203.0.113.1", 6, Some((80, 1000)), "eth1"),
            ("192.0.2.2", "203.0.113.1", 17, Some((1000, 80)), "eth0"),
            // A later fragment.
            ("192.0.2.2", "203.0.113.1", 6, None, "eth0"),
            ("203.0.113.1", "192.0.2.1", 58, None, "eth0"),
        ];
        for (n, (source, destination, protocol, ports, interface)) in (0..).zip(packets) {
            let flow = Flow {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                protocol,
                ports,
            };
            let own = sample(source, Outcome::Passed, 1 << n, None);
            window.add(&Sample { flow: Some(flow), interface: interface.into(), ..own }, S);
        }
        let net: PrefixSet =
            std::iter::once("192.0.2.0/24".parse::<ipnet::IpNet>().unwrap()).collect();
        let of =
            |scope: Scope| window.would_match(&net, &scope, &PrefixSet::default()).matched.packets;
        let scope = |protocol, ports: &[(u16, u16)]| Scope {
            protocol: Some(protocol),
            ports: ports.to_vec(),
            ..Scope::default()
        };
        assert_eq!(of(Scope::default()), 0b01111);
        assert_eq!(of(scope(ScopeProtocol::Tcp, &[])), 0b01011);
        assert_eq!(of(scope(ScopeProtocol::Tcp, &[(70, 90)])), 0b00001);
        assert_eq!(of(scope(ScopeProtocol::Udp, &[])), 0b00100);
        let on = Scope { interfaces: vec!["eth1".to_owned()], ..Scope::default() };
        assert_eq!(of(on), 0b00010);
        assert_eq!(of(Scope { destination: true, ..Scope::default() }), 0b10000);
        assert_eq!(of(Scope { destination: true, ..scope(ScopeProtocol::Icmp, &[]) }), 0b10000);
        // Who sends to a listed address is who is told.
        let to = Scope { destination: true, ..Scope::default() };
        let found = window.would_match(&net, &to, &PrefixSet::default());
        assert_eq!(found.sources[0].of, "203.0.113.1".parse::<IpAddr>().unwrap());
        assert_eq!(window.would_match(&net, &to, &net).matched.packets, 0, "allowed");
    }
}
