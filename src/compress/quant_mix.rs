//! The mixes people name (`Q4_K_M`, `Q2_K`, …): which tensor gets which type.
//!
//! The rules are llama.cpp's, so that a file named Q4_K_M is what people expect, and so that files compare: the table
//! says which tensors take another type than the mix's own. Rows that a type's block does not divide take llama.cpp's
//! replacement, which is recorded. `tests/fixtures/mixes.json` holds what llama.cpp itself chose.

use crate::codec::Dtype;
use crate::family::{Delta, Latent, Part, Role};

/// A mix: its own type, and the exceptions of [`RULES`].
#[derive(Debug, PartialEq, Eq)]
pub struct QuantMix {
    /// As recipes name it.
    pub name: &'static str,
    /// The type of every matrix that no rule mentions.
    pub base: Dtype,
    /// `general.file_type` of such a file.
    pub file_type: u32,
}

macro_rules! mixes {
    ($($name:literal = $base:ident, $file_type:literal;)+) => {
        /// Every mix this build writes, plain types first.
        pub static QUANT_MIXES: [QuantMix; QUANT_TYPES.len()] =
            [$(QuantMix { name: $name, base: Dtype::$base, file_type: $file_type }),+];
        /// Their names.
        pub const QUANT_TYPES: [&str; [$($name),+].len()] = [$($name),+];
    };
}

mixes! {
    "F32" = F32, 0;
    "F16" = F16, 1;
    "BF16" = BF16, 32;
    "Q8_0" = Q8_0, 7;
    "Q6_K" = Q6K, 18;
    "Q5_1" = Q5_1, 9;
    "Q5_K_M" = Q5K, 17;
    "Q5_K_S" = Q5K, 16;
    "Q5_0" = Q5_0, 8;
    "Q4_1" = Q4_1, 3;
    "Q4_K_M" = Q4K, 15;
    "Q4_K_S" = Q4K, 14;
    "IQ4_NL" = Iq4Nl, 25;
    "Q4_0" = Q4_0, 2;
    "IQ4_XS" = Iq4Xs, 30;
    "MXFP4" = Mxfp4, 38;
    "Q3_K_L" = Q3K, 13;
    "Q3_K_M" = Q3K, 12;
    "Q3_K_S" = Q3K, 11;
    "Q2_K" = Q2K, 10;
    "Q2_0" = Q2_0, 41;
    "TQ2_0" = Tq2_0, 37;
    "TQ1_0" = Tq1_0, 36;
}

/// The mix with this name, in any case.
pub fn quant_mix(name: &str) -> Option<&'static QuantMix> {
    QUANT_MIXES.iter().find(|mix| mix.name.eq_ignore_ascii_case(name))
}

/// What a tensor is to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Never quantized: vectors, routers, convolutions.
    Exact,
    Embedding,
    /// The output head; the embedding too where it is the head.
    Head,
    Value,
    Key,
    AttentionOut,
    Down,
    ExpertDown,
    /// Another projection of routed experts.
    Expert,
    Other,
}

impl Kind {
    pub(super) fn of(role: Option<Role>, dims: usize, tied: bool) -> Kind {
        use Kind::*;
        match role {
            _ if dims < 2 => Exact,
            None | Some(Role::Router(_) | Role::SharedGate(_)) => Exact,
            Some(Role::Delta { tensor: Delta::Conv, .. }) => Exact,
            Some(Role::Latent { tensor: Latent::QANorm | Latent::KvANorm, .. }) => Exact,
            Some(Role::Head) => Head,
            Some(Role::Embed) => {
                if tied {
                    Head
                } else {
                    Embedding
                }
            }
            // Fused queries, keys and values count as values.
            Some(Role::V(_) | Role::Delta { tensor: Delta::Qkv, .. }) => Value,
            Some(Role::K(_)) => Key,
            Some(Role::O(_)) => AttentionOut,
            Some(Role::Mlp { part: Part::Down, .. } | Role::Shared { part: Part::Down, .. }) => Down,
            Some(Role::Expert { part: Part::Down, .. }) => ExpertDown,
            Some(Role::Expert { .. }) => Expert,
            Some(_) => Other,
        }
    }
}

/// What the rules ask about a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub layers: usize,
    /// Tensors of kind [`Kind::Value`].
    pub values: usize,
    /// Query heads to a key head.
    pub sharing: usize,
    /// Routed experts; 0 for a dense model.
    pub experts: usize,
    /// An importance matrix is used.
    pub informed: bool,
}

/// When a rule holds, for tensor `nth` of `all` of its kind.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// The first so many.
    First(usize),
    /// The first 1/n of them.
    FirstPart(usize),
    /// The first and the last eighth, and every third between.
    MoreBits,
    /// Four or more query heads read one value head.
    FourShare,
    EightExperts,
    Informed(&'static When),
    Blind(&'static When),
}

impl When {
    fn holds(self, nth: usize, all: usize, facts: &Facts) -> bool {
        match self {
            When::Always => true,
            When::First(n) => nth < n,
            When::FirstPart(n) => nth < all / n,
            When::MoreBits => nth < all / 8 || nth >= 7 * all / 8 || (nth - all / 8) % 3 == 2,
            When::FourShare => facts.sharing >= 4,
            When::EightExperts => facts.experts == 8,
            When::Informed(when) => facts.informed && when.holds(nth, all, facts),
            When::Blind(when) => !facts.informed && when.holds(nth, all, facts),
        }
    }
}

/// Kind, mixes, when, type: the first rule that fits a tensor decides; without one, the mix's own type.
const RULES: &[(Kind, &[&str], When, Dtype)] = &[
    (Kind::Head, &["Q8_0"], When::Always, Dtype::Q8_0),
    (Kind::Head, QUANTIZED, When::Always, Dtype::Q6K),
    (Kind::Embedding, &["TQ1_0", "TQ2_0", "Q2_0"], When::Always, Dtype::Q4K),
    // A mixture of eight shares its attention among all experts: more bits there cost little.
    (Kind::Value, QUANTIZED, When::EightExperts, Dtype::Q8_0),
    (Kind::Key, QUANTIZED, When::EightExperts, Dtype::Q8_0),
    (Kind::Value, &["Q2_K"], When::FourShare, Dtype::Q4K),
    (Kind::Value, &["Q2_K"], When::Always, Dtype::Q3K),
    (Kind::Value, &["Q3_K_M"], When::First(2), Dtype::Q5K),
    (Kind::Value, &["Q3_K_M"], When::Always, Dtype::Q4K),
    (Kind::Value, &["Q3_K_L"], When::Always, Dtype::Q5K),
    (Kind::Value, &["IQ4_NL", "IQ4_XS"], When::FourShare, Dtype::Q5K),
    (Kind::Value, &["Q4_K_M", "Q5_K_M"], When::MoreBits, Dtype::Q6K),
    (Kind::Value, &["Q4_K_S"], When::First(4), Dtype::Q5K),
    (
        Kind::AttentionOut,
        &["Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M"],
        When::EightExperts,
        Dtype::Q5K,
    ),
    (Kind::AttentionOut, &["Q3_K_L"], When::EightExperts, Dtype::Q3K),
    (Kind::AttentionOut, &["Q2_K"], When::Always, Dtype::Q3K),
    (Kind::AttentionOut, &["Q3_K_M"], When::Always, Dtype::Q4K),
    (Kind::AttentionOut, &["Q3_K_L"], When::Always, Dtype::Q5K),
    (Kind::Down, &["Q2_K"], When::Always, Dtype::Q3K),
    (Kind::Down, &["Q3_K_M"], When::FirstPart(16), Dtype::Q5K),
    (Kind::Down, &["Q3_K_M"], When::Always, Dtype::Q4K),
    (Kind::Down, &["Q3_K_L"], When::Always, Dtype::Q5K),
    (Kind::Down, &["Q4_K_M", "Q5_K_M"], When::MoreBits, Dtype::Q6K),
    (Kind::Down, &["Q4_K_S"], When::FirstPart(8), Dtype::Q5K),
    (Kind::Down, &["IQ4_NL", "IQ4_XS"], When::Blind(&When::FirstPart(8)), Dtype::Q5K),
    (Kind::Down, &["Q4_0"], When::Informed(&When::FirstPart(8)), Dtype::Q4_1),
    (Kind::Down, &["Q5_0"], When::Informed(&When::FirstPart(8)), Dtype::Q5_1),
];

/// Every mix of block types.
const QUANTIZED: &[&str] = {
    let all: &[&str] = &QUANT_TYPES;
    all.split_at(3).1
};

/// What a tensor takes where its rows are no whole number of blocks; `F16` where these do not fit either.
const REPLACEMENTS: [(Dtype, Dtype); 9] = [
    (Dtype::Q6K, Dtype::Q8_0),
    (Dtype::Q5K, Dtype::Q5_1),
    (Dtype::Q4K, Dtype::Q5_0),
    (Dtype::Q3K, Dtype::Q4_0),
    (Dtype::Q2K, Dtype::Q4_0),
    (Dtype::Iq4Xs, Dtype::Iq4Nl),
    (Dtype::Q2_0, Dtype::Q4_0),
    (Dtype::Tq2_0, Dtype::Q4_0),
    (Dtype::Tq1_0, Dtype::Q4_0),
];

/// The type a mix has for a tensor of a model: the `nth` of its kind for values, that of block `nth` for others.
pub(super) fn wanted(mix: &QuantMix, kind: Kind, nth: usize, facts: &Facts) -> Dtype {
    let is_expert = matches!(kind, Kind::Expert | Kind::ExpertDown);
    if kind == Kind::Exact {
        return Dtype::F32;
    }
    if mix.base == Dtype::Mxfp4 && !is_expert {
        return Dtype::Q8_0;
    }
    let all = if kind == Kind::Value { facts.values } else { facts.layers };
    let ruled_as = if kind == Kind::ExpertDown { Kind::Down } else { kind };
    let rule = RULES
        .iter()
        .find(|(what, mixes, when, _)| *what == ruled_as && mixes.contains(&mix.name) && when.holds(nth, all, facts));
    match rule.map_or(mix.base, |(.., dtype)| *dtype) {
        // The largest dense models of the first generation: eight query heads to a value head make its matrix small.
        Dtype::Q3K | Dtype::Q4K if kind == Kind::Value && facts.layers == 80 && facts.sharing > 1 => Dtype::Q5K,
        dtype => dtype,
    }
}

/// The type that fits rows of `columns` elements: `wanted`, or its replacement. A head whose rows are no whole number of
/// the mix's own blocks is `Q8_0`.
pub(super) fn fitting(wanted: Dtype, kind: Kind, mix: &QuantMix, columns: usize) -> Dtype {
    let fits = |dtype: Dtype| columns.is_multiple_of(dtype.block_elems());
    if fits(wanted) && (kind != Kind::Head || fits(mix.base)) {
        return wanted;
    }
    let replacement = match kind {
        Kind::Head => Some(Dtype::Q8_0),
        _ => REPLACEMENTS.iter().find(|(from, _)| *from == wanted).map(|(_, to)| *to),
    };
    replacement.filter(|dtype| fits(*dtype)).unwrap_or(Dtype::F16)
}

/// The type that rows of `columns` elements take where a tensor may be of any type and is to be `wanted`: that or its
/// replacement.
pub(super) fn fitting_rows(wanted: Dtype, columns: usize) -> Dtype {
    let fits = |dtype: &Dtype| columns.is_multiple_of(dtype.block_elems());
    let replacement = REPLACEMENTS.iter().find(|(from, _)| *from == wanted).map(|(_, to)| *to);
    [Some(wanted), replacement].into_iter().flatten().find(fits).unwrap_or(Dtype::F16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "3 Q6_K, 5 Q4_K" as a list of eight.
    fn unroll(runs: &str) -> Vec<&str> {
        let runs = runs.split(", ").map(|run| run.split_once(' ').unwrap());
        runs.flat_map(|(count, name)| std::iter::repeat_n(name, count.parse().unwrap())).collect()
    }

    fn kind_named(name: &str, tied: bool) -> Kind {
        match name {
            "token_embd.weight" if tied => Kind::Head,
            "token_embd.weight" => Kind::Embedding,
            "output.weight" => Kind::Head,
            "attn_v.weight" | "attn_qkv.weight" => Kind::Value,
            "attn_k.weight" => Kind::Key,
            "attn_output.weight" => Kind::AttentionOut,
            "ffn_down.weight" | "ffn_down_shexp.weight" => Kind::Down,
            "ffn_down_exps.weight" => Kind::ExpertDown,
            "ffn_gate_exps.weight" | "ffn_up_exps.weight" => Kind::Expert,
            name if ["norm", "gate_inp", "conv1d"].iter().any(|part| name.contains(part)) => Kind::Exact,
            _ => Kind::Other,
        }
    }

    #[test]
    fn every_tensor_gets_the_type_llama_cpp_gives_it() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mixes.json");
        let models: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut seen = 0;
        for (model_name, model) in models.as_object().unwrap() {
            let number = |key: &str| model[key].as_u64().map_or(0, |n| n as usize);
            let tied = model["tied"].as_bool() == Some(true);
            let is = |key: &str| model[key].as_bool() == Some(true);
            // The block a tensor of a kind stands in: every fourth one of a hybrid has full attention, the first ones of a
            // mixture may be dense.
            let block = |name: &str, nth: usize| match name {
                "attn_qkv.weight" if is("delta") => nth + nth / 3,
                "attn_v.weight" if is("delta") => 4 * nth + 3,
                name if name.contains("exp") => nth + number("lead"),
                _ => nth,
            };
            let facts = Facts {
                layers: number("layers"),
                values: if is("latent") { 0 } else { number("layers") },
                sharing: number("heads") / number("kv"),
                experts: number("experts"),
                informed: false,
            };
            for (mix_name, kinds) in model["types"].as_object().unwrap() {
                let mix = quant_mix(mix_name).unwrap();
                for (name, runs) in kinds.as_object().unwrap() {
                    let kind = kind_named(name, tied);
                    let columns = model["columns"][name].as_u64().unwrap() as usize;
                    for (nth, theirs) in unroll(runs.as_str().unwrap()).into_iter().enumerate() {
                        let wanted = wanted(mix, kind, block(name, nth), &facts);
                        let ours = fitting(wanted, kind, mix, columns);
                        assert_eq!(ours.as_str(), theirs, "{model_name}, {mix_name}: {name} {nth}");
                        seen += 1;
                    }
                }
            }
        }
        assert!(seen > 20_000, "{seen} tensors");
    }

    #[test]
    fn every_mix_has_its_name_once_and_a_codec() {
        for mix in &QUANT_MIXES {
            assert_eq!(quant_mix(&mix.name.to_lowercase()).unwrap(), mix);
            assert!(crate::codec::codec_for(mix.base).is_some(), "{}", mix.name);
            assert_eq!(QUANT_MIXES.iter().filter(|other| other.file_type == mix.file_type).count(), 1, "{}", mix.name);
        }
    }
}
