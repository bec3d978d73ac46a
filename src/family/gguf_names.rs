//! Names and layout of a model's tensors in a GGUF file, after llama.cpp's conventions.

use super::role::{Delta, Latent, Part, Role};
use super::spec::{FfnSpec, ModelSpec};
use super::{FAMILIES, Family, FamilyError, GgufRules, RopeScaling, by_name};

/// One tensor of a GGUF file and where its values come from.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    pub name: String,
    /// Row-major shape `[.., rows, cols]`; the file stores the dimensions reversed.
    pub shape: Vec<usize>,
    /// The role of the first source; `None` for values that no tensor of the model holds.
    pub role: Option<Role>,
    pub content: GgufContent,
}

#[derive(Clone, Debug, PartialEq)]
pub enum GgufContent {
    /// One tensor of the model as it is.
    Copy(String),
    /// A q or k weight or bias whose rows are reordered: see [`permuted_row`].
    Permute { source: String, heads: usize },
    /// One matrix per expert, stacked along a new first dimension.
    Stack(Vec<String>),
    /// Values that no tensor of the model holds (frequency divisors).
    Values(Vec<f32>),
}

/// The GGUF name of a role. The experts of a layer share one name: they are one stacked tensor.
pub fn gguf_name(role: Role) -> String {
    let part_name = |part| match part {
        Part::Gate => "ffn_gate",
        Part::Up => "ffn_up",
        Part::Down => "ffn_down",
    };
    let in_block = |layer: usize, rest: &str| format!("blk.{layer}.{rest}");
    match role {
        Role::Embed => "token_embd.weight".to_owned(),
        Role::FinalNorm => "output_norm.weight".to_owned(),
        Role::FinalNormBias => "output_norm.bias".to_owned(),
        Role::Head => "output.weight".to_owned(),
        Role::HeadBias => "output.bias".to_owned(),
        Role::AttnNorm(l) => in_block(l, "attn_norm.weight"),
        Role::AttnNormBias(l) => in_block(l, "attn_norm.bias"),
        Role::Q(l) => in_block(l, "attn_q.weight"),
        Role::QBias(l) => in_block(l, "attn_q.bias"),
        Role::K(l) => in_block(l, "attn_k.weight"),
        Role::KBias(l) => in_block(l, "attn_k.bias"),
        Role::V(l) => in_block(l, "attn_v.weight"),
        Role::VBias(l) => in_block(l, "attn_v.bias"),
        Role::O(l) => in_block(l, "attn_output.weight"),
        Role::OBias(l) => in_block(l, "attn_output.bias"),
        Role::QNorm(l) => in_block(l, "attn_q_norm.weight"),
        Role::KNorm(l) => in_block(l, "attn_k_norm.weight"),
        Role::Sinks(l) => in_block(l, "attn_sinks.weight"),
        Role::Latent { layer, tensor } => in_block(layer, &format!("{}.weight", latent_name(tensor))),
        Role::LatentBias { layer, tensor } => in_block(layer, &format!("{}.bias", latent_name(tensor))),
        Role::Delta { layer, tensor } => in_block(layer, delta_name(tensor)),
        Role::FfnNorm(l) => in_block(l, "ffn_norm.weight"),
        Role::FfnNormBias(l) => in_block(l, "ffn_norm.bias"),
        Role::Mlp { layer, part } => in_block(layer, &format!("{}.weight", part_name(part))),
        Role::MlpBias { layer, part } => in_block(layer, &format!("{}.bias", part_name(part))),
        Role::Router(l) => in_block(l, "ffn_gate_inp.weight"),
        Role::RouterBias(l) => in_block(l, "ffn_gate_inp.bias"),
        Role::RouterCorrection(l) => in_block(l, "exp_probs_b.bias"),
        Role::Expert { layer, part, .. } => in_block(layer, &format!("{}_exps.weight", part_name(part))),
        Role::ExpertBias { layer, part, .. } => in_block(layer, &format!("{}_exps.bias", part_name(part))),
        Role::Shared { layer, part } => in_block(layer, &format!("{}_shexp.weight", part_name(part))),
        Role::SharedBias { layer, part } => in_block(layer, &format!("{}_shexp.bias", part_name(part))),
        Role::SharedGate(l) => in_block(l, "ffn_gate_inp_shexp.weight"),
    }
}

fn latent_name(tensor: Latent) -> &'static str {
    match tensor {
        Latent::QA => "attn_q_a",
        Latent::QANorm => "attn_q_a_norm",
        Latent::QB => "attn_q_b",
        Latent::KvA => "attn_kv_a_mqa",
        Latent::KvANorm => "attn_kv_a_norm",
        Latent::KvB => "attn_kv_b",
    }
}

fn delta_name(tensor: Delta) -> &'static str {
    match tensor {
        Delta::Qkv => "attn_qkv.weight",
        Delta::Z => "attn_gate.weight",
        Delta::A => "ssm_alpha.weight",
        Delta::B => "ssm_beta.weight",
        Delta::Conv => "ssm_conv1d.weight",
        Delta::ALog => "ssm_a",
        Delta::DtBias => "ssm_dt.bias",
        Delta::Norm => "ssm_norm.weight",
        Delta::Out => "ssm_out.weight",
    }
}

/// In a permuted q or k of head width `head_dim`, row `row` of a head comes from this row of the half-split layout:
/// rotary pairs (i, i + head_dim/2) become neighbours.
pub fn permuted_row(row: usize, head_dim: usize) -> usize {
    row / 2 + (row % 2) * (head_dim / 2)
}

/// How the model's family is written to GGUF.
///
/// # Errors
/// This build has no rules for it.
pub(super) fn gguf_rules(spec: &ModelSpec) -> Result<GgufRules, FamilyError> {
    by_name(spec.family).and_then(Family::gguf).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().filter(|f| f.gguf().is_some()).map(|f| f.name()).collect();
        FamilyError::Unsupported {
            what: format!("a GGUF file of a model of the family {:?}", spec.family),
            supported: format!("GGUF files of {}", known.join(", ")),
        }
    })
}

/// Every tensor of the model's GGUF file, in the order a forward pass meets them.
///
/// # Errors
/// The family cannot be written to GGUF; blocks differ in their number of experts, or attention has a window, which a
/// GGUF file of these families cannot say.
pub fn gguf_tensors(spec: &ModelSpec) -> Result<Vec<GgufTensor>, FamilyError> {
    let permutes = gguf_rules(spec)?.permutes_qk;
    if has_uneven_experts(spec) {
        return Err(FamilyError::Unsupported {
            what: "a GGUF file of a model whose blocks differ in their number of experts".to_owned(),
            supported: "the same number of experts in every block, or none".to_owned(),
        });
    }
    if spec.blocks.iter().filter_map(|b| b.attention()).any(|a| a.window.is_some()) {
        return Err(FamilyError::Unsupported {
            what: "a GGUF file of a model with sliding-window attention".to_owned(),
            supported: "full causal attention".to_owned(),
        });
    }
    if let RopeScaling::Long { .. } = spec.rope.scaling {
        return Err(FamilyError::Unsupported {
            what: "a GGUF file of a model with rope scaling longrope".to_owned(),
            supported: "default, linear, llama3, yarn".to_owned(),
        });
    }
    if let RopeScaling::Dynamic { .. } = spec.rope.scaling {
        return Err(FamilyError::Unsupported {
            what: "a GGUF file of a model whose positions are scaled by the length of the text (dynamic NTK)"
                .to_owned(),
            supported: "default, linear, llama3 and yarn rope scaling".to_owned(),
        });
    }
    let mut out: Vec<GgufTensor> = Vec::new();
    for tensor in spec.tensors() {
        let name = gguf_name(tensor.role);
        let content = match tensor.role {
            Role::Expert { expert: 0, .. } => GgufContent::Stack(vec![tensor.name]),
            Role::Expert { .. } => {
                if let Some(GgufTensor { content: GgufContent::Stack(sources), shape, .. }) =
                    out.iter_mut().rev().find(|t| t.name == name)
                {
                    sources.push(tensor.name);
                    shape[0] += 1;
                }
                continue;
            }
            Role::Q(l) | Role::QBias(l) if permutes => {
                GgufContent::Permute { source: tensor.name, heads: attention_heads(spec, l).0 }
            }
            Role::K(l) | Role::KBias(l) if permutes => {
                GgufContent::Permute { source: tensor.name, heads: attention_heads(spec, l).1 }
            }
            _ => GgufContent::Copy(tensor.name),
        };
        let mut shape = tensor.shape;
        if matches!(content, GgufContent::Stack(_)) {
            shape.insert(0, 1);
        }
        out.push(GgufTensor { name, shape, role: Some(tensor.role), content });
    }
    if let RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) = spec.rope.scaling {
        let values: Vec<f32> = spec.rope.frequency_divisors().iter().map(|&d| d as f32).collect();
        let shape = vec![values.len()];
        let content = GgufContent::Values(values);
        out.push(GgufTensor { name: ROPE_FREQS.to_owned(), shape, role: None, content });
    }
    Ok(out)
}

/// Query and key heads of a block whose rows a permutation concerns.
pub(super) fn attention_heads(spec: &ModelSpec, block: usize) -> (usize, usize) {
    spec.blocks[block].attention().map_or((1, 1), |a| (a.heads, a.kv_heads))
}

/// Name of the tensor that carries per-pair frequency divisors.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// True when the model has a mixture in some but not all blocks, or mixtures of different sizes: GGUF holds one
/// expert count for the whole file, and readers of these families expect a mixture in every block.
fn has_uneven_experts(spec: &ModelSpec) -> bool {
    let counts: Vec<usize> = spec
        .blocks
        .iter()
        .map(|b| match &b.ffn {
            FfnSpec::Moe(moe) => moe.experts.len(),
            FfnSpec::Dense(_) => 0,
        })
        .collect();
    counts.windows(2).any(|pair| pair[0] != pair[1])
}
