//! JSON to tree. A place is an index into the paths of the fields.

use std::borrow::Cow;

use serde_json::Value as Json;

use super::{Key, Node, Value};
use crate::fault::Loc;

/// Turns `json` into a tree; the paths are what the places in it are indices of.
pub(crate) fn from_json(json: &Json) -> (Node<'_>, Vec<String>) {
    let mut paths = vec![String::new()];
    let node = node(json, at(0), &mut paths);
    (node, paths)
}

fn node<'t>(json: &'t Json, here: Loc, paths: &mut Vec<String>) -> Node<'t> {
    let path = paths[here.line as usize].clone();
    let scalar = |text: Cow<'t, str>, plain| Value::Scalar { text, plain };
    let value = match json {
        Json::Null => scalar("null".into(), true),
        Json::Bool(true) => scalar("true".into(), true),
        Json::Bool(false) => scalar("false".into(), true),
        Json::Number(number) => scalar(number.to_string().into(), true),
        Json::String(text) => scalar(text.into(), false),
        Json::Array(elements) => Value::Sequence(
            elements
                .iter()
                .enumerate()
                .map(|(n, element)| {
                    let at = add(paths, format!("{path}[{n}]"));
                    node(element, at, paths)
                })
                .collect(),
        ),
        Json::Object(fields) => Value::Mapping(
            fields
                .iter()
                .map(|(name, value)| {
                    let dot = if path.is_empty() { "" } else { "." };
                    let at = add(paths, format!("{path}{dot}{name}"));
                    (Key { at, text: name.into() }, node(value, at, paths))
                })
                .collect(),
        ),
    };
    Node { at: here, value }
}

fn add(paths: &mut Vec<String>, path: String) -> Loc {
    paths.push(path);
    at(paths.len() - 1)
}

fn at(index: usize) -> Loc {
    Loc { line: u32::try_from(index).unwrap_or(u32::MAX), column: 0 }
}
