//! Points in time as the protocol writes them: UTC, to the second or to the millisecond.

use chrono::{DateTime, SecondsFormat, Utc};

/// `2026-01-31T09:30:00Z`: sidecars, throughput, heartbeat.
pub fn seconds(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// `2026-01-31T09:30:00.125Z`: events, which may share a second.
pub fn millis(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Reads either form; `None` for anything else.
pub fn parse(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text).ok().map(|at| at.with_timezone(&Utc))
}

/// Seconds since boot, sleep included: ages are judged by this, never by comparing wall clocks.
pub fn since_boot() -> f64 {
    std::fs::read_to_string("/proc/uptime")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0)
}
