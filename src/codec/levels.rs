//! Levels fitted to a group of values, and how a format stores them.
//!
//! `value = step[part] · table[code] + offset[part]`, a part being a fixed number of neighbouring columns of the group.
//! A refit asks for other steps; what comes back is what the format can store.

use half::{bf16, f16};

use super::lanes::{inverse, round, within};

/// Parts a group has at most.
pub const MOST_PARTS: usize = 16;

/// The levels of a part before step and offset, ascending; codes number them from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Table {
    /// Every whole number from the first to the second.
    Whole(f32, f32),
    Uneven(&'static [f32]),
}

impl Table {
    /// How many levels there are.
    pub fn count(self) -> usize {
        match self {
            Table::Whole(low, high) => (high - low) as usize + 1,
            Table::Uneven(levels) => levels.len(),
        }
    }
}

/// The width of a stored scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleType {
    F16,
    BF16,
}

impl ScaleType {
    /// The stored number nearest to `v` that is finite.
    pub(super) fn nearest(self, v: f32) -> f32 {
        match self {
            ScaleType::F16 => super::super_block::finite_f16(v).to_f32(),
            ScaleType::BF16 => bf16::from_f32(within(v, -3.38e38, 3.38e38)).to_f32(),
        }
    }

    pub(super) fn bytes(self, v: f32) -> [u8; 2] {
        match self {
            ScaleType::F16 => f16::from_f32(v).to_le_bytes(),
            ScaleType::BF16 => bf16::from_f32(v).to_le_bytes(),
        }
    }

    pub(super) fn read(self, raw: [u8; 2]) -> f32 {
        match self {
            ScaleType::F16 => f16::from_le_bytes(raw).to_f32(),
            ScaleType::BF16 => bf16::from_le_bytes(raw).to_f32(),
        }
    }
}

/// How steps and offsets are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Store {
    /// One scale for the group; the sign is free where `signed`.
    Scale { kind: ScaleType, signed: bool },
    /// A scale and an offset, both of this type.
    ScaleOffset { kind: ScaleType },
    /// A scale and the whole code that stands for zero, up to `most`.
    ScaleZero { kind: ScaleType, most: f32 },
    /// Per part a multiple from `low` to `high` of one f16 step and, where `offsets`, one from 0 to `high` of another
    /// f16 step, which is subtracted.
    Multiples { low: f32, high: f32, offsets: bool },
    /// A power of two: half of 2^(field − 127).
    Power,
}

/// Levels of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct Levels {
    /// How many parts the group has, at most [`MOST_PARTS`].
    pub parts: usize,
    /// Columns of a part.
    pub width: usize,
    pub steps: [f32; MOST_PARTS],
    /// −0.0 where the format has none, which changes no sum.
    pub offsets: [f32; MOST_PARTS],
    pub table: Table,
    pub(super) store: Store,
    /// The numbers the parts' multiples multiply; of a group of one part its step and what is stored for its offset.
    pub(super) head: [f32; 2],
    pub(super) multiples: [[i16; MOST_PARTS]; 2],
}

impl Levels {
    /// A group of one part: the storable step and offset nearest to these.
    pub(super) fn single(width: usize, table: Table, store: Store, step: f32, offset: f32) -> Self {
        let mut levels = Levels {
            parts: 1,
            width,
            steps: [0.0; MOST_PARTS],
            offsets: [-0.0; MOST_PARTS],
            table,
            store,
            head: [0.0; 2],
            multiples: [[0; MOST_PARTS]; 2],
        };
        levels.set_single(step, offset);
        levels
    }

    /// As [`Levels::single`] for a step and an offset that were stored.
    pub(super) fn stored(width: usize, table: Table, store: Store, step: f32, offset: f32) -> Self {
        let mut levels = Levels::single(width, table, store, step, offset);
        (levels.steps[0], levels.offsets[0]) = (step, offset);
        levels
    }

    fn set_single(&mut self, step: f32, offset: f32) {
        let (step, offset, second) = match self.store {
            Store::Scale { kind, signed } => {
                let step = kind.nearest(step);
                (if signed || step > 0.0 { step } else { 0.0 }, -0.0, 0.0)
            }
            Store::ScaleOffset { kind } => {
                let offset = kind.nearest(offset);
                (kind.nearest(step), offset, offset)
            }
            Store::ScaleZero { kind, most } => {
                let step = kind.nearest(step);
                let zero = round(within(-offset * inverse(step), 0.0, most));
                (step, -(step * zero), zero)
            }
            Store::Power => (power_near(step), -0.0, 0.0),
            Store::Multiples { .. } => return,
        };
        (self.steps[0], self.offsets[0], self.head) = (step, offset, [step, second]);
    }

    /// A group of parts whose steps are multiples of `head[0]` and whose offsets are those of −`head[1]`.
    pub(super) fn shared(
        width: usize,
        table: Table,
        store: Store,
        head: [f32; 2],
        multiples: [[i16; MOST_PARTS]; 2],
        parts: usize,
    ) -> Self {
        let mut levels = Levels {
            parts,
            width,
            steps: [0.0; MOST_PARTS],
            offsets: [-0.0; MOST_PARTS],
            table,
            store,
            head,
            multiples,
        };
        levels.multiply();
        levels
    }

    fn multiply(&mut self) {
        let offsets = matches!(self.store, Store::Multiples { offsets: true, .. });
        for part in 0..self.parts {
            self.steps[part] = self.head[0] * f32::from(self.multiples[0][part]);
            self.offsets[part] = if offsets { -(self.head[1] * f32::from(self.multiples[1][part])) } else { -0.0 };
        }
    }

    /// The part a column of the group lies in.
    #[inline(always)]
    pub fn part(&self, column: usize) -> usize {
        column / self.width
    }

    /// The levels of one part.
    #[inline(always)]
    pub fn rungs(&self, part: usize) -> Rungs {
        let step = self.steps[part];
        Rungs { step, offset: self.offsets[part], inverse: inverse(step), table: self.table }
    }

    /// The level nearest to `value` at a column of the group: its code and what it stands for.
    pub fn nearest(&self, column: usize, value: f32) -> (u8, f32) {
        self.rungs(self.part(column)).nearest(value)
    }

    /// What a code stands for at a column of the group.
    pub fn value(&self, column: usize, code: u8) -> f32 {
        self.rungs(self.part(column)).value(code)
    }

    /// All steps and all offsets multiplied by these: the nearest that can be stored. Multiples stay.
    pub fn rescaled(&self, by_step: f32, by_offset: f32) -> Levels {
        let mut levels = self.clone();
        match self.store {
            Store::Multiples { .. } => {
                levels.head = [self.head[0] * by_step, self.head[1] * by_offset].map(|v| ScaleType::F16.nearest(v));
                levels.multiply();
            }
            _ => levels.set_single(self.steps[0] * by_step, self.offsets[0] * by_offset),
        }
        levels
    }

    /// One part with another step and offset: the nearest that can be stored while the other parts stay as they are.
    pub fn with_part(&self, part: usize, step: f32, offset: f32) -> Levels {
        let mut levels = self.clone();
        match self.store {
            Store::Multiples { low, high, offsets } => {
                let whole = |v: f32, head: f32, low: f32| round(within(v * inverse(head), low, high)) as i16;
                levels.multiples[0][part] = whole(step, self.head[0], low);
                if offsets {
                    levels.multiples[1][part] = whole(-offset, self.head[1], 0.0);
                }
                levels.multiply();
            }
            _ => levels.set_single(step, offset),
        }
        levels
    }
}

/// The levels of one part, ready for many values.
#[derive(Clone, Copy, Debug)]
pub struct Rungs {
    pub step: f32,
    pub offset: f32,
    inverse: f32,
    table: Table,
}

impl Rungs {
    /// The nearest level's code and value.
    #[inline(always)]
    pub fn nearest(&self, value: f32) -> (u8, f32) {
        let v = (value - self.offset) * self.inverse;
        match self.table {
            Table::Whole(low, high) => {
                let level = round(within(v, low, high));
                (super::lanes::byte(level - low), self.step * level + self.offset)
            }
            Table::Uneven(levels) => {
                let above = levels.windows(2).filter(|pair| v >= (pair[0] + pair[1]) * 0.5).count();
                (above as u8, self.step * levels[above] + self.offset)
            }
        }
    }

    /// The code of the level nearest to a place among the levels, before step and offset.
    #[inline(always)]
    pub fn nearest_place(&self, place: f32) -> u8 {
        match self.table {
            Table::Whole(low, high) => super::lanes::byte(round(within(place, low, high)) - low),
            Table::Uneven(levels) => levels.windows(2).filter(|pair| place >= (pair[0] + pair[1]) * 0.5).count() as u8,
        }
    }

    /// The place nearest to that of `value` whose nearest level is the one of `code`.
    pub fn place_within(&self, code: u8, value: f32) -> f32 {
        let level = self.level(code);
        // Not on the border itself.
        const INSIDE: f32 = 0.49;
        let last = self.table.count() as u8 - 1;
        let below = if code > 0 { level - self.level(code - 1) } else { 1.0 };
        let above = if code < last { self.level(code + 1) - level } else { 1.0 };
        within((value - self.offset) * self.inverse, level - INSIDE * below, level + INSIDE * above)
    }

    /// The lowest and the highest place that make a difference: half a level beyond the last ones.
    pub fn reach(&self) -> (f32, f32) {
        let last = self.table.count() as u8 - 1;
        (self.level(0) - 0.5, self.level(last) + 0.5)
    }

    /// The level of a code, before step and offset.
    #[inline(always)]
    pub fn level(&self, code: u8) -> f32 {
        match self.table {
            Table::Whole(low, _) => low + f32::from(code),
            Table::Uneven(levels) => levels[usize::from(code)],
        }
    }

    /// What a code stands for.
    #[inline(always)]
    pub fn value(&self, code: u8) -> f32 {
        self.step * self.level(code) + self.offset
    }
}

/// The power of two nearest in ratio, within what a field of eight bits can say.
fn power_near(v: f32) -> f32 {
    let field = if v > 0.0 { within(v.log2().round() + 127.0, 1.0, 253.0) } else { 1.0 };
    f32::from_bits((field as u32) << 23)
}
