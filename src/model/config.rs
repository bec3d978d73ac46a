//! A model's `config.json`, in the form hubs hold and in the form transformers 5 writes.
//!
//! Both forms differ in a few keys (`torch_dtype`/`dtype`, `rope_theta` + `rope_scaling`/`rope_parameters`,
//! `num_experts`/`num_local_experts`); the getters here read either. A key that is `null` counts as absent. Keys are
//! looked up at the top level first, then where models of more than one modality keep those of the language model.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ModelError;
use crate::codec::Dtype;
use crate::recipe::json::{self, Node, Style};

/// The keys under which families count their routed experts.
const EXPERT_COUNT_KEYS: [&str; 3] = ["num_experts", "num_local_experts", "n_routed_experts"];

/// Where keys of the language model may stand: at the top, or where models of more than one modality keep them. The
/// first place that has a key counts.
const LEVELS: [&[&str]; 4] = [&[], &["text_config"], &["thinker_config"], &["thinker_config", "text_config"]];

/// A parsed configuration that remembers where it came from, so that every error names file and key.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    root: Map<String, Value>,
}

/// Rotary position settings, whichever way the file spells them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies; `None` when the file leaves it to the family's default.
    pub theta: Option<f64>,
    /// `default`, `linear`, `dynamic`, `yarn`, `llama3`, `longrope`, …
    pub kind: String,
    pub factor: Option<f64>,
    pub original_max_position_embeddings: Option<f64>,
    pub low_freq_factor: Option<f64>,
    pub high_freq_factor: Option<f64>,
    pub beta_fast: Option<f64>,
    pub beta_slow: Option<f64>,
    pub attention_factor: Option<f64>,
    pub mscale: Option<f64>,
    pub mscale_all_dim: Option<f64>,
    pub partial_rotary_factor: Option<f64>,
    /// The settings as written, for what is not listed here.
    pub raw: Map<String, Value>,
}

impl Config {
    /// Reads `config.json` of a model directory, or the file itself.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let text = super::limits::read_config(&file)?;
        let value = serde_json::from_slice(&text).map_err(|e| ModelError::broken(&file, format!("not JSON: {e}")))?;
        Self::from_value(&file, value)
    }

    /// Wraps a value; `path` is what errors name.
    pub fn from_value(path: &Path, value: Value) -> Result<Self, ModelError> {
        match value {
            Value::Object(root) => Ok(Config { path: path.to_owned(), root }),
            _ => Err(ModelError::broken(path, "the configuration is not a JSON object")),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn root(&self) -> &Map<String, Value> {
        &self.root
    }

    /// The objects a key may stand in, first the one that counts.
    fn levels(&self) -> impl Iterator<Item = &Map<String, Value>> {
        LEVELS.iter().filter_map(|path| path.iter().try_fold(&self.root, |map, key| map.get(*key)?.as_object()))
    }

    /// The value of a key that is present and not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.levels().find_map(|map| map.get(key).filter(|value| !value.is_null()))
    }

    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "a string", Value::as_str)
    }
    pub fn opt_usize(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.typed(key, "a whole number that is not negative", |value| {
            let float = || value.as_f64().filter(|f| f.fract() == 0.0 && (0.0..9e15).contains(f)).map(|f| f as u64);
            value.as_u64().or_else(float).and_then(|n| usize::try_from(n).ok())
        })
    }
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a number", Value::as_f64)
    }
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "true or false", Value::as_bool)
    }
    pub fn opt_list(&self, key: &str) -> Result<Option<&Vec<Value>>, ModelError> {
        self.typed(key, "a list", Value::as_array)
    }
    /// A list of whole numbers, e.g. `mlp_only_layers`.
    pub fn opt_usizes(&self, key: &str) -> Result<Option<Vec<usize>>, ModelError> {
        self.typed(key, "a list of whole numbers", |value| {
            value.as_array()?.iter().map(|item| usize::try_from(item.as_u64()?).ok()).collect()
        })
    }

    pub fn str(&self, key: &str) -> Result<&str, ModelError> {
        self.opt_str(key)?.ok_or_else(|| self.missing(key))
    }
    pub fn usize(&self, key: &str) -> Result<usize, ModelError> {
        self.opt_usize(key)?.ok_or_else(|| self.missing(key))
    }
    pub fn f64(&self, key: &str) -> Result<f64, ModelError> {
        self.opt_f64(key)?.ok_or_else(|| self.missing(key))
    }
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        Ok(self.opt_bool(key)?.unwrap_or(default))
    }
    pub fn usize_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.opt_usize(key)?.unwrap_or(default))
    }
    pub fn f64_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        Ok(self.opt_f64(key)?.unwrap_or(default))
    }

    /// `model_type`: top level, the name families are found by.
    pub fn model_type(&self) -> Result<&str, ModelError> {
        self.str("model_type")
    }

    /// Names in `architectures`, e.g. `LlamaForCausalLM`.
    pub fn architectures(&self) -> Vec<&str> {
        self.get("architectures").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// The type the weights were saved in (`dtype` or `torch_dtype`).
    pub fn dtype(&self) -> Result<Option<Dtype>, ModelError> {
        for key in ["dtype", "torch_dtype"] {
            if let Some(name) = self.opt_str(key)? {
                let known = Dtype::named(name);
                return known.map(Some).ok_or_else(|| self.error(key, format!("{name:?} is not a known type")));
            }
        }
        Ok(None)
    }

    /// A token id that may be written as one number or a list (`eos_token_id`): all of them.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let id = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = self.typed(key, "a token id or a list of them", |value| match value {
            Value::Array(items) => items.iter().map(id).collect(),
            other => id(other).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// Routed experts per layer, under whichever key; `None` for a dense model.
    pub fn num_experts(&self) -> Result<Option<usize>, ModelError> {
        let mut found: Option<(&str, usize)> = None;
        for key in EXPERT_COUNT_KEYS {
            match (self.opt_usize(key)?, found) {
                (Some(n), Some((first, m))) if n != m => {
                    return Err(self.error(key, format!("says {n} experts, but {first:?} says {m}")));
                }
                (Some(n), None) => found = Some((key, n)),
                _ => {}
            }
        }
        Ok(found.map(|(_, n)| n))
    }

    /// The key that counts the routed experts.
    pub fn expert_key(&self) -> &'static str {
        EXPERT_COUNT_KEYS.into_iter().find(|key| self.get(key).is_some()).unwrap_or(EXPERT_COUNT_KEYS[0])
    }

    /// Sets every expert count that is present, wherever keys may stand. Returns how many were set.
    pub fn set_experts(&mut self, count: usize) -> usize {
        let mut set = 0;
        for path in LEVELS {
            let Some(map) = self.level_mut(path) else { continue };
            for key in EXPERT_COUNT_KEYS {
                if let Some(value) = map.get_mut(key).filter(|value| !value.is_null()) {
                    *value = Value::from(count);
                    set += 1;
                }
            }
        }
        set
    }

    /// Sets a key in the first place where it stands, or appends it at the top level.
    pub fn set(&mut self, key: &str, value: Value) {
        let path = LEVELS.into_iter().find(|path| self.level_mut(path).is_some_and(|map| map.contains_key(key)));
        if let Some(map) = self.level_mut(path.unwrap_or_default()) {
            map.insert(key.to_owned(), value);
        }
    }

    /// Removes a key from the places where keys of the model stand.
    pub fn remove(&mut self, key: &str) {
        for path in LEVELS {
            if let Some(map) = self.level_mut(path) {
                map.shift_remove(key);
            }
        }
    }

    fn level_mut(&mut self, path: &[&str]) -> Option<&mut Map<String, Value>> {
        path.iter().try_fold(&mut self.root, |map, key| map.get_mut(*key)?.as_object_mut())
    }

    /// Sets a key in the map where `anchor` stands, or at the top level when it stands nowhere.
    pub fn set_beside(&mut self, anchor: &str, key: &str, value: Value) {
        let path = LEVELS.into_iter().find(|path| self.level_mut(path).is_some_and(|map| map.contains_key(anchor)));
        if let Some(map) = self.level_mut(path.unwrap_or_default()) {
            map.insert(key.to_owned(), value);
        }
    }

    /// Rotary settings from `rope_parameters`, or from `rope_theta` and `rope_scaling`.
    pub fn rope(&self) -> Result<Rope, ModelError> {
        let as_map = |key| self.typed(key, "an object", Value::as_object);
        let (key, raw) = match as_map("rope_parameters")? {
            Some(map) => ("rope_parameters", map.clone()),
            None => ("rope_scaling", as_map("rope_scaling")?.cloned().unwrap_or_default()),
        };
        if raw.values().any(Value::is_object) {
            return Err(self.error(key, "one setting per layer type is not supported".to_owned()));
        }
        let number = |name: &str| match raw.get(name).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| self.error(&format!("{key}.{name}"), format!("expected a number, found {value}"))),
        };
        let kind = ["rope_type", "type"].into_iter().find_map(|name| raw.get(name)?.as_str());
        Ok(Rope {
            theta: match number("rope_theta")? {
                Some(theta) => Some(theta),
                None => self.opt_f64("rope_theta")?,
            },
            kind: kind.unwrap_or("default").to_owned(),
            factor: number("factor")?,
            original_max_position_embeddings: match number("original_max_position_embeddings")? {
                Some(n) => Some(n),
                None => self.opt_f64("original_max_position_embeddings")?,
            },
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            beta_fast: number("beta_fast")?,
            beta_slow: number("beta_slow")?,
            attention_factor: number("attention_factor")?,
            mscale: number("mscale")?,
            mscale_all_dim: number("mscale_all_dim")?,
            partial_rotary_factor: match number("partial_rotary_factor")? {
                Some(n) => Some(n),
                None => self.opt_f64("partial_rotary_factor")?,
            },
            raw,
        })
    }

    /// The file's text: key order kept, Python's style, a newline at the end as transformers writes it.
    pub fn to_json(&self) -> String {
        json::render(&Node::from_value(&Value::Object(self.root.clone())), Style::PYTHON) + "\n"
    }

    /// An error about one key of this file.
    pub fn error(&self, key: &str, cause: String) -> ModelError {
        ModelError::Key { path: self.path.clone(), key: key.to_owned(), cause }
    }

    fn missing(&self, key: &str) -> ModelError {
        self.error(key, "is missing".to_owned())
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.error(key, format!("expected {expected}, found {value}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(value: Value) -> Config {
        Config::from_value(Path::new("m/config.json"), value).unwrap()
    }

    #[test]
    fn both_spellings_mean_the_same() {
        let scaling = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
        let hub = config(json!({"torch_dtype": "bfloat16", "rope_theta": 1e6, "num_experts": 8,
            "rope_scaling": scaling, "sliding_window": null}));
        let five = config(json!({"dtype": "bfloat16", "num_local_experts": 8, "rope_parameters": {"rope_theta": 1e6,
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}));
        for config in [&hub, &five] {
            assert_eq!(config.dtype().unwrap(), Some(Dtype::BF16));
            assert_eq!(config.num_experts().unwrap(), Some(8));
            let rope = config.rope().unwrap();
            assert_eq!((rope.theta, rope.kind.as_str(), rope.factor), (Some(1e6), "yarn", Some(4.0)));
            assert_eq!(rope.original_max_position_embeddings, Some(32768.0));
        }
        assert_eq!(hub.opt_usize("sliding_window").unwrap(), None);
        assert_eq!(config(json!({"rope_scaling": null})).rope().unwrap().kind, "default");
    }

    #[test]
    fn errors_name_file_and_key() {
        let config = config(json!({"hidden_size": "64", "num_experts": 8, "num_local_experts": 6}));
        let text = |error: ModelError| error.to_string();
        insta::assert_snapshot!(text(config.usize("hidden_size").unwrap_err()),
            @r#"m/config.json: key "hidden_size": expected a whole number that is not negative, found "64""#);
        insta::assert_snapshot!(text(config.usize("vocab_size").unwrap_err()),
            @r#"m/config.json: key "vocab_size": is missing"#);
        insta::assert_snapshot!(text(config.num_experts().unwrap_err()),
            @r#"m/config.json: key "num_local_experts": says 6 experts, but "num_experts" says 8"#);
    }

    #[test]
    fn edits_keep_order_and_reach_text_config() {
        let mut config = config(json!({"z": 1, "num_experts": 8, "a": 1e-6,
            "text_config": {"num_local_experts": 8, "hidden_size": 64}}));
        assert_eq!(config.set_experts(6), 2);
        config.set("hidden_size", json!(32));
        assert_eq!(config.usize("hidden_size").unwrap(), 32);
        assert!(config.to_json().starts_with("{\n  \"z\": 1,\n  \"num_experts\": 6,\n  \"a\": 1e-06,\n"));
    }
}
