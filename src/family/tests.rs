use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::model::GgufValue;

fn config(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Config {
    let mut value = json!({
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 512,
    });
    if let Value::Object(map) = &mut value {
        change(map);
    }
    Config::from_value(Path::new("config.json"), value).unwrap()
}

fn spec(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Result<ModelSpec, FamilyError> {
    let config = config(change);
    of_config(&config)?.spec(&config)
}

fn set(key: &str, value: Value) -> impl FnOnce(&mut serde_json::Map<String, Value>) {
    move |map| {
        map.insert(key.to_owned(), value);
    }
}

fn moe_keys(map: &mut serde_json::Map<String, Value>) {
    for (key, value) in [
        ("model_type", json!("qwen3_moe")),
        ("head_dim", json!(32)),
        ("num_local_experts", json!(8)),
        ("num_experts_per_tok", json!(2)),
        ("moe_intermediate_size", json!(48)),
    ] {
        map.insert(key.to_owned(), value);
    }
}

#[test]
fn registered_families_have_distinct_names_and_model_types() {
    let mut names: Vec<&str> = FAMILIES.iter().map(|f| f.name()).collect();
    let mut types: Vec<&str> = FAMILIES.iter().flat_map(|f| f.model_types()).copied().collect();
    for list in [&mut names, &mut types] {
        let count = list.len();
        list.sort_unstable();
        list.dedup();
        assert_eq!(list.len(), count);
    }
    assert!(FAMILIES.iter().all(|f| by_name(f.name()).is_some() && !f.model_types().is_empty()));
}

#[test]
fn a_tied_head_is_counted_once() {
    let untied = spec(|_| ()).unwrap();
    let tied = spec(set("tie_word_embeddings", json!(true))).unwrap();
    assert_eq!(untied.parameters() - tied.parameters(), 100 * 64);
    assert_eq!(tied.head, tied.embed);
    // Per block: q and o 64x64, k and v 32x64, three matrices of the MLP, two norms.
    assert_eq!(tied.blocks[0].parameters(), 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64 + 2 * 64);
}

#[test]
fn experts_stand_only_where_the_config_puts_them() {
    let spec = spec(|map| {
        moe_keys(map);
        map.insert("num_hidden_layers".to_owned(), json!(6));
        map.insert("decoder_sparse_step".to_owned(), json!(2));
        map.insert("mlp_only_layers".to_owned(), json!([3]));
    })
    .unwrap();
    let sparse: Vec<usize> = spec.blocks.iter().filter(|b| b.moe().is_some()).map(|b| b.index).collect();
    assert_eq!(sparse, [1, 5]);
    let unused = 2 * 6 * 3 * 48 * 64;
    assert_eq!(spec.parameters() - spec.active_parameters(), unused);
    assert_eq!(spec.experts(), Some((8, 2)));
    assert!(gguf_tensors(&spec).is_err(), "GGUF has one expert count for all blocks");
}

#[test]
fn what_cannot_be_computed_is_refused_by_name() {
    let refused = |change: (&str, Value)| {
        let error = spec(set(change.0, change.1)).unwrap_err();
        crate::fault::Fault::from(error)
    };
    let fault = refused(("hidden_act", json!("gelu")));
    insta::assert_snapshot!(fault, @r#"config key hidden_act = "gelu" is not supported"#);
    assert_eq!(fault.hint.as_deref(), Some("supported: silu"));
    let fault = refused(("rope_scaling", json!({"rope_type": "spiral"})));
    insta::assert_snapshot!(fault, @r#"rope scaling "spiral" is not supported"#);
    let fault = refused(("model_type", json!("bert")));
    insta::assert_snapshot!(fault, @r#"model type "bert" is not one this build knows"#);
    assert!(fault.hint.is_some_and(|h| h.contains("llama")));
    let fault = refused(("hidden_size", json!("big")));
    insta::assert_snapshot!(fault, @r#"config key hidden_size is "big", wanted a whole number of at least 1"#);
    let fault = refused(("num_key_value_heads", json!(3)));
    insta::assert_snapshot!(fault, @"config key num_key_value_heads is 3, wanted a divisor of num_attention_heads = 4");
}

#[test]
fn a_sliding_window_stands_only_where_it_cuts() {
    let windows = |window: usize, on: bool, first: usize| {
        let spec = spec(|map| {
            map.insert("model_type".to_owned(), json!("qwen2"));
            map.insert("sliding_window".to_owned(), json!(window));
            map.insert("use_sliding_window".to_owned(), json!(on));
            map.insert("max_window_layers".to_owned(), json!(first));
        })
        .unwrap();
        let windows: Vec<_> = spec.blocks.iter().map(|b| b.attention().unwrap().window).collect();
        assert_eq!(gguf_tensors(&spec).is_err(), windows.iter().any(Option::is_some), "GGUF cannot say it");
        windows
    };
    assert_eq!(windows(128, false, 0), [None, None]);
    assert_eq!(windows(128, true, 2), [None, None], "no layer slides");
    assert_eq!(windows(512, true, 0), [None, None], "the window is as long as the context");
    assert_eq!(windows(128, true, 1), [None, Some(128)]);
}

#[test]
fn rope_rules_change_the_frequencies_as_published() {
    let rope = |scaling: Value| spec(set("rope_scaling", scaling)).unwrap().rope;
    let plain = rope(Value::Null).inverse_frequencies();
    assert_eq!((plain.len(), plain[0]), (8, 1.0));
    assert!((plain[4] - 10_000f64.powf(-0.5)).abs() < 1e-12);

    let linear = rope(json!({"type": "linear", "factor": 4.0})).inverse_frequencies();
    assert!(plain.iter().zip(&linear).all(|(p, l)| (p / 4.0 - l).abs() < 1e-12));

    let llama3 = rope(json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}));
    let divisors = llama3.frequency_divisors();
    assert_eq!((divisors[0], divisors[7]), (1.0, 8.0), "short wavelengths stay, long ones slow down");
    assert!(divisors.windows(2).all(|pair| pair[0] <= pair[1]));

    let lists = |short: f64, long: f64| {
        json!({"rope_type": "longrope", "original_max_position_embeddings": 64,
        "short_factor": vec![short; 8], "long_factor": vec![long; 8], "short_mscale": 1.1})
    };
    let longrope = rope(lists(2.0, 5.0));
    assert!(plain.iter().zip(longrope.inverse_frequencies()).all(|(p, l)| (p / 2.0 - l).abs() < 1e-12));
    assert_eq!((longrope.length_class(64), longrope.length_class(65), longrope.attention_factor()), (0, 1, 1.1));
    assert_eq!(longrope.at_length(64), longrope);
    let beyond = longrope.at_length(65);
    assert!(plain.iter().zip(beyond.inverse_frequencies()).all(|(p, l)| (p / 5.0 - l).abs() < 1e-12));
    // Nothing says it: the square root of 1 + ln(512 / 64) / ln(64).
    assert!((beyond.attention_factor() - 1.5f64.sqrt()).abs() < 1e-12);

    // Up to the configured context nothing changes; twice of it stretches the longest wavelength 4 · 2 − 3 times.
    let dynamic = rope(json!({"rope_type": "dynamic", "factor": 4.0}));
    assert_eq!(dynamic.at_length(512).inverse_frequencies(), plain);
    let longer = dynamic.at_length(1024).inverse_frequencies();
    assert!((plain[0] / longer[0] - 1.0).abs() < 1e-12 && (plain[7] / longer[7] - 5.0).abs() < 1e-9);

    let yarn = rope(json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}));
    assert!((yarn.attention_factor() - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    let frequencies = yarn.inverse_frequencies();
    assert_eq!(frequencies[0], plain[0]);
    assert!((frequencies[7] - plain[7] / 4.0).abs() < 1e-12);
}

#[test]
fn gguf_stacks_experts_and_permutes_where_the_family_says() {
    let moe = spec(|map| {
        moe_keys(map);
        map.insert("norm_topk_prob".to_owned(), json!(true));
    })
    .unwrap();
    let tensors = gguf_tensors(&moe).unwrap();
    let gate = tensors.iter().find(|t| t.name == "blk.1.ffn_gate_exps.weight").unwrap();
    assert_eq!(gate.shape, [8, 48, 64]);
    assert!(matches!(&gate.content, GgufContent::Stack(sources) if sources.len() == 8));
    assert!(gguf_warnings(&moe, &[]).is_empty());
    let permuted = |spec: &ModelSpec| {
        let tensors = gguf_tensors(spec).unwrap().into_iter();
        let pieces = tensors.filter_map(|t| match t.content {
            GgufContent::Pieces(pieces) => Some((t.name, pieces)),
            _ => None,
        });
        pieces.collect::<Vec<_>>()
    };
    assert!(permuted(&moe).is_empty());

    let llama = permuted(&spec(|_| ()).unwrap());
    let names: Vec<&str> = llama.iter().map(|(name, _)| name.as_str()).take(2).collect();
    assert_eq!(names, ["blk.0.attn_q.weight", "blk.0.attn_k.weight"]);
    // Row 1 of a permuted head of 16 comes from row 8: the partner of row 0.
    let row = |r: usize| llama[0].1[0].position(r * 64) / 64;
    assert_eq!([0, 1, 2, 3, 15, 16, 17].map(row), [0, 8, 1, 9, 15, 16, 24]);
}

#[test]
fn a_family_without_gguf_rules_is_refused_naming_those_that_have_them() {
    let sinks = spec(|map| {
        moe_keys(map);
        map.insert("model_type".to_owned(), json!("gpt_oss"));
        map.insert("rope_parameters".to_owned(), json!({"rope_type": "default", "rope_theta": 1e4}));
    });
    let fault = crate::fault::Fault::from(gguf_tensors(&sinks.unwrap()).unwrap_err());
    insta::assert_snapshot!(fault, @r#"a GGUF file of a model of the family "gpt_oss" is not supported"#);
    assert!(fault.hint.unwrap().starts_with("supported: GGUF files of deepseek_v2, granitemoe, llama"));
}

#[test]
fn keys_of_nested_configs_are_found_the_nearest_first() {
    let nested = |tie: Value| {
        let text = json!({"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96,
            "vocab_size": 100, "tie_word_embeddings": true, "rope_parameters": {"rope_theta": 5e6, "rope_type": "default",
            "mrope_section": [2, 3, 3]}});
        let config = json!({"model_type": "qwen2_5_omni", "enable_audio_output": false, "talker_config": {},
            "thinker_config": {"text_config": text, "vision_config": {}, "tie_word_embeddings": tie}});
        let config = Config::from_value(Path::new("config.json"), config).unwrap();
        of_config(&config).unwrap().spec(&config).unwrap()
    };
    let spec = nested(json!(false));
    assert_eq!((spec.hidden, spec.tied, spec.rope.theta), (64, false, 5e6));
    let required: Vec<_> = spec.carried.iter().filter(|part| part.required).map(|part| part.name).collect();
    assert_eq!(required, ["vision tower"], "a talker that is switched off need not be there");
    assert!(nested(Value::Null).tied);
    let sections = set("rope_scaling", json!({"type": "mrope", "mrope_section": [2, 3]}));
    let fault = crate::fault::Fault::from(super::tests::spec(sections).unwrap_err());
    insta::assert_snapshot!(fault, @"config key rope_scaling.mrope_section is [2,3], wanted counts of pairs that add up to 8");
}

#[test]
fn gguf_metadata_is_complete_for_a_mixture() {
    let config = config(moe_keys);
    let spec = of_config(&config).unwrap().spec(&config).unwrap();
    let pairs = gguf_metadata(&spec, &config, "tiny").unwrap();
    let lines: Vec<String> = pairs
        .iter()
        .map(|(key, value)| match value {
            GgufValue::U32(n) => format!("{key} = {n}"),
            GgufValue::F32(n) => format!("{key} = {n:?}"),
            GgufValue::Text(t) => format!("{key} = {t}"),
            other => format!("{key} = {other:?}"),
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    general.architecture = qwen3moe
    general.type = model
    general.name = tiny
    qwen3moe.vocab_size = 100
    qwen3moe.context_length = 512
    qwen3moe.embedding_length = 64
    qwen3moe.block_count = 2
    qwen3moe.attention.head_count = 4
    qwen3moe.attention.head_count_kv = 2
    qwen3moe.attention.key_length = 32
    qwen3moe.attention.value_length = 32
    qwen3moe.attention.layer_norm_rms_epsilon = 1e-6
    qwen3moe.feed_forward_length = 96
    qwen3moe.expert_count = 8
    qwen3moe.expert_used_count = 2
    qwen3moe.expert_feed_forward_length = 48
    qwen3moe.expert_weights_norm = Bool(false)
    qwen3moe.rope.dimension_count = 32
    qwen3moe.rope.freq_base = 10000.0
    ");
}

#[test]
fn the_example_family_in_the_documentation_is_the_real_one() {
    let (page, file) = (include_str!("../../docs/ARCHITECTURE.md"), include_str!("olmoe.rs"));
    let (_, code) = file.split_once("pub struct").unwrap();
    assert!(page.contains(code.trim_end()), "docs/ARCHITECTURE.md quotes another src/family/olmoe.rs");
}

/// Totals of the published weight files, from configs with the published geometry.
#[test]
fn published_geometry_gives_the_published_number_of_parameters() {
    let mixture = |kind: &str, [layers, hidden, inner, heads, kv_heads, vocab]: [usize; 6], experts: (usize, usize)| {
        json!({"model_type": kind, "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner,
            "moe_intermediate_size": inner, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "vocab_size": vocab, "num_local_experts": experts.0, "num_experts_per_tok": experts.1})
    };
    let with = |mut config: Value, keys: Value| {
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    };
    let count = |config: Value| {
        let config = Config::from_value(Path::new("config.json"), config).unwrap();
        of_config(&config).unwrap().spec(&config).unwrap().parameters()
    };
    assert_eq!(count(mixture("mixtral", [32, 4096, 14336, 32, 8, 32000], (8, 2))), 46_702_792_704);
    assert_eq!(count(mixture("olmoe", [16, 2048, 1024, 16, 16, 50304], (64, 8))), 6_919_161_856);
    let biases = json!({"attention_bias": true, "lm_head_bias": true});
    assert_eq!(count(with(mixture("phimoe", [32, 4096, 6400, 32, 8, 32064], (16, 2)), biases)), 41_873_153_344);
    let wide = json!({"head_dim": 128});
    let qwen = [48, 2048, 768, 32, 4, 151_936];
    assert_eq!(count(with(mixture("qwen3_moe", qwen, (128, 8)), wide.clone())), 30_532_122_624);
    assert_eq!(count(with(mixture("qwen3_vl_moe", qwen, (128, 8)), wide)), 30_532_122_624);
}
