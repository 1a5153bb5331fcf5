//! Files of prefixes.
//!
//! Works on bytes: comments of such files are in any encoding. Host bits are masked silently, as
//! published lists have them; anything else that is wrong is a fault of its line. Lines that are plain
//! IPv4, nearly all of the large lists, take a short way of their own.

use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv6Net};
use serde::Deserialize;

use crate::{
    Net4, PrefixSet,
    fault::{Fault, show},
    file::{ListFormat, parse_net},
};

/// Faults of one list file that are listed; beyond them they are counted.
const MAX_FAULTS: usize = 100;

/// What a list file holds.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Parsed {
    /// Of the lines that are right.
    pub(crate) prefixes: PrefixSet,
    /// The first lines that are not.
    pub(crate) faults: Vec<Fault>,
    /// How many there are.
    pub(crate) wrong: u64,
}

impl Parsed {
    /// The faults, with a last one that counts those that are not listed.
    pub(crate) fn all_faults(&self) -> Vec<Fault> {
        let mut faults = self.faults.clone();
        let unlisted = self.wrong - faults.len() as u64;
        if let Some(last) = faults.last().cloned()
            && unlisted > 0
        {
            faults.push(Fault {
                message: format!("{unlisted} more lines are wrong"),
                help: String::new(),
                line: last.line.saturating_add(1),
                column: 1,
                ..last
            });
        }
        faults
    }
}

/// Reads prefixes from text in any of the forms that a list file has; `name` stands for the file in
/// faults.
///
/// # Errors
/// Every line that is wrong; of many, the first ones and their number.
pub fn parse_list(name: &Path, bytes: &[u8]) -> Result<PrefixSet, Vec<Fault>> {
    let parsed = parse(name, bytes, ListFormat::Auto);
    if parsed.wrong == 0 { Ok(parsed.prefixes) } else { Err(parsed.all_faults()) }
}

/// Reads a list file a line at a time, as it arrives. Its form is told by the first line that says something.
#[derive(Clone, Debug)]
pub struct ListLines {
    name: PathBuf,
    line: u32,
    is_json: Option<bool>,
}

impl ListLines {
    /// Reads what `name` stands for in faults.
    #[must_use]
    pub fn new(name: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), line: 0, is_json: None }
    }

    /// Reads the next line, with or without its end. Host bits are cleared.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(&mut self, line: &[u8]) -> Result<Option<IpNet>, Fault> {
        self.line = self.line.saturating_add(1);
        let line = match self.line {
            1 => line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line),
            _ => line,
        };
        if let Some((net, _)) = plain_v4(line) {
            self.is_json.get_or_insert(false);
            return Ok(Some(IpNet::V4(net.into())));
        }
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let Some(first) = line.trim_ascii_start().first() else { return Ok(None) };
        let read = match *self.is_json.get_or_insert(*first == b'{') {
            true => json_line(line),
            false => text_line(line, b"#;"),
        };
        let net = read.map_err(|why| fault(&self.name, line, self.line, why))?;
        Ok(net.map(|net| net.trunc()))
    }
}

/// What a fetched list holds, if it is fit to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Its prefixes.
    pub prefixes: PrefixSet,
    /// Lines that are none, and are left out.
    pub skipped_lines: u64,
    /// Comments before the first prefix, without their sign: who publishes the list, under which
    /// licence. At most [`MAX_ATTRIBUTION`] lines.
    pub attribution: Vec<String>,
}

/// Lines of attribution that are kept, and bytes of each.
pub const MAX_ATTRIBUTION: usize = 40;
const MAX_ATTRIBUTION_LINE: usize = 200;

impl crate::model::Remote {
    /// Whether a body that was fetched can be used: it has prefixes, and no wrong line unless these are
    /// skipped and few.
    ///
    /// # Errors
    /// Why it is no list, with the first wrong line.
    pub fn check(&self, body: &[u8]) -> Result<Checked, String> {
        let Parsed { prefixes, faults, wrong } = parse(Path::new("line"), body, self.format);
        let first = faults.first().map(ToString::to_string).unwrap_or_default();
        if wrong > 0 && (self.on_error == crate::file::OnError::Reject || prefixes.is_empty()) {
            return Err(format!("it is no list: {wrong} lines are wrong, the first: {first}"));
        }
        if prefixes.is_empty() {
            return Err("it holds no prefix".to_owned());
        }
        if wrong > prefixes.len() as u64 {
            return Err(format!("more of its lines are wrong than right, the first: {first}"));
        }
        Ok(Checked { prefixes, skipped_lines: wrong, attribution: attribution(body) })
    }
}

/// The comments before the first prefix; of JSON, the line that says what the file is.
fn attribution(body: &[u8]) -> Vec<String> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let lines = body.split(|c| *c == b'\n').map(<[u8]>::trim_ascii);
    let text = |line: &[u8]| {
        let line = String::from_utf8_lossy(line);
        line.chars().filter(|c| !c.is_control()).take(MAX_ATTRIBUTION_LINE).collect::<String>()
    };
    if body.trim_ascii_start().starts_with(b"{") {
        let about = |line: &&[u8]| json_line(line).is_ok_and(|net| net.is_none());
        return lines.filter(|line| !line.is_empty()).filter(about).take(1).map(text).collect();
    }
    lines
        .take_while(|line| line.is_empty() || line.starts_with(b"#") || line.starts_with(b";"))
        .map(|line| {
            let sign = |c: &u8| matches!(c, b'#' | b';' | b' ' | b'\t');
            text(&line[line.iter().take_while(|c| sign(c)).count()..])
        })
        .filter(|line| !line.is_empty())
        .take(MAX_ATTRIBUTION)
        .collect()
}

/// Reads the prefixes of a list file.
pub(crate) fn parse(path: &Path, bytes: &[u8], format: ListFormat) -> Parsed {
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
) -> Parsed {
    // The usual length of a line; where lines are shorter, the vector grows.
    let mut v4: Vec<Net4> = Vec::with_capacity(bytes.len() / 14);
    let mut v6: Vec<Ipv6Net> = Vec::new();
    let mut faults = Vec::new();
    let mut wrong = 0;
    let (mut rest, mut n) = (bytes, 0u32);
    while !rest.is_empty() {
        n = n.saturating_add(1);
        if let Some((net, used)) = plain_v4(rest) {
            v4.push(net);
            rest = &rest[used..];
            continue;
        }
        let end = rest.iter().position(|c| *c == b'\n').unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        match parse(line) {
            Ok(Some(IpNet::V4(net))) => v4.push(net.into()),
            Ok(Some(IpNet::V6(net))) => v6.push(net),
            Ok(None) => {}
            Err(why) => {
                wrong += 1;
                if faults.len() < MAX_FAULTS {
                    faults.push(fault(path, line, n, why));
                }
            }
        }
    }
    Parsed { prefixes: PrefixSet::new(v4, v6), faults, wrong }
}

fn fault(path: &Path, line: &[u8], n: u32, Wrong { offset, message, help }: Wrong) -> Fault {
    Fault { path: path.to_path_buf(), line: n, column: column(line, offset), message, help }
}

/// A line of nothing but an IPv4 address or prefix, and how many bytes it has with its end. Whatever
/// else a line may be, or may be wrong with it, is for the long way.
fn plain_v4(bytes: &[u8]) -> Option<(Net4, usize)> {
    let (mut at, mut addr) = (0, 0u32);
    for octet in 0..4 {
        if octet > 0 {
            at = (*bytes.get(at)? == b'.').then_some(at + 1)?;
        }
        let value;
        (value, at) = number(bytes, at, 255)?;
        addr = addr << 8 | value;
    }
    let mut bits = 32;
    if bytes.get(at) == Some(&b'/') {
        (bits, at) = number(bytes, at + 1, 32)?;
    }
    if bytes.get(at) == Some(&b'\r') {
        at += 1;
    }
    match bytes.get(at) {
        None => Some((Net4::new(addr, bits as u8), at)),
        Some(b'\n') => Some((Net4::new(addr, bits as u8), at + 1)),
        Some(_) => None,
    }
}

/// A number without leading zeros, and the offset behind it.
fn number(bytes: &[u8], from: usize, most: u32) -> Option<(u32, usize)> {
    let mut at = from;
    let mut value = 0;
    while let Some(digit) = bytes.get(at).map(|c| c.wrapping_sub(b'0')).filter(|d| *d < 10) {
        value = value * 10 + u32::from(digit);
        at += 1;
        if at - from > 3 {
            return None;
        }
    }
    let zeros = at - from > 1 && bytes[from] == b'0';
    (at > from && !zeros && value <= most).then_some((value, at))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATH: &str = "drop.txt";

    fn nets(text: &str) -> Vec<String> {
        let parsed = parse(Path::new(PATH), text.as_bytes(), ListFormat::Auto);
        assert_eq!(parsed.faults, [], "{text}");
        parsed.prefixes.iter().map(|net| net.to_string()).collect()
    }

    #[test]
    fn plain_netset_and_spamhaus_are_told_by_their_content() {
        let plain = "# by hand\n192.0.2.7/24\r\n\n 198.51.100.1 # one\n2001:db8::1/32\n10.0.0.1";
        assert_eq!(
            nets(plain),
            ["10.0.0.1/32", "192.0.2.0/24", "198.51.100.1/32", "2001:db8::/32"]
        );
        let netset = "#\n# firehol_level1\n# Entries : 2\n#\n0.0.0.0/8\n1.10.16.0/20\n";
        assert_eq!(nets(netset), ["0.0.0.0/8", "1.10.16.0/20"]);
        let drop = "; Spamhaus DROP List\n; Last-Modified: now\n1.10.16.0/20 ; SBL256894\n";
        assert_eq!(nets(drop), ["1.10.16.0/20"]);
        let json = "{\"cidr\":\"1.10.16.0/20\",\"sblid\":\"SBL256894\",\"rir\":\"apnic\"}\n\
                    {\"cidr\":\"2a06:e480::/29\",\"sblid\":\"SBL301771\",\"rir\":\"ripencc\"}\n\
                    {\"type\":\"metadata\",\"timestamp\":1,\"size\":2,\"records\":2}\n";
        assert_eq!(nets(json), ["1.10.16.0/20", "2a06:e480::/29"]);
    }

    #[test]
    fn wrong_lines_are_named_and_the_others_read() {
        let text =
            "192.0.2.0/24\n192.0.2.300\n010.0.0.1\n192.0.2.0/33\n1.2.3.4 5.6.7.8\nx\n9.9.9.9\n";
        let parsed = parse(Path::new(PATH), text.as_bytes(), ListFormat::Auto);
        assert_eq!(parsed.prefixes.len(), 2);
        let lines: Vec<u32> = parsed.faults.iter().map(|f| f.line).collect();
        assert_eq!((lines, parsed.wrong), (vec![2, 3, 4, 5, 6], 5));
        assert!(parsed.faults[3].to_string().starts_with("drop.txt:5:9: "), "{:?}", parsed.faults);

        let many = "x\n".repeat(MAX_FAULTS + 5);
        let faults = parse_list(Path::new(PATH), many.as_bytes()).unwrap_err();
        assert_eq!(faults.len(), MAX_FAULTS + 1);
        assert!(faults[MAX_FAULTS].message.starts_with("5 more lines"), "{faults:?}");
    }

    #[test]
    fn a_line_at_a_time_is_as_all_at_once() {
        let plain = "\u{feff}# c\n192.0.2.7/24\r\n\n 2001:db8::1/32 ; c\nx\n10.0.0.1";
        let json = "{\"cidr\":\"192.0.2.0/24\"}\n{\"type\":\"metadata\"}\n{\"cidr\":1}\n";
        for text in [plain, json] {
            let whole = parse(Path::new(PATH), text.as_bytes(), ListFormat::Auto);
            let mut lines = ListLines::new(PATH);
            let (mut nets, mut faults) = (Vec::new(), Vec::new());
            for line in text.as_bytes().split_inclusive(|c| *c == b'\n') {
                match lines.read(line) {
                    Ok(net) => nets.extend(net),
                    Err(fault) => faults.push(fault),
                }
            }
            assert_eq!(nets.into_iter().collect::<PrefixSet>(), whole.prefixes);
            assert_eq!(faults, whole.faults);
            assert_eq!(faults.len(), 1);
        }
    }

    proptest! {
        /// The short way must say what the long one says, and panic on nothing.
        #[test]
        fn the_short_way_agrees(text in "[0-9./ \r#a:]{0,24}") {
            if let Some((net, used)) = plain_v4(text.as_bytes()) {
                prop_assert_eq!(used, text.len());
                let long = text_line(text.as_bytes(), b"#;").ok().flatten();
                prop_assert_eq!(long.map(|l| l.trunc()), Some(IpNet::V4(net.into())));
            }
        }

        #[test]
        fn addresses_are_read_as_they_are_written(addr: u32, bits in 0u8..=32, cr: bool) {
            let text = format!("{}/{bits}{}\n", std::net::Ipv4Addr::from(addr), if cr { "\r" } else { "" });
            prop_assert_eq!(plain_v4(text.as_bytes()), Some((Net4::new(addr, bits), text.len())));
        }

        #[test]
        fn no_text_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            parse(Path::new(PATH), &bytes, ListFormat::Auto);
            parse(Path::new(PATH), &bytes, ListFormat::SpamhausDropJson);
        }
    }
}
