//! Recipes, models and sidecars that somebody made on purpose: an error that says where and why, never a panic, never
//! memory that a file of a few bytes asks for, never a file outside of what the operator declared. What `fuzz/` looks for
//! at random is done here by a fixed sequence, so that every run does the same.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use factoryline::family;
use factoryline::line::outcome::{Left, inspect};
use factoryline::line::{Attempt, Layout};
use factoryline::model::{Config, GgufFile, SafetensorsModel};
use factoryline::node::{HubCache, Node, Resolver};
use factoryline::recipe::{MAX_BYTES, RecipeFile};
use serde_json::json;
use tempfile::TempDir;

use crate::worker::{Bench, fixture};

#[path = "../../fuzz/src/drive.rs"]
pub mod drive;
#[path = "../../fuzz/src/seeds.rs"]
mod seeds;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// Numbers that are always the same.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }

    /// A damaged copy: bits turned, bytes and numbers replaced, pieces cut, doubled or taken from another seed.
    fn damage(&mut self, seed: &[u8], other: &[u8]) -> Vec<u8> {
        const LONG: [u64; 8] = [0, 1, 1 << 31, u32::MAX as u64, 1 << 40, i64::MAX as u64, u64::MAX - 31, u64::MAX];
        const WORDS: [&[u8]; 8] =
            [b"-1", b"1e309", b"18446744073709551615", b"null", b"[[[[[[[[", b"\"../../x\"", b"{}", b"\\ud800"];
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            let (at, to) = (self.below(bytes.len()), self.below(bytes.len()));
            let (at, to) = (at.min(to), at.max(to));
            match self.below(8) {
                _ if bytes.is_empty() => bytes.extend_from_slice(other),
                0 | 1 => bytes[at] ^= 1 << self.below(8),
                2 => bytes[at] = self.below(256) as u8,
                3 => bytes.truncate(to),
                4 => {
                    drop(bytes.splice(
                        at..(at + 8).min(seed.len()).max(at).min(bytes.len()),
                        LONG[self.below(8)].to_le_bytes(),
                    ))
                }
                5 => drop(bytes.splice(at..to.min(at + 12), WORDS[self.below(8)].iter().copied())),
                6 => bytes.extend_from_within(at..to),
                _ => drop(bytes.splice(at..to, other[self.below(other.len())..].iter().take(64).copied())),
            }
        }
        bytes
    }
}

/// Drives a reader with every seed, every seed cut short, and `rounds` damaged copies of each.
fn hammer(target: &str, rounds: usize, drive: impl Fn(&[u8], &Path)) {
    let dir = TempDir::new().unwrap();
    let seeds = seeds::of(target, dir.path());
    assert!(seeds.len() > 3, "{target}: only {} seeds", seeds.len());
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    for seed in &seeds {
        drive(seed, dir.path());
        for cut in [0, 1, 7, 9, seed.len() / 2, seed.len().saturating_sub(1)] {
            drive(&seed[..cut.min(seed.len())], dir.path());
        }
        for _ in 0..rounds {
            let other = &seeds[dice.below(seeds.len())];
            drive(&dice.damage(seed, other), dir.path());
        }
    }
}

#[test]
fn damaged_recipes_are_refused_or_read_and_written_back() {
    hammer("recipe", 12, |bytes, _| drive::recipe(bytes));
}

#[test]
fn damaged_recipes_are_planned_or_refused() {
    let root = TempDir::new().unwrap();
    Layout::init(root.path()).unwrap();
    let node = Node::load(root.path()).unwrap();
    for model in ["qwen3_moe-text", "llama"] {
        hammer("plan", 3, |bytes, _| drive::plan(bytes, root.path(), &node, &fixture(model)));
    }
}

#[test]
fn damaged_safetensors_and_indexes_are_refused_or_read() {
    hammer("safetensors", 250, drive::safetensors);
}

#[test]
fn damaged_gguf_files_are_refused_or_read() {
    hammer("gguf", 250, drive::gguf);
}

#[test]
fn damaged_configs_and_node_files_are_refused_or_read() {
    hammer("config", 10, |bytes, dir| {
        let weights = |path: &str| fs::read(Path::new(REPOSITORY).join("tests/fixtures").join(path)).unwrap();
        if !dir.join("plain").exists() {
            let (plain, packed) =
                (weights("models/llama/model.safetensors"), weights("packed/llama-mlx/model.safetensors"));
            drive::models(&plain, &packed, dir).unwrap();
        }
        drive::config(bytes, dir);
    });
}

#[test]
fn damaged_sidecars_logs_and_tables_are_refused_or_read() {
    hammer("events", 40, drive::events);
}

fn written(bytes: &[u8], name: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// `foreman inspect` in a process that may have one gigabyte of addresses.
fn inspect_within_a_gigabyte(path: &Path) -> Output {
    let script = r#"ulimit -v 1000000 && exec "$0" inspect "$1""#;
    let foreman = env!("CARGO_BIN_EXE_foreman");
    Command::new("/bin/sh").args(["-c", script, foreman]).arg(path).env("RAYON_NUM_THREADS", "1").output().unwrap()
}

#[test]
fn lengths_and_counts_beyond_a_file_cost_no_memory() {
    let count = |tensors: u64, pairs: u64, rest: &[u8]| {
        [b"GGUF", &3u32.to_le_bytes()[..], &tensors.to_le_bytes(), &pairs.to_le_bytes(), rest].concat()
    };
    let list = |of: u32, items: u64| {
        [&1u64.to_le_bytes()[..], b"a", &9u32.to_le_bytes(), &of.to_le_bytes(), &items.to_le_bytes(), &[0; 64]].concat()
    };
    let huge = u64::MAX / 2;
    let cases = [
        ("model.safetensors", huge.to_le_bytes().to_vec(), "at most 100000000 are allowed"),
        ("model.safetensors", [&99_000_000u64.to_le_bytes()[..], b"{}"].concat(), "cut off inside the header"),
        (
            "model.safetensors",
            safetensors(r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#, b""),
            "overflows",
        ),
        (
            "model.safetensors",
            safetensors(r#"{"a":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}}"#, b""),
            "overflows",
        ),
        (
            "model.safetensors",
            safetensors(r#"{"a":{"dtype":"F32","shape":[0,4611686018427387904],"data_offsets":[0,0]}}"#, b""),
            "overflows",
        ),
        ("model.gguf", count(huge, 1, &[0; 64]), "claims"),
        ("model.gguf", count(0, 1, &list(8, huge)), "more than the rest of the file could hold"),
        ("model.gguf", count(0, 1, &list(9, 1)), "lists of lists"),
        ("model.gguf", count(0, 1, &[&huge.to_le_bytes()[..], &[0; 64]].concat()), "cut off"),
    ];
    for (name, bytes, wanted) in cases {
        let (dir, path) = written(&bytes, name);
        let is_gguf = name.ends_with("gguf");
        let error = match is_gguf {
            true => GgufFile::open(&path).err(),
            false => SafetensorsModel::open(&path).err(),
        };
        let error = error.unwrap_or_else(|| panic!("{name} was read")).to_string();
        assert!(error.contains(wanted), "{name}: {error}");
        fs::copy(fixture("llama").join("config.json"), dir.path().join("config.json")).unwrap();
        let said = inspect_within_a_gigabyte(if is_gguf { &path } else { dir.path() });
        let told = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.code().is_some_and(|code| code != 0), "{wanted}: {:?}", said.status);
        assert!(told.contains(wanted), "{told}");
    }
}

#[test]
fn a_header_of_too_many_tensors_or_too_deep_is_refused() {
    let entry = |n: usize| format!(r#""{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let header = format!("{{{}}}", (0..(1 << 20) + 1).map(entry).collect::<Vec<_>>().join(","));
    let (_dir, path) = written(&safetensors(&header, b""), "many.safetensors");
    let error = SafetensorsModel::open(&path).unwrap_err().to_string();
    assert!(error.contains("more than 1048576 tensors"), "{error}");

    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let (_dir, path) = written(&safetensors(&deep, b""), "deep.safetensors");
    assert!(SafetensorsModel::open(&path).is_err());
    let (_dir, path) = written(deep.as_bytes(), "config.json");
    assert!(Config::open(&path).unwrap_err().to_string().contains("recursion limit"));
}

#[test]
fn a_recipe_too_long_or_nested_too_deep_is_refused() {
    let parse = |bytes: Vec<u8>| RecipeFile::parse(bytes, Path::new("x.alloy.json")).unwrap_err().to_string();
    let deep = parse(["[".repeat(100_000), "]".repeat(100_000)].concat().into_bytes());
    assert!(deep.contains("nested deeper than 128 levels"), "{deep}");
    let long = parse(vec![b' '; MAX_BYTES as usize + 1]);
    insta::assert_snapshot!(long, @"recipe x.alloy.json: the file has 16777217 bytes, more than the 16777216 a recipe may have");
}

#[test]
fn a_config_of_a_million_layers_is_refused_before_they_are_named() {
    let claim = |key: &str, value: u64| {
        let text = fs::read_to_string(fixture("qwen3_moe").join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[key] = value.into();
        let config = Config::from_value(Path::new("config.json"), config).unwrap();
        family::spec_of(&config).unwrap_err().to_string()
    };
    insta::assert_snapshot!(claim("num_hidden_layers", 1_000_000), @"config key num_hidden_layers is 1000000, wanted at most 4096 layers");
    insta::assert_snapshot!(claim("num_experts", 1 << 30), @"config key num_experts is 1073741824, wanted at most 262144 experts over all layers");
    insta::assert_snapshot!(claim("hidden_size", u64::MAX), @"config key hidden_size is 18446744073709551615, wanted at most 2147483648");
}

#[test]
fn files_of_a_model_larger_than_any_are_not_read() {
    let dir = TempDir::new().unwrap();
    let sparse = |name: &str, bytes: u64| fs::File::create(dir.path().join(name)).unwrap().set_len(bytes).unwrap();
    sparse("config.json", 1 << 40);
    sparse("tokenizer.json", 1 << 40);
    sparse("model.safetensors.index.json", 1 << 40);
    let causes = |fault: factoryline::fault::Fault| format!("{}: {}", fault.class, fault.causes().join(": "));
    let config = causes(Config::open(dir.path()).unwrap_err().into());
    insta::assert_snapshot!(config, @"source: it has 1099.51 GB; at most 16.0 MB of such a file are read");
    let tokenizer = causes(factoryline::model::Tokenizer::open(dir.path()).unwrap_err().into());
    assert!(tokenizer.contains("at most 256.0 MB"), "{tokenizer}");
    let index = causes(SafetensorsModel::open(dir.path()).unwrap_err().into());
    assert!(index.contains("at most 128.0 MB"), "{index}");
}

#[test]
fn a_text_larger_than_a_gigabyte_is_refused_at_admission() {
    let stages = json!([{ "type": "expert-activation-profile", "calibrationCorpus": "big.txt" },
        { "type": "expert-prune", "keepExpertsPerLayer": 2 }]);
    let bench = Bench::new(&fixture("qwen3_moe-text"), "qwen3_moe", stages);
    let big = bench.root().join("calibration/big.txt");
    fs::File::create(&big).unwrap().set_len(1 << 31).unwrap();
    bench.run();
    let fault = bench.fault();
    assert!(fault.contains("calibration/big.txt has 2.15 GB; a text may have 1.00 GB"), "{fault}");
}

#[test]
fn pickles_and_shards_of_another_format_are_refused_by_name() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("pytorch_model.bin"), b"\x80\x02").unwrap();
    let error =
        SafetensorsModel::open(dir.path()).unwrap_err().to_string().replace(&dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!(error, @"DIR: pytorch_model.bin is not safetensors: other weights may run code when they are opened and are never read");
    for name in ["pytorch_model.bin", "sub/one.safetensors", "sub\\\\one.safetensors", "..", "."] {
        let index = format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#);
        fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        let error = SafetensorsModel::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("leaves the model's directory") || error.contains("may run code"), "{name}: {error}");
    }
}

/// Code that a model brings is a file like any other: nothing here could run it.
#[test]
fn only_the_worker_is_ever_started() {
    let mut found = Vec::new();
    let mut open = vec![Path::new(REPOSITORY).join("src")];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().flatten().map(|entry| entry.path()));
            continue;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        let starts = |word: &str| {
            let whole = |at: usize| !text[..at].ends_with(|before: char| before.is_alphanumeric());
            text.match_indices(word).any(|(at, _)| whole(at))
        };
        let is_test = path.ends_with("tests.rs");
        if !is_test && ["Command::new", "posix_spawn", "execve", "libloading::", "dlopen"].into_iter().any(starts) {
            found.push(path.strip_prefix(REPOSITORY).unwrap().display().to_string());
        }
    }
    assert_eq!(found, ["src/daemon/build.rs"], "a process is started elsewhere than where workers are");
}

#[test]
fn a_link_out_of_a_models_folder_is_not_followed() {
    let bench = Bench::new(&fixture("llama"), "llama", json!([{ "type": "quant", "quantTypes": ["Q8_0"] }]));
    let elsewhere = TempDir::new().unwrap();
    let elsewhere = elsewhere.path().canonicalize().unwrap();
    fs::write(elsewhere.join("private.txt"), "a secret").unwrap();
    fs::copy(fixture("llama").join("model.safetensors"), elsewhere.join("weights")).unwrap();
    let node = Node::load(bench.root()).unwrap();
    let recipe = bench.root().join("line/assembly/p.alloy.json");
    for (link, target) in [("notes.txt", "private.txt"), ("model.safetensors", "weights")] {
        let models = TempDir::new().unwrap();
        let model = models.path().canonicalize().unwrap().join("m");
        Bench::copy_of("llama", &model);
        let name = model.display().to_string();
        let resolver = Resolver::new(&node, bench.root()).for_recipe(&recipe).with_hub(None);
        resolver.model(&name, None).unwrap();

        let _ = fs::remove_file(model.join(link));
        symlink(elsewhere.join(target), model.join(link)).unwrap();
        let fault = resolver.model(&name, None).unwrap_err();
        let shown = fault.message.replace(&name, "MODEL").replace(&elsewhere.display().to_string(), "ELSEWHERE");
        assert_eq!(shown, format!("MODEL/{link} leads to ELSEWHERE/{target}, outside the model's folder"));
        // A person may: the model was chosen by hand.
        Resolver::new(&node, bench.root()).with_hub(None).model(&name, None).unwrap();
        // Declared, it is followed.
        let mut open = node.clone();
        open.safety_roots = Some(vec![elsewhere.clone(), models.path().to_owned()]);
        Resolver::new(&open, bench.root()).for_recipe(&recipe).with_hub(None).model(&name, None).unwrap();
    }
}

#[test]
fn links_of_a_hub_cache_lead_to_its_blobs_and_no_further() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().canonicalize().unwrap();
    Layout::init(root.join("line-root")).unwrap();
    let node = Node::load(&root.join("line-root")).unwrap();
    // Not the cache this line uses: what is found there is found by its path.
    let repo = root.join("elsewhere/models--org--tiny");
    let snapshot = repo.join("snapshots/c0ffee");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repo.join("blobs")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture("llama").join(name), repo.join("blobs").join(name)).unwrap();
        symlink(Path::new("../../blobs").join(name), snapshot.join(name)).unwrap();
    }
    let line = root.join("line-root");
    let recipe = line.join("line/intake/x.alloy.json");
    let resolver = Resolver::new(&node, &line).for_recipe(&recipe).with_hub(Some(HubCache(root.join("hub"))));
    let name = snapshot.display().to_string();
    resolver.model(&name, None).unwrap();
    fs::write(repo.join("token"), "secret").unwrap();
    symlink(Path::new("../../token"), snapshot.join("notes.txt")).unwrap();
    let fault = resolver.model(&name, None).unwrap_err().message;
    assert!(fault.contains("notes.txt leads to") && fault.contains("outside the model's folder"), "{fault}");
}

#[test]
fn a_line_with_declared_roots_takes_no_other_path_from_a_recipe() {
    let dir = TempDir::new().unwrap();
    let home = dir.path().canonicalize().unwrap();
    let root = home.join("line-root");
    let layout = Layout::init(&root).unwrap();
    for place in ["declared", "elsewhere"] {
        Bench::copy_of("llama", &home.join(place).join("m"));
        fs::write(home.join(place).join("t.txt"), "text").unwrap();
    }
    fs::write(layout.calibration().join("t.txt"), "text").unwrap();
    symlink(home.join("elsewhere"), root.join("way-out")).unwrap();
    fs::write(root.join("factory_node.toml"), "[safety]\nroots = [\"../declared\"]\n").unwrap();
    let node = Node::load(&root).unwrap();
    let recipe = root.join("line/intake/x.alloy.json");
    let resolver = Resolver::new(&node, &root).for_recipe(&recipe).with_hub(None);
    let at = |path: &str| home.join(path).display().to_string();

    resolver.model(&at("declared/m"), None).unwrap();
    resolver.text(&at("declared/t.txt")).unwrap();
    resolver.text("t.txt").unwrap();
    for outside in [at("elsewhere/t.txt"), at("declared/../elsewhere/t.txt"), "way-out/t.txt".to_owned()] {
        let fault = resolver.text(&outside).unwrap_err();
        assert!(fault.message.contains("outside the places a recipe may name"), "{outside}: {fault}");
        assert!(fault.hint.is_some_and(|hint| hint.contains("[safety] roots")));
    }
    assert!(resolver.model(&at("elsewhere/m"), None).is_err());
    assert!(resolver.model("way-out/m", None).is_err());
    // A person is not held to it.
    Resolver::new(&node, &root).with_hub(None).text(&at("elsewhere/t.txt")).unwrap();
}

#[test]
fn a_recipe_names_no_device_and_no_view_of_the_kernel() {
    let dir = TempDir::new().unwrap();
    Layout::init(dir.path()).unwrap();
    let node = Node::load(dir.path()).unwrap();
    let recipe = dir.path().join("line/intake/x.alloy.json");
    let resolver = Resolver::new(&node, dir.path()).for_recipe(&recipe).with_hub(None);
    for path in ["/proc/self/environ", "/dev/zero", "/sys/kernel"] {
        let fault = resolver.text(path).unwrap_err();
        assert!(fault.message.contains("where no text lies"), "{fault}");
    }
}

#[test]
fn a_result_that_names_a_file_outside_its_folder_is_no_result() {
    let dir = TempDir::new().unwrap();
    let token = "0123456789abcdef0123456789abcdef";
    let attempt: Attempt = serde_json::from_value(json!({
        "token": token, "attempt": 1, "part": "x.alloy.json", "retries": 0, "since": "", "host": "", "pid": 1,
        "start_ticks": 1, "boot_id": "",
    }))
    .unwrap();
    fs::write(dir.path().join("outside"), "1").unwrap();
    fs::create_dir(dir.path().join("artifact")).unwrap();
    for (name, counts) in [("../outside", false), ("/etc/hostname", false), ("inside", true)] {
        fs::write(dir.path().join("artifact/inside"), "1").unwrap();
        let file = json!({ "filename": name, "sha256": "0", "size": 1 });
        let result = json!({ "attempt_token": token, "fileHashes": [file] });
        fs::write(dir.path().join("result.json"), result.to_string()).unwrap();
        let left = inspect(dir.path(), &attempt);
        assert_eq!(matches!(left, Left::Result(_)), counts, "{name}: {left:?}");
    }
}
