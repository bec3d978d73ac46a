//! The tokenizer of a model directory as GGUF metadata.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::import::token_type;
use super::special::read_json;
use super::{SpecialTokens, sentencepiece, splitting};
use crate::model::{GgufValue, ModelError};

/// Metadata that llama.cpp needs to tokenize as the original does.
#[derive(Clone, Debug)]
pub struct TokenizerExport {
    /// `tokenizer.*` keys in a fixed order.
    pub metadata: Vec<(String, GgufValue)>,
    pub special: SpecialTokens,
    /// llama.cpp's name for the way of splitting.
    pub pre: &'static str,
    /// Tokens of the tokenizer; ids from here up to the model's vocabulary are filled with unused ones.
    pub tokens: usize,
}

/// Reads the tokenizer of `directory` for a model with `vocab_size` embedding rows.
///
/// Byte-level BPE in one of the known ways of splitting, or sentencepiece-style BPE; anything else is [`ModelError::Unsupported`], because a wrong
/// name for the splitting would only show as worse quality. Ids without a token (gaps, and rows beyond the last token)
/// become unused tokens `[PADn]`.
pub fn export_gguf(directory: &Path, vocab_size: usize) -> Result<TokenizerExport, ModelError> {
    let path = directory.join("tokenizer.json");
    let text = crate::model::limits::read_tokenizer(&path)?;
    let tokenizer: Value =
        serde_json::from_slice(&text).map_err(|error| ModelError::broken(&path, format!("not JSON: {error}")))?;
    let model = &tokenizer["model"];
    let refuse = |what: String| {
        let known = splitting::known();
        let hint = format!("GGUF export knows sentencepiece-style BPE, and byte-level BPE split like {known}");
        ModelError::unsupported(&path, format!("{what} has no counterpart in GGUF known to this build"), hint)
    };
    if model["type"].as_str().unwrap_or("BPE") != "BPE" {
        return Err(refuse(format!("its model of type {}", model["type"])));
    }
    let kind = if model["byte_fallback"] == true {
        Kind::Sentencepiece { space_prefix: sentencepiece::space_prefix(&tokenizer).map_err(refuse)? }
    } else {
        Kind::ByteLevel { pre: splitting::recognise(&tokenizer).map_err(refuse)? }
    };

    let entries = token_entries(&path, &tokenizer)?;
    let tokens = entries.last_key_value().map_or(0, |(id, _)| *id as usize + 1);
    if tokens > vocab_size {
        let cause = format!("knows {tokens} tokens, but the model has only {vocab_size} embedding rows");
        return Err(ModelError::broken(&path, cause).with_hint("tokenizer and weights do not belong together"));
    }
    let (mut texts, mut kinds): (Vec<String>, Vec<i32>) = (0..vocab_size)
        .map(|id| {
            let entry = u32::try_from(id).ok().and_then(|id| entries.get(&id));
            entry.cloned().unwrap_or_else(|| (format!("[PAD{id}]"), token_type::UNUSED))
        })
        .unzip();

    let ids: BTreeMap<&str, u32> = entries.iter().map(|(id, (text, _))| (text.as_str(), *id)).collect();
    let special = SpecialTokens::of_directory(directory, &path, &text, |token| ids.get(token).copied())?;
    let mut metadata: Vec<(String, GgufValue)> = Vec::new();
    let mut put = |key: &str, value: GgufValue| metadata.push((format!("tokenizer.{key}"), value));
    let pre = match kind {
        Kind::ByteLevel { pre } => {
            put("ggml.model", "gpt2".into());
            put("ggml.pre", pre.into());
            put("ggml.tokens", texts.into());
            put("ggml.token_type", kinds.into());
            put("ggml.merges", merges(&path, model)?.into());
            pre
        }
        Kind::Sentencepiece { space_prefix } => {
            let scores = sentencepiece::scores(&texts, &merges(&path, model)?);
            sentencepiece::classify(&mut texts, &mut kinds, model["unk_token"].as_str());
            put("ggml.model", sentencepiece::MODEL.into());
            put("ggml.pre", "default".into());
            put("ggml.tokens", texts.into());
            put("ggml.scores", scores.into());
            put("ggml.token_type", kinds.into());
            put("ggml.add_space_prefix", space_prefix.into());
            "default"
        }
    };
    for (name, id) in [
        ("bos_token_id", special.bos),
        ("eos_token_id", special.eos),
        ("unknown_token_id", special.unk),
        ("padding_token_id", special.pad),
    ] {
        // An id without an embedding row would make readers fail; it is as good as absent.
        if let Some(id) = id.filter(|id| (*id as usize) < vocab_size) {
            put(&format!("ggml.{name}"), id.into());
        }
    }
    put("ggml.add_bos_token", special.add_bos.into());
    for (key, template) in chat_templates(directory)? {
        put(&key, template);
    }
    Ok(TokenizerExport { metadata, special, pre, tokens })
}

/// The two kinds of vocabulary GGUF files of these families hold.
enum Kind {
    ByteLevel { pre: &'static str },
    Sentencepiece { space_prefix: bool },
}

/// Text and type of every token by id: the vocabulary, then the added tokens over it.
fn token_entries(path: &Path, tokenizer: &Value) -> Result<BTreeMap<u32, (String, i32)>, ModelError> {
    let id_of = |value: &Value, token: &str| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| ModelError::broken(path, format!("token {token:?} has no usable id")))
    };
    let mut entries = BTreeMap::new();
    for (token, id) in tokenizer["model"]["vocab"].as_object().into_iter().flatten() {
        if entries.insert(id_of(id, token)?, (token.clone(), token_type::NORMAL)).is_some() {
            return Err(ModelError::broken(path, format!("token {token:?} has the id of another one ({id})")));
        }
    }
    for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let Some(token) = added["content"].as_str() else {
            return Err(ModelError::broken(path, "an added token has no content"));
        };
        let kind = if added["special"] == true { token_type::CONTROL } else { token_type::USER_DEFINED };
        entries.insert(id_of(&added["id"], token)?, (token.to_owned(), kind));
    }
    if entries.is_empty() {
        return Err(ModelError::broken(path, "has no vocabulary"));
    }
    Ok(entries)
}

/// Merges as `left right`, from either way of writing them.
fn merges(path: &Path, model: &Value) -> Result<Vec<String>, ModelError> {
    let list = model["merges"].as_array().ok_or_else(|| ModelError::broken(path, "has no list of merges"))?;
    list.iter()
        .map(|merge| match merge {
            Value::String(text) => Some(text.clone()),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => Some(format!("{left} {right}")),
                _ => None,
            },
            _ => None,
        })
        .map(|merge| merge.ok_or_else(|| ModelError::broken(path, "a merge is not a pair of tokens")))
        .collect()
}

/// Chat templates: `chat_template.jinja`, else those of `tokenizer_config.json` (one text, or several with names).
fn chat_templates(directory: &Path) -> Result<Vec<(String, GgufValue)>, ModelError> {
    let file = directory.join("chat_template.jinja");
    match std::fs::read_to_string(&file) {
        Ok(text) => return Ok(vec![("chat_template".to_owned(), text.into())]),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(ModelError::io("read", &file)(error)),
    }
    let config = read_json(&directory.join("tokenizer_config.json"))?;
    let mut found = Vec::new();
    match &config["chat_template"] {
        Value::String(text) => found.push(("chat_template".to_owned(), text.as_str().into())),
        Value::Array(templates) => {
            let mut names = Vec::new();
            for template in templates {
                if let (Some(name), Some(text)) = (template["name"].as_str(), template["template"].as_str()) {
                    if name == "default" {
                        found.push(("chat_template".to_owned(), text.into()));
                    } else {
                        found.push((format!("chat_template.{name}"), text.into()));
                        names.push(name.to_owned());
                    }
                }
            }
            if !names.is_empty() {
                found.push(("chat_templates".to_owned(), names.into()));
            }
        }
        _ => {}
    }
    Ok(found)
}
