//! Python's way of writing JSON, as published recipes are written and hashed: `json.dumps` with ASCII escapes,
//! floats in their shortest form that keeps the point, keys in the order they stand.

use std::fmt::Write as _;

use super::{Kind, Node, is_float_text};

/// How to lay a tree out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style<'a> {
    /// `json.dumps(x, indent=N)`: one item per line, `": "`, `[]` and `{}` when empty.
    Lines { indent: &'a str, newline: &'a str },
    /// `json.dumps(x)`: one line, `", "` and `": "`.
    OneLine,
    /// `json.dumps(x, separators=(",", ":"))`: no space at all.
    Compact,
}

impl Style<'_> {
    /// `json.dumps(x, indent=2)`, the form recipes are published in.
    pub const PYTHON: Style<'static> = Style::Lines { indent: "  ", newline: "\n" };
}

/// The text of a tree in `style`, without a final newline.
pub fn render(node: &Node, style: Style) -> String {
    render_at(node, style, 0)
}

/// As [`render`], for a value that stands `depth` levels inside a document (its first line is not indented).
pub fn render_at(node: &Node, style: Style, depth: usize) -> String {
    let mut out = String::new();
    write_node(&mut out, node, style, depth);
    out
}

fn write_node(out: &mut String, node: &Node, style: Style, depth: usize) {
    match &node.kind {
        Kind::Null => out.push_str("null"),
        Kind::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Kind::Number(text) => out.push_str(&number_repr(text)),
        Kind::Text(text) => out.push_str(&quote(text)),
        Kind::List(items) => {
            write_items(out, style, depth, "[", "]", items, |out, item| write_node(out, item, style, depth + 1));
        }
        Kind::Object(members) => {
            write_items(out, style, depth, "{", "}", members, |out, member| {
                out.push_str(&quote(&member.key));
                out.push_str(if style == Style::Compact { ":" } else { ": " });
                write_node(out, &member.value, style, depth + 1);
            });
        }
    }
}

fn write_items<T>(
    out: &mut String,
    style: Style,
    depth: usize,
    open: &str,
    close: &str,
    items: &[T],
    mut write: impl FnMut(&mut String, &T),
) {
    out.push_str(open);
    for (i, item) in items.iter().enumerate() {
        match style {
            Style::Lines { indent, newline } => {
                out.push_str(if i > 0 { "," } else { "" });
                out.push_str(newline);
                out.push_str(&indent.repeat(depth + 1));
            }
            Style::OneLine => out.push_str(if i > 0 { ", " } else { "" }),
            Style::Compact => out.push_str(if i > 0 { "," } else { "" }),
        }
        write(out, item);
    }
    if let (Style::Lines { indent, newline }, false) = (style, items.is_empty()) {
        out.push_str(newline);
        out.push_str(&indent.repeat(depth));
    }
    out.push_str(close);
}

/// A number as Python prints it after reading it: whole numbers as they are, floats through [`float_repr`].
fn number_repr(text: &str) -> String {
    if is_float_text(text) {
        text.parse().map_or_else(|_| text.to_owned(), float_repr)
    } else if text == "-0" {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

/// Python's `repr(float)`: the shortest digits that read back to the same double, with `.0` when whole, and with an
/// exponent of at least two digits below 1e-4 and from 1e16 on. `value` must be finite.
pub fn float_repr(value: f64) -> String {
    // Rust's `{:e}` gives the same shortest digits; only the layout differs.
    let scientific = format!("{value:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        if plain.contains('.') { plain } else { plain + ".0" }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{mantissa}e{sign}{:02}", exponent.abs())
    }
}

/// A text in double quotes with everything outside printable ASCII escaped as Python does: `\n`, `\u00e9`, and
/// surrogate pairs in lower-case hex beyond the basic plane.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
    out
}
