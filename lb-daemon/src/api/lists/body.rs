//! Bodies of many entries, read as they arrive: a line at a time where they have lines.
//!
//! JSON (an entry or an array of them), NDJSON (an entry per line), or the text of a list file. What is
//! wrong is noted with its place; whether it stops the whole is the caller's to say.

use std::{sync::Arc, time::SystemTime};

use config::ListLines;
use ipnet::IpNet;

use super::{
    NewEntry,
    entries::{Common, new_entry},
};
use crate::{
    api::{
        extract::{BulkBody, BulkKind},
        problem::{FieldError, Kind, Problem},
    },
    bans::Change,
};

/// Faults that an answer lists.
pub(super) const MAX_ERRORS: usize = 20;
/// Bytes of a line.
const MAX_LINE: usize = 64 << 10;

/// What a body holds.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// One for each entry that is right.
    pub(super) changes: Vec<Change>,
    /// The first entries that are wrong.
    pub(super) errors: Vec<FieldError>,
    /// How many there are.
    pub(super) wrong: u64,
}

impl Read {
    fn note(&mut self, field: String, message: String) {
        self.wrong += 1;
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(FieldError::new(field, message));
        }
    }
}

/// Reads a body to its end.
///
/// # Errors
/// It does not arrive, is too large, or is JSON of another shape.
pub(super) async fn read(
    body: BulkBody,
    list: &Arc<str>,
    common: &Common,
    now: SystemTime,
) -> Result<Read, Problem> {
    let mut reader =
        Lines { list, common, now, lines: ListLines::new("body"), n: 0, read: Read::default() };
    match body.kind {
        BulkKind::Json => reader.json(&body.whole().await?)?,
        BulkKind::Ndjson => each_line(body, |line| reader.ndjson(line)).await?,
        BulkKind::Text => each_line(body, |line| reader.text(line)).await?,
    }
    Ok(reader.read)
}

async fn each_line(body: BulkBody, mut take: impl FnMut(&[u8])) -> Result<(), Problem> {
    let mut rest: Vec<u8> = Vec::new();
    body.each_frame(|frame| {
        let mut lines = frame.split_inclusive(|c| *c == b'\n').peekable();
        while let Some(line) = lines.next() {
            if !line.ends_with(b"\n") && lines.peek().is_none() {
                rest.extend_from_slice(line);
                break;
            }
            if rest.is_empty() {
                take(line);
            } else {
                rest.extend_from_slice(line);
                take(&rest);
                rest.clear();
            }
        }
        if rest.len() > MAX_LINE {
            let detail = format!("a line has more than {MAX_LINE} bytes");
            return Err(Problem::new(Kind::TooLarge, detail));
        }
        Ok(())
    })
    .await?;
    if !rest.is_empty() {
        take(&rest);
    }
    Ok(())
}

struct Lines<'a> {
    list: &'a Arc<str>,
    common: &'a Common,
    now: SystemTime,
    lines: ListLines,
    n: u64,
    read: Read,
}

impl Lines<'_> {
    fn json(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        let parsed = if bytes.trim_ascii_start().starts_with(b"[") {
            serde_json::from_slice(bytes)
        } else {
            serde_json::from_slice(bytes).map(|one| vec![one])
        };
        let entries: Vec<NewEntry> = parsed.map_err(|error| {
            Problem::invalid("", format!("not an entry or an array of entries: {error}"))
        })?;
        let single = entries.len() == 1;
        for (n, entry) in entries.into_iter().enumerate() {
            match new_entry(self.list, entry, self.common, self.now) {
                Ok(change) => self.read.changes.push(change),
                Err((field, message)) if single => self.read.note(field.to_owned(), message),
                Err((field, message)) => self.read.note(format!("[{n}].{field}"), message),
            }
        }
        Ok(())
    }

    fn ndjson(&mut self, line: &[u8]) {
        self.n += 1;
        if line.trim_ascii().is_empty() {
            return;
        }
        let n = self.n;
        let entry = match serde_json::from_slice::<NewEntry>(line) {
            Ok(entry) => entry,
            Err(error) => {
                let message = format!("line {n}: not an entry: {error}");
                return self.read.note(format!("[{}]", n - 1), message);
            }
        };
        match new_entry(self.list, entry, self.common, self.now) {
            Ok(change) => self.read.changes.push(change),
            Err((field, message)) => {
                self.read.note(format!("[{}].{field}", n - 1), format!("line {n}: {message}"));
            }
        }
    }

    fn text(&mut self, line: &[u8]) {
        match self.lines.read(line) {
            Ok(None) => {}
            Ok(Some(cidr)) => self.read.changes.push(self.change(cidr)),
            Err(fault) => self.read.note(String::new(), fault.to_string()),
        }
    }

    fn change(&self, cidr: IpNet) -> Change {
        let (added, until) = self.common.times(self.now);
        let (list, reason) = (Arc::clone(self.list), self.common.reason.clone());
        Change::Add { list, cidr, added, until, reason }
    }
}
