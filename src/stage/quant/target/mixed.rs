//! A model measured for a mixed file: what every type of every tensor takes and costs; and one choice written, and
//! measured itself.

use serde_json::{Map, Value, json};

use super::super::{Writing, Written, calibrate::sums_budget};
use super::{ERROR_TOKENS, PROBE_TOKENS, write_plan};
use crate::assay::{Divergence, diverge};
use crate::codec::Dtype;
use crate::compress::{
    Candidates, ErrorTable, Offer, Picks, Probe, QuantPlan, gguf_metadata, least_bytes, least_loss, reach,
};
use crate::engine::{PassProgress, Subject};
use crate::family::{OpenModel, open};
use crate::fault::{Fault, Outcome};
use crate::recipe::stages::QuantAim;
use crate::stage::{Span, StageContext};

/// Probes that run in one pass beside the model.
pub(super) const BESIDE: usize = 16;

/// See the module.
pub(super) struct Mixed<'a> {
    pub cx: &'a StageContext<'a>,
    pub model: &'a OpenModel,
    pub writing: &'a Writing<'a>,
    candidates: Candidates,
    errors: ErrorTable,
    probes: Vec<Probe>,
    /// Of every probe, nats per token.
    klds: Vec<f64>,
    offers: Vec<Vec<Offer>>,
    held_out: &'a [Vec<u32>],
    /// Of the file's tensors of every choice: its header.
    header: u64,
}

/// A file that was written, and what it loses.
pub(super) struct File {
    pub written: Written,
    pub loss: Divergence,
}

/// A round of a search for a divergence.
pub(super) struct Round {
    pub bytes: u64,
    pub expected: f64,
    pub measured: f64,
}

impl<'a> Mixed<'a> {
    /// Measures the types of every tensor and the sensitivity of every group.
    pub fn measure(
        cx: &'a StageContext<'a>,
        model: &'a OpenModel,
        types: &[Dtype],
        writing: &'a Writing<'a>,
        span: Span<'_>,
    ) -> Outcome<Self> {
        let calibration =
            writing.calibration.ok_or_else(|| Fault::internal("plan: a target without a calibration text"))?;
        let held_out = calibration.held_out();
        if held_out.is_empty() {
            let fault = Fault::source("the calibration text is too short to measure on");
            return Err(fault.hint("a target needs a few hundred tokens at least: name a longer calibrationCorpus"));
        }
        let candidates = Candidates::of(&model.spec, types)?;
        let (errors, probing) = (span.part(0.0, 0.3), span.part(0.3, 1.0));
        let report = |p: PassProgress| errors.at_rate(p.fraction, "measure types", Some(p.tokens_per_s));
        let sums = sums_budget(cx.pass.memory_budget.unwrap_or_default());
        let sample = first_tokens(calibration.sequences(), ERROR_TOKENS);
        let errors = ErrorTable::measure(model, &candidates, &sample, sums, &cx.pass, &report)?;
        let probes = errors.probes(&candidates);
        let text = first_tokens(held_out, PROBE_TOKENS);
        let mut klds = Vec::new();
        for (nth, some) in probes.chunks(BESIDE).enumerate() {
            let part = |at: usize| (at * BESIDE) as f64 / probes.len().max(1) as f64;
            let pass = probing.part(part(nth).min(1.0), part(nth + 1).min(1.0));
            let report = |p: PassProgress| pass.at_rate(p.fraction, "measure sensitivity", Some(p.tokens_per_s));
            let views: Vec<_> = some.iter().map(|p| errors.rounded(model.tensors.as_ref(), &p.types)).collect();
            let beside: Vec<Subject<'_>> =
                views.iter().map(|view| Subject { tensors: view, ..Subject::of(model) }).collect();
            let found = diverge(&Subject::of(model), &beside, &text, &cx.pass, &report)?;
            klds.extend(found.iter().map(|divergence| divergence.kld));
        }
        let offers = errors.offers(&candidates, &probes, &klds);
        let plan = candidates.extreme("header", false)?;
        let metadata = gguf_metadata(model, &plan, None, &cx.plan.name)?;
        let header = plan.header_bytes(&metadata.fields, &cx.work.join(writing.out))?;
        Ok(Mixed { cx, model, writing, candidates, errors, probes, klds, offers, held_out, header })
    }

    /// The best choice of a file of at most `limit` bytes.
    pub fn within(&self, limit: u64) -> Outcome<Picks> {
        least_loss(&self.offers, limit.saturating_sub(self.header)).ok_or_else(|| {
            let (least, most) = reach(&self.offers);
            let (least, most) = (least + self.header, most + self.header);
            let message = format!("{limit} bytes are out of reach: files of these types take {least} to {most}");
            Fault::quality(message).hint("raise the target, or add smaller types to quantTypes")
        })
    }

    /// The smallest choice that is expected to lose at most this (as its probes did: a scale of its own), or the one
    /// that loses least.
    pub fn expected(&self, most: f64) -> Outcome<Picks> {
        match least_bytes(&self.offers, most) {
            Some(picks) => Ok(picks),
            None => self.within(u64::MAX),
        }
    }

    /// What a choice loses when every tensor is just rounded; no file is written.
    pub fn rounded(&self, picks: &Picks, span: Span<'_>) -> Outcome<f64> {
        let types = self.errors.picked(&self.candidates, &picks.offers);
        let view = self.errors.rounded(self.model.tensors.as_ref(), &types);
        let subject = Subject { tensors: &view, ..Subject::of(self.model) };
        Ok(self.diverged(&subject, span)?.kld)
    }

    fn diverged(&self, subject: &Subject<'_>, span: Span<'_>) -> Outcome<Divergence> {
        let report = |p: PassProgress| span.at_rate(p.fraction, "measure the loss", Some(p.tokens_per_s));
        let base = Subject::of(self.model);
        let mut found = diverge(&base, &[*subject], self.held_out, &self.cx.pass, &report)?;
        found.pop().ok_or_else(|| Fault::internal("a pass of two models compared none"))
    }

    fn plan(&self, aim: QuantAim, picks: &Picks) -> Outcome<QuantPlan> {
        Ok(self.candidates.plan(&aim.label(), &picks.offers)?)
    }

    /// Writes the file of a choice and measures it as it lies on disk.
    pub fn write(&self, aim: QuantAim, picks: &Picks, span: Span<'_>) -> Outcome<File> {
        let Writing { quant, place, out, calibration, .. } = *self.writing;
        let writing = Writing { quant, place, out, calibration, span: span.part(0.0, 0.9) };
        let written = write_plan(self.cx, self.model, &self.plan(aim, picks)?, None, &writing)?;
        let file = open(&self.cx.work.join(out))?;
        let loss = self.diverged(&Subject::of(&file), span.part(0.9, 1.0))?;
        Ok(File { written, loss })
    }

    /// For the stage's record: what was asked, chosen, expected and found.
    pub fn details(&self, aim: QuantAim, picks: &Picks, file: &File, rounds: &[Round]) -> Map<String, Value> {
        let asked = match aim {
            QuantAim::Bytes(bytes) => json!({ "bytes": bytes }),
            QuantAim::BitsPerWeight(bits) => json!({ "bitsPerWeight": bits }),
            QuantAim::MaxKld(kld) => json!({ "maxKld": kld }),
        };
        let bytes = file.written.bytes;
        let round = |r: &Round| json!({ "bytes": r.bytes, "expectedKld": r.expected, "kld": r.measured });
        let probe = |(nth, kld): (usize, &f64)| {
            let (group, share) = (&self.candidates.groups[nth], self.probes[nth].share);
            json!({ "role": group.role, "blocks": group.blocks, "share": share, "kld": kld })
        };
        let tokens = |sequences: &[Vec<u32>]| sequences.iter().map(Vec::len).sum::<usize>();
        let value = json!({ "target": {
            "asked": asked,
            "bytes": bytes,
            "bitsPerWeight": 8.0 * bytes as f64 / self.model.spec.parameters().max(1) as f64,
            "expectedKld": picks.loss,
            "kld": file.loss.kld,
            "kldStderr": file.loss.kld_stderr,
            "sameTop1": file.loss.same_top,
            "heldOutTokens": tokens(self.held_out),
            "choice": self.by_role(picks),
            "probes": self.klds.iter().enumerate().map(probe).collect::<Value>(),
            "rounds": rounds.iter().map(round).collect::<Value>(),
        } });
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// How many tensors of every role take which type.
    fn by_role(&self, picks: &Picks) -> Value {
        let mut roles: Vec<(&str, Map<String, Value>)> = Vec::new();
        for (candidate, &pick) in self.candidates.tensors.iter().zip(&picks.offers) {
            let Some(group) = candidate.group else { continue };
            let role = self.candidates.groups[group].role;
            let at = roles.iter().position(|(known, _)| *known == role).unwrap_or_else(|| {
                roles.push((role, Map::new()));
                roles.len() - 1
            });
            let count = roles[at].1.entry(candidate.types[pick].as_str()).or_insert(json!(0));
            *count = json!(count.as_u64().unwrap_or(0) + 1);
        }
        roles.into_iter().map(|(role, types)| json!({ "role": role, "types": types })).collect()
    }
}

/// The first `most` tokens, in sequences that predict something.
fn first_tokens(sequences: &[Vec<u32>], most: usize) -> Vec<Vec<u32>> {
    let mut left = most;
    let mut out = Vec::new();
    for sequence in sequences.iter().filter(|sequence| sequence.len() > 1) {
        if left < 2 {
            break;
        }
        let part = &sequence[..sequence.len().min(left)];
        left -= part.len();
        out.push(part.to_vec());
    }
    out
}
