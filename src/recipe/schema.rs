//! The JSON Schema of recipes, made from the types. `docs/schema/recipe.schema.json` is this, written out.

use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::root::Recipe;
use super::stages::{BenchmarkDef, StageFields, StageSpec};

/// The schema (draft 2020-12) of a recipe file.
pub fn recipe_schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let mut schema = schemars::schema_for!(Recipe);
        schema.insert("title".into(), "factoryline recipe".into());
        let mut schema = schema.to_value();
        need_stages(&mut schema);
        for type_name in StageSpec::TYPES {
            let definition = definition_name(&schema, type_name);
            write_defaults(&mut schema, definition, StageSpec::defaults_of(type_name));
        }
        write_defaults(&mut schema, Some("BenchmarkDef".into()), BenchmarkDef::defaults());
        schema
    })
}

/// A recipe without stages reads (and is then refused by name), but it is no valid recipe.
fn need_stages(schema: &mut Value) {
    if let Some(Value::Object(stages)) = schema.pointer_mut("/properties/stages") {
        stages.remove("default");
    }
    if let Some(Value::Array(required)) = schema.pointer_mut("/required") {
        required.push("stages".into());
    }
}

/// The name under `$defs` of a stage type's keys.
fn definition_name(schema: &Value, type_name: &str) -> Option<String> {
    let target = stage_branch(schema, type_name)?.pointer("/then/$ref")?.as_str()?;
    target.rsplit('/').next().map(str::to_owned)
}

/// Writes what is meant when a key is absent beside what the key is.
fn write_defaults(schema: &mut Value, definition: Option<String>, defaults: Map<String, Value>) {
    let Some(name) = definition else { return };
    for (key, default) in defaults {
        if let Some(Value::Object(property)) = schema.pointer_mut(&format!("/$defs/{name}/properties/{key}")) {
            property.insert("default".into(), default);
        }
    }
}

fn stage_branch<'a>(schema: &'a Value, type_name: &str) -> Option<&'a Value> {
    let branches = schema.get("$defs")?.get("Stage")?.get("allOf")?.as_array()?;
    branches.iter().find(|b| b.pointer("/if/properties/type/const").and_then(Value::as_str) == Some(type_name))
}

/// The schema as the file holds it.
pub fn recipe_schema_text() -> String {
    format!("{:#}\n", recipe_schema())
}

/// The object a `{"$ref": "#/$defs/X"}` points at; any other schema is itself.
pub(super) fn resolve(schema: &Value) -> &Value {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(target) => {
            let name = target.rsplit('/').next().unwrap_or_default();
            recipe_schema().get("$defs").and_then(|defs| defs.get(name)).unwrap_or(schema)
        }
        None => schema,
    }
}

/// The schema of a stage type's keys; `None` for a type nobody knows.
pub(super) fn stage_schema(type_name: &str) -> Option<&'static Value> {
    stage_branch(recipe_schema(), type_name)?.get("then").map(resolve)
}

/// The keys of a stage type, in the order of the specification; empty for a type nobody knows.
pub fn stage_keys(type_name: &str) -> Vec<&'static str> {
    stage_schema(type_name).and_then(properties).map(|map| map.keys().map(String::as_str).collect()).unwrap_or_default()
}

pub(super) fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties").and_then(Value::as_object)
}
