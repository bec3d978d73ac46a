//! `foreman events`: the event stream.

use std::time::Duration;

use serde_json::Value;

use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::foreman::wording::brief;
use crate::line::Event;
use crate::line::follow::{Follower, Since};
use crate::line::stamp;

/// Show the event stream
///
/// --since takes a time (2026-01-31T09:30:00Z, inclusive) or the number of the last event already seen.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman events -f\n  foreman events --since 120 --json")]
pub struct Args {
    /// Go on as events come
    #[arg(short, long)]
    follow: bool,

    /// Only events at or after this time, or after this event number
    #[arg(long, value_name = "TIME|SEQ", value_parser = since)]
    since: Option<Since>,

    /// Only the last N (without --since)
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "since")]
    lines: Option<usize>,
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(seq) = text.parse() {
        return Ok(Since::Seq(seq));
    }
    stamp::parse(text).map(Since::Time).ok_or_else(|| "neither a time like 2026-01-31T09:30:00Z nor a number".into())
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let mut follower = Follower::from(&layout, self.since.clone().unwrap_or(Since::Start));
        let first = follower.poll()?;
        let skip = self.lines.map_or(0, |lines| first.len().saturating_sub(lines));
        for event in &first[skip..] {
            show(event, desk)?;
        }
        if !self.follow {
            return Ok(ExitKind::Ok);
        }
        loop {
            desk.printer.flush()?;
            std::thread::sleep(Duration::from_millis(100));
            for event in follower.poll()? {
                show(&event, desk)?;
            }
        }
    }
}

fn show(event: &Event, desk: &mut Desk) -> Result<(), Problem> {
    if desk.printer.is_json() {
        return desk.printer.object(event);
    }
    let fields: Vec<String> = event.fields.iter().map(|(key, value)| format!("{key}={}", short(value))).collect();
    let part = event.alloy.as_deref().unwrap_or("-");
    desk.printer.line(format!(
        "{:>5}  {}  {:<22}  {part}  {}",
        event.seq,
        event.timestamp,
        event.kind,
        fields.join(" ")
    ))
}

fn short(value: &Value) -> String {
    match value {
        Value::String(text) => brief(text, 80),
        Value::Number(number) if number.is_f64() => format!("{:.3}", number.as_f64().unwrap_or_default()),
        other => brief(&other.to_string(), 80),
    }
}
