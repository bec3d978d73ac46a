//! A line that is paused: `.control/pause.json`. While it is there a supervisor starts nothing; parts that are being
//! built go on.

use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::moves::{Move, Mover};
use super::{EventLog, Layout, LineError, identity, record, stamp};

/// The content of `.control/pause.json`. A client may leave out any of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pause {
    /// Why; empty when nobody said.
    pub reason: String,
    pub at: String,
    pub by: String,
}

impl Pause {
    /// The reason, or words that stand for none.
    pub fn why(&self) -> &str {
        if self.reason.is_empty() { "no reason given" } else { &self.reason }
    }
}

/// The pause that is on, if one is. A file that cannot be read pauses the line all the same: whoever wrote it meant to.
pub fn read(layout: &Layout) -> Option<Pause> {
    let path = layout.pause_request();
    match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        _ => Some(record::read_json(&path).unwrap_or_default()),
    }
}

/// Pauses the line. Pausing a paused line replaces the reason.
pub fn pause(layout: &Layout, reason: &str, dry_run: bool) -> Result<Move, LineError> {
    let (mover, path) = (Mover::real(layout), layout.pause_request());
    if !dry_run {
        let by = std::env::var("USER").unwrap_or_default();
        let pause = Pause { reason: reason.to_owned(), at: stamp::seconds(Utc::now()), by };
        mover.publish_over(&path, &record::to_json(&pause))?;
        log(layout).tell("line/paused", None, json!({"reason": reason}));
    }
    Ok(Move { from: "-".into(), ..mover.described(&path, &path) })
}

/// Ends the pause; `None` when there was none.
pub fn resume(layout: &Layout, dry_run: bool) -> Result<Option<Move>, LineError> {
    let (mover, path) = (Mover::real(layout), layout.pause_request());
    if read(layout).is_none() {
        return Ok(None);
    }
    if !dry_run {
        mover.remove(&path)?;
        mover.sync(&layout.control())?;
        log(layout).tell("line/resumed", None, json!({}));
    }
    Ok(Some(Move { to: "-".into(), ..mover.described(&path, &path) }))
}

fn log(layout: &Layout) -> EventLog {
    EventLog::new(layout, identity::host_name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::{follow, recovery};

    #[test]
    fn a_pause_lasts_until_it_is_ended_and_survives_recovery_and_damage() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::init(root.path()).unwrap();
        assert_eq!(resume(&layout, false).unwrap(), None);
        pause(&layout, "disk swap", true).unwrap();
        assert_eq!(read(&layout), None);
        assert_eq!(pause(&layout, "disk swap", false).unwrap().to.to_str(), Some(".control/pause.json"));
        recovery::run(Mover::real(&layout), 3, false).unwrap();
        assert_eq!(read(&layout).unwrap().why(), "disk swap");
        std::fs::write(layout.pause_request(), "{\"rea").unwrap();
        assert_eq!(read(&layout).unwrap().why(), "no reason given");
        assert!(resume(&layout, false).unwrap().is_some());
        assert_eq!(read(&layout), None);
        let events = follow::read(&layout, &follow::Since::Start).unwrap();
        assert_eq!(events.iter().map(|e| e.kind.as_str()).collect::<Vec<_>>(), ["line/paused", "line/resumed"]);
    }
}
