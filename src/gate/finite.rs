//! Finds the first value of a tensor that is not a number or infinite, at about the speed of memory.

use crate::model::Dtype;

/// Index of the first element that is NaN or infinite; `None` when all are finite or the type has no such values.
/// `bytes` is little-endian, as stored in safetensors. Block types are not looked into (their scales are checked by
/// scoring the file).
pub fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    match dtype {
        Dtype::BF16 => first_u16(bytes, 0x7f80),
        Dtype::F16 => first_u16(bytes, 0x7c00),
        Dtype::F32 => bytes
            .chunks_exact(4)
            .position(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7f80_0000 == 0x7f80_0000),
        Dtype::F64 => bytes.chunks_exact(8).position(|b| (u16::from_le_bytes([b[6], b[7]]) & 0x7ff0) == 0x7ff0),
        _ => None,
    }
}

/// A 16-bit float is not finite when all exponent bits are set. Blocks are first judged as a whole, without a branch
/// per value, so that the compiler can use wide registers.
fn first_u16(bytes: &[u8], exponent: u16) -> Option<usize> {
    const BLOCK: usize = 4096;
    let value = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]) & exponent == exponent;
    for (i, block) in bytes.chunks(BLOCK).enumerate() {
        let bad = block.chunks_exact(2).fold(false, |any, b| any | value(b));
        if bad {
            return block.chunks_exact(2).position(value).map(|at| i * BLOCK / 2 + at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_type_names_the_element() {
        let clean: Vec<u8> = (0..5000).flat_map(|i| bf16::from_f32(i as f32).to_le_bytes()).collect();
        assert_eq!(first_non_finite(Dtype::BF16, &clean), None);
        let mut nan = clean.clone();
        nan[2 * 4321..2 * 4321 + 2].copy_from_slice(&bf16::NAN.to_le_bytes());
        assert_eq!(first_non_finite(Dtype::BF16, &nan), Some(4321));
        let half: Vec<u8> = [f16::MAX, f16::NEG_INFINITY].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(first_non_finite(Dtype::F16, &half), Some(1));
        let single: Vec<u8> = [f32::MAX, f32::MIN_POSITIVE, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(first_non_finite(Dtype::F32, &single), Some(2));
        let double: Vec<u8> = [f64::MAX, f64::INFINITY].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(first_non_finite(Dtype::F64, &double), Some(1));
        assert_eq!(first_non_finite(Dtype::I64, &[0xff; 16]), None);
    }
}
