//! What lists say about an address or a packet, told from the lists themselves and not from the tables.

use std::{net::IpAddr, sync::Arc};

use config::{
    PrefixSet,
    model::{About, ListAction, Prefilter, PrefixList, Scope},
};
use ipnet::IpNet;

/// What the blocklists say about one address.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict<'a> {
    /// The longest prefix that allows it: then no list applies.
    pub allowed: Option<IpNet>,
    /// The list that decides about all packets from there; `None` when the address is allowed or in no such
    /// list.
    pub decides: Option<&'a str>,
    /// Whether that list decides depends on what is not known of the packet.
    pub depends: bool,
    /// Every list that holds it, in the order of the configuration.
    pub hits: Vec<Hit<'a>>,
}

/// A list that holds an address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit<'a> {
    /// Its name.
    pub list: &'a str,
    /// What it does.
    pub action: ListAction,
    /// The longest of its prefixes that cover the address.
    pub prefix: IpNet,
    /// Which packets it is about.
    pub scope: &'a Scope,
}

/// Looks an address up in the lists themselves, not in the tables. An IPv4-mapped IPv6 address is
/// taken as IPv4.
#[must_use]
pub fn lookup(lists: &Prefilter, ip: IpAddr) -> Verdict<'_> {
    let ip = ip.to_canonical();
    let longest = |prefixes: &PrefixSet| prefixes.longest(ip, 128);
    let allowed = longest(&lists.allow);
    let hit = |list: &'_ Arc<PrefixList>| longest(&list.prefixes);
    let hits: Vec<Hit<'_>> = lists
        .lists
        .iter()
        .filter_map(|l| {
            let prefix = hit(l)?;
            Some(Hit { list: &l.name, action: l.action, prefix, scope: &l.scope })
        })
        .collect();
    let first = |action| hits.iter().find(|h| h.action == action && h.scope.is_all());
    let decides = match allowed {
        Some(_) => None,
        None => first(ListAction::Drop).or_else(|| first(ListAction::Audit)).map(|h| h.list),
    };
    Verdict { allowed, decides, depends: false, hits }
}

/// The same for one packet from or to the address: of the lists that are about it, those that drop come first.
#[must_use]
pub fn lookup_packet<'a>(lists: &'a Prefilter, ip: IpAddr, about: &About<'_>) -> Verdict<'a> {
    let Verdict { allowed, hits, .. } = lookup(lists, ip);
    let of = |action| hits.iter().filter(move |hit| hit.action == action);
    let first = of(ListAction::Drop)
        .chain(of(ListAction::Audit))
        .map(|hit| (hit.list, hit.scope.has(about)))
        .find(|(_, has)| *has != Some(false))
        .filter(|_| allowed.is_none());
    let (decides, depends) =
        (first.map(|(list, _)| list), first.is_some_and(|(_, has)| has.is_none()));
    Verdict { allowed, decides, depends, hits }
}
