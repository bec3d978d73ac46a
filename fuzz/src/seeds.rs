//! Where hostile bytes start from: whole files of each kind, small. Used by the fuzz targets and by `tests/it/hostile.rs`.

use std::fs;
use std::path::Path;

use factoryline::model::{DeclaredTensor, Dtype, GgufValue, GgufWriter, SafetensorsWriter};

/// Seeds of a target; `dir` is room to write in.
pub fn of(target: &str, dir: &Path) -> Vec<Vec<u8>> {
    match target {
        "recipe" | "plan" => recipes(),
        "safetensors" => safetensors(dir),
        "gguf" => ggufs(dir),
        "config" => configs(),
        _ => lines(),
    }
}

/// Files of the repository whose name ends so, below a folder; the largest are left out.
fn files(below: &str, ending: &str) -> Vec<Vec<u8>> {
    let mut open = vec![Path::new(super::REPOSITORY).join(below)];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() && !path.is_symlink() {
            open.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if path.to_string_lossy().ends_with(ending) {
            found.extend(fs::read(&path).ok().filter(|bytes| bytes.len() < 16_384).map(|bytes| (path, bytes)));
        }
    }
    found.sort();
    found.into_iter().map(|(_, bytes)| bytes).collect()
}

fn marked(which: u8, bytes: &[u8]) -> Vec<u8> {
    [&[which], bytes].concat()
}

fn recipes() -> Vec<Vec<u8>> {
    let mut seeds = files("recipes", ".alloy.json");
    seeds.extend(files("tests/fixtures/recipes", ".json"));
    seeds.push(br#"{"name":"x","version":"1.0.0","source":{"baseModel":"m","architecture":"a"},"stages":[]}"#.to_vec());
    seeds
}

fn tensors() -> Vec<DeclaredTensor> {
    vec![
        DeclaredTensor::new("a", Dtype::BF16, [2, 3]),
        DeclaredTensor::new("b.weight", Dtype::F32, []),
        DeclaredTensor::new("none", Dtype::I8, [0, 4]),
    ]
}

fn safetensors(dir: &Path) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for limit in [1 << 20, 8] {
        let out = dir.join(format!("seeds-{limit}"));
        fs::create_dir_all(&out).expect("a folder");
        let mut writer = SafetensorsWriter::create(&out, tensors(), limit).expect("begin");
        for (name, bytes) in [("a", 12), ("b.weight", 4), ("none", 0)] {
            writer.tensor(name, &vec![1; bytes]).expect("write");
        }
        writer.finish().expect("finish");
        for entry in fs::read_dir(&out).expect("list").flatten() {
            let which = u8::from(entry.path().extension().is_some_and(|ending| ending == "json"));
            seeds.push(marked(which, &fs::read(entry.path()).expect("read")));
        }
    }
    seeds.sort();
    seeds
}

fn gguf(dir: &Path, metadata: &[(String, GgufValue)], tensors: Vec<(DeclaredTensor, usize)>) -> Vec<u8> {
    let path = dir.join("seed.gguf");
    let declared = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
    let mut writer = GgufWriter::create(&path, metadata, declared).expect("begin");
    for (tensor, bytes) in tensors {
        writer.tensor(&tensor.name, &vec![0; bytes]).expect("write");
    }
    writer.finish().expect("finish");
    fs::read(&path).expect("read")
}

/// A file with every kind of value, a whole tiny model, an importance matrix.
fn ggufs(dir: &Path) -> Vec<Vec<u8>> {
    let key = |name: &str, value: GgufValue| (name.to_owned(), value);
    let some = vec![
        key("general.architecture", "test".into()),
        key("t.list", vec!["x".to_owned(), "é".to_owned()].into()),
        key("t.float", 0.5f32.into()),
        key("t.flag", true.into()),
        key("t.ids", vec![1i32, -2].into()),
    ];
    let small =
        || vec![(DeclaredTensor::new("w", Dtype::Q8_0, [2, 32]), 68), (DeclaredTensor::new("n", Dtype::F32, [3]), 12)];
    let count = |name: &str, value: u32| key(name, value.into());
    let model = vec![
        key("general.architecture", "llama".into()),
        count("llama.block_count", 1),
        count("llama.embedding_length", 4),
        count("llama.feed_forward_length", 4),
        count("llama.attention.head_count", 2),
        count("llama.context_length", 8),
        key("llama.attention.layer_norm_rms_epsilon", 1e-5f32.into()),
        key("tokenizer.ggml.model", "gpt2".into()),
        key("tokenizer.ggml.tokens", vec!["a".to_owned(), "b".to_owned()].into()),
        key("tokenizer.ggml.merges", vec!["a b".to_owned()].into()),
        key("tokenizer.ggml.token_type", vec![1i32, 1].into()),
    ];
    let mut weights = vec![(DeclaredTensor::new("token_embd.weight", Dtype::F32, [2, 4]), 32)];
    weights.push((DeclaredTensor::new("output_norm.weight", Dtype::F32, [4]), 16));
    for norm in ["attn_norm", "ffn_norm"] {
        weights.push((DeclaredTensor::new(format!("blk.0.{norm}.weight"), Dtype::F32, [4]), 16));
    }
    for matrix in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        weights.push((DeclaredTensor::new(format!("blk.0.{matrix}.weight"), Dtype::F32, [4, 4]), 64));
    }
    let matrix = vec![
        (DeclaredTensor::new("blk.0.ffn_up.weight.in_sum2", Dtype::F32, [2, 4]), 32),
        (DeclaredTensor::new("blk.0.ffn_up.weight.counts", Dtype::F32, [2, 1]), 8),
    ];
    let list = [&1i32.to_le_bytes()[..], &1i32.to_le_bytes(), b"w", &2i32.to_le_bytes(), &1i32.to_le_bytes(), &[0; 4]];
    let matrix = gguf(dir, &[key("general.type", "imatrix".into())], matrix);
    vec![gguf(dir, &some, small()), gguf(dir, &model, weights), matrix, list.concat()]
}

fn configs() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for config in files("tests/fixtures/models", "config.json") {
        seeds.push(marked(0, &config));
        seeds.push(marked(2, &config));
    }
    seeds.extend(files("tests/fixtures/packed", "config.json").iter().map(|config| marked(3, config)));
    let example = include_bytes!("../../factory_node.toml.example");
    seeds.push(marked(1, example));
    // With every commented key in place.
    let open: Vec<&[u8]> = example.split(|byte| *byte == b'\n').collect();
    let open: Vec<&[u8]> = open
        .iter()
        .map(|line| line.strip_prefix(b"#").filter(|rest| !rest.starts_with(b" ")).unwrap_or(line))
        .collect();
    seeds.push(marked(1, &open.join(&b'\n')));
    seeds
}

fn lines() -> Vec<Vec<u8>> {
    let token = "0123456789abcdef0123456789abcdef";
    let result = format!(
        r#"{{"completed_at":"2026-01-01T00:00:00Z","forged_dir":"artifact","modelHash":"sha256:0","fileHashes":[{{"filename":"a","sha256":"0","size":1}}],"attempt_token":"{token}","attempt":1,"elapsed_s":1.5}}"#
    );
    let attempt = format!(
        r#"{{"token":"{token}","attempt":1,"part":"x.alloy.json","retries":0,"since":"","host":"h","pid":1,"start_ticks":2,"boot_id":"b"}}"#
    );
    let texts: [(u8, &str); 18] = [
        (
            0,
            "{\"timestamp\":\"2026-01-01T00:00:00.000Z\",\"host\":\"h\",\"kind\":\"line/started\",\"seq\":1}\n{\"timestamp\":\"\",\"kind\":\"forge/started\",\"alloy\":\"x\",\"seq\":18446744073709551615}\n{\"ki",
        ),
        (1, "{\"at\":\"2026-01-01T00:00:00Z\",\"outcome\":\"finished\"}\n{\"at\":\"20"),
        (2, &result),
        (7, &result),
        (3, r#"{"failed_at":"","error":"e","class":"infra","hint":null,"log_tail":["a"],"part_inode":7}"#),
        (4, r#"{"not_before":"2026-01-01T00:00:00.000Z","reason":"r","class":"infra","retries":1,"arrived_at":"x"}"#),
        (
            5,
            r#"{"pid":1,"start_ticks":1,"boot_id":"b","state":"building","seq":2,"beat_at_uptime_s":1e300,"interval_s":30}"#,
        ),
        (
            6,
            "{\"type\":\"stage_started\",\"stage\":\"quant\",\"index\":1,\"of\":3}\n{\"type\":\"progress\",\"stage\":\"eval\",\"fraction\":0.5}",
        ),
        (8, r#"{"class":"source","message":"m","hint":"h","stage":"s","causes":["c"]}"#),
        (8, &attempt),
        (9, r#"{"schemaVersion":1,"stages":{}}"#),
        (
            10,
            r#"{"schema":"factoryline.manifest.v1","fileHashes":[{"filename":"../a","sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}]}"#,
        ),
        (11, "{\"text\":\"a\"}\n{\"content\":\"b\"}\n"),
        (
            11,
            r#"{"num_hidden_layers":1,"num_experts":2,"num_experts_per_tok":1,"activation_counts":{"0":[1,1]},"metric_version":"v1.activation_count","tool":"t","calibration_examples":1,"calibration_tokens":2}"#,
        ),
        (12, "x.retry3.alloy.json"),
        (12, "x.error.2.json"),
        (12, "x~2.recipe.json"),
        (12, "x.retry4294967295.alloy.json"),
    ];
    texts.iter().map(|(which, text)| marked(*which, text.as_bytes())).collect()
}
