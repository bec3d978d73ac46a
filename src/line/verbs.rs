//! What an operator may ask of a line. Every verb is durable on return, works with the daemon up or down, and tells
//! what it moved; with `dry_run` it only tells.

use chrono::Utc;
use serde_json::json;

use super::lock::MovesLock;
use super::moves::{Move, Mover, planned};
use super::recovery::{self, Recovered};
use super::shelf::{self, PartEntry};
use super::{ErrorRecord, EventLog, Layout, LineError, PartName, Station, identity, record, stamp, throughput};

/// What to do when the name is on the line already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTaken {
    Refuse,
    /// Use the first free `<name>~<n>`.
    Number,
}

/// Puts a recipe into intake under `name`: whole, durable, never over another file; it arrives now.
pub fn enqueue(
    layout: &Layout,
    name: &PartName,
    recipe: &[u8],
    on_taken: OnTaken,
    dry_run: bool,
) -> Result<(PartName, Move), LineError> {
    let name = name.as_alloy().with_retries(0);
    let _moves = MovesLock::acquire(layout)?;
    let name = match (shelf::find(layout, name.base())?.first(), on_taken) {
        (None, _) => name,
        (Some(part), OnTaken::Refuse) => {
            return Err(LineError::Taken { name: name.base().into(), station: part.station });
        }
        (Some(_), OnTaken::Number) => free_number(layout, &name)?,
    };
    let mover = Mover::real(layout);
    let dest = layout.station(Station::Intake).join(name.file_name());
    let change = Move { from: "-".into(), reason: None, ..mover.described(&dest, &dest) };
    if !dry_run {
        mover.publish(&dest, recipe)?;
        log(layout).tell("line/enqueued", Some(&name.file_name()), json!({"bytes": recipe.len()}));
    }
    Ok((name, change))
}

fn free_number(layout: &Layout, name: &PartName) -> Result<PartName, LineError> {
    for n in 2.. {
        let numbered = name.numbered(n);
        if shelf::find(layout, numbered.base())?.is_empty() {
            return Ok(numbered);
        }
    }
    Ok(name.clone())
}

/// rework → intake with a fresh counter. The error sidecar goes along as evidence, numbered.
pub fn retry(layout: &Layout, name: &str, dry_run: bool) -> Result<Vec<Move>, LineError> {
    retry_on(Mover::real(layout), name, dry_run)
}

pub(crate) fn retry_on(mover: Mover, name: &str, dry_run: bool) -> Result<Vec<Move>, LineError> {
    let layout = mover.layout;
    let _moves = MovesLock::acquire(layout)?;
    let part = one(layout, name, &[Station::Rework])?;
    let fresh = part.name.with_retries(0);
    refuse_taken(layout, &fresh, Station::Intake)?;
    if dry_run {
        return Ok(planned(layout, &part, Station::Intake, &fresh));
    }
    promote(mover, &part)
}

/// The move of [`retry`], under the moves lock.
pub(crate) fn promote(mover: Mover, part: &PartEntry) -> Result<Vec<Move>, LineError> {
    let (fresh, layout) = (part.name.with_retries(0), mover.layout);
    let moves = mover.move_part(part, Station::Intake, &fresh)?;
    let line = json!({"alloy": fresh.file_name(), "from": part.name.file_name()});
    throughput::append(layout, "promoted_from_rework", line)?;
    log(layout).tell("line/promoted", Some(&fresh.file_name()), json!({"from": part.name.file_name()}));
    Ok(moves)
}

/// intake → deferred: parked, never picked up.
pub fn defer(layout: &Layout, name: &str, dry_run: bool) -> Result<Vec<Move>, LineError> {
    shift(Mover::real(layout), name, Station::Deferred, dry_run)
}

/// deferred → intake.
pub fn undefer(layout: &Layout, name: &str, dry_run: bool) -> Result<Vec<Move>, LineError> {
    shift(Mover::real(layout), name, Station::Intake, dry_run)
}

/// Between intake and deferred.
pub(crate) fn shift(mover: Mover, name: &str, to: Station, dry_run: bool) -> Result<Vec<Move>, LineError> {
    let (from, event) = match to {
        Station::Deferred => (Station::Intake, "line/deferred"),
        _ => (Station::Deferred, "line/undeferred"),
    };
    let layout = mover.layout;
    let _moves = MovesLock::acquire(layout)?;
    let part = one(layout, name, &[from])?;
    let alloy = part.name.as_alloy();
    refuse_taken(layout, &alloy, to)?;
    if dry_run {
        return Ok(planned(layout, &part, to, &alloy));
    }
    let moves = mover.move_part(&part, to, &alloy)?;
    log(layout).tell(event, Some(&alloy.file_name()), json!({}));
    Ok(moves)
}

/// What became of a wish to cancel.
#[derive(Clone, Debug, PartialEq)]
pub enum Cancelled {
    /// It waited; it stands in rework now.
    Moved(Vec<Move>),
    /// It is being built; the supervisor (or the next recovery) stops it.
    Requested(Move),
}

/// Takes a part off the line with a reason: a waiting one goes to rework at once, a running one is asked to stop.
pub fn cancel(layout: &Layout, name: &str, reason: &str, dry_run: bool) -> Result<Cancelled, LineError> {
    cancel_on(Mover::real(layout), name, reason, dry_run)
}

pub(crate) fn cancel_on(mover: Mover, name: &str, reason: &str, dry_run: bool) -> Result<Cancelled, LineError> {
    let layout = mover.layout;
    let _moves = MovesLock::acquire(layout)?;
    let part = one(layout, name, &[Station::Assembly, Station::Intake, Station::Deferred])?;
    if part.station == Station::Assembly {
        let path = layout.cancel_request(part.name.base());
        let request = json!({
            "part": part.name.file_name(), "reason": reason, "at": stamp::seconds(Utc::now()),
            "by": std::env::var("USER").unwrap_or_default(),
        });
        if !dry_run {
            mover.publish_over(&path, &record::to_json(&request))?;
        }
        return Ok(Cancelled::Requested(Move { from: "-".into(), ..mover.described(&path, &path) }));
    }
    let alloy = part.name.as_alloy();
    refuse_taken(layout, &alloy, Station::Rework)?;
    if dry_run {
        return Ok(Cancelled::Moved(planned(layout, &part, Station::Rework, &alloy)));
    }
    super::outcome::send_back(mover, &part, cancelled_error(reason, part.retries)).map(Cancelled::Moved)
}

/// The error record of a part that an operator took off the line.
pub fn cancelled_error(reason: &str, retries: u32) -> ErrorRecord {
    ErrorRecord {
        error: format!("cancelled: {reason}"),
        class: "cancelled".into(),
        hint: Some("`foreman retry NAME` puts it back into intake".into()),
        retries,
        ..ErrorRecord::default()
    }
}

/// The one part of this name in the given stations, first station first.
fn one(layout: &Layout, name: &str, stations: &[Station]) -> Result<PartEntry, LineError> {
    let found = shelf::find(layout, name)?;
    stations.iter().find_map(|s| found.iter().find(|p| p.station == *s)).cloned().ok_or_else(|| {
        let wanted = stations.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(" or ");
        let place = match found.first() {
            Some(part) => format!("in {wanted}; it stands in {}", part.station),
            None => format!("in {wanted}"),
        };
        LineError::NotFound { name: name.into(), place }
    })
}

fn refuse_taken(layout: &Layout, name: &PartName, station: Station) -> Result<(), LineError> {
    let taken = shelf::list(layout, station)?.iter().any(|p| p.name.base() == name.base());
    if taken { Err(LineError::Taken { name: name.base().into(), station }) } else { Ok(()) }
}

fn log(layout: &Layout) -> EventLog {
    EventLog::new(layout, identity::host_name())
}

/// Brings the line to order now, as a supervisor does at start; with `dry_run` tells what it would do.
pub fn recover(layout: &Layout, max_retries: u32, dry_run: bool) -> Result<Vec<Recovered>, LineError> {
    recovery::run(Mover::real(layout), max_retries, dry_run)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn line() -> (tempfile::TempDir, Layout) {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::init(root.path()).unwrap();
        (root, layout)
    }

    fn names(layout: &Layout, station: Station) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(layout.station(station))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn enqueue_never_overwrites_and_dry_run_touches_nothing() {
        let (_root, layout) = line();
        let x = PartName::new("x").unwrap();
        let (_, change) = enqueue(&layout, &x, b"{}", OnTaken::Refuse, true).unwrap();
        assert_eq!(change.to.to_str(), Some("intake/x.alloy.json"));
        assert!(names(&layout, Station::Intake).is_empty());
        enqueue(&layout, &x, b"{}", OnTaken::Refuse, false).unwrap();
        assert!(matches!(enqueue(&layout, &x, b"[]", OnTaken::Refuse, false), Err(LineError::Taken { .. })));
        let (second, _) = enqueue(&layout, &x, b"[]", OnTaken::Number, false).unwrap();
        assert_eq!(second.file_name(), "x~2.alloy.json");
        assert_eq!(names(&layout, Station::Intake), ["x.alloy.json", "x~2.alloy.json"]);
        assert!(fs::read_dir(layout.scratch()).unwrap().next().is_none());
    }

    #[test]
    fn cancel_then_retry_keeps_the_evidence() {
        let (_root, layout) = line();
        enqueue(&layout, &PartName::new("x").unwrap(), b"{}", OnTaken::Refuse, false).unwrap();
        cancel(&layout, "x", "wrong model", false).unwrap();
        assert_eq!(names(&layout, Station::Rework), ["x.alloy.json", "x.error.json"]);
        let part = &shelf::list(&layout, Station::Rework).unwrap()[0];
        let error = record::error(&layout, Station::Rework, &part.name).unwrap().unwrap();
        assert_eq!((error.class.as_str(), error.error.as_str()), ("cancelled", "cancelled: wrong model"));
        retry(&layout, "x", false).unwrap();
        assert_eq!(names(&layout, Station::Intake), ["x.alloy.json", "x.error.1.json"]);
        assert!(names(&layout, Station::Rework).is_empty());
        assert!(matches!(retry(&layout, "x", false), Err(LineError::NotFound { .. })));
    }

    #[test]
    fn a_running_part_is_asked_to_stop() {
        let (_root, layout) = line();
        fs::write(layout.station(Station::Assembly).join("x.retry1.alloy.json"), "{}").unwrap();
        assert!(matches!(cancel(&layout, "x", "", false).unwrap(), Cancelled::Requested(_)));
        assert!(layout.cancel_request("x").is_file());
    }

    #[test]
    fn defer_and_back() {
        let (_root, layout) = line();
        fs::write(layout.station(Station::Intake).join("x.json"), "{}").unwrap();
        fs::write(layout.station(Station::Intake).join("x.notes.txt"), "mine").unwrap();
        let planned = defer(&layout, "x.json", true).unwrap();
        assert_eq!(planned, defer(&layout, "x", false).unwrap());
        assert_eq!(names(&layout, Station::Deferred), ["x.alloy.json", "x.notes.txt"]);
        undefer(&layout, "x", false).unwrap();
        assert_eq!(names(&layout, Station::Intake), ["x.alloy.json", "x.notes.txt"]);
    }
}
