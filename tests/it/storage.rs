//! Storage that loses nothing: what is in use, what leaves, and that whatever cuts a move short leaves one whole copy.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use chrono::{TimeDelta, Utc};
use factoryline::line::{ClaimLock, Layout, PartName, Station, stamp, throughput};
use factoryline::node::Node;
use factoryline::storage::gc::{self, GcOptions, GcReport};
use factoryline::storage::{Caretaker, NoSteps, Pin, Steps, pins};
use factoryline::units::{Bytes, Sha};
use serde_json::{Value, json};

/// A line and two folders that stand for cold disks.
pub(crate) struct Bench {
    _dir: tempfile::TempDir,
    pub home: PathBuf,
    pub layout: Layout,
}

impl Bench {
    /// `toml` may say COLD for the folder of the cold disks.
    pub fn new(toml: &str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        let layout = Layout::init(home.join("root")).unwrap();
        fs::create_dir_all(home.join("cold/a")).unwrap();
        fs::create_dir_all(home.join("cold/b")).unwrap();
        let bench = Bench { _dir: dir, home, layout };
        bench.describe(toml);
        bench
    }

    pub fn describe(&self, toml: &str) {
        let toml = format!("[node]\nname = \"bench\"\n{}", toml.replace("HOME", &self.home.display().to_string()));
        fs::write(self.layout.node_file(), toml).unwrap();
    }

    pub fn node(&self) -> Node {
        Node::load(self.layout.root()).unwrap()
    }

    /// A part whose recipe starts from `model`.
    pub fn part(&self, station: Station, base: &str, model: &str) {
        let recipe = json!({
            "name": base, "version": "1.0.0", "source": {"baseModel": model, "architecture": "llama"},
            "stages": [{"type": "quant", "format": "gguf", "quantTypes": ["Q8_0"], "calibrationCorpus": "held.txt"}],
        });
        fs::write(self.layout.station(station).join(format!("{base}.alloy.json")), recipe.to_string()).unwrap();
    }

    /// A work folder that nobody touched for years.
    pub fn work(&self, base: &str, files: &[(&str, &str)]) -> PathBuf {
        let work = self.layout.work_root().join(base);
        for (name, text) in files {
            write_old(&work.join(name), text);
        }
        age(&work);
        work
    }

    /// A part that was finished `days` ago, with its artifact in `artifact`.
    pub fn finished(&self, base: &str, artifact: &Path, days: i64) {
        self.part(Station::Finished, base, "nothing/like-it");
        let files: Vec<Value> = names(artifact)
            .iter()
            .map(|(name, text)| json!({"filename": name, "sha256": Sha::of(text.as_bytes()).hex(), "size": text.len()}))
            .collect();
        let result = json!({
            "completed_at": ago(days), "forged_dir": artifact, "fileHashes": files, "modelHash": "", "kept_field": [1, 2],
        });
        let path = self.layout.station(Station::Finished).join(format!("{base}.result.json"));
        fs::write(path, result.to_string()).unwrap();
    }

    fn failed(&self, base: &str, days: i64) {
        self.part(Station::Rework, base, "nothing/like-it");
        let error = json!({"failed_at": ago(days), "error": "x", "class": "quality"});
        let path = self.layout.station(Station::Rework).join(format!("{base}.error.json"));
        fs::write(path, error.to_string()).unwrap();
    }

    pub fn gc(&self) -> GcReport {
        self.gc_with(false, &NoSteps)
    }

    pub fn gc_with(&self, dry_run: bool, steps: &dyn Steps) -> GcReport {
        let options =
            GcOptions { dry_run, force: true, threshold_pct: 100.0, wanted_free: Bytes(0), now: Utc::now(), steps };
        gc::run(&self.layout, &self.node(), &options).unwrap()
    }

    pub fn foreman(&self, words: &[&str]) -> (i32, Value) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_foreman"));
        command.env("HF_HUB_CACHE", self.home.join("hub")).current_dir(&self.home);
        let said = command.args(words).args(["--json", "--root"]).arg(self.layout.root()).output().unwrap();
        let document = serde_json::from_slice(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
        (said.status.code().unwrap(), document)
    }

    /// What a person reads: stdout, then stderr, blanks and paths made equal everywhere.
    fn read(&self, words: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_foreman"));
        command.env("HF_HUB_CACHE", self.home.join("hub")).current_dir(&self.home);
        let said = command.args(words).arg("--root").arg(self.layout.root()).output().unwrap();
        let text = [said.stdout, b"--\n".to_vec(), said.stderr].concat();
        let text = String::from_utf8(text).unwrap().replace(&self.home.display().to_string(), "HOME");
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
    }

    pub fn archived(&self, tier: &str) -> PathBuf {
        self.home.join("cold").join(tier).join("bench/work")
    }
}

pub(crate) const ONE: &str = "[[storage.cold]]\nname = \"a\"\npath = \"HOME/cold/a\"\n";

fn ago(days: i64) -> String {
    stamp::seconds(Utc::now() - TimeDelta::days(days))
}

pub(crate) fn write_old(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

/// Makes everything below a folder look untouched for years, links and folders too.
pub(crate) fn age(dir: &Path) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let then = Timespec { tv_sec: 1_600_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: then, last_modification: then };
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            age(&entry.path());
        }
        utimensat(CWD, entry.path(), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Every file below a folder with its text; a link by what it leads to.
pub(crate) fn names(dir: &Path) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.path().strip_prefix(dir).unwrap().display().to_string());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_symlink() {
                out.insert(name, format!("-> {}", fs::read_link(path).unwrap().display()));
            } else {
                out.insert(name, fs::read_to_string(path).unwrap());
            }
        }
    }
    out
}

/// Names of folders that left, and of those that stayed.
pub(crate) fn went(report: &GcReport) -> Vec<String> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut gone: Vec<String> = report.evicted.iter().map(|evicted| name(&evicted.path)).collect();
    gone.sort();
    gone
}

fn why_kept(report: &GcReport, base: &str) -> String {
    let kept = report.kept.iter().find(|kept| kept.path.ends_with(base));
    kept.map(|kept| kept.because.join("; ")).unwrap_or_default()
}

#[test]
fn every_station_holds_on_to_what_it_needs() {
    let bench = Bench::new(ONE);
    for base in ["waits", "runs", "parked", "failed", "failed-long", "fresh", "old", "orphan", "chained", "young"] {
        bench.work(base, &[("artifact/model.gguf", base), ("plan.json", "{}")]);
    }
    bench.part(Station::Intake, "waits", "work/chained/artifact");
    bench.part(Station::Assembly, "runs", "nothing/like-it");
    bench.part(Station::Deferred, "parked", "nothing/like-it");
    bench.failed("failed", 29);
    bench.failed("failed-long", 31);
    bench.finished("fresh", &bench.layout.work_root().join("fresh/artifact"), 6);
    bench.finished("old", &bench.layout.work_root().join("old/artifact"), 400);
    bench.finished("moved", &bench.home.join("elsewhere"), 400);
    bench.work("moved", &[("stage/model.safetensors", "x")]);
    fs::write(bench.layout.work_root().join("young/plan.json"), "{ }").unwrap();

    let report = bench.gc();
    assert_eq!(went(&report), ["failed-long", "moved", "orphan"]);
    let kept: Vec<String> = ["waits", "runs", "parked", "failed", "fresh", "old", "chained", "young"]
        .iter()
        .map(|base| format!("{base}: {}", why_kept(&report, base)))
        .collect();
    insta::assert_snapshot!(kept.join("\n"), @r"
    waits: waits.alloy.json stands in intake
    runs: runs.alloy.json stands in assembly
    parked: parked.alloy.json stands in deferred
    failed: failed.alloy.json failed 29 days ago, kept for 30 (storage.rework_keep_days)
    fresh: the result of fresh.alloy.json names it; fresh.alloy.json was finished 6 days ago, kept for 7 (storage.finished_keep_days)
    old: the result of old.alloy.json names it; `foreman demote old` moves it to cold
    chained: waits.alloy.json in intake starts from it
    young: changed 0 hours ago: nothing younger than 24 leaves
    ");
    assert_eq!(names(&bench.archived("a").join("orphan"))["artifact/model.gguf"], "orphan");
    let said = throughput::tail(&bench.layout, 9).unwrap();
    let orphan = said.iter().find(|line| line["path"].as_str().unwrap().ends_with("orphan")).unwrap();
    let target = bench.archived("a").join("orphan");
    assert_eq!(orphan["outcome"], "evicted");
    assert_eq!(orphan["action"], format!("moved_to_cold:{}", target.display()));
    assert_eq!(orphan["bytes"], 8);
    let events = fs::read_to_string(bench.layout.events()).unwrap();
    assert_eq!(events.matches("\"line/evicted\"").count(), 3);
}

#[test]
fn days_of_zero_keep_for_ever() {
    let bench = Bench::new(&format!("[storage]\nrework_keep_days = 0\nfinished_keep_days = 0\n{ONE}"));
    bench.work("failed", &[("a", "a")]);
    bench.work("done", &[("a", "a")]);
    bench.failed("failed", 9000);
    bench.finished("done", &bench.home.join("elsewhere"), 9000);
    assert_eq!(went(&bench.gc()), Vec::<String>::new());
}

#[test]
fn a_held_claim_keeps_its_folder_whatever_stands_where() {
    let bench = Bench::new(ONE);
    bench.work("orphan", &[("a", "a")]);
    let claim = ClaimLock::acquire(&bench.layout, &PartName::new("orphan").unwrap()).unwrap().unwrap();
    let report = bench.gc();
    assert_eq!(went(&report), Vec::<String>::new());
    assert_eq!(why_kept(&report, "orphan"), "a living worker holds its claim");
    drop(claim);
    assert_eq!(went(&bench.gc()), ["orphan"]);
}

#[test]
fn a_tier_that_is_full_unmounted_or_read_only_is_passed_over() {
    let bench = Bench::new(
        "[[storage.cold]]\nname = \"gone\"\npath = \"HOME/no/such\"\n\
         [[storage.cold]]\nname = \"unmounted\"\npath = \"HOME/cold/b\"\nmount = true\n\
         [[storage.cold]]\nname = \"other-disk\"\npath = \"HOME/cold/b\"\ndevice = \"UUID=0000-0000\"\n\
         [[storage.cold]]\nname = \"read-only\"\npath = \"/proc/self\"\n\
         [[storage.cold]]\nname = \"full\"\npath = \"HOME/cold/b\"\nmin_free_gb = 1000000\n\
         [[storage.cold]]\nname = \"models-only\"\npath = \"HOME/cold/b\"\npurpose = [\"source-cache\"]\n\
         [[storage.cold]]\nname = \"a\"\npath = \"HOME/cold/a\"\n",
    );
    bench.work("orphan", &[("a", "a")]);
    let report = bench.gc();
    assert_eq!(report.evicted[0].action, format!("moved_to_cold:{}", bench.archived("a").join("orphan").display()));
    for (tier, reason) in [
        ("gone", "is not there"),
        ("unmounted", "not mounted: it lies on"),
        ("other-disk", "not mounted: UUID=0000-0000 should be there"),
        ("read-only", "cannot be written"),
        ("full", "stay free"),
    ] {
        let start = format!("cold tier {tier:?} passed over: ");
        assert!(report.notes.iter().any(|n| n.starts_with(&start) && n.contains(reason)), "{tier}: {:?}", report.notes);
    }
    assert_eq!(names(&bench.home.join("cold/b")), BTreeMap::new(), "nothing was written where it must not");
}

#[test]
fn without_a_tier_nothing_moves_and_the_reason_is_said() {
    let bench = Bench::new("[[storage.cold]]\nname = \"full\"\npath = \"HOME/cold/a\"\nmin_free_gb = 1000000\n");
    let work = bench.work("orphan", &[("stage/model.safetensors", "x")]);
    let report = bench.gc();
    assert_eq!(went(&report), Vec::<String>::new());
    assert_eq!(why_kept(&report, "orphan"), "no cold tier takes it, and nothing in it is known to be made again");
    assert!(report.notes[0].starts_with("cold tier \"full\" passed over: full: "), "{:?}", report.notes);
    assert!(work.join("stage/model.safetensors").exists());
}

#[test]
fn without_a_tier_only_what_can_be_made_again_is_deleted() {
    let bench = Bench::new("");
    let files = [
        ("stage/model.safetensors", "weights"),
        ("stage/report.json", "{}"),
        ("artifact/out.gguf", "artifact"),
        ("notes.gguf", "no stage lists it"),
        ("changed.gguf", "not as the stage left it"),
        (
            ".stage-checkpoints.json",
            r#"{"schemaVersion": 1, "stages": {"00-prune": {"outputs": [
                {"path": "stage/model.safetensors", "size": 7}, {"path": "stage/report.json", "size": 2},
                {"path": "artifact/out.gguf", "size": 8}, {"path": "changed.gguf", "size": 3},
                {"path": "../done/artifact/out.gguf", "size": 8}, {"path": "shared.gguf", "size": 6}]}}}"#,
        ),
    ];
    for base in ["done", "failed", "orphan"] {
        let work = bench.work(base, &files);
        write_old(&work.join("shared.gguf"), "shared");
        fs::hard_link(work.join("shared.gguf"), work.join("artifact/shared.gguf")).unwrap();
        age(&work);
    }
    bench.finished("done", &bench.layout.work_root().join("done/artifact"), 400);
    bench.failed("failed", 400);
    let before = names(&bench.layout.work_root());
    let report = bench.gc();
    let mut after = names(&bench.layout.work_root());
    after.retain(|name, _| !name.ends_with(".claim.lock"));
    let gone: Vec<&String> = before.keys().filter(|name| !after.contains_key(*name)).collect();
    assert_eq!(gone, ["done/stage/model.safetensors"]);
    assert_eq!(report.evicted[0].action, "deleted");
    assert_eq!(report.evicted[0].bytes, Bytes(7));
}

#[test]
fn what_cannot_be_read_keeps_what_it_could_own() {
    let bench = Bench::new(ONE);
    for base in ["torn", "spoilt", "bare", "orphan"] {
        bench.work(base, &[("a", "a")]);
    }
    let at = |station, name: &str| bench.layout.station(station).join(name);
    fs::write(at(Station::Rework, "torn.alloy.json"), "{ \"name\": ").unwrap();
    bench.failed("torn-too", 400);
    fs::write(at(Station::Rework, "torn.error.json"), json!({"failed_at": ago(400)}).to_string()).unwrap();
    bench.part(Station::Finished, "spoilt", "nothing/like-it");
    fs::write(at(Station::Finished, "spoilt.alloy.result.json"), "{").unwrap();
    bench.part(Station::Finished, "bare", "nothing/like-it");
    let report = bench.gc();
    assert_eq!(went(&report), ["orphan"]);
    let mut files: Vec<String> =
        report.unknown.iter().map(|u| u.file.file_name().unwrap().to_string_lossy().into_owned()).collect();
    files.sort();
    assert_eq!(files, ["bare.alloy.json", "spoilt.alloy.result.json", "torn.alloy.json"]);
    assert!(why_kept(&report, "torn").contains("it could own this"), "{}", why_kept(&report, "torn"));

    // A pin that cannot be read could mean anything.
    bench.work("orphan", &[("a", "a")]);
    fs::create_dir_all(pins::folder(&bench.layout)).unwrap();
    fs::write(pins::folder(&bench.layout).join("x.json"), "{").unwrap();
    assert_eq!(went(&bench.gc()), Vec::<String>::new());
}

#[test]
fn the_forerunners_spelling_of_a_result_counts() {
    let bench = Bench::new(ONE);
    let shared = bench.work("shared", &[("artifact/x", "x")]).join("artifact");
    bench.finished("old", &shared, 400);
    let finished = bench.layout.station(Station::Finished);
    fs::rename(finished.join("old.result.json"), finished.join("old.alloy.result.json")).unwrap();
    let report = bench.gc();
    assert_eq!(why_kept(&report, "shared"), "the result of old.alloy.json names it");
}

#[test]
fn a_dry_run_changes_nothing() {
    let bench = Bench::new(ONE);
    bench.work("orphan", &[("a", "a")]);
    let before = names(&bench.home);
    let (code, document) = bench.foreman(&["gc", "--dry-run", "--force"]);
    assert_eq!((code, document["evicted"].as_array().unwrap().len()), (0, 1));
    assert_eq!(document["freed_bytes"], 1);
    assert_eq!(names(&bench.home), before);
    // Below the threshold nothing moves either.
    let (code, document) = bench.foreman(&["gc", "--threshold", "100"]);
    assert_eq!((code, document["evicted"].as_array().unwrap().len()), (0, 0));
    assert!(document["skipped"].as_str().unwrap().ends_with("room is made from 100 % on"), "{document}");
    assert!(bench.layout.work_root().join("orphan/a").exists());
    // A cold tier on the line's own disk makes no room; only --force moves things there.
    let (code, document) = bench.foreman(&["gc", "--threshold", "0"]);
    assert_eq!((code, document["evicted"].as_array().unwrap().len(), &document["skipped"]), (0, 0, &Value::Null));
    assert!(document["notes"][0].as_str().unwrap().ends_with("what is moved there frees nothing"), "{document}");
    let (code, document) = bench.foreman(&["gc", "--force"]);
    assert_eq!((code, document["evicted"].as_array().unwrap().len()), (0, 1));
    assert!(!bench.layout.work_root().join("orphan").exists());
}

#[test]
fn a_pin_keeps_and_its_end_lets_go() {
    let bench = Bench::new(ONE);
    bench.work("orphan", &[("a", "a")]);
    let (code, document) = bench.foreman(&["pin", "orphan", "--reason", "compare"]);
    assert_eq!(code, 0);
    let file = PathBuf::from(document["file"].as_str().unwrap());
    let pin: Pin = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!((pin.subject.as_str(), pin.reason.as_deref()), ("orphan", Some("compare")));
    assert!(file.starts_with(bench.layout.control().join("pins")));
    let report = bench.gc();
    assert!(went(&report).is_empty() && why_kept(&report, "orphan").ends_with(": compare"), "{report:?}");
    assert_eq!(bench.foreman(&["storage"]).1["pins"][0]["subject"], "orphan");
    assert_eq!(bench.foreman(&["unpin", "orphan"]).0, 0);
    assert_eq!(bench.foreman(&["unpin", "orphan"]).0, 3);
    assert_eq!(bench.foreman(&["pin", "no-such-thing"]).0, 3);

    // By path.
    let path = bench.layout.work_root().join("orphan").display().to_string();
    assert_eq!(bench.foreman(&["pin", &path]).0, 0);
    assert!(went(&bench.gc()).is_empty());
    assert_eq!(bench.foreman(&["unpin", &path]).0, 0);
    assert_eq!(went(&bench.gc()), ["orphan"]);
}

#[test]
fn the_daemons_hand_makes_room_when_it_is_asked() {
    let bench = Bench::new("[storage]\ngc_threshold_pct = 100\n");
    let listed = r#"{"stages": {"00": {"outputs": [{"path": "stage/model.gguf", "size": 1}]}}}"#;
    let files = [("stage/model.gguf", "w"), ("artifact/x", "x"), (".stage-checkpoints.json", listed)];
    let work = bench.work("done", &files);
    bench.finished("done", &work.join("artifact"), 400);
    let caretaker = Caretaker::start(&bench.layout);
    caretaker.relieve(Bytes(0), &|| false);
    assert!(work.join("stage/model.gguf").exists(), "there is room enough");
    // What did not help a moment ago is not tried again at once.
    caretaker.relieve(Bytes(u64::MAX / 2), &|| false);
    assert!(work.join("stage/model.gguf").exists());
    Caretaker::start(&bench.layout).relieve(Bytes(u64::MAX / 2), &|| false);
    assert!(!work.join("stage/model.gguf").exists() && work.join("artifact/x").exists());
}

#[test]
fn what_goes_and_what_stays_is_said_in_words() {
    let usb = "[[storage.cold]]\nname = \"usb\"\npath = \"HOME/usb\"\n";
    let bench = Bench::new(&format!("{usb}{ONE}"));
    bench.work("orphan", &[("a", "abc")]);
    bench.work("parked", &[("a", "abcd")]);
    bench.part(Station::Deferred, "parked", "nothing/like-it");
    fs::write(bench.layout.station(Station::Rework).join("torn.alloy.json"), "{").unwrap();
    insta::assert_snapshot!(bench.read(&["gc", "--dry-run", "--force", "--explain"]), @r#"
    HOME/root/work/orphan -> HOME/cold/a/bench/work/orphan 3 B (no part on the line needs it)
    KEPT BYTES WHY
    HOME/root/work/parked 4 B parked.alloy.json stands in deferred
    --
    warning: HOME/root/line/rework/torn.alloy.json cannot be read: what it could own is kept (recipe HOME/root/line/rework/torn.alloy.json, line 1, column 2: the file ends where a key in double quotes should follow)
    cold tier "usb" passed over: HOME/usb is not there, or no folder (not mounted?)
    nothing was changed (--dry-run)
    "#);
    let shown = bench.read(&["storage"]);
    let (_, work) = shown.split_once("\n\n").unwrap();
    insta::assert_snapshot!(work, @r"
    2 work folders, 7 B
    WORK BYTES IN USE
    parked 4 B parked.alloy.json stands in deferred
    orphan 3 B nobody needs it
    --
    warning: HOME/root/line/rework/torn.alloy.json cannot be read: what it could own is kept (recipe HOME/root/line/rework/torn.alloy.json, line 1, column 2: the file ends where a key in double quotes should follow)
    ");
    assert!(shown.contains("REFUSED: HOME/usb is not there, or no folder (not mounted?)"), "{shown}");
}
