use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn cause(text: &str) -> String {
    let error = parse(text).unwrap_err();
    let at = Position::of(text.as_bytes(), error.offset);
    let hint = error.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{}:{} [{}] {}{hint}", at.line, at.column, error.key, error.cause)
}

#[test]
fn faults_say_where_and_what() {
    let cases = [
        "",
        "{\"a\": 1,}",
        "{\"a\": [1, 2 3]}",
        "{\"a\": {\"b\": tru}}",
        "{\"a\": NaN}",
        "{'a': 1}",
        "{\"a\": 1} x",
        "{\n  // remark\n}",
        "{\"é\": 01}",
        "{\"a\": \"x\ny\"}",
        "{\"a\": \"\\ud800\"}",
        "{\"a\": \"\\x\"}",
        "{\"a\": 1e999}",
        "{\"a\": [{\"b\": \"c",
        "{\"a\": 1, \"a\": 2}",
    ];
    let report: String = cases.iter().map(|text| cause(text) + "\n").collect();
    insta::assert_snapshot!(report, @r#"
    1:1 [] the file ends where a value should follow (the file is cut off: write it under a temporary name and rename it when it is complete)
    1:8 [] a comma before the closing `}` (remove the comma after the last item)
    1:13 [a] expected `,` or `]` (the next item or the end of the list), found `3`
    1:13 [a.b] expected a value, found `tru` (text stands in double quotes)
    1:7 [a] expected a value, found `NaN` (JSON writes a value that is not there as `null`)
    1:2 [] expected a key in double quotes, found `'` (JSON text stands in double quotes)
    1:10 [] `x` after the end of the document (a recipe file holds exactly one JSON object)
    2:3 [] expected a key in double quotes, found `/` (JSON has no comments: put remarks in a `notes` key)
    1:7 [é] a number must not start with 0
    1:7 [a] the text that starts here is not closed on its line (close the double quote; write a line break as \n)
    1:8 [a] \ud800 is half of a surrogate pair and stands alone (write both halves, or the character itself)
    1:8 [a] `\` followed by `x` is no escape of JSON (write a backslash as \\)
    1:7 [a] the number 1e999 is beyond what a double can hold
    1:16 [a[0].b] the file ends where the closing `"` of a text should follow (the file is cut off: write it under a temporary name and rename it when it is complete)
    1:10 [a] the key `a` stands twice in this object (keep one of the two: JSON readers disagree about which one counts)
    "#);
}

#[test]
fn deep_nesting_ends_in_an_error_and_not_in_a_crash() {
    assert!(parse(&("[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH))).is_ok());
    let error = parse(&"[".repeat(1_000_000)).unwrap_err();
    assert!(error.cause.contains("nested deeper than 128"), "{error}");
}

#[test]
fn large_and_long_things_are_quick_and_short() {
    let keys: Vec<String> = (0..200_000).map(|i| format!("\"k{i}\":0")).collect();
    assert!(parse(&format!("{{{}}}", keys.join(","))).is_ok());
    let twice = parse(&format!("{{{},\"k7\":1}}", keys.join(","))).unwrap_err();
    assert_eq!((twice.key.as_str(), twice.cause.as_str()), ("k7", "the key `k7` stands twice in this object"));
    for text in ["9".repeat(100_000), "x".repeat(100_000)] {
        assert!(parse(&text).unwrap_err().cause.len() < 200);
    }
}

#[test]
fn floats_read_as_python_prints_them() {
    // Left: the double; right: what CPython's repr gives for it.
    let cases = [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (12.0, "12.0"),
        (0.1, "0.1"),
        (1e-4, "0.0001"),
        (1e-5, "1e-05"),
        (1.5e-7, "1.5e-07"),
        (1e15, "1000000000000000.0"),
        (1e16, "1e+16"),
        (1.2345e22, "1.2345e+22"),
        (1e100, "1e+100"),
        (5e-324, "5e-324"),
        (f64::MAX, "1.7976931348623157e+308"),
        (2.0 / 3.0, "0.6666666666666666"),
    ];
    for (value, expected) in cases {
        assert_eq!(float_repr(value), expected);
    }
}

#[test]
fn text_outside_ascii_is_escaped_as_python_does() {
    assert_eq!(quote("a\"\\/\n\t\u{7f}é−😀"), r#""a\"\\/\n\t\u007f\u00e9\u2212\ud83d\ude00""#);
}

#[test]
fn key_paths_lead_to_their_nodes_and_back() {
    let text = r#"{"a": [1, {"b c": {"d": null}}], "a.b": 2}"#;
    let root = parse(text).unwrap();
    for path in ["", "a", "a[1]", "a[1][\"b c\"]", "a[1][\"b c\"].d", "[\"a.b\"]"] {
        let node = root.at(path).unwrap_or_else(|| panic!("no node at {path:?}"));
        assert_eq!(root.path_of(&node.span).as_deref(), Some(path));
    }
    assert_eq!(root.at("a[1][\"b c\"].d").map(|n| &text[n.span.clone()]), Some("null"));
    assert!(root.at("a[2]").is_none());
    assert!(root.at("ab").is_none());
}

#[test]
fn styles_match_json_dumps() {
    let node = parse(r#"{"e": [], "o": {}, "l": [1, 2.50, -0], "s": {"k": null}}"#).unwrap();
    assert_eq!(render(&node, Style::OneLine), r#"{"e": [], "o": {}, "l": [1, 2.5, 0], "s": {"k": null}}"#);
    assert_eq!(render(&node, Style::Compact), r#"{"e":[],"o":{},"l":[1,2.5,0],"s":{"k":null}}"#);
    let lines =
        "{\n  \"e\": [],\n  \"o\": {},\n  \"l\": [\n    1,\n    2.5,\n    0\n  ],\n  \"s\": {\n    \"k\": null\n  }\n}";
    assert_eq!(render(&node, Style::PYTHON), lines);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(any::<String>(), inner, 0..6).prop_map(|m| json!(m)),
        ]
    })
}

proptest! {
    /// Whatever serde_json writes we read as the same value, and what we write reads back as the same value.
    #[test]
    fn reads_and_writes_what_serde_json_does(value in any_json()) {
        let node = parse(&serde_json::to_string_pretty(&value).unwrap()).unwrap();
        prop_assert_eq!(node.to_value(), value.clone());
        for style in [Style::PYTHON, Style::OneLine, Style::Compact] {
            let text = render(&Node::from_value(&value), style);
            prop_assert_eq!(&serde_json::from_str::<Value>(&text).unwrap(), &value);
        }
    }

    /// No text makes the reader panic, and what it refuses serde_json does not read as an object without a reason.
    #[test]
    fn any_text_is_read_or_refused(text in "[\\[\\]{}\",:0-9a-z\\\\ .eE+-]{0,40}") {
        if let Ok(node) = parse(&text) {
            prop_assert!(serde_json::from_str::<Value>(&text).is_ok(), "we read {:?} as {:?}", text, node);
        }
    }

    #[test]
    fn float_text_reads_back_as_the_same_double(x in prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO) {
        prop_assert_eq!(float_repr(x).parse::<f64>().unwrap().to_bits(), x.to_bits());
    }
}
