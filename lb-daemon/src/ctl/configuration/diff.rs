//! `lbctl config diff`: sends files with all that they name, and prints what they would change.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    path::{self, Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use config::{Given, Loader};
use hyper::Method;
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::super::{
    client::{Client, Guard},
    output::{Output, number},
};
use crate::{
    app,
    compare::{Change, Difference, FieldChange, Kind, PrefixChange, RingChange, What},
};

/// The status when there is something.
const DIFFERS: u8 = 1;
/// The status when that cannot be told.
pub(super) const TROUBLE: u8 = 2;

pub(super) fn run(client: &Client, output: &Output, path: &Path) -> anyhow::Result<ExitCode> {
    let path = path::absolute(path).with_context(|| path.display().to_string())?;
    let mut loader = Loader::new(&path);
    loader.load().map_err(|faults| app::faulty(&faults))?;
    let Given { documents, files } = loader.used().context("a file of the configuration")?;
    let body = json!({ "documents": texts(documents), "files": texts(files) });
    let value = client.change(Method::POST, "/v1/config/diff", Some(&body), Guard::default())?;
    let difference = Difference::deserialize(&value).context("the daemon is of another version")?;
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    output.show(&value, || page(&difference, colours))?;
    for reason in &difference.refused {
        // The status says it too.
        let _ = writeln!(std::io::stderr(), "lbctl: the daemon would refuse it: {reason}");
    }
    Ok(match &difference {
        Difference { refused, .. } if !refused.is_empty() => ExitCode::from(TROUBLE),
        Difference { differs: true, .. } => ExitCode::from(DIFFERS),
        Difference { differs: false, .. } => ExitCode::SUCCESS,
    })
}

fn texts(files: BTreeMap<PathBuf, Vec<u8>>) -> Vec<Value> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    files.into_iter().map(|(path, bytes)| json!({ "path": path, "text": text(bytes) })).collect()
}

/// What differs, an object per paragraph.
fn page(difference: &Difference, colours: bool) -> String {
    if !difference.differs {
        return "no difference".to_owned();
    }
    let mut page = Page { text: String::new(), colours };
    for change in &difference.changes {
        page.change(change);
    }
    page.text
}

struct Page {
    text: String,
    colours: bool,
}

impl Page {
    fn line(&mut self, indent: usize, what: What, text: &str) {
        let (sign, colour) = match what {
            What::Added => ('+', 32),
            What::Removed => ('-', 31),
            What::Changed => ('~', 33),
        };
        let line = format!("{:indent$}{sign} {text}", "");
        self.text += &match self.colours {
            true => format!("\x1b[{colour}m{line}\x1b[0m\n"),
            false => format!("{line}\n"),
        };
    }

    fn change(&mut self, change: &Change) {
        let Change { change: what, kind, name, service, fields, prefixes, .. } = change;
        let of = service.as_ref().map(|service| format!(" of {service}")).unwrap_or_default();
        let name = if name.is_empty() { String::new() } else { format!(" {name}") };
        self.line(0, *what, &format!("{}{name}{of}", kind.as_str()));
        if *what != What::Removed {
            for field in fields {
                self.field(field);
            }
        }
        if let Some(prefixes) = prefixes {
            self.prefixes(*kind, prefixes);
        }
        if change.prefixes_unknown {
            self.line(4, *what, "prefixes: not known until the list is fetched");
        }
        if let Some(RingChange { slots, moved }) = &change.ring {
            let share = f64::from(*moved) * 100.0 / f64::from((*slots).max(1));
            let (moved, slots) = (number((*moved).into()), number((*slots).into()));
            let text = format!("ring: {moved} of {slots} slots get another backend ({share:.1} %)");
            self.line(4, What::Changed, &text);
        }
    }

    fn field(&mut self, FieldChange { field, before, after }: &FieldChange) {
        match (before, after) {
            (Value::Null, after) => {
                self.line(4, What::Added, &format!("{field}: {}", shown(after)));
            }
            (before, Value::Null) => {
                self.line(4, What::Removed, &format!("{field}: {}", shown(before)));
            }
            (Value::Array(before), Value::Array(after)) => {
                for gone in before.iter().filter(|value| !after.contains(value)) {
                    self.line(4, What::Removed, &format!("{field}: {}", shown(gone)));
                }
                for new in after.iter().filter(|value| !before.contains(value)) {
                    self.line(4, What::Added, &format!("{field}: {}", shown(new)));
                }
            }
            (before, after) => {
                let text = format!("{field}: {} -> {}", shown(before), shown(after));
                self.line(4, What::Changed, &text);
            }
        }
    }

    fn prefixes(&mut self, kind: Kind, prefixes: &PrefixChange) {
        let PrefixChange { added, removed, first_added, first_removed } = prefixes;
        let what = if kind == Kind::Allow { "allowed prefixes" } else { "prefixes" };
        let text = format!("{what}: {} come, {} go", number(*added), number(*removed));
        self.line(4, What::Changed, &text);
        let parts = [(What::Added, added, first_added), (What::Removed, removed, first_removed)];
        for (sign, count, first) in parts {
            for prefix in first {
                self.line(8, sign, &prefix.to_string());
            }
            let more = count.saturating_sub(first.len() as u64);
            if more > 0 {
                self.line(8, sign, &format!("and {} more", number(more)));
            }
        }
    }
}

/// A value in a line.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| format!("{name} {}", shown(value));
            fields.iter().map(field).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_has_its_sign() {
        let field = |field: &str, before: Value, after: Value| FieldChange {
            field: field.to_owned(),
            before,
            after,
        };
        let change = |change, kind, name: &str, fields| Change {
            change,
            kind,
            name: name.to_owned(),
            service: None,
            fields,
            prefixes: None,
            prefixes_unknown: false,
            ring: None,
        };
        let fields = vec![
            field("drain_timeout", json!("5m"), json!("1m")),
            field(
                "addresses",
                json!(["192.0.2.1", "192.0.2.2"]),
                json!(["192.0.2.2", "192.0.2.3"]),
            ),
        ];
        let service = Change {
            ring: Some(RingChange { slots: 1021, moved: 255 }),
            ..change(What::Changed, Kind::Service, "web", fields)
        };
        let backend = Change {
            service: Some("web".to_owned()),
            ..change(What::Added, Kind::Backend, "b", vec![field("weight", Value::Null, json!(2))])
        };
        let list = Change {
            prefixes: Some(PrefixChange {
                added: 0,
                removed: 2000,
                first_added: Vec::new(),
                first_removed: vec!["192.0.2.0/24".parse().unwrap()],
            }),
            ..change(
                What::Removed,
                Kind::List,
                "l",
                vec![field("action", json!("drop"), Value::Null)],
            )
        };
        let fetched = Change {
            prefixes_unknown: true,
            ..change(
                What::Changed,
                Kind::List,
                "f",
                vec![field("order", json!("after l"), json!("first"))],
            )
        };
        let changes = vec![service, backend, list, fetched];
        let difference = Difference { differs: true, changes, refused: Vec::new() };
        let want = "~ service web\n    ~ drain_timeout: 5m -> 1m\n    - addresses: 192.0.2.1\n    \
                    + addresses: 192.0.2.3\n    ~ ring: 255 of 1,021 slots get another backend (25.0 %)\n\
                    + backend b of web\n    + weight: 2\n- list l\n    ~ prefixes: 0 come, 2,000 go\n        \
                    - 192.0.2.0/24\n        - and 1,999 more\n~ list f\n    ~ order: after l -> first\n    \
                    ~ prefixes: not known until the list is fetched\n";
        assert_eq!(page(&difference, false), want);
        assert!(page(&difference, true).contains("\x1b[32m+ backend b of web\x1b[0m"));
        assert_eq!(page(&Difference::default(), true), "no difference");
    }
}
