//! Reading typed values from a tree, so that a wrong type is reported where it stands.

use std::fmt;
use std::ops::Range;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::{Kind, Member, Node, is_float_text};

/// A value does not have the type its place asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct NodeError {
    /// The innermost value at fault; the object itself when one of its keys is missing.
    pub span: Range<usize>,
    pub cause: String,
    /// The key that is missing, if that is the fault.
    pub missing: Option<&'static str>,
}

/// The same fault before it is known at which value it happened.
#[derive(Debug)]
pub struct ShapeError {
    span: Option<Range<usize>>,
    cause: String,
    missing: Option<&'static str>,
}

/// Reads a `T` from a tree.
pub fn from_node<T: de::DeserializeOwned>(node: &Node) -> Result<T, NodeError> {
    T::deserialize(node).map_err(|e| e.at(node))
}

/// Reads a `T` from an object as if the key `skip` were not in it.
pub(crate) fn from_object_without<T: de::DeserializeOwned>(node: &Node, skip: &'static str) -> Result<T, NodeError> {
    T::deserialize(Without { node, skip }).map_err(|e| e.at(node))
}

impl ShapeError {
    fn at(self, node: &Node) -> NodeError {
        NodeError { span: self.span.unwrap_or_else(|| node.span.clone()), cause: self.cause, missing: self.missing }
    }

    /// Remembers the innermost place: later, outer calls change nothing.
    fn within(mut self, node: &Node) -> Self {
        self.span.get_or_insert_with(|| node.span.clone());
        self
    }

    fn new(cause: String) -> Self {
        ShapeError { span: None, cause, missing: None }
    }
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

impl std::error::Error for ShapeError {}

impl de::Error for ShapeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        ShapeError::new(message.to_string())
    }
    fn invalid_type(found: Unexpected, expected: &dyn Expected) -> Self {
        ShapeError::new(format!("expected {}, found {}", in_words(expected), found_in_words(found)))
    }
    fn invalid_value(found: Unexpected, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }
    fn missing_field(field: &'static str) -> Self {
        ShapeError { missing: Some(field), ..ShapeError::new(format!("the key `{field}` is missing")) }
    }
}

/// What a Rust type calls itself, in the words of the recipe format.
fn in_words(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "a sequence" => "a list".into(),
        "a boolean" => "true or false".into(),
        "a string" => "a text in double quotes".into(),
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a map" => "an object".into(),
        _ if text.starts_with("struct ") => "an object".into(),
        _ => text,
    }
}

fn found_in_words(found: Unexpected) -> String {
    match found {
        Unexpected::Bool(b) => format!("{b}"),
        Unexpected::Unsigned(n) => format!("the number {n}"),
        Unexpected::Signed(n) => format!("the number {n}"),
        Unexpected::Float(x) => format!("the number {}", super::float_repr(x)),
        Unexpected::Str(s) => format!("the text {:?}", super::excerpt(s)),
        Unexpected::Unit | Unexpected::Option => "null".into(),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "an object".into(),
        other => other.to_string(),
    }
}

impl<'de> de::Deserializer<'de> for &'de Node {
    type Error = ShapeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        let result = match &self.kind {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool(b) => visitor.visit_bool(*b),
            Kind::Number(text) => visit_number(text, visitor, false),
            Kind::Text(text) => visitor.visit_str(text),
            Kind::List(items) => visitor.visit_seq(Items(items.iter())),
            Kind::Object(members) => visitor.visit_map(Members { rest: members.iter(), value: None, skip: None }),
        };
        result.map_err(|e| e.within(self))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ShapeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        whole(self, visitor)
    }
    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        whole(self, visitor)
    }
    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        whole(self, visitor)
    }
    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        whole(self, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ShapeError> {
        match &self.kind {
            Kind::Text(text) => visitor.visit_enum(IntoDeserializer::<ShapeError>::into_deserializer(text.as_str())),
            _ => self.deserialize_any(visitor),
        }
        .map_err(|e: ShapeError| e.within(self))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i128 u8 u16 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

/// A whole number may be written `1000.0`: other writers of recipes do, and mean the same.
fn whole<'de, V: Visitor<'de>>(node: &'de Node, visitor: V) -> Result<V::Value, ShapeError> {
    match &node.kind {
        Kind::Number(text) => visit_number(text, visitor, true).map_err(|e| e.within(node)),
        _ => de::Deserializer::deserialize_any(node, visitor),
    }
}

fn visit_number<'de, V: Visitor<'de>>(text: &str, visitor: V, prefer_whole: bool) -> Result<V::Value, ShapeError> {
    if !is_float_text(text) {
        if let Ok(n) = text.parse::<u64>() {
            return visitor.visit_u64(n);
        }
        if let Ok(n) = text.parse::<i64>() {
            return visitor.visit_i64(n);
        }
    }
    let x: f64 = text.parse().map_err(|_| ShapeError::new(format!("{text} is no number")))?;
    // 2^53: beyond it a double does not name one whole number.
    if prefer_whole && x.fract() == 0.0 && x.abs() <= 9_007_199_254_740_992.0 {
        return if x < 0.0 { visitor.visit_i64(x as i64) } else { visitor.visit_u64(x as u64) };
    }
    visitor.visit_f64(x)
}

struct Items<'de>(std::slice::Iter<'de, Node>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = ShapeError;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ShapeError> {
        self.0.next().map(|node| seed.deserialize(node).map_err(|e| e.within(node))).transpose()
    }
    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Members<'de> {
    rest: std::slice::Iter<'de, Member>,
    value: Option<&'de Node>,
    skip: Option<&'static str>,
}

impl<'de> MapAccess<'de> for Members<'de> {
    type Error = ShapeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ShapeError> {
        let skip = self.skip;
        let Some(member) = self.rest.find(|m| Some(m.key.as_str()) != skip) else { return Ok(None) };
        self.value = Some(&member.value);
        let key: StrDeserializer<ShapeError> = member.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, ShapeError> {
        match self.value.take() {
            Some(node) => seed.deserialize(node).map_err(|e| e.within(node)),
            None => Err(ShapeError::new("a value was asked for before its key".into())),
        }
    }
}

/// An object seen without one of its keys.
struct Without<'de> {
    node: &'de Node,
    skip: &'static str,
}

impl<'de> de::Deserializer<'de> for Without<'de> {
    type Error = ShapeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        match &self.node.kind {
            Kind::Object(members) => {
                visitor.visit_map(Members { rest: members.iter(), value: None, skip: Some(self.skip) })
            }
            _ => self.node.deserialize_any(visitor),
        }
        .map_err(|e: ShapeError| e.within(self.node))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}
