//! Lists by country and network number, and the tables that they are made of.

use crate::{
    fault::{Loc, show},
    file,
    geo::{Country, What},
    validate::{Context, Fragment},
};
use std::path::PathBuf;

/// A file of a table.
#[derive(Clone, Debug)]
pub(crate) struct TableFile {
    pub(crate) what: What,
    pub(crate) path: PathBuf,
    pub(crate) at: Loc,
}

/// What a list is made of; each sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListMatch {
    pub(crate) countries: Vec<Country>,
    pub(crate) asns: Vec<u32>,
}

pub(super) fn tables(tables: &file::Tables, context: &Context<'_, '_>, fragment: &mut Fragment) {
    let file::Tables { country, asn } = tables;
    for (files, what) in [(country, What::Country), (asn, What::Asn)] {
        for (path, at) in files.elements() {
            if path.is_empty() || path.contains('\0') {
                context.report.fault(at, "this is not a path", "allowed: the path of a CSV file");
                continue;
            }
            let path = context.directory.join(path);
            fragment.tables.push(TableFile { what, path, at });
        }
    }
}

/// What a list matches. `None`: the report says why.
pub(super) fn list_match(
    matches: &file::ListMatch,
    at: Loc,
    context: &Context<'_, '_>,
) -> Option<ListMatch> {
    let file::ListMatch { country, asn } = matches;
    let mut found = ListMatch::default();
    let mut good = true;
    for (text, at) in country.elements() {
        match Country::parse(text) {
            Some(country) => found.countries.push(country),
            None => {
                let message = format!("{} is not a country code", show(text));
                context.report.fault(
                    at,
                    message,
                    "allowed: two letters (ISO 3166), quoted: \"NO\"",
                );
                good = false;
            }
        }
    }
    found.asns.extend(asn.elements().map(|(number, _)| *number));
    if found == ListMatch::default() && good {
        let help = "allowed: match: {country: [XX, YY]} and match: {asn: [64496]}, or both";
        context.report.fault(at, "`match` matches nothing", help);
        good = false;
    }
    found.countries.sort();
    found.asns.sort_unstable();
    good.then_some(found)
}
