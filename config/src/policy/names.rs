//! Names in DNS, as rules select them.

use std::{fmt, time::Duration};

use crate::glob;

/// The longest name (RFC 1035 section 2.3.4), as text without the dot at its end.
const MAX_NAME: usize = 253;

/// A name, or names by a pattern. In lower case and without a dot at the end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePattern {
    text: String,
    wild: bool,
}

impl NamePattern {
    /// A name, or a pattern where `wild`: there `*` stands for any characters but a dot, alone for every
    /// name; and `**.` in front for one label or more.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str, wild: bool) -> Result<Self, String> {
        let text = text.trim().trim_end_matches('.').to_ascii_lowercase();
        let inner = text.strip_prefix("**.").filter(|_| wild).unwrap_or(&text);
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let fits = |c: char| letter(c) || (wild && c == '*');
        let labels = inner.split('.').all(|label| !label.is_empty() && label.len() <= 63);
        if !labels || text.len() > MAX_NAME || !inner.chars().all(fits) || inner.contains("**") {
            let what = if wild { "pattern of names" } else { "name" };
            return Err(format!("`{text}` is no {what} in DNS"));
        }
        Ok(Self { text, wild })
    }

    /// Whether it stands for this name, which is in lower case and without a dot at the end.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if !self.wild {
            return self.text == name;
        }
        if self.text == "*" {
            return true;
        }
        let Some(rest) = self.text.strip_prefix("**.") else {
            return glob::matches(&self.text, name, Some('.'));
        };
        let dots = name.match_indices('.').map(|(at, _)| at + 1);
        dots.into_iter().any(|at| glob::matches(rest, &name[at..], Some('.')))
    }

    /// Whether it is a pattern.
    #[must_use]
    pub const fn is_wild(&self) -> bool {
        self.wild
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Bounds of what is learned from DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fqdn {
    /// An address counts at least so long.
    pub min_ttl: Duration,
    /// Addresses of one name.
    pub addresses_per_name: u16,
    /// Names that one pattern stands for.
    pub names_per_pattern: u16,
}

impl Fqdn {
    /// The longest `min_ttl`.
    pub const LONGEST: Duration = Duration::from_secs(86_400);
    /// The most addresses, and the most names.
    pub const MOST: u16 = 4096;
}

impl Default for Fqdn {
    fn default() -> Self {
        Self { min_ttl: Duration::from_secs(60), addresses_per_name: 64, names_per_pattern: 1024 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        NamePattern::new(pattern, true).unwrap().matches(name)
    }

    #[test]
    fn patterns_as_they_are_documented() {
        for (pattern, name, wanted) in [
            ("*", "a.b.c", true),
            ("*.example.org", "www.example.org", true),
            ("*.example.org", "a.www.example.org", false),
            ("*.example.org", "example.org", false),
            ("**.example.org", "a.www.example.org", true),
            ("**.example.org", "example.org", false),
            ("**.example.org", "badexample.org", false),
            ("api-*.EXAMPLE.org.", "api-7.example.org", true),
            ("api-*.example.org", "api-.example.org", true),
            ("*a*b.org", "xaaxbb.org", true),
            ("*a*b.org", "xa.xb.org", false),
            ("sub.*.com", "sub.a.com", true),
            ("*.org", "exampleXorg", false),
        ] {
            assert_eq!(matches(pattern, name), wanted, "{pattern} {name}");
        }
        let name = NamePattern::new("Example.ORG.", false).unwrap();
        assert!(name.matches("example.org") && !name.matches("a.example.org"));
    }

    #[test]
    fn what_is_no_name() {
        for text in ["", ".", "a..b", "a b", "é.org", &"a".repeat(64), &"a.".repeat(127)] {
            assert!(NamePattern::new(text, false).is_err() || text.len() == 254, "{text}");
        }
        assert!(NamePattern::new("*.org", false).is_err());
        assert!(NamePattern::new("a**.org", true).is_err());
    }

    proptest! {
        #[test]
        fn as_a_naive_matcher(pattern in "[ab.*]{0,8}", name in "[ab.]{0,8}") {
            fn naive(pattern: &[u8], name: &[u8]) -> bool {
                match (pattern.split_first(), name.split_first()) {
                    (None, None) => true,
                    (Some((b'*', rest)), _) => {
                        naive(rest, name)
                            || name.split_first().is_some_and(|(c, more)| *c != b'.' && naive(pattern, more))
                    }
                    (Some((p, rest)), Some((n, more))) => p == n && naive(rest, more),
                    _ => false,
                }
            }
            prop_assert_eq!(glob::matches(&pattern, &name, Some('.')), naive(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
