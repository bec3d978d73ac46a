use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::recipe::RecipeFile;

/// A 30B mixture cut from 128 to 80 experts per layer: 19.66 billion parameters are left.
fn coder() -> Value {
    json!({
        "name": "coder-compacted-19b", "version": "1.0.0",
        "description": "80 of 128 experts per layer (128→80), 12 GB as Q4_K_M and Q8_0 (21 GB), on a 12 GB card",
        "source": {
            "baseModel": "m", "architecture": "a", "totalParamsB": 30.5, "activeParamsB": 3.3, "numLayers": 48,
            "numExpertsPerLayer": 128, "numActivatedExperts": 8, "hiddenSize": 2048, "moeIntermediateSize": 768,
        },
        "stages": [{
            "type": "expert-prune", "keepExpertsPerLayer": 80, "metric": "router_l2", "expertsDropped": 6912,
            "expertsRenamed": 3840, "routerSlicedLayers": 48,
        }],
    })
}

fn found(recipe: &Value) -> Vec<(String, String)> {
    let file = RecipeFile::parse(recipe.to_string(), Path::new("r.json")).unwrap();
    check(file.recipe()).into_iter().map(|finding| (finding.key, finding.message)).collect()
}

/// The one finding after one key has been changed.
fn changed(pointer: &str, value: Value) -> (String, String) {
    let mut recipe = coder();
    *recipe.pointer_mut(pointer).unwrap() = value;
    let findings = found(&recipe);
    assert_eq!(findings.len(), 1, "{findings:?}");
    findings.into_iter().next().unwrap()
}

#[test]
fn figures_that_follow_from_the_keys_pass() {
    assert_eq!(found(&coder()), []);
}

#[test]
fn a_description_of_another_cut_is_named() {
    let (key, message) = changed("/description", "cut 128→64".into());
    assert_eq!((key.as_str(), message.as_str()), ("description", "`128→64`, but 80 experts per layer are kept"));
    let (_, message) = changed("/description", "keeps 64 of 128 experts".into());
    assert_eq!(message, "`64 of 128 experts`, but 80 of 128 are kept");
    let removed = changed("/name", "x-compacted-24b".into());
    assert_eq!(removed.1, "`24b` in the name, but 19.6 billion parameters are left");
    let mut recipe = coder();
    recipe["description"] = "48 of 128 experts removed; 2024→2025 is a year".into();
    assert_eq!(found(&recipe), []);
}

#[test]
fn an_impossible_file_size_is_named() {
    let (key, message) = changed("/description", "only ~6 GB Q4_K_M!".into());
    assert_eq!(
        (key.as_str(), message.as_str()),
        ("description", "6 GB in Q4_K_M, but 19.6 billion weights take 11.9 GB")
    );
}

#[test]
fn parameters_that_do_not_follow_from_the_geometry_are_named() {
    // The guess about a 35B model that has 40 layers of 256 small experts.
    let mut recipe = coder();
    recipe["name"] = "guess".into();
    recipe["description"] = Value::Null;
    recipe["source"]["totalParamsB"] = 35.into();
    recipe["source"]["activeParamsB"] = 3.into();
    let findings = found(&recipe);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].1.contains("leave 32 idle") && findings[0].1.ends_with("leaves 27.2"), "{findings:?}");
    for (key, value) in [("numLayers", 40), ("numExpertsPerLayer", 256), ("moeIntermediateSize", 512)] {
        recipe["source"][key] = value.into();
    }
    recipe["stages"] = json!([{ "type": "expert-prune", "keepExpertsPerLayer": 160, "metric": "router_l2" }]);
    assert_eq!(found(&recipe), []);
}

#[test]
fn counts_of_a_prune_follow_from_layers_and_experts() {
    let (key, message) = changed("/stages/0/expertsDropped", 6911.into());
    assert_eq!(key, "stages[0].expertsDropped");
    assert_eq!(message, "6911, but 48 layers with 128 → 80 experts make 2304");
    assert_eq!(changed("/stages/0/routerSlicedLayers", 144.into()).0, "stages[0].routerSlicedLayers");
}

#[test]
fn padded_heads_free_no_memory() {
    // 33.5 billion weights in Q4_K_M take 20.3 GB whatever share of the heads is zero.
    let mut recipe = json!({
        "name": "x", "version": "1.0.0", "source": { "baseModel": "m", "architecture": "a", "totalParamsB": 33.5 },
        "stages": [
            { "type": "prune", "strategy": "entropy", "level": 0.2 },
            { "type": "quant", "format": "gguf", "quantTypes": ["Q4_K_M", "Q8_0"] },
        ],
        "acceptanceCriteria": { "hardware": { "maxVramGb": 20 } },
    });
    let (key, message) = found(&recipe).remove(0);
    assert_eq!(key, "stages[0].defragMode");
    assert!(message.ends_with("the smallest file takes 20.3 GB, maxVramGb is 20"), "{message}");
    recipe["stages"][0]["defragMode"] = "pad".into();
    assert_eq!(found(&recipe).len(), 1);
    recipe["stages"][0]["defragMode"] = "slice".into();
    assert_eq!(found(&recipe), []);
    recipe["stages"][0]["defragMode"] = "pad".into();
    recipe["acceptanceCriteria"]["hardware"]["maxVramGb"] = 24.into();
    assert_eq!(found(&recipe), [], "there is room without them");
}

#[test]
fn a_model_that_hears_is_not_judged_by_sight_alone() {
    let mut recipe = json!({
        "name": "x", "version": "1.0.0",
        "source": { "baseModel": "m", "architecture": "a", "modalities": ["text", "vision", "audio"] },
        "stages": [],
        "acceptanceCriteria": { "benchmarks": { "mmmu": { "min": 0.35 }, "ai2d": { "min": 0.5 } } },
    });
    assert_eq!(found(&recipe)[0].0, "acceptanceCriteria.benchmarks");
    recipe["source"] = json!({ "baseModel": "m", "architecture": "a", "numTalkerLayers": 24 });
    assert_eq!(found(&recipe).len(), 1);
    recipe["acceptanceCriteria"]["benchmarks"]["librispeech"] = json!({ "min": 0.5 });
    assert_eq!(found(&recipe), []);
}
