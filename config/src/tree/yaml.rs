//! YAML text to tree.
//!
//! Owns what YAML adds to a tree: anchors, aliases, merge keys and the faults of the text itself. The
//! scanner's events are used directly, because a tree of nodes with their places built by a general
//! deserializer takes three times as long, and a reload is only as fast as its largest changed file.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use granit_parser::{Event, Parser, ScalarStyle, Span};

use super::{Key, Node, Value};
use crate::fault::{Loc, Report, show};

/// Values that the aliases of one document may add to it.
const MAX_ALIASED: usize = 1_000_000;
/// How deep collections may stand inside one another, their aliases expanded. Without aliases the
/// scanner's own limit holds, which is lower.
const MAX_DEPTH: usize = 600;
/// Mappings with more keys than this are searched for duplicates with a hash table.
const SMALL_MAPPING: usize = 16;

/// Turns `text` into a tree. `None`: the document is empty, or the report says why there is none.
pub(crate) fn from_yaml<'t>(text: &'t str, report: &Report<'_>) -> Option<Node<'t>> {
    let mut builder = Builder::new(report);
    read(text, &mut builder)?;
    builder.root
}

/// `None`: the report has the reason.
fn read<'t>(text: &'t str, builder: &mut Builder<'t, '_, '_>) -> Option<()> {
    let report = builder.report;
    let options = granit_parser::options! { emit_comments: false };
    for event in Parser::new_from_str_with_options(text, options) {
        let step = match event {
            Ok((event, span)) => builder.event(event, span),
            Err(error) => {
                let mark = error.marker();
                let at = loc(mark.line(), mark.col());
                report.fault(at, format!("not YAML: {}", one_line(&error.info())), "");
                return None;
            }
        };
        if step.is_err() {
            return None;
        }
    }
    Some(())
}

/// The same for a text of several documents; one that is empty is left out.
pub(crate) fn documents<'t>(text: &'t str, report: &Report<'_>) -> Option<Vec<Node<'t>>> {
    let mut builder = Builder::new(report);
    builder.many = Some(Vec::new());
    read(text, &mut builder)?;
    let mut all = builder.many.unwrap_or_default();
    all.extend(builder.root);
    all.retain(|node| !node.is_null());
    Some(all)
}

/// The report has the reason.
struct Stop;

struct Builder<'t, 'r, 'd> {
    report: &'r Report<'d>,
    root: Option<Node<'t>>,
    documents: usize,
    /// Documents before this one, where there may be several.
    many: Option<Vec<Node<'t>>>,
    open: Vec<Open<'t>>,
    anchors: HashMap<usize, (Node<'t>, Extent)>,
    aliased: usize,
}

/// How large a node is.
#[derive(Clone, Copy)]
struct Extent {
    nodes: usize,
    depth: usize,
}

const SCALAR: Extent = Extent { nodes: 1, depth: 0 };

/// A collection whose end has not been seen.
struct Open<'t> {
    at: Loc,
    anchor: usize,
    /// So far.
    extent: Extent,
    kind: OpenKind<'t>,
}

enum OpenKind<'t> {
    Sequence(Vec<Node<'t>>),
    Mapping {
        fields: Vec<(Key<'t>, Node<'t>)>,
        merges: Vec<(Loc, Node<'t>)>,
        key: Option<(Key<'t>, bool)>,
    },
}

impl<'t, 'r, 'd> Builder<'t, 'r, 'd> {
    fn new(report: &'r Report<'d>) -> Self {
        Self {
            report,
            root: None,
            documents: 0,
            many: None,
            open: Vec::new(),
            anchors: HashMap::new(),
            aliased: 0,
        }
    }

    fn event(&mut self, event: Event<'t>, span: Span) -> Result<(), Stop> {
        let at = loc(span.start.line(), span.start.col());
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if let Some(many) = &mut self.many {
                    many.extend(self.root.take());
                    self.anchors.clear();
                } else if self.documents > 1 {
                    self.report.fault(
                        at,
                        "a second YAML document begins here",
                        "allowed: one document per file; move it to a file of its own",
                    );
                    return Err(Stop);
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let forced = tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str"));
                let plain = style == ScalarStyle::Plain && !forced;
                self.place(Node { at, value: Value::Scalar { text, plain } }, anchor, SCALAR)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.begin(at, anchor, OpenKind::Sequence(Vec::new()));
                Ok(())
            }
            Event::MappingStart(_, anchor, _) => {
                let kind = OpenKind::Mapping { fields: Vec::new(), merges: Vec::new(), key: None };
                self.begin(at, anchor, kind);
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(id) => {
                let Some((node, extent)) = self.anchors.get(&id).cloned() else {
                    self.report.fault(at, "an alias stands inside what it refers to", "");
                    return Err(Stop);
                };
                self.aliased = self.aliased.saturating_add(extent.nodes);
                if self.aliased > MAX_ALIASED || self.open.len() + extent.depth > MAX_DEPTH {
                    let message = format!(
                        "the aliases of this file expand to more than {MAX_ALIASED} values or \
                         {MAX_DEPTH} levels"
                    );
                    self.report.fault(at, message, "put long lists of prefixes into list files");
                    return Err(Stop);
                }
                self.place(node, 0, extent)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, at: Loc, anchor: usize, kind: OpenKind<'t>) {
        self.open.push(Open { at, anchor, extent: SCALAR, kind });
    }

    fn end(&mut self) -> Result<(), Stop> {
        let Some(Open { at, anchor, extent, kind }) = self.open.pop() else {
            return Ok(());
        };
        let value = match kind {
            OpenKind::Sequence(elements) => Value::Sequence(elements),
            OpenKind::Mapping { mut fields, merges, key: _ } => {
                self.report_duplicates(&mut fields);
                for (at, merge) in merges {
                    self.merge(&mut fields, at, merge);
                }
                Value::Mapping(fields)
            }
        };
        self.place(Node { at, value }, anchor, extent)
    }

    /// Puts a finished node where it belongs: it is an element, a key, a value or the document.
    fn place(&mut self, node: Node<'t>, anchor: usize, extent: Extent) -> Result<(), Stop> {
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), extent));
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        open.extent.nodes = open.extent.nodes.saturating_add(extent.nodes);
        open.extent.depth = open.extent.depth.max(extent.depth + 1);
        match &mut open.kind {
            OpenKind::Sequence(elements) => elements.push(node),
            OpenKind::Mapping { fields, merges, key } => match key.take() {
                None => {
                    let Value::Scalar { text, plain } = node.value else {
                        self.report.fault(
                            node.at,
                            "a list or a mapping is used as a key",
                            "allowed: the name of a field; text with braces or brackets needs quotes",
                        );
                        return Err(Stop);
                    };
                    *key = Some((Key { at: node.at, text }, plain));
                }
                Some((key, true)) if key.text == "<<" => merges.push((key.at, node)),
                Some((key, _)) => fields.push((key, node)),
            },
        }
        Ok(())
    }

    /// Reports keys that stand twice in a mapping, and keeps the first of each.
    fn report_duplicates(&self, fields: &mut Vec<(Key<'t>, Node<'t>)>) {
        let unique = if fields.len() <= SMALL_MAPPING {
            fields.iter().enumerate().all(|(n, (key, _))| {
                fields[..n].iter().all(|(earlier, _)| earlier.text != key.text)
            })
        } else {
            let mut seen = HashSet::with_capacity(fields.len());
            fields.iter().all(|(key, _)| seen.insert(&*key.text))
        };
        if unique {
            return;
        }
        let mut first: HashMap<Cow<'t, str>, Loc> = HashMap::new();
        fields.retain(|(key, _)| match first.get(&key.text) {
            None => {
                first.insert(key.text.clone(), key.at);
                true
            }
            Some(first) => {
                self.report.fault(
                    key.at,
                    format!(
                        "{} is set twice, first at {}",
                        show(&key.text),
                        self.report.place(*first)
                    ),
                    "allowed: once",
                );
                false
            }
        });
    }

    /// Adds what `<<` brings to the fields that the mapping does not have itself.
    fn merge(&self, fields: &mut Vec<(Key<'t>, Node<'t>)>, at: Loc, merge: Node<'t>) {
        match merge.value {
            Value::Mapping(more) => {
                for (key, value) in more {
                    if fields.iter().all(|(own, _)| own.text != key.text) {
                        fields.push((key, value));
                    }
                }
            }
            Value::Sequence(elements)
                if elements.iter().all(|one| matches!(one.value, Value::Mapping(_))) =>
            {
                for element in elements {
                    self.merge(fields, at, element);
                }
            }
            _ => self.report.fault(
                at,
                format!("`<<` is followed by {}", merge.describe()),
                "allowed: an alias of a mapping, or a list of them",
            ),
        }
    }
}

/// The scanner's lines begin at 1, its columns at 0.
fn loc(line: usize, column: usize) -> Loc {
    let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Loc { line: clamp(line), column: clamp(column.saturating_add(1)) }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
