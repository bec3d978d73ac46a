//! `foreman frontier check`: one artifact against one contract.

use std::path::PathBuf;

use serde::Serialize;

use super::{contracts, problem};
use crate::engine::{PassOptions, open_device};
use crate::fault::Fault;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::foreman::printer::{Printer, Tone};
use crate::foreman::progress::PassBar;
use crate::foreman::wording::{columns, count, figure};
use crate::frontier::{
    CheckOptions, Choice, Decision, Exam, Limits, Pool, Report, Standing, Terms, Verdict, check, decide, parse_mix,
};
use crate::node::DeviceChoice;
use crate::units::Bytes;

/// Check an artifact: verdict, reason, size, budget, parameters and score
///
/// Ends with 5 when the artifact is rejected or cannot be judged. Without --documents everything but the score is
/// checked, and the verdict says so.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  foreman frontier check tiny.tar.xz --contract ID --documents held-out.txt\n  foreman frontier check plan.json --contract ID --json"
)]
pub struct Args {
    /// Model directory, zip or tar file, or JSON plan
    artifact: PathBuf,

    /// Which contract; `foreman frontier list` names them
    #[arg(long, value_name = "ID")]
    contract: String,

    /// A contracts file to use instead of the one built in
    #[arg(long, value_name = "FILE")]
    contracts: Option<PathBuf>,

    /// Texts to score on: a .txt (a document per line), .jsonl, manifest .json, or a folder
    #[arg(long, value_name = "PATH")]
    documents: Option<PathBuf>,

    /// Score every document once instead of choosing as the contract does
    #[arg(long, requires = "documents", conflicts_with_all = ["mix", "rotation_key", "sync"])]
    all_documents: bool,

    /// Shares of categories to choose: code:0.5,prose:0.5
    #[arg(long, value_name = "MIX", requires = "documents", value_parser = mix)]
    mix: Option<Mix>,

    /// Key that turns the choice
    #[arg(long, value_name = "KEY", requires = "documents")]
    rotation_key: Option<String>,

    /// Slot and number of a synchronised rotation
    #[arg(long, value_name = "SLOT:NUMBER", requires = "documents")]
    sync: Option<String>,

    /// Another scorer of the contracts file: which one is live is not certain
    #[arg(long, value_name = "NAME")]
    scorer: Option<String>,

    /// tokenizer.json of the scorer's tokenizer, where it has one
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Bytes the artifact counts instead of those it has
    #[arg(long, value_name = "N", env = "AUTORESEARCH_SUBMISSION_ARTIFACT_BYTES", hide_env_values = true)]
    artifact_bytes: Option<String>,

    /// SHA-256 the file was announced with
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,

    /// Size in bytes the file was announced with
    #[arg(long, value_name = "BYTES")]
    size: Option<u64>,

    /// Perplexity of the best artifact so far: says whether this one would replace it
    #[arg(long, value_name = "PPL", requires = "best_bytes")]
    best_perplexity: Option<f64>,

    /// Bytes of the best artifact so far
    #[arg(long, value_name = "BYTES", requires = "best_perplexity")]
    best_bytes: Option<u64>,

    /// Write the result file the benchmark writes
    #[arg(long, value_name = "FILE")]
    last_run: Option<PathBuf>,

    /// Where archives are unpacked [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,

    /// Most that is unpacked, in GB (10^9 bytes) [default: 17.18, the documented workspace of validators]
    #[arg(long, value_name = "GB")]
    unpack_limit: Option<f64>,

    /// auto, cpu, cuda:0, …
    #[arg(long, default_value = "cpu", value_parser = device)]
    device: DeviceChoice,
}

#[derive(Clone)]
struct Mix(Vec<(String, f64)>);

fn mix(text: &str) -> Result<Mix, String> {
    parse_mix(text).map(Mix)
}

fn device(text: &str) -> Result<DeviceChoice, String> {
    text.parse()
}

#[derive(Serialize)]
struct Answered {
    #[serde(flatten)]
    report: Report,
    /// Beside the best so far.
    decision: Option<Decision>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let contracts = contracts(&self.contracts)?;
        let terms = contracts.terms(&self.contract).map_err(problem)?;
        let terms = match &self.scorer {
            Some(name) => contracts.with_scorer(terms, name).map_err(problem)?,
            None => terms,
        };
        if !self.artifact.exists() {
            return Err(Problem::not_found(format!("{} is not there", self.artifact.display())));
        }
        let exam = self.exam(&terms)?;
        let options = self.options()?;
        let bar = PassBar::new(&desk.printer, "score");
        let report = check(&self.artifact, &terms, exam.as_ref(), &options, &|progress| bar.show(&progress));
        bar.finish();
        let report = report.map_err(problem)?;
        for warning in &report.warnings {
            desk.printer.warn(warning);
        }
        if let Some(path) = &self.last_run {
            std::fs::write(path, report.last_run(&terms))
                .map_err(|error| Problem::io(format!("write {}", path.display()), &error))?;
        }
        let decision = self.decision(&terms, &report);
        let answered = Answered { report, decision };
        desk.answer(&answered, |answered, printer| words(answered, &terms, printer))?;
        Ok(match answered.report.verdict {
            Verdict::Accepted | Verdict::Unscored => ExitKind::Ok,
            Verdict::Rejected | Verdict::Error => ExitKind::PartFailed,
        })
    }
}

impl Args {
    fn exam(&self, terms: &Terms<'_>) -> Result<Option<Exam>, Problem> {
        let Some(path) = &self.documents else { return Ok(None) };
        let pool = Pool::read(path).map_err(problem)?;
        let mut choice = Choice::of(terms.choice, terms.contract.documents);
        if self.all_documents {
            choice.dataset = path.display().to_string();
            choice.count = pool.documents.len();
            let texts = pool.documents.into_iter().map(|document| document.text).collect();
            return Exam::of(terms, texts, &choice, self.tokenizer.as_deref()).map(Some).map_err(problem);
        }
        choice.mix = self.mix.clone().map(|mix| mix.0).unwrap_or_default();
        choice.rotation_key = self.rotation_key.clone().unwrap_or(choice.rotation_key);
        if let Some(sync) = &self.sync {
            let (slot, number) =
                sync.split_once(':').ok_or_else(|| Problem::usage(format!("--sync {sync} is not SLOT:NUMBER")))?;
            choice.sync = Some((slot.to_owned(), number.to_owned()));
        }
        Exam::prepare(terms, &pool, &choice, self.tokenizer.as_deref()).map(Some).map_err(problem)
    }

    fn options(&self) -> Result<CheckOptions, Problem> {
        let mut options = CheckOptions {
            bytes: self.artifact_bytes.clone(),
            promised: (self.sha256.clone(), self.size),
            pass: PassOptions { device: open_device(self.device).map_err(Fault::from)?, ..PassOptions::default() },
            ..CheckOptions::default()
        };
        if let Some(scratch) = &self.scratch {
            options.scratch = scratch.clone();
        }
        options.limits = match self.unpack_limit {
            None => options.limits,
            Some(gb) if gb > 0.0 && gb < 1e6 => Limits { bytes: Bytes((gb * 1e9) as u64), ..options.limits },
            Some(gb) => return Err(Problem::usage(format!("--unpack-limit {gb} is not a size in GB"))),
        };
        Ok(options)
    }

    fn decision(&self, terms: &Terms<'_>, report: &Report) -> Option<Decision> {
        let best = Standing { perplexity: self.best_perplexity?, bytes: self.best_bytes? };
        let score = report.score.as_ref().filter(|_| report.verdict == Verdict::Accepted)?;
        let new = Standing { perplexity: score.perplexity, bytes: report.size.bytes };
        Some(decide(terms.contract, Some(best), new))
    }
}

fn words(answered: &Answered, terms: &Terms<'_>, printer: &mut Printer) -> Result<(), Problem> {
    let report = &answered.report;
    let (size, budget) = (&report.size, &report.budget);
    let mut rows = vec![vec!["contract".to_owned(), report.contract.clone()]];
    let mut fact = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    let container = report.container.map(|container| format!(" ({})", container.as_str())).unwrap_or_default();
    fact("artifact", format!("{}{container}", report.artifact.display()));
    let said = if size.overridden { ", as was said" } else { "" };
    fact("size", format!("{} bytes{said}", size.bytes));
    if let (Some(parameters), Some(bits)) = (size.parameters, size.bits_per_parameter) {
        let most = budget.bits_per_parameter;
        fact("bits", format!("{bits:.4} per parameter, {most} allowed, {} parameters", count(parameters)));
    }
    if let Some(most) = size.max_model_bits {
        fact("budget", format!("{} bytes for a model of this size", most / 8));
    }
    if let Some(plan) = &report.plan {
        let (rescued, share) = (plan.total_rescue_count, plan.overall_rescue_fraction * 100.0);
        fact("rescued", format!("{rescued} weights of the proxy, {share:.3} %"));
        fact("ratio", format!("{:.3} times smaller than the reference", plan.compression_ratio));
    }
    if let Some(score) = &report.score {
        let perplexity = if score.perplexity.is_finite() { figure(score.perplexity) } else { "not a number".into() };
        fact("perplexity", format!("{perplexity} ({:.5} nats per token)", score.cross_entropy_nats));
        let skipped = if score.skipped > 0 { format!(", {} skipped", score.skipped) } else { String::new() };
        fact("scored", format!("{} tokens of {} documents{skipped}", score.tokens, score.documents));
    }
    let sure = format!("{:?}", report.scorer_evidence).to_lowercase();
    fact("scorer", format!("{} (known from: {sure})", report.scorer));
    for missing in &report.unchecked {
        fact("unchecked", missing.clone());
    }
    if let Some(decision) = answered.decision {
        let known = format!("{:?}", terms.contract.acceptance_evidence).to_lowercase();
        let text = match decision {
            Decision::NewBest => "a new best",
            Decision::MayReplace => "as good and smaller: it may replace the best",
            Decision::No => "it does not replace the best",
        };
        fact("decision", format!("{text} (known from: {known})"));
    }
    for line in columns("", &[], &rows) {
        printer.line(line)?;
    }
    let message = report.message.clone().unwrap_or_default();
    let line = match report.verdict {
        Verdict::Accepted => printer.paint(Tone::Good, "accepted"),
        Verdict::Unscored => printer.paint(Tone::Warning, "not scored; everything else holds"),
        Verdict::Rejected => {
            let code = serde_json::to_value(report.reason).ok();
            let code = code.as_ref().and_then(|code| code.as_str()).unwrap_or_default();
            format!("{}: {message}", printer.paint(Tone::Bad, &format!("rejected ({code})")))
        }
        Verdict::Error => format!("{}: {message}", printer.paint(Tone::Bad, "cannot be judged")),
    };
    printer.line(line)?;
    if let Some(hint) = &report.hint {
        printer.hint(hint);
    }
    Ok(())
}
