//! Model directories: layers packed as compressed-tensors keeps them, or plain bf16 and f16.

use super::{Draft, Format, Request, Writing, Written, out_name};
use crate::codec::{Dtype, Grid};
use crate::compress::{
    GROUP_SIZES, PACKED_TYPES, PackedForm, PackedMatrix, PackedPlan, PackedType, half_type, packed_config, packed_type,
    plan_packed, solve_unseen, solver_named, write_packed,
};
use crate::family::{Family, Holding, OpenModel, StackLayout, Storage, StoredTensor};
use crate::fault::{Fault, Outcome};
use crate::model::HfDir;
use crate::recipe::Finding;
use crate::recipe::stages::Quant;
use crate::stage::{Admission, StageContext, TensorFallback, TypeShare, directory};

pub(super) struct Safetensors;

/// Folder of the directories below the work folder.
const FOLDER: &str = "safetensors";

impl Format for Safetensors {
    fn name(&self) -> &'static str {
        "safetensors"
    }

    fn types(&self) -> Vec<&'static str> {
        PACKED_TYPES.iter().map(|known| known.name).collect()
    }

    fn holds(&self, _family: &dyn Family) -> bool {
        // Plain types hold any; for which families layers are packed is the plan's to say.
        true
    }

    fn plan(&self, admission: &mut Admission<'_>, type_name: &str, request: &Request<'_>) -> Option<Draft> {
        let kind = packed_type(type_name)?;
        let group = match group_size(request.quant) {
            Ok(group) => group,
            Err(message) => {
                let finding = Finding::error(request.place.key("groupSize"), message);
                admission.report(finding.hint("say 32, 64, 128, or -1 for one scale a row"));
                return None;
            }
        };
        if !is_directory_to_repack(admission, &request.key) {
            return None;
        }
        let (spec, half) = (admission.model()?, admission.source().map_or(Ok(Dtype::BF16), half_type));
        let storage = Storage::of_spec(spec);
        let plan = half.and_then(|half| plan_packed(spec, &storage, None, half, (kind, group)));
        let out = format!("{FOLDER}/{}", out_name(&admission.recipe.name, kind.name));
        match plan {
            Ok(plan) => {
                for line in plan.fallback_lines() {
                    admission.report(Finding::warning(&request.key, line));
                }
                Some(Draft { name: kind.name.to_owned(), out, bytes: plan.data_bytes() })
            }
            Err(error) => {
                admission.fault(&request.key, error.into());
                None
            }
        }
    }

    fn write(
        &self,
        cx: &StageContext<'_>,
        model: &OpenModel,
        type_name: &str,
        writing: &Writing<'_>,
    ) -> Outcome<Written> {
        let kind = packed_type(type_name).ok_or_else(|| Fault::internal(format!("plan: no type {type_name}")))?;
        let group = group_size(writing.quant).map_err(Fault::internal)?;
        let (half, stored) = (half_type(model)?, model.stored.as_ref());
        let plan = plan_packed(&model.spec, model.storage(), Some(stored), half, (kind, group))?;
        let out = cx.fresh_dir(writing.out)?;
        let mut written =
            Written { dtype: dtype_name(kind, group), warnings: plan.fallback_lines(), ..Written::default() };
        let solving = writing.span.part(0.0, 0.8);
        let (mut rows, mut matrices, mut folded) = (None, Vec::new(), None);
        match (kind.form, writing.calibration) {
            (PackedForm::Plain(_), _) => {}
            (_, Some(calibration)) => {
                let solved = calibration.solve(cx, model, (&plan.targets(), &plan.stored_as()), writing)?;
                folded = Some(model.presenting(solved.folded(&model.tensors)?));
                written.warnings.extend(solved.notes);
                (rows, matrices) = (Some(solved.rows), solved.matrices);
            }
            (_, None) => {
                let algorithm = writing.quant.algorithm();
                let solver =
                    solver_named(&algorithm).ok_or_else(|| Fault::internal(format!("plan: no solver {algorithm}")))?;
                let total: usize = plan.matrices.iter().map(|m| m.grid.row_bytes(m.cols).unwrap_or(0) * m.rows).sum();
                let report = |done| solving.of(done, total as u64, solver.name());
                let path = cx.work.join(format!("{}.rows", writing.out));
                rows = Some(solve_unseen(model.tensors.as_ref(), &plan.unseen(), solver, &path, &report)?);
            }
        }
        let (total, detail) = (plan.data_bytes(), format!("write {}", kind.name));
        let write = writing.span.part(0.9, 1.0);
        let report = |done| write.of(done, total, &detail);
        let model = folded.as_ref().unwrap_or(model);
        let shards = write_packed(model, &plan, rows.as_ref(), (&out, directory::MAX_SHARD_BYTES), &report)?;
        let config = packed_config(&model.config, &plan);
        let side_files = directory::carry(&HfDir::open(&model.path)?, &config, &out)?;
        written.bytes = shards.weights.iter().map(|file| file.size).sum();
        written.side_files = side_files.iter().map(|file| format!("{}/{}", writing.out, file.display())).collect();
        for file in shards.weights.into_iter().chain(shards.index) {
            written.files.push((format!("{}/{}", writing.out, file.filename), file));
        }
        written.types = plan.types().into_iter().map(share).collect();
        written.fallbacks = fallbacks(&plan);
        written.matrices = matrices;
        Ok(written)
    }
}

/// Whether the source can become another directory; a finding where it cannot.
pub(super) fn is_directory_to_repack(admission: &mut Admission<'_>, key: &str) -> bool {
    let is_mxfp4 =
        |tensor: &StoredTensor| matches!(tensor.holding, Holding::Stack { layout: StackLayout::Mxfp4Interleaved, .. });
    let finding = match admission.source() {
        Some(source) if source.path.is_file() => {
            Finding::error(key, "a GGUF file has no configuration to write beside the weights")
                .hint("start from the model's safetensors")
        }
        Some(source) if source.storage().tensors().iter().any(is_mxfp4) => {
            Finding::error(key, "the source holds its experts in MXFP4, which are not repacked")
                .hint("use format gguf, or start from an unquantized copy of the model")
        }
        _ => return true,
    };
    admission.report(finding);
    false
}

/// `W4A16 g64`; plain types have no group.
fn dtype_name(kind: &PackedType, group: Option<usize>) -> String {
    match (kind.form, group) {
        (PackedForm::Plain(_), _) => kind.name.to_owned(),
        (_, Some(group)) => format!("{} g{group}", kind.name),
        (_, None) => format!("{} channel", kind.name),
    }
}

/// The group a stage asks for; `None`: whole rows.
fn group_size(quant: &Quant) -> Result<Option<usize>, String> {
    match quant.group_size.unwrap_or(GROUP_SIZES[0] as i64) {
        -1 => Ok(None),
        size => GROUP_SIZES
            .into_iter()
            .find(|known| *known as i64 == size)
            .map(Some)
            .ok_or_else(|| format!("{size}: readers have kernels for groups of 32, 64 and 128, and for whole rows")),
    }
}

fn share((dtype, tensors, bytes): (String, usize, u64)) -> TypeShare {
    TypeShare { dtype, tensors, bytes }
}

fn fallbacks(plan: &PackedPlan) -> Vec<TensorFallback> {
    let wide = |group: Option<usize>| group.map_or_else(|| "channel".to_owned(), |group| format!("g{group}"));
    let narrowed = |m: &&PackedMatrix| m.group != plan.wanted;
    let fallback = |m: &PackedMatrix| TensorFallback {
        tensor: m.weight.clone(),
        wanted: format!("{} {}", plan.kind.name, wide(plan.wanted)),
        given: format!("{} {}", plan.kind.name, wide(m.group)),
    };
    plan.matrices.iter().filter(narrowed).map(fallback).collect()
}
