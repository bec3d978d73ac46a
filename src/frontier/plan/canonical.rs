//! The form of a plan that is hashed: keys sorted by code point, no space, characters beyond ASCII as they are.

use crate::recipe::json::{Kind, Node, Style, render};

/// The canonical text.
pub(super) fn text(node: &Node) -> String {
    let mut out = String::new();
    write(node, &mut out);
    out
}

fn write(node: &Node, out: &mut String) {
    match &node.kind {
        Kind::Text(text) => quote(text, out),
        Kind::List(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                write(item, out);
            }
            out.push(']');
        }
        Kind::Object(members) => {
            // UTF-8 sorts as code points do.
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|a, b| a.key.cmp(&b.key));
            out.push('{');
            for (i, member) in members.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                quote(&member.key, out);
                out.push(':');
                write(&member.value, out);
            }
            out.push('}');
        }
        Kind::Null | Kind::Bool(_) | Kind::Number(_) => out.push_str(&render(node, Style::Compact)),
    }
}

fn quote(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::String(text.to_owned()).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::json::parse;

    #[test]
    fn keys_are_sorted_and_numbers_read_as_python_writes_them() {
        let written = "{\"b\": [1, 2.50, 1e-7, true, null], \"a\": {\"\u{e9}\": \"\u{1f600}\\n\", \"Z\": -0}}";
        let expected = "{\"a\":{\"Z\":0,\"\u{e9}\":\"\u{1f600}\\n\"},\"b\":[1,2.5,1e-07,true,null]}";
        assert_eq!(text(&parse(written).unwrap()), expected);
    }
}
