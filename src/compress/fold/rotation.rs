//! Rotations that a model can be folded into without a trace in its function (QuaRot, Ashkboos et al., arXiv 2404.00456;
//! SpinQuant, Liu et al., arXiv 2405.16406): outliers spread over many columns, and no operation is added.
//!
//! R1 turns the residual stream: what writes to it, what reads it, embedding and head. The gains of the norms go into
//! their readers first, for a gain and a turn do not commute. R2 turns, in each block, the values of every head, and back in
//! the output projection.

use std::sync::Arc;

use super::readers::{of_residual, writers};
use super::{Folds, Step, Turn};
use crate::compress::CompressError;
use crate::family::{BlockSpec, LinearSpec, MixerSpec, ModelSpec, NormKind, NormSpec};
use crate::model::TensorSource;

/// The seed of the residual stream's signs; block n takes this plus n + 1 for its heads'.
const SEED: u64 = 0x5eed;

/// Which rotations are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationKind {
    /// R1 and R2.
    ResidualAndValues,
    /// R2 alone.
    Values,
}

/// The rotations a model will be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationPlan {
    /// R1.
    pub residual: bool,
    /// The blocks that are given R2.
    pub blocks: Vec<usize>,
    /// What is not turned and why, one line each.
    pub warnings: Vec<String>,
}

fn refused(reason: String, hint: &'static str) -> CompressError {
    CompressError::Refused { what: "rotation", reason, hint }
}

impl RotationPlan {
    /// Decides what can be turned. `names` are the tensors of the source, `tensors` its values: where the embedding is
    /// the head, too, that depends on the gain of the last norm.
    ///
    /// # Errors
    /// Something in the model does not commute with the rotation of the residual stream, where that is asked for; no
    /// block's values can be turned, where nothing else would be.
    pub fn new(
        spec: &ModelSpec,
        kind: RotationKind,
        names: &[String],
        tensors: &dyn TensorSource,
    ) -> Result<Self, CompressError> {
        const VALUES_ONLY: &str =
            "say rotation: hadamard-values, which turns heads' values alone, or leave rotation out";
        let mut plan = RotationPlan { residual: false, blocks: Vec::new(), warnings: Vec::new() };
        if kind == RotationKind::ResidualAndValues {
            if let Some(why) = residual_stays(spec, names) {
                return Err(refused(format!("the residual stream cannot be turned: {why}"), VALUES_ONLY));
            }
            let gain = read(tensors, &spec.final_norm.weight)?;
            plan.residual = !spec.tied || gain.windows(2).all(|pair| pair[0] == pair[1]);
            if !plan.residual {
                plan.warnings.push(format!(
                    "the residual stream is not turned: {} scales columns of the output head, which is the embedding \
                     too and would have to be stored a second time",
                    spec.final_norm.weight
                ));
            }
        }
        let mut stay: Vec<(String, Vec<usize>)> = Vec::new();
        for block in &spec.blocks {
            match values_stay(block) {
                None => plan.blocks.push(block.index),
                Some(why) => match stay.iter_mut().find(|(known, _)| *known == why) {
                    Some((_, blocks)) => blocks.push(block.index),
                    None => stay.push((why, vec![block.index])),
                },
            }
        }
        if let Some((why, _)) = stay.first().filter(|_| plan.blocks.is_empty() && !plan.residual) {
            return Err(refused(format!("no block's values can be turned: {why}"), "leave rotation out"));
        }
        for (why, blocks) in stay {
            let (count, all) = (blocks.len(), spec.blocks.len());
            plan.warnings.push(format!("heads' values are not turned in {count} of {all} blocks: {why}"));
        }
        Ok(plan)
    }

    /// What is done to which tensor of the model.
    ///
    /// # Errors
    /// A gain cannot be read.
    pub fn folds(&self, spec: &ModelSpec, tensors: &dyn TensorSource) -> Result<Folds, CompressError> {
        let mut folds = Folds::default();
        for block in spec.blocks.iter().filter(|block| self.blocks.contains(&block.index)) {
            turn_values(&mut folds, block);
        }
        if let Some(turn) = Turn::whole(spec.hidden, SEED).filter(|_| self.residual) {
            turn_residual(&mut folds, spec, tensors, &Arc::new(turn))?;
        }
        Ok(folds)
    }
}

/// Why the residual stream of a model cannot be turned.
fn residual_stays(spec: &ModelSpec, names: &[String]) -> Option<String> {
    let norms = spec.blocks.iter().flat_map(|block| [&block.attn_norm, &block.ffn_norm]).chain([&spec.final_norm]);
    if let Some(norm) = norms.into_iter().find(|norm| norm.kind == NormKind::Layer || norm.bias.is_some()) {
        return Some(format!("{} takes the mean out of it, which depends on the directions", norm.weight));
    }
    // What they hand to the model, or read from it, would have to be turned too.
    if let Some(part) = spec.carried.iter().find(|part| part.present(names)) {
        return Some(format!("the {} shares it and goes along as it is", part.name));
    }
    if Turn::whole(spec.hidden, SEED).is_none() {
        return Some(format!("{} columns are no multiple of two", spec.hidden));
    }
    None
}

/// Where a block makes values and reads them: the layer and its turn, then the reader and its turn.
type Values<'a> = [(&'a LinearSpec, (usize, usize)); 2];

/// The layers between which a block's values can be turned, each with the first row or column of a head's values and
/// the distance to the next head's, and their width; or why they cannot.
fn values_of(block: &BlockSpec) -> Result<(Values<'_>, usize), String> {
    match &block.mixer {
        MixerSpec::Attention(a) if a.output_gate => {
            Err("a gate stands between values and output projection".to_owned())
        }
        MixerSpec::Attention(a) if a.clip.is_some() => Err("values are clamped".to_owned()),
        MixerSpec::Attention(a) => Ok(([(&a.v, (0, a.head_dim)), (&a.o, (0, a.head_dim))], a.head_dim)),
        MixerSpec::Latent(l) => {
            let made = (l.nope_dim, l.nope_dim + l.value_dim);
            Ok(([(&l.kv_b, made), (&l.o, (0, l.value_dim))], l.value_dim))
        }
        MixerSpec::DeltaNet(_) => Err("a convolution, a norm and a gate stand between values and output".to_owned()),
    }
}

fn values_stay(block: &BlockSpec) -> Option<String> {
    match values_of(block) {
        Err(why) => Some(why),
        Ok((_, width)) if width % 2 != 0 => Some(format!("heads of {width} columns are no multiple of two")),
        Ok(_) => None,
    }
}

fn turn_values(folds: &mut Folds, block: &BlockSpec) {
    let Ok(([(made, place), (read, read_place)], width)) = values_of(block) else { return };
    let seed = SEED + 1 + block.index as u64;
    let (Some(made_turn), Some(read_turn)) = (Turn::new(width, place, seed), Turn::new(width, read_place, seed)) else {
        return;
    };
    let made_turn = Arc::new(made_turn);
    folds.add(&made.weight, Step::TurnRows(made_turn.clone()));
    made.bias.iter().for_each(|bias| folds.add(bias, Step::TurnRows(made_turn.clone())));
    folds.add(&read.weight, Step::TurnColumns(Arc::new(read_turn)));
}

fn turn_residual(
    folds: &mut Folds,
    spec: &ModelSpec,
    tensors: &dyn TensorSource,
    turn: &Arc<Turn>,
) -> Result<(), CompressError> {
    folds.add(&spec.embed, Step::TurnColumns(turn.clone()));
    for block in &spec.blocks {
        for group in of_residual(block) {
            let gain = take_gain(folds, group.norm, tensors)?;
            for layer in group.layers {
                folds.add(&layer.weight, Step::Columns(gain.clone()));
                folds.add(&layer.weight, Step::TurnColumns(turn.clone()));
            }
        }
        for layer in writers(block) {
            folds.add(&layer.weight, Step::TurnRows(turn.clone()));
            layer.bias.iter().for_each(|bias| folds.add(bias, Step::TurnRows(turn.clone())));
        }
    }
    // The gain before a head that is the embedding is the same for all columns: it stays.
    if !spec.tied {
        let gain = take_gain(folds, &spec.final_norm, tensors)?;
        folds.add(&spec.head, Step::Columns(gain));
        folds.add(&spec.head, Step::TurnColumns(turn.clone()));
    }
    Ok(())
}

/// The gain of a norm, which becomes 1.
fn take_gain(folds: &mut Folds, norm: &NormSpec, tensors: &dyn TensorSource) -> Result<Arc<[f32]>, CompressError> {
    let mut gain = read(tensors, &norm.weight)?;
    let offset = if norm.kind == NormKind::RmsOffset { 1.0 } else { 0.0 };
    gain.iter_mut().for_each(|value| *value += offset);
    folds.add(&norm.weight, Step::Become(vec![1.0 - offset; gain.len()].into()));
    Ok(gain.into())
}

fn read(tensors: &dyn TensorSource, name: &str) -> Result<Vec<f32>, CompressError> {
    let mut values = Vec::new();
    tensors.read_f32(name, &mut values)?;
    Ok(values)
}
