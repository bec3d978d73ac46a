//! Moves to cold tiers and back: spoilt, cut short, and ended.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::Utc;
use factoryline::line::{Station, shelf, throughput};
use factoryline::storage::archive::Archive;
use factoryline::storage::demote::{DemoteOptions, demote};
use factoryline::storage::{NoSteps, Receipt, Step, Steps};
use serde_json::{Value, json};

use crate::storage::{Bench, ONE, age, names, went, write_old};

/// Stops the world at the n-th step, or spoils a file when it was written.
pub(crate) struct Cut {
    left: AtomicUsize,
}

impl Cut {
    pub fn at(step: usize) -> Cut {
        Cut { left: AtomicUsize::new(step) }
    }
    fn reached(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }
}

impl Steps for Cut {
    fn at(&self, _: Step<'_>) -> io::Result<()> {
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(1) | Err(_) => Err(io::Error::other("the power went")),
            Ok(_) => Ok(()),
        }
    }
}

struct Spoil;

impl Steps for Spoil {
    fn at(&self, step: Step<'_>) -> io::Result<()> {
        match step {
            Step::Written(path) if path.ends_with("model.gguf") => fs::write(path, "other bytes"),
            _ => Ok(()),
        }
    }
}

#[test]
fn a_copy_that_reads_otherwise_costs_nothing() {
    let bench = Bench::new(ONE);
    let work = bench.work("orphan", &[("model.gguf", "the weights"), ("a/b", "c")]);
    let before = names(&work);
    let report = bench.gc_with(false, &Spoil);
    let problem = report.evicted[0].problem.as_deref().unwrap();
    assert!(report.failed() && problem.contains("the source was kept"), "{problem}");
    let mut after = names(&work);
    after.remove(".claim.lock");
    assert_eq!(after, before);
    let mut left = names(&bench.archived("a"));
    left.remove(".lock");
    assert_eq!(left, BTreeMap::new());
    assert!(throughput::tail(&bench.layout, 9).unwrap().is_empty());
}

#[test]
fn a_move_cut_anywhere_leaves_one_whole_copy_and_is_ended_by_the_next_run() {
    let mut step = 1;
    loop {
        let bench = Bench::new(ONE);
        let work = bench.work("orphan", &[("model.gguf", "the weights"), ("a/b", "c"), ("a/again.gguf", "twice")]);
        fs::hard_link(work.join("a/again.gguf"), work.join("same.gguf")).unwrap();
        symlink("a/b", work.join("link")).unwrap();
        age(&work);
        let before = names(&work);
        let cut = Cut::at(step);
        let archive = Archive { layout: &bench.layout, host: "bench", steps: &cut, now: Utc::now() };
        let area = bench.archived("a");
        let moved = archive.place(&work, &area, "orphan", "work").and_then(|_| archive.remove(&work));
        let copy = area.join("orphan");
        let is_receipted = |copy: &Path| {
            let text = fs::read(copy.with_file_name("orphan.receipt.json")).unwrap_or_default();
            let receipt: Option<Receipt> = serde_json::from_slice(&text).ok();
            receipt.is_some_and(|receipt| receipt.to == copy && receipt.files.len() == before.len())
        };
        let whole = names(&copy) == before && is_receipted(&copy);
        assert!(whole || names(&work) == before, "step {step}: neither is whole");
        if moved.is_ok() {
            assert!(whole && !work.exists() && !cut.reached());
            break;
        }
        let report = bench.gc();
        assert!(!report.failed(), "step {step}: {:?}", report.evicted);
        assert!(names(&copy) == before && is_receipted(&copy), "step {step}: {:?}", names(&area));
        let mut left: Vec<String> =
            fs::read_dir(&area).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, [".lock", "orphan", "orphan.receipt.json"], "step {step}");
        assert_eq!(fs::read_dir(bench.layout.work_root()).unwrap().count(), 0, "step {step}");
        step += 1;
    }
    assert!(step > 12, "only {step} steps were cut");
}

#[test]
fn a_name_that_is_taken_gets_a_number_and_never_nests() {
    let bench = Bench::new(ONE);
    for text in ["first", "second"] {
        bench.work("orphan", &[("a", text)]);
        assert_eq!(went(&bench.gc()), ["orphan"]);
    }
    let area = bench.archived("a");
    assert_eq!(names(&area.join("orphan"))["a"], "first");
    assert_eq!(names(&area.join("orphan~2"))["a"], "second");
    assert_eq!(fs::read_dir(bench.layout.line().join("receipts")).unwrap().count(), 2);
}

#[test]
fn links_in_a_work_folder_lead_nowhere() {
    let bench = Bench::new(ONE);
    write_old(&bench.home.join("precious/file"), "precious");
    let work = bench.work("orphan", &[("a", "a")]);
    symlink(bench.home.join("precious"), work.join("out")).unwrap();
    age(&work);
    symlink(bench.home.join("precious"), bench.layout.work_root().join("linked")).unwrap();
    assert_eq!(went(&bench.gc()), ["orphan"]);
    assert_eq!(names(&bench.home.join("precious"))["file"], "precious");
    let copy = names(&bench.archived("a").join("orphan"));
    assert_eq!(copy["out"], format!("-> {}", bench.home.join("precious").display()));
    assert!(!copy.contains_key("out/file"));
    assert!(bench.layout.work_root().join("linked").is_symlink());
}

#[test]
fn a_demoted_part_is_still_what_its_result_says() {
    let bench = Bench::new(ONE);
    let artifact = bench.work("done", &[("artifact/report.txt", "good"), ("stage/x", "x")]).join("artifact");
    bench.finished("done", &artifact, 400);
    assert_eq!(bench.foreman(&["verify", "done"]).0, 0);
    let (code, document) = bench.foreman(&["demote", "done", "--dry-run"]);
    assert_eq!((code, artifact.exists()), (0, true));
    let to = bench.home.join("cold/a/bench/artifacts/done");
    assert_eq!(document["to"], to.display().to_string());
    assert_eq!(bench.foreman(&["demote", "done"]).0, 0);
    let (code, document) = bench.foreman(&["verify", "done"]);
    assert_eq!((code, &document["artifact"]), (0, &json!(to)), "{document}");
    assert!(!artifact.exists());
    let sidecar = bench.layout.station(Station::Finished).join("done.result.json");
    let result: Value = serde_json::from_slice(&fs::read(sidecar).unwrap()).unwrap();
    assert_eq!((&result["demoted_from"], &result["kept_field"]), (&json!(artifact), &json!([1, 2])));
    assert_eq!(bench.foreman(&["demote", "done"]).0, 9);
    // Nothing keeps its work folder now.
    assert_eq!(went(&bench.gc()), ["done"]);
}

#[test]
fn a_demotion_cut_anywhere_leaves_an_artifact_that_the_result_names() {
    let mut step = 1;
    loop {
        let bench = Bench::new(ONE);
        let artifact = bench.work("done", &[("artifact/report.txt", "good")]).join("artifact");
        bench.finished("done", &artifact, 400);
        let part = shelf::find(&bench.layout, "done").unwrap().remove(0);
        let cut = Cut::at(step);
        let once = |steps: &dyn Steps| {
            let options = DemoteOptions { dry_run: false, now: Utc::now(), steps };
            demote(&bench.layout, &bench.node(), &part, &options)
        };
        let done = once(&cut);
        let named = || {
            let sidecar = bench.layout.station(Station::Finished).join("done.result.json");
            let result: Value = serde_json::from_slice(&fs::read(sidecar).unwrap()).unwrap();
            PathBuf::from(result["forged_dir"].as_str().unwrap())
        };
        assert_eq!(names(&named())["report.txt"], "good", "step {step}");
        if done.is_ok() {
            break;
        }
        if named() == artifact {
            once(&NoSteps).unwrap();
        }
        assert_eq!(named(), bench.home.join("cold/a/bench/artifacts/done"), "step {step}");
        assert_eq!(names(&named())["report.txt"], "good", "step {step}");
        bench.gc();
        let left: Vec<String> =
            names(&bench.layout.work_root()).into_keys().filter(|n| n.contains("evicted")).collect();
        assert_eq!(left, Vec::<String>::new(), "step {step}");
        step += 1;
    }
    assert!(step > 8, "only {step} steps were cut");
}

#[test]
fn an_artifact_that_is_not_what_its_result_says_stays_where_it_is() {
    let bench = Bench::new(ONE);
    let artifact = bench.work("done", &[("artifact/report.txt", "good")]).join("artifact");
    bench.finished("done", &artifact, 400);
    write_old(&artifact.join("report.txt"), "evil");
    let (code, document) = bench.foreman(&["demote", "done"]);
    assert_eq!(code, 9);
    assert!(document["error"]["message"].as_str().unwrap().contains("not what its result says"), "{document}");
    assert_eq!(names(&artifact)["report.txt"], "evil");
    assert_eq!(fs::read_dir(bench.home.join("cold/a/bench/artifacts")).unwrap().count(), 1, "only the lock");
}
