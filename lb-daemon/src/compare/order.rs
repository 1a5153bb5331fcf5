//! The order of lists: of those that drop the first one that is about a packet decides and counts it, and of those that
//! audit likewise. Pure.

use std::sync::Arc;

use config::model::{ListAction, PrefixList};
use serde_json::{Value, json};

use super::FieldChange;

/// Lists that stay and change places with others that stay and do the same, each with the change of what it is
/// behind. As few as can be: one that moves past all others is named, not the others.
pub(super) fn moved(
    before: &[Arc<PrefixList>],
    after: &[Arc<PrefixList>],
) -> Vec<(String, FieldChange)> {
    let mut all = Vec::new();
    for action in [ListAction::Drop, ListAction::Audit] {
        let names = |lists: &[Arc<PrefixList>]| -> Vec<String> {
            let same = lists.iter().filter(|list| list.action == action);
            same.map(|list| list.name.clone()).collect()
        };
        let (mut old, mut new) = (names(before), names(after));
        let stay: Vec<String> = old.iter().filter(|name| new.contains(name)).cloned().collect();
        old.retain(|name| stay.contains(name));
        new.retain(|name| stay.contains(name));
        let keep = longest_rising(&places(&new, &old));
        for (at, name) in new.iter().enumerate().filter(|(at, _)| !keep.contains(at)) {
            let place = old.iter().position(|of| of == name).unwrap_or_default();
            let field = "order".to_owned();
            let (before, after) = (behind(&old, place), behind(&new, at));
            all.push((name.clone(), FieldChange { field, before, after }));
        }
    }
    all
}

/// Where each of `names` stands among `all`.
fn places(names: &[String], all: &[String]) -> Vec<usize> {
    names.iter().filter_map(|name| all.iter().position(|of| of == name)).collect()
}

fn behind(names: &[String], at: usize) -> Value {
    match at.checked_sub(1) {
        None => json!("first"),
        Some(previous) => json!(format!("after {}", names[previous])),
    }
}

/// The indices of a longest part that rises; of several, that of the earliest end.
fn longest_rising(numbers: &[usize]) -> Vec<usize> {
    // For each number, how long the longest part is that ends there, and what comes before it.
    let mut ends: Vec<(usize, Option<usize>)> = Vec::new();
    for (at, number) in numbers.iter().enumerate() {
        let smaller = (0..at).filter(|before| numbers[*before] < *number);
        let best = smaller.max_by_key(|before| (ends[*before].0, std::cmp::Reverse(*before)));
        ends.push((best.map_or(1, |best| ends[best].0 + 1), best));
    }
    let last = (0..ends.len()).max_by_key(|at| (ends[*at].0, std::cmp::Reverse(*at)));
    let mut part: Vec<usize> =
        std::iter::successors(last, |at| ends.get(*at).and_then(|(_, before)| *before)).collect();
    part.reverse();
    part
}

#[cfg(test)]
mod tests {
    use config::{PrefixSet, model::Source};
    use proptest::prelude::*;

    use super::*;

    /// Lists by names; those in capitals audit.
    fn lists(names: &str) -> Vec<Arc<PrefixList>> {
        let list = |name: char| {
            let action = if name.is_uppercase() { ListAction::Audit } else { ListAction::Drop };
            let list =
                PrefixList::new(name.to_lowercase().to_string(), Source::Api, PrefixSet::default());
            Arc::new(PrefixList { action, ..list })
        };
        names.chars().map(list).collect()
    }

    fn told(before: &str, after: &str) -> Vec<String> {
        let text = |(name, field): (String, FieldChange)| {
            format!("{name}: {} -> {}", field.before, field.after).replace('"', "")
        };
        moved(&lists(before), &lists(after)).into_iter().map(text).collect()
    }

    #[test]
    fn who_moves_is_named() {
        assert_eq!(told("abc", "abc"), [""; 0]);
        assert_eq!(told("abcd", "dabc"), ["d: after c -> first"]);
        assert_eq!(told("abcd", "bcda"), ["a: first -> after d"]);
        assert_eq!(told("ab", "ba"), ["a: first -> after b"]);
        assert_eq!(told("abcd", "xcyab"), ["c: after b -> first"], "others come and go");
        // What drops goes before what audits, wherever it stands.
        assert_eq!(told("aB", "Ba"), [""; 0]);
        assert_eq!(told("aBcD", "DcBa"), ["a: first -> after c", "b: first -> after d"]);
        assert_eq!(told("abc", "Cab"), [""; 0], "it does something else now, which is told anyway");
    }

    proptest! {
        #[test]
        fn a_move_is_told_if_and_only_if_the_order_is_another(
            to in Just(vec!['a', 'b', 'c', 'd', 'e']).prop_shuffle(),
        ) {
            let after: String = to.iter().collect();
            let moves = told("abcde", &after);
            prop_assert_eq!(moves.is_empty(), after == "abcde");
            // Without who moved the order is the same.
            let moved = |c: &char| moves.iter().any(|text| text.starts_with(*c));
            let rest: String = after.chars().filter(|c| !moved(c)).collect();
            prop_assert!(rest.chars().is_sorted(), "{} {:?}", rest, moves);
        }
    }
}
