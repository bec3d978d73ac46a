//! The element types of tensors on disk, with the arithmetic of their sizes.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

macro_rules! dtypes {
    ($($variant:ident = $name:literal, $elems:literal, $bytes:literal;)+) => {
        /// An element type: plain numbers (safetensors, GGUF) and GGUF block formats. Formats without a codec are
        /// known by name and size only, so that files holding them can be inspected.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Dtype { $($variant),+ }

        impl Dtype {
            pub const ALL: &'static [Dtype] = &[$(Dtype::$variant),+];

            /// The name shown to people and written in metadata (`BF16`, `Q8_0`, `Q4_K`).
            pub const fn as_str(self) -> &'static str {
                match self { $(Dtype::$variant => $name),+ }
            }

            /// How many consecutive elements of a row form one block (1 for plain numbers).
            pub const fn block_elems(self) -> usize {
                match self { $(Dtype::$variant => $elems),+ }
            }

            /// Bytes of one block.
            pub const fn block_bytes(self) -> usize {
                match self { $(Dtype::$variant => $bytes),+ }
            }
        }
    };
}

dtypes! {
    F64 = "F64", 1, 8;
    F32 = "F32", 1, 4;
    F16 = "F16", 1, 2;
    BF16 = "BF16", 1, 2;
    I64 = "I64", 1, 8;
    I32 = "I32", 1, 4;
    I16 = "I16", 1, 2;
    I8 = "I8", 1, 1;
    U64 = "U64", 1, 8;
    U32 = "U32", 1, 4;
    U16 = "U16", 1, 2;
    U8 = "U8", 1, 1;
    Bool = "BOOL", 1, 1;
    F8E4M3 = "F8_E4M3", 1, 1;
    F8E5M2 = "F8_E5M2", 1, 1;
    F8E8M0 = "F8_E8M0", 1, 1;
    Q4_0 = "Q4_0", 32, 18;
    Q4_1 = "Q4_1", 32, 20;
    Q5_0 = "Q5_0", 32, 22;
    Q5_1 = "Q5_1", 32, 24;
    Q8_0 = "Q8_0", 32, 34;
    Q2K = "Q2_K", 256, 84;
    Q3K = "Q3_K", 256, 110;
    Q4K = "Q4_K", 256, 144;
    Q5K = "Q5_K", 256, 176;
    Q6K = "Q6_K", 256, 210;
    Q8K = "Q8_K", 256, 292;
    Iq2Xxs = "IQ2_XXS", 256, 66;
    Iq2Xs = "IQ2_XS", 256, 74;
    Iq3Xxs = "IQ3_XXS", 256, 98;
    Iq1S = "IQ1_S", 256, 50;
    Iq4Nl = "IQ4_NL", 32, 18;
    Iq3S = "IQ3_S", 256, 110;
    Iq2S = "IQ2_S", 256, 82;
    Iq4Xs = "IQ4_XS", 256, 136;
    Iq1M = "IQ1_M", 256, 56;
    Tq1_0 = "TQ1_0", 256, 54;
    Tq2_0 = "TQ2_0", 256, 66;
    Mxfp4 = "MXFP4", 32, 17;
    Nvfp4 = "NVFP4", 64, 36;
    Q1_0 = "Q1_0", 128, 18;
    Q2_0 = "Q2_0", 64, 18;
}

impl Dtype {
    /// Bytes of `elems` elements, a whole number of blocks.
    ///
    /// # Panics
    /// When `elems` is not a multiple of the block; use [`Dtype::checked_bytes`] for numbers that come from a file.
    pub fn bytes_for(self, elems: usize) -> usize {
        assert!(elems.is_multiple_of(self.block_elems()), "{elems} elements are not a whole number of {self} blocks");
        elems / self.block_elems() * self.block_bytes()
    }

    /// Bytes of a tensor with this (row-major) shape; `None` when the last dimension is not a whole number of blocks or
    /// the product overflows. A shape without dimensions is one element.
    pub fn checked_bytes(self, shape: &[usize]) -> Option<u64> {
        // As if no dimension were 0: what any of the dimensions take then fits, too.
        let elems = shape.iter().try_fold(1u64, |n, &dim| n.checked_mul(u64::try_from(dim.max(1)).ok()?))?;
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(self.block_elems()) {
            return None;
        }
        let bytes = (elems / self.block_elems() as u64).checked_mul(self.block_bytes() as u64)?;
        Some(if shape.contains(&0) { 0 } else { bytes })
    }

    /// Bits per element, scales included.
    pub fn bits(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_elems() as f64
    }

    /// True for plain floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8E4M3 | Dtype::F8E5M2)
    }

    /// The type with this name, in any case (`bf16`, `Q8_0`), also in torch's words (`bfloat16`, `float32`).
    pub fn named(name: &str) -> Option<Dtype> {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        match name {
            "bfloat16" => Some(Dtype::BF16),
            "float16" | "half" => Some(Dtype::F16),
            "float32" | "float" => Some(Dtype::F32),
            "float64" | "double" => Some(Dtype::F64),
            "float8_e4m3fn" => Some(Dtype::F8E4M3),
            "float8_e5m2" => Some(Dtype::F8E5M2),
            _ => Dtype::ALL.iter().copied().find(|dtype| dtype.as_str().eq_ignore_ascii_case(name)),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Dtype {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Dtype {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Dtype::named(&name).ok_or_else(|| de::Error::custom(format!("no element type is called {name:?}")))
    }
}
