//! A document as a tree of nodes that know where they stand.
//!
//! YAML text and JSON bodies both become this tree ([`yaml`], [`json`]), and [`de`] reads the serde
//! types of [`crate::file`] from it. Reading goes on after a fault, which is why the types are not
//! read from the text directly: one pass finds every unknown field and every value of a wrong type.

pub(crate) mod de;
pub(crate) mod json;
pub(crate) mod yaml;

use std::borrow::Cow;

use crate::fault::Loc;

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node<'t> {
    pub(crate) at: Loc,
    pub(crate) value: Value<'t>,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(crate) enum Value<'t> {
    /// A single value; what type it has is decided by whoever reads it, from the text as written.
    Scalar {
        text: Cow<'t, str>,
        /// Not quoted: may be a number, a truth value or nothing.
        plain: bool,
    },
    Sequence(Vec<Node<'t>>),
    Mapping(Vec<(Key<'t>, Node<'t>)>),
}

/// A key of a mapping.
#[derive(Clone, Debug)]
pub(crate) struct Key<'t> {
    pub(crate) at: Loc,
    pub(crate) text: Cow<'t, str>,
}

impl Node<'_> {
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(&**text, "" | "~" | "null" | "Null" | "NULL"))
    }

    /// How the node is named when it is not what was expected.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => "nothing".to_owned(),
            Value::Scalar { text, plain } => {
                let kind = if *plain { "" } else { "the text " };
                format!("{kind}{}", crate::fault::show(text))
            }
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
        }
    }
}
