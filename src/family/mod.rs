//! Model families: which tensors a model has, what each does, and how it is named in each file format.
//!
//! Enters: a path to a Hugging Face directory or a GGUF file. Leaves: an [`OpenModel`]: the checked [`ModelSpec`], the
//! config, and a tensor source with Hugging Face names whatever the file on disk calls them. A new family is one file
//! and one line in [`FAMILIES`]; nothing outside this room knows a family by name.

mod decoder;
mod error;
mod gguf_config;
mod gguf_keys;
mod gguf_layout;
mod gguf_names;
mod gguf_rules;
mod inputs;
mod keys;
mod locate;
mod open;
mod piece;
mod qwen3_5_gguf;
mod role;
mod rope;
mod spec;
mod stacks;
mod storage;
mod tensors;
mod view;

#[cfg(test)]
mod tests;

pub use error::FamilyError;
pub use gguf_config::GgufReader;
pub use gguf_keys::{GgufKeys, gguf_metadata, gguf_warnings};
pub use gguf_layout::{GgufContent, GgufTensor, gguf_tensors};
pub use gguf_rules::{GgufRules, Limit, Placed};
pub use inputs::LayerInput;
pub use open::{Format, OpenModel, open};
pub use piece::{Change, Piece};
pub use role::{Delta, ExpectedTensor, Latent, Part, Role};
pub use rope::{Pairing, RopeScaling, RopeSpec, Stretch, ntk_theta};
pub use spec::{
    Activation, AttentionSpec, BlockSpec, Carried, DeltaNetSpec, ExpertSpec, Factors, FfnSpec, LatentAttentionSpec,
    LatentQuery, LinearSpec, MixerSpec, MlpSpec, ModelSpec, MoeSpec, NormKind, NormSpec, RoutingRule, SharedExpertSpec,
};
pub use stacks::StackLayout;
pub use storage::{ExpertAxis, Holding, MixtureId, Storage, StoredTensor};

use crate::model::Config;

/// A kind of model: how its config is read and how it is written to GGUF.
pub trait Family: Sync {
    /// Name in the registry.
    fn name(&self) -> &'static str;
    /// Values of `model_type` in config.json that mean this family.
    fn model_types(&self) -> &'static [&'static str];
    /// The model's specification from its config alone.
    ///
    /// # Errors
    /// A key that is missing or wrong, or a feature this build does not compute.
    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError>;
    /// How the family is written to GGUF; `None`: this build cannot.
    fn gguf(&self) -> Option<GgufRules> {
        None
    }
    /// Directories in which its linear layers are packed one by one (compressed-tensors) were seen to load in transformers
    /// with the logits this engine computes: docs/VERIFICATION.md.
    fn packs_layers(&self) -> bool {
        false
    }
    /// Directories in MLX's layout were seen to load in mlx_lm with the logits this engine computes:
    /// docs/VERIFICATION.md.
    fn loads_in_mlx(&self) -> bool {
        false
    }
    /// Other names its tensors go by: applied to every stored name, in this order, each at most once.
    fn aliases(&self) -> &'static [Alias] {
        &[]
    }
    /// Readers of its config take the head width from the key `head_dim`, so that it need not follow from the hidden size
    /// and the number of heads.
    fn says_head_width(&self) -> bool {
        true
    }
    /// The ways its stacks of experts may lie.
    fn layouts(&self) -> &'static [StackLayout] {
        &[StackLayout::OutIn, StackLayout::InOut]
    }
}

/// Another name for tensors: (as stored, as the specification has it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alias {
    /// What a name begins with.
    Prefix(&'static str, &'static str),
    /// The first place in a name.
    Part(&'static str, &'static str),
}

crate::registry! {
    /// Every family this build can run.
    pub FAMILIES: dyn Family {
        deepseek_v2 => DeepseekV2,
        gpt_oss => GptOss,
        granitemoe => GraniteMoe,
        llama => Llama,
        mixtral => Mixtral,
        olmoe => Olmoe,
        phimoe => PhiMoe,
        qwen2 => Qwen2,
        qwen2_5_omni => Qwen25Omni,
        qwen2_5_vl => Qwen25Vl,
        qwen3 => Qwen3,
        qwen3_5 => Qwen35,
        qwen3_5_moe => Qwen35Moe,
        qwen3_moe => Qwen3Moe,
        qwen3_vl => Qwen3Vl,
        qwen3_vl_moe => Qwen3VlMoe,
    }
}

/// The family a config belongs to.
///
/// # Errors
/// The config has no `model_type`, or one no family claims (the error lists those known).
pub fn of_config(config: &Config) -> Result<&'static dyn Family, FamilyError> {
    let found = keys::Keys(config).text("model_type")?;
    let found = found.ok_or_else(|| FamilyError::MissingKey { key: "model_type".to_owned() })?;
    let family = FAMILIES.iter().copied().find(|f| f.model_types().contains(&found));
    family.ok_or_else(|| FamilyError::UnknownModelType { found: found.to_owned(), known: known_model_types() })
}

/// The specification of a config's model, by whatever family claims it.
///
/// # Errors
/// As [`of_config`] and [`Family::spec`].
pub fn spec_of(config: &Config) -> Result<ModelSpec, FamilyError> {
    let spec = of_config(config)?.spec(config)?;
    Ok(ModelSpec { max_positions: spec.rope.reach(spec.max_positions), ..spec })
}

/// The family by its registry name.
pub fn by_name(name: &str) -> Option<&'static dyn Family> {
    FAMILIES.iter().copied().find(|f| f.name() == name)
}

fn known_model_types() -> String {
    FAMILIES.iter().flat_map(|f| f.model_types()).copied().collect::<Vec<_>>().join(", ")
}
