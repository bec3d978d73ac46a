//! The table of rankings in docs/VERIFICATION.md, as markdown on standard output. It asserts that the figures are
//! numbers, not who wins.
//!
//! ```text
//! RANKING_MODEL=DIR RANKING_CALIBRATION=TEXT RANKING_HELD_OUT=TEXT \
//!     cargo test --release --test it ranking_table -- --ignored --nocapture
//! ```

use std::path::PathBuf;

use factoryline::assay::{Divergence, divergence};
use factoryline::compress::{
    Kept, Metric, ProfileOrigin, SequenceLimits, choose_experts, profile_experts, read_corpus, sequences, survivors,
};
use factoryline::engine::{PassOptions, Variant};
use factoryline::family::{OpenModel, open};

const FAMILY: [Metric; 7] = [
    Metric::Reap,
    Metric::EanMean,
    Metric::Msan,
    Metric::EanSum,
    Metric::WeightedEanSum,
    Metric::ActivationCount,
    Metric::Aimer,
];
const WINDOW: usize = 512;
/// Windows a profile sees, and windows that choose and judge.
const PROFILED: usize = 8;
const HELD_OUT: usize = 4;

fn setting(name: &str) -> PathBuf {
    PathBuf::from(std::env::var(name).unwrap_or_else(|_| panic!("set {name}")))
}

fn windows(model: &OpenModel, path: &std::path::Path) -> Vec<Vec<u32>> {
    let tokenizer = model.open_tokenizer().unwrap().unwrap();
    let limits = SequenceLimits { max_length: WINDOW, max_examples: None, max_tokens: None };
    let mut all = sequences(&read_corpus(path).unwrap(), &tokenizer, limits, &|_| ()).unwrap();
    // The examples of a .jsonl corpus are short: laid end to end.
    let ids: Vec<u32> = all.drain(..).flatten().collect();
    ids.chunks_exact(WINDOW).map(<[u32]>::to_vec).collect()
}

/// `count` different windows, drawn with a seed.
fn draw(windows: &[Vec<u32>], count: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut order: Vec<usize> = (0..windows.len()).collect();
    for i in (1..order.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(i, (state >> 33) as usize % (i + 1));
    }
    order.truncate(count);
    order.into_iter().map(|i| windows[i].clone()).collect()
}

#[test]
#[ignore = "measures for minutes on models and texts that are named in the environment"]
fn ranking_table() {
    let model = open(&setting("RANKING_MODEL")).unwrap();
    let (calibration, held) = (setting("RANKING_CALIBRATION"), setting("RANKING_HELD_OUT"));
    let (calibration, held) = (windows(&model, &calibration), windows(&model, &held));
    assert!(calibration.len() >= PROFILED && held.len() >= 2 * HELD_OUT, "{} {}", calibration.len(), held.len());
    let (choosing, judging) = (&held[..HELD_OUT], &held[held.len() - HELD_OUT..]);
    let (experts, _) = model.spec.experts().unwrap();
    let options = PassOptions::default();
    let mut header = "| seed | removed | base ppl |".to_owned();
    FAMILY.iter().for_each(|metric| header.push_str(&format!(" {} |", metric.as_str())));
    println!("{header} best of family |");
    for seed in 1..=3 {
        let profiled = draw(&calibration, PROFILED, seed);
        let table = profile_experts(&model, &ProfileOrigin::default(), &profiled, &options, &|_| ()).unwrap();
        for removed in [25, 50] {
            let keep = experts - experts * removed / 100;
            let choose = |metric| choose_experts(&model, metric, Some(&table.importance), keep).unwrap();
            let kept: Vec<Kept> = FAMILY.into_iter().map(choose).collect();
            let variants: Vec<Variant> = kept.iter().map(|kept| Variant::keeping(&survivors(kept))).collect();
            let measure = |text: &[Vec<u32>]| divergence(&model, &variants, text, &options, &|_| ()).unwrap();
            let (chosen_on, judged): (Vec<Divergence>, Vec<Divergence>) = (measure(choosing), measure(judging));
            let best = (0..FAMILY.len()).min_by(|&a, &b| chosen_on[a].kld.total_cmp(&chosen_on[b].kld)).unwrap();
            let mut row = format!("| {seed} | {removed} % | {:.2} |", judged[0].base_perplexity);
            for found in &judged {
                assert!(found.kld.is_finite() && found.kld >= 0.0);
                row.push_str(&format!(" {:.4} ± {:.4} |", found.kld, found.kld_stderr));
            }
            println!("{row} {:.4} ({}) |", judged[best].kld, FAMILY[best].as_str());
        }
    }
}
