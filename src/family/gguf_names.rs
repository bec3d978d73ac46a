//! Names of a model's tensors in a GGUF file, after llama.cpp's conventions.

use super::role::{Delta, Latent, Part, Role};

/// The usual GGUF name of a role; an architecture may have others. The experts of a layer share one name: they are one stacked tensor.
pub(super) fn usual_name(role: Role) -> String {
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
