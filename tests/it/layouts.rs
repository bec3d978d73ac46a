//! How experts lie in the files: every layout gives the same model, and the map of the files says what each tensor is.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::Tensor;
use factoryline::engine::PassOptions;
use factoryline::family::{self, ExpertAxis, Holding, MixtureId, MoeSpec, Part, Role, StackLayout};
use serde_json::{Value, json};

use crate::oracle::{logits, mixture, reference, rewritten, worst};

/// `…experts` of a mixture.
fn prefix(moe: &MoeSpec) -> String {
    moe.experts[0].gate.weight.rsplit_once(".0.").unwrap().0.to_owned()
}

/// Puts the experts of every layer into stacks.
fn stack(path: &Path, tensors: &mut HashMap<String, Tensor>, layout: StackLayout, ending: &str) {
    for moe in family::open(path).unwrap().spec.blocks.iter().filter_map(|b| b.moe()) {
        let mut take = |name: &str| tensors.remove(name).unwrap();
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for expert in &moe.experts {
            let halves = [take(&expert.gate.weight), take(&expert.up.weight)];
            gate_up.push(match layout {
                StackLayout::InOutInterleaved => Tensor::stack(&halves, 1).unwrap().flatten(0, 1).unwrap(),
                _ => Tensor::cat(&halves, 0).unwrap(),
            });
            down.push(take(&expert.down.weight));
        }
        let turned = |list: &[Tensor]| {
            let all = Tensor::stack(list, 0).unwrap();
            if layout == StackLayout::OutIn { all } else { all.transpose(1, 2).unwrap().contiguous().unwrap() }
        };
        let prefix = prefix(moe);
        tensors.insert(format!("{prefix}.gate_up_proj{ending}"), turned(&gate_up));
        tensors.insert(format!("{prefix}.down_proj{ending}"), turned(&down));
    }
}

#[test]
fn experts_in_stacks_are_read_as_if_they_were_not() {
    let path = mixture();
    let (ids, _) = reference(&path);
    let options = PassOptions::default();
    let wanted = logits(&path, &ids, &options);
    for (layout, ending) in [
        (StackLayout::OutIn, ""),
        (StackLayout::OutIn, ".weight"),
        (StackLayout::InOut, ""),
        (StackLayout::InOut, ".weight"),
    ] {
        let stacked = rewritten(&path, |tensors| stack(&path, tensors, layout, ending));
        assert_eq!(worst(&logits(stacked.path(), &ids, &options), &wanted), 0.0, "{layout:?} {ending}");
        let model = family::open(stacked.path()).unwrap();
        assert!(model.warnings.is_empty(), "{:?}", model.warnings);
        let name = format!("{}.gate_up_proj{ending}", prefix(model.spec.blocks[0].moe().unwrap()));
        let held = model.storage().get(&name).unwrap();
        let parts: &[Part] = &[Part::Gate, Part::Up];
        assert_eq!(held.holding, Holding::Stack { layer: 0, parts, bias: false, layout });
        assert_eq!(held.experts, ExpertAxis::Rows { mixture: MixtureId::Layer(0) });
    }
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
        stack(&path, tensors, StackLayout::OutIn, "");
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
            tensors.insert(
                (*tower).to_owned(),
                Tensor::zeros(3, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap(),
            );
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
