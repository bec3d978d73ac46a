//! Every value of a committed config or recipe in turn replaced by one that nobody expects there: what random damage
//! seldom reaches, because the file stays well formed.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use factoryline::family::spec_of;
use factoryline::line::Layout;
use factoryline::model::Config;
use factoryline::node::Node;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::hostile::drive;
use crate::worker::fixture;

fn values() -> [Value; 12] {
    [
        Value::Null,
        json!(0),
        json!(-1),
        json!(1),
        json!(3),
        json!(1u64 << 31),
        json!(u64::MAX),
        json!(1e308),
        json!(1e-320),
        json!("\u{0}../x"),
        json!([]),
        json!({}),
    ]
}

/// Pointers to every value below `value`, lists and objects included.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        // The items of a list are alike: two stand for all.
        Value::Array(items) => items.iter().take(2).enumerate().map(|(n, value)| (n.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (key, value) in below {
        let at = format!("{at}/{key}");
        found.push(at.clone());
        pointers(value, &at, found);
    }
}

/// Calls `see` with the file as it is and with each of its values replaced by each of [`values`]; returns how often.
/// Every value that stops the program is told, not the first only.
fn replaced(path: &Path, see: impl Fn(&Value)) -> usize {
    let whole: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut places = Vec::new();
    pointers(&whole, "", &mut places);
    see(&whole);
    let mut stopped = Vec::new();
    for place in &places {
        for value in values() {
            let mut changed = whole.clone();
            let told = format!("{place} = {value}");
            *changed.pointer_mut(place).unwrap() = value;
            if catch_unwind(AssertUnwindSafe(|| see(&changed))).is_err() {
                stopped.push(told);
            }
        }
    }
    assert!(stopped.is_empty(), "{}: the program is stopped by\n  {}", path.display(), stopped.join("\n  "));
    1 + places.len() * values().len()
}

#[test]
fn no_value_of_a_config_stops_the_program() {
    let mut seen = 0;
    for model in fs::read_dir(fixture("")).unwrap().flatten() {
        seen += replaced(&model.path().join("config.json"), |value| {
            let config = Config::from_value(Path::new("config.json"), value.clone()).unwrap();
            if let Ok(spec) = spec_of(&config) {
                assert!(spec.tensors().len() > 2);
            }
        });
    }
    assert!(seen > 5_000, "only {seen} configs");
}

#[test]
fn no_value_of_a_recipe_stops_the_program() {
    let root = TempDir::new().unwrap();
    Layout::init(root.path()).unwrap();
    let node = Node::load(root.path()).unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/examples");
    let mut seen = 0;
    for entry in fs::read_dir(examples).unwrap().flatten() {
        let path = entry.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".alloy.json")) else { continue };
        let model = fixture(if name.starts_with("moe") { "qwen3_moe-text" } else { "llama" });
        seen += replaced(&path, |value| {
            let bytes = value.to_string().into_bytes();
            drive::recipe(&bytes);
            drive::plan(&bytes, root.path(), &node, &model);
        });
    }
    assert!(seen > 2_000, "only {seen} recipes");
}
