//! OLMoE: norms over whole rows of queries and keys, weights of the chosen experts not renormalised.

use super::decoder::{self, QkNorm, Traits};
use super::keys::Keys;
use super::spec::MixerSpec;
use super::{Family, FamilyError, ModelSpec};
use crate::model::Config;

pub struct Olmoe;

impl Family for Olmoe {
    fn name(&self) -> &'static str {
        "olmoe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["olmoe"]
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
}
