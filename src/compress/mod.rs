//! The room where weights change: expert profile, expert prune, quantization.
//!
//! Enters: an open model (a Hugging Face directory), a corpus, numbers resolved by the plan. Leaves: files — an
//! importance table, a smaller model directory, a GGUF file — and a report of what was done. Every transform reads
//! tensors in shard order and writes the output once; none of them judges its own result (that is `gate`).

mod budget;
mod calibrated;
mod calibration;
mod context;
mod corpus;
mod default_calibration;
mod dense_ternary;
mod encoded;
mod expert_profile;
mod expert_prune;
mod fold;
mod gguf_header;
mod gguf_jobs;
mod heads;
mod importance;
mod importance_matrix;
mod metric;
mod mlx;
mod packed;
mod quant_gguf;
mod quant_mix;
mod router_kd;
mod scaling;
mod selection;
mod solve;
mod tuning;
mod weight_scores;

use std::path::{Path, PathBuf};

use crate::fault::Fault;

pub use budget::{
    Candidate, Candidates, ErrorTable, Group, MOST_GROUPS, Offer, Picks, Probe, Rounded, least_bytes, least_loss, reach,
};
pub use calibrated::{Calibrated, CalibratedRows, GridRef, MatrixReport, Target, Targets, gguf_targets};
pub use calibration::{Calibration, HELD_OUT_MOST, SequenceLimits, sequences};
pub use context::{ContextMethod, extend_context};
pub use corpus::{Corpus, read_corpus};
pub use default_calibration::{CalibrationMix, default_calibration};
pub use dense_ternary::{DenseTernary, F16_MANTISSA, RescuedRows, ternary_targets};
pub use encoded::{EncodedRows, EncodedWriter};
pub use expert_profile::{Profile, ProfileOrigin, profile_experts};
pub use expert_prune::{FateCounts, PrunePlan, PruneReport, TensorFate, rewrite};
pub use fold::{Folded, Folds, RotationKind, RotationPlan, Step, Turn};
pub use gguf_header::{GgufMetadata, gguf_metadata};
pub use heads::{
    Axis, Defrag, HeadEdit, HeadMetric, HeadOptions, HeadPlan, HeadReport, HeadScores, LayerHeads, SAMPLE_LENGTH,
    config_with_heads, plan_heads, prunable, removable, rewrite_heads, score_heads, sliceable, with_heads,
};
pub use importance::{COUNTS_VERSION, IMPORTANCE_FILE, Importance, METRIC_VERSION, PerLayer, UnderObserved};
pub use importance_matrix::{Coverage, ImportanceMatrix};
pub use metric::Metric;
pub use mlx::{MLX_GROUPS, MLX_TYPES, MlxPlan, MlxType, mlx_config, mlx_type, plan_mlx, write_mlx};
pub use packed::{
    GROUP_SIZES, PACKED_TYPES, PackedForm, PackedMatrix, PackedPlan, PackedType, Unseen, half_type, packed_config,
    packed_type, plan_packed, solve_unseen, write_packed,
};
pub use quant_gguf::{Fallback, PlannedTensor, QuantPlan, plan_assigned, plan_quant, write_gguf};
pub use quant_mix::{QUANT_MIXES, QUANT_TYPES, QuantMix, quant_mix};
pub use router_kd::{KD_TOKENS, Recalibration, recalibrate};
pub use scaling::StoredAs;
pub use selection::{Groups, Kept, Top, choose_experts, groups, keep_top, survivors};
pub use solve::{Matrix, Method, Moments, Order, SOLVERS, SolveOptions, Solved, Solver, solver_named};
pub use tuning::TuneOptions;

/// Called with the bytes finished so far; the caller knows the total from the plan.
pub type ByteProgress<'a> = &'a (dyn Fn(u64) + Sync);

/// What can go wrong while weights are changed.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// The corpus cannot be read or holds no usable text.
    #[error("calibration corpus {path}: {reason}")]
    Corpus { path: PathBuf, reason: String, hint: &'static str },
    /// The importance table does not belong to this model or is damaged.
    #[error("importance table {path}: {reason}")]
    Importance { path: PathBuf, reason: String },
    /// An importance matrix is damaged, or is another model's.
    #[error("importance matrix {path}: {reason}")]
    Matrix { path: PathBuf, reason: String, hint: &'static str },
    /// The router counts of a profile do not add up: a layer was not seen, or seen in part.
    #[error("expert profile: layer {layer}: {reason}")]
    Coverage { layer: usize, reason: String },
    /// The request does not fit this model.
    #[error("{what}: {reason}")]
    Refused { what: &'static str, reason: String, hint: &'static str },
    /// A tensor holds values that no format can carry.
    #[error("tensor {tensor}: {reason}")]
    Tensor { tensor: String, reason: String },
    #[error("{action} {path}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    #[error(transparent)]
    Family(#[from] crate::family::FamilyError),
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
}

impl CompressError {
    /// An I/O error with what was done to which path; for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CompressError {
        let path = path.to_owned();
        move |source| CompressError::Io { action, path, source }
    }
}

impl From<CompressError> for Fault {
    fn from(error: CompressError) -> Fault {
        match error {
            CompressError::Corpus { hint, .. } => Fault::source(error.to_string()).hint(hint),
            CompressError::Importance { .. } => Fault::source(error.to_string())
                .hint("profile this model with an expert-activation-profile stage before the prune"),
            CompressError::Matrix { hint, .. } => Fault::source(error.to_string()).hint(hint),
            CompressError::Coverage { .. } => Fault::internal(error.to_string())
                .hint("the profile is not used; report this with the model's config.json"),
            CompressError::Refused { hint, .. } => Fault::recipe(error.to_string()).hint(hint),
            CompressError::Tensor { .. } => {
                Fault::source(error.to_string()).hint("the source model is damaged: fetch it again and compare hashes")
            }
            CompressError::Io { action, path, source } => Fault::io(format!("{action} {}", path.display()), source),
            CompressError::Model(e) => e.into(),
            CompressError::Family(e) => e.into(),
            CompressError::Engine(e) => e.into(),
        }
    }
}
