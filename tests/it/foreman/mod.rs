//! What operators read and what scripts rely on: words, JSON documents, exit codes, with the daemon down and up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use factoryline::line::{Layout, Station};
use serde_json::{Value, json};

mod board;
mod demo;
mod output;
mod seed;
mod verbs;

/// A line in a temporary folder, and the command.
struct Bench {
    dir: tempfile::TempDir,
    layout: Layout,
}

/// How a command ended.
struct Said {
    out: String,
    err: String,
    code: i32,
}

impl Said {
    /// Everything an operator sees.
    fn all(&self) -> String {
        format!("exit {}\n--- stdout\n{}--- stderr\n{}", self.code, self.out, self.err)
    }

    /// The one document on stdout.
    fn json(&self) -> Value {
        let mut documents = serde_json::Deserializer::from_str(&self.out).into_iter::<Value>();
        let document = documents.next().expect("a document").unwrap();
        assert!(documents.next().is_none(), "more than one document: {}", self.out);
        assert_eq!(document["schema_version"], 1);
        document
    }
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::init(dir.path().canonicalize().unwrap().join("line-root")).unwrap();
        Bench { dir, layout }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_foreman"));
        command.current_dir(self.dir.path()).env_clear().env("HOME", self.dir.path());
        command.args(words).arg("--root").arg(self.layout.root()).stdin(Stdio::null());
        command
    }

    fn foreman(&self, words: &[&str]) -> Said {
        said(self.command(words).output().unwrap())
    }

    fn place(&self, station: Station, name: &str, contents: &str) {
        fs::write(self.layout.station(station).join(name), contents).unwrap();
    }

    fn file(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    /// A part in finished with its result.
    fn finished(&self, name: &str) {
        let result = json!({
            "completed_at": "2026-01-31T09:30:00Z", "forged_dir": self.layout.work_root().join(name).join("artifact"),
            "modelHash": format!("sha256:{}", "ab".repeat(32)), "attempt": 1, "elapsed_s": 61.5,
            "fileHashes": [{"filename": "m.gguf", "sha256": "cd".repeat(32), "size": 1_300_000}],
        });
        self.place(Station::Finished, &format!("{name}.result.json"), &result.to_string());
        self.place(Station::Finished, &format!("{name}.alloy.json"), &recipe(name, 0));
    }

    /// A part in rework with its error.
    fn failed(&self, name: &str) {
        let error = json!({
            "failed_at": "2026-01-31T09:31:00Z", "class": "source", "stage": "quant", "attempt": 1, "exit_status": 66,
            "error": "model \"org/m\" is not here", "hint": "name it under [sources]", "log_tail": ["opening", "gone"],
        });
        self.place(Station::Rework, &format!("{name}.error.json"), &error.to_string());
        self.place(Station::Rework, &format!("{name}.alloy.json"), &recipe(name, 0));
    }
}

fn said(output: Output) -> Said {
    Said {
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code().unwrap_or(-1),
    }
}

fn recipe(name: &str, priority: i64) -> String {
    json!({
        "name": name, "version": "1.0.0", "priority": priority,
        "source": {"baseModel": "org/m", "architecture": "a-family"},
        "stages": [{"type": "quant", "format": "gguf", "quantTypes": ["Q8_0"]}],
    })
    .to_string()
}

/// Snapshots without paths, times, ages, processes.
macro_rules! reads {
    ($bench:expr, $text:expr, @$snapshot:literal) => {
        let root = $crate::foreman::regex_escaped($bench.layout.root());
        insta::with_settings!({filters => vec![
            (root.as_str(), "ROOT"),
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
            (r"pid \d+, [^,]+, beat [0-9.]+ s ago", "pid PID, HOST, beat AGE ago"),
            (r"\d\.\d s ", "AGE  "),
        ]}, { insta::assert_snapshot!($text, @$snapshot) });
    };
}

fn regex_escaped(path: &Path) -> String {
    path.display().to_string().replace('.', r"\.")
}

use reads;
