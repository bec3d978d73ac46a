//! Every sequence of up to three protocol operations, cut after every system call, with and without the loss of
//! directory entries that were not synced, recovered, and cut again in the middle of recovery.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::*;
use crate::line::claim::Claimed;
use crate::line::disk::{Disk, RealDisk};
use crate::line::{Layout, PartName};

/// What a power cut does to renames whose directories were not synced yet.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Loss {
    /// All of them reached the disk.
    None,
    /// Where the destination was not synced, the file is back at its source.
    Undo,
    /// Where the source was not synced, the file has both names.
    Both,
}

/// A disk that stops for ever after `budget` system calls.
struct CutDisk {
    state: Mutex<State>,
    links: bool,
}

struct State {
    budget: usize,
    used: usize,
    /// Renames not yet durable: from, to, whether the destination / the source directory is still unsynced.
    pending: Vec<(PathBuf, PathBuf, bool, bool)>,
}

impl CutDisk {
    fn new(budget: usize, links: bool) -> Self {
        CutDisk { state: Mutex::new(State { budget, used: 0, pending: Vec::new() }), links }
    }

    fn step(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.used >= state.budget {
            return Err(io::Error::other("power cut"));
        }
        state.used += 1;
        Ok(())
    }

    fn used(&self) -> usize {
        self.state.lock().unwrap().used
    }

    fn lose(&self, loss: Loss) {
        let state = self.state.lock().unwrap();
        for (from, to, dest_unsynced, source_unsynced) in state.pending.iter().rev() {
            match loss {
                Loss::Undo if *dest_unsynced && !from.exists() => std::fs::rename(to, from).unwrap_or(()),
                Loss::Both if *source_unsynced && !from.exists() => std::fs::hard_link(to, from).unwrap_or(()),
                _ => {}
            }
        }
    }
}

impl Disk for CutDisk {
    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.step()?;
        std::fs::write(path, &bytes[..bytes.len() / 2])?;
        self.step()?;
        std::fs::write(path, bytes)
    }
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        if self.links {
            return crate::line::disk::link_then_unlink(self, from, to);
        }
        RealDisk.rename_new(from, to)?;
        self.state.lock().unwrap().pending.push((from.into(), to.into(), true, true));
        Ok(())
    }
    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        RealDisk.rename_over(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        RealDisk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step()?;
        let mut state = self.state.lock().unwrap();
        for (from, to, dest, source) in &mut state.pending {
            *dest &= to.parent() != Some(dir);
            *source &= from.parent() != Some(dir);
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    Claim,
    Ship,
    SendBack,
    TakeBack,
    Retry,
    Defer,
    Undefer,
    Cancel,
}
const OPS: [Op; 8] = [Op::Claim, Op::Ship, Op::SendBack, Op::TakeBack, Op::Retry, Op::Defer, Op::Undefer, Op::Cancel];

const RECIPE: &str = "{\"name\": \"x\"}";
const NOTES: &str = "do not lose me";
const RETRIES: u32 = 3;

/// A line with one part, a sidecar, and a neighbour whose name begins with the part's.
struct World {
    _dir: tempfile::TempDir,
    layout: Layout,
}

impl World {
    fn new() -> World {
        // Memory-backed where there is one: the syncs of the logs are not what is tested.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let layout = Layout::init(dir.path()).unwrap();
        let intake = layout.station(Station::Intake);
        for (name, text) in
            [("x.alloy.json", RECIPE), ("x.notes.txt", NOTES), ("x.5.alloy.json", "{}"), ("x.5.notes.txt", NOTES)]
        {
            std::fs::write(intake.join(name), text).unwrap();
        }
        World { _dir: dir, layout }
    }

    fn part(&self, station: Station) -> Option<PartEntry> {
        shelf::list(&self.layout, station).unwrap().into_iter().find(|p| p.name.base() == "x")
    }

    /// `Ok(false)`: this operation is not possible now.
    fn apply(&self, disk: &dyn Disk, op: Op) -> Result<bool, LineError> {
        let mover = Mover::new(disk, &self.layout);
        let needs = match op {
            Op::Claim | Op::Defer | Op::Cancel => Station::Intake,
            Op::Ship | Op::SendBack | Op::TakeBack => Station::Assembly,
            Op::Retry => Station::Rework,
            Op::Undefer => Station::Deferred,
        };
        let parked = (op == Op::Cancel).then(|| self.part(Station::Deferred)).flatten();
        let Some(part) = self.part(needs).or(parked) else { return Ok(false) };
        let work = self.layout.work(&part.name);
        match op {
            Op::Claim => {
                let _moves = MovesLock::acquire(&self.layout)?;
                Claimed::take(mover, &part)?;
            }
            Op::Ship => {
                let attempt = Attempt::read(&work)?.unwrap();
                let result = json!({"attempt_token": attempt.token, "modelHash": "sha256:0"});
                std::fs::write(work.join("result.json"), result.to_string()).unwrap();
                let outcome::Left::Result(result) = outcome::inspect(&work, &attempt) else { panic!("a good result") };
                outcome::ship(mover, &part, &attempt, &result)?;
            }
            Op::SendBack => {
                let error = ErrorRecord { error: "no such model".into(), class: "source".into(), ..Default::default() };
                outcome::send_back(mover, &part, error)?;
            }
            Op::TakeBack => drop(give_back(mover, &part)?),
            Op::Retry => drop(verbs::retry_on(mover, "x", false)?),
            Op::Defer => drop(verbs::shift(mover, "x", Station::Deferred, false)?),
            Op::Undefer => drop(verbs::shift(mover, "x", Station::Intake, false)?),
            Op::Cancel => drop(verbs::cancel_on(mover, "x", "because", false)?),
        }
        Ok(true)
    }

    /// Exactly one station holds the part, whole, with its sidecars and with what explains it.
    fn check(&self, story: &dyn Fn() -> String) {
        let mut stands = Vec::new();
        for station in Station::ALL {
            let dir = self.layout.station(station);
            let shelf = shelf::read(&self.layout, station).unwrap();
            assert!(shelf.temporary.is_empty() && shelf.ignored.is_empty(), "{}", story());
            let parts: Vec<&PartEntry> = shelf.parts.iter().filter(|p| p.name.base() == "x").collect();
            for part in parts {
                assert_eq!(std::fs::read_to_string(&part.path).unwrap(), RECIPE, "{}", story());
                assert!(part.sidecars.contains(&"x.notes.txt".to_owned()), "notes in {station}: {}", story());
                assert_eq!(std::fs::read_to_string(dir.join("x.notes.txt")).unwrap(), NOTES);
                match station {
                    Station::Finished => {
                        assert!(record::result(&self.layout, station, &part.name).unwrap().is_some(), "{}", story())
                    }
                    Station::Rework => {
                        assert!(record::error(&self.layout, station, &part.name).unwrap().is_some(), "{}", story())
                    }
                    _ => {}
                }
                stands.push(station);
            }
        }
        assert_eq!(stands.len(), 1, "stands in {stands:?}: {}", story());
        assert_ne!(stands[0], Station::Assembly, "{}", story());
        let quarantine: Vec<_> = std::fs::read_dir(self.layout.quarantine()).unwrap().collect();
        assert!(quarantine.is_empty(), "{}", story());
        let intake = self.layout.station(Station::Intake);
        assert!(intake.join("x.5.alloy.json").exists() && intake.join("x.5.notes.txt").exists(), "{}", story());
    }
}

fn replay(prefix: &[Op]) -> World {
    let world = World::new();
    for op in prefix {
        assert!(world.apply(&RealDisk, *op).unwrap());
    }
    world
}

/// Crashes the last operation of `story` everywhere; returns how many crashes were tried.
fn crash_everywhere(prefix: &[Op], op: Op, links: bool) -> usize {
    let whole = CutDisk::new(usize::MAX, links);
    if !replay(prefix).apply(&whole, op).unwrap() {
        return 0;
    }
    let mut tried = 0;
    for cut in 0..whole.used() {
        for loss in [Loss::None, Loss::Undo, Loss::Both] {
            // Crash recovery as well, after every system call of it, until it gets through.
            for second_cut in (0..).step_by(if prefix.is_empty() { 1 } else { 11 }) {
                let world = replay(prefix);
                let disk = CutDisk::new(cut, links);
                assert!(world.apply(&disk, op).is_err());
                disk.lose(loss);
                let again = CutDisk::new(second_cut, links);
                let through = run(Mover::new(&again, &world.layout), RETRIES, false).is_ok();
                if !through {
                    again.lose(loss);
                    run(Mover::real(&world.layout), RETRIES, false).unwrap();
                }
                world
                    .check(&|| format!("{prefix:?} {op:?} links {links} cut {cut} {loss:?} recovery cut {second_cut}"));
                tried += 1;
                if through {
                    break;
                }
            }
        }
    }
    tried
}

#[test]
fn every_short_story_survives_a_crash_after_every_system_call() {
    let mut tried = 0;
    let mut stories: Vec<Vec<Op>> = vec![vec![]];
    while let Some(prefix) = stories.pop() {
        for op in OPS {
            for links in [false, true] {
                let count = crash_everywhere(&prefix, op, links);
                tried += count;
                if count > 0 && !links && prefix.len() < 2 {
                    stories.push([&prefix[..], &[op]].concat());
                }
            }
        }
    }
    assert!(tried > 1_000, "only {tried} crashes were tried");
}

#[test]
fn a_publish_appears_whole_or_not_at_all() {
    for cut in 0..5 {
        let world = World::new();
        let dest = world.layout.station(Station::Intake).join("y.alloy.json");
        let published = Mover::new(&CutDisk::new(cut, false), &world.layout).publish(&dest, RECIPE.as_bytes());
        assert_eq!(published.is_ok(), cut >= 4);
        assert_eq!(
            dest.exists().then(|| std::fs::read_to_string(&dest).unwrap()),
            (cut >= 3).then(|| RECIPE.to_owned())
        );
    }
}

#[test]
fn a_held_claim_is_left_alone_and_a_namesake_in_assembly_is_set_aside() {
    let world = replay(&[Op::Claim]);
    let name = PartName::new("x").unwrap();
    let lock = ClaimLock::acquire(&world.layout, &name).unwrap().unwrap();
    let seen = run(Mover::real(&world.layout), RETRIES, false).unwrap();
    assert_eq!((seen.len(), seen[0].action), (1, Action::Leave));
    assert!(ClaimLock::acquire(&world.layout, &name).unwrap().is_none());
    drop(lock);
    std::fs::write(world.layout.station(Station::Finished).join("x.alloy.json"), "{}").unwrap();
    let planned = run(Mover::real(&world.layout), RETRIES, true).unwrap();
    let done = run(Mover::real(&world.layout), RETRIES, false).unwrap();
    assert_eq!((planned[0].action, done[0].action), (done[0].action, Action::Quarantine(Station::Assembly)));
    let names: BTreeSet<String> = std::fs::read_dir(world.layout.quarantine())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["x.alloy.json".to_owned(), "x.alloy.json.reason.json".to_owned()].into());
}

#[test]
fn abandoned_parts_are_counted_and_end_in_rework() {
    let world = World::new();
    for retries in 1..=RETRIES {
        world.apply(&RealDisk, Op::Claim).unwrap();
        run(Mover::real(&world.layout), RETRIES, false).unwrap();
        assert_eq!(world.part(Station::Intake).unwrap().retries, retries);
    }
    world.apply(&RealDisk, Op::Claim).unwrap();
    run(Mover::real(&world.layout), RETRIES, false).unwrap();
    let part = world.part(Station::Rework).unwrap();
    assert_eq!(part.name.file_name(), "x.retry3.alloy.json");
    let error = record::error(&world.layout, Station::Rework, &part.name).unwrap().unwrap();
    assert_eq!((error.class.as_str(), error.retries), ("infra", 3));
    world.check(&|| "exhausted".into());
}

#[test]
fn a_result_that_a_lost_supervisor_left_is_shipped() {
    let world = replay(&[Op::Claim]);
    let work = world.layout.work_root().join("x");
    let attempt = Attempt::read(&work).unwrap().unwrap();
    std::fs::write(work.join("result.json"), json!({"attempt_token": "0".repeat(32)}).to_string()).unwrap();
    let done = run(Mover::real(&world.layout), RETRIES, true).unwrap();
    assert_eq!(done[0].action, Action::Return, "a result with another token is not an outcome");
    std::fs::write(work.join("result.json"), json!({"attempt_token": attempt.token}).to_string()).unwrap();
    run(Mover::real(&world.layout), RETRIES, false).unwrap();
    assert!(world.part(Station::Finished).is_some());
    world.check(&|| "shipped by recovery".into());
}
