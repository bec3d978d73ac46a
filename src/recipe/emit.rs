//! Writing an executed recipe: the recipe as it stands with its `results` filled in.
//!
//! The new text is spliced into the old: keys, order, spacing, and the spelling of every number and text outside
//! `results` stay byte for byte, whoever wrote them and however they are laid out. The block itself is written as
//! Python's `json.dumps` would at that place, so a recipe in Python's form stays in it.

use serde_json::Value;

use super::json::{Kind, Node, Style, render_at};

const KEY: &str = "results";

/// `bytes` with the root key `results` replaced in place, or added as the last key. `tree` is the parse of `bytes`;
/// when it is no object, the bytes are returned as they are.
pub fn with_results(bytes: &[u8], tree: &Node, results: &Value) -> Vec<u8> {
    let Kind::Object(members) = &tree.kind else { return bytes.to_vec() };
    let layout = Layout::of(bytes, tree);
    let block = render_at(&Node::from_value(results), layout.style(), 1);
    let (at, text) = match (members.iter().find(|m| m.key == KEY), members.last()) {
        (Some(old), _) => (old.value.span.clone(), block),
        (None, Some(last)) => {
            (last.value.span.end..last.value.span.end, format!("{}\"{KEY}\": {block}", layout.between()))
        }
        (None, None) => {
            let inside = tree.span.start + 1..tree.span.end - 1;
            (inside, format!("{}\"{KEY}\": {block}{}", layout.open(), layout.close()))
        }
    };
    [&bytes[..at.start], text.as_bytes(), &bytes[at.end..]].concat()
}

/// How the root object is laid out: its indent when its keys stand on lines of their own.
struct Layout {
    indent: Option<String>,
    newline: &'static str,
}

impl Layout {
    fn of(bytes: &[u8], tree: &Node) -> Self {
        let first = tree.members().first().map_or(tree.span.end - 1, |m| m.key_span.start);
        // Only white space can stand between the brace and the first key.
        let gap = String::from_utf8_lossy(&bytes[tree.span.start + 1..first]).into_owned();
        let newline = if gap.contains("\r\n") { "\r\n" } else { "\n" };
        let indent = gap.rfind('\n').map(|at| gap[at + 1..].to_owned());
        Layout { indent, newline }
    }

    fn style(&self) -> Style<'_> {
        match &self.indent {
            Some(indent) => Style::Lines { indent, newline: self.newline },
            None => Style::OneLine,
        }
    }

    fn open(&self) -> String {
        self.indent.as_ref().map_or_else(String::new, |indent| format!("{}{indent}", self.newline))
    }

    fn between(&self) -> String {
        self.indent.as_ref().map_or_else(|| ", ".to_owned(), |indent| format!(",{}{indent}", self.newline))
    }

    fn close(&self) -> String {
        self.indent.as_ref().map_or_else(String::new, |_| self.newline.to_owned())
    }
}
