//! The metadata of a GGUF file: what the model is, how its text is split, what type its matrices have.

use super::{CompressError, ImportanceMatrix, QuantPlan};
use crate::family::{self, OpenModel};
use crate::model::export_gguf;
use crate::model::gguf::GgufValue;

/// The fields of a header, in order.
pub struct GgufMetadata {
    pub fields: Vec<(String, GgufValue)>,
    /// What readers will miss or compute differently, one line each.
    pub warnings: Vec<String>,
}

/// Assembles the metadata of `model` written as `plan` says, under the name `name`. Nothing in it depends on time or
/// place: the same model and plan give the same bytes.
///
/// # Errors
/// A tokenizer that has no counterpart in GGUF: a file with another one would only show as worse quality.
pub fn gguf_metadata(
    model: &OpenModel,
    plan: &QuantPlan,
    importance: Option<&ImportanceMatrix>,
    name: &str,
) -> Result<GgufMetadata, CompressError> {
    let mut fields = family::gguf_metadata(&model.spec, &model.config, name)?;
    let mut warnings = family::gguf_warnings(&model.spec, model.stored.metas());
    fields.push(("general.file_type".into(), plan.file_type.into()));
    fields.push(("general.quantization_version".into(), 2u32.into()));
    if let Some(matrix) = importance {
        fields.push(("quantize.imatrix.file".into(), matrix.file_name().into()));
        fields.push(("quantize.imatrix.entries_count".into(), matrix.entries().into()));
    }
    let tokenizer = tokenizer(model)?;
    if tokenizer.is_empty() {
        fields.push(("tokenizer.ggml.model".into(), "no_vocab".into()));
        warnings.push(format!("{} has no tokenizer: the GGUF file holds no vocabulary", model.path.display()));
    }
    fields.extend(tokenizer);
    Ok(GgufMetadata { fields, warnings })
}

/// The `tokenizer.*` keys; none for a model without a tokenizer.
fn tokenizer(model: &OpenModel) -> Result<Vec<(String, GgufValue)>, CompressError> {
    if let Some(file) = model.gguf() {
        let keys = file.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer."));
        return Ok(keys.cloned().collect());
    }
    if model.path.join("tokenizer.json").is_file() {
        return Ok(export_gguf(&model.path, model.spec.vocab)?.metadata);
    }
    Ok(Vec::new())
}
