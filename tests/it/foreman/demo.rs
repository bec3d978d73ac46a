//! The demo, and what can be done with what it makes.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::Bench;

#[test]
fn the_demo_builds_measures_and_verifies() {
    let bench = Bench::new();
    let demo = bench.foreman(&["demo", "--json"]);
    assert_eq!(demo.code, 0, "{}", demo.all());
    let document = demo.json();
    let base = document["base"]["perplexity"].as_f64().unwrap();
    let results = document["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for row in results {
        let perplexity = row["perplexity"].as_f64().unwrap();
        assert!(perplexity > base && perplexity < 2.0 * base, "{row} against {base}");
        assert!((0.001..1.0).contains(&row["kld"].as_f64().unwrap()), "{row}");
        assert!(row["parameters"].as_u64() < document["base"]["parameters"].as_u64());
        assert!(row["bits_per_weight"].as_f64().unwrap() < 10.0);
    }
    assert_eq!(bench.foreman(&["verify", "demo"]).code, 0);
    let artifact = PathBuf::from(document["artifact"].as_str().unwrap());
    let file = fs::read_dir(&artifact)
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "gguf"));
    let file = file.unwrap();

    let inspected = bench.foreman(&["inspect", file.to_str().unwrap(), "--json"]).json();
    assert_eq!((&inspected["format"], &inspected["experts"]["per_layer"]), (&json!("gguf"), &json!(6)));
    let ids = bench.file("ids.json", "[[1, 2, 3, 4, 5], [6, 7, 8]]");
    let measured =
        bench.foreman(&["assay", file.to_str().unwrap(), "--token-ids", ids.to_str().unwrap(), "--json"]).json();
    assert_eq!(
        (&measured["tokens"], &measured["scored"], &measured["convention"]),
        (&json!(8), &json!(6), &json!("token-ids"))
    );
    let keys = [
        "runner",
        "context",
        "nll",
        "nll_stderr",
        "perplexity",
        "seconds",
        "peak_rss_bytes",
        "data_sha256",
        "model_hash",
    ];
    for key in keys {
        assert!(!measured[key].is_null(), "{key} in {measured}");
    }
    let text = ["assay", "sources/factoryline-demo-moe", "--data", "heldout.txt", "--max-tokens", "2048", "--json"];
    assert_eq!(bench.foreman(&text).json()["tokens"], 2048);

    // One byte more is found out.
    let mut bytes = fs::read(&file).unwrap();
    bytes.push(0);
    fs::write(&file, bytes).unwrap();
    let wrong = bench.foreman(&["verify", "demo", "--json"]);
    assert_eq!((wrong.code, &wrong.json()["ok"]), (5, &json!(false)));
}
