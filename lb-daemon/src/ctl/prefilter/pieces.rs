//! Lists that are too large for one request: put in piece by piece, each of which is in force and kept when the next
//! one is sent.

use std::{
    io::{self, IsTerminal as _, Write as _},
    ops::RangeInclusive,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{anyhow, bail};
use config::ListLines;
use ipnet::IpNet;

use super::super::{
    client::Client,
    output::{count, number},
};
use crate::{
    api::{
        limits::BULK_BYTES,
        lists::{Changed, NewEntry},
        problem::FieldError,
    },
    bans::MAX_REASON,
};

/// Bytes of a piece, or a little more: a second of work for the daemon.
const PIECE: usize = 8 << 20;
/// The same where one piece must do.
const LARGEST: usize = BULK_BYTES - (1 << 20);

/// An entry, and where it stands in its file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) place: usize,
    pub(super) cidr: IpNet,
    pub(super) until: Option<SystemTime>,
    pub(super) reason: Option<String>,
}

/// What a file holds.
#[derive(Debug)]
pub(super) struct Sorted {
    /// Entries that are right.
    pub(super) entries: Vec<Placed>,
    /// Those that are wrong, each with its place.
    pub(super) wrong: Vec<FieldError>,
    /// Those whose time is over.
    pub(super) ended: u64,
    /// What a place is called.
    name: fn(usize) -> String,
}

impl Sorted {
    pub(super) const fn new(name: fn(usize) -> String) -> Self {
        Self { entries: Vec::new(), wrong: Vec::new(), ended: 0, name }
    }

    /// A list file that has lines.
    pub(super) fn of_lines(file: &Path, text: &[u8]) -> Self {
        let mut sorted = Self::new(|place| format!("line {}", place + 1));
        let mut lines = ListLines::new(file);
        for (place, line) in text.split_inclusive(|c| *c == b'\n').enumerate() {
            match lines.read(line) {
                Ok(None) => {}
                Ok(Some(cidr)) => {
                    sorted.entries.push(Placed { place, cidr, until: None, reason: None });
                }
                Err(fault) => sorted.wrong.push(FieldError::new("", fault.to_string())),
            }
        }
        sorted
    }
}

/// Whole seconds that are left, if any.
pub(super) fn left(until: SystemTime, now: SystemTime) -> Option<u64> {
    Some(until.duration_since(now).unwrap_or(Duration::ZERO).as_secs()).filter(|rest| *rest > 0)
}

/// What entries have that do not say otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Common<'o> {
    pub(super) ttl: Option<&'o str>,
    pub(super) reason: Option<&'o str>,
}

impl Common<'_> {
    /// Says at once what the API would say of every entry.
    pub(super) fn check(self) -> anyhow::Result<()> {
        if let Some(ttl) = self.ttl {
            config::parse_duration(ttl).map_err(|message| anyhow!("--ttl: {message}"))?;
        }
        if self.reason.is_some_and(|reason| reason.len() > MAX_REASON) {
            bail!("--reason: longer than {MAX_REASON} bytes");
        }
        Ok(())
    }
}

/// Entries of one request.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    /// An entry per line.
    body: Vec<u8>,
    /// From the place of the first entry to that of the last one; `None`: there is none.
    places: Option<RangeInclusive<usize>>,
    /// Those whose time is over by now.
    ended: u64,
}

/// The piece that the first entries are, and the entries behind it.
fn piece<'e>(
    entries: &'e [Placed],
    common: Common<'_>,
    now: SystemTime,
    bytes: usize,
) -> (Piece, &'e [Placed]) {
    let mut piece = Piece { body: Vec::new(), places: None, ended: 0 };
    let mut rest = entries;
    while piece.body.len() < bytes
        && let Some((Placed { place, cidr, until, reason }, behind)) = rest.split_first()
    {
        rest = behind;
        let ttl = match until {
            None => common.ttl.map(str::to_owned),
            Some(until) => match left(*until, now) {
                Some(seconds) => Some(format!("{seconds}s")),
                None => {
                    piece.ended += 1;
                    continue;
                }
            },
        };
        let reason = reason.as_deref().or(common.reason).map(str::to_owned);
        let entry = NewEntry { cidr: cidr.to_string(), ttl, reason };
        serde_json::to_writer(&mut piece.body, &entry).expect("texts are JSON");
        piece.body.push(b'\n');
        piece.places = Some(piece.places.map_or(*place, |places| *places.start())..=*place);
    }
    (piece, rest)
}

/// Where entries go.
#[derive(Debug)]
pub(super) struct Target<'t> {
    pub(super) client: &'t Client,
    pub(super) list: &'t str,
    /// The path with its query, which says nothing of end and reason.
    pub(super) path: String,
}

impl Target<'_> {
    /// Puts entries on the list. With `whole`, all at once or none.
    ///
    /// # Errors
    ///
    /// One of the pieces is refused; says which entries are on the list.
    pub(super) fn put(
        &self,
        sorted: &Sorted,
        common: Common<'_>,
        whole: bool,
    ) -> anyhow::Result<Changed> {
        self.put_in(sorted, common, if whole { LARGEST } else { PIECE }, whole)
    }

    fn put_in(
        &self,
        Sorted { entries, wrong, ended, name }: &Sorted,
        common: Common<'_>,
        bytes: usize,
        whole: bool,
    ) -> anyhow::Result<Changed> {
        let mut all = Changed { skipped: wrong.len() as u64, ..Changed::default() };
        all.errors.clone_from(wrong);
        let mut ended = *ended;
        let mut there: Option<RangeInclusive<usize>> = None;
        let mut rest = &entries[..];
        let progress = Progress::new(entries.len());
        loop {
            let (one, behind) = piece(rest, common, SystemTime::now(), bytes);
            if whole && !behind.is_empty() {
                bail!(
                    "--confirm takes back one change, and {} are more than fit in one; leave it out, or cut \
                     the list",
                    count(entries.len() as u64, "prefix")
                );
            }
            let Changed { added, replaced, removed, skipped, errors } =
                self.client.put_entries(&self.path, one.body).map_err(|error| {
                    progress.clear();
                    let Some(there) = &there else { return error };
                    let (first, last) = (name(*there.start()), name(*there.end()));
                    let of = one.places.as_ref().map(|places| {
                        format!("of {} to {}, and ", name(*places.start()), name(*places.end()))
                    });
                    error.context(format!(
                        "{first} to {last} are on the list {}, in force and kept ({} new, {} renewed); {}what is \
                         behind them, nothing is known to be",
                        self.list,
                        number(all.added),
                        number(all.replaced),
                        of.unwrap_or_default()
                    ))
                })?;
            all.added += added;
            all.replaced += replaced;
            all.removed += removed;
            // Nothing was wrong to us: the daemon is of another version.
            all.skipped += skipped;
            all.errors.extend(errors);
            ended += one.ended;
            if let Some(places) = one.places {
                there = Some(there.map_or(*places.start(), |there| *there.start())..=*places.end());
            }
            rest = behind;
            if rest.is_empty() {
                break;
            }
            progress.show(entries.len() - rest.len());
        }
        progress.clear();
        if ended > 0 {
            writeln!(io::stderr(), "{} are left out: their time is over", number(ended))?;
        }
        Ok(all)
    }
}

/// How far it is, on a terminal.
struct Progress {
    of: usize,
    shown: bool,
}

impl Progress {
    fn new(of: usize) -> Self {
        Self { of, shown: io::stderr().is_terminal() }
    }

    fn show(&self, entries: usize) {
        if self.shown {
            let (entries, of) = (number(entries as u64), number(self.of as u64));
            // What cannot be shown is no reason to stop.
            let _ = write!(io::stderr(), "\r{entries} of {of} prefixes\x1b[K");
        }
    }

    fn clear(&self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Read as _},
        net::TcpListener,
        sync::mpsc,
        thread,
    };

    use super::*;
    use crate::api::model::from_rfc3339;

    fn noon() -> SystemTime {
        from_rfc3339("2026-11-27T12:00:00Z").unwrap()
    }

    /// A line of it has 24 bytes.
    fn sorted(count: usize) -> Sorted {
        let mut sorted = Sorted::new(|place| format!("items[{place}]"));
        sorted.entries = (0..count)
            .map(|place| Placed {
                place,
                cidr: format!("192.0.2.{place}/32").parse().unwrap(),
                until: None,
                reason: None,
            })
            .collect();
        sorted
    }

    /// An API that gives these answers, one to a connection; and the bodies that it got.
    fn api(answers: Vec<(u16, &'static str)>) -> (Client, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (got, bodies) = mpsc::channel();
        thread::spawn(move || {
            for (status, answer) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut length, mut line) = (0, String::new());
                while reader.read_line(&mut line).unwrap() > 2 {
                    let header = line.to_ascii_lowercase();
                    if let Some(value) = header.strip_prefix("content-length: ") {
                        length = value.trim().parse().unwrap();
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                got.send(String::from_utf8(body).unwrap()).unwrap();
                let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", answer.len());
                stream.write_all(format!("{head}\r\n{answer}").as_bytes()).unwrap();
            }
        });
        (Client::new(address.to_string().parse().unwrap()), bodies)
    }

    const TWO_NEW: &str = r#"{"added": 2, "replaced": 1, "removed": 0}"#;

    fn put(client: &Client, sorted: &Sorted, whole: bool) -> anyhow::Result<Changed> {
        let path = "/v1/prefilter/lists/web/entries".to_owned();
        Target { client, list: "web", path }.put_in(sorted, Common::default(), 50, whole)
    }

    #[test]
    fn pieces_have_each_entry_once_and_in_order() {
        let (client, bodies) = api(vec![(200, TWO_NEW); 3]);
        let mut all = sorted(8);
        all.wrong = vec![FieldError::new("items[8].cidr", "items[8].cidr: no prefix")];
        let done = put(&client, &all, false).unwrap();
        assert_eq!((done.added, done.replaced, done.skipped), (6, 3, 1));
        assert_eq!(done.errors, all.wrong);
        let bodies: Vec<String> = bodies.iter().collect();
        let lines: Vec<usize> = bodies.iter().map(|body| body.lines().count()).collect();
        assert_eq!(lines, [3, 3, 2]);
        let want: String = (0..8).map(|n| format!("{{\"cidr\":\"192.0.2.{n}/32\"}}\n")).collect();
        assert_eq!(bodies.concat(), want);
    }

    #[test]
    fn a_piece_that_is_refused_says_what_is_there() {
        let problem = r#"{"type": "urn:lb:problem:conflict", "title": "", "status": 409,
            "detail": "it would cut off 192.0.2.7"}"#;
        let (client, _bodies) = api(vec![(200, TWO_NEW), (200, TWO_NEW), (409, problem)]);
        let error = put(&client, &sorted(12), false).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "items[0] to items[5] are on the list web, in force and kept (4 new, 2 renewed); of items[6] to items[8], and \
             what is behind them, nothing is known to be: it would cut off 192.0.2.7"
        );
        // Of one piece there is nothing to say.
        let (client, _bodies) = api(vec![(409, problem)]);
        let error = put(&client, &sorted(2), false).unwrap_err();
        assert_eq!(format!("{error:#}"), "it would cut off 192.0.2.7");
    }

    #[test]
    fn what_can_be_taken_back_is_one_piece() {
        let (client, bodies) = api(vec![(200, TWO_NEW)]);
        let error = put(&client, &sorted(4), true).unwrap_err();
        assert!(error.to_string().starts_with("--confirm takes back one change"), "{error}");
        put(&client, &sorted(3), true).unwrap();
        assert_eq!(bodies.recv().unwrap().lines().count(), 3, "nothing was sent before");
    }

    #[test]
    fn entries_have_what_the_options_say() {
        let mut sorted = sorted(3);
        sorted.entries[0].until = Some(noon() + Duration::from_secs(10));
        sorted.entries[1].until = Some(noon() + Duration::from_secs(60));
        sorted.entries[1].reason = Some("ssh".to_owned());
        let common = Common { ttl: Some("1h"), reason: Some("imported") };
        // Pieces before it may have taken their time, in which the first one has ended.
        let later = noon() + Duration::from_secs(30);
        let (one, rest) = piece(&sorted.entries, common, later, 1 << 10);
        assert!(rest.is_empty());
        assert_eq!((one.places, one.ended), (Some(1..=2), 1));
        assert_eq!(
            String::from_utf8(one.body).unwrap(),
            "{\"cidr\":\"192.0.2.1/32\",\"ttl\":\"30s\",\"reason\":\"ssh\"}\n\
             {\"cidr\":\"192.0.2.2/32\",\"ttl\":\"1h\",\"reason\":\"imported\"}\n"
        );
    }

    #[test]
    fn lines_have_their_numbers() {
        let text = b"# by us\n192.0.2.1\n\n192.0.2.7/24\nno prefix\n192.0.2.300\n2001:db8::/32";
        let sorted = Sorted::of_lines(Path::new("bad.txt"), text);
        let places: Vec<_> =
            sorted.entries.iter().map(|e| ((sorted.name)(e.place), e.cidr.to_string())).collect();
        let want =
            [("line 2", "192.0.2.1/32"), ("line 4", "192.0.2.0/24"), ("line 7", "2001:db8::/32")];
        assert_eq!(places, want.map(|(line, cidr)| (line.to_owned(), cidr.to_owned())));
        let wrong: Vec<&str> = sorted.wrong.iter().map(|wrong| &wrong.message[..12]).collect();
        assert_eq!(wrong, ["bad.txt:5:1:", "bad.txt:6:1:"]);
    }

    #[test]
    fn options_are_checked_once() {
        let common = Common { ttl: Some("soon"), reason: None };
        assert!(common.check().unwrap_err().to_string().starts_with("--ttl: "));
        let long = "x".repeat(MAX_REASON + 1);
        let common = Common { ttl: None, reason: Some(&long) };
        assert!(common.check().is_err());
        assert!(Common { ttl: Some("1h"), reason: Some("ssh") }.check().is_ok());
    }
}
