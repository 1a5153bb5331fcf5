//! What is wrong with a configuration, and where.
//!
//! Faults are collected, never thrown: whoever reads a configuration learns everything that is wrong
//! with it in one go. [`Report`] is the collector that reading and validation share; it knows whether
//! places are lines of a file or fields of a JSON body.

use std::{
    cell::{Cell, RefCell},
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// One thing that is wrong with a configuration file.
///
/// Displayed as `FILE:LINE:COL: what is wrong; what is allowed`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, thiserror::Error)]
#[error("{}:{line}:{column}: {message}{}", path.display(), Tail(help))]
pub struct Fault {
    /// The file, as it was opened.
    pub path: PathBuf,
    /// 1-based.
    pub line: u32,
    /// 1-based, in characters.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What is allowed, or what mends it; empty when there is nothing to add.
    pub help: String,
}

impl Fault {
    /// A fault at the beginning of a file, for what concerns the file as a whole.
    pub(crate) fn of_file(
        path: &Path,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            path: path.to_path_buf(),
            line: 1,
            column: 1,
            message: message.into(),
            help: help.into(),
        }
    }
}

/// One thing that is wrong with an object set through the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{}{message}", Head(field))]
pub struct FieldFault {
    /// Path of the field, such as `backends[0].address`; empty for the body as a whole.
    pub field: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

struct Tail<'a>(&'a str);

impl fmt::Display for Tail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; {}", self.0) }
    }
}

struct Head<'a>(&'a str);

impl fmt::Display for Head<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "{}: ", self.0) }
    }
}

/// A place in the document at hand: line and column of a file, or an index into the paths of a JSON
/// body. The default is no place at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Loc {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// A fault whose file is known from its context.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) at: Loc,
    /// The field that is missing at `at`.
    missing: Option<&'static str>,
    message: String,
    help: String,
}

/// What a [`Loc`] means.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Document<'a> {
    /// Line and column of this file.
    File(&'a Path),
    /// `line` is an index into the paths of a JSON body.
    Json(&'a [String]),
}

/// Collects the faults of one document.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    document: Document<'a>,
    faults: RefCell<Vec<Raw>>,
    /// Fields that an unknown one was taken for, and the mapping it stands in: they are not missing.
    misspelt: RefCell<Vec<(Loc, &'static str)>>,
    suppressed: Cell<bool>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(document: Document<'a>) -> Self {
        Self {
            document,
            faults: RefCell::default(),
            misspelt: RefCell::default(),
            suppressed: Cell::new(false),
        }
    }

    /// Notes a fault.
    pub(crate) fn fault(&self, at: Loc, message: impl Into<String>, help: impl Into<String>) {
        self.push(Raw { at, missing: None, message: message.into(), help: help.into() });
    }

    /// Notes that the mapping at `at` lacks `field`, unless a misspelt field was meant to be it.
    pub(crate) fn missing(&self, at: Loc, field: &'static str, help: impl Into<String>) {
        if self.misspelt.borrow().contains(&(at, field)) {
            return;
        }
        let message = format!("`{field}` is missing");
        self.push(Raw { at, missing: Some(field), message, help: help.into() });
    }

    /// Notes that an unknown field of the mapping at `at` was probably meant to be `field`.
    pub(crate) fn misspelt(&self, at: Loc, field: &'static str) {
        self.misspelt.borrow_mut().push((at, field));
    }

    /// How a place is named in the message of another one.
    pub(crate) fn place(&self, at: Loc) -> String {
        match self.document {
            Document::File(path) => format!("{}:{}:{}", path.display(), at.line, at.column),
            Document::Json(paths) => match paths.get(at.line as usize) {
                Some(path) if !path.is_empty() => format!("`{path}`"),
                _ => "the body".to_owned(),
            },
        }
    }

    /// How many faults there are so far.
    pub(crate) fn len(&self) -> usize {
        self.faults.borrow().len()
    }

    fn push(&self, raw: Raw) {
        let mut faults = self.faults.borrow_mut();
        if faults.len() < MAX_FAULTS {
            faults.push(raw);
        } else if !self.suppressed.replace(true) {
            faults.push(Raw {
                at: raw.at,
                missing: None,
                message: format!("more than {MAX_FAULTS} faults; the rest is not listed"),
                help: String::new(),
            });
        }
    }

    /// The faults as faults of a file, in the order of their places.
    pub(crate) fn into_faults(self) -> Vec<Fault> {
        let Document::File(path) = self.document else {
            return Vec::new();
        };
        let mut raws = self.faults.into_inner();
        raws.sort_by_key(|raw| raw.at);
        raws.into_iter()
            .map(|Raw { at, missing: _, message, help }| Fault {
                path: path.to_path_buf(),
                line: at.line.max(1),
                column: at.column.max(1),
                message,
                help,
            })
            .collect()
    }

    /// The faults as faults of the fields of a JSON body, in the order of the fields.
    pub(crate) fn into_field_faults(self) -> Vec<FieldFault> {
        let Document::Json(paths) = self.document else {
            return Vec::new();
        };
        let mut raws = self.faults.into_inner();
        raws.sort_by_key(|raw| raw.at);
        raws.into_iter()
            .map(|Raw { at, missing, message, help }| {
                let mut field = paths.get(at.line as usize).cloned().unwrap_or_default();
                if let Some(missing) = missing {
                    if !field.is_empty() {
                        field.push('.');
                    }
                    field.push_str(missing);
                }
                FieldFault { field, message: format!("{message}{}", Tail(&help)) }
            })
            .collect()
    }
}

/// Faults of one document that are listed; beyond them a last one says that there are more.
pub(crate) const MAX_FAULTS: usize = 1000;

/// What a user wrote, as it can be shown in a message: quoted, printable, not too long.
pub(crate) fn show(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    let mut shown = String::with_capacity(text.len().min(MAX_CHARS) + 2);
    shown.push('`');
    for (n, c) in text.chars().enumerate() {
        if n == MAX_CHARS {
            shown.push_str("...");
            break;
        }
        if c.is_control() || is_invisible(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown.push('`');
    shown
}

/// Characters that would hide or reorder what stands around them.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The candidate that `word` was probably meant to be.
pub(crate) fn nearest<'c>(word: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let word = word.to_ascii_lowercase();
    candidates
        .iter()
        .map(|candidate| {
            (strsim::damerau_levenshtein(&word, &candidate.to_ascii_lowercase()), *candidate)
        })
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean ..., allowed: ...`
pub(crate) fn allowed(meant: Option<&str>, candidates: &[&str]) -> String {
    let all = candidates.join(", ");
    match meant {
        Some(meant) => format!("did you mean `{meant}`? allowed: {all}"),
        None => format!("allowed: {all}"),
    }
}
