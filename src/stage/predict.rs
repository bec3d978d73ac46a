//! What a stage will take, by a simple model: bytes moved and tokens computed, at rates of an ordinary machine.
//!
//! The rates are deliberately modest; the prediction is for "minutes or hours" and for refusing what cannot fit, not
//! for a schedule.

use crate::engine::matmul::{Kernel, kernel};
use crate::family::ModelSpec;
use crate::recipe::Predicted;
use crate::units::Bytes;

/// Bytes a second a streaming rewrite moves, hashing included.
const REWRITE_RATE: f64 = 300e6;
/// Weight bytes a second one quantization reads.
const QUANT_RATE: f64 = 400e6;
/// Useful floating-point operations a second and thread of a pass, by what multiplies.
const TILE_FLOPS: f64 = 200e9;
const PORTABLE_FLOPS: f64 = 40e9;
/// Weight bytes a second a pass reads and converts.
const LOAD_RATE: f64 = 500e6;
/// What the process holds whatever it does.
const BASE_RAM: u64 = 200_000_000;

/// A pass of `tokens` tokens over `spec`, weights of `stored` bytes. `head`: logits are computed.
pub fn pass(spec: &ModelSpec, stored: u64, tokens: u64, threads: usize, head: bool) -> Predicted {
    let block = spec.blocks.iter().map(|b| b.parameters()).max().unwrap_or(0);
    let head_parameters = if head { (spec.vocab * spec.hidden) as u64 } else { 0 };
    let active = spec.active_parameters().saturating_sub((spec.vocab * spec.hidden) as u64) + head_parameters;
    let rate = match kernel() {
        Kernel::Amx(_) => TILE_FLOPS,
        Kernel::Portable => PORTABLE_FLOPS,
    };
    let seconds = 2.0 * active as f64 * tokens as f64 / (rate * threads.max(1) as f64) + stored as f64 / LOAD_RATE;
    // Two blocks as f32, the hidden states of all tokens, one chunk of logits.
    let peak = BASE_RAM + 2 * 4 * block + 4 * tokens.min(1 << 20) * spec.hidden as u64 + 64_000_000;
    Predicted { peak_ram: Bytes(peak), disk: Bytes(0), seconds }
}

/// A rewrite of tensors that writes `bytes`.
pub fn rewrite(bytes: u64) -> Predicted {
    Predicted { peak_ram: Bytes(BASE_RAM), disk: Bytes(bytes), seconds: 2.0 * bytes as f64 / REWRITE_RATE }
}

/// A quantization that reads `stored` bytes and writes `bytes`.
pub fn quant(stored: u64, bytes: u64) -> Predicted {
    let seconds = stored as f64 / QUANT_RATE;
    Predicted { peak_ram: Bytes(BASE_RAM + 128_000_000), disk: Bytes(bytes), seconds }
}

/// Tokens in a text of `bytes` bytes, roughly: four bytes a token.
pub fn tokens(bytes: u64) -> u64 {
    bytes / 4 + 1
}
