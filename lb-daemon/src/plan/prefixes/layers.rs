//! The sets that decide about an address, from the weakest to the strongest.

use std::collections::BTreeMap;

use config::{
    PrefixSet,
    model::{ListAction, Prefilter},
};

/// Sets with the numbers of their lists. What is allowed is the strongest, and of number 0: no list.
pub(super) struct Layers<'a>(Vec<(&'a PrefixSet, u8)>);

impl<'a> Layers<'a> {
    pub(super) fn of(wanted: &'a Prefilter, numbers: &BTreeMap<String, u8>) -> Self {
        let of = |action| wanted.lists.iter().rev().filter(move |l| l.action == action);
        let lists = of(ListAction::Audit).chain(of(ListAction::Drop));
        let lists = lists.map(|list| (&list.prefixes, numbers[&list.name]));
        Self(lists.chain([(&wanted.allow, 0)]).collect())
    }

    pub(super) fn weakest_first(&self) -> impl DoubleEndedIterator<Item = (&'a PrefixSet, u8)> {
        self.0.iter().copied()
    }
}
