//! Quantization to model directories: matrices packed as compressed-tensors (`pack-quantized`) keeps them, or every tensor
//! in one half-wide type.
//!
//! Enters: an open model, a type, the columns that share a scale. Leaves: a [`PackedPlan`], and from the rows a solver has
//! chosen a directory: `config.json` says how it is packed, weights lie in safetensors. The linear layers of the blocks
//! are packed, experts one by one; embeddings, output head, routers, norms and towers stay as they are.

mod config;
mod rows;
mod write;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::CompressError;
use super::calibrated::{GridRef, Target, Targets};
use super::scaling::StoredAs;
use crate::codec::{Dtype, IntGrid, ScaleType};
use crate::family::{BlockSpec, Holding, LinearSpec, ModelSpec, OpenModel, Role, Storage};
use crate::model::{DeclaredTensor, TensorSource};

pub use config::packed_config;
pub use rows::{Unseen, solve_unseen};
pub(super) use write::copy_dense;
pub use write::write_packed;

/// What a type does to the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedForm {
    /// Every floating-point tensor in this type.
    Plain(Dtype),
    /// Linear layers as whole numbers times a scale per group.
    Ints { bits: usize, symmetric: bool },
}

/// A type as recipes name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedType {
    pub name: &'static str,
    pub form: PackedForm,
}

const fn ints(name: &'static str, bits: usize, symmetric: bool) -> PackedType {
    PackedType { name, form: PackedForm::Ints { bits, symmetric } }
}

/// Every type, in the names compressed-tensors' own presets have.
pub const PACKED_TYPES: [PackedType; 13] = [
    PackedType { name: "BF16", form: PackedForm::Plain(Dtype::BF16) },
    PackedType { name: "F16", form: PackedForm::Plain(Dtype::F16) },
    ints("W8A16", 8, true),
    ints("W8A16_ASYM", 8, false),
    ints("W7A16", 7, true),
    ints("W6A16", 6, true),
    ints("W5A16", 5, true),
    ints("W4A16", 4, true),
    ints("W4A16_ASYM", 4, false),
    ints("W3A16", 3, true),
    ints("W3A16_ASYM", 3, false),
    ints("W2A16", 2, true),
    ints("W2A16_ASYM", 2, false),
];

/// The type of this name, in any case.
pub fn packed_type(name: &str) -> Option<&'static PackedType> {
    PACKED_TYPES.iter().find(|known| known.name.eq_ignore_ascii_case(name))
}

/// The class of experts.
const EXPERTS: &str = "experts";

/// Columns that share a scale, as readers have kernels for them.
pub const GROUP_SIZES: [usize; 3] = [128, 64, 32];

/// One matrix to pack.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedMatrix {
    /// As the specification calls it.
    pub weight: String,
    /// The module it is the weight of, as the files call it.
    pub layer: String,
    pub rows: usize,
    pub cols: usize,
    /// Columns that share a scale; `None`: all of a row.
    pub group: Option<usize>,
    pub grid: IntGrid,
}

/// A tensor that is not packed.
#[derive(Clone, Debug, PartialEq)]
struct Dense {
    tensor: DeclaredTensor,
    /// What the specification calls it, where it is one tensor of the model: then its values are the model's, which may
    /// not be those of the files.
    known_as: Option<String>,
    /// A matrix that some readers take for a linear layer.
    is_linear: bool,
}

/// What the directory will hold.
#[derive(Clone, Debug)]
pub struct PackedPlan {
    pub kind: &'static PackedType,
    pub matrices: Vec<PackedMatrix>,
    dense: Vec<Dense>,
    /// The group asked for; `None`: whole rows.
    pub wanted: Option<usize>,
    /// Groups narrower than asked for, or whole rows: no multiple of it divides the row.
    pub fallbacks: Vec<Narrowed>,
    /// Type of scales, and of matrices that stay.
    half: Dtype,
    /// Prefixes of towers and other carried parts.
    carried: Vec<String>,
}

/// Layers that could not take the group that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Narrowed {
    /// `self_attn.q_proj`
    pub layers: String,
    pub count: usize,
    pub given: Option<usize>,
}

/// Plans a directory of `kind`. `wanted`: columns that share a scale, one of [`GROUP_SIZES`], or `None` for whole rows.
/// `storage` tells what lies where; `stored` are its tensors, or nothing while a model is only planned: then every tensor
/// counts as bf16 in its specified shape.
///
/// # Errors
/// A family whose packed layers no reader is known to load; experts with zero points; a layer under a name that does not
/// end in `.weight`.
pub fn plan_packed(
    spec: &ModelSpec,
    storage: &Storage,
    stored: Option<&dyn TensorSource>,
    half: Dtype,
    (kind, wanted): (&'static PackedType, Option<usize>),
) -> Result<PackedPlan, CompressError> {
    let carried = spec.carried.iter().flat_map(|part| part.prefixes.iter().cloned()).collect();
    let half = if let PackedForm::Plain(dtype) = kind.form { dtype } else { half };
    let mut plan =
        PackedPlan { kind, matrices: Vec::new(), dense: Vec::new(), wanted, fallbacks: Vec::new(), half, carried };
    let linear = linear_layers(spec);
    let all = spec.tensors();
    let mut shared: HashMap<Role, usize> = HashMap::new();
    all.iter().for_each(|tensor| *shared.entry(tensor.role).or_default() += 1);
    let shapes: HashMap<Role, Vec<usize>> = all.iter().map(|t| (t.role, t.shape.clone())).collect();
    let names: HashMap<Role, String> = all.into_iter().map(|t| (t.role, t.name)).collect();
    let ints = match kind.form {
        PackedForm::Plain(_) => None,
        PackedForm::Ints { bits, symmetric } => {
            check_family(spec, kind, symmetric)?;
            Some((bits, symmetric))
        }
    };
    let mut found: Vec<(&LinearSpec, String)> = Vec::new();
    for tensor in storage.tensors() {
        let packed = match (&tensor.holding, ints) {
            (Holding::Tensor(role), Some(_)) => match names.get(role).and_then(|name| linear.get(name.as_str())) {
                Some(layer) => vec![(*layer, module(&tensor.name)?)],
                None => Vec::new(),
            },
            (Holding::Stack { layer, parts, bias: false, .. }, Some(_)) => {
                let moe = spec.blocks.get(*layer).and_then(BlockSpec::moe);
                let experts = moe.iter().flat_map(|moe| &moe.experts);
                let layers = experts.flat_map(|expert| parts.iter().map(|part| expert.part(*part)));
                layers
                    .map(|layer| Ok((layer, expert_module(&tensor.name, layer)?)))
                    .collect::<Result<_, CompressError>>()?
            }
            _ => Vec::new(),
        };
        if packed.is_empty() {
            let role = if let Holding::Tensor(role) = &tensor.holding { Some(role) } else { None };
            // A role that two tensors have does not say which of them this is.
            let known_as = role.filter(|_| stored.is_some()).and_then(|role| Some((names.get(role)?, role)));
            let known_as = known_as.filter(|(_, role)| shared.get(role) == Some(&1)).map(|(name, _)| name);
            plan.stays((&tensor.name, known_as), &tensor.holding, stored, &shapes);
        }
        found.extend(packed);
    }
    if let Some((bits, symmetric)) = ints {
        plan.pack(found, (bits, symmetric), wanted);
    }
    Ok(plan)
}

/// Every layer that may be packed, by its weight.
fn linear_layers(spec: &ModelSpec) -> HashMap<&str, &LinearSpec> {
    let inputs = spec.blocks.iter().flat_map(BlockSpec::inputs);
    inputs.flat_map(|input| input.layers).map(|layer| (layer.weight.as_str(), layer)).collect()
}

fn check_family(spec: &ModelSpec, kind: &PackedType, symmetric: bool) -> Result<(), CompressError> {
    let refused = |reason: String, hint| Err(CompressError::Refused { what: "quant", reason, hint });
    if !crate::family::by_name(spec.family).is_some_and(|family| family.packs_layers()) {
        let reason = format!("{}: packed layers of the family {} were not seen to load", kind.name, spec.family);
        return refused(reason, "write BF16 or F16, or use format gguf");
    }
    if !symmetric && spec.experts().is_some() {
        let reason = format!("{}: readers of packed experts know no zero points", kind.name);
        return refused(reason, "use the symmetric type of as many bits, or format gguf");
    }
    Ok(())
}

/// The module of a stored weight.
fn module(stored: &str) -> Result<String, CompressError> {
    let layer = stored.strip_suffix(".weight").ok_or_else(|| CompressError::Refused {
        what: "quant",
        reason: format!("{stored}: the weight of a layer does not end in .weight"),
        hint: "use format gguf for this model",
    })?;
    Ok(layer.to_owned())
}

/// The module of one expert's matrix that lies in a stack.
fn expert_module(stack: &str, layer: &LinearSpec) -> Result<String, CompressError> {
    const MIDDLE: &str = ".experts.";
    let parts = stack.rsplit_once(MIDDLE).zip(layer.weight.rsplit_once(MIDDLE));
    match parts {
        Some(((front, _), (_, rest))) => module(&format!("{front}{MIDDLE}{rest}")),
        None => module(&layer.weight),
    }
}

/// Layers that take one group: those of one kind. All experts of the model are one, shared ones too: readers that look for
/// what experts take find whatever is said of a name with "experts" in it.
fn class_of(layer: &str) -> String {
    let mut parts = layer.rsplit('.');
    let (leaf, parent) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let is_expert = parent.bytes().all(|b| b.is_ascii_digit()) || parent.starts_with("shared_expert");
    if is_expert { EXPERTS.to_owned() } else { format!("{parent}.{leaf}") }
}

impl PackedPlan {
    /// Notes a tensor that is not packed.
    fn stays(
        &mut self,
        (name, known_as): (&str, Option<&String>),
        holding: &Holding,
        stored: Option<&dyn TensorSource>,
        shapes: &HashMap<Role, Vec<usize>>,
    ) {
        let meta = stored.and_then(|stored| stored.meta(name));
        let planned = || match holding {
            Holding::Tensor(role) => shapes.get(role).cloned().unwrap_or_default(),
            _ => Vec::new(),
        };
        let (dtype, shape) = meta.map_or_else(|| (self.half, planned()), |meta| (meta.dtype, meta.shape.clone()));
        let is_float = matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        // Vectors are kept in f32 where they are so on purpose.
        let dtype = if is_float && (shape.len() > 1 || dtype != Dtype::F32) { self.half } else { dtype };
        let is_linear = shape.len() == 2 && !matches!(holding, Holding::Tensor(Role::Embed));
        let known_as = known_as.cloned();
        self.dense.push(Dense { tensor: DeclaredTensor::new(name, dtype, shape), known_as, is_linear });
    }

    /// Notes the matrices to pack, each kind of layer with the widest group it can take.
    fn pack(&mut self, found: Vec<(&LinearSpec, String)>, (bits, symmetric): (usize, bool), wanted: Option<usize>) {
        let mut classes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (layer, module) in &found {
            classes.entry(class_of(module)).or_default().push(layer.cols);
        }
        // Zero points are read where one setting goes for all layers.
        if !symmetric {
            let all: Vec<usize> = classes.values().flatten().copied().collect();
            classes.values_mut().for_each(|cols| cols.clone_from(&all));
        }
        let group_of = |cols: &[usize]| {
            let wanted = wanted?;
            let divides = |size: &usize| *size <= wanted && cols.iter().all(|cols| cols % size == 0);
            [wanted].into_iter().chain(GROUP_SIZES).find(divides)
        };
        let groups: HashMap<&String, Option<usize>> =
            classes.iter().map(|(class, cols)| (class, group_of(cols))).collect();
        for class in classes.keys() {
            let (given, count) = (groups[class], found.iter().filter(|(_, module)| class_of(module) == *class).count());
            if given != wanted {
                self.fallbacks.push(Narrowed { layers: class.clone(), count, given });
            }
        }
        let scale = if self.half == Dtype::F16 { ScaleType::F16 } else { ScaleType::BF16 };
        let grid = |group: Option<usize>| {
            let group = group.unwrap_or(usize::MAX);
            if symmetric {
                IntGrid::symmetric(bits, group, scale, true)
            } else {
                IntGrid::asymmetric(bits, group, scale)
            }
        };
        let matrix = |(layer, module): (&LinearSpec, String)| {
            let group = groups[&class_of(&module)];
            let (weight, rows, cols) = (layer.weight.clone(), layer.rows, layer.cols);
            PackedMatrix { weight, layer: module, rows, cols, group, grid: grid(group) }
        };
        let matrices: Vec<PackedMatrix> = found.into_iter().map(matrix).collect();
        self.matrices = matrices;
    }

    /// What a solver is asked for.
    pub fn targets(&self) -> Targets {
        let target = |m: &PackedMatrix| Target { grid: GridRef::Shared(Arc::new(m.grid)), dtype: None };
        self.matrices.iter().map(|matrix| (matrix.weight.clone(), target(matrix))).collect()
    }

    /// The matrices, for a solver that sees weights only.
    pub fn unseen(&self) -> Vec<Unseen<'_>> {
        self.matrices.iter().map(|m| Unseen { weight: &m.weight, rows: m.rows, cols: m.cols, grid: &m.grid }).collect()
    }

    /// The types of what is not packed.
    pub fn stored_as(&self) -> StoredAs {
        let dense = self.dense.iter().filter_map(|dense| Some((dense.known_as.clone()?, dense.tensor.dtype)));
        StoredAs { usual: self.half, others: dense.collect() }
    }

    /// Bytes of tensor data.
    pub fn data_bytes(&self) -> u64 {
        self.declared().iter().filter_map(|tensor| tensor.dtype.checked_bytes(&tensor.shape)).sum()
    }

    /// Types of the tensors: how many there are and their bytes, the most bytes first.
    pub fn types(&self) -> Vec<(String, usize, u64)> {
        use crate::codec::Grid as _;
        let mut types: Vec<(String, usize, u64)> = Vec::new();
        let mut add = |name: String, bytes: u64| match types.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, count, sum)) => (*count, *sum) = (*count + 1, *sum + bytes),
            None => types.push((name, 1, bytes)),
        };
        for matrix in &self.matrices {
            let parts = write::parts(matrix, self.half);
            add(matrix.grid.name(), parts.iter().filter_map(|(_, t)| t.dtype.checked_bytes(&t.shape)).sum());
        }
        for Dense { tensor, .. } in &self.dense {
            add(tensor.dtype.to_string(), tensor.dtype.checked_bytes(&tensor.shape).unwrap_or(0));
        }
        types.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| a.0.cmp(&b.0)));
        types
    }

    /// What the fallbacks come to, a line each.
    pub fn fallback_lines(&self) -> Vec<String> {
        let line = |n: &Narrowed| {
            let given = n.given.map_or_else(|| "one scale a row".to_owned(), |group| format!("groups of {group}"));
            let wanted = self.wanted.unwrap_or_default();
            let (kind, layers, count) = (self.kind.name, &n.layers, n.count);
            format!("{kind}: {layers} ({count} matrices): {given}, since {wanted} does not divide every row")
        };
        self.fallbacks.iter().map(line).collect()
    }
}

/// The half-wide type of a model: f16 where its config says so, else bf16.
pub fn half_type(model: &OpenModel) -> Result<Dtype, CompressError> {
    Ok(model.config.dtype()?.filter(|dtype| *dtype == Dtype::F16).unwrap_or(Dtype::BF16))
}
