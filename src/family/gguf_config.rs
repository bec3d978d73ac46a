//! The metadata of a GGUF file from a model's specification, and a config from the metadata of a GGUF file.

use serde_json::{Map, Value, json};

use super::gguf_names::{ROPE_FREQS, gguf_rules};
use super::rope::yarn_temperature;
use super::spec::{FfnSpec, ModelSpec};
use super::{FAMILIES, Family, FamilyError, GgufRules, RopeScaling};
use crate::model::{Config, GgufFile, GgufValue, ModelError, TensorSource};

/// The model's keys of a GGUF file: `general.architecture`, `general.name` and everything under the architecture's
/// prefix, in a fixed order. File type and tokenizer are the writer's part.
///
/// # Errors
/// The family cannot be written to GGUF.
pub fn gguf_metadata(spec: &ModelSpec, config: &Config, name: &str) -> Result<Vec<(String, GgufValue)>, FamilyError> {
    let arch = gguf_rules(spec)?.arch;
    let mut out = Keys { arch, pairs: Vec::new() };
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
    Ok(out.pairs)
}

/// What a reader of the GGUF file other than ours will compute differently, one line each.
pub fn gguf_warnings(spec: &ModelSpec) -> Vec<String> {
    let mut out = Vec::new();
    if spec.blocks.iter().filter_map(|b| b.moe()).any(|moe| !moe.renormalises()) {
        out.push(
            "llama.cpp renormalises the weights of the chosen experts, this model does not: its scores will differ"
                .to_owned(),
        );
    }
    if let RopeScaling::Yarn { truncate: false, .. } = spec.rope.scaling {
        out.push("GGUF cannot say that YaRN's range is not rounded: scores will differ slightly".to_owned());
    }
    out
}

struct Keys {
    arch: &'static str,
    pairs: Vec<(String, GgufValue)>,
}

impl Keys {
    fn put(&mut self, key: &str, value: impl Into<GgufValue>) {
        self.pairs.push((format!("{}.{key}", self.arch), value.into()));
    }

    fn count(&mut self, key: &str, n: usize) {
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
        match spec.blocks.first().map(|b| &b.ffn) {
            Some(FfnSpec::Dense(mlp)) => self.count("feed_forward_length", mlp.gate.rows),
            Some(FfnSpec::Moe(moe)) => {
                let inner = moe.experts.first().map_or(0, |e| e.gate.rows);
                self.count("feed_forward_length", config.opt_usize("intermediate_size")?.unwrap_or(inner));
                self.count("expert_count", moe.experts.len());
                self.count("expert_used_count", moe.top_k);
                self.count("expert_feed_forward_length", inner);
                self.put("expert_weights_norm", moe.renormalises());
            }
            None => {}
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
            | RopeScaling::Long { .. }
            | RopeScaling::Dynamic { .. } => {}
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

/// The family whose architecture the file names, and the config its metadata amounts to.
pub(super) fn config_of(file: &GgufFile) -> Result<(&'static dyn Family, GgufRules, Config), FamilyError> {
    let arch = file.str("general.architecture")?;
    let known = || FAMILIES.iter().copied().filter_map(|family| Some((family, family.gguf()?)));
    let (family, rules) =
        known().find(|(_, rules)| rules.arch == arch).ok_or_else(|| FamilyError::UnknownArchitecture {
            found: arch.to_owned(),
            known: known().map(|(_, rules)| rules.arch).collect::<Vec<_>>().join(", "),
        })?;
    let reader = Reader { file, arch };
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
    set("rope_parameters", Some(reader.rope()?));
    Ok((family, rules, Config::from_value(file.path(), Value::Object(config))?))
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

struct Reader<'a> {
    file: &'a GgufFile,
    arch: &'a str,
}

impl Reader<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    /// A count; zero means absent, as some writers put it.
    fn count(&self, name: &str) -> Result<Option<u64>, ModelError> {
        Ok(self.file.opt_u64(&self.key(name))?.filter(|&n| n > 0))
    }

    /// A number, with the digits a 32-bit float was meant to have.
    fn number(&self, name: &str) -> Result<Option<f64>, ModelError> {
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
        } else if kind == "none" {
            kind = "default";
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
