//! GGUF files: one per mix, header first, every tensor once.

use std::path::Path;

use super::calibrate::is_calibrated;
use super::{Draft, Format, Request, Writing, Written, out_name, target};
use crate::codec::{CODECS, Dtype};
use crate::compress::{
    Fallback, ImportanceMatrix, QUANT_TYPES, QuantMix, QuantPlan, StoredAs, gguf_metadata, gguf_targets, plan_quant,
    quant_mix, write_gguf,
};
use crate::family::{Family, OpenModel};
use crate::fault::{Fault, Outcome};
use crate::recipe::Finding;
use crate::recipe::stages::QuantAim;
use crate::stage::{Admission, Place, StageContext, TensorFallback, TypeShare};

pub(super) struct Gguf;

/// Folder of the files below the work folder.
const GGUF_DIR: &str = "gguf";
/// The key of the importance matrix.
const MATRIX_KEY: &str = "importanceMatrix";

impl Format for Gguf {
    fn name(&self) -> &'static str {
        "gguf"
    }

    fn types(&self) -> Vec<&'static str> {
        QUANT_TYPES.to_vec()
    }

    fn holds(&self, family: &dyn Family) -> bool {
        family.gguf().is_some()
    }

    fn choices(&self) -> Vec<&'static str> {
        CODECS.iter().map(|codec| codec.name()).collect()
    }

    fn plan_target(&self, admission: &mut Admission<'_>, aim: QuantAim, request: &Request<'_>) -> Option<Draft> {
        target::plan(admission, aim, request)
    }

    fn write_target(
        &self,
        cx: &StageContext<'_>,
        model: &OpenModel,
        aim: QuantAim,
        writing: &Writing<'_>,
    ) -> Outcome<Written> {
        target::write(cx, model, aim, writing)
    }

    fn plan(&self, admission: &mut Admission<'_>, type_name: &str, request: &Request<'_>) -> Option<Draft> {
        let mix = quant_mix(type_name)?;
        let importance = importance_matrix(admission, request);
        let out = out_path(&admission.recipe.name, mix.name);
        let bytes = plan_file(
            admission,
            request.place,
            mix,
            (importance.as_ref(), is_calibrated(request.quant)),
            Path::new(&out),
            &request.key,
        );
        Some(Draft { name: mix.name.to_owned(), out, bytes: bytes.unwrap_or(0) })
    }

    fn write(
        &self,
        cx: &StageContext<'_>,
        model: &OpenModel,
        type_name: &str,
        writing: &Writing<'_>,
    ) -> Outcome<Written> {
        let mix = quant_mix(type_name).ok_or_else(|| Fault::internal(format!("plan: no type {type_name}")))?;
        let importance = match &writing.quant.importance_matrix {
            Some(_) => Some(ImportanceMatrix::read(&cx.text(&writing.place.key(MATRIX_KEY))?.path)?),
            None => None,
        };
        let informed = importance.is_some() || writing.calibration.is_some();
        let plan = plan_quant(&model.spec, mix, informed)?;
        write_plan(cx, model, &plan, importance.as_ref(), writing)
    }
}

/// Where a file of this recipe goes.
pub(super) fn out_path(recipe: &str, name: &str) -> String {
    format!("{GGUF_DIR}/{}.gguf", out_name(recipe, name))
}

/// Writes the file that a plan describes, calibrated where the stage is.
pub(super) fn write_plan(
    cx: &StageContext<'_>,
    model: &OpenModel,
    plan: &QuantPlan,
    importance: Option<&ImportanceMatrix>,
    writing: &Writing<'_>,
) -> Outcome<Written> {
    std::fs::create_dir_all(cx.work.join(GGUF_DIR))
        .map_err(|e| Fault::infra(format!("make {}", cx.work.join(GGUF_DIR).display())).caused_by(e))?;
    let mut written = Written { dtype: plan.name.clone(), warnings: plan.fallback_lines(), ..Written::default() };
    if let Some(matrix) = importance {
        written.warnings.extend(coverage_lines(matrix, plan)?);
    }
    let metadata = gguf_metadata(model, plan, importance, &cx.plan.name)?;
    written.warnings.extend(metadata.warnings);
    let (path, source) = (cx.work.join(writing.out), model.tensors.as_ref());
    let solved = match writing.calibration {
        Some(calibration) => {
            // Vectors and routers are F32.
            let (targets, stored_as) = (gguf_targets(model, plan), StoredAs::all(Dtype::F32));
            Some(calibration.solve(cx, model, (&targets, &stored_as), writing)?)
        }
        None => None,
    };
    let encode = writing.span.part(if solved.is_some() { 0.9 } else { 0.0 }, 1.0);
    let (total, detail) = (plan.data_bytes, format!("encode {}", plan.name));
    let report = |done| encode.of(done, total, &detail);
    let fields = &metadata.fields;
    let hash = match &solved {
        Some(solved) => {
            let folded = solved.folded(&model.tensors)?;
            write_gguf(&solved.rows.over(folded.as_ref()), plan, fields, None, &path, &report)?
        }
        None => write_gguf(source, plan, fields, importance, &path, &report)?,
    };
    if let Some(solved) = solved {
        written.warnings.extend(solved.notes);
        written.matrices = solved.matrices;
    }
    written.bytes = hash.size;
    written.files.push((writing.out.to_owned(), hash));
    let share = |(dtype, tensors, bytes): (crate::codec::Dtype, usize, u64)| TypeShare {
        dtype: dtype.to_string(),
        tensors,
        bytes,
    };
    let fallback = |f: &Fallback| TensorFallback {
        tensor: f.tensor.clone(),
        wanted: f.wanted.to_string(),
        given: f.given.to_string(),
    };
    written.types = plan.types().into_iter().map(share).collect();
    written.fallbacks = plan.fallbacks.iter().map(fallback).collect();
    Ok(written)
}

/// The matrix the recipe names, read; what is wrong with it is a finding, once.
fn importance_matrix(admission: &mut Admission<'_>, request: &Request<'_>) -> Option<ImportanceMatrix> {
    let (name, key) = (request.quant.importance_matrix.as_ref()?, request.place.key(MATRIX_KEY));
    let known = admission.texts.iter().find(|text| text.key == key).map(|text| text.found.path.clone());
    let is_first = known.is_none();
    let path = match known {
        Some(path) => path,
        None => {
            admission.find_text(key.clone(), name)?;
            admission.texts.last()?.found.path.clone()
        }
    };
    match ImportanceMatrix::read(&path) {
        Ok(matrix) => Some(matrix),
        Err(error) => {
            if is_first {
                admission.fault(&key, error.into());
            }
            None
        }
    }
}

/// Bytes of a file to come, header included; notes what its plan has to say. `None` when it cannot be planned, which is
/// a finding.
fn plan_file(
    admission: &mut Admission<'_>,
    place: Place,
    mix: &'static QuantMix,
    (importance, calibrated): (Option<&ImportanceMatrix>, bool),
    out: &Path,
    key: &str,
) -> Option<u64> {
    let plan = match plan_quant(admission.model()?, mix, importance.is_some() || calibrated) {
        Ok(plan) => plan,
        Err(error) => {
            admission.fault(key, error.into());
            return None;
        }
    };
    for line in plan.fallback_lines() {
        admission.report(Finding::warning(key, line));
    }
    match importance.map(|matrix| coverage_lines(matrix, &plan)) {
        Some(Ok(lines)) => {
            lines.into_iter().for_each(|line| admission.report(Finding::warning(place.key(MATRIX_KEY), line)));
        }
        Some(Err(fault)) => admission.fault(&place.key(MATRIX_KEY), fault),
        None => {}
    }
    // The source's tokenizer decides whether a GGUF file can be written at all.
    let header = admission.source().map(|source| gguf_metadata(source, &plan, importance, &admission.recipe.name))?;
    let sized = header.and_then(|header| Ok((plan.file_bytes(&header.fields, out)?, header.warnings)));
    match sized {
        Ok((bytes, warnings)) => {
            warnings.into_iter().for_each(|warning| admission.report(Finding::warning(key, warning)));
            Some(bytes)
        }
        Err(error) => {
            admission.fault(key, error.into());
            None
        }
    }
}

/// What a matrix leaves out.
fn coverage_lines(matrix: &ImportanceMatrix, plan: &QuantPlan) -> Outcome<Vec<String>> {
    let coverage = matrix.check(plan)?;
    let mut lines = Vec::new();
    let mix = &plan.name;
    if let Some(first) = coverage.missing.first() {
        let (count, used) = (coverage.missing.len(), coverage.used);
        lines.push(format!(
            "{mix}: the matrix says nothing about {count} of {} matrices ({first} …): they are written without it",
            count + used
        ));
    }
    if coverage.unknown > 0 {
        lines.push(format!("{mix}: {} entries of the matrix are about no tensor of this model", coverage.unknown));
    }
    Ok(lines)
}
