//! What is measured for the metrics page: the last heartbeat, the supervisor's own counts, and a look at the disks.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rustix::process::Pid;

use super::page::Page;
use crate::daemon::Summary;
use crate::line::heartbeat::State;
use crate::line::{Entry, Heartbeat, Layout, PROTOCOL_VERSION, Station, stamp};
use crate::node::{free_bytes, memory_of};

/// What the supervisor counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    pub summary: Summary,
    /// Parts in the queue.
    pub queued: usize,
    /// When the one that waits longest arrived.
    pub oldest: Option<DateTime<Utc>>,
}

/// What the disks and the kernel say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Look {
    /// Parts per station; absent for one that cannot be listed.
    pub parts: Vec<(Station, u64)>,
    pub quarantined: Option<u64>,
    /// Name, path and free bytes of each tier.
    pub free: Vec<(String, PathBuf, u64)>,
    pub supervisor_rss: Option<u64>,
    pub supervisor_cpu_s: Option<f64>,
    pub worker_rss: Option<u64>,
}

impl Look {
    /// Lists the stations and asks for free space: not more often than every few seconds.
    pub fn at_disks(&mut self, layout: &Layout, tiers: &[(String, PathBuf)]) {
        let count = |station: Station| Some((station, count_parts(&layout.station(station), station)?));
        self.parts = Station::ALL.into_iter().filter_map(count).collect();
        self.quarantined = fs::read_dir(layout.quarantine()).ok().map(|dir| dir.count() as u64);
        // A tier that is not mounted would be answered for by the disk below it.
        let free = |(name, path): &(String, PathBuf)| {
            Some((name.clone(), path.clone(), free_bytes(path).ok().filter(|_| path.is_dir())?.0))
        };
        self.free = tiers.iter().filter_map(free).collect();
    }

    pub fn at_processes(&mut self, worker: Option<u32>) {
        self.supervisor_rss = memory_of(None, "VmRSS").map(|bytes| bytes.0);
        self.supervisor_cpu_s = cpu_seconds();
        self.worker_rss = worker
            .and_then(|pid| Pid::from_raw(pid as i32))
            .and_then(|pid| memory_of(Some(pid), "VmRSS"))
            .map(|bytes| bytes.0);
    }
}

/// By names alone: a station may hold thousands.
fn count_parts(dir: &Path, station: Station) -> Option<u64> {
    let entries = fs::read_dir(dir).ok()?.filter_map(Result::ok);
    let is_part = |name: &OsStr| matches!(Entry::classify(name, station), Entry::Part(_));
    Some(entries.filter(|entry| is_part(&entry.file_name())).count() as u64)
}

/// Processor time of this process, its threads included.
fn cpu_seconds() -> Option<f64> {
    /// Clock ticks a second in /proc, whatever the kernel's own clock.
    const USER_HZ: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / USER_HZ)
}

/// The whole page.
pub fn page(beat: &Heartbeat, counts: &Counts, look: &Look, now: DateTime<Utc>) -> String {
    let mut page = Page::default();
    let cuda = if cfg!(feature = "cuda") { "true" } else { "false" };
    let build = [("version", env!("CARGO_PKG_VERSION")), ("protocol", PROTOCOL_VERSION), ("cuda", cuda)];
    page.gauge("factoryline_build_info", "What is running; always 1.").with(&build, 1.0);
    let is_up = f64::from(beat.state != State::Offline);
    page.gauge("factoryline_up", "1 while the supervisor works the line, 0 after it ended in order.").is(is_up);
    supervisor(&mut page, beat, look);
    parts(&mut page, counts, look, now);
    building(&mut page, beat, look);
    page.into_text()
}

fn supervisor(page: &mut Page, beat: &Heartbeat, look: &Look) {
    let mut states = page.gauge("factoryline_state", "1 for the state the supervisor is in, 0 for the others.");
    for state in [State::Starting, State::Recovering, State::Idle, State::Building, State::Offline] {
        let word = format!("{state:?}").to_lowercase();
        states = states.with(&[("state", &word)], f64::from(beat.state == state));
    }
    let beaten = stamp::parse(&beat.last_beat_at).map(|at| at.timestamp() as f64);
    page.gauge("factoryline_paused", "1 while an operator's pause is on.").is(f64::from(beat.paused.is_some()));
    page.gauge("factoryline_heartbeat_timestamp_seconds", "Unix time of the last heartbeat.").is(beaten);
    page.gauge("factoryline_heartbeat_interval_seconds", "Longest time between two heartbeats.").is(beat.interval_s);
    page.gauge("factoryline_supervisor_resident_memory_bytes", "Resident memory of the supervisor.")
        .is(look.supervisor_rss.map(|n| n as f64));
    page.counter("factoryline_supervisor_cpu_seconds_total", "Processor time of the supervisor.")
        .is(look.supervisor_cpu_s);
    let mut free = page.gauge("factoryline_storage_free_bytes", "Free bytes of a storage tier.");
    for (tier, path, bytes) in &look.free {
        free = free.with(&[("tier", tier), ("path", &path.display().to_string())], *bytes as f64);
    }
}

fn parts(page: &mut Page, counts: &Counts, look: &Look, now: DateTime<Utc>) {
    let mut stations = page.gauge("factoryline_parts", "Parts in a station.");
    for (station, parts) in &look.parts {
        stations = stations.with(&[("station", station.as_str())], *parts as f64);
    }
    page.gauge("factoryline_quarantined_files", "Files in quarantine, their reasons included.")
        .is(look.quarantined.map(|n| n as f64));
    let age = counts.oldest.map_or(0.0, |oldest| (now - oldest).num_milliseconds().max(0) as f64 / 1e3);
    page.gauge("factoryline_queue_length", "Parts that wait and can be built.").is(counts.queued as f64);
    page.gauge("factoryline_queue_oldest_age_seconds", "How long the oldest of them has waited.").is(age);
    let Summary { finished, rework, retried, recovered, returned } = &counts.summary;
    let mut count = |name, help, value: &u32| {
        page.counter(name, help).is(f64::from(*value));
    };
    count("factoryline_parts_finished_total", "Parts shipped since the supervisor started.", finished);
    count("factoryline_parts_rework_total", "Parts sent to rework since the supervisor started.", rework);
    count("factoryline_parts_retried_total", "Attempts that ended in a retry.", retried);
    count("factoryline_parts_recovered_total", "Parts brought to order after a crash.", recovered);
    count("factoryline_parts_returned_total", "Parts given back to intake by a stop.", returned);
}

fn building(page: &mut Page, beat: &Heartbeat, look: &Look) {
    let Some(part) = beat.current_part.as_deref() else { return };
    let of = [("part", part)];
    let staged = [("part", part), ("stage", beat.stage.as_deref().unwrap_or(""))];
    page.gauge("factoryline_part_progress_ratio", "Progress of the stage that runs, 0 to 1.")
        .with(&staged, beat.percent.map(|percent| percent / 100.0));
    page.gauge("factoryline_part_stage", "Number of the stage that runs, from 1.")
        .with(&staged, beat.stage_index.map(|index| index as f64 + 1.0));
    page.gauge("factoryline_part_stages", "Stages of the part.").with(&of, beat.stage_count.map(|n| n as f64));
    page.gauge("factoryline_part_eta_seconds", "Time the stage still takes, as estimated.").with(&of, beat.eta_s);
    page.gauge("factoryline_part_tokens_per_second", "Speed of the stage.").with(&of, beat.tokens_per_s);
    page.gauge("factoryline_part_attempt", "Attempt at the part, from 1.").with(&of, beat.attempt.map(f64::from));
    page.gauge("factoryline_worker_resident_memory_bytes", "Resident memory of the worker.")
        .with(&of, look.worker_rss.or(beat.rss_bytes).map(|n| n as f64));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_of_a_busy_line() {
        let beat = Heartbeat {
            state: State::Building,
            current_part: Some("qwen.alloy.json".into()),
            last_beat_at: "2026-01-31T09:30:00Z".into(),
            interval_s: 30.0,
            paused: Some("disk swap".into()),
            stage: Some("quant".into()),
            percent: Some(42.0),
            stage_index: Some(1),
            stage_count: Some(4),
            tokens_per_s: Some(830.5),
            eta_s: Some(75.0),
            rss_bytes: Some(1000),
            attempt: Some(2),
            ..Heartbeat::default()
        };
        let counts = Counts {
            summary: Summary { finished: 7, rework: 1, retried: 2, recovered: 3, returned: 4 },
            queued: 5,
            oldest: stamp::parse("2026-01-31T09:00:00Z"),
        };
        let look = Look {
            parts: vec![(Station::Intake, 5), (Station::Assembly, 1)],
            quarantined: Some(0),
            free: vec![("hot".into(), "/srv/line".into(), 123_456_789_000)],
            supervisor_rss: Some(20_971_520),
            supervisor_cpu_s: Some(1.25),
            worker_rss: None,
        };
        let text = page(&beat, &counts, &look, stamp::parse("2026-01-31T09:30:01Z").unwrap());
        let values: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).skip(1).collect();
        insta::assert_snapshot!(values.join("\n"), @r#"
        factoryline_up 1
        factoryline_state{state="starting"} 0
        factoryline_state{state="recovering"} 0
        factoryline_state{state="idle"} 0
        factoryline_state{state="building"} 1
        factoryline_state{state="offline"} 0
        factoryline_paused 1
        factoryline_heartbeat_timestamp_seconds 1769851800
        factoryline_heartbeat_interval_seconds 30
        factoryline_supervisor_resident_memory_bytes 20971520
        factoryline_supervisor_cpu_seconds_total 1.25
        factoryline_storage_free_bytes{tier="hot",path="/srv/line"} 123456789000
        factoryline_parts{station="intake"} 5
        factoryline_parts{station="assembly"} 1
        factoryline_quarantined_files 0
        factoryline_queue_length 5
        factoryline_queue_oldest_age_seconds 1801
        factoryline_parts_finished_total 7
        factoryline_parts_rework_total 1
        factoryline_parts_retried_total 2
        factoryline_parts_recovered_total 3
        factoryline_parts_returned_total 4
        factoryline_part_progress_ratio{part="qwen.alloy.json",stage="quant"} 0.42
        factoryline_part_stage{part="qwen.alloy.json",stage="quant"} 2
        factoryline_part_stages{part="qwen.alloy.json"} 4
        factoryline_part_eta_seconds{part="qwen.alloy.json"} 75
        factoryline_part_tokens_per_second{part="qwen.alloy.json"} 830.5
        factoryline_part_attempt{part="qwen.alloy.json"} 2
        factoryline_worker_resident_memory_bytes{part="qwen.alloy.json"} 1000
        "#);
    }

    #[test]
    fn the_kernel_answers_for_this_process() {
        let mut look = Look::default();
        look.at_processes(Some(std::process::id()));
        assert!(look.supervisor_rss.unwrap() > 100_000 && look.worker_rss.is_some());
        assert!(look.supervisor_cpu_s.is_some());
    }
}
