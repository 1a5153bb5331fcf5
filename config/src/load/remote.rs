//! Lists that are fetched, read from their copies. Whoever fetches has checked a copy: whatever has
//! become of it since, it does not keep the configuration from being loaded.

use std::{path::Path, sync::Arc};

use super::{CachedList, Files, ListCache, Unreadable, list_file, read::Seen};
use crate::{
    PrefixSet,
    fault::Loc,
    file::OnError,
    model,
    validate::{ListEntry, ListPath},
};

/// The list of an entry with `url`: what its copy holds, or nothing while there is none.
pub(super) fn list(
    entry: &ListEntry,
    remote: &Arc<model::Remote>,
    at: Loc,
    copies: Option<&Path>,
    cache: &mut ListCache,
) -> Result<Arc<model::PrefixList>, Unreadable> {
    let path = copies.unwrap_or(Path::new("")).join(remote.copy_name(&entry.name));
    let copy = ListPath { path, at, format: remote.format, on_error: OnError::Skip };
    if copies.is_some() && copy.path.exists() {
        return match list_file(entry, &copy, &Files::Disk, cache)? {
            Ok(list) => Ok(list),
            // Lines are skipped, so there are no faults.
            Err(_) => Ok(empty(entry, remote, &copy, cache)),
        };
    }
    Ok(empty(entry, remote, &copy, cache))
}

/// The same empty list each time, so that nothing is compiled anew for it.
fn empty(
    entry: &ListEntry,
    remote: &Arc<model::Remote>,
    copy: &ListPath,
    cache: &mut ListCache,
) -> Arc<model::PrefixList> {
    let list = model::PrefixList {
        action: entry.action,
        remote: Some(Arc::clone(remote)),
        force: entry.force,
        scope: entry.scope.clone(),
        ..model::PrefixList::new(entry.name.clone(), entry.source.clone(), PrefixSet::default())
    };
    let key = (copy.path.clone(), copy.format, copy.on_error);
    if let Some(cached) = cache.get_mut(&key)
        && let Some(same) = cached.built.iter().find(|built| ***built == list).cloned()
    {
        cached.used = true;
        return same;
    }
    let list = Arc::new(list);
    let built = vec![Arc::clone(&list)];
    cache.insert(key, CachedList { seen: Seen::nothing(), built, faults: Vec::new(), used: true });
    list
}
