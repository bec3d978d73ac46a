//! Stages that prepare the source: `source-config`, `context-extend`, `modality`.

use super::stage_type;
use crate::recipe::choices::choices;

stage_type! {
    /// Says how the source is to be read: context, modalities, tokenizer. Changes no weight.
    SourceConfig {
        required {}
        optional {
            /// Context length in tokens.
            context_length: u64,
            /// What goes in: `text`, `vision`, `audio`, …
            input_modalities: Vec<String>,
            /// Tokenizer to use instead of the model's own.
            tokenizer: String,
            /// Batch size the result is meant for.
            target_batch_size: u32,
            /// Devices the result is meant for.
            target_devices: Vec<String>,
        }
    }
}

choices! {
    /// How positions beyond the trained context are made.
    ContextMethod { Yarn = "yarn", Ntk = "ntk", Linear = "linear", DynamicNtk = "dynamic-ntk" }
}

stage_type! {
    /// Extends the context a model can read.
    ContextExtend {
        required {
            /// Context length to reach, in tokens.
            #[schemars(range(min = 1024))]
            target_length: u64,
            /// How the positions are scaled.
            method: ContextMethod,
        }
        optional {
            /// Data set to adapt the model on.
            training_dataset: String,
            /// Optimizer steps of that adaptation.
            training_steps: u32,
        }
    }
}

choices! {
    /// A sense to add.
    ModalityKind { Vision = "vision", Audio = "audio", Multimodal = "multimodal" }
}

choices! {
    /// How an encoder's output is brought to the model's width.
    ProjectionArch { Mlp = "mlp", CrossAttention = "cross-attention", Linear = "linear" }
}

stage_type! {
    /// Adds an encoder for another modality, or checks the one the model has.
    Modality {
        required {
            /// The sense to add or to check.
            modality: ModalityKind,
            /// Hub id or path of the encoder; `own`: the one the model has.
            encoder_model: String,
        }
        optional {
            /// How the encoder's output is projected.
            projection_arch: ProjectionArch = ProjectionArch::Mlp,
            /// Leave the base model as it is while the projection is trained.
            freeze_base: bool = true,
            /// Leave the encoder as it is while the projection is trained.
            freeze_encoder: bool = true,
            /// Data set to train the projection on.
            training_dataset: String,
            /// Optimizer steps.
            training_steps: u32,
            /// Width of the projection.
            projection_dim: u32,
        }
    }
}
