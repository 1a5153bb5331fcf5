//! Patterns for names of interfaces and of hosts.

/// Whether `name` matches `pattern`, in which `*` stands for any characters but `stop`, also none, and `?` for
/// one character.
///
/// Each `*` takes as little as it can, and more when the rest does not fit; only the last one has to be looked
/// at again.
#[must_use]
pub fn matches(pattern: &str, name: &str, stop: Option<char>) -> bool {
    let stop = stop.and_then(|stop| u8::try_from(stop).ok());
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to go on when a character does not match: behind the last `*`, one character later.
    let mut retry: Option<(usize, usize)> = None;

    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((after_star, taken)) = retry else { return false };
                if Some(name[taken]) == stop {
                    return false;
                }
                retry = Some((after_star, taken + 1));
                p = after_star;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|&rest| rest == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth", true),
            ("eth*", "eth12", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("?", "", false),
            ("eth?", "eth1", true),
            ("eth?", "eth12", false),
            ("en*s0f?", "enp3s0f1", true),
            ("*a*b", "xaxxab", true),
            ("*a*b", "xaxxabc", false),
            ("**", "eth0", true),
            ("eth0.*", "eth0.100", true),
        ] {
            assert_eq!(matches(pattern, name, None), expected, "{pattern:?} on {name:?}");
        }
    }

    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|n| naive(rest, &name[n..])),
            Some((p, rest)) => name
                .split_first()
                .is_some_and(|(n, tail)| (*p == b'?' || p == n) && naive(rest, tail)),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_recursive_definition(pattern in "[ab*?]{0,8}", name in "[ab]{0,10}") {
            prop_assert_eq!(
                matches(&pattern, &name, None),
                naive(pattern.as_bytes(), name.as_bytes())
            );
        }
    }
}
