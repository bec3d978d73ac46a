//! From text to token ids and back: `tokenizer.json` of a model directory, or the vocabulary inside a GGUF file.
mod export;
mod import;
mod merges;
mod sentencepiece;
mod special;
mod splitting;

use std::path::{Path, PathBuf};

pub use export::{TokenizerExport, export_gguf};
pub use special::SpecialTokens;

use super::{GgufFile, GgufValue, ModelError};

/// A tokenizer, ready to encode.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    /// `tokenizer.json`, or the GGUF file.
    path: PathBuf,
}

impl Tokenizer {
    /// Opens `tokenizer.json` of a model directory (or that file itself); the special tokens come from the files beside
    /// it.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let directory = file.parent().unwrap_or(Path::new("."));
        if !file.exists() && directory.join("tokenizer.model").exists() {
            return Err(ModelError::unsupported(
                directory,
                "has a sentencepiece tokenizer.model but no tokenizer.json",
                "write one: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) in Python",
            ));
        }
        let text = super::limits::read_tokenizer(&file)?;
        let inner = parse(&file, &text)?;
        let special = SpecialTokens::of_directory(directory, &file, &text, |token| inner.token_to_id(token))?;
        Ok(Tokenizer { inner, special, path: file })
    }

    /// Rebuilds the tokenizer of a GGUF file (byte-level or sentencepiece-style BPE).
    pub fn of_gguf(file: &GgufFile) -> Result<Self, ModelError> {
        let (text, special) = import::tokenizer_json(file)?;
        Ok(Tokenizer { inner: parse(file.path(), text.as_bytes())?, special, path: file.path().to_owned() })
    }

    /// Token ids of a text, without any special token added. Special tokens spelled out in the text become themselves,
    /// as in transformers.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| self.refused("encode", &*error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a text with the special tokens its tokenizer puts around one.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode_fast(text, true).map_err(|error| self.refused("encode", &*error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids, special tokens included.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.inner.decode(ids, false).map_err(|error| self.refused("decode", &*error))
    }

    fn refused(&self, what: &str, error: &(dyn std::error::Error + Send + Sync)) -> ModelError {
        ModelError::broken(&self.path, format!("cannot {what}: {error}"))
    }

    /// The `tokenizer.*` metadata of a GGUF file for a model with `vocab_size` embedding rows: made from
    /// `tokenizer.json` ([`export_gguf`]), or taken over from the GGUF file this tokenizer came from.
    pub fn gguf_metadata(&self, vocab_size: usize) -> Result<Vec<(String, GgufValue)>, ModelError> {
        if self.path.extension().is_some_and(|ending| ending == "json") {
            return Ok(export_gguf(self.path.parent().unwrap_or(Path::new(".")), vocab_size)?.metadata);
        }
        let file = GgufFile::open(&self.path)?;
        Ok(file.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.")).cloned().collect())
    }

    /// Tokens known, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }
    /// Whether llama.cpp puts the beginning-of-sequence token in front (and into every window it scores).
    pub fn add_bos(&self) -> bool {
        self.special.add_bos
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<tokenizers::Tokenizer, ModelError> {
    let unusable = |flaw: String| ModelError::broken(path, format!("not a usable tokenizer: {flaw}"));
    if let Some(flaw) = merges::flaw(text) {
        return Err(unusable(flaw));
    }
    let mut inner = tokenizers::Tokenizer::from_bytes(text).map_err(|error| unusable(error.to_string()))?;
    // Settings of whoever saved the file; a text is always encoded whole and without filling.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|error| ModelError::broken(path, error.to_string()))?;
    Ok(inner)
}

#[cfg(test)]
mod tests;
