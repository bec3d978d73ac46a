//! The metadata of a GGUF file: what the model is, how its text is split, what type its matrices have.

use super::{CompressError, QuantPlan};
use crate::family::OpenModel;
use crate::model::gguf::{GgufValue, file_type};

/// The fields of a header, in order.
pub struct GgufMetadata {
    pub fields: Vec<(String, GgufValue)>,
    /// What readers will miss.
    pub warning: Option<String>,
}

/// Assembles the metadata of `model` written as `plan` says, under the name `name`. Nothing in it depends on time or
/// place: the same model and plan give the same bytes.
pub fn gguf_metadata(model: &OpenModel, plan: &QuantPlan, name: &str) -> Result<GgufMetadata, CompressError> {
    let mut fields = crate::family::gguf_metadata(&model.spec, &model.config, name)?;
    fields.push(("general.file_type".into(), GgufValue::U32(file_type(plan.target).unwrap_or(0))));
    fields.push(("general.quantization_version".into(), GgufValue::U32(2)));
    match model.tokenizer()? {
        Some(tokenizer) => {
            fields.extend(tokenizer.gguf_metadata(model.spec.vocab)?);
            Ok(GgufMetadata { fields, warning: None })
        }
        None => {
            fields.push(("tokenizer.ggml.model".into(), GgufValue::String("no_vocab".into())));
            let warning = format!("{} has no tokenizer.json: the GGUF file holds no vocabulary", model.path.display());
            Ok(GgufMetadata { fields, warning: Some(warning) })
        }
    }
}
