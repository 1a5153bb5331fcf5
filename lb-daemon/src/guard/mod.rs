//! What a blocklist should not cover: the way to this machine and the machines that it needs.
//!
//! Gateways, name servers, addresses of this machine, whoever is logged in over SSH, the session that asks, and
//! backends. A change that would drop packets from one of them is refused unless it says that it is meant.
//! [`around`] reads what there is; the rest is pure.

mod around;
pub mod host;
pub mod standing;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use config::{
    PrefixSet,
    model::{ListAction, Prefilter, PrefixList, Scope, ScopeProtocol, Service},
};
use ipnet::IpNet;

use crate::{links::Links, plan::prefixes::lookup, view::View};

/// How long what was read of the surroundings is good: bans should not wait for it each time.
const FRESH: Duration = Duration::from_secs(10);
/// Where an SSH server listens, if nobody has told it otherwise.
const SSH: u16 = 22;
/// Covered addresses that are listed.
pub const MAX_LISTED: usize = 20;

/// Why an address should not be covered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It is where the caller is logged in from.
    Session,
    /// Somebody is logged in from there over SSH.
    Ssh,
    /// It is connected to the API at this port.
    Client(u16),
    /// A route leads over it.
    Gateway,
    /// `/etc/resolv.conf` names it.
    NameServer,
    /// It is this machine's own.
    Local,
    /// It is a backend of this service.
    Backend(String),
}

impl Role {
    /// Whether a list that drops these packets of an address may cut off one that has this role. What is not known
    /// counts as yes: the interface that its packets come in by, and the ports of a session.
    fn is_cut_off_by(&self, scope: &Scope) -> bool {
        let Scope { interfaces: _, destination, protocol, ports } = scope;
        if *destination {
            // What comes in goes to addresses of this machine, and through it to backends.
            return matches!(self, Self::Local | Self::Backend(_));
        }
        let any_of = |known: &[ScopeProtocol]| protocol.is_none_or(|own| known.contains(&own));
        let to = |low, high| ports.is_empty() || ports.iter().any(|(a, b)| *a <= high && *b >= low);
        match self {
            Self::Session => any_of(&[ScopeProtocol::Tcp]),
            Self::Ssh => any_of(&[ScopeProtocol::Tcp]) && to(SSH, SSH),
            Self::Client(port) => any_of(&[ScopeProtocol::Tcp]) && to(*port, *port),
            // Answers, to ports that nobody has chosen.
            Self::NameServer => {
                any_of(&[ScopeProtocol::Udp, ScopeProtocol::Tcp]) && to(1024, u16::MAX)
            }
            Self::Gateway | Self::Local | Self::Backend(_) => true,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session => f.write_str("your own session"),
            Self::Ssh => f.write_str("somebody logged in over SSH"),
            Self::Client(_) => f.write_str("a client of the API"),
            Self::Gateway => f.write_str("a gateway"),
            Self::NameServer => f.write_str("a name server"),
            Self::Local => f.write_str("an address of this machine"),
            Self::Backend(service) => write!(f, "a backend of {service}"),
        }
    }
}

/// Addresses that should not be covered, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protected(BTreeMap<IpAddr, BTreeSet<Role>>);

/// An address that a list covers and should not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covered {
    /// The address.
    pub address: IpAddr,
    /// Why it should not be.
    pub roles: Vec<Role>,
    /// The longest prefix that covers it.
    pub prefix: IpNet,
    /// The list of that prefix.
    pub list: String,
}

impl fmt::Display for Covered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, roles, prefix, list } = self;
        let roles: Vec<String> = roles.iter().map(ToString::to_string).collect();
        let roles = roles.join(", ");
        write!(f, "{address} ({roles}), which is in {prefix} of the list \"{list}\"")
    }
}

impl Protected {
    /// One more. Loopback addresses and nobody's never reach an interface.
    pub fn add(&mut self, address: IpAddr, role: Role) {
        let address = address.to_canonical();
        if !address.is_loopback() && !address.is_unspecified() {
            self.0.entry(address).or_default().insert(role);
        }
    }

    /// The backends of services.
    pub fn add_backends<'a>(&mut self, services: impl Iterator<Item = &'a Arc<Service>>) {
        for service in services {
            for backend in service.own_backends() {
                self.add(backend.address, Role::Backend(service.name.clone()));
            }
        }
    }

    /// The addresses that a set covers, each with its longest prefix, without those that are allowed.
    fn within(&self, set: &PrefixSet, allow: &PrefixSet) -> BTreeMap<IpAddr, IpNet> {
        let mut found = BTreeMap::new();
        let mut note = |address: IpAddr| {
            if allow.longest(address, 128).is_none()
                && let Some(prefix) = set.longest(address, 128)
            {
                found.insert(address, prefix);
            }
        };
        if set.len() < self.0.len() {
            for net in set.iter() {
                self.0
                    .range(net.network()..=net.broadcast())
                    .for_each(|(address, _)| note(*address));
            }
        } else {
            self.0.keys().for_each(|address| note(*address));
        }
        found
    }

    /// The addresses that these prefixes would cover on a list of this scope.
    #[must_use]
    pub fn covered_by(
        &self,
        list: &str,
        scope: &Scope,
        set: &PrefixSet,
        allow: &PrefixSet,
    ) -> Vec<Covered> {
        let covered = |(address, prefix): (IpAddr, IpNet)| {
            let roles = self.0.get(&address).into_iter().flatten();
            let roles: Vec<Role> =
                roles.filter(|role| role.is_cut_off_by(scope)).cloned().collect();
            let list = list.to_owned();
            (!roles.is_empty()).then_some(Covered { address, roles, prefix, list })
        };
        self.within(set, allow).into_iter().filter_map(covered).collect()
    }

    /// The addresses whose packets `after` drops and `before` did not, but for lists that force it.
    #[must_use]
    pub fn cut_off(&self, before: &Prefilter, after: &Prefilter) -> Vec<Covered> {
        let same_allow = before.allow == after.allow;
        let is_old = |list: &Arc<PrefixList>| before.lists.iter().any(|old| Arc::ptr_eq(old, list));
        let mut covered = Vec::new();
        for list in &after.lists {
            if list.action != ListAction::Drop || list.force || (same_allow && is_old(list)) {
                continue;
            }
            covered.extend(self.covered_by(&list.name, &list.scope, &list.prefixes, &after.allow));
        }
        covered.retain(|covered| !is_dropped(before, covered.address));
        covered
    }
}

/// Whether packets from there are dropped for a list.
fn is_dropped(prefilter: &Prefilter, address: IpAddr) -> bool {
    let verdict = lookup(prefilter, address);
    let decides = verdict.hits.iter().find(|hit| Some(hit.list) == verdict.decides);
    decides.is_some_and(|hit| hit.action == ListAction::Drop)
}

/// Covered addresses in one text: the first of them, and how many more there are.
#[must_use]
pub fn listed(covered: &[Covered]) -> String {
    let first: Vec<String> = covered.iter().take(MAX_LISTED).map(ToString::to_string).collect();
    let mut text = first.join("; ");
    if covered.len() > MAX_LISTED {
        text.push_str(&format!("; and {} more", covered.len() - MAX_LISTED));
    }
    text
}

/// Knows what should not be covered. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Guard(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    links: Option<Links>,
    /// Ports that the API listens on.
    api: Vec<u16>,
    around: Mutex<Option<(Instant, Arc<Protected>)>>,
    services: Mutex<Option<(Key, Arc<Protected>)>>,
}

/// Changes with every change of a service: how many there are, and their latest version.
type Key = (usize, u64);

impl Guard {
    /// A guard of the machine with these interfaces, whose API listens on these ports of TCP.
    #[must_use]
    pub fn new(links: Links, api: Vec<u16>) -> Self {
        Self(Arc::new(Inner { links: Some(links), api, ..Inner::default() }))
    }

    /// What there is around this machine; at most some seconds old. Reads files.
    #[must_use]
    pub fn around(&self) -> Arc<Protected> {
        let mut cached = self.0.around.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, around)) = &*cached
            && at.elapsed() < FRESH
        {
            return Arc::clone(around);
        }
        // Without links: a guard of a test, which has no surroundings.
        let around =
            self.0.links.as_ref().map(|links| around::read(&links.local_addresses(), &self.0.api));
        let around = Arc::new(around.unwrap_or_default());
        *cached = Some((Instant::now(), Arc::clone(&around)));
        around
    }

    /// The same, as it is now: whoever has come since counts.
    #[must_use]
    pub fn around_now(&self) -> Arc<Protected> {
        *self.0.around.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.around()
    }

    /// The addresses that these prefixes would cover on a list, of all there is and of the caller's
    /// session. Those that are dropped already are not named.
    #[must_use]
    pub fn covered(
        &self,
        view: &View,
        list: &str,
        set: &PrefixSet,
        session: Option<IpAddr>,
    ) -> Vec<Covered> {
        let own_scope = view.prefilter.lists.iter().find(|known| known.name == list);
        let scope = own_scope.map(|known| known.scope.clone()).unwrap_or_default();
        self.covered_within(view, (list, &scope), set, session)
    }

    /// The same, on a list of this scope.
    #[must_use]
    pub fn covered_within(
        &self,
        view: &View,
        (list, scope): (&str, &Scope),
        set: &PrefixSet,
        session: Option<IpAddr>,
    ) -> Vec<Covered> {
        let mut own = Protected::default();
        if let Some(session) = session {
            own.add(session, Role::Session);
        }
        let allow = &view.prefilter.allow;
        let all = [&*self.around(), &*self.backends(view), &own];
        let all =
            all.into_iter().flat_map(|protected| protected.covered_by(list, scope, set, allow));
        let mut covered: BTreeMap<IpAddr, Covered> = BTreeMap::new();
        for mut one in all {
            match covered.get_mut(&one.address) {
                Some(before) => before.roles.append(&mut one.roles),
                None => drop(covered.insert(one.address, one)),
            }
        }
        covered.retain(|address, _| !is_dropped(&view.prefilter, *address));
        covered.into_values().collect()
    }

    fn backends(&self, view: &View) -> Arc<Protected> {
        let latest = view.services.iter().map(|service| service.version).max();
        let key = (view.services.len(), latest.unwrap_or(0));
        let mut cached = self.0.services.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, backends)) = &*cached
            && *of == key
        {
            return Arc::clone(backends);
        }
        let mut backends = Protected::default();
        backends.add_backends(view.services.iter().map(|service| &service.spec));
        let backends = Arc::new(backends);
        *cached = Some((key, Arc::clone(&backends)));
        backends
    }
}

#[cfg(test)]
mod tests {
    use config::model::Source;

    use super::*;

    fn set(nets: &[&str]) -> PrefixSet {
        nets.iter().map(|net| net.parse::<IpNet>().unwrap()).collect()
    }

    fn list(name: &str, action: ListAction, force: bool, nets: &[&str]) -> Arc<PrefixList> {
        Arc::new(PrefixList { action, force, ..PrefixList::new(name, Source::Api, set(nets)) })
    }

    fn protected() -> Protected {
        let mut protected = Protected::default();
        protected.add("192.0.2.1".parse().unwrap(), Role::Gateway);
        protected.add("::ffff:192.0.2.1".parse().unwrap(), Role::NameServer);
        protected.add("2001:db8::1".parse().unwrap(), Role::Local);
        protected.add("127.0.0.53".parse().unwrap(), Role::NameServer);
        protected
    }

    fn names(covered: &[Covered]) -> Vec<String> {
        covered.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn prefixes_and_addresses_are_met_both_ways() {
        let gateway =
            "192.0.2.1 (a gateway, a name server), which is in 192.0.2.0/28 of the list \"l\"";
        // Fewer prefixes than addresses, and more.
        let few = set(&["192.0.2.0/28"]);
        assert_eq!(
            names(&protected().covered_by("l", &Scope::default(), &few, &set(&[]))),
            [gateway]
        );
        let many =
            set(&["192.0.2.0/24", "192.0.2.0/28", "198.51.100.0/24", "127.0.0.0/8", "::1/128"]);
        assert_eq!(
            names(&protected().covered_by("l", &Scope::default(), &many, &set(&[]))),
            [gateway]
        );
        let all = set(&["0.0.0.0/0", "::/0"]);
        assert_eq!(protected().covered_by("l", &Scope::default(), &all, &set(&[])).len(), 2);
        assert_eq!(
            protected().covered_by("l", &Scope::default(), &all, &set(&["192.0.0.0/8"])).len(),
            1
        );
        assert!(
            protected()
                .covered_by("l", &Scope::default(), &set(&["192.0.2.2/32"]), &set(&[]))
                .is_empty()
        );
    }

    #[test]
    fn a_list_of_some_packets_cuts_off_whom_these_are_of() {
        let scope = |protocol, ports: &[(u16, u16)], destination| Scope {
            protocol,
            ports: ports.to_vec(),
            destination,
            ..Scope::default()
        };
        let of = |role: Role, scope: &Scope| {
            let mut protected = Protected::default();
            protected.add("192.0.2.1".parse().unwrap(), role);
            !protected.covered_by("l", scope, &set(&["0.0.0.0/0"]), &set(&[])).is_empty()
        };
        let (tcp, udp) = (Some(ScopeProtocol::Tcp), Some(ScopeProtocol::Udp));
        let mail = scope(tcp, &[(25, 25)], false);
        assert!(!of(Role::Ssh, &mail) && !of(Role::NameServer, &mail) && of(Role::Session, &mail));
        assert!(of(Role::Ssh, &scope(tcp, &[(80, 80), (20, 30)], false)));
        assert!(
            !of(Role::Ssh, &scope(udp, &[], false)) && !of(Role::Session, &scope(udp, &[], false))
        );
        assert!(of(Role::NameServer, &scope(udp, &[(1, 65_535)], false)));
        assert!(!of(Role::NameServer, &scope(Some(ScopeProtocol::Icmp), &[], false)));
        let to = scope(None, &[], true);
        assert!(of(Role::Local, &to) && of(Role::Backend("web".to_owned()), &to));
        assert!(!of(Role::Gateway, &to) && !of(Role::Ssh, &to) && !of(Role::NameServer, &to));
    }

    #[test]
    fn only_what_a_change_cuts_off_counts() {
        let (drop, audit) = (ListAction::Drop, ListAction::Audit);
        let of = |lists: Vec<Arc<PrefixList>>, allow: &[&str]| Prefilter {
            lists,
            allow: set(allow),
            ..Prefilter::default()
        };
        let cut = |before: &Prefilter, after: &Prefilter| protected().cut_off(before, after).len();
        let none = of(vec![], &[]);
        let wide = list("a", drop, false, &["192.0.2.0/24"]);
        let dropped = of(vec![wide.clone()], &[]);
        assert_eq!(cut(&none, &dropped), 1);
        assert_eq!(cut(&none, &of(vec![list("a", audit, false, &["192.0.2.0/24"])], &[])), 0);
        assert_eq!(cut(&none, &of(vec![list("a", drop, true, &["192.0.2.0/24"])], &[])), 0);
        assert_eq!(cut(&none, &of(vec![wide.clone()], &["192.0.2.1/32"])), 0);
        // It was dropped before: nothing gets worse, and the list can be changed otherwise.
        let wider = of(vec![list("a", drop, false, &["192.0.2.0/23"])], &[]);
        assert_eq!(cut(&dropped, &wider), 0);
        // What allowed it is gone.
        assert_eq!(cut(&of(vec![wide.clone()], &["192.0.2.1/32"]), &dropped), 1);
    }
}
