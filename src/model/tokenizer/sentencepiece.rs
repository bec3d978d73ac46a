//! Sentencepiece-style BPE: spaces become `▁`, characters outside the vocabulary become bytes `<0xNN>`.
//!
//! `tokenizer.json` lists merges in order; GGUF (kind `llama`) gives every token a score, and the pair whose join has
//! the highest score merges first. Score = minus the rank of the first merge that makes the token, and back: every
//! split of a token into two tokens is a merge, ordered by the score of the whole.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::import::token_type;

/// What GGUF calls this kind of tokenizer.
pub(super) const MODEL: &str = "llama";

const SPACE: &str = "\u{2581}";

/// Whether a space is put in front of a text (a `Metaspace` leaves it out where the text begins with one; GGUF readers
/// do not, a difference upstream converters accept as well); the error names the part of the file that GGUF cannot say.
pub(super) fn space_prefix(tokenizer: &Value) -> Result<bool, String> {
    let (normalizer, pre_tokenizer) = (&tokenizer["normalizer"], &tokenizer["pre_tokenizer"]);
    let is_replace = |step: &Value| {
        step["type"] == "Replace" && step["pattern"] == json!({"String": " "}) && step["content"] == SPACE
    };
    let is_prepend = |step: &Value| step["type"] == "Prepend" && step["prepend"] == SPACE;
    if pre_tokenizer.is_null() {
        let steps: Vec<&Value> = match normalizer["normalizers"].as_array() {
            Some(steps) => steps.iter().collect(),
            None => vec![normalizer],
        };
        match steps.as_slice() {
            [prepend, replace] if is_prepend(prepend) && is_replace(replace) => return Ok(true),
            [replace] if is_replace(replace) => return Ok(false),
            _ => {}
        }
    } else if normalizer.is_null() && pre_tokenizer["type"] == "Metaspace" && pre_tokenizer["replacement"] == SPACE {
        // Splitting at spaces would forbid tokens that span words, which GGUF cannot say.
        match pre_tokenizer["prepend_scheme"].as_str() {
            Some("always" | "first") if pre_tokenizer["split"] == false => return Ok(true),
            Some("never") if pre_tokenizer["split"] == false => return Ok(false),
            _ => {}
        }
    }
    Err(format!("sentencepiece-style BPE with the normalizer {normalizer} and the pre_tokenizer {pre_tokenizer}"))
}

/// One score per token from merges written `left right`.
pub(super) fn scores(tokens: &[String], merges: &[String]) -> Vec<f32> {
    let mut rank: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (i, merge) in merges.iter().enumerate() {
        // Neither side holds a space: spaces are written as `▁`.
        rank.entry(merge.replacen(' ', "", 1)).or_insert(i);
    }
    // What no merge makes comes after everything that one does; f32 holds whole numbers up to 2^24 exactly.
    let last = merges.len();
    tokens.iter().map(|token| -(*rank.get(token).unwrap_or(&last) as f32)).collect()
}

/// Marks byte and unknown tokens, and writes spaces in user-defined tokens as spaces.
pub(super) fn classify(texts: &mut [String], kinds: &mut [i32], unknown: Option<&str>) {
    for (text, kind) in texts.iter_mut().zip(kinds) {
        if Some(text.as_str()) == unknown {
            *kind = token_type::UNKNOWN;
        } else if *kind == token_type::NORMAL && is_byte(text) {
            *kind = token_type::BYTE;
        } else if *kind == token_type::USER_DEFINED {
            *text = text.replace(SPACE, " ");
        }
    }
}

fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

/// The text of a `tokenizer.json`, without its added tokens.
pub(super) fn tokenizer_json(tokens: &[String], scores: &[f32], types: &[i32], space_prefix: bool) -> Value {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let kind = |id: usize| types.get(id).copied().unwrap_or(token_type::NORMAL);
    let plain = |text: &str| ids.get(text).is_some_and(|id| kind(*id) == token_type::NORMAL);
    let mut order: Vec<usize> = (0..tokens.len()).filter(|id| kind(*id) == token_type::NORMAL).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let mut merges = Vec::new();
    for id in order {
        let token = &tokens[id];
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        merges.extend(cuts.filter(|(left, right)| plain(left) && plain(right)).map(|(l, r)| json!([l, r])));
    }
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let prepend = space_prefix.then(|| json!({"type": "Prepend", "prepend": SPACE}));
    let steps: Vec<Value> = prepend.into_iter().chain([replace]).collect();
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if space_prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let vocab: Map<String, Value> = tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let unknown = (0..tokens.len()).find(|id| kind(*id) == token_type::UNKNOWN).map(|id| &tokens[id]);
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges},
    })
}
