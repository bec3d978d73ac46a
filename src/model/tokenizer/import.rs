//! The vocabulary of a GGUF file, turned back into the text of a `tokenizer.json`.

use serde_json::{Map, Value, json};

use super::{SpecialTokens, sentencepiece, splitting};
use crate::model::{GgufFile, ModelError};

/// `tokenizer.ggml.token_type`.
pub(super) mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

pub(super) fn tokenizer_json(file: &GgufFile) -> Result<(String, SpecialTokens), ModelError> {
    let model = file.str(&key("model"))?;
    let pre = file.opt_str(&key("pre"))?.unwrap_or("gpt-2");
    let tokens = required_texts(file, "tokens")?;
    let types = file.value(&key("token_type")).and_then(|value| value.as_i32s()).unwrap_or(&[]);
    let mut text = match model {
        "gpt2" => byte_level(file, pre, tokens)?,
        sentencepiece::MODEL => {
            let scores = file.value(&key("scores")).and_then(|value| value.as_f32s());
            let scores = scores.filter(|scores| scores.len() == tokens.len());
            let scores = scores.ok_or_else(|| file.error(&key("scores"), "needs one score per token".to_owned()))?;
            let prefix = file.opt_bool(&key("add_space_prefix"))?.unwrap_or(true);
            sentencepiece::tokenizer_json(tokens, scores, types, prefix)
        }
        other => {
            let cause = format!("its tokenizer is of kind {other:?}");
            let hint = "byte-level and sentencepiece BPE can be read; score this model by token ids";
            return Err(ModelError::unsupported(file.path(), cause, hint));
        }
    };
    text["added_tokens"] = added_tokens(tokens, types, model == sentencepiece::MODEL);
    Ok((text.to_string(), special(file, model, pre, tokens.len())?))
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

fn required_texts<'a>(file: &'a GgufFile, name: &str) -> Result<&'a [String], ModelError> {
    file.opt_texts(&key(name))?.ok_or_else(|| file.error(&key(name), "is missing".to_owned()))
}

/// Tokens that are found in a text before anything else is done to it.
fn added_tokens(tokens: &[String], types: &[i32], unknown_too: bool) -> Value {
    let is_added = |kind: i32| match kind {
        token_type::CONTROL | token_type::USER_DEFINED => true,
        token_type::UNKNOWN => unknown_too,
        _ => false,
    };
    let added = tokens.iter().zip(types).enumerate().filter(|(_, (_, kind))| is_added(**kind));
    added
        .map(|(id, (token, kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind != token_type::USER_DEFINED})
        })
        .collect()
}

fn byte_level(file: &GgufFile, pre: &str, tokens: &[String]) -> Result<Value, ModelError> {
    let splitting = splitting::named(pre).ok_or_else(|| {
        let hint = format!("known here: {}; score by token ids, or from the model's directory", splitting::known());
        ModelError::unsupported(file.path(), format!("its pre-tokenizer {pre:?} is not known to this build"), hint)
    })?;
    let vocab: Map<String, Value> = tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let pairs: Vec<Value> = required_texts(file, "merges")?
        .iter()
        .map(|merge| match split_merge(merge) {
            Some((left, right)) => Ok(json!([left, right])),
            None => Err(file.error(&key("merges"), format!("{merge:?} is not two tokens"))),
        })
        .collect::<Result<_, _>>()?;
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": splitting.normalizer(), "pre_tokenizer": splitting.pre_tokenizer(), "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": splitting.ignore_merges, "vocab": vocab, "merges": pairs},
    }))
}

fn special(file: &GgufFile, model: &str, pre: &str, tokens: usize) -> Result<SpecialTokens, ModelError> {
    let id = |name: &str| -> Result<Option<u32>, ModelError> {
        let key = key(name);
        let Some(id) = file.opt_u64(&key)? else { return Ok(None) };
        let fits = usize::try_from(id).is_ok_and(|id| id < tokens);
        let outside = || file.error(&key, format!("{id} is not a token; there are {tokens}"));
        u32::try_from(id).ok().filter(|_| fits).map(Some).ok_or_else(outside)
    };
    let bos = id("bos_token_id")?;
    // llama.cpp's own default where the file does not say.
    let by_default = model == sentencepiece::MODEL || matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
    Ok(SpecialTokens {
        bos,
        eos: id("eos_token_id")?,
        unk: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: file.opt_bool(&key("add_bos_token"))?.unwrap_or(by_default) && bos.is_some(),
    })
}

/// `left right`; the left token may itself begin with a space.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let at = first + merge[first..].find(' ')?;
    Some((&merge[..at], &merge[at + 1..]))
}
