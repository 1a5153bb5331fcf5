//! Local APIs of CrowdSec.

use std::{ops::RangeInclusive, time::Duration};

use super::remote::{check_url, span};
use crate::{
    fault::{Loc, show},
    file, model,
    validate::{Context, Fragment, Kind, is_name},
};

const LIST: &str = "crowdsec";
const INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

/// A local API to pull from. `None`: the report says why.
pub(super) fn crowdsec(
    entry: &file::CrowdSec,
    at: Loc,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) -> Option<model::CrowdSec> {
    let report = context.report;
    let file::CrowdSec { url, api_key_file, list, interval, timeout, ca_file } = entry;
    if url.is_absent() {
        report.missing(at, "url", "allowed: as http://127.0.0.1:8080");
    }
    if api_key_file.is_absent() {
        report.missing(at, "api_key_file", "allowed: a file with what `cscli bouncers add` prints");
    }
    let (name, name_at) = match list.placed() {
        Some((name, at)) => (name.clone(), at),
        None => (LIST.to_owned(), at),
    };
    if !is_name(&name) {
        let message = format!("{} cannot be the name of a list", show(&name));
        report.fault(name_at, message, "allowed: letters, digits, `.`, `_`, `:` and `-`");
        return None;
    }
    fragment.names.push((Kind::PrefixList, name.clone(), name_at));
    let (url, url_at) = url.placed()?;
    if let Err((message, help)) = check_url(url) {
        report.fault(url_at, message, help);
        return None;
    }
    Some(model::CrowdSec {
        list: name,
        url: url.clone(),
        api_key_file: context.directory.join(api_key_file.get()?),
        interval: span(interval, "interval", Duration::from_secs(10), &INTERVALS, report),
        timeout: span(timeout, "timeout", Duration::from_secs(30), &TIMEOUTS, report),
        ca_file: ca_file.get().map(|path| context.directory.join(path)),
    })
}
