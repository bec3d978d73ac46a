//! The catalogue, the examples and the published recipes: what `foreman check` says about each.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use factoryline::fault::FaultClass;
use factoryline::line::Layout;
use factoryline::node::Node;
use factoryline::recipe::{self, Finding, RecipeFile, Severity};
use factoryline::stage::{STAGES, capabilities, examine};
use serde_json::{Value, json};

fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The recipes of a folder and of those in it, by path.
fn recipes(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(recipes(&path));
        } else if path.to_string_lossy().ends_with(".alloy.json") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn catalogue() -> Vec<(String, RecipeFile)> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().replace(".alloy.json", "");
    recipes(&repo("recipes/catalog")).iter().map(|path| (name(path), RecipeFile::read(path).unwrap())).collect()
}

/// What can be said without a model: the recipe's own findings and those of this build.
fn without_model(file: &RecipeFile) -> Vec<Finding> {
    let own = recipe::check(file.recipe());
    own.into_iter().chain(recipe::check_executable(file.recipe(), &capabilities())).collect()
}

#[test]
fn the_catalogue_holds_seventeen_recipes_this_build_can_execute() {
    let all = catalogue();
    assert_eq!(all.len(), 17);
    let line = tempfile::tempdir().unwrap();
    let layout = Layout::init(line.path()).unwrap();
    let node = Node::read(layout.root()).unwrap();
    for (name, file) in &all {
        let bad: Vec<Finding> =
            without_model(file).into_iter().filter(|finding| finding.severity != Severity::Note).collect();
        assert_eq!(bad, [], "{name}");
        // On a machine without the models only these are missing.
        for (class, finding) in examine(file, &node, &layout).iter().filter(|(_, finding)| finding.is_error()) {
            assert_eq!(*class, FaultClass::Source, "{name}: {finding}");
        }
        let criteria = file.recipe().acceptance_criteria.as_ref().unwrap();
        assert!(criteria.hardware.as_ref().unwrap().max_vram_gb.is_some(), "{name} has no limit on memory");
        let params = recipe::params_after(file.recipe(), file.recipe().stages.len());
        assert!(params.is_some(), "{name}: its size cannot be told");
    }
}

#[test]
fn the_page_about_the_catalogue_names_every_recipe_and_the_deferred_models() {
    let page = std::fs::read_to_string(repo("docs/CATALOG.md")).unwrap();
    for (name, file) in catalogue() {
        let source = &file.recipe().source;
        for word in [name.as_str(), &source.base_model, &source.architecture] {
            assert!(page.contains(&format!("`{word}`")), "docs/CATALOG.md does not name {word}");
        }
    }
    for deferred in ["MiniMax-Text-01", "Tencent-Hunyuan-Large", "snowflake-arctic-instruct"] {
        assert!(page.contains(deferred), "docs/CATALOG.md does not name {deferred}");
    }
}

/// What keeps a recipe from being admitted on a machine that has its model: the stage types, benchmarks and formats
/// this build does not execute, else the key.
fn obstacles(file: &RecipeFile) -> Vec<String> {
    let line = tempfile::tempdir().unwrap();
    let layout = Layout::init(line.path()).unwrap();
    let node = Node::read(layout.root()).unwrap();
    let whole: Value = serde_json::from_slice(file.bytes()).unwrap();
    let value = |key: &str| {
        let pointer = format!("/{}", key.replace(['.', '['], "/").replace(']', ""));
        whole.pointer(&pointer).and_then(Value::as_str).map(str::to_owned)
    };
    let mut found: Vec<String> = examine(file, &node, &layout)
        .into_iter()
        .filter(|(class, finding)| finding.is_error() && *class != FaultClass::Source)
        // Types come and go with the codecs; the format is what stays in the way.
        .filter(|(_, finding)| !finding.key.contains("quantTypes"))
        .map(|(_, finding)| match finding.key.rsplit('.').next() {
            Some("type" | "name" | "format") => value(&finding.key).unwrap_or(finding.key),
            _ => finding.key,
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Why both forms of one recipe are refused.
const BALANCED: &[&str] = &[
    "compact",
    "cycles",
    "gsm8k",
    "humaneval",
    "mmlu",
    "publish",
    "stages[0].calibrationCorpus",
    "stages[4].passingThreshold",
    "train",
];

/// The published recipes and examples of the format, and why each is refused: they train, publish, deploy, run outside
/// benchmarks or repeat cycles.
const PUBLISHED: &[(&str, &[&str])] = &[
    ("continuum-ai_qwen2.5-0.5b-general-forged__qwen2.5-0.5b-general-forged", &["cycles", "train"]),
    (
        "continuum-ai_qwen3-coder-30b-a3b-compacted-19b-256k__qwen3-coder-30b-a3b-compacted-19b-256k",
        &["humaneval", "humaneval_plus"],
    ),
    ("continuum-ai_qwen3.5-27b-code-forged__qwen3.5-27b-code-forged", &["cycles", "train"]),
    ("continuum-ai_qwen3.5-4b-code-forged-GGUF__qwen3.5-4b-code-forged-GGUF", &["cycles", "humaneval", "train"]),
    ("queue/01-qwen3.5-9b-code-128k", &["cycles", "deliver", "humaneval", "humaneval+", "train"]),
    (
        "queue/02-qwen3.5-9b-code-128k-pruned",
        &["cycles", "deliver", "humaneval", "humaneval+", "stages[0].calibrationCorpus", "train"],
    ),
    ("queue/03-qwen3.5-0.8b-code-128k", &["cycles", "deliver", "humaneval", "humaneval+", "train"]),
    ("queue/04-qwen3.5-2b-code-128k", &["cycles", "deliver", "humaneval", "humaneval+", "train"]),
    ("queue/05-qwen3-vl-4b-code-ui", &["deliver", "humaneval", "train"]),
    (
        "qwen3.5-27b-code-128k-forged",
        &[
            "arc_challenge",
            "cycles",
            "gsm8k",
            "humaneval",
            "humaneval+",
            "lora",
            "mmlu",
            "publish",
            "stages[1].trainingSteps",
            "stages[2].calibrationCorpus",
            "stages[6].passingThreshold",
            "train",
        ],
    ),
    (
        "qwen3.5-27b-code-full",
        &[
            "cycles",
            "gsm8k",
            "humaneval",
            "mmlu",
            "publish",
            "stages[0].calibrationCorpus",
            "stages[3].passingThreshold",
            "train",
        ],
    ),
    ("qwen3.5-4b-code-128k-forged", &["cycles", "train"]),
    (
        "qwen3.5-4b-code-128k-pruned",
        &["cycles", "deliver", "humaneval", "humaneval+", "stages[0].calibrationCorpus", "train"],
    ),
    ("qwen3.5-4b-code-balanced-executed", BALANCED),
    ("qwen3.5-4b-code-balanced", BALANCED),
    (
        "qwen3.5-4b-multimodal-code",
        &[
            "cycles",
            "deploy",
            "humaneval",
            "mmlu",
            "publish",
            "stages[1].encoderModel",
            "stages[1].trainingSteps",
            "stages[3].calibrationCorpus",
            "stages[6].passingThreshold",
            "train",
        ],
    ),
];

#[test]
fn every_published_recipe_is_refused_for_its_reasons() {
    let folder = repo("../shared/conformance/alloys");
    let files = recipes(&folder);
    if files.is_empty() {
        println!("skipped: there are no published recipes under {}", folder.display());
        return;
    }
    let mut report = Vec::new();
    for path in &files {
        let name = path.strip_prefix(&folder).unwrap().to_string_lossy().replace(".alloy.json", "");
        let found = obstacles(&RecipeFile::read(path).unwrap());
        let expected = PUBLISHED.iter().find(|(known, _)| *known == name).map(|(_, why)| why.to_vec());
        if expected.as_deref() != Some(&found.iter().map(String::as_str).collect::<Vec<_>>()[..]) {
            report.push(format!("(\"{name}\", &{found:?}),"));
        }
    }
    assert!(report.is_empty(), "other reasons than the table has:\n{}", report.join("\n"));
    assert_eq!(files.len(), PUBLISHED.len());
}

/// A copy of a fixture with a tokenizer and enough positions for an example's windows; only its files are looked at.
fn roomy(name: &str, below: &Path) -> PathBuf {
    let fixture = |name: &str| repo("tests/fixtures/models").join(name);
    let dir = below.join(name);
    std::fs::create_dir(&dir).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("qwen3_moe-text").join(file), dir.join(file)).unwrap();
    }
    std::fs::copy(fixture(name).join("model.safetensors"), dir.join("model.safetensors")).unwrap();
    let config = std::fs::read(fixture(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    let nested = config.get("text_config").is_some();
    let text = if nested { &mut config["text_config"] } else { &mut config };
    text["max_position_embeddings"] = 8192.into();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    dir
}

/// The recipe for another model: the facts about its own go, counts fit few experts and heads.
fn for_model(recipe: &Value, model: &Path, architecture: &str) -> Value {
    let mut recipe = recipe.clone();
    recipe["source"] = json!({ "baseModel": model, "architecture": architecture });
    for stage in recipe["stages"].as_array_mut().unwrap() {
        match stage["type"].as_str().unwrap() {
            "expert-prune" => {
                stage["originalExpertsPerLayer"] = 4.into();
                stage["keepExpertsPerLayer"] = 3.into();
            }
            "prune" => {
                stage["level"] = 0.25.into();
                stage["minHeadsPerLayer"] = 2.into();
                stage["minKvHeadsPerLayer"] = 1.into();
            }
            _ => {}
        }
    }
    recipe
}

#[test]
fn an_example_stands_for_every_stage_and_passes_the_check_on_a_fixture() {
    let line = tempfile::tempdir().unwrap();
    let layout = Layout::init(line.path()).unwrap();
    let node = Node::read(layout.root()).unwrap();
    let calibration = line.path().join("calibration");
    std::fs::create_dir_all(&calibration).unwrap();
    for text in ["general.txt", "heldout.txt", "calibration.jsonl", "code-mixed.txt", "code-heldout.txt"] {
        std::fs::write(calibration.join(text), "{\"text\": \"some words\"}\n").unwrap();
    }
    let (mixture, seeing) = (roomy("qwen3_moe-text", line.path()), roomy("qwen3_vl", line.path()));
    let mut shown = BTreeSet::new();
    for path in recipes(&repo("recipes/examples")).into_iter().chain(recipes(&repo("recipes/demo"))) {
        let file = RecipeFile::read(&path).unwrap();
        let types: Vec<&str> = file.recipe().stages.iter().map(|stage| stage.type_name()).collect();
        shown.extend(types.iter().map(|&name| name.to_owned()));
        let (model, architecture) =
            if types.contains(&"modality") { (&seeing, "qwen3_vl") } else { (&mixture, "qwen3_moe") };
        let recipe = for_model(&serde_json::from_slice(file.bytes()).unwrap(), model, architecture);
        let small = RecipeFile::parse(recipe.to_string(), &line.path().join("r.alloy.json")).unwrap();
        // The rows of a fixture are too short for blocks of 256: that warning is about the fixture.
        let of_the_fixture = |finding: &Finding| finding.message.contains("no multiple of 256");
        let found = examine(&small, &node, &layout).into_iter().map(|(_, finding)| finding);
        let worse_than_notes: Vec<String> = found
            .filter(|finding| finding.severity != Severity::Note && !of_the_fixture(finding))
            .map(|finding| finding.to_string())
            .collect();
        assert!(worse_than_notes.is_empty(), "{}: {worse_than_notes:?}", path.display());
    }
    for stage in STAGES {
        assert!(shown.contains(stage.type_name()), "no example shows {}", stage.type_name());
    }
}
