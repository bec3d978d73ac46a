//! The published vectors: a committed part of them, and all where the folder is there.

use factoryline::frontier::{Contracts, Q4, decode_q4, encode_q4, parse_mix, seed_of, shares};
use serde_json::Value;

/// Budgets, 4-bit groups, the choice of documents.
const SUBSET: &str = include_str!("../../fixtures/frontier/vectors.json");

fn whole() -> Option<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/conformance/ternary/vectors.json");
    match std::fs::read(path) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).unwrap()),
        Err(error) => {
            println!("skipped: {path}: {error}");
            None
        }
    }
}

/// A count of vectors that held.
fn budgets(vectors: &Value) -> usize {
    let contracts = Contracts::builtin().unwrap();
    let ids = [
        ("ternary+q4g128", "qwen3-27b-ternary-frontier"),
        ("binary+q4g128", "qwen3-27b-binary-frontier"),
        ("ternary+fp16 (06b)", "qwen3-06b-ternary-frontier"),
        ("binary+fp16 (06b kernel)", "qwen3-06b-binary-kernel"),
    ];
    let list = vectors["budget"].as_array().unwrap();
    for vector in list {
        let id = ids.iter().find(|(name, _)| vector["contract"] == *name).unwrap().1;
        let budget = factoryline::frontier::Budget::of(&contracts.terms(id).unwrap());
        let bits = budget.max_model_bits(vector["parameter_count"].as_u64().unwrap());
        assert_eq!(
            (bits, bits / 8),
            (vector["max_bits"].as_u64().unwrap(), vector["max_whole_bytes"].as_u64().unwrap())
        );
    }
    list.len()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn q4(vectors: &Value) -> usize {
    let list = vectors["q4"].as_array().unwrap();
    for vector in list {
        let codes: Vec<i8> = floats(&vector["codes"]).iter().map(|&code| code as i8).collect();
        let wanted = Q4 { codes, scales: floats(&vector["scales"]) };
        assert_eq!(encode_q4(&floats(&vector["values"])), wanted, "{}", vector["name"]);
        assert_eq!(decode_q4(&wanted), floats(&vector["decoded"]), "{}", vector["name"]);
    }
    list.len()
}

fn selection(vectors: &Value) {
    let selection = &vectors["heldout_selection"];
    assert_eq!(seed_of(selection["seed_text"].as_str().unwrap()), selection["seed_u64"].as_u64().unwrap());
    let contracts = Contracts::builtin().unwrap();
    let choice = factoryline::frontier::Choice::of(contracts.terms(super::TERNARY).unwrap().choice, 16);
    assert_eq!(choice.seed_text(None), selection["seed_text"].as_str().unwrap());
    let names: Vec<String> = (0..60).map(|i| i.to_string()).collect();
    let pool = super::pool(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let wanted: Vec<f64> = choice.choose(&pool).unwrap().iter().map(|&i| i as f64).collect();
    assert_eq!(wanted, floats(&selection["indices"]));
    let counts: Vec<f64> =
        shares(&parse_mix(selection["mix"].as_str().unwrap()).unwrap(), 16).iter().map(|&n| n as f64).collect();
    assert_eq!(counts, floats(&selection["mix_counts_for_16"]));
}

#[test]
fn the_committed_vectors_hold() {
    let vectors: Value = serde_json::from_str(SUBSET).unwrap();
    assert_eq!((budgets(&vectors), q4(&vectors)), (12, 5));
    selection(&vectors);
}

#[test]
fn all_published_vectors_hold() {
    let Some(vectors) = whole() else { return };
    assert_eq!((budgets(&vectors), q4(&vectors)), (36, 7));
    selection(&vectors);
}
