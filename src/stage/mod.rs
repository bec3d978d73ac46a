//! Stages: what a recipe can ask for, one file per type.
//!
//! Enters: a recipe and this machine. Leaves: a [`Plan`](crate::recipe::Plan) (admission, [`plan_recipe`]), then files
//! in a work folder and what is known about them ([`run_stages`]). A stage checks at admission that what it needs is
//! made by an earlier one, and is a pure function of hashed inputs when it runs. The arithmetic lies in `compress`,
//! `assay` and `gate`; here it is put in order. A new stage is one file and one line in [`STAGES`].

mod admission;
mod calibration;
mod checkpoint;
mod context;
mod directory;
mod durable;
mod inputs;
mod predict;
mod product;
mod progress;
mod prune_choice;
mod prune_healing;
mod prune_metadata;
mod run;

use crate::fault::Outcome;
use crate::recipe::{PlannedStage, StageSpec};

pub use admission::{
    Admission, Place, PlannedArtifact, Refusal, capabilities, check_recipe, examine, plan_recipe, predict,
};
pub use checkpoint::{CHECKPOINT_FILE, Checkpoint, Checkpoints, OutputFile};
pub use context::{StageContext, pass_options};
pub use durable::replace_file;
pub use expert_prune::prune_lineage;
pub use package::ARTIFACT_DIR;
pub use product::{Artifact, LAYER_IMPORTANCE, Measurement, Product, TensorFallback, TypeShare};
pub use progress::{Listener, Progress, Span, peak_rss_bytes};
pub use run::{StageRecord, Summary, run_stages};

/// A stage type that this build executes.
pub trait Stage: Sync {
    /// The value of a stage's `type` key.
    fn type_name(&self) -> &'static str;

    /// One sentence for listings.
    fn summary(&self) -> &'static str;

    /// Admission: checks the stage against what stands before it and against the real model, reports everything that
    /// is wrong, moves `admission` on to the state after this stage, and says what it will read, write and take.
    /// `place` is the stage's place in the recipe.
    fn plan(&self, admission: &mut Admission<'_>, spec: &StageSpec, place: Place) -> PlannedStage;

    /// Does it. Whatever is written lies below the work folder and is named in the product.
    fn run(&self, cx: &StageContext<'_>, planned: &PlannedStage, span: Span<'_>) -> Outcome<Product>;
}

crate::registry! {
    /// Every stage type this build executes.
    pub STAGES: dyn Stage {
        source_config => SourceConfig,
        context_extend => ContextExtend,
        modality => Modality,
        prune => Prune,
        expert_activation_profile => ExpertActivationProfile,
        expert_prune => ExpertPrune,
        quant => Quant,
        eval => Eval,
        package => Package,
    }
}

/// The stage type of this name.
pub fn stage_named(type_name: &str) -> Option<&'static dyn Stage> {
    STAGES.iter().copied().find(|stage| stage.type_name() == type_name)
}
