//! Expert pruning as a streaming rewrite: drop experts, renumber the kept ones, cut the router's rows, copy the rest.
//!
//! The model is never loaded: scores come from a table (or from the router weights alone), and every tensor that stays
//! goes from the source's pages to the output in one write. Which tensor plays which role is asked of the model's spec,
//! so every family whose experts are stored one by one ("unfused") is covered.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::{ByteProgress, CompressError, Importance, Metric, keep_top};
use crate::family::{FfnSpec, MlpSpec, OpenModel, Part};
use crate::model::{DeclaredTensor, SafetensorsWriter, SettlingModel, TensorMeta, TensorSource};

/// What to prune.
#[derive(Clone, Copy, Debug)]
pub struct PruneOptions<'a> {
    /// Experts that stay in every mixture layer.
    pub keep: usize,
    /// Counts of a profile of this model; `None`: the norm of the router's rows decides.
    pub importance: Option<&'a Importance>,
}

/// What becomes of one tensor of the source.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorFate {
    /// Bytes and name stay.
    Kept,
    /// Bytes stay, the expert's number changes (possibly to itself).
    Renamed(String),
    /// The router: only the kept experts' rows stay.
    Sliced(Vec<usize>),
    /// Belongs to an expert that is dropped.
    Dropped,
}

/// The decision, before a byte is written.
#[derive(Clone, Debug)]
pub struct PrunePlan {
    pub keep: usize,
    pub experts: usize,
    pub metric: Metric,
    /// Layer → kept experts, ascending.
    pub kept: BTreeMap<usize, Vec<usize>>,
    fates: HashMap<String, TensorFate>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct PruneReport {
    /// Bytes of tensor data.
    pub bytes_out: u64,
    pub kept_unchanged: usize,
    /// Tensors of kept experts, those that kept their number included.
    pub kept_renamed: usize,
    pub routers_sliced: usize,
    pub dropped: usize,
}

impl PrunePlan {
    /// What becomes of the tensor `name`.
    pub fn fate(&self, name: &str) -> &TensorFate {
        self.fates.get(name).unwrap_or(&TensorFate::Kept)
    }

    /// Bytes of tensor data in the output.
    pub fn bytes_out(&self, metas: &[TensorMeta]) -> u64 {
        let kept = |meta: &TensorMeta| match self.fate(&meta.name) {
            TensorFate::Dropped => 0,
            TensorFate::Sliced(rows) => meta.bytes / meta.rows().max(1) as u64 * rows.len() as u64,
            _ => meta.bytes,
        };
        metas.iter().map(kept).sum()
    }

    /// Every tensor that stays, with what it becomes, in source order.
    fn outgoing<'m>(&self, metas: &'m [TensorMeta]) -> Result<Vec<(&'m TensorMeta, DeclaredTensor)>, CompressError> {
        let mut out = Vec::with_capacity(metas.len());
        for meta in metas {
            let mut target = DeclaredTensor::from(meta);
            match self.fate(&meta.name) {
                TensorFate::Dropped => continue,
                TensorFate::Kept => {}
                TensorFate::Renamed(name) => target.name = name.clone(),
                TensorFate::Sliced(rows) => match target.shape.first_mut() {
                    Some(first) if *first == self.experts => *first = rows.len(),
                    _ => {
                        let reason = format!("shape {:?} does not begin with {} experts", meta.shape, self.experts);
                        return Err(CompressError::Tensor { tensor: meta.name.clone(), reason });
                    }
                },
            }
            out.push((meta, target));
        }
        Ok(out)
    }
}

/// Decides which experts of `model` stay.
pub fn plan_prune(model: &OpenModel, options: PruneOptions<'_>) -> Result<PrunePlan, CompressError> {
    let metric = if options.importance.is_some() { Metric::ActivationCount } else { Metric::RouterL2 };
    let Some((experts, top_k)) = model.spec.experts() else {
        return Err(CompressError::Refused {
            what: "expert prune",
            reason: format!("{} is a dense model, it has no experts", model.path.display()),
            hint: "remove the expert stages, or choose a mixture-of-experts model",
        });
    };
    if let Some(table) = options.importance {
        check_table(table, model, experts)?;
    }
    let mut plan = PrunePlan { keep: options.keep, experts, metric, kept: BTreeMap::new(), fates: HashMap::new() };
    for block in &model.spec.blocks {
        let FfnSpec::Moe(moe) = &block.ffn else { continue };
        let scores = match options.importance {
            Some(table) => counts(table, block.index)?,
            None => router_norms(model, &moe.router.weight, moe.router.cols)?,
        };
        let kept = keep_top(block.index, &scores, options.keep, top_k)?;
        for (old, expert) in moe.experts.iter().enumerate() {
            match kept.binary_search(&old) {
                Ok(new) => rename(&mut plan.fates, expert, &moe.experts[new]),
                Err(_) => expert_tensors(expert).for_each(|name| {
                    plan.fates.insert(name.to_owned(), TensorFate::Dropped);
                }),
            }
        }
        for name in std::iter::once(&moe.router.weight).chain(&moe.router.bias) {
            plan.fates.insert(name.clone(), TensorFate::Sliced(kept.clone()));
        }
        plan.kept.insert(block.index, kept);
    }
    Ok(plan)
}

/// Writes the pruned tensors to the directory `out` (which must exist), in shards of at most `max_shard_bytes`, in the
/// source's order. The files can be read at once; they are durable and hashed when waited for. `done` hears the bytes handed to the writer. The caller carries config and side files.
pub fn rewrite(
    model: &OpenModel,
    plan: &PrunePlan,
    out: &Path,
    max_shard_bytes: u64,
    done: ByteProgress<'_>,
) -> Result<(PruneReport, SettlingModel), CompressError> {
    let source = &*model.tensors;
    let outgoing = plan.outgoing(source.metas())?;
    let mut writer =
        SafetensorsWriter::create(out, outgoing.iter().map(|(_, target)| target.clone()).collect(), max_shard_bytes)?;
    let mut bytes_out = 0;
    for (i, (meta, target)) in outgoing.iter().enumerate() {
        if let Some((next, _)) = outgoing.get(i + 1) {
            source.prefetch(&next.name);
        }
        match plan.fate(&meta.name) {
            TensorFate::Sliced(rows) => writer.tensor(&target.name, &sliced(source, meta, rows)?)?,
            _ => writer.copy(&target.name, source, &meta.name)?,
        }
        bytes_out += target.dtype.checked_bytes(&target.shape).unwrap_or(0);
        done(bytes_out);
    }
    let count = |wanted: fn(&TensorFate) -> bool| source.metas().iter().filter(|m| wanted(plan.fate(&m.name))).count();
    let report = PruneReport {
        bytes_out,
        kept_unchanged: count(|fate| matches!(fate, TensorFate::Kept)),
        kept_renamed: count(|fate| matches!(fate, TensorFate::Renamed(_))),
        routers_sliced: count(|fate| matches!(fate, TensorFate::Sliced(_))),
        dropped: count(|fate| matches!(fate, TensorFate::Dropped)),
    };
    Ok((report, writer.publish()?))
}

fn sliced(source: &dyn TensorSource, meta: &TensorMeta, rows: &[usize]) -> Result<Vec<u8>, CompressError> {
    let bytes = source.bytes(&meta.name)?;
    let row = bytes.len() / meta.rows().max(1);
    Ok(rows.iter().flat_map(|&r| &bytes[r * row..(r + 1) * row]).copied().collect())
}

/// A table is for one model: counts and sizes must be this model's.
fn check_table(table: &Importance, model: &OpenModel, experts: usize) -> Result<(), CompressError> {
    let layers = model.spec.blocks.len();
    if table.num_experts != experts || table.num_hidden_layers != layers {
        return Err(CompressError::Refused {
            what: "expert prune",
            reason: format!(
                "the importance table is for {} layers of {} experts, {} has {layers} of {experts}",
                table.num_hidden_layers,
                table.num_experts,
                model.path.display()
            ),
            hint: "profile this model, or name the table that belongs to it",
        });
    }
    Ok(())
}

fn counts(table: &Importance, layer: usize) -> Result<Vec<f64>, CompressError> {
    let found = table.activation_counts.get(&layer);
    let counts = found.ok_or_else(|| CompressError::Refused {
        what: "expert prune",
        reason: format!("the importance table has no counts for layer {layer}"),
        hint: "profile this model again",
    })?;
    Ok(counts.iter().map(|&count| count as f64).collect())
}

/// The Euclidean norm of every expert's row of the router `[experts, hidden]`.
fn router_norms(model: &OpenModel, router: &str, hidden: usize) -> Result<Vec<f64>, CompressError> {
    let mut weights = Vec::new();
    model.tensors.read_f32(router, &mut weights)?;
    let norm = |row: &[f32]| row.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
    Ok(weights.chunks(hidden.max(1)).map(norm).collect())
}

fn expert_tensors(expert: &MlpSpec) -> impl Iterator<Item = &str> {
    let parts = Part::ALL.into_iter().map(|part| expert.part(part));
    parts.flat_map(|linear| std::iter::once(linear.weight.as_str()).chain(linear.bias.as_deref()))
}

/// Every tensor of the expert `from` takes the name of the same tensor of `to`.
fn rename(fates: &mut HashMap<String, TensorFate>, from: &MlpSpec, to: &MlpSpec) {
    for (old, new) in expert_tensors(from).zip(expert_tensors(to)) {
        fates.insert(old.to_owned(), TensorFate::Renamed(new.to_owned()));
    }
}
