//! The 4-bit form of rescued weights: symmetric integer codes in groups that share an f16 scale.

use half::f16;

/// Values that share a scale.
pub const GROUP: usize = 128;
const MOST: f64 = 7.0;

/// Encoded values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Q4 {
    /// One per value, -7 to 7.
    pub codes: Vec<i8>,
    /// One per group, as f16 holds it.
    pub scales: Vec<f64>,
}

/// Encodes values in order; the last group may be shorter. The scale is the largest magnitude over 7, or 1 where f16
/// cannot hold that as a positive number; codes round half to even.
pub fn encode(values: &[f64]) -> Q4 {
    let mut out = Q4::default();
    for group in values.chunks(GROUP) {
        let largest = group.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        let usable = |scale: f64| if scale.is_finite() && scale > 0.0 { scale } else { 1.0 };
        let scale = usable(f16::from_f64(usable(largest / MOST)).to_f64());
        out.scales.push(scale);
        out.codes.extend(group.iter().map(|value| (value / scale).round_ties_even().clamp(-MOST, MOST) as i8));
    }
    out
}

/// The values that codes and scales stand for.
pub fn decode(encoded: &Q4) -> Vec<f64> {
    let value = |(i, &code): (usize, &i8)| f64::from(code) * encoded.scales.get(i / GROUP).copied().unwrap_or(f64::NAN);
    encoded.codes.iter().enumerate().map(value).collect()
}

/// True when a scale survives being stored as f16: within a thousandth, as the benchmark compares.
pub fn is_f16_scale(scale: f64) -> bool {
    let stored = f16::from_f64(scale).to_f64();
    stored.is_finite() && (stored - scale).abs() <= 1e-3 * stored.abs().max(scale.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_16_groups_without_a_usable_scale_take_one() {
        assert_eq!(encode(&[0.0; 3]), Q4 { codes: vec![0; 3], scales: vec![1.0] });
        assert_eq!(encode(&[1e-9, -5e-9]), Q4 { codes: vec![0; 2], scales: vec![1.0] });
        assert_eq!(encode(&[1e7, -3e6, 2.0]), Q4 { codes: vec![7, -7, 2], scales: vec![1.0] });
    }

    #[test]
    fn codes_round_half_to_even_and_groups_have_their_own_scales() {
        let halves = encode(&[7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]);
        assert_eq!(halves, Q4 { codes: vec![7, 0, 2, 2, 0, -2, -2], scales: vec![1.0] });
        assert_eq!(decode(&encode(&[0.5])), [0.4998779296875]);
        let two = encode(&[vec![0.7; GROUP], vec![0.07]].concat());
        assert_eq!((two.codes.len(), two.scales.len()), (129, 2));
        assert!(two.codes.iter().all(|&code| code == 7));
        assert!(is_f16_scale(0.0999755859375) && is_f16_scale(65504.0));
        assert!(!is_f16_scale(1e6) && !is_f16_scale(8.9e-8));
    }
}
