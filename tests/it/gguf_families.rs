//! GGUF files of every family: what is written is the model that was given, also when it was pruned before. (That llama.cpp
//! computes the same from these files is checked by scripts/gguf_check.py.)

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use factoryline::compress::{PrunePlan, rewrite};
use factoryline::engine::PassOptions;
use factoryline::family::{self, FAMILIES, OpenModel, Role};
use factoryline::model::{Config, DeclaredTensor, Dtype, GgufValue, GgufWriter, HfDir};
use serde_json::{Value, json};

use crate::oracle::{TOLERANCE, fixture, fixtures, logits, reference, rewritten, worst, write_gguf};
use crate::worker::Bench;

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Plain f32 arithmetic.
fn exact() -> PassOptions {
    PassOptions { candle_on_cpu: true, ..PassOptions::default() }
}

/// Logits of a model's GGUF copy and of the model itself, and the largest difference.
fn copied(model: &OpenModel, gguf: &Path, ids: &[Vec<u32>]) -> (Vec<f32>, f32) {
    write_gguf(model, gguf);
    let copy = logits(gguf, ids, &exact());
    let difference = worst(&copy, &logits(&model.path, ids, &exact()));
    (copy, difference)
}

/// Changes keys of a directory's config, at the top or in the part for text.
fn reconfigure(directory: &Path, change: impl Fn(&mut Value)) {
    let path = directory.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

type Tensors = HashMap<String, Tensor>;

/// Fixtures that have what a GGUF file of their family cannot say, without it.
fn mended() -> Vec<(&'static str, tempfile::TempDir)> {
    let edited = |name: &'static str, tensors: fn(&mut Tensors), config: fn(&mut Value)| {
        let directory = rewritten(&fixture(name), tensors);
        reconfigure(directory.path(), config);
        (name, directory)
    };
    let narrow = |config: &mut Value| config["linear_value_head_dim"] = json!(16);
    vec![
        // Queries are clipped and share keys.
        edited("olmoe", with_a_key_for_every_query, |config| {
            config["clip_qkv"] = Value::Null;
            config["num_key_value_heads"] = json!(4);
        }),
        // Keys of delta nets are narrower than values.
        edited("qwen3_5-text", narrowed, narrow),
        edited("qwen3_5_moe-text", narrowed, narrow),
        // Direct queries in two blocks; experts within groups, YaRN with two different mscales.
        edited("deepseek_v2", of_27_blocks, |config| config["num_hidden_layers"] = json!(27)),
        edited(
            "deepseek_v2-grouped",
            |_| (),
            |config| {
                config["topk_method"] = json!("greedy");
                config["rope_scaling"]["mscale_all_dim"] = json!(0.707);
            },
        ),
        // Different factors for short and long texts.
        edited("phimoe-longrope", |_| (), |config| config["rope_scaling"]["long_mscale"] = json!(1.2)),
    ]
}

/// Keys and values of 8 elements, once more for the second of two query heads.
fn with_a_key_for_every_query(tensors: &mut Tensors) {
    let doubled = |tensor: &Tensor| {
        let shape = tensor.dims().to_vec();
        let heads = tensor.reshape([vec![2, 8], shape[1..].to_vec()].concat()).unwrap();
        let both = Tensor::stack(&[heads.clone(), heads], 1).unwrap();
        both.reshape([vec![32], shape[1..].to_vec()].concat()).unwrap()
    };
    for (name, tensor) in tensors.iter_mut() {
        if ["k_proj.weight", "v_proj.weight", "k_norm.weight"].iter().any(|end| name.ends_with(end)) {
            *tensor = doubled(tensor);
        }
    }
}

/// The second of two blocks over and over.
fn of_27_blocks(tensors: &mut Tensors) {
    const SECOND: &str = "model.layers.1.";
    let second: Vec<(String, Tensor)> = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(SECOND)?.to_owned(), tensor.clone())))
        .collect();
    for layer in 2..27 {
        tensors.extend(second.iter().map(|(end, tensor)| (format!("model.layers.{layer}.{end}"), tensor.clone())));
    }
}

/// Delta nets with values of 16 elements where the fixture has 24.
fn narrowed(tensors: &mut Tensors) {
    let edited: Vec<(String, Tensor)> =
        tensors.iter().filter_map(|(name, tensor)| Some((name.clone(), narrow(name, tensor)?))).collect();
    tensors.extend(edited);
}

/// Four value heads stand after 64 rows of queries and keys.
fn narrow(name: &str, tensor: &Tensor) -> Option<Tensor> {
    let cut = |values: Tensor| {
        let shape = values.dims().to_vec();
        let heads = values.reshape([vec![4, 24], shape[1..].to_vec()].concat()).unwrap();
        heads.narrow(1, 0, 16).unwrap().contiguous().unwrap().reshape([vec![64], shape[1..].to_vec()].concat()).unwrap()
    };
    let end = name.split_once("linear_attn.")?.1;
    Some(match end {
        "in_proj_qkv.weight" | "conv1d.weight" => {
            Tensor::cat(&[tensor.narrow(0, 0, 64).unwrap(), cut(tensor.narrow(0, 64, 96).unwrap())], 0).unwrap()
        }
        "in_proj_z.weight" => cut(tensor.clone()),
        "out_proj.weight" => cut(tensor.t().unwrap().contiguous().unwrap()).t().unwrap().contiguous().unwrap(),
        "norm.weight" => tensor.narrow(0, 0, 16).unwrap(),
        _ => return None,
    })
}

/// Every model that this build writes as GGUF is the same model when it is read back: all families that have rules for it.
#[test]
fn a_gguf_copy_gives_the_same_logits() {
    let dir = tempfile::tempdir().unwrap();
    let mut written = BTreeSet::new();
    let mut failed = Vec::new();
    let mended = mended();
    let as_they_are = fixtures().into_iter().map(|path| (name_of(&path), path, true));
    let changed = mended.iter().map(|(name, dir)| (format!("{name}, mended"), dir.path().to_owned(), false));
    let models: Vec<(String, PathBuf, bool)> = as_they_are.chain(changed).collect();
    let references: HashMap<String, Vec<Vec<u32>>> =
        models.iter().filter(|(.., known)| *known).map(|(name, path, _)| (name.clone(), reference(path).0)).collect();
    for (name, path, is_reference) in &models {
        let model = family::open(path).unwrap();
        if family::gguf_tensors(&model.spec).is_err() {
            assert!(is_reference, "{name}: {}", family::gguf_tensors(&model.spec).unwrap_err());
            continue;
        }
        written.insert(model.family.name());
        let ids = &references[name.split(", ").next().unwrap()];
        let (copy, difference) = copied(&model, &dir.path().join(format!("{name}.gguf")), ids);
        let from_transformers = if *is_reference { worst(&copy, &reference(path).1) } else { 0.0 };
        if difference.is_nan() || difference > 2e-5 || from_transformers > TOLERANCE {
            failed.push(format!("{name}: {difference:e} from the directory, {from_transformers:e} from transformers"));
        }
    }
    assert!(failed.is_empty(), "logits of GGUF copies differ:\n{}", failed.join("\n"));
    let with_rules: BTreeSet<&str> =
        FAMILIES.iter().filter(|family| family.gguf().is_some()).map(|family| family.name()).collect();
    assert_eq!(written, with_rules, "families written");
}

/// The fixture's mixtures, each with one expert less than it had, written by the pruner.
#[test]
fn a_gguf_copy_of_a_pruned_model_gives_the_logits_of_the_pruned_directory() {
    let dir = tempfile::tempdir().unwrap();
    let mut pruned = BTreeSet::new();
    let mended = mended();
    let changed = mended.iter().map(|(name, dir)| (*name, dir.path().to_owned()));
    for (name, path) in
        fixtures().iter().map(|path| (path.file_name().unwrap().to_str().unwrap(), path.clone())).chain(changed)
    {
        let model = family::open(&path).unwrap();
        let Some((experts, _)) = model.spec.experts() else { continue };
        if family::gguf_tensors(&model.spec).is_err() {
            continue;
        }
        let kept = model.spec.mixtures().map(|(mixture, _)| (mixture, (1..experts).collect())).collect();
        let plan = PrunePlan::new(model.storage(), experts, kept);
        let small = tempfile::tempdir().unwrap();
        rewrite(&model, &plan, small.path(), 1 << 30, &|_| ()).unwrap().1.wait().unwrap();
        let mut config = HfDir::open(&path).unwrap().config;
        config.set_experts(experts - 1);
        std::fs::write(small.path().join("config.json"), config.to_json()).unwrap();
        let model = family::open(small.path()).unwrap();
        let (ids, _) = reference(&fixture(name));
        let (_, difference) = copied(&model, &dir.path().join("pruned.gguf"), &ids);
        assert!(difference <= 2e-5, "{name}: {difference:e}");
        pruned.insert(model.family.name());
    }
    let mixtures = "deepseek_v2 granitemoe mixtral olmoe phimoe qwen3_5_moe qwen3_moe qwen3_vl_moe";
    assert_eq!(pruned.into_iter().collect::<Vec<_>>().join(" "), mixtures);
}

/// Files from before llama.cpp computed in the latent space hold keys and values of DeepSeek-V2 in one tensor.
#[test]
fn an_older_file_with_keys_and_values_in_one_tensor_is_read() {
    let mended = mended();
    let (name, directory) = mended.iter().find(|(name, _)| *name == "deepseek_v2-grouped").unwrap();
    let model = family::open(directory.path()).unwrap();
    let metadata =
        family::gguf_metadata(&model.spec, &model.config, "older").unwrap().into_iter().filter_map(|(key, value)| {
            let (arch, short) = key.split_once('.')?;
            match short {
                "attention.key_length_mla" | "attention.value_length_mla" => None,
                "attention.key_length" if arch == "deepseek2" => Some((key, GgufValue::from(24u32))),
                "attention.value_length" => Some((key, GgufValue::from(24u32))),
                _ => Some((key, value)),
            }
        });
    let metadata: Vec<(String, GgufValue)> = metadata.collect();
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    let read = |name: &str| {
        let mut values = Vec::new();
        model.tensors.read_f32(name, &mut values).unwrap();
        values
    };
    for tensor in family::gguf_tensors(&model.spec).unwrap() {
        let layer = tensor.role.and_then(Role::layer).unwrap_or(0);
        let source = tensor.sources().first().map(|source| (*source).to_owned());
        if tensor.name.ends_with("attn_v_b.weight") {
            continue;
        }
        if tensor.name.ends_with("attn_k_b.weight") {
            let source = source.unwrap();
            let shape = model.tensors.meta(&source).unwrap().shape.clone();
            tensors.push((format!("blk.{layer}.attn_kv_b.weight"), shape, read(&source)));
        } else {
            tensors.push((
                tensor.name.clone(),
                tensor.shape.clone(),
                tensor.sources().iter().flat_map(|s| read(s)).collect(),
            ));
        }
    }
    let declared =
        tensors.iter().map(|(name, shape, _)| DeclaredTensor::new(name, Dtype::F32, shape.clone())).collect();
    let path = directory.path().join("older.gguf");
    let mut writer = GgufWriter::create(&path, &metadata, declared).unwrap();
    for (name, _, values) in &tensors {
        writer.tensor(name, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    }
    writer.finish().unwrap();
    let (ids, _) = reference(&fixture(name));
    let difference = worst(&logits(&path, &ids, &exact()), &logits(directory.path(), &ids, &exact()));
    assert!(difference <= 2e-5, "{difference:e}");
}

/// What a file would be refused for by llama.cpp, or computed otherwise, is refused here first, and said.
#[test]
fn what_llama_cpp_cannot_compute_is_refused_with_its_reason() {
    let refusal = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(fixture(name).join("config.json")).unwrap()).unwrap();
        change(&mut config);
        let config = Config::from_value(Path::new("config.json"), config).unwrap();
        family::gguf_tensors(&family::spec_of(&config).unwrap()).unwrap_err().to_string()
    };
    let as_it_is: &dyn Fn(&mut Value) = &|_| ();
    for (name, change, wanted) in [
        ("olmoe", as_it_is, "clip_qkv"),
        ("deepseek_v2-grouped", as_it_is, "group_limited_greedy"),
        ("deepseek_v2", as_it_is, "by the number of blocks"),
        ("deepseek_v2", &|config| config["n_shared_experts"] = json!(0), "without shared experts"),
        ("qwen3_5-text", as_it_is, "keys and values of different widths"),
        ("phimoe-longrope", as_it_is, "short and long texts"),
        ("qwen3", &|config| config["attention_bias"] = json!(true), "model.layers.0.self_attn.o_proj.bias"),
        ("gpt_oss", as_it_is, "family \"gpt_oss\""),
    ] {
        let error = refusal(name, change);
        assert!(error.contains(wanted), "{name}: {error}");
    }
}

const TEXT: &str = "It was the best of times, it was the worst of times, it was the season of Light, it was the season of \
                    Darkness, it was the spring of hope, it was the winter of despair. ";

/// A GGUF file is a source like any other for stages that read a model; those that cut tensors out of the files refuse it.
#[test]
fn a_recipe_may_start_from_a_gguf_file() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = dir.path().join("source.gguf");
    write_gguf(&family::open(&fixture("qwen3_moe-text")).unwrap(), &gguf);
    let profile = json!({ "type": "expert-activation-profile", "calibrationCorpus": "calib.jsonl", "maxLength": 128 });
    let quant = json!({ "type": "quant", "format": "gguf", "quantTypes": ["Q8_0"] });
    let eval = json!({ "type": "eval", "benchmarks": [
        { "name": "perplexity", "data": "held.txt", "context": 32, "convention": "windowed" }
    ] });
    let bench = |stages: Value| {
        let bench = Bench::new(&gguf, "qwen3_moe", stages);
        bench.text("calib.jsonl", &format!("{}\n", json!({ "text": TEXT.repeat(2) })));
        bench.text("held.txt", &TEXT.repeat(8));
        bench.run();
        bench
    };
    let whole = bench(json!([profile, quant, eval]));
    let result = whole.json("result.json");
    assert_eq!(result["artifacts"][0]["format"], "gguf", "{result}");
    assert!(whole.json("importance.json")["calibration_tokens"].as_u64().unwrap() > 50);
    let again = family::open(&whole.args.work.join("artifact/tiny-Q8_0.gguf")).unwrap();
    assert!(again.tokenizer().unwrap().is_some());

    let prune = json!({ "type": "expert-prune", "keepExpertsPerLayer": 3, "metric": "router_l2" });
    let fault = bench(json!([prune])).fault();
    assert!(fault.contains("a GGUF file cannot be pruned in this build"), "{fault}");
}
