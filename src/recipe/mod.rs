//! Recipes: what a part shall become.
//!
//! Enters: the bytes of a recipe file. Leaves: the bytes again, untouched ([`RecipeFile`]); a typed view of them
//! ([`Recipe`], [`StageSpec`]) in which unknown keys and stages survive; findings about them ([`check`],
//! [`check_executable`]); their identities ([`hashes`]); the executed recipe with its results; the types of the
//! resolved [`Plan`]; and the JSON Schema of the format. The format itself is specified in `docs/RECIPES.md`.
//!
//! As read versus as meant: the types here hold what the file says, with absent and null keys as `None`. Defaults come
//! in through accessors and [`StageSpec::resolved`], and are written down in the plan.

mod check;
mod choices;
mod criteria;
mod emit;
mod error;
mod file;
mod finding;
pub mod hashes;
pub mod json;
mod plan;
mod reference;
mod results;
mod root;
mod schema;
pub mod stages;

pub use check::{Capabilities, QuantCapability, bits_per_weight, check, check_executable, params_after};
pub use criteria::*;
pub use emit::with_results;
pub use error::RecipeError;
pub use file::{MAX_BYTES, RecipeFile};
pub use finding::{Finding, Severity, nearest, suggest};
pub use json::Position;
pub use plan::*;
pub use reference::{object_reference, stage_reference};
pub use results::*;
pub use root::*;
pub use schema::{recipe_schema, recipe_schema_text, stage_keys};
pub use stages::{BenchmarkDef, StagePosition, StageSpec};
