use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Opened, open};
use crate::model::{
    Config, DeclaredTensor, Dtype, HfDir, ModelError, SafetensorsModel, SafetensorsWriter, TensorSource,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/packed").join(name)
}

fn open_dir(path: &Path) -> Result<Opened, ModelError> {
    let HfDir { config, tensors, .. } = HfDir::open(path)?;
    open(&config, tensors)
}

/// Every matrix of a fixture is, to the bit, what the format's own package decodes it to.
fn as_the_package_decodes_it(name: &str, matrices: usize) {
    let Opened::Packed(decoded) = open_dir(&fixture(name)).unwrap() else { panic!("{name} is packed") };
    let expected = SafetensorsModel::open(&fixture(name).join("expected.safetensors")).unwrap();
    assert_eq!(decoded.metas().len(), expected.metas().len());
    assert_eq!(expected.metas().len(), matrices);
    for meta in expected.metas() {
        let ours = decoded.require(&meta.name).unwrap();
        assert_eq!((ours.dtype, &ours.shape, ours.bytes), (meta.dtype, &meta.shape, meta.bytes), "{}", meta.name);
        let bytes = expected.bytes(&meta.name).unwrap();
        assert!(decoded.bytes(&meta.name).unwrap() == bytes, "{}: other values", meta.name);
        let (mut whole, mut rows, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        decoded.read_bytes(&meta.name, &mut whole).unwrap();
        assert!(whole == *bytes, "{}: read_bytes", meta.name);
        decoded.read_rows_f32(&meta.name, 3..7, &mut rows).unwrap();
        expected.read_rows_f32(&meta.name, 3..7, &mut wanted).unwrap();
        assert_eq!(rows, wanted, "{}", meta.name);
    }
}

#[test]
fn compressed_tensors_matrices_are_decoded_to_the_bit() {
    as_the_package_decodes_it("compressed-tensors", 11);
}

#[test]
fn mlx_matrices_are_decoded_to_the_bit() {
    as_the_package_decodes_it("mlx", 15);
}

/// A directory of one layer, with something changed.
fn damaged(config: impl FnOnce(&mut Value), parts: impl FnOnce(&mut Vec<DeclaredTensor>)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let weights = json!({ "num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32 });
    let mut root = json!({ "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } },
    } });
    config(&mut root);
    let mut tensors = vec![
        DeclaredTensor::new("a.weight_shape", Dtype::I64, [2]),
        DeclaredTensor::new("a.weight_packed", Dtype::I32, [8, 8]),
        DeclaredTensor::new("a.weight_scale", Dtype::BF16, [8, 2]),
    ];
    parts(&mut tensors);
    let mut writer = SafetensorsWriter::create(dir.path(), tensors.clone(), u64::MAX).unwrap();
    for tensor in &tensors {
        let bytes = tensor.dtype.checked_bytes(&tensor.shape).unwrap() as usize;
        let sizes: Vec<u8> = [8i64, 64].iter().flat_map(|n| n.to_le_bytes()).collect();
        let data = if tensor.name == "a.weight_shape" { sizes } else { vec![0; bytes] };
        writer.tensor(&tensor.name, &data).unwrap();
    }
    writer.finish().unwrap();
    let config = Config::from_value(Path::new("config.json"), root).unwrap();
    let error = open(&config, SafetensorsModel::open(dir.path()).unwrap()).err();
    let fault = error.map(crate::fault::Fault::from);
    let words = fault.map(|fault| format!("{} ({})", fault.one_line(), fault.hint.unwrap_or_default()));
    words.unwrap_or_default().replace(&format!("{}/", dir.path().display()), "")
}

#[test]
fn what_does_not_fit_is_one_clear_error() {
    let unchanged = |_: &mut Value| ();
    assert_eq!(damaged(unchanged, |_| ()), "");
    insta::assert_snapshot!(damaged(unchanged, |t| { t.remove(2); }), @r#"model.safetensors: tensor "a.weight_packed": has no weight_scale beside it (the parts of the matrix do not fit each other)"#);
    insta::assert_snapshot!(damaged(unchanged, |t| { t.remove(0); }), @r#"model.safetensors: tensor "a.weight_packed": has no weight_shape beside it (the parts of the matrix do not fit each other)"#);
    insta::assert_snapshot!(damaged(unchanged, |t| t[1].shape = vec![8, 7]), @r#"model.safetensors: tensor "a.weight_packed": codes [8, 7], scales [8, 2] and no zero points are no matrix [8, 64] of compressed-tensors W4 group 32 symmetric (the parts of the matrix do not fit each other)"#);
    insta::assert_snapshot!(damaged(unchanged, |t| t[2].shape = vec![8, 3]), @r#"model.safetensors: tensor "a.weight_packed": codes [8, 8], scales [8, 3] and no zero points are no matrix [8, 64] of compressed-tensors W4 group 32 symmetric (the parts of the matrix do not fit each other)"#);
    insta::assert_snapshot!(damaged(unchanged, |t| t[2].dtype = Dtype::U8), @r#"model.safetensors: tensor "a.weight_packed": its weight_scale is U8, wanted BF16, F16 or F32 (the parts of the matrix do not fit each other)"#);
    let shuffled = DeclaredTensor::new("a.weight_g_idx", Dtype::I32, [64]);
    insta::assert_snapshot!(damaged(unchanged, |t| t.push(shuffled)), @"model.safetensors: a has a weight_g_idx: its columns are shuffled (actorder group) (quantize it with actorder weight or none, or start from the original model)");
    let asymmetric = |root: &mut Value| {
        root["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = json!(false);
    };
    insta::assert_snapshot!(damaged(asymmetric, |_| ()), @r#"model.safetensors: tensor "a.weight_packed": codes [8, 8], scales [8, 2] and no zero points are no matrix [8, 64] of compressed-tensors W4 group 32 asymmetric (the parts of the matrix do not fit each other)"#);
}

#[test]
fn other_ways_of_quantizing_are_refused_by_name() {
    let set = |path: &'static str, value: Value| {
        damaged(
            move |root| {
                let found = root.pointer_mut(&format!("/quantization_config{path}"));
                match found {
                    Some(found) => *found = value,
                    None => root["quantization_config"][path.trim_start_matches('/')] = value,
                }
            },
            |_| (),
        )
    };
    insta::assert_snapshot!(set("/quant_method", json!("gptq")), @r#"config.json: its weights are quantized by quant_method "gptq", which this build does not read (supported: compressed-tensors pack-quantized (W2 to W8), MLX affine, MXFP4 experts, or unquantized weights; or start from the original model)"#);
    insta::assert_snapshot!(set("/format", json!("float-quantized")), @r#"config.json: its weights are quantized by compressed-tensors format "float-quantized", which this build does not read (supported: compressed-tensors pack-quantized (W2 to W8), MLX affine, MXFP4 experts, or unquantized weights; or start from the original model)"#);
    insta::assert_snapshot!(set("/config_groups/group_0/weights/strategy", json!("tensor")), @r#"config.json: its weights are quantized by compressed-tensors strategy "tensor", which this build does not read (supported: compressed-tensors pack-quantized (W2 to W8), MLX affine, MXFP4 experts, or unquantized weights; or start from the original model)"#);
    insta::assert_snapshot!(set("/config_groups/group_0/weights/num_bits", json!(16)), @r#"config.json: key "quantization_config.config_groups.group_0.weights": num_bits must be 2 to 8 (correct the model's config.json)"#);
    insta::assert_snapshot!(set("/transform_config", json!({ "config_groups": { "R1": {} } })), @"config.json: its weights are quantized by compressed-tensors with a transform_config, which this build does not read (supported: compressed-tensors pack-quantized (W2 to W8), MLX affine, MXFP4 experts, or unquantized weights; or start from the original model)");
    insta::assert_snapshot!(damaged(|root| *root = json!({ "quantization": { "bits": 4, "group_size": 32, "mode": "nvfp4" } }), |_| ()), @r#"config.json: its weights are quantized by MLX mode "nvfp4", which this build does not read (supported: compressed-tensors pack-quantized (W2 to W8), MLX affine, MXFP4 experts, or unquantized weights; or start from the original model)"#);
}
