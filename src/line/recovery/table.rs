//! The table of legal file combinations: a pure function from what was found to what is done.
//!
//! `docs/FACTORY-PROTOCOL.md` shows the same rows. One base name is looked at, at a time, under the moves lock.

use std::collections::BTreeSet;

use crate::line::Station;

/// A file of this part in a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stand {
    pub station: Station,
    pub retries: u32,
    /// Which file it is: two stands of one inode are one part that a crash left under two names.
    pub inode: (u64, u64),
}

/// What the attempt that owns the work folder left there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Left {
    #[default]
    Nothing,
    /// A whole `result.json` with the attempt's token.
    Result,
    /// A `fault.json`.
    Fault,
}

/// Everything that decides about one base name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub stands: Vec<Stand>,
    /// Stations that hold sidecars of this base name.
    pub sidecars: BTreeSet<Station>,
    /// Some process still holds the claim lock.
    pub claim_held: bool,
    pub left: Left,
    /// `finished/` holds a result sidecar with the token of the last attempt.
    pub shipped: bool,
    /// `rework/` holds an error sidecar that names the inode of one of the stands.
    pub failed: bool,
    /// `rework/` holds some current error sidecar of this base name.
    pub explained: bool,
    pub cancel_requested: bool,
    /// The retry counter of the part in assembly is at its limit.
    pub exhausted: bool,
}

/// What recovery does next with a part. After every action the part is looked at again, until it is `Keep` or `Leave`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Keep,
    /// Its worker lives; look again later.
    Leave,
    /// Bring stranded sidecars to the part.
    Gather(Station),
    /// Remove the second name of one file.
    Drop(Station),
    /// Finish the move to `finished/`.
    Ship,
    /// Finish the move to `rework/`; its error is there already.
    Complete,
    /// To `rework/` with the fault the worker wrote.
    Fail,
    /// To `rework/`, cancelled.
    Cancel,
    /// To `rework/`: too many retries.
    Exhaust,
    /// Back to `intake/`, counter raised.
    Return,
    /// Finish the move from `rework/` to `intake/` that an operator asked for.
    Promote,
    /// No row fits: to `quarantine/` with a reason.
    Quarantine(Station),
}

/// Name of the row and what to do.
pub type Row = (&'static str, Action);

use Station::{Assembly, Deferred, Finished, Intake, Rework};

/// The table.
pub fn row(facts: &Facts) -> Row {
    match twins(facts) {
        Some(row) => row,
        None => {
            // A second file of this name in intake is a new part; it gets a free name when it is claimed.
            let settled: Vec<Station> = facts.stands.iter().map(|s| s.station).filter(|s| *s != Intake).collect();
            match settled[..] {
                [] if facts.stands.is_empty() => ("gone", Action::Keep),
                [] => alone(facts, Intake),
                [station] => alone(facts, station),
                _ if settled.contains(&Assembly) => ("namesake in assembly", Action::Quarantine(Assembly)),
                _ => ("namesakes", Action::Keep),
            }
        }
    }
}

/// The part's file stands in one station.
fn alone(facts: &Facts, station: Station) -> Row {
    match station {
        Assembly if facts.claim_held => ("building", Action::Leave),
        Assembly if facts.shipped => ("shipped, not moved", Action::Ship),
        Assembly if facts.failed => ("failed, not moved", Action::Complete),
        Intake | Deferred if facts.failed => ("taken off, not moved", Action::Complete),
        Rework if facts.sidecars.contains(&Intake) && !facts.explained => ("retry, not moved", Action::Promote),
        _ if stranded(facts, station) => ("sidecars astray", Action::Gather(station)),
        Intake => ("waiting", Action::Keep),
        Deferred => ("parked", Action::Keep),
        Finished => ("finished", Action::Keep),
        Rework => ("failed", Action::Keep),
        Assembly => abandoned(facts),
    }
}

/// In assembly, and no process of the attempt lives.
fn abandoned(facts: &Facts) -> Row {
    match facts.left {
        Left::Result => ("built, not shipped", Action::Ship),
        Left::Fault => ("fault, not sent back", Action::Fail),
        Left::Nothing if facts.cancel_requested => ("cancelled while building", Action::Cancel),
        Left::Nothing if facts.exhausted => ("abandoned too often", Action::Exhaust),
        Left::Nothing => ("abandoned", Action::Return),
    }
}

/// Sidecars in finished and rework may be what a person left; in the other stations they belong to a move.
fn stranded(facts: &Facts, station: Station) -> bool {
    facts.sidecars.iter().any(|s| *s != station && matches!(s, Intake | Assembly | Deferred))
}

/// One file under two names: which name goes.
fn twins(facts: &Facts) -> Option<Row> {
    let (a, b) = facts.stands.iter().enumerate().find_map(|(i, a)| {
        let b = facts.stands[i + 1..].iter().find(|b| b.inode == a.inode && b.station != a.station)?;
        Some(if a.station < b.station { (a, b) } else { (b, a) })
    })?;
    Some(match (a.station, b.station) {
        // Returned with a raised counter, or claimed and not yet returned.
        (Intake, Assembly) if a.retries > b.retries => ("return half done", Action::Drop(Assembly)),
        (Intake, Assembly) => ("claim half done", Action::Drop(Intake)),
        (Assembly, Finished) => ("ship half done", Action::Drop(Assembly)),
        (Assembly, Rework) => ("failure half done", Action::Drop(Assembly)),
        (Intake, Rework) if facts.failed => ("cancel half done", Action::Drop(Intake)),
        (Rework, Deferred) if facts.failed => ("cancel half done", Action::Drop(Deferred)),
        (Intake, Rework) => ("retry half done", Action::Drop(Rework)),
        // Parked wins: nothing runs unasked.
        (Intake, Deferred) => ("defer half done", Action::Drop(Intake)),
        // No move of ours makes these; a link a person made is not ours to remove.
        (Assembly, _) => ("linked into assembly", Action::Quarantine(Assembly)),
        _ => ("linked", Action::Keep),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stand(station: Station, inode: u64) -> Stand {
        Stand { station, retries: 0, inode: (1, inode) }
    }
    fn facts(stands: &[Stand]) -> Facts {
        Facts { stands: stands.to_vec(), ..Facts::default() }
    }
    fn at(station: Station) -> Facts {
        facts(&[stand(station, 1)])
    }
    fn twin(a: Station, b: Station) -> Facts {
        facts(&[stand(a, 1), stand(b, 1)])
    }

    #[test]
    fn every_row_of_the_table() {
        let building = at(Assembly);
        let rows: Vec<(Facts, Row)> = vec![
            (facts(&[]), ("gone", Action::Keep)),
            (at(Intake), ("waiting", Action::Keep)),
            (at(Deferred), ("parked", Action::Keep)),
            (at(Finished), ("finished", Action::Keep)),
            (at(Rework), ("failed", Action::Keep)),
            (Facts { claim_held: true, left: Left::Result, ..building.clone() }, ("building", Action::Leave)),
            (Facts { shipped: true, ..building.clone() }, ("shipped, not moved", Action::Ship)),
            (Facts { failed: true, ..building.clone() }, ("failed, not moved", Action::Complete)),
            (Facts { left: Left::Result, ..building.clone() }, ("built, not shipped", Action::Ship)),
            (Facts { left: Left::Fault, ..building.clone() }, ("fault, not sent back", Action::Fail)),
            (Facts { cancel_requested: true, ..building.clone() }, ("cancelled while building", Action::Cancel)),
            (Facts { exhausted: true, ..building.clone() }, ("abandoned too often", Action::Exhaust)),
            (building, ("abandoned", Action::Return)),
            (Facts { failed: true, ..at(Intake) }, ("taken off, not moved", Action::Complete)),
            (Facts { failed: true, ..at(Deferred) }, ("taken off, not moved", Action::Complete)),
            (Facts { sidecars: [Intake].into(), ..at(Rework) }, ("retry, not moved", Action::Promote)),
            (
                Facts { sidecars: [Intake].into(), explained: true, ..at(Rework) },
                ("sidecars astray", Action::Gather(Rework)),
            ),
            (Facts { sidecars: [Rework, Finished].into(), ..at(Intake) }, ("waiting", Action::Keep)),
            (twin(Intake, Assembly), ("claim half done", Action::Drop(Intake))),
            (
                facts(&[Stand { retries: 1, ..stand(Intake, 1) }, stand(Assembly, 1)]),
                ("return half done", Action::Drop(Assembly)),
            ),
            (twin(Finished, Assembly), ("ship half done", Action::Drop(Assembly))),
            (twin(Assembly, Rework), ("failure half done", Action::Drop(Assembly))),
            (Facts { failed: true, ..twin(Intake, Rework) }, ("cancel half done", Action::Drop(Intake))),
            (Facts { failed: true, ..twin(Deferred, Rework) }, ("cancel half done", Action::Drop(Deferred))),
            (twin(Intake, Rework), ("retry half done", Action::Drop(Rework))),
            (twin(Intake, Deferred), ("defer half done", Action::Drop(Intake))),
            (twin(Assembly, Deferred), ("linked into assembly", Action::Quarantine(Assembly))),
            (twin(Intake, Finished), ("linked", Action::Keep)),
            (facts(&[stand(Intake, 1), stand(Finished, 2)]), ("finished", Action::Keep)),
            (facts(&[stand(Intake, 1), stand(Assembly, 2)]), ("abandoned", Action::Return)),
            (facts(&[stand(Intake, 1), stand(Intake, 2)]), ("waiting", Action::Keep)),
            (facts(&[stand(Assembly, 1), stand(Rework, 2)]), ("namesake in assembly", Action::Quarantine(Assembly))),
            (facts(&[stand(Finished, 1), stand(Rework, 2)]), ("namesakes", Action::Keep)),
        ];
        for (facts, expected) in rows {
            assert_eq!(row(&facts), expected, "{facts:?}");
        }
    }
}
