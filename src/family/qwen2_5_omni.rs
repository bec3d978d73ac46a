//! Qwen2.5-Omni: the thinker's language model is run; its vision and audio towers, the talker and the vocoder go along.
//!
//! Published files hold all of it, the thinker below `thinker.`; what is saved of the thinker alone lacks that.

use super::decoder::{self, AttentionBias, Traits};
use super::keys::Keys;
use super::{Alias, Family, FamilyError, GgufRules, ModelSpec, gguf_keys};
use crate::model::Config;

pub struct Qwen25Omni;

impl Family for Qwen25Omni {
    fn name(&self) -> &'static str {
        "qwen2_5_omni"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen2_5_omni", "qwen2_5_omni_thinker"]
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let keys = Keys(config);
        let traits = Traits { attention_bias: AttentionBias::Qkv, ..Traits::of(self.name()) };
        let mut spec = decoder::spec(&traits, config)?;
        spec.carried = vec![
            decoder::carried(&keys, "vision tower", "visual.", "vision_config"),
            decoder::carried(&keys, "audio tower", "audio_tower.", "audio_config"),
        ];
        let speaks = keys.flag("enable_audio_output", true)?;
        for (name, prefix, key) in
            [("talker", "talker.", "talker_config"), ("vocoder", "token2wav.", "token2wav_config")]
        {
            let mut part = decoder::carried(&keys, name, prefix, key);
            part.required &= speaks;
            spec.carried.push(part);
        }
        Ok(spec)
    }

    /// The thinker is written as the language model it equals, and read back as that.
    fn gguf(&self) -> Option<GgufRules> {
        Some(GgufRules { keys: gguf_keys::write_sections, claims: |_| Ok(false), ..GgufRules::of("qwen2vl") })
    }

    fn aliases(&self) -> &'static [Alias] {
        &[Alias::Prefix("thinker.", "")]
    }
}
