//! What can be said about a recipe without opening its model.

mod executable;
mod fit;

pub use executable::{Capabilities, check_executable};
pub use fit::bits_per_weight;

use super::finding::Finding;
use super::root::Recipe;

/// Everything that can be decided from the recipe alone, in the order of its keys.
pub fn check(recipe: &Recipe) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(fit::check(recipe));
    findings
}
