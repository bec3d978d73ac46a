//! Number formats whose codes a quantizer chooses one at a time.
//!
//! [`super::Codec::encode`] rounds every value to its nearest level. A quantizer that minds what errors do together (GPTQ
//! and its kin) needs the steps apart: levels are fitted to a group of values, each value is given a level, and the codes
//! are packed. Enters: values and what an error of each costs. Leaves: [`Levels`], and bytes that decode to them.

use super::levels::Levels;
use super::weights::{Plain, weigh};

/// A number format whose codes are chosen one at a time.
pub trait Grid: Send + Sync {
    /// As reports name it: `Q4_K`, `W4 g64 symmetric`.
    fn name(&self) -> String;

    /// Consecutive columns that share fitted levels: 256 for k-quants, 32 for Q4_0; `usize::MAX` for the whole row.
    fn group(&self) -> usize;

    /// Bytes of one stored row; `None` when a row of so many columns cannot be stored. Where the format allows it the
    /// last group of a row is shorter than the others.
    fn row_bytes(&self, cols: usize) -> Option<usize>;

    /// Whether levels have an offset beside their step, so that a refit has two unknowns per part.
    fn has_offsets(&self) -> bool;

    /// Levels of least `Σ weight · (level − value)²` for each group of `size` values (at most [`Grid::group`]); one
    /// weight per value, not negative.
    ///
    /// # Panics
    /// When `values` is not a whole number of groups, or `size` is none the format can store.
    fn fit(&self, values: &[f32], weights: &[f32], size: usize) -> Vec<Levels>;

    /// Writes one row: the levels of its groups in order and one code per column.
    ///
    /// # Panics
    /// When the lengths do not fit each other.
    fn pack(&self, levels: &[Levels], codes: &[u8], row: &mut [u8]);

    /// Reads one row back: to the bit the values that its levels and codes stand for.
    fn unpack(&self, row: &[u8], values: &mut [f32]);
}

/// The grid of a GGUF block format; `None` for plain numbers and formats without a codec.
pub fn grid_for(dtype: super::Dtype) -> Option<&'static dyn Grid> {
    super::codec_for(dtype)?.grid()
}

/// What an error of each value of a row costs when only the mean squares of the columns' inputs are known
/// (`importance`), or nothing: what the block formats' own searches minimise.
pub fn error_weights(values: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut weights = vec![0f32; values.len()];
    weigh(values, importance, Plain::RmsPlusMagnitude(32), &mut weights);
    weights
}
