//! Operands in the form a kernel reads: [`PackedWeight`] (owned, kept for a block) and [`PackedInput`] (for one or a
//! few products, in a recycled buffer).

use std::borrow::Cow;

use rayon::prelude::*;

use super::amx::Amx;
use super::recycled::Recycled;
use super::tiles::{PANEL, SourceRows, TileBuffer, TileRow, input_panel_len, weight_panel_len};
use super::{Kernel, kernel};

/// A weight matrix W [n, k] of a linear layer (n outputs), packed for one kernel.
pub struct PackedWeight {
    n: usize,
    k: usize,
    kernel: Kernel,
    data: WeightData,
}

pub(super) enum WeightData {
    Tiles {
        rows: TileBuffer,
        /// Every weight is representable in bf16: no low halves are kept.
        exact: bool,
    },
    Rows(Vec<f32>),
}

impl PackedWeight {
    /// From bf16 in little-endian bytes, row-major [n, k], any alignment (a slice of a mapped file).
    ///
    /// # Panics
    /// When `bytes` is not n·k values long.
    pub fn from_bf16_le(bytes: &[u8], n: usize, k: usize) -> Self {
        Self::from_bf16_le_for(kernel(), bytes, n, k)
    }

    /// From f32 values, row-major [n, k].
    ///
    /// # Panics
    /// When `values` is not n·k long.
    pub fn from_f32(values: &[f32], n: usize, k: usize) -> Self {
        Self::from_f32_for(kernel(), values, n, k)
    }

    /// [`PackedWeight::from_bf16_le`] for a kernel of the caller's choice.
    pub fn from_bf16_le_for(kernel: Kernel, bytes: &[u8], n: usize, k: usize) -> Self {
        assert!(bytes.len() == 2 * n * k, "{} bytes are not {n} × {k} bf16 weights", bytes.len());
        let data = match kernel {
            Kernel::Amx(amx) => weight_tiles(amx, n, k, true, |rows| SourceRows::Bf16(&bytes[2 * rows.0..2 * rows.1])),
            Kernel::Portable => {
                let mut values = vec![0f32; n * k];
                values.par_iter_mut().zip(bytes.par_chunks_exact(2)).with_min_len(1 << 14).for_each(|(value, b)| {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                });
                WeightData::Rows(values)
            }
        };
        Self { n, k, kernel, data }
    }

    /// [`PackedWeight::from_f32`] for a kernel of the caller's choice.
    pub fn from_f32_for(kernel: Kernel, values: &[f32], n: usize, k: usize) -> Self {
        assert!(values.len() == n * k, "{} values are not {n} × {k} weights", values.len());
        let data = match kernel {
            Kernel::Amx(amx) => {
                let exact = values.par_chunks(1 << 14).all(|chunk| chunk.iter().all(|v| v.to_bits() & 0xffff == 0));
                weight_tiles(amx, n, k, exact, |rows| SourceRows::F32(&values[rows.0..rows.1]))
            }
            Kernel::Portable => WeightData::Rows(values.to_vec()),
        };
        Self { n, k, kernel, data }
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The kernel this weight is packed for; its inputs must be packed for the same one.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> u64 {
        match &self.data {
            WeightData::Tiles { rows, .. } => size_of_val(rows.rows()) as u64,
            WeightData::Rows(values) => size_of_val(&values[..]) as u64,
        }
    }

    /// What [`PackedWeight::bytes`] will say in this process for a weight [n, k]; `exact`: all values are bf16.
    pub fn predicted_bytes(n: usize, k: usize, exact: bool) -> u64 {
        let bytes = match kernel() {
            Kernel::Amx(_) => n.div_ceil(PANEL) * weight_panel_len(k, exact) * size_of::<TileRow>(),
            Kernel::Portable => n * k * size_of::<f32>(),
        };
        bytes as u64
    }

    pub(super) fn data(&self) -> &WeightData {
        &self.data
    }
}

/// Packs panel by panel; `source` gives the elements from one index to another.
fn weight_tiles<'w>(
    amx: Amx,
    n: usize,
    k: usize,
    exact: bool,
    source: impl Fn((usize, usize)) -> SourceRows<'w> + Sync,
) -> WeightData {
    let len = weight_panel_len(k, exact);
    let mut rows = TileBuffer::zeroed(n.div_ceil(PANEL) * len);
    if len > 0 {
        rows.rows_mut().par_chunks_exact_mut(len).enumerate().for_each(|(i, panel)| {
            let (from, to) = (i * PANEL, n.min((i + 1) * PANEL));
            amx.pack_weight(source((from * k, to * k)), k, exact, panel);
        });
    }
    WeightData::Tiles { rows, exact }
}

/// Activations x [m, k], packed for one kernel. The buffer goes back to a pool when the value is dropped.
pub struct PackedInput<'x> {
    m: usize,
    k: usize,
    data: InputData<'x>,
}

pub(super) enum InputData<'x> {
    Tiles(Amx, Recycled),
    Rows(Cow<'x, [f32]>),
}

impl<'x> PackedInput<'x> {
    /// Packs x [m, k], row-major, for this process's kernel.
    ///
    /// # Panics
    /// When `x` is not m·k values long.
    pub fn new(x: &'x [f32], m: usize, k: usize) -> Self {
        Self::for_kernel(kernel(), x, m, k)
    }

    /// [`PackedInput::new`] for a kernel of the caller's choice.
    pub fn for_kernel(kernel: Kernel, x: &'x [f32], m: usize, k: usize) -> Self {
        assert!(x.len() == m * k, "{} values are not {m} × {k} activations", x.len());
        let data = match kernel {
            Kernel::Amx(amx) => input_tiles(amx, m, k, |i| &x[i * k..(i + 1) * k]),
            Kernel::Portable => InputData::Rows(Cow::Borrowed(x)),
        };
        Self { m, k, data }
    }

    /// Packs chosen rows of x [_, k], in the order given (the tokens of one expert), for this process's kernel.
    ///
    /// # Panics
    /// When a row lies outside `x`.
    pub fn gather(x: &[f32], k: usize, rows: &[u32]) -> Self {
        Self::gather_for(kernel(), x, k, rows)
    }

    /// [`PackedInput::gather`] for a kernel of the caller's choice.
    pub fn gather_for(kernel: Kernel, x: &[f32], k: usize, rows: &[u32]) -> Self {
        let row = |i: usize| &x[rows[i] as usize * k..][..k];
        let data = match kernel {
            Kernel::Amx(amx) => input_tiles(amx, rows.len(), k, row),
            Kernel::Portable => InputData::Rows((0..rows.len()).flat_map(row).copied().collect()),
        };
        Self { m: rows.len(), k, data }
    }

    /// Bytes a packed input [m, k] takes beside x itself in this process.
    pub fn predicted_bytes(m: usize, k: usize) -> u64 {
        match kernel() {
            Kernel::Amx(_) => (m.div_ceil(PANEL) * input_panel_len(k) * size_of::<TileRow>()) as u64,
            Kernel::Portable => 0,
        }
    }

    /// Rows.
    pub fn m(&self) -> usize {
        self.m
    }

    /// Columns.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The kernel this input is packed for.
    pub fn kernel(&self) -> Kernel {
        match self.data {
            InputData::Tiles(amx, _) => Kernel::Amx(amx),
            InputData::Rows(_) => Kernel::Portable,
        }
    }

    pub(super) fn data(&self) -> &InputData<'x> {
        &self.data
    }
}

fn input_tiles<'a>(amx: Amx, m: usize, k: usize, row: impl Fn(usize) -> &'a [f32] + Sync) -> InputData<'static> {
    let len = input_panel_len(k);
    let mut tiles = Recycled::new(m.div_ceil(PANEL) * len);
    if len > 0 {
        tiles.rows_mut().par_chunks_exact_mut(len).enumerate().for_each(|(i, panel)| {
            amx.pack_input(|r| row(i * PANEL + r), PANEL.min(m - i * PANEL), panel);
        });
    }
    InputData::Tiles(amx, tiles)
}
