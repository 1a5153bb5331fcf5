//! Reads serde types from a tree, and goes on after a fault.
//!
//! A fault ends only the [`Field`](crate::file::Field) it stands in: fields say where they stand and
//! are read through [`FIELD`], the one point where an error becomes an entry of the report. Unknown
//! fields are reported here too, and skipped.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
    value::{StrDeserializer, U32Deserializer},
};

use super::{Node, Value};
use crate::fault::{Loc, Report, allowed, nearest, show};

/// Name of the tuple struct that [`Field`](crate::file::Field) asks for: line, column, value.
pub(crate) const FIELD: &str = "\0field";
/// Separates what is wrong from what is allowed in the text of a custom error.
pub(crate) const HELP: char = '\0';

/// A node that is read as a serde type.
#[derive(Clone, Copy)]
pub(crate) struct NodeDe<'n, 'r, 'd> {
    pub(crate) node: &'n Node<'n>,
    pub(crate) report: &'r Report<'d>,
    /// The field that holds the node, for messages.
    pub(crate) field: &'n str,
}

/// Why a value could not be read. Becomes an entry of the report at the place of its field.
#[derive(Debug)]
pub(crate) struct DeError {
    message: String,
    help: String,
}

impl fmt::Display for DeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.help)
    }
}

impl std::error::Error for DeError {}

impl serde::de::Error for DeError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        let text = text.to_string();
        let (message, help) = text.split_once(HELP).unwrap_or((&text, ""));
        Self { message: message.to_owned(), help: help.to_owned() }
    }
}

impl<'n> NodeDe<'n, '_, '_> {
    fn unexpected(&self, wanted: &str) -> DeError {
        DeError {
            message: format!("{} stands where {wanted} is expected", self.node.describe()),
            help: format!("allowed: {wanted}"),
        }
    }

    fn text(&self, wanted: &str) -> Result<&'n str, DeError> {
        match &self.node.value {
            Value::Scalar { text, .. } if !self.node.is_null() => Ok(text),
            _ => Err(self.unexpected(wanted)),
        }
    }

    fn integer(&self, max: u64) -> Result<u64, DeError> {
        let wanted = if max > u64::from(u32::MAX) {
            "a whole number".to_owned()
        } else {
            format!("a whole number from 0 to {max}")
        };
        let Value::Scalar { text, plain: true } = &self.node.value else {
            return Err(match &self.node.value {
                Value::Scalar { text, .. } if text.parse::<u64>().is_ok() => DeError {
                    message: format!("the text {} stands where {wanted} is expected", show(text)),
                    help: "write it without quotes".to_owned(),
                },
                _ => self.unexpected(&wanted),
            });
        };
        let parsed = match text.strip_prefix("0x") {
            Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16),
            _ if text.starts_with('+') => return Err(self.unexpected(&wanted)),
            _ => text.parse(),
        };
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_number = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
        match parsed {
            Ok(number) if number <= max => Ok(number),
            Ok(_) => Err(out_of_range(text, &wanted)),
            Err(_) if is_number => Err(out_of_range(text, &wanted)),
            Err(_) => Err(self.unexpected(&wanted)),
        }
    }
}

fn out_of_range(text: &str, wanted: &str) -> DeError {
    DeError { message: format!("{text} is out of range"), help: format!("allowed: {wanted}") }
}

macro_rules! integers {
    ($($method:ident $type:ty, $visit:ident;)*) => {$(
        fn $method<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
            let number = self.integer(<$type>::MAX.into())?;
            visitor.$visit(<$type>::try_from(number).unwrap_or(<$type>::MAX))
        }
    )*};
}

impl<'n> Deserializer<'n> for NodeDe<'n, '_, '_> {
    type Error = DeError;

    integers! {
        deserialize_u8 u8, visit_u8;
        deserialize_u16 u16, visit_u16;
        deserialize_u32 u32, visit_u32;
        deserialize_u64 u64, visit_u64;
    }

    fn deserialize_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
        match &self.node.value {
            Value::Scalar { .. } if self.node.is_null() => visitor.visit_unit(),
            Value::Scalar { text, plain } => match (&**text, text.parse::<u64>()) {
                ("true", _) if *plain => visitor.visit_bool(true),
                ("false", _) if *plain => visitor.visit_bool(false),
                (_, Ok(number)) if *plain => visitor.visit_u64(number),
                _ => visitor.visit_borrowed_str(text),
            },
            Value::Sequence(_) => self.deserialize_seq(visitor),
            Value::Mapping(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
        match &self.node.value {
            Value::Scalar { text, plain: true } => match &**text {
                "true" | "True" | "TRUE" => visitor.visit_bool(true),
                "false" | "False" | "FALSE" => visitor.visit_bool(false),
                _ => Err(self.unexpected("true or false")),
            },
            _ => Err(self.unexpected("true or false")),
        }
    }

    fn deserialize_str<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
        visitor.visit_borrowed_str(self.text("text")?)
    }

    fn deserialize_string<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'n>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple_struct<V: Visitor<'n>>(
        self,
        name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, DeError> {
        if name == FIELD {
            visitor.visit_seq(FieldAccess { de: self, step: 0 })
        } else {
            self.deserialize_seq(visitor)
        }
    }

    fn deserialize_seq<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
        let Value::Sequence(elements) = &self.node.value else {
            return Err(self.unexpected("a list"));
        };
        visitor.visit_seq(Elements { elements: elements.iter(), de: self })
    }

    fn deserialize_map<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
        let Value::Mapping(fields) = &self.node.value else {
            return Err(self.unexpected("a mapping"));
        };
        visitor.visit_map(Fields { fields: fields.iter(), known: None, de: self, value: None })
    }

    fn deserialize_struct<V: Visitor<'n>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        let Value::Mapping(fields) = &self.node.value else {
            let wanted = format!("a mapping with the fields {}", known.join(", "));
            return Err(self.unexpected(&wanted));
        };
        let known = Some(known);
        visitor.visit_map(Fields { fields: fields.iter(), known, de: self, value: None })
    }

    fn deserialize_enum<V: Visitor<'n>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        let wanted = format!("one of {}", variants.join(", "));
        let text = self.text(&wanted)?;
        if !variants.contains(&text) {
            return Err(DeError {
                message: format!("{} is not a known value of `{}`", show(text), self.field),
                help: allowed(nearest(text, variants), variants),
            });
        }
        visitor.visit_enum(Variant(text))
    }

    serde::forward_to_deserialize_any! {
        <V: Visitor<'n>>
        i8 i16 i32 i64 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple identifier
        ignored_any
    }
}

/// Yields line, column and value of a field. A value with a fault is reported and left out.
struct FieldAccess<'n, 'r, 'd> {
    de: NodeDe<'n, 'r, 'd>,
    step: u8,
}

impl<'n> SeqAccess<'n> for FieldAccess<'n, '_, '_> {
    type Error = DeError;

    fn next_element_seed<T: DeserializeSeed<'n>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DeError> {
        let Loc { line, column } = self.de.node.at;
        let number = |n: u32| -> U32Deserializer<DeError> { n.into_deserializer() };
        self.step = self.step.saturating_add(1);
        match self.step {
            1 => seed.deserialize(number(line)).map(Some),
            2 => seed.deserialize(number(column)).map(Some),
            3 => match seed.deserialize(self.de) {
                Ok(value) => Ok(Some(value)),
                Err(DeError { message, help }) => {
                    self.de.report.fault(self.de.node.at, message, help);
                    Ok(None)
                }
            },
            _ => Ok(None),
        }
    }
}

struct Elements<'n, 'r, 'd> {
    elements: std::slice::Iter<'n, Node<'n>>,
    de: NodeDe<'n, 'r, 'd>,
}

impl<'n> SeqAccess<'n> for Elements<'n, '_, '_> {
    type Error = DeError;

    fn next_element_seed<T: DeserializeSeed<'n>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DeError> {
        match self.elements.next() {
            Some(node) => seed.deserialize(NodeDe { node, ..self.de }).map(Some),
            None => Ok(None),
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.elements.len())
    }
}

struct Fields<'n, 'r, 'd> {
    fields: std::slice::Iter<'n, (super::Key<'n>, Node<'n>)>,
    /// `None`: any key is good.
    known: Option<&'static [&'static str]>,
    /// The mapping.
    de: NodeDe<'n, 'r, 'd>,
    value: Option<NodeDe<'n, 'r, 'd>>,
}

impl<'n> MapAccess<'n> for Fields<'n, '_, '_> {
    type Error = DeError;

    fn next_key_seed<K: DeserializeSeed<'n>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DeError> {
        for (key, node) in self.fields.by_ref() {
            let Some(known) = self.known.filter(|known| !known.contains(&&*key.text)) else {
                self.value = Some(NodeDe { node, report: self.de.report, field: &key.text });
                let key: StrDeserializer<'_, DeError> = (&*key.text).into_deserializer();
                return seed.deserialize(key).map(Some);
            };
            let meant = nearest(&key.text, known);
            if let Some(meant) = meant {
                self.de.report.misspelt(self.de.node.at, meant);
            }
            let message = format!("unknown field {}", show(&key.text));
            self.de.report.fault(key.at, message, allowed(meant, known));
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'n>>(&mut self, seed: T) -> Result<T::Value, DeError> {
        match self.value.take() {
            Some(value) => seed.deserialize(value),
            None => Err(serde::de::Error::custom("a value was asked for before its key")),
        }
    }
}

struct Variant<'n>(&'n str);

impl<'n> EnumAccess<'n> for Variant<'n> {
    type Error = DeError;
    type Variant = Unit;

    fn variant_seed<V: DeserializeSeed<'n>>(self, seed: V) -> Result<(V::Value, Unit), DeError> {
        let name: StrDeserializer<'_, DeError> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, Unit))
    }
}

/// All enums of the files are plain words.
struct Unit;

impl<'n> VariantAccess<'n> for Unit {
    type Error = DeError;

    fn unit_variant(self) -> Result<(), DeError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'n>>(self, _seed: T) -> Result<T::Value, DeError> {
        Err(serde::de::Error::custom("a word cannot carry a value"))
    }

    fn tuple_variant<V: Visitor<'n>>(self, _len: usize, _: V) -> Result<V::Value, DeError> {
        Err(serde::de::Error::custom("a word cannot carry a value"))
    }

    fn struct_variant<V: Visitor<'n>>(
        self,
        _fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, DeError> {
        Err(serde::de::Error::custom("a word cannot carry a value"))
    }
}
