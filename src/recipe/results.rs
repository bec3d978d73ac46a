//! What became of a recipe: the `results` block, as others wrote it and as we write it.
//!
//! Every key is optional because published recipes differ in what they carry; [`AlloyResults::default`] is the empty
//! block to fill in.

use serde_json::{Map, Value};

use super::choices::choices;
use super::root::{NumberOrText, object};
use crate::units::Sha;

object! {
    /// What was measured.
    #[derive(Default)]
    AlloyResults {
        required {}
        optional {
            /// When the recipe was done, RFC 3339.
            completed_at: String,
            /// How long it took, in minutes.
            duration_minutes: f64,
            /// Perplexity of the base.
            baseline_perplexity: f64,
            /// Perplexity of the result.
            final_perplexity: f64,
            /// By how many percent the perplexity fell; negative when it rose.
            improvement_pct: f64,
            /// Size of the result, in GB (10^9 bytes).
            final_size_gb: f64,
            /// Parameters of the result: a number, or a text such as `"3.8B"`.
            final_params: NumberOrText,
            /// Parameters of the result, in 10^9.
            forged_params_b: f64,
            /// Parameters one token uses, in 10^9.
            active_params_b: f64,
            /// Scores.
            benchmarks: Vec<BenchmarkResult>,
            /// Devices it was tried on.
            hardware_verified: Vec<HardwareProfile>,
            /// Texts it wrote.
            samples: Vec<GenerationSample>,
            /// Hashes and who vouches for them.
            integrity: IntegrityAttestation,
        }
    }
}

impl AlloyResults {
    /// Sets both perplexities and by how many percent the result's is lower (negative: it is higher).
    pub fn set_perplexities(&mut self, baseline: f64, result: f64) {
        self.baseline_perplexity = Some(baseline);
        self.final_perplexity = Some(result);
        self.improvement_pct = (baseline > 0.0).then(|| (baseline - result) / baseline * 100.0);
    }
}

object! {
    /// One score.
    #[derive(Default)]
    BenchmarkResult {
        required {
            /// Name of the benchmark.
            name: String,
        }
        optional {
            /// Part of the benchmark.
            subset: String,
            /// What the score is, e.g. `pass@1`.
            metric: String,
            /// Score of the result.
            score: f64,
            /// Score of the base, measured the same way.
            base_score: f64,
            /// Score less base score.
            delta: f64,
            /// The measurement was checked against a known figure.
            calibrated: bool,
            /// Where the answers of the result are.
            samples_path: String,
            /// Where the answers of the base are.
            base_samples_path: String,
            /// SHA-256 of the answers of the result.
            result_hash: String,
            /// SHA-256 of the answers of the base.
            base_result_hash: String,
            /// Further figures.
            metrics: Map<String, Value>,
            /// The score was sent to a leaderboard.
            submitted_to_leaderboard: bool,
        }
    }
}

object! {
    /// A device the result was tried on.
    #[derive(Default)]
    HardwareProfile {
        required {
            /// Name of the device.
            device: String,
        }
        optional {
            /// Number format of the file.
            format: String,
            /// Memory of the device, in GB.
            vram_gb: f64,
            /// Size of the file, in GB.
            size_gb: f64,
            /// Speed, in tokens per second.
            tokens_per_sec: f64,
            /// Memory used, in GB.
            memory_usage_gb: f64,
            /// Somebody looked.
            verified: bool,
        }
    }
}

object! {
    /// A text the result wrote.
    GenerationSample {
        required {}
        optional {
            /// Name of the sample.
            label: String,
            /// What was asked.
            prompt: String,
            /// What the result wrote.
            completion: String,
            /// What the base wrote.
            baseline_completion: String,
        }
    }
}

choices! {
    /// Who vouches for the hashes.
    TrustLevel { SelfAttested = "self-attested", Verified = "verified", Enclave = "enclave" }
}

object! {
    /// Hashes and who vouches for them.
    #[derive(Default)]
    IntegrityAttestation {
        required {}
        optional {
            /// Who vouches (default self-attested).
            trust_level: TrustLevel,
            /// The program that made the result.
            code: CodeAttestation,
            /// Hash over the model files; see [`compose_model_hash`](crate::recipe::hashes::compose_model_hash).
            model_hash: String,
            /// Hash of the recipe.
            alloy_hash: String,
            /// Hash of the recipe this one was derived from.
            parent_alloy_hash: String,
            /// The model files.
            file_hashes: Vec<FileHashEntry>,
            /// The data sets used.
            datasets: Vec<DatasetHash>,
            /// Random text that makes a signature fresh.
            nonce: String,
            /// Whom a signature is meant for.
            audience: String,
            /// The signature.
            signature: Value,
            /// Where the hash is anchored.
            anchor: Value,
            /// What others certify.
            certifications: Vec<Value>,
            /// When, RFC 3339.
            attested_at: String,
        }
    }
}

object! {
    /// The program that made the result.
    #[derive(Default)]
    CodeAttestation {
        required {}
        optional {
            /// Its name.
            runner: String,
            /// Its version.
            version: String,
            /// SHA-256 of its binary.
            binary_hash: String,
            /// SHA-256 of its source.
            source_hash: String,
            /// Commit of its source.
            commit: String,
            /// What it ran on.
            environment: String,
            /// SHA-256 of that.
            environment_hash: String,
            /// Where its source is.
            source_repo: String,
        }
    }
}

object! {
    /// One model file.
    FileHashEntry {
        required {
            /// Name relative to the model's directory.
            filename: String,
            /// SHA-256, bare lower-case hex.
            sha256: String,
        }
        optional {
            /// Bytes.
            size: u64,
        }
    }
}

impl FileHashEntry {
    /// An entry as we write it.
    pub fn new(filename: impl Into<String>, sha256: Sha, size: u64) -> Self {
        FileHashEntry { filename: filename.into(), sha256: sha256.hex(), size: Some(size), extra: Map::new() }
    }
}

object! {
    /// One data set.
    #[derive(Default)]
    DatasetHash {
        required {
            /// Its name.
            name: String,
        }
        optional {
            /// Its version.
            version: String,
            /// `sha256:` and its hash.
            hash: String,
            /// Where it is from.
            source: String,
        }
    }
}
