//! `foreman doctor` on whole lines: one that is well, and lines that are broken in many ways.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use factoryline::line::{HeartbeatWriter, Layout, LineLock, Station};
use serde_json::{Value, json};

struct Ward {
    dir: tempfile::TempDir,
    layout: Layout,
}

/// What of an examination does not depend on the machine it runs on.
const OF_THE_LINE: &str = "config,tiers,permissions,locks,heartbeat,parts,quarantine,work,logs";

impl Ward {
    fn new() -> Ward {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::init(dir.path().canonicalize().unwrap().join("root")).unwrap();
        Ward { dir, layout }
    }

    fn foreman(&self, words: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_foreman"));
        command.current_dir(self.dir.path()).env_clear().env("HOME", self.dir.path());
        command.args(words).arg("--root").arg(self.layout.root()).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), text.replace(&self.layout.root().display().to_string(), "ROOT"))
    }

    /// The examination of the line, with its exit code.
    fn told(&self, more: &[&str]) -> String {
        let (code, text) = self.foreman(&[&["doctor", "--only", OF_THE_LINE], more].concat());
        format!("exit {code}\n{text}")
    }

    fn place(&self, path: &str, contents: &str) {
        let path = self.layout.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
}

#[test]
fn a_fresh_line_is_well() {
    let ward = Ward::new();
    insta::assert_snapshot!(ward.told(&[]), @r"
    exit 0
    ok       config       no factory_node.toml: detected; protocol 1.1
    ok       tiers        no cold tiers
    ok       permissions  10 folders can be written
    ok       locks        nobody works the line
    ok       heartbeat    no supervisor, and none is claimed
    ok       parts        0 parts on the line, every file belongs to one
    ok       quarantine   empty
    ok       work         0 work folders, each with its part
    ok       logs         0 lines, all whole
    ");
    let (code, text) = ward.foreman(&["doctor", "--json", "--only", "locks,logs"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!(text, @r#"
    {
      "schema_version": 1,
      "root": "ROOT",
      "worst": "ok",
      "findings": [
        {
          "check": "locks",
          "level": "ok",
          "what": "nobody works the line",
          "why": null,
          "fix": null
        },
        {
          "check": "logs",
          "level": "ok",
          "what": "0 lines, all whole",
          "why": null,
          "fix": null
        }
      ]
    }
    "#);
    // Every check answers, whatever machine this is, and leaves nothing behind.
    let (_, text) = ward.foreman(&["doctor", "--json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut names: Vec<&str> =
        document["findings"].as_array().unwrap().iter().map(|f| f["check"].as_str().unwrap()).collect();
    names.dedup();
    assert_eq!(names.len(), 17, "{names:?}");
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPERATOR.md")).unwrap();
    for name in names {
        assert!(page.contains(&format!("| `{name}` |")), "docs/OPERATOR.md does not explain the check {name}");
    }
    for folder in ward.layout.directories().iter().filter(|dir| dir.starts_with(ward.layout.line())) {
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "{}", folder.display());
    }
    assert_eq!(ward.foreman(&["doctor", "--only", "weather"]).0, 2);
}

#[test]
fn a_line_after_many_accidents() {
    let ward = Ward::new();
    let dead = json!({"pid": 999_999_999, "start_ticks": 1, "boot_id": "b", "host": "here", "since": "x"});
    ward.place("line/.worker.pid", &dead.to_string());
    ward.place("line/intake/gone.retry.json", "{}");
    ward.place("line/finished/taken.result.json", "{}");
    ward.place("line/quarantine/twin.alloy.json", "{}");
    ward.place("line/quarantine/twin.alloy.json.reason.json", r#"{"row": "linked into assembly"}"#);
    fs::create_dir_all(ward.layout.work_root().join("orphan/artifact")).unwrap();
    ward.place("line/throughput.jsonl", "{\"outcome\":\"finished\"}\n{\"out\n{\"at\":");
    ward.place("line/.control/pause.json", r#"{"reason": "disk swap"}"#);
    // The size of an empty folder is the filesystem's affair.
    let text = ward.told(&["--quiet"]).replace("4.1 kB", "SIZE").replace("0 B", "SIZE");
    insta::assert_snapshot!(text, @r"
    exit 10
    note     locks        line/.worker.pid names process 999999999, which holds the line no more
                          why: it ended without a word; the text is harmless, only the lock counts
    note     heartbeat    the line is paused: disk swap
                          fix: foreman resume
    warning  parts        intake: 1 file without a part: gone.retry.json
                          why: a part was moved by hand, or a move was cut short
                          fix: foreman recover
    note     parts        finished: 1 file without a part: taken.result.json
                          fix: remove what nobody needs
    warning  quarantine   quarantine/twin.alloy.json: linked into assembly
                          why: two different files claimed one place; neither was lost
                          fix: compare it with the part of its name, then enqueue it under another name or remove it
    warning  work         work/orphan: SIZE, and no part of this name on the line
                          why: nothing removes it; it may hold the artifact of a part that was taken away
                          fix: keep what you need, then rm -r ROOT/work/orphan
    note     logs         line/throughput.jsonl: 1 line cannot be read
                          why: a crash tore them; readers skip them
    note     logs         line/throughput.jsonl: its last line is torn (6 bytes)
                          why: a crash cut it short; the next writer mends it
    ");
    fs::remove_dir(ward.layout.station(Station::Deferred)).unwrap();
    let (code, text) = ward.foreman(&["doctor", "--only", "permissions,parts,work", "--quiet"]);
    insta::assert_snapshot!(format!("exit {code}\n{text}"), @r"
    exit 11
    error    permissions  line/deferred is missing or no folder
                          why: parts cannot be moved there
                          fix: foreman init
    warning  parts        intake: 1 file without a part: gone.retry.json
                          why: a part was moved by hand, or a move was cut short
                          fix: foreman recover
    note     parts        finished: 1 file without a part: taken.result.json
                          fix: remove what nobody needs
    error    parts        cannot list ROOT/line/deferred: No such file or directory (os error 2)
                          fix: foreman init
    note     work         not looked at: a station cannot be read
    ");
}

#[test]
fn a_line_without_its_front_door_is_examined_and_no_line_is_not() {
    let ward = Ward::new();
    fs::remove_dir(ward.layout.station(Station::Intake)).unwrap();
    let (code, text) = ward.foreman(&["doctor", "--quiet", "--only", "permissions"]);
    assert_eq!(code, 11);
    assert!(text.starts_with("error    permissions  line/intake is missing or no folder\n"), "{text}");
    fs::remove_dir_all(ward.layout.line()).unwrap();
    assert_eq!(ward.foreman(&["doctor"]).0, 3);
}

#[test]
fn a_description_that_cannot_be_read_ends_nothing() {
    let ward = Ward::new();
    ward.place("factory_node.toml", "[forge]\nmax_retry = 3\n");
    let (code, text) = ward.foreman(&["doctor", "--only", "config,tiers,locks"]);
    insta::assert_snapshot!(format!("exit {code}\n{text}"), @r"
    exit 11
    error    config       ROOT/factory_node.toml:2:1: unknown key `forge.max_retry`
                          why: the daemon does not start with it
                          fix: did you mean `forge.max_retries`?
    ok       tiers        no cold tiers
    ok       locks        nobody works the line
    ");
    let cold = ward.dir.path().join("cold");
    fs::create_dir(&cold).unwrap();
    ward.place(
        "factory_node.toml",
        &format!(
            "[sources]\nsmol = \"/not/there\"\n[[storage.cold]]\nname = \"a\"\npath = \"/nowhere\"\n\
             [grid]\ncoordinator = \"http://c\"\n[[storage.cold]]\nname = \"b\"\npath = {cold:?}\n"
        ),
    );
    let (code, text) = ward.foreman(&["doctor", "--quiet", "--only", "config,tiers"]);
    // Whether the temporary folder is a disk of its own is the machine's affair.
    let text: Vec<&str> =
        text.lines().filter(|line| !line.contains("disk of /") && !line.contains("own disk")).collect();
    insta::assert_snapshot!(format!("exit {code}\n{}", text.join("\n")), @r#"
    exit 10
    note     config       grid.coordinator "http://c": this version works alone
    warning  config       sources."smol": /not/there is not there
                          why: recipes that name it go to rework
                          fix: mount it, or mend [sources] in factory_node.toml
    warning  tiers        storage.cold "a": /nowhere is not there (not mounted?)
                          fix: mount it, or mend [[storage.cold]] in factory_node.toml
    "#);
}

#[test]
fn a_clock_that_was_set_back() {
    let ward = Ward::new();
    ward.place("line/.events.jsonl", "{\"timestamp\":\"2999-01-01T00:00:00.000Z\",\"kind\":\"line/test\",\"seq\":1}\n");
    let (code, text) = ward.foreman(&["doctor", "--only", "clock"]);
    assert_eq!(code, 11);
    assert!(text.contains("but the newest event is of 2999-01-01T00:00:00Z"), "{text}");
}

#[test]
fn a_claim_that_is_held_for_nothing_and_a_silent_supervisor() {
    let ward = Ward::new();
    let part = factoryline::line::PartName::new("lost").unwrap();
    let _claim = factoryline::line::ClaimLock::acquire(&ward.layout, &part).unwrap().unwrap();
    let _line = LineLock::acquire(&ward.layout).unwrap();
    // A beat of long ago: this process lives, but its heart stands still.
    drop(HeartbeatWriter::start(&ward.layout, "here", std::time::Duration::from_secs(30)));
    let mut beat: Value = serde_json::from_slice(&fs::read(ward.layout.heartbeat()).unwrap()).unwrap();
    (beat["state"], beat["beat_at_uptime_s"], beat["interval_s"]) = (json!("idle"), json!(0.5), json!(0.001));
    fs::write(ward.layout.heartbeat(), beat.to_string()).unwrap();
    let (code, text) = ward.foreman(&["doctor", "--only", "locks,heartbeat", "--json"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    let rows: Vec<(&str, &str)> = document["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["level"].as_str().unwrap(), f["what"].as_str().unwrap()))
        .collect();
    assert_eq!(code, 10, "{text}");
    assert!(rows[0].1.contains("works the line") && rows[0].0 == "ok", "{rows:?}");
    assert_eq!(rows[1], ("warning", "work/lost/.claim.lock is held, but lost is not in assembly"));
    assert!(rows[2].1.starts_with("the line is held, but its heartbeat is silent") && rows[2].0 == "warning");
}

#[test]
fn a_station_that_cannot_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let ward = Ward::new();
    let station = ward.layout.station(Station::Rework);
    fs::set_permissions(&station, fs::Permissions::from_mode(0o555)).unwrap();
    let (code, text) = ward.foreman(&["doctor", "--only", "permissions"]);
    // The superuser writes everywhere.
    match rustix::process::geteuid().is_root() {
        true => assert_eq!(code, 0, "{text}"),
        false => {
            assert_eq!(code, 11, "{text}");
            assert!(text.contains("line/rework: a file cannot be made and removed here"), "{text}");
        }
    }
    fs::set_permissions(&station, fs::Permissions::from_mode(0o755)).unwrap();
}
