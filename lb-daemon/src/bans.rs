//! Lists of the API: prefixes that are put on them one by one or by the thousand, each with a reason
//! and perhaps an end.
//!
//! Pure: no I/O, and no clock; times are milliseconds since 1970. [`journal`] keeps the changes on disk.
//! Beside the entries each list has its compact form, which the tables are compiled from.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use config::{
    PrefixSet,
    model::{ListAction, Prefilter, PrefixList, Scope, Source},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::command::Refusal;

pub mod journal;
pub mod pending;

/// Entries of all lists together.
pub const MAX_ENTRIES: usize = 4_000_000;
/// Bytes of a reason.
pub const MAX_REASON: usize = 256;
/// A list's compact form is made anew rather than changed when more of its entries change.
const ONE_BY_ONE: usize = 64;

/// An entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// When it was put there.
    pub added: u64,
    /// When it goes by itself.
    pub until: Option<u64>,
    /// Why it is there.
    pub reason: Option<Arc<str>>,
}

/// A change of the lists, as it is kept on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Puts a prefix on a list, which is made if there is none; replaces the entry of the same prefix.
    Add {
        /// Name of the list.
        list: Arc<str>,
        /// Without host bits.
        cidr: IpNet,
        /// Milliseconds since 1970.
        added: u64,
        /// Likewise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<u64>,
        /// For people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<Arc<str>>,
    },
    /// Takes a prefix off a list.
    Remove {
        /// Name of the list.
        list: Arc<str>,
        /// Without host bits.
        cidr: IpNet,
    },
    /// Makes a list that is about some packets. What is not given is as it is, or the default of a new list.
    Make {
        /// Name of the list.
        list: Arc<str>,
        /// Which packets it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<Scope>,
        /// Count only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        audit: Option<bool>,
    },
    /// Makes a list, or changes what it does.
    Set {
        /// Name of the list.
        list: Arc<str>,
        /// Count only.
        audit: bool,
    },
    /// Removes a list with all its entries.
    Delete {
        /// Name of the list.
        list: Arc<str>,
    },
}

impl Change {
    /// The list that it concerns.
    #[must_use]
    pub fn list(&self) -> &Arc<str> {
        match self {
            Self::Add { list, .. }
            | Self::Remove { list, .. }
            | Self::Make { list, .. }
            | Self::Set { list, .. }
            | Self::Delete { list } => list,
        }
    }

    /// The prefix that it puts on the list.
    #[must_use]
    pub const fn added(&self) -> Option<IpNet> {
        match self {
            Self::Add { cidr, .. } => Some(*cidr),
            Self::Remove { .. } | Self::Make { .. } | Self::Set { .. } | Self::Delete { .. } => {
                None
            }
        }
    }
}

/// A list of the API.
#[derive(Clone, Debug)]
pub struct List {
    entries: BTreeMap<IpNet, Ban>,
    compact: Arc<PrefixList>,
}

impl List {
    fn new(name: &str) -> Self {
        let compact = Arc::new(PrefixList::new(name, Source::Api, PrefixSet::default()));
        Self { entries: BTreeMap::new(), compact }
    }

    /// Its entries by prefix.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<IpNet, Ban> {
        &self.entries
    }

    /// What it does.
    #[must_use]
    pub fn action(&self) -> ListAction {
        self.compact.action
    }

    /// Which packets it is about.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.compact.scope
    }

    /// Whether entries may be put on it that are said to be for these packets. A list's scope belongs to all that is
    /// on it: who names another one means another list.
    ///
    /// # Errors
    /// It is for others.
    pub fn admits(&self, scope: Option<&Scope>, audit: Option<bool>) -> Result<(), Refusal> {
        let name = &self.compact.name;
        let action = audit.map(|audit| if audit { ListAction::Audit } else { ListAction::Drop });
        let same_scope = scope.is_none_or(|scope| scope == self.scope());
        if same_scope && action.is_none_or(|action| action == self.action()) {
            return Ok(());
        }
        let text = |scope: &Scope, action: ListAction| match scope.to_string() {
            text if text.is_empty() => format!("{} of all packets", action.as_str()),
            text => format!("{} of packets {text}", action.as_str()),
        };
        let is = text(self.scope(), self.action());
        let asked = text(scope.unwrap_or(self.scope()), action.unwrap_or(self.action()));
        let field = if same_scope { "action" } else { "scope" };
        let remedy = if same_scope {
            format!("change that for the whole list (`lbctl prefilter set {name} ACTION`)")
        } else {
            format!("remove it first (`lbctl prefilter delete --list {name} --all`)")
        };
        let message = format!(
            "the list \"{name}\" is there, for {is}, not for {asked}; name another list, or say nothing of that to \
             take it as it is, or {remedy}"
        );
        Err(Refusal::Conflict { field: field.to_owned(), message })
    }
}

/// Every list of the API.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    lists: BTreeMap<Arc<str>, List>,
    ends: BTreeSet<(u64, Arc<str>, IpNet)>,
    entries: usize,
}

/// The lists, written by the owner task alone and read by everybody.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<RwLock<Lists>>);

impl Shared {
    /// Shares these.
    #[must_use]
    pub fn new(lists: Lists) -> Self {
        Self(Arc::new(RwLock::new(lists)))
    }

    /// The lists as they are now; the owner task waits meanwhile.
    pub fn read(&self) -> RwLockReadGuard<'_, Lists> {
        // A change is made whole or the process ends; what a panic left can be read.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Lists::apply`].
    pub fn apply(&self, changes: &[Change]) -> (Done, Vec<Change>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).apply(changes)
    }
}

/// How many entries a change made new, replaced and removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// New ones.
    pub added: usize,
    /// Those that were there, with another end or reason now.
    pub replaced: usize,
    /// Those that are gone.
    pub removed: usize,
}

impl Lists {
    /// The lists by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &List)> {
        self.lists.iter()
    }

    /// A list.
    #[must_use]
    pub fn get(&self, list: &str) -> Option<&List> {
        self.lists.get(list)
    }

    /// Entries of all lists.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether there is no list.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// When an entry ends next.
    #[must_use]
    pub fn next_end(&self) -> Option<u64> {
        self.ends.first().map(|(until, ..)| *until)
    }

    /// The changes that take off what has ended by `now`.
    #[must_use]
    pub fn ended(&self, now: u64) -> Vec<Change> {
        let ended = self.ends.iter().take_while(|(until, ..)| *until <= now);
        ended
            .map(|(_, list, cidr)| Change::Remove { list: Arc::clone(list), cidr: *cidr })
            .collect()
    }

    /// The lists of files, and behind them those of the API.
    #[must_use]
    pub fn behind(&self, files: &Arc<Prefilter>) -> Arc<Prefilter> {
        if self.lists.is_empty() {
            return Arc::clone(files);
        }
        // A list of a file goes before one of the API that has its name.
        let free = |name: &str| files.lists.iter().all(|list| *list.name != *name);
        let own = self.lists.iter().filter(|(name, _)| free(name));
        let own = own.map(|(_, list)| Arc::clone(&list.compact));
        let lists = files.lists.iter().cloned().chain(own).collect();
        Arc::new(Prefilter { lists, ..(**files).clone() })
    }

    /// Carries changes out, in order. Also gives those that undo them, in the order to do that.
    pub fn apply(&mut self, changes: &[Change]) -> (Done, Vec<Change>) {
        let mut done = Done::default();
        let mut undo = Vec::new();
        let mut touched: BTreeMap<Arc<str>, Vec<IpNet>> = BTreeMap::new();
        for change in changes {
            match change {
                Change::Add { list, cidr, added, until, reason } => {
                    let ban = Ban { added: *added, until: *until, reason: reason.clone() };
                    let before = self.put(list, *cidr, ban, &mut undo);
                    done.added += usize::from(!before);
                    done.replaced += usize::from(before);
                    touched.entry(Arc::clone(list)).or_default().push(*cidr);
                }
                Change::Remove { list, cidr } => {
                    if self.take(list, *cidr, &mut undo) {
                        done.removed += 1;
                        touched.entry(Arc::clone(list)).or_default().push(*cidr);
                    }
                }
                Change::Make { list, scope, audit } => {
                    self.make(list, &mut undo);
                    if let Some(scope) = scope {
                        self.set_scope(list, scope, &mut undo);
                    }
                    if let Some(audit) = audit {
                        self.set(list, *audit, &mut undo);
                    }
                }
                Change::Set { list, audit } => self.set(list, *audit, &mut undo),
                Change::Delete { list } => {
                    done.removed += self.delete(list, &mut undo);
                    touched.remove(list);
                }
            }
        }
        for (name, nets) in touched {
            if let Some(list) = self.lists.get_mut(&name) {
                list.compact(&nets);
            }
        }
        undo.reverse();
        (done, undo)
    }

    fn make(&mut self, name: &Arc<str>, undo: &mut Vec<Change>) -> &mut List {
        self.lists.entry(Arc::clone(name)).or_insert_with(|| {
            undo.push(Change::Delete { list: Arc::clone(name) });
            List::new(name)
        })
    }

    /// Puts an entry; whether there was one of this prefix.
    fn put(&mut self, name: &Arc<str>, cidr: IpNet, ban: Ban, undo: &mut Vec<Change>) -> bool {
        let until = ban.until;
        let before = self.make(name, undo).entries.insert(cidr, ban);
        if let Some(until) = until {
            self.ends.insert((until, Arc::clone(name), cidr));
        }
        match before {
            Some(before) => {
                if let Some(end) = before.until.filter(|end| Some(*end) != until) {
                    self.ends.remove(&(end, Arc::clone(name), cidr));
                }
                undo.push(again(name, cidr, before));
                true
            }
            None => {
                self.entries += 1;
                undo.push(Change::Remove { list: Arc::clone(name), cidr });
                false
            }
        }
    }

    /// Takes an entry off; whether there was one.
    fn take(&mut self, name: &Arc<str>, cidr: IpNet, undo: &mut Vec<Change>) -> bool {
        let gone = self.lists.get_mut(name).and_then(|list| list.entries.remove(&cidr));
        let Some(before) = gone else { return false };
        self.entries -= 1;
        if let Some(until) = before.until {
            self.ends.remove(&(until, Arc::clone(name), cidr));
        }
        undo.push(again(name, cidr, before));
        true
    }

    fn set(&mut self, name: &Arc<str>, audit: bool, undo: &mut Vec<Change>) {
        let list = self.make(name, undo);
        let action = if audit { ListAction::Audit } else { ListAction::Drop };
        if list.compact.action != action {
            Arc::make_mut(&mut list.compact).action = action;
            undo.push(Change::Set { list: Arc::clone(name), audit: !audit });
        }
    }

    fn set_scope(&mut self, name: &Arc<str>, scope: &Scope, undo: &mut Vec<Change>) {
        let list = self.make(name, undo);
        if list.compact.scope != *scope {
            let own = &mut Arc::make_mut(&mut list.compact).scope;
            let before = std::mem::replace(own, scope.clone());
            undo.push(about(name, before));
        }
    }

    fn delete(&mut self, name: &Arc<str>, undo: &mut Vec<Change>) -> usize {
        let Some(list) = self.lists.remove(name) else { return 0 };
        let count = list.entries.len();
        self.entries -= count;
        // Undone in the reverse order: first the list, then its entries.
        let audit = list.compact.action == ListAction::Audit;
        for (cidr, ban) in list.entries {
            if let Some(until) = ban.until {
                self.ends.remove(&(until, Arc::clone(name), cidr));
            }
            undo.push(again(name, cidr, ban));
        }
        undo.push(Change::Set { list: Arc::clone(name), audit });
        if !list.compact.scope.is_all() {
            undo.push(about(name, list.compact.scope.clone()));
        }
        count
    }
}

impl List {
    /// Brings the compact form up to the entries, of which these have changed.
    fn compact(&mut self, nets: &[IpNet]) {
        // Copied when somebody still reads the one before.
        let compact = Arc::make_mut(&mut self.compact);
        if nets.len() > ONE_BY_ONE {
            compact.prefixes = self.entries.keys().copied().collect();
            return;
        }
        for &net in nets {
            if self.entries.contains_key(&net) {
                compact.prefixes.insert(net);
            } else {
                compact.prefixes.remove(net);
            }
        }
    }
}

fn about(list: &Arc<str>, scope: Scope) -> Change {
    Change::Make { list: Arc::clone(list), scope: Some(scope), audit: None }
}

fn again(list: &Arc<str>, cidr: IpNet, Ban { added, until, reason }: Ban) -> Change {
    Change::Add { list: Arc::clone(list), cidr, added, until, reason }
}

#[cfg(test)]
mod tests;
