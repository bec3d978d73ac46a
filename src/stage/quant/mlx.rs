//! Model directories as mlx_lm writes them: every matrix as whole numbers with a scale and an offset per group.

use super::safetensors::is_directory_to_repack;
use super::{Draft, Format, Request, Writing, Written, out_name};
use crate::codec::Dtype;
use crate::compress::{
    MLX_GROUPS, MLX_TYPES, StoredAs, half_type, mlx_config, mlx_type, plan_mlx, solve_unseen, solver_named, write_mlx,
};
use crate::family::{Family, OpenModel};
use crate::fault::{Fault, Outcome};
use crate::model::HfDir;
use crate::recipe::Finding;
use crate::recipe::stages::Quant;
use crate::stage::{Admission, StageContext, TensorFallback, TypeShare, directory};

pub(super) struct Mlx;

/// Folder of the directories below the work folder.
const FOLDER: &str = "mlx";
/// The solver of what a calibration knows no inputs of: embedding and output head.
const WITHOUT_INPUTS: &str = "rtn";

impl Format for Mlx {
    fn name(&self) -> &'static str {
        "mlx"
    }

    fn types(&self) -> Vec<&'static str> {
        MLX_TYPES.iter().map(|known| known.name).collect()
    }

    fn holds(&self, family: &dyn Family) -> bool {
        family.loads_in_mlx()
    }

    fn plan(&self, admission: &mut Admission<'_>, type_name: &str, request: &Request<'_>) -> Option<Draft> {
        let kind = mlx_type(type_name)?;
        let group = match group_size(request.quant) {
            Ok(group) => group,
            Err(message) => {
                let finding = Finding::error(request.place.key("groupSize"), message);
                admission.report(finding.hint("say 32, 64 or 128"));
                return None;
            }
        };
        if !is_directory_to_repack(admission, &request.key) {
            return None;
        }
        let half = admission.source().map_or(Ok(Dtype::BF16), half_type);
        let spec = admission.model()?;
        let plan = half.and_then(|half| plan_mlx(spec, half, (kind, group)));
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
        let kind = mlx_type(type_name).ok_or_else(|| Fault::internal(format!("plan: no type {type_name}")))?;
        let group = group_size(writing.quant).map_err(Fault::internal)?;
        let plan = plan_mlx(&model.spec, half_type(model)?, (kind, group))?;
        let out = cx.fresh_dir(writing.out)?;
        let dtype = format!("{} g{group}", kind.name);
        let mut written = Written { dtype, warnings: plan.fallback_lines(), ..Written::default() };
        let mut folded = None;
        let solved = match writing.calibration {
            Some(calibration) => {
                let stored_as = StoredAs::all(half_type(model)?);
                let solved = calibration.solve(cx, model, (&plan.targets(), &stored_as), writing)?;
                folded = Some(model.presenting(solved.folded(&model.tensors)?));
                Some(solved)
            }
            None => None,
        };
        let model = folded.as_ref().unwrap_or(model);
        let algorithm = if solved.is_some() { WITHOUT_INPUTS.to_owned() } else { writing.quant.algorithm() };
        let solver = solver_named(&algorithm).ok_or_else(|| Fault::internal(format!("plan: no solver {algorithm}")))?;
        let unseen = plan.unseen(solved.is_some());
        let total: u64 = unseen.iter().map(|m| (m.rows * m.cols) as u64).sum();
        let solving = writing.span.part(if solved.is_some() { 0.9 } else { 0.0 }, 0.95);
        let report = |done: u64| solving.of(8 * done / kind.bits as u64, total, solver.name());
        let path = cx.work.join(format!("{}.unseen.rows", writing.out));
        let rest = solve_unseen(model.tensors.as_ref(), &unseen, solver, &path, &report)?;
        let (bytes, detail) = (plan.data_bytes(), format!("write {}", kind.name));
        let write = writing.span.part(0.95, 1.0);
        let report = |done| write.of(done, bytes, &detail);
        let rows: Vec<_> = solved.iter().map(|solved| &solved.rows).chain([&rest]).collect();
        let shards = write_mlx(model, &plan, &rows, (&out, directory::MAX_SHARD_BYTES), &report)?;
        let config = mlx_config(&model.config, &model.spec, &plan);
        let side_files = directory::carry(&HfDir::open(&model.path)?, &config, &out)?;
        written.bytes = shards.weights.iter().map(|file| file.size).sum();
        written.side_files = side_files.iter().map(|file| format!("{}/{}", writing.out, file.display())).collect();
        for file in shards.weights.into_iter().chain(shards.index) {
            written.files.push((format!("{}/{}", writing.out, file.filename), file));
        }
        let share = |(dtype, tensors, bytes): (String, usize, u64)| TypeShare { dtype, tensors, bytes };
        written.types = plan.types().into_iter().map(share).collect();
        let wanted = written.dtype.clone();
        let fallback = |(tensor, given)| TensorFallback { tensor, wanted: wanted.clone(), given };
        written.fallbacks = plan.narrowed().into_iter().map(fallback).collect();
        if let Some(solved) = solved {
            written.warnings.extend(solved.notes);
            written.matrices = solved.matrices;
        }
        Ok(written)
    }
}

/// The group a stage asks for.
fn group_size(quant: &Quant) -> Result<usize, String> {
    let size = quant.group_size.unwrap_or(MLX_GROUPS[0] as i64);
    let known = MLX_GROUPS.into_iter().find(|known| *known as i64 == size);
    known.ok_or_else(|| format!("{size}: MLX has kernels for groups of 32, 64 and 128"))
}
