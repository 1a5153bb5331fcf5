//! What DNS says of names that rules select: addresses, each until its time is over and nobody uses it.
//!
//! [`Names`] is plain data, fed with answers and the time. [`dns`] reads messages, [`asked`] knows which
//! questions an answer may be to. [`run()`] is the task that reads what the programs hand over; what it learns
//! is kept in the state directory. Nothing here decides who may talk to whom: the owner task reads
//! [`Shared::addresses`] when it puts policy in force.

pub mod asked;
pub mod dns;
mod run;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use config::policy::{Fqdn, NamePattern};
use serde::{Deserialize, Serialize};

pub use self::run::{Kept, run};

/// An address whose time is over stays as long as packets of a connection with it were seen within this.
pub const HOLD: Duration = Duration::from_secs(600);
/// Names that are known in all.
const MAX_NAMES: usize = 1 << 16;
/// The longest time that an answer is believed (RFC 8767 section 4 has a week).
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// What is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// By name: each address, and until when; milliseconds since 1970.
    entries: BTreeMap<String, BTreeMap<IpAddr, u64>>,
    /// Addresses whose time is over: the last packet that was seen, and when that was news.
    held: BTreeMap<IpAddr, (u64, u64)>,
}

/// A name, as it is kept and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// In lower case, without a dot at the end.
    pub name: String,
    /// Its addresses, and until when they count; milliseconds since 1970.
    pub addresses: BTreeMap<IpAddr, u64>,
}

impl Names {
    /// Of what was kept. What is over stays until [`Self::expire`] has seen that nobody uses it.
    #[must_use]
    pub fn of(known: Vec<Known>) -> Self {
        let entries = known.into_iter().map(|one| (one.name, one.addresses)).collect();
        Self { entries, held: BTreeMap::new() }
    }

    /// Everything, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = Known> {
        let one = |(name, addresses): (&String, &BTreeMap<IpAddr, u64>)| Known {
            name: name.clone(),
            addresses: addresses.clone(),
        };
        self.entries.iter().map(one)
    }

    /// Addresses of the names that a pattern stands for.
    #[must_use]
    pub fn addresses(&self, pattern: &NamePattern) -> BTreeSet<IpAddr> {
        let own = self.entries.iter().filter(|(name, _)| pattern.matches(name));
        own.flat_map(|(_, addresses)| addresses.keys().copied()).collect()
    }

    /// Takes in the addresses of a name with their time to live in seconds, if one of the patterns stands for
    /// it. `now`: milliseconds since 1970. Whether any address is new.
    pub fn learn(
        &mut self,
        name: &str,
        addresses: &[(IpAddr, u32)],
        patterns: &[&NamePattern],
        bounds: Fqdn,
        now: u64,
    ) -> bool {
        if addresses.is_empty() || !patterns.iter().any(|pattern| pattern.matches(name)) {
            return false;
        }
        if !self.entries.contains_key(name) {
            self.make_room(name, patterns, bounds);
        }
        let own = self.entries.entry(name.to_owned()).or_default();
        let mut new = false;
        for (address, ttl) in addresses {
            let span = Duration::from_secs(u64::from(*ttl)).clamp(bounds.min_ttl, LONGEST);
            let until = now + span.as_millis() as u64;
            match own.get_mut(address) {
                Some(known) => *known = until.max(*known),
                None => {
                    own.insert(*address, until);
                    new = true;
                }
            }
        }
        while own.len() > usize::from(bounds.addresses_per_name)
            && let Some((&first, _)) =
                own.iter().min_by_key(|(address, until)| (**until, **address))
        {
            own.remove(&first);
        }
        new
    }

    /// Forgets the name that ends first of a pattern that stands for too many.
    fn make_room(&mut self, name: &str, patterns: &[&NamePattern], bounds: Fqdn) {
        let full = |own: &[&String]| own.len() >= usize::from(bounds.names_per_pattern);
        let mut gone = BTreeSet::new();
        for pattern in patterns.iter().filter(|pattern| pattern.matches(name)) {
            let own: Vec<_> = self.entries.keys().filter(|name| pattern.matches(name)).collect();
            if full(&own) {
                gone.extend(self.first_to_end(own.into_iter()));
            }
        }
        if self.entries.len() >= MAX_NAMES {
            gone.extend(self.first_to_end(self.entries.keys()));
        }
        self.entries.retain(|name, _| !gone.contains(name));
    }

    fn first_to_end<'n>(&self, names: impl Iterator<Item = &'n String>) -> Option<String> {
        let end =
            |name: &&String| self.entries.get(*name).and_then(|own| own.values().max().copied());
        names.min_by_key(|name| (end(name), (*name).clone())).cloned()
    }

    /// Addresses whose time is over.
    #[must_use]
    pub fn overdue(&self, now: u64) -> BTreeSet<IpAddr> {
        let all = self.entries.values().flatten();
        all.filter(|(_, until)| **until <= now).map(|(address, _)| *address).collect()
    }

    /// When the next address's time is over; those that are over and in use left out.
    #[must_use]
    pub fn next_end(&self) -> Option<u64> {
        let all = self.entries.values().flatten();
        all.filter(|(address, _)| !self.held.contains_key(*address)).map(|(_, until)| *until).min()
    }

    /// Whether addresses are kept only because they are in use.
    #[must_use]
    pub fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    /// Forgets addresses whose time is over and that are not in use. `seen`: when the last packet of each of
    /// [`Self::overdue`] was seen, by whatever clock. Whether any was forgotten.
    pub fn expire(&mut self, now: u64, seen: &BTreeMap<IpAddr, u64>) -> bool {
        let overdue = self.overdue(now);
        self.held.retain(|address, _| overdue.contains(address));
        for (address, last) in seen.iter().filter(|(address, _)| overdue.contains(*address)) {
            let known = self.held.entry(*address).or_insert((*last, now));
            if known.0 != *last {
                *known = (*last, now);
            }
        }
        let hold = HOLD.as_millis() as u64;
        self.held.retain(|address, (_, at)| seen.contains_key(address) && now < *at + hold);
        let mut any = false;
        self.entries.retain(|_, addresses| {
            let before = addresses.len();
            addresses.retain(|address, until| *until > now || self.held.contains_key(address));
            any |= addresses.len() != before;
            !addresses.is_empty()
        });
        any
    }
}

/// What became of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Result {
    /// Addresses of a name that a rule selects.
    Learned,
    /// No rule for whoever asked selects the name, or it has no address.
    Unwanted,
    /// Nobody asked.
    Unasked,
    /// No DNS message, or cut short.
    Unreadable,
    /// There was no room to hand it over.
    Lost,
}

impl Result {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Learned, Self::Unwanted, Self::Unasked, Self::Unreadable, Self::Lost];

    /// As a label of a metric.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Learned => "learned",
            Self::Unwanted => "unwanted",
            Self::Unasked => "unasked",
            Self::Unreadable => "unreadable",
            Self::Lost => "lost",
        }
    }
}

/// The same for all: the task writes, the owner and the API read. Clones are of the same.
#[derive(Clone, Default)]
pub struct Shared(Arc<Inner>);

#[derive(Default)]
struct Inner {
    names: Mutex<Names>,
    counts: [AtomicU64; Result::ALL.len()],
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("names", &self.read().entries.len()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Of what was kept.
    #[must_use]
    pub fn new(names: Names) -> Self {
        Self(Arc::new(Inner { names: Mutex::new(names), ..Inner::default() }))
    }

    /// Addresses of the names that a pattern stands for.
    #[must_use]
    pub fn addresses(&self, pattern: &NamePattern) -> BTreeSet<IpAddr> {
        self.read().addresses(pattern)
    }

    /// What is known now.
    pub fn read(&self) -> MutexGuard<'_, Names> {
        // Nothing that holds it leaves it half done.
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers with this result since the daemon started.
    #[must_use]
    pub fn count(&self, of: Result) -> u64 {
        self.0.counts[of as usize].load(Relaxed)
    }

    fn note(&self, result: Result) {
        self.0.counts[result as usize].fetch_add(1, Relaxed);
    }

    fn set_lost(&self, lost: u64) {
        self.0.counts[Result::Lost as usize].store(lost, Relaxed);
    }
}

#[cfg(test)]
mod tests;
