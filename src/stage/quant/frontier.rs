//! Archives for frontier contracts: every matrix ternary, as many rows in 4 bits as the contract's budget leaves room
//! for, stored dense in f16 and packed; then checked by the contract's own validator, from disk.

use std::path::{Path, PathBuf};

use super::{Draft, Format, Request, Writing, Written, out_name};
use crate::codec::Dtype;
use crate::compress::{DenseTernary, F16_MANTISSA, RescuedRows, StoredAs, ternary_targets};
use crate::family::{self, Family, OpenModel};
use crate::fault::{Fault, Outcome};
use crate::frontier::{
    ArtifactKind, Budget, CheckOptions, Choice, Container, Contracts, Exam, Packing, Report, Terms, Tokens, Verdict,
    check, contract_ids, pack,
};
use crate::gate::{Evidence, ScoreLimit};
use crate::model::{FileHash, HfDir, hash_file};
use crate::recipe::Finding;
use crate::stage::{Admission, StageContext, directory};

pub(super) struct Frontier;

/// Folder of the outputs below the work folder.
const DIR: &str = "frontier";
/// Bits of mantissa of scales that are tried, the finest that fits wins.
const MANTISSAS: [u32; 3] = [F16_MANTISSA, 4, 2];
/// What a rescued weight is expected to cost in the archive; measured afterwards.
const RESCUED_BITS: f64 = 5.0;
/// How often rescued rows are packed at most, with fewer of them each time.
const RESCUE_TRIES: usize = 3;
/// Share of the rows that would just fit by the last packing: what rows cost is not quite proportional.
const CAUTION: f64 = 0.95;

impl Format for Frontier {
    fn name(&self) -> &'static str {
        "frontier"
    }

    fn types(&self) -> Vec<&'static str> {
        contract_ids(|contract| contract.artifact == ArtifactKind::HfDir && contract.levels == [-1, 0, 1])
    }

    fn holds(&self, _family: &dyn Family) -> bool {
        true
    }

    /// How much a ternary model may lose is for the recipe's criteria to say.
    fn score_limit(&self) -> Option<ScoreLimit> {
        None
    }

    fn plan(&self, admission: &mut Admission<'_>, type_name: &str, request: &Request<'_>) -> Option<Draft> {
        let contracts = Contracts::builtin().ok()?;
        let terms = contracts.terms(type_name).ok()?;
        let out = format!("{DIR}/{}", out_name(&admission.recipe.name, type_name));
        if let Some(why) = admission.source().and_then(refused) {
            let finding = Finding::error(request.key.clone(), why);
            admission.report(finding.hint("an archive holds a plain model directory, each tensor under its own name"));
        }
        let parameters = admission.model().map_or(0, |model| model.parameters());
        let bytes = Budget::of(&terms).max_model_bits(parameters) / 8;
        Some(Draft { name: type_name.to_owned(), out, bytes })
    }

    fn write(
        &self,
        cx: &StageContext<'_>,
        model: &OpenModel,
        type_name: &str,
        writing: &Writing<'_>,
    ) -> Outcome<Written> {
        let contracts = Contracts::builtin()?;
        let terms = contracts.terms(type_name)?;
        if let Some(why) = refused(model) {
            return Err(Fault::source(why).hint("an archive holds a plain model directory"));
        }
        let mut written = Written { dtype: type_name.to_owned(), ..Written::default() };
        std::fs::create_dir_all(cx.work.join(DIR))
            .map_err(|e| Fault::infra(format!("make {}", cx.work.join(DIR).display())).caused_by(e))?;
        let folded;
        let rest = cx.work.join(format!("{}.rest", writing.out));
        let counts = writing.calibration.map(|calibration| calibration.token_counts(model.spec.vocab));
        let mut ternary = DenseTernary::new(model, counts, &rest)?;
        if let Some(calibration) = writing.calibration {
            // The blocks are solved behind the embedding as it is expected to be packed.
            let embedding = ternary.embedding(MANTISSAS[1], terms.contract.max_rescue_fraction)?;
            let (targets, stored_as) = (ternary_targets(model), StoredAs::all(Dtype::F16));
            let solved = calibration.solve_behind(cx, model, (&targets, &stored_as, Some(&embedding)), writing)?;
            folded = model.presenting(solved.folded(&model.tensors)?);
            ternary.model = &folded;
            written.warnings.extend(solved.notes);
            written.matrices = solved.matrices;
            ternary.solved = Some(solved.rows);
        }
        let search = Search { cx, model, terms: &terms, ternary: &ternary, writing };
        let found = search.run()?;
        let report = judged(cx, &terms, &found.archive)?;
        written.bytes = found.hash.size;
        written.evidence.push(evidence(writing.out, &report, &found));
        written.archive = Some(format!("{}.tar.xz", writing.out));
        written.files = found.files;
        Ok(written)
    }
}

/// Why a model cannot become such an archive.
fn refused(model: &OpenModel) -> Option<String> {
    if model.format != family::Format::HfDir {
        return Some(format!("{} is no model directory", model.path.display()));
    }
    let names: Vec<String> = model.stored.metas().iter().map(|meta| meta.name.clone()).collect();
    if let Some(part) = model.spec.carried.iter().find(|part| part.present(&names)) {
        return Some(format!("the model has a {}, which the contract's loader does not load", part.name));
    }
    let tensors = model.spec.tensors();
    let strange = tensors.iter().find(|t| model.stored.meta(&t.name).is_none_or(|meta| meta.shape != t.shape))?;
    Some(format!("{} lies in its files under another name or shape", strange.name))
}

/// The search for what fits.
struct Search<'a> {
    cx: &'a StageContext<'a>,
    model: &'a OpenModel,
    terms: &'a Terms<'a>,
    ternary: &'a DenseTernary<'a>,
    writing: &'a Writing<'a>,
}

/// What was packed in the end.
struct Found {
    archive: PathBuf,
    hash: FileHash,
    files: Vec<(String, FileHash)>,
    mantissa: u32,
    rescued: f64,
}

impl Search<'_> {
    fn run(&self) -> Outcome<Found> {
        let parameters = self.model.spec.parameters();
        let budget = Budget::of(self.terms).max_model_bits(parameters) / 8;
        let (mut at, steps) = (0.0, (MANTISSAS.len() + RESCUE_TRIES) as f64);
        let mut attempt = |mantissa, rescued: &RescuedRows| {
            at += 1.0;
            self.writing.span.part(0.9, 1.0).at(at / steps, "pack");
            self.attempt(mantissa, rescued)
        };
        let (mut found, mut sizes) = (None, Vec::new());
        for mantissa in MANTISSAS {
            let packed = attempt(mantissa, &RescuedRows::default())?;
            sizes.push(packed.hash.size);
            if packed.hash.size <= budget {
                found = Some(packed);
                break;
            }
        }
        let Some(found) = found else {
            let smallest = sizes.into_iter().min().unwrap_or_default();
            let message = format!("the smallest ternary archive has {smallest} bytes, the contract allows {budget}");
            return Err(Fault::quality(message)
                .hint("the budget grows with the parameters: short rows and small models cost more bits each"));
        };
        let weights = parameters as f64;
        let (bits, spare) = (8.0 * found.hash.size as f64 / weights, 8.0 * (budget - found.hash.size) as f64);
        let mut room =
            (spare / (weights * (RESCUED_BITS - bits).max(1.0))).min(self.terms.contract.max_rescue_fraction);
        let mut replaced = false;
        for _ in 0..RESCUE_TRIES {
            let rescued = self.ternary.rescued(room);
            if rescued.share == 0.0 {
                break;
            }
            let packed = attempt(found.mantissa, &rescued)?;
            if packed.hash.size <= budget {
                return Ok(packed);
            }
            room = CAUTION * rescued.share * (budget - found.hash.size) as f64
                / (packed.hash.size - found.hash.size) as f64;
            replaced = true;
        }
        // What lies there is too large: the one that fits is made again.
        if replaced { attempt(found.mantissa, &RescuedRows::default()) } else { Ok(found) }
    }

    /// Writes and packs one form of the model, in place of the last.
    fn attempt(&self, mantissa: u32, rescued: &RescuedRows) -> Outcome<Found> {
        let (cx, out) = (self.cx, self.writing.out);
        let folder = cx.fresh_dir(out)?;
        let source = HfDir::open(&self.model.path)?;
        let mut config = source.config.clone();
        for key in ["dtype", "torch_dtype"] {
            if config.get(key).is_some() {
                config.set(key, "float16".into());
            }
        }
        let side = directory::carry(&source, &config, &folder)?;
        let weights = self.ternary.write(&folder, mantissa, rescued)?;
        let staging = cx.fresh_dir(&format!("{out}.pack"))?;
        let reads_bytes = self.terms.scorer.tokens() == Some(Tokens::Bytes);
        let carried = side.iter().filter(|name| !reads_bytes || name.as_path() == Path::new("config.json"));
        for name in carried.map(PathBuf::as_path).chain(weights.weights.iter().map(|file| Path::new(&file.filename))) {
            super::super::package::place_file(&folder.join(name), &staging, name)?;
        }
        let name = format!("{out}.tar.xz");
        let archive = cx.work.join(&name);
        let hash = pack(&staging, &archive, Packing { container: Container::TarXz, width: 2 })?;
        std::fs::remove_dir_all(&staging)
            .map_err(|e| Fault::infra(format!("remove {}", staging.display())).caused_by(e))?;
        let mut files = Vec::new();
        for name in &side {
            let (sha256, size) = hash_file(&folder.join(name))?;
            let filename = name.display().to_string();
            files.push((format!("{out}/{filename}"), FileHash { filename, sha256, size }));
        }
        files.extend(weights.weights.into_iter().map(|file| (format!("{out}/{}", file.filename), file)));
        files.push((name, hash.clone()));
        Ok(Found { archive, hash, files, mantissa, rescued: rescued.share })
    }
}

/// The contract's own check of the archive as it lies on disk, scored on the beginning of the recipe's text.
fn judged(cx: &StageContext<'_>, terms: &Terms<'_>, archive: &Path) -> Outcome<Report> {
    let text = cx.gate_text()?.unwrap_or_default();
    let pieces = text.split('\n').filter(|line| line.len() > 1).take(terms.contract.documents);
    let texts: Vec<String> = pieces.map(str::to_owned).collect();
    let choice = Choice::of(terms.choice, texts.len());
    let exam = match (texts.is_empty(), terms.scorer.tokens()) {
        (false, Some(Tokens::Bytes | Tokens::Artifact)) => Some(Exam::of(terms, texts, &choice, None)?),
        _ => None,
    };
    let options = CheckOptions { scratch: cx.work.to_owned(), pass: cx.pass.clone(), ..CheckOptions::default() };
    let report = check(archive, terms, exam.as_ref(), &options, &|_| ())?;
    match report.verdict {
        Verdict::Accepted | Verdict::Unscored => Ok(report),
        Verdict::Rejected | Verdict::Error => {
            let why = report.message.unwrap_or_default();
            Err(Fault::quality(format!("the archive does not conform to {}: {why}", terms.contract.id))
                .hint(report.hint.unwrap_or_else(|| "docs/FRONTIER.md says what is checked".to_owned())))
        }
    }
}

fn evidence(out: &str, report: &Report, found: &Found) -> Evidence {
    let mut evidence = Evidence::passed("frontier", format!("{out}.tar.xz"))
        .with("contract", report.contract.as_str())
        .with("verdict", if report.verdict == Verdict::Accepted { "accepted" } else { "unscored" })
        .with("bytes", report.size.bytes)
        .with("max_bytes", report.size.max_model_bits.unwrap_or_default() / 8)
        .with("bits_per_parameter", report.size.bits_per_parameter.unwrap_or(f64::NAN))
        .with("max_bits_per_parameter", report.budget.bits_per_parameter)
        .with("rescued_share", found.rescued)
        .with("scale_mantissa_bits", found.mantissa);
    if let Some(score) = &report.score {
        evidence = evidence
            .with("scorer", report.scorer.as_str())
            .with("heldout_ppl", score.perplexity)
            .with("tokens", score.tokens);
    }
    evidence
}
