//! `foreman explain`: why a part stands where it stands.

use std::path::PathBuf;

use serde::Serialize;

use crate::foreman::board::{Dossier, Reason, one_part};
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::foreman::printer::Printer;
use crate::foreman::wording::{duration, shell_word};
use crate::line::Station;
use crate::node::Node;

/// Say why a part stands where it stands, and what to do next
///
/// Names the files that show it.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman explain my-part")]
pub struct Args {
    /// Name of the part, with or without .alloy.json
    name: String,
}

#[derive(Serialize)]
struct Explanation {
    part: String,
    station: Station,
    /// Sentences, in the order they are read.
    because: Vec<String>,
    /// Files that show it.
    evidence: Vec<PathBuf>,
    /// Commands that lead on.
    next: Vec<String>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let node = Node::read(layout.root())?;
        let dossier = Dossier::read(&layout, &node, &one_part(&layout, &self.name)?)?;
        let explanation = explain(&dossier, desk);
        desk.answer(&explanation, words)
    }
}

fn words(explanation: &Explanation, printer: &mut Printer) -> Result<(), Problem> {
    printer.line(format!("{} stands in {}", explanation.part, explanation.station))?;
    for sentence in &explanation.because {
        printer.line(format!("  {sentence}"))?;
    }
    for path in &explanation.evidence {
        printer.line(format!("  see {}", path.display()))?;
    }
    for command in &explanation.next {
        printer.line(format!("  next: {command}"))?;
    }
    Ok(())
}

fn explain(dossier: &Dossier, desk: &Desk) -> Explanation {
    let name = shell_word(dossier.part.split(".retry").next().unwrap_or(&dossier.part).trim_end_matches(".alloy.json"));
    let command = |verb: &str| desk.command(&format!("{verb} {name}"));
    let mut out = Explanation {
        part: dossier.part.clone(),
        station: dossier.station,
        because: Vec::new(),
        evidence: vec![dossier.path.clone()],
        next: Vec::new(),
    };
    match dossier.station {
        Station::Intake => intake(dossier, desk, &mut out),
        Station::Assembly => assembly(dossier, desk, &mut out),
        Station::Rework => {
            rework(dossier, &mut out);
            out.next.push(command("retry"));
        }
        Station::Finished => {
            let result = dossier.result.as_ref();
            out.because.push(match result {
                Some(result) => format!("it was built in {} and passed its gate", duration(result.elapsed_s)),
                None => "it stands here without a result sidecar: somebody else put it there".into(),
            });
            out.next.push(command("verify"));
        }
        Station::Deferred => {
            out.because.push("somebody parked it; it is never picked up from here".into());
            out.next.push(command("retry"));
        }
    }
    if dossier.station != Station::Intake {
        out.evidence.extend(dossier.sidecars.iter().cloned());
        out.evidence.extend(dossier.logs.last().map(|log| log.path.clone()));
    }
    out
}

fn intake(dossier: &Dossier, desk: &Desk, out: &mut Explanation) {
    let Some(waiting) = &dossier.waiting else { return };
    out.because.push(match &waiting.reason {
        Reason::Next => "it is next: the daemon picks it up at its next look at intake".into(),
        Reason::Behind { part } => format!("{part} comes first (priority, then time of arrival, then name)"),
        Reason::Building { part } => format!("{part} is being built, and this line builds one part at a time"),
        Reason::Paused { reason } => format!("the line is paused, nothing is started: {reason}"),
        Reason::BackOff { until, after, .. } => format!("it is tried again at {until}, after: {after}"),
        Reason::NoRoom { lacks, .. } => format!("it does not fit on this machine at the moment: it {lacks}"),
        Reason::NotARecipe { problem } => format!("it is not a recipe and goes to rework: {problem}"),
        Reason::NoSupervisor => "no daemon works this line".into(),
    });
    if let Some(position) = waiting.position {
        out.because.push(format!("it is number {position} in the queue"));
    }
    out.evidence.extend(dossier.sidecars.iter().cloned());
    out.next.push(match waiting.reason {
        Reason::NoSupervisor => desk.command("run"),
        Reason::Paused { .. } => desk.command("resume"),
        _ => desk.command("status"),
    });
}

fn assembly(dossier: &Dossier, desk: &Desk, out: &mut Explanation) {
    let Some(running) = &dossier.running else { return };
    if !running.supervised {
        out.because.push("it was being built when its supervisor ended; the next start takes it back".into());
        out.next.push(desk.command("run"));
        return;
    }
    out.because.push(match (&running.stage, running.percent) {
        (Some(stage), Some(percent)) => format!("it is being built: stage {stage}, {percent:.0} %"),
        (Some(stage), None) => format!("it is being built: stage {stage}"),
        _ => "its worker is starting".into(),
    });
    out.next.push(desk.command("logs -f"));
}

fn rework(dossier: &Dossier, out: &mut Explanation) {
    let Some(error) = &dossier.error else {
        out.because.push("it has no error sidecar: somebody moved it here by hand".into());
        return;
    };
    let stage = error.stage.as_deref().map(|stage| format!(" in stage {stage}")).unwrap_or_default();
    out.because.push(format!("it failed{stage}: {}", error.error));
    let owner = match error.class.as_str() {
        "recipe" => "the recipe is wrong: mend it and enqueue it again",
        "source" => "the model or a text is broken or missing",
        "quality" => "the result missed a floor the recipe sets",
        "resource" => "it does not fit this machine",
        "infra" => "the machine failed it, more often than forge.max_retries allows",
        "internal" => "this is a bug of ours; please report it with the log",
        "cancelled" => "an operator took it off the line",
        _ => "the error names no owner",
    };
    out.because.push(format!("owner {}: {owner}", error.class));
    let cause = error.signal.map(|n| format!("signal {n}")).or(error.exit_status.map(|n| format!("exit status {n}")));
    out.because.extend(cause.map(|cause| format!("its worker ended with {cause}")));
    out.because.extend(error.hint.as_ref().map(|hint| format!("hint: {hint}")));
    out.because.extend(error.log_tail.last().map(|line| format!("last line of the log: {line}")));
}
