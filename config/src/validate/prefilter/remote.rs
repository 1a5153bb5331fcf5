//! Lists that are fetched: `url` and what goes with it.

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    fault::{Loc, Report, show},
    file::{self, Field, Span},
    format_duration, model,
    validate::Context,
};

/// Bounds. Publishers of lists block who asks more often.
const REFRESHES: RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(30 * 86_400);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
const SIZES: RangeInclusive<u64> = 1..=1 << 30;

/// Refuses what goes with `url` in a list that has none.
pub(super) fn refuse_options(list: &file::PrefixList, report: &Report<'_>) {
    let file::PrefixList { refresh, timeout, max_bytes, ca_file, .. } = list;
    let fields = [
        (refresh.is_absent(), refresh.at, "refresh"),
        (timeout.is_absent(), timeout.at, "timeout"),
        (max_bytes.is_absent(), max_bytes.at, "max_bytes"),
        (ca_file.is_absent(), ca_file.at, "ca_file"),
    ];
    for (_, at, field) in fields.into_iter().filter(|(absent, ..)| !absent) {
        let message = format!("`{field}` says how a list is fetched, and this one is not");
        report.fault(at, message, "leave it out, or set `url`");
    }
}

/// Where the list is fetched from. `None`: the report says why.
pub(super) fn remote(
    url: &str,
    at: Loc,
    list: &file::PrefixList,
    context: &Context<'_, '_>,
) -> Option<model::Remote> {
    let report = context.report;
    if let Err((message, help)) = check_url(url) {
        report.fault(at, message, help);
        return None;
    }
    let max_bytes = list.max_bytes.placed().map(|(bytes, at)| (*bytes, at));
    if let Some((bytes, at)) = max_bytes.filter(|(bytes, _)| !SIZES.contains(bytes)) {
        let help = format!("allowed: 1 to {}", SIZES.end());
        report.fault(at, format!("`max_bytes` is {bytes}"), help);
    }
    let ca_file = list.ca_file.get().filter(|path| !path.is_empty());
    let default = model::Remote::new(url);
    Some(model::Remote {
        refresh: span(&list.refresh, "refresh", default.refresh, &REFRESHES, report),
        timeout: span(&list.timeout, "timeout", default.timeout, &TIMEOUTS, report),
        max_bytes: max_bytes.map_or(default.max_bytes, |(bytes, _)| bytes),
        ca_file: ca_file.map(|path| context.directory.join(path)),
        format: list.format.get().copied().unwrap_or_default(),
        on_error: list.on_error.get().copied().unwrap_or_default(),
        ..default
    })
}

/// A duration within bounds, or a fault and the default.
pub(super) fn span(
    field: &Field<Span>,
    name: &str,
    default: Duration,
    allowed: &RangeInclusive<Duration>,
    report: &Report<'_>,
) -> Duration {
    let Some((Span(span), at)) = field.placed() else { return default };
    if !allowed.contains(span) {
        let [from, to] = [*allowed.start(), *allowed.end()].map(format_duration);
        let message = format!("`{name}` is {}", format_duration(*span));
        report.fault(at, message, format!("allowed: {from} to {to}"));
    }
    *span
}

/// Whether a URL is one that can be fetched.
pub(super) fn check_url(url: &str) -> Result<(), (String, String)> {
    let allowed = "allowed: http:// or https://, a host, and perhaps a port and a path";
    let wrong = |what: &str| Err((format!("{} {what}", show(url)), allowed.to_owned()));
    let Some(rest) = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")) else {
        return wrong("is not the URL of a list");
    };
    if !url.bytes().all(|c| c.is_ascii_graphic()) {
        return wrong("has characters that a URL cannot have");
    }
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.contains('@') {
        let help = "leave it out: secrets do not belong into a configuration that many may read";
        return Err((format!("{} has a user name", show(url)), help.to_owned()));
    }
    if host.is_empty() || host.starts_with(':') {
        return wrong("has no host");
    }
    if rest.contains('#') {
        return wrong("has a fragment");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for good in ["http://a/b.txt", "https://[2001:db8::1]:8443/x?y=1", "https://a"] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        let bad = ["ftp://a/b", "a/b", "http://", "https://:80/", "https://u:p@a/", "http://a/#b"];
        for bad in bad.into_iter().chain(["http://a/b c", "http://ä/"]) {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }
}
