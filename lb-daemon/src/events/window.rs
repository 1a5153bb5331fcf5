//! The samples of the last minute, in bounded memory: who was dropped most, and what a list would have
//! dropped. Pure: the time is given.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    ops::RangeInclusive,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WouldMatch {
    /// All that passed.
    pub passed: Share<()>,
    /// What of it would have been dropped.
    pub matched: Share<()>,
    /// What that lies between, in 19 of 20 cases.
    pub between: RangeInclusive<u64>,
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
        let (mut all, mut own) = (Unseen::default(), Unseen::default());
        let mut sources = BTreeMap::new();
        for kept in &self.passed {
            passed.add(kept);
            all.add(kept);
            let Some((address, about)) = kept.seen(scope.destination) else { continue };
            let holds = |set: &PrefixSet| set.longest(address, 128).is_some();
            // What is not known of a packet, such as the port of a later fragment, the program does not know either.
            if scope.has(&about) == Some(true) && holds(prefixes) && !holds(allowed) {
                matched.add(kept);
                own.add(kept);
                kept.source().into_iter().for_each(|source| add(&mut sources, source, kept));
            }
        }
        let between = between(&passed, &matched, &all, &own);
        WouldMatch { passed, matched, between, sources: largest(sources, NAMED) }
    }
}

/// Packets that samples stand for beside themselves.
#[derive(Debug, Default)]
struct Unseen {
    packets: f64,
    squares: f64,
    /// Of all packets, each with how many stood beside it.
    beside: f64,
}

impl Unseen {
    fn add(&mut self, kept: &Kept) {
        let unseen = f64::from(kept.weight) - 1.0;
        self.packets += unseen;
        self.squares += unseen * unseen;
        self.beside += unseen * f64::from(kept.weight);
    }
}

/// What was seen is certain. What was not is as sure as the count of so many equal samples (Poisson's, by Byar's
/// approximation); and where none has matched, as many samples may have been missed as come 3.7 at a time at most.
fn between(
    passed: &Share<()>,
    matched: &Share<()>,
    all: &Unseen,
    own: &Unseen,
) -> RangeInclusive<u64> {
    const Z: f64 = 1.96;
    const NONE: f64 = 3.7;
    let bound =
        |n: f64, z: f64| n * (1.0 - 1.0 / (9.0 * n) + z / (3.0 * n.sqrt())).max(0.0).powi(3);
    let (mut least, mut most) = (0.0, 0.0);
    if own.packets > 0.0 {
        let samples = own.packets * own.packets / own.squares;
        let each = own.packets / samples;
        (least, most) = (each * bound(samples, -Z), each * bound(samples + 1.0, Z));
    }
    if passed.packets > 0 {
        most = most.max(NONE * all.beside / passed.packets as f64);
    }
    let seen = matched.samples;
    let others = passed.samples - seen;
    let most = (seen + most.ceil() as u64).min(passed.packets - others);
    (seen + least.floor() as u64).min(matched.packets)..=most.max(matched.packets)
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
    fn how_sure_an_estimate_is() {
        let between = |listed: &[u32], others: &[u32]| {
            let mut window = Window::default();
            for (source, weights) in [("192.0.2.1", listed), ("198.51.100.1", others)] {
                for &weight in weights {
                    window.add(&sample(source, Outcome::Passed, weight, None), S);
                }
            }
            let net: PrefixSet =
                std::iter::once("192.0.2.0/24".parse::<ipnet::IpNet>().unwrap()).collect();
            let found = window.would_match(&net, &Scope::default(), &PrefixSet::default());
            assert!(found.between.contains(&found.matched.packets), "{found:?}");
            found.between
        };
        assert_eq!(between(&[], &[]), 0..=0);
        assert_eq!(between(&[1; 7], &[1; 9]), 7..=7, "each packet was looked at");
        // 100 equal samples: Poisson's interval is 81.4 to 121.6.
        assert_eq!(between(&[101; 100], &[101; 900]), (100 + 8136)..=(100 + 12163));
        // One: 0.013 to 5.56.
        assert_eq!(between(&[1001], &[1001; 99]), 14..=5565);
        assert_eq!(
            between(&[], &[101; 100]),
            0..=370,
            "none, which does not say that there was none"
        );
        assert_eq!(between(&[], &[3]), 0..=2, "no more than there were");
        assert_eq!(between(&[101; 100], &[]), (100 + 8136)..=10_100);
        // What is certain does not become less so by what is not.
        let found = between(&[[1; 50].as_slice(), &[51; 10]].concat(), &[2; 1000]);
        assert!(
            (200..300).contains(found.start()) && (900..1100).contains(found.end()),
            "{found:?}"
        );
    }

    /// The truth lies in the interval nearly always, whatever the weights are.
    #[test]
    fn intervals_hold() {
        let net: PrefixSet =
            std::iter::once("192.0.2.0/24".parse::<ipnet::IpNet>().unwrap()).collect();
        // Numbers as good as random ones, and the same every time.
        let mut state = 1u64;
        let mut random = move |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for (of_hundred, stride) in [(1, 20), (10, 20), (50, 100), (5, 1)] {
            let mut held = 0;
            for _ in 0..200 {
                let (mut window, mut truth) = (Window::default(), 0);
                for _ in 0..20_000 {
                    let listed = random(100) < of_hundred;
                    truth += u64::from(listed);
                    if random(stride) == 0 {
                        let source = if listed { "192.0.2.1" } else { "198.51.100.1" };
                        window.add(&sample(source, Outcome::Passed, stride as u32, None), S);
                    }
                }
                let found = window.would_match(&net, &Scope::default(), &PrefixSet::default());
                held += u32::from(found.between.contains(&truth));
            }
            assert!(held >= 180, "{of_hundred} of 100, one in {stride}: {held} of 200");
        }
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
