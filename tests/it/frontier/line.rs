//! From intake to a conforming archive: the example recipe on a byte-level model made here.

use std::fs;
use std::path::Path;

use factoryline::compress::{DenseTernary, F16_MANTISSA};
use factoryline::frontier::{CheckOptions, Verdict, check, pack, unpack};
use serde_json::{Map, Value, json};

use super::{Noise, Place, Shape, TERNARY, parameters, write_model};
use crate::worker::Bench;

const EXAMPLE: &str = include_str!("../../../recipes/examples/frontier-ternary.alloy.json");

/// A tokenizer whose ids are bytes + 1, as the contract's scorer reads text.
fn byte_tokenizer() -> Value {
    // Bytes that print stand for themselves, the others for characters from U+0100 on.
    let prints = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100u32;
    let mut vocab = Map::from_iter([("<pad>".to_owned(), json!(0))]);
    for byte in 0..256u32 {
        let code = if prints(byte) { byte } else { next };
        next += u32::from(code == next);
        vocab.insert(char::from_u32(code).unwrap().to_string(), json!(byte + 1));
    }
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "vocab": vocab, "merges": [] },
    })
}

/// Bell-shaped weights, rows of different sizes.
fn model(dir: &Path, hidden: usize) -> Shape {
    let shape = Shape { hidden, ..Shape::default() };
    let mut noise = Noise(0x51_7c_c1_b7_27_22_0a_95);
    write_model(dir, &shape, |name, count| {
        if name.contains("norm") {
            return vec![1.0; count];
        }
        let mut one = |i: usize| {
            let bell: f64 = (0..6).map(|_| noise.next() - 0.5).sum();
            (bell * 0.05 * (1.0 + 0.5 * (i / hidden % 7) as f64)) as f32
        };
        (0..count).map(&mut one).collect()
    });
    fs::write(dir.join("tokenizer.json"), byte_tokenizer().to_string()).unwrap();
    shape
}

fn text(lines: usize, start: u64) -> String {
    let words = ["weights", "bytes", "rows", "of", "a", "model", "fit", "into", "less", "room", "and", "scale"];
    let mut noise = Noise(start);
    let mut word = || words[(noise.next() * words.len() as f64) as usize];
    (0..lines).map(|_| (0..9).map(|_| word()).collect::<Vec<_>>().join(" ") + "\n").collect()
}

/// The example on a model of this width.
fn example(hidden: usize) -> (tempfile::TempDir, Shape, Bench) {
    let dir = tempfile::tempdir().unwrap();
    let shape = model(&dir.path().join("byte-lm"), hidden);
    let mut recipe: Value = serde_json::from_str(EXAMPLE).unwrap();
    recipe["source"]["baseModel"] = json!(dir.path().join("byte-lm"));
    recipe["stages"][0]["calibrationTokens"] = json!(2048);
    let bench = Bench::with_recipe(&recipe);
    bench.text("general.txt", &text(60, 3));
    bench.text("heldout.txt", &text(20, 9));
    (dir, shape, bench)
}

#[test]
fn on_a_calibration_the_rows_of_frequent_tokens_are_rescued() {
    let dir = tempfile::tempdir().unwrap();
    let shape = model(&dir.path().join("byte-lm"), 64);
    let model = factoryline::family::open(&dir.path().join("byte-lm")).unwrap();
    let frequent = [5, 70, 71, 200];
    let mut counts = vec![1; model.spec.vocab];
    frequent.iter().for_each(|token| counts[*token] = 10_000);
    let ternary = DenseTernary::new(&model, Some(counts), &dir.path().join("rows")).unwrap();
    // Their rows in the embedding and in the head.
    let share = 8.5 * 64.0 / parameters(&shape) as f64;
    let rescued = ternary.embedding(F16_MANTISSA, share).unwrap();
    for (token, row) in rescued.chunks(64).enumerate() {
        let mut magnitudes: Vec<u32> = row.iter().filter(|v| **v != 0.0).map(|v| v.abs().to_bits()).collect();
        magnitudes.sort_unstable();
        magnitudes.dedup();
        assert_eq!(magnitudes.len() > 1, frequent.contains(&token), "row {token}: {} magnitudes", magnitudes.len());
    }
}

#[test]
fn the_example_recipe_ends_in_an_archive_that_conforms() {
    let (_dir, shape, bench) = example(256);
    bench.run();
    let result = bench.json("result.json");
    let artifact = &result["artifacts"][0];
    assert_eq!((artifact["format"].as_str(), artifact["type"].as_str()), (Some("frontier"), Some(TERNARY)));
    let packaged = bench.args.work.join("artifact");
    let archive = packaged.join(format!("byte-lm-ternary-{TERNARY}.tar.xz"));
    assert_eq!(fs::metadata(&archive).unwrap().len(), artifact["bytes"].as_u64().unwrap());
    let bits = artifact["bits_per_weight"].as_f64().unwrap();
    assert!(bits <= 2.2125 && bits > 2.0, "{bits}: the budget is used");

    let said = result.to_string();
    let mut evidence = result["evidence"].as_array().unwrap().iter();
    let evidence = &evidence.find(|e| e["gate"] == "frontier").unwrap_or_else(|| panic!("{said}"))["figures"];
    assert_eq!((evidence["verdict"].as_str(), evidence["scorer"].as_str()), (Some("accepted"), Some("prefix_bytes")));
    let rescued = evidence["rescued_share"].as_f64().unwrap();
    // A few short rows in 4 bits may cost more than the little room there is.
    assert!((0.0..=0.1).contains(&rescued), "{rescued}");

    // The same verdict by the validator alone, and what lies in the archive.
    let place = Place::new();
    let report = check(&archive, &place.terms(), None, &CheckOptions::default(), &|_| ()).unwrap();
    assert_eq!((report.verdict, report.size.parameters), (Verdict::Unscored, Some(parameters(&shape))));
    let unpacked = unpack(&archive, place.dir.path(), Default::default()).unwrap();
    let mut names: Vec<String> =
        fs::read_dir(&unpacked.model).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    let weights = fs::read(unpacked.model.join("model.safetensors")).unwrap();
    assert!(weights.chunks_exact(2).skip(4000).all(|pair| pair != [0, 0x80]), "no negative zero");
    assert!(packaged.join("tokenizer.json").is_file() && packaged.join("model.safetensors").is_file());
    // Packing what lies there again gives the archive.
    let again = place.path("again.tar.xz");
    let packing = factoryline::frontier::Packing { container: factoryline::frontier::Container::TarXz, width: 2 };
    pack(&unpacked.model, &again, packing).unwrap();
    assert_eq!(fs::read(again).unwrap(), fs::read(&archive).unwrap());

    // The same recipe gives the same bytes, on one thread too.
    let (_other, _, second) = example(256);
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| second.run());
    assert_eq!(second.json("result.json")["artifacts"][0]["bytes"], artifact["bytes"]);
    let twin = second.args.work.join("artifact").join(archive.file_name().unwrap());
    assert_eq!(fs::read(twin).unwrap(), fs::read(&archive).unwrap());
}

#[test]
fn a_model_too_small_for_its_scales_is_a_quality_fault_with_both_sizes() {
    let (_dir, _, bench) = example(8);
    bench.run();
    let fault = bench.fault();
    assert!(fault.starts_with("quality: the smallest ternary archive has "), "{fault}");
    assert!(fault.contains("bytes, the contract allows "), "{fault}");
}
