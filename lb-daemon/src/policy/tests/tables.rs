//! The tables, read by the code that the kernel runs, against the rules as they are read one by one.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use abi::{
    addr::Addr,
    limits::policy::WORLD_V4,
    policy::{
        self, AddressRow, Connection, ConnectionKey, Decision, Entries, Head, Interface, Page,
        Part, PolicyRow, Tables, Top, Way, Which,
        nets::{self, Known, NetBucket, Nets},
    },
    reason::Reason,
    table::Bucket,
};
use config::{
    model::{Endpoint, Source},
    policy::Established,
};

use super::*;
use crate::policy::{
    image::{Op, Sizes, nets::room},
    state::{State, Wanted},
};

const SALT: u64 = 5;
pub(super) const SIZES: Sizes = Sizes {
    interfaces: 64,
    policies: 128,
    tops: 512,
    pages: 2048,
    entries: 1 << 14,
    addresses: 256,
    buckets: 128,
    prefixes: 256,
    rules: 256,
};

/// The tables in memory; connections are kept for ever.
#[derive(Default)]
struct Fake {
    interfaces: HashMap<u32, u64>,
    policies: HashMap<u32, PolicyRow>,
    tops: HashMap<u32, Top>,
    pages: HashMap<u32, Page>,
    entries: HashMap<u32, Entries>,
    buckets: HashMap<u32, [u64; 4]>,
    made: HashMap<u32, Bucket>,
    addresses: HashMap<u32, AddressRow>,
    filter: HashMap<u32, [u64; 2]>,
    nets: HashMap<u32, [u64; 8]>,
    made_nets: HashMap<u32, NetBucket>,
    known: u64,
    connections: RefCell<HashMap<ConnectionKey, Connection>>,
    fragments: RefCell<HashMap<ConnectionKey, u64>>,
    now: u64,
}

impl Fake {
    fn new() -> Self {
        // What the kernel makes is zero.
        let tops = HashMap::from([(0, Top::new([0; 256]))]);
        let pages = HashMap::from([(0, Page::new([0; 256]))]);
        Self { tops, pages, ..Self::default() }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Page(row, page) => drop(self.pages.insert(*row, **page)),
            Op::Top(row, top) => drop(self.tops.insert(*row, **top)),
            Op::Entries(first, buckets) => {
                self.entries.extend((*first..).zip(buckets.iter().copied()));
            }
            Op::Policy(row, policy) => drop(self.policies.insert(*row, *policy)),
            Op::Interface(index, word) => drop(self.interfaces.insert(*index, *word)),
            Op::Address(row, address) => drop(self.addresses.insert(*row, *address)),
            Op::Bucket { index, way, word } => {
                let words = self.buckets.entry(*index).or_default();
                words[usize::from(*way)] = *word;
                self.made.insert(*index, Bucket::from_words(*words));
            }
            Op::Rule(..) => {}
            Op::Net { bucket, way, words } => {
                let stands = self.nets.entry(*bucket).or_default();
                let meta = (stands[NetBucket::META + way / 2] >> (way % 2 * 32)) as u32;
                assert_eq!(meta, 0, "an address is written while nobody reads it");
                stands[way * 2..way * 2 + 2].copy_from_slice(words);
                self.made_nets.insert(*bucket, NetBucket::from_words(*stands));
            }
            Op::NetMeta { bucket, index, word } => {
                let stands = self.nets.entry(*bucket).or_default();
                stands[NetBucket::META + index] = *word;
                self.made_nets.insert(*bucket, NetBucket::from_words(*stands));
            }
            Op::NetFilter { row, word, bits } => {
                self.filter.entry(*row).or_default()[*word] = *bits;
            }
            Op::Known(word) => self.known = *word,
        }
    }
}

impl Tables for Fake {
    type Place<'p> = Box<Head>;

    fn interface(&self, index: u32) -> u64 {
        self.interfaces.get(&index).copied().unwrap_or(0)
    }
    fn policy(&self, row: u32) -> Option<&PolicyRow> {
        self.policies.get(&row)
    }
    fn top(&self, row: u32) -> Option<&Top> {
        self.tops.get(&row)
    }
    fn page(&self, row: u32) -> Option<&Page> {
        self.pages.get(&row)
    }
    fn entries(&self, index: u32) -> Option<&Entries> {
        self.entries.get(&index)
    }
    fn salt(&self) -> u64 {
        SALT
    }
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        self.made.get(&(index & (SIZES.buckets - 1)))
    }
    fn address(&self, row: u32) -> Option<&AddressRow> {
        self.addresses.get(&row)
    }
    fn prefix(&self, address: Addr) -> u32 {
        nets::identity(self, address)
    }
    fn connection(&self, key: &ConnectionKey) -> Option<Connection> {
        self.connections.borrow().get(key).copied()
    }
    fn remember(&self, key: &ConnectionKey, connection: &Connection) {
        self.connections.borrow_mut().insert(*key, *connection);
    }
    fn fragment(&self, key: &ConnectionKey) -> Option<u64> {
        self.fragments.borrow().get(key).copied()
    }
    fn remember_fragment(&self, key: &ConnectionKey, ports: u64) {
        self.fragments.borrow_mut().insert(*key, ports);
    }
    fn now(&self) -> u64 {
        self.now
    }
    fn settled(&self, _: Which, head: Head) -> Option<Box<Head>> {
        Some(Box::new(head))
    }
}

impl Nets for Fake {
    fn known(&self) -> Known {
        Known(self.known)
    }
    fn filter(&self, row: u32) -> [u64; 2] {
        let mask = room(SIZES.prefixes)[0] - 1;
        self.filter.get(&(row & mask)).copied().unwrap_or_default()
    }
    fn net_bucket(&self, index: u32) -> Option<&NetBucket> {
        const EMPTY: &NetBucket = &NetBucket::from_words([0; 8]);
        let mask = room(SIZES.prefixes)[1] - 1;
        Some(self.made_nets.get(&(index & mask)).unwrap_or(EMPTY))
    }
}

fn endpoint(name: &str, labels: Labels, address: &str) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        name: name.to_owned(),
        source: Source::Api,
        labels,
        addresses: vec![address.parse().expect("an address")],
        interface: format!("veth-{name}"),
        audit: false,
        enforcement: None,
        ports: Vec::new(),
    })
}

fn address_of(n: usize) -> String {
    format!("172.16.0.{n}")
}

/// Endpoint n has address 172.16.0.n and interface n+1; the host has 172.31.0.1.
fn wanted(labels: &[Labels], rules: Vec<Rule>, enforcement: Enforcement) -> Wanted {
    let endpoints = labels.iter().enumerate().map(|(n, labels)| {
        let endpoint = endpoint(&n.to_string(), labels.clone(), &address_of(n));
        (endpoint, Some(n as u32 + 1))
    });
    Wanted {
        established: Default::default(),
        fqdn: Default::default(),
        endpoints: endpoints.collect(),
        host: None,
        nodes: [("172.31.0.1".parse().expect("an address"), 1)].into(),
        rules: Arc::new(rules),
        enforcement,
        groups: BTreeMap::new(),
    }
}

fn head(src: IpAddr, dst: IpAddr, protocol: u8, from: u16, to: u16, opening: bool) -> Head {
    Head {
        src: src.into(),
        dst: dst.into(),
        ports: u32::from(from.to_be()) | u32::from(to.to_be()) << 16,
        protocol,
        kind: if matches!(protocol, 1 | 58) { to as u8 } else { 0 },
        opening,
        part: Part::Whole,
        id: 0,
        at: 0,
    }
}

/// A question, and the answer of the rules.
struct Question {
    subject: usize,
    way: Way,
    peer: IpAddr,
    flow: Flow,
}

impl Question {
    fn random(random: &mut Random, endpoints: usize) -> Self {
        let peer = match random.below(6) {
            0 => "172.31.0.1".parse().expect("an address"),
            1 | 2 => random.address(),
            _ => address_of(random.below(endpoints)).parse().expect("an address"),
        };
        let protocol = random.one(&[1, 6, 6, 17, 47, 58, 132]);
        let port = if matches!(protocol, 1 | 58) { random.one(&[0, 8, 79]) } else { random.port() };
        Self {
            subject: random.below(endpoints),
            way: random.one(&[Way::In, Way::Out]),
            peer,
            flow: Flow { protocol, port },
        }
    }

    fn by_rules(&self, wanted: &Wanted) -> Verdict {
        let labels = |n: usize| &wanted.endpoints[n].0.labels;
        let known = wanted.endpoints.iter().position(|(e, _)| e.addresses.contains(&self.peer));
        let other = match known {
            Some(n) => Other::Endpoint(labels(n)),
            None if wanted.nodes.contains_key(&self.peer) => Other::Reserved(Entity::Host),
            None => Other::World(self.peer),
        };
        let direction = match self.way {
            Way::In => Direction::Ingress,
            Way::Out => Direction::Egress,
        };
        let subject = match (&wanted.host, self.subject == HOST_AT as usize) {
            (Some((host, _)), true) => Subject { host: true, ..wanted.subject(host) },
            _ => wanted.subject(&wanted.endpoints[self.subject].0),
        };
        explain(wanted, subject, direction, other, self.flow).verdict
    }

    fn by_tables(&self, fake: &Fake) -> Option<(bool, u64)> {
        let interface = Interface::from_word(fake.interface(self.subject as u32 + 1))?;
        let row = fake.policy(interface.policy).expect("a policy");
        let side = row.side(self.way);
        let peer = policy::identity(fake, self.peer.into());
        let Flow { protocol, port } = self.flow;
        let word = policy::verdict(fake, side, peer, protocol, port);
        Some((policy::passes(side, word), policy::Entry::rule_of(word).into()))
    }
}

#[test]
fn the_kernels_code_says_what_the_rules_say() {
    let mut random = Random(6);
    let mut passed = 0;
    for set in 0..100 {
        let rules: Vec<Rule> = (0..1 + random.below(12)).map(|_| random.named()).collect();
        let enforcement = match set % 10 {
            0 => Enforcement::Never,
            1 => Enforcement::Always,
            _ => Enforcement::Default,
        };
        let wanted = random_site(&mut random, rules, enforcement);
        let mut state = State::new(SIZES, SALT);
        let mut fake = Fake::new();
        state.plan(wanted.clone()).expect("room").iter().for_each(|op| fake.apply(op));
        let rows = state.rule_rows();
        for _ in 0..1000 {
            let question = Question::random(&mut random, 13);
            let want = question.by_rules(&wanted);
            let (passes, rule) = question.by_tables(&fake).expect("attached");
            assert_eq!(passes, want.passes(), "set {set}");
            let by = want.rule().map_or(0, |rule| u64::from(rows[rule as usize]) + 1);
            assert_eq!(rule, by, "set {set}: the rule that decides");
            passed += usize::from(passes);
        }
    }
    assert!((20_000..80_000).contains(&passed), "both happen: {passed}");
}

/// Whatever changes, a flow that both the old and the new policy allow is allowed after every single
/// step, and one that both deny is denied.
#[test]
fn no_step_between_two_policies_is_neither() {
    let mut random = Random(7);
    let mut steps = 0;
    for _ in 0..40 {
        let mut state = State::new(SIZES, SALT);
        let mut fake = Fake::new();
        let rules: Vec<Rule> = (0..6).map(|_| random.named()).collect();
        let mut old = random_site(&mut random, rules, Enforcement::Default);
        state.plan(old.clone()).expect("room").iter().for_each(|op| fake.apply(op));
        for _ in 0..6 {
            state.release();
            let mut new = old.clone();
            match random.below(5) {
                0 => {
                    let n = random.below(new.endpoints.len());
                    Arc::make_mut(&mut new.endpoints[n].0).labels = random.labels();
                }
                1 => {
                    let n = random.below(new.endpoints.len());
                    Arc::make_mut(&mut new.endpoints[n].0).ports = random.port_names();
                }
                2 => new.groups = random.groups(),
                _ => {
                    let n = random.below(new.rules.len());
                    Arc::make_mut(&mut new.rules)[n] = random.named();
                }
            }
            let ops = state.plan(new.clone()).expect("room");
            let questions: Vec<Question> =
                (0..60).map(|_| Question::random(&mut random, 13)).collect();
            for op in &ops {
                fake.apply(op);
                steps += 1;
                for question in &questions {
                    let (before, after) = (question.by_rules(&old), question.by_rules(&new));
                    let (passes, _) = question.by_tables(&fake).expect("attached");
                    // Labels of either end may have changed with the other end's still the old ones.
                    if before.passes() == after.passes() && old.endpoints == new.endpoints {
                        assert_eq!(passes, after.passes(), "after {op:?}");
                    }
                }
            }
            for question in &questions {
                let (passes, _) = question.by_tables(&fake).expect("attached");
                assert_eq!(passes, question.by_rules(&new).passes(), "in force");
            }
            old = new;
        }
    }
    assert!(steps > 1000, "{steps}");
}

/// Endpoints that come, go and change alone are planned apart from all others: what then stands is what
/// the rules say, after every step for whoever has not changed, and little is written.
#[test]
fn a_change_of_endpoints_touches_what_is_about_them() {
    let mut random = Random(11);
    let (mut small, mut steps) = (0, 0);
    for _ in 0..40 {
        let rules: Vec<Rule> = (0..8).map(|_| random.named()).collect();
        let mut old = random_site(&mut random, rules, Enforcement::Default);
        for (endpoint, _) in &mut old.endpoints {
            Arc::make_mut(endpoint).ports.clear();
        }
        let (mut state, mut fake) = (State::new(SIZES, SALT), Fake::new());
        state.plan(old.clone()).expect("room").iter().for_each(|op| fake.apply(op));
        for _ in 0..12 {
            state.release();
            let mut new = old.clone();
            let n = random.below(new.endpoints.len());
            match random.below(4) {
                0 if new.endpoints.len() > 4 => drop(new.endpoints.remove(n)),
                1 => {
                    let spare =
                        (0..12).find(|n| !new.endpoints.iter().any(|(_, i)| *i == Some(n + 1)));
                    let Some(spare) = spare else { continue };
                    let address = address_of(spare as usize);
                    let labels = random.labels();
                    let one = endpoint(&spare.to_string(), labels, &address);
                    new.endpoints.push((one, Some(spare + 1)));
                }
                _ => Arc::make_mut(&mut new.endpoints[n].0).labels = random.labels(),
            }
            let ops = state.plan(new.clone()).expect("room");
            small += usize::from(ops.len() < 12);
            let questions: Vec<Question> =
                (0..60).map(|_| Question::random(&mut random, 12)).collect();
            let at = |wanted: &Wanted, q: &Question| {
                let own = |(_, i): &(Arc<Endpoint>, Option<u32>)| *i == Some(q.subject as u32 + 1);
                wanted.endpoints.iter().position(own)
            };
            for op in &ops {
                fake.apply(op);
                steps += 1;
                for q in &questions {
                    let (Some(a), Some(b)) = (at(&old, q), at(&new, q)) else { continue };
                    let who = |w: &Wanted| {
                        w.endpoints.iter().find(|(e, _)| e.addresses.contains(&q.peer)).cloned()
                    };
                    if old.endpoints[a] != new.endpoints[b] || who(&old) != who(&new) {
                        continue;
                    }
                    let want = Question { subject: b, ..*q }.by_rules(&new);
                    let before = Question { subject: a, ..*q }.by_rules(&old);
                    // Who is in a group may have changed its labels to those of the peer.
                    if before.passes() != want.passes() {
                        continue;
                    }
                    let (passes, _) = q.by_tables(&fake).expect("attached");
                    assert_eq!(passes, want.passes(), "after {op:?}");
                }
            }
            for q in &questions {
                let Some(b) = at(&new, q) else {
                    assert!(q.by_tables(&fake).is_none(), "an interface that is nobody's");
                    continue;
                };
                let want = Question { subject: b, ..*q }.by_rules(&new);
                let (passes, _) = q.by_tables(&fake).expect("attached");
                assert_eq!(passes, want.passes(), "in force");
            }
            for _ in 0..10 {
                let mut of_host = Question::random(&mut random, 12);
                of_host.subject = HOST_AT as usize;
                let (passes, _) = of_host.by_tables(&fake).expect("attached");
                assert_eq!(passes, of_host.by_rules(&new).passes(), "on the host");
            }
            old = new;
        }
        state.plan(Wanted::default()).expect("room");
        state.release();
        assert_eq!(state.image().used(), [0, 0, 0, 0]);
    }
    assert!(small > 100 && steps > 500, "{small} {steps}");
}

#[test]
fn what_goes_comes_back_to_the_tables() {
    let mut random = Random(8);
    let mut state = State::new(SIZES, SALT);
    for _ in 0..200 {
        let labels: Vec<Labels> = (0..random.below(20)).map(|_| random.labels()).collect();
        let rules: Vec<Rule> = (0..random.below(10)).map(|_| random.named()).collect();
        state.plan(wanted(&labels, rules, Enforcement::Default)).expect("room");
        state.release();
    }
    state.plan(Wanted::default()).expect("room");
    state.release();
    assert_eq!(state.image().used(), [0, 0, 0, 0]);
    assert_eq!(state.plan(Wanted::default()).expect("room"), []);
}

#[test]
fn one_rule_more_touches_what_it_is_about() {
    let labels: Vec<Labels> = (0..20).map(|n| id(&format!("app{n}"))).collect();
    let rules = import(Path::new("l3.json"), super::PUBLISHED).expect("rules");
    let mut state = State::new(SIZES, SALT);
    state.plan(wanted(&labels, rules.clone(), Enforcement::Default)).expect("room");
    let more = super::PUBLISHED.replace("app1", "app7").replace("l3-rule", "other");
    let mut both = import(Path::new("l3.json"), &more).expect("rules");
    both.extend(rules);
    let ops = state.plan(wanted(&labels, both, Enforcement::Default)).expect("room");
    // Its counters, its entries, its row, app7's interface; ports are classed as those of the other rule.
    let [Op::Rule(1, _), Op::Entries(..), Op::Policy(..), Op::Interface(8, _)] = ops[..] else {
        panic!("{ops:?}");
    };
}

/// `app1` lets `app2` in on TCP 80; both are otherwise open. Interface 1 is `app1`'s.
fn published() -> (Fake, IpAddr, IpAddr, IpAddr) {
    let labels = [id("app1"), id("app2"), id("app3")];
    let rules = import(Path::new("l3.json"), super::PUBLISHED).expect("rules");
    let mut state = State::new(SIZES, SALT);
    let mut fake = Fake::new();
    let ops = state.plan(wanted(&labels, rules, Enforcement::Default)).expect("room");
    ops.iter().for_each(|op| fake.apply(op));
    let [a, b, c] = [0, 1, 2].map(|n| address_of(n).parse().expect("an address"));
    (fake, a, b, c)
}

fn decide(fake: &Fake, way: Way, head: &Head) -> Reason {
    let Decision { reason, .. } = policy::decide(fake, 1, way, *head, &[][..]);
    reason
}

#[test]
fn replies_pass_and_nothing_else_does() {
    let (mut fake, app1, app2, app3) = published();
    let tcp = |src, dst, from, to, opening| head(src, dst, 6, from, to, opening);
    let into = |fake: &Fake, head: &Head| decide(fake, Way::In, head);
    let out = |fake: &Fake, head: &Head| decide(fake, Way::Out, head);
    assert_eq!(into(&fake, &tcp(app2, app1, 4000, 80, true)), Reason::PolicyAllowed);
    assert_eq!(out(&fake, &tcp(app1, app2, 80, 4000, false)), Reason::PolicyOpen);
    assert_eq!(into(&fake, &tcp(app3, app1, 4000, 80, true)), Reason::PolicyDefaultDeny);

    // What app1 opens is answered, from the same port to the same port alone.
    assert_eq!(into(&fake, &tcp(app3, app1, 443, 5000, false)), Reason::PolicyDefaultDeny);
    assert_eq!(out(&fake, &tcp(app1, app3, 5000, 443, true)), Reason::PolicyOpen);
    assert_eq!(into(&fake, &tcp(app3, app1, 443, 5000, false)), Reason::PolicyReply);
    assert_eq!(into(&fake, &tcp(app3, app1, 443, 5001, false)), Reason::PolicyDefaultDeny);
    assert_eq!(into(&fake, &tcp(app3, app1, 443, 5000, true)), Reason::PolicyDefaultDeny);

    // app1's answers to app2 are nothing that app2 could reply to once the rule has gone.
    fake.interfaces.insert(9, fake.interfaces[&1]);
    let udp = head(app1, app3, 17, 53, 6000, false);
    assert_eq!(out(&fake, &udp), Reason::PolicyOpen);
    assert_eq!(into(&fake, &head(app3, app1, 17, 6000, 53, false)), Reason::PolicyReply);
    fake.now += abi::limits::policy::IDLE_NS;
    let late = into(&fake, &head(app3, app1, 17, 6000, 53, false));
    assert_eq!(late, Reason::PolicyDefaultDeny, "too late");

    // A TCP connection that was answered is remembered for longer.
    assert_eq!(into(&fake, &tcp(app3, app1, 443, 5000, false)), Reason::PolicyReply);
    fake.now += abi::limits::policy::IDLE_TCP_NS;
    assert_eq!(into(&fake, &tcp(app3, app1, 443, 5000, false)), Reason::PolicyDefaultDeny);
}

#[test]
fn a_connection_ends_with_the_rule_that_allowed_it() {
    let labels = [id("app1"), id("app2")];
    let text = r#"[{"endpointSelector": {"matchLabels": {"id": "app1"}},
        "ingress": [{}], "egress": [{"toEndpoints": [{"matchLabels": {"id": "app2"}}]}]}]"#;
    let rules = import(Path::new("rules.json"), text).expect("rules");
    let mut state = State::new(SIZES, SALT);
    let mut fake = Fake::new();
    let ops = state.plan(wanted(&labels, rules, Enforcement::Default)).expect("room");
    ops.iter().for_each(|op| fake.apply(op));
    let [app1, app2] = [0, 1].map(|n| address_of(n).parse().expect("an address"));
    let reply = head(app2, app1, 6, 443, 5000, false);
    assert_eq!(
        decide(&fake, Way::Out, &head(app1, app2, 6, 5000, 443, true)),
        Reason::PolicyAllowed
    );
    assert_eq!(decide(&fake, Way::In, &reply), Reason::PolicyReply);
    let rules = import(Path::new("rules.json"), &text.replace("app2", "app9")).expect("rules");
    let ops = state.plan(wanted(&labels, rules, Enforcement::Default)).expect("room");
    ops.iter().for_each(|op| fake.apply(op));
    assert_eq!(decide(&fake, Way::In, &reply), Reason::PolicyDefaultDeny);
}

#[test]
fn a_connection_that_was_answered_is_kept_where_that_is_wanted() {
    let (labels, [app1, app2]) = ([id("app1"), id("app2")], [0, 1].map(address_of));
    let [app1, app2]: [IpAddr; 2] = [app1, app2].map(|text| text.parse().expect("an address"));
    let rules = |text: &str| import(Path::new("rules.json"), text).expect("rules");
    let mut state = State::new(SIZES, SALT);
    let mut fake = Fake::new();
    let mut put = |fake: &mut Fake, text: &str| {
        let own = wanted(&labels, rules(text), Enforcement::Default);
        let ops = state.plan(Wanted { established: Established::Keep, ..own }).expect("room");
        ops.iter().for_each(|op| fake.apply(op));
    };
    put(&mut fake, super::PUBLISHED);
    let into =
        |fake: &Fake, from, opening| decide(fake, Way::In, &head(app2, app1, 6, from, 80, opening));
    let out = |fake: &Fake, to| decide(fake, Way::Out, &head(app1, app2, 6, 80, to, false));
    assert_eq!((into(&fake, 1, true), out(&fake, 1)), (Reason::PolicyAllowed, Reason::PolicyOpen));
    assert_eq!(into(&fake, 2, true), Reason::PolicyAllowed, "and never answered");
    put(&mut fake, &super::PUBLISHED.replace("app2", "app9"));
    assert_eq!((into(&fake, 1, false), out(&fake, 1)), (Reason::PolicyHeld, Reason::PolicyOpen));
    assert_eq!(into(&fake, 2, false), Reason::PolicyDefaultDeny);
    assert_eq!(into(&fake, 1, true), Reason::PolicyDefaultDeny, "a new one");
    assert_eq!(into(&fake, 3, false), Reason::PolicyDefaultDeny, "of no connection");
    fake.now += abi::limits::policy::IDLE_TCP_NS;
    assert_eq!(into(&fake, 1, false), Reason::PolicyDefaultDeny, "idle for too long");
}

#[test]
fn an_endpoint_may_be_in_audit_and_enforce_by_itself() {
    let labels = [id("app1"), id("app2")];
    let rules = import(Path::new("l3.json"), super::PUBLISHED).expect("rules");
    let mut wanted = wanted(&labels, rules, Enforcement::Default);
    let app3 = "10.9.9.9".parse().expect("an address");
    let app1 = address_of(0).parse().expect("an address");
    for (audit, enforcement, reason) in [
        (false, None, Reason::PolicyDefaultDeny),
        (true, None, Reason::PolicyAudit),
        (false, Some(Enforcement::Never), Reason::PolicyOpen),
        (true, Some(Enforcement::Always), Reason::PolicyAudit),
    ] {
        let endpoint = Endpoint { audit, enforcement, ..(*wanted.endpoints[0].0).clone() };
        wanted.endpoints[0].0 = Arc::new(endpoint);
        let mut state = State::new(SIZES, SALT);
        let mut fake = Fake::new();
        let ops = state.plan(wanted.clone()).expect("room");
        ops.iter().for_each(|op| fake.apply(op));
        assert_eq!(decide(&fake, Way::In, &head(app3, app1, 6, 9, 9, true)), reason);
    }
}

#[test]
fn echo_replies_fragments_and_discovery() {
    let (fake, app1, _, app3) = published();
    let echo = |src, dst, kind: u16| {
        let mut head = head(src, dst, 1, 0, kind, false);
        head.ports = 0x1234_1234;
        head
    };
    assert_eq!(decide(&fake, Way::In, &echo(app3, app1, 0)), Reason::PolicyDefaultDeny);
    assert_eq!(decide(&fake, Way::Out, &echo(app1, app3, 8)), Reason::PolicyOpen);
    assert_eq!(decide(&fake, Way::In, &echo(app3, app1, 0)), Reason::PolicyReply);
    assert_eq!(decide(&fake, Way::In, &echo(app3, app1, 8)), Reason::PolicyDefaultDeny);

    let part = |part, ports| Head { part, ports, id: 77, ..head(app3, app1, 17, 0, 0, false) };
    assert_eq!(decide(&fake, Way::In, &part(Part::Later, 0)), Reason::PolicyFragment);
    assert_eq!(decide(&fake, Way::In, &part(Part::First, 7)), Reason::PolicyDefaultDeny);
    assert_eq!(decide(&fake, Way::In, &part(Part::Later, 0)), Reason::PolicyDefaultDeny);
    let solicitation = head(app3, app1, 58, 0, 135, false);
    assert_eq!(decide(&fake, Way::In, &solicitation), Reason::PolicyNeighbour);
    assert_eq!(policy::identity(&fake, Addr::from(IpAddr::from([192, 0, 2, 1]))), WORLD_V4);
    let stranger = policy::decide(&fake, 50, Way::In, solicitation, &[][..]);
    assert_eq!(stranger.reason, Reason::NoEndpoint);
}
