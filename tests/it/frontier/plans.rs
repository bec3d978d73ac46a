//! JSON plans against the documented contract: payload of rescued weights, accounting, caps.

use std::fs;

use factoryline::frontier::{CheckOptions, Contracts, Report, check};
use serde_json::{Map, Value, json};

use super::{Place, TERNARY, outcome};

const SHAPES: [(&str, u64, u64); 5] =
    [("embed_proj", 495, 48), ("attn_out", 48, 48), ("mlp_up", 48, 96), ("mlp_down", 96, 48), ("lm_head", 48, 495)];

/// The 27B contracts with plans as artifacts: what their documents promise and nothing enforces.
fn plan_contracts() -> Contracts {
    let place = Place::new();
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/frontier/contracts.toml")).unwrap();
    let text = text
        .replace("artifact = \"hf_dir\"", "artifact = \"plan_json\"")
        .replace("size_rule = \"enforced_direct\"", "size_rule = \"proxy_plan\"");
    fs::write(place.path("c.toml"), text).unwrap();
    Contracts::read(&place.path("c.toml")).unwrap()
}

fn plan(layers: Vec<Value>) -> Value {
    json!({ "artifact_version": 1, "model_id": "m", "tokenizer_id": "t", "quant_mode": "ternary", "layers": layers })
}

/// Every layer with nothing but its name.
fn bare() -> Vec<Value> {
    SHAPES.iter().map(|(name, ..)| json!({ "name": name })).collect()
}

/// Fields that rescue `k` weights in 4 bits.
fn rescue(k: u64) -> Map<String, Value> {
    let codes: Vec<i64> = (0..k as i64).map(|i| i % 15 - 7).collect();
    let scales = vec![0.0625; k.div_ceil(128) as usize];
    let Value::Object(fields) = json!({ "rescue_values_q4": codes, "rescue_scales": scales }) else { unreachable!() };
    fields
}

/// A layer of which a share is rescued.
fn rescued(name: &str, fraction: f64) -> Value {
    let (_, rows, cols) = SHAPES.iter().find(|shape| shape.0 == name).unwrap();
    let k = ((rows * cols) as f64 * fraction).round_ties_even() as u64;
    let mut fields = rescue(k);
    fields.insert("name".into(), json!(name));
    fields.insert("high_precision_fraction".into(), json!(fraction));
    Value::Object(fields)
}

fn judged_text(contracts: &Contracts, id: &str, text: &str) -> Report {
    let place = Place::new();
    let path = place.path("plan.json");
    fs::write(&path, text).unwrap();
    check(&path, &contracts.terms(id).unwrap(), None, &CheckOptions::default(), &|_| ()).unwrap()
}

fn judged(plan: &Value) -> Report {
    judged_text(&plan_contracts(), TERNARY, &plan.to_string())
}

/// The message of a plan that is an error.
fn flaw(plan: &Value) -> String {
    let report = judged(plan);
    assert_eq!(outcome(&report), "error (-)", "{plan}");
    report.message.unwrap()
}

/// A plan whose second layer has these fields on top of `k` rescued weights.
fn with(k: u64, fields: Value) -> Value {
    let mut layers = bare();
    let row = layers[1].as_object_mut().unwrap();
    row.extend(rescue(k));
    // 2304 weights.
    row.insert("high_precision_fraction".into(), json!(k as f64 / 2304.0));
    for (key, value) in fields.as_object().unwrap() {
        match value.is_null() {
            true => row.remove(key),
            false => row.insert(key.clone(), value.clone()),
        };
    }
    plan(layers)
}

#[test]
fn case_14_defaults_are_enough() {
    let report = judged(&plan(bare()));
    assert_eq!(outcome(&report), "unscored (-)", "{:?}", report.message);
    let figures = report.plan.unwrap();
    assert_eq!(figures.proxy_compressed_bits, 2 * 59_040 + 5 * 64);
    assert_eq!((figures.proxy_parameter_count, figures.high_precision_count), (59_045, 0));
    assert_eq!(report.unchecked.len(), 2);
    let sparse = judged(&json!({ "layers": bare() }));
    assert_eq!(sparse.warnings, ["the plan does not say artifact_version, model_id, tokenizer_id, quant_mode"]);
    assert_eq!(outcome(&sparse), "unscored (-)");
}

#[test]
fn case_15_17_payloads_of_every_length_and_every_name_of_the_format() {
    for k in [1, 127, 128, 129, 256] {
        let report = judged(&with(k, json!({})));
        assert_eq!(outcome(&report), "unscored (-)", "{k}: {:?}", report.message);
        let layer = &report.plan.unwrap().layers[1];
        assert_eq!((layer.rescued, layer.parameters), (k, 2305));
        assert_eq!(layer.bits, 2 * (2304 - k) + 4 * k + 64 + 16 * k.div_ceil(128));
    }
    let names =
        ["q4_symmetric_int_scaled_g128", "q4_scaled", "int4_scaled", "signed_int4_scaled", "q4_symmetric_int_scaled"];
    for name in names {
        let report = judged(&with(1, json!({ "rescue_quantization": name, "rescue_scale_group_size": 128 })));
        assert_eq!(outcome(&report), "unscored (-)", "{name}");
    }
}

/// The baseline recipe of the pack.
fn baseline() -> Value {
    let mut layers = bare();
    layers[0] = rescued("embed_proj", 0.025);
    layers[1] = rescued("attn_out", 0.02);
    layers[4] = rescued("lm_head", 0.025);
    plan(layers)
}

#[test]
fn case_18_the_baseline_comes_to_its_published_figures_and_may_declare_them() {
    let figures = judged(&baseline()).plan.unwrap();
    assert_eq!((figures.high_precision_count, figures.proxy_compressed_bits), (1234, 121_044));
    assert_eq!((figures.compressed_bits, figures.compressed_size_bytes), (55_355_487_805, 6_919_435_976));
    assert_eq!(figures.parameter_count, 27_002_286_586);
    assert_eq!(figures.compression_ratio, 7.804104292636718);
    assert_eq!(figures.overall_high_precision_fraction, 0.020901084010840107);
    let mut plan = baseline();
    plan["accounting"] = json!({
        "parameter_count": 27_002_286_586u64, "compressed_bits": 55_355_487_805u64, "rescue_count": 1234,
        "compressed_size_bytes": 6_919_435_976u64, "high_precision_count": 1234, "total_rescue_count": 1234,
        "overall_high_precision_fraction": 0.0209010845, "rescue_fraction": 0.020901084010840107,
    });
    assert_eq!(outcome(&judged(&plan)), "unscored (-)", "a float may be off by a millionth");
}

#[test]
fn case_19_extra_entries_count() {
    let entry = |entry: Value| judged(&with(0, json!({ "extra_components": [entry] }))).plan.unwrap();
    let none = judged(&plan(bare())).plan.unwrap();
    let residual =
        entry(json!({ "name": "r", "role": "residual", "parameter_count": 100, "bits_per_parameter": 1.505 }));
    assert_eq!(residual.proxy_compressed_bits - none.proxy_compressed_bits, 151);
    assert_eq!((residual.proxy_parameter_count, residual.total_rescue_count), (59_145, 0));
    let rescue = entry(json!({ "role": "rescue", "parameter_count": 10 }));
    assert_eq!(rescue.proxy_compressed_bits - none.proxy_compressed_bits, 40);
    assert_eq!((rescue.high_precision_count, rescue.total_rescue_count), (0, 10));
    let counted = json!({ "parameter_count": 8, "size_bytes": 4, "counts_toward_rescue": 1 });
    assert_eq!(entry(counted).total_rescue_count, 8);
    // Rows of layers the proxy does not have count by their entries alone.
    let mut layers = bare();
    layers.push(json!({ "name": "elsewhere", "accounting_entries": [{ "parameter_count": 1, "compressed_bits": 7 }] }));
    let report = judged(&plan(layers));
    assert_eq!(report.plan.unwrap().proxy_compressed_bits - none.proxy_compressed_bits, 7);
    assert!(report.warnings[0].contains("no layer elsewhere"));
}

#[test]
fn case_36_payloads_that_are_wrong_are_errors() {
    let codes = |replace: Value| {
        let mut codes = vec![json!(1); 3];
        codes[1] = replace;
        with(3, json!({ "rescue_values_q4": codes }))
    };
    for bad in [json!(8), json!(-8), json!(true), json!(1.0), json!("1"), json!(null)] {
        assert!(flaw(&codes(bad.clone())).contains(&format!("rescue_values_q4 holds {bad}, not a whole number")));
    }
    assert!(flaw(&with(3, json!({ "rescue_values_q4": null }))).contains("rescue_values_q4 is missing"));
    for length in [2, 4] {
        let said = flaw(&with(3, json!({ "rescue_values_q4": vec![1; length] })));
        assert!(said.contains(&format!("has {length} items, 3 are needed")), "{said}");
    }
    for scales in [json!([]), json!([1.0, 1.0])] {
        assert!(flaw(&with(128, json!({ "rescue_scales": scales }))).contains("1 are needed"));
    }
    for scale in [json!(0), json!(-1.0), json!("1"), json!(true), json!(1e6), json!(8.9e-8)] {
        let said = flaw(&with(3, json!({ "rescue_scales": [scale] })));
        assert!(said.contains("rescue_scales holds"), "{said}");
    }
    assert!(flaw(&with(3, json!({ "rescue_scale_group_size": 64 }))).contains("64 is not 128"));
    assert!(flaw(&with(3, json!({ "rescue_quantization": "q5" }))).contains("\"q5\" is not q4_symmetric"));
    let nan = baseline().to_string().replacen("0.0625", "NaN", 1);
    let report = judged_text(&plan_contracts(), TERNARY, &nan);
    assert!(report.message.unwrap().contains("line 1, column"));
}

#[test]
fn case_37_the_cap_binds_on_the_share_and_the_size_before_it() {
    let all = |fraction: f64| plan(SHAPES.iter().map(|(name, ..)| rescued(name, fraction)).collect());
    assert_eq!(outcome(&judged(&all(0.1001))), "rejected (high_precision_fraction)");
    assert_eq!(outcome(&judged(&all(0.098))), "rejected (compressed_size)");
    // The most that the 27B ternary budget holds when one layer has it all.
    let most = |k: u64| {
        let mut layers = bare();
        let mut row = rescue(k);
        row.insert("name".into(), json!("embed_proj"));
        row.insert("high_precision_fraction".into(), json!(k as f64 / 23_760.0));
        layers[0] = Value::Object(row);
        judged(&plan(layers))
    };
    let (fits, not) = (most(5_753), most(5_754));
    assert_eq!((fits.plan.as_ref().unwrap().high_precision_count, outcome(&fits).as_str()), (5_753, "unscored (-)"));
    assert_eq!(outcome(&not), "rejected (compressed_size)");
}

#[test]
fn case_38_layers_must_be_there_named_and_shaped() {
    for (i, (name, ..)) in SHAPES.iter().enumerate() {
        let mut layers = bare();
        layers.remove(i);
        assert!(flaw(&plan(layers)).contains(&format!("the layer {name} is missing")));
    }
    let mut layers = bare();
    layers[2]["shape"] = json!([96, 48]);
    assert!(flaw(&plan(layers.clone())).contains("layers[2] (mlp_up): shape [96,48] is not [48, 96]"));
    layers[2]["shape"] = json!([48, 96]);
    assert_eq!(outcome(&judged(&plan(layers))), "unscored (-)");
    assert!(flaw(&plan(vec![json!({})])).contains("layers[0] has no name"));
    assert!(flaw(&json!({ "layers": {} })).contains("layers is not a list"));
    assert!(flaw(&json!([])).contains("not a JSON object"));
    assert!(flaw(&json!({ "artifact_version": 2, "layers": bare() })).contains("artifact_version 2 is not 1"));
    // Of two rows with one name the last counts.
    let mut layers = vec![rescued("attn_out", 1.0)];
    layers.extend(bare());
    let report = judged(&plan(layers));
    assert_eq!(report.plan.unwrap().high_precision_count, 0);
    assert!(report.warnings[0].contains("attn_out stands there more than once"));
}

#[test]
fn case_39_declared_totals_must_be_exact() {
    let declared = |key: &str, value: Value| {
        let mut plan = baseline();
        plan["accounting"] = json!({ key: value });
        flaw(&plan)
    };
    assert!(
        declared("compressed_bits", json!(55_355_487_806u64)).contains("accounting.compressed_bits says 55355487806")
    );
    declared("rescue_count", json!(1233));
    declared("rescue_count", json!(1234.0));
    declared("rescue_count", json!("1234"));
    declared("high_precision_fraction", json!(0.020911084));
    declared("overall_rescue_fraction", json!("much"));
}

#[test]
fn case_40_extra_entries_that_are_wrong_are_errors() {
    let entry = |entry: Value| flaw(&with(0, json!({ "extra_components": [entry] })));
    assert!(entry(json!({ "role": "gift", "parameter_count": 1, "compressed_bits": 1 })).contains("role \"gift\""));
    assert!(entry(json!({ "parameter_count": 0, "compressed_bits": 1 })).contains("parameter_count"));
    assert!(entry(json!({ "parameter_count": 5 })).contains("says neither"));
    let heavy = json!({ "role": "rescue", "parameter_count": 10, "bits_per_parameter": 4.2 });
    assert!(entry(heavy).contains("4.2 bits per parameter, at most 4.125"));
    let at_limit = json!({ "role": "q4_rescue", "parameter_count": 8, "bits_per_parameter": 4.125 });
    assert_eq!(outcome(&judged(&with(0, json!({ "extra_components": [at_limit] })))), "unscored (-)");
}

#[test]
fn case_46_json_that_says_two_things_or_none_is_an_error() {
    let contracts = plan_contracts();
    let said = |text: &str| {
        let report = judged_text(&contracts, TERNARY, text);
        assert_eq!(outcome(&report), "error (-)", "{text:?}");
        report.message.unwrap()
    };
    assert!(said("{\"layers\": [], \"layers\": []}").contains("stands twice"));
    said("{\"layers\": [\0]}");
    said("");
    said("{\"layers\": NaN}");
    said("{\"layers\": ");
}

#[test]
fn verbatim_contracts_count_sixteen_bits_and_need_no_codes() {
    let contracts = Contracts::builtin().unwrap();
    let mut layers = bare();
    layers[0]["high_precision_fraction"] = json!(0.1);
    let report = judged_text(&contracts, "qwen3-06b-ternary-frontier", &plan(layers.clone()).to_string());
    assert_eq!(outcome(&report), "unscored (-)", "{:?}", report.message);
    let figures = report.plan.unwrap();
    assert_eq!(figures.layers[0].bits, 2 * (23_760 - 2376) + 16 * 2376 + 64);
    layers[0]["extra_components"] = json!([{ "role": "q4_rescue", "parameter_count": 1, "compressed_bits": 1 }]);
    let report = judged_text(&contracts, "qwen3-06b-ternary-frontier", &plan(layers).to_string());
    assert!(report.message.unwrap().contains("role \"q4_rescue\" is not known"));
    // Two bases of a binary layer.
    let mut layers = bare();
    layers[1]["binary_basis_count"] = json!(2);
    layers[1]["binary_basis_scales"] = json!([0.1, 0.05]);
    let binary = judged_text(&plan_contracts(), "qwen3-27b-binary-frontier", &plan(layers.clone()).to_string());
    let row = binary.plan.unwrap().layers[1].clone();
    assert_eq!((row.bits, row.parameters), (2 * 2304 + 128, 2 * 2304 + 2));
    assert!(flaw(&plan(layers.clone())).contains("bases are for binary contracts"));
    layers[1]["binary_basis_scales"] = json!([0.1, -0.05]);
    let binary = judged_text(&plan_contracts(), "qwen3-27b-binary-frontier", &plan(layers).to_string());
    assert!(binary.message.unwrap().contains("binary_basis_scales holds -0.05"));
}
