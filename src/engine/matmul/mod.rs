//! Matrix products for linear layers on the CPU: y[m, n] = x[m, k] · W[n, k]ᵀ (+ bias), all row-major.
//!
//! Enters: activations in f32 and weights in bf16 or f32 ([`PackedWeight`], made once per block and pass). Leaves:
//! f32. Two kernels, chosen once per process by [`kernel`]:
//!
//! * **AMX** (x86-64 Linux with AMX-BF16). x is split into two bf16 halves, x ≈ hi + lo, and y = hi·W + lo·W with f32
//!   accumulators; weights that are not exact in bf16 are split too (hi·Whi + lo·Whi + hi·Wlo).
//! * **portable**: f32 weights and the `gemm` crate, as candle multiplies.
//!
//! Error. A split value loses at most 2⁻¹⁶ of its magnitude (two roundings to 8 bits), and the product of two low
//! halves, which is left out, is at most 2⁻¹⁶·|x|·|w|. So an output is off by at most 2⁻¹⁶·Σ|x|·|w| for weights that
//! are exact in bf16 and 3·2⁻¹⁶ for others; since the parts are independent, the error in practice is about √k times
//! smaller. On top comes f32 accumulation, as in any f32 product (at worst k·2⁻²⁴ of the same sum). A plain bf16
//! product would lose 2⁻⁷. AMX treats denormals as zero, and magnitudes above bf16's largest value (3.39·10³⁸) count
//! as infinite: where such a value takes part, the output is not finite.
//!
//! An output depends only on its row of x, its row of W and (AMX) on whether its row is among the last 16 or fewer
//! of an input, which are summed in another order; not on threads, blocks or its neighbours.

mod amx_panels;
mod causal;
mod outer;
mod packed;
mod portable;
mod recycled;
mod tiles;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[path = "amx_absent.rs"]
mod amx;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx_outer;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[path = "amx_outer_absent.rs"]
mod amx_outer;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx_pack;

#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use amx::Amx;
pub(super) use causal::causal;
pub(super) use outer::{Lines, Side, add_outer, mirror};
use packed::{InputData, WeightData};
pub use packed::{PackedInput, PackedWeight};
pub use recycled::release_buffers;

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Tile products of bf16 halves; the value proves that the processor and the system allow them.
    Amx(Amx),
    /// f32 through the `gemm` crate.
    Portable,
}

impl Kernel {
    /// Every kernel that works here, the preferred one first.
    pub fn available() -> Vec<Self> {
        Amx::detect().map(Self::Amx).into_iter().chain([Self::Portable]).collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Amx(_) => "amx-bf16",
            Self::Portable => "portable",
        }
    }
}

/// The kernel of this process, found once. `FACTORYLINE_KERNEL=portable` in the environment forbids the special ones;
/// any other value, or none, means the fastest there is.
pub fn kernel() -> Kernel {
    static KERNEL: OnceLock<Kernel> = OnceLock::new();
    *KERNEL.get_or_init(|| match std::env::var("FACTORYLINE_KERNEL").as_deref() {
        Ok("portable") => Kernel::Portable,
        _ => Amx::detect().map_or(Kernel::Portable, Kernel::Amx),
    })
}

/// y = x · Wᵀ (+ bias). `x` is [m, k], `y` is [m, n], `bias` has n values; parallel on the current rayon pool.
///
/// # Panics
/// When a length does not fit the shapes.
pub fn matmul(x: &[f32], m: usize, w: &PackedWeight, y: &mut [f32], bias: Option<&[f32]>) {
    matmul_packed(&PackedInput::for_kernel(w.kernel(), x, m, w.k()), w, y, bias);
}

/// [`matmul`] with an input that is packed already, for inputs that meet several weights (q, k and v; gate and up).
///
/// # Panics
/// When a length does not fit the shapes, or input and weight were packed for different kernels.
pub fn matmul_packed(x: &PackedInput<'_>, w: &PackedWeight, y: &mut [f32], bias: Option<&[f32]>) {
    let (m, n, k) = (x.m(), w.n(), w.k());
    assert!(x.kernel() == w.kernel(), "input and weight were packed for different kernels");
    assert!(x.k() == k, "input has {} columns, weight has {k}", x.k());
    assert!(y.len() == m * n, "output has {} values, the product has {m} × {n}", y.len());
    assert!(bias.is_none_or(|b| b.len() == n), "bias does not have {n} values");
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        y.chunks_exact_mut(n).for_each(|row| match bias {
            Some(bias) => row.copy_from_slice(bias),
            None => row.fill(0.0),
        });
        return;
    }
    match (x.data(), w.data()) {
        (InputData::Tiles(amx, input), WeightData::Tiles { rows, exact }) => {
            amx_panels::Product { amx: *amx, m, n, k, input: input.rows(), weight: rows.rows(), exact: *exact, bias }
                .run(y);
        }
        (InputData::Rows(input), WeightData::Rows(weight)) => portable::matmul(input, m, weight, n, k, y, bias),
        _ => unreachable!("input and weight were packed for the same kernel"),
    }
}
