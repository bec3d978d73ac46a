//! Model directories against the direct contract.

use std::fs;

use factoryline::frontier::{CheckOptions, Container, Contracts, Exam, Verdict, check};
use factoryline::model::Dtype;

use super::{Noise, Place, Shape, TERNARY, drawn, outcome, parameters, pool, tensors, write_model};

const TEXT: &str = "Every byte counts.";

#[test]
fn case_01_a_bare_f32_directory_scores_but_is_too_large() {
    let place = Place::new();
    let report = place.check(&place.model(&Shape::default()), &[TEXT]);
    assert_eq!(outcome(&report), "rejected (quantized_size)");
    let score = report.score.unwrap();
    assert!((score.cross_entropy_nats - 257f64.ln()).abs() < 1e-3, "{score:?}");
    assert_eq!((score.tokens, score.documents), (17, 1));
    assert_eq!(report.container, Some(Container::Directory));
    assert!(report.size.bits_per_parameter.unwrap() > 32.0);
}

#[test]
fn case_02_03_every_archive_scores_the_same_and_plain_tar_is_too_large() {
    let place = Place::new();
    let model = place.model(&Shape::default());
    let all = [Container::Zip, Container::TarGz, Container::TarBz2, Container::TarXz, Container::Tar];
    for container in all {
        let report = place.check(&place.packed(&model, container), &[TEXT]);
        let wanted = if container == Container::Tar { "rejected (quantized_size)" } else { "accepted (-)" };
        assert_eq!(outcome(&report), wanted, "{container:?}: {:?} {:?}", report.message, report.size);
        assert_eq!(report.container, Some(container));
        assert!((report.score.unwrap().perplexity - 257.0).abs() < 0.3, "{container:?}");
        assert_eq!(report.size.sha256.unwrap().len(), 64);
    }
}

#[test]
fn case_04_a_model_one_level_down_counts_and_two_do_not() {
    let place = Place::new();
    let model = place.model(&Shape::default());
    let outer = place.path("outer");
    fs::create_dir(&outer).unwrap();
    fs::rename(&model, outer.join("inner")).unwrap();
    let report = place.check(&place.packed(&outer, Container::TarXz), &[TEXT]);
    assert_eq!(outcome(&report), "accepted (-)");
    assert_eq!(report.warnings, ["the model lies in the folder inner: put it at the root"]);
    fs::create_dir(outer.join("other")).unwrap();
    fs::write(outer.join("other/config.json"), "{}").unwrap();
    let report = place.check(&outer, &[TEXT]);
    assert_eq!(outcome(&report), "error (-)");
    assert!(report.message.unwrap().contains("inner, other hold a config.json each"));
}

#[test]
fn case_05_a_tied_head_counts_once() {
    let counted = |tied| {
        let place = Place::new();
        let shape = Shape { tied, ..Shape::default() };
        let report = place.check(&place.model(&shape), &[TEXT]);
        assert_eq!(report.size.parameters, Some(parameters(&shape)));
        report.size.parameters.unwrap()
    };
    assert_eq!(counted(false) - counted(true), 257 * 64);
}

#[test]
fn case_06_07_24_equality_passes_one_byte_more_does_not_and_the_size_may_be_said() {
    let place = Place::new();
    // A vocabulary for which the budget is a whole number of four bytes: xz may be padded by as many.
    let budget = |vocab| (parameters(&Shape { vocab, ..Shape::default() }) as f64 * 2.2125).ceil() as u64;
    let vocab = (257..400).find(|&vocab| budget(vocab) % 32 == 0).unwrap();
    let shape = Shape { vocab, ..Shape::default() };
    let artifact = place.packed(&place.model(&shape), Container::TarXz);
    let most = budget(vocab) / 8;
    let bytes = fs::read(&artifact).unwrap();
    assert!((bytes.len() as u64) < most && most % 4 == 0);
    let padded = |to: u64| {
        let mut padded = bytes.clone();
        padded.resize(to as usize, 0);
        fs::write(&artifact, padded).unwrap();
        place.check(&artifact, &[TEXT])
    };
    let exact = padded(most);
    assert_eq!((outcome(&exact).as_str(), exact.size.bits), ("accepted (-)", budget(vocab)), "{:?}", exact.message);
    assert_eq!(outcome(&padded(most + 4)), "rejected (quantized_size)");
    let said = |bytes: u64| {
        let options = CheckOptions { bytes: Some(bytes.to_string()), ..CheckOptions::default() };
        place.check_with(&artifact, &place.terms(), &[TEXT], options)
    };
    let report = said(most);
    assert_eq!((outcome(&report).as_str(), report.size.overridden), ("accepted (-)", true));
    assert_eq!(outcome(&said(most + 1)), "rejected (quantized_size)");
}

/// A ternary matrix with every twentieth row in 4 bits instead.
fn ternary_with_rescue(values: &mut [f32], cols: usize, noise: &mut Noise) {
    let scale = 0.01 + 0.02 * noise.next() as f32;
    for (row, values) in values.chunks_mut(cols).enumerate() {
        for value in values {
            let u = noise.next();
            *value = match row % 20 {
                19 => scale / 4.0 * ((u * 15.0).floor() as f32 - 7.0),
                _ if u < 0.6 => 0.0,
                _ if u < 0.8 => scale,
                _ => -scale,
            };
        }
    }
}

#[test]
fn case_08_09_ternary_rows_with_rescue_and_dense_norms_fit_in_f16() {
    let place = Place::new();
    let shape = Shape { dtype: Dtype::F16, blind: false, ..Shape::default() };
    let mut noise = Noise(7);
    let sizes = tensors(&shape);
    write_model(&place.path("m"), &shape, |name, count| {
        let mut values = vec![0.0; count];
        let size = &sizes.iter().find(|(n, _)| n == name).unwrap().1;
        match size.len() {
            1 => values.iter_mut().for_each(|v| *v = 1.0 + 0.1 * noise.next() as f32),
            _ => ternary_with_rescue(&mut values, size[1], &mut noise),
        }
        values
    });
    let target = place.path("a.tar.xz");
    let packing = factoryline::frontier::Packing { container: Container::TarXz, width: 2 };
    factoryline::frontier::pack(&place.path("m"), &target, packing).unwrap();
    let report = place.check(&target, &[TEXT]);
    assert_eq!(outcome(&report), "accepted (-)", "{:?} {:?}", report.message, report.size);
}

#[test]
fn case_10_documents_are_cut_at_bytes_and_the_short_ones_skipped() {
    let place = Place::new();
    let model = place.model(&Shape { blind: false, ..Shape::default() });
    let tokens = |texts: &[&str]| {
        let score = place.check(&model, texts).score.unwrap();
        (score.tokens, score.documents, score.skipped)
    };
    assert_eq!(tokens(&["x", "", "ab"]), (1, 1, 2));
    assert_eq!(tokens(&["abc"]), (2, 1, 0));
    assert_eq!(tokens(&[&"a".repeat(513)]), (511, 1, 0));
    // The second byte of the last character is beyond the window: what follows it does not matter.
    let cut = |last: char| {
        let text = format!("{}{last}", "a".repeat(511));
        place.check(&model, &[&text]).score.unwrap().cross_entropy_nats
    };
    assert_eq!(cut('é'), cut('è'));
    assert_eq!(tokens(&[&format!("{}é", "a".repeat(511))]), (511, 1, 0));
}

#[test]
fn unnamed_documents_leave_the_score_open() {
    let place = Place::new();
    let artifact = place.packed(&place.model(&Shape::default()), Container::TarXz);
    let report = check(&artifact, &place.terms(), None, &CheckOptions::default(), &|_| ()).unwrap();
    assert_eq!(outcome(&report), "unscored (-)");
    assert_eq!(report.unchecked, ["heldout_ppl: no documents were named"]);
}

/// The contract with another row.
fn changed(from: &str, to: &str) -> (Place, Contracts) {
    let place = Place::new();
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/frontier/contracts.toml")).unwrap();
    let text = text.replacen(from, to, 1);
    fs::write(place.path("contracts.toml"), text).unwrap();
    let contracts = Contracts::read(&place.path("contracts.toml")).unwrap();
    (place, contracts)
}

const REFERENCE: &str = "reference_parameters = 27_000_000_000";

#[test]
fn case_25_27_an_artifact_beyond_the_reference_is_rejected_before_it_is_opened() {
    let (place, contracts) = changed(REFERENCE, "reference_parameters = 1_000");
    let garbage = place.path("garbage.bin");
    fs::write(&garbage, vec![1u8; 1000]).unwrap();
    let terms = contracts.terms(TERNARY).unwrap();
    let report = place.check_with(&garbage, &terms, &[TEXT], CheckOptions::default());
    assert_eq!(outcome(&report), "rejected (artifact_size)");
    // A model that has too many parameters as well is too large first.
    let report = place.check_with(&place.model(&Shape::default()), &terms, &[TEXT], CheckOptions::default());
    assert_eq!((outcome(&report).as_str(), report.size.parameters), ("rejected (artifact_size)", None));
}

#[test]
fn case_26_too_many_parameters_are_rejected_before_the_size_of_the_model() {
    let (place, contracts) = changed(REFERENCE, "reference_parameters = 1_000");
    let options = CheckOptions { bytes: Some("200".into()), ..CheckOptions::default() };
    let terms = contracts.terms(TERNARY).unwrap();
    let report = place.check_with(&place.model(&Shape::default()), &terms, &[TEXT], options);
    assert_eq!(outcome(&report), "rejected (parameter_count)");
    assert!(report.score.is_some(), "scored before it is counted");
}

#[test]
fn case_31_a_size_that_is_no_positive_number_is_an_error() {
    let place = Place::new();
    let model = place.model(&Shape::default());
    for text in ["0", "-1", "x", "", "1.5"] {
        let options = CheckOptions { bytes: Some(text.into()), ..CheckOptions::default() };
        let report = place.check_with(&model, &place.terms(), &[TEXT], options);
        assert_eq!(outcome(&report), "error (-)", "{text:?}");
    }
}

#[test]
fn case_32_a_vocabulary_smaller_than_the_ids_is_an_error() {
    let place = Place::new();
    let model = place.model(&Shape { vocab: 200, ..Shape::default() });
    let report = place.check(&model, &["\u{1f600}"]);
    assert_eq!(outcome(&report), "error (-)");
    assert!(report.message.unwrap().contains("its vocabulary of 200 is smaller than token id 241"));
    // Ids that it has are scored.
    assert_eq!(outcome(&place.check(&model, &["ascii"])), "rejected (quantized_size)");
}

#[test]
fn case_33_values_that_are_not_finite_are_an_error_or_by_the_first_scorer_a_rejection() {
    let place = Place::new();
    let shape = Shape { blind: false, ..Shape::default() };
    let mut draw = drawn(&shape);
    write_model(&place.path("m"), &shape, |name, count| match name.contains("norm") {
        true => vec![3e38; count],
        false => draw(name, count),
    });
    let artifact = place.packed(&place.path("m"), Container::TarXz);
    let report = place.check(&artifact, &[TEXT]);
    assert_eq!(outcome(&report), "error (-)");
    assert!(report.message.unwrap().contains("not finite"));
    // The scorer of the artifact's own tokenizer lets the loss through.
    let terms = place.contracts.with_scorer(place.terms(), "hf_loss_artifact_tokenizer").unwrap();
    fs::copy(super::super::worker::fixture("llama").join("tokenizer.json"), place.path("m/tokenizer.json")).ok();
    if place.path("m/tokenizer.json").is_file() {
        let report = place.check_with(&place.path("m"), &terms, &[TEXT], CheckOptions::default());
        assert_eq!(outcome(&report), "rejected (quantized_size)");
    }
}

#[test]
fn case_34_nothing_to_score_is_an_error() {
    let place = Place::new();
    let report = place.check(&place.model(&Shape::default()), &["a", "", "b"]);
    assert_eq!(outcome(&report), "error (-)");
    assert!(report.message.unwrap().contains("none of the 3 documents has two tokens"));
}

#[test]
fn case_35_announced_size_and_hash_must_be_those_of_the_file() {
    let place = Place::new();
    let artifact = place.packed(&place.model(&Shape::default()), Container::Zip);
    let with = |sha: Option<&str>, size: Option<u64>| {
        let promised = (sha.map(str::to_owned), size);
        place.check_with(&artifact, &place.terms(), &[TEXT], CheckOptions { promised, ..CheckOptions::default() })
    };
    let (size, sha) = {
        let report = with(None, None);
        (report.size.bytes, report.size.sha256.unwrap())
    };
    assert_eq!(outcome(&with(Some(&sha.to_uppercase()), Some(size))), "accepted (-)");
    let wrong = with(None, Some(size + 1));
    assert!(wrong.verdict == Verdict::Error && wrong.message.unwrap().contains("artifact_size_bytes mismatch"));
    let wrong = with(Some(&"0".repeat(64)), None);
    assert!(wrong.verdict == Verdict::Error && wrong.message.unwrap().contains("artifact_sha256 mismatch"));
}

#[test]
fn case_44_negative_zeros_cost_bytes_and_change_no_score() {
    let place = Place::new();
    let shape = Shape { dtype: Dtype::F16, blind: false, zeros: 0.5, ..Shape::default() };
    let artifact = |name: &str, negative: bool| {
        let (mut draw, mut noise) = (drawn(&shape), Noise(3));
        let dir = place.path(name);
        write_model(&dir, &shape, |tensor, count| {
            let mut values = draw(tensor, count);
            for value in values.iter_mut().filter(|value| **value == 0.0) {
                *value = if negative && noise.next() < 0.5 { -0.0 } else { 0.0 };
            }
            values
        });
        let report = place.check(&place.packed(&dir, Container::TarXz), &[TEXT]);
        fs::remove_file(place.path("artifact.tar.xz")).unwrap();
        (report.size.bits_per_parameter.unwrap(), report.score.unwrap().cross_entropy_nats)
    };
    let (clean, negative) = (artifact("clean", false), artifact("negative", true));
    assert_eq!(clean.1, negative.1);
    assert!(negative.0 > clean.0 + 0.3, "{negative:?} and {clean:?}");
}

#[test]
fn case_45_a_position_is_scored_by_its_prefix_alone() {
    let place = Place::new();
    let shape = Shape { blind: false, zeros: 0.0, ..Shape::default() };
    let (mut draw, mut noise) = (drawn(&shape), Noise(11));
    write_model(&place.path("m"), &shape, |name, count| {
        draw(name, count).iter().map(|value| value * 10.0 * noise.next() as f32).collect()
    });
    let total = |text: &str| {
        let score = place.check(&place.path("m"), &[text]).score.unwrap();
        score.cross_entropy_nats * score.tokens as f64
    };
    // What comes later must not change what came before: the sum over a prefix is the sum of its own positions.
    let whole: f64 = total("abcdefgh");
    let front = total("abcde");
    let swapped: f64 = total("abcdezzz");
    assert!(whole > front && swapped > front);
    let mut sum = 0.0;
    for end in 2..=8 {
        sum += total(&"abcdefgh"[..end]) - if end > 2 { total(&"abcdefgh"[..end - 1]) } else { 0.0 };
    }
    assert!((sum - whole).abs() < 1e-4 * whole, "{sum} {whole}");
    let by_prefix: f64 = total("abcdef") - front;
    assert!(by_prefix > 0.0 && by_prefix < whole);
}

#[test]
fn case_46_damaged_weights_are_a_clean_error() {
    let place = Place::new();
    let model = place.model(&Shape::default());
    let file = model.join("model.safetensors");
    let good = fs::read(&file).unwrap();
    let length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(good[8..8 + length].to_vec()).unwrap();
    let with_header = |header: &str| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.extend(&good[8 + length..]);
        bytes
    };
    let overlap = with_header(&header.replacen("[0,", "[4,", 1));
    let mut nul = good.clone();
    nul[20] = 0;
    for (what, bytes) in
        [("short", good[..good.len() - 9].to_vec()), ("overlap", overlap), ("nul", nul), ("empty", vec![])]
    {
        fs::write(&file, bytes).unwrap();
        let report = place.check(&model, &[TEXT]);
        assert_eq!(outcome(&report), "error (-)", "{what}");
        assert!(report.message.unwrap().contains("model.safetensors"), "{what}");
    }
    fs::write(model.join("config.json"), "{\"model_type\": \"gpt2\"}").unwrap();
    fs::write(&file, good).unwrap();
    let report = place.check(&model, &[TEXT]);
    assert!(report.message.unwrap().contains("\"gpt2\" is not one this build knows"));
    assert!(report.hint.unwrap().contains("llama"));
}

#[test]
fn the_choice_of_documents_is_part_of_the_report_and_of_the_result_file() {
    let place = Place::new();
    let terms = place.terms();
    let texts: Vec<String> = (0..20).map(|i| format!("document number {i}")).collect();
    let pool = pool(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let choice = factoryline::frontier::Choice::of(terms.choice, terms.contract.documents);
    let exam = Exam::prepare(&terms, &pool, &choice, None).unwrap();
    let artifact = place.packed(&place.model(&Shape::default()), Container::TarXz);
    let report = check(&artifact, &terms, Some(&exam), &CheckOptions::default(), &|_| ()).unwrap();
    let handle = report.documents.as_ref().unwrap();
    assert_eq!((handle.document_count, handle.dataset.as_str()), (16, "pack-local-proxy"));
    let file = report.last_run(&terms);
    let document: serde_json::Value = serde_json::from_str(&file).unwrap();
    assert_eq!(document["metrics"]["scored_docs"], 16.0);
    assert_eq!(document["max_reference_artifact_bits"], 59_737_500_000u64);
    assert_eq!(document["runtime"]["tokenizer_id"], "autoresearch-byte-utf8");
    let keys: Vec<&String> = document.as_object().unwrap().keys().collect();
    assert!(keys.is_sorted() && keys.len() == 24, "{keys:?}");
    assert!(file.starts_with("{\n  \"artifact_bits_per_parameter\": "));
}
