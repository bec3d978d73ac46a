//! What `foreman frontier` says and how it ends.

use std::fs;
use std::path::Path;
use std::process::Command;

use factoryline::frontier::Container;
use serde_json::Value;

use super::{Place, Shape, TERNARY};

fn foreman(dir: &Path, words: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_foreman"))
        .current_dir(dir)
        .env_clear()
        .arg("frontier")
        .args(words)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn checks_read_like_this() {
    let place = Place::new();
    let dir = place.dir.path();
    place.packed(&place.model(&Shape::default()), Container::TarXz);
    fs::write(dir.join("texts.txt"), "one line\nand another\n").unwrap();
    let check = |words: &[&str]| {
        let all = [&["check"], words, &["--contract", TERNARY, "--color", "never"]].concat();
        let (code, out, err) = foreman(dir, &all);
        format!("exit {code}\n{out}--- stderr\n{err}")
    };
    insta::assert_snapshot!(check(&["artifact.tar.xz", "--documents", "texts.txt", "--all-documents",
        "--best-perplexity", "300", "--best-bytes", "20000"]), @r#"
    exit 0
    contract    qwen3-27b-ternary-frontier
    artifact    artifact.tar.xz (tar.xz)
    size        18764 bytes
    bits        1.3038 per parameter, 2.2125 allowed, 115.1 k parameters
    budget      31842 bytes for a model of this size
    perplexity  257.00 (5.54908 nats per token)
    scored      17 tokens of 2 documents
    scorer      prefix_bytes (known from: assumed)
    decision    a new best (known from: docs)
    accepted
    --- stderr
    "#);
    insta::assert_snapshot!(check(&["m", "--documents", "texts.txt", "--all-documents"]), @r#"
    exit 5
    contract    qwen3-27b-ternary-frontier
    artifact    m (directory)
    size        463013 bytes
    bits        32.1716 per parameter, 2.2125 allowed, 115.1 k parameters
    budget      31842 bytes for a model of this size
    perplexity  257.00 (5.54908 nats per token)
    scored      17 tokens of 2 documents
    scorer      prefix_bytes (known from: assumed)
    rejected (quantized_size): 3704104 bits (32.1716 per parameter), 254739 are allowed (2.2125 per parameter): 431.2 kB too large
    --- stderr
    "#);
    insta::assert_snapshot!(check(&["texts.txt"]), @r#"
    exit 5
    contract  qwen3-27b-ternary-frontier
    artifact  texts.txt
    size      21 bytes
    scorer    prefix_bytes (known from: assumed)
    cannot be judged: texts.txt: is neither a folder nor a zip or tar file
    --- stderr
    hint: name a model directory, a zip file, or a tar file (plain, gz, bz2, xz)
    "#);
    insta::assert_snapshot!(check(&["missing"]), @r#"
    exit 3
    --- stderr
    error: missing is not there
    "#);
    insta::assert_snapshot!(check(&["artifact.tar.xz", "--scorer", "nobody"]), @r#"
    exit 2
    --- stderr
    error: there is no scorer "nobody"

    hint: there are: hf_loss_artifact_tokenizer, prefix_bytes, proxy_mlp, shifted_batch_validator_tokenizer
    "#);
}

#[test]
fn documents_of_one_check_are_json_and_the_result_file_is_written() {
    let place = Place::new();
    let dir = place.dir.path();
    place.model(&Shape::default());
    let (code, out, err) = foreman(dir, &["pack", "m", "tiny.tar.xz", "--width", "4", "--json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let packed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(packed["container"], "tar.xz");
    fs::write(dir.join("texts.txt"), "one line\nand another\n").unwrap();
    let words =
        ["check", "tiny.tar.xz", "--contract", TERNARY, "--documents", "texts.txt", "--last-run", "run.json", "--json"];
    let (code, out, err) = foreman(dir, &words);
    assert_eq!((code, err.as_str()), (0, ""));
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["verdict"], "accepted");
    assert_eq!(document["size"]["sha256"], packed["artifact_sha256"]);
    assert_eq!(document["documents"]["document_count"], 16);
    let run: Value = serde_json::from_slice(&fs::read(dir.join("run.json")).unwrap()).unwrap();
    assert_eq!(run["metric_value"], document["score"]["perplexity"]);
    let (code, out, _) = foreman(dir, &["list", "--json"]);
    let listing: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, listing["contracts"].as_array().unwrap().len()), (0, 4));
    assert_eq!(listing["contracts"][0]["budget"]["max_reference_bits"], 59_737_500_000u64);
}

#[test]
fn the_list_and_a_patch_read_like_this() {
    let place = Place::new();
    let (_, out, _) = foreman(place.dir.path(), &["list"]);
    insta::assert_snapshot!(out, @r#"
    CONTRACT                    ARTIFACT       BITS/PARAMETER      AT MOST   SCORER        KNOWN FROM  REFERENCE
    qwen3-27b-ternary-frontier  dir, zip, tar  2.2125              7.47 GB   prefix_bytes  assumed     Qwen/Qwen3.6-27B
    qwen3-27b-binary-frontier   dir, zip, tar  1.3125              4.43 GB   prefix_bytes  assumed     Qwen/Qwen3.6-27B
    qwen3-06b-ternary-frontier  JSON plan      3.4000000000000004  731.0 MB  proxy_mlp     code        Qwen/Qwen3-1.7B
    qwen3-06b-binary-kernel     JSON plan      2.5                 537.5 MB  proxy_mlp     code        prism-ml/Bonsai-1.7B-gguf
    "#);
    fs::write(place.path("p.diff"), "--- a/benchmark.py\n+++ b/benchmark.py\n").unwrap();
    let (code, out, _) = foreman(place.dir.path(), &["patch", "p.diff", "--contract", TERNARY]);
    insta::assert_snapshot!(format!("exit {code}\n{out}"), @r#"
    exit 5
    rejected (disallowed_patch_paths): benchmark.py
    "#);
    let (code, _, err) = foreman(place.dir.path(), &["check", "p.diff", "--contract", "nothing"]);
    insta::assert_snapshot!(format!("exit {code}\n{err}"), @r#"
    exit 2
    error: there is no contract "nothing"

    hint: there are: qwen3-27b-ternary-frontier, qwen3-27b-binary-frontier, qwen3-06b-ternary-frontier, qwen3-06b-binary-kernel
    "#);
}
