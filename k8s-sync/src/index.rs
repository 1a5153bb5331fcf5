//! The index: which objects stand, and the services that come of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use config::model::{self, Forwarding, Protocol};
use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    join,
    notice::{Effect, Notice},
    service, slice,
};

/// Ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What every service gets, because its objects do not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How packets reach an endpoint.
    pub forwarding: Forwarding,
    /// How long connections of an endpoint that is leaving are kept.
    pub drain_timeout: Duration,
}

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its namespace.
    pub namespace: String,
    /// Unique among objects of one kind in the namespace.
    pub name: String,
}

impl Key {
    /// A key.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    fn of(kind: &'static str, meta: &ObjectMeta) -> Result<Self, Nameless> {
        match (&meta.namespace, &meta.name) {
            (Some(namespace), Some(name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self::new(namespace, name))
            }
            _ => Err(Nameless(kind)),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An object without name or namespace, which no API server gives out. It changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} without metadata.name or metadata.namespace")]
pub struct Nameless(pub &'static str);

/// What one object changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Services that are new or different.
    pub put: Vec<Arc<model::Service>>,
    /// Names of services that are no more.
    pub gone: Vec<String>,
}

impl Changes {
    /// Whether everything stands as before.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.gone.is_empty()
    }
}

/// Services and EndpointSlices of a cluster, and the model's services that they ask for.
///
/// An object that did not change, or only where it does not matter, leaves its services the same
/// allocations. A slice touches the services of one Service only; a Service touches others too when
/// both claim the same address and port: the older one has it, by creation time, then by key.
#[derive(Debug)]
pub struct Index {
    settings: Settings,
    entries: BTreeMap<Key, Entry>,
    /// The Service that a slice belongs to; `None` for a slice of none.
    slices: BTreeMap<Key, Option<Key>>,
    claims: BTreeMap<Claim, BTreeSet<Claimant>>,
}

/// Whatever stands under the key of one Service.
#[derive(Debug, Default)]
struct Entry {
    service: Option<service::Facts>,
    slices: BTreeMap<String, slice::Facts>,
    built: BTreeMap<String, Arc<model::Service>>,
    notices: Vec<Notice>,
}

type Claim = (IpAddr, u16, Protocol);
/// In the order of precedence; without a time an object is younger than any with one.
type Claimant = (bool, Option<i64>, Key);

impl Index {
    /// Knows of no object.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let (entries, slices, claims) = Default::default();
        Self { settings, entries, slices, claims }
    }

    /// A Service is new or has changed.
    ///
    /// # Errors
    /// [`Nameless`].
    pub fn apply_service(&mut self, service: &Service) -> Result<Changes, Nameless> {
        let key = Key::of("Service", &service.metadata)?;
        let facts = service::Facts::read(service, format!("Service {key}"));
        Ok(self.set_service(key, Some(facts)))
    }

    /// A Service is gone; one that was never there changes nothing.
    pub fn delete_service(&mut self, key: &Key) -> Changes {
        self.set_service(key.clone(), None)
    }

    /// An EndpointSlice is new or has changed.
    ///
    /// # Errors
    /// [`Nameless`].
    pub fn apply_slice(&mut self, slice: &EndpointSlice) -> Result<Changes, Nameless> {
        let key = Key::of("EndpointSlice", &slice.metadata)?;
        let label = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        let service = label.map(|name| Key::new(&key.namespace, name));

        let before = self.slices.insert(key.clone(), service.clone()).flatten();
        let mut touched: BTreeSet<Key> = BTreeSet::new();
        if let Some(before) = before.filter(|before| Some(before) != service.as_ref()) {
            self.entries.entry(before.clone()).or_default().slices.remove(&key.name);
            touched.insert(before);
        }
        if let Some(service) = service {
            let facts = slice::Facts::read(slice, format!("EndpointSlice {key}"));
            self.entries.entry(service.clone()).or_default().slices.insert(key.name, facts);
            touched.insert(service);
        }
        Ok(self.rebuild(touched))
    }

    /// An EndpointSlice is gone; one that was never there changes nothing.
    pub fn delete_slice(&mut self, key: &Key) -> Changes {
        let Some(Some(service)) = self.slices.remove(key) else { return Changes::default() };
        if let Some(entry) = self.entries.get_mut(&service) {
            entry.slices.remove(&key.name);
        }
        self.rebuild([service].into())
    }

    /// Every service, by name within its object, objects by key.
    pub fn services(&self) -> impl Iterator<Item = &Arc<model::Service>> {
        self.entries.values().flat_map(|entry| entry.built.values())
    }

    /// Everything that is not done as objects ask for it, in the order of the objects' keys.
    #[must_use]
    pub fn notices(&self) -> Vec<Notice> {
        let mut all: Vec<Notice> = self.loose().collect();
        for entry in self.entries.values() {
            let Some(service) = &entry.service else { continue };
            all.extend(service.notices.iter().chain(&entry.notices).cloned());
            if !service.ports.is_empty() {
                all.extend(entry.slices.values().flat_map(|slice| &slice.notices).cloned());
            }
        }
        all
    }

    /// Slices of no Service.
    fn loose(&self) -> impl Iterator<Item = Notice> {
        self.slices.iter().filter(|(_, service)| service.is_none()).map(|(key, _)| Notice {
            object: format!("EndpointSlice {key}"),
            field: "metadata.labels".to_owned(),
            effect: Effect::Skipped,
            text: format!("no label {SERVICE_NAME} ties it to a Service"),
        })
    }

    fn set_service(&mut self, key: Key, facts: Option<service::Facts>) -> Changes {
        let entry = self.entries.entry(key.clone()).or_default();
        if entry.service == facts {
            return self.rebuild([key].into());
        }
        let mut touched = BTreeSet::new();
        if let Some(before) = &entry.service {
            let claimant = claimant(&key, before);
            for claim in claims(before) {
                if let Some(claimants) = self.claims.get_mut(&claim) {
                    claimants.remove(&claimant);
                    touched.extend(claimants.iter().map(|(_, _, key)| key.clone()));
                    if claimants.is_empty() {
                        self.claims.remove(&claim);
                    }
                }
            }
        }
        if let Some(after) = &facts {
            for claim in claims(after) {
                let claimants = self.claims.entry(claim).or_default();
                touched.extend(claimants.iter().map(|(_, _, key)| key.clone()));
                claimants.insert(claimant(&key, after));
            }
        }
        entry.service = facts;
        touched.insert(key);
        self.rebuild(touched)
    }

    fn rebuild(&mut self, touched: BTreeSet<Key>) -> Changes {
        let mut changes = Changes::default();
        for key in touched {
            let Some(mut entry) = self.entries.remove(&key) else { continue };
            let (mut built, notices) = match &entry.service {
                Some(facts) => {
                    let owner = |address, port: &service::Port| {
                        let claimants = self.claims.get(&(address, port.port, port.protocol))?;
                        claimants.first().map(|(_, _, key)| key.clone())
                    };
                    join::join(&key, facts, &entry.slices, &self.settings, &owner)
                }
                None => Default::default(),
            };
            for (name, service) in &mut built {
                match entry.built.remove(name) {
                    Some(before) if before == *service => *service = before,
                    _ => changes.put.push(Arc::clone(service)),
                }
            }
            changes.gone.extend(entry.built.into_keys());
            entry.built = built;
            entry.notices = notices;
            if entry.service.is_some() || !entry.slices.is_empty() {
                self.entries.insert(key, entry);
            }
        }
        changes
    }
}

/// Addresses and ports that a Service wants for itself.
fn claims(facts: &service::Facts) -> impl Iterator<Item = Claim> {
    let of = |port: &service::Port| (port.port, port.protocol);
    facts.addresses.iter().chain(&facts.restricted).flat_map(move |&address| {
        facts.ports.iter().map(of).map(move |(port, protocol)| (address, port, protocol))
    })
}

fn claimant(key: &Key, facts: &service::Facts) -> Claimant {
    (facts.created.is_none(), facts.created, key.clone())
}
