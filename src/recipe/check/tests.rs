use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::recipe::RecipeFile;

/// A 30B mixture of experts with published geometry, cut from 128 to 80 experts per layer.
fn coder() -> Value {
    json!({
        "name": "x", "version": "1.0.0",
        "source": {
            "baseModel": "m", "architecture": "qwen3_moe", "isMoE": true, "totalParamsB": 30.53, "activeParamsB": 3.35,
            "numLayers": 48, "numExpertsPerLayer": 128, "numActivatedExperts": 8, "hiddenSize": 2048,
            "moeIntermediateSize": 768,
        },
        "stages": [
            { "type": "expert-activation-profile", "calibrationCorpus": "c" },
            { "type": "expert-prune", "keepExpertsPerLayer": 80 },
            { "type": "quant", "format": "gguf", "quantTypes": ["Q8_0"] },
        ],
    })
}

fn read(recipe: &Value) -> Recipe {
    RecipeFile::parse(recipe.to_string(), Path::new("r.json")).unwrap().recipe().clone()
}

fn close(a: f64, b: f64, share: f64) -> bool {
    (a - b).abs() <= share * b.abs()
}

#[test]
fn pruned_parameters_follow_from_geometry_and_from_activity() {
    let mut recipe = coder();
    // 19.66 is what the published result of this very cut counts.
    let from_geometry = params_after(&read(&recipe), 2).unwrap();
    assert!(close(from_geometry, 19.66, 0.005), "{from_geometry}");
    recipe["source"]["moeIntermediateSize"] = Value::Null;
    let from_activity = params_after(&read(&recipe), 2).unwrap();
    assert!(close(from_activity, 19.66, 0.005), "{from_activity}");
    recipe["source"]["activeParamsB"] = Value::Null;
    assert_eq!(params_after(&read(&recipe), 2), None, "nothing tells the experts' share");
    assert_eq!(params_after(&read(&recipe), 1), Some(30.53), "before the prune nothing has gone");
}

#[test]
fn bits_per_weight_predict_published_files() {
    // Bytes of the published GGUF files of 19.66 billion weights.
    for (name, bytes) in [("Q4_K_M", 11_955_377_760.0), ("Q5_K_M", 13_991_810_656.0), ("Q8_0", 20_913_946_208.0)] {
        let predicted = 19.66e9 * bits_per_weight(name).unwrap() / 8.0;
        assert!(close(predicted, bytes, 0.01), "{name}: {predicted} for {bytes}");
    }
    assert_eq!(bits_per_weight("q8_0"), Some(8.5));
    assert_eq!(bits_per_weight("Q9_9"), None);
}

#[test]
fn a_type_outside_the_table_keeps_the_check_from_refusing() {
    let mut recipe = coder();
    recipe["acceptanceCriteria"] = json!({"hardware": {"maxVramGb": 8}});
    assert!(check(&read(&recipe)).iter().any(|f| f.is_error() && f.key == "stages[2].quantTypes"));
    recipe["stages"][2]["quantTypes"] = json!(["Q8_0", "TQ1_0"]);
    assert_eq!(check(&read(&recipe)), []);
}

#[test]
fn a_ranking_that_needs_no_counts_needs_no_profile() {
    let mut recipe = coder();
    recipe["stages"] = json!([{ "type": "expert-prune", "keepExpertsPerLayer": 80 }]);
    assert!(check(&read(&recipe)).iter().any(|f| f.is_error()));
    for (key, value) in [
        ("metric", "router_l2"),
        ("importanceJson", "counts.json"),
        ("strategy", "per-layer-normalized-router-importance"),
    ] {
        recipe["stages"] = json!([{ "type": "expert-prune", "keepExpertsPerLayer": 80, key: value }]);
        assert_eq!(check(&read(&recipe)), [], "{key}");
    }
}

#[test]
fn counts_are_stale_after_a_prune() {
    let mut recipe = coder();
    let profile = recipe["stages"][0].clone();
    let again = json!({ "type": "expert-prune", "keepExpertsPerLayer": 64 });
    recipe["stages"] = json!([profile, recipe["stages"][1], again]);
    let findings = check(&read(&recipe));
    assert!(findings.iter().any(|f| f.key == "stages[2]" && f.message.contains("stages[0]")), "{findings:?}");
    recipe["stages"] = json!([profile, recipe["stages"][1], profile, again]);
    assert_eq!(check(&read(&recipe)), []);
}

#[test]
fn refusal_gathers_the_errors_and_leaves_the_rest() {
    assert!(Finding::refusal(&[Finding::warning("a", "odd"), Finding::note("b", "so")]).is_none());
    let fault = Finding::refusal(&[
        Finding::warning("a", "odd"),
        Finding::error("b", "wrong").hint("mend b"),
        Finding::error("", "also wrong"),
    ])
    .unwrap();
    assert_eq!(fault.one_line(), "2 errors: b: wrong; also wrong");
    assert_eq!(fault.hint.as_deref(), Some("mend b"));
}

#[test]
fn gguf_is_refused_where_this_build_writes_none_of_the_architecture() {
    let can = |gguf: &[&str]| Capabilities {
        architectures: vec!["qwen3_moe".into(), "other".into()],
        quant: vec![QuantCapability {
            format: "gguf".into(),
            architectures: gguf.iter().map(|&name| name.to_owned()).collect(),
            ..QuantCapability::default()
        }],
        ..Capabilities::default()
    };
    let file = read(&coder());
    assert_eq!(check_executable(&file, &can(&["qwen3_moe"])), []);
    let findings = check_executable(&file, &can(&["other"]));
    assert_eq!(findings.len(), 1);
    assert_eq!(
        findings[0].to_string(),
        "error stages[2].format: this build has no gguf writer for architecture `qwen3_moe` (known: other)"
    );
}

#[test]
fn sixteen_bits_count_where_nothing_is_quantized() {
    let mut recipe = coder();
    recipe["stages"].as_array_mut().unwrap().pop();
    let with_limit = |gb: u32| {
        let mut recipe = recipe.clone();
        recipe["acceptanceCriteria"] = json!({ "hardware": { "maxVramGb": gb } });
        check(&read(&recipe))
    };
    assert_eq!(with_limit(48), []);
    let tight = with_limit(40);
    assert!(tight.len() == 1 && !tight[0].is_error(), "{tight:?}");
    let small = with_limit(24);
    assert_eq!(small.len(), 1);
    assert_eq!(
        (small[0].is_error(), small[0].message.as_str()),
        (true, "19.7 billion weights in 16 bits take 39.3 GB, maxVramGb is 24")
    );
}
