//! What differs between two desired states, object by object and field by field.
//!
//! Pure. States are first made into [`Object`]s, which have the names and values that files
//! give them; order says nothing there, and neither does the place in a file. Two states without a difference
//! have the same objects and their lists in the same order ([`order`]), and the other way round.

mod objects;
mod order;
mod policy;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use config::{
    PrefixSet,
    model::{DesiredState, PrefixList, Scheduling, Service},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use self::objects::{Key, Object, objects};
use crate::plan::slots_moved;

/// Prefixes that are told by name, of each list.
const TOLD: usize = 10;

/// What would change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// Whether anything would.
    pub differs: bool,
    /// Every object that would be another, in a fixed order: settings, interfaces, services, what the prefilter has,
    /// policy.
    pub changes: Vec<Change>,
    /// Why the daemon would not put it in force; empty: it would.
    pub refused: Vec<String>,
}

/// An object that would be another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// What becomes of it.
    pub change: What,
    /// What it is.
    pub kind: Kind,
    /// Its name; empty where there is but one of its kind.
    pub name: String,
    /// Of a backend: its service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Its fields that would be others. Of an object that comes or goes: all that it has.
    pub fields: Vec<FieldChange>,
    /// Of a list, and of `allow`: what prefixes come and go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefixes: Option<PrefixChange>,
    /// Of a list that is to be fetched from where it was not before: what will be on it is not known until then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prefixes_unknown: bool,
    /// Of a service: how many slots of its ring get another backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<RingChange>,
}

/// What becomes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// It is new.
    Added,
    /// It goes.
    Removed,
    /// It is another.
    Changed,
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Settings of the node; their fields have the names that they have in files.
    Settings,
    /// An entry of `interfaces`.
    Interface,
    /// A service.
    Service,
    /// A backend of a service.
    Backend,
    /// `prefilter.filters`.
    Filters,
    /// `prefilter.allow`.
    Allow,
    /// A list.
    List,
    /// A rate limit.
    RateLimit,
    /// `prefilter.syn_proxy`.
    SynProxy,
    /// A local API of CrowdSec.
    Crowdsec,
    /// A rule of policy.
    Policy,
    /// An endpoint.
    Endpoint,
    /// The host firewall.
    HostFirewall,
}

impl Kind {
    /// For people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Interface => "interface",
            Self::Service => "service",
            Self::Backend => "backend",
            Self::Filters => "filters",
            Self::Allow => "allow",
            Self::List => "list",
            Self::RateLimit => "rate limit",
            Self::SynProxy => "SYN proxy",
            Self::Crowdsec => "CrowdSec",
            Self::Policy => "policy",
            Self::Endpoint => "endpoint",
            Self::HostFirewall => "host firewall",
        }
    }
}

/// A field that would be another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FieldChange {
    /// Its name in files.
    pub field: String,
    /// What is in force; null: nothing.
    #[schema(value_type = Object)]
    pub before: Value,
    /// What would be; null: nothing.
    #[schema(value_type = Object)]
    pub after: Value,
}

/// Prefixes that come and go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrefixChange {
    /// How many come.
    pub added: u64,
    /// How many go.
    pub removed: u64,
    /// The first of those that come; at most 10.
    #[schema(value_type = Vec<String>)]
    pub first_added: Vec<IpNet>,
    /// The first of those that go; at most 10.
    #[schema(value_type = Vec<String>)]
    pub first_removed: Vec<IpNet>,
}

/// Slots of a ring that get another backend, as if all backends were healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RingChange {
    /// Slots of the new ring.
    pub slots: u32,
    /// Those of them that get another backend: new flows there go elsewhere.
    pub moved: u32,
}

/// What would change if `after` were in force in the place of `before`.
#[must_use]
pub fn compare(before: &DesiredState, after: &DesiredState) -> Vec<Change> {
    let (old, new) = (objects(before), objects(after));
    let mut keys: Vec<&Key> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut changes: Vec<Change> =
        keys.into_iter().filter_map(|key| change(key, old.get(key), new.get(key))).collect();
    add_rings(&mut changes, before, after);
    for (list, field) in order::moved(&before.prefilter.lists, &after.prefilter.lists) {
        change_of(&mut changes, Kind::List, &list).fields.push(field);
    }
    for list in not_fetched(before, after) {
        let change = change_of(&mut changes, Kind::List, list);
        (change.prefixes, change.prefixes_unknown) = (None, true);
    }
    changes
}

/// Lists that are to be fetched from where they were not before: nothing is on them yet.
fn not_fetched<'s>(before: &DesiredState, after: &'s DesiredState) -> Vec<&'s str> {
    let was_there = |list: &PrefixList, url: &str| {
        let same = before.prefilter.lists.iter().find(|old| old.name == list.name);
        same.and_then(|old| old.remote.as_ref()).is_some_and(|remote| remote.url == url)
    };
    let is_new = |list: &&Arc<PrefixList>| {
        list.remote.as_ref().is_some_and(|remote| !was_there(list, &remote.url))
    };
    after.prefilter.lists.iter().filter(is_new).map(|list| list.name.as_str()).collect()
}

/// The change of an object: the one that is noted, or else a new one of an object that stays.
fn change_of<'c>(changes: &'c mut Vec<Change>, kind: Kind, name: &str) -> &'c mut Change {
    let is_own = |change: &Change| change.kind == kind && change.name == *name;
    let at = changes.iter().position(is_own).unwrap_or_else(|| {
        let own = Change {
            change: What::Changed,
            kind,
            name: name.to_owned(),
            service: None,
            fields: Vec::new(),
            prefixes: None,
            prefixes_unknown: false,
            ring: None,
        };
        let at =
            changes.partition_point(|change| (change.kind, change.name.as_str()) < (kind, name));
        changes.insert(at, own);
        at
    });
    &mut changes[at]
}

/// What becomes of one object.
fn change(key: &Key, before: Option<&Object<'_>>, after: Option<&Object<'_>>) -> Option<Change> {
    let what = match (before, after) {
        (None, Some(_)) => What::Added,
        (Some(_), None) => What::Removed,
        _ => What::Changed,
    };
    let fields = fields(before, after);
    let prefixes = prefixes(before, after);
    let same = fields.is_empty() && prefixes.is_none();
    (what != What::Changed || !same).then(|| Change {
        change: what,
        kind: key.kind,
        name: key.name.clone(),
        service: (key.kind == Kind::Backend).then(|| key.service.clone()),
        fields,
        prefixes,
        prefixes_unknown: false,
        ring: None,
    })
}

fn fields(before: Option<&Object<'_>>, after: Option<&Object<'_>>) -> Vec<FieldChange> {
    let none = BTreeMap::new();
    let [old, new] = [before, after].map(|object| object.map_or(&none, |object| &object.fields));
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let of = |fields: &BTreeMap<String, Value>, name: &String| {
        fields.get(name).cloned().unwrap_or(Value::Null)
    };
    names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
        .map(|name| FieldChange {
            field: name.clone(),
            before: of(old, name),
            after: of(new, name),
        })
        .collect()
}

fn prefixes(before: Option<&Object<'_>>, after: Option<&Object<'_>>) -> Option<PrefixChange> {
    let none = PrefixSet::default();
    let [old, new] =
        [before, after].map(|object| object.and_then(|object| object.prefixes).unwrap_or(&none));
    let config::Compared { added, removed, first_added, first_removed } = new.compared(old, TOLD);
    (added + removed > 0).then_some(PrefixChange { added, removed, first_added, first_removed })
}

/// Says of services that stay what becomes of their rings.
fn add_rings(changes: &mut Vec<Change>, before: &DesiredState, after: &DesiredState) {
    for (name, new) in &after.services {
        let Some(old) = before.services.get(name) else { continue };
        let Some(ring) = ring(old, new, before, after) else { continue };
        // It may be that its backends or the settings differ, and nothing of its own.
        change_of(changes, Kind::Service, name).ring = Some(ring);
    }
}

/// Of a service with a ring before and after that is not the same.
fn ring(
    old: &Service,
    new: &Service,
    before: &DesiredState,
    after: &DesiredState,
) -> Option<RingChange> {
    let has_ring = |service: &Service| service.steering.scheduling == Scheduling::Maglev;
    if !has_ring(old) || !has_ring(new) {
        return None;
    }
    let (slots, moved) = slots_moved((old, &before.maglev), (new, &after.maglev))?;
    Some(RingChange { slots, moved })
}
