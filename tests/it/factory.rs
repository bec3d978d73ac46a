//! A factory for tests: a line in a temporary folder, a worker made of a few lines of shell, and the invariants that
//! hold after anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use factoryline::daemon::{
    DaemonConfig, DaemonEvent, DaemonObserver, DaemonOptions, Limits, Mode, Notifier, StopHandle, WorkerCommand,
};
use factoryline::line::{Layout, Station, record, shelf};
use factoryline::units::Bytes;
use serde_json::{Value, json};

/// The `description` of a recipe tells this worker what to do.
const WORKER: &str = r#"
while [ $# -gt 1 ]; do
  case $1 in --part) part=$2 ;; --work) work=$2 ;; --attempt) token=$2 ;; esac; shift 2
done
say() { printf '%s\n' "$1"; }
act=$(sed -n 's/.*"description": *"\([^"]*\)".*/\1/p' "$part")
say '{"type":"planned","stages":["quant"]}'
say '{"type":"stage_started","stage":"quant","index":0,"of":1}'
say '{"type":"progress","stage":"quant","fraction":0.5,"detail":"half"}'
echo "working on $act" >&2
size=1
trace() { echo "$1 $token" >> "$work/trace"; }
case $act in
  steps) trace begin; for i in 1 2 3 4; do sleep 0.03; trace step; done ;;
  slow) sleep 0.3 ;;
  hang) sleep 60 & wait ;;
  deaf) trap '' TERM; sleep 60 & wait ;;
  source) echo '{"class":"source","message":"model is missing","hint":"fetch it","stage":"quant","causes":["no such file"]}' > "$work/fault.json"; exit 66 ;;
  panic) echo "thread main panicked" >&2; exit 101 ;;
  kill) kill -9 $$ ;;
  flaky) [ -e "$work/seen" ] || { touch "$work/seen"; exit 75; } ;;
  stale) token=00000000000000000000000000000000 ;;
  short) size=2 ;;
  shout) head -c 3000000 /dev/zero | tr '\0' 'x' | fold -w 99 >&2; echo >&2; echo 'the last word' >&2 ;;
  chatty) echo 'loading weights ...' ;;
  wait) printf '{"attempt_token":"%s","needs":{"ram":1000000000000000},"reason":"needs much","since":"2026-01-01T00:00:00Z"}' "$token" > "$work/wait.json"; exit 79 ;;
  hog) x=$(head -c 200000000 /dev/zero | tr '\0' x); sleep 60 & wait ;;
  twice) echo . >> "$work/seen"; n=$(wc -l < "$work/seen")
    [ "$n" -gt 2 ] && say '{"type":"stage_started","stage":"eval","index":1,"of":2}'
    [ "$n" -gt 4 ] || exit 75 ;;
  full) [ -e "$work/seen" ] || { touch "$work/seen"; exit 69; } ;;
  stopped) [ -e "$work/seen" ] || { touch "$work/seen"; kill -STOP $$; } ;;
  bus) [ -e "$work/seen" ] || { touch "$work/seen"; kill -BUS $$; } ;;
  brim) head -c 100000000 /dev/zero > "$work/../../ballast" 2>/dev/null
    echo '{"class":"resource","message":"write weights: No space left on device","stage":"quant"}' > "$work/fault.json"; exit 69 ;;
  slot) echo "$1" > "$work/device"; sleep 0.4 ;;
  nice) nice > "$work/nice" ;;
  lock) [ -z "$(cat)" ] || exit 70 ;;
esac
mkdir -p "$work/artifact"
printf x > "$work/artifact/model.bin"
printf '{"attempt_token":"%s","modelHash":"sha256:2d71","fileHashes":[{"filename":"model.bin","sha256":"2d71","size":%s}],"metrics":{"perplexity":7.5}}' "$token" $size > "$work/result.tmp"
mv "$work/result.tmp" "$work/result.json"
say '{"type":"stage_completed","stage":"quant","elapsed_s":0.1}'
say '{"type":"finished"}'
"#;

pub struct Factory {
    dir: tempfile::TempDir,
    pub layout: Layout,
}

impl Factory {
    pub fn new() -> Factory {
        Factory::in_folder(tempfile::tempdir().unwrap())
    }

    /// On whatever disk the folder lies.
    pub fn in_folder(dir: tempfile::TempDir) -> Factory {
        let layout = Layout::init(dir.path().join("factory")).unwrap();
        fs::write(dir.path().join("worker.sh"), WORKER).unwrap();
        Factory { dir, layout }
    }

    /// The words of the worker's command line.
    pub fn worker_words(&self) -> [String; 2] {
        ["/bin/sh".into(), self.dir.path().join("worker.sh").display().to_string()]
    }

    pub fn options(&self, mode: Mode) -> DaemonOptions {
        let [program, script] = self.worker_words();
        DaemonOptions {
            root: self.layout.root().to_owned(),
            mode,
            config: DaemonConfig {
                host: "test-node".into(),
                max_retries: 2,
                stall: Duration::from_secs(20),
                backoff: Duration::from_millis(20),
                rescan: Duration::from_millis(500),
                heartbeat: Duration::from_millis(200),
                grace: Duration::from_millis(300),
                slots: 1,
                devices: Vec::new(),
                min_free: Bytes(0),
                retry: Default::default(),
                limits: Limits::default(),
                patience: Duration::from_secs(3600),
                worker_log: Bytes::from_mb(1),
                tiers: vec![("hot".into(), self.layout.root().to_owned())],
            },
            worker: WorkerCommand::new(program, vec![script]).unwrap(),
            stop: StopHandle::default(),
            signals: false,
            notify: Notifier::default(),
        }
    }

    /// Drops a recipe into intake the way a client does: temp name, then rename.
    pub fn drop_recipe(&self, file: &str, act: &str, priority: i64) {
        let recipe = recipe(act, priority);
        let intake = self.layout.station(Station::Intake);
        fs::write(intake.join(format!(".{file}.tmp")), recipe).unwrap();
        fs::rename(intake.join(format!(".{file}.tmp")), intake.join(file)).unwrap();
    }

    /// File names in a station, sorted.
    pub fn files(&self, station: Station) -> Vec<String> {
        names(&self.layout.station(station))
    }

    pub fn json(&self, station: Station, name: &str) -> Value {
        record::read_json(&self.layout.station(station).join(name)).unwrap()
    }

    /// Kinds of the events so far, with the part they are about.
    pub fn events(&self) -> Vec<(String, Option<String>)> {
        let events = factoryline::line::follow::read(&self.layout, &factoryline::line::follow::Since::Start).unwrap();
        let seqs: Vec<u64> = events.iter().map(|e| e.seq).collect();
        assert!(seqs.windows(2).all(|w| w[0] < w[1]), "sequence numbers grow: {seqs:?}");
        events.into_iter().map(|e| (e.kind, e.alloy)).collect()
    }

    /// Every base name stands in exactly one station, outside assembly, with what explains it; nothing was set aside.
    pub fn check(&self, bases: &[&str]) -> BTreeMap<String, Station> {
        let mut stands: BTreeMap<String, Vec<Station>> = BTreeMap::new();
        for station in Station::ALL {
            for part in shelf::list(&self.layout, station).unwrap() {
                match station {
                    Station::Finished => {
                        assert!(record::result(&self.layout, station, &part.name).unwrap().is_some(), "{part:?}");
                    }
                    Station::Rework => {
                        assert!(record::error(&self.layout, station, &part.name).unwrap().is_some(), "{part:?}");
                    }
                    _ => {}
                }
                stands.entry(part.name.base().to_owned()).or_default().push(station);
            }
        }
        let expected: Vec<&str> = stands.keys().map(String::as_str).collect();
        assert_eq!(expected, bases, "the parts on the line");
        assert_eq!(names(&self.layout.quarantine()), [""; 0]);
        stands
            .into_iter()
            .map(|(base, stations)| {
                assert_eq!(stations.len(), 1, "{base} stands in {stations:?}");
                (base, stations[0])
            })
            .collect()
    }
}

/// A recipe whose worker is told what to do by its description.
pub fn recipe(act: &str, priority: i64) -> String {
    let recipe = json!({
        "name": "fake", "version": "1.0.0", "description": act, "priority": priority,
        "source": {"baseModel": "some-model", "architecture": "llama"},
        "stages": [{"type": "quant", "format": "gguf", "quantTypes": ["Q8_0"]}],
    });
    serde_json::to_string_pretty(&recipe).unwrap()
}

pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until something holds; panics with `what` after half a minute.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Remembers which parts were claimed, in order.
#[derive(Default)]
pub struct Watcher {
    pub claimed: Mutex<Vec<String>>,
    pub works: Mutex<Vec<PathBuf>>,
}

impl DaemonObserver for Watcher {
    fn see(&self, event: &DaemonEvent) {
        if let DaemonEvent::Claimed { part, work, .. } = event {
            self.claimed.lock().unwrap().push(part.file_name());
            self.works.lock().unwrap().push(work.to_path_buf());
        }
    }
}
