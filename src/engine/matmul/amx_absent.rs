//! Stands in for the AMX kernel on other processors and systems: its proof of presence is never given out, so nothing
//! here can run.

use super::tiles::{SourceRows, TileRow};

/// No value of this type is ever made on this target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amx(());

/// See [`Amx`].
pub struct Configured(());

const ABSENT: &str = "there is no AMX on this target";

impl Amx {
    pub fn detect() -> Option<Self> {
        None
    }

    pub fn configure(self) -> Configured {
        unreachable!("{ABSENT}")
    }

    pub fn pack_input<'x>(self, _row: impl Fn(usize) -> &'x [f32], _rows: usize, _panel: &mut [TileRow]) {
        unreachable!("{ABSENT}")
    }

    pub fn pack_weight(self, _source: SourceRows<'_>, _k: usize, _exact: bool, _panel: &mut [TileRow]) {
        unreachable!("{ABSENT}")
    }

    pub fn pack_strided(self, _: &[f32], _stride: usize, _rows: usize, _k: usize, _panel: &mut [TileRow]) {
        unreachable!("{ABSENT}")
    }

    pub fn pack_transposed(self, _: &[f32], _stride: usize, _rows: usize, _columns: usize, _panel: &mut [TileRow]) {
        unreachable!("{ABSENT}")
    }
}

impl Configured {
    /// # Safety
    /// Cannot be called.
    pub unsafe fn multiply(&self, _: &[TileRow], _: &[TileRow], _: bool, _: bool, _: *mut f32, _: usize) {
        unreachable!("{ABSENT}")
    }
}
