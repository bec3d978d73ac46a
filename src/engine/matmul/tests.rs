//! Every kernel of this machine against f64.

use half::bf16;
use proptest::prelude::*;

use super::*;

/// A small generator, so that shapes and values come from one seed.
struct Values(u64);

impl Values {
    /// Uniform in −1..1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn many(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

fn round_to_bf16(values: &[f32]) -> (Vec<f32>, Vec<u8>) {
    let rounded: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
    (rounded.iter().map(|v| v.to_f32()).collect(), rounded.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Checks y against x · wᵀ + bias within the documented bound, (3·2⁻¹⁶ + k·2⁻²⁴)·Σ|x|·|w| (2⁻¹⁶ when all weights are
/// exact in bf16), and the roundings of adding a bias.
fn assert_close(x: &[f32], w: &[f32], n: usize, k: usize, bias: Option<&[f32]>, y: &[f32], what: &str) {
    let split = if w.iter().all(|w| w.to_bits() & 0xffff == 0) { 1.0 } else { 3.0 };
    for (i, &got) in y.iter().enumerate() {
        let (row, column) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
        let products = row.iter().zip(column).map(|(&a, &b)| f64::from(a) * f64::from(b));
        let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
        let expected = sum + bias.map_or(0.0, |b| f64::from(b[i % n]));
        let bound = size * (split * 2f64.powi(-16) + k as f64 * 2f64.powi(-24))
            + expected.abs() * 2f64.powi(-23)
            + k as f64 * 2f64.powi(-120);
        assert!((f64::from(got) - expected).abs() <= bound, "{what}: y[{i}] = {got}, not {expected} ± {bound:e}");
    }
}

fn check(kernel: Kernel, m: usize, n: usize, k: usize, seed: u64) {
    let mut values = Values(seed);
    let (x, w, bias) = (values.many(m * k), values.many(n * k), values.many(n));
    let (rounded, bytes) = round_to_bf16(&w);
    let what = format!("{} {m}×{k}→{n}", kernel.name());
    for bias in [None, Some(&bias[..])] {
        let mut y = vec![f32::NAN; m * n];
        matmul(&x, m, &PackedWeight::from_bf16_le_for(kernel, &bytes, n, k), &mut y, bias);
        assert_close(&x, &rounded, n, k, bias, &y, &format!("{what} bf16"));
        y.fill(f32::NAN);
        matmul(&x, m, &PackedWeight::from_f32_for(kernel, &w, n, k), &mut y, bias);
        assert_close(&x, &w, n, k, bias, &y, &format!("{what} f32"));
    }
}

/// Runs on every kernel; says which one the machine lacks.
fn on_each_kernel(test: impl Fn(Kernel)) {
    let kernels = Kernel::available();
    if !kernels.iter().any(|kernel| matches!(kernel, Kernel::Amx(_))) {
        eprintln!("amx-bf16 skipped: the processor or the system does not offer it");
    }
    kernels.into_iter().for_each(test);
}

#[test]
fn products_match_f64_at_every_edge_of_a_panel() {
    on_each_kernel(|kernel| {
        for (m, n, k) in [(1, 1, 1), (16, 16, 32), (17, 33, 31), (32, 32, 64), (33, 15, 33), (48, 64, 95), (31, 96, 7)]
        {
            check(kernel, m, n, k, (m * n * k) as u64);
        }
    });
}

#[test]
fn large_products_are_cut_into_blocks_without_seams() {
    on_each_kernel(|kernel| {
        check(kernel, 300, 200, 576, 1);
        check(kernel, 40, 700, 1536, 2);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn products_match_f64_for_any_shape(m in 1usize..80, n in 1usize..80, k in 1usize..140, seed: u64) {
        on_each_kernel(|kernel| check(kernel, m, n, k, seed));
    }
}

#[test]
fn empty_shapes_are_answered() {
    on_each_kernel(|kernel| {
        let w = PackedWeight::from_f32_for(kernel, &[1.0; 6], 2, 3);
        matmul(&[], 0, &w, &mut [], None);
        matmul(&[1.0; 3], 1, &PackedWeight::from_f32_for(kernel, &[], 0, 3), &mut [], None);
        let mut y = [f32::NAN; 4];
        matmul(&[], 2, &PackedWeight::from_bf16_le_for(kernel, &[], 2, 0), &mut y, Some(&[3.0, 4.0]));
        assert_eq!(y, [3.0, 4.0, 3.0, 4.0]);
    });
}

#[test]
fn extreme_magnitudes_keep_their_accuracy() {
    on_each_kernel(|kernel| {
        let (m, n, k) = (19, 35, 70);
        let mut values = Values(7);
        // Each column of x spans 2⁻⁴⁰ to 2⁴⁰, w likewise: sums hang on a few products.
        let wide = |v: f32, i: usize| v * 2f32.powi((i * 37 % 81) as i32 - 40);
        let x: Vec<f32> = (0..m * k).map(|i| wide(values.next(), i)).collect();
        let w: Vec<f32> = (0..n * k).map(|i| wide(values.next(), i + 11)).collect();
        let mut y = vec![0.0; m * n];
        matmul(&x, m, &PackedWeight::from_f32_for(kernel, &w, n, k), &mut y, None);
        assert_close(&x, &w, n, k, None, &y, kernel.name());
        // Denormal inputs vanish or count; both lie within the bound.
        let tiny = vec![1e-40f32; m * k];
        matmul(&tiny, m, &PackedWeight::from_f32_for(kernel, &vec![1.0; n * k], n, k), &mut y, None);
        assert_close(&tiny, &vec![1.0; n * k], n, k, None, &y, kernel.name());
        // What does not fit stays visible.
        let mut huge = vec![1.0f32; m * k];
        huge[0] = f32::INFINITY;
        matmul(&huge, m, &PackedWeight::from_f32_for(kernel, &vec![1.0; n * k], n, k), &mut y, None);
        assert!(y[..n].iter().all(|v| !v.is_finite()));
        assert_eq!(y[n..], vec![k as f32; (m - 1) * n]);
    });
}

#[test]
fn bf16_weights_given_as_f32_are_recognised() {
    on_each_kernel(|kernel| {
        let (rounded, bytes) = round_to_bf16(&Values(3).many(40 * 50));
        let (from_f32, from_bf16) = (
            PackedWeight::from_f32_for(kernel, &rounded, 40, 50),
            PackedWeight::from_bf16_le_for(kernel, &bytes, 40, 50),
        );
        assert_eq!(from_f32.bytes(), from_bf16.bytes());
        let x = Values(4).many(9 * 50);
        let (mut a, mut b) = (vec![0.0; 360], vec![1.0; 360]);
        matmul(&x, 9, &from_f32, &mut a, None);
        matmul(&x, 9, &from_bf16, &mut b, None);
        assert_eq!(a, b);
    });
}

#[test]
fn gathered_rows_are_the_rows_asked_for() {
    on_each_kernel(|kernel| {
        let (n, k) = (24, 45);
        let mut values = Values(5);
        let (x, w) = (values.many(60 * k), values.many(n * k));
        let chosen = [59u32, 0, 7, 7, 31];
        let gathered: Vec<f32> = chosen.iter().flat_map(|&r| x[r as usize * k..][..k].to_vec()).collect();
        let weight = PackedWeight::from_f32_for(kernel, &w, n, k);
        let (mut a, mut b) = (vec![0.0; chosen.len() * n], vec![1.0; chosen.len() * n]);
        matmul_packed(&PackedInput::gather_for(kernel, &x, k, &chosen), &weight, &mut a, None);
        matmul(&gathered, chosen.len(), &weight, &mut b, None);
        assert_eq!(a, b);
    });
}

#[test]
fn predicted_bytes_are_the_bytes_held() {
    for (n, k) in [(1, 1), (33, 70), (64, 64)] {
        let weight = PackedWeight::from_f32(&vec![0.1; n * k], n, k);
        assert_eq!(weight.bytes(), PackedWeight::predicted_bytes(n, k, false));
        let weight = PackedWeight::from_bf16_le(&vec![0; 2 * n * k], n, k);
        assert_eq!(weight.bytes(), PackedWeight::predicted_bytes(n, k, true));
    }
}
