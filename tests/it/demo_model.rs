//! The demo's model and texts are what `recipes/demo` says of them, and the engine measures what transformers measured.

use std::path::{Path, PathBuf};

use factoryline::assay::{Convention, Data, Request, runner};
use factoryline::engine::PassOptions;
use factoryline::{family, model};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/demo")
}

#[test]
fn the_readme_names_the_files_as_they_are() {
    let readme = std::fs::read_to_string(demo().join("README.md")).unwrap();
    let mut total = 0;
    for file in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
            .map(|name| format!("model/{name}"))
            .into_iter()
            .chain(["heldout.txt".to_owned(), "calibration.jsonl".to_owned()])
    {
        let (sha, size) = model::hash_file(&demo().join(&file)).unwrap();
        assert!(readme.contains(&sha.hex()), "{file} has changed: its hash is now {}", sha.hex());
        total += size;
    }
    assert!(total <= 6_000_000, "the demo's files have grown to {total} bytes");
}

#[test]
fn the_demo_model_scores_what_transformers_found() {
    let notes = std::fs::read(demo().join("training-refine.json")).unwrap();
    let notes: serde_json::Value = serde_json::from_slice(&notes).unwrap();
    let model = family::open(&demo().join("model")).unwrap();
    for convention in Convention::ALL {
        let theirs = notes["heldout"]["base_512"][convention.as_str()].as_f64().unwrap();
        let data = Data::Text { path: demo().join("heldout.txt"), context: 512, convention };
        let request = Request { data, against: None, limit: None, options: PassOptions::default() };
        let ours = runner("perplexity").unwrap().run(&model, &request, &|_| ()).unwrap();
        let off = (ours.perplexity / theirs - 1.0).abs();
        assert!(off < 2e-4, "{}: {} here, {theirs} in transformers", convention.as_str(), ours.perplexity);
    }
}
