//! What differs between two sorted maps, in one walk along both.

use std::cmp::Ordering;

/// What leads from one map to another.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference<V, W> {
    /// Only in the old one.
    pub(crate) gone: Vec<V>,
    /// Not in the old one, or not the same there; with what there was.
    pub(crate) changed: Vec<(Option<V>, W)>,
}

/// Compares entries of two maps, each sorted by name.
pub(crate) fn difference<'o, 'n, V, W>(
    old: impl IntoIterator<Item = (&'o str, V)>,
    new: impl IntoIterator<Item = (&'n str, W)>,
    same: impl Fn(&V, &W) -> bool,
) -> Difference<V, W> {
    let mut difference = Difference { gone: Vec::new(), changed: Vec::new() };
    let mut old = old.into_iter().peekable();
    for (name, value) in new {
        let before = loop {
            match old.peek().map(|(other, _)| (*other).cmp(name)) {
                Some(Ordering::Less) => difference.gone.extend(old.next().map(|(_, v)| v)),
                Some(Ordering::Equal) => break old.next().map(|(_, v)| v),
                Some(Ordering::Greater) | None => break None,
            }
        };
        if !before.as_ref().is_some_and(|before| same(before, &value)) {
            difference.changed.push((before, value));
        }
    }
    difference.gone.extend(old.map(|(_, v)| v));
    difference
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_went_and_changed() {
        let old = [("a", 1), ("b", 2), ("c", 3), ("e", 5), ("z", 9)];
        let new = [("b", 2), ("c", 4), ("d", 4), ("e", 5)];
        let found = difference(old, new, |v, w| v == w);
        assert_eq!(found, Difference { gone: vec![1, 9], changed: vec![(Some(3), 4), (None, 4)] });
        let found = difference([], new, |v: &i32, w| v == w);
        assert_eq!((found.gone.len(), found.changed.len()), (0, 4));
        let found = difference(old, [], |v, w: &i32| v == w);
        assert_eq!((found.gone.len(), found.changed.len()), (5, 0));
    }
}
