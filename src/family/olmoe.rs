//! OLMoE: norms over whole rows of queries and keys, weights of the chosen experts not renormalised.

use serde_json::{Map, Value};

use super::decoder::{self, QkNorm, Traits};
use super::keys::Keys;
use super::spec::{MixerSpec, MoeSpec};
use super::{Family, FamilyError, GgufReader, GgufRules, Limit, ModelSpec};
use crate::model::Config;

pub struct Olmoe;

impl Family for Olmoe {
    fn name(&self) -> &'static str {
        "olmoe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["olmoe"]
    }

    fn packs_layers(&self) -> bool {
        true
    }

    fn loads_in_mlx(&self) -> bool {
        true
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let experts = |keys: &Keys<'_>| decoder::experts(keys, "intermediate_size");
        let traits = Traits { qk_norm: QkNorm::Rows, experts: Some(experts), ..Traits::of(self.name()) };
        let mut spec = decoder::spec(&traits, config)?;
        let clip = Keys(config).positive("clip_qkv")?;
        for block in &mut spec.blocks {
            if let MixerSpec::Attention(attention) = &mut block.mixer {
                attention.clip = clip;
            }
        }
        Ok(spec)
    }

    fn gguf(&self) -> Option<GgufRules> {
        let config = |file: &GgufReader<'_>, config: &mut Map<String, Value>| {
            config.insert("norm_topk_prob".to_owned(), file.flag("expert_weights_norm")?.unwrap_or(false).into());
            Ok(())
        };
        Some(GgufRules { config, limit, ..GgufRules::of("olmoe") })
    }
}

/// What llama.cpp does not compute in this architecture.
fn limit(spec: &ModelSpec) -> Option<Limit> {
    if spec.blocks.iter().filter_map(|b| b.attention()).any(|a| a.clip.is_some()) {
        return Limit::new("that clips queries, keys and values (clip_qkv)", "clip_qkv: null");
    }
    if spec.blocks.iter().filter_map(|b| b.attention()).any(|a| a.heads != a.kv_heads) {
        return Limit::new("whose query heads share key heads", "as many key heads as query heads");
    }
    if spec.blocks.iter().filter_map(|b| b.moe()).any(MoeSpec::renormalises) {
        return Limit::new("that renormalises the weights of the chosen experts", "norm_topk_prob: false");
    }
    None
}
