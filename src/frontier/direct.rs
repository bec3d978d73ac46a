//! The contract that decides today: a model directory, weighed as it was sent and scored as it loads. Nothing here looks
//! at whether weights are ternary; the size rule alone makes them so.

use std::path::{Path, PathBuf};

use super::container::{Limits, artifact_bytes, unpack};
use super::contract::Terms;
use super::report::{Reason, Report, Verdict};
use super::scoring::Exam;
use super::{FrontierError, plan};
use crate::engine::{PassOptions, PassProgress};
use crate::family;
use crate::fault::Fault;
use crate::model::hash_file;
use crate::units::Bytes;

/// How a check runs.
pub struct CheckOptions {
    /// Bytes the artifact shall count, as text, instead of those it has.
    pub bytes: Option<String>,
    /// SHA-256 (hexadecimal) and size that the file was announced with.
    pub promised: (Option<String>, Option<u64>),
    /// Where archives are unpacked.
    pub scratch: PathBuf,
    pub limits: Limits,
    pub pass: PassOptions,
}

impl Default for CheckOptions {
    fn default() -> Self {
        CheckOptions {
            bytes: None,
            promised: (None, None),
            scratch: std::env::temp_dir(),
            limits: Limits::default(),
            pass: PassOptions::default(),
        }
    }
}

/// Checks an artifact against a contract, in the order its benchmark does: announced size and hash, reference size,
/// unpack, load and score, parameters, size, perplexity. Without an `exam` everything but the score is checked.
///
/// # Errors
/// Only what is not the artifact's fault: no such file, no room, a device that fails. What is wrong with the artifact is
/// a verdict.
pub fn check(
    artifact: &Path,
    terms: &Terms<'_>,
    exam: Option<&Exam>,
    options: &CheckOptions,
    progress: &dyn Fn(PassProgress),
) -> Result<Report, FrontierError> {
    std::fs::metadata(artifact).map_err(FrontierError::io("open", artifact))?;
    let mut report = Report::new(artifact.to_owned(), terms);
    let judged = match terms.contract.artifact {
        super::ArtifactKind::HfDir => {
            weigh(&mut report, options).and_then(|()| judge(&mut report, terms, exam, options, progress))
        }
        super::ArtifactKind::PlanJson => weigh(&mut report, options).and_then(|()| plan::judge(&mut report, terms)),
    };
    if let Err(error) = judged {
        let fault = Fault::from(error_kept(error)?);
        (report.verdict, report.message, report.hint) = (Verdict::Error, Some(fault.one_line()), fault.hint);
    }
    Ok(report)
}

/// The error when it is the artifact's, else the way out.
fn error_kept(error: FrontierError) -> Result<FrontierError, FrontierError> {
    let is_artifacts = match &error {
        FrontierError::Artifact { .. } | FrontierError::Family(_) => true,
        FrontierError::Engine(crate::engine::EngineError::NotFinite { .. }) => true,
        FrontierError::Engine(crate::engine::EngineError::Unsupported { .. }) => true,
        FrontierError::Model(crate::model::ModelError::Io { .. }) | FrontierError::Io { .. } => false,
        FrontierError::Model(_) => true,
        _ => false,
    };
    if is_artifacts { Ok(error) } else { Err(error) }
}

/// Size and hash, and whether they are those that were announced.
fn weigh(report: &mut Report, options: &CheckOptions) -> Result<(), FrontierError> {
    let path = report.artifact.clone();
    let wrong = |cause: String, hint| Err(FrontierError::artifact(&path, cause, hint));
    report.set_bytes(artifact_bytes(&path)?, false);
    let (promised_sha, promised_size) = &options.promised;
    if path.is_file() {
        let (sha, size) = hash_file(&path)?;
        report.size.sha256 = Some(sha.hex());
        if let Some(promised) = promised_size.filter(|&promised| promised != size) {
            let cause = format!("artifact_size_bytes mismatch: {promised} announced, {size} found");
            return wrong(cause, "announce the size of the file that is uploaded");
        }
        if let Some(promised) = promised_sha.as_ref().filter(|promised| !promised.eq_ignore_ascii_case(&sha.hex())) {
            let cause = format!("artifact_sha256 mismatch: {} announced, {sha} found", promised.to_lowercase());
            return wrong(cause, "announce the hash of the file that is uploaded");
        }
    } else if promised_sha.is_some() || promised_size.is_some() {
        return wrong("is a folder: only a file has a size and hash to announce".to_owned(), "pack it");
    }
    if let Some(text) = &options.bytes {
        match text.trim().parse::<u64>() {
            Ok(bytes) if bytes > 0 => report.set_bytes(bytes, true),
            _ => {
                let cause = format!("the size it shall count, {text:?}, is not a positive whole number");
                return wrong(cause, "correct --artifact-bytes or AUTORESEARCH_SUBMISSION_ARTIFACT_BYTES");
            }
        }
    }
    Ok(())
}

fn judge(
    report: &mut Report,
    terms: &Terms<'_>,
    exam: Option<&Exam>,
    options: &CheckOptions,
    progress: &dyn Fn(PassProgress),
) -> Result<(), FrontierError> {
    let (bits, budget) = (report.size.bits, report.budget);
    if bits > budget.max_reference_bits {
        let most = budget.max_reference_bits;
        report.reject(Reason::ArtifactSize, format!("{bits} bits, no artifact may have more than {most}"));
        return Ok(());
    }
    let unpacked = unpack(&report.artifact, &options.scratch, options.limits)?;
    report.container = Some(unpacked.container);
    report.warnings.extend(unpacked.warnings.iter().cloned());
    let classes = &terms.contract.containers;
    if !classes.is_empty() && !classes.iter().any(|class| class == unpacked.container.class()) {
        let cause = format!("is a {}; the contract takes {}", unpacked.container.as_str(), classes.join(", "));
        return Err(FrontierError::artifact(&report.artifact, cause, "pack it another way"));
    }
    let model = family::open(&unpacked.model)?;
    report.warnings.extend(model.warnings.iter().cloned());
    report.warnings.extend(remote_code(&unpacked.model, &model));
    if let Some(exam) = exam {
        report.documents = Some(exam.handle.clone());
        report.tokenizer = Some(exam.tokenizer_name.clone());
        report.score = Some(exam.score(&model, terms, &options.pass, progress)?);
    } else {
        report.unchecked.push(format!("{}: no documents were named", terms.contract.metric));
    }
    let parameters = model.spec.parameters();
    report.size.parameters = Some(parameters);
    report.size.bits_per_parameter = Some(bits as f64 / parameters.max(1) as f64);
    report.size.max_model_bits = Some(budget.max_model_bits(parameters));
    limits(report, parameters)
}

/// The limits that come after the score.
fn limits(report: &mut Report, parameters: u64) -> Result<(), FrontierError> {
    let (bits, budget) = (report.size.bits, report.budget);
    if parameters == 0 {
        return Err(FrontierError::artifact(&report.artifact, "has no parameters", "pack a model with weights"));
    }
    let most = budget.max_model_bits(parameters);
    if parameters > budget.max_parameters {
        let message = format!("{parameters} parameters, at most {} are allowed", budget.max_parameters);
        report.reject(Reason::ParameterCount, message);
    } else if bits > most {
        let (per, allowed) = (bits as f64 / parameters as f64, budget.bits_per_parameter);
        let message = format!(
            "{bits} bits ({per:.4} per parameter), {most} are allowed ({allowed} per parameter): {} too large",
            Bytes((bits - most).div_ceil(8))
        );
        report.reject(Reason::QuantizedSize, message);
    } else if let Some(score) = &report.score {
        let perplexity = score.perplexity;
        if perplexity.is_finite() && perplexity > 0.0 {
            report.verdict = Verdict::Accepted;
        } else {
            report.reject(Reason::HeldoutPpl, format!("the perplexity is {perplexity}"));
        }
    }
    Ok(())
}

/// Python in an artifact runs on a validator; here it never does.
fn remote_code(folder: &Path, model: &family::OpenModel) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?;
    let is_python = |path: &Path| path.extension().is_some_and(|ending| ending == "py");
    let has_python = entries.filter_map(Result::ok).any(|entry| is_python(&entry.path()));
    let maps = model.config.to_json().contains("\"auto_map\"");
    (has_python || maps).then(|| {
        "it brings Python code, which is not run here: the score is that of the family its config names".to_owned()
    })
}
