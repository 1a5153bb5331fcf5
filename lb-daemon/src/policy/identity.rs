//! Numbers for sets of labels, and the number of an address.
//!
//! Whoever has the same labels has the same number. Reserved identities have the numbers Cilium
//! gives them. The number of an endpoint's labels comes from their hash, so that it is the same after
//! a restart and on every node; two sets of labels with the same hash get neighbouring numbers. A
//! prefix that rules name has a number too, and carries the labels of all wider prefixes that are
//! named, so that a rule on a wide prefix holds inside a narrow one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hasher,
    net::IpAddr,
};

use config::policy::{CIDR, Entity, Labels, Peer, RESERVED, Rule};
use ipnet::IpNet;
use siphasher::sip::SipHasher24;

/// The number of a set of labels. 0 is nobody's.
pub type Identity = u32;

/// Numbers of endpoints: from here up to [`FIRST_CIDR`].
pub const FIRST_ENDPOINT: Identity = 256;
/// Numbers of prefixes: from here up to twice this.
pub const FIRST_CIDR: Identity = abi::limits::policy::FIRST_CIDR;

/// Reserved identities, with their numbers and names.
const ENTITIES: [(Identity, &str); 8] = [
    (1, "host"),
    (2, "world"),
    (3, "unmanaged"),
    (4, "health"),
    (5, "init"),
    (6, "remote-node"),
    (9, "world-ipv4"),
    (10, "world-ipv6"),
];

/// The number of an entity; `Cluster` is a group of many and has none.
#[must_use]
pub const fn reserved(entity: Entity) -> Option<Identity> {
    match entity {
        Entity::Host => Some(1),
        Entity::World => Some(2),
        Entity::Unmanaged => Some(3),
        Entity::Health => Some(4),
        Entity::Init => Some(5),
        Entity::RemoteNode => Some(6),
        Entity::WorldIpv4 => Some(9),
        Entity::WorldIpv6 => Some(10),
        Entity::Cluster => None,
    }
}

/// All identities, and whose address is whose.
#[derive(Clone, Debug)]
pub struct Identities {
    labels: BTreeMap<Identity, Labels>,
    endpoints: BTreeMap<Labels, Identity>,
    prefixes: BTreeMap<IpNet, Identity>,
    addresses: HashMap<IpAddr, Identity>,
    /// Lengths of `prefixes`, longest first, for IPv4 and IPv6.
    lengths: [Vec<u8>; 2],
}

impl Default for Identities {
    fn default() -> Self {
        let mut labels: BTreeMap<Identity, Labels> =
            ENTITIES.iter().map(|(number, name)| (*number, reserved_labels(&[name]))).collect();
        labels.insert(9, reserved_labels(&["world", "world-ipv4"]));
        labels.insert(10, reserved_labels(&["world", "world-ipv6"]));
        Self {
            labels,
            endpoints: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            addresses: HashMap::new(),
            lengths: [Vec::new(), Vec::new()],
        }
    }
}

/// The number of labels that are those of a reserved identity, which an endpoint may be.
fn of_reserved(labels: &Labels) -> Option<Identity> {
    let [name] = labels.keys().map(|key| key.strip_prefix(RESERVED)).collect::<Vec<_>>()[..] else {
        return None;
    };
    ENTITIES.iter().find(|(_, own)| Some(*own) == name).map(|(number, _)| *number)
}

fn reserved_labels(names: &[&str]) -> Labels {
    names.iter().map(|name| (format!("{RESERVED}{name}"), String::new())).collect()
}

/// Numbers of one kind are used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all 16 million identities are in use; remove endpoints or prefixes")]
pub struct Exhausted;

impl Identities {
    /// Takes the place of all endpoints, nodes and prefixes. What stays keeps its number.
    ///
    /// `nodes` are addresses of this host and of other nodes, with their reserved identity. An address
    /// of several is the endpoint's, then the node's.
    ///
    /// # Errors
    /// When there are more identities than numbers; nothing is changed then.
    pub fn set<'e>(
        &mut self,
        endpoints: impl IntoIterator<Item = (&'e Labels, &'e [IpAddr])>,
        nodes: impl IntoIterator<Item = (IpAddr, Identity)>,
        rules: &[Rule],
    ) -> Result<(), Exhausted> {
        self.set_with(endpoints, nodes, &prefixes_of(rules))
    }

    /// The same, with these prefixes.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn set_with<'e>(
        &mut self,
        endpoints: impl IntoIterator<Item = (&'e Labels, &'e [IpAddr])>,
        nodes: impl IntoIterator<Item = (IpAddr, Identity)>,
        named: &BTreeSet<IpNet>,
    ) -> Result<(), Exhausted> {
        let mut addresses: HashMap<IpAddr, Identity> = nodes.into_iter().collect();
        let members: Vec<_> = endpoints.into_iter().collect();
        let all: BTreeSet<&Labels> = members.iter().map(|(labels, _)| *labels).collect();
        let (reserved, wanted): (BTreeSet<&Labels>, _) =
            all.into_iter().partition(|labels| of_reserved(labels).is_some());
        let mut endpoints =
            renumber(&self.endpoints, &wanted, FIRST_ENDPOINT, FIRST_CIDR, labels_text)?;
        endpoints.extend(reserved.iter().filter_map(|&l| Some((l.clone(), of_reserved(l)?))));
        for (labels, at) in members {
            let number = endpoints[labels];
            addresses.extend(at.iter().map(|address| (*address, number)));
        }
        let prefixes = renumber(
            &self.prefixes,
            &named.iter().collect(),
            FIRST_CIDR,
            2 * FIRST_CIDR,
            IpNet::to_string,
        )?;

        let mut fresh = Self { endpoints, addresses, ..Self::default() };
        for (labels, number) in &fresh.endpoints {
            fresh.labels.insert(*number, labels.clone());
        }
        for net in prefixes.keys() {
            fresh.lengths[usize::from(net.addr().is_ipv6())].push(net.prefix_len());
        }
        for lengths in &mut fresh.lengths {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        fresh.prefixes = prefixes;
        for (net, number) in &fresh.prefixes {
            let labels = fresh.prefix_labels(*net);
            fresh.labels.insert(*number, labels);
        }
        *self = fresh;
        Ok(())
    }

    /// The number of an endpoint's labels, and whether they are new here.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn add(&mut self, labels: &Labels) -> Result<(Identity, bool), Exhausted> {
        if let Some(number) = self.endpoints.get(labels) {
            return Ok((*number, false));
        }
        let number = match of_reserved(labels) {
            Some(number) => number,
            None => {
                let taken = |number: &Identity| self.labels.contains_key(number);
                let room = FIRST_CIDR - FIRST_ENDPOINT;
                if self.endpoints.len() >= room as usize {
                    return Err(Exhausted);
                }
                first_free(labels_text(labels).as_bytes(), FIRST_ENDPOINT, FIRST_CIDR, taken)
            }
        };
        self.endpoints.insert(labels.clone(), number);
        self.labels.insert(number, labels.clone());
        Ok((number, true))
    }

    /// Says whose an address is; `None`: nobody's.
    pub fn set_address(&mut self, address: IpAddr, identity: Option<Identity>) {
        match identity {
            Some(identity) => drop(self.addresses.insert(address, identity)),
            None => drop(self.addresses.remove(&address)),
        }
    }

    /// All identities with their labels, in the order of the numbers.
    pub fn iter(&self) -> impl Iterator<Item = (Identity, &Labels)> {
        self.labels.iter().map(|(number, labels)| (*number, labels))
    }

    /// The labels of an identity.
    #[must_use]
    pub fn labels(&self, identity: Identity) -> Option<&Labels> {
        self.labels.get(&identity)
    }

    /// The number of these labels of an endpoint.
    #[must_use]
    pub fn of_endpoint(&self, labels: &Labels) -> Option<Identity> {
        self.endpoints.get(labels).copied()
    }

    /// Whose address it is; some part of the world when it is nobody's.
    #[must_use]
    pub fn of_address(&self, address: IpAddr) -> Identity {
        if let Some(known) = self.addresses.get(&address) {
            return *known;
        }
        self.lengths[usize::from(address.is_ipv6())]
            .iter()
            .find_map(|length| {
                let net = IpNet::new(address, *length).ok()?.trunc();
                self.prefixes.get(&net).copied()
            })
            .unwrap_or(if address.is_ipv4() { 9 } else { 10 })
    }

    /// Prefixes that rules name, with their numbers.
    #[must_use]
    pub fn prefixes(&self) -> &BTreeMap<IpNet, Identity> {
        &self.prefixes
    }

    /// Addresses of endpoints and nodes, with their numbers.
    #[must_use]
    pub fn addresses(&self) -> &HashMap<IpAddr, Identity> {
        &self.addresses
    }

    /// A prefix's own label, those of the wider ones, and the world's.
    fn prefix_labels(&self, net: IpNet) -> Labels {
        let family = if net.addr().is_ipv4() { "world-ipv4" } else { "world-ipv6" };
        let mut labels = reserved_labels(&["world", family]);
        for length in &self.lengths[usize::from(net.addr().is_ipv6())] {
            if *length > net.prefix_len() {
                continue;
            }
            if let Ok(wider) = IpNet::new(net.addr(), *length)
                && self.prefixes.contains_key(&wider.trunc())
            {
                labels.insert(prefix_label(wider.trunc()), String::new());
            }
        }
        labels
    }
}

/// The label that stands for a prefix.
#[must_use]
pub fn prefix_label(net: IpNet) -> String {
    format!("{CIDR}{net}")
}

/// Prefixes that rules name, exceptions too.
pub(super) fn prefixes_of(rules: &[Rule]) -> BTreeSet<IpNet> {
    let peers = rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.peers);
    peers
        .filter_map(|peer| match peer {
            Peer::Prefix { net, except } => Some(except.iter().chain([net]).copied()),
            Peer::Any | Peer::Endpoints(_) | Peer::Entity(_) | Peer::Group(_) => None,
        })
        .flatten()
        .collect()
}

/// Labels as one text, which is hashed: the same on every machine and in every version.
fn labels_text(labels: &Labels) -> String {
    labels.iter().flat_map(|(key, value)| [key, "\0", value, "\0"]).collect()
}

/// Numbers in `first..end` for all that is wanted; what has one keeps it.
fn renumber<K: Ord + Clone>(
    old: &BTreeMap<K, Identity>,
    wanted: &BTreeSet<&K>,
    first: Identity,
    end: Identity,
    text: fn(&K) -> String,
) -> Result<BTreeMap<K, Identity>, Exhausted> {
    let room = end - first;
    if wanted.len() >= room as usize {
        return Err(Exhausted);
    }
    let mut numbers: BTreeMap<K, Identity> = BTreeMap::new();
    let mut used = BTreeSet::new();
    for key in wanted {
        if let Some(number) = old.get(*key) {
            numbers.insert((*key).clone(), *number);
            used.insert(*number);
        }
    }
    for key in wanted {
        if numbers.contains_key(*key) {
            continue;
        }
        let number = first_free(text(key).as_bytes(), first, end, |number| used.contains(number));
        used.insert(number);
        numbers.insert((*key).clone(), number);
    }
    Ok(numbers)
}

/// The first number in `first..end` that is not taken, from the hash of a text on.
fn first_free(
    text: &[u8],
    first: Identity,
    end: Identity,
    taken: impl Fn(&Identity) -> bool,
) -> Identity {
    let mut hasher = SipHasher24::new();
    hasher.write(text);
    let mut number = first + (hasher.finish() % u64::from(end - first)) as Identity;
    while taken(&number) {
        number = if number + 1 == end { first } else { number + 1 };
    }
    number
}
