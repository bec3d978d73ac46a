//! The metadata of a GGUF file from a model's specification.

use super::gguf_rules::gguf_rules;
use super::rope::yarn_temperature;
use super::spec::{BlockSpec, FfnSpec, ModelSpec};
use super::{FamilyError, RopeScaling};
use crate::model::{Config, GgufValue, TensorMeta};

/// The model's keys of a GGUF file: `general.architecture`, `general.name` and everything under the architecture's
/// prefix, in a fixed order. File type and tokenizer are the writer's part.
///
/// # Errors
/// The family cannot be written to GGUF.
pub fn gguf_metadata(spec: &ModelSpec, config: &Config, name: &str) -> Result<Vec<(String, GgufValue)>, FamilyError> {
    let rules = gguf_rules(spec)?;
    let arch = rules.arch;
    let mut out = GgufKeys { arch, pairs: Vec::new() };
    out.pairs.push(("general.architecture".to_owned(), arch.into()));
    out.pairs.push(("general.type".to_owned(), "model".into()));
    out.pairs.push(("general.name".to_owned(), name.into()));
    out.count("vocab_size", spec.vocab);
    out.count("context_length", spec.max_positions);
    out.count("embedding_length", spec.hidden);
    out.count("block_count", spec.blocks.len());
    out.attention(spec);
    out.feed_forward(spec, config)?;
    out.rope(spec);
    (rules.keys)(spec, config, &mut out)?;
    Ok(out.pairs)
}

/// What a GGUF file of the model lacks, and what readers of it other than ours will compute differently, one line each.
pub fn gguf_warnings(spec: &ModelSpec, stored: &[TensorMeta]) -> Vec<String> {
    let mut out = gguf_rules(spec).map(|rules| (rules.warnings)(spec)).unwrap_or_default();
    if let RopeScaling::Yarn { truncate: false, .. } = spec.rope.scaling {
        out.push("GGUF cannot say that YaRN's range is not rounded: scores will differ slightly".to_owned());
    }
    let left_out = spec.carried.iter().filter(|part| stored.iter().any(|tensor| part.holds(&tensor.name)));
    out.extend(
        left_out.map(|part| format!("the GGUF file holds the language model only: the {} stays out", part.name)),
    );
    out
}

/// The keys of a file's header in the making.
pub struct GgufKeys {
    arch: &'static str,
    pairs: Vec<(String, GgufValue)>,
}

impl GgufKeys {
    /// `{arch}.{key} = value`, in place of what the key was before.
    pub fn put(&mut self, key: &str, value: impl Into<GgufValue>) {
        let (key, value) = (format!("{}.{key}", self.arch), value.into());
        match self.pairs.iter_mut().find(|(known, _)| *known == key) {
            Some(known) => known.1 = value,
            None => self.pairs.push((key, value)),
        }
    }

    /// A key that holds a count.
    pub fn count(&mut self, key: &str, n: usize) {
        self.put(key, u32::try_from(n).unwrap_or(u32::MAX));
    }

    fn attention(&mut self, spec: &ModelSpec) {
        if let Some(a) = spec.blocks.iter().find_map(|b| b.attention()) {
            self.count("attention.head_count", a.heads);
            self.count("attention.head_count_kv", a.kv_heads);
            self.count("attention.key_length", a.head_dim);
            self.count("attention.value_length", a.head_dim);
        }
        self.put("attention.layer_norm_rms_epsilon", spec.norm_eps as f32);
    }

    fn feed_forward(&mut self, spec: &ModelSpec, config: &Config) -> Result<(), FamilyError> {
        let dense = spec.blocks.iter().find_map(|block| match &block.ffn {
            FfnSpec::Dense(mlp) => Some(mlp.gate.rows),
            FfnSpec::Moe(_) => None,
        });
        let moe = spec.blocks.iter().find_map(BlockSpec::moe);
        let inner = moe.and_then(|moe| moe.experts.first()).map(|expert| expert.gate.rows);
        let length = match dense {
            Some(length) => Some(length),
            None => config.opt_usize("intermediate_size")?.or(inner),
        };
        if let Some(length) = length {
            self.count("feed_forward_length", length);
        }
        if let Some(moe) = moe {
            self.count("expert_count", moe.experts.len());
            self.count("expert_used_count", moe.top_k);
            self.count("expert_feed_forward_length", inner.unwrap_or(0));
            self.put("expert_weights_norm", moe.renormalises());
        }
        Ok(())
    }

    fn rope(&mut self, spec: &ModelSpec) {
        self.count("rope.dimension_count", spec.rope.dims);
        self.put("rope.freq_base", spec.rope.theta as f32);
        match &spec.rope.scaling {
            // Llama 3's and given divisors are a tensor.
            RopeScaling::Default
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Divisors(_)
            // Refused with the tensors.
            | RopeScaling::Dynamic { .. } => {}
            // The divisors are tensors. A reader has one factor for both lengths.
            RopeScaling::Long { original_context, short, .. } => {
                self.put("rope.scaling.attn_factor", short.attention_factor as f32);
                self.count("rope.scaling.original_context_length", *original_context);
            }
            RopeScaling::Linear { factor } => {
                self.put("rope.scaling.type", "linear");
                self.put("rope.scaling.factor", *factor as f32);
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor, .. } => {
                self.put("rope.scaling.type", "yarn");
                self.put("rope.scaling.factor", *factor as f32);
                self.count("rope.scaling.original_context_length", *original_context);
                let extra = attention_factor / yarn_temperature(*factor, 1.0);
                for (key, value, default) in [
                    ("attn_factor", extra, 1.0),
                    ("yarn_beta_fast", *beta_fast, 32.0),
                    ("yarn_beta_slow", *beta_slow, 1.0),
                ] {
                    if (value - default).abs() > 1e-9 {
                        self.put(&format!("rope.scaling.{key}"), value as f32);
                    }
                }
            }
        }
    }
}

/// Writes how a multimodal rope shares out its pairs, without which readers of such an architecture stop.
pub(super) fn write_sections(spec: &ModelSpec, config: &Config, out: &mut GgufKeys) -> Result<(), FamilyError> {
    out.put("rope.dimension_sections", rope_sections(spec, config)?);
    Ok(())
}

/// How many pairs turn by each of the four positions of a multimodal rope (text has one position in all of them).
fn rope_sections(spec: &ModelSpec, config: &Config) -> Result<Vec<i32>, FamilyError> {
    let given = config.rope()?.raw.get("mrope_section").and_then(serde_json::Value::as_array).cloned();
    let given = given.unwrap_or_default();
    let mut sections: Vec<i32> = given.iter().filter_map(|n| i32::try_from(n.as_u64()?).ok()).collect();
    if sections.is_empty() {
        let (pairs, third) = (spec.rope.dims / 2, spec.rope.dims / 6);
        sections = [pairs - 2 * third, third, third].map(|n| n as i32).to_vec();
    }
    sections.resize(4, 0);
    Ok(sections)
}
