//! Lists as `lbctl prefilter export --format json` prints them, read again.
//!
//! Every entry is read by itself, so that one that is broken has a place and takes no other one with it.

use std::time::SystemTime;

use anyhow::{Context as _, anyhow};
use serde::Deserialize;
use serde_json::Value;

use super::pieces::{Placed, Sorted, left};
use crate::{
    api::{lists::ListSpec, model::from_rfc3339, problem::FieldError},
    bans::MAX_REASON,
};

/// A list, as it is printed.
#[derive(Debug, Deserialize)]
pub(super) struct Exported {
    /// Its name.
    pub(super) list: String,
    /// What it does, and which packets it is about.
    pub(super) spec: Option<ListSpec>,
    /// What is on it.
    pub(super) items: Vec<Item>,
}

/// Something in the place of an entry.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Item {
    Entry(Printed),
    Other(Value),
}

/// What of an entry is put on a list again.
#[derive(Debug, Deserialize)]
pub(super) struct Printed {
    cidr: String,
    until: Option<String>,
    reason: Option<String>,
}

impl Exported {
    /// `None`: this is something else.
    ///
    /// # Errors
    ///
    /// It is one, but cut short or of another shape.
    pub(super) fn read(text: &[u8]) -> anyhow::Result<Option<Self>> {
        let text = text.trim_ascii_start();
        if text.first() != Some(&b'{') {
            return Ok(None);
        }
        /// Told from the whole without keeping it.
        #[derive(Deserialize)]
        struct Shape {
            items: Option<serde::de::IgnoredAny>,
        }
        match serde_json::from_slice::<Shape>(text) {
            Ok(Shape { items: None }) => Ok(None),
            Ok(_) => {
                serde_json::from_slice(text).context("it looks like an exported list").map(Some)
            }
            // Other lists have an object for each line, so their first line is whole.
            Err(error) => {
                let line = text.split(|c| *c == b'\n').next().unwrap_or_default();
                match serde_json::from_slice::<serde::de::IgnoredAny>(line) {
                    Ok(_) => Ok(None),
                    Err(_) => Err(anyhow!("it is no whole list: {error}")),
                }
            }
        }
    }
}

/// Tells entries that are right from those that are not, and leaves out those whose time is over at `now`.
pub(super) fn sort(items: Vec<Item>, now: SystemTime) -> Sorted {
    let mut sorted = Sorted::new(|place| format!("items[{place}]"));
    for (place, item) in items.into_iter().enumerate() {
        match item.entry(place) {
            Ok(entry) if entry.until.is_some_and(|until| left(until, now).is_none()) => {
                sorted.ended += 1;
            }
            Ok(entry) => sorted.entries.push(entry),
            Err((field, message)) => {
                let place = format!("items[{place}]{field}");
                let message = format!("{place}: {message}");
                sorted.wrong.push(FieldError::new(place, message));
            }
        }
    }
    sorted
}

impl Item {
    fn entry(self, place: usize) -> Result<Placed, (&'static str, String)> {
        let Printed { cidr, until, reason } = match self {
            Self::Entry(entry) => entry,
            Self::Other(value) => {
                let why = serde_json::from_value::<Printed>(value).err();
                let why = why.map(|why| why.to_string()).unwrap_or_default();
                return Err(("", format!("not an entry: {why}")));
            }
        };
        let cidr = config::parse_prefix(&cidr).map_err(|message| (".cidr", message))?;
        let time = |text: String| {
            from_rfc3339(&text)
                .ok_or_else(|| (".until", format!("{text:?} is no time in UTC (of {cidr})")))
        };
        let until = until.map(time).transpose()?;
        if reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON) {
            return Err((".reason", format!("longer than {MAX_REASON} bytes (of {cidr})")));
        }
        Ok(Placed { place, cidr, until, reason })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ctl::prefilter::scope::ScopeOptions;

    const TEXT: &str = r#"
        {"list": "web", "spec": {"action": "audit", "protocol": "tcp", "ports": ["80", "8000-8999"]},
         "items": [
            {"cidr": "192.0.2.7/32", "until": "2026-11-27T12:00:10Z", "expires_in_seconds": 99, "reason": "ssh"},
            {"cidr": "192.0.2.8/32", "until": "2026-11-27T12:00:00Z"},
            {"cidr": "2001:db8::/48", "added": "2026-11-27T11:00:00Z"}
         ]}"#;

    fn said(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    fn noon() -> SystemTime {
        from_rfc3339("2026-11-27T12:00:00Z").unwrap()
    }

    fn sorted(items: &str) -> Sorted {
        let text = format!("{{\"list\": \"a\", \"items\": [{items}]}}");
        sort(Exported::read(text.as_bytes()).unwrap().unwrap().items, noon())
    }

    #[test]
    fn an_export_is_read_again() {
        let mut exported = Exported::read(TEXT.as_bytes()).unwrap().unwrap();
        assert_eq!(exported.list, "web");
        let scope = ScopeOptions::default().or(exported.spec.take().unwrap());
        assert_eq!(
            scope.map(|(_, value)| value),
            [said("tcp"), said("80,8000-8999"), None, None, said("audit")]
        );
        let sorted = sort(exported.items, noon());
        assert_eq!((sorted.ended, sorted.wrong.len()), (1, 0));
        let entry = |place, cidr: &str, until, reason| Placed {
            place,
            cidr: cidr.parse().unwrap(),
            until,
            reason,
        };
        let until = Some(noon() + Duration::from_secs(10));
        let want =
            [entry(0, "192.0.2.7/32", until, said("ssh")), entry(2, "2001:db8::/48", None, None)];
        assert_eq!(sorted.entries, want);
    }

    #[test]
    fn what_is_broken_is_named_by_its_place() {
        let long = "x".repeat(MAX_REASON + 1);
        let sorted = sorted(&format!(
            r#"{{"cidr": "192.0.2.1"}}, {{"cidr": "192.0.2.300"}}, 7, {{"until": "x"}},
               {{"cidr": "192.0.2.1/24"}}, {{"cidr": "192.0.2.2", "until": "tomorrow"}},
               {{"cidr": "192.0.2.3", "reason": "{long}"}}, {{"cidr": "192.0.2.4"}}"#
        ));
        let right: Vec<usize> = sorted.entries.iter().map(|entry| entry.place).collect();
        assert_eq!(right, [0, 7]);
        let fields: Vec<&str> = sorted.wrong.iter().map(|wrong| &*wrong.field).collect();
        let want = [
            "items[1].cidr",
            "items[2]",
            "items[3]",
            "items[4].cidr",
            "items[5].until",
            "items[6].reason",
        ];
        assert_eq!(fields, want);
        let said = |n: usize| &*sorted.wrong[n].message;
        assert!(said(0).starts_with("items[1].cidr: ") && said(0).contains("192.0.2.300"));
        assert!(said(2).contains("items[3]: not an entry: missing field `cidr`"), "{}", said(2));
        assert!(
            said(4).contains("\"tomorrow\" is no time in UTC (of 192.0.2.2/32)"),
            "{}",
            said(4)
        );
    }

    #[test]
    fn what_is_no_export() {
        for text in [
            "192.0.2.0/24\n",
            "",
            "{\"cidr\": \"192.0.2.0/24\"}",
            "{\"cidr\": 1}\n{\"items\": 2}\n",
        ] {
            assert!(Exported::read(text.as_bytes()).unwrap().is_none(), "{text}");
        }
        let error = Exported::read(b"{\"items\": []}").unwrap_err();
        assert!(format!("{error:#}").contains("exported list: missing field `list`"), "{error:#}");
        // A disk that was full.
        let error = Exported::read(&TEXT.as_bytes()[..TEXT.len() - 60]).unwrap_err();
        assert!(error.to_string().starts_with("it is no whole list: EOF"), "{error}");
    }
}
