//! Quantization to a target: one file in mixed precision that keeps a size, or a divergence.

use std::path::{Path, PathBuf};

use factoryline::assay::diverge;
use factoryline::engine::{PassOptions, Subject};
use factoryline::family::open;
use serde_json::{Value, json};

use crate::worker::Bench;

const TYPES: [&str; 6] = ["Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"];

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/demo")
}

fn quant(keys: Value) -> Value {
    let mut stage = json!({
        "type": "quant", "format": "gguf", "quantTypes": TYPES,
        "calibrationCorpus": demo().join("calibration.jsonl"), "calibrationTokens": 6000, "calibrationLength": 128,
    });
    stage.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    stage
}

fn built(keys: Value) -> Bench {
    let bench = Bench::new(&demo().join("model"), "qwen3_moe", json!([quant(keys)]));
    bench.run();
    bench
}

fn file(bench: &Bench) -> PathBuf {
    bench.args.work.join("artifact").join(bench.json("result.json")["artifacts"][0]["path"].as_str().unwrap())
}

fn details(bench: &Bench) -> Value {
    bench.json("result.json")["stages"][0]["details"]["target"].clone()
}

/// Mean divergence of a file from the demo's model on text that no build has seen, nats per token.
fn kld(path: &Path) -> f64 {
    let (base, file) = (open(&demo().join("model")).unwrap(), open(path).unwrap());
    let text = std::fs::read_to_string(demo().join("heldout.txt")).unwrap();
    let ids = base.open_tokenizer().unwrap().unwrap().encode(&text).unwrap();
    let windows: Vec<Vec<u32>> = ids.chunks_exact(128).take(32).map(<[u32]>::to_vec).collect();
    let (base, file) = (Subject::of(&base), Subject::of(&file));
    diverge(&base, &[file], &windows, &PassOptions::default(), &|_| ()).unwrap()[0].kld
}

#[test]
fn bits_per_weight_are_kept_and_nearly_used() {
    for bits in [3.5, 5.0] {
        let bench = built(json!({ "target": { "bitsPerWeight": bits } }));
        let (result, details) = (bench.json("result.json"), details(&bench));
        let artifact = &result["artifacts"][0];
        let (name, path) = (format!("{bits:.2}bpw"), artifact["path"].as_str().unwrap());
        assert_eq!((artifact["type"].as_str().unwrap(), path), (name.as_str(), format!("tiny-{name}.gguf").as_str()));
        let on_disk = std::fs::metadata(file(&bench)).unwrap().len();
        let parameters = open(&demo().join("model")).unwrap().spec.parameters();
        let found = 8.0 * on_disk as f64 / parameters as f64;
        assert!(found <= bits && found > 0.995 * bits, "{found} for {bits}");
        assert_eq!(artifact["bytes"], on_disk);
        assert_eq!(details["bytes"], on_disk);
        // Every matrix has a type, stacks of experts one each; what was found is what another text says, about.
        let choice = details["choice"].as_array().unwrap();
        let count = |role: &str| -> u64 {
            let of_role = choice.iter().find(|entry| entry["role"] == role).unwrap();
            of_role["types"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
        };
        assert_eq!((count("embedding"), count("expert down"), count("key")), (1, 4, 4));
        let (measured, elsewhere) = (details["kld"].as_f64().unwrap(), kld(&file(&bench)));
        assert!(measured < 2.0 * elsewhere && elsewhere < 2.0 * measured, "{measured} and {elsewhere}");
        let expected = details["expectedKld"].as_f64().unwrap();
        assert!(expected < 3.0 * measured && measured < 3.0 * expected, "{expected} expected, {measured} found");
    }
}

#[test]
fn a_mixed_file_loses_less_than_one_type_of_the_same_size() {
    for algorithm in ["rtn", "gptq"] {
        let plain = built(json!({ "quantTypes": ["Q4_1"], "algorithm": algorithm }));
        let bytes = plain.json("result.json")["artifacts"][0]["bytes"].as_u64().unwrap();
        let mixed = built(json!({ "target": { "bytes": bytes }, "algorithm": algorithm }));
        assert!(mixed.json("result.json")["artifacts"][0]["bytes"].as_u64().unwrap() <= bytes);
        let (plain, mixed) = (kld(&file(&plain)), kld(&file(&mixed)));
        assert!(mixed < 0.95 * plain, "{algorithm}: mixed {mixed}, plain {plain}");
    }
}

#[test]
fn a_divergence_is_kept_by_the_smallest_file() {
    let with = |most: f64| {
        let bench = built(json!({ "target": { "maxKld": most } }));
        let details = details(&bench);
        let (found, bytes) = (details["kld"].as_f64().unwrap(), details["bytes"].as_u64().unwrap());
        assert!(found <= most, "{found} for {most}: {}", details["rounds"]);
        assert!(found > 0.75 * most, "{found} for {most}: {}", details["rounds"]);
        assert_eq!(std::fs::metadata(file(&bench)).unwrap().len(), bytes);
        let kept: Vec<&Value> = details["rounds"].as_array().unwrap().iter().collect();
        assert!(
            kept.iter().all(|round| round["kld"].as_f64().unwrap() > most || round["bytes"].as_u64().unwrap() >= bytes)
        );
        bytes
    };
    assert!(with(0.03) > with(0.1));
}

#[test]
fn a_divergence_out_of_reach_is_a_fault_that_tells_the_best() {
    let bench = built(json!({ "target": { "maxKld": 0.0001 }, "quantTypes": ["Q4_0", "Q4_1"] }));
    let fault = bench.fault();
    assert!(
        fault.starts_with("quality: no file of these types keeps within 0.0001 nats per token: the best loses 0."),
        "{fault}"
    );
}

#[test]
fn the_same_target_gives_the_same_bytes_with_any_number_of_threads() {
    let with_threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let bench = built(json!({ "target": { "bitsPerWeight": 4.2 }, "calibrationTokens": 2000 }));
            (details(&bench), std::fs::read(file(&bench)).unwrap())
        })
    };
    let one = with_threads(1);
    let (again, two) = (with_threads(1), with_threads(2));
    assert_eq!((&one.0, &one.0), (&again.0, &two.0));
    assert!(one.1 == again.1 && one.1 == two.1);
}

#[test]
fn what_no_target_can_be_is_refused_before_anything_runs() {
    let refused = |keys: Value| {
        let bench = Bench::new(&demo().join("model"), "qwen3_moe", json!([quant(keys)]));
        bench.run();
        assert!(!bench.args.work.join("plan.json").exists());
        bench.fault()
    };
    let cases = [
        json!({ "target": { "bitsPerWeight": 1.5 } }),
        json!({ "target": { "bytes": 5_000_000 } }),
        json!({ "target": { "bytes": 1_500_000, "maxKld": 0.1 } }),
        json!({ "target": { "bitsPerWeight": 5 }, "quantTypes": ["Q4_K_M", "Q8_0"] }),
        json!({ "target": { "bitsPerWeight": 5 }, "format": "safetensors", "quantTypes": ["W4A16", "W8A16"] }),
    ];
    let report: String = cases.into_iter().map(|keys| refused(keys) + "\n").collect();
    insta::assert_snapshot!(report, @r"
    recipe: stages[0].target: 455688 bytes are out of reach: files of these types take 953120 to 2663200 (3.14 to 8.77 bits per weight)
    recipe: stages[0].target: 5000000 bytes are out of reach: files of these types take 953120 to 2663200 (3.14 to 8.77 bits per weight)
    recipe: stages[0].target: says more than one thing
    recipe: stages[0].quantTypes[0]: this build has no quantization type `Q4_K_M`
    recipe: stages[0].target: format safetensors takes no target
    ");
}

#[test]
fn rows_that_blocks_do_not_divide_count_with_what_they_take() {
    // Rows of 128 and 160: of these two types only the replacements fit.
    let bench =
        built(json!({ "quantTypes": ["Q4_K", "Q6_K"], "target": { "bitsPerWeight": 7 }, "calibrationTokens": 2000 }));
    let plan = bench.json("plan.json").to_string();
    assert!(plan.contains("take Q5_0 (5.5 bits) instead of Q4_K (4.5)"), "{plan}");
    assert!(plan.contains("take Q8_0 (8.5 bits) instead of Q6_K (6.5625)"), "{plan}");
    let types = bench.json("result.json")["artifacts"][0]["tensor_types"].clone();
    let names: Vec<&str> = types.as_array().unwrap().iter().map(|t| t["type"].as_str().unwrap()).collect();
    assert!(names.iter().all(|name| ["F32", "Q5_0", "Q8_0"].contains(name)), "{types}");
}
