//! How experts lie in the files: every layout gives the same model, and the map of the files says what each tensor is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use factoryline::engine::PassOptions;
use factoryline::family::{
    self, ExpertAxis, Holding, MixtureId, ModelSpec, MoeSpec, OpenModel, Part, Role, StackLayout,
};
use factoryline::model::{Dtype, TensorSource};
use serde_json::{Value, json};

use crate::oracle::{fixtures, logits, mixture, reference, rewritten, worst, write_gguf};

/// `…experts` of a mixture.
fn prefix(moe: &MoeSpec) -> String {
    moe.experts[0].gate.weight.rsplit_once(".0.").unwrap().0.to_owned()
}

/// Every expert's tensors under the specification's names, and all else as it is stored: the model with its experts one
/// by one. Experts that were stored in MXFP4 are bf16 then.
fn one_by_one(model: &OpenModel) -> HashMap<String, Tensor> {
    let mut out = HashMap::new();
    let stacked = |holding: &Holding| matches!(holding, Holding::Stack { .. });
    for meta in model.stored.metas() {
        if !stacked(&model.storage().get(&meta.name).unwrap().holding) {
            out.insert(meta.name.clone(), read(&*model.stored, &meta.name));
        }
    }
    let experts = model.spec.blocks.iter().filter_map(|b| b.moe()).flat_map(|moe| &moe.experts);
    for linear in experts.flat_map(|expert| Part::ALL.map(|part| expert.part(part))) {
        for name in std::iter::once(&linear.weight).chain(&linear.bias) {
            out.entry(name.clone()).or_insert_with(|| read(&*model.tensors, name));
        }
    }
    out
}

fn read(source: &dyn TensorSource, name: &str) -> Tensor {
    let meta = source.meta(name).unwrap();
    let mut values = Vec::new();
    source.read_f32(name, &mut values).unwrap();
    let tensor = Tensor::from_vec(values, meta.shape.clone(), &Device::Cpu).unwrap();
    if meta.dtype == Dtype::BF16 { tensor.to_dtype(DType::BF16).unwrap() } else { tensor }
}

/// Puts the experts of every layer into stacks.
fn stack(spec: &ModelSpec, tensors: &mut HashMap<String, Tensor>, layout: StackLayout, ending: &str) {
    // Halves of what a linear layer puts out, joined along its rows.
    let joined = |halves: [Tensor; 2]| match layout {
        StackLayout::InOutInterleaved => Tensor::stack(&halves, 1).unwrap().flatten(0, 1).unwrap(),
        _ => Tensor::cat(&halves, 0).unwrap(),
    };
    for moe in spec.blocks.iter().filter_map(|b| b.moe()) {
        let prefix = prefix(moe);
        let mut take = |name: &str| tensors.remove(name).unwrap();
        let (mut gate_up, mut down, mut biases) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
        for expert in &moe.experts {
            gate_up.push(joined([take(&expert.gate.weight), take(&expert.up.weight)]));
            down.push(take(&expert.down.weight));
            if let (Some(gate), Some(up), Some(down)) = (&expert.gate.bias, &expert.up.bias, &expert.down.bias) {
                biases[0].push(joined([take(gate), take(up)]));
                biases[1].push(take(down));
            }
        }
        let turned = |list: &[Tensor]| {
            let all = Tensor::stack(list, 0).unwrap();
            if layout == StackLayout::OutIn { all } else { all.transpose(1, 2).unwrap().contiguous().unwrap() }
        };
        tensors.insert(format!("{prefix}.gate_up_proj{ending}"), turned(&gate_up));
        tensors.insert(format!("{prefix}.down_proj{ending}"), turned(&down));
        for (name, list) in ["gate_up_proj_bias", "down_proj_bias"].into_iter().zip(&biases) {
            if !list.is_empty() {
                tensors.insert(format!("{prefix}.{name}"), Tensor::stack(list, 0).unwrap());
            }
        }
    }
}

/// The tensors beside the fixture's config, in a directory of their own.
fn beside_config(path: &Path, tensors: &HashMap<String, Tensor>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(path.join("config.json"), dir.path().join("config.json")).unwrap();
    candle_core::safetensors::save(tensors, dir.path().join("model.safetensors")).unwrap();
    dir
}

/// Every fixture with experts, in every layout its family accepts and one by one, gives the same logits to the last bit.
#[test]
fn a_model_is_the_same_however_its_experts_lie() {
    let options = PassOptions::default();
    let mut families = HashSet::new();
    for path in fixtures() {
        let model = family::open(&path).unwrap();
        if model.spec.experts().is_none() || !families.insert(model.spec.family) {
            continue;
        }
        let (ids, _) = reference(&path);
        let wanted = logits(&path, &ids, &options);
        let plain = one_by_one(&model);
        let same = |tensors: &HashMap<String, Tensor>, what: &str| {
            let dir = beside_config(&path, tensors);
            let difference = worst(&logits(dir.path(), &ids, &options), &wanted);
            assert_eq!(difference, 0.0, "{}, {what}", path.display());
            dir
        };
        same(&plain, "one by one");
        for &layout in model.family.layouts().iter().filter(|&&layout| layout != StackLayout::Mxfp4Interleaved) {
            for ending in ["", ".weight"] {
                let mut tensors = plain.clone();
                stack(&model.spec, &mut tensors, layout, ending);
                let dir = same(&tensors, &format!("{layout:?} {ending}"));
                let stacked = family::open(dir.path()).unwrap();
                assert!(stacked.warnings.is_empty(), "{:?}", stacked.warnings);
                let block = model.spec.blocks.iter().find(|b| b.moe().is_some()).unwrap();
                let (layer, name) = (block.index, format!("{}.gate_up_proj{ending}", prefix(block.moe().unwrap())));
                let held = stacked.storage().get(&name).unwrap();
                let parts: &[Part] = &[Part::Gate, Part::Up];
                assert_eq!(held.holding, Holding::Stack { layer, parts, bias: false, layout });
                assert_eq!(held.experts, ExpertAxis::Rows { mixture: MixtureId::Layer(layer) });
            }
        }
    }
    assert!(families.len() >= 8, "families with experts: {families:?}");
}

#[test]
fn every_stored_tensor_is_listed_once_with_what_it_holds() {
    let path = mixture();
    let model = family::open(&path).unwrap();
    let names: Vec<&str> = model.storage().tensors().iter().map(|t| t.name.as_str()).collect();
    let stored: Vec<&str> = model.stored.metas().iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, stored);
    let roles: BTreeMap<Role, String> = model.spec.tensors().into_iter().map(|t| (t.role, t.name)).collect();
    for tensor in model.storage().tensors() {
        let Holding::Tensor(role) = tensor.holding else { panic!("{tensor:?}") };
        assert_eq!(roles[&role], tensor.name);
        match role {
            Role::Router(layer) => {
                assert_eq!(tensor.experts, ExpertAxis::Rows { mixture: MixtureId::Layer(layer) });
            }
            Role::Expert { layer, expert, part } => {
                assert_eq!(tensor.experts, ExpertAxis::One { mixture: MixtureId::Layer(layer), expert });
                let other = Role::Expert { layer, expert: 0, part };
                assert_eq!(model.storage().renumbered(&tensor.name, 0), Some(roles[&other].as_str()));
            }
            _ => {
                assert_eq!(tensor.experts, ExpertAxis::Apart);
                assert_eq!(model.storage().renumbered(&tensor.name, 0), None);
            }
        }
    }
    let experts = model.spec.blocks[0].moe().unwrap().experts.len();
    let name = &model.spec.blocks[0].moe().unwrap().experts[0].up.weight;
    assert_eq!(model.storage().renumbered(name, experts), None);
}

/// The fixture with its config changed.
fn with_config(path: &Path, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> tempfile::TempDir {
    let dir = rewritten(path, |_| ());
    let file = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    std::fs::write(file, config.to_string()).unwrap();
    dir
}

fn refusal(path: &Path) -> String {
    family::open(path).err().expect("the model is refused").to_string()
}

#[test]
fn damage_done_to_experts_is_named() {
    let path = mixture();
    let spec = family::open(&path).unwrap().spec;
    let moe = spec.blocks[0].moe().unwrap();
    let (router, up) = (&moe.router.weight, &moe.experts[1].up.weight);

    let turned = rewritten(&path, |tensors| {
        let tensor = tensors.get_mut(up).unwrap();
        *tensor = tensor.t().unwrap().contiguous().unwrap();
    });
    let text = refusal(turned.path());
    assert!(text.contains(up.as_str()) && text.contains("has shape"), "{text}");

    let lost = rewritten(&path, |tensors| {
        tensors.remove(up).unwrap();
    });
    let text = refusal(lost.path());
    assert!(text.contains(up.as_str()) && text.contains("is missing"), "{text}");

    let cut = rewritten(&path, |tensors| {
        let tensor = tensors.get_mut(router).unwrap();
        *tensor = tensor.narrow(0, 0, moe.experts.len() - 1).unwrap().contiguous().unwrap();
    });
    let text = refusal(cut.path());
    assert!(text.contains(router.as_str()) && text.contains("num_experts"), "{text}");

    for wrong in [moe.experts.len() - 1, moe.experts.len() + 2] {
        let dir = with_config(&path, |config| {
            config.insert("num_experts".to_owned(), wrong.into());
        });
        let text = refusal(dir.path());
        assert!(
            text.contains(&format!("num_experts says {wrong} experts")) && text.contains(router.as_str()),
            "{text}"
        );
    }

    let half = rewritten(&path, |tensors| {
        stack(&spec, tensors, StackLayout::OutIn, "");
        let name = format!("{}.gate_up_proj", prefix(moe));
        let tensor = tensors.get_mut(&name).unwrap();
        *tensor = tensor.transpose(1, 2).unwrap().contiguous().unwrap();
    });
    let text = refusal(half.path());
    assert!(text.contains("gate_up_proj") && text.contains("lie in no layout"), "{text}");
}

#[test]
fn a_missing_shard_is_named() {
    let path = mixture().parent().unwrap().join("qwen3_moe-sharded");
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&path).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if !name.contains("00002-of") && name != "reference.safetensors" {
            std::fs::copy(&file, dir.path().join(name)).unwrap();
        }
    }
    let text = refusal(dir.path());
    assert!(text.contains("model-00002-of-00002.safetensors is missing"), "{text}");
}

/// A dense fixture dressed up as the language model of one with towers, its tensors under other names.
fn dressed(model_type: &str, names: &dyn Fn(&str) -> String, towers: &[&str], declared: &[&str]) -> tempfile::TempDir {
    let path = mixture().parent().unwrap().join("qwen2-tied");
    let dir = rewritten(&path, |tensors| {
        *tensors = tensors.drain().map(|(name, tensor)| (names(&name), tensor)).collect();
        for tower in towers {
            tensors.insert((*tower).to_owned(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
        }
    });
    let file = dir.path().join("config.json");
    let mut text: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    text["model_type"] = format!("{model_type}_text").into();
    let mut config = json!({"text_config": text, "tie_word_embeddings": true});
    for key in declared {
        config[*key] = json!({"depth": 1});
    }
    if model_type.ends_with("omni") {
        config = json!({"thinker_config": config});
    }
    config["model_type"] = model_type.into();
    std::fs::write(file, config.to_string()).unwrap();
    dir
}

#[test]
fn towers_go_along_under_their_own_names() {
    let plain = mixture().parent().unwrap().join("qwen2-tied");
    let (ids, _) = reference(&plain);
    let options = PassOptions::default();
    let wanted = logits(&plain, &ids, &options);
    let same = |name: &str| name.to_owned();
    let below = |name: &str| format!("thinker.{name}");
    let nested = |name: &str| name.replace("model.", "model.language_model.");
    let towers = ["vision_config", "audio_config"];
    let cases: [(tempfile::TempDir, usize); 4] = [
        (dressed("qwen2_5_vl", &same, &["visual.a", "visual.b"], &towers[..1]), 2),
        (dressed("qwen2_5_vl", &nested, &["model.visual.a"], &towers[..1]), 1),
        (dressed("qwen2_5_omni", &below, &["thinker.visual.a", "thinker.audio_tower.b", "talker.c"], &towers), 3),
        (dressed("qwen2_5_omni", &same, &["visual.a", "audio_tower.b"], &towers), 2),
    ];
    for (dir, carried) in &cases {
        let model = family::open(dir.path()).unwrap();
        assert!(model.warnings.is_empty(), "{:?}", model.warnings);
        let held = |part| model.storage().carried(part).count();
        assert_eq!((0..model.spec.carried.len()).map(held).sum::<usize>(), *carried);
        assert_eq!(worst(&logits(dir.path(), &ids, &options), &wanted), 0.0);
    }
    let text = refusal(dressed("qwen2_5_omni", &below, &["thinker.visual.a", "thinker.audio.b"], &towers).path());
    assert!(text.contains("declares the audio tower"), "{text}");
}

#[test]
fn a_gguf_file_is_mapped_like_any_other() {
    let path = mixture();
    let source = family::open(&path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tiny.gguf");
    write_gguf(&source, &file);
    let model = family::open(&file).unwrap();
    assert!(model.storage().tensors().iter().all(|tensor| tensor.holding != Holding::Unknown));
    let held = |name: &str| model.storage().get(name).unwrap().clone();
    let (experts, layout) = (ExpertAxis::Rows { mixture: MixtureId::Layer(0) }, StackLayout::OutIn);
    let up = held("blk.0.ffn_up_exps.weight");
    assert_eq!(up.holding, Holding::Stack { layer: 0, parts: &[Part::Up], bias: false, layout });
    assert_eq!((up.experts, held("blk.0.ffn_gate_inp.weight").experts), (experts, experts));
    assert_eq!(held("blk.0.attn_q.weight").experts, ExpertAxis::Apart);
}
