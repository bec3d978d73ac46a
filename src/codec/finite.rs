//! Looking for values no format should be asked to hold.

/// Index of the first value whose magnitude is not at most `limit`: beyond it, infinite, or NaN.
pub fn first_beyond(values: &[f32], limit: f32) -> Option<usize> {
    const CHUNK: usize = 256;
    for (i, chunk) in values.chunks(CHUNK).enumerate() {
        // A branch-free pass over the chunk first: that is what makes it fast.
        let good = chunk.iter().fold(true, |good, v| good & (v.abs() <= limit));
        if !good {
            #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN must count as beyond the limit")]
            return chunk.iter().position(|v| !(v.abs() <= limit)).map(|j| i * CHUNK + j);
        }
    }
    None
}

/// Index of the first NaN or infinity.
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    first_beyond(values, f32::MAX)
}
