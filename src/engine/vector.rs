//! Arithmetic over f32 slices that the CPU path spends its time in outside of matrix products.
//!
//! Each function is compiled several times, for AVX-512, AVX2 and the baseline, and the widest the processor has is
//! chosen at run time; the loops are written so that the compiler can vectorise them. NaN and infinity pass through.

/// Independent partial sums: enough for the widest vectors to run without waiting for each other.
const LANES: usize = 32;

macro_rules! wide {
    ($(#[$attr:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$attr])*
        $vis fn $name($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
                fn avx512($($arg: $type),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $ret)? { body($($arg),*) }
                if is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the features were just detected (dq, bw and vl imply f and fma).
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the features were just detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(super) use wide;

/// e^x to about 2 units in the last place, flushed to about 1e-38 below -87.
///
/// Range reduction x = n ln 2 + r with |r| ≤ ln 2 / 2 and a degree-6 polynomial (Taylor coefficients), after the usual
/// scheme (Cody and Waite).
#[inline(always)]
fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer kept in the low mantissa bits
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Written so that NaN stays NaN.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let p = 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127);
    p * f32::from_bits(exponent << 23)
}

#[inline(always)]
fn fold(x: &[f32], start: f32, lane: impl Fn(f32, f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (acc, &value) in lanes.iter_mut().zip(chunk) {
            *acc = lane(*acc, value);
        }
    }
    for (acc, &value) in lanes.iter_mut().zip(chunks.remainder()) {
        *acc = lane(*acc, value);
    }
    lanes.iter().copied().reduce(join).unwrap_or(start)
}

/// Maximum that keeps a NaN once seen.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

wide! {
    /// Replaces a row by exp(row - max) and returns the sum: a softmax without its last division.
    pub fn exp_in_place(row: &mut [f32]) -> f32 {
        exp_from(row, f32::NEG_INFINITY).1
    }
}

wide! {
    /// [`exp_in_place`] with one score more, `sink`, that takes part in maximum and sum but has no place in the row.
    pub fn exp_in_place_beside(row: &mut [f32], sink: f32) -> f32 {
        let (max, sum) = exp_from(row, sink);
        sum + exp(sink - max)
    }
}

/// Replaces a row by exp(row - max), the maximum being at least `least`; returns maximum and sum.
#[inline(always)]
fn exp_from(row: &mut [f32], least: f32) -> (f32, f32) {
    let max = fold(row, least, larger, larger);
    let mut sums = [0.0; LANES];
    let mut chunks = row.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *value = exp(*value - max);
            *sum += *value;
        }
    }
    for (sum, value) in sums.iter_mut().zip(chunks.into_remainder()) {
        *value = exp(*value - max);
        *sum += *value;
    }
    (max, sums.iter().copied().reduce(|a, b| a + b).unwrap_or(0.0))
}

wide! {
    /// The maximum of a row and the sum of exp(row - max).
    pub fn max_and_exp_sum(row: &[f32]) -> (f32, f32) {
        let max = fold(row, f32::NEG_INFINITY, larger, larger);
        (max, fold(row, 0.0, |acc, v| acc + exp(v - max), |a, b| a + b))
    }
}

wide! {
    /// The Euclidean norm of a row and its largest absolute element.
    pub fn norm_and_peak(row: &[f32]) -> (f32, f32) {
        let squares = fold(row, 0.0, |acc, v| acc + v * v, |a, b| a + b);
        (squares.sqrt(), fold(row, 0.0, |acc, v| larger(acc, v.abs()), larger))
    }
}

wide! {
    /// gate = gate · sigmoid(gate) · up.
    pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
        for (g, &u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + exp(-*g)) * u;
        }
    }
}

wide! {
    /// out = x / rms(x) · gain with rms(x) = sqrt(mean(x²) + eps).
    pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
        let squares = fold(x, 0.0, |acc, v| acc + v * v, |a, b| a + b);
        let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
        for ((o, &v), &g) in out.iter_mut().zip(x).zip(gain) {
            *o = v * scale * g;
        }
    }
}

wide! {
    /// out = (x − mean(x)) / sqrt(variance(x) + eps) · gain + bias.
    pub fn layer_norm(x: &[f32], gain: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let mean = fold(x, 0.0, |acc, v| acc + v, |a, b| a + b) / x.len() as f32;
        let squares = fold(x, 0.0, |acc, v| acc + (v - mean) * (v - mean), |a, b| a + b);
        let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
        for (((o, &v), &g), &b) in out.iter_mut().zip(x).zip(gain).zip(bias) {
            *o = (v - mean) * scale * g + b;
        }
    }
}

wide! {
    /// [`rms_norm`] where input and output are one.
    pub fn rms_norm_in_place(x: &mut [f32], gain: &[f32], eps: f32) {
        let squares = fold(x, 0.0, |acc, v| acc + v * v, |a, b| a + b);
        let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
        for (v, &g) in x.iter_mut().zip(gain) {
            *v = *v * scale * g;
        }
    }
}

wide! {
    /// Turns a head by its position: pairs (i, i + half) with the given cos and sin of length half.
    pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
        let (low, high) = head.split_at_mut(cos.len());
        for (((a, b), &c), &s) in low.iter_mut().zip(high.iter_mut()).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}

wide! {
    /// [`rotate`] where the pairs are neighbours (2i, 2i + 1).
    pub fn rotate_adjacent(head: &mut [f32], cos: &[f32], sin: &[f32]) {
        for ((pair, &c), &s) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
            let [a, b] = *pair;
            *pair = [a * c - b * s, b * c + a * s];
        }
    }
}

wide! {
    /// x = silu(x).
    pub fn silu(x: &mut [f32]) {
        for v in x.iter_mut() {
            *v /= 1.0 + exp(-*v);
        }
    }
}

wide! {
    /// gate = gate' · sigmoid(alpha · gate') · (up' + 1), gate' = min(gate, limit), up' = clamp(up, ± limit). NaN stays.
    pub fn clamped_swiglu(gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
        for (g, &u) in gate.iter_mut().zip(up) {
            let kept = if *g > limit { limit } else { *g };
            *g = kept / (1.0 + exp(-alpha * kept)) * (u.clamp(-limit, limit) + 1.0);
        }
    }
}

wide! {
    /// x = x · sigmoid(gate).
    pub fn sigmoid_mul(x: &mut [f32], gate: &[f32]) {
        for (v, &g) in x.iter_mut().zip(gate) {
            *v /= 1.0 + exp(-g);
        }
    }
}

wide! {
    /// x within ± limit; NaN stays.
    pub fn clamp(x: &mut [f32], limit: f32) {
        for v in x.iter_mut() {
            *v = v.clamp(-limit, limit);
        }
    }
}

wide! {
    /// out += x · y, element by element.
    pub fn add_product(out: &mut [f32], x: &[f32], y: &[f32]) {
        for ((o, &a), &b) in out.iter_mut().zip(x).zip(y) {
            *o += a * b;
        }
    }
}

wide! {
    /// out += x.
    pub fn add(out: &mut [f32], x: &[f32]) {
        for (o, &v) in out.iter_mut().zip(x) {
            *o += v;
        }
    }
}

wide! {
    /// out += weight · x.
    pub fn add_scaled(out: &mut [f32], weight: f32, x: &[f32]) {
        for (o, &v) in out.iter_mut().zip(x) {
            *o += weight * v;
        }
    }
}

wide! {
    /// x = x · factor.
    pub fn scale(x: &mut [f32], factor: f32) {
        for v in x.iter_mut() {
            *v *= factor;
        }
    }
}

wide! {
    /// True when no value is NaN or infinite.
    pub fn is_finite(x: &[f32]) -> bool {
        fold(x, 0.0, |acc, v| acc + v * 0.0, |a, b| a + b) == 0.0
    }
}

/// Values between -1 and 1 for tests, the same for the same seed.
/// e^x in double precision to a few units in the last place, flushed to about 1e-308 below -708: as [`exp`], with a
/// polynomial of degree 13.
#[inline(always)]
fn exp_f64(x: f64) -> f64 {
    const MAGIC: f64 = 6_755_399_441_055_744.0; // 1.5 · 2^52
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    /// 13! down to 2!.
    const FACTORIALS: [f64; 12] = [
        6_227_020_800.0,
        479_001_600.0,
        39_916_800.0,
        3_628_800.0,
        362_880.0,
        40_320.0,
        5_040.0,
        720.0,
        120.0,
        24.0,
        6.0,
        2.0,
    ];
    let x = if x < -708.0 { -708.0 } else { x };
    let x = if x > 709.0 { 709.0 } else { x };
    let shifted = x * std::f64::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let p = FACTORIALS.iter().fold(0.0, |p, factorial| p * r + 1.0 / factorial);
    let p = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(1023);
    p * f64::from_bits(exponent << 52)
}

wide! {
    /// The largest value of a row; NaN if there is one.
    pub fn largest(row: &[f32]) -> f32 {
        fold(row, f32::NEG_INFINITY, larger, larger)
    }
}

wide! {
    /// `out[i]` = exp(`row[i]` - `from`), in double precision, and the sum of them.
    pub fn exponentials(row: &[f32], from: f64, out: &mut [f64]) -> f64 {
        let mut sums = [0.0; LANES];
        for (row, out) in row.chunks(LANES).zip(out.chunks_mut(LANES)) {
            for ((sum, &value), out) in sums.iter_mut().zip(row).zip(out) {
                *out = exp_f64(f64::from(value) - from);
                *sum += *out;
            }
        }
        sums.iter().sum()
    }
}

wide! {
    /// The sum of [`exponentials`].
    pub fn exponential_sum(row: &[f32], from: f64) -> f64 {
        let mut sums = [0.0; LANES];
        for row in row.chunks(LANES) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += exp_f64(f64::from(value) - from);
            }
        }
        sums.iter().sum()
    }
}

wide! {
    /// Σ `weights[i]` · (`a[i]` - `b[i]`) in double precision.
    pub fn weighted_difference(weights: &[f64], a: &[f32], b: &[f32]) -> f64 {
        let mut sums = [0.0; LANES];
        for ((weights, a), b) in weights.chunks(LANES).zip(a.chunks(LANES)).zip(b.chunks(LANES)) {
            for (((sum, weight), &a), &b) in sums.iter_mut().zip(weights).zip(a).zip(b) {
                *sum += weight * (f64::from(a) - f64::from(b));
            }
        }
        sums.iter().sum()
    }
}

#[cfg(test)]
pub fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_over_its_range_and_keeps_nan() {
        for i in -8600..8700 {
            let x = i as f32 * 0.01;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 4e-7, "exp({x}) = {ours}, exact {exact}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn double_exp_is_close_over_its_range() {
        for i in -70_800..70_900 {
            let x = f64::from(i) * 0.01;
            let (ours, exact) = (exp_f64(x), x.exp());
            assert!((ours / exact - 1.0).abs() < 2e-15, "exp({x}) = {ours}, exact {exact}");
        }
        assert_eq!(exp_f64(0.0), 1.0);
        assert!(exp_f64(f64::NAN).is_nan());
    }

    #[test]
    fn double_sums_agree_on_ragged_rows() {
        let (a, b) = (noise(77, 1), noise(77, 2));
        let mut weights = vec![0.0; 77];
        let sum = exponentials(&a, 0.5, &mut weights);
        assert_eq!(exponential_sum(&a, 0.5), sum);
        let exact: f64 = a.iter().map(|&v| (f64::from(v) - 0.5).exp()).sum();
        assert!((sum / exact - 1.0).abs() < 1e-14);
        let exact: f64 =
            weights.iter().zip(a.iter().zip(&b)).map(|(w, (&a, &b))| w * (f64::from(a) - f64::from(b))).sum();
        assert!((weighted_difference(&weights, &a, &b) - exact).abs() < 1e-12);
        assert_eq!(largest(&a), a.iter().copied().fold(f32::MIN, f32::max));
    }

    #[test]
    fn softmax_pieces_agree_on_ragged_rows() {
        let row: Vec<f32> = (0..77).map(|i| ((i * 37) % 19) as f32 * 0.3 - 2.0).collect();
        let (max, sum) = max_and_exp_sum(&row);
        let mut values = row.clone();
        assert_eq!(exp_in_place(&mut values), sum);
        let exact: f64 = row.iter().map(|&v| f64::from(v - max).exp()).sum();
        assert!((f64::from(sum) / exact - 1.0).abs() < 1e-6);
        assert!((f64::from(values[3]) - f64::from(row[3] - max).exp()).abs() < 1e-6);
    }

    #[test]
    fn a_single_bad_value_is_seen() {
        let mut row = vec![1e30f32; 100];
        assert!(is_finite(&row));
        row[99] = f32::INFINITY;
        assert!(!is_finite(&row));
        row[99] = f32::NAN;
        assert!(!is_finite(&row));
        assert!(max_and_exp_sum(&row).1.is_nan());
    }

    #[test]
    fn layer_norm_takes_the_mean_away_and_divides_by_the_deviation() {
        let mut out = [0.0; 4];
        layer_norm(&[1.0, 3.0, 1.0, 3.0], &[1.0, 2.0, 1.0, 1.0], &[0.0, 0.0, 5.0, 0.0], 0.0, &mut out);
        assert_eq!(out, [-1.0, 2.0, 4.0, 1.0]);
    }

    #[test]
    fn rms_norm_divides_by_the_root_mean_square() {
        let x = [3.0, 4.0];
        let mut out = [0.0; 2];
        rms_norm(&x, &[1.0, 2.0], 0.0, &mut out);
        let rms = 12.5f32.sqrt();
        assert!((out[0] - 3.0 / rms).abs() < 1e-6 && (out[1] - 8.0 / rms).abs() < 1e-6);
    }
}
