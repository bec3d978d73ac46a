//! How Qwen3.5 lies in a GGUF file, dense or with experts.
//!
//! llama.cpp takes value head v of a delta net to belong to key head v mod K (tiled); the model means v div (V / K)
//! (grouped). So every tensor with a dimension of value heads is reordered. Norm gains are stored whole, not less one, and
//! the decay as −exp(A).

use serde_json::{Map, Value, json};

use super::piece::{Change, Piece};
use super::spec::{BlockSpec, DeltaNetSpec, MixerSpec, ModelSpec};
use super::{Delta, ExpectedTensor, FamilyError, GgufKeys, GgufReader, GgufRules, Limit, Placed, Role, gguf_keys};
use crate::model::Config;

pub(super) fn rules(arch: &'static str) -> GgufRules {
    let name = |role| match role {
        Role::FfnNorm(_) => Some("post_attention_norm.weight"),
        _ => None,
    };
    let change = |role| match role {
        Role::AttnNorm(_) | Role::FfnNorm(_) | Role::QNorm(_) | Role::KNorm(_) | Role::FinalNorm => Change::Plus(1.0),
        Role::Delta { tensor: Delta::ALog, .. } => Change::NegatedExp,
        _ => Change::None,
    };
    GgufRules { name, change, placing, keys: write_keys, config: read_keys, limit, ..GgufRules::of(arch) }
}

fn delta_of(block: &BlockSpec) -> Option<&DeltaNetSpec> {
    match &block.mixer {
        MixerSpec::DeltaNet(delta) => Some(delta),
        _ => None,
    }
}

/// Value heads in the order of the file.
fn placing(spec: &ModelSpec, tensor: &ExpectedTensor) -> Option<Vec<Placed>> {
    let Role::Delta { layer, tensor: which } = tensor.role else { return None };
    let delta = delta_of(&spec.blocks[layer])?;
    let &DeltaNetSpec { key_heads, value_heads, value_dim, .. } = delta;
    let sharing = value_heads / key_heads;
    let before = 2 * key_heads * delta.key_dim;
    // Heads of `width` elements from element `start` on, first those with the same place among their key head's.
    let tiled = |start: usize, width: usize| Piece {
        source: tensor.name.clone(),
        start,
        loops: vec![(sharing, width), (key_heads, sharing * width), (width, 1)],
    };
    // The queries and keys before them stay.
    let after_keys =
        |cols: usize| vec![Piece::run(&tensor.name, 0, before * cols), tiled(before * cols, value_dim * cols)];
    let (name, pieces) = match which {
        Delta::Qkv => ("attn_qkv.weight", after_keys(delta.qkv.cols)),
        Delta::Conv => ("ssm_conv1d.weight", after_keys(delta.kernel)),
        Delta::Z => ("attn_gate.weight", vec![tiled(0, value_dim * delta.z.cols)]),
        Delta::A => ("ssm_alpha.weight", vec![tiled(0, delta.a.cols)]),
        Delta::B => ("ssm_beta.weight", vec![tiled(0, delta.b.cols)]),
        Delta::ALog => ("ssm_a", vec![tiled(0, 1)]),
        Delta::DtBias => ("ssm_dt.bias", vec![tiled(0, 1)]),
        Delta::Out => {
            let columns = tiled(0, value_dim);
            let rows = vec![(delta.out.rows, delta.out.cols)];
            ("ssm_out.weight", vec![Piece { loops: [rows, columns.loops.clone()].concat(), ..columns }])
        }
        Delta::Norm => return None,
    };
    let shape = if which == Delta::Conv { vec![delta.qkv.rows, delta.kernel] } else { tensor.shape.clone() };
    Some(vec![Placed { name, shape, pieces }])
}

/// Every how manieth block is one of full attention; `None` when they are not at intervals.
fn interval(spec: &ModelSpec) -> Option<usize> {
    let interval = spec.blocks.iter().position(|block| block.attention().is_some())? + 1;
    let regular = |block: &BlockSpec| block.attention().is_some() == (block.index + 1).is_multiple_of(interval);
    spec.blocks.iter().all(regular).then_some(interval)
}

fn write_keys(spec: &ModelSpec, config: &Config, out: &mut GgufKeys) -> Result<(), FamilyError> {
    gguf_keys::write_sections(spec, config, out)?;
    if let Some(delta) = spec.blocks.iter().find_map(delta_of) {
        out.count("ssm.conv_kernel", delta.kernel);
        out.count("ssm.state_size", delta.key_dim);
        out.count("ssm.group_count", delta.key_heads);
        out.count("ssm.time_step_rank", delta.value_heads);
        out.count("ssm.inner_size", delta.value_heads * delta.value_dim);
    }
    out.count("full_attention_interval", interval(spec).unwrap_or(0));
    if let Some(shared) = spec.blocks.iter().find_map(|block| block.moe()?.shared.as_ref()) {
        out.count("expert_shared_feed_forward_length", shared.mlp.gate.rows);
    }
    Ok(())
}

fn read_keys(file: &GgufReader<'_>, config: &mut Map<String, Value>) -> Result<(), FamilyError> {
    let value_heads = file.required_count("ssm.time_step_rank")?;
    let turned = file.required_count("rope.dimension_count")? as f64;
    let head_dim = file.required_count("attention.key_length")? as f64;
    for (key, value) in [
        ("linear_conv_kernel_dim", json!(file.required_count("ssm.conv_kernel")?)),
        ("linear_key_head_dim", json!(file.required_count("ssm.state_size")?)),
        ("linear_num_key_heads", json!(file.required_count("ssm.group_count")?)),
        ("linear_num_value_heads", json!(value_heads)),
        ("linear_value_head_dim", json!(file.required_count("ssm.inner_size")? / value_heads)),
        ("full_attention_interval", json!(file.count("full_attention_interval")?.unwrap_or(4))),
        ("shared_expert_intermediate_size", json!(file.count("expert_shared_feed_forward_length")?)),
    ] {
        config.insert(key.to_owned(), value);
    }
    if let Some(rope) = config.get_mut("rope_parameters").and_then(Value::as_object_mut) {
        rope.insert("partial_rotary_factor".to_owned(), json!(turned / head_dim));
    }
    Ok(())
}

/// What llama.cpp does not compute in these architectures.
fn limit(spec: &ModelSpec) -> Option<Limit> {
    if interval(spec).is_none() {
        return Limit::new("whose blocks of full attention do not come at intervals", "layer_types at intervals");
    }
    let widths = |delta: &DeltaNetSpec| delta.key_dim != delta.value_dim;
    if spec.blocks.iter().filter_map(delta_of).any(widths) {
        return Limit::new("whose delta nets have keys and values of different widths", "the same width");
    }
    None
}
