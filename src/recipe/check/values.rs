//! Whether each value is one its key can have: closed lists, ranges, empty lists, keys that are nearly known.
//! The rules come from the schema, so that the file an editor validates against and this check cannot disagree.

use serde_json::{Map, Value};

use crate::recipe::finding::{Finding, nearest, suggest};
use crate::recipe::json::{excerpt, float_repr, join, key_step};
use crate::recipe::root::Recipe;
use crate::recipe::schema::{properties, recipe_schema, resolve, stage_schema};

/// Blocks that tell what was, not what shall be: nothing there keeps a recipe from being built.
const HISTORY: [&str; 3] = ["results", "receipt", "priorMetricBaselines"];

pub(super) fn check(recipe: &Recipe) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Ok(Value::Object(mut root)) = serde_json::to_value(recipe) {
        root.retain(|key, _| !HISTORY.contains(&key.as_str()));
        walk(&Value::Object(root), recipe_schema(), "", &mut findings);
    }
    findings
}

fn walk(value: &Value, schema: &Value, key: &str, findings: &mut Vec<Finding>) {
    let schema = branch(schema);
    match value {
        Value::Object(map) => object(map, schema, key, findings),
        Value::Array(items) => list(items, schema, key, findings),
        Value::String(text) => word(text, schema, key, findings),
        Value::Number(n) => number(n.as_f64().unwrap_or(0.0), schema, key, findings),
        Value::Null | Value::Bool(_) => {}
    }
}

/// The schema behind references and behind "or null".
fn branch(schema: &Value) -> &Value {
    let schema = resolve(schema);
    match schema.get("anyOf").and_then(Value::as_array) {
        Some(either) => either.iter().find(|s| s.get("type") != Some(&"null".into())).map_or(schema, resolve),
        None => schema,
    }
}

fn object(map: &Map<String, Value>, schema: &Value, key: &str, findings: &mut Vec<Finding>) {
    let stage = map.get("type").and_then(Value::as_str).filter(|_| schema.get("allOf").is_some());
    let schema = match stage {
        Some(type_name) => match stage_schema(type_name) {
            Some(schema) => schema,
            None => return,
        },
        None => schema,
    };
    let known = properties(schema);
    let every_key = schema.get("additionalProperties").filter(|s| s.is_object());
    for (name, value) in map {
        let at = join(key, &key_step(name));
        match known.and_then(|k| k.get(name)).or(every_key) {
            Some(schema) => walk(value, schema, &at, findings),
            None if stage.is_some() && name == "type" => {}
            None => findings.extend(nearly_known(name, map, known, at)),
        }
    }
}

/// An unknown key is kept and ignored, which is a trap when it is a slip of the pen.
fn nearly_known(
    name: &str,
    map: &Map<String, Value>,
    known: Option<&Map<String, Value>>,
    at: String,
) -> Option<Finding> {
    let absent = known?.keys().map(String::as_str).filter(|k| !map.contains_key(*k));
    let meant = nearest(name, absent)?;
    let fold = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    (strsim::normalized_damerau_levenshtein(&fold(name), &fold(meant)) >= 0.8).then(|| {
        Finding::warning(at, format!("the key `{}` is unknown here and has no effect", excerpt(name)))
            .hint(format!("did you mean `{meant}`?"))
    })
}

fn list(items: &[Value], schema: &Value, key: &str, findings: &mut Vec<Finding>) {
    if (items.len() as u64) < schema.get("minItems").and_then(Value::as_u64).unwrap_or(0) {
        findings.push(Finding::error(key, "the list is empty").hint("it needs at least one entry"));
    }
    let Some(schema) = schema.get("items") else { return };
    for (i, item) in items.iter().enumerate() {
        walk(item, schema, &format!("{key}[{i}]"), findings);
    }
}

fn word(text: &str, schema: &Value, key: &str, findings: &mut Vec<Finding>) {
    let known: Vec<&str> =
        schema.get("enum").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    if !known.is_empty() && !known.contains(&text) {
        findings
            .push(Finding::error(key, format!("`{}` is not in the list", excerpt(text))).hint(suggest(text, known)));
    }
    if text.trim().is_empty() && schema.get("minLength").is_some() {
        findings.push(Finding::error(key, "the text is empty"));
    }
}

fn number(x: f64, schema: &Value, key: &str, findings: &mut Vec<Finding>) {
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    let (low, high) = (bound("minimum"), bound("maximum"));
    if low.is_none_or(|low| x >= low) && high.is_none_or(|high| x <= high) {
        return;
    }
    let range = match (low, high) {
        (Some(low), Some(high)) => format!("between {} and {}", plain(low), plain(high)),
        (Some(low), None) => format!("at least {}", plain(low)),
        (None, Some(high)) => format!("at most {}", plain(high)),
        (None, None) => return,
    };
    let finding = Finding::error(key, format!("{} is out of range: it must be {range}", plain(x)));
    let looks_like_percent = high.is_some_and(|high| high <= 1.0 && x > 1.0 && x / 100.0 <= high);
    findings.push(match looks_like_percent {
        true => finding.hint(format!("this is a share from 0 to 1: write {} for {} %", plain(x / 100.0), plain(x))),
        false => finding,
    });
}

/// `80` for 80.0, `0.3` for 0.3.
pub(super) fn plain(x: f64) -> String {
    let text = float_repr((x * 1e9).round() / 1e9);
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}
