//! What `config.json` says about packed weights.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{EXPERTS, PackedForm, PackedMatrix, PackedPlan, class_of};
use crate::codec::Dtype;
use crate::model::Config;

/// The names under which servers join layers that read the same input.
const JOINED: [(&str, &str); 4] = [
    ("q_proj", "qkv_proj"),
    ("gate_proj", "gate_up_proj"),
    ("in_proj_qkv", "in_proj_qkvz"),
    ("in_proj_a", "in_proj_ba"),
];

/// The configuration of a directory of `plan`, from that of the model it is made from.
pub fn packed_config(config: &Config, plan: &PackedPlan) -> Config {
    let mut config = config.clone();
    for key in ["quantization_config", "quantization"] {
        config.remove(key);
    }
    let key = if config.get("torch_dtype").is_some() { "torch_dtype" } else { "dtype" };
    let half = if plan.half == Dtype::F16 { "float16" } else { "bfloat16" };
    config.set(key, half.into());
    if let PackedForm::Ints { bits, symmetric } = plan.kind.form {
        config.set("quantization_config", quantization(plan, bits, symmetric));
    }
    config
}

fn quantization(plan: &PackedPlan, bits: usize, symmetric: bool) -> Value {
    let group = |(i, (size, targets)): (usize, (Option<usize>, Vec<String>))| {
        let strategy = if size.is_some() { "group" } else { "channel" };
        let weights = json!({
            "num_bits": bits,
            "type": "int",
            "symmetric": symmetric,
            "strategy": strategy,
            "group_size": size,
            "block_structure": null,
            "dynamic": false,
            "actorder": null,
            "observer": "minmax",
            "observer_kwargs": {},
        });
        let scheme = json!({
            "targets": targets,
            "weights": weights,
            "input_activations": null,
            "output_activations": null,
            "format": "pack-quantized",
        });
        (format!("group_{i}"), scheme)
    };
    let groups: serde_json::Map<String, Value> = groups(&plan.matrices).into_iter().enumerate().map(group).collect();
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored(plan),
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
    })
}

/// Groups and the layers that take them. All but one name their layers; the last is for every other linear layer: that of
/// the experts, which readers look up without a name, or else that of most layers.
fn groups(matrices: &[PackedMatrix]) -> Vec<(Option<usize>, Vec<String>)> {
    let mut classes: BTreeMap<String, (Option<usize>, usize)> = BTreeMap::new();
    for matrix in matrices {
        classes.entry(class_of(&matrix.layer)).or_insert((matrix.group, 0)).1 += 1;
    }
    let mut sizes: BTreeMap<Option<usize>, usize> = BTreeMap::new();
    classes.values().for_each(|(group, count)| *sizes.entry(*group).or_default() += count);
    let most = sizes.iter().max_by_key(|(_, count)| **count).map(|(group, _)| *group);
    let usual = classes.get(EXPERTS).map(|(group, _)| *group).or(most).unwrap_or_default();
    let mut groups = Vec::new();
    for size in sizes.into_keys().filter(|size| *size != usual) {
        let mut leaves: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for class in classes.iter().filter(|(_, (group, _))| *group == size).map(|(class, _)| class) {
            let (parent, leaf) = class.split_once('.').unwrap_or((class, ""));
            let leaves = leaves.entry(parent).or_default();
            leaves.push(leaf);
            leaves.extend(JOINED.iter().filter(|(one, _)| *one == leaf).map(|(_, joined)| *joined));
        }
        let pattern = |(parent, leaves): (&str, Vec<&str>)| format!(r"re:.*\.{parent}\.({})$", leaves.join("|"));
        groups.push((size, leaves.into_iter().map(pattern).collect()));
    }
    groups.push((usual, vec!["Linear".to_owned()]));
    groups
}

/// Patterns for every linear layer that is not packed.
fn ignored(plan: &PackedPlan) -> Vec<String> {
    let mut patterns = vec!["lm_head".to_owned()];
    if plan.matrices.iter().any(|matrix| class_of(&matrix.layer) == EXPERTS) {
        // What transformers calls routers in memory, whatever the files call them.
        patterns.push(r"re:.*\.router$".to_owned());
    }
    for prefix in &plan.carried {
        let pattern = format!("re:.*{}.*", prefix.replace('.', r"\."));
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    for dense in plan.dense.iter().filter(|dense| dense.is_linear) {
        let Some(layer) = dense.tensor.name.strip_suffix(".weight") else { continue };
        let is_carried = plan.carried.iter().any(|prefix| layer.starts_with(prefix));
        if is_carried || layer.ends_with("lm_head") {
            continue;
        }
        let class = class_of(layer);
        let pattern = format!(r"re:.*\.{}$", class.replace('.', r"\."));
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    patterns
}
