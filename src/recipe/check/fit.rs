//! Whether the files a recipe asks for can fit the memory it promises, by arithmetic.

use crate::recipe::finding::Finding;
use crate::recipe::root::Recipe;

pub(super) fn check(_recipe: &Recipe) -> Vec<Finding> {
    Vec::new()
}

/// Bits per weight of a whole file in this type.
pub fn bits_per_weight(quant_type: &str) -> Option<f64> {
    match quant_type {
        "F32" => Some(32.0),
        _ => None,
    }
}
