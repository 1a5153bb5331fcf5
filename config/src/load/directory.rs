//! Directories of list files: each file is a list of its own, so that its hits are counted.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    path::Path,
    sync::Arc,
};

use super::{
    Files,
    read::{Unreadable, unreadable},
};
use crate::{
    Fault, model,
    validate::{ListBody, ListEntry, ListPath, is_name},
};

/// Files of one directory. There are numbers for no more lists.
const MAX_FILES: usize = 250;

/// An entry for each file of the directory, in the order of their names. Hidden files, those that
/// editors leave (`~`), and directories are not lists.
pub(super) fn entries(
    entry: &ListEntry,
    directory: &ListPath,
    from: &Files,
) -> Result<Vec<(ListEntry, ListPath)>, Unreadable> {
    let mut names: Vec<OsString> = match from.given_in(&directory.path) {
        Some(given) => given.filter_map(Path::file_name).map(OsStr::to_owned).collect(),
        None => on_disk(&directory.path)?,
    };
    names.retain(|name| {
        let bytes = name.as_encoded_bytes();
        !bytes.starts_with(b".") && !bytes.ends_with(b"~")
    });
    if names.len() > MAX_FILES {
        return Err(Unreadable {
            message: format!("{} has {} files", directory.path.display(), names.len()),
            help: format!("allowed: at most {MAX_FILES}"),
        });
    }
    names.sort();
    names.into_iter().map(|name| one(entry, directory, Path::new(&name))).collect()
}

fn on_disk(directory: &Path) -> Result<Vec<OsString>, Unreadable> {
    let failed = |error: std::io::Error| unreadable(directory, &error);
    let mut names = Vec::new();
    for found in fs::read_dir(directory).map_err(failed)? {
        let name = found.map_err(failed)?.file_name();
        if !directory.join(&name).is_dir() {
            names.push(name);
        }
    }
    Ok(names)
}

fn one(
    entry: &ListEntry,
    directory: &ListPath,
    file: &Path,
) -> Result<(ListEntry, ListPath), Unreadable> {
    let ListEntry { name, source, action, force, scope, body: _ } = entry;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let name = format!("{name}:{stem}");
    if !is_name(&name) {
        let file = directory.path.join(file);
        return Err(Unreadable {
            message: format!("{} would be a list of the name `{name}`", file.display()),
            help: "name the file with letters, digits, `.`, `_`, `:` and `-`, and not too long"
                .to_owned(),
        });
    }
    let path = ListPath { path: directory.path.join(file), ..directory.clone() };
    let (source, action, body) = (source.clone(), *action, ListBody::File(path.clone()));
    Ok((ListEntry { name, source, action, force: *force, scope: scope.clone(), body }, path))
}

/// Lists of directories may have a name that another list has.
pub(super) fn unique(lists: &[Arc<model::PrefixList>], faults: &mut Vec<Fault>) {
    let mut seen: BTreeMap<&str, &model::PrefixList> = BTreeMap::new();
    for list in lists {
        let Some(first) = seen.insert(&list.name, list) else { continue };
        // Two entries of one name are reported anyway, both with their places.
        let model::Source::File { path, line, column } = &list.source else { continue };
        if !list.name.contains(':') || !first.name.contains(':') {
            continue;
        }
        faults.push(Fault {
            path: path.to_path_buf(),
            line: *line,
            column: *column,
            message: format!("two lists have the name `{}`", list.name),
            help: "rename one of them; a file of a directory gives its name without suffix"
                .to_owned(),
        });
    }
}
