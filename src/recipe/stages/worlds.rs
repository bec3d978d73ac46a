//! Stages of the multi-model and vision workloads: known to the format, executed by nobody here.

use serde_json::{Map, Value};

use super::stage_type;
use super::train::LossType;
use crate::recipe::choices::choices;
use crate::recipe::root::NumberOrText;

stage_type! {
    /// Looks for models that solve more together than alone.
    TeamSearch {
        required {
            /// Models to choose from.
            search_pool: Vec<String>,
            /// Benchmark to choose by.
            benchmark: String,
        }
        optional {
            /// Problems of the benchmark to use.
            #[schemars(range(min = 1))]
            num_problems: u32 = 50,
            /// Teams tried.
            candidates_evaluated: u32,
            /// Models chosen.
            selected_team: Vec<String>,
            /// How differently they fail.
            divergence_score: f64,
            /// Problems that only some of them solve.
            complementary_problems: u32,
        }
    }
}

stage_type! {
    /// Trains a space that several models share.
    ManyWorldsSubstrate {
        required {
            /// Models to embed.
            source_models: Vec<String>,
            /// Name of the text to train on.
            calibration_corpus: String,
        }
        optional {
            /// Width of the shared space.
            #[schemars(range(min = 64, max = 2048))]
            substrate_dim: u32 = 256,
            /// Components of the shared space.
            #[schemars(range(min = 16, max = 1024))]
            num_gaussians: u32 = 128,
            /// Optimizer steps.
            #[schemars(range(min = 1))]
            training_steps: u32 = 1000,
            /// Learning rate, written as text.
            learning_rate: NumberOrText,
            /// What is minimized.
            loss_type: LossType = LossType::Both,
        }
    }
}

stage_type! {
    /// Trains an adapter from a model into a shared space.
    ManyWorldsAdapter {
        required {
            /// Model to adapt.
            target_model: String,
            /// The trained space.
            substrate_path: String,
        }
        optional {
            /// Rank of the adapter.
            #[schemars(range(min = 1))]
            adapter_rank: u32 = 64,
            /// Layer it goes into.
            insert_layer: u32,
            /// Optimizer steps.
            #[schemars(range(min = 1))]
            training_steps: u32 = 500,
            /// Learning rate, written as text.
            learning_rate: NumberOrText,
        }
    }
}

choices! {
    /// How several models speak with one voice.
    EnsembleMethod { LogitBlend = "logit-blend", SoftPrompt = "soft-prompt", CrossAttention = "cross-attention" }
}

choices! {
    /// How logits are blended.
    BlendStrategy {
        SpecialistTopKBoost = "specialist-top-k-boost",
        FullDistribution = "full-distribution",
        WeightedAverage = "weighted-average",
    }
}

stage_type! {
    /// Runs a model together with specialists.
    ManyWorldsEnsemble {
        required {
            /// The model that leads.
            target_model: String,
            /// The models that help.
            specialists: Vec<Value>,
        }
        optional {
            /// How they speak with one voice.
            method: EnsembleMethod = EnsembleMethod::LogitBlend,
            /// Weight of the specialists.
            #[schemars(range(min = 0.0, max = 1.0))]
            alpha: f64 = 0.2,
            /// Candidates of a specialist that count.
            #[schemars(range(min = 1))]
            top_k: u32 = 20,
            /// How logits are blended.
            blend_strategy: BlendStrategy = BlendStrategy::SpecialistTopKBoost,
            /// Memory it takes, in GB.
            vram_gb: f64,
        }
    }
}

stage_type! {
    /// Measures what each specialist contributes.
    GateProfile {
        required {
            /// Benchmark to measure on.
            benchmark: String,
        }
        optional {
            /// Problems of the benchmark to use.
            #[schemars(range(min = 1))]
            num_problems: u32 = 100,
            /// What each specialist contributes.
            per_specialist_contribution: Map<String, Value>,
            /// Where the profile is written.
            export_path: String,
        }
    }
}

stage_type! {
    /// Drops specialists that contribute little.
    PopulationPrune {
        required {}
        optional {
            /// Contribution a specialist must make to stay.
            #[schemars(range(min = 0.0, max = 1.0))]
            min_contribution: f64 = 0.05,
            /// Specialists dropped.
            removed_models: Vec<String>,
            /// Memory saved, in GB.
            vram_saved_gb: f64,
        }
    }
}

stage_type! {
    /// Reads a vision data set.
    CvIngest {
        required {
            /// Data set.
            dataset: String,
        }
        optional {
            /// Part of it.
            subset: String,
            /// How frames are stored.
            frame_format: String = "jpeg-sequence".into(),
            /// Sequences to read.
            #[schemars(range(min = 1))]
            max_sequences: u32,
        }
    }
}

stage_type! {
    /// Scores a vision pipeline.
    CvEval {
        required {
            /// The pipeline.
            pipeline: String,
        }
        optional {
            /// Its settings.
            pipeline_config: Map<String, Value> = Map::new(),
            /// What to run.
            benchmarks: Vec<Value> = Vec::new(),
        }
    }
}
