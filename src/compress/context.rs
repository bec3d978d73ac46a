//! A longer context by other positions: what changes in `config.json` for each method. No weight changes.
//!
//! The keys are those transformers reads, in the form the config already has: `rope_parameters`, or `rope_theta` beside
//! `rope_scaling`.

use serde_json::{Map, Value, json};

use super::CompressError;
use crate::family::{ModelSpec, RopeScaling, ntk_theta};
use crate::model::Config;

/// How positions beyond the trained context are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextMethod {
    /// Interpolation of long wavelengths, extrapolation of short ones (arXiv 2309.00071).
    Yarn,
    /// A larger base frequency, for all lengths (NTK-aware scaling).
    Ntk,
    /// All positions divided by the factor (arXiv 2306.15595).
    Linear,
    /// A base frequency that grows with the length of the text, beyond the original context only.
    DynamicNtk,
}

impl ContextMethod {
    /// The words of the recipe key `method`.
    pub fn as_str(self) -> &'static str {
        match self {
            ContextMethod::Yarn => "yarn",
            ContextMethod::Ntk => "ntk",
            ContextMethod::Linear => "linear",
            ContextMethod::DynamicNtk => "dynamic-ntk",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        [Self::Yarn, Self::Ntk, Self::Linear, Self::DynamicNtk].into_iter().find(|method| method.as_str() == word)
    }
}

/// The config of a model whose context reaches `target` tokens. `spec` is the model as it stands, `config` its config.
///
/// # Errors
/// The context is that long already; the positions are scaled already; the head is too narrow for the method.
pub fn extend_context(
    config: &Config,
    spec: &ModelSpec,
    target: usize,
    method: ContextMethod,
) -> Result<Config, CompressError> {
    let original = spec.max_positions;
    let refuse = |reason, hint| Err(CompressError::Refused { what: "context extension", reason, hint });
    if target <= original {
        let reason = format!("the model reaches {original} tokens already, targetLength is {target}");
        return refuse(reason, "raise targetLength, or remove the stage");
    }
    if spec.rope.scaling != RopeScaling::Default {
        let reason =
            "the model's positions are scaled already (see rope_scaling or rope_parameters in its config.json)";
        return refuse(reason.to_owned(), "start from the model before its context was extended");
    }
    if spec.rope.dims <= 2 {
        return refuse(format!("{} rotated dimensions are too few to rescale", spec.rope.dims), "use another model");
    }
    let factor = target as f64 / original as f64;
    let mut config = config.clone();
    match method {
        ContextMethod::Ntk => set_theta(&mut config, ntk_theta(spec.rope.theta, factor, spec.rope.dims)),
        ContextMethod::Linear => set_scaling(&mut config, json!({ "rope_type": "linear", "factor": factor })),
        ContextMethod::Yarn => {
            let rule = json!({ "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original });
            set_scaling(&mut config, rule);
        }
        ContextMethod::DynamicNtk => set_scaling(&mut config, json!({ "rope_type": "dynamic", "factor": factor })),
    }
    // Readers of a dynamic rule take max_position_embeddings for the original context.
    if method != ContextMethod::DynamicNtk {
        match config.get("max_position_embeddings") {
            Some(_) => config.set("max_position_embeddings", target.into()),
            None => config.set_beside("num_hidden_layers", "max_position_embeddings", target.into()),
        }
    }
    Ok(config)
}

/// The object under `key`, if the config has it.
fn object(config: &Config, key: &str) -> Option<Map<String, Value>> {
    config.get(key).and_then(Value::as_object).cloned()
}

fn set_theta(config: &mut Config, theta: f64) {
    if let Some(mut rope) = object(config, "rope_parameters") {
        rope.insert("rope_theta".to_owned(), theta.into());
        config.set("rope_parameters", Value::Object(rope));
    } else if config.get("rope_theta").is_some() {
        config.set("rope_theta", theta.into());
    } else {
        config.set_beside("num_hidden_layers", "rope_theta", theta.into());
    }
}

/// Adds `rule` to what the config says about positions; other keys (a base frequency, the sections of a multimodal
/// rope) stay.
fn set_scaling(config: &mut Config, rule: Value) {
    let key = if object(config, "rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let known = object(config, key);
    let mut rope = known.clone().unwrap_or_default();
    for (name, value) in rule.as_object().into_iter().flatten() {
        rope.insert(name.clone(), value.clone());
    }
    // The name that older readers use must not say something else.
    if rope.contains_key("type") {
        rope.insert("type".to_owned(), rope["rope_type"].clone());
    }
    let rope = Value::Object(rope);
    match known {
        Some(_) => config.set(key, rope),
        None => config.set_beside("num_hidden_layers", key, rope),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::open;
    use std::path::{Path, PathBuf};

    const METHODS: [ContextMethod; 4] =
        [ContextMethod::Yarn, ContextMethod::Ntk, ContextMethod::Linear, ContextMethod::DynamicNtk];

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
    }

    /// Equal but for the last digits of a number.
    fn same(a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::Number(a), Value::Number(b)) => {
                let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
                (a - b).abs() <= 1e-12 * b.abs()
            }
            (Value::Object(a), Value::Object(b)) => {
                a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
            }
            _ => a == b,
        }
    }

    #[test]
    fn configs_are_those_the_reference_logits_were_computed_with() {
        let model = open(&fixtures().join("models/llama")).unwrap();
        for method in METHODS {
            let ours = extend_context(&model.config, &model.spec, 1024, method).unwrap();
            let wanted = Config::open(&fixtures().join("rope").join(method.as_str())).unwrap();
            let (ours, wanted) = (Value::Object(ours.root().clone()), Value::Object(wanted.root().clone()));
            assert!(same(&ours, &wanted), "{method:?}: {ours}");
        }
    }

    #[test]
    fn the_form_of_the_config_is_kept() {
        let five = open(&fixtures().join("models/qwen3_moe-transformers5")).unwrap();
        for method in METHODS {
            let ours = extend_context(&five.config, &five.spec, 512, method).unwrap();
            assert!(ours.get("rope_scaling").is_none() && ours.get("rope_theta").is_none(), "{method:?}");
            let reread = crate::family::spec_of(&ours).unwrap();
            assert_eq!(reread.max_positions, 512, "{method:?}");
        }
        // What stands in text_config stays there; the sections of a multimodal rope stay.
        let nested = json!({ "text_config": { "num_hidden_layers": 2, "max_position_embeddings": 128,
            "rope_theta": 1e4, "rope_scaling": { "type": "default", "mrope_section": [2, 3, 3] } } });
        let nested = Config::from_value(Path::new("config.json"), nested).unwrap();
        let llama = open(&fixtures().join("models/llama")).unwrap();
        let ours = extend_context(&nested, &llama.spec, 1024, ContextMethod::Yarn).unwrap();
        insta::assert_snapshot!(serde_json::to_string(ours.root()).unwrap(), @r#"{"text_config":{"num_hidden_layers":2,"max_position_embeddings":1024,"rope_theta":10000.0,"rope_scaling":{"type":"yarn","mrope_section":[2,3,3],"rope_type":"yarn","factor":8.0,"original_max_position_embeddings":128}}}"#);
        let ours = extend_context(&nested, &llama.spec, 1024, ContextMethod::Ntk).unwrap();
        assert!(ours.root()["text_config"]["rope_theta"].as_f64().unwrap() > 1e5);
    }

    #[test]
    fn what_cannot_be_extended_is_refused() {
        let refused = |fixture: &str, target| {
            let model = open(&fixtures().join("models").join(fixture)).unwrap();
            extend_context(&model.config, &model.spec, target, ContextMethod::Linear).unwrap_err().to_string()
        };
        insta::assert_snapshot!(refused("llama", 128), @"context extension: the model reaches 128 tokens already, targetLength is 128");
        insta::assert_snapshot!(refused("llama-linear-rope", 1024), @"context extension: the model's positions are scaled already (see rope_scaling or rope_parameters in its config.json)");
    }
}
