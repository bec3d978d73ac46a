//! Stages that make and hand out the artifact: `quant`, `package`, `publish` (alias `deliver`), `deploy`.

use super::stage_type;
use crate::recipe::choices::choices;

choices! {
    /// File format of quantized weights.
    QuantFormat { Gguf = "gguf", Mlx = "mlx", Safetensors = "safetensors", Onnx = "onnx" }
}

stage_type! {
    /// Writes the weights in fewer bits, once per type.
    Quant {
        required {
            /// File format.
            format: QuantFormat,
            /// Types to write, one file each: `Q8_0`, `Q4_K_M`, `F16`, …
            #[schemars(length(min = 1))]
            quant_types: Vec<String>,
        }
        optional {
            /// Importance matrix to weigh errors by: a file of llama.cpp's imatrix tool, made with this model.
            importance_matrix: String,
            /// Devices the files are meant for.
            device_targets: Vec<String> = Vec::new(),
        }
    }
}

stage_type! {
    /// Puts the artifact together: files, manifest, executed recipe, model card.
    Package {
        required {
            /// What the package is, e.g. `gguf` or `safetensors`.
            format: String,
        }
        optional {
            /// Runtime it is meant for.
            runtime: String,
            /// What it is tuned for.
            optimization: String = "balanced".into(),
            /// Devices to try it on.
            validate_on: Vec<String> = Vec::new(),
            /// Put the tokenizer's files in.
            include_tokenizer: bool = true,
        }
    }
}

stage_type! {
    /// Publishes the artifact. `deliver` reads the same.
    Publish {
        required {}
        optional {
            /// Organisation to publish under; `publish` needs it, `deliver` does not.
            org: String,
            /// Name of the repository, from the base's name and the domain.
            repo_name_template: String = "{base}-{domain}-forged".into(),
            /// Publish the recipe with it.
            include_alloy: bool = true,
            /// Write the model card from measured figures.
            card_from_benchmarks: bool = true,
            /// Tags of the repository.
            tags: Vec<String> = Vec::new(),
            /// Keep the repository private.
            private: bool = false,
            /// SHA-256 of the model card.
            card_hash: String,
            /// Where to publish, e.g. `huggingface`.
            destination: String,
            /// Name of the repository, instead of the template's.
            repo_name: String,
        }
    }
}

stage_type! {
    /// Starts the artifact somewhere.
    Deploy {
        required {
            /// Where.
            target: String,
        }
        optional {
            /// Ask it whether it is well.
            health_check: bool = true,
            /// Send it a first request.
            warmup: bool = true,
            /// Requests at a time.
            max_concurrency: u32,
            /// Start more when there is more to do.
            auto_scale: bool,
        }
    }
}
