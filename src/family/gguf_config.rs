//! A model's config from the metadata of its GGUF file.

use serde_json::{Map, Value, json};

use super::gguf_layout::{ROPE_FACTORS, ROPE_FREQS};
use super::rope::yarn_temperature;
use super::{FAMILIES, Family, FamilyError, GgufRules};
use crate::model::{Config, GgufFile, ModelError, TensorSource};

/// The family whose architecture the file names, and the config its metadata amounts to.
pub(super) fn config_of(file: &GgufFile) -> Result<(&'static dyn Family, GgufRules, Config), FamilyError> {
    let arch = file.str("general.architecture")?;
    let reader = GgufReader { file, arch };
    let (family, rules) = family_of(&reader)?;
    let mut config = Map::new();
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            config.insert(key.to_owned(), value);
        }
    };
    let model_type = family.model_types().first().copied();
    set("model_type", model_type.map(Value::from));
    set("vocab_size", file.meta("token_embd.weight").map(|m| json!(m.rows())));
    for (key, name) in COUNTS {
        set(key, reader.count(name)?.map(Value::from));
    }
    set("rms_norm_eps", reader.number("attention.layer_norm_rms_epsilon")?.map(Value::from));
    set("tie_word_embeddings", Some(json!(file.meta("output.weight").is_none())));
    set("attention_bias", Some(json!(file.meta("blk.0.attn_q.bias").is_some())));
    set("mlp_bias", Some(json!(file.meta("blk.0.ffn_gate.bias").is_some())));
    if reader.count("expert_count")?.is_some() {
        let norm = file.opt_bool(&reader.key("expert_weights_norm"))?.unwrap_or(true);
        set("norm_topk_prob", Some(json!(norm)));
    }
    set("lm_head_bias", file.meta("output.bias").map(|_| json!(true)));
    set("rope_parameters", Some(reader.rope()?));
    (rules.config)(&reader, &mut config)?;
    Ok((family, rules, Config::from_value(file.path(), Value::Object(config))?))
}

/// The family whose architecture the file names, and among several the one that claims it.
fn family_of(reader: &GgufReader<'_>) -> Result<(&'static dyn Family, GgufRules), FamilyError> {
    let known = || FAMILIES.iter().copied().filter_map(|family| Some((family, family.gguf()?)));
    for (family, rules) in known().filter(|(_, rules)| rules.arch == reader.arch) {
        if (rules.claims)(reader)? {
            return Ok((family, rules));
        }
    }
    let mut architectures: Vec<&str> = known().map(|(_, rules)| rules.arch).collect();
    architectures.sort_unstable();
    architectures.dedup();
    Err(FamilyError::UnknownArchitecture { found: reader.arch.to_owned(), known: architectures.join(", ") })
}

/// Config keys that are plain counts, and what GGUF calls them.
const COUNTS: [(&str, &str); 10] = [
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("num_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
];

/// A file's metadata under its architecture's prefix.
pub struct GgufReader<'a> {
    pub file: &'a GgufFile,
    pub arch: &'a str,
}

impl GgufReader<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    /// A count; zero means absent, as some writers put it.
    pub fn count(&self, name: &str) -> Result<Option<u64>, ModelError> {
        Ok(self.file.opt_u64(&self.key(name))?.filter(|&n| n > 0))
    }

    /// A count that must be there.
    pub fn required_count(&self, name: &str) -> Result<u64, FamilyError> {
        self.count(name)?.ok_or_else(|| FamilyError::MissingKey { key: self.key(name) })
    }

    /// A flag; `None` when absent.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, ModelError> {
        self.file.opt_bool(&self.key(name))
    }

    /// A number, with the digits a 32-bit float was meant to have.
    pub fn number(&self, name: &str) -> Result<Option<f64>, ModelError> {
        let value = self.file.opt_f64(&self.key(name))?;
        Ok(value.map(|v| (v as f32).to_string().parse().unwrap_or(v)))
    }

    fn rope(&self) -> Result<Value, FamilyError> {
        let mut rope = Map::new();
        rope.insert("rope_theta".to_owned(), json!(self.number("rope.freq_base")?.unwrap_or(10_000.0)));
        let mut kind = self.file.opt_str(&self.key("rope.scaling.type"))?.unwrap_or("default");
        if self.file.meta(ROPE_FREQS).is_some() {
            let mut divisors = Vec::new();
            self.file.read_f32(ROPE_FREQS, &mut divisors)?;
            rope.insert("divisors".to_owned(), json!(divisors));
            kind = "divisors";
        } else if self.file.meta(ROPE_FACTORS[0]).is_some() {
            let factor = self.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
            for (name, key, mscale) in
                [(ROPE_FACTORS[0], "short_factor", "short_mscale"), (ROPE_FACTORS[1], "long_factor", "long_mscale")]
            {
                let mut divisors = Vec::new();
                self.file.read_f32(name, &mut divisors)?;
                rope.insert(key.to_owned(), json!(divisors));
                rope.insert(mscale.to_owned(), json!(factor));
            }
            kind = "longrope";
        } else if kind == "none" {
            kind = "default";
        }
        if let Some(sections) = self.file.value(&self.key("rope.dimension_sections")) {
            let sections: Vec<i32> = sections.as_i32s().unwrap_or(&[]).iter().copied().filter(|&n| n > 0).collect();
            rope.insert("mrope_section".to_owned(), json!(sections));
        }
        if let Some(factor) = self.number("rope.scaling.factor")? {
            rope.insert("factor".to_owned(), json!(factor));
            if kind == "yarn" {
                let extra = self.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
                rope.insert("attention_factor".to_owned(), json!(extra * yarn_temperature(factor, 1.0)));
            }
        }
        for (key, name) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
            if let Some(value) = self.number(&format!("rope.scaling.{name}"))? {
                rope.insert(key.to_owned(), json!(value));
            }
        }
        if let Some(context) = self.count("rope.scaling.original_context_length")? {
            rope.insert("original_max_position_embeddings".to_owned(), json!(context));
        }
        rope.insert("rope_type".to_owned(), json!(kind));
        Ok(Value::Object(rope))
    }
}
