use serde_json::{Value, json};

use super::*;
use crate::model::{DeclaredTensor, GgufWriter};

/// The byte-to-character map of byte-level BPE, in byte order.
fn byte_characters() -> Vec<char> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    let mut map = |b: u32| {
        let code = if printable(b) {
            b
        } else {
            {
                next += 1;
                next - 1
            }
        };
        char::from_u32(code).unwrap()
    };
    (0..256).map(&mut map).collect()
}

/// A small byte-level BPE with a few merges and special tokens, split as `pre` does.
fn write_tokenizer(dir: &Path, pre: &str, string_merges: bool) {
    let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"), ("1", "2"), ("12", "3")];
    let mut tokens: Vec<String> = vec!["<|end|>".to_owned(), "<s>".to_owned()];
    tokens.extend(byte_characters().iter().map(char::to_string));
    tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let vocab: Value =
        tokens.iter().enumerate().map(|(i, t)| (t.clone(), json!(i))).collect::<serde_json::Map<_, _>>().into();
    let split = splitting::named(pre).unwrap();
    let merges: Vec<Value> =
        merges.iter().map(|(a, b)| if string_merges { json!(format!("{a} {b}")) } else { json!([a, b]) }).collect();
    let added = |id: usize, special: bool| {
        json!({"id": id, "content": tokens.get(id).cloned().unwrap_or("<think>".to_owned()), "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": special})
    };
    let text = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, true), added(1, true), added(tokens.len(), false)],
        "normalizer": split.normalizer(), "pre_tokenizer": split.pre_tokenizer(), "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": split.ignore_merges, "vocab": vocab, "merges": merges}});
    std::fs::write(dir.join("tokenizer.json"), text.to_string()).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "<|end|>"}, "add_bos_token": true,
        "chat_template": "{{ x }}"});
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
}

const TEXT: &str = "hello hello, it's 12345 – naïve\n\n  tabs\tand 世界 🙂 <|end|>x HELLO'LL   end  ";

#[test]
fn a_tokenizer_survives_the_way_through_gguf() {
    for (pre, string_merges) in [
        ("smollm", true),
        ("gpt-2", false),
        ("olmo", false),
        ("qwen2", false),
        ("qwen35", true),
        ("deepseek-llm", false),
        ("llama-bpe", true),
        ("dbrx", true),
    ] {
        let dir = tempfile::TempDir::new().unwrap();
        write_tokenizer(dir.path(), pre, string_merges);
        let original = Tokenizer::open(dir.path()).unwrap();
        let export = export_gguf(dir.path(), 270).unwrap();
        assert_eq!(export.pre, pre);
        assert_eq!((export.tokens, export.special.bos, export.special.eos), (266, Some(1), Some(0)));

        let path = dir.path().join("m.gguf");
        let writer = GgufWriter::create(&path, &export.metadata, Vec::<DeclaredTensor>::new()).unwrap();
        writer.finish().unwrap();
        let file = GgufFile::open(&path).unwrap();
        let kinds = file.value("tokenizer.ggml.token_type").unwrap().as_i32s().unwrap();
        assert_eq!((kinds[0], kinds[2], kinds[265], kinds[266]), (3, 1, 4, 5));
        assert_eq!(file.str("tokenizer.chat_template").unwrap(), "{{ x }}");
        let again = Tokenizer::of_gguf(&file).unwrap();
        assert_eq!(again.special(), original.special());
        assert!(again.add_bos());
        let ids = original.encode(TEXT).unwrap();
        assert_eq!(again.encode(TEXT).unwrap(), ids, "{pre}");
        assert_eq!(original.decode(&ids).unwrap(), TEXT);
    }
}

#[test]
fn splitting_decides_how_digits_fall() {
    let count = |pre: &str| {
        let dir = tempfile::TempDir::new().unwrap();
        write_tokenizer(dir.path(), pre, false);
        Tokenizer::open(dir.path()).unwrap().encode("12345").unwrap().len()
    };
    assert_eq!((count("smollm"), count("qwen2"), count("gpt-2"), count("llama-bpe")), (5, 5, 3, 3));
}

#[test]
fn what_gguf_cannot_say_is_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    write_tokenizer(dir.path(), "gpt-2", false);
    let file = dir.path().join("tokenizer.json");
    let good: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut changed = good.clone();
        change(&mut changed);
        std::fs::write(&file, changed.to_string()).unwrap();
        export_gguf(dir.path(), 270).unwrap_err().to_string().replace(&format!("{}/", dir.path().display()), "")
    };
    insta::assert_snapshot!(refused(&|t| t["normalizer"] = json!({"type": "Lowercase"})), @r#"tokenizer.json: the normalizer "Lowercase" has no counterpart in GGUF known to this build"#);
    insta::assert_snapshot!(refused(&|t| t["pre_tokenizer"] = json!({"type": "Whitespace"})), @r#"tokenizer.json: the pre_tokenizer {"type":"Whitespace"} with ignore_merges false has no counterpart in GGUF known to this build"#);
    insta::assert_snapshot!(refused(&|t| t["model"]["byte_fallback"] = json!(true)), @r#"tokenizer.json: sentencepiece-style BPE with the normalizer null and the pre_tokenizer {"type":"Sequence","pretokenizers":[{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]} has no counterpart in GGUF known to this build"#);
    insta::assert_snapshot!(refused(&|t| t["added_tokens"][2]["id"] = json!(999)), @"tokenizer.json: knows 1000 tokens, but the model has only 270 embedding rows");
}

#[test]
fn a_template_decides_about_the_first_token() {
    let dir = tempfile::TempDir::new().unwrap();
    write_tokenizer(dir.path(), "gpt-2", false);
    assert!(Tokenizer::open(dir.path()).unwrap().add_bos());
    let file = dir.path().join("tokenizer.json");
    let mut changed: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    let mut with_single = |single: Value| {
        changed["post_processor"] = json!({"type": "TemplateProcessing", "single": single,
            "pair": [sequence.clone(), {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}});
        std::fs::write(&file, changed.to_string()).unwrap();
        Tokenizer::open(dir.path()).unwrap().add_bos()
    };
    assert!(with_single(json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}, sequence])));
    assert!(!with_single(json!([sequence])));
}

fn tokenizer_value(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("tokenizer.json")).unwrap()).unwrap()
}

/// A small sentencepiece-style BPE: three special tokens, the bytes, characters, merges.
fn write_sentencepiece(dir: &Path, change: impl Fn(&mut Value)) {
    let merges = ["h e", "l l", "he ll", "hell o", "▁ hello", "▁ ▁", "a b", "b c", "ab c"];
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend("▁abcdefghijklmnopqrstuvwxyz".chars().map(String::from));
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added: Vec<Value> = (0..3)
        .map(|id| {
            json!({"id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let mut text = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges}});
    change(&mut text);
    std::fs::write(dir.join("tokenizer.json"), text.to_string()).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": true});
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
}

#[test]
fn a_sentencepiece_tokenizer_survives_the_way_through_gguf() {
    let metaspace = |scheme: &str, text: &mut Value| {
        text["normalizer"] = Value::Null;
        let split = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        text["pre_tokenizer"] = split;
    };
    for (scheme, prefix) in [(None, true), (Some("first"), true), (Some("never"), false)] {
        let dir = tempfile::TempDir::new().unwrap();
        write_sentencepiece(dir.path(), |text| scheme.into_iter().for_each(|scheme| metaspace(scheme, text)));
        let original = Tokenizer::open(dir.path()).unwrap();
        let path = dir.path().join("m.gguf");
        let metadata = original.gguf_metadata(300).unwrap();
        GgufWriter::create(&path, &metadata, Vec::<DeclaredTensor>::new()).unwrap().finish().unwrap();
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(file.opt_bool("tokenizer.ggml.add_space_prefix").unwrap(), Some(prefix));
        let kinds = file.value("tokenizer.ggml.token_type").unwrap().as_i32s().unwrap();
        assert_eq!((kinds[0], kinds[1], kinds[3], kinds[259], kinds[299]), (2, 3, 6, 1, 5));
        let again = Tokenizer::of_gguf(&file).unwrap();
        assert_eq!(again.special(), original.special());
        // A Metaspace adds no second space to a text that begins with one; GGUF has no word for that.
        let metaspace = tokenizer_value(dir.path())["pre_tokenizer"].is_object();
        let texts = ["hello hello  abc", "naïve 世界 🙂\n\tabcabc", "", " hello"];
        for text in texts.into_iter().filter(|text| !(metaspace && prefix && text.starts_with(' '))) {
            let ids = original.encode(text).unwrap();
            assert_eq!(again.encode(text).unwrap(), ids, "{text:?}");
            assert_eq!(again.decode(&ids).unwrap(), text);
        }
    }
    let dir = tempfile::TempDir::new().unwrap();
    write_sentencepiece(dir.path(), |text| text["pre_tokenizer"] = json!({"type": "Whitespace"}));
    assert!(matches!(export_gguf(dir.path(), 300), Err(ModelError::Unsupported { .. })));
}
