//! Calibrated quantization through the stage: every matrix solved on what its layer is given, block by block.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use factoryline::assay::diverge;
use factoryline::engine::{PassOptions, Scoring, Subject, run_pass};
use factoryline::family::open;
use serde_json::{Value, json};

use crate::worker::Bench;

fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/demo/model")
}

fn quant(keys: Value) -> Value {
    let mut stage = json!({ "type": "quant", "format": "gguf", "quantTypes": ["Q4_0"] });
    stage.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    stage
}

fn built(keys: Value) -> Bench {
    let bench = Bench::new(&demo_model(), "qwen3_moe", json!([quant(keys)]));
    bench.run();
    bench
}

fn artifact(bench: &Bench) -> PathBuf {
    bench.args.work.join("artifact").join(bench.json("result.json")["artifacts"][0]["path"].as_str().unwrap())
}

/// Text that nobody has calibrated on.
fn windows() -> Vec<Vec<u32>> {
    let text = std::fs::read_to_string(demo_model().parent().unwrap().join("heldout.txt")).unwrap();
    let ids = open(&demo_model()).unwrap().open_tokenizer().unwrap().unwrap().encode(&text).unwrap();
    ids.chunks_exact(128).take(24).map(<[u32]>::to_vec).collect()
}

/// Mean negative log-likelihood on it, in nats.
fn nll(path: &Path) -> f64 {
    let model = open(path).unwrap();
    run_pass(&model, &windows(), Scoring::All, &PassOptions::default(), &mut [], &|_| ()).unwrap().mean_nll()
}

/// Mean divergence from the source on it, in nats: far steadier than the difference of two likelihoods.
fn kld(path: &Path) -> f64 {
    let (source, model) = (open(&demo_model()).unwrap(), open(path).unwrap());
    let others = [Subject::of(&model)];
    let found = diverge(&Subject::of(&source), &others, &windows(), &PassOptions::default(), &|_| ()).unwrap();
    found[0].kld
}

const CORPUS: &str = "calibration.jsonl";

fn on_demo_text(algorithm: &str) -> Value {
    let corpus = demo_model().parent().unwrap().join(CORPUS);
    json!({ "algorithm": algorithm, "calibrationCorpus": corpus, "calibrationTokens": 6000, "calibrationLength": 128 })
}

#[test]
fn error_feedback_loses_less_than_rounding_at_the_same_size() {
    let source = nll(&demo_model());
    let formats = [json!({}), json!({ "format": "safetensors", "quantTypes": ["W3A16"], "groupSize": 32 })];
    for format in formats {
        let with = |more: Value| {
            let mut keys = format.clone();
            keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            built(keys)
        };
        let (plain, solved) = (with(json!({})), with(on_demo_text("gptq")));
        let bits = |bench: &Bench| bench.json("result.json")["artifacts"][0]["bits_per_weight"].as_f64().unwrap();
        assert!((bits(&plain) - bits(&solved)).abs() < 0.02, "{format}");
        let (plain, solved) = (nll(&artifact(&plain)), nll(&artifact(&solved)));
        assert!(
            solved - source < 0.8 * (plain - source),
            "{format}: source {source}, rounded {plain}, solved {solved}"
        );
    }
}

#[test]
fn the_result_tells_the_text_and_the_error_of_every_layer() {
    let bench = built(json!({ "algorithm": "gptq", "calibrationTokens": 2048, "calibrationLength": 128 }));
    let result = bench.json("result.json");
    let details = &result["stages"][0]["details"];
    assert_eq!(details["algorithm"], "gptq");
    assert_eq!(details["calibration"]["corpus"], "factoryline-mix-1");
    assert_eq!(details["calibration"]["tokens"], 2048);
    let layers = details["layers"]["Q4_0"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    for layer in layers {
        let (mean, worst) = (layer["meanError"].as_f64().unwrap(), layer["worst"]["error"].as_f64().unwrap());
        assert!(mean > 0.0 && mean <= worst && worst < 0.2, "{layer}");
    }
}

#[test]
fn the_same_recipe_gives_the_same_bytes_with_any_number_of_threads() {
    let with_threads = |algorithm: &str, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut keys = on_demo_text(algorithm);
            keys["tuneSteps"] = json!(4);
            let bench = built(keys);
            std::fs::read(artifact(&bench)).unwrap()
        })
    };
    for algorithm in ["gptq", "block-tune"] {
        let one = with_threads(algorithm, 1);
        assert!(one == with_threads(algorithm, 1), "{algorithm}: twice the same");
        assert!(one == with_threads(algorithm, 2), "{algorithm}: one thread and two");
    }
}

#[test]
fn tuning_lowers_the_error_it_is_judged_by_and_does_no_damage_elsewhere() {
    let with = |algorithm: &str| {
        let mut keys = on_demo_text(algorithm);
        keys["quantTypes"] = json!(["Q2_0"]);
        keys["tuneSteps"] = json!(24);
        built(keys)
    };
    let (solved, tuned) = (with("gptq"), with("block-tune"));
    let result = tuned.json("result.json");
    let layers = result["stages"][0]["details"]["layers"]["Q2_0"].as_array().unwrap();
    let mut lowered = 0;
    for layer in layers {
        let said = layer["worst"]["method"].as_str().unwrap();
        let (_, figures) = said.split_once("; block error ").unwrap_or_else(|| panic!("{said}"));
        match figures.split_once(" tuned to ") {
            Some((before, after)) => {
                assert!(after.parse::<f64>().unwrap() < before.parse().unwrap(), "{said}");
                lowered += 1;
            }
            None => assert!(figures.ends_with(" and was left"), "{said}"),
        }
    }
    assert!(lowered >= 1, "{layers:#?}");
    let (solved, tuned) = (kld(&artifact(&solved)), kld(&artifact(&tuned)));
    // Of a model this small the tuned blocks together gain a little or lose a little, by the processor's arithmetic.
    assert!(tuned < 1.05 * solved, "divergence from the source: solved {solved}, tuned {tuned}");
}

#[test]
fn what_a_calibrated_stage_cannot_have_is_refused_by_name() {
    let refused = |keys: Value| {
        let bench = Bench::new(&demo_model(), "qwen3_moe", json!([quant(keys)]));
        bench.run();
        bench.fault()
    };
    let cases = BTreeMap::from([
        ("1 unknown algorithm", json!({ "algorithm": "gtpq" })),
        ("3 tuned by depth", json!({ "algorithm": "block-tune", "trueSequential": true })),
        ("2 missing text", json!({ "algorithm": "gptq", "calibrationCorpus": "nowhere.txt" })),
    ]);
    let report: String = cases.into_iter().map(|(case, keys)| format!("{case}: {}\n", refused(keys))).collect();
    insta::assert_snapshot!(report, @r#"
    1 unknown algorithm: recipe: stages[0].algorithm: this build has no quantization algorithm `gtpq`
    2 missing text: source: stages[0].calibrationCorpus: text "nowhere.txt" is not here; looked at: ROOT/line/assembly/nowhere.txt, ROOT/nowhere.txt, ROOT/calibration/nowhere.txt
    3 tuned by depth: recipe: stages[0].trueSequential: a block is tuned to what the model as it was makes
    "#);
}
