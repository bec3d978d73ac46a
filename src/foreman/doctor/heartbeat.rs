//! The heartbeat against the lock, and whether the line is paused.

use super::{Check, Finding, Patient};
use crate::foreman::board::supervisor;
use crate::foreman::wording::duration;
use crate::line::{heartbeat, pause};

pub struct HeartbeatCheck;

impl Check for HeartbeatCheck {
    fn name(&self) -> &'static str {
        "heartbeat"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let mut found = Vec::new();
        match heartbeat::read(&patient.layout) {
            Err(error) => {
                let what = format!("line/.heartbeat.json cannot be read: {error}");
                found.push(Finding::warning(what).fix("start the daemon: it writes a new one"));
            }
            Ok(beat) => {
                let boss = supervisor(&patient.layout, beat.as_ref());
                let age = boss.beat_age_s.map_or("long".to_owned(), duration);
                found.push(match (boss.running, boss.stale_heartbeat) {
                    (true, true) => Finding::warning(format!("the line is held, but its heartbeat is silent: {age}"))
                        .why("its supervisor hangs, or the disk does")
                        .fix("look at its log; restart it if it does nothing"),
                    (false, true) => Finding::note("the heartbeat claims a supervisor that is gone")
                        .why("it was killed, or the machine went down; the next start takes its part back")
                        .fix("foreman run, or start the daemon"),
                    (true, false) => Finding::ok("it beats"),
                    (false, false) => Finding::ok("no supervisor, and none is claimed"),
                });
            }
        }
        if let Some(pause) = pause::read(&patient.layout) {
            found.push(Finding::note(format!("the line is paused: {}", pause.why())).fix("foreman resume"));
        }
        found
    }
}
