//! Products of row-major matrices on the calling thread, in one order of sums.

/// `y (+)= a · b` for `a [m, k]`, `b [k, n]` and `y [m, n]`, whose rows lie `a_row`, `b_row` and `y_row` numbers apart.
///
/// # Panics
/// When a slice is too short.
pub(super) fn add_product(
    (m, k, n): (usize, usize, usize),
    (a, a_row): (&[f32], usize),
    (b, b_row): (&[f32], usize),
    (y, y_row): (&mut [f32], usize),
    add: bool,
) {
    product((m, k, n), (a, a_row), (b, b_row, 1), (y, y_row), add);
}

/// `y = a · bᵀ` for `a [m, k]`, `b [n, k]` and `y [m, n]`.
///
/// # Panics
/// When a slice is too short.
pub(super) fn product_turned(
    size: (usize, usize, usize),
    a: (&[f32], usize),
    (b, b_row): (&[f32], usize),
    y: (&mut [f32], usize),
) {
    product(size, a, (b, 1, b_row), y, false);
}

fn product(
    (m, k, n): (usize, usize, usize),
    (a, a_row): (&[f32], usize),
    (b, b_row, b_col): (&[f32], usize, usize),
    (y, y_row): (&mut [f32], usize),
    add: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    let reach = |rows: usize, row: usize, cols: usize| if rows == 0 { 0 } else { (rows - 1) * row + cols };
    let b_reach = if k == 0 { 0 } else { (k - 1) * b_row + (n - 1) * b_col + 1 };
    assert!(a.len() >= reach(m, a_row, k) && b.len() >= b_reach && y.len() >= reach(m, y_row, n));
    // SAFETY: the three matrices lie within their slices, as just asserted; y is uniquely borrowed.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            y_row as isize,
            add,
            a.as_ptr(),
            1,
            a_row as isize,
            b.as_ptr(),
            b_col as isize,
            b_row as isize,
            if add { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Σ a·b in f64, in eight partial sums.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for l in 0..8 {
            sums[l] += f64::from(a[l]) * f64::from(b[l]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    sums.iter().sum::<f64>() + rest
}
