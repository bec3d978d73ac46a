//! Means with their errors, and quantiles.

/// A mean over positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    pub value: f64,
    /// Standard error: sample deviation over the square root of the count; 0 for a single value.
    pub stderr: f64,
}

impl Mean {
    /// Of at least one value; of none it is NaN.
    pub fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let value = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|v| (v - value).powi(2)).sum();
        Mean { value, stderr: if values.len() > 1 { (squares / (count - 1.0) / count).sqrt() } else { 0.0 } }
    }
}

/// The value below which `share` of the ascending `sorted` lie, straight lines between neighbours (as numpy's default).
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = share.clamp(0.0, 1.0) * last as f64;
    let (below, part) = (place as usize, place.fract());
    sorted[below] + part * (sorted[(below + 1).min(last)] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_has_the_error_of_its_sample() {
        let mean = Mean::of(&[1.0, 2.0, 3.0, 6.0]);
        assert_eq!(mean.value, 3.0);
        assert!((mean.stderr - (14.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(Mean::of(&[5.0]), Mean { value: 5.0, stderr: 0.0 });
    }

    #[test]
    fn quantiles_lie_on_lines_between_neighbours() {
        let sorted = [0.0, 10.0, 20.0, 40.0];
        assert_eq!([0.0, 0.5, 0.9, 1.0].map(|share| quantile(&sorted, share)), [0.0, 15.0, 34.0, 40.0]);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
