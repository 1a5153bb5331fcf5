//! Tables of countries and of network numbers, read again when one of their files changes, and the lists
//! that are made of them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Files, MAX_LIST_BYTES, Unreadable, of_place, read::Seen, same_file};
use crate::{
    fault::Fault,
    geo::{Geo, Reader, What},
    model,
    validate::{ListEntry, ListMatch, TableFile},
};

/// What was read, and what was made of it.
#[derive(Debug, Default)]
pub(super) struct GeoCache {
    files: BTreeMap<(What, PathBuf), Seen>,
    faults: BTreeMap<What, Vec<Fault>>,
    geo: Arc<Geo>,
    lists: Vec<(Arc<Geo>, ListMatch, Arc<model::PrefixList>)>,
}

impl GeoCache {
    /// The tables of these files, each with the document that names it.
    pub(super) fn tables<'f>(
        &mut self,
        from: &Files,
        files: impl Iterator<Item = (&'f Path, &'f TableFile)>,
        faults: &mut Vec<Fault>,
    ) -> Arc<Geo> {
        let mut wanted: BTreeMap<What, BTreeMap<&Path, (&Path, &TableFile)>> = BTreeMap::new();
        for (document, file) in files {
            wanted.entry(file.what).or_default().insert(&file.path, (document, file));
        }
        for what in [What::Country, What::Asn] {
            let files = wanted.remove(&what).unwrap_or_default();
            if let Err(unreadable) = self.table(from, what, &files) {
                self.faults.remove(&what);
                faults.extend(unreadable);
            }
            faults.extend(self.faults.get(&what).into_iter().flatten().cloned());
        }
        Arc::clone(&self.geo)
    }

    /// Reads one kind of table, if any of its files is not as it was.
    fn table(
        &mut self,
        from: &Files,
        what: What,
        files: &BTreeMap<&Path, (&Path, &TableFile)>,
    ) -> Result<(), Vec<Fault>> {
        let known = self.files.keys().filter(|(of, _)| *of == what).map(|(_, path)| path);
        let mut changed = !known.map(PathBuf::as_path).eq(files.keys().copied());
        let mut fresh = BTreeMap::new();
        for (path, (document, file)) in files {
            let seen = self.files.get_mut(&(what, path.to_path_buf()));
            match from.read_if_changed(path, seen, MAX_LIST_BYTES) {
                Ok(None) => {}
                Ok(Some(read)) => {
                    changed = true;
                    fresh.insert(*path, read);
                }
                Err(why) => {
                    // It counts as new when it can be read again.
                    self.files.remove(&(what, path.to_path_buf()));
                    return Err(vec![of_place(document, file.at, why)]);
                }
            }
        }
        if !changed {
            return Ok(());
        }
        self.files.retain(|(of, _), _| *of != what);
        let mut reader = Reader::new(what);
        for (path, (document, file)) in files {
            let read = match fresh.remove(path) {
                Some(read) => Some(read),
                None => from
                    .read_if_changed(path, None, MAX_LIST_BYTES)
                    .map_err(|why| vec![of_place(document, file.at, why)])?,
            };
            let Some((bytes, seen)) = read else { continue };
            reader.read(path, &bytes);
            self.files.insert((what, path.to_path_buf()), seen);
        }
        if reader.lacks_locations()
            && let Some((path, (document, file))) = files.first_key_value()
        {
            let message =
                format!("{} names places, and no file says where they are", path.display());
            let help = "add GeoLite2-Country-Locations-en.csv".to_owned();
            reader.faults.push(of_place(document, file.at, Unreadable { message, help }));
        }
        match reader.finish() {
            Ok((table, names)) => {
                let mut geo = Geo::clone(&self.geo);
                match what {
                    What::Country => geo.countries = table,
                    What::Asn => (geo.asns, geo.names) = (table, names),
                }
                self.geo = Arc::new(geo);
                self.faults.remove(&what);
            }
            Err(faults) => drop(self.faults.insert(what, faults)),
        }
        Ok(())
    }

    /// Which tables a list needs that are not there.
    pub(super) fn lacks(&self, wanted: &ListMatch) -> Option<Unreadable> {
        let has = |what| self.files.keys().any(|(of, _)| *of == what);
        let needs = [
            (!wanted.countries.is_empty(), What::Country, "country"),
            (!wanted.asns.is_empty(), What::Asn, "asn"),
        ];
        let (.., name) = needs.into_iter().find(|(needed, what, _)| *needed && !has(*what))?;
        Some(Unreadable {
            message: format!("`match` has `{name}`, and there is no table of that"),
            help: format!("add prefilter: {{tables: {{{name}: [FILE.csv]}}}}"),
        })
    }

    /// The list of an entry with `match`: the same as before where nothing changed.
    pub(super) fn list(&mut self, entry: &ListEntry, wanted: &ListMatch) -> Arc<model::PrefixList> {
        let ListEntry { name, source, action, force, scope, body: _ } = entry;
        let same = self.lists.iter().find(|(geo, matches, list)| {
            Arc::ptr_eq(geo, &self.geo)
                && matches == wanted
                && list.name == *name
                && list.action == *action
                && list.force == *force
                && list.scope == *scope
                && same_file(&list.source, source)
        });
        if let Some((.., list)) = same {
            return Arc::clone(list);
        }
        let list = Arc::new(model::PrefixList {
            action: *action,
            force: *force,
            scope: scope.clone(),
            ..model::PrefixList::new(
                name.clone(),
                source.clone(),
                self.geo.prefixes(&wanted.countries, &wanted.asns),
            )
        });
        self.lists.retain(|(geo, _, old)| Arc::ptr_eq(geo, &self.geo) && old.name != *name);
        self.lists.push((Arc::clone(&self.geo), wanted.clone(), Arc::clone(&list)));
        list
    }

    /// The files that were read.
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.keys().map(|(_, path)| path)
    }
}
