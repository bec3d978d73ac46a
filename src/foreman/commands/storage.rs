//! `foreman storage`: the tiers, the caches, the pins and the biggest work folders.

use chrono::Utc;

use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::foreman::printer::{Printer, Tone};
use crate::foreman::wording::columns;
use crate::node::{FilesystemKind, Mount, Node};
use crate::storage::survey::{Survey, survey};
use crate::units::Bytes;

/// Show where things lie: tiers, caches, pins, the biggest work folders
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman storage\n  foreman storage --json | jq '.cold[] | {name, refused}'")]
pub struct Args {
    /// How many work folders are shown
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    work: usize,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let node = Node::read(layout.root())?;
        let survey = survey(&layout, &node, Utc::now(), self.work)?;
        desk.answer(&survey, |survey, printer| {
            tiers(survey, printer)?;
            caches(survey, printer)?;
            pins(survey, printer)?;
            work(survey, printer)
        })
    }
}

fn kind(filesystem: Option<FilesystemKind>) -> String {
    filesystem.map_or("?", FilesystemKind::as_str).to_owned()
}

fn mounted(mount: Option<&Mount>) -> String {
    mount.map_or_else(|| "?".into(), |mount| format!("{} on {}", mount.source, mount.point.display()))
}

fn room(free: Bytes, total: Bytes) -> String {
    format!("{free} of {total}")
}

fn tiers(survey: &Survey, printer: &mut Printer) -> Result<(), Problem> {
    let hot = &survey.hot;
    let mut rows = vec![vec![
        "hot".to_owned(),
        hot.path.display().to_string(),
        room(hot.pressure.free_bytes, hot.pressure.total_bytes),
        kind(hot.filesystem),
        mounted(hot.mount.as_ref()),
        format!("{:.0} % in use, {} stay free", hot.pressure.used_pct, hot.min_free),
    ]];
    for tier in &survey.cold {
        let state = match &tier.refused {
            Some(refused) => format!("REFUSED: {refused}"),
            None => "ok".to_owned(),
        };
        rows.push(vec![
            format!("cold {}", tier.name),
            tier.path.display().to_string(),
            room(tier.free, tier.total),
            kind(tier.filesystem),
            mounted(tier.mount.as_ref()),
            state,
        ]);
    }
    for tier in &survey.network {
        let place = tier.endpoint.clone().unwrap_or_default();
        rows.push(vec![
            format!("network {}", tier.name),
            place,
            String::new(),
            String::new(),
            String::new(),
            tier.note.clone(),
        ]);
    }
    for line in columns("", &["TIER", "PATH", "FREE", "KIND", "MOUNTED", "STATE"], &rows) {
        printer.line(line)?;
    }
    let concerns = survey.cold.iter().map(|tier| (tier.name.as_str(), tier.concern));
    for (name, concern) in concerns.chain([("hot", hot.concern)]) {
        if let Some(concern) = concern {
            printer.line(format!("{}: {name}: {concern}", printer.paint(Tone::Warning, "concern")))?;
        }
    }
    Ok(())
}

fn caches(survey: &Survey, printer: &mut Printer) -> Result<(), Problem> {
    let budget = survey.rules.source_cache.map_or("no budget".to_owned(), |budget| format!("budget {budget}"));
    for cache in &survey.caches {
        printer.line(format!("\nsource cache {} ({}): {}, {budget}", cache.name, cache.path.display(), cache.bytes))?;
        let rows: Vec<Vec<String>> = cache
            .models
            .iter()
            .map(|model| {
                let last = crate::line::stamp::seconds(model.last_used);
                vec![model.name.clone(), model.bytes.to_string(), last, why(&model.used_by)]
            })
            .collect();
        if !rows.is_empty() {
            for line in columns("  ", &["MODEL", "BYTES", "LAST USED", "IN USE"], &rows) {
                printer.line(line)?;
            }
        }
    }
    Ok(())
}

fn pins(survey: &Survey, printer: &mut Printer) -> Result<(), Problem> {
    if survey.pins.is_empty() {
        return Ok(());
    }
    printer.line("")?;
    let rows: Vec<Vec<String>> = survey
        .pins
        .iter()
        .map(|pin| match &pin.problem {
            Some(problem) => vec![pin.file.display().to_string(), String::new(), problem.clone()],
            None => vec![
                pin.subject.clone().unwrap_or_default(),
                pin.at.clone().unwrap_or_default(),
                pin.reason.clone().unwrap_or_default(),
            ],
        })
        .collect();
    for line in columns("", &["PINNED", "SINCE", "WHY"], &rows) {
        printer.line(line)?;
    }
    Ok(())
}

fn work(survey: &Survey, printer: &mut Printer) -> Result<(), Problem> {
    printer.line(format!("\n{} work folders, {}", survey.work_folders, survey.work_bytes))?;
    let rows: Vec<Vec<String>> = survey
        .work
        .iter()
        .map(|folder| vec![folder.name.clone(), folder.bytes.to_string(), why(&folder.because)])
        .collect();
    if !rows.is_empty() {
        for line in columns("  ", &["WORK", "BYTES", "IN USE"], &rows) {
            printer.line(line)?;
        }
    }
    for unknown in &survey.unknown {
        let file = unknown.file.display();
        printer.warn(format!("{file} cannot be read: what it could own is kept ({})", unknown.problem));
    }
    Ok(())
}

/// The first reason, and how many more there are.
fn why(reasons: &[String]) -> String {
    match reasons {
        [] => "nobody needs it".into(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
    }
}
