//! Special tokens: which ids they have and whether a text begins with one.

use std::path::Path;

use serde_json::Value;

use crate::model::ModelError;

/// The special tokens of a tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unk: Option<u32>,
    pub pad: Option<u32>,
    /// A text begins with `bos`.
    pub add_bos: bool,
}

impl SpecialTokens {
    /// Reads them from the files beside `tokenizer.json`. The names come from `tokenizer_config.json`, then
    /// `special_tokens_map.json`; ids not named there from `config.json` and `generation_config.json`.
    ///
    /// `add_bos` is what the post-processor's template does, when it has one, else `add_bos_token` of
    /// `tokenizer_config.json`, else false: this is what transformers does with the file.
    pub(super) fn of_directory(
        directory: &Path,
        tokenizer: &Path,
        tokenizer_json: &[u8],
        id_of: impl Fn(&str) -> Option<u32>,
    ) -> Result<Self, ModelError> {
        let config = read_json(&directory.join("tokenizer_config.json"))?;
        let map = read_json(&directory.join("special_tokens_map.json"))?;
        let ids = [read_json(&directory.join("config.json"))?, read_json(&directory.join("generation_config.json"))?];
        let find = |role: &str| -> Option<u32> {
            let named = [&config, &map].into_iter().find_map(|file| token_text(file.get(format!("{role}_token"))?));
            let by_id = || ids.iter().find_map(|file| first_id(file.get(format!("{role}_token_id"))?));
            named.and_then(&id_of).or_else(by_id)
        };
        let tokenizer_value: Value = serde_json::from_slice(tokenizer_json)
            .map_err(|error| ModelError::broken(tokenizer, format!("not JSON: {error}")))?;
        let bos = find("bos");
        let template = first_of_template(&tokenizer_value["post_processor"]);
        let add_bos = match template {
            Some(first) => first.is_some_and(|token| id_of(token).is_some() && id_of(token) == bos),
            None => config.get("add_bos_token").and_then(Value::as_bool).unwrap_or(false) && bos.is_some(),
        };
        Ok(SpecialTokens { bos, eos: find("eos"), unk: find("unk"), pad: find("pad"), add_bos })
    }
}

/// Absent files count as empty; broken ones are an error.
pub(super) fn read_json(path: &Path) -> Result<Value, ModelError> {
    if !path.try_exists().map_err(ModelError::io("read", path))? {
        return Ok(Value::Null);
    }
    let text = crate::model::limits::read_config(path)?;
    serde_json::from_slice(&text).map_err(|error| ModelError::broken(path, format!("not JSON: {error}")))
}

/// A token is written as text or as an object with its `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn first_id(value: &Value) -> Option<u32> {
    let id = value.as_u64().or_else(|| value.as_array()?.first()?.as_u64())?;
    u32::try_from(id).ok()
}

/// `None` without a template; `Some(None)` when its text does not begin with a special token.
fn first_of_template(post_processor: &Value) -> Option<Option<&str>> {
    match post_processor["type"].as_str()? {
        "TemplateProcessing" => Some(post_processor["single"][0]["SpecialToken"]["id"].as_str()),
        "Sequence" => post_processor["processors"].as_array()?.iter().find_map(first_of_template),
        _ => None,
    }
}
