//! The numbers GGUF gives to tensor types.

use crate::codec::Dtype;

const TYPE_IDS: [(u32, Dtype); 34] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (2, Dtype::Q4_0),
    (3, Dtype::Q4_1),
    (6, Dtype::Q5_0),
    (7, Dtype::Q5_1),
    (8, Dtype::Q8_0),
    (10, Dtype::Q2K),
    (11, Dtype::Q3K),
    (12, Dtype::Q4K),
    (13, Dtype::Q5K),
    (14, Dtype::Q6K),
    (15, Dtype::Q8K),
    (16, Dtype::Iq2Xxs),
    (17, Dtype::Iq2Xs),
    (18, Dtype::Iq3Xxs),
    (19, Dtype::Iq1S),
    (20, Dtype::Iq4Nl),
    (21, Dtype::Iq3S),
    (22, Dtype::Iq2S),
    (23, Dtype::Iq4Xs),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (29, Dtype::Iq1M),
    (30, Dtype::BF16),
    (34, Dtype::Tq1_0),
    (35, Dtype::Tq2_0),
    (39, Dtype::Mxfp4),
    (40, Dtype::Nvfp4),
    (41, Dtype::Q1_0),
    (42, Dtype::Q2_0),
];

/// Types that once had a number: named in the error, never read.
const RETIRED: [(u32, &str); 9] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

/// The type with this number.
pub fn dtype_of(id: u32) -> Option<Dtype> {
    TYPE_IDS.iter().find(|(known, _)| *known == id).map(|(_, dtype)| *dtype)
}

/// The number of a type; `None` for types GGUF does not have (bool, fp8).
pub fn type_id(dtype: Dtype) -> Option<u32> {
    TYPE_IDS.iter().find(|(_, known)| *known == dtype).map(|(id, _)| *id)
}

pub(super) fn retired_name(id: u32) -> Option<&'static str> {
    RETIRED.iter().find(|(known, _)| *known == id).map(|(_, name)| *name)
}
