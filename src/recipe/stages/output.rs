//! Stages that make and hand out the artifact: `quant`, `package`, `publish` (alias `deliver`), `deploy`.

use super::stage_type;
use crate::recipe::choices::choices;

choices! {
    /// File format of quantized weights.
    QuantFormat { Gguf = "gguf", Mlx = "mlx", Safetensors = "safetensors", Onnx = "onnx", Frontier = "frontier" }
}

choices! {
    /// Rotation that weights are folded into before they are quantized.
    Rotation { None = "none", Hadamard = "hadamard", HadamardValues = "hadamard-values" }
}

stage_type! {
    /// What a quantized file shall come to: exactly one of these keys.
    QuantTarget {
        required {}
        optional {
            /// Bytes of the whole file, header included.
            #[schemars(range(min = 1))]
            bytes: u64,
            /// Bits of the whole file for each of the model's parameters.
            #[schemars(range(min = 0.5, max = 32.0))]
            bits_per_weight: f64,
            /// Mean KL divergence from the model it is made from, nats per token, on text that was not calibrated on: the
            /// smallest file that keeps within it.
            #[schemars(range(min = 0.000001, max = 10.0))]
            max_kld: f64,
        }
    }
}

/// What the one key of a [`QuantTarget`] says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QuantAim {
    Bytes(u64),
    BitsPerWeight(f64),
    MaxKld(f64),
}

impl QuantTarget {
    /// What it aims at; else what is wrong with it.
    pub fn aim(&self) -> Result<QuantAim, String> {
        let aims = [
            self.bytes.map(QuantAim::Bytes),
            self.bits_per_weight.map(QuantAim::BitsPerWeight),
            self.max_kld.map(QuantAim::MaxKld),
        ];
        let said: Vec<QuantAim> = aims.into_iter().flatten().collect();
        match (said.as_slice(), self.extra.keys().next()) {
            (_, Some(unknown)) => Err(format!("the key `{unknown}` is unknown here")),
            ([aim], None) => Ok(*aim),
            ([], None) => Err("says nothing".to_owned()),
            (_, None) => Err("says more than one thing".to_owned()),
        }
    }
}

impl QuantAim {
    /// As file names say it: `4.50bpw`, `96468992bytes`, `kld0.05`.
    pub fn label(self) -> String {
        match self {
            QuantAim::Bytes(bytes) => format!("{bytes}bytes"),
            QuantAim::BitsPerWeight(bits) => {
                let text = bits.to_string();
                let digits = text.split_once('.').map_or(0, |(_, digits)| digits.len());
                format!("{bits:.*}bpw", digits.max(2))
            }
            QuantAim::MaxKld(kld) => format!("kld{kld}"),
        }
    }
}

stage_type! {
    /// Writes the weights in fewer bits, once per type.
    Quant {
        required {
            /// File format.
            format: QuantFormat,
            /// Types to write, one file each: `Q8_0`, `Q4_K_M`, `F16`, …; in format `mlx` `MLX4` and so on; in format
            /// `frontier` the ids of contracts. With `target`: types of single tensors (`Q4_K`, `Q8_0`, …) to choose from.
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
            /// Columns that share a scale: in format `safetensors` 32, 64 or 128 (when not said), or -1 for all of a row; in
            /// format `mlx` 32, 64 (when not said) or 128. Layers whose rows it does not divide take the next narrower one.
            #[schemars(range(min = -1, max = 128))]
            group_size: i64,
            /// Steps of descent per block, with `algorithm` `block-tune`.
            #[schemars(range(min = 1, max = 10_000))]
            tune_steps: u64 = 64,
            /// How much of the change in its inputs, made by what was compressed before it, a layer makes up for: 0 keeps
            /// its function, 1 aims at the output it had. Not with `trueSequential`.
            #[schemars(range(min = 0.0, max = 1.0))]
            drift_share: f64 = 0.5,
            /// One file in mixed precision instead of one for each type: every tensor takes that of `quantTypes` with which
            /// the whole loses least and comes to this.
            target: QuantTarget,
            /// Rotation to fold the weights into first; the model's function stays. `hadamard` turns the residual stream and,
            /// in each block, the values of every head; `hadamard-values` the values alone.
            rotation: Rotation = Rotation::None,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn target(json: serde_json::Value) -> QuantTarget {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_target_says_one_thing() {
        let aim = |json| target(json).aim();
        assert_eq!(aim(serde_json::json!({ "bytes": 5 })), Ok(QuantAim::Bytes(5)));
        assert_eq!(aim(serde_json::json!({ "bitsPerWeight": 4.5, "maxKld": null })), Ok(QuantAim::BitsPerWeight(4.5)));
        assert_eq!(aim(serde_json::json!({})), Err("says nothing".into()));
        assert_eq!(aim(serde_json::json!({ "bytes": 5, "maxKld": 0.1 })), Err("says more than one thing".into()));
        assert_eq!(aim(serde_json::json!({ "bpw": 5 })), Err("the key `bpw` is unknown here".into()));
    }

    #[test]
    fn files_are_named_after_their_target() {
        let labels = [
            QuantAim::Bytes(96_468_992),
            QuantAim::BitsPerWeight(4.5),
            QuantAim::BitsPerWeight(6.0),
            QuantAim::BitsPerWeight(6.172),
            QuantAim::MaxKld(0.05),
        ];
        assert_eq!(labels.map(QuantAim::label), ["96468992bytes", "4.50bpw", "6.00bpw", "6.172bpw", "kld0.05"]);
    }
}
