//! Eight blocks side by side: element j of eight neighbouring blocks in one array, so that a search over scales runs for
//! eight blocks at once and every sum is taken in one fixed order, whatever the machine.

/// Blocks in a group.
pub(super) const LANES: usize = 8;

/// One number per block of a group.
pub(super) type Lanes = [f32; LANES];

/// A number per lane.
#[inline(always)]
pub(super) fn lanes(number: impl Fn(usize) -> f32) -> Lanes {
    let mut out = [0.0; LANES];
    for (lane, out) in out.iter_mut().enumerate() {
        *out = number(lane);
    }
    out
}

/// Up to eight blocks of `N` values and the weight of every value's squared error.
pub(super) struct Blocks<const N: usize> {
    pub x: [Lanes; N],
    pub w: [Lanes; N],
}

impl<const N: usize> Blocks<N> {
    /// Neighbouring blocks, at most eight; lanes without a block hold zeros of weight zero.
    #[inline(always)]
    pub fn gather(values: &[f32], weights: &[f32]) -> Self {
        let mut blocks = Blocks { x: [[0.0; LANES]; N], w: [[0.0; LANES]; N] };
        let pairs = values.as_chunks::<N>().0.iter().zip(weights.as_chunks::<N>().0);
        for (lane, (x, w)) in pairs.enumerate().take(LANES) {
            for j in 0..N {
                blocks.x[j][lane] = x[j];
                blocks.w[j][lane] = w[j];
            }
        }
        blocks
    }
}

/// The nearest integer, ties to even, of a number below 2^22.
#[inline(always)]
pub(super) fn round(v: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (v + MAGIC) - MAGIC
}

/// `v` within bounds; the lower one for NaN.
#[inline(always)]
pub(super) fn within(v: f32, low: f32, high: f32) -> f32 {
    let v = if v > low { v } else { low };
    if v < high { v } else { high }
}

/// `1 / v`, and 0 for a `v` that has no finite inverse.
#[inline(always)]
pub(super) fn inverse(v: f32) -> f32 {
    let inverse = 1.0 / v;
    if inverse.abs() <= f32::MAX { inverse } else { 0.0 }
}

/// A small whole number as a byte.
#[inline(always)]
pub(super) fn byte(v: f32) -> u8 {
    // SAFETY: clamped to the range of the type, NaN included.
    unsafe { within(v, 0.0, 255.0).to_int_unchecked() }
}

/// The value of largest magnitude with its sign; of equal ones the first.
#[inline(always)]
pub(super) fn extreme(block: &[f32]) -> f32 {
    let (smallest, largest) = bounds(block);
    if largest > -smallest && largest > 0.0 {
        largest
    } else if largest < -smallest && smallest < 0.0 {
        smallest
    } else {
        // Both signs reach the same magnitude (or the block is all zero): the first one decides.
        block.iter().copied().find(|v| v.abs() == largest && *v != 0.0).unwrap_or(0.0)
    }
}

/// The smallest and the largest value.
#[inline(always)]
pub(super) fn bounds(block: &[f32]) -> (f32, f32) {
    let first = block.first().copied().unwrap_or(0.0);
    let low = block.iter().fold(first, |low, &v| if v < low { v } else { low });
    let high = block.iter().fold(first, |high, &v| if v > high { v } else { high });
    (low, high)
}
