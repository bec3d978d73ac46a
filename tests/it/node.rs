//! The description of a node and the one resolver for inputs, as a whole process sees them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use factoryline::fault::FaultClass;
use factoryline::line::Layout;
use factoryline::node::{FoundBy, HubCache, Node, Resolver};
use serde_json::Value;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A line, and a Hugging Face cache that holds one of the fixture models as `org/tiny`.
struct Bench {
    _dir: tempfile::TempDir,
    home: PathBuf,
    root: PathBuf,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        let root = home.join("root");
        Layout::init(&root).unwrap();
        let repo = home.join(".cache/huggingface/hub/models--org--tiny");
        let snapshot = repo.join("snapshots").join(COMMIT);
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repo.join("refs")).unwrap();
        fs::write(repo.join("refs/main"), COMMIT).unwrap();
        for entry in fs::read_dir(model()).unwrap().flatten() {
            std::os::unix::fs::symlink(entry.path(), snapshot.join(entry.file_name())).unwrap();
        }
        Bench { _dir: dir, home, root }
    }

    fn inspect(&self, name: &str, env: &[(&str, &Path)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_foreman"));
        command.env_clear().current_dir(&self.home).args(["inspect", name, "--json", "--root"]).arg(&self.root);
        command.envs(env.iter().copied()).output().unwrap()
    }
}

/// A fixture model in a Hugging Face directory.
fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama")
}

#[test]
fn the_hub_cache_is_found_where_the_environment_says() {
    let bench = Bench::new();
    let cache = bench.home.join(".cache");
    let places: &[(&str, PathBuf)] = &[
        ("HOME", bench.home.clone()),
        ("XDG_CACHE_HOME", cache.clone()),
        ("HF_HOME", cache.join("huggingface")),
        ("HF_HUB_CACHE", cache.join("huggingface/hub")),
    ];
    for (variable, path) in places {
        let said = bench.inspect("org/tiny", &[(variable, path)]);
        let document: Value = serde_json::from_slice(&said.stdout).unwrap();
        let found = document["path"].as_str().unwrap_or_default();
        assert!(found.ends_with(COMMIT), "{variable}: {document}");
    }
    let said = bench.inspect("org/other", &[("HF_HUB_CACHE", &cache)]);
    let document: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said.status.code(), Some(3));
    let message = document["error"]["message"].as_str().unwrap();
    assert!(message.contains("models--org--other") && message.contains("root/org/other"), "{message}");
}

#[test]
fn a_revision_names_a_branch_or_a_commit_and_nothing_else() {
    let bench = Bench::new();
    let node = Node::load(&bench.root).unwrap();
    let hub = HubCache(bench.home.join(".cache/huggingface/hub"));
    let resolver = Resolver::new(&node, &bench.root).with_hub(Some(hub));
    for revision in [None, Some("main"), Some(COMMIT)] {
        let found = resolver.model("org/tiny", revision).unwrap();
        assert!(matches!(&found.how, FoundBy::HubCache { commit, .. } if commit == COMMIT), "{found:?}");
    }
    let fault = resolver.model("org/tiny", Some("v2")).unwrap_err();
    assert_eq!(fault.class, FaultClass::Source);
    assert!(fault.message.contains("revision v2"), "{fault}");
}

#[test]
fn a_named_source_is_used_and_a_wrong_description_stops_everything() {
    let bench = Bench::new();
    let path = model();
    fs::write(bench.root.join("factory_node.toml"), format!("[sources]\nmine = {:?}\n", path.display().to_string()))
        .unwrap();
    let said = bench.inspect("mine", &[]);
    let document: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert!(document["layers"].as_u64().unwrap() > 0);

    fs::write(bench.root.join("factory_node.toml"), "[forge]\nmax_retries = \"many\"\n").unwrap();
    let daemon =
        Command::new(env!("CARGO_BIN_EXE_factoryd")).args(["--drain", "--root"]).arg(&bench.root).output().unwrap();
    let told = String::from_utf8(daemon.stderr).unwrap();
    assert!(!daemon.status.success());
    assert!(told.contains("factory_node.toml:2:15") && told.contains("a whole number"), "{told}");
}
