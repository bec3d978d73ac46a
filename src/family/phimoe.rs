//! Phi-3.5-MoE: layer norms, biases, two experts per token chosen by SparseMixer, rope in two lengths.

use serde_json::{Map, Value};

use super::decoder::{self, ExpertNames, Experts, Traits, Window};
use super::keys::Keys;
use super::spec::{NormKind, RoutingRule};
use super::{
    Alias, Change, Family, FamilyError, GgufKeys, GgufReader, GgufRules, Limit, ModelSpec, Part, Role, RopeScaling,
};
use crate::model::Config;

pub struct PhiMoe;

impl Family for PhiMoe {
    fn name(&self) -> &'static str {
        "phimoe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["phimoe"]
    }

    fn packs_layers(&self) -> bool {
        true
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let traits = Traits {
            norm: NormKind::Layer,
            window: Window::Always,
            theta: 1e6,
            experts: Some(experts),
            ..Traits::of(self.name())
        };
        let mut spec = decoder::spec(&traits, config)?;
        spec.head_bias = Keys(config).flag("lm_head_bias", false)?.then(|| "lm_head.bias".to_owned());
        Ok(spec)
    }

    fn gguf(&self) -> Option<GgufRules> {
        let keys = |_: &ModelSpec, config: &Config, out: &mut GgufKeys| {
            out.put(FOLDED, true);
            if let Some(jitter) = Keys(config).not_negative(JITTER)? {
                out.put(JITTER, jitter as f32);
            }
            Ok(())
        };
        let config = |file: &GgufReader<'_>, config: &mut Map<String, Value>| {
            config.extend(file.number(JITTER)?.map(|jitter| (JITTER.to_owned(), jitter.into())));
            Ok(())
        };
        let unchanged = |file: &GgufReader<'_>| Ok(!file.flag(FOLDED)?.unwrap_or(false));
        let plain = GgufRules::of("phimoe");
        Some(GgufRules { long_rope: true, reads: |_| true, change, unchanged, keys, config, limit, warnings, ..plain })
    }

    fn aliases(&self) -> &'static [Alias] {
        &[Alias::Part(".mlp.router.", ".mlp.gate."), Alias::Part(".mlp.", ".block_sparse_moe.")]
    }
}

/// Which logits the router takes for equal; the config's key, and ours in GGUF files, where there is no usual one.
const JITTER: &str = "router_jitter_noise";
/// Key of a file whose weights are folded as [`change`] says.
const FOLDED: &str = "folded_for_rms_norm_and_softmax_routing";
/// Factor on the router's weights in the file.
const FLAT: f32 = 1.0 / 4096.0;

/// llama.cpp computes this architecture with other norms (root mean square, no mean taken out) and another routing (softmax
/// of the two chosen, which sum to one, where SparseMixer gives nearly one to each). Both can be put into the weights: with
/// everything that is added to the residual stream free of its mean, the norms agree; with router logits so small that
/// the softmax is flat, each of the two experts has weight one half, and their outputs are stored doubled.
fn change(role: Role) -> Change {
    match role {
        Role::Embed | Role::OBias(_) => Change::CentredRows,
        Role::O(_) => Change::CentredColumns { factor: 1.0 },
        Role::Expert { part: Part::Down, .. } => Change::CentredColumns { factor: 2.0 },
        Role::Router(_) => Change::Times(FLAT),
        _ => Change::None,
    }
}

fn limit(spec: &ModelSpec) -> Option<Limit> {
    if spec.head_bias.is_none() || spec.blocks.iter().filter_map(|b| b.attention()).any(|a| a.o.bias.is_none()) {
        return Limit::new(
            "without attention and head biases, which llama.cpp asks for",
            "attention_bias, lm_head_bias",
        );
    }
    match &spec.rope.scaling {
        RopeScaling::Long { short, long, .. } if short.attention_factor != long.attention_factor => {
            Limit::new("with different longrope factors for short and long texts", "short_mscale equal to long_mscale")
        }
        _ => None,
    }
}

fn warnings(_: &ModelSpec) -> Vec<String> {
    let folded = "its weights are folded so that llama.cpp, which computes this architecture with other norms and another \
                  routing, gives this model's logits; where a router's best logits are within 2 % of each other they \
                  still differ";
    vec![folded.to_owned()]
}

fn experts(keys: &Keys<'_>) -> Result<Experts, FamilyError> {
    let read = decoder::experts(keys, "intermediate_size")?;
    if read.top_k != 2 {
        return Err(FamilyError::Unsupported {
            what: format!("config key num_experts_per_tok = {}", read.top_k),
            supported: "2 (SparseMixer chooses two experts)".to_owned(),
        });
    }
    let rule = RoutingRule::SparseMixer { jitter: keys.not_negative(JITTER)?.unwrap_or(0.01) };
    Ok(Experts { rule, names: ExpertNames::BLOCK_SPARSE, ..read })
}
