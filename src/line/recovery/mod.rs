//! Bringing a line back to order after a crash, at start and on demand.
//!
//! [`table`] decides, this module looks and acts: gather the facts about a base name, do what its row says, look
//! again. Every action is a durable move of its own, so a crash in the middle of recovery is one more row. Safe while
//! a supervisor works: a part whose claim lock is held is left alone.

pub mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::attempts;
use super::lock::MovesLock;
use super::moves::{Move, Mover, free_name};
use super::outcome::{self, Return};
use super::record::{self, ErrorRecord, ResultRecord};
use super::shelf::{self, PartEntry, Shelf};
use super::{Attempt, ClaimLock, EventLog, LineError, Station, identity, verbs};
use table::{Action, Facts, Left, Stand};

/// What recovery did, or would do, with one part.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    pub base: String,
    /// Row of the table.
    pub row: &'static str,
    pub action: Action,
    pub moves: Vec<Move>,
}

/// Looks at every part and acts on each row that asks for it. With `dry_run` nothing is touched.
/// `max_retries`: a part abandoned this often goes to rework.
pub fn run(mover: Mover, max_retries: u32, dry_run: bool) -> Result<Vec<Recovered>, LineError> {
    let _moves = MovesLock::acquire(mover.layout)?;
    let mut done = Vec::new();
    // Each action settles something for good; a line that does not come to rest is a bug, not a reason to spin.
    for _ in 0..6 {
        let mut acted = false;
        let scene = Scene::look(mover)?;
        for base in scene.bases() {
            let facts = scene.facts(mover, base, max_retries)?;
            let (row, action) = table::row(&facts);
            if matches!(action, Action::Keep) {
                continue;
            }
            let mut moves = Vec::new();
            if !dry_run && action != Action::Leave {
                moves = scene.act(mover, base, row, action)?;
                acted = true;
            }
            let seen = Recovered { base: base.clone(), row, action, moves };
            if action != Action::Leave || !done.contains(&seen) {
                done.push(seen);
            }
        }
        if !acted {
            break;
        }
    }
    if !dry_run {
        sweep(mover)?;
    }
    Ok(done)
}

/// Everything that stands on the line.
struct Scene {
    parts: BTreeMap<String, Vec<PartEntry>>,
    sidecars: BTreeMap<String, Vec<(Station, String)>>,
}

impl Scene {
    fn look(mover: Mover) -> Result<Scene, LineError> {
        let mut parts: BTreeMap<String, Vec<PartEntry>> = BTreeMap::new();
        let mut files = Vec::new();
        for station in Station::ALL {
            let Shelf { parts: here, loose, .. } = shelf::read(mover.layout, station)?;
            files.extend(loose.into_iter().map(|name| (station, name)));
            for part in here {
                files.extend(part.sidecars.iter().map(|name| (station, name.clone())));
                parts.entry(part.name.base().to_owned()).or_default().push(part);
            }
        }
        let bases: BTreeSet<String> = parts.keys().cloned().collect();
        let mut sidecars: BTreeMap<String, Vec<(Station, String)>> = BTreeMap::new();
        for (station, name) in files {
            if let Some(base) = shelf::owner(&name, &bases) {
                sidecars.entry(base.clone()).or_default().push((station, name));
            }
        }
        Ok(Scene { parts, sidecars })
    }

    fn bases(&self) -> impl Iterator<Item = &String> {
        self.parts.keys()
    }

    fn at(&self, base: &str, station: Station) -> Option<&PartEntry> {
        self.parts.get(base)?.iter().find(|p| p.station == station)
    }

    fn sidecars_at(&self, base: &str, station: Station) -> impl Iterator<Item = &String> {
        let all = self.sidecars.get(base).map_or(&[][..], Vec::as_slice);
        all.iter().filter(move |(s, _)| *s == station).map(|(_, name)| name)
    }

    fn facts(&self, mover: Mover, base: &str, max_retries: u32) -> Result<Facts, LineError> {
        let layout = mover.layout;
        let parts = self.parts.get(base).map_or(&[][..], Vec::as_slice);
        let mut facts = Facts {
            stands: parts.iter().map(|p| Stand { station: p.station, retries: p.retries, inode: p.inode }).collect(),
            sidecars: self.sidecars.get(base).into_iter().flatten().map(|(station, _)| *station).collect(),
            failed: parts.iter().any(|p| self.error_of(mover, p).is_some()),
            explained: self.sidecars_at(base, Station::Rework).any(|name| name.ends_with(".error.json")),
            ..Facts::default()
        };
        if let Some(part) = self.at(base, Station::Assembly) {
            let attempt = Attempt::read(&layout.work(&part.name)).ok().flatten();
            facts.claim_held = ClaimLock::is_held(layout, &part.name)?;
            facts.exhausted = max_retries == 0 || attempts::lost(&layout.work(&part.name), part.retries) >= max_retries;
            facts.cancel_requested = layout.cancel_request(base).exists();
            facts.shipped = self.result_of(mover, part, attempt.as_ref()).is_some();
            facts.left = attempt.as_ref().map_or(Left::Nothing, |a| left(mover, part, a));
        }
        Ok(facts)
    }

    /// The result sidecar of the part's last attempt, if it reached `finished/`.
    fn result_of(&self, mover: Mover, part: &PartEntry, attempt: Option<&Attempt>) -> Option<ResultRecord> {
        let path = mover.layout.station(Station::Finished).join(part.name.sidecar("result"));
        let result: ResultRecord = record::read_json(&path).ok()?;
        attempt.is_some_and(|a| a.token.as_str() == result.attempt_token).then_some(result)
    }

    /// The error sidecar in `rework/` that was written for this very file.
    fn error_of(&self, mover: Mover, part: &PartEntry) -> Option<String> {
        let dir = mover.layout.station(Station::Rework);
        let names = self.sidecars_at(part.name.base(), Station::Rework);
        let mut errors = names.filter(|name| name.ends_with(".error.json"));
        errors
            .find(|name| {
                let error: Result<ErrorRecord, _> = record::read_json(&dir.join(name));
                error.is_ok_and(|e| e.more.get("part_inode").and_then(|v| v.as_u64()) == Some(part.inode.1))
            })
            .cloned()
    }

    fn act(&self, mover: Mover, base: &str, row: &'static str, action: Action) -> Result<Vec<Move>, LineError> {
        let building = self.at(base, Station::Assembly);
        match (action, building) {
            (Action::Keep | Action::Leave, _) => Ok(Vec::new()),
            (Action::Gather(station), _) => self.gather(mover, base, station),
            (Action::Drop(station), _) => self.drop_name(mover, base, station),
            (Action::Quarantine(station), _) => self.quarantine(mover, base, station, row),
            (Action::Complete, _) => self.complete(mover, base),
            (Action::Promote, _) => self.promote(mover, base),
            (_, None) => Ok(Vec::new()),
            (Action::Ship, Some(part)) => self.ship(mover, part),
            (Action::Fail, Some(part)) => outcome::send_back(mover, part, left_fault(mover, part)),
            (Action::Cancel, Some(part)) => {
                outcome::send_back(mover, part, verbs::cancelled_error(&cancel_reason(mover, base), part.retries))
            }
            (Action::Exhaust, Some(part)) => outcome::send_back(mover, part, exhausted(mover, part)),
            (Action::Return, Some(part)) => give_back(mover, part),
        }
    }

    fn gather(&self, mover: Mover, base: &str, to: Station) -> Result<Vec<Move>, LineError> {
        let dir = mover.layout.station(to);
        let mut moves = Vec::new();
        for from in [Station::Intake, Station::Assembly, Station::Deferred] {
            for name in self.sidecars_at(base, from).filter(|_| from != to) {
                let source = mover.layout.station(from).join(name);
                let dest = free_name(&dir, name, &source);
                mover.rename(&source, &dest)?;
                moves.push(mover.described(&source, &dest));
            }
            mover.sync(&dir)?;
            mover.sync(&mover.layout.station(from))?;
        }
        Ok(moves)
    }

    /// The other name of the same file stands elsewhere: nothing is lost.
    fn drop_name(&self, mover: Mover, base: &str, station: Station) -> Result<Vec<Move>, LineError> {
        let Some(part) = self.at(base, station) else { return Ok(Vec::new()) };
        let twin = self.parts[base].iter().find(|p| p.inode == part.inode && p.station != station);
        let Some(twin) = twin else { return Ok(Vec::new()) };
        mover.remove(&part.path)?;
        mover.sync(&mover.layout.station(station))?;
        Ok(vec![mover.described(&part.path, &twin.path)])
    }

    /// Its error lies in `rework/` already: the part follows.
    fn complete(&self, mover: Mover, base: &str) -> Result<Vec<Move>, LineError> {
        let parts = self.parts.get(base).into_iter().flatten();
        let failed = parts.filter_map(|p| Some((p, self.error_of(mover, p)?))).next();
        let Some((part, sidecar)) = failed else { return Ok(Vec::new()) };
        let error: ErrorRecord = record::read_json(&mover.layout.station(Station::Rework).join(sidecar))?;
        outcome::send_back(mover, part, error)
    }

    /// Its error went to intake as evidence already: the part follows, with a fresh counter.
    fn promote(&self, mover: Mover, base: &str) -> Result<Vec<Move>, LineError> {
        match self.at(base, Station::Rework) {
            Some(part) => verbs::promote(mover, part),
            None => Ok(Vec::new()),
        }
    }

    fn ship(&self, mover: Mover, part: &PartEntry) -> Result<Vec<Move>, LineError> {
        let work = mover.layout.work(&part.name);
        let Some(attempt) = Attempt::read(&work)? else { return Ok(Vec::new()) };
        let result = match outcome::inspect(&work, &attempt) {
            outcome::Left::Result(result) => Some(*result),
            outcome::Left::Nothing(_) => self.result_of(mover, part, Some(&attempt)),
        };
        match result {
            Some(result) => outcome::ship(mover, part, &attempt, &result),
            None => Ok(Vec::new()),
        }
    }

    fn quarantine(&self, mover: Mover, base: &str, from: Station, row: &str) -> Result<Vec<Move>, LineError> {
        let Some(part) = self.at(base, from) else { return Ok(Vec::new()) };
        let dir = mover.layout.quarantine();
        let dest = free_name(&dir, &part.name.file_name(), &part.path);
        let stands: Vec<String> =
            self.parts[base].iter().map(|p| mover.described(&p.path, &p.path).from.display().to_string()).collect();
        let reason = json!({
            "at": super::stamp::seconds(chrono::Utc::now()), "row": row, "stood_in": from, "found": stands,
            "hint": "compare the files, keep one, and enqueue it under a free name if it shall be built",
        });
        let name = dest.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        mover.publish_over(&dir.join(format!("{name}.reason.json")), &record::to_json(&reason))?;
        mover.rename(&part.path, &dest)?;
        mover.sync(&dir)?;
        mover.sync(&mover.layout.station(from))?;
        let log = EventLog::new(mover.layout, identity::host_name());
        log.tell("line/quarantined", Some(&part.name.file_name()), json!({"row": row}));
        Ok(vec![mover.described(&part.path, &dest)])
    }
}

fn left(mover: Mover, part: &PartEntry, attempt: &Attempt) -> Left {
    let work = mover.layout.work(&part.name);
    match outcome::inspect(&work, attempt) {
        outcome::Left::Result(_) => Left::Result,
        // Faults of other attempts were set aside when this one began.
        outcome::Left::Nothing(_) if work.join("fault.json").is_file() => {
            match left_fault(mover, part).class.as_str() {
                "infra" => Left::Nothing,
                _ => Left::Fault,
            }
        }
        outcome::Left::Nothing(_) => Left::Nothing,
    }
}

fn left_fault(mover: Mover, part: &PartEntry) -> ErrorRecord {
    let work = mover.layout.work(&part.name);
    let mut error = outcome::worker_fault(&work).unwrap_or_else(|| ErrorRecord {
        error: "the worker reported a fault that cannot be read".into(),
        class: "internal".into(),
        ..ErrorRecord::default()
    });
    error.log_tail = outcome::log_tail(&work);
    error
}

fn cancel_reason(mover: Mover, base: &str) -> String {
    let request: Result<serde_json::Value, _> = record::read_json(&mover.layout.cancel_request(base));
    request.ok().and_then(|r| Some(r.get("reason")?.as_str()?.to_owned())).unwrap_or_else(|| "no reason given".into())
}

fn exhausted(mover: Mover, part: &PartEntry) -> ErrorRecord {
    ErrorRecord {
        error: format!("crash recovery: the worker was lost {} times, exceeded MAX_RETRIES", part.retries),
        class: "infra".into(),
        hint: Some("look at the log tail and at the kernel log (out of memory?), then `foreman retry NAME`".into()),
        log_tail: outcome::log_tail(&mover.layout.work(&part.name)),
        ..ErrorRecord::default()
    }
}

fn give_back(mover: Mover, part: &PartEntry) -> Result<Vec<Move>, LineError> {
    let attempt = Attempt::read(&mover.layout.work(&part.name)).ok().flatten();
    let wish = Return {
        charged: true,
        delay: Duration::ZERO,
        class: "infra".into(),
        reason: "crash recovery: the supervisor or the worker was lost".into(),
        arrived_at: attempt.and_then(|a| a.arrived_at),
        room: None,
    };
    let name = outcome::take_back(mover, part, &wish)?;
    let dest = mover.layout.station(Station::Intake).join(name.file_name());
    Ok(vec![mover.described(&part.path, &dest)])
}

/// Removes what no row needs: old temp files, and cancel requests for parts that are not being built.
fn sweep(mover: Mover) -> Result<(), LineError> {
    let layout = mover.layout;
    let old = SystemTime::now() - Duration::from_secs(3600);
    for (dir, is_stale) in [
        (
            layout.scratch(),
            &(|e: &fs::DirEntry| e.metadata().and_then(|m| m.modified()).is_ok_and(|t| t < old))
                as &dyn Fn(&fs::DirEntry) -> bool,
        ),
        (layout.control(), &|e: &fs::DirEntry| !names_a_part_in_assembly(mover, e)),
    ] {
        for entry in fs::read_dir(&dir).map_err(LineError::io("list", &dir))? {
            let entry = entry.map_err(LineError::io("list", &dir))?;
            if is_stale(&entry) {
                mover.remove(&entry.path())?;
            }
        }
    }
    Ok(())
}

fn names_a_part_in_assembly(mover: Mover, entry: &fs::DirEntry) -> bool {
    let name = entry.file_name().to_string_lossy().into_owned();
    let base = name.strip_prefix("cancel-").and_then(|n| n.strip_suffix(".json"));
    base.is_none_or(|base| {
        shelf::list(mover.layout, Station::Assembly).is_ok_and(|parts| parts.iter().any(|p| p.name.base() == base))
    })
}

#[cfg(test)]
mod tests;
