//! Model files through the public doors: what is written is read back, what is damaged is refused by name.

use std::fs;
use std::path::Path;

use factoryline::codec::{Dtype, codec_for};
use factoryline::model::gguf::{GgufFile, GgufWriter};
use factoryline::model::safetensors::{INDEX_FILE, SINGLE_FILE, SafetensorsModel, SafetensorsWriter};
use factoryline::model::{DeclaredTensor, GgufValue, ModelError, TensorSource, hash_file, transcode_rows};
use proptest::prelude::*;
use tempfile::TempDir;

/// A safetensors file from a header text and data, without any of the writer's checks.
fn raw_safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out
}

fn message(result: Result<impl Sized, ModelError>, dir: &Path) -> String {
    let Err(error) = result else { panic!("a damaged file was accepted") };
    let fault = factoryline::fault::Fault::from(error);
    let hint = fault.hint.clone().map(|hint| format!(" [{hint}]")).unwrap_or_default();
    (fault.one_line() + &hint).replace(&format!("{}/", dir.display()), "").replace(&dir.display().to_string(), "DIR")
}

#[test]
fn damaged_safetensors_are_refused_with_file_tensor_and_cause() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join(SINGLE_FILE);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("a header of 4 GB", 4_000_000_000u64.to_le_bytes().to_vec()),
        ("cut in the header", raw_safetensors(r#"{"a":"#, b"")[..10].to_vec()),
        ("no JSON", raw_safetensors("{nonsense", b"")),
        ("data cut off", raw_safetensors(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, b"1234")),
        ("size", raw_safetensors(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, b"12345678")),
        (
            "overlap",
            raw_safetensors(
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
                b"123456",
            ),
        ),
        (
            "gap",
            raw_safetensors(
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}"#,
                b"123456",
            ),
        ),
        (
            "twice",
            raw_safetensors(
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#,
                b"1234",
            ),
        ),
        (
            "overflow",
            raw_safetensors(
                r#"{"a":{"dtype":"F32","shape":[9223372036854775807,8],"data_offsets":[0,8]}}"#,
                b"12345678",
            ),
        ),
        ("backwards", raw_safetensors(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}}"#, b"12")),
        ("trailing", raw_safetensors(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#, b"1234")),
        ("type", raw_safetensors(r#"{"a":{"dtype":"F9","shape":[2],"data_offsets":[0,2]}}"#, b"12")),
        ("packed type", raw_safetensors(r#"{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}"#, b"12")),
    ];
    let mut seen = String::new();
    for (what, bytes) in cases {
        fs::write(&file, bytes).unwrap();
        seen += &format!("{what}: {}\n", message(SafetensorsModel::open(dir.path()), dir.path()));
    }
    insta::assert_snapshot!(seen, @r##"
empty: model.safetensors: 0 bytes are too few for a safetensors file [the file is damaged or incomplete: copy or download it again]
a header of 4 GB: model.safetensors: the header claims 4000000000 bytes; at most 100000000 are allowed [this is not a safetensors file, or it is damaged]
cut in the header: model.safetensors: cut off inside the header: 5 bytes claimed, 2 present [the file is damaged or incomplete: copy or download it again]
no JSON: model.safetensors: the header is not valid JSON: key must be a string at line 1 column 2 [the file is damaged or incomplete: copy or download it again]
data cut off: model.safetensors: tensor "a": its data ends at 8, but the file has only 4 bytes of data [the file is damaged or incomplete: copy or download it again]
size: model.safetensors: tensor "a": F32 [3] needs 12 bytes, the header gives 8 [the file is damaged or incomplete: copy or download it again]
overlap: model.safetensors: tensor "b": its data overlaps the tensor before it (115 for 117) [the file is damaged or incomplete: copy or download it again]
gap: model.safetensors: tensor "b": its data leaves a gap before it (117 for 115) [the file is damaged or incomplete: copy or download it again]
twice: model.safetensors: tensor "a": the header names it twice [the file is damaged or incomplete: copy or download it again]
overflow: model.safetensors: tensor "a": the shape [9223372036854775807, 8] overflows [the file is damaged or incomplete: copy or download it again]
backwards: model.safetensors: tensor "a": its data ends (0) before it begins (2) [the file is damaged or incomplete: copy or download it again]
trailing: model.safetensors: 2 bytes after the last tensor belong to none [the file is damaged or incomplete: copy or download it again]
type: model.safetensors: tensor "a": bad header entry: unknown variant `F9`, expected one of `BOOL`, `F4`, `F6_E2M3`, `F6_E3M2`, `U8`, `I8`, `F8_E5M2`, `F8_E4M3`, `F8_E8M0`, `F8_E4M3FNUZ`, `F8_E5M2FNUZ`, `I16`, `U16`, `F16`, `BF16`, `I32`, `U32`, `F32`, `C64`, `F64`, `I64`, `U64` at line 1 column 13 [the file is damaged or incomplete: copy or download it again]
packed type: model.safetensors: tensor "a": type F4 is not known to this build [convert the model to bf16, f16 or f32 first]
"##);
}

/// Two shards with one tensor each, and their index.
fn sharded(dir: &Path) {
    let tensors = vec![DeclaredTensor::new("a", Dtype::F32, [4]), DeclaredTensor::new("b", Dtype::F32, [4])];
    let mut writer = SafetensorsWriter::create(dir, tensors, 16).unwrap();
    writer.tensor("a", &[1; 16]).unwrap();
    writer.tensor("b", &[2; 16]).unwrap();
    let written = writer.finish().unwrap();
    assert_eq!(written.weights.len(), 2);
    for file in written.weights.iter().chain(&written.index) {
        assert_eq!(hash_file(&dir.join(&file.filename)).unwrap(), (file.sha256, file.size));
    }
}

#[test]
fn shards_and_index_that_disagree_are_refused() {
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let mut seen = String::new();
    let mut case = |what: &str, break_it: &dyn Fn(&Path)| {
        let dir = TempDir::new().unwrap();
        sharded(dir.path());
        assert_eq!(SafetensorsModel::open(dir.path()).unwrap().metas().len(), 2);
        break_it(dir.path());
        seen += &format!("{what}: {}\n", message(SafetensorsModel::open(dir.path()), dir.path()));
    };
    let index = |map: &str| format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#);
    let rewrite = |map: &str| {
        let text = index(map);
        move |dir: &Path| fs::write(dir.join(INDEX_FILE), &text).unwrap()
    };
    case("missing shard", &|dir| fs::remove_file(dir.join(two)).unwrap());
    case("not in the shard", &rewrite(&format!(r#"{{"a":"{one}","b":"{two}","c":"{two}"}}"#)));
    case("wrong shard", &rewrite(&format!(r#"{{"a":"{two}","b":"{one}"}}"#)));
    case("not in the index", &|dir| {
        let both = index(&format!(r#"{{"a":"{one}"}}"#));
        fs::write(dir.join(INDEX_FILE), both).unwrap();
        fs::rename(dir.join(two), dir.join("other.safetensors")).unwrap();
        fs::copy(dir.join("other.safetensors"), dir.join(one)).unwrap();
    });
    case("stray shard", &rewrite(&format!(r#"{{"a":"{one}"}}"#)));
    case("climbs out", &rewrite(r#"{"a":"../x.safetensors"}"#));
    case("absolute", &rewrite(r#"{"a":"/etc/passwd"}"#));
    case("no index", &|dir| fs::remove_file(dir.join(INDEX_FILE)).unwrap());
    case("two models", &|dir| fs::write(dir.join(SINGLE_FILE), raw_safetensors("{}", b"")).unwrap());
    insta::assert_snapshot!(seen, @r##"
missing shard: model.safetensors.index.json: the shard model-00002-of-00002.safetensors is missing [copy or download the missing shard]
not in the shard: model.safetensors.index.json: tensor "c": the index puts it into model-00002-of-00002.safetensors, which lacks it [index and shards do not belong together: download both again]
wrong shard: model-00001-of-00002.safetensors: tensor "a": the index puts it into model-00002-of-00002.safetensors [index and shards do not belong together: download both again]
not in the index: model-00001-of-00002.safetensors: tensor "b": it is not in the index [index and shards do not belong together: download both again]
stray shard: model.safetensors.index.json: model-00002-of-00002.safetensors lies beside the shards but is not in the index [remove the stray file, or restore the index that belongs to it]
climbs out: model.safetensors.index.json: the shard name "../x.safetensors" leaves the model's directory [do not use an index that reaches outside its directory]
absolute: model.safetensors.index.json: the shard name "/etc/passwd" leaves the model's directory [do not use an index that reaches outside its directory]
no index: DIR: holds 2 safetensors files but no model.safetensors.index.json [the index is missing: copy or download it, or name one file]
two models: DIR: holds both model.safetensors and an index of other files [two models share the directory: remove the one that is not meant]
"##);
}

#[test]
fn a_linked_shard_is_read() {
    let dir = TempDir::new().unwrap();
    sharded(dir.path());
    let (name, blob) = (dir.path().join("model-00002-of-00002.safetensors"), dir.path().join("blob"));
    fs::rename(&name, &blob).unwrap();
    std::os::unix::fs::symlink(&blob, &name).unwrap();
    let model = SafetensorsModel::open(dir.path()).unwrap();
    assert_eq!(&*model.bytes("b").unwrap(), [2; 16]);
}

#[test]
fn an_unfinished_writer_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let tensors = vec![DeclaredTensor::new("a", Dtype::F32, [4]), DeclaredTensor::new("b", Dtype::F32, [4])];
    let mut writer = SafetensorsWriter::create(dir.path(), tensors.clone(), 1 << 20).unwrap();
    writer.tensor("a", &[1; 16]).unwrap();
    assert!(matches!(writer.begin("c"), Err(ModelError::Misuse { .. })));
    assert!(matches!(writer.finish(), Err(ModelError::Misuse { .. })));
    let mut writer = GgufWriter::create(&dir.path().join("m.gguf"), &[], tensors).unwrap();
    writer.begin("a").unwrap();
    writer.write(&[0; 8]).unwrap();
    assert!(matches!(writer.end(), Err(ModelError::Misuse { .. })));
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn writers_are_deterministic_and_readable_by_all() {
    use std::os::unix::fs::PermissionsExt;
    let hashes: Vec<_> = (0..2)
        .map(|_| {
            let dir = TempDir::new().unwrap();
            sharded(dir.path());
            let file = dir.path().join(INDEX_FILE);
            let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode & 0o133, 0, "no execution, and nobody else writes: {mode:o}");
            assert_eq!(mode & 0o600, 0o600);
            hash_file(&file).unwrap()
        })
        .collect();
    assert_eq!(hashes[0], hashes[1]);
}

fn small_gguf(path: &Path) {
    let metadata = vec![
        ("general.architecture".to_owned(), GgufValue::from("test")),
        ("test.list".to_owned(), GgufValue::from(vec!["x".to_owned(), "é".to_owned()])),
        ("test.float".to_owned(), GgufValue::from(0.5f32)),
        ("test.flag".to_owned(), GgufValue::from(true)),
        ("test.ids".to_owned(), GgufValue::from(vec![1i32, -2])),
    ];
    let tensors = vec![DeclaredTensor::new("w", Dtype::Q8_0, [2, 32]), DeclaredTensor::new("n", Dtype::F32, [3])];
    let mut writer = GgufWriter::create(path, &metadata, tensors).unwrap();
    let values: Vec<f32> = (0..64).map(|i| i as f32 - 20.0).collect();
    let mut encoded = vec![0; 68];
    codec_for(Dtype::Q8_0).unwrap().encode(&values, &mut encoded);
    writer.tensor("w", &encoded).unwrap();
    writer.tensor("n", &[0; 12]).unwrap();
    let hash = writer.finish().unwrap();
    assert_eq!(hash_file(path).unwrap(), (hash.sha256, hash.size));
    let file = GgufFile::open(path).unwrap();
    assert_eq!(file.metadata(), metadata);
    assert_eq!(file.meta("w").unwrap().shape, [2, 32]);
    let mut row = Vec::new();
    file.read_rows_f32("w", 1..2, &mut row).unwrap();
    assert!((row[31] - 43.0).abs() < 0.2, "{row:?}");
}

#[test]
fn damaged_gguf_is_refused_with_a_cause() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("m.gguf");
    small_gguf(&path);
    let good = fs::read(&path).unwrap();
    let find = |needle: &[u8]| good.windows(needle.len()).position(|w| w == needle).unwrap();
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    // A tensor info: name, u32 dimensions, u64 each, u32 type, u64 offset.
    let (w, n) = (find(b"\x01\0\0\0\0\0\0\0w") + 9, find(b"\x01\0\0\0\0\0\0\0n") + 9);
    let cases = [
        ("magic", patched(0, b"GGML")),
        ("version 1", patched(4, &1u32.to_le_bytes())),
        ("big-endian", patched(4, &3u32.to_be_bytes())),
        ("version 9", patched(4, &9u32.to_le_bytes())),
        ("counts", patched(8, &u64::MAX.to_le_bytes())),
        ("cut", good[..60].to_vec()),
        ("data cut", good[..good.len() - 40].to_vec()),
        ("list length", patched(find(b"test.list") + 9 + 8, &u64::MAX.to_le_bytes())),
        ("list of lists", patched(find(b"test.list") + 9 + 4, &9u32.to_le_bytes())),
        ("value type", patched(find(b"test.flag") + 9, &77u32.to_le_bytes())),
        ("bool", patched(find(b"test.flag") + 9 + 4, &[7])),
        ("dimensions", patched(w, &9u32.to_le_bytes())),
        ("blocks", patched(w + 4, &33u64.to_le_bytes())),
        ("tensor type", patched(w + 20, &99u32.to_le_bytes())),
        ("retired type", patched(w + 20, &31u32.to_le_bytes())),
        ("offset", patched(w + 24, &7u64.to_le_bytes())),
        ("overlap", patched(n + 16, &32u64.to_le_bytes())),
        ("far away", patched(n + 16, &(u64::MAX - 31).to_le_bytes())),
        ("named twice", patched(n - 1, b"w")),
    ];
    let mut seen = String::new();
    for (what, bytes) in cases {
        fs::write(&path, bytes).unwrap();
        seen += &format!("{what}: {}\n", message(GgufFile::open(&path), dir.path()));
    }
    insta::assert_snapshot!(seen, @r##"
magic: m.gguf: does not begin with GGUF [this is not a GGUF file]
version 1: m.gguf: GGUF version 1 [convert the model again with a current tool]
big-endian: m.gguf: a big-endian GGUF file [convert the model for little-endian machines]
version 9: m.gguf: GGUF version 9 [versions 2 and 3 can be read]
counts: m.gguf: claims 18446744073709551615 tensors and 5 metadata keys in 416 bytes [the file is damaged or incomplete: copy or download it again]
cut: m.gguf: claims 2 tensors and 5 metadata keys in 60 bytes [the file is damaged or incomplete: copy or download it again]
data cut: m.gguf: tensor "n": its data ends at byte 396, but the file has 376 [the file is damaged or incomplete: copy or download it again]
list length: m.gguf: metadata "test.list": a list claims 18446744073709551615 items, more than the rest of the file could hold [the file is damaged or incomplete: copy or download it again]
list of lists: m.gguf: metadata "test.list": lists of lists are not supported [the file is damaged or incomplete: copy or download it again]
value type: m.gguf: metadata "test.flag": unknown value type 77 [the file is damaged or incomplete: copy or download it again]
bool: m.gguf: metadata "test.flag": 7 is neither true nor false [the file is damaged or incomplete: copy or download it again]
dimensions: m.gguf: tensor "w": has 9 dimensions; at most 4 are allowed [the file is damaged or incomplete: copy or download it again]
blocks: m.gguf: tensor "w": the shape [2, 33] is too large or not a whole number of Q8_0 blocks [the file is damaged or incomplete: copy or download it again]
tensor type: m.gguf: tensor "w": type 99 is not known to this build [use a newer build, or another file]
retired type: m.gguf: tensor "w": type 31 (Q4_0_4_4) is no longer in use [convert the model again with a current tool]
offset: m.gguf: tensor "w": its offset 7 is not a multiple of 32 [the file is damaged or incomplete: copy or download it again]
overlap: m.gguf: tensor "n": its data overlaps the tensor before it [the file is damaged or incomplete: copy or download it again]
far away: m.gguf: tensor "n": its offset 18446744073709551584 overflows [the file is damaged or incomplete: copy or download it again]
named twice: m.gguf: tensor "w": the header names it twice [the file is damaged or incomplete: copy or download it again]
"##);
}

#[test]
fn values_that_do_not_fit_are_named() {
    let dir = TempDir::new().unwrap();
    let mut values = vec![1f32; 128];
    values[70] = 70000.0;
    let write = |values: &[f32]| {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensors = vec![DeclaredTensor::new("w", Dtype::F32, [2, 64])];
        let mut writer = SafetensorsWriter::create(dir.path(), tensors, 1 << 20).unwrap();
        writer.tensor("w", &raw).unwrap();
        writer.finish().unwrap();
        SafetensorsModel::open(dir.path()).unwrap()
    };
    let encode = |model: &SafetensorsModel, dtype| {
        transcode_rows(model, "w", 0..2, None, codec_for(dtype).unwrap().into(), &mut Vec::new())
    };
    let model = write(&values);
    insta::assert_snapshot!(message(encode(&model, Dtype::F16), dir.path()), @r#"model.safetensors: tensor "w": element 70 is 70000, beyond what F16 holds (65504) [choose a type with more range, such as BF16, for this tensor]"#);
    assert!(encode(&model, Dtype::BF16).is_ok());
    values[3] = f32::NAN;
    let model = write(&values);
    insta::assert_snapshot!(message(encode(&model, Dtype::F32), dir.path()), @r#"model.safetensors: tensor "w": element 3 is NaN [the weights are damaged: repeat the training step or download again]"#);
}

fn any_tensors() -> impl Strategy<Value = Vec<(DeclaredTensor, Vec<u8>)>> {
    let dtypes = prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I32, Dtype::I8]);
    let tensor = (dtypes, prop::collection::vec(0usize..5, 1..4), any::<u8>());
    prop::collection::vec(tensor, 0..8).prop_map(|tensors| {
        let build = |(i, (dtype, shape, seed)): (usize, (Dtype, Vec<usize>, u8))| {
            let bytes = dtype.checked_bytes(&shape).unwrap() as usize;
            let data = (0..bytes).map(|j| seed.wrapping_add(j as u8)).collect();
            (DeclaredTensor::new(format!("layer.{i}.weight"), dtype, shape), data)
        };
        tensors.into_iter().enumerate().map(build).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn safetensors_written_are_read_back(tensors in any_tensors(), limit in 1u64..200) {
        let dir = TempDir::new().unwrap();
        let declared = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
        let mut writer = SafetensorsWriter::create(dir.path(), declared, limit).unwrap();
        for (tensor, data) in &tensors {
            writer.begin(&tensor.name).unwrap();
            for piece in data.chunks(7) {
                writer.write(piece).unwrap();
            }
            writer.end().unwrap();
        }
        let written = writer.finish().unwrap();
        prop_assert_eq!(written.index.is_some(), written.weights.len() > 1);
        let model = SafetensorsModel::open(dir.path()).unwrap();
        prop_assert_eq!(model.metas().len(), tensors.len());
        for (tensor, data) in &tensors {
            let meta = model.meta(&tensor.name).unwrap();
            prop_assert_eq!(&DeclaredTensor::from(meta), tensor);
            prop_assert_eq!(&*model.bytes(&tensor.name).unwrap(), data.as_slice());
            let mut read = Vec::new();
            model.read_bytes(&tensor.name, &mut read).unwrap();
            prop_assert_eq!(&read, data);
        }
        // Another implementation agrees.
        for file in model.files() {
            let bytes = fs::read(file).unwrap();
            let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            for (name, view) in theirs.iter() {
                prop_assert_eq!(view.data(), &*model.bytes(name).unwrap());
            }
        }
    }

    #[test]
    fn gguf_written_is_read_back(tensors in any_tensors()) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("m.gguf");
        let declared = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
        let mut writer = GgufWriter::create(&path, &[("a.b".to_owned(), 7u32.into())], declared).unwrap();
        for (tensor, data) in &tensors {
            writer.tensor(&tensor.name, data).unwrap();
        }
        writer.finish().unwrap();
        let file = GgufFile::open(&path).unwrap();
        prop_assert_eq!(file.u64("a.b").unwrap(), 7);
        prop_assert_eq!(file.metas().len(), tensors.len());
        for (tensor, data) in &tensors {
            prop_assert_eq!(&DeclaredTensor::from(file.meta(&tensor.name).unwrap()), tensor);
            prop_assert_eq!(&*file.bytes(&tensor.name).unwrap(), data.as_slice());
        }
    }

    /// Whatever is damaged: an error or a readable file, never a panic, and never a huge allocation.
    #[test]
    fn damage_never_panics(at in 0usize..700, byte in any::<u8>(), cut in 0usize..700, gguf in any::<bool>()) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join(if gguf { "m.gguf" } else { SINGLE_FILE });
        if gguf {
            small_gguf(&path);
        } else {
            let tensors = vec![DeclaredTensor::new("a", Dtype::BF16, [4, 4]), DeclaredTensor::new("b", Dtype::F32, [])];
            let mut writer = SafetensorsWriter::create(dir.path(), tensors, 1 << 20).unwrap();
            writer.tensor("a", &[1; 32]).unwrap();
            writer.tensor("b", &[2; 4]).unwrap();
            writer.finish().unwrap();
        }
        let mut bytes = fs::read(&path).unwrap();
        let size = bytes.len();
        bytes[at % size] = byte;
        if cut % 3 == 0 {
            bytes.truncate(cut % size);
        }
        fs::write(&path, bytes).unwrap();
        let read_all = |source: &dyn TensorSource| {
            for meta in source.metas() {
                let _ = source.read_f32(&meta.name, &mut Vec::new());
            }
        };
        if gguf {
            if let Ok(file) = GgufFile::open(&path) {
                read_all(&file);
            }
        } else if let Ok(model) = SafetensorsModel::open(&path) {
            read_all(&model);
        }
    }
}
