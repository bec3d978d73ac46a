use std::path::Path;

use super::write::zero_points;
use super::*;
use crate::codec::unpack_ints;
use crate::family::open;

fn plan_of(fixture: &str, kind: &str, group: Option<usize>) -> Result<(OpenModel, PackedPlan), CompressError> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(fixture);
    let model = open(&path).unwrap();
    let kind = packed_type(kind).unwrap();
    let plan = plan_packed(&model.spec, model.storage(), Some(&*model.stored), Dtype::BF16, (kind, group))?;
    Ok((model, plan))
}

fn quantization_config(fixture: &str, kind: &str, group: Option<usize>) -> serde_json::Value {
    let (model, plan) = plan_of(fixture, kind, group).unwrap();
    packed_config(&model.config, &plan).get("quantization_config").unwrap().clone()
}

/// Targets and group size of every group, and what is left out.
fn settings(config: &serde_json::Value) -> String {
    let mut lines: Vec<String> = config["config_groups"]
        .as_object()
        .unwrap()
        .values()
        .map(|group| {
            let weights = &group["weights"];
            format!("{} {} {}", group["targets"], weights["strategy"], weights["group_size"])
        })
        .collect();
    lines.push(format!("ignore {}", config["ignore"]));
    lines.join("\n")
}

#[test]
fn layers_whose_rows_a_group_does_not_divide_take_a_narrower_one_by_name() {
    insta::assert_snapshot!(settings(&quantization_config("llama", "W4A16", Some(64))), @r#"["re:.*\\.mlp\\.(down_proj)$"] "group" 32
["Linear"] "group" 64
ignore ["lm_head"]"#);
    insta::assert_snapshot!(settings(&quantization_config("llama", "W4A16_ASYM", Some(64))), @r#"["Linear"] "group" 32
ignore ["lm_head"]"#);
    insta::assert_snapshot!(settings(&quantization_config("llama", "W8A16", None)), @r#"["Linear"] "channel" null
ignore ["lm_head"]"#);
    let (_, plan) = plan_of("llama", "W4A16", Some(64)).unwrap();
    insta::assert_snapshot!(plan.fallback_lines().join("\n"), @"W4A16: mlp.down_proj (2 matrices): groups of 32, since 64 does not divide every row");
}

#[test]
fn experts_take_one_group_and_routers_none() {
    insta::assert_snapshot!(settings(&quantization_config("deepseek_v2", "W4A16", Some(64))), @r#"["re:.*\\.self_attn\\.(kv_b_proj)$"] "channel" null
["Linear"] "group" 32
ignore ["lm_head","re:.*\\.router$","re:.*\\.mlp\\.gate$"]"#);
    let one_by_one = plan_of("qwen3_moe", "W4A16", Some(32)).unwrap().1;
    let stacked = plan_of("qwen3_moe-fused", "W4A16", Some(32)).unwrap().1;
    let layers = |plan: &PackedPlan| {
        let mut layers: Vec<String> = plan.matrices.iter().map(|m| m.layer.clone()).collect();
        layers.sort();
        layers
    };
    assert!(layers(&stacked).contains(&"model.layers.0.mlp.experts.3.down_proj".to_owned()));
    assert_eq!(layers(&stacked).len(), stacked.matrices.len());
    assert!(one_by_one.matrices.iter().all(|m| !m.layer.ends_with("mlp.gate")));
}

#[test]
fn what_no_reader_loads_is_refused() {
    let refused = |fixture: &str, kind: &str| plan_of(fixture, kind, Some(32)).err().map(|e| e.to_string()).unwrap();
    insta::assert_snapshot!(refused("qwen3_moe", "W4A16_ASYM"), @"quant: W4A16_ASYM: readers of packed experts know no zero points");
    insta::assert_snapshot!(refused("granitemoe", "W4A16"), @"quant: W4A16: packed layers of the family granitemoe were not seen to load");
    assert!(plan_of("granitemoe", "BF16", Some(32)).is_ok());
}

#[test]
fn zero_points_lie_in_columns_of_words() {
    let rows: Vec<Vec<u8>> = (0..11u8).map(|row| vec![row % 8, 7 - row % 8]).collect();
    let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    let words = zero_points(&rows, 3);
    assert_eq!(words.len(), 2 * 2 * 4, "33 bits take two words of each column");
    let column: Vec<u8> = words.chunks(8).flat_map(|row| row[4..].to_vec()).collect();
    let mut numbers = vec![0; 11];
    unpack_ints(&column, 3, &mut numbers);
    assert_eq!(numbers, rows.iter().map(|row| row[1]).collect::<Vec<_>>());
}
