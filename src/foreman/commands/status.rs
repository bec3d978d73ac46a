//! `foreman status`: the line at a glance.

use crate::foreman::board::{Board, Running, Supervisor};
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::foreman::printer::{Printer, Tone};
use crate::foreman::wording::{self, brief, columns, duration};
use crate::line::Station;
use crate::node::Node;
use crate::units::Bytes;

/// Show the line at a glance: being built, waiting and why, finished
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman status\n  foreman status --json | jq .waiting")]
pub struct Args {
    /// How many finished parts to show
    #[arg(long, value_name = "N", default_value_t = 5)]
    newest: usize,
}

impl Default for Args {
    fn default() -> Self {
        Args { newest: 5 }
    }
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let node = Node::read(layout.root())?;
        let board = Board::read(&layout, &node, self.newest)?;
        let start = desk.command("run");
        desk.answer(&board, |board, printer| {
            head(board, printer)?;
            running(board, printer)?;
            waiting(board, printer)?;
            rework(board, printer)?;
            finished(board, printer)?;
            for ignored in &board.ignored {
                printer.warn(format!("intake: {ignored}"));
            }
            if !board.supervisor.running && !board.waiting.is_empty() {
                printer.hint(format!("nobody works this line; start it with `{start}`"));
            }
            Ok(())
        })
    }
}

fn head(board: &Board, printer: &mut Printer) -> Result<(), Problem> {
    let count = |station: Station| board.stations.get(station.as_str()).copied().unwrap_or(0);
    let mut counts: Vec<String> = Station::ALL.iter().map(|&s| format!("{s} {}", count(s))).collect();
    if board.quarantined > 0 {
        counts.push(printer.paint(Tone::Warning, &format!("quarantine {}", board.quarantined)));
    }
    printer.line(format!("line      {}", board.root))?;
    let told = supervisor(&board.supervisor);
    let tone = if board.supervisor.running && !board.supervisor.stale_heartbeat { Tone::Good } else { Tone::Warning };
    printer.line(format!("daemon    {}", printer.paint(tone, &told)))?;
    if let Some(pause) = &board.paused {
        let by = if pause.by.is_empty() { String::new() } else { format!(" by {}", pause.by) };
        let since = if pause.at.is_empty() { String::new() } else { format!(" since {}", pause.at) };
        let told = format!("{since}{by}: {}", pause.why());
        printer.line(format!("{}{told}", printer.paint(Tone::Warning, "paused   ")))?;
    }
    printer.line(format!("stations  {}", counts.join(" · ")))
}

fn supervisor(boss: &Supervisor) -> String {
    if !boss.running {
        let lie = if boss.stale_heartbeat { " (it ended without saying so)" } else { "" };
        return format!("not running{lie}");
    }
    let state = serde_json::to_value(boss.state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    let mut facts = Vec::new();
    facts.extend(boss.pid.map(|pid| format!("pid {pid}")));
    facts.extend(boss.host.clone());
    facts.extend(boss.beat_age_s.map(|age| format!("beat {} ago", duration(age))));
    if boss.stale_heartbeat {
        facts.push("silent for too long".into());
    }
    format!("{state} ({})", facts.join(", "))
}

fn running(board: &Board, printer: &mut Printer) -> Result<(), Problem> {
    if board.running.is_empty() {
        return Ok(());
    }
    heading(printer, "Being built")?;
    let header = ["PART", "STAGE", "DONE", "ETA", "ATTEMPT", "BEAT", "TOKENS/S", "RSS"];
    let rows: Vec<Vec<String>> = board.running.iter().map(running_row).collect();
    for line in columns("  ", &header, &rows) {
        printer.line(line)?;
    }
    if board.running.iter().any(|part| !part.supervised) {
        printer.line("  no supervisor watches the above; the next start takes it back")?;
    }
    Ok(())
}

fn running_row(part: &Running) -> Vec<String> {
    let dash = || "-".to_owned();
    let stage = match (&part.stage, part.stage_number, part.stage_count) {
        (Some(stage), Some(n), Some(of)) => format!("{stage} ({n}/{of})"),
        (Some(stage), ..) => stage.clone(),
        _ => dash(),
    };
    vec![
        part.part.clone(),
        stage,
        part.percent.map_or_else(dash, |percent| wording::percent(percent / 100.0)),
        part.eta_s.map_or_else(dash, duration),
        part.attempt.map_or_else(dash, |attempt| format!("{attempt}/{}", part.attempts_allowed.max(attempt))),
        part.heartbeat_age_s.map_or_else(dash, duration),
        part.tokens_per_s.map_or_else(dash, |rate| format!("{rate:.0}")),
        part.rss_bytes.map_or_else(dash, |rss| Bytes(rss).to_string()),
    ]
}

fn waiting(board: &Board, printer: &mut Printer) -> Result<(), Problem> {
    if board.waiting.is_empty() {
        return Ok(());
    }
    heading(printer, "Waiting")?;
    let rows: Vec<Vec<String>> = board
        .waiting
        .iter()
        .map(|part| {
            let position = part.position.map_or_else(|| "-".into(), |n| n.to_string());
            vec![position, part.part.clone(), part.base_model.clone().unwrap_or_default(), part.reason.sentence()]
        })
        .collect();
    for line in columns("  ", &["#", "PART", "MODEL", "WHY IT WAITS"], &rows) {
        printer.line(line)?;
    }
    Ok(())
}

fn rework(board: &Board, printer: &mut Printer) -> Result<(), Problem> {
    if board.rework.is_empty() {
        return Ok(());
    }
    heading(printer, "In rework")?;
    let rows: Vec<Vec<String>> = board
        .rework
        .iter()
        .map(|part| {
            let error = part.error.as_deref().unwrap_or("(no error sidecar)");
            vec![part.part.clone(), part.class.clone().unwrap_or_else(|| "-".into()), brief(error, 100)]
        })
        .collect();
    for line in columns("  ", &["PART", "OWNER", "WHAT WENT WRONG"], &rows) {
        printer.line(line)?;
    }
    Ok(())
}

fn finished(board: &Board, printer: &mut Printer) -> Result<(), Problem> {
    if board.finished.is_empty() {
        return Ok(());
    }
    heading(printer, "Finished, newest first")?;
    let rows: Vec<Vec<String>> = board
        .finished
        .iter()
        .map(|part| {
            let hash = part.model_hash.as_deref().unwrap_or("-");
            let hash = hash.strip_prefix("sha256:").map_or(hash.to_owned(), |hex| brief(hex, 13));
            vec![
                part.part.clone(),
                part.completed_at.clone().unwrap_or_else(|| part.arrived_at.clone()),
                part.elapsed_s.map_or_else(|| "-".into(), duration),
                hash,
            ]
        })
        .collect();
    for line in columns("  ", &["PART", "WHEN", "TOOK", "MODEL HASH"], &rows) {
        printer.line(line)?;
    }
    Ok(())
}

fn heading(printer: &mut Printer, text: &str) -> Result<(), Problem> {
    let title = printer.paint(Tone::Heading, text);
    printer.line("")?;
    printer.line(title)
}
