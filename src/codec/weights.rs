//! How much the squared error of each value counts while scales are searched.
//!
//! With an importance (mean square of the inputs each column meets) it is `importance · sqrt(σ² + x²)`, where σ² is the
//! mean square of the values around: columns that see large inputs first, among them the large weights, whose errors
//! correlate with the output most. Without one, a rule of the format.

/// The rule of a format for values of which nothing is known.
#[derive(Clone, Copy)]
pub(super) enum Plain {
    /// `rms + |x|`, the rms over this many values.
    RmsPlusMagnitude(usize),
    /// `x²`.
    Square,
}

/// Weights of one block or row.
#[inline(always)]
pub(super) fn weigh(values: &[f32], importance: Option<&[f32]>, plain: Plain, weights: &mut [f32]) {
    if let Some(importance) = importance
        && importance.iter().any(|&i| i > 0.0)
    {
        let spread = 2.0 * mean_square(values);
        for ((w, x), i) in weights.iter_mut().zip(values).zip(importance) {
            *w = i * (spread + x * x).sqrt();
        }
        return;
    }
    match plain {
        Plain::Square => weights.iter_mut().zip(values).for_each(|(w, x)| *w = x * x),
        Plain::RmsPlusMagnitude(size) => {
            for (weights, values) in weights.chunks_mut(size).zip(values.chunks(size)) {
                let rms = mean_square(values).sqrt();
                weights.iter_mut().zip(values).for_each(|(w, x)| *w = rms + x.abs());
            }
        }
    }
}

#[inline(always)]
fn mean_square(values: &[f32]) -> f32 {
    // Eight partial sums: one fixed order that vector units can keep.
    let mut sums = [0f32; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += x * x;
    }
    sums.iter().sum::<f32>() / values.len().max(1) as f32
}
