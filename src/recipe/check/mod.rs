//! What can be said about a recipe without opening its model.
//!
//! Enters: a recipe as read. Leaves: findings with key, severity and next step. Each file here is one question:
//! are the single values possible ([`values`]), do the facts about the source agree ([`source`]), do the stages follow
//! from each other ([`flow`]), can the criteria be met ([`criteria`]), do the files fit the memory ([`fit`]), do names,
//! descriptions and counts follow from the keys ([`claims`]), and can this build execute it ([`executable`]).

mod claims;
mod criteria;
mod executable;
mod fit;
mod flow;
mod source;
mod values;

pub use executable::{Capabilities, QuantCapability, check_executable};
pub use fit::{bits_per_weight, params_after};

use super::finding::Finding;
use super::root::Recipe;

/// Real recipes have about ten stages; a file with thousands is refused before anything looks at each of them.
const MAX_STAGES: usize = 1000;

/// Everything that can be decided from the recipe alone. Whether this build can execute it is
/// [`check_executable`]'s question.
pub fn check(recipe: &Recipe) -> Vec<Finding> {
    if recipe.stages.len() > MAX_STAGES {
        let message = format!("{} stages are more than the {MAX_STAGES} a recipe may have", recipe.stages.len());
        return vec![Finding::error("stages", message).hint("the file is damaged or not a recipe")];
    }
    let questions = [values::check, source::check, flow::check, criteria::check, fit::check, claims::check];
    questions.into_iter().flat_map(|question| question(recipe)).collect()
}

#[cfg(test)]
mod tests;
