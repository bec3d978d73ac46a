//! The tensors of a model's GGUF file, and the model's tensors in a GGUF file: one description read in both directions.

use std::collections::HashMap;

use super::gguf_config::GgufReader;
use super::gguf_names::usual_name;
use super::gguf_rules::{GgufRules, Limit, Placed, gguf_rules};
use super::piece::{Change, Piece, joined};
use super::role::{ExpectedTensor, Role};
use super::spec::{FfnSpec, ModelSpec};
use super::view::{Entry, Take};
use super::{FamilyError, RopeScaling};
use crate::model::{GgufFile, TensorMeta, TensorSource};

/// One tensor of a GGUF file and where its values come from.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    pub name: String,
    /// Row-major shape `[.., rows, cols]`; the file stores the dimensions reversed.
    pub shape: Vec<usize>,
    /// The role of the first source; `None` for values that no tensor of the model holds.
    pub role: Option<Role>,
    pub content: GgufContent,
    /// What happens to the values of `content`.
    pub change: Change,
}

#[derive(Clone, Debug, PartialEq)]
pub enum GgufContent {
    /// One tensor of the model as it is.
    Copy(String),
    /// Parts of tensors of the model, in the order of the file's data.
    Pieces(Vec<Piece>),
    /// One tensor per expert, stacked along a new first dimension.
    Stack(Vec<String>),
    /// Values that no tensor of the model holds (frequency divisors).
    Values(Vec<f32>),
}

impl GgufTensor {
    /// What the tensor is made of, in order; nothing for values.
    pub fn pieces(&self) -> Vec<Piece> {
        let elements: usize = self.shape.iter().product();
        match &self.content {
            GgufContent::Copy(source) => vec![Piece::run(source, 0, elements)],
            GgufContent::Pieces(pieces) => pieces.clone(),
            GgufContent::Stack(sources) => {
                let each = elements / sources.len().max(1);
                sources.iter().map(|source| Piece::run(source, 0, each)).collect()
            }
            GgufContent::Values(_) => Vec::new(),
        }
    }

    /// The tensors of the model that it takes values from.
    pub fn sources(&self) -> Vec<&str> {
        match &self.content {
            GgufContent::Copy(source) => vec![source],
            GgufContent::Pieces(pieces) => {
                let mut names: Vec<&str> = pieces.iter().map(|piece| piece.source.as_str()).collect();
                names.dedup();
                names
            }
            GgufContent::Stack(sources) => sources.iter().map(String::as_str).collect(),
            GgufContent::Values(_) => Vec::new(),
        }
    }
}

/// Name of the tensor that carries per-pair frequency divisors.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";
/// Names of those of LongRoPE, for short and long contexts.
pub(super) const ROPE_FACTORS: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

/// Every tensor of the model's GGUF file, in the order a forward pass meets them.
///
/// # Errors
/// The family cannot be written to GGUF; the model has something that a GGUF file of it cannot say.
pub fn gguf_tensors(spec: &ModelSpec) -> Result<Vec<GgufTensor>, FamilyError> {
    let rules = gguf_rules(spec)?;
    if let Some(Limit { what, supported }) = limit(spec, &rules) {
        let what = format!("a GGUF file of a model {what}");
        return Err(FamilyError::Unsupported { what, supported });
    }
    Ok(laid_out(spec, &rules))
}

/// What a file of the architecture cannot say of this model.
fn limit(spec: &ModelSpec, rules: &GgufRules) -> Option<Limit> {
    if has_uneven_experts(spec, rules.leading_dense) {
        let supported = if rules.leading_dense {
            "the same number in every block after the dense ones, or none"
        } else {
            "the same number of experts in every block, or none"
        };
        return Limit::new("whose blocks differ in their number of experts", supported);
    }
    if spec.blocks.iter().filter_map(|b| b.attention()).any(|a| a.window.is_some()) {
        return Limit::new("with sliding-window attention", "full causal attention");
    }
    if let Some(strange) = spec.tensors().into_iter().find(|tensor| !(rules.reads)(tensor.role)) {
        return Limit::new(format!("with the tensor {}", strange.name), "what llama.cpp reads of the architecture");
    }
    match spec.rope.scaling {
        RopeScaling::Long { .. } if !rules.long_rope => {
            return Limit::new("with rope scaling longrope", "default, linear, llama3, yarn");
        }
        RopeScaling::Dynamic { .. } => {
            let what = "whose positions are scaled by the length of the text (dynamic NTK)";
            return Limit::new(what, "default, linear, llama3 and yarn rope scaling");
        }
        _ => {}
    }
    (rules.limit)(spec)
}

/// True when the model has a mixture in some but not all blocks, or mixtures of different sizes: GGUF holds one
/// expert count for the whole file, and most readers expect a mixture in every block.
fn has_uneven_experts(spec: &ModelSpec, leading_dense: bool) -> bool {
    let count = |ffn: &FfnSpec| match ffn {
        FfnSpec::Moe(moe) => moe.experts.len(),
        FfnSpec::Dense(_) => 0,
    };
    let counts: Vec<usize> =
        spec.blocks.iter().map(|b| count(&b.ffn)).skip_while(|&n| leading_dense && n == 0).collect();
    counts.windows(2).any(|pair| pair[0] != pair[1])
}

/// The file's tensors under the architecture's rules.
fn laid_out(spec: &ModelSpec, rules: &GgufRules) -> Vec<GgufTensor> {
    let mut out: Vec<GgufTensor> = Vec::new();
    for tensor in spec.tensors() {
        let change = (rules.change)(tensor.role);
        let role = Some(tensor.role);
        if let Role::Expert { expert, .. } | Role::ExpertBias { expert, .. } = tensor.role {
            let name = file_name(rules, tensor.role);
            if expert > 0 {
                if let Some(GgufTensor { content: GgufContent::Stack(sources), shape, .. }) =
                    out.iter_mut().rev().find(|t| t.name == name)
                {
                    sources.push(tensor.name);
                    shape[0] += 1;
                }
                continue;
            }
            let shape = [vec![1], tensor.shape].concat();
            out.push(GgufTensor { name, shape, role, content: GgufContent::Stack(vec![tensor.name]), change });
        } else if let Some(placed) = placed(spec, rules, &tensor) {
            let layer = tensor.role.layer().unwrap_or(0);
            out.extend(placed.into_iter().map(|Placed { name, shape, pieces }| {
                let content = GgufContent::Pieces(pieces);
                GgufTensor { name: format!("blk.{layer}.{name}"), shape, role, content, change }
            }));
        } else {
            let name = file_name(rules, tensor.role);
            out.push(GgufTensor { name, shape: tensor.shape, role, content: GgufContent::Copy(tensor.name), change });
        }
    }
    out.extend(divisors(spec));
    out
}

/// The pairs' frequency divisors, where the rope has some.
fn divisors(spec: &ModelSpec) -> Vec<GgufTensor> {
    let tensor = |name: &str, divisors: &[f64]| GgufTensor {
        name: name.to_owned(),
        shape: vec![divisors.len()],
        role: None,
        content: GgufContent::Values(divisors.iter().map(|&d| d as f32).collect()),
        change: Change::None,
    };
    match &spec.rope.scaling {
        RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) => {
            vec![tensor(ROPE_FREQS, &spec.rope.frequency_divisors())]
        }
        RopeScaling::Long { short, long, .. } => {
            let [short_name, long_name] = ROPE_FACTORS;
            vec![tensor(long_name, &long.divisors), tensor(short_name, &short.divisors)]
        }
        _ => Vec::new(),
    }
}

fn file_name(rules: &GgufRules, role: Role) -> String {
    match ((rules.name)(role), role.layer()) {
        (Some(name), Some(layer)) => format!("blk.{layer}.{name}"),
        (Some(name), None) => name.to_owned(),
        (None, _) => usual_name(role),
    }
}

/// Where a tensor goes that is not copied whole.
fn placed(spec: &ModelSpec, rules: &GgufRules, tensor: &ExpectedTensor) -> Option<Vec<Placed>> {
    let interleaved = |name, layer: usize, is_query: bool| {
        let attention = spec.blocks[layer].attention()?;
        let heads = if is_query { attention.heads } else { attention.kv_heads };
        Some(vec![Placed { name, shape: tensor.shape.clone(), pieces: vec![interleaved(tensor, heads)] }])
    };
    let own = (rules.placing)(spec, tensor);
    own.or_else(|| match tensor.role {
        Role::Q(layer) if rules.permutes_qk => interleaved("attn_q.weight", layer, true),
        Role::QBias(layer) if rules.permutes_qk => interleaved("attn_q.bias", layer, true),
        Role::K(layer) if rules.permutes_qk => interleaved("attn_k.weight", layer, false),
        Role::KBias(layer) if rules.permutes_qk => interleaved("attn_k.bias", layer, false),
        _ => None,
    })
}

/// Rows of q or k in which the rotary pairs (i, i + half a head) of each head are neighbours.
fn interleaved(tensor: &ExpectedTensor, heads: usize) -> Piece {
    let rows = tensor.shape.first().copied().unwrap_or(1);
    let (width, cols) = (rows / heads, tensor.shape.iter().skip(1).product::<usize>());
    let half = width / 2;
    let loops = vec![(heads, width * cols), (half, cols), (2, half * cols), (cols, 1)];
    // The last loop must run through neighbours, also where a row is one element.
    Piece { source: tensor.name.clone(), start: 0, loops: if cols == 1 { loops[..3].to_vec() } else { loops } }
}

/// The file's tensors under the names of the specification: experts taken out of their stack, rows in their order, values
/// as the model has them.
///
/// # Errors
/// A tensor of the file has another shape than the architecture's.
pub(super) fn entries(file: &GgufFile, spec: &ModelSpec, rules: &GgufRules) -> Result<Vec<Entry>, FamilyError> {
    let unchanged = (rules.unchanged)(&GgufReader { file, arch: rules.arch })?;
    let rules = &GgufRules { change: if unchanged { |_| Change::None } else { rules.change }, ..*rules };
    // Of each tensor of the model: where parts of it begin and what they are read from.
    let mut parts: HashMap<String, Vec<(usize, Piece)>> = HashMap::new();
    for tensor in laid_out(spec, rules) {
        let Some(meta) = file.meta(&tensor.name) else { continue };
        check_shape(meta, &tensor.shape)?;
        let mut offset = 0;
        for piece in tensor.pieces() {
            parts.entry(piece.source.clone()).or_default().extend(piece.inverse(&tensor.name, offset));
            offset += piece.elements();
        }
    }
    let mut entries = Vec::new();
    for tensor in spec.tensors() {
        let elements = tensor.elements() as usize;
        let pieces = parts.remove(&tensor.name).and_then(|parts| in_order(parts, elements));
        let (pieces, change) = match pieces {
            Some(pieces) => (pieces, (rules.change)(tensor.role)),
            // Older files may hold in one piece what the architecture now has in several.
            None => {
                let name = usual_name(tensor.role);
                let stacked = matches!(tensor.role, Role::Expert { .. } | Role::ExpertBias { .. });
                let Some(meta) = file.meta(&name).filter(|meta| !stacked && meta.elems() == elements) else { continue };
                check_shape(meta, &tensor.shape)?;
                (vec![Piece::run(&name, 0, elements)], (rules.change)(tensor.role))
            }
        };
        let source = pieces.first().map(|piece| piece.source.clone()).unwrap_or_default();
        let take = match (&pieces[..], change) {
            ([Piece { start, loops, .. }], Change::None) if matches!(loops[..], [(_, 1)]) => {
                Take::Run { first: *start }
            }
            _ => Take::Pieces { pieces, change },
        };
        entries.push(Entry { name: tensor.name, shape: tensor.shape, source, take });
    }
    Ok(entries)
}

/// The parts of a tensor one after another; `None` where some are missing.
fn in_order(mut parts: Vec<(usize, Piece)>, elements: usize) -> Option<Vec<Piece>> {
    parts.sort_by_key(|(start, _)| *start);
    let mut end = 0;
    for (start, piece) in &parts {
        if *start != end {
            return None;
        }
        end += piece.elements();
    }
    (end == elements).then(|| joined(parts.into_iter().map(|(_, piece)| piece)))
}

/// Dimensions of one element make no difference.
fn check_shape(found: &TensorMeta, wanted: &[usize]) -> Result<(), FamilyError> {
    let plain = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
    if plain(&found.shape) == plain(wanted) {
        return Ok(());
    }
    let (name, found) = (found.name.clone(), found.shape.clone());
    Err(FamilyError::WrongShape { name, found, wanted: wanted.to_vec(), more: 0 })
}

/// Which role each tensor of a file has.
pub(super) fn roles(spec: &ModelSpec, rules: &GgufRules) -> HashMap<String, Role> {
    let usual = spec.tensors().into_iter().map(|tensor| (usual_name(tensor.role), tensor.role));
    let own = laid_out(spec, rules).into_iter().filter_map(|tensor| Some((tensor.name, tensor.role?)));
    usual.chain(own).collect()
}
