//! Plain number types to `f32` and back.

use half::slice::HalfFloatSliceExt;

use super::{Dtype, multiversion};

multiversion! {
    /// Little-endian bf16 bytes to `f32`, exactly.
    ///
    /// # Panics
    /// When `raw` does not hold exactly two bytes per value.
    pub fn widen_bf16(raw: &[u8], values: &mut [f32]) = widen_bf16_body
}

#[inline(always)]
fn widen_bf16_body(raw: &[u8], values: &mut [f32]) {
    assert_eq!(raw.len(), 2 * values.len(), "two bytes per bf16 value");
    let (pairs, _) = raw.as_chunks::<2>();
    for (value, pair) in values.iter_mut().zip(pairs) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16);
    }
}

multiversion! {
    /// `f32` to little-endian bf16 bytes, rounded to nearest even; NaN stays NaN (quiet).
    ///
    /// # Panics
    /// When `raw` does not hold exactly two bytes per value.
    pub fn narrow_to_bf16(values: &[f32], raw: &mut [u8]) = narrow_to_bf16_body
}

#[inline(always)]
fn narrow_to_bf16_body(values: &[f32], raw: &mut [u8]) {
    assert_eq!(raw.len(), 2 * values.len(), "two bytes per bf16 value");
    let (pairs, _) = raw.as_chunks_mut::<2>();
    for (value, pair) in values.iter().zip(pairs) {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        *pair = (if value.is_nan() { quiet } else { rounded } as u16).to_le_bytes();
    }
}

/// Little-endian f16 bytes to `f32`, exactly.
///
/// # Panics
/// When `raw` does not hold exactly two bytes per value.
pub fn widen_f16(raw: &[u8], values: &mut [f32]) {
    assert_eq!(raw.len(), 2 * values.len(), "two bytes per f16 value");
    const CHUNK: usize = 1024;
    let mut halves = [half::f16::ZERO; CHUNK];
    for (raw, values) in raw.chunks(2 * CHUNK).zip(values.chunks_mut(CHUNK)) {
        let halves = &mut halves[..values.len()];
        for (half, pair) in halves.iter_mut().zip(raw.as_chunks::<2>().0) {
            *half = half::f16::from_le_bytes(*pair);
        }
        halves.convert_to_f32_slice(values);
    }
}

/// Any plain number type to `f32` (integers and f64 are rounded to nearest). `false` when `dtype` is not one of those.
///
/// # Panics
/// When the length of `raw` does not fit the number of values.
pub fn widen_plain(dtype: Dtype, raw: &[u8], values: &mut [f32]) -> bool {
    macro_rules! each {
        ($ty:ty) => {{
            const SIZE: usize = size_of::<$ty>();
            assert_eq!(raw.len(), SIZE * values.len(), "{SIZE} bytes per {dtype} value");
            for (value, raw) in values.iter_mut().zip(raw.as_chunks::<SIZE>().0) {
                *value = <$ty>::from_le_bytes(*raw) as f32;
            }
        }};
    }
    match dtype {
        Dtype::F64 => each!(f64),
        Dtype::F32 => each!(f32),
        Dtype::F16 => widen_f16(raw, values),
        Dtype::BF16 => widen_bf16(raw, values),
        Dtype::I64 => each!(i64),
        Dtype::I32 => each!(i32),
        Dtype::I16 => each!(i16),
        Dtype::I8 => each!(i8),
        Dtype::U64 => each!(u64),
        Dtype::U32 => each!(u32),
        Dtype::U16 => each!(u16),
        Dtype::U8 | Dtype::Bool => each!(u8),
        _ => return false,
    }
    true
}
