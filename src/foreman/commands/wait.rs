//! `foreman wait`: blocks until parts end.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::foreman::board::no_such_part;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::foreman::wording::{columns, duration};
use crate::line::{Layout, LineLock, Station, record, shelf};

/// Wait until parts are finished, and fail if one is not
///
/// Ends with 0 when all are finished, 5 when one went to rework or was parked, 6 after --timeout, 7 when nobody works
/// the line, 4 when there is nothing to wait for.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman wait my-part --timeout 3600\n  foreman wait --all && echo shipped")]
pub struct Args {
    /// Names of parts
    #[arg(required_unless_present = "all")]
    names: Vec<String>,

    /// Every part that waits or is being built now
    #[arg(long, conflicts_with = "names")]
    all: bool,

    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<f64>,
}

/// How long a line may be without a supervisor before waiting is called off: one may just be starting.
const GRACE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(100);

#[derive(Serialize)]
struct Waited {
    outcome: ExitKind,
    seconds: f64,
    parts: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    part: String,
    station: Station,
    /// The reason of a failure.
    error: Option<String>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let names = self.wanted(&layout)?;
        let start = Instant::now();
        let mut unsupervised: Option<Instant> = None;
        let (outcome, parts) = loop {
            let rows = rows(&layout, &names)?;
            let open = rows.iter().any(|row| matches!(row.station, Station::Intake | Station::Assembly));
            let failed = rows.iter().any(|row| matches!(row.station, Station::Rework | Station::Deferred));
            if !open {
                break (if failed { ExitKind::PartFailed } else { ExitKind::Ok }, rows);
            }
            if self.timeout.is_some_and(|timeout| start.elapsed().as_secs_f64() >= timeout) {
                break (ExitKind::TimedOut, rows);
            }
            match LineLock::is_held(&layout) {
                true => unsupervised = None,
                false if unsupervised.get_or_insert_with(Instant::now).elapsed() >= GRACE => {
                    break (ExitKind::NotRunning, rows);
                }
                false => {}
            }
            std::thread::sleep(LOOK);
        };
        let waited = Waited { outcome, seconds: start.elapsed().as_secs_f64(), parts };
        let run = desk.command("run");
        desk.answer(&waited, |waited, printer| {
            let cells =
                |row: &Row| vec![row.part.clone(), row.station.to_string(), row.error.clone().unwrap_or_default()];
            for line in columns("", &[], &waited.parts.iter().map(cells).collect::<Vec<_>>()) {
                printer.line(line)?;
            }
            match waited.outcome {
                ExitKind::TimedOut => printer.warn(format!("gave up after {}", duration(waited.seconds))),
                ExitKind::NotRunning => {
                    printer.warn("no daemon works this line");
                    printer.hint(format!("start one with `{run}`"));
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(outcome)
    }
}

impl Args {
    /// Base names, so that a retried part is still the same one.
    fn wanted(&self, layout: &Layout) -> Result<Vec<String>, Problem> {
        let mut out = Vec::new();
        if self.all {
            for station in [Station::Intake, Station::Assembly] {
                out.extend(shelf::list(layout, station)?.into_iter().map(|part| part.name.base().to_owned()));
            }
            out.sort();
            out.dedup();
            if out.is_empty() {
                return Err(Problem::new(ExitKind::NothingMatched, "nothing waits and nothing is being built"));
            }
            return Ok(out);
        }
        for name in &self.names {
            let name = name.rsplit('/').next().unwrap_or(name);
            let found = shelf::find(layout, name)?;
            let part = found.first().ok_or_else(|| no_such_part(layout, name))?;
            out.push(part.name.base().to_owned());
        }
        Ok(out)
    }
}

/// Where the parts stand now. A part in flight between two stations is looked for again.
fn rows(layout: &Layout, names: &[String]) -> Result<Vec<Row>, Problem> {
    names.iter().map(|name| row(layout, name)).collect()
}

fn row(layout: &Layout, name: &str) -> Result<Row, Problem> {
    const LIVELY: [Station; 5] =
        [Station::Assembly, Station::Intake, Station::Finished, Station::Rework, Station::Deferred];
    for _ in 0..20 {
        let found: Vec<_> = shelf::find(layout, name)?.into_iter().filter(|part| part.name.base() == name).collect();
        let Some(part) = LIVELY.iter().find_map(|station| found.iter().find(|part| part.station == *station)) else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        let error = match part.station {
            Station::Rework => record::error(layout, part.station, &part.name)?.map(|error| error.error),
            Station::Deferred => Some("parked by an operator".into()),
            _ => None,
        };
        return Ok(Row { part: part.name.file_name(), station: part.station, error });
    }
    Err(Problem::not_found(format!("part {name:?} is no longer on this line")))
}
