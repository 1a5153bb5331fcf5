//! The blocklists of all documents, with those that stand in files of their own.

use std::{path::Path, sync::Arc};

use super::{
    CachedFile, CachedList, Files, GeoCache, ListCache, MAX_LIST_BYTES, Unreadable, directory,
    remote, same_file,
};
use crate::{
    fault::{Fault, Loc},
    file::OnError,
    lists, model,
    validate::{ListBody, ListEntry, ListPath},
};

/// The blocklists of all documents, with those that stand in files of their own.
pub(super) fn prefilter<'f, I: Iterator<Item = &'f CachedFile>>(
    files: impl Fn() -> I,
    (from, copies): (&Files, Option<&Path>),
    (cache, geo): (&mut ListCache, &mut GeoCache),
    faults: &mut Vec<Fault>,
) -> model::Prefilter {
    let tables = files()
        .flat_map(|file| file.fragment.tables.iter().map(|table| (file.path.as_path(), table)));
    let known = geo.tables(from, tables, faults);
    let mut crowdsec = Vec::new();
    cache.values_mut().for_each(|list| list.used = false);
    let mut allow = Vec::new();
    let mut lists = Vec::new();
    let mut filters = model::Filters::default();
    let mut rate_limits: Vec<model::RateLimit> = Vec::new();
    let mut syn_proxy = model::SynProxy::default();
    for CachedFile { path: document, fragment, .. } in files() {
        crowdsec.extend(fragment.crowdsec.iter().cloned());
        allow.extend_from_slice(&fragment.allow);
        filters.tcp_flags |= fragment.filters.tcp_flags;
        filters.amplification |= fragment.filters.amplification;
        filters.fragments |= fragment.filters.fragments;
        rate_limits.extend_from_slice(&fragment.rate_limits);
        syn_proxy.ports.extend_from_slice(&fragment.syn_proxy.ports);
        syn_proxy.drop_stray_acks |= fragment.syn_proxy.drop_stray_acks;
        for entry in &fragment.lists {
            let mut of_document =
                |at: Loc, why: Unreadable| faults.push(of_place(document, at, why));
            match &entry.body {
                ListBody::Inline(list) => lists.push(list.clone()),
                ListBody::File(file) => match list_file(entry, file, from, cache) {
                    Ok(Ok(list)) => lists.push(list),
                    Ok(Err(of_lines)) => faults.extend(of_lines),
                    Err(why) => of_document(file.at, why),
                },
                ListBody::Match(wanted, at) => match geo.lacks(wanted) {
                    None => lists.push(geo.list(entry, wanted)),
                    Some(why) => of_document(*at, why),
                },
                ListBody::Remote(remote, at) => {
                    match remote::list(entry, remote, *at, copies, cache) {
                        Ok(list) => lists.push(list),
                        Err(why) => of_document(*at, why),
                    }
                }
                ListBody::Directory(directory) => {
                    match directory::entries(entry, directory, from) {
                        Ok(entries) => {
                            for (entry, file) in entries {
                                match list_file(&entry, &file, from, cache) {
                                    Ok(Ok(list)) => lists.push(list),
                                    Ok(Err(of_lines)) => faults.extend(of_lines),
                                    Err(why) => faults.push(of_place(document, file.at, why)),
                                }
                            }
                        }
                        Err(why) => of_document(directory.at, why),
                    }
                }
            }
        }
    }
    cache.retain(|_, list| list.used);
    directory::unique(&lists, faults);
    rate_limits.sort();
    if let Some(model::Source::File { path, line, column }) =
        rate_limits.get(model::MAX_RATE_LIMITS).map(|limit| &limit.source)
    {
        faults.push(Fault {
            path: path.to_path_buf(),
            line: *line,
            column: *column,
            message: format!("there are {} rate limits", rate_limits.len()),
            help: format!("allowed: at most {}", model::MAX_RATE_LIMITS),
        });
    }
    let allow = allow.into_iter().collect();
    model::Prefilter { allow, lists, filters, rate_limits, syn_proxy, geo: known, crowdsec }
}

pub(super) fn of_place(
    document: &Path,
    at: Loc,
    Unreadable { message, help }: Unreadable,
) -> Fault {
    Fault { path: document.to_path_buf(), line: at.line, column: at.column, message, help }
}

/// The list of an entry that names a file, or the faults of its lines.
pub(super) fn list_file(
    entry: &ListEntry,
    file: &ListPath,
    from: &Files,
    cache: &mut ListCache,
) -> Result<Result<Arc<model::PrefixList>, Vec<Fault>>, Unreadable> {
    let ListEntry { name, source, action, force, scope, body } = entry;
    let ListPath { path, at: _, format, on_error } = file;
    let remote = match body {
        ListBody::Remote(remote, _) => Some(remote),
        _ => None,
    };
    let list = |prefixes, skipped, skipped_lines| {
        let (name, source, action, remote) =
            (name.clone(), source.clone(), *action, remote.cloned());
        Arc::new(model::PrefixList {
            name,
            source,
            action,
            prefixes,
            skipped,
            skipped_lines,
            remote,
            force: *force,
            scope: scope.clone(),
        })
    };
    let key = (path.clone(), *format, *on_error);
    let seen = cache.get_mut(&key).map(|cached| {
        cached.used = true;
        &mut cached.seen
    });
    if let Some((bytes, seen)) = from.read_if_changed(path, seen, MAX_LIST_BYTES)? {
        let old = cache.remove(&key).map(|old| old.built).unwrap_or_default();
        let parsed = lists::parse(path, &bytes, *format);
        drop(bytes);
        let reject = parsed.wrong > 0 && *on_error == OnError::Reject;
        let faults = if reject { parsed.all_faults() } else { Vec::new() };
        let lists::Parsed { prefixes, faults: skipped, wrong } = parsed;
        let same =
            |old: &Arc<model::PrefixList>| old.prefixes == prefixes && old.skipped == skipped;
        let built = match old.first() {
            _ if reject => old,
            Some(first) if same(first) => old,
            _ => vec![list(prefixes, skipped, wrong)],
        };
        cache.insert(key.clone(), CachedList { seen, built, faults, used: true });
    }
    let Some(cached) = cache.get_mut(&key) else { return Ok(Err(Vec::new())) };
    if !cached.faults.is_empty() {
        return Ok(Err(cached.faults.clone()));
    }
    let is_same = |one: &&Arc<model::PrefixList>| {
        one.name == *name
            && one.action == *action
            && one.force == *force
            && one.scope == *scope
            && same_file(&one.source, source)
            && one.remote.as_ref() == remote
    };
    if let Some(built) = cached.built.iter().find(is_same) {
        return Ok(Ok(built.clone()));
    }
    let Some(first) = cached.built.first().cloned() else { return Ok(Err(Vec::new())) };
    let built = list(first.prefixes.clone(), first.skipped.clone(), first.skipped_lines);
    cached.built.push(built.clone());
    Ok(Ok(built))
}

pub(super) fn same_prefilter(one: &model::Prefilter, other: &model::Prefilter) -> bool {
    one.allow == other.allow
        && one.filters == other.filters
        && one.rate_limits == other.rate_limits
        && one.syn_proxy == other.syn_proxy
        && one.crowdsec == other.crowdsec
        && Arc::ptr_eq(&one.geo, &other.geo)
        && one.lists.len() == other.lists.len()
        && one.lists.iter().zip(&other.lists).all(|(one, other)| Arc::ptr_eq(one, other))
}
