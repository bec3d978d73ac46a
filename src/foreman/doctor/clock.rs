//! The clock: sane, not behind what is written already, kept in step by somebody.

use chrono::{DateTime, Datelike, TimeDelta, Utc};

use super::{Check, Finding, Patient};
use crate::line::{Station, events, heartbeat, shelf, stamp};

pub struct ClockCheck;

/// Files of other machines may be so much ahead.
const SLACK: TimeDelta = TimeDelta::seconds(60);

/// Sidecars that the line writes itself: their times are those of this clock.
const KINDS: [&str; 3] = [".result.json", ".error.json", ".retry.json"];

impl Check for ClockCheck {
    fn name(&self) -> &'static str {
        "clock"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let now = patient.machine.now;
        let said = stamp::seconds(now);
        let fix = "set the clock (timedatectl set-ntp true), then go on";
        let why = "order of arrival and back-offs follow the clock";
        if now.year() < 2024 {
            return vec![Finding::error(format!("the clock says {said}")).why(why).fix(fix)];
        }
        let newest = traces(patient).into_iter().max_by_key(|(at, _)| *at);
        if let Some((at, trace)) = newest.filter(|(at, _)| *at > now + SLACK) {
            let what = format!("the clock says {said}, but {trace} is of {}", stamp::seconds(at));
            return vec![Finding::error(what).why(format!("it was set back, or ahead before: {why}")).fix(fix)];
        }
        // systemd-timesyncd, chrony and ntpd leave a trace while they keep the time.
        let keepers = ["systemd/timesync/synchronized", "chrony/chronyd.pid", "chrony.pid", "ntpd.pid"];
        match keepers.iter().any(|keeper| patient.machine.run.join(keeper).exists()) {
            true => vec![Finding::ok(format!("{said}, kept in step"))],
            false => vec![
                Finding::note(format!("{said}; nothing shows that the clock is kept in step"))
                    .fix("timedatectl set-ntp true"),
            ],
        }
    }
}

/// Times the line wrote down, and where.
fn traces(patient: &Patient) -> Vec<(DateTime<Utc>, String)> {
    let layout = &patient.layout;
    let mut traces = Vec::new();
    if let Ok(Some(beat)) = heartbeat::read(layout) {
        traces.extend(stamp::parse(&beat.last_beat_at).map(|at| (at, "the heartbeat".to_owned())));
    }
    if let Some(event) = events::last(layout) {
        traces.extend(stamp::parse(&event.timestamp).map(|at| (at, "the newest event".to_owned())));
    }
    for station in Station::ALL {
        let parts = shelf::list(layout, station).unwrap_or_default();
        for part in &parts {
            let files = part.sidecars.iter().filter(|name| KINDS.iter().any(|kind| name.ends_with(kind)));
            for file in files {
                let path = layout.station(station).join(file);
                let written = std::fs::metadata(path).and_then(|meta| meta.modified()).map(DateTime::<Utc>::from);
                traces.extend(written.ok().map(|at| (at, format!("{station}/{file}"))));
            }
        }
        let newest = parts.into_iter().max_by_key(|part| part.arrived);
        traces.extend(newest.map(|part| (part.arrived, format!("{station}/{}", part.name))));
    }
    traces
}
