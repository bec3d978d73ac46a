//! What hostile bytes are put through: every reader of a file that others wrote. Used by the fuzz targets and by
//! `tests/it/hostile.rs`.
//!
//! Each function takes any bytes and must return: an error is as good as a success, a panic is a bug.

use std::fs;
use std::path::Path;

use factoryline::compress::{Importance, ImportanceMatrix, read_corpus};
use factoryline::family::{self, spec_of};
use factoryline::line::outcome::{inspect, worker_fault};
use factoryline::line::{Attempt, EventLog, Layout, PartName, Station, follow, heartbeat, record, shelf, throughput};
use factoryline::model::{Config, GgufFile, INDEX_FILE, Manifest, SafetensorsModel, TensorSource, Tokenizer};
use factoryline::node::Node;
use factoryline::recipe::json::{self, Style};
use factoryline::recipe::{RecipeFile, check, check_executable};
use factoryline::stage::{Checkpoints, capabilities, examine};

/// Bytes of a recipe: read, typed, checked, written out again.
pub fn recipe(bytes: &[u8]) {
    let Ok(file) = RecipeFile::parse(bytes, Path::new("fuzz.alloy.json")) else { return };
    let mut findings = check(file.recipe());
    findings.extend(check_executable(file.recipe(), &capabilities()));
    for finding in &findings {
        file.locate(&finding.key);
    }
    for stage in &file.recipe().stages {
        stage.resolved();
    }
    // What is written out says what was read.
    let again = json::parse(&file.python_form()).map(|tree| json::render(&tree, Style::PYTHON));
    assert_eq!(again.as_ref(), Ok(&file.python_form()));
    let executed = file.with_results(&serde_json::json!({ "fuzz": true })).unwrap_or_default();
    let executed = RecipeFile::parse(executed, Path::new("executed.alloy.json"));
    assert!(executed.is_ok(), "a recipe with results cannot be read: {:?}", executed.err());
}

/// Bytes of a recipe, admitted as if its source were `model`: every stage planned, every size predicted. Nothing is run.
pub fn plan(bytes: &[u8], dir: &Path, node: &Node, model: &Path) {
    let recipe = dir.join("line/intake/fuzz.alloy.json");
    let Ok(file) = RecipeFile::parse(bytes, &recipe) else { return };
    let mut node = node.clone();
    node.sources.insert(file.recipe().source.base_model.clone(), model.to_owned());
    examine(&file, &node, &Layout::at(dir));
}

/// Every tensor of an open model: sizes, bytes, numbers.
fn read_all(source: &dyn TensorSource) {
    for meta in source.metas() {
        let (elems, rows) = (meta.elems(), meta.rows());
        let mut numbers = Vec::new();
        let read = source.read_f32(&meta.name, &mut numbers);
        assert!(read.is_err() || numbers.len() == elems);
        let _ = source.read_rows_f32(&meta.name, 0..rows.min(2), &mut numbers);
        let _ = source.rows_bytes(&meta.name, 0..1);
        assert_eq!(source.bytes(&meta.name).map(|bytes| bytes.len() as u64).ok(), Some(meta.bytes));
    }
}

/// The first byte chooses: a safetensors file, or the index of two shards that are there.
pub fn safetensors(bytes: &[u8], dir: &Path) {
    let Some((&which, rest)) = bytes.split_first() else { return };
    let path = dir.join(if which % 4 == 1 { INDEX_FILE } else { "one.safetensors" });
    if fs::write(&path, rest).is_err() {
        return;
    }
    if let Ok(model) = SafetensorsModel::open(&path) {
        read_all(&model);
    }
}

/// A GGUF file: as tensors, as a model, as an importance matrix, as a vocabulary.
pub fn gguf(bytes: &[u8], dir: &Path) {
    let path = dir.join("fuzz.gguf");
    if fs::write(&path, bytes).is_err() {
        return;
    }
    let _ = ImportanceMatrix::read(&path);
    let Ok(file) = GgufFile::open(&path) else { return };
    read_all(&file);
    if let Ok(tokenizer) = Tokenizer::of_gguf(&file) {
        let _ = tokenizer.encode("a b é 12\n");
        let _ = tokenizer.decode(&[0, 1, u32::MAX]);
    }
    if let Ok(model) = family::open(&path) {
        model.spec.parameters();
    }
}

/// The first byte chooses: a model's `config.json` alone or beside tensors, plain or packed, or a node's description.
/// `dir` has been through [`models`].
pub fn config(bytes: &[u8], dir: &Path) {
    let Some((&which, rest)) = bytes.split_first() else { return };
    let beside = match which % 4 {
        0 => {
            let Ok(value) = serde_json::from_slice(rest) else { return };
            let Ok(config) = Config::from_value(Path::new("config.json"), value) else { return };
            let _ = config.dtype();
            let _ = config.token_ids("eos_token_id");
            if let Ok(spec) = spec_of(&config) {
                spec.tensors();
                config.to_json();
            }
            return;
        }
        1 => {
            if let Ok(text) = std::str::from_utf8(rest) {
                let _ = Node::check_text(&dir.join("factory_node.toml"), text);
            }
            return;
        }
        2 => dir.join("plain"),
        _ => dir.join("packed"),
    };
    if fs::write(beside.join("config.json"), rest).is_err() {
        return;
    }
    if let Ok(model) = family::open(&beside) {
        model.spec.parameters();
    }
}

/// The two models [`config`] lays its bytes beside: folders `plain` and `packed` with a `model.safetensors` each.
pub fn models(plain: &[u8], packed: &[u8], dir: &Path) -> std::io::Result<()> {
    for (name, weights) in [("plain", plain), ("packed", packed)] {
        fs::create_dir_all(dir.join(name))?;
        fs::write(dir.join(name).join("model.safetensors"), weights)?;
    }
    Ok(())
}

/// The first byte chooses which file of the line, of a work folder or of the calibration folder the others are.
pub fn events(bytes: &[u8], dir: &Path) {
    let Some((&which, rest)) = bytes.split_first() else { return };
    let layout = Layout::at(dir);
    if !layout.calibration().is_dir() && Layout::init(dir).is_err() {
        return;
    }
    let Ok(part) = PartName::new("x") else { return };
    let work = layout.work(&part);
    let station = |station: Station, name: &str| layout.station(station).join(name);
    let text = || String::from_utf8_lossy(rest);
    let put =
        |path: &Path| path.parent().is_some_and(|dir| fs::create_dir_all(dir).is_ok()) && fs::write(path, rest).is_ok();
    match which % 13 {
        0 if put(&layout.events()) => {
            let _ = follow::read(&layout, &follow::Since::Seq(3));
            EventLog::new(&layout, "here").tell("line/started", None, serde_json::json!({}));
            let _ = follow::Follower::from(&layout, follow::Since::Start).poll();
        }
        1 if put(&layout.throughput()) => {
            let _ = throughput::tail(&layout, 20);
        }
        2 if put(&station(Station::Finished, "x.result.json")) => {
            let _ = record::result(&layout, Station::Finished, &part);
        }
        3 if put(&station(Station::Rework, "x.error.json")) => {
            let _ = record::error(&layout, Station::Rework, &part);
        }
        4 if put(&station(Station::Intake, "x.retry.json")) => {
            let _ = record::retry(&layout, &part);
        }
        5 if put(&layout.heartbeat()) => {
            if let Ok(Some(beat)) = heartbeat::read(&layout) {
                beat.judge();
            }
        }
        6 => {
            text().lines().for_each(|line| drop(factoryline::line::wire::parse(line)));
        }
        7 if put(&work.join("result.json")) => {
            let attempt: Result<Attempt, _> = serde_json::from_value(serde_json::json!({
                "token": "0123456789abcdef0123456789abcdef", "attempt": 1, "part": "x.alloy.json", "retries": 0,
                "since": "", "host": "", "pid": 1, "start_ticks": 1, "boot_id": "",
            }));
            if let Ok(attempt) = attempt {
                inspect(&work, &attempt);
            }
        }
        8 if put(&work.join("fault.json")) && put(&work.join("attempt.json")) => {
            worker_fault(&work);
            let _ = Attempt::read(&work);
        }
        9 if put(&work.join(factoryline::stage::CHECKPOINT_FILE)) => {
            Checkpoints::read(&work);
        }
        10 if put(&work.join("manifest.json")) => {
            if let Ok(manifest) = Manifest::read(&work) {
                let _ = manifest.verify(&work);
            }
        }
        11 if put(&layout.calibration().join("c.jsonl")) => {
            let _ = read_corpus(&layout.calibration().join("c.jsonl"));
            let _ = Importance::read(&layout.calibration().join("c.jsonl"));
            let _ = ImportanceMatrix::read(&layout.calibration().join("c.jsonl"));
        }
        _ => {
            if let Ok(name) = PartName::parse(&text()) {
                let path = layout.station(Station::Intake).join(name.file_name());
                if name.file_name().len() < 255 && fs::write(&path, b"{}").is_ok() {
                    let _ = shelf::read(&layout, Station::Intake);
                    let _ = fs::remove_file(&path);
                }
            }
        }
    }
}
