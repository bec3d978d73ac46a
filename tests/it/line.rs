//! The disk protocol through its public doors: races, inheritance, what a client may rely on.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use factoryline::line::claim::Claimed;
use factoryline::line::lock::MovesLock;
use factoryline::line::moves::Mover;
use factoryline::line::verbs::{self, OnTaken};
use factoryline::line::{ClaimLock, EventLog, Layout, LineError, PartName, Station, follow, shelf};
use proptest::prelude::*;
use serde_json::json;

use crate::factory::names;

fn line() -> (tempfile::TempDir, Layout) {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::init(dir.path()).unwrap();
    (dir, layout)
}

#[test]
fn making_a_line_twice_changes_nothing() {
    let (dir, layout) = line();
    fs::write(layout.station(Station::Intake).join("x.json"), "{}").unwrap();
    Layout::init(dir.path()).unwrap();
    let folders = ["assembly", "deferred", "finished", "intake", "quarantine", "rework"];
    let visible: Vec<String> = names(&layout.line()).into_iter().filter(|n| !n.starts_with('.')).collect();
    assert_eq!(visible, folders);
    assert_eq!(names(&layout.station(Station::Intake)), ["x.json"]);
    let missing = Layout::open(dir.path().join("elsewhere")).unwrap_err();
    assert!(missing.to_string().contains("foreman init"), "{missing}");
}

#[test]
fn every_part_has_exactly_one_claimer() {
    let (_dir, layout) = line();
    for n in 0..60 {
        fs::write(layout.station(Station::Intake).join(format!("p{n}.alloy.json")), "{}").unwrap();
    }
    let wins = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for part in shelf::list(&layout, Station::Intake).unwrap() {
                    let _moves = MovesLock::acquire(&layout).unwrap();
                    if Claimed::take(Mover::real(&layout), &part).unwrap().is_some() {
                        wins.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    assert_eq!(wins.load(Ordering::SeqCst), 60);
    assert_eq!(names(&layout.station(Station::Assembly)).len(), 60);
    assert!(names(&layout.station(Station::Intake)).is_empty());
}

#[test]
fn of_many_who_enqueue_one_name_one_wins() {
    let (_dir, layout) = line();
    let name = PartName::new("x").unwrap();
    let results: Vec<bool> = std::thread::scope(|scope| {
        let layout = &layout;
        let name = &name;
        let threads: Vec<_> = (0..6)
            .map(|i| scope.spawn(move || verbs::enqueue(layout, name, &[b'0' + i], OnTaken::Refuse, false).is_ok()))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|won| **won).count(), 1);
    let winner = results.iter().position(|won| *won).unwrap();
    let text = fs::read_to_string(layout.station(Station::Intake).join("x.alloy.json")).unwrap();
    assert_eq!(text, winner.to_string());
}

#[test]
fn a_claim_lives_as_long_as_any_process_that_inherited_it() {
    let (_dir, layout) = line();
    let name = PartName::new("x").unwrap();
    let lock = ClaimLock::acquire(&layout, &name).unwrap().unwrap();
    let mut child = Command::new("sleep").arg("30").stdin(lock.as_stdin().unwrap()).spawn().unwrap();
    drop(lock);
    assert!(ClaimLock::is_held(&layout, &name).unwrap());
    assert!(ClaimLock::acquire(&layout, &name).unwrap().is_none(), "the worker lives: nobody may claim its part");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ClaimLock::acquire(&layout, &name).unwrap().is_some());
}

#[test]
fn events_of_many_writers_are_whole_lines_in_one_sequence() {
    let (_dir, layout) = line();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            // One log each, as separate processes have.
            let log = EventLog::new(&layout, format!("host-{writer}"));
            scope.spawn(move || {
                (0..25).for_each(|i| drop(log.append("line/test", None, json!({"i": i})).unwrap()));
            });
        }
    });
    let seqs: Vec<u64> = follow::read(&layout, &follow::Since::Start).unwrap().iter().map(|e| e.seq).collect();
    assert_eq!(seqs, (1..=100).collect::<Vec<_>>());
}

#[test]
fn verbs_name_where_the_part_stands_instead() {
    let (_dir, layout) = line();
    fs::write(layout.station(Station::Finished).join("x.alloy.json"), "{}").unwrap();
    let error = verbs::retry(&layout, "x", false).unwrap_err();
    assert_eq!(error.to_string(), "no part \"x\" in rework; it stands in finished");
    let error = verbs::cancel(&layout, "y", "", false).unwrap_err();
    assert!(matches!(error, LineError::NotFound { .. }));
    assert_eq!(error.to_string(), "no part \"y\" in assembly or intake or deferred");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever lies in intake, a scan says something of each file, and recovery neither loses nor moves one.
    #[test]
    fn no_file_in_intake_is_ever_lost(files in prop::collection::btree_set("[a-z.~]{1,6}(\\.alloy|\\.recipe|\\.retry1|\\.error)?(\\.json|\\.txt|\\.tmp)", 0..12)) {
        let (_dir, layout) = line();
        let files: Vec<String> = files.into_iter().collect();
        for file in &files {
            fs::write(layout.station(Station::Intake).join(file), file).unwrap();
        }
        verbs::recover(&layout, 3, false).unwrap();
        prop_assert_eq!(names(&layout.station(Station::Intake)), files.clone());
        let shelf = shelf::read(&layout, Station::Intake).unwrap();
        let sidecars: usize = shelf.parts.iter().map(|p| p.sidecars.len()).sum();
        let seen = shelf.parts.len() + sidecars + shelf.loose.len() + shelf.temporary.len() + shelf.ignored.len();
        prop_assert_eq!(seen, files.len());
    }
}
