//! Two models beside each other: divergence against vectors that numpy made of transformers' logits, and what is exact.

use std::path::Path;

use factoryline::assay::{self, Data, Measurement, Request, compare};
use factoryline::engine::matmul::Kernel;
use factoryline::engine::{PassOptions, Scoring, Subject, run_beside, run_pass};
use factoryline::family::{self, OpenModel};
use factoryline::units::Bytes;
use serde_json::{Value, json};

use super::oracle::fixture;

fn open(name: &str) -> OpenModel {
    family::open(&fixture(name)).unwrap()
}

fn exact() -> PassOptions {
    PassOptions { kernel: Some(Kernel::Portable), ..PassOptions::default() }
}

fn on_ids(path: &Path, ids: &Value, options: PassOptions) -> Request<'static> {
    std::fs::write(path, ids.to_string()).unwrap();
    Request { data: Data::TokenIds { path: path.to_owned() }, against: None, limit: None, options }
}

#[test]
fn divergence_is_what_numpy_makes_of_the_logits_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/divergence.json");
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert!(rows.len() >= 4);
    let tight = PassOptions { memory_budget: Some(Bytes(1)), spill_directory: Some(dir.path().to_owned()), ..exact() };
    let candle = PassOptions { candle_on_cpu: true, ..PassOptions::default() };
    for row in &rows {
        let (base, model) = (open(row["first"].as_str().unwrap()), open(row["second"].as_str().unwrap()));
        for (way, options) in [("in memory", exact()), ("spilled", tight.clone()), ("candle", candle.clone())] {
            let request = on_ids(&dir.path().join("ids.json"), &row["input_ids"], options);
            let request = Request { against: Some(&base), ..request };
            let found = assay::runner("divergence").unwrap().run(&model, &request, &|_| ()).unwrap();
            let divergence = serde_json::to_value(found.divergence.unwrap()).unwrap();
            for (key, value) in divergence.as_object().unwrap() {
                let (ours, theirs) = (value.as_f64().unwrap(), row[key].as_f64().unwrap());
                let off = (ours - theirs).abs() / (1e-3 + theirs.abs());
                assert!(
                    off < 1e-3,
                    "{} against {}, {way}: {key} {ours}, numpy has {theirs}",
                    row["second"],
                    row["first"]
                );
            }
            assert!((found.perplexity / row["perplexity"].as_f64().unwrap() - 1.0).abs() < 1e-4);
        }
    }
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let dir = tempfile::tempdir().unwrap();
    let ids = json!([[1, 5, 9, 60, 7, 3], [44, 45, 46]]);
    for name in ["llama", "qwen3_moe-text", "qwen3_5_moe-text"] {
        let (base, model) = (open(name), open(name));
        for options in [exact(), PassOptions::default()] {
            let measured = compare(&base, &[&model], &on_ids(&dir.path().join("ids.json"), &ids, options), &|_| ());
            let [base, same] = &measured.unwrap()[..] else { panic!("a base and one model") };
            let found = same.divergence.as_ref().unwrap();
            let zeros = [found.kld, found.kld_stderr, found.kld_max, found.rms_delta_p, found.ln_ratio];
            assert_eq!((zeros, found.same_top, found.positions), ([0.0; 5], 1.0, 7), "{name}");
            assert_eq!((base.nll, base.divergence.is_none()), (same.nll, true));
        }
    }
}

#[test]
fn several_models_in_one_pass_measure_what_each_measures_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ids = json!([[1, 5, 9, 60, 7, 3], [44, 45, 46], [9, 8, 7, 6, 5, 4, 3, 2, 1]]);
    let models = [open("llama"), open("qwen3_moe"), open("qwen2-tied")];
    let file = dir.path().join("ids.json");
    let together = compare(&models[0], &[&models[1], &models[2]], &on_ids(&file, &ids, exact()), &|_| ()).unwrap();
    let sequences: Vec<Vec<u32>> = serde_json::from_value(ids.clone()).unwrap();
    for (i, measured) in together.iter().enumerate() {
        let alone = run_pass(&models[i], &sequences, Scoring::All, &exact(), &mut [], &|_| ()).unwrap();
        assert!((measured.nll - alone.mean_nll()).abs() < 1e-6, "{} and {}", measured.nll, alone.mean_nll());
        assert_eq!((measured.tokens, measured.scored), (18, 15));
    }
    let kld = |measured: &Measurement| measured.divergence.as_ref().unwrap().kld;
    for (model, measured) in models.iter().zip(&together).skip(1) {
        let alone = compare(&models[0], &[model], &on_ids(&file, &ids, exact()), &|_| ()).unwrap();
        assert!((kld(&alone[1]) / kld(measured) - 1.0).abs() < 1e-6);
    }
}

#[test]
fn progress_of_several_models_runs_to_the_end_once() {
    let models = [open("llama"), open("qwen2-tied")];
    let seen = std::cell::RefCell::new(Vec::new());
    let (first, other) = (Subject::of(&models[0]), Subject::of(&models[1]));
    let watch = |progress| seen.borrow_mut().push(progress);
    run_beside(&first, &[other], &[vec![1, 2, 3]], Scoring::All, &exact(), &mut [], &watch).unwrap();
    let seen: Vec<(usize, usize, f64)> = seen.take().iter().map(|p| (p.blocks, p.of_blocks, p.fraction)).collect();
    let blocks = models.iter().map(|model| model.spec.blocks.len()).sum::<usize>();
    assert!(seen.is_sorted_by(|a, b| a.0 <= b.0 && a.2 <= b.2 + 1e-12), "{seen:?}");
    let last = seen.last().unwrap();
    assert!((last.0, last.1) == (blocks, blocks) && (last.2 - 1.0).abs() < 1e-9, "{seen:?}");
}

#[test]
fn models_that_share_no_vocabulary_are_not_compared() {
    let model = open("llama");
    let mut spec = model.spec.clone();
    spec.vocab -= 1;
    let narrow = Subject { spec: &spec, ..Subject::of(&model) };
    let refused = run_beside(&Subject::of(&model), &[narrow], &[vec![1, 2]], Scoring::All, &exact(), &mut [], &|_| ())
        .unwrap_err();
    insta::assert_snapshot!(refused, @"two models cannot be compared token by token: one has a vocabulary of 96, the other of 95");
}

#[test]
fn models_that_cut_a_text_into_other_tokens_are_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(fixture("qwen3_moe-text")).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    let path = dir.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (e, t) = (vocab["e"].clone(), vocab["t"].clone());
    vocab.insert("e".into(), t);
    vocab.insert("t".into(), e);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let text = dir.path().join("held.txt");
    std::fs::write(&text, "the tree there ".repeat(20)).unwrap();
    let (base, other) = (open("qwen3_moe-text"), family::open(dir.path()).unwrap());
    let data = Data::Text { path: text, context: 16, convention: assay::Convention::Windowed };
    let request = Request { data, against: Some(&base), limit: None, options: exact() };
    let runner = assay::runner("divergence").unwrap();
    let refused = runner.run(&other, &request, &|_| ()).unwrap_err().to_string();
    assert!(refused.contains("different tokens of the text, from sequence 0, token "), "{refused}");
    let alone = Request { against: None, ..request };
    let refused = runner.run(&base, &alone, &|_| ()).unwrap_err();
    insta::assert_snapshot!(refused, @"divergence compares with another model, and none is named");
}
