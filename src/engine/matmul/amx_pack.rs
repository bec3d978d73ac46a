//! Packing for the AMX kernel, with AVX-512.
//!
//! An f32 value x is split as x ≈ hi + lo, hi = bf16(x), lo = bf16(x − hi), both rounded to nearest: what is lost is at
//! most 2⁻¹⁶·|x|.

use std::arch::x86_64::*;

use super::amx::Amx;
use super::tiles::{PANEL, STEP, SourceRows, TileRow, input_panel_len, weight_panel_len};

impl Amx {
    /// Splits and packs `rows` ≤ 32 input rows (all of one length k) into `panel`.
    pub fn pack_input<'x>(self, row: impl Fn(usize) -> &'x [f32], rows: usize, panel: &mut [TileRow]) {
        let mut source = [&[][..]; PANEL];
        for (i, slot) in source[..rows].iter_mut().enumerate() {
            *slot = row(i);
        }
        let k = source[0].len();
        assert!(source[..rows].iter().all(|r| r.len() == k) && panel.len() == input_panel_len(k));
        // SAFETY: `self` proves the features.
        unsafe { input_panel(&source[..rows], k, panel) }
    }

    /// Packs up to 32 rows of `k` columns, `stride` values apart, as inexact weight rows (keys).
    pub fn pack_strided(self, values: &[f32], stride: usize, rows: usize, k: usize, panel: &mut [TileRow]) {
        assert!(rows <= PANEL && k <= stride && values.len() >= (rows.max(1) - 1) * stride + k);
        assert!(panel.len() == weight_panel_len(k, false));
        // SAFETY: `self` proves the features.
        unsafe { f32_panel(values, k, rows, stride, false, panel) }
    }

    /// Packs a matrix of `rows` rows, `stride` values apart, of which up to 32 columns count, as one panel of the
    /// *transposed* inexact weight: the columns are the outputs, the rows are summed over (values).
    pub fn pack_transposed(self, values: &[f32], stride: usize, rows: usize, columns: usize, panel: &mut [TileRow]) {
        assert!(columns <= PANEL.min(stride) && values.len() >= (rows.max(1) - 1) * stride + columns);
        assert!(panel.len() == weight_panel_len(rows, false));
        // SAFETY: `self` proves the features.
        unsafe { transposed_panel(values, stride, rows, columns, panel) }
    }

    /// Packs up to 32 weight rows of `k` columns into `panel`. `exact`: the values are all representable in bf16.
    pub fn pack_weight(self, source: SourceRows<'_>, k: usize, exact: bool, panel: &mut [TileRow]) {
        let (len, bf16) = match source {
            SourceRows::Bf16(bytes) => (bytes.len() / 2, true),
            SourceRows::F32(values) => (values.len(), false),
        };
        let rows = len / k;
        assert!(len == rows * k && rows <= PANEL && panel.len() == weight_panel_len(k, exact) && (exact || !bf16));
        // SAFETY: `self` proves the features.
        unsafe {
            match source {
                SourceRows::Bf16(bytes) => bf16_panel(bytes, k, rows, panel),
                SourceRows::F32(values) => f32_panel(values, k, rows, k, exact, panel),
            }
        }
    }
}

/// The lanes of a step that lie inside the matrix.
fn lanes(k: usize, at: usize) -> u32 {
    match k - at {
        left @ 0..STEP => (1 << left) - 1,
        _ => u32::MAX,
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn input_panel(rows: &[&[f32]], k: usize, panel: &mut [TileRow]) {
    for (step, tiles) in panel.chunks_exact_mut(2 * PANEL).enumerate() {
        let at = step * STEP;
        let (high, low) = tiles.split_at_mut(PANEL);
        for (row, (high, low)) in rows.iter().zip(high.iter_mut().zip(low)) {
            let (hi, lo) = split(&row[at..], lanes(k, at));
            store(high, hi);
            store(low, lo);
        }
        // Rows past the end are multiplied only inside a tile whose other rows count, and never stored.
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn bf16_panel(bytes: &[u8], k: usize, rows: usize, panel: &mut [TileRow]) {
    for (step, tiles) in panel.chunks_exact_mut(PANEL).enumerate() {
        let at = step * STEP;
        for (half, tile) in tiles.chunks_exact_mut(16).enumerate() {
            let mut lines = [_mm512_setzero_si512(); 16];
            for (i, line) in lines.iter_mut().enumerate().take(rows.saturating_sub(16 * half)) {
                let source = &bytes[2 * ((16 * half + i) * k + at)..];
                let lanes = lanes(k, at);
                debug_assert!(source.len() >= 2 * lanes.count_ones() as usize);
                // SAFETY: the masked-in lanes lie in `source`: row and step are inside the matrix.
                *line = unsafe { _mm512_maskz_loadu_epi16(lanes, source.as_ptr().cast()) };
            }
            store_transposed(tile, lines);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn f32_panel(values: &[f32], k: usize, rows: usize, stride: usize, exact: bool, panel: &mut [TileRow]) {
    for (step, tiles) in panel.chunks_exact_mut(weight_panel_len(STEP, exact)).enumerate() {
        let at = step * STEP;
        let (high, low) = tiles.split_at_mut(PANEL);
        for half in 0..2 {
            let mut lines = [[_mm512_setzero_si512(); 16]; 2];
            for i in 0..rows.saturating_sub(16 * half).min(16) {
                let (hi, lo) = split(&values[(16 * half + i) * stride + at..], lanes(k, at));
                lines[0][i] = hi;
                lines[1][i] = lo;
            }
            store_transposed(&mut high[16 * half..][..16], lines[0]);
            if !exact {
                store_transposed(&mut low[16 * half..][..16], lines[1]);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn transposed_panel(values: &[f32], stride: usize, rows: usize, columns: usize, panel: &mut [TileRow]) {
    let order = lanes_of_pairs();
    for (step, tiles) in panel.chunks_exact_mut(2 * PANEL).enumerate() {
        let (high, low) = tiles.split_at_mut(PANEL);
        for (i, (high, low)) in high.iter_mut().zip(low).enumerate() {
            let (half, row) = (i / 16, step * STEP + 2 * (i % 16));
            let mask = ((1u32 << columns.saturating_sub(16 * half).min(16)) - 1) as u16;
            let line = |row: usize| {
                let at = values.as_ptr().wrapping_add(row * stride + 16 * half);
                // SAFETY: the masked-in values lie inside the matrix (asserted by the caller's checks).
                if row < rows { unsafe { _mm512_maskz_loadu_ps(mask, at) } } else { _mm512_setzero_ps() }
            };
            let (hi, lo) = halves(line(row), line(row + 1));
            store(high, _mm512_permutexvar_epi16(order, hi));
            store(low, _mm512_permutexvar_epi16(order, lo));
        }
    }
}

/// Interleaves the halves of 32 bf16: elements 0, 16, 1, 17, …
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn lanes_of_pairs() -> __m512i {
    let mut order = [0u16; 32];
    for (i, place) in order.iter_mut().enumerate() {
        *place = (i / 2 + 16 * (i % 2)) as u16;
    }
    // SAFETY: the array is 64 bytes.
    unsafe { _mm512_loadu_epi16(order.as_ptr().cast()) }
}

/// 32 consecutive values (those in `lanes`; the others are zero) as high and low halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split(values: &[f32], lanes: u32) -> (__m512i, __m512i) {
    debug_assert!(values.len() >= lanes.count_ones() as usize);
    let at = values.as_ptr();
    // SAFETY: the masked-in lanes lie in `values`; lanes are a prefix, so the second load is empty when fewer than 16
    // are left.
    let (first, second) = unsafe {
        (_mm512_maskz_loadu_ps(lanes as u16, at), _mm512_maskz_loadu_ps((lanes >> 16) as u16, at.wrapping_add(16)))
    };
    halves(first, second)
}

/// The high and low halves of 32 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn halves(first: __m512, second: __m512) -> (__m512i, __m512i) {
    // SAFETY: __m512bh and __m512i are both 64 bytes of plain bits.
    let hi: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(second, first)) };
    let rest_first = _mm512_sub_ps(first, widen(_mm512_castsi512_si256(hi)));
    let rest_second = _mm512_sub_ps(second, widen(_mm512_extracti64x4_epi64::<1>(hi)));
    // SAFETY: as above.
    let lo: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(rest_second, rest_first)) };
    (hi, lo)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen(bf16: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bf16)))
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(row: &mut TileRow, value: __m512i) {
    // SAFETY: a tile row is 64 bytes, aligned to 64.
    unsafe { _mm512_store_si512((&raw mut row.0).cast(), value) }
}

/// Stores the 16 × 16 transpose of 32-bit elements (pairs of bf16): in `rows`, line i is column i of a tile.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_transposed(tile: &mut [TileRow], rows: [__m512i; 16]) {
    let mut pairs = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // quads[4i + c]: in 128-bit lane l, column 4l + c of rows 4i to 4i + 3.
    let mut quads = pairs;
    for i in (0..16).step_by(4) {
        quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for c in 0..4 {
        let even = _mm512_shuffle_i32x4::<0x88>(quads[c], quads[4 + c]);
        let even_tail = _mm512_shuffle_i32x4::<0x88>(quads[8 + c], quads[12 + c]);
        let odd = _mm512_shuffle_i32x4::<0xdd>(quads[c], quads[4 + c]);
        let odd_tail = _mm512_shuffle_i32x4::<0xdd>(quads[8 + c], quads[12 + c]);
        store(&mut tile[c], _mm512_shuffle_i32x4::<0x88>(even, even_tail));
        store(&mut tile[4 + c], _mm512_shuffle_i32x4::<0x88>(odd, odd_tail));
        store(&mut tile[8 + c], _mm512_shuffle_i32x4::<0xdd>(even, even_tail));
        store(&mut tile[12 + c], _mm512_shuffle_i32x4::<0xdd>(odd, odd_tail));
    }
}
