//! Recipes through the public door: published ones byte for byte, broken ones with their messages, the schema in step.

use std::path::{Path, PathBuf};

use factoryline::fault::Fault;
use factoryline::recipe::{RecipeFile, hashes};
use factoryline::units::Sha;
use serde_json::{Value, json};

fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn json_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(json_files(&path));
        } else if path.extension().is_some_and(|e| e == "json") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Published recipes, where the checkout has them beside it.
fn conformance() -> Vec<PathBuf> {
    let dir = repo("../shared/conformance/alloys");
    let files = json_files(&dir);
    if files.is_empty() {
        println!("skipped: no published recipes under {}", dir.display());
    }
    files
}

fn own_examples() -> Vec<PathBuf> {
    let mut files = json_files(&repo("recipes/examples"));
    files.extend(json_files(&repo("tests/fixtures/recipes/good")));
    assert!(files.len() >= 3, "the example recipes are missing");
    files
}

fn read(path: &Path) -> RecipeFile {
    RecipeFile::read(path).unwrap_or_else(|e| panic!("{}", Fault::from(e).one_line()))
}

#[test]
fn every_recipe_reads_and_comes_back_byte_for_byte() {
    for path in own_examples().into_iter().chain(conformance()) {
        let bytes = std::fs::read(&path).unwrap();
        let file = read(&path);
        assert_eq!(file.bytes(), bytes);
        assert_eq!(file.alloy_hash(), Sha::of(&bytes));
        // The typed view loses nothing either: null keys aside, it says what serde_json reads.
        let mut read_by_others: Value = serde_json::from_slice(&bytes).unwrap();
        drop_nulls(&mut read_by_others);
        let mut typed = serde_json::to_value(file.recipe()).unwrap();
        drop_nulls(&mut typed);
        assert_eq!(numbers_as_floats(typed), numbers_as_floats(read_by_others), "{}", path.display());
        assert!(file.recipe().stages.iter().all(|s| s.is_known()), "{}", path.display());
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn numbers_as_floats(value: Value) -> Value {
    match value {
        Value::Number(n) => json!(n.as_f64()),
        Value::Array(items) => items.into_iter().map(numbers_as_floats).collect(),
        Value::Object(map) => map.into_iter().map(|(k, v)| (k, numbers_as_floats(v))).collect(),
        other => other,
    }
}

#[test]
fn hashes_are_the_published_ones() {
    let one = |name: &str, sha: &str| hashes::compose_model_hash([(name, sha.parse().unwrap())]).unwrap().hex();
    assert_eq!(
        one("model.safetensors", "b0103eceb715ea1bd27bea2cafbd1b201f8a24b5c81d3228c9555220abd4d756"),
        "3f1fd0b9b5b70d7869fd9a48162641f7652c693cd01d5bc2b1781321e5786c64"
    );
    assert_eq!(
        one("olmoe-1b-7b-compacted-5b.Q5_K_M.gguf", "0cb7e0fff9997752bb7d150d549627f590ec06ff1adee5744fa6fa596a99bdc3"),
        "7f3b3c31279035cd5226f13cd602875baf8a1dd74b45345ee5ca2f5988169df5"
    );
}
