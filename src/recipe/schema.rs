//! The JSON Schema of recipes, made from the types. `docs/schema/recipe.schema.json` is this, written out.

use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::root::Recipe;

/// The schema (draft 2020-12) of a recipe file.
pub fn recipe_schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let mut schema = schemars::schema_for!(Recipe);
        schema.insert("$id".into(), "https://factoryline.dev/schema/recipe.schema.json".into());
        schema.insert("title".into(), "factoryline recipe".into());
        schema.to_value()
    })
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
    let stage = recipe_schema().get("$defs")?.get("Stage")?;
    let branch = stage
        .get("allOf")?
        .as_array()?
        .iter()
        .find(|branch| branch.pointer("/if/properties/type/const").and_then(Value::as_str) == Some(type_name))?;
    branch.get("then").map(resolve)
}

/// The keys of a stage type, in the order of the specification; empty for a type nobody knows.
pub fn stage_keys(type_name: &str) -> Vec<&'static str> {
    stage_schema(type_name).and_then(properties).map(|map| map.keys().map(String::as_str).collect()).unwrap_or_default()
}

pub(super) fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties").and_then(Value::as_object)
}
