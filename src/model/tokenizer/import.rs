//! The vocabulary of a GGUF file, turned back into the text of a `tokenizer.json`.

use serde_json::{Map, Value, json};

use super::{SpecialTokens, splitting};
use crate::model::{GgufFile, ModelError};

/// `tokenizer.ggml.token_type`.
pub(super) mod token_type {
    pub const NORMAL: i32 = 1;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
}

pub(super) fn tokenizer_json(file: &GgufFile) -> Result<(String, SpecialTokens), ModelError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let model = file.str(&key("model"))?;
    if model != "gpt2" {
        let cause = format!("its tokenizer is of kind {model:?}");
        let hint = "byte-level BPE (\"gpt2\") can be read; score this model by token ids, or from its directory";
        return Err(ModelError::unsupported(file.path(), cause, hint));
    }
    let pre = file.opt_str(&key("pre"))?.unwrap_or("gpt-2");
    let splitting = splitting::named(pre).ok_or_else(|| {
        let hint = format!("known here: {}; score by token ids, or from the model's directory", splitting::known());
        ModelError::unsupported(file.path(), format!("its pre-tokenizer {pre:?} is not known to this build"), hint)
    })?;
    let required = |name: &str| file.error(&key(name), "is missing".to_owned());
    let tokens = file.opt_texts(&key("tokens"))?.ok_or_else(|| required("tokens"))?;
    let merges = file.opt_texts(&key("merges"))?.ok_or_else(|| required("merges"))?;
    let types = file.value(&key("token_type")).and_then(|value| value.as_i32s()).unwrap_or(&[]);

    let vocab: Map<String, Value> = tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let added: Vec<Value> = tokens
        .iter()
        .zip(types)
        .enumerate()
        .filter(|(_, (_, kind))| matches!(**kind, token_type::CONTROL | token_type::USER_DEFINED))
        .map(|(id, (token, kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind == token_type::CONTROL})
        })
        .collect();
    let pairs: Vec<Value> = merges
        .iter()
        .map(|merge| match split_merge(merge) {
            Some((left, right)) => Ok(json!([left, right])),
            None => Err(file.error(&key("merges"), format!("{merge:?} is not two tokens"))),
        })
        .collect::<Result<_, _>>()?;
    let text = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": splitting.normalizer(), "pre_tokenizer": splitting.pre_tokenizer(), "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": splitting.ignore_merges, "vocab": vocab, "merges": pairs},
    });

    let id = |name: &str| -> Result<Option<u32>, ModelError> {
        let key = key(name);
        let Some(id) = file.opt_u64(&key)? else { return Ok(None) };
        let fits = usize::try_from(id).is_ok_and(|id| id < tokens.len());
        let outside = || file.error(&key, format!("{id} is not a token; there are {}", tokens.len()));
        u32::try_from(id).ok().filter(|_| fits).map(Some).ok_or_else(outside)
    };
    let bos = id("bos_token_id")?;
    // llama.cpp's own default where the file does not say.
    let by_default = matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
    let special = SpecialTokens {
        bos,
        eos: id("eos_token_id")?,
        unk: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: file.opt_bool(&key("add_bos_token"))?.unwrap_or(by_default) && bos.is_some(),
    };
    Ok((text.to_string(), special))
}

/// `left right`; the left token may itself begin with a space.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let at = first + merge[first..].find(' ')?;
    Some((&merge[..at], &merge[at + 1..]))
}
