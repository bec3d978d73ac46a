//! Stages that make and hand out the artifact: `quant`, `package`, `publish` (alias `deliver`), `deploy`.

use super::stage_type;
use crate::recipe::choices::choices;

choices! {
    /// File format of quantized weights.
    QuantFormat { Gguf = "gguf", Mlx = "mlx", Safetensors = "safetensors", Onnx = "onnx", Frontier = "frontier" }
}

stage_type! {
    /// Writes the weights in fewer bits, once per type.
    Quant {
        required {
            /// File format.
            format: QuantFormat,
            /// Types to write, one file each: `Q8_0`, `Q4_K_M`, `F16`, …; in format `frontier` the ids of contracts.
            #[schemars(length(min = 1))]
            quant_types: Vec<String>,
        }
        optional {
            /// Importance matrix to weigh errors by: a file of llama.cpp's imatrix tool, made with this model.
            importance_matrix: String,
            /// How codes are chosen: `rtn` rounds to the nearest; `gptq` and others let errors make up for each other on
            /// the inputs of a calibration text.
            algorithm: String = "rtn".into(),
            /// Text to measure the layers' inputs on, also looked for under `calibration/` of the line; `default` is the
            /// mix of prose and code that comes with the program, and what a calibrated algorithm takes when nothing is
            /// said.
            calibration_corpus: String,
            /// Tokens of it to use.
            #[schemars(range(min = 1))]
            calibration_tokens: u64 = 32_768,
            /// Tokens of a sequence.
            #[schemars(range(min = 16))]
            calibration_length: u32 = 512,
            /// Solve a layer on inputs that its own block's earlier layers have made as compressed: better by a little,
            /// and two to four times the passes.
            true_sequential: bool = false,
            /// Columns that share a scale, in format `safetensors`: 32, 64 or 128; -1: all of a row. Layers whose rows it
            /// does not divide take the next narrower one.
            #[schemars(range(min = -1, max = 128))]
            group_size: i64,
            /// Steps of descent per block, with `algorithm` `block-tune`.
            #[schemars(range(min = 1, max = 10_000))]
            tune_steps: u64 = 64,
            /// How much of the change in its inputs, made by what was compressed before it, a layer makes up for: 0 keeps
            /// its function, 1 aims at the output it had. Not with `trueSequential`.
            #[schemars(range(min = 0.0, max = 1.0))]
            drift_share: f64 = 0.5,
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
