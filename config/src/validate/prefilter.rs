//! `prefilter`.

mod crowdsec;
mod matches;
mod remote;
mod scope;

use std::{path::PathBuf, sync::Arc};

use ipnet::IpNet;

pub(crate) use self::{
    matches::{ListMatch, TableFile},
    scope::scope as list_scope,
};
use super::{Context, Fragment, Kind, required_name};
use crate::{
    fault::{Loc, Report},
    file::{self, Field, List, ListFormat, OnError},
    model,
};

/// A list of a document.
#[derive(Debug)]
pub(crate) struct ListEntry {
    pub(crate) name: String,
    pub(crate) source: model::Source,
    pub(crate) action: model::ListAction,
    pub(crate) force: bool,
    pub(crate) scope: model::Scope,
    pub(crate) body: ListBody,
}

/// Where the prefixes of a list stand.
#[derive(Debug)]
pub(crate) enum ListBody {
    /// In the document.
    Inline(Arc<model::PrefixList>),
    /// In a file, which the document names at this place.
    File(ListPath),
    /// In the files of a directory.
    Directory(ListPath),
    /// In a copy of what the document names at this place.
    Remote(Arc<model::Remote>, Loc),
    /// Of countries and networks, which the document names at this place.
    Match(ListMatch, Loc),
}

/// Where the document names a file or directory of prefixes, and how to read it.
#[derive(Clone, Debug)]
pub(crate) struct ListPath {
    pub(crate) path: PathBuf,
    pub(crate) at: Loc,
    pub(crate) format: ListFormat,
    pub(crate) on_error: OnError,
}

pub(super) fn prefilter(
    prefilter: &Field<file::Prefilter>,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) {
    let Some(file::Prefilter { allow, lists, tables, crowdsec, filters, rate_limits, syn_proxy }) =
        prefilter.get()
    else {
        return;
    };
    if let Some(tables) = tables.get() {
        matches::tables(tables, context, fragment);
    }
    for (entry, at) in crowdsec.elements() {
        if let Some(entry) = crowdsec::crowdsec(entry, at, context, fragment) {
            fragment.crowdsec.push(Arc::new(entry));
        }
    }
    fragment.allow.extend(allow.elements().map(|(cidr, _)| cidr.0));
    for (entry, at) in lists.elements() {
        if let Some(entry) = list(entry, at, context, fragment) {
            fragment.lists.push(entry);
        }
    }
    for (filter, at) in filters.elements() {
        match filter {
            file::Filter::Bogons => {
                let list = bogons(at, context, fragment);
                fragment.lists.push(list);
            }
            file::Filter::TcpFlags => fragment.filters.tcp_flags = true,
            file::Filter::Amplification => fragment.filters.amplification = true,
            file::Filter::Fragments => fragment.filters.fragments = true,
        }
    }
    self::rate_limits(rate_limits, context, fragment);
    if let Some((proxy, at)) = syn_proxy.placed() {
        self::syn_proxy(proxy, at, context, fragment);
    }
}

fn syn_proxy(proxy: &file::SynProxy, at: Loc, context: &Context<'_, '_>, fragment: &mut Fragment) {
    let file::SynProxy { ports, stray_acks } = proxy;
    let ranges = ports.elements().map(|(&file::ScopePorts(first, last), _)| (first, last));
    fragment.syn_proxy.ports.extend(ranges);
    // A port that is none has been reported where it stands.
    if ports.is_absent() || ports.get().is_some_and(Vec::is_empty) {
        context.report.missing(at, "ports", "allowed: TCP ports of listeners, such as [443]");
    }
    fragment.syn_proxy.drop_stray_acks |= stray_acks.get() == Some(&file::StrayAcks::Drop);
}

/// Special-purpose addresses (RFC 6890 and its registries) and multicast ones, which nobody on the Internet
/// sends from; without what a link needs to come up: the unspecified addresses and fe80::/10.
const BOGONS: [&str; 23] = [
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::1/128",
    "::ffff:0:0/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001:2::/48",
    "2001:db8::/32",
    "3fff::/20",
    "fc00::/7",
    "ff00::/8",
];

fn bogons(at: Loc, context: &Context<'_, '_>, fragment: &mut Fragment) -> ListEntry {
    let (name, source) = ("bogons".to_owned(), context.source(at));
    fragment.names.push((Kind::PrefixList, name.clone(), at));
    let prefixes = BOGONS.iter().filter_map(|text| text.parse::<IpNet>().ok());
    let list = model::PrefixList::new(name.clone(), source.clone(), prefixes.collect());
    ListEntry {
        name,
        source,
        action: list.action,
        force: false,
        scope: model::Scope::default(),
        body: ListBody::Inline(Arc::new(list)),
    }
}

fn list(
    list: &file::PrefixList,
    at: Loc,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) -> Option<ListEntry> {
    let report = context.report;
    let file::PrefixList { name, cidrs, file, directory, url, matches, action, force, .. } = list;
    let name = required_name(name, at, Kind::PrefixList, context, fragment);
    let action = match action.get() {
        None | Some(file::ListAction::Drop) => model::ListAction::Drop,
        Some(file::ListAction::Audit) => model::ListAction::Audit,
    };
    let scope = scope::scope(list, report);
    let is_inline = has_one_body(list, at, report)?;
    refuse_read_options(list, report);
    if url.is_absent() {
        remote::refuse_options(list, report);
    }
    let name = name?;
    let source = context.source(at);
    let force = force.get().copied().unwrap_or(false);
    let wanted = matches.placed();
    let body = match (file.placed(), directory.placed(), url.placed()) {
        _ if wanted.is_some() => {
            let (wanted, at) = wanted?;
            ListBody::Match(matches::list_match(wanted, at, context)?, at)
        }
        (Some(path), ..) => ListBody::File(list_path(path, "file", list, context)?),
        (_, Some(path), _) => ListBody::Directory(list_path(path, "directory", list, context)?),
        (.., Some((text, at))) => {
            ListBody::Remote(Arc::new(remote::remote(text, at, list, context)?), at)
        }
        (None, None, None) if !is_inline => return None,
        (None, None, None) => ListBody::Inline(Arc::new(model::PrefixList {
            action,
            force,
            scope: scope.clone(),
            ..model::PrefixList::new(
                name.clone(),
                source.clone(),
                cidrs.elements().map(|(cidr, _)| cidr.0).collect(),
            )
        })),
    };
    Some(ListEntry { name, source, action, force, scope, body })
}

/// Whether the prefixes stand in the list itself; `None`: it says two things at once.
fn has_one_body(list: &file::PrefixList, at: Loc, report: &Report<'_>) -> Option<bool> {
    let file::PrefixList { cidrs, file, directory, url, matches, .. } = list;
    let places = [
        (!cidrs.is_absent(), at),
        (!file.is_absent(), file.at),
        (!directory.is_absent(), directory.at),
        (!url.is_absent(), url.at),
        (!matches.is_absent(), matches.at),
    ];
    let places: Vec<Loc> = places.iter().filter(|(is, _)| *is).map(|(_, at)| *at).collect();
    match places[..] {
        [] => report.missing(
            at,
            "cidrs",
            "allowed: cidrs: [192.0.2.0/24], file: lists/drop.txt, directory: lists, url: https://... or match: \
             {country: [XX]}",
        ),
        [_] => {}
        [.., last] => {
            let message = "a list has two of `cidrs`, `file`, `directory`, `url` and `match`";
            report.fault(last, message, "allowed: one of them");
            return None;
        }
    }
    Some(places == [at])
}

/// Options of reading, in a list that nothing is read for.
fn refuse_read_options(list: &file::PrefixList, report: &Report<'_>) {
    let file::PrefixList { file, directory, url, format, on_error, .. } = list;
    if file.is_absent() && directory.is_absent() && url.is_absent() {
        let others = [
            (format.is_absent(), format.at, "format"),
            (on_error.is_absent(), on_error.at, "on_error"),
        ];
        for (_, at, field) in others.into_iter().filter(|(absent, ..)| !absent) {
            report.fault(
                at,
                format!("`{field}` says how a file is read, and this list has none"),
                "leave it out, or set `file`",
            );
        }
    }
}

fn list_path(
    (text, at): (&String, Loc),
    field: &str,
    list: &file::PrefixList,
    context: &Context<'_, '_>,
) -> Option<ListPath> {
    if text.is_empty() || text.contains('\0') {
        let help = format!("allowed: the path of a list {field}");
        context.report.fault(at, format!("`{field}` is not a path"), help);
        return None;
    }
    let path = context.directory.join(text);
    let format = list.format.get().copied().unwrap_or_default();
    let on_error = list.on_error.get().copied().unwrap_or_default();
    Some(ListPath { path, at, format, on_error })
}

const PACKETS: std::ops::RangeInclusive<u64> = 1..=1_000_000;
const BYTES: std::ops::RangeInclusive<u64> = 1000..=100_000_000_000;

fn rate_limits(limits: &List<file::RateLimit>, context: &Context<'_, '_>, fragment: &mut Fragment) {
    for (limit, at) in limits.elements() {
        if let Some(limit) = rate_limit(limit, at, context, fragment) {
            fragment.rate_limits.push(limit);
        }
    }
}

fn rate_limit(
    limit: &file::RateLimit,
    at: Loc,
    context: &Context<'_, '_>,
    fragment: &mut Fragment,
) -> Option<model::RateLimit> {
    let file::RateLimit { name, matches, packets_per_second, bytes_per_second, burst, key, action } =
        limit;
    let name = required_name(name, at, Kind::RateLimit, context, fragment);
    let rate = rate(limit, at, context);
    let file::RateKey(length) = key.get().copied().unwrap_or(file::RateKey(32));
    let matches = matches.get().map(|matches| rate_match(matches, context)).unwrap_or_default();
    let (protocol, port, tcp_flags) = matches;
    let rate = rate?;
    let second = packets_per_second.get().or(bytes_per_second.get()).copied()?;
    Some(model::RateLimit {
        name: name?,
        source: context.source(at),
        action: match action.get() {
            None | Some(file::ListAction::Drop) => model::ListAction::Drop,
            Some(file::ListAction::Audit) => model::ListAction::Audit,
        },
        protocol,
        port,
        tcp_flags,
        rate,
        burst: burst.get().copied().unwrap_or(second),
        key: if length <= 32 { (length, 64) } else { (32, length) },
    })
}

/// What it counts, and how much of it is allowed.
fn rate(limit: &file::RateLimit, at: Loc, context: &Context<'_, '_>) -> Option<model::Rate> {
    let file::RateLimit { packets_per_second, bytes_per_second, burst, .. } = limit;
    let (field, what, allowed) = if bytes_per_second.is_absent() {
        (packets_per_second, "packets_per_second", PACKETS)
    } else {
        (bytes_per_second, "bytes_per_second", BYTES)
    };
    if !packets_per_second.is_absent() && !bytes_per_second.is_absent() {
        let message = "a limit has both `packets_per_second` and `bytes_per_second`";
        context.report.fault(bytes_per_second.at, message, "allowed: one of them; make two limits");
        return None;
    }
    let allowed_text = format!("allowed: {} to {}", allowed.start(), allowed.end());
    if field.is_absent() {
        context.report.missing(at, what, &allowed_text);
    }
    for (field, what) in [(field, what), (burst, "burst")] {
        if let Some((value, at)) = field.placed().filter(|(value, _)| !allowed.contains(*value)) {
            context.report.fault(at, format!("`{what}` is {value}"), &*allowed_text);
        }
    }
    let value = *field.get()?;
    Some(if bytes_per_second.is_absent() {
        model::Rate::Packets(value)
    } else {
        model::Rate::Bytes(value)
    })
}

/// Protocol, port, and TCP flags that are looked at and those of them that are set.
type Matched = (Option<model::Protocol>, u16, (u8, u8));

fn rate_match(matches: &file::RateMatch, context: &Context<'_, '_>) -> Matched {
    let file::RateMatch { protocol, port, tcp_flags } = matches;
    if protocol.is_absent() && !port.is_absent() {
        context.report.fault(
            port.at,
            "`port` needs a `protocol`",
            "allowed: protocol: tcp or protocol: udp beside it",
        );
    }
    let protocol = protocol.get().copied();
    if protocol == Some(file::Protocol::Sctp) && !port.is_absent() {
        context.report.fault(
            port.at,
            "limits do not look at the ports of SCTP",
            "leave `port` out, or protocol: tcp or protocol: udp",
        );
    }
    let (mut mask, mut set) = (0, 0);
    for (flag, at) in tcp_flags.elements() {
        if protocol != Some(file::Protocol::Tcp) {
            let help = "allowed: protocol: tcp beside it";
            context.report.fault(at, "`tcp_flags` needs `protocol: tcp`", help);
        }
        if mask & flag.bit != 0 {
            context.report.fault(at, "a flag is named twice", "allowed: each once");
        }
        mask |= flag.bit;
        set |= if flag.set { flag.bit } else { 0 };
    }
    let protocol = protocol.map(|protocol| match protocol {
        file::Protocol::Tcp => model::Protocol::Tcp,
        file::Protocol::Udp => model::Protocol::Udp,
        file::Protocol::Sctp => model::Protocol::Sctp,
    });
    (protocol, port.get().copied().unwrap_or(0), (mask, set))
}
