//! Injected faults: a pruned directory that is not what the prune wrote, models and profiles that are broken. Each is
//! caught and called by its name.

use std::fs;
use std::path::Path;

use factoryline::compress::{
    Importance, Kept, Metric, ProfileOrigin, PrunePlan, choose_experts, profile_experts, rewrite,
};
use factoryline::engine::PassOptions;
use factoryline::family::{MixtureId, OpenModel, Part as Matrix, open};
use factoryline::gate::{Lineage, Part, pass_through};
use factoryline::model::HfDir;
use factoryline::stage::prune_lineage;
use serde_json::{Value, json};

use crate::worker::{Bench, fixture};

/// A model, its pruned copy on disk, and where every tensor of the copy comes from.
struct Pruned {
    dir: tempfile::TempDir,
    source: OpenModel,
    kept: Kept,
    lineage: Vec<Lineage>,
}

impl Pruned {
    fn new(name: &str, keep: usize) -> Pruned {
        let source = open(&fixture(name)).unwrap();
        let kept = choose_experts(&source, Metric::RouterL2, None, keep).unwrap();
        let plan = PrunePlan::new(source.storage(), source.spec.experts().unwrap().0, kept.clone());
        let dir = tempfile::tempdir().unwrap();
        let (_, settling) = rewrite(&source, &plan, dir.path(), 1 << 30, &|_| ()).unwrap();
        settling.wait().unwrap();
        let mut config = HfDir::open(&source.path).unwrap().config;
        config.set_experts(keep);
        fs::write(dir.path().join("config.json"), config.to_json()).unwrap();
        let lineage = prune_lineage(&plan, source.stored.metas());
        let pruned = Pruned { dir, source, kept, lineage };
        pruned.proof().unwrap();
        pruned
    }

    /// The proof, on the directory as it lies now.
    fn proof(&self) -> Result<(), String> {
        let written = open(self.dir.path()).map_err(|e| e.to_string())?;
        let found = pass_through(&*self.source.stored, &*written.stored, &self.lineage, "pruned", &|_| ());
        found.map(|_| ()).map_err(|e| e.to_string().split(" (SHA-256").next().unwrap().to_owned())
    }

    fn expert(&self, number: usize, part: Matrix) -> String {
        let written = open(self.dir.path()).unwrap();
        written.spec.blocks[0].moe().unwrap().experts[number].part(part).weight.clone()
    }

    /// Overwrites a tensor of the written copy.
    fn damage(&self, tensor: &str, edit: impl FnOnce(&mut [u8])) {
        let (path, start, len) = place(self.dir.path(), tensor);
        let mut bytes = fs::read(&path).unwrap();
        edit(&mut bytes[start..start + len]);
        fs::write(path, bytes).unwrap();
    }

    fn bytes(&self, tensor: &str) -> Vec<u8> {
        let (path, start, len) = place(self.dir.path(), tensor);
        fs::read(path).unwrap()[start..start + len].to_vec()
    }
}

/// File, first byte and length of a tensor in a folder of safetensors.
fn place(folder: &Path, tensor: &str) -> (std::path::PathBuf, usize, usize) {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")) {
        let bytes = fs::read(&path).unwrap();
        let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
        if let Some(range) = header.get(tensor).map(|entry| &entry["data_offsets"]) {
            let (start, end) = (range[0].as_u64().unwrap() as usize, range[1].as_u64().unwrap() as usize);
            return (path, 8 + header_len + start, end - start);
        }
    }
    panic!("{tensor} is not in {}", folder.display());
}

#[test]
fn swapped_gate_and_up_of_an_expert() {
    let pruned = Pruned::new("qwen3_moe", 3);
    let (gate, up) = (pruned.expert(1, Matrix::Gate), pruned.expert(1, Matrix::Up));
    let (of_gate, of_up) = (pruned.bytes(&gate), pruned.bytes(&up));
    pruned.damage(&gate, |bytes| bytes.copy_from_slice(&of_up));
    pruned.damage(&up, |bytes| bytes.copy_from_slice(&of_gate));
    let fault = pruned.proof().unwrap_err();
    let old = pruned.kept[&MixtureId::Layer(0)][1];
    let name = |number: usize, which: &str| format!("model.layers.0.mlp.experts.{number}.{which}_proj.weight");
    // Either of the two is met first.
    let says = |at: &str, holds: &str| {
        format!("pruned: tensor {} holds {}, {} expected", name(1, at), name(old, holds), name(old, at))
    };
    assert!(fault == says("gate", "up") || fault == says("up", "gate"), "{fault}");
}

#[test]
fn the_wrong_slice_of_a_router() {
    let pruned = Pruned::new("qwen3_moe", 3);
    let router = pruned.source.spec.blocks[0].moe().unwrap().router.weight.clone();
    let dropped = (0..4).find(|e| !pruned.kept[&MixtureId::Layer(0)].contains(e)).unwrap();
    let whole = pruned.source.tensors.bytes(&router).unwrap().to_vec();
    let row = whole.len() / 4;
    pruned.damage(&router, |bytes| bytes[row..2 * row].copy_from_slice(&whole[dropped * row..(dropped + 1) * row]));
    let expected = pruned.kept[&MixtureId::Layer(0)][1];
    let fault = pruned.proof().unwrap_err();
    let says = format!("pruned: tensor {router} holds row {dropped} of the source at place 1, row {expected} expected");
    assert_eq!(fault, says);
}

#[test]
fn a_zeroed_expert() {
    let pruned = Pruned::new("qwen3_moe", 3);
    let down = pruned.expert(0, Matrix::Down);
    pruned.damage(&down, |bytes| bytes.fill(0));
    assert_eq!(pruned.proof().unwrap_err(), format!("pruned: tensor {down} is all zeros"));
}

#[test]
fn a_transposed_expert_one_by_one_and_in_a_stack() {
    let transpose = |bytes: &mut [u8], rows: usize, cols: usize| {
        let old = bytes.to_vec();
        for i in 0..rows * cols {
            let at = (i % cols * rows + i / cols) * 2;
            bytes[at..at + 2].copy_from_slice(&old[2 * i..2 * i + 2]);
        }
    };
    let pruned = Pruned::new("qwen3_moe", 3);
    let up = pruned.expert(2, Matrix::Up);
    pruned.damage(&up, |bytes| transpose(bytes, 96, 64));
    assert_eq!(pruned.proof().unwrap_err(), format!("pruned: tensor {up} is transposed"));

    let fused = Pruned::new("qwen3_moe-fused", 3);
    let stack =
        fused.source.stored.metas().iter().find(|m| m.name.ends_with("layers.0.mlp.experts.down_proj")).unwrap();
    let (rows, cols) = (stack.shape[1], stack.shape[2]);
    fused.damage(&stack.name, |bytes| {
        bytes.chunks_exact_mut(rows * cols * 2).for_each(|slice| transpose(slice, rows, cols));
    });
    assert_eq!(fused.proof().unwrap_err(), format!("pruned: tensor {} is transposed", stack.name));
}

#[test]
fn one_flipped_bit() {
    let pruned = Pruned::new("qwen3_moe", 3);
    let up = pruned.expert(2, Matrix::Up);
    pruned.damage(&up, |bytes| bytes[1000] ^= 1);
    assert_eq!(
        pruned.proof().unwrap_err(),
        format!("pruned: tensor {up} differs in 1 of 12288 bytes, first at byte 1000")
    );
}

#[test]
fn a_value_that_is_not_a_number_in_one_expert() {
    let pruned = Pruned::new("qwen3_moe", 3);
    let gate = pruned.expert(1, Matrix::Gate);
    pruned.damage(&gate, |bytes| bytes[40..42].copy_from_slice(&0x7fc0u16.to_le_bytes()));
    let fault = pruned.proof().unwrap_err();
    assert!(fault.contains("element 20 is not finite") && fault.contains(".gate_proj.weight"), "{fault}");

    // In the source it is found by the profile, whether or not any token meets the expert.
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("broken");
    Bench::copy_of("qwen3_moe", &model);
    let name = "model.layers.0.mlp.experts.3.up_proj.weight";
    let (path, start, _) = place(&model, name);
    let mut bytes = fs::read(&path).unwrap();
    bytes[start..start + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    fs::write(path, bytes).unwrap();
    let model = open(&model).unwrap();
    let profile = |tokens: Vec<u32>| {
        profile_experts(&model, &ProfileOrigin::default(), &[tokens], &PassOptions::default(), &|_| ()).err().unwrap()
    };
    for tokens in [vec![5], (0..90).collect()] {
        let fault = profile(tokens).to_string();
        assert!(fault.contains(name), "{fault}");
    }
}

#[test]
fn a_config_with_the_wrong_number_of_experts() {
    let pruned = Pruned::new("qwen3_moe", 3);
    let path = pruned.dir.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap().replace("\"num_experts\": 3", "\"num_experts\": 4");
    fs::write(&path, text).unwrap();
    let fault = pruned.proof().unwrap_err();
    let says = "config key num_experts says 4 experts, tensor model.layers.0.mlp.gate.weight is for 3";
    assert!(fault.ends_with(says), "{fault}");
}

#[test]
fn a_tensor_that_is_left_over() {
    let pruned = Pruned::new("qwen3_moe", 3);
    let short: Vec<Lineage> = pruned.lineage.iter().filter(|l| l.part == Part::Whole).cloned().collect();
    let written = open(pruned.dir.path()).unwrap();
    let fault = pass_through(&*pruned.source.stored, &*written.stored, &short, "pruned", &|_| ()).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "pruned: tensor model.layers.0.mlp.gate.weight is in the output, but the plan does not name it"
    );
}

#[test]
fn a_profile_that_saw_nothing() {
    let table = json!({
        "model": "m", "calibration_corpus": "c", "calibration_examples": 0, "calibration_tokens": 0,
        "num_hidden_layers": 1, "num_experts": 4, "num_experts_per_tok": 2,
        "activation_counts": { "0": [0, 0, 0, 0] }, "metric_version": "v1.activation_count", "tool": "a silent hook"
    });
    let recipe = json!({
        "name": "tiny", "version": "1.0.0",
        "source": { "baseModel": fixture("qwen3_moe"), "architecture": "qwen3_moe" },
        "stages": [{ "type": "expert-prune", "keepExpertsPerLayer": 3, "importanceJson": "zeros.json" }]
    });
    let bench = Bench::with_recipe(&recipe);
    bench.text("zeros.json", &table.to_string());
    assert!(Importance::read(&bench.root().join("calibration/zeros.json")).is_err());
    bench.run();
    let fault = bench.fault();
    assert!(fault.ends_with("every count of layer 0 is zero: the profile saw no tokens there"), "{fault}");
    assert!(!bench.args.work.join("pruned").exists());
}
