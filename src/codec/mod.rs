//! Number formats: how the weights of a tensor are written as bytes.
//!
//! Enters: slices of `f32` (or raw bf16 bytes). Leaves: slices of bytes, and back. Pure functions over slices, no I/O,
//! no threads (a caller that has many rows runs them in parallel). A codec works on rows whose length is a multiple of
//! its block; a new format is one file and one line in [`CODECS`].
//!
//! The block formats that search for their scales share `lanes` (eight blocks side by side), `fit_affine` and
//! `fit_linear` (the searches), `super_block` (scales of scales) and `weights` (what an error costs where).
mod block;
mod block_grid;
mod dtype;
mod finite;
mod fit_affine;
mod fit_linear;
mod grid;
mod int_grid;
mod lanes;
mod levels;
mod mxfp4_published;
mod packed_ints;
mod six_bit;
mod super_block;
mod ternary;
mod weights;
mod widen;

pub use dtype::Dtype;
pub use finite::{first_beyond, first_non_finite};
pub use grid::{Grid, error_weights, grid_for};
pub use int_grid::{IntGrid, IntRow};
pub use levels::{Levels, MOST_PARTS, Rungs, ScaleType, Table};
pub use mxfp4_published::{MXFP4_BLOCK, MXFP4_BYTES, mxfp4_to_bf16};
pub use packed_ints::{pack_ints, packed_bytes, unpack_ints};
pub use widen::{narrow_to_bf16, widen_bf16, widen_f16, widen_plain};

/// One number format.
///
/// `encode` and `decode` are exact inverses in length: `elems` values stand for `elems / block_elems * block_bytes`
/// bytes. Both panic when the lengths do not fit (that is a caller's bug; headers are checked before they get here).
pub trait Codec: Sync {
    fn dtype(&self) -> Dtype;

    /// The format's name as operators write it, e.g. `Q8_0`.
    fn name(&self) -> &'static str {
        self.dtype().as_str()
    }

    /// One sentence for listings.
    fn summary(&self) -> &'static str;

    /// The largest magnitude the format can hold; beyond it the stored scale or value overflows to infinity.
    fn max_magnitude(&self) -> f32;

    /// Writes `values` (finite, within [`Codec::max_magnitude`]: see [`first_beyond`]) as bytes.
    fn encode(&self, values: &[f32], bytes: &mut [u8]);

    /// As [`Codec::encode`] for one row (or a part of it, whole blocks), with the importance of every column: the mean
    /// square of the inputs it meets, as an importance matrix holds them. A format that searches for its scales searches
    /// those of least weighted error; one whose scales are prescribed ignores them.
    fn encode_weighted(&self, values: &[f32], importance: &[f32], bytes: &mut [u8]) {
        assert_eq!(values.len(), importance.len(), "one importance per value");
        self.encode(values, bytes);
    }

    /// Reads bytes back as values.
    fn decode(&self, bytes: &[u8], values: &mut [f32]);

    /// The format with its codes left open, where a quantizer can choose them; plain numbers have none.
    fn grid(&self) -> Option<&dyn Grid> {
        None
    }

    /// As [`Codec::encode`], from raw little-endian bf16 (two bytes per value).
    fn encode_bf16(&self, source: &[u8], bytes: &mut [u8]) {
        // A stack buffer that stays in the first-level cache: the widened values never travel to memory.
        const CHUNK: usize = 2048;
        let mut wide = [0f32; CHUNK];
        let out_step = self.dtype().bytes_for(CHUNK);
        for (raw, out) in source.chunks(2 * CHUNK).zip(bytes.chunks_mut(out_step)) {
            let wide = &mut wide[..raw.len() / 2];
            widen_bf16(raw, wide);
            self.encode(wide, out);
        }
    }
}

crate::registry! {
    /// Every format this build can write and read.
    pub CODECS: dyn Codec {
        float32 => F32,
        float16 => F16,
        bfloat16 => Bf16,
        q8_0 => Q8_0,
        q4_0 => Q4_0,
        q4_1 => Q4_1,
        q5_0 => Q5_0,
        q5_1 => Q5_1,
        q2_k => Q2K,
        q3_k => Q3K,
        q4_k => Q4K,
        q5_k => Q5K,
        q6_k => Q6K,
        iq4_nl => Iq4Nl,
        iq4_xs => Iq4Xs,
        tq1_0 => Tq1_0,
        tq2_0 => Tq2_0,
        q2_0 => Q2_0,
        mxfp4 => Mxfp4,
    }
}

pub use q4_0::{dequantize_q4_0, quantize_q4_0};
pub use q8_0::{dequantize_q8_0, quantize_q8_0};

/// The codec of a format, or `None` when this build only knows the format's size.
pub fn codec_for(dtype: Dtype) -> Option<&'static dyn Codec> {
    CODECS.iter().copied().find(|codec| codec.dtype() == dtype)
}

/// The codec an operator names (`q8_0`, `Q8_0`, `bf16` …).
pub fn codec_named(name: &str) -> Option<&'static dyn Codec> {
    CODECS.iter().copied().find(|codec| codec.name().eq_ignore_ascii_case(name))
}

/// Compiles a function twice: for the baseline CPU and for AVX2 with F16C, chosen at run time. The bodies are the same
/// Rust code without contraction, so the results are the same to the bit.
macro_rules! multiversion {
    ($(#[$attr:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$attr])*
        $vis fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx,avx2,f16c")]
                fn with_avx2($($arg: $ty),*) {
                    $body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("f16c") {
                    // SAFETY: the features the function is compiled for have just been detected.
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

#[cfg(test)]
mod tests;
