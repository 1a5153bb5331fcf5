//! A set of prefixes, compact: 8 bytes for an IPv4 prefix, 17 for an IPv6 one.
//!
//! Kept in the order of addresses, and of lengths for one address, each prefix once; so that two sets
//! are compared, looked up in and compiled in one pass.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// An IPv4 prefix without host bits: its address in host byte order, then its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Net4(u64);

impl Net4 {
    /// The prefix of this length, at most 32, that holds the address. Host bits are cleared.
    #[must_use]
    pub const fn new(addr: u32, bits: u8) -> Self {
        let host = 0xffff_ffff_u32.checked_shr(bits as u32);
        let addr = match host {
            Some(host) => addr & !host,
            None => addr,
        };
        Self((addr as u64) << 8 | bits as u64)
    }

    /// Its first address, in host byte order.
    #[must_use]
    pub const fn first(self) -> u32 {
        (self.0 >> 8) as u32
    }

    /// Its last address, in host byte order.
    #[must_use]
    pub const fn last(self) -> u32 {
        match 0xffff_ffff_u32.checked_shr(self.bits() as u32) {
            Some(host) => self.first() | host,
            None => self.first(),
        }
    }

    /// Its length, 0 to 32.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0 as u8
    }
}

impl From<Ipv4Net> for Net4 {
    fn from(net: Ipv4Net) -> Self {
        Self::new(u32::from(net.addr()), net.prefix_len())
    }
}

impl From<Net4> for Ipv4Net {
    fn from(net: Net4) -> Self {
        Self::new_assert(net.first().into(), net.bits())
    }
}

/// Prefixes of both families, each once. Host bits are cleared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixSet {
    v4: Vec<Net4>,
    v6: Vec<Ipv6Net>,
    /// Bit `n`: there is an IPv4 prefix of length `n`. Bits of lengths that are gone may stay.
    lengths4: u64,
    lengths6: [u128; 2],
}

impl PrefixSet {
    /// A set of these; in any order, also repeated.
    #[must_use]
    pub fn new(mut v4: Vec<Net4>, mut v6: Vec<Ipv6Net>) -> Self {
        // Published lists mostly are in order already.
        if !v4.is_sorted() {
            v4.sort_unstable();
        }
        v4.dedup();
        v4.shrink_to_fit();
        v6.iter_mut().for_each(|net| *net = net.trunc());
        v6.sort_unstable();
        v6.dedup();
        v6.shrink_to_fit();
        let mut set = Self { v4, v6, lengths4: 0, lengths6: [0; 2] };
        set.lengths4 = set.v4.iter().fold(0, |all, net| all | 1 << net.bits());
        for i in 0..set.v6.len() {
            set.note6(set.v6[i]);
        }
        set
    }

    fn note6(&mut self, net: Ipv6Net) {
        let bits = usize::from(net.prefix_len());
        self.lengths6[bits / 128] |= 1 << (bits % 128);
    }

    /// The IPv4 prefixes, in order.
    #[must_use]
    pub fn v4(&self) -> &[Net4] {
        &self.v4
    }

    /// The IPv6 prefixes, in order.
    #[must_use]
    pub fn v6(&self) -> &[Ipv6Net] {
        &self.v6
    }

    /// Number of prefixes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All prefixes, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.v4.iter().map(|&net| IpNet::V4(net.into()));
        v4.chain(self.v6.iter().map(|&net| IpNet::V6(net)))
    }

    /// Whether exactly this prefix is there.
    #[must_use]
    pub fn contains(&self, net: IpNet) -> bool {
        match net {
            IpNet::V4(net) => self.v4.binary_search(&net.into()).is_ok(),
            IpNet::V6(net) => self.v6.binary_search(&net.trunc()).is_ok(),
        }
    }

    /// Adds a prefix; false: it is there already.
    pub fn insert(&mut self, net: IpNet) -> bool {
        match net {
            IpNet::V4(net) => {
                let net = Net4::from(net);
                let Err(at) = self.v4.binary_search(&net) else { return false };
                self.v4.insert(at, net);
                self.lengths4 |= 1 << net.bits();
            }
            IpNet::V6(net) => {
                let net = net.trunc();
                let Err(at) = self.v6.binary_search(&net) else { return false };
                self.v6.insert(at, net);
                self.note6(net);
            }
        }
        true
    }

    /// Removes a prefix; false: it is not there.
    pub fn remove(&mut self, net: IpNet) -> bool {
        match net {
            IpNet::V4(net) => {
                let Ok(at) = self.v4.binary_search(&net.into()) else { return false };
                self.v4.remove(at);
            }
            IpNet::V6(net) => {
                let Ok(at) = self.v6.binary_search(&net.trunc()) else { return false };
                self.v6.remove(at);
            }
        }
        true
    }

    /// The longest prefix of at most `most` bits that covers the address.
    #[must_use]
    pub fn longest(&self, ip: IpAddr, most: u8) -> Option<IpNet> {
        match ip {
            IpAddr::V4(ip) => self.longest4(ip.into(), most).map(|net| IpNet::V4(net.into())),
            IpAddr::V6(ip) => (0..=most.min(128))
                .rev()
                .filter(|&n| self.lengths6[usize::from(n) / 128] >> (n % 128) & 1 != 0)
                .filter_map(|n| Ipv6Net::new(ip, n).ok())
                .map(|net| net.trunc())
                .find(|net| self.v6.binary_search(net).is_ok())
                .map(IpNet::V6),
        }
    }

    /// As [`Self::longest`], for an IPv4 address in host byte order.
    #[must_use]
    pub fn longest4(&self, addr: u32, most: u8) -> Option<Net4> {
        (0..=most.min(32))
            .rev()
            .filter(|&n| self.lengths4 >> n & 1 != 0)
            .map(|n| Net4::new(addr, n))
            .find(|net| self.v4.binary_search(net).is_ok())
    }

    /// The IPv4 prefixes that begin in `first..=last`, in order.
    #[must_use]
    pub fn within4(&self, first: u32, last: u32) -> &[Net4] {
        let from = self.v4.partition_point(|net| net.first() < first);
        let rest = &self.v4[from..];
        // Few, mostly: of a network of length 24.
        let near = rest.iter().take(257).position(|net| net.first() > last);
        let len = match near {
            Some(len) => len,
            None => rest.partition_point(|net| net.first() <= last),
        };
        &rest[..len]
    }
}

impl PrefixSet {
    /// The IPv6 prefixes that are within one, itself included, in order.
    #[must_use]
    pub fn within6(&self, net: Ipv6Net) -> &[Ipv6Net] {
        let net = net.trunc();
        let from = self.v6.partition_point(|n| *n < net);
        let last = net.broadcast();
        let len = self.v6[from..].partition_point(|n| n.network() <= last);
        &self.v6[from..from + len]
    }

    /// The prefixes that are in one of two sets and not in the other; `None`: more than `most`.
    #[must_use]
    pub fn difference(&self, other: &Self, most: usize) -> Option<Vec<IpNet>> {
        let mut out = Vec::new();
        differ(&self.v4, &other.v4, most, |net| out.push(IpNet::V4(net.into())))?;
        differ(&self.v6, &other.v6, most, |net| out.push(IpNet::V6(net)))?;
        (out.len() <= most).then_some(out)
    }
}

/// How a set differs from one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Prefixes that are new.
    pub added: u64,
    /// Prefixes that are gone.
    pub removed: u64,
    /// The first of the new ones.
    pub first_added: Vec<IpNet>,
    /// The first of those that are gone.
    pub first_removed: Vec<IpNet>,
}

impl PrefixSet {
    /// What is here and was not in `before`, and the reverse; of each the first `most` by name.
    #[must_use]
    pub fn compared(&self, before: &Self, most: usize) -> Compared {
        let mut found = Compared::default();
        let mut note = |is_new: bool, net: IpNet| {
            let (count, first) = match is_new {
                true => (&mut found.added, &mut found.first_added),
                false => (&mut found.removed, &mut found.first_removed),
            };
            *count += 1;
            if first.len() < most {
                first.push(net);
            }
        };
        walk(&before.v4, &self.v4, |is_new, net| note(is_new, IpNet::V4(net.into())));
        walk(&before.v6, &self.v6, |is_new, net| note(is_new, IpNet::V6(net)));
        found
    }
}

/// Calls `tell` with what is in one of two ordered slices only, and whether that is the second.
fn walk<T: Copy + Ord>(a: &[T], b: &[T], mut tell: impl FnMut(bool, T)) {
    let (mut a, mut b) = (a, b);
    loop {
        let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        (a, b) = (&a[same..], &b[same..]);
        let (is_new, next) = match (a.first(), b.first()) {
            (None, None) => return,
            (Some(x), Some(y)) if x < y => (false, &mut a),
            (Some(_), None) => (false, &mut a),
            (_, Some(_)) => (true, &mut b),
        };
        tell(is_new, next[0]);
        *next = &next[1..];
    }
}

/// Calls `tell` with what is in one of two ordered slices only; `None`: more often than `most`.
fn differ<T: Copy + Ord>(a: &[T], b: &[T], most: usize, mut tell: impl FnMut(T)) -> Option<()> {
    if a.len().abs_diff(b.len()) > most {
        return None;
    }
    let (mut a, mut b) = (a, b);
    let mut count = 0;
    loop {
        let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        (a, b) = (&a[same..], &b[same..]);
        let next = match (a.first(), b.first()) {
            (None, None) => return Some(()),
            (Some(x), Some(y)) if x < y => &mut a,
            (Some(_), None) => &mut a,
            (_, Some(_)) => &mut b,
        };
        tell(next[0]);
        *next = &next[1..];
        count += 1;
        if count > most {
            return None;
        }
    }
}

impl FromIterator<IpNet> for PrefixSet {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in nets {
            match net {
                IpNet::V4(net) => v4.push(net.into()),
                IpNet::V6(net) => v6.push(net),
            }
        }
        Self::new(v4, v6)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net() -> impl Strategy<Value = IpNet> {
        let v4 = (0u32..1024, 0u8..=32).prop_map(|(low, len)| {
            IpNet::V4(Ipv4Net::new((0xc000_0000 + (low << 4)).into(), len).unwrap())
        });
        let v6 = (0u128..64, 0u8..=128).prop_map(|(low, len)| {
            IpNet::V6(Ipv6Net::new((0x2001u128 << 112 | low).into(), len).unwrap())
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn is_what_a_plain_list_is(
            nets in prop::collection::vec(net(), 0..20),
            more in net(),
            low in 0u32..16384,
            most in 0u8..=128,
        ) {
            let mut set: PrefixSet = nets.iter().copied().collect();
            let mut plain: Vec<IpNet> = nets.iter().map(IpNet::trunc).collect();
            plain.sort();
            plain.dedup();
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), plain.clone());
            for ip in [IpAddr::from((0xc000_0000 + low).to_be_bytes()), (0x2001u128 << 112 | 7).to_be_bytes().into()] {
                let covers = plain.iter().filter(|n| n.contains(&ip) && n.prefix_len() <= most);
                let want = covers.max_by_key(|n| n.prefix_len()).copied();
                prop_assert_eq!(set.longest(ip, most), want);
            }
            let (first, last) = (0xc000_0000 + low, 0xc000_0000 + low + 255);
            let within = plain.iter().filter_map(|n| match n {
                IpNet::V4(n) => Some(Net4::from(*n)),
                IpNet::V6(_) => None,
            });
            let within: Vec<_> =
                within.filter(|n| (first..=last).contains(&n.first())).collect();
            prop_assert_eq!(set.within4(first, last), &within[..]);

            let other: PrefixSet = nets.iter().copied().skip(3).chain([more]).collect();
            let mut differ: Vec<IpNet> = plain.iter().copied().filter(|n| !other.contains(*n)).collect();
            differ.extend(other.iter().filter(|n| !plain.contains(n)));
            differ.sort();
            let most = differ.len();
            let mut found = set.difference(&other, most).unwrap();
            found.sort();
            prop_assert_eq!(&found, &differ);
            let compared = other.compared(&set, usize::MAX);
            let mut both: Vec<IpNet> =
                compared.first_added.iter().chain(&compared.first_removed).copied().collect();
            both.sort();
            prop_assert_eq!(&both, &differ);
            prop_assert!(compared.first_added.iter().all(|net| other.contains(*net)));
            prop_assert_eq!(compared.added + compared.removed, differ.len() as u64);
            prop_assert_eq!(other.compared(&set, 1).added, compared.added);
            prop_assert!(most == 0 || set.difference(&other, most - 1).is_none());
            if let IpNet::V6(net) = more {
                let within = plain.iter().filter_map(|n| match n {
                    IpNet::V6(n) if net.contains(n) => Some(*n),
                    _ => None,
                });
                prop_assert_eq!(set.within6(net), &within.collect::<Vec<_>>()[..]);
            }

            prop_assert_eq!(set.insert(more), !plain.contains(&more.trunc()));
            prop_assert!(set.contains(more));
            prop_assert!(set.remove(more) && !set.contains(more) && !set.remove(more));
        }
    }

    #[test]
    fn ends_of_a_prefix() {
        let ends = |bits| {
            let net = Net4::new(0xc0a8_0181, bits);
            (net.first(), net.last(), net.bits())
        };
        assert_eq!(ends(0), (0, u32::MAX, 0));
        assert_eq!(ends(24), (0xc0a8_0100, 0xc0a8_01ff, 24));
        assert_eq!(ends(32), (0xc0a8_0181, 0xc0a8_0181, 32));
    }
}
