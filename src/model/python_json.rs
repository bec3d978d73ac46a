//! JSON as Python's `json.dumps(value, indent=2)` writes it: the form the tools around models produce and hash.

use serde_json::Value;

/// Two spaces of indent, `": "`, one item per line, `[]` and `{}` for empty, ASCII with `\uXXXX`, floats in Python's
/// shortest form (`1e-06`, `12.0`). Key order is kept. No newline at the end.
pub fn to_python_json(value: &Value) -> String {
    let mut out = String::new();
    write_value(value, 0, &mut out);
    out
}

fn write_value(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                next_line(i, depth + 1, out);
                write_value(item, depth + 1, out);
            }
            close(']', depth, out);
        }
        Value::Object(members) if !members.is_empty() => {
            out.push('{');
            for (i, (key, member)) in members.iter().enumerate() {
                next_line(i, depth + 1, out);
                write_text(key, out);
                out.push_str(": ");
                write_value(member, depth + 1, out);
            }
            close('}', depth, out);
        }
        Value::String(text) => write_text(text, out),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => out.push_str(&python_float(float)),
            _ => out.push_str(&number.to_string()),
        },
        other => out.push_str(&other.to_string()),
    }
}

fn next_line(i: usize, depth: usize, out: &mut String) {
    out.push_str(if i == 0 { "\n" } else { ",\n" });
    out.extend(std::iter::repeat_n("  ", depth));
}

fn close(bracket: char, depth: usize, out: &mut String) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
    out.push(bracket);
}

fn write_text(text: &str, out: &mut String) {
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
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push('"');
}

/// Python's `repr(float)`: shortest digits that read back the same; exponent form below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value == 0.0 || (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        if plain.contains('.') { plain } else { plain + ".0" }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_read_as_in_python() {
        for (value, text) in [
            (1e-6, "1e-06"),
            (0.0001, "0.0001"),
            (12.0, "12.0"),
            (1e16, "1e+16"),
            (-2.5, "-2.5"),
            (0.0, "0.0"),
            (1.5e-7, "1.5e-07"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1e15, "1000000000000000.0"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn a_document_reads_as_in_python() {
        let value = serde_json::json!({"b": [1, 2.0], "a": {}, "e": [], "t": "é\u{1f600}\n", "n": null});
        assert_eq!(
            to_python_json(&value),
            "{\n  \"b\": [\n    1,\n    2.0\n  ],\n  \"a\": {},\n  \"e\": [],\n  \"t\": \"\\u00e9\\ud83d\\ude00\\n\",\n  \"n\": null\n}"
        );
    }
}
