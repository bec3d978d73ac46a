//! The tables of `docs/RECIPES.md`: every stage type and object with its keys, types, defaults and ranges, written
//! from the schema so that the page cannot fall behind the types.

use std::fmt::Write as _;

use serde_json::Value;

use super::json::{Node, Style, render};
use super::schema::{properties, recipe_schema, resolve, stage_schema};
use super::stages::StageSpec;

/// Markdown: one section per stage type, in the order of the specification.
pub fn stage_reference() -> String {
    let mut page = String::new();
    for type_name in StageSpec::TYPES {
        let Some(schema) = stage_schema(type_name) else { continue };
        // Writing to a String cannot fail.
        let _ = writeln!(page, "### `{type_name}`\n\n{}\n", describe(schema));
        page += &key_table(schema);
    }
    page
}

/// Markdown: the root and every object that is no stage, in the order of the schema.
pub fn object_reference() -> String {
    let mut page = format!("### The root\n\n{}", key_table(recipe_schema()));
    let definitions = recipe_schema().get("$defs").and_then(Value::as_object);
    let stages: Vec<&Value> = StageSpec::TYPES.iter().filter_map(|t| stage_schema(t)).collect();
    for (name, schema) in definitions.into_iter().flatten() {
        let is_stage = stages.iter().any(|stage| std::ptr::eq(*stage, schema));
        if properties(schema).is_some() && !is_stage && name != "Stage" {
            let _ = writeln!(page, "### {name}\n\n{}\n", describe(schema));
            page += &key_table(schema);
        }
    }
    page
}

fn key_table(schema: &Value) -> String {
    let mut table = "| key | value | default | meaning |\n|---|---|---|---|\n".to_owned();
    let required: Vec<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    for (key, property) in properties(schema).into_iter().flatten() {
        let default = match property.get("default") {
            Some(value) => format!("`{}`", render(&Node::from_value(value), Style::OneLine)),
            None if required.contains(&key.as_str()) => "**needed**".to_owned(),
            None => String::new(),
        };
        let _ = writeln!(table, "| `{key}` | {} | {default} | {} |", kind(property), describe(property));
    }
    table + "\n"
}

fn describe(schema: &Value) -> String {
    let own = schema.get("description").and_then(Value::as_str);
    own.unwrap_or_default().replace('\n', " ").replace('|', "\\|")
}

/// What a key holds, in a few words.
fn kind(schema: &Value) -> String {
    if let Some(either) = schema.get("anyOf").and_then(Value::as_array) {
        let kinds: Vec<String> = either.iter().map(kind).filter(|k| k != "null").collect();
        return kinds.join(" or ");
    }
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        let name = target.rsplit('/').next().unwrap_or_default();
        let target = resolve(schema);
        return match properties(target) {
            Some(_) if name == "Stage" => "[stage](#reference-stage-types)".to_owned(),
            Some(_) => format!("[{name}](#{})", name.to_lowercase()),
            None => kind(target),
        };
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        let words: Vec<String> = words.iter().filter_map(Value::as_str).map(|w| format!("`{w}`")).collect();
        return words.join(" ");
    }
    let base = match schema.get("type") {
        Some(Value::String(name)) => name.as_str(),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).find(|n| *n != "null").unwrap_or("null"),
        _ => "any value",
    };
    match base {
        "array" => format!("list of {}", schema.get("items").map_or("any value".into(), kind)),
        "object" => schema
            .get("additionalProperties")
            .filter(|s| s.is_object())
            .map_or("object".into(), |s| format!("object of {}", kind(s))),
        "integer" => format!("whole number{}", range(schema)),
        "number" => format!("number{}", range(schema)),
        "string" => "text".to_owned(),
        "boolean" => "true or false".to_owned(),
        other => other.to_owned(),
    }
}

fn range(schema: &Value) -> String {
    let bound = |name: &str| schema.get(name).filter(|v| v.as_f64() != Some(0.0) || schema.get("maximum").is_some());
    let show = |v: &Value| render(&Node::from_value(v), Style::OneLine).trim_end_matches(".0").to_owned();
    match (bound("minimum"), bound("maximum")) {
        (Some(low), Some(high)) => format!(", {} to {}", show(low), show(high)),
        (Some(low), None) => format!(", at least {}", show(low)),
        (None, Some(high)) => format!(", at most {}", show(high)),
        (None, None) => String::new(),
    }
}
