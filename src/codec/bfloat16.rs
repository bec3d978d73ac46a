//! BF16: the upper half of an `f32`, rounded to nearest even.

use super::{Codec, Dtype, narrow_to_bf16, widen_bf16};

pub struct Bf16;

impl Codec for Bf16 {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }
    fn summary(&self) -> &'static str {
        "16-bit brain float; lossless for bf16 checkpoints"
    }
    fn max_magnitude(&self) -> f32 {
        // The largest finite bf16; anything nearer to the next step would round to infinity.
        f32::from_bits(0x7f7f_0000)
    }
    fn encode(&self, values: &[f32], bytes: &mut [u8]) {
        narrow_to_bf16(values, bytes);
    }
    fn decode(&self, bytes: &[u8], values: &mut [f32]) {
        widen_bf16(bytes, values);
    }
    fn encode_bf16(&self, source: &[u8], bytes: &mut [u8]) {
        bytes.copy_from_slice(source);
    }
}
