//! Files of prefixes.
//!
//! Works on bytes: comments of such files are in any encoding. Host bits are masked silently, as
//! published lists have them; anything else that is wrong is a fault of its line.

use std::path::Path;

use ipnet::IpNet;
use serde::Deserialize;

use crate::{
    fault::{Fault, show},
    file::{ListFormat, parse_net},
};

/// Faults of one list file that are listed; beyond them a last one counts the rest.
const MAX_FAULTS: usize = 100;

/// Reads the prefixes of a list file.
pub(crate) fn parse(
    path: &Path,
    bytes: &[u8],
    format: ListFormat,
) -> Result<Vec<IpNet>, Vec<Fault>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let comments: &[u8] = match format {
        ListFormat::SpamhausDropJson => return read(path, bytes, json_line),
        ListFormat::Auto if bytes.trim_ascii_start().starts_with(b"{") => {
            return read(path, bytes, json_line);
        }
        ListFormat::Auto | ListFormat::Plain => b"#;",
        ListFormat::Netset => b"#",
        ListFormat::SpamhausDrop => b";",
    };
    read(path, bytes, |line| text_line(line, comments))
}

/// What is wrong in a line, and at which byte.
struct Wrong {
    offset: usize,
    message: String,
    help: String,
}

fn read(
    path: &Path,
    bytes: &[u8],
    parse: impl Fn(&[u8]) -> Result<Option<IpNet>, Wrong>,
) -> Result<Vec<IpNet>, Vec<Fault>> {
    // The shortest lines of real lists; short of it, the vector grows.
    let mut prefixes = Vec::with_capacity(bytes.len() / 16);
    let mut faults = Vec::new();
    let mut unlisted = 0;
    for (n, line) in bytes.split(|c| *c == b'\n').enumerate() {
        let Wrong { offset, message, help } = match parse(line) {
            Ok(Some(net)) => {
                prefixes.push(net.trunc());
                continue;
            }
            Ok(None) => continue,
            Err(wrong) => wrong,
        };
        if faults.len() == MAX_FAULTS {
            unlisted += 1;
            continue;
        }
        faults.push(Fault {
            path: path.to_path_buf(),
            line: u32::try_from(n + 1).unwrap_or(u32::MAX),
            column: column(line, offset),
            message,
            help,
        });
    }
    if faults.is_empty() {
        prefixes.shrink_to_fit();
        return Ok(prefixes);
    }
    if unlisted > 0
        && let Some(last) = faults.last().cloned()
    {
        let message = format!("{unlisted} more lines are wrong");
        faults.push(Fault {
            message,
            help: String::new(),
            line: last.line.saturating_add(1),
            column: 1,
            ..last
        });
    }
    Err(faults)
}

/// The 1-based column, in characters, of a byte.
fn column(line: &[u8], offset: usize) -> u32 {
    let before = line.get(..offset).unwrap_or(line);
    let characters = before.iter().filter(|c| **c & 0xc0 != 0x80).count();
    u32::try_from(characters + 1).unwrap_or(u32::MAX)
}

/// A prefix or an address, and perhaps a comment.
fn text_line(line: &[u8], comments: &[u8]) -> Result<Option<IpNet>, Wrong> {
    let indent = line.iter().take_while(|c| c.is_ascii_whitespace()).count();
    let rest = &line[indent..];
    let is_end = |c: &u8| c.is_ascii_whitespace() || comments.contains(c);
    let entry = &rest[..rest.iter().position(is_end).unwrap_or(rest.len())];
    let tail = &rest[entry.len()..];
    if entry.is_empty() {
        return Ok(None);
    }
    let net = prefix(entry).map_err(|(message, help)| Wrong { offset: indent, message, help })?;
    let gap = tail.iter().take_while(|c| c.is_ascii_whitespace()).count();
    if tail.get(gap).is_some_and(|c| !comments.contains(c)) {
        return Err(Wrong {
            offset: indent + entry.len() + gap,
            message: format!(
                "{} stands behind the prefix",
                show(&String::from_utf8_lossy(tail.trim_ascii()))
            ),
            help: format!(
                "allowed: one prefix per line, and a comment behind {}",
                comments
                    .iter()
                    .map(|c| format!("`{}`", char::from(*c)))
                    .collect::<Vec<_>>()
                    .join(" or ")
            ),
        });
    }
    Ok(Some(net))
}

fn prefix(entry: &[u8]) -> Result<IpNet, (String, String)> {
    match std::str::from_utf8(entry) {
        Ok(text) => parse_net(text),
        Err(_) => Err((
            format!("{} is not a prefix", show(&String::from_utf8_lossy(entry))),
            "allowed: a prefix such as 192.0.2.0/24 or 2001:db8::/32, or an address".to_owned(),
        )),
    }
}

/// An object with `cidr`, or one that says what the file is.
fn json_line(line: &[u8]) -> Result<Option<IpNet>, Wrong> {
    #[derive(Deserialize)]
    struct Line {
        cidr: Option<String>,
        #[serde(rename = "type")]
        kind: Option<String>,
    }

    const ALLOWED: &str = "allowed: an object per line, such as {\"cidr\": \"192.0.2.0/24\"}";
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let entry: Line = serde_json::from_slice(line).map_err(|error| Wrong {
        offset: error.column().saturating_sub(1),
        message: "the line is not a JSON object of the kind expected".to_owned(),
        help: ALLOWED.to_owned(),
    })?;
    match entry {
        Line { cidr: Some(text), .. } => parse_net(&text).map(Some).map_err(|(message, help)| {
            let line = String::from_utf8_lossy(line);
            Wrong { offset: line.find(&text).unwrap_or(0), message, help }
        }),
        Line { kind: Some(kind), .. } if kind == "metadata" => Ok(None),
        Line { .. } => Err(Wrong {
            offset: 0,
            message: "the object has no `cidr`".to_owned(),
            help: ALLOWED.to_owned(),
        }),
    }
}
