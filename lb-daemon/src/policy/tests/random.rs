//! Random rules, labels and addresses that meet often: for tests here, and for those that need the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use config::policy::{
    Clause, Condition, Direction, Entity, Group, Labels, NamePattern, NamedPort, Peer, PortName,
    Ports, Requirement, Rule, Selector,
};
use ipnet::IpNet;

/// SplitMix64: the same rules in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    pub(crate) fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn value(&mut self) -> String {
        self.one(&["a", "b", "c"]).to_owned()
    }

    pub(crate) fn key(&mut self) -> String {
        self.one(&["id", "tier", "env"]).to_owned()
    }

    /// One in eight is a reserved identity.
    pub(crate) fn labels(&mut self) -> Labels {
        if self.chance(12) {
            let name = self.one(&["init", "health", "unmanaged"]);
            return [(format!("reserved:{name}"), String::new())].into();
        }
        (0..self.below(4)).map(|_| (self.key(), self.value())).collect()
    }

    pub(crate) fn selector(&mut self) -> Selector {
        let conditions = (0..self.below(3)).map(|_| match self.below(5) {
            0 => Condition::NotIn(self.key(), vec![self.value()]),
            1 => Condition::Exists(self.key()),
            2 => Condition::DoesNotExist(self.key()),
            _ => Condition::In(self.key(), vec![self.value(), self.value()]),
        });
        Selector { conditions: conditions.collect() }
    }

    pub(crate) fn address(&mut self) -> IpAddr {
        if self.chance(20) {
            let text = format!("2001:db8:{}::{}", self.below(3), self.below(3));
            return text.parse().expect("an address");
        }
        let byte = |n: usize| u8::try_from(n).expect("small");
        Ipv4Addr::new(10, byte(self.below(3)), byte(self.below(3)), byte(self.below(6))).into()
    }

    pub(crate) fn net(&mut self) -> IpNet {
        let address = self.address();
        let length = match address {
            IpAddr::V4(_) => self.one(&[0, 8, 15, 16, 24, 30, 31, 32]),
            IpAddr::V6(_) => self.one(&[0, 32, 47, 48, 128]),
        };
        IpNet::new(address, length).expect("a length").trunc()
    }

    pub(crate) fn peer(&mut self) -> Peer {
        match self.below(9) {
            0 => Peer::Any,
            5 => Peer::Group(self.group()),
            1 | 2 => {
                let net = self.net();
                let except = (0..self.below(3)).map(|_| self.net());
                Peer::Prefix { net, except: except.filter(|part| net.contains(part)).collect() }
            }
            3 => Peer::Entity(self.one(&[
                Entity::World,
                Entity::WorldIpv4,
                Entity::WorldIpv6,
                Entity::Host,
                Entity::RemoteNode,
                Entity::Cluster,
                Entity::Init,
                Entity::Health,
                Entity::Unmanaged,
            ])),
            4 => {
                let name = self.one(&[
                    "reserved:host",
                    "reserved:world",
                    "reserved:world-ipv6",
                    "reserved:init",
                ]);
                let conditions = vec![Condition::Exists(name.to_owned())];
                Peer::Endpoints(Selector { conditions })
            }
            _ => Peer::Endpoints(self.selector()),
        }
    }

    pub(crate) fn ports(&mut self) -> Ports {
        let protocol = self.one(&[1, 6, 6, 6, 17, 17, 58, 132]);
        let (a, b) = (self.port(), self.port());
        let (first, last) = if self.chance(50) { (a, a) } else { (a.min(b), a.max(b)) };
        Ports { protocol, first, last }
    }

    pub(crate) fn port(&mut self) -> u16 {
        self.one(&[0, 1, 2, 8, 79, 80, 81, 443, 8000, 8080, 65534, 65535])
    }

    pub(crate) fn group(&mut self) -> Group {
        if self.chance(50) {
            let name = self.one(&["a.org", "*.org"]);
            let names = NamePattern::new(name, name.contains('*'));
            return Group::Names(names.expect("a name"));
        }
        let name = self.one(&["s0", "s1", "s2"]).to_owned();
        Group::Service { namespace: None, name }
    }

    /// Of endpoints (172.16.0), of the host (172.31.0.1), and of nobody.
    pub(crate) fn groups(&mut self) -> BTreeMap<Group, BTreeSet<IpAddr>> {
        let mut all = BTreeMap::new();
        for _ in 0..3 {
            let mut members = BTreeSet::new();
            for _ in 0..self.below(5) {
                members.insert(match self.below(6) {
                    0 => IpAddr::from([172, 31, 0, 1]),
                    1 | 2 => IpAddr::from([172, 16, 0, self.below(12) as u8]),
                    _ => self.address(),
                });
            }
            all.insert(self.group(), members);
        }
        all
    }

    fn port_name(&mut self) -> String {
        self.one(&["http", "dns", "web"]).to_owned()
    }

    /// Of an endpoint.
    pub(crate) fn port_names(&mut self) -> Vec<PortName> {
        let one = |random: &mut Self| PortName {
            name: random.port_name(),
            protocol: random.one(&[6, 17]),
            port: random.port(),
        };
        (0..self.below(4)).map(|_| one(self)).collect()
    }

    fn clause(&mut self) -> Clause {
        let mut clause = Clause {
            direction: self.one(&[Direction::Ingress, Direction::Egress]),
            deny: self.chance(25),
            peers: (0..self.below(3)).map(|_| self.peer()).collect(),
            ports: self.chance(70).then(|| (0..self.below(4)).map(|_| self.ports()).collect()),
            named: Vec::new(),
        };
        if clause.ports.is_some() {
            let one = |random: &mut Self| NamedPort {
                name: random.port_name(),
                protocol: random.one(&[6, 17]),
            };
            clause.named = (0..self.below(3)).map(|_| one(self)).collect();
        }
        clause
    }

    fn requirement(&mut self) -> Requirement {
        Requirement {
            direction: self.one(&[Direction::Ingress, Direction::Egress]),
            deny: self.chance(25),
            selector: self.selector(),
        }
    }

    /// A rule with a name that few others have.
    pub(crate) fn named(&mut self) -> Rule {
        Rule { name: format!("rule-{}", self.below(1000)), ..self.rule() }
    }

    pub(crate) fn rule(&mut self) -> Rule {
        let clauses = (0..self.below(4)).map(|_| self.clause());
        Rule {
            name: String::new(),
            source: config::model::Source::Api,
            clauses: clauses.collect(),
            requires: (0..usize::from(self.chance(15))).map(|_| self.requirement()).collect(),
            node: self.chance(25),
            subject: self.selector(),
            ingress_default_deny: self.chance(60),
            egress_default_deny: self.chance(60),
            audit: self.chance(35),
        }
    }
}
