//! Tokenizers against the ids the tokenizers library gave for the same texts, straight and by way of GGUF.

use std::path::Path;

use factoryline::model::{GgufFile, GgufWriter, Tokenizer, export_gguf};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn ids_are_the_reference_ids_also_through_gguf() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers");
    let cases: Value = serde_json::from_slice(&std::fs::read(fixtures.join("cases.json")).unwrap()).unwrap();
    let texts: Vec<&str> = cases["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    for (name, pre) in [("gpt2", "gpt-2"), ("qwen2", "qwen2"), ("smollm", "smollm")] {
        let dir = TempDir::new().unwrap();
        std::fs::copy(fixtures.join(format!("{name}.json")), dir.path().join("tokenizer.json")).unwrap();
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        let export = export_gguf(dir.path(), tokenizer.vocab_size()).unwrap();
        assert_eq!(export.pre, pre);
        let path = dir.path().join("vocabulary.gguf");
        GgufWriter::create(&path, &export.metadata, Vec::new()).unwrap().finish().unwrap();
        let through_gguf = Tokenizer::of_gguf(&GgufFile::open(&path).unwrap()).unwrap();

        let expected = cases["ids"][name].as_array().unwrap();
        assert_eq!(expected.len(), texts.len());
        for (text, ids) in texts.iter().zip(expected) {
            let ids: Vec<u32> = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(through_gguf.encode(text).unwrap(), ids, "{name} through GGUF: {text:?}");
        }
    }
}
