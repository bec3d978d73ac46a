//! How experts lie in the files: every layout gives the same model, and the map of the files says what each tensor is.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::Tensor;
use factoryline::engine::PassOptions;
use factoryline::family::{self, ExpertAxis, Holding, MixtureId, MoeSpec, Part, Role, StackLayout};

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
