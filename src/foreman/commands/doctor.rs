//! `foreman doctor`: what is wrong with the line and its machine, and what to do about it.

use serde::Serialize;

use crate::foreman::desk::{Desk, Verb};
use crate::foreman::doctor::{self, CHECKS, Finding, Level, Machine, Patient};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::foreman::printer::{Printer, Tone};

/// Examine the line and its machine: what is wrong, why, and what mends it
///
/// It looks and probes but mends nothing; it works with a broken factory_node.toml, with the daemon up and down. Run it as the user of the daemon. Exit code: 0 all well, 10 warnings, 11 errors.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman doctor\n  foreman doctor --only config,space --json")]
pub struct Args {
    /// Only these checks, by name
    #[arg(long, value_name = "CHECK,…", value_delimiter = ',', value_parser = check)]
    only: Vec<String>,

    /// Leave out what is well
    #[arg(short, long)]
    quiet: bool,
}

fn check(name: &str) -> Result<String, String> {
    let names: Vec<&str> = CHECKS.iter().map(|check| check.name()).collect();
    match names.contains(&name) {
        true => Ok(name.to_owned()),
        false => Err(format!("the checks are {}", names.join(", "))),
    }
}

#[derive(Serialize)]
struct Examination {
    root: String,
    /// The worst level found.
    worst: Level,
    findings: Vec<Finding>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        // A line that has lost a station is one that needs a doctor.
        let layout = desk.layout();
        if !layout.line().is_dir() {
            desk.line()?;
        }
        let root = layout.root().display().to_string();
        let mut findings = doctor::examine(&Patient::new(layout, Machine::this()), &self.only);
        let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
        findings.retain(|finding| !self.quiet || finding.level != Level::Ok);
        desk.answer(&Examination { root, worst, findings }, words)?;
        Ok(match worst {
            Level::Ok | Level::Note => ExitKind::Ok,
            Level::Warning => ExitKind::DoctorWarnings,
            Level::Error => ExitKind::DoctorErrors,
        })
    }
}

fn words(examination: &Examination, printer: &mut Printer) -> Result<(), Problem> {
    for Finding { check, level, what, why, fix } in &examination.findings {
        let tone = match level {
            Level::Ok => Tone::Good,
            Level::Note => Tone::Aside,
            Level::Warning => Tone::Warning,
            Level::Error => Tone::Bad,
        };
        let level = printer.paint(tone, &format!("{:<7}", level.as_str()));
        printer.line(format!("{level}  {check:<11}  {what}"))?;
        for (word, text) in [("why", why), ("fix", fix)] {
            if let Some(text) = text {
                printer.line(format!("{:22}{word}: {text}", ""))?;
            }
        }
    }
    Ok(())
}
