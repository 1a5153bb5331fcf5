//! The sets that decide about an address, from the weakest to the strongest, and the numbers of what they
//! come to together.
//!
//! Where no list has a scope, the strongest list that has an address decides, and the address has its number.
//! Otherwise it has that of a combination: its lists, strongest first, without those that a stronger one
//! leaves nothing to.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
};

use abi::{limits::MAX_LISTS, scope::MEMBERS};
use config::{
    PrefixSet,
    model::{ListAction, Prefilter, Scope},
};

/// Layers as bits, weakest first.
pub(super) type Bits = [u64; 4];

/// Combinations of lists by their members, and their numbers.
pub(super) type Combinations = BTreeMap<Vec<u8>, u8>;

/// Sets with the numbers of their lists. What is allowed is the strongest, and of number 0: no list.
pub(super) struct Layers<'a> {
    sets: Vec<(&'a PrefixSet, u8)>,
    /// Of the lists' numbers; empty where no list has a scope.
    scopes: BTreeMap<u8, &'a Scope>,
    combinations: RefCell<Numbers>,
    last: Cell<(u8, u8, u8)>,
}

/// Numbers of combinations.
struct Numbers {
    known: Combinations,
    members: BTreeMap<u8, Vec<u8>>,
    used: Combinations,
    free: Vec<u8>,
    over: HashMap<(u8, u8), u8>,
    folded: HashMap<Bits, u8>,
    /// There was no number for one, or it has too many members.
    full: bool,
}

impl<'a> Layers<'a> {
    /// `known` combinations keep their numbers; new ones take numbers that are not `taken`.
    pub(super) fn of(
        wanted: &'a Prefilter,
        numbers: &BTreeMap<String, u8>,
        known: &Combinations,
        taken: impl Fn(u8) -> bool,
    ) -> Self {
        let of = |action| wanted.lists.iter().rev().filter(move |l| l.action == action);
        let lists = of(ListAction::Audit).chain(of(ListAction::Drop));
        let sets = lists.map(|list| (&list.prefixes, numbers[&list.name]));
        let scoped = wanted.lists.iter().any(|list| !list.scope.is_all());
        let scopes = wanted.lists.iter().map(|list| (numbers[&list.name], &list.scope));
        let is_free = |n: &u8| !taken(*n) && !numbers.values().any(|m| m == n);
        let numbers = Numbers {
            known: known.clone(),
            members: BTreeMap::new(),
            used: Combinations::new(),
            free: (1..=MAX_LISTS as u8).rev().filter(is_free).collect(),
            over: HashMap::new(),
            folded: HashMap::new(),
            full: false,
        };
        Self {
            sets: sets.chain([(&wanted.allow, 0)]).collect(),
            scopes: if scoped { scopes.collect() } else { BTreeMap::new() },
            combinations: RefCell::new(numbers),
            last: Cell::default(),
        }
    }

    pub(super) fn weakest_first(&self) -> impl DoubleEndedIterator<Item = (&'a PrefixSet, u8)> {
        self.sets.iter().copied()
    }

    /// Whether a list's number stands wherever it is painted, whatever stood there.
    pub(super) fn covers(&self, list: u8) -> bool {
        list == 0 || self.scopes.is_empty()
    }

    /// The number of an address of number `below` that is also on `list`, which is stronger.
    pub(super) fn over(&self, list: u8, below: u8) -> u8 {
        if self.covers(list) {
            return list;
        }
        let (last_list, last_below, last) = self.last.get();
        if (last_list, last_below) == (list, below) && list != 0 {
            return last;
        }
        let mut numbers = self.combinations.borrow_mut();
        let known = numbers.over.get(&(list, below)).copied();
        let number = known.unwrap_or_else(|| {
            let made = self.combine(&mut numbers, list, below);
            numbers.over.insert((list, below), made);
            made
        });
        self.last.set((list, below, number));
        number
    }

    fn combine(&self, numbers: &mut Numbers, list: u8, below: u8) -> u8 {
        let before = numbers.members_of(below);
        if before.contains(&list) {
            return below;
        }
        let leaves = |member: &u8| match (self.scopes.get(&list), self.scopes.get(member)) {
            (Some(own), Some(other)) => {
                own.destination != other.destination || !own.is_whole_direction()
            }
            _ => true,
        };
        let members: Vec<u8> =
            [list].into_iter().chain(before.into_iter().filter(leaves)).collect();
        numbers.number(members)
    }

    /// The number of an address that these layers have.
    pub(super) fn number(&self, layers: Bits) -> u8 {
        let bits = || (0..self.sets.len()).filter(|&at| layers[at / 64] >> (at % 64) & 1 != 0);
        if self.scopes.is_empty() {
            return bits().next_back().map_or(0, |at| self.sets[at].1);
        }
        if let Some(&number) = self.combinations.borrow().folded.get(&layers) {
            return number;
        }
        let number = bits().fold(0, |below, at| self.over(self.sets[at].1, below));
        self.combinations.borrow_mut().folded.insert(layers, number);
        number
    }

    /// The combinations that there are; `None`: there was no number for one, or it has too many members.
    pub(super) fn combinations(&self) -> Option<Combinations> {
        let numbers = self.combinations.borrow();
        (!numbers.full).then(|| numbers.used.clone())
    }
}

/// A layer as bits.
pub(super) fn layer(at: usize) -> Bits {
    let mut bits = [0; 4];
    bits[(at / 64) & 3] = 1 << (at % 64);
    bits
}

impl Numbers {
    fn members_of(&self, number: u8) -> Vec<u8> {
        match self.members.get(&number) {
            Some(members) => members.clone(),
            None if number == 0 => Vec::new(),
            None => vec![number],
        }
    }

    fn number(&mut self, members: Vec<u8>) -> u8 {
        if let [list] = members[..] {
            return list;
        }
        if let Some(&number) = self.used.get(&members) {
            return number;
        }
        let known = self.known.get(&members).copied();
        let Some(number) = known.or_else(|| self.free.pop()).filter(|_| members.len() <= MEMBERS)
        else {
            self.full = true;
            return members[0];
        };
        self.members.insert(number, members.clone());
        self.used.insert(members, number);
        number
    }
}
