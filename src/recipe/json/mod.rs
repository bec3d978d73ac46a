//! JSON as written: a small tree that keeps what a recipe's bytes say and where they say it.
//!
//! Enters: the text of a recipe file. Leaves: a tree of [`Node`]s with byte spans, key order and the text of every
//! number, so that a finding can name line and column, a value can be spliced without touching its neighbours, and
//! Python's `json.dumps(indent=2)` form can be reproduced byte for byte.
//!
//! Why not `serde_json::Value`: it forgets positions, the spelling of numbers and duplicate keys, and its
//! `arbitrary_precision` feature, which would keep the spelling, changes every other user of the crate.

mod de;
mod parse;
mod python;

pub(crate) use de::from_object_without;
pub use de::{NodeError, ShapeError, from_node};
pub use parse::{MAX_DEPTH, SyntaxError, parse};
pub use python::{Style, float_repr, quote, render, render_at};

use std::fmt::Write as _;
use std::ops::Range;

use serde_json::Value;

/// One JSON value and the bytes it occupies in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub span: Range<usize>,
    pub kind: Kind,
}

/// What a [`Node`] is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Null,
    Bool(bool),
    /// The number as written: `12.0` stays `12.0`.
    Number(String),
    /// The text with its escapes resolved.
    Text(String),
    List(Vec<Node>),
    Object(Vec<Member>),
}

/// One `"key": value` of an object, in the order written.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub key: String,
    pub key_span: Range<usize>,
    pub value: Node,
}

/// A place in a text file, counted from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl Position {
    /// The place of byte `offset` in `bytes`. Bytes that are not UTF-8 count as one column each.
    pub fn of(bytes: &[u8], offset: usize) -> Self {
        let before = &bytes[..offset.min(bytes.len())];
        let line_start = before.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        Position {
            line: before.iter().filter(|&&b| b == b'\n').count() + 1,
            column: String::from_utf8_lossy(&before[line_start..]).chars().count() + 1,
        }
    }
}

impl Node {
    /// A node that stands in no file (made by the program, not read).
    pub fn made(kind: Kind) -> Self {
        Node { span: 0..0, kind }
    }

    /// The same content as a [`serde_json::Value`], without positions.
    pub fn from_value(value: &Value) -> Self {
        Node::made(match value {
            Value::Null => Kind::Null,
            Value::Bool(b) => Kind::Bool(*b),
            Value::Number(n) => match n.as_f64() {
                Some(float) if n.is_f64() => Kind::Number(float_repr(float)),
                _ => Kind::Number(n.to_string()),
            },
            Value::String(s) => Kind::Text(s.clone()),
            Value::Array(items) => Kind::List(items.iter().map(Node::from_value).collect()),
            Value::Object(map) => Kind::Object(
                map.iter()
                    .map(|(key, value)| Member { key: key.clone(), key_span: 0..0, value: Node::from_value(value) })
                    .collect(),
            ),
        })
    }

    /// The content as a [`serde_json::Value`] (numbers beyond 64 bits become the nearest float).
    pub fn to_value(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(b) => Value::Bool(*b),
            Kind::Number(text) => number_value(text),
            Kind::Text(text) => Value::String(text.clone()),
            Kind::List(items) => Value::Array(items.iter().map(Node::to_value).collect()),
            Kind::Object(members) => {
                Value::Object(members.iter().map(|m| (m.key.clone(), m.value.to_value())).collect())
            }
        }
    }

    /// The members when this is an object, else nothing.
    pub fn members(&self) -> &[Member] {
        match &self.kind {
            Kind::Object(members) => members,
            _ => &[],
        }
    }

    /// The items when this is a list, else nothing.
    pub fn items(&self) -> &[Node] {
        match &self.kind {
            Kind::List(items) => items,
            _ => &[],
        }
    }

    /// The value under `key` when this is an object that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.members().iter().find(|m| m.key == key).map(|m| &m.value)
    }

    /// The text when this is a string.
    pub fn as_text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn is_null(&self) -> bool {
        self.kind == Kind::Null
    }

    /// The node at a key path such as `stages[2].quantTypes`; the empty path is the node itself.
    pub fn at(&self, path: &str) -> Option<&Node> {
        if path.is_empty() {
            return Some(self);
        }
        self.children().find_map(|(step, child)| {
            let rest = path.strip_prefix(step.as_str())?;
            match rest.chars().next() {
                None => Some(child),
                Some('.') => child.at(&rest[1..]),
                Some('[') => child.at(rest),
                Some(_) => None,
            }
        })
    }

    /// The key path of the innermost node whose span is exactly `span`, below this node.
    pub fn path_of(&self, span: &Range<usize>) -> Option<String> {
        if self.span == *span {
            return Some(String::new());
        }
        if span.start < self.span.start || span.end > self.span.end {
            return None;
        }
        self.children().find_map(|(step, child)| child.path_of(span).map(|rest| join(&step, &rest)))
    }

    fn children(&self) -> Box<dyn Iterator<Item = (String, &Node)> + '_> {
        match &self.kind {
            Kind::List(items) => Box::new(items.iter().enumerate().map(|(i, n)| (format!("[{i}]"), n))),
            Kind::Object(members) => Box::new(members.iter().map(|m| (key_step(&m.key), &m.value))),
            _ => Box::new(std::iter::empty()),
        }
    }
}

/// A text short enough for a message: its first 60 characters, and `…` for the rest.
pub fn excerpt(text: &str) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// One step of a key path: the bare key, or `["odd key"]` when it holds characters a path gives a meaning.
pub fn key_step(key: &str) -> String {
    let plain = !key.is_empty() && !key.chars().any(|c| c.is_whitespace() || c.is_control() || ".[]\"".contains(c));
    if plain { key.to_owned() } else { format!("[{}]", quote(key)) }
}

/// Joins two key paths: `stages` + `[2]`, `stages[2]` + `type`.
pub fn join(path: &str, step: &str) -> String {
    let mut out = path.to_owned();
    if !path.is_empty() && !step.is_empty() && !step.starts_with('[') {
        out.push('.');
    }
    let _ = write!(out, "{step}");
    out
}

/// True when a number's text is a float to Python and to JSON Schema alike (has a fraction or an exponent).
pub(crate) fn is_float_text(text: &str) -> bool {
    text.contains(['.', 'e', 'E'])
}

fn number_value(text: &str) -> Value {
    if !is_float_text(text) {
        if let Ok(n) = text.parse::<u64>() {
            return n.into();
        }
        if let Ok(n) = text.parse::<i64>() {
            return n.into();
        }
    }
    // The parser has checked the grammar and that the value is finite.
    text.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests;
