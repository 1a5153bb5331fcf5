//! Lists as `lbctl prefilter export --format json` prints them, read again.

use std::time::SystemTime;

use anyhow::Context as _;
use serde::Deserialize;

use crate::api::{
    lists::{Entry, ListSpec, NewEntry},
    model::from_rfc3339,
};

/// A list, as it is printed.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Exported {
    /// Its name.
    pub(super) list: String,
    /// What it does, and which packets it is about.
    pub(super) spec: Option<ListSpec>,
    /// What is on it.
    pub(super) items: Vec<Entry>,
}

impl Exported {
    /// `None`: this is something else.
    ///
    /// # Errors
    ///
    /// It is one, but for something in it.
    pub(super) fn read(text: &[u8]) -> anyhow::Result<Option<Self>> {
        if text.trim_ascii_start().first() != Some(&b'{') {
            return Ok(None);
        }
        // Others have an object for each line.
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(text) else { return Ok(None) };
        if value.get("items").is_none() {
            return Ok(None);
        }
        serde_json::from_value(value).context("it looks like an exported list").map(Some)
    }
}

/// What of a list is to be put on another one.
#[derive(Debug, Default)]
pub(super) struct Left {
    pub(super) entries: Vec<NewEntry>,
    /// Those whose time is over.
    pub(super) ended: u64,
}

/// Entries as new ones, which go when they would have gone; those without end or reason get that of the options.
///
/// # Errors
///
/// An end that is no time.
pub(super) fn left(
    items: Vec<Entry>,
    (ttl, reason): (&Option<String>, &Option<String>),
    now: SystemTime,
) -> anyhow::Result<Left> {
    let mut left = Left::default();
    for Entry { cidr, until, reason: own, .. } in items {
        let ttl = match until {
            None => ttl.clone(),
            Some(until) => {
                let until = from_rfc3339(&until)
                    .with_context(|| format!("{cidr}: \"until\": {until:?} is no time in UTC"))?;
                match until.duration_since(now).map_or(0, |rest| rest.as_secs()) {
                    0 => {
                        left.ended += 1;
                        continue;
                    }
                    seconds => Some(format!("{seconds}s")),
                }
            }
        };
        let reason = own.or_else(|| reason.clone());
        left.entries.push(NewEntry { cidr: cidr.to_string(), ttl, reason });
    }
    Ok(left)
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

    #[test]
    fn an_export_is_read_again() {
        let exported = Exported::read(TEXT.as_bytes()).unwrap().unwrap();
        assert_eq!(exported.list, "web");
        let scope = ScopeOptions::default().or(exported.spec.unwrap());
        let said = |value: &str| Some(value.to_owned());
        assert_eq!(
            scope.map(|(_, value)| value),
            [said("tcp"), said("80,8000-8999"), None, None, said("audit")]
        );
        let now = from_rfc3339("2026-11-27T12:00:00Z").unwrap();
        let options = (&said("1h"), &said("imported"));
        let left = left(exported.items, options, now).unwrap();
        assert_eq!(left.ended, 1);
        let entries: Vec<_> = left.entries.into_iter().map(|e| (e.cidr, e.ttl, e.reason)).collect();
        assert_eq!(
            entries,
            [
                ("192.0.2.7/32".to_owned(), said("10s"), said("ssh")),
                ("2001:db8::/48".to_owned(), said("1h"), said("imported")),
            ]
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
            assert_eq!(Exported::read(text.as_bytes()).unwrap(), None, "{text}");
        }
        let error =
            Exported::read(b"{\"list\": \"a\", \"items\": [{\"cidr\": \"x\"}]}").unwrap_err();
        assert!(format!("{error:#}").contains("exported list: invalid IP address"), "{error:#}");
        let entry = r#"{"list": "a", "items": [{"cidr": "192.0.2.1/32", "until": "tomorrow"}]}"#;
        let items = Exported::read(entry.as_bytes()).unwrap().unwrap().items;
        let error =
            left(items, (&None, &None), SystemTime::now() + Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1/32: \"until\": \"tomorrow\""), "{error}");
    }
}
