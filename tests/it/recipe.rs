//! Recipes through the public door: published ones byte for byte, broken ones with their messages, hashes against
//! their vectors, the schema and the reference page in step with the types.

use std::path::{Path, PathBuf};

use factoryline::fault::{Fault, FaultClass};
use factoryline::recipe::{
    self, Capabilities, MAX_BYTES, QuantCapability, RecipeError, RecipeFile, Severity, StageSpec, hashes, json,
};
use factoryline::units::Sha;
use proptest::prelude::*;
use serde_json::{Value, json};

fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn json_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(json_files(&path));
        } else if path.extension().is_some_and(|e| e == "json") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Published recipes, where the checkout has them beside it.
fn conformance() -> Vec<PathBuf> {
    let dir = repo("../shared/conformance/alloys");
    let files = json_files(&dir);
    if files.is_empty() {
        println!("skipped the published recipes: none under {}", dir.display());
    }
    files
}

fn own_examples() -> Vec<PathBuf> {
    let mut files = json_files(&repo("recipes/examples"));
    files
        .extend(json_files(&repo("recipes/demo")).into_iter().filter(|p| p.to_string_lossy().ends_with(".alloy.json")));
    assert!(files.len() >= 3, "the example recipes are missing");
    files
}

fn kitchen_sink() -> PathBuf {
    repo("tests/fixtures/recipes/good/kitchen-sink.alloy.json")
}

fn all_good() -> Vec<PathBuf> {
    own_examples()
        .into_iter()
        .chain([kitchen_sink(), repo("tests/fixtures/recipes/good/executed.alloy.json")])
        .chain(conformance())
        .collect()
}

fn read(path: &Path) -> RecipeFile {
    RecipeFile::read(path).unwrap_or_else(|e| panic!("{}", Fault::from(e).one_line()))
}

fn parse(text: &str) -> RecipeFile {
    RecipeFile::parse(text, Path::new("r.json")).unwrap_or_else(|e| panic!("{}", Fault::from(e).one_line()))
}

fn with_stages(stages: &str) -> RecipeFile {
    let source = r#""source": {"baseModel": "m", "architecture": "llama"}"#;
    parse(&format!(r#"{{"name": "x", "version": "1.0.0", {source}, "stages": {stages}}}"#))
}

#[test]
fn every_recipe_reads_and_comes_back_byte_for_byte() {
    for path in all_good() {
        let bytes = std::fs::read(&path).unwrap();
        let file = read(&path);
        assert_eq!(file.bytes(), bytes);
        assert_eq!(file.alloy_hash(), Sha::of(&bytes));
        // The typed view loses nothing either: null keys aside, it says what serde_json reads.
        let read_by_others: Value = serde_json::from_slice(&bytes).unwrap();
        let typed = serde_json::to_value(file.recipe()).unwrap();
        assert_eq!(meaning(typed), meaning(read_by_others), "{}", path.display());
        assert!(file.recipe().stages.iter().all(StageSpec::is_known), "{}", path.display());
    }
}

/// The value with null keys left out and all numbers as floats.
fn meaning(value: Value) -> Value {
    match value {
        Value::Number(n) => json!(n.as_f64()),
        Value::Array(items) => items.into_iter().map(meaning).collect(),
        Value::Object(map) => map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, meaning(v))).collect(),
        other => other,
    }
}

/// Recipes that a program wrote come out of the emitter byte for byte; those a person laid out (lists on one line,
/// empty lines) keep their bytes in the file and come out as Python would write them.
#[test]
fn the_emitter_writes_what_python_writes() {
    let by_program = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("continuum-ai_")
            || name == "qwen3.5-4b-code-128k-forged.alloy.json"
            || name == "executed.alloy.json"
    };
    let mut exact = 0;
    for path in all_good() {
        let bytes = std::fs::read(&path).unwrap();
        let form = read(&path).python_form();
        if by_program(&path) {
            let newline = if bytes.ends_with(b"\n") { "\n" } else { "" };
            assert_eq!(String::from_utf8(bytes).unwrap(), form + newline, "{}", path.display());
            exact += 1;
        } else {
            let (theirs, ours): (Value, Value) =
                (serde_json::from_slice(&bytes).unwrap(), serde_json::from_str(&form).unwrap());
            assert_eq!(theirs, ours, "{}", path.display());
            assert!(form.is_ascii());
        }
    }
    assert!(exact >= if conformance().is_empty() { 1 } else { 6 }, "{exact}");
}

#[test]
fn results_are_spliced_in_and_everything_else_stays() {
    let results = json!({"finalPerplexity": 12.0, "benchmarks": [], "note": "é"});
    for path in all_good() {
        let file = read(&path);
        let before = String::from_utf8(file.bytes().to_vec()).unwrap();
        let after = String::from_utf8(file.with_results(&results).unwrap()).unwrap();
        let again = parse(&after);
        assert_eq!(again.tree().get("results").unwrap().to_value(), results);
        let block = &after[again.tree().get("results").unwrap().span.clone()];
        let (head, tail) = after.split_once(block).unwrap();
        match file.tree().get("results") {
            Some(old) => assert_eq!(format!("{head}{}{tail}", &before[old.span.clone()]), before),
            None => {
                let head = head.strip_suffix("\"results\": ").unwrap().trim_end().strip_suffix(',').unwrap();
                assert_eq!(format!("{head}{tail}"), before);
            }
        }
        // Writing the results a file has changes nothing when Python laid it out.
        if let Some(old) = file.tree().get("results").filter(|_| before.trim_end() == file.python_form()) {
            assert_eq!(String::from_utf8(file.with_results(&old.to_value()).unwrap()).unwrap(), before);
        }
    }
}

#[test]
fn results_follow_the_layout_of_their_file() {
    let head = r#""name": "x", "version": "1.0.0", "source": {"baseModel": "m", "architecture": "a"}"#;
    let write = |text: &str| String::from_utf8(parse(text).with_results(&json!({"a": [1.5]})).unwrap()).unwrap();
    assert_eq!(write(&format!("{{{head}}}\n")), format!("{{{head}, \"results\": {{\"a\": [1.5]}}}}\n"));
    assert_eq!(
        write(&format!("{{\r\n\t{head}\r\n}}")),
        format!("{{\r\n\t{head},\r\n\t\"results\": {{\r\n\t\t\"a\": [\r\n\t\t\t1.5\r\n\t\t]\r\n\t}}\r\n}}")
    );
    let null = write(&format!("{{\n  {head},\n  \"results\": null, \"cycles\": 1\n}}"));
    assert!(null.ends_with("\"results\": {\n    \"a\": [\n      1.5\n    ]\n  }, \"cycles\": 1\n}"), "{null}");
}

proptest! {
    /// However a file is laid out, splicing results in leaves a recipe that says the same and has the results.
    #[test]
    fn results_can_be_spliced_into_any_layout(gaps in prop::collection::vec("[ \t\r\n]{0,3}", 10), had in any::<bool>(), last in any::<bool>()) {
        let g = |i: usize| gaps[i].as_str();
        let old = if had { format!("{}\"results\"{}:{}[1]{},", g(0), g(1), g(2), g(3)) } else { String::new() };
        let more = if last { format!(",{}\"z\": 1.50{}", g(4), g(5)) } else { String::new() };
        let head = r#""name":"x","version":"1.0.0","source":{"baseModel":"m","architecture":"a"}"#;
        let text = format!("{}{{{old}{}{head}{}{more}}}{}", g(6), g(7), g(8), g(9));
        // `results` of the wrong type is refused by the typed view, not by the splice.
        let tree = json::parse(&text).unwrap();
        let after = String::from_utf8(recipe::with_results(text.as_bytes(), &tree, &json!({"k": [2]}))).unwrap();
        let mut said: Value = serde_json::from_str(&text).unwrap();
        said["results"] = json!({"k": [2]});
        prop_assert_eq!(serde_json::from_str::<Value>(&after).unwrap(), said);
        prop_assert_eq!(after.contains("1.50"), last);
    }
}

#[test]
fn model_and_dataset_hashes_match_their_vectors() {
    let hash = |files: &[(&str, &str)]| {
        hashes::compose_model_hash(files.iter().map(|(name, sha)| (*name, sha.parse().unwrap()))).unwrap().hex()
    };
    assert_eq!(
        hash(&[("model.safetensors", "b0103eceb715ea1bd27bea2cafbd1b201f8a24b5c81d3228c9555220abd4d756")]),
        "3f1fd0b9b5b70d7869fd9a48162641f7652c693cd01d5bc2b1781321e5786c64"
    );
    let gguf = "olmoe-1b-7b-compacted-5b.Q5_K_M.gguf";
    assert_eq!(
        hash(&[(gguf, "0cb7e0fff9997752bb7d150d549627f590ec06ff1adee5744fa6fa596a99bdc3")]),
        "7f3b3c31279035cd5226f13cd602875baf8a1dd74b45345ee5ca2f5988169df5"
    );
    // Names outside ASCII and beyond the basic plane; computed with CPython's json and hashlib.
    let names = [
        "model-😀.safetensors",
        "model-é.safetensors",
        "Model \"x\".safetensors",
        "model-00001-of-00002.safetensors",
        "model-\u{ffee}.safetensors",
    ];
    let files = names.map(|name| (name, Sha::of(name.as_bytes())));
    assert_eq!(
        hashes::compose_model_hash(files).unwrap().hex(),
        "7723c8759e252a76346d2f2bbf4d6ab67ed96c6c895f5ac31fe401a9b65ec1d3"
    );
    assert!(hashes::compose_model_hash([]).is_err(), "a hash over nothing would vouch for nothing");

    // Trees of 1, 2, 3 and 5 files, computed with CPython's hashlib from the definition.
    let tree = |count: usize| {
        let names: Vec<String> = (0..count).map(|i| format!("{i}")).collect();
        let leaf = |i: usize| hashes::dataset_leaf(format!("line {i}\n").as_bytes()).unwrap();
        // Given out of order: the hash sorts.
        hashes::dataset_hash(names.iter().enumerate().rev().map(|(i, n)| (n.as_str(), leaf(i)))).unwrap().hex()
    };
    assert_eq!(tree(1), "5c02b9ac5a605d5dd732f101486c7679e7769c4eaba2019dea4d6d147530d08f");
    assert_eq!(tree(2), "8d839a9fbfdaccf003fb196a146de9d148cc8c23619985a131679ed13c0005f7");
    assert_eq!(tree(3), "162acc50d9ae48c82978afa3208783c3b13b6f45903d60d5f3e1bccdc266382b");
    assert_eq!(tree(5), "e9680146d20449f765d962f4d2db7cf907e1ff4c401da284448cf868618d7fa0");
    assert!(hashes::dataset_hash([]).is_err());
}

#[test]
fn a_receipt_hash_covers_everything_but_the_receipt() {
    let text = std::fs::read_to_string(kitchen_sink()).unwrap();
    // Computed with CPython's json.dumps(indent=2) over the same file.
    let expected = "3bf73bd88e9212628f20e91dcdc545d47a489dd864bd11fe1193483241a0b5c3";
    assert_eq!(hashes::receipt_hash(&text).unwrap().hex(), expected);
    let published = text.replace("\"receipt\": {}", "\"receipt\": {\"issuedAt\": \"2026-01-01T00:00:00Z\"}");
    assert_eq!(hashes::receipt_hash(&published).unwrap().hex(), expected);
    assert_ne!(hashes::receipt_hash(&text.replace("30.50", "30.51")).unwrap().hex(), expected);
    assert_eq!(hashes::receipt_hash("[]"), None);
}

#[test]
fn published_identities_and_model_hashes_reproduce() {
    let mut with_files = 0;
    for path in conformance() {
        let file = read(&path);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let expected =
            PUBLISHED.iter().find(|(n, _)| name.ends_with(n)).unwrap_or_else(|| panic!("no hash for {name}"));
        assert_eq!(file.alloy_hash().hex(), expected.1, "{name}");
        let Some(integrity) = file.recipe().results.as_ref().and_then(|r| r.integrity.as_ref()) else { continue };
        let (Some(files), Some(stated)) = (&integrity.file_hashes, &integrity.model_hash) else { continue };
        let pairs = files.iter().map(|f| (f.filename.as_str(), f.sha256.parse().unwrap()));
        assert_eq!(&hashes::compose_model_hash(pairs).unwrap().tagged(), stated, "{name}");
        with_files += 1;
    }
    assert!(with_files == 4 || conformance().is_empty(), "{with_files}");
}

/// SHA-256 of the published files, as their publishers state them.
const PUBLISHED: [(&str, &str); 16] = [
    (
        "qwen3-coder-30b-a3b-compacted-19b-256k.alloy.json",
        "821f1562870205283b09d9aa4a7f8478afc96a2e98a7fe8c38e2ad67546355e2",
    ),
    ("qwen2.5-0.5b-general-forged.alloy.json", "a3750da128ba76f0611aff112c3fab8133e4592d1421ec38cbe6dee35f40a232"),
    ("qwen3.5-27b-code-forged.alloy.json", "80a26f0ec24dfc1e65197a7dc99021c878c73553460c20e4389466e20d8e3c11"),
    ("qwen3.5-4b-code-forged-GGUF.alloy.json", "f7f4f6ddf29019d21bf46779f7af614c1ecfd6ac2c50224260dee160a36ba87b"),
    ("qwen3.5-27b-code-128k-forged.alloy.json", "82ece5883e7bfe4a7ea2a85f93f92f62dd66c03cfd0007db5cf3fae19608af86"),
    ("qwen3.5-27b-code-full.alloy.json", "7ed3695c374ecbe799973159dfb775bfd44e63c9551676ab108baebd160fd3ba"),
    ("qwen3.5-4b-code-128k-forged.alloy.json", "199bee5cf4e33b5db8a3f5c93e2fd3108f4f642170b54514ee0fac5d122d4de0"),
    ("qwen3.5-4b-code-128k-pruned.alloy.json", "ec235205c53e9a8b51f7c036024f97f22a4673d4e4573b161129b14fe57e2af2"),
    ("qwen3.5-4b-code-balanced.alloy.json", "c926b7d17535c594f5b51355a7835db6686f114ceeaf967628dceb1ea746bda6"),
    (
        "qwen3.5-4b-code-balanced-executed.alloy.json",
        "e3e35f38e585c7d415901c5db1ea1bdb4c941a8cbccf9a8f2d0bda1c0d87b763",
    ),
    ("qwen3.5-4b-multimodal-code.alloy.json", "4ff9ad08647c2c55280067f22756b3602e25dae2ddb88fea80a0a7e2166394ac"),
    ("01-qwen3.5-9b-code-128k.alloy.json", "7346abf7784f5c7d1ce7b50d70322f96c7d17460fd759d36850140b415861419"),
    ("02-qwen3.5-9b-code-128k-pruned.alloy.json", "79c665638baf62b47d087866019a1eb5fed7b7a20d8529d9d5732520bb62c81b"),
    ("03-qwen3.5-0.8b-code-128k.alloy.json", "c933e3d30afd856c5dcadda360743b42802fea43250677d1bb59665f6cb00535"),
    ("04-qwen3.5-2b-code-128k.alloy.json", "a27a9f6aa7892397f0d6cd8dc10ba914862938b147ace512c078c41b092d6081"),
    ("05-qwen3-vl-4b-code-ui.alloy.json", "c46e94a16006aa8c8a748e688a57357dd78afd2240206802e11a9541d5a03c6b"),
];

/// What an operator reads about a recipe that is broken in one way.
fn verdict(path: &Path) -> String {
    let names = |list: &[&str]| list.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    let can = Capabilities {
        stages: names(&["expert-prune", "quant", "eval"]),
        benchmarks: names(&["perplexity"]),
        quant: vec![QuantCapability {
            format: "gguf".into(),
            types: names(&["F16", "Q8_0", "Q4_0"]),
            choices: names(&["Q8_0", "Q4_0", "Q4_K"]),
            architectures: names(&["llama", "qwen3_moe"]),
        }],
        quant_algorithms: names(&["rtn", "gptq"]),
        architectures: names(&["llama", "qwen3_moe"]),
    };
    let bytes = std::fs::read(path).unwrap();
    let lines: Vec<String> = match RecipeFile::parse(bytes, Path::new("r.json")) {
        Err(error) => {
            let fault = Fault::from(error);
            assert_eq!(fault.class, FaultClass::Recipe);
            vec![format!("{}{}", fault.one_line(), fault.hint.map(|h| format!(" ({h})")).unwrap_or_default())]
        }
        Ok(file) => {
            let asks = if path.to_string_lossy().contains("execute-") { can } else { Capabilities::default() };
            let found = recipe::check(file.recipe()).into_iter().chain(recipe::check_executable(file.recipe(), &asks));
            // Whatever a finding is about can be shown in the file, or is missing from its root.
            let shown = |key: &str| file.locate(key).is_some() || !key.contains(['.', '[']);
            found.inspect(|f| assert!(shown(&f.key), "{f}")).map(|f| f.to_string()).collect()
        }
    };
    assert!(!lines.is_empty(), "{} is not broken", path.display());
    lines.iter().map(|line| format!("  {line}\n")).collect()
}

#[test]
fn every_broken_recipe_says_where_why_and_what_to_do() {
    let report: String = json_files(&repo("tests/fixtures/recipes/broken"))
        .iter()
        .map(|path| format!("{}\n{}", path.file_stem().unwrap().to_string_lossy(), verdict(path)))
        .collect();
    insta::assert_snapshot!(report);
}

#[test]
fn good_recipes_have_no_findings() {
    for path in own_examples().into_iter().chain(conformance()) {
        let mut findings = recipe::check(read(&path).recipe());
        // A note says what to expect; there is nothing to mend.
        findings.retain(|finding| finding.severity != Severity::Note);
        assert!(findings.is_empty(), "{}: {findings:?}", path.display());
    }
}

#[test]
fn a_file_too_large_or_missing_is_refused_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.json");
    std::fs::File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
    let error = RecipeFile::read(&path).unwrap_err();
    assert!(matches!(error, RecipeError::TooLarge { bytes, .. } if bytes == MAX_BYTES + 1), "{error}");
    let gone = Fault::from(RecipeFile::read(&dir.path().join("gone.json")).unwrap_err());
    assert_eq!(gone.class, FaultClass::Recipe);
    assert!(gone.one_line().contains("gone.json: cannot be read: No such file"), "{}", gone.one_line());
}

#[test]
fn a_file_of_nothing_but_stages_is_refused_at_once() {
    let many = vec![r#"{"type":"expert-prune"}"#; 100_000].join(",");
    let findings = recipe::check(with_stages(&format!("[{many}]")).recipe());
    assert_eq!(findings.len(), 1);
    assert!(findings[0].is_error(), "{}", findings[0]);
}

#[test]
fn unknown_stages_and_keys_survive() {
    let stage = r#"{"zeta": 1.0, "type": "polish", "alpha": [null]}"#;
    let file = with_stages(&format!(r#"[{stage}, {{"type": "deliver", "new": {{"k": null}}}}]"#));
    let stages = &file.recipe().stages;
    assert_eq!(stages[0].type_name(), "polish");
    assert_eq!(stages[0].to_value(), json!({"type": "polish", "zeta": 1.0, "alpha": [null]}));
    assert_eq!(stages[1].to_value(), json!({"type": "deliver", "new": {"k": null}}));
    // Through serde as well, as a plan or a tool would.
    let again: Vec<StageSpec> = serde_json::from_value(serde_json::to_value(stages).unwrap()).unwrap();
    assert_eq!(&again, stages);
}

#[test]
fn defaults_are_filled_in_only_where_they_are_meant() {
    let file = with_stages(
        r#"[{"type": "expert-prune", "keepExperts": 6, "metric": null},
            {"type": "quant", "format": "gguf", "quantTypes": ["Q8_0"]},
            {"type": "eval", "benchmarks": [{"name": "perplexity", "data": "t"}, {"name": "humaneval"}]}]"#,
    );
    let stages = &file.recipe().stages;
    assert_eq!(stages[1].to_value(), json!({"type": "quant", "format": "gguf", "quantTypes": ["Q8_0"]}));
    insta::assert_snapshot!(stages.iter().map(|s| s.resolved().to_string() + "\n").collect::<String>(), @r#"
    {"type":"expert-prune","keepExperts":6,"heldOutTokens":4096,"qualityHalt":false,"routerKd":false,"profileSteps":100,"expertTensorLayout":"auto"}
    {"type":"quant","format":"gguf","quantTypes":["Q8_0"],"algorithm":"rtn","calibrationTokens":32768,"calibrationLength":512,"trueSequential":false,"tuneSteps":64,"driftShare":0.5,"rotation":"none","deviceTargets":[]}
    {"type":"eval","benchmarks":[{"name":"perplexity","data":"t","submitToLeaderboard":false,"context":512,"convention":"llama.cpp"},{"name":"humaneval","submitToLeaderboard":false}],"compareToBase":true}
    "#);
    let StageSpec::Eval(eval) = &stages[2] else { panic!("{:?}", stages[2]) };
    let spec = eval.benchmarks[0].on_text().unwrap();
    assert_eq!((spec.context, spec.convention.as_str()), (512, "llama.cpp"));
    assert!(eval.benchmarks[1].on_text().is_none());
    let StageSpec::ExpertPrune(prune) = &stages[0] else { panic!("{:?}", stages[0]) };
    assert_eq!((prune.keep(), prune.keep_key(), prune.needs_profile()), (Some(6), "keepExperts", true));
    assert_eq!((file.recipe().priority(), file.recipe().cycles(), file.recipe().license()), (0, 1, "apache-2.0"));
}

#[test]
fn a_key_is_found_in_the_file() {
    let file = read(&repo("recipes/examples/moe-prune-quant.alloy.json"));
    let place = |key| file.locate(key).map(|p| (p.line, p.column));
    assert_eq!(place("stages[1].metric"), Some((34, 17)));
    assert_eq!(place("stages[1].importanceJson"), place("stages[1]"));
    assert_eq!(place("nothing"), None);
}

/// Compares a committed file with what the types say; `UPDATE_SCHEMA=1` writes it instead.
fn in_step(path: &str, text: &str) {
    let path = repo(path);
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "{} is not what the types say; write it anew with: UPDATE_SCHEMA=1 cargo test --test it recipe::",
        path.display()
    );
}

#[test]
fn the_schema_is_in_step_with_the_types() {
    in_step("docs/schema/recipe.schema.json", &recipe::recipe_schema_text());
}

#[test]
fn the_reference_is_in_step_with_the_types() {
    let mut page = std::fs::read_to_string(repo("docs/RECIPES.md")).unwrap();
    for (name, table) in [("stages", recipe::stage_reference()), ("objects", recipe::object_reference())] {
        let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
        let from = page.find(&begin).expect("the begin mark") + begin.len();
        let to = page.find(&end).expect("the end mark");
        page.replace_range(from..to, &format!("\n{table}"));
    }
    in_step("docs/RECIPES.md", &page);
    for type_name in StageSpec::TYPES {
        assert!(page.contains(&format!("### `{type_name}`")), "{type_name}");
    }
}
