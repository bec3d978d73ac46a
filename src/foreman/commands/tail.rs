//! `foreman tail`: the audit log.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind};
use crate::foreman::wording::brief;
use crate::line::{Layout, throughput};

/// Show the audit log: finished, sent back, recovered, retried
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman tail -n 50\n  foreman tail -f --json | jq -r .outcome")]
pub struct Args {
    /// How many lines
    #[arg(short = 'n', long, default_value_t = 20)]
    lines: usize,

    /// Go on as lines are added
    #[arg(short, long)]
    follow: bool,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let mut long = length(&layout);
        let all = throughput::tail(&layout, usize::MAX)?;
        let mut seen = all.len();
        for line in &all[seen.saturating_sub(self.lines)..] {
            show(line, desk)?;
        }
        if !self.follow {
            return Ok(ExitKind::Ok);
        }
        loop {
            desk.printer.flush()?;
            std::thread::sleep(Duration::from_millis(200));
            // A log that is as long as before is not read again.
            let now = length(&layout);
            if std::mem::replace(&mut long, now) == now {
                continue;
            }
            let all = throughput::tail(&layout, usize::MAX)?;
            // The log only grows; one that shrank was replaced and is read from its start.
            seen = if all.len() < seen { 0 } else { seen };
            for line in &all[seen..] {
                show(line, desk)?;
            }
            seen = all.len();
        }
    }
}

fn length(layout: &Layout) -> u64 {
    std::fs::metadata(layout.throughput()).map_or(0, |meta| meta.len())
}

fn show(line: &Map<String, Value>, desk: &mut Desk) -> Answer {
    if desk.printer.is_json() {
        desk.printer.object(line)?;
        return Ok(ExitKind::Ok);
    }
    let text = |key: &str| line.get(key).and_then(Value::as_str).unwrap_or_default();
    let rest: Vec<String> = line
        .iter()
        .filter(|(key, _)| !["at", "outcome", "alloy"].contains(&key.as_str()))
        .map(|(key, value)| match value {
            Value::String(text) => format!("{key}={}", brief(text, 80)),
            other => format!("{key}={other}"),
        })
        .collect();
    desk.printer.line(format!("{}  {:<20}  {}  {}", text("at"), text("outcome"), text("alloy"), rest.join(" ")))?;
    Ok(ExitKind::Ok)
}
